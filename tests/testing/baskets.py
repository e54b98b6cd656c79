"""Objects that are tested alone: of a model, of a document, of one's own repository."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

from django.db import models

from django_cqrs import (
    CommandBus,
    Depends,
    EventBus,
    Header,
    Send,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.documents import document
from django_cqrs.modelling import Fetch, Repository, Saga, aggregate, saga
from django_cqrs.models import RecordsEvents


@dataclass(frozen=True)
class OpenBasket:
    basket_id: int


@dataclass(frozen=True)
class AddItem:
    basket_id: int
    sku: str


@dataclass(frozen=True)
class Empty:
    basket_id: int


@message("kit.item_added")
@dataclass(frozen=True)
class ItemAdded:
    basket_id: int
    sku: str
    price: float = 1.5


@message("kit.basket_emptied")
@dataclass(frozen=True)
class BasketEmptied:
    basket_id: int


@message("kit.remind")
@dataclass(frozen=True)
class Remind:
    basket_id: int


class SoldOut(Exception):
    """There is nothing left."""


def stock() -> dict[str, int]:
    raise RuntimeError("a real stock in a test")


@aggregate
@document("kit.basket")
@dataclass
class Basket(RecordsEvents):
    """An aggregate that is kept as a document."""

    basket_id: int
    items: list[str] = field(default_factory=list)

    @command_handler
    @classmethod
    def open(cls, command: OpenBasket) -> Basket:
        return cls(command.basket_id)

    @command_handler
    def add(
        self, command: AddItem, by: Annotated[str, Header("by")] = "nobody"
    ) -> int | None:
        if command.sku == "gold":
            raise SoldOut("no gold is left")
        self.items.append(command.sku)
        self.record(ItemAdded(self.basket_id, command.sku))
        if command.sku == "slow":
            self.send(Remind(self.basket_id), delay=timedelta(hours=1))
        return len(self.items)

    @command_handler("kit.add_all")
    def add_all(self, skus: list[str], commands: CommandBus) -> None:
        for sku in skus:
            self.items.append(sku)
        self.record(BasketEmptied(self.basket_id))

    @command_handler
    def empty(self, command: Empty) -> list[Send]:
        self.items.clear()
        self.record(BasketEmptied(self.basket_id))
        return [Send(Remind(self.basket_id)), Send([1], route="kit.log")]

    @command_handler("kit.strange")
    def strange(self) -> None:
        self.record(ItemAdded(self.basket_id, object()))  # type: ignore[arg-type]

    @command_handler("kit.unannotated")
    def unannotated(self) -> None:
        vars(self)["colour"] = "red"  # which no check can see

    @command_handler("kit.by_stock")
    def by_stock(self, left: Annotated[dict[str, int], Depends(stock)]) -> int:
        return sum(left.values())

    @command_handler("kit.merge")
    def merge(
        self,
        other: int,
        baskets: Repository[Basket],
        mine: Annotated[Basket | None, Fetch(lambda message: message.payload)],
    ) -> None:
        found = baskets.get(other)
        assert mine == found
        self.items += found.items
        baskets.delete(found)

    @query_handler("kit.count")
    def count(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Registered:
    member_id: int


@dataclass(frozen=True)
class Pay:
    member_id: int
    amount: int


@aggregate(version="version")
class Member(RecordsEvents, models.Model):
    """A model, whose key the database makes."""

    name = models.CharField(max_length=20)
    paid = models.IntegerField(default=0)
    version = models.PositiveIntegerField(default=0)

    class Meta:
        app_label = "modelling"

    @command_handler
    @classmethod
    def register(cls, command: Register) -> Member:
        member = cls(name=command.name)
        member.record(lambda: Registered(member.pk))
        return member

    @command_handler
    def pay(self, command: Pay, commands: CommandBus) -> None:
        self.paid += command.amount
        if command.amount > 10:
            commands.dispatch(Pay(self.pk, 1))  # changes the same object

    @event_handler(on_missing="ignore")
    def greet(self, event: Registered) -> None:
        self.name += "!"


@dataclass(frozen=True)
class Ordered:
    order_id: str


@dataclass(frozen=True)
class Paid:
    order_id: str


@dataclass(frozen=True)
class PaymentOverdue:
    order_id: str


@dataclass(frozen=True)
class Ship:
    order_id: str


@dataclass(frozen=True)
class CancelOrder:
    order_id: str


@saga(identifier="order_id")
@document("kit.shipping")
@dataclass
class Shipping(RecordsEvents, Saga):
    """A saga with a timer of its own."""

    order_id: str
    is_paid: bool = False

    @event_handler
    @classmethod
    def start(cls, event: Ordered) -> Shipping:
        shipping = cls(event.order_id)
        shipping.record(PaymentOverdue(event.order_id))
        return shipping

    @event_handler(output="kit.ship")
    def pay(self, event: Paid) -> Ship:
        self.is_paid = True
        self.complete()
        return Ship(self.order_id)

    @event_handler(channel="outbox", delay=timedelta(days=3))
    def give_up(
        self, event: PaymentOverdue, commands: CommandBus, events: EventBus
    ) -> None:
        commands.dispatch(CancelOrder(self.order_id))
        self.complete()


class Shelf(Repository["Jar"]):
    """A repository of one's own, which a scenario of the class does not touch."""

    def find(self, identifier: Any, /) -> Any:
        raise AssertionError

    def save(self, instance: Any, /) -> None:
        raise AssertionError


@aggregate(repository=Shelf())
@dataclass
class Jar(RecordsEvents):
    """Kept by a repository of one's own."""

    jar_id: int
    spoons: int = 0

    @command_handler("jar.take")
    @classmethod
    def make(cls, jar_id: int) -> Jar:
        return cls(jar_id)

    @command_handler("jar.take")
    def take(self, jar_id: int) -> int:
        self.spoons += 1
        return self.spoons

    @command_handler("jar.break")
    async def smash(self, events: EventBus) -> None:
        await events.apublish("crash", route="jar.broken")

    @command_handler("jar.inform", channel="outbox")
    def inform(self, commands: CommandBus) -> None:
        commands.dispatch(route="jar.inform", aggregate_id=self.jar_id, delay=60)
        commands.send("later", route="somebody.else", delay=60)
