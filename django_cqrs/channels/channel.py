"""
Channels: where a message waits between its sender and an asynchronous handler.

A channel is named by an alias in ``DJANGO_CQRS["CHANNELS"]``, like a cache in
``CACHES``. It stores an :class:`Envelope`: text, numbers and times.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from django_cqrs.channels.retry_settings import read_policy
from django_cqrs.exceptions import InvalidChannel, InvalidOption
from django_cqrs.retries import Retry
from django_cqrs.times import as_sent

logger: Final = logging.getLogger("django_cqrs.channels")

DEFAULT_CHANNEL_ALIAS = "default"

Seconds = timedelta | float

Due = Seconds | datetime
"""A time from the sending on, or a point in time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One message in transit to one endpoint, as it is stored."""

    # Its bytes are text: if stored with an answer, they can be read there.
    __pydantic_config__ = {"ser_json_bytes": "utf8", "val_json_bytes": "utf8"}  # noqa: RUF012

    endpoint: str
    """The name of the endpoint that it is for."""
    name: str
    """The payload's message name; empty if the endpoint's annotation implies it."""
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
    """The order of sending. It increases with every send in one process."""
    available_at: datetime | None = None
    """The time before which it must not be handled; None means no delay."""
    expires_at: datetime | None = None
    """The time from which on it must not be handled; None means never."""
    priority: int = 0
    """Higher is handled first."""
    subject: str = dataclasses.field(default="", repr=False)
    """The object that it is for, such as ``shop.Order:7``; empty if unknown."""
    ordering_key: str | None = dataclasses.field(default=None, repr=False)
    """Those of one endpoint and key are handled one at a time, in order of sending."""
    tenant: str | None = None
    """The tenant whose message it is, in a project with ``TENANCY``."""

    @property
    def group(self) -> tuple[str, str] | None:
        """The endpoint and key that share its order; None if it has no order."""
        if self.ordering_key is None:
            return None
        return self.endpoint, self.ordering_key

    def is_due(self, now: datetime) -> bool:
        """Return whether its delay is over."""
        return self.available_at is None or self.available_at <= now

    def is_expired(self, now: datetime) -> bool:
        """Return whether it has expired."""
        return self.expires_at is not None and self.expires_at <= now


class Delivery(NamedTuple):
    """An envelope, and its handling if that is done in this very process."""

    envelope: Envelope
    deliver: Callable[[Envelope], None]


class _Counter:
    """Increasing numbers, also across restarts: nanoseconds, made unique."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns())
            return self._last


next_sequence: Final = _Counter().next
"""Return a number higher than all before it in this process."""


def as_timedelta(value: object, name: str) -> timedelta:
    """
    Return a delay or a lifetime, given in seconds or as a timedelta.

    Raises:
        InvalidOption: it is neither, or it is negative.

    """
    if isinstance(value, timedelta):
        span = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            span = timedelta(seconds=value)
        except (OverflowError, ValueError):
            msg = f"{name}={value!r} is not a valid number of seconds."
            raise InvalidOption(msg) from None
    else:
        msg = f"{name}= takes seconds or a timedelta, not {value!r}."
        raise InvalidOption(msg)
    if span < timedelta(0):
        msg = f"{name}={value!r} is negative."
        raise InvalidOption(msg)
    return span


def ensure_time(value: object, name: str) -> None:
    """
    Refuse anything but seconds, a timedelta, or a datetime with its time zone.

    Under ``USE_TZ=False`` a datetime without a time zone is local time, as in Django.

    Raises:
        InvalidOption: it is none of them, or it is negative.

    """
    if isinstance(value, datetime):
        if settings.USE_TZ and timezone.is_naive(value):
            msg = (
                f"{name}={value!r} has no time zone. Give an aware datetime, such as "
                "timezone.now() + timedelta(hours=1)."
            )
            raise InvalidOption(msg)
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number and not isinstance(value, timedelta):
        msg = f"{name}= takes seconds, a timedelta or a datetime, not {value!r}."
        raise InvalidOption(msg)
    as_timedelta(value, name)


def end_of(value: Due, name: str, now: datetime) -> datetime:
    """
    Return the time at which a delay or a lifetime ends, with its zone.

    Args:
        value: a time from `now` on, or a point in time.
        name: the name of the keyword, for errors.
        now: the time of the sending.

    Raises:
        InvalidOption: it ends after the last date.

    """
    if isinstance(value, datetime):
        return as_sent(value)
    try:
        return now + as_timedelta(value, name)
    except OverflowError:
        msg = f"{name}={value!r} ends after the last date that can be represented."
        raise InvalidOption(msg) from None


