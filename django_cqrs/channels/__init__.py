"""Channels: where a message waits between its sender and its handler."""

from __future__ import annotations

from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import (
    DEFAULT_CHANNEL_ALIAS,
    Channel,
    Delivery,
    Envelope,
    as_timedelta,
)
from django_cqrs.channels.immediate import ImmediateChannel
from django_cqrs.channels.in_memory import InMemoryChannel
from django_cqrs.channels.on_commit import OnCommitChannel

__all__ = [
    "DEFAULT_CHANNEL_ALIAS",
    "Channel",
    "Delivery",
    "Envelope",
    "ImmediateChannel",
    "InMemoryChannel",
    "OnCommitChannel",
    "as_timedelta",
    "channels",
]
