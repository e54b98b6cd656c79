"""
One worker for the outboxes of many databases, each with its turn of one claim.

The worker of each database does what it would do alone, but for waiting: here the
databases are waited for together. Those that are empty are looked at ever more seldom.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from django.db import Error
from django.db import connections as all_connections

from django_cqrs.attendants import Duty
from django_cqrs.logged_errors import described, loggable
from django_cqrs.outbox.worker.attending import AttendingInTurn
from django_cqrs.outbox.worker.bounds import Bounds, Progress, Tally
from django_cqrs.outbox.worker.outages import is_lasting
from django_cqrs.outbox.worker.worker import Worker
from django_cqrs.retries import DEADLOCKS

logger: Final = logging.getLogger("django_cqrs.worker")

# The number of deadlocks in a row, over the outbox's own rows, to pass in silence.
_CALM_DEADLOCKS: Final = 5


class _Turns:
    """The turns of one database."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.using = worker.store.using
        self.due = 0.0
        """The time of the next turn."""
        self.empty_turns = 0
        """The number of turns in a row that found nothing."""
        self.emptied: float | None = None
        """The beginning of the last turn, if that found nothing."""
        self.cost = 0.0
        """The seconds that the last turn took that found nothing."""
        self.used = 0.0
        """The time at which a turn last found messages."""
        self.opened: float | None = None
        """The time since when its connection is kept open."""
        self.away_since: float | None = None
        self.failures = 0
        self.failure: Error | None = None
        """The last failure, if trying again does not help."""
        self.probe: _Probe | None = None
        self.has_begun = False


