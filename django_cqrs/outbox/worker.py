"""
The worker: claims messages, handles them in batches, settles them with what they wrote.

A claim is committed before anything is handled. The handlers of a batch then share
one transaction, each in a savepoint that is set when it first queries, and the
messages are deleted in that same transaction: what a handler wrote in this database
and that its message is done become true together.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import enum
import logging
import os
import socket
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from django.db import (
    Error,
    InterfaceError,
    OperationalError,
    reset_queries,
)
from django.db import connections as all_connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import atomic

from django_cqrs.buses import Registry
from django_cqrs.channels import channels as all_channels
from django_cqrs.clock import now
from django_cqrs.exceptions import (
    CQRSError,
    InvalidChannel,
    InvalidOption,
    MessageConversionError,
    UnknownEndpoint,
    UnknownMessage,
)
from django_cqrs.messages import Origin, Ran
from django_cqrs.outbox import journal
from django_cqrs.outbox.channel import NOTIFICATION, Relay
from django_cqrs.outbox.desk import UNSEEN
from django_cqrs.outbox.meter import Meter
from django_cqrs.outbox.models import JournalEntry, Outcome, Reason, State
from django_cqrs.outbox.outages import Outages, is_of_database
from django_cqrs.outbox.savepoints import (
    Savepoints,
    TransactionEnded,
    TransactionLost,
    forget_rollbacks,
)
from django_cqrs.outbox.store import Claimed, Group, LeaseLost, Store
from django_cqrs.outbox.texts import (
    LONGEST,
    described,
    masked,
    path_of,
    shortened,
    storable,
)
from django_cqrs.retries import DEADLOCKS, Retry
from django_cqrs.routing import Endpoint
from django_cqrs.scopes import BusScope

resource: Any
try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

logger: Final = logging.getLogger("django_cqrs.worker")

DEFAULT_RETRY = Retry()

# So many batches of old journal entries are deleted at once at the most.
PURGED: Final = 10

# The database is away, or has ended the connection.
_OUTAGES = (OperationalError, InterfaceError)
# So many times in a row a deadlock over the outbox's own rows is nothing to report.
_CALM_DEADLOCKS = 5
# What a handler may raise. An async one's cancelled task is no wish to end the worker.
_FAILURES = (Exception, asyncio.CancelledError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a worker stops by itself; None is never."""

    messages: int | None = None
    seconds: float | None = None
    megabytes: int | None = None
    until_empty: bool = False
    on_failure: bool = False

    def __post_init__(self) -> None:
        """
        Refuse a bound that would never be reached.

        Raises:
            InvalidOption: the memory that is used is not known on this platform.

        """
        if self.megabytes is not None and resource is None:
            msg = (
                "A worker cannot be bounded by memory here: this platform "
                f"({sys.platform}) does not say how much a process has used. Bound it "
                "by messages or by seconds."
            )
            raise InvalidOption(msg)


@dataclasses.dataclass(slots=True)
class Tally:
    """What a worker has done."""

    handled: int = 0
    failed: int = 0
    dead: int = 0
    expired: int = 0
    forwarded: int = 0

    @property
    def taken(self) -> int:
        """How many messages it has tried, dropped or forwarded."""
        return self.handled + self.failed + self.expired + self.forwarded


class StopWorker(Exception):
    """A handler failed whose policy, or whose worker's bounds, say to stop."""


class _Outcome(enum.Enum):
    """What becomes of a message that failed; the value is what the log says."""

    RETRY = "it is tried again %s"
    PAUSE = "it waits until the outage is over"
    DEAD = "it is a dead letter"
    DROP = "it is dropped, as its policy says"
    STOP = "it waits, and the worker stops, as its policy says"


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    """A message whose handling failed, and what its endpoint says about that."""

    claimed: Claimed
    error: BaseException
    reason: Reason
    retry: Retry
    attempts: int
    """How often it has been tried, this time included."""
    outcome: _Outcome
    until: timedelta = timedelta()
    """How long it waits for the next attempt, where there is one."""
    is_tried: bool = True
    """Whether a handler was called, which one is not that an outage has hit."""
    endpoint: str = ""
    """The name of the handler that has run, or that it was sent to."""

    @property
    def holds_key(self) -> bool:
        """Whether what has the same key waits for it."""
        return self.outcome is not _Outcome.DROP


@dataclasses.dataclass(frozen=True, slots=True)
class _Turn:
    """A message whose handler is called, and what the batch had until then."""

    claimed: Claimed
    sent: int
    """How many messages its handlers had sent."""
    callbacks: int
    """How many callbacks were to run after the commit."""

    def __str__(self) -> str:
        """Return the handler's name, for errors."""
        return self.claimed.envelope.endpoint


class _Habits:
    """What is known of the handlers of a registry, from having called them."""

    # A handler that takes so many seconds is slow to what it would keep waiting.
    slow_time = 0.05

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._alone: set[str] = set()

    def note_time(self, name: str, seconds: float) -> None:
        """Note how long a handler took; what was long is forgotten after some calls."""
        before = self._seconds.get(name, 0.0)
        self._seconds[name] = max(seconds, 0.8 * before)

    def is_slow(self, name: str) -> bool:
        """Tell whether a handler may take long, as one may that was never called."""
        return self._seconds.get(name, self.slow_time) >= self.slow_time

    def note_end(self, name: str) -> None:
        """Note that a handler has ended the transaction that others shared with it."""
        self._alone.add(name)

    def is_to_be_alone(self, name: str) -> bool:
        """Tell whether a handler is to share its transaction with no other."""
        return name in self._alone


