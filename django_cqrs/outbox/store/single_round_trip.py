"""
Claims on PostgreSQL that are a transaction of one round trip.

Statements that are sent together, outside any transaction, form one; each of them sees
everything that was committed before it began.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.leases import lease_end, lease_value
from django_cqrs.outbox.models import MOST_ATTEMPTS, OutboxMessage, State
from django_cqrs.outbox.store.dialects import (
    ADVISORY_LOCK,
    BY_INDEX,
    NO_PLAN,
    PATIENCE,
    RELAX,
    forms_transaction,
    to_last_result,
)
from django_cqrs.outbox.store.fronts import Position
from django_cqrs.outbox.store.rows import Taking, in_sql

# Any writer may have put any number into a row, so this must not overflow.
ATTEMPTED: Final = (
    f"CASE WHEN attempts < {MOST_ATTEMPTS} THEN attempts + %s ELSE attempts END"
)
"""The attempts of a row with a parameter's added."""


def counted_up(token: str) -> str:
    """Return the SQL of a token plus one; the lowest follows the highest."""
    return f"CASE WHEN {token} < {2**63 - 1} THEN {token} + 1 ELSE 0 END"


class InOrder(NamedTuple):
    """The result of a claim in order."""

    rows: list[tuple[Any, ...]]
    has_keys: bool
    """Whether any of the next messages has a key."""
    is_mixed: bool
    """Whether nothing was taken, because such a key has other messages."""


