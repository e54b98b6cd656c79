"""Claims that go on where the one before has ended, and what they must not miss."""

import json
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store import Store
from django_cqrs.outbox.store.fronts import Fronts, Position
from tests.limits import LIMIT
from tests.outbox.support import (
    analyze,
    on_databases,
    on_postgresql,
    second_connection,
    store_many,
)

pytestmark = on_databases

LEASE = timedelta(seconds=30)


@pytest.fixture(autouse=True)
def slow_looks(monkeypatch):
    """No claim looks from the beginning just because a test takes its time."""
    monkeypatch.setattr(Fronts, "look_time", 10 * LIMIT)


def claimed(store, limit=5, owner="me"):
    """Claim; return the sequences in order."""
    found = store.claim("outbox", limit=limit, owner=owner, lease=LEASE)
    return [each.envelope.sequence for each in found]


def arrive(*sequences, **columns):
    """Store messages with these sequences, as a transaction that commits late does."""
    for sequence in sequences:
        store_many(1, **{"sequence": sequence, **columns})


def test_a_claim_goes_on_behind_the_last_one():
    """It reads nothing of what the claims before it have taken, on PostgreSQL."""
    on_postgresql()
    store = Store("default")
    store_many(15)
    assert claimed(store) == [0, 1, 2, 3, 4]

    with CaptureQueriesContext(connection) as queries:
        assert claimed(store) == [5, 6, 7, 8, 9]

    (claim,) = queries
    assert "sequence >= 4" in claim["sql"]


def test_messages_that_were_committed_late_are_found_after_a_while(monkeypatch):
    """A claim from the beginning finds them, though there is more behind the place."""
    store = Store("default")
    store_many(30)
    claimed(store)
    arrive(-2, -1)
    first = claimed(store, owner="early")
    if connection.vendor == "postgresql":
        assert first == [5, 6, 7, 8, 9]
    else:  # every claim looks from the beginning
        assert first == [-2, -1, 5, 6, 7]
        return

    monkeypatch.setattr(Fronts, "look_time", 0.0)

    assert claimed(store, owner="late") == [-2, -1, 10, 11, 12]


def test_the_time_counts_from_the_last_look_and_not_from_the_last_claim(monkeypatch):
    """A worker that claims all the time looks from the beginning now and then."""
    clock = [100.0]
    monkeypatch.setattr(
        "django_cqrs.outbox.store.fronts.time.monotonic", lambda: clock[0]
    )
    monkeypatch.setattr(Fronts, "look_time", 1.0)
    fronts = Fronts()
    fronts.note("outbox", Position(0, 1), is_from_beginning=True)

    for number in (2, 3, 4):
        clock[0] += 0.3
        assert fronts.place("outbox") == Position(0, number - 1)
        fronts.note("outbox", Position(0, number), is_from_beginning=False)
    clock[0] += 0.3

    assert fronts.place("outbox") is None
    assert fronts.place("other") is None


def test_messages_that_were_committed_late_are_found_when_the_rest_is_done():
    """A worker never rests while a message is ready, wherever it stands."""
    store = Store("default")
    store_many(10)
    claimed(store)
    claimed(store)
    arrive(-1)

    assert claimed(store) == [-1]
    assert claimed(store) == []


def test_fewer_messages_than_wanted_end_at_the_beginning():
    """Then the next claim looks from there, and finds what came late."""
    store = Store("default")
    store_many(8)
    claimed(store)
    assert claimed(store) == [5, 6, 7]
    arrive(-1, 100, 101, 102, 103, 104, 105)

    assert claimed(store) == [-1, 100, 101, 102, 103]


@pytest.mark.parametrize("sequence", [-1, 500])
def test_a_higher_priority_comes_first_at_once(sequence):
    """It does not wait for the next look, wherever its message stands."""
    store = Store("default")
    store_many(20)
    claimed(store)
    arrive(sequence, priority=3)

    assert claimed(store)[0] == sequence
    assert claimed(store, limit=3) == [9, 10, 11]


