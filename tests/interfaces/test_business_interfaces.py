"""Protocols whose methods are routes: one typed face of a module."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Protocol
from uuid import UUID, uuid4

import pytest
from asgiref.sync import sync_to_async
from django.core.checks import run_checks
from django.db import connection

from django_cqrs import (
    CommandBus,
    Header,
    Headers,
    Message,
    Registry,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.checks import check_registry
from django_cqrs.conversion.compatibility import may_become
from django_cqrs.exceptions import (
    InvalidHandler,
    MessageConversionError,
    MissingHeader,
    SynchronousDispatch,
    UnexpectedResult,
)
from django_cqrs.interception import Proceed, around, before, pointcut
from django_cqrs.modelling import (
    Identifier,
    business_interface,
    business_method,
    implement,
)
from django_cqrs.modelling.interfaces.decorators import is_business_interface
from tests.testapp.messages import FindTickets, OpenTicket
from tests.testapp.models import Note


@dataclass(frozen=True)
class Open:
    title: str
    priority: int = 3


@dataclass(frozen=True)
class Close:
    number: int


@dataclass(frozen=True)
class Urgent(Close):
    reason: str = ""


@dataclass(frozen=True)
class Find:
    text: str


@message("ticket.opened")
@dataclass(frozen=True)
class Opened:
    title: str


@dataclass(frozen=True)
class Row:
    text: str
    number: int


@dataclass(frozen=True)
class Sent:
    """What a handler saw of a message."""

    payload: Any
    headers: dict[str, Any]
    in_transaction: bool


@business_interface
class TicketApi(Protocol):
    """What tickets are to the rest of the project."""

    @business_method("ticket.open")
    def open(self, command: Open) -> UUID: ...

    @business_method
    def close(self, command: Close) -> int: ...

    @business_method("ticket.rename")
    def rename(
        self,
        title: str,
        executor: Annotated[int, Header("executor_id")],
        reason: Annotated[str | None, Header("reason")] = None,
    ) -> Sent: ...

    @business_method("ticket.count")
    def count(self) -> int: ...

    @business_method("ticket.rows")
    def rows(self, text: str = "a") -> list[Row]: ...

    @business_method()
    def find(self, query: Find) -> Row | None: ...

    @business_method("ticket.opened")
    def announce(self, event: Opened) -> None: ...


class Desk:
    """A registry with handlers for every route of TicketApi, and what they saw."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.seen: list[Any] = []
        self.answer: Any = None
        seen = self.seen

        @self.registry.add
        @command_handler("ticket.open")
        def open_ticket(command: Open) -> UUID:
            seen.append((command, connection.in_atomic_block))
            return self.answer

        @self.registry.add
        @command_handler
        def close(command: Close) -> int:
            return command.number

        @self.registry.add
        @command_handler("ticket.rename")
        def rename(title: str, message: Message, headers: Headers) -> Sent:
            users = {k: v for k, v in headers.items() if k in {"executor_id", "reason"}}
            return Sent(title, users, connection.in_atomic_block)

        @self.registry.add
        @query_handler("ticket.count")
        def count():
            return self.answer

        @self.registry.add
        @query_handler("ticket.rows")
        def rows(text: str):
            return self.answer

        @self.registry.add
        @query_handler
        def find(query: Find):
            return self.answer

        @self.registry.add
        @event_handler
        def on_opened(event: Opened) -> None:
            seen.append(event)

        self.tickets = implement(TicketApi, registry=self.registry)


@pytest.fixture
def desk():
    return Desk()


def problems_of(interface, *handlers):
    registry = Registry()
    for handler in handlers:
        registry.add(handler)
    implement(interface, registry=registry)
    return [(each.id, each.msg, each.hint) for each in check_registry(registry)]


def only_problem_of(interface, *handlers):
    (problem,) = problems_of(interface, *handlers)
    return problem


# ----------------------------------------------------------------------------- M12.1


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_a_call_goes_to_its_route_through_the_bus(desk):
    """A command's method dispatches: the handler runs in the bus's transaction. [M12.1]"""
    desk.answer = uuid4()

    assert desk.tickets.open(Open("lamp")) == desk.answer
    assert desk.tickets.open(command=Open("desk", 1)) == desk.answer
    assert desk.seen == [(Open("lamp"), True), (Open("desk", 1), True)]
    assert not connection.in_atomic_block


