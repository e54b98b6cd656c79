"""The duties of other apps that a worker runs in threads beside its messages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from django.db import Error
from django.db import connections as all_connections

from django_cqrs.attendants import Duty
from django_cqrs.logged_errors import described, loggable

logger: Final = logging.getLogger("django_cqrs.worker")


class Looks:
    """
    The looks of one duty, and how many of the last ones have failed.

    Each has connections of its own, so that a long handler delays nothing, and so that
    an idle worker holds one connection.
    """

    # The pauses after failed looks, in seconds: the first, and the longest.
    first_pause = 0.5
    longest_pause = 5.0

    def __init__(self, duty: Duty) -> None:
        self._duty = duty
        self._failures = 0

    def look(self) -> float:
        """Look once; return the seconds until the next look."""
        try:
            seconds = self._duty.look()
        except Exception as error:  # noqa: BLE001 - the next look may succeed
            pause = self.first_pause * 2.0 ** min(self._failures, 10)
            self._failures += 1
            self._report(error)
            return min(self.longest_pause, pause)
        finally:
            all_connections.close_all()
        self._failures = 0
        return seconds

    def _report(self, error: Exception) -> None:
        """Log a failure: an unavailable database once, in one line."""
        name = type(self._duty).__name__
        if not isinstance(error, Error):
            logger.error("%s failed", name, exc_info=loggable(error))
        elif self._failures == 1:
            logger.warning(
                "%s could not look at the database (%s: %s); it tries again",
                name,
                type(error).__name__,
                " ".join(described(error).split()),
            )


class Attending:
    """Runs one duty in a thread, which mostly sleeps."""

    def __init__(self, duty: Duty) -> None:
        self._looks = Looks(duty)
        self._done = threading.Event()
        self._looked = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._done.clear()
        self._looked.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def await_look(self) -> None:
        """Wait until the first look is over, whatever has come of it."""
        self._looked.wait()

    def stop(self) -> None:
        self._done.set()
        if self._thread is not None:
            # One that is at work ends with the process: it commits all or nothing.
            self._thread.join(timeout=1)
            self._thread = None

    def _run(self) -> None:
        seconds = 0.0
        while not self._done.wait(seconds):
            seconds = self._looks.look()
            self._looked.set()


class _DutyInTurn:
    """A duty of one database, and when its next look is due."""

    def __init__(self, duty: Duty) -> None:
        self.looks = Looks(duty)
        self.due = 0.0
        self.is_looking = False
        self.has_looked = False


class AttendingInTurn:
    """
    Runs the duties of many databases in a few threads.

    A database that does not answer keeps one of them waiting, and the others go on.
    """

    most_threads = 4

    def __init__(self) -> None:
        self._kept: dict[str, list[_DutyInTurn]] = {}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._is_done = False

    def take_up(self, using: str, duties: Sequence[Duty]) -> None:
        """Look after the duties of a database from now on."""
        if not duties:
            return
        with self._changed:
            self._kept[using] = [_DutyInTurn(duty) for duty in duties]
            self._changed.notify_all()
        if len(self._threads) < min(self.most_threads, len(self._kept)):
            thread = threading.Thread(target=self._run, daemon=True)
            self._threads.append(thread)
            thread.start()

    def give_up(self, using: str) -> None:
        """Look no longer after the duties of a database."""
        with self._changed:
            self._kept.pop(using, None)

    def await_looks(self) -> None:
        """Wait until each duty has looked once, whatever has come of it."""
        with self._changed:
            self._changed.wait_for(lambda: all(each.has_looked for each in self._all()))

    def stop(self) -> None:
        with self._changed:
            self._is_done = True
            self._changed.notify_all()
        for thread in self._threads:
            # One that is at work ends with the process: it commits all or nothing.
            thread.join(timeout=1)

    def _all(self) -> list[_DutyInTurn]:
        return [each for some in self._kept.values() for each in some]

    def _next(self) -> _DutyInTurn | None:
        """Return the next duty that is due; None at the end."""
        with self._changed:
            while not self._is_done:
                free = [each for each in self._all() if not each.is_looking]
                first = min(free, key=lambda each: each.due, default=None)
                now = time.monotonic()
                if first is not None and first.due <= now:
                    first.is_looking = True
                    return first
                self._changed.wait(None if first is None else first.due - now)
        return None

    def _run(self) -> None:
        while (kept := self._next()) is not None:
            seconds = kept.looks.look()
            with self._changed:
                kept.is_looking, kept.has_looked = False, True
                kept.due = time.monotonic() + seconds
                self._changed.notify_all()
