"""The texts of failures as they are stored: without sensitive data of the event."""

from __future__ import annotations

import traceback
from collections.abc import Callable
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


def error_texts(
    error: BaseException, recorded: Recorded | None, types: MessageTypes
) -> ErrorTexts:
    """
    Return the texts of an exception, without what is sensitive in its event.

    Args:
        error: the exception.
        recorded: the event to blame, if it is known.
        types: the registered classes.

    """
    redact: Callable[[str], str] = str
    if recorded is not None:
        redact = _redactor_of(recorded, types)
    kind = type(error)
    trace = storable("".join(traceback.format_exception(error)))
    return ErrorTexts(
        f"{kind.__module__}.{kind.__qualname__}"[:255],
        _shortened(redact(without_input(described(error))), LONGEST_ERROR),
        _shortened(redact(without_input(trace)), LONGEST_TRACEBACK),
    )


def _redactor_of(recorded: Recorded, types: MessageTypes) -> Callable[[str], str]:
    """Return a function that masks the sensitive values of an event in a text."""
    try:
        document = json_in(recorded.stored_payload, recorded.name)
    except MessageConversionError:
        return lambda _text: NOT_SHOWN
    try:
        cls = types.class_of(recorded.name)
    except UnknownMessage:
        return redactor_of([document])
    masking = masking_of(cls)
    is_present = recorded.shape == types.name_of(cls).version
    if not masking.is_marked:
        return str
    if not is_present or masking.reason is not None:
        return redactor_of([document])
    hidden: list[Any] = []

    def collect(_path: object, value: Any) -> str:
        hidden.append(value)
        return MASK

    try:
        masking.mask(document, collect)
    except RecursionError:
        return lambda _text: NOT_SHOWN
    return redactor_of(hidden)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end]}\n[... {len(text):,} characters ...]\n{text[-end:]}"
