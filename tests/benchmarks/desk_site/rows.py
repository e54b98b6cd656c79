"""Rows of the outbox as a project has them that has been in use, by one statement."""

from __future__ import annotations

from django.db import connection
from django.db.models import Model

from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage, State

MODELS = OutboxMessage, DeadLetter, JournalEntry
CHANNELS = "orders", "mail", "reports"
ENDPOINTS = 20
RARE = 100_000
"""Of so many rows one is for an endpoint that hardly anything is for."""
RARE_ENDPOINT, RARE_NAME = "shop.handle99", "shop.Order99"

# How each database makes rows out of nothing, and an id, bytes and a time ago.
NUMBERS = {
    "postgresql": "generate_series({first}, {last}) AS s(n)",
    "mysql": "(SELECT CAST(seq AS signed) AS n FROM seq_{first}_to_{last}) s",
    "sqlite": (
        "(WITH RECURSIVE s(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s "
        "WHERE n < {last}) SELECT n FROM s) s"
    ),
}
UUIDS = {
    "postgresql": "gen_random_uuid()",
    "mysql": "UUID()",
    "sqlite": "lower(hex(randomblob(16)))",
}
# A thing of its number, the same in every table.
SHARED = {
    "postgresql": "CAST(md5(CAST({0} AS text)) AS uuid)",
    "mysql": "CONCAT('00000000-0000-4000-8000-', LPAD({0}, 12, '0'))",
    "sqlite": "printf('%032x', {0})",
}
SUBJECT = "'shop.Order:'"
MOMENTS = {
    "postgresql": "now() + ({0}) * interval '1 second'",
    "mysql": "NOW(6) + INTERVAL ({0}) SECOND",
    "sqlite": "datetime('now', ({0}) || ' seconds')",
}


def fill(model: type[Model], first: int, last: int) -> None:
    """Insert the rows of these numbers."""
    vendor = connection.vendor
    moment = MOMENTS[vendor].format
    line = '  File "shop.py", line 7, in handle: call() '
    number = f"CASE WHEN n % {RARE} = 7 THEN 99 ELSE n % {ENDPOINTS} END"
    columns = {
        "channel": _one_of(CHANNELS),
        # A few messages of one command each, for as many objects.
        "correlation_id": SHARED[vendor].format("n - n % 5"),
        "subject": f"CASE WHEN n % 4 = 0 THEN {_joined(SUBJECT, 'n - n % 20')} ELSE '' END",
        "endpoint": _joined("'shop.handle'", number),
        "name": _joined("'shop.Order'", number),
        "message_id": UUIDS[vendor],
        "attempts": "1",
    }
    if model is JournalEntry:
        columns |= {
            "at": moment("n - 2000000"),
            "kind": "'command'",
            "outcome": f"CASE WHEN n % {RARE} = 9 THEN 'failed' ELSE 'handled' END",
            "duration": "1234",
            "exception": "''",
            "error": "''",
        }
    else:
        columns |= {
            "version": "1",
            "payload": _bytes(b'{"number":' + b"7" * 100 + b"}"),
            "headers": _bytes(b'{"executor_id":7}'),
            "sent_at": moment("n - 2000000"),
            "sequence": "n",
            "priority": "0",
        }
    if model is DeadLetter:
        columns |= {
            "reason": _one_of(("failed", "failed", "failed", "poison")),
            "exception": "'builtins.ValueError'",
            "error": "'no such order'",
            "traceback": f"'{line * 20}'",
            "failed_at": moment("n - 1500000"),
            "ordering_key": _joined("'customer-'", "n"),
        }
    elif model is OutboxMessage:
        states = [State.READY, State.READY, State.PARKED, *[State.DELAYED] * 5]
        later, key = moment("n + 1000"), _joined("'customer-'", "n")
        columns |= {
            "state": _one_of([state.value for state in states]),
            "available_at": f"CASE WHEN n % 8 > 2 THEN {later} END",
            "ordering_key": f"CASE WHEN n % 8 = 2 THEN {key} END",
            "token": "0",
        }
    quote = connection.ops.quote_name
    names = ", ".join(map(quote, columns))
    numbers = NUMBERS[vendor].format(first=first, last=last)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(model._meta.db_table)} ({names}) "
            f"SELECT {', '.join(columns.values())} FROM {numbers}"
        )


def tidy() -> None:
    """Let the database know what it has, as it does by itself in time."""
    statement = {"postgresql": "VACUUM ANALYZE", "sqlite": "ANALYZE"}
    tables = ", ".join(m._meta.db_table for m in MODELS)
    with connection.cursor() as cursor:
        cursor.execute(statement.get(connection.vendor) or f"ANALYZE TABLE {tables}")


def _one_of(values: object) -> str:
    found = list(values)
    cases = " ".join(
        f"WHEN {place} THEN {value!r}" for place, value in enumerate(found)
    )
    return f"CASE n % {len(found)} {cases} END"


def _joined(*parts: str) -> str:
    if connection.vendor == "mysql":
        return f"CONCAT({', '.join(parts)})"
    return " || ".join(f"CAST({part} AS varchar(99))" for part in parts)


def _bytes(value: bytes) -> str:
    if connection.vendor == "postgresql":
        return f"'\\x{value.hex()}'::bytea"
    return f"x'{value.hex()}'"
