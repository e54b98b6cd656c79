"""Events: who is called, with what, in which order, and what a failure undoes."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Protocol, runtime_checkable
from uuid import UUID

import pytest
from django.db import connection, transaction

from django_cqrs import (
    CommandBus,
    Depends,
    EventBus,
    Header,
    Message,
    Registry,
    command_handler,
    event_bus,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.buses.events import MOST_KEYS
from django_cqrs.exceptions import (
    InvalidHandler,
    InvalidHeader,
    InvalidOption,
    MessageConversionError,
    MissingHeader,
)
from django_cqrs.problems import Rule
from tests.support import registry_of, rules_of
from tests.testapp import handlers
from tests.testapp.messages import TicketOpened
from tests.testapp.models import Note

JSON = "application/json"


def texts():
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


@dataclass(frozen=True)
class Line:
    product: UUID
    price: Decimal = Decimal("1.50")


@message("order.placed")
@dataclass(frozen=True)
class OrderPlaced:
    number: int = 0
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class GiftPlaced(OrderPlaced):
    wish: str = ""


@dataclass(frozen=True)
class Shipped:
    number: int = 0


@dataclass(frozen=True)
class PlaceOrder:
    number: int = 0


# B05.1 ----------------------------------------------------------------------------


def test_no_subscriber_is_silent():
    """Publishing what nobody listens to does nothing, by class or by name. [B05.1]"""
    bus = Registry().event_bus

    assert bus.publish(Shipped(1)) is None
    assert bus.publish(Shipped(1)) is None
    assert bus.publish(route="order.shipped") is None
    assert bus.publish({"number": 1}, route="order.shipped") is None
    assert bus.publish("{}", route="order.shipped", content_type=JSON) is None


def test_each_subscriber_is_called_once_with_the_very_object():
    """Several handlers of one class are each called once, unconverted. [B05.1]"""
    seen = []

    @event_handler
    def one(event: Shipped) -> None:
        seen.append(("one", event))

    @event_handler
    def two(event: Shipped) -> None:
        seen.append(("two", event))

    @service
    class Three:
        @event_handler
        def on_shipped(self, event: Shipped) -> None:
            seen.append(("three", event))

    event = Shipped(1)
    registry_of(one, two, Three).event_bus.publish(event)

    assert [name for name, _ in seen] == ["one", "two", "three"]
    assert all(received is event for _, received in seen)


def test_the_handlers_of_installed_apps_are_called():
    """The global bus publishes to what the test app's handlers module holds. [B05.1]"""
    handlers.seen.clear()
    event = TicketOpened("lamp")

    event_bus.publish(event)

    assert handlers.seen == [event]
    assert handlers.seen[0] is event


def test_commands_and_queries_do_not_hear_events():
    """A published object reaches event handlers alone. [B05.1]"""
    seen = []

    @command_handler
    def command(command: Shipped) -> None:
        seen.append("command")

    @query_handler
    def query(query: Shipped) -> None:
        seen.append("query")

    registry_of(command, query).event_bus.publish(Shipped())

    assert seen == []


def test_a_handler_added_later_is_called():
    """A bus that has published a class before sees its new handlers. [B05.1]"""
    seen = []
    registry = Registry()
    registry.event_bus.publish(Shipped(1))

    @registry.add
    @event_handler
    def one(event: Shipped) -> None:
        seen.append(event)

    registry.event_bus.publish(Shipped(2))

    assert seen == [Shipped(2)]


# B05.2 ----------------------------------------------------------------------------


def test_by_class_base_abc_protocol_union_and_object():
    """Handlers of whatever an object is are called, and no others. [B05.2]"""

    class Happened(ABC):
        @abstractmethod
        def text(self) -> str: ...

    class Base: ...

    @runtime_checkable
    class Numbered(Protocol):
        number: int

    @dataclass
    class Paid(Base, Happened):
        number: int = 0

        def text(self) -> str:
            return "paid"

    seen = []

    @event_handler
    def of_class(event: Paid) -> None:
        seen.append("class")

    @event_handler
    def of_base(event: Base) -> None:
        seen.append("base")

    @event_handler
    def of_abc(event: Happened) -> None:
        seen.append("abc")

    @event_handler
    def of_protocol(event: Numbered) -> None:
        seen.append("protocol")

    @event_handler
    def of_union(event: Paid | Shipped) -> None:
        seen.append("union")

    @event_handler
    def of_object(event: object) -> None:
        seen.append("object")

    @event_handler
    def of_any(event: Any) -> None:
        seen.append("any")

    registry = registry_of(
        of_class, of_base, of_abc, of_protocol, of_union, of_object, of_any
    )

    assert rules_of(registry) == []
    registry.event_bus.publish(Paid())
    assert seen == ["class", "base", "abc", "protocol", "union", "object", "any"]
    seen.clear()
    registry.event_bus.publish(Shipped())
    assert seen == ["protocol", "union", "object", "any"]
    seen.clear()
    registry.event_bus.publish("text")
    assert seen == ["object", "any"]


