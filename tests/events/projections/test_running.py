"""Projections that follow the events of the store, by hand and by a worker."""

import dataclasses
from datetime import timedelta
from typing import Annotated, Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs import Header, command_handler, event_handler, message
from django_cqrs.channels import channels
from django_cqrs.events import (
    Emitter,
    Row,
    State,
    Tag,
    on_flush,
    on_init,
    projection,
)
from django_cqrs.events.models import (
    Generation,
    ProjectionFailure,
    Shard,
    StoredEvent,
    Stream,
)
from django_cqrs.events.operations import Projections
from django_cqrs.exceptions import (
    InvalidHandler,
    InvalidOption,
    MessageConversionError,
    ProjectionBehind,
    ProjectionBusy,
    ProjectionNotFound,
    StoreWentBack,
)
from django_cqrs.retries import Retry
from tests.events.projections.support import (
    OrderCancelled,
    OrderCounted,
    OrderPaid,
    OrderPlaced,
    Unlucky,
    append,
    broken,
    made,
    numbers,
    place,
    project,
    shard,
    store_of,
    work,
)
from tests.events.views.models import Entry, OrderRow
from tests.support import registry_of

pytestmark = [pytest.mark.database, pytest.mark.django_db]

seen: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen():
    seen.clear()
    broken.clear()


# E22: following -------------------------------------------------------------------------


def test_e22_1_a_worker_handles_events_with_messages_in_between():
    """`cqrs_worker` brings all events in order, and handles the messages of its
    channel. [E22.1]"""

    @command_handler(channel="outbox", name="note")
    def note(command: OrderPaid):
        Entry.objects.create(text="message", number=command.number)

    registry = project(made(batch=100), note)
    place(registry, *range(1000))
    for number in range(5):
        registry.command_bus.dispatch(OrderPaid(number))
    work(registry)

    assert numbers() == list(range(1000))
    assert numbers("message") == [0, 1, 2, 3, 4]
    assert shard().position == store_of(registry).head()
    assert shard().handled == 1000


def test_e22_2_position_and_rows_commit_together():
    """A handler that fails at event 700: 500 are there, and so is their position. Once
    it is mended, the rest comes, once. [E22.2]"""
    registry = project(made(batch=500))
    operate = Projections(registry=registry)
    place(registry, 0)
    operate.run("orders")  # past the positions of other tests, where it finds nothing
    place(registry, *range(1, 1001))
    broken.add(700)

    with pytest.raises(Unlucky):
        operate.run("orders")
    assert numbers() == list(range(501))
    first = StoredEvent.objects.order_by("position").first()
    assert shard().position == first.position + 500

    broken.clear()
    operate.run("orders")
    assert numbers() == list(range(1001))


def test_e22_3_without_new_events_nothing_is_written():
    """A worker that is woken for nothing reads, and writes nothing. [E22.3]"""
    registry = project(made())
    place(registry, 1)
    work(registry)

    statements = []

    def note(execute, sql, *arguments):
        statements.append(sql)
        return execute(sql, *arguments)

    with connection.execute_wrapper(note):  # the worker empties Django's log
        work(registry)
        Projections(registry=registry).run("orders")
    tables = [each for each in statements if "django_cqrs_events" in each]

    assert tables
    assert not [each for each in tables if each.startswith(("UPDATE", "INSERT"))]
    assert numbers() == [1]


@pytest.mark.parametrize("batch", [1, 10_000])
def test_e22_9_any_size_of_batch_handles_all(batch):
    """Batches of one event, and of more than there are, give the same rows. [E22.9]"""
    registry = project(made(batch=batch))
    place(registry, *range(20))

    assert Projections(registry=registry).run("orders") == 20
    assert numbers() == list(range(20))


