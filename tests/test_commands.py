"""Commands: by class and by key, their payloads, their results, their errors."""

import functools
import gc
import inspect
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import (
    Annotated,
    Any,
    Generic,
    NamedTuple,
    NewType,
    Protocol,
    TypeVar,
    runtime_checkable,
)
from uuid import UUID

import pydantic
import pytest
from django.db import transaction
from typing_extensions import TypedDict

from django_cqrs import (
    Command,
    CommandBus,
    EventBus,
    Header,
    QueryBus,
    Registry,
    command_bus,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.conversion import converter
from django_cqrs.exceptions import (
    CQRSError,
    DuplicateHandler,
    InvalidHandler,
    InvalidOption,
    MessageConversionError,
    NoHandlerFound,
)
from django_cqrs.interception import before, pointcut
from django_cqrs.problems import Rule
from tests.limits import LIMIT
from tests.support import faults_of, registry_of, rules_of
from tests.testapp import handlers
from tests.testapp.messages import OpenTicket
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db

JSON = "application/json"


def place_of(function):
    code = inspect.unwrap(function).__code__
    name = f"{function.__module__}.{function.__qualname__}"
    return f"{name} ({code.co_filename}:{code.co_firstlineno})"


@dataclass(frozen=True, slots=True)
class Open:
    title: str
    priority: int = 3


@dataclass(frozen=True)
class Close:
    number: int


# B01 ------------------------------------------------------------------------------


def test_the_very_object_reaches_the_handler_of_an_installed_app():
    """A handler in an app's handlers module is called once, with the same object. [B01.1]"""
    handlers.seen.clear()
    command = OpenTicket("broken lamp")

    command_bus.dispatch(command)

    assert len(handlers.seen) == 1
    assert handlers.seen[0] is command


def test_a_command_is_not_converted():
    """Sent by class, a command is not validated: whoever made it answers for it. [B01.1]"""
    seen = []

    @command_handler
    def open_ticket(command: Open) -> None:
        seen.append(command)

    command = Open(title=17, priority="high")
    registry_of(open_ticket).command_bus.dispatch(command)

    assert seen == [command]
    assert seen[0] is command


def test_adding_a_handler_twice_registers_it_once():
    """The same function added again changes nothing. [B01.2]"""

    @command_handler
    def open_ticket(command: Open) -> str:
        return command.title

    registry = registry_of(open_ticket, open_ticket)

    assert len(registry.routes.endpoints) == 1
    assert registry.command_bus.dispatch(Open("x")) == "x"


def test_a_handler_added_later_is_found():
    """A registry that was used takes more handlers. [B01.2]"""
    registry = Registry()
    with pytest.raises(NoHandlerFound):
        registry.command_bus.dispatch(Open("x"))

    @registry.add
    @command_handler
    def open_ticket(command: Open) -> str:
        return command.title

    assert registry.command_bus.dispatch(Open("x")) == "x"


def test_one_class_holds_several_handlers():
    """A service's methods are handlers: of the instance, the class, or neither. [B01.3]"""

    @service
    class Tickets:
        def __init__(self) -> None:
            self.opened = []

        @command_handler
        def open(self, command: Open) -> int:
            self.opened.append(command.title)
            return len(self.opened)

        @command_handler
        @classmethod
        def close(cls, command: Close) -> str:
            return f"{cls.__name__} {command.number}"

        @staticmethod
        @command_handler("ticket.ping")
        def ping() -> str:
            return "pong"

    bus = registry_of(Tickets).command_bus

    assert bus.dispatch(Open("x")) == 1
    assert bus.dispatch(Open("y")) == 2
    assert bus.dispatch(Close(7)) == "Tickets 7"
    assert bus.dispatch(route="ticket.ping") == "pong"


def test_classmethod_works_in_either_order():
    """@classmethod and @staticmethod stand above or below the handler decorator. [B01.3]"""

    @service
    class Tickets:
        @classmethod
        @command_handler
        def open(cls, command: Open) -> str:
            return f"{cls.__name__} opens {command.title}"

        @command_handler
        @classmethod
        def close(cls, command: Close) -> str:
            return f"{cls.__name__} closes {command.number}"

        @command_handler("one")
        @staticmethod
        def one(number: int) -> int:
            return number

        @staticmethod
        @command_handler("two")
        def two(number: int) -> int:
            return number * 2

    bus = registry_of(Tickets).command_bus

    assert bus.dispatch(Open("x")) == "Tickets opens x"
    assert bus.dispatch(Close(7)) == "Tickets closes 7"
    assert bus.dispatch(4, route="one") == 4
    assert bus.dispatch(4, route="two") == 8


def test_a_class_needs_no_base_class():
    """Services and messages have no base but object. [B01.3]"""

    @service
    class Tickets:
        @command_handler
        def open(self, command: Open) -> str:
            return command.title

    assert Tickets.__bases__ == (object,)
    assert Open.__bases__ == (object,)
    assert registry_of(Tickets).command_bus.dispatch(Open("x")) == "x"


def test_a_dataclass_with_slots_is_a_service():
    """@service outermost registers the class that @dataclass(slots=True) makes. [B01.3]"""

    @service
    @dataclass(slots=True)
    class Tickets:
        opened: int = 0

        @command_handler
        def open(self, command: Open) -> int:
            self.opened += 1
            return self.opened

    bus = registry_of(Tickets).command_bus

    assert bus.dispatch(Open("x")) == 1
    assert bus.dispatch(Open("x")) == 2


def test_two_handlers_for_a_class_are_a_check_and_raise():
    """A second handler of a class is a check and raises, naming both places. [B01.4]"""

    @command_handler
    def one(command: Open) -> None:
        Note.objects.create(text="one")

    @command_handler
    def two(command: Open) -> None:
        Note.objects.create(text="two")

    registry = registry_of(one, two)
    text = (
        f"Open has more than one command handler: {place_of(one)} and "
        f"{place_of(two)}. Keep one: a command has exactly one handler; only an event "
        "may have several. (django_cqrs.E001)"
    )
    with pytest.raises(DuplicateHandler) as caught:
        registry.command_bus.dispatch(Open("x"))

    assert str(caught.value) == text
    assert [str(problem) for problem in registry.routes.problems] == [text]
    assert Note.objects.count() == 0


def test_two_handlers_for_a_key_are_a_check_and_raise():
    """A second handler of a key is a check and raises, naming both places. [B01.4]"""

    @command_handler("ticket.close")
    def one() -> None:
        Note.objects.create(text="one")

    @command_handler("ticket.close")
    def two() -> None:
        Note.objects.create(text="two")

    registry = registry_of(one, two)
    text = (
        f"'ticket.close' has more than one command handler: {place_of(one)} and "
        f"{place_of(two)}. Keep one: a command has exactly one handler; only an event "
        "may have several. (django_cqrs.E001)"
    )
    with pytest.raises(DuplicateHandler) as caught:
        registry.command_bus.dispatch(route="ticket.close")

    assert str(caught.value) == text
    assert [str(problem) for problem in registry.routes.problems] == [text]
    assert Note.objects.count() == 0


def test_a_duplicate_raises_every_time():
    """A duplicate does not become one of the two at the second try. [B01.4]"""

    @command_handler
    def one(command: Open) -> None: ...

    @command_handler
    def two(command: Open) -> None: ...

    bus = registry_of(one, two).command_bus

    for _ in range(3):
        with pytest.raises(DuplicateHandler):
            bus.dispatch(Open("x"))


def test_a_name_and_a_class_that_meet_are_a_duplicate():
    """A class's own name and the class itself are one route: two handlers are many. [B01.4]"""

    @message("ticket.meet")
    @dataclass
    class Meet:
        number: int = 0

    @command_handler
    def by_class(command: Meet) -> None: ...

    @command_handler("ticket.meet")
    def by_name(command: Meet) -> None: ...

    registry = registry_of(by_class, by_name)
    with pytest.raises(DuplicateHandler, match="Meet has more than one command"):
        registry.command_bus.dispatch(Meet())

    assert rules_of(registry) == [Rule.DUPLICATE_HANDLER]


def test_the_kinds_do_not_meet():
    """A command, a query and an event handler of one class are no duplicates. [B01.4]"""

    @command_handler
    def command(message: Open) -> str:
        return "command"

    @query_handler
    def query(message: Open) -> str:
        return "query"

    @event_handler
    def event(message: Open) -> None: ...

    registry = registry_of(command, query, event)

    assert rules_of(registry) == []
    assert registry.command_bus.dispatch(Open("x")) == "command"
    assert registry.query_bus.ask(Open("x")) == "query"


def test_no_handler_names_the_class():
    """A command without a handler raises, with its class and what to look at. [B01.5]"""
    with pytest.raises(NoHandlerFound) as caught:
        Registry().command_bus.dispatch(Open("x"))

    assert str(caught.value) == (
        "No command handler takes Open. Check that it is decorated and in the "
        "handlers module of an installed app."
    )
    assert isinstance(caught.value, CQRSError)
    assert isinstance(caught.value, LookupError)


def test_no_handler_suggests_a_near_class():
    """Where a class of nearly the same name is handled, it is suggested. [B01.5]"""

    @dataclass
    class OpenTickets:
        title: str = ""

    @dataclass
    class OpenTicket:
        title: str = ""

    @command_handler
    def handle(command: OpenTicket) -> None: ...

    with pytest.raises(NoHandlerFound) as caught:
        registry_of(handle).command_bus.dispatch(OpenTickets())

    assert str(caught.value) == (
        "No command handler takes OpenTickets. Did you mean OpenTicket?"
    )


def test_no_handler_tells_two_classes_of_one_name_apart():
    """Where another class of the very name is handled, its module is said. [B01.5]"""

    @dataclass
    class OpenTicket:
        title: str = ""

    @command_handler
    def handle(command: OpenTicket) -> None: ...

    other = globals()["OpenTicket"]
    with pytest.raises(NoHandlerFound) as caught:
        registry_of(handle).command_bus.dispatch(other("x"))

    assert str(caught.value) == (
        f"No command handler takes OpenTicket. Did you mean {__name__}."
        f"{OpenTicket.__qualname__}?"
    )


def test_an_unknown_key_suggests_a_near_key():
    """An unknown routing key raises, with the key that was probably meant. [B01.5]"""

    @command_handler("ticket.close")
    def close() -> None:
        Note.objects.create(text="closed")

    bus = registry_of(close).command_bus
    with pytest.raises(NoHandlerFound) as near:
        bus.dispatch(route="ticket.clsoe")
    with pytest.raises(NoHandlerFound) as far:
        bus.dispatch({"title": "x"}, route="invoice")

    assert str(near.value) == (
        "No command handler takes 'ticket.clsoe'. Did you mean 'ticket.close'?"
    )
    assert str(far.value) == (
        "No command handler takes 'invoice'. Check that it is decorated and in the "
        "handlers module of an installed app."
    )
    assert Note.objects.count() == 0


def test_the_wrong_bus_is_pointed_out():
    """A query or event given to dispatch is refused with the bus it belongs to. [B01.5]"""

    @query_handler
    def query(message: Open) -> None: ...

    @event_handler
    def event(message: Close) -> None: ...

    @query_handler("ticket.list")
    def by_key() -> None: ...

    bus = registry_of(query, event, by_key).command_bus
    with pytest.raises(NoHandlerFound) as of_query:
        bus.dispatch(Open("x"))
    with pytest.raises(NoHandlerFound) as of_event:
        bus.dispatch(Close(1))
    with pytest.raises(NoHandlerFound) as of_key:
        bus.dispatch(route="ticket.list")

    assert str(of_query.value) == (
        "No command handler takes Open. It is a query: use query_bus.ask()."
    )
    assert str(of_event.value) == (
        "No command handler takes Close. It is an event: use event_bus.publish()."
    )
    assert str(of_key.value) == (
        "No command handler takes 'ticket.list'. It is a query: use query_bus.ask()."
    )


def test_a_handler_of_a_base_class_takes_a_subclass():
    """An abstract base class's handler takes every class that derives from it. [B01.6]"""

    class Change(ABC):
        @abstractmethod
        def text(self) -> str: ...

    class Rename(Change):
        def text(self) -> str:
            return "renamed"

    @command_handler
    def change(command: Change) -> str:
        return command.text()

    assert registry_of(change).command_bus.dispatch(Rename()) == "renamed"


def test_the_nearest_class_wins():
    """Of handlers for a class, its parent and its grandparent, the nearest is called. [B01.6]"""

    class Base: ...

    class Middle(Base): ...

    class Leaf(Middle): ...

    class Other(Base): ...

    @command_handler
    def of_base(command: Base) -> str:
        return "base"

    @command_handler
    def of_middle(command: Middle) -> str:
        return "middle"

    registry = registry_of(of_base, of_middle)
    bus = registry.command_bus

    assert rules_of(registry) == []
    assert bus.dispatch(Leaf()) == "middle"
    assert bus.dispatch(Middle()) == "middle"
    assert bus.dispatch(Other()) == "base"
    assert bus.dispatch(Base()) == "base"


def test_two_equally_near_are_a_check_and_raise():
    """Handlers of two parents of one class are refused; one of its own settles it. [B01.6]"""

    class Left: ...

    class Right: ...

    class Both(Left, Right): ...

    @command_handler
    def of_left(command: Left) -> None: ...

    @command_handler
    def of_right(command: Right) -> None: ...

    @command_handler
    def of_both(command: Both) -> str:
        return "both"

    registry = registry_of(of_left, of_right)
    text = (
        f"Two command handlers are equally near to Both: {place_of(of_left)} and "
        f"{place_of(of_right)}. Write a handler for Both itself. (django_cqrs.E002)"
    )
    with pytest.raises(DuplicateHandler) as caught:
        registry.command_bus.dispatch(Both())

    assert str(caught.value) == text
    assert [str(problem) for problem in registry.routes.problems] == [text]
    registry.add(of_both)
    assert rules_of(registry) == []
    assert registry.command_bus.dispatch(Both()) == "both"


def test_one_handler_of_both_parents_is_not_two():
    """A handler typed with a union of two parents is near once, not twice. [B01.6]"""

    class Left: ...

    class Right: ...

    class Both(Left, Right): ...

    @command_handler
    def handle(command: Left | Right) -> str:
        return type(command).__name__

    registry = registry_of(handle)

    assert rules_of(registry) == []
    assert registry.command_bus.dispatch(Both()) == "Both"


def test_a_diamond_is_no_ambiguity():
    """A parent stands before a common grandparent, whichever way leads there. [B01.6]"""

    class Top: ...

    class Left(Top): ...

    class Right(Top): ...

    class Bottom(Left, Right): ...

    @command_handler
    def of_top(command: Top) -> str:
        return "top"

    @command_handler
    def of_right(command: Right) -> str:
        return "right"

    registry = registry_of(of_top, of_right)

    assert rules_of(registry) == []
    assert registry.command_bus.dispatch(Bottom()) == "right"
    assert registry.command_bus.dispatch(Left()) == "top"


def test_a_base_written_again_is_no_rival():
    """A parent's parent that is also written as a base stands behind the parent. [B01.6]"""

    class Top: ...

    class Middle(Top): ...

    class Bottom(Middle, Top): ...

    @command_handler
    def of_top(command: Top) -> str:
        return "top"

    @command_handler
    def of_middle(command: Middle) -> str:
        return "middle"

    registry = registry_of(of_top, of_middle)

    assert rules_of(registry) == []
    assert registry.command_bus.dispatch(Bottom()) == "middle"


def test_a_union_takes_each_member():
    """A handler typed `A | B` is the handler of both, in either spelling. [B01.6]"""

    @command_handler
    def handle(command: Open | Close) -> str:
        return type(command).__name__

    bus = registry_of(handle).command_bus

    assert bus.dispatch(Open("x")) == "Open"
    assert bus.dispatch(Close(1)) == "Close"


def test_object_and_protocols_come_last():
    """A class's handler stands before a Protocol's, and that before `object`'s. [B01.6]"""

    @runtime_checkable
    class Titled(Protocol):
        title: str

    @command_handler
    def of_object(command: object) -> str:
        return "object"

    @command_handler
    def of_titled(command: Titled) -> str:
        return "titled"

    @command_handler
    def of_open(command: Open) -> str:
        return "open"

    @dataclass
    class Rename:
        title: str = "x"

    @dataclass
    class Declared(Titled):
        title: str = "x"

    registry = registry_of(of_object, of_titled, of_open)
    bus = registry.command_bus

    assert rules_of(registry) == []
    assert bus.dispatch(Open("x")) == "open"
    assert bus.dispatch(Rename()) == "titled"
    assert bus.dispatch(Declared()) == "titled"
    assert bus.dispatch(Close(1)) == "object"


def test_a_protocol_that_a_class_derives_from_comes_last_too():
    """A base class stands before a Protocol, also where both are written as bases. [B01.6]"""

    @runtime_checkable
    class Titled(Protocol):
        title: str

    class Base: ...

    @dataclass
    class Rename(Titled, Base):
        title: str = "x"

    @command_handler
    def of_titled(command: Titled) -> str:
        return "titled"

    @command_handler
    def of_base(command: Base) -> str:
        return "base"

    registry = registry_of(of_titled, of_base)

    assert rules_of(registry) == []
    assert registry.command_bus.dispatch(Rename()) == "base"


def test_a_protocol_is_decided_on_the_first_object_and_remembered():
    """What the first object of a class says goes for all of the class. [B01.6]"""

    @runtime_checkable
    class Titled(Protocol):
        title: str

    class Loose: ...

    @command_handler
    def of_titled(command: Titled) -> str:
        return "titled"

    @command_handler
    def of_object(command: object) -> str:
        return "object"

    titled = Loose()
    titled.title = "x"
    bus = registry_of(of_titled, of_object).command_bus

    assert bus.dispatch(titled) == "titled"
    assert bus.dispatch(Loose()) == "titled"


def test_a_class_registered_with_an_abc_is_taken_by_its_handler():
    """A virtual subclass, which does not derive, is taken like a real one. [B01.6]"""

    class Change(ABC):
        @abstractmethod
        def text(self) -> str: ...

    @Change.register
    class Rename: ...

    @command_handler
    def change(command: Change) -> str:
        return "changed"

    assert registry_of(change).command_bus.dispatch(Rename()) == "changed"


def test_two_protocols_that_fit_are_refused():
    """Two Protocols that an object fits are equally near. [B01.6]"""

    @runtime_checkable
    class Titled(Protocol):
        title: str

    @runtime_checkable
    class Ranked(Protocol):
        priority: int

    @command_handler
    def of_titled(command: Titled) -> None: ...

    @command_handler
    def of_ranked(command: Ranked) -> None: ...

    with pytest.raises(DuplicateHandler, match="Open has more than one command"):
        registry_of(of_titled, of_ranked).command_bus.dispatch(Open("x"))


def test_a_protocol_that_isinstance_cannot_decide_is_a_check():
    """A Protocol that is not @runtime_checkable leads to no handler. [B01.6]"""

    class Titled(Protocol):
        title: str

    @command_handler
    def handle(command: Titled) -> None: ...

    registry = registry_of(handle)

    assert [str(problem) for problem in registry.routes.problems] == [
        (
            f"No message leads to {__name__}.{handle.__qualname__}: Titled is not "
            f"@runtime_checkable. Annotate the first parameter with a message class, or "
            f'give a routing key: ("ticket.close"). (django_cqrs.E007)'
        )
    ]


def test_a_class_with_type_parameters_is_a_check():
    """`Rename[int]` is not a class of any object; its dispatch says so. [B01.6]"""
    T = TypeVar("T")

    @dataclass
    class Rename(Generic[T]):
        value: T

    @command_handler
    def handle(command: Rename[int]) -> None: ...

    registry = registry_of(handle)
    with pytest.raises(InvalidHandler) as caught:
        registry.command_bus.dispatch(Rename(1))

    assert rules_of(registry) == [Rule.NO_ROUTE]
    assert str(caught.value) == str(registry.routes.problems[0])


def test_one_endpoint_name_for_two_functions_is_a_check():
    """Two functions of one name in one app need another `name=`; both raise. [B01.7]"""

    def first():
        @command_handler("one")
        def handle() -> None: ...

        return handle

    def second():
        @command_handler("two")
        def handle() -> None: ...

        return handle

    one, two = first(), second()
    registry = registry_of(one, two)
    text = (
        "Two handlers have the endpoint name 'tests.test_commands.handle': "
        f"{place_of(one)} and {place_of(two)}. Give one of them another name with "
        "name=. (django_cqrs.E004)"
    )
    with pytest.raises(InvalidHandler) as caught:
        registry.command_bus.dispatch(route="two")

    assert [str(problem) for problem in registry.routes.problems] == [text]
    assert str(caught.value) == text


def test_another_name_settles_it():
    """`name=` on one of two functions of one name makes both work. [B01.7]"""

    def make(key, name):
        @command_handler(key, name=name)
        def handle() -> str:
            return key

        return handle

    registry = registry_of(make("one", "tests.one"), make("two", "tests.two"))

    assert rules_of(registry) == []
    assert [e.name for e in registry.routes.endpoints] == ["tests.one", "tests.two"]
    assert registry.command_bus.dispatch(route="two") == "two"


def test_an_alias_is_a_name_too():
    """An old name kept by `aliases=` is not another handler's name. [B01.7]"""

    @command_handler("one", name="tests.new", aliases=["tests.old"])
    def one() -> None: ...

    @command_handler("two", name="tests.old")
    def two() -> None: ...

    assert rules_of(registry_of(one, two)) == [Rule.DUPLICATE_NAME]


def test_a_decorated_function_is_a_plain_function():
    """Called directly, a handler runs with no bus and takes any argument. [B01.8]"""

    def plain(command: Open, events: EventBus | None = None) -> str:
        return command.title

    decorated = command_handler(plain)

    assert decorated is plain
    assert decorated(Open("x")) == "x"
    assert decorated(command=Open("y"), events=None) == "y"


def test_a_decorated_method_is_a_plain_method():
    """Called directly, the methods of a service run with no bus. [B01.8]"""

    @service
    class Tickets:
        @command_handler
        def open(self, command: Open) -> str:
            return command.title

        @command_handler
        @classmethod
        def close(cls, command: Close) -> int:
            return command.number

    assert Tickets().open(Open("x")) == "x"
    assert Tickets.close(Close(1)) == 1


# What a user's own decorators do --------------------------------------------------


def doubled(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) * 2

    return wrapper


def test_a_decorator_above_ours_runs():
    """A wrapper made with functools.wraps is what is called, where it is added."""

    @doubled
    @command_handler
    def open_ticket(command: Open) -> str:
        return command.title

    assert registry_of(open_ticket).command_bus.dispatch(Open("x")) == "xx"


def test_a_decorator_below_ours_runs():
    """A wrapper below is seen through: the wrapped function's annotations count."""

    @command_handler
    @doubled
    @transaction.atomic
    def open_ticket(command: Open) -> str:
        return command.title

    assert registry_of(open_ticket).command_bus.dispatch(Open("x")) == "xx"


def test_a_decorator_between_ours_runs_once():
    """One between two of ours changes neither: there is one endpoint."""

    @command_handler("ticket.open")
    @doubled
    @command_handler
    def open_ticket(command: Open) -> str:
        return command.title

    registry = registry_of(open_ticket)

    assert len(registry.routes.endpoints) == 1
    assert registry.command_bus.dispatch(Open("x")) == "xx"
    assert registry.command_bus.dispatch(Open("x"), route="ticket.open") == "xx"


def test_a_decorator_above_a_method_runs():
    """A wrapped method of a service is called as wrapped."""

    @service
    class Tickets:
        @doubled
        @command_handler
        def open(self, command: Open) -> str:
            return command.title

    assert registry_of(Tickets).command_bus.dispatch(Open("x")) == "xx"


@pytest.mark.parametrize(
    "decorate",
    [command_handler, command_handler(), command_handler("x")],
    ids=["bare", "called", "keyed"],
)
@pytest.mark.parametrize(
    "target",
    [Open, functools.partial(print), 17, "x".join],
    ids=["class", "partial", "value", "built-in"],
)
def test_only_functions_are_decorated(decorate, target):
    """A class, a partial, a value or a built-in is refused where it is decorated."""
    with pytest.raises(TypeError) as caught:
        decorate(target)

    assert str(caught.value) == (
        f"@command_handler decorates a function or a method, not {target!r}."
    )


def test_an_undecorated_function_cannot_be_added():
    """A registry refuses what says nothing about messages."""

    def plain(command: Open) -> None: ...

    for target in (plain, Open):
        with pytest.raises(TypeError) as caught:
            Registry().add(target)

        assert str(caught.value) == (
            f"{target!r} is not decorated, so its messages are unknown. Use "
            "@command_handler, @query_handler or @event_handler."
        )


def test_service_decorates_classes_alone():
    """@service on a function is refused where it stands."""
    with pytest.raises(TypeError, match="@service decorates a class, not <function"):
        service(place_of)


# Inherited handlers ---------------------------------------------------------------


def test_a_service_inherits_handlers():
    """Handlers of an unmarked base belong to each class that is registered."""

    class Base:
        @command_handler
        def open(self, command: Open) -> str:
            return f"{type(self).__name__} {command.title}"

    @service
    class Tickets(Base):
        @command_handler
        def close(self, command: Close) -> str:
            return f"{type(self).__name__} {command.number}"

    bus = registry_of(Tickets).command_bus

    assert bus.dispatch(Open("x")) == "Tickets x"
    assert bus.dispatch(Close(1)) == "Tickets 1"


def test_a_method_overridden_without_a_decorator_is_no_handler():
    """Overriding a handler with a plain method takes it away."""

    class Base:
        @command_handler
        def open(self, command: Open) -> str:
            return "base"

    @service
    class Tickets(Base):
        def open(self, command: Open) -> str:
            return "tickets"

        @command_handler
        def close(self, command: Close) -> None: ...

    with pytest.raises(NoHandlerFound):
        registry_of(Tickets).command_bus.dispatch(Open("x"))


def test_a_method_overridden_with_a_decorator_is_the_handler():
    """Overriding a handler with a handler replaces it; super() works."""

    class Base:
        @command_handler
        def open(self, command: Open) -> str:
            return "base"

    @service
    class Tickets(Base):
        @command_handler
        def open(self, command: Open) -> str:
            return f"{super().open(command)} and tickets"

    registry = registry_of(Tickets)

    assert len(registry.routes.endpoints) == 1
    assert registry.command_bus.dispatch(Open("x")) == "base and tickets"


def test_two_services_with_one_inherited_handler_are_a_duplicate():
    """A handler inherited by two registered classes is two handlers."""

    class Base:
        @command_handler
        def open(self, command: Open) -> None: ...

    @service
    class One(Base): ...

    @service
    class Two(Base): ...

    registry = registry_of(One, Two)

    assert [e.name.rpartition(".commands.")[2] for e in registry.routes.endpoints] == [
        "tests.test_commands.One.open",
        "tests.test_commands.Two.open",
    ]
    assert rules_of(registry) == [Rule.DUPLICATE_HANDLER]


# B02 ------------------------------------------------------------------------------


def test_a_key_is_the_only_way_to_its_handler():
    """A handler with a key is not found by the class it takes; the error says how. [B02.1]"""

    @command_handler("ticket.close")
    def close(command: Close) -> int:
        Note.objects.create(text="closed")
        return command.number

    bus = registry_of(close).command_bus
    with pytest.raises(NoHandlerFound) as caught:
        bus.dispatch(Close(1))

    assert str(caught.value) == (
        "No command handler takes Close. Its handler is reached only by key: give "
        "route='ticket.close'."
    )
    assert Note.objects.count() == 0
    assert bus.dispatch(Close(1), route="ticket.close") == 1


def test_stacked_with_the_bare_decorator_both_work():
    """Two decorators of one kind make one endpoint with two routes. [B02.1]"""

    @command_handler("ticket.close")
    @command_handler
    def close(command: Close) -> int:
        return command.number

    registry = registry_of(close)

    assert len(registry.routes.endpoints) == 1
    assert registry.command_bus.dispatch(Close(1)) == 1
    assert registry.command_bus.dispatch(Close(1), route="ticket.close") == 1


def test_several_keys_lead_to_one_handler():
    """Stacked keys are routes of one endpoint. [B02.1]"""

    @command_handler("ticket.close")
    @command_handler("ticket.shut")
    def close(number: int) -> int:
        return number

    bus = registry_of(close).command_bus

    assert bus.dispatch(1, route="ticket.close") == 1
    assert bus.dispatch(2, route="ticket.shut") == 2


def test_one_function_may_be_of_two_kinds():
    """Stacked decorators of two kinds make two endpoints, and their names clash. [B02.1]"""

    @command_handler("ticket.close", name="tests.close")
    @query_handler("ticket.number")
    def close(number: int) -> int:
        return number

    registry = registry_of(close)

    assert rules_of(registry) == []
    assert registry.command_bus.dispatch(1, route="ticket.close") == 1
    assert registry.query_bus.ask(2, route="ticket.number") == 2


def test_a_named_class_reaches_the_handler_of_its_name():
    """An object finds the handler of its class's own name; a subclass does not. [B02.1]"""

    @message("ticket.rename")
    @dataclass
    class Rename:
        title: str = ""

    @dataclass
    class RenameTwice(Rename): ...

    @command_handler("ticket.rename")
    def rename(command: Rename) -> str:
        return command.title

    bus = registry_of(rename).command_bus

    assert bus.dispatch(Rename("x")) == "x"
    assert bus.dispatch({"title": "y"}, route="ticket.rename") == "y"
    with pytest.raises(NoHandlerFound):
        bus.dispatch(RenameTwice("z"))


def test_a_name_leads_to_the_handler_of_the_class():
    """A class's own name sends to the handler of the class, converted to it. [B02.1]"""

    @message("ticket.rename")
    @dataclass
    class Rename:
        title: str = ""

    @command_handler
    def rename(command: Rename) -> Rename:
        return command

    bus = registry_of(rename).command_bus

    assert bus.dispatch({"title": "x"}, route="ticket.rename") == Rename("x")
    assert bus.dispatch(
        '{"title": "y"}', route="ticket.rename", content_type=JSON
    ) == Rename("y")


UUID_VALUE = UUID("9b5c8cd8-4dec-4797-9b5a-068614fb7a79")  # the same in every process


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, "text"),
        (int, 17),
        (bool, True),
        (float, 1.5),
        (bytes, b"\x00"),
        (Decimal, Decimal("1.50")),
        (UUID, UUID_VALUE),
        (datetime, datetime(2025, 1, 2, tzinfo=UTC)),
        (date, date(2025, 1, 2)),
        (dict, {"a": [1]}),
        (dict[str, Any], {"a": [1]}),
        (dict[str, list[int]], {"a": [1]}),
        (list, [1, "2"]),
        (list[int], [1, 2]),
        (Sequence[int], [1, 2]),
        (tuple[int, ...], (1, 2)),
        (set[int], {1, 2}),
        (Close, Close(1)),
        (list[Close], [Close(1), Close(2)]),
        (Close | None, Close(1)),
        (int | str, "17"),
        (object, object()),
        (Any, Close(1)),
        (Annotated[int, "a number"], 17),
        (NewType("Number", int), 17),
        (OrderedDict, OrderedDict(a=1)),
    ],
    ids=lambda value: "" if type(value) is object else repr(value),
)
def test_a_payload_of_the_right_type_is_delivered_unchanged(annotation, value):
    """Sent by key, what the annotation allows is the very object that arrives. [B02.2]"""

    def handle(value):
        return value

    handle.__annotations__["value"] = annotation
    bus = registry_of(command_handler("x")(handle)).command_bus

    assert bus.dispatch(value, route="x") is value