@pytest.mark.django_db
def test_without_a_key_the_class_of_the_payload_leads(desk):
    """A method without a key sends its payload by its class, a subclass included. [M12.1]"""
    assert desk.tickets.close(Close(7)) == 7
    assert desk.tickets.close(Urgent(8)) == 8


@pytest.mark.django_db(transaction=True)
def test_a_query_is_asked_and_an_event_published(desk):
    """What the route is decides which bus takes it. [M12.1]"""
    desk.answer = 5

    assert desk.tickets.count() == 5
    assert desk.tickets.announce(Opened("lamp")) is None
    assert desk.seen == [Opened("lamp")]


@pytest.mark.django_db(transaction=True)
def test_interceptors_and_headers_apply(desk):
    """Interceptors of the bus stand around it, and headers pass on as ever. [M12.1]"""
    passed = []

    @desk.registry.add
    @around(pointcut.bus(desk.registry.command_bus))
    def watch(proceed: Proceed, message: Message):
        passed.append(type(message.payload).__name__)
        return proceed()

    @desk.registry.add
    @command_handler("outer")
    def outer(tickets: TicketApi) -> Sent:
        return tickets.rename("lamp", 7)

    sent = desk.registry.command_bus.dispatch(
        route="outer", headers={"reason": "because"}
    )

    assert sent == Sent("lamp", {"executor_id": 7, "reason": "because"}, True)
    assert passed == ["NoneType", "str"]


@pytest.mark.django_db(transaction=True)
def test_direct_goes_straight_to_the_handler():
    """``direct=True`` opens no transaction and passes by the bus's interceptors only. [M12.1]"""
    registry = Registry()
    passed = []

    @registry.add
    @around(pointcut.bus(CommandBus))
    def around_bus(proceed: Proceed):
        passed.append("bus")
        return proceed()

    @registry.add
    @before(pointcut.message(Close))
    def before_handler(command: Close):
        passed.append("handler")

    @registry.add
    @command_handler
    def close(command: Close, headers: Headers) -> str:
        return f"{command.number} {connection.in_atomic_block} {headers['user']}"

    @registry.add
    @query_handler("ticket.count")
    def count() -> int:
        return 3

    @business_interface(direct=True)
    class Direct(Protocol):
        @business_method
        def close(
            self, command: Close, user: Annotated[str, Header("user")] = "me"
        ) -> str: ...

        @business_method("ticket.count")
        def count(self) -> int: ...

    @business_interface
    class Through(Protocol):
        @business_method
        def close(
            self, command: Close, user: Annotated[str, Header("user")] = "me"
        ) -> str: ...

    direct = implement(Direct, registry=registry)

    assert check_registry(registry) == []
    assert direct.close(Close(1)) == "1 False me"
    assert direct.count() == 3
    assert passed == ["handler"]
    assert implement(Through, registry=registry).close(Close(2)) == "2 True me"
    assert passed == ["handler", "handler", "bus"]


@pytest.mark.django_db(transaction=True)
def test_a_failing_call_leaves_nothing(desk):
    """What a failing command wrote is undone, and its exception is unchanged. [M12.1]"""

    @desk.registry.add
    @command_handler("fail")
    def fail() -> None:
        Note.objects.create(text="lost")
        raise LookupError("as it was")

    @business_interface
    class Failing(Protocol):
        @business_method("fail")
        def fail(self) -> None: ...

    with pytest.raises(LookupError, match=r"^as it was$"):
        implement(Failing, registry=desk.registry).fail()

    assert not Note.objects.exists()


