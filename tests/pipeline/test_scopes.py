"""Bus scopes: when what a command sends is written, and when it is dropped."""

import asyncio
import contextvars
import threading
from dataclasses import dataclass

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import IntegrityError, connections, transaction

from django_cqrs import (
    CommandBus,
    EventBus,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.exceptions import BrokenTransaction
from django_cqrs.messages import current, scope_of
from django_cqrs.pipeline.scopes import send
from tests.limits import LIMIT
from tests.testapp.models import Note

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]


class Outbox:
    """A sink as a channel's sending side is: entries become rows of the connection."""

    def __init__(self):
        self.writes = []
        self.was_atomic = []
        self.lasts = []

    def write_last(self, connection, entries):
        self.lasts.append(list(entries))
        self.write(connection, entries)

    def write(self, connection, entries):
        self.writes.append(list(entries))
        self.was_atomic.append(connection.in_atomic_block)
        Note.objects.using(connection.alias).bulk_create(
            Note(text=entry) for entry in entries
        )


@dataclass(frozen=True)
class Run:
    """A command that does what it carries."""

    steps: object
    fails: bool = False


@dataclass(frozen=True)
class RunElsewhere(Run):
    """The same on the other database."""


class Refused(Exception):
    """What a command here raises on purpose."""


def run(command: Run):
    result = command.steps()
    if command.fails:
        raise Refused
    return result


registry = Registry()
registry.add(command_handler(name="run")(run))


@registry.add
@command_handler(using="other")
def run_elsewhere(command: RunElsewhere):
    return run(command)


def dispatch(steps, *, fails=False):
    """Send a command of these steps, from wherever this is called."""
    return registry.command_bus.dispatch(Run(steps, fails))


def dispatch_elsewhere(steps, *, fails=False):
    return registry.command_bus.dispatch(RunElsewhere(steps, fails))


def undone(steps):
    """Do steps in a block of the user's own that fails and whose failure is caught."""

    @transaction.atomic
    def block():
        steps()
        raise Refused

    with pytest.raises(Refused):
        block()


@pytest.fixture
def outbox():
    return Outbox()


@pytest.fixture
def put(outbox):
    """Send an entry to the outbox as a bus would send a message to a channel."""

    def put(entry, using="default"):
        send(scope_of(current.get()), connections[using], outbox, entry)

    return put


def rows(using="default"):
    return list(Note.objects.using(using).order_by("pk").values_list("text", flat=True))


def test_what_a_command_sends_is_written_in_one_go_at_its_end(put, outbox):
    """Entries wait for the command's end; then one write, inside its transaction."""

    def steps():
        put("1")
        put("2")
        assert outbox.writes == []
        put("3")

    dispatch(steps)

    assert outbox.writes == [["1", "2", "3"]]
    assert outbox.was_atomic == [True]
    assert outbox.lasts == outbox.writes
    assert rows() == ["1", "2", "3"]


def test_a_command_that_sends_nothing_writes_nothing(outbox):
    """An empty buffer is no write."""
    dispatch(lambda: None)

    assert outbox.writes == []


def test_a_failed_command_drops_what_it_sent(put, outbox):
    """Of a command that raises nothing is written, and nothing was."""
    with pytest.raises(Refused):
        dispatch(lambda: put("1"), fails=True)

    assert outbox.writes == []
    assert rows() == []


def test_a_command_that_broke_its_transaction_drops_what_it_sent(put, outbox):
    """A handler that swallows a database error has failed, and so has what it sent."""
    Note.objects.create(text="first", slug="x")

    def steps():
        put("1")
        with pytest.raises(IntegrityError):
            Note.objects.create(text="twin", slug="x")

    with pytest.raises(BrokenTransaction):
        dispatch(steps)

    assert outbox.writes == []
    assert rows() == ["first"]


def test_the_next_command_begins_with_an_empty_buffer(put, outbox):
    """Nothing of a command before, failed or not, is left to be written."""
    with pytest.raises(Refused):
        dispatch(lambda: put("failed"), fails=True)
    dispatch(lambda: put("1"))
    dispatch(lambda: put("2"))

    assert outbox.writes == [["1"], ["2"]]


def test_a_nested_command_hands_over_to_its_parent(put, outbox):
    """Whatever nested commands send is written with the outermost, in its order."""

    def inner():
        put("2")
        dispatch(lambda: put("3"))
        put("4")

    def steps():
        put("1")
        dispatch(inner)
        assert outbox.writes == []
        put("5")

    dispatch(steps)

    assert outbox.writes == [["1", "2", "3", "4", "5"]]
    assert rows() == ["1", "2", "3", "4", "5"]


def test_a_nested_command_that_failed_and_was_caught_drops_its_own_alone(put, outbox):
    """Its entries are gone with its writes; those of its caller are sent."""

    def steps():
        put("1")
        with pytest.raises(Refused):
            dispatch(failing, fails=True)
        put("4")

    def failing():
        put("2")
        dispatch(lambda: put("3"))

    dispatch(steps)

    assert outbox.writes == [["1", "4"]]


