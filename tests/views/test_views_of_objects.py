"""Requests for objects: what is answered where there is none, or it has changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.test import RequestFactory
from ninja import NinjaAPI

from django_cqrs import CommandBus, Query, Registry, command_handler, query_handler
from django_cqrs.contrib.ninja import install_exception_handlers
from django_cqrs.contrib.rest_framework import exception_handler
from django_cqrs.documents import document
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
)
from django_cqrs.modelling import Fetch, Identifier, Version, aggregate
from django_cqrs.views import AsyncCommandView, AsyncQueryView, CommandView, QueryView
from tests.modelling.models import Ticket

pytestmark = pytest.mark.django_db


@dataclass(frozen=True)
class MakeBox:
    box_id: int


@dataclass(frozen=True)
class ShowBox(Query[int]):
    box_id: Any = None


@dataclass(frozen=True)
class FillBox:
    box_id: Any = None
    seen: Annotated[int | None, Version()] = None


@dataclass(frozen=True)
class WeighBox:
    box_id: Any = None


@dataclass(frozen=True)
class LabelBox:
    label: str


@dataclass(frozen=True)
class OpenBox:
    which: Annotated[int, Identifier("box_id")]


@dataclass(frozen=True)
class LabelSeat:
    row: str


@dataclass(frozen=True)
class MakeSeat:
    row: str
    number: int


@aggregate(version="version")
@document("views.box")
@dataclass
class Box:
    box_id: int
    count: int = 0
    version: int = 0

    @command_handler
    @classmethod
    def make(cls, command: MakeBox) -> Box:
        return cls(command.box_id)

    @query_handler
    def show(self, query: ShowBox) -> int:
        return self.count

    @query_handler("box.count")
    def its_count(self) -> int:
        return self.count

    @command_handler
    def fill(self, command: FillBox) -> None:
        self.count += 1

    @command_handler
    def label(self, command: LabelBox) -> str:
        return f"{command.label} on {self.box_id}"

    @command_handler
    def open(self, command: OpenBox) -> int:
        return command.which

    @command_handler("box.touch")
    def touch(self) -> None:
        self.count += 1

    @command_handler("box.add")
    def add(self, number: int) -> int:
        self.count += number
        return self.count

    @command_handler("box.reopen")
    def reopen(self, body: dict) -> None:
        self.count = 0


@aggregate(identifier=("row", "number"))
@document("views.seat")
@dataclass
class Seat:
    row: str
    number: int
    count: int = 0

    @command_handler("seat.make")
    @classmethod
    def make(cls, command: MakeSeat) -> Seat:
        return cls(command.row, command.number)

    @command_handler("seat.label")
    def label(self, command: LabelSeat) -> str:
        return f"{self.row}{self.number} in row {command.row}"

    @command_handler("seat.take")
    def take(self) -> int:
        self.count += 1
        return self.count


def weigh(command: WeighBox, box: Annotated[Box, Fetch("box_id")]) -> int:
    return box.count


def forward(command: dict, commands: CommandBus) -> None:
    """A fault of the code: the request says nothing of this object."""
    commands.dispatch(FillBox(99))


registry = Registry()
for each in (
    Box,
    Seat,
    command_handler(weigh),
    command_handler("box.forward")(forward),
):
    registry.add(each)


@pytest.fixture(autouse=True)
def box():
    registry.command_bus.dispatch(MakeBox(7))


def answer(response):
    text = response.content.decode()
    return response.status_code, json.loads(text) if text else None


def by_view(kind, body, captured, *, is_async=False, **options):
    """Return what a view answers to a request."""
    if kind == "command":
        cls = AsyncCommandView if is_async else CommandView
        view = cls.as_view(bus=registry.command_bus, **options)
        text = "" if body is None else json.dumps(body)
        request = RequestFactory().post("/", text, "application/json")
    else:
        cls = AsyncQueryView if is_async else QueryView
        view = cls.as_view(bus=registry.query_bus, **options)
        request = RequestFactory().get("/", body or {})
    return answer((async_to_sync(view) if is_async else view)(request, **captured))


def problem(status, title, detail):
    return status, {"title": title, "status": status, "detail": detail}


NONE = problem(404, "Not Found", "No object with this identifier exists.")
UNSAID = problem(400, "Bad Request", "The message does not identify its object.")
INVALID = problem(400, "Bad Request", "The identifier is not valid.")
STALE = problem(
    409, "Conflict", "The object was changed in the meantime. Load it again."
)

TAKEN = problem(409, "Conflict", "An object with this identifier already exists.")

REQUESTS = {
    "a factory, taken": ("command", {"message": MakeBox}, {"box_id": 7}, TAKEN),
    "an action, unknown": ("command", {"message": FillBox}, {"box_id": 8}, NONE),
    "an action, stale": (
        "command",
        {"message": FillBox},
        {"box_id": 7, "seen": 99},
        STALE,
    ),
    "an action, unsaid": ("command", {"message": FillBox}, {}, UNSAID),
    "an action, a list": ("command", {"message": FillBox}, {"box_id": [7]}, INVALID),
    "an action, a text": ("command", {"message": FillBox}, {"box_id": "x"}, INVALID),
    "an action of a dict, unknown": (
        "command",
        {"route": "box.reopen"},
        {"box_id": 8},
        NONE,
    ),
    "an action of a dict, unsaid": ("command", {"route": "box.reopen"}, {}, UNSAID),
    "an action of a dict, a list": (
        "command",
        {"route": "box.reopen"},
        {"box_id": [7]},
        INVALID,
    ),
    "an action by its key, unsaid": ("command", {"route": "box.touch"}, None, UNSAID),
    "a query, unknown": ("query", {"message": ShowBox}, {"box_id": "8"}, NONE),
    "a query, unsaid": ("query", {"message": ShowBox}, {}, UNSAID),
    "a query, a text": ("query", {"message": ShowBox}, {"box_id": "x"}, INVALID),
    "a handler that fetches, unknown": (
        "command",
        {"message": WeighBox},
        {"box_id": 8},
        NONE,
    ),
    "a handler that fetches, unsaid": ("command", {"message": WeighBox}, {}, UNSAID),
    "a handler that fetches, a list": (
        "command",
        {"message": WeighBox},
        {"box_id": [7]},
        INVALID,
    ),
}


@pytest.mark.parametrize("is_async", [False, True], ids=["view", "async view"])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_for_an_object_that_is_not_so_is_answered_with_a_problem(
    name, is_async
):
    """It is the request's fault, so it is no 500, and the answer names no code."""
    kind, options, body, expected = REQUESTS[name]

    assert by_view(kind, body, {}, is_async=is_async, **options) == expected