def test_a_handler_that_matches_in_several_ways_is_called_once():
    """Stacked routes, a union of related classes and a name make one call. [B05.2]"""
    seen = []

    @event_handler
    @event_handler("order.placed")
    @event_handler("order.*")
    @event_handler("*")
    def handle(event: GiftPlaced | OrderPlaced | object) -> None:
        seen.append(event)

    registry = registry_of(handle)

    assert len(registry.routes.endpoints) == 1
    registry.event_bus.publish(OrderPlaced(1))
    registry.event_bus.publish(GiftPlaced(2))
    registry.event_bus.publish({"number": 3}, route="order.placed")
    assert seen == [OrderPlaced(1), GiftPlaced(2), OrderPlaced(3)]


def test_a_subclass_reaches_its_bases_handlers_not_the_reverse():
    """A handler of a subclass does not hear its base class. [B05.2]"""
    seen = []

    @event_handler
    def of_gift(event: GiftPlaced) -> None:
        seen.append("gift")

    @event_handler
    def of_order(event: OrderPlaced) -> None:
        seen.append("order")

    bus = registry_of(of_gift, of_order).event_bus
    bus.publish(OrderPlaced())
    bus.publish(GiftPlaced())

    assert seen == ["order", "gift", "order"]


def test_two_handlers_of_equally_near_bases_are_both_called():
    """Events have any number of handlers: nearness does not matter. [B05.2]"""

    class Left: ...

    class Right: ...

    class Both(Left, Right): ...

    seen = []

    @event_handler
    def of_left(event: Left) -> None:
        seen.append("left")

    @event_handler
    def of_right(event: Right) -> None:
        seen.append("right")

    registry = registry_of(of_left, of_right)
    registry.event_bus.publish(Both())

    assert rules_of(registry) == []
    assert seen == ["left", "right"]


def test_a_protocol_that_isinstance_cannot_decide_is_a_check():
    """Publishing does not pass over a handler whose Protocol cannot be asked. [B05.2]"""

    class Numbered(Protocol):
        number: int

    @dataclass
    class Paid(Numbered):
        number: int = 0

    @event_handler
    def handle(event: Numbered) -> None: ...

    registry = registry_of(handle)

    assert rules_of(registry) == [Rule.NO_ROUTE]
    with pytest.raises(InvalidHandler) as caught:
        registry.event_bus.publish(Paid())
    assert str(caught.value) == str(registry.routes.problems[0])


# B05.3 ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "is_heard"),
    [
        ("order.*", "order.placed", True),
        ("order.*", "reorder.placed", False),
        ("order.*", "order.line.added", True),
        ("order.*", "order.", True),
        ("order.*", "order", False),
        ("order.*", "Order.placed", False),
        ("*", "anything at all", True),
        ("*.placed", "order.placed", True),
        ("*.placed", "order.placed.twice", False),
        ("order.?", "order.x", True),
        ("order.?", "order.xy", False),
        ("order.[ps]*", "order.shipped", True),
        ("order.[ps]*", "order.cancelled", False),
        ("order.placed", "order.placed", True),
        ("order.placed", "order.placed2", False),
    ],
)
def test_a_pattern_matches_whole_names(pattern, name, is_heard):
    """A pattern is fnmatch's, case counts, and `*` matches dots too. [B05.3]"""
    seen = []

    @event_handler(pattern)
    def handle() -> None:
        seen.append(name)

    registry_of(handle).event_bus.publish(route=name)

    assert seen == ([name] if is_heard else [])


def test_a_pattern_hears_the_names_of_classes():
    """A class with a name reaches the patterns that match it; others do not. [B05.3]"""
    seen = []

    @event_handler("order.*")
    def handle(event: object) -> None:
        seen.append(event)

    bus = registry_of(handle).event_bus
    bus.publish(OrderPlaced(1))
    bus.publish(Shipped(2))

    assert seen == [OrderPlaced(1)]


# B05.4 ----------------------------------------------------------------------------


def test_a_key_does_not_hear_a_class_without_that_name():
    """A handler with a key is not called for the class that it takes. [B05.4]"""
    seen = []

    @event_handler("order.shipped")
    def handle(event: Shipped) -> None:
        seen.append(event)

    bus = registry_of(handle).event_bus
    bus.publish(Shipped(1))
    bus.publish(OrderPlaced(1))

    assert seen == []
    bus.publish(Shipped(2), route="order.shipped")
    assert seen == [Shipped(2)]


def test_a_name_does_not_reach_a_classs_handlers():
    """Publishing by a name that no class has calls the handlers of that name alone. [B05.4]"""
    seen = []

    @event_handler
    def by_class(event: Shipped) -> None:
        seen.append("class")

    @event_handler
    def by_object(event: object) -> None:
        seen.append("object")

    @event_handler("order.shipped")
    def by_name(event: Shipped) -> None:
        seen.append("name")

    registry_of(by_class, by_object, by_name).event_bus.publish(
        Shipped(1), route="order.shipped"
    )

    assert seen == ["name"]


# B05.5 ----------------------------------------------------------------------------


