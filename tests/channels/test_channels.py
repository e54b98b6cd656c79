"""Channels: what waits, when it is handled, and what is never sent."""

import asyncio
import contextvars
import logging
import math
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, NamedTuple
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse
from django.test import Client, TestCase
from django.test.utils import CaptureQueriesContext
from django.urls import path

from django_cqrs import (
    CommandBus,
    Depends,
    EventBus,
    Header,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.channels import Channel, InMemoryChannel, channels
from django_cqrs.exceptions import (
    MessageConversionError,
    MissingHeader,
    SynchronousDispatch,
    UnknownMessage,
)
from django_cqrs.testing import run_channel
from tests.channels.support import (
    CHANNELS,
    Act,
    ActElsewhere,
    GiftLine,
    Line,
    Placed,
    Refused,
    Write,
    caught,
    fail,
    make_registry,
    payloads,
    texts,
    undone,
    waiting,
)
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

both_databases = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture(autouse=True)
def _channels(settings):
    settings.DJANGO_CQRS = {"CHANNELS": CHANNELS}


class FullChannel(Channel):
    """A channel that can store nothing."""

    def write(self, connection, entries):
        raise Refused


class Nameless(NamedTuple):
    text: str = ""


@pytest.fixture
def seen():
    """What the handlers of `registry` have handled, in order."""
    return []


@pytest.fixture
def registry(seen):
    return make_registry(seen)


@pytest.fixture
def act(registry):
    """Do steps inside a command."""
    return lambda steps: registry.command_bus.dispatch(Act(steps))


@pytest.fixture
def write(registry):
    """Send a command to a channel, and write a row that speaks of the same."""

    def write(text="written", *, route="write", **options):
        Note.objects.create(text=f"sent {text}")
        return registry.command_bus.dispatch(Write(text), route=route, **options)

    return write


# B03.2 ----------------------------------------------------------------------------


def test_a_handler_on_a_channel_answers_none_and_has_not_run(seen):
    """dispatch() returns None at once; the handler is called when the channel runs. [B03.2]"""

    @command_handler(channel=True)
    def open_it(command: Write):
        seen.append(command)
        return "an answer that nobody waits for"

    bus = registry_of(open_it).command_bus

    assert bus.dispatch(Write("a")) is None
    assert bus.dispatch(Write("b"), headers={"executor_id": 7}) is None
    assert seen == []
    assert run_channel() == 2
    assert seen == [Write("a"), Write("b")]
    assert run_channel() == 0


def test_the_same_inside_a_command(act, registry, seen):
    """A nested send answers None too, and its handler runs after the command. [B03.2]"""
    answers = act(
        lambda: [registry.command_bus.dispatch(Write("a")), list(seen), len(waiting())]
    )

    assert answers == [None, [], 0]
    assert seen == []
    run_channel()
    assert seen == ["a"]


def test_publish_answers_none_for_handlers_on_channels(registry, seen):
    """An event's handler on a channel has not run when publish() returns. [B03.3]"""
    assert registry.event_bus.publish(Placed(1)) is None
    assert seen == []
    run_channel()
    assert seen == ["placed 1"]


# B07.2 ----------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["default", "commit"])
def test_of_a_failed_event_nothing_is_sent_to_a_channel(alias, seen):
    """Neither what its handlers sent before one raised, nor the event itself. [B07.2]"""
    registry = Registry()

    @registry.add
    @command_handler
    def place(command: Write, events: EventBus):
        Note.objects.create(text="placed")
        events.publish(Placed(1))

    @registry.add
    @event_handler
    def first(event: Placed, commands: CommandBus):
        Note.objects.create(text="first")
        commands.dispatch("first", route="tell")

    @registry.add
    @event_handler
    def second(event: Placed):
        raise Refused

    @registry.add
    @event_handler
    def third(event: Placed):
        seen.append("third")

    @registry.add
    @event_handler(channel=alias)
    def in_the_background(event: Placed):
        seen.append("in the background")

    @registry.add
    @command_handler("tell", channel=alias)
    def tell(text: str):
        seen.append(f"told {text}")

    with pytest.raises(Refused):
        registry.command_bus.dispatch(Write())

    assert waiting() == []
    assert seen == []
    assert texts() == []


def test_a_caught_publish_keeps_what_earlier_handlers_sent(act, registry, seen):
    """Without atomic() around it: their writes stay, and so do their messages. [B07.3]"""

    @registry.add
    @event_handler(priority=1)
    def first(event: str):
        Note.objects.create(text="first")
        registry.command_bus.dispatch(Write("from first"))

    @registry.add
    @event_handler
    def second(event: str):
        raise Refused

    act(lambda: caught(lambda: registry.event_bus.publish("go")))
    assert [each["text"] for each in payloads()] == ["from first"]
    channels["default"].clear()

    act(lambda: undone(lambda: registry.event_bus.publish("go")))
    assert payloads() == []
    assert texts() == ["first"]


# C01.1 ----------------------------------------------------------------------------

KEYS = pytest.mark.parametrize("key", ["write", "write.commit"])


def both(*given):
    """Return the rows of messages that were sent with their data and handled."""
    return sorted(f"{word} {text}" for text in given for word in ("sent", "handled"))


@KEYS
def test_a_command(act, write, key):
    """A command's messages are handled when it has committed, with its data. [C01.1]"""
    act(lambda: [write("1", route=key), write("2", route=key)])
    run_channel()
    assert texts() == both("1", "2")

    with pytest.raises(Refused):
        act(lambda: [write("3", route=key), fail()])
    run_channel()
    assert texts() == both("1", "2")


@KEYS
def test_a_nested_command_with_a_caught_failure(act, write, key):
    """Its messages are gone with its data; the outer's are there with theirs. [C01.1]"""

    def steps():
        write("1", route=key)
        caught(lambda: act(lambda: [write("2", route=key), fail()]))
        act(lambda: write("3", route=key))

    act(steps)
    run_channel()

    assert texts() == both("1", "3")


@KEYS
def test_a_nested_command_inside_one_that_fails(act, write, key):
    """Its success is undone with the failure around it. [C01.1]"""
    with pytest.raises(Refused):
        act(lambda: [act(lambda: write("1", route=key)), fail()])
    run_channel()

    assert texts() == []


@KEYS
@pytest.mark.parametrize("savepoint", [True, False])
def test_an_inner_atomic(act, write, key, savepoint):
    """What is sent in a block of the user's own is sent if that block succeeds. [C01.1]"""

    def steps():
        write("1", route=key)
        with transaction.atomic(savepoint=savepoint):
            write("2", route=key)
        undone(lambda: [write("3", route=key), act(lambda: write("4", route=key))])
        write("5", route=key)

    act(steps)
    run_channel()

    assert texts() == both("1", "2", "5")


@KEYS
def test_a_plain_atomic_block(write, registry, key):
    """Without any command the caller's own transaction decides. [C01.1]"""
    with transaction.atomic():
        write("1", route=key)
        undone(lambda: write("2", route=key))
        assert not any(text.startswith("handled") for text in texts())
    undone(lambda: write("3", route=key))
    run_channel()

    assert texts() == both("1")


@KEYS
def test_a_plain_atomic_block_around_commands(act, write, key):
    """Commands in it nest: what they send waits for the block's commit. [C01.1]"""
    with transaction.atomic():
        act(lambda: write("1", route=key))
        caught(lambda: act(lambda: [write("2", route=key), fail()]))
        assert "handled 1" not in texts()
    undone(lambda: act(lambda: write("3", route=key)))
    run_channel()

    assert texts() == both("1")


def test_a_failure_at_the_commit_itself(act, write):
    """A deferred constraint that fails at COMMIT has nothing sent. [C01.1]"""
    if not connection.features.supports_deferrable_unique_constraints:
        pytest.skip("The database checks no constraint at the commit.")
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        )
    try:

        def steps():
            write("1")
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO deferred VALUES (1), (1)")

        with pytest.raises(Exception, match="duplicate key"):
            act(steps)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE deferred")

    assert waiting() == []
    assert texts() == []


