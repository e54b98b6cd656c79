"""
Inline projections: called in the transaction that appends, before what it publishes.

Each stream has a row for each projection that has seen it, with the last version that
was handled. An append claims the rows that stand just before its events, by one
statement on PostgreSQL, and calls these projections. One that is further back has
missed something: it was paused, is new, or is new to this stream. It gets the events
of the stream from where it stands, under the lock of its row. So each event is handled
once and in order, whatever else happens to the projection meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.buses.registries import Registry
from django_cqrs.events.appending import Append, Entry
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.generations import set_up
from django_cqrs.events.handling import EventBatch, Handlers, projections_of
from django_cqrs.events.models import Generation, Partition, Shard, Status
from django_cqrs.events.reading import stream_page
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.rows import ViewRows
from django_cqrs.events.sources import place_in
from django_cqrs.events.states import (
    NO_STATE,
    PartitionStates,
    ProjectionState,
    States,
)
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.exceptions import InvalidOption
from django_cqrs.routing.table import RouteTable

_GENERATION: Final = Generation._meta.db_table
_PARTITION: Final = Partition._meta.db_table


def has_inline(registry: Registry, entries: Sequence[Entry]) -> bool:
    """Return whether an inline projection has a handler for some of the events."""
    return any(
        handlers.route_of(each.name).forms
        for handlers in inline_projections(registry)
        for each in entries
    )


def run_inline(done: Append) -> None:
    """
    Call the inline projections that take some of the events of an append.

    Args:
        done: the append, whose transaction is open.

    Raises:
        InvalidOption: the events have no stream, so that they have no order.
        Exception: the exception of a handler, with a note of the projection.

    """
    wanted = [
        each
        for each in inline_projections(done.registry)
        if takes_some_of(each, done.recorded)
    ]
    if not wanted:
        return
    first = done.recorded[0]
    if done.stream_id is None or first.version is None:
        names = ", ".join(each.options.name for each in wanted)
        msg = (
            f"{first.name} was not appended: it has no stream, and the inline "
            f"projection {names} takes it. Events of one stream are handled in order; "
            "give append() a stream, or give the projection a channel."
        )
        raise InvalidOption(msg)
    using = done.connection.alias
    claimed = _claim(done.connection, [each.options.name for each in wanted], done)
    missed = [each for each in wanted if each.options.name not in claimed]
    behind = _behind(missed, using) if missed else {}
    for each in wanted:
        name = each.options.name
        if name in claimed:
            handle_inline(each, done.connection, claimed[name], done.recorded)
        elif name in behind:
            catch_up(each, done.connection, behind[name], _stream_of(first))


def _stream_of(recorded: Recorded) -> tuple[int, StreamName]:
    return recorded.stream_id or 0, stream_name(recorded.stream or "")


# ------------------------------------------------------------------------- which ones

_of_tables: WeakKeyDictionary[RouteTable, tuple[Handlers, ...]] = WeakKeyDictionary()


def inline_projections(registry: Registry) -> tuple[Handlers, ...]:
    """Return the inline projections of a registry, in the order of their calls."""
    table = registry.routes
    found = _of_tables.get(table)
    if found is None:
        inline = [e for e in projections_of(registry).values() if e.options.is_inline]
        found = tuple(sorted(inline, key=lambda each: -each.options.priority))
        _of_tables[table] = found
    return found


def takes_some_of(handlers: Handlers, recorded: Sequence[Recorded]) -> bool:
    """Return whether a projection has handlers for some events of one stream."""
    return reaches(handlers, recorded[0].stream) and any(
        handlers.route_of(each.name).forms for each in recorded
    )


def reaches(handlers: Handlers, stream: str | None) -> bool:
    """Return whether a stream is among the sources of a projection."""
    sources = handlers.options.sources
    if not sources:
        return True
    if stream is None:
        return False
    name = stream_name(stream)
    for source in sources:
        place = place_in(source)
        if place.category == name.category and place.key in ("", name.key):
            return True
    return False


# -------------------------------------------------------------------------- the claim


def _claim(
    connection: BaseDatabaseWrapper, names: Sequence[str], done: Append
) -> dict[str, int]:
    """
    Take the rows that stand just before an append.

    Returns:
        The live generations that are handled now, by the names of their projections.

    """
    first, last = done.recorded[0], done.recorded[-1]
    values = (done.stream_id, last.version, last.position)
    claim = _claim_at_once if connection.vendor == "postgresql" else _claim_in_two
    return claim(connection, names, values, (first.version or 1) - 1)


def _claim_at_once(
    connection: BaseDatabaseWrapper,
    names: Sequence[str],
    values: tuple[Any, ...],
    before: int,
) -> dict[str, int]:
    live = "g.projection = ANY(%s) AND g.is_live AND g.status = 'live'"
    if before:
        statement = (
            f"UPDATE {_PARTITION} p SET version = %s, position = %s "
            f"FROM {_GENERATION} g WHERE p.generation_id = g.id AND p.stream_id = %s "
            f"AND p.key = '' AND p.version = %s AND {live} RETURNING g.projection, g.id"
        )
        stream, *reached = values
        parameters = [*reached, stream, before, list(names)]
    else:
        statement = (
            f"WITH live AS (SELECT g.id, g.projection FROM {_GENERATION} g "
            f"WHERE {live}), made AS (INSERT INTO {_PARTITION} "
            "(generation_id, stream_id, key, version, position) "
            "SELECT id, %s, '', %s, %s FROM live "
            "ON CONFLICT (generation_id, stream_id, key) DO NOTHING "
            "RETURNING generation_id) SELECT live.projection, live.id FROM live "
            "JOIN made ON made.generation_id = live.id"
        )
        parameters = [list(names), *values]
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return dict(cursor.fetchall())


def _claim_in_two(
    connection: BaseDatabaseWrapper,
    names: Sequence[str],
    values: tuple[Any, ...],
    before: int,
) -> dict[str, int]:
    """
    Claim by two statements: who stands where, and a write that counts.

    The status of a generation must be that of now: a rebuild waits for the appends
    that could have read it before. Where MariaDB reads from a snapshot, the rows are
    locked, and shared with other appends.
    """
    stream, version, position = values
    key = connection.ops.quote_name("key")
    lock = " LOCK IN SHARE MODE" if _reads_a_snapshot(connection) else ""
    marks = ", ".join(["%s"] * len(names))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT g.projection, g.id, p.version FROM {_GENERATION} g "
            f"LEFT JOIN {_PARTITION} p ON p.generation_id = g.id "
            f"AND p.stream_id = %s AND p.{key} = '' "
            f"WHERE g.projection IN ({marks}) AND g.is_live = 1 "
            f"AND g.status = 'live'{lock}",
            [stream, *names],
        )
        found = cursor.fetchall()
        at = before or None
        claimed = {name: pk for name, pk, version in found if version == at}
        if not claimed:
            return {}
        keys = list(claimed.values())
        if before:
            marks = ", ".join(["%s"] * len(keys))
            cursor.execute(
                f"UPDATE {_PARTITION} SET version = %s, position = %s "
                f"WHERE stream_id = %s AND {key} = '' AND version = %s "
                f"AND generation_id IN ({marks})",
                [version, position, stream, before, *keys],
            )
        else:
            ignore = (
                "INSERT IGNORE"
                if connection.vendor == "mysql"
                else ("INSERT OR IGNORE")
            )
            rows = ", ".join(["(%s, %s, '', %s, %s)"] * len(keys))
            cursor.execute(
                f"{ignore} INTO {_PARTITION} "
                f"(generation_id, stream_id, {key}, version, position) VALUES {rows}",
                [each for pk in keys for each in (pk, stream, version, position)],
            )
        # Another transaction has moved one of them: each is looked at under its lock.
        return claimed if cursor.rowcount == len(keys) else {}


def _reads_a_snapshot(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the rows of a plain SELECT may be older than its statement."""
    if connection.vendor != "mysql":
        return False
    level = getattr(connection, "isolation_level", None)  # of the settings
    return level not in ("read committed", "read uncommitted")


