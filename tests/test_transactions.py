"""Transactions: what commits, what is rolled back, and what is refused."""

import asyncio
import tracemalloc
from dataclasses import dataclass

import pytest
from asgiref.sync import sync_to_async
from django.db import (
    DatabaseError,
    IntegrityError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils.connection import ConnectionDoesNotExist

from django_cqrs import (
    CommandBus,
    EventBus,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.exceptions import (
    BrokenTransaction,
    CQRSError,
    InvalidHandler,
    MessageConversionError,
    NoHandlerFound,
)
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]


@dataclass(frozen=True)
class Write:
    text: str = "outer"


@dataclass(frozen=True)
class WriteInner:
    text: str = "inner"


@dataclass(frozen=True)
class Written:
    text: str = "event"


@dataclass(frozen=True)
class Look:
    text: str = "look"


class Refused(Exception):
    """What a handler here raises on purpose."""


def texts(using="default"):
    return sorted(Note.objects.using(using).values_list("text", flat=True))


def is_atomic(using="default"):
    return connections[using].in_atomic_block


def transactional(queries):
    """Return what BEGIN, COMMIT and their like stand among the queries captured."""
    words = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
    found = [query["sql"].split()[0].rstrip(";") for query in queries]
    return [word for word in found if word in words]


# B12.1 ----------------------------------------------------------------------------


def test_a_command_runs_in_a_transaction():
    """The handler runs inside atomic(); what it wrote is committed when it returns. [B12.1]"""

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)
        return is_atomic(), is_atomic("other")

    bus = registry_of(write).command_bus
    with CaptureQueriesContext(connection) as captured:
        inside = bus.dispatch(Write())

    assert inside == (True, False)
    assert not is_atomic()
    assert transactional(captured) == ["BEGIN", "COMMIT"]
    assert texts() == ["outer"]


def test_an_exception_rolls_back_and_arrives_unchanged():
    """What a handler raises reaches the caller as it is, and nothing stays written. [B12.1]"""
    error = Refused("no")

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)
        raise error

    bus = registry_of(write).command_bus
    with (
        CaptureQueriesContext(connection) as captured,
        pytest.raises(Refused) as caught,
    ):
        bus.dispatch(Write())

    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    assert transactional(captured) == ["BEGIN", "ROLLBACK"]
    assert texts() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_rolls_back_as_well(error):
    """Whatever leaves the handler early, no half of it is committed. [B12.1]"""

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)
        raise error

    with pytest.raises(error):
        registry_of(write).command_bus.dispatch(Write())

    assert texts() == []
    assert not is_atomic()


def test_a_database_error_arrives_unchanged():
    """An IntegrityError that the handler leaves alone reaches the caller as it is. [B12.1]"""
    Note.objects.create(text="first", slug="x")

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)
        Note.objects.create(text="twin", slug="x")

    with pytest.raises(IntegrityError):
        registry_of(write).command_bus.dispatch(Write())

    assert texts() == ["first"]


def test_a_class_handler_runs_in_a_transaction_too():
    """Sent by key, with nothing but the key, a command has its transaction. [B12.1]"""

    @command_handler("write")
    def write():
        Note.objects.create(text="key")
        raise Refused

    with pytest.raises(Refused):
        registry_of(write).command_bus.dispatch(route="write")

    assert texts() == []


def test_an_async_handler_writes_inside_the_transaction():
    """What an async def handler writes is rolled back with its command. [B12.1]"""
    seen = []

    @command_handler
    async def write(command: Write):
        await Note.objects.acreate(text=command.text)
        seen.append(await sync_to_async(is_atomic)())
        await asyncio.sleep(0)
        raise Refused

    with pytest.raises(Refused):
        registry_of(write).command_bus.dispatch(Write())

    assert seen == [True]
    assert texts() == []


