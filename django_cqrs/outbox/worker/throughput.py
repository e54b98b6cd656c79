"""The work of workers, counted by the minute."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from django.db import Error
from django.db.models import F

from django_cqrs import clock
from django_cqrs.outbox.models import Throughput
from django_cqrs.outbox.store.rows import Claimed

logger: Final = logging.getLogger("django_cqrs.worker")

KEPT: Final = timedelta(days=1)
"""The time for which counts are kept."""


class ThroughputRecorder:
    """
    Counts the work of one worker, and writes the counts down now and then.

    A batch costs an addition in memory. The database sees one short statement for each
    channel in :attr:`write_time`, apart from the transactions of the messages, so that
    workers do not wait for each other. Counts that a killed worker has not written down
    are lost.
    """

    # The minimum interval between two writes, in seconds.
    write_time = 2.0

    def __init__(self, using: str) -> None:
        """Count for the database of an alias."""
        self._using = using
        self._counts: dict[tuple[datetime, str], list[int]] = {}
        self._written = time.monotonic()

    def count(self, handled: Sequence[Claimed], failed: Sequence[Claimed]) -> None:
        """Count messages that were handled, and attempts that failed."""
        if not handled and not failed:
            return
        minute = clock.now().replace(second=0, microsecond=0)
        for place, found in enumerate((handled, failed)):
            for channel, count in Counter(each.channel for each in found).items():
                self._counts.setdefault((minute, channel), [0, 0])[place] += count

    def is_due(self) -> bool:
        """Return whether there are counts, and it is time to write them."""
        return (
            bool(self._counts) and time.monotonic() - self._written >= self.write_time
        )

    def write(self) -> None:
        """
        Write the counts down.

        Raises:
            OperationalError: the database is unavailable; the counts are kept.

        """
        self._written = time.monotonic()
        for key in sorted(self._counts):
            self._add(*key, *self._counts[key])
            del self._counts[key]

    def write_at_last(self) -> None:
        """Write the counts if possible: they must not make anything fail."""
        try:
            self.write()
        except Error:
            logger.debug(
                "Counts of handled messages could not be stored", exc_info=True
            )

    def _add(self, minute: datetime, channel: str, handled: int, failed: int) -> None:
        rows = Throughput.objects.using(self._using)
        row = rows.filter(minute=minute, channel=channel)
        more = {"handled": F("handled") + handled, "failed": F("failed") + failed}
        if row.update(**more):
            return
        # The first of a minute. Another worker may be inserting it too.
        rows.bulk_create(
            [Throughput(minute=minute, channel=channel)], ignore_conflicts=True
        )
        row.update(**more)
        rows.filter(minute__lt=minute - KEPT)._raw_delete(self._using)
