"""
The difference between the clock of this machine and that of the database.

Leases follow the database's clock. Delays, the pauses between attempts, expiry and
windows follow the clocks of the machines that send and handle messages.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections

from django_cqrs.clock import now

MOST_SKEW: Final = timedelta(seconds=5)
"""The difference between two clocks from which on they should be set."""

_ROUNDS: Final = 3
_STATEMENTS: Final = {
    "postgresql": "SELECT EXTRACT(EPOCH FROM clock_timestamp())::float8",
    "mysql": "SELECT UTC_TIMESTAMP(6)",
}


def clock_skew(using: str = DEFAULT_DB_ALIAS) -> timedelta:
    """
    Return the time by which this machine's clock is ahead of the database's.

    The round trip is not mistaken for skew: the result is the smallest possible
    difference.

    Args:
        using: the alias of the database.

    Returns:
        A negative time if this machine is behind; zero on SQLite, which uses this
        machine's clock.

    """
    connection = connections[using]
    statement = _STATEMENTS.get(connection.vendor)
    if statement is None:
        return timedelta()
    best: tuple[float, float] | None = None
    for _ in range(_ROUNDS):
        started = time.monotonic()
        here = now()
        with connection.cursor() as cursor:
            cursor.execute(statement)
            (there,) = cursor.fetchone()
        took = time.monotonic() - started
        # The database read its clock at some moment in between.
        ahead = here.timestamp() - _seconds(there) + took / 2
        if best is None or took < best[0]:
            best = took, ahead
        if abs(ahead) <= MOST_SKEW.total_seconds():
            break
    took, ahead = best or (0.0, 0.0)
    least = max(0.0, abs(ahead) - took / 2)
    return timedelta(seconds=least if ahead > 0 else -least)


def skew_in_words(skew: timedelta) -> str | None:
    """Return a sentence if the clocks differ by more than :data:`MOST_SKEW`."""
    if abs(skew) <= MOST_SKEW:
        return None
    where = "ahead of" if skew > timedelta() else "behind"
    seconds = abs(skew).total_seconds()
    return (
        f"The clock of this machine is {seconds:.0f} s {where} the database's, so that "
        f"delays and expiry end at the wrong time."
    )


def _seconds(moment: Any) -> float:
    if isinstance(moment, datetime):
        return moment.replace(tzinfo=UTC).timestamp()
    return float(moment)
