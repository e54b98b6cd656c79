"""
The end of a lease, by the clock of the database.

The machine that writes it and the one that reads it may have different clocks. SQLite
has no clock of its own, so this machine's is used: all its clients share it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Expression

from django_cqrs.clock import now
from django_cqrs.times import MomentField, as_stored

# The time of the statement, which can be searched with an index.
_ENDS: Final = {
    "postgresql": "STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second'",
    "mysql": "UTC_TIMESTAMP(6) + INTERVAL %s SECOND",
}


def lease_end(connection: BaseDatabaseWrapper) -> str:
    """Return the SQL expression for the end of a lease, with one parameter."""
    return _ENDS.get(connection.vendor, "%s")


def lease_value(connection: BaseDatabaseWrapper, lease: timedelta) -> Any:
    """Return the parameter of :func:`lease_end`, for a lease that begins now."""
    if connection.vendor in _ENDS:
        return lease.total_seconds()
    return as_stored(now() + lease, connection)


class LeaseEnd(Expression):
    """The end of a lease that begins now, in a query or an update."""

    def __init__(self, lease: timedelta = timedelta()) -> None:
        """
        Take a lease.

        Args:
            lease: by default zero: the present time, against which leases are compared.

        """
        super().__init__(output_field=MomentField())
        self.lease = lease

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """Return its text and its parameter."""
        return lease_end(connection), [lease_value(connection, self.lease)]
