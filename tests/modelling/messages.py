from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from django_cqrs import Command, message
from django_cqrs.modelling import Identifier, Version


@dataclass(frozen=True)
class OpenTicket(Command[UUID]):
    ticket_id: UUID
    title: str


@dataclass(frozen=True)
class ImportTicket(Command[UUID]):
    ticket_id: UUID


@dataclass(frozen=True)
class AssignTicket:
    ticket_id: UUID
    assignee: str


@dataclass(frozen=True)
class FailTicket:
    ticket_id: UUID


@dataclass(frozen=True)
class DeleteTicket:
    ticket_id: UUID


@dataclass(frozen=True)
class SplitTicket:
    ticket_id: UUID
    new_id: UUID


@dataclass(frozen=True)
class TouchTicket:
    ticket_id: UUID


@dataclass(frozen=True)
class NoteTicket:
    ticket_id: UUID
    note: str


@dataclass(frozen=True)
class MoveTicket:
    ticket: Annotated[UUID, Identifier("ticket_id")]
    queue: str
    ticket_id: UUID | None = None


@dataclass(frozen=True)
class TicketOpened:
    ticket_id: UUID
    title: str


@dataclass(frozen=True)
class TicketAssigned:
    ticket_id: UUID
    assignee: str


@dataclass(frozen=True)
class TicketDeleted:
    ticket_id: UUID


@dataclass(frozen=True)
class AccountClosed:
    account: str
    opened_by_ticket: UUID


@dataclass(frozen=True)
class AccountReopened:
    ticket_id: UUID


@dataclass(frozen=True)
class AccountRenamed:
    concerned: Annotated[UUID, Identifier("ticket_id")]


@dataclass(frozen=True)
class CountVisit:
    page: str
    by: int = 1


@dataclass(frozen=True)
class PageSeen:
    page: str


@dataclass(frozen=True)
class Deposit:
    account_id: int
    amount: int
    seen: Annotated[int | None, Version()] = None


@dataclass(frozen=True)
class OpenAccount(Command[int]):
    owner: str


@dataclass(frozen=True)
class AccountChanged:
    account_id: int
    balance: int


@dataclass(frozen=True)
class IssueCard(Command[int]):
    account_id: int


@dataclass(frozen=True)
class BlockCard:
    account_id: int


@dataclass(frozen=True)
class BookSeat:
    show: int
    seat: str
    guest: str


@dataclass(frozen=True)
class FreeSeat:
    show: int
    seat: str


@dataclass(frozen=True)
class WritePost:
    slug: str


@dataclass(frozen=True)
class RenamePost:
    slug: str
    title: str


@dataclass(frozen=True)
class AddVehicle:
    plate: str


@dataclass(frozen=True)
class LoadTruck:
    truck_id: int
    tons: int


# A process: an order is paid and packed in any order, then shipped; or it is late.


@dataclass(frozen=True)
class OrderPlaced:
    order_id: int


@dataclass(frozen=True)
class OrderPaid:
    order_id: int


@dataclass(frozen=True)
class OrderPacked:
    order_id: int


@dataclass(frozen=True)
class PaymentDue:
    order_id: int


@dataclass(frozen=True)
class ShipOrder:
    order_id: int


@dataclass(frozen=True)
class CancelOrder:
    order_id: int


@dataclass(frozen=True)
class HurryOrder:
    order_id: int


@dataclass(frozen=True)
class LateNews:
    order_id: int


@dataclass(frozen=True)
class Watched:
    order_id: int


@dataclass(frozen=True)
class Counted:
    name: str


@message("modelling.parcel_sent")
@dataclass(frozen=True)
class ParcelSent:
    parcel_id: int


@message("modelling.parcel_moved")
@dataclass(frozen=True)
class ParcelMoved:
    source: str
    place: str


@message("modelling.counter_started")
@dataclass(frozen=True)
class CounterStarted:
    counter_id: int


@message("modelling.counter_added")
@dataclass(frozen=True)
class CounterAdded:
    by: int
