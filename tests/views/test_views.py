"""JSON over HTTP: requests into messages, results into JSON, errors into problems."""

import json
import logging
import types
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin, PermissionRequiredMixin
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import PermissionDenied
from django.http import Http404
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    Headers,
    Registry,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.conversion import converter
from django_cqrs.documents import document
from django_cqrs.exceptions import InvalidHandler, MessageConversionError
from django_cqrs.modelling import aggregate
from django_cqrs.views import (
    AsyncCommandView,
    AsyncQueryView,
    CommandView,
    QueryView,
)
from django_cqrs.views.problem_details import problem_of
from tests.testapp.models import Note

JSON = "application/json"
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class AddProduct:
    sku: str


@dataclass(frozen=True)
class Line:
    product: str
    quantity: int = 1


@dataclass(frozen=True)
class OpenTicket:
    title: str
    priority: int = 3
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class CloseTicket:
    ticket_id: UUID
    reason: str = ""


@dataclass(frozen=True)
class FindTickets:
    status: str = "open"
    ids: list[int] = field(default_factory=list)
    since: date | None = None


@dataclass(frozen=True)
class TicketRow:
    number: int
    opened: date


class TicketClosed(Exception):
    """What a handler here raises on purpose."""


class Money:
    def __init__(self, amount: Decimal) -> None:
        self.amount = amount


@converter
def money_to_json(money: Money) -> str:
    return str(money.amount)


@converter
def money_from_json(text: str) -> Money:
    return Money(Decimal(text))


KEY = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


class Api:
    """One of the ways that a request may come in, with a registry of its own."""

    def __init__(self, settings: Any, *, is_asgi: bool, is_async: bool) -> None:
        self._settings = settings
        self._is_asgi = is_asgi
        self.registry = Registry()
        self.command_view = AsyncCommandView if is_async else CommandView
        self.query_view = AsyncQueryView if is_async else QueryView
        self.client = (AsyncClient if is_asgi else Client)()

    def add(self, handler):
        return self.registry.add(handler)

    def serve(self, where, view):
        urls = types.ModuleType("urls")
        urls.urlpatterns = [path(where, view)]
        self._settings.ROOT_URLCONF = urls

    def commands(self, where="", /, **initkwargs):
        bus = self.registry.command_bus
        self.serve(where, self.command_view.as_view(**{"bus": bus, **initkwargs}))

    def queries(self, where="", /, **initkwargs):
        bus = self.registry.query_bus
        self.serve(where, self.query_view.as_view(**{"bus": bus, **initkwargs}))

    def request(self, method, where="/", /, **options):
        call = getattr(self.client, method)
        return (
            async_to_sync(call)(where, **options)
            if self._is_asgi
            else call(where, **options)
        )

    def post(self, body=None, where="/", content_type=JSON, **options):
        text = body if isinstance(body, bytes) else json.dumps(body)
        return self.request(
            "post", where, data=text, content_type=content_type, **options
        )

    def get(self, where="/", **options):
        return self.request("get", where, **options)


WAYS = {
    "wsgi": {"is_asgi": False, "is_async": False},
    "asgi": {"is_asgi": True, "is_async": False},
    "wsgi, async twin": {"is_asgi": False, "is_async": True},
    "asgi, async twin": {"is_asgi": True, "is_async": True},
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def api(request, settings):
    return Api(settings, **request.param)


@pytest.fixture
def wsgi(settings):
    return Api(settings, is_asgi=False, is_async=False)


def problem_in(response):
    assert response["Content-Type"] == PROBLEM
    return response.status_code, json.loads(response.content)


def invalid(*errors):
    """Return the problem of a payload with these paths, details and codes wrong."""
    return 400, {
        "title": "Bad Request",
        "status": 400,
        "detail": "The request is not valid; see errors.",
        "errors": [
            {"path": path, "detail": detail, "code": code}
            for path, detail, code in errors
        ],
    }


# Commands -------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_json_body_becomes_a_command_of_a_class(api):
    """A POST is dispatched as the message class, and its result is JSON. [B17.2]"""

    @api.add
    @command_handler
    def open_ticket(command: OpenTicket) -> UUID:
        Note.objects.create(text=command.title, number=command.lines[0].quantity)
        return KEY

    api.commands(message=OpenTicket)
    response = api.post(
        {"title": "lamp", "lines": [{"product": "bulb", "quantity": 2}]}
    )

    assert response.status_code == 200
    assert response["Content-Type"] == JSON
    assert response.content == b'"01890a5d-ac96-774b-bcce-b302099a8057"'
    assert list(Note.objects.values_list("text", "number")) == [("lamp", 2)]


@pytest.mark.django_db
def test_a_json_body_becomes_a_command_by_its_route(api):
    """A POST is dispatched by routing key, as what the handler's annotation says. [B17.2]"""

    @api.add
    @command_handler("ticket.open")
    def open_ticket(command: OpenTicket) -> TicketRow:
        return TicketRow(command.priority, date(2026, 5, 1))

    api.commands(route="ticket.open", status=201)
    response = api.post({"title": "lamp", "priority": 5})

    assert response.status_code == 201
    assert json.loads(response.content) == {"number": 5, "opened": "2026-05-01"}


@pytest.mark.django_db
def test_a_route_may_be_the_name_of_a_message(api):
    """The name that @message gave a class is a route of it. [B17.2]"""

    @message("ticket.reopen")
    @dataclass(frozen=True)
    class ReopenTicket:
        title: str

    @api.add
    @command_handler
    def reopen(command: ReopenTicket) -> str:
        return f"{type(command).__name__} {command.title}"

    api.add(ReopenTicket)
    api.commands(route="ticket.reopen")

    assert json.loads(api.post({"title": "lamp"}).content) == "ReopenTicket lamp"


class Settings(TypedDict):
    theme: str


class Point(NamedTuple):
    x: int
    y: int = 0


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int = Field(alias="no")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("wanted", "body", "given"),
    [
        (str, "text", "text"),
        (int, 7, 7),
        (UUID, str(KEY), KEY),
        (list[int], [1, 2], [1, 2]),
        (dict, {"a": 1}, {"a": 1}),
        (object, [1, {"a": None}], [1, {"a": None}]),
        (int | None, None, None),
        (Point, {"x": 1}, Point(1)),
        (Settings, {"theme": "dark"}, {"theme": "dark"}),
        (Decimal, "1.10", Decimal("1.10")),
    ],
)
def test_any_payload_that_a_key_leads_to(wsgi, wanted, body, given):
    """By routing key the body may be any JSON that the handler's parameter takes. [B17.2]"""
    seen = []

    @wsgi.add
    @command_handler("take")
    def take(payload: wanted) -> None:
        seen.append(payload)

    wsgi.commands(route="take")

    assert wsgi.post(body).status_code == 204
    assert seen == [given]


