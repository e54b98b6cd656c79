"""Traces: which spans there are, what they say, and what they never say."""

import asyncio
import json
from dataclasses import dataclass

import pytest
from asgiref.sync import async_to_sync
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from django_cqrs import (
    CommandBus,
    EventBus,
    Headers,
    Message,
    QueryBus,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.channels import channels
from django_cqrs.contrib.opentelemetry import instrument, uninstrument
from django_cqrs.interception import STOP, before, pointcut, pre_send
from tests.support import registry_of

pytestmark = pytest.mark.django_db

SECRET = "hunter2"


@dataclass(frozen=True)
class Open:
    title: str = SECRET


@message("ticket.give")
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


EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("tests")


@pytest.fixture(autouse=True)
def _instrumented():
    instrument(PROVIDER)
    yield
    uninstrument()
    EXPORTER.clear()


@pytest.fixture
def channel(settings):
    settings.DJANGO_CQRS = {
        "CHANNELS": {"default": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}
    }
    return channels["default"]


def spans():
    """Return the finished spans by name, the outermost first."""
    found = sorted(EXPORTER.get_finished_spans(), key=lambda span: span.start_time)
    return {span.name: span for span in found}


def parent_of(span, among):
    """Return the name of the span that a span is inside, None for a root."""
    if span.parent is None:
        return None
    return next(
        each.name
        for each in among.values()
        if each.context.span_id == span.parent.span_id
    )


# In one process -------------------------------------------------------------------


@command_handler
def open_ticket(command: Open, events: EventBus, commands: CommandBus) -> str:
    events.publish(Opened())
    commands.dispatch("text", route="ticket.assign")
    return command.title


@command_handler("ticket.assign", name="tickets.assign")
def assign(title: str, queries: QueryBus) -> str:
    return queries.ask(Find())


@query_handler(name="tickets.find")
def find(query: Find) -> str:
    return query.title


@event_handler(name="tickets.audit")
def audit(event: Opened) -> None: ...


@event_handler("ticket.*", name="tickets.count")
def count() -> None: ...


def test_each_handling_is_an_internal_span_named_by_its_message():
    """A handled message is a span of its name, class or key, inside its cause's span."""
    registry_of(open_ticket, assign, find, audit).command_bus.dispatch(Open())
    found = spans()

    assert list(found) == ["Open", "ticket.opened", "ticket.assign", "Find"]
    assert {name: parent_of(span, found) for name, span in found.items()} == {
        "Open": None,
        "ticket.opened": "Open",
        "ticket.assign": "Open",
        "Find": "ticket.assign",
    }
    assert {span.kind for span in found.values()} == {SpanKind.INTERNAL}
    assert {span.status.status_code for span in found.values()} == {StatusCode.UNSET}


def test_the_attributes_of_an_internal_span():
    """It says the type, the kind and the ids of the message, and who handles it."""
    seen = []

    @query_handler(name="tickets.find")
    def find(query: Find, message: Message) -> None:
        seen.append(message)

    registry_of(find).query_bus.ask(Find())

    assert dict(spans()["Find"].attributes) == {
        "cqrs.message.kind": "query",
        "cqrs.message.type": "tests.contrib.test_opentelemetry.Find",
        "cqrs.handler": "tickets.find",
        "cqrs.message.id": str(seen[0].message_id),
        "cqrs.message.correlation_id": str(seen[0].correlation_id),
    }


def test_each_handler_of_an_event_has_its_span():
    """Two handlers of one event are two spans of its name."""
    registry_of(audit, count).event_bus.publish(Opened())
    found = EXPORTER.get_finished_spans()

    assert [(span.name, span.attributes["cqrs.handler"]) for span in found] == [
        ("ticket.opened", "tickets.audit"),
        ("ticket.opened", "tickets.count"),
    ]


def test_a_span_is_inside_the_one_that_is_open():
    """The span of a request, say, is the parent."""
    bus = registry_of(find).query_bus
    with TRACER.start_as_current_span("request"):
        bus.ask(Find())
    found = spans()

    assert parent_of(found["Find"], found) == "request"


def test_what_runs_inside_sees_the_span():
    """A handler's own spans are inside its message's."""

    @query_handler
    def find(query: Find) -> None:
        with TRACER.start_as_current_span("inner"):
            pass

    registry_of(find).query_bus.ask(Find())
    found = spans()

    assert parent_of(found["inner"], found) == "Find"


def test_a_message_that_an_interceptor_stops_is_no_error():
    """STOP ends a message's way: that is no failure."""

    @before(pointcut.message(Open))
    def stop(command: Open) -> object:
        return STOP

    registry_of(open_ticket, stop).command_bus.dispatch(Open())

    assert spans()["Open"].status.status_code is StatusCode.UNSET


# Errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Refused(SECRET), "tests.contrib.test_opentelemetry.Refused"),
        (ValueError(SECRET), "ValueError"),
        (KeyboardInterrupt(SECRET), "KeyboardInterrupt"),
        (asyncio.CancelledError(SECRET), "asyncio.exceptions.CancelledError"),
    ],
)
def test_an_error_is_recorded_by_its_type(error, name):
    """A failed span has error.type and the status, and not a word of the text."""

    @command_handler
    def fail(command: Open) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        registry_of(fail).command_bus.dispatch(Open())

    span = spans()["Open"]
    assert caught.value is error
    assert span.attributes["error.type"] == name
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert span.events == ()