def test_e22_10_a_rare_event_is_found_in_few_queries():
    """A position moves over events that are not handled in growing steps. [E22.10]"""
    registry = project(made())
    last = append(registry, *[OrderPaid(0)] * 100).position
    StoredEvent.objects.filter(position=last).update(position=last + 1_000_000)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT setval(pg_get_serial_sequence("
                "'django_cqrs_events_storedevent', 'position'), %s)",
                [last + 1_000_000],
            )
    place(registry, 7)

    with CaptureQueriesContext(connection) as queries:
        Projections(registry=registry).run("orders")

    assert numbers() == [7]
    assert len(queries) < 50


def test_e20_2_only_handled_names_are_loaded_and_the_others_move_the_position(
    monkeypatch,
):
    """Events that nobody handles are not read, and are not read again. [E20.2]"""
    from django_cqrs.events.recorded import Recorded

    registry = project(made())
    append(registry, *[OrderPaid(0)] * 50, OrderPlaced(1), *[OrderPaid(0)] * 50)
    read = []
    original = Recorded.__init__

    def count(self, *args):
        read.append(args[4])
        original(self, *args)

    monkeypatch.setattr(Recorded, "__init__", count)
    Projections(registry=registry).run("orders")

    assert read == ["order.placed"]
    assert shard().position == store_of(registry).head()


def test_e20_3_sources_are_categories_and_streams():
    """A projection gets the events of its sources alone; two with one event name are
    told apart. [E20.3]"""

    def of(name, *sources):
        return made(name, sources=list(sources))

    registry = project(
        of("shop", "shop.order"),
        of("one", "shop.order-2"),
        of("both", "shop.order-1", "refund"),
        of("linked", "big-orders"),
        of("all"),
    )
    store = store_of(registry)
    place(registry, 1, stream="shop.order-1")
    place(registry, 2, stream="shop.order-2")
    place(registry, 3, stream="refund-1")
    store.append(OrderPlaced(4))
    store.link("big-orders", next(store.read("shop.order-2")))
    for name in ("shop", "one", "both", "linked", "all"):
        Projections(registry=registry).run(name)

    assert numbers("shop") == [1, 2]
    assert numbers("one") == [2]
    assert numbers("both") == [1, 3]
    assert numbers("linked") == [2]
    assert numbers("all") == [1, 2, 3, 4]


def test_e20_7_a_projection_on_demand_runs_by_command_alone():
    """`on_demand=True` is for `projections.run()`: no worker follows it. [E20.7]"""
    registry = project(made(channel=None, on_demand=True))
    place(registry, 1)
    work(registry)
    assert numbers() == []

    assert Projections(registry=registry).run("orders") == 1
    assert numbers() == [1]


def test_a_projection_is_set_up_with_its_hook_once():
    """`on_init` runs in the transaction that sets the projection up, and not again."""

    @projection("orders", channel="outbox")
    class Orders:
        @on_init
        def init(self):
            seen.append(Generation.objects.filter(projection="orders").count())

        @event_handler
        def placed(self, event: OrderPlaced): ...

    registry = project(Orders)
    work(registry)
    work(registry)
    assert not Projections(registry=registry).init("orders")
    assert seen == [1]


def test_e28_2_a_projection_starts_at_the_beginning_now_or_by_hand():
    """`start="now"` handles what comes; a manual one waits for `init`, and then begins
    at the beginning, an inline one with the next event of a stream. [E28.2]"""
    registry = project(
        made("now", start="now"),
        made("manual", start="manual"),
        made("inline", start="manual", channel=None),
    )
    own = Projections(registry=registry)
    place(registry, 1)
    work(registry)
    place(registry, 2)
    work(registry)
    assert numbers("now") == [2]
    assert numbers("manual") == []
    assert numbers("inline") == []

    assert own.init("manual")
    assert own.init("inline")
    work(registry)
    assert numbers("manual") == [1, 2]
    place(registry, 3)
    assert numbers("inline") == [1, 2, 3]


def test_a_hook_that_fails_leaves_the_projection_new(caplog):
    """A failure of `on_init` sets nothing up, and the worker goes on."""

    @projection("orders", channel="memory")
    class Orders:
        @on_init
        def init(self):
            raise Unlucky

        @event_handler
        def placed(self, event: OrderPlaced): ...

    with pytest.raises(Unlucky):
        Projections(registry=project(Orders)).init("orders")
    assert not Generation.objects.exists()


def test_a_broken_projection_is_reported_and_not_run():
    """A projection with a mistake raises the text of its check when it is used."""

    @projection("orders", channel="outbox")
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("paid")]): ...

    registry = project(Orders, made("sound"))
    place(registry, 1)
    with pytest.raises(InvalidHandler, match="paid of OrderRow is not unique"):
        Projections(registry=registry).run("orders")
    work(registry)
    assert numbers("sound") == [1]


# E24: failures --------------------------------------------------------------------------


NOW = Retry(attempts=3, delay=0, jitter=False)