@pytest.mark.django_db
@pytest.mark.parametrize(("status", "expected"), [({}, 204), ({"status": 201}, 201)])
def test_the_status_of_a_view_is_obeyed_without_a_result(api, status, expected):
    """By default it is 204; what was said is answered, and there is no body."""

    @api.add
    @command_handler("ticket.touch")
    def touch() -> None: ...

    api.commands(route="ticket.touch", **status)
    response = api.post(b"", content_type="")

    assert (response.status_code, response.content) == (expected, b"")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, (200, b"null")),
        ({"empty_status": 204}, (204, b"")),
        (
            {"empty_status": 404},
            (
                404,
                b'{"title": "Not Found", "status": 404, "detail": "Nothing was found."}',
            ),
        ),
    ],
)
def test_the_status_of_a_query_without_an_answer_is_obeyed(api, status, expected):
    """None alone is no answer: an empty list is one."""

    @api.add
    @query_handler("ticket.find")
    def find(number: int) -> TicketRow | None:
        return TicketRow(number, date(2026, 5, 1)) if number else None

    @api.add
    @query_handler("ticket.list")
    def find_all() -> list[int]:
        return []

    api.queries(route="ticket.find", **status)
    response = api.get("/?number=0")
    assert (response.status_code, response.content) == expected
    assert api.get("/?number=1").status_code == 200
    api.queries(route="ticket.list", **status)
    assert api.get("/").content == b"[]"


@pytest.mark.django_db
def test_an_error_of_the_request_keeps_its_details_under_another_status(api):
    """``errors=`` may say 422; what is said about the fields stays."""

    @api.add
    @command_handler("ticket.open")
    def open_ticket(command: OpenTicket) -> None: ...

    api.commands(route="ticket.open", errors={MessageConversionError: 422})
    status, body = problem_in(api.post({"title": 5}))

    assert (status, body["title"], body["status"]) == (422, body["title"], 422)
    assert (
        body["errors"]
        == invalid(("title", "Input should be a valid string", "string_type"))[1][
            "errors"
        ]
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"status": 99}, "CommandView has status=99, which is not one of HTTP's"),
        (
            {"errors": {TicketClosed: "409"}},
            "CommandView has errors[TicketClosed]='409', which is not one of HTTP's",
        ),
        (
            {"errors": {"TicketClosed": 409}},
            "CommandView has errors={'TicketClosed': 409}, but 'TicketClosed' is not",
        ),
    ],
)
def test_a_status_that_http_does_not_have_is_refused_at_once(options, text):
    """By ``as_view()``, not by the first error."""
    with pytest.raises(TypeError) as caught:
        CommandView.as_view(route="ticket.open", **options)

    assert str(caught.value).startswith(text)


@pytest.mark.django_db
def test_the_status_of_a_view_is_the_same_for_both_of_a_pair(api):
    """Whether the factory runs, which has a result, or the action, which has none."""

    @api.add
    @aggregate(identifier="sku")
    @document("views.product")
    @dataclass
    class Product:
        sku: str

        @command_handler("product.add")
        @classmethod
        def create(cls, command: AddProduct) -> "Product":
            return cls(command.sku)

        @command_handler("product.add")
        def add(self, command: AddProduct) -> None: ...

    api.commands(route="product.add", status=201)
    responses = [api.post({"sku": "x"}) for _ in range(2)]

    assert [each.status_code for each in responses] == [201, 201]
    assert [each.content for each in responses] == [b'"x"', b""]


@pytest.mark.django_db
def test_without_a_result_there_is_no_content(api):
    """A command that returns None answers 204, with no body. [B17.2]"""

    @api.add
    @command_handler("ticket.close")
    def close() -> None: ...

    api.commands(route="ticket.close")
    response = api.request("post", "/")

    assert response.status_code == 415  # the client's own multipart body

    response = api.post(b"", content_type="")
    assert response.status_code == 204
    assert response.content == b""


