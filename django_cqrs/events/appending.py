"""
Append events: one statement for all of them, then everything that follows from them.

The order is fixed: the rows, snapshots, natural keys, inline projections; and when all
of these are done, each event is published once, under the id that it is stored with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.limits import ensure_storable
from django_cqrs.conversion.stored import MessageTypes, unset_in
from django_cqrs.events.decoding import TAGS, decoder_of
from django_cqrs.events.insertion import NEW, Target, insert
from django_cqrs.events.observing import observed_append
from django_cqrs.events.recorded import Recorded, Stored
from django_cqrs.events.tags import checked_tags, tags_of
from django_cqrs.events.waking import wake
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import HeaderValue, Message, Origin, current, sending_time
from django_cqrs.pipeline.envelopes import TRACE, UNSET, encode_headers, headers_of


class Entry(NamedTuple):
    """An event on its way into the store."""

    message: Message
    name: str
    shape: int
    payload: str
    headers: str
    tags: tuple[str, ...]
    event_id: UUID
    correlation_id: UUID
    causation_id: UUID | None
    recorded_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Append:
    """Events that were appended just now, for the steps that follow."""

    connection: BaseDatabaseWrapper
    registry: Registry
    recorded: Sequence[Recorded]
    """The events in order, at least one, all of one stream or of none."""

    @property
    def stream_id(self) -> int | None:
        """The key of the stream's row; None without a stream."""
        return self.recorded[0].stream_id


Hook = Callable[[Append], object]


class Following(NamedTuple):
    """A step that follows an append."""

    order: int
    hook: Hook
    wants: Callable[[Registry, Sequence[Entry]], bool]


INLINE: Final = 30

AboutVersion = Callable[["int | None"], Mapping[str, Any]]
"""Returns the headers about an aggregate, for the version of an event, if known."""

_following: list[Following] = []


def _always(_registry: Registry, _entries: Sequence[Entry]) -> bool:
    return True


def register_hook(
    order: int,
    hook: Hook,
    *,
    wants: Callable[[Registry, Sequence[Entry]], bool] = _always,
) -> None:
    """
    Call a function after every append, in its transaction, before publishing.

    Args:
        order: its place: :data:`INLINE` for inline projections.
        hook: the function. An exception that it raises fails the append.
        wants: returns whether it is to be called, for a registry and the events. An
            append that nobody follows needs no transaction beside its own statement.

    """
    following = Following(order, hook, wants)
    if following not in _following:
        _following.append(following)
        _following.sort(key=lambda each: each.order)


def append(
    events: Sequence[Any],
    target: Target,
    *,
    registry: Registry,
    using: str,
    headers: Mapping[str, HeaderValue] | None = None,
    about: AboutVersion | None = None,
    tags: Sequence[str] = (),
    first: Hook | None = None,
) -> list[Recorded]:
    """
    Append events in the open transaction, and call what follows, but do not publish.

    Args:
        events: the events in order, or each as a ``Stored``; at least one.
        target: their stream, and the version that it must have.
        registry: the registry with their classes.
        using: the alias of the database, which has an open transaction.
        headers: the user's headers for all of them.
        about: returns the headers about their aggregate, which are not passed on.
        tags: tags for all of them, beside those of their classes.
        first: called before the other steps: for a natural key, and a snapshot.

    Returns:
        The events, to be given to :func:`publish`. If they were stored before, at the
        same versions, nothing is appended, called or published.

    Raises:
        UnknownMessage: the class of an event is not registered.
        MessageConversionError: an event could not be restored from JSON. The path of
            the field is in the error.
        InvalidHeader: a header is reserved or cannot be stored.
        ConcurrencyError: the stream has another version; the transaction is usable.
        EventAlreadyStored: an event's id is in use; likewise.

    """
    __traceback_hide__ = True
    stream = target.stream
    category = None if stream is None else stream.category
    with observed_append(category, len(events)) as trace:
        entries = prepare(
            events,
            registry=registry,
            using=using,
            headers=headers,
            about=about,
            tags=tags,
            version=_version_before(target),
            trace=trace,
        )
        return store(entries, target, registry=registry, using=using, first=first)


def _version_before(target: Target) -> int | None:
    """Return the version of a stream before an append; None if it is not known."""
    if target.expected is NEW:
        return 0
    return target.expected if isinstance(target.expected, int) else None


def prepare(
    events: Sequence[Any],
    *,
    registry: Registry,
    using: str,
    headers: Mapping[str, HeaderValue] | None = None,
    about: AboutVersion | None = None,
    tags: Sequence[str] = (),
    version: int | None = None,
    trace: Mapping[str, str] | None = None,
) -> list[Entry]:
    """Return events as :func:`store` takes them; nothing is written."""
    __traceback_hide__ = True
    encoder = _Encoder(
        registry.routes.types,
        connections[using],
        headers,
        about,
        checked_tags(tags) if tags else (),
        trace=trace,
    )
    if version is None:
        return [encoder.entry(each) for each in events]
    return [encoder.entry(each, n) for n, each in enumerate(events, version + 1)]