def subscribers(seen):
    @event_handler
    def by_class(event: OrderPlaced) -> None:
        seen.append(("class", event))

    @event_handler("order.placed")
    def by_name(event: OrderPlaced) -> None:
        seen.append(("name", event))

    @event_handler("order.*")
    def by_pattern(event: OrderPlaced) -> None:
        seen.append(("pattern", event))

    @event_handler
    def by_union(event: OrderPlaced | Shipped) -> None:
        seen.append(("union", event))

    @event_handler
    def by_object(event: object) -> None:
        seen.append(("object", event))

    @event_handler("order.placed")
    def by_name_as_dict(event: dict[str, Any]) -> None:
        seen.append(("dict", event))

    @event_handler("order.placed")
    def without_parameters() -> None:
        seen.append(("none", None))

    @event_handler("order.shipped")
    def by_another_name(event: object) -> None:
        seen.append(("another", event))

    return registry_of(
        by_class,
        by_name,
        by_pattern,
        by_union,
        by_object,
        by_name_as_dict,
        without_parameters,
        by_another_name,
    ).event_bus


ORDER = OrderPlaced(1, (Line(UUID(int=1)),))
ORDER_JSON = {"number": 1, "lines": [{"product": str(UUID(int=1)), "price": "1.50"}]}


def test_an_object_reaches_class_name_and_pattern():
    """A named class's object is heard by class, by name and by pattern, once each. [B05.5]"""
    seen = []

    subscribers(seen).publish(ORDER)

    assert seen == [
        ("class", ORDER),
        ("name", ORDER),
        ("pattern", ORDER),
        ("union", ORDER),
        ("object", ORDER),
        ("dict", ORDER_JSON),
        ("none", None),
    ]
    assert {id(event) for name, event in seen if name not in ("dict", "none")} == {
        id(ORDER)
    }


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (ORDER_JSON, None),
        ({"number": "1", "lines": [Line(UUID(int=1))]}, None),
        (json.dumps(ORDER_JSON), JSON),
        (ORDER, None),
    ],
    ids=["dict", "mixed", "json", "object"],
)
def test_a_name_converts_once_to_its_class(payload, content_type):
    """By the class's name every handler gets one object; `dict` ones its JSON form. [B05.5]"""
    seen = []

    subscribers(seen).publish(payload, route="order.placed", content_type=content_type)

    assert seen == [
        ("class", ORDER),
        ("name", ORDER),
        ("pattern", ORDER),
        ("union", ORDER),
        ("object", ORDER),
        ("dict", ORDER_JSON),
        ("none", None),
    ]
    received = [event for name, event in seen if name not in ("dict", "none")]
    assert all(event is received[0] for event in received)


def test_a_name_that_does_not_convert_calls_nobody():
    """A payload that is not of the name's class raises before the first handler. [B05.5]"""
    seen = []
    bus = subscribers(seen)

    with pytest.raises(MessageConversionError) as caught:
        bus.publish({"number": "x", "lines": [{}]}, route="order.placed")

    assert [error.path for error in caught.value.errors] == [
        "number",
        "lines.0.product",
    ]
    assert caught.value.target == "OrderPlaced"
    assert seen == []


def test_a_subclass_does_not_inherit_the_name():
    """A subclass is heard by class handlers, and not by those of its base's name. [B05.5]"""
    seen = []
    event = GiftPlaced(1, (), "socks")

    subscribers(seen).publish(event)

    assert seen == [("class", event), ("union", event), ("object", event)]


def test_a_subclass_sent_by_the_name_reaches_its_handlers():
    """Sent by its base's name on purpose, a subclass's object is not cut down. [B05.5]"""
    seen = []
    event = GiftPlaced(1, (), "socks")

    subscribers(seen).publish(event, route="order.placed")

    assert seen == [
        ("class", event),
        ("name", event),
        ("pattern", event),
        ("union", event),
        ("object", event),
        ("dict", {"number": 1, "lines": [], "wish": "socks"}),
        ("none", None),
    ]


def test_a_name_used_twice_is_a_check_and_raises():
    """Two classes of one name are refused, and publishing by it raises the text. [B05.5]"""

    @message("order.sent")
    @dataclass
    class OrderSent: ...

    @message("order.sent")
    @dataclass
    class ParcelSent: ...

    @event_handler
    def one(event: OrderSent) -> None: ...

    @event_handler
    def two(event: ParcelSent) -> None: ...

    registry = registry_of(one, two)
    text = (
        f"Two message classes are named 'order.sent': {__name__}."
        f"{OrderSent.__qualname__} and {__name__}.{ParcelSent.__qualname__}. Give each "
        f"its own name with @message. (django_cqrs.E008)"
    )

    assert [str(problem) for problem in registry.routes.problems] == [text]
    with pytest.raises(InvalidHandler) as caught:
        registry.event_bus.publish({}, route="order.sent")
    assert str(caught.value) == text
    with pytest.raises(InvalidHandler) as caught:
        registry.event_bus.publish(ParcelSent())
    assert str(caught.value) == text


