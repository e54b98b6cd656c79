"""The journal: what it says of messages, and that it says nothing that is not so."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Annotated

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.core.management import call_command
from django.db import connections, transaction
from django.utils import timezone

from django_cqrs import (
    CommandBus,
    EventBus,
    InstantRetry,
    Registry,
    Retry,
    Sensitive,
    command_handler,
    event_bus,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.channels import channels
from django_cqrs.interception import before, pointcut
from django_cqrs.outbox import journal
from django_cqrs.outbox.models import JournalEntry, OutboxMessage, Outcome
from django_cqrs.testing.flow import Flow
from tests.modelling.messages import OrderPlaced
from tests.outbox.support import letters, make_due, work, worker_of
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default"]),
]

on_both = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@message("journal.opening")
@dataclass(frozen=True)
class Open:
    title: str = "lamp"
    fails: str = ""


@message("journal.opened")
@dataclass(frozen=True)
class Opened:
    title: str = "lamp"
    fails: str = ""


@message("journal.asking")
@dataclass(frozen=True)
class Ask:
    title: str = "lamp"


class Refused(Exception):
    """What a handler here raises on purpose."""


@pytest.fixture(autouse=True)
def _kept(settings):
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}


@command_handler(name="journal.open")
def open_it(command: Open, events: EventBus) -> None:
    Note.objects.create(text=command.title)
    events.publish(Opened(command.title, command.fails))
    if command.fails == "command":
        raise Refused("not today")


@event_handler(name="journal.first", priority=2)
def first(event: Opened) -> None: ...


@event_handler(name="journal.second", priority=1)
def second(event: Opened) -> None:
    if event.fails == "event":
        raise Refused("no\nmore")


@event_handler(name="journal.mail", channel="outbox", retry=Retry(attempts=2, delay=0))
def mail(event: Opened) -> None:
    if event.fails == "mail":
        raise Refused("no stamps\x00")


@pytest.fixture
def registry():
    return registry_of(open_it, first, second)


def said(using="default"):
    """Return what the journal says, in order of the beginnings."""
    found = JournalEntry.objects.using(using).order_by("at", "pk")
    return [(each.endpoint, each.outcome) for each in found]


@contextmanager
def statements(using="default"):
    """Collect the statements that write to the journal."""
    seen = []

    def see(execute, sql, *rest):
        if "INSERT" in sql and "journalentry" in sql:
            seen.append(sql)
        return execute(sql, *rest)

    with connections[using].execute_wrapper(see):
        yield seen


def only():
    return JournalEntry.objects.get()


# ------------------------------------------------------------------- where it is sent


def test_journal_of_a_command_and_its_events(registry):
    """Each handler that was called has an entry, and they hang together. [C07.5]"""
    registry.command_bus.dispatch(Open())

    command, *events = JournalEntry.objects.order_by("at", "pk")
    assert said() == [
        ("journal.open", "handled"),
        ("journal.first", "handled"),
        ("journal.second", "handled"),
    ]
    assert (command.kind, command.name) == ("command", "journal.opening")
    assert command.causation_id is None
    assert command.correlation_id == command.message_id
    for event in events:
        assert (event.kind, event.name) == ("event", "journal.opened")
        assert event.causation_id == event.correlation_id == command.message_id
        assert (event.channel, event.attempts, event.error) == (None, 1, "")
        assert event.duration <= command.duration


def test_journal_is_written_in_one_statement_with_the_rest(registry):
    """A command and its events cost one INSERT, in the command's transaction. [C07.5]"""
    with transaction.atomic():
        with statements() as seen:
            registry.command_bus.dispatch(Open())
        assert len(seen) == 1
        assert len(said()) == 3


def test_journal_is_off_by_default(settings, registry):
    """Without the setting nothing is written, and nothing stands around a handler. [C07.5]"""
    registry.command_bus.dispatch(Open())
    settings.DJANGO_CQRS = {
        key: value for key, value in settings.DJANGO_CQRS.items() if key != "JOURNAL"
    }
    JournalEntry.objects.all().delete()

    with statements() as seen:
        registry.command_bus.dispatch(Open())
        event_bus.publish(Opened())
        registry.add(mail)
        registry.command_bus.dispatch(Open(fails="mail"))
        work(registry)

    assert seen == []
    assert said() == []

    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": 60}
    registry.command_bus.dispatch(Open())
    assert ("journal.open", "handled") in said()


