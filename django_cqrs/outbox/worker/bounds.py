"""The bounds at which a worker stops by itself, and the count of its work."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.worker.failures import Failure, FailureOutcome

resource: Any
try:
    import resource
except ImportError:  # Windows has no such module
    resource = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds at which a worker stops by itself; None means never."""

    messages: int | None = None
    seconds: float | None = None
    megabytes: int | None = None
    until_empty: bool = False
    on_failure: bool = False

    def __post_init__(self) -> None:
        """
        Refuse a bound that could never be reached.

        Raises:
            InvalidOption: memory use cannot be measured on this platform.

        """
        if self.megabytes is not None and resource is None:
            msg = (
                "A worker cannot be limited by memory here: this platform "
                f"({sys.platform}) does not report how much a process has used. Limit "
                "it by messages or by seconds."
            )
            raise InvalidOption(msg)


@dataclasses.dataclass(slots=True)
class Tally:
    """The work that a worker has done."""

    handled: int = 0
    failed: int = 0
    dead: int = 0
    expired: int = 0
    forwarded: int = 0

    @property
    def taken(self) -> int:
        """The number of messages that it has tried, dropped or forwarded."""
        return self.handled + self.failed + self.expired + self.forwarded


class StopWorker(Exception):
    """A handler failed, and its policy or the worker's bounds say to stop."""


class Progress:
    """The progress of a worker, and the bounds at which it stops."""

    def __init__(self, bounds: Bounds) -> None:
        """Start counting and measuring the time."""
        self.bounds = bounds
        self.tally = Tally()
        # Not an Event: a signal handler may interrupt the holder of an Event's lock.
        self.is_stopping = False
        """Whether it was asked to stop."""
        self.stopped_by: StopWorker | None = None
        """The failure that stops it, by a policy or by the bounds."""
        self._started = time.monotonic()

    def messages_left(self) -> int | None:
        if self.bounds.messages is None:
            return None
        return self.bounds.messages - self.tally.taken

    def ends_worker(self, failure: Failure) -> bool:
        is_tried = failure.is_tried
        return (
            self.bounds.on_failure and is_tried
        ) or failure.outcome is FailureOutcome.STOP

    def is_ending(self) -> bool:
        return self.is_stopping or self.stopped_by is not None

    def is_over(self) -> bool:
        bounds = self.bounds
        return (
            self.is_ending()
            or (bounds.messages is not None and self.tally.taken >= bounds.messages)
            or (bounds.seconds is not None and self.seconds_left() <= 0)
            or (bounds.megabytes is not None and megabytes_used() >= bounds.megabytes)
        )

    def seconds_left(self) -> float:
        if self.bounds.seconds is None:
            return float("inf")
        return self.bounds.seconds - (time.monotonic() - self._started)

    def sleep(self, seconds: float) -> None:
        """Sleep, but not much longer than until asked to stop."""
        end = time.monotonic() + min(seconds, max(0.0, self.seconds_left()))
        while not self.is_stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))


def megabytes_used() -> int:
    """Return the peak memory of this process in MiB; 0 if it is unknown."""
    if resource is None:
        return 0
    used: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used // (1024 * 1024 if sys.platform == "darwin" else 1024)
