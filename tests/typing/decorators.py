"""A decorated function, method or class keeps its own type."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import assert_type
from uuid import UUID, uuid4

from django_cqrs import (
    EventBus,
    Header,
    Message,
    Registry,
    Retry,
    command_handler,
    event_handler,
    query_handler,
    service,
)
from tests.typing.messages import (
    AssignTicket,
    CloseTicket,
    GetTicket,
    OpenTicket,
    Plain,
    TicketRow,
)


@command_handler
def open_ticket(command: OpenTicket, events: EventBus) -> UUID:
    return uuid4()


@command_handler("ticket.open", using="other", atomic=False, name="open")
@command_handler
def open_elsewhere(command: OpenTicket, *, number: int = 0) -> UUID:
    return uuid4()


@query_handler
async def get_ticket(query: GetTicket) -> TicketRow:
    return TicketRow("lamp")


@query_handler("ticket.count")
async def count_tickets() -> int:
    return 1


@event_handler
def on_any(event: object) -> None: ...


@event_handler("ticket.*", priority=5, channel=True, delay=60)
def on_ticket(event: Plain) -> None: ...


def delay_of(message: Message) -> timedelta | None:
    return timedelta(hours=1) if message.headers["is_late"] else None


@event_handler("ticket.*", channel=True, delay=delay_of, expires=lambda message: 60)
def on_ticket_later(event: Plain) -> None: ...


@event_handler("ticket.*", channel=True, delay="1h")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def on_ticket_wrongly(event: Plain) -> None: ...


@command_handler(
    name="close",
    aliases=["closing"],
    using="other",
    atomic=True,
    channel="default",
    delay=1.5,
    expires=timedelta(days=1),
    priority=1,
    retry=Retry(attempts=3),
    identifier="number",
    on_missing="ignore",
    output=["ticket.archive"],
    ordering_key="number",
    idempotency_key=Header("key"),
)
def close_ticket(command: CloseTicket) -> None: ...


@command_handler("ticket.drop", on_missing=LookupError, ordering_key=True)
def drop_ticket(number: int) -> None: ...


@command_handler("ticket.add", on_existing=ValueError("taken"), on_missing="raise")
def add_ticket(number: int) -> None: ...


def functions(events: EventBus) -> None:
    assert_type(open_ticket(OpenTicket("lamp"), events), UUID)
    assert_type(open_elsewhere(OpenTicket("lamp"), number=3), UUID)
    assert_type(close_ticket(CloseTicket(1)), None)
    on_any(Plain())
    on_ticket(Plain())


async def async_functions() -> None:
    assert_type(await get_ticket(GetTicket(1)), TicketRow)
    assert_type(await count_tickets(), int)


def functions_wrongly(events: EventBus) -> None:
    command_handler(on_missing=int)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    command_handler(on_existing="never")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    command_handler(ordering_key=False)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    open_ticket(OpenTicket("lamp"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    open_ticket(CloseTicket(1), events)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    open_elsewhere(OpenTicket("lamp"), number="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    on_ticket(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    row: TicketRow = get_ticket(GetTicket(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(row)


@service
class Tickets:
    def __init__(self, events: EventBus) -> None:
        self.events = events

    @command_handler
    def open(self, command: OpenTicket) -> UUID:
        return uuid4()

    @command_handler("ticket.assign")
    async def assign(self, command: AssignTicket) -> TicketRow | None:
        return None

    @command_handler
    @classmethod
    def close(cls, command: CloseTicket) -> None: ...

    @classmethod
    @command_handler("ticket.close_all", atomic=False)
    def close_all(cls, number: int) -> int:
        return number

    @query_handler("ticket.count")
    @staticmethod
    def count(number: int) -> int:
        return number


def methods(events: EventBus) -> None:
    tickets = assert_type(Tickets(events), Tickets)
    assert_type(tickets.open(OpenTicket("lamp")), UUID)
    assert_type(tickets.close_all(1), int)
    assert_type(Tickets.close_all(1), int)
    assert_type(Tickets.count(1), int)
    Tickets.close(CloseTicket(1))


async def async_methods(events: EventBus) -> None:
    assert_type(await Tickets(events).assign(AssignTicket(1)), TicketRow | None)


def methods_wrongly(events: EventBus) -> None:
    Tickets()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Tickets(events).open(CloseTicket(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Tickets(events).opened  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    Tickets.close(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Tickets.close_all("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Tickets.count("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def registries() -> None:
    registry = Registry()
    assert_type(registry.add(Tickets), type[Tickets])
    wanted: Callable[[GetTicket], Awaitable[TicketRow]] = registry.add(get_ticket)

    @registry.add
    @command_handler
    def close(command: CloseTicket) -> int:
        return command.number

    assert_type(close(CloseTicket(1)), int)
    assert_type(registry.add(open_ticket)(OpenTicket("lamp"), registry.event_bus), UUID)
    assert_type(registry.command_bus.dispatch(OpenTicket("lamp")), UUID)
    print(wanted)


def registries_wrongly() -> None:
    registry = Registry()
    registry.add(open_ticket)(CloseTicket(1))  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    registry.add()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def arguments_wrongly() -> None:
    command_handler(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    command_handler(atomic="yes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    command_handler(atomik=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    command_handler("a", "b")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    query_handler(channel="default")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    query_handler(using="other")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    command_handler(on_missing="drop")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    command_handler(retry=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    command_handler(name=None, output=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    event_handler(chanel="default")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    event_handler(priority="high")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    service(1)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