def _behind(missed: Sequence[Handlers], using: str) -> dict[str, int]:
    """Return the live generations of projections; those that are new are set up."""
    found = _live(missed, using)
    for each in missed:
        if each.options.name not in found and each.options.start != "manual":
            set_up(each, using)
    if len(found) < len(missed):
        found = _live(missed, using)
    return {name: pk for name, (pk, status) in found.items() if status == Status.LIVE}


def _live(some: Sequence[Handlers], using: str) -> dict[str, tuple[int, str]]:
    rows = Generation.objects.using(using).filter(
        projection__in=[each.options.name for each in some], is_live=True
    )
    found = rows.values_list("projection", "pk", "status")
    return {name: (pk, status) for name, pk, status in found}


# ------------------------------------------------------------------------ the handling


def handle_inline(
    handlers: Handlers,
    connection: BaseDatabaseWrapper,
    generation: int,
    recorded: Sequence[Recorded],
    *,
    batch_type: type[EventBatch] = EventBatch,
    is_replay: bool = False,
) -> None:
    """
    Handle some events of a stream in the open transaction.

    Args:
        handlers: of the projection.
        connection: with the transaction.
        generation: the key of its generation.
        recorded: the events, in order.
        batch_type: the class of the batch.
        is_replay: whether they are handled again.

    Raises:
        Exception: the exception of a handler, with a note of the projection.

    """
    with kept_states(handlers, connection, generation) as states:
        batch = batch_type(
            handlers,
            connection,
            states=states,
            rows=ViewRows(connection, locks=True),
            is_replay=is_replay,
        )
        try:
            batch.handle(recorded)
            batch.finish()
        except Exception as error:
            at = "" if batch.failed_at is None else f" of {recorded[batch.failed_at]!r}"
            error.add_note(
                f"It was raised by the inline projection {handlers.options.name!r}"
                f"{at}, so nothing was appended."
            )
            raise


