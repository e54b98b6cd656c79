"""A worker's row in the table of workers: its signs of life."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from django.db import Error
from django.db.models import Q

from django_cqrs import clock
from django_cqrs.outbox.attendance import ALIVE, as_text
from django_cqrs.outbox.models import WorkerRecord

logger: Final = logging.getLogger("django_cqrs.worker")

KEPT: Final = timedelta(days=1)
"""The time for which the row of a worker that has ended is kept."""


class Presence:
    """
    Shows that a worker lives: one statement in :attr:`beat_time`, and no more.

    The row of a worker that has ended says since when nobody attends to its channels.
    The next worker of the same channels deletes it, and any worker does after a day.
    """

    # The interval between two signs of life, in seconds: a third of the time after
    # which a worker counts as dead.
    beat_time = ALIVE.total_seconds() / 3
    # The interval in which old rows are deleted.
    sweep_time = 3600.0

    def __init__(self, name: str, channels: Sequence[str], using: str) -> None:
        """
        Show the presence of a worker.

        Args:
            name: its name, which no other one has.
            channels: the aliases of its channels.
            using: the alias of the database.

        """
        self._name = name
        self._channels = as_text(channels)
        self._using = using
        self._beat: float | None = None
        self._swept: float | None = None

    def is_due(self) -> bool:
        """Return whether it is time for the next sign of life."""
        return self._beat is None or time.monotonic() - self._beat >= self.beat_time

    def is_overdue(self) -> bool:
        """Return whether the worker is too busy to give the next sign of life."""
        beat = self._beat
        return beat is not None and time.monotonic() - beat >= self.beat_time * 1.5

    def beat(self) -> None:
        """
        Give a sign of life; at first, introduce the worker.

        Raises:
            DatabaseError: the database is unavailable, or the table is missing.

        """
        is_first, self._beat = self._beat is None, time.monotonic()
        now, rows = clock.now(), WorkerRecord.objects.using(self._using)
        own = rows.filter(name=self._name)
        if is_first or not own.update(seen_at=now):
            row = WorkerRecord(
                name=self._name,
                channels=self._channels,
                started_at=now,
                seen_at=now,
            )
            rows.bulk_create([row], ignore_conflicts=True)
            is_over = Q(stopped_at__isnull=False) | Q(seen_at__lt=now - 2 * ALIVE)
            rows.filter(is_over, channels=self._channels).delete()
        if self._swept is None or self._beat - self._swept >= self.sweep_time:
            self._swept = self._beat
            rows.filter(seen_at__lt=now - KEPT)._raw_delete(self._using)

    def end(self) -> None:
        """Note the end of the worker if possible: it must not make anything fail."""
        if self._beat is None:
            return
        now, rows = clock.now(), WorkerRecord.objects.using(self._using)
        try:
            rows.filter(name=self._name).update(seen_at=now, stopped_at=now)
        except Error:
            logger.debug("The end of the worker could not be stored", exc_info=True)