def test_a_payload_that_does_not_convert_opens_no_transaction():
    """Bad input raises before BEGIN: nothing is asked of the database. [B12.1]"""

    @command_handler("write")
    def write(command: Write):
        Note.objects.create(text=command.text)

    bus = registry_of(write).command_bus
    with CaptureQueriesContext(connection) as captured:
        with pytest.raises(MessageConversionError):
            bus.dispatch(b'{"text": 1}', route="write", content_type="application/json")
        with pytest.raises(NoHandlerFound):
            bus.dispatch(route="nosuch")

    assert captured.captured_queries == []


# B12.2 ----------------------------------------------------------------------------


def nested(fails=False):
    """Return a registry whose outer command writes, then sends an inner one."""

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        commands.dispatch(WriteInner())
        Note.objects.create(text="after")

    @command_handler
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text)
        if fails:
            raise Refused

    return registry_of(write, write_inner)


def test_a_nested_command_has_a_savepoint():
    """One BEGIN and one COMMIT, and a savepoint for the command inside. [B12.2]"""
    bus = nested().command_bus
    with CaptureQueriesContext(connection) as captured:
        bus.dispatch(Write())

    assert transactional(captured) == ["BEGIN", "SAVEPOINT", "RELEASE", "COMMIT"]
    assert texts() == ["after", "inner", "outer"]


def test_a_nested_failure_that_nobody_catches_undoes_all():
    """The inner command's exception fails the outer one. [B12.2]"""
    with pytest.raises(Refused):
        nested(fails=True).command_bus.dispatch(Write())

    assert texts() == []


def test_a_nested_failure_that_is_caught_undoes_the_inner_alone():
    """Caught: the outer's writes stay, the inner's are gone, the connection is usable. [B12.2]"""

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        with pytest.raises(Refused):
            commands.dispatch(WriteInner())
        Note.objects.create(text="after")
        return texts()

    @command_handler
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text)
        raise Refused

    bus = registry_of(write, write_inner).command_bus
    with CaptureQueriesContext(connection) as captured:
        inside = bus.dispatch(Write())

    assert inside == ["after", "outer"]
    assert texts() == ["after", "outer"]
    assert transactional(captured)[0] == "BEGIN"
    assert transactional(captured)[1:3] == ["SAVEPOINT", "ROLLBACK"]
    assert transactional(captured)[-1] == "COMMIT"


def test_a_nested_database_error_that_is_caught_leaves_the_connection_usable():
    """An IntegrityError of an inner command, caught outside it, breaks nothing. [B12.2]"""
    Note.objects.create(text="first", slug="x")

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        with pytest.raises(IntegrityError):
            commands.dispatch(WriteInner())
        Note.objects.create(text="after")

    @command_handler
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text, slug="x")

    registry_of(write, write_inner).command_bus.dispatch(Write())

    assert texts() == ["after", "first", "outer"]


def test_an_outer_failure_undoes_the_nested_commands_that_succeeded():
    """What an inner command wrote commits only with the outermost one. [B12.2]"""

    @command_handler
    def write(command: Write, commands: CommandBus):
        commands.dispatch(WriteInner())
        raise Refused

    @command_handler
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text)

    with pytest.raises(Refused):
        registry_of(write, write_inner).command_bus.dispatch(Write())

    assert texts() == []


def test_commands_nest_to_any_depth():
    """Each level is a savepoint; what a level in between catches is undone below it. [B12.2]"""

    @command_handler("descend")
    def descend(depth: int, commands: CommandBus):
        Note.objects.create(text=f"level {depth}")
        if depth == 4:
            raise Refused
        try:
            commands.dispatch(depth + 1, route="descend")
        except Refused:
            if depth != 1:
                raise

    registry_of(descend).command_bus.dispatch(0, route="descend")

    assert texts() == ["level 0", "level 1"]


# B12.3 ----------------------------------------------------------------------------


