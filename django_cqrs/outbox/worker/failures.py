"""The outcomes of messages that failed."""

from __future__ import annotations

import dataclasses
import enum
from datetime import timedelta
from typing import Final

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError

from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import (
    CQRSError,
    MessageConversionError,
    MissingTenant,
    TenantSwitch,
    UnknownEndpoint,
    UnknownMessage,
    UnknownTenant,
)
from django_cqrs.messages import Ran
from django_cqrs.outbox import journal
from django_cqrs.outbox.models import Reason
from django_cqrs.outbox.store.rows import Claimed
from django_cqrs.outbox.worker.outages import Outages
from django_cqrs.outbox.worker.savepoints import TransactionLost
from django_cqrs.retries import DEFAULT_RETRY, Retry

# The database is unavailable, or has closed the connection.
OUTAGES = (OperationalError, InterfaceError)


class FailureOutcome(enum.Enum):
    """The outcome of a message that failed; the value is its text in the log."""

    RETRY = "it is retried %s"
    PAUSE = "it waits until the outage is over"
    DEAD = "it is now a dead letter"
    DROP = "it is dropped, as its policy requires"
    STOP = "it waits, and the worker stops, as its policy requires"


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A message whose handling failed, and the outcome by its endpoint's policy."""

    claimed: Claimed
    error: BaseException
    reason: Reason
    retry: Retry
    attempts: int
    """The number of attempts, including this one."""
    outcome: FailureOutcome
    until: timedelta = timedelta()
    """The delay of the next attempt, if there is one."""
    is_tried: bool = True
    """Whether a handler was called, without an outage being to blame."""
    endpoint: str = ""
    """The name of the handler that ran, or that it was sent to."""

    @property
    def holds_key(self) -> bool:
        """Whether other messages of its key wait for it."""
        return self.outcome is not FailureOutcome.DROP


class FailurePolicies:
    """The policies of a registry's endpoints for messages that fail."""

    def __init__(self, registry: Registry, outages: Outages) -> None:
        """Use the policies of a registry, unless an outage is to blame."""
        self.registry = registry
        self.outages = outages
        self.ran = Ran()
        self.can_stop = True
        """Whether a policy may end the worker."""

    def attempts_of(self, name: str) -> int:
        return self.retry_of(name).attempts

    def retry_of(self, name: str) -> Retry:
        """Return the retry policy of an endpoint, by its name."""
        try:
            endpoint = self.registry.routes.endpoint_named(name)
            retry = endpoint.retry
        except (CQRSError, ImproperlyConfigured):  # no endpoint, or no policy
            return DEFAULT_RETRY
        return retry or DEFAULT_RETRY

    def failure_of(
        self,
        claimed: Claimed,
        error: BaseException,
        reason: Reason = Reason.FAILED,
        *,
        is_final: bool | None = None,
    ) -> Failure:
        retry = self.retry_of(claimed.envelope.endpoint)
        attempts = claimed.attempts + (not claimed.is_counted)
        if reason is Reason.POISON:
            attempts = claimed.attempts  # this time it was not even tried
        hit = None
        # A handler that ended its transaction counts: it may have saved something.
        if reason is Reason.FAILED and is_final is None:
            hit = self.outages.hits(
                claimed.channel, claimed.envelope.endpoint, claimed.pk, error
            )
        if hit is not None:
            failure = self._paused(claimed, error, retry)
            hit.said = hit.said or self.said_of(failure)
            return failure
        verdict = "dead" if reason is not Reason.FAILED else retry.judge(error)
        if verdict == "retry" and (
            getattr(error, _IS_FINAL, False) or isinstance(error, _OF_TENANTS)
        ):
            verdict = "final"
        if verdict == "dead":
            outcome = FailureOutcome.DEAD
        elif verdict == "drop":
            outcome = FailureOutcome.DROP
        elif verdict == "retry" and attempts < retry.attempts and not is_final:
            outcome = FailureOutcome.RETRY
        else:
            outcome = FINAL_OUTCOMES[retry.final_failure]
            if outcome is FailureOutcome.STOP and not self.can_stop:
                outcome = FailureOutcome.RETRY
        until = retry.delay_after(attempts)
        ran = self.ran.name or claimed.envelope.endpoint
        return Failure(
            claimed, error, reason, retry, attempts, outcome, until, endpoint=ran
        )

    def _paused(
        self, claimed: Claimed, error: BaseException, retry: Retry, **more: bool
    ) -> Failure:
        """Return the failure of a message that an outage hit."""
        # The attempt is not counted, even if the claim has counted it.
        attempts = claimed.attempts - claimed.is_counted
        until = timedelta(seconds=max(0.0, self.outages.seconds_left(claimed.channel)))
        pause = FailureOutcome.PAUSE
        return Failure(
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

    def set_aside(self, claimed: Claimed) -> Failure:
        """Return the failure of a message that is not tried during an outage."""
        retry = self.retry_of(claimed.envelope.endpoint)
        return self._paused(claimed, Exception(), retry, is_tried=False)

    def said_of(self, failure: Failure) -> str:
        """Return one line about an exception, without sensitive data of its message."""
        if not failure.is_tried:
            outage = self.outages.now.get(failure.claimed.channel)
            return "" if outage is None else outage.said
        envelope = failure.claimed.envelope
        said = journal.failure_of_stored(
            failure.error, envelope, failure.reason, self.registry
        )
        name = said["exception"].rpartition(".")[2]
        return f"{name}: {said['error']}" if said["error"] else name


_IS_FINAL: Final = "_cqrs_is_final"

# No other attempt gives a message another tenant.
_OF_TENANTS: Final = (MissingTenant, UnknownTenant, TenantSwitch)


def as_final(error: Exception) -> Exception:
    """Return an exception after which no other attempt is worth its time."""
    setattr(error, _IS_FINAL, True)
    return error


FINAL_OUTCOMES = {
    "dead_letter": FailureOutcome.DEAD,
    "drop": FailureOutcome.DROP,
    "stop": FailureOutcome.STOP,
}


class Poison(Exception):
    """Every worker that tried to handle this message died of it."""

    def __str__(self) -> str:
        return "Every worker that tried to handle this message crashed."


def blamed(error: BaseException) -> BaseException:
    """Return the handler's exception, also where the handler ended the transaction."""
    if isinstance(error, TransactionLost) and error.__cause__ is not None:
        return error.__cause__
    return error


def reason_of(error: BaseException) -> Reason:
    """Return the reason why an unreadable message is a dead letter."""
    if isinstance(error, UnknownEndpoint):
        return Reason.UNKNOWN_ENDPOINT
    if isinstance(error, UnknownMessage):
        return Reason.UNKNOWN_MESSAGE
    if isinstance(error, MessageConversionError):
        return Reason.UNDECODABLE
    return Reason.FAILED