@pytest.mark.django_db(transaction=True)
async def test_async_methods(desk):
    """An ``async def`` method is awaited; a plain one in a loop raises. [M12.1]"""

    @business_interface
    class AsyncApi(Protocol):
        @business_method("ticket.open")
        async def open(self, command: Open) -> UUID: ...

        @business_method("ticket.count")
        async def count(self) -> Decimal: ...

        @business_method
        async def announce(self, event: Opened) -> None: ...

    tickets = implement(AsyncApi, registry=desk.registry)
    desk.answer = uuid4()

    assert await tickets.open(Open("lamp")) == desk.answer
    desk.answer = "1.5"
    assert await tickets.count() == Decimal("1.5")
    assert await tickets.announce(Opened("lamp")) is None
    assert desk.seen == [(Open("lamp"), True), Opened("lamp")]
    assert await sync_to_async(desk.tickets.close)(Close(1)) == 1
    with pytest.raises(SynchronousDispatch) as raised:
        desk.tickets.close(Close(1))
    assert str(raised.value) == (
        "TicketApi.close() was called in a running event loop and would block it. "
        "Use `async def close`."
    )


def test_implement_is_lazy_and_gives_one_object():
    """It looks at no route: it may be called while modules are imported. [M12.1]"""
    registry = Registry(lambda: pytest.fail("it looked"))

    tickets = implement(TicketApi, registry=registry)

    assert implement(TicketApi, registry=registry) is tickets
    assert TicketApi in type(tickets).__mro__
    assert repr(tickets) == (
        f"<{__name__}.TicketApi of <Registry endpoints=uncompiled>>"
    )
    assert tickets.open.__doc__ == TicketApi.open.__doc__
    with pytest.raises(TypeError, match=r"^TicketApi\.open\(\): missing a required"):
        Desk().tickets.open()


def test_the_global_registry_is_the_default():
    """Without ``registry=`` the handlers of the project are meant. [M12.1]"""

    @business_interface
    class Global(Protocol):
        @business_method
        def find(self, query: FindTickets) -> list[str]: ...

        @business_method
        def open(self, command: OpenTicket) -> None: ...

    assert implement(Global).find(FindTickets("lamp")) == ["lamp"]


@pytest.mark.django_db
def test_routes_are_looked_up_anew_after_a_change(desk):
    """A handler added later takes part in the next call. [M12.1]"""

    @business_interface
    class Later(Protocol):
        @business_method("later")
        def call(self) -> int: ...

    later = implement(Later, registry=desk.registry)
    with pytest.raises(InvalidHandler):
        later.call()

    @desk.registry.add
    @command_handler("later")
    def handle() -> int:
        return 1

    assert later.call() == 1


# ----------------------------------------------------------------------------- M12.2


@pytest.mark.django_db
def test_payload_and_header_parameters(desk):
    """Header parameters become headers; one that is None by default is not sent. [M12.2]"""
    assert desk.tickets.rename("lamp", 7) == Sent("lamp", {"executor_id": 7}, True)
    assert desk.tickets.rename("lamp", executor=7, reason="x") == Sent(
        "lamp", {"executor_id": 7, "reason": "x"}, True
    )


@pytest.mark.django_db
def test_a_dict_converts_to_what_the_handler_takes(desk):
    """With a key, a dict becomes the handler's class, or raises with every path. [M12.2]"""

    @business_interface
    class Loose(Protocol):
        @business_method("ticket.open")
        def open(self, command: dict[str, Any]) -> UUID: ...

    loose = implement(Loose, registry=desk.registry)
    desk.answer = uuid4()

    assert check_registry(desk.registry) == []
    assert loose.open({"title": "lamp", "priority": "1"}) == desk.answer
    assert desk.seen == [(Open("lamp", 1), True)]
    with pytest.raises(MessageConversionError) as raised:
        loose.open({"priority": "high"})
    assert [error.path for error in raised.value.errors] == ["title", "priority"]


@pytest.mark.django_db
def test_all_headers_at_once(desk):
    """A ``Headers`` parameter passes on all of the user's; a Header stands before it. [M12.2]"""

    @business_interface
    class Passing(Protocol):
        @business_method("ticket.rename")
        def rename(
            self,
            title: str,
            headers: Headers,
            executor: Annotated[int, Header("executor_id")] = 1,
        ) -> Sent: ...

    @desk.registry.add
    @command_handler("outer")
    def outer(headers: Headers, passing: Passing) -> Sent:
        return passing.rename("lamp", headers)

    sent = desk.registry.command_bus.dispatch(
        route="outer", headers={"executor_id": 9, "reason": "because"}
    )

    assert sent == Sent("lamp", {"executor_id": 1, "reason": "because"}, True)