web = Registry()


@web.add
@command_handler("web.write", channel="default")
def web_write(text: str):
    Note.objects.create(text=f"handled {text}")


@web.add
@command_handler("web.act")
def web_act(text: str, commands: CommandBus):
    Note.objects.create(text=f"sent {text}")
    commands.dispatch(text, route="web.write")
    if text == "bad":
        raise Refused


def web_view(request, text):
    web.command_bus.dispatch("first", route="web.act")
    if text == "caught":
        caught(lambda: web.command_bus.dispatch("bad", route="web.act"))
    else:
        web.command_bus.dispatch(text, route="web.act")
    return HttpResponse(str(len(waiting())))


urlpatterns = [path("<text>/", web_view)]


@pytest.mark.parametrize("atomic_requests", [False, True])
@pytest.mark.parametrize("text", ["second", "bad", "caught"])
def test_atomic_requests(settings, monkeypatch, atomic_requests, text):
    """With ATOMIC_REQUESTS messages wait for the request's commit and fail with it. [C01.1]"""
    settings.ROOT_URLCONF = __name__
    monkeypatch.setitem(
        connections.settings["default"], "ATOMIC_REQUESTS", atomic_requests
    )

    response = Client(raise_request_exception=False).get(f"/{text}/")
    run_channel()

    expected = {
        "second": both("first", "second"),
        "bad": [] if atomic_requests else both("first"),
        "caught": both("first"),
    }
    assert texts() == expected[text]
    assert response.status_code == (500 if text == "bad" else 200)


