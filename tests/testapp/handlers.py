from __future__ import annotations

from django_cqrs import command_handler, event_handler, query_handler
from tests.testapp.messages import FindTickets, OpenTicket, TicketOpened

seen: list[object] = []


@command_handler
def open_ticket(command: OpenTicket) -> None:
    seen.append(command)


@query_handler
def find_tickets(query: FindTickets) -> list[str]:
    return [query.title]


@event_handler
def ticket_opened(event: TicketOpened) -> None:
    seen.append(event)
