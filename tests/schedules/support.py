"""What the tests of schedules share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import connections

from django_cqrs import Registry, command_handler, message
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.schedules import scheduled
from django_cqrs.schedules.attendant import SchedulesAttendant
from django_cqrs.schedules.declared import declared_in
from django_cqrs.schedules.models import Schedule
from django_cqrs.times import as_sent, read_now


@message("schedules.purge")
@dataclass(frozen=True)
class Purge:
    before: datetime


def scheduled_registry(*timetables, name="tick", key="tick", **options):
    """Return a registry with one handler on the channel "outbox", and its schedules."""

    def tick() -> None: ...

    handler = command_handler(key, name=key, channel="outbox")(tick)
    for number, timetable in enumerate(timetables):
        own = name if number == 0 else f"{name}{number}"
        handler = scheduled(timetable, name=own, **options)(handler)
    registry = Registry()
    registry.add(handler)
    return registry


def clock_of(registry, *, channels=("outbox",), using="default"):
    """Return the clock that a worker of some channels has."""
    return SchedulesAttendant().duty(registry, channels, using)


def look(registry, **options):
    """Look as a new worker does; return the seconds until it looks again."""
    return clock_of(registry, **options).look()


def now(using="default"):
    return read_now(connections[using])


def row_of(name="tick", using="default"):
    return Schedule.objects.using(using).get(name=name)


def schedule_of(registry, name="tick"):
    return declared_in(registry)[name]


def due_since(span, registry, name="tick", using="default"):
    """Let a schedule be due since the first of its times within a span of time."""
    first = schedule_of(registry, name).next_after(now(using) - span)
    Schedule.objects.using(using).filter(name=name).update(next_at=first)
    return first


def firings(using="default"):
    """Return the headers of the commands that schedules have sent, oldest first."""
    return [
        {key.removeprefix("schedule_"): value for key, value in headers.items()}
        for headers in (
            json.loads(bytes(row.headers))
            for row in OutboxMessage.objects.using(using).order_by("sequence")
        )
    ]


def dues(using="default"):
    """Return the due times of the commands that schedules have sent."""
    return [
        datetime.fromisoformat(each["due_at"]).astimezone(UTC)
        for each in firings(using)
    ]


def missed(using="default"):
    """Return how many times each of the commands stands for beside its own."""
    return [each["missed"] for each in firings(using)]


def next_of(name="tick", using="default"):
    found = row_of(name, using).next_at
    return None if found is None else as_sent(found)


SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
