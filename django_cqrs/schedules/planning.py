"""The firings of a schedule that are due, and those that stand for missed times."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import Final

from django_cqrs.schedules.declared import DeclaredSchedule

MOST: Final = 10_000
"""The maximum number of missed times that are made up for, or counted."""

_TICK: Final = timedelta(microseconds=1)
_FIRST_SPAN: Final = timedelta(hours=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Firing:
    """One command that a schedule is to send."""

    due: datetime
    """The time on its timetable."""
    missed: int = 0
    """The number of other times that were missed, and that it stands for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The due firings of a schedule, in order."""

    firings: list[Firing]
    next_at: datetime | None
    """The time of the firing after them; None if there is none."""
    is_cut: bool = False
    """Whether more than :data:`MOST` times were missed, and the oldest left out."""


def plan_of(schedule: DeclaredSchedule, since: datetime, now: datetime) -> Plan:
    """
    Return the firings that are due.

    Args:
        schedule: the schedule.
        since: the time at which the first of them was due.
        now: the present time.

    """
    times, is_cut = _times_between(schedule, since, now)
    latest = now - schedule.grace - schedule.shift
    missed = [each for each in times if each < latest]
    firings = [Firing(each) for each in times if each >= latest]
    how = schedule.options.missed
    if how == "all":
        firings = [*map(Firing, missed), *firings]
    elif how == "latest" and missed:
        if firings:
            firings[0] = Firing(firings[0].due, len(missed))
        else:
            firings = [Firing(missed[-1], len(missed) - 1)]
    return Plan(firings, schedule.next_after(now), is_cut and how != "skip")


def _times_between(
    schedule: DeclaredSchedule, since: datetime, now: datetime
) -> tuple[list[datetime], bool]:
    """Return the due times, at most the newest :data:`MOST`; and if that is not all."""
    end = now - schedule.shift

    def until_now(moment: datetime) -> Iterator[datetime]:
        return takewhile(lambda due: due <= end, schedule.times_after(moment))

    found = list(islice(until_now(since - _TICK), MOST + 1))
    if len(found) <= MOST:
        return found, False
    span = _FIRST_SPAN
    while span < now - since:
        newest = deque(until_now(now - span), maxlen=MOST)
        if len(newest) == MOST:
            return list(newest), True
        span *= 4
    return list(deque(until_now(since - _TICK), maxlen=MOST)), True