@pytest.mark.django_db
def test_a_handler_on_a_channel_is_accepted(api, settings):
    """A command for a channel answers 202, and is handled later. [B17.2]"""
    settings.DJANGO_CQRS = {
        "CHANNELS": {"default": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}
    }
    called = []

    @api.add
    @command_handler("ticket.remind", channel=True)
    def remind(number: int) -> None:
        called.append(number)

    api.commands(route="ticket.remind", status=201)
    response = api.post(7)

    assert response.status_code == 202
    assert response.content == b""
    assert called == []


@pytest.mark.django_db
def test_no_body_is_no_payload(api):
    """Without a body a handler gets its default, and a class its fields' defaults. [B17.2]"""
    seen = []

    @api.add
    @command_handler("by.default")
    def by_default(number: int = 7) -> None:
        seen.append(number)

    @api.add
    @command_handler("by.fields")
    def by_fields(command: FindTickets) -> None:
        seen.append(command)

    @api.add
    @command_handler("by.none")
    def by_none(command: FindTickets | None) -> None:
        seen.append(command)

    for route in ("by.default", "by.fields", "by.none"):
        api.commands(route=route)
        assert api.post(b"", content_type="").status_code == 204

    assert seen == [7, FindTickets(), None]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("wanted", "body", "errors"),
    [
        (OpenTicket, b"", [("title", "Field required", "missing")]),
        (str, b"", [("", "the payload is missing", "missing")]),
    ],
)
def test_no_body_where_one_is_needed(wsgi, wanted, body, errors):
    """Without a body the problem says what is missing. [B17.2]"""

    @wsgi.add
    @command_handler("take")
    def take(payload: wanted) -> None: ...

    wsgi.commands(route="take")

    assert problem_in(wsgi.post(body, content_type="")) == invalid(*errors)


@pytest.mark.django_db
def test_the_path_is_part_of_the_payload(api):
    """What the URL's path captures are fields of the payload, beside those of the body. [B17.2]"""
    seen = []

    @api.add
    @command_handler
    def close(command: CloseTicket) -> None:
        seen.append(command)

    api.commands("tickets/<uuid:ticket_id>/close", message=CloseTicket)
    where = f"/tickets/{KEY}/close"
    assert api.post({"reason": "fixed"}, where).status_code == 204
    assert api.post(b" { } ", where).status_code == 204
    assert api.post(b"", where, content_type="").status_code == 204

    assert seen == [CloseTicket(KEY, "fixed"), CloseTicket(KEY), CloseTicket(KEY)]


def test_the_path_cannot_be_contradicted(api):
    """A field that the path gives is refused in the body: permissions may rest on it. [B17.2]"""

    @api.add
    @command_handler(atomic=False)
    def close(command: CloseTicket) -> None: ...

    api.commands("tickets/<uuid:ticket_id>/close", message=CloseTicket)
    wanted = invalid(
        (
            "ticket_id",
            "it is in the path of the URL and cannot also be given here",
            "in_path",
        )
    )
    where = f"/tickets/{KEY}/close"
    twice = f'{{"ticket_id": "{UUID(int=1)}", "ticket_id": "{KEY}"}}'.encode()

    assert problem_in(api.post({"ticket_id": str(UUID(int=1))}, where)) == wanted
    assert problem_in(api.post(twice, where)) == wanted


@pytest.mark.parametrize(
    "number", ["7", "12345678901234567890", "1.1", "1e100", "0.1000000000000000055511"]
)
@pytest.mark.django_db
def test_numbers_are_the_same_beside_a_path(wsgi, number):
    """Adding the path's fields to a body changes nothing else in it. [B17.2]"""
    seen = []

    @dataclass(frozen=True)
    class Pay:
        amount: Any
        account: int | None = None

    @wsgi.add
    @command_handler("pay")
    def pay(command: Pay) -> None:
        seen.append(command.amount)

    body = f'{{"amount": {number}}}'.encode()
    for where in ("", "<int:account>"):
        wsgi.commands(where, route="pay")
        response = wsgi.post(body, f"/{where and 7}")
        assert response.status_code == 204

    assert seen[0] == seen[1]


@pytest.mark.django_db
@pytest.mark.parametrize("body", [b"[1]", b"7", b"{", b'"\xff"', b"[" * 100_000])
def test_a_body_that_is_no_object_is_a_problem_beside_a_path(wsgi, body):
    """Whatever is sent where an object is wanted, the answer is 400. [B17.2]"""
    wsgi.add(command_handler(lambda_taking(CloseTicket)))
    wsgi.commands("tickets/<uuid:ticket_id>", message=CloseTicket)

    status, problem = problem_in(wsgi.post(body, f"/tickets/{KEY}"))

    assert status == 400
    assert [error["path"] for error in problem["errors"]] == [""]


def lambda_taking(cls):
    def handle(command: cls) -> None: ...

    return handle


@pytest.mark.django_db
def test_the_path_may_give_the_one_plain_value(api):
    """A handler of one plain value gets it from the path, by its parameter's name. [B17.2]"""
    seen = []

    @api.add
    @command_handler("ticket.close")
    def close(ticket_id: UUID) -> None:
        seen.append(ticket_id)

    api.commands("<uuid:ticket_id>", route="ticket.close")

    assert api.post(b"", f"/{KEY}", content_type="").status_code == 204
    assert seen == [KEY]


