"""Buses of one's own: instant retries, and whom they leave alone."""

import logging
import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass

import pytest
from asgiref.sync import async_to_sync
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.models import F
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from django_cqrs import (
    DEADLOCKS,
    CommandBus,
    EventBus,
    InstantRetry,
    Message,
    QueryBus,
    Registry,
    command_bus,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.channels import channels
from django_cqrs.exceptions import NoHandlerFound
from django_cqrs.interception import before, pointcut
from django_cqrs.retries import Transient
from tests.limits import LIMIT
from tests.support import registry_of
from tests.testapp import handlers as project
from tests.testapp.messages import FindTickets, OpenTicket
from tests.testapp.models import Note

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]
# Where nothing depends on whose transaction it is, the test's own is quicker.
in_a_block = pytest.mark.django_db(databases=["default", "other"])


@message("buses.pay")
@dataclass(frozen=True)
class Pay:
    text: str = "paid"


@message("buses.paid")
@dataclass(frozen=True)
class Paid:
    text: str = "event"


class Refused(Exception):
    """What a handler here raises on purpose."""


class RefusedAgain(Refused):
    """A subclass of it."""


class Handler:
    """A handler that fails so many times, and counts its calls."""

    def __init__(self, failures, error=Refused, **policies):
        self.calls = []
        remaining = iter([True] * failures)

        @command_handler(**policies)
        def handle(command: Pay, message: Message):
            self.calls.append(message)
            Note.objects.create(text=f"{command.text} {len(self.calls)}")
            if next(remaining, False):
                raise error
            return len(self.calls)

        self.handle = handle


def bus_of(handler, retries=2, on=Refused, *others):
    return CommandBus(
        instant_retry=InstantRetry(retries, on=on),
        registry=registry_of(handler.handle, *others),
    )


def texts():
    return sorted(Note.objects.values_list("text", flat=True))


def transactional(queries):
    words = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "SAVEPOINT TO")
    found = [query["sql"].split()[0].rstrip(";") for query in queries]
    return [word for word in found if word in words]


# B14.1: how often -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "calls"), [(0, 1), (1, 2), (2, 3)], ids=["none", "one", "two"]
)
def test_a_failed_attempt_is_made_again(failures, calls):
    """Until one succeeds: its result is the command's, its writes alone are kept. [B14.1]"""
    handler = Handler(failures)

    assert bus_of(handler, 2).dispatch(Pay()) == calls
    assert texts() == [f"paid {calls}"]


@in_a_block
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_at_most_one_more_call_than_retries(retries):
    """Then the last attempt's exception reaches the caller, and nothing stays. [B14.1]"""
    errors = [Refused(number) for number in range(9)]
    left = iter(errors)

    @command_handler
    def handle(command: Pay):
        Note.objects.create(text="never")
        raise next(left)

    bus = CommandBus(
        instant_retry=InstantRetry(retries, on=Refused), registry=registry_of(handle)
    )
    with pytest.raises(Refused) as caught:
        bus.dispatch(Pay())

    assert caught.value is errors[retries]
    assert caught.value.__context__ is None
    assert texts() == []


@in_a_block
@pytest.mark.parametrize(
    ("on", "error", "calls"),
    [
        (Refused, Refused, 3),
        (Refused, RefusedAgain, 3),
        (RefusedAgain, Refused, 1),
        ((KeyError, Refused), Refused, 3),
        ((DEADLOCKS, Refused), Refused, 3),
        ((DEADLOCKS, Refused), OperationalError(1213, "Deadlock found"), 3),
        ((DEADLOCKS, Refused), OperationalError(2006, "has gone away"), 1),
        (DEADLOCKS, Refused, 1),
        (Exception, KeyError, 3),
        (Exception, KeyboardInterrupt, 1),
        (Exception, GeneratorExit, 1),
    ],
)
def test_only_the_named_exceptions_are_retried(on, error, calls):
    """Their subclasses included; any other ends it at once. [B14.1]"""
    handler = Handler(9, error)
    kind = error if isinstance(error, type) else type(error)

    with pytest.raises(kind):
        bus_of(handler, 2, on).dispatch(Pay())

    assert len(handler.calls) == calls


