"""Insert envelopes as rows of the outbox, with as few statements as possible."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.channels.channel import Envelope
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store.dialects import literal, speaks_psycopg
from django_cqrs.outbox.store.rows import INSERTED_COLUMNS, adapters_of, row_of
from django_cqrs.statements import fitting, portions


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
        end: the text to send after the statement, if one is enough.

    Returns:
        Whether one was enough, so that `end` was sent.

    Raises:
        StatementTooLarge: one of them is larger than the server accepts.

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
    adapters = adapters_of(connection)
    rows = [row_of(channel, envelope, *adapters) for envelope in envelopes]
    if len(rows) > 1:
        _insert(connection, rows, end)
        return
    envelope = envelopes[0]
    with fitting(connection, lambda: _size_of(envelope), lambda: _describe(envelope)):
        _insert(connection, rows, end)


def _describe(envelope: Envelope) -> str:
    return f"A message for {envelope.endpoint}"


# The bytes that are not counted: names, ids and numbers.
_REST: Final = 4096


def _size_of(envelope: Envelope) -> int:
    """Return the maximum number of bytes that a message takes in a statement."""
    return 2 * (len(envelope.payload) + len(envelope.headers)) + _REST


# With few parameters ------------------------------------------------------------------
# For one message a driver spends more time on nineteen parameters than the server on
# the row. Most of them are the same for every message: names and numbers from the
# project's code, which the text of the statement holds, quoted once. The content of a
# message is always a parameter, since tools that trace and report statements consider
# the text harmless.

_SAME: Final = {
    "state": str(State.READY.value),
    "attempts": "0",
    "token": "0",
    "subject": "''",
}
_NO_HEADERS: Final = b"{}"


def _is_plain(envelope: Envelope) -> bool:
    """Return whether its only texts are its names, and it waits for nothing."""
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
        rest: the columns that are parameters, separated by spaces.

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


def _rows_per_statement(connection: BaseDatabaseWrapper) -> int:
    limit = connection.features.max_query_params
    return 1000 if limit is None else max(1, limit // len(INSERTED_COLUMNS))


# PostgreSQL takes a column as one array: a thousand rows are 19 parameters.
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
    """Return the INSERT of so many rows; 0 means rows in arrays."""
    if count:
        places = ", ".join(["%s"] * len(INSERTED_COLUMNS))
        source = f"VALUES {', '.join([f'({places})'] * count)}"
    else:
        arrays = ", ".join(f"%s::{each}[]" for each in _ARRAYS)
        source = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - no value in it
    names = ", ".join(map(quote, INSERTED_COLUMNS))
    return f"INSERT INTO {quote(OutboxMessage._meta.db_table)} ({names}) {source}"
