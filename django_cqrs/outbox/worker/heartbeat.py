"""The heartbeat: renews the leases of messages that are being handled."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import Final

from django.db import Error
from django.db import connections as all_connections

from django_cqrs.outbox.store.store import Store
from django_cqrs.outbox.worker.presence import Presence

logger: Final = logging.getLogger("django_cqrs.worker")


class Heartbeat:
    """
    Renews the leases of messages in handling: one thread, which mostly sleeps.

    It uses a connection of its own, and only if the handling takes long.
    """

    def __init__(self, using: str, lease: timedelta) -> None:
        self._using = using
        self._lease = lease
        self._held: tuple[str, list[int]] | None = None
        self._renewed = 0.0
        self._ends = 0.0
        self._is_lost = False
        # Of two renewals at once, one would see the other's locked rows as missing.
        self._renewing = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.presence: Presence | None = None
        """The signs of life of the worker, which it may be too busy to give."""

    def start(self) -> None:
        self._done.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=1)
            self._thread = None

    def hold(self, owner: str, keys: list[int], lease: timedelta | None = None) -> None:
        self._is_lost = False
        if lease is not None:
            self._lease = lease
        self._renewed = time.monotonic()
        self._ends = self._renewed + self._lease.total_seconds()
        self._held = owner, keys

    def let_go(self) -> None:
        self._held = None

    def is_kept(self) -> bool:
        """Renew if it is time; return whether anything is still held."""
        if not self._is_lost and self._is_time():
            self._renew()
        return not self._is_lost

    def lasts(self) -> bool:
        """Return whether the lease of the last claim is certain to be running."""
        return time.monotonic() < self._ends

    @property
    def _interval(self) -> float:
        return self._lease.total_seconds() / 3

    def _is_time(self) -> bool:
        return time.monotonic() - self._renewed >= self._interval

    def _renew(self) -> None:
        with self._renewing:
            held = self._held
            if held is None or not self._is_time():  # the other thread has renewed it
                return
            count = Store(self._using).renew(*held, self._lease)
            if self._held is held:
                self._renewed = time.monotonic()
                self._is_lost = not count
                if count:
                    self._ends = self._renewed + self._lease.total_seconds()

    def _must_beat(self) -> bool:
        return self.presence is not None and self.presence.is_overdue()

    def beat(self) -> None:
        """Renew the leases, and give the worker's sign of life, if it is time."""
        self._renew()
        if self.presence is not None and self.presence.is_overdue():
            self.presence.beat()

    def _run(self) -> None:
        while not self._done.wait(min(self._interval / 2, Presence.beat_time / 2)):
            if not self._is_time() and not self._must_beat():
                continue
            try:
                self.beat()
            except Error as error:
                logger.warning(
                    "A lease could not be renewed (%s)", type(error).__name__
                )
            finally:
                all_connections[self._using].close()