def test_each_attempt_has_a_fresh_transaction():
    """The failed one is rolled back before the next begins. [B14.1]"""
    handler = Handler(1)
    with CaptureQueriesContext(connection) as captured:
        bus_of(handler).dispatch(Pay())

    assert transactional(captured) == ["BEGIN", "ROLLBACK", "BEGIN", "COMMIT"]


@in_a_block
def test_all_attempts_handle_one_message():
    """Its ids are the same each time. [B14.1]"""
    handler = Handler(2)
    bus_of(handler, 2).dispatch(Pay())

    assert len({message.message_id for message in handler.calls}) == 1


def test_what_a_failed_attempt_sent_is_gone(settings):
    """Messages, on_commit callbacks and what event handlers wrote. [B14.1]"""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "default": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
        }
    }
    committed, fails = [], iter([True, False])

    @command_handler
    def handle(command: Pay, events: EventBus):
        events.publish(Paid())
        transaction.on_commit(lambda: committed.append(1))
        if next(fails):
            raise Refused

    @event_handler
    def at_once(event: Paid):
        Note.objects.create(text=event.text)

    @event_handler(channel=True)
    def later(event: Paid): ...

    registry = registry_of(handle, at_once, later)
    bus = CommandBus(instant_retry=InstantRetry(1, on=Refused), registry=registry)
    bus.dispatch(Pay())

    assert texts() == ["event"]
    assert committed == [1]
    assert len(channels["default"].waiting()) == 1


@in_a_block
def test_a_retry_is_logged(caplog):
    """With the handler, the kind of exception and the message's id, no payload. [B14.1]"""
    handler = Handler(2, Refused("secret"))
    with caplog.at_level(logging.WARNING, "django_cqrs"):
        bus_of(handler, 3).dispatch(Pay("secret"))

    name = f"{__name__}.handle"
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} failed with Refused and is retried (1 of 3)",
        f"{name} failed with Refused and is retried (2 of 3)",
    ]
    message_id = str(handler.calls[0].message_id)
    assert {record.cqrs_message_id for record in caplog.records} == {message_id}


@pytest.mark.parametrize("atomic", [True, False])
def test_nested_dispatches_do_not_multiply_attempts(atomic):
    """A command inside an attempt is not retried itself: the outermost is. [B14.1]"""
    calls = Counter()

    @command_handler(atomic=atomic)
    def outer(command: Pay):
        calls["outer"] += 1
        bus.dispatch(route="middle")

    @command_handler("middle", atomic=False)
    def middle(events: EventBus):
        calls["middle"] += 1
        events.publish(Paid())

    @event_handler
    def on_paid(event: Paid):
        calls["event"] += 1
        bus.dispatch(route="inner")

    @command_handler("inner")
    def inner():
        calls["inner"] += 1
        raise Refused

    bus = CommandBus(
        instant_retry=InstantRetry(2, on=Refused),
        registry=registry_of(outer, middle, on_paid, inner),
    )
    with pytest.raises(Refused):
        bus.dispatch(Pay())

    assert calls == {"outer": 3, "middle": 3, "event": 3, "inner": 3}


def test_a_command_after_a_retried_one_is_retried_as_well():
    """Attempts are counted per command, not per bus. [B14.1]"""
    handler = Handler(4)
    bus = bus_of(handler, 1)

    for _ in range(2):
        with pytest.raises(Refused):
            bus.dispatch(Pay())
    assert bus.dispatch(Pay()) == 5


@pytest.mark.parametrize("around", ["atomic", "command"])
def test_nothing_is_retried_inside_a_transaction(around):
    """Whose transaction it is has to begin anew, not the bus in its middle. [B14.1]"""
    handler = Handler(9)
    bus = bus_of(handler)
    global_bus = bus.registry.command_bus

    @command_handler("outer")
    def outer():
        bus.dispatch(Pay())

    bus.registry.add(outer)
    if around == "atomic":
        with pytest.raises(Refused), transaction.atomic():
            bus.dispatch(Pay())
    else:
        with pytest.raises(Refused):
            global_bus.dispatch(route="outer")

    assert len(handler.calls) == 1


