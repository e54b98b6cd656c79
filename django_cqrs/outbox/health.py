"""The problems of an outbox, for monitors and operators."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.models import QuerySet

from django_cqrs import clock
from django_cqrs.attendants import ProblemLimits, attendants
from django_cqrs.outbox.attendance import ALIVE, attended_until
from django_cqrs.outbox.clock_skew import clock_skew, skew_in_words
from django_cqrs.outbox.long_transactions import LONG, long_transactions
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State
from django_cqrs.outbox.pausing import paused_channels
from django_cqrs.outbox.statistics import (
    HELD,
    LOOKED,
    WAITING_SINCE,
    as_moment,
    kept_channels,
)
from django_cqrs.times import as_stored

logger: Final = logging.getLogger("django_cqrs.health")

LATE: Final = timedelta(minutes=5)

ABSENT: Final = timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem that somebody should look at."""

    kind: Literal[
        "unreadable",
        "late",
        "dead",
        "worker",
        "schedule",
        "projection",
        "transaction",
        "clock",
    ]
    """
    The database cannot be read; messages wait too long; messages are dead; no worker
    handles a channel; a schedule is overdue or fails; a projection fails, has parked
    events or is behind; a transaction is open for too long; this machine's clock is not
    the database's.
    """
    channel: str | None = None
    """The alias of the channel; None if it concerns all of them."""
    text: str
    """One sentence, without any data of messages."""

    def __str__(self) -> str:
        """Return the sentence."""
        return self.text


def find_problems(
    *,
    using: str = DEFAULT_DB_ALIAS,
    channels: Collection[str] | None = None,
    max_age: timedelta | None = LATE,
    max_dead: int | None = 0,
    max_transaction: timedelta | None = LONG,
    max_absence: timedelta | None = ABSENT,
    max_lag: timedelta | None = LATE,
    max_parked: int | None = 0,
) -> list[Problem]:
    """
    Return the problems of a database's outbox; none if all is well.

    Those of schedules and projections are among them where their apps are installed.

    The work is bounded however many messages wait: of each channel and priority the
    :data:`~django_cqrs.outbox.statistics.LOOKED` messages that are next, and as many
    dead letters. If there are more, the sentence says "at least".

    Args:
        using: the alias of the database.
        channels: the aliases of the channels to examine; by default all.
        max_age: how long a message may wait once it is due; None means no limit.
        max_dead: the number of dead letters that a channel may have; None: no limit.
        max_transaction: how long a transaction of the database may be open; None means
            no limit.
        max_absence: how long a channel may be without a worker; None means no limit. A
            channel that no worker has ever had counts from its oldest due message, and
            a paused channel does not count.
        max_lag: how long an event may wait for a projection; None means no limit.
        max_parked: the number of partitions that a projection may have parked; None
            means no limit.

    Returns:
        The problems. An unreadable database is one of them, and does not raise.

    """
    try:
        names = sorted(set(kept_channels(using) if channels is None else channels))
        return [
            *(() if max_age is None else _late(using, names, max_age)),
            *(() if max_dead is None else _dead(using, names, max_dead)),
            *(() if max_absence is None else _absent(using, names, max_absence)),
            *_of_attendants(
                using,
                channels,
                ProblemLimits(
                    max_lag=max_lag,
                    max_parked=max_parked,
                    max_transaction=max_transaction,
                ),
            ),
            *(() if max_transaction is None else _open(using, max_transaction)),
            *_apart(using),
        ]
    except Error as error:
        # The driver's text may name hosts and users, so it goes to the log only.
        logger.warning("Outbox of %r cannot be read", using, exc_info=True)
        name = type(error).__name__
        text = f"Outbox of the database {using!r} cannot be read ({name})."
        return [Problem(kind="unreadable", text=text)]


class _CheckedRange(NamedTuple):
    """Rows of a channel in one range of an index, limited in number."""

    channel: str
    rows: QuerySet[Any, Any]
    most: int


class _Tallied(NamedTuple):
    number: int = 0
    since: datetime | None = None
    is_more: bool = False
    """Whether there are more rows than were examined."""

    def and_also(self, count: int, since: datetime | None, most: int) -> _Tallied:
        moments = [each for each in (self.since, since) if each is not None]
        return _Tallied(
            self.number + count,
            min(moments, default=None),
            self.is_more or count == most,
        )


def _late(using: str, channels: Sequence[str], max_age: timedelta) -> Iterator[Problem]:
    now = clock.now()
    before = now - max_age
    ranges = list(_waiting(using, channels, before))
    for channel, found in _counted(using, ranges, before).items():
        if found.since is None:
            continue
        age = timedelta(seconds=int((now - found.since).total_seconds()))
        noun = "message has" if found.number == 1 else "messages have"
        text = (
            f"{_number(found)} {noun} waited in the channel {channel!r} for more than "
            f"{max_age}, the oldest for {age}."
        )
        yield Problem(kind="late", channel=channel, text=text)


