"""
Long transactions: they keep the rows that workers have deleted since they began.

A database removes a deleted row when no transaction can see it. Until then each claim
walks over the rows of all messages that were handled in the meantime.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

LONG: Final = timedelta(minutes=30)
"""How long a transaction may be open before somebody should look at it."""

SHOWN: Final = 10
"""The maximum number of transactions that are named."""

# A READ COMMITTED session that has only read keeps no rows between two statements; one
# that has written does, and its `backend_xid` shows it.
_POSTGRESQL: Final = """
SELECT pid::text, EXTRACT(EPOCH FROM clock_timestamp() - xact_start)::float8 AS age,
    usename, application_name, state
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type NOT IN ('autovacuum worker', 'parallel worker')
    AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
    AND xact_start < clock_timestamp() - %s * INTERVAL '1 second'
UNION ALL
SELECT quote_literal(gid), EXTRACT(EPOCH FROM clock_timestamp() - prepared)::float8,
    owner, '', 'prepared'
FROM pg_prepared_xacts
WHERE database = current_database()
    AND prepared < clock_timestamp() - %s * INTERVAL '1 second'
ORDER BY age DESC LIMIT %s
"""
# All databases of a server share the kept rows. `trx_started` is in the server's zone,
# whatever the session's. The table is up to 0.1 s old: the session may be gone.
_MYSQL: Final = """
SELECT t.trx_mysql_thread_id,
    TIMESTAMPDIFF(SECOND, t.trx_started,
        CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', 'SYSTEM')) AS age,
    COALESCE(p.user, ''), '', IF(t.trx_mysql_thread_id = 0, 'prepared', p.command)
FROM information_schema.innodb_trx t
LEFT JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id
WHERE t.trx_mysql_thread_id <> CONNECTION_ID()
    AND (t.trx_mysql_thread_id = 0 OR p.id IS NOT NULL)
HAVING age >= %s
ORDER BY age DESC LIMIT %s
"""
# The project's user lacks the privilege PROCESS.
_DENIED: Final = 1227


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LongTransaction:
    """A transaction that has been open for long."""

    session: str
    """The server's number of the session; the name of a prepared transaction."""
    seconds: float
    """How long it has been open."""
    user: str = ""
    """The user who opened it, by the server's name."""
    application: str = ""
    """The name that the client gave itself, on PostgreSQL."""
    state: str = ""
    """The session's present state, in the server's words."""

    def __str__(self) -> str:
        """Return its session, and how long it has been open."""
        noun = "The prepared transaction" if self.state == "prepared" else "The session"
        verb = "has been" if self.state == "prepared" else "has had a transaction"
        return f"{noun} {self.session} {verb} open for {self.age}"

    @property
    def age(self) -> timedelta:
        """How long it has been open, in whole seconds."""
        return timedelta(seconds=int(self.seconds))

    def described(self) -> str:
        """Return a line for the operator, which also names its user."""
        known = ", ".join(filter(None, (self.user, self.application, self.state)))
        return f"{self} ({' '.join(known.split())})." if known else f"{self}."


def long_transactions(
    using: str = DEFAULT_DB_ALIAS, *, longer_than: timedelta = LONG
) -> list[LongTransaction]:
    """
    Return the transactions that keep deleted rows of a database, longest first.

    PostgreSQL shows a role its own sessions, and those of others if it is a member of
    `pg_read_all_stats`; MySQL and MariaDB require the privilege PROCESS. Transactions
    that the server does not show are not returned. SQLite shows none.

    Args:
        using: the alias of the database.
        longer_than: the minimum time for which they have been open.

    Returns:
        At most :data:`SHOWN`, without the session that asks.

    """
    connection = connections[using]
    seconds = longer_than.total_seconds()
    values: list[Any] = [seconds, SHOWN]
    if connection.vendor == "postgresql":
        statement = _POSTGRESQL
        values.insert(0, seconds)
    elif connection.vendor == "mysql":
        statement = _MYSQL
    else:
        return []
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            rows = cursor.fetchall()
    except DatabaseError as error:
        if error.args[:1] == (_DENIED,):
            return []
        raise
    return [
        LongTransaction(
            session=str(session),
            seconds=float(age),
            user=_text(user),
            application=_text(application),
            state=_text(state),
        )
        for session, age, user, application, state in rows
    ]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value or ""
