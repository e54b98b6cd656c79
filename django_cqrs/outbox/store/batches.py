"""Work on many rows in small batches, so that no statement holds locks for long."""

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
"""The default number of rows that one statement deletes."""

# How often in a row a transaction is retried that met others at the same rows.
ATTEMPTS: Final = 6


def retrying_deadlocks(
    work: Callable[[], Result], *, using: str, in_transaction: bool = True
) -> Result:
    """
    Do something in a transaction, and do it again after a deadlock.

    MariaDB also finds deadlocks between transactions that lock rows in one order, since
    it locks the gaps between them. Inside an open transaction it is done once: only the
    code that opened that one can start again.

    Args:
        work: the function that is called.
        using: the alias of the database.
        in_transaction: False for a single statement, which needs none.

    Returns:
        The result of `work`.

    Raises:
        DatabaseError: repeated deadlocks, or another error.

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
    Delete rows that nothing refers to, each batch in a statement of its own.

    Args:
        rows: of one database.
        by: the column that selects them; it should have an index.
        size: of a batch.
        batches: the maximum number of them; None means no limit.

    Returns:
        The number of deleted rows.

    """
    deleted = 0
    for _ in count() if batches is None else range(batches):
        keys = list(rows.order_by(by).values_list("pk", flat=True)[:size])
        if not keys:
            break
        delete = partial(rows.filter(pk__in=keys)._raw_delete, rows.db)
        deleted += retrying_deadlocks(delete, using=rows.db, in_transaction=False)
    return deleted
