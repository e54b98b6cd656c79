"""Event streams beside the library eventsourcing, on the same PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

PACKAGE = "eventsourcing"


def reason_to_leave_out(connection: BaseDatabaseWrapper) -> str | None:
    """Return why the library is not compared on a database; None if it is."""
    if connection.vendor != "postgresql":
        return f"{PACKAGE} is compared on PostgreSQL."
    if find_spec(PACKAGE) is None:
        return f"{PACKAGE} is not installed, so it was left out."
    return None


@contextmanager
def application(connection: BaseDatabaseWrapper) -> Iterator[tuple[Any, type]]:
    """
    Give an application of the library, and a class like our basket.

    It keeps its events in a table of its own in the same database, through a pool of
    connections that is its own as well.
    """
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event

    class Basket(Aggregate):
        @event("Created")
        def __init__(self) -> None:
            self.items: dict[str, int] = {}

        @event("Sold")
        def sell(self, sku: str, count: int) -> None:
            self.items[sku] = self.items.get(sku, 0) + count

    settings = connection.settings_dict
    application = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": settings["NAME"],
            "POSTGRES_HOST": settings["HOST"] or "127.0.0.1",
            "POSTGRES_PORT": str(settings["PORT"] or 5432),
            "POSTGRES_USER": settings["USER"],
            # It wants one, also where the server trusts everybody.
            "POSTGRES_PASSWORD": settings["PASSWORD"] or "none",
        }
    )
    try:
        yield application, Basket
    finally:
        application.close()
