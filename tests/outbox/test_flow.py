"""The test kit: what was sent, what waits, and what time brings."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from django.test import TestCase

from django_cqrs import (
    CommandBus,
    EventBus,
    Registry,
    Retry,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.testing.flow import Flow
from tests.testapp.models import Note


@message("flow.order_placed")
@dataclass(frozen=True)
class OrderPlaced:
    number: int


@message("flow.reminder")
@dataclass(frozen=True)
class Remind:
    number: int


@dataclass(frozen=True)
class PlaceOrder:
    number: int


@command_handler
def place_order(command: PlaceOrder, events: EventBus) -> None:
    events.publish(OrderPlaced(command.number))


@event_handler(channel="outbox")
def note_it(event: OrderPlaced, commands: CommandBus) -> None:
    Note.objects.create(text="placed", number=event.number)
    commands.dispatch(Remind(event.number), delay=3600)


@command_handler(channel="outbox")
def remind(command: Remind) -> None:
    Note.objects.create(text="reminded", number=command.number)


@query_handler("flow.count")
def count() -> int:
    return Note.objects.count()


@pytest.fixture
def registry():
    registry = Registry()
    for handler in (place_order, note_it, remind, count):
        registry.add(handler)
    return registry


def texts():
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


@pytest.mark.database
@pytest.mark.django_db
def test_what_waits_is_handled_inside_the_tests_own_transaction(registry):
    """`flow.run` handles what is due; what is delayed waits until time passes."""
    with Flow(registry=registry) as flow:
        registry.command_bus.dispatch(PlaceOrder(7))
        before = texts()
        first = flow.run("outbox")
        after_first = texts()
        flow.advance(minutes=59)
        early = flow.run("outbox")
        flow.advance(minutes=1)
        late = flow.run("outbox")

    assert (before, first, after_first) == ([], 1, ["placed"])
    assert (early, late) == (0, 1)
    assert texts() == ["placed", "reminded"]
    assert OutboxMessage.objects.count() == 0


@pytest.mark.django_db
def test_what_passed_the_buses_is_recorded(registry):
    """`sent`, `asked` and `published` hold payloads, nested ones included, in order."""
    with Flow(registry=registry) as flow:
        registry.command_bus.dispatch(PlaceOrder(7))
        registry.query_bus.ask(route="flow.count")
        registry.event_bus.publish("nobody listens", route="flow.nothing")
        flow.run("outbox")

    assert flow.sent == [PlaceOrder(7), Remind(7)]
    assert flow.asked == [None]
    assert flow.published == [OrderPlaced(7), "nobody listens"]
    assert repr(flow) == "<Flow sent=2 asked=1 published=2>"


@pytest.mark.django_db
def test_nothing_is_recorded_after_the_block(registry):
    """A flow that has ended records nothing and costs nothing."""
    with Flow(registry=registry) as flow:
        pass
    registry.command_bus.dispatch(PlaceOrder(1))

    assert flow.messages == []


@pytest.mark.database
@pytest.mark.django_db
def test_a_handler_that_raises_reaches_the_test():
    """The handler's own exception is raised, and its message waits for the next try."""

    @command_handler("flow.break", channel="outbox", retry=Retry(attempts=2, delay=60))
    def fail(number: int) -> None:
        raise RuntimeError(number)

    registry = Registry()
    registry.add(fail)
    with Flow(registry=registry) as flow:
        registry.command_bus.dispatch(3, route="flow.break")
        with pytest.raises(RuntimeError, match="3"):
            flow.run("outbox")
        assert flow.run("outbox") == 0
        flow.advance(minutes=1)
        with pytest.raises(RuntimeError, match="3"):
            flow.run("outbox")

    letter = DeadLetter.objects.get()
    assert (letter.attempts, letter.reason, letter.payload) == (2, "failed", b"3")


def test_a_channel_in_memory_runs_as_well(db):
    """`flow.run` and `flow.advance` know the in-memory channel."""
    seen = []

    @command_handler("flow.later", channel="memory", delay=60)
    def later(number: int) -> None:
        seen.append(number)

    registry = Registry()
    registry.add(later)
    with Flow(registry=registry) as flow:
        registry.command_bus.dispatch(1, route="flow.later")
        early = flow.run("memory")
        flow.advance(seconds=60)
        late = flow.run("memory", "outbox")

    assert (early, late, seen) == (0, 1, [1])


def test_the_fixture_follows_the_projects_registry(flow):
    """The pytest fixture records what passes the global buses."""
    from django_cqrs import event_bus

    event_bus.publish("x", route="flow.unheard")

    assert flow.published == ["x"]


class FlowInATestCase(TestCase):
    def test_it_works_in_django_s_test_case(self):
        """Django's TestCase needs no commit either."""
        registry = Registry()
        registry.add(note_it)
        registry.add(remind)
        flow = self.enterContext(Flow(registry=registry))

        registry.event_bus.publish(OrderPlaced(1))

        assert flow.run("outbox") == 1
        assert texts() == ["placed"]


@pytest.mark.django_db
def test_a_flow_leaves_the_services_as_they_are():
    """Entering and leaving one forgets runs; a fake keeps what it has recorded."""

    @service
    class Desk:
        def __init__(self) -> None:
            self.items: list[str] = []

        @command_handler("desk.add")
        def add(self, item: str) -> int:
            self.items.append(item)
            return len(self.items)

    registry = Registry()
    registry.add(Desk)
    dispatch = registry.command_bus.dispatch
    before = [dispatch(item, route="desk.add") for item in "ab"]
    with Flow(registry=registry) as flow:
        inside = dispatch("c", route="desk.add")
    after = dispatch("d", route="desk.add")

    assert [*before, inside, after] == [1, 2, 3, 4]
    assert flow.sent == ["c"]