def test_e24_1_a_projection_stops_at_an_event_that_fails_and_says_why():
    """Events before it are there; the status has error, event and traceback; it is tried
    again by itself, at growing pauses. [E24.1]"""
    registry = project(made(retry=Retry(delay=100, factor=3, jitter=False)))
    place(registry, 1, 2, 13, 4)
    broken.add(13)
    work(registry)

    assert numbers() == [1, 2]
    found = shard()
    assert found.failed_position == found.position + 1
    assert found.attempts == 1
    assert found.error.startswith("Unlucky: 13\n\nTraceback")
    status = Projections(registry=registry).status("orders")
    assert (status.status, status.error) == ("failed", "Unlucky: 13")
    [part] = status.shards
    assert "in placed" in part.traceback
    pauses = [found.retry_at - found.updated_at]

    for _ in range(3):
        Shard.objects.update(retry_at=None)
        work(registry)
        pauses.append(shard().retry_at - shard().updated_at)
    assert [round(each.total_seconds(), -1) for each in pauses] == [100, 300, 600, 600]
    assert shard().attempts == 4

    broken.clear()
    Shard.objects.update(retry_at=None)
    work(registry)
    assert numbers() == [1, 2, 13, 4]
    assert (shard().attempts, shard().error, shard().failed_position) == (0, "", None)


def test_e24_2_a_skipped_event_is_a_failure_that_can_be_retried_once():
    """`skip` goes on after the last attempt; the failure is retried once. [E24.2]"""
    registry = project(made(on_failure="skip", retry=NOW))
    place(registry, 1, 13, 3)
    broken.add(13)
    operate = Projections(registry=registry)
    operate.run("orders")

    assert numbers() == [1, 3]
    [failure] = operate.failures("orders")
    assert (failure.reason, failure.attempts) == ("skipped", 3)
    assert failure.name == "order.placed"
    assert failure.partition == "order-1"
    assert (failure.exception.rpartition(".")[2], failure.error) == ("Unlucky", "13")

    with pytest.raises(Unlucky):
        operate.retry("orders", failure.pk)
    assert operate.failures("orders")[0].attempts == 4
    broken.clear()
    assert operate.retry("orders") == 1
    assert numbers() == [1, 3, 13]
    assert operate.failures("orders") == []
    assert operate.retry("orders") == 0


def test_e24_3_a_parked_partition_waits_and_others_go_on():
    """`park` leaves the later events of that stream; `retry` replays them in order. [E24.3]"""
    registry = project(made(on_failure="park", retry=Retry(attempts=1)))
    operate = Projections(registry=registry)
    place(registry, 1, 13, 14, stream="order-1")
    place(registry, 21, stream="order-2")
    place(registry, 15, stream="order-1")
    broken.add(13)
    operate.run("orders")
    place(registry, 16, stream="order-1")
    place(registry, 22, stream="order-2")
    operate.run("orders")

    assert numbers() == [1, 21, 22]
    assert len(operate.failures("orders")) == 1
    assert operate.status("orders").parked == 1

    broken.add(15)
    with pytest.raises(Unlucky):
        operate.retry("orders")
    assert numbers() == [1, 21, 22]

    broken.clear()
    operate.retry("orders")
    assert numbers() == [1, 21, 22, 13, 14, 15, 16]
    place(registry, 17, stream="order-1")
    operate.run("orders")
    assert numbers()[-1] == 17
    assert operate.status("orders").parked == 0


def test_e24_3_partitions_by_tag_are_parked_and_replayed():
    """A partition by tag has an index as well. [E24.3]"""

    @message("seat.taken")
    @dataclasses.dataclass(frozen=True)
    class SeatTaken:
        course: Annotated[str, Tag("course")]
        number: int

    @projection(
        "seats",
        channel="outbox",
        partition_by=Tag("course"),
        on_failure="park",
        retry=Retry(attempts=1),
    )
    def seats(event: SeatTaken):
        if event.number in broken:
            raise Unlucky
        Entry.objects.create(text=event.course, number=event.number)

    registry = registry_of(seats, SeatTaken)
    operate = Projections(registry=registry)
    broken.add(1)
    store_of(registry).append([SeatTaken("a", 1), SeatTaken("b", 2), SeatTaken("a", 3)])
    operate.run("seats")
    assert (numbers("a"), numbers("b")) == ([], [2])

    broken.clear()
    operate.retry("seats")
    assert (numbers("a"), numbers("b")) == ([1, 3], [2])


