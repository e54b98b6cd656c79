"""
Floors on MariaDB and MySQL: rows that say below which position nothing appears.

A transaction inserts the last position before its own events. Who follows reads these
rows without waiting for the commit, and so knows which of them are in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Final, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.callbacks import OwnCallback
from django_cqrs.events.models import AppendFloor, StoredEvent

FLOOR: Final = AppendFloor._meta.db_table

HEAD: Final = f"SELECT COALESCE(MAX(position), 0) FROM {StoredEvent._meta.db_table}"
"""The statement for the last position that a connection sees."""

_HOLD: Final = (
    f"INSERT INTO {FLOOR} (floor, thread, taken_at) "
    "SELECT {position}, CONNECTION_ID(), UTC_TIMESTAMP(6)"
)

ROUND: Final = 256
"""The number of floors after which one of the appends deletes those not needed."""

MOST_FLOORS: Final = 100
"""The number of floors after which a follower does that."""


def hold_floor(connection: BaseDatabaseWrapper) -> None:
    """Insert the floor of the open transaction, before its events."""
    with connection.cursor() as cursor:
        if getattr(connection, "isolation_level", None) == "read committed":
            cursor.execute(_HOLD.format(position=f"({HEAD})"))
        else:
            # At other levels the inner query would lock what it reads, for all.
            cursor.execute(HEAD)
            (last,) = cursor.fetchone()
            cursor.execute(_HOLD.format(position="%s"), [last])
        number = cursor.lastrowid
    if number % ROUND == 0:
        connection.on_commit(_Cleaning(connection), robust=True)


class _Cleaning(OwnCallback):
    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection

    def __call__(self) -> None:
        clean_floors(self._connection)


class Floors(NamedTuple):
    """The floors of the transactions that append now, and the head before they did."""

    head: int
    in_flight: list[tuple[int, int]]
    """The id and the floor of each."""
    done: list[int]
    """The ids of those that nobody needs."""


_ALL: Final = f"SELECT id, floor FROM {FLOOR}"


def floors_of(connection: BaseDatabaseWrapper) -> Floors:
    """Read the head, then the floors, both without waiting; then those committed."""
    with reading_dirty(connection) as dirty, dirty.cursor() as cursor:
        cursor.execute(HEAD)
        (highest,) = cursor.fetchone()
        cursor.execute(_ALL)
        begun = cursor.fetchall()
    with connection.cursor() as cursor:
        cursor.execute(_ALL)
        ended = {number for number, _ in cursor.fetchall()}
    in_flight = [(number, floor) for number, floor in begun if number not in ended]
    return Floors(highest, in_flight, sorted(ended))


@contextmanager
def reading_dirty(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper]:
    """
    Give a connection that reads what is not committed, outside any transaction.

    It is the given one, unless that has an open transaction, whose level is fixed.
    """
    other = connection.copy() if _is_inside_transaction(connection) else connection
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


def _is_inside_transaction(connection: BaseDatabaseWrapper) -> bool:
    return connection.in_atomic_block or not connection.get_autocommit()


def clean_floors(connection: BaseDatabaseWrapper) -> None:
    """
    Delete the floors below those in flight, unless somebody else does it now.

    Inside a transaction nothing is deleted. The statement must not look at a row in
    flight, where it would wait: so it has an order and a limit, and nobody else may
    delete at the same time.
    """
    if _is_inside_transaction(connection):
        return
    # The lock belongs to the server, not to the database.
    name = str(connection.settings_dict["NAME"])
    lock = f"django_cqrs_floors_{sha256(name.encode()).hexdigest()[:16]}"
    with connection.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", [lock])
        if cursor.fetchone()[0] != 1:
            return
        try:
            seen = floors_of(connection)
            end = min((number for number, _ in seen.in_flight), default=None)
            done = [number for number in seen.done if end is None or number < end]
            if done:
                cursor.execute(
                    f"DELETE FROM {FLOOR} WHERE id <= %s ORDER BY id LIMIT {len(done)}",
                    [done[-1]],
                )
        finally:
            cursor.execute("DO RELEASE_LOCK(%s)", [lock])
