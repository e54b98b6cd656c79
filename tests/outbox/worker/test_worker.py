"""The worker: what it handles, settles, tries again and gives up."""

import asyncio
import contextlib
import logging
import signal
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.db import (
    Error,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.utils import timezone, translation

from django_cqrs import CommandBus, InstantRetry, Registry, Retry, command_handler
from django_cqrs.outbox.models import (
    DeadLetter,
    OutboxMessage,
    Reason,
    State,
    StoredMessage,
)
from django_cqrs.outbox.store import LeaseLost, Store, replay
from django_cqrs.outbox.worker import StopWorker, Worker
from django_cqrs.outbox.worker.heartbeat import Heartbeat
from tests.limits import LIMIT
from tests.outbox.support import (
    SOAKS,
    end_session,
    letters,
    make_due,
    note,
    numbers,
    on_a_server,
    on_databases,
    own_session,
    processes,
    registry_of,
    rows,
    second_connection,
    send,
    subscribers,
    wait_until,
    work,
    worker_of,
)
from tests.outbox.work import OtherWork, Work
from tests.outbox.work import registry as real_registry
from tests.testapp.models import Note

pytestmark = on_databases

LEASE = timedelta(seconds=30)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
NOW = Retry(attempts=3, delay=0, jitter=False)


SHARED_FIELDS = [field.name for field in StoredMessage._meta.concrete_fields]


class Refused(Exception):
    """What a handler raises on purpose."""


def expire_leases():
    OutboxMessage.objects.filter(state=State.CLAIMED).update(lease_expires_at=LONG_AGO)


def claim(count=100, *, owner="a worker that died"):
    return Store("default").claim("outbox", limit=count, owner=owner, lease=LEASE)


def in_vain(steps):
    """Do steps in a transaction that is rolled back."""
    with transaction.atomic():
        steps()
        transaction.set_rollback(True)


def run_in_thread(function):
    """Run a function in a thread, whose connections are its own."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


# ------------------------------------------------------------------------------ delivery


def test_every_committed_message_is_handled_and_no_other():
    """In the order of sending; what was rolled back is never seen. [C02.1]"""
    registry = registry_of(note)
    send(registry, 1, 2)
    in_vain(lambda: send(registry, 3))
    send(registry, *range(4, 304))

    tally = work(registry)

    assert numbers() == [1, 2, *range(4, 304)]
    assert (tally.handled, tally.failed, tally.dead, tally.expired) == (302, 0, 0, 0)
    assert rows() == []
    assert letters() == []


def test_what_commits_late_is_not_passed_over():
    """A inserts, B inserts, B commits, the worker polls, A commits, it polls again. [C02.2]"""
    on_a_server()
    registry = registry_of(note)
    sent, go_on = threading.Event(), threading.Event()

    def slow():
        with transaction.atomic():
            send(registry, 1)
            sent.set()
            assert go_on.wait(LIMIT)

    thread, errors = run_in_thread(slow)
    assert sent.wait(LIMIT)
    send(registry, 2)

    work(registry)
    assert numbers() == [2]

    go_on.set()
    thread.join()
    assert errors == []
    work(registry)
    assert numbers() == [2, 1]


def test_workers_beside_one_another(say):
    """Three workers in threads: each of very many messages is handled once. [C02.3]"""
    on_a_server()
    size = 10_000 if SOAKS else 600
    registry = registry_of(note)
    with transaction.atomic():
        send(registry, *range(size))

    threads = [run_in_thread(lambda: work(registry, batch=7)) for _ in range(3)]
    for thread, _ in threads:
        thread.join()

    assert [error for _, errors in threads for error in errors] == []
    assert sorted(numbers()) == list(range(size))
    assert rows() == []
    say(f"{size:,} messages were handled by three workers")


def test_a_killed_workers_messages_are_taken_up_within_the_lease():
    """They are somebody else's once the lease has run out, and not before. [C02.4]"""
    registry = registry_of(note)
    send(registry, 1, 2, 3)
    claim(2)

    work(registry)
    assert numbers() == [3]

    expire_leases()
    work(registry)
    assert numbers() == [3, 1, 2]
    assert rows() == []


def test_a_long_handler_keeps_its_lease():
    """Its lease is renewed while it runs: nobody else takes it, and it settles. [C02.4]"""
    on_a_server()

    def sleep(command: Work):
        time.sleep(0.8)
        note(command)

    registry = registry_of(sleep)
    send(registry, 1)
    lease = timedelta(seconds=0.3)
    thread, errors = run_in_thread(lambda: work(registry, lease=lease))
    wait_until(lambda: OutboxMessage.objects.filter(state=State.CLAIMED).exists())
    for _ in range(10):
        work(registry, lease=lease)
        time.sleep(0.05)
    thread.join()

    assert errors == []
    assert numbers() == [1]


def test_a_long_batch_keeps_its_lease():
    """Between two transactions the worker renews what is still to come. [C02.4]"""
    renewed = []

    class Watched(Store):
        def renew(self, owner, keys, lease):
            count = super().renew(owner, keys, lease)
            renewed.append(count)
            return count

    def sleep(command: Work):
        time.sleep(0.1)
        note(command)

    registry = registry_of(sleep)
    send(registry, 1, 2, 3)
    worker = worker_of(registry, lease=timedelta(seconds=0.2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django_cqrs.outbox.worker.heartbeat.Store", Watched)
        assert worker.run().handled == 3

    assert renewed
    assert numbers() == [1, 2, 3]


def test_two_renewals_at_once_lose_no_lease():
    """The heartbeat and the worker may both find it time: rows of one are not lost. [C02.4]"""

    class Slow(Store):
        def renew(self, owner, keys, lease):
            with transaction.atomic(using=self.using):
                count = super().renew(owner, keys, lease)
                time.sleep(0.1)  # the rows stay locked for that long
            return count

    send(registry_of(note), 1, 2, 3)
    lease = timedelta(seconds=30)
    claimed = Store("default").claim("outbox", limit=3, owner="me", lease=lease)
    heartbeat = Heartbeat("default", lease)
    heartbeat.hold("me", [each.pk for each in claimed])
    heartbeat._renewed -= lease.total_seconds()  # long ago
    kept = []

    def look():
        kept.append(heartbeat.is_kept())
        connections.close_all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django_cqrs.outbox.worker.heartbeat.Store", Slow)
        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert kept == [True, True]


@pytest.mark.long
def test_sigterm_lets_it_finish_what_it_holds():
    """The message at hand is finished; those not begun are given back at once. [C02.4]"""
    send(real_registry, *range(5), how="slow")
    with processes(count=0) as start:
        process = start()
        wait_until(lambda: OutboxMessage.objects.filter(state=State.CLAIMED).exists())
        time.sleep(0.1)  # the first takes 0.3 s
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0

    done = numbers()
    assert 1 <= len(done) < 5
    assert done == list(range(len(done)))
    assert [(row.state, row.owner) for row in rows()] == [(0, None)] * (5 - len(done))


@pytest.mark.long
def test_a_worker_that_waits_stops_at_sigterm():
    """Also while it listens for a notification. [C02.4]"""
    with processes(count=0) as start:
        process = start()
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("rounds", [1, 12])
def test_a_worker_that_waits_stops_at_once(rounds, monkeypatch):
    """After the wait that it is in, which is short; a sleep ends even before."""
    worker = Worker(registry_of(note), ["outbox"], using="default")
    did = []
    wait, run_once = worker._wait, worker.run_once

    def waits(idle_rounds):
        did.append("wait")
        if did.count("wait") > rounds:
            worker.stop()
            did.append("stop")
        return wait(idle_rounds)

    def runs():
        did.append("look")
        return run_once()

    monkeypatch.setattr(worker, "_wait", waits)
    monkeypatch.setattr(worker, "run_once", runs)
    monkeypatch.setattr(Worker, "poll_time", 10 * LIMIT)
    monkeypatch.setattr(Worker, "quick_time", 0.001)
    monkeypatch.setattr(Worker, "quick_rounds", rounds + 1)

    worker.run()

    assert did[-2:] == ["wait", "stop"]
    assert max(Worker.listen_time, 0.05) <= 0.5
    worker._sleep(10 * LIMIT)  # it is stopping


# -------------------------------------------------------------------------------- settle


def test_the_message_and_what_its_handler_wrote_commit_together(monkeypatch):
    """A crash between the handler and the commit leaves neither. [C03.1]"""
    registry = registry_of(note)
    send(registry, 1)

    class Crash(BaseException):
        pass

    def settle(self, owner, keys):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Store, "settle", settle)
        with pytest.raises(Crash):
            work(registry)

    assert numbers() == []
    assert len(rows()) == 1
    work(registry)
    assert numbers() == [1]


def elsewhere(statement, *parameters):
    """Commit a statement on a connection that shares nothing with the test's."""
    with second_connection() as other, other.cursor() as cursor:
        cursor.execute(statement, parameters)


def test_a_late_finisher_cannot_settle_what_another_has(caplog):
    """Its own writes are rolled back: the effect is that of the other alone. [C03.2]"""
    on_a_server()
    runs = []

    def slow(command: Work):
        runs.append(command.number)
        note(command)
        elsewhere("UPDATE django_cqrs_outbox_outboxmessage SET owner = 'another'")

    registry = registry_of(slow)
    send(registry, 1)

    tally = work(registry)

    assert (runs, tally.handled) == ([1], 0)
    assert numbers() == []
    assert [row.owner for row in rows()] == ["another"]
    assert caplog.messages == [
        ("1 of 1 messages were taken over by another worker after their lease expired.")
    ]


def test_the_store_refuses_whoever_is_not_the_owner():
    """Settling, delaying, burying and giving back ask for the claim that holds it. [C03.2]"""
    registry = registry_of(note)
    send(registry, 1)
    store = Store("default")
    (mine,) = claim(owner="one")
    OutboxMessage.objects.update(owner="two")

    with pytest.raises(LeaseLost), transaction.atomic():
        store.settle("one", [mine.pk])
    with pytest.raises(LeaseLost), transaction.atomic():
        store.delay("one", mine, until=LONG_AGO, attempts=1)
    with pytest.raises(LeaseLost), transaction.atomic():
        store.bury("one", mine, reason=Reason.FAILED, attempts=1)
    assert store.give_back("one", [mine.pk], State.READY) == 0
    assert store.renew("one", [mine.pk], LEASE) == 0
    assert store.held("one", [mine.pk]) == set()
    (row,) = rows()
    assert (row.owner, row.state, row.token) == ("two", State.CLAIMED, 1)
    assert letters() == []


def test_one_message_lost_loses_no_other():
    """A message that somebody deletes while it is handled takes none along. [C03.2]"""
    on_a_server()

    def do(command: Work):
        note(command)
        if command.number == 2:
            elsewhere(
                "DELETE FROM django_cqrs_outbox_outboxmessage WHERE sequence = %s",
                second.sequence,
            )

    registry = registry_of(do)
    send(registry, 1, 2, 3)
    second = rows()[1]

    assert work(registry).handled == 2
    assert numbers() == [1, 3]
    assert rows() == []


@pytest.mark.long
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_message_that_kills_its_worker(how):
    """It becomes a dead letter after its attempts; its batch-mates are all handled. [C03.3]"""
    send(real_registry, 1, 2)
    send(real_registry, 3, how=how)
    send(real_registry, 4, 5)

    with processes(count=0) as start:
        # In the batch, then alone as often as the policy says, then no more.
        for _ in range(3):
            process = start()
            assert process.wait(LIMIT) == (3 if how == "exit" else -signal.SIGKILL)
        process = start()
        wait_until(lambda: letters() and not rows())
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT)

    (letter,) = letters()
    assert (letter.reason, letter.attempts) == (Reason.POISON, 2)
    assert bytes(letter.payload) == f'{{"number":3,"how":"{how}"}}'.encode()
    assert letter.error == "Every worker that tried to handle this message crashed."
    assert sorted(numbers()) == [1, 2, 4, 5]


def test_an_abandoned_batch_is_taken_one_at_a_time():
    """Only a run alone counts as an attempt. [C03.3]"""
    registry = registry_of(note)
    send(registry, 1, 2, 3)
    claim()
    expire_leases()
    store = Store("default")
    store.abandon_expired(["outbox"])

    assert [row.attempts for row in rows()] == [0, 0, 0]
    (one,) = store.claim_abandoned("outbox", owner="me", lease=LEASE)
    assert (one.attempts, one.is_counted) == (1, True)
    assert sorted(row.state for row in rows()) == [2, 3, 3]
    assert [row.attempts for row in rows()] == [1, 0, 0]


def test_a_worker_that_is_told_to_end_by_a_handler():
    """sys.exit() in a handler ends the worker; its batch is tried one by one. [C03.3]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        note(command)
        if command.number == 2:
            raise SystemExit(1)

    send(registry, 1, 2, 3)

    for _ in range(2):
        with pytest.raises(SystemExit):
            work(registry)
    work(registry)

    assert sorted(numbers()) == [1, 3]
    assert [letter.reason for letter in letters()] == [Reason.POISON]


def test_a_lost_transaction_accuses_nobody(caplog, undivided_batches):
    """Everything of the batch is taken again, one by one, and counted for none. [C03.4]"""
    on_a_server()
    registry = Registry()
    terminated = []

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        note(command)
        if command.number == 2 and not terminated:
            terminated.append(own_session())
            end_session(*terminated)
            Note.objects.create(text="into the void")

    send(registry, 1, 2, 3)

    tally = work(registry)

    assert numbers() == [1, 2, 3]
    assert (tally.handled, tally.failed) == (3, 0)
    assert rows() == []
    assert letters() == []
    assert caplog.messages == [
        (
            "A batch of 2 was rolled back by OperationalError; its messages are handled one "
            "by one"
        )
    ]


def test_a_deadlock_accuses_nobody(caplog, undivided_batches):
    """The transaction that had to give way is gone as a whole; nobody is to blame. [C03.4]"""
    if connection.vendor != "mysql":
        pytest.skip("A case for a server that ends a whole transaction for a deadlock.")
    first, second = (Note.objects.create(text=text) for text in ("first", "second"))
    waits = """
        SELECT count(*) FROM information_schema.innodb_trx
        WHERE trx_state = 'LOCK WAIT' AND trx_mysql_thread_id = %s
    """
    registry = Registry()
    others = []

    def other():
        """Change much, so that it is the other transaction which gives way."""
        with transaction.atomic():
            for number in range(200):
                Note.objects.create(text="much", number=number)
            Note.objects.filter(pk=second.pk).update(number=-1)
            others.append(own_session())
            Note.objects.filter(pk=first.pk).update(number=-2)

    def is_waiting():
        with second_connection() as watcher, watcher.cursor() as cursor:
            cursor.execute(waits, [others[0]])
            return cursor.fetchone()[0]

    threads = []

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        note(command)
        if command.number == 2 and not threads:
            Note.objects.filter(pk=first.pk).update(number=1)
            threads.append(run_in_thread(other))
            wait_until(lambda: others and is_waiting())
            Note.objects.filter(pk=second.pk).update(number=2)

    send(registry, 1, 2, 3)

    tally = work(registry)

    threads[0][0].join()
    assert threads[0][1] == []
    assert numbers()[202:] == [1, 2, 3]
    assert numbers()[:2] == [-2, -1]
    assert (tally.handled, tally.failed) == (3, 0)
    assert rows() == []
    assert letters() == []
    assert caplog.messages == [
        (
            "A batch of 2 was rolled back by OperationalError; its messages are handled one "
            "by one"
        )
    ]


def test_an_error_that_its_savepoint_heals_is_that_of_one_message(caplog):
    """Whatever its class is: a missing table, an OperationalError on SQLite. [C03.4]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=NOW)
    def do(command: Work):
        note(command)
        if command.number == 2:
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")

    send(registry, 1, 2, 3)

    tally = work(registry, bounds={"messages": 3})

    assert numbers() == [1, 3]
    assert (tally.handled, tally.failed) == (2, 1)
    assert [row.attempts for row in rows()] == [1]
    assert not [m for m in caplog.messages if "rolled back" in m]


