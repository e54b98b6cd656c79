"""Savepoints that are set when a handler first uses the database, not before."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from itertools import count
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Generic, TypeVar

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.exceptions import BrokenTransaction
from django_cqrs.outbox.store.dialects import sends_several, to_last_result
from django_cqrs.pipeline.stages import UntouchedDriver

Subject = TypeVar("Subject")

_numbers = count(1)
_marks = count(1)

# The server's errors for an unknown savepoint, or transaction.
_UNKNOWN_STATES: Final = frozenset({"3B001", "25P01"})
_UNKNOWN_CODES: Final = frozenset({1305})


class TransactionLost(Exception):
    """A failure has undone more than its savepoint: the whole transaction is gone."""


class TransactionEnded(Exception, Generic[Subject]):
    """
    A block has committed the transaction that it shares with earlier blocks.

    Attributes:
        subject: the subject of the block.
        cause: its exception, or the error that it ended the transaction.
        returned: whether the block itself succeeded.

    """

    def __init__(
        self, subject: Subject, cause: BaseException, *, returned: bool
    ) -> None:
        """Name the subject of the block."""
        super().__init__(subject)
        self.subject = subject
        self.cause = cause
        self.returned = returned


class Savepoints(Generic[Subject]):
    """
    Blocks like ``atomic()``, one after another, in one transaction.

    A savepoint costs nothing if the block does not use the database. Until it does, a
    stand-in takes the place of the driver's connection: the first use, through Django
    or around it, sets the savepoint before. If somebody has kept the driver's
    connection, or one of its cursors, from an earlier block, a savepoint is set at
    once. Its id is on ``savepoint_ids`` from the start, so that ``on_commit`` callbacks
    of a block that fails are dropped.

    On PostgreSQL one savepoint is released in the same round trip that sets the next,
    and the last one by :meth:`release`.
    """

    __slots__ = (
        "_connection",
        "_driver",
        "_is_touched",
        "_joins",
        "_mark",
        "_name",
        "_sid",
        "_subject",
        "_unreleased",
    )

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Prepare blocks on a connection that is inside a transaction."""
        self._connection: Any = connection  # type stubs lack parts of it
        self._joins = connection.vendor == "postgresql"
        self._sid = ""
        self._is_touched = False
        self._subject: Any = None
        # A savepoint that nothing was done after.
        self._name: str | None = None
        self._unreleased: tuple[str, Any] | None = None
        self._driver: Any = None
        self._mark: Any = None

    def around(self, subject: Subject) -> Savepoints[Subject]:
        """Return the block of a subject, which is named if it ends the transaction."""
        self._subject = subject
        return self

    def __enter__(self) -> None:
        """
        Begin a block, usually without a statement.

        Raises:
            TransactionEnded: the block before this one has committed by itself.
            TransactionLost: that block has undone everything before it.

        """
        connection = self._connection
        self._is_touched = False
        if self._unreleased is not None:
            self._set_next(*self._unreleased)
        self._sid = f"cqrs_{next(_numbers)}"
        connection.savepoint_ids.append(self._sid)
        is_kept = _is_kept(connection)
        self._driver = connection.connection
        if is_kept:
            self._touch()
        else:
            connection.connection = UntouchedDriver(self._touched)

    def _touched(self) -> Any:
        """Set the savepoint before the first use of the driver's connection."""
        if type(self._connection.connection) is UntouchedDriver:
            self._connection.connection = self._driver
            self._touch()
        return self._driver

    def _touch(self) -> None:
        self._is_touched = True
        if self._name is None:  # no savepoint is left unused
            self._set_first(self._sid)
            self._name = self._sid

    def _set_next(self, name: str, subject: Any) -> None:
        """Set a savepoint in the round trip that releases the last block's."""
        connection = self._connection
        self._unreleased = None
        self._name = f"cqrs_{next(_numbers)}"
        ended = None
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"{connection.ops.savepoint_commit_sql(name)}; "
                    f"{connection.ops.savepoint_create_sql(self._name)}"
                )
        except Error as error:
            ended = self._judged(subject, None, error)
        if ended is not None:
            raise ended

    def release(self) -> None:
        """
        Release the savepoint that no later block has released.

        Raises:
            TransactionEnded: the last block has ended the transaction.
            TransactionLost: the last block has ended it, and everything is undone.

        """
        if self._unreleased is not None:
            (name, subject), self._unreleased = self._unreleased, None
            self._release(name, subject)

    def _release(self, name: str, subject: Any) -> None:
        ended = None
        try:
            self._connection._savepoint_commit(name)
        except Error as error:
            ended = self._judged(subject, None, error)
        if ended is not None:
            raise ended

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        Keep the block's writes, or undo them if it failed.

        Raises:
            TransactionEnded: the block has committed by itself.
            TransactionLost: its writes cannot be undone alone.

        """
        connection = self._connection
        if type(connection.connection) is UntouchedDriver:
            connection.connection = self._driver
        driver, self._driver = self._driver, None
        if self._sid in connection.savepoint_ids:
            connection.savepoint_ids.remove(self._sid)
        if connection.connection is not driver:
            # Reconnected by hand: uncommitted writes went with the old session.
            said = _ended_error(self._subject, connection, is_saved=False)
            raise TransactionLost from error or said
        name = self._name
        if self._is_touched:
            self._name = None  # later blocks need another one
        if kind is None:
            if self._is_touched and name is not None:
                self._keep(name)
            return
        # Django does the same for a savepoint that is rolled back.
        connection.run_on_commit = [
            callback
            for callback in connection.run_on_commit
            if self._sid not in callback[0]
        ]
        if connection.closed_in_transaction:
            raise TransactionLost from error
        connection.needs_rollback = False
        if self._is_touched and name is not None:
            self._undo(name, error)

    def _keep(self, name: str) -> None:
        if self._joins and not self._is_idle():
            self._unreleased = name, self._subject
        else:
            self._release(name, self._subject)

    def _undo(self, name: str, error: BaseException | None) -> None:
        connection = self._connection
        forget_rollbacks(connection)
        ended = None
        try:
            connection._savepoint_rollback(name)
            connection._savepoint_commit(name)
        except Error as unknown:
            # Only the server knows what a failure has undone: without the transaction,
            # it no longer knows the savepoint.
            connection.needs_rollback = True
            ended = self._judged(self._subject, error, unknown)
        if ended is not None:
            raise ended

    def _is_idle(self) -> bool:
        """Return whether PostgreSQL no longer has an open transaction."""
        driver = self._connection.connection
        session = getattr(driver, "pgconn", None) or getattr(driver, "info", None)
        return getattr(session, "transaction_status", None) == _IDLE

    # The way a transaction has ended ------------------------------------------------

    def _judged(
        self, subject: Any, error: BaseException | None, unknown: Error
    ) -> TransactionEnded[Subject] | TransactionLost:
        """Return the exception for a block whose savepoint is gone."""
        connection = self._connection
        connection.needs_rollback = True
        lost = TransactionLost()
        if not _knows_no_savepoint(unknown):
            lost.__cause__ = error or unknown
            return lost
        is_saved = self._is_committed()
        said = _ended_error(subject, connection, is_saved=is_saved)
        said.__cause__ = unknown
        if not is_saved:
            lost.__cause__ = error or said
            return lost
        if error is not None:
            error.add_note(str(said))
        return TransactionEnded(subject, error or said, returned=error is None)

    def _set_first(self, name: str) -> None:
        """Set one that releases none, and record what shows later how this ended."""
        connection = self._connection
        if self._mark is not None:
            connection._savepoint(name)
        elif connection.vendor == "postgresql":
            ask = "SELECT txid_current()"
            with connection.cursor() as cursor:
                if sends_several(connection):
                    create = connection.ops.savepoint_create_sql(name)
                    cursor.execute(f"{create}; {ask}")
                    to_last_result(cursor)
                    self._mark = cursor.fetchone()[0]
                else:
                    cursor.execute(ask)
                    self._mark = cursor.fetchone()[0]
                    connection._savepoint(name)
        elif connection.vendor == "sqlite":
            self._mark = next(_marks)
            connection.connection.execute(f"PRAGMA temp.user_version = {self._mark}")
            connection._savepoint(name)
        else:
            self._mark = _rollbacks(connection)
            connection._savepoint(name)

    def _is_committed(self) -> bool:
        """Return whether the transaction was committed; False if that is unknown."""
        connection, mark = self._connection, self._mark
        if connection.closed_in_transaction:
            return False
        try:
            if connection.vendor == "postgresql":
                connection.connection.rollback()
                with connection.connection.cursor() as cursor:
                    cursor.execute("SELECT txid_status(%s)", [mark])
                    return bool(cursor.fetchone()[0] == "committed")
            if connection.vendor == "sqlite":
                found = connection.connection.execute("PRAGMA temp.user_version")
                return bool(found.fetchone()[0] == mark)
            forget_rollbacks(connection)
            return bool(_rollbacks(connection) == mark)
        except Exception:  # noqa: BLE001 - whatever the driver says of a broken session
            return False


_IDLE: Final = 0  # TransactionStatus.IDLE in psycopg and in psycopg2


def _is_kept(connection: Any) -> bool:
    """Return whether other code holds the driver's connection, or may hold it."""
    package = type(connection.connection).__module__.partition(".")[0]
    own = _OWN_REFERENCES.get(package)
    return own is None or _references(connection) > own


