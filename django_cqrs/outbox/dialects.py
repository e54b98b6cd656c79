"""What the outbox may ask of a database's driver to spare round trips to the server."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper


def sends_several(connection: BaseDatabaseWrapper) -> bool:
    """
    Tell whether a statement may be several, divided by semicolons.

    On PostgreSQL it may, and outside a transaction they then are one, unless the
    parameters are bound by the server: ``OPTIONS`` say so for psycopg 3.
    """
    options = connection.settings_dict.get("OPTIONS", {})
    return connection.vendor == "postgresql" and not options.get("server_side_binding")


def to_last_result(cursor: Any) -> None:
    """Pass over the results of all statements but the last; psycopg 2 has no others."""
    if hasattr(cursor.cursor, "pgresult"):
        while cursor.nextset():
            pass
