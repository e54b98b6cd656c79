"""
Fill the views of projections anew: reset, backfill, rebuild in place, delete.

A rebuild in place is one transaction: readers see the old rows until it commits, and if
it fails, the old rows stay. It reads up to the settled position. For an inline
projection, appends pass by it meanwhile; afterwards the streams that they belong to are
brought up to date, each in a transaction of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

from django.db import OperationalError, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events import settling
from django_cqrs.events.columns import EVENT, STREAM
from django_cqrs.events.feeding import ResetMessage
from django_cqrs.events.generations import set_up
from django_cqrs.events.handling import EventBatch, Handlers
from django_cqrs.events.inline import catch_up, kept_states
from django_cqrs.events.models import (
    Generation,
    Partition,
    ProjectionFailure,
    Shard,
    Status,
)
from django_cqrs.events.observing import observed_batch
from django_cqrs.events.partitions import (
    LONGEST_KEY,
    Place,
    partition_sql,
    place_named,
    shard_of,
)
from django_cqrs.events.queries import Condition
from django_cqrs.events.reading import PAGE, Scan
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.replaying import replaying
from django_cqrs.events.rows import ViewRows
from django_cqrs.events.sources import Reach
from django_cqrs.events.stream_names import StreamName
from django_cqrs.exceptions import (
    InvalidOption,
    ProjectionBusy,
    ProjectionNotFound,
    StreamNotFound,
)
from django_cqrs.messages import NOBODY, current
from django_cqrs.retries import DEADLOCKS

T = TypeVar("T")

_PARTITION: Final = Partition._meta.db_table
MOST_DEADLOCKS: Final = 10
"""The number of deadlocks after which a transaction ends with the error."""

_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.05

_IDLE: Final = (Status.LIVE, Status.PAUSED, Status.FAILED)


def reset(handlers: Handlers, *, using: str) -> None:
    """
    Empty the views of a projection and set it back to the beginning.

    The next run of one that follows handles all events again. An inline one is filled
    by :func:`backfill`, or by the next events of its streams.

    Args:
        handlers: of the projection.
        using: the alias of the database with the events.

    Raises:
        ProjectionNotFound: it is not set up there.
        ProjectionBusy: it is being rebuilt.

    """
    with _alone(handlers, using) as generation, transaction.atomic(using=using):
        _lock(generation, using)
        _empty(handlers, generation, using)


def rebuild(
    handlers: Handlers,
    *,
    using: str,
    partition: str | None = None,
    at_page: Callable[[], object] | None = None,
) -> int:
    """
    Replace the rows of the views: handle all events again, in one transaction.

    Args:
        handlers: of the projection.
        using: the alias of the database with the events.
        partition: the name of a partition, if only its events are handled again.
        at_page: called after each page of events, in the transaction.

    Returns:
        The number of events that were handled.

    Raises:
        ProjectionNotFound: it is not set up there.
        ProjectionBusy: it is being rebuilt.
        StreamNotFound: the partition is a stream that does not exist.
        InvalidOption: the projection cannot be rebuilt by partition.
        ReplayForbidden: a handler sends a message, or writes to a table other than
            those of the views.
        Exception: the exception of a handler; the views are as they were.

    """
    part = None if partition is None else _solo_partition(handlers, using, partition)
    return whole(lambda: _rebuild(handlers, using, part, at_page), using)


class _SoloPartition(NamedTuple):
    """A partition that is rebuilt alone."""

    name: str
    place: Place


def _solo_partition(handlers: Handlers, using: str, name: str) -> _SoloPartition:
    """Return a partition, if the projection can be rebuilt by partition."""
    options = handlers.options
    if not handlers.resets_partitions:
        msg = (
            f"The projection {options.name!r} cannot be rebuilt by partition: no "
            "method with @on_reset takes a PartitionName. Write one that deletes the "
            "rows of a partition, or rebuild all."
        )
        raise InvalidOption(msg)
    if handlers.has_state and not handlers.has_partition_state:
        msg = (
            f"The projection {options.name!r} cannot be rebuilt by partition: it keeps "
            "one State for all. Give it partition_by=, or rebuild all."
        )
        raise InvalidOption(msg)
    place = place_named(options, name, using)
    if place is None:
        msg = f"There is no stream {name!r}."
        raise StreamNotFound(msg)
    return _SoloPartition(name, place)


def whole(act: Callable[[], T], using: str) -> T:
    """
    Do something in its own transaction, again if the server undoes it.

    Args:
        act: opens the transaction, and does it.
        using: the alias of the database.

    Returns:
        The result.

    Raises:
        OperationalError: the server undoes it again and again, or another transaction
            is around it.

    """
    attempt = 1
    while True:
        try:
            return act()
        except OperationalError as error:
            # It met appends at some rows, and the server has undone one of the two.
            is_nested = connections[using].in_atomic_block
            if is_nested or attempt == MOST_DEADLOCKS or not DEADLOCKS.includes(error):
                raise
            attempt += 1


def _rebuild(
    handlers: Handlers,
    using: str,
    part: _SoloPartition | None,
    at_page: Callable[[], object] | None,
) -> int:
    connection = connections[using]
    is_inline = handlers.options.is_inline
    with _alone(handlers, using) as generation:
        until = settling.settled(connection)
        with transaction.atomic(using=using):
            positions = _lock(generation, using)
            end = until
            if part is None:
                _empty(handlers, generation, using)
            else:
                _empty_part(handlers, generation, using, part)
                if not is_inline:
                    end = positions[shard_of(part.place, len(positions))]
            with replaying(handlers.options):
                replay = _Replay(handlers, connection, generation, end, part)
                replay.run(at_page)
            if is_inline:
                replay.write_versions()
            elif part is None:
                shards = Shard.objects.using(using).filter(generation_id=generation)
                shards.update(position=until)
    if is_inline:
        backfill(handlers, using=using, after=until)
    return replay.handled


def backfill(
    handlers: Handlers,
    *,
    using: str,
    batch: int = 100,
    after: int = 0,
    at_batch: Callable[[int], object] | None = None,
) -> int:
    """
    Give an inline projection the events that it has missed, stream by stream.

    Args:
        handlers: of the projection.
        using: the alias of the database with the events.
        batch: the number of streams in one transaction.
        after: look only at streams with events behind this position.
        at_batch: called after each transaction, with the number of its streams.

    Returns:
        The number of events that were read.

    Raises:
        InvalidOption: the number is not positive, or the projection is not inline.
        ProjectionNotFound: it is not set up there, and starts by hand.
        Exception: the exception of a handler; earlier transactions stay.

    """
    options = handlers.options
    if type(batch) is not int or batch < 1:
        msg = f"batch={batch!r}: it is the number of streams, 1 or more."
        raise InvalidOption(msg)
    if not options.is_inline:
        msg = (
            f"The projection {options.name!r} follows the events, so nothing is "
            "missing in it: run it, or rebuild it."
        )
        raise InvalidOption(msg)
    if options.start != "manual":
        set_up(handlers, using)
    generation = _generation(handlers, using).pk
    connection = connections[using]
    _wait_for_appends(connection)
    count = 0
    behind = _streams_behind(handlers, generation, using, after)
    for streams in _in_batches(behind, batch):

        def bring(streams: Sequence[tuple[int, StreamName]] = streams) -> int:
            with transaction.atomic(using=using):
                return sum(
                    catch_up(handlers, connection, generation, each) for each in streams
                )

        count += whole(bring, using)
        if at_batch is not None:
            at_batch(len(streams))
    return count


def delete(handlers: Handlers, *, using: str) -> None:
    """
    Delete what a projection has: the rows of its views, its states and positions.

    Events that it has emitted stay. If its code is still there, the next event, or the
    next run, sets it up again.

    Args:
        handlers: of the projection.
        using: the alias of the database with the events.

    Raises:
        ProjectionNotFound: it is not set up there.
        ProjectionBusy: it is being rebuilt.

    """
    with _alone(handlers, using) as generation, transaction.atomic(using=using):
        _lock(generation, using)
        _empty(handlers, generation, using, is_deleted=True)
        Shard.objects.using(using).filter(generation_id=generation).delete()
        Generation.objects.using(using).filter(pk=generation).delete()


# ----------------------------------------------------------------------------- alone


def _generation(handlers: Handlers, using: str) -> Generation:
    rows = Generation.objects.using(using)
    found = rows.filter(projection=handlers.options.name, is_live=True).first()
    if found is None:
        msg = (
            f"The projection {handlers.options.name!r} is not set up in the database "
            f"{using!r}. Run manage.py cqrs_projections init {handlers.options.name}."
        )
        raise ProjectionNotFound(msg)
    return found


@contextmanager
def _alone(handlers: Handlers, using: str) -> Iterator[int]:
    """
    Keep everybody else away from a projection, and give the key of its generation.

    Workers and appends leave a projection alone that is being built. Those that have
    begun before are waited for.
    """
    found = _generation(handlers, using)
    rows = Generation.objects.using(using).filter(pk=found.pk)
    if not rows.filter(status__in=_IDLE).update(status=Status.BUILDING):
        msg = (
            f"The projection {handlers.options.name!r} is being rebuilt already. Wait "
            "until that ends, or resume the projection if its process is gone."
        )
        raise ProjectionBusy(msg)
    before = Status.PAUSED if found.status == Status.PAUSED else Status.LIVE
    try:
        _wait_for_appends(connections[using])
        yield found.pk
    finally:
        if not connections[using].needs_rollback:
            rows.filter(status=Status.BUILDING).update(status=before)


def _wait_for_appends(connection: BaseDatabaseWrapper) -> None:
    """
    Wait for the end of the transactions that have appended until then.

    New ones are not kept from beginning, as a lock would do. Inside a transaction
    nobody is waited for: it would be for oneself.
    """
    if connection.in_atomic_block:
        return
    pause = _FIRST_PAUSE
    begun = _in_flight(connection)
    while begun := begun & _in_flight(connection):
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 2)


def _in_flight(connection: BaseDatabaseWrapper) -> set[tuple[int, int | None]]:
    """Return the transactions that have appended, by their floors and sessions."""
    return {(each.floor, each.session) for each in settling.blockers(connection)}


def _lock(generation: int, using: str) -> list[int]:
    """Lock the shards, so that no worker is in a batch, and return their positions."""
    shards = Shard.objects.using(using).filter(generation_id=generation)
    rows = shards.select_for_update().order_by("number")
    return list(rows.values_list("position", flat=True))


def _empty(
    handlers: Handlers, generation: int, using: str, *, is_deleted: bool = False
) -> None:
    """Empty views, states, positions and failures in the open transaction."""
    for view in _in_order(handlers.options.views):
        if _is_model(view):
            for field in view._meta.many_to_many:
                _all_of(field.remote_field.through, using)._raw_delete(using)
            _all_of(view, using)._raw_delete(using)
        else:
            view.clear()
    for model in (Partition, ProjectionFailure):
        rows = model._base_manager.using(using).filter(generation_id=generation)
        rows._raw_delete(using)
    shards = Shard.objects.using(using).filter(generation_id=generation)
    shards.update(
        position=0,
        state=None,
        attempts=0,
        error="",
        failed_position=None,
        retry_at=None,
    )
    _run_hooks(handlers, "on_delete" if is_deleted else "on_reset")


def _empty_part(
    handlers: Handlers, generation: int, using: str, part: _SoloPartition
) -> None:
    """Empty what belongs to a partition in the open transaction."""
    stream_id, key = part.place
    own = {"generation_id": generation}
    rows = Partition.objects.using(using)
    rows.filter(stream_id=stream_id, key=key, **own).delete()
    failures = ProjectionFailure.objects.using(using)
    failures.filter(partition=part.name[:LONGEST_KEY], **own).delete()
    _run_hooks(handlers, "on_reset", part.name)


def _run_hooks(handlers: Handlers, name: str, partition: str | None = None) -> None:
    token = current.set(NOBODY)
    try:
        handlers.run_hooks(name, ResetMessage(partition))
    finally:
        current.reset(token)


def _is_model(view: Any) -> bool:
    return isinstance(view, type) and issubclass(view, models.Model)


def _all_of(model: type[models.Model], using: str) -> Any:
    return model._base_manager.using(using).all()


def _in_order(views: Sequence[Any]) -> list[Any]:
    """Return views so that one comes before those that it points to."""
    left, ordered = list(views), []
    while left:
        pointed = {
            field.related_model
            for view in left
            if _is_model(view)
            for field in view._meta.get_fields()
            if field.is_relation and field.concrete and field.related_model is not view
        }
        free = [view for view in left if view not in pointed] or left[:1]
        ordered += free
        left = [view for view in left if view not in free]
    return ordered


# ----------------------------------------------------------------------------- replay


class _Replay:
    """One pass over the events of a projection, or a partition, in order."""

    def __init__(
        self,
        handlers: Handlers,
        connection: BaseDatabaseWrapper,
        generation: int,
        until: int,
        part: _SoloPartition | None,
    ) -> None:
        self.handlers = handlers
        self.connection = connection
        self.generation = generation
        self.until = until
        self.part = part
        self.handled = 0
        self._versions: dict[int, tuple[int, int]] = {}

    def run(self, at_page: Callable[[], object] | None) -> None:
        """Handle all events, a page at a time."""
        handlers, connection = self.handlers, self.connection
        reach = Reach(handlers, connection)
        scan = Scan(connection, handlers.types)
        position = 0
        while position < self.until:
            scan.condition = self._narrowed(reach.condition())
            page = scan.page(position, self.until, PAGE)
            recorded = self._own(page.recorded)
            if recorded:
                with kept_states(handlers, connection, self.generation) as states:
                    batch = EventBatch(
                        handlers,
                        connection,
                        states=states,
                        rows=ViewRows(connection),
                        is_replay=True,
                    )
                    with observed_batch(handlers.options.name, recorded):
                        batch.handle(recorded)
                        batch.finish()
                self.handled += batch.handled
                for each in recorded:
                    if each.stream_id is not None:
                        reached = each.version or 0, each.position
                        self._versions[each.stream_id] = reached
            position = page.position
            if at_page is not None:
                at_page()

    def _narrowed(self, condition: Condition) -> Condition:
        if self.part is None:
            return condition
        parameters: list[Any] = []
        own = partition_sql(self.handlers.options, self.part.place, parameters)
        return Condition(
            f"{own} AND ({condition.sql})", [*parameters, *condition.parameters]
        )

    def _own(self, recorded: list[Recorded]) -> list[Recorded]:
        """Return the events of the partition; the condition finds others as well."""
        if self.part is None:
            return recorded
        partition_of, place = self.handlers.partition_of, self.part.place
        return [each for each in recorded if partition_of(each) == place]

    def write_versions(self) -> None:
        """Note how far an inline projection has come in each stream."""
        using = self.connection.alias
        rows = Partition.objects.using(using)
        known = {
            row.stream_id: row for row in rows.filter(generation_id=self.generation)
        }
        made, changed = [], []
        for stream_id, (version, position) in self._versions.items():
            row = known.get(stream_id)
            if row is None:
                row = Partition(generation_id=self.generation, stream_id=stream_id)
                made.append(row)
            else:
                changed.append(row)
            row.version, row.position = version, position
        rows.bulk_create(made, batch_size=PAGE)
        rows.bulk_update(changed, ["version", "position"], batch_size=PAGE)


# ----------------------------------------------------------------------------- streams


def _streams_behind(
    handlers: Handlers, generation: int, using: str, after: int
) -> Iterator[tuple[int, StreamName]]:
    """Yield the streams with events that a projection has missed, by their keys."""
    connection = connections[using]
    condition = Reach(handlers, connection).condition()
    key = connection.ops.quote_name("key")
    last = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT s.id, s.category, s.{key}, MAX(e.version), "
                f"(SELECT p.version FROM {_PARTITION} p WHERE p.generation_id = %s "
                f"AND p.stream_id = s.id AND p.{key} = '') "
                f"FROM {EVENT} e JOIN {STREAM} s ON s.id = e.stream_id "
                f"WHERE s.id > %s AND e.position > %s AND ({condition.sql}) "
                f"GROUP BY s.id, s.category, s.{key} ORDER BY s.id LIMIT {PAGE}",
                [generation, last, after, *condition.parameters],
            )
            rows = cursor.fetchall()
        for pk, category, name, version, reached in rows:
            if version > (reached or 0):
                yield pk, StreamName(category, name)
        if len(rows) < PAGE:
            return
        last = rows[-1][0]


def _in_batches(streams: Iterator[Any], size: int) -> Iterator[list[Any]]:
    some: list[Any] = []
    for each in streams:
        some.append(each)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
