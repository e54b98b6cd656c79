"""Figures for operators: waiting and dead messages, and those done, by channel."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Q, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce

from django_cqrs import clock
from django_cqrs.channels.aliases import channels as all_channels
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State, Throughput
from django_cqrs.times import MomentField, as_read

WINDOWS: Final[Mapping[str, timedelta]] = {
    "5_minutes": timedelta(minutes=5),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
"""The times for which the number of handled messages is given."""

LOOKED: Final = 1_000
"""The number of messages among which the oldest is sought if counting is bounded."""

HELD: Final = State.CLAIMED, State.ABANDONED, State.FORWARDED
"""The states of messages that have, or had, an owner."""

WAITING_SINCE: Final = Coalesce("available_at", "sent_at")
"""The time since which a message could be handled: sending, or end of its delay."""


def is_delayed(now: datetime) -> Q:
    """Return the condition for messages whose time has not yet come."""
    return Q(state=State.DELAYED, available_at__gt=now)


def is_pending(now: datetime) -> Q:
    """
    Return the condition for messages that a worker should soon have handled.

    It includes due messages that are still marked as delayed: no worker has seen them.
    """
    is_due = Q(state=State.DELAYED, available_at__lte=now)
    return Q(state__in=(State.READY, *HELD)) | is_due


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """The figures of one channel."""

    channel: str
    """Its alias."""
    pending: int = 0
    """The number of due messages, including those that are being handled."""
    oldest_seconds: float | None = None
    """How long the oldest of those has waited; None if none waits."""
    delayed: int = 0
    """The number of messages that wait for their time, or for another attempt."""
    parked: int = 0
    """The number of messages that wait behind another one of their ordering key."""
    dead: int = 0
    """The number of dead letters."""
    handled: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The number of handled messages in each of the :data:`WINDOWS`."""
    failed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The number of failed attempts in each of them."""


def statistics_of(
    using: str = DEFAULT_DB_ALIAS,
    channels: Collection[str] | None = None,
    *,
    at_most: int | None = None,
    tenant: str | None = None,
) -> list[ChannelStatistics]:
    """
    Return the figures of channels, by three statements.

    Args:
        using: the alias of the database.
        channels: their aliases; by default all outboxes in the settings, and all
            channels in the tables.
        at_most: where counting stops, for a page that must be quick however much waits:
            a figure of this value means "so many or more". The oldest message is then
            sought among the first :data:`LOOKED` of the highest priority, and of the
            lowest. None counts everything.
        tenant: the tenant whose messages are counted; handled ones are counted for all
            tenants together, and then not at all. None means everybody.

    """
    now = clock.now()
    chosen = tuple(dict.fromkeys(outboxes() if channels is None else channels))
    if channels is None:
        others = set(kept_channels(using)).difference(chosen)
        chosen += tuple(sorted(others))
    counted = _counted(using, chosen, now, at_most, tenant)
    if tenant is not None:
        return [_waiting(name, counted.get(name, {}), now) for name in chosen]
    done = _done(Throughput.objects.using(using), now)
    if channels is not None:
        done = done.filter(channel__in=channels)
    sums = {row["channel"]: row for row in done.order_by()}
    return [
        _statistics(name, counted.get(name, {}), sums.get(name, {}), now)
        for name in (*chosen, *sorted(set(sums).difference(chosen)))
    ]


def outboxes() -> Iterator[str]:
    """Yield the aliases of all outboxes in the settings, in their order."""
    for alias in all_channels:
        with contextlib.suppress(InvalidChannel):  # a check reports it
            if isinstance(all_channels[alias], OutboxChannel):
                yield alias


def kept_channels(using: str) -> Iterator[str]:
    """Yield the channels of rows, each by one look-up in an index."""
    connection = connections[using]
    if connection.vendor == "mysql":
        # In a recursive walk it searches the whole table for the next channel; DISTINCT
        # goes from one channel to the next in the index. Until the server has renewed
        # its statistics after a bulk of inserts, it may read the whole index.
        selects = (
            f"SELECT DISTINCT channel FROM {connection.ops.quote_name(name)}"  # noqa: S608 - no value in it
            for name in (OutboxMessage._meta.db_table, DeadLetter._meta.db_table)
        )
        with connection.cursor() as cursor:
            cursor.execute(" UNION ".join(selects))
            yield from (name for (name,) in cursor.fetchall())
        return
    walks: list[str] = []
    columns: list[str] = []
    for model in (OutboxMessage, DeadLetter):
        name = f"walk{len(walks)}"
        table = connection.ops.quote_name(model._meta.db_table)
        first = f"SELECT MIN(channel) FROM {table}"  # noqa: S608 - no value in it
        after = f"{first} WHERE channel > {name}.channel"
        more = f"SELECT ({after}) FROM {name} WHERE {name}.channel IS NOT NULL"  # noqa: S608
        walks.append(f"{name} (channel) AS ({first} UNION ALL {more})")
        columns.append(f"SELECT channel FROM {name}")  # noqa: S608
    statement = f"WITH RECURSIVE {', '.join(walks)} {' UNION '.join(columns)}"
    with connection.cursor() as cursor:
        cursor.execute(statement)
        yield from (name for (name,) in cursor.fetchall() if name is not None)


def _counted(
    using: str,
    channels: Sequence[str],
    now: datetime,
    at_most: int | None,
    tenant: str | None,
) -> dict[str, dict[str, Any]]:
    """Return the counts of channels, and the waiting time of the first message."""
    connection = connections[using]
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(channels), _TOGETHER):
        ranges = [
            (channel, each)
            for channel in channels[start : start + _TOGETHER]
            for each in _ranges(channel, now, at_most, tenant)
        ]
        selects: list[str] = []
        values: list[Any] = []
        for place, (_, each) in enumerate(ranges):
            inner, parameters = each.rows.query.get_compiler(using).as_sql()
            since = "MIN(since)" if each.is_aged else "NULL"
            selects.append(f"SELECT {place}, COUNT(*), {since} FROM ({inner}) r")  # noqa: S608 - no value in it
            values += parameters
        with connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(selects), values)
            answers = cursor.fetchall()
        for place, count, since in answers:
            channel, each = ranges[place]
            figures = found.setdefault(channel, {})
            if each.figure is not None:
                total = figures.get(each.figure, 0) + count
                figures[each.figure] = min(total, at_most or total)
            if since is not None:
                moment = as_moment(since, connection)
                figures["since"] = min(figures.get("since", moment), moment)
    return found


class _Range(NamedTuple):
    """Rows of a channel in one range of an index."""

    figure: str | None
    """The figure that they count towards."""
    rows: QuerySet[Any, Any]
    is_aged: bool = False
    """Whether their waiting time matters."""


def _ranges(
    channel: str, now: datetime, at_most: int | None, tenant: str | None
) -> Iterator[_Range]:
    """Yield the ranges that are counted of a channel; the first one has an age."""
    rows = OutboxMessage.objects.filter(channel=channel).order_by()
    letters = DeadLetter.objects.filter(channel=channel).order_by()
    if tenant is not None:
        rows, letters = rows.filter(tenant=tenant), letters.filter(tenant=tenant)
    aged = rows.annotate(since=WAITING_SINCE).values_list("since")
    ready = aged.filter(state=State.READY)
    held = aged.filter(state__in=HELD)
    delayed = rows.filter(state=State.DELAYED)
    due = aged.filter(state=State.DELAYED, available_at__lte=now)
    if at_most is None:
        for pending in (ready, held, due):
            yield _Range("pending", pending, is_aged=True)
    else:
        lowest = rows.filter(state=State.READY).order_by("priority")
        last = ready.filter(priority=Subquery(lowest.values("priority")[:1]))
        for first in (
            ready.order_by("-priority", "sequence"),
            last.order_by("sequence"),
            held,
            due.order_by("available_at"),
        ):
            yield _Range(None, first[: min(at_most, LOOKED)], is_aged=True)
        for pending in (ready, held, due):  # by the index alone
            yield _Range("pending", pending.values_list("channel")[:at_most])
    for figure, others in (
        ("delayed", delayed.filter(available_at__gt=now)),
        ("parked", rows.filter(state=State.PARKED)),
        ("dead", letters),
    ):
        found: QuerySet[Any] = others
        yield _Range(figure, found.values_list("channel")[:at_most])


def as_moment(value: Any, connection: BaseDatabaseWrapper) -> datetime:
    """Return a time that a plain statement has read, with its zone."""
    expression = Value(None, output_field=MomentField())
    for convert in connection.ops.get_db_converters(expression):
        value = convert(value, expression, connection)
    return as_read(value, connection)


def _done(rows: QuerySet[Throughput], now: datetime) -> QuerySet[Any, Any]:
    sums = {
        f"{column}_{window}": Sum(column, filter=Q(minute__gt=now - span), default=0)
        for column in ("handled", "failed")
        for window, span in WINDOWS.items()
    }
    return rows.values("channel").annotate(**sums)


def _statistics(
    name: str, figures: Mapping[str, Any], done: Mapping[str, Any], now: datetime
) -> ChannelStatistics:
    return dataclasses.replace(
        _waiting(name, figures, now),
        handled={window: done.get(f"handled_{window}", 0) for window in WINDOWS},
        failed={window: done.get(f"failed_{window}", 0) for window in WINDOWS},
    )


def _waiting(name: str, figures: Mapping[str, Any], now: datetime) -> ChannelStatistics:
    """Return the figures of a channel, except those of handled messages."""
    since = figures.get("since")
    return ChannelStatistics(
        channel=name,
        oldest_seconds=None
        if since is None
        else max(0.0, (now - since).total_seconds()),
        **{key: figures.get(key, 0) for key in COUNTS},
    )


COUNTS: Final = "pending", "delayed", "parked", "dead"
# The number of channels in one statement: each needs ten selects.
_TOGETHER: Final = 20