def test_an_error_at_the_commit_is_that_of_its_message():
    """A constraint that is checked at the commit fails its own message alone. [C03.4]"""
    from django.contrib.auth.models import Permission

    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        note(command)
        if command.number == 2:
            Permission.objects.create(content_type_id=4711, codename="x", name="x")

    send(registry, 1, 2, 3)

    tally = work(registry)

    assert numbers() == [1, 3]
    assert (tally.handled, tally.failed, tally.dead) == (2, 1, 1)
    (letter,) = letters()
    assert (letter.reason, letter.attempts) == (Reason.FAILED, 1)
    assert letter.exception == "django.db.utils.IntegrityError"
    assert issubclass(IntegrityError, Error)


@pytest.mark.parametrize("queries", [False, True])
def test_a_handler_that_closes_the_connection_fails_alone(queries):
    """The others are handled, on a new connection."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        if queries:
            note(command)
        if command.number == 2:
            connection.close()
        else:
            Note.objects.create(text="done", number=command.number * 10)

    send(registry, 1, 2, 3)

    tally = work(registry)

    assert numbers() == ([1, 10, 3, 30] if queries else [10, 30])
    assert (tally.handled, tally.failed, tally.dead) == (2, 1, 1)


def test_a_handler_that_swallows_a_database_error_fails():
    """A transaction that can only be rolled back is no success, and harms no other."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        note(command)
        if command.number == 2:
            with contextlib.suppress(Error):
                Note.objects.create(slug="x" * 10)
                Note.objects.create(slug="x" * 10)
        if command.number == 4:
            transaction.set_rollback(True)

    send(registry, 1, 2, 3, 4, 5)

    tally = work(registry)

    assert numbers() == [1, 3, 5]
    assert (tally.handled, tally.dead) == (3, 2)
    assert {letter.exception.rpartition(".")[2] for letter in letters()} == {
        "BrokenTransaction"
    }