def test_atomic_false_runs_outside_any_transaction_of_the_bus():
    """With atomic=False the handler has no transaction, and what it wrote stays. [B12.3]"""

    @command_handler(atomic=False)
    def write(command: Write):
        Note.objects.create(text=command.text)
        assert not is_atomic()
        raise Refused

    with pytest.raises(Refused):
        registry_of(write).command_bus.dispatch(Write())

    assert texts() == ["outer"]


def test_atomic_false_inside_a_command_opens_no_savepoint():
    """A nested command without a transaction shares its caller's. [B12.3]"""

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        with pytest.raises(Refused):
            commands.dispatch(WriteInner())

    @command_handler(atomic=False)
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text)
        raise Refused

    bus = registry_of(write, write_inner).command_bus
    with CaptureQueriesContext(connection) as captured:
        bus.dispatch(Write())

    assert transactional(captured) == ["BEGIN", "COMMIT"]
    assert texts() == ["inner", "outer"]


def test_using_names_the_database_of_the_transaction():
    """using="other" opens the transaction there, and none on the default. [B12.3]"""

    @command_handler(using="other")
    def write(command: Write):
        Note.objects.using("other").create(text="there")
        Note.objects.create(text="here")
        assert (is_atomic(), is_atomic("other")) == (False, True)
        raise Refused

    with pytest.raises(Refused):
        registry_of(write).command_bus.dispatch(Write())

    assert texts("other") == []
    assert texts() == ["here"]


@pytest.mark.parametrize("declared", [None, "default", "other"])
def test_the_calls_using_stands_before_the_handlers(declared):
    """dispatch(using=...) decides, whatever the handler declares. [B12.3]"""

    @command_handler(using=declared)
    def write(command: Write):
        return is_atomic(), is_atomic("other")

    bus = registry_of(write).command_bus

    assert bus.dispatch(Write(), using="other") == (False, True)
    assert bus.dispatch(Write(), using="default") == (True, False)
    assert bus.dispatch(Write()) == (declared != "other", declared == "other")


def test_an_alias_that_does_not_exist_raises():
    """using= that is not in DATABASES raises before the handler is called. [B12.3]"""
    called = []

    @command_handler
    def write(command: Write):
        called.append(command)

    @command_handler(using="nosuch")
    def write_inner(command: WriteInner):
        called.append(command)

    bus = registry_of(write, write_inner).command_bus
    with pytest.raises(ConnectionDoesNotExist) as caught:
        bus.dispatch(Write(), using="nosuch")
    with pytest.raises(InvalidHandler) as declared:
        bus.dispatch(WriteInner())

    assert str(caught.value) == "The connection 'nosuch' doesn't exist."
    assert str(declared.value) == (
        f"{__name__}.{write_inner.__qualname__} uses the database 'nosuch', which is "
        f"not in DATABASES. The aliases are default, other. (django_cqrs.E011)"
    )
    assert called == []


@pytest.mark.parametrize(
    ("kind", "channel"), [("command", None), ("command", "outbox"), ("query", None)]
)
def test_aliases_that_do_not_exist_take_no_memory(kind, channel):
    """Whoever may choose the alias cannot fill the memory with made-up ones."""

    def take(command: Write) -> None:
        """Nothing to do."""

    if kind == "query":
        send = registry_of(query_handler(take)).query_bus.ask
    else:
        registry = registry_of(command_handler(channel=channel, name="take")(take))
        send = registry.command_bus.dispatch

    def try_some(first, last):
        for number in range(first, last):
            with pytest.raises(ConnectionDoesNotExist):
                send(Write(), using=f"nosuch{number}")

    try_some(0, 100)
    tracemalloc.start()
    try:
        try_some(100, 1_100)
        before, _ = tracemalloc.get_traced_memory()
        try_some(1_100, 3_100)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000


