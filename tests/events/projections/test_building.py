"""Projections that are filled anew: reset, backfill, rebuild in place, delete."""

from typing import Annotated

import pytest

from django_cqrs import CommandBus, EventBus, command_handler, event_handler
from django_cqrs.events import (
    Emitter,
    PartitionName,
    Projections,
    Recorded,
    Replaying,
    Row,
    State,
    on_delete,
    on_reset,
    projection,
)
from django_cqrs.events.building import backfill, delete, rebuild, reset
from django_cqrs.events.handling import projections_of
from django_cqrs.events.models import Generation, Partition, Shard, Status
from django_cqrs.events.replaying import tables_written_by
from django_cqrs.exceptions import (
    InvalidOption,
    ProjectionBusy,
    ProjectionNotFound,
    ReplayForbidden,
    StreamNotFound,
)
from django_cqrs.retries import Retry
from tests.events.projections.support import (
    OrderCounted,
    OrderPaid,
    OrderPlaced,
    Unlucky,
    append,
    handlers_of,
    project,
    stored,
)
from tests.events.views.models import Customer, Entry, OrderLine, OrderRow, Owned

pytestmark = [pytest.mark.database, pytest.mark.django_db]

log: list[str] = []
fails_at: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_logged():
    log.clear()
    fails_at.clear()


@projection("orders", views=[OrderRow])
class RebuiltOrders:
    @event_handler
    def placed(
        self,
        event: OrderPlaced,
        row: Annotated[OrderRow, Row("number")],
        emit: Emitter,
        again: Replaying,
    ):
        if event.number in fails_at:
            raise Unlucky
        row.changes += 1
        log.append(f"{event.number} {again}")
        emit(OrderCounted(event.number))

    @on_reset
    def emptied(self):
        log.append("reset")

    @on_delete
    def gone(self):
        log.append("deleted")


def rows():
    return dict(OrderRow.objects.values_list("number", "changes").order_by("number"))


def filled(*, count=5):
    registry = project(RebuiltOrders)
    for number in range(count):
        append(registry, OrderPlaced(number), stream=f"order-{number}")
    append(registry, OrderPlaced(0), stream="order-0")
    assert rows() == {0: 2, **dict.fromkeys(range(1, count), 1)}
    log.clear()
    return handlers_of(registry), registry


def test_e29_1_a_rebuild_replaces_what_the_views_hold():
    """The rows are made of the events alone, whatever somebody has changed in them. [E29.1]"""
    handlers, registry = filled()
    OrderRow.objects.filter(number=1).update(changes=99)
    OrderRow.objects.create(number=77)

    assert rebuild(handlers, using="default") == 6

    assert rows() == {0: 2, 1: 1, 2: 1, 3: 1, 4: 1}
    append(registry, OrderPlaced(1), stream="order-1")
    assert rows()[1] == 2


def test_e29_1_a_rebuild_that_fails_leaves_the_old_rows():
    """A failure at the fourth of five changes nothing, and the projection goes on. [E29.1]"""
    handlers, registry = filled()
    OrderRow.objects.filter(number=1).update(changes=99)
    fails_at.append(3)

    with pytest.raises(Unlucky):
        rebuild(handlers, using="default")

    assert rows() == {0: 2, 1: 99, 2: 1, 3: 1, 4: 1}
    assert Generation.objects.get().status == Status.LIVE
    append(registry, OrderPlaced(1), stream="order-1")
    assert rows()[1] == 100


def test_e26_4_and_e27_3_a_rebuild_is_silent_and_says_so():
    """Nothing is emitted, and `Replaying` is true in the replay alone. [E26.4, E27.3]"""
    handlers, registry = filled(count=1)
    before = len(stored(registry))

    rebuild(handlers, using="default")

    assert len(stored(registry)) == before
    assert log == ["reset", "0 True", "0 True"]
    append(registry, OrderPlaced(0), stream="order-0")
    assert log[3:] == ["0 False"]
    assert len(stored(registry)) == before + 2


def test_e28_3_after_a_reset_everything_is_handled_again():
    """Views, states and positions are empty; each stream comes back with its next event. [E28.3]"""
    handlers, registry = filled()

    reset(handlers, using="default")

    assert rows() == {}
    assert not Partition.objects.exists()
    append(registry, OrderPlaced(0), stream="order-0")
    assert rows() == {0: 3}
    assert backfill(handlers, using="default") == 4
    assert rows() == {0: 3, 1: 1, 2: 1, 3: 1, 4: 1}


