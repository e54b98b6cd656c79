"""Renamed classes, older and newer shapes, and events that are dropped."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import pytest
from django.db.models import F
from pydantic import BaseModel

from django_cqrs import Registry, command_handler, message, query_handler
from django_cqrs.checks import check_registry
from django_cqrs.conversion import upcaster, upcasting
from django_cqrs.events import EventStore, applies, event_stream, streams, where
from django_cqrs.events.models import StoredEvent
from django_cqrs.exceptions import MessageConversionError, UnknownMessage
from django_cqrs.modelling import aggregate
from tests.events.support import in_a_transaction, store_of
from tests.support import faults_of, registry_of

pytestmark = [pytest.mark.database, in_a_transaction]


@pytest.fixture(autouse=True)
def _own_upcasters(monkeypatch):
    """Leave no upcaster behind."""
    monkeypatch.setattr(upcasting, "_upcasters", {})


def placed(name="order.placed", **options):
    @message(name, **options)
    @dataclass(frozen=True)
    class Placed:
        number: int
        currency: str = "?"

    return Placed


def read(cls, stream="order-1"):
    return list(store_of(cls).read(stream))


def test_e13_1_a_renamed_class_reads_what_it_stored_before():
    """An alias gives old events to the class that is moved and renamed. [E13.1]"""
    old = placed("shop.ordered")
    store_of(old).append(old(1), stream="order-1")
    new = placed(aliases=["shop.ordered"])
    store_of(new).append(new(2), stream="order-1")

    first, second = read(new)
    assert (first.event, second.event) == (new(1), new(2))
    assert (first.name, second.name) == ("shop.ordered", "order.placed")
    found = store_of(new).read_all(where(new))
    assert [each.event for each in found] == [new(1), new(2)]
    found = store_of(new).read_all(where("order.placed"))
    assert [each.event.number for each in found] == [1, 2]


def test_e13_7_a_moved_and_renamed_class_finds_its_streams(monkeypatch):
    """Its category names them: the module and the name of the class do not matter. [E13.7]"""

    @dataclass(frozen=True)
    class Fill:
        number: int

    @dataclass(frozen=True)
    class CountFillings:
        number: int

    @message("basket.filled")
    @dataclass(frozen=True)
    class Filled:
        number: int

    @aggregate(identifier="number")
    @event_stream("moved.basket")
    class Basket:
        number: int
        times: int = 0

        @command_handler
        @classmethod
        def open(cls, command: Fill) -> Filled:
            return Filled(command.number)

        @applies
        def filled(self, event: Filled):
            self.number = event.number
            self.times += 1

    class Elsewhere:
        @aggregate(identifier="number")
        @event_stream("moved.basket")
        class Trolley:
            number: int
            times: int = 0

            @command_handler
            def fill(self, command: Fill) -> Filled:
                return Filled(command.number)

            @query_handler
            def count(self, query: CountFillings) -> int:
                return self.times

            @applies
            def filled(self, event: Filled):
                self.number = event.number
                self.times += 1

    registry_of(Basket).command_bus.dispatch(Fill(7))
    # Another process, which has the new code alone.
    monkeypatch.setattr(streams, "_holders", WeakValueDictionary())
    later = registry_of(Elsewhere.Trolley)
    assert check_registry(later) == []

    later.command_bus.dispatch(Fill(7))

    assert later.query_bus.ask(CountFillings(7)) == 2
    store = EventStore(registry=later)
    assert store.load(Elsewhere.Trolley, 7, version=1).times == 1
    assert store.version("moved.basket-7") == 2


def test_e13_2_a_deleted_class_leaves_json():
    """An event whose class is gone has its name and its JSON; asking for it raises. [E13.2]"""
    old, other = placed(), placed("order.paid")
    store_of(old, other).append([old(1), other(2)], stream="order-1")

    gone, kept = read(other)
    assert (gone.name, gone.payload) == ("order.placed", {"number": 1, "currency": "?"})
    assert not gone.is_dropped
    assert kept.event == other(2)
    with pytest.raises(
        UnknownMessage,
        match=rf"position {gone.position} \('order-1', version 1\) cannot be read\. "
        r"No registered message class is named 'order\.placed'",
    ):
        gone.event  # noqa: B018 - it raises


def test_e13_3_upcasters_bring_an_event_to_the_present():
    """An event of version 1 passes the upcasters of 1 and 2; one of them takes headers. [E13.3]"""
    old = placed()
    own = store_of(old)
    own.append(old(1), stream="order-1", headers={"country": "de", "tenant": 7})
    new = placed(version=3)

    @upcaster("order.placed", version=1)
    def number_up(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "number": payload["number"] + 10}

    @upcaster("order.placed", version=2)
    def add_currency(
        payload: dict[str, Any], headers: dict[str, Any]
    ) -> dict[str, Any]:
        return {**payload, "currency": {"de": "EUR"}[headers["country"]]}

    [recorded] = read(new)
    assert recorded.event == new(11, "EUR")
    assert recorded.payload == {"number": 11, "currency": "EUR"}
    assert recorded.stored_payload != recorded.payload
    assert (recorded.shape, recorded.version) == (1, 1)

    store_of(new).append(new(2), stream="order-1")
    assert [each.event.number for each in read(new)] == [11, 2]


def test_e13_3_an_upcaster_drops_an_event():
    """None drops the event, and its version stays. [E13.3]"""
    old = placed()
    store_of(old).append([old(number) for number in range(4)], stream="order-1")
    new = placed(version=2)

    @upcaster("order.placed", version=1)
    def drop_odd(payload: dict[str, Any]) -> dict[str, Any] | None:
        return None if payload["number"] % 2 else payload

    own = store_of(new)
    own.append(new(9), stream="order-1")
    assert [(each.version, each.event.number) for each in own.read("order-1")] == [
        (1, 0),
        (3, 2),
        (5, 9),
    ]
    assert [each.event.number for each in own.read_all()] == [0, 2, 9]
    assert [each.event.number for each in own.select(where(new)).events] == [0, 2, 9]
    assert own.version("order-1") == 5
    assert [e.version for e in own.read("order-1", backwards=True, limit=2)] == [5, 3]


def test_e13_3_an_upcaster_that_refuses_names_the_place():
    """The error of an upcaster has the position and the stream. [E13.3]"""
    old = placed()
    store_of(old).append(old(1), stream="order-1")
    new = placed(version=2)

    @upcaster("order.placed", version=1)
    def refuse(payload: dict[str, Any]) -> dict[str, Any]:
        return {"number": payload["amount"]}

    [recorded] = read(new)
    for part in ("event", "payload"):
        with pytest.raises(MessageConversionError) as caught:
            getattr(recorded, part)
        assert faults_of(caught) == [
            ("", "its upcaster from version 1 rejects it ('amount')")
        ]
        assert str(caught.value).startswith(
            "Cannot convert the payload of the event at position "
            f"{recorded.position} ('order-1', version 1) to order.placed: "
        )


def test_e13_4_a_newer_shape_is_for_newer_code():
    """An event of a version that this code does not know is unknown. [E13.4]"""
    new = placed(version=2)
    store_of(new).append(new(1), stream="order-1")

    [recorded] = read(placed())
    with pytest.raises(UnknownMessage, match="this process runs older code"):
        recorded.event  # noqa: B018 - it raises
    assert recorded.payload == {"number": 1, "currency": "?"}

    StoredEvent.objects.update(shape=F("shape") - 3)
    [recorded] = read(new)
    with pytest.raises(UnknownMessage, match="stored in version -1"):
        recorded.event  # noqa: B018 - it raises


def test_e13_6_two_classes_of_one_name_are_a_check():
    """Two classes with one name, or an alias that is in use, are reported. [E13.6]"""
    registry = Registry()
    for cls in (placed(), placed(), placed("order.paid", aliases=["order.placed"])):
        registry.add(cls)

    found = [each.id for each in check_registry(registry)]
    assert found == ["django_cqrs.E008"]


def test_unset_fields_of_models_come_back_unset():
    """A pydantic model knows which of its fields were given, also after the store."""

    @message("order.noted")
    class Noted(BaseModel):
        text: str = "?"
        more: int | None = None

    own = store_of(Noted)
    own.append([Noted(more=1), Noted()], stream="order-1", headers={"by": "ada"})

    first, second = own.read("order-1")
    assert first.event.model_fields_set == {"more"}
    assert second.event.model_fields_set == set()
    assert first.headers == {"by": "ada"}


def test_an_outbox_message_is_upcast_as_before():
    """A message that is not an event cannot be dropped by an upcaster."""
    cls = placed(version=2)

    @command_handler
    def handle(command: cls) -> None:
        """Do nothing."""

    registry = Registry()
    registry.add(handle)

    @upcaster("order.placed", version=1)
    def drop(payload: dict[str, Any]) -> None:
        return None

    with pytest.raises(MessageConversionError):
        registry.routes.types.decode("order.placed", b'{"number": 1}', 1)
    assert EventStore(registry=registry).registry is registry
