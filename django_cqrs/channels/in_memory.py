"""A channel in the memory of the process, for tests and development."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs import clock
from django_cqrs.active_tenant import active_name
from django_cqrs.callbacks import OwnCallback
from django_cqrs.channels.channel import Channel, Delivery, Envelope, log_dropped
from django_cqrs.retries import Retry

_FAILURES = (Exception, asyncio.CancelledError)


class InMemoryChannel(Channel):
    """
    Keeps messages in this process, for tests.

    They are really converted to text and back, exist only if their transaction commits,
    and can be inspected and handled inside a test's own transaction.
    """

    supports_delay = True
    supports_expiry = True
    supports_priority = True
    supports_ordering = True
    supports_redelivery = True

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """Start empty."""
        super().__init__(alias, options)
        self._committed: list[Delivery] = []
        self._attempts: dict[int, int] = {}

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """Store messages with the open transaction, or at once without one."""
        # Django drops callbacks when a savepoint is rolled back, so no row is needed.
        connection.on_commit(held_with(self, connection, entries))

    def waiting(self) -> list[Envelope]:
        """
        Return the waiting messages in the order of their handling, delayed ones last.

        It includes committed messages, and those of this thread's open transactions.
        """
        moment = clock.now()
        held = [delivery.envelope for delivery, _ in self._held()]
        return sorted(held, key=lambda e: (not e.is_due(moment), *_turn(e)))

    def run(self, limit: int | None = None) -> int:
        """
        Handle due messages, and those that this sends here, until none is due.

        Expired messages are dropped. A message whose handler raises stays; with
        ``retry=`` it waits for its next attempt, and is gone after the last.

        Args:
            limit: stop after this number of messages.

        Returns:
            The number of handled messages.

        Raises:
            Exception: the exception of a handler, unchanged.

        """
        handled = 0
        while limit is None or handled < limit:
            moment = clock.now()
            due = self._due(moment)
            if not due:
                break
            delivery, store = first_turn(due)
            store.remove(delivery)
            if delivery.envelope.is_expired(moment):
                log_dropped(self, delivery.envelope)
                continue
            try:
                self._deliver(delivery)
            except BaseException as error:
                # A handler that ended the process has not failed.
                has_failed = isinstance(error, _FAILURES)
                kept = self._after(delivery, error) if has_failed else delivery
                if kept is not None:
                    store.append(kept)
                raise
            self._attempts.pop(delivery.envelope.sequence, None)
            handled += 1
        return handled

    def _due(self, now: datetime) -> list[tuple[Delivery, list[Delivery]]]:
        """Return the due messages, without those behind a failure of their key."""
        held = list(self._held())
        blocked = {
            delivery.envelope.group
            for delivery, _ in held
            if delivery.envelope.sequence in self._attempts
            and not delivery.envelope.is_due(now)
        } - {None}
        return [
            (delivery, store)
            for delivery, store in held
            if delivery.envelope.is_due(now) and delivery.envelope.group not in blocked
        ]

    def _deliver(self, delivery: Delivery) -> None:
        deliver, envelope = delivery.deliver, delivery.envelope
        if not hasattr(deliver, "retry"):  # a test's own function
            deliver(envelope)
            return
        counted: Any = deliver
        counted(envelope, attempt=self._attempts.get(envelope.sequence, 0) + 1)

    def _after(self, delivery: Delivery, error: BaseException) -> Delivery | None:
        """Return the message to keep after a failure, None if it is given up."""
        retry: Retry | None = getattr(delivery.deliver, "retry", None)
        envelope = delivery.envelope
        attempts = self._attempts.get(envelope.sequence, 0) + 1
        if retry is None:
            self._attempts[envelope.sequence] = attempts
            return delivery
        verdict = retry.judge(error)
        if verdict == "retry" and attempts < retry.attempts:
            self._attempts[envelope.sequence] = attempts
            until = clock.now() + retry.delay_after(attempts)
            envelope = dataclasses.replace(envelope, available_at=until)
            return delivery._replace(envelope=envelope)
        self._attempts.pop(envelope.sequence, None)
        if retry.final_failure == "stop" and verdict not in ("dead", "drop"):
            return delivery
        is_dead = verdict == "dead" or retry.final_failure == "dead_letter"
        if is_dead and verdict != "drop" and isinstance(error, Exception):
            counted: Any = delivery.deliver
            counted.give_up(envelope, error, attempts)
        return None

    def advance(self, span: timedelta) -> None:
        """Let time pass for waiting messages: delayed ones fall due, or expire."""
        for delivery, store in list(self._held()):
            envelope = delivery.envelope
            moved = dataclasses.replace(
                envelope,
                available_at=envelope.available_at and envelope.available_at - span,
                expires_at=envelope.expires_at and envelope.expires_at - span,
            )
            store[store.index(delivery)] = delivery._replace(envelope=moved)

    def cancel(
        self,
        connection: BaseDatabaseWrapper,
        subject: str,
        *,
        endpoints: Collection[str],
    ) -> None:
        """Remove the timers of an object with the open transaction."""
        moment, tenant = clock.now(), active_name()
        cancelled = [
            delivery.envelope.sequence
            for delivery, _ in self._held()
            if delivery.envelope.subject == subject
            and delivery.envelope.endpoint in endpoints
            and tenant in (None, delivery.envelope.tenant)
            and not delivery.envelope.is_due(moment)
            and delivery.envelope.sequence not in self._attempts
        ]
        if cancelled:
            connection.on_commit(_Cancellation(self, connection, cancelled))

    def clear(self) -> None:
        """Remove all waiting messages."""
        for _, store in list(self._held()):
            store.clear()

    def _held(self) -> Iterator[tuple[Delivery, list[Delivery]]]:
        """Yield the messages that are held, each with the list that holds it."""
        cancelled = {
            sequence for each in self._pending() for sequence in each.cancelled
        }
        for store in [self._committed, *self._stores(is_due=False)]:
            yield from (
                (delivery, store)
                for delivery in list(store)
                if delivery.envelope.sequence not in cancelled
            )

    def _stores(self, *, is_due: bool) -> Iterator[list[Delivery]]:
        """Yield the lists of messages in this thread's open transactions."""
        for each in self._pending():
            if each.is_due is is_due:
                yield each.entries

    def _pending(self) -> Iterator[_Pending]:
        """Yield the effects of this thread's open transactions."""
        for connection in connections.all(initialized_only=True):
            for _, callback, *_ in list(connection.run_on_commit):
                if isinstance(callback, _Pending) and callback.channel is self:
                    yield callback


