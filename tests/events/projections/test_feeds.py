"""Feeds: stored events on a channel, each once, in the order of their streams."""

import json
from typing import Annotated, Any

import pytest

from django_cqrs import Header, Headers, Message, event_handler
from django_cqrs.channels import channels
from django_cqrs.checks import check_registry
from django_cqrs.events import Feed, Projections, projection
from django_cqrs.events.models import StoredEvent
from django_cqrs.exceptions import InvalidOption, ReplayForbidden
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.worker import Bounds, Worker
from django_cqrs.testing import Flow
from tests.events.projections.support import (
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    Unlucky,
    append,
    project,
)
from tests.events.views.models import Entry
from tests.support import registry_of

pytestmark = [pytest.mark.database, pytest.mark.django_db]

got: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_got():
    got.clear()


def fed(name="orders-out", *, channel="outbox", retry=None, **options):
    """Return a feed and its handler, which notes what it gets."""
    feed = Feed(name, channel=channel, **options)

    @feed.handler(retry=retry)
    def take(
        event: dict,
        message: Message,
        stream: Annotated[str | None, Header("stored_stream")],
        version: Annotated[int | None, Header("stored_version")],
    ):
        got.append((stream, version, event))

    return feed, take


def work(registry, *aliases):
    bounds = Bounds(until_empty=True)
    Worker(registry, aliases or ["outbox"], using="default", bounds=bounds).run()


def rows():
    return list(OutboxMessage.objects.order_by("sequence"))


def test_e36_3_each_event_is_sent_once_in_the_order_of_its_stream():
    """The stream is the ordering key; the worker of the channel does both. [E36.3]"""
    registry = project(*fed(names=["order.*"]))
    for number in range(3):
        append(registry, OrderPlaced(number), OrderPaid(number))
        append(registry, OrderPlaced(number), stream="order-2")
    append(registry, OrderCancelled(1), stream=None)
    work(registry)
    work(registry)

    assert [
        (version, event["number"])
        for stream, version, event in got
        if stream == "order-1"
    ] == [*((1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2))]
    assert [version for stream, version, _ in got if stream == "order-2"] == [1, 2, 3]
    assert [event for stream, _, event in got if stream is None] == [{"number": 1}]
    assert len(got) == 10


def test_e36_3_an_event_is_sent_as_it_is_stored():
    """Its id, its origin, its time and its headers, and the JSON itself. [E36.3]"""
    registry = project(*fed())
    append(registry, OrderPlaced(7), headers={"who": "ada"}, tags=["shop:1"])
    [event] = StoredEvent.objects.all()
    Projections(registry=registry).run("orders-out")

    [row] = rows()
    assert (row.endpoint, row.name, row.version) == ("orders-out", "order.placed", 1)
    assert json.loads(row.payload) == {"number": 7, "sku": "tea"}
    assert row.ordering_key == "order-1"
    assert row.message_id == event.event_id
    assert row.correlation_id == event.correlation_id
    assert row.sent_at == event.recorded_at
    assert json.loads(row.headers) == {
        "who": "ada",
        "stored_stream": "order-1",
        "stored_version": 1,
        "stored_position": event.position,
    }


def test_e36_3_only_events_of_its_names_and_sources_are_sent():
    """Others are passed by. [E36.3]"""
    registry = project(*fed(names=["order.paid", "order.c*"], sources=["order"]))
    append(registry, OrderPlaced(1), OrderPaid(1), OrderCancelled(1))
    append(registry, OrderPaid(2), stream="other-1")
    work(registry)

    assert [event for _, _, event in got] == [{"number": 1}, {"number": 1}]


def test_e36_3_messages_and_position_are_committed_together(monkeypatch):
    """A batch that fails has sent nothing; the next one sends each event once.
    [E36.3]"""
    registry = project(*fed())
    append(registry, OrderPlaced(1), OrderPlaced(2))
    operate = Projections(registry=registry)
    write, calls = type(channels["outbox"]).write, []

    def fail(self, connection, entries):
        write(self, connection, entries)
        calls.append(len(entries))
        raise Unlucky

    with monkeypatch.context() as patch:
        patch.setattr(type(channels["outbox"]), "write", fail)
        with pytest.raises(Unlucky):
            operate.run("orders-out")
    assert calls[0] == 2
    assert rows() == []

    operate.retry("orders-out")
    assert operate.run("orders-out") == 2
    assert operate.run("orders-out") == 0
    assert [json.loads(row.payload)["number"] for row in rows()] == [1, 2]


def test_e36_3_projections_and_handlers_go_on_beside_it():
    """Each has its own position; a handler of the event gets it once as before.
    [E36.3]"""

    @projection("beside", channel="outbox", views=[Entry])
    class BesideFeed:
        @event_handler
        def placed(self, event: OrderPlaced):
            Entry.objects.create(number=event.number)

    @event_handler(channel="outbox", name="heard")
    def hear(event: OrderPlaced):
        got.append("heard")

    registry = project(*fed(), BesideFeed, hear)
    append(registry, OrderPlaced(1))
    work(registry)

    assert Entry.objects.count() == 1
    assert sorted(got, key=str) == [
        ("order-1", 1, {"number": 1, "sku": "tea"}),
        "heard",
    ]