# Problems -------------------------------------------------------------------------


def test_conversion_errors_are_problem_details(api):
    """Every field that is wrong is named by its path, with what is wrong and a code. [B17.2]"""
    called = []

    @api.add
    @command_handler(atomic=False)
    def open_ticket(command: OpenTicket) -> None:
        called.append(command)

    api.commands(message=OpenTicket)
    response = api.post(
        {"priority": "high", "lines": [{"product": "a"}, {"quantity": 1}]}
    )

    assert problem_in(response) == invalid(
        ("title", "Field required", "missing"),
        ("priority", "Input should be a valid integer", "int_type"),
        ("lines.1.product", "Field required", "missing"),
    )
    assert called == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "json_invalid"),
        (b"\xff\xfe", "json_invalid"),
        (b'{"title": NaN}', "string_type"),
        (b'{"title": "\\ud800"}', "json_invalid"),
        (b"null", "dataclass_type"),
        (b"[]", "dataclass_type"),
        (b"[" * 100_000, "json_invalid"),
    ],
)
def test_broken_json_is_a_problem(wsgi, body, code):
    """Text that is no JSON, or no object, is a problem and never an error. [B17.2]"""
    wsgi.add(command_handler(lambda_taking(OpenTicket)))
    wsgi.commands(message=OpenTicket)

    status, problem = problem_in(wsgi.post(body))

    assert status == 400
    assert [error["code"] for error in problem["errors"]] == [code]


def test_json_is_read_strict(wsgi):
    """In a body no string stands for a number. [B17.2]"""
    wsgi.add(command_handler(lambda_taking(OpenTicket)))
    wsgi.commands(message=OpenTicket)

    assert problem_in(wsgi.post({"title": "a", "priority": "3"})) == invalid(
        ("priority", "Input should be a valid integer", "int_type")
    )


SECRET = "hunter2"


@pytest.mark.parametrize(
    "body",
    [
        {"title": SECRET, "priority": SECRET},
        {"title": {SECRET: SECRET}},
        {"title": "a", "lines": [{"product": "a", "quantity": SECRET}]},
        {"title": "a", "lines": SECRET},
    ],
)
def test_a_problem_reveals_no_value_and_no_code(api, body, caplog):
    """Neither the response nor the log holds a value that was sent, or a module. [B17.2]"""
    api.add(command_handler(atomic=False)(lambda_taking(OpenTicket)))
    api.commands(message=OpenTicket)
    with caplog.at_level(logging.DEBUG):
        response = api.post(body)

    assert response.status_code == 400
    for text in (response.content.decode(), caplog.text):
        assert SECRET not in text
        assert "tests.views.test_views" not in text


@pytest.mark.parametrize("options", [{"route": "ticket.opne"}, {"message": OpenTicket}])
def test_no_handler_is_not_found(api, options, caplog):
    """
    Without a handler the answer is 404; what was probably meant is said in the log
    alone. [B17.2]
    """

    @api.add
    @command_handler("ticket.open", atomic=False)
    def open_ticket(command: OpenTicket) -> None: ...

    api.commands(**options)
    response = api.post({"title": "a"})

    assert problem_in(response) == (
        404,
        {
            "title": "Not Found",
            "status": 404,
            "detail": "Nothing here handles this message.",
        },
    )
    said = [
        each.getMessage() for each in caplog.records if each.name == "django_cqrs.http"
    ]
    meant = {
        "route": (
            "Answered 404: No command handler takes 'ticket.opne'. Did you mean "
            "'ticket.open'?"
        ),
        "message": (
            "Answered 404: No command handler takes OpenTicket. Its handler is "
            "reached only by key: give route='ticket.open'."
        ),
    }
    assert said == [meant[next(iter(options))]]


def test_a_missing_header_is_a_problem(api, caplog):
    """Without a header that the handler requires the answer is 400; the log says which. [B17.2]"""

    @api.add
    @command_handler("ticket.open", atomic=False)
    def open_ticket(title: str, user_id: Annotated[int, Header("user_id")]) -> None: ...

    api.commands(route="ticket.open")

    assert problem_in(api.post("a")) == (
        400,
        {
            "title": "Bad Request",
            "status": 400,
            "detail": "A required header is missing.",
        },
    )
    assert "requires the header 'user_id'" in caplog.text


