"""The statements on the outbox's table: claim, settle, give back, give up."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, NamedTuple

from django.db import OperationalError, connections, transaction
from django.db.models import Q, QuerySet

from django_cqrs.channels import Envelope
from django_cqrs.clock import now
from django_cqrs.exceptions import CQRSError
from django_cqrs.outbox.batches import SIZE, giving_way
from django_cqrs.outbox.claims import (
    ADVISORY_LOCK,
    ATTEMPTED,
    CLAIMED_COLUMNS,
    LOCK_TIMEOUT,
    PATIENCE,
    RELAX,
    ClaimsAtOnce,
    Taking,
    counted_up,
)
from django_cqrs.outbox.dialects import among, sends_several, to_last_result
from django_cqrs.outbox.models import (
    MOST_ATTEMPTS,
    DeadLetter,
    OutboxMessage,
    Reason,
    State,
    StoredMessage,
)
from django_cqrs.outbox.times import as_sent, as_stored
from django_cqrs.statements import MOST_BYTES, portions, written

Group = tuple[str, str]
"""An endpoint and an ordering key: their messages are handled one at a time."""

# How many rows are looked at for what to claim in order, and groups asked after.
LOOK: Final = 100
# How many dead letters are put back in one transaction.
REPLAYED: Final = 500


class LeaseLost(CQRSError):
    """Somebody else has taken over messages whose lease had run out."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claimed:
    """A message that this worker alone may handle, until its lease runs out."""

    pk: int
    envelope: Envelope
    attempts: int
    """How many times it was tried and counted, this one not included."""
    channel: str
    ordering_key: str | None = dataclasses.field(repr=False)
    is_counted: bool = False
    """Whether this attempt was counted already, when it was claimed."""
    is_given_up: bool = False
    """Whether it has killed as many workers as it may, and is not to be tried."""
    group: Group | None = dataclasses.field(default=None, repr=False)
    """What its order is kept in: its endpoint, under its present name, and its key."""