def test_a_handler_that_only_rolls_back_an_empty_block_fails():
    """Where nothing was queried there is no savepoint, and still it is no success."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        if command.number == 2:
            transaction.set_rollback(True)
        else:
            note(command)

    send(registry, 1, 2, 3)

    assert work(registry).handled == 2
    assert numbers() == [1, 3]


def test_callbacks_run_after_the_commit_each_for_itself(caplog, undivided_batches):
    """One that raises is logged, the others run; those of a failed message do not. [C03.5]"""
    registry = Registry()
    called = []

    @registry.add
    @command_handler(name="do", channel="outbox", retry=NOW)
    def do(command: Work):
        def callback():
            called.append((command.number, connection.in_atomic_block, len(rows())))
            if command.number == 2:
                raise Refused

        if command.number < 10:
            note(command)
        transaction.on_commit(callback)
        if command.number % 10 == 3:
            raise Refused

    send(registry, 1, 2, 3, 13, 4)
    del called[:]

    tally = worker_of(registry, bounds={"messages": 5}).run()

    # Two rows are left: the messages that failed.
    assert called == [(1, False, 2), (2, False, 2), (4, False, 2)]
    assert (tally.handled, tally.failed) == (3, 2)
    assert numbers() == [1, 2, 4]
    assert [r.levelname for r in caplog.records if "callback" in r.getMessage()] == [
        "ERROR"
    ]


def test_a_handler_without_a_transaction_runs_alone():
    """With atomic=False it is outside the batch's transaction; durable=True works. [C03.6]"""
    registry = Registry()
    seen = []

    @registry.add
    @command_handler(name="do", channel="outbox")
    def do(command: Work):
        note(command)

    @registry.add
    @command_handler(name="outside", channel="outbox", atomic=False)
    def outside(command: OtherWork):
        seen.append(connection.in_atomic_block)
        with transaction.atomic(durable=True):
            note(Work(command.number))

    send(registry, 1)
    registry.command_bus.dispatch(OtherWork(2))
    send(registry, 3)

    tally = work(registry)

    assert seen == [False]
    assert sorted(numbers()) == [1, 2, 3]
    assert tally.handled == 3
    assert rows() == []


