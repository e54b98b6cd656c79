"""Many rows, a few at a time, so that no statement holds locks for long."""

from __future__ import annotations

from itertools import count
from typing import Any, Final

from django.db.models import QuerySet

SIZE: Final = 1000
"""How many rows one statement deletes where nothing else is said."""


def delete_in_batches(
    rows: QuerySet[Any], *, by: str, size: int = SIZE, batches: int | None = None
) -> int:
    """
    Delete rows to which nothing refers, each batch in a statement of its own.

    Args:
        rows: of one database.
        by: the column that they are found by; it should have an index.
        size: of a batch.
        batches: how many of them at the most; None is no bound.

    Returns:
        How many were deleted.

    """
    deleted = 0
    for _ in count() if batches is None else range(batches):
        keys = list(rows.order_by(by).values_list("pk", flat=True)[:size])
        if not keys:
            break
        deleted += rows.filter(pk__in=keys)._raw_delete(rows.db)
    return deleted