class SingleRoundTripClaims:
    """The claims of one connection."""

    def __init__(self, connection: BaseDatabaseWrapper, *, is_mixed: str) -> None:
        """
        Prepare the claims, if the connection supports them.

        Args:
            connection: of the outbox's database.
            is_mixed: a condition on a key `p.k` of an endpoint `p.e`, of which `p.c`
                messages are next up to the sequence `p.s`: that it has others.

        """
        self._connection = connection
        self._is_mixed = is_mixed
        self._statements: dict[tuple[str, ...], str] = {}
        self._was_idle = False
        self._keeps_plans = True
        self._session: Any = None
        self._prepared_names: dict[str, str] = {}

    def can_be_made(self) -> bool:
        """Return whether the database supports them, and no transaction is open."""
        return forms_transaction(self._connection)

    def plain(
        self,
        channel: str,
        limit: int,
        taking: Taking,
        *,
        behind: Position | None = None,
    ) -> list[tuple[Any, ...]]:
        """
        Take the next messages that nobody is taking, unless one has a key.

        Args:
            channel: the alias.
            limit: the maximum number of messages.
            taking: how to take them; its last column is the key.
            behind: take only messages of this priority, from this sequence on, and
                nothing if one with a higher priority is ready.

        Returns:
            The next rows, in order. The last column says which were taken: all, or
            none.

        """
        key = ("plain" if behind is None else "behind", *taking.columns)
        if key not in self._statements:
            turn = self._next(taking.columns, is_behind=behind is not None)
            seen = f"{turn} FOR UPDATE SKIP LOCKED"
            # Do not test their state again: they are locked, and a plan might use the
            # index of the state although the ids suffice.
            no_key = "NOT EXISTS (SELECT 1 FROM seen WHERE ordering_key IS NOT NULL)"
            own = ", ".join(f"seen.{column}" for column in taking.columns)
            self._statements[key] = (
                f"WITH seen AS MATERIALIZED ({seen}), "
                f"{self._taken(no_key)} SELECT {own}, taken.id IS NOT NULL {_RESULT}"
            )
        values = self._values(channel, limit, taking, behind)
        # A plan pays for a large claim; one that wakes an idle worker is small.
        rows = self._rows_by_plan(self._statements[key], values)
        if rows is None:
            rows = self._rows(f"{RELAX}; {self._statements[key]}", values)
        self._was_idle = not rows
        return rows

    def in_order(
        self,
        channel: str,
        limit: int,
        taking: Taking,
        *,
        behind: Position | None = None,
    ) -> InOrder:
        """
        Take the next messages, unless one of their keys has others.

        Only one worker does this at a time, as with every claim in order.

        Args:
            channel: the alias.
            limit: the maximum number of messages.
            taking: how to take them.
            behind: as for :meth:`plain`.

        Returns:
            The rows that were taken, in order, and why there may be none.

        Raises:
            OperationalError: others held the lock for too long; :data:`LOCK_TIMEOUT`
                includes it.

        """
        key = ("in order" if behind is None else "in order, behind", *taking.columns)
        if key not in self._statements:
            turn = self._next(("id",), is_behind=behind is not None)
            own = ", ".join(in_sql(column, "own") for column in taking.columns)
            unmixed = (
                f"own.state = {State.READY.value} "  # noqa: S608 - no value in it
                "AND NOT EXISTS (SELECT 1 FROM mixed)"
            )
            self._statements[key] = (
                f"{RELAX}; SET LOCAL lock_timeout = {round(PATIENCE * 1000)}; "  # noqa: S608 - no value in it
                f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK}); "
                f"WITH seen AS MATERIALIZED ({turn}), "
                f"keys AS MATERIALIZED (SELECT ordering_key AS k, endpoint AS e, "
                f"COUNT(*) AS c, MAX(sequence) AS s FROM seen "
                f"WHERE ordering_key IS NOT NULL GROUP BY ordering_key, endpoint), "
                f"mixed AS MATERIALIZED "
                f"(SELECT 1 FROM keys p WHERE {self._is_mixed} LIMIT 1), "
                f"{self._taken(unmixed, own)} SELECT taken.*, said.* FROM "
                f"(SELECT EXISTS (SELECT 1 FROM keys), EXISTS (SELECT 1 FROM mixed)) "
                f"said LEFT JOIN taken ON TRUE "
                f"ORDER BY taken.priority DESC, taken.sequence"
            )
        values = self._values(channel, limit, taking, behind)
        rows = self._rows(self._statements[key], values)
        has_keys, is_mixed = rows[0][-2:]
        taken = [row[:-2] for row in rows if row[0] is not None]
        return InOrder(taken, has_keys=has_keys, is_mixed=is_mixed)

    @cached_property
    def _table(self) -> str:
        table: str = self._connection.ops.quote_name(OutboxMessage._meta.db_table)
        return table

    def _next(self, columns: Sequence[str], *, is_behind: bool = False) -> str:
        names = ", ".join(map(in_sql, dict.fromkeys((*columns, *_TURN))))
        ready = f"channel = %s AND state = {State.READY.value}"
        where = ready
        if is_behind:
            # One range of the index, and a look at the one before it.
            where += (
                f" AND priority = %s AND sequence >= %s AND NOT EXISTS "  # noqa: S608 - no value in it
                f"(SELECT 1 FROM {self._table} WHERE {ready} AND priority > %s)"
            )
        return (
            f"SELECT {names} FROM {self._table} WHERE {where} "  # noqa: S608 - no value in it
            f"ORDER BY priority DESC, sequence LIMIT %s"
        )

    def _taken(self, condition: str, columns: str = "own.id") -> str:
        return (
            f"taken AS (UPDATE {self._table} AS own SET state = %s, owner = %s, "  # noqa: S608
            f"lease_expires_at = {lease_end(self._connection)}, "
            f"token = {counted_up('own.token')} "
            f"WHERE own.id = ANY(ARRAY(SELECT id FROM seen)) "
            f"AND {condition} RETURNING {columns})"
        )

    def _values(
        self, channel: str, limit: int, taking: Taking, behind: Position | None = None
    ) -> list[Any]:
        until = lease_value(self._connection, taking.lease)
        place = () if behind is None else (*behind, channel, behind.priority)
        return [channel, *place, limit, taking.becomes.value, taking.owner, until]

    def _rows(self, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            to_last_result(cursor)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def _rows_by_plan(
        self, statement: str, values: list[Any]
    ) -> list[tuple[Any, ...]] | None:
        """
        Execute a statement by the plan that the session keeps of it.

        Returns:
            None if a new plan is needed, or the session keeps none: a pooler may use
            another session for each transaction.

        """
        if not (self._was_idle and self._keeps_plans):
            return None
        try:
            name = self._prepared(statement)
            places = ", ".join(["%s"] * len(values))
            return self._rows(f"{BY_INDEX}; EXECUTE {name} ({places})", values)
        except DatabaseError as error:
            if not NO_PLAN.includes(error):
                raise
            self._keeps_plans = False
            return None

    def _prepared(self, statement: str) -> str:
        """Return the name of a statement in the session; prepare it the first time."""
        driver: Any = self._connection.connection
        if self._session is None or self._session() is not driver:
            # A weak reference: references to the connection itself are counted
            # elsewhere.
            self._session, self._prepared_names = weakref.ref(driver), {}
        name = self._prepared_names.get(statement)
        if name is None:
            # Unique even where a pooler shares sessions, since it is made of the text.
            digest = hashlib.sha256(statement.encode()).hexdigest()
            name = self._prepared_names[statement] = f"django_cqrs_{digest[:16]}"
            numbered = statement
            for number in range(1, statement.count("%s") + 1):
                numbered = numbered.replace("%s", f"${number}", 1)
            with self._connection.cursor() as cursor:
                cursor.execute(f"PREPARE {name} AS {numbered}")
        return name


_TURN = "priority", "sequence", "endpoint", "ordering_key"
_RESULT = (
    "FROM seen LEFT JOIN taken ON taken.id = seen.id "
    "ORDER BY seen.priority DESC, seen.sequence"
)
