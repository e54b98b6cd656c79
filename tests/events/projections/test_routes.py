"""``manage.py cqrs_routes`` lists projections, apart from handlers that subscribe."""

import io
import json

import pytest
from django.core.management import call_command

from django_cqrs import event_handler
from django_cqrs.documents.store import DocumentStore
from django_cqrs.events import projection
from django_cqrs.management.commands import cqrs_routes
from django_cqrs.management.explanation import explain
from tests.events.projections.support import OrderPaid, OrderPlaced, project
from tests.events.views.models import Entry, OrderRow


class Totals:
    """The content of a document."""


@projection("listed", channel="outbox", views=[OrderRow, DocumentStore(Totals)])
class Listed:
    @event_handler
    def changed(self, event: OrderPlaced | OrderPaid): ...

    @event_handler("order.*")
    def counted(self, event: dict): ...


@projection("listed-inline", views=[Entry])
def listed_inline(event: OrderPlaced): ...


@projection("listed-on-demand", on_demand=True)
def listed_on_demand(event: OrderPlaced): ...


@event_handler
def subscribed(event: OrderPlaced): ...


@pytest.fixture
def registry(monkeypatch):
    made = project(Listed, listed_inline, listed_on_demand, subscribed)
    monkeypatch.setattr(cqrs_routes, "registry", made)
    return made


def run(*arguments):
    out = io.StringIO()
    call_command("cqrs_routes", *arguments, stdout=out)
    return out.getvalue()


def test_e20_6_projections_are_listed(registry):
    """With their handlers, their channel and their views, and not among the handlers of events. [E20.6]"""
    text = run()

    events, projections = text.split("Projections (3)\n\n")
    here = f"{__name__}."
    file = "tests/events/projections/test_routes.py:"
    assert "Events (1)" in events
    assert f"{here}subscribed" in events
    rows = [line.split(maxsplit=4) for line in projections.splitlines()]
    assert " ".join(rows[0]).split() == [
        *("Projection", "Message", "Handler", "Where", "Runs", "Views")
    ]
    views = "projections.OrderRow, DocumentStore(Totals)"
    assert [
        (name, message, handler.removeprefix(here), where.partition(":")[0], rest)
        for name, message, handler, where, rest in (
            [*row[:4], " ".join(row[4].split())] for row in rows[2:]
        )
    ] == [
        ("listed", "OrderPlaced", "Listed.changed", file[:-1], f"outbox {views}"),
        ("listed", "OrderPaid", "Listed.changed", file[:-1], f"outbox {views}"),
        ("listed", "order.*", "Listed.counted", file[:-1], f"outbox {views}"),
        (
            *("listed-inline", "OrderPlaced", "listed_inline", file[:-1]),
            "inline projections.Entry",
        ),
        (
            *("listed-on-demand", "OrderPlaced", "listed_on_demand", file[:-1]),
            "on demand",
        ),
    ]


def test_e20_6_the_json_of_a_projection(registry):
    """A row for each class, name or pattern that a handler takes. [E20.6]"""
    found = json.loads(run("--message", "order.*", "--format", "json"))

    assert found["routes"] == []
    [row] = found["projections"]
    assert row.pop("line") > 0
    assert row == {
        "projection": "listed",
        "kind": "event",
        "message": "order.*",
        "message_class": None,
        "by": "pattern",
        "handler": f"{__name__}.Listed.counted",
        "module": __name__,
        "app": None,
        "file": "tests/events/projections/test_routes.py",
        "runs": "following",
        "channel": "outbox",
        "priority": 0,
        "views": ["projections.OrderRow", "DocumentStore(Totals)"],
        "problem": None,
    }


def test_e20_6_a_projection_in_other_formats(registry):
    """Markdown has a table of its own, and the chart an arrow for each. [E20.6]"""
    assert "## Projections\n\n| Projection" in run("--format", "markdown")
    chart = run("--format", "mermaid")
    assert '-.->|"projection listed, outbox"| ' in chart
    assert '-.->|"projection listed-on-demand, on demand"| ' in chart


def test_e20_6_an_event_is_explained(registry):
    """Handlers that subscribe and projections, each with when it is called. [E20.6]"""
    text = "\n".join(explain(registry, "OrderPlaced"))

    assert "for the projection 'listed', later, by the worker of the channel" in text
    assert "for the projection 'listed-inline', in the transaction that app" in text
    assert "for the projection 'listed-on-demand', when the projection is run." in text
    assert "immediately, in the publisher's transaction if there is one." in text
