"""Django signals of the buses. They report events; they do not route anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.dispatch import Signal

__all__ = [
    "batch_finished",
    "batch_started",
    "message_failed",
    "message_handled",
    "tenant_activated",
    "tenant_deactivated",
    "worker_started",
    "worker_stopped",
]

on_change: list[Callable[[], None]] = []
"""Called when receivers come and go: without any, signals cost nothing."""


class BusSignal(Signal):
    """A signal whose sending is only compiled in if it has receivers."""

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect a receiver, as Django's signals do."""
        super().connect(*args, **kwargs)
        tell_change()

    def disconnect(self, *args: Any, **kwargs: Any) -> bool:
        """Disconnect a receiver, as Django's signals do."""
        was_connected = super().disconnect(*args, **kwargs)
        tell_change()
        return was_connected


def tell_change() -> None:
    """Discard compiled runs, since receivers have come or gone."""
    for callback in on_change:
        callback()


message_handled: BusSignal = BusSignal()
"""
Sent after a handler has returned, and its own transaction, if any, has succeeded.

Arguments: ``sender`` (the bus's class), ``message``, ``endpoint`` (its name) and
``duration`` in seconds. A receiver's exception is logged and changes nothing.
"""

message_failed: BusSignal = BusSignal()
"""
Sent after a handler has raised. The exception propagates all the same.

Arguments: those of ``message_handled``, ``exception``, ``attempt`` (its number, from 1)
and ``is_last_attempt``: whether the policy for the message ends its attempts with this
exception. An outage of the channel may add one.
"""

tenant_activated: Signal = Signal()
"""
Sent when a tenant becomes active, for a message or by ``tenant(...)``.

Arguments: ``sender``, ``tenant`` (its name) and ``using`` (the alias of its database;
None if tenants have schemas). A receiver's exception is that of the message: a tenant
whose data could not be protected is not worked for.
"""

tenant_deactivated: Signal = Signal()
"""
Sent when a tenant is no longer active, also after an exception.

The arguments are those of ``tenant_activated``. If a tenant is active again after the
shared part was, both signals are sent once more.
"""

worker_started: Signal = Signal()
"""
Sent by a worker before it looks for messages, in the thread that handles them.

Arguments: ``sender`` (the worker's class), ``worker`` (its name), ``channels`` (their
aliases) and ``using`` (the alias of the database). A receiver's exception is logged and
changes nothing, as for the other signals of a worker.
"""

worker_stopped: Signal = Signal()
"""
Sent when a worker has stopped, whatever the reason, unless its process was killed.

The arguments are those of ``worker_started``, and ``tally``: its counts of messages
that were handled, failed, dead, expired and forwarded.
"""

batch_started: Signal = Signal()
"""
Sent before a batch of messages is handled, which are those of one claim.

The arguments are ``sender``, ``worker``, ``using``, ``channel`` (its alias) and
``count`` (the number of messages). The batch may be handled in several transactions.
"""

batch_finished: Signal = Signal()
"""
Sent after a batch of messages, also if the worker could not handle all of them.

The arguments are those of ``batch_started``.
"""
