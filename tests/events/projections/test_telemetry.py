"""How projections are watched: spans, gauges, ``cqrs_stats``, health and logs."""

import io
import json
import logging
from datetime import timedelta
from typing import Annotated
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import DatabaseError
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from django_cqrs import event_handler
from django_cqrs.contrib.opentelemetry import (
    MOST_LINKS,
    instrument,
    observe_projections,
    uninstrument,
)
from django_cqrs.events import Projections, Row, operations, projection
from django_cqrs.events.models import StoredEvent
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.health import find_problems
from django_cqrs.outbox.models import WorkerRecord
from django_cqrs.outbox.worker import Bounds, Worker
from django_cqrs.retries import Retry
from tests.events.baskets import Add, Basket, Open
from tests.events.projections.support import (
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    append,
    project,
    store_of,
)
from tests.events.support import on_a_server, sessions
from tests.events.views.models import OrderRow
from tests.support import registry_of

pytestmark = [pytest.mark.database, pytest.mark.django_db]

SECRET = "tea-for-two"
broken: set[int] = set()

EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("tests")


def made(**options):
    @projection("orders", channel="outbox", views=[OrderRow], **options)
    class WatchedOrders:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            if event.number in broken:
                raise ValueError(event.sku)
            row.changes += 1

    return WatchedOrders


@pytest.fixture
def registry(monkeypatch):
    broken.clear()
    found = project(made())
    monkeypatch.setattr(operations, "projects", found)
    return found


@pytest.fixture
def traced():
    instrument(PROVIDER)
    yield
    uninstrument()
    EXPORTER.clear()


