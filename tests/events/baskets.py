"""Baskets that are their events: as a dataclass, a pydantic model and a plain class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, Field

from django_cqrs import (
    Command,
    command_handler,
    message,
    query_handler,
)
from django_cqrs.events import applies, event_stream
from django_cqrs.modelling import aggregate


@dataclass(frozen=True)
class Open(Command[UUID]):
    basket_id: UUID
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Add:
    basket_id: UUID
    sku: str


@dataclass(frozen=True)
class AddAll:
    basket_id: UUID
    skus: list[str]


@dataclass(frozen=True)
class Count:
    basket_id: UUID


@dataclass(frozen=True)
class Fail:
    basket_id: UUID


@dataclass(frozen=True)
class Mix:
    basket_id: UUID


@dataclass(frozen=True)
class Describe(Command[list[str]]):
    basket_id: UUID


@message("baskets.opened")
@dataclass(frozen=True)
class Opened:
    basket_id: UUID


@message("baskets.added")
@dataclass(frozen=True)
class Added:
    basket_id: UUID
    sku: str


class Returning:
    """Handlers that return events."""

    @command_handler
    @classmethod
    def open(cls, command: Open) -> Opened | list[Opened | Added] | None:
        opened = Opened(command.basket_id)
        if not command.also:
            return opened
        return [opened, *(Added(command.basket_id, sku) for sku in command.also)]

    @command_handler
    def add(self: Any, command: Add) -> Added | None:
        if command.sku in self.items:
            return None
        return Added(self.basket_id, command.sku)

    @command_handler
    def add_all(self: Any, command: AddAll) -> list[Added]:
        return [Added(self.basket_id, sku) for sku in command.skus]

    @query_handler
    def count(self: Any, query: Count) -> int:
        return len(self.items)

    @command_handler
    def describe(self: Any, command: Describe) -> list[str]:
        return [*self.items]

    @command_handler
    def mix(self: Any, command: Mix) -> Any:
        return [Added(self.basket_id, "tea"), "text"]

    @command_handler
    def fail(self: Any, command: Fail) -> Added:
        raise RuntimeError("no")

    @applies
    def opened(self: Any, event: Opened) -> None:
        self.basket_id = event.basket_id

    @applies
    def added(self: Any, event: Added) -> None:
        self.items = [*self.items, event.sku]


@aggregate
@event_stream("baskets.basket")
@dataclass
class Basket(Returning):
    basket_id: UUID | None = None
    items: list[str] = field(default_factory=list)


@aggregate(identifier="basket_id")
@event_stream("baskets.pydantic")
class PydanticBasket(Returning, BaseModel):
    basket_id: UUID
    items: list[str] = Field(default_factory=list)


@aggregate(identifier="basket_id")
@event_stream("baskets.plain")
class PlainBasket(Returning):
    basket_id: UUID
    items: list[str] = []

    def __init__(self, basket_id: UUID) -> None:
        raise AssertionError("an object is made of its events")


@aggregate(identifier="basket_id")
@event_stream("baskets.frozen")
@dataclass(frozen=True)
class FrozenBasket(Returning):
    basket_id: UUID | None = None
    items: tuple[str, ...] = ()

    @applies
    def opened(self, event: Opened) -> Self:
        return replace(self, basket_id=event.basket_id)

    @applies
    def added(self, event: Added) -> Self:
        return replace(self, items=(*self.items, event.sku))


BASKETS = [Basket, PydanticBasket, PlainBasket, FrozenBasket]