@pytest.mark.parametrize(
    "cls", [AggregateNotFound, InvalidIdentifier, ConcurrencyError]
)
def test_ones_own_status_for_such_an_error_comes_first(cls):
    """``errors=`` of the view decides, with the text of the error."""
    body = {
        AggregateNotFound: {"box_id": 8},
        InvalidIdentifier: {"box_id": [7]},
        ConcurrencyError: {"box_id": 7, "seen": 99},
    }[cls]

    status, details = by_view("command", body, {}, message=FillBox, errors={cls: 410})

    assert status == details["status"] == 410


def test_an_object_that_the_code_asks_for_is_no_fault_of_the_request():
    """What a handler sends on itself is raised, as every fault of the code."""
    with pytest.raises(AggregateNotFound):
        by_view("command", {}, {}, route="box.forward")


KEYS = {
    "without a payload": ("command", {"route": "box.touch"}, None, 204, None, 1),
    "with one value": ("command", {"route": "box.add"}, 5, 200, 5, 5),
    "with a dict": ("command", {"route": "box.reopen"}, {}, 204, None, 0),
    "a query": ("query", {"route": "box.count"}, None, 200, 0, 0),
}


@pytest.mark.parametrize("is_async", [False, True], ids=["view", "async view"])
@pytest.mark.parametrize("name", KEYS)
def test_the_path_says_which_object_an_action_by_its_key_is_for(name, is_async):
    """Its payload has no field for that: ``boxes/<int:box_id>/touch/``."""
    kind, options, body, status, result, count = KEYS[name]

    assert by_view(kind, body, {"box_id": 7}, is_async=is_async, **options) == (
        status,
        result,
    )
    assert registry.query_bus.ask(ShowBox(7)) == count
    assert by_view(kind, body, {"box_id": 8}, is_async=is_async, **options) == NONE


def test_the_path_may_call_it_aggregate_id():
    """As the buses do."""
    said = by_view("command", None, {"aggregate_id": "7"}, route="box.touch")

    assert said == (204, None)
    assert registry.query_bus.ask(ShowBox(7)) == 1


