"""How the parameters of handlers are filled."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import threading
import typing
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Optional, Protocol, Union
from uuid import UUID

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest
from typing_extensions import TypeAliasType

from django_cqrs import (
    CommandBus,
    Depends,
    EventBus,
    Header,
    Headers,
    Message,
    QueryBus,
    Registry,
    Service,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.annotations import place_of
from django_cqrs.exceptions import (
    CQRSError,
    InvalidHandler,
    MessageConversionError,
    MissingHeader,
    ParameterError,
)
from django_cqrs.problems import Rule
from tests.limits import LIMIT
from tests.support import registry_of
from tests.testapp.models import Note


def problems_of(*targets):
    return [str(problem) for problem in registry_of(*targets).routes.problems]


def unfillable(function, parameter, reason):
    return (
        f"Nothing can fill the parameter {parameter!r} of "
        f"{__name__}.{function.__qualname__}: {reason}. Annotate it as described in "
        "the reference of parameters, or give it a default. (django_cqrs.E005)"
    )


@dataclass(frozen=True)
class Ask:
    number: int = 0


class Clock:
    """A plain class: a service where it is not the first parameter."""

    def __init__(self) -> None:
        self.ticks = 0

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks


@service
class Mailer:
    def __init__(self, clock: Clock, queries: QueryBus, sender: str = "me") -> None:
        self.clock = clock
        self.queries = queries
        self.sender = sender


class Gateway:
    pass


class Color(enum.Enum):
    RED = "red"


def open_gateway() -> Gateway:
    return Gateway()


def double_number(query: Ask) -> int:
    return query.number * 2


# B11.1: the table -----------------------------------------------------------------


@query_handler
def everything(  # noqa: PLR0917
    query: Ask,
    mailer: Mailer,
    clock: Clock,
    executor: Annotated[int, Header("executor_id")],
    color: Annotated[Color | None, Header("color")],
    commands: CommandBus,
    queries: QueryBus,
    events: EventBus,
    message: Message,
    headers: Headers,
    gateway: Annotated[Gateway, Depends(open_gateway)],
    doubled: Annotated[int, Depends(double_number)],
    marked: Annotated[Clock, Service()],
    marked_by_class: Annotated[Clock, Service],
    tenant: Annotated[str, Header("tenant")] = "none",
    number: int = 17,
) -> dict[str, Any]:
    return locals()


def assert_everything(registry, answer, query):
    message = answer["message"]
    assert answer["query"] is query
    assert isinstance(answer["mailer"], Mailer)
    assert isinstance(answer["clock"], Clock)
    assert answer["mailer"].clock is answer["clock"]
    assert answer["mailer"].queries is registry.query_bus
    assert answer["mailer"].sender == "me"
    assert answer["executor"] == 7
    assert answer["color"] is None
    assert answer["commands"] is registry.command_bus
    assert answer["queries"] is registry.query_bus
    assert answer["events"] is registry.event_bus
    assert message.payload is query
    assert dict(answer["headers"]) == {
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "causation_id": None,
        "timestamp": message.timestamp,
        "attempt": 1,
        "is_last_attempt": True,
        "executor_id": "7",
    }
    assert isinstance(answer["gateway"], Gateway)
    assert answer["doubled"] == 8
    assert answer["marked"] is answer["clock"]
    assert answer["marked_by_class"] is answer["clock"]
    assert answer["tenant"] == "none"
    assert answer["number"] == 17


def test_every_rule_in_one_handler():
    """Each row of the table fills its parameter. [B11.1]"""
    registry = registry_of(everything)
    query = Ask(4)

    answer = registry.query_bus.ask(query, headers={"executor_id": "7"})

    assert registry.routes.problems == ()
    assert_everything(registry, answer, query)


@pytest.mark.parametrize("turn", range(14))
def test_in_any_order_after_the_payload(turn):
    """The rows may stand in any order, after the payload and also before it. [B11.1]"""
    parameters = list(inspect.signature(everything).parameters.values())
    required = [p for p in parameters if p.default is p.empty]
    turned = [*required[turn:], *required[:turn], *parameters[len(required) :]]
    # Later plain classes are services, so the payload stands before them.
    plain = next(p for p in turned if p.name == "clock")
    if turned.index(plain) < turned.index(parameters[0]):
        turned.remove(plain)
        turned.insert(turned.index(parameters[0]) + 1, plain)
    names = ", ".join(p.name + ("" if p.default is p.empty else "=D") for p in turned)
    namespace: dict[str, Any] = {"D": None, "__name__": __name__}
    exec(f"def handle({names}): return locals()", namespace)
    handle = namespace["handle"]
    handle.__annotations__ = {p.name: p.annotation for p in turned}
    handle.__defaults__ = tuple(p.default for p in turned if p.default is not p.empty)
    handle.__globals__.update(globals())
    registry = registry_of(query_handler(handle))
    query = Ask(4)

    answer = registry.query_bus.ask(query, headers={"executor_id": "7"})

    assert_everything(registry, answer, query)


def test_keyword_only_and_positional_only_parameters():
    """`/` and `*` in a signature are respected, and `*args`, `**kwargs` left alone. [B11.1]"""

    @query_handler
    def handle(
        query: Ask, clock: Clock, /, *args: int, queries: QueryBus, **kwargs: str
    ) -> Any:
        return query, clock.ticks, args, queries, kwargs

    registry = registry_of(handle)

    assert registry.query_bus.ask(Ask(1)) == (
        Ask(1),
        0,
        (),
        registry.query_bus,
        {},
    )


def test_a_keyword_only_payload():
    """The payload may be a keyword-only parameter. [B11.1]"""

    @query_handler
    def handle(*, query: Ask, clock: Clock) -> Any:
        return query.number, clock.ticks

    assert registry_of(handle).query_bus.ask(Ask(1)) == (1, 0)


def test_a_positional_only_default_is_kept():
    """A positional-only parameter that its default fills keeps its place. [B11.1]"""

    @query_handler
    def handle(query: Ask, limit: int = 10, mailer: Mailer = None, /) -> Any:
        return query, limit, type(mailer)

    assert registry_of(handle).query_bus.ask(Ask(1)) == (Ask(1), 10, Mailer)


def test_a_default_in_the_middle_is_kept():
    """A parameter that only its default fills shifts none of those after it. [B11.1]"""

    @query_handler
    def handle(query: Ask, limit: int = 10, clock: Clock = None, page: int = 1) -> Any:
        return query.number, limit, clock, page

    assert registry_of(handle).query_bus.ask(Ask(1)) == (1, 10, None, 1)


def test_the_payload_is_the_first_that_no_other_row_takes():
    """Headers, buses and dependencies before it are not taken for the payload. [B11.1]"""

    @query_handler
    def handle(
        events: EventBus,
        executor: Annotated[int, Header("executor_id")],
        query: Ask,
        other: Clock,
    ) -> Any:
        return events, executor, query, type(other)

    registry = registry_of(handle)

    assert registry.query_bus.ask(Ask(1), headers={"executor_id": 5}) == (
        registry.event_bus,
        5,
        Ask(1),
        Clock,
    )


def test_what_may_be_none_is_given_all_the_same():
    """`EventBus | None = None`, for calls without a bus, gets the bus from us. [B11.1]"""

    @query_handler
    def handle(
        query: Ask,
        events: EventBus | None = None,
        headers: Headers | None = None,
        message: Optional[Message] = None,
        mailer: Mailer | None = None,
    ) -> Any:
        return query, events, headers, message, mailer

    registry = registry_of(handle)
    query, events, headers, message, mailer = registry.query_bus.ask(Ask(1))

    assert handle(Ask(1)) == (Ask(1), None, None, None, None)
    assert (query, events) == (Ask(1), registry.event_bus)
    assert headers["message_id"] == message.message_id
    assert isinstance(mailer, Mailer)


Executor = Annotated[int, Header("executor_id")]
AliasedExecutor = TypeAliasType("AliasedExecutor", Executor)
Doubled = TypeAliasType("Doubled", Annotated[int, Depends(double_number)])


def test_marks_inside_an_alias_or_a_union_count():
    """A mark is found in an alias, in a `type` statement's, and beside `| None`. [B11.1]"""

    @query_handler
    def handle(  # noqa: PLR0917
        executor: Executor,
        aliased: AliasedExecutor,
        optional: Executor | None,
        doubled: Doubled,
        query: Ask,
        other: Annotated[int, Header("other")] | None = None,
    ) -> Any:
        return executor, aliased, optional, doubled, query, other

    bus = registry_of(handle).query_bus

    assert bus.ask(Ask(4), headers={"executor_id": "7"}) == (7, 7, 7, 8, Ask(4), None)
    assert bus.ask(Ask(4), headers={"executor_id": "7", "other": "9"})[-1] == 9


