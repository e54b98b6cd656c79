"""What every engine's channel does: rows are stored, forwarded by id, handled, gone."""

import logging
import time
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction

from django_cqrs import Retry
from django_cqrs.engines import base
from django_cqrs.engines.base import handle
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store import Store
from tests.engines.support import (
    channel,
    consume,
    expire_leases,
    forward,
    relay_of,
    states,
)
from tests.outbox.support import (
    letters,
    make_due,
    note,
    numbers,
    on_databases,
    registry_of,
    rows,
    send,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases

READY, DELAYED, CLAIMED = State.READY, State.DELAYED, State.CLAIMED
ABANDONED, FORWARDED = State.ABANDONED, State.FORWARDED


class Refused(Exception):
    """What a handler raises on purpose."""


def fail_at_2(command: Work):
    note(command)
    if command.number == 2:
        raise Refused("two")


# Stored, forwarded, handled -------------------------------------------------------------


def test_stored_forwarded_handled(engine):
    """A row with the data; a task with its id; the task handles and deletes it. [C08.1]"""
    registry = registry_of(note)
    with transaction.atomic():
        send(registry, 1, 2)
        transaction.set_rollback(True)
    with transaction.atomic():
        send(registry, 3, 4)
        assert states() == [READY, READY]

    assert engine.taken() == []
    assert forward(registry) == 2
    assert states() == [FORWARDED, FORWARDED]
    assert numbers() == []

    [one, other] = consume(engine, registry)
    assert (one.handled, other.handled) == (1, 1)
    assert numbers() == [3, 4]
    assert rows() == []


def test_a_task_carries_ids_only(engine):
    """Neither payload nor header leaves the database. [C08.1]"""
    registry = registry_of(note)
    send(registry, 1, how="a payload that is nobody else's", headers={"who": "header"})
    [row] = rows()

    forward(registry)
    [task] = engine.bytes()
    assert b"payload" not in task
    assert b"who" not in task

    expire_leases()
    forward(registry)
    assert engine.taken() == [[[row.pk], "default"]]


def test_forwarded_in_batches(engine):
    """Hundreds of messages are twenty tasks, in their turn. [C08.1]"""
    registry = registry_of(note)
    with transaction.atomic():
        send(registry, *range(900))
    keys = [row.pk for row in rows()]

    assert forward(registry) == 900

    tasks = engine.taken()
    assert [len(ids) for ids, _ in tasks] == [45] * 20
    assert [key for ids, _ in tasks for key in ids] == keys
    for ids, using in tasks[:2]:
        assert handle(ids, using, registry).handled == 45
    assert numbers() == list(range(90))
    assert states() == [FORWARDED] * 810


def test_few_messages_are_spread(engine):
    """Slow handlers of a few messages run beside one another: each has a task. [C08.1]"""
    registry = registry_of(note)
    send(registry, *range(8))

    forward(registry)

    assert [len(ids) for ids, _ in engine.taken()] == [1] * 8


def test_deleted_in_the_handlers_transaction(engine):
    """Where the transaction is rolled back, the row is still there. [C08.1]"""

    def nosy(command: Work):
        note(command)
        transaction.on_commit(lambda: seen.append((numbers(), rows())))

    seen = []
    registry = registry_of(nosy)
    send(registry, 1)
    forward(registry)
    statements = []

    def fail_the_delete(execute, sql, params, many, context):
        statements.append(sql)
        if sql.startswith("DELETE FROM") and "outboxmessage" in sql:
            raise OperationalError("the disk is full")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail_the_delete):
        [[keys, _]] = engine.taken()
        assert handle(keys, registry=registry).failed == 1
    assert any("INSERT INTO" in sql and "note" in sql for sql in statements)
    assert numbers() == []
    assert states() == [DELAYED]
    assert seen == []

    make_due()
    forward(registry)
    consume(engine, registry)
    assert seen == [([1], [])]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_consumer_whose_database_is_away(engine, after):
    """Its task fails, and what it had is forwarded again. [C08.1]"""
    registry = registry_of(note)
    send(registry, 1)
    forward(registry)
    [[keys, _]] = engine.taken()
    statements = []

    def fail(execute, sql, params, many, context):
        statements.append(sql)
        if len(statements) > after:
            raise OperationalError("the server is gone")
        return execute(sql, params, many, context)

    with (
        connection.execute_wrapper(fail),
        pytest.raises(OperationalError, match="the server is gone"),
    ):
        handle(keys, registry=registry)
    assert len(statements) > after
    assert numbers() == []

    expire_leases()
    assert forward(registry) == 1
    consume(engine, registry)
    assert numbers() == [1]
    assert rows() == []


def test_a_task_that_comes_twice(engine):
    """The rows are gone, or somebody else's: it does nothing. [C08.1]"""
    registry = registry_of(note)
    send(registry, 1, 2)
    forward(registry)
    first, second = engine.taken()
    lease = timedelta(seconds=30)
    Store("default").claim_forwarded(second[0], owner="another", lease=lease)

    assert handle(*first, registry=registry).handled == 1
    assert handle(*first, registry=registry).taken == 0
    assert handle(*second, registry=registry).taken == 0
    assert numbers() == [1]
    assert states() == [CLAIMED]