def test_a_header_that_does_not_fit_is_a_problem(api):
    """A header is the request's as well: one that does not convert is a field error. [B17.2]"""

    @api.add
    @command_handler("ticket.open", atomic=False)
    def open_ticket(title: str, user_id: Annotated[int, Header("user_id")]) -> None: ...

    class View(api.command_view):
        if api.command_view is CommandView:

            def headers_from(self, request):
                return {"user_id": request.headers["X-User"]}

        else:

            async def headers_from(self, request):
                return {"user_id": request.headers["X-User"]}

    api.command_view = View
    api.commands(route="ticket.open")

    assert problem_in(api.post("a", headers={"X-User": "me"})) == invalid(
        (
            "headers.user_id",
            "Input should be a valid integer, unable to parse string as an integer",
            "int_parsing",
        )
    )
    assert api.post("a", headers={"X-User": "7"}).status_code == 204


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 204),
        ("application/json; charset=utf-8", 204),
        ("Application/JSON", 204),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("multipart/form-data; boundary=a", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
def test_another_content_type_is_unsupported(api, content_type, status):
    """A body that does not say it is JSON is refused with 415, whatever is in it. [B17.2]"""

    @api.add
    @command_handler("ticket.open", atomic=False)
    def open_ticket(title: str) -> None: ...

    api.commands(route="ticket.open")
    response = api.post("a", content_type=content_type)

    assert response.status_code == status
    if status == 415:
        assert response["Accept"] == JSON
        assert problem_in(response) == (
            415,
            {
                "title": "Unsupported Media Type",
                "status": 415,
                "detail": "Send application/json.",
            },
        )


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete"])
def test_another_method_is_not_allowed(api, method):
    """A command answers POST and OPTIONS alone. [B17.2]"""
    api.add(command_handler(lambda_taking(OpenTicket)))
    api.commands(message=OpenTicket)
    response = api.request(method)

    assert response.status_code == 405
    assert response["Allow"] == "POST, OPTIONS"


def test_a_subclass_may_answer_other_methods(wsgi):
    """A view is derived from in Django's manner: other methods are one line each. [B17.2]"""

    class View(CommandView):
        put = CommandView.post

    wsgi.add(command_handler(atomic=False)(lambda_taking(OpenTicket)))
    wsgi.command_view = View
    wsgi.commands(message=OpenTicket)
    options = {"data": '{"title": "a"}', "content_type": JSON}

    assert wsgi.request("put", "/", **options).status_code == 204
    assert wsgi.request("get").status_code == 405


def test_a_body_that_is_too_large_is_djangos(api, settings):
    """DATA_UPLOAD_MAX_MEMORY_SIZE is Django's to enforce. [B17.2]"""
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    api.add(command_handler(lambda_taking(OpenTicket)))
    api.commands(message=OpenTicket)

    assert api.post({"title": "a" * 100}).status_code in (400, 413)


def test_a_broken_declaration_is_the_servers_fault(wsgi):
    """A broken handler raises its check's text; the client gets no problem details. [B17.2]"""

    @wsgi.add
    @command_handler("ticket.open")
    def open_ticket(title: str, other: "Unknown") -> None: ...  # noqa: F821

    wsgi.commands(route="ticket.open")

    with pytest.raises(InvalidHandler, match="cannot be evaluated"):
        wsgi.post("a")


@pytest.mark.django_db
@pytest.mark.parametrize("nested", ["conversion", "no handler"])
def test_a_fault_of_the_code_is_no_fault_of_the_client(api, nested):
    """What a handler itself sends wrongly is an error of the server: 500. [B17.2]"""

    @api.add
    @command_handler("outer")
    def outer(title: str, commands: CommandBus) -> None:
        route = "inner" if nested == "conversion" else "unknown"
        commands.dispatch({"titel": title}, route=route)

    @api.add
    @command_handler("inner")
    def inner(command: OpenTicket) -> None: ...

    api.commands(route="outer")
    api.client.raise_request_exception = False

    assert api.post("a").status_code == 500


@pytest.mark.django_db
def test_a_result_that_is_no_json_is_the_servers_fault(wsgi):
    """A result that cannot be written as JSON raises: it is not the client's doing. [B17.2]"""

    @wsgi.add
    @command_handler("ticket.open")
    def open_ticket(title: str) -> object:
        return object()

    wsgi.commands(route="ticket.open")

    with pytest.raises(MessageConversionError):
        wsgi.post("a")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("error", "status"), [(PermissionDenied, 403), (Http404, 404), (ValueError, 500)]
)
def test_what_a_handler_raises_is_djangos(api, error, status):
    """PermissionDenied and Http404 are answered by Django, and all else as it does. [B17.2]"""

    @api.add
    @command_handler("ticket.open")
    def open_ticket(title: str) -> None:
        Note.objects.create(text=title)
        raise error

    api.commands(route="ticket.open")
    api.client.raise_request_exception = False
    response = api.post("a")

    assert response.status_code == status
    assert response["Content-Type"].startswith("text/html")
    assert not Note.objects.exists()


@pytest.mark.django_db
def test_named_errors_are_problem_details(api):
    """errors= names exceptions of handlers, subclasses included, and their status. [B17.2]"""

    class LongClosed(TicketClosed):
        pass

    @api.add
    @command_handler("ticket.close")
    def close(title: str) -> None:
        Note.objects.create(text=title)
        raise LongClosed(*([f"It is closed: {title}."] if title else []))

    api.commands(route="ticket.close", errors={TicketClosed: 409})

    assert problem_in(api.post("lamp")) == (
        409,
        {"title": "Conflict", "status": 409, "detail": "It is closed: lamp."},
    )
    assert problem_in(api.post("")) == (409, {"title": "Conflict", "status": 409})
    assert not Note.objects.exists()


def test_problem_details_can_be_added_to(wsgi):
    """refusal() is the place to change what a problem looks like. [B17.2]"""

    class View(CommandView):
        def refusal(self, details):
            return super().refusal({**details, "instance": self.request.path})

    wsgi.command_view = View
    wsgi.commands(route="unknown")

    assert problem_in(wsgi.post("a"))[1]["instance"] == "/"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("body", ["refused", 7])