# C01.2 ----------------------------------------------------------------------------


def test_one_handler_failing_does_not_run_the_other_again(seen):
    """Each handler of an event has a message of its own. [C01.2]"""

    @event_handler(channel=True)
    def good(event: Placed):
        seen.append("good")

    @event_handler(channel=True)
    def bad(event: Placed):
        seen.append("bad")
        if seen.count("bad") == 1:
            raise Refused

    registry_of(good, bad).event_bus.publish(Placed())
    assert len(waiting()) == 2
    with pytest.raises(Refused):
        run_channel()
    assert [each.endpoint.rpartition(".")[2] for each in waiting()] == ["bad"]
    run_channel()

    assert seen == ["good", "bad", "bad"]


# C01.3 ----------------------------------------------------------------------------


class Recorded(InMemoryChannel):
    """A channel that notes how it is written to."""

    writes: list = []

    def write(self, connection, entries):
        endpoints = [each.envelope.endpoint.rpartition(".")[2] for each in entries]
        self.writes.append((connection.alias, connection.in_atomic_block, endpoints))
        super().write(connection, entries)


RECORDED = {
    "default": {"BACKEND": "tests.channels.test_channels.Recorded"},
    "mail": {"BACKEND": "tests.channels.test_channels.Recorded"},
    "full": {"BACKEND": "tests.channels.test_channels.FullChannel"},
}


@pytest.fixture
def writes(settings):
    settings.DJANGO_CQRS = {"CHANNELS": RECORDED}
    Recorded.writes = []
    return Recorded.writes


def test_a_publish_outside_any_transaction_stores_its_rows_in_one(writes, seen):
    """After its synchronous handlers have succeeded, each channel written once. [C01.3]"""

    @event_handler
    def at_once(event: Placed):
        seen.append(connection.in_atomic_block)
        assert writes == []

    @event_handler(channel=True)
    def one(event: Placed): ...

    @event_handler(channel="mail")
    def two(event: Placed): ...

    @event_handler(channel=True)
    def three(event: Placed): ...

    registry = registry_of(at_once, one, two, three)
    with CaptureQueriesContext(connection) as captured:
        registry.event_bus.publish(Placed())

    assert seen == [False]
    assert writes == [
        ("default", True, ["one", "three"]),
        ("default", True, ["two"]),
    ]
    assert [query["sql"].split()[0] for query in captured] == ["BEGIN", "COMMIT"]


def test_where_a_synchronous_handler_raises_none_is_stored(writes):
    """A publish outside any transaction that failed has sent nothing. [C01.3]"""

    @event_handler(channel=True)
    def background(event: Placed): ...

    @event_handler
    def at_once(event: Placed):
        raise Refused

    with pytest.raises(Refused):
        registry_of(background, at_once).event_bus.publish(Placed())

    assert writes == []


def test_where_one_channel_cannot_store_none_does(writes):
    """All of a publish's rows are stored, or none. [C01.3]"""

    @event_handler(channel=True)
    def one(event: Placed): ...

    @event_handler(channel="full")
    def two(event: Placed): ...

    with pytest.raises(Refused):
        registry_of(one, two).event_bus.publish(Placed())

    assert len(writes) == 1
    assert waiting() == []


def test_inside_a_plain_atomic_block_they_join_it(writes):
    """With a transaction open there is no other: that one decides. [C01.3]"""

    @event_handler(channel=True)
    def one(event: Placed): ...

    @event_handler(channel=True)
    def two(event: Placed): ...

    bus = registry_of(one, two).event_bus
    undone(lambda: bus.publish(Placed()))

    assert writes == [("default", True, ["one", "two"])]
    assert waiting() == []


