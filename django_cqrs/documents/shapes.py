"""The mark that an object has of its document, beside the state that is stored."""

from __future__ import annotations

from typing import Any, NamedTuple

from django_cqrs.shapes import Shape, leave_out, shape_of

__all__ = ["Mark", "Shape", "mark_of", "put_mark", "shape_of"]


class Mark(NamedTuple):
    """An object's knowledge of the row that it was read from, or written to."""

    pk: int
    collection: str
    key: str
    version: int
    is_deleted: bool = False


MARK = "_stored_document"
leave_out(MARK)


def mark_of(value: Any) -> Mark | None:
    """Return an object's mark of its row, None without one."""
    mark: Mark | None = getattr(value, "__dict__", {}).get(MARK)
    return mark


def put_mark(value: Any, mark: Mark) -> None:
    """Put a mark of its row on an object, if it has room for one."""
    if isinstance(getattr(value, "__dict__", None), dict):
        object.__setattr__(value, MARK, mark)