def test_an_alias_is_no_route():
    """`aliases=` of @message name stored messages; they route nothing. [B05.5]"""

    @message("order.returned", aliases=["order.back"])
    @dataclass
    class OrderReturned:
        number: int = 0

    seen = []

    @event_handler("order.back")
    def by_alias(event: object) -> None:
        seen.append("alias")

    @event_handler
    def by_class(event: OrderReturned) -> None:
        seen.append("class")

    bus = registry_of(by_alias, by_class).event_bus
    bus.publish(OrderReturned())

    assert seen == ["class"]


@pytest.mark.parametrize("outermost", ["message", "dataclass"])
def test_a_name_and_slots_in_either_order(outermost):
    """@dataclass(slots=True) makes a second class, which has the name all the same. [B05.5]"""
    if outermost == "message":

        @message("order.slotted")
        @dataclass(slots=True)
        class Slotted:
            number: int = 0

    else:

        @dataclass(slots=True)
        @message("order.slotted")
        class Slotted:
            number: int = 0

    seen = []

    @event_handler
    def by_class(event: Slotted) -> None:
        seen.append("class")

    @event_handler("order.*")
    def by_pattern(event: object) -> None:
        seen.append("pattern")

    registry = registry_of(by_class, by_pattern)
    registry.event_bus.publish(Slotted(1))
    registry.event_bus.publish({"number": 1}, route="order.slotted")

    assert rules_of(registry) == []
    assert seen == ["class", "pattern", "class", "pattern"]


def test_the_copies_that_slots_leave_behind_do_not_clash():
    """The class from before @dataclass(slots=True) lives on as a subclass: no clash. [B05.5]"""

    class Happened: ...

    @dataclass(slots=True)
    @message("order.slotted")
    class Slotted(Happened):
        number: int = 0

    seen = []

    @event_handler
    def handle(event: Happened) -> None:
        seen.append(event)

    registry = registry_of(handle)
    registry.event_bus.publish({"number": 1}, route="order.slotted")

    assert len(Happened.__subclasses__()) == 2
    assert rules_of(registry) == []
    assert seen == [Slotted(1)]


def test_a_message_class_can_be_added_by_itself():
    """A registry learns a name that stands in no annotation from the class. [B05.5]"""
    seen = []

    @event_handler("order.placed")
    def handle(event: object) -> None:
        seen.append(event)

    registry = registry_of(handle, OrderPlaced)
    registry.event_bus.publish({"number": 1}, route="order.placed")

    assert seen == [OrderPlaced(1)]


@pytest.mark.parametrize("name", ["", None, 5, Shipped])
def test_a_message_needs_a_name(name):
    """@message without a name is refused where it stands. [B05.5]"""
    with pytest.raises(TypeError) as caught:
        message(name)

    assert str(caught.value) == (
        f'@message takes the name: @message("order.placed"), not {name!r}.'
    )


# B05.6 ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("published", ["object", "dict"])
@pytest.mark.parametrize("taken", ["class", "object", "dict"])
def test_published_by_name_each_way_gives_one_call(published, taken, is_named):
    """An object or dict, published by name, is one call with what the handler takes. [B05.6]"""
    cls = OrderPlaced if is_named else Shipped
    annotation = {"class": cls, "object": object, "dict": dict}[taken]
    payload = cls(1) if published == "object" else {"number": 1}
    seen = []

    def handle(event):
        seen.append(event)

    handle.__annotations__["event"] = annotation
    registry = registry_of(event_handler("order.placed")(handle))
    if is_named:
        registry.add(OrderPlaced)
    registry.event_bus.publish(payload, route="order.placed")

    as_object, as_dict = cls(1), {"number": 1}
    if is_named:
        as_dict["lines"] = []
    expected = {
        "class": as_object,
        "dict": as_dict,
        # Without a class of that name, nothing says what a dict would become.
        "object": as_object if is_named else payload,
    }[taken]
    assert seen == [expected]
    assert type(seen[0]) is type(expected)


@pytest.mark.parametrize("taken", ["class", "object", "dict"])
def test_published_by_class_each_handler_of_the_name_is_called(taken):
    """A named class's object, published without a key, is one call as well. [B05.6]"""
    annotation = {"class": OrderPlaced, "object": object, "dict": dict}[taken]
    seen = []

    def handle(event):
        seen.append(event)

    handle.__annotations__["event"] = annotation
    bus = registry_of(event_handler("order.placed")(handle)).event_bus
    bus.publish(OrderPlaced(1))

    assert seen == [{"number": 1, "lines": []} if taken == "dict" else OrderPlaced(1)]


def test_each_handler_of_a_name_converts_for_itself():
    """By a name that no class has, each handler gets what its annotation says. [B05.6]"""

    @dataclass
    class Other:
        number: str = ""

    seen = []

    @event_handler("order.shipped")
    def one(event: Shipped) -> None:
        seen.append(event)

    @event_handler("order.shipped")
    def two(event: Other) -> None:
        seen.append(event)

    @event_handler("order.*")
    def three(event: dict[str, Any]) -> None:
        seen.append(event)

    registry_of(one, two, three).event_bus.publish(
        '{"number": 1}', route="order.gone", content_type=JSON
    )
    assert seen == [{"number": 1}]
    seen.clear()
    registry_of(one, three).event_bus.publish({"number": "1"}, route="order.shipped")
    assert seen == [Shipped(1), {"number": "1"}]
    seen.clear()
    registry_of(two).event_bus.publish({"number": "1"}, route="order.shipped")
    assert seen == [Other("1")]


