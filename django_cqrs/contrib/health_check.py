"""
A check of the outbox for django-health-check: ``django-cqrs-kit[health-check]``.

It calls :func:`django_cqrs.outbox.health.find_problems`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import timedelta

from django.db import DEFAULT_DB_ALIAS, connections
from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from django_cqrs.outbox.health import ABSENT, LATE, find_problems
from django_cqrs.outbox.long_transactions import LONG

__all__ = ["Outbox"]


@dataclasses.dataclass
class Outbox(HealthCheck):  # type: ignore[misc] # it has no types
    """
    Checks that nothing waits too long, and that nothing was given up.

    An unreadable database is reported as unavailable, everything else as a warning.

    Args:
        alias: the alias of the database.
        channels: the aliases of the channels to examine; by default all.
        max_age: how long a message may wait once it is due; None means no limit.
        max_dead: the number of dead letters that a channel may have; None: no limit.
        max_transaction: how long a transaction of the database may be open; None means
            no limit.
        max_absence: how long a channel may be without a worker; None means no limit.
        max_lag: how long an event may wait for a projection; None means no limit.
        max_parked: the number of partitions that a projection may have parked; None
            means no limit.

    """

    alias: str = DEFAULT_DB_ALIAS
    channels: Sequence[str] | None = None
    max_age: timedelta | None = LATE
    max_dead: int | None = 0
    max_transaction: timedelta | None = dataclasses.field(default=LONG, repr=False)
    max_absence: timedelta | None = dataclasses.field(default=ABSENT, repr=False)
    max_lag: timedelta | None = dataclasses.field(default=LATE, repr=False)
    max_parked: int | None = dataclasses.field(default=0, repr=False)

    async def run(self) -> None:
        """Raise an error for each problem found."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        connection = connections[self.alias]
        try:
            problems = find_problems(
                using=self.alias,
                channels=self.channels,
                max_age=self.max_age,
                max_dead=self.max_dead,
                max_transaction=self.max_transaction,
                max_absence=self.max_absence,
                max_lag=self.max_lag,
                max_parked=self.max_parked,
            )
        finally:
            connection.close()  # Django does not clean up after this thread
        if not problems:
            return
        is_away = any(each.kind == "unreadable" for each in problems)
        error = ServiceUnavailable if is_away else ServiceWarning
        raise error(" ".join(map(str, problems)))