class Store:
    """The outbox of one database."""

    def __init__(
        self, using: str, *, names: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        """
        Use the database of an alias.

        Args:
            using: the alias.
            names: of endpoints that have had other names: from each to all of them,
                the present one first.

        """
        self.using = using
        self.connection = connections[using]
        self.was_contended = False
        """Whether the last claim found nothing, and is soon to be made again."""
        self._names = names or {}
        self._queries: dict[tuple[Any, ...], QuerySet[Any, Any]] = {}
        self._ordered: set[tuple[State, str]] = set()
        self._saw_keys = False

    @cached_property
    def _table(self) -> str:
        table: str = self.connection.ops.quote_name(OutboxMessage._meta.db_table)
        return table

    @cached_property
    def _claims(self) -> ClaimsAtOnce:
        return ClaimsAtOnce(self.connection, is_mixed=self._groups.is_mixed)

    @cached_property
    def _groups(self) -> Groups:
        return Groups(self.connection)

    def rows(self) -> QuerySet[OutboxMessage]:
        """Return the messages that wait."""
        return OutboxMessage.objects.using(self.using)

    # Claims -------------------------------------------------------------------------

    def claim(
        self, channel: str, *, limit: int, owner: str, lease: timedelta
    ) -> list[Claimed]:
        """
        Claim ready messages, in their turn, and commit that.

        Args:
            channel: the alias.
            limit: how many at the most.
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
            group = self._group_of(row[_ENDPOINT], row[-1])
            runs.setdefault(group or row[0], []).append(row)
        for run in runs.values():
            run.sort(key=itemgetter(_SEQUENCE))
        return [row for run in runs.values() for row in run]

    def _taken(
        self, query: QuerySet[Any, Any], taking: Taking
    ) -> list[tuple[Any, ...]] | None:
        """
        Take what a query finds, rows from an id to a key, and commit that.

        Returns:
            None where a row has a key: then nothing is taken.

        """
        with transaction.atomic(using=self.using):
            found = list(query.all())
            if any(row[-1] is not None for row in found):
                return None
            return self._take(found, taking) if found else found

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

    # Claims in order ----------------------------------------------------------------

    def _take_in_order(
        self, rows: QuerySet[OutboxMessage], taking: Taking, limit: int
    ) -> list[tuple[Any, ...]]:
        """
        Take of some rows what is of keys that nobody holds; park what waits for one.

        Only one is at this at a time. So what is read of a key is so until it is
        committed: its messages are taken in their order, and by one alone.
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
        """Open a transaction in which nobody else takes in order; tell whether so."""
        with self._session_lock() as is_ours:
            if not is_ours:
                yield False
                return
            with transaction.atomic(using=self.using):
                yield self._lock_transaction()

    @contextmanager
    def _session_lock(self) -> Iterator[bool]:
        """Take the lock where it is a session's, and so outlasts the transaction."""
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
        """Take the lock where it is the transaction's, and ends with it."""
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
    ) -> list[_Seen]:
        """Return what is next, the rows of keys that are held included."""
        found = rows.order_by("-priority", "sequence").values_list(
            "sequence", *_PLACE_COLUMNS, *columns
        )
        return [
            _Seen(pk, sequence, self._group_of(endpoint, key), tuple(row))
            for sequence, pk, endpoint, key, *row in found[: max(LOOK, limit)]
        ]

    def _choose(
        self, state: State, seen: Sequence[_Seen], limit: int
    ) -> tuple[list[int], dict[Block, list[int]]]:
        """
        Choose what to claim.

        Returns:
            The ids of that, in the order of handling; and of what cannot be claimed,
            by what keeps it.

        """
        found: dict[Group, list[_Seen]] = {}
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
            if standing is None:  # nothing else of its key is there
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
        """Return the first messages of a key that wait, or an abandoned one alone."""
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
                if each == State.PARKED:  # it comes first, and nothing says so
                    self.rows().filter(pk=pk, state=each).update(state=State.READY)
                return [pk] if each == State.ABANDONED else []
            if each == State.ABANDONED:
                break
            run.append(pk)
        return run

    def _take_chosen(
        self, chosen: list[int], taking: Taking, seen: Iterable[_Seen]
    ) -> list[tuple[Any, ...]]:
        if not chosen:
            return []
        there = {each.pk: each.row for each in seen}
        more = [pk for pk in chosen if pk not in there]
        if more:
            rows = self.rows().filter(pk__in=more).values_list(*taking.columns)
            there.update((row[0], row) for row in rows)
        found = [there[pk] for pk in chosen if pk in there]
        # What is parked behind the first that is ready comes along.
        also = State.PARKED if taking.state is State.READY else None
        return self._take(found, taking, also=also)

    def _park(self, state: State, blocked: Mapping[Block, Sequence[int]]) -> int:
        """
        Set messages aside until what keeps them has gone, which then wakes them.

        Whoever ends that deletes or changes its row: it is locked here, and where it
        cannot be, it is just ending.
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
        """Have the first of what is parked of keys looked at again."""
        heads = self._groups.parked_heads(self._pairs_of(groups))
        woken = 0
        for start in range(0, len(heads), LOOK):
            some = heads[start : start + LOOK]
            rows = self.rows().filter(pk__in=some, state=State.PARKED)
            woken += rows.update(state=State.READY)
        return woken

    def wake_stranded(self, channels: Sequence[str]) -> int:
        """
        Wake what is parked although nothing keeps it any more.

        Whatever ends what keeps a message wakes it. This is for rows that were deleted
        behind the outbox's back, and for those that were written so: parked without a
        key, delayed without a time, held without an end of the lease.
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
        """Make ready what nothing would ever end; what somebody held is abandoned."""
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
        """Set aside what an owner still holds of a key, since one of it has failed."""
        return self._held_of(owner, group).update(
            state=State.PARKED, owner=None, lease_expires_at=None
        )

    def give_back_key(self, owner: str, group: Group) -> int:
        """Let others have what an owner still holds of a key."""
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

    def _group_of(self, endpoint: str, key: str | None) -> Group | None:
        if key is None:
            return None
        return self._names.get(endpoint, (endpoint,))[0], key

    def _pairs_of(self, groups: Iterable[Group]) -> list[_Pair]:
        return [
            _Pair(group, endpoint)
            for group in groups
            for endpoint in self._names.get(group[0], (group[0],))
        ]

    def _pairs(self, found: Mapping[Group, Sequence[_Seen]]) -> list[_Pair]:
        """Return the pairs of groups, with how many were seen, and up to where."""
        return [
            pair._replace(
                seen=len(found[pair.group]),
                last=max(each.sequence for each in found[pair.group]),
            )
            for pair in self._pairs_of(found)
        ]

    def _claimed(self, row: tuple[Any, ...]) -> Claimed:
        return _claimed(row, self._group_of(row[_ENDPOINT], row[-1]))

    def _claimed_alone(self, row: tuple[Any, ...], taking: Taking) -> Claimed:
        claimed = self._claimed(row)
        if not taking.is_tried(row):
            return dataclasses.replace(claimed, is_given_up=True)
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
        Put an owner's name on rows that are still in a state; return those.

        What is abandoned is claimed alone, and counted: see :meth:`claim_abandoned`.
        """
        keys = [row[0] for row in found]
        state, owner, becomes = taking.state, taking.owner, taking.becomes
        states = [state.value] if also is None else [state.value, also.value]
        connection: Any = self.connection
        one_of, ids = among(connection, keys)
        statement = (
            f"UPDATE {self._table} SET state = %s, owner = %s, "  # noqa: S608 - no value in it
            f"lease_expires_at = %s, token = {counted_up('token')}, "
            f"attempts = {ATTEMPTED} "
            f"WHERE state IN ({', '.join(map(str, states))}) AND id {one_of}"
        )
        until = as_stored(now() + taking.lease, connection)
        is_alone = state is State.ABANDONED and becomes is State.CLAIMED
        counts = int(is_alone and taking.is_tried(found[0]))
        values = [becomes.value, owner, until, counts, *ids]
        with connection.cursor() as cursor:
            # With a savepoint open, the transaction is somebody else's.
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
        # Where nothing locks what was read.
        held = self.rows().filter(pk__in=keys, owner=owner, state=becomes)
        ours = set(held.values_list("pk", flat=True))
        return [row for row in found if row[0] in ours]

    def renew(self, owner: str, keys: Sequence[int], lease: timedelta) -> int:
        """Extend a lease; return how many of the messages the owner still holds."""
        held = self._held(owner, keys)
        with transaction.atomic(using=self.using):
            if self.connection.features.has_select_for_update_skip_locked:
                # What is being settled needs no lease, and is not waited for.
                locked = held.select_for_update(skip_locked=True)
                keys = list(locked.values_list("pk", flat=True))
            until = now() + lease
            return self._held(owner, keys).update(lease_expires_at=until)

    def held(self, owner: str, keys: Sequence[int]) -> set[int]:
        """Return which messages an owner still holds."""
        return set(self._held(owner, keys).values_list("pk", flat=True))

    def abandon_expired(self, channels: Sequence[str], *, limit: int = 1000) -> int:
        """Mark what dead workers hold, to be taken again one by one."""
        return self._move(
            self.rows()
            .filter(
                channel__in=channels,
                state=State.CLAIMED,
                lease_expires_at__lt=now(),
            )
            .order_by("pk"),
            limit,
            state=State.ABANDONED,
            owner=None,
            lease_expires_at=None,
        )

    def release_due(self, channels: Sequence[str], *, limit: int = 1000) -> int:
        """Make ready what was delayed until now."""
        return self._move(
            self.rows()
            .filter(
                channel__in=channels,
                state=State.DELAYED,
                available_at__lte=now(),
            )
            .order_by("available_at"),
            limit,
            state=State.READY,
        )

    def _move(self, rows: QuerySet[OutboxMessage], limit: int, **changes: Any) -> int:
        """Change rows, past those that somebody else is just changing."""
        if not rows.exists():  # mostly so, and asking takes no lock
            return 0
        with transaction.atomic(using=self.using):
            found = rows
            if self.connection.features.has_select_for_update_skip_locked:
                found = rows.select_for_update(skip_locked=True)
            keys = list(found.values_list("pk", flat=True)[:limit])
            return rows.order_by().filter(pk__in=keys).update(**changes)

    # Forwarding ---------------------------------------------------------------------

    def forward(
        self, channel: str, *, limit: int, owner: str, lease: timedelta
    ) -> list[tuple[int, Group | None]]:
        """
        Mark ready messages as forwarded to an engine, in their turn, and commit that.

        Args:
            channel: the alias.
            limit: how many at the most.
            owner: a name that no other claim has.
            lease: the time in which the engine is to begin with them.

        Returns:
            Their ids, for :meth:`claim_forwarded`, each with what its order is kept
            in: what shares that stands together, and goes into one task.

        """
        taking = Taking(State.READY, owner, lease, State.FORWARDED, _PLACE_COLUMNS)
        return [
            (pk, self._group_of(endpoint, key))
            for pk, endpoint, key in self._next(channel, taking, limit)
        ]

    def forward_abandoned(
        self, channel: str, *, limit: int, owner: str, lease: timedelta
    ) -> list[int]:
        """
        Put a lease on abandoned messages, which are to be forwarded each by itself.

        They stay abandoned, so that who claims them knows to count the attempt.
        """
        moment = now()
        rows = self.rows().filter(
            Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lt=moment),
            channel=channel,
            state=State.ABANDONED,
        )
        taking = Taking(State.ABANDONED, owner, lease, State.ABANDONED, _PLACE_COLUMNS)
        return [row[0] for row in self._these(rows, taking, limit)]

    def _these(
        self, rows: QuerySet[OutboxMessage], taking: Taking, limit: int
    ) -> list[tuple[Any, ...]]:
        """Take some rows in their turn; where keys are there, in their order."""
        query = self._in_turn(rows).values_list(*taking.columns)[:limit]
        found = self._taken(query, taking)
        return self._take_in_order(rows, taking, limit) if found is None else found

    def take_back(self, owner: str, keys: Sequence[int]) -> None:
        """Undo a forwarding whose tasks could not be sent."""
        ours = self.rows().filter(pk__in=keys, owner=owner)
        unowned: dict[str, Any] = {"owner": None, "lease_expires_at": None}
        ours.filter(state=State.ABANDONED).update(**unowned)
        ours.filter(state=State.FORWARDED).update(state=State.READY, **unowned)

    def take_back_expired(self, channel: str, *, limit: int = 1000) -> int:
        """Make ready what was forwarded and with which nobody has begun in time."""
        return self._move(
            self.rows()
            .filter(
                channel=channel,
                state=State.FORWARDED,
                lease_expires_at__lt=now(),
            )
            .order_by("pk"),
            limit,
            state=State.READY,
            owner=None,
            lease_expires_at=None,
        )

    def count_forwarded(self, channel: str, *, limit: int) -> int:
        """Return how many messages are with the engine, up to a limit."""
        rows = self.rows().filter(channel=channel, state=State.FORWARDED)
        return rows.values("pk")[:limit].count()

    def claim_forwarded(
        self, keys: Sequence[int], *, owner: str, lease: timedelta
    ) -> list[Claimed]:
        """
        Claim messages that were forwarded, in their turn, and commit that.

        Those that somebody else has, or that have been taken back, are left out.
        """
        rows = self.rows().filter(pk__in=keys, state=State.FORWARDED)
        query = self._in_turn(rows).values_list(*CLAIMED_COLUMNS)
        taking = Taking(State.FORWARDED, owner, lease)
        found = self._taken(query, taking)
        if found is None:
            found = self._take_forwarded_in_order(rows, taking)
        return [self._claimed(row) for row in found]

    def _take_forwarded_in_order(
        self, rows: QuerySet[OutboxMessage], taking: Taking
    ) -> list[tuple[Any, ...]]:
        """Take what nothing comes before; what something does is ready again."""
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
        """Return the first of each key that is forwarded in another task; 0 is all."""
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
        """Claim one message that was forwarded by itself, as `claim_abandoned` does."""
        rows = self.rows().filter(
            pk__in=keys, state=State.ABANDONED, lease_expires_at__isnull=False
        )
        taking = Taking(State.ABANDONED, owner, lease, allowed=allowed)
        return [
            self._claimed_alone(row, taking) for row in self._these(rows, taking, 1)
        ]

    def _in_turn(self, rows: QuerySet[OutboxMessage]) -> QuerySet[OutboxMessage]:
        rows = rows.order_by("-priority", "sequence")
        if self.connection.features.has_select_for_update_skip_locked:
            rows = rows.select_for_update(skip_locked=True)
        return rows

    # Ends ---------------------------------------------------------------------------

    def settle(self, owner: str, keys: Sequence[int]) -> None:
        """
        Delete handled messages, in the transaction of what their handlers wrote.

        Raises:
            LeaseLost: somebody else has one of them now; roll back.

        """
        if not keys:
            return
        one_of, ids = among(self.connection, keys)
        statement = (
            f"DELETE FROM {self._table} WHERE id {one_of} "  # noqa: S608 - no value in it
            f"AND owner = %s AND state = {State.CLAIMED.value}"
        )
        with self.connection.cursor() as cursor:
            cursor.execute(statement, [*ids, owner])
            deleted = cursor.rowcount
        self._ensure_all(deleted, keys)

    def delay(
        self,
        owner: str,
        claimed: Claimed,
        *,
        until: datetime,
        attempts: int,
        error: str = "",
    ) -> None:
        """
        Have a failed message tried again later.

        Raises:
            LeaseLost: somebody else has it now; roll back.

        """
        changed = self._held(owner, [claimed.pk]).update(
            state=State.DELAYED,
            available_at=until,
            attempts=min(attempts, MOST_ATTEMPTS),
            last_error=error,
            owner=None,
            lease_expires_at=None,
        )
        self._ensure_all(changed, [claimed.pk])

    def give_back(self, owner: str, keys: Sequence[int], state: State) -> int:
        """Let others have the messages of a claim again that it still holds."""
        held = self._held(owner, keys)
        return held.update(state=state, owner=None, lease_expires_at=None)

    def bury(
        self,
        owner: str,
        claimed: Claimed,
        *,
        reason: Reason,
        attempts: int,
        endpoint: str = "",
        exception: str = "",
        error: str = "",
        traceback: str = "",
    ) -> DeadLetter:
        """
        Move a message to the dead letters, its bytes untouched.

        Args:
            owner: whose it is.
            claimed: the message.
            reason: why it is given up.
            attempts: how often it was tried.
            endpoint: the name of the handler that has run, where that is another than
                the one it was stored by.
            exception: the dotted path of its class.
            error: its text.
            traceback: where it was raised.

        Raises:
            LeaseLost: somebody else has it now; roll back.

        """
        self.settle(owner, [claimed.pk])
        envelope = claimed.envelope
        return DeadLetter.objects.using(self.using).create(
            channel=claimed.channel,
            endpoint=endpoint or envelope.endpoint,
            name=envelope.name,
            version=envelope.version,
            payload=envelope.payload,
            headers=envelope.headers,
            message_id=envelope.message_id,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            sent_at=envelope.timestamp,
            sequence=envelope.sequence,
            priority=envelope.priority,
            expires_at=envelope.expires_at,
            ordering_key=claimed.ordering_key,
            subject=envelope.subject,
            attempts=min(attempts, MOST_ATTEMPTS),
            reason=reason,
            exception=exception[:255],
            error=error,
            traceback=traceback,
            failed_at=now(),
        )

    def _held(self, owner: str, keys: Sequence[int]) -> QuerySet[OutboxMessage]:
        return self.rows().filter(pk__in=keys, owner=owner, state=State.CLAIMED)

    def _ensure_all(self, changed: int, keys: Sequence[int]) -> None:
        if changed != len(keys):
            msg = (
                f"{len(keys) - changed} of {len(keys)} messages are another worker's "
                f"by now: their lease ran out while they were handled."
            )
            raise LeaseLost(msg)


class _Seen(NamedTuple):
    """A row that is next in its channel."""

    pk: int
    sequence: int
    group: Group | None
    row: tuple[Any, ...]
    """The columns that it is taken with."""


class _Pair(NamedTuple):
    """A group under one of its endpoint's names."""

    group: Group
    endpoint: str
    seen: int = 0
    last: int = 0


