"""Claim messages in the order of their keys, and park those that must wait."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from django_cqrs.channels.aliases import channels as all_channels
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State
from django_cqrs.outbox.store.dialects import ADVISORY_LOCK, PATIENCE
from django_cqrs.outbox.store.groups import LOOK, Block, Candidate, Groups, Pair
from django_cqrs.outbox.store.rows import PLACE_COLUMNS, Group, Taking, in_query
from django_cqrs.outbox.store.survey import Survey


class Ordering(Survey):
    """Takes messages in the order of their keys, and parks those that must wait."""

    @cached_property
    def _groups(self) -> Groups:
        return Groups(self.connection)

    def _take_in_order(
        self, rows: QuerySet[OutboxMessage], taking: Taking, limit: int
    ) -> list[tuple[Any, ...]]:
        """
        Take messages whose keys nobody holds; park those that wait for a key.

        Only one worker does this at a time. So the state of a key stays as it was read
        until the commit: its messages are taken in order, and by one worker.
        """
        for _ in range(_ROUNDS):
            with self._alone() as is_alone:
                if not is_alone:
                    break
                seen = self._look(rows, taking.columns, limit)
                chosen, blocked = self._choose(taking.state, seen, limit)
                moved = self._park(taking.state, blocked) if blocked else 0
                found = self._take_chosen(chosen, taking, seen)
            self._saw_keys = any(each.group is not None for each in seen)
            if found or not moved:
                return found
        self.was_contended = True
        return []

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Open a transaction with the ordering lock; yield whether it was acquired."""
        with self._session_lock() as is_ours:
            if not is_ours:
                yield False
                return
            with transaction.atomic(using=self.using):
                yield self._lock_transaction()

    @contextmanager
    def _session_lock(self) -> Iterator[bool]:
        """Hold the lock where it is the session's, and so outlasts the transaction."""
        connection = self.connection
        if connection.vendor != "mysql" or connection.in_atomic_block:
            yield True
            return
        name = f"{connection.settings_dict['NAME']} {OutboxMessage._meta.db_table}"
        name = f"cqrs:{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"
        is_ours = self._try("SELECT GET_LOCK(%s, 0)", name)
        try:
            yield is_ours
        finally:
            if is_ours and connection.connection is not None:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT RELEASE_LOCK(%s)", [name])

    def _lock_transaction(self) -> bool:
        """Acquire the lock where it is the transaction's, and ends with it."""
        if self.connection.vendor != "postgresql":
            return True
        return self._try("SELECT pg_try_advisory_xact_lock(%s)", ADVISORY_LOCK)

    def _try(self, statement: str, *values: Any) -> bool:
        end = time.monotonic() + PATIENCE
        with self.connection.cursor() as cursor:
            while True:
                cursor.execute(statement, values)
                if cursor.fetchone()[0]:
                    return True
                if time.monotonic() > end:
                    return False
                time.sleep(0.001)

    def _look(
        self, rows: QuerySet[OutboxMessage], columns: tuple[str, ...], limit: int
    ) -> list[Candidate]:
        """Return the next messages, including those of keys that are held."""
        found = rows.order_by("-priority", "sequence").values_list(
            "sequence", *PLACE_COLUMNS, *in_query(columns)
        )
        return [
            Candidate(pk, sequence, self._group_of(endpoint, key), tuple(row))
            for sequence, pk, endpoint, key, *row in found[: max(LOOK, limit)]
        ]

    def _choose(
        self, state: State, seen: Sequence[Candidate], limit: int
    ) -> tuple[list[int], dict[Block, list[int]]]:
        """
        Choose the messages to claim.

        Returns:
            Their ids, in the order of handling; and the ids of those that cannot be
            claimed, by the row that blocks them.

        """
        found: dict[Group, list[Candidate]] = {}
        for each in seen:
            if each.group is not None:
                found.setdefault(each.group, []).append(each)
        is_ready = state is State.READY
        plain = self._groups.prefixes(self._pairs(found)) if is_ready and found else {}
        others = [group for group in found if not plain.get(group)]
        standings = self._groups.standings(self._pairs_of(others)) if others else {}
        chosen: list[int] = []
        blocked: dict[Block, list[int]] = {}
        done = set()
        for each in seen:
            if len(chosen) >= limit:
                break
            if each.group is None:
                chosen.append(each.pk)
                continue
            if each.group in done:
                continue
            done.add(each.group)
            own = sorted(found[each.group], key=lambda one: one.sequence)
            standing = standings.get(each.group)
            if standing is None:  # its key has no other message
                chosen += [one.pk for one in own][: limit - len(chosen)]
                continue
            block, before = standing.block()
            run: list[int] = []
            if before is None or before > standing.head():
                run = self._run(each.group, state, before, limit - len(chosen))
            if run:
                chosen += run
            elif block is not None:
                blocked.setdefault(block, []).extend(one.pk for one in own)
        return chosen, blocked

    def _run(
        self, group: Group, state: State, before: int | None, limit: int
    ) -> list[int]:
        """Return a key's first waiting messages, or one abandoned message alone."""
        waiting: list[tuple[int, int, int]] = []
        for endpoint in self._names.get(group[0], (group[0],)):
            for wanted in (State.READY, State.PARKED, State.ABANDONED):
                rows = (
                    self.rows()
                    .filter(ordering_key=group[1], endpoint=endpoint, state=wanted)
                    .order_by("sequence")
                    .values_list("sequence", "id", "state")
                )
                waiting += rows[:limit]
        waiting.sort()
        run: list[int] = []
        for sequence, pk, each in waiting[:limit]:
            if before is not None and sequence >= before:
                break
            if state is State.ABANDONED:
                if each == State.PARKED:  # it comes first, and nothing else wakes it
                    self.rows().filter(pk=pk, state=each).update(state=State.READY)
                return [pk] if each == State.ABANDONED else []
            if each == State.ABANDONED:
                break
            run.append(pk)
        return run

    def _take_chosen(
        self, chosen: list[int], taking: Taking, seen: Iterable[Candidate]
    ) -> list[tuple[Any, ...]]:
        if not chosen:
            return []
        there = {each.pk: each.row for each in seen}
        more = [pk for pk in chosen if pk not in there]
        if more:
            rows = self.rows().filter(pk__in=more)
            columns = in_query(taking.columns)
            there.update((row[0], row) for row in rows.values_list(*columns))
        found = [there[pk] for pk in chosen if pk in there]
        # Messages parked behind the first ready one are taken too.
        also = State.PARKED if taking.state is State.READY else None
        return self._take(found, taking, also=also)

    def _park(self, state: State, blocked: Mapping[Block, Sequence[int]]) -> int:
        """
        Set messages aside until the row that blocks them is gone, which wakes them.

        Removing the block deletes or changes its row. So the row is locked here; if it
        cannot be locked, the block is already ending.
        """
        firm: set[Block] = set()
        skips = self.connection.features.has_select_for_update_skip_locked
        for model in (OutboxMessage, DeadLetter):
            pks = [block.pk for block in blocked if block.model is model]
            if not pks:
                continue
            rows: QuerySet[Any] = model.objects.using(self.using).filter(pk__in=pks)
            if model is OutboxMessage:
                rows = rows.exclude(state__in=(State.READY, State.PARKED))
            if skips:
                rows = rows.select_for_update(skip_locked=True)
            firm.update(Block(model, pk) for pk in rows.values_list("pk", flat=True))
        aside = [pk for block in firm for pk in blocked[block]]
        return (
            self.rows()
            .filter(pk__in=aside, state=state)
            .update(state=State.PARKED, owner=None, lease_expires_at=None)
        )

    def wake(self, groups: Iterable[Group]) -> int:
        """Make the first parked message of each key ready again."""
        pairs = self._pairs_of(groups)
        if not self._may_be_parked(len(pairs)):
            return 0
        heads = self._groups.parked_heads(pairs)
        if heads:
            self._fronts.forget()
        woken = 0
        for start in range(0, len(heads), LOOK):
            some = heads[start : start + LOOK]
            rows = self.rows().filter(pk__in=some, state=State.PARKED)
            woken += rows.update(state=State.READY)
        return woken

    def _may_be_parked(self, keys: int) -> bool:
        """Return False if a look at the channels, not at each key, finds none."""
        # A key's messages are in several channels if its handler has moved. Those in a
        # channel that no setting names have no worker that could be waiting.
        aliases = list(all_channels)
        if self.connection.vendor == "postgresql" or len(aliases) >= keys:
            return True  # PostgreSQL has a plan for any number of keys
        return bool(self.channels_with(aliases, State.PARKED))

    def wake_stranded(self, channels: Sequence[str]) -> int:
        """
        Wake parked messages that nothing blocks now.

        Ending a block wakes its messages. This is for rows that were deleted behind the
        outbox's back, and for rows that were written wrongly: parked without a key,
        delayed without a time, held without the end of a lease.
        """
        woken = self._wake_endless(channels)
        parked = self.rows().filter(channel__in=channels, state=State.PARKED)
        groups = {
            self._group_of(endpoint, key)
            for endpoint, key in parked.values_list("endpoint", "ordering_key")
            .order_by()
            .distinct()
        }
        pairs = self._pairs_of(group for group in groups if group is not None)
        standings = self._groups.standings(pairs)
        return woken + self.wake(
            group for group, each in standings.items() if each.is_stranded()
        )

    def _wake_endless(self, channels: Sequence[str]) -> int:
        """Make ready the rows that nothing would end; abandon those that were held."""
        woken = 0
        rows = self.rows().filter(channel__in=channels)
        nobodys: dict[str, Any] = {"owner": None, "lease_expires_at": None}
        for state, lacking, becomes in (
            (State.PARKED, "ordering_key", State.READY),
            (State.DELAYED, "available_at", State.READY),
            (State.CLAIMED, "lease_expires_at", State.ABANDONED),
            (State.FORWARDED, "lease_expires_at", State.READY),
        ):
            found = rows.filter(state=state, **{f"{lacking}__isnull": True})
            woken += self._move(found.order_by("pk"), 1000, state=becomes, **nobodys)
        return woken

    def park_rest(self, owner: str, group: Group) -> int:
        """Park the other messages of a key that an owner holds, since one failed."""
        return self._held_of(owner, group).update(
            state=State.PARKED, owner=None, lease_expires_at=None
        )

    def give_back_key(self, owner: str, group: Group) -> int:
        """Release the messages of a key that an owner still holds."""
        self._fronts.forget()
        return self._held_of(owner, group).update(
            state=State.READY, owner=None, lease_expires_at=None
        )

    def _held_of(self, owner: str, group: Group) -> QuerySet[OutboxMessage]:
        return self.rows().filter(
            ordering_key=group[1],
            endpoint__in=self._names.get(group[0], (group[0],)),
            state=State.CLAIMED,
            owner=owner,
        )

    def _pairs_of(self, groups: Iterable[Group]) -> list[Pair]:
        return [
            Pair(group, endpoint)
            for group in groups
            for endpoint in self._names.get(group[0], (group[0],))
        ]

    def _pairs(self, found: Mapping[Group, Sequence[Candidate]]) -> list[Pair]:
        """Return the pairs of groups, with the count and the last sequence seen."""
        return [
            pair._replace(
                seen=len(found[pair.group]),
                last=max(each.sequence for each in found[pair.group]),
            )
            for pair in self._pairs_of(found)
        ]


# How often a claim in order looks again after parking all that it saw.
_ROUNDS = 20