_habits: weakref.WeakKeyDictionary[Registry, _Habits] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(slots=True)
class _Batch:
    """What happened to messages in one transaction."""

    taken: int = 0
    """How many of them were begun."""
    done: list[Claimed] = dataclasses.field(default_factory=list)
    expired: list[Claimed] = dataclasses.field(default_factory=list)
    failures: list[_Failure] = dataclasses.field(default_factory=list)
    outside: list[tuple[Claimed, Callable[[], object] | None]] = dataclasses.field(
        default_factory=list
    )
    """Those that are not to be handled in this transaction, and what does it."""
    later: set[Group] = dataclasses.field(default_factory=set)
    """The keys of those: what has the same comes after them."""
    ended: set[Group] = dataclasses.field(default_factory=set)
    """The keys of which one has failed: what has the same is not handled now."""
    sent: list[Any] = dataclasses.field(default_factory=list)
    """What handlers had sent before one ended the transaction."""
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    """What was to be called after the commit then."""

    def done_of_keys(self) -> Counter[Group]:
        """Return how many of each key have left the outbox."""
        dropped = [each.claimed for each in self.failures if not each.holds_key]
        gone = (*self.done, *self.expired, *dropped)
        return Counter(each.group for each in gone if each.group is not None)


class Worker:
    """Handles the messages of some channels in one database."""

    # One transaction is ended after so many seconds, and others get the locks.
    transaction_time = 0.05
    # An idle worker that nothing wakes looks again within this time.
    poll_time = 0.05
    # At first it looks more often: what is sent within the quiet time of a channel, so
    # soon after a notification, comes with none.
    quick_time = 0.004
    quick_rounds = 6
    # One that is woken by notifications does so within this, once it has been idle
    # for some rounds: a notification that was not sent is made up for by them.
    listen_time = 0.5
    rounds_of_polling = 10
    # What was parked and then forgotten, by rows that somebody deleted, is sought.
    sweep_time = 30.0
    # A claim is to be handled in about so many seconds, so that others get a share.
    claim_time = 1.0

    def __init__(
        self,
        registry: Registry,
        channels: Sequence[str],
        *,
        using: str,
        batch: int = 100,
        lease: timedelta = timedelta(seconds=30),
        bounds: Bounds | None = None,
        relays: Mapping[str, Relay] | None = None,
        outages: Outages | None = None,
    ) -> None:
        """
        Prepare a worker.

        Args:
            registry: whose handlers are called.
            channels: their aliases; the first is looked at first.
            using: the alias of the database that holds the messages.
            batch: how many messages are claimed at once at the most.
            lease: how long a message is kept from others without a sign of life.
            bounds: when to stop.
            relays: what forwards the messages of some of the channels, by alias,
                where they are not to be handled here.
            outages: what is known of them already, of workers before this one.

        """
        self.registry = registry
        self.channels = tuple(channels)
        self.store = Store(using, names=names_of(registry))
        self._ran = Ran()
        self.batch = batch
        self.lease = lease
        self.bounds = bounds or Bounds()
        self.relays = relays or {}
        self.tally = Tally()
        self.name = f"{socket.gethostname()[:60]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._claims = 0
        self._limit = batch
        # No Event: a signal handler may interrupt what holds an Event's lock.
        self._is_stopping = False
        self._can_stop = True
        self._stop: StopWorker | None = None
        self._started = time.monotonic()
        self._looked_after: float | None = None
        self._seeks_abandoned = True
        self._swept: float | None = None
        self._unsettled: dict[str, list[int]] = {}
        # Of the claim that is being handled: how many of each key are not yet done,
        # and the keys whose messages are not to be handled after one that failed.
        self._open: Counter[Group] = Counter()
        self._ended: set[Group] = set()
        self._heartbeat = _Heartbeat(using, lease)
        self._meter = Meter(using)
        self.outages = outages if outages is not None else Outages()
        # What is noted of each message of the claim that is being handled, by its id.
        self._notes: dict[int, journal.Note] | None = {} if journal.is_kept() else None
        self._listens = all(map(_notifies, self.channels))
        self._habits = _habits.setdefault(registry, _Habits())

    # Running ------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask to stop after what is being handled. Safe in a signal handler."""
        self._is_stopping = True

    def paused_channels(self) -> list[str]:
        """Return the aliases of the channels in which an outage has begun, sorted."""
        return sorted(self.outages.now)

    def run(self) -> Tally:
        """
        Handle messages until asked to stop or a bound is reached.

        Returns:
            What was done.

        Raises:
            StopWorker: a handler's policy, or the bounds, say to stop at a failure.

        """
        idle_rounds = outages = 0
        away_since = 0.0
        is_nested = self.store.connection.in_atomic_block  # in a test's transaction
        if not is_nested:
            self._heartbeat.start()
        try:
            while not self._is_over():
                try:
                    if self.run_once():
                        idle_rounds = 0
                    elif self.bounds.until_empty:
                        if not self._look_after(at_once=True):
                            break
                    else:
                        idle_rounds += 1
                        if self._wait(idle_rounds):
                            idle_rounds = 0
                    if away_since:
                        logger.warning(
                            "The database %r is back after %d s",
                            self.store.using,
                            time.monotonic() - away_since,
                        )
                        away_since = 0.0
                    outages = 0
                except Error as error:
                    if is_nested or not is_of_database(error):
                        raise
                    if DEADLOCKS.includes(error) and outages < _CALM_DEADLOCKS:
                        # Of two that met at the same rows one had to give way.
                        logger.debug("Giving way", exc_info=True)
                        outages += 1
                        self._sleep(0.001 * 2**outages)
                        continue
                    if not away_since:
                        away_since = time.monotonic()
                        logger.error(  # noqa: TRY400 - one line, not one per try
                            "The database %r is out of reach (%s: %s); the worker "
                            "tries again until it is back",
                            self.store.using,
                            type(error).__name__,
                            _line(described(error)),
                        )
                    self.store.connection.close()
                    self._sleep(min(5.0, 0.1 * 2 ** min(outages, 6)))
                    outages += 1
        finally:
            self._heartbeat.stop()
            for relay in self.relays.values():
                relay.close()
            if not is_nested:
                self._meter.write_at_last()
        if self._stop is not None:
            raise self._stop
        return self.tally

    def run_once(self) -> int:
        """
        Handle one batch of each channel.

        Returns:
            How many messages were claimed or became ready; 0 is time to rest.

        """
        for owner in list(self._unsettled):
            self._give_back(owner, State.READY)
        if self._looked_after is None:
            self._look_after()
        found = 0
        # What is ready comes first: somebody may have woken the worker for it.
        for channel in self.channels:
            if not self._is_over():
                relay = self.relays.get(channel)
                found += self._run_ready(channel) if relay is None else self._run(relay)
        if not self._is_over():
            found += self._look_after()
        if self._seeks_abandoned:
            self._seeks_abandoned = False
            for channel in self.channels:
                if channel not in self.relays and not self._is_over():
                    found += self._run_abandoned(channel)
        if self._meter.is_due():
            self._meter.write()
        self._clean_up()
        return found

    def _run(self, relay: Relay) -> int:
        forwarded = relay.forward(self._next_owner(), limit=self._messages_left())
        self.tally.forwarded += forwarded
        return forwarded

    def _messages_left(self) -> int | None:
        if self.bounds.messages is None:
            return None
        return self.bounds.messages - self.tally.taken

    def _run_ready(self, channel: str) -> int:
        left = self._messages_left()
        limit = self._limit if left is None else min(self._limit, left)
        if self.outages.now:
            limit = self.outages.limit(channel, limit)
            if not limit:
                return 0
        owner = self._next_owner()
        claimed = self.store.claim(channel, limit=limit, owner=owner, lease=self.lease)
        self._handle_claim(owner, claimed)
        return len(claimed) or self.store.was_contended

    def _run_abandoned(self, channel: str) -> int:
        if self.outages.rests(channel):
            return 0
        owner = self._next_owner()
        claimed = self.store.claim_abandoned(
            channel, owner=owner, lease=self.lease, allowed=self._attempts_of
        )
        self._handle_claim(owner, claimed)
        self._seeks_abandoned |= bool(claimed)
        return len(claimed)

    def handle_forwarded(self, keys: Sequence[int]) -> Tally:
        """
        Handle messages that were forwarded: what an engine's task does.

        A message that somebody else has by now is passed over. Those that there was
        no time for, within the bounds, are ready again: they are forwarded anew.

        Args:
            keys: their ids in the outbox.

        Returns:
            What was done.

        Raises:
            OperationalError: the database is out of reach.
            InterfaceError: so it is.

        """
        # The process is the engine's: a policy that says so does not end it.
        self._can_stop = False
        is_nested = self.store.connection.in_atomic_block
        if not is_nested:
            self._heartbeat.start()
        try:
            owner = self._next_owner()
            self._handle_claim(
                owner, self.store.claim_forwarded(keys, owner=owner, lease=self.lease)
            )
            while not self._is_over():
                owner = self._next_owner()
                claimed = self.store.claim_forwarded_abandoned(
                    keys, owner=owner, lease=self.lease, allowed=self._attempts_of
                )
                if not claimed:
                    break
                self._handle_claim(owner, claimed)
        except _OUTAGES:
            if not is_nested:
                self.store.connection.close()
                with contextlib.suppress(*_OUTAGES):  # then the leases run out
                    for owner in list(self._unsettled):
                        self._give_back(owner, State.READY)
            raise
        finally:
            self._heartbeat.stop()
        if not is_nested:
            self._meter.write_at_last()
        self._clean_up()
        return self.tally

    def _next_owner(self) -> str:
        """Return a name for one claim: what it holds is told from every other's."""
        self._claims += 1
        return f"{self.name}:{self._claims}"

    # Handling -----------------------------------------------------------------------

    def _handle_claim(self, owner: str, claimed: Sequence[Claimed]) -> None:
        """Handle what was claimed; others get at once what there was no time for."""
        if not claimed:
            return
        started = time.monotonic()
        self._unsettled[owner] = keys = [each.pk for each in claimed]
        self._open = Counter(filter(None, (each.group for each in claimed)))
        self._ended = set()
        if self._notes:
            self._notes.clear()
        self._heartbeat.hold(owner, keys)
        left = claimed
        try:
            while left and not self._is_ending() and self._seconds_left() > 0:
                if self._rests(left):
                    break
                left = self._handle_some(owner, left)
                if left and not self._heartbeat.is_kept():
                    logger.warning(
                        "A lease has run out; %d messages are left to others", len(left)
                    )
                    left = ()
        except BaseException as error:
            if is_of_database(error):
                raise  # what is not settled is given back when the database is there
            # It may be what ends the worker, so that each is next tried alone.
            self._give_back(owner, State.ABANDONED)
            raise
        finally:
            self._heartbeat.let_go()
        if left:
            self._give_back(owner, State.READY)
        else:
            del self._unsettled[owner]
        self._adapt(len(claimed), time.monotonic() - started)

    def _rests(self, claimed: Sequence[Claimed]) -> bool:
        """Tell whether messages are left for the end of an outage."""
        # An engine would only forward them anew: there each is set aside by itself.
        return (
            bool(self.outages.now)
            and self._can_stop
            and self.outages.rests(claimed[0].channel)
        )

    def _give_back(self, owner: str, state: State) -> None:
        self.store.give_back(owner, self._unsettled[owner], state)
        del self._unsettled[owner]

    def _adapt(self, count: int, seconds: float) -> None:
        """Claim as many messages next as can be handled before others grow idle."""
        if seconds > self.claim_time:
            self._limit = max(1, int(count * self.claim_time / seconds))
        elif count == self._limit:
            self._limit = min(self.batch, self._limit * 2)

    def _handle_some(self, owner: str, claimed: Sequence[Claimed]) -> Sequence[Claimed]:
        """Handle messages in one transaction; return those it had no time for."""
        batch = _Batch()
        try:
            self._handle_batch(owner, claimed, batch)
        except TransactionEnded as ended:
            begun = self._settle_ended(owner, claimed[: batch.taken], batch, ended)
            left = [*begun, *claimed[batch.taken :]]
        except _FAILURES as error:
            left = list(claimed[batch.taken :])
            if batch.taken == len(batch.failures) == 1 and isinstance(error, Error):
                self._start_afresh(error)
                self._end(owner, claimed[0], batch.failures[0])
                return left
            begun = self._rolled_back(owner, claimed[: batch.taken], error)
            while begun and not self._is_ending() and not self._rests(begun):
                self._handle_alone(owner, begun.pop(0))
            return [*begun, *left]
        else:
            left = list(claimed[batch.taken :])
        outside = batch.outside
        while outside and not self._is_ending() and not self._rests(claimed):
            self._handle_outside(owner, *outside.pop(0))
        return [*(each for each, _ in outside), *left]

    def _rolled_back(
        self, owner: str, begun: Sequence[Claimed], error: BaseException
    ) -> list[Claimed]:
        """Say that a batch was rolled back; return what is to be tried one by one."""
        if not begun:
            raise error  # it could not even begin
        self._start_afresh(error)
        if isinstance(error, LeaseLost):
            logger.warning("%s", error)
            ours = self.store.held(owner, self._unsettled[owner])
            for each in begun:
                if each.pk not in ours:
                    self._let_go_of_key(owner, each)
            return [each for each in begun if each.pk in ours]
        logger.warning(
            "A batch of %d was rolled back by %s; its messages are taken one by one",
            len(begun),
            type(_blamed(error)).__name__,
        )
        return list(begun)

    def _handle_batch(
        self,
        owner: str,
        claimed: Sequence[Claimed],
        batch: _Batch,
        *,
        is_alone: bool = False,
    ) -> None:
        """
        Handle as many messages as there is time for, and commit that.

        Raises:
            TransactionEnded: a handler has committed what was done until then.

        """
        connection = self.store.connection
        with atomic(self.store.using):
            callbacks = len(connection.run_on_commit)
            scope = BusScope(connection, Origin())
            savepoints: Savepoints[_Turn] = Savepoints(connection)
            try:
                self._handle_each(claimed, batch, scope, savepoints, is_alone=is_alone)
                savepoints.release()
            except TransactionEnded as ended:
                turn: _Turn = ended.subject
                batch.sent = scope.buffer[: turn.sent]
                batch.callbacks = connection.run_on_commit[callbacks : turn.callbacks]
                raise
            scope.is_open = False
            if scope.buffer:
                scope.write_or_keep()
            self._settle(owner, batch)
            _make_robust(connection, callbacks)
        self._report(batch)

    def _handle_each(
        self,
        claimed: Sequence[Claimed],
        batch: _Batch,
        scope: BusScope,
        savepoints: Savepoints[_Turn],
        *,
        is_alone: bool,
    ) -> None:
        """Call the handlers of messages, until it is time to end their transaction."""
        connection, habits = self.store.connection, self._habits
        moment = now()
        before = started = time.monotonic()
        for each in claimed:
            name = each.envelope.endpoint
            if (batch.done or batch.failures) and habits.is_slow(name):
                break  # nothing that is done waits for it
            batch.taken += 1
            if each.group in batch.ended or each.group in self._ended:
                continue  # it is set aside: one before it has failed
            if each.group in batch.later or (
                not is_alone and habits.is_to_be_alone(name)
            ):
                batch.outside.append((each, None))
                if each.group is not None:
                    batch.later.add(each.group)
                continue
            if each.envelope.is_expired(moment):
                batch.expired.append(each)
                continue
            turn = _Turn(each, len(scope.buffer), len(connection.run_on_commit))
            outcome = self._attempt(turn, scope, savepoints)
            if outcome is None:
                batch.done.append(each)
                if self.outages.row:
                    self.outages.row.pop(each.channel, None)
            elif not isinstance(outcome, _Failure):
                batch.outside.append((each, outcome))
                if each.group is not None:
                    batch.later.add(each.group)
            else:
                batch.failures.append(outcome)
                if outcome.holds_key and each.group is not None:
                    batch.ended.add(each.group)
                if self._ends_worker(outcome) or (
                    outcome.outcome is _Outcome.PAUSE and outcome.is_tried
                ):
                    break
            after = time.monotonic()
            habits.note_time(name, after - before)
            before = after
            if after - started > self.transaction_time or self._is_stopping:
                break

    def _settle_ended(
        self,
        owner: str,
        begun: Sequence[Claimed],
        batch: _Batch,
        ended: TransactionEnded[_Turn],
    ) -> list[Claimed]:
        """
        Settle what was done before a handler has committed it, and that handler's own.

        Returns:
            What was begun after that, and is to be handled.

        """
        culprit = ended.subject.claimed
        self._habits.note_end(culprit.envelope.endpoint)
        self._start_afresh(ended)
        place = next(n for n, each in enumerate(begun) if each.pk == culprit.pk)
        later = {each.pk for each in begun[place:]}
        gone = {each.claimed.pk for each in batch.failures}
        gone |= {each.pk for each in batch.expired}
        gone |= {each.pk for each, _ in batch.outside}
        batch.done = [each for each in batch.done if each.pk not in later]
        # When it returned, what it wrote is saved: another attempt would write it anew.
        failure = self._failure(culprit, ended.cause, is_final=ended.returned)
        batch.failures.append(failure)
        connection = self.store.connection
        try:
            with atomic(self.store.using):
                connection.run_on_commit.extend(batch.callbacks)
                start = len(connection.run_on_commit) - len(batch.callbacks)
                scope = BusScope(connection, Origin())
                scope.buffer, scope.is_open = batch.sent, False
                if scope.buffer:
                    scope.write_or_keep()
                self._settle(owner, batch)
                _make_robust(connection, start)
            self._report(batch)
        except LeaseLost as error:
            logger.warning("%s", error)
            self._let_go_of_key(owner, culprit)
        return [each for each in begun[place + 1 :] if each.pk not in gone]

    def _attempt(
        self, turn: _Turn, scope: BusScope, savepoints: Savepoints[_Turn]
    ) -> _Failure | Callable[[], object] | None:
        """
        Handle one message in its savepoint.

        Returns:
            Why it failed, if it did; or what handles it, where that is not to happen
            in this transaction.

        Raises:
            TransactionLost: what failed has undone the whole transaction.
            TransactionEnded: it, or what came before it, has committed it.

        """
        claimed = turn.claimed
        if claimed.is_given_up:
            self._ran.name = ""
            return self._failure(claimed, _Poison(), Reason.POISON)
        if self.outages.now and self.outages.sets_aside(
            claimed.channel, claimed.envelope.endpoint, claimed.pk
        ):
            return self._set_aside(claimed)
        is_read = False
        note, self._ran.name = self._note_of(claimed), ""
        try:
            with savepoints.around(turn):
                endpoint, handle = self.registry.unpack(
                    claimed.envelope,
                    scope=scope,
                    opens_transaction=False,
                    using=self.store.using,
                    note=note,
                    ran=self._ran,
                )
                is_read = True
                if _is_of_this_transaction(endpoint, self.store.using):
                    # What a handler activates, a language for example, ends with it.
                    contextvars.copy_context().run(handle)
                    return None
            _, handle = self.registry.unpack(
                claimed.envelope, using=self.store.using, note=note, ran=self._ran
            )
        except (TransactionLost, TransactionEnded):
            raise
        except _FAILURES as error:
            reason = Reason.FAILED if is_read else _reason_of(error)
            return self._failure(claimed, error, reason)
        return handle

    def _handle_alone(self, owner: str, claimed: Claimed) -> None:
        """Handle one message in a transaction that no other shares."""
        if claimed.group in self._ended:
            return
        batch = _Batch()
        try:
            self._handle_batch(owner, [claimed], batch, is_alone=True)
        except TransactionEnded as ended:
            self._settle_ended(owner, [claimed], batch, ended)
        except LeaseLost as error:
            logger.warning("%s", error)
            self._let_go_of_key(owner, claimed)
        except _FAILURES as error:
            if not batch.taken:
                raise
            self._start_afresh(error)
            # Where its handler failed as well, that is what there is to say.
            failed = next(iter(batch.failures), None)
            # A handler that returned, and left what cannot be settled, counts.
            counts = False if batch.done else None
            if failed is None:
                failed = self._failure(claimed, _blamed(error), is_final=counts)
            self._end(owner, claimed, failed)
        else:
            for each, handle in batch.outside:
                self._handle_outside(owner, each, handle)

    def _handle_outside(
        self, owner: str, claimed: Claimed, handle: Callable[[], object] | None
    ) -> None:
        """Handle a message at least once: its transaction is not that of the batch."""
        if handle is None:  # it was not read: one of its key came before it
            self._handle_alone(owner, claimed)
            return
        failure = None
        self._ran.name = ""
        try:
            contextvars.copy_context().run(handle)
        except _FAILURES as error:
            failure = self._failure(claimed, error)
        self._ensure_reachable()
        self._end(owner, claimed, failure)

    def _end(self, owner: str, claimed: Claimed, failure: _Failure | None) -> None:
        """Settle one message in a transaction of its own."""
        try:
            try:
                batch = self._settle_one(owner, claimed, failure)
            except Error:
                if self.store.connection.in_atomic_block:  # a test's
                    raise
                # By what its handler has left in the session, locked tables or a
                # setting: that must not keep the attempt from being counted.
                self.store.connection.close()
                batch = self._settle_one(owner, claimed, failure)
        except LeaseLost as error:
            logger.warning("%s", error)
            self._let_go_of_key(owner, claimed)
            return
        self._report(batch)

    def _settle_one(
        self, owner: str, claimed: Claimed, failure: _Failure | None
    ) -> _Batch:
        batch = _Batch()
        if failure is None:
            batch.done.append(claimed)
        else:
            batch.failures.append(failure)
        with atomic(self.store.using):
            self._settle(owner, batch)
        return batch

    def _settle(self, owner: str, batch: _Batch) -> None:
        """Write down what has become of messages, in the transaction that is open."""
        ended = [*batch.done, *batch.expired]
        self.store.settle(owner, [each.pk for each in ended])
        for failure in batch.failures:
            self._settle_failure(owner, failure)
        if self._notes is not None:
            journal.write(self.store.using, list(self._entries(batch)))
        done = batch.done_of_keys()
        if done:
            # What came behind them was set aside, and nothing of ours keeps it now.
            self.store.wake(key for key in done if self._open[key] <= done[key])

    def _note_of(self, claimed: Claimed) -> journal.Note | None:
        """Return what a message's handling is noted in, where a journal is kept."""
        if self._notes is None:
            return None
        note = self._notes[claimed.pk] = journal.Note(is_workers=True)
        return note

    def _entries(self, batch: _Batch) -> Iterator[JournalEntry]:
        """Yield what the journal says of messages that are being settled."""
        ended: list[tuple[Claimed, Outcome, _Failure | None]] = [
            *((each, Outcome.HANDLED, None) for each in batch.done),
            *((each, Outcome.EXPIRED, None) for each in batch.expired),
        ]
        for each in batch.failures:
            if not each.is_tried:
                continue
            is_dropped = each.outcome is _Outcome.DROP
            outcome = Outcome.DROPPED if is_dropped else Outcome.FAILED
            ended.append((each.claimed, outcome, each))
        notes = self._notes or {}
        for claimed, outcome, failure in ended:
            note = notes.get(claimed.pk) or journal.Note(is_workers=True)
            attempts, text = claimed.attempts + (not claimed.is_counted), {}
            if failure is not None:
                attempts = failure.attempts
                text = journal.failure_of_stored(
                    failure.error, claimed.envelope, failure.reason, self.registry
                )
            yield note.entry_of_stored(
                claimed.envelope, claimed.channel, outcome, attempts=attempts, **text
            )

    def _let_go_of_key(self, owner: str, claimed: Claimed) -> None:
        """Leave the rest of a message's key to whoever has the message now."""
        if claimed.group is not None and claimed.group not in self._ended:
            self._ended.add(claimed.group)
            self.store.give_back_key(owner, claimed.group)

    def _attempts_of(self, name: str) -> int:
        return self._retry_of(name).attempts

    def _retry_of(self, name: str) -> Retry:
        """Return the policy of the endpoint of a name."""
        try:
            endpoint = self.registry.routes.endpoint_named(name)
        except CQRSError:  # then there is no policy to ask
            return DEFAULT_RETRY
        return endpoint.policies.retry or DEFAULT_RETRY

    # Failures -----------------------------------------------------------------------

    def _failure(
        self,
        claimed: Claimed,
        error: BaseException,
        reason: Reason = Reason.FAILED,
        *,
        is_final: bool | None = None,
    ) -> _Failure:
        retry = self._retry_of(claimed.envelope.endpoint)
        attempts = claimed.attempts + (not claimed.is_counted)
        if reason is Reason.POISON:
            attempts = claimed.attempts  # this time it is not even tried
        hit = None
        # One that has ended its transaction counts: it may have saved something.
        if reason is Reason.FAILED and is_final is None:
            hit = self.outages.hits(
                claimed.channel, claimed.envelope.endpoint, claimed.pk, error
            )
        if hit is not None:
            failure = self._paused(claimed, error, retry)
            hit.said = hit.said or self._said_of(failure)
            return failure
        is_worth = retry.is_worth(error) or isinstance(error, asyncio.CancelledError)
        if reason is not Reason.FAILED:
            outcome = _Outcome.DEAD
        elif is_worth and attempts < retry.attempts and not is_final:
            outcome = _Outcome.RETRY
        else:
            outcome = _FINAL[retry.final_failure]
            if outcome is _Outcome.STOP and not self._can_stop:
                outcome = _Outcome.RETRY
        until = retry.delay_after(attempts)
        ran = self._ran.name or claimed.envelope.endpoint
        return _Failure(
            claimed, error, reason, retry, attempts, outcome, until, endpoint=ran
        )

    def _paused(
        self, claimed: Claimed, error: BaseException, retry: Retry, **more: bool
    ) -> _Failure:
        """Return what is said of a message that an outage has hit."""
        # The attempt is not counted, not even where the claim has counted it.
        attempts = claimed.attempts - claimed.is_counted
        until = timedelta(seconds=max(0.0, self.outages.seconds_left(claimed.channel)))
        pause = _Outcome.PAUSE
        return _Failure(
            claimed,
            error,
            Reason.FAILED,
            retry,
            attempts,
            pause,
            until,
            endpoint=claimed.envelope.endpoint,
            **more,
        )

    def _set_aside(self, claimed: Claimed) -> _Failure:
        """Return what is said of a message that is not tried during an outage."""
        retry = self._retry_of(claimed.envelope.endpoint)
        return self._paused(claimed, Exception(), retry, is_tried=False)

    def _settle_failure(self, owner: str, failure: _Failure) -> None:
        claimed, attempts = failure.claimed, failure.attempts
        match failure.outcome:
            case _Outcome.RETRY | _Outcome.PAUSE:
                self.store.delay(
                    owner,
                    claimed,
                    until=now() + failure.until,
                    attempts=attempts,
                    error=self._said_of(failure),
                )
            case _Outcome.DROP:
                self.store.settle(owner, [claimed.pk])
            case _Outcome.STOP:
                self.store.give_back(owner, [claimed.pk], State.READY)
            case _Outcome.DEAD:
                error = failure.error
                self.store.bury(
                    owner,
                    claimed,
                    endpoint=failure.endpoint,
                    reason=failure.reason,
                    attempts=attempts,
                    exception=path_of(error),
                    **self._texts_of(failure),
                )
        if failure.holds_key and claimed.group is not None:
            self.store.park_rest(owner, claimed.group)

    def _texts_of(self, failure: _Failure) -> dict[str, str]:
        """Return the text of an exception and its traceback, as long as is kept."""
        error, envelope = failure.error, failure.claimed.envelope
        texts = {
            "error": described(error),
            "traceback": storable("".join(traceback.format_exception(error))),
        }
        if any(len(text) > LONGEST[name] for name, text in texts.items()):
            # What is sensitive goes before anything is cut: half of a value that is
            # masked where it is shown could not be told from another text.
            try:
                redact = journal.redactor_of_stored(
                    envelope, failure.reason, self.registry
                )
                texts = {name: (redact or str)(each) for name, each in texts.items()}
            except Exception:  # noqa: BLE001 - of somebody's converter
                texts = dict.fromkeys(texts, UNSEEN)
        return {name: shortened(text, LONGEST[name]) for name, text in texts.items()}

    def _said_of(self, failure: _Failure) -> str:
        """Return one line of an exception, without what is sensitive in its message."""
        if not failure.is_tried:
            outage = self.outages.now.get(failure.claimed.channel)
            return "" if outage is None else outage.said
        envelope = failure.claimed.envelope
        said = journal.failure_of_stored(
            failure.error, envelope, failure.reason, self.registry
        )
        name = said["exception"].rpartition(".")[2]
        return f"{name}: {said['error']}" if said["error"] else name

    def _ends_worker(self, failure: _Failure) -> bool:
        is_tried = failure.is_tried
        return (self.bounds.on_failure and is_tried) or failure.outcome is _Outcome.STOP

    def _report(self, batch: _Batch) -> None:
        """Count and log what has been committed."""
        self._open.subtract(batch.done_of_keys())
        if self._notes is not None:
            journal.let_out(self.store.connection)
        for failure in batch.failures:
            if failure.holds_key and failure.claimed.group is not None:
                self._ended.add(failure.claimed.group)
        tried = [each for each in batch.failures if each.is_tried]
        self.tally.handled += len(batch.done)
        self.tally.expired += len(batch.expired)
        self.tally.failed += len(tried)
        self._meter.count(batch.done, [each.claimed for each in tried])
        for claimed in batch.expired:
            logger.info(
                "Message %s for %s is dropped: it expired at %s",
                claimed.envelope.message_id,
                claimed.envelope.endpoint,
                claimed.envelope.expires_at,
                extra=_extra(claimed),
            )
        if batch.done and (self.outages.now or self.outages.row):
            self._report_recovery(batch.done)
        for failure in tried:
            self._report_failure(failure)

    def _report_failure(self, failure: _Failure) -> None:
        claimed, error = failure.claimed, failure.error
        is_dead = failure.outcome is _Outcome.DEAD
        self.tally.dead += is_dead
        if failure.outcome is _Outcome.PAUSE:
            self._report_outage(failure)
        else:
            said = self._said_of(failure)
            name, _, text = said.partition(": ")
            what = failure.outcome.value + f" ({failure.reason.value})" * is_dead
            if failure.outcome is _Outcome.RETRY:
                what = what % _span(failure.until)
            # The handler and the exception are of the template, by which a tracker of
            # errors tells one issue from another.
            endpoint = failure.endpoint.replace("%", "%%")
            is_given_up = failure.outcome is not _Outcome.RETRY
            logger.log(
                logging.ERROR if is_given_up else logging.WARNING,
                f"Message %s for {endpoint} failed at attempt %d with {name}%s; %s",  # noqa: G004
                claimed.envelope.message_id,
                failure.attempts,
                f": {text}" if text else "",
                what,
                extra=_extra(claimed),
                exc_info=self._trace_of(failure) if is_given_up else None,
            )
        if self._stop is None and self._ends_worker(failure):
            self._stop = StopWorker(
                f"{failure.endpoint} failed with {type(error).__name__}."
            )
            self._stop.__cause__ = error

    def _trace_of(self, failure: _Failure) -> BaseException:
        """Return the exception for the log, without what is sensitive."""
        redact = journal.redactor_of_stored(
            failure.claimed.envelope, failure.reason, self.registry
        )
        return failure.error if redact is None else masked(failure.error, redact)

    def _report_outage(self, failure: _Failure) -> None:
        """Say once that an outage has begun."""
        outage = self.outages.now.get(failure.claimed.channel)
        if outage is None or outage.is_reported:
            return
        outage.is_reported = True
        logger.error(
            "Channel %r pauses: %s failed with %s. Other messages would fail alike, so "
            "their attempts are not counted; one is tried again %s, then more and "
            "more seldom",
            outage.channel,
            failure.endpoint,
            outage.said,
            _span(timedelta(seconds=outage.pause)),
            extra=_extra(failure.claimed),
        )

    def _report_recovery(self, done: Sequence[Claimed]) -> None:
        """Say once that an outage is over."""
        channel = done[0].channel  # a claim is of one
        endpoints = {each.envelope.endpoint for each in done}
        outage = self.outages.works(channel, endpoints)
        if outage is not None and outage.is_reported:
            logger.warning(
                "Channel %r goes on: %s works again after %d s",
                channel,
                min(endpoints & outage.endpoints),
                self.outages.clock() - outage.since,
            )

    # Surroundings -------------------------------------------------------------------

    def _look_after(self, *, at_once: bool = False) -> int:
        """Release what is due and take up what dead workers held, now and then."""
        now = time.monotonic()
        last = self._looked_after
        if not at_once and last is not None and now - last < self.poll_time:
            return 0
        self._looked_after = now
        self._seeks_abandoned = True
        found = self.store.release_due(self.channels)
        found += self.store.abandon_expired(self.channels)
        if self._swept is None or now - self._swept > self.sweep_time:
            self._swept = now
            found += self.store.wake_stranded(self.channels)
            if self._notes is not None:
                journal.purge(self.store.using, batches=PURGED)
        return found + sum(relay.look_after() for relay in self.relays.values())

    def _clean_up(self) -> None:
        """Forget what handlers have left: logged queries, broken connections."""
        reset_queries()
        for connection in all_connections.all(initialized_only=True):
            if connection.errors_occurred and not connection.in_atomic_block:
                # MySQL's cannot tell it of one that has never come about.
                if connection.connection is None or not connection.is_usable():
                    connection.close()
                connection.errors_occurred = False

    def _ensure_reachable(self) -> None:
        """
        Connect again where a handler, or the server, has ended the connection.

        Raises:
            OperationalError: the database is away.

        """
        connection = self.store.connection
        if connection.in_atomic_block:  # a test's
            return
        forget_rollbacks(connection)
        if connection.connection is not None and (
            connection.get_autocommit() != connection.settings_dict["AUTOCOMMIT"]
            or (connection.errors_occurred and not connection.is_usable())
        ):
            connection.close()
        connection.ensure_connection()
        connection.errors_occurred = False

    def _start_afresh(self, error: BaseException) -> None:
        """Connect anew: who knows what a handler has left in the session."""
        connection = self.store.connection
        if not connection.in_atomic_block and not DEADLOCKS.includes(_blamed(error)):
            connection.close()
        self._ensure_reachable()

    def _is_ending(self) -> bool:
        return self._is_stopping or self._stop is not None

    def _is_over(self) -> bool:
        bounds = self.bounds
        return (
            self._is_ending()
            or (bounds.messages is not None and self.tally.taken >= bounds.messages)
            or (bounds.seconds is not None and self._seconds_left() <= 0)
            or (bounds.megabytes is not None and megabytes_used() >= bounds.megabytes)
        )

    def _seconds_left(self) -> float:
        if self.bounds.seconds is None:
            return float("inf")
        return self.bounds.seconds - (time.monotonic() - self._started)

    def _wait(self, idle_rounds: int) -> bool:
        """
        Wait for a notification, or for a while that grows to the poll time.

        Returns:
            Whether there was one for us. More may then follow that say nothing.

        """
        slow_rounds = max(0, idle_rounds - self.quick_rounds)
        seconds = min(self.poll_time, self.quick_time * 2 ** min(slow_rounds, 10))
        connection = self.store.connection
        for other in all_connections.all(initialized_only=True):
            if other is not connection:
                other.close_if_unusable_or_obsolete()
        if (
            not self._listens
            or connection.in_atomic_block
            or not _can_listen(connection)
        ):
            self._sleep(seconds)
            return False
        driver = connection.connection
        if driver is None or not getattr(driver, "_cqrs_listens", False):
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {NOTIFICATION}")
                driver = connection.connection
                driver._cqrs_listens = True
                driver._cqrs_is_pooled = _is_pooled(driver, cursor)
            return False  # what was sent before is claimed before this waits
        if driver._cqrs_is_pooled:
            self._sleep(seconds)
            return False
        if idle_rounds > self.rounds_of_polling:
            seconds = max(0.001, min(self.listen_time, self._seconds_left()))
        with connection.wrap_database_errors:
            notes = driver.notifies(timeout=seconds, stop_after=1)
            return any(note.payload in self.channels for note in notes)

    def _sleep(self, seconds: float) -> None:
        """Sleep, and not much longer than until asked to stop."""
        end = time.monotonic() + min(seconds, max(0.0, self._seconds_left()))
        while not self._is_stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))


