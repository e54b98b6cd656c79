"""Savepoints that are set when a handler first uses the database, not before."""

from __future__ import annotations

import functools
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
from django_cqrs.outbox.worker.guarded_cursors import (
    classes_of,
    guard,
    unguarded,
)
from django_cqrs.pipeline.stages import UntouchedDriver, touch

Subject = TypeVar("Subject")

_numbers = count(1)
_marks = count(1)

# The server's errors for an unknown savepoint, or transaction.
_UNKNOWN_STATES: Final = frozenset({"3B001", "25P01"})
_UNKNOWN_CODES: Final = frozenset({1305})


class TransactionLost(Exception):
    """A failure has undone more than its savepoint: the whole transaction is gone."""

    was_unread: bool = False
    """Whether the server read no part of the statement that a savepoint went with."""


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

    On PostgreSQL a savepoint usually costs no round trip:

    - If the first use is a plain statement on a cursor of Django's, the savepoint goes
      along in front of it, and so does the release of the block before. There are two
      constant names that take turns. So if the server could not even parse the text,
      and has done no part of it, the new name is unknown: the transaction is lost, and
      the savepoint of the block before is never mistaken for that of the failed one.
    - The stand-in stays for the rest of the block, to see whether anything but plain
      statements is done. If so, the block may have ended the transaction, and its
      savepoint is released before the next block begins, together with setting that
      block's, or by :meth:`release`. Otherwise the end of the transaction releases it.
    """

    __slots__ = (
        "_connection",
        "_count",
        "_is_apart",
        "_is_touched",
        "_is_unread",
        "_is_watched",
        "_joins",
        "_mark",
        "_name",
        "_names",
        "_sid",
        "_stand_in",
        "_subject",
        "_unreleased",
        "answers",
        "driver",
    )

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Prepare blocks on a connection that is inside a transaction."""
        touch(connection)  # if this is inside a block of other savepoints
        forget_rollbacks(connection)  # there may have been others since the last batch
        self._connection: Any = connection  # type stubs lack parts of it
        self._joins = connection.vendor == "postgresql"
        depth = len(connection.savepoint_ids)
        self._count = 0
        self._names = f"django_cqrs_{depth}a", f"django_cqrs_{depth}b"
        self._sid = ""
        self._is_touched = False
        self._subject: Any = None
        # A savepoint that nothing was done after.
        self._name: str | None = None
        self._unreleased: tuple[str, Any] | None = None
        # Whether its block did nothing that could end the transaction.
        self._is_watched = False
        self._is_apart = False
        # Whether the server may have read no part of the block's first statement.
        self._is_unread = False
        self._mark: Any = None
        self.driver: Any = None
        """The driver's connection, inside a block."""
        self.answers: dict[str, Any] = {}
        """The attributes of that connection that may be read without a savepoint."""
        if sends_several(connection) and hasattr(connection.connection, "pgconn"):
            self.answers["cursor"] = self._open_cursor
            self.answers["adapters"] = connection.connection.adapters
        self._stand_in = UntouchedDriver(self)

    def around(
        self, subject: Subject, *, is_apart: bool = False
    ) -> Savepoints[Subject]:
        """
        Return the block of a subject.

        Args:
            subject: is named if it ends the transaction.
            is_apart: whether its savepoint must not go along with a statement.

        """
        self._subject = subject
        self._is_apart = is_apart
        return self

    def __enter__(self) -> None:
        """
        Begin a block, usually without a statement.

        Raises:
            TransactionEnded: the block before this one has committed by itself.
            TransactionLost: that block has undone everything before it.

        """
        connection = self._connection
        self._is_touched = self._is_unread = False
        if self._unreleased is not None and not self._is_watched:
            self._set_next(*self._unreleased)
        self._sid = f"cqrs_{next(_numbers)}"
        is_kept = _is_kept(connection)
        if is_kept:
            self._touch()
        connection.savepoint_ids.append(self._sid)
        self.driver = connection.connection
        if not is_kept:
            connection.connection = self._stand_in

    def touch(self) -> Any:
        """Set the savepoint, and no longer stand in for the driver's connection."""
        if self._connection.connection is self._stand_in:
            self._connection.connection = self.driver
            self._touch()
        return self._connection.connection if self.driver is None else self.driver

    def _touch(self) -> None:
        self._is_touched = True
        if self._name is not None:
            return  # it is set already
        if self._unreleased is not None:
            self._set_next(*self._unreleased)
        else:
            name = self._next_name()
            self._set_first(name)
            self._name = name

    def _next_name(self) -> str:
        if not self._joins:
            return self._sid
        self._count += 1
        self._names = self._names[::-1]
        return self._names[0]

    @property
    def is_set(self) -> bool:
        """Whether the savepoint of the block is set."""
        return self._name is not None

    @property
    def is_full(self) -> bool:
        """Whether more savepoints would make the transaction a burden to others."""
        return self._count >= _MOST

    def _open_cursor(self, *args: Any, **options: Any) -> Any:
        """Open a cursor of the driver, guarded if it is one of Django's usual ones."""
        if args or options or self._connection.connection is not self._stand_in:
            return self.touch().cursor(*args, **options)
        cursor = self.driver.cursor()
        classes = classes_of(type(cursor))
        if classes is None or (self._is_apart and self._name is None):
            self.touch()
        elif self._name is None:
            guard(cursor, classes.unused, self)
        else:
            self._is_touched = True
            guard(cursor, classes.watched, self)
        return cursor

    def execute(self, cursor: Any, query: str, params: Any) -> Any:
        """Execute a block's first statement, and set its savepoint with it."""
        if self._connection.connection is not self._stand_in or self._name is not None:
            return cursor.execute(query, params)
        operations, unreleased = self._connection.ops, self._unreleased
        name = self._next_name()
        before = [operations.savepoint_create_sql(name)]
        if unreleased is not None:
            before.insert(0, operations.savepoint_commit_sql(unreleased[0]))
        asks = self._mark is None
        if asks:
            before.append(_ASK)
        # An error that quotes the line of its statement then quotes the handler's.
        prefix = f"{'; '.join(before)};\n"
        self._name, self._unreleased = name, None
        self._is_touched = self._is_unread = True
        try:
            with unguarded(cursor):
                cursor.execute(f"{prefix}{query}", params)
        finally:
            if cursor._query is None:  # the driver has refused to send it
                self._name, self._unreleased = None, unreleased
                self._is_touched = self._is_unread = False
            else:
                cursor._query.query = cursor._query.query[len(prefix) :]  # for logs
        self._is_unread = False
        results = cursor._results[:]
        if asks:
            self._mark = int(results[len(before) - 1].get_value(0, 0))
        cursor._set_results(results[len(before) :])
        return cursor

    def _set_next(self, name: str, subject: Any) -> None:
        """Set a savepoint in the round trip that releases the last block's."""
        connection = self._connection
        self._unreleased = None
        self._name = self._next_name()
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
        Release the savepoint that no later block has released, if that can fail.

        Raises:
            TransactionEnded: the last block has ended the transaction.
            TransactionLost: the last block has ended it, and everything is undone.

        """
        if self._unreleased is not None:
            (name, subject), self._unreleased = self._unreleased, None
            if not self._is_watched:
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
        is_watched = connection.connection is self._stand_in
        if is_watched:
            connection.connection = self.driver
        driver, self.driver = self.driver, None
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
                self._is_watched = is_watched
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
            if isinstance(ended, TransactionLost):
                is_unknown = _knows_no_savepoint(unknown)
                ended.was_unread = self._is_unread and is_unknown
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
            with connection.cursor() as cursor:
                if sends_several(connection):
                    create = connection.ops.savepoint_create_sql(name)
                    cursor.execute(f"{create}; {_ASK}")
                    to_last_result(cursor)
                    self._mark = cursor.fetchone()[0]
                else:
                    cursor.execute(_ASK)
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


# PostgreSQL keeps 64 of a transaction where other sessions find them quickly.
_MOST: Final = 60
_ASK: Final = "SELECT txid_current()"
_IDLE: Final = 0  # TransactionStatus.IDLE in psycopg and in psycopg2


def _is_kept(connection: Any) -> bool:
    """Return whether other code holds the driver's connection, or may hold it."""
    driver: Any = type(connection.connection)
    own = _own_references_to(driver)
    return own is None or _references(connection) > own


@functools.cache
def _own_references_to(driver: type) -> int | None:
    """Return the count for connections of a class; None if its driver is unknown."""
    return _OWN_REFERENCES.get(driver.__module__.partition(".")[0])


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
