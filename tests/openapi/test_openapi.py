"""The OpenAPI document: the operations of all views of messages, and their schemas."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from io import StringIO
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.urls import path

from django_cqrs import Registry, command_handler
from django_cqrs.exceptions import InvalidHandler
from django_cqrs.openapi import openapi_document
from django_cqrs.openapi.paths import path_templates
from django_cqrs.outbox.outcomes import outcome_of
from django_cqrs.views import CommandView, OutcomeView

URLS = "tests.openapi.urls"
PROBLEM = {"$ref": "#/components/schemas/ProblemDetails"}


@pytest.fixture(autouse=True)
def languages(settings):
    settings.LANGUAGES = [("en-us", "English"), ("de", "German")]


@pytest.fixture
def document():
    return openapi_document(urlconf=URLS)


def validated(document):
    from openapi_spec_validator import OpenAPIV31SpecValidator, validate

    validate(document, cls=OpenAPIV31SpecValidator)
    return document


def operation(document, where, method="post"):
    return document["paths"][where][method]


def body_of(described):
    return described["requestBody"]["content"]["application/json"]["schema"]


def result_of(described, status="200"):
    return described["responses"][status]["content"]["application/json"]["schema"]


def parameters_of(described, place):
    return {
        each["name"]: (each["required"], each["schema"])
        for each in described.get("parameters", ())
        if each["in"] == place
    }


def component(document, name):
    return document["components"]["schemas"][name]


# The document ---------------------------------------------------------------------


def test_a_validator_of_openapi_accepts_it(document):
    """It is OpenAPI 3.1, whose schemas are JSON Schema 2020-12."""
    assert validated(document)["openapi"] == "3.1.0"
    assert json.loads(json.dumps(document)) == document


def test_every_view_of_a_message_is_an_operation(document):
    """With includes, namespaces, languages and regular expressions; no other view."""
    assert {
        (method, where): described["operationId"]
        for where, methods in document["paths"].items()
        for method, described in methods.items()
    } == {
        ("post", "/tickets/open/"): "OpenTicket",
        ("get", "/tickets/"): "FindTickets",
        ("get", "/bugs/"): "FindTickets_2",
        ("get", "/ids/"): "ticket.ids",
        ("post", "/api/{ticket_id}/rename/"): "v1:rename",
        ("post", "/api/{ticket_id}/close/"): "ticket.close",
        ("get", "/api/{ticket_id}/"): "ticket.row",
        ("get", "/api/{pk}/title/"): "ticket.title",
        ("get", "/archive/{ticket_id}.json"): "ticket.row_2",
        ("post", "/old/{var}/{var2}/"): "contact",
        ("post", "/{year}/remind/"): "Remind",
        ("post", "/later/"): "Remind_2",
        ("get", "/outcomes/{message_id}/"): "outcome",
        ("post", "/count/"): "count",
        ("post", "/count/{number}/"): "count_2",
        ("post", "/weigh/"): "weigh",
        ("post", "/contact/"): "contact_2",
        ("post", "/{language}/contact/"): "contact_3",
    }


def test_the_docstring_of_a_message_or_its_handler_is_the_summary(document):
    """Not the one that Python gives a dataclass."""
    opened = operation(document, "/tickets/open/")

    assert opened["summary"] == "Open a ticket."
    assert opened["description"] == "It is assigned later."
    assert operation(document, "/api/{ticket_id}/close/")["summary"] == (
        "Close a ticket."
    )
    assert "summary" not in operation(document, "/tickets/", "get")
    assert "summary" not in operation(document, "/archive/{ticket_id}.json", "get")


# Requests -------------------------------------------------------------------------


def test_the_body_has_the_schema_of_the_message(document):
    """As it is read: converters of the project are what they convert from."""
    assert body_of(operation(document, "/tickets/open/")) == {
        "$ref": "#/components/schemas/OpenTicket"
    }
    assert component(document, "OpenTicket")["required"] == ["title"]
    line = component(document, "Line")["properties"]
    assert line["price"] == {"title": "Money", "type": "string"}
    assert line["attachment"]["contentEncoding"] == "base64"
    assert component(document, "Point")["type"] == "object"


def test_fields_that_are_sent_elsewhere_are_not_in_the_body(document):
    """In the path, or in If-Match, where the view requires that."""
    renamed = operation(document, "/api/{ticket_id}/rename/")

    assert list(body_of(renamed)["properties"]) == ["title"]
    assert parameters_of(renamed, "header") == {"If-Match": (True, {"type": "string"})}
    assert "requestBody" not in operation(document, "/count/{number}/")
    assert body_of(operation(document, "/count/")) == {"type": "integer"}
    assert "requestBody" not in operation(document, "/api/{ticket_id}/close/")


def test_a_union_is_one_of_its_members(document):
    """Each is a schema of its own."""
    assert body_of(operation(document, "/contact/")) == {
        "anyOf": [
            {"$ref": "#/components/schemas/ByPhone"},
            {"$ref": "#/components/schemas/ByPost"},
        ]
    }


def test_the_path_has_the_schemas_of_its_converters(document):
    """Of Django's own, of the project's, and of groups of regular expressions."""
    uuid = (True, {"type": "string", "format": "uuid"})
    expected = {
        "/api/{ticket_id}/close/": {"ticket_id": uuid},
        "/count/{number}/": {"number": (True, {"type": "integer", "minimum": 0})},
        "/{year}/remind/": {
            "year": (True, {"type": "string", "pattern": "^(?:[0-9]{4})$"})
        },
        "/old/{var}/{var2}/": {
            name: (True, {"type": "string", "pattern": r"^(?:\d+)$"})
            for name in ("var", "var2")
        },
        "/{language}/contact/": {
            "language": (True, {"type": "string", "enum": ["de"]})
        },
    }

    assert {
        where: parameters_of(operation(document, where), "path") for where in expected
    } == expected


@pytest.mark.parametrize(
    ("regex", "template", "names"),
    [
        (r"^a/(?:page-(?P<n>\d+)/)?$", "/a/page-{n}/", ["n"]),
        (r"^(?P<x>[(]{1,2}(a|b))\.(?!c)\w+\Z", r"/{x}.\w", ["x"]),
        (r"^a\-b/(c)?/{2}$", "/a-b/{var}/", ["var"]),
    ],
)
def test_a_regular_expression_becomes_a_template(regex, template, names):
    """Groups are parameters; what matches nothing itself is left out."""
    from django.urls import re_path

    (found,) = path_templates([re_path(regex, print)])

    assert (found.path, list(found.parameters)) == (template, names)


def test_a_query_has_its_fields_as_parameters(document):
    """Without those that the URL fixes."""
    found = parameters_of(operation(document, "/tickets/", "get"), "query")
    bugs = parameters_of(operation(document, "/bugs/", "get"), "query")

    assert {name: required for name, (required, _) in found.items()} == {
        "kind": True,
        "ids": False,
        "since": False,
    }
    assert found["kind"][1]["enum"] == ["bug", "wish"]
    assert list(bugs) == ["ids", "since"]


# Responses ------------------------------------------------------------------------


def test_the_response_has_the_schema_of_the_result(document):
    """As it is written: a lazy iterable is a list, a converter what it converts to."""
    opened = operation(document, "/tickets/open/")

    assert result_of(opened, "201") == {"type": "string", "format": "uuid"}
    assert result_of(operation(document, "/ids/", "get")) == {
        "type": "array",
        "items": {"type": "integer"},
    }
    assert result_of(operation(document, "/weigh/")) == {
        "type": "string",
        "title": "Money",
    }
    assert result_of(operation(document, "/api/{pk}/title/", "get")) == {
        "anyOf": [{"type": "string"}, {"type": "null"}]
    }


def test_the_statuses_are_those_that_the_view_answers(document):
    """Of results, of commands for a channel, of queries without an answer."""
    expected = {
        ("post", "/{year}/remind/"): ["202", "400", "415"],
        ("post", "/contact/"): ["200", "204", "400", "415"],
        ("get", "/api/{ticket_id}/"): ["200", "304", "400", "404", "412"],
        ("get", "/archive/{ticket_id}.json"): ["200", "304", "400", "412"],
        ("post", "/tickets/open/"): ["201", "400", "409", "415"],
        ("post", "/weigh/"): ["200", "400", "404", "409", "415"],
        ("post", "/api/{ticket_id}/rename/"): [
            *("204", "400", "404", "409", "410", "412", "415", "422", "428")
        ],
    }

    assert {
        (method, where): list(operation(document, where, method)["responses"])
        for method, where in expected
    } == expected
    shown = operation(document, "/api/{ticket_id}/", "get")
    assert result_of(shown) == {"$ref": "#/components/schemas/TicketRow"}


def test_the_outcome_of_a_command_has_an_address(document):
    """202 has it as Location; the view under it is an operation as well."""
    accepted = operation(document, "/later/")["responses"]["202"]
    told = operation(document, "/outcomes/{message_id}/", "get")

    assert list(accepted["headers"]) == ["Location"]
    assert list(result_of(operation(document, "/later/"), "202")["properties"]) == [
        "message_id"
    ]
    assert list(told["responses"]) == ["200", "404"]
    assert "handled" in result_of(told)["properties"]["status"]["enum"]
    assert list(parameters_of(told, "path")) == ["message_id"]


@pytest.mark.django_db
def test_what_the_outcome_has_is_what_the_document_says(document):
    """The members of its JSON object."""
    outcome = outcome_of(uuid4())
    told = result_of(operation(document, "/outcomes/{message_id}/", "get"))

    assert list(OutcomeView().details_of(outcome)) == list(told["properties"])


def test_errors_are_problem_details(document):
    """With what is wrong, and the first line of your own exception."""
    responses = operation(document, "/api/{ticket_id}/rename/")["responses"]

    assert responses["410"] == {
        "description": "The ticket is closed.",
        "content": {"application/problem+json": {"schema": PROBLEM}},
    }
    assert responses["422"]["description"] == "The request is not valid; see errors."
    assert "The request is not valid" not in responses["400"]["description"]


def test_versions_are_in_the_headers(document):
    """``ETag`` of every answer with a version; ``If-None-Match`` of queries alone."""
    shown = operation(document, "/api/{ticket_id}/", "get")
    renamed = operation(document, "/api/{ticket_id}/rename/")

    assert list(parameters_of(shown, "header")) == ["If-Match", "If-None-Match"]
    for described, status in ((shown, "200"), (shown, "304"), (renamed, "204")):
        assert list(described["responses"][status]["headers"]) == ["ETag"]
    assert "headers" not in operation(document, "/ids/", "get")["responses"]["200"]


# Refusals -------------------------------------------------------------------------


class Opaque:
    """A class without a JSON form."""


@dataclass
class Keep:
    thing: Opaque


@dataclass
class Lost:
    number: int


def test_what_cannot_be_described_is_refused_with_the_path_and_the_type(settings):
    """All at once; nothing is described as something else."""
    registry = Registry()

    @registry.add
    @command_handler("give")
    def give() -> Opaque: ...

    @registry.add
    @command_handler
    def keep(command: Keep) -> None: ...

    urls = types.ModuleType("urls")
    bus = registry.command_bus
    urls.urlpatterns = [
        path("give/", CommandView.as_view(route="give", bus=bus)),
        path("keep/", CommandView.as_view(message=Keep, bus=bus)),
        path("lost/", CommandView.as_view(message=Lost, bus=bus)),
        path("gone/", CommandView.as_view(route="gone", bus=bus)),
    ]
    settings.ROOT_URLCONF = urls

    with pytest.raises(InvalidHandler) as caught:
        openapi_document(urlconf=urls)
    with pytest.raises(CommandError) as said:
        call_command("cqrs_openapi", urlconf=urls)

    lines = str(caught.value).splitlines()
    assert str(said.value) == str(caught.value)
    assert [line.partition(":")[0] for line in lines] == [
        "/give/ (CommandView)",
        "/keep/ (CommandView)",
        "/lost/ (CommandView)",
        "/gone/ (CommandView)",
    ]
    assert "Opaque has no JSON schema" in lines[0]
    assert "thing: Opaque has no JSON form" in lines[1]
    assert "No handler takes Lost." in lines[2]
    assert "'gone'" in lines[3]


# The command ----------------------------------------------------------------------


def test_the_command_writes_the_document(tmp_path):
    """To the standard output, or to a file; with a title and a version."""
    out, err = StringIO(), StringIO()
    given = {"urlconf": URLS, "title": "Helpdesk", "api_version": "2.1"}

    call_command("cqrs_openapi", stdout=out, stderr=err, **given)
    call_command("cqrs_openapi", output=str(tmp_path / "api.json"), **given)

    document = json.loads(out.getvalue())
    assert document["info"] == {"title": "Helpdesk", "version": "2.1"}
    assert json.loads((tmp_path / "api.json").read_text()) == document
    assert err.getvalue() == ""


def test_the_command_says_that_there_is_nothing_to_describe():
    """The document is valid, but nobody can use it."""
    out, err = StringIO(), StringIO()

    call_command("cqrs_openapi", stdout=out, stderr=err)

    assert validated(json.loads(out.getvalue())) == {
        "openapi": "3.1.0",
        "info": {"title": "tests", "version": "1.0.0"},
        "paths": {},
    }
    assert err.getvalue() == "The URLconf has no CommandView and no QueryView.\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"urlconf": "tests.nowhere"}, "No module named 'tests.nowhere'"),
        ({"output": "/no/where.json"}, "Cannot write /no/where.json: "),
    ],
)
def test_the_command_ends_with_one_clear_error(options, text):
    """No traceback for a wrong option."""
    with pytest.raises(CommandError) as caught:
        call_command("cqrs_openapi", stdout=StringIO(), stderr=StringIO(), **options)

    assert str(caught.value).startswith(text)
