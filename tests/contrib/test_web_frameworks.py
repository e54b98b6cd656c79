"""REST framework and django-ninja: refused messages as responses, nothing kept."""

import json
import types
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from ninja import Body, NinjaAPI
from rest_framework.exceptions import NotFound
from rest_framework.parsers import JSONParser
from rest_framework.response import Response
from rest_framework.views import APIView

from django_cqrs import Header, Registry, command_handler
from django_cqrs.contrib.ninja import install_exception_handlers
from django_cqrs.contrib.rest_framework import exception_handler
from tests.testapp.models import Note


@dataclass(frozen=True)
class Write:
    text: str
    number: int = 0


class Refused(Exception):
    """What a handler of ours raises."""


registry = Registry()


@registry.add
@command_handler("note.write")
def write(command: Write) -> int:
    """A note stays or goes with its command."""
    Note.objects.create(text=command.text)
    if command.number > 1:
        raise Refused("There is one already.")
    return command.number


@registry.add
@command_handler("note.sign")
def sign(command: Write, author: Annotated[str, Header("author")]) -> None:
    Note.objects.create(text=f"{command.text} by {author}")


@registry.add
@command_handler("note.forward")
def forward(command: Write) -> None:
    """A fault of the code, not of the request: what it sends on does not convert."""
    registry.command_bus.dispatch({"text": 5}, route="note.write")


def dispatch(name: str, fields: Any) -> Any:
    """What every view here does, after a write of its own."""
    Note.objects.create(text="by the view")
    transaction.on_commit(committed.append)
    return registry.command_bus.dispatch(fields, route=name)


class Committed(list):
    def append(self, *_args: object) -> None:
        super().append("committed")


committed = Committed()


class NoteView(APIView):
    authentication_classes = ()
    parser_classes = (JSONParser,)
    permission_classes = ()

    def get_exception_handler(self):
        return self.handle

    def handle(self, error, context):
        """As the guide has it: exceptions of one's own come first."""
        if isinstance(error, Refused):
            error = NotFound(str(error))
        return exception_handler(error, context)

    def post(self, request, name):
        return Response({"result": dispatch(name, request.data)})


def rest_framework() -> Any:
    return NoteView.as_view()


def ninja() -> Any:
    api = NinjaAPI(urls_namespace="notes")
    install_exception_handlers(api, {Refused: 404})

    @api.post("{name}")
    def post(request, name: str, fields: Body[dict[str, Any]]):
        return {"result": dispatch(name, fields)}

    return api


@pytest.fixture
def serve(settings, monkeypatch):
    """Serve views under ATOMIC_REQUESTS; return what posts to them."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    committed.clear()

    def served(view):
        urls = types.ModuleType("urls")
        where = view.urls if isinstance(view, NinjaAPI) else None
        route = path("", where) if where else path("<str:name>", view)
        urls.urlpatterns = [route]
        settings.ROOT_URLCONF = urls
        client = Client(raise_request_exception=False)

        def post(name, fields):
            response = client.post(
                f"/{name}", json.dumps(fields), content_type="application/json"
            )
            return response.status_code, response

        return post

    return served


@pytest.fixture(params=[rest_framework, ninja], ids=["REST framework", "ninja"])
def post(request, serve):
    return serve(request.param())


pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


def texts():
    return sorted(Note.objects.values_list("text", flat=True))


def test_a_command_is_handled_and_committed(post):
    """
    Request data goes to the bus as it is; the view's writes and the command's commit
    together. [B17.3]
    """
    status, response = post("note.write", {"text": "a", "number": 1})

    assert (status, response.json()) == (200, {"result": 1})
    assert texts() == ["a", "by the view"]
    assert committed == ["committed"]


@pytest.mark.parametrize(
    ("name", "fields", "status", "body"),
    [
        (
            "note.write",
            {"number": "x"},
            400,
            {
                "title": "Bad Request",
                "status": 400,
                "detail": "The request is not valid; see errors.",
                "errors": [
                    {"path": "text", "detail": "Field required", "code": "missing"},
                    {
                        "path": "number",
                        "detail": "Input should be a valid integer, unable to parse "
                        "string as an integer",
                        "code": "int_parsing",
                    },
                ],
            },
        ),
        (
            "note.sign",
            {"text": "a"},
            400,
            {
                "title": "Bad Request",
                "status": 400,
                "detail": "A required header is missing.",
            },
        ),
        (
            "note.lose",
            {},
            404,
            {
                "title": "Not Found",
                "status": 404,
                "detail": "Nothing here handles this message.",
            },
        ),
    ],
    ids=["payload", "header", "route"],
)
def test_a_fault_of_the_request_is_problem_details(post, name, fields, status, body):
    """
    A payload that does not convert and a missing header are 400, an unknown route is
    404: as problem details, with nothing written, the view's own writes included. [B17.3]
    """
    found, response = post(name, fields)

    assert response["Content-Type"] == "application/problem+json"
    assert (found, json.loads(response.content)) == (status, body)
    assert texts() == []
    assert committed == []


def test_a_refusal_that_is_named_leaves_nothing(post):
    """
    An exception of one's own is answered with its status, and under ATOMIC_REQUESTS
    neither the command's writes nor the view's stay, nor does a callback run. [B17.3]
    """
    status, response = post("note.write", {"text": "a", "number": 2})

    assert (status, json.loads(response.content)["detail"]) == (
        404,
        "There is one already.",
    )
    assert texts() == []
    assert committed == []


def test_a_fault_of_the_code_is_no_fault_of_the_client(post):
    """
    A message that a handler sends on and that does not convert is the server's fault. [B17.3]
    """
    status, response = post("note.forward", {"text": "a"})

    assert status == 500
    assert b"text" not in response.content
    assert texts() == []


def test_a_handler_of_ninjas_own_commits_the_rest(serve):
    """
    What a handler of ninja's own answers is committed: the view's writes stay and
    callbacks run. The command has its savepoint, so nothing of it stays. [B17.3]
    """
    api = ninja()

    @api.exception_handler(Refused)
    def answer(request, error):
        return HttpResponse(str(error), status=409)

    status, response = serve(api)("note.write", {"text": "a", "number": 2})

    assert (status, response.content) == (409, b"There is one already.")
    assert texts() == ["by the view"]
    assert committed == ["committed"]