@pytest.mark.parametrize("fails", ["nothing", "outer", "inner"])
def test_two_databases_in_one_command(fails):
    """A nested command on another alias commits on its own, whatever the outer does. [B12.3]"""

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        try:
            commands.dispatch(WriteInner())
        except Refused:
            Note.objects.create(text="caught")
        committed.append((is_atomic("other"), texts("other")))
        if fails == "outer":
            raise Refused

    @command_handler(using="other")
    def write_inner(command: WriteInner):
        Note.objects.using("other").create(text=command.text)
        if fails == "inner":
            raise Refused

    committed = []
    bus = registry_of(write, write_inner).command_bus
    if fails == "outer":
        with pytest.raises(Refused):
            bus.dispatch(Write())
    else:
        bus.dispatch(Write())

    there = [] if fails == "inner" else ["inner"]
    here = {"nothing": ["outer"], "outer": [], "inner": ["caught", "outer"]}
    assert committed == [(False, there)]
    assert texts("other") == there
    assert texts() == here[fails]


def test_the_default_again_inside_another_alias_is_a_savepoint():
    """A command on an alias whose transaction is open already nests in that one. [B12.3]"""

    @command_handler("default")
    def default(depth: int, commands: CommandBus):
        Note.objects.create(text=f"default {depth}")
        if depth:
            raise Refused
        with pytest.raises(Refused):
            commands.dispatch(route="other")

    @command_handler("other", using="other")
    def other(commands: CommandBus):
        Note.objects.using("other").create(text="other")
        commands.dispatch(1, route="default")

    bus = registry_of(default, other).command_bus
    with CaptureQueriesContext(connection) as captured:
        bus.dispatch(0, route="default")

    assert transactional(captured)[:2] == ["BEGIN", "SAVEPOINT"]
    assert transactional(captured)[-1] == "COMMIT"
    assert texts() == ["default 0"]
    assert texts("other") == []


# B12.4 ----------------------------------------------------------------------------


def test_on_commit_fires_once_after_the_outermost_commit():
    """Callbacks of outer and inner commands run once each, when all is committed. [B12.4]"""
    fired = []

    def note(name):
        fired.append((name, is_atomic(), texts()))

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        transaction.on_commit(lambda: note("outer"))
        commands.dispatch(WriteInner())
        assert fired == []

    @command_handler
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text)
        transaction.on_commit(lambda: note("inner"))

    registry_of(write, write_inner).command_bus.dispatch(Write())

    assert fired == [
        ("outer", False, ["inner", "outer"]),
        ("inner", False, ["inner", "outer"]),
    ]


def test_on_commit_of_a_failed_nested_command_does_not_fire():
    """What a rolled-back command wanted to do after the commit is forgotten. [B12.4]"""
    fired = []

    @command_handler
    def write(command: Write, commands: CommandBus):
        with pytest.raises(Refused):
            commands.dispatch(WriteInner())
        transaction.on_commit(lambda: fired.append("outer"))

    @command_handler
    def write_inner(command: WriteInner):
        transaction.on_commit(lambda: fired.append("inner"))
        raise Refused

    registry_of(write, write_inner).command_bus.dispatch(Write())

    assert fired == ["outer"]


def test_a_command_sent_after_the_commit_has_a_transaction_of_its_own():
    """An on_commit callback may send commands: they begin and commit anew. [B12.4]"""

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        transaction.on_commit(lambda: commands.dispatch(WriteInner()))

    @command_handler
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text)

    bus = registry_of(write, write_inner).command_bus
    with CaptureQueriesContext(connection) as captured:
        bus.dispatch(Write())

    assert transactional(captured) == ["BEGIN", "COMMIT", "BEGIN", "COMMIT"]
    assert texts() == ["inner", "outer"]