@pytest.mark.django_db
def test_results_convert_to_the_annotation(desk):
    """Objects, dicts and models become what is annotated; what fits is left alone. [M12.2]"""
    row = Row("a", 1)
    desk.answer = row
    assert desk.tickets.find(Find("a")) is row
    desk.answer = {"text": "a", "number": "1"}
    assert desk.tickets.find(Find("a")) == row
    desk.answer = Note(text="a", number=1)
    assert desk.tickets.find(Find("a")) == row
    desk.answer = iter([Note(text="a", number=1), {"text": "b", "number": 2}])
    assert desk.tickets.rows() == [row, Row("b", 2)]
    desk.answer = "17"
    assert desk.tickets.count() == 17
    desk.answer = "many"
    with pytest.raises(MessageConversionError):
        desk.tickets.count()


@pytest.mark.django_db
def test_none_where_the_annotation_forbids_it_raises(desk):
    """None passes where the annotation allows it, and raises where not. [M12.2]"""
    assert desk.tickets.find(Find("a")) is None
    with pytest.raises(UnexpectedResult) as raised:
        desk.tickets.count()

    assert str(raised.value) == (
        f"{__name__}.TicketApi.count received None as its answer, but is annotated to "
        "return int."
    )


@pytest.mark.django_db
def test_a_method_annotated_with_none_gives_none(desk):
    """Whatever the handler returns, such a method returns nothing. [M12.2]"""

    @business_interface
    class Quiet(Protocol):
        @business_method("ticket.open")
        def open(self, command: Open) -> None: ...

        @business_method("ticket.count")
        def count(self): ...

    quiet = implement(Quiet, registry=desk.registry)
    desk.answer = object()

    assert quiet.open(Open("lamp")) is None
    assert quiet.count() is desk.answer


@pytest.mark.django_db
def test_an_iterator_converts_lazily(desk):
    """An Iterator converts each object when it is asked for. [M12.2]"""

    @business_interface
    class Lazy(Protocol):
        @business_method("ticket.rows")
        def rows(self, text: str) -> Iterator[Row]: ...

    rows = implement(Lazy, registry=desk.registry)
    taken = []

    def source():
        for number in range(3):
            taken.append(number)
            yield {"text": "a", "number": number}

    desk.answer = [{"text": "a", "number": "1"}, {"text": "a", "number": "many"}]
    found = rows.rows("a")

    assert next(found) == Row("a", 1)
    with pytest.raises(MessageConversionError):
        next(found)
    desk.answer = source()
    assert next(rows.rows("a")) == Row("a", 0)
    assert taken == [0]


@pytest.mark.django_db
def test_a_missing_header_is_the_handlers_error(desk):
    """What the handler requires and the method does not send raises as ever. [M12.2]"""

    @desk.registry.add
    @command_handler("strict")
    def strict(user: Annotated[int, Header("user")]) -> None: ...

    @business_interface
    class Forgetful(Protocol):
        @business_method("strict")
        def call(self) -> None: ...

    with pytest.raises(MissingHeader):
        implement(Forgetful, registry=desk.registry).call()


# ----------------------------------------------------------------------------- M12.3


def test_a_sound_interface_has_no_problem(desk):
    """The interface of this module passes the checks, and so do the app's. [M12.3]"""
    assert check_registry(desk.registry) == []
    assert run_checks(tags=["django_cqrs"]) == []


@command_handler("ticket.close")
def close_by_key(command: Close) -> int: ...


@command_handler("ticket.mail", channel="outbox")
def mail(text: str) -> None: ...


@command_handler("ticket.drop")
def drop(number: int) -> None: ...


@command_handler("ticket.touch")
def touch() -> None: ...


@query_handler("ticket.get")
def get_row(number: int) -> Row | None: ...


@event_handler("ticket.*")
def on_ticket(event: dict) -> None: ...


HANDLERS = (close_by_key, mail, drop, touch, get_row, on_ticket)