def test_e24_3_events_without_the_tag_are_parked_and_replayed():
    """They are one partition, whatever their streams. [E24.3]"""

    @message("desk.taken")
    @dataclasses.dataclass(frozen=True)
    class DeskTaken:
        room: Annotated[str | None, Tag("room")]
        number: int

    @projection(
        "desks",
        channel="outbox",
        partition_by=Tag("room"),
        on_failure="park",
        retry=Retry(attempts=1),
    )
    def desks(event: DeskTaken):
        if event.number in broken:
            raise Unlucky
        Entry.objects.create(text="desks", number=event.number)

    registry = registry_of(desks, DeskTaken)
    own = Projections(registry=registry)
    broken.add(1)
    for number, room in enumerate(("a", None, None, "a")):
        event = DeskTaken(room, number)
        store_of(registry).append([event], stream=f"desk-{number}")
    own.run("desks")
    assert numbers("desks") == [0, 3]

    broken.clear()
    own.retry("desks")
    assert numbers("desks") == [0, 3, 1, 2]
    assert own.failures("desks") == []


def test_e24_3_a_parked_event_can_be_given_up():
    """`skip` of a parked failure handles the rest of the partition without it. [E24.3]"""
    registry = project(made(on_failure="park", retry=Retry(attempts=1)))
    operate = Projections(registry=registry)
    place(registry, 13, 14)
    broken.add(13)
    operate.run("orders")
    [failure] = operate.failures("orders")

    assert operate.skip("orders", failure.pk) == 1
    assert numbers() == [14]
    assert operate.failures("orders") == []
    with pytest.raises(InvalidOption, match="There is no failure"):
        operate.skip("orders", failure.pk)


def test_e24_4_messages_and_other_projections_go_on():
    """One that has stopped holds up neither the channel nor other projections. [E24.4]"""

    @command_handler(channel="outbox", name="note")
    def note(command: OrderPaid):
        Entry.objects.create(text="message", number=command.number)

    @projection("other", channel="outbox")
    def other(event: OrderPlaced):
        Entry.objects.create(text="other", number=event.number)

    registry = project(made(), other, note)
    place(registry, 13, 2)
    broken.add(13)
    registry.command_bus.dispatch(OrderPaid(1))
    work(registry)

    assert numbers() == []
    assert numbers("other") == [13, 2]
    assert numbers("message") == [1]


def test_e24_5_a_recent_event_of_an_unknown_name_is_not_passed_by():
    """Newer code may know it: for ten minutes it is waited for. An older one is passed
    by. [E24.5]"""

    @message("order.refunded")
    @dataclasses.dataclass(frozen=True)
    class Refunded:
        number: int

    newer = project(Refunded)
    registry = project(made())
    place(registry, 1)
    store_of(newer).append(Refunded(1), stream="order-1")
    place(registry, 2)
    operate = Projections(registry=registry)
    operate.run("orders")

    assert numbers() == [1]
    assert shard().error.startswith("Waits for newer code: order.refunded in version 1")
    assert shard().attempts == 0

    recorded_at = StoredEvent.objects.get(name="order.refunded").recorded_at
    StoredEvent.objects.filter(name="order.refunded").update(
        recorded_at=recorded_at - timedelta(minutes=11)
    )
    operate.run("orders")
    assert numbers() == [1, 2]
    assert shard().error == ""


def test_e24_5_a_recent_event_of_a_newer_version_is_waited_for():
    """An event in a version that this code does not have stops an old one too. [E24.5]"""
    registry = project(made())
    place(registry, 1, 2)
    StoredEvent.objects.filter(payload__number=2).update(shape=2)
    operate = Projections(registry=registry)
    operate.run("orders")
    assert numbers() == [1]
    assert shard().attempts == 0

    event = StoredEvent.objects.get(shape=2)
    StoredEvent.objects.filter(shape=2).update(
        recorded_at=event.recorded_at - timedelta(minutes=11)
    )
    with pytest.raises(Exception, match="runs older code"):
        operate.run("orders")
    assert shard().attempts == 1


