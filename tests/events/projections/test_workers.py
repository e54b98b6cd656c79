"""Workers that follow events on connections of their own, and what may happen to them."""

import dataclasses
import gc
import os
import signal
import statistics
import threading
import time
import tracemalloc
from contextlib import contextmanager
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections

from django_cqrs import Retry, command_handler, event_handler
from django_cqrs.events import Projections, on_init, projection
from django_cqrs.events.followers import new_owner
from django_cqrs.events.models import Shard
from django_cqrs.events.runner import ProjectionRunner, ShardTurn
from django_cqrs.events.settling import settled
from django_cqrs.events.shards import ShardPlace
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.worker import Worker
from django_cqrs.outbox.worker.jobs import ChannelJobs
from tests.events.projections.support import (
    OrderPlaced,
    append,
    handlers_of,
    made,
    numbers,
    place,
    project,
    shard,
    work,
)
from tests.events.support import only_on, sessions
from tests.events.views.models import Entry, OrderRow
from tests.limits import LIMIT
from tests.outbox.support import (
    LONG_AGO,
    SOAKS,
    at_once,
    end_session,
    on_a_server,
    on_databases,
    own_session,
    second_connection,
    wait_until,
)

pytestmark = on_databases


@contextmanager
def following(registry, kind=Worker):
    """Run a worker in a thread."""
    workers = []

    def run():
        workers.append(kind(registry, ["outbox"], using="default"))
        try:
            workers[0].run()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: workers)
        yield
    finally:
        workers[0].stop()
        append(registry, OrderPlaced(-1))  # ends its wait
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.fixture
def patient(monkeypatch):
    """Leases that end when a test says so, however slow the machine is."""
    monkeypatch.setattr("django_cqrs.events.runner.HOLD", LIMIT)
    monkeypatch.setattr("django_cqrs.events.shards.LEASE", timedelta(seconds=LIMIT))
    monkeypatch.setattr(ProjectionRunner, "batch_time", LIMIT)


@pytest.mark.usefixtures("patient")
def test_e22_5_a_worker_that_slept_over_its_lease_is_fenced():
    """Between two batches it keeps a shard by its lease alone: another one takes that. [E22.5]"""
    registry = project(made(batch=2))
    place(registry, *range(8))
    Projections(registry=registry).init("orders")
    one, other = (
        ProjectionRunner(handlers_of(registry), "default", new_owner())
        for _ in range(2)
    )
    bound = settled(connection)

    def turn(runner):
        found = shard()
        candidate = ShardPlace(found.pk, "orders", 0, found.position, 1, is_held=False)
        return runner.turn(candidate, bound)

    assert turn(one) is ShardTurn.MORE
    assert turn(other) is ShardTurn.TAKEN
    Shard.objects.update(lease_expires_at=LONG_AGO)
    token = shard().token
    assert turn(other) is ShardTurn.MORE
    assert shard().token == token + 1
    assert turn(one) is ShardTurn.TAKEN
    Shard.objects.update(lease_expires_at=LONG_AGO)
    assert turn(one) is ShardTurn.MORE
    assert turn(one) is ShardTurn.DONE
    assert turn(other) is ShardTurn.DONE
    assert numbers() == list(range(8))


@pytest.mark.usefixtures("patient")
def test_a_worker_keeps_a_shard_that_another_looks_at():
    """A lock of the row alone, which lasts for a moment, takes no shard away."""
    on_a_server()
    registry = project(made(batch=2))
    place(registry, *range(4))
    Projections(registry=registry).init("orders")
    found, bound = shard(), settled(connection)
    runner = ProjectionRunner(handlers_of(registry), "default", new_owner())
    candidate = ShardPlace(found.pk, "orders", 0, 0, 1, is_held=False)

    assert runner.turn(candidate, bound) is ShardTurn.MORE
    with sessions() as other:
        other.begin()
        other.do(lambda: Shard.objects.select_for_update().get())
        assert runner.turn(candidate, bound) is ShardTurn.MORE
        assert numbers() == [0, 1]
    assert runner.turn(candidate, bound) is ShardTurn.DONE
    assert numbers() == [0, 1, 2, 3]