def test_in_a_command_they_are_written_with_all_it_sends(writes):
    """One write for each channel, at the command's end. [C01.3]"""

    @command_handler
    def go(command: Act, events: EventBus):
        events.publish(Placed(1))
        assert writes == []
        events.publish(Placed(2))

    @event_handler(channel=True)
    def one(event: Placed): ...

    @event_handler(channel="mail")
    def two(event: Placed): ...

    registry_of(go, one, two).command_bus.dispatch(Act(None))

    assert writes == [
        ("default", True, ["one", "one"]),
        ("default", True, ["two", "two"]),
    ]


def test_an_event_counts_as_sent_before_what_its_handlers_send(seen):
    """The order of sending is that of the calls, whatever is written first. [C01.3]"""

    @command_handler
    def go(command: Act, events: EventBus):
        events.publish(Placed(1))

    @event_handler
    def at_once(event: Placed, commands: CommandBus):
        commands.dispatch(Write("after"))

    @event_handler(channel="commit")
    def background(event: Placed):
        seen.append("event")

    @command_handler(channel="commit")
    def write(command: Write):
        seen.append(command.text)

    registry_of(go, at_once, background, write).command_bus.dispatch(Act(None))

    assert seen == ["event", "after"]


# C01.4 ----------------------------------------------------------------------------


@message("channels.loose")
@dataclass(frozen=True)
class Loose:
    number: float = 0
    lines: tuple[Line, ...] = ()
    extra: object = None


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (Loose(number="five"), "number: it would not come back from JSON unchanged"),
        (Loose(number=math.nan), "number: it would not come back from JSON unchanged"),
        (Loose(number=math.inf), "number: it would not come back from JSON unchanged"),
        (
            Loose(lines=(Line(UUID(int=1)), GiftLine(UUID(int=1), wish="blue"))),
            "lines.1: it would not come back from JSON unchanged",
        ),
        (Loose(extra=UUID(int=1)), "extra: it would not come back from JSON unchanged"),
        (Loose(extra=object()), "extra: it cannot be written as JSON"),
    ],
    ids=["wrong type", "nan", "inf", "nested subclass", "untyped", "no JSON"],
)
def test_what_would_not_come_back_raises_at_the_send(payload, reason):
    """The path is told, the command rolls back, and no handler of the event is called. [C01.4]"""
    called = []

    @command_handler
    def go(command: Act, events: EventBus):
        Note.objects.create(text="data")
        events.publish(payload)

    @event_handler(priority=9)
    def at_once(event: Loose):
        called.append(event)

    @event_handler(channel=True)
    def background(event: Loose):
        called.append(event)

    with pytest.raises(MessageConversionError) as refused:
        registry_of(go, at_once, background).command_bus.dispatch(Act(None))

    assert str(refused.value).startswith(
        f"Cannot convert the payload to Loose: {reason}"
    )
    assert called == []
    assert waiting() == []
    assert texts() == []


@dataclass(frozen=True)
class Unregistered:
    text: str = ""


def test_an_unregistered_class_raises_at_the_send(act, registry):
    """Only classes of annotations and @message classes are decoded, so others are not sent. [C01.4]"""

    @registry.add
    @command_handler("any", name="any", channel=True)
    def take_any(payload: object): ...

    with pytest.raises(UnknownMessage) as refused:
        act(lambda: registry.command_bus.dispatch(Unregistered(), route="any"))

    assert str(refused.value) == (
        "tests.channels.test_channels.Unregistered has no name on the wire: no "
        "handler's annotation mentions it. Name it with "
        '@message("app.name").'
    )
    assert waiting() == []


def test_a_class_that_has_no_name_raises_at_the_send(act, registry):
    """Of no app, it cannot be named after its place: @message does it. [C01.4]"""

    @registry.add
    @event_handler(channel=True)
    def on_nameless(event: Nameless): ...

    with pytest.raises(UnknownMessage) as refused:
        act(lambda: registry.event_bus.publish(Nameless("x")))

    assert str(refused.value) == (
        "tests.channels.test_channels.Nameless has no name on the wire: it does not "
        'belong to an installed app. Name it with @message("app.name").'
    )
    assert waiting() == []
    assert texts() == []


def test_nothing_of_a_publish_is_sent_where_one_copy_cannot_be():
    """All copies are made before any is sent, and before any handler is called. [C01.4]"""

    @event_handler("loose", name="dict", channel=True)
    def as_dict(event: dict): ...

    @event_handler("loose", name="uuid", channel="mail")
    def as_uuids(event: dict[str, UUID]): ...

    bus = registry_of(as_dict, as_uuids).event_bus
    with pytest.raises(MessageConversionError):
        bus.publish({"a": UUID(int=1)}, route="loose")

    assert waiting("default") == []
    assert waiting("mail") == []


