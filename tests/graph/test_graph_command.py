"""``manage.py cqrs_graph``: the graph of the project, in four formats."""

from __future__ import annotations

import html.parser
import json
import sys
from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import Registry, command_handler, event_handler, message, query_handler
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.building import graph_of
from django_cqrs.graph.mermaid import mermaid_label, mermaid_of
from django_cqrs.management.commands import cqrs_graph
from tests.support import registry_of

APP = "tests.apps.senders"


@pytest.fixture
def senders(settings):
    """A project with an app that sends by every part that a Django app has."""
    settings.INSTALLED_APPS = ["django_cqrs", APP]
    settings.ROOT_URLCONF = f"{APP}.urls"


def output_of(*arguments, **options):
    stdout = StringIO()
    call_command("cqrs_graph", *arguments, stdout=stdout, **options)
    return stdout.getvalue()


TEXT = """\
Commands (2)

book.return
  sent by     /api/return/ (view)
              tests.apps.senders.admin.BookAdmin.return_selected (route)
              tests.apps.senders.jobs.weekly (route)
              tests.apps.senders.management.commands.return_all.Command.handle (route)
              tests.apps.senders.views.give_back (route)
  handled by  senders.take_back

Lend, book.lend
  sent by     /api/lend/ (view)
              tests.apps.senders.jobs.nightly
              tests.apps.senders.jobs.one
              tests.apps.senders.jobs.weekly
              tests.apps.senders.views.lend_some
  handled by  senders.lend

Events (1)

Lent
  sent by     senders.lend
  handled by  senders.note

Queries (1)

FindBook
  sent by     /api/find/<int:book>/ (view)
              tests.apps.senders.views.page
  handled by  senders.find
"""


def test_g03_2_views_admin_tasks_and_commands_of_the_apps_are_senders(senders):
    """Every function of an app may send; what only tests do, nobody does. [G03.2]"""
    assert output_of() == TEXT


def test_g03_2_text_is_read_and_not_run(senders):
    """A module that nothing has imported stays so. [G03.2]"""
    assert "jobs.nightly" in output_of()
    assert f"{APP}.jobs" not in sys.modules


def test_g04_1_json_has_a_version(senders):
    """Programs read messages, handlers, senders and edges, and tell a change. [G04.1]"""
    graph = json.loads(output_of("--format", "json", "--bus", "event"))

    assert graph["version"] == 1
    assert list(graph) == [
        *("version", "messages", "handlers", "senders", "edges", "observed")
    ]
    assert graph["edges"] == [
        {
            "sender": "senders.lend",
            "message": "tests.apps.senders.messages.Lent",
            "kind": "event",
            "ways": ["code"],
            "observed": None,
            "is_difference": False,
        }
    ]
    assert next(e for e in graph["handlers"] if e["name"] == "senders.note") == {
        "name": "senders.note",
        "kind": "event",
        "function": "tests.apps.senders.handlers.note",
        "file": "tests/apps/senders/handlers.py",
        "line": 20,
        "channel": None,
        "is_readable": True,
    }


def test_g04_1_one_message_with_what_follows(senders):
    """The messages that match, their senders, and what their handlers send. [G04.1]"""
    graph = json.loads(output_of("--format", "json", "--message", "book.l*"))

    assert [each["name"] for each in graph["messages"]] == ["Lend", "Lent"]
    assert {edge["message"].rpartition(".")[2] for edge in graph["edges"]} == {
        "Lend",
        "Lent",
    }


def test_g04_1_an_unknown_message_is_one_clear_error(senders):
    """It names the nearest message that there is. [G04.1]"""
    with pytest.raises(CommandError) as caught:
        output_of("--message", "Lendd")

    assert str(caught.value) == "There is no message 'Lendd'. Did you mean 'Lend'?"


def test_a_project_without_messages_has_an_empty_graph(monkeypatch):
    """Nothing is no error."""
    monkeypatch.setattr(cqrs_graph, "registry", Registry())

    assert output_of() == "No messages.\n"
    assert output_of("--format", "mermaid") == "flowchart LR\n"
    assert "<p>No message.</p>" in output_of("--format", "html")


