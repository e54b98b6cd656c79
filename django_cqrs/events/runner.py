"""
Run a projection: one batch of one of its shards after the other.

A batch is one transaction: the shard's row is locked, a page of settled events is read
and handled, and the position is written beside the rows. So each event takes effect
once, whenever a process is killed. The settled position is read before the transaction
begins, never in its snapshot.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import time
from datetime import timedelta
from typing import Final

from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs import clock, conf
from django_cqrs.events import settling, shards
from django_cqrs.events.error_texts import ErrorTexts, error_texts
from django_cqrs.events.handling import EventBatch, Handlers
from django_cqrs.events.models import Partition, ProjectionFailure, Status
from django_cqrs.events.observing import observed_batch
from django_cqrs.events.partitions import Place, name_of_place, shard_of
from django_cqrs.events.projecting import BY_STREAM
from django_cqrs.events.reading import Scan
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.rows import ViewRows
from django_cqrs.events.shards import HOLD, HeldShard, ShardPlace
from django_cqrs.events.sources import DEPLOYMENT_TIME, Reach
from django_cqrs.events.states import (
    NO_STATE,
    PartitionStates,
    ProjectionState,
    States,
)
from django_cqrs.exceptions import InvalidHandler, StoreWentBack
from django_cqrs.logged_errors import loggable
from django_cqrs.pipeline.joined_begin import join_begin
from django_cqrs.retries import DEADLOCKS, DEFAULT_RETRY, Retry

logger: Final = logging.getLogger("django_cqrs.projections")

LONGEST_PAUSE: Final = timedelta(minutes=10)
"""The longest time until a projection that has stopped is tried again."""

SCAN_TIME: Final = 0.25
"""The time for which a batch looks for an event that it handles, in seconds."""

TOUCH_TIME: Final = 0.002
"""The pause for another worker that looks at a shard of this one, in seconds."""

MOST_DEADLOCKS: Final = 10
"""The number of deadlocks in a row after which one is a failure like any other."""


class ShardTurn(enum.Enum):
    """The result of one turn with a shard."""

    DONE = "everything up to the settled position is handled"
    MORE = "there is more to do"
    TAKEN = "another worker has it"
    ENDED = "its projection is paused, or no longer live"
    WAITING = "the next event is for newer code"
    FAILED = "an event has failed"


@dataclasses.dataclass(slots=True)
class _Memory:
    """The memory that a worker has of a shard between two batches."""

    scan: Scan
    reach: Reach
    limit: int
    """The number of events in the next batch."""
    held_since: float | None = None
    """Since when this worker keeps the shard without giving it back."""
    cut: int | None = None
    """The last position before an event that has failed in a batch."""
    alone_until: int | None = None
    """Up to which position each event is in a batch of its own."""
    deadlocks: int = 0
    rests_until: float = 0.0
    """The time until which the shard is left to newer code."""


class _Turned(Exception):
    """Ends a batch without a failure: its transaction is rolled back, or empty."""

    def __init__(self, turn: ShardTurn) -> None:
        super().__init__(turn)
        self.turn = turn


class ProjectionRunner:
    """Runs the shards of one projection, for one worker or by hand."""

    batch_time = 1.0
    """The time after which a batch begins no other event, in seconds."""
    rest_time = 1.0
    """The time for which events of newer code are left alone, in seconds."""

    def __init__(
        self, handlers: Handlers, using: str, owner: str, *, by_hand: bool = False
    ) -> None:
        """
        Prepare to run.

        Args:
            handlers: of the projection.
            using: the alias of the database with the events.
            owner: a name that no other worker has.
            by_hand: whether failures are raised, and batches take as long as they take.

        Raises:
            InvalidHandler: its declaration is broken, with the text of the check.

        """
        for problem in handlers.problems:
            raise InvalidHandler(str(problem))
        self.handlers = handlers
        self.options = handlers.options
        self.using = using
        self.owner = owner
        self.by_hand = by_hand
        self.error: Exception | None = None
        """The exception of the last turn that has failed."""
        self.handled = 0
        """The number of events that were handled."""
        self._memories: dict[tuple[int, int], _Memory] = {}
        self._rows: dict[bool, ViewRows] = {}

    @property
    def name(self) -> str:
        """The name of the projection."""
        return self.options.name

    @property
    def most(self) -> int:
        """The maximum number of events in a batch."""
        given: int = conf.current().PROJECTION_BATCH
        return self.options.batch or given

    @property
    def keeps_some(self) -> bool:
        """Whether it keeps a shard between two batches."""
        return any(each.held_since is not None for each in self._memories.values())

    def rests(self, candidate: ShardPlace) -> bool:
        """Return whether a shard waits for newer code."""
        memory = self._memories.get((candidate.pk, candidate.shards))
        return memory is not None and time.monotonic() < memory.rests_until

    def _memory_of(self, candidate: ShardPlace) -> _Memory:
        key = candidate.pk, candidate.shards
        memory = self._memories.get(key)
        if memory is None:
            connection = connections[self.using]
            reach = Reach(
                self.handlers,
                connection,
                shard=candidate.number,
                shards=candidate.shards,
            )
            scan = Scan(connection, self.handlers.types)
            memory = self._memories[key] = _Memory(scan, reach, self.most)
        return memory

    # A batch --------------------------------------------------------------------------

    def turn(self, candidate: ShardPlace, bound: int) -> ShardTurn:
        """
        Handle the next batch of a shard.

        Args:
            candidate: the shard.
            bound: the settled position, read before.

        Raises:
            Error: the database is unavailable; nothing was counted as an attempt.

        """
        memory = self._memory_of(candidate)
        batch = _ShardBatch(self, candidate, memory, bound)
        try:
            try:
                turn = batch.run()
            except _Turned as turned:
                turn = turned.turn
        except Exception as error:
            self._rows.clear()
            # MariaDB undoes the transaction around this one for a deadlock as well.
            if self._is_lost(error) or connections[self.using].needs_rollback:
                raise
            return self._after(error, batch)
        memory.deadlocks = 0
        if batch.handled:
            self.handled += batch.handled
            self._report_done(batch)
        if turn is ShardTurn.WAITING:
            memory.rests_until = time.monotonic() + self.rest_time
        return turn

    def rows(self, candidate: ShardPlace) -> ViewRows:
        """Return the rows of views for a shard, with their compiled statements."""
        # Shards divide events, and two of them may need one row.
        locks = candidate.shards > 1
        found = self._rows.get(locks)
        if found is None:
            found = ViewRows(connections[self.using], locks=locks)
            self._rows[locks] = found
        return found

    def _is_lost(self, error: Exception) -> bool:
        """Return whether the connection was lost, which is nobody's fault."""
        if not isinstance(error, (OperationalError, InterfaceError)):
            return False
        connection = connections[self.using]
        if connection.in_atomic_block:
            return False
        return connection.connection is None or not connection.is_usable()

    def _report_done(self, batch: _ShardBatch) -> None:
        logger.debug(
            "Projection %s handled %d events up to position %d",
            self.name,
            batch.handled,
            batch.position,
            extra={"cqrs_projection": self.name},
        )

    # Failures -------------------------------------------------------------------------

    def _after(self, error: Exception, batch: _ShardBatch) -> ShardTurn:
        """Find the event to blame, by smaller batches; then apply the policy."""
        memory = batch.memory
        if DEADLOCKS.includes(error) and memory.deadlocks < MOST_DEADLOCKS:
            memory.deadlocks += 1
            time.sleep(0.001 * 2 ** min(memory.deadlocks, 6))
            return ShardTurn.MORE
        events = batch.events
        place = batch.failed_at
        if place is None and len(events) == 1:
            place = 0
        if events and place is None:
            memory.cut, memory.alone_until = None, events[-1].position
            return ShardTurn.MORE
        if place is not None and len(events) > 1:
            if self.by_hand and self.options.on_failure == "stop":
                self._fail(error, batch, events[place])
                return ShardTurn.FAILED
            position = events[place].position
            memory.cut = position - 1 if place else None
            memory.alone_until = position
            return ShardTurn.MORE
        self._fail(error, batch, events[0] if events else None)
        return ShardTurn.FAILED

    def _fail(
        self, error: Exception, batch: _ShardBatch, event: Recorded | None
    ) -> None:
        """Count an attempt; after the last, skip the event or park its partition."""
        self.error = error
        texts = error_texts(error, event, self.handlers.types)
        held = batch.held
        if held is None:
            raise error
        failed_position = None if event is None else event.position
        with transaction.atomic(using=self.using):
            connection = connections[self.using]
            now = shards.take(connection, held.pk, self.owner, with_state=False)
            if now is None or now.position != held.position:
                return  # another worker has gone on
            is_same = now.failed_position == failed_position
            attempts = now.attempts + 1 if is_same else 1
            retry = self.options.retry or DEFAULT_RETRY
            is_stopped = self.options.on_failure == "stop" or event is None
            if is_stopped or not self._is_last(retry, attempts, error):
                pause = min(retry.delay_after(attempts), LONGEST_PAUSE)
                shards.keep(
                    connection,
                    now,
                    position=now.position,
                    handled=0,
                    owner="",
                    error=f"{texts.summary}\n\n{texts.traceback}",
                    attempts=attempts,
                    failed_position=failed_position,
                    retry_at=clock.now() + pause,
                )
                self._report(error, texts, event, attempts, f"tried again in {pause}")
                return
            assert event is not None  # noqa: S101 - for the type checker
            self.give_up(now, event, texts, attempts)
        self._report(error, texts, event, attempts, _OUTCOMES[self.options.on_failure])

    def _is_last(self, retry: Retry, attempts: int, error: Exception) -> bool:
        return retry.judge(error) != "retry" or attempts >= retry.attempts

    def give_up(
        self, held: HeldShard, event: Recorded, texts: ErrorTexts, attempts: int
    ) -> None:
        """Keep a failure, and move on, in the open transaction."""
        connection = connections[self.using]
        place = self.handlers.partition_of(event)
        parks = self.options.on_failure == "park"
        ProjectionFailure.objects.using(self.using).create(
            generation_id=held.generation,
            shard=held.number,
            partition=name_of_place(place, event.stream)[:255],
            position=event.position,
            event_id=event.event_id,
            name=event.name,
            reason="parked" if parks else "skipped",
            exception=texts.exception,
            error=texts.error,
            traceback=texts.traceback,
            attempts=attempts,
            failed_at=clock.now(),
        )
        if parks:
            self._park(held, place, event)
        shards.keep(connection, held, position=event.position, handled=0, owner="")

    def _park(self, held: HeldShard, place: Place, event: Recorded) -> None:
        stream_id, key = place
        Partition.objects.using(self.using).update_or_create(
            generation_id=held.generation,
            stream_id=stream_id,
            key=key,
            defaults={"position": event.position - 1, "parked_at": clock.now()},
        )

    def _report(
        self,
        error: Exception,
        texts: ErrorTexts,
        event: Recorded | None,
        attempts: int,
        outcome: str,
    ) -> None:
        place = "" if event is None else f" at position {event.position}"
        what = "" if event is None else f" with {event.name}"
        logger.error(
            "Projection %s failed%s%s at attempt %d with %s; it is %s",
            self.name,
            what,
            place,
            attempts,
            texts.summary,
            outcome,
            extra={
                "cqrs_projection": self.name,
                "cqrs_position": None if event is None else event.position,
            },
        )
        logger.debug("The traceback of %s", self.name, exc_info=loggable(error))


