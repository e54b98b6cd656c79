"""What comes back is what the message says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

from django_cqrs import (
    Command,
    CommandBus,
    Query,
    Receipt,
    command_bus,
    event_bus,
    query_bus,
)
from django_cqrs.outbox.outcomes import (
    MessageOutcome,
    MessageStatus,
    aoutcome_of,
    outcome_of,
)
from tests.typing.messages import (
    AssignTicket,
    CloseTicket,
    FindTickets,
    GetTicket,
    OpenTicket,
    Plain,
    TicketRow,
)


def commands() -> None:
    assert_type(command_bus.dispatch(OpenTicket("lamp")), UUID)
    assert_type(command_bus.dispatch(AssignTicket(1)), TicketRow | None)
    assert_type(
        command_bus.dispatch(
            OpenTicket("lamp"),
            headers={"executor_id": 1},
            using="other",
            aggregate_id=1,
            delay=timedelta(hours=1),
            expires=60,
            priority=5,
        ),
        UUID,
    )
    command_bus.dispatch(CloseTicket(1))
    assert_type(CommandBus().dispatch(OpenTicket("lamp")), UUID)


def receipts() -> None:
    receipt = assert_type(command_bus.send(CloseTicket(1)), Receipt)
    assert_type(receipt.message_id, UUID)
    assert_type(command_bus.send(1, route="ticket.close", delay=60), Receipt)
    outcome = assert_type(outcome_of(receipt), MessageOutcome)
    assert_type(outcome_of(str(receipt)).next_attempt_at, datetime | None)
    assert_type(outcome.status, MessageStatus)


async def receipts_asynchronously() -> None:
    receipt = assert_type(await command_bus.asend(CloseTicket(1), priority=3), Receipt)
    assert_type(await aoutcome_of(receipt, using="default"), MessageOutcome)


def a_receipt_wrongly() -> None:
    receipt: UUID = command_bus.send(CloseTicket(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    command_bus.send(CloseTicket(1), dely=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    outcome_of(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(receipt)


def a_command_wrongly() -> None:
    number: int = command_bus.dispatch(OpenTicket("lamp"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    command_bus.dispatch(OpenTicket("lamp")).title  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    command_bus.dispatch(AssignTicket(1)).title  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    command_bus.dispatch(CloseTicket(1)).title  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    print(number)


def queries() -> None:
    assert_type(query_bus.ask(GetTicket(1)), TicketRow)
    assert_type(query_bus.ask(FindTickets()), list[TicketRow])
    assert_type(query_bus.ask(GetTicket(1), headers={"a": "b"}), TicketRow)


def a_query_wrongly() -> None:
    text: str = query_bus.ask(GetTicket(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    query_bus.ask(FindTickets()).title  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    print(text)


async def asynchronously() -> None:
    assert_type(await command_bus.adispatch(OpenTicket("lamp")), UUID)
    assert_type(await command_bus.adispatch(AssignTicket(1)), TicketRow | None)
    assert_type(await query_bus.aask(GetTicket(1)), TicketRow)
    assert_type(await query_bus.aask(FindTickets()), list[TicketRow])
    await command_bus.adispatch(CloseTicket(1))
    await event_bus.apublish(Plain())
    assert_type(
        await command_bus.adispatch(
            OpenTicket("lamp"),
            headers={"executor_id": 1},
            using="other",
            aggregate_id=1,
            delay=timedelta(hours=1),
            expires=60,
            priority=5,
        ),
        UUID,
    )
    assert_type(await command_bus.adispatch(OpenTicket("lamp"), route="a"), Any)
    assert_type(await query_bus.aask(GetTicket(1), using="other"), TicketRow)
    await event_bus.apublish({"title": "lamp"}, route="ticket.opened", delay=5)


async def asynchronously_wrongly() -> None:
    number: int = await command_bus.adispatch(OpenTicket("lamp"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    text: str = await query_bus.aask(GetTicket(1))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    forgotten: UUID = command_bus.adispatch(OpenTicket("lamp"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(number, text, forgotten)


def where_nothing_is_promised() -> None:
    """A plain class, and a route, which a string does not tell a checker."""
    assert_type(command_bus.dispatch(Plain()), Any)
    assert_type(query_bus.ask(Plain()), Any)
    assert_type(command_bus.dispatch(Plain(), route="ticket.open"), Any)
    assert_type(command_bus.dispatch(OpenTicket("lamp"), route="ticket.open"), Any)
    assert_type(query_bus.ask(GetTicket(1), route="ticket.get"), Any)
    assert_type(command_bus.dispatch(route="ticket.close", aggregate_id=1), Any)
    assert_type(query_bus.ask({"number": 1}, route="ticket.get"), Any)
    json = b'{"title": "lamp"}'
    kind = "application/json"
    assert_type(command_bus.dispatch(json, route="ticket.open", content_type=kind), Any)


def what_is_asked_for() -> None:
    """``returns=`` decides, whatever the query says."""
    assert_type(query_bus.ask(Plain(), returns=TicketRow), TicketRow)
    assert_type(query_bus.ask(GetTicket(1), returns=dict[str, str]), dict[str, str])
    assert_type(query_bus.ask(route="a", returns=list[TicketRow]), list[TicketRow])
    assert_type(query_bus.ask(route="a", returns="application/json"), str)
    assert_type(query_bus.ask(GetTicket(1), returns="application/json"), str)
    assert_type(query_bus.ask(GetTicket(1), returns=None), TicketRow)


async def what_is_asked_for_asynchronously() -> None:
    assert_type(await query_bus.aask(Plain(), returns=TicketRow), TicketRow)
    assert_type(await query_bus.aask(GetTicket(1), returns=list[int]), list[int])
    assert_type(await query_bus.aask(route="a", returns="application/json"), str)


def what_is_asked_for_wrongly() -> None:
    text: str = query_bus.ask(Plain(), returns=TicketRow)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    row: TicketRow = query_bus.ask(Plain(), returns="application/json")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(text, row)


def events() -> None:
    event_bus.publish(Plain(), delay=5, headers={"a": None})
    event_bus.publish(Plain(), delay=datetime.now(UTC), expires=datetime.now(UTC))
    event_bus.publish({"title": "lamp"}, route="ticket.opened")


def arguments_wrongly() -> None:
    OpenTicket(titel="lamp")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    OpenTicket(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    command_bus.dispatch(OpenTicket("lamp"), rout="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    command_bus.dispatch(OpenTicket("lamp"), delay="soon")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    command_bus.dispatch(OpenTicket("lamp"), headers={"a": [1]})  # type: ignore[dict-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
    command_bus.dispatch(route=Plain)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    query_bus.ask(GetTicket(1), delay=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    event_bus.publish(Plain(), returns=str)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    event_bus.dispatch(Plain())  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def arguments_wrongly_asynchronously() -> None:
    await command_bus.adispatch(OpenTicket("lamp"), rout="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await command_bus.adispatch(OpenTicket("lamp"), delay="soon")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await command_bus.adispatch(route=Plain)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await query_bus.aask(GetTicket(1), delay=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await event_bus.apublish(Plain(), returns=str)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await event_bus.apublish(Plain(), priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def generic_code(command: Command[UUID], query: Query[TicketRow]) -> None:
    """Where only the base is known, that is enough."""
    assert_type(command_bus.dispatch(command), UUID)
    assert_type(query_bus.ask(query), TicketRow)