class _Probe:
    """Opens a connection to a database in a thread, which may take very long."""

    def __init__(self, using: str) -> None:
        self._using = using
        self.answer: bool | None = None
        """Whether the database can be reached; None if nobody knows yet."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        is_reached = False
        try:
            all_connections[self._using].ensure_connection()
            is_reached = True
        except Exception:
            logger.debug("Database %r is still away", self._using, exc_info=True)
        finally:
            all_connections.close_all()
            self.answer = is_reached


class DatabasesWorker:
    """
    Handles the messages of some channels in many databases.

    A database that cannot be used is tried again, and the others go on meanwhile.
    """

    # The interval in which it asks which databases there are.
    refresh_time = 5.0
    # The claims of all databases that have messages take this long together, in
    # seconds, and that of each one at least the other time.
    round_time = 0.5
    shortest_turn = 0.02
    # The times between two turns of a database without messages: the first, and the
    # longest. All these turns take at most a fifth of the time, as long as that is so.
    first_pause = 0.02
    shortest_pause = 0.05
    longest_pause = 5.0
    pause_by_cost = 4
    # The interval in which it sees whether a database that was away has answered.
    probe_time = 0.05

    def __init__(
        self,
        databases: Callable[[], Collection[str]],
        worker_of: Callable[[str, Progress], Worker],
        *,
        bounds: Bounds | None = None,
        connections: int = 20,
        duties_of: Callable[[str], Sequence[Duty]] | None = None,
        on_first_turn: Callable[[str], None] | None = None,
    ) -> None:
        """
        Prepare a worker.

        Args:
            databases: returns the aliases of the databases; it is asked again and
                again.
            worker_of: returns the worker of one database, which takes part in the
                progress of all.
            bounds: when to stop.
            connections: the maximum number of connections that are kept open.
            duties_of: returns the duties of other apps in one database.
            on_first_turn: is called with the alias before the first turn of each.

        """
        self.progress = Progress(bounds or Bounds())
        self._databases = databases
        self._worker_of = worker_of
        self._connections = connections
        self._duties_of = duties_of
        self._on_first_turn = on_first_turn
        self._attending = AttendingInTurn()
        self._turns: dict[str, _Turns] = {}
        self._asked = float("-inf")
        self._has_failed_to_ask = False
        self._found = 0.0

    @property
    def tally(self) -> Tally:
        """The work done so far, in all databases."""
        return self.progress.tally

    @property
    def failures(self) -> dict[str, Error]:
        """The failures of databases for which trying again does not help, by alias."""
        return {
            turns.using: turns.failure
            for turns in self._turns.values()
            if turns.failure is not None
        }

    def stop(self) -> None:
        """Ask to stop after the current message. Safe in a signal handler."""
        self.progress.is_stopping = True

    def paused_channels(self) -> list[str]:
        """Return the channels in an outage or paused, each with its database."""
        return [
            f"{channel} of {turns.using!r}"
            for turns in self._turns.values()
            for channel in turns.worker.paused_channels()
        ]

    def why_paused(self, channel: str) -> str:
        """Return the reason why one of :meth:`paused_channels` is paused."""
        for turns in self._turns.values():
            name = channel.removesuffix(f" of {turns.using!r}")
            if name != channel:
                return turns.worker.why_paused(name)
        raise LookupError(channel)

    def run(self) -> Tally:
        """
        Handle messages until asked to stop or a bound is reached.

        Returns:
            The work done.

        Raises:
            StopWorker: a handler's policy, or the bounds, say to stop at a failure.

        """
        self._take_up()
        try:
            if self.progress.bounds.until_empty:
                # They may send messages that are to be handled in this run.
                self._attending.await_looks()
            while not self.progress.is_over():
                if not self._go_on():
                    break
        finally:
            self._attending.stop()
            for turns in list(self._turns.values()):
                self._end(turns)
        if self.progress.stopped_by is not None:
            raise self.progress.stopped_by
        return self.tally

    def _take_up(self) -> None:
        """Ask which databases there are now."""
        self._asked = time.monotonic()
        try:
            aliases = list(self._databases())
        except Exception as error:
            if not self._turns:
                raise
            if not self._has_failed_to_ask:
                self._has_failed_to_ask = True
                logger.error(  # noqa: TRY400 - without what may be secret
                    "The databases of the tenants could not be listed; those that are "
                    "known are handled",
                    exc_info=loggable(error),
                )
            return
        self._has_failed_to_ask = False
        for alias in aliases:
            if alias not in self._turns:
                self._turns[alias] = _Turns(self._worker_of(alias, self.progress))
                if self._duties_of is not None:
                    self._attending.take_up(alias, self._duties_of(alias))
        for alias in self._turns.keys() - set(aliases):
            logger.info("Database %r is no longer that of a tenant", alias)
            self._end(self._turns.pop(alias))

    def _end(self, turns: _Turns) -> None:
        self._attending.give_up(turns.using)
        is_nested = _is_nested(turns)
        if turns.has_begun:
            turns.worker.end(is_nested=is_nested or turns.away_since is not None)
        self._close(turns)
        if not is_nested:
            turns.worker.store.connection.close()

    def _go_on(self) -> bool:
        """Take one turn, or wait for one; return whether anything is left to do."""
        if time.monotonic() >= self._asked + self.refresh_time:
            self._take_up()
        now, refresh = time.monotonic(), self._asked + self.refresh_time
        turns = min(self._turns.values(), key=lambda each: each.due, default=None)
        if turns is not None and turns.due <= now:
            self._take_turn(turns)
            return True
        if self.progress.bounds.until_empty:
            left = [each for each in self._turns.values() if not self._is_done(each)]
            if not left:
                return False
            for each in left:
                if each.away_since is None:
                    each.due = now
            if any(each.away_since is None for each in left):
                return True
        self.progress.sleep(min(refresh if turns is None else turns.due, refresh) - now)
        return True

    def _is_done(self, turns: _Turns) -> bool:
        """Return whether a database has nothing, also not from the turns of others."""
        if turns.away_since is not None:
            return turns.failure is not None
        return turns.emptied is not None and turns.emptied >= self._found

    # Turns ----------------------------------------------------------------------------

    def _take_turn(self, turns: _Turns) -> None:
        if turns.away_since is not None and not self._has_answered(turns):
            return
        began = time.monotonic()
        try:
            self._open(turns)
            turns.worker.claim_within(self._time_of_claim(turns))
            found = turns.worker.take_turn()
        except Error as error:
            self._fail(turns, error)
            return
        if turns.away_since is not None:
            logger.warning(
                "Database %r is back after %d s",
                turns.using,
                time.monotonic() - turns.away_since,
            )
        turns.away_since, turns.failures, turns.failure = None, 0, None
        now = time.monotonic()
        if found:
            turns.empty_turns, turns.emptied = 0, None
            turns.used = self._found = turns.due = now
        else:
            turns.cost, turns.emptied = now - began, began
            turns.due = now + self._pause_of(turns)
            turns.empty_turns += 1

    def _time_of_claim(self, turns: _Turns) -> float:
        busy = sum(not each.empty_turns for each in self._turns.values())
        share = self.round_time / max(1, busy)
        return max(self.shortest_turn, share) / len(turns.worker.channels)

    def _pause_of(self, turns: _Turns) -> float:
        """Return the time until the next turn of a database without messages."""
        costs = sum(each.cost for each in self._turns.values() if each.empty_turns)
        most = max(self.shortest_pause, self.pause_by_cost * costs)
        pause = self.first_pause * 2.0 ** min(turns.empty_turns, 10)
        return min(self.longest_pause, most, pause)

    # Failures -------------------------------------------------------------------------

    def _fail(self, turns: _Turns, error: Error) -> None:
        """Try again later: the failure of one database is not that of others."""
        if _is_nested(turns):
            raise error
        turns.failures += 1
        now = time.monotonic()
        if DEADLOCKS.includes(error) and turns.failures <= _CALM_DEADLOCKS:
            # Two transactions met at the same rows, and one was undone.
            logger.debug("Yielding to other workers", exc_info=error)
            turns.due = now + 0.001 * 2**turns.failures
            return
        if turns.away_since is None:
            turns.away_since = now
            logger.error(
                "Database %r cannot be used (%s: %s); the others are handled, and it "
                "is tried again",
                turns.using,
                type(error).__name__,
                " ".join(described(error).split()),
            )
        turns.failure = error if is_lasting(error) else None
        turns.empty_turns, turns.emptied, turns.probe = 1, None, None
        turns.cost = 0.0
        turns.due = now + self._pause_after(turns)
        self._close(turns)

    def _pause_after(self, turns: _Turns) -> float:
        return min(self.longest_pause, 0.1 * 2.0 ** min(turns.failures, 6))

    def _has_answered(self, turns: _Turns) -> bool:
        """
        Return whether a database that was away can be reached again.

        A connection may take minutes to fail, so it is opened in a thread first.
        """
        now = time.monotonic()
        if turns.probe is None:
            turns.probe = _Probe(turns.using)
        if turns.probe.answer is None:
            turns.due = now + self.probe_time
            return False
        if not turns.probe.answer:
            turns.probe = None
            turns.failures += 1
            turns.due = now + self._pause_after(turns)
            return False
        turns.probe = None
        return True

    # Connections ----------------------------------------------------------------------

    def _open(self, turns: _Turns) -> None:
        if turns.opened is None and not _is_nested(turns):
            self._close_some()
            turns.opened = time.monotonic()
            turns.worker.keep_leases()
        if not turns.has_begun:
            turns.has_begun = True
            if self._on_first_turn is not None:
                self._on_first_turn(turns.using)
            turns.worker.begin()

    def _close(self, turns: _Turns) -> None:
        if turns.opened is not None:
            turns.opened = None
            turns.worker.stop_keeping_leases()
            turns.worker.store.connection.close()

    def _close_some(self) -> None:
        """Make room for a connection: databases that were empty for longest lose it."""
        is_open = [each for each in self._turns.values() if each.opened is not None]
        while len(is_open) >= self._connections:
            least = min(is_open, key=lambda each: (each.used, -(each.opened or 0.0)))
            is_open.remove(least)
            self._close(least)


def _is_nested(turns: _Turns) -> bool:
    """Return whether a database is in a transaction of the caller, such as a test."""
    return turns.worker.store.connection.in_atomic_block
