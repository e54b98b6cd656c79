"""Savepoints that are set when the first statement needs one, and not before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

_numbers = count(1)


class TransactionLost(Exception):
    """What failed has undone more than its savepoint: the whole transaction is gone."""


class LazySavepoints:
    """
    Blocks like ``atomic()``, one after the other, in one transaction.

    A savepoint costs nothing where nothing is queried. Its id is on ``savepoint_ids``
    from the start, so that ``on_commit`` callbacks of a block that fails are dropped.
    Statements sent past Django's cursors, on the driver's own connection, are not seen
    and so not undone.

    On PostgreSQL one savepoint is released in the same round trip that sets the next,
    and the last one by :meth:`release`.
    """

    __slots__ = ("_connection", "_is_set", "_joins", "_sid", "_unreleased")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Prepare blocks on a connection that is inside a transaction."""
        self._connection: Any = connection  # parts of it are in no type stub
        self._joins = connection.vendor == "postgresql"
        self._sid = ""
        self._is_set = False
        self._unreleased: str | None = None

    def __enter__(self) -> None:
        """Begin a block without a statement."""
        self._sid = f"cqrs_{next(_numbers)}"
        self._is_set = False
        self._connection.savepoint_ids.append(self._sid)
        self._connection.execute_wrappers.append(self._set_first)

    def _set_first(
        self,
        execute: Callable[..., Any],
        sql: str,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        connection = self._connection
        connection.execute_wrappers.remove(self._set_first)
        self._is_set = True
        if self._unreleased is None:
            connection._savepoint(self._sid)
        else:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"{connection.ops.savepoint_commit_sql(self._unreleased)}; "
                    f"{connection.ops.savepoint_create_sql(self._sid)}"
                )
            self._unreleased = None
        return execute(sql, params, many, context)

    def release(self) -> None:
        """Release what no later block has released."""
        if self._unreleased is not None:
            sid, self._unreleased = self._unreleased, None
            self._connection._savepoint_commit(sid)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        Keep what was written, or undo it where the block failed.

        Raises:
            TransactionLost: it cannot be undone alone.

        """
        connection = self._connection
        if not self._is_set:
            connection.execute_wrappers.remove(self._set_first)
        connection.savepoint_ids.remove(self._sid)
        if kind is None:
            if self._is_set and self._joins:
                self._unreleased = self._sid
            elif self._is_set:
                connection._savepoint_commit(self._sid)
            return
        # As Django does for a savepoint that is rolled back.
        connection.run_on_commit = [
            callback
            for callback in connection.run_on_commit
            if self._sid not in callback[0]
        ]
        if connection.closed_in_transaction:
            raise TransactionLost from error
        connection.needs_rollback = False
        if self._is_set:
            try:
                connection._savepoint_rollback(self._sid)
                connection._savepoint_commit(self._sid)
            except Error:
                # Only the server knows what a failure has undone: with the
                # transaction it has forgotten the savepoint.
                connection.needs_rollback = True
                raise TransactionLost from error