def test_an_outer_command_that_fails_drops_what_nested_ones_handed_over(put, outbox):
    """A nested success is sent only if all around it succeeds."""

    def steps():
        put("1")
        dispatch(lambda: put("2"))

    with pytest.raises(Refused):
        dispatch(steps, fails=True)

    assert outbox.writes == []


@pytest.mark.parametrize("savepoint", [True, False])
def test_inside_an_inner_atomic_it_is_written_at_once(put, outbox, savepoint):
    """Deeper than at the command's entry there is no waiting: it shares that block."""

    def steps():
        put("1")
        with transaction.atomic(savepoint=savepoint):
            put("2")
            assert outbox.writes == [["2"]]
        put("3")

    dispatch(steps)

    assert outbox.writes == [["2"], ["1", "3"]]
    assert rows() == ["2", "1", "3"]


def test_an_inner_atomic_that_failed_and_was_caught_takes_its_entries_along(put):
    """What was sent inside a block of the user's own is undone with that block."""

    def steps():
        put("1")
        undone(lambda: put("2"))
        put("3")

    dispatch(steps)

    assert rows() == ["1", "3"]


def test_a_nested_command_inside_an_inner_atomic_writes_into_that_block(put, outbox):
    """It cannot hand over past a block that may yet be rolled back."""

    def steps():
        put("1")
        undone(lambda: dispatch(two))
        with transaction.atomic():
            dispatch(two)
        put("4")

    def two():
        put("2")
        put("3")

    dispatch(steps)

    assert outbox.writes == [["2", "3"], ["2", "3"], ["1", "4"]]
    assert rows() == ["2", "3", "1", "4"]


def test_outside_any_command_it_is_written_at_once(put, outbox):
    """Without a scope there is nothing to wait for."""
    put("1")
    with transaction.atomic():
        put("2")
        assert outbox.writes == [["1"], ["2"]]

    assert outbox.was_atomic == [False, True]
    assert rows() == ["1", "2"]


def test_inside_the_callers_own_atomic_a_command_writes_at_its_end(put, outbox):
    """A scope is the command's; the block around it decides what becomes of it."""

    def caller():
        dispatch(lambda: put("1"))
        assert outbox.writes == [["1"]]

    undone(caller)

    assert rows() == []


@pytest.mark.parametrize("how", ["event", "query", "command"])
def test_what_has_no_transaction_of_its_own_shares_the_commands_scope(put, outbox, how):
    """Events, queries and atomic=False commands send as the command around them."""

    @command_handler
    def outer(command: str, events: EventBus, queries: QueryBus, commands: CommandBus):
        put("1")
        if how == "event":
            events.publish(2)
        elif how == "query":
            queries.ask(2)
        else:
            commands.dispatch(2)
        assert outbox.writes == []
        put("3")

    @event_handler
    def on_event(event: int):
        put(str(event))

    @query_handler
    def on_query(query: int):
        put(str(query))

    @command_handler(atomic=False)
    def on_command(command: int):
        put(str(command))

    registry = Registry()
    for each in (outer, on_event, on_query, on_command):
        registry.add(each)
    registry.command_bus.dispatch("go")

    assert outbox.writes == [["1", "2", "3"]]


def test_a_command_without_a_transaction_has_no_scope(put, outbox):
    """With atomic=False, outside any command, entries are written at once."""

    @command_handler("go", atomic=False)
    def go():
        put("1")
        assert outbox.writes == [["1"]]
        raise Refused

    registry = Registry()
    registry.add(go)
    with pytest.raises(Refused):
        registry.command_bus.dispatch(route="go")

    assert rows() == ["1"]


def test_what_is_sent_for_another_database_is_written_there_at_once(put, outbox):
    """A scope buffers for its own connection: no other one commits with it."""

    def steps():
        put("1", using="other")
        assert outbox.writes == [["1"]]
        put("2")

    with pytest.raises(Refused):
        dispatch(steps, fails=True)

    assert outbox.writes == [["1"]]
    assert rows("other") == ["1"]
    assert rows() == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_nested_command_on_another_database_writes_with_its_own_commit(
    put, outbox, fails
):
    """It commits on its own, so it hands nothing over, and takes nothing along."""

    def steps():
        put("1")
        dispatch_elsewhere(lambda: put("2", using="other"))
        assert outbox.writes == [["2"]]

    if fails:
        with pytest.raises(Refused):
            dispatch(steps, fails=True)
    else:
        dispatch(steps)

    assert rows("other") == ["2"]
    assert rows() == ([] if fails else ["1"])