def test_lower_priorities_come_when_those_above_are_done():
    """A place is one of its priority: claims end there, and look for the others."""
    store = Store("default")
    store_many(5, priority=2)
    arrive(100, 101, 102, 103, 104, 105, priority=-1)
    assert claimed(store) == [0, 1, 2, 3, 4]

    assert claimed(store) == [100, 101, 102, 103, 104]
    assert claimed(store) == [105]


def test_messages_that_fell_due_are_found_at_once():
    """The worker that makes them ready claims them next."""
    store = Store("default")
    store_many(20)
    claimed(store)
    arrive(-1, state=State.DELAYED, available_at=timezone.now() - timedelta(seconds=1))
    assert -1 not in claimed(store)

    assert store.release_due(["outbox"]) == 1

    assert claimed(store)[0] == -1


def test_messages_that_were_given_back_are_first_again():
    """A worker that had no time for them does not overtake them itself."""
    store = Store("default")
    store_many(20)
    claimed(store, owner="first")
    claimed(store, owner="second")
    keys = OutboxMessage.objects.filter(owner="first").values_list("pk", flat=True)

    store.give_back("first", list(keys)[:2], State.READY)

    assert claimed(store)[:2] == [0, 1]


def test_a_message_with_a_key_is_found_behind_the_place():
    """A channel may have keys from any message on; then it is claimed in order."""
    store = Store("default")
    store_many(5)
    claimed(store)
    arrive(100, ordering_key="a")
    arrive(101)

    assert sorted(claimed(store)) == [100, 101]


def test_an_earlier_message_of_a_key_is_not_overtaken():
    """A claim in order goes on too, and sees what its keys have before the place."""
    store = Store("default")
    for number in range(20):
        arrive(number, ordering_key=f"key-{number}")
    claimed(store)
    arrive(-1, ordering_key="key-7")

    with CaptureQueriesContext(connection) as queries:
        found = claimed(store, limit=20)

    assert found.index(-1) < found.index(7)
    if connection.vendor == "postgresql":
        assert "sequence >= 4" in queries[0]["sql"]


def test_messages_with_keys_are_found_when_the_rest_is_done():
    """A claim in order that finds nothing behind its place looks from the beginning."""
    store = Store("default")
    for number in range(5):
        arrive(number, ordering_key=f"key-{number}")
    claimed(store)
    arrive(-1, ordering_key="late")

    assert claimed(store) == [-1]


def test_an_old_snapshot_does_not_slow_down_claims():
    """A claim reads at most 1.2 x the blocks of the first, whatever was deleted."""
    on_postgresql()
    store_many(3200)
    analyze()
    store = Store("default")

    with second_connection() as old, old.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT COUNT(*) FROM django_cqrs_outbox_outboxmessage")
        handle_hundred(store)
        early = blocks_read_by(handle_hundred(store))
        for _ in range(26):
            claim = handle_hundred(store)
        late = blocks_read_by(claim)
        store = Store("default")  # it knows no place, so it begins at the beginning
        from_beginning = blocks_read_by(handle_hundred(store))
        cursor.execute("ROLLBACK")

    assert late <= 1.2 * early
    assert from_beginning > 1.2 * early


def handle_hundred(store):
    """Claim a hundred messages and settle them; return the text of the claim."""
    with CaptureQueriesContext(connection) as queries:
        keys = [
            each.pk
            for each in store.claim("outbox", limit=100, owner="me", lease=LEASE)
        ]
    with transaction.atomic():
        store.settle("me", keys)
    return queries[-1]["sql"].partition("; ")[2]


def blocks_read_by(claim):
    """Return the blocks that a claim reads to find its messages, and undo it."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {claim}")
        (found,) = cursor.fetchone()
        transaction.set_rollback(True)
    plans = json.loads(found) if isinstance(found, str) else found
    nodes = [plans[0]["Plan"]]
    for node in nodes:
        if node.get("Subplan Name") == "CTE seen":
            return node["Shared Hit Blocks"] + node["Shared Read Blocks"]
        nodes += node.get("Plans", [])
    raise AssertionError(plans)
