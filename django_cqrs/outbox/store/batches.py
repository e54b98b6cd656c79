"""Many rows, a few at a time, so that no statement holds locks for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from django.db import DatabaseError, connections
from django.db.models import QuerySet
from django.db.transaction import atomic

from django_cqrs.retries import DEADLOCKS

Result = TypeVar("Result")

SIZE: Final = 1000
"""How many rows one statement deletes where nothing else is said."""

# So many times in a row somebody who met others at the same rows gives way to them.
ATTEMPTS: Final = 6


def retrying_deadlocks(
    work: Callable[[], Result], *, using: str, in_transaction: bool = True
) -> Result:
    """
    Do something in a transaction, and anew where a deadlock has undone it.

    MariaDB finds deadlocks also between those who lock rows in one order, since it
    locks the gaps between them. Inside a transaction that is open already it is done
    once: only whoever opened that can begin anew.

    Args:
        work: what is done.
        using: the alias of the database.
        in_transaction: False for a single statement, which needs none.

    Returns:
        What `work` returns.

    Raises:
        DatabaseError: a deadlock again and again, or another error.

    """
    is_nested = connections[using].in_atomic_block
    attempt = 1
    while True:
        try:
            with atomic(using=using) if in_transaction else nullcontext():
                return work()
        except DatabaseError as error:
            if is_nested or attempt == ATTEMPTS or not DEADLOCKS.includes(error):
                raise
        time.sleep(0.002 * 2**attempt)
        attempt += 1


def delete_in_batches(
    rows: QuerySet[Any], *, by: str, size: int = SIZE, batches: int | None = None
) -> int:
    """
    Delete rows to which nothing refers, each batch in a statement of its own.

    Args:
        rows: of one database.
        by: the column that they are found by; it should have an index.
        size: of a batch.
        batches: the maximum number of them; None means no limit.

    Returns:
        How many were deleted.

    """
    deleted = 0
    for _ in count() if batches is None else range(batches):
        keys = list(rows.order_by(by).values_list("pk", flat=True)[:size])
        if not keys:
            break
        delete = partial(rows.filter(pk__in=keys)._raw_delete, rows.db)
        deleted += retrying_deadlocks(delete, using=rows.db, in_transaction=False)
    return deleted