def test_without_a_payload_parameter():
    """A handler with a key may take everything but the payload. [B11.1]"""

    @query_handler("x")
    def handle(headers: Headers, queries: QueryBus) -> Any:
        return headers["a"], queries

    registry = registry_of(handle)

    assert registry.query_bus.ask(route="x", headers={"a": 1}) == (
        1,
        registry.query_bus,
    )


def test_methods_take_the_same():
    """An instance's, a class's and a static method are filled alike. [B11.1]"""

    @service
    class Handlers:
        @query_handler("instance")
        def instance(self, number: int, queries: QueryBus) -> Any:
            return number, queries

        @query_handler("class")
        @classmethod
        def of_class(cls, number: int, queries: QueryBus) -> Any:
            return number, queries

        @query_handler("static")
        @staticmethod
        def static(number: int, queries: QueryBus) -> Any:
            return number, queries

    bus = registry_of(Handlers).query_bus

    assert bus.ask(1, route="instance") == (1, bus)
    assert bus.ask(2, route="class") == (2, bus)
    assert bus.ask(3, route="static") == (3, bus)


@pytest.mark.django_db
def test_commands_and_events_take_the_same():
    """All three kinds fill parameters by the same rules. [B11.1]"""
    seen = []

    @command_handler
    def command(query: Ask, events: EventBus, clock: Clock) -> None:
        events.publish(query)
        seen.append(("command", clock.tick()))

    @event_handler
    def event(query: Ask, clock: Clock, message: Message) -> None:
        seen.append(("event", clock.tick(), message.payload))

    registry_of(command, event).command_bus.dispatch(Ask(1))

    assert seen == [("event", 1, Ask(1)), ("command", 2)]


