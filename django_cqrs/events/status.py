"""How far projections have come, for commands, health checks and gauges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count

from django_cqrs import clock
from django_cqrs.events import settling
from django_cqrs.events.columns import EVENT, STREAM
from django_cqrs.events.generations import RUNNING
from django_cqrs.events.handling import Handlers
from django_cqrs.events.models import (
    Generation,
    Partition,
    ProjectionFailure,
    Shard,
    Status,
)
from django_cqrs.events.projecting import BY_STREAM
from django_cqrs.events.reading import WIDEST
from django_cqrs.events.sources import Reach
from django_cqrs.times import as_read, as_sent

MOST_COUNTED: Final = 10_000
"""The number of events at which counting stops: there are so many, or more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatus:
    """The progress of one shard."""

    number: int
    position: int
    owner: str
    """The worker that has taken it; empty if it is free."""
    handled: int
    """The number of events that it has ever handled."""
    updated_at: datetime
    error: str = ""
    """The failure that it waits with, in one line."""
    traceback: str = ""
    failed_position: int | None = None
    """The position of the event that fails."""
    attempts: int = 0
    retry_at: datetime | None = None
    """The time of the next attempt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionStatus:
    """The progress of one projection in one database."""

    name: str
    status: str
    """``new`` before it is set up, else ``live``, ``paused`` or ``failed``."""
    channel: str | None
    """The channel whose worker runs it."""
    is_inline: bool
    position: int | None
    """The position up to which all is handled; None if there is none."""
    lag: int = 0
    """The number of events behind it; :data:`MOST_COUNTED` means so many or more."""
    lag_seconds: float = 0.0
    """How long the oldest of those has waited."""
    shards: Sequence[ShardStatus] = ()
    parked: int = 0
    """The number of partitions that wait for somebody to retry an event."""
    failures: int = 0
    """The number of events that were skipped or parked."""
    since: dict[str, int] = dataclasses.field(default_factory=dict)
    """The names that are handled only since a position."""
    wanted: str = ""
    """The long action that a worker is to do, such as ``rebuild``."""
    is_running: bool = False
    """Whether a worker has begun with it."""
    action_error: str = ""
    """The failure of the last long action, in one line."""

    @property
    def error(self) -> str:
        """The first failure that it waits with, in one line."""
        return next((each.error for each in self.shards if each.error), "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """The positions of an event store, and who holds its followers back."""

    head: int
    settled: int
    blockers: Sequence[settling.Blocker] = ()

    @property
    def settled_age(self) -> float:
        """How long followers have been held back, in seconds."""
        ages = (each.age for each in self.blockers if each.age is not None)
        return max((age.total_seconds() for age in ages), default=0.0)


def store_status(using: str) -> StoreStatus:
    """Return the positions of the event store in a database."""
    connection = connections[using]
    settled = settling.settled(connection)
    head = settling.head(connection)
    found = settling.blockers(connection) if settled < head else []
    return StoreStatus(head=max(head, settled), settled=settled, blockers=found)


def status_of(handlers: Handlers, using: str) -> ProjectionStatus:
    """Return the progress of a projection."""
    [found] = statuses_of([handlers], using)
    return found


def statuses_of(found: Iterable[Handlers], using: str) -> list[ProjectionStatus]:
    """
    Return the progress of projections.

    The work is bounded: of each shard, the events behind it are counted up to
    :data:`MOST_COUNTED`.

    Args:
        found: the projections.
        using: the alias of the database with the events.

    """
    by_name = {each.options.name: each for each in found}
    generations = {
        each.projection: each
        for each in Generation.objects.using(using).filter(
            projection__in=list(by_name), is_live=True
        )
    }
    keys = [each.pk for each in generations.values()]
    rows: dict[int, list[Shard]] = {}
    for row in Shard.objects.using(using).filter(generation_id__in=keys):
        rows.setdefault(row.generation_id, []).append(row)
    parked = _counts(
        Partition.objects.using(using).filter(parked_at__isnull=False), keys
    )
    failed = _counts(ProjectionFailure.objects.using(using).all(), keys)
    head = settling.head(connections[using])
    statuses = []
    for name, handlers in by_name.items():
        generation = generations.get(name)
        if generation is None:
            statuses.append(_new(handlers, connections[using], head))
            continue
        own = sorted(rows.get(generation.pk, []), key=lambda each: each.number)
        statuses.append(
            _status(
                handlers,
                generation,
                own,
                using=using,
                head=head,
                parked=parked.get(generation.pk, 0),
                failures=failed.get(generation.pk, 0),
            )
        )
    return statuses


def _counts(rows: Any, keys: Sequence[int]) -> dict[int, int]:
    grouped = rows.filter(generation_id__in=keys).values_list("generation_id")
    return dict(grouped.annotate(Count("pk")).order_by())


def _new(
    handlers: Handlers, connection: BaseDatabaseWrapper, head: int
) -> ProjectionStatus:
    options = handlers.options
    lag, seconds = 0, 0.0
    if options.is_following and options.start == "beginning":
        lag, seconds = _lag(handlers, [Shard(number=0, position=0)], connection, head)
    return ProjectionStatus(
        name=options.name,
        status=str(Status.NEW.value),
        channel=options.channel,
        is_inline=options.is_inline,
        position=None,
        lag=lag,
        lag_seconds=seconds,
    )


def _status(
    handlers: Handlers,
    generation: Generation,
    rows: Sequence[Shard],
    *,
    using: str,
    head: int,
    parked: int,
    failures: int,
) -> ProjectionStatus:
    options = handlers.options
    lag, seconds = 0, 0.0
    if not options.is_inline:
        lag, seconds = _lag(handlers, rows, connections[using], head)
    is_failed = any(each.error and each.attempts for each in rows)
    status = str(generation.status)
    if status == Status.LIVE and is_failed:
        status = str(Status.FAILED.value)
    return ProjectionStatus(
        name=options.name,
        status=status,
        channel=options.channel,
        is_inline=options.is_inline,
        position=None if options.is_inline else _least(rows),
        lag=lag,
        lag_seconds=seconds,
        shards=tuple(map(_shard, rows)),
        parked=parked,
        failures=failures,
        since={name: since for name, since in generation.names.items() if since},
        wanted=generation.wanted.removeprefix(RUNNING),
        is_running=generation.wanted.startswith(RUNNING),
        action_error=generation.error,
    )


def _least(rows: Sequence[Shard]) -> int | None:
    return min((each.position for each in rows), default=None)


def _shard(row: Shard) -> ShardStatus:
    error, _, trace = row.error.partition("\n\n")
    return ShardStatus(
        number=row.number,
        position=row.position,
        owner=row.owner,
        handled=row.handled,
        updated_at=as_sent(row.updated_at),
        error=error,
        traceback=trace,
        failed_position=row.failed_position,
        attempts=row.attempts,
        retry_at=None if row.retry_at is None else as_sent(row.retry_at),
    )


def _lag(
    handlers: Handlers,
    rows: Sequence[Shard],
    connection: BaseDatabaseWrapper,
    head: int,
) -> tuple[int, float]:
    """Return the number of events behind a projection, and the age of the oldest."""
    if len(rows) > 1 and handlers.options.partitioning != BY_STREAM:
        # Only the handlers' own code can tell which shard an event is for.
        rows = [min(rows, key=lambda each: each.position)]
        shards = 1
    else:
        shards = len(rows)
    total, oldest = 0, None
    for row in rows:
        if row.position >= head:
            continue
        reach = Reach(handlers, connection, shard=row.number, shards=shards)
        count, since = _behind(reach, connection, row.position, head)
        total += count
        if since is not None and (oldest is None or since < oldest):
            oldest = since
    age = timedelta() if oldest is None else max(timedelta(), clock.now() - oldest)
    return min(total, MOST_COUNTED), age.total_seconds()


def _behind(
    reach: Reach, connection: BaseDatabaseWrapper, position: int, head: int
) -> tuple[int, datetime | None]:
    sql, parameters = reach.condition()
    while position < head:
        end = min(head, position + WIDEST)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT COUNT(*), MIN(recorded_at) FROM (SELECT e.recorded_at "
                f"FROM {EVENT} e LEFT JOIN {STREAM} s ON s.id = e.stream_id "
                f"WHERE e.position > %s AND e.position <= %s AND ({sql}) "
                f"ORDER BY e.position LIMIT {MOST_COUNTED}) behind",
                [position, end, *parameters],
            )
            count, since = cursor.fetchone()
        if count:
            return count, _moment(since, connection)
        position = end
    return 0, None


def _moment(value: Any, connection: BaseDatabaseWrapper) -> datetime:
    if isinstance(value, str):  # SQLite has no type for times
        value = datetime.fromisoformat(value)
    return as_read(value, connection)