@pytest.mark.parametrize(("seconds", "end"), [(LIMIT, 5), (0, 4)])
def test_e22_6_sigterm_ends_a_worker_after_its_batch(monkeypatch, seconds, end):
    """No other batch begins, nor another event of a batch whose time is over. [E22.6]"""
    monkeypatch.setattr(ChannelJobs, "slice_time", 0)
    monkeypatch.setattr(ProjectionRunner, "batch_time", seconds)

    @projection("orders", channel="outbox", batch=5)
    def orders(event: OrderPlaced):
        Entry.objects.create(text="orders", number=event.number)
        if event.number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    registry = project(orders)
    place(registry, *range(20))
    worker = Worker(registry, ["outbox"], using="default")
    before = signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    try:
        worker.run()
    finally:
        signal.signal(signal.SIGTERM, before)

    assert numbers() == list(range(end))
    assert shard().owner == ""


def once_at(number, act):
    """Return a projection that does something at the first sight of an order."""
    done = []

    @projection("orders", channel="outbox", retry=Retry(attempts=1), on_failure="skip")
    def orders(event: OrderPlaced):
        Entry.objects.create(text="orders", number=event.number)
        if event.number == number and not done:
            done.append(True)
            act()

    return orders


def test_e22_7_a_lost_connection_counts_as_no_attempt(caplog):
    """The batch is handled again on a new one. [E22.7]"""
    on_a_server()
    registry = project(once_at(2, lambda: end_session(own_session())))
    place(registry, *range(4))

    work(registry)

    assert numbers() == [0, 1, 2, 3]
    assert Projections(registry=registry).failures("orders") == []
    assert not [each for each in caplog.records if "projections" in each.name]


WAITS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE pid = %s "
    "AND wait_event_type = 'Lock'",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx "
    "WHERE trx_state = 'LOCK WAIT' AND trx_mysql_thread_id = %s",
}


@contextmanager
def meeting():
    """Give a function that meets another transaction in a deadlock, and is undone."""
    OrderRow.objects.bulk_create([OrderRow(number=1), OrderRow(number=2)])

    def change(number):
        OrderRow.objects.filter(number=number).update(changes=1)

    def change_much():
        """Change more than the batch does, so that MariaDB undoes that."""
        Entry.objects.bulk_create(Entry(text="much") for _ in range(200))
        change(2)
        return own_session()

    def is_waiting():
        with second_connection() as watcher, watcher.cursor() as cursor:
            cursor.execute(WAITS[connection.vendor], [session])
            return cursor.fetchone()[0]

    def meet():
        change(1)
        other.start(change, 1)
        wait_until(is_waiting)
        if connection.vendor == "postgresql":  # who looks first is undone
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL deadlock_timeout = '1ms'")
        try:
            change(2)
        finally:
            other.result()
            other.commit()

    with sessions() as other:
        other.begin()
        session = other.do(change_much)
        yield meet


def test_e22_7_a_deadlock_counts_as_no_attempt(caplog):
    """The transaction that had to give way is gone as a whole; nobody is to blame. [E22.7]"""
    on_a_server()
    with meeting() as meet:
        registry = project(once_at(2, meet))
        place(registry, *range(4))
        work(registry)

    assert numbers() == [0, 1, 2, 3]
    assert Projections(registry=registry).failures("orders") == []
    assert not [each for each in caplog.records if "projections" in each.name]


def test_e23_3_shards_are_cut_again_after_a_deadlock():
    """The whole change is undone for it, on MariaDB, and done again. [E23.3]"""
    on_a_server()
    with meeting() as meet:
        registry = project(once_at(2, meet))
        own = Projections(registry=registry)
        own.init("orders")
        own.reshard("orders", 2)
        for stream in ("order-1", "order-2"):
            last = place(registry, 1, 2, 3, stream=stream).position
        Shard.objects.filter(number=0).update(position=last)

        own.reshard("orders", 3)

    assert numbers() == [1, 2, 3]
    found = Shard.objects.order_by("number").values_list("number", "position")
    assert list(found) == [(number, last) for number in range(3)]


class Patient(Worker):
    """Looks for work when it is told of some, and not before."""

    rounds_of_polling = 0
    listen_time = LIMIT