def test_a_transaction_on_another_database_does_not_count():
    """What is rolled back there is not what the attempt would begin anew. [B14.1]"""
    handler = Handler(1)

    with transaction.atomic("other"):
        assert bus_of(handler).dispatch(Pay()) == 2


def test_using_says_whose_transaction_counts():
    """The alias of the call is the one that the attempt begins on. [B14.1]"""
    handler = Handler(1)
    bus = bus_of(handler)

    with transaction.atomic("other"), pytest.raises(Refused):
        bus.dispatch(Pay(), using="other")
    assert len(handler.calls) == 1


@pytest.mark.django_db
def test_in_a_test_case_an_attempt_is_a_savepoint():
    """The transaction that a test runs in is nobody's surrounding transaction. [B14.1]"""
    handler = Handler(1)
    with CaptureQueriesContext(connection) as captured:
        assert bus_of(handler).dispatch(Pay()) == 2

    assert transactional(captured) == [
        *("SAVEPOINT", "ROLLBACK", "RELEASE"),
        *("SAVEPOINT", "RELEASE"),
    ]
    assert texts() == ["paid 2"]


class InstantRetryInATestCase(TestCase):
    def test_in_a_test_case_an_attempt_is_a_savepoint(self):
        """The same in django.test.TestCase; a block inside it counts as any. [B14.1]"""
        handler = Handler(1)
        assert bus_of(handler).dispatch(Pay()) == 2
        assert texts() == ["paid 2"]

        handler = Handler(9)
        with pytest.raises(Refused), transaction.atomic():
            bus_of(handler).dispatch(Pay())
        assert len(handler.calls) == 1


def test_a_handler_without_a_transaction_is_called_again_as_it_is():
    """atomic=False: nothing is rolled back between its attempts. [B14.1]"""
    handler = Handler(1, atomic=False)

    assert bus_of(handler).dispatch(Pay()) == 2
    assert texts() == ["paid 1", "paid 2"]


def test_a_command_for_a_channel_is_sent_once(settings):
    """What the bus retries is what it does itself; a worker has its own policy. [B14.1]"""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "default": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
        }
    }
    handler = Handler(1, channel=True)
    bus_of(handler).dispatch(Pay())

    assert handler.calls == []
    with pytest.raises(Refused):
        channels["default"].run()
    assert len(handler.calls) == 1


def test_the_async_twin_retries_as_well():
    """All attempts in one hop. [B14.1]"""
    handler = Handler(2)

    assert async_to_sync(bus_of(handler).adispatch)(Pay()) == 3


@in_a_block
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"retries": -1},
            ValueError,
            "InstantRetry takes the number of retries, not -1.",
        ),
        (
            {"retries": 1.5},
            ValueError,
            "InstantRetry takes the number of retries, not 1.5.",
        ),
        (
            {"retries": True},
            ValueError,
            "InstantRetry takes the number of retries, not True.",
        ),
        (
            {"on": "deadlocks"},
            TypeError,
            "InstantRetry(on=...) takes exception classes and DEADLOCKS, one or a tuple of them, not 'deadlocks'.",
        ),
        (
            {"on": (Refused, KeyboardInterrupt)},
            TypeError,
            f"InstantRetry(on=...) takes exception classes and DEADLOCKS, one or a tuple of them, not {(Refused, KeyboardInterrupt)!r}.",
        ),
        (
            {"on": Refused()},
            TypeError,
            "InstantRetry(on=...) takes exception classes and DEADLOCKS, one or a tuple of them, not Refused().",
        ),
        (
            {"on": ()},
            TypeError,
            "InstantRetry(on=...) takes exception classes and DEADLOCKS, one or a tuple of them, not ().",
        ),
    ],
)
def test_a_policy_that_means_nothing_is_refused(arguments, error, text):
    """Where it is written. [B14.1]"""
    with pytest.raises(error) as caught:
        InstantRetry(**arguments)

    assert str(caught.value) == text