def test_a_problem_rolls_the_request_back(wsgi, settings, body, monkeypatch):
    """
    Under ATOMIC_REQUESTS an answer of problem details commits nothing, as an exception
    would not. [B17.2]
    """
    from django.db import connection

    @wsgi.add
    @command_handler("ticket.close", atomic=False)
    def close(title: str) -> None:
        Note.objects.create(text="by the handler")
        raise TicketClosed

    class View(CommandView):
        def post(self, request, *args, **kwargs):
            Note.objects.create(text="by the view")
            return super().post(request, *args, **kwargs)

    wsgi.command_view = View
    wsgi.commands(route="ticket.close", errors={TicketClosed: 409})
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert wsgi.post(body).status_code == (409 if body == "refused" else 400)
    assert not Note.objects.exists()


# Queries --------------------------------------------------------------------------


def test_query_parameters_become_a_query(api):
    """A GET is asked as the message class, read lax; a list is a repeated parameter. [B17.2]"""

    @api.add
    @query_handler
    def find(query: FindTickets) -> list[TicketRow]:
        assert query == FindTickets("closed", [1, 2], date(2026, 1, 2))
        return [TicketRow(each, date(2026, 5, 1)) for each in query.ids]

    api.queries(message=FindTickets)
    response = api.get("/?status=closed&ids=1&ids=2&since=2026-01-02&unknown=x")

    assert response.status_code == 200
    assert response["Content-Type"] == JSON
    assert json.loads(response.content) == [
        {"number": 1, "opened": "2026-05-01"},
        {"number": 2, "opened": "2026-05-01"},
    ]


@pytest.mark.parametrize(
    ("query", "given"),
    [
        ("", FindTickets()),
        ("?ids=7", FindTickets(ids=[7])),
        ("?status=a&status=b", FindTickets(status="b")),
    ],
)
def test_a_parameter_is_one_value_or_a_list_as_its_field_says(wsgi, query, given):
    """One value for a list is a list of one; of several for one value the last counts. [B17.2]"""

    @wsgi.add
    @query_handler
    def find(query: FindTickets) -> bool:
        return query == given

    wsgi.queries(message=FindTickets)

    assert wsgi.get(f"/{query}").content == b"true"


def test_the_fields_of_other_kinds_of_payload(wsgi):
    """pydantic models with aliases, NamedTuples, TypedDicts and dicts have fields too. [B17.2]"""

    class Filter(BaseModel):
        ids: list[int] = Field(alias="id")

    class Tags(TypedDict):
        tags: list[str]

    answers = []
    for wanted, query in (
        (Filter, "?id=7"),
        (Point, "?x=1&y=2"),
        (Tags, "?tags=a"),
        (dict, "?a=1&b=2&b=3"),
        (Filter | Point, "?x=1"),
    ):
        wsgi.registry = Registry()

        def find(query: wanted) -> str:
            return repr(query)

        wsgi.add(query_handler("find")(find))
        wsgi.queries(route="find")
        answers.append(json.loads(wsgi.get(f"/{query}").content))

    assert answers == [
        "Filter(ids=[7])",
        "Point(x=1, y=2)",
        "{'tags': ['a']}",
        "{'a': '1', 'b': ['2', '3']}",
        "Point(x=1, y=0)",
    ]


def test_one_plain_value_goes_by_its_parameters_name(api):
    """A handler of one plain value gets the parameter of that name, or its default. [B17.2]"""

    @api.add
    @query_handler("ticket.list")
    def list_tickets(status: str | None = None) -> list[str]:
        return [str(status)]

    api.queries(route="ticket.list")

    assert json.loads(api.get("/?status=open").content) == ["open"]
    assert json.loads(api.get("/?status=a&status=b").content) == ["b"]
    assert json.loads(api.get().content) == ["None"]


def test_one_plain_list_goes_by_its_parameters_name(wsgi):
    """A handler of a plain list gets every value of the parameter of that name. [B17.2]"""

    @wsgi.add
    @query_handler("ticket.sum")
    def add_up(numbers: list[int]) -> int:
        return sum(numbers)

    wsgi.queries(route="ticket.sum")

    assert wsgi.get("/?numbers=3&numbers=4").content == b"7"


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", ("number", "the payload is missing", "missing")),
        (
            "?number=x",
            (
                "number",
                "Input should be a valid integer, unable to parse string as an integer",
                "int_parsing",
            ),
        ),
    ],
)
def test_a_wrong_plain_value_is_named(api, query, error):
    """The path of a plain value's error is the parameter's name. [B17.2]"""

    @api.add
    @query_handler("ticket.get")
    def get(number: int) -> int:
        return number

    api.queries(route="ticket.get")

    assert problem_in(api.get(f"/{query}")) == invalid(error)


def test_a_query_without_a_payload(api):
    """A handler that takes no payload looks at no parameter. [B17.2]"""

    @service
    class Tickets:
        @query_handler("ticket.count")
        def count(self) -> int:
            return 3

    api.add(Tickets)
    api.queries(route="ticket.count")

    assert api.get("/?anything=x").content == b"3"


def test_no_answer_is_null(api):
    """A query's None is an answer: null, with 200. [B17.2]"""

    @api.add
    @query_handler("ticket.owner")
    def owner() -> str | None:
        return None

    api.queries(route="ticket.owner")
    response = api.get()

    assert (response.status_code, response.content) == (200, b"null")


