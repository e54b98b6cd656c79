"""Dead letters put back, many at a time: each once, and with few statements."""

import threading
from uuid import uuid4

import pytest
from django.db import (
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_cqrs import Registry, Retry, command_handler
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State
from django_cqrs.outbox.store import put_back, replay
from django_cqrs.outbox.store.batches import retrying_deadlocks
from tests.limits import LIMIT
from tests.outbox.support import (
    letters,
    note,
    numbers,
    on_a_server,
    on_databases,
    rows,
    send,
    work,
)
from tests.outbox.work import Work

pytestmark = on_databases


def died(number, **values):
    """Make dead letters that differ in all that rows differ in."""
    now = timezone.now()
    for place in range(number):
        DeadLetter.objects.create(
            **{
                "channel": "outbox",
                "endpoint": "note",
                "name": "Work",
                "payload": b'{"number":%d,"how":"write"}' % place,
                "headers": b'{"executor_id":7}',
                "message_id": uuid4(),
                "correlation_id": uuid4(),
                "causation_id": uuid4() if place % 2 else None,
                "sent_at": now,
                "sequence": place,
                "priority": place,
                "ordering_key": f"key {place}",
                "subject": f"subject {place}",
                "attempts": 5,
                "reason": "failed",
                "failed_at": now,
                **values,
            }
        )
    return letters()


SAME = (
    *("channel", "endpoint", "name", "version", "payload", "headers", "message_id"),
    *("correlation_id", "causation_id", "sent_at", "sequence", "priority"),
    *("expires_at", "ordering_key", "subject"),
)


def as_sent(row):
    return {
        name: bytes(value) if isinstance(value, memoryview) else value
        for name in SAME
        for value in (getattr(row, name),)
    }


def test_what_is_put_back_is_what_was_sent():
    """Every column of each; its attempts count from zero, and it waits anew. [C05.2]"""
    dead = died(3)
    before = timezone.now()

    assert replay(dead, using="default") == 3

    assert [as_sent(row) for row in rows()] == [as_sent(letter) for letter in dead]
    for row in rows():
        assert (row.state, row.attempts, row.token) == (State.READY, 0, 0)
        assert row.owner is None
        assert before <= row.available_at <= timezone.now()
    assert letters() == []


@pytest.mark.parametrize("number", [1, 30])
def test_many_are_put_back_by_as_many_statements_as_one(number):
    """One finds those that are there, one inserts all, one deletes all. [C05.2]"""
    dead = died(number)

    with CaptureQueriesContext(connection) as queries:
        assert replay(dead, using="default") == number

    said = [each["sql"].split()[0] for each in queries]
    assert [word for word in said if word in ("SELECT", "INSERT", "DELETE")] == [
        "SELECT",
        "INSERT",
        "DELETE",
    ]
    assert len(rows()) == number


def test_a_batch_is_a_transaction():
    """One that cannot be put back keeps its batch, and none before it. [C05.2]"""
    dead = died(5)
    dead[4].channel = None

    with pytest.raises(IntegrityError):
        replay(dead, using="default", size=2)

    assert [row.sequence for row in rows()] == [0, 1, 2, 3]
    assert [letter.sequence for letter in letters()] == [4]

    dead = died(2)  # and in one batch all or none
    dead[-1].channel = None
    with pytest.raises(IntegrityError):
        replay(dead, using="default")
    assert len(letters()) == 3
    assert len(rows()) == 4


def test_what_is_gone_is_not_put_back():
    """Somebody else has replayed or deleted it; and none comes twice. [C05.2]"""
    dead = died(4)
    DeadLetter.objects.filter(pk=dead[1].pk).delete()

    assert put_back([*dead, *dead], using="default") == [dead[0], dead[2], dead[3]]
    assert put_back(dead, using="default") == []
    assert put_back([], using="default") == []

    assert [row.sequence for row in rows()] == [0, 2, 3]


def test_replay_in_another_database():
    """The letters of one database go back there. [C10.2]"""
    (letter,) = died(1)
    DeadLetter.objects.all().delete()
    letter.pk = None
    letter.save(using="other")

    assert replay(letters("other"), using="other") == 1

    assert (len(rows()), len(rows("other"))) == (0, 1)


def test_two_replay_at_once():
    """Each letter is put back by one of them, whatever the order they come in. [C05.2]"""
    on_a_server()
    dead = died(40)
    barrier, counts = threading.Barrier(2), []

    def go(chosen):
        try:
            barrier.wait(LIMIT)
            counts.append(replay(chosen, using="default", size=15))
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=go, args=(chosen,)) for chosen in (dead, dead[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)

    assert len(counts) == 2
    assert sum(counts) == 40
    assert OutboxMessage.objects.count() == 40
    assert letters() == []


def in_turns_of(first, second):
    """Change two rows, the second once the other thread has changed its first."""

    def change(row, barrier):
        DeadLetter.objects.filter(pk=first if row == 1 else second).update(attempts=row)
        if barrier is not None:
            barrier.wait(LIMIT)
        DeadLetter.objects.filter(pk=second if row == 1 else first).update(attempts=row)

    return change


def test_a_deadlock_over_dead_letters_is_begun_anew():
    """One of two that wait for each other is undone, and does it all once more. [C03.4]"""
    on_a_server()
    change = in_turns_of(*[letter.pk for letter in died(2)])
    barrier, attempts, failed = threading.Barrier(2), [], []

    def go(row):
        def work():
            attempts.append(row)
            change(row, barrier if attempts.count(row) == 1 else None)

        try:
            retrying_deadlocks(work, using="default")
        except OperationalError as error:
            failed.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=go, args=(row,)) for row in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)

    assert failed == []
    assert len(attempts) == 3
    last = attempts[2]
    assert [letter.attempts for letter in letters()] == [last, last]


def deadlock():
    """Return the error that MariaDB reports; PostgreSQL's has a code of its own."""
    return OperationalError(1213, "Deadlock found when trying to get lock")


def test_a_deadlock_again_and_again_is_raised(monkeypatch):
    """The retries end, and inside somebody's transaction there are none. [C03.4]"""
    slept, attempts = [], []
    monkeypatch.setattr("django_cqrs.outbox.store.batches.time.sleep", slept.append)

    def work():
        attempts.append(DeadLetter.objects.count())
        raise deadlock()

    with pytest.raises(OperationalError, match="Deadlock"):
        retrying_deadlocks(work, using="default")
    assert (len(attempts), len(slept)) == (6, 5)

    attempts.clear()
    with transaction.atomic(), pytest.raises(OperationalError, match="Deadlock"):
        retrying_deadlocks(work, using="default")
    assert len(attempts) == 1


def test_one_key_is_put_back_in_one_batch_and_handled_in_order():
    """Whatever order they are named in; and what was parked behind them follows. [C07.2]"""
    broken = [True]

    def handle(command: Work):
        if broken and command.number < 4:
            raise ValueError
        note(command)

    registry = Registry()
    registry.add(
        command_handler(
            name="handle",
            channel="outbox",
            retry=Retry(attempts=1),
            ordering_key="how",
        )(handle)
    )
    for number in (1, 2, 3):
        send(registry, number, how=f"key {number}")
        work(registry)
    DeadLetter.objects.update(ordering_key="a")
    send(registry, 4, how="a")
    work(registry)
    assert numbers() == []
    broken.clear()

    assert replay(letters()[::-1], using="default") == 3
    work(registry, batch=2)

    assert numbers() == [1, 2, 3, 4]
    assert rows() == []