def test_journal_passes_over_queries(registry):
    """Who only asks leaves no trace; the command of a query handler does. [C07.5]"""

    @registry.add
    @query_handler(name="journal.ask")
    def ask(query: Ask, commands: CommandBus) -> None:
        commands.dispatch(Open(query.title))

    registry.query_bus.ask(Ask())

    assert [name for name, _ in said()] == [
        "journal.open",
        "journal.first",
        "journal.second",
    ]


@pytest.mark.parametrize(
    ("fails", "failed"),
    [
        ("command", [("journal.open", "failed")]),
        ("event", [("journal.open", "failed"), ("journal.second", "failed")]),
    ],
)
def test_rollback_leaves_no_handled_entry(registry, fails, failed):
    """What is rolled back was not handled; what failed is there all the same. [C07.5]"""
    with pytest.raises(Refused):
        registry.command_bus.dispatch(Open(fails=fails))

    assert said() == failed
    assert not Note.objects.exists()


def test_failure_says_why(registry):
    """The class of the exception, and the first line of its text. [C07.5]"""
    with pytest.raises(Refused):
        registry.command_bus.dispatch(Open(fails="event"))

    for entry in JournalEntry.objects.all():
        assert entry.exception == f"{__name__}.Refused"
        assert entry.error == "no"
        assert entry.duration is not None


def test_failures_are_written_in_one_statement(registry):
    """Those of one transaction are, when it has ended. [C07.5]"""
    with statements() as seen, pytest.raises(Refused):
        registry.command_bus.dispatch(Open(fails="event"))

    assert len(seen) == 1


@pytest.mark.parametrize("ending", ["rolled back", "committed"])
def test_failure_inside_a_transaction_of_ones_own(registry, ending):
    """It is written when that has ended, whichever way, and not before. [C07.5]"""

    def run():
        with transaction.atomic():
            with pytest.raises(Refused), transaction.atomic():
                registry.command_bus.dispatch(Open(fails="command"))
            registry.command_bus.dispatch(Open())
            assert ("journal.open", "failed") not in said()
            if ending == "rolled back":
                raise KeyError

    if ending == "rolled back":
        with pytest.raises(KeyError):
            run()
        assert said() == [("journal.open", "failed")]
    else:
        run()
        assert said()[:2] == [("journal.open", "failed"), ("journal.open", "handled")]
    assert "set_autocommit" not in vars(connections["default"])


def test_savepoint_takes_its_entries_with_it(registry):
    """An event that was published in a block that is rolled back was not handled. [C07.5]"""

    @registry.add
    @command_handler(name="journal.ask")
    def ask(command: Ask, events: EventBus) -> None:
        events.publish(Opened())
        with transaction.atomic():
            events.publish(Opened())
            transaction.set_rollback(True)

    registry.command_bus.dispatch(Ask())

    assert said() == [
        ("journal.ask", "handled"),
        ("journal.first", "handled"),
        ("journal.second", "handled"),
    ]


def test_nested_command_that_its_caller_catches(registry):
    """The outer one is handled, the inner one failed, and both are said. [C07.5]"""

    @registry.add
    @command_handler(name="journal.ask")
    def ask(command: Ask, commands: CommandBus) -> None:
        with pytest.raises(Refused):
            commands.dispatch(Open(fails="command"))

    registry.command_bus.dispatch(Ask())

    assert said() == [("journal.ask", "handled"), ("journal.open", "failed")]
    ask_entry, open_entry = JournalEntry.objects.order_by("at")
    assert open_entry.causation_id == ask_entry.message_id


def test_command_without_a_transaction():
    """With atomic=False it is noted when the handler has returned, or raised. [C07.5]"""
    registry = registry_of(first, second)

    @registry.add
    @command_handler(name="journal.open", atomic=False)
    def open_it(command: Open, events: EventBus) -> None:
        events.publish(Opened(command.title, command.fails))

    registry.command_bus.dispatch(Open())
    assert [outcome for _, outcome in said()] == ["handled"] * 3

    JournalEntry.objects.all().delete()
    with pytest.raises(Refused):
        registry.command_bus.dispatch(Open(fails="event"))
    assert said() == [
        ("journal.open", "failed"),
        ("journal.first", "handled"),
        ("journal.second", "failed"),
    ]