_FINAL = {
    "dead_letter": _Outcome.DEAD,
    "drop": _Outcome.DROP,
    "stop": _Outcome.STOP,
}


class _Poison(Exception):
    def __str__(self) -> str:
        return "Every worker that tried to handle this message died of it."


def _line(text: str) -> str:
    return " ".join(text.split())


def _span(span: timedelta) -> str:
    """Return when something is, as people say it."""
    seconds = span.total_seconds()
    if seconds <= 0:
        return "at once"
    if seconds < 10:  # noqa: PLR2004 - seconds
        return f"in {seconds:.1f} s"
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"in {seconds:.0f} s"
    return f"in {seconds / 60:.0f} min"


def _blamed(error: BaseException) -> BaseException:
    """Return what a handler raised, where that has ended the transaction."""
    if isinstance(error, TransactionLost) and error.__cause__ is not None:
        return error.__cause__
    return error


def names_of(registry: Registry) -> dict[str, tuple[str, ...]]:
    """
    Return all names of the endpoints that have had others, by each of them.

    A factory and an action that keep an order keep it together: a message for the two
    is stored by the factory's name, and a dead letter has that of the one which ran.
    """
    found: dict[str, tuple[str, ...]] = {}
    by_name = {endpoint.name: endpoint for endpoint in registry.routes.endpoints}
    for endpoint in registry.routes.endpoints:
        names = endpoint.names
        if endpoint.policies.ordering_key is not None:
            for partner in endpoint.partners:
                names += by_name[partner].names
            if endpoint.partners:
                names = tuple(sorted(names))  # the same from whichever of them
        if len(names) > 1:
            found.update(dict.fromkeys(names, names))
    return found