# B14.1: deadlocks -------------------------------------------------------------------


class PsycopgError(Exception):
    def __init__(self, sqlstate):
        self.sqlstate = sqlstate


class Psycopg2Error(Exception):
    def __init__(self, pgcode):
        self.pgcode = pgcode


class SqliteError(Exception):
    def __init__(self, sqlite_errorcode):
        self.sqlite_errorcode = sqlite_errorcode


def caused(error, cause):
    error.__cause__ = cause
    return error


@in_a_block
@pytest.mark.parametrize(
    ("error", "is_deadlock"),
    [
        (caused(OperationalError("deadlock detected"), PsycopgError("40P01")), True),
        (caused(OperationalError("serialize"), PsycopgError("40001")), True),
        (caused(OperationalError("deadlock"), Psycopg2Error("40P01")), True),
        (caused(OperationalError("no lock"), PsycopgError("55P03")), False),
        (caused(OperationalError("gone"), PsycopgError(None)), False),
        (caused(IntegrityError("unique"), PsycopgError("23505")), False),
        (OperationalError(1213, "Deadlock found when trying to get lock"), True),
        (OperationalError(1205, "Lock wait timeout exceeded"), True),
        (
            caused(OperationalError(1205, "Lock wait timeout"), PsycopgError("HY000")),
            True,
        ),
        (
            caused(OperationalError(1020, "Record has changed"), PsycopgError("HY000")),
            True,
        ),
        (caused(OperationalError("locked: snapshot"), SqliteError(517)), True),
        (caused(OperationalError("locked: busy"), SqliteError(5)), False),
        (OperationalError(2006, "Server has gone away"), False),
        (IntegrityError(1213, "not of this class"), False),
        (DatabaseError(1213), False),
        (OperationalError("database is locked"), False),
        (OperationalError(), False),
        (PsycopgError("40P01"), False),
        (Refused(1213), False),
    ],
    ids=repr,
)
def test_deadlocks_are_told_by_the_servers_code(error, is_deadlock):
    """
    SQLSTATE 40001 and 40P01, MySQL's 1213, 1205 and 1020, SQLite's busy snapshot.

    A driver of MySQL may tell a state beside the number. Nothing is told by its text. [B14.1]
    """
    assert DEADLOCKS.includes(error) is is_deadlock
    assert InstantRetry(on=DEADLOCKS).is_worth(error) is is_deadlock


@in_a_block
def test_codes_of_ones_own_can_be_named():
    """As a Transient, such as the lock that NOWAIT does not get. [B14.1]"""
    not_available = Transient(sqlstates=frozenset({"55P03"}), mysql_codes=frozenset())
    error = caused(OperationalError("no lock"), PsycopgError("55P03"))

    assert InstantRetry(on=(DEADLOCKS, not_available)).is_worth(error)
    assert repr(not_available) == "<Transient 55P03>"
    assert repr(DEADLOCKS) == "<Transient 40001 40P01 1020 1205 1213 517>"


if connection.vendor == "sqlite":

    def test_a_snapshot_that_is_out_of_date_is_healed_by_another_attempt():
        """SQLite refuses at once who has read, and writes after somebody else has."""
        path = connection.settings_dict["NAME"]
        errors = []
        reader = sqlite3.connect(path, isolation_level=None)
        writer = sqlite3.connect(path, isolation_level=None)
        try:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("CREATE TABLE snapshot (n INTEGER)")
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM snapshot").fetchall()
            writer.execute("INSERT INTO snapshot VALUES (1)")
            try:
                reader.execute("INSERT INTO snapshot VALUES (2)")
            except sqlite3.OperationalError as error:
                errors.append(caused(OperationalError(*error.args), error))
            reader.execute("ROLLBACK")
            reader.execute("INSERT INTO snapshot VALUES (2)")
        finally:
            reader.close()
            writer.execute("DROP TABLE snapshot")
            writer.execute("PRAGMA journal_mode = DELETE")
            writer.close()

        assert [str(error) for error in errors] == ["database is locked"]
        assert DEADLOCKS.includes(errors[0])

    def test_a_locked_sqlite_is_no_deadlock():
        """Its writers wait in turn; who waited in vain has waited long enough. [B14.1]"""
        handler = Handler(0)
        path = connection.settings_dict["NAME"]
        writer = sqlite3.connect(path, isolation_level=None)
        try:
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA busy_timeout = 0")
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(OperationalError) as caught:
                bus_of(handler, 2, DEADLOCKS).dispatch(Pay())
        finally:
            writer.close()
            connection.close()

        assert str(caught.value) == "database is locked"
        assert not DEADLOCKS.includes(caught.value)
        assert handler.calls == []

