"""
What a claim is, and claims on PostgreSQL that are a transaction of one round trip.

Statements that are sent together, outside of any transaction, are one; each of them
sees what was committed before it began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from django_cqrs.outbox.dialects import sends_several, to_last_result
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.retries import Transient

# Not to wait for the disk: a claim that a crash undoes is a claim not made.
RELAX: Final = "SET LOCAL synchronous_commit = off"
# How long a claim in order waits for another's to be made, in seconds.
PATIENCE: Final = 0.1
LOCK_TIMEOUT: Final = Transient(
    sqlstates=frozenset({"55P03"}),  # lock_not_available
    mysql_codes=frozenset(),
)
ADVISORY_LOCK: Final = int.from_bytes(b"cqrs-key", "big") >> 1


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
    "ordering_key",  # the last of all columns that rows are taken with
)
"""What is read of a message that is claimed."""

_ENDPOINT = CLAIMED_COLUMNS.index("endpoint")
_ATTEMPTS = CLAIMED_COLUMNS.index("attempts")


class Taking(NamedTuple):
    """What is to become of rows that are taken."""

    state: State
    owner: str
    lease: timedelta
    becomes: State = State.CLAIMED
    columns: tuple[str, ...] = CLAIMED_COLUMNS
    allowed: Callable[[str], int] | None = None

    def is_tried(self, row: tuple[Any, ...]) -> bool:
        """Tell whether an abandoned message has an attempt left."""
        return self.allowed is None or row[_ATTEMPTS] < self.allowed(row[_ENDPOINT])


class ClaimsAtOnce:
    """The claims of one connection."""

    def __init__(self, connection: BaseDatabaseWrapper, *, is_mixed: str) -> None:
        """
        Prepare to make them, should that be possible.

        Args:
            connection: of the outbox's database.
            is_mixed: a condition on a key `p.k` of an endpoint `p.e`, of which `p.c`
                are next up to the sequence `p.s`: that there is something else.

        """
        self._connection = connection
        self._is_mixed = is_mixed
        self._statements: dict[tuple[str, ...], str] = {}

    def can_be_made(self) -> bool:
        """Tell whether the database can, and no transaction is open."""
        connection = self._connection
        return (
            sends_several(connection)
            and not connection.in_atomic_block
            and connection.get_autocommit()
        )

    def plain(self, channel: str, limit: int, taking: Taking) -> list[tuple[Any, ...]]:
        """
        Take what is next and nobody is just taking, unless something has a key.

        Args:
            channel: the alias.
            limit: how many at the most.
            taking: what is to become of it; its last column is the key.

        Returns:
            The rows that are next, in their turn; the last column says which were
            taken: all of them, or none.

        """
        key = ("plain", *taking.columns)
        if key not in self._statements:
            seen = f"{self._next(taking.columns)} FOR UPDATE SKIP LOCKED"
            unless = "SELECT 1 FROM seen WHERE ordering_key IS NOT NULL"
            own = ", ".join(f"seen.{column}" for column in taking.columns)
            self._statements[key] = (
                f"{RELAX}; WITH seen AS MATERIALIZED ({seen}), "
                f"{self._taken(unless)} SELECT {own}, taken.id IS NOT NULL {_RESULT}"
            )
        return self._rows(self._statements[key], channel, limit, taking)

    def in_order(
        self, channel: str, limit: int, taking: Taking
    ) -> list[tuple[Any, ...]]:
        """
        Take what is next, unless there is anything else of one of its keys.

        Only one is at this at a time, as at every claim in order.

        Args:
            channel: the alias.
            limit: how many at the most.
            taking: what is to become of it.

        Returns:
            The rows that are next, in their turn. The last column but one says which
            were taken, the last whether none was, because a key is mixed.

        Raises:
            OperationalError: :data:`LOCK_TIMEOUT` includes it where others were at it
                for too long.

        """
        key = ("in order", *taking.columns)
        if key not in self._statements:
            own = ", ".join(f"seen.{column}" for column in taking.columns)
            self._statements[key] = (
                f"{RELAX}; SET LOCAL lock_timeout = {round(PATIENCE * 1000)}; "  # noqa: S608 - no value in it
                f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK}); "
                f"WITH seen AS MATERIALIZED ({self._next(taking.columns)}), "
                f"keys AS (SELECT ordering_key AS k, endpoint AS e, COUNT(*) AS c, "
                f"MAX(sequence) AS s FROM seen WHERE ordering_key IS NOT NULL "
                f"GROUP BY ordering_key, endpoint), "
                f"mixed AS MATERIALIZED "
                f"(SELECT 1 FROM keys p WHERE {self._is_mixed} LIMIT 1), "
                f"{self._taken('SELECT 1 FROM mixed')} "
                f"SELECT {own}, taken.id IS NOT NULL, EXISTS (SELECT 1 FROM mixed) "
                f"{_RESULT}"
            )
        return self._rows(self._statements[key], channel, limit, taking)

    @cached_property
    def _table(self) -> str:
        table: str = self._connection.ops.quote_name(OutboxMessage._meta.db_table)
        return table

    def _next(self, columns: Sequence[str]) -> str:
        names = ", ".join(dict.fromkeys((*columns, *_TURN)))
        return (
            f"SELECT {names} FROM {self._table} "  # noqa: S608 - no value in it
            f"WHERE channel = %s AND state = {State.READY.value} "
            f"ORDER BY priority DESC, sequence LIMIT %s"
        )

    def _taken(self, unless: str) -> str:
        return (
            f"taken AS (UPDATE {self._table} AS own SET state = %s, owner = %s, "  # noqa: S608
            f"lease_expires_at = %s, token = own.token + 1 FROM seen "
            f"WHERE own.id = seen.id AND own.state = {State.READY.value} "
            f"AND NOT EXISTS ({unless}) RETURNING own.id)"
        )

    def _rows(
        self, statement: str, channel: str, limit: int, taking: Taking
    ) -> list[tuple[Any, ...]]:
        until = timezone.now() + taking.lease
        values: list[Any] = [channel, limit, taking.becomes.value, taking.owner, until]
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            to_last_result(cursor)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


_TURN = "priority", "sequence", "endpoint", "ordering_key"
_RESULT = (
    "FROM seen LEFT JOIN taken ON taken.id = seen.id "
    "ORDER BY seen.priority DESC, seen.sequence"
)