def test_without_annotation_anything_is_delivered():
    """A handler with a key may leave its parameter bare: it takes what comes. [B02.2]"""

    @command_handler("x")
    def handle(value):
        return value

    bus = registry_of(handle).command_bus
    value = object()

    assert bus.dispatch(value, route="x") is value
    assert bus.dispatch(route="x") is None
    assert bus.dispatch(b"[1]", route="x", content_type=JSON) == [1]


def test_without_payload_a_handler_without_parameters_is_called():
    """A key is enough for a handler that takes nothing; a payload does no harm. [B02.2]"""

    @command_handler("x")
    def handle() -> str:
        return "called"

    bus = registry_of(handle).command_bus

    assert bus.dispatch(route="x") == "called"
    assert bus.dispatch({"ignored": 1}, route="x") == "called"


def test_a_payload_with_a_default_may_be_left_out():
    """A default, or an optional annotation, stands for a missing payload. [B02.2]"""

    @command_handler("default")
    def default(status: str = "open") -> str:
        return status

    @command_handler("optional")
    def optional(status: str | None) -> str | None:
        return status

    bus = registry_of(default, optional).command_bus

    assert bus.dispatch(route="default") == "open"
    assert bus.dispatch("closed", route="default") == "closed"
    assert bus.dispatch(route="optional") is None
    assert bus.dispatch("closed", route="optional") == "closed"


