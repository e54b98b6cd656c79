"""The part of schedules in workers, health checks and ``cqrs_prune``."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connections, router

from django_cqrs.attendants import (
    AttendantProblem,
    Duty,
    Expired,
    Figures,
    ProblemLimits,
)
from django_cqrs.buses import registries
from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import UnknownTenant
from django_cqrs.logged_errors import loggable
from django_cqrs.schedules.declared import (
    DeclaredSchedule,
    declared_in,
    keys_of,
    schedules_of,
)
from django_cqrs.schedules.firing import Firer
from django_cqrs.schedules.models import Schedule
from django_cqrs.times import TimeFromNow, as_sent, from_now, read_now

logger: Final = logging.getLogger("django_cqrs.schedules")

LOOK: Final = timedelta(seconds=5)
"""The longest time between two looks: a resumed schedule is noticed within it."""

OVERDUE: Final = timedelta(minutes=1)
"""The delay after which a worker fires a schedule that another code has counted."""

LATE: Final = timedelta(minutes=5)
"""The delay from which on a schedule is a problem."""

TENANTS_ASKED: Final = timedelta(seconds=30)
"""The time after which a worker asks again which tenants there are."""

KEPT: Final = timedelta(days=30)
"""The time for which the row of a schedule is kept that no code declares."""

_SECOND: Final = timedelta(seconds=1)
_TOGETHER: Final = 500
"""The maximum number of rows that one statement names."""


class ScheduleClock:
    """Fires the schedules of a worker's channels: one statement in each look."""

    def __init__(
        self, schedules: Collection[DeclaredSchedule], subject: Registry, using: str
    ) -> None:
        """
        Take the schedules.

        Args:
            schedules: those that this worker fires.
            subject: the registry that declares them.
            using: the alias of their database.

        """
        self._schedules = list(schedules)
        self._registry = subject
        self._using = using
        self._firer = Firer(subject, using)
        self._own: dict[tuple[str, str], DeclaredSchedule] = {}
        self._is_known = False
        self._asks_tenants = any(each.options.each_tenant for each in schedules)
        self._asked = 0.0

    def look(self) -> float:
        """Fire what is due; return the seconds until something is due, or changed."""
        began = time.monotonic()
        if not self._is_known or (
            self._asks_tenants and began - self._asked >= TENANTS_ASKED.total_seconds()
        ):
            self._know(began)
        wait = LOOK
        # Nearly every look finds nothing: the ORM would take longer than the database.
        found = due_rows(self._using, LOOK) if _is_any_due(self._using, LOOK) else []
        for row, now in found:
            left = self._attend(row, now + timedelta(seconds=time.monotonic() - began))
            wait = min(wait, left)
        return max(0.0, wait.total_seconds() - (time.monotonic() - began))

    def _know(self, now: float) -> None:
        """Find the schedules in this database, of all tenants that are there now."""
        self._asked = now
        try:
            found = schedules_of(self._schedules, self._using)
        except Exception as error:
            if not self._is_known:
                raise
            logger.error(  # noqa: TRY400 - without what may be secret
                "The tenants could not be listed; those that are known are served",
                exc_info=loggable(error),
            )
            return
        if not self._is_known or found.keys() != self._own.keys():
            adopt(found.values(), self._registry, self._using)
        self._own, self._is_known = found, True

    def _attend(self, row: Schedule, now: datetime) -> timedelta:
        """Fire one schedule if it is due; return the time until it is."""
        schedule = self._own.get((row.name, row.tenant))
        if schedule is None or row.next_at is None:  # of another worker, or of no code
            return LOOK
        left = as_sent(row.next_at) - now
        is_counted = row.fingerprint == schedule.fingerprint
        if left > timedelta() or (not is_counted and -left < OVERDUE):
            return left if is_counted and left > timedelta() else LOOK
        try:
            if row.counted_from is not None:
                next_at = self._firer.recount(schedule, row)
            else:
                next_at = self._firer.fire_due(schedule, row, now)
        except UnknownTenant:  # it has left, and the next list is without it
            return LOOK
        return LOOK if next_at is None else next_at - now


def _is_any_due(using: str, ahead: timedelta) -> bool:
    """Return whether a schedule is due now or soon."""
    connection = connections[using]
    moment, parameter = from_now(connection, ahead)
    table = connection.ops.quote_name(Schedule._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT 1 FROM {table} "  # noqa: S608 - the parameter is one
            f"WHERE NOT is_paused AND next_at <= {moment} LIMIT 1",
            [parameter],
        )
        return cursor.fetchone() is not None


def due_rows(using: str, ahead: timedelta) -> list[tuple[Schedule, datetime]]:
    """
    Return the rows that are due now or soon, each with the present time.

    Their order is random, so that workers do not compete for one after another.

    Args:
        using: the alias of the database.
        ahead: how soon.

    """
    rows = Schedule.objects.using(using).filter(
        is_paused=False, next_at__lte=TimeFromNow(ahead)
    )
    dated: Any = rows.annotate(now=TimeFromNow())
    found = [(row, as_sent(row.now)) for row in dated]
    random.shuffle(found)
    return found