def test_e24_6_the_status_says_since_when_a_new_handler_counts():
    """A handler that is added for a known event is noted with the position. [E24.6]"""
    registry = project(made())
    position = place(registry, 1, 2).position
    Projections(registry=registry).run("orders")
    assert Projections(registry=registry).status("orders").since == {}

    @projection("orders", channel="outbox")
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced): ...

        @event_handler
        def paid(self, event: OrderPaid): ...

    newer = project(Orders)
    work(newer)
    assert Projections(registry=newer).status("orders").since == {
        "order.paid": position
    }


def test_e24_7_a_failure_at_the_end_of_a_batch_undoes_it():
    """An exception in `on_flush` leaves no row, and the position as it was. [E24.7]"""

    @projection("orders", channel="outbox")
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced):
            Entry.objects.create(text="orders", number=event.number)

        @on_flush
        def flush(self):
            if 13 in broken:
                raise Unlucky

    registry = project(Orders)
    place(registry, 1, 2)
    broken.add(13)
    work(registry)
    assert numbers() == []
    assert (shard().position, shard().attempts) == (0, 1)
    assert shard().error.startswith("Unlucky")

    broken.clear()
    Projections(registry=registry).retry("orders")
    work(registry)
    assert numbers() == [1, 2]


def test_e24_8_the_count_of_attempts_is_in_the_database():
    """Another worker goes on counting where the last one has stopped. [E24.8]"""
    registry = project(made(on_failure="skip", retry=Retry(attempts=3, delay=100)))
    place(registry, 13)
    broken.add(13)
    for attempts in (1, 2):
        work(registry)
        assert shard().attempts == attempts
        Shard.objects.update(retry_at=None)
    work(registry)

    assert shard().attempts == 0
    assert ProjectionFailure.objects.get().attempts == 3


def test_e24_1_a_stopped_projection_can_be_told_to_skip_or_to_retry():
    """`skip` gives up the event that it has stopped at; `retry` tries it at once. [E24.1]"""
    registry = project(made())
    operate = Projections(registry=registry)
    place(registry, 13, 2)
    broken.add(13)
    work(registry)
    assert operate.retry("orders") == 1
    work(registry)
    assert shard().attempts == 2

    assert operate.skip("orders") == 1
    work(registry)
    assert numbers() == [2]
    [failure] = operate.failures("orders")
    assert (failure.reason, failure.exception, failure.error) == (
        "skipped",
        "Unlucky",
        "13",
    )


def test_e11_5_an_unreadable_event_is_treated_by_the_policy():
    """Broken JSON stops a projection, or is skipped, with its place; nothing dies. [E11.5]"""
    stopping, skipping = made("stops"), made("skips", on_failure="skip", retry=NOW)
    registry = project(stopping, skipping)
    place(registry, 1, 2, 3)
    row = StoredEvent.objects.order_by("position")[1]
    StoredEvent.objects.filter(pk=row.pk).update(payload=["no", "object"])
    operate = Projections(registry=registry)
    with pytest.raises(MessageConversionError, match=f"position {row.pk} "):
        operate.run("stops")
    operate.run("skips")

    assert numbers("stops") == []
    assert numbers("skips") == [1, 3]
    assert f"position {row.pk}" in ProjectionFailure.objects.get().error


def test_a_position_above_the_store_stops_the_projection():
    """After the sequence was set back, new events would be below the position."""
    registry = project(made())
    place(registry, 1)
    Projections(registry=registry).run("orders")
    Shard.objects.update(position=10_000_000)

    place(registry, 2)
    with pytest.raises(StoreWentBack, match="position 10000000"):
        Projections(registry=registry).run("orders")
    work(registry)
    assert "StoreWentBack: Projection 'orders' is at position 10000000" in shard().error
    assert numbers() == [1]


def test_an_error_text_has_no_sensitive_value():
    """What a class marks as sensitive is in no error and no traceback."""
    from django_cqrs import Sensitive

    @message("card.used")
    @dataclasses.dataclass(frozen=True)
    class CardUsed:
        number: Annotated[str, Sensitive()]

    @projection("cards", channel="outbox")
    def cards(event: CardUsed):
        raise Unlucky(f"cannot use {event.number}")

    registry = registry_of(cards, CardUsed)
    store_of(registry).append(CardUsed("4111-1111"))
    work(registry)

    assert "cannot use ••••••" in shard("cards").error
    assert "4111" not in shard("cards").error


# State, emitted events, operation -------------------------------------------------------


@dataclasses.dataclass
class Totals:
    placed: int = 0


