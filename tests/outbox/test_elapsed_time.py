"""Elapsed time is counted in UTC: an hour that the clock on the wall repeats counts."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import time_machine
from django.db import connection, transaction

from django_cqrs import Retry
from django_cqrs.outbox.health import find_problems
from django_cqrs.outbox.inbox import inbox
from django_cqrs.outbox.statistics import statistics_of
from django_cqrs.outbox.store import Store
from tests.outbox.support import (
    forget_zone,
    letters,
    note,
    numbers,
    on_databases,
    registry_of,
    rows,
    send,
    work,
)
from tests.outbox.work import Work

pytestmark = on_databases

# In Berlin the clocks go from 3 to 2 in the first, and from 2 to 3 in the second.
CHANGES = [
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 3, 29, 1, tzinfo=UTC),
]
ZONE = "Europe/Berlin"


@pytest.fixture(params=["USE_TZ=False", "TIME_ZONE of the database", "UTC"])
def zone(request, settings):
    """Each way in which a project may have Django store the time of the wall."""
    if request.param == "USE_TZ=False":
        settings.USE_TZ = False
        settings.TIME_ZONE = ZONE
    elif request.param == "TIME_ZONE of the database":
        connection.settings_dict["TIME_ZONE"] = ZONE
    forget_zone()
    yield request.param
    connection.settings_dict["TIME_ZONE"] = None
    forget_zone()


@pytest.fixture(params=CHANGES, ids=["an hour twice", "an hour less"])
def change(request):
    return request.param


def at(moment, seconds=0.0):
    return time_machine.travel(moment + timedelta(seconds=seconds), tick=False)


def test_a_delay_ends_when_it_is_over_and_not_before(zone, change):
    """Whatever the clock on the wall does meanwhile."""
    registry = registry_of(note)
    with at(change, -1800):
        send(registry, 1, delay=3600)
    for seconds in (-1700, -1, 1, 1700, 1799):
        with at(change, seconds):
            work(registry)
            assert numbers() == []
    with at(change, 1800):
        work(registry)
    assert numbers() == [1]


def test_a_message_waits_until_a_point_in_time(zone, change):
    """Also one within the hour that the clock on the wall repeats."""
    registry = registry_of(note)
    with at(change, -1800):
        send(registry, 1, delay=(change + timedelta(seconds=1800)))
    for seconds in (-1, 1799):
        with at(change, seconds):
            work(registry)
            assert numbers() == []
    with at(change, 1800):
        work(registry)
    assert numbers() == [1]


def test_a_lease_lasts_as_long_as_it_says(zone, change):
    """A worker that lives keeps its messages; those of a dead one are taken over."""
    if connection.vendor != "sqlite":
        pytest.skip("Servers have a clock of their own.")
    registry = registry_of(note)
    store = Store("default")
    with at(change, -10):
        send(registry, 1)
        store.claim("outbox", limit=1, owner="me", lease=timedelta(seconds=30))
    for seconds in (-5, 0, 5, 19):
        with at(change, seconds):
            assert store.abandon_expired(["outbox"]) == 0
    with at(change, 15):
        assert store.renew("me", [rows()[0].pk], timedelta(seconds=30)) == 1
    with at(change, 44):
        assert store.abandon_expired(["outbox"]) == 0
    with at(change, 46):
        assert store.abandon_expired(["outbox"]) == 1


def test_a_retry_waits_as_long_as_its_policy_says(zone, change):
    calls = []

    def fail(command: Work):
        calls.append(command.number)
        raise ValueError

    registry = registry_of(
        fail, retry=Retry(attempts=2, delay=60, factor=1, jitter=False)
    )
    with at(change, -30):
        send(registry, 1)
        work(registry)
    for seconds in (-1, 0, 29):
        with at(change, seconds):
            work(registry)
            assert len(calls) == 1
    with at(change, 30):
        work(registry)
    assert len(calls) == 2
    assert len(letters()) == 1


def test_a_message_expires_when_its_time_is_over_and_not_before(zone, change):
    registry = registry_of(note)
    with at(change, -1800):
        send(registry, 1, 2, expires=3600)
    with at(change, 1700):
        work(registry, bounds={"messages": 1})
    assert numbers() == [1]
    with at(change, 1801):
        tally = work(registry)
    assert tally.expired == 1
    assert numbers() == [1]


def test_a_key_is_remembered_for_its_window(zone, change):
    """Pruning and the window of what is handled once count alike."""
    with at(change, -1800), transaction.atomic():
        inbox.enter("default", "me", "key", uuid4())
    with at(change, 1700):
        before = datetime.now(UTC) - timedelta(hours=1)
        assert inbox.purge("default", before=before) == 0
    with at(change, 1801):
        before = datetime.now(UTC) - timedelta(hours=1)
        assert inbox.purge("default", before=before) == 1


def test_a_message_has_waited_as_long_as_it_has(zone, change):
    """The age of the oldest message is counted in UTC, for figures and for health."""
    registry = registry_of(note)
    with at(change, -1800):
        send(registry, 1)
    with at(change, 1800):
        (figures,) = statistics_of(channels=["outbox"])
        assert figures.oldest_seconds == pytest.approx(3600)
        late = [each.text for each in find_problems() if each.kind == "late"]
        assert late == [
            (
                "1 message has waited in the channel 'outbox' for more than 0:05:00, "
                "the oldest for 1:00:00."
            )
        ]
