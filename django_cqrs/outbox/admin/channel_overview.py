"""An overview of channels: the figures of each, and the lists that they count."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode

from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.functional import Promise
from django.utils.timesince import timesince
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from django_cqrs.outbox.statistics import ChannelStatistics

QUIET: Final = 60
"""The seconds after which a due message has waited for too long."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One number of a channel."""

    label: str | Promise
    text: str
    address: str = ""
    """The address of the list that it counts; empty if there is none."""
    is_bad: bool = False
    """Whether somebody should look at it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelFigures:
    """One channel."""

    channel: str
    figures: list[Figure]


def glance(
    statistics: Collection[ChannelStatistics],
    *,
    messages: str,
    letters: str,
    at_most: int,
    database: str = "",
) -> list[ChannelFigures]:
    """
    Return the figures of channels for the page of channels.

    Args:
        statistics: the statistics of the channels.
        messages: the address of the list of messages; empty if it must not be seen, and
            then none of its figures is returned.
        letters: the address of the list of dead letters, likewise.
        at_most: the number at which counting has stopped.
        database: the alias that the lists are for; empty for the usual one.

    """
    rows = []
    of_database = {"database": database} if database else {}
    for each in statistics:
        figures: list[Figure] = []
        if messages:
            figures += _waiting(each, messages, at_most, of_database)
        if letters:
            filters = {"channel": each.channel, **of_database}
            found = _address(letters, each.dead, **filters)
            text = _count(each.dead, at_most)
            figures.append(Figure(_("Dead"), text, found, is_bad=each.dead > 0))
        if messages:
            done, failed = each.handled.get("hour", 0), each.failed.get("hour", 0)
            figures.append(Figure(_("Handled, last hour"), number_format(done)))
            figures.append(Figure(_("Failed, last hour"), number_format(failed)))
        rows.append(ChannelFigures(each.channel, figures))
    return rows


@dataclasses.dataclass(frozen=True, slots=True)
class Idle:
    """A channel with waiting messages and no handled ones."""

    channel: str
    command: str
    """The command that handles its messages."""


def idle_channels(statistics: Collection[ChannelStatistics], using: str) -> list[Idle]:
    """
    Return the channels that seem to have no worker.

    Args:
        statistics: the statistics of the channels.
        using: the alias of their database.

    """
    database = "" if using == DEFAULT_DB_ALIAS else f" --database {using}"
    return [
        Idle(each.channel, f"python manage.py cqrs_worker {each.channel}{database}")
        for each in statistics
        if (each.oldest_seconds or 0) >= QUIET and not each.handled.get("5_minutes")
    ]


def _waiting(
    each: ChannelStatistics, messages: str, at_most: int, more: Mapping[str, str]
) -> list[Figure]:
    def figure(label: str | Promise, count: int, standing: str) -> Figure:
        found = _address(
            messages, count, channel=each.channel, standing=standing, **more
        )
        return Figure(label, _count(count, at_most), found)

    oldest = "-" if each.oldest_seconds is None else _span(each.oldest_seconds)
    return [
        figure(_("Pending"), each.pending, "pending"),
        Figure(_("Oldest"), oldest),
        figure(_("Delayed"), each.delayed, "delayed"),
        figure(_("Parked"), each.parked, "parked"),
    ]


def _address(changelist: str, count: int, **filters: str) -> str:
    return f"{changelist}?{urlencode(filters)}" if count else ""


def _count(count: int, at_most: int) -> str:
    text = number_format(count)
    return f"{text}+" if count >= at_most else text


def _span(seconds: float) -> str:
    """Return a time in words, in one or two units."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        count = int(seconds)
        return ngettext("%(count)d second", "%(count)d seconds", count) % {
            "count": count
        }
    now = timezone.now()
    return timesince(now - timedelta(seconds=seconds), now)
