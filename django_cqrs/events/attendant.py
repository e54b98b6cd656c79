"""The part of projections in ``cqrs_stats`` and in health checks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any, Final

from django.db import router

from django_cqrs.attendants import (
    AttendantProblem,
    Duty,
    Expired,
    Figures,
    ProblemLimits,
)
from django_cqrs.buses.registries import Registry
from django_cqrs.events.models import Status, StoredEvent
from django_cqrs.events.operations import Projections
from django_cqrs.events.settling import Blocker
from django_cqrs.events.status import (
    MOST_COUNTED,
    ProjectionStatus,
    StoreStatus,
    store_status,
)

_SECOND: Final = timedelta(seconds=1)


class EventsAttendant:
    """Shows how far projections have come, and tells their problems."""

    def duty(
        self, registry: Registry, channels: Collection[str], using: str
    ) -> Duty | None:
        """Return nothing: a worker runs projections as its jobs."""

    def prune(self, using: str, *, dry_run: bool) -> Iterator[Expired]:
        """Yield nothing: events are kept."""
        yield from ()

    def figures(self, using: str, channels: Collection[str] | None) -> Figures | None:
        """Return the progress of projections, and what holds them back."""
        if not router.allow_migrate_model(using, StoredEvent):
            return None
        found = [
            each
            for each in Projections(using).statuses()
            if channels is None or each.channel in channels
        ]
        if not found:
            return None
        store = store_status(using)
        return Figures(
            headings=_HEADINGS,
            rows=[_row(each) for each in found],
            notes=list(_notes(store)),
            documents={
                "projections": [_document(each) for each in found],
                "events": {
                    "head": store.head,
                    "settled": store.settled,
                    "settled_age": store.settled_age,
                    "held_back_by": [_blocker(each) for each in store.blockers],
                },
            },
        )

    def problems(self, using: str, limits: ProblemLimits) -> Iterator[AttendantProblem]:
        """Yield the projections that fail or are behind, and who holds them back."""
        if not router.allow_migrate_model(using, StoredEvent):
            return
        found = Projections(using).statuses()
        for each in found:
            for text in _problems_of(each, limits):
                yield AttendantProblem("projection", each.channel, text)
        if limits.max_transaction is None or not found:  # nobody waits for it
            return
        for blocker in store_status(using).blockers:
            if blocker.age is not None and blocker.age > limits.max_transaction:
                yield AttendantProblem("transaction", None, _said(blocker))


def _problems_of(each: ProjectionStatus, limits: ProblemLimits) -> Iterator[str]:
    name = f"The projection {each.name!r}"
    if each.status == Status.FAILED:
        failed = [shard for shard in each.shards if shard.error and shard.attempts]
        shard = max(failed, key=lambda each: each.attempts)
        times = "once" if shard.attempts == 1 else f"{shard.attempts} times in a row"
        place = ""
        if shard.failed_position is not None:
            place = f" with the event at position {shard.failed_position}"
        yield f"{name} has failed {times}{place}."
    if limits.max_parked is not None and each.parked > limits.max_parked:
        noun = "1 partition" if each.parked == 1 else f"{each.parked} partitions"
        yield f"{name} has parked {noun}."
    is_late = (
        limits.max_lag is not None
        and each.channel is not None
        and each.status != Status.PAUSED
        and each.lag_seconds > limits.max_lag.total_seconds()
    )
    if is_late:
        noun = "1 event" if each.lag == 1 else f"{_number(each)} events"
        span = timedelta(seconds=int(each.lag_seconds))
        yield f"{name} is behind by {noun}, the oldest of which has waited for {span}."


def _number(each: ProjectionStatus) -> str:
    return f"at least {each.lag}" if each.lag >= MOST_COUNTED else str(each.lag)


def _said(blocker: Blocker) -> str:
    who = "A prepared transaction"
    if blocker.session is not None:
        who = f"The transaction of session {blocker.session}"
    span = ""
    if blocker.age is not None:
        span = f" for {blocker.age // _SECOND * _SECOND}"
    return (
        f"{who} has appended events and has been open{span}, so that projections wait "
        f"at position {blocker.floor}."
    )


_HEADINGS: Final = (
    "Projection",
    "Status",
    "Position",
    "Behind",
    "Oldest",
    "Parked",
    "Failures",
)


def _row(each: ProjectionStatus) -> tuple[Any, ...]:
    return (
        each.name,
        each.status,
        "" if each.position is None else each.position,
        f"{each.lag}{'+' if each.lag >= MOST_COUNTED else ''}",
        str(timedelta(seconds=int(each.lag_seconds))) if each.lag else "",
        each.parked,
        each.failures,
    )


def _notes(store: StoreStatus) -> Iterator[str]:
    if store.settled < store.head:
        yield f"Events are settled up to position {store.settled} of {store.head}."
    for each in store.blockers:
        yield _said(each)


def _document(each: ProjectionStatus) -> dict[str, Any]:
    return {
        "name": each.name,
        "status": each.status,
        "channel": each.channel,
        "position": each.position,
        "lag": each.lag,
        "lag_seconds": each.lag_seconds,
        "parked": each.parked,
        "failures": each.failures,
    }


def _blocker(each: Blocker) -> dict[str, Any]:
    return {
        "session": each.session,
        "seconds": None if each.age is None else each.age.total_seconds(),
        "position": each.floor,
    }
