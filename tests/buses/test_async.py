"""Async views and async handlers: the same guarantees, in one hop to one thread."""

import asyncio
import contextvars
import functools
import gc
import inspect
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated

import httpx
import pytest
from asgiref.sync import (
    AsyncToSync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from django.core.exceptions import SynchronousOnlyOperation
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, connections, transaction
from django.http import HttpResponse, JsonResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path

from django_cqrs import (
    CommandBus,
    Depends,
    EventBus,
    Header,
    Headers,
    Message,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    query_handler,
    service,
)
from django_cqrs.channels import channels
from django_cqrs.exceptions import BrokenTransaction, SynchronousDispatch
from django_cqrs.interception import STOP, after, before, pointcut, pre_send
from django_cqrs.messages import Origin, current, inherited_headers
from tests.limits import LIMIT
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = pytest.mark.database


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
class Count:
    text: str = ""


class Refused(Exception):
    """What a handler here raises on purpose."""


def texts():
    return sorted(Note.objects.values_list("text", flat=True))


atexts = sync_to_async(texts)


def transactional(queries):
    """Return what BEGIN, COMMIT and their like stand among the queries captured."""
    words = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
    found = [query["sql"].split()[0].rstrip(";") for query in queries]
    return [word for word in found if word in words]


# What the views here use: each test that calls them fills it anew.
registry = Registry()


@pytest.fixture(autouse=True)
def _a_registry_for_the_views():
    global registry
    registry = Registry()


async def write_view(request, text):
    result = await registry.command_bus.adispatch(
        Write(text), headers={"request": text}
    )
    return JsonResponse({"result": result})


async def count_view(request):
    return JsonResponse({"result": await registry.query_bus.aask(Count())})


async def publish_view(request, text):
    await registry.event_bus.apublish(Written(text))
    return HttpResponse()


async def blocking_view(request, text):
    return HttpResponse(registry.command_bus.dispatch(Write(text)))


def synchronous_view(request, text):
    return HttpResponse(registry.command_bus.dispatch(Write(text)))


urlpatterns = [
    path("write/<str:text>", write_view),
    path("count", count_view),
    path("publish/<str:text>", publish_view),
    path("blocking/<str:text>", blocking_view),
    path("synchronous/<str:text>", synchronous_view),
]


@pytest.fixture
def _urls(settings):
    settings.ROOT_URLCONF = __name__


def on_asgi(use):
    """Call `use` with a client of the whole ASGI stack, in an event loop of its own."""

    async def run():
        transport = httpx.ASGITransport(ASGIHandler(), raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://testserver"
        ) as client:
            return await use(client)

    return asyncio.run(run())


# B15.1 ----------------------------------------------------------------------------

TWINS = [
    (CommandBus.dispatch, CommandBus.adispatch),
    (QueryBus.ask, QueryBus.aask),
    (EventBus.publish, EventBus.apublish),
]


@pytest.mark.parametrize(("twin", "atwin"), TWINS, ids=lambda f: f.__name__)
def test_twins_take_the_same(twin, atwin):
    """An async twin takes what its synchronous one takes, and returns the same. [B15.1]"""
    assert inspect.signature(twin) == inspect.signature(atwin)
    assert inspect.iscoroutinefunction(atwin)


@pytest.mark.django_db
async def test_an_async_caller_gets_what_a_synchronous_one_gets():
    """adispatch and aask return what the handler returns; apublish returns None. [B15.1]"""
    seen = []

    @command_handler
    def write(command: Write, events: EventBus) -> int:
        note = Note.objects.create(text=command.text)
        events.publish(Written(command.text))
        return note.number

    @query_handler("count")
    @query_handler
    def count(query: Count | None = None) -> int:
        return Note.objects.count()

    @event_handler
    def see(event: Written) -> str:
        seen.append(event)
        return "nobody gets this"

    registry = registry_of(write, count, see)

    assert await registry.command_bus.adispatch(Write("a")) == 0
    assert await registry.query_bus.aask(Count()) == 1
    assert await registry.query_bus.aask(route="count", returns=float) == 1.0
    assert await registry.event_bus.apublish(Written("b")) is None
    assert seen == [Written("a"), Written("b")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_urls")
def test_async_views_of_an_asgi_server():
    """Through the whole ASGI stack a view dispatches, asks and publishes. [B15.1]"""

    @registry.add
    @command_handler
    def write(command: Write, events: EventBus) -> str:
        Note.objects.create(text=command.text)
        events.publish(Written(f"{command.text}, audited"))
        return command.text

    @registry.add
    @query_handler
    def count(query: Count) -> int:
        return Note.objects.count()

    @registry.add
    @event_handler
    def audit(event: Written) -> None:
        Note.objects.create(text=event.text)

    async def use(client):
        return [
            (await client.get("/write/a")).json(),
            (await client.get("/publish/b")).status_code,
            (await client.get("/count")).json(),
        ]

    assert on_asgi(use) == [{"result": "a"}, 200, {"result": 3}]
    assert texts() == ["a", "a, audited", "b"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_urls")
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_a_failed_command_of_an_async_view_leaves_nothing(is_async):
    """What a command wrote before it failed is rolled back; the view gets the error. [B15.1]"""

    @registry.add
    @command_handler
    def write(command: Write, events: EventBus) -> None:
        Note.objects.create(text=command.text)
        events.publish(Written())

    def refuse(event: Written) -> None:
        Note.objects.create(text=event.text)
        raise Refused

    async def arefuse(event: Written) -> None:
        await Note.objects.acreate(text=event.text)
        raise Refused

    registry.add(event_handler(arefuse if is_async else refuse))

    async def use(client):
        return (await client.get("/write/a")).status_code

    assert on_asgi(use) == 500
    assert texts() == []


@pytest.mark.django_db
@pytest.mark.usefixtures("_urls")
@pytest.mark.parametrize("view", ["write", "synchronous"])
def test_async_and_synchronous_views_under_both_clients(view):
    """WSGI runs async views and ASGI runs synchronous ones: both reach the bus. [B15.1]"""

    @registry.add
    @command_handler
    def write(command: Write) -> None:
        Note.objects.create(text=command.text)

    assert Client().get(f"/{view}/wsgi").status_code == 200

    async def use():
        return (await AsyncClient().get(f"/{view}/asgi")).status_code

    assert async_to_sync(use)() == 200
    assert texts() == ["asgi", "wsgi"]


@pytest.mark.django_db
async def test_an_exception_arrives_as_the_same_object():
    """The handler's own exception is what the awaiting caller catches. [B15.1]"""
    error = Refused("no")

    @command_handler
    def write(command: Write) -> None:
        Note.objects.create(text=command.text)
        raise error

    with pytest.raises(Refused) as caught:
        await registry_of(write).command_bus.adispatch(Write())

    assert caught.value is error
    assert await atexts() == []


@pytest.mark.django_db(transaction=True)
def test_the_whole_unit_is_one_hop(monkeypatch):
    """
    Conversion, transaction, handlers and nested messages run in one thread, entered
    once: the event loop is left a single time. [B15.1]
    """
    hops = []
    threads = []
    run_in_executor = asyncio.BaseEventLoop.run_in_executor

    def counting(self, executor, function, *args):
        hops.append(function)
        return run_in_executor(self, executor, function, *args)

    monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", counting)

    def given() -> str:
        threads.append(threading.get_ident())
        return "given"

    @command_handler("write")
    def write(
        command: Write, commands: CommandBus, of: Annotated[str, Depends(given)]
    ) -> None:
        threads.append(threading.get_ident())
        Note.objects.create(text=command.text)
        commands.dispatch(WriteInner())

    @command_handler
    def write_inner(command: WriteInner, events: EventBus) -> None:
        threads.append(threading.get_ident())
        events.publish(Written())

    @event_handler
    def see(event: Written) -> None:
        threads.append(threading.get_ident())

    bus = registry_of(write, write_inner, see).command_bus

    async def main():
        async with ThreadSensitiveContext():
            await bus.adispatch({"text": "a"}, route="write")
            hops_of_bus = len(hops)
            await sync_to_async(connections.close_all)()
        return hops_of_bus, threading.get_ident()

    hops_of_bus, loop_thread = asyncio.run(main())

    assert hops_of_bus == 1
    assert len(threads) == 4
    assert len(set(threads)) == 1
    assert loop_thread not in threads
    assert texts() == ["a"]


@pytest.mark.django_db(transaction=True)
def test_the_transaction_is_that_of_a_synchronous_caller():
    """adispatch begins and commits once. [B15.1]"""

    @command_handler
    def write(command: Write) -> None:
        Note.objects.create(text=command.text)

    bus = registry_of(write).command_bus
    with CaptureQueriesContext(connection) as captured:
        async_to_sync(bus.adispatch)(Write())

    assert transactional(captured) == ["BEGIN", "COMMIT"]


@pytest.mark.django_db(transaction=True)
def test_on_commit_waits_for_the_commit():
    """What the handler leaves to on_commit is called once, after the commit. [B15.1]"""
    called = []

    @command_handler
    async def write(command: Write) -> None:
        note = await Note.objects.acreate(text=command.text)
        await sync_to_async(transaction.on_commit)(
            lambda: called.append((note.text, connection.in_atomic_block))
        )
        assert called == []

    async def main():
        async with ThreadSensitiveContext():
            await registry_of(write).command_bus.adispatch(Write())
            await sync_to_async(connections.close_all)()

    asyncio.run(main())

    assert called == [("outer", False)]


# B15.2 ----------------------------------------------------------------------------


@service
class Notes:
    @command_handler
    async def write(self, command: Write) -> str:
        return await noted(command.text)

    @query_handler
    @classmethod
    async def count(cls, query: Count) -> int:
        return await Note.objects.acount()

    @event_handler
    @staticmethod
    async def note(event: Written) -> None:
        await noted(event.text)


async def noted(text):
    return (await Note.objects.acreate(text=text)).text


@command_handler
async def write_note(command: Write) -> str:
    return await noted(command.text)


@query_handler
async def count_notes(query: Count) -> int:
    return await Note.objects.acount()


@event_handler
async def note_event(event: Written) -> None:
    await noted(event.text)


KINDS = [
    pytest.param((write_note, count_notes, note_event), id="functions"),
    pytest.param((Notes,), id="methods"),
]


@pytest.mark.django_db
@pytest.mark.parametrize("targets", KINDS)
def test_async_handlers_of_every_kind_for_a_synchronous_caller(targets):
    """An async def handler is run to its end by the synchronous bus. [B15.2]"""
    registry = registry_of(*targets)

    assert registry.command_bus.dispatch(Write()) == "outer"
    assert registry.event_bus.publish(Written()) is None
    assert registry.query_bus.ask(Count()) == 2
    assert texts() == ["event", "outer"]


@pytest.mark.django_db
@pytest.mark.parametrize("targets", KINDS)
async def test_async_handlers_of_every_kind_for_an_async_caller(targets):
    """An async def handler is run to its end by the async twin. [B15.2]"""
    registry = registry_of(*targets)

    assert await registry.command_bus.adispatch(Write()) == "outer"
    assert await registry.event_bus.apublish(Written()) is None
    assert await registry.query_bus.aask(Count()) == 2
    assert await atexts() == ["event", "outer"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("ambient", ["synchronous", "async", "asgi"])
def test_async_writes_roll_back_with_their_command(ambient):
    """What async handlers wrote by the ORM is gone when their command fails. [B15.2]"""
    inside = []

    @command_handler
    async def write(command: Write, events: EventBus) -> None:
        await noted(command.text)
        inside.append(await sync_to_async(lambda: connection.in_atomic_block)())
        await events.apublish(Written())

    @event_handler
    async def note(event: Written) -> None:
        await noted(event.text)
        inside.append(await atexts())
        raise Refused

    bus = registry_of(write, note).command_bus

    async def send():
        with pytest.raises(Refused):
            await bus.adispatch(Write())

    async def as_request():
        async with ThreadSensitiveContext():
            await send()
            await sync_to_async(connections.close_all)()

    if ambient == "synchronous":
        with pytest.raises(Refused):
            bus.dispatch(Write())
    elif ambient == "async":
        async_to_sync(send)()
    else:
        asyncio.run(as_request())

    assert inside == [True, ["event", "outer"]]
    assert texts() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_async", [False, True], ids=["dispatch", "adispatch"])
def test_a_nested_adispatch_is_a_savepoint(is_async):
    """A command sent by an async handler joins its transaction, in a savepoint. [B15.2]"""

    @command_handler
    async def write(command: Write, commands: CommandBus) -> None:
        await noted(command.text)
        await commands.adispatch(WriteInner())

    @command_handler
    async def write_inner(command: WriteInner) -> None:
        await noted(command.text)

    bus = registry_of(write, write_inner).command_bus
    send = async_to_sync(bus.adispatch) if is_async else bus.dispatch
    with CaptureQueriesContext(connection) as captured:
        send(Write())

    assert transactional(captured) == ["BEGIN", "SAVEPOINT", "RELEASE", "COMMIT"]
    assert texts() == ["inner", "outer"]


@pytest.mark.django_db(transaction=True)
async def test_a_caught_nested_failure_leaves_a_usable_transaction():
    """An async handler that catches a nested failure goes on; its writes stay. [B15.2]"""

    @command_handler
    async def write(command: Write, commands: CommandBus) -> None:
        await noted("before")
        with pytest.raises(Refused):
            await commands.adispatch(WriteInner())
        await noted("after")

    @command_handler
    async def write_inner(command: WriteInner) -> None:
        await noted(command.text)
        raise Refused

    await registry_of(write, write_inner).command_bus.adispatch(Write())

    assert await atexts() == ["after", "before"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fails", ["first", "second", None])
def test_commands_gathered_by_a_handler_each_have_their_savepoint(fails):
    """
    Commands that an async handler sends at once run one after the other: the failure
    of one takes nothing of the other with it. [B15.2]
    """

    @command_handler
    async def write(command: Write, commands: CommandBus) -> list[str]:
        outcomes = await asyncio.gather(
            commands.adispatch(WriteInner("first")),
            commands.adispatch(WriteInner("second")),
            return_exceptions=True,
        )
        return [type(outcome).__name__ for outcome in outcomes]

    @command_handler
    async def write_inner(command: WriteInner) -> None:
        await noted(command.text)
        await asyncio.sleep(0.01)
        if command.text == fails:
            raise Refused

    bus = registry_of(write, write_inner).command_bus
    outcomes = bus.dispatch(Write())

    wanted = ["first", "second"]
    assert outcomes == ["Refused" if each == fails else "NoneType" for each in wanted]
    assert texts() == [each for each in wanted if each != fails]


@pytest.mark.django_db
async def test_a_headers_and_identity_pass_through_async_handlers():
    """Headers, correlation and causation pass on through awaits, tasks and hops. [B15.2]"""
    seen = {}

    @command_handler
    async def write(command: Write, message: Message, commands: CommandBus) -> None:
        seen["outer"] = message
        await asyncio.sleep(0)
        await asyncio.create_task(commands.adispatch(WriteInner()))

    @command_handler
    def write_inner(command: WriteInner, message: Message, events: EventBus) -> None:
        seen["inner"] = message
        events.publish(Written())

    @event_handler
    async def note(event: Written, message: Message) -> None:
        seen["event"] = message

    bus = registry_of(write, write_inner, note).command_bus
    await bus.adispatch(Write(), headers={"tenant": "a"})

    outer, inner, event = seen["outer"], seen["inner"], seen["event"]
    assert [each.headers["tenant"] for each in seen.values()] == ["a", "a", "a"]
    assert [inner.causation_id, event.causation_id] == [
        outer.message_id,
        inner.message_id,
    ]
    assert {each.correlation_id for each in seen.values()} == {outer.message_id}


@pytest.mark.django_db
def test_async_factories_of_depends():
    """A Depends factory may be async def, or an object whose __call__ is. [B15.2]"""
    made = []

    async def connect(command: Write) -> str:
        made.append(command.text)
        return await noted("connected")

    class Connect:
        async def __call__(self, command: Write) -> str:
            made.append(command.text)
            return await noted("called")

    @command_handler
    def write(
        command: Write,
        one: Annotated[str, Depends(connect)],
        same: Annotated[str, Depends(connect)],
        other: Annotated[str, Depends(Connect())],
    ) -> list[str]:
        return [one, same, other]

    bus = registry_of(write).command_bus

    assert bus.dispatch(Write("a")) == ["connected", "connected", "called"]
    assert bus.dispatch(Write("b")) == ["connected", "connected", "called"]
    assert made == ["a", "a", "b", "b"]


@pytest.mark.django_db
async def test_a_generator_of_depends_is_closed_after_an_async_handler():
    """What a Depends generator does after its yield is done after the handler. [B15.2]"""
    order = []

    def session():
        order.append("open")
        yield "session"
        order.append("close")

    @command_handler
    async def write(command: Write, session: Annotated[str, Depends(session)]) -> None:
        await asyncio.sleep(0)
        order.append(session)

    await registry_of(write).command_bus.adispatch(Write())

    assert order == ["open", "session", "close"]


@pytest.mark.django_db
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_async_interceptors(is_async):
    """before and after may be async def, around handlers of both kinds. [B15.2]"""

    @before(pointcut.message(Write))
    async def replace(command: Write) -> Write:
        return Write(await noted(f"{command.text}, replaced"))

    @after(pointcut.message(Write))
    async def extend(result: str) -> str:
        return await noted(f"{result}, extended")

    def write(command: Write) -> str:
        return command.text

    async def awrite(command: Write) -> str:
        return command.text

    handler = command_handler(awrite if is_async else write)
    bus = registry_of(replace, extend, handler).command_bus

    assert await bus.adispatch(Write("a")) == "a, replaced, extended"
    assert await atexts() == ["a, replaced", "a, replaced, extended"]


@pytest.mark.django_db
async def test_async_interceptors_roll_back_with_the_command():
    """What async interceptors wrote inside the transaction goes when it fails. [B15.2]"""

    @before(pointcut.message(Write))
    async def note(command: Write) -> None:
        await noted("before")

    @after(pointcut.message(Write))
    async def refuse() -> None:
        await noted("after")
        raise Refused

    bus = registry_of(note, refuse, write_note).command_bus
    with pytest.raises(Refused):
        await bus.adispatch(Write())

    assert await atexts() == []


@pytest.fixture
def channel(settings):
    settings.DJANGO_CQRS = {
        "CHANNELS": {"default": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}
    }
    return channels["default"]


@pytest.mark.django_db
async def test_async_handlers_on_a_channel(channel):
    """An async handler behind a channel, and an async pre_send before it. [B15.2]"""

    @pre_send(pointcut.message(str))
    async def stop(text: str) -> object:
        return STOP if text == "stopped" else None

    @command_handler("write", channel=True)
    async def write(text: str) -> None:
        await noted(text)

    bus = registry_of(write, stop).command_bus
    assert await bus.adispatch("stopped", route="write") is None
    assert await bus.adispatch("sent", route="write") is None
    assert await atexts() == []

    assert await sync_to_async(channel.run)() == 1
    assert await atexts() == ["sent"]


@pytest.mark.django_db
async def test_what_an_async_handler_sends_waits_for_its_command(channel):
    """A message that a failing async command sent to a channel is never sent. [B15.2]"""

    @command_handler
    async def write(command: Write, events: EventBus) -> None:
        await events.apublish(Written())
        if command.text == "fails":
            raise Refused

    @event_handler("note", channel=True)
    async def note(text: str) -> None: ...

    @event_handler
    async def pass_on(event: Written, events: EventBus) -> None:
        await events.apublish(event.text, route="note")

    bus = registry_of(write, pass_on, note).command_bus
    with pytest.raises(Refused):
        await bus.adispatch(Write("fails"))
    assert channel.waiting() == []

    await bus.adispatch(Write("succeeds"))
    waiting = await sync_to_async(channel.waiting)()
    assert [envelope.payload for envelope in waiting] == [b'"event"']


@pytest.mark.django_db
async def test_a_decorated_async_handler_is_awaited():
    """A handler that a synchronous wrapper hides is awaited inside the transaction. [B15.2]"""

    def traced(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @command_handler
    @traced
    async def write(command: Write) -> str:
        await noted(command.text)
        if command.text == "fails":
            raise Refused
        return command.text

    bus = registry_of(write).command_bus

    assert await bus.adispatch(Write("a")) == "a"
    with pytest.raises(Refused):
        await bus.adispatch(Write("fails"))
    assert await atexts() == ["a"]


@pytest.mark.django_db
async def test_async_event_handlers_are_called_in_turn():
    """Async handlers of one event run by priority, one after the other. [B15.2]"""
    order = []

    @event_handler
    async def second(event: Written) -> None:
        order.append("second begins")
        await asyncio.sleep(0)
        order.append("second ends")

    @event_handler(priority=1)
    async def first(event: Written) -> None:
        order.append("first begins")
        await asyncio.sleep(0.01)
        order.append("first ends")

    await registry_of(second, first).event_bus.apublish(Written())

    assert order == ["first begins", "first ends", "second begins", "second ends"]


@pytest.mark.django_db(transaction=True)
async def test_a_database_error_that_an_async_handler_catches_is_seen():
    """A transaction that is broken is not reported as committed. [B15.2]"""

    @command_handler
    async def write(command: Write) -> None:
        await noted(command.text)
        await sync_to_async(transaction.set_rollback)(True)

    with pytest.raises(BrokenTransaction):
        await registry_of(write).command_bus.adispatch(Write())

    assert await atexts() == []


# B15.3 ----------------------------------------------------------------------------


class Gate:
    """Holds a handler in its thread until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def wait(self) -> None:
        self.entered.set()
        assert self.open.wait(LIMIT)

    async def reached(self) -> None:
        while not self.entered.is_set():  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Hold:
    text: str = "held"


@dataclass(frozen=True)
class ReadHeaders:
    text: str = ""


@query_handler
def read_headers(query: ReadHeaders, headers: Headers) -> dict[str, object]:
    own = {"message_id", "correlation_id", "timestamp", "attempt", "is_last_attempt"}
    return {name: value for name, value in headers.items() if name not in own}


def is_origin(message):
    return isinstance(message, Origin) and not message._user


@pytest.mark.django_db(transaction=True)
def test_a_cancelled_synchronous_handler_is_whole_and_leaks_no_header():
    """
    A thread cannot be stopped: the command of a cancelled task is finished whole, and
    what its caller sends afterwards has nothing of its headers. [B15.3]
    """
    gate = Gate()

    @command_handler
    def hold(command: Hold, events: EventBus) -> None:
        Note.objects.create(text="first half")
        gate.wait()
        Note.objects.create(text="second half")

    registry = registry_of(hold, read_headers)
    seen = {}

    async def request():
        try:
            await registry.command_bus.adispatch(Hold(), headers={"tenant": "a"})
        except asyncio.CancelledError:
            seen["current"] = current.get()
            gate.open.set()
            seen["headers"] = await registry.query_bus.aask(ReadHeaders())
        await sync_to_async(connections.close_all)()

    async def main():
        async with ThreadSensitiveContext():
            task = asyncio.create_task(request())
            await gate.reached()
            assert task.cancel()
            await task

    asyncio.run(main())

    assert is_origin(seen["current"])
    assert seen["headers"] == {"causation_id": None}
    assert texts() == ["first half", "second half"]


@pytest.mark.django_db(transaction=True)
def test_a_cancelled_async_handler_is_rolled_back():
    """An async handler is cancelled where it awaits, and nothing of it stays. [B15.3]"""
    seen = {}

    @command_handler
    async def hold(command: Hold) -> None:
        await noted(command.text)
        entered.set()
        try:
            await asyncio.sleep(2 * LIMIT)
        except asyncio.CancelledError as error:
            seen["handler"] = error
            raise

    registry = registry_of(hold, read_headers)

    async def request():
        try:
            await registry.command_bus.adispatch(Hold(), headers={"tenant": "a"})
        except asyncio.CancelledError:
            seen["current"] = current.get()
            seen["headers"] = await registry.query_bus.aask(ReadHeaders())
            seen["texts"] = await atexts()
            seen["atomic"] = await sync_to_async(lambda: connection.in_atomic_block)()
        await sync_to_async(connections.close_all)()

    async def main():
        global entered
        entered = asyncio.Event()
        async with ThreadSensitiveContext():
            task = asyncio.create_task(request())
            await entered.wait()
            task.cancel()
            await task

    began = time.monotonic()
    asyncio.run(main())

    assert time.monotonic() - began < LIMIT
    assert isinstance(seen["handler"], asyncio.CancelledError)
    assert is_origin(seen["current"])
    assert seen["headers"] == {"causation_id": None}
    assert seen["texts"] == []
    assert seen["atomic"] is False


@pytest.mark.django_db(transaction=True)
def test_a_cancelled_caller_is_not_bound_to_the_thread_that_waits():
    """
    A cancelled task goes on before its thread has noticed, and can use Django: it is
    not sent to the executor of a wait that is about to end. [B15.3]
    """
    gate = Gate()
    busy = []
    seen = {}

    @command_handler
    async def hold(command: Hold) -> None:
        busy.append(asyncio.create_task(sync_to_async(gate.wait)()))
        await asyncio.sleep(10)

    registry = registry_of(hold)

    async def request():
        with suppress(asyncio.CancelledError):
            await registry.command_bus.adispatch(Hold())
        seen["executor"] = getattr(AsyncToSync.executors, "current", None)
        gate.open.set()
        seen["answer"] = await sync_to_async(lambda: "answered")()
        await sync_to_async(connections.close_all)()

    async def main():
        async with ThreadSensitiveContext():
            task = asyncio.create_task(request())
            await gate.reached()
            task.cancel()  # of the handler; its thread is still at work
            await asyncio.sleep(0.05)
            task.cancel()  # of the wait for that thread
            await task

    asyncio.run(main())

    assert seen == {"executor": None, "answer": "answered"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("bridge", ["ours", "Django's"])
def test_a_cancelled_caller_leaves_no_error_that_nobody_takes(bridge, monkeypatch):
    """
    Also where the thread is done with the cancellation before its caller looks, and
    where Django itself sent a synchronous view to the thread. [B15.3]
    """

    def copy_slowly():
        # Where the bridge ends the handler's task: it has told the thread by now.
        if entered.is_set() and threading.current_thread() is threading.main_thread():
            time.sleep(0.02)
        return contextvars.copy_context()

    slow = SimpleNamespace(**{**vars(contextvars), "copy_context": copy_slowly})
    monkeypatch.setattr("asgiref.sync.contextvars", slow)
    complaints = []

    @command_handler
    async def hold(command: Hold) -> None:
        entered.set()
        await asyncio.sleep(10)

    registry = registry_of(hold)
    bus = registry.command_bus
    dispatch = bus.adispatch if bridge == "ours" else sync_to_async(bus.dispatch)

    async def request():
        with suppress(asyncio.CancelledError):
            await dispatch(Hold())
        await sync_to_async(connections.close_all)()

    async def main():
        global entered
        entered = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with ThreadSensitiveContext():
            task = asyncio.create_task(request())
            await entered.wait()
            task.cancel()
            await task
        del task
        gc.collect()

    asyncio.run(main())

    assert complaints == []


@pytest.mark.django_db(transaction=True)
def test_cancelled_inside_a_nested_command_all_of_it_goes():
    """A cancellation inside a nested async command ends the outer one as well. [B15.3]"""

    @command_handler
    async def write(command: Write, commands: CommandBus) -> None:
        await noted(command.text)
        await commands.adispatch(Hold())

    @command_handler
    async def hold(command: Hold) -> None:
        await noted(command.text)
        entered.set()
        await asyncio.sleep(10)

    bus = registry_of(write, hold).command_bus

    async def main():
        global entered
        entered = asyncio.Event()
        async with ThreadSensitiveContext():
            task = asyncio.create_task(bus.adispatch(Write()))
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await atexts(), await sync_to_async(connections.close_all)()

    assert asyncio.run(main()) == ([], None)


@pytest.mark.django_db(transaction=True)
def test_a_time_limit_inside_a_handler_is_a_failure_like_any_other():
    """A nested command that asyncio.timeout ends is rolled back to its savepoint. [B15.3]"""

    @command_handler
    async def write(command: Write, commands: CommandBus) -> None:
        await noted(command.text)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await commands.adispatch(Hold(), headers={"tenant": "a"})
        await commands.adispatch(WriteInner())

    @command_handler
    async def hold(command: Hold) -> None:
        await noted(command.text)
        await asyncio.sleep(10)

    @command_handler
    async def write_inner(command: WriteInner, headers: Headers) -> None:
        await noted(f"{command.text} {headers.get('tenant')}")

    registry_of(write, hold, write_inner).command_bus.dispatch(Write())

    assert texts() == ["inner None", "outer"]


@pytest.mark.django_db(transaction=True)
def test_cancelled_before_its_turn_it_never_runs():
    """A command that waits for the thread and is cancelled is not handled at all. [B15.3]"""
    gate = Gate()

    @command_handler
    def hold(command: Hold) -> None:
        gate.wait()
        Note.objects.create(text=command.text)

    bus = registry_of(hold).command_bus

    async def main():
        async with ThreadSensitiveContext():
            first = asyncio.create_task(bus.adispatch(Hold("first")))
            await gate.reached()
            second = asyncio.create_task(bus.adispatch(Hold("second")))
            await asyncio.sleep(0.01)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            gate.open.set()
            await first
            await sync_to_async(connections.close_all)()

    asyncio.run(main())

    assert texts() == ["first"]


async def asgi_request(path, *, disconnect):
    """Make a request of the whole ASGI stack whose client goes away when told to."""
    sent = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "root_path": "",
    }
    incoming = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        for event in incoming:
            return event
        await disconnect()
        return {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)

    await ASGIHandler()(scope, receive, send)
    return sent


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_urls")
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_a_client_that_goes_away_leaves_no_half_transaction(is_async):
    """
    A request whose client disconnects is cancelled: its synchronous command is
    finished whole, its async one rolled back whole, and its connection closed. [B15.3]
    """
    gate = Gate()
    opened = []

    def write(command: Write) -> None:
        Note.objects.create(text=command.text)
        opened.append(connection.connection)
        gate.wait()
        Note.objects.create(text="second half")

    async def awrite(command: Write) -> None:
        await noted(command.text)
        opened.append(await sync_to_async(lambda: connection.connection)())
        gate.entered.set()
        await asyncio.sleep(10)
        await noted("second half")

    registry.add(command_handler(awrite if is_async else write))

    async def disconnect():
        await gate.reached()
        gate.open.set()

    assert asyncio.run(asgi_request("/write/half", disconnect=disconnect)) == []
    assert is_origin(current.get())
    assert texts() == ([] if is_async else ["half", "second half"])
    assert [is_closed(each) for each in opened] == [True]


def is_closed(raw):
    """Return whether a connection of the driver is closed."""
    if hasattr(raw, "closed"):  # psycopg
        return bool(raw.closed)
    if hasattr(raw, "open"):  # PyMySQL
        return not raw.open
    try:
        raw.total_changes  # noqa: B018 - raises where it is closed
    except Exception as error:  # noqa: BLE001 - each driver has its own
        return "closed" in str(error)
    return False


# B15.4 ----------------------------------------------------------------------------

INSTEAD = [
    ("command_bus", "dispatch"),
    ("query_bus", "ask"),
    ("event_bus", "publish"),
]


@pytest.mark.parametrize(("bus", "method"), INSTEAD)
@pytest.mark.parametrize("warm", [False, True], ids=["first", "again"])
async def test_a_synchronous_call_in_an_event_loop_raises(bus, method, warm):
    """It raises one error that names the twin, whether the route is known or not. [B15.4]"""
    called = []

    @command_handler(atomic=False, name="command")
    @query_handler(name="query")
    @event_handler(name="event")
    def handle(message: Write) -> None:
        called.append(message)

    registry = registry_of(handle)
    if warm:
        await getattr(getattr(registry, bus), f"a{method}")(Write())
        called.clear()
    with pytest.raises(SynchronousDispatch) as caught:
        getattr(getattr(registry, bus), method)(Write())

    assert str(caught.value) == (
        f"{bus}.{method}() was called in a running event loop and would block it. Use "
        f"`await {bus}.a{method}()`."
    )
    assert isinstance(caught.value, SynchronousOnlyOperation)
    assert called == []


@pytest.mark.usefixtures("_urls")
@pytest.mark.django_db(transaction=True)
def test_in_an_async_view():
    """An async view that calls dispatch gets the error, and nothing is written. [B15.4]"""
    registry.add(write_note)

    async def use():
        with pytest.raises(SynchronousDispatch, match="adispatch"):
            await blocking_view(RequestFactory().get("/"), "a")

    asyncio.run(use())

    assert texts() == []


@pytest.mark.django_db
async def test_in_an_async_handler():
    """An async handler that calls dispatch fails its command, which is rolled back. [B15.4]"""

    @command_handler
    async def write(command: Write, commands: CommandBus) -> None:
        await noted(command.text)
        commands.dispatch(WriteInner())

    @command_handler
    def write_inner(command: WriteInner) -> None:
        Note.objects.create(text=command.text)

    with pytest.raises(SynchronousDispatch, match=r"Use `await command_bus.adispatch"):
        await registry_of(write, write_inner).command_bus.adispatch(Write())

    assert await atexts() == []


async def test_a_synchronous_handler_in_the_hop_may_dispatch():
    """The thread of the hop runs no event loop: handlers there dispatch as ever. [B15.4]"""

    @command_handler(atomic=False)
    def write(command: Write, commands: CommandBus) -> str:
        return commands.dispatch(WriteInner())

    @command_handler(atomic=False)
    async def write_inner(command: WriteInner) -> str:
        return command.text

    bus = registry_of(write, write_inner).command_bus

    assert await bus.adispatch(Write()) == "inner"


# Isolation ------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_gathered_messages_do_not_see_each_others_headers(is_async):
    """Each of many messages sent at once has its own headers and identity. [B09.5]"""

    def echo(command: Write, number: Annotated[int, Header("number")]) -> int:
        time.sleep(0.0005)
        return number

    async def aecho(command: Write, number: Annotated[int, Header("number")]) -> int:
        await asyncio.sleep(0.0005)
        return number

    handler = command_handler(aecho if is_async else echo)
    bus = registry_of(handler).command_bus
    numbers = await asyncio.gather(
        *(bus.adispatch(Write(), headers={"number": n}) for n in range(50))
    )

    assert numbers == list(range(50))
    assert is_origin(current.get())


@pytest.mark.django_db
async def test_each_task_passes_on_its_own_requests_headers():
    """Headers that a middleware sets for one task are those of its messages alone. [B09.5]"""

    @command_handler
    async def write(command: Write, commands: CommandBus) -> str:
        await asyncio.sleep(0)
        return await commands.adispatch(WriteInner())

    @command_handler
    def write_inner(
        command: WriteInner, tenant: Annotated[str, Header("tenant")]
    ) -> str:
        return tenant

    bus = registry_of(write, write_inner).command_bus

    async def request(tenant):
        with inherited_headers({"tenant": tenant}):
            await asyncio.sleep(0)
            return await bus.adispatch(Write())

    answers = await asyncio.gather(*(request(f"t{n}") for n in range(20)))

    assert answers == [f"t{n}" for n in range(20)]


variable = ContextVar("variable", default="unset")


async def test_context_variables_pass_both_ways():
    """As with any asgiref bridge, a handler sees its caller's variables and sets them. [B09.5]"""

    @command_handler(atomic=False)
    async def write(command: Write) -> str:
        before = variable.get()
        variable.set("set by the handler")
        return before

    variable.set("set by the caller")

    assert await registry_of(write).command_bus.adispatch(Write()) == (
        "set by the caller"
    )
    assert variable.get() == "set by the handler"


@pytest.mark.django_db
async def test_a_nested_event_loop_has_its_own_context():
    """A task that outlives its handler sends no more in the name of a closed scope. [B15.1]"""
    later = []

    @command_handler
    async def write(command: Write, commands: CommandBus) -> None:
        async def afterwards():
            await done.wait()
            await commands.adispatch(WriteInner())

        later.append(asyncio.create_task(afterwards()))

    @command_handler
    async def write_inner(command: WriteInner) -> None:
        await noted(command.text)

    done = asyncio.Event()
    await registry_of(write, write_inner).command_bus.adispatch(Write())
    done.set()
    await later[0]

    assert await atexts() == ["inner"]
