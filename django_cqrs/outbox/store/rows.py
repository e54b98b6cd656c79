"""Rows of the outbox as messages, and messages as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, Expression, F, Func, IntegerField, When
from django.db.models.lookups import LessThanOrEqual

from django_cqrs.channels.channel import Envelope
from django_cqrs.frozen import maker_of
from django_cqrs.outbox.models import State
from django_cqrs.pipeline.tenancy import tenant_of
from django_cqrs.times import as_sent, as_stored

LARGEST_CLAIMED: Final = 64 * 2**10
"""The maximum size of the payload and headers that a claim reads, in bytes."""

CLAIMED_COLUMNS = (
    "id",
    "endpoint",
    "name",
    "version",
    "payload",
    "headers",
    "message_id",
    "correlation_id",
    "causation_id",
    "sent_at",
    "sequence",
    "priority",
    "expires_at",
    "attempts",
    "channel",
    "subject",
    "size",  # of payload and headers, which are NULL if they are too large
    "ordering_key",  # the last column of every row that is taken
)
"""The columns that a claim reads."""

_CONTENT: Final = "payload", "headers"


def in_sql(column: str, table: str = "") -> str:
    """
    Return the SQL for a column of :data:`CLAIMED_COLUMNS`.

    Args:
        column: its name.
        table: the name of the table, if the statement has several.

    """
    own = f"{table}." if table else ""
    size = " + ".join(f"LENGTH({own}{name})" for name in _CONTENT)
    if column == "size":
        return f"{size} AS size"
    if column in _CONTENT:
        small = f"{size} <= {LARGEST_CLAIMED}"
        return f"CASE WHEN {small} THEN {own}{column} END AS {column}"
    return f"{own}{column}"


def in_query(columns: Iterable[str]) -> list[str | Expression]:
    """Return the arguments of `values_list()` for :data:`CLAIMED_COLUMNS`."""
    return [_IN_QUERY.get(column, column) for column in columns]


def _bytes_of(column: str) -> Func:
    # Django's Length counts characters where MySQL sees text.
    return Func(F(column), function="LENGTH", output_field=IntegerField())


_SIZE: Final = _bytes_of("payload") + _bytes_of("headers")
_IN_QUERY: Final[dict[str, Expression]] = {
    "size": _SIZE,
    **{
        name: Case(When(LessThanOrEqual(_SIZE, LARGEST_CLAIMED), then=F(name)))
        for name in _CONTENT
    },
}

ENDPOINT = CLAIMED_COLUMNS.index("endpoint")
_ATTEMPTS = CLAIMED_COLUMNS.index("attempts")


class Taking(NamedTuple):
    """How rows are to be taken."""

    state: State
    owner: str
    lease: timedelta
    becomes: State = State.CLAIMED
    columns: tuple[str, ...] = CLAIMED_COLUMNS
    allowed: Callable[[str], int] | None = None

    def has_attempt_left(self, row: tuple[Any, ...]) -> bool:
        """Return whether an abandoned message has an attempt left."""
        return self.allowed is None or row[_ATTEMPTS] < self.allowed(row[ENDPOINT])


Group = tuple[str, str]
"""An endpoint and an ordering key: their messages are handled one at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claimed:
    """A message that this worker alone may handle, until its lease runs out."""

    pk: int
    envelope: Envelope
    attempts: int
    """The number of counted attempts, without this one."""
    channel: str
    ordering_key: str | None = dataclasses.field(repr=False)
    is_counted: bool = False
    """Whether this attempt was counted already, when it was claimed."""
    is_poison: bool = False
    """Whether it has killed as many workers as it may, and must not be tried."""
    group: Group | None = dataclasses.field(default=None, repr=False)
    """Its ordering group: its endpoint's present name, and its key."""
    size: int = 0
    """The number of bytes of its payload and headers."""
    is_loaded: bool = True
    """Whether payload and headers have been read: large ones are read when needed."""


PLACE_COLUMNS = "id", "endpoint", "ordering_key"

SEQUENCE = CLAIMED_COLUMNS.index("sequence")
PRIORITY = CLAIMED_COLUMNS.index("priority")