def test_a_path_that_names_another_thing_says_no_object():
    """What is no part of the identifier is not taken for one."""
    assert by_view("command", None, {"shelf": 7}, route="box.touch") == UNSAID


def test_the_path_gives_all_parts_of_an_identifier():
    """Under their names, each by itself; one of two says no object."""
    both = {"row": "a", "number": "3"}

    assert by_view("command", None, both, route="seat.take") == NONE
    assert by_view("command", None, {"row": "a"}, route="seat.take") == UNSAID


def test_the_path_gives_what_the_message_has_no_field_for():
    """Its fields are in the body; the identifier is nowhere but in the path."""
    said = by_view("command", {"label": "x"}, {"box_id": 7}, message=LabelBox)

    assert said == (200, "x on 7")
    assert by_view("command", {"label": "x"}, {"box_id": 8}, message=LabelBox) == NONE
    assert by_view("command", {"label": "x"}, {}, message=LabelBox) == UNSAID


def test_the_path_fills_the_field_that_is_marked_as_the_identifier():
    """Whatever the field is called."""
    for body, status in (({}, 200), ({"which": 7}, 400)):
        assert by_view("command", body, {"box_id": 7}, message=OpenBox)[0] == status


def test_a_field_that_the_path_has_cannot_also_be_given():
    """Also where it has another name in the path."""
    _, body = by_view("command", {"which": 7}, {"box_id": 7}, message=OpenBox)

    assert [(each["path"], each["code"]) for each in body["errors"]] == [
        ("which", "in_path")
    ]


def test_the_path_calls_the_identifier_of_a_dict_aggregate_id():
    """Any other name is a key of the dict."""
    said = by_view("command", {}, {"aggregate_id": 7}, route="box.reopen")

    assert said == (204, None)


def test_the_path_and_the_body_may_each_have_a_part_of_an_identifier():
    """The part that is a field of the message, and the one that is none."""
    made = {"row": "a", "number": 3}
    assert by_view("command", made, {}, route="seat.make") == (200, ["a", 3])

    said = by_view("command", {}, made, route="seat.label")
    assert said == (200, "a3 in row a")


def test_a_model_may_be_called_pk_in_the_path():
    """As in the views of Django and the routers of REST framework."""
    ticket = Ticket.objects.create(ticket_id=uuid4(), assignee="ada")
    own = Registry()
    own.add(Ticket)
    view = QueryView.as_view(route="ticket.assignee", bus=own.query_bus)

    assert answer(view(RequestFactory().get("/"), pk=uuid4())) == NONE
    assert answer(view(RequestFactory().get("/"), pk=ticket.pk)) == (200, "ada")


def test_a_factory_takes_no_object_from_the_path():
    """It makes one: its message may have the identifier, or the database gives it."""
    assert by_view("command", {"box_id": 9}, {"shelf": 1}, message=MakeBox) == (200, 9)
    assert by_view("command", {}, {"box_id": 10}, message=MakeBox) == (200, 10)


def _django_rest_framework(error: Exception) -> Any:
    response = exception_handler(error, {})
    return None if response is None else (response.status_code, response.data)


def _ninja(error: Exception) -> Any:
    api = NinjaAPI(urls_namespace=f"boxes-{id(error)}")
    install_exception_handlers(api)
    try:
        return answer(api.on_exception(RequestFactory().get("/"), error))
    except type(error):
        return None


@pytest.mark.parametrize("handle", [_django_rest_framework, _ninja])
@pytest.mark.parametrize("name", [each for each in REQUESTS if "query" not in each])
def test_other_frameworks_answer_the_same(name, handle):
    """The helpers for REST framework and for ninja share what the views say."""
    _, options, body, expected = REQUESTS[name]
    route, cls = options.get("route"), options.get("message")
    payload = cls(**body) if cls is not None else body

    with pytest.raises(
        (
            AggregateAlreadyExists,
            AggregateNotFound,
            ConcurrencyError,
            InvalidIdentifier,
        )
    ) as caught:
        registry.command_bus.dispatch(payload, route=route)

    assert handle(caught.value) == expected


@pytest.mark.parametrize("handle", [_django_rest_framework, _ninja])
def test_other_frameworks_leave_a_fault_of_the_code_alone(handle):
    """It is raised there, and reported."""
    with pytest.raises(AggregateNotFound) as caught:
        registry.command_bus.dispatch({}, route="box.forward")

    assert handle(caught.value) is None