def _is_of_this_transaction(endpoint: Endpoint, using: str) -> bool:
    """Tell whether the batch's transaction can be the endpoint's."""
    return endpoint.is_atomic and endpoint.policies.using in (None, using)


def _reason_of(error: BaseException) -> Reason:
    if isinstance(error, UnknownEndpoint):
        return Reason.UNKNOWN_ENDPOINT
    if isinstance(error, UnknownMessage):
        return Reason.UNKNOWN_MESSAGE
    if isinstance(error, MessageConversionError):
        return Reason.UNDECODABLE
    return Reason.FAILED


def _extra(claimed: Claimed) -> dict[str, str]:
    return {
        "cqrs_channel": claimed.channel,
        "cqrs_message_id": str(claimed.envelope.message_id),
        "cqrs_correlation_id": str(claimed.envelope.correlation_id),
        "cqrs_endpoint": claimed.envelope.endpoint,
    }


def _make_robust(connection: BaseDatabaseWrapper, start: int) -> None:
    """Have a callback that raises after the commit keep no other from running."""
    callbacks: list[Any] = connection.run_on_commit
    callbacks[start:] = [(sids, func, True) for sids, func, _ in callbacks[start:]]


def _notifies(alias: str) -> bool:
    """Tell whether a channel wakes its workers."""
    try:
        return bool(getattr(all_channels[alias], "notifies", False))
    except InvalidChannel:
        return False