def test_e36_3_another_worker_may_follow_for_a_channel_of_somebody_else():
    """No handler is needed then. [E36.3]"""
    registry = project(Feed("copy", channel="memory", worker="outbox"))
    append(registry, OrderPlaced(1))
    work(registry)

    [envelope] = channels["memory"].waiting()
    assert (envelope.endpoint, envelope.ordering_key) == ("copy", "order-1")
    assert json.loads(envelope.payload) == {"number": 1, "sku": "tea"}
    channels.reset()


def test_e36_3_events_without_a_class_are_sent_too():
    """A copy of the store has everything. [E36.3]"""
    append(project(), OrderPlaced(1))
    registry = registry_of(Feed("copy", channel="memory", worker="outbox"))
    Projections(registry=registry).run("copy")

    [envelope] = channels["memory"].waiting()
    assert envelope.name == "order.placed"
    channels.reset()


def test_e36_3_a_feed_runs_in_a_flow():
    """By its name or itself; then its messages are handled. [E36.3]"""
    feed, take = fed(channel="memory")
    registry = project(feed, take)
    with Flow(registry=registry) as flow:
        flow.given("order-1", OrderPlaced(1))
        assert flow.project(feed) == 1
        assert flow.run("memory") == 1
    assert [version for _, version, _ in got] == [1]


def test_e36_3_the_added_headers_are_not_passed_on():
    """They are about the event that is stored, and no other message. [E36.3]"""
    seen = []

    @event_handler
    def hear(event: OrderPaid, headers: Headers):
        seen.append(dict(headers))

    feed = Feed("orders-out", channel="outbox", names=["order.placed"])

    @feed.handler()
    def take(event: OrderPlaced):
        registry.event_bus.publish(OrderPaid(event.number))

    registry = project(feed, take, hear)
    append(registry, OrderPlaced(1), headers={"who": "ada"})
    work(registry)

    [headers] = seen
    assert headers["who"] == "ada"
    assert not any(name.startswith("stored_") for name in headers)


def test_e36_3_long_names_of_streams_are_keys_too():
    """As their hashes. [E36.3]"""
    registry = project(*fed())
    append(registry, OrderPlaced(1), stream=f"order-{'x' * 255}")
    work(registry)

    [(stream, _, _)] = got
    assert len(stream) == 261


def test_a_rebuild_sends_nothing_and_a_reset_sends_again():
    """The error says which is meant."""
    registry = project(*fed())
    append(registry, OrderPlaced(1))
    operate = Projections(registry=registry)
    operate.run("orders-out")

    with pytest.raises(ReplayForbidden, match="Reset it instead"):
        operate.rebuild("orders-out")
    assert len(rows()) == 1

    operate.reset("orders-out")
    assert operate.run("orders-out") == 1
    assert len(rows()) == 2


def problems_of(*targets):
    return [
        (each.id.removeprefix("django_cqrs_events."), each.msg)
        for each in check_registry(registry_of(*targets))
    ]


def test_a_feed_in_order_is_not_a_problem():
    """Nor is its handler."""
    assert problems_of(*fed(names=["order.*"])) == []
    assert repr(fed()[0]) == "<Feed 'orders-out' to 'outbox'>"


def test_feeds_that_cannot_send_in_order_are_checks(settings):
    """django_cqrs_events.E019: without a channel, an order, or a handler."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            **settings.DJANGO_CQRS["CHANNELS"],
            "late": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
        }
    }

    found = problems_of(
        Feed("a", channel="nowhere", worker="outbox"),
        Feed("b", channel="late", worker="outbox"),
        Feed("c", channel="outbox"),
        Feed("d", channel="late"),
    )
    late = (
        "sends to the channel 'late', which keeps no order, so that events of a stream "
        "could overtake each other."
    )
    assert [each for each in found if each[0] == "E019"] == [
        (
            "E019",
            (
                "The feed 'a' sends to the channel 'nowhere'. Channel 'nowhere' is not in "
                "DJANGO_CQRS['CHANNELS']."
            ),
        ),
        ("E019", f"The feed 'b' {late}"),
        (
            "E019",
            (
                "The feed 'c' sends to the channel 'outbox', whose worker calls handlers, "
                "and it has none."
            ),
        ),
        ("E019", f"The feed 'd' {late}"),
    ]
    assert [text.partition(".")[0] for rule, text in found if rule == "E009"] == [
        "The projection 'd' is on the channel 'late'"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channel": ""}, "it takes an alias"),
        ({"channel": "outbox", "names": [7]}, "takes the names of events, not 7"),
        ({"channel": "outbox", "names": "order.*"}, "names= takes a list"),
        ({"channel": "outbox", "start": "later"}, "start='later'"),
        ({"channel": "outbox", "batch": 0}, "batch=0"),
    ],
)
def test_wrong_values_are_refused(options, said):
    """At once, with the name of the feed."""
    with pytest.raises(InvalidOption, match=said):
        Feed("orders-out", **options)


def test_a_name_that_looks_like_a_pattern_is_refused():
    """Its handler would get the events of others."""
    with pytest.raises(InvalidOption, match="looks like a pattern"):
        Feed("orders*", channel="outbox")
