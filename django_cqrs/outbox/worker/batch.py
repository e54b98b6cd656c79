"""The messages of one transaction, and the known habits of their handlers."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from django_cqrs.buses.registries import Registry
from django_cqrs.outbox.store.rows import Claimed, Group
from django_cqrs.outbox.worker.failures import Failure
from django_cqrs.outbox.worker.tasks import FinishedTask


class Turn(NamedTuple):
    """A message whose handler is called, and the state of the batch before the call."""

    claimed: Claimed
    sent: int
    """The number of messages that its handlers had sent."""
    callbacks: int
    """The number of callbacks that were to run after the commit."""

    def __str__(self) -> str:
        """Return the handler's name, for errors."""
        return self.claimed.envelope.endpoint


class Habits:
    """Observations of a registry's handlers, from earlier calls."""

    # The seconds from which on a handler counts as slow for messages behind it.
    slow_time = 0.05

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._alone: set[str] = set()
        self._apart: set[str] = set()

    def note_time(self, name: str, seconds: float) -> None:
        """Note a handler's time; a long time is forgotten after some calls."""
        before = self._seconds.get(name, 0.0)
        self._seconds[name] = max(seconds, 0.8 * before)

    def is_slow(self, name: str) -> bool:
        """Return whether a handler may take long; one that was never called may."""
        return self._seconds.get(name, self.slow_time) >= self.slow_time

    def note_end(self, name: str) -> None:
        """Note that a handler ended the transaction that it shared with others."""
        self._alone.add(name)

    def is_to_be_alone(self, name: str) -> bool:
        """Return whether a handler must not share its transaction."""
        return name in self._alone

    def note_unread(self, name: str) -> None:
        """Note that the server could not read a handler's first statement."""
        self._apart.add(name)

    def is_to_be_apart(self, name: str) -> bool:
        """Return whether no savepoint must go along with a handler's statement."""
        return name in self._apart


known_habits: weakref.WeakKeyDictionary[Registry, Habits] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(slots=True)
class Batch:
    """The results of the messages of one transaction."""

    taken: int = 0
    """The number of messages that were begun."""
    done: list[Claimed] = dataclasses.field(default_factory=list)
    expired: list[Claimed] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)
    outside: list[tuple[Claimed, Callable[[], object] | Failure | None]] = (
        dataclasses.field(default_factory=list)
    )
    """
    The messages to be handled outside this transaction, each with its call.

    One that is given up, and of which handlers are told, has its failure instead.
    """
    later: set[Group] = dataclasses.field(default_factory=set)
    """Their keys: other messages of these keys come after them."""
    ended: set[Group] = dataclasses.field(default_factory=set)
    """The keys of failed messages: their other messages are not handled now."""
    sent: list[Any] = dataclasses.field(default_factory=list)
    """The messages that handlers had sent before one ended the transaction."""
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    """The callbacks that were to run after the commit at that time, or at its end."""
    tasks: list[FinishedTask] = dataclasses.field(default_factory=list)
    """The tasks that are finished, to be reported after the commit."""
    notices: list[Failure] = dataclasses.field(default_factory=list)
    """The failures of handlers that were told of a message that was given up."""
    is_written: bool = False
    """Whether the commit is the only step that is left."""

    def all_failures(self) -> list[Failure]:
        """Return the failures in it, and those that are settled after it."""
        later = [each for _, each in self.outside if isinstance(each, Failure)]
        return [*self.failures, *later]

    def settled(self) -> list[int]:
        """Return the ids of the messages that no claim holds after the commit."""
        failed = [each.claimed for each in self.failures]
        return [each.pk for each in (*self.done, *self.expired, *failed)]

    def done_of_keys(self) -> Counter[Group]:
        """Return the number of messages of each key that have left the outbox."""
        dropped = [each.claimed for each in self.failures if not each.holds_key]
        gone = (*self.done, *self.expired, *dropped)
        return Counter(each.group for each in gone if each.group is not None)
