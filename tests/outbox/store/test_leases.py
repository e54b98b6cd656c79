"""Leases are counted by one clock: that of the database that holds the messages."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.db import connection

from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store import Store
from tests.outbox.support import (
    forget_zone,
    note,
    numbers,
    on_a_server,
    on_databases,
    registry_of,
    rows,
    send,
    work,
)

pytestmark = on_databases

LEASE = timedelta(seconds=30)
OVER = -LEASE
"""A lease that has run out when it begins."""

HOUR = timedelta(hours=1)
BOTH = pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead", "behind"])


@pytest.fixture(params=["plain", "USE_TZ=False", "TIME_ZONE of the database"])
def zone(request, settings):
    """Each way in which a project may have Django store the time of the wall."""
    if request.param == "USE_TZ=False":
        settings.USE_TZ = False
        settings.TIME_ZONE = "Asia/Tokyo"
    elif request.param == "TIME_ZONE of the database":
        connection.settings_dict["TIME_ZONE"] = "Asia/Tokyo"
    forget_zone()
    yield request.param
    connection.settings_dict["TIME_ZONE"] = None
    forget_zone()


def shifted(span):
    """Have this machine's clock differ from the database's."""
    return time_machine.travel(datetime.now(UTC) + span)


def sent(count=1):
    registry = registry_of(note)
    send(registry, *range(count))
    return registry


def claim(lease, *, store=None):
    return (store or Store("default")).claim(
        "outbox", limit=100, owner="me", lease=lease
    )


def end_of_lease():
    return OutboxMessage.objects.get().lease_expires_at


@BOTH
def test_a_worker_whose_clock_differs_takes_nothing_from_a_living_one(ahead):
    """However far its clock is ahead: a lease ends by the clock it was written by."""
    on_a_server()
    registry = sent()
    claim(LEASE)

    with shifted(ahead):
        tally = work(registry)

    assert (tally.handled, numbers()) == (0, [])
    assert [(row.state, row.owner) for row in rows()] == [(State.CLAIMED, "me")]


@BOTH
def test_a_worker_whose_clock_differs_keeps_what_it_has(ahead):
    on_a_server()
    sent()
    with shifted(ahead):
        (claimed,) = claim(LEASE)
    assert Store("default").abandon_expired(["outbox"]) == 0

    with shifted(ahead):
        assert Store("default").renew("me", [claimed.pk], LEASE) == 1
    assert Store("default").abandon_expired(["outbox"]) == 0


@BOTH
def test_what_a_dead_worker_had_is_taken_over_whatever_its_clock_said(ahead):
    on_a_server()
    registry = sent()
    with shifted(ahead):
        claim(OVER)

    assert work(registry).handled == 1


@BOTH
def test_what_an_engine_has_is_forwarded_again_by_the_same_clock(ahead):
    on_a_server()
    sent(2)
    store = Store("default")
    store.forward("outbox", limit=1, owner="engine", lease=LEASE)
    with shifted(ahead):
        assert store.take_back_expired("outbox") == 0
        store.forward("outbox", limit=1, owner="late", lease=OVER)
        assert store.take_back_expired("outbox") == 1

    OutboxMessage.objects.update(state=State.ABANDONED, lease_expires_at=None)
    options = {"limit": 100, "owner": "relay"}
    assert len(store.forward_abandoned("outbox", **options, lease=LEASE)) == 2
    with shifted(ahead):
        assert store.forward_abandoned("outbox", **options, lease=LEASE) == []


@pytest.mark.parametrize("keys", [False, True], ids=["plain", "with keys"])
def test_a_lease_begins_now_and_lasts_as_long_as_it_says(zone, keys):
    """Whatever zones the settings name, by each statement that writes one."""
    policies = {"ordering_key": lambda command: "key"} if keys else {}
    registry = registry_of(note, **policies)
    send(registry, 1)
    store = Store("default")
    steps = {
        "a claim": lambda lease: claim(lease, store=store),
        "a renewal": lambda lease: store.renew("me", [rows()[0].pk], lease),
    }
    for step in steps.values():
        step(LEASE)
        assert store.abandon_expired(["outbox"]) == 0
        step(OVER)
        assert OutboxMessage.objects.filter(state=State.CLAIMED).count() == 1
    assert store.abandon_expired(["outbox"]) == 1

    alone = {"owner": "me", "lease": LEASE}
    assert len(store.claim_abandoned("outbox", **alone)) == 1
    assert store.abandon_expired(["outbox"]) == 0


@pytest.mark.parametrize("seconds", [0.25, 30.5, 100_000])
def test_a_lease_may_be_of_any_length(seconds):
    """Two that begin after each other end so far apart as they are long, at least."""
    sent()
    store = Store("default")
    (claimed,) = claim(timedelta(0), store=store)
    before = end_of_lease()
    store.renew("me", [claimed.pk], timedelta(seconds=seconds))
    first = end_of_lease()
    store.renew("me", [claimed.pk], timedelta(seconds=2 * seconds))
    second = end_of_lease()

    assert first - before >= timedelta(seconds=seconds)
    assert second - first >= timedelta(seconds=seconds)