def test_what_a_command_elsewhere_sends_here_waits_for_the_command_here(put, outbox):
    """The scope of the connection at hand counts, over one of another in between."""

    def steps():
        put("1")
        with pytest.raises(Refused):
            dispatch_elsewhere(elsewhere, fails=True)
        assert outbox.writes == []
        put("5")

    def elsewhere():
        put("2")
        put("lost", using="other")
        dispatch(lambda: put("3"))
        put("4")

    dispatch(steps)

    assert outbox.writes == [["1", "2", "3", "4", "5"]]
    assert rows("other") == []


def test_each_sink_gets_its_own_in_order(put, outbox):
    """Two channels are two writes, each with its entries as they were sent."""
    second = Outbox()

    def put_second(entry):
        send(scope_of(current.get()), connections["default"], second, entry)

    def steps():
        put("a1")
        put_second("b1")
        dispatch(lambda: (put_second("b2"), put("a2")))

    dispatch(steps)

    assert outbox.writes == [["a1", "a2"]]
    assert second.writes == [["b1", "b2"]]
    assert (outbox.lasts, second.lasts) == ([], second.writes)


def test_a_sink_that_cannot_write_fails_the_command(put):
    """What cannot be sent is not committed without it: the error reaches the caller."""

    class Full(Outbox):
        def write(self, connection, entries):
            raise Refused

    def steps():
        put("1")
        Note.objects.create(text="written")
        send(scope_of(current.get()), connections["default"], Full(), "2")

    with pytest.raises(Refused):
        dispatch(steps)

    assert rows() == []


def test_what_an_on_commit_callback_sends_is_written_at_once(put, outbox):
    """After the commit the scope has ended; nobody would write its buffer now."""
    dispatch(lambda: transaction.on_commit(lambda: put("1")))

    assert outbox.writes == [["1"]]
    assert outbox.was_atomic == [False]


def in_thread(function):
    """Call a function in another thread, which inherits this one's context."""
    results = []
    context = contextvars.copy_context()

    def work():
        try:
            results.append(context.run(function))
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


def test_a_thread_that_outlives_the_command_writes_at_once(put, outbox):
    """A scope that a thread inherited and that has ended buffers nothing for it."""
    ended = threading.Event()
    threads = []

    def late():
        assert ended.wait(LIMIT)
        assert scope_of(current.get()) is not None
        put("late")

    dispatch(lambda: threads.append(in_thread(late)))
    assert outbox.writes == []
    ended.set()
    for thread, _ in threads:
        thread.join()

    assert outbox.writes == [["late"]]
    assert outbox.was_atomic == [False]
    assert rows() == ["late"]


def test_a_thread_beside_the_command_writes_at_once_on_its_own_connection():
    """Another thread has another connection, whose data this transaction is not."""
    seen = []

    class Seen:
        def write(self, connection, entries):
            seen.append((connection, entries))

    def beside():
        send(scope_of(current.get()), connections["default"], Seen(), "1")
        return connections["default"]

    def steps():
        thread, results = in_thread(beside)
        thread.join()
        return results, list(seen)

    (theirs,), during = dispatch(steps)

    assert during == [(theirs, ["1"])]
    assert theirs is not connections["default"]
    assert seen == during


def test_a_task_that_outlives_the_command_writes_at_once(put, outbox):
    """A task made by an async handler inherits its scope, which ends before it."""
    tasks = []
    ended = asyncio.Event()

    @command_handler("go")
    async def go():
        await sync_to_async(put)("in time")
        tasks.append(asyncio.get_running_loop().create_task(late()))

    async def late():
        await ended.wait()
        assert scope_of(current.get()) is not None
        await sync_to_async(put)("late")

    registry = Registry()
    registry.add(go)

    async def program():
        await sync_to_async(registry.command_bus.dispatch)(route="go")
        assert outbox.writes == [["in time"]]
        ended.set()
        await tasks[0]

    async_to_sync(program)()

    assert outbox.writes == [["in time"], ["late"]]
    assert outbox.was_atomic == [True, False]
    assert rows() == ["in time", "late"]


def test_a_later_command_does_not_adopt_a_scope_that_has_ended(put, outbox):
    """A command sent from an ended scope's context is outermost and writes its own."""
    kept = []

    dispatch(lambda: kept.append(contextvars.copy_context()))
    kept[0].run(dispatch, lambda: put("1"))

    assert outbox.writes == [["1"]]
    assert rows() == ["1"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("how", ["put", "dispatch"])
def test_a_scope_that_has_ended_buffers_nothing_in_a_later_transaction(
    put, outbox, fails, how
):
    """A transaction as deep as the scope's own was is another one all the same."""
    kept = []

    def steps():
        kept.append(contextvars.copy_context())

    if fails:
        with pytest.raises(Refused):
            dispatch(steps, fails=True)
    else:
        dispatch(steps)
    with transaction.atomic():
        if how == "put":
            kept[0].run(put, "1")
        else:
            kept[0].run(dispatch, lambda: put("1"))
        assert outbox.writes == [["1"]]

    assert rows() == ["1"]