def test_E040_no_handler_has_the_key():
    """A key that nothing has is a check with what was probably meant, and raises. [M12.3]"""

    @business_interface
    class Wrong(Protocol):
        @business_method("ticket.clsoe")
        def close(self, command: Close) -> int: ...

    place = f"{__name__}.{Wrong.__qualname__}.close"
    text = f"{place} has no route: no handler has the key 'ticket.clsoe'."
    hint = "Did you mean 'ticket.close'?"
    handlers = HANDLERS[:-1]

    assert only_problem_of(Wrong, *handlers) == ("django_cqrs.E040", text, hint)
    registry = Registry()
    registry.add(close_by_key)
    with pytest.raises(InvalidHandler) as raised:
        implement(Wrong, registry=registry).close(Close(1))
    assert str(raised.value) == f"{text} {hint} (django_cqrs.E040)"


def test_E040_other_ways_to_lead_nowhere():
    """No decorator, no payload, no handler of the class, or two kinds of message. [M12.3]"""

    @query_handler("both")
    def one(command: Close) -> None: ...

    @command_handler("both")
    def other(command: Close) -> None: ...

    @business_interface
    class Wrong(Protocol):
        def plain(self) -> None: ...

        @business_method
        def empty(self) -> None: ...

        @business_method
        def unknown(self, command: Open) -> None: ...

        @business_method
        def untyped(self, command) -> None: ...

        @business_method("other")
        def far(self, command: Open) -> None: ...

        @business_method("both")
        def both(self, command: Close) -> None: ...

        def _private(self) -> None: ...

    place = f"{__name__}.{Wrong.__qualname__}"
    write = (
        'Write the handler, or give the method a key: @business_method("ticket.close").'
    )

    assert problems_of(Wrong, one, other) == [
        (
            "django_cqrs.E040",
            f"{place}.plain has no route: it is not decorated.",
            "Decorate it with @business_method, @sql_query or @sql_write.",
        ),
        (
            "django_cqrs.E040",
            f"{place}.empty has no route: it has neither a key nor a payload.",
            'Give it a key, @business_method("ticket.close"), or a payload.',
        ),
        (
            "django_cqrs.E040",
            f"{place}.unknown has no route: no handler takes Open.",
            write,
        ),
        (
            "django_cqrs.E040",
            f"{place}.untyped has no route: no handler takes anything.",
            write,
        ),
        (
            "django_cqrs.E040",
            f"{place}.far has no route: no handler has the key 'other'.",
            (
                "Check that its handler is decorated and in the handlers module of an "
                "installed app."
            ),
        ),
        (
            "django_cqrs.E040",
            (
                f"{place}.both leads to a command and a query alike: 'both' is the key of "
                "both."
            ),
            "Give one of them another key.",
        ),
    ]


@pytest.mark.parametrize(
    ("key", "payload", "returns", "fault"),
    [
        (
            "ticket.close",
            Open,
            int,
            f"its payload is Open, but {__name__}.close_by_key takes Close.",
        ),
        (
            "ticket.close",
            None,
            int,
            f"it has no payload, but {__name__}.close_by_key takes Close.",
        ),
        (
            "ticket.touch",
            Close,
            None,
            f"it has the payload 'payload', but {__name__}.touch takes no payload.",
        ),
        (
            "ticket.drop",
            list[int],
            None,
            f"its payload is list[int], but {__name__}.drop takes int.",
        ),
        (
            "ticket.drop",
            int,
            int,
            f"it returns int, but {__name__}.drop returns None.",
        ),
        (
            "ticket.get",
            int,
            UUID,
            (f"it returns UUID, but {__name__}.get_row returns {__name__}.Row | None."),
        ),
        (
            "ticket.mail",
            str,
            int,
            (
                f"it returns int, but {__name__}.mail has the channel 'outbox', so it "
                "is handled later and returns no answer."
            ),
        ),
        (
            "ticket.unheard",
            dict,
            int,
            "it returns int, but a published event has no answer.",
        ),
        ("ticket.close", Urgent, int, None),
        ("ticket.close", dict, None, None),
        ("ticket.close", Any, Decimal, None),
        ("ticket.drop", str, None, None),
        ("ticket.get", int, dict, None),
        ("ticket.get", int, Row, None),
        ("ticket.mail", str, None, None),
        ("ticket.unheard", dict, None, None),
    ],
)
def test_E041_types_that_do_not_fit(key, payload, returns, fault):
    """What is certain to fail at the call is a check, and nothing else is. [M12.3]"""

    @business_interface
    class Wrong(Protocol):
        if payload is None:

            @business_method(key)
            def call(self): ...

        else:

            @business_method(key)
            def call(self, payload): ...

    Wrong.call.__annotations__.update({"payload": payload, "return": returns})
    if payload is None:
        del Wrong.call.__annotations__["payload"]
    place = f"{__name__}.{Wrong.__qualname__}.call"

    found = [(each[0], each[1]) for each in problems_of(Wrong, *HANDLERS)]

    expected = []
    if fault is not None:
        expected = [("django_cqrs.E041", f"{place} does not fit: {fault}")]
    assert found == expected