@pytest.mark.parametrize(("size", "expected"), [(2, [2, 2, 1]), (50, [5])])
def test_e28_4_a_backfill_brings_what_is_missing(size, expected):
    """So many streams a transaction; the second time there is nothing left to do. [E28.4]"""
    old = project()
    for number in range(5):
        append(old, OrderPlaced(number), OrderPaid(number), stream=f"order-{number}")
    registry = project(RebuiltOrders)
    handlers, sizes = handlers_of(registry), []

    count = backfill(handlers, using="default", batch=size, at_batch=sizes.append)

    assert (count, sizes) == (10, expected)
    assert rows() == dict.fromkeys(range(5), 1)
    assert backfill(handlers, using="default", at_batch=sizes.append) == 0
    assert sizes == expected


def test_e28_4_a_backfill_of_an_empty_store_sets_the_projection_up():
    """There is nothing to read, and the next event finds it live. [E28.4]"""
    registry = project(RebuiltOrders)

    assert backfill(handlers_of(registry), using="default") == 0

    assert Generation.objects.get().status == Status.LIVE


def test_e26_4_a_backfill_emits():
    """What it handles has not been handled before, so that its events are new. [E26.4]"""
    old = project()
    append(old, OrderPlaced(1))
    registry = project(RebuiltOrders)

    backfill(handlers_of(registry), using="default")

    assert [each.name for each in stored(registry)] == ["order.placed", "order.counted"]


@pytest.mark.parametrize("size", [0, -1, "2", True])
def test_e28_4_a_backfill_takes_one_stream_or_more(size):
    """Any other number is refused, and nothing is set up. [E28.4]"""
    registry = project(RebuiltOrders)

    with pytest.raises(InvalidOption, match="batch="):
        backfill(handlers_of(registry), using="default", batch=size)

    assert not Generation.objects.exists()


def test_e28_5_a_deleted_projection_leaves_nothing():
    """Rows, states, positions are gone, and its method is called. [E28.5]"""
    handlers, _ = filled()

    delete(handlers, using="default")

    assert rows() == {}
    assert log == ["deleted"]
    for model in (Generation, Shard, Partition):
        assert not model.objects.exists()
    with pytest.raises(ProjectionNotFound, match="cqrs_projections init orders"):
        delete(handlers, using="default")


def test_e28_8_two_rebuilds_at_once_are_refused():
    """The second one is told, and the first goes on. [E28.8]"""
    handlers, _ = filled()
    Generation.objects.update(status=Status.BUILDING)

    for act in (rebuild, reset, delete):
        with pytest.raises(ProjectionBusy, match="being rebuilt already"):
            act(handlers, using="default")

    assert rows()[0] == 2


def test_a_projection_whose_rebuild_has_died_is_resumed_by_hand():
    """Its rows are the old ones, and it goes on with them."""
    _, registry = filled()
    Generation.objects.update(status=Status.BUILDING)
    append(registry, OrderPlaced(1), stream="order-1")
    assert rows()[1] == 1

    assert Projections(registry=registry).resume("orders")

    append(registry, OrderPlaced(1), stream="order-1")
    assert rows()[1] == 3


def test_they_are_operations_of_projections():
    """Each by the name of the projection; an unknown one is refused with a near one."""
    _, registry = filled()
    own = Projections(registry=registry)
    OrderRow.objects.all().delete()

    assert own.rebuild("orders") == 6
    own.reset("orders")
    assert rows() == {}
    assert own.backfill("orders", batch=2) == 6
    own.delete("orders")
    assert not Generation.objects.exists()
    for act in (own.rebuild, own.reset, own.backfill, own.delete):
        with pytest.raises(ProjectionNotFound, match="Did you mean 'orders'"):
            act("ordres")


def test_a_paused_projection_is_paused_after_its_rebuild():
    """A rebuild decides about rows, and not about whether the projection runs."""
    handlers, registry = filled()
    Generation.objects.update(status=Status.PAUSED)
    append(registry, OrderPlaced(4), stream="order-4")

    rebuild(handlers, using="default")

    assert Generation.objects.get().status == Status.PAUSED
    assert rows()[4] == 2


def failing(act):
    """Return the handlers of a projection that does something in a replay."""

    @projection("orders", views=[OrderRow])
    class Failing:
        @event_handler
        def placed(
            self,
            event: OrderPlaced,
            again: Replaying,
            commands: CommandBus,
            events: EventBus,
        ):
            if again:
                act(commands, events)

    @command_handler("note", channel="memory")
    def note(number: int):
        log.append("sent")

    @event_handler("noted")
    def noted(number: int):
        log.append("heard")

    registry = project(Failing, note, noted)
    append(registry, OrderPlaced(1))
    return handlers_of(registry)


