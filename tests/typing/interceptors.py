"""Interceptors, markers, pointcuts and buses of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, assert_type
from uuid import UUID, uuid4

from django_cqrs import (
    DEADLOCKS,
    CommandBus,
    Header,
    InstantRetry,
    Message,
    Registry,
    command_handler,
)
from django_cqrs.interception import (
    STOP,
    TRANSACTION,
    Marker,
    Pointcut,
    Proceed,
    after,
    around,
    before,
    pointcut,
    pre_send,
)
from tests.typing.messages import CloseTicket, OpenTicket


@dataclass(frozen=True)
class RequiresPermission(Marker):
    name: str


webhook_bus = CommandBus(
    instant_retry=InstantRetry(3, on=(DEADLOCKS, TimeoutError)),
    registry=Registry(),
)


@RequiresPermission("tickets.open")
@command_handler
def open_ticket(command: OpenTicket) -> UUID:
    return uuid4()


@RequiresPermission("tickets")
class Tickets:
    number = 1


@around(
    pointcut.marked(RequiresPermission) & ~pointcut.handler("billing.*"),
    precedence=TRANSACTION - 1,
)
def guard(
    proceed: Proceed,
    target: object | None,
    required: RequiresPermission,
    user_id: Annotated[int, Header("user_id")],
) -> object:
    return proceed()


@before(pointcut.message(OpenTicket) | pointcut.bus(webhook_bus))
def stamp(message: Message) -> Message:
    return message.replace(headers={"stamped": True})


@after(pointcut.bus(CommandBus))
def shorten(result: str) -> str:
    return result[:10]


@pre_send(pointcut.handler("*"))
def refuse() -> object:
    return STOP


def right() -> None:
    assert_type(open_ticket(OpenTicket("lamp")), UUID)
    assert_type(Tickets.number, int)
    assert_type(stamp(Message()), Message)
    assert_type(shorten("long"), str)
    assert_type(pointcut.handler("a") & pointcut.handler("b"), Pointcut)
    assert_type(~pointcut.handler("a"), Pointcut)
    assert_type(webhook_bus.dispatch(OpenTicket("lamp")), UUID)


def wrong() -> None:
    open_ticket(CloseTicket(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    shorten(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RequiresPermission(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    before("billing.*")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    before(pointcut.handler("*"), precedence="first")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    around(pointcut.handler("*"))(1)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    pointcut.marked(CloseTicket)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pointcut.message("OpenTicket")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pointcut.bus("command_bus")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pointcut.handler("*") & "billing.*"  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
    InstantRetry(3, on="deadlocks")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InstantRetry("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InstantRetry(on=KeyboardInterrupt)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    CommandBus(instant_retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    CommandBus(Registry())  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
