"""Keys of messages, for ordering and for recognising duplicates."""

from __future__ import annotations

import dataclasses
import hashlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from django_cqrs.annotations import is_plain_class, is_protocol, name_of_type
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import InvalidKey, MissingHeader
from django_cqrs.messages import Message
from django_cqrs.plain import as_plain

KeySource = str | Header | Callable[[Message], object]
"""An attribute of the payload, a header, or a callable that takes the message."""

KeyReader = Callable[[Message], str | None]

MAX_LENGTH: Final = 255
"""The maximum length of a stored key; a longer one is stored as its hash."""

_SIMPLE = (str, int, UUID, Decimal, date)


def is_key_source(source: object) -> bool:
    """Return whether an object can be a source of keys."""
    return bool(source) and (isinstance(source, (str, Header)) or callable(source))


def key_reader(source: KeySource, what: str, whose: str) -> KeyReader:
    """
    Return a function that reads a message's key: text, or None without one.

    Args:
        source: the source of the key.
        what: the keyword that it was given for.
        whose: the endpoint or the bus, for errors.

    """
    get: Callable[[Message], object]
    if isinstance(source, Header):
        get = _header_getter(source.name, what, whose)
    elif isinstance(source, str):
        get = _attribute_getter(source, what, whose)
    else:
        get = source

    def read(message: Message) -> str | None:
        __traceback_hide__ = True
        value = get(message)
        if value is None:
            return None
        try:
            return as_key(value)
        except InvalidKey as error:
            msg = f"The {what} of a message for {whose} cannot be one: {error}"
            raise InvalidKey(msg) from None

    return read


def as_key(value: object) -> str:
    """
    Return a key for storage; too long ones, or with a space at the end, as a hash.

    Raises:
        InvalidKey: keys cannot have the type of this value.

    """
    if isinstance(value, Enum):
        value = value.value
    value = as_plain(value)
    if isinstance(value, tuple):
        return storable_key(joined(as_key(each) for each in value))
    if isinstance(value, _SIMPLE):
        text = str(value)
        if text.startswith(_QUOTES):  # a tuple's key does
            return _hash_of(text)
    else:
        msg = (
            f"{type(value).__qualname__} is not a str, int, UUID, Decimal, date, "
            "datetime, an Enum of these, or a tuple of them."
        )
        raise InvalidKey(msg)
    return storable_key(text)


def joined(texts: Iterable[str]) -> str:
    """Return several texts as one; different sequences give different texts."""
    return ",".join(map(repr, texts))


def storable_key(text: str, *, room: int = MAX_LENGTH) -> str:
    """
    Return a text that every database accepts and distinguishes.

    Args:
        text: the text to store.
        room: the maximum number of characters.

    Returns:
        The text itself; its hash if it is longer, ends in a space, contains NUL or a
        lone surrogate, or looks like a hash.

    """
    # A database may ignore a space at the end of a text.
    if (
        len(text) > room
        or text != text.rstrip()
        or text.startswith(_HASH)
        or "\x00" in text
        or not (text.isascii() or _is_unicode(text))
    ):
        return _hash_of(text)
    return text


_HASH: Final = "sha256:"
_QUOTES: Final = ("'", '"')


def _hash_of(text: str) -> str:
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{_HASH}{digest}"


def _is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header_getter(name: str, what: str, whose: str) -> Callable[[Message], object]:
    def get(message: Message) -> object:
        __traceback_hide__ = True
        try:
            return message.headers[name]
        except KeyError:
            msg = (
                f"{whose} has {what}=Header({name!r}), but the message has no such "
                f"header. Give it with headers={{{name!r}: ...}}; None means that the "
                "message has no key."
            )
            raise MissingHeader(msg) from None

    return get


def _attribute_getter(name: str, what: str, whose: str) -> Callable[[Message], object]:
    def get(message: Message) -> object:
        __traceback_hide__ = True
        payload = message.payload
        try:
            if isinstance(payload, Mapping):
                return payload[name]
            return getattr(payload, name)
        except (AttributeError, KeyError):
            kind = type(payload).__qualname__
            msg = (
                f"{whose} has {what}={name!r}, but the {kind} that was sent has no "
                "such field."
            )
            raise InvalidKey(msg) from None

    return get


_KEYLESS = frozenset({"timestamp", "causation_id", "attempt", "is_last_attempt"})


def faults_of(source: object, members: tuple[Any, ...] | None) -> Iterator[str]:
    """
    Yield the faults of a key source.

    Args:
        source: the given value.
        members: the possible types of the payload, as annotated; None if the handler
            takes none.

    """
    if isinstance(source, Header) and source.name in _KEYLESS:
        yield (
            f"The header {source.name!r} is not a key: it does not tell one message "
            "from another."
        )
    if not is_key_source(source):
        yield "A key must be an attribute's name, a Header, or a callable."
    if not isinstance(source, str) or not source:
        return
    if members is None:
        yield "It has no parameter for the payload."
    for member in members or ():
        if _lacks(member, source):
            yield f"{name_of_type(member)} has no attribute {source!r}."


def _lacks(member: Any, name: str) -> bool:
    """Return whether no object of a type can have an attribute, as far as is known."""
    if not is_plain_class(member) or member in (object, Any):
        return False
    if is_protocol(member) or issubclass(member, Mapping):
        return False
    if dataclasses.is_dataclass(member):
        known = {field.name for field in dataclasses.fields(member)}
    elif hasattr(member, "model_fields"):
        known = set(member.model_fields)
    else:
        known = set(getattr(member, "_fields", ()))
        known |= set(_annotations(member))
    return name not in known and not hasattr(member, name)


def _annotations(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        yield from typing.cast(
            "Mapping[str, Any]", getattr(base, "__annotations__", {})
        )


__all__ = [
    "KeyReader",
    "KeySource",
    "as_key",
    "faults_of",
    "is_key_source",
    "joined",
    "key_reader",
    "storable_key",
]
