"""A command that inserts one row, beside the same function in a bare transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.core.management import call_command
from django.db import OperationalError, connections, transaction
from django.test import override_settings

from django_cqrs import Registry, command_handler
from tests.benchmarks.measuring import call_by_call
from tests.benchmarks.results import Row, compared
from tests.benchmarks.shop.messages import PlaceOrder
from tests.benchmarks.shop.models import Order

BOUNDS = {"sqlite": 1.05, "postgresql": 1.02}
BY_HEADER, BY_HAND = "by the header of its tenant", "by using="
DISPATCH, TWIN = "command_bus.dispatch()", "(its twin, for the noise)"


def insert_of_one_row(alias: str, *, rounds: int, calls: int) -> list[Row]:
    """
    Compare a dispatch with the handler itself under ``transaction.atomic()``.

    Then the handler itself with its twin: what that ratio is away from one, the first
    may be away by chance. It is noisy if this may be more than the bound allows.
    """
    connection = connections[alias]
    orders = Order.objects.using(alias)

    @command_handler(using=alias)
    def place_order(command: PlaceOrder) -> int:
        return orders.create(number=command.number, customer=command.customer).pk

    registry = Registry()
    registry.add(place_order)
    command = PlaceOrder(7, "Ada Lovelace")
    command_bus = registry.command_bus

    def dispatched() -> None:
        command_bus.dispatch(command)

    def bare() -> None:
        with transaction.atomic(using=alias):
            place_order(command)

    def twin() -> None:
        with transaction.atomic(using=alias):
            place_order(command)

    version = ".".join(map(str, connection.get_database_version()))
    section = f"A command that inserts one row, {connection.display_name} {version}"
    base = "atomic() around a call"
    bound = BOUNDS[connection.vendor]
    rows = []
    for name, function in ((DISPATCH, dispatched), (TWIN, twin)):
        # Two at a time: of three in turns, the two that are alike keep each other warm.
        pair = {base: bare, name: function}
        comparison = call_by_call(pair, rounds=rounds, calls=calls)
        if name == DISPATCH:
            rows.append(compared(comparison, section, name, base, bound=bound))
            continue
        low, high = comparison.certain(name, base)
        row = compared(comparison, section, name, base)
        is_noisy = not 1 / bound <= low <= high <= bound
        rows.append(dataclasses.replace(row, is_noisy=is_noisy))
    return rows


def alias_by_header(alias: str, *, rounds: int, calls: int) -> list[Row]:
    """Compare a command whose tenant has the database with one that names it."""
    connection = connections[alias]

    @command_handler
    def place_order(command: PlaceOrder) -> int:
        return orders.create(number=command.number, customer=command.customer).pk

    orders = Order.objects.using(alias)
    tenancy = {"HEADER": "tenant", "DATABASES": {"acme": alias}}
    with override_settings(
        DJANGO_CQRS={**settings.DJANGO_CQRS, "TENANCY": tenancy},
        DATABASE_ROUTERS=["django_cqrs.tenancy.TenantRouter"],
    ):
        registry = Registry()
        registry.add(place_order)
        command, command_bus = PlaceOrder(7, "Ada Lovelace"), registry.command_bus
        headers = {"tenant": "acme"}

        def by_header() -> None:
            command_bus.dispatch(command, headers=headers)

        def by_hand() -> None:
            command_bus.dispatch(command, using=alias)

        version = ".".join(map(str, connection.get_database_version()))
        section = f"The database of a tenant, {connection.display_name} {version}"
        comparison = call_by_call(
            {BY_HAND: by_hand, BY_HEADER: by_header}, rounds=rounds, calls=calls
        )
    return [compared(comparison, section, BY_HEADER, BY_HAND, bound=1.02)]


def make_sqlite_tables() -> None:
    """Create the tables of the database in memory."""
    call_command("migrate", run_syncdb=True, verbosity=0)


@contextmanager
def postgres_database() -> Iterator[str | None]:
    """Create a database for the length of the block; yield why not, or None."""
    if "postgres" not in connections:
        yield "no URL of a server was given"
        return
    creation = connections["postgres"].creation
    try:
        name = creation.create_test_db(verbosity=0, autoclobber=True)
    except OperationalError as error:
        yield str(error).strip().splitlines()[0]
        return
    try:
        yield None
    finally:
        creation.destroy_test_db(name, verbosity=0)
