"""Write dead letters, and tell the project's handlers, in one transaction."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from django.db.transaction import atomic

from django_cqrs.buses.giving_up import Farewell, GaveUp, Notice, are_told, gave_up
from django_cqrs.exceptions import CQRSError
from django_cqrs.logged_errors import loggable
from django_cqrs.messages import Message
from django_cqrs.outbox import journal
from django_cqrs.outbox.journal import path_of_error
from django_cqrs.outbox.models import MOST_ATTEMPTS, DeadLetter, Reason
from django_cqrs.outbox.store.insertion import insert
from django_cqrs.outbox.store.rows import Claimed
from django_cqrs.outbox.store.store import Store
from django_cqrs.outbox.worker.failures import Failure, FailureOutcome, FailurePolicies
from django_cqrs.pipeline.notices import envelope_for
from django_cqrs.pipeline.stages import in_transaction, is_broken
from django_cqrs.routing.endpoint import Run

logger: Final = logging.getLogger("django_cqrs.worker")

_FAILURES = (Exception, asyncio.CancelledError)


class NoticeLost(Exception):
    """A handler that was told has ended the transaction of the dead letter."""

    def __init__(self, endpoint: str, error: BaseException) -> None:
        """Take the name of its endpoint, and its exception."""
        super().__init__(endpoint)
        self.endpoint = endpoint
        self.error = error


class Burials:
    """Writes dead letters, and tells handlers of the messages."""

    def __init__(
        self,
        store: Store,
        policies: FailurePolicies,
        texts_of: Callable[[Failure], dict[str, str]],
    ) -> None:
        """
        Prepare to write dead letters.

        Args:
            store: the store of the messages.
            policies: the policies for messages that fail.
            texts_of: returns the texts about the exception of a failure.

        """
        self._store = store
        self._policies = policies
        self._texts_of = texts_of

    def are_told(self, failure: Failure) -> bool:
        """Return whether handlers are told of a failure."""
        if failure.outcome is not FailureOutcome.DEAD:
            return False
        return are_told(self._policies.registry, failure.claimed.envelope)

    def bury(
        self, owner: str, failure: Failure, broken: Mapping[str, BaseException]
    ) -> list[Failure]:
        """
        Move a message to the dead letters, and tell handlers, in the open transaction.

        Args:
            owner: the owner of the message.
            failure: its failure.
            broken: the handlers that have ended this transaction earlier, by name, with
                their exceptions: they are not called again.

        Returns:
            The failures of handlers that were told; each has a dead letter of its own.

        Raises:
            LeaseLost: somebody else has the message now; roll back.
            NoticeLost: a handler has ended the transaction; roll back.

        """
        letter = self._store.bury(
            owner,
            failure.claimed,
            endpoint=failure.endpoint,
            reason=failure.reason,
            attempts=failure.attempts,
            exception=path_of_error(failure.error),
            **self._texts_of(failure),
        )
        return self.tell(failure, letter, broken)

    def tell(
        self, failure: Failure, letter: DeadLetter, broken: Mapping[str, BaseException]
    ) -> list[Failure]:
        """Tell handlers of a message, as :meth:`bury` does."""
        if not self.are_told(failure):
            return []
        registry, claimed = self._policies.registry, failure.claimed
        texts = journal.failure_of_stored(
            failure.error, claimed.envelope, failure.reason, registry
        )
        facts = Farewell(
            claimed.envelope,
            claimed.channel,
            texts["exception"],
            texts["error"],
            failure.attempts,
            str(failure.reason),
            letter.pk,
        )
        try:
            told = gave_up(registry, facts, self._store.using)
        except Exception as error:
            logger.error(  # noqa: TRY400 - with a traceback that every log accepts
                "Nobody was told that message %s is now a dead letter",
                claimed.envelope.message_id,
                exc_info=loggable(error),
            )
            return []
        found = [
            self._tell_one(each, told, failure, broken.get(each.endpoint.name))
            for each in told.notices
        ]
        return [each for each in found if each is not None]

    def _tell_one(
        self,
        notice: Notice,
        told: GaveUp,
        failure: Failure,
        error: BaseException | None,
    ) -> Failure | None:
        """Tell one handler; return its failure, for which a letter is written."""
        message = told.message.replace()
        if error is None:
            run = notice.run
            if failure.reason is Reason.POISON and notice.endpoint.channel is None:
                # Called here, one that kills its worker as well would never end.
                run = partial(self._store_notice, notice, failure.claimed.channel)
            error = self._call(notice.endpoint.name, run, message)
        if error is None:
            return None
        try:
            return self._bury_notice(
                notice, told.message, failure.claimed.channel, error
            )
        except CQRSError as fault:
            logger.error(  # noqa: TRY400 - with a traceback that every log accepts
                "%s failed when it was told of message %s, and has no dead letter: %s",
                notice.endpoint.name,
                failure.claimed.envelope.message_id,
                fault,
                exc_info=loggable(error),
            )
            return None

    def _store_notice(self, notice: Notice, channel: str, message: Message) -> None:
        """Have a handler that is called at once told from a channel."""
        types = self._policies.registry.routes.types
        envelope = envelope_for(notice.endpoint, types, message)
        insert(self._store.connection, channel, [envelope])

    def _call(self, name: str, run: Run, message: Message) -> BaseException | None:
        """
        Call a handler, or send to its channel, in a savepoint; return its exception.

        Raises:
            NoticeLost: it has ended the transaction.

        """
        connection = self._store.connection
        run = in_transaction(run, self._store.using, name)
        try:
            contextvars.copy_context().run(run, message)
        except _FAILURES as error:
            driver: Any = connection
            if is_broken(connection) or driver.closed_in_transaction:
                raise NoticeLost(name, error) from error
            return error
        return None

    def _bury_notice(
        self, notice: Notice, message: Message, channel: str, error: BaseException
    ) -> Failure:
        """Write the dead letter of a handler that was told in vain."""
        endpoint = notice.endpoint
        types = self._policies.registry.routes.types
        envelope = envelope_for(endpoint, types, message)
        claimed = Claimed(0, envelope, 0, endpoint.channel or channel, None)
        retry = self._policies.retry_of(endpoint.name)
        dead = FailureOutcome.DEAD
        failure = Failure(
            claimed, error, Reason.FAILED, retry, 1, dead, endpoint=endpoint.name
        )
        with atomic(self._store.using):
            self._store.write_letter(
                claimed,
                reason=Reason.FAILED,
                attempts=min(failure.attempts, MOST_ATTEMPTS),
                exception=path_of_error(error),
                **self._texts_of(failure),
            )
        return failure

    def letter_of(self, failure: Failure) -> DeadLetter | None:
        """Return the newest dead letter of a message, if there is one."""
        return (
            DeadLetter.objects.using(self._store.using)
            .filter(
                message_id=failure.claimed.envelope.message_id,
                endpoint=failure.endpoint or failure.claimed.envelope.endpoint,
            )
            .order_by("-pk")
            .first()
        )