@contextmanager
def kept_states(
    handlers: Handlers, connection: BaseDatabaseWrapper, generation: int
) -> Iterator[States]:
    """Give a batch the states of a projection, and write them at its end."""
    if not handlers.has_state:
        yield NO_STATE
        return
    annotation = handlers.state_types[0]
    if handlers.has_partition_state:
        yield PartitionStates(annotation, generation, connection)
        return
    # One state for all streams: appends wait for each other here.
    shards = Shard.objects.using(connection.alias)
    shard = shards.select_for_update().get(generation_id=generation, number=0)
    text = None if shard.state is None else json.dumps(shard.state)
    state = ProjectionState(annotation, text)
    yield state
    shard.state = None if state.text is None else json.loads(state.text)
    shard.save(using=connection.alias, update_fields=["state"])


def catch_up(
    handlers: Handlers,
    connection: BaseDatabaseWrapper,
    generation: int,
    stream: tuple[int, StreamName],
    **options: Any,
) -> int:
    """
    Handle the events of a stream that a projection has not handled yet.

    Args:
        handlers: of the projection.
        connection: with an open transaction.
        generation: the key of its generation.
        stream: the key of the stream's row, and its name.
        **options: for :func:`handle_inline`.

    Returns:
        The number of events that were read.

    """
    using, (stream_id, name) = connection.alias, stream
    rows = Partition.objects.using(using)
    place = {"generation_id": generation, "stream_id": stream_id, "key": ""}
    rows.bulk_create([Partition(**place)], ignore_conflicts=True)
    row = rows.select_for_update().get(**place)
    decoder, count = decoder_of(handlers.types), 0
    first: int | None = row.version + 1
    while first is not None:
        read = stream_page(connection, name, decoder, first=first)
        page = read.recorded
        if page:
            row.version, row.position = page[-1].version or 0, page[-1].position
            row.save(using=using, update_fields=["version", "position"])
            handle_inline(handlers, connection, generation, page, **options)
            count += len(page)
        first = None if read.edge is None else read.edge + 1
    return count


def live_inline(handlers: Handlers, using: str) -> int | None:
    """Return the key of a projection's live generation, None while it is not live."""
    found = _live([handlers], using).get(handlers.options.name)
    return found[0] if found is not None and found[1] == Status.LIVE else None
