"""Identifiers: the parts of a message that identify its object."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Self, TypeVar
from uuid import UUID

from django_cqrs.annotations import bare_type, name_of_type
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
    MessageConversionError,
)
from django_cqrs.messages import Message, Origin
from django_cqrs.plain import as_plain, has_surrogate

Values = tuple[Any, ...]
"""The parts of an identifier, in order."""


class UnknownKey(tuple[Any, ...]):  # noqa: SLOT001 - a tuple has no room for slots
    """The place of an identifier where a natural key is that of no object."""

    said: str
    """The natural key, in errors: ``email=ada@example.org``."""

    def __new__(cls, said: str) -> Self:
        """Take the natural key, in errors."""
        made = super().__new__(cls)
        made.said = said
        return made


Source = Callable[[Message], Any]
"""A function that finds a value in a message, None if it is missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Identifier:
    """
    ``Annotated[UUID, Identifier("ticket_id")]``: this field names the object.

    Without a name it is the identifier named like the field or parameter.
    """

    name: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """``Annotated[int, Version()]``: the version of the object that its sender saw."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One part of the identifier of a class's objects."""

    name: str
    """The attribute of the object."""
    aliases: tuple[str, ...]
    """Its names in messages, the usual one first."""
    convert: Callable[[Any], Any]
    """Converts a message's value into the object's."""

    def is_called(self, name: str) -> bool:
        """Return whether a name is one of this part's."""
        return name == self.name or name in self.aliases


_PLAIN = (str, int, float, UUID, Decimal, datetime, date)


def plain(value: Any) -> Any:
    """
    Return an identifier for a database and a channel: value objects as text.

    An Enum becomes its value, and a subclass of a plain type becomes that type.

    Raises:
        InvalidIdentifier: it has several values, or a text that not every database can
            hold.

    """
    while isinstance(value, Enum):
        value = value.value
    value = as_plain(value)
    if isinstance(value, str):
        _refuse_text(value)
        return value
    if isinstance(value, _PLAIN) and not isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple, set, frozenset, Mapping, bytes, bool)):
        msg = (
            "An identifier must be a single value, such as a number, a text or a "
            f"UUID, not a value of type {type(value).__name__}."
        )
        raise InvalidIdentifier(msg)
    if hasattr(value, "_meta") and hasattr(value, "pk"):  # an instance of a model
        return plain(value.pk)
    text = str(value)
    _refuse_text(text)
    return text


def _refuse_text(text: str) -> None:
    fault = "the character NUL" if "\x00" in text else ""
    fault = fault or ("an incomplete character" if has_surrogate(text) else "")
    if fault:
        msg = (
            f"{text!r} is not a valid identifier: it contains {fault}, which a key "
            "must not contain."
        )
        raise InvalidIdentifier(msg)


_KEYS = (str, int, UUID, Decimal, datetime, date)


def key_type_of(annotation: Any) -> Any:
    """Return the type of an identifier's part; Any: texts are compared."""
    target = bare_type(annotation)
    return target if target in _KEYS else Any


def typed(annotation: Any, name: str, value: Any) -> Any:
    """
    Return an identifier's part in its annotated type, if that is a plain type.

    Raises:
        InvalidIdentifier: it cannot be converted to this type.

    """
    value = plain(value)
    target = key_type_of(annotation)
    if target is Any or type(value) is target:
        return value
    try:
        return adapter_of(target).from_python(value)
    except MessageConversionError as error:
        msg = (
            f"{value!r} is not a valid identifier: {name} has the type "
            f"{name_of_type(target)}."
        )
        raise InvalidIdentifier(msg) from error


E = TypeVar(
    "E", AggregateAlreadyExists, AggregateNotFound, ConcurrencyError, InvalidIdentifier
)


def at_entrance(error: E, message: Message) -> E:
    """Return an error that notes whether the first message of its chain raised it."""
    error.at_entrance = isinstance(message._parent, Origin)
    return error


# -------------------------------------------------------------------- given by value


def values_given(parts: Sequence[Part], given: Any, *, by: str) -> Values:
    """
    Return the parts of an identifier that is given as one value.

    Args:
        parts: the parts of the class's identifier.
        given: one value, or for several parts a dict by name or a tuple in order.
        by: the source of the value, for the error.

    Raises:
        InvalidIdentifier: it does not consist of these parts.

    """
    if isinstance(given, Mapping):
        values = [
            next((given[name] for name in (p.name, *p.aliases) if name in given), None)
            for p in parts
        ]
        fits = len(given) == len(parts) and None not in values
    elif len(parts) > 1 and isinstance(given, (tuple, list)):
        values = list(given)
        fits = len(values) == len(parts) and None not in values
    else:
        values, fits = [given], len(parts) == 1
    if not fits:
        names = ", ".join(part.name for part in parts)
        msg = f"{by} gives {given!r}, but the identifier consists of {names}."
        raise InvalidIdentifier(msg)
    return tuple(part.convert(value) for part, value in zip(parts, values, strict=True))


