"""Services: how the objects that handlers are given come to be."""

from __future__ import annotations

import functools
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import pytest
from django.test import override_settings

from django_cqrs import (
    CommandBus,
    Depends,
    QueryBus,
    Service,
    event_handler,
    query_handler,
    service,
)
from django_cqrs.exceptions import InvalidHandler, ParameterError
from django_cqrs.problems import Rule
from tests.limits import LIMIT
from tests.support import registry_of


@dataclass(frozen=True)
class Ask:
    number: int = 0


class Clock:
    built = 0

    def __init__(self) -> None:
        type(self).built += 1


@query_handler
def clock_of(query: Ask, clock: Clock) -> Clock:
    return clock


# Built once -----------------------------------------------------------------------


def test_a_service_is_built_once_when_it_is_first_needed():
    """Nothing is built at start-up; then one instance serves every message."""
    before = Clock.built
    registry = registry_of(clock_of)
    assert registry.routes.problems == ()
    assert Clock.built == before

    one, two = registry.query_bus.ask(Ask()), registry.query_bus.ask(Ask())

    assert one is two
    assert Clock.built == before + 1


def test_each_registry_has_its_own():
    """Two registries share no instance."""
    one, two = registry_of(clock_of), registry_of(clock_of)

    assert one.query_bus.ask(Ask()) is not two.query_bus.ask(Ask())


def test_handlers_and_services_share_an_instance():
    """The object whose methods handle is the one that others are given."""

    @service
    class Counter:
        def __init__(self) -> None:
            self.asked = 0

        @query_handler("count")
        def count(self) -> int:
            self.asked += 1
            return self.asked

    class Reader:
        def __init__(self, counter: Counter) -> None:
            self.counter = counter

    @query_handler("read")
    def read(reader: Annotated[Reader, Service()], counter: Counter) -> Any:
        return reader.counter is counter, counter.asked

    bus = registry_of(Counter, read).query_bus

    assert [bus.ask(route="count"), bus.ask(route="count")] == [1, 2]
    assert bus.ask(route="read") == (True, 2)


def test_a_marked_service_may_come_first():
    """A class marked with @service is never taken for the payload."""

    @service
    class Mailer:
        pass

    @query_handler
    def handle(mailer: Mailer, query: Ask) -> Any:
        return type(mailer).__name__, query

    assert registry_of(handle).query_bus.ask(Ask(1)) == ("Mailer", Ask(1))


def test_an_annotated_service_may_come_first():
    """`Annotated[T, Service()]` is never taken for the payload."""

    @query_handler
    def handle(clock: Annotated[Clock, Service()], query: Ask) -> Any:
        return type(clock), query

    assert registry_of(handle).query_bus.ask(Ask(1)) == (Clock, Ask(1))


def test_a_service_gets_services_buses_and_defaults():
    """An __init__ is filled by the rules of handlers."""

    class Store:
        def __init__(self, clock: Clock) -> None:
            self.clock = clock

    def url() -> str:
        return "https://example.com"

    class Api:
        def __init__(
            self,
            store: Store,
            commands: CommandBus,
            clock: Clock,
            address: Annotated[str, Depends(url)],
            *,
            queries: QueryBus,
            retries: int = 3,
            **options: str,
        ) -> None:
            self.seen = store, commands, clock, address, queries, retries, options

    @query_handler
    def handle(query: Ask, api: Api) -> Any:
        return api.seen

    registry = registry_of(handle)
    store, commands, clock, address, queries, retries, options = registry.query_bus.ask(
        Ask()
    )

    assert registry.routes.problems == ()
    assert store.clock is clock
    assert commands is registry.command_bus
    assert queries is registry.query_bus
    assert (address, retries, options) == ("https://example.com", 3, {})