# Headers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "given", "expected"),
    [
        (int, "7", 7),
        (int, 7, 7),
        (str, 7, "7"),
        (str, UUID(int=7), str(UUID(int=7))),
        (str, Decimal("1.50"), "1.50"),
        (str, Color.RED, "red"),
        (str, datetime(2025, 1, 2, tzinfo=UTC), "2025-01-02T00:00:00+00:00"),
        (UUID, str(UUID(int=7)), UUID(int=7)),
        (UUID, UUID(int=7), UUID(int=7)),
        (Color, "red", Color.RED),
        (Color, Color.RED, Color.RED),
        (Decimal, "1.50", Decimal("1.50")),
        (datetime, "2025-01-02T00:00:00Z", datetime(2025, 1, 2, tzinfo=UTC)),
        (bool, "true", True),
        (Optional[int], "7", 7),
        (Union[int, None], None, None),
        (Any, "7", "7"),
        (object, "7", "7"),
    ],
    ids=repr,
)
def test_a_header_is_converted(annotation, given, expected):
    """A header arrives as the type of its parameter. [B11.1]"""

    def handle(query, value):
        return value

    handle.__annotations__ = {
        "query": Ask,
        "value": Annotated[annotation, Header("value")],
    }
    result = registry_of(query_handler(handle)).query_bus.ask(
        Ask(), headers={"value": given}
    )

    assert result == expected
    assert type(result) is type(expected)


def test_a_missing_header():
    """Missing, a header is its default, then None where that may be, else an error. [B11.1]"""

    @query_handler("default")
    def default(value: Annotated[int, Header("value")] = 5) -> Any:
        return value

    @query_handler("optional")
    def optional(value: Annotated[int | None, Header("value")]) -> Any:
        return value

    @query_handler("both")
    def both(value: Annotated[int | None, Header("value")] = 5) -> Any:
        return value

    @query_handler("required")
    def required(value: Annotated[int, Header("value")]) -> Any:
        return value

    bus = registry_of(default, optional, both, required).query_bus

    assert bus.ask(route="default") == 5
    assert bus.ask(route="optional") is None
    assert bus.ask(route="both") == 5
    assert bus.ask(route="both", headers={"value": None}) is None
    with pytest.raises(MissingHeader) as caught:
        bus.ask(route="required")
    assert str(caught.value) == (
        f"{__name__}.{required.__qualname__} requires the header 'value', but the "
        "message does not have it. Give it with headers={'value': ...}, or give "
        "the parameter 'value' a default."
    )
    for base in (ParameterError, CQRSError, LookupError, TypeError):
        assert isinstance(caught.value, base)


@pytest.mark.django_db
def test_a_header_of_a_wrong_type_is_an_error_before_the_handler():
    """A header that does not convert is named by its path, and nothing is written. [B11.1]"""

    @command_handler
    def handle(command: Ask, executor: Annotated[int, Header("executor_id")]) -> None:
        Note.objects.create(text="called")

    with pytest.raises(MessageConversionError) as caught:
        registry_of(handle).command_bus.dispatch(
            Ask(), headers={"executor_id": "nobody"}
        )

    assert str(caught.value) == (
        "Cannot convert the header to int: headers.executor_id: Input should be a "
        "valid integer, unable to parse string as an integer."
    )
    assert Note.objects.count() == 0


def test_the_messages_own_headers_by_name():
    """message_id, correlation_id, causation_id and timestamp are headers too. [B11.1]"""

    @query_handler
    def handle(  # noqa: PLR0917
        query: Ask,
        message: Message,
        message_id: Annotated[UUID, Header("message_id")],
        correlation_id: Annotated[str, Header("correlation_id")],
        causation_id: Annotated[UUID | None, Header("causation_id")],
        timestamp: Annotated[datetime, Header("timestamp")],
    ) -> Any:
        return (
            message_id == message.message_id,
            correlation_id == str(message.correlation_id),
            causation_id is None,
            timestamp == message.timestamp,
        )

    assert registry_of(handle).query_bus.ask(Ask()) == (True, True, True, True)