def test_attempts_of_an_instant_retry():
    """Each attempt counts; one that succeeds in the end was handled. [C07.5]"""
    tries = []

    @command_handler(name="journal.open")
    def open_it(command: Open) -> None:
        tries.append(command)
        if command.fails or len(tries) < 3:
            raise Refused

    registry = registry_of(open_it)
    bus = CommandBus(instant_retry=InstantRetry(3), registry=registry)

    bus.dispatch(Open())
    assert (only().outcome, only().attempts) == ("handled", 3)

    JournalEntry.objects.all().delete()
    with pytest.raises(Refused):
        bus.dispatch(Open(fails="always"))
    assert (only().outcome, only().attempts) == ("failed", 4)


def test_journal_of_adispatch(registry):
    """The whole unit runs in one thread; the entries are there when it has ended. [C07.5]"""

    @registry.add
    @event_handler(name="journal.third")
    async def third(event: Opened) -> None:
        await asyncio.sleep(0)
        if event.fails == "async":
            raise Refused

    async def run():
        await registry.command_bus.adispatch(Open())
        with pytest.raises(Refused):
            await registry.command_bus.adispatch(Open(fails="async"))

    async_to_sync(run)()

    assert [outcome for _, outcome in said()] == ["handled"] * 4 + ["failed"] * 2


@on_both
def test_journal_of_another_database(registry):
    """An entry is where the transaction is, and goes where that goes. [C07.5]"""
    registry.command_bus.dispatch(Open(), using="other")
    with pytest.raises(Refused):
        registry.command_bus.dispatch(Open(fails="event"), using="other")

    assert said() == []
    assert [outcome for _, outcome in said("other")] == ["handled"] * 3 + ["failed"] * 2


class Nowhere:
    """A router that keeps the outbox's tables out of a database."""

    def allow_migrate(self, db, app_label, **hints):
        return not (db == "other" and app_label == "django_cqrs_outbox")


@on_both
def test_database_without_the_tables(settings, registry):
    """Where a router says that there are none, nothing is written. [C07.5]"""
    settings.DATABASE_ROUTERS = [f"{__name__}.Nowhere"]

    with statements("other") as seen:
        registry.command_bus.dispatch(Open(), using="other")

    assert seen == []
    registry.command_bus.dispatch(Open())
    assert len(said()) == 3


def test_failure_that_cannot_be_written_is_logged(registry, monkeypatch, caplog):
    """The exception of the handler is what its caller gets. [C07.5]"""

    def away(self, connection, entries):
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM nowhere")

    monkeypatch.setattr(journal._EntrySink, "write", away)

    with pytest.raises(Refused):
        registry.command_bus.dispatch(Open(fails="command"))

    (record,) = [each for each in caplog.records if each.name == "django_cqrs.journal"]
    assert record.getMessage() == "1 entries were not written"


def test_failures_held_are_bounded(registry, monkeypatch):
    """A long transaction in which much fails does not fill the memory. [C07.5]"""
    monkeypatch.setattr(journal, "MOST_HELD", 2)

    with transaction.atomic():
        for _ in range(5):
            with pytest.raises(Refused), transaction.atomic():
                registry.command_bus.dispatch(Open(fails="command"))

    assert said() == [("journal.open", "failed")] * 2


def test_journal_of_a_broken_transaction(registry):
    """A handler that returns although its transaction is broken has failed. [C07.5]"""

    @registry.add
    @command_handler(name="journal.ask")
    def ask(command: Ask) -> None:
        transaction.set_rollback(True)

    with pytest.raises(Exception, match="can only be rolled back"):
        registry.command_bus.dispatch(Ask())

    assert said() == [("journal.ask", "failed")]


@on_both
def test_journal_of_an_interceptor_outside(registry):
    """What is refused before its transaction begins has failed as well. [C07.5]"""

    @registry.add
    @before(pointcut.handler("journal.open"), precedence=-3000)
    def refuse() -> None:
        raise Refused

    with pytest.raises(Refused):
        registry.command_bus.dispatch(Open(), using="other")

    assert said("other") == [("journal.open", "failed")]


