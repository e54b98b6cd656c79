"""Workers that are killed at random fire every second once."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from tests.limits import LIMIT
from tests.outbox.support import (
    SOAKS,
    database,
    letters,
    on_databases,
    rows,
    wait_until,
)
from tests.schedules.support import row_of
from tests.schedules.work import registry
from tests.testapp.models import Note

pytestmark = [*on_databases, pytest.mark.long]

WORKERS = 6
SECONDS = 70 if SOAKS else 8
CHANCE = 0.08
SEED = int(os.environ.get("CQRS_SEED", "0")) or random.SystemRandom().randrange(
    1, 10**6
)


class Process:
    """A worker of its own, which may kill itself."""

    def __init__(self, chance):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.schedules.killed_worker"],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "CQRS_KILL_CHANCE": str(chance),
                **database(),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def await_ready(self):
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    @property
    def is_dead(self):
        return self.process.poll() is not None

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=LIMIT)

    def stop(self):
        self.process.terminate()
        self.process.communicate(timeout=LIMIT)


def test_s02_1_six_workers_fire_every_second_once(say):
    """Killed at random, and at both places of the transaction: none missing, none twice. [S02.1, S02.8]"""
    chance = random.Random(SEED)
    own = outside = 0
    with ExitStack() as stack:

        def start(probability=CHANCE):
            process = Process(probability)
            stack.callback(process.kill)
            return process

        running = [start() for _ in range(WORKERS)]
        for each in running:
            each.await_ready()
        wait_until(Note.objects.exists)
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            time.sleep(chance.uniform(0.2, 1.2))
            place = chance.randrange(WORKERS)
            killed = None
            if chance.random() < 0.5 and not running[place].is_dead:
                running[place].kill()
                killed = place
                outside += 1
            for number, each in enumerate(running):
                if each.is_dead:
                    own += number != killed
                    each.kill()
                    running[number] = start()
        for each in running:
            each.kill()
        last = start(probability=0)
        last.await_ready()
        reached = max(Note.objects.values_list("number", flat=True))
        wait_until(lambda: Note.objects.filter(number__gt=reached).exists())
        last.stop()
        # What it had claimed, or sent last.
        drain()

    found = Counter(Note.objects.values_list("number", flat=True))
    first, end = min(found), max(found)
    say(
        f"{end - first + 1} seconds, {WORKERS} workers, {outside} kills from outside, "
        f"{own} from inside, seed {SEED}"
    )
    assert sorted(found) == list(range(first, end + 1))
    assert set(found.values()) == {1}
    assert letters() == []
    assert rows() == []
    assert row_of("second").failures == 0
    assert end - first + 1 >= SECONDS


def drain():
    """Handle what is left in this process, without a clock."""
    from tests.outbox.support import worker_of

    wait_until(lambda: worker_of(registry).run() and not rows())
