"""Envelopes as rows of the outbox: one INSERT, or as few as there can be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.channels import Envelope
from django_cqrs.outbox.dialects import literal, speaks_psycopg
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.times import as_stored
from django_cqrs.statements import fitting, portions

COLUMNS: Final = (
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


def insert(
    connection: BaseDatabaseWrapper,
    channel: str,
    envelopes: Sequence[Envelope],
    end: str = "",
) -> bool:
    """
    Store messages, all of them or none.

    Args:
        connection: of the outbox's database.
        channel: the alias of their channel.
        envelopes: at least one.
        end: what is sent behind the statement, where one is enough.

    Returns:
        Whether one was, so that `end` was sent.

    Raises:
        StatementTooLarge: one of them is more than the server takes at once.

    """
    if len(envelopes) == 1 and _is_plain(envelopes[0]) and speaks_psycopg(connection):
        statement, values = _plain(channel, envelopes[0])
        with connection.cursor() as cursor:
            cursor.execute(f"{statement}{end}", values)
        return True
    most = _rows_per_statement(connection)
    parts = portions(connection, envelopes, _size_of, rows=most)
    if len(parts) == 1:
        _store(connection, channel, envelopes, end)
        return True
    with transaction.atomic(using=connection.alias):
        for part in parts:
            _store(connection, channel, part)
    return False


def _store(
    connection: BaseDatabaseWrapper,
    channel: str,
    envelopes: Sequence[Envelope],
    end: str = "",
) -> None:
    adapters = _adapters(connection)
    rows = [_row(channel, envelope, *adapters) for envelope in envelopes]
    if len(rows) > 1:
        _insert(connection, rows, end)
        return
    envelope = envelopes[0]
    with fitting(connection, lambda: _size_of(envelope), lambda: _said(envelope)):
        _insert(connection, rows, end)


def _said(envelope: Envelope) -> str:
    return f"A message for {envelope.endpoint}"


# Of what is not counted: the names, the ids, the numbers.
_REST: Final = 4096


def _size_of(envelope: Envelope) -> int:
    """Return how many bytes of a statement a message takes at the most."""
    return 2 * (len(envelope.payload) + len(envelope.headers)) + _REST


# With few parameters ------------------------------------------------------------------

# For one message a driver spends more time on nineteen parameters than the server does
# on the row. Most of them are the same from message to message: names and numbers that
# stand in the project's code, which the text of the statement holds, quoted once. What
# a message carries is always a parameter: tools that trace statements, and report them,
# take the text for harmless.

_SAME: Final = {
    "state": str(State.READY.value),
    "attempts": "0",
    "token": "0",
    "subject": "''",
}
_NO_HEADERS: Final = b"{}"


def _is_plain(envelope: Envelope) -> bool:
    """Return whether it holds no text but its names, and waits for nothing."""
    return (
        envelope.available_at is None
        and envelope.expires_at is None
        and envelope.ordering_key is None
        and not envelope.subject
    )


@functools.lru_cache(maxsize=1024)
def _statement(names: tuple[str, str, str], numbers: tuple[int, int], rest: str) -> str:
    """
    Return the INSERT of a plain message, for PostgreSQL.

    Args:
        names: of its channel, its endpoint and the message.
        numbers: its version and its priority.
        rest: the columns that are parameters, divided by spaces.

    """
    texts = (literal(name).replace("%", "%%") for name in names)
    same = {
        **dict(zip(("channel", "endpoint", "name"), texts, strict=True)),
        **dict(zip(("version", "priority"), map(str, numbers), strict=True)),
        **_SAME,
    }
    own = rest.split()
    if "headers" not in own:
        same["headers"] = f"'{_NO_HEADERS.decode()}'"
    columns = ", ".join((*same, *own))
    values = ", ".join((*same.values(), *["%s"] * len(own)))
    table = OutboxMessage._meta.db_table
    return f'INSERT INTO "{table}" ({columns}) VALUES ({values})'  # noqa: S608 - quoted


def _plain(channel: str, envelope: Envelope) -> tuple[str, list[Any]]:
    """Return the INSERT of a plain message and its parameters."""
    names = (channel, envelope.endpoint, envelope.name)
    numbers = (envelope.version, envelope.priority)
    rest = "payload message_id correlation_id sent_at sequence"
    values: list[Any] = [
        envelope.payload,
        envelope.message_id,
        envelope.correlation_id,
        envelope.timestamp,
        envelope.sequence,
    ]
    if envelope.causation_id is not None:
        rest += " causation_id"
        values.append(envelope.causation_id)
    if envelope.headers != _NO_HEADERS:
        rest += " headers"
        values.append(envelope.headers)
    return _statement(names, numbers, rest), values


# With all parameters ------------------------------------------------------------------


def _adapters(
    connection: BaseDatabaseWrapper,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what makes ids, bytes and times into what the driver takes."""
    native = connection.features.has_native_uuid_field

    def as_uuid(value: UUID | None) -> Any:
        return value if native or value is None else value.hex

    def as_time(value: datetime | None) -> Any:
        return None if value is None else as_stored(value, connection)

    driver: Any = connection
    return as_uuid, driver.Database.Binary, as_time


def _row(
    channel: str,
    envelope: Envelope,
    as_uuid: Callable[[Any], Any],
    as_bytes: Callable[[Any], Any],
    as_time: Callable[[Any], Any],
) -> tuple[Any, ...]:
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


def _rows_per_statement(connection: BaseDatabaseWrapper) -> int:
    limit = connection.features.max_query_params
    return 1000 if limit is None else max(1, limit // len(COLUMNS))


# PostgreSQL takes a column as one array: a thousand rows are then 19 parameters.
_ARRAYS: Final = (
    ("text",) * 3
    + ("smallint",)
    + ("bytea",) * 2
    + ("uuid",) * 3
    + ("timestamptz",)
    + ("bigint", "integer", "timestamptz", "smallint", "timestamptz", "integer")
    + ("bigint", "text", "text")
)


def _insert(
    connection: BaseDatabaseWrapper, rows: list[tuple[Any, ...]], end: str = ""
) -> None:
    count = len(rows)
    if count > 1 and connection.vendor == "postgresql":
        values: Sequence[Any] = [list(column) for column in zip(*rows, strict=True)]
        count = 0  # one statement for any number
    else:
        values = rows[0] if count == 1 else [each for row in rows for each in row]
    statement = _statements.get((connection.vendor, count))
    if statement is None:
        statement = _insertion(connection.ops.quote_name, count)
        if count <= 1:
            _statements[connection.vendor, count] = statement
    with connection.cursor() as cursor:
        cursor.execute(f"{statement}{end}", values)


# For one row, and for arrays of rows.
_statements: dict[tuple[str, int], str] = {}


def _insertion(quote: Callable[[str], str], count: int) -> str:
    """Return what inserts so many rows, 0 for those of arrays."""
    if count:
        places = ", ".join(["%s"] * len(COLUMNS))
        source = f"VALUES {', '.join([f'({places})'] * count)}"
    else:
        arrays = ", ".join(f"%s::{each}[]" for each in _ARRAYS)
        source = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - no value in it
    names = ", ".join(map(quote, COLUMNS))
    return f"INSERT INTO {quote(OutboxMessage._meta.db_table)} ({names}) {source}"
