"""
Channels: where a message waits between its sender and an asynchronous handler.

A channel is named by an alias in ``DJANGO_CQRS["CHANNELS"]``, as a cache is in
``CACHES``. What it stores is an :class:`Envelope`: text, numbers and times.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import threading
import time
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, NamedTuple
from uuid import UUID

from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.module_loading import import_string

from django_cqrs import clock, conf
from django_cqrs.callbacks import OwnCallback
from django_cqrs.exceptions import InvalidChannel, InvalidOption
from django_cqrs.retries import Retry

logger: Final = logging.getLogger("django_cqrs.channels")

DEFAULT_CHANNEL_ALIAS = "default"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One message on its way to one endpoint, as it is stored."""

    # Its bytes are text: kept with an answer, they can be read there.
    __pydantic_config__ = {"ser_json_bytes": "utf8", "val_json_bytes": "utf8"}  # noqa: RUF012

    endpoint: str
    """The name of the endpoint that it is for."""
    name: str
    """The payload's message name; empty where the endpoint's annotation says it."""
    version: int
    payload: bytes = dataclasses.field(repr=False)
    """JSON text in UTF-8."""
    headers: bytes = dataclasses.field(repr=False)
    """The user's headers, as a JSON object."""
    message_id: UUID
    correlation_id: UUID
    causation_id: UUID | None
    timestamp: datetime
    sequence: int
    """The order of sending. It grows from send to send in one process."""
    available_at: datetime | None = None
    """Not to be handled before; None is at once."""
    expires_at: datetime | None = None
    """Not to be handled from then on; None is never."""
    priority: int = 0
    """Higher is handled first."""
    subject: str = dataclasses.field(default="", repr=False)
    """The object that it is for, such as ``shop.Order:7``; empty if unknown."""
    ordering_key: str | None = dataclasses.field(default=None, repr=False)
    """Those of one endpoint and key are handled one at a time, as they were sent."""

    @property
    def group(self) -> tuple[str, str] | None:
        """What its order is kept in; None for one that has none."""
        if self.ordering_key is None:
            return None
        return self.endpoint, self.ordering_key

    def is_due(self, now: datetime) -> bool:
        """Tell whether its delay is over."""
        return self.available_at is None or self.available_at <= now

    def is_expired(self, now: datetime) -> bool:
        """Tell whether it is too late for it."""
        return self.expires_at is not None and self.expires_at <= now


class Delivery(NamedTuple):
    """An envelope, and what handles it where that is done in this very process."""

    envelope: Envelope
    deliver: Callable[[Envelope], None]