def test_headers_are_read_only():
    """Nobody changes a message's headers. [B11.1]"""

    @query_handler
    def handle(query: Ask, headers: Headers) -> Any:
        return headers

    headers = registry_of(handle).query_bus.ask(Ask(), headers={"a": 1})

    with pytest.raises(TypeError):
        headers["a"] = 2
    assert headers["a"] == 1


# Depends --------------------------------------------------------------------------


def test_a_dependency_is_made_once_per_message():
    """Two parameters and two factories that need one thing share it; messages do not. [B11.1]"""
    made = []

    def connect() -> int:
        made.append(len(made))
        return made[-1]

    def cursor(connection: Annotated[int, Depends(connect)]) -> str:
        return f"cursor {connection}"

    @query_handler
    def handle(
        query: Ask,
        one: Annotated[int, Depends(connect)],
        two: Annotated[int, Depends(connect)],
        three: Annotated[str, Depends(cursor)],
    ) -> Any:
        return one, two, three

    bus = registry_of(handle).query_bus

    assert bus.ask(Ask()) == (0, 0, "cursor 0")
    assert bus.ask(Ask()) == (1, 1, "cursor 1")
    assert made == [0, 1]


def test_a_factorys_parameters_are_filled_like_a_handlers():
    """A factory takes headers, buses, services, dependencies and the payload. [B11.1]"""

    def make(  # noqa: PLR0917
        query: Ask,
        executor: Annotated[int, Header("executor_id")],
        clock: Clock,
        queries: QueryBus,
        message: Message,
        gateway: Annotated[Gateway, Depends(open_gateway)],
        limit: int = 10,
    ) -> Any:
        return query, executor, type(clock), queries, message.payload, limit

    @query_handler
    def handle(query: Ask, made: Annotated[Any, Depends(make)]) -> Any:
        return made

    bus = registry_of(handle).query_bus
    query = Ask(1)

    assert bus.ask(query, headers={"executor_id": "7"}) == (
        query,
        7,
        Clock,
        bus,
        query,
        10,
    )


def test_a_generator_is_closed_after_the_message():
    """What stands after `yield` runs when the handler has returned, last made first. [B11.1]"""
    log = []

    def outer() -> Iterator[str]:
        log.append("open outer")
        yield "outer"
        log.append("close outer")

    def inner(outer: Annotated[str, Depends(outer)]) -> Iterator[str]:
        log.append("open inner")
        yield f"{outer} inner"
        log.append("close inner")

    @query_handler
    def handle(query: Ask, made: Annotated[str, Depends(inner)]) -> str:
        log.append("handle")
        return made

    assert registry_of(handle).query_bus.ask(Ask()) == "outer inner"
    assert log == ["open outer", "open inner", "handle", "close inner", "close outer"]


def test_a_generator_sees_the_failure_and_cannot_hide_it():
    """A handler's exception passes through the generators and reaches the caller. [B11.1]"""
    log = []
    error = ValueError("no")

    def swallow() -> Iterator[None]:
        try:
            yield
        except ValueError as caught:
            log.append(caught)

    def finish(swallow: Annotated[None, Depends(swallow)]) -> Iterator[None]:
        try:
            yield
        finally:
            log.append("finished")

    @query_handler
    def handle(query: Ask, made: Annotated[None, Depends(finish)]) -> None:
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        registry_of(handle).query_bus.ask(Ask())

    assert caught.value is error
    assert log == ["finished", error]


def test_generators_are_closed_where_a_later_parameter_fails():
    """What was opened before a missing header is closed all the same. [B11.1]"""
    log = []

    def opened() -> Iterator[None]:
        log.append("open")
        try:
            yield
        finally:
            log.append("close")

    @query_handler
    def handle(
        query: Ask,
        made: Annotated[None, Depends(opened)],
        executor: Annotated[int, Header("executor_id")],
    ) -> None: ...

    with pytest.raises(MissingHeader):
        registry_of(handle).query_bus.ask(Ask())

    assert log == ["open", "close"]


@pytest.mark.django_db(transaction=True)
def test_a_commands_generator_is_closed_after_the_commit():
    """A command's dependency is closed when its transaction is over. [B11.1]"""
    log = []

    def watch() -> Iterator[None]:
        yield
        log.append(Note.objects.count())

    @command_handler
    def handle(command: Ask, made: Annotated[None, Depends(watch)]) -> None:
        Note.objects.create(text="x")

    @command_handler("fail")
    def fail(made: Annotated[None, Depends(watch)]) -> None:
        Note.objects.create(text="y")
        raise ValueError("no")

    bus = registry_of(handle, fail).command_bus
    bus.dispatch(Ask())

    assert log == [1]
    with pytest.raises(ValueError, match="no"):
        bus.dispatch(route="fail")
    assert log == [1]


