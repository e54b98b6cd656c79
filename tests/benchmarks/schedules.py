"""Schedules: a look at many, many that are due at once, and a flow that is idle."""

from __future__ import annotations

import dataclasses

from django.db import connections
from django.test.utils import CaptureQueriesContext

from django_cqrs import Registry, command_handler
from django_cqrs.channels import channels
from django_cqrs.schedules import every, scheduled
from django_cqrs.schedules.attendant import ScheduleClock
from django_cqrs.schedules.declared import declared_in
from django_cqrs.schedules.models import Schedule
from django_cqrs.testing import Flow
from tests.benchmarks import queueing
from tests.benchmarks.measuring import Comparison, call_by_call
from tests.benchmarks.queueing import Queue, Yard
from tests.benchmarks.results import Row, compared

OURS = dataclasses.replace(queueing.OURS, name="the clock of cqrs_worker")
PEERS = (
    dataclasses.replace(queueing.PROCRASTINATE, name="procrastinate's deferrer"),
    dataclasses.replace(
        queueing.CELERY,
        key="celery",
        name="django-celery-beat's ticks, to Redis",
        package="django-celery-beat",
        module="django_celery_beat",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    schedules: int = 1_000
    rounds: int = 7
    calls: int = 100


FULL = Size()
QUICK = Size(schedules=20, rounds=1, calls=3)


def run(
    alias: str, *, quick: bool, python: str, redis: str
) -> tuple[list[Row], list[str]]:
    """Return the rows, and what is to be said about them."""
    size = QUICK if quick else FULL
    rows = [*looking(alias, size), settling(alias, size)]
    with queueing.yard(alias=alias, python=python, redis=redis) as place:
        more, notes = firing(place, size)
    said = f"Schedules: {size.rounds} rounds of {size.schedules:,} schedules."
    return [*rows, *more], [*notes, said]


def looking(alias: str, size: Size) -> list[Row]:
    """Compare a look at schedules of which none is due with the smallest statement."""
    registry = _scheduled(size.schedules)
    clock = ScheduleClock(declared_in(registry).values(), registry, alias)
    connection = connections[alias]

    def select_one() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()

    clock.look()
    with connection.cursor() as cursor:  # as autovacuum would
        cursor.execute(f"VACUUM (ANALYZE) {Schedule._meta.db_table}")
    own, base = "a look of a worker", "SELECT 1"
    comparison = call_by_call(
        {base: select_one, own: clock.look}, rounds=size.rounds, calls=size.calls
    )
    with CaptureQueriesContext(connection) as statements:
        wait = clock.look()
    Schedule.objects.using(alias).all()._raw_delete(alias)
    section = f"{size.schedules:,} schedules of which none is due"
    return [
        compared(comparison, section, own, base, bound=2),
        Row(
            section=section,
            what="statements of a worker in a second",
            value=len(statements) / wait,
            unit="",
            bound=1,
        ),
    ]


def settling(alias: str, size: Size) -> Row:
    """Compare settling an idle flow with running its channels."""
    own, base = "flow.settle()", "flow.run() of each channel"
    with Flow(registry=_scheduled(10), using=alias) as flow:
        aliases = list(channels)
        comparison = call_by_call(
            {base: lambda: flow.run(*aliases), own: flow.settle},
            rounds=size.rounds,
            calls=size.calls,
        )
    return compared(comparison, "A flow without messages", own, base, bound=1.5)


def firing(place: Yard, size: Size) -> tuple[list[Row], list[str]]:
    """Compare how long it takes to store what many schedules send at once."""
    missing = {each.key: place.missing(each) for each in PEERS}
    notes = [note for note in missing.values() if note is not None]
    peers = [each for each in PEERS if missing[each.key] is None]
    if not peers:
        return [], notes
    contestants = [OURS, *peers]
    comparison = Comparison([each.name for each in contestants])
    for turn in range(size.rounds):
        first = turn % len(contestants)
        for each in (*contestants[first:], *contestants[:first]):
            comparison.times[each.name].append(_seconds(place, each, size.schedules))
    best = min(peers, key=lambda each: comparison.seconds(each.name))
    section = f"{size.schedules:,} schedules that are due at once, each"
    rows = [compared(comparison, section, OURS.name, best.name, bound=1)]
    rows += [
        compared(comparison, section, each.name, best.name)
        for each in peers
        if each is not best
    ]
    return rows, notes


def _seconds(place: Yard, queue: Queue, count: int) -> float:
    name = place.database(queue, f"{queue.key}_scheduled")
    return float(place.do(queue, "schedules", str(count), database=name)) / count


def _scheduled(count: int) -> Registry:
    """Return a registry with so many schedules, none of which is due soon."""
    registry = Registry()
    for number in range(count):

        def tick() -> None: ...

        name = f"benchmarks.tick.{number}"
        handler = command_handler(name, name=name, channel="orders")(tick)
        registry.add(scheduled(every(days=100))(handler))
    return registry
