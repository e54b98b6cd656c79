"""A channel that calls handlers inside the sender's transaction, for existing tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs import clock
from django_cqrs.channels.channel import Delivery, log_dropped
from django_cqrs.channels.in_memory import InMemoryChannel, first_turn, held_with
from django_cqrs.messages import Message, current


class ImmediateChannel(InMemoryChannel):
    """
    Handles messages inside the sender's transaction, for suites of existing tests.

    A command's messages are handled at its end, and all others at once. They are really
    converted to text and back. A handler's exception reaches the sender, and undoes its
    command. A delayed message waits, as in an :class:`InMemoryChannel`.
    """

    supports_redelivery = False
    is_immediate = True

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """Start empty."""
        super().__init__(alias, options)
        self._thread = _OfThread()

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery | None]
    ) -> None:
        """Handle messages that are due, at the end of the sending command, if any."""
        moment = clock.now()
        due: list[Delivery] = []
        later: list[Delivery] = []
        for each in entries:
            if each is not None:
                (due if each.envelope.is_due(moment) else later).append(each)
        if later:
            super().write(connection, later)
        if due and not connection.in_atomic_block:
            self._thread.unbound += due
        elif due:
            # Django drops them when a block that encloses their sending is rolled back.
            connection.on_commit(held_with(self, connection, due, is_due=True))
        if self._thread.is_handling:  # they are next
            return
        command = _outermost_open_scope() if connection.in_atomic_block else None
        if command is None:
            self._handle()
        else:  # sent in a block inside it: be written to at its end, to handle them
            command.buffer.append((self, None))

    def _handle(self) -> None:
        """Handle this thread's due messages, and those that this sends here."""
        self._thread.is_handling = True
        try:
            while ready := list(self._ready()):
                delivery, store = first_turn(ready)
                store.remove(delivery)
                if delivery.envelope.is_expired(clock.now()):
                    log_dropped(self, delivery.envelope)
                else:
                    delivery.deliver(delivery.envelope)
        except BaseException:
            for _, store in list(self._ready()):
                store.clear()
            raise
        finally:
            self._thread.is_handling = False

    def _ready(self) -> Iterator[tuple[Delivery, list[Delivery]]]:
        """Yield the messages to be handled now, each with the list that holds it."""
        for store in (self._thread.unbound, *self._stores(is_due=True)):
            yield from ((delivery, store) for delivery in list(store))


class _OfThread(threading.local):
    """The state of a channel in one thread: live servers have several."""

    def __init__(self) -> None:
        self.is_handling = False
        self.unbound: list[Delivery] = []
        """The due messages that were sent outside any transaction."""


def _outermost_open_scope() -> Any:
    """Return the bus scope of the outermost command being handled, or None."""
    message, found = current.get(), None
    while isinstance(message, Message):
        if message._scope is not None and message._scope.is_open:
            found = message._scope
        message = message._parent
    return found
