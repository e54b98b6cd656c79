"""The messages of one transaction, and what is known of their handlers."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from django_cqrs.buses.registries import Registry
from django_cqrs.outbox.store.rows import Claimed, Group
from django_cqrs.outbox.worker.failures import Failure


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """A message whose handler is called, and what the batch had until then."""

    claimed: Claimed
    sent: int
    """How many messages its handlers had sent."""
    callbacks: int
    """How many callbacks were to run after the commit."""

    def __str__(self) -> str:
        """Return the handler's name, for errors."""
        return self.claimed.envelope.endpoint


class Habits:
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
        """Return whether a handler may take long, as one may that was never called."""
        return self._seconds.get(name, self.slow_time) >= self.slow_time

    def note_end(self, name: str) -> None:
        """Note that a handler has ended the transaction that others shared with it."""
        self._alone.add(name)

    def is_to_be_alone(self, name: str) -> bool:
        """Return whether a handler is to share its transaction with no other."""
        return name in self._alone


known_habits: weakref.WeakKeyDictionary[Registry, Habits] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(slots=True)
class Batch:
    """What happened to messages in one transaction."""

    taken: int = 0
    """How many of them were begun."""
    done: list[Claimed] = dataclasses.field(default_factory=list)
    expired: list[Claimed] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)
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