class Block(NamedTuple):
    """The row that keeps others from being handled."""

    model: type[OutboxMessage | DeadLetter]
    pk: int


@dataclasses.dataclass(slots=True)
class Standing:
    """What there is of a key: ids and sequences, None where there is none."""

    held: int | None = None
    failed: tuple[int, int] | None = None
    """The first that is tried again later: its sequence and its id."""
    dead: tuple[int, int] | None = None
    ready: tuple[int, int] | None = None
    parked: tuple[int, int] | None = None
    abandoned: tuple[int, int] | None = None

    def block(self) -> tuple[Block | None, int | None]:
        """
        Return the row that keeps others, and the sequence from which on it does.

        What waits for another attempt, and what is dead, keeps what was sent after it.
        """
        if self.held is not None:
            return Block(OutboxMessage, self.held), 0
        blocks = [
            (each[0], Block(model, each[1]))
            for model, each in (
                (OutboxMessage, self.failed),
                (DeadLetter, self.dead),
                (OutboxMessage, self.abandoned),
            )
            if each is not None
        ]
        if not blocks:
            return None, None
        block = min(blocks, key=itemgetter(0))[1]  # blocks have no order
        ends = [each[0] for each in (self.failed, self.dead) if each is not None]
        return block, min(ends, default=None)

    def head(self) -> int:
        """Return the sequence of the first that waits, or of nothing a high one."""
        waiting = (self.ready, self.parked, self.abandoned)
        return min((each[0] for each in waiting if each), default=2**63)

    def first(self) -> int:
        """Return the sequence of the first that waits, for whatever; or a high one."""
        firsts = [each[0] for each in (self.failed, self.dead) if each]
        return min(self.head(), *firsts, 2**63)

    def is_stranded(self) -> bool:
        """Tell whether what is parked has nothing to wait for."""
        if self.parked is None or self.ready or self.abandoned:
            return False
        _, before = self.block()
        return before is None or self.parked[0] < before


