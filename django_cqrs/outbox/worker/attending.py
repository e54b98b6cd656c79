"""The duties of other apps that a worker runs in threads beside its messages."""

from __future__ import annotations

import logging
import threading
from typing import Final

from django.db import Error
from django.db import connections as all_connections

from django_cqrs.attendants import Duty
from django_cqrs.logged_errors import described, loggable

logger: Final = logging.getLogger("django_cqrs.worker")


class Attending:
    """
    Runs one duty in a thread, which mostly sleeps.

    It has a connection of its own for each look, so that a long handler delays nothing,
    and so that an idle worker holds one connection.
    """

    # The pauses after failed looks, in seconds: the first, and the longest.
    first_pause = 0.5
    longest_pause = 5.0

    def __init__(self, duty: Duty) -> None:
        self._duty = duty
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
        failures = 0
        seconds = 0.0
        while not self._done.wait(seconds):
            try:
                seconds = self._duty.look()
                failures = 0
            except Exception as error:  # noqa: BLE001 - the next look may succeed
                pause = self.first_pause * 2 ** min(failures, 10)
                seconds = min(self.longest_pause, pause)
                failures += 1
                self._report(error, failures)
            finally:
                all_connections.close_all()
                self._looked.set()

    def _report(self, error: Exception, failures: int) -> None:
        """Log a failure: an unavailable database once, in one line."""
        name = type(self._duty).__name__
        if not isinstance(error, Error):
            logger.error("%s failed", name, exc_info=loggable(error))
        elif failures == 1:
            logger.warning(
                "%s could not look at the database (%s: %s); it tries again",
                name,
                type(error).__name__,
                " ".join(described(error).split()),
            )
