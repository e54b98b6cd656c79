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

from django_cqrs.annotations import path_of
from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.limits import ensure_storable
from django_cqrs.conversion.stored import unset_in
from django_cqrs.events.decoding import TAGS, decoder_of
from django_cqrs.events.insertion import Target, insert
from django_cqrs.events.recorded import Recorded, Stored
from django_cqrs.events.tags import checked_tags, tags_of
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import HeaderValue, Message, current
from django_cqrs.pipeline.envelopes import UNSET, encode_headers, headers_of


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
    instance: Any = None
    """The aggregate, with these events applied, if one appended them."""

    @property
    def stream_id(self) -> int | None:
        """The key of the stream's row; None without a stream."""
        return self.recorded[0].stream_id


Hook = Callable[[Append], object]

SNAPSHOT: Final = 10
NATURAL_KEY: Final = 20
INLINE: Final = 30

_hooks: list[tuple[int, Hook]] = []


def register_hook(order: int, hook: Hook) -> None:
    """
    Call a function after every append, in its transaction, before publishing.

    Args:
        order: its place: :data:`SNAPSHOT`, :data:`NATURAL_KEY` or :data:`INLINE`.
        hook: the function. An exception that it raises fails the append.

    """
    if (order, hook) not in _hooks:
        _hooks.append((order, hook))
        _hooks.sort(key=lambda pair: pair[0])


def append(
    events: Sequence[Any],
    target: Target,
    *,
    registry: Registry,
    using: str,
    headers: Mapping[str, HeaderValue] | None = None,
    about: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    instance: Any = None,
) -> list[Recorded]:
    """
    Append events in the open transaction, and call what follows, but do not publish.

    Args:
        events: the events in order, or each as a ``Stored``; at least one.
        target: their stream, and the version that it must have.
        registry: the registry with their classes.
        using: the alias of the database, which has an open transaction.
        headers: the user's headers for all of them.
        about: the headers about their aggregate, which are not passed on.
        tags: tags for all of them, beside those of their classes.
        instance: their aggregate, for snapshots and natural keys.

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
    connection = connections[using]
    tags = checked_tags(tags)
    entries = [
        _entry(
            each,
            registry=registry,
            connection=connection,
            headers=headers,
            about=about,
            tags=tags,
        )
        for each in events
    ]
    placed = insert(connection, target, entries)
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
    if _hooks and not placed.is_repeated:
        done = Append(connection, registry, recorded, instance)
        with transaction.atomic(using=using, savepoint=False):
            for _, hook in _hooks:
                hook(done)
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


def _entry(
    given: Any,
    *,
    registry: Registry,
    connection: BaseDatabaseWrapper,
    headers: Mapping[str, HeaderValue] | None,
    about: Mapping[str, Any] | None,
    tags: tuple[str, ...],
) -> Entry:
    __traceback_hide__ = True
    event, own, event_id = given, None, None
    if type(given) is Stored:
        event, own, event_id = given.event, given.headers, given.event_id
    if event is None or isinstance(event, type):
        msg = f"append() takes events, not {event!r}."
        raise InvalidOption(msg)
    message = Message(event, current.get())
    if headers:
        message._add_headers(headers)
    if own:
        message._add_headers(own)
    if event_id is not None:
        message._message_id = event_id
    if about:
        message._aggregate = about
    cls = type(event)
    name, text = registry.routes.types.encode(event)
    ensure_storable(text, connection, path_of(cls))
    stored = headers_of(message)
    if unset := unset_in(adapter_of(cls), event):
        stored[UNSET] = unset
    tags = tags_of(event, tags)
    if tags:
        stored[TAGS] = list(tags)
    written = encode_headers(stored)
    if stored:
        ensure_storable(written, connection, "the headers")
    return Entry(
        message,
        name.name,
        name.version,
        text.decode(),
        written.decode(),
        tags,
        message.message_id,
        message.correlation_id,
        message.causation_id,
        message.timestamp,
    )
