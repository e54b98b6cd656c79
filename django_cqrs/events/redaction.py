"""Stored events as operators see them: without sensitive values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from django.db import connections

from django_cqrs.conversion.masking import MASK, masking_of, redactor_of
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.models import Stream
from django_cqrs.events.reading import events_where
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.stream_names import StreamName
from django_cqrs.exceptions import MessageConversionError, UnknownMessage

NOT_SHOWN: Final = "(not shown)"
"""The replacement of a text that may quote anything."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RedactedEvent:
    """A stored event as operators may see it."""

    payload: Any = None
    """The JSON in its present shape, with masks in it; None if none is shown."""
    headers: dict[str, Any] = dataclasses.field(default_factory=dict)
    tags: tuple[str, ...] = ()
    reason: str = ""
    """The reason why the payload is not shown; empty if it is."""
    hidden: tuple[Any, ...] = ()
    """The sensitive values of its payload."""
    redact: Callable[[str], str] = str
    """Masks the payload's sensitive values in a text that quotes it."""


def redact(recorded: Recorded, types: MessageTypes) -> RedactedEvent:
    """
    Return an event as operators may see it.

    A payload is not shown if it may be sensitive, and nothing says which part of it is:
    one whose class is unknown, or that cannot be read.

    Args:
        recorded: the event.
        types: the registered classes.

    """
    hidden: list[Any] = []

    def mask(_path: object, value: Any) -> str:
        hidden.append(value)
        return MASK

    try:
        headers = recorded.headers
        tags = recorded.tags
    except MessageConversionError as error:
        return RedactedEvent(reason=_place_of(error))
    unseen = partial(RedactedEvent, headers=headers, tags=tuple(map(_name_of, tags)))
    try:
        cls = types.class_of(recorded.name)
        masking = masking_of(cls)
        if masking.reason is not None:
            return unseen(reason=f"Its type cannot be evaluated: {masking.reason}.")
        payload = recorded.payload
        if masking.is_marked or recorded.shape != types.name_of(cls).version:
            payload = masking.mask(payload, mask)
    except UnknownMessage as error:
        return unseen(reason=str(error))
    except MessageConversionError as error:
        return unseen(reason=_place_of(error))
    except RecursionError:
        return unseen(reason="It is nested too deeply.")
    if not hidden:
        return RedactedEvent(payload=payload, headers=headers, tags=tags)
    replace = redactor_of(hidden)
    return RedactedEvent(
        payload=payload,
        headers=without_values(headers, replace),
        tags=tuple(map(replace, tags)),
        hidden=tuple(hidden),
        redact=replace,
    )


def _name_of(tag: str) -> str:
    """Return a tag without its value, which may be sensitive."""
    name, colon, _ = tag.partition(":")
    return f"{name}:{MASK}" if colon else tag


def _place_of(error: MessageConversionError) -> str:
    """Return the place and the kind of a fault, whose text may quote a value."""
    fault = error.errors[0]
    field = fault.path.partition(".")[0]
    return f"It cannot be read ({f'{field}: ' if field else ''}{fault.code})."


def without_values(value: Any, replace: Callable[[str], str]) -> Any:
    """
    Return JSON whose texts and numbers do not quote sensitive values.

    Args:
        value: the JSON, as dicts, lists and scalars.
        replace: as a :class:`RedactedEvent` has it.

    """
    if isinstance(value, dict):
        return {
            replace(key): without_values(each, replace) for key, each in value.items()
        }
    if isinstance(value, list):
        return [without_values(each, replace) for each in value]
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    return value if replace(text) == text else replace(text)


def pretty(document: Any) -> str:
    """Return JSON as text that can be encoded, one value a line."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


# ------------------------------------------------------------------------------ streams


def stream_labels(
    streams: Iterable[Stream], types: MessageTypes, using: str
) -> dict[int, str]:
    """
    Return the names of streams, with a mask for a key that is a sensitive value.

    A key is compared with the values of the stream's first event, which is where it
    comes from.

    Args:
        streams: the rows of the streams.
        types: the registered classes.
        using: the alias of their database.

    """
    rows = list(streams)
    firsts = {each.stream_id: each for each in _first_events(rows, types, using)}
    return {each.pk: _label(each, firsts.get(each.pk), types) for each in rows}


def _first_events(
    rows: list[Stream], types: MessageTypes, using: str
) -> Iterator[Recorded]:
    keys = [each.pk for each in rows if each.key]
    if not keys:
        return
    marks = ", ".join(["%s"] * len(keys))
    yield from events_where(
        connections[using],
        f"e.stream_id IN ({marks}) AND e.version = s.first_version",
        keys,
        decoder_of(types),
    )


def _label(stream: Stream, first: Recorded | None, types: MessageTypes) -> str:
    if first is None or not stream.key:
        return str(stream)
    shown = redact(first, types)
    key = NOT_SHOWN if shown.reason else shown.redact(stream.key)
    return str(StreamName(stream.category, key))