def test_an_expired_lease_is_forwarded_again(engine):
    """A task that nobody began with in time is sent once more; the late one is none. [C08.1]"""
    registry = registry_of(note)
    send(registry, 1)
    forward(registry)
    [late] = engine.taken()

    assert forward(registry) == 0
    expire_leases()
    assert forward(registry) == 1

    [again] = engine.taken()
    assert again == late
    assert handle(*again, registry=registry).handled == 1
    assert handle(*late, registry=registry).taken == 0
    assert numbers() == [1]


def test_the_lease_is_an_option(engine, with_options):
    """It is what the channel says, in seconds. [C08.1]"""
    with_options(lease=7)
    registry = registry_of(note)
    send(registry, 1)

    before = OutboxMessage.objects.get().sent_at
    forward(registry)

    seconds = (OutboxMessage.objects.get().lease_expires_at - before).total_seconds()
    assert 7 <= seconds < 12


def test_a_dead_consumer(engine):
    """What it held is forwarded message by message, and each time counted. [C08.1]"""
    registry = registry_of(note, retry=Retry(attempts=2, delay=0))
    send(registry, 1, 2)
    forward(registry)
    keys = [key for ids, _ in engine.taken() for key in ids]

    for attempts in (0, 1, 2):
        lease = timedelta(seconds=30)
        claim = Store("default").claim_forwarded
        if attempts:
            claim = Store("default").claim_forwarded_abandoned
        for key in keys:
            [claimed] = claim([key], owner="one that dies", lease=lease)
            assert claimed.attempts == attempts
        expire_leases()
        assert forward(registry) == 2
        assert states() == [ABANDONED] * 2
        assert sorted(engine.taken()) == [[[key], "default"] for key in keys]
        if attempts == 0:
            assert forward(registry) == 0  # once a lease

    for key in keys:
        handle([key], registry=registry)
    assert numbers() == []
    assert [letter.reason for letter in letters()] == ["poison"] * 2


# Away, flushed --------------------------------------------------------------------------


def test_a_flushed_engine_loses_nothing(engine):
    """Everything that it had is forwarded again when the lease is over. [C08.3]"""
    registry = registry_of(note)
    send(registry, *range(5))
    assert forward(registry) == 5
    engine.flush()
    assert engine.taken() == []

    expire_leases()
    assert forward(registry) == 5
    consume(engine, registry)

    assert numbers() == list(range(5))
    assert rows() == []


def test_an_engine_that_refuses(engine, caplog, monkeypatch):
    """Nothing is lost, the relay says so and asks again, others go on meanwhile. [C08.2]"""
    registry = registry_of(note)
    send(registry, 1, 2)
    relay = relay_of(registry)
    pausing = relay.relays["outbox"]
    refused = []

    def refuse(batches, using):
        refused.append(list(batches))
        raise ConnectionRefusedError("nobody listens")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(channel(), "send", refuse)
        began = time.monotonic()
        assert relay.run_once() == 0
        assert pausing._pause_ends >= began + 0.1
        pausing._pause_ends = began + 600  # a busy machine is slower than the pause
        assert relay.run_once() == 0  # not asked again at once
    assert len(refused) == 1
    assert states() == [READY, READY]
    [record] = caplog.records
    assert record.getMessage() == (
        f"{channel()!r}: 2 messages could not be forwarded; nothing is lost; retrying "
        "in 0.1 s"
    )
    assert record.name == "django_cqrs.worker"

    pausing._pause_ends = began
    assert relay.run_once() == 2
    consume(engine, registry)
    assert numbers() == [1, 2]


# Only what is due -----------------------------------------------------------------------


def test_only_due_rows_are_forwarded(engine):
    """What is delayed stays in the outbox until its time has come. [C08.4]"""
    registry = registry_of(note)
    send(registry, 1, delay=3600)
    send(registry, 2)

    assert forward(registry) == 1
    consume(engine, registry)
    assert numbers() == [2]
    assert states() == [DELAYED]
    assert forward(registry) == 0

    make_due()
    assert forward(registry) == 1
    consume(engine, registry)
    assert numbers() == [2, 1]


def test_what_expires_is_dropped(engine):
    """Also what expires while it is with the engine. [C08.4]"""
    registry = registry_of(note)
    send(registry, 1, expires=3600)
    forward(registry)
    OutboxMessage.objects.update(expires_at="2000-01-01T00:00:00Z")

    [tally] = consume(engine, registry)

    assert (tally.handled, tally.expired) == (0, 1)
    assert numbers() == []
    assert rows() == []


def test_priority(engine):
    """Higher is forwarded first, and handled first in a task; equal ones as sent. [C08.4]"""
    registry = registry_of(note)
    with transaction.atomic():
        send(registry, *range(30))
        send(registry, 100, priority=5)

    assert forward(registry, messages=21) == 21
    tasks = engine.taken()
    assert [len(ids) for ids, _ in tasks] == [2] * 10 + [1]
    for ids, using in tasks:
        handle(list(reversed(ids)), using, registry)

    assert numbers() == [100, *range(20)]
    assert states() == [READY] * 10