def test_e26_1_state_is_kept_between_batches_and_workers():
    """`projections.state` returns it; a failed batch leaves it as it was. [E26.1]"""

    @projection("orders", channel="outbox", batch=2)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced, state: Annotated[Totals, State()]):
            state.placed += 1
            if event.number in broken:
                raise Unlucky

    registry = project(Orders)
    operate = Projections(registry=registry)
    with pytest.raises(ProjectionNotFound, match="is not set up"):
        operate.state("orders")
    place(registry, 1, 2, 3)
    work(registry)
    assert operate.state("orders") == Totals(3)

    broken.add(5)
    place(registry, 4, 5)
    work(registry)
    assert operate.state("orders") == Totals(4)
    with pytest.raises(InvalidOption, match="does not take partition="):
        operate.state("orders", partition="order-1")


def test_e26_1_the_state_of_a_partition():
    """`projections.state(..., partition=)` takes the stream, or the key. [E26.1]"""

    @projection("streams", channel="outbox", partition_by="stream")
    def streams(event: OrderPlaced, state: Annotated[Totals, State()]):
        state.placed += 1

    @projection("skus", channel="outbox", partition_by="sku")
    def skus(event: OrderPlaced, state: Annotated[dict, State()]):
        state["number"] = event.number

    registry = project(streams, skus)
    operate = Projections(registry=registry)
    place(registry, 1, 2, stream="order-1")
    place(registry, 3, stream="order-2")
    work(registry)

    assert operate.state("streams", partition="order-1") == Totals(2)
    assert operate.state("streams", partition="order-9") is None
    assert operate.state("skus", partition="tea") == {"number": 3}
    with pytest.raises(InvalidOption, match="needs partition="):
        operate.state("skus")


def test_e26_8_an_emitted_event_of_its_own_comes_in_a_later_batch():
    """A projection that handles what it emits gets it behind its position. [E26.8]"""

    @projection("orders", channel="outbox")
    class Orders:
        @event_handler
        def counted(self, event: OrderCounted, emit: Emitter):
            seen.append(event.count)
            if event.count < 3:
                emit(OrderCounted(event.count + 1))

    registry = project(Orders)
    append(registry, OrderCounted(1))
    work(registry)

    assert seen == [1, 2, 3]


def test_a_linked_event_is_in_another_stream():
    """`emit.link` puts the handled event into a stream, by reference, once."""

    @projection("orders", channel="outbox")
    def big(event: OrderPlaced, emit: Emitter):
        if event.number > 100:
            emit.link("big-orders")

    registry = project(big)
    place(registry, 1, 200, 300)
    work(registry)

    linked = store_of(registry).read("big-orders")
    assert [each.event.number for each in linked] == [200, 300]


@message("seat.sold")
@dataclasses.dataclass(frozen=True)
class SeatSold:
    hall: Annotated[str, Tag("hall")]
    number: int


@pytest.mark.parametrize(
    "partition_by",
    [Tag("hall"), "hall", Header("hall"), lambda sold: sold.payload.hall],
    ids=["tag", "attribute", "header", "callable"],
)
def test_e23_2_shards_divide_the_events_by_their_partition(partition_by):
    """By tag, attribute, header or callable: each event once, and those of a partition
    in order and in one shard. [E23.2]"""

    @projection("seats", channel="outbox", shards=4, batch=3, partition_by=partition_by)
    def seats(event: SeatSold):
        Entry.objects.create(text=event.hall, number=event.number)

    registry = registry_of(seats, SeatSold)
    halls = "abcdefg"
    for number in range(28):
        hall = halls[number % 7]
        store_of(registry).append(SeatSold(hall, number), headers={"hall": hall})
    work(registry)

    for first, hall in enumerate(halls):
        assert numbers(hall) == list(range(first, 28, 7))
    handled = [shard("seats", each).handled for each in range(4)]
    assert sum(handled) == 28
    assert all(each % 4 == 0 for each in handled)
    assert len([each for each in handled if each]) > 1


def test_e23_3_rows_are_locked_however_many_shards_were_declared():
    """Shards that were cut later may need one row as well. [E23.3]"""

    @projection("orders", channel="outbox", views=[OrderRow])
    class SharedOrders:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            row.changes += 1

    registry = project(SharedOrders)
    own = Projections(registry=registry)

    def locks():
        place(registry, 1)
        with CaptureQueriesContext(connection) as queries:
            own.run("orders")
        table = OrderRow._meta.db_table
        return [
            each["sql"]
            for each in queries
            if table in each["sql"] and "FOR UPDATE" in each["sql"]
        ]

    assert locks() == []
    own.reshard("orders", 2)
    assert bool(locks()) is connection.features.has_select_for_update
    own.reshard("orders", 1)
    assert locks() == []
    assert OrderRow.objects.get().changes == 3


