"""Signals about the buses, and what they log: said of messages, routing none."""

import gc
import logging
import time
from dataclasses import dataclass

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.dispatch import receiver

from django_cqrs import (
    CommandBus,
    EventBus,
    Headers,
    Message,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.channels import channels
from django_cqrs.interception import STOP, before, pointcut
from django_cqrs.signals import message_failed, message_handled
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db

SECRET = "hunter2"


@dataclass(frozen=True)
class Open:
    title: str = SECRET


@dataclass(frozen=True)
class Assign:
    title: str = SECRET


@message("ticket.opened")
@dataclass(frozen=True)
class Opened:
    title: str = SECRET


@dataclass(frozen=True)
class Find:
    title: str = SECRET


class Refused(Exception):
    """What a handler here raises on purpose."""


@pytest.fixture
def sent():
    """The signals that were sent, as pairs of a name and the arguments."""
    found = []

    def handled(sender, **arguments):
        found.append(("handled", {"sender": sender, **arguments}))

    def failed(sender, **arguments):
        found.append(("failed", {"sender": sender, **arguments}))

    message_handled.connect(handled)
    message_failed.connect(failed)
    yield found
    message_handled.disconnect(handled)
    message_failed.disconnect(failed)


@pytest.fixture
def channel(settings):
    settings.DJANGO_CQRS = {
        "CHANNELS": {"default": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}
    }
    return channels["default"]


def summary(sent):
    return [(name, arguments["endpoint"]) for name, arguments in sent]


@command_handler(name="open")
def open_ticket(command: Open, events: EventBus, commands: CommandBus) -> str:
    events.publish(Opened())
    return commands.dispatch("text", route="ticket.assign")


@command_handler("ticket.assign", name="assign")
def assign(title: str, queries: QueryBus) -> str:
    return queries.ask(Find())


@query_handler(name="find")
def find(query: Find) -> str:
    return query.title


@event_handler(name="audit")
def audit(event: Opened) -> None: ...


@event_handler("ticket.*", name="count")
def count() -> None: ...


# Signals --------------------------------------------------------------------------


def test_each_handler_that_returns_is_told_of_in_the_order_they_return(sent):
    """message_handled is sent for each handler, the innermost first."""
    registry_of(open_ticket, assign, find, audit, count).command_bus.dispatch(Open())

    assert summary(sent) == [
        ("handled", "audit"),
        ("handled", "count"),
        ("handled", "find"),
        ("handled", "assign"),
        ("handled", "open"),
    ]


def test_the_arguments_of_message_handled(sent):
    """The sender is the bus's class; message, endpoint and duration are given."""
    seen = []

    @query_handler(name="find")
    def find(query: Find, message: Message) -> None:
        seen.append(message)
        time.sleep(0.002)

    registry_of(find).query_bus.ask(Find(), headers={"tenant": "a"})
    ((_, arguments),) = sent

    assert arguments.pop("signal") is message_handled
    assert 0.002 <= arguments.pop("duration") < 1
    assert arguments == {"sender": QueryBus, "message": seen[0], "endpoint": "find"}


def test_the_arguments_of_message_failed(sent):
    """message_failed has the exception as well, which goes its way unchanged."""
    error = Refused("no")

    @command_handler(name="fail")
    def fail(command: Open) -> None:
        time.sleep(0.002)
        raise error

    with pytest.raises(Refused) as caught:
        registry_of(fail).command_bus.dispatch(Open())
    ((name, arguments),) = sent

    assert caught.value is error
    assert name == "failed"
    assert arguments["sender"] is CommandBus
    assert arguments["endpoint"] == "fail"
    assert arguments["message"].payload == Open()
    assert arguments["exception"] is error
    assert arguments["duration"] >= 0.002
    assert (arguments["attempt"], arguments["is_last_attempt"]) == (1, True)


def test_a_failure_is_told_of_for_each_handler_that_it_passes(sent):
    """The nested handler that raised failed, and so did those around it."""

    @command_handler(name="outer")
    def outer(command: Open, commands: CommandBus) -> None:
        commands.dispatch(Assign())

    @command_handler(name="inner")
    def inner(command: Assign) -> None:
        raise Refused

    with pytest.raises(Refused):
        registry_of(outer, inner).command_bus.dispatch(Open())

    assert summary(sent) == [("failed", "inner"), ("failed", "outer")]


def test_a_handler_that_is_not_reached_is_not_told_of(sent):
    """After an event handler that raises, those behind it have not run."""

    @event_handler(name="refuse", priority=1)
    def refuse(event: Opened) -> None:
        raise Refused

    with pytest.raises(Refused):
        registry_of(audit, refuse).event_bus.publish(Opened())

    assert summary(sent) == [("failed", "refuse")]


def test_an_interrupt_is_a_failure(sent):
    """Whatever leaves a handler early is told of."""

    @command_handler(name="stop")
    def stop(command: Open) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry_of(stop).command_bus.dispatch(Open())

    assert summary(sent) == [("failed", "stop")]


def test_a_message_that_is_stopped_is_handled(sent):
    """STOP ends a message's way without a failure."""

    @before(pointcut.message(Open))
    def stop(command: Open) -> object:
        return STOP

    registry_of(open_ticket, stop).command_bus.dispatch(Open())

    assert summary(sent) == [("handled", "open")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fails", [False, True])
def test_a_command_is_told_of_when_its_transaction_has_ended(fails):
    """message_handled comes after the commit, message_failed after the roll-back."""
    seen = []

    def look(sender, **_arguments):
        seen.append((connection.in_atomic_block, Note.objects.count()))

    @command_handler
    def write(command: Open) -> None:
        Note.objects.create(text="a")
        if fails:
            raise Refused

    signal = message_failed if fails else message_handled
    signal.connect(look)
    try:
        registry_of(write).command_bus.dispatch(Open())
    except Refused:
        pass
    finally:
        signal.disconnect(look)

    assert seen == [(False, 0 if fails else 1)]


def test_a_message_behind_a_channel_is_told_of_when_it_is_handled(sent, channel):
    """The sending of a message is no handling; its class of bus is the sender."""

    @command_handler("note", channel=True, name="note")
    def note(title: str) -> None: ...

    @event_handler("noted", channel=True, name="noted")
    def noted(title: str) -> None: ...

    registry = registry_of(note, noted)
    registry.command_bus.dispatch("a", route="note")
    registry.event_bus.publish("a", route="noted")
    assert sent == []

    channel.run()
    assert summary(sent) == [("handled", "note"), ("handled", "noted")]
    assert [arguments["sender"] for _, arguments in sent] == [CommandBus, EventBus]


def test_receivers_may_be_for_one_class_of_bus():
    """connect(sender=...) hears of the messages of that class of bus alone."""
    seen = []

    class WebhookBus(CommandBus):
        pass

    def listen(sender, endpoint, **_arguments):
        seen.append(endpoint)

    registry = registry_of(open_ticket, assign, find)
    message_handled.connect(listen, sender=WebhookBus)
    try:
        registry.command_bus.dispatch(Open())
        assert seen == []
        WebhookBus(registry=registry).dispatch(Open())
    finally:
        message_handled.disconnect(listen, sender=WebhookBus)

    assert seen == ["open"]


def test_a_receiver_that_raises_changes_nothing(sent, caplog):
    """Its exception is logged; the result, the transaction and the others stand."""

    @command_handler(name="write")
    def write(command: Open) -> str:
        Note.objects.create(text="a")
        return "result"

    def broken(sender, **_arguments):
        raise LookupError("a receiver's fault")

    message_handled.connect(broken)
    try:
        assert registry_of(write).command_bus.dispatch(Open()) == "result"
    finally:
        message_handled.disconnect(broken)

    assert Note.objects.count() == 1
    assert summary(sent) == [("handled", "write")]
    assert "a receiver's fault" in caplog.text


def test_a_receiver_that_raises_does_not_hide_a_failure():
    """The handler's own exception reaches the caller, whatever receivers do."""

    @command_handler
    def fail(command: Open) -> None:
        raise Refused

    def broken(sender, **_arguments):
        raise LookupError

    message_failed.connect(broken)
    try:
        with pytest.raises(Refused):
            registry_of(fail).command_bus.dispatch(Open())
    finally:
        message_failed.disconnect(broken)


def test_a_receiver_may_send_messages():
    """What a receiver sends is caused by the message it is told of."""
    seen = []
    registry = Registry()

    @registry.add
    @command_handler
    def handle(command: Open, message: Message) -> None:
        seen.append(message)

    @registry.add
    @event_handler
    def hear(event: Opened, message: Message, headers: Headers) -> None:
        seen.append(message)

    def tell(sender, message, **_arguments):
        if isinstance(message.payload, Open):
            registry.event_bus.publish(Opened())

    message_handled.connect(tell)
    try:
        registry.command_bus.dispatch(Open(), headers={"tenant": "a"})
    finally:
        message_handled.disconnect(tell)

    command, event = seen
    assert event.causation_id == command.message_id
    assert event.headers["tenant"] == "a"


@pytest.mark.parametrize("is_async", [False, True], ids=["dispatch", "adispatch"])
def test_receivers_may_be_async(is_async):
    """An async receiver is run to its end, for both kinds of caller."""
    seen = []

    async def listen(sender, endpoint, **_arguments):
        seen.append(endpoint)

    message_handled.connect(listen)
    bus = registry_of(find).query_bus
    try:
        (async_to_sync(bus.aask) if is_async else bus.ask)(Find())
    finally:
        message_handled.disconnect(listen)

    assert seen == ["find"]


def test_methods_of_services_are_told_of(sent):
    """Handlers of every kind are: functions and methods."""

    @service
    class Tickets:
        @command_handler(name="close")
        def close(self, command: Open) -> None: ...

    registry_of(Tickets).command_bus.dispatch(Open())

    assert summary(sent) == [("handled", "close")]


# Compiled in, or not --------------------------------------------------------------


def run_of(bus, cls):
    run, _ = bus._by_type[cls]
    return run


def names_in(run):
    """Return the names of the functions that a message passes on its way."""
    names, todo = [], [run]
    while todo:
        function = todo.pop()
        names.append(function.__qualname__.partition(".")[0])
        held = [c.cell_contents for c in getattr(function, "__closure__", None) or ()]
        todo.extend(x for x in held if callable(x) and hasattr(x, "__code__"))
    return names


def test_where_nobody_listens_nothing_is_in_the_way():
    """Signals are compiled in when a receiver connects and out when the last has gone."""
    seen = []

    def listen(sender, **_arguments):
        seen.append(sender)

    bus = registry_of(find).query_bus

    bus.ask(Find())
    assert "_signalled" not in names_in(run_of(bus, Find))

    message_failed.connect(listen)
    bus.ask(Find())
    assert "_signalled" in names_in(run_of(bus, Find))
    assert seen == []

    assert message_failed.disconnect(listen)
    assert not message_failed.disconnect(listen)
    bus.ask(Find())
    assert "_signalled" not in names_in(run_of(bus, Find))


def test_a_receiver_is_heard_from_the_next_message_on():
    """Connecting works at any time, also for routes that have been used."""
    seen = []

    @receiver(message_handled)
    def listen(sender, endpoint, **_arguments):
        seen.append(endpoint)

    bus = registry_of(find).query_bus
    bus.ask(Find())
    message_handled.disconnect(listen)
    bus.ask(Find())
    message_handled.connect(listen)
    bus.ask(Find())
    message_handled.disconnect(listen)

    assert seen == ["find", "find"]


def test_connecting_keeps_services():
    """A receiver that connects changes no object that handlers were given."""

    @service
    class Counter:
        def __init__(self) -> None:
            self.value = 0

        @query_handler
        def count(self, query: Find) -> int:
            self.value += 1
            return self.value

    def listen(sender, **_arguments): ...

    bus = registry_of(Counter).query_bus
    assert bus.ask(Find()) == 1
    message_handled.connect(listen)
    assert bus.ask(Find()) == 2
    message_handled.disconnect(listen)
    assert bus.ask(Find()) == 3


def test_receivers_are_referenced_weakly():
    """As with any signal, a receiver that nobody keeps is forgotten."""
    seen = []

    def connect():
        def listen(sender, **_arguments):
            seen.append(sender)

        message_handled.connect(listen)

    bus = registry_of(find).query_bus
    connect()
    gc.collect()
    bus.ask(Find())

    assert seen == []


def test_a_dispatch_uid_connects_once():
    """The same dispatch_uid is one receiver, however often it is connected."""
    seen = []

    def listen(sender, **_arguments):
        seen.append(sender)

    for _ in range(2):
        message_handled.connect(listen, dispatch_uid="tests")
    registry_of(find).query_bus.ask(Find())
    message_handled.disconnect(dispatch_uid="tests")

    assert seen == [QueryBus]


def test_events_with_one_handler_are_told_of_once(sent):
    """The short cut for an event of one handler tells of it all the same, once."""
    registry = registry_of(audit)
    for _ in range(2):
        registry.event_bus.publish(Opened())
    registry.event_bus.publish({}, route="ticket.opened")

    assert summary(sent) == [("handled", "audit")] * 3


# Logs -----------------------------------------------------------------------------


@pytest.fixture
def logged(caplog):
    """What is logged while the logger is at DEBUG."""
    with caplog.at_level(logging.DEBUG, logger="django_cqrs"):
        yield caplog


def lines(caplog):
    return [
        (record.levelname, record.name, record.getMessage())
        for record in caplog.records
        if record.name.startswith("django_cqrs")
    ]


def without_times(text):
    words = text.split()
    return " ".join("N" if each.replace(".", "").isdigit() else each for each in words)


def test_each_message_is_a_line_at_debug(logged):
    """At DEBUG each handled message is one line: what, by whom, how long."""
    registry_of(open_ticket, assign, find, audit).command_bus.dispatch(Open())

    said = [(level, name, without_times(text)) for level, name, text in lines(logged)]
    assert said == [
        ("DEBUG", "django_cqrs.pipeline", text)
        for text in (
            "ticket.opened was handled by audit in N ms",
            "Find was handled by find in N ms",
            "ticket.assign was handled by assign in N ms",
            "Open was handled by open in N ms",
        )
    ]


def test_a_line_carries_ids_for_structured_logs(logged):
    """The ids and the endpoint are fields of the record."""
    seen = []

    @query_handler(name="find")
    def find(query: Find, message: Message) -> None:
        seen.append(message)

    registry_of(find).query_bus.ask(Find())
    (record,) = [each for each in logged.records if each.name.startswith("django_cqrs")]

    assert record.cqrs_endpoint == "find"
    assert record.cqrs_message_id == str(seen[0].message_id)
    assert record.cqrs_correlation_id == str(seen[0].correlation_id)


def test_a_failure_is_a_line_with_the_class_of_its_error(logged):
    """A handler that raises is a line too: the exception itself is the caller's."""

    @command_handler(name="fail")
    def fail(command: Open) -> None:
        raise Refused(command.title)

    with pytest.raises(Refused):
        registry_of(fail).command_bus.dispatch(Open())
    ((level, name, text),) = lines(logged)

    assert (level, name) == ("DEBUG", "django_cqrs.pipeline")
    assert without_times(text) == (
        "Open failed in fail after N ms with tests.test_signals.Refused"
    )


def test_a_message_for_a_channel_is_a_line_when_it_is_sent(logged, channel):
    """The sending and the handling are two lines of one message."""

    @command_handler("note", channel=True, name="note")
    def note(title: str) -> None: ...

    registry_of(note).command_bus.dispatch(SECRET, route="note")
    channel.run()

    assert [without_times(text) for _, _, text in lines(logged)] == [
        "note was sent to the channel 'default' for note",
        "note was handled by note in N ms",
    ]
    ids = {
        each.cqrs_message_id
        for each in logged.records
        if each.name == "django_cqrs.pipeline"
    }
    assert len(ids) == 1


def test_no_line_holds_a_payload_or_a_header(logged, channel):
    """Neither payloads, headers, results nor the texts of exceptions are logged."""

    @command_handler("fail", channel=True)
    def fail(title: str) -> None:
        raise Refused(title)

    registry = registry_of(open_ticket, assign, find, audit, fail)
    registry.command_bus.dispatch(Open(), headers={"password": SECRET})
    registry.command_bus.dispatch(SECRET, route="fail", headers={"password": SECRET})
    with pytest.raises(Refused):
        channel.run()

    assert len(lines(logged)) == 6
    for record in logged.records:
        assert SECRET not in str(vars(record))


def test_above_debug_nothing_is_logged_and_nothing_is_in_the_way(caplog):
    """Where the logger is not at DEBUG, no line is compiled in."""
    bus = registry_of(find).query_bus
    with caplog.at_level(logging.INFO, logger="django_cqrs"):
        bus.ask(Find())

    assert lines(caplog) == []
    assert "_logged" not in names_in(run_of(bus, Find))


def test_the_loggers_are_below_one_name(channel):
    """Every logger of the package is below django_cqrs, where LOGGING finds it."""
    ours = [name for name in logging.root.manager.loggerDict if "cqrs" in name]

    assert all(name.partition(".")[0] == "django_cqrs" for name in ours)


@pytest.mark.django_db(transaction=True)
def test_signals_say_nothing_of_the_transaction_around():
    """A nested command was handled, even where the outer one is rolled back later."""
    seen = []

    def listen(sender, endpoint, **_arguments):
        seen.append(endpoint)

    message_handled.connect(listen)
    try:
        with pytest.raises(Refused), transaction.atomic():  # noqa: PT012
            registry_of(open_ticket, assign, find).command_bus.dispatch(Open())
            raise Refused
    finally:
        message_handled.disconnect(listen)

    assert seen == ["find", "assign", "open"]