def test_journal_of_an_interceptor_that_replaces(registry):
    """A payload that is replaced on the way is the same message. [C07.5]"""

    @registry.add
    @before(pointcut.handler("journal.open"), precedence=-3000)
    def louder(command: Open) -> Open:
        return Open(command.title.upper())

    registry.command_bus.dispatch(Open())

    opened = JournalEntry.objects.get(endpoint="journal.open")
    assert (opened.attempts, opened.outcome) == (1, "handled")
    assert Note.objects.get().text == "LAMP"


def test_name_that_is_too_long_for_the_table():
    """It is cut: no handler fails because of what is written about it. [C07.5]"""
    registry = Registry()

    @registry.add
    @command_handler("journal.long", name="x" * 300)
    def handle() -> None: ...

    registry.command_bus.dispatch(route="journal.long")

    assert only().endpoint == "x" * 255


# ---------------------------------------------------------------- out of a channel


def test_journal_of_the_worker(registry):
    """A message in the background: its failed attempts, and what became of it. [C07.5]"""
    registry.add(mail)
    registry.command_bus.dispatch(Open(fails="mail"))
    registry.command_bus.dispatch(Open())
    JournalEntry.objects.exclude(endpoint="journal.mail").delete()

    work(registry)
    make_due()
    work(registry)

    (letter,) = letters()
    found = JournalEntry.objects.order_by("at", "pk")
    assert [(each.outcome, each.attempts) for each in found] == [
        ("failed", 1),
        ("handled", 1),
        ("failed", 2),
    ]
    for entry in found:
        assert (entry.kind, entry.name) == ("event", "journal.opened")
        assert entry.channel == "outbox"
        assert entry.duration is not None
    last = found[2]
    assert (last.message_id, last.causation_id) == (
        letter.message_id,
        letter.causation_id,
    )
    assert last.error == "no stamps\\x00"


def test_batch_is_written_in_one_statement(registry, undivided_batches):
    """However many there are, and one that fails among them. [C07.5]"""
    registry.add(mail)
    for number in range(5):
        registry.command_bus.dispatch(Open(fails="mail" if number == 2 else ""))
    JournalEntry.objects.all().delete()

    with statements() as seen:
        worker_of(registry, bounds={"messages": 5}).run()

    assert len(seen) == 1
    assert [outcome for _, outcome in said()].count("handled") == 4
    assert [outcome for _, outcome in said()].count("failed") == 1


def test_background_handler_that_sends(registry):
    """What it caused is noted beside it, and is gone where it is rolled back. [C07.5]"""
    registry = registry_of(open_it, first, second)

    @registry.add
    @command_handler(name="journal.ask", channel="outbox", retry=Retry(attempts=1))
    def ask(command: Ask, commands: CommandBus) -> None:
        commands.dispatch(Open(command.title))
        if command.title == "fail":
            raise Refused

    registry.command_bus.dispatch(Ask())
    registry.command_bus.dispatch(Ask("fail"))
    work(registry)

    assert sorted(said()) == [
        ("journal.ask", "failed"),
        ("journal.ask", "handled"),
        ("journal.first", "handled"),
        ("journal.open", "handled"),
        ("journal.second", "handled"),
    ]


def test_failed_command_inside_a_batch(registry):
    """It is written when the batch has committed. [C07.5]"""
    registry = registry_of(open_it, first, second)

    @registry.add
    @command_handler(name="journal.ask", channel="outbox")
    def ask(command: Ask, commands: CommandBus) -> None:
        with pytest.raises(Refused):
            commands.dispatch(Open(fails="command"))

    registry.command_bus.dispatch(Ask())
    work(registry)

    assert sorted(said()) == [("journal.ask", "handled"), ("journal.open", "failed")]


@on_both
@pytest.mark.parametrize("policy", [{"atomic": False}, {"using": "other"}])
def test_handled_outside_the_batch(policy):
    """A message whose handler has a transaction of its own is noted with its row. [C07.5]"""

    @command_handler(name="journal.open", channel="outbox", **policy)
    def open_it(command: Open) -> None:
        if command.fails:
            raise Refused

    registry = registry_of(open_it)
    registry.command_bus.dispatch(Open(), using="default")
    registry.command_bus.dispatch(Open(fails="x"), using="default")
    work(registry)

    assert said() == [("journal.open", "handled"), ("journal.open", "failed")]
    assert said("other") == []


