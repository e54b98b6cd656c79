"""A handler of each shape that is measured."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from django_cqrs import (
    CommandBus,
    Header,
    Message,
    command_handler,
    event_handler,
    query_handler,
)
from tests.benchmarks.shop.messages import (
    Added,
    AddInTransaction,
    AddNested,
    AddOne,
    AddWithBus,
    AddWithHeader,
    AddWithIdentity,
    BookDelivery,
    GetSum,
    Refused,
)


@command_handler(atomic=False)
def add_one(command: AddOne) -> int:
    return command.to + 1


@command_handler("shop.add", atomic=False)
def add_by_key(command: AddOne) -> int:
    return command.to + 1


@command_handler
def add_in_transaction(command: AddInTransaction) -> int:
    return command.to + 1


@command_handler(atomic=False)
def add_with_header(
    command: AddWithHeader, executor_id: Annotated[int, Header("executor_id")]
) -> int:
    return command.to + 1


@command_handler(atomic=False)
def add_with_bus(command: AddWithBus, commands: CommandBus) -> int:
    return command.to + 1


@command_handler(atomic=False)
def add_with_identity(command: AddWithIdentity, message: Message) -> UUID:
    return message.message_id


@command_handler(atomic=False)
def add_nested(command: AddNested, commands: CommandBus) -> int:
    return commands.dispatch(AddOne(command.to))


@command_handler(atomic=False)
def refuse(command: Refused) -> None:
    msg = "Not today."
    raise ValueError(msg)


@command_handler("shop.book", atomic=False)
def book_delivery(command: BookDelivery) -> int:
    return command.parcels


@query_handler
def get_sum(query: GetSum) -> int:
    return query.of + 1


@event_handler
def note(event: Added) -> None:
    pass


@event_handler("shop.noted")
def note_by_key(event: Added) -> None:
    pass
