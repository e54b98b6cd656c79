"""Values as the text of an array of PostgreSQL, which the driver need not make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

_NOTHING: Final = type(None)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# A bool is an int for Python, so the classes are compared, not their bases.
_WRITERS: Final[dict[type, Callable[[Any], str]]] = {
    int: str,
    str: _quoted,
    bool: str,
    UUID: str,
    Decimal: str,
}


def as_array(values: Sequence[Any]) -> Any:
    """
    Return values as one parameter for an array of their type, quickly if it can be.

    A driver looks at each element of a list, which takes longer than to write it.

    Args:
        values: as prepared for the driver, all of one column.

    Returns:
        The text of the array, for a parameter that is cast; else the list.

    """
    kinds = set(map(type, values))
    has_null = _NOTHING in kinds
    kinds.discard(_NOTHING)
    write = _WRITERS.get(kinds.pop()) if len(kinds) == 1 else None
    if write is None:
        return list(values)
    if has_null:
        parts = ["NULL" if each is None else write(each) for each in values]
    else:
        parts = list(map(write, values))
    return f"{{{','.join(parts)}}}"