def test_a_nested_message_has_its_own_dependencies():
    """A query asked while another is handled makes its own, and closes them first. [B11.1]"""
    made, closed = [], []

    def connect() -> Iterator[int]:
        made.append(len(made))
        number = made[-1]
        yield number
        closed.append(number)

    @query_handler("inner")
    def inner(number: Annotated[int, Depends(connect)]) -> int:
        return number

    @query_handler("outer")
    def outer(number: Annotated[int, Depends(connect)], queries: QueryBus) -> Any:
        return number, queries.ask(route="inner"), list(closed)

    assert registry_of(inner, outer).query_bus.ask(route="outer") == (0, 1, [1])
    assert closed == [1, 0]


class UnitOfWork:
    def __init__(self, headers: Headers, query: Ask, clock: Clock) -> None:
        self.headers = headers
        self.query = query
        self.clock = clock


class Factory:
    def __call__(self, query: Ask, clock: Clock) -> int:
        return query.number + clock.ticks

    def make(self, query: Ask) -> int:
        return query.number * 10


async def make_later(query: Ask) -> int:
    return query.number * 100


def add(number: int, query: Ask) -> int:
    return number + query.number


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (double_number, 6),
        (Factory(), 3),
        (Factory().make, 30),
        (make_later, 300),
        (functools.partial(add, 1), 4),
        (lambda: 17, 17),
        (dict, {}),
    ],
    ids=["function", "callable", "method", "async", "partial", "lambda", "built-in"],
)
def test_a_factory_is_any_callable(factory, expected):
    """A function, an object with __call__, a method, a partial, a coroutine function. [B11.1]"""

    def handle(query, made):
        return made

    handle.__annotations__ = {"query": Ask, "made": Annotated[Any, Depends(factory)]}
    registry = registry_of(query_handler(handle))

    assert problems_of(handle) == []
    assert registry.query_bus.ask(Ask(3)) == expected


def test_a_class_is_a_factory_made_for_each_message():
    """A class given to Depends is built per message, also from what is the message's. [B11.1]"""

    @query_handler
    def handle(query: Ask, unit: Annotated[UnitOfWork, Depends(UnitOfWork)]) -> Any:
        return unit

    bus = registry_of(handle).query_bus
    one = bus.ask(Ask(1), headers={"a": 1})
    two = bus.ask(Ask(2), headers={"a": 2})

    assert (one.query, one.headers["a"]) == (Ask(1), 1)
    assert (two.query, two.headers["a"]) == (Ask(2), 2)
    assert one.clock is two.clock


@contextmanager
def managed() -> Iterator[str]:
    yield "managed"


def test_a_context_manager_function_gives_the_manager():
    """@contextmanager is no generator function: the handler enters it itself. [B11.1]"""

    @query_handler
    def handle(query: Ask, made: Annotated[Any, Depends(managed)]) -> str:
        with made as value:
            return value

    assert registry_of(handle).query_bus.ask(Ask()) == "managed"


def test_factories_that_need_each_other_are_a_check():
    """A circle of factories is a check, not an endless loop at start-up. [B11.1]"""
    registry = registry_of(circular_handler)

    assert [problem.rule for problem in registry.routes.problems] == [
        Rule.UNFILLABLE_PARAMETER
    ]
    assert registry.routes.problems[0].message == (
        f"Circular dependency: {__name__}.first -> {__name__}.second -> "
        f"{__name__}.first."
    )
    with pytest.raises(InvalidHandler):
        registry.query_bus.ask(Ask())


def first(second: Annotated[int, Depends(second)]) -> int:
    return 1


def second(first: Annotated[int, Depends(first)]) -> int:
    return 2


@query_handler
def circular_handler(query: Ask, made: Annotated[int, Depends(first)]) -> None: ...


def test_override_replaces_a_factory_inside_a_block():
    """`Registry.override` gives another thing in place of a factory's, for a test. [B11.1]"""

    @query_handler
    def handle(query: Ask, number: Annotated[int, Depends(double_number)]) -> int:
        return number

    registry = registry_of(handle)
    with registry.override(double_number, lambda: 99):
        inside = registry.query_bus.ask(Ask(2))

    assert inside == 99
    assert registry.query_bus.ask(Ask(2)) == 4


# B11.2: what cannot be filled -----------------------------------------------------


class Abstract(Protocol):
    def go(self) -> None: ...


class NeedsText:
    def __init__(self, url: str) -> None: ...


class NeedsUnknown:
    def __init__(self, other: Unknown) -> None: ...  # noqa: F821