def test_a_failure_is_delayed_forwarded_again_and_dead(engine):
    """Retries and dead letters are those of the outbox. [C08.4]"""
    retry = Retry(attempts=2, delay=60, jitter=False)
    registry = registry_of(fail_at_2, retry=retry)
    with transaction.atomic():
        send(registry, *range(60))

    forward(registry)
    consume(engine, registry)
    assert numbers() == [0, 1, *range(3, 60)]
    [row] = rows()
    assert (row.state, row.attempts, row.owner) == (DELAYED, 1, None)
    assert forward(registry) == 0

    make_due()
    assert forward(registry) == 1
    [tally] = consume(engine, registry)
    assert (tally.failed, tally.dead) == (1, 1)
    [letter] = letters()
    assert (letter.reason, letter.error, letter.attempts) == ("failed", "two", 2)
    assert rows() == []


def test_a_policy_that_stops_a_worker(engine):
    """An engine's worker is not ours to stop: the message is tried again, and again."""
    retry = Retry(attempts=1, delay=5, jitter=False, final_failure="stop")
    registry = registry_of(fail_at_2, retry=retry)
    send(registry, 2)

    for attempts in (1, 2, 3):
        assert forward(registry) == 1
        consume(engine, registry)
        [row] = rows()
        assert (row.state, row.attempts) == (DELAYED, attempts)
        make_due()


# How much, how long ---------------------------------------------------------------------


def test_no_more_than_may_be_in_flight(engine, with_options):
    """What is with the engine is bounded, so that what comes later may overtake."""
    with_options(in_flight=5)
    registry = registry_of(note)
    send(registry, *range(8))

    assert forward(registry) == 5
    assert forward(registry) == 0
    handle(engine.taken()[0][0], registry=registry)
    send(registry, 100, priority=1)
    assert forward(registry) == 1
    consume(engine, registry)

    assert numbers() == [0, 100]


def test_a_long_task_gives_the_rest_back(engine, monkeypatch):
    """After some seconds others may have what it has not begun with."""

    def slow(command: Work):
        time.sleep(0.5)
        note(command)

    monkeypatch.setattr(base, "TASK_SECONDS", 1)  # a busy machine begins late
    monkeypatch.setattr(base.EngineRelay, "tasks", 1)
    registry = registry_of(slow)
    send(registry, *range(5))
    forward(registry)

    [tally] = consume(engine, registry)

    assert 1 <= tally.handled < 5
    assert numbers() == list(range(tally.handled))
    assert states() == [READY] * (5 - tally.handled)


def test_in_a_test_no_engine_is_needed(engine):
    """`channel.run()` handles what waits here and now, in the test's transaction."""
    registry = registry_of(note)
    with transaction.atomic():
        send(registry, 1, 2)
        assert channel().run(registry=registry) == 2
        assert Note.objects.count() == 2
    assert engine.taken() == []


@pytest.mark.parametrize("name", ["lease", "in_flight"])
@pytest.mark.parametrize("value", [0, -1, "x", True, None])
def test_an_option_that_is_no_number(engine, with_options, name, value):
    """It is refused with its name and its value."""
    from django_cqrs.exceptions import InvalidChannel

    with_options(**{name: value})

    with pytest.raises(InvalidChannel) as caught:
        channel()
    assert str(caught.value) == (
        f"Channel 'outbox' cannot be created: the option {name!r} is {value!r}, which "
        "is not a number above 0."
    )
    with_options(**{name: 1})


def test_an_engine_slower_than_its_lease_is_given_more_time_at_each_lease(engine):
    """
    What is forwarded in vain doubles the lease, once in its time, up to 64 times.

    Tasks for it are mostly still on their way: one after each lease would fill the
    engine's queue. When nothing is late, the lease shrinks again.
    """
    lease = channel().lease
    relay = channel().relay("default")
    relay.channel.lease = relay._lease = timedelta(hours=1)
    try:
        seen = []
        now = 0.0
        for late in (True, True, False, False):
            now += 10_000_000
            relay._adapt(now, late=late)
            relay._adapt(now + 1, late=late)  # within the same lease
            seen.append(relay._lease / timedelta(hours=1))
        assert seen == [2, 4, 2, 1]
        for _ in range(10):
            now += 10_000_000
            relay._adapt(now, late=True)
        assert relay._lease == timedelta(hours=64)
    finally:
        relay.channel.lease = lease


def test_what_is_forwarded_again_has_the_longer_lease(engine):
    """The row says so: no task is sent for it again before that."""
    registry = registry_of(note)
    send(registry, 1)
    relay = channel().relay("default")
    relay.forward("first", limit=None)
    first = rows()[0].lease_expires_at
    OutboxMessage.objects.update(lease_expires_at="2000-01-01T00:00:00Z")

    assert relay.look_after() == 1
    relay.forward("second", limit=None)

    assert rows()[0].lease_expires_at - first >= channel().lease
