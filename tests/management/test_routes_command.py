"""``manage.py cqrs_routes``: list which handler takes which message."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from django_cqrs import Registry, command_handler, event_handler
from django_cqrs.interception import Proceed, around, before, pointcut
from django_cqrs.management.commands import cqrs_routes
from django_cqrs.management.explanation import explain
from django_cqrs.management.listing import InterfaceRow


@pytest.fixture(autouse=True)
def listed_app(settings):
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.apps.listed"]


def output_of(*arguments, **options):
    stdout = StringIO()
    call_command("cqrs_routes", *arguments, stdout=stdout, **options)
    return stdout.getvalue()


TABLE = """\
Commands (3)

Message      Handler                               Where                             Transaction
-----------  ------------------------------------  --------------------------------  -------------
desk.open    tests.apps.listed.handlers.open_desk  tests/apps/listed/handlers.py:7   other
desk.reopen  tests.apps.listed.handlers.reopen     tests/apps/listed/handlers.py:13  none
OpenDesk     tests.apps.listed.handlers.open_desk  tests/apps/listed/handlers.py:7   other

Queries (1)

Message    Handler                                Where                             Transaction
---------  -------------------------------------  --------------------------------  -------------
desk.list  tests.apps.listed.handlers.list_desks  tests/apps/listed/handlers.py:17  none

Events (3)

Message     Handler                                    Where                             Transaction      Priority
----------  -----------------------------------------  --------------------------------  -------------  ----------
desk.*      tests.apps.listed.handlers.Notifier.count  tests/apps/listed/handlers.py:27  sender's
DeskEvent   tests.apps.listed.handlers.audit           tests/apps/listed/handlers.py:31  sender's               10
DeskOpened  tests.apps.listed.handlers.Notifier.mail   tests/apps/listed/handlers.py:24  sender's               -5
"""


def test_every_route_is_listed():
    """Each route has its key or class, handler with line, transaction, priority. [B16.1]"""
    assert output_of("--app", "listed") == TABLE


FACE = InterfaceRow(
    method="tests.apps.listed.interfaces.DeskApi.open_the_desk_of_a_neighbour",
    kind="command",
    message="OpenDesk",
    handlers=("tests.apps.listed.handlers.open_desk",),
    app="listed",
    problem=None,
)


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [60, 72, 80, 100, 132])
def test_columns_fit_a_terminal(width, monkeypatch):
    """No line is wider than the terminal it is written to. [B16.1]"""
    monkeypatch.setenv("COLUMNS", str(width))
    stdout = Terminal()

    call_command("cqrs_routes", "--app", "listed", stdout=stdout, no_color=True)

    lines = stdout.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("OpenDesk" in line for line in lines)


@pytest.fixture
def streams(monkeypatch, settings):
    """A registry that the command lists, with all that a route can have."""
    mail = {"mail": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}
    settings.DJANGO_CQRS = {"CHANNELS": {**settings.DJANGO_CQRS["CHANNELS"], **mail}}
    registry = Registry()

    @registry.add
    @before(pointcut.handler("renamed.*"), precedence=-5)
    def check() -> None: ...

    @registry.add
    @around(pointcut.handler("renamed.*"))
    def measure(proceed: Proceed) -> object: ...

    @registry.add
    @command_handler("number.take", name="renamed.take", channel="mail", priority=5)
    def take_number(number: int) -> None: ...

    monkeypatch.setattr(cqrs_routes, "registry", registry)
    return registry


def test_a_route_has_its_channel_priority_and_interceptors(streams):
    """They have columns of their own, interceptors in the order that they stand in. [B16.1]"""
    headings, _, row = output_of("--bus", "command").splitlines()[2:5]

    assert headings.split() == [
        "Message",
        "Handler",
        "Where",
        "Channel",
        "Transaction",
        "Priority",
        "Interceptors",
    ]
    place = f"{__name__}.streams.<locals>"
    cells = re.split(r"  +", row)
    assert cells[3:] == [
        "mail",
        "default",
        "5",
        f"before {place}.check, around {place}.measure",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_business_interfaces_fit_a_terminal_too(width, monkeypatch):
    """A long path is broken where a word of it ends. [B16.1]"""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(cqrs_routes, "interface_rows", lambda _registry: [FACE])
    stdout = Terminal()

    call_command("cqrs_routes", "--app", "listed", stdout=stdout, no_color=True)

    lines = stdout.getvalue().partition("Business interfaces (1)\n\n")[2].splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= width


def test_a_long_place_is_broken_where_a_word_ends():
    """A folder, a module, the hump of a class: not in the midst of a word. [B16.1]"""
    assert cqrs_routes._wrapped("payments/handlers.py:26", 13) == (
        "payments/\nhandlers.py\n:26"
    )
    assert cqrs_routes._wrapped("PaymentAuthorised", 12) == "Payment\nAuthorised"
    assert cqrs_routes._wrapped("Fulfilment.call_off", 16) == "Fulfilment.call_\noff"
    assert cqrs_routes._wrapped("around a.b, before c.d", 12) == (
        "around a.b,\nbefore c.d"
    )
    assert cqrs_routes._wrapped("unbreakable", 4) == "unbr\neaka\nble"


def test_json():
    """JSON is one document of a versioned shape, with a route's whole story. [B16.2]"""
    document = json.loads(output_of("--app", "listed", "--format", "json"))

    assert document["version"] == cqrs_routes.JSON_VERSION == 1
    assert len(document["routes"]) == 7
    route = next(r for r in document["routes"] if r["message"] == "OpenDesk")
    assert route == {
        "kind": "command",
        "message": "OpenDesk",
        "message_class": "tests.apps.listed.messages.OpenDesk",
        "by": "class",
        "handler": "tests.apps.listed.handlers.open_desk",
        "module": "tests.apps.listed.handlers",
        "endpoint": "listed.open_desk",
        "app": "listed",
        "file": "tests/apps/listed/handlers.py",
        "line": 7,
        "channel": None,
        "transaction": "other",
        "priority": 0,
        "interceptors": [],
        "object": None,
        "is_factory": False,
        "output": None,
        "retry": None,
        "delay": None,
        "ordering_key": None,
        "idempotency_key": None,
        "on_dead": None,
        "problem": None,
    }


