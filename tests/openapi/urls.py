"""Views of messages, in every way that a URLconf may hold them."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from django.conf.urls.i18n import i18n_patterns
from django.contrib.auth.decorators import login_required
from django.urls import include, path, re_path, register_converter
from django.views.decorators.csrf import csrf_exempt
from pydantic import BaseModel, Field

from django_cqrs import (
    Command,
    Header,
    Query,
    Registry,
    command_handler,
    message,
    query_handler,
)
from django_cqrs.conversion import converter
from django_cqrs.documents import document
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.modelling import Fetch, Version, aggregate
from django_cqrs.views import (
    AsyncCommandView,
    AsyncQueryView,
    CommandView,
    OutcomeView,
    QueryView,
)


class Money:
    def __init__(self, amount: Decimal) -> None:
        self.amount = amount


@converter
def money_to_json(money: Money) -> str:
    return str(money.amount)


@converter
def money_from_json(text: str) -> Money:
    return Money(Decimal(text))


class Kind(enum.Enum):
    BUG = "bug"
    WISH = "wish"


class Point(NamedTuple):
    x: int
    y: int = 0


class TicketClosed(Exception):
    """The ticket is closed."""


@dataclass(frozen=True)
class Line:
    product: str
    price: Money
    place: Point | None = None
    attachment: bytes = b""


@dataclass(frozen=True)
class OpenTicket(Command[UUID]):
    """
    Open a ticket.

    It is assigned later.
    """

    title: str
    kind: Kind = Kind.BUG
    lines: list[Line] = field(default_factory=list)


class RenameTicket(BaseModel):
    title: str = Field(max_length=80, description="The new title.")
    seen: Annotated[int, Version(), Field(alias="seenVersion")]


@dataclass(frozen=True)
class FindTickets(Query[list["TicketRow"]]):
    kind: Literal["bug", "wish"]
    ids: list[int] = field(default_factory=list)
    since: date | None = None


@dataclass(frozen=True)
class TicketRow:
    number: int
    opened: date
    version: Annotated[int, Version()]


@message("openapi.remind")
@dataclass(frozen=True)
class Remind:
    text: str


@dataclass(frozen=True)
class ByPhone:
    number: str
    kind: Literal["phone"] = "phone"


@dataclass(frozen=True)
class ByPost:
    street: str
    kind: Literal["post"] = "post"


@aggregate(version="version")
@document("openapi.ticket")
@dataclass
class Ticket:
    ticket_id: UUID
    title: str = ""
    version: int = 0

    @command_handler
    @classmethod
    def open(cls, command: OpenTicket) -> Ticket:
        return cls(UUID(int=1), command.title)

    @command_handler
    def rename(self, command: RenameTicket) -> None:
        self.title = command.title

    @command_handler("ticket.close")
    def close(self) -> None:
        """Close a ticket."""

    @query_handler("ticket.title")
    def shown(self) -> str | None:
        return self.title or None


@query_handler
def find(query: FindTickets) -> list[TicketRow]:
    return []


@query_handler("ticket.row")
def row(ticket_id: UUID) -> TicketRow | None:
    return None


@query_handler("ticket.ids")
def ids() -> Iterator[int]:
    yield 1


@command_handler(channel="memory")
def remind(command: Remind) -> None: ...


@command_handler("contact")
def contact(how: ByPhone | ByPost) -> Any: ...


@command_handler("count")
def count(number: int, by: Annotated[str, Header("by")]) -> int:
    return number


@command_handler("weigh")
def weigh(body: dict, ticket: Annotated[Ticket, Fetch("ticket_id")]) -> Money:
    return Money(Decimal(1))


registry = Registry()
for each in (Ticket, find, row, ids, remind, contact, count, weigh):
    registry.add(each)
registry.add(Remind)
commands, queries = registry.command_bus, registry.query_bus


class FourDigits:
    regex = "[0-9]{4}"

    def to_python(self, value):
        return int(value)

    def to_url(self, value):
        return str(value)


register_converter(FourDigits, "openapi_year")


class StrictView(CommandView):
    bus = commands
    errors = {MessageConversionError: 422, TicketClosed: 410}


def plain(request):
    """A view without a message, which is not described."""


tickets = [
    path(
        "<uuid:ticket_id>/rename/",
        StrictView.as_view(message=RenameTicket, requires_if_match=True),
        name="rename",
    ),
    path(
        "<uuid:ticket_id>/close/",
        csrf_exempt(AsyncCommandView.as_view(route="ticket.close", bus=commands)),
    ),
    path(
        "<uuid:ticket_id>/",
        login_required(
            QueryView.as_view(route="ticket.row", bus=queries, empty_status=404)
        ),
    ),
    path("<uuid:pk>/title/", AsyncQueryView.as_view(route="ticket.title", bus=queries)),
]

urlpatterns = [
    path("plain/", plain),
    path(
        "tickets/open/",
        CommandView.as_view(message=OpenTicket, bus=commands, status=201),
    ),
    path("tickets/", QueryView.as_view(message=FindTickets, bus=queries)),
    path("bugs/", QueryView.as_view(message=FindTickets, bus=queries), {"kind": "bug"}),
    path("ids/", QueryView.as_view(route="ticket.ids", bus=queries)),
    path("api/", include((tickets, "tickets"), namespace="v1")),
    re_path(
        r"^archive/(?P<ticket_id>[0-9a-f]{8}(?:-[0-9a-f]+){4})\.json$",
        QueryView.as_view(route="ticket.row", bus=queries),
    ),
    re_path(r"^old/(\d+)/(\d+)/$", CommandView.as_view(route="contact", bus=commands)),
    path(
        "<openapi_year:year>/remind/",
        CommandView.as_view(message=Remind, bus=commands),
    ),
    path(
        "later/",
        CommandView.as_view(message=Remind, bus=commands, outcome_view="outcome"),
    ),
    path("outcomes/<uuid:message_id>/", OutcomeView.as_view(), name="outcome"),
    path("count/", CommandView.as_view(route="count", bus=commands)),
    path("count/<int:number>/", CommandView.as_view(route="count", bus=commands)),
    path("weigh/", CommandView.as_view(route="weigh", bus=commands)),
    *i18n_patterns(
        path("contact/", CommandView.as_view(route="contact", bus=commands)),
        prefix_default_language=False,
    ),
]
