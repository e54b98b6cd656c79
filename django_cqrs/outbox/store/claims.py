"""Claims: which messages a worker may handle next."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from operator import itemgetter
from typing import Any

from django.db import OperationalError
from django.db.models import QuerySet

from django_cqrs.outbox.models import State
from django_cqrs.outbox.store.dialects import LOCK_TIMEOUT
from django_cqrs.outbox.store.ordering import Ordering
from django_cqrs.outbox.store.rows import (
    CLAIMED_COLUMNS,
    ENDPOINT,
    SEQUENCE,
    Claimed,
    Taking,
)
from django_cqrs.outbox.store.single_round_trip import SingleRoundTripClaims


class Claims(Ordering):
    """Claims messages for a worker."""

    @cached_property
    def _claims(self) -> SingleRoundTripClaims:
        return SingleRoundTripClaims(self.connection, is_mixed=self._groups.is_mixed)

    def claim(
        self, channel: str, *, limit: int, owner: str, lease: timedelta
    ) -> list[Claimed]:
        """
        Claim ready messages, in their turn, and commit that.

        Args:
            channel: the alias.
            limit: how many at most.
            owner: a name that no other claim has.
            lease: how long nobody else may have them.

        """
        taking = Taking(State.READY, owner, lease)
        return [self._claimed(row) for row in self._next(channel, taking, limit)]

    def claim_abandoned(
        self,
        channel: str,
        *,
        owner: str,
        lease: timedelta,
        allowed: Callable[[str], int] | None = None,
    ) -> list[Claimed]:
        """
        Claim one message of a worker that has died, counting the attempt at once.

        Should it be what killed that worker, it is seen to do so again.

        Args:
            channel: the alias.
            owner: a name that no other claim has.
            lease: how long nobody else may have it.
            allowed: how many attempts an endpoint has, by its name. One that has had
                them is claimed to be given up, and that counts for none.

        """
        taking = Taking(State.ABANDONED, owner, lease, allowed=allowed)
        return [
            self._claimed_alone(row, taking) for row in self._next(channel, taking, 1)
        ]

    def _next(self, channel: str, taking: Taking, limit: int) -> list[tuple[Any, ...]]:
        """Take what is next in a channel; where keys are there, in their order."""
        self.was_contended = False
        state = taking.state
        at_once = state is State.READY and self._claims.can_be_made()
        if (state, channel) not in self._ordered:
            if at_once:
                found = self._taken_at_once(channel, taking, limit)
            else:
                rows = self._next_rows(state, channel, limit, taking.columns)
                found = self._taken(rows, taking)
            if found is not None:
                return found
            self._ordered.add((state, channel))
        # Of an endpoint with several names the keys are those of all of them; what is
        # forwarded comes without its sequence.
        at_once = at_once and not self._names and taking.columns == CLAIMED_COLUMNS
        found = None
        if at_once:
            found = self._taken_in_order_at_once(channel, taking, limit)
        if found is None:
            rows = self.rows().filter(channel=channel, state=state)
            found = self._take_in_order(rows, taking, limit)
        if not self._saw_keys:
            self._ordered.discard((state, channel))
        return found

    def _taken_at_once(
        self, channel: str, taking: Taking, limit: int
    ) -> list[tuple[Any, ...]] | None:
        """Do on PostgreSQL what :meth:`_taken` does, in one round trip."""
        rows = self._claims.plain(channel, limit, taking)
        if any(row[-2] is not None for row in rows):
            return None
        return [row[:-1] for row in rows if row[-1]]

    def _taken_in_order_at_once(
        self, channel: str, taking: Taking, limit: int
    ) -> list[tuple[Any, ...]] | None:
        """
        Take in one round trip what is next where nothing keeps any of it.

        Returns:
            None where something does: then nothing is taken.

        """
        try:
            claim = self._claims.in_order(channel, limit, taking)
        except OperationalError as error:
            if not LOCK_TIMEOUT.includes(error):
                raise
            self.was_contended = True
            return []
        if claim.is_mixed:
            return None
        self._saw_keys = claim.has_keys
        runs: dict[Any, list[tuple[Any, ...]]] = {}
        for row in claim.rows:
            group = self._group_of(row[ENDPOINT], row[-1])
            runs.setdefault(group or row[0], []).append(row)
        for run in runs.values():
            run.sort(key=itemgetter(SEQUENCE))
        return [row for run in runs.values() for row in run]

    def _next_rows(
        self,
        state: State,
        channel: str,
        limit: int,
        columns: tuple[str, ...] = CLAIMED_COLUMNS,
    ) -> QuerySet[Any, Any]:
        """Return a query for what is next, made once: it is asked all the time."""
        query = self._queries.get((state, channel, limit, columns))
        if query is None:
            rows = self._in_turn(self.rows().filter(channel=channel, state=state))
            query = rows.values_list(*columns)[:limit]
            self._queries[state, channel, limit, columns] = query
        return query
