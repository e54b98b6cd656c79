"""Events that a projection could not handle: retry them, or give them up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from django.db import connections, transaction
from django.db.models import F

from django_cqrs import clock
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.error_texts import error_texts
from django_cqrs.events.handling import EventBatch, Handlers
from django_cqrs.events.models import Generation, Partition, ProjectionFailure, Shard
from django_cqrs.events.partitions import Place, partition_sql
from django_cqrs.events.reading import PAGE, events_where
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.rows import ViewRows
from django_cqrs.events.runner import states_of
from django_cqrs.events.sources import Reach
from django_cqrs.events.states import ProjectionState
from django_cqrs.exceptions import InvalidOption, ProjectionBusy

PARKED: Final = "parked"
SKIPPED: Final = "skipped"


def failures_of(
    generation: Generation, using: str, keys: Iterable[int] | None = None
) -> list[ProjectionFailure]:
    """
    Return the events that a projection has skipped or parked, the oldest first.

    Args:
        generation: of the projection.
        using: the alias of its database.
        keys: the keys of some failures; by default all.

    """
    rows = ProjectionFailure.objects.using(using).filter(generation_id=generation.pk)
    if keys is not None:
        rows = rows.filter(pk__in=list(keys))
    return list(rows.order_by("failed_at", "pk"))


def retry(handlers: Handlers, failure: ProjectionFailure, using: str) -> None:
    """
    Handle an event again that was skipped; or a parked one, with those behind it.

    It is one transaction, in which the worker of the shard waits. If an event fails,
    nothing changes but the failure, which then has the new error.

    Args:
        handlers: of the projection.
        failure: the event that failed.
        using: the alias of the database.

    Raises:
        ProjectionBusy: its shard is gone, since the shards were cut anew.
        Exception: the exception of the handler.

    """
    try:
        with transaction.atomic(using=using):
            _replay(handlers, failure, using, includes_it=True)
    except ProjectionBusy:
        raise
    except Exception as error:
        texts = error_texts(error, None, handlers.types)
        rows = ProjectionFailure.objects.using(using).filter(pk=failure.pk)
        rows.update(
            exception=texts.exception,
            error=texts.error,
            traceback=texts.traceback,
            attempts=failure.attempts + 1,
            failed_at=clock.now(),
        )
        raise


def skip(handlers: Handlers, failure: ProjectionFailure, using: str) -> None:
    """
    Give up an event; those of a parked partition behind it are handled.

    Args:
        handlers: of the projection.
        failure: the event that failed.
        using: the alias of the database.

    Raises:
        ProjectionBusy: its shard is gone, since the shards were cut anew.
        Exception: the exception of a handler of a later event. Nothing was changed.

    """
    with transaction.atomic(using=using):
        _replay(handlers, failure, using, includes_it=False)


def _replay(
    handlers: Handlers, failure: ProjectionFailure, using: str, *, includes_it: bool
) -> None:
    """Handle the events of a failure in the open transaction, and remove it."""
    shard = _locked_shard(failure, using)
    rows = ProjectionFailure.objects.using(using).filter(pk=failure.pk)
    if not rows.select_for_update().exists():
        return  # somebody else has just done it
    first = failure.position if includes_it else failure.position + 1
    events: Sequence[Recorded]
    partition = None
    if failure.reason == PARKED:
        partition = _parked(handlers, failure, using)
        events = []
        if partition is not None:
            place = (partition.stream_id, partition.key)
            events = _events_of(handlers, place, first, shard.position, using)
    else:
        events = _event_at(handlers, failure.position, using) if includes_it else []
    _handle(handlers, shard, events, using)
    rows.delete()
    if partition is not None:
        Partition.objects.using(using).filter(pk=partition.pk).update(parked_at=None)


def _locked_shard(failure: ProjectionFailure, using: str) -> Shard:
    rows = Shard.objects.using(using).filter(generation_id=failure.generation_id)
    if not connections[using].features.has_select_for_update:
        rows.update(token=F("token"))  # a write lock, before anything is read
    found = list(rows.select_for_update().order_by("number"))
    for each in found:
        if each.number == failure.shard:
            return each
    if not found:
        msg = "The projection of this failure is no longer set up."
        raise ProjectionBusy(msg)
    return found[0]


def _parked(
    handlers: Handlers, failure: ProjectionFailure, using: str
) -> Partition | None:
    """Return the partition that waits for an event."""
    event = next(iter(_event_at(handlers, failure.position, using)), None)
    if event is None:
        return None
    stream_id, key = handlers.partition_of(event)
    rows = Partition.objects.using(using).filter(
        generation_id=failure.generation_id, stream_id=stream_id, key=key
    )
    return rows.filter(parked_at__isnull=False).first()


def _event_at(handlers: Handlers, position: int, using: str) -> list[Recorded]:
    return _read(handlers, "e.position = %s", [position], using)


def _events_of(
    handlers: Handlers, place: Place, first: int, last: int, using: str
) -> list[Recorded]:
    """Return the events of a partition that the projection handles, in order."""
    connection = connections[using]
    sql, parameters = Reach(handlers, connection).condition()
    own: list[Any] = []
    is_own = partition_sql(handlers.options, place, own)
    found = _read(
        handlers,
        f"{is_own} AND e.position >= %s AND e.position <= %s AND ({sql})",
        [*own, first, last, *parameters],
        using,
    )
    # An event may have the tag beside another one, which decides.
    return [each for each in found if handlers.partition_of(each) == place]


def _read(
    handlers: Handlers, where: str, parameters: list[Any], using: str
) -> list[Recorded]:
    decoder = decoder_of(handlers.types)
    return events_where(connections[using], where, parameters, decoder)


def _handle(
    handlers: Handlers, shard: Shard, events: Sequence[Recorded], using: str
) -> None:
    if not events:
        return
    connection = connections[using]
    stored = None if shard.state is None else json.dumps(shard.state)
    states = states_of(handlers, using, shard.generation_id, stored)
    rows = ViewRows(connection, locks=handlers.options.shards > 1)
    for start in range(0, len(events), PAGE):
        batch = EventBatch(handlers, connection, states=states, rows=rows)
        batch.handle(events[start : start + PAGE])
        batch.finish()
        shard.handled += batch.handled
    if isinstance(states, ProjectionState) and states.text is not None:
        shard.state = json.loads(states.text)
    shard.updated_at = clock.now()
    shard.save(update_fields=["state", "handled", "updated_at"])


def skip_current(handlers: Handlers, generation: Generation, using: str) -> int:
    """
    Let shards that have stopped at an event go on without it; it becomes a failure.

    Args:
        handlers: of the projection.
        generation: of the projection.
        using: the alias of the database.

    Returns:
        The number of events that were given up.

    """
    count = 0
    with transaction.atomic(using=using):
        rows = Shard.objects.using(using).filter(
            generation_id=generation.pk, failed_position__isnull=False, attempts__gt=0
        )
        for shard in rows.select_for_update().order_by("number"):
            position = shard.failed_position or 0
            event = next(iter(_event_at(handlers, position, using)), None)
            if event is None:
                continue
            summary, _, trace = shard.error.partition("\n\n")
            exception, _, error = summary.partition(": ")
            ProjectionFailure.objects.using(using).create(
                generation_id=generation.pk,
                shard=shard.number,
                position=event.position,
                event_id=event.event_id,
                name=event.name,
                reason=SKIPPED,
                exception=exception,
                error=error,
                traceback=trace,
                attempts=shard.attempts,
                failed_at=clock.now(),
            )
            shard.position = event.position
            _clear(shard)
            count += 1
    return count


def retry_current(generation: Generation, using: str) -> int:
    """
    Let shards that have stopped at an event try it again now.

    Returns:
        The number of those shards.

    """
    rows = Shard.objects.using(using).filter(
        generation_id=generation.pk, retry_at__isnull=False
    )
    return rows.update(retry_at=None)


def _clear(shard: Shard) -> None:
    shard.attempts, shard.error = 0, ""
    shard.failed_position = shard.retry_at = None
    shard.updated_at = clock.now()
    shard.save()


def refuse_unknown(keys: Sequence[int], found: Sequence[ProjectionFailure]) -> None:
    """
    Refuse keys of failures that do not exist.

    Raises:
        InvalidOption: there is one.

    """
    missing = set(keys) - {each.pk for each in found}
    if missing:
        named = ", ".join(map(str, sorted(missing)))
        msg = f"There is no failure {named} of this projection."
        raise InvalidOption(msg)
