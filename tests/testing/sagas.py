"""A saga that withstands every disturbance, and others with one fault each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar

from django_cqrs import CommandBus, Depends, event_handler
from django_cqrs.documents import document
from django_cqrs.modelling import Repository, Saga, saga
from django_cqrs.models import RecordsEvents


@dataclass(frozen=True)
class Placed:
    order_id: int


@dataclass(frozen=True)
class Paid:
    order_id: int


@dataclass(frozen=True)
class PayTimeout:
    order_id: int


@dataclass(frozen=True)
class Ship:
    order_id: int


@dataclass(frozen=True)
class Cancel:
    order_id: int


class Carrier:
    """Something outside the database: what is done there stays done."""

    def __init__(self) -> None:
        self.booked: list[int] = []

    def book(self, order_id: int) -> None:
        if order_id not in self.booked:
            self.booked.append(order_id)

    def book_blindly(self, order_id: int) -> None:
        self.booked.append(order_id)


def carrier() -> Carrier:
    raise RuntimeError("a real carrier in a test")


TheCarrier = Annotated[Carrier, Depends(carrier)]


@saga(identifier="order_id")
@document("kit.delivery")
@dataclass
class Delivery(RecordsEvents, Saga):
    """Whatever comes first starts it; it ships once, or cancels once."""

    order_id: int
    is_placed: bool = False
    is_paid: bool = False

    @event_handler
    @classmethod
    def place_first(cls, event: Placed) -> Delivery:
        made = cls(event.order_id)
        made.place(event)
        return made

    @event_handler(on_missing="ignore")
    def place(self, event: Placed) -> None:
        if not self.is_placed:
            self.is_placed = True
            self.record(PayTimeout(self.order_id))
            self.ship()

    @event_handler
    @classmethod
    def pay_first(cls, event: Paid) -> Delivery:
        return cls(event.order_id, is_paid=True)

    @event_handler(on_missing="ignore")
    def pay(self, event: Paid) -> None:
        if not self.is_paid:
            self.is_paid = True
            self.ship()

    def ship(self) -> None:
        if self.is_paid and self.is_placed:
            self.send(Ship(self.order_id))
            self.complete()

    @event_handler(channel="outbox", delay=timedelta(days=3), on_missing="ignore")
    def give_up(self, event: PayTimeout) -> None:
        if not self.is_paid:
            self.send(Cancel(self.order_id))
            self.complete()


@saga(identifier="order_id")
@document("kit.impatient")
@dataclass
class Impatient(RecordsEvents, Saga):
    """The order: a payment that comes first is lost."""

    order_id: int

    @event_handler
    @classmethod
    def start(cls, event: Placed) -> Impatient:
        return cls(event.order_id)

    @event_handler(on_missing="ignore")
    def pay(self, event: Paid) -> None:
        self.send(Ship(self.order_id))
        self.complete()


@saga(identifier="order_id")
@document("kit.forgetful")
@dataclass
class Forgetful(RecordsEvents, Saga):
    """The duplicate: it ships for each payment."""

    order_id: int

    @event_handler
    @classmethod
    def start(cls, event: Placed) -> Forgetful:
        return cls(event.order_id)

    @event_handler
    def pay(self, event: Paid) -> None:
        self.send(Ship(self.order_id))


@saga(identifier="order_id")
@document("kit.relentless")
@dataclass
class Relentless(RecordsEvents, Saga):
    """The late timeout: it cancels what was shipped."""

    order_id: int
    is_paid: bool = False

    @event_handler
    @classmethod
    def start(cls, event: Placed) -> Relentless:
        made = cls(event.order_id)
        made.record(PayTimeout(event.order_id))
        return made

    @event_handler
    def pay(self, event: Paid) -> None:
        if not self.is_paid:
            self.is_paid = True
            self.send(Ship(self.order_id))

    @event_handler(channel="outbox", delay=timedelta(days=3))
    def give_up(self, event: PayTimeout) -> None:
        self.send(Cancel(self.order_id))
        self.complete()


class Careless(Repository["Unsent"]):
    """Saves at once, and not with the transaction of what is sent."""

    kept: ClassVar[dict[int, tuple[bool, ...]]] = {}

    def find(self, identifier: Any, /) -> Unsent | None:
        found = self.kept.get(identifier)
        return None if found is None else Unsent(identifier, *found)

    def save(self, instance: Unsent, /) -> None:
        self.kept[instance.order_id] = (instance.is_paid,)


@saga(identifier="order_id", repository=Careless())
@dataclass
class Unsent(RecordsEvents):
    """The crash between save and send: it is paid, and nobody ships."""

    order_id: int
    is_paid: bool = False

    @event_handler
    @classmethod
    def start(cls, event: Placed) -> Unsent:
        return cls(event.order_id)

    @event_handler
    def pay(self, event: Paid, commands: CommandBus) -> None:
        if not self.is_paid:
            self.is_paid = True
            commands.dispatch(Ship(self.order_id))


@saga(identifier="order_id")
@document("kit.hasty")
@dataclass
class Hasty(RecordsEvents, Saga):
    """The two starts: each looks, finds nothing, and books."""

    order_id: int

    @event_handler
    @classmethod
    def start(
        cls, event: Placed, sagas: Repository[Hasty], carrier: TheCarrier
    ) -> Hasty | None:
        if sagas.find(event.order_id) is not None:
            return None
        carrier.book_blindly(event.order_id)
        return cls(event.order_id)