# B12.5 ----------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_inside_the_callers_own_atomic_a_command_nests(fails):
    """In the caller's transaction a command is a savepoint, and ends with it. [B12.5]"""
    bus = nested().command_bus

    def run():
        with transaction.atomic():
            bus.dispatch(Write())
            assert is_atomic()
            if fails:
                raise Refused

    with CaptureQueriesContext(connection) as captured:
        if fails:
            with pytest.raises(Refused):
                run()
        else:
            run()

    inner = ["SAVEPOINT", "SAVEPOINT", "RELEASE", "RELEASE"]
    end = "ROLLBACK" if fails else "COMMIT"
    assert transactional(captured) == ["BEGIN", *inner, end]
    assert texts() == ([] if fails else ["after", "inner", "outer"])


def test_a_failure_caught_in_the_callers_own_atomic_undoes_the_command_alone():
    """A caller that catches goes on with a usable transaction. [B12.5]"""
    bus = nested(fails=True).command_bus
    with transaction.atomic():
        Note.objects.create(text="caller")
        with pytest.raises(Refused):
            bus.dispatch(Write())
        Note.objects.create(text="caller after")

    assert texts() == ["caller", "caller after"]


registry = Registry()


@registry.add
@command_handler("note.write")
def write_note(text: str):
    Note.objects.create(text=text)
    if text == "bad":
        raise Refused


def write_view(request, text):
    before = is_atomic()
    registry.command_bus.dispatch("good", route="note.write")
    if text == "caught":
        try:
            registry.command_bus.dispatch("bad", route="note.write")
        except Refused:
            Note.objects.create(text="view")
    else:
        registry.command_bus.dispatch(text, route="note.write")
    return HttpResponse(f"atomic before: {before}")


urlpatterns = [path("write/<text>/", write_view)]


@pytest.mark.parametrize("atomic_requests", [False, True])
@pytest.mark.parametrize("text", ["fine", "bad", "caught"])
def test_under_atomic_requests_a_command_nests(
    settings, monkeypatch, atomic_requests, text
):
    """With ATOMIC_REQUESTS the request is the transaction; without, each command is. [B12.5]"""
    settings.ROOT_URLCONF = __name__
    monkeypatch.setitem(
        connections.settings["default"], "ATOMIC_REQUESTS", atomic_requests
    )

    response = Client(raise_request_exception=False).get(f"/write/{text}/")

    expected = {
        "fine": ["fine", "good"],
        "bad": [] if atomic_requests else ["good"],
        "caught": ["good", "view"],
    }
    assert texts() == expected[text]
    assert response.status_code == (500 if text == "bad" else 200)
    if text != "bad":
        assert response.content.decode() == f"atomic before: {atomic_requests}"


# B12.6 ----------------------------------------------------------------------------


def test_event_handlers_are_inside_the_commands_transaction():
    """Handlers of an event that a command publishes write into its transaction. [B12.6]"""

    @command_handler
    def write(command: Write, events: EventBus):
        Note.objects.create(text=command.text)
        events.publish(Written())
        raise Refused

    @event_handler
    def on_written(event: Written):
        Note.objects.create(text=event.text)
        seen.append((is_atomic(), texts()))

    seen = []
    bus = registry_of(write, on_written).command_bus
    with CaptureQueriesContext(connection) as captured, pytest.raises(Refused):
        bus.dispatch(Write())

    assert seen == [(True, ["event", "outer"])]
    assert transactional(captured) == ["BEGIN", "ROLLBACK"]
    assert texts() == []


def test_an_event_outside_a_command_opens_no_transaction():
    """publish() outside a command: each handler writes as it would by itself. [B12.6]"""

    @event_handler(priority=1)
    def first(event: Written):
        Note.objects.create(text="first")
        assert not is_atomic()

    @event_handler
    def second(event: Written):
        raise Refused

    with pytest.raises(Refused):
        registry_of(first, second).event_bus.publish(Written())

    assert texts() == ["first"]


