"""The handlers of a projection, and what they get, in one batch of stored events."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import (
    CommandBus,
    Header,
    Headers,
    Message,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.events import (
    Emitter,
    Recorded,
    Replaying,
    Row,
    State,
    on_flush,
    projection,
)
from django_cqrs.events.handling import EventBatch, projections_of
from django_cqrs.events.states import PartitionStates, ProjectionState
from django_cqrs.exceptions import MessageConversionError
from tests.events.projections.support import (
    OrderCancelled,
    OrderCounted,
    OrderPaid,
    OrderPlaced,
    Unlucky,
    append,
    handle,
    handlers_of,
    project,
    store_of,
    stored,
)
from tests.events.views.models import Entry, OrderRow

pytestmark = [pytest.mark.database, pytest.mark.django_db]

seen: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen():
    seen.clear()


def test_e20_1_handlers_are_found_by_class_base_union_name_glob_object_and_dict():
    """An event reaches every method that takes its class, its base, its name or all
    events, in order of definition; one event may reach several. [E20.1]"""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def by_union(self, event: OrderPaid | OrderCancelled):
            seen.append(("union", type(event)))

        @event_handler
        def by_class(self, event: OrderPlaced):
            seen.append(("class", event))

        @event_handler("order.placed")
        def by_name(self, event: OrderPlaced):
            seen.append(("name", event))

        @event_handler("order.*")
        def by_glob(self, event: Any):
            seen.append(("glob", type(event)))

        @event_handler
        def by_object(self, event: object):
            seen.append(("object", type(event)))

        @event_handler
        def by_dict(self, event: dict):
            seen.append(("dict", event))

        @event_handler("order.paid")
        def by_name_as_json(self, event: dict):
            seen.append(("json", event))

    registry = project(Orders)
    append(registry, OrderPlaced(1), OrderPaid(2))
    placed = OrderPlaced(1)

    assert handle(registry).handled == 2
    assert seen == [
        ("class", placed),
        ("name", placed),
        ("glob", OrderPlaced),
        ("object", OrderPlaced),
        ("dict", {"number": 1, "sku": "tea"}),
        ("union", OrderPaid),
        ("glob", OrderPaid),
        ("object", OrderPaid),
        ("dict", {"number": 2}),
        ("json", {"number": 2}),
    ]


def test_e20_1_a_base_class_takes_its_subclasses():
    """A handler of a base class, or of a Protocol, gets every event that is one. [E20.1]"""

    class About:
        pass

    @message("order.sent")
    @dataclasses.dataclass(frozen=True)
    class Sent(About):
        number: int

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def about(self, event: About):
            seen.append(event)

    registry = project(Orders, Sent)
    append(registry, OrderPlaced(1), Sent(2))

    assert handle(registry).handled == 1
    assert seen == [Sent(2)]


def test_e20_1_a_renamed_event_is_found_by_its_present_and_its_former_name():
    """A handler by name gets events that were stored under another name of the
    class. [E20.1]"""
    old = project()
    append(old, OrderPaid(1))

    @message("order.settled", aliases=["order.paid"])
    @dataclasses.dataclass(frozen=True)
    class Settled:
        number: int

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler("order.settled")
        def present(self, event: Settled):
            seen.append(("present", event))

        @event_handler("order.paid")
        def former(self, event: Settled):
            seen.append(("former", event))

        @event_handler
        def by_class(self, event: Settled):
            seen.append(("class", event))

    from tests.support import registry_of

    registry = registry_of(Orders, Settled)
    handle(registry, stored(registry))

    assert seen == [
        ("present", Settled(1)),
        ("former", Settled(1)),
        ("class", Settled(1)),
    ]


def test_e20_1_an_event_without_a_class_goes_to_handlers_of_json():
    """`object` and `dict` handlers get the JSON of an event whose class is gone, and
    its name from `Recorded`. [E20.1]"""
    append(project(), OrderPaid(1))

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def all(self, event: object, recorded: Recorded):
            seen.append((recorded.name, event))

        @event_handler
        def json(self, event: dict, recorded: Recorded):
            seen.append((recorded.name, event))

    from tests.support import registry_of

    registry = registry_of(Orders)
    handle(registry, stored(registry))

    assert seen == [("order.paid", {"number": 1})] * 2


def test_e20_5_publishing_reaches_no_projection():
    """An event that was published and never appended is no event of the store: the
    handlers of projections are not called. [E20.5]"""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def all(self, event: object):
            seen.append(event)

        @event_handler("order.*")
        def some(self, event: object):
            seen.append(event)

    registry = project(Orders)
    registry.event_bus.publish(OrderPlaced(1))
    registry.event_bus.publish({"number": 1}, route="order.placed")

    assert seen == []
    assert len(registry.routes.fed(Orders)) == 2


def test_e20_7_a_function_is_a_projection_of_one_handler():
    """`@projection` on a function makes a projection, by its annotation or by the
    routes of `@event_handler`; the function stays callable. [E20.7]"""

    @projection("orders", on_demand=True)
    def count(event: OrderPlaced, at: Annotated[datetime, Header("timestamp")]):
        seen.append((event, at.tzinfo is not None))

    @projection("all", on_demand=True)
    @event_handler("order.p*")
    def note(event: dict):
        seen.append(event)

    registry = project(count, note)
    append(registry, OrderPlaced(1), OrderPaid(1), OrderCancelled(1))

    handle(registry)
    handle(registry, name="all")
    note({})

    assert seen == [
        (OrderPlaced(1), True),
        {"number": 1, "sku": "tea"},
        {"number": 1},
        {},
    ]


@service
class Rates:
    def rate(self):
        return 2


class Priced:
    """A class with services in its constructor, made by the tests below."""


def test_e20_7_a_class_gets_services_and_answers_queries():
    """A projection is built once with its services, and its query handlers answer. [E20.7]"""

    @projection("orders", on_demand=True)
    class Orders:
        def __init__(self, rates: Rates) -> None:
            self.rates = rates

        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            row.changes = self.rates.rate()

        @query_handler("orders.changes")
        def changes(self) -> list[int]:
            return list(OrderRow.objects.values_list("changes", flat=True))

    registry = project(Orders)
    append(registry, OrderPlaced(1))
    handle(registry)

    assert registry.query_bus.ask(route="orders.changes") == [2]


def test_e20_7_an_async_handler_runs_in_the_transaction():
    """A coroutine function is awaited in the transaction of its batch. [E20.7]"""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        async def placed(self, event: OrderPlaced):
            await Entry.objects.acreate(text="async", number=event.number)

        @event_handler
        async def paid(self, event: OrderPaid, row: Annotated[OrderRow, Row("number")]):
            row.paid = True
            if event.number == 13:
                raise Unlucky

    registry = project(Orders)
    append(registry, OrderPlaced(1), OrderPaid(1), OrderPlaced(13), OrderPaid(13))
    page = stored(registry)
    with pytest.raises(Unlucky):
        handle(registry, page)
    assert not Entry.objects.exists()

    handle(registry, page[:2])
    assert Entry.objects.get().number == 1
    assert OrderRow.objects.get().paid


def test_e20_7_dependencies_of_ordinary_handlers_work_in_a_projection():
    """Handlers take services, buses and headers as everywhere. [E20.7]"""
    from django_cqrs import Depends

    def doubled(event: OrderPlaced) -> int:
        return event.number * 2

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(
            self,
            event: OrderPlaced,
            commands: CommandBus,
            headers: Headers,
            about: Message,
            twice: Annotated[int, Depends(doubled)],
        ):
            seen.extend([type(commands), headers["user"], about.payload, twice])

    registry = project(Orders)
    append(registry, OrderPlaced(4), headers={"user": 7})
    handle(registry)

    assert seen == [CommandBus, 7, OrderPlaced(4), 8]


def test_consecutive_events_are_handled_together():
    """`Sequence[...]` takes the consecutive events of a batch in one call; another
    handled event between them makes two calls."""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, events: Sequence[OrderPlaced]):
            seen.append([each.number for each in events])

        @event_handler
        def paid(self, event: OrderPaid):
            seen.append(event.number)

    registry = project(Orders)
    append(registry, OrderPlaced(1), OrderPlaced(2), OrderCancelled(0))
    append(registry, OrderPlaced(3), OrderPaid(9), OrderPlaced(4))

    assert handle(registry).handled == 5
    assert seen == [[1, 2, 3], 9, [4]]


def test_a_handler_of_several_events_takes_nothing_of_one():
    """A row, a header or the stored event would be those of one of them: a check."""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, events: Sequence[OrderPlaced], recorded: Recorded): ...

    [problem] = projections_of(project(Orders))["orders"].problems

    assert problem.message.endswith(
        "is about one event, but the handler takes several."
    )


# State, flush, emitted events ----------------------------------------------------------


@dataclasses.dataclass
class Totals:
    placed: int = 0
    numbers: list[int] = dataclasses.field(default_factory=list)


def test_e26_1_state_is_an_object_or_a_dict_and_is_kept_as_text():
    """The state is made new at first, changed in place or replaced by what a handler
    returns, and never None. [E26.1]"""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced, state: Annotated[Totals, State()]):
            state.placed += 1
            state.numbers.append(event.number)

        @event_handler
        def paid(self, event: OrderPaid, state: Annotated[Totals, State()]) -> Totals:
            return Totals(placed=-state.placed)

    @projection("counts", on_demand=True)
    class Counts:
        @event_handler
        def any(self, event: object, state: Annotated[dict, State()]):
            state[type(event).__name__] = state.get(type(event).__name__, 0) + 1

    registry = project(Orders, Counts)
    append(registry, OrderPlaced(1), OrderPlaced(2))
    states = ProjectionState(Totals, None)
    handle(registry, states=states)
    assert states.text == '{"placed":2,"numbers":[1,2]}'

    append(registry, OrderPaid(1))
    again = ProjectionState(Totals, states.text)
    handle(registry, stored(registry)[2:], states=again)
    assert again.text == '{"placed":-2,"numbers":[]}'

    counts = ProjectionState(dict, None)
    handle(registry, name="counts", states=counts)
    assert counts.text == '{"OrderPlaced":2,"OrderPaid":1}'


def test_e23_4_each_partition_has_a_state_of_its_own():
    """With `partition_by=`, a state belongs to one stream, or one key; equal ids of two
    categories are two partitions. [E23.4]"""

    @projection("orders", on_demand=True, partition_by="stream")
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced, state: Annotated[Totals, State()]):
            state.numbers.append(event.number)
            seen.append((event.number, list(state.numbers)))

    registry = project(Orders)
    append(registry, OrderPlaced(1), stream="order-7")
    append(registry, OrderPlaced(2), stream="refund-7")
    append(registry, OrderPlaced(3), stream="order-7")
    page = stored(registry)

    with CaptureQueriesContext(connection) as queries:
        handle(registry, page, states=PartitionStates(Totals, 5, connection))
    assert seen == [(1, [1]), (2, [2]), (3, [1, 3])]
    changed = [each["sql"] for each in queries if "partition" in each["sql"]]
    assert len(changed) == 2  # one query, one statement

    seen.clear()
    handle(registry, page[:1], states=PartitionStates(Totals, 5, connection))
    handle(registry, page[:1], states=PartitionStates(Totals, 6, connection))
    assert seen == [(1, [1, 3, 1]), (1, [1])]


def test_e26_2_on_flush_runs_once_for_a_batch_with_events():
    """`on_flush` runs after the rows are written, once a batch that handled something,
    and gets the state. [E26.2]"""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            row.changes += 1

        @event_handler
        def paid(self, event: OrderPaid, state: Annotated[Totals, State()]):
            state.placed = 5

        @on_flush
        def flush(self, state: Annotated[Totals, State()], replaying: Replaying):
            seen.append((state.placed, OrderRow.objects.count(), replaying))

    registry = project(Orders)
    append(registry, OrderPlaced(1), OrderPaid(1), OrderCancelled(1))
    page = stored(registry)

    handle(registry, page, states=ProjectionState(Totals, None))
    handle(registry, page[2:], states=ProjectionState(Totals, None))
    handle(registry, [], states=ProjectionState(Totals, None))

    assert seen == [(5, 1, False)]


def test_e26_3_emitted_events_are_appended_and_published_in_the_transaction():
    """An emitted event is in the stream of the projection and reaches its handlers, with
    the headers and the correlation id of the event handled, which is its cause. It is
    gone with a failed batch. [E26.3, E27.2]"""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced, emit: Emitter):
            emit(OrderCounted(event.number))

    @event_handler
    def counted(event: OrderCounted, user: Annotated[int, Header("user")]):
        seen.append((event.count, user, connection.in_atomic_block))
        if event.count == 13:
            raise Unlucky

    registry = project(Orders, counted)
    append(registry, OrderPlaced(1), headers={"user": 7})
    append(registry, OrderPlaced(2), headers={"user": 8})
    first, second = stored(registry)
    handle(registry)

    assert seen == [(1, 7, True), (2, 8, True)]
    emitted = list(store_of(registry).read("projection-orders"))
    assert [each.event for each in emitted] == [OrderCounted(1), OrderCounted(2)]
    assert [each.headers["user"] for each in emitted] == [7, 8]
    assert emitted[0].causation_id == first.event_id
    assert emitted[1].causation_id == second.event_id
    assert emitted[1].correlation_id == second.correlation_id

    append(registry, OrderPlaced(13), headers={"user": 9})
    page = [each for each in stored(registry) if each.event == OrderPlaced(13)]
    with pytest.raises(Unlucky):
        handle(registry, [second, *page])
    assert len(list(store_of(registry).read("projection-orders"))) == 2


def test_e26_4_a_replay_and_a_silent_projection_emit_nothing():
    """`emits=False` and replays append and publish nothing, also from `on_flush`. [E26.4]"""

    def made(name, **options):
        @projection(name, on_demand=True, **options)
        class Orders:
            @event_handler
            def placed(self, event: OrderPlaced, emit: Emitter, replaying: Replaying):
                seen.append(replaying)
                emit(OrderCounted(1))

            @on_flush
            def flush(self, emit: Emitter):
                emit(OrderCounted(2))

        return Orders

    registry = project(made("orders"), made("quiet", emits=False))
    append(registry, OrderPlaced(1))
    page = stored(registry)

    handle(registry, page, is_replay=True)
    handle(registry, page, name="quiet")
    assert not store_of(registry).exists("projection-orders")
    assert not store_of(registry).exists("projection-quiet")

    handle(registry, page)
    emitted = [
        each.event.count for each in store_of(registry).read("projection-orders")
    ]
    assert emitted == [1, 2]
    assert seen == [True, False, False]


@dataclasses.dataclass(frozen=True)
class Remind:
    number: int


def test_e26_5_what_a_live_batch_dispatches_shares_its_transaction():
    """A command that a handler dispatches, directly or on a channel, is undone with a
    failed batch and there with a committed one. [E26.5]"""
    from django_cqrs.outbox.models import OutboxMessage

    @command_handler
    def note(command: OrderPaid):
        Entry.objects.create(text="noted", number=command.number)

    @command_handler(channel="outbox", name="remind")
    def remind(command: OrderCancelled):
        """Never handled here."""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(
            self,
            event: OrderPlaced,
            commands: CommandBus,
            row: Annotated[OrderRow, Row("number")],
        ):
            commands.dispatch(OrderPaid(event.number))
            commands.dispatch(OrderCancelled(event.number))
            if event.number == 13:
                raise Unlucky

    registry = project(Orders, note, remind)
    append(registry, OrderPlaced(1), headers={"user": 3})
    append(registry, OrderPlaced(13))
    page = stored(registry)

    with pytest.raises(Unlucky):
        handle(registry, page)
    assert not Entry.objects.exists()
    assert not OutboxMessage.objects.exists()

    handle(registry, page[:1])
    assert Entry.objects.get().number == 1
    sent = OutboxMessage.objects.get()
    assert sent.causation_id == page[0].event_id
    assert b'"user": 3' in bytes(sent.headers)


def test_e27_1_each_event_has_its_own_headers():
    """Handlers see the headers that were stored with the event. [E27.1]"""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(  # noqa: PLR0917
            self,
            event: OrderPlaced,
            user: Annotated[int, Header("user")],
            shop: Annotated[str | None, Header("shop")],
            event_id: Annotated[UUID, Header("message_id")],
            origin: Annotated[UUID, Header("correlation_id")],
            at: Annotated[datetime, Header("timestamp")],
            recorded: Recorded,
        ):
            seen.append((user, shop))
            assert event_id == recorded.event_id
            assert origin == recorded.correlation_id
            assert at == recorded.recorded_at
            assert at.astimezone(UTC) == at

    registry = project(Orders)
    append(registry, OrderPlaced(1), headers={"user": 1})
    append(registry, OrderPlaced(2), headers={"user": 2, "shop": "north"})
    append(registry, OrderPlaced(3), headers={"user": 3})
    handle(registry)

    assert seen == [(1, None), (2, "north"), (3, None)]


def test_e27_3_replaying_is_true_in_replays_alone():
    """The parameter `Replaying` says whether the event is handled again. [E27.3]"""

    @projection("orders", on_demand=True)
    def note(event: OrderPlaced, replaying: Replaying):
        seen.append(replaying)

    registry = project(note)
    append(registry, OrderPlaced(1))
    handle(registry)
    handle(registry, is_replay=True)

    assert seen == [False, True]


# Failures -------------------------------------------------------------------------------


def test_the_event_to_blame_is_known():
    """A batch tells which event has failed: in its handler, in decoding, or by what it
    emits; after a failure in the rows it is unknown."""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced):
            if event.number == 13:
                raise Unlucky

    registry = project(Orders)
    append(registry, OrderPlaced(1), OrderPlaced(13), OrderPlaced(3))

    page = stored(registry)

    with transaction.atomic():
        batch = EventBatch(handlers_of(registry), connection)
        with pytest.raises(Unlucky):
            batch.handle(page)
    assert batch.failed_at == 1


def test_an_unreadable_event_is_to_blame_with_its_place():
    """A payload that does not fit its class is an error with position and stream."""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced): ...

    registry = project(Orders)
    done = append(registry, OrderPlaced(1), OrderPlaced(2))
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_cqrs_events_storedevent SET payload = %s "
            "WHERE position = %s",
            ['{"number": "?"}', done.position],
        )
    page = stored(registry)

    with transaction.atomic():
        batch = EventBatch(handlers_of(registry), connection)
        with pytest.raises(MessageConversionError) as caught:
            batch.handle(page)
    assert batch.failed_at == 1
    assert f"position {done.position} ('order-1', version 2)" in str(caught.value)


def test_time_ends_a_batch_between_two_events():
    """Past its time, a batch begins no other event, but it always has one."""

    @projection("orders", on_demand=True)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced):
            seen.append(event.number)

    registry = project(Orders)
    append(registry, OrderPlaced(1), OrderPaid(1), OrderPlaced(2))
    with transaction.atomic():
        batch = EventBatch(handlers_of(registry), connection)
        done = batch.handle(stored(registry), until=0.0)

    assert (done, batch.handled, seen) == (2, 1, [1])