def test_at_least_once_is_what_it_gets():
    """What it wrote before it failed stays, and it is tried again. [C03.6]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", atomic=False, retry=NOW)
    def do(command: Work):
        note(command)
        if len(numbers()) == 1:
            raise Refused

    send(registry, 1)

    tally = work(registry)

    assert numbers() == [1, 1]
    assert (tally.handled, tally.failed) == (1, 1)


def test_a_handler_of_another_database_has_its_own_transaction():
    """It commits there first, and its message is settled after. [C03.6]"""
    registry = Registry()

    @registry.add
    @command_handler(name="run", using="default")
    def run(command: OtherWork, commands: CommandBus):
        commands.dispatch(Work(1))

    @registry.add
    @command_handler(name="do", channel="outbox", using="other", retry=NOW)
    def do(command: Work):
        assert connections["other"].in_atomic_block
        assert not connection.in_atomic_block
        Note.objects.using("other").create(text="done", number=command.number)
        if not runs:
            runs.append(1)
            raise Refused

    runs = []
    registry.command_bus.dispatch(OtherWork())
    assert len(rows()) == 1

    assert work(registry).handled == 1
    assert numbers("other") == [1]
    assert rows() == []


def test_a_handler_that_leaves_the_connection_broken(caplog):
    """What is outside any transaction may close it, or leave autocommit off. [C03.6]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", atomic=False)
    def do(command: Work):
        note(command)
        if command.number == 1:
            connection.close()
        else:
            connection.set_autocommit(False)

    send(registry, 1, 2)

    assert work(registry).handled == 2
    assert rows() == []
    assert connection.get_autocommit()