def async_generator():
    async def generate():
        yield 1

    return generate


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (int, "int is neither a mark nor a class to build"),
        (list[int], "list[int] is neither a mark nor a class to build"),
        (Color, "Color is neither a mark nor a class to build"),
        # Python 3.14 writes it with a bar.
        (Union[Clock, None], str(Union[Clock, None]).removeprefix("typing.")),
        (Any, "Any is neither a mark nor a class to build"),
        (inspect.Parameter.empty, "it has no annotation"),
        (Note, "Note is a model: its objects are read, not built"),
        (
            Abstract,
            (
                "Abstract is abstract, SERVICES names no class for it, and "
                "SERVICE_RESOLVER is not set"
            ),
        ),
        (Annotated[int | str, Service()], "int | str is not a class"),
        (Annotated[int, Depends(17)], "Depends(17) needs a callable"),
        (Annotated[int, Header], "Header needs an argument: Header(...)"),
        (Annotated[int, Depends], "Depends needs an argument: Depends(...)"),
        (
            Annotated[int, Header("one"), Header("two")],
            "each of Header('one') and Header('two') would fill it; keep one",
        ),
        (
            Annotated[Clock, Depends(Clock), Service()] | None,
            "each of Depends(tests.parameters.test_parameters.Clock) and Service() would fill it",
        ),
    ],
    ids=str,
)
def test_an_unfillable_parameter_is_a_check(annotation, reason):
    """What no rule fills is a check that names handler and parameter, and raises. [B11.2]"""

    def handle(query, thing):
        pytest.fail("called")

    handle.__annotations__ = {"query": Ask, "thing": annotation}
    if annotation is inspect.Parameter.empty:
        del handle.__annotations__["thing"]
    registry = registry_of(query_handler(handle))
    with pytest.raises(InvalidHandler) as caught:
        registry.query_bus.ask(Ask())

    assert [str(problem) for problem in registry.routes.problems] == [str(caught.value)]
    assert f"the parameter 'thing' of {__name__}." in str(caught.value)
    assert reason in str(caught.value)
    assert [problem.obj for problem in registry.routes.problems] == [handle]


def test_an_async_generator_is_a_check():
    """An async generator cannot be a dependency; the check says what can. [B11.2]"""
    generate = async_generator()

    @query_handler
    def handle(query: Ask, thing: Annotated[int, Depends(generate)]) -> None: ...

    place = f"{__name__}.{generate.__qualname__}"
    assert problems_of(handle) == [
        unfillable(
            handle, "thing", f"{place} is an async generator; make it synchronous"
        )
    ]


def test_a_service_that_cannot_be_built_is_a_check():
    """What a service's __init__ cannot be given is reported, and raises at first use. [B11.2]"""

    @query_handler
    def handle(query: Ask, thing: NeedsText) -> None: ...

    registry = registry_of(handle)
    with pytest.raises(InvalidHandler) as caught:
        registry.query_bus.ask(Ask())

    assert str(caught.value) == unfillable(
        NeedsText.__init__, "url", "str is neither a mark nor a class to build"
    )
    assert [str(problem) for problem in registry.routes.problems] == [str(caught.value)]


def test_a_service_whose_annotations_cannot_be_read_is_a_check():
    """An unreadable __init__ is reported with its place. [B11.2]"""

    @query_handler
    def handle(query: Ask, thing: NeedsUnknown) -> None: ...

    assert problems_of(handle) == [
        (
            f"The annotations of {__name__}.NeedsUnknown.__init__ cannot be evaluated: "
            f"name 'Unknown' is not defined. Import the names they use at the top of the "
            f"module, not under TYPE_CHECKING. (django_cqrs.E006)"
        )
    ]


def test_the_handlers_own_class_is_checked_too():
    """A service with handlers that cannot be built breaks its instance methods alone. [B11.2]"""

    @service
    class Handlers:
        def __init__(self, url: str) -> None: ...

        @query_handler("instance")
        def instance(self) -> None: ...

        @query_handler("class")
        @classmethod
        def of_class(cls) -> str:
            return cls.__name__

    registry = registry_of(Handlers)

    assert [str(problem) for problem in registry.routes.problems] == [
        unfillable(
            Handlers.__init__, "url", "str is neither a mark nor a class to build"
        )
    ]
    assert registry.query_bus.ask(route="class") == "Handlers"
    with pytest.raises(InvalidHandler):
        registry.query_bus.ask(route="instance")


class NeedsMessage:
    def __init__(self, message: Message) -> None: ...


class NeedsHeaders:
    def __init__(self, headers: Headers) -> None: ...


class NeedsHeader:
    def __init__(self, executor: Annotated[int, Header("executor_id")]) -> None: ...


def generate() -> Iterator[int]:
    yield 1


class NeedsGenerator:
    def __init__(self, made: Annotated[int, Depends(generate)]) -> None: ...


@pytest.mark.parametrize(
    ("cls", "parameter", "what"),
    [
        (NeedsMessage, "message", "Message"),
        (NeedsHeaders, "headers", "Headers"),
        (NeedsHeader, "executor", "int"),
    ],
)
def test_a_service_takes_nothing_of_one_message(cls, parameter, what):
    """A service lives longer than a message, so it is given none of its parts. [B11.2]"""

    def handle(query, thing):
        pytest.fail("called")

    handle.__annotations__ = {"query": Ask, "thing": cls}

    assert problems_of(query_handler(handle)) == [
        unfillable(
            cls.__init__,
            parameter,
            f"{what} belongs to one message, but a service is built once for all "
            "messages",
        )
    ]