@pytest.mark.parametrize(
    "publish",
    [
        lambda bus: bus.publish({"number": "x"}, route="order.shipped"),
        lambda bus: bus.publish("{", route="order.shipped", content_type=JSON),
        lambda bus: bus.publish(route="order.shipped"),
    ],
    ids=["wrong", "broken", "missing"],
)
def test_where_one_handler_cannot_take_it_none_is_called(publish):
    """All are converted before the first is called. [B05.6]"""
    seen = []

    @event_handler("order.shipped")
    def first() -> None:
        seen.append("first")

    @event_handler("order.shipped", priority=-1)
    def second(event: Shipped) -> None:
        seen.append("second")

    with pytest.raises(MessageConversionError):
        publish(registry_of(first, second).event_bus)

    assert seen == []


def test_an_object_that_a_handler_of_its_name_cannot_take_calls_nobody():
    """A named object that one handler's type refuses raises before the first call. [B05.6]"""
    seen = []

    @event_handler("order.placed", priority=1)
    def first(event: object) -> None:
        seen.append("first")

    @event_handler("order.placed")
    def second(event: Shipped) -> None:
        seen.append("second")

    with pytest.raises(MessageConversionError, match="the payload to Shipped"):
        registry_of(first, second).event_bus.publish(OrderPlaced(1))

    assert seen == []


def test_the_json_form_is_nobody_elses():
    """What one handler does to its dict, no other handler sees. [B05.6]"""
    seen = []

    @event_handler("order.placed")
    def first(event: dict[str, Any]) -> None:
        event["number"] = 99

    @event_handler("order.placed")
    def second(event: dict[str, Any]) -> None:
        seen.append(event["number"])

    @event_handler
    def third(event: OrderPlaced) -> None:
        seen.append(event.number)

    registry_of(first, second, third).event_bus.publish(OrderPlaced(1))

    assert seen == [1, 1]


def test_a_converted_event_is_the_same_message():
    """A handler that gets the JSON form sees the identity and headers of the one event. [B05.6]"""
    seen = []

    @event_handler("order.placed")
    def first(event: dict[str, Any], message: Message) -> None:
        seen.append((message.message_id, message.headers["source"], message.payload))

    @event_handler
    def second(event: OrderPlaced, message: Message) -> None:
        seen.append((message.message_id, message.headers["source"], message.payload))

    registry_of(first, second).event_bus.publish(
        OrderPlaced(1), headers={"source": "web"}
    )

    assert seen[0][0] == seen[1][0]
    assert [each[1] for each in seen] == ["web", "web"]
    assert [each[2] for each in seen] == [{"number": 1, "lines": []}, OrderPlaced(1)]


# B06 ------------------------------------------------------------------------------


def ordered(*specs):
    """Return the order in which handlers of these priorities are called."""
    seen = []

    def make(number, priority):
        def handle(event: Shipped) -> None:
            seen.append(number)

        return event_handler(name=f"tests.{number}", priority=priority)(handle)

    registry_of(*(make(n, p) for n, p in enumerate(specs))).event_bus.publish(Shipped())
    return seen


@pytest.mark.parametrize(
    ("priorities", "order"),
    [
        ([None, None, None], [0, 1, 2]),
        ([1, 2, 3], [2, 1, 0]),
        ([-1, None, 1], [2, 1, 0]),
        ([0, None, 0], [0, 1, 2]),
        ([None, -5, None, -5], [0, 2, 1, 3]),
        ([5, -5, 5, 0], [0, 2, 3, 1]),
    ],
)
def test_higher_priority_first_then_registration(priorities, order):
    """Higher first, 0 by default, negative last; ties in order of registration. [B06.1]"""
    assert ordered(*priorities) == order


def test_priority_counts_among_all_routes():
    """Class, base, name, pattern and object handlers stand in one order. [B06.1]"""
    seen = []

    @event_handler
    def of_object(event: object) -> None:
        seen.append("object")

    @event_handler("order.*", priority=2)
    def of_pattern(event: object) -> None:
        seen.append("pattern")

    @event_handler("order.placed", priority=-1)
    def of_name(event: dict[str, Any]) -> None:
        seen.append("name")

    @event_handler(priority=1)
    def of_class(event: OrderPlaced) -> None:
        seen.append("class")

    @service
    class Service:
        @event_handler(priority=3)
        def first(self, event: OrderPlaced) -> None:
            seen.append("method")

        @event_handler
        def last(self, event: OrderPlaced) -> None:
            seen.append("method without priority")

    bus = registry_of(of_object, of_pattern, of_name, of_class, Service).event_bus
    expected = [
        "method",
        "pattern",
        "class",
        "object",
        "method without priority",
        "name",
    ]
    bus.publish(OrderPlaced())
    assert seen == expected
    seen.clear()
    bus.publish({}, route="order.placed")
    assert seen == expected


