"""Claims: the messages that a worker may handle next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property
from operator import itemgetter
from typing import Any

from django.db import OperationalError
from django.db.models import QuerySet

from django_cqrs.outbox.models import State
from django_cqrs.outbox.store.dialects import LOCK_TIMEOUT
from django_cqrs.outbox.store.fronts import Position
from django_cqrs.outbox.store.ordering import Ordering
from django_cqrs.outbox.store.rows import (
    CLAIMED_COLUMNS,
    ENDPOINT,
    PRIORITY,
    SEQUENCE,
    Claimed,
    Taking,
    in_query,
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
        Claim ready messages in order, and commit the claim.

        Args:
            channel: the alias.
            limit: the maximum number of messages.
            owner: a name that no other claim has.
            lease: the time in which nobody else may have them.

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
        Claim one message of a dead worker, and count the attempt at once.

        If the message killed that worker, the next kill is counted too.

        Args:
            channel: the alias.
            owner: a name that no other claim has.
            lease: the time in which nobody else may have it.
            allowed: returns the number of attempts of an endpoint, by its name. A
                message that has had them is claimed to be given up, and this attempt is
                not counted.

        """
        taking = Taking(State.ABANDONED, owner, lease, allowed=allowed)
        return [
            self._claimed_alone(row, taking) for row in self._next(channel, taking, 1)
        ]

    def _next(self, channel: str, taking: Taking, limit: int) -> list[tuple[Any, ...]]:
        """Take the next messages of a channel; where they have keys, in key order."""
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
        # The keys of an endpoint with several names are those of all its names.
        # Forwarded messages are taken without their sequence.
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
        """Do the same as :meth:`_taken` on PostgreSQL, in one round trip."""
        # Forwarded messages are taken without their places.
        has_places = taking.columns == CLAIMED_COLUMNS
        place = self._fronts.place(channel) if has_places else None
        rows = self._claims.plain(channel, limit, taking, behind=place)
        if place is not None and not rows:
            place = None
            rows = self._claims.plain(channel, limit, taking)
        if any(row[-2] is not None for row in rows):
            return None
        if has_places:
            self._note_front(channel, rows, limit, place)
        return [row[:-1] for row in rows if row[-1]]

    def _note_front(
        self,
        channel: str,
        rows: Sequence[tuple[Any, ...]],
        limit: int,
        place: Position | None,
    ) -> None:
        """Note where a claim has ended that began behind a place."""
        if len(rows) < limit:
            self._fronts.forget(channel)
            return
        last = Position(rows[-1][PRIORITY], rows[-1][SEQUENCE])
        self._fronts.note(channel, last, is_from_beginning=place is None)

    def _taken_in_order_at_once(
        self, channel: str, taking: Taking, limit: int
    ) -> list[tuple[Any, ...]] | None:
        """
        Take the next messages in one round trip, if nothing blocks any of them.

        Returns:
            None if something does; then nothing is taken.

        """
        place = self._fronts.place(channel)
        try:
            claim = self._claims.in_order(channel, limit, taking, behind=place)
            if place is not None and not claim.rows and not claim.is_mixed:
                place = None
                claim = self._claims.in_order(channel, limit, taking)
        except OperationalError as error:
            if not LOCK_TIMEOUT.includes(error):
                raise
            self.was_contended = True
            return []
        if claim.is_mixed:
            return None
        self._saw_keys = claim.has_keys
        self._note_front(channel, claim.rows, limit, place)
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
        """Return the query for the next messages, cached because it runs constantly."""
        query = self._queries.get((state, channel, limit, columns))
        if query is None:
            rows = self._in_turn(self.rows().filter(channel=channel, state=state))
            query = rows.values_list(*in_query(columns))[:limit]
            self._queries[state, channel, limit, columns] = query
        return query
