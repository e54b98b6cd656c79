"""The message graph beside the journal: counts, times, and where the two differ."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs import (
    CommandBus,
    EventBus,
    MessageGaveUp,
    command_bus,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.graph.building import graph_of
from django_cqrs.graph.mermaid import mermaid_of
from django_cqrs.graph.rows import as_text
from django_cqrs.management.commands import cqrs_graph
from django_cqrs.outbox import observed_graph
from django_cqrs.outbox.models import JournalEntry, Outcome
from django_cqrs.outbox.observed_graph import observed_in
from tests.support import registry_of

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(databases=["default"]),
]

BEGAN = datetime(2026, 11, 1, 10, tzinfo=UTC)


@dataclass(frozen=True)
class Open:
    number: int = 0


@message("door.opened")
@dataclass(frozen=True)
class Opened:
    number: int = 0


@dataclass(frozen=True)
class Ring:
    number: int = 0


@dataclass(frozen=True)
class Ask:
    number: int = 0


@command_handler(name="door.open", aliases=["door.push"])
def open_it(command: Open, events: EventBus) -> None:
    events.publish(Opened(command.number))


@event_handler(name="door.greet")
def greet(event: Opened, commands: CommandBus) -> None:
    commands.dispatch(Ring(event.number))


@event_handler(name="door.note")
def note(event: Opened) -> None: ...


@command_handler(name="door.ring")
@command_handler("bell.ring")
def ring(command: Ring) -> None: ...


@query_handler(name="door.ask")
def ask(query: Ask) -> int: ...


@event_handler(name="door.gave_up")
def gave_up(event: MessageGaveUp) -> None: ...


HANDLERS = open_it, greet, note, ring, ask, gave_up


def knock():
    command_bus.dispatch(Open(1))


@pytest.fixture
def registry(settings):
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=90)}
    return registry_of(*HANDLERS)


@pytest.fixture
def graph(registry):
    return graph_of(registry)


def entry(name, endpoint, cause=None, *, kind="event", minutes=0, message_id=None):
    """Write down that a message was handled; return its id."""
    row = JournalEntry.objects.create(
        at=BEGAN + timedelta(minutes=minutes),
        message_id=message_id or uuid.uuid4(),
        correlation_id=uuid.uuid4(),
        causation_id=cause,
        kind=kind,
        name=name,
        endpoint=endpoint,
        outcome=Outcome.HANDLED,
    )
    return row.message_id


def seen(graph):
    """Return what was observed of each edge, for those that are no difference."""
    return {
        (edge.sender, edge.message.name): edge.observed and edge.observed.count
        for edge in graph.edges
        if not graph.is_difference(edge)
    }


def differences(graph):
    return {
        (edge.sender, edge.message.name, edge.observed and edge.observed.count)
        for edge in graph.edges
        if graph.is_difference(edge)
    }


def test_g04_2_the_journal_and_the_code_of_real_messages_agree(registry, graph):
    """What handlers have sent is found in the code, with its count and its times. [G04.2]"""
    for number in range(3):
        registry.command_bus.dispatch(Open(number))

    observed = observed_in(graph, using="default")

    assert seen(observed) == {
        ("door.open", "Opened"): 3,
        ("door.greet", "Ring"): 3,
        ("django_cqrs", "MessageGaveUp"): None,
    }
    assert differences(observed) == {("outside", "Open", 3)}
    (edge,) = [each for each in observed.edges if each.sender == "door.greet"]
    times = JournalEntry.objects.filter(endpoint="door.ring").values_list("at")
    assert (edge.observed.first, edge.observed.last) == (min(times)[0], max(times)[0])
    assert not edge.observed.is_shared
    assert observed.observed.entries == 12


def test_g04_2_a_message_counts_once_whatever_its_handlers(graph):
    """Two handlers, and two attempts, are still one message. [G04.2]"""
    cause = entry("Open", "door.open", kind="command")
    opened = entry("door.opened", "door.greet", cause)
    for minutes in (1, 2):
        entry("door.opened", "door.note", cause, minutes=minutes, message_id=opened)

    observed = observed_in(graph, using="default")

    assert seen(observed)["door.open", "Opened"] == 1


def test_g04_2_what_only_one_of_them_knows_is_a_difference(graph):
    """It is marked, with what is known of its sender. [G04.2]"""
    opened = entry("door.opened", "door.note")
    for minutes in (1, 61):
        entry("Ring", "door.ring", opened, kind="command", minutes=minutes)
    entry("Cough", "door.cough", opened, minutes=5)
    both = entry("door.opened", "door.greet")
    entry("door.opened", "door.note", message_id=both)
    entry("Cough", "door.cough", both, minutes=6)

    observed = observed_in(graph, using="default")

    assert differences(observed) == {
        ("door.open", "Opened", None),
        ("door.greet", "Ring", None),
        ("outside", "Opened", 2),
        ("door.note", "Ring", 2),
        ("door.note", "Cough", 1),
        ("a handler of Opened", "Cough", 1),
    }
    text = as_text(observed)
    assert (
        "            ! door.note: in no code, observed 2 times, 2026-11-01 10:01 to "
        "11:01"
    ) in text
    assert "  sent by   ! door.greet: not observed" in text
    assert "Code and journal disagree about the lines that begin with !." in text
    assert '-->|"2 in no code"|' in mermaid_of(observed)
    assert '-->|"not observed"|' in mermaid_of(observed)


def test_g04_2_former_names_of_handlers_and_names_of_messages_are_known(graph):
    """Entries from before a rename, by any of a message's names, still count. [G04.2]"""
    cause = entry("Open", "door.push", kind="command")
    opened = entry("Opened", "door.greet", cause)
    entry("bell.ring", "door.ring", opened, kind="command")

    found = seen(observed_in(graph, using="default"))

    assert found["door.open", "Opened"] == 1
    assert found["door.greet", "Ring"] == 1


