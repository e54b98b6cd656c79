"""Send messages: into envelopes, into channels, and back again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.transaction import atomic

from django_cqrs import clock
from django_cqrs.active_tenant import default_alias
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import (
    Channel,
    Delivery,
    Due,
    Envelope,
    end_of,
    next_sequence,
)
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.declaration.key_sources import KeyReader, key_reader
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import Message, SentMessage, handling_of, scope_of
from django_cqrs.pipeline.envelopes import (
    UNSET,
    encode,
    encode_headers,
    headers_of,
    unset_of,
)
from django_cqrs.pipeline.scopes import BusScope, send, send_all
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.retries import Retry
from django_cqrs.routing.endpoint import Endpoint


@dataclasses.dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of one call for sending its message; None means "as declared"."""

    delay: Due | None = None
    expires: Due | None = None
    priority: int | None = None

    def given(self) -> list[str]:
        """Return the names of the given options."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        ]

    def check(self, channel: Channel) -> None:
        """
        Refuse an option that the channel does not support, or an invalid value.

        Raises:
            InvalidOption: one of them is not supported, or invalid.

        """
        for name in self.given():
            channel.check_option(name, getattr(self, name))


NO_OPTIONS = SendOptions()


def send_options(
    delay: Due | None, expires: Due | None, priority: int | None
) -> SendOptions:
    """Return the options of one call; ``NO_OPTIONS`` itself without any."""
    if delay is None and expires is None and priority is None:
        return NO_OPTIONS
    return SendOptions(delay, expires, priority)


class Deliverer:
    """Handles messages of one endpoint that were sent in one database."""

    __slots__ = ("_channel", "_deliver", "_give_up", "_using", "retry")

    def __init__(
        self,
        deliver: Callable[..., None],
        give_up: Callable[..., None],
        *,
        channel: str,
        using: str,
        retry: Retry | None,
    ) -> None:
        """
        Take the function that handles an envelope, and the endpoint's settings.

        Args:
            deliver: called with the envelope and ``using=``.
            give_up: called with the envelope and the facts about its failure.
            channel: the alias of the channel.
            using: the database of a handler that does not name one.
            retry: the endpoint's policy, for a channel that retries in this process.

        """
        self._deliver = deliver
        self._give_up = give_up
        self._channel = channel
        self._using = using
        self.retry = retry

    def __call__(self, envelope: Envelope, attempt: int | None = None) -> None:
        """
        Handle a message.

        Args:
            envelope: the envelope, as stored.
            attempt: the number of this attempt, from 1, on a channel that counts them.

        """
        self._deliver(envelope, using=self._using, attempt=attempt)

    def give_up(self, envelope: Envelope, error: Exception, attempts: int) -> None:
        """Tell handlers that a channel without dead letters gives up a message."""
        self._give_up(
            envelope,
            error,
            channel=self._channel,
            attempts=attempts,
            using=self._using,
        )


class Outlet:
    """Sends the messages for one endpoint on a channel."""

    def __init__(
        self,
        endpoint: Endpoint,
        types: MessageTypes,
        deliver: Callable[..., None],
        give_up: Callable[..., None],
    ) -> None:
        """
        Open the outlet of an endpoint.

        Args:
            endpoint: a handler on a channel.
            types: the message classes, by their stored names.
            deliver: handles an envelope, ``using=`` the database that it was sent in.
            give_up: tells handlers of an envelope that a channel gives up.

        Raises:
            InvalidChannel: the endpoint's channel cannot be created.

        """
        assert endpoint.channel is not None  # noqa: S101 - for the type checker
        self.endpoint = endpoint
        self.channel: Channel = channels[endpoint.channel]
        self._types = types
        self._deliver = deliver
        self._give_up = give_up
        self._deliverers: dict[str, Deliverer] = {}
        self._addresses: dict[type, Callable[[Message], str]] = {}
        source = endpoint.policies.ordering_key
        self._tenancy = tenancy()
        self._ordering_key: KeyReader | None = None
        self._orders_subject = source is True
        if source is not None and source is not True:
            self._ordering_key = key_reader(source, "ordering_key", endpoint.name)

    def put(self, message: Message) -> None:
        """
        Send a message, or hold it back if its publisher does so.

        Raises:
            UnknownMessage: its payload's class has no stored name.
            MessageConversionError: the payload could not be restored unchanged.
            InvalidHeader: a header's value has no JSON form.
            InvalidOption: it would expire before it is due, or beyond the last date.
            InvalidKey: its ordering key is missing or invalid.
            MissingHeader: the header with its ordering key is missing.

        """
        __traceback_hide__ = True
        envelope = self._envelope_of(message)
        scope = scope_of(message)
        alias = self._alias_in(scope, message)
        deliver = self._deliverers.get(alias)
        if deliver is None:
            deliver = Deliverer(
                self._deliver,
                self._give_up,
                channel=self.channel.alias,
                using=alias,
                retry=self.endpoint.retry,
            )
            self._deliverers[alias] = deliver
        delivery = Delivery(envelope, deliver)
        handling = handling_of(message)
        if handling.stored is not None:
            handling.stored.append(SentMessage(envelope.message_id, alias))
        held = handling.held
        if held is not None:
            held.append((alias, self.channel, delivery))
        else:
            send(scope, connections[alias], self.channel, delivery)

    def skip(self, message: Message) -> None:
        """
        Note that a message is not sent, since an earlier one is not handled yet.

        Raises:
            CQRSError: as :meth:`put`.

        """
        __traceback_hide__ = True
        using = self.alias_for(message)
        self.channel.note_skipped(connections[using], self._envelope_of(message))

    def alias_for(self, message: Message) -> str:
        """Return the database that stores the message: that of its data."""
        return self._alias_in(scope_of(message), message)

    def _alias_in(self, scope: BusScope | None, message: Message) -> str:
        using = message.using
        if using is not None:
            return using
        if scope is not None:
            alias: str = scope.connection.alias
            return alias
        return self.endpoint.alias or default_alias()

    def _envelope_of(self, message: Message) -> Envelope:
        __traceback_hide__ = True
        options: SendOptions = handling_of(message).options or NO_OPTIONS
        policies = self.endpoint.policies
        delay, expires = options.delay, options.expires
        if delay is None and policies.delay is not None:
            delay = self._declared("delay", policies.delay, message)
        if expires is None and policies.expires is not None:
            expires = self._declared("expires", policies.expires, message)
        priority = policies.priority if options.priority is None else options.priority
        available_at = expires_at = None
        if delay or expires is not None:  # seldom
            moment = clock.now()
            available_at = end_of(delay, "delay", moment) if delay else None
            expires_at = None if expires is None else end_of(expires, "expires", moment)
            if available_at is not None and available_at <= moment:
                available_at = None  # a time that is over delays nothing
        if available_at and expires_at and expires_at <= available_at:
            has_date = isinstance(delay, datetime) or isinstance(expires, datetime)
            counted = "" if has_date else ", both counted from the sending"
            msg = (
                f"A message for {self.endpoint.name} would expire before it is due: "
                f"delay={delay!r}, expires={expires!r}{counted}."
            )
            raise InvalidOption(msg)
        name, version, text = encode(self.endpoint, self._types, message._payload)
        subject = self._subject_of(message)
        if self._orders_subject:
            key = subject or None
        else:
            key = self._ordering_key and self._ordering_key(message)
        tenant = None
        if self._tenancy is not None:
            tenant = self._tenancy.name_in(message._user)
            key = self._tenancy.key_of(message, key)
        return Envelope(
            endpoint=self.endpoint.name,
            name=name,
            version=version,
            payload=text,
            headers=encode_headers(self._headers_of(message)),
            message_id=message.message_id,
            correlation_id=message.correlation_id,
            causation_id=message.causation_id,
            timestamp=message.timestamp,
            sequence=next_sequence(),
            available_at=available_at,
            expires_at=expires_at,
            priority=priority or 0,
            subject=subject,
            ordering_key=key,
            tenant=tenant,
        )

    def _declared(self, name: str, value: Any, message: Message) -> Due | None:
        """Return the declared delay or lifetime of a message, perhaps a function's."""
        __traceback_hide__ = True
        declared: Any = value
        if not callable(value):
            return declared  # type: ignore[no-any-return]
        found: Any = declared(message)
        try:
            if found is not None:
                self.channel.check_option(name, found)
        except InvalidOption as error:
            msg = (
                f"{self.endpoint.name} has {name}=, a function that returned "
                f"{found!r}. {error}"
            )
            raise InvalidOption(msg) from None
        return found  # type: ignore[no-any-return]

    def _headers_of(self, message: Message) -> dict[str, Any]:
        __traceback_hide__ = True
        headers = headers_of(message)
        unset = unset_of(self.endpoint, message._payload)
        if unset:
            headers[UNSET] = unset
        return headers

    def _subject_of(self, message: Message) -> str:
        subject, cls = self.endpoint.subject, type(message._payload)
        if subject is None:
            return ""
        address = self._addresses.get(cls)
        if address is None:
            address = self._addresses[cls] = subject.address(self.endpoint, cls)
        return address(message)


def release(message: Message, held: list[tuple[str, Channel, Delivery]]) -> None:
    """
    Send the messages held back until the publisher's direct handlers succeeded.

    Outside any transaction they are all stored in one.
    """
    scope = scope_of(message)
    for alias in dict.fromkeys(alias for alias, _, _ in held):
        connection = connections[alias]
        entries = [(channel, each) for to, channel, each in held if to == alias]
        with nullcontext() if connection.in_atomic_block else atomic(alias):
            send_all(scope, connection, entries)
