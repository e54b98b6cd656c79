"""
The end of a lease, by the clock of the database.

Whoever writes it and whoever reads it may be two machines, whose clocks differ. SQLite
has no clock of its own: there it is this machine's, which all its clients share.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Expression

from django_cqrs.clock import now
from django_cqrs.outbox.times import MomentField, as_stored

# The time of the statement, by which an index can be searched.
_ENDS: Final = {
    "postgresql": "STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second'",
    "mysql": "UTC_TIMESTAMP(6) + INTERVAL %s SECOND",
}


def lease_end(connection: BaseDatabaseWrapper) -> str:
    """Return what ends a lease in a statement: a text with one parameter."""
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
            lease: without one it is the present time, by which leases run out.

        """
        super().__init__(output_field=MomentField())
        self.lease = lease

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """Return its text and its parameter."""
        return lease_end(connection), [lease_value(connection, self.lease)]