class Page(html.parser.HTMLParser):
    """Collects what a page has."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        assert not any(name.startswith("on") for name in found)
        assert tag != "th" or found["scope"] in ("row", "col")


def test_g04_1_html_is_one_page_without_a_script(senders):
    """Its links lead to messages on the page; a hostile name is only text. [G04.1]"""
    page = Page(output_of("--format", "html"))

    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


@message("a<b>&'\"`#|]);%%end\n--> x")
@dataclass(frozen=True)
class Hostile:
    pass


NASTY = "</td><script>alert(1)</script>"


def test_g04_1_names_are_escaped_in_every_format(monkeypatch):
    """A name is any text, and means nothing to HTML or Mermaid. [G04.1]"""

    @command_handler(NASTY, name=NASTY)
    def take(hostile: Hostile) -> None: ...

    @event_handler('it\'s "quoted"', channel="memory")
    def hear(text: str) -> None: ...

    registry = registry_of(take, hear)
    monkeypatch.setattr(cqrs_graph, "registry", registry)

    assert "script" not in Page(output_of("--format", "html")).tags
    lines = output_of("--format", "mermaid").splitlines()
    assert lines[1:] == [
        '  m0(["#60;/td#62;#60;script#62;alert(1)#60;/script#62;"])',
        '  m1(["it#39;s #34;quoted#34;"])',
        '  c0["#60;/td#62;#60;script#62;alert(1)#60;/script#62;"]',
        "  m0 --> c0",
        '  c1["tests.graph.test_graph_command.hear"]',
        '  m1 -.->|"memory"| c1',
    ]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("orders.Order.place", "orders.Order.place"),
        ('say "no"', "say #34;no#34;"),
        ("`code` #1;", "#96;code#96; #35;1#59;"),
        ("a|b [c] {d} <e>", "a#124;b #91;c#93; #123;d#125; #60;e#62;"),
        ("%% x\n  y\tz", "#37;#37; x y z"),
        ("naïve 日本 \\n & ;", "naïve 日本 #92;n #38; #59;"),
        ("x@{ shape: y }~~~!", "x#64;#123; shape#58; y #125;#126;#126;#126;#33;"),
        ("", "#160;"),
        ("style m0 fill:#f00", "style m0 fill#58;#35;f00"),
        ("/api/<int:pk>/", "/api/#60;int#58;pk#62;/"),
    ],
)
def test_g04_1_labels_are_what_mermaid_reads(text, label):
    """Mermaid's own parser takes each of these between quotes, and shows the text. [G04.1]"""
    assert mermaid_label(text) == label


def test_g04_1_two_classes_of_one_name_are_told_apart():
    """Both are then shown with their paths. [G04.1]"""
    classes = [
        dataclass(type("Twin", (), {"__module__": __name__, "__qualname__": name}))
        for name in ("One.Twin", "Other.Twin")
    ]
    for cls in classes:
        cls.__qualname__ = "Twin"
        cls.__module__ = f"apps.{len(cls.__mro__)}{id(cls)}"
    handlers = []
    for cls in classes:

        def take(command): ...

        take.__annotations__ = {"command": cls, "return": None}
        take.__qualname__ = f"take_{cls.__module__}"
        handlers.append(command_handler(take))
    graph = graph_of(registry_of(*handlers))

    assert {each.name for each in graph.messages} == {
        f"{cls.__module__}.Twin" for cls in classes
    }
    assert len({each.id for each in graph.messages}) == 2


def test_g04_1_mermaid_has_messages_senders_and_handlers():
    """Messages are round, arrows of events dotted, a channel is on its arrow. [G04.1]"""

    @dataclass(frozen=True)
    class Ask:
        pass

    @dataclass(frozen=True)
    class Told:
        pass

    @command_handler(name="desk.tell")
    def tell(command: Hostile) -> None:
        Told(), Ask()

    @event_handler(name="desk.hear", channel="memory")
    def hear(event: Told) -> None: ...

    @query_handler(name="desk.ask")
    def ask(query: Ask) -> None: ...

    graph = graph_of(registry_of(tell, hear, ask))

    assert mermaid_of(graph.of_kinds([Kind.EVENT, Kind.QUERY])).splitlines() == [
        "flowchart LR",
        '  m0(["Told"])',
        '  m1(["Ask"])',
        '  c0["desk.tell"]',
        "  c0 -.-> m0",
        "  c0 --> m1",
        '  c1["desk.hear"]',
        '  m0 -.->|"memory"| c1',
        '  c2["desk.ask"]',
        "  m1 --> c2",
    ]