# --------------------------------------------------------------------------------- retry


def test_by_class_of_exception():
    """What the policy names is tried again; anything else is given up at once. [C04.1]"""
    registry = Registry()

    @registry.add
    @command_handler(
        name="do", channel="outbox", retry=Retry(attempts=3, delay=0, on=(Refused,))
    )
    def do(command: Work):
        raise Refused if command.number == 1 else ValueError("no")

    send(registry, 1, 2)

    tally = work(registry)

    assert (tally.failed, tally.dead) == (4, 2)
    found = {letter.exception: letter.attempts for letter in letters()}
    assert found == {"builtins.ValueError": 1, f"{__name__}.Refused": 3}


def test_the_delay_grows_with_jitter_and_a_cap():
    """Exponential, drawn between half and all of it, and never above the cap. [C04.1]"""
    registry = Registry()
    policy = Retry(attempts=6, delay=10, factor=3, cap=100)

    @registry.add
    @command_handler(name="do", channel="outbox", retry=policy)
    def do(command: Work):
        raise Refused

    send(registry, *range(20))
    for full in (10, 30, 90, 100, 100):
        before = timezone.now()
        assert work(registry).failed == 20
        after = timezone.now()
        waits = [row.available_at for row in rows()]
        assert min(waits) >= before + timedelta(seconds=full / 2)
        assert max(waits) <= after + timedelta(seconds=full)
        assert len(set(waits)) > 10
        assert {row.state for row in rows()} == {State.DELAYED}
        assert {(row.owner, row.lease_expires_at) for row in rows()} == {(None, None)}
        make_due()
    assert work(registry).dead == 20


def test_attempts_are_counted_over_crashes():
    """A run alone that killed its worker is an attempt like one that failed. [C04.1]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=NOW)
    def do(command: Work):
        raise Refused

    send(registry, 1)
    store = Store("default")
    for _ in range(2):
        claim()
        expire_leases()
        store.abandon_expired(["outbox"])
    store.claim_abandoned("outbox", owner="dies", lease=LEASE)
    expire_leases()

    tally = work(registry)

    assert (tally.failed, tally.dead) == (2, 1)
    assert [letter.attempts for letter in letters()] == [3]


def test_a_crash_while_burying_counts_for_nothing(monkeypatch):
    """What has had its attempts is given up, however often that is interrupted. [C03.3]"""

    class Crash(BaseException):
        pass

    def crash(*_args, **_options):
        raise Crash

    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=2))
    def do(command: Work):
        raise Crash

    def die():
        worker = worker_of(registry)
        monkeypatch.setattr(worker._handler, "give_back", lambda *_: None)
        with pytest.raises(Crash):
            worker.run()
        expire_leases()

    send(registry, 1)
    for attempts in (0, 1, 2):  # with others, then twice alone
        die()
        assert [row.attempts for row in rows()] == [attempts]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "settle", crash)
        for _ in range(4):
            die()
            assert [(row.state, row.attempts) for row in rows()] == [(State.CLAIMED, 2)]

    assert work(registry).dead == 1

    (letter,) = letters()
    assert (letter.reason, letter.attempts) == (Reason.POISON, 2)


def test_without_a_policy():
    """Five attempts, with a delay of about a second before the second. [C04.1]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox")
    def do(command: Work):
        raise Refused

    send(registry, 1)
    for _ in range(5):
        work(registry)
        make_due()

    assert [letter.attempts for letter in letters()] == [5]


def test_what_is_tried_again_is_logged(caplog):
    """A warning for each attempt, an error for the last; ids and names, no payload. [C04.1]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=2, delay=0))
    def do(command: Work):
        raise Refused

    send(registry, 1)
    (row,) = rows()
    work(registry)

    first, second = caplog.records
    assert first.getMessage() == (
        f"Message {row.message_id} for do failed at attempt 1 with Refused; it is retried "
        "at once"
    )
    assert second.getMessage() == (
        f"Message {row.message_id} for do failed at attempt 2 with Refused; it is now "
        "a dead letter (failed)"
    )
    assert (first.levelname, second.levelname) == ("WARNING", "ERROR")
    assert first.name == "django_cqrs.worker"
    assert first.cqrs_channel == "outbox"
    assert first.cqrs_endpoint == "do"
    assert first.cqrs_message_id == str(row.message_id)
    assert first.cqrs_correlation_id == str(row.correlation_id)


def test_instant_retry_inside_delayed_retry_outside():
    """A command that the handler sends is tried again at once, its message later. [C04.2]"""
    registry = Registry()
    bus = CommandBus(
        registry=registry, instant_retry=InstantRetry(retries=2, on=(Refused,))
    )
    tries = []

    @registry.add
    @command_handler(name="inner")
    def inner(command: OtherWork):
        tries.append(command.number)
        if len(tries) < 5:
            raise Refused

    @registry.add
    @command_handler(name="do", channel="outbox", atomic=False, retry=NOW)
    def do(command: Work):
        bus.dispatch(OtherWork(command.number))

    send(registry, 1)

    tally = work(registry)

    assert len(tries) == 5
    assert (tally.handled, tally.failed) == (1, 1)


def test_drop():
    """A message that is given up is forgotten; the log says so. [C04.3]"""
    registry = Registry()

    @registry.add
    @command_handler(
        name="do", channel="outbox", retry=Retry(attempts=1, final_failure="drop")
    )
    def do(command: Work):
        note(command)
        raise Refused

    send(registry, 1)

    tally = work(registry)

    assert (tally.failed, tally.dead) == (1, 0)
    assert rows() == []
    assert letters() == []
    assert numbers() == []


def test_stop(undivided_batches):
    """The worker stops; the message waits, and so does what was not begun. [C04.3]"""
    registry = Registry()

    @registry.add
    @command_handler(
        name="do", channel="outbox", retry=Retry(attempts=1, final_failure="stop")
    )
    def do(command: Work):
        note(command)
        if command.number == 2:
            raise Refused

    @registry.add
    @command_handler(name="outside", channel="outbox", atomic=False)
    def outside(command: OtherWork):
        note(Work(100))

    send(registry, 1)
    registry.command_bus.dispatch(OtherWork())
    send(registry, 2, 3)

    with pytest.raises(StopWorker, match=r"^do failed with Refused\.$") as caught:
        work(registry)

    assert isinstance(caught.value.__cause__, Refused)
    assert numbers() == [1]
    assert [(row.state, row.owner) for row in rows()] == [(State.READY, None)] * 3
    assert letters() == []


def test_stop_after_its_attempts():
    """A policy that stops tries as often as it says before it does. [C04.3]"""
    registry = Registry()
    policy = Retry(attempts=3, delay=0, final_failure="stop")

    @registry.add
    @command_handler(name="do", channel="outbox", retry=policy)
    def do(command: Work):
        tries.append(1)
        raise Refused

    tries = []
    send(registry, 1)

    for expected in (3, 4):
        with pytest.raises(StopWorker):
            work(registry)
        assert len(tries) == expected


def test_an_async_handler_whose_task_is_cancelled_fails():
    """It is no wish to end the worker."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=2, delay=0))
    async def do(command: Work):
        raise asyncio.CancelledError

    send(registry, 1)

    assert work(registry).dead == 1
    assert [letter.attempts for letter in letters()] == [2]


