"""The workers of a database, and the channels that none of them attends to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from django.db import DEFAULT_DB_ALIAS

from django_cqrs import clock
from django_cqrs.outbox.models import WorkerRecord
from django_cqrs.times import as_sent

__all__ = ["ALIVE", "LivingWorker", "attended_until", "living_workers"]

ALIVE: Final = timedelta(seconds=60)
"""The time since the last sign of life after which a worker counts as dead."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LivingWorker:
    """A worker that has shown a sign of life."""

    name: str
    """Its host, its process id and a number of its own."""
    channels: tuple[str, ...]
    since: datetime
    """The time of its start."""
    seen_at: datetime
    """The time of its last sign of life."""


def living_workers(using: str = DEFAULT_DB_ALIAS) -> list[LivingWorker]:
    """
    Return the living workers of a database, the oldest first, by one statement.

    Args:
        using: the alias of the database.

    """
    rows = WorkerRecord.objects.using(using).filter(
        stopped_at=None, seen_at__gt=clock.now() - ALIVE
    )
    return [
        LivingWorker(
            name=row.name,
            channels=channels_in(row.channels),
            since=as_sent(row.started_at),
            seen_at=as_sent(row.seen_at),
        )
        for row in rows.order_by("started_at", "pk")
    ]


def attended_until(using: str, channels: Iterable[str]) -> dict[str, datetime]:
    """
    Return the last sign of life of a worker in each channel, by one statement.

    Args:
        using: the alias of the database.
        channels: the aliases of the channels.

    Returns:
        The times, without channels that no worker has attended to within a day.

    """
    wanted, found = set(channels), dict[str, datetime]()
    rows = WorkerRecord.objects.using(using).values_list("channels", "seen_at")
    for text, seen_at in rows.order_by("seen_at"):
        own = wanted.intersection(channels_in(text))
        found.update(dict.fromkeys(own, as_sent(seen_at)))
    return found


def as_text(channels: Iterable[str]) -> str:
    """Return the aliases of channels as they are stored: one a line, sorted."""
    return "\n".join(sorted(set(channels)))


def channels_in(text: str) -> tuple[str, ...]:
    """Return the aliases in a stored text."""
    return tuple(text.splitlines())