def test_a_service_may_be_any_class_without_an_init():
    """A class without __init__, with slots, or a dataclass is built as it is."""

    class Plain:
        pass

    class Slotted:
        __slots__ = ("value",)

    @dataclass(slots=True)
    class Data:
        clock: Clock
        names: list[str] = field(default_factory=list)

    @query_handler
    def handle(query: Ask, plain: Plain, slotted: Slotted, data: Data) -> Any:
        return type(plain), type(slotted), type(data), type(data.clock), data.names

    registry = registry_of(handle)

    assert registry.routes.problems == ()
    assert registry.query_bus.ask(Ask()) == (Plain, Slotted, Data, Clock, [])


def test_a_local_service_finds_what_stands_around_it():
    """The text annotations of a local class's __init__ may name local classes."""

    class Local:
        pass

    @service
    class Handlers:
        def __init__(self, local: Local) -> None:
            self.local = local

        @query_handler
        def handle(self, query: Ask) -> bool:
            return type(self.local) is Local

    assert registry_of(Handlers).query_bus.ask(Ask()) is True


@pytest.mark.parametrize("outermost", ["service", "dataclass"])
def test_service_and_slots_in_either_order(outermost):
    """@service above or below @dataclass(slots=True) gives a service all the same."""
    if outermost == "service":

        @service
        @dataclass(slots=True)
        class Counter:
            asked: int = 0

            @query_handler
            def count(self, query: Ask) -> int:
                self.asked += 1
                return self.asked

    else:

        @dataclass(slots=True)
        @service
        class Counter:
            asked: int = 0

            @query_handler
            def count(self, query: Ask) -> int:
                self.asked += 1
                return self.asked

    bus = registry_of(Counter).query_bus

    assert [bus.ask(Ask()), bus.ask(Ask())] == [1, 2]


def test_the_mark_is_not_inherited():
    """A subclass of a marked class is a plain class: it may be a payload."""

    @service
    class Base:
        pass

    class Derived(Base):
        pass

    @query_handler
    def handle(query: Derived) -> str:
        return "answered"

    assert registry_of(handle).query_bus.ask(Derived()) == "answered"


# Under a lock ---------------------------------------------------------------------


def test_two_threads_build_one():
    """However many threads need a service first, it is built once."""
    built = []

    class Slow:
        def __init__(self) -> None:
            built.append(threading.get_ident())
            time.sleep(0.05)

    @query_handler
    def handle(query: Ask, slow: Slow) -> Slow:
        return slow

    bus = registry_of(handle).query_bus
    barrier = threading.Barrier(12)
    got: list[Slow] = []

    def ask() -> None:
        barrier.wait(LIMIT)
        got.append(bus.ask(Ask()))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(built) == 1
    assert len(got) == 12
    assert {id(each) for each in got} == {id(got[0])}


def test_two_threads_that_need_two_services_in_opposite_order():
    """A service that is being built keeps no other thread waiting without end."""

    class Base:
        def __init__(self) -> None:
            time.sleep(0.02)

    class Left:
        def __init__(self, base: Base) -> None:
            time.sleep(0.02)
            self.base = base

    class Right:
        def __init__(self, base: Base) -> None:
            time.sleep(0.02)
            self.base = base

    @query_handler("one")
    def one(
        left: Annotated[Left, Service()], right: Annotated[Right, Service()]
    ) -> Any:
        return left.base, right.base

    @query_handler("two")
    def two(
        right: Annotated[Right, Service()], left: Annotated[Left, Service()]
    ) -> Any:
        return left.base, right.base

    bus = registry_of(one, two).query_bus
    got: list[Any] = []
    threads = [
        threading.Thread(target=lambda r=route: got.append(bus.ask(route=r)))
        for route in ("one", "two") * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)

    assert len(got) == 8
    assert len({id(base) for pair in got for base in pair}) == 1


def test_a_constructor_that_raises_is_tried_again():
    """What an __init__ raises arrives unchanged; the next message tries again."""
    error = ConnectionError("down")
    attempts = []

    class Broker:
        def __init__(self) -> None:
            attempts.append(1)
            if len(attempts) == 1:
                raise error

    @query_handler
    def handle(query: Ask, broker: Broker) -> str:
        return "answered"

    bus = registry_of(handle).query_bus
    with pytest.raises(ConnectionError) as caught:
        bus.ask(Ask())

    assert caught.value is error
    assert bus.ask(Ask()) == "answered"
    assert len(attempts) == 2