class _Counter:
    """Numbers that grow, also over a restart: nanoseconds, made unique."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns())
            return self._last


next_sequence: Final = _Counter().next
"""Return a number higher than every one before it in this process."""


def as_timedelta(value: object, name: str) -> timedelta:
    """
    Return a delay or a life-time that was given as seconds or as a timedelta.

    Raises:
        InvalidOption: it is neither, or negative.

    """
    if isinstance(value, timedelta):
        span = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            span = timedelta(seconds=value)
        except (OverflowError, ValueError):
            msg = f"{name}={value!r} is no number of seconds."
            raise InvalidOption(msg) from None
    else:
        msg = f"{name}= takes seconds or a timedelta, not {value!r}."
        raise InvalidOption(msg)
    if span < timedelta(0):
        msg = f"{name}={value!r} is negative."
        raise InvalidOption(msg)
    return span


class Channel:
    """
    The base of channels: a backend, as Django's caches and tasks have them.

    A subclass writes; how messages are taken out again is its own affair. It must
    pass the conformance suite in ``django_cqrs.testing.channels``.
    """

    supports_delay: ClassVar[bool] = False
    """Whether a message can be kept back until a time."""
    supports_expiry: ClassVar[bool] = False
    """Whether a message can become too old to be handled."""
    supports_priority: ClassVar[bool] = False
    """Whether one message can overtake another."""
    supports_ordering: ClassVar[bool] = False
    """Whether the messages of one key are handled one at a time, as they were sent."""
    supports_redelivery: ClassVar[bool] = False
    """Whether a message whose handler failed is kept, to be handled again."""
    known_options: ClassVar[tuple[str, ...]] = ()
    """The keys that ``OPTIONS`` may have."""

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """
        Make the channel of an alias.

        Raises:
            InvalidChannel: an option means nothing to this channel.

        """
        self.alias = alias
        self.options = options
        unknown = set(options) - set(self.known_options)
        if unknown:
            names = ", ".join(repr(name) for name in sorted(unknown))
            msg = (
                f"The channel {alias!r} ({type(self).__name__}) has no option {names}."
            )
            raise InvalidChannel(msg)

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """
        Store messages, so that they exist only if the open transaction commits.

        Args:
            connection: that of the data the messages speak of.
            entries: all of them or none are stored. The order of sending is that of
                their envelopes' `sequence`, over all that one transaction writes.

        """
        raise NotImplementedError

    def write_last(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """
        Store messages as :meth:`write` does, as the last thing in a transaction.

        A channel that stores them in that database may commit with them.

        Args:
            connection: that of the data. Nothing follows in its transaction, which
                is a command's, but the commit.
            entries: in the order of sending.

        """
        self.write(connection, entries)

    def check_option(self, name: str, value: object) -> None:
        """
        Refuse what a message cannot be given on this channel.

        Args:
            name: ``"delay"``, ``"expires"``, ``"priority"`` or ``"ordering_key"``.
            value: seconds or a timedelta; for the priority a whole number.

        Raises:
            InvalidOption: the channel knows no such thing, or the value is none.

        """
        supported = {
            "delay": self.supports_delay,
            "expires": self.supports_expiry,
            "priority": self.supports_priority,
            "ordering_key": self.supports_ordering,
        }
        if not supported[name]:
            kind = type(self).__name__
            msg = f"The channel {self.alias!r} ({kind}) knows no {name}=."
            raise InvalidOption(msg)
        if name in ("delay", "expires"):
            as_timedelta(value, name)
        elif name == "priority" and (
            not isinstance(value, int) or isinstance(value, bool)
        ):
            msg = f"priority= takes a whole number, not {value!r}."
            raise InvalidOption(msg)

    def cancel(
        self,
        connection: BaseDatabaseWrapper,
        subject: str,
        *,
        endpoints: Collection[str],
    ) -> None:
        """
        Take back the timers of an object whose life is over.

        Those are the delayed messages for it, and for some endpoints, that were never
        tried: one that waits for its next attempt is none. They are taken back only if
        the open transaction commits. A channel that cannot need not: they find that it
        is over when they are due.

        Args:
            connection: that of the object's data; with the transaction open there.
            subject: as the envelopes have it.
            endpoints: the names of those whose messages are timers, former names
                included.

        """

    def check(self) -> Iterable[CheckMessage]:
        """Return what is wrong with the channel's options or surroundings."""
        return ()

    def __repr__(self) -> str:
        """Return the class and the alias."""
        return f"<{type(self).__name__} {self.alias!r}>"


