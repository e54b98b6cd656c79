"""Stored messages as operators see them: without sensitive data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from django.db.models import Q, QuerySet

from django_cqrs import buses
from django_cqrs.annotations import is_value_type, marks_of
from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.masking import (
    MASK,
    Masking,
    Sensitive,
    masking_of,
    redactor_of,
    without_input,
)
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.exceptions import (
    CQRSError,
    InvalidHandler,
    UnknownEndpoint,
    UnknownMessage,
)
from django_cqrs.outbox.models import DeadLetter, Reason, StoredMessage
from django_cqrs.routing.endpoint import Endpoint

NOT_SHOWN: Final = "(not shown)"
"""The replacement of a text that may quote anything."""


MASKED: Final = (
    f"{MASK} stands for a sensitive value, or for a field that the class does not "
    "have in this version, which may have been sensitive."
)
"""The explanation of a payload with masks in it."""


def reason_text(reason: str) -> str:
    """Return why a message was given up: the word in the commands, and its meaning."""
    labels: dict[str, Any] = dict(Reason.choices)
    return f"{reason}: {labels[reason]}" if reason in labels else reason


# --------------------------------------------------------------- sensitive fields


@dataclasses.dataclass(frozen=True, slots=True)
class RedactionRule:
    """The sensitive fields in the payload of one message."""

    masking: Masking | None = None
    is_strict: bool = True
    """Whether a value is shown only if its type says that it is not sensitive."""
    hides_all: bool = False
    reason: str = ""
    """The reason why the fields are unknown and nothing is shown; otherwise empty."""

    def mask(self, document: Any, masker: Callable[[Any, Any], Any]) -> Any:
        """
        Return JSON with its sensitive values replaced.

        Raises:
            RecursionError: it is nested too deeply.

        """
        if not self.is_strict:
            return document
        if self.hides_all or self.masking is None:
            return masker((), document)
        return self.masking.mask(document, masker)


def rule_for(message: StoredMessage, registry: Registry | None = None) -> RedactionRule:
    """Return the sensitive fields of a stored message's payload, without reading it."""
    table = (registry or buses.registry).routes
    wanted: Any = Any
    try:
        taken = table.endpoint_named(message.endpoint).plan.payload
    except (UnknownEndpoint, InvalidHandler) as error:
        if not message.name:  # only its handler knows its type
            return RedactionRule(reason=str(error))
    else:
        if taken is not None and not taken.takes_anything:
            wanted = taken.annotation
    hides_all = _is_marked(wanted)
    is_present = True
    if message.name:
        try:
            wanted = table.types.class_of(message.name)
        except UnknownMessage as error:
            return RedactionRule(reason=str(error))
        is_present = message.version == table.types.name_of(wanted).version
    masking = masking_of(wanted)
    if masking.reason is not None:
        return RedactionRule(reason=f"Its type cannot be evaluated: {masking.reason}.")
    is_strict = masking.is_marked or hides_all or not is_present
    return RedactionRule(masking, is_strict, hides_all)


def _is_marked(annotation: Any) -> bool:
    return any(
        isinstance(mark, Sensitive) or mark is Sensitive
        for mark in marks_of(annotation)
    )


def redactor_for(endpoint: Endpoint, payload: Any) -> Callable[[str], str]:
    """
    Return a function that masks a payload's sensitive values in a text.

    Args:
        endpoint: the handler that is called with the payload.
        payload: an object in memory, not a stored one.

    """
    taken = endpoint.plan.payload
    wanted: Any = Any
    if taken is not None and not taken.takes_anything:
        wanted = taken.annotation
    hides_all = _is_marked(wanted)
    if not is_value_type(type(payload)):
        wanted = type(payload)
    masking = masking_of(wanted)
    if not masking.is_marked and not hides_all:
        return str
    hidden: list[Any] = []

    def mask(_path: object, value: Any) -> str:
        hidden.append(value)
        return MASK

    try:
        document = json.loads(PayloadType(wanted).to_json(payload))
        RedactionRule(masking, hides_all=hides_all).mask(document, mask)
    except (CQRSError, ValueError, RecursionError):
        return _hide
    replace = redactor_of(hidden)
    return lambda text: replace(without_input(text))


def _hide(text: str) -> str:
    return NOT_SHOWN if text else text


# ------------------------------------------------------------------- redacted views


