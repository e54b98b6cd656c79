"""Channels that an operator has paused: their messages wait until they are resumed."""

from __future__ import annotations

from typing import Final

from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone

from django_cqrs import clock
from django_cqrs.channels.aliases import channels
from django_cqrs.outbox.models import PausedChannel
from django_cqrs.times import as_sent

__all__ = ["pause", "paused_channels", "resume"]

REASON: Final = 255
"""The maximum number of characters that are kept of a reason or of a user's name."""


def pause(
    channel: str, *, using: str = DEFAULT_DB_ALIAS, by: str = "", reason: str = ""
) -> bool:
    """
    Pause a channel in one database: workers leave its messages alone from now on.

    Workers notice it within a second. They finish the messages that they have claimed.

    Args:
        channel: the alias of the channel.
        using: the alias of the database.
        by: the name of the user, for others to see.
        reason: the reason, for others to see.

    Returns:
        Whether it was not paused before.

    Raises:
        InvalidChannel: the settings have no such channel, so no worker handles it.

    """
    channels[channel]
    _, is_new = PausedChannel.objects.using(using).get_or_create(
        channel=channel,
        defaults={
            "paused_at": clock.now(),
            "paused_by": by[:REASON],
            "reason": reason[:REASON],
        },
    )
    return is_new


def resume(channel: str, *, using: str = DEFAULT_DB_ALIAS) -> bool:
    """
    Resume a channel: workers handle its messages again.

    Args:
        channel: the alias of the channel.
        using: the alias of the database.

    Returns:
        Whether it was paused before.

    """
    paused = PausedChannel.objects.using(using).filter(channel=channel)
    return bool(paused._raw_delete(using))


def paused_channels(using: str = DEFAULT_DB_ALIAS) -> dict[str, PausedChannel]:
    """
    Return the paused channels of a database, by their aliases.

    Args:
        using: the alias of the database.

    """
    rows = PausedChannel.objects.using(using).order_by("channel")
    return {row.channel: row for row in rows}


def described(paused: PausedChannel) -> str:
    """Return since when a channel is paused, by whom, and the reason."""
    at = timezone.localtime(as_sent(paused.paused_at))
    by = f" by {paused.paused_by}" if paused.paused_by else ""
    reason = f": {paused.reason}" if paused.reason else ""
    return f"since {at:%Y-%m-%d %H:%M:%S}{by}{reason}"