def test_dropped_expired_and_unreadable():
    """What ends without a handler, or without a dead letter, has an entry too. [C07.5]"""

    @command_handler(
        name="journal.open",
        channel="outbox",
        retry=Retry(attempts=1, final_failure="drop"),
    )
    def open_it(command: Open) -> None:
        raise Refused

    @command_handler(name="journal.ask", channel="outbox")
    def ask(command: Ask) -> None: ...

    registry = registry_of(open_it, ask)
    registry.command_bus.dispatch(Open())
    registry.command_bus.dispatch(Ask(), expires=60)
    registry.command_bus.dispatch(Ask())
    OutboxMessage.objects.filter(expires_at__isnull=False).update(
        expires_at=timezone.now() - timedelta(1)
    )
    last = OutboxMessage.objects.latest("sequence")
    OutboxMessage.objects.filter(pk=last.pk).update(payload=b"{")
    work(registry)

    assert sorted(said()) == [
        ("journal.ask", "expired"),
        ("journal.ask", "failed"),
        ("journal.open", "dropped"),
    ]
    unread = JournalEntry.objects.get(outcome="failed")
    assert (unread.kind, unread.name, unread.duration) == (
        "",
        "journal.asking",
        None,
    )


def test_journal_of_a_channel_without_a_worker():
    """What an in-memory channel delivers is noted where it is handled. [C07.5]"""

    @command_handler(name="journal.open", channel="memory")
    def open_it(command: Open) -> None:
        if command.fails:
            raise Refused

    registry = registry_of(open_it)
    memory = channels["memory"]
    memory.clear()
    registry.command_bus.dispatch(Open())
    registry.command_bus.dispatch(Open(fails="x"))
    memory.run(1)
    with pytest.raises(Refused):
        memory.run()
    memory.clear()

    assert said() == [("journal.open", "handled"), ("journal.open", "failed")]
    assert {each.channel for each in JournalEntry.objects.all()} == {"memory"}


# ------------------------------------------------------------------------------ sagas


def test_journal_knows_the_saga_and_its_timer():
    """What started and moved it, at once or by its timer, names it. [C07.5]"""
    with Flow() as flow:
        event_bus.publish(OrderPlaced(7))
        event_bus.publish(OrderPlaced(8))
        flow.advance(days=365)
        flow.run("outbox")

    about = JournalEntry.objects.filter(subject="modelling.Fulfilment:7")
    assert {each.channel for each in about} == {None, "outbox"}
    assert about.values("correlation_id").distinct().count() == 1


# --------------------------------------------------------------------- tests of users


class TestInsideATestCase:
    """A test's own transaction counts as none."""

    pytestmark = pytest.mark.django_db(transaction=False, databases=["default"])

    def test_in_a_test_failures_are_there_at_once(self, registry):
        """In a test failures are there at once. [C07.5]"""
        with pytest.raises(Refused):
            registry.command_bus.dispatch(Open(fails="command"))

        assert said() == [("journal.open", "failed")]

    def test_in_a_test_a_block_of_ones_own_ends(self, registry):
        """In a test a block of ones own ends. [C07.5]"""
        with pytest.raises(Refused), transaction.atomic():
            registry.command_bus.dispatch(Open(fails="command"))
        registry.command_bus.dispatch(Open())

        assert said()[:2] == [("journal.open", "failed"), ("journal.open", "handled")]

    def test_a_test_leaves_nothing_to_the_next(self, registry):
        """A test leaves nothing to the next. [C07.5]"""
        with pytest.raises(Refused), transaction.atomic():
            registry.command_bus.dispatch(Open(fails="command"))

        default = connections["default"]
        assert "set_autocommit" not in vars(default)
        ended = SimpleNamespace(_from_testcase=True)
        getattr(default, journal._HELD).block = ended
        registry.command_bus.dispatch(Open())
        assert [outcome for _, outcome in said()] == ["handled"] * 3


# --------------------------------------------------------------------- what is secret


@message("journal.charging")
@dataclass(frozen=True)
class Charge:
    card: Annotated[str, Sensitive()]
    where: str = "here"


def refusing_cards(**policies):
    @command_handler(name="journal.charge", **policies)
    def refuse(command: Charge) -> None:
        raise Refused(f"{command.card} is no card, {command.where}")

    return registry_of(refuse)


