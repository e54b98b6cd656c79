"""What ``implement`` returns has the methods of the Protocol, with their types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Protocol, assert_type
from uuid import UUID, uuid4

from django_cqrs import Header, Registry, command_handler
from django_cqrs.modelling import (
    Identifier,
    Json,
    business_interface,
    business_method,
    implement,
    sql_query,
    sql_write,
)
from tests.typing.messages import CloseTicket, GetTicket, OpenTicket, TicketRow


@business_interface
class TicketApi(Protocol):
    @business_method("ticket.open")
    def open(self, command: OpenTicket) -> UUID: ...

    @business_method
    def get(self, query: GetTicket) -> TicketRow | None: ...

    @business_method()
    async def find(self, query: GetTicket) -> TicketRow: ...

    @business_method("ticket.close")
    def close(
        self,
        ticket_id: Annotated[UUID, Identifier()],
        user: Annotated[int, Header("user")] = 0,
    ) -> None: ...


@business_interface(direct=True)
class Reports(Protocol):
    @sql_query("SELECT 1 WHERE 1 IN %(ids)s", using="replica")
    def by_ids(self, ids: Sequence[int]) -> list[TicketRow]: ...

    @sql_query("SELECT 1")
    def each(self) -> Iterator[int]: ...

    @sql_write("UPDATE t SET a = %(tags)s")
    def tag(self, tags: Annotated[list[str], Json()]) -> int: ...


tickets = implement(TicketApi)
reports = implement(Reports, registry=Registry())


def rightly() -> None:
    assert_type(tickets, TicketApi)
    assert_type(tickets.open(OpenTicket("lamp")), UUID)
    assert_type(tickets.get(GetTicket(1)), TicketRow | None)
    tickets.close(uuid4())
    tickets.close(uuid4(), user=3)
    assert_type(reports, Reports)
    assert_type(reports.by_ids([1, 2]), list[TicketRow])
    assert_type(reports.each(), Iterator[int])
    assert_type(reports.tag(["a"]), int)


async def rightly_awaited() -> None:
    assert_type(await tickets.find(GetTicket(1)), TicketRow)


@command_handler
def close_ticket(command: CloseTicket, tickets: TicketApi) -> None:
    tickets.close(uuid4())


class Fake:
    """Whatever has the methods is a TicketApi: for tests, say."""

    def open(self, command: OpenTicket) -> UUID:
        return uuid4()

    def get(self, query: GetTicket) -> TicketRow | None:
        return None

    async def find(self, query: GetTicket) -> TicketRow:
        return TicketRow("lamp")

    def close(self, ticket_id: UUID, user: int = 0) -> None: ...


close_ticket(CloseTicket(1), Fake())


def wrongly() -> Any:
    tickets.open(CloseTicket(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tickets.close("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tickets.close()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tickets.reopen  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    number: int = tickets.open(OpenTicket("lamp"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    reports.by_ids(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    implement(TicketApi, registry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    business_method(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    sql_query(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return number
