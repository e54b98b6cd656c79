"""A message class may say what comes back: checked at the start, and when stopped."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import pytest

from django_cqrs import Command, Query, Registry, command_handler, query_handler
from django_cqrs.exceptions import MessageStopped
from django_cqrs.interception import STOP, before, pointcut
from django_cqrs.messages import result_type_of
from django_cqrs.problems import Rule


@dataclass(frozen=True)
class TicketRow:
    title: str


@dataclass(frozen=True, slots=True)
class GetTicket(Query[TicketRow]):
    number: int


@dataclass(frozen=True, slots=True)
class OpenTicket(Command[UUID]):
    title: str


@dataclass(frozen=True)
class CloseTicket(Command[None]):
    number: int


@dataclass(frozen=True)
class Plain:
    number: int


def rules_of(*handlers):
    registry = Registry()
    for handler in handlers:
        registry.add(handler)
    return [problem.rule for problem in registry.problems]


def test_a_message_says_its_result():
    """The R of Query[R] and Command[R] is known, with slots and in quotes as well. [B03.4]"""

    @dataclass
    class Quoted(Query["TicketRow"]):
        number: int

    assert result_type_of(GetTicket) is TicketRow
    assert result_type_of(OpenTicket) is UUID
    assert result_type_of(Quoted) is TicketRow


def test_a_handler_annotated_otherwise_is_a_check():
    """A handler that returns another type than its message says is a check. [B03.4]"""

    @query_handler
    def get_ticket(query: GetTicket) -> UUID: ...

    @command_handler
    def open_ticket(command: OpenTicket) -> UUID: ...

    assert rules_of(get_ticket) == [Rule.RESULT_TYPE]
    assert rules_of(open_ticket) == []


def test_a_result_promised_by_a_message_on_a_channel_is_a_check():
    """Command[R] with R not None on a channel is a check; Command[None] is none. [B03.4]"""

    @command_handler(channel="memory", name="typed.open")
    def open_ticket(command: OpenTicket) -> UUID: ...

    @command_handler(channel="memory", name="typed.close")
    def close_ticket(command: CloseTicket) -> None: ...

    assert Rule.CHANNELLED_RESULT in rules_of(open_ticket)
    assert Rule.CHANNELLED_RESULT not in rules_of(close_ticket)


@pytest.mark.django_db
def test_a_stopped_flow_raises_for_a_typed_message():
    """Who was promised a result gets MessageStopped; who was not gets None. [B03.4]"""

    @before(pointcut.handler("*"))
    def nobody(_payload: object) -> object:
        return STOP

    @query_handler
    def get_ticket(query: GetTicket) -> TicketRow: ...

    @command_handler
    def close_ticket(command: CloseTicket) -> None: ...

    @command_handler
    def plain(command: Plain) -> None: ...

    registry = Registry()
    for each in (nobody, get_ticket, close_ticket, plain):
        registry.add(each)

    with pytest.raises(MessageStopped, match="stopped GetTicket, whose sender was"):
        registry.query_bus.ask(GetTicket(1))
    assert registry.command_bus.dispatch(CloseTicket(1)) is None
    assert registry.command_bus.dispatch(Plain(1)) is None