# How a message is handled ---------------------------------------------------------


def test_a_handler_on_a_channel_runs_in_a_transaction_of_its_own(registry, seen):
    """A command's and an event's alike: what it wrote before it raised is undone."""
    states = []

    @registry.add
    @event_handler("go", channel=True)
    def on_go():
        states.append(connection.in_atomic_block)
        Note.objects.create(text="event")
        raise Refused

    registry.command_bus.dispatch(Write("bad"))
    with pytest.raises(Refused):
        run_channel()
    channels["default"].clear()
    registry.event_bus.publish(route="go")
    with pytest.raises(Refused):
        run_channel()

    assert seen == ["bad"]
    assert states == [True]
    assert texts() == []


def test_atomic_false_on_a_channel_opens_no_transaction():
    """Its writes stay though it raises."""

    @event_handler("go", channel=True, atomic=False)
    def on_go():
        assert not connection.in_atomic_block
        Note.objects.create(text="event")
        raise Refused

    registry_of(on_go).event_bus.publish(route="go")
    with pytest.raises(Refused):
        run_channel()

    assert texts() == ["event"]


@both_databases
def test_using_on_a_channel_names_the_handlers_database():
    """The transaction behind the channel is that of `using=`."""

    @event_handler("go", channel=True, using="other")
    def on_go():
        assert connections["other"].in_atomic_block
        assert not connection.in_atomic_block
        Note.objects.using("other").create(text="event")
        raise Refused

    registry_of(on_go).event_bus.publish(route="go")
    with pytest.raises(Refused):
        run_channel()

    assert texts("other") == []


def test_what_a_handler_on_a_channel_sends_waits_for_its_transaction(registry, seen):
    """It is a command as any other: of a failed one nothing is sent."""
    attempts = []

    @registry.add
    @event_handler("go", channel=True)
    def on_go(commands: CommandBus):
        commands.dispatch(Write("child"))
        attempts.append(len(waiting()))
        if len(attempts) == 1:
            raise Refused

    registry.event_bus.publish(route="go")
    with pytest.raises(Refused):
        run_channel()
    assert [each.name for each in waiting()] == [""]
    assert run_channel() == 2

    assert attempts == [0, 0]
    assert seen == ["child"]


def test_a_message_for_an_event_handler_that_has_no_channel_now(seen):
    """What was stored before channel= was taken away is handled as it would have been."""
    closed = []

    def resource():
        yield "resource"
        closed.append(connection.in_atomic_block)

    @event_handler(name="on_placed", channel=True)
    def before(event: Placed): ...

    @event_handler(name="on_placed")
    def after(event: Placed, made: Annotated[str, Depends(resource)]):
        Note.objects.create(text=made)
        raise Refused

    registry_of(before).event_bus.publish(Placed())
    [envelope] = waiting()
    with pytest.raises(Refused):
        registry_of(after).deliver(envelope)

    assert texts() == []


def test_dependencies_of_a_handler_on_a_channel_are_closed_after_it(seen):
    """Made once per message, closed when its handler has ended."""

    def resource():
        seen.append("open")
        yield len(seen)
        seen.append("close")

    @event_handler(channel=True)
    def on_placed(
        event: Placed,
        one: Annotated[int, Depends(resource)],
        two: Annotated[int, Depends(resource)],
    ):
        seen.append((event.number, one, two))

    bus = registry_of(on_placed).event_bus
    bus.publish(Placed(1))
    bus.publish(Placed(2))
    run_channel()

    assert seen == ["open", (1, 1, 1), "close", "open", (2, 4, 4), "close"]


def test_a_header_that_is_missing_raises_when_the_message_is_handled(seen):
    """Nobody looks into a handler's parameters at the send."""

    @command_handler(channel=True)
    def write(command: Write, who: Annotated[str, Header("who")]): ...

    registry_of(write).command_bus.dispatch(Write())

    with pytest.raises(MissingHeader):
        run_channel()


def test_queries_and_nested_commands_work_behind_a_channel(seen):
    """A handler on a channel is a handler."""

    @command_handler(channel=True)
    def write(command: Write, commands: CommandBus, queries: QueryBus):
        seen.append(commands.dispatch(1, route="double"))
        seen.append(queries.ask(2, route="triple"))

    @command_handler("double")
    def double(number: int):
        return number * 2

    @query_handler("triple")
    def triple(number: int):
        return number * 3

    registry_of(write, double, triple).command_bus.dispatch(Write())
    run_channel()

    assert seen == [2, 6]