# Circles --------------------------------------------------------------------------


class Chicken:
    def __init__(self, egg: Egg) -> None:
        self.egg = egg


class Egg:
    def __init__(self, hen: Hen) -> None:
        self.hen = hen


class Hen:
    def __init__(self, chicken: Chicken) -> None:
        self.chicken = chicken


class Narcissus:
    def __init__(self, mirror: Narcissus) -> None:
        self.mirror = mirror


def test_services_that_need_each_other_are_a_check():
    """A circle of services is a check that shows it, and raises at first use."""

    @query_handler
    def handle(query: Ask, chicken: Chicken) -> None: ...

    registry = registry_of(handle)
    circle = " -> ".join(
        f"{__name__}.{n}" for n in ("Chicken", "Egg", "Hen", "Chicken")
    )
    text = (
        f"Circular dependency: {circle}. Let one of them get the other when it is "
        "called, not when it is made. (django_cqrs.E005)"
    )
    with pytest.raises(InvalidHandler) as caught:
        registry.query_bus.ask(Ask())

    assert [str(problem) for problem in registry.routes.problems] == [text]
    assert str(caught.value) == text


def test_a_service_that_needs_itself_is_a_check():
    """The smallest circle is one class."""

    @query_handler
    def handle(query: Ask, narcissus: Narcissus) -> None: ...

    problems = registry_of(handle).routes.problems

    assert [problem.rule for problem in problems] == [Rule.UNFILLABLE_PARAMETER]
    assert problems[0].message == (
        f"Circular dependency: {__name__}.Narcissus -> {__name__}.Narcissus."
    )


def test_a_diamond_of_services_is_no_circle():
    """Two services that need a third share it."""

    class Left:
        def __init__(self, clock: Clock) -> None:
            self.clock = clock

    class Right:
        def __init__(self, clock: Clock) -> None:
            self.clock = clock

    @query_handler
    def handle(query: Ask, left: Left, right: Right, clock: Clock) -> bool:
        return left.clock is right.clock is clock

    registry = registry_of(handle)

    assert registry.routes.problems == ()
    assert registry.query_bus.ask(Ask()) is True


def test_a_service_that_asks_for_itself_while_it_is_built():
    """An __init__ that sends a message which needs the very service is told so."""

    class Greedy:
        def __init__(self, queries: QueryBus) -> None:
            queries.ask(Ask())

    @query_handler
    def handle(query: Ask, greedy: Greedy) -> None: ...

    with pytest.raises(ParameterError) as caught:
        registry_of(handle).query_bus.ask(Ask())

    name = Greedy.__qualname__
    assert str(caught.value) == (
        f"Circular dependency between services: {name} -> {name}."
    )


# SERVICE_RESOLVER -----------------------------------------------------------------


class Container:
    """What a user's container looks like to us: a callable from class to instance."""

    def __init__(self) -> None:
        self.asked: list[type] = []

    def __call__(self, cls: type) -> Any:
        self.asked.append(cls)
        return f"{cls.__name__} {len(self.asked)}"


CONTAINER = Container()


def resolving(resolver):
    return override_settings(DJANGO_CQRS={"SERVICE_RESOLVER": resolver})


class Port(ABC):
    @abstractmethod
    def send(self) -> None: ...


class Sender(Protocol):
    def send(self) -> None: ...


class Url:
    def __init__(self, url: str) -> None: ...


@query_handler
def of_all_kinds(  # noqa: PLR0917
    query: Ask,
    clock: Clock,
    port: Port,
    sender: Sender,
    url: Url,
    text: Annotated[str, Service()],
) -> Any:
    return clock, port, sender, url, text