def test_priority_counts_among_handlers_of_a_name_without_class():
    """Published by a name that no class has, handlers stand in the same order. [B06.1]"""
    seen = []

    @event_handler("order.shipped", priority=-1)
    def last() -> None:
        seen.append("last")

    @event_handler("*")
    def middle() -> None:
        seen.append("middle")

    @event_handler("order.shipped", priority=1)
    def first() -> None:
        seen.append("first")

    registry_of(last, middle, first).event_bus.publish(route="order.shipped")

    assert seen == ["first", "middle", "last"]


def test_inheritance_changes_no_order():
    """Handlers of bases and of the class itself are called as they were registered. [B06.3]"""
    seen = []

    @event_handler
    def of_base(event: OrderPlaced) -> None:
        seen.append("base")

    @event_handler
    def of_derived(event: GiftPlaced) -> None:
        seen.append("derived")

    @event_handler
    def of_object(event: object) -> None:
        seen.append("object")

    for order in (
        [of_base, of_derived, of_object],
        [of_derived, of_object, of_base],
        [of_object, of_base, of_derived],
    ):
        seen.clear()
        registry_of(*order).event_bus.publish(GiftPlaced())
        assert seen == [each.__name__.removeprefix("of_") for each in order]


def test_inherited_handlers_of_a_service_come_base_first():
    """A service's handlers stand as they are written, its base's before its own. [B06.3]"""
    seen = []

    class Base:
        @event_handler
        def one(self, event: Shipped) -> None:
            seen.append("one")

        @event_handler
        def two(self, event: Shipped) -> None:
            seen.append("two")

    @service
    class Derived(Base):
        @event_handler
        def three(self, event: Shipped) -> None:
            seen.append("three")

        @event_handler
        def one(self, event: Shipped) -> None:
            seen.append("one again")

    registry_of(Derived).event_bus.publish(Shipped())

    assert seen == ["one again", "two", "three"]


# B07 ------------------------------------------------------------------------------


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_the_second_of_three_handlers_raises():
    """The third is not called, the same exception arrives, and all writes are gone. [B07.1]"""
    error = RuntimeError("out of stock")

    @event_handler
    def first(event: OrderPlaced) -> None:
        Note.objects.create(text="first")

    @event_handler
    def second(event: OrderPlaced) -> None:
        Note.objects.create(text="second")
        raise error

    @event_handler
    def third(event: OrderPlaced) -> None:
        Note.objects.create(text="third")
        calls.append("third")

    @command_handler
    def place(command: PlaceOrder, events: EventBus) -> None:
        Note.objects.create(text="command")
        events.publish(OrderPlaced(command.number))
        calls.append("after")

    calls = []
    bus = registry_of(first, second, third, place).command_bus
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            bus.dispatch(PlaceOrder())

        assert caught.value is error
        assert calls == []
        assert texts() == []
        assert not connection.in_atomic_block


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_all_succeed_and_all_stay():
    """Where none raises, the writes of the command and of all handlers commit. [B07.1]"""

    @event_handler
    def first(event: OrderPlaced) -> None:
        assert connection.in_atomic_block
        Note.objects.create(text="first")

    @event_handler("order.placed")
    def second(event: dict[str, Any]) -> None:
        Note.objects.create(text="second")

    @command_handler
    def place(command: PlaceOrder, events: EventBus) -> None:
        Note.objects.create(text="command")
        events.publish(OrderPlaced(command.number))

    registry_of(first, second, place).command_bus.dispatch(PlaceOrder())

    assert texts() == ["command", "first", "second"]


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_outside_a_command_earlier_writes_stay():
    """An event published in no transaction opens none: what was written is written. [B07.1]"""

    @event_handler
    def first(event: OrderPlaced) -> None:
        assert not connection.in_atomic_block
        Note.objects.create(text="first")

    @event_handler
    def second(event: OrderPlaced) -> None:
        raise RuntimeError("out of stock")

    with pytest.raises(RuntimeError, match="out of stock"):
        registry_of(first, second).event_bus.publish(OrderPlaced())

    assert texts() == ["first"]


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_a_failing_command_of_a_handler_fails_the_first_command():
    """A failure two messages deep undoes everything above it. [B07.1]"""

    @dataclass
    class Reserve:
        number: int = 0

    @command_handler
    def reserve(command: Reserve) -> None:
        Note.objects.create(text="reserve")
        raise RuntimeError("out of stock")

    @event_handler
    def on_placed(event: OrderPlaced, commands: CommandBus) -> None:
        Note.objects.create(text="event")
        commands.dispatch(Reserve(event.number))

    @command_handler
    def place(command: PlaceOrder, events: EventBus) -> None:
        Note.objects.create(text="command")
        events.publish(OrderPlaced(command.number))

    with pytest.raises(RuntimeError, match="out of stock"):
        registry_of(reserve, on_placed, place).command_bus.dispatch(PlaceOrder())

    assert texts() == []