def test_g04_2_a_cause_may_be_older_than_what_is_read(graph, monkeypatch):
    """The newest entries are read, and those of their causes by their ids. [G04.2]"""
    monkeypatch.setattr(observed_graph, "_IDS", 2)
    for number in range(5):
        cause = entry("Open", "door.open", kind="command", minutes=number)
        entry("door.opened", "door.note", cause, minutes=60 + number)
    order = JournalEntry.objects.order_by("at")
    for number, row in enumerate(order, 1_000_000):
        JournalEntry.objects.filter(pk=row.pk).update(id=number)

    with CaptureQueriesContext(connection) as queries:
        observed = observed_in(graph, using="default", most=5)

    assert seen(observed)["door.open", "Opened"] == 5
    assert observed.observed.is_bounded
    assert observed.observed.entries == 5
    assert len(queries) == 1 + 3


def test_g04_2_a_lost_cause_is_no_difference(graph):
    """A cause that is no longer kept, or that was a query, is counted apart. [G04.2]"""
    entry("door.opened", "door.note", uuid.uuid4())

    observed = observed_in(graph, using="default")

    assert observed.observed.unexplained == 1
    assert differences(observed) == {
        ("door.open", "Opened", None),
        ("door.greet", "Ring", None),
    }
    assert "The cause of 1 message is no longer kept, or was a query." in as_text(
        observed
    )


def test_g04_2_what_is_given_up_leads_to_its_event(graph):
    """The library itself sends that event. [G04.2]"""
    cause = entry("Ring", "door.ring", kind="command")
    entry("django_cqrs.message_gave_up", "door.gave_up", cause)

    found = seen(observed_in(graph, using="default"))

    assert found["django_cqrs", "MessageGaveUp"] == 1


def test_g04_2_senders_that_the_journal_cannot_tell_apart_share_a_count():
    """Two handlers of one event send the same: nobody knows which one did. [G04.2]"""

    @event_handler(name="door.shout")
    def shout(event: Opened, commands: CommandBus) -> None:
        commands.dispatch(Ring(event.number))

    graph = graph_of(registry_of(*HANDLERS, shout))
    opened = entry("door.opened", "door.greet")
    entry("door.opened", "door.shout", message_id=opened)
    entry("Ring", "door.ring", opened, kind="command")

    observed = observed_in(graph, using="default")

    shared = [each for each in observed.edges if each.message.name == "Ring"]
    assert [(e.sender, e.observed.count, e.observed.is_shared) for e in shared] == [
        ("door.greet", 1, True),
        ("door.shout", 1, True),
    ]
    assert "door.shout: once, 2026-11-01 10:00, by this or another sender" in (
        as_text(observed)
    )
    assert '-->|"1 shared"|' in mermaid_of(observed)


def test_g04_2_tasks_are_not_part_of_it(graph):
    """The code of a task sends no message by itself. [G04.2]"""
    entry("django.tasks:default:app.mail", "django.tasks:default:app.mail")

    observed = observed_in(graph, using="default")

    assert len(observed.messages) == len(graph.messages)
    assert observed.observed.first is None


def test_g04_2_the_command_shows_both(registry, monkeypatch):
    """`--observed` in JSON and as text; an empty journal is said to be so. [G04.2]"""
    monkeypatch.setattr(cqrs_graph, "registry", registry)

    def output_of(*arguments):
        stdout = StringIO()
        call_command("cqrs_graph", "--observed", *arguments, stdout=stdout)
        return stdout.getvalue()

    assert "The journal is empty." in output_of()
    cause = entry("Open", "door.open", kind="command")
    entry("door.opened", "door.note", cause, minutes=1)
    graph = json.loads(output_of("--format", "json"))

    assert graph["observed"] == {
        "entries": 2,
        "first": "2026-11-01T10:00:00+00:00",
        "last": "2026-11-01T10:01:00+00:00",
        "is_bounded": False,
        "unexplained": 0,
    }
    (edge,) = [e for e in graph["edges"] if e["sender"] == "door.open"]
    assert edge["observed"] == {
        "count": 1,
        "first": "2026-11-01T10:01:00+00:00",
        "last": "2026-11-01T10:01:00+00:00",
        "is_shared": False,
    }
    assert "2 entries of the journal, 2026-11-01 10:00 to 10:01." in output_of()
    cause = entry("Open", "door.open", kind="command", minutes=2 * 24 * 60)
    assert "2026-11-01 10:00 to 2026-11-03 10:00." in output_of()
    assert "Differs:" in output_of("--format", "html")


def test_g04_2_without_a_journal_there_is_one_clear_error(settings):
    """It says what to install and to set. [G04.2]"""
    with pytest.raises(CommandError) as caught:
        call_command("cqrs_graph", "--observed")

    assert str(caught.value) == (
        "There is no journal to compare with. Add 'django_cqrs.outbox' to "
        'INSTALLED_APPS, migrate, and set DJANGO_CQRS["JOURNAL"].'
    )