def test_mermaid():
    """Mermaid is a flowchart from messages to handlers, events dotted. [B16.2]"""
    lines = output_of("--app", "listed", "--format", "mermaid").splitlines()

    assert lines[:4] == [
        "flowchart LR",
        '  m0(["desk.open"])',
        '  h0["tests.apps.listed.handlers.open_desk"]',
        "  m0 --> h0",
    ]
    assert lines[-1] == "  m6 -.-> h5"


def test_markdown():
    """Markdown is a heading and a table for each bus. [B16.2]"""
    text = output_of("--app", "listed", "--format", "markdown")

    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "## Commands",
        "## Queries",
        "## Events",
    ]
    assert "| desk.list | tests.apps.listed.handlers.list_desks |" in text


def test_a_handler_is_of_its_app_whatever_its_name_says():
    """`--app` looks at where a handler stands, not at the `name=` of its endpoint. [B16.2]"""
    routes = json.loads(output_of("--app", "listed", "--format", "json"))["routes"]

    [renamed] = [route for route in routes if route["message"] == "desk.reopen"]
    assert renamed["endpoint"] == "desks.reopen"
    assert renamed["app"] == "listed"


@pytest.mark.parametrize(
    ("filters", "messages"),
    [
        (["--bus", "query"], ["desk.list"]),
        (["--message", "desk.re*"], ["desk.reopen"]),
        (["--message", "OpenDesk", "--bus", "event"], []),
    ],
)
def test_filters(filters, messages):
    """Routes are filtered by app, bus and message, all of them together. [B16.2]"""
    text = output_of("--app", "listed", "--format", "json", *filters)

    assert [route["message"] for route in json.loads(text)["routes"]] == messages


def test_no_routes():
    """Where a filter leaves nothing, the table says so. [B16.2]"""
    assert output_of("--app", "listed", "--message", "zzz") == "No routes.\n"


def test_an_unknown_app_is_refused():
    """An app that is not installed is refused, with the one that was meant. [B16.2]"""
    with pytest.raises(CommandError) as caught:
        output_of("--app", "listet")

    assert str(caught.value) == "There is no app 'listet'. Did you mean 'listed'?"