@pytest.mark.django_db
def test_a_queryset_is_an_answer(api):
    """A lazy answer is read in the thread of the database, before the response. [B17.2]"""
    Note.objects.create(text="a", number=1)
    Note.objects.create(text="b", number=2)

    @api.add
    @query_handler("notes")
    def notes():
        return Note.objects.order_by("number").values("text", "number")

    api.queries(route="notes")

    assert json.loads(api.get().content) == [
        {"text": "a", "number": 1},
        {"text": "b", "number": 2},
    ]


def test_a_path_is_part_of_a_query(api):
    """What the path captures is part of a query, and cannot be contradicted. [B17.2]"""

    @api.add
    @query_handler("ticket.get")
    def get(ticket_id: UUID) -> str:
        return str(ticket_id)

    @api.add
    @query_handler
    def close(query: CloseTicket) -> str:
        return f"{query.ticket_id} {query.reason}"

    api.queries("<uuid:ticket_id>", route="ticket.get")
    assert json.loads(api.get(f"/{KEY}").content) == str(KEY)

    api.queries("<uuid:ticket_id>", message=CloseTicket)
    assert json.loads(api.get(f"/{KEY}?reason=x").content) == f"{KEY} x"
    assert problem_in(api.get(f"/{KEY}?ticket_id={UUID(int=1)}")) == invalid(
        (
            "ticket_id",
            "it is in the path of the URL and cannot also be given here",
            "in_path",
        )
    )


def test_query_problems(api):
    """Queries have the problems of commands: fields, no handler, methods. [B17.2]"""

    class Size(Enum):
        SMALL = "small"

    @dataclass(frozen=True)
    class Find:
        size: Size
        ratio: float = 1.0

    @api.add
    @query_handler("find")
    def find(query: Find) -> None: ...

    api.queries(route="find")
    assert problem_in(api.get("/?size=secret&ratio=x")) == invalid(
        ("size", "Input should be 'small'", "enum"),
        (
            "ratio",
            "Input should be a valid number, unable to parse string as a number",
            "float_parsing",
        ),
    )
    response = api.post({})
    assert response.status_code == 405
    assert response["Allow"] == "GET, HEAD, OPTIONS"

    api.queries(route="unknown")
    assert problem_in(api.get())[0] == 404


def test_head_is_get_without_a_body(api):
    """HEAD is answered as GET is. [B17.2]"""

    @api.add
    @query_handler("ticket.count")
    def count() -> int:
        return 3

    api.queries(route="ticket.count")
    response = api.request("head")

    assert response.status_code == 200
    assert response["Content-Type"] == JSON


def test_value_objects_are_read_and_written(wsgi):
    """Converters work in payloads and in answers. [B17.2]"""

    @wsgi.add
    @query_handler("double")
    def double(money: Money) -> Money:
        return Money(money.amount * 2)

    wsgi.queries(route="double")

    assert wsgi.get("/?money=1.10").content == b'"2.20"'


# Headers, buses, permissions ------------------------------------------------------


def test_headers_from_the_request(api):
    """headers_from() gives the message its headers, which pass on as ever. [B17.2]"""
    seen = []

    class Headed:
        def found(self, request):
            return {"user_agent": request.headers["User-Agent"], "none": None}

    class View(Headed, CommandView):
        def headers_from(self, request):
            return self.found(request)

    class AsyncView(Headed, AsyncCommandView):
        async def headers_from(self, request):
            return self.found(request)

    @api.add
    @command_handler("open", atomic=False)
    def open_ticket(title: str, events: EventBus) -> None:
        events.publish(title, route="opened")

    @api.add
    @event_handler("opened")
    def audit(title: str, headers: Headers) -> None:
        seen.append((headers["user_agent"], headers["none"]))

    api.command_view = View if api.command_view is CommandView else AsyncView
    api.commands(route="open")

    assert api.post("a", headers={"User-Agent": "tests"}).status_code == 204
    assert seen == [("tests", None)]


def test_a_bus_of_ones_own(wsgi):
    """bus= sends through another bus, such as one with a retry. [B17.2]"""
    attempts = []
    registry = Registry()

    from django_cqrs import InstantRetry

    bus = CommandBus(registry=registry, instant_retry=InstantRetry(2, on=TicketClosed))

    @registry.add
    @command_handler("open", atomic=False)
    def open_ticket(title: str) -> None:
        attempts.append(title)
        if len(attempts) < 3:
            raise TicketClosed

    wsgi.commands(route="open", bus=bus)

    assert wsgi.post("a").status_code == 204
    assert attempts == ["a", "a", "a"]


def test_the_global_bus_is_the_default(wsgi):
    """Without bus= a view uses the buses of the installed apps. [B17.2]"""
    from tests.testapp.messages import FindTickets as Find

    wsgi.serve("", QueryView.as_view(message=Find))

    assert json.loads(wsgi.get("/?title=a").content) == ["a"]


@pytest.mark.parametrize(
    "view", [CommandView, QueryView, AsyncCommandView, AsyncQueryView]
)
@pytest.mark.parametrize("given", [{}, {"route": "a", "message": OpenTicket}])
def test_a_view_takes_a_route_or_a_message(view, given):
    """as_view() takes one of route= and message=, and refuses what it does not know. [B17.2]"""
    with pytest.raises(TypeError) as caught:
        view.as_view(**given)
    assert str(caught.value) == (
        f"{view.__name__}.as_view() takes either route= or message=."
    )

    with pytest.raises(TypeError, match="invalid keyword 'rout'"):
        view.as_view(rout="a")


