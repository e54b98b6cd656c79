"""
Transactions that stay open: they keep the rows that workers have deleted since.

A database removes a deleted row when no transaction can see it. Until then
each claim walks over the rows of all messages that were handled meanwhile.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

LONG: Final = timedelta(minutes=30)
"""How long a transaction may be open before somebody should look at it."""

SHOWN: Final = 10
"""How many of them are named at most."""

# A READ COMMITTED session that has only read keeps nothing between two statements; one
# that has written does, and says so by its `backend_xid`.
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
# All databases of a server share what is kept. `trx_started` is in the server's zone,
# whichever the session has. The table is up to 0.1 s old: the session may have gone.
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
# The user of the project lacks the privilege PROCESS.
_DENIED: Final = 1227


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LongTransaction:
    """A transaction that has been open for long."""

    session: str
    """The server's number of the session; of a prepared transaction its name."""
    seconds: float
    """How long it has been open."""
    user: str = ""
    """Who has opened it, as the server says."""
    application: str = ""
    """The name that the client has given itself, on PostgreSQL."""
    state: str = ""
    """What the session is doing now, in the server's words."""

    def __str__(self) -> str:
        """Return which it is, and for how long it has been open."""
        noun = "The prepared transaction" if self.state == "prepared" else "The session"
        verb = "has been" if self.state == "prepared" else "has had a transaction"
        return f"{noun} {self.session} {verb} open for {self.age}"

    @property
    def age(self) -> timedelta:
        """How long it has been open, in whole seconds."""
        return timedelta(seconds=int(self.seconds))

    def described(self) -> str:
        """Return a line for the operator: whose it is, too."""
        known = ", ".join(filter(None, (self.user, self.application, self.state)))
        return f"{self} ({' '.join(known.split())})." if known else f"{self}."


def long_transactions(
    using: str = DEFAULT_DB_ALIAS, *, longer_than: timedelta = LONG
) -> list[LongTransaction]:
    """
    Return the transactions that keep deleted rows of a database, the longest first.

    PostgreSQL shows a role its own sessions, and those of others where the role is a
    member of `pg_read_all_stats`; the privilege PROCESS is needed on MySQL and MariaDB.
    Of what the server does not show, nothing is returned. SQLite does not tell.

    Args:
        using: the alias of the database.
        longer_than: how long they have been open.

    Returns:
        At most :data:`SHOWN`; the session that asks is not among them.

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