def failing_pair():
    @event_handler
    def first(event: OrderPlaced) -> None:
        Note.objects.create(text="first")

    @event_handler
    def second(event: OrderPlaced) -> None:
        Note.objects.create(text="second")
        raise RuntimeError("out of stock")

    return first, second


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_a_caught_publish_keeps_what_earlier_handlers_wrote():
    """`publish` makes no savepoint: who catches its failure keeps the writes. [B07.3]"""

    @command_handler
    def place(command: PlaceOrder, events: EventBus) -> None:
        Note.objects.create(text="command")
        with pytest.raises(RuntimeError, match="out of stock"):
            events.publish(OrderPlaced())
        Note.objects.create(text="after")

    registry_of(*failing_pair(), place).command_bus.dispatch(PlaceOrder())

    assert texts() == ["command", "first", "second", "after"]


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_a_publish_wrapped_in_atomic_keeps_nothing():
    """Wrapped in `atomic()`, a failed publish leaves nothing of its handlers. [B07.3]"""

    @command_handler
    def place(command: PlaceOrder, events: EventBus) -> None:
        Note.objects.create(text="command")
        with (
            pytest.raises(RuntimeError, match="out of stock"),
            transaction.atomic(),
        ):
            events.publish(OrderPlaced())
        Note.objects.create(text="after")

    registry_of(*failing_pair(), place).command_bus.dispatch(PlaceOrder())

    assert texts() == ["command", "after"]


# Bad input ------------------------------------------------------------------------


def test_a_broken_handler_is_not_passed_over():
    """Publishing raises a broken handler's text, and calls none of the others."""
    seen = []

    @event_handler
    def sound(event: Shipped) -> None:
        seen.append(event)

    @event_handler
    def broken(event: Shipped, number: int) -> None: ...

    registry = registry_of(sound, broken)
    with pytest.raises(InvalidHandler) as caught:
        registry.event_bus.publish(Shipped())

    assert str(caught.value) == (
        "Nothing can fill the parameter 'number' of "
        f"{__name__}.{broken.__qualname__}: int is neither a mark nor a class to "
        "build. Annotate it as described in the reference of parameters, or give it "
        "a default. (django_cqrs.E005)"
    )
    assert seen == []


def test_a_handler_whose_annotations_cannot_be_read_is_not_passed_over():
    """An unreadable handler that names the event's class raises; others are heard."""
    seen = []

    @event_handler
    def broken(event: "Shipped", other: "Missing") -> None: ...  # noqa: F821

    @event_handler
    def sound(event: OrderPlaced) -> None:
        seen.append(event)

    registry = registry_of(broken, sound)
    with pytest.raises(InvalidHandler) as caught:
        registry.event_bus.publish(Shipped())
    registry.event_bus.publish(OrderPlaced(1))

    assert str(caught.value) == str(registry.routes.problems[0])
    assert rules_of(registry) == [Rule.UNREADABLE_SIGNATURE]
    assert seen == [OrderPlaced(1)]


def test_a_missing_header_names_handler_and_header():
    """A header that a handler requires is named with the handler and the cure."""

    @event_handler
    def handle(event: Shipped, executor: Annotated[int, Header("executor_id")]) -> None:
        pytest.fail("called")

    with pytest.raises(MissingHeader) as caught:
        registry_of(handle).event_bus.publish(Shipped())

    assert str(caught.value) == (
        f"{__name__}.{handle.__qualname__} requires the header 'executor_id', but the "
        "message does not have it. Give it with headers={'executor_id': ...}, or "
        "give the parameter 'executor' a default."
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {},
            "event_bus.publish() needs a payload, or route= with an optional payload.",
        ),
        (
            {"payload": Shipped},
            (
                "event_bus.publish() takes an instance, Shipped(...), not the class "
                "Shipped."
            ),
        ),
        (
            {"payload": "{}", "content_type": JSON},
            (
                "event_bus.publish(content_type=...) also needs route=: the text "
                "does not name its handler."
            ),
        ),
        (
            {"payload": Shipped(), "route": Shipped},
            f"route= must be a routing key (a string), not {Shipped!r}.",
        ),
    ],
    ids=["nothing", "class", "text", "route"],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments, text):
    """A mistake in the call raises one error and calls nobody."""

    @event_handler
    def handle(event: object) -> None:
        pytest.fail("called")

    with pytest.raises(InvalidOption) as caught:
        registry_of(handle).event_bus.publish(**arguments)

    assert str(caught.value) == text


def test_options_of_a_channel_are_refused_where_there_is_none():
    """delay=, expires= and priority= are refused for handlers that are called at once."""

    @event_handler
    def handle(event: Shipped) -> None:
        pytest.fail("called")

    bus = registry_of(handle).event_bus
    for option in ("delay", "expires", "priority"):
        with pytest.raises(InvalidOption, match=f"^{option}= cannot be given to "):
            bus.publish(Shipped(), **{option: 1})