def test_falsy_payloads_are_payloads():
    """Zero, "", False and empty containers are delivered, not taken for none. [B02.2]"""

    @command_handler("x")
    def handle(value: Any = "default") -> Any:
        return value

    bus = registry_of(handle).command_bus

    assert [bus.dispatch(each, route="x") for each in (0, "", False, [], {})] == [
        0,
        "",
        False,
        [],
        {},
    ]


def test_a_missing_payload_is_an_error():
    """A handler that needs a payload is not called without one. [B02.2]"""

    @command_handler("x")
    def handle(command: Open) -> None:
        Note.objects.create(text="called")

    with pytest.raises(MessageConversionError) as caught:
        registry_of(handle).command_bus.dispatch(route="x")

    assert str(caught.value) == (
        "Cannot convert the payload to Open: the payload is missing."
    )
    assert Note.objects.count() == 0


@pytest.mark.parametrize("text", ['{"title": "x"}', b'{"title": "x"}'], ids=type)
@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "Application/JSON"]
)
def test_json_text_becomes_the_annotated_class(text, content_type):
    """JSON as str or bytes gives the handler an object of its own type. [B02.3]"""

    @command_handler("ticket.open")
    def handle(command: Open) -> Open:
        return command

    result = registry_of(handle).command_bus.dispatch(
        text, route="ticket.open", content_type=content_type
    )

    assert result == Open("x")
    assert type(result) is Open


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (b"{", [("", "Invalid JSON: EOF while parsing an object at line 1 column 1")]),
        (b"", [("", "Invalid JSON: EOF while parsing a value at line 1 column 0")]),
        (b"\xff", [("", "Invalid JSON: expected value at line 1 column 1")]),
        (b"[]", [("", "Input should be an object")]),
        (b"null", [("", "Input should be an object")]),
        (b"{}", [("title", "Field required")]),
        (
            b'{"priority": "3"}',
            [
                ("title", "Field required"),
                ("priority", "Input should be a valid integer"),
            ],
        ),
        (b'{"title": 5}', [("title", "Input should be a valid string")]),
        (b'{"title": null}', [("title", "Input should be a valid string")]),
    ],
)
def test_text_that_does_not_fit_names_every_field(text, faults):
    """Broken JSON, missing fields and wrong types are refused before the handler. [B02.3]"""

    @command_handler("ticket.open")
    def handle(command: Open) -> None:
        Note.objects.create(text="called")

    with pytest.raises(MessageConversionError) as caught:
        registry_of(handle).command_bus.dispatch(
            text, route="ticket.open", content_type=JSON
        )

    assert faults_of(caught) == faults
    assert caught.value.target == "Open"
    sentences = "; ".join(f"{path}: {text}" if path else text for path, text in faults)
    assert str(caught.value) == f"Cannot convert the payload to Open: {sentences}."
    assert Note.objects.count() == 0