@pytest.mark.parametrize(
    "policies", [{}, {"channel": "outbox", "retry": Retry(attempts=1)}]
)
def test_journal_masks_what_is_sensitive(policies):
    """An exception may quote a field that operators do not see. [C07.5]"""
    registry = refusing_cards(**policies)

    with suppress(Refused):
        registry.command_bus.dispatch(Charge("4111-2222"))
    work(registry)

    assert only().error == "•••••• is no card, here"


def test_journal_masks_it_in_what_caused_the_failure():
    """The exception goes on through commands that know nothing of the secret. [C07.5]"""
    registry = refusing_cards()

    @registry.add
    @command_handler(name="journal.ask")
    def ask(command: Ask, commands: CommandBus) -> None:
        commands.dispatch(Charge("4111-2222"))

    with pytest.raises(Refused, match="4111-2222"):
        registry.command_bus.dispatch(Ask())

    assert {each.error for each in JournalEntry.objects.all()} == {
        "•••••• is no card, here"
    }


class Opaque:
    """What no JSON can be made of, so that nothing is known of its fields."""

    secret = "4111-2222"


def test_journal_says_nothing_of_what_it_cannot_read():
    """Of such a message the class of the exception has to do. [C07.5]"""
    registry = Registry()

    @registry.add
    @command_handler(name="journal.opaque")
    def refuse(command: Opaque) -> None:
        raise Refused(command.secret)

    with pytest.raises(Refused):
        registry.command_bus.dispatch(Opaque())

    assert (only().error, only().exception) == ("(not shown)", f"{__name__}.Refused")


def test_what_cannot_even_be_masked_is_not_shown(monkeypatch):
    """And the exception that the handler has raised is the one that goes on. [C07.5]"""
    registry = refusing_cards()

    def break_down(*_arguments):
        raise KeyError

    monkeypatch.setattr(journal, "redactor_for", break_down)
    with pytest.raises(Refused):
        registry.command_bus.dispatch(Charge("4111-2222"))

    assert only().error == "(not shown)"


# ----------------------------------------------------------------------- beside others


def test_journal_beside_a_bus_with_a_key(registry):
    """What a bus keeps for duplicates is messages, and no entries of the journal. [C07.5]"""
    registry.add(mail)
    bus = CommandBus(idempotency_key="title", replay_outputs=True, registry=registry)

    bus.dispatch(Open())
    bus.dispatch(Open())

    assert OutboxMessage.objects.count() == 2
    assert [name for name, _ in said()].count("journal.open") == 2
    assert [name for name, _ in said()].count("journal.first") == 1


# ------------------------------------------------------------------------------- time


def kept(number, age=timedelta(0)):
    at = timezone.now() - age
    JournalEntry.objects.bulk_create(
        JournalEntry(
            at=at,
            message_id=uuid.uuid4(),
            correlation_id=uuid.uuid4(),
            endpoint="journal.open",
            outcome=Outcome.HANDLED,
        )
        for _ in range(number)
    )


def test_journal_is_purged(settings):
    """Entries that are older than the setting says go, in batches. [C07.5]"""
    kept(5, timedelta(days=2))
    kept(1)

    assert journal.purge("default", size=2, batches=1) == 2
    assert journal.purge("default", size=2) == 3
    assert journal.purge("default") == 0
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta.max}
    assert journal.purge("default") == 0
    assert JournalEntry.objects.count() == 1
    assert journal.purge("default", before=timezone.now() + timedelta(1)) == 1


def test_prune_command_knows_the_journal(settings):
    """It keeps what the setting says, and nothing where the journal is off. [C07.5]"""
    kept(2, timedelta(days=2))
    kept(1)

    call_command("cqrs_prune", verbosity=0)
    assert JournalEntry.objects.count() == 1

    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": None}
    call_command("cqrs_prune", verbosity=0)
    assert JournalEntry.objects.count() == 0


def test_worker_purges_the_journal(registry):
    """Now and then, as it looks after the rest. [C07.5]"""
    kept(3, timedelta(days=2))
    kept(1)

    work(registry)

    assert JournalEntry.objects.count() == 1


def test_global_buses_are_watched_once():
    """However often the apps are made ready. [C07.5]"""
    apps.get_app_config("django_cqrs_outbox").ready()

    event_bus.publish(OrderPlaced(7))

    found = JournalEntry.objects.filter(subject="modelling.Fulfilment:7")
    assert len({each.endpoint for each in found}) == len(found) >= 1