class Channel:
    """
    The base of channels: a backend, like those of Django's caches and tasks.

    A subclass writes messages; it decides itself how they are taken out again. It must
    pass the conformance suite in ``django_cqrs.testing.channels``.
    """

    supports_delay: ClassVar[bool] = False
    """Whether a message can be delayed until a time."""
    supports_expiry: ClassVar[bool] = False
    """Whether a message can expire."""
    supports_priority: ClassVar[bool] = False
    """Whether one message can overtake another."""
    supports_ordering: ClassVar[bool] = False
    """Whether messages of one key are handled one at a time, in order of sending."""
    supports_redelivery: ClassVar[bool] = False
    """Whether a message whose handler failed is kept, and handled again."""
    is_immediate: ClassVar[bool] = False
    """Whether handlers run inside the sender's transaction, as only tests need it."""
    default_retry: ClassVar[Retry | None] = None
    """The policy of handlers that have none; None if this channel decides by itself."""
    known_options: ClassVar[tuple[str, ...]] = ()
    """The keys that ``OPTIONS`` may have, besides ``"retry"`` where it retries."""

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """
        Make the channel of an alias.

        Raises:
            InvalidChannel: this channel does not support an option, or its value is
                invalid.

        """
        self.alias = alias
        self.options = options
        known = {*self.known_options}
        if self.supports_redelivery:
            known.add("retry")
        self.retry: Retry | None = None
        """The policy in ``OPTIONS``, for handlers that have none."""
        unknown = set(options) - known
        if unknown:
            names = ", ".join(repr(name) for name in sorted(unknown))
            msg = (
                f"The channel {alias!r} ({type(self).__name__}) has no option {names}."
            )
            raise InvalidChannel(msg)
        where = f"The option 'retry' of the channel {alias!r}"
        try:
            self.retry = read_policy(Retry, options.get("retry"), where)
        except ImproperlyConfigured as error:
            raise InvalidChannel(str(error)) from error

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """
        Store messages, so that they exist only if the open transaction commits.

        Args:
            connection: the connection of the data that the messages concern.
            entries: all of them or none are stored. Their order is given by their
                envelopes' `sequence`, over everything that one transaction writes.

        """
        raise NotImplementedError

    def write_last(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """
        Store messages as :meth:`write` does, as the last thing in a transaction.

        A channel that stores them in that database may commit at the same time.

        Args:
            connection: the connection of the data. Only the commit follows in its
                transaction, which is a command's.
            entries: in the order of sending.

        """
        self.write(connection, entries)

    def check_option(self, name: str, value: object) -> None:
        """
        Refuse options that this channel does not support.

        Args:
            name: ``"delay"``, ``"expires"``, ``"priority"`` or ``"ordering_key"``.
            value: seconds, a timedelta or a datetime; a whole number for the priority.

        Raises:
            InvalidOption: the channel does not support it, or the value is invalid.

        """
        supported = {
            "delay": self.supports_delay,
            "expires": self.supports_expiry,
            "priority": self.supports_priority,
            "ordering_key": self.supports_ordering,
        }
        if not supported[name]:
            kind = type(self).__name__
            msg = f"Channel {self.alias!r} ({kind}) does not support {name}=."
            raise InvalidOption(msg)
        if name in ("delay", "expires"):
            ensure_time(value, name)
        elif name == "priority" and (
            not isinstance(value, int) or isinstance(value, bool)
        ):
            msg = f"priority= takes a whole number, not {value!r}."
            raise InvalidOption(msg)

    def wake(self, connection: BaseDatabaseWrapper) -> None:
        """
        Wake the worker of this channel after the commit, since it has a job.

        By default this does nothing: the worker looks by itself.

        Args:
            connection: the connection with the data that the job is about.

        """

    def cancel(
        self,
        connection: BaseDatabaseWrapper,
        subject: str,
        *,
        endpoints: Collection[str],
    ) -> None:
        """
        Cancel the timers of an object whose life is over.

        Timers are the delayed messages for it, and for some endpoints, that were never
        tried: not those that wait for their next attempt. They are cancelled only if
        the open transaction commits. Channels need not support it: timers find out that
        the object is over when they are due.

        Args:
            connection: the connection of the object's data, with an open transaction.
            subject: its name in envelopes.
            endpoints: the names of the endpoints whose messages are timers, including
                former names.

        """

    def waiting_among(self, using: str, message_ids: Collection[UUID]) -> set[UUID]:
        """
        Return those of some messages that wait, or are being handled.

        A schedule with ``overlap="skip"`` asks. Channels that cannot tell return none.

        Args:
            using: the alias of the database that the messages were sent in.
            message_ids: their ids.

        """
        return set()

    def statuses_of(self, using: str, message_ids: Collection[UUID]) -> dict[UUID, str]:
        """
        Return the outcome of each message in a word, if it is known.

        Args:
            using: the alias of the database that the messages were sent in.
            message_ids: their ids.

        """
        return {}

    def note_skipped(self, connection: BaseDatabaseWrapper, envelope: Envelope) -> None:
        """
        Note that a schedule did not send a message, in a journal if there is one.

        Args:
            connection: the connection of the open transaction.
            envelope: the message.

        """

    def check(self) -> Iterable[CheckMessage]:
        """Return the faults of the channel's options or environment."""
        return ()

    def __repr__(self) -> str:
        """Return the class and the alias."""
        return f"<{type(self).__name__} {self.alias!r}>"


def log_dropped(channel: Channel, envelope: Envelope) -> None:
    """Log that a message expired before it was handled."""
    logger.info(
        "Message %s for %s was dropped: it expired at %s",
        envelope.message_id,
        envelope.endpoint,
        envelope.expires_at,
        extra=log_extra(channel, envelope),
    )


def log_extra(channel: Channel, envelope: Envelope) -> dict[str, str]:
    """Return the fields of a log record about an envelope: ids, names, no payload."""
    return {
        "cqrs_channel": channel.alias,
        "cqrs_message_id": str(envelope.message_id),
        "cqrs_correlation_id": str(envelope.correlation_id),
        "cqrs_endpoint": envelope.endpoint,
    }