@pytest.mark.parametrize("payload", [{"title": "x"}, Open("x"), 5, None], ids=type)
def test_a_content_type_says_that_the_payload_is_text(payload):
    """With content_type= the payload is str or bytes; anything else is refused. [B02.3]"""

    @command_handler("ticket.open")
    def handle(command: Open) -> None: ...

    with pytest.raises(MessageConversionError) as caught:
        registry_of(handle).command_bus.dispatch(
            payload, route="ticket.open", content_type=JSON
        )

    assert faults_of(caught) == [
        ("", f"JSON text is str or bytes, not {type(payload).__name__}")
    ]


def test_another_content_type_is_refused():
    """JSON is the one wire format. [B02.3]"""

    @command_handler("ticket.open")
    def handle(command: Open) -> None: ...

    with pytest.raises(MessageConversionError) as caught:
        registry_of(handle).command_bus.dispatch(
            "<open/>", route="ticket.open", content_type="text/xml"
        )

    assert str(caught.value) == (
        "Cannot convert the payload to application/json: the content type 'text/xml' "
        "is not supported, application/json is."
    )


def test_text_for_a_handler_without_payload_is_read_all_the_same():
    """Broken text is refused even where the handler does not look at it. [B02.3]"""

    @command_handler("ticket.tidy")
    def handle() -> str:
        return "tidied"

    bus = registry_of(handle).command_bus

    assert bus.dispatch("{}", route="ticket.tidy", content_type=JSON) == "tidied"
    with pytest.raises(MessageConversionError):
        bus.dispatch("{", route="ticket.tidy", content_type=JSON)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Status(StrEnum):
    OPEN = "open"


