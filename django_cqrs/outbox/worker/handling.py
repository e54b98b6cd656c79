"""Handle the messages that a worker has claimed, and settle them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import atomic

from django_cqrs.clock import now
from django_cqrs.logged_errors import described, storable
from django_cqrs.messages import Origin
from django_cqrs.outbox import journal
from django_cqrs.outbox.journal import LONGEST, shortened
from django_cqrs.outbox.models import JournalEntry, Outcome, Reason, State
from django_cqrs.outbox.redaction import NOT_SHOWN
from django_cqrs.outbox.store.rows import Claimed, Group
from django_cqrs.outbox.store.settlement import LeaseLost
from django_cqrs.outbox.store.store import Store
from django_cqrs.outbox.worker.batch import Batch, Habits, Turn, known_habits
from django_cqrs.outbox.worker.bounds import Progress
from django_cqrs.outbox.worker.burials import Burials, NoticeLost
from django_cqrs.outbox.worker.failures import (
    Failure,
    FailureOutcome,
    FailurePolicies,
    Poison,
    blamed,
    reason_of,
)
from django_cqrs.outbox.worker.heartbeat import Heartbeat
from django_cqrs.outbox.worker.outages import is_of_database
from django_cqrs.outbox.worker.reporting import FailureReporter, log_extra, one_line
from django_cqrs.outbox.worker.savepoints import (
    Savepoints,
    TransactionEnded,
    TransactionLost,
    forget_rollbacks,
)
from django_cqrs.outbox.worker.tasks import TaskOutcomes, is_task
from django_cqrs.outbox.worker.throughput import ThroughputRecorder
from django_cqrs.pipeline.envelopes import decode_headers
from django_cqrs.pipeline.scopes import BusScope
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.retries import DEADLOCKS
from django_cqrs.routing.endpoint import Endpoint

logger: Final = logging.getLogger("django_cqrs.worker")

# The exceptions of a handler. A cancelled task in an async one is not a request to end
# the worker.
_FAILURES = (Exception, asyncio.CancelledError)


class ClaimHandler:
    """Handles the messages of one claim, one after another, and settles them."""

    # The seconds after which a transaction is ended, so that others get the locks.
    transaction_time = 0.05
    # The maximum number of bytes of large messages in memory, unless a single message
    # has more.
    loaded_bytes = 4 * 2**20

    def __init__(
        self,
        store: Store,
        policies: FailurePolicies,
        progress: Progress,
        *,
        lease: timedelta,
    ) -> None:
        """
        Prepare to handle claims.

        Args:
            store: the store that the messages are claimed from.
            policies: the policies for messages that fail.
            progress: counts the messages, and says when to stop.
            lease: how long a message is reserved without a sign of life.

        """
        self._store = store
        self._registry = policies.registry
        self._policies = policies
        self._progress = progress
        self._reporter = FailureReporter(policies, progress)
        self._burials = Burials(store, policies, self._texts_of)
        # The handlers that were told, and ended the transaction of the burial.
        self._broken: dict[str, BaseException] = {}
        self._habits = known_habits.setdefault(policies.registry, Habits())
        self._tenancy = tenancy()
        self.unsettled: dict[str, list[int]] = {}
        """The messages of unfinished claims, by owner."""
        # Of the current claim: the number of unfinished messages of each key, and the
        # keys whose other messages are not to be handled after a failure.
        self._open: Counter[Group] = Counter()
        self._ended: set[Group] = set()
        # The messages of that claim that turned out to belong to somebody else.
        self._lost: list[Claimed] = []
        # Batches whose commit raised an error, until it is known what came of them.
        self._uncertain: dict[str, Batch] = {}
        self.heartbeat = Heartbeat(store.using, lease)
        self.throughput = ThroughputRecorder(store.using)
        self.tasks = TaskOutcomes(store.using)
        """The results of tasks among the messages."""
        # The notes on messages of the current claim, by id.
        self._notes: dict[int, journal.Note] | None = {} if journal.is_kept() else None

    @property
    def keeps_journal(self) -> bool:
        """Whether the outcomes of messages are written down."""
        return self._notes is not None

    @property
    def has_lost_lease(self) -> bool:
        """Whether any message of the last claim was lost to an expired lease."""
        return bool(self._lost)

    def handle(
        self, owner: str, claimed: Sequence[Claimed], lease: timedelta | None = None
    ) -> float:
        """
        Handle claimed messages; release at once those that there was no time for.

        Args:
            owner: the name of the claim.
            claimed: the messages.
            lease: the lease of these messages, if it differs from the default.

        Returns:
            The seconds that it took.

        """
        self._lost = []
        if not claimed:
            return 0.0
        started = time.monotonic()
        self.unsettled[owner] = keys = [each.pk for each in claimed]
        self._open = Counter(filter(None, (each.group for each in claimed)))
        self._ended = set()
        if self._notes:
            self._notes.clear()
        self.tasks.begin(owner)
        self.heartbeat.hold(owner, keys, lease)
        left = claimed
        try:
            while (
                left
                and not self._progress.is_ending()
                and self._progress.seconds_left() > 0
            ):
                if self._rests(left):
                    break
                left = self._handle_some(owner, left)
                if left and not self.heartbeat.is_kept():
                    logger.warning(
                        "A lease has expired; %d messages are left to other workers",
                        len(left),
                    )
                    self._lost += left
                    left = ()
        except BaseException as error:
            if is_of_database(error):
                raise  # unsettled messages are given back when the database is back
            # It may be what ends the worker, so each message is tried alone next.
            self.give_back(owner, State.ABANDONED)
            raise
        finally:
            self.heartbeat.let_go()
        if left:
            self.give_back(owner, State.READY)
        else:
            del self.unsettled[owner]
        if self._lost:
            self._store.recover(self._lost)
        return time.monotonic() - started

    def _rests(self, claimed: Sequence[Claimed]) -> bool:
        """Return whether messages are left until an outage ends."""
        # An engine would only forward them again: there each is set aside by itself.
        return (
            bool(self._policies.outages.now)
            and self._policies.can_stop
            and self._policies.outages.rests(claimed[0].channel)
        )

    def give_back(self, owner: str, state: State) -> None:
        self._find_out(owner)
        self._store.give_back(owner, self.unsettled[owner], state)
        del self.unsettled[owner]

    def _handle_some(self, owner: str, claimed: Sequence[Claimed]) -> Sequence[Claimed]:
        """Handle messages in one transaction; return those it had no time for."""
        claimed = self._loaded(owner, claimed)
        batch = Batch()
        try:
            self._handle_batch(owner, claimed, batch)
        except TransactionEnded as ended:
            begun = self._settle_ended(owner, claimed[: batch.taken], batch, ended)
            left = [*begun, *claimed[batch.taken :]]
        except _FAILURES as error:
            left = list(claimed[batch.taken :])
            if not self._is_committed(owner, batch, error):
                return [
                    *self._handle_anew(owner, claimed[: batch.taken], batch, error),
                    *left,
                ]
        else:
            left = list(claimed[batch.taken :])
        outside = batch.outside
        unhandled = []
        for each, what in outside:
            is_over = self._progress.is_ending() or self._rests(claimed)
            if is_over and not isinstance(what, Failure):
                unhandled.append(each)
            else:
                self._handle_outside(owner, each, what)
        return [*unhandled, *left]

    def _loaded(self, owner: str, claimed: Sequence[Claimed]) -> Sequence[Claimed]:
        """Read the next large messages that fit into memory, if the first is large."""
        if claimed[0].is_loaded:
            return claimed
        size = count = 0
        for each in claimed:
            if count and size + each.size > self.loaded_bytes:
                break
            size += each.size
            count += 1
        first = claimed[:count]
        large = [each for each in first if not each.is_loaded]
        there = {each.pk: each for each in self._store.load(owner, large)}
        found = []
        for each in first:
            if each.is_loaded or each.pk in there:
                found.append(there.get(each.pk, each))
            else:
                logger.warning(
                    "Message %s for %s is left to another worker: its lease expired",
                    each.envelope.message_id,
                    one_line(each.envelope.endpoint),
                    extra=log_extra(each),
                )
                self._lose(owner, each)
        return [*found, *claimed[count:]]

    def _handle_anew(
        self,
        owner: str,
        begun: Sequence[Claimed],
        batch: Batch,
        error: BaseException,
    ) -> list[Claimed]:
        """Handle messages of a batch that was undone; return those left over."""
        failures = batch.all_failures()
        if batch.taken == len(failures) == 1 and isinstance(error, Error):
            self._start_afresh(error)
            self._end(owner, begun[0], failures[0])
            return []
        again = self._rolled_back(owner, begun, error)
        while again and not self._progress.is_ending() and not self._rests(again):
            self._handle_alone(owner, again.pop(0))
        return again

    def _is_committed(self, owner: str, batch: Batch, error: BaseException) -> bool:
        """
        Report a batch that was committed although its commit raised an error.

        A connection that breaks at the end of a commit does not say whether the
        server had made it. The rows do: either all of them are settled or none.

        Returns:
            Whether it was committed.

        """
        if not batch.is_written or self._store.connection.in_atomic_block:
            return False
        self._uncertain[owner] = batch
        self._start_afresh(error)
        return self._find_out(owner)

    def _find_out(self, owner: str) -> bool:
        """Report a batch of a claim that was committed after all."""
        batch = self._uncertain.get(owner)
        if batch is None:
            return False
        keys = batch.settled()
        # After the end of the lease somebody else may have settled the messages.
        is_ours = bool(keys) and self.heartbeat.lasts()
        is_committed = is_ours and not self._store.held(owner, keys)
        del self._uncertain[owner]
        if is_committed:
            self._report(batch)
            with atomic(self._store.using):
                self._store.connection.run_on_commit.extend(batch.callbacks)
        return is_committed

    def _rolled_back(
        self, owner: str, begun: Sequence[Claimed], error: BaseException
    ) -> list[Claimed]:
        """Log the rollback of a batch; return the messages to be tried one by one."""
        if not begun:
            raise error  # not even one was begun
        self._start_afresh(error)
        if isinstance(error, LeaseLost):
            logger.warning("%s", error)
            ours = self._store.held(owner, self.unsettled[owner])
            for each in begun:
                if each.pk not in ours:
                    self._lose(owner, each)
            return [each for each in begun if each.pk in ours]
        logger.warning(
            "A batch of %d was rolled back by %s; its messages are handled one by one",
            len(begun),
            type(blamed(error)).__name__,
        )
        return list(begun)

    def _handle_batch(
        self,
        owner: str,
        claimed: Sequence[Claimed],
        batch: Batch,
        *,
        is_alone: bool = False,
    ) -> None:
        """
        Handle as many messages as there is time for, and commit.

        Raises:
            TransactionEnded: a handler has committed the work done so far.

        """
        connection = self._store.connection
        with atomic(self._store.using):
            callbacks = len(connection.run_on_commit)
            scope = BusScope(connection, Origin())
            savepoints: Savepoints[Turn] = Savepoints(connection)
            try:
                self._handle_each(claimed, batch, scope, savepoints, is_alone=is_alone)
                savepoints.release()
            except TransactionEnded as ended:
                turn: Turn = ended.subject
                batch.sent = scope.buffer[: turn.sent]
                batch.callbacks = connection.run_on_commit[callbacks : turn.callbacks]
                raise
            scope.is_open = False
            if scope.buffer:
                scope.write_or_keep()
            self._settle(owner, batch)
            _make_robust(connection, callbacks)
            batch.callbacks = connection.run_on_commit[callbacks:]
            batch.is_written = True
        self._report(batch)

    def _handle_each(
        self,
        claimed: Sequence[Claimed],
        batch: Batch,
        scope: BusScope,
        savepoints: Savepoints[Turn],
        *,
        is_alone: bool,
    ) -> None:
        """Call the handlers of messages until their transaction should end."""
        connection, habits = self._store.connection, self._habits
        outages, ended = self._policies.outages, self._ended
        moment = now()
        before = started = time.monotonic()
        for each in claimed:
            name = each.envelope.endpoint
            if not each.is_loaded:
                break  # it is read when the earlier ones have left the memory
            if (batch.done or batch.failures) and habits.is_slow(name):
                break  # no message that is done waits for it
            batch.taken += 1
            if each.group in batch.ended or each.group in ended:
                continue  # it is set aside, since one before it failed
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
            turn = Turn(each, len(scope.buffer), len(connection.run_on_commit))
            outcome = self._attempt(turn, scope, savepoints)
            if outcome is None:
                batch.done.append(each)
                if outages.row:
                    outages.row.pop(each.channel, None)
            elif not isinstance(outcome, Failure):
                batch.outside.append((each, outcome))
                if each.group is not None:
                    batch.later.add(each.group)
            else:
                if self._burials.are_told(outcome):
                    batch.outside.append((each, outcome))
                else:
                    batch.failures.append(outcome)
                if outcome.holds_key and each.group is not None:
                    batch.ended.add(each.group)
                if self._progress.ends_worker(outcome) or (
                    outcome.outcome is FailureOutcome.PAUSE and outcome.is_tried
                ):
                    break
            after = time.monotonic()
            habits.note_time(name, after - before)
            before = after
            if after - started > self.transaction_time or savepoints.is_full:
                break
            if self._progress.is_stopping:
                break

    def _settle_ended(
        self,
        owner: str,
        begun: Sequence[Claimed],
        batch: Batch,
        ended: TransactionEnded[Turn],
    ) -> list[Claimed]:
        """
        Settle a batch that a handler has committed early, and that handler's message.

        Returns:
            The messages that were begun after it, and must be handled again.

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
        # If it returned, its writes are saved, and another attempt would repeat them.
        failure = self._policies.failure_of(
            culprit, ended.cause, is_final=ended.returned
        )
        is_told = self._burials.are_told(failure)
        if not is_told:
            batch.failures.append(failure)
        connection = self._store.connection
        try:
            with atomic(self._store.using):
                connection.run_on_commit.extend(batch.callbacks)
                start = len(connection.run_on_commit) - len(batch.callbacks)
                scope = BusScope(connection, Origin())
                scope.buffer, scope.is_open = batch.sent, False
                if scope.buffer:
                    scope.write_or_keep()
                self._settle(owner, batch)
                _make_robust(connection, start)
                batch.callbacks = connection.run_on_commit[start:]
                batch.is_written = True
            self._report(batch)
            if is_told:
                self._end(owner, culprit, failure)
        except LeaseLost as error:
            logger.warning("%s", error)
            self._lost += batch.done
            self._lose(owner, culprit)
        except Error as error:
            if not self._is_committed(owner, batch, error):
                raise
        return [each for each in begun[place + 1 :] if each.pk not in gone]

    def _attempt(
        self, turn: Turn, scope: BusScope, savepoints: Savepoints[Turn]
    ) -> Failure | Callable[[], object] | None:
        """
        Handle one message in its savepoint.

        Returns:
            The failure, if there is one; or the call that handles the message, if that
            must not happen in this transaction.

        Raises:
            TransactionLost: a failure has undone the whole transaction.
            TransactionEnded: this message, or one before it, has committed it.

        """
        claimed = turn.claimed
        if claimed.is_poison:
            self._policies.ran.name = ""
            return self._policies.failure_of(claimed, Poison(), Reason.POISON)
        if self._policies.outages.now and self._policies.outages.sets_aside(
            claimed.channel, claimed.envelope.endpoint, claimed.pk
        ):
            return self._policies.set_aside(claimed)
        is_read = False
        note, self._policies.ran.name = self._note_of(claimed), ""
        name = claimed.envelope.endpoint
        attempt = claimed.attempts + (not claimed.is_counted)
        is_apart = self._habits.is_to_be_apart(name)
        try:
            with savepoints.around(turn, is_apart=is_apart):
                endpoint, handle = self._registry.unpack(
                    claimed.envelope,
                    scope=scope,
                    opens_transaction=False,
                    using=self._store.using,
                    note=note,
                    ran=self._policies.ran,
                    attempt=attempt,
                )
                is_read = True
                if is_task(name):
                    handle = self.tasks.around(claimed, handle)
                if self._is_of_this_transaction(endpoint, claimed):
                    # Anything a handler activates, such as a language, ends with it.
                    contextvars.copy_context().run(handle)
                    return None
            _, handle = self._registry.unpack(
                claimed.envelope,
                using=self._store.using,
                note=note,
                ran=self._policies.ran,
                attempt=attempt,
            )
            if is_task(name):
                handle = self.tasks.around(claimed, handle)
        except TransactionLost as lost:
            if lost.was_unread:
                self._habits.note_unread(name)
            raise
        except TransactionEnded:
            raise
        except _FAILURES as error:
            reason = Reason.FAILED if is_read else reason_of(error)
            return self._policies.failure_of(claimed, error, reason)
        return handle

    def _is_of_this_transaction(self, endpoint: Endpoint, claimed: Claimed) -> bool:
        """Return whether an endpoint can use the batch's transaction for a message."""
        using = self._store.using
        if not endpoint.is_atomic or endpoint.policies.using not in (None, using):
            return False
        if self._tenancy is None:
            return True
        headers = decode_headers(claimed.envelope.headers)
        return self._tenancy.alias_for(endpoint, headers) in (None, using)

    def _handle_alone(self, owner: str, claimed: Claimed) -> None:
        """Handle one message in a transaction of its own."""
        if claimed.group in self._ended:
            return
        batch = Batch()
        try:
            self._handle_batch(owner, [claimed], batch, is_alone=True)
        except TransactionEnded as ended:
            self._settle_ended(owner, [claimed], batch, ended)
        except LeaseLost as error:
            logger.warning("%s", error)
            self._lose(owner, claimed)
        except _FAILURES as error:
            if not batch.taken:
                raise
            if self._is_committed(owner, batch, error):
                self._handle_rest(owner, batch)
                return
            self._start_afresh(error)
            # If its handler failed as well, report that failure.
            failed = next(iter(batch.all_failures()), None)
            # A handler that returned, and left a state that cannot be settled, counts.
            counts = False if batch.done else None
            if failed is None:
                failed = self._policies.failure_of(
                    claimed, blamed(error), is_final=counts
                )
            self._end(owner, claimed, failed)
        else:
            self._handle_rest(owner, batch)

    def _handle_rest(self, owner: str, batch: Batch) -> None:
        """Handle the messages of a batch that are not of its transaction."""
        for each, handle in batch.outside:
            self._handle_outside(owner, each, handle)

    def _handle_outside(
        self,
        owner: str,
        claimed: Claimed,
        handle: Callable[[], object] | Failure | None,
    ) -> None:
        """Handle a message at least once, outside the batch's transaction."""
        if isinstance(handle, Failure):  # it was handled there, and failed
            self._end(owner, claimed, handle)
            return
        if handle is None:  # it was not read, since one of its key came before it
            self._handle_alone(owner, claimed)
            return
        failure = None
        self._policies.ran.name = ""
        try:
            contextvars.copy_context().run(handle)
        except _FAILURES as error:
            failure = self._policies.failure_of(claimed, error)
        self._ensure_reachable()
        self._end(owner, claimed, failure)

    def _end(self, owner: str, claimed: Claimed, failure: Failure | None) -> None:
        """Settle one message in a transaction of its own."""
        batch = Batch()
        if failure is None:
            batch.done.append(claimed)
        else:
            batch.failures.append(failure)
        self._broken = {}
        try:
            try:
                self._settle_telling(owner, batch)
            except Error as error:
                if self._store.connection.in_atomic_block:  # of a test
                    raise
                if self._is_committed(owner, batch, error):
                    return
                # The handler may have left locked tables or a setting in the session:
                # that must not keep the attempt from being counted.
                self._store.connection.close()
                self._settle_telling(owner, batch)
        except LeaseLost as error:
            if failure is None or not self._tell_late(failure, batch):
                logger.warning("%s", error)
                self._lose(owner, claimed)
                return
        finally:
            self._broken = {}
        self._report(batch)

    def _settle_telling(self, owner: str, batch: Batch) -> None:
        """
        Settle a message; tell again if a handler that was told ends the transaction.

        That handler is not called again: it gets a dead letter of its own.
        """
        while True:
            try:
                self._settle_one(owner, batch)
            except NoticeLost as lost:
                if self._store.connection.in_atomic_block:  # of a test
                    raise lost.error from None
                self._broken[lost.endpoint] = lost.error
                self._start_afresh(lost.error)
            else:
                return

    def _tell_late(self, failure: Failure, batch: Batch) -> bool:
        """
        Write the dead letter of a handler that has committed the burial by itself.

        Returns:
            Whether the dead letter of the message was committed.

        """
        letter = self._burials.letter_of(failure) if self._broken else None
        if letter is None:
            return False
        with atomic(self._store.using):
            batch.notices = self._burials.tell(failure, letter, self._broken)
        return True

    def _settle_one(self, owner: str, batch: Batch) -> None:
        batch.is_written = False
        batch.notices = []
        with atomic(self._store.using):
            self._settle(owner, batch)
            batch.is_written = True

    def _settle(self, owner: str, batch: Batch) -> None:
        """Record the outcomes of messages, in the open transaction."""
        ended = [*batch.done, *batch.expired]
        self._store.settle(owner, [each.pk for each in ended])
        for failure in batch.failures:
            batch.notices += self._settle_failure(owner, failure)
        batch.tasks = self.tasks.write(batch.done, batch.failures)
        if self._notes is not None:
            journal.write(self._store.using, list(self._entries(batch)))
        done = batch.done_of_keys()
        if done:
            # Messages behind them were set aside, and nothing of ours blocks them now.
            self._store.wake(key for key in done if self._open[key] <= done[key])

    def _note_of(self, claimed: Claimed) -> journal.Note | None:
        """Return the note for a message's handling, if a journal is kept."""
        if self._notes is None:
            return None
        note = self._notes[claimed.pk] = journal.Note(is_workers=True)
        return note

    def _entries(self, batch: Batch) -> Iterator[JournalEntry]:
        """Yield the journal entries of messages that are being settled."""
        ended: list[tuple[Claimed, Outcome, Failure | None]] = [
            *((each, Outcome.HANDLED, None) for each in batch.done),
            *((each, Outcome.EXPIRED, None) for each in batch.expired),
        ]
        for each in batch.failures:
            if not each.is_tried:
                continue
            is_dropped = each.outcome is FailureOutcome.DROP
            outcome = Outcome.DROPPED if is_dropped else Outcome.FAILED
            ended.append((each.claimed, outcome, each))
        notes = self._notes or {}
        for claimed, outcome, failure in ended:
            note = notes.get(claimed.pk) or journal.Note(is_workers=True)
            attempts, text = claimed.attempts + (not claimed.is_counted), {}
            if failure is not None:
                attempts = failure.attempts
                text = journal.failure_of_stored(
                    failure.error, claimed.envelope, failure.reason, self._registry
                )
            yield note.entry_of_stored(
                claimed.envelope, claimed.channel, outcome, attempts=attempts, **text
            )

    def _lose(self, owner: str, claimed: Claimed) -> None:
        """Note that somebody else has a message, or may have it."""
        self._lost.append(claimed)
        self._let_go_of_key(owner, claimed)

    def _let_go_of_key(self, owner: str, claimed: Claimed) -> None:
        """Leave the rest of a message's key to the message's new owner."""
        if claimed.group is not None and claimed.group not in self._ended:
            self._ended.add(claimed.group)
            self._store.give_back_key(owner, claimed.group)

    def _settle_failure(self, owner: str, failure: Failure) -> Sequence[Failure]:
        """Record an outcome; return the failures of handlers that were told of it."""
        claimed, attempts = failure.claimed, failure.attempts
        notices: Sequence[Failure] = ()
        match failure.outcome:
            case FailureOutcome.RETRY | FailureOutcome.PAUSE:
                self._store.delay(
                    owner,
                    claimed,
                    until=now() + failure.until,
                    attempts=attempts,
                    error=self._policies.said_of(failure),
                )
            case FailureOutcome.DROP:
                self._store.settle(owner, [claimed.pk])
            case FailureOutcome.STOP:
                self._store.give_back(owner, [claimed.pk], State.READY)
            case FailureOutcome.DEAD:
                notices = self._burials.bury(owner, failure, self._broken)
        if failure.holds_key and claimed.group is not None:
            self._store.park_rest(owner, claimed.group)
        return notices

    def _texts_of(self, failure: Failure) -> dict[str, str]:
        """Return an exception's text and traceback, shortened for storage."""
        error, envelope = failure.error, failure.claimed.envelope
        texts = {
            "error": described(error),
            "traceback": storable("".join(traceback.format_exception(error))),
        }
        if any(len(text) > LONGEST[name] for name, text in texts.items()):
            # Redact before shortening: half of a sensitive value could not be
            # recognised, and would not be masked.
            try:
                redact = journal.redactor_of_stored(
                    envelope, failure.reason, self._registry
                )
                texts = {name: (redact or str)(each) for name, each in texts.items()}
            except Exception:  # noqa: BLE001 - of somebody's converter
                texts = dict.fromkeys(texts, NOT_SHOWN)
        return {name: shortened(text, LONGEST[name]) for name, text in texts.items()}

    def _report(self, batch: Batch) -> None:
        """Count and log what was committed."""
        self._open.subtract(batch.done_of_keys())
        if self._notes is not None:
            journal.flush(self._store.connection)
        for failure in batch.failures:
            if failure.holds_key and failure.claimed.group is not None:
                self._ended.add(failure.claimed.group)
        tried = [each for each in batch.failures if each.is_tried]
        self._progress.tally.handled += len(batch.done)
        self._progress.tally.expired += len(batch.expired)
        self._progress.tally.failed += len(tried)
        self.throughput.count(batch.done, [each.claimed for each in tried])
        for claimed in batch.expired:
            logger.info(
                "Message %s for %s was dropped: it expired at %s",
                claimed.envelope.message_id,
                one_line(claimed.envelope.endpoint),
                claimed.envelope.expires_at,
                extra=log_extra(claimed),
            )
        if batch.done and (self._policies.outages.now or self._policies.outages.row):
            self._reporter.report_recovery(batch.done)
        for failure in (*tried, *batch.notices):
            self._reporter.report_failure(failure)
        if batch.tasks:
            self.tasks.report(batch.tasks)

    def _ensure_reachable(self) -> None:
        """
        Reconnect after a handler, or the server, has closed the connection.

        Raises:
            OperationalError: the database is unavailable.

        """
        connection = self._store.connection
        if connection.in_atomic_block:  # of a test
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
        """Reconnect, because the handler may have left anything in the session."""
        connection = self._store.connection
        if not connection.in_atomic_block and not DEADLOCKS.includes(blamed(error)):
            connection.close()
        self._ensure_reachable()


def _make_robust(connection: BaseDatabaseWrapper, start: int) -> None:
    """Keep a callback that raises after the commit from stopping the others."""
    callbacks: list[Any] = connection.run_on_commit
    callbacks[start:] = [(sids, func, True) for sids, func, _ in callbacks[start:]]
