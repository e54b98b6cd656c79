"""What a command sends is written last, on PostgreSQL together with the COMMIT."""

from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.db import (
    DatabaseError,
    IntegrityError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext, override_settings

from django_cqrs import (
    CommandBus,
    EventBus,
    Registry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.channels import channels
from django_cqrs.outbox import channel
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.outbox.store import insertion
from django_cqrs.outbox.store.dialects import COMMIT, NOTIFICATION
from tests.limits import LIMIT
from tests.outbox.support import (
    note,
    numbers,
    on_a_server,
    on_databases,
    on_postgresql,
    registry_of,
    rows,
    traced,
    work,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases


@message("last_write.said")
@dataclass(frozen=True)
class Said:
    """What the command says."""

    number: int


def sending(*, last=None, **policies):
    """Return a registry whose command writes a row, and says so in the background."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", **policies)
    def do(command: Work, events: EventBus):
        note(command)
        events.publish(Said(command.number))
        if last is not None:
            last()

    @registry.add
    @event_handler(channel="outbox", name="hear")
    def hear(event: Said):
        Note.objects.create(text="heard", number=event.number)

    return registry


@contextmanager
def statements():
    """Collect the verbs of what is sent to the server in the block."""
    found = []
    with CaptureQueriesContext(connection) as queries:
        yield found
    found += [
        " ".join(part.split()[0] for part in each.split(";") if part.strip())
        for each in (query["sql"].partition("; NOTIFY")[0] for query in queries)
        if "NOTIFY" not in each
    ]


def is_as_before():
    """Return whether a transaction has left nothing on the connection."""
    return not connection.in_atomic_block and connection.get_autocommit()


def test_a_message_costs_no_round_trip_but_its_own():
    """Its INSERT and the COMMIT are sent together, and what follows is as ever."""
    after = []
    registry = sending(
        last=lambda: transaction.on_commit(lambda: after.append(numbers()))
    )

    with statements() as said:
        registry.command_bus.dispatch(Work(1, "done"))

    joined = "INSERT COMMIT" if connection.vendor == "postgresql" else "INSERT"
    # Django says that it commits; psycopg has nothing left to do.
    assert [each for each in said if each != "SELECT"] == [
        "BEGIN",
        "INSERT",
        joined,
        "COMMIT",
    ]
    assert after == [[1]]
    assert is_as_before()
    assert (numbers(), len(rows())) == ([1], 1)
    work(registry)
    assert numbers() == [1, 1]


def test_nothing_is_committed_where_a_message_cannot_be_stored(monkeypatch):
    """The command's own rows are undone with it, and the connection is as before. [C01.1]"""
    registry = sending()

    with monkeypatch.context() as patch:
        patch.setattr(channels["outbox"], "alias", "x" * 200)
        if connection.vendor == "sqlite":  # which knows no lengths
            patch.setattr(insertion, "_plain", lambda *_: ("INSERT INTO x", []))
        with pytest.raises(DatabaseError):
            registry.command_bus.dispatch(Work(1, "done"))

    assert is_as_before()
    assert (numbers(), rows()) == ([], [])
    registry.command_bus.dispatch(Work(2, "done"))
    assert (numbers(), len(rows())) == ([2], 1)


def test_nothing_is_committed_where_the_commit_fails():
    """A constraint that is checked at the end is broken: no row, and no message. [C01.1]"""
    on_postgresql()
    after = []

    def break_rule():
        transaction.on_commit(lambda: after.append("committed"))
        LogEntry.objects.create(user_id=10**6, action_flag=CHANGE, object_repr="none")

    registry = sending(last=break_rule)

    with pytest.raises(IntegrityError, match="foreign key"):
        registry.command_bus.dispatch(Work(1, "done"))

    assert (after, numbers(), rows()) == ([], [], [])
    assert is_as_before()
    assert not LogEntry.objects.exists()


def test_a_notification_that_fails_is_logged_and_the_command_has_succeeded(
    monkeypatch, caplog
):
    """It comes after the COMMIT in the same round trip: nothing is undone by it."""
    on_postgresql()
    after = []
    registry = sending(
        last=lambda: transaction.on_commit(lambda: after.append(numbers()))
    )
    too_long = f"{COMMIT}; NOTIFY {NOTIFICATION}, '{'x' * 8001}'"
    monkeypatch.setattr(channel, "commit_and_notify", lambda *_: too_long)
    monkeypatch.setattr(channels["outbox"], "_last_notifications", {})

    registry.command_bus.dispatch(Work(1, "done"))

    assert (after, len(rows())) == ([[1]], 1)
    assert is_as_before()
    assert "could not be notified: ERROR:  payload string too long" in caplog.text


def test_a_worker_is_notified_in_the_round_trip_of_the_commit(monkeypatch):
    """The command's own statement, and the message with all that follows it."""
    on_postgresql()
    registry = sending()
    monkeypatch.setattr(channels["outbox"], "_last_notifications", {})
    with closing(connections.create_connection("default")) as listener:
        listener.cursor().execute(f"LISTEN {NOTIFICATION}")

        with traced() as sent:
            registry.command_bus.dispatch(Work(1, "done"))

        notes = list(listener.connection.notifies(timeout=LIMIT, stop_after=1))
    assert [each.payload for each in notes] == ["outbox"]
    assert len([each for each in sent if "SELECT" not in each]) == 2
    assert "COMMIT; NOTIFY" in sent[-1]


@pytest.mark.parametrize("savepoint", [True, False])
def test_what_is_inside_a_transaction_does_not_end_it(savepoint):
    """The user's own block decides, also one that sets no savepoint. [C01.1]"""
    registry = sending()

    with statements() as said, transaction.atomic():
        note(Work(1, "mine"))
        with transaction.atomic(savepoint=savepoint):
            registry.command_bus.dispatch(Work(2, "done"))
        assert "INSERT COMMIT" not in said
        transaction.set_rollback(True)

    assert (numbers(), rows()) == ([], [])
    assert "INSERT COMMIT" not in said
    assert said[-1] == "ROLLBACK"


def test_a_transaction_without_autocommit_is_the_users():
    """Who has turned it off commits, or does not; SQLite's driver does that itself. [C01.1]"""
    on_a_server()
    registry = sending()
    transaction.set_autocommit(False)
    try:
        registry.command_bus.dispatch(Work(1, "done"))
        assert len(rows()) == 1
        transaction.rollback()
        assert (numbers(), rows()) == ([], [])
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_nothing_is_committed_before_the_outermost_command():
    """An inner command's messages wait for the outer one, which may still fail. [C01.1]"""
    inner = sending()

    @inner.add
    @command_handler(name="outer")
    def outer(command: Outer, bus: CommandBus):
        bus.dispatch(Work(1, "done"))
        if command.fails:
            raise LookupError

    with statements() as said, pytest.raises(LookupError):
        inner.command_bus.dispatch(Outer(fails=True))
    assert "INSERT COMMIT" not in said
    assert (numbers(), rows()) == ([], [])

    inner.command_bus.dispatch(Outer(fails=False))
    assert (numbers(), len(rows())) == ([1], 1)


@dataclass(frozen=True)
class Outer:
    """A command that sends the other one."""

    fails: bool


def test_a_worker_settles_before_it_commits():
    """What a handler sends is stored in the transaction that deletes its message. [C02.1]"""
    registry = Registry()

    @registry.add
    @command_handler(name="first", channel="outbox")
    def first(command: Work, events: EventBus):
        note(command)
        events.publish(Said(command.number))

    @registry.add
    @event_handler(channel="outbox", name="hear")
    def hear(event: Said):
        Note.objects.create(text="heard", number=event.number)

    registry.command_bus.dispatch(Work(1, "done"))

    with statements() as said:
        work(registry)

    assert numbers() == [1, 1]
    assert "INSERT COMMIT" not in said


@pytest.mark.parametrize("count", [2, 1200])
def test_several_messages_are_one_write_as_well(count):
    """As many as one statement takes are committed with it; of more the last is not."""

    def say_more():
        for number in range(2, count + 1):
            registry.event_bus.publish(Said(number))

    registry = sending(last=say_more)

    with statements() as said:
        registry.command_bus.dispatch(Work(1, "done"))

    assert len(rows()) == count
    assert ("INSERT COMMIT" in said) == (
        connection.vendor == "postgresql" and count == 2
    )


def test_without_a_transaction_the_worker_is_woken_for_what_is_there():
    """The notification follows the row that it is for."""
    on_postgresql()
    registry = registry_of(note)
    channels["outbox"]._last_notifications.clear()

    with CaptureQueriesContext(connection) as queries:
        registry.command_bus.dispatch(Work(1, "later"))

    insert, notification = [each["sql"] for each in queries]
    assert insert.startswith("INSERT")
    assert "NOTIFY" in notification


def test_parameters_that_the_server_binds_are_sent_alone():
    """Then a statement is one statement, and the driver commits."""
    on_postgresql()
    there = connection.settings_dict["OPTIONS"]
    registry = sending()
    try:
        connection.settings_dict["OPTIONS"] = {**there, "server_side_binding": True}
        connection.close()
        with statements() as said:
            registry.command_bus.dispatch(Work(1, "done"))
    finally:
        connection.settings_dict["OPTIONS"] = there
        connection.close()

    assert "INSERT COMMIT" not in said
    assert (numbers(), len(rows())) == ([1], 1)


class Talkative(OutboxChannel):
    """A channel that does something of its own after it has stored messages."""

    def write(self, connection, entries):
        """Store them, and a row that says so."""
        super().write(connection, entries)
        Note.objects.create(text="stored", number=len(entries))


def test_what_follows_in_a_channel_of_ones_own_is_in_the_transaction():
    """Nothing is committed before it: it fails, and nothing was stored. [C01.1]"""
    backend = f"{Talkative.__module__}.{Talkative.__qualname__}"
    registry = sending()
    with (
        override_settings(DJANGO_CQRS={"CHANNELS": {"outbox": {"BACKEND": backend}}}),
        statements() as said,
    ):
        registry.command_bus.dispatch(Work(1, "done"))

    assert "INSERT COMMIT" not in said
    assert numbers() == [1, 1]


def test_what_follows_in_a_wrapper_is_in_the_transaction():
    """Whoever wraps statements may send one more after each. [C01.1]"""
    registry = sending()

    def count(execute, sql, params, many, context):
        return execute(sql, params, many, context)

    with connection.execute_wrapper(count), statements() as said:
        registry.command_bus.dispatch(Work(1, "done"))

    assert "INSERT COMMIT" not in said
    assert (numbers(), len(rows())) == ([1], 1)


@pytest.mark.parametrize(("size", "asks_inside"), [(7, False), (1000, True)])
def test_what_takes_several_statements_is_not_taken_for_committed(
    monkeypatch, size, asks_inside
):
    """Whether a worker is still awake is asked when the messages are there for it."""
    on_postgresql()
    monkeypatch.setattr(insertion, "_rows_per_statement", lambda connection: size)
    asked = []
    monkeypatch.setattr(
        OutboxChannel,
        "_is_quiet",
        lambda self, each: asked.append(each.in_atomic_block) or True,
    )
    registry = Registry()

    @registry.add
    @command_handler(name="do")
    def do(command: Work, events: EventBus):
        for number in range(20):
            events.publish(Said(number))

    @registry.add
    @event_handler(channel="outbox", name="hear")
    def hear(event: Said): ...

    registry.command_bus.dispatch(Work(1, "done"))

    assert len(rows()) == 20
    # The first time, whether to notify in the same round trip.
    assert asked == [True, asks_inside]
