"""The columns of events as raw statements write and read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.decoding import Decoder
from django_cqrs.events.models import (
    ArchivedEvent,
    EventTag,
    Snapshot,
    StoredEvent,
    Stream,
)
from django_cqrs.events.recorded import Recorded
from django_cqrs.times import as_read

EVENT: Final = StoredEvent._meta.db_table
STREAM: Final = Stream._meta.db_table
TAG: Final = EventTag._meta.db_table
SNAPSHOT: Final = Snapshot._meta.db_table
ARCHIVED: Final = ArchivedEvent._meta.db_table

LINK: Final = 13
"""The place of `link_to` among the columns of :func:`columns_read`."""

_READ: Final = (
    "e.position, e.stream_id, s.category, s.{key}, e.version, e.name, e.shape, "
    "e.payload, e.headers, e.event_id, e.correlation_id, e.causation_id, "
    "e.recorded_at, e.link_to"
)


def key_column(connection: BaseDatabaseWrapper) -> str:
    """Return the name of the column with the keys of streams, a reserved word."""
    return "`key`" if connection.vendor == "mysql" else "key"


def columns_read(connection: BaseDatabaseWrapper) -> str:
    """Return the columns of a :class:`Recorded`: an event `e` and its stream `s`."""
    return _READ.format(key=key_column(connection))


def uuid_writer(connection: BaseDatabaseWrapper) -> Callable[[UUID | None], Any]:
    """Return a function that converts an id for the driver."""
    if connection.features.has_native_uuid_field:
        return _same
    return _hex


def _same(value: Any) -> Any:
    return value


def _hex(value: UUID | None) -> str | None:
    return None if value is None else value.hex


def recorded_from(
    rows: Iterable[tuple[Any, ...]], connection: BaseDatabaseWrapper, decoder: Decoder
) -> list[Recorded]:
    """Return rows of :func:`columns_read` as events."""
    is_converted = connection.vendor != "postgresql" or not settings.USE_TZ
    found = []
    for (
        position,
        stream_id,
        category,
        key,
        version,
        name,
        shape,
        payload,
        headers,
        event_id,
        correlation_id,
        causation_id,
        recorded_at,
        link_to,
    ) in rows:
        if is_converted:
            payload, headers = _text(payload), _text(headers)  # noqa: PLW2901
            event_id, correlation_id = _uuid(event_id), _uuid(correlation_id)  # noqa: PLW2901
            if causation_id is not None:
                causation_id = _uuid(causation_id)  # noqa: PLW2901
            recorded_at = as_read(recorded_at, connection)  # noqa: PLW2901
        found.append(
            Recorded(
                position,
                stream_id,
                f"{category}-{key}" if key else category,
                version,
                name,
                shape,
                payload,
                headers,
                event_id,
                correlation_id,
                causation_id,
                recorded_at,
                link_to,
                decoder,
            )
        )
    return found


def _uuid(value: Any) -> UUID:
    return value if type(value) is UUID else UUID(str(value))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