def test_E041_parameters():
    """Two payloads, a reserved header, an identifier of what is no aggregate. [M12.3]"""

    @business_interface
    class Wrong(Protocol):
        @business_method("ticket.close")
        def two(self, command: Close, other: int) -> int: ...

        @business_method("ticket.close")
        def reserved(
            self, command: Close, sent: Annotated[datetime, Header("timestamp")]
        ) -> int: ...

        @business_method("ticket.touch")
        def identified(self, number: Annotated[int, Identifier()]) -> None: ...

    place = f"{__name__}.{Wrong.__qualname__}"

    assert problems_of(Wrong, *HANDLERS) == [
        (
            "django_cqrs.E041",
            f"{place}.two has more than one payload: 'command' and 'other'.",
            (
                "Keep one parameter as the payload and mark the others with "
                'Annotated[..., Header("name")] or Annotated[..., Identifier()].'
            ),
        ),
        (
            "django_cqrs.E041",
            (
                f"{place}.reserved sends the header 'timestamp', which is reserved: every "
                f"message has its own."
            ),
            "Give the header another name.",
        ),
        (
            "django_cqrs.E041",
            (
                f"{place}.identified does not fit: 'number' is an Identifier, but "
                f"{__name__}.touch is not a handler of an aggregate."
            ),
            "Send it as a header or in the payload.",
        ),
    ]


def test_E041_direct_and_a_channel():
    """There is no way past the bus into a channel. [M12.3]"""

    @business_interface(direct=True)
    class Wrong(Protocol):
        @business_method("ticket.mail")
        def mail(self, text: str) -> None: ...

    assert only_problem_of(Wrong, *HANDLERS) == (
        "django_cqrs.E041",
        (
            f"{__name__}.{Wrong.__qualname__}.mail does not fit: it is direct, but "
            f"{__name__}.mail has the channel 'outbox'."
        ),
        "Remove direct=True.",
    )


def test_E006_annotations_that_cannot_be_evaluated():
    """A name that only type checkers know is the check of it. [M12.3]"""

    @business_interface
    class Wrong(Protocol):
        @business_method("ticket.touch")
        def call(self) -> Nothing: ...  # noqa: F821

    assert only_problem_of(Wrong, *HANDLERS) == (
        "django_cqrs.E006",
        (
            f"The annotations of {__name__}.{Wrong.__qualname__}.call cannot be "
            f"evaluated: name 'Nothing' is not defined."
        ),
        (
            "Import the names they use at the top of the module, "
            "not under TYPE_CHECKING."
        ),
    )


def test_the_projects_own_are_checked(monkeypatch):
    """``manage.py check`` looks at the interfaces of the installed apps. [M12.3]"""
    from django_cqrs.modelling.interfaces import decorators, implementing
    from tests.testapp import messages

    class Broken(Protocol):
        @business_method("no.such.key")
        def call(self) -> None: ...

    Broken.__module__, Broken.__qualname__ = messages.__name__, "Broken"
    declared = []
    for module in (decorators, implementing):
        monkeypatch.setattr(module, "declared_interfaces", declared)
    business_interface(Broken)

    try:
        found = run_checks(tags=["django_cqrs"])
    finally:
        implementing.buses.registry.implementations.pop(Broken, None)

    assert [(each.id, each.obj) for each in found] == [
        ("django_cqrs.E040", Broken.call)
    ]


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        (int, int, True),
        (int, str, False),
        (str, UUID, True),
        (UUID, str, False),
        (int, Decimal, True),
        (datetime, Decimal, False),
        (list[int], tuple[int, ...], True),
        (list[int], int, False),
        (int, list[int], False),
        (dict, Row, True),
        (dict, int, False),
        (Row, dict, True),
        (Row, Open, False),
        (Row | None, Open | Row, True),
        (Any, Row, True),
        (Row, object, True),
        (typing.Literal["a"], str, True),
        (Note, Row, False),
    ],
)
def test_what_may_become_what(given, wanted, fits):
    """Only what cannot convert is refused. [M12.3]"""
    assert may_become(given, wanted) is fits


