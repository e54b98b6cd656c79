"""The figures of an operator: what waits in channels, what is dead, what was done."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Count, Min, Q, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_cqrs.channels import channels as all_channels
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State, Throughput

WINDOWS: Final[Mapping[str, timedelta]] = {
    "5_minutes": timedelta(minutes=5),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
"""The times for which it is said how many messages were handled."""

WAITING_SINCE: Final = Coalesce("available_at", "sent_at")
"""Since when a message could be handled: its sending, or the end of its delay."""


def is_delayed(now: datetime) -> Q:
    """Return the condition of messages whose time has not yet come."""
    return Q(state=State.DELAYED, available_at__gt=now)


def is_pending(now: datetime) -> Q:
    """
    Return the condition of messages that a worker should soon have handled.

    What is due and still marked as delayed is among them: no worker has been there.
    """
    return ~Q(state=State.PARKED) & ~is_delayed(now)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """The figures of one channel."""

    channel: str
    """Its alias."""
    pending: int = 0
    """How many messages are due, those that are being handled included."""
    oldest_seconds: float | None = None
    """For how long the oldest of those has waited; None where none does."""
    delayed: int = 0
    """How many wait for their time, or for another attempt."""
    parked: int = 0
    """How many wait behind another one of their ordering key."""
    dead: int = 0
    """How many dead letters there are."""
    handled: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many were handled, by window: see :data:`WINDOWS`."""
    failed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many attempts failed, by window."""


def statistics_of(
    using: str = DEFAULT_DB_ALIAS, channels: Collection[str] | None = None
) -> list[ChannelStatistics]:
    """
    Return the figures of channels, by three statements.

    Args:
        using: the alias of the database.
        channels: their aliases; by default all of the settings that are outboxes, and
            all that the tables speak of.

    """
    now = timezone.now()
    found: dict[str, dict[str, Any]] = {}
    for rows in (
        _waiting(OutboxMessage.objects.using(using), now),
        DeadLetter.objects.using(using).values("channel").annotate(dead=Count("pk")),
        _done(Throughput.objects.using(using), now),
    ):
        chosen = rows if channels is None else rows.filter(channel__in=channels)
        for row in chosen.order_by():
            found.setdefault(row["channel"], {}).update(row)
    names = _outboxes() if channels is None else channels
    return [
        _statistics(name, found.get(name, {}), now)
        for name in dict.fromkeys((*names, *sorted(found)))
    ]


def _outboxes() -> Iterator[str]:
    for alias in all_channels:
        with contextlib.suppress(InvalidChannel):  # that is a check's business
            if isinstance(all_channels[alias], OutboxChannel):
                yield alias


def _waiting(rows: QuerySet[OutboxMessage], now: datetime) -> QuerySet[Any, Any]:
    pending = is_pending(now)
    return rows.values("channel").annotate(
        pending=Count("pk", filter=pending),
        since=Min(WAITING_SINCE, filter=pending),
        delayed=Count("pk", filter=is_delayed(now)),
        parked=Count("pk", filter=Q(state=State.PARKED)),
    )


def _done(rows: QuerySet[Throughput], now: datetime) -> QuerySet[Any, Any]:
    sums = {
        f"{column}_{window}": Sum(column, filter=Q(minute__gt=now - span), default=0)
        for column in ("handled", "failed")
        for window, span in WINDOWS.items()
    }
    return rows.values("channel").annotate(**sums)


def _statistics(name: str, row: Mapping[str, Any], now: datetime) -> ChannelStatistics:
    since = row.get("since")
    return ChannelStatistics(
        channel=name,
        oldest_seconds=None
        if since is None
        else max(0.0, (now - since).total_seconds()),
        handled={window: row.get(f"handled_{window}", 0) for window in WINDOWS},
        failed={window: row.get(f"failed_{window}", 0) for window in WINDOWS},
        **{key: row.get(key, 0) for key in ("pending", "delayed", "parked", "dead")},
    )
