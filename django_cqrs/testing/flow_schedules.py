"""The schedules of a flow, which fire by the time that its test lets pass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from django.db.models import QuerySet

from django_cqrs import clock
from django_cqrs.buses.registries import Registry
from django_cqrs.schedules.attendant import adopt
from django_cqrs.schedules.declared import declared_in, schedules_of
from django_cqrs.schedules.firing import Firer
from django_cqrs.schedules.models import Schedule
from django_cqrs.times import as_sent


class FlowSchedules:
    """Fires the schedules of one registry in the transaction of a test."""

    def __init__(
        self, registry: Registry, using: str, report: Callable[[Exception], None]
    ) -> None:
        """
        Count the schedules from now on, as workers do that start now.

        Args:
            registry: the registry that declares them.
            using: the alias of their database.
            report: called with each exception of a schedule's functions, or of the
                sending.

        """
        self._own = schedules_of(declared_in(registry).values(), using)
        self._using = using
        self._firer = Firer(registry, using, report=report)
        if self._own:
            adopt(self._own.values(), registry, using, now=clock.now())

    def fire_due(self, now: datetime) -> None:
        """
        Send the commands that are due, those of the earliest schedules first.

        Args:
            now: the time of the test.

        """
        if not self._own:
            return
        for row in self._rows().filter(next_at__lte=now):
            schedule = self._own.get((row.name, row.tenant))
            if schedule is None:
                continue
            if row.counted_from is not None:
                self._firer.recount(schedule, row)
                row.refresh_from_db()
            if row.next_at is not None and as_sent(row.next_at) <= now:
                self._firer.fire_due(schedule, row, now)

    def next_at(self) -> datetime | None:
        """Return the time at which the next schedule is due, None without one."""
        if not self._own:
            return None
        times = (
            as_sent(row.next_at)
            for row in self._rows().filter(next_at__isnull=False)
            if (row.name, row.tenant) in self._own and row.next_at is not None
        )
        return next(times, None)

    def _rows(self) -> QuerySet[Schedule]:
        rows = Schedule.objects.using(self._using).filter(is_paused=False)
        return rows.order_by("next_at", "name", "tenant")
