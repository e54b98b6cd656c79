"""Links: events of one stream in another one, by reference."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.columns import EVENT, uuid_writer
from django_cqrs.events.floors import hold_floor
from django_cqrs.events.insertion import locked_stream
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.stream_names import StreamName
from django_cqrs.exceptions import ConcurrencyError
from django_cqrs.times import as_stored

_COLUMNS: Final = (
    "stream_id, version, name, shape, payload, headers, event_id, correlation_id, "
    "causation_id, recorded_at, link_to"
)


def link(
    connection: BaseDatabaseWrapper, name: StreamName, recorded: Sequence[Recorded]
) -> int:
    """
    Put events into a stream by reference, in the open transaction.

    Args:
        connection: of the database with the events.
        name: the stream, which is locked until the transaction ends.
        recorded: the events. One that the stream has already is left out; a link
            stands for its original.

    Returns:
        The number of links that were made.

    Raises:
        ConcurrencyError: somebody else has appended to the stream without locking it.

    """
    stream_id, last = locked_stream(connection, name)
    wanted = {each.link_to or each.position: each for each in recorded}
    present = _linked(connection, stream_id, list(wanted))
    events = [each for place, each in wanted.items() if place not in present]
    if not events:
        return 0
    if connection.vendor == "mysql":
        hold_floor(connection)
    made = 0
    for start in range(0, len(events), 80):
        some = events[start : start + 80]
        made += _insert(connection, stream_id, last + start, some)
    if made < len(events):
        msg = (
            f"Somebody else has appended to the stream {str(name)!r} without locking "
            "it. Try again in a new transaction."
        )
        raise ConcurrencyError(msg)
    return made


def _linked(
    connection: BaseDatabaseWrapper, stream_id: int, positions: list[int]
) -> set[int]:
    """Return those of some positions that a stream has a link to."""
    found: set[int] = set()
    with connection.cursor() as cursor:
        for start in range(0, len(positions), 500):
            some = positions[start : start + 500]
            marks = ", ".join(["%s"] * len(some))
            cursor.execute(
                f"SELECT link_to FROM {EVENT} "
                f"WHERE stream_id = %s AND link_to IN ({marks})",
                [stream_id, *some],
            )
            found |= {place for (place,) in cursor.fetchall()}
    return found


def _insert(
    connection: BaseDatabaseWrapper, stream_id: int, last: int, events: list[Recorded]
) -> int:
    write = uuid_writer(connection)
    now = as_stored(datetime.now(UTC), connection)
    values: list[Any] = []
    for number, each in enumerate(events, 1):
        values += (
            stream_id,
            last + number,
            each.name,
            each.shape,
            "{}",
            "{}",
            write(uuid4()),
            write(each.correlation_id),
            write(each.causation_id),
            now,
            each.link_to or each.position,
        )
    row = f"({', '.join(['%s'] * 11)})"
    end = " ON CONFLICT DO NOTHING" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {EVENT} ({_COLUMNS}) "
            f"VALUES {', '.join([row] * len(events))}{end}",
            values,
        )
        return int(cursor.rowcount)