# --------------------------------------------------------------- found in the message


def identification(
    parts: Sequence[Part], declared: Any, payload_type: type | None
) -> Callable[[Message], Values | None]:
    """
    Compile a function that finds the identifier of a message's object.

    The first one with a value decides: the call's ``aggregate_id=``, the handler's
    `declared` ``identifier=``, the payload's field marked with :class:`Identifier`, its
    attribute or key of the identifier's name.

    Args:
        parts: the parts of the identifier.
        declared: the ``identifier=`` of the handler.
        payload_type: the class of the payloads, if known.

    Returns:
        A function from a message to the identifier's parts, None if it has none. It
        raises InvalidIdentifier for values that cannot be an identifier.

    """
    whole = declared if callable(declared) else None
    marked = marked_fields(payload_type)
    sources = [
        _sources_of(part, declared, marked, alone=len(parts) == 1) for part in parts
    ]

    if len(parts) == 1 and whole is None:
        return _of_one_part(parts, sources[0])

    def find(message: Message) -> Values | None:
        given = message.aggregate_id
        if given is not None:
            return values_given(parts, given, by="aggregate_id=")
        if whole is not None:
            given = whole(message)
            if given is not None:
                return values_given(parts, given, by="identifier=")
        values = []
        for part, several in zip(parts, sources, strict=True):
            for source in several:
                value = source(message)
                if value is not None:
                    values.append(part.convert(value))
                    break
            else:
                return None
        return tuple(values)

    return find


def _of_one_part(
    parts: Sequence[Part], sources: Sequence[Source]
) -> Callable[[Message], Values | None]:
    """Return the same for an identifier of one part, the usual case, in fewer steps."""
    convert = parts[0].convert

    def find(message: Message) -> Values | None:
        given = message.aggregate_id
        if given is not None:
            return values_given(parts, given, by="aggregate_id=")
        for source in sources:
            value = source(message)
            if value is not None:
                return (convert(value),)
        return None

    return find


def _sources_of(
    part: Part, declared: Any, marked: Mapping[str | None, str], *, alone: bool
) -> list[Source]:
    sources: list[Source] = []
    for name, each in declared_sources(declared):
        if (name is None and alone) or (name is not None and part.is_called(name)):
            sources.append(each)
    for name, field in marked.items():
        if name is not None and part.is_called(name):
            sources.append(attribute(field))
    sources.extend(attribute(alias) for alias in part.aliases)
    return sources


def declared_sources(declared: Any) -> Iterator[tuple[str | None, Source]]:
    """Yield the sources in an ``identifier=``, each with the name of its part."""
    if isinstance(declared, Mapping):
        for name, one in declared.items():
            for _, source in declared_sources(one):
                yield name, source
    elif isinstance(declared, str):
        yield None, attribute(declared)
    elif isinstance(declared, Header):
        name = declared.name
        yield None, lambda message: message.headers.get(name)
    elif callable(declared):
        yield None, declared


def attribute(name: str) -> Source:
    """Return a source that reads an attribute of the payload, or a key of a dict."""

    def read(message: Message) -> Any:
        payload = message._payload
        if isinstance(payload, Mapping):
            return payload.get(name)
        return getattr(payload, name, None)

    return read


def marked_fields(cls: type | None) -> dict[str | None, str]:
    """Return the fields of a message class that :class:`Identifier` marks, by name."""
    return {
        mark.name or field: field
        for field, mark in _marks_of(cls)
        if isinstance(mark, Identifier)
    }


def version_field(cls: type | None) -> str | None:
    """Return the field of a message class that :class:`Version` marks, if any."""
    return next(
        (
            f
            for f, mark in _marks_of(cls)
            if isinstance(mark, Version) or mark is Version
        ),
        None,
    )


def _marks_of(cls: type | None) -> Iterator[tuple[str, Any]]:
    if cls is None or cls.__module__ == "builtins":
        return
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation may run any code; a check says so
        return
    for field, annotation in hints.items():
        if typing.get_origin(annotation) is typing.Annotated:
            for mark in annotation.__metadata__:
                yield field, Identifier() if mark is Identifier else mark
