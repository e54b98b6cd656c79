"""One aggregate and one saga, as a dataclass, a pydantic model and a plain class."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, Field

from django_cqrs import (
    Command,
    CommandBus,
    EventBus,
    Header,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.documents import document
from django_cqrs.modelling import Identifier, Repository, Saga, Version, aggregate, saga
from django_cqrs.modelling.sagas import Completable
from django_cqrs.models import RecordsEvents


@dataclass(frozen=True)
class Place(Command[UUID]):
    order_id: UUID
    title: str


@dataclass(frozen=True)
class Import(Command[UUID]):
    order_id: UUID


@dataclass(frozen=True)
class Rename:
    order_id: UUID
    title: str


@dataclass(frozen=True)
class Move:
    order: Annotated[UUID, Identifier("order_id")]
    title: str
    order_id: UUID | None = None


@dataclass(frozen=True)
class Fail:
    order_id: UUID


@dataclass(frozen=True)
class Remove:
    order_id: UUID


@dataclass(frozen=True)
class Split:
    order_id: UUID
    new_id: UUID


@dataclass(frozen=True)
class Touch:
    order_id: UUID


@dataclass(frozen=True)
class Visit:
    order_id: UUID
    by: int = 1


@dataclass(frozen=True)
class Placed:
    order_id: UUID


@dataclass(frozen=True)
class Renamed:
    order_id: UUID
    title: str


@dataclass(frozen=True)
class Removed:
    order_id: UUID


@dataclass(frozen=True)
class Paid:
    paid_order: UUID


@dataclass(frozen=True)
class Lost:
    order_id: UUID


@dataclass(frozen=True)
class Found:
    concerned: Annotated[UUID, Identifier("order_id")]


class OrderHandlers(RecordsEvents):
    """What is handled, for objects with the attributes that the kinds below have."""

    @command_handler
    @classmethod
    def place(
        cls, command: Place, source: Annotated[str, Header("source")] = "web"
    ) -> Self:
        order: Any = cls(order_id=command.order_id, title=f"{command.title} {source}")
        order.record(Placed(command.order_id))
        return order

    @command_handler
    @classmethod
    def import_(cls, command: Import) -> Self:
        return cls(order_id=command.order_id, title="imported")

    @command_handler
    def rename(self: Any, command: Rename) -> str:
        before, self.title = self.title, command.title
        self.note(command.title)
        self.record(Renamed(self.order_id, self.title))
        return before

    @command_handler
    def move(self: Any, command: Move) -> None:
        self.title = command.title

    @command_handler
    def fail(self: Any, command: Fail) -> None:
        self.title = "failed"
        self.record(Renamed(self.order_id, self.title))
        raise RuntimeError("no")

    @command_handler
    def split(self: Any, command: Split) -> Self:
        self.title += " (1)"
        self.record(Renamed(self.order_id, self.title))
        return type(self).place(Place(command.new_id, "half"))

    @command_handler
    def touch(self: Any, command: Touch) -> Self:
        self.title += "!"
        return self

    @command_handler
    @classmethod
    def first(cls, command: Visit) -> Self:
        return cls(order_id=command.order_id, title="", visits=command.by)

    @command_handler
    def again(self: Any, command: Visit) -> int:
        self.visits += command.by
        return self.visits

    @command_handler("order.close")
    def close(self: Any) -> None:
        self.is_closed = True
        self.record(Renamed(self.order_id, "closed"))

    @command_handler("order.escalate", channel="outbox", identifier=Header("which"))
    def escalate(self: Any) -> None:
        self.title = "escalated"

    @query_handler("order.title")
    def get_title(self: Any) -> str:
        return self.title

    @event_handler(identifier="paid_order")
    def on_paid(self: Any, event: Paid) -> None:
        self.is_closed = True

    @event_handler(on_missing="ignore")
    def on_news(self: Any, event: Lost | Found) -> None:
        self.title = type(event).__name__


@aggregate(identifier="order_id")
@document("papers.dataclass_order")
@dataclass
class DataclassOrder(OrderHandlers):
    order_id: UUID
    title: str
    visits: int = 0
    is_closed: bool = False
    _history: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self._history.append(text)

    @property
    def history(self):
        return self._history

    @command_handler
    def remove(self, command: Remove, orders: Repository[DataclassOrder]) -> None:
        self.record(Removed(self.order_id))
        orders.delete(self)


@aggregate(identifier="order_id")
@document("papers.pydantic_order")
class PydanticOrder(OrderHandlers, BaseModel):
    order_id: UUID
    title: str
    visits: int = 0
    is_closed: bool = False
    history: list[str] = Field(default_factory=list)

    def note(self, text: str) -> None:
        self.history.append(text)

    @command_handler
    def remove(self, command: Remove, orders: Repository[PydanticOrder]) -> None:
        self.record(Removed(self.order_id))
        orders.delete(self)


@aggregate(identifier="order_id")
@document("papers.plain_order")
class PlainOrder(OrderHandlers):
    order_id: UUID
    title: str
    visits: int
    is_closed: bool = False
    history: tuple[str, ...] = ()

    made = 0  # how often the constructor ran; no part of an object's state

    def __init__(self, order_id: UUID, title: str, visits: int = 0) -> None:
        type(self).made += 1
        self.order_id = order_id
        self.title = title
        self.visits = visits

    def __eq__(self, other):
        return vars(self) == vars(other)

    __hash__ = None

    def note(self, text: str) -> None:
        self.history = (*self.history, text)

    @command_handler
    def remove(self, command: Remove, orders: Repository[PlainOrder]) -> None:
        self.record(Removed(self.order_id))
        orders.delete(self)


ORDERS = [DataclassOrder, PydanticOrder, PlainOrder]


# Optimistic ------------------------------------------------------------------------


@dataclass(frozen=True)
class Open(Command[int]):
    account_id: int


@dataclass(frozen=True)
class Deposit:
    account_id: int
    amount: int
    seen: Annotated[int | None, Version()] = None


@dataclass(frozen=True)
class Changed:
    account_id: int
    balance: int


class AccountHandlers(RecordsEvents):
    @command_handler
    @classmethod
    def open(cls, command: Open) -> Self:
        return cls(account_id=command.account_id)

    @command_handler
    def deposit(self: Any, command: Deposit) -> int:
        self.balance += command.amount
        self.record(Changed(self.account_id, self.balance))
        return self.balance


@aggregate(identifier="account_id", version="version")
@document("papers.dataclass_account")
@dataclass
class DataclassAccount(AccountHandlers):
    account_id: int
    balance: int = 0
    version: int = 0


@aggregate(identifier="account_id", version="version")
@document("papers.pydantic_account")
class PydanticAccount(AccountHandlers, BaseModel):
    account_id: int
    balance: int = 0
    version: int = 0


@aggregate(identifier="account_id", version="version")
@document("papers.plain_account")
class PlainAccount(AccountHandlers):
    account_id: int
    balance: int = 0
    version: int = 0

    def __init__(self, account_id: int) -> None:
        self.account_id = account_id


ACCOUNTS = [DataclassAccount, PydanticAccount, PlainAccount]


# A process -------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    process_id: int


@dataclass(frozen=True)
class Settled:
    process_id: int


@dataclass(frozen=True)
class Packed:
    process_id: int


@message("papers.due")
@dataclass(frozen=True)
class Due:
    process_id: int


@dataclass(frozen=True)
class Counted:
    process_id: int


@dataclass(frozen=True)
class Ship:
    process_id: int


@dataclass(frozen=True)
class Cancel:
    process_id: int


class ProcessHandlers(RecordsEvents):
    @event_handler
    @classmethod
    def start(cls, event: Started) -> Self:
        process: Any = cls(process_id=event.process_id)
        process.record(Due(event.process_id))
        return process

    @event_handler(output="process.ship")
    def on_settled(self: Any, event: Settled) -> Ship | None:
        self.is_settled = True
        return Ship(self.process_id) if self.is_packed else None

    @event_handler(output="process.ship", on_missing="ignore")
    def on_packed(self: Any, event: Packed) -> Ship | None:
        self.is_packed = True
        return Ship(self.process_id) if self.is_settled else None

    @event_handler(channel="outbox", delay=timedelta(hours=24))
    def on_due(self: Any, event: Due, commands: CommandBus) -> None:
        if not self.is_settled:
            commands.dispatch(Cancel(self.process_id))
            self.complete()

    @event_handler
    @classmethod
    def first(cls, event: Counted) -> Self:
        return cls(process_id=event.process_id)

    @event_handler
    def again(self: Any, event: Counted) -> None:
        self.times += 1

    @command_handler("process.finish")
    def finish(self: Any, events: EventBus) -> None:
        self.complete()

    @query_handler("process.is_settled")
    def ask_settled(self: Any) -> bool:
        return self.is_settled


@saga(identifier="process_id")
@document("papers.dataclass_process")
@dataclass(kw_only=True)
class DataclassProcess(ProcessHandlers, Saga):
    process_id: int
    is_settled: bool = False
    is_packed: bool = False
    times: int = 1


@saga(identifier="process_id")
@document("papers.pydantic_process")
class PydanticProcess(ProcessHandlers, Completable, BaseModel):
    process_id: int
    is_settled: bool = False
    is_packed: bool = False
    times: int = 1
    completed_at: datetime | None = None


@saga(identifier="process_id")
@document("papers.plain_process")
class PlainProcess(ProcessHandlers, Saga):
    process_id: int
    is_settled: bool = False
    is_packed: bool = False
    times: int = 1

    def __init__(self, process_id: int) -> None:
        self.process_id = process_id


PROCESSES = [DataclassProcess, PydanticProcess, PlainProcess]