class Level(IntEnum):
    HIGH = 1


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str


@converter
def write_money(money: Money) -> str:
    return f"{money.amount} {money.currency}"


@converter
def read_money(text: str) -> Money:
    amount, currency = text.split()
    return Money(Decimal(amount), currency)


@dataclass
class Line:
    product: UUID
    price: Money
    quantity: int = 1


@dataclass
class Order:
    number: UUID
    placed_at: datetime
    color: Color
    total: Decimal
    lines: list[Line]
    notes: dict[str, str] = field(default_factory=dict)
    delivery: date | None = None
    patience: timedelta | None = None


ORDER = Order(
    UUID(int=1),
    datetime(2025, 1, 2, 3, 4, tzinfo=UTC),
    Color.BLUE,
    Decimal("12.50"),
    [Line(UUID(int=2), Money(Decimal("6.25"), "EUR"), 2)],
    {"door": "left"},
    date(2025, 1, 3),
)
ORDER_DICT = {
    "number": str(UUID(int=1)),
    "placed_at": "2025-01-02T03:04:00+00:00",
    "color": "blue",
    "total": "12.50",
    "lines": [{"product": str(UUID(int=2)), "price": "6.25 EUR", "quantity": 2}],
    "notes": {"door": "left"},
    "delivery": "2025-01-03",
}


