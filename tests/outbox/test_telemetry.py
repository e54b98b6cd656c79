"""OpenTelemetry over the outbox: spans linked across its rows, and gauges of them."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from django_cqrs import CommandBus, Registry, Retry, command_handler
from django_cqrs.contrib.opentelemetry import (
    instrument,
    observe_outbox,
    uninstrument,
)
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State
from django_cqrs.outbox.store import replay
from django_cqrs.outbox.worker import Worker
from tests.outbox.support import (
    letters,
    on_databases,
    registry_of,
    rows,
    send,
    work,
)
from tests.outbox.work import OtherWork, Work

pytestmark = on_databases

EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("tests")


@pytest.fixture
def traced():
    instrument(PROVIDER)
    yield
    uninstrument()
    EXPORTER.clear()


def spans(kind):
    found = [each for each in EXPORTER.get_finished_spans() if each.kind is kind]
    return sorted(found, key=lambda each: each.start_time)


def links_of(span):
    return [link.context.span_id for link in span.links]


# ------------------------------------------------------------------------------- spans


def succeed(command: Work):
    """Nothing to do."""


def test_the_handling_span_is_linked_to_the_sending_one(traced):
    """Through a row of the outbox and another connection, whoever sends."""
    registry = registry_of(succeed)
    with TRACER.start_as_current_span("request") as request:
        send(registry, 1)

    work(registry)

    (sent,), (handled,) = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
    assert sent.parent.span_id == request.get_span_context().span_id
    assert links_of(handled) == [sent.context.span_id]
    assert handled.links[0].context.trace_id == sent.context.trace_id
    assert handled.parent is None
    assert handled.attributes["cqrs.channel"] == "outbox"


def test_each_message_of_a_batch_is_linked_to_its_own(traced):
    """That they share a transaction mixes nothing up."""
    registry = registry_of(succeed)
    send(registry, 1, 2, 3)

    work(registry)

    sent, handled = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
    ids = [each.context.span_id for each in sent]
    assert [links_of(each) for each in handled] == [[each] for each in ids]
    assert [each.attributes["cqrs.message.id"] for each in handled] == [
        each.attributes["cqrs.message.id"] for each in sent
    ]


def test_every_attempt_and_a_replay_are_linked(traced):
    """What is tried again, given up and put back is still the message that was sent."""
    fail = {"is_broken": True}
    registry = Registry()

    @registry.add
    @command_handler(
        name="do", channel="outbox", retry=Retry(attempts=2, delay=0, jitter=False)
    )
    def do(command: Work):
        if fail["is_broken"]:
            raise ValueError

    send(registry, 1)
    work(registry)
    fail["is_broken"] = False
    assert replay(letters(), using="default") == 1
    work(registry)

    (sent,), handled = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
    assert [links_of(each) for each in handled] == [[sent.context.span_id]] * 3
    assert [each.attributes.get("error.type") for each in handled] == [
        "ValueError",
        "ValueError",
        None,
    ]


def test_what_a_background_handler_sends_goes_on_from_it(traced):
    """Hop by hop a trace leads back to the request."""
    registry = Registry()

    @registry.add
    @command_handler(name="first", channel="outbox")
    def first(command: Work, commands: CommandBus):
        commands.dispatch(OtherWork())

    @registry.add
    @command_handler(name="second", channel="outbox")
    def second(command: OtherWork): ...

    send(registry, 1)
    work(registry)

    (one, two), (begun, ended) = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
    assert links_of(begun) == [one.context.span_id]
    assert two.parent.span_id == begun.context.span_id
    assert links_of(ended) == [two.context.span_id]


def test_the_task_of_an_engine_is_linked_as_well(traced):
    """What the task carries is ids of rows: the context is read from those."""
    registry = registry_of(succeed)
    send(registry, 1)
    OutboxMessage.objects.update(state=State.FORWARDED)

    worker = Worker(registry, (), using="default")
    worker.handle_forwarded([row.pk for row in rows()])

    (sent,), (handled,) = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
    assert links_of(handled) == [sent.context.span_id]


# ------------------------------------------------------------------------------- gauges


@pytest.fixture
def reader():
    """Return what reads the gauges: by name, then by database and channel."""
    in_memory = InMemoryMetricReader()
    provider = MeterProvider([in_memory])

    def read():
        data = in_memory.get_metrics_data()
        found = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            for point in metric.data.data_points:
                place = tuple(
                    point.attributes[key] for key in ("cqrs.database", "cqrs.channel")
                )
                found.setdefault(metric.name, {})[place] = point.value
        return found

    read.provider = provider
    yield read
    uninstrument()
    provider.shutdown()


def test_gauges_show_what_waits_and_what_is_dead(reader):
    """Of each channel, as it is when they are read."""
    place = ("default", "outbox")
    registry = registry_of(succeed)
    observe_outbox(reader.provider)

    assert reader() == {
        "cqrs.outbox.pending": {place: 0},
        "cqrs.outbox.oldest_age": {place: 0},
        "cqrs.outbox.delayed": {place: 0},
        "cqrs.outbox.dead": {place: 0},
    }

    send(registry, 1, 2)
    send(registry, 3, delay=60)
    OutboxMessage.objects.update(sent_at=timezone.now() - timedelta(seconds=100))
    found = reader()

    assert 100 <= found.pop("cqrs.outbox.oldest_age")[place] < 110
    assert found == {
        "cqrs.outbox.pending": {place: 2},
        "cqrs.outbox.delayed": {place: 1},
        "cqrs.outbox.dead": {place: 0},
    }


def fail(command: Work):
    """A handler that fails."""
    raise ValueError


def test_gauges_of_several_databases(reader):
    """Each is told by its alias."""
    registry = registry_of(fail, retry=Retry(attempts=1))
    send(registry, 1, using="other")
    work(registry, using="other")
    observe_outbox(reader.provider, using=["default", "other"])

    assert reader()["cqrs.outbox.dead"] == {
        ("default", "outbox"): 0,
        ("other", "outbox"): 1,
    }


def test_one_reading_asks_once(reader, django_assert_num_queries):
    """Four gauges are three statements, however often they are read."""
    observe_outbox(reader.provider)

    with django_assert_num_queries(3):
        reader()
    with django_assert_num_queries(3):
        reader()


def test_a_second_call_replaces_the_first(reader, django_assert_num_queries):
    """Nothing is shown, or asked for, twice; and nothing at all in the end."""
    observe_outbox(reader.provider, using=["default", "other"])
    observe_outbox(reader.provider)

    with django_assert_num_queries(3):
        assert list(reader()["cqrs.outbox.dead"]) == [("default", "outbox")]

    uninstrument()

    assert reader() == {}


def test_without_a_database_nothing_is_shown(reader, monkeypatch, caplog):
    """A gauge that cannot be read is left out, and the log says why."""
    observe_outbox(reader.provider)
    monkeypatch.setattr(DeadLetter._meta, "db_table", "nowhere")

    assert reader() == {}
    assert [record.getMessage() for record in caplog.records] == [
        "Outbox of 'default' cannot be read"
    ]

    monkeypatch.undo()

    assert reader()["cqrs.outbox.dead"] == {("default", "outbox"): 0}


def test_the_thread_that_reads_leaves_no_connection(reader):
    """It is the SDK's, and nobody else would close what it opens."""
    observe_outbox(reader.provider)
    connection.close()

    reader()

    assert connection.connection is None


def test_without_an_sdk_nothing_is_asked(django_assert_num_queries):
    """The API alone does nothing."""
    with django_assert_num_queries(0):
        observe_outbox()
    uninstrument()