# -------------------------------------------------------------------------- dead letters


def test_what_a_dead_letter_keeps():
    """The bytes as they came, the exception with its traceback, and how often. [C05.1]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        raise Refused("no \x00 and no \ud800")

    registry.command_bus.dispatch(
        Work(1, "ä"), headers={"who": "ö"}, priority=7, expires=60
    )
    (row,) = rows()

    before = timezone.now()
    work(registry)

    (letter,) = letters()
    for name in SHARED_FIELDS:
        if name != "attempts":
            assert getattr(letter, name) == getattr(row, name), name
    assert bytes(letter.payload) == '{"number":1,"how":"ä"}'.encode()
    assert (letter.attempts, letter.reason) == (1, "failed")
    assert letter.exception == f"{__name__}.Refused"
    assert letter.error == r"no \x00 and no \ud800"
    assert letter.traceback.startswith("Traceback (most recent call last):\n")
    assert "raise Refused" in letter.traceback
    assert before <= letter.failed_at <= timezone.now()


def test_an_error_that_cannot_be_told():
    """Also an exception whose text cannot be made is buried. [C05.1]"""

    class Mute(Exception):
        def __str__(self):
            raise Refused

    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        raise Mute

    send(registry, 1)
    work(registry)

    assert [letter.error for letter in letters()] == ["<Mute without a text>"]


def test_a_replayed_message_runs_its_own_endpoint_only():
    """The other subscribers have handled theirs. [C05.3]"""
    called = []
    is_mended = []

    def first(event: Work):
        called.append("first")

    def second(event: Work):
        called.append("second")
        if not is_mended:
            raise Refused

    registry = subscribers(first, second, retry=Retry(attempts=1))
    registry.event_bus.publish(Work(1))
    work(registry)
    assert called == ["first", "second"]
    is_mended.append(True)
    (letter,) = letters()

    assert replay(letters(), using="default") == 1
    (row,) = rows()
    assert (row.state, row.attempts, row.endpoint) == (State.READY, 0, "second")
    assert (row.message_id, row.payload) == (letter.message_id, letter.payload)
    assert replay([letter], using="default") == 0

    assert work(registry).handled == 1
    assert called == ["first", "second", "second"]
    assert letters() == []


def _spoil(**changes):
    OutboxMessage.objects.update(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payload": b'{"number": "one"}'}, "undecodable"),
        ({"payload": b"\xff\xfe"}, "undecodable"),
        ({"payload": b""}, "undecodable"),
        ({"payload": b"[" * 100_000}, "undecodable"),
        ({"headers": b"[]"}, "undecodable"),
        ({"headers": b"\xff"}, "undecodable"),
        ({"name": "no.such_message"}, "unknown_message"),
        ({"endpoint": "no.such_endpoint"}, "unknown_endpoint"),
    ],
)
def test_each_its_own_reason(changes, reason):
    """What cannot be handled is not tried twice, and the worker goes on. [C05.4]"""
    registry = registry_of(note)
    send(registry, 1)
    _spoil(**changes)
    (spoilt,) = rows()
    send(registry, 2)

    tally = work(registry)

    assert numbers() == [2]
    (letter,) = letters()
    assert (letter.reason, letter.attempts) == (reason, 1)
    assert bytes(letter.payload) == bytes(spoilt.payload)
    assert bytes(letter.headers) == bytes(spoilt.headers)
    assert (tally.handled, tally.failed, tally.dead) == (1, 1, 1)
    assert rows() == []


def test_a_broken_payload_never_stops_the_worker():
    """Not even where the policy of its endpoint is to stop. [C05.5]"""
    policy = Retry(attempts=1, final_failure="stop")
    registry = registry_of(note, retry=policy)
    send(registry, 1, 2, 3)
    OutboxMessage.objects.filter(sequence=rows()[1].sequence).update(payload=b"{")

    assert work(registry).handled == 2
    assert numbers() == [1, 3]
    assert [letter.reason for letter in letters()] == ["undecodable"]


def test_an_old_name_of_an_endpoint_is_found():
    """What waits for a handler that was renamed is handled by its new name."""
    send(registry_of(note, name="old"), 1)

    assert work(registry_of(note, name="new", aliases=["old"])).handled == 1
    assert numbers() == [1]


# --------------------------------------------------------------- priority, delay, expiry


def test_the_highest_priority_first():
    """Then the order of sending. [C07.3]"""
    registry = registry_of(note)
    send(registry, 1, 2)
    send(registry, 3, 4, priority=5)
    send(registry, 5, priority=-1)

    work(registry, batch=2)

    assert numbers() == [3, 4, 1, 2, 5]


def test_a_delayed_message_is_never_early():
    """It waits until it falls due by the clock, and is then handled in its turn. [C07.3]"""
    registry = registry_of(note)
    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC)) as clock:
        send(registry, 1, delay=3600)
        send(registry, 2)
        assert [row.state for row in rows()] == [State.DELAYED, State.READY]
        work(registry)
        clock.shift(timedelta(seconds=3590))
        work(registry)
        assert numbers() == [2]
        clock.shift(timedelta(seconds=11))
        work(registry)
        assert numbers() == [2, 1]


def test_many_fall_due_at_once():
    """More than are released in one go are all handled. [C07.3]"""
    registry = registry_of(note)
    with transaction.atomic():
        send(registry, *range(1200), delay=3600)
    OutboxMessage.objects.update(available_at=LONG_AGO)

    assert work(registry).handled == 1200


def test_an_expired_message_is_dropped_and_counted(caplog):
    """Its handler is not called; the log and the tally say so. [C07.3]"""
    caplog.set_level(logging.INFO, "django_cqrs.worker")
    registry = registry_of(note)
    with time_machine.travel(datetime(2030, 1, 1, tzinfo=UTC)) as clock:
        send(registry, 1, expires=60)
        send(registry, 2, expires=3600)
        send(registry, 3)
        (row, *_) = rows()
        clock.shift(timedelta(seconds=61))
        tally = work(registry)

    assert numbers() == [2, 3]
    assert (tally.handled, tally.expired) == (2, 1)
    assert rows() == []
    assert letters() == []
    (record,) = [r for r in caplog.records if "dropped" in r.getMessage()]
    expected = (
        f"Message {row.message_id} for note was dropped: it expired at 2030-01-01"
    )
    assert record.getMessage().startswith(expected)


# ----------------------------------------------------------------------------- operation


def test_the_bound_of_messages():
    """It stops after so many, failures and expired ones included. [C09.1]"""
    registry = registry_of(note)
    send(registry, *range(10))

    assert work(registry, batch=3, bounds={"messages": 4}).handled == 4
    assert numbers() == [0, 1, 2, 3]
    assert {row.state for row in rows()} == {State.READY}


def test_the_bound_of_time(monkeypatch):
    """It stops after so long, and is no later for waiting. [C09.1]"""
    monkeypatch.setattr(Worker, "poll_time", 10 * LIMIT)
    began = time.monotonic()

    work(registry_of(note), bounds={"until_empty": False, "seconds": 0.4})

    assert 0.4 <= time.monotonic() - began < LIMIT


def test_the_bound_of_memory():
    """It stops when its process has used so much. [C09.1]"""
    registry = registry_of(note)
    send(registry, 1)

    assert work(registry, bounds={"until_empty": False, "megabytes": 1}).handled == 0
    assert work(registry, bounds={"megabytes": 100_000}).handled == 1


def test_stop_at_a_failure():
    """It stops at the first; what was handled before it is settled. [C09.1]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=NOW)
    def do(command: Work):
        note(command)
        if command.number == 2:
            raise Refused

    send(registry, 1, 2, 3)

    with pytest.raises(StopWorker, match=r"^do failed with Refused\.$"):
        work(registry, bounds={"on_failure": True})

    assert numbers() == [1]
    assert [(row.state, row.attempts) for row in rows()] == [(1, 1), (0, 0)]