class Groups:
    """Asks after many keys in one statement, each by a few look-ups in an index."""

    def __init__(self, connection: Any) -> None:
        """Prepare the statements for a database."""
        self._connection = connection
        quote = connection.ops.quote_name
        table = quote(OutboxMessage._meta.db_table)
        of_key = "o.ordering_key = p.k AND o.endpoint = p.e"
        dead = f"FROM {quote(DeadLetter._meta.db_table)} o WHERE {of_key}"
        # One that an outage has hit has failed as well, with no attempt that counts.
        failed = (
            f"o.state = {State.DELAYED.value} "
            f"AND (o.attempts > 0 OR o.last_error IS NOT NULL)"
        )

        def first(column: str, condition: str) -> str:
            return (
                f"(SELECT o.{column} FROM {table} o WHERE {of_key} AND {condition} "  # noqa: S608
                f"ORDER BY o.sequence LIMIT 1)"
            )

        def first_two(condition: str) -> str:
            return f"{first('sequence', condition)}, {first('id', condition)}"

        def any_of(condition: str) -> str:
            # No EXISTS, which PostgreSQL may answer for all of them by one long scan.
            return f"(SELECT 1 FROM {table} o WHERE {of_key} AND {condition} LIMIT 1)"  # noqa: S608

        counted = (
            f"(SELECT COUNT(*) FROM {table} o WHERE {of_key} "  # noqa: S608
            f"AND o.state = {State.READY.value} AND o.sequence <= p.s)"
        )
        others = any_of(_elsewhere), any_of(failed), f"(SELECT 1 {dead} LIMIT 1)"
        self._prefixes = ", ".join((counted, *others))
        self.is_mixed = " OR ".join(
            (f"{counted} <> p.c", *(f"{each} IS NOT NULL" for each in others))
        )
        """Whether there is more of a key than the first `c` that are ready."""
        self._standings = ", ".join(
            (
                first("id", f"o.state IN ({_holding})"),
                first_two(failed),
                f"(SELECT o.sequence {dead} ORDER BY o.sequence LIMIT 1)",
                f"(SELECT o.id {dead} ORDER BY o.sequence LIMIT 1)",
                *(
                    first_two(f"o.state = {state.value}")
                    for state in (State.READY, State.PARKED, State.ABANDONED)
                ),
            )
        )
        self._heads = first("id", f"o.state = {State.PARKED.value}")

    def prefixes(self, pairs: Sequence[_Pair]) -> dict[Group, bool]:
        """Tell of groups whether all of them, up to the last seen, was seen."""
        unseen = {pair.group: -pair.seen for pair in pairs}
        mixed: set[Group] = set()
        for pair, (count, *others) in self._ask(self._prefixes, pairs):
            unseen[pair.group] += count
            if any(others):
                mixed.add(pair.group)
        return {
            group: not count and group not in mixed for group, count in unseen.items()
        }

    def standings(self, pairs: Sequence[_Pair]) -> dict[Group, Standing]:
        """Return what there is of each group."""
        found: dict[Group, Standing] = {}
        for pair, (held, *firsts) in self._ask(self._standings, pairs):
            standing = found.setdefault(pair.group, Standing())
            standing.held = standing.held or held
            names = ("failed", "dead", "ready", "parked", "abandoned")
            for place, name in enumerate(names):
                sequence, pk = firsts[2 * place : 2 * place + 2]
                before = getattr(standing, name)
                if pk is not None and (before is None or (sequence, pk) < before):
                    setattr(standing, name, (sequence, pk))
        return found

    def parked_heads(self, pairs: Sequence[_Pair]) -> list[int]:
        """Return the ids of the first of what is parked of each."""
        return [pk for _, (pk,) in self._ask(self._heads, pairs) if pk is not None]

    def _ask(
        self, columns: str, pairs: Sequence[_Pair]
    ) -> Iterator[tuple[_Pair, tuple[Any, ...]]]:
        for start in range(0, len(pairs), LOOK):
            some = pairs[start : start + LOOK]
            statement, values = self._statement(columns, some)
            with self._connection.cursor() as cursor:
                cursor.execute(statement, values)
                found = cursor.fetchall()
            for number, *answers in found:
                yield some[number], tuple(answers)

    def _statement(
        self, columns: str, pairs: Sequence[_Pair]
    ) -> tuple[str, Sequence[Any]]:
        """Return what asks for columns of each pair, and its parameters."""
        rows = [
            (number, pair.group[1], pair.endpoint, pair.last)
            for number, pair in enumerate(pairs)
        ]
        values: list[Any]
        if self._connection.vendor == "postgresql":
            # One plan for any number of them, and one parameter.
            table = "json_to_recordset(%s) p (n integer, k text, e text, s bigint)"
            values = [json.dumps([dict(zip("nkes", row, strict=True)) for row in rows])]
        else:
            first = "SELECT %s AS n, %s AS k, %s AS e, %s AS s"
            more = " UNION ALL SELECT %s, %s, %s, %s" * (len(rows) - 1)
            table = f"({first}{more}) p"
            values = [value for row in rows for value in row]
        return f"SELECT p.n, {columns} FROM {table}", values  # noqa: S608 - no value in it