def envelope_of(values: Mapping[str, Any]) -> Envelope:
    """Return the envelope stored in columns, given by name."""
    expires_at = values["expires_at"]
    return Envelope(
        endpoint=values["endpoint"],
        name=values["name"],
        version=values["version"],
        payload=bytes(values["payload"]),
        headers=bytes(values["headers"]),
        message_id=values["message_id"],
        correlation_id=values["correlation_id"],
        causation_id=values["causation_id"],
        timestamp=as_sent(values["sent_at"]),
        sequence=values["sequence"],
        expires_at=expires_at and as_sent(expires_at),
        priority=values["priority"],
        subject=values["subject"],
        ordering_key=values["ordering_key"],
        tenant=values["tenant"],
    )


def values_of(envelope: Envelope) -> dict[str, Any]:
    """Return the columns that store an envelope, by name."""
    return {
        "endpoint": envelope.endpoint,
        "name": envelope.name,
        "version": envelope.version,
        "payload": envelope.payload,
        "headers": envelope.headers,
        "message_id": envelope.message_id,
        "correlation_id": envelope.correlation_id,
        "causation_id": envelope.causation_id,
        "sent_at": envelope.timestamp,
        "sequence": envelope.sequence,
        "priority": envelope.priority,
        "expires_at": envelope.expires_at,
        "ordering_key": envelope.ordering_key,
        "subject": envelope.subject,
        "tenant": tenant_of(envelope),
    }


_make_envelope = maker_of(Envelope)
_make_claimed = maker_of(Claimed)


def claimed_from(row: tuple[Any, ...], group: Group | None) -> Claimed:
    """Return the message of a row of :data:`CLAIMED_COLUMNS`."""
    (
        pk,
        endpoint,
        name,
        version,
        payload,
        headers,
        message_id,
        correlation_id,
        causation_id,
        sent_at,
        sequence,
        priority,
        expires_at,
        attempts,
        channel,
        subject,
        size,
        ordering_key,
    ) = row
    is_loaded = payload is not None
    envelope = _make_envelope(
        endpoint=endpoint,
        name=name,
        version=version,
        payload=bytes(payload) if is_loaded else b"",
        headers=bytes(headers) if is_loaded else b"",
        message_id=message_id,
        correlation_id=correlation_id,
        causation_id=causation_id,
        timestamp=as_sent(sent_at),
        sequence=sequence,
        expires_at=expires_at and as_sent(expires_at),
        priority=priority,
        subject=subject,
        ordering_key=ordering_key,
    )
    return _make_claimed(
        pk,
        envelope,
        attempts,
        channel,
        ordering_key,
        group=group,
        size=size,
        is_loaded=is_loaded,
    )


INSERTED_COLUMNS: Final = (
    "channel",
    "endpoint",
    "name",
    "version",
    "payload",
    "headers",
    "message_id",
    "correlation_id",
    "causation_id",
    "sent_at",
    "sequence",
    "priority",
    "expires_at",
    "state",
    "available_at",
    "attempts",
    "token",
    "subject",
    "ordering_key",
)

TENANT: Final = "tenant"
"""The column that an INSERT only names if a message has a tenant."""

# With all parameters ------------------------------------------------------------------


def adapters_of(
    connection: BaseDatabaseWrapper,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]:
    """Return functions that convert ids, bytes and times for the driver."""
    native = connection.features.has_native_uuid_field

    def as_uuid(value: UUID | None) -> Any:
        return value if native or value is None else value.hex

    def as_time(value: datetime | None) -> Any:
        return None if value is None else as_stored(value, connection)

    driver: Any = connection
    return as_uuid, driver.Database.Binary, as_time


def row_of(
    channel: str,
    envelope: Envelope,
    as_uuid: Callable[[Any], Any],
    as_bytes: Callable[[Any], Any],
    as_time: Callable[[Any], Any],
) -> tuple[Any, ...]:
    """Return a message as a row of :data:`INSERTED_COLUMNS`."""
    is_delayed = envelope.available_at is not None
    return (
        channel,
        envelope.endpoint,
        envelope.name,
        envelope.version,
        as_bytes(envelope.payload),
        as_bytes(envelope.headers),
        as_uuid(envelope.message_id),
        as_uuid(envelope.correlation_id),
        as_uuid(envelope.causation_id),
        as_time(envelope.timestamp),
        envelope.sequence,
        envelope.priority,
        as_time(envelope.expires_at),
        State.DELAYED.value if is_delayed else State.READY.value,
        as_time(envelope.available_at),
        0,
        0,
        envelope.subject,
        envelope.ordering_key,
    )