def test_a_service_takes_no_generator():
    """A generator is closed after one message, so no service keeps what it yields. [B11.2]"""

    @query_handler
    def handle(query: Ask, thing: NeedsGenerator) -> None: ...

    (text,) = problems_of(handle)

    assert "'made' of tests.parameters.test_parameters.NeedsGenerator.__init__" in text


def test_every_parameter_is_reported():
    """Two parameters that nothing fills are two checks. [B11.2]"""

    @query_handler
    def handle(query: Ask, one: int, two: str) -> None: ...

    assert problems_of(handle) == [
        unfillable(handle, "one", "int is neither a mark nor a class to build"),
        unfillable(handle, "two", "str is neither a mark nor a class to build"),
    ]


def test_a_dict_before_the_payload_is_the_payload():
    """A dict, a list or a scalar that comes first is the payload: a key routes it. [B11.2]"""

    @query_handler("x")
    def handle(data: dict[str, Any], clock: Clock) -> Any:
        return data

    assert registry_of(handle).query_bus.ask({"a": 1}, route="x") == {"a": 1}


# B11.3: annotations as text -------------------------------------------------------


def test_this_module_has_annotations_as_text():
    """With `from __future__ import annotations` all of the above holds. [B11.3]"""
    assert everything.__annotations__["mailer"] == "Mailer"


def test_classes_of_the_function_around_are_found():
    """An annotation may name what is local where the handler is decorated. [B11.3]"""

    @dataclass
    class Local:
        number: int = 0

    class LocalService:
        pass

    def local_factory() -> int:
        return 5

    @query_handler
    def handle(
        query: Local,
        thing: LocalService,
        made: Annotated[int, Depends(local_factory)],
    ) -> Any:
        return query.number, type(thing) is LocalService, made

    assert registry_of(handle).query_bus.ask(Local(1)) == (1, True, 5)


def test_a_class_in_a_function_finds_its_own_name_and_its_surroundings():
    """A method's annotations may name the class itself and what stands around it. [B11.3]"""

    @dataclass
    class Local:
        number: int = 0

    @service
    class Handlers:
        @query_handler
        def handle(self, query: Local, other: Handlers) -> bool:
            return other is self

    assert registry_of(Handlers).query_bus.ask(Local()) is True


def test_an_annotation_that_cannot_be_evaluated_is_a_check():
    """A name that does not exist is a check with the place and what to do. [B11.3]"""

    @query_handler("x")
    def handle(query: Ask, other: Unknown) -> None: ...  # noqa: F821

    registry = registry_of(handle)
    text = (
        f"The annotations of {__name__}.{handle.__qualname__} cannot be evaluated: "
        f"name 'Unknown' is not defined. Import the names they use at the top of the "
        f"module, not under TYPE_CHECKING. (django_cqrs.E006)"
    )
    with pytest.raises(InvalidHandler) as caught:
        registry.query_bus.ask(route="x")

    assert [str(problem) for problem in registry.routes.problems] == [text]
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "annotation", ["1 +", "Ask[", "not a type", "Ask.missing", "Ask['x']", "1 / 0"]
)
def test_an_annotation_that_is_no_annotation_is_a_check(annotation):
    """Broken annotation text breaks its own handler, never the registry. [B11.3]"""

    def handle(query, other):
        pytest.fail("called")

    handle.__annotations__ = {"query": "Ask", "other": annotation}
    registry = registry_of(query_handler("x")(handle))

    assert len(registry.routes.problems) == 1
    assert registry.routes.problems[0].rule is Rule.UNREADABLE_SIGNATURE
    with pytest.raises(InvalidHandler):
        registry.query_bus.ask(route="x")