def test_a_query_opens_no_transaction():
    """A query handler runs in none of its own, and in its caller's where there is one. [B12.6]"""

    @query_handler
    def look(query: Look):
        return is_atomic(), texts()

    @command_handler
    def write(command: Write, queries: QueryBus):
        Note.objects.create(text=command.text)
        return queries.ask(Look())

    registry = registry_of(look, write)
    with CaptureQueriesContext(connection) as captured:
        outside = registry.query_bus.ask(Look())

    assert outside == (False, [])
    assert transactional(captured) == []
    assert registry.command_bus.dispatch(Write()) == (True, ["outer"])


def test_a_query_that_is_asked_in_vain_breaks_nothing():
    """A query that raises and is caught leaves its command's transaction usable. [B12.6]"""

    @command_handler
    def write(command: Write, queries: QueryBus):
        Note.objects.create(text=command.text)
        with pytest.raises(Note.DoesNotExist):
            queries.ask(Look())
        Note.objects.create(text="after")

    @query_handler
    def look(query: Look):
        return Note.objects.get(text="nosuch")

    registry_of(write, look).command_bus.dispatch(Write())

    assert texts() == ["after", "outer"]


# A transaction that is broken ------------------------------------------------------


def test_a_transaction_broken_before_is_refused():
    """A command is not called where its transaction can only be rolled back. [B12]"""
    called = []

    @command_handler
    def write(command: Write):
        called.append(command)

    Note.objects.create(text="first", slug="x")
    bus = registry_of(write).command_bus
    with transaction.atomic():
        with pytest.raises(IntegrityError) as origin:
            Note.objects.create(text="twin", slug="x")
        with pytest.raises(BrokenTransaction) as caught:
            bus.dispatch(Write())
        transaction.set_rollback(True)

    assert str(caught.value) == (
        f"{__name__}.write was not called: the transaction open on 'default' can only "
        "be rolled back, since an earlier database error in it was caught without a "
        "savepoint. Wrap the code that may fail in transaction.atomic()."
    )
    assert caught.value.__cause__ is origin.value
    assert isinstance(caught.value, (CQRSError, TransactionManagementError))
    assert called == []
    assert texts() == ["first"]


BROKEN_INSIDE = (
    "{name} returned, but its transaction on {alias!r} can only be rolled back, so "
    "nothing was saved: a database error in it was caught without a savepoint, or "
    "set_rollback(True) was called. Wrap the code that may fail in "
    "transaction.atomic(); to roll back on purpose, raise an exception."
)


def test_a_transaction_broken_inside_is_an_error():
    """A handler that swallows an IntegrityError fails: nothing of it could be saved. [B12]"""
    origin = []

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)
        try:
            Note.objects.create(text="twin", slug="x")
        except IntegrityError as error:
            origin.append(error)
        return "all is well"

    Note.objects.create(text="first", slug="x")
    with pytest.raises(BrokenTransaction) as caught:
        registry_of(write).command_bus.dispatch(Write())

    name = f"{__name__}.write"
    assert str(caught.value) == BROKEN_INSIDE.format(name=name, alias="default")
    assert caught.value.__cause__ is origin[0]
    assert texts() == ["first"]


def test_an_error_of_an_earlier_transaction_is_not_the_cause():
    """What broke another transaction says nothing of one that is rolled back later."""

    @command_handler
    def write(command: Write):
        transaction.set_rollback(True)

    Note.objects.create(text="first", slug="x")
    with pytest.raises(IntegrityError), transaction.atomic():
        Note.objects.create(text="twin", slug="x")
    with pytest.raises(BrokenTransaction) as caught:
        registry_of(write).command_bus.dispatch(Write())

    assert caught.value.__cause__ is None


def test_a_savepoint_of_the_handlers_own_breaks_nothing():
    """An IntegrityError caught around atomic() leaves the command sound. [B12]"""

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)
        with pytest.raises(IntegrityError), transaction.atomic():
            Note.objects.create(text="twin", slug="x")
        Note.objects.create(text="after")

    Note.objects.create(text="first", slug="x")
    registry_of(write).command_bus.dispatch(Write())

    assert texts() == ["after", "first", "outer"]