def test_e22_8_an_idle_worker_is_told_of_an_event(say):
    """A commit is seen in the views after milliseconds, without a look in between. [E22.8]"""
    only_on("postgresql")
    registry = project(made())
    spans = []
    with following(registry, Patient):
        # Another process may take the processor away; a look comes after the limit.
        while len(spans) < (50 if SOAKS else 3) or min(spans) > 0.1:
            began = time.monotonic()
            place(registry, len(spans))
            while len(numbers()) <= len(spans):
                time.sleep(0.001)
            spans.append(time.monotonic() - began)
            assert spans[-1] < LIMIT
            time.sleep(0.05)  # the quiet time of the last notification is over
    say(f"{statistics.median(spans) * 1000:.0f} ms from commit to view")


@pytest.mark.long
def test_e22_11_many_events_leave_nothing_behind(settings, say):
    """No connection, no logged query, little memory, however many they are. [E22.11]"""
    settings.DEBUG = True
    size = 100_000 if SOAKS else 1_000

    @projection("orders", channel="outbox")
    def orders(event: OrderPlaced):
        """Nothing is written, so that nothing but the package can grow."""

    registry = project(orders)

    def growth():
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, size, 1000):
            place(registry, *range(start, start + 1000))
        work(registry)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    growth()
    tracemalloc.start()
    growth()
    grown = min(growth() for _ in range(2))
    tracemalloc.stop()
    say(f"{size:,} events: the process has grown by {grown:,} bytes")

    assert shard().handled == 4 * size
    assert grown < 30_000
    assert len(connection.queries_log) < 100
    assert connection.execute_wrappers == []
    assert connection.savepoint_ids == []


def test_e23_5_shards_take_turns():
    """Three workers on four shards handle every event once, on SQLite as well. [E23.1, E23.5]"""
    registry = project(made(shards=4, batch=3))
    for number in range(40):
        place(registry, number, stream=f"order-{number % 7}")

    at_once(lambda: work(registry), 3)

    handled = numbers()
    assert sorted(handled) == list(range(40))
    for stream in range(7):
        own = [each for each in handled if each % 7 == stream]
        assert own == sorted(own)
    assert sum(each.handled for each in Shard.objects.all()) == 40
    assert len([each for each in Shard.objects.all() if each.handled]) == 4


def test_e28_1_a_projection_is_set_up_once_by_eight_at_once():
    """`on_init` runs once, and who has not run it waits for its end. [E28.1]"""

    @projection("orders", channel="outbox")
    class EagerOrders:
        @on_init
        def init(self):
            Entry.objects.create(text="init")

        @event_handler
        def placed(self, event: OrderPlaced): ...

    registry = project(EagerOrders)

    def init():
        return Projections(registry=registry).init("orders"), numbers("init")

    found = at_once(init, 8)

    assert sorted(found) == [(False, [0])] * 7 + [(True, [0])]


def dispatching():
    """Return a registry with a command that appends an event, and its projection."""

    @command_handler(name="order.place")
    def order(command: PlaceOrder):
        place(registry, command.number)

    registry = project(made(), order)
    return registry


@dataclasses.dataclass(frozen=True)
class PlaceOrder:
    number: int


def test_e31_1_what_was_dispatched_is_waited_for():
    """`wait_for` after a dispatch returns when its events are in the views. [E31.1]"""
    registry = dispatching()
    own = Projections(registry=registry)
    with following(registry):
        for number in range(3):
            registry.command_bus.dispatch(PlaceOrder(number))
            own.wait_for("orders", timeout=LIMIT)
            assert numbers() == list(range(number + 1))


def test_e31_3_nobody_waits_inside_the_transaction_that_appends():
    """The projection cannot see its events before the commit, the error says. [E31.3]"""
    registry = dispatching()
    own = Projections(registry=registry)

    @command_handler(name="order.wait")
    def wait(command: OrderPlaced):
        place(registry, 1)
        own.wait_for("orders")

    registry.add(wait)
    with pytest.raises(InvalidOption, match="called inside a transaction"):
        registry.command_bus.dispatch(OrderPlaced(1))
    assert numbers() == []


def test_e31_4_a_task_waits_for_what_it_has_appended():
    """`await_for` does the same, and does not block the event loop. [E31.4]"""
    registry = dispatching()
    own = Projections(registry=registry)

    async def order():
        await registry.command_bus.adispatch(PlaceOrder(1))
        await own.await_for("orders", timeout=timedelta(seconds=LIMIT))

    with following(registry):
        async_to_sync(order)()
        assert numbers() == [1]
