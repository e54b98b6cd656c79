"""Each keyword of the decorators does what the reference says, or is refused."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest
from django.db import connections

from django_cqrs import (
    CommandBus,
    InstantRetry,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.channels import channels
from django_cqrs.checks import check_registry
from django_cqrs.declarations import Policies
from django_cqrs.keywords import KEYWORDS, NOWHERE
from tests.docs_support.pages import DOCS

ALIASES = {
    "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
    "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
    "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
}


@pytest.fixture
def kept(settings):
    """The channels of each kind."""
    settings.DJANGO_CQRS = {"CHANNELS": ALIASES}


def registry_of(*targets: object) -> Registry:
    registry = Registry()
    for target in targets:
        registry.add(target)
    return registry


# ------------------------------------------------------------------ the reference


def rows_of_reference() -> dict[str, tuple[str, ...]]:
    """Return the cells of the reference's table, by the keyword."""
    page = (DOCS / "reference" / "decorators.md").read_text()
    heading = "| keyword | commands | events | queries | meaning |"
    lines = page.split(heading)[1].split("\n\n")[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): tuple(row[1:4]) for row in rows[1:]}


def test_the_reference_says_what_the_checks_read():
    """Its table has a row for each keyword, in the words of the code's own."""
    assert rows_of_reference() == {
        each.name: (each.command.text, each.event.text, each.query.text)
        for each in KEYWORDS.values()
    }


def test_no_keyword_is_without_a_rule():
    """What the decorators take, what an endpoint keeps and what the table has agree."""
    kept = {field.name for field in dataclasses.fields(Policies)}
    assert kept == set(KEYWORDS)
    for decorator in (command_handler, event_handler):
        taken = set(inspect.signature(decorator).parameters) - {"route"}
        assert taken == set(KEYWORDS)
    taken = set(inspect.signature(query_handler).parameters) - {"route"}
    assert taken == {"channel"} | {
        each.name for each in KEYWORDS.values() if each.query is not NOWHERE
    }


# ------------------------------------------------------------------- databases


@pytest.mark.usefixtures("kept")
@pytest.mark.django_db(databases=["default", "other"], transaction=True)
@pytest.mark.parametrize("by", ["sender", "call", "transaction"])
@pytest.mark.parametrize("alias", list(ALIASES))
def test_a_handler_that_names_no_database_runs_on_that_of_its_message(alias, by):
    """Behind every channel it is the one that the message was sent in."""
    seen = []

    @command_handler("later", name="later", channel=alias)
    def later(text: str) -> None:
        seen.append([each for each in connections if connections[each].in_atomic_block])

    @command_handler("send", name="send", using="other" if by == "sender" else None)
    def send(text: str, commands: CommandBus) -> None:
        commands.dispatch(text, route="later")

    registry = registry_of(later, send)
    if by == "call":
        registry.command_bus.dispatch("x", route="later", using="other")
    elif by == "transaction":
        registry.command_bus.dispatch("x", route="send", using="other")
    else:
        registry.command_bus.dispatch("x", route="send")
    if alias == "outbox":
        channels[alias].run(registry=registry, using="other")
    elif alias == "memory":
        channels[alias].run()

    assert seen == [["other"]]


# ------------------------------------------------------------- a bus of one's own


class AuditBus(CommandBus):
    """A bus with policies of its own."""


class ReportBus(QueryBus):
    """One of queries."""


@command_handler("inner")
def inner() -> str:
    return "inner"


@command_handler("outer")
def outer(text: str, bus: AuditBus) -> bool:
    """Tell whether the bus has the policies of the one that was made."""
    assert bus.dispatch(route="inner") == "inner"
    return bus._retry == InstantRetry(7)


@query_handler("report")
def report(text: str, bus: ReportBus | None) -> str:
    return type(bus).__name__


@pytest.mark.django_db
def test_a_bus_of_ones_own_that_is_asked_for_by_its_class_is_the_registrys():
    """It is the one that was made for the registry, policies and all."""
    registry = registry_of(inner, outer, report)
    audit_bus = AuditBus(instant_retry=InstantRetry(7), registry=registry)
    report_bus = ReportBus(registry=registry)

    assert check_registry(registry) == []
    assert registry.command_bus.dispatch("x", route="outer") is True
    assert registry.query_bus.ask("x", route="report") == type(report_bus).__name__
    assert audit_bus.dispatch("x", route="outer") is True


@pytest.mark.parametrize("count", [0, 2])
def test_E005_a_bus_of_ones_own_that_is_not_there_or_ambiguous(count):
    """None, or several, of its class use the registry: which is not guessed."""
    registry = registry_of(inner, outer)
    made = [AuditBus(registry=registry) for _ in range(count)]
    reason = {
        0: "no AuditBus has been made for this registry; write one, as in "
        "`auditbus = AuditBus()`, in a module that is imported before the handlers",
        2: "2 buses of the class AuditBus use this registry, and which is meant is "
        "not said; give each a class, or use Depends(...)",
    }[count]

    [found] = check_registry(registry)

    assert len(made) == count
    assert found.id == "django_cqrs.E005"
    assert found.msg == (
        f"Nothing can fill the parameter 'bus' of {__name__}.outer: {reason}."
    )


@pytest.mark.django_db
def test_a_bus_of_ones_own_can_be_overridden():
    """As anything else that a handler is given."""
    registry = registry_of(inner, outer)
    made = AuditBus(registry=registry)
    fake = AuditBus(instant_retry=InstantRetry(7), registry=registry_of(inner))

    with registry.override(AuditBus, lambda: fake):
        assert made.dispatch("x", route="outer") is True
    assert made.dispatch("x", route="outer") is False


# -------------------------------------------------------------------- platforms


def test_the_worker_is_imported_where_memory_is_not_measured():
    """Windows has no module `resource`; a bound of memory is refused there."""
    code = """
import sys
sys.modules["resource"] = None
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_cqrs", "django_cqrs.outbox"])
django.setup()
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.worker import Bounds
try:
    Bounds(megabytes=5)
except InvalidOption as error:
    print(str(error).replace(sys.platform, "windows"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == (
        "A worker cannot be bounded by memory here: this platform (windows) does not "
        "say how much a process has used. Bound it by messages or by seconds."
    )