def test_e23_3_shards_that_cannot_be_cut_are_given_back():
    """Workers go on with them at once, and with those that were behind. [E23.3]"""
    registry = project(made(shards=2, batch=1))
    own = Projections(registry=registry)
    for stream in ("order-1", "order-2"):
        place(registry, 1, stream=stream)
    even = next(
        key for pk, key in Stream.objects.values_list("pk", "key") if not pk % 2
    )
    last = place(registry, 2, 3, 4, stream=f"order-{even}").position
    own.run("orders")
    Shard.objects.filter(number=0).update(position=last - 2)
    Shard.objects.filter(number=1).update(failed_position=last + 1, attempts=1)

    with pytest.raises(ProjectionBusy, match="has stopped at an event"):
        own.reshard("orders", 4)

    assert shard().position == last - 1
    assert [each.owner for each in Shard.objects.all()] == ["", ""]


def test_a_paused_projection_waits_until_it_is_resumed():
    """`pause` and `resume` are read by the next batch."""
    registry = project(made())
    operate = Projections(registry=registry)
    place(registry, 1)
    work(registry)

    assert operate.pause("orders")
    assert not operate.pause("orders")
    assert not operate.is_live("orders")
    place(registry, 2)
    work(registry)
    assert numbers() == [1]
    assert operate.status("orders").status == "paused"
    with pytest.raises(ProjectionBusy, match="is paused"):
        operate.run("orders")

    assert operate.resume("orders")
    assert not operate.resume("orders")
    work(registry)
    assert numbers() == [1, 2]


def test_an_unknown_projection_is_named_with_the_near_one():
    """A name that nobody has raises with a proposal."""
    operate = Projections(registry=project(made()))

    with pytest.raises(ProjectionNotFound, match=r"Did you mean 'orders'\?"):
        operate.run("order")


def test_e31_2_nothing_appended_and_inline_return_at_once():
    """`wait_for` without an append of this thread, or of an inline projection, returns;
    with a position that does not come it raises after the timeout. [E31.2]"""
    registry = project(made(), made("inline", channel=None))
    operate = Projections(registry=registry)
    position = place(registry, 1).position
    operate.wait_for("inline")
    with pytest.raises(ProjectionBehind, match="is not set up after 0:00:00"):
        operate.wait_for("orders", timeout=0)

    work(registry)
    operate.wait_for("orders")
    with pytest.raises(ProjectionBehind, match=f"at position {position} after"):
        operate.wait_for("orders", timeout=0.01, position=position + 1)


def test_run_of_a_channel_runs_its_projections():
    """`run()` of a channel in a test runs its projections, and raises what they
    raise."""
    registry = project(made())
    place(registry, 1, 13)
    broken.add(13)

    with pytest.raises(Unlucky):
        channels["outbox"].run(registry=registry)
    assert numbers() == [1]


def test_what_is_reported_of_a_status_is_bounded(django_assert_num_queries):
    """The status of a projection counts the events that it handles, and their age."""
    registry = project(made())
    operate = Projections(registry=registry)
    work(registry)
    place(registry, 1, 2)
    append(registry, OrderPaid(1), OrderCancelled(1))
    status = operate.status("orders")
    assert status.lag == 2
    assert status.lag_seconds >= 0

    work(registry)
    append(registry, OrderPaid(1))
    status = operate.status("orders")
    assert (status.lag, status.lag_seconds) == (0, 0.0)


def test_header_partitions_need_a_header():
    """Events without the header are one partition."""

    @projection("orders", channel="outbox", partition_by=Header("shop"))
    def orders(event: OrderPlaced, state: Annotated[Totals, State()]):
        state.placed += 1

    registry = project(orders)
    append(registry, OrderPlaced(1), headers={"shop": "north"})
    append(registry, OrderPlaced(2))
    work(registry)

    operate = Projections(registry=registry)
    assert operate.state("orders", partition="north") == Totals(1)
    assert operate.state("orders", partition="") == Totals(1)