else:

    @dataclass(frozen=True)
    class Move:
        first: int
        second: int

    class Movers:
        """Two threads that lock two rows in opposite order, so that one is killed."""

        def __init__(self, bus_of_registry):
            self.calls = Counter()
            self.errors = []
            self.rows = [Note.objects.create(text=each).pk for each in "ab"]
            self.is_one_done = threading.Event()
            meeting = threading.Barrier(2, timeout=LIMIT)

            @command_handler
            def move(command: Move):
                self.calls[command] += 1
                if self.calls[command] > 1:
                    # PostgreSQL gives a row to whoever asks first after a rollback,
                    # not to whoever has waited for it: they might meet once more.
                    self.is_one_done.wait(LIMIT)
                Note.objects.filter(pk=command.first).update(number=F("number") - 1)
                if self.calls[command] == 1:
                    meeting.wait()  # each has its first row and wants the other's
                Note.objects.filter(pk=command.second).update(number=F("number") + 3)

            self.bus = bus_of_registry(registry_of(move))

        def run(self):
            one, two = self.rows
            threads = [
                threading.Thread(target=self._send, args=[command])
                for command in (Move(one, two), Move(two, one))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return list(Note.objects.order_by("pk").values_list("number", flat=True))

        def _send(self, command):
            try:
                self.bus.dispatch(command)
            except OperationalError as error:
                self.errors.append(error)
            finally:
                self.is_one_done.set()
                connections.close_all()

    def test_a_real_deadlock_fails_one_of_two_commands():
        """Without a retry the server's victim is lost, and nothing of it is written. [B14.1]"""
        movers = Movers(lambda registry: registry.command_bus)
        numbers = movers.run()

        (error,) = movers.errors
        assert isinstance(error, OperationalError)
        assert DEADLOCKS.includes(error)
        assert sorted(numbers) == [-1, 3]
        assert sorted(movers.calls.values()) == [1, 1]

    def test_a_retry_heals_a_real_deadlock():
        """The victim begins anew, in a fresh transaction, and both are done. [B14.1]"""
        movers = Movers(
            lambda registry: CommandBus(
                instant_retry=InstantRetry(3, on=DEADLOCKS), registry=registry
            )
        )
        numbers = movers.run()

        assert movers.errors == []
        assert numbers == [2, 2]
        assert sorted(movers.calls.values()) == [1, 2]


# B14.2: whom it leaves alone ----------------------------------------------------------


@in_a_block
def test_the_global_bus_is_untouched():
    """A bus of one's own changes nothing for the same handler on another bus. [B14.2]"""
    handler = Handler(9)
    bus = bus_of(handler)

    with pytest.raises(Refused):
        bus.registry.command_bus.dispatch(Pay())
    assert len(handler.calls) == 1

    with pytest.raises(Refused):
        bus.dispatch(Pay())
    assert len(handler.calls) == 4


@in_a_block
def test_a_bus_of_ones_own_reaches_the_projects_handlers():
    """Those that the global buses reach, unless it is given another registry. [B14.2]"""
    bus = CommandBus(instant_retry=InstantRetry(on=DEADLOCKS))
    project.seen.clear()

    bus.dispatch(OpenTicket("by its own bus"))

    assert project.seen == [OpenTicket("by its own bus")]
    assert QueryBus().ask(FindTickets("query")) == ["query"]
    project.seen.clear()
    EventBus().publish(Paid())
    with pytest.raises(NoHandlerFound):
        CommandBus(registry=Registry()).dispatch(OpenTicket())
    with pytest.raises(NoHandlerFound):
        bus.dispatch(Pay())


@in_a_block
def test_it_sees_what_is_registered_later():
    """As the registry's own buses do. [B14.2]"""
    registry = Registry()
    bus = CommandBus(registry=registry)
    with pytest.raises(NoHandlerFound):
        bus.dispatch(Pay())

    registry.add(Handler(0).handle)
    assert bus.dispatch(Pay()) == 1


@in_a_block
def test_a_handler_is_given_the_registrys_bus():
    """A parameter CommandBus is the global bus, through whichever bus it was sent. [B14.2]"""
    given = []

    @command_handler
    def handle(command: Pay, commands: CommandBus):
        given.append(commands)

    registry = registry_of(handle)
    CommandBus(registry=registry).dispatch(Pay())

    assert given == [registry.command_bus]


# B14.3: interceptors of one bus --------------------------------------------------------


@in_a_block
def test_an_interceptor_may_be_for_one_bus_alone():
    """Aimed at the instance it stands around what is sent through that one. [B14.3]"""
    trace = []
    handler = Handler(0)
    bus = bus_of(handler)

    @before(pointcut.bus(bus))
    def look():
        trace.append("own")

    bus.registry.add(look)
    bus.registry.command_bus.dispatch(Pay())
    CommandBus(registry=bus.registry).dispatch(Pay())
    assert trace == []

    bus.dispatch(Pay())
    assert trace == ["own"]


@in_a_block
def test_the_same_for_queries_and_events():
    """Every kind of bus may have instances of one's own. [B14.3]"""

    @query_handler
    def answer(query: Pay):
        return trace.append("query")

    @event_handler
    def on_paid(event: Paid):
        trace.append("event")

    trace = []
    registry = registry_of(answer, on_paid)
    queries, events = QueryBus(registry=registry), EventBus(registry=registry)

    @before(pointcut.bus(queries) | pointcut.bus(events))
    def look():
        trace.append("own")

    registry.add(look)
    registry.query_bus.ask(Pay())
    registry.event_bus.publish(Paid())
    assert trace == ["query", "event"]

    trace.clear()
    queries.ask(Pay())
    events.publish(Paid())
    assert trace == ["own", "query", "own", "event"]


@in_a_block
def test_an_interceptor_of_the_global_bus_is_not_for_another():
    """pointcut.bus(command_bus) means that very object. [B14.3]"""
    trace = []

    @before(pointcut.bus(command_bus))
    def look():
        trace.append("global")

    registry = registry_of(Handler(0).handle, look)
    registry.command_bus.dispatch(Pay())

    assert trace == []


@dataclass
class Import:
    rows: list[int]


@dataclass(frozen=True)
class Sealed:
    rows: list[int]


@in_a_block
@pytest.mark.parametrize(
    ("payload", "rows_of"),
    [
        (Import([1, 2, 3]), lambda each: each.rows),
        (Sealed([1, 2, 3]), lambda each: each.rows),
        ([1, 2, 3], lambda each: each),
        ({"rows": [1, 2, 3]}, lambda each: each["rows"]),
        (([1, 2, 3],), lambda each: each[0]),
    ],
    ids=["dataclass", "frozen dataclass", "list", "dict", "tuple"],
)
def test_each_attempt_starts_from_the_message_as_it_was_sent(payload, rows_of):
    """What an attempt has taken out of the payload is there for the next one."""
    registry, seen, written = Registry(), [], []

    @registry.add
    @command_handler("import")
    def take_all(payload: object):
        found = rows_of(payload)
        seen.append(list(found))
        taken = []
        while found:
            taken.append(found.pop())
        if len(seen) < 3:
            raise Refused
        written.extend(taken)

    bus = CommandBus(registry=registry, instant_retry=InstantRetry(3, on=Refused))
    bus.dispatch(payload, route="import")

    assert seen == [[1, 2, 3]] * 3
    assert sorted(written) == [1, 2, 3]