def _references(holder: Any) -> int:
    """Count the references to a holder's connection, including this call's."""
    count: int = _count(holder.connection)
    return count


_count: Final[Any] = getattr(sys, "getrefcount", lambda _: sys.maxsize)


def _own_references() -> dict[str, int]:
    """
    Return the number of references to a connection that only its holder has.

    The keys are the top-level packages of drivers whose cursors hold their connection
    by a Python reference.
    """
    if not hasattr(sys, "getrefcount"):
        return {}
    plain = SimpleNamespace(connection=object())
    names = "psycopg", "psycopg2", "pymysql", "MySQLdb"
    found: dict[str, Any] = dict.fromkeys(names, plain)
    # SQLite's refers to itself.
    found["sqlite3"] = SimpleNamespace(connection=sqlite3.connect(":memory:"))
    counts = {name: _references(each) for name, each in found.items()}
    found["sqlite3"].connection.close()
    return counts


_OWN_REFERENCES: Final = _own_references()


def _knows_no_savepoint(error: Error) -> bool:
    """Return whether an error says that a savepoint's transaction is over."""
    code = error.args[0] if error.args else None
    if code in _UNKNOWN_CODES or str(code).startswith("no such savepoint"):
        return True
    driver = error.__cause__
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    return state in _UNKNOWN_STATES


