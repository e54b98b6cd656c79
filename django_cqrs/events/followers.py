"""The job of a worker: the projections that follow the events for one channel."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.events import settling, shards
from django_cqrs.events.generations import live_generation, note_names, set_up
from django_cqrs.events.handling import (
    Handlers,
    channels_followed,
    projections_of,
)
from django_cqrs.events.runner import ProjectionRunner, ShardTurn
from django_cqrs.events.shards import ShardPlace
from django_cqrs.exceptions import CQRSError, InvalidChannel
from django_cqrs.jobs import Job
from django_cqrs.logged_errors import loggable

logger: Final = logging.getLogger("django_cqrs.projections")


def new_owner() -> str:
    """Return a name that no other worker has had."""
    return f"{socket.gethostname()[:50]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class _SettledReading:
    """The settled position of one connection, read once for several jobs in a round."""

    def __init__(self) -> None:
        self._number = 0
        self._position = 0

    def after(
        self, seen: int | None, connection: BaseDatabaseWrapper
    ) -> tuple[int, int]:
        """
        Return the number of a reading, and its position.

        Args:
            seen: the number of the last reading that the caller has used; None at
                first.
            connection: of the database with the events.

        """
        if seen is None or self._number <= seen:
            self._position = settling.settled(connection)
            self._number += 1
        return self._number, self._position


# Each thread has its own connections, and so its own readings.
_readings: WeakKeyDictionary[BaseDatabaseWrapper, _SettledReading]
_readings = WeakKeyDictionary()


class Follower:
    """Follows the events of one database for the projections of one channel."""

    look_time = 1.0
    """
    The interval, in seconds, in which shards are looked for without new events: those
    that were resumed, are to be tried again, or whose worker is gone.
    """
    set_up_pause = 30.0
    """The longest time until a projection that cannot be set up is tried again."""

    def __init__(
        self, registry: Registry, channel: str, using: str, found: Sequence[Handlers]
    ) -> None:
        """
        Prepare to follow.

        Args:
            registry: the registry with the projections.
            channel: the alias of the channel.
            using: the alias of the database with the events.
            found: the projections of the channel.

        """
        self.failure: Exception | None = None
        self.channel = channel
        self._registry = registry
        self._using = using
        self._owner = new_owner()
        self._found = {each.options.name: each for each in found}
        self._runners: dict[str, ProjectionRunner] = {}
        self._tries: dict[str, tuple[int, float]] = {}
        self._seen: int | None = None
        self._looked_bound = -1
        self._next_look = 0.0

    # A round --------------------------------------------------------------------------

    def run(self, deadline: float) -> int:
        """Handle batches until all is handled, or until a time; see Job."""
        self.failure = None
        connection = connections[self._using]
        self._set_up()
        if not self._runners:
            return 0
        bound = self._settled(connection)
        if bound <= self._looked_bound and time.monotonic() < self._next_look:
            return 0
        work = self._look(connection, bound)
        done = self._work(work, bound, deadline)
        if not work:
            self._looked_bound = bound
            self._next_look = time.monotonic() + self.look_time
        return done

    def _settled(self, connection: BaseDatabaseWrapper) -> int:
        reading = _readings.setdefault(connection, _SettledReading())
        self._seen, position = reading.after(self._seen, connection)
        return position

    def _look(
        self, connection: BaseDatabaseWrapper, bound: int
    ) -> dict[str, list[ShardPlace]]:
        """Return the shards to work on, by projection: its own first, then the last."""
        found: dict[str, list[ShardPlace]] = {}
        for each in shards.candidates(
            connection, list(self._runners), self._owner, bound
        ):
            if not self._runners[each.projection].rests(each):
                found.setdefault(each.projection, []).append(each)
        for some in found.values():
            some.sort(key=lambda each: not each.is_held)
        return found

    def _work(
        self, work: dict[str, list[ShardPlace]], bound: int, deadline: float
    ) -> int:
        """Handle a batch of each projection in turn; remove what is done."""
        done = 0
        while work:
            for name in list(work):
                runner, places = self._runners[name], work[name]
                before = runner.handled
                turn = runner.turn(places[0], bound)
                done += runner.handled - before
                if turn is ShardTurn.FAILED:
                    self.failure = runner.error
                if turn is not ShardTurn.MORE:
                    places.pop(0)
                if not places:
                    del work[name]
                if time.monotonic() >= deadline:
                    # With more to do, the worker must not rest.
                    return done or bool(work)
        return done

    # Setting up -----------------------------------------------------------------------

    def _set_up(self) -> None:
        """Set up projections that are new here, once for each worker."""
        now = time.monotonic()
        for name, handlers in self._found.items():
            if name in self._runners:
                continue
            tries, again_at = self._tries.get(name, (0, 0.0))
            if now < again_at:
                continue
            pause = min(self.set_up_pause, 1.0 * 2 ** min(tries, 10))
            self._tries[name] = tries + 1, now + pause
            self._set_up_one(name, handlers)

    def _set_up_one(self, name: str, handlers: Handlers) -> None:
        try:
            runner = ProjectionRunner(handlers, self._using, self._owner)
            generation = live_generation(name, self._using)
            if generation is None:
                if handlers.options.start == "manual":
                    return
                set_up(handlers, self._using)
            else:
                note_names(handlers, generation, self._using)
        except CQRSError as error:  # a check reports it
            self._report(name, error)
        except Exception as error:
            if connections[self._using].in_atomic_block:
                raise
            if not connections[self._using].is_usable():
                raise
            self._report(name, error)
        else:
            self._runners[name] = runner
            self._looked_bound = -1

    def _report(self, name: str, error: Exception) -> None:
        self.failure = error
        logger.error(
            "Projection %s cannot be set up; trying again",
            name,
            exc_info=loggable(error),
            extra={"cqrs_projection": name},
        )

    def close(self) -> None:
        """Give back the shards that this worker keeps."""
        if any(each.keeps_some for each in self._runners.values()):
            shards.give_back(connections[self._using], self._owner)

    def __repr__(self) -> str:
        """Return the projections."""
        return f"<Follower of {', '.join(self._found)} on {self.channel!r}>"


def wake_channels(connection: BaseDatabaseWrapper, registry: Registry) -> None:
    """Wake the workers of all projections, once the open transaction is committed."""
    for alias in channels_followed(registry):
        try:
            channel = channels[alias]
        except InvalidChannel:  # a check reports it
            continue
        channel.wake(connection)


def followers_of(registry: Any, channel: str, using: str) -> list[Job]:
    """
    Return the job of a channel, none if no projection follows events on it.

    Args:
        registry: the registry with the projections.
        channel: the alias of the channel.
        using: the alias of the database.

    """
    found = [
        each
        for each in projections_of(registry).values()
        if each.options.is_following and each.options.channel == channel
    ]
    if not found:
        return []
    return [Follower(registry, channel, using, found)]
