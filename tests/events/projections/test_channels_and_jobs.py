"""Projections beside the messages of a channel: none starves, and each kind of channel."""

import pytest
from django.db import transaction

from django_cqrs import command_handler, event_handler
from django_cqrs.events import Emitter, Projections, projection
from django_cqrs.outbox.worker import Bounds, Worker
from django_cqrs.outbox.worker.jobs import ChannelJobs
from django_cqrs.testing import Flow
from tests.events.projections.support import (
    OrderCounted,
    OrderPaid,
    OrderPlaced,
    Unlucky,
    append,
    project,
)
from tests.events.support import SOAKS
from tests.events.views.models import Entry

pytestmark = [pytest.mark.database, pytest.mark.django_db]

COUNT = 10_000 if SOAKS else 40


def followed(alias, **options):
    """Return a projection of a channel, which notes the numbers of orders."""

    @projection("beside", channel=alias, **options)
    class Beside:
        @event_handler
        def placed(self, event: OrderPlaced):
            if event.number < 0:
                raise Unlucky(event.number)
            Entry.objects.create(text="event", number=event.number)

    return Beside


def noted(alias):
    """Return a handler of a channel, which notes the numbers of its messages."""

    @command_handler(channel=alias, name="beside.note")
    def note(command: OrderPaid):
        Entry.objects.create(text="message", number=command.number)

    return note


def numbers(text):
    rows = Entry.objects.filter(text=text).order_by("pk")
    return list(rows.values_list("number", flat=True))


def work(registry):
    bounds = Bounds(until_empty=True)
    Worker(registry, ["outbox"], using="default", bounds=bounds).run()


def test_e36_1_messages_and_events_of_one_channel_are_all_handled():
    """One worker serves the endpoint and the projection of a channel. [E36.1]"""
    registry = project(followed("outbox"), noted("outbox"))
    append(registry, *map(OrderPlaced, range(COUNT)))
    with transaction.atomic():
        for number in range(COUNT):
            registry.command_bus.dispatch(OrderPaid(number))

    work(registry)

    assert numbers("event") == list(range(COUNT))
    assert sorted(numbers("message")) == list(range(COUNT))


def test_e36_1_messages_without_end_leave_the_projection_its_turn(monkeypatch):
    """A message that sends the next one goes on until the events are handled. [E36.1]"""
    monkeypatch.setattr(ChannelJobs, "slice_time", 0)  # one batch in each round
    most = 100

    @command_handler(channel="outbox", name="beside.again")
    def again(command: OrderPaid):
        Entry.objects.create(text="message", number=command.number)
        if command.number < most and len(numbers("event")) < 10:
            registry.command_bus.dispatch(OrderPaid(command.number + 1))

    registry = project(followed("outbox", batch=1), again)
    append(registry, *map(OrderPlaced, range(10)))
    registry.command_bus.dispatch(OrderPaid(1))

    work(registry)

    assert numbers("event") == list(range(10))
    assert len(numbers("message")) < most


def test_e36_1_events_without_end_leave_messages_their_turn(monkeypatch):
    """A projection that emits what it handles goes on until the messages are handled. [E36.1]"""
    monkeypatch.setattr(ChannelJobs, "slice_time", 0)
    most = 100

    @projection("endless", channel="outbox", batch=1)
    class Endless:
        @event_handler
        def counted(self, event: OrderCounted, emit: Emitter):
            Entry.objects.create(text="event", number=event.count)
            if event.count < most and len(numbers("message")) < 10:
                emit(OrderCounted(event.count + 1))

    @command_handler(channel="outbox", name="beside.next")
    def following(command: OrderPaid):
        Entry.objects.create(text="message", number=command.number)
        if command.number < 10:
            registry.command_bus.dispatch(OrderPaid(command.number + 1))

    registry = project(Endless, following)
    append(registry, OrderCounted(1))
    registry.command_bus.dispatch(OrderPaid(1))

    work(registry)

    assert numbers("message") == list(range(1, 11))
    assert len(numbers("event")) < most


# In memory ------------------------------------------------------------------------------


def test_e36_4_a_channel_in_memory_runs_its_projections():
    """Messages and events of it, and what these send, until nothing is left. [E36.4]"""

    @projection("in-memory", channel="memory")
    class InMemory:
        @event_handler
        def placed(self, event: OrderPlaced):
            Entry.objects.create(text="event", number=event.number)
            if event.number == 1:
                registry.command_bus.dispatch(OrderPaid(7))

    @command_handler(channel="memory", name="beside.paid")
    def paid(command: OrderPaid):
        Entry.objects.create(text="message", number=command.number)
        append(registry, OrderPlaced(command.number + 1))

    registry = project(InMemory, paid)
    append(registry, OrderPlaced(1))

    with Flow(registry=registry) as flow:
        assert flow.run("memory") == 1
        assert numbers("message") == [7]
        assert numbers("event") == [1, 8]
        append(registry, OrderPlaced(9))
        assert flow.run("memory") == 0
    assert numbers("event") == [1, 8, 9]
    Projections(registry=registry).wait_for("in-memory", timeout=0, position=1)


def test_e36_4_a_limit_of_messages_ends_the_run_before_the_projections():
    """As on the outbox: the number of messages is reached, and nothing else begins. [E36.4]"""
    registry = project(followed("memory"), noted("memory"))
    append(registry, OrderPlaced(1))
    for number in (1, 2):
        registry.command_bus.dispatch(OrderPaid(number))

    with Flow(registry=registry) as flow:
        assert flow.run("memory", limit=1) == 1

    assert numbers("message") == [1]
    assert numbers("event") == []


def test_e36_4_a_projection_that_fails_raises():
    """The test sees the exception of the handler; the events before it are handled. [E36.4]"""
    registry = project(followed("memory", batch=1))
    append(registry, OrderPlaced(1), OrderPlaced(-1))

    with Flow(registry=registry) as flow, pytest.raises(Unlucky):
        flow.run("memory")

    assert numbers("event") == [1]