@pytest.mark.parametrize(
    "given", [CONTAINER, f"{__name__}.CONTAINER"], ids=["callable", "path"]
)
def test_a_resolver_gives_every_service(given):
    """SERVICE_RESOLVER is asked for each class: also abstract ones and Protocols."""
    CONTAINER.asked.clear()
    with resolving(given):
        registry = registry_of(of_all_kinds)

        assert registry.routes.problems == ()
        assert registry.query_bus.ask(Ask()) == (
            "Clock 1",
            "Port 2",
            "Sender 3",
            "Url 4",
            "str 5",
        )
    assert CONTAINER.asked == [Clock, Port, Sender, Url, str]


def test_a_resolver_is_asked_once_per_message():
    """Within one message a class is asked for once; the next message asks again."""
    container = Container()

    @query_handler
    def handle(query: Ask, one: Clock, two: Annotated[Clock, Service()]) -> Any:
        return one, two

    with resolving(container):
        bus = registry_of(handle).query_bus

        assert bus.ask(Ask()) == ("Clock 1", "Clock 1")
        assert bus.ask(Ask()) == ("Clock 2", "Clock 2")


def test_a_resolver_is_asked_once_for_all_handlers_of_an_event():
    """The handlers of one event, and what they depend on, share one instance."""
    container = Container()
    seen = []

    def helper(clock: Clock) -> Any:
        return clock

    @event_handler
    def one(event: Ask, clock: Clock) -> None:
        seen.append(clock)

    @event_handler
    def two(event: Ask, made: Annotated[Any, Depends(helper)], clock: Clock) -> None:
        seen.extend([made, clock])

    with resolving(container):
        bus = registry_of(one, two).event_bus
        bus.publish(Ask())
        bus.publish(Ask())

    assert seen == ["Clock 1"] * 3 + ["Clock 2"] * 3


def test_a_resolver_gives_the_object_whose_methods_handle():
    """A service with handlers comes from the resolver too, once per message."""
    made = []

    @service
    class Counter:
        def __init__(self, url: str) -> None:
            self.url = url

        @query_handler
        def count(self, query: Ask, again: Counter) -> Any:
            return self.url, again is self

    def resolve(cls: type) -> Any:
        made.append(cls)
        return cls("https://example.com")

    with resolving(resolve):
        registry = registry_of(Counter)

        assert registry.routes.problems == ()
        assert registry.query_bus.ask(Ask()) == ("https://example.com", True)
        assert registry.query_bus.ask(Ask()) == ("https://example.com", True)
    assert made == [Counter, Counter]


def test_a_nested_message_asks_the_resolver_for_itself():
    """Once per message: a query asked while another is handled asks again."""
    container = Container()

    @query_handler("inner")
    def inner(clock: Annotated[Clock, Service()]) -> Any:
        return clock

    @query_handler
    def outer(query: Ask, clock: Clock, queries: QueryBus) -> Any:
        return clock, queries.ask(route="inner")

    with resolving(container):
        assert registry_of(inner, outer).query_bus.ask(Ask()) == ("Clock 1", "Clock 2")


def test_what_a_resolver_raises_arrives_unchanged():
    """A container's own error reaches the caller."""
    error = LookupError("not registered")

    def resolve(cls: type) -> Any:
        raise error

    with resolving(resolve), pytest.raises(LookupError) as caught:
        registry_of(clock_of).query_bus.ask(Ask())

    assert caught.value is error


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            "no.such.module.resolve",
            (
                "DJANGO_CQRS['SERVICE_RESOLVER'] = 'no.such.module.resolve' cannot be "
                "imported: No module named 'no'"
            ),
        ),
        (5, "DJANGO_CQRS['SERVICE_RESOLVER'] must be a callable or its dotted path"),
    ],
    ids=["path", "value"],
)
def test_a_resolver_that_cannot_be_used_breaks_what_needs_it(given, text):
    """A bad setting breaks the handlers that need services, with the reason."""

    @query_handler("sound")
    def sound() -> str:
        return "answered"

    with resolving(given):
        registry = registry_of(clock_of, sound)

        assert registry.query_bus.ask(route="sound") == "answered"
        with pytest.raises(InvalidHandler) as caught:
            registry.query_bus.ask(Ask())
    assert text in str(caught.value)


# override() -----------------------------------------------------------------------


