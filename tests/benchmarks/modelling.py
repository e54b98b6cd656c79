"""An action of an aggregate and a step of a saga, beside the same by hand."""

from __future__ import annotations

from collections.abc import Callable

from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import command_bus, event_bus
from tests.benchmarks.measuring import call_by_call
from tests.benchmarks.results import Row, compared
from tests.benchmarks.shop.messages import ParcelPacked, RentBook
from tests.benchmarks.shop.models import Book, Dispatch
from tests.benchmarks.shop.routers import ALIAS

BOUND = 1.05
BASE = "select_for_update().get(), the method, save()"


def run(*, rounds: int, calls: int) -> list[Row]:
    """Return the rows; the models are where the router has them."""
    return [
        *_action(rounds=rounds, calls=calls),
        *_step(rounds=rounds, calls=calls),
    ]


def _action(*, rounds: int, calls: int) -> list[Row]:
    pk = Book.objects.create(title="The Analytical Engine").pk
    command = RentBook(pk, "Ada Lovelace")

    def by_bus() -> None:
        command_bus.dispatch(command)

    def by_hand() -> None:
        with transaction.atomic(using=ALIAS):
            book = Book.objects.select_for_update().get(pk=pk)
            book.rent(command)
            book.save()

    return _beside(
        "An action of an aggregate",
        "command_bus.dispatch()",
        by_bus,
        by_hand,
        rounds=rounds,
        calls=calls,
    )


def _step(*, rounds: int, calls: int) -> list[Row]:
    Dispatch.objects.create(order_id=7, customer="Ada Lovelace")
    event = ParcelPacked(7)

    def by_bus() -> None:
        event_bus.publish(event)

    def by_hand() -> None:
        with transaction.atomic(using=ALIAS):
            dispatch = Dispatch.objects.select_for_update().get(pk=7)
            if dispatch.completed_at is None:
                dispatch.on_packed(event)
                dispatch.save()

    return _beside(
        "A step of a saga",
        "event_bus.publish()",
        by_bus,
        by_hand,
        rounds=rounds,
        calls=calls,
    )


def _beside(
    what: str,
    name: str,
    by_bus: Callable[[], None],
    by_hand: Callable[[], None],
    *,
    rounds: int,
    calls: int,
) -> list[Row]:
    """Compare the times of both, and count their statements."""
    connection = connections[ALIAS]
    version = ".".join(map(str, connection.get_database_version()))
    section = f"{what}, {connection.display_name} {version}"
    pair = {BASE: by_hand, name: by_bus}
    comparison = call_by_call(pair, rounds=rounds, calls=calls)
    counts = []
    for function in (by_bus, by_hand):
        with CaptureQueriesContext(connection) as captured:
            function()
        counts.append(len(captured))
    ours, others = counts
    return [
        compared(comparison, section, name, BASE, bound=BOUND),
        Row(
            section=section,
            what=f"its statements; by hand {others}",
            value=ours,
            unit="statements",
            base=BASE,
            base_seconds=comparison.seconds(BASE),
            bound=others,
        ),
    ]