def test_a_subclass_may_say_its_message(wsgi):
    """What as_view() takes may be attributes of a subclass as well. [B17.2]"""

    class OpenTicketView(CommandView):
        route = "open"
        bus = wsgi.registry.command_bus

    wsgi.add(command_handler("open", atomic=False)(lambda_taking(OpenTicket)))
    wsgi.serve("", OpenTicketView.as_view())

    assert wsgi.post({"title": "a"}).status_code == 204


@pytest.fixture
def _sessions(settings):
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"


@pytest.mark.usefixtures("_sessions")
def test_csrf_is_as_django_has_it(api):
    """A POST needs the token where the middleware asks for it; csrf_exempt lifts that. [B17.2]"""
    api.add(command_handler("open", atomic=False)(lambda_taking(OpenTicket)))
    api.client = type(api.client)(enforce_csrf_checks=True)
    view = api.command_view.as_view(route="open", bus=api.registry.command_bus)
    api.serve("", view)

    assert api.post({"title": "a"}).status_code == 403

    token = "a" * 32
    api.client.cookies["csrftoken"] = token
    assert api.post({"title": "a"}, headers={"X-CSRFToken": token}).status_code == 204

    del api.client.cookies["csrftoken"]
    api.serve("", csrf_exempt(view))
    assert api.post({"title": "a"}).status_code == 204


@pytest.mark.django_db
@pytest.mark.usefixtures("_sessions")
@pytest.mark.parametrize("is_asgi", [False, True], ids=["wsgi", "asgi"])
def test_permissions_by_djangos_mixins(settings, is_asgi):
    """LoginRequiredMixin and PermissionRequiredMixin stand before a view as ever. [B17.2]"""
    api = Api(settings, is_asgi=is_asgi, is_async=False)
    settings.LOGIN_URL = "/login"

    class View(LoginRequiredMixin, PermissionRequiredMixin, CommandView):
        permission_required = "testapp.add_note"

    api.add(command_handler("open", atomic=False)(lambda_taking(OpenTicket)))
    api.command_view = View
    api.commands(route="open")
    user = User.objects.create_user("ada")

    assert api.post({"title": "a"})["Location"] == "/login?next=/"

    api.client.force_login(user)
    assert api.post({"title": "a"}).status_code == 403

    user.user_permissions.add(Permission.objects.get(codename="add_note"))
    assert api.post({"title": "a"}).status_code == 204


@pytest.mark.django_db
@pytest.mark.usefixtures("_sessions")
def test_permissions_of_an_async_view_by_djangos_decorators(settings):
    """login_required stands before an async twin. [B17.2]"""
    api = Api(settings, is_asgi=True, is_async=True)
    settings.LOGIN_URL = "/login"
    api.add(command_handler("open", atomic=False)(lambda_taking(OpenTicket)))
    view = AsyncCommandView.as_view(route="open", bus=api.registry.command_bus)
    api.serve("", login_required(view))

    assert api.post({"title": "a"})["Location"] == "/login?next=/"

    api.client.force_login(User.objects.create_user("ada"))
    assert api.post({"title": "a"}).status_code == 204


def test_three_lines_are_enough(settings):
    """Two views and a test client, with nothing else configured. [B17.2]"""
    registry = Registry()
    registry.add(query_handler("ping")(lambda: "pong"))
    view = QueryView.as_view(route="ping", bus=registry.query_bus)
    request = RequestFactory().get("/")
    request.user = AnonymousUser()

    assert view(request).content == b'"pong"'


class Upload:
    """Has no JSON form."""


@dataclass
class ImportFile:
    title: str
    upload: Upload | None = None


@dataclass
class Misspelt:
    title: str
    other: "NoSuchClass | None" = None  # noqa: F821


@pytest.mark.parametrize("cls", [ImportFile, Misspelt])
@pytest.mark.parametrize("view", [CommandView, QueryView])
def test_a_class_that_no_request_can_say_is_the_servers_fault(settings, cls, view):
    """500 whatever is sent, and the answer names nothing of the code."""
    routes = types.ModuleType("routes")
    routes.urlpatterns = [path("it/", view.as_view(message=cls))]
    settings.ROOT_URLCONF = routes
    client = Client(raise_request_exception=False)

    for sent in ({"title": "x"}, {}):
        if view is CommandView:
            response = client.post("/it/", sent, JSON)
        else:
            response = client.get("/it/", sent)

        assert response.status_code == 500
        assert cls.__name__ not in response.text
        assert "Upload" not in response.text
        assert "NoSuchClass" not in response.text


def test_a_class_that_no_json_can_say_is_no_problem_of_the_request():
    """Who reads JSON in a view of their own has no problem details to answer with."""
    registry = Registry()

    @command_handler("file.import")
    def import_file(command: ImportFile) -> None: ...

    registry.add(import_file)
    with pytest.raises(MessageConversionError) as caught:
        registry.command_bus.dispatch(
            "{}", route="file.import", content_type="application/json"
        )

    assert problem_of(caught.value) is None
    assert str(caught.value) == (
        "Cannot convert the payload to ImportFile: upload: Upload has no JSON form."
    )
