"""What is wrong with an outbox: for monitors, and for whoever is on duty."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any, Final, Literal

from django.db import DEFAULT_DB_ALIAS, Error
from django.db.models import Count, Min, QuerySet
from django.utils import timezone

from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.outbox.statistics import WAITING_SINCE, is_pending

logger: Final = logging.getLogger("django_cqrs.health")

LATE: Final = timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that somebody should look at."""

    kind: Literal["unreadable", "late", "dead"]
    """The database cannot be read; messages wait too long; messages are dead."""
    channel: str | None = None
    """The alias of the channel; None where it is about all of them."""
    text: str
    """One sentence, without anything of a message."""

    def __str__(self) -> str:
        """Return the sentence."""
        return self.text


def find_problems(
    *,
    using: str = DEFAULT_DB_ALIAS,
    channels: Collection[str] | None = None,
    max_age: timedelta | None = LATE,
    max_dead: int | None = 0,
) -> list[Problem]:
    """
    Return what is wrong with the outbox of a database; nothing where all is well.

    Args:
        using: the alias of the database.
        channels: the aliases of the channels that are looked at; by default all.
        max_age: how long a message may wait once it is due; None is for ever.
        max_dead: how many dead letters a channel may have; None is any number.

    Returns:
        The problems. That the database cannot be read is one of them and raises
        nothing.

    """
    try:
        return [
            *(() if max_age is None else _late(using, channels, max_age)),
            *(() if max_dead is None else _dead(using, channels, max_dead)),
        ]
    except Error as error:
        # What the driver says may name hosts and users: that is for the log alone.
        logger.warning("The outbox of %r cannot be read", using, exc_info=True)
        name = type(error).__name__
        text = f"The outbox of the database {using!r} cannot be read ({name})."
        return [Problem(kind="unreadable", text=text)]


def _late(
    using: str, channels: Collection[str] | None, max_age: timedelta
) -> Iterator[Problem]:
    now = timezone.now()
    rows = OutboxMessage.objects.using(using).filter(is_pending(now))
    late = _of(rows, channels).annotate(since=WAITING_SINCE)
    for row in (
        late.filter(since__lt=now - max_age)
        .order_by("channel")
        .values("channel")
        .annotate(count=Count("pk"), oldest=Min("since"))
    ):
        age = timedelta(seconds=int((now - row["oldest"]).total_seconds()))
        noun = "message has" if row["count"] == 1 else "messages have"
        text = (
            f"{row['count']} {noun} waited in the channel {row['channel']!r} for more "
            f"than {max_age}, the oldest for {age}."
        )
        yield Problem(kind="late", channel=row["channel"], text=text)


def _dead(
    using: str, channels: Collection[str] | None, max_dead: int
) -> Iterator[Problem]:
    letters = _of(DeadLetter.objects.using(using), channels)
    for row in (
        letters.order_by("channel")
        .values("channel")
        .annotate(count=Count("pk"))
        .filter(count__gt=max_dead)
    ):
        begin = "There is 1 dead letter"
        if row["count"] > 1:
            begin = f"There are {row['count']} dead letters"
        text = f"{begin} in the channel {row['channel']!r}."
        yield Problem(kind="dead", channel=row["channel"], text=text)


def _of(rows: Any, channels: Collection[str] | None) -> QuerySet[Any]:
    found: QuerySet[Any] = rows.all()
    return found if channels is None else found.filter(channel__in=channels)