def test_a_wrapped_handlers_annotations_are_found():
    """functools.wraps around a handler leaves its text annotations readable. [B11.3]"""

    @dataclass
    class Local:
        number: int = 0

    def wrapped(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @wrapped
    @query_handler
    @wrapped
    def handle(query: Local, queries: QueryBus) -> Any:
        return query.number, queries

    bus = registry_of(handle).query_bus

    assert bus.ask(Local(3)) == (3, bus)


# B11.4 ----------------------------------------------------------------------------


@contextmanager
def reflection() -> Iterator[list[str]]:
    """Collect the calls of `inspect` and of the readers of annotations."""
    calls: list[str] = []
    readers = {typing.get_type_hints.__code__, typing.get_origin.__code__}

    def profile(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and (
            code.co_filename == inspect.__file__ or code in readers
        ):
            calls.append(code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_the_count_counts():
    """What the next tests rely on: reflection is seen. [B11.4]"""
    with reflection() as calls:
        inspect.signature(everything)
        typing.get_type_hints(everything)

    assert "signature" in calls
    assert "get_type_hints" in calls


@pytest.mark.django_db
def test_no_reflection_while_dispatching():
    """A hundred dispatches, asks and publications read no signature. [B11.4]"""

    @command_handler
    def command(
        command: Ask,
        events: EventBus,
        executor: Annotated[int, Header("executor_id")],
        doubled: Annotated[int, Depends(double_number)],
        mailer: Mailer,
    ) -> None:
        events.publish(command)

    @event_handler
    def event(event: Ask, clock: Clock) -> None: ...

    @event_handler("asked")
    def named(event: Ask, headers: Headers) -> None: ...

    registry = registry_of(command, event, named, everything)
    headers = {"executor_id": "7"}

    def send() -> None:
        registry.command_bus.dispatch(Ask(1), headers=headers)
        registry.query_bus.ask(Ask(1), headers=headers)
        registry.event_bus.publish(Ask(1), headers=headers)
        registry.event_bus.publish(Ask(1), route="asked")
        registry.event_bus.publish({"number": 1}, route="asked")

    send()
    with reflection() as calls:
        for _ in range(100):
            send()

    assert calls == []


# Services in handlers: see test_services.py for how they are built -----------------


def test_parameters_of_two_threads_do_not_mix():
    """Messages handled at once in several threads each get their own."""
    barrier = threading.Barrier(8)
    results: list[bool] = []

    def number_of(query: Ask) -> int:
        barrier.wait(LIMIT)
        return query.number

    @query_handler
    def handle(
        query: Ask,
        number: Annotated[int, Depends(number_of)],
        executor: Annotated[int, Header("executor_id")],
    ) -> Any:
        return query.number, number, executor

    bus = registry_of(handle).query_bus

    def ask(number: int) -> None:
        answer = bus.ask(Ask(number), headers={"executor_id": str(number)})
        results.append(answer == (number, number, number))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [True] * 8


@dataclass
class Settings:
    """A dataclass is a plain class too: all of its fields have defaults."""

    retries: int = 3
    tags: list[str] = field(default_factory=list)


def test_a_dataclass_with_defaults_is_a_service():
    """A later dataclass is built once, from its defaults."""

    @query_handler
    def handle(query: Ask, settings: Settings) -> Any:
        return settings

    bus = registry_of(handle).query_bus

    assert bus.ask(Ask()) == Settings()
    assert bus.ask(Ask()) is bus.ask(Ask())


class TitledByLength(tuple):
    __slots__ = ()


@message("parameters.pinged")
@dataclass
class Pinged:
    """A message whose fields all have defaults."""

    number: int = 0


@dataclass
class Titled:
    title: str


@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (HttpRequest, "a class of Django's, not a service"),
        (AnonymousUser, "a class of Django's, not a service"),
        (UploadedFile, "a class of Django's, not a service"),
        (Path, "a class of Python's, not a service"),
        (Thread, "a class of Python's, not a service"),
        (Pinged, "a message, and a handler takes only one"),
        (KeyError, "an exception, not a service"),
        (TitledByLength, "a value, not a service"),
    ],
)
def test_what_nobody_means_as_a_service_is_not_built(cls, what):
    """Else the handler would get an empty request, path, user or message."""

    def handle(command, thing): ...

    handle.__annotations__ = {"command": Titled, "thing": cls}
    registry = Registry()
    registry.add(command_handler(handle))
    (problem,) = registry.problems

    assert problem.message == (
        f"Nothing can fill the parameter 'thing' of {place_of(handle)}: "
        f"{cls.__qualname__} is {what}. To have it built without arguments, write "
        f"Annotated[{cls.__name__}, Service()]."
    )
    with pytest.raises(InvalidHandler):
        registry.command_bus.dispatch(Titled("x"))


@pytest.mark.django_db
def test_whoever_means_a_class_of_python_as_a_service_says_so():
    """Marked, or replaced in a test, or left to a resolver, it is given."""
    registry = Registry()

    @command_handler
    def handle(command: Titled, counter: Annotated[Counter, Service()]) -> Counter:
        return counter

    registry.add(handle)

    assert registry.command_bus.dispatch(Titled("x")) == Counter()


def test_a_second_message_parameter_names_the_handler():
    """Not only the constructor of the class that stands there."""

    def handle(first: Titled, second: Titled): ...

    registry = Registry()
    registry.add(command_handler(handle))
    (problem,) = registry.problems

    assert problem.message == (
        f"Nothing can fill the parameter 'second' of {place_of(handle)}: another "
        "parameter already receives the message as Titled, which is not a service to "
        "build; keep one of the two, or use Depends(...) for this one."
    )


@pytest.mark.parametrize("policies", [{}, {"channel": "memory", "ordering_key": "a"}])
@pytest.mark.parametrize("given", [5, Titled("x"), [int], ..., len], ids=repr)
def test_an_object_for_an_annotation_is_a_check(given, policies):
    """An annotation that is no type at all is said to be one, wherever it stands."""

    def handle(command): ...

    handle.__annotations__ = {"command": given}
    registry = Registry()
    registry.add(command_handler("key", **policies)(handle))

    assert registry.problems[0].message == (
        f"The parameter 'command' of {place_of(handle)} is annotated with {given!r}, "
        "which is an object, not a type."
    )