def test_explains_a_command():
    """A command's explanation says who handles it, in which transaction, and why. [B16.2]"""
    assert output_of("OpenDesk") == (
        "OpenDesk (tests.apps.listed.messages.OpenDesk) is a command. "
        "Its handler is:\n"
        "  1. tests.apps.listed.handlers.open_desk "
        "(tests/apps/listed/handlers.py:7)\n"
        "     because it takes OpenDesk;\n"
        "     immediately, in a transaction on the database 'other'.\n"
        "\n"
        "Similar, but not matched:\n"
        "  tests.apps.listed.handlers.reopen also takes OpenDesk, "
        "but is reached only by 'desk.reopen'.\n"
    )


@pytest.mark.parametrize("name", ["DeskOpened", "desk.opened"])
def test_explains_an_event_in_order(name):
    """An event's explanation lists its handlers in the order they are called. [B16.2]"""
    lines = output_of(name).splitlines()

    assert lines[0] == (
        "DeskOpened (tests.apps.listed.messages.DeskOpened, named "
        "'desk.opened') is an event. Its handlers, in order:"
    )
    assert [line.strip() for line in lines if line.strip().startswith("because")] == [
        "because it takes DeskEvent, a base class of this one;",
        "because its pattern 'desk.*' matches 'desk.opened';",
        "because it takes DeskOpened;",
    ]


def test_explains_a_key():
    """A routing key is explained as a class is. [B16.2]"""
    text = output_of("desk.list")

    assert text.startswith("'desk.list' is a query. Its handler is:\n")
    assert "without a transaction of its own." in text


def test_an_unknown_message_is_refused():
    """A name that nothing has is refused, with the one that was meant. [B16.2]"""
    with pytest.raises(CommandError) as caught:
        output_of("OpenDesks")

    assert str(caught.value) == (
        "There is no message 'OpenDesks'. Did you mean 'OpenDesk'?"
    )


def test_the_nearest_class_is_the_one():
    """Of two handlers that fit a command, the explanation names the nearest. [B16.2]"""

    class Base: ...

    class Derived(Base): ...

    class Further(Derived): ...

    @command_handler
    def of_base(command: Base) -> None: ...

    @command_handler
    def of_derived(command: Derived | Further) -> None: ...

    registry = Registry()
    registry.add(of_base)
    registry.add(of_derived)

    text = "\n".join(explain(registry, "Derived") or [])

    assert "of_derived" in text
    assert "  1. tests.management.test_routes_command.test_the_nearest_class" in text
    assert "of_base (" not in text


def test_a_broken_handler_is_explained():
    """The explanation of a broken route has the text of its check. [B16.2]"""

    @event_handler("x.y")
    def broken(event: object, retries: int) -> None: ...

    registry = Registry()
    registry.add(broken)

    text = "\n".join(explain(registry, "x.y") or [])

    assert "BROKEN: Nothing can fill the parameter 'retries' of " in text


def test_no_database_is_touched():
    """Listing and explaining open no connection. [B16.3]"""
    for connection in connections.all():
        connection.close()

    output_of()
    output_of("OpenDesk")

    assert [connection.connection for connection in connections.all()] == [None, None]


def test_a_failing_check_is_marked_and_printed(settings):
    """What can be listed is, the broken route is marked, and the command exits 1. [B16.4]"""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.apps.broken_routes"]
    stdout = StringIO()

    with pytest.raises(CommandError) as caught:
        call_command("cqrs_routes", "--app", "broken_routes", stdout=stdout)

    assert caught.value.returncode == 1
    assert str(caught.value).startswith("1 check fails:\n")
    assert "(django_cqrs.E005) Nothing can fill the parameter 'retries'" in str(
        caught.value
    )
    assert "! broken.two (django_cqrs.E005)  tests.apps" in stdout.getvalue()
    assert "\nbroken.one " in stdout.getvalue()


def test_a_warning_is_printed_to_stderr(settings):
    """A warning is printed to stderr and fails nothing. [B16.4]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "HANDLER_MODULE": "x"}
    stderr = StringIO()

    output_of("--app", "listed", stderr=stderr, no_color=True)

    assert stderr.getvalue() == (
        "?: (django_cqrs.W001) DJANGO_CQRS has no key 'HANDLER_MODULE'.\n"
        "\tHINT: Did you mean 'HANDLERS_MODULE'?\n"
    )