# async ----------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["default", "commit"])
def test_async_handlers_on_a_channel(alias, seen):
    """They are awaited; their writes commit with their message's transaction."""

    @command_handler(channel=alias)
    async def write(command: Write):
        await asyncio.sleep(0)
        await Note.objects.acreate(text=command.text)
        seen.append(await sync_to_async(lambda: connection.in_atomic_block)())

    @event_handler(channel=alias)
    async def on_placed(event: Placed, commands: CommandBus):
        await commands.adispatch(Write("from event"))

    registry = registry_of(write, on_placed)
    registry.command_bus.dispatch(Write("direct"))
    registry.event_bus.publish(Placed())
    run_channel()

    assert seen == [True, True]
    assert texts() == ["direct", "from event"]


def test_an_async_handler_on_a_channel_that_fails_is_rolled_back():
    """Its async ORM writes are undone with it."""

    @command_handler(channel=True)
    async def write(command: Write):
        await Note.objects.acreate(text=command.text)
        raise Refused

    registry_of(write).command_bus.dispatch(Write())
    with pytest.raises(Refused):
        run_channel()

    assert texts() == []
    assert len(waiting()) == 1


async def test_adispatch_and_apublish_send_to_channels(registry, seen):
    """From a coroutine, in one hop; outside any transaction they wait at once."""
    assert await registry.command_bus.adispatch(Write("a"), delay=0) is None
    await registry.event_bus.apublish(Placed(1))

    assert [each.endpoint for each in await sync_to_async(waiting)()] == [
        "write",
        "on_placed",
    ]


async def test_adispatch_of_a_command_that_fails_sends_nothing(registry):
    """The whole unit is one transaction there too."""

    def steps():
        registry.command_bus.dispatch(Write("a"))
        raise Refused

    with pytest.raises(Refused):
        await registry.command_bus.adispatch(Act(steps))

    assert await sync_to_async(waiting)() == []


async def test_delivering_in_a_running_loop_is_refused(registry):
    """It would block the loop: one error names what to do."""
    await registry.command_bus.adispatch(Write())
    [envelope] = await sync_to_async(waiting)()

    with pytest.raises(SynchronousDispatch) as refused:
        registry.deliver(envelope)

    assert str(refused.value) == (
        "deliver() was called in a running event loop and would block it. Use `await "
        "sync_to_async(deliver)(envelope)`."
    )


# Two databases --------------------------------------------------------------------


@both_databases
def test_a_message_is_stored_with_the_database_of_its_command(registry, writes):
    """A command elsewhere commits on its own, and so do its messages."""

    def elsewhere():
        Note.objects.using("other").create(text="elsewhere")
        registry.command_bus.dispatch(Write("a"))
        registry.event_bus.publish(Placed(1))

    registry.command_bus.dispatch(ActElsewhere(elsewhere))
    assert writes == [("other", True, ["write", "on_placed"])]

    writes.clear()
    with pytest.raises(Refused):
        registry.command_bus.dispatch(ActElsewhere(lambda: [elsewhere(), fail()]))
    assert writes == []
    assert len(waiting()) == 2


@both_databases
def test_a_nested_command_elsewhere_keeps_its_messages_when_the_outer_fails(registry):
    """As it keeps its data: it has committed."""

    def inner():
        Note.objects.using("other").create(text="elsewhere")
        registry.command_bus.dispatch(Write("elsewhere"))

    def outer():
        registry.command_bus.dispatch(Write("here"))
        registry.command_bus.dispatch(ActElsewhere(inner))
        raise Refused

    with pytest.raises(Refused):
        registry.command_bus.dispatch(Act(outer))

    assert [each["text"] for each in payloads()] == ["elsewhere"]
    assert texts("other") == ["elsewhere"]


@both_databases
def test_the_calls_using_stands_before_the_commands_database(registry, writes):
    """using= says which data the message speaks of."""

    def steps():
        registry.command_bus.dispatch(Write("a"), using="other")
        assert writes == [("other", False, ["write"])]
        registry.event_bus.publish(Placed(), using="other")

    with pytest.raises(Refused):
        registry.command_bus.dispatch(Act(lambda: [steps(), fail()]))

    assert writes == [("other", False, ["write"]), ("other", True, ["on_placed"])]
    assert len(waiting()) == 2


@both_databases
def test_outside_any_command_the_handlers_own_database_is_taken(writes):
    """using= of the handler, else the default one."""

    @command_handler(channel=True, using="other")
    def write(command: Write): ...

    bus = registry_of(write).command_bus
    bus.dispatch(Write())
    bus.dispatch(Write(), using="default")

    assert [alias for alias, _, _ in writes] == ["other", "default"]


