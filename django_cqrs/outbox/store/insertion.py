"""Insert envelopes as rows of the outbox, with as few statements as possible."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.channels.channel import Envelope
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store.dialects import (
    forgive_notification,
    literal,
    speaks_psycopg,
)
from django_cqrs.outbox.store.rows import (
    INSERTED_COLUMNS,
    TENANT,
    adapters_of,
    row_of,
)
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
    if len(envelopes) == 1:
        _store_one(connection, channel, envelopes[0], end)
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


def _store_one(
    connection: BaseDatabaseWrapper, channel: str, envelope: Envelope, end: str = ""
) -> None:
    if _is_plain(envelope):
        statement, values = _plain(connection, channel, envelope)
        write = partial(_execute, connection, f"{statement}{end}", values)
    else:
        row = row_of(channel, envelope, *adapters_of(connection))
        write = partial(_insert, connection, [row], [envelope.tenant], end)
    if connection.vendor != "mysql":
        write()
        return
    with fitting(connection, lambda: _size_of(envelope), lambda: _describe(envelope)):
        write()


def _store(
    connection: BaseDatabaseWrapper,
    channel: str,
    envelopes: Sequence[Envelope],
    end: str = "",
) -> None:
    if len(envelopes) == 1:
        _store_one(connection, channel, envelopes[0], end)
        return
    adapters = adapters_of(connection)
    rows = [row_of(channel, envelope, *adapters) for envelope in envelopes]
    _insert(connection, rows, [each.tenant for each in envelopes], end)


def _describe(envelope: Envelope) -> str:
    return f"A message for {envelope.endpoint}"


# The bytes that are not counted: names, ids and numbers.
_REST: Final = 4096


def _size_of(envelope: Envelope) -> int:
    """Return the maximum number of bytes that a message takes in a statement."""
    return 2 * (len(envelope.payload) + len(envelope.headers)) + _REST


# With few parameters ------------------------------------------------------------------
# For one message a driver spends more time on nineteen parameters than the server on
# the row. Most of them are the same for every message: numbers from the project's code,
# and on PostgreSQL names, which the text of the statement holds, quoted once. The
# content of a message is always a parameter, since tools that trace and report
# statements consider the text harmless.

_SAME: Final = {
    "state": str(State.READY.value),
    "attempts": "0",
    "token": "0",
    "subject": "''",
}
_NO_HEADERS: Final = b"{}"
_NAMES: Final = "channel endpoint name"


def _is_plain(envelope: Envelope) -> bool:
    """Return whether its only texts are its names, and it waits for nothing."""
    return (
        envelope.available_at is None
        and envelope.expires_at is None
        and envelope.ordering_key is None
        and not envelope.subject
    )


@functools.lru_cache(maxsize=1024)
def _statement(
    vendor: str, names: tuple[str, ...], numbers: tuple[int, int], rest: str
) -> str:
    """
    Return the INSERT of a plain message.

    Args:
        vendor: of the database.
        names: of its channel, its endpoint and the message, if the text of the
            statement contains them: this needs psycopg, which quotes them.
        numbers: its version and its priority.
        rest: the columns that are parameters, separated by spaces.

    """
    own = rest.split()
    same = dict(zip(("version", "priority"), map(str, numbers), strict=True))
    same |= _SAME
    if names:
        texts = (literal(name).replace("%", "%%") for name in names)
        same = {**dict(zip(_NAMES.split(), texts, strict=True)), **same}
    if "headers" not in own:
        # Not text: SQLite would store it as text.
        is_text = vendor == "postgresql"
        same["headers"] = (
            f"'{_NO_HEADERS.decode()}'" if is_text else f"x'{_NO_HEADERS.hex()}'"
        )
    columns = ", ".join((*same, *own))
    values = ", ".join((*same.values(), *["%s"] * len(own)))
    mark = "`" if vendor == "mysql" else '"'
    table = f"{mark}{OutboxMessage._meta.db_table}{mark}"
    return f"INSERT INTO {table} ({columns}) VALUES ({values})"  # noqa: S608 - quoted


def _plain(
    connection: BaseDatabaseWrapper, channel: str, envelope: Envelope
) -> tuple[str, list[Any]]:
    """Return the INSERT of a plain message and its parameters."""
    names: tuple[str, ...] = (channel, envelope.endpoint, envelope.name)
    numbers = (envelope.version, envelope.priority)
    rest = "payload message_id correlation_id sent_at sequence"
    as_uuid: Callable[[Any], Any] = _as_is
    as_bytes = as_time = as_uuid
    values: list[Any] = []
    if not speaks_psycopg(connection):
        as_uuid, as_bytes, as_time = adapters_of(connection)
        rest = f"{_NAMES} {rest}"
        values += names
        names = ()
    values += (
        as_bytes(envelope.payload),
        as_uuid(envelope.message_id),
        as_uuid(envelope.correlation_id),
        as_time(envelope.timestamp),
        envelope.sequence,
    )
    if envelope.causation_id is not None:
        rest += " causation_id"
        values.append(as_uuid(envelope.causation_id))
    if envelope.tenant is not None:
        rest += f" {TENANT}"
        values.append(envelope.tenant)
    if envelope.headers != _NO_HEADERS:
        rest += " headers"
        values.append(as_bytes(envelope.headers))
    return _statement(connection.vendor, names, numbers, rest), values


def _as_is(value: Any) -> Any:
    return value


def _rows_per_statement(connection: BaseDatabaseWrapper) -> int:
    limit = connection.features.max_query_params
    return 1000 if limit is None else max(1, limit // (len(INSERTED_COLUMNS) + 1))


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
    connection: BaseDatabaseWrapper,
    rows: list[tuple[Any, ...]],
    tenants: Sequence[str | None],
    end: str = "",
) -> None:
    count = len(rows)
    has_tenants = any(tenants)
    if has_tenants:
        rows = [(*row, tenant) for row, tenant in zip(rows, tenants, strict=True)]
    if count > 1 and connection.vendor == "postgresql":
        values: Sequence[Any] = [list(column) for column in zip(*rows, strict=True)]
        count = 0  # one statement for any number
    else:
        values = rows[0] if count == 1 else [each for row in rows for each in row]
    key = connection.vendor, count, has_tenants
    statement = _statements.get(key)
    if statement is None:
        statement = _insertion(connection.ops.quote_name, count, has_tenants)
        if count <= 1:
            _statements[key] = statement
    _execute(connection, f"{statement}{end}", values)


_NOTIFY: Final = "; NOTIFY "


def _execute(
    connection: BaseDatabaseWrapper, statement: str, values: Sequence[Any]
) -> None:
    with connection.cursor() as cursor:
        if _NOTIFY in statement:
            forgive_notification(cursor.cursor)
        cursor.execute(statement, values)


# For one row, and for arrays of rows.
_statements: dict[tuple[str, int, bool], str] = {}


def _insertion(quote: Callable[[str], str], count: int, has_tenants: bool) -> str:
    """Return the INSERT of so many rows; 0 means rows in arrays."""
    columns: tuple[str, ...] = INSERTED_COLUMNS
    types: tuple[str, ...] = _ARRAYS
    if has_tenants:
        columns, types = (*columns, TENANT), (*types, "text")
    if count:
        places = ", ".join(["%s"] * len(columns))
        source = f"VALUES {', '.join([f'({places})'] * count)}"
    else:
        arrays = ", ".join(f"%s::{each}[]" for each in types)
        source = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - no value in it
    names = ", ".join(map(quote, columns))
    return f"INSERT INTO {quote(OutboxMessage._meta.db_table)} ({names}) {source}"
