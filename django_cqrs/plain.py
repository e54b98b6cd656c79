"""Convert values of derived classes to the plain types that channels carry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

_EXACT = frozenset((str, int, bool, float, UUID, Decimal, datetime, date, type(None)))


def _uuid(value: Any) -> UUID:
    return UUID(int=value.int)


def _datetime(value: Any) -> datetime:
    day = value.year, value.month, value.day
    time = value.hour, value.minute, value.second, value.microsecond
    return datetime(*day, *time, tzinfo=value.tzinfo, fold=value.fold)


def _date(value: Any) -> date:
    return date(value.year, value.month, value.day)


_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (UUID, _uuid),
    (Decimal, Decimal),
    (datetime, _datetime),
    (date, _date),
)


def as_plain(value: Any) -> Any:
    """
    Return the plain value of one whose class derives from a plain type.

    The UUIDs of ``uuid_utils`` become those of the standard library. Other values,
    including Enums, are returned unchanged.
    """
    if type(value) in _EXACT or hasattr(type(value), "__members__"):
        return value
    for base, make in _BASES:
        if isinstance(value, base):
            return make(value)
    # Not imported here: a value of it proves that it is imported.
    uuid_utils: Any = sys.modules.get("uuid_utils")
    if uuid_utils is not None and isinstance(value, uuid_utils.UUID):
        return _uuid(value)
    return value


def has_surrogate(text: str) -> bool:
    """Return whether a text has a lone surrogate, which UTF-8 cannot encode."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