@command_handler("order.place")
def place_order(command: Order) -> Order:
    return command


def test_a_dict_becomes_the_annotated_class():
    """Nested dataclasses, lists, UUID, Decimal, datetime, Enum and value objects. [B02.4]"""
    bus = registry_of(place_order).command_bus

    assert bus.dispatch(ORDER_DICT, route="order.place") == ORDER


def test_a_dict_may_hold_python_values():
    """Values that are already of their type stay as they are. [B02.4]"""
    bus = registry_of(place_order).command_bus
    given = {
        **ORDER_DICT,
        "number": ORDER.number,
        "placed_at": ORDER.placed_at,
        "color": Color.BLUE,
        "total": ORDER.total,
        "lines": ORDER.lines,
    }

    assert bus.dispatch(given, route="order.place") == ORDER


def test_a_dict_with_errors_names_every_field_with_its_path():
    """Every wrong field of a nested dict is reported at once, by its path. [B02.4]"""
    bus = registry_of(place_order).command_bus
    given = {
        **ORDER_DICT,
        "number": "x",
        "color": "green",
        "lines": [{"product": str(UUID(int=2)), "price": "6.25"}, {"quantity": "x"}],
    }
    with pytest.raises(MessageConversionError) as caught:
        bus.dispatch(given, route="order.place")

    assert [path for path, _ in faults_of(caught)] == [
        "number",
        "color",
        "lines.0.price",
        "lines.1.product",
        "lines.1.price",
        "lines.1.quantity",
    ]


def test_a_dict_sent_by_class_has_no_handler():
    """Without a key a dict is a dict, and no handler takes one. [B02.4]"""
    with pytest.raises(NoHandlerFound) as caught:
        registry_of(place_order).command_bus.dispatch(ORDER_DICT)

    assert str(caught.value) == (
        "No command handler takes dict. Name its handler with route=."
    )


@pytest.mark.parametrize(
    ("annotation", "given", "expected"),
    [
        (list[Color], ["red"], [Color.RED]),
        (list[Status], ["open"], [Status.OPEN]),
        (dict[str, Level], {"x": 1}, {"x": Level.HIGH}),
        (list[Decimal], [1.5], [Decimal("1.5")]),
        (list[float], [1], [1.0]),
        (set[Status], {"open"}, {Status.OPEN}),
        (tuple[Level, ...], (1,), (Level.HIGH,)),
        (list[Close], [{"number": 1}], [Close(1)]),
        (int, "17", 17),
        (UUID, str(UUID_VALUE), UUID_VALUE),
        (Color, "red", Color.RED),
        (Decimal, "1.5", Decimal("1.5")),
        (Money, "1 EUR", Money(Decimal(1), "EUR")),
        (Close | Open, {"title": "x"}, Open("x")),
    ],
    ids=str,
)
def test_values_and_containers_become_what_is_annotated(annotation, given, expected):
    """What equals the wanted value but is of another type is converted all the same. [B02.4]"""

    def handle(value):
        return value

    handle.__annotations__["value"] = annotation
    result = registry_of(command_handler("x")(handle)).command_bus.dispatch(
        given, route="x"
    )

    assert result == expected
    assert repr(result) == repr(expected)


@pytest.mark.parametrize("payload", [17, "x", ["x"], Close(1), Open, object], ids=repr)
def test_a_payload_of_a_wrong_type_is_refused(payload):
    """What cannot become the annotated class raises before the handler. [B02.4]"""

    @command_handler("ticket.open")
    def handle(command: Open) -> None:
        Note.objects.create(text="called")

    with pytest.raises(MessageConversionError) as caught:
        registry_of(handle).command_bus.dispatch(payload, route="ticket.open")

    assert str(caught.value) == (
        "Cannot convert the payload to Open: Input should be a dictionary or an "
        "instance of Open."
    )
    assert Note.objects.count() == 0


class Model(pydantic.BaseModel):
    title: str
    priority: int = pydantic.Field(default=3, ge=1)


class Pair(NamedTuple):
    title: str
    priority: int = 3


class Typed(TypedDict):
    title: str
    priority: int


@pytest.mark.parametrize("cls", [Model, Pair, Open])
def test_models_and_named_tuples_work_like_dataclasses(cls):
    """They are routed by class unconverted, and by key from a dict or from JSON. [B02.5]"""

    def handle(command):
        return command

    handle.__annotations__["command"] = cls
    handle = command_handler("ticket.open")(command_handler(handle))
    bus = registry_of(handle).command_bus
    command = cls(title="x")

    assert bus.dispatch(command) is command
    assert bus.dispatch({"title": "x"}, route="ticket.open") == command
    assert (
        bus.dispatch(b'{"title": "x"}', route="ticket.open", content_type=JSON)
        == command
    )
    assert type(bus.dispatch({"title": "x"}, route="ticket.open")) is cls


def test_a_models_own_rules_hold():
    """A pydantic model's field rules are field errors. [B02.5]"""

    @command_handler("ticket.open")
    def handle(command: Model) -> None: ...

    with pytest.raises(MessageConversionError) as caught:
        registry_of(handle).command_bus.dispatch(
            {"title": "x", "priority": 0}, route="ticket.open"
        )

    assert str(caught.value) == (
        "Cannot convert the payload to Model: priority: Input should be greater than "
        "or equal to 1."
    )


def test_a_typed_dict_works_by_key():
    """A TypedDict is converted and checked, and stays a dict. [B02.5]"""

    @command_handler("ticket.open")
    def handle(command: Typed) -> Typed:
        return command

    bus = registry_of(handle).command_bus

    assert bus.dispatch({"title": "x", "priority": "1"}, route="ticket.open") == {
        "title": "x",
        "priority": 1,
    }
    with pytest.raises(MessageConversionError) as caught:
        bus.dispatch({"title": "x"}, route="ticket.open")
    assert faults_of(caught) == [("priority", "Field required")]


