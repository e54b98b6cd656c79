"""A worker that lives and is too slow for its leases: it gets on all the same."""

from collections import Counter
from datetime import timedelta

import pytest

from django_cqrs import Retry
from django_cqrs.outbox.models import State
from django_cqrs.outbox.store import Store
from tests.outbox.support import (
    letters,
    note,
    numbers,
    on_a_server,
    on_databases,
    registry_of,
    rows,
    second_connection,
    send,
    worker_of,
)
from tests.outbox.work import Work

pytestmark = on_databases

TABLE = "django_cqrs_outbox_outboxmessage"
LEASE = timedelta(seconds=30)
ABANDON = (
    f"UPDATE {TABLE} SET state = {State.ABANDONED.value}, owner = NULL, "
    f"lease_expires_at = NULL WHERE state = {State.CLAIMED.value}"
)
"""What another worker does to what is claimed when its lease has run out."""


def elsewhere(statement):
    """Commit a statement on a connection that shares nothing with the test's."""
    with second_connection() as other, other.cursor() as cursor:
        cursor.execute(statement)


def handled_by(function, **policies):
    return registry_of(function, **{"name": "do", **policies})


@pytest.fixture
def claims(monkeypatch):
    """How many messages each claim of ready ones had, and for how long."""
    found = []
    real = Store.claim

    def claim(self, *arguments, **options):
        claimed = real(self, *arguments, **options)
        if claimed:
            found.append((len(claimed), options["lease"] / LEASE))
        return claimed

    monkeypatch.setattr(Store, "claim", claim)
    return found


@pytest.mark.parametrize("key", [None, "key"], ids=["plain", "of one key"])
def test_a_worker_whose_batch_outlasts_its_lease_handles_less_at_once(
    claims, key, undivided_batches
):
    """
    A lease is lost with the fourth message of a claim, as on a machine that is too slow.

    What it has lost it claims again in smaller batches, for longer, until a batch is
    done within its lease. No message counts an attempt for that, nor is handled twice.
    """
    on_a_server()
    calls = Counter()

    def slow(command: Work):
        calls[len(claims)] += 1
        note(command)
        if calls[len(claims)] == 4:
            elsewhere(ABANDON)

    policies = {} if key is None else {"ordering_key": lambda command: "key"}
    registry = handled_by(slow, retry=Retry(attempts=2), **policies)
    send(registry, *range(12))
    worker = worker_of(registry, lease=LEASE)

    tally = worker.run()

    assert sorted(numbers()) == list(range(12))
    if key is not None:
        assert numbers() == list(range(12))
    assert (tally.handled, tally.failed, tally.dead) == (12, 0, 0)
    assert rows() == []
    assert letters() == []
    assert [count for count, _ in claims][:3] == [12, 6, 3]
    assert [lease for _, lease in claims][:3] == [1, 2, 4]


@pytest.mark.parametrize("is_atomic", [True, False], ids=["atomic", "not atomic"])
def test_lost_leases_of_a_living_worker_are_no_attempts(is_atomic, claims):
    """However often it loses one: a message is poison where workers die of it."""
    on_a_server()
    calls = []

    def slow(command: Work):
        calls.append(command.number)
        if len(calls) < 9:
            elsewhere(ABANDON)

    registry = handled_by(slow, retry=Retry(attempts=2), atomic=is_atomic)
    send(registry, 1)

    tally = worker_of(registry, lease=LEASE).run()

    assert (tally.handled, tally.failed, tally.dead) == (1, 0, 0)
    assert (len(calls), rows(), letters()) == (9, [], [])
    # Each lease is twice as long as the one before it, up to a bound.
    assert [lease for _, lease in claims] == [1, 2, 4, 8, 16, 32, 64, 64, 64]


def test_an_attempt_that_a_lost_lease_has_counted_is_taken_off(monkeypatch):
    """What was claimed alone, as of a dead worker, counts again as it did before."""
    on_a_server()

    def slow(command: Work):
        elsewhere(ABANDON)
        elsewhere(
            f"UPDATE {TABLE} SET state = {State.CLAIMED.value}, owner = 'another', "
            f"attempts = attempts + 1"
        )

    registry = handled_by(slow, retry=Retry(attempts=9))
    send(registry, 1)
    Store("default").claim("outbox", limit=1, owner="dead", lease=LEASE)
    elsewhere(ABANDON)

    worker_of(registry, lease=LEASE).run()

    assert [(row.owner, row.attempts) for row in rows()] == [("another", 1)]


def test_what_another_has_tried_since_is_left_to_others():
    """It may be what the other has died of: it stays to be tried alone."""
    registry = handled_by(note)
    send(registry, 1, 2)
    store = Store("default")
    claimed = store.claim("outbox", limit=2, owner="slow", lease=LEASE)
    elsewhere(ABANDON)
    (other,) = store.claim_abandoned("outbox", owner="dies", lease=LEASE)
    elsewhere(ABANDON)

    assert store.recover(claimed) == 1

    assert {row.pk: (row.state, row.attempts) for row in rows()} == {
        other.pk: (State.ABANDONED, 1),
        next(each.pk for each in claimed if each.pk != other.pk): (State.READY, 0),
    }


def test_a_claim_is_to_be_handled_well_within_its_lease():
    """In a third of it, however long a claim may take otherwise."""
    registry = handled_by(note)
    worker = worker_of(registry, lease=timedelta(seconds=0.3))

    worker._adapt(100, 0.2)

    assert worker._limit == 50