_holding = f"{State.CLAIMED.value}, {State.FORWARDED.value}"
# What has been claimed, and may be parked again: one range of an index.
_elsewhere = f"o.state BETWEEN {State.CLAIMED.value} AND {State.FORWARDED.value}"
_PLACE_COLUMNS = "id", "endpoint", "ordering_key"
_ENDPOINT = CLAIMED_COLUMNS.index("endpoint")
# How often a claim in order looks again, after it has set aside all that it saw.
_ROUNDS = 20
_SEQUENCE = CLAIMED_COLUMNS.index("sequence")


def replay(
    letters: Iterable[DeadLetter],
    *,
    using: str,
    size: int = REPLAYED,
) -> int:
    """
    Put dead letters back into the outbox, each for its own endpoint alone.

    Args:
        letters: of the database `using`.
        using: its alias.
        size: how many are put back in one transaction at the most; of large ones it
            is fewer.

    Returns:
        How many were put back. Their attempts are counted from zero again, and they
        no longer expire.

    """
    count, length = 0, 0
    batch: list[DeadLetter] = []
    for letter in letters:
        more = _size_of(letter)
        if batch and (len(batch) == size or length + more > MOST_BYTES):
            count += len(put_back(batch, using=using))
            batch, length = [], 0
        batch.append(letter)
        length += more
    return count + len(put_back(batch, using=using))


