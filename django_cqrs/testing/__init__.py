"""
What the tests of a project need.

A dependency is replaced with :func:`override`; the suite that channels must pass is
:mod:`django_cqrs.testing.channels`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from django_cqrs.buses.registries import registry
from django_cqrs.channels.channel import DEFAULT_CHANNEL_ALIAS
from django_cqrs.channels.in_memory import InMemoryChannel
from django_cqrs.testing.flow import Flow

__all__ = ["Flow", "InMemoryChannel", "override", "run_channel"]


def override(
    wanted: Any, replacement: Callable[[], Any], /
) -> AbstractContextManager[None]:
    """
    Replace a dependency of the project's handlers inside a ``with`` block.

    For a registry of one's own there is ``registry.override()``.

    Args:
        wanted: the factory of a ``Depends``, or the class of a service.
        replacement: called with nothing; what it returns is given instead.

    """
    return registry.override(wanted, replacement)


def run_channel(
    alias: str = DEFAULT_CHANNEL_ALIAS, /, *, limit: int | None = None
) -> int:
    """
    Handle what is due in a channel, and what that sends there, until nothing is.

    It is done in the test's own transaction, without a commit.

    Args:
        alias: of the channel, such as an :class:`InMemoryChannel`.
        limit: stop after so many messages.

    Returns:
        How many were handled.

    Raises:
        InvalidChannel: there is no such channel.
        TypeError: the channel keeps nothing that could be run.
        Exception: whatever a handler raises, unchanged. Its message goes on waiting.

    """
    return Flow().run(alias, limit=limit)
