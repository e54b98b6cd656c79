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
from typing import Final, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.columns import EVENT
from django_cqrs.events.floors import FLOOR
from django_cqrs.events.positions import FLOOR_KIND, SETTLED

_HEAD: Final = f"SELECT COALESCE(MAX(position), 0) FROM {EVENT}"


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
        return _number(connection, _HEAD)
    seen = _floors_of(connection)
    if seen.done > MOST_FLOORS and not connection.in_atomic_block:
        _clean(connection, seen)
    return min((seen.head, *(floor for _, floor in seen.in_flight)))


def head(connection: BaseDatabaseWrapper) -> int:
    """Return the position of the last event that the connection sees; 0 without one."""
    return _number(connection, _HEAD)


_LAST_OF_MYSQL: Final = (
    "SELECT /*+ SET_VAR(information_schema_stats_expiry=0) */ AUTO_INCREMENT - 1 "
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
    with connection.cursor() as cursor:
        cursor.execute(found[0], [found[1]])
        row = cursor.fetchone()
    return 0 if row is None or row[0] is None else int(row[0])


def _number(connection: BaseDatabaseWrapper, statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        (number,) = cursor.fetchone()
    return int(number)


# MariaDB and MySQL --------------------------------------------------------------------


class Floors(NamedTuple):
    """The floors of the transactions that append now, and the head before they did."""

    head: int
    in_flight: list[tuple[int, int]]
    """The id and the floor of each."""
    done: int
    """The number of floors that nobody needs."""
    last: int
    """The id of the last floor."""


_FLOORS: Final = f"SELECT id, floor FROM {FLOOR}"


def _floors_of(connection: BaseDatabaseWrapper) -> Floors:
    """Read the head, then the floors, both without waiting; then those committed."""
    with _reading_dirty(connection) as dirty, dirty.cursor() as cursor:
        cursor.execute(_HEAD)
        (highest,) = cursor.fetchone()
        cursor.execute(_FLOORS)
        begun = cursor.fetchall()
    with connection.cursor() as cursor:
        cursor.execute(_FLOORS)
        ended = {number for number, _ in cursor.fetchall()}
    in_flight = [(number, floor) for number, floor in begun if number not in ended]
    last = max((number for number, _ in begun), default=0)
    return Floors(highest, in_flight, len(begun) - len(in_flight), last)


@contextmanager
def _reading_dirty(
    connection: BaseDatabaseWrapper,
) -> Iterator[BaseDatabaseWrapper]:
    """
    Give a connection that reads what is not committed, outside any transaction.

    It is the given one, unless that has an open transaction, whose level is fixed.
    """
    other = connection.copy() if connection.in_atomic_block else connection
    try:
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
            cursor.execute("START TRANSACTION READ ONLY")
        try:
            yield other
        finally:
            with other.cursor() as cursor:
                cursor.execute("COMMIT")
    finally:
        if other is not connection:
            other.close()


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


MOST_FLOORS: Final = 100
"""The number of floors that are left until a follower deletes those not needed."""


def clean_floors(connection: BaseDatabaseWrapper) -> None:
    """Delete the floors that nobody needs, unless a transaction is open."""
    if not connection.in_atomic_block:
        _clean(connection, _floors_of(connection))


def _clean(connection: BaseDatabaseWrapper, seen: Floors) -> None:
    """
    Delete the floors below those in flight, by their range.

    A list of them would make the statement wait for those in flight.
    """
    if seen.in_flight:
        end = min(number for number, _ in seen.in_flight)
    else:
        end = seen.last + 1
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {FLOOR} WHERE id < %s", [end])


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
    seen = _floors_of(connection)
    return [_blocker(connection, number, floor) for number, floor in seen.in_flight]


def _blocker(connection: BaseDatabaseWrapper, number: int, floor: int) -> Blocker:
    with _reading_dirty(connection) as dirty, dirty.cursor() as cursor:
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
