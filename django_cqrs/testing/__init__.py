"""
Helpers for the tests of a project.

Replace a dependency with :func:`override`; the conformance suites are
:mod:`django_cqrs.testing.channels` and :mod:`django_cqrs.testing.event_stores`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from django_cqrs.buses.registries import registry
from django_cqrs.channels.channel import DEFAULT_CHANNEL_ALIAS
from django_cqrs.channels.in_memory import InMemoryChannel
from django_cqrs.testing.comparison import ANYTHING, like
from django_cqrs.testing.faults import SimulatedCrash
from django_cqrs.testing.flow import Flow, eager_channels
from django_cqrs.testing.scenarios import Scenario, scenario
from django_cqrs.testing.trees import Tree

if TYPE_CHECKING:
    from django_cqrs.testing.in_memory_events import InMemoryEventStore

__all__ = [
    "ANYTHING",
    "Flow",
    "InMemoryChannel",
    "InMemoryEventStore",
    "Scenario",
    "SimulatedCrash",
    "Tree",
    "eager_channels",
    "like",
    "override",
    "run_channel",
    "scenario",
]


def __getattr__(name: str) -> Any:
    """Import the store in memory when it is used: it needs the app of events."""
    if name != "InMemoryEventStore":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module = importlib.import_module("django_cqrs.testing.in_memory_events")
    return module.InMemoryEventStore


def override(
    wanted: Any, replacement: Callable[[], Any], /
) -> AbstractContextManager[None]:
    """
    Replace a dependency of the project's handlers inside a ``with`` block.

    A registry of your own has ``registry.override()``.

    Args:
        wanted: the factory of a ``Depends``, or the class of a service.
        replacement: called without arguments; its result is used instead.

    """
    return registry.override(wanted, replacement)


def run_channel(
    alias: str = DEFAULT_CHANNEL_ALIAS, /, *, limit: int | None = None
) -> int:
    """
    Handle the due messages of a channel, and all that these send there.

    It runs in the test's own transaction, without a commit.

    Args:
        alias: the alias of the channel, such as an :class:`InMemoryChannel`.
        limit: stop after this number of messages.

    Returns:
        The number of handled messages.

    Raises:
        InvalidChannel: there is no such channel.
        TypeError: the channel cannot be run here, since it keeps no messages.
        Exception: the exception of a handler, unchanged. Its message keeps waiting.

    """
    return Flow().run(alias, limit=limit)
