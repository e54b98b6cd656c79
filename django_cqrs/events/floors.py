"""
Floors on MariaDB and MySQL: rows that say below which position nothing appears.

A transaction inserts the last position before its own events. Who follows reads these
rows without waiting for the commit, and so knows which of them are in flight.
"""

from __future__ import annotations

from typing import Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.models import AppendFloor, StoredEvent

FLOOR: Final = AppendFloor._meta.db_table
EVENT: Final = StoredEvent._meta.db_table

_HOLD: Final = (
    f"INSERT INTO {FLOOR} (floor, thread, taken_at) "
    "SELECT {position}, CONNECTION_ID(), UTC_TIMESTAMP(6)"
)
_LAST: Final = f"SELECT COALESCE(MAX(position), 0) FROM {EVENT}"


def hold_floor(connection: BaseDatabaseWrapper) -> None:
    """Insert the floor of the open transaction, before its events."""
    with connection.cursor() as cursor:
        if getattr(connection, "isolation_level", None) == "read committed":
            cursor.execute(_HOLD.format(position=f"({_LAST})"))
            return
        # At other levels the inner query would lock what it reads, for all.
        cursor.execute(_LAST)
        (last,) = cursor.fetchone()
        cursor.execute(_HOLD.format(position="%s"), [last])