@pytest.mark.parametrize(
    "act",
    [
        lambda commands, events: commands.dispatch(1, route="note"),
        lambda commands, events: events.publish(1, route="noted"),
        lambda commands, events: commands.send(1, route="note"),
    ],
    ids=["dispatch", "publish", "send"],
)
def test_e26_6_a_message_in_a_replay_is_refused(act):
    """What must not happen twice belongs in a handler on a channel, the error says. [E26.6]"""
    handlers = failing(act)

    with pytest.raises(ReplayForbidden, match="'orders' sent a message"):
        rebuild(handlers, using="default")

    assert log == []


@pytest.mark.parametrize(
    "act",
    [
        lambda *_: OrderLine.objects.create(order=1),
        lambda *_: OrderLine.objects.update(count=2),
        lambda *_: OrderLine.objects.all().delete(),
        lambda *_: OrderLine.objects.bulk_create([OrderLine(order=1)]),
    ],
    ids=["create", "update", "delete", "bulk_create"],
)
def test_e26_7_a_write_to_another_table_in_a_replay_is_refused(act):
    """The error names the table and says where such a write belongs. [E26.7]"""
    handlers = failing(act)
    OrderLine.objects.create(order=9)

    with pytest.raises(ReplayForbidden, match=f"wrote to '{OrderLine._meta.db_table}'"):
        rebuild(handlers, using="default")

    assert list(OrderLine.objects.values_list("order", "count")) == [(9, 0)]


def test_what_a_replay_may_do():
    """It reads anything, and writes its own views by the ORM."""

    def act(*_):
        list(Customer.objects.all())
        OrderRow.objects.select_for_update().filter(number=1).first()
        OrderRow.objects.update_or_create(number=1, defaults={"changes": 7})

    handlers = failing(act)

    rebuild(handlers, using="default")

    assert rows() == {1: 7}


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("SELECT 1 FROM a FOR UPDATE OF b", []),
        (
            'INSERT INTO "shop_a" (x) VALUES (1) ON CONFLICT (x) DO UPDATE SET x = 2',
            ["shop_a"],
        ),
        ("INSERT INTO `a` (x) VALUES (1) ON DUPLICATE KEY UPDATE x = 2", ["a"]),
        ("INSERT OR IGNORE INTO a VALUES (1)", ["a"]),
        ("INSERT IGNORE INTO a VALUES (1)", ["a"]),
        ('UPDATE ONLY "public"."A" SET x = 1', ["a"]),
        (
            "WITH x AS (DELETE FROM a RETURNING 1) INSERT INTO b SELECT * FROM x",
            ["a", "b"],
        ),
        ("TRUNCATE TABLE a", ["a"]),
        ("MERGE INTO a USING b ON a.x = b.x WHEN MATCHED THEN DO NOTHING", ["a"]),
    ],
)
def test_the_tables_that_a_statement_writes(statement, tables):
    """Locks, and what follows a conflict, name no other table."""
    assert tables_written_by(statement) == tables


@projection("followed", channel="outbox", views=[OrderRow])
class RebuiltFollowed:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        if event.number in fails_at:
            raise Unlucky
        row.changes += 1


def test_e29_1_a_following_projection_is_rebuilt_in_place():
    """It stands where it stood afterwards, and goes on from there. [E29.1]"""
    registry = project(RebuiltFollowed)
    own = Projections(registry=registry)
    append(registry, *map(OrderPlaced, range(5)))
    own.run("followed")
    OrderRow.objects.filter(number=1).update(changes=99)

    assert own.rebuild("followed") == 5

    assert rows() == dict.fromkeys(range(5), 1)
    append(registry, OrderPlaced(1))
    assert own.run("followed") == 1
    assert rows()[1] == 2
    fails_at.append(4)
    with pytest.raises(Unlucky):
        own.rebuild("followed")
    assert rows()[1] == 2
    with pytest.raises(InvalidOption, match="follows the events"):
        own.backfill("followed")


def test_e28_3_the_next_run_after_a_reset_equals_the_first():
    """A following projection handles everything again, from its beginning. [E28.3]"""
    registry = project(RebuiltFollowed)
    own = Projections(registry=registry)
    append(registry, *map(OrderPlaced, range(5)))
    assert own.run("followed") == 5

    own.reset("followed")

    assert rows() == {}
    assert own.run("followed") == 5
    assert rows() == dict.fromkeys(range(5), 1)


def test_views_that_point_to_each_other_are_emptied_in_order():
    """Those that point to others come first, as a database without deferral needs it."""

    @projection("linked", views=[Entry, Owned, OrderLine])
    class Linked:
        @event_handler
        def placed(self, event: OrderPlaced, recorded: Recorded):
            entry = Entry.objects.create(text="x", position=recorded.position)
            Owned.objects.create(entry=entry)

    registry = project(Linked)
    append(registry, OrderPlaced(1))

    assert rebuild(handlers_of(registry, "linked"), using="default") == 1

    assert Owned.objects.count() == Entry.objects.count() == 1


