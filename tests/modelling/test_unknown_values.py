"""What is recorded or sent holds no value that only the save gives."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

import pytest
from django.db.models import F
from django.test.utils import isolate_apps

from django_cqrs import Header, Registry, command_handler, event_handler
from django_cqrs.exceptions import InvalidEvent
from django_cqrs.modelling import aggregate
from tests.modelling.deals import (
    Bargain,
    Begun,
    Change,
    Deal,
    Lined,
    Made,
    Make,
    Moved,
    Named,
    Trade,
    Tupled,
    made_in,
    moved_in,
)

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@cache
def sender():
    """Return an aggregate that no check of another test finds."""
    with isolate_apps("tests.modelling"):

        @aggregate
        class Sender(Trade):
            """Sends on what the methods of a deal record."""

            class Meta:
                app_label = "modelling"
                proxy = True

            @command_handler("sender.make_and_send", output="deal.sent")
            @classmethod
            def make_and_send(cls, command: Make) -> tuple[Sender, Any]:
                sender = cls()
                return sender, made_in(command.way, sender)

            @command_handler("sender.change_and_send", output="deal.sent")
            def change_and_send(self, command: Change) -> Any:
                self.total = F("total") + 1
                return moved_in(command.way, self)

    return Sender


@pytest.fixture
def heard():
    """What was published, with the aggregate_id of each; None of what was sent on."""
    return []


@pytest.fixture
def registry(heard):
    @event_handler
    def hear(
        event: Made | Named | Tupled | Lined | Moved | Begun,
        number: Annotated[int, Header("aggregate_id")],
    ) -> None:
        heard.append((event, number))

    @command_handler("deal.sent")
    def receive(event: Any) -> None:
        heard.append((event, None))

    registry = Registry()
    for each in (Deal, sender(), Bargain, hear, receive):
        registry.add(each)
    return registry


@pytest.fixture
def bus(registry):
    return registry.command_bus


def key_text(said, path, owner):
    verb = "sent" if owner == "Sender" else "recorded"
    out = "command" if owner == "Sender" else "event: its header aggregate_id has it"
    return (
        f"{said} cannot be {verb}: {path} is None, because the database makes the "
        f"key of the {owner} when it saves it. Give a function that is called after "
        f"the save, lambda: {said}(...). Or leave the key out of the {out}. Or give "
        f"the key a default in Python, such as uuid.uuid4."
    )


def expression_text(said, path, kind, owner):
    where = f"{path} is" if path else "it is"
    verb, noun = ("sent", "command") if owner == "Sender" else ("recorded", "event")
    return (
        f"{said} cannot be {verb}: {where} an expression ({kind}), which only the "
        f"database computes, when it saves the {owner}. Compute the value in Python, "
        f"or leave it out of the {noun} and let its handlers read the {owner}."
    )


NEW = {
    "dataclass": lambda owner: key_text("Made", "deal", owner),
    "named tuple": lambda owner: key_text("Tupled", "deal", owner),
    "list": lambda owner: key_text("Lined", "lines.0.deal", owner),
    "database default": lambda owner: expression_text(
        "Begun", "buyer", "DatabaseDefault", owner
    ),
    "key and default": lambda owner: expression_text(
        "Named", "buyer", "DatabaseDefault", owner
    ),
}

OF_ITS_NAME = {
    "optional field of the key's name": lambda: key_text("Named", "deal_id", "Deal"),
    "pydantic model": lambda: key_text("Modelled", "deal_id", "Deal"),
}

CHANGED = {
    "F": ("Moved", "total", "CombinedExpression"),
    "function": ("Moved", "total", "Now"),
    "list": ("Moved", "total.1", "CombinedExpression"),
    "dict": ("Lined", "by_name.total", "CombinedExpression"),
    "pydantic model": ("Modelled", "note", "CombinedExpression"),
    "bare": ("CombinedExpression", "", "CombinedExpression"),
}


@pytest.mark.parametrize("route", ["deal.make", "sender.make_and_send", "bargain.make"])
@pytest.mark.parametrize("way", NEW)
def test_a_factory_refuses_an_event_with_a_key_that_the_database_makes(
    bus, heard, route, way
):
    """
    A key or a value that only the save gives is an error where it is recorded.

    The same holds for what a factory sends on, and for a class with `events=`. Nothing
    is saved and nobody hears of it.
    """
    owner = route.partition(".")[0].capitalize()

    with pytest.raises(InvalidEvent) as raised:
        bus.dispatch(Make(way), route=route)

    assert str(raised.value) == NEW[way](owner)
    assert (Deal.objects.count(), Bargain.objects.count(), heard) == (0, 0, [])


@pytest.mark.parametrize("way", OF_ITS_NAME)
def test_a_field_of_the_keys_name_is_not_empty_by_chance(bus, heard, way):
    """A field that allows None is refused too, where it has the name of the key."""
    with pytest.raises(InvalidEvent) as raised:
        bus.dispatch(Make(way), route="deal.make")

    assert str(raised.value) == OF_ITS_NAME[way]()
    assert (Deal.objects.count(), heard) == (0, [])


def test_an_event_that_starts_an_aggregate_meets_the_same(registry):
    """A factory of an event refuses it as one of a command does."""
    with pytest.raises(InvalidEvent) as raised:
        registry.event_bus.publish(Make("dataclass"), route="deal.begin")

    assert str(raised.value) == key_text("Made", "deal", "Deal")
    assert Deal.objects.count() == 0


def test_the_error_is_raised_where_the_event_is_recorded(bus):
    """The line of the factory that records it is in the traceback."""
    with pytest.raises(InvalidEvent) as raised:
        bus.dispatch(Make("dataclass"), route="deal.make")

    lines = [str(each.statement).strip() for each in raised.traceback]
    assert "deal.record(made_in(command.way, deal))" in lines


@pytest.mark.parametrize(
    "route", ["deal.change", "sender.change_and_send", "bargain.change"]
)
@pytest.mark.parametrize("way", CHANGED)
def test_an_action_refuses_an_event_with_an_expression(bus, heard, route, way):
    """An expression, such as F(), is an error wherever in the event it stands."""
    owner = route.partition(".")[0].capitalize()
    cls = {"Deal": Deal, "Sender": Trade, "Bargain": Bargain}[owner]
    number = cls.objects.create(buyer="ada").pk

    with pytest.raises(InvalidEvent) as raised:
        bus.dispatch(Change(number, way), route=route, aggregate_id=number)

    assert str(raised.value) == expression_text(*CHANGED[way], owner)
    assert (cls.objects.get().total, heard) == (0, [])


def test_a_handler_reads_the_key_from_the_header(bus, heard):
    """The way out that the error names: `aggregate_id` has the key after the save."""
    number = bus.dispatch(Make("nothing of it"), route="deal.make")

    assert heard == [(Begun("ada"), number)]
    assert Deal.objects.get().pk == number


def test_an_empty_field_is_not_taken_for_the_key(bus, heard):
    """None where the annotation allows it, in a field of another name, is a value."""
    number = bus.dispatch(Make("an empty field"), route="deal.make")

    assert heard == [(Made(7, None), number)]


def test_an_event_that_is_recorded_after_a_save_has_the_key(bus, heard):
    """A factory that saves its object itself knows the key then."""
    way = "optional field of the key's name"

    number = bus.dispatch(Make(way), route="deal.save_first")

    assert heard == [(Named(number), number)]


def test_an_action_that_counts_in_the_database_may_record_what_it_knows(bus, heard):
    """The object itself may hold an expression: only the event must not."""
    number = Deal.objects.create(buyer="ada").pk

    bus.dispatch(Change(number, "plain"), route="deal.change")

    assert Deal.objects.get().total == 1
    assert heard == [(Moved(number, 3), number)]
