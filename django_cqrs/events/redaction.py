"""Stored events as operators see them: without sensitive values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from django_cqrs.conversion.masking import MASK, masking_of, redactor_of
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.events.recorded import Recorded
from django_cqrs.exceptions import MessageConversionError, UnknownMessage


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
