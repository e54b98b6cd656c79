"""The texts of failures as they are stored: without sensitive data of the event."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from django_cqrs.conversion.masking import (
    MASK,
    masking_of,
    redactor_of,
    without_input,
)
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.events.decoding import json_in
from django_cqrs.events.recorded import Recorded
from django_cqrs.exceptions import MessageConversionError, UnknownMessage
from django_cqrs.logged_errors import described, storable

NOT_SHOWN: Final = "(not shown)"
LONGEST_ERROR: Final = 2000
LONGEST_TRACEBACK: Final = 20_000


class ErrorTexts(NamedTuple):
    """An exception as text."""

    exception: str
    """The dotted path of its class."""
    error: str
    traceback: str

    @property
    def summary(self) -> str:
        """The class and the text, in one line."""
        line = " ".join(self.error.split())
        name = self.exception.rpartition(".")[2]
        return f"{name}: {line}" if line else name


_BLAMED: Final = "_cqrs_blamed"


def blame(error: BaseException, events: Sequence[Recorded]) -> None:
    """Note with an exception the events that it may quote."""
    vars(error).setdefault(_BLAMED, events)


def error_texts(
    error: BaseException, recorded: Recorded | None, types: MessageTypes
) -> ErrorTexts:
    """
    Return the texts of an exception, without what is sensitive in its event.

    Args:
        error: the exception.
        recorded: the event to blame, by default those noted by :func:`blame`.
        types: the registered classes.

    """
    events = vars(error).get(_BLAMED, ()) if recorded is None else (recorded,)
    redact = _redactor_of(events, types)
    kind = type(error)
    trace = storable("".join(traceback.format_exception(error)))
    return ErrorTexts(
        f"{kind.__module__}.{kind.__qualname__}"[:255],
        _shortened(redact(without_input(described(error))), LONGEST_ERROR),
        _shortened(redact(without_input(trace)), LONGEST_TRACEBACK),
    )


def _redactor_of(
    events: Iterable[Recorded], types: MessageTypes
) -> Callable[[str], str]:
    """Return a function that masks the sensitive values of events in a text."""
    hidden: list[Any] = []
    for each in events:
        found = sensitive_values(each, types)
        if found is None:
            return lambda _text: NOT_SHOWN
        hidden += found
    return redactor_of(hidden) if hidden else str


def sensitive_values(recorded: Recorded, types: MessageTypes) -> list[Any] | None:
    """
    Return the values of an event that operators do not see.

    Args:
        recorded: the event.
        types: the registered classes.

    Returns:
        The values, which are all of them where its class is unknown; of another shape,
        also those that the class has no place for. None if its JSON cannot be read.

    """
    try:
        document = json_in(recorded.stored_payload, recorded.name)
    except MessageConversionError:
        return None
    try:
        cls = types.class_of(recorded.name)
    except UnknownMessage:
        return [document]
    masking = masking_of(cls)
    if masking.reason is not None:
        return [document]
    if not masking.is_marked and recorded.shape == types.name_of(cls).version:
        return []
    hidden: list[Any] = []

    def collect(_path: object, value: Any) -> str:
        hidden.append(value)
        return MASK

    try:
        masking.mask(document, collect)
    except RecursionError:
        return None
    return hidden


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end]}\n[... {len(text):,} characters ...]\n{text[-end:]}"
