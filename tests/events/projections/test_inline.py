"""Projections that run in the transaction that appends."""

import dataclasses
from typing import Annotated

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import command_handler, event_handler, message
from django_cqrs.events import EventStore, Recorded, Row, State, projection
from django_cqrs.events.appending import followers_of, prepare
from django_cqrs.events.models import Generation, Partition, StoredEvent
from django_cqrs.exceptions import InvalidOption
from tests.events.projections.support import (
    OrderCounted,
    OrderPaid,
    OrderPlaced,
    Unlucky,
    append,
    project,
)
from tests.events.views.models import Entry, OrderRow

pytestmark = [pytest.mark.database, pytest.mark.django_db]

log: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_logged():
    log.clear()


def entries():
    return list(Entry.objects.order_by("pk").values_list("text", flat=True))


@projection("orders", views=[OrderRow])
class InlineOrders:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1

    @event_handler
    def paid(self, event: OrderPaid, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1
        row.paid = True


@projection("entries", views=[Entry])
class InlineEntries:
    @event_handler
    def any(self, event: OrderPlaced | OrderPaid, recorded: Recorded):
        if event.number < 0:
            raise Unlucky
        Entry.objects.create(
            text=f"{recorded.stream} {recorded.version}", position=recorded.position
        )


def pause(name="entries"):
    Generation.objects.filter(projection=name).update(status="paused")


def resume(name="entries"):
    Generation.objects.filter(projection=name).update(status="live")


def test_e21_1_the_rows_are_there_for_the_event_s_other_handlers():
    """An inline projection runs before the event is published, in the same transaction. [E21.1]"""

    @event_handler
    def after(event: OrderPlaced):
        log.append(OrderRow.objects.get(number=event.number).changes)

    registry = project(InlineOrders, after)

    append(registry, OrderPlaced(7))

    assert log == [1]
    append(registry, OrderPaid(7), stream="order-1")
    assert OrderRow.objects.get(number=7).paid


@message("inline.place")
@dataclasses.dataclass(frozen=True)
class Place:
    number: int


def test_e21_2_a_handler_that_fails_fails_the_command():
    """There is no event, no row and no claim, and the error names the projection. [E21.2]"""

    @command_handler
    def place(command: Place, store: EventStore):
        store.append([OrderPlaced(command.number)], stream=f"order-{command.number}")

    registry = project(InlineEntries, InlineOrders, place)

    with pytest.raises(Unlucky) as caught:
        registry.command_bus.dispatch(Place(-1))

    assert "inline projection 'entries'" in caught.value.__notes__[0]
    assert not StoredEvent.objects.exists()
    assert not OrderRow.objects.exists()
    assert not Partition.objects.exists()
    registry.command_bus.dispatch(Place(1))
    assert entries() == ["order-1 1"]


def test_e21_3_the_priority_is_the_order_of_the_calls():
    """Projections with a higher priority are called first, others as registered. [E21.3]"""

    def made(name, priority):
        @projection(name, priority=priority)
        class Made:
            @event_handler
            def placed(self, event: OrderPlaced):
                log.append(name)

        return Made

    registry = project(*(made(*each) for each in (("a", 0), ("b", 5), ("c", 0))))

    append(registry, OrderPlaced(1))

    assert log == ["b", "a", "c"]


@pytest.mark.parametrize("before", [1, 3])
def test_e21_4_a_projection_that_is_added_later_gets_whole_streams(before):
    """The next event of a stream brings all of it, once; other streams stay as they are. [E21.4]"""
    old = project(InlineOrders)
    append(old, *map(OrderPlaced, range(before)), stream="order-1")
    append(old, OrderPlaced(50), stream="order-2")
    new = project(InlineOrders, InlineEntries)

    append(new, OrderPaid(0), stream="order-1")
    append(new, OrderPaid(1), OrderPaid(2), stream="order-1")

    assert entries() == [f"order-1 {n}" for n in range(1, before + 4)]
    append(new, OrderPaid(50), stream="order-2")
    assert entries()[-2:] == ["order-2 1", "order-2 2"]


def test_e21_5_a_paused_projection_gets_nothing_and_heals_afterwards():
    """What it has missed comes with the next event of the stream. [E21.5]"""
    registry = project(InlineEntries)
    append(registry, OrderPlaced(1))
    pause()
    append(registry, OrderPaid(1))
    append(registry, OrderPlaced(2), stream="order-2")
    assert entries() == ["order-1 1"]

    resume()
    append(registry, OrderPaid(1))

    assert entries() == ["order-1 1", "order-1 2", "order-1 3"]
    append(registry, OrderPaid(2), stream="order-2")
    assert entries()[3:] == ["order-2 1", "order-2 2"]


def test_events_between_that_it_does_not_take_are_passed_by():
    """A projection handles each of its events once, whatever stands between them."""
    registry = project(InlineEntries)

    append(registry, OrderCounted(1), OrderPlaced(1))
    append(registry, OrderCounted(2))
    append(registry, OrderPaid(1), OrderCounted(3))
    append(registry, OrderPaid(1))

    assert entries() == ["order-1 2", "order-1 4", "order-1 6"]


def test_e21_7_an_event_without_a_stream_is_refused():
    """It has no order; the error says what to do, and nothing is stored. [E21.7]"""
    registry = project(InlineEntries)

    said = r"order\.placed was not appended: it has no stream"
    with pytest.raises(InvalidOption, match=said), transaction.atomic():
        append(registry, OrderPlaced(1), stream=None)

    assert not StoredEvent.objects.exists()


def test_e21_8_the_number_of_statements_does_not_grow_with_projections():
    """One claims for all of them on PostgreSQL, two on other databases. [E21.8]"""
    counts = []
    for number in (1, 4):

        def made(name):
            @projection(name)
            class Made:
                @event_handler
                def placed(self, event: OrderPlaced):
                    pass

            return Made

        registry = project(*(made(f"p{number}{n}") for n in range(number)))
        plain = project()
        append(registry, OrderPlaced(1), stream=f"order-{number}")
        append(plain, OrderPlaced(2), stream=f"plain-{number}")
        with CaptureQueriesContext(connection) as alone:
            append(plain, OrderPlaced(2), stream=f"plain-{number}")
        with CaptureQueriesContext(connection) as queries:
            append(registry, OrderPlaced(2), stream=f"order-{number}")
        counts.append(len(queries) - len(alone))

    assert counts == ([1, 1] if connection.vendor == "postgresql" else [2, 2])


def test_a_failure_that_is_caught_takes_rows_and_claims_along():
    """An atomic() around it undoes the events, their rows and their claims together."""
    registry = project(InlineEntries)
    append(registry, OrderPlaced(1))

    with transaction.atomic():
        with pytest.raises(Unlucky), transaction.atomic():
            append(registry, OrderPaid(1), OrderPlaced(-1))
        append(registry, OrderPaid(1))

    assert entries() == ["order-1 1", "order-1 2"]
    assert Partition.objects.get().version == 2


@dataclasses.dataclass
class Total:
    number: int = 0


@pytest.mark.parametrize(("by", "expected"), [(None, [1, 2, 3]), ("stream", [1, 2, 1])])
def test_an_inline_projection_keeps_its_state(by, expected):
    """It is one for the projection, or one for each stream."""

    @projection("totals", partition_by=by)
    class Totals:
        @event_handler
        def placed(self, event: OrderPlaced, total: Annotated[Total, State()]):
            total.number += 1
            log.append(total.number)

    registry = project(Totals)

    append(registry, OrderPlaced(1))
    append(registry, OrderPlaced(1))
    append(registry, OrderPlaced(2), stream="order-2")

    assert log == expected


def test_only_its_sources_reach_it():
    """Events of other categories and streams are neither claimed nor handled."""

    @projection("some", sources=["order", "basket-1"])
    class Some:
        @event_handler
        def placed(self, event: OrderPlaced, recorded: Recorded):
            log.append(recorded.stream)

    registry = project(Some)

    for stream in ("order-1", "basket-1", "basket-2", "other-1", "order-2"):
        append(registry, OrderPlaced(1), stream=stream)

    assert log == ["order-1", "basket-1", "order-2"]


def test_one_that_starts_by_hand_is_not_called_before():
    """It has no row yet, and an append makes none."""

    @projection("later", start="manual")
    class Later:
        @event_handler
        def placed(self, event: OrderPlaced):
            log.append(event.number)

    registry = project(Later)

    append(registry, OrderPlaced(1))

    assert log == []
    assert not Generation.objects.exists()


def test_an_append_that_no_inline_projection_takes_is_one_statement_as_ever():
    """Those of other events do not make it a transaction with steps after it."""
    registry = project(InlineEntries)

    def steps(event):
        entries = prepare([event], registry=registry, using="default")
        return followers_of(entries, registry)

    assert steps(OrderCounted(1)) == []
    assert len(steps(OrderPlaced(1))) == 1
