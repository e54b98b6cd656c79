"""A small bank whose events, projections and failures the pages of the admin show."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

from django_cqrs import (
    Command,
    Sensitive,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.events import (
    EventStore,
    Projections,
    Row,
    Tag,
    applies,
    event_stream,
    projection,
)
from django_cqrs.modelling import aggregate
from django_cqrs.retries import Retry
from tests.events.views.models import Customer, Entry, OrderRow
from tests.support import registry_of


@dataclass(frozen=True)
class OpenAccount(Command[UUID]):
    account_id: UUID
    owner: str
    iban: str


@dataclass(frozen=True)
class PayIn:
    account_id: UUID
    cents: int
    note: str = ""


@message("bank.account_opened")
@dataclass(frozen=True)
class AccountOpened:
    account_id: Annotated[UUID, Tag("account")]
    owner: Annotated[str, Tag("owner")]
    iban: Annotated[str, Sensitive()]


@message("bank.paid_in")
@dataclass(frozen=True)
class PaidIn:
    account_id: Annotated[UUID, Tag("account")]
    cents: int
    note: Annotated[str, Sensitive()] = ""


@message("bank.card_issued")
@dataclass(frozen=True)
class CardIssued:
    number: Annotated[str, Sensitive(), Tag("card")]


@aggregate(identifier="account_id")
@event_stream("bank.account", snapshot_every=100)
@dataclass
class BankAccount:
    account_id: UUID | None = None
    owner: str = ""
    iban: Annotated[str, Sensitive()] = ""
    balance: int = 0
    notes: list[str] = field(default_factory=list)

    @command_handler
    @classmethod
    def open(cls, command: OpenAccount) -> AccountOpened:
        return AccountOpened(command.account_id, command.owner, command.iban)

    @command_handler
    def pay_in(self, command: PayIn) -> PaidIn:
        return PaidIn(command.account_id, command.cents, command.note)

    @applies
    def opened(self, event: AccountOpened) -> None:
        self.account_id = event.account_id
        self.owner = event.owner
        self.iban = event.iban

    @applies
    def paid(self, event: PaidIn) -> None:
        self.balance += event.cents
        if event.note:
            self.notes = [*self.notes, event.note]


fails_at: set[int] = set()
"""The amounts that the handlers of projections do not like."""


class UnluckyAmount(Exception):
    """Raised by handlers for one of those amounts."""


def _dislike(event: PaidIn) -> None:
    if event.cents in fails_at:
        msg = f"{event.cents} cents with the note {event.note!r} cannot be booked"
        raise UnluckyAmount(msg)


@projection("bank.balances", channel="outbox", views=[Customer])
class Balances:
    @event_handler
    def opened(
        self, event: AccountOpened, row: Annotated[Customer, Row(name="owner")]
    ) -> None:
        row.age = 0

    @event_handler
    def paid(self, event: PaidIn) -> None:
        _dislike(event)


@projection(
    "bank.statements",
    channel="outbox",
    views=[Entry],
    retry=Retry(attempts=1),
    on_failure="skip",
)
class Statements:
    @event_handler
    def paid(self, event: PaidIn) -> None:
        _dislike(event)
        Entry.objects.create(text="paid", number=event.cents)


@projection("bank.totals", views=[OrderRow])
class BankTotals:
    @event_handler
    def paid(
        self, event: PaidIn, row: Annotated[OrderRow, Row(number="cents")]
    ) -> None:
        row.changes += 1


ACCOUNT = UUID("7f3a0c52-3a0e-4a8e-9a57-1d8f1f5a2b01")
IBAN = "DE02120300000000202051"
NOTE = "for the surgery"


def bank() -> Any:
    """Return a registry with the bank."""
    fails_at.clear()
    return registry_of(
        *(BankAccount, Balances, Statements, BankTotals),
        *(AccountOpened, PaidIn, CardIssued),
    )


def fill(registry: Any, payments: int = 3) -> None:
    """Open an account, pay something in, and issue a card."""
    bus = registry.command_bus
    bus.dispatch(OpenAccount(ACCOUNT, "Ada", IBAN))
    for number in range(1, payments + 1):
        bus.dispatch(PayIn(ACCOUNT, number * 100, NOTE if number == 2 else ""))
    store = EventStore(registry=registry)
    store.append(CardIssued("4111-1111"), stream="bank.card-4111-1111")


def follow(registry: Any) -> None:
    """Bring the projections as far as they come."""
    own = Projections(registry=registry)
    own.run("bank.statements")
    with contextlib.suppress(UnluckyAmount):
        own.run("bank.balances")
