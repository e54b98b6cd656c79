"""
The end of a lease, by the clock of the database.

The machine that writes it and the one that reads it may have different clocks.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.times import TimeFromNow, from_now


def lease_end(connection: BaseDatabaseWrapper) -> str:
    """Return the SQL expression for the end of a lease, with one parameter."""
    return from_now(connection)[0]


def lease_value(connection: BaseDatabaseWrapper, lease: timedelta) -> Any:
    """Return the parameter of :func:`lease_end`, for a lease that begins now."""
    return from_now(connection, lease)[1]


LeaseEnd = TimeFromNow
"""The end of a lease that begins now, in a query or an update."""
