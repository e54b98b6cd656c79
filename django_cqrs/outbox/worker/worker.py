"""
The worker: claims messages, handles them in batches, settles them with their writes.

A claim is committed before anything is handled. The handlers of a batch then share one
transaction, each in a savepoint that is set when it first queries. The messages are
deleted in that same transaction: a handler's writes to this database take effect
together with the end of its message.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol

from django.db import Error, reset_queries
from django.db import connections as all_connections
from django.dispatch import Signal

from django_cqrs.attendants import Duty
from django_cqrs.buses.registries import Registry
from django_cqrs.logged_errors import described
from django_cqrs.outbox import journal
from django_cqrs.outbox.models import State
from django_cqrs.outbox.pausing import paused_channels
from django_cqrs.outbox.store.dialects import NOTIFICATION
from django_cqrs.outbox.store.rows import Claimed
from django_cqrs.outbox.store.store import Store
from django_cqrs.outbox.worker.attending import Attending
from django_cqrs.outbox.worker.bounds import Bounds, Progress, Tally
from django_cqrs.outbox.worker.failures import OUTAGES, FailurePolicies
from django_cqrs.outbox.worker.handling import ClaimHandler
from django_cqrs.outbox.worker.jobs import ChannelJobs
from django_cqrs.outbox.worker.notifications import can_listen, wakes_workers
from django_cqrs.outbox.worker.outages import Outages, is_of_database
from django_cqrs.outbox.worker.presence import Presence
from django_cqrs.outbox.worker.replays import Replays
from django_cqrs.retries import DEADLOCKS
from django_cqrs.signals import (
    batch_finished,
    batch_started,
    worker_started,
    worker_stopped,
)


class Relay(Protocol):
    """Forwards the messages of one channel to an engine that handles them."""

    def forward(self, owner: str, *, limit: int | None) -> int:
        """
        Forward ready messages.

        Args:
            owner: a name that is used only once.
            limit: the maximum number of messages.

        Returns:
            The number of forwarded messages. 0 means it is time to rest, also if the
            engine is unavailable, which raises nothing.

        """
        ...

    def look_after(self) -> int:
        """Make ready again the messages that the engine lost; return their number."""
        ...

    def close(self) -> None:
        """Close the connection to the engine, if there is one."""
        ...


logger: Final = logging.getLogger("django_cqrs.worker")

# The maximum number of batches of old journal entries, and of the results of tasks,
# that are deleted at once.
PURGED: Final = 10

# The number of deadlocks in a row, over the outbox's own rows, to pass in silence.
_CALM_DEADLOCKS = 5


class Worker:
    """Handles the messages of some channels in one database."""

    # The longest time until an idle worker looks again without being woken.
    poll_time = 0.05
    # It looks more often at first: messages within a channel's quiet time, soon after a
    # notification, send none.
    quick_time = 0.004
    quick_rounds = 6
    # A worker woken by notifications looks again after this time, once it has been idle
    # for some rounds: that makes up for lost notifications.
    listen_time = 0.5
    rounds_of_polling = 10
    # The interval in which messages are sought that stay parked after rows were
    # deleted.
    sweep_time = 30.0
    # The interval in which it looks which channels an operator has paused.
    pause_time = 1.0
    # The target time for handling a claim, in seconds, so that others get a share.
    claim_time = 1.0
    # A worker that is alive and loses its leases is too slow for them. It lengthens its
    # leases by at most this factor.
    longest_lease = 64

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
        duties: Sequence[Duty] = (),
        progress: Progress | None = None,
    ) -> None:
        """
        Prepare a worker.

        Args:
            registry: whose handlers are called.
            channels: their aliases; the first is looked at first.
            using: the alias of the database that holds the messages.
            batch: the maximum number of messages in one claim.
            lease: how long a message is reserved without a sign of life.
            bounds: when to stop.
            relays: the relays that forward messages of some channels, by alias, instead
                of handling them here.
            outages: the outages known from earlier workers.
            duties: the duties of other apps, each to be run in a thread.
            progress: the progress of several workers together, in place of bounds.

        """
        self.registry = registry
        self.channels = tuple(channels)
        self.store = Store(using, names=names_of(registry))
        self.batch = batch
        self.lease = lease
        self.progress = progress or Progress(bounds or Bounds())
        self.relays = relays or {}
        self.name = f"{socket.gethostname()[:60]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._claims = 0
        self._limit = batch
        self._lease = lease
        self._looked_after: float | None = None
        self._seeks_abandoned = False
        self._swept: float | None = None
        # The channels whose last claim found messages: the next one probably does too,
        # so it is made without a look.
        self._busy: set[str] = set()
        self._own_channels = [each for each in channels if each not in self.relays]
        self.outages = outages if outages is not None else Outages()
        self._policies = FailurePolicies(registry, self.outages)
        self._handler = ClaimHandler(
            self.store, self._policies, self.progress, lease=lease
        )
        self.jobs = ChannelJobs(registry, using, self.progress)
        self._attending = [Attending(duty) for duty in duties]
        self._replays = Replays(using)
        self._presence = Presence(self.name, self.channels, using)
        self._handler.heartbeat.presence = self._presence
        self._paused: frozenset[str] = frozenset()
        self._asked: float | None = None
        self._listens = all(map(wakes_workers, self.channels))

    @property
    def tally(self) -> Tally:
        """The work done so far."""
        return self.progress.tally

    def _handle_claim(self, owner: str, claimed: Sequence[Claimed]) -> None:
        if not claimed:
            self._handler.handle(owner, claimed, self._lease)
            return
        about: dict[str, Any] = {}
        if batch_started.receivers or batch_finished.receivers:
            about["channel"], about["count"] = claimed[0].channel, len(claimed)
            self._send(batch_started, **about)
        try:
            seconds = self._handler.handle(owner, claimed, self._lease)
        finally:
            if about:
                self._send(batch_finished, **about)
        self._adapt(len(claimed), seconds)

    def _send(self, signal: Signal, **about: Any) -> None:
        signal.send_robust(
            type(self), worker=self.name, using=self.store.using, **about
        )

    def stop(self) -> None:
        """Ask to stop after the current message. Safe in a signal handler."""
        self.progress.is_stopping = True

    def paused_channels(self) -> list[str]:
        """Return the aliases of the channels in an outage or paused, sorted."""
        return sorted(self._paused.intersection(self.channels).union(self.outages.now))

    def why_paused(self, channel: str) -> str:
        """Return the reason why a channel is paused, in a few words."""
        outage = self.outages.now.get(channel)
        return "an operator has paused it" if outage is None else outage.said

    def run(self) -> Tally:
        """
        Handle messages until asked to stop or a bound is reached.

        Returns:
            The work done.

        Raises:
            StopWorker: a handler's policy, or the bounds, say to stop at a failure.

        """
        idle_rounds = outages = 0
        away_since = 0.0
        is_nested = self.store.connection.in_atomic_block  # a test's transaction
        if not is_nested:
            self.keep_leases()
            self._attend_to_duties()
        self.begin()
        try:
            while not self.progress.is_over():
                try:
                    if self.take_turn():
                        idle_rounds = 0
                    elif self.progress.bounds.until_empty:
                        break
                    else:
                        idle_rounds += 1
                        if self._wait(idle_rounds):
                            idle_rounds = 0
                    if away_since:
                        logger.warning(
                            "Database %r is back after %d s",
                            self.store.using,
                            time.monotonic() - away_since,
                        )
                        away_since = 0.0
                    outages = 0
                except Error as error:
                    if is_nested or not is_of_database(error):
                        raise
                    if DEADLOCKS.includes(error) and outages < _CALM_DEADLOCKS:
                        # Two transactions met at the same rows, and one was undone.
                        logger.debug("Yielding to other workers", exc_info=True)
                        outages += 1
                        self._sleep(0.001 * 2**outages)
                        continue
                    if not away_since:
                        away_since = time.monotonic()
                        logger.error(  # noqa: TRY400 - one line, not one per try
                            "Database %r unavailable (%s: %s); retrying until it is "
                            "back",
                            self.store.using,
                            type(error).__name__,
                            _line(described(error)),
                        )
                    self.store.connection.close()
                    self._sleep(min(5.0, 0.1 * 2 ** min(outages, 6)))
                    outages += 1
        finally:
            self.stop_keeping_leases()
            for each in self._attending:
                each.stop()
            self.end(is_nested=is_nested)
        if self.progress.stopped_by is not None:
            raise self.progress.stopped_by
        return self.tally

    def begin(self) -> None:
        """Send the signal :data:`worker_started`."""
        self._send(worker_started, channels=self.channels)

    def end(self, *, is_nested: bool = False) -> None:
        """
        Give back all reservations, and send the signal :data:`worker_stopped`.

        Args:
            is_nested: whether its database is in a transaction of the caller.

        """
        for relay in self.relays.values():
            relay.close()
        self.jobs.close()
        if not is_nested:
            self._handler.throughput.write_at_last()
            self._presence.end()
        self._send(worker_stopped, channels=self.channels, tally=self.tally)

    def claim_within(self, seconds: float) -> None:
        """
        Have a claim take no longer than a time, so that other outboxes get a share.

        The first claim is of one message, since nobody knows yet how long it takes.
        """
        if not self._claims:
            self._limit = 1
        self.claim_time = seconds

    def keep_leases(self) -> None:
        """Renew leases, and show that the worker lives, in a thread."""
        self._handler.heartbeat.start()

    def stop_keeping_leases(self) -> None:
        """End the thread of :meth:`keep_leases`."""
        self._handler.heartbeat.stop()

    def take_turn(self) -> int:
        """
        Do what :meth:`run_once` does, and make sure that nothing is left if asked to.

        Returns:
            The number of messages that were claimed or became ready; 0 means rest.

        """
        found = self.run_once()
        if not found and self.progress.bounds.until_empty:
            found = self._look_after(at_once=True)
        return found

    def run_once(self) -> int:
        """
        Handle one batch of each channel.

        Returns:
            The number of messages that were claimed or became ready; 0 means rest.

        """
        for owner in list(self._handler.unsettled):
            self._handler.give_back(owner, State.READY)
        self._attend()
        if self._looked_after is None:
            self._look_after()
        # Ready messages come first: one of them may have woken the worker.
        found = self._run_channels()
        if not self.progress.is_over():
            found += self._look_after()
        if self._seeks_abandoned:
            self._seeks_abandoned = False
            for channel in self._with_abandoned():
                if not self.progress.is_over():
                    found += self._run_abandoned(channel)
        if self._handler.throughput.is_due():
            self._handler.throughput.write()
        self._clean_up()
        return found

    def _attend(self) -> None:
        """Give a sign of life, and look for paused channels, if it is time."""
        connection = self.store.connection
        if self._presence.is_due() and not connection.in_atomic_block:
            self._presence.beat()
        now = time.monotonic()
        if self._asked is None or now - self._asked >= self.pause_time:
            self._asked = now
            self._paused = frozenset(paused_channels(self.store.using))

    def _attend_to_duties(self) -> None:
        for each in self._attending:
            each.start()
        if self.progress.bounds.until_empty:
            # They may send messages that are to be handled in this run.
            for each in self._attending:
                each.await_look()

    def _run_channels(self) -> int:
        """Handle one batch of each channel that has messages, and then its jobs."""
        found = 0
        known: set[str] | None = None
        for place, channel in enumerate(self.channels):
            if self.progress.is_over():
                break
            if channel in self._paused:
                continue
            if channel not in self._busy and known is None:
                known = self._with_ready(self.channels[place:])
            if channel in self._busy or (known is not None and channel in known):
                relay = self.relays.get(channel)
                taken = self._run_ready(channel) if relay is None else self._run(relay)
                if taken:
                    self._busy.add(channel)
                    known = None  # in the meantime others may have got some
                else:
                    self._busy.discard(channel)
                found += taken
            if not self.progress.is_over():
                done = self.jobs.run(channel)
                if done:
                    known = None
                found += done
        return found

    def _with_ready(self, channels: Sequence[str]) -> set[str]:
        """Return those of the quiet channels that may have messages to claim."""
        found: set[str] = set()
        quiet = [each for each in channels if each not in self._busy]
        own = [each for each in quiet if each not in self.relays]
        forwarded = [each for each in quiet if each in self.relays]
        for some, states in (
            (own, (State.READY,)),
            (forwarded, (State.READY, State.ABANDONED)),
        ):
            is_asked = self.store.is_cheaper_than_claims(len(some))
            found.update(self.store.channels_with(some, *states) if is_asked else some)
        return found

    def _with_abandoned(self) -> Sequence[str]:
        """Return the channels that may have abandoned messages, in order."""
        own = self._own_channels
        if len(own) == 1:
            return own
        found = self.store.channels_with(own, State.ABANDONED)
        return [channel for channel in own if channel in found]

    def _run(self, relay: Relay) -> int:
        forwarded = relay.forward(
            self._next_owner(), limit=self.progress.messages_left()
        )
        self.tally.forwarded += forwarded
        return forwarded

    def _run_ready(self, channel: str) -> int:
        left = self.progress.messages_left()
        limit = self._limit if left is None else min(self._limit, left)
        if self.outages.now:
            limit = self.outages.limit(channel, limit)
            if not limit:
                return 0
        owner = self._next_owner()
        claimed = self.store.claim(channel, limit=limit, owner=owner, lease=self._lease)
        self._handle_claim(owner, claimed)
        return len(claimed) or self.store.was_contended

    def _run_abandoned(self, channel: str) -> int:
        if channel in self._paused or self.outages.rests(channel):
            return 0
        owner = self._next_owner()
        claimed = self.store.claim_abandoned(
            channel, owner=owner, lease=self._lease, allowed=self._policies.attempts_of
        )
        self._handle_claim(owner, claimed)
        self._seeks_abandoned |= bool(claimed)
        return len(claimed)

    def handle_forwarded(self, keys: Sequence[int]) -> Tally:
        """
        Handle forwarded messages, for an engine's task.

        Messages that another worker has now are skipped. Messages without time within
        the bounds are ready again, and forwarded again.

        Args:
            keys: their ids in the outbox.

        Returns:
            The work done.

        Raises:
            OperationalError: the database is unavailable.
            InterfaceError: likewise.

        """
        # The process belongs to the engine, so a policy cannot end it.
        self._policies.can_stop = False
        is_nested = self.store.connection.in_atomic_block
        if not is_nested:
            self._handler.heartbeat.start()
        try:
            owner = self._next_owner()
            self._handle_claim(
                owner, self.store.claim_forwarded(keys, owner=owner, lease=self._lease)
            )
            while not self.progress.is_over():
                owner = self._next_owner()
                claimed = self.store.claim_forwarded_abandoned(
                    keys,
                    owner=owner,
                    lease=self._lease,
                    allowed=self._policies.attempts_of,
                )
                if not claimed:
                    break
                self._handle_claim(owner, claimed)
        except OUTAGES:
            if not is_nested:
                self.store.connection.close()
                with contextlib.suppress(*OUTAGES):  # then the leases expire
                    for owner in list(self._handler.unsettled):
                        self._handler.give_back(owner, State.READY)
            raise
        finally:
            self._handler.heartbeat.stop()
        if not is_nested:
            self._handler.throughput.write_at_last()
        self._clean_up()
        return self.tally

    def _next_owner(self) -> str:
        """Return a name for one claim that differs from every other."""
        self._claims += 1
        return f"{self.name}:{self._claims}"

    def _adapt(self, count: int, seconds: float) -> None:
        """
        Adapt the size of the next claim, so that other workers do not stay idle.

        It is handled well within its lease. After a lost lease the next claim has half
        as many messages, for twice as long.
        """
        if self._handler.has_lost_lease:
            self._limit = max(1, count // 2)
            self._lease = min(self._lease * 2, self.lease * self.longest_lease)
            return
        self._lease = max(self.lease, self._lease * 0.9)
        most = min(self.claim_time, self.lease.total_seconds() / 3)
        if seconds > most:
            self._limit = max(1, int(count * most / seconds))
        elif count == self._limit:
            self._limit = min(self.batch, self._limit * 2)

    def _look_after(self, *, at_once: bool = False) -> int:
        """Now and then, release due messages and take up those of dead workers."""
        now = time.monotonic()
        last = self._looked_after
        if not at_once and last is not None and now - last < self.poll_time:
            return 0
        self._looked_after = now
        overdue = self.store.overdue(self.channels, alone=self._own_channels)
        found = self.store.release_due(self.channels) if overdue.due else 0
        if overdue.expired:
            found += self.store.abandon_expired(self.channels)
        self._seeks_abandoned |= overdue.expired or overdue.abandoned
        found += self._replays.run(at_once=at_once)
        if self._swept is None or now - self._swept > self.sweep_time:
            self._swept = now
            found += self.store.wake_stranded(self.channels)
            self._seeks_abandoned = True
            if self._handler.keeps_journal:
                journal.purge(self.store.using, batches=PURGED)
            self._handler.tasks.purge(batches=PURGED)
        return found + sum(relay.look_after() for relay in self.relays.values())

    def _clean_up(self) -> None:
        """Remove what handlers have left: logged queries, broken connections."""
        reset_queries()
        for connection in all_connections.all(initialized_only=True):
            if connection.errors_occurred and not connection.in_atomic_block:
                # MySQL's driver cannot check a connection that was never opened.
                if connection.connection is None or not connection.is_usable():
                    connection.close()
                connection.errors_occurred = False

    def _wait(self, idle_rounds: int) -> bool:
        """
        Wait for a notification, or for a time that grows to the poll time.

        Returns:
            Whether there was one for this worker. Messages soon after it send none.

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
            or not can_listen(connection)
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
            return False  # earlier messages are claimed before the first wait
        if driver._cqrs_is_pooled:
            self._sleep(seconds)
            return False
        if idle_rounds > self.rounds_of_polling:
            seconds = max(0.001, min(self.listen_time, self.progress.seconds_left()))
        with connection.wrap_database_errors:
            notes = driver.notifies(timeout=seconds, stop_after=1)
            woken = {note.payload for note in notes}.intersection(self.channels)
        self._busy |= woken
        return bool(woken)

    def _sleep(self, seconds: float) -> None:
        self.progress.sleep(seconds)


def _line(text: str) -> str:
    return " ".join(text.split())


def names_of(registry: Registry) -> dict[str, tuple[str, ...]]:
    """
    Return all names of the renamed endpoints, by each of the names.

    A factory and an action with ordering share their order: a message for the two is
    stored under the factory's name, and a dead letter has the name of the one that ran.
    """
    found: dict[str, tuple[str, ...]] = {}
    by_name = {endpoint.name: endpoint for endpoint in registry.routes.endpoints}
    for endpoint in registry.routes.endpoints:
        names = endpoint.names
        if endpoint.policies.ordering_key is not None:
            for partner in endpoint.partners:
                names += by_name[partner].names
            if endpoint.partners:
                names = tuple(sorted(names))  # the same for each of them
        if len(names) > 1:
            found.update(dict.fromkeys(names, names))
    return found


def _is_pooled(driver: Any, cursor: Any) -> bool:
    """
    Return whether a pooler stands between a connection and its session.

    A pooler gives its clients process ids of its own. There `LISTEN` succeeds, and a
    notification reaches the client that has the session at that time.
    """
    cursor.execute("SELECT pg_backend_pid()")
    return bool(cursor.fetchone()[0] != driver.info.backend_pid)