def test_a_dropped_connection(caplog):
    """While it waits and while it handles: it connects again and goes on. [C09.2]"""
    on_a_server()
    registry = registry_of(note)
    worker = worker_of(registry, bounds={"until_empty": False, "seconds": LIMIT})
    sessions = []

    def run():
        worker.store.connection = connections["default"]
        sessions.append(own_session())
        worker.run()

    thread, errors = run_in_thread(run)
    send(registry, 1)
    wait_until(lambda: numbers() == [1])
    time.sleep(0.5)  # by now it listens
    end_session(*sessions)
    send(registry, 2)
    wait_until(lambda: numbers() == [1, 2])
    worker.stop()
    thread.join()

    assert errors == []
    said = [
        text.partition("(")[0]
        for text in caplog.messages
        if text.startswith("Database 'default'")
    ]
    assert said == [
        "Database 'default' unavailable ",
        "Database 'default' is back after 0 s",
    ]
    assert [record.exc_info for record in caplog.records] == [None, None]


def test_a_connection_dropped_at_the_settle_gives_the_claim_back(monkeypatch):
    """What was claimed and not settled does not wait for its lease to run out. [C09.2]"""
    registry = registry_of(note)
    send(registry, 1, 2)
    worker = worker_of(registry)
    calls = []

    def ensure_reachable():
        calls.append(1)
        if len(calls) == 1:
            raise OperationalError("gone")

    settle = worker.store.settle

    def settle_once(owner, keys):
        if not calls:
            raise OperationalError("gone")
        settle(owner, keys)

    worker.store.settle = settle_once
    monkeypatch.setattr(worker._handler, "_ensure_reachable", ensure_reachable)

    assert worker.run().handled == 2
    assert numbers() == [1, 2]


