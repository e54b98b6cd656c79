"""Workers that are killed at random lose nothing and do nothing twice."""

import os
import random
import time
from collections import Counter

import pytest
from django.db import transaction

from tests.limits import LIMIT
from tests.outbox.support import (
    SOAKS,
    letters,
    on_a_server,
    on_databases,
    processes,
    rows,
    wait_until,
)
from tests.outbox.work import OtherWork, registry
from tests.testapp.models import Note

pytestmark = [*on_databases, pytest.mark.long]

WORKERS = 3
MESSAGES = 5_000 if SOAKS else 600
KILLS = 60 if SOAKS else 6
SEED = int(os.environ.get("CQRS_SEED", "0")) or random.SystemRandom().randrange(
    1, 10**6
)


def test_killed_at_random(say):
    """Every effect is in the database exactly once, whenever the SIGKILL comes. [C02.4]"""
    on_a_server()
    chance = random.Random(SEED)
    for start in range(0, MESSAGES, 100):
        with transaction.atomic():
            for number in range(start, start + 100):
                registry.command_bus.dispatch(OtherWork(number))

    kills = stranded = 0
    began = time.monotonic()
    with processes(count=0, lease=1, batch=40) as start:
        running = [start() for _ in range(WORKERS)]
        while rows() and kills < KILLS:
            place = chance.randrange(WORKERS)
            process = running[place]
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            time.sleep(chance.uniform(0.02, 0.4))
            process.kill()
            process.wait(LIMIT)
            kills += 1
            stranded += Note.objects.count() % 2
            running[place] = start()
        wait_until(lambda: not rows(), seconds=60 + MESSAGES / 50)
    seconds = time.monotonic() - began

    say(
        f"{MESSAGES:,} messages, {WORKERS} workers, {kills} kills, seed {SEED}, "
        f"{seconds:.0f} s"
    )
    found = Counter(Note.objects.values_list("text", "number"))
    wanted = {(text, n) for text in ("begun", "ended") for n in range(MESSAGES)}
    assert set(found) == wanted
    assert set(found.values()) == {1}
    assert letters() == []
    assert stranded == 0  # nobody has ever seen half of an effect
    assert kills
