"""Inline projections beside writers, pauses and rebuilds, on real connections."""

import os
import random
import threading
import time

import pytest
from django.db import OperationalError, connection, connections, transaction

from django_cqrs import event_handler
from django_cqrs.events import Recorded, projection
from django_cqrs.events.building import backfill, rebuild
from django_cqrs.events.models import Generation, Status
from tests.events.projections.support import (
    OrderPlaced,
    append,
    handlers_of,
    project,
    stored,
)
from tests.events.views.models import Entry
from tests.limits import LIMIT

pytestmark = [
    pytest.mark.database,
    pytest.mark.long,
    pytest.mark.django_db(transaction=True),
]

APPENDS = 400 if os.environ.get("CQRS_SOAK") == "1" else 25
WRITERS = 6


@projection("entries", views=[Entry])
class RacingEntries:
    @event_handler
    def placed(self, event: OrderPlaced, recorded: Recorded):
        Entry.objects.create(text=recorded.stream, number=recorded.version)


class Undone(Exception):
    """Raised to roll a transaction back."""


def write(registry, seed, failures):
    """Append to a few streams, with savepoints and rollbacks."""
    draw = random.Random(seed)
    try:
        for number in range(APPENDS):
            stream = f"order-{draw.randrange(4)}"
            while True:
                try:
                    one_unit(registry, stream, number, draw)
                    break
                except OperationalError:  # a deadlock: one of two was undone
                    continue
    except Exception as error:  # noqa: BLE001 - reported by the test
        failures.append(error)
    finally:
        connections.close_all()


def one_unit(registry, stream, number, draw):
    try:
        with transaction.atomic():
            append(registry, OrderPlaced(number), stream=stream)
            try:
                with transaction.atomic():
                    append(registry, OrderPlaced(-1), stream=stream)
                    if draw.random() < 0.5:
                        raise Undone
            except Undone:
                pass
            append(registry, OrderPlaced(number), stream=stream)
            if draw.random() < 0.15:
                raise Undone
    except Undone:
        pass


def disturb(registry, disturbance, stop, failures):
    try:
        while not stop.is_set():
            disturbance(registry)
    except Exception as error:  # noqa: BLE001 - reported by the test
        failures.append(error)
    finally:
        connections.close_all()


def rebuilds(registry):
    rebuild(handlers_of(registry, "entries"), using="default")


def pauses(registry):
    rows = Generation.objects.filter(projection="entries")
    rows.filter(status=Status.LIVE).update(status=Status.PAUSED)
    rows.filter(status=Status.PAUSED).update(status=Status.LIVE)


@pytest.mark.parametrize("disturbance", [pauses, rebuilds])
def test_e21_6_and_e29_3_every_event_is_applied_once_and_in_order(disturbance):
    """Beside writers with savepoints and rollbacks, pauses, and rebuilds in place. [E21.6, E29.3]"""
    if connection.vendor == "sqlite":
        pytest.skip("It has one writer at a time.")
    print(f"{WRITERS} writers of {APPENDS} units")
    registry = project(RacingEntries)
    append(registry, OrderPlaced(0), stream="order-0")
    failures, stop = [], threading.Event()
    writers = [
        threading.Thread(target=write, args=(registry, seed, failures), daemon=True)
        for seed in range(WRITERS)
    ]
    other = threading.Thread(
        target=disturb, args=(registry, disturbance, stop, failures), daemon=True
    )
    for each in (*writers, other):
        each.start()
    for each in writers:
        each.join(LIMIT)
    stop.set()
    other.join(LIMIT)
    assert failures == []
    assert not any(each.is_alive() for each in (*writers, other))

    backfill(handlers_of(registry, "entries"), using="default")

    applied = {}
    for text, number in Entry.objects.order_by("pk").values_list("text", "number"):
        applied.setdefault(text, []).append(number)
    assert len(applied) == 4
    for versions in applied.values():
        assert versions == list(range(1, len(versions) + 1))
    total = sum(map(len, applied.values()))
    assert total == len(stored(registry))


def test_a_rebuild_waits_for_an_append_and_no_append_waits_for_the_rebuild():
    """A transaction that has appended and idles holds the rebuild back, and nobody else."""
    if connection.vendor == "sqlite":
        pytest.skip("It has one writer at a time.")
    registry = project(RacingEntries)
    append(registry, OrderPlaced(0), stream="order-0")
    has_appended, may_end, failures = threading.Event(), threading.Event(), []

    def idle():
        try:
            with transaction.atomic():
                append(registry, OrderPlaced(1), stream="order-1")
                has_appended.set()
                may_end.wait(LIMIT)
        except Exception as error:  # noqa: BLE001 - reported by the test
            failures.append(error)
        finally:
            connections.close_all()

    def rebuild_once():
        try:
            rebuilds(registry)
        except Exception as error:  # noqa: BLE001 - reported by the test
            failures.append(error)
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=each, daemon=True) for each in (idle, rebuild_once)
    ]
    threads[0].start()
    assert has_appended.wait(LIMIT)
    threads[1].start()
    rows = Generation.objects.filter(projection="entries")
    while rows.get().status != Status.BUILDING:
        assert not failures
        time.sleep(0.001)

    append(registry, OrderPlaced(2), stream="order-2")

    assert threads[1].is_alive()
    assert rows.get().status == Status.BUILDING
    may_end.set()
    for each in threads:
        each.join(LIMIT)
    assert failures == []
    found = Entry.objects.order_by("text").values_list("text", "number")
    assert list(found) == [("order-0", 1), ("order-1", 1), ("order-2", 1)]