def test_a_nested_command_that_broke_its_savepoint_is_an_error_of_its_own():
    """Caught by the outer command, the inner one's broken savepoint is undone. [B12]"""

    @command_handler
    def write(command: Write, commands: CommandBus):
        Note.objects.create(text=command.text)
        with pytest.raises(BrokenTransaction) as caught:
            commands.dispatch(WriteInner())
        Note.objects.create(text="after")
        return str(caught.value)

    @command_handler
    def write_inner(command: WriteInner):
        with pytest.raises(IntegrityError):
            Note.objects.create(text=command.text, slug="x")

    Note.objects.create(text="first", slug="x")
    said = registry_of(write, write_inner).command_bus.dispatch(Write())

    name = f"{__name__}.write_inner"
    assert said == BROKEN_INSIDE.format(name=name, alias="default")
    assert texts() == ["after", "first", "outer"]


def test_a_broken_transaction_of_another_alias_is_no_obstacle():
    """Only the command's own database counts, and the text names it. [B12]"""

    @command_handler(using="other")
    def write(command: Write):
        Note.objects.using("other").create(text=command.text)
        transaction.set_rollback(True, using="other")

    @command_handler
    def write_inner(command: WriteInner):
        Note.objects.create(text=command.text)

    bus = registry_of(write, write_inner).command_bus
    with pytest.raises(BrokenTransaction) as caught:
        bus.dispatch(Write())
    with transaction.atomic(using="other"):
        transaction.set_rollback(True, using="other")
        bus.dispatch(WriteInner())

    name = f"{__name__}.write"
    assert str(caught.value) == BROKEN_INSIDE.format(name=name, alias="other")
    assert caught.value.__cause__ is None
    assert texts("other") == []
    assert texts() == ["inner"]


def test_an_event_handler_that_swallows_a_database_error_fails_the_command():
    """A broken transaction is noticed whoever of the command's handlers broke it. [B12]"""

    @command_handler
    def write(command: Write, events: EventBus):
        Note.objects.create(text=command.text)
        events.publish(Written())

    @event_handler
    def on_written(event: Written):
        with pytest.raises(IntegrityError):
            Note.objects.create(text=event.text, slug="x")

    Note.objects.create(text="first", slug="x")
    with pytest.raises(BrokenTransaction):
        registry_of(write, on_written).command_bus.dispatch(Write())

    assert texts() == ["first"]


def swallow_a_failed_query():
    """Catch an error of a statement that Django does not watch, without a savepoint."""
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT nosuch FROM nosuch")


def test_a_swallowed_error_of_plain_sql_is_no_silent_loss():
    """PostgreSQL ends the whole transaction; the others go on, and so may the command. [B12]"""

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)
        swallow_a_failed_query()
        return "all is well"

    bus = registry_of(write).command_bus
    if connection.vendor == "postgresql":
        with pytest.raises(BrokenTransaction) as caught:
            bus.dispatch(Write())

        name = f"{__name__}.write"
        assert str(caught.value) == BROKEN_INSIDE.format(name=name, alias="default")
        assert texts() == []
    else:
        assert bus.dispatch(Write()) == "all is well"
        assert texts() == ["outer"]


def test_a_transaction_that_plain_sql_broke_before_is_refused():
    """On PostgreSQL a command is not called after an unwatched error either. [B12]"""

    @command_handler
    def write(command: Write):
        Note.objects.create(text=command.text)

    bus = registry_of(write).command_bus
    with transaction.atomic():
        swallow_a_failed_query()
        if connection.vendor == "postgresql":
            with pytest.raises(BrokenTransaction, match="write was not called: "):
                bus.dispatch(Write())
            transaction.set_rollback(True)
        else:
            bus.dispatch(Write())

    assert texts() == ([] if connection.vendor == "postgresql" else ["outer"])
