"""What the outbox may ask of a database's driver to spare round trips to the server."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.retries import Transient

# Not to wait for the disk: a claim that a crash undoes is a claim not made.
RELAX: Final = "SET LOCAL synchronous_commit = off"
# How long a claim in order waits for another's to be made, in seconds.
PATIENCE: Final = 0.1
LOCK_TIMEOUT: Final = Transient(
    sqlstates=frozenset({"55P03"}),  # lock_not_available
    mysql_codes=frozenset(),
)
# Plans that hold also where a table has grown since: by the index of what is asked.
BY_INDEX: Final = (
    f"{RELAX}; SET LOCAL plan_cache_mode = force_generic_plan; "
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"
)
NO_PLAN: Final = Transient(
    # Of no such name, of a name that is taken, and of columns that a migration changed.
    sqlstates=frozenset({"26000", "42P05", "0A000"}),
    mysql_codes=frozenset(),
)
ADVISORY_LOCK: Final = int.from_bytes(b"cqrs-key", "big") >> 1

NOTIFICATION = "django_cqrs_outbox"
"""The PostgreSQL notification that wakes workers; its payload is the alias."""


def sends_several(connection: BaseDatabaseWrapper) -> bool:
    """
    Return whether a statement may be several, divided by semicolons.

    On PostgreSQL it may, and outside a transaction they then are one, unless the
    parameters are bound by the server: ``OPTIONS`` say so for psycopg 3.
    """
    options = connection.settings_dict.get("OPTIONS", {})
    return connection.vendor == "postgresql" and not options.get("server_side_binding")


COMMIT: Final = "; COMMIT"


def can_commit(connection: BaseDatabaseWrapper) -> bool:
    """
    Return whether :data:`COMMIT` behind the last statement spares a round trip.

    It must be the transaction of an outermost ``atomic()`` that is just ending. Then
    ``atomic()`` calls the driver's ``commit()``, and psycopg 3, which looks at the
    state of the connection, finds nothing left to commit. Where the statement fails
    the server does not get to the COMMIT behind it; where the COMMIT fails, by a
    constraint that is checked then, the error is raised as that of a statement is.
    What wraps the statements, and may send others after them, is left its transaction.
    """
    driver: Any = connection.connection
    session = getattr(driver, "pgconn", None)
    return (
        session is not None
        and sends_several(connection)
        and connection.in_atomic_block
        and connection.commit_on_exit
        and not connection.savepoint_ids
        and not connection.execute_wrappers
        and not session.pipeline_status
    )


def among(
    connection: BaseDatabaseWrapper, numbers: Sequence[int]
) -> tuple[str, list[Any]]:
    """
    Return an SQL membership test for integers, with its parameters.

    On PostgreSQL that is one parameter and one text for any number of them: the driver
    keeps what it has learned of a text, and a hundred parameters take their time.
    """
    if connection.vendor == "postgresql":
        return "= ANY(%s::bigint[])", [f"{{{','.join(map(str, numbers))}}}"]
    return f"IN ({', '.join(['%s'] * len(numbers))})", list(numbers)


def to_last_result(cursor: Any) -> None:
    """Pass over the results of all statements but the last; psycopg 2 has no others."""
    if hasattr(cursor.cursor, "pgresult"):
        while cursor.nextset():
            pass


def speaks_psycopg(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the driver of an open connection is psycopg 3."""
    return hasattr(connection.connection, "pgconn")


@functools.lru_cache(maxsize=1024)
def literal(text: str) -> str:
    """
    Return text as a literal for a statement of PostgreSQL, by psycopg 3.

    For names that stand in the project's code, of which there are only so many.
    """
    from psycopg.sql import quote

    return quote(text)


_NO_TABLE: Final = (1146,)  # of MySQL and MariaDB


def lacks_table(error: DatabaseError) -> bool:
    """Return whether a statement has failed for want of its table."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    code = error.args[0] if error.args else None
    return (
        state == "42P01"  # undefined_table
        or code in _NO_TABLE
        or str(error).startswith("no such table")  # SQLite has no codes
    )