@both_databases
def test_what_an_on_commit_callback_of_a_command_elsewhere_sends(registry, writes):
    """It is stored there too, though the command has ended."""

    def steps():
        transaction.on_commit(
            lambda: registry.command_bus.dispatch(Write("a")), using="other"
        )

    registry.command_bus.dispatch(ActElsewhere(steps))

    assert writes == [("other", False, ["write"])]


# on_commit, threads ---------------------------------------------------------------


@KEYS
def test_sending_from_an_on_commit_callback(act, write, key):
    """After the commit nothing is waited for; of a failed command there is no callback."""
    act(lambda: transaction.on_commit(lambda: write("1", route=key)))
    caught(
        lambda: act(
            lambda: [transaction.on_commit(lambda: write("2", route=key)), fail()]
        )
    )
    run_channel()

    assert texts() == both("1")


def in_thread(function, *, inherits=False):
    """Call a function in another thread, and wait for it."""
    failures = []
    context = contextvars.copy_context() if inherits else contextvars.Context()

    def work():
        try:
            context.run(function)
        except Exception as error:  # noqa: BLE001 - it is raised again below
            failures.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("inherits", [False, True])
def test_what_a_thread_sends_has_a_transaction_of_its_own(act, registry, inherits):
    """It does not wait for the command that started it, nor fail with it."""
    found = []

    def steps():
        registry.command_bus.dispatch(Write("here"))
        in_thread(
            lambda: registry.command_bus.dispatch(Write("there")), inherits=inherits
        )
        found.extend(payloads())
        raise Refused

    with pytest.raises(Refused):
        act(steps)

    assert [each["text"] for each in found] == ["there"]
    assert [each["text"] for each in payloads()] == ["there"]


def test_many_threads_send_to_one_channel(registry):
    """Nothing is lost, and no two have one place in the order."""

    def send(number):
        for each in range(25):
            registry.command_bus.dispatch(Act(lambda: None))
            registry.command_bus.dispatch(Write(f"{number}.{each}"))

    threads = [
        threading.Thread(target=in_thread, args=[lambda number=number: send(number)])
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    sent = [each["text"] for each in payloads()]
    assert Counter(sent) == Counter(f"{n}.{e}" for n in range(4) for e in range(25))
    for number in range(4):
        own = [text for text in sent if text.startswith(f"{number}.")]
        assert own == [f"{number}.{each}" for each in range(25)]
    assert len({each.sequence for each in waiting()}) == 100


def test_manual_transaction_management_is_refused(registry):
    """Without autocommit nobody tells when it is committed, as with on_commit()."""
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError):
            registry.command_bus.dispatch(Write())
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert waiting() == []


# OnCommitChannel ------------------------------------------------------------------


def test_on_commit_the_handler_runs_after_the_commit(act, write, registry, seen):
    """Outside the command's transaction, when its data can be seen by all."""
    states = []

    @registry.add
    @command_handler("look", channel="commit", atomic=False)
    def look():
        states.append((connection.in_atomic_block, texts()))

    def steps():
        registry.command_bus.dispatch(route="look")
        write("1", route="write.commit")
        assert states == []

    act(steps)

    assert states == [(False, ["sent 1"])]
    assert seen == ["1"]
    assert texts() == both("1")


def test_on_commit_a_failure_is_logged_and_the_later_ones_run(act, write, seen, caplog):
    """Ids are logged, no payload; the sender hears nothing, and its data stays."""
    with caplog.at_level(logging.INFO):
        act(
            lambda: [
                write("1", route="write.commit"),
                write("bad", route="write.commit", headers={"who": "secret"}),
                write("3", route="write.commit"),
            ]
        )

    assert seen == ["1", "bad", "3"]
    assert texts() == sorted([*both("1", "3"), "sent bad"])
    [record] = caplog.records
    assert (record.name, record.levelname) == ("django_cqrs.channels", "ERROR")
    assert record.getMessage() == (
        f"Message {record.cqrs_message_id} for write_on_commit was lost: its handler "
        "failed after the commit"
    )
    assert record.exc_info[0] is Refused
    assert UUID(record.cqrs_message_id)
    assert UUID(record.cqrs_correlation_id)
    assert record.cqrs_endpoint == "write_on_commit"
    assert record.cqrs_channel == "commit"
    assert "secret" not in caplog.text


