"""Keys keep their order on an engine: the relay sends no message before its turn."""

import random

from django.db import transaction

from django_cqrs import Retry
from django_cqrs.engines.base import handle
from django_cqrs.outbox.models import DeadLetter
from django_cqrs.outbox.store import replay
from tests.engines.support import consume, forward
from tests.outbox.support import (
    letters,
    make_due,
    note,
    on_databases,
    registry_of,
    rows,
    send,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases

NOW = Retry(attempts=2, delay=60, jitter=False)


def handled():
    """What the handlers have written, by key."""
    found = {}
    for key, number in Note.objects.order_by("pk").values_list("text", "number"):
        found.setdefault(key, []).append(number)
    return found


def test_keys_keep_their_order(engine):
    """Whichever task comes first: what comes too early is forwarded once more. [C08.4]"""
    registry = registry_of(note, ordering_key="how")
    chance = random.Random(7)
    with transaction.atomic():
        for number in range(60):
            send(registry, number, how=f"key {number % 3}")
            send(registry, number, how=f"lonely {number}")

    rounds = 0
    while rows():
        assert forward(registry) or rounds
        tasks = engine.taken()
        chance.shuffle(tasks)
        for keys, using in tasks:
            handle(keys, using, registry)
        rounds += 1
        assert rounds < 50

    found = handled()
    assert {key: found[key] for key in ("key 0", "key 1", "key 2")} == {
        f"key {start}": list(range(start, 60, 3)) for start in range(3)
    }
    assert sum(len(each) for each in found.values()) == 120


def test_a_dead_one_holds_its_key_alone(engine):
    """The rest of its key waits, every other goes on, and a replay resumes in order. [C08.4]"""

    def fail_at_2(command: Work):
        note(command)
        if command.number == 2 and is_broken:
            raise ValueError

    is_broken = [True]
    registry = registry_of(fail_at_2, ordering_key="how", retry=NOW)
    with transaction.atomic():
        for number in range(5):
            send(registry, number, how="a")
            send(registry, number + 10, how="b")

    for _ in range(2):
        while forward(registry):
            consume(engine, registry)
        assert handled() == {"a": [0, 1], "b": [10, 11, 12, 13, 14]}
        make_due()
    while forward(registry):
        consume(engine, registry)
    assert [letter.attempts for letter in letters()] == [2]
    assert len(rows()) == 2
    assert handled()["a"] == [0, 1]

    is_broken.clear()
    replay(DeadLetter.objects.all(), using="default")
    while forward(registry):
        consume(engine, registry)
    assert handled()["a"] == [0, 1, 2, 3, 4]
    assert rows() == []
