"""Log failures and outages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from django_cqrs.logged_errors import loggable, masked
from django_cqrs.outbox import journal
from django_cqrs.outbox.store.rows import Claimed
from django_cqrs.outbox.worker.bounds import Progress, StopWorker
from django_cqrs.outbox.worker.failures import Failure, FailureOutcome, FailurePolicies

logger: Final = logging.getLogger("django_cqrs.worker")


class FailureReporter:
    """Logs the failures that have been settled, and the outages behind them."""

    def __init__(self, policies: FailurePolicies, progress: Progress) -> None:
        """Log failures as the policies describe them, and add them to the progress."""
        self._policies = policies
        self._progress = progress

    def report_failure(self, failure: Failure) -> None:
        claimed, error = failure.claimed, failure.error
        is_dead = failure.outcome is FailureOutcome.DEAD
        self._progress.tally.dead += is_dead
        if failure.outcome is FailureOutcome.PAUSE:
            self._report_outage(failure)
        else:
            said = self._policies.said_of(failure)
            name, _, text = said.partition(": ")
            what = failure.outcome.value + f" ({failure.reason.value})" * is_dead
            if failure.outcome is FailureOutcome.RETRY:
                what = what % _span(failure.until)
            # The handler and the exception are in the template, by which error trackers
            # tell issues apart.
            endpoint = one_line(failure.endpoint).replace("%", "%%")
            is_given_up = failure.outcome is not FailureOutcome.RETRY
            logger.log(
                logging.ERROR if is_given_up else logging.WARNING,
                f"Message %s for {endpoint} failed at attempt %d with {name}%s; %s",  # noqa: G004
                claimed.envelope.message_id,
                failure.attempts,
                f": {text}" if text else "",
                what,
                extra=log_extra(claimed),
                exc_info=self._trace_of(failure) if is_given_up else None,
            )
        if self._progress.stopped_by is None and self._progress.ends_worker(failure):
            self._progress.stopped_by = StopWorker(
                f"{one_line(failure.endpoint)} failed with {type(error).__name__}."
            )
            self._progress.stopped_by.__cause__ = error

    def _trace_of(self, failure: Failure) -> BaseException:
        """Return the exception for the log, without sensitive data."""
        redact = journal.redactor_of_stored(
            failure.claimed.envelope, failure.reason, self._policies.registry
        )
        error = failure.error if redact is None else masked(failure.error, redact)
        return loggable(error)

    def _report_outage(self, failure: Failure) -> None:
        """Log the start of an outage, once."""
        outage = self._policies.outages.now.get(failure.claimed.channel)
        if outage is None or outage.is_reported:
            return
        outage.is_reported = True
        logger.error(
            "Channel %r pauses: %s failed with %s. Other messages would fail in the "
            "same way, so their attempts are not counted; one is retried %s, then "
            "less and less often",
            outage.channel,
            one_line(failure.endpoint),
            outage.said,
            _span(timedelta(seconds=outage.pause)),
            extra=log_extra(failure.claimed),
        )

    def report_recovery(self, done: Sequence[Claimed]) -> None:
        """Log the end of an outage, once."""
        channel = done[0].channel  # a claim has one channel
        endpoints = {each.envelope.endpoint for each in done}
        outage = self._policies.outages.works(channel, endpoints)
        if outage is not None and outage.is_reported:
            logger.warning(
                "Channel %r resumes: %s works again after %d s",
                channel,
                one_line(min(endpoints & outage.endpoints)),
                self._policies.outages.clock() - outage.since,
            )


def _span(span: timedelta) -> str:
    """Return a time span in words."""
    seconds = span.total_seconds()
    if seconds <= 0:
        return "at once"
    if seconds < 10:  # noqa: PLR2004 - seconds
        return f"in {seconds:.1f} s"
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"in {seconds:.0f} s"
    return f"in {seconds / 60:.0f} min"


def one_line(text: str) -> str:
    """Return a row's text in one line, so that it cannot forge a line of the log."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def log_extra(claimed: Claimed) -> dict[str, str]:
    """Return the fields of a log record about a message."""
    return {
        "cqrs_channel": claimed.channel,
        "cqrs_message_id": str(claimed.envelope.message_id),
        "cqrs_correlation_id": str(claimed.envelope.correlation_id),
        "cqrs_endpoint": claimed.envelope.endpoint,
    }