@pytest.fixture
def reader():
    metrics = InMemoryMetricReader()
    provider = MeterProvider([metrics])

    def read():
        data = metrics.get_metrics_data()
        return {
            metric.name: {
                point.attributes.get("cqrs.projection"): point.value
                for point in metric.data.data_points
            }
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    read.provider = provider
    yield read
    uninstrument()
    provider.shutdown()


def work(registry):
    bounds = Bounds(until_empty=True)
    Worker(registry, ["outbox"], using="default", bounds=bounds).run()


def spans(name):
    found = [each for each in EXPORTER.get_finished_spans() if each.name == name]
    return sorted(found, key=lambda each: each.start_time)


def links_of(span):
    return [link.context.span_id for link in span.links]


def be_old(**times):
    for each in StoredEvent.objects.all():
        each.recorded_at -= timedelta(**times)
        each.save()


# E37: spans ---------------------------------------------------------------------------


def test_e37_1_a_batch_has_one_span_with_links_to_the_appends(registry, traced):
    """Each append is linked once, however many events it had; the trace is not among
    the headers of the event. [E37.1]"""
    append(registry, OrderPlaced(1), OrderPlaced(2), headers={"who": "ada"})
    append(registry, OrderPlaced(3), stream="order-2")
    work(registry)

    first, second = spans("append order")
    [batch] = spans("project orders")
    assert first.kind is SpanKind.PRODUCER
    assert batch.kind is SpanKind.CONSUMER
    assert batch.parent is None
    assert links_of(batch) == [first.context.span_id, second.context.span_id]
    assert dict(batch.attributes) == {
        "messaging.system": "django_cqrs",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders",
        "messaging.batch.message_count": 3,
        "messaging.consumer.group.name": "orders",
        "cqrs.projection": "orders",
        "cqrs.events.first_position": StoredEvent.objects.order_by("pk")[0].pk,
        "cqrs.events.last_position": store_of(registry).head(),
    }
    [one, _] = store_of(registry).read("order-1")
    assert one.headers == {"who": "ada"}


def test_e37_1_appends_without_a_trace_are_no_links(registry, traced):
    """Nor are those of a trace that was edited. [E37.1]"""
    uninstrument()
    append(registry, OrderPlaced(1), OrderPlaced(2))
    StoredEvent.objects.filter(version=2).update(
        headers={"django_cqrs.trace": {"traceparent": 7}}
    )
    instrument(PROVIDER)
    work(registry)

    [batch] = spans("project orders")
    assert links_of(batch) == []


def test_e37_1_there_are_at_most_so_many_links(registry, traced, monkeypatch):
    """The others have no place in a span. [E37.1]"""
    monkeypatch.setattr("django_cqrs.contrib.opentelemetry.MOST_LINKS", 2)
    for number in range(3):
        append(registry, OrderPlaced(number))
    work(registry)

    assert MOST_LINKS == 128
    [batch] = spans("project orders")
    assert links_of(batch) == [
        each.context.span_id for each in spans("append order")[:2]
    ]


def test_e37_1_a_failed_batch_tells_the_class_of_the_error_alone(registry, traced):
    """Its text may quote the event. [E37.1]"""
    broken.add(1)
    append(registry, OrderPlaced(1, SECRET))
    with pytest.raises(ValueError, match=SECRET):
        Projections(registry=registry).run("orders")

    [batch] = spans("project orders")
    assert batch.status.status_code is StatusCode.ERROR
    assert batch.attributes["error.type"] == "ValueError"
    assert not any(SECRET in each.to_json() for each in EXPORTER.get_finished_spans())


def test_e37_1_a_rebuild_has_spans_too(registry, traced):
    """It handles the same events again. [E37.1]"""
    append(registry, OrderPlaced(1))
    operate = Projections(registry=registry)
    operate.init("orders")
    operate.rebuild("orders")

    [batch] = spans("project orders")
    assert links_of(batch) == [spans("append order")[0].context.span_id]


def test_e37_1_an_aggregate_is_loaded_and_its_events_are_appended(traced):
    """Both inside the span of the command. [E37.1]"""
    registry = registry_of(Basket)
    basket = uuid4()
    registry.command_bus.dispatch(Open(basket))
    registry.command_bus.dispatch(Add(basket, "tea"))

    load, added = spans("load baskets.basket")[-1], spans("append baskets.basket")[-1]
    assert load.attributes == {"cqrs.events.category": "baskets.basket"}
    assert load.parent.span_id == added.parent.span_id


# E37: gauges --------------------------------------------------------------------------


def test_e37_2_gauges_show_the_lag_by_events_and_seconds(registry, reader):
    """They are 0 once all is handled. [E37.2]"""
    observe_projections(reader.provider)
    append(registry, OrderPlaced(1), OrderPlaced(2))
    be_old(seconds=100)
    found = reader()

    assert found["cqrs.projection.lag"] == {"orders": 2}
    assert 100 <= found["cqrs.projection.lag_time"]["orders"] < 110
    assert found["cqrs.projection.position"] == {"orders": 0}

    work(registry)
    head = store_of(registry).head()

    assert reader() == {
        "cqrs.projection.lag": {"orders": 0},
        "cqrs.projection.lag_time": {"orders": 0.0},
        "cqrs.projection.position": {"orders": head},
        "cqrs.projection.handled": {"orders": 2},
        "cqrs.projection.attempts": {"orders": 0},
        "cqrs.projection.failures": {"orders": 0},
        "cqrs.projection.parked": {"orders": 0},
        "cqrs.events.head": {None: head},
        "cqrs.events.settled_age": {None: 0.0},
    }


def test_e37_2_events_of_others_are_no_lag(registry, reader):
    """The position is behind theirs, and nothing waits. [E37.2]"""
    observe_projections(reader.provider)
    append(registry, OrderPlaced(1))
    work(registry)
    append(registry, OrderPaid(1), OrderCancelled(1))
    be_old(seconds=100)
    found = reader()

    assert found["cqrs.projection.lag"] == {"orders": 0}
    assert found["cqrs.projection.lag_time"] == {"orders": 0.0}
    assert found["cqrs.projection.position"]["orders"] < store_of(registry).head()


def test_gauges_are_left_out_without_a_database(registry, reader, monkeypatch, caplog):
    """The log says why."""

    def fail(using):
        raise DatabaseError

    observe_projections(reader.provider)
    monkeypatch.setattr("django_cqrs.events.status.store_status", fail)

    assert reader() == {}
    assert caplog.messages == ["Projections of 'default' cannot be read"]


def test_gauges_of_projections_need_the_app(settings):
    """The error says what to install."""
    settings.INSTALLED_APPS = [
        each for each in settings.INSTALLED_APPS if not each.startswith("django_cqrs.e")
    ]
    with pytest.raises(InvalidOption, match=r"add 'django_cqrs.events' to"):
        observe_projections()


# E37: logs ----------------------------------------------------------------------------


def test_e37_3_no_log_line_shows_a_payload(registry, caplog):
    """Neither of what is appended, nor of what is handled. [E37.3]"""
    caplog.set_level(logging.DEBUG, logger="django_cqrs")
    append(registry, OrderPlaced(1, SECRET), headers={"who": SECRET})
    work(registry)
    Projections(registry=registry).rebuild("orders")

    assert "Projection orders handled 1 events up to position" in caplog.text
    assert SECRET not in caplog.text


# E37: health and figures --------------------------------------------------------------


def problems(**limits):
    return [(each.kind, each.channel, str(each)) for each in find_problems(**limits)]


def test_e37_4_all_is_well(registry):
    """Nothing is said of what is handled. [E37.4]"""
    append(registry, OrderPlaced(1))
    assert problems() == []
    work(registry)
    be_old(hours=1)

    assert problems() == []


def test_e37_4_a_projection_is_late(registry):
    """Also one that no worker has set up yet; a paused one waits on purpose. [E37.4]"""
    append(registry, OrderPlaced(1), OrderPlaced(2))
    be_old(minutes=6)
    late = "The projection 'orders' is behind by 2 events, the oldest of which has "

    [(kind, channel, text)] = problems()
    assert (kind, channel) == ("projection", "outbox")
    assert text.startswith(f"{late}waited for 0:06:0")
    assert problems(max_lag=timedelta(hours=1)) == problems(max_lag=None) == []
    assert problems(channels=["memory"]) == []

    operate = Projections(registry=registry)
    operate.init("orders")
    assert problems()[0][2].startswith(late)
    operate.pause("orders")
    assert problems() == []


def test_e37_4_a_projection_has_failed(registry):
    """The sentence names the place of the event, and not what is in it. [E37.4]"""
    broken.add(1)
    here = append(registry, OrderPlaced(1, SECRET)).position
    work(registry)

    assert problems() == [
        (
            "projection",
            "outbox",
            f"The projection 'orders' has failed once with the event at position {here}.",
        )
    ]


def test_e37_4_a_projection_has_parked_events(monkeypatch):
    """Until somebody retries them. [E37.4]"""
    registry = project(made(on_failure="park", retry=Retry(attempts=1)))
    monkeypatch.setattr(operations, "projects", registry)
    broken.update({1, 2})
    append(registry, OrderPlaced(1))
    append(registry, OrderPlaced(2), stream="order-2")
    work(registry)
    work(registry)

    assert problems() == [
        ("projection", "outbox", "The projection 'orders' has parked 2 partitions.")
    ]
    assert problems(max_parked=2) == problems(max_parked=None) == []

    broken.clear()
    Projections(registry=registry).retry("orders")
    assert problems() == []


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_e37_4_a_transaction_holds_projections_back(registry):
    """It is named where it has been open for too long. [E37.4]"""
    on_a_server()
    WorkerRecord.objects.all().delete()
    append(registry, OrderPlaced(0))
    work(registry)
    settled = store_of(registry).head()
    with sessions() as other:
        other.begin()
        other.append(1)
        append(registry, OrderPlaced(2))

        [(kind, channel, text)] = [
            each
            for each in problems(max_transaction=timedelta())
            if "appended" in each[2]
        ]
        document = json.loads(stats("--format", "json"))
        lines = stats().splitlines()

    assert (kind, channel) == ("transaction", None)
    assert text.startswith("The transaction of session ")
    assert text.endswith(f", so that projections wait at position {settled}.")
    [blocker] = document["events"].pop("held_back_by")
    assert blocker["position"] == settled
    assert 0 <= blocker["seconds"] == document["events"].pop("settled_age")
    assert document["events"] == {"head": settled + 2, "settled": settled}
    assert f"Events are settled up to position {settled} of {settled + 2}." in lines
    assert any(str(blocker["session"]) in each for each in lines)


def stats(*arguments):
    stdout = io.StringIO()
    call_command("cqrs_stats", *arguments, stdout=stdout, no_color=True)
    return stdout.getvalue()


def test_e37_4_stats_show_how_far_projections_are(registry):
    """In a table of their own, and in JSON. [E37.4]"""
    append(registry, OrderPlaced(1))
    work(registry)
    position = store_of(registry).head()
    append(registry, OrderPlaced(2))
    be_old(minutes=2)

    _, table = stats().rstrip().split("\n\n")
    heading, _, row = table.splitlines()
    assert heading.split() == [
        *("Projection", "Status", "Position", "Behind", "Oldest", "Parked", "Failures")
    ]
    assert row.split() == ["orders", "live", str(position), "1", "0:02:00", "0", "0"]

    document = json.loads(stats("outbox", "--format", "json"))
    assert 120 <= document["projections"][0].pop("lag_seconds") < 130
    assert document["projections"] == [
        {
            "name": "orders",
            "status": "live",
            "channel": "outbox",
            "position": position,
            "lag": 1,
            "parked": 0,
            "failures": 0,
        }
    ]
    assert document["events"] == {
        "head": position + 1,
        "settled": position + 1,
        "settled_age": 0.0,
        "held_back_by": [],
    }


def test_stats_of_a_project_without_projections_are_as_before(monkeypatch):
    """Nothing is said of events."""
    monkeypatch.setattr(operations, "projects", project())
    assert "\n\n" not in stats().rstrip()
    assert "events" not in json.loads(stats("--format", "json"))
