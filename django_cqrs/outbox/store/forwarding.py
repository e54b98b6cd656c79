"""Messages that are forwarded to an engine, and claimed by its tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from django.db.models import Q, QuerySet

from django_cqrs.leases import LeaseEnd
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store.claims import Claims
from django_cqrs.outbox.store.rows import (
    CLAIMED_COLUMNS,
    PLACE_COLUMNS,
    Claimed,
    Group,
    Taking,
    in_query,
)


class Forwarding(Claims):
    """Forwards messages to an engine, and claims them for its tasks."""

    def forward(
        self, channel: str, *, limit: int, owner: str, lease: timedelta
    ) -> list[tuple[int, Group | None]]:
        """
        Mark ready messages as forwarded to an engine, in order, and commit that.

        Args:
            channel: the alias.
            limit: the maximum number of messages.
            owner: a name that no other claim has.
            lease: the time that the engine has to start on them.

        Returns:
            Their ids, for :meth:`claim_forwarded`, each with its ordering group:
            messages of one group are adjacent, and go into one task.

        """
        taking = Taking(State.READY, owner, lease, State.FORWARDED, PLACE_COLUMNS)
        return [
            (pk, self._group_of(endpoint, key))
            for pk, endpoint, key in self._next(channel, taking, limit)
        ]

    def forward_abandoned(
        self, channel: str, *, limit: int, owner: str, lease: timedelta
    ) -> list[int]:
        """
        Put a lease on abandoned messages, each to be forwarded alone.

        They stay abandoned, so that the next claim counts the attempt.
        """
        rows = self.rows().filter(
            Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lt=LeaseEnd()),
            channel=channel,
            state=State.ABANDONED,
        )
        taking = Taking(State.ABANDONED, owner, lease, State.ABANDONED, PLACE_COLUMNS)
        return [row[0] for row in self._these(rows, taking, limit)]

    def _these(
        self, rows: QuerySet[OutboxMessage], taking: Taking, limit: int
    ) -> list[tuple[Any, ...]]:
        """Take the messages of a query; where they have keys, in key order."""
        query = self._in_turn(rows).values_list(*in_query(taking.columns))[:limit]
        found = self._taken(query, taking)
        return self._take_in_order(rows, taking, limit) if found is None else found

    def take_back(self, owner: str, keys: Sequence[int]) -> None:
        """Undo a forwarding whose tasks could not be sent."""
        ours = self.rows().filter(pk__in=keys, owner=owner)
        unowned: dict[str, Any] = {"owner": None, "lease_expires_at": None}
        ours.filter(state=State.ABANDONED).update(**unowned)
        ours.filter(state=State.FORWARDED).update(state=State.READY, **unowned)

    def take_back_expired(self, channel: str, *, limit: int = 1000) -> int:
        """Make ready the forwarded messages that no task started on in time."""
        return self._move(
            self.rows()
            .filter(
                channel=channel,
                state=State.FORWARDED,
                lease_expires_at__lt=LeaseEnd(),
            )
            .order_by("pk"),
            limit,
            state=State.READY,
            owner=None,
            lease_expires_at=None,
        )

    def count_forwarded(self, channel: str, *, limit: int) -> int:
        """Return the number of messages at the engine, up to a limit."""
        rows = self.rows().filter(channel=channel, state=State.FORWARDED)
        return rows.values("pk")[:limit].count()

    def claim_forwarded(
        self, keys: Sequence[int], *, owner: str, lease: timedelta
    ) -> list[Claimed]:
        """
        Claim forwarded messages in order, and commit the claim.

        Messages that somebody else holds, or that were taken back, are left out.
        """
        rows = self.rows().filter(pk__in=keys, state=State.FORWARDED)
        query = self._in_turn(rows).values_list(*in_query(CLAIMED_COLUMNS))
        taking = Taking(State.FORWARDED, owner, lease)
        found = self._taken(query, taking)
        if found is None:
            found = self._take_forwarded_in_order(rows, taking)
        return [self._claimed(row) for row in found]

    def _take_forwarded_in_order(
        self, rows: QuerySet[OutboxMessage], taking: Taking
    ) -> list[tuple[Any, ...]]:
        """Take the messages that nothing precedes; the others are ready again."""
        with self._alone() as is_alone:
            if not is_alone:
                rows.update(state=State.READY, owner=None, lease_expires_at=None)
                return []
            seen = self._look(rows, taking.columns, rows.count())
            groups = {each.group for each in seen if each.group is not None}
            standings = self._groups.standings(self._pairs_of(groups))
            firsts = self._first_with_others(groups, {each.pk for each in seen})
            chosen: list[int] = []
            early: list[int] = []
            for each in sorted(seen, key=lambda one: one.sequence):
                before: int = 2**63
                if each.group is not None:
                    before = firsts.get(each.group, before)
                    before = min(before, standings[each.group].first())
                (chosen if each.sequence < before else early).append(each.pk)
            rows.filter(pk__in=early).update(
                state=State.READY, owner=None, lease_expires_at=None
            )
            return self._take_chosen(chosen, taking, seen)

    def _first_with_others(
        self, groups: set[Group], ours: set[int]
    ) -> dict[Group, int]:
        """Return each key's first sequence in another task; 0 blocks all of it."""
        firsts: dict[Group, int] = {}
        held = self.rows().filter(
            ordering_key__in={key for _, key in groups},
            state__in=(State.CLAIMED, State.FORWARDED),
        )
        for pk, sequence, state, endpoint, key in held.values_list(
            "pk", "sequence", "state", "endpoint", "ordering_key"
        ):
            group = self._group_of(endpoint, key)
            if group in groups and group is not None and pk not in ours:
                first = 0 if state == State.CLAIMED else sequence
                firsts[group] = min(first, firsts.get(group, first))
        return firsts

    def claim_forwarded_abandoned(
        self,
        keys: Sequence[int],
        *,
        owner: str,
        lease: timedelta,
        allowed: Callable[[str], int] | None = None,
    ) -> list[Claimed]:
        """Claim one message that was forwarded alone, as `claim_abandoned` does."""
        rows = self.rows().filter(
            pk__in=keys, state=State.ABANDONED, lease_expires_at__isnull=False
        )
        taking = Taking(State.ABANDONED, owner, lease, allowed=allowed)
        return [
            self._claimed_alone(row, taking) for row in self._these(rows, taking, 1)
        ]
