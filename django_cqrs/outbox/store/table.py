"""The outbox's table: its rows, and how to take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet

from django_cqrs.leases import lease_end, lease_value
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store.dialects import (
    RELAX,
    among,
    sends_several,
    to_last_result,
)
from django_cqrs.outbox.store.fronts import Fronts
from django_cqrs.outbox.store.rows import ENDPOINT, Claimed, Group, Taking, claimed_from
from django_cqrs.outbox.store.single_round_trip import ATTEMPTED, counted_up


class Table:
    """The rows of one database's outbox, and how to take them."""

    def __init__(
        self, using: str, *, names: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        """
        Use the database of an alias.

        Args:
            using: the alias.
            names: the endpoints that have had other names: each name with all of them,
                the present one first.

        """
        self.using = using
        self.connection = connections[using]
        self.was_contended = False
        """Whether the last claim found nothing, and should soon be repeated."""
        self._names = names or {}
        self._queries: dict[tuple[Any, ...], QuerySet[Any, Any]] = {}
        self._ordered: set[tuple[State, str]] = set()
        self._fronts = Fronts()
        self._saw_keys = False

    @cached_property
    def _table(self) -> str:
        table: str = self.connection.ops.quote_name(OutboxMessage._meta.db_table)
        return table

    def rows(self) -> QuerySet[OutboxMessage]:
        """Return the waiting messages."""
        return OutboxMessage.objects.using(self.using)

    def _taken(
        self, query: QuerySet[Any, Any], taking: Taking
    ) -> list[tuple[Any, ...]] | None:
        """
        Take the rows of a query, whose columns go from an id to a key, and commit.

        Returns:
            None if a row has a key; then nothing is taken.

        """
        with transaction.atomic(using=self.using):
            found = list(query.all())
            if any(row[-1] is not None for row in found):
                return None
            return self._take(found, taking) if found else found

    def _group_of(self, endpoint: str, key: str | None) -> Group | None:
        if key is None:
            return None
        return self._names.get(endpoint, (endpoint,))[0], key

    def _claimed(self, row: tuple[Any, ...]) -> Claimed:
        return claimed_from(row, self._group_of(row[ENDPOINT], row[-1]))

    def _claimed_alone(self, row: tuple[Any, ...], taking: Taking) -> Claimed:
        claimed = self._claimed(row)
        if not taking.has_attempt_left(row):
            return dataclasses.replace(claimed, is_poison=True)
        attempts = claimed.attempts + 1
        return dataclasses.replace(claimed, attempts=attempts, is_counted=True)

    def _take(
        self,
        found: Sequence[tuple[Any, ...]],
        taking: Taking,
        *,
        also: State | None = None,
    ) -> list[tuple[Any, ...]]:
        """
        Set the owner of rows that are still in a state, and return those rows.

        An abandoned message is claimed alone, and counted: see :meth:`claim_abandoned`.
        """
        keys = [row[0] for row in found]
        state, owner, becomes = taking.state, taking.owner, taking.becomes
        states = [state.value] if also is None else [state.value, also.value]
        connection: Any = self.connection
        one_of, ids = among(connection, keys)
        statement = (
            f"UPDATE {self._table} SET state = %s, owner = %s, "  # noqa: S608 - no value in it
            f"lease_expires_at = {lease_end(connection)}, "
            f"token = {counted_up('token')}, attempts = {ATTEMPTED} "
            f"WHERE state IN ({', '.join(map(str, states))}) AND id {one_of}"
        )
        until = lease_value(connection, taking.lease)
        is_alone = state is State.ABANDONED and becomes is State.CLAIMED
        counts = int(is_alone and taking.has_attempt_left(found[0]))
        values = [becomes.value, owner, until, counts, *ids]
        with connection.cursor() as cursor:
            # With a savepoint open, the transaction belongs to somebody else.
            if connection.vendor != "postgresql" or connection.savepoint_ids:
                cursor.execute(statement, values)
            elif sends_several(connection):
                cursor.execute(f"{RELAX}; {statement}", values)
                to_last_result(cursor)
            else:
                cursor.execute(RELAX)
                cursor.execute(statement, values)
            taken: int = cursor.rowcount
        if taken == len(keys):
            return list(found)
        # Without locks, others may have taken rows after they were read.
        held = self.rows().filter(pk__in=keys, owner=owner, state=becomes)
        ours = set(held.values_list("pk", flat=True))
        return [row for row in found if row[0] in ours]

    def _move(self, rows: QuerySet[OutboxMessage], limit: int, **changes: Any) -> int:
        """Change rows, skipping those that somebody else is changing."""
        if not rows.exists():  # usual, and the query takes no lock
            return 0
        with transaction.atomic(using=self.using):
            found = rows
            if self.connection.features.has_select_for_update_skip_locked:
                found = rows.select_for_update(skip_locked=True)
            keys = list(found.values_list("pk", flat=True)[:limit])
            self._fronts.forget()
            return rows.order_by().filter(pk__in=keys).update(**changes)

    def _in_turn(self, rows: QuerySet[OutboxMessage]) -> QuerySet[OutboxMessage]:
        rows = rows.order_by("-priority", "sequence")
        if self.connection.features.has_select_for_update_skip_locked:
            rows = rows.select_for_update(skip_locked=True)
        return rows