def test_on_commit_nothing_runs_after_a_rollback(act, write, seen):
    """Neither then, nor with the next commit."""
    caught(lambda: act(lambda: [write("1", route="write.commit"), fail()]))
    act(lambda: None)

    assert seen == []


def test_on_commit_outside_a_transaction_it_is_handled_at_once(registry, seen, caplog):
    """There is no commit to wait for; a failure is logged there too."""
    bus = registry.command_bus

    assert bus.dispatch(Write("1"), route="write.commit") is None
    assert seen == ["1"]
    assert bus.dispatch(Write("bad"), route="write.commit") is None
    assert [record.cqrs_endpoint for record in caplog.records] == ["write_on_commit"]


def test_on_commit_the_order_of_sending_is_kept(act, write, seen):
    """From whichever depth; callbacks of others stay where they are."""

    def steps():
        transaction.on_commit(lambda: seen.append("first callback"))
        write("1", route="write.commit")
        with transaction.atomic():
            write("2", route="write.commit")
            act(lambda: write("3", route="write.commit"))
        transaction.on_commit(lambda: seen.append("last callback"))
        write("4", route="write.commit")

    act(steps)

    assert [text for text in seen if "callback" not in text] == ["1", "2", "3", "4"]
    assert [text for text in seen if "callback" in text] == [
        "first callback",
        "last callback",
    ]


def test_on_commit_what_a_handler_sends_is_handled_after_its_own_commit(seen):
    """One after the other, each in its own transaction."""

    @command_handler("count", channel="commit")
    def count(number: int, commands: CommandBus):
        seen.append((number, "begin"))
        if number:
            commands.dispatch(number - 1, route="count")
        seen.append((number, "end"))

    registry_of(count).command_bus.dispatch(2, route="count")

    assert seen == [(number, word) for number in (2, 1, 0) for word in ("begin", "end")]


def test_on_commit_an_interrupt_is_not_swallowed(act, registry):
    """Ctrl-C in a handler stops the process, not the message alone."""

    @registry.add
    @command_handler("stop", channel="commit")
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        act(lambda: registry.command_bus.dispatch(route="stop"))


class TestInTestCase(TestCase):
    """Channels inside the transaction of a TestCase, which is never committed."""

    def setUp(self):
        self.seen = []
        self.registry = Registry()

        @self.registry.add
        @command_handler("memory", name="memory", channel=True)
        def memory(text: str):
            self.seen.append(text)
            if text == "bad":
                raise Refused

        @self.registry.add
        @command_handler("commit", name="commit", channel="commit")
        def commit(text: str):
            self.seen.append(text)
            if text == "bad":
                raise Refused

        @self.registry.add
        @command_handler("act")
        def act(text: str, route: Annotated[str, Header("to")], commands: CommandBus):
            commands.dispatch(text, route=route)

    def send(self, text, to):
        self.registry.command_bus.dispatch(text, route="act", headers={"to": to})

    def test_on_commit_with_captured_callbacks(self):
        """captureOnCommitCallbacks(execute=True) handles them; without it nothing runs."""
        self.send("1", "commit")
        assert self.seen == []

        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            self.send("2", "commit")
            self.send("3", "commit")
            assert self.seen == []

        assert self.seen == ["2", "3"]
        assert len(callbacks) == 2

    def test_on_commit_a_failure_under_captured_callbacks_is_logged(self):
        """The others run all the same."""
        with (
            self.assertLogs("django_cqrs.channels", "ERROR") as logs,
            self.captureOnCommitCallbacks(execute=True),
        ):
            self.send("bad", "commit")
            self.send("2", "commit")

        assert self.seen == ["bad", "2"]
        assert len(logs.records) == 1

    def test_in_memory_messages_can_be_run_without_a_commit(self):
        """run_channel() handles what the test's own transaction holds."""
        self.send("1", "memory")
        self.registry.command_bus.dispatch("2", route="memory")
        undone(lambda: self.send("3", "memory"))

        assert len(waiting()) == 2
        assert run_channel() == 2
        assert self.seen == ["1", "2"]

    def test_in_memory_messages_are_there_once_under_captured_callbacks(self):
        """Executing callbacks is no commit: they are not seen twice, nor by other tests."""
        with self.captureOnCommitCallbacks(execute=True):
            self.send("1", "memory")

        assert len(waiting()) == 1
        assert channels["default"]._committed == []
        assert run_channel() == 1
        assert self.seen == ["1"]

    def test_in_memory_nothing_is_left_by_another_test(self):
        """What a test's transaction holds goes with it."""
        assert waiting() == []