def test_a_dependency_is_made_once_for_all_handlers_of_an_event():
    """Depends is once per message: the handlers of one event share it."""
    made, closed = [], []

    def connect():
        made.append(len(made))
        yield made[-1]
        closed.append(len(closed))

    seen = []

    @event_handler
    def one(event: Shipped, number: Annotated[int, Depends(connect)]) -> None:
        seen.append((number, list(closed)))

    @event_handler
    def two(event: Shipped, number: Annotated[int, Depends(connect)]) -> None:
        seen.append((number, list(closed)))

    bus = registry_of(one, two).event_bus
    bus.publish(Shipped())
    bus.publish(Shipped())

    assert seen == [(0, []), (0, []), (1, [0]), (1, [0])]
    assert closed == [0, 1]


def test_an_event_published_while_another_is_handled_is_handled_first():
    """Publishing is a call: the inner event's handlers finish before the outer goes on."""
    seen = []

    @event_handler(priority=1)
    def on_placed(event: OrderPlaced, events: EventBus) -> None:
        seen.append("placed begins")
        events.publish(Shipped())
        seen.append("placed ends")

    @event_handler
    def on_placed_too(event: OrderPlaced) -> None:
        seen.append("placed too")

    @event_handler
    def on_shipped(event: Shipped) -> None:
        seen.append("shipped")

    registry_of(on_placed, on_placed_too, on_shipped).event_bus.publish(OrderPlaced())

    assert seen == ["placed begins", "shipped", "placed ends", "placed too"]


def test_events_may_be_any_object():
    """Strings, dicts and exceptions are events too: by class, like all others."""
    seen = []

    @event_handler
    def of_text(event: str) -> None:
        seen.append(event)

    @event_handler
    def of_dict(event: dict) -> None:
        seen.append(event)

    @event_handler
    def of_error(event: Exception) -> None:
        seen.append(type(event))

    bus = registry_of(of_text, of_dict, of_error).event_bus
    bus.publish("text")
    bus.publish({"a": 1})
    bus.publish(KeyError("x"))
    bus.publish("")

    assert seen == ["text", {"a": 1}, KeyError, ""]


def test_a_mutable_event_is_shared():
    """Handlers get the object itself: what one changes, the next one sees."""

    @dataclass
    class Collected:
        names: list[str] = field(default_factory=list)

    @event_handler
    def one(event: Collected) -> None:
        event.names.append("one")

    @event_handler
    def two(event: Collected) -> None:
        event.names.append("two")

    event = Collected()
    registry_of(one, two).event_bus.publish(event)

    assert asdict(event) == {"names": ["one", "two"]}


def test_an_event_published_again_by_its_name_reaches_the_handlers_of_the_moment():
    """What a name has led to is remembered, with headers or not, until handlers change."""
    seen = []

    @event_handler("moment.*")
    def of_pattern(event: Any, message: Message) -> None:
        seen.append(("pattern", event, dict(message.headers).get("by")))

    @event_handler("moment.passed")
    def of_number(number: int) -> None:
        seen.append(("number", number))

    registry = registry_of(of_pattern, of_number)
    bus = registry.event_bus
    for _ in range(2):
        seen.clear()
        bus.publish(1, route="moment.passed")
        bus.publish(2, route="moment.passed", headers={"by": "me"})
        bus.publish("3", route="moment.passed")  # of a type that one has to convert
        bus.publish(4, route="moment.other")
        assert seen == [
            ("pattern", 1, None),
            ("number", 1),
            ("pattern", 2, "me"),
            ("number", 2),
            ("pattern", "3", None),
            ("number", 3),
            ("pattern", 4, None),
        ]
        with pytest.raises(MessageConversionError):
            bus.publish("x", route="moment.passed")

    @event_handler("moment.passed")
    def late(event: Any) -> None:
        seen.append(("late", event))

    registry.add(late)
    seen.clear()
    bus.publish(1, route="moment.passed")
    assert seen == [("pattern", 1, None), ("number", 1), ("late", 1)]


def test_an_event_published_again_with_headers_reaches_its_handlers():
    """By its class and by its name, an object of a subclass likewise."""
    seen = []

    @event_handler
    def handle(event: OrderPlaced, message: Message) -> None:
        seen.append((type(event).__name__, dict(message.headers).get("by")))

    bus = registry_of(handle).event_bus
    for _ in range(2):
        seen.clear()
        for event in (OrderPlaced(1), GiftPlaced(2)):
            bus.publish(event)
            bus.publish(event, headers={"by": "me"})
            bus.publish(event, headers={"by": "me"}, route="order.placed")
        assert seen == [
            (name, by)
            for name in ("OrderPlaced", "GiftPlaced")
            for by in (None, "me", "me")
        ]
        with pytest.raises(InvalidHeader):
            bus.publish(OrderPlaced(1), headers={"timestamp": 1})


def test_names_that_a_pattern_matches_are_not_remembered_without_end():
    """A caller may choose them freely."""

    @event_handler("chosen.*")
    def handle(event: Any) -> None:
        pass

    bus = registry_of(handle).event_bus
    bus.publish(0, route="chosen.first")
    bus.publish(0, route="unknown.first")
    compiled = len(bus._compiled)
    for number in range(3 * MOST_KEYS):
        bus.publish(number, route=f"chosen.{number}")
        bus.publish(number, route=f"unknown.{number}")

    assert 0 < len(bus._by_key) <= MOST_KEYS
    assert len(bus._compiled) == compiled
