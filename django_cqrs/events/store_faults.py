"""Faults of a store in its database: what is missing, and rows that do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.columns import ARCHIVED, EVENT, STREAM, TAG, key_column
from django_cqrs.events.decoding import TAGS
from django_cqrs.events.floors import floors_of
from django_cqrs.events.models import (
    ArchivedEvent,
    Bucket,
    EventTag,
    NaturalKey,
    Snapshot,
    StoredEvent,
)
from django_cqrs.events.positions import (
    BUCKETS,
    FUNCTIONS,
    has_default,
    schema_of,
)
from django_cqrs.events.settling import last_position

SHOWN: Final = 5
"""The number of places that a fault names."""

MOST_FLOORS: Final = 1000
"""The number of floors of ended transactions above which there is a fault."""

PAGE: Final = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoreFault:
    """A fault of a store, and its fix."""

    text: str
    hint: str
    is_migrated_away: bool = False
    """Whether ``manage.py migrate`` fixes it."""


def all_faults(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    """
    Yield all faults of a store; this reads all of its rows.

    Args:
        connection: of the database with the events, which has the tables.

    """
    yield from faults_of_setup(connection)
    yield from _faults_of_streams(connection)
    yield from _doubles(connection)
    yield from _faults_of_tags(connection)
    yield from _faults_of_keys(connection)
    yield from _faults_of_snapshots(connection)


# The setup ----------------------------------------------------------------------------


def faults_of_setup(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    """
    Yield faults of functions, sequences, and the rows that decisions lock.

    Args:
        connection: of the database with the events, which has the tables.

    """
    if connection.vendor == "postgresql":
        yield from _faults_of_functions(connection)
    elif connection.vendor == "mysql":
        yield from _faults_of_locks(connection)
    yield from _faults_of_sequence(connection)


def _migrate(connection: BaseDatabaseWrapper) -> str:
    return f"Run manage.py migrate --database={connection.alias}."


def _faults_of_functions(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    table = connection.ops.quote_name(EVENT)
    with connection.cursor() as cursor:
        schema = schema_of(cursor, table)
        cursor.execute(
            "SELECT p.proname FROM pg_proc p "
            "JOIN pg_namespace n ON n.oid = p.pronamespace "
            "WHERE quote_ident(n.nspname) = %s AND p.proname = ANY (%s)",
            [schema, list(FUNCTIONS)],
        )
        present = {name for (name,) in cursor.fetchall()}
        missing = [each for each in FUNCTIONS if each not in present]
        is_usual = has_default(cursor, table)
        cursor.execute(
            "SELECT s.seqcache, s.seqrelid::regclass::text FROM pg_sequence s "
            "WHERE s.seqrelid = pg_get_serial_sequence(%s, 'position')::regclass",
            [table],
        )
        sequence = cursor.fetchone()
    for name in missing:
        yield StoreFault(
            text=f"The function {name}() is missing.",
            hint=_migrate(connection),
            is_migrated_away=True,
        )
    if not is_usual and not missing:
        yield StoreFault(
            text=(
                f"The default of {EVENT}.position is not the function {FUNCTIONS[0]}(),"
                " so that followers may skip events."
            ),
            hint=_migrate(connection),
            is_migrated_away=True,
        )
    if sequence is not None and sequence[0] != 1:
        yield StoreFault(
            text=(
                f"The sequence {sequence[1]} has a cache of {sequence[0]}: connections "
                "would append at positions below those that followers have passed."
            ),
            hint=f"Run in SQL: ALTER SEQUENCE {sequence[1]} CACHE 1;",
        )


def _faults_of_locks(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    buckets = Bucket.objects.using(connection.alias).count()
    if buckets < BUCKETS:
        yield StoreFault(
            text=f"{BUCKETS - buckets} of the {BUCKETS} rows that decisions lock are "
            "missing.",
            hint=_migrate(connection),
            is_migrated_away=True,
        )
    kept = len(floors_of(connection).done)
    if kept > MOST_FLOORS:
        yield StoreFault(
            text=f"{kept} floors of ended transactions have not been cleaned up.",
            hint="Look for a transaction that has been open for a long time.",
        )


def _faults_of_sequence(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    last = last_position(connection)
    highest = 0
    with connection.cursor() as cursor:
        for table in (EVENT, ARCHIVED):
            cursor.execute(f"SELECT COALESCE(MAX(position), 0) FROM {table}")
            highest = max(highest, *cursor.fetchone())
    if last is not None and last < highest:
        yield StoreFault(
            text=(
                f"The sequence of positions is at {last}, and there are events up to "
                f"position {highest}: new events would be refused, or followers would "
                "never see them."
            ),
            hint=f"Stop appending, and run in SQL: {_advance(connection, highest)}",
        )


def _advance(connection: BaseDatabaseWrapper, position: int) -> str:
    if connection.vendor == "postgresql":
        return (
            f"SELECT setval(pg_get_serial_sequence('{EVENT}', 'position'), {position});"
        )
    if connection.vendor == "mysql":
        return f"ALTER TABLE {EVENT} AUTO_INCREMENT = {position + 1};"
    return f"UPDATE sqlite_sequence SET seq = {position} WHERE name = '{EVENT}';"


# The rows -----------------------------------------------------------------------------


def _rows(connection: BaseDatabaseWrapper, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def _some(places: list[str]) -> str:
    """Return the first of several places, with the number of the others."""
    named = ", ".join(places[:SHOWN])
    left = len(places) - SHOWN
    return f"{named} and {left} more" if left > 0 else named


_RESTORE: Final = "Restore the rows from a backup."


def _faults_of_streams(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    key = f"s.{key_column(connection)}"
    found = _rows(
        connection,
        f"SELECT e.stream_id, s.category, {key}, MIN(e.version), MAX(e.version), "
        "COUNT(*), s.first_version FROM ("
        f"SELECT stream_id, version FROM {EVENT} WHERE stream_id IS NOT NULL "
        f"UNION ALL SELECT stream_id, version FROM {ARCHIVED} "
        "WHERE stream_id IS NOT NULL"
        f") e LEFT JOIN {STREAM} s ON s.id = e.stream_id "
        f"GROUP BY e.stream_id, s.category, {key}, s.first_version "
        "HAVING COUNT(*) <> MAX(e.version) - MIN(e.version) + 1 "
        "OR s.first_version IS NULL OR MIN(e.version) > s.first_version "
        "ORDER BY e.stream_id",
    )
    lost = [str(row[0]) for row in found if row[1] is None]
    if lost:
        yield StoreFault(
            text=f"There are events of streams without a row: {_some(lost)}.",
            hint=_RESTORE,
        )
    holes = [
        f"{category}-{key}" if key else category
        for _, category, key, *_ in found
        if category is not None
    ]
    if holes:
        yield StoreFault(
            text=f"Versions are missing in streams: {_some(holes)}.", hint=_RESTORE
        )


def _doubles(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    found = _rows(
        connection,
        f"SELECT e.position FROM {EVENT} e "
        f"JOIN {ARCHIVED} a ON a.event_id = e.event_id ORDER BY e.position",
    )
    if found:
        places = [str(position) for (position,) in found]
        yield StoreFault(
            text=f"Events are both live and archived, at positions: {_some(places)}.",
            hint=f"Delete them from one of {EVENT} and {ARCHIVED}.",
        )


def _faults_of_tags(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    found = _rows(
        connection,
        f"SELECT t.position, t.name FROM {TAG} t "
        f"LEFT JOIN {EVENT} e ON e.position = t.position "
        f"LEFT JOIN {ARCHIVED} a ON a.position = t.position "
        "WHERE COALESCE(e.name, a.name) IS NULL OR COALESCE(e.name, a.name) <> t.name "
        "ORDER BY t.position",
    )
    if found:
        places = [str(position) for position in dict.fromkeys(row[0] for row in found)]
        yield StoreFault(
            text=f"There are tags of events that do not exist, at positions: "
            f"{_some(places)}.",
            hint=f"Delete their rows from {TAG}.",
        )
    lacking = [
        str(position)
        for model in (StoredEvent, ArchivedEvent)
        for position in _without_tags(model, connection.alias)
    ]
    if lacking:
        yield StoreFault(
            text=f"Events are not found by their tags, at positions: {_some(lacking)}.",
            hint=f"Insert their tags, as their headers name them, into {TAG}.",
        )


def _without_tags(model: Any, using: str) -> Iterator[int]:
    """Yield the positions of events with tags in their headers alone."""
    rows = model.objects.using(using).filter(link_to=None, headers__has_key=TAGS)
    last = 0
    while page := list(
        rows.filter(pk__gt=last).order_by("pk").values_list("pk", "headers")[:PAGE]
    ):
        last = page[-1][0]
        wanted = [
            (tag, position)
            for position, headers in page
            for tag in headers[TAGS]
            if isinstance(tag, str)
        ]
        present = set(
            EventTag.objects.using(using)
            .filter(
                tag__in={tag for tag, _ in wanted},
                position__gte=page[0][0],
                position__lte=last,
            )
            .values_list("tag", "position")
        )
        yield from dict.fromkeys(each[1] for each in wanted if each not in present)


def _faults_of_keys(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    table = NaturalKey._meta.db_table
    found = _rows(
        connection,
        f"SELECT k.id FROM {table} k LEFT JOIN {STREAM} s ON s.id = k.stream_id "
        "WHERE s.id IS NULL OR s.category <> k.category OR s.deleted_at IS NOT NULL "
        "ORDER BY k.id",
    )
    if found:
        yield StoreFault(
            text="There are natural keys without their streams, with ids: "
            f"{_some([str(number) for (number,) in found])}.",
            hint=f"Delete their rows from {table}.",
        )


def _faults_of_snapshots(connection: BaseDatabaseWrapper) -> Iterator[StoreFault]:
    table = Snapshot._meta.db_table
    found = _rows(
        connection,
        f"SELECT n.stream_id FROM {table} n WHERE NOT EXISTS ("
        f"SELECT 1 FROM {EVENT} e WHERE e.stream_id = n.stream_id "
        "AND e.version >= n.version) AND NOT EXISTS ("
        f"SELECT 1 FROM {ARCHIVED} a WHERE a.stream_id = n.stream_id "
        "AND a.version >= n.version) ORDER BY n.stream_id",
    )
    if found:
        yield StoreFault(
            text="There are snapshots of versions that do not exist, of streams with "
            f"the ids: {_some([str(number) for (number,) in found])}.",
            hint=f"Delete their rows from {table}.",
        )
