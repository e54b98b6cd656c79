"""When a worker stops by itself, and what it has done until then."""

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
                "A worker cannot be limited by memory here: this platform "
                f"({sys.platform}) does not report how much a process has used. Limit "
                "it by messages or by seconds."
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


class Progress:
    """How far a worker has come, and the bounds that it stops at."""

    def __init__(self, bounds: Bounds) -> None:
        """Begin to count, and to measure the time."""
        self.bounds = bounds
        self.tally = Tally()
        # No Event: a signal handler may interrupt what holds an Event's lock.
        self.is_stopping = False
        """Whether somebody asked it to stop."""
        self.stopped_by: StopWorker | None = None
        """The failure that stops it, as a policy or the bounds say."""
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


def megabytes_used() -> int:
    """Return the most memory this process has used, in MiB; 0 where nobody can say."""
    if resource is None:
        return 0
    used: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used // (1024 * 1024 if sys.platform == "darwin" else 1024)
