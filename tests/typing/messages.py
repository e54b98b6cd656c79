"""The messages and results that these files speak of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from django_cqrs import Command, Query, message

R = TypeVar("R")


@dataclass(frozen=True)
class TicketRow:
    title: str


@dataclass(frozen=True)
class OpenTicket(Command[UUID]):
    __slots__ = ("title",)
    title: str


@message("ticket.assign")
@dataclass(frozen=True, slots=True)
class AssignTicket(Command["TicketRow | None"]):
    number: int


@dataclass(frozen=True, slots=True)
class CloseTicket(Command[None]):
    number: int


@dataclass(frozen=True, slots=True)
class GetTicket(Query[TicketRow]):
    number: int


class Page(Query[list[R]], Generic[R]):
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class FindTickets(Page[TicketRow]):
    title: str = ""


@dataclass(frozen=True, slots=True)
class Plain:
    title: str = ""
