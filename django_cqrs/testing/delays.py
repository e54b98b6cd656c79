"""Delays of messages, however they are given, as spans of time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django_cqrs import clock
from django_cqrs.channels.channel import end_of
from django_cqrs.messages import Message


def delay_of(declared: Any, message: Message) -> timedelta:
    """
    Return the time from now until a message is due; zero without a delay.

    Args:
        declared: seconds, a timedelta, a datetime, or a function of the message that
            returns one of them; None for no delay.
        message: the message.

    Raises:
        InvalidOption: it is none of them.

    """
    found: Any = declared(message) if callable(declared) else declared
    if found is None:
        return timedelta()
    now = clock.now()
    return max(end_of(found, "delay", now) - now, timedelta())