def test_a_typed_dict_by_class_is_a_check():
    """No object is of a TypedDict, so the bare decorator finds no route. [B02.5]"""

    @command_handler
    def handle(command: Typed) -> None: ...

    registry = registry_of(handle)

    assert rules_of(registry) == [Rule.NO_ROUTE]
    assert registry.routes.problems[0].message == (
        f"No message leads to {__name__}.{handle.__qualname__}: Typed is not a class "
        "that can be matched with isinstance()."
    )


def test_a_dict_handler_gets_the_json_form():
    """An object sent to a `dict` handler arrives as the dict that JSON would hold. [B02.5]"""

    @command_handler("order.place")
    def handle(command: dict[str, Any]) -> dict[str, Any]:
        return command

    result = registry_of(handle).command_bus.dispatch(ORDER, route="order.place")

    assert result == {
        **ORDER_DICT,
        "placed_at": "2025-01-02T03:04:00Z",
        "patience": None,
    }


# B03 ------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, 0, "x", [1], Close(1)], ids=repr)
def test_dispatch_returns_what_the_handler_returns(result):
    """A synchronous handler's result reaches the caller as it is. [B03.1]"""

    @command_handler
    def handle(command: Open) -> Any:
        return result

    bus = registry_of(handle).command_bus

    assert bus.dispatch(Open("x")) is result
    assert bus.dispatch(Open("x")) is result
    assert bus.dispatch(Open("x"), headers={"a": 1}) is result


def test_a_typed_command_is_a_command_like_another():
    """`Command[R]` as a base changes nothing at run time. [B03.1]"""

    @dataclass(frozen=True, slots=True)
    class OpenTyped(Command[int]):
        title: str

    @command_handler
    def handle(command: OpenTyped) -> int:
        return len(command.title)

    bus = registry_of(handle).command_bus

    assert bus.dispatch(OpenTyped("abc")) == 3
    assert not hasattr(OpenTyped("abc"), "__dict__")


def test_a_nested_dispatch_returns_too():
    """A handler gets what the command that it sends returns. [B03.1]"""

    @command_handler
    def inner(command: Close) -> int:
        return command.number + 1

    @command_handler
    def outer(command: Open, commands: CommandBus) -> int:
        return commands.dispatch(Close(1)) + 1

    assert registry_of(inner, outer).command_bus.dispatch(Open("x")) == 3


def test_publish_returns_none():
    """What event handlers return goes nowhere. [B03.3]"""

    @event_handler
    def one(event: Open) -> int:
        return 1

    @event_handler
    def two(event: Open) -> int:
        return 2

    @event_handler("named")
    def three() -> int:
        return 3

    bus = registry_of(one, two, three).event_bus

    assert bus.publish(Open("x")) is None
    assert bus.publish(Open("x")) is None
    assert bus.publish(route="named") is None
    assert bus.publish(Close(1)) is None


# Bad input ------------------------------------------------------------------------


@pytest.mark.database
def test_a_handler_that_raises_writes_nothing_and_its_exception_arrives():
    """The handler's own exception reaches the caller, and its writes are gone."""
    error = LookupError("no such ticket")

    @command_handler
    def handle(command: Open) -> None:
        Note.objects.create(text=command.title)
        raise error

    bus = registry_of(handle).command_bus
    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            bus.dispatch(Open("x"))

        assert caught.value is error
        assert Note.objects.count() == 0


