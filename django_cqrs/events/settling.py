"""
The settled position: nothing can appear at it, or below it, that is not there already.

Who follows events reads up to it and no further. It must be asked before the page that
it bounds is read, and never in the statement or in the snapshot of that page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.columns import EVENT
from django_cqrs.events.floors import (
    FLOOR,
    HEAD,
    MOST_FLOORS,
    clean_floors,
    floors_of,
    reading_dirty,
)
from django_cqrs.events.positions import FLOOR_KIND, SETTLED


def settled(connection: BaseDatabaseWrapper) -> int:
    """
    Return the settled position, as seen by a connection.

    The open transaction's own events do not hold it back: they are settled for itself.

    Args:
        connection: of the database with the events.

    """
    if connection.vendor == "postgresql":
        return _number(connection, f"SELECT {SETTLED}()")
    if connection.vendor != "mysql":
        return _number(connection, HEAD)
    seen = floors_of(connection)
    if len(seen.done) > MOST_FLOORS:
        clean_floors(connection)
    return min((seen.head, *(floor for _, floor in seen.in_flight)))


def head(connection: BaseDatabaseWrapper) -> int:
    """Return the position of the last event that the connection sees; 0 without one."""
    return _number(connection, HEAD)


_LAST_OF_MYSQL: Final = (
    "SELECT AUTO_INCREMENT - 1 "
    "FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_name = %s"
)


def last_position(connection: BaseDatabaseWrapper) -> int | None:
    """Return the highest position that was ever given; None if that is unknown."""
    table = connection.ops.quote_name(EVENT)
    statements = {
        "postgresql": (
            "SELECT pg_sequence_last_value(pg_get_serial_sequence(%s, 'position'))",
            table,
        ),
        "sqlite": ("SELECT seq FROM sqlite_sequence WHERE name = %s", EVENT),
        "mysql": (
            _LAST_OF_MYSQL,
            EVENT,
        ),
    }
    found = statements.get(connection.vendor)
    if found is None:
        return None
    with _fresh_statistics(connection), connection.cursor() as cursor:
        cursor.execute(found[0], [found[1]])
        row = cursor.fetchone()
    return 0 if row is None or row[0] is None else int(row[0])


@contextmanager
def _fresh_statistics(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """
    Have MySQL look at its tables anew: it keeps what it says of them for a day.

    The variable cannot be set for one statement by a hint. MariaDB has none.
    """
    if connection.vendor != "mysql" or getattr(connection, "mysql_is_mariadb", True):
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@SESSION.information_schema_stats_expiry")
        (before,) = cursor.fetchone()
        cursor.execute("SET SESSION information_schema_stats_expiry = 0")
        try:
            yield
        finally:
            cursor.execute("SET SESSION information_schema_stats_expiry = %s", [before])


def _number(connection: BaseDatabaseWrapper, statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        (number,) = cursor.fetchone()
    return int(number)


# Inside a transaction -----------------------------------------------------------------


@contextmanager
def beside_snapshot(
    connection: BaseDatabaseWrapper,
) -> Iterator[BaseDatabaseWrapper | None]:
    """
    Give a second connection if the open transaction may have an older snapshot.

    None if each statement sees all that is committed, or nothing is ever hidden.
    """
    if not connection.in_atomic_block or not _may_be_stale(connection):
        yield None
        return
    other = connection.copy()
    try:
        yield other
    finally:
        other.close()


def _may_be_stale(connection: BaseDatabaseWrapper) -> bool:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            (level,) = cursor.fetchone()
        return level not in ("read committed", "read uncommitted")
    # MySQL does not tell the level of a transaction, which may be its own.
    return connection.vendor == "mysql"


# Who holds it back --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that has appended, and holds the settled position back."""

    floor: int
    """The position that is settled at most while it lasts."""
    session: int | None
    """The server's number of its connection; None for a prepared transaction."""
    age: timedelta | None
    """The time since it began; on MariaDB since it first appended. None if unknown."""
    query: str
    """Its last statement, where the server shows it."""


_BLOCKERS: Final = f"""\
SELECT ((l.classid::bigint & 65535) << 32) | l.objid::bigint AS floor, l.pid,
  clock_timestamp() - a.xact_start, COALESCE(a.query, '')
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid::bigint >> 16 =
    ({FLOOR_KIND}::bigint << 13)
    | (pg_get_serial_sequence(%s, 'position')::regclass::oid::bigint %% 8192)
  AND l.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY floor, l.pid"""


def blockers(connection: BaseDatabaseWrapper) -> list[Blocker]:
    """Return the transactions that hold the settled position back, the lowest first."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_BLOCKERS, [connection.ops.quote_name(EVENT)])
            return [Blocker(*row) for row in cursor.fetchall()]
    if connection.vendor != "mysql":
        return []
    seen = floors_of(connection)
    return [_blocker(connection, number, floor) for number, floor in seen.in_flight]


def _blocker(connection: BaseDatabaseWrapper, number: int, floor: int) -> Blocker:
    with reading_dirty(connection) as dirty, dirty.cursor() as cursor:
        cursor.execute(
            "SELECT f.thread, f.taken_at, UTC_TIMESTAMP(6), p.info "
            f"FROM {FLOOR} f LEFT JOIN information_schema.processlist p "
            "ON p.id = f.thread WHERE f.id = %s",
            [number],
        )
        found = cursor.fetchone()
    if found is None:  # it has ended in the meantime
        return Blocker(floor, None, None, "")
    thread, begun, now, query = found
    return Blocker(floor, thread, now - begun, query or "")