_OUTCOMES: Final = {
    "skip": "skipped, as its policy requires",
    "park": "left for later with its partition, as its policy requires",
}


class _ShardBatch:
    """One batch of one shard."""

    def __init__(
        self,
        runner: ProjectionRunner,
        candidate: ShardPlace,
        memory: _Memory,
        bound: int,
    ) -> None:
        self._runner = runner
        self._handlers = runner.handlers
        self._candidate = candidate
        self.memory = memory
        self._bound = bound
        self.held: HeldShard | None = None
        self.events: list[Recorded] = []
        """The events that it was to handle."""
        self.failed_at: int | None = None
        self.handled = 0
        self.position = 0

    def run(self) -> ShardTurn:
        """Handle the batch in a transaction of its own."""
        runner = self._runner
        connection = connections[runner.using]
        began = time.monotonic()
        with transaction.atomic(using=runner.using):
            join_begin(connection)
            held = self.held = self._take()
            self.position = held.position
            if held.position >= self._bound:
                self._refuse_future(held)
                if held.owner:
                    self._keep(held, held.position, "")
                return ShardTurn.DONE
            page = self._page(held)
            states = self._states(held)
            done = len(self.events)
            with observed_batch(runner.name, self.events):
                if self.events:
                    batch = EventBatch(
                        self._handlers,
                        connection,
                        states=states,
                        rows=runner.rows(self._candidate),
                    )
                    until = None if runner.by_hand else began + runner.batch_time
                    try:
                        done = batch.handle(self.events, until=until)
                        batch.finish()
                    except BaseException:
                        self.failed_at = batch.failed_at
                        raise
                    self.handled = batch.handled
            if done < len(self.events):  # its time was over
                self.position = self.events[done - 1].position
                self.memory.limit = max(1, done)
            else:
                self.position = page.position
                self.memory.limit = min(runner.most, self.memory.limit * 2)
            turn = page.turn
            if turn is None:
                turn = (
                    ShardTurn.DONE if self.position >= self._bound else ShardTurn.MORE
                )
            self._settle(held, turn, page.text, states)
        self._forget_failure()
        return turn

    def _take(self) -> HeldShard:
        runner = self._runner
        has_state = self._handlers.has_state and not self._handlers.has_partition_state
        connection = connections[runner.using]
        pk, owner = self._candidate.pk, runner.owner
        held = shards.take(connection, pk, owner, with_state=has_state)
        if held is None:
            if self.memory.held_since is not None and shards.is_kept(
                connection, pk, owner
            ):
                time.sleep(TOUCH_TIME)
                raise _Turned(ShardTurn.MORE)
            raise _Turned(ShardTurn.TAKEN)
        if held.status != Status.LIVE:
            raise _Turned(ShardTurn.ENDED)
        return held

    def _refuse_future(self, held: HeldShard) -> None:
        """Refuse a position above all that the store has ever had."""
        if held.position > self._bound:
            connection = connections[self._runner.using]
            refuse_future(connection, self._runner.name, held.position)

    def _page(self, held: HeldShard) -> _Sifted:
        """Read the next events, and leave out those that are not to be handled."""
        memory = self.memory
        until, limit = self._bound, memory.limit
        if memory.cut is not None and held.position < memory.cut:
            until = min(until, memory.cut)
        elif memory.alone_until is not None and held.position < memory.alone_until:
            limit = 1
        memory.scan.condition = memory.reach.condition()
        found = memory.scan.page(held.position, until, limit)
        end = time.monotonic() + SCAN_TIME
        while (  # nothing but events that nobody handles
            not found.recorded and found.position < until and time.monotonic() < end
        ):
            found = memory.scan.page(found.position, until, limit)
        parked = self._parked(held)
        count, number = self._candidate.shards, held.number
        handlers = self._handlers
        by_key = count > 1 and handlers.options.partitioning != BY_STREAM
        self.events = []
        for each in found.recorded:
            route = handlers.route_of(each.name)
            if route.waits_for(each.shape) and _is_recent(each):
                text = (
                    f"Waits for newer code: {each.name} in version {each.shape} at "
                    f"position {each.position}."
                )
                return _Sifted(each.position - 1, ShardTurn.WAITING, text)
            if not route.forms:
                continue
            self.events.append(each)
            if by_key or parked:
                self.failed_at = len(self.events) - 1
                place = handlers.partition_of(each)
                self.failed_at = None
                if place in parked or (by_key and shard_of(place, count) != number):
                    self.events.pop()
        return _Sifted(found.position)

    def _parked(self, held: HeldShard) -> set[Place]:
        """Return the partitions whose events wait for somebody to retry one."""
        if self._runner.options.on_failure != "park":
            return set()
        rows = Partition.objects.using(self._runner.using).filter(
            generation_id=held.generation, parked_at__isnull=False
        )
        return set(rows.values_list("stream_id", "key"))

    def _states(self, held: HeldShard) -> States:
        return states_of(
            self._handlers, self._runner.using, held.generation, held.state
        )

    def _settle(
        self, held: HeldShard, turn: ShardTurn, text: str, states: States
    ) -> None:
        """Write the position, if anything has changed."""
        memory, runner = self.memory, self._runner
        now = time.monotonic()
        if memory.held_since is None or held.owner != runner.owner:
            memory.held_since = now
        owner = ""
        if turn is ShardTurn.MORE and now - memory.held_since < HOLD:
            owner = runner.owner
        else:
            memory.held_since = None
        is_behind = held.failed_position is not None and (
            self.position < held.failed_position
        )
        state = states.text if isinstance(states, ProjectionState) else None
        if state == held.state:
            state = None
        if (
            turn is ShardTurn.WAITING
            and self.position == held.position
            and held.has_error
        ):
            return
        shards.keep(
            connections[runner.using],
            held,
            position=self.position,
            handled=self.handled,
            owner=owner,
            state=state,
            error=text,
            attempts=held.attempts if is_behind else 0,
            failed_position=held.failed_position if is_behind else None,
        )

    def _keep(self, held: HeldShard, position: int, owner: str) -> None:
        shards.keep(
            connections[self._runner.using],
            held,
            position=position,
            handled=0,
            owner=owner,
        )

    def _forget_failure(self) -> None:
        memory = self.memory
        if memory.cut is not None and self.position >= memory.cut:
            memory.cut = None
        if memory.alone_until is not None and self.position >= memory.alone_until:
            memory.alone_until = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Sifted:
    """The end of a batch."""

    position: int
    turn: ShardTurn | None = None
    """The result of the batch, if it is not about the position."""
    text: str = ""
    """The reason for that."""


def _is_recent(recorded: Recorded) -> bool:
    """Return whether an event may be from code that is being deployed."""
    return clock.now() - recorded.recorded_at < DEPLOYMENT_TIME


def refuse_future(connection: BaseDatabaseWrapper, name: str, position: int) -> None:
    """
    Refuse a position above all that the store has ever had.

    Raises:
        StoreWentBack: the store was set back.

    """
    last = settling.last_position(connection)
    if last is not None and position > last:
        msg = (
            f"Projection {name!r} is at position {position}, and the store has come to "
            f"{last} only: its sequence, or its events, were set back. New events "
            "would be passed by. Set the sequence above all positions, or rebuild the "
            "projection."
        )
        raise StoreWentBack(msg)


def states_of(
    handlers: Handlers, using: str, generation: int, text: str | None
) -> States:
    """
    Return the states of a projection for one batch.

    Args:
        handlers: of the projection.
        using: the alias of the database with the events.
        generation: the key of its generation.
        text: the stored state of the whole projection, as JSON.

    """
    if not handlers.has_state:
        return NO_STATE
    [annotation] = handlers.state_types
    if handlers.has_partition_state:
        return PartitionStates(annotation, generation, connections[using])
    return ProjectionState(annotation, text)
