"""Workers that are killed, stopped and recut lose no event and handle none twice."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from django.db import connections, transaction

from django_cqrs.events import Projections
from django_cqrs.events.models import Shard, StoredEvent
from django_cqrs.exceptions import ProjectionBusy
from django_cqrs.retries import DEADLOCKS
from tests.events.projections.support import shard, store_of
from tests.events.projections.work import (
    WorkDone,
    WorkEchoed,
    WorkTotal,
    registry,
)
from tests.events.views.models import Entry, OrderRow
from tests.limits import LIMIT
from tests.outbox.support import (
    SOAKS,
    database,
    on_a_server,
    on_databases,
    wait_until,
)

pytestmark = [*on_databases, pytest.mark.long]

WORKERS = 3
WRITERS = 4
STREAMS = 7
KINDS = 3
SECONDS = 90 if SOAKS else 3
CHANCE = 0.001
SEED = int(os.environ.get("CQRS_SEED", "0")) or random.SystemRandom().randrange(
    1, 10**6
)


class Nursery:
    """Workers in processes of their own."""

    def __init__(self):
        self.running = []
        self.stopped = {}
        """The workers that are stopped, and when they are to go on."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.events.projections.nursery"],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "CQRS_KILL_CHANCE": str(CHANCE),
                **database(),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.running.append(int(self.process.stdout.readline()))

    def send(self, worker, number):
        try:
            os.kill(worker, number)
        except ProcessLookupError:
            return False
        return True

    def replace(self):
        """Start a worker for each that is dead; return their number."""
        dead = [each for each in self.running if not self.send(each, 0)]
        for each in dead:
            self.running.remove(each)
            self.stopped.pop(each, None)
            self.start()
        return len(dead)

    def kill(self, worker):
        self.send(worker, signal.SIGKILL)
        wait_until(lambda: not self.send(worker, 0))

    def stop(self, worker, until):
        if self.send(worker, signal.SIGSTOP):
            self.stopped[worker] = until

    def go_on(self, now):
        for worker, until in list(self.stopped.items()):
            if now >= until:
                del self.stopped[worker]
                self.send(worker, signal.SIGCONT)


@contextmanager
def nursery():
    own = Nursery()
    try:
        assert own.process.stdout.readline() == "ready\n"
        yield own
    finally:
        for each in own.running:
            own.send(each, signal.SIGKILL)
        own.process.kill()
        own.process.communicate()


class Undone(Exception):
    """Raised to roll a transaction back."""


def one_unit(draw):
    """Append to one stream, with savepoints, rollbacks and pauses before the commit."""
    store, stream = store_of(registry), f"work-{draw.randrange(STREAMS)}"

    def append():
        store.append([WorkDone(draw.randrange(KINDS))], stream=stream)

    try:
        with transaction.atomic():
            append()
            try:
                with transaction.atomic():
                    append()
                    if draw.random() < 0.5:
                        raise Undone
            except Undone:
                pass
            append()
            if draw.random() < 0.1:
                time.sleep(draw.uniform(0.1, 0.4))
            if draw.random() < 0.15:
                raise Undone
    except Undone:
        pass


def write(number, end, failures):
    draw = random.Random(SEED + number)
    try:
        while time.monotonic() < end:
            try:
                one_unit(draw)
            except Exception as error:
                if not DEADLOCKS.includes(error):
                    raise
            time.sleep(draw.uniform(0, 0.02))
    except Exception as error:  # noqa: BLE001 - reported by the test
        failures.append(error)
    finally:
        connections.close_all()


def recut(end, cuts, failures):
    """Cut the shards anew, again and again: 4, 2, 8, 4 and so on."""
    own = Projections(registry=registry)
    counts = (4, 2, 8)
    try:
        while time.monotonic() < end:
            try:
                own.reshard("parts", counts[len(cuts) % 3])
                cuts.append(counts[len(cuts) % 3])
            except ProjectionBusy:
                pass
            time.sleep(0.3)
    except Exception as error:  # noqa: BLE001 - reported by the test
        failures.append(error)
    finally:
        connections.close_all()


def disturb(own, draw, end):
    """Kill and stop workers; return how many were killed, stopped, and killed themselves."""
    kills = stops = deaths = 0
    while (now := time.monotonic()) < end:
        time.sleep(draw.uniform(0.05, 0.3))
        own.go_on(now)
        deaths += own.replace()
        worker = draw.choice(own.running)
        if draw.random() < 0.6:
            own.kill(worker)
            own.replace()
            kills += 1
        elif worker not in own.stopped:
            own.stop(worker, now + draw.uniform(0.2, 1.5))
            stops += 1
    own.go_on(float("inf"))
    return kills, stops, deaths


def is_done():
    """Return whether all shards are at the end of the store."""
    head = store_of(registry).head()
    return not Shard.objects.exclude(position=head).exists()


def test_e22_4_every_event_is_handled_once_and_in_order(say):
    """
    Whenever workers are killed or stopped, and shards recut: nothing is lost or doubled.

    Beside long transactions, rollbacks and savepoints; the work of a worker that dies
    moves to another. [E22.4, E22.5, E23.1, E23.3]
    """
    on_a_server()
    own = Projections(registry=registry)
    for name in own.names():
        own.init(name)
    with nursery() as workers:
        for _ in range(WORKERS):
            workers.start()
        failures, cuts = [], []
        end = time.monotonic() + SECONDS
        threads = [
            threading.Thread(target=write, args=(number, end, failures))
            for number in range(WRITERS)
        ]
        threads.append(threading.Thread(target=recut, args=(end, cuts, failures)))
        for each in threads:
            each.start()
        kills, stops, deaths = disturb(workers, random.Random(SEED), end)
        for each in threads:
            each.join(LIMIT)
        assert failures == []
        own.reshard("parts", 4)
        end = time.monotonic() + LIMIT
        while not is_done():
            assert time.monotonic() < end
            deaths += workers.replace()
            time.sleep(0.01)
        for each in workers.running:
            workers.send(each, signal.SIGTERM)
        wait_until(lambda: not any(workers.send(each, 0) for each in workers.running))

    events = StoredEvent.objects.filter(name="work.done")
    found = list(events.order_by("position").values_list("position", "version"))
    say(
        f"{len(found):,} events, {WRITERS} writers, {WORKERS} workers, {kills} kills "
        f"from outside, {deaths} from inside, {stops} stops, {len(cuts)} recuts, "
        f"seed {SEED}"
    )
    assert kills >= (30 if SOAKS else 1)
    noted = Entry.objects.filter(text="whole").order_by("pk")
    assert list(noted.values_list("position", "number")) == found
    by_stream = Counter(events.values_list("stream_id", flat=True))
    assert len(by_stream) == STREAMS

    echoes = {}
    for each in store_of(registry).read("projection-parts"):
        assert isinstance(each.event, WorkEchoed)
        echoes.setdefault(each.event.stream, []).append(each.event.version)
    assert sum(map(len, echoes.values())) == len(found)
    for stream, versions in echoes.items():
        assert versions == list(range(1, len(versions) + 1))
        assert own.state("parts", partition=stream) == WorkTotal(len(versions))

    kinds = Counter(
        payload["kind"] for payload in events.values_list("payload", flat=True)
    )
    assert dict(OrderRow.objects.values_list("number", "changes")) == kinds
    assert [own.failures(name) for name in own.names()] == [[], []]
    assert {each.owner for each in Shard.objects.all()} == {""}
    assert shard("whole").handled == len(found)