class _Pending(OwnCallback):
    """The effects of an open transaction on a channel: an ``on_commit`` callback."""

    is_due = False
    """Whether its messages are handled by the channel itself, now."""

    def __init__(
        self, channel: InMemoryChannel, connection: BaseDatabaseWrapper
    ) -> None:
        self.channel = channel
        self.entries: list[Delivery] = []
        self.cancelled: Collection[int] = ()
        self._connection = connection

    def __call__(self) -> None:
        # captureOnCommitCallbacks() calls callbacks and leaves them registered: the
        # messages are found there, and go with the test's transaction.
        if not self._connection.in_atomic_block:
            self.commit()

    def commit(self) -> None:
        """Apply them, now that the transaction has committed."""
        raise NotImplementedError


class _Uncommitted(_Pending):
    """Messages of an open transaction."""

    def __init__(
        self,
        channel: InMemoryChannel,
        connection: BaseDatabaseWrapper,
        entries: list[Delivery],
        *,
        is_due: bool,
    ) -> None:
        super().__init__(channel, connection)
        self.entries = entries
        self.is_due = is_due

    def commit(self) -> None:
        self.channel._committed += self.entries


class _Cancellation(_Pending):
    """Messages that an open transaction cancels, by their numbers."""

    def __init__(
        self,
        channel: InMemoryChannel,
        connection: BaseDatabaseWrapper,
        sequences: Collection[int],
    ) -> None:
        super().__init__(channel, connection)
        self.cancelled = frozenset(sequences)

    def commit(self) -> None:
        kept = [
            delivery
            for delivery in self.channel._committed
            if delivery.envelope.sequence not in self.cancelled
        ]
        self.channel._committed[:] = kept


def held_with(
    channel: InMemoryChannel,
    connection: BaseDatabaseWrapper,
    entries: Sequence[Delivery],
    *,
    is_due: bool = False,
) -> Callable[[], None]:
    """
    Return an ``on_commit`` callback that holds messages of a channel.

    Args:
        channel: it takes them at the commit.
        connection: the connection of their transaction.
        entries: the messages.
        is_due: whether the channel handles them in that transaction.

    """
    return _Uncommitted(channel, connection, list(entries), is_due=is_due)


def first_turn(
    due: Sequence[tuple[Delivery, list[Delivery]]],
) -> tuple[Delivery, list[Delivery]]:
    """Return the message to be handled first: by priority, and by sending in a key."""
    first = min(due, key=lambda pair: _turn(pair[0].envelope))
    group = first[0].envelope.group
    if group is None:
        return first
    return min(
        (pair for pair in due if pair[0].envelope.group == group),
        key=lambda pair: pair[0].envelope.sequence,
    )


def _turn(envelope: Envelope) -> tuple[int, int]:
    return -envelope.priority, envelope.sequence