def test_override_replaces_a_service_inside_a_block():
    """Inside the block the replacement is given, after it the service again."""
    registry = registry_of(clock_of)
    real = registry.query_bus.ask(Ask())
    fake = object()

    with registry.override(Clock, lambda: fake):
        inside = registry.query_bus.ask(Ask())

    assert inside is fake
    assert registry.query_bus.ask(Ask()) is real


def test_override_ends_with_an_exception_and_nests():
    """Blocks nest, the inner one counts, and an exception ends them all the same."""
    registry = registry_of(clock_of)
    ask = functools.partial(registry.query_bus.ask, Ask())

    def fail_inside() -> None:
        with registry.override(Clock, lambda: "inner"):
            assert ask() == "inner"
            raise ValueError("no")

    with registry.override(Clock, lambda: "outer"):
        with pytest.raises(ValueError, match="no"):
            fail_inside()
        assert ask() == "outer"
    assert isinstance(ask(), Clock)


def test_override_reaches_what_other_services_hold():
    """A service built before is built anew with the replacement, and not kept."""

    class Mailer:
        def __init__(self, clock: Clock) -> None:
            self.clock = clock

    @query_handler
    def handle(query: Ask, mailer: Mailer) -> Mailer:
        return mailer

    registry = registry_of(handle)
    before = registry.query_bus.ask(Ask())

    with registry.override(Clock, lambda: "fake"):
        inside = registry.query_bus.ask(Ask())
        again = registry.query_bus.ask(Ask())

    assert inside.clock == "fake"
    assert again is inside
    assert registry.query_bus.ask(Ask()) is before
    assert isinstance(before.clock, Clock)


def test_override_leaves_no_replacement_in_a_service_first_built_inside():
    """What is first needed inside a block is built again after it."""

    class Mailer:
        def __init__(self, clock: Clock) -> None:
            self.clock = clock

    @query_handler
    def handle(query: Ask, mailer: Mailer) -> Mailer:
        return mailer

    registry = registry_of(handle)
    with registry.override(Clock, lambda: "fake"):
        assert registry.query_bus.ask(Ask()).clock == "fake"

    assert isinstance(registry.query_bus.ask(Ask()).clock, Clock)


def test_override_stands_before_a_resolver():
    """With a SERVICE_RESOLVER, an overridden class does not reach it."""
    container = Container()
    with resolving(container):
        registry = registry_of(clock_of)
        with registry.override(Clock, lambda: "fake"):
            assert registry.query_bus.ask(Ask()) == "fake"

    assert container.asked == []


def test_override_replaces_the_object_whose_methods_handle():
    """The receiver of a handler method is a service like any other."""

    @service
    class Counter:
        name = "real"

        @query_handler
        def count(self, query: Ask) -> str:
            return self.name

    class Fake:
        name = "fake"

    registry = registry_of(Counter)
    with registry.override(Counter, Fake):
        assert registry.query_bus.ask(Ask()) == "fake"

    assert registry.query_bus.ask(Ask()) == "real"


def test_a_reset_registry_builds_anew():
    """After a reset nothing built before is given."""
    registry = registry_of(clock_of)
    before = registry.query_bus.ask(Ask())

    registry.reset()

    assert registry.query_bus.ask(Ask()) is not before


# async ----------------------------------------------------------------------------


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_an_async_handler_is_run_to_its_end():
    """`async def` handlers, methods and wrapped ones give results, not coroutines."""

    @query_handler
    async def plain(query: Ask) -> str:
        return "plain"

    @wrapped
    @query_handler("wrapped")
    async def in_a_wrapper() -> str:
        return "wrapped"

    @service
    class Service:
        @query_handler("method")
        async def method(self) -> str:
            return "method"

        @query_handler("class")
        @classmethod
        async def of_class(cls) -> str:
            return cls.__name__

    bus = registry_of(plain, in_a_wrapper, Service).query_bus

    assert bus.ask(Ask()) == "plain"
    assert bus.ask(route="wrapped") == "wrapped"
    assert bus.ask(route="method") == "method"
    assert bus.ask(route="class") == "Service"