def test_a_nested_error_marks_every_span_that_it_passes():
    """A failure is that of the nested message and of those around it."""

    @command_handler
    def outer(command: Open, commands: CommandBus) -> None:
        commands.dispatch(Assign())

    @command_handler
    def inner(command: Assign) -> None:
        raise Refused

    with pytest.raises(Refused):
        registry_of(outer, inner).command_bus.dispatch(Open())

    codes = {name: span.status.status_code for name, span in spans().items()}
    assert codes == {"Open": StatusCode.ERROR, "ticket.give": StatusCode.ERROR}


# Over a channel -------------------------------------------------------------------


@command_handler(channel=True, name="tickets.assign")
def assign_later(command: Assign, headers: Headers, queries: QueryBus) -> None:
    own = {"message_id", "correlation_id", "causation_id", "timestamp"}
    own |= {"attempt", "is_last_attempt"}
    assert set(headers) - own == {"tenant"}
    queries.ask(Find())


def test_a_channel_parts_the_trace_in_two_that_are_linked(channel):
    """
    The sending is a PRODUCER span in the sender's trace; the handling a CONSUMER span
    in a trace of its own, linked to the first, with its own spans inside.
    """
    registry = registry_of(assign_later, find)
    with TRACER.start_as_current_span("request"):
        registry.command_bus.dispatch(Assign(), headers={"tenant": "a"})
    assert list(spans()) == ["request", "send default"]

    channel.run()
    found = spans()

    assert list(found) == ["request", "send default", "process ticket.give", "Find"]
    sent, handled = found["send default"], found["process ticket.give"]
    assert (sent.kind, handled.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert [parent_of(span, found) for span in found.values()] == [
        None,
        "request",
        None,
        "process ticket.give",
    ]
    assert handled.context.trace_id != sent.context.trace_id
    assert [link.context.span_id for link in handled.links] == [sent.context.span_id]
    assert [link.context.trace_id for link in handled.links] == [sent.context.trace_id]


def test_the_attributes_of_messaging_spans(channel):
    """Both have the messaging conventions' attributes, beside our own."""
    registry_of(assign_later, find).command_bus.dispatch(
        Assign(), headers={"tenant": "a"}
    )
    (envelope,) = channel.waiting()
    channel.run()
    ids = str(envelope.message_id), str(envelope.correlation_id)
    common = {
        "cqrs.message.kind": "command",
        "cqrs.message.type": "tests.contrib.test_opentelemetry.Assign",
        "cqrs.handler": "tickets.assign",
        "cqrs.channel": "default",
        "cqrs.message.id": ids[0],
        "cqrs.message.correlation_id": ids[1],
        "messaging.system": "django_cqrs",
        "messaging.message.id": ids[0],
        "messaging.message.conversation_id": ids[1],
    }

    found = spans()
    assert dict(found["send default"].attributes) == {
        **common,
        "messaging.destination.name": "default",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }
    assert dict(found["process ticket.give"].attributes) == {
        **common,
        "messaging.destination.name": "ticket.give",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "tickets.assign",
    }


def test_the_context_travels_as_w3c_says_and_is_no_header(channel):
    """The envelope carries a traceparent; neither handler nor later message sees it."""
    registry_of(assign_later, find).command_bus.dispatch(
        Assign(), headers={"tenant": "a"}
    )
    (envelope,) = channel.waiting()
    sent = spans()["send default"].context

    headers = json.loads(envelope.headers)
    assert headers == {
        "tenant": "a",
        "django_cqrs.trace": {
            "traceparent": f"00-{sent.trace_id:032x}-{sent.span_id:016x}-"
            f"{sent.trace_flags:02x}"
        },
    }
    assert channel.run() == 1


def test_each_copy_of_an_event_has_its_own_spans(channel):
    """An event for two channel handlers is sent twice and processed twice."""

    @event_handler(channel=True, name="one")
    def one(event: Opened) -> None: ...

    @event_handler(channel=True, name="two")
    def two(event: Opened) -> None: ...

    @event_handler(name="three")
    def three(event: Opened) -> None: ...

    registry_of(one, two, three).event_bus.publish(Opened())
    channel.run()
    found = sorted(EXPORTER.get_finished_spans(), key=lambda span: span.start_time)

    said = [(span.name, span.attributes["cqrs.handler"]) for span in found]
    assert said == [
        ("send default", "one"),
        ("send default", "two"),
        ("ticket.opened", "three"),
        ("process ticket.opened", "one"),
        ("process ticket.opened", "two"),
    ]
    linked = [span.links[0].context.span_id for span in found[3:]]
    assert linked == [span.context.span_id for span in found[:2]]


def test_a_chain_of_channels_is_a_chain_of_links(channel):
    """What a handler behind a channel sends on is linked to the handling, not back."""

    @command_handler("first", channel=True)
    def first(title: str, commands: CommandBus) -> None:
        commands.dispatch(title, route="second")

    @command_handler("second", channel=True)
    def second(title: str) -> None: ...

    registry_of(first, second).command_bus.dispatch("a", route="first")
    channel.run()
    found = sorted(EXPORTER.get_finished_spans(), key=lambda span: span.start_time)

    assert [span.name for span in found] == [
        "send default",
        "process first",
        "send default",
        "process second",
    ]
    assert found[1].parent is None
    assert found[2].parent.span_id == found[1].context.span_id
    assert found[3].links[0].context.span_id == found[2].context.span_id


def test_a_failed_handling_behind_a_channel(channel):
    """The CONSUMER span has the error; a second attempt is a second span of its own."""

    @command_handler("fail", channel=True)
    def fail(title: str) -> None:
        raise Refused(title)

    registry_of(fail).command_bus.dispatch(SECRET, route="fail")
    for _ in range(2):
        with pytest.raises(Refused):
            channel.run()

    failed = [s for s in EXPORTER.get_finished_spans() if s.name == "process fail"]
    assert [span.attributes["error.type"] for span in failed] == [
        "tests.contrib.test_opentelemetry.Refused"
    ] * 2
    assert failed[0].links[0].context == failed[1].links[0].context


def test_what_is_not_sent_has_no_producer(channel):
    """A message that pre_send refuses leaves no span of a sending."""

    @pre_send(pointcut.message(Assign))
    def stop(command: Assign) -> object:
        return STOP

    registry_of(assign_later, stop).command_bus.dispatch(Assign())

    assert spans() == {}


@command_handler("note", channel=True)
def note(title: str) -> None: ...


def test_a_message_from_before_it_was_instrumented_has_no_link(channel):
    """A stored message without a context is processed in a span without links."""
    uninstrument()
    registry_of(note).command_bus.dispatch("a", route="note")
    instrument(PROVIDER)
    with TRACER.start_as_current_span("worker"):
        channel.run()
    found = spans()

    assert found["process note"].links == ()
    assert parent_of(found["process note"], found) == "worker"


@pytest.mark.parametrize(
    "stored", [{"traceparent": 7}, {"traceparent": "x"}, {"a": ["b"]}, "text", None, {}]
)
def test_whatever_is_stored_does_not_stop_a_message(channel, stored):
    """A broken context makes no link, and the message is handled all the same."""
    registry_of(note).command_bus.dispatch("a", route="note")
    ((delivery, _),) = channel._held()
    broken = json.dumps({"django_cqrs.trace": stored}).encode()
    object.__setattr__(delivery.envelope, "headers", broken)

    assert channel.run() == 1
    assert spans()["process note"].links == ()


def test_baggage_travels_too(channel):
    """The sender's baggage is there where its message is handled, and only there."""
    seen = []

    @command_handler("note", channel=True)
    def note(title: str) -> None:
        seen.append(baggage.get_baggage("tenant"))

    registry = registry_of(note)
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    registry.command_bus.dispatch("a", route="note")
    context.detach(token)
    channel.run()

    assert seen == ["acme"]
    assert baggage.get_baggage("tenant") is None


def test_an_unsampled_trace_stays_unsampled(channel):
    """A sender that is not sampled has no spans, and its message is handled."""
    instrument(TracerProvider(sampler=ALWAYS_OFF))
    registry_of(note).command_bus.dispatch("a", route="note")

    assert channel.run() == 1
    assert spans() == {}


# Secrets --------------------------------------------------------------------------


def test_no_span_holds_a_payload_or_a_header(channel):
    """Neither payloads, headers, results nor the texts of exceptions are in a span."""

    @command_handler("fail", channel=True)
    def fail(title: str) -> None:
        raise Refused(title)

    registry = registry_of(open_ticket, assign, find, audit, fail)
    registry.command_bus.dispatch(Open(), headers={"password": SECRET})
    registry.command_bus.dispatch(SECRET, route="fail", headers={"password": SECRET})
    with pytest.raises(Refused):
        channel.run()

    said = [span.to_json() for span in EXPORTER.get_finished_spans()]
    assert len(said) == 6
    assert SECRET not in "".join(said)


# Async ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_spans_nest_over_the_hop_to_the_thread(is_async):
    """adispatch keeps the caller's span as the parent, and gives it back."""

    async def aopen(command: Open, commands: CommandBus) -> None:
        await commands.adispatch(Assign())

    def open_(command: Open, commands: CommandBus) -> None:
        commands.dispatch(Assign())

    @command_handler
    def inner(command: Assign) -> None:
        with TRACER.start_as_current_span("inner"):
            pass

    bus = registry_of(command_handler(aopen if is_async else open_), inner).command_bus

    async def main():
        with TRACER.start_as_current_span("request") as span:
            await bus.adispatch(Open())
            assert trace.get_current_span() is span

    async_to_sync(main)()
    found = spans()

    assert [(name, parent_of(span, found)) for name, span in found.items()] == [
        ("request", None),
        ("Open", "request"),
        ("ticket.give", "Open"),
        ("inner", "ticket.give"),
    ]


def test_a_cancelled_command_does_not_leave_its_span_behind():
    """What the caller does after a cancelled adispatch is in the caller's span."""

    @command_handler
    async def wait(command: Open) -> None:
        await asyncio.sleep(10)

    bus = registry_of(wait).command_bus

    async def main():
        with TRACER.start_as_current_span("request") as span:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await bus.adispatch(Open())
            assert trace.get_current_span() is span

    async_to_sync(main)()

    error = spans()["Open"].attributes["error.type"]
    assert error == "asyncio.exceptions.CancelledError"


# Installed or not -----------------------------------------------------------------


def test_without_it_nothing_is_in_the_way():
    """Uninstrumented, a handler is called by what calls it without tracing."""
    bus = registry_of(find).query_bus
    bus.ask(Find())
    traced, _ = bus._by_type[Find]
    assert len(spans()) == 1

    uninstrument()
    bus.ask(Find())
    assert len(spans()) == 1
    run, _ = bus._by_type[Find]
    assert run.__qualname__ != traced.__qualname__

    instrument(PROVIDER)
    bus.ask(Find())
    assert len(EXPORTER.get_finished_spans()) == 2


def test_to_instrument_twice_is_to_do_it_once():
    """A second call replaces the first: there is one span for each message."""
    other = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(other))
    instrument(provider)
    registry_of(find).query_bus.ask(Find())
    uninstrument()
    uninstrument()

    assert len(other.get_finished_spans()) == 1
    assert spans() == {}


def test_without_an_sdk_nothing_happens(channel):
    """With the API alone, spans lead nowhere and no context is stored."""
    instrument()
    registry_of(note).command_bus.dispatch("a", route="note")
    (envelope,) = channel.waiting()

    assert json.loads(envelope.headers) == {}
    assert channel.run() == 1


def test_the_spans_say_which_library_made_them():
    """The instrumentation's name and version are this package's."""
    registry_of(find).query_bus.ask(Find())
    scope = spans()["Find"].instrumentation_scope

    assert scope.name == "django_cqrs"
    assert scope.version