def _is_pooled(driver: Any, cursor: Any) -> bool:
    """
    Tell whether a pooler stands between a connection and its session.

    It gives its clients process ids of its own. There `LISTEN` succeeds, and what is
    notified reaches whoever has the session just then.
    """
    cursor.execute("SELECT pg_backend_pid()")
    return bool(cursor.fetchone()[0] != driver.info.backend_pid)


def _can_listen(connection: BaseDatabaseWrapper) -> bool:
    driver = getattr(connection, "Database", None)
    return connection.vendor == "postgresql" and hasattr(
        getattr(driver, "Connection", None), "notifies"
    )


def megabytes_used() -> int:
    """Return the most memory this process has used, in MiB; 0 where nobody can say."""
    if resource is None:
        return 0
    used: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used // (1024 * 1024 if sys.platform == "darwin" else 1024)


class _Heartbeat:
    """
    Renews the lease of what is being handled: one thread, which mostly sleeps.

    It uses a connection of its own, and only where something takes long.
    """

    def __init__(self, using: str, lease: timedelta) -> None:
        self._using = using
        self._lease = lease
        self._interval = lease.total_seconds() / 3
        self._held: tuple[str, list[int]] | None = None
        self._renewed = 0.0
        self._is_lost = False
        # Of two renewals at once, the rows of one are locked to the other, as if gone.
        self._renewing = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._done.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=1)
            self._thread = None

    def hold(self, owner: str, keys: list[int]) -> None:
        self._is_lost = False
        self._renewed = time.monotonic()
        self._held = owner, keys

    def let_go(self) -> None:
        self._held = None

    def is_kept(self) -> bool:
        """Renew where it is time to; tell whether anything is still held."""
        if not self._is_lost and self._is_time():
            self._renew()
        return not self._is_lost

    def _is_time(self) -> bool:
        return time.monotonic() - self._renewed >= self._interval

    def _renew(self) -> None:
        with self._renewing:
            held = self._held
            if held is None or not self._is_time():  # the other thread has done it
                return
            count = Store(self._using).renew(*held, self._lease)
            if self._held is held:
                self._renewed = time.monotonic()
                self._is_lost = not count

    def _run(self) -> None:
        while not self._done.wait(self._interval / 2):
            if not self._is_time():
                continue
            try:
                self._renew()
            except Error as error:
                logger.warning(
                    "A lease could not be renewed (%s)", type(error).__name__
                )
            finally:
                all_connections[self._using].close()