def followers_of(entries: Sequence[Entry], registry: Registry) -> list[Following]:
    """Return the steps that are to follow an append."""
    return [each for each in _following if each.wants(registry, entries)]


def store(
    entries: Sequence[Entry],
    target: Target,
    *,
    registry: Registry,
    using: str,
    first: Hook | None = None,
) -> list[Recorded]:
    """Append events in the open transaction, and call what follows."""
    __traceback_hide__ = True
    connection = connections[using]
    placed = insert(connection, target, entries)
    wake(connection, registry, placed.places[-1][0])
    decoder = decoder_of(registry.routes.types)
    name = None if target.stream is None else str(target.stream)
    recorded = []
    for entry, (position, version) in zip(entries, placed.places, strict=True):
        each = Recorded(
            position,
            placed.stream_id,
            name,
            version,
            entry.name,
            entry.shape,
            entry.payload,
            entry.headers,
            entry.event_id,
            entry.correlation_id,
            entry.causation_id,
            entry.recorded_at,
            None,
            decoder,
        )
        each.take(entry.message._payload)
        if not placed.is_repeated:
            each.message = entry.message
        recorded.append(each)
    if placed.is_repeated:
        return recorded
    following = followers_of(entries, registry)
    if following or first is not None:
        done = Append(connection, registry, recorded)
        with transaction.atomic(using=using, savepoint=False):
            if first is not None:
                first(done)
            for step in following:
                step.hook(done)
    return recorded


def publish(recorded: Sequence[Recorded], registry: Registry, using: str) -> None:
    """
    Publish events that were appended just now, each under its stored id.

    Args:
        recorded: the result of :func:`append`.
        registry: the registry with the handlers.
        using: the alias of their database. If a handler fails, its transaction can
            only be rolled back.

    """
    __traceback_hide__ = True
    event_bus = registry.event_bus
    with transaction.atomic(using=using, savepoint=False):
        for each in recorded:
            if each.message is not None:
                event_bus.publish_message(each.message)


def is_heard(entries: Sequence[Entry], registry: Registry) -> bool:
    """Return whether any of the events has a handler."""
    event_bus = registry.event_bus
    return any(event_bus.has_handlers(each.message._payload) for each in entries)


class _MessageOfRow(Message):
    """The message of an event that is stored: its time is that of the row."""

    def __init__(self, event: Any, parent: Message | Origin) -> None:
        super().__init__(event, parent)
        self._taken = sending_time()

    @property
    def _nanoseconds(self) -> int:
        return self._taken

    @_nanoseconds.setter
    def _nanoseconds(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, _now: int
    ) -> None:
        """Keep the time, though its handling begins later."""


class _Encoder:
    """Makes entries of events that are appended together."""

    __slots__ = (
        "_about",
        "_connection",
        "_headers",
        "_parent",
        "_tags",
        "_trace",
        "_types",
    )

    def __init__(
        self,
        types: MessageTypes,
        connection: BaseDatabaseWrapper,
        headers: Mapping[str, HeaderValue] | None,
        about: AboutVersion | None,
        tags: tuple[str, ...],
        *,
        trace: Mapping[str, str] | None,
    ) -> None:
        self._trace = trace
        self._types = types
        self._connection = connection
        self._headers = headers
        self._about = about
        self._tags = tags
        self._parent = current.get()

    def entry(self, given: Any, version: int | None = None) -> Entry:
        __traceback_hide__ = True
        event, own, event_id = given, None, None
        if type(given) is Stored:
            event, own, event_id = given.event, given.headers, given.event_id
        if event is None or isinstance(event, type):
            msg = f"append() takes events, not {event!r}."
            raise InvalidOption(msg)
        message = _MessageOfRow(event, self._parent)
        if self._headers:
            message._add_headers(self._headers)
        if own:
            message._add_headers(own)
        if event_id is not None:
            message._message_id = event_id
        if self._about:
            message._aggregate = self._about(version)
        cls = type(event)
        name, text = self._types.encode(event)
        ensure_storable(text, self._connection, cls)
        stored = headers_of(message)
        if unset := unset_in(adapter_of(cls), event):
            stored[UNSET] = unset
        tags = tags_of(event, self._tags)
        if tags:
            stored[TAGS] = list(tags)
        if self._trace:
            stored[TRACE] = dict(self._trace)
        headers = "{}"
        if stored:
            written = encode_headers(stored)
            ensure_storable(written, self._connection, "the headers")
            headers = written.decode()
        return Entry(
            message,
            name.name,
            name.version,
            text.decode(),
            headers,
            tags,
            message.message_id,
            message.correlation_id,
            message.causation_id,
            message.timestamp,
        )
