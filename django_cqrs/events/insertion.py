"""Insert events as rows, in one statement, and explain a conflict."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.columns import EVENT, STREAM, TAG, key_column, uuid_writer
from django_cqrs.events.floors import hold_floor
from django_cqrs.events.positions import ANY_VERSION, APPEND, SOME_VERSION
from django_cqrs.events.stream_names import StreamName
from django_cqrs.exceptions import ConcurrencyError, EventAlreadyStored, InvalidOption
from django_cqrs.statements import fitting, portions, written
from django_cqrs.times import as_stored


class ExpectedVersion(enum.Enum):
    """The state that a stream must have for an append, beside a number."""

    ANY = "any"
    """Any: the stream is locked, so that nobody else appends until the commit."""
    NEW = "new"
    """No event."""
    EXISTS = "exists"
    """At least one event; the stream is locked likewise."""

    def __repr__(self) -> str:
        """Return its name, as it is imported."""
        return self.name


ANY: Final = ExpectedVersion.ANY
NEW: Final = ExpectedVersion.NEW
EXISTS: Final = ExpectedVersion.EXISTS


class InsertedEvent(Protocol):
    """The part of an event that becomes a row."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> int: ...
    @property
    def payload(self) -> str: ...
    @property
    def headers(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def event_id(self) -> UUID: ...
    @property
    def correlation_id(self) -> UUID: ...
    @property
    def causation_id(self) -> UUID | None: ...
    @property
    def recorded_at(self) -> datetime: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The stream of an append, and the version that it must have."""

    stream: StreamName | None
    """None for events without a stream."""
    expected: ExpectedVersion | int = ANY
    """The number of its last event, or one of the names."""
    stream_id: int | None = None
    """The key of its row, if the caller has read `expected` from it."""

    def __post_init__(self) -> None:
        """
        Refuse what is not a version.

        Raises:
            InvalidOption: it is negative, a bool, or text.

        """
        expected = self.expected
        if type(expected) is ExpectedVersion:
            return
        if type(expected) is not int or expected < 0:
            msg = (
                f"expected_version= is ANY, NEW, EXISTS or the number of the last "
                f"event, not {expected!r}."
            )
            raise InvalidOption(msg)

    @property
    def is_locked(self) -> bool:
        """Whether the version is read under a lock, so that a conflict is retried."""
        return self.stream_id is None and self.expected in (ANY, EXISTS)


class Insertion(NamedTuple):
    """The places of events that were inserted."""

    stream_id: int | None
    places: list[tuple[int, int | None]]
    """The position and the version of each, in order."""
    is_repeated: bool = False
    """Whether they were stored before, so that nothing was inserted."""


MOST_TURNS: Final = 20
"""The maximum number of attempts under a lock, against appends without one."""


def insert(
    connection: BaseDatabaseWrapper, target: Target, rows: Sequence[InsertedEvent]
) -> Insertion:
    """
    Insert events into the open transaction, all of them or none.

    Args:
        connection: of their database.
        target: their stream.
        rows: the events, at least one.

    Raises:
        ConcurrencyError: the stream has another version; the transaction is usable.
        EventAlreadyStored: an event's id is in use; likewise.
        StatementTooLarge: an event is larger than the server accepts.

    """
    attempt = _ATTEMPTS[connection.vendor]
    for _ in range(MOST_TURNS):
        placed = attempt(connection, target, rows)
        if placed is not None:
            return placed
        state = _state_of(connection, target)
        repeated = _repeated(connection, target, rows, state)
        if repeated is not None:
            return repeated
        if target.is_locked and not (state is None and target.expected is EXISTS):
            continue
        last = 0 if state is None else state.version
        wanted = 0 if target.expected is NEW else target.expected
        if state is None or target.stream_id is not None or last != wanted:
            raise conflict_of(target, last)
        # The row of a stream without events: there is nothing to conflict with.
        target = dataclasses.replace(target, stream_id=state.stream_id, expected=last)
    raise conflict_of(target, None)


def is_transaction(
    connection: BaseDatabaseWrapper, rows: Sequence[InsertedEvent]
) -> bool:
    """Return whether :func:`insert` is a transaction by itself now: one statement."""
    if connection.in_atomic_block or not connection.get_autocommit():
        return False
    if connection.vendor == "sqlite":
        return len(rows) == 1 and not rows[0].tags
    return connection.vendor == "postgresql"


class _StreamState(NamedTuple):
    stream_id: int
    version: int


def _state_of(connection: BaseDatabaseWrapper, target: Target) -> _StreamState | None:
    """Return the key and the last version of a stream, if it has a row."""
    if target.stream is None:
        return None
    return _found_stream(connection, target.stream, is_locked=False)


def _located(connection: BaseDatabaseWrapper, end: str = "") -> str:
    return (
        f"SELECT s.id, (SELECT MAX(e.version) FROM {EVENT} e WHERE e.stream_id = s.id) "
        f"FROM {STREAM} s WHERE s.category = %s AND s.{key_column(connection)} = %s"
        f"{end}"
    )


def conflict_of(target: Target, last: int | None) -> ConcurrencyError:
    """
    Return the error of an append to a stream that has another version.

    Args:
        target: the stream, and the version that was expected.
        last: its version; None if it changes all the time.

    """
    name = str(target.stream)
    if last is None:
        msg = (
            f"Stream {name!r} is appended to all the time by others that do not lock "
            "it. Nothing was appended; try again."
        )
    elif not last:
        msg = (
            f"Stream {name!r} has no events, and {target.expected!r} was expected. "
            "Nothing was appended."
        )
    else:
        msg = (
            f"Stream {name!r} has version {last}, and {target.expected!r} was "
            "expected: somebody else has appended to it. Nothing was appended; read it "
            "again."
        )
    return ConcurrencyError(msg)


def _repeated(
    connection: BaseDatabaseWrapper,
    target: Target,
    rows: Sequence[InsertedEvent],
    state: _StreamState | None,
) -> Insertion | None:
    """
    Return the places of events that were all stored before, as this append would.

    Raises:
        EventAlreadyStored: only some of them were, or elsewhere.

    """
    write = uuid_writer(connection)
    ids = [write(each.event_id) for each in rows]
    places: dict[str, tuple[int | None, int | None, int]] = {}
    with connection.cursor() as cursor:
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            marks = ", ".join(["%s"] * len(some))
            cursor.execute(
                f"SELECT event_id, stream_id, version, position FROM {EVENT} "
                f"WHERE event_id IN ({marks})",
                some,
            )
            for event_id, *place in cursor.fetchall():
                key = UUID(str(event_id)).hex
                places[key] = (place[0], place[1], place[2])
    if not places:
        return None
    found = [places.get(each.event_id.hex) for each in rows]
    first = found[0]
    if first is not None and state is not None:
        wanted = [
            (state.stream_id, (first[1] or 0) + place) for place in range(len(rows))
        ]
        begins: int | None = None
        if isinstance(target.expected, int):
            begins = target.expected + 1
        elif target.expected is NEW:
            begins = 1
        if begins in (None, first[1]) and wanted == [
            None if each is None else each[:2] for each in found
        ]:
            return Insertion(
                state.stream_id,
                [(each[2], each[1]) for each in found if each is not None],
                is_repeated=True,
            )
    event_id, place = next(
        (row.event_id, place)
        for row, place in zip(rows, found, strict=True)
        if place is not None
    )
    msg = (
        f"The event {event_id} is stored already, at position {place[2]}. Nothing was "
        "appended."
    )
    raise EventAlreadyStored(msg)


_CONTENT: Final = (
    "name",
    "shape",
    "payload",
    "headers",
    "event_id",
    "correlation_id",
    "causation_id",
    "recorded_at",
)


# PostgreSQL ---------------------------------------------------------------------------

_CALL: Final = f"SELECT * FROM {APPEND}(%s, %s, %s, %s, %s)"


def _insert_at_once(
    connection: BaseDatabaseWrapper, target: Target, rows: Sequence[InsertedEvent]
) -> Insertion | None:
    """Insert events in one statement; None if any of them conflicts."""
    category, key = target.stream or (None, None)
    events = f"[{','.join(map(_as_json, rows))}]"
    with connection.cursor() as cursor:
        cursor.execute(
            _CALL, (category, key, target.stream_id, _NUMBERS[target.expected], events)
        )
        found = cursor.fetchall()
    if not found:
        return None
    return Insertion(found[0][2], [(row[0], row[1]) for row in found])


class _Numbers(dict[Any, int]):
    """The numbers of expected versions: those with a name, and each number itself."""

    def __missing__(self, expected: int) -> int:
        return expected


_NUMBERS: Final = _Numbers({ANY: ANY_VERSION, EXISTS: SOME_VERSION, NEW: 0})


def _as_json(row: InsertedEvent) -> str:
    """Return an event as the function takes it: its JSON is a part of the text."""
    # Names and tags are the only texts that need quotes and escapes.
    name = row.name if _PLAIN.fullmatch(row.name) else json.dumps(row.name)[1:-1]
    text = (
        f'{{"name":"{name}","shape":{row.shape},'
        f'"id":"{row.event_id}","correlation":"{row.correlation_id}",'
        f'"time":"{row.recorded_at.isoformat()}",'
        f'"payload":{row.payload},"headers":{row.headers}'
    )
    if row.causation_id is not None:
        text += f',"causation":"{row.causation_id}"'
    if row.tags:
        text += f',"tags":{json.dumps(row.tags)}'
    return f"{text}}}"


_PLAIN: Final = re.compile(r"[\w.:-]+")


# SQLite -------------------------------------------------------------------------------


def _insert_one(
    connection: BaseDatabaseWrapper, target: Target, rows: Sequence[InsertedEvent]
) -> Insertion | None:
    """Insert one event into a stream that has a row; None if that is not so."""
    name, expected = target.stream, target.expected
    if name is None or target.stream_id is not None or len(rows) > 1 or rows[0].tags:
        return _insert_in_steps(connection, target, rows)
    values = [*_values(rows[0], connection), *name]
    statement = _ONE
    if expected is not ANY:
        statement += _ONE_EXISTS if expected is EXISTS else _ONE_AT
        values += () if expected is EXISTS else (_NUMBERS[expected],)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                f"{statement} RETURNING position, version, stream_id", values
            )
            found = cursor.fetchone()
    except IntegrityError:  # the id is in use; otherwise the steps will tell
        found = None
    if found is None:
        with transaction.atomic(using=connection.alias):
            return _insert_in_steps(connection, target, rows)
    return Insertion(found[2], [(found[0], found[1])])


_LAST: Final = (
    f"COALESCE((SELECT MAX(e.version) FROM {EVENT} e WHERE e.stream_id = s.id), 0)"
)
_ONE: Final = (
    f"INSERT INTO {EVENT} (stream_id, version, {', '.join(_CONTENT)}) "
    f"SELECT s.id, {_LAST} + 1, {', '.join(['%s'] * len(_CONTENT))} "
    f"FROM {STREAM} s WHERE s.category = %s AND s.key = %s"
)
_ONE_AT: Final = f" AND {_LAST} = %s"
_ONE_EXISTS: Final = f" AND {_LAST} > 0"


# All others ----------------------------------------------------------------------

_COLUMNS: Final = ("stream_id", "version", *_CONTENT)
_REST: Final = 1024  # bytes of a row that are not counted


def _insert_in_steps(
    connection: BaseDatabaseWrapper, target: Target, rows: Sequence[InsertedEvent]
) -> Insertion | None:
    """Insert events after the row of their stream; None if any of them conflicts."""
    stream_id: int | None = None
    last: int | None = None
    if target.stream is not None:
        state = _take_stream(connection, target, target.stream)
        if state is None:
            return None
        stream_id, last = state
    if connection.vendor == "mysql":
        hold_floor(connection)
    try:
        positions = _insert_rows(connection, stream_id, last, rows)
    except IntegrityError:  # the statement undoes itself alone
        if target.stream is None or not _is_conflict(connection, stream_id, last, rows):
            _repeated(connection, target, rows, None)
            raise
        return None
    versions: list[int | None] = [None] * len(rows)
    if last is not None:
        versions = list(range(last + 1, last + 1 + len(rows)))
    places = list(zip(positions, versions, strict=True))
    _insert_tags(connection, places, rows)
    return Insertion(stream_id, places)


def _take_stream(
    connection: BaseDatabaseWrapper, target: Target, name: StreamName
) -> tuple[int, int] | None:
    """Return the key and the version of a stream; None if it has another version."""
    expected = target.expected
    if target.stream_id is not None and isinstance(expected, int):
        return target.stream_id, expected
    found = _found_stream(connection, name, is_locked=target.is_locked)
    if found is None:
        if expected is EXISTS or (isinstance(expected, int) and expected):
            return None
        _make_stream(connection, name)
        found = _found_stream(connection, name, is_locked=target.is_locked)
        if found is None:
            return None
    wanted = 0 if expected is NEW else expected
    is_other = not found.version if expected is EXISTS else found.version != wanted
    return None if expected is not ANY and is_other else found


def locked_stream(connection: BaseDatabaseWrapper, name: StreamName) -> tuple[int, int]:
    """
    Lock a stream in the open transaction; it gets a row if it has none.

    Returns:
        The key of its row, and its version.

    """
    found = _found_stream(connection, name, is_locked=True)
    if found is None:
        _make_stream(connection, name)
        found = _found_stream(connection, name, is_locked=True)
    elif connection.vendor == "postgresql":
        # Once more: the first look may be older than the lock.
        found = _found_stream(connection, name, is_locked=True)
    assert found is not None  # noqa: S101 - it was made
    return found


_LOCKS: Final = {"mysql": " FOR UPDATE", "postgresql": " FOR NO KEY UPDATE OF s"}


def _found_stream(
    connection: BaseDatabaseWrapper, name: StreamName, *, is_locked: bool
) -> _StreamState | None:
    lock = _LOCKS.get(connection.vendor, "") if is_locked else ""
    with connection.cursor() as cursor:
        cursor.execute(_located(connection, lock), name)
        found = cursor.fetchone()
    return None if found is None else _StreamState(found[0], found[1] or 0)


def _make_stream(connection: BaseDatabaseWrapper, name: StreamName) -> None:
    """Insert the row of a stream, unless it has one."""
    start, end = _IGNORING[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(
            f"{start} INTO {STREAM} "
            f"(category, {key_column(connection)}, created_at, first_version) "
            f"VALUES (%s, %s, %s, 1) {end}",
            [*name, as_stored(datetime.now(UTC), connection)],
        )


_IGNORING: Final = {
    "mysql": ("INSERT IGNORE", ""),
    "postgresql": ("INSERT", "ON CONFLICT DO NOTHING"),
    "sqlite": ("INSERT OR IGNORE", ""),
}


def _is_conflict(
    connection: BaseDatabaseWrapper,
    stream_id: int | None,
    last: int | None,
    rows: Sequence[InsertedEvent],
) -> bool:
    """Return whether a row was refused for its version or its id."""
    write = uuid_writer(connection)
    # An older view of the table, as under REPEATABLE READ, does not have it.
    newest = " LOCK IN SHARE MODE" if connection.vendor == "mysql" else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT 1 FROM {EVENT} WHERE stream_id = %s AND version > %s "
            f"LIMIT 1{newest}",
            [stream_id, last],
        )
        if cursor.fetchone():
            return True
        for row in rows:
            cursor.execute(
                f"SELECT 1 FROM {EVENT} WHERE event_id = %s{newest}",
                [write(row.event_id)],
            )
            if cursor.fetchone():
                return True
    return False


def _insert_rows(
    connection: BaseDatabaseWrapper,
    stream_id: int | None,
    last: int | None,
    rows: Sequence[InsertedEvent],
) -> list[int]:
    """Insert rows, and return their positions in order."""
    most = connection.features.max_query_params
    limit = 1000 if most is None else max(1, most // len(_COLUMNS))
    parts = portions(connection, rows, _size_of, rows=limit)
    if len(parts) == 1:
        return _insert_part(connection, stream_id, last, rows)
    positions: list[int] = []
    with transaction.atomic(using=connection.alias):
        for part in parts:
            positions += _insert_part(connection, stream_id, last, part)
            last = None if last is None else last + len(part)
    return positions


def _size_of(row: InsertedEvent) -> int:
    return written(row.payload, row.headers) + _REST


def _insert_part(
    connection: BaseDatabaseWrapper,
    stream_id: int | None,
    last: int | None,
    rows: Sequence[InsertedEvent],
) -> list[int]:
    write = uuid_writer(connection)
    values: list[Any] = []
    for number, row in enumerate(rows, 1):
        version = None if last is None else last + number
        values += (stream_id, version, *_values(row, connection))
    marks = f"({', '.join(['%s'] * len(_COLUMNS))})"
    statement = (
        f"INSERT INTO {EVENT} ({', '.join(_COLUMNS)}) "
        f"VALUES {', '.join([marks] * len(rows))}"
    )
    returns = connection.features.can_return_rows_from_bulk_insert
    if returns:
        statement += " RETURNING position"
    with (
        connection.cursor() as cursor,
        fitting(
            connection,
            lambda: sum(map(_size_of, rows)),
            lambda: f"An event {rows[0].name!r}",
        ),
    ):
        cursor.execute(statement, values)
        if not returns:  # MySQL
            ids = [write(row.event_id) for row in rows]
            places = ", ".join(["%s"] * len(ids))
            cursor.execute(
                f"SELECT position FROM {EVENT} WHERE event_id IN ({places})", ids
            )
        return sorted(position for (position,) in cursor.fetchall())


def _values(row: InsertedEvent, connection: BaseDatabaseWrapper) -> tuple[Any, ...]:
    """Return the values of an event for :data:`_CONTENT`."""
    write = uuid_writer(connection)
    return (
        row.name,
        row.shape,
        row.payload,
        row.headers,
        write(row.event_id),
        write(row.correlation_id),
        write(row.causation_id),
        as_stored(row.recorded_at, connection),
    )


def _insert_tags(
    connection: BaseDatabaseWrapper,
    places: Sequence[tuple[int, int | None]],
    rows: Sequence[InsertedEvent],
) -> None:
    values = [
        (tag, position, row.name)
        for (position, _), row in zip(places, rows, strict=True)
        for tag in row.tags
    ]
    for start in range(0, len(values), 300):
        some = values[start : start + 300]
        marks = ", ".join(["(%s, %s, %s)"] * len(some))
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {TAG} (tag, position, name) VALUES {marks}",
                [each for row in some for each in row],
            )


_ATTEMPTS: Final = {
    "mysql": _insert_in_steps,
    "postgresql": _insert_at_once,
    "sqlite": _insert_one,
}
