"""Features of database drivers that save the outbox round trips to the server."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, Final

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.retries import Transient

logger: Final = logging.getLogger("django_cqrs.channels")

# Do not wait for the disk: a claim that a crash undoes was never made.
RELAX: Final = "SET LOCAL synchronous_commit = off"
# The time that a claim in order waits for another one, in seconds.
PATIENCE: Final = 0.1
LOCK_TIMEOUT: Final = Transient(
    sqlstates=frozenset({"55P03"}),  # lock_not_available
    mysql_codes=frozenset(),
)
# Plans that stay valid while the table grows: they use the index of the condition.
NO_SCAN: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"
BY_INDEX: Final = f"{RELAX}; SET LOCAL plan_cache_mode = force_generic_plan; {NO_SCAN}"
NO_PLAN: Final = Transient(
    # An unknown name, a name in use, and columns that a migration changed.
    sqlstates=frozenset({"26000", "42P05", "0A000"}),
    mysql_codes=frozenset(),
)
ADVISORY_LOCK: Final = int.from_bytes(b"cqrs-key", "big") >> 1

NOTIFICATION = "django_cqrs_outbox"
"""The PostgreSQL notification that wakes workers; its payload is the alias."""


def sends_several(connection: BaseDatabaseWrapper) -> bool:
    """
    Return whether one statement may hold several, separated by semicolons.

    PostgreSQL allows it, and outside a transaction they then form one, unless the
    server binds the parameters: psycopg 3 has ``OPTIONS`` for that.
    """
    options = connection.settings_dict.get("OPTIONS", {})
    return connection.vendor == "postgresql" and not options.get("server_side_binding")


def forms_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether statements that are sent together now form a transaction."""
    return (
        sends_several(connection)
        and not connection.in_atomic_block
        and connection.get_autocommit()
    )


COMMIT: Final = "; COMMIT"


def can_commit(connection: BaseDatabaseWrapper) -> bool:
    """
    Return whether :data:`COMMIT` after the last statement saves a round trip.

    The transaction must be that of an outermost ``atomic()`` which is about to end.
    Then ``atomic()`` calls the driver's ``commit()``, and psycopg 3, which looks at the
    state of the connection, finds nothing left to commit. If the statement fails, the
    server does not reach the COMMIT after it. If the COMMIT fails, by a deferred
    constraint, the error is raised like that of a statement. Execute wrappers, which
    may send other statements afterwards, keep their transaction.
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


def commit_and_notify(connection: BaseDatabaseWrapper, alias: str) -> str | None:
    """
    Return :data:`COMMIT` with the notification of a channel's workers after it.

    The notification is not part of the transaction, whose commit would then wait for
    others that notify. It is sent in the same round trip, and if the server refuses it,
    that is logged: the transaction has been committed.

    Args:
        connection: for which :func:`can_commit` is true.
        alias: the alias of the channel.

    Returns:
        None if the driver cannot do it.

    """
    kind = getattr(connection.connection, "cursor_factory", None)
    if kind is None or _notifying(kind) is None:
        return None
    return f"{COMMIT}; NOTIFY {NOTIFICATION}, {literal(alias)}"


def forgive_notification(cursor: Any) -> None:
    """Let a cursor log the error of a notification that follows a COMMIT."""
    kind = _notifying(type(cursor))
    if kind is not None:
        cursor.__class__ = kind


_notifying_classes: dict[type[Any], type[Any] | None] = {}


def _notifying(kind: type[Any]) -> type[Any] | None:
    """Return a subclass of Django's own class of cursors, None for any other."""
    if kind not in _notifying_classes:
        _notifying_classes[kind] = _made_notifying(kind)
    return _notifying_classes[kind]


def _made_notifying(kind: type[Any]) -> type[Any] | None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name != "django.db.backends.postgresql.base.Cursor" or not hasattr(
        kind, "_check_results"
    ):
        return None
    return type("NotifyingCursor", (_Notifying, kind), {})


class _Notifying:
    def _check_results(self, results: list[Any]) -> None:
        committed = [each.command_status == b"COMMIT" for each in results[:-1]]
        if any(committed) and results[-1].error_message:
            logger.warning(
                "A message is stored, but its worker could not be notified: %s",
                results[-1].error_message.decode(errors="replace").strip(),
            )
            results = results[:-1]
        own: Any = super()
        own._check_results(results)


def among(
    connection: BaseDatabaseWrapper, numbers: Sequence[int]
) -> tuple[str, list[Any]]:
    """
    Return an SQL membership test for integers, with its parameters.

    On PostgreSQL it has one parameter and one text for any number of integers: the
    driver caches what it knows of a text, and a hundred parameters are slow.
    """
    if connection.vendor == "postgresql":
        return "= ANY(%s::bigint[])", [f"{{{','.join(map(str, numbers))}}}"]
    return f"IN ({', '.join(['%s'] * len(numbers))})", list(numbers)


def to_last_result(cursor: Any) -> None:
    """Skip the results of all statements but the last; psycopg 2 has only that one."""
    if hasattr(cursor.cursor, "pgresult"):
        while cursor.nextset():
            pass


def speaks_psycopg(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the driver of an open connection is psycopg 3."""
    return hasattr(connection.connection, "pgconn")


@functools.lru_cache(maxsize=1024)
def literal(text: str) -> str:
    """
    Return text as a literal for a PostgreSQL statement, quoted by psycopg 3.

    For names in the project's code only, since their number is limited.
    """
    from psycopg.sql import quote

    return quote(text)


_NO_TABLE: Final = (1146,)  # MySQL and MariaDB


def lacks_table(error: DatabaseError) -> bool:
    """Return whether a statement failed because its table does not exist."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    code = error.args[0] if error.args else None
    return (
        state == "42P01"  # undefined_table
        or code in _NO_TABLE
        or str(error).startswith("no such table")  # SQLite has no codes
    )
