"""A worker over many channels: what it asks, and whose turn it is."""

import json
import logging
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_cqrs import Registry, command_handler
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store.dialects import NO_SCAN, NOTIFICATION, to_last_result
from django_cqrs.outbox.store.store import Store
from django_cqrs.outbox.worker.outages import Outage
from tests.outbox.support import (
    LONG_AGO,
    analyze,
    note,
    numbers,
    on_databases,
    on_postgresql,
    registry_of,
    rows_read,
    second_connection,
    send,
    store_many,
    worker_of,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases

CHANNELS = [f"c{number}" for number in range(100)]


@pytest.fixture
def registry():
    return registry_of(note)


def send_to(channel, *numbers, **changes):
    """Put messages of the registry into a channel that no setting names."""
    send(registry_of(note), *numbers)
    moved = OutboxMessage.objects.filter(channel="outbox")
    moved.update(channel=channel, **changes)


def looking_after(worker):
    """Return a worker whose time has come to look after messages."""
    worker._looked_after = float("-inf")
    return worker


def statements_of(worker, caplog):
    """Return what a round sends, the ends of transactions too."""
    caplog.clear()
    with (
        caplog.at_level(logging.DEBUG, "django.db.backends"),
        CaptureQueriesContext(connection),
    ):
        worker.run_once()
    return [each.sql for each in caplog.records if hasattr(each, "sql")]


# --------------------------------------------------------------------------- statements


@pytest.mark.parametrize("count", [1, 10, 100])
def test_an_idle_round_is_two_statements_for_any_number_of_channels(
    count, registry, caplog
):
    """One asks who has ready messages, the other what must be looked after."""
    worker = worker_of(registry, channels=CHANNELS[:count])
    worker.run_once()
    worker.run_once()  # PostgreSQL keeps a plan from here on

    said = statements_of(looking_after(worker), caplog)

    assert len(said) == 2
    assert not any("BEGIN" in each for each in said)


def test_a_channel_that_was_busy_is_asked_without_a_look(registry, caplog):
    """One look and one claim, then a claim alone, as with a single channel."""
    worker = worker_of(registry, channels=["outbox"])
    worker.run_once()
    send(registry, 1)
    worker.run_once()
    send(registry, 2)

    said = statements_of(worker, caplog)

    claims = [each for each in said if "SKIP LOCKED" in each or "UPDATE" in each]
    assert not any("p.c" in each for each in said)
    assert claims
    assert numbers() == [1, 2]


def test_a_notification_names_the_channel_to_claim_from(registry, caplog, settings):
    """The others are looked at together, and this one is not looked at first."""
    on_postgresql()
    own = {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}
    names = ["a", "outbox", "b", "c"]
    settings.DJANGO_CQRS = {"CHANNELS": dict.fromkeys(names, own)}
    worker = worker_of(registry, channels=names)
    worker.run_once()
    worker._wait(1)  # it begins to listen
    send(registry, 1)
    with second_connection() as other, other.cursor() as cursor:
        cursor.execute(f"NOTIFY {NOTIFICATION}, 'outbox'")

    assert worker._wait(100)

    looks = [each for each in statements_of(worker, caplog) if "p.c" in each]
    assert numbers() == [1]
    assert "{a,b,c}" in looks[0]


# --------------------------------------------------------------------------------- turns


def test_channels_take_turns_in_their_order(registry):
    """A batch of each, the first channel first, until all are empty."""
    send_to("c1", 1, 2, 3)
    send_to("c0", 10, 20, 30)
    send_to("c9", 100)

    worker_of(registry, channels=CHANNELS, batch=2).run()

    assert numbers() == [10, 20, 1, 2, 100, 30, 3]


def test_what_comes_while_others_are_handled_has_its_turn_in_the_same_round():
    """The channels were looked at before, and are looked at again."""
    registry = Registry()

    @registry.add
    @command_handler(name="note", channel="outbox")
    def do(command: Work):
        if command.number == 1:
            for number in (7, 0):
                payload = json.dumps({"number": number, "how": "write"}).encode()
                own = {"name": "outbox.work", "payload": payload}
                store_many(1, channel=f"c{number}", **own)
        Note.objects.create(text="done", number=command.number)

    send_to("c5", 1)
    worker = worker_of(registry, channels=CHANNELS)

    assert worker.run_once() == 2
    assert numbers() == [1, 7]
    assert worker.run_once() == 1
    assert numbers() == [1, 7, 0]


def test_what_is_due_in_any_channel_is_found(registry):
    """A delayed message, one whose worker died, and one that was left by it."""
    send_to("c99", 1, state=State.DELAYED, available_at=LONG_AGO)
    send_to("c50", 2, state=State.CLAIMED, owner="dead", lease_expires_at=LONG_AGO)
    send_to("c3", 3, state=State.ABANDONED)
    later = timezone.now() + timedelta(hours=1)
    send_to("c4", 4, state=State.DELAYED, available_at=later)
    send_to("c5", 5, state=State.CLAIMED, owner="alive", lease_expires_at=later)
    worker = worker_of(registry, channels=CHANNELS)

    while worker.run_once():
        looking_after(worker)

    assert sorted(numbers()) == [1, 2, 3]
    assert OutboxMessage.objects.count() == 2


def test_a_channel_in_an_outage_rests_alone(registry):
    """The others are handled, and it is too when it is tried again."""
    send_to("c1", 1)
    send_to("c2", 2)
    worker = worker_of(registry, channels=CHANNELS)
    now = worker.outages.clock()
    worker.outages.now["c1"] = Outage("c1", "note", now, None, next_try=now + 3600)

    worker.run_once()
    assert numbers() == [2]

    worker.outages.now["c1"].next_try = now
    worker.run_once()
    assert numbers() == [2, 1]


def test_a_bound_ends_the_round(registry):
    """No channel is claimed from beyond the number of messages to handle."""
    send_to("c1", 1)
    send_to("c2", 2)
    worker = worker_of(registry, channels=CHANNELS, bounds={"messages": 1})

    worker.run()

    assert numbers() == [1]


class Relays(list):
    """A relay that notes when it was asked to forward."""

    def forward(self, owner, *, limit):
        self.append(owner)
        return 0

    def look_after(self):
        return 0

    def close(self):
        pass


@pytest.mark.parametrize("state", [State.READY, State.ABANDONED])
def test_a_relay_is_asked_where_its_channel_has_messages(registry, state):
    """Those of a dead worker are forwarded as well, each alone."""
    relays = {"c1": Relays(), "c2": Relays()}
    worker = worker_of(registry, channels=CHANNELS, relays=relays)
    worker.run_once()
    assert not any(relays.values())

    send_to("c2", 1, state=state)
    worker.run_once()

    assert (len(relays["c1"]), len(relays["c2"])) == (0, 1)
    assert numbers() == []


# --------------------------------------------------------------------------------- plans


def looks(store):
    store.channels_with(CHANNELS, State.READY)
    store.channels_with(CHANNELS, State.READY, State.ABANDONED)
    store.overdue(CHANNELS, alone=CHANNELS)


def test_a_look_reads_no_more_where_much_more_waits():
    """Neither ready messages of a channel nor those for later are walked over."""
    later = timezone.now() + timedelta(days=1)

    def more(count):
        store_many(count, channel="elsewhere")
        store_many(count, channel="c1")
        store_many(count, channel="c2", state=State.DELAYED, available_at=later)
        store_many(count, channel="c2", state=State.PARKED, ordering_key="k")
        analyze()

    more(300)
    looks(Store("default"))
    before = rows_read(lambda: looks(Store("default")))
    more(3000)

    assert rows_read(lambda: looks(Store("default"))) < 1.2 * before


def test_a_look_is_planned_by_index_whatever_the_statistics_say():
    """They may be of a time when everything was ready."""
    on_postgresql()
    store_many(3000, channel="c1")
    analyze()
    OutboxMessage.objects.all().delete()
    said = []
    with connection.execute_wrapper(
        lambda execute, sql, *rest: (said.append((sql, rest[0])), execute(sql, *rest))[
            1
        ]
    ):
        looks(Store("default"))

    for sql, values in said:
        assert sql.startswith(NO_SCAN)
        with connection.cursor() as cursor:
            cursor.execute(sql.replace("SELECT", "EXPLAIN SELECT", 1), values)
            to_last_result(cursor)
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "Seq Scan" not in plan
        assert "Index" in plan
