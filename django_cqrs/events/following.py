"""Follow events: yield each as soon as it is settled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.reading import PAGE, Page, Scan
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.settling import head, settled
from django_cqrs.events.waking import QUIET, Listener, listener_for
from django_cqrs.sync import in_thread

SOON: Final = 0.02
"""The seconds until the next look, where an event is known to come."""

POLL: Final = 0.1
"""The seconds until the next look, where nothing tells of an event."""

PATIENCE: Final = 1.0
"""The seconds until the next look, where a notification tells of an event."""


class Lookout:
    """Looks for new events of a scan, and says when to look again."""

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        scan: Scan,
        after: int,
        timeout: float | None,
    ) -> None:
        """
        Begin behind a position.

        Args:
            connection: of the database with the events.
            scan: which events.
            after: the position.
            timeout: the seconds after which it ends, None for no end.

        """
        self._connection = connection
        self._scan = scan
        self._position = after
        self._end = None if timeout is None else time.monotonic() + timeout
        self._alert_until = 0.0
        self._last_bound: int | None = None
        self._is_behind = False
        self._knows_of_more = False

    def look(self) -> Page:
        """Return the next page, which may be empty."""
        bound = self._last_bound
        if bound is None:
            bound = settled(self._connection)
            if self._is_over():
                self._last_bound = bound
        page = self._scan.page(self._position, bound, PAGE)
        self._position = page.position
        self._is_behind = page.position < bound
        self._knows_of_more = not self._is_behind and bound < head(self._connection)
        if page.recorded:
            self.is_woken()
        return page

    def pause(self, *, is_told: bool) -> float | None:
        """
        Return the seconds until the next look; None if it was the last one.

        Args:
            is_told: whether a notification ends the pause.

        """
        if self._is_behind:  # also after its end, up to what was settled then
            return 0
        now = time.monotonic()
        if self._is_over():
            return None
        if self._knows_of_more or now < self._alert_until:
            seconds = SOON
        else:
            seconds = PATIENCE if is_told else POLL
        return seconds if self._end is None else min(seconds, self._end - now)

    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def is_woken(self) -> None:
        """Look often for a while, since one notification may stand for several."""
        self._alert_until = time.monotonic() + 2 * QUIET


class Ear:
    """A listener, or none, that can be closed while it is being opened."""

    def __init__(self) -> None:
        """Start without a listener."""
        self.listener: Listener | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def open(self, connection: BaseDatabaseWrapper) -> None:
        """Listen to the notifications of a database, if there are any."""
        listener = listener_for(connection)
        with self._lock:
            if not self._is_closed:
                self.listener = listener
            elif listener is not None:
                listener.close()

    def close(self) -> None:
        """Close the listener, now or when it is open."""
        with self._lock:
            self._is_closed = True
            if self.listener is not None:
                self.listener.close()


def follow(make: Callable[[], Lookout], using: str) -> Iterator[Recorded]:
    """
    Yield the events that a lookout finds, until its end.

    Args:
        make: returns the lookout.
        using: the alias of the database.

    """
    lookout, ear = make(), Ear()
    try:
        ear.open(connections[using])
        while True:
            yield from lookout.look().recorded
            pause = lookout.pause(is_told=ear.listener is not None)
            if pause is None:
                return
            if ear.listener is None:
                time.sleep(pause)
            elif pause and ear.listener.wait(pause):
                lookout.is_woken()
    finally:
        ear.close()


async def afollow(
    make: Callable[[], Lookout], using: str
) -> AsyncGenerator[Recorded, None]:
    """Do the same as :func:`follow` in an event loop, with the database's thread."""
    ear = Ear()

    def begin() -> Lookout:
        ear.open(connections[using])
        return make()

    try:
        lookout = await in_thread(begin)()
        look = in_thread(lookout.look)
        while True:
            for each in (await look()).recorded:
                yield each
            pause = lookout.pause(is_told=ear.listener is not None)
            if pause is None:
                return
            if ear.listener is None:
                await asyncio.sleep(pause)
            elif pause and await _is_told(ear.listener, pause):
                lookout.is_woken()
    finally:
        ear.close()


async def _is_told(listener: Listener, seconds: float) -> bool:
    """Wait so many seconds at most; return whether a notification came."""
    if listener.take():
        return True
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(listener, readable.set)
    except NotImplementedError:  # the loop of Windows
        await asyncio.sleep(min(seconds, POLL))
        return listener.take()
    try:
        await asyncio.wait_for(readable.wait(), seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(listener)
    return listener.take()