@pytest.mark.database
def test_a_nested_command_that_raises_leaves_the_outer_usable():
    """Who catches a nested command's failure goes on; only its writes are gone."""

    @command_handler
    def inner(command: Close) -> None:
        Note.objects.create(text="inner")
        raise ValueError("inner")

    @command_handler
    def outer(command: Open, commands: CommandBus) -> None:
        Note.objects.create(text="before")
        with pytest.raises(ValueError, match="inner"):
            commands.dispatch(Close(1))
        Note.objects.create(text="after")

    registry_of(inner, outer).command_bus.dispatch(Open("x"))

    assert list(Note.objects.order_by("pk").values_list("text", flat=True)) == [
        "before",
        "after",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {},
            (
                "command_bus.dispatch() needs a payload, or route= with an optional "
                "payload."
            ),
        ),
        (
            {"payload": Open},
            "command_bus.dispatch() takes an instance, Open(...), not the class Open.",
        ),
        (
            {"payload": "{}", "content_type": JSON},
            (
                "command_bus.dispatch(content_type=...) also needs route=: the text "
                "does not name its handler."
            ),
        ),
        (
            {"payload": Open("x"), "route": Open},
            f"route= must be a routing key (a string), not {Open!r}.",
        ),
        (
            {"payload": Open("x"), "delay": 5},
            (
                "delay= cannot be given to tests.test_commands.handle, which is "
                "called immediately: only a message that is sent to a channel can "
                "have a delay, an expiry or a priority."
            ),
        ),
        (
            {"payload": Open("x"), "expires": timedelta(1), "priority": 0},
            (
                "expires= and priority= cannot be given to "
                "tests.test_commands.handle, which is called immediately: only a "
                "message that is sent to a channel can have a delay, an expiry or a "
                "priority."
            ),
        ),
        (
            {"payload": Open("x"), "aggregate_id": 5},
            (
                "aggregate_id= was given, but tests.test_commands.handle is not a handler "
                "of an aggregate."
            ),
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit_together_are_refused(arguments, text):
    """A mistake in the call raises one error and calls nothing."""

    @command_handler
    def handle(command: Open) -> None:
        Note.objects.create(text="called")

    with pytest.raises(InvalidOption) as caught:
        registry_of(handle).command_bus.dispatch(**arguments)

    assert str(caught.value) == text
    assert isinstance(caught.value, ValueError)
    assert Note.objects.count() == 0


def test_a_refused_call_is_refused_again_after_one_that_worked():
    """What a bus has learned of a class does not let a mistake through."""

    @command_handler
    def handle(command: object) -> str:
        return "called"

    bus = registry_of(handle).command_bus

    assert bus.dispatch(Open("x")) == "called"
    assert bus.dispatch("text") == "called"
    for arguments in ({}, {"payload": Open}, {"payload": Open("x"), "delay": 1}):
        with pytest.raises(InvalidOption):
            bus.dispatch(**arguments)


def test_a_pattern_is_no_key_of_a_command():
    """A command with a pattern for its key is a check, and raises when it is used."""

    @command_handler("ticket.*")
    def handle() -> None: ...

    registry = registry_of(handle)
    text = (
        f"{__name__}.{handle.__qualname__} takes a command by the pattern 'ticket.*'. "
        "Only events have patterns: give the full key. (django_cqrs.E009)"
    )

    assert [str(problem) for problem in registry.routes.problems] == [text]
    with pytest.raises(NoHandlerFound):
        registry.command_bus.dispatch(route="ticket.close")
    with pytest.raises(InvalidHandler) as caught:
        registry.command_bus.dispatch(route="ticket.*")
    assert str(caught.value) == text


def test_a_handler_with_nothing_that_leads_to_it_is_a_check():
    """The bare decorator on a function without parameters leads nowhere."""

    @command_handler
    def handle() -> None: ...

    registry = registry_of(handle)

    assert [str(problem) for problem in registry.routes.problems] == [
        (
            f"No message leads to {__name__}.{handle.__qualname__}: it has no parameter "
            f"for the payload. Annotate the first parameter with a message class, or give "
            f'a routing key: ("ticket.close"). (django_cqrs.E007)'
        )
    ]


def test_a_handler_whose_parameter_has_no_annotation_is_a_check():
    """The bare decorator needs the class of the first parameter."""

    @command_handler
    def handle(command) -> None: ...

    registry = registry_of(handle)

    assert rules_of(registry) == [Rule.NO_ROUTE]
    assert registry.routes.problems[0].message == (
        f"No message leads to {__name__}.{handle.__qualname__}: its first parameter "
        f"has no annotation."
    )


def test_policies_stand_on_one_of_stacked_decorators():
    """Policies on two decorators of one endpoint are a check, and its route raises."""

    @command_handler("ticket.open", atomic=False)
    @command_handler(name="tests.open")
    def handle(command: Open) -> None: ...

    registry = registry_of(handle)
    text = (
        f"Several of the decorators on {__name__}.{handle.__qualname__} give policies "
        "(atomic, name). They declare one endpoint: put all policies on one of them. "
        "(django_cqrs.E010)"
    )
    with pytest.raises(InvalidHandler) as caught:
        registry.command_bus.dispatch(Open("x"))

    assert [str(problem) for problem in registry.routes.problems] == [text]
    assert str(caught.value) == text


def test_a_broken_handler_raises_its_checks_text_by_class():
    """A handler with a parameter that nothing can fill is found, and says why."""

    @command_handler
    def handle(command: Open, number: int) -> None: ...

    registry = registry_of(handle)
    with pytest.raises(InvalidHandler) as caught:
        registry.command_bus.dispatch(Open("x"))

    assert str(caught.value) == (
        "Nothing can fill the parameter 'number' of "
        f"{__name__}.{handle.__qualname__}: int is neither a mark nor a class to "
        "build. Annotate it as described in the reference of parameters, or give it "
        "a default. (django_cqrs.E005)"
    )
    assert str(caught.value) == str(registry.routes.problems[0])


def test_a_broken_handler_counts_as_one_of_two():
    """A class with a broken handler and a sound one has two: neither is called."""

    @command_handler
    def broken(command: Open, number: int) -> None: ...

    @command_handler
    def sound(command: Open) -> None: ...

    registry = registry_of(broken, sound)
    with pytest.raises(DuplicateHandler):
        registry.command_bus.dispatch(Open("x"))

    assert rules_of(registry) == [Rule.UNFILLABLE_PARAMETER, Rule.DUPLICATE_HANDLER]


def test_a_broken_handler_does_not_break_others():
    """One broken declaration leaves every other route as it is."""

    @command_handler
    def broken(command: Open, number: int) -> None: ...

    @command_handler
    def sound(command: Close) -> int:
        return command.number

    assert registry_of(broken, sound).command_bus.dispatch(Close(1)) == 1


def test_many_threads_may_be_the_first():
    """The table is compiled once, however many threads ask for it at once."""

    @query_handler
    def handle(query: Open) -> str:
        return query.title

    registry = registry_of(handle)
    barrier = threading.Barrier(8)
    tables, answers = [], []

    def ask() -> None:
        barrier.wait(LIMIT)
        answers.append(registry.query_bus.ask(Open("x")))
        tables.append(registry.routes)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == ["x"] * 8
    assert len({id(table) for table in tables}) == 1


def test_two_registries_know_nothing_of_each_other():
    """What one registry holds, its buses alone reach."""

    @command_handler
    def one(command: Open) -> str:
        return "one"

    @command_handler
    def two(command: Open) -> str:
        return "two"

    @command_handler
    def sender(command: Close, commands: CommandBus) -> str:
        return commands.dispatch(Open("x"))

    first, second = registry_of(one, sender), registry_of(two, sender)

    assert first.command_bus.dispatch(Open("x")) == "one"
    assert second.command_bus.dispatch(Open("x")) == "two"
    assert first.command_bus.dispatch(Close(1)) == "one"
    assert second.command_bus.dispatch(Close(1)) == "two"


def test_a_bus_that_nobody_keeps_is_forgotten():
    """One made for each request does not stay with its registry permanently."""
    registry = Registry()

    @registry.add
    @command_handler(atomic=False)
    def handle(command: Open) -> str:
        return command.title

    kept = CommandBus(registry=registry)
    for _ in range(50):
        assert CommandBus(registry=registry).dispatch(Open("x")) == "x"
    gc.collect()

    buses = list(registry._buses)
    assert len(buses) == 4  # the registry's own three, and
    assert buses[-1] is kept
    registry.reset()
    assert kept.dispatch(Open("y")) == "y"


def test_a_bus_of_ones_own_uses_its_registry():
    """A bus made for a registry reaches its handlers, also those added later."""
    registry = Registry()
    bus, asking = CommandBus(registry=registry), QueryBus(registry=registry)

    @registry.add
    @command_handler
    def handle(command: Open, number: Annotated[int, Header("number")] = 0) -> int:
        return number

    assert bus.dispatch(Open("x"), headers={"number": 5}) == 5
    with pytest.raises(NoHandlerFound):
        asking.ask(Open("x"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(command_handler, "command_bus.dispatch"), (query_handler, "query_bus.ask")],
)
def test_a_class_whose_name_is_given_as_a_route_is_said_to_be_one(kind, said):
    """A class leads to its handler by itself; its name is no routing key."""

    @dataclass(frozen=True)
    class Allocate:
        ref: str

    registry = Registry()

    @registry.add
    @kind
    def allocate(message: Allocate) -> None: ...

    with pytest.raises(NoHandlerFound) as caught:
        registry.command_bus.dispatch({"ref": "x"}, route="Allocate")

    assert str(caught.value) == (
        "No command handler takes 'Allocate'. Allocate is the name of a class, not a "
        "routing key: an instance finds its handler without a key. Send one with "
        f"{said}(Allocate(...)), without route=."
    )


def test_text_for_one_key_is_read_by_the_handler_of_the_moment():
    """Text that was handled once is handled alike, until the handlers change."""
    registry = Registry()

    @registry.add
    @command_handler("text.count", atomic=False)
    def count(number: int | str) -> tuple[str, int | str]:
        return type(number).__name__, number

    bus = registry.command_bus

    def send(text, content_type="application/json", **options):
        return bus.dispatch(
            text, route="text.count", content_type=content_type, **options
        )

    for _ in range(2):
        assert send("1") == ("int", 1)
        assert send(b'"a"') == ("str", "a")
        assert send("2", headers={"a": 1}) == ("int", 2)
        assert send("3", content_type="application/json; charset=utf-8") == ("int", 3)
        with pytest.raises(MessageConversionError, match="Input should be"):
            send("[]")
        with pytest.raises(MessageConversionError, match="'text/xml' is not supported"):
            send("4", content_type="text/xml")

    @registry.add
    @before(pointcut.handler("*"))
    def refuse(number: int | str) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        send("1")


def test_text_of_unknown_keys_and_content_types_is_not_kept():
    """What callers make up does not stay in memory."""
    registry = Registry()

    @registry.add
    @command_handler("text.known", atomic=False)
    def know(number: int) -> int:
        return number

    bus = registry.command_bus
    for number in range(1_000):
        content_type = f"application/json; number={number}"
        assert bus.dispatch("1", route="text.known", content_type=content_type) == 1
        with pytest.raises(NoHandlerFound):
            bus.dispatch("1", route=f"{number}", content_type="application/json")
        with pytest.raises(MessageConversionError):
            bus.dispatch("1", route="text.known", content_type=f"text/{number}")
    bus.dispatch("1", route="text.known", content_type="application/json")

    assert list(bus._by_text) == ["text.known"]
    assert len(bus._compiled) == 1