def put_back(letters: Iterable[DeadLetter], *, using: str) -> list[DeadLetter]:
    """
    Put dead letters back, all of them in one transaction and by three statements.

    A message whose time is over is dropped by the worker. Whoever puts one back wants
    it handled: it no longer expires.

    Args:
        letters: of the database `using`; not many. Of large ones it takes a statement
            more for each so many bytes.
        using: its alias.

    Returns:
        Those that were there: others, somebody else has replayed or deleted.

    """
    wanted = {letter.pk: letter for letter in letters}
    kept = DeadLetter.objects.using(using).filter(pk__in=wanted)
    there: QuerySet[Any] = kept.order_by("pk")
    if connections[using].features.has_select_for_update:
        there = there.select_for_update()

    def move() -> list[DeadLetter]:
        keys = set(there.values_list("pk", flat=True))
        if not keys:
            return []
        found = [letter for pk, letter in wanted.items() if pk in keys]
        moment = now()  # they begin to wait anew
        rows = OutboxMessage.objects.using(using)
        for part in portions(connections[using], found, _size_of, rows=len(found)):
            rows.bulk_create(
                OutboxMessage(
                    **{name: getattr(letter, name) for name in _SHARED},
                    state=State.READY,
                    available_at=moment,
                )
                for letter in part
            )
        kept.filter(pk__in=keys)._raw_delete(using)
        return found

    return giving_way(move, using=using)


