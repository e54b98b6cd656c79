"""Django signals about the buses. They say what happened; they route nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.dispatch import Signal

__all__ = ["message_failed", "message_handled"]

on_change: list[Callable[[], None]] = []
"""Called when those who watch come and go: where nobody does, nothing is paid."""


class BusSignal(Signal):
    """A signal whose sending is compiled in only where somebody listens."""

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
    """Have what is compiled forgotten: somebody watches, or does so no more."""
    for callback in on_change:
        callback()


message_handled: BusSignal = BusSignal()
"""
Sent after a handler has returned, and its own transaction, if any, has ended well.

Arguments: ``sender`` (the bus's class), ``message``, ``endpoint`` (its name) and
``duration`` in seconds. An exception of a receiver is logged and changes nothing.
"""

message_failed: BusSignal = BusSignal()
"""
Sent after a handler has raised, with the arguments of ``message_handled`` and
``exception``. The exception goes its way all the same.
"""