@pytest.mark.long
def test_nothing_leaks(settings, say):
    """Over very many messages: no connection, no logged query, little memory. [C09.3]"""
    import gc
    import tracemalloc

    settings.DEBUG = True
    size = 100_000 if SOAKS else 300
    registry = registry_of(note)

    def go():
        with transaction.atomic():
            send(registry, *range(size))
        work(registry)
        gc.collect()

    def growth():
        before = tracemalloc.get_traced_memory()[0]
        go()
        return tracemalloc.get_traced_memory()[0] - before

    go()
    tracemalloc.start()
    go()
    # A leak grows in every round; what caches and the driver keep grows less and less.
    grown = min(growth() for _ in range(3))
    tracemalloc.stop()
    say(f"{size:,} messages: the process has grown by {grown:,} bytes")

    assert grown < 30_000
    assert len(connection.queries_log) < 100
    assert len(connection.execute_wrappers) == 0
    assert connection.savepoint_ids == []
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            )
            assert cursor.fetchone() == (1,)


def test_the_table_stays_bounded():
    """What is settled is gone: no row, no inbox entry, no dead letter is left. [C09.5]"""
    from django_cqrs.outbox.models import InboxEntry

    registry = registry_of(note)
    for _ in range(5):
        with transaction.atomic():
            send(registry, *range(100))
        work(registry)
        assert OutboxMessage.objects.count() == 0
    assert InboxEntry.objects.count() == 0
    assert DeadLetter.objects.count() == 0


def test_what_a_handler_activates_ends_with_it():
    """A language or a time zone of one message is not that of the next."""
    registry = Registry()
    seen = []

    @registry.add
    @command_handler(name="do", channel="outbox")
    def do(command: Work):
        seen.append((translation.get_language(), timezone.get_current_timezone_name()))
        translation.activate("de")
        timezone.activate("Asia/Tokyo")

    send(registry, 1, 2)
    work(registry)

    assert seen == [("en-us", "UTC")] * 2


def test_others_get_a_share_of_slow_work():
    """A claim is no larger than what is handled in about a second."""

    def sleep(command: Work):
        time.sleep(0.02)

    registry = registry_of(sleep)
    send(registry, *range(30))
    worker = worker_of(registry, batch=20)
    worker.claim_time = 0.1

    worker.run_once()
    assert 1 <= worker._limit <= 6
    worker.run_once()
    assert worker._limit < 20
    worker.run()
    assert rows() == []


def test_several_channels_the_first_is_looked_at_first(settings):
    """A worker of two channels handles both; a third is none of its business."""
    backend = {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}
    settings.DJANGO_CQRS = {
        "CHANNELS": dict.fromkeys(("mail", "slow", "idle"), backend)
    }
    registry = Registry()

    @registry.add
    @command_handler(name="mail", channel="mail")
    def mail(command: Work):
        Note.objects.create(text="mail", number=command.number)

    @registry.add
    @command_handler(name="slow", channel="slow")
    def slow(command: OtherWork):
        Note.objects.create(text="slow", number=command.number)

    @registry.add
    @command_handler("idle", name="idle", channel="idle")
    def idle(number: int):
        raise AssertionError

    registry.command_bus.dispatch(5, route="idle")
    registry.command_bus.dispatch(OtherWork(1))
    send(registry, 2)

    assert work(registry, channels=["mail", "slow"]).handled == 2
    assert numbers() == [2, 1]
    assert [row.channel for row in rows()] == ["idle"]


def test_what_falls_due_while_it_looks_is_handled(monkeypatch):
    """What becomes ready in a round that found nothing is not left until later. [C07.3]"""
    registry = registry_of(note)
    send(registry, 1, delay=3600)
    worker = worker_of(registry)
    worker.run_once()
    make_due()
    worker._looked_after -= 1

    assert worker.run_once() == 1
    assert numbers() == []
    assert worker.run_once() == 1
    assert numbers() == [1]


def test_a_row_that_a_fast_handler_locked_is_free_while_a_slow_one_runs():
    """
    The batch ends before a handler that was slow, and before one never called.

    A request that wants the row of the fast handler gets it while the slow one is
    being handled: what the fast one wrote is committed by then.
    """
    registry, seen = Registry(), []

    @registry.add
    @command_handler(name="fast", channel="outbox")
    def fast(command: Work):
        note(command)

    @registry.add
    @command_handler(name="slow", channel="outbox")
    def slow(command: OtherWork):
        with second_connection() as other, other.cursor() as cursor:
            cursor.execute("SELECT number FROM testapp_note ORDER BY id")
            seen.append([number for (number,) in cursor.fetchall()])

    send(registry, 1)
    registry.command_bus.dispatch(OtherWork())
    worker = worker_of(registry)
    worker.run()
    worker._handler._habits.note_time("slow", worker._handler._habits.slow_time)
    send(registry, 2)
    registry.command_bus.dispatch(OtherWork())

    worker_of(registry).run()

    assert seen == [[1], [1, 2]]