_SHARED = tuple(
    field.attname
    for field in StoredMessage._meta.fields
    if field.attname not in ("id", "attempts", "expires_at")
)


def _size_of(letter: DeadLetter) -> int:
    """Return how many bytes of a statement a dead letter takes at the most."""
    return written(letter.payload, letter.headers) + 4096


def discard(
    letters: QuerySet[DeadLetter] | QuerySet[OutboxMessage],
    *,
    using: str,
    size: int = SIZE,
) -> int:
    """
    Delete dead letters, or messages, for ever; what waited behind them goes on.

    Args:
        letters: of the database `using`.
        using: its alias.
        size: how many are deleted in one transaction.

    Returns:
        How many there were.

    """
    store, count = Store(using), 0

    def delete() -> tuple[int, int]:
        some = list(
            letters.order_by("pk").values_list("pk", "endpoint", "ordering_key")[:size]
        )
        keys = [pk for pk, _, _ in some]
        found = letters.model._default_manager.using(using).filter(pk__in=keys)
        deleted = found.delete()[0]
        store.wake({(name, key) for _, name, key in some if key is not None})
        return len(some), deleted

    while True:
        seen, deleted = giving_way(delete, using=using)
        count += deleted
        if seen < size:
            return count


def _claimed(row: tuple[Any, ...], group: Group | None) -> Claimed:
    values = dict(zip(CLAIMED_COLUMNS, row, strict=True))
    expires_at = values["expires_at"]
    envelope = Envelope(
        endpoint=values["endpoint"],
        name=values["name"],
        version=values["version"],
        payload=bytes(values["payload"]),
        headers=bytes(values["headers"]),
        message_id=values["message_id"],
        correlation_id=values["correlation_id"],
        causation_id=values["causation_id"],
        timestamp=as_sent(values["sent_at"]),
        sequence=values["sequence"],
        expires_at=expires_at and as_sent(expires_at),
        priority=values["priority"],
        subject=values["subject"],
        ordering_key=values["ordering_key"],
    )
    return Claimed(
        values["id"],
        envelope,
        values["attempts"],
        values["channel"],
        values["ordering_key"],
        group=group,
    )