class InMemoryChannel(Channel):
    """
    Keeps messages in this process, for tests.

    They are truly converted to text and back, exist only if their transaction
    commits, and can be looked at and handled inside a test's own transaction.
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
        """Store messages with the transaction that is open, or at once without one."""
        # Django forgets its callbacks where a savepoint is rolled back: no row needed.
        connection.on_commit(_Uncommitted(self, connection, list(entries)))

    def waiting(self) -> list[Envelope]:
        """
        Return what waits, in the order it will be handled, delayed ones last.

        Seen are committed messages, and those of this thread's open transactions.
        """
        moment = clock.now()
        held = [delivery.envelope for delivery, _ in self._held()]
        return sorted(held, key=lambda e: (not e.is_due(moment), *_turn(e)))

    def run(self, limit: int | None = None) -> int:
        """
        Handle what is due, and what that sends here, until nothing is.

        Expired messages are dropped. A message whose handler raises stays; with
        ``retry=`` it waits for its next attempt, and is gone after the last.

        Args:
            limit: stop after so many messages.

        Returns:
            How many were handled.

        Raises:
            Exception: whatever a handler raises, unchanged.

        """
        handled = 0
        while limit is None or handled < limit:
            moment = clock.now()
            due = self._due(moment)
            if not due:
                break
            delivery, store = min(due, key=lambda pair: _turn(pair[0].envelope))
            group = delivery.envelope.group
            if group is not None:  # in its key the first sent is the first
                delivery, store = min(
                    (pair for pair in due if pair[0].envelope.group == group),
                    key=lambda pair: pair[0].envelope.sequence,
                )
            store.remove(delivery)
            if delivery.envelope.is_expired(moment):
                log_dropped(self, delivery.envelope)
                continue
            try:
                delivery.deliver(delivery.envelope)
            except BaseException as error:
                kept = self._after(delivery, error)
                if kept is not None:
                    store.append(kept)
                raise
            self._attempts.pop(delivery.envelope.sequence, None)
            handled += 1
        return handled

    def _due(self, now: datetime) -> list[tuple[Delivery, list[Delivery]]]:
        """Return what is due; what comes after a failure of its key is not."""
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

    def _after(self, delivery: Delivery, error: BaseException) -> Delivery | None:
        """Return what is kept of a message that failed, None where it is given up."""
        retry: Retry | None = getattr(delivery.deliver, "retry", None)
        if retry is None:
            return delivery
        envelope = delivery.envelope
        attempts = self._attempts.get(envelope.sequence, 0) + 1
        if retry.is_worth(error) and attempts < retry.attempts:
            self._attempts[envelope.sequence] = attempts
            until = clock.now() + retry.delay_after(attempts)
            envelope = dataclasses.replace(envelope, available_at=until)
            return delivery._replace(envelope=envelope)
        self._attempts.pop(envelope.sequence, None)
        return delivery if retry.final_failure == "stop" else None

    def advance(self, span: timedelta) -> None:
        """Let time pass for what waits: what is delayed falls due, or expires."""
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
        """Forget the timers of an object with the transaction that is open."""
        moment = clock.now()
        cancelled = [
            delivery.envelope.sequence
            for delivery, _ in self._held()
            if delivery.envelope.subject == subject
            and delivery.envelope.endpoint in endpoints
            and not delivery.envelope.is_due(moment)
            and delivery.envelope.sequence not in self._attempts
        ]
        if cancelled:
            connection.on_commit(_Cancelled(self, connection, cancelled))

    def clear(self) -> None:
        """Forget everything that waits."""
        for _, store in list(self._held()):
            store.clear()

    def _held(self) -> Iterator[tuple[Delivery, list[Delivery]]]:
        """Yield what is held, and the list that holds it."""
        stores = [self._committed]
        cancelled: set[int] = set()
        for connection in connections.all(initialized_only=True):
            for _, callback, *_ in connection.run_on_commit:
                if isinstance(callback, _Pending) and callback.channel is self:
                    stores.append(callback.entries)
                    cancelled.update(callback.cancelled)
        for store in stores:
            yield from (
                (delivery, store)
                for delivery in list(store)
                if delivery.envelope.sequence not in cancelled
            )


class _Pending(OwnCallback):
    """What an open transaction does to a channel: an ``on_commit`` callback."""

    def __init__(
        self, channel: InMemoryChannel, connection: BaseDatabaseWrapper
    ) -> None:
        self.channel = channel
        self.entries: list[Delivery] = []
        self.cancelled: Collection[int] = ()
        self._connection = connection

    def __call__(self) -> None:
        # captureOnCommitCallbacks() calls what it leaves registered: they are seen
        # there, and go with the test's transaction.
        if not self._connection.in_atomic_block:
            self.commit()

    def commit(self) -> None:
        """Do it, now that the transaction has committed."""
        raise NotImplementedError


class _Uncommitted(_Pending):
    """Messages of an open transaction."""

    def __init__(
        self,
        channel: InMemoryChannel,
        connection: BaseDatabaseWrapper,
        entries: list[Delivery],
    ) -> None:
        super().__init__(channel, connection)
        self.entries = entries

    def commit(self) -> None:
        self.channel._committed += self.entries


class _Cancelled(_Pending):
    """Messages that an open transaction takes back, by their numbers."""

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


def _turn(envelope: Envelope) -> tuple[int, int]:
    return -envelope.priority, envelope.sequence


class OnCommitChannel(Channel):
    """
    Handles messages in this process, right after the commit: for what may be lost.

    Nothing is stored. A crash between the commit and the handler loses the message,
    and so does a handler that raises, which is logged. Outside a transaction the
    handler is called at once.
    """

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """Handle messages after the commit of the transaction that is open."""
        for delivery in entries:
            connection.on_commit(_AfterCommit(self, delivery), robust=True)
        callbacks: list[Any] = connection.run_on_commit
        places = [
            place
            for place, (_, callback, *_) in enumerate(callbacks)
            if isinstance(callback, _AfterCommit) and callback.channel is self
        ]
        # A command's messages come at its end, those of a block inside it before.
        in_order = sorted(
            (callbacks[place] for place in places),
            key=lambda each: each[1].delivery.envelope.sequence,
        )
        for place, callback in zip(places, in_order, strict=True):
            callbacks[place] = callback


class _AfterCommit(OwnCallback):
    """A message to be handled after the commit: an ``on_commit`` callback."""

    def __init__(self, channel: OnCommitChannel, delivery: Delivery) -> None:
        self.channel = channel
        self.delivery = delivery

    def __call__(self) -> None:
        envelope, deliver = self.delivery
        try:
            deliver(envelope)
        except Exception:
            logger.exception(
                "Message %s for %s is lost: its handler failed after the commit",
                envelope.message_id,
                envelope.endpoint,
                extra=log_extra(self.channel, envelope),
            )


def log_dropped(channel: Channel, envelope: Envelope) -> None:
    """Say that a message came too late to be handled."""
    logger.info(
        "Message %s for %s is dropped: it expired at %s",
        envelope.message_id,
        envelope.endpoint,
        envelope.expires_at,
        extra=log_extra(channel, envelope),
    )


def log_extra(channel: Channel, envelope: Envelope) -> dict[str, str]:
    """Return what a log line about an envelope carries: ids and names, no payload."""
    return {
        "cqrs_channel": channel.alias,
        "cqrs_message_id": str(envelope.message_id),
        "cqrs_correlation_id": str(envelope.correlation_id),
        "cqrs_endpoint": envelope.endpoint,
    }


class ChannelHandler:
    """The channels of ``DJANGO_CQRS["CHANNELS"]``, by alias, each made once."""

    def __init__(self) -> None:
        """Make no channel yet."""
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()

    def __getitem__(self, alias: str) -> Channel:
        """
        Return the channel of an alias.

        Raises:
            InvalidChannel: there is no such alias, or its backend cannot be made.

        """
        try:
            return self._channels[alias]
        except KeyError:
            with self._lock:
                if alias not in self._channels:
                    self._channels[alias] = self._make(alias)
                return self._channels[alias]

    def __iter__(self) -> Iterator[str]:
        """Yield the aliases."""
        return iter(_configured())

    def _make(self, alias: str) -> Channel:
        backend, options = _read(alias)
        try:
            return backend(alias, options)
        except InvalidChannel:
            raise
        except ImproperlyConfigured as error:
            msg = f"The channel {alias!r} cannot be made: {error}"
            raise InvalidChannel(msg) from error

    def reset(self) -> None:
        """Forget the channels: they are made anew from the settings."""
        with self._lock:
            self._channels = {}


def _configured() -> Mapping[str, Any]:
    configured = conf.current().CHANNELS
    # What is none is a check's business.
    return configured if isinstance(configured, Mapping) else {}


def _read(alias: str) -> tuple[type[Channel], dict[str, Any]]:
    """
    Return the class and the options that the settings give an alias.

    Raises:
        InvalidChannel: they give none, or what they give is no channel.

    """
    configured = _configured()
    if alias not in configured:
        near = difflib.get_close_matches(str(alias), map(str, configured), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"There is no channel {alias!r} in {conf.NAME}['CHANNELS'].{hint}"
        raise InvalidChannel(msg)
    config = configured[alias]
    config = dict(config) if isinstance(config, Mapping) else {"": config}
    path, options = config.pop("BACKEND", None), config.pop("OPTIONS", {})
    if config or not isinstance(path, str) or not isinstance(options, dict):
        msg = (
            f"The channel {alias!r} must be a dictionary of BACKEND, the path of a "
            f"class, and perhaps OPTIONS, a dictionary."
        )
        raise InvalidChannel(msg)
    try:
        backend = import_string(path)
    except ImportError as error:
        msg = f"The channel {alias!r} has a BACKEND that cannot be imported: {error}."
        raise InvalidChannel(msg) from error
    if not (isinstance(backend, type) and issubclass(backend, Channel)):
        msg = f"The channel {alias!r} has a BACKEND, {path}, that is no Channel."
        raise InvalidChannel(msg)
    return backend, options


channels: ChannelHandler = ChannelHandler()


def _reset(*, setting: str, **_kwargs: Any) -> None:
    if setting == conf.NAME:
        channels.reset()


setting_changed.connect(_reset, dispatch_uid="django_cqrs.channels")