def _rollbacks(connection: Any) -> int:
    """
    Return the session's number of rollbacks on MySQL and MariaDB.

    The server is asked once, and again after :func:`forget_rollbacks`.
    """
    driver = connection.connection
    known: int | None = getattr(driver, "_cqrs_rollbacks", None)
    if known is None:
        with closing(driver.cursor()) as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_rollback'")
            known = driver._cqrs_rollbacks = int(cursor.fetchone()[1])
    return known


def forget_rollbacks(connection: Any) -> None:
    """Forget the known number of rollbacks, so that the server is asked again."""
    if connection.vendor == "mysql" and connection.connection is not None:
        connection.connection._cqrs_rollbacks = None


def _ended_error(subject: Any, connection: Any, *, is_saved: bool) -> BrokenTransaction:
    return BrokenTransaction(
        f"{subject} ended the transaction on {connection.alias!r} in which it was "
        "called: with a COMMIT or ROLLBACK that bypassed Django, with another "
        "connection, or with a statement that commits, such as LOCK TABLES, or on "
        "MySQL and MariaDB TRUNCATE and any statement that changes a schema. "
        + (
            "Its earlier writes are saved. "
            if is_saved
            else "None of its earlier writes are saved. "
        )
        + (
            "Let the channel end the transaction, or give the handler atomic=False "
            "to have it called outside a transaction."
        )
    )