# ----------------------------------------------------------------------------- M12.4


@pytest.mark.django_db
def test_injected_into_handlers_by_its_type(desk):
    """A parameter annotated with an interface gets its implementation. [M12.4]"""

    @desk.registry.add
    @command_handler("outer")
    def outer(number: int, tickets: TicketApi, maybe: TicketApi | None = None) -> Any:
        assert maybe is tickets is desk.tickets
        return tickets.close(Close(number))

    assert check_registry(desk.registry) == []
    assert desk.registry.command_bus.dispatch(4, route="outer") == 4


@pytest.mark.django_db
def test_override_replaces_it_in_a_test(desk):
    """A fake takes its place inside ``override``. [M12.4]"""

    class Fake:
        def close(self, command: Close) -> int:
            return -command.number

    @desk.registry.add
    @command_handler("outer")
    def outer(number: int, tickets: TicketApi) -> int:
        return tickets.close(Close(number))

    with desk.registry.override(TicketApi, Fake):
        assert desk.registry.command_bus.dispatch(4, route="outer") == -4
    assert desk.registry.command_bus.dispatch(4, route="outer") == 4


# ---------------------------------------------------------------------- declarations


def test_a_business_interface_is_a_protocol():
    """Another class, or an undecorated Protocol, raises when it is declared or used."""

    class Plain:
        pass

    class Bare(Protocol):
        pass

    with pytest.raises(TypeError) as raised:
        business_interface(Plain)
    assert str(raised.value) == (
        f"@business_interface decorates a Protocol, not {Plain!r}."
    )
    with pytest.raises(TypeError) as raised:
        implement(Bare)
    assert str(raised.value) == (
        f"{Bare!r} is not a business interface: decorate it with @business_interface."
    )
    assert is_business_interface(TicketApi)
    assert not is_business_interface(Bare)


@pytest.mark.django_db
def test_an_interface_inherits_methods(desk):
    """An interface that extends another has its methods, and those it redefines."""

    @business_interface
    class More(TicketApi, Protocol):
        @business_method("ticket.count")
        def count(self) -> Decimal: ...

    more = implement(More, registry=desk.registry)
    desk.answer = "2.5"

    assert more.count() == Decimal("2.5")
    assert more.close(Close(3)) == 3


ROOT = Path(__file__).parents[2]
PROTOCOL = """
from typing import Protocol
from uuid import UUID

from django_cqrs.modelling import business_interface, business_method, implement


@business_interface
class TicketApi(Protocol):
    @business_method("ticket.open")
    def open(self, title: str) -> UUID: ...


tickets = implement(TicketApi)
reveal_type(tickets.open("lamp"))
tickets.open(7)
tickets.close()
"""


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_see_the_protocols_signatures(checker, tmp_path):
    """What ``implement`` returns has the methods of the Protocol, and no others. [M12.5]"""
    pytest.importorskip(checker)
    (tmp_path / "api.py").write_text(PROTOCOL)
    options = {
        "mypy": ["--config-file=", "--follow-imports=silent", "--no-error-summary"],
        "pyright": [f"--pythonpath={sys.executable}"],
    }
    found = subprocess.run(
        [sys.executable, "-m", checker, *options[checker], "api.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        check=False,
    )

    lines = [
        line for line in found.stdout.splitlines() if re.search(r"api\.py:\d", line)
    ]
    assert [int(re.search(r"api\.py:(\d+)", line)[1]) for line in lines] == [
        *(15, 16, 17)
    ], found.stdout + found.stderr
    assert "UUID" in lines[0]
    assert '"str"' in lines[1]
    assert '"close"' in lines[2]
