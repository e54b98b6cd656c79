"""Django signals of the buses. They report events; they do not route anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.dispatch import Signal

__all__ = ["message_failed", "message_handled"]

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
Sent after a handler has raised, with the arguments of ``message_handled`` and
``exception``. The exception propagates all the same.
"""
