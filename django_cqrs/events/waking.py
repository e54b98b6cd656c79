"""The PostgreSQL notification that tells who waits for events that there are some."""

from __future__ import annotations

import select
import time
import types
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.buses.registries import Registry
from django_cqrs.callbacks import OwnCallback

NOTIFICATION: Final = "django_cqrs_events"
"""The name of the notification."""

QUIET: Final = 0.02
"""
The seconds for which a process sends no other notification of a database.

Who has been woken looks again and again for longer than that.
"""

_last: dict[str, float] = {}


class _Waking(OwnCallback):
    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection

    def __call__(self) -> None:
        _notify(self._connection)


Waker = Callable[[BaseDatabaseWrapper, Registry], object]
"""Wakes others that wait for events, once the open transaction is committed."""

_wakers: list[Waker] = []


def register_waker(waker: Waker) -> None:
    """Call a function after each append as well."""
    if waker not in _wakers:
        _wakers.append(waker)


last_appended: ContextVar[Mapping[str, int]] = ContextVar(
    "django_cqrs_events", default=types.MappingProxyType({})
)
"""The position of the last event that was appended here, by the database's alias."""


def wake(
    connection: BaseDatabaseWrapper, registry: Registry, position: int | None = None
) -> None:
    """
    Tell the followers of events, once the open transaction is committed.

    Args:
        connection: of the database with the events.
        registry: the registry whose projections may follow them.
        position: that of the last event, if it is known.

    """
    if position is not None:
        last_appended.set({**last_appended.get(), connection.alias: position})
    for waker in _wakers:
        waker(connection, registry)
    if connection.vendor == "postgresql" and not _is_quiet(connection):
        # Not before: its commit would then wait for others that notify.
        connection.on_commit(_Waking(connection), robust=True)


def _is_quiet(connection: BaseDatabaseWrapper) -> bool:
    return time.monotonic() - _last.get(connection.alias, -QUIET) < QUIET


def _notify(connection: BaseDatabaseWrapper) -> None:
    if not _is_quiet(connection):
        _last[connection.alias] = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(f"NOTIFY {NOTIFICATION}")


class Listener:
    """
    A connection of its own that waits for the notification.

    Where a pooler hands out another session for each transaction, none arrives: who
    waits looks from time to time as well.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Listen to the notifications of a connection's database."""
        other = connection.copy()
        try:
            with other.cursor() as cursor:
                cursor.execute(f"LISTEN {NOTIFICATION}")
        except DatabaseError:
            other.close()
            raise
        # Without the wrapper, which only the thread that made it may close.
        self._driver: Any = other.connection
        other.connection = None

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return int(self._driver.fileno())

    def wait(self, seconds: float) -> bool:
        """Wait so many seconds at most; return whether a notification came."""
        if self.take():
            return True
        select.select([self], [], [], seconds)
        return self.take()

    def take(self) -> bool:
        """Return whether notifications have come, and forget them."""
        return bool(list(self._driver.notifies(timeout=0)))

    def close(self) -> None:
        """Close the connection."""
        self._driver.close()


def listener_for(connection: BaseDatabaseWrapper) -> Listener | None:
    """Return a listener, None if the database or the driver has no notifications."""
    driver = getattr(connection, "Database", None)
    if connection.vendor != "postgresql" or not hasattr(
        getattr(driver, "Connection", None), "notifies"
    ):
        return None
    try:
        return Listener(connection)
    except DatabaseError:  # no connection is free
        return None