def adopt(
    schedules: Collection[DeclaredSchedule],
    subject: Registry,
    using: str,
    *,
    now: datetime | None = None,
) -> None:
    """
    Bring the rows of a worker's schedules in line with its code.

    New ones, and those with another timetable, wait for their next time from now on. A
    schedule that was renamed keeps its row. One that no code declares is marked.

    Args:
        schedules: the schedules that the worker fires.
        subject: the registry of the worker, which may declare more.
        using: the alias of the database.
        now: the present time, by default that of the database.

    """
    table = Schedule.objects.using(using)
    now = now or read_now(connections[using])
    rows = {(row.name, row.tenant): row for row in table.all()}
    declared = declared_in(subject)
    new: list[Schedule] = []
    for schedule in schedules:
        row = rows.get(schedule.key) or _renamed(schedule, rows, declared, using)
        if row is None:
            new.append(_row_of(schedule, now))
        elif row.fingerprint != schedule.fingerprint:
            table.filter(pk=row.pk, fingerprint=row.fingerprint).update(
                fingerprint=schedule.fingerprint,
                next_at=schedule.next_after(now),
                counted_from=None,
                vanished_at=None,
            )
        elif row.vanished_at is not None:
            table.filter(pk=row.pk).update(vanished_at=None)
    table.bulk_create(new, ignore_conflicts=True)
    _mark(rows.values(), keys_of(declared, using), now, using)


def _row_of(schedule: DeclaredSchedule, now: datetime) -> Schedule:
    return Schedule(
        name=schedule.name,
        tenant=schedule.tenant,
        fingerprint=schedule.fingerprint,
        next_at=schedule.next_after(now),
    )


def _renamed(
    schedule: DeclaredSchedule,
    rows: dict[tuple[str, str], Schedule],
    declared: Collection[str],
    using: str,
) -> Schedule | None:
    """Give the row of a former name the present one; return it, None without one."""
    for alias in schedule.options.aliases:
        row = rows.get((alias, schedule.tenant))
        if row is None or alias in declared:
            continue
        if row.next_at is not None:  # `spread=` goes by the name
            moved = schedule.shift - schedule.shift_of(alias)
            row.next_at = as_sent(row.next_at) + moved
        own = Schedule.objects.using(using).filter(pk=row.pk, name=alias)
        own.update(name=schedule.name, next_at=row.next_at, vanished_at=None)
        row.name, row.vanished_at = schedule.name, None
        return row
    return None


def _mark(
    rows: Collection[Schedule],
    declared: Collection[tuple[str, str]],
    now: datetime,
    using: str,
) -> None:
    """Note since when no code declares a schedule."""
    keys = [
        row.pk
        for row in rows
        if (row.name, row.tenant) not in declared and row.vanished_at is None
    ]
    table = Schedule.objects.using(using)
    for start in range(0, len(keys), _TOGETHER):
        some = table.filter(pk__in=keys[start : start + _TOGETHER])
        some.update(vanished_at=now)


class SchedulesAttendant:
    """Offers the clock to workers, and tells the problems of schedules."""

    def duty(
        self, registry: Registry, channels: Collection[str], using: str
    ) -> Duty | None:
        """Return the clock for the schedules of some channels, if there are any."""
        own = [
            schedule
            for schedule in declared_in(registry).values()
            if schedule.channel in channels
            and (schedule.options.each_tenant or schedule.using == using)
        ]
        return ScheduleClock(own, registry, using) if own else None

    def figures(self, using: str, channels: Collection[str] | None) -> Figures | None:
        """Return nothing: ``cqrs_schedules list`` shows them."""

    def problems(self, using: str, limits: ProblemLimits) -> Iterator[AttendantProblem]:
        """Yield the schedules that are overdue, and those that fail."""
        declared = declared_in(registries.registry)
        if not declared or not router.allow_migrate_model(using, Schedule):
            return
        rows = Schedule.objects.using(using).filter(is_paused=False)
        now = read_now(connections[using])
        own = schedules_of(declared.values(), using)
        for row in rows.order_by("name", "tenant"):
            schedule = own.get((row.name, row.tenant))
            if schedule is None:
                continue
            name = f"The schedule {row.name!r}"
            if row.tenant:
                name += f" of tenant {row.tenant!r}"
            if row.next_at is not None and now - as_sent(row.next_at) > LATE:
                span = (now - as_sent(row.next_at)) // _SECOND * _SECOND
                text = (
                    f"{name} has been due for {span}, and no worker "
                    f"of the channel {schedule.channel!r} has sent its command."
                )
                yield AttendantProblem("schedule", schedule.channel, text)
            if row.failures:
                times = f"{row.failures} times in a row"
                if row.failures == 1:
                    times = "once"
                text = f"{name} has failed {times}."
                yield AttendantProblem("schedule", schedule.channel, text)

    def prune(self, using: str, *, dry_run: bool) -> Iterator[Expired]:
        """Delete the rows of schedules that no code has declared for 30 days."""
        if not router.allow_migrate_model(using, Schedule):
            return
        declared = keys_of(declared_in(registries.registry), using)
        table = Schedule.objects.using(using)
        now = read_now(connections[using])
        before = now - KEPT
        if not dry_run:
            _mark(table.all(), declared, now, using)
        keys = [
            row.pk
            for row in table.filter(vanished_at__lt=before)
            if (row.name, row.tenant) not in declared
        ]
        for start in range(0, 0 if dry_run else len(keys), _TOGETHER):
            table.filter(pk__in=keys[start : start + _TOGETHER])._raw_delete(using)
        if keys:
            yield Expired(Schedule, before, len(keys))