# One partition --------------------------------------------------------------------------


@projection("parts", views=[OrderRow])
class RebuiltParts:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        if event.number in fails_at:
            raise Unlucky
        row.changes += 1

    @on_reset
    def emptied(self, partition: PartitionName):
        log.append(partition)
        if partition is not None:
            number = int(partition.removeprefix("order-"))
            OrderRow.objects.filter(number=number).delete()


def spoiled():
    """Return the operations of a projection whose rows somebody has changed."""
    registry = project(RebuiltParts)
    for number in (0, 1, 2, 1):
        append(registry, OrderPlaced(number), stream=f"order-{number}")
    OrderRow.objects.update(changes=99)
    return Projections(registry=registry), registry


def test_e29_2_a_partition_is_rebuilt_alone():
    """Its rows are made anew, and the others stay. [E29.2]"""
    own, registry = spoiled()

    assert own.rebuild("parts", partition="order-1") == 2

    assert rows() == {0: 99, 1: 2, 2: 99}
    assert log == ["order-1"]
    append(registry, OrderPlaced(1), stream="order-1")
    assert rows()[1] == 3
    assert own.rebuild("parts") == 5
    assert rows() == {0: 1, 1: 3, 2: 1}
    assert log == ["order-1", None]


def test_e29_2_a_partition_that_fails_keeps_its_rows():
    """Each partition has a transaction of its own: the others are made anew. [E29.2]"""
    own, _ = spoiled()
    fails_at.append(1)

    assert own.rebuild("parts", partition="order-0") == 1
    with pytest.raises(Unlucky):
        own.rebuild("parts", partition="order-1")
    assert own.rebuild("parts", partition="order-2") == 1

    assert rows() == {0: 1, 1: 99, 2: 1}
    assert Generation.objects.get().status == Status.LIVE


@projection(
    "tallied",
    channel="outbox",
    partition_by="number",
    shards=3,
    views=[OrderRow],
    on_failure="skip",
    retry=Retry(attempts=1),
)
class RebuiltTallied:
    @event_handler
    def placed(
        self,
        event: OrderPlaced,
        row: Annotated[OrderRow, Row("number")],
        state: Annotated[dict[str, int], State()],
    ):
        if event.number in fails_at:
            raise Unlucky
        row.changes += 1
        state["seen"] = state.get("seen", 0) + 1

    @on_reset
    def emptied(self, partition: PartitionName):
        OrderRow.objects.filter(number=int(partition or -1)).delete()


def test_e29_2_a_partition_of_one_that_follows_stops_where_its_shard_stands():
    """What comes after is the worker's; its state and failures are made anew. [E29.2]"""
    registry = project(RebuiltTallied)
    own = Projections(registry=registry)
    append(registry, *map(OrderPlaced, (0, 1, 2, 1)))
    fails_at.append(1)
    own.run("tallied")
    assert [each.partition for each in own.failures("tallied")] == ["1", "1"]
    append(registry, *map(OrderPlaced, (1, 2)))
    fails_at.clear()

    assert own.rebuild("tallied", partition="1") == 2

    assert rows() == {0: 1, 1: 2, 2: 1}
    assert own.failures("tallied") == []
    assert own.state("tallied", partition="1") == {"seen": 2}
    assert own.run("tallied") == 2
    assert rows() == {0: 1, 1: 3, 2: 2}
    assert own.state("tallied", partition="1") == {"seen": 3}


def test_e29_2_what_cannot_be_rebuilt_by_partition_is_refused():
    """The error says what is missing, and nothing is changed. [E29.2]"""

    @projection("counted", views=[OrderLine])
    class RebuiltCounted:
        @event_handler
        def placed(
            self, event: OrderPlaced, state: Annotated[dict[str, int], State()]
        ): ...

        @on_reset
        def emptied(self, partition: PartitionName): ...

    registry = project(RebuiltOrders, RebuiltCounted, RebuiltParts)
    append(registry, OrderPlaced(1))
    before = rows()
    own = Projections(registry=registry)

    with pytest.raises(InvalidOption, match="no method with @on_reset takes a Part"):
        own.rebuild("orders", partition="order-1")
    with pytest.raises(InvalidOption, match="it keeps one State for all"):
        own.rebuild("counted", partition="order-1")
    with pytest.raises(StreamNotFound, match="no stream 'order-7'"):
        own.rebuild("parts", partition="order-7")
    assert rows() == before


def test_a_partition_name_is_for_on_reset_alone():
    """A handler that asks for it is a mistake, which a check reports."""

    @projection("orders")
    class Curious:
        @event_handler
        def placed(self, event: OrderPlaced, partition: PartitionName): ...

    [problem] = projections_of(project(Curious))["orders"].problems
    assert "'partition'" in problem.message