def _waiting(
    using: str, channels: Sequence[str], before: datetime
) -> Iterator[_CheckedRange]:
    """Yield the ranges whose first rows may have waited for too long."""
    for channel in channels:
        rows = OutboxMessage.objects.filter(channel=channel)
        aged = rows.annotate(since=WAITING_SINCE).values_list("since")
        ready = aged.filter(state=State.READY).order_by("sequence")
        for priority in _priorities(using, channel):
            yield _CheckedRange(channel, ready.filter(priority=priority), LOOKED)
        for state in HELD:
            held = aged.filter(state=state).order_by("-priority", "sequence")
            yield _CheckedRange(channel, held, LOOKED)
        due = aged.filter(state=State.DELAYED, available_at__lt=before)
        yield _CheckedRange(channel, due.order_by("available_at"), LOOKED)


def _priorities(using: str, channel: str) -> Iterator[int]:
    """Yield the priorities of ready messages, each by one index look-up."""
    ready = OutboxMessage.objects.using(using).filter(
        channel=channel, state=State.READY
    )
    # Not one recursive statement: MariaDB would read all ready messages in it.
    found = ready.order_by("-priority").values_list("priority", flat=True)
    priority = found.first()
    for _ in range(_PRIORITIES):
        if priority is None:
            return
        yield priority
        priority = found.filter(priority__lt=priority).first()


def _counted(
    using: str, ranges: Sequence[_CheckedRange], before: datetime | None = None
) -> dict[str, _Tallied]:
    """
    Return the counts of each channel's ranges, many ranges in one statement.

    Args:
        using: the alias of the database.
        ranges: the ranges of the channels.
        before: counts only messages that have waited since then or longer.

    """
    connection = connections[using]
    found: dict[str, _Tallied] = {}
    for start in range(0, len(ranges), _TOGETHER):
        some = ranges[start : start + _TOGETHER]
        selects: list[str] = []
        values: list[Any] = []
        for place, each in enumerate(some):
            rows = each.rows[: each.most]
            inner, parameters = rows.query.get_compiler(using).as_sql()
            values += parameters
            if before is None:
                selects.append(f"SELECT {place}, COUNT(*), NULL FROM ({inner}) r")  # noqa: S608 - no value in it
                continue
            selects.append(
                f"SELECT {place}, COUNT(*), MIN(since) FROM ({inner}) r "  # noqa: S608 - no value in it
                f"WHERE since < %s"
            )
            values.append(as_stored(before, connection))
        with connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(selects), values)
            answers = cursor.fetchall()
        for place, count, since in answers:
            channel, _, most = some[place]
            moment = None if since is None else as_moment(since, connection)
            so_far = found.get(channel, _Tallied())
            found[channel] = so_far.and_also(count, moment, most)
    return found


def _dead(using: str, channels: Sequence[str], max_dead: int) -> Iterator[Problem]:
    letters = DeadLetter.objects.order_by()
    most = max(LOOKED, max_dead + 1)
    ranges = [
        _CheckedRange(
            channel, letters.filter(channel=channel).values_list("channel"), most
        )
        for channel in channels
    ]
    for channel, found in _counted(using, ranges).items():
        if found.number > max_dead:
            begin = "There is 1 dead letter"
            if found.number > 1:
                begin = f"There are {_number(found, 'at least')} dead letters"
            text = f"{begin} in the channel {channel!r}."
            yield Problem(kind="dead", channel=channel, text=text)


def _absent(
    using: str, channels: Sequence[str], max_absence: timedelta
) -> Iterator[Problem]:
    now = clock.now()
    before = now - max_absence
    paused = paused_channels(using)
    seen = attended_until(using, channels)
    never = [each for each in channels if each not in seen and each not in paused]
    counted = _counted(using, list(_waiting(using, never, before)), before)
    for channel in channels:
        if channel in paused:
            continue
        since = seen.get(channel) or counted.get(channel, _Tallied()).since
        if since is None or now - since <= max(max_absence, ALIVE):
            continue
        span = timedelta(seconds=int((now - since).total_seconds()))
        text = f"No worker has handled the channel {channel!r} for {span}."
        if channel not in seen:
            text = (
                f"No worker has handled the channel {channel!r} within a day; its "
                f"oldest message has waited for {span}."
            )
        yield Problem(kind="worker", channel=channel, text=text)


def _of_attendants(
    using: str, channels: Collection[str] | None, limits: ProblemLimits
) -> Iterator[Problem]:
    """Yield the problems that other apps have with some channels, None for all."""
    for attendant in attendants():
        for kind, channel, text in attendant.problems(using, limits):
            if channel is None or channels is None or channel in channels:
                yield Problem(kind=kind, channel=channel, text=text)


def _number(found: _Tallied, more: str = "At least") -> str:
    return f"{more} {found.number}" if found.is_more else str(found.number)


def _open(using: str, max_transaction: timedelta) -> Iterator[Problem]:
    for each in long_transactions(using, longer_than=max_transaction):
        text = (
            f"{each}, so that the rows of handled messages stay and slow workers down."
        )
        yield Problem(kind="transaction", text=text)


def _apart(using: str) -> Iterator[Problem]:
    text = skew_in_words(clock_skew(using))
    if text is not None:
        yield Problem(kind="clock", text=text)


# The number of priorities examined in a channel, the highest first.
_PRIORITIES: Final = 50
# The number of ranges counted by one statement.
_TOGETHER: Final = 100