@dataclasses.dataclass(frozen=True, slots=True)
class RedactedMessage:
    """A stored message as operators may see it."""

    text: str
    """The payload as it was stored, or with masks in it; empty if none is shown."""
    pretty: str
    """The same, one value a line."""
    reason: str
    """The reason why the payload is not shown; empty if it is."""
    redact: Callable[[str], str]
    """Masks the payload's sensitive values in a text that quotes it."""

    def headers_of(self, message: StoredMessage) -> str:
        """Return the headers, one a line."""
        raw = bytes(message.headers)
        try:
            text = json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            text = _text(raw)
        return self._without_values(text)

    def header_text_of(self, message: StoredMessage) -> str:
        """Return the headers as they were stored, with masks."""
        return self._without_values(_text(bytes(message.headers)))

    def _without_values(self, text: str) -> str:
        return _printable(text if self.reason else self.redact(text))

    def error_of(self, letter: DeadLetter) -> str:
        """Return the text of the error."""
        return self._failure_of(letter, letter.error)

    def traceback_of(self, letter: DeadLetter) -> str:
        """Return the traceback."""
        return self._failure_of(letter, letter.traceback)

    def key_of(self, message: StoredMessage) -> str | None:
        """Return the ordering key, masked if it comes from a sensitive field."""
        return message.ordering_key and self.redact(message.ordering_key)

    def subject_of(self, message: StoredMessage) -> str:
        """Return its object's name, masked if a sensitive field identifies it."""
        return message.subject and self.redact(message.subject)

    def _failure_of(self, letter: DeadLetter, text: str) -> str:
        if not self.reason or not text:
            return self.redact(text)
        is_ours = letter.reason in _OURS or (
            letter.reason == Reason.UNDECODABLE and self.reason == NO_JSON
        )
        return without_input(text) if is_ours else NOT_SHOWN


# The reasons of messages given up before a handler or a converter saw a value.
_OURS = (Reason.POISON, Reason.UNKNOWN_ENDPOINT, Reason.UNKNOWN_MESSAGE)
NO_JSON = "It is not JSON, so its sensitive values cannot be found."


def redact(message: StoredMessage, registry: Registry | None = None) -> RedactedMessage:
    """
    Return a stored message as operators may see it.

    A payload that may be sensitive is not shown: one whose class or handler is unknown,
    or that is not JSON although its class has sensitive fields.

    Args:
        message: the message; its payload is read.
        registry: the registry with its handlers; by default the project's.

    """
    rule = rule_for(message, registry)
    if rule.reason:
        return _unseen(rule.reason)
    raw = bytes(message.payload)
    hidden: list[Any] = []

    def mask(_path: object, value: Any) -> str:
        hidden.append(value)
        return MASK

    try:
        document = rule.mask(json.loads(raw), mask)
        pretty = _printable(json.dumps(document, indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        if rule.is_strict:
            return _unseen(NO_JSON)
        return RedactedMessage(_text(raw), _text(raw), "", str)
    if not rule.is_strict:
        return RedactedMessage(_text(raw), pretty, "", str)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    replace = redactor_of(hidden)
    return RedactedMessage(
        _printable(text), pretty, "", lambda text: replace(without_input(text))
    )


def _unseen(reason: str) -> RedactedMessage:
    return RedactedMessage("", "", reason, _hide)


def redact_list(
    messages: Iterable[StoredMessage], *, using: str
) -> dict[int, RedactedMessage]:
    """
    Return the rows of a list as operators may see them, by their ids.

    Only payloads whose types have sensitive fields are read, all by one statement.

    Args:
        messages: rows of one table; their payloads need not be loaded.
        using: the alias of their database.

    """
    found: dict[int, RedactedMessage] = {}
    unread: dict[int, StoredMessage] = {}
    for message in messages:
        rule = rule_for(message)
        if rule.reason:
            found[message.pk] = _unseen(rule.reason)
        elif rule.is_strict:
            unread[message.pk] = message
        else:
            found[message.pk] = _PLAIN
    if unread:
        manager = type(next(iter(unread.values())))._default_manager.using(using)
        columns = ("pk", "endpoint", "name", "version", "payload")
        for row in manager.filter(pk__in=unread).only(*columns):
            found[row.pk] = redact(row)
    gone = (pk for pk in unread if pk not in found)
    found.update(dict.fromkeys(gone, _unseen("It no longer exists.")))
    return found


EXAMINED: Final = 100
"""The number of newest rows of one kind that are examined for masked values."""


def masked_among(rows: QuerySet[Any], column: str, value: str) -> Q:
    """
    Return the condition for rows that a search for a value must not find.

    A search that finds a value which the page masks would confirm a guess of it.

    Args:
        rows: messages or dead letters.
        column: ``"ordering_key"`` or ``"subject"``.
        value: the searched value.

    """
    masked = Q(pk__in=())
    named = ("endpoint", "name", "version")
    having = rows.filter(**{column: value})
    for values in having.order_by().values(*named).distinct():
        newest = having.filter(**values).order_by("-pk").defer(None)[:EXAMINED]
        for row in newest:
            if redact(row).redact(getattr(row, column)) != value:
                masked |= Q(**values)
                break
    return masked


_PLAIN = RedactedMessage("", "", "", str)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _printable(text: str) -> str:
    """Return a text that can be encoded: without lone surrogates."""
    return text.encode(errors="backslashreplace").decode()
