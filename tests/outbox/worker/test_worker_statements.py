"""What a worker asks the database for, and what wakes it."""

import logging
import re
import threading
import time

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import Registry, command_handler
from django_cqrs.channels import channels
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.outbox.store.dialects import BY_INDEX, to_last_result
from django_cqrs.outbox.worker import Bounds, Worker
from django_cqrs.outbox.worker.throughput import ThroughputRecorder
from django_cqrs.retries import Retry
from tests.limits import LIMIT
from tests.outbox.support import (
    letters,
    note,
    numbers,
    on_databases,
    on_postgresql,
    registry_of,
    rows,
    send,
    wait_until,
    work,
    worker_of,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = [*on_databases, pytest.mark.usefixtures("undivided_batches")]


def words_of(statements):
    """Return the verbs of statements, savepoints numbered as they come."""
    names = {}
    words = []
    for each in statements:
        for statement in each.split(";"):
            if match := re.search(
                r"(RELEASE|ROLLBACK)? ?(TO )?SAVEPOINT (\S+)", statement
            ):
                number = names.setdefault(match[3], len(names) + 1)
                words.append(f"{match[1] or 'SET'} {number}")
            else:
                words.append(statement.split()[0])
        words.append("|")
    return " ".join(words)


def handled_with(registry, caplog):
    """Return the verbs of the transaction in which one batch is handled."""
    with (
        caplog.at_level(logging.DEBUG, "django.db.backends"),
        CaptureQueriesContext(connection),
    ):
        worker_of(registry).run_once()
    words = words_of(each.sql for each in caplog.records if hasattr(each, "sql"))
    # On PostgreSQL a claim is one statement, and a transaction by itself.
    claim = "SET WITH | " if connection.vendor == "postgresql" else "UPDATE | COMMIT | "
    handling = words[words.index(claim) :].partition("BEGIN | ")[2]
    return handling.partition(" COMMIT")[0]


def test_a_message_that_queries_costs_its_own_statement(caplog):
    """On PostgreSQL a savepoint goes along with it, elsewhere it costs two more."""
    registry = registry_of(note)
    send(registry, 0)
    work(registry)  # MariaDB is asked once in a session for what it has rolled back
    Note.objects.all().delete()
    send(registry, 1, 2, 3)

    if connection.vendor == "postgresql":
        wanted = "INSERT | INSERT | INSERT | DELETE |"
    else:
        each = "SET {0} | INSERT | RELEASE {0} | "
        wanted = f"{''.join(each.format(n) for n in (1, 2, 3))}DELETE |"
    assert handled_with(registry, caplog) == wanted
    assert numbers() == [1, 2, 3]


def test_a_message_that_queries_nothing_costs_no_statement(caplog):
    """Its savepoint is never set."""
    registry = registry_of(idle)
    send(registry, 1, 2, 3)

    assert handled_with(registry, caplog) == "DELETE |"


def idle(command: Work):
    """Nothing to do."""


def test_a_driver_learns_no_text_for_each_batch(caplog, monkeypatch):
    """What psycopg keeps of a text would else be forgotten for what is used once."""
    # What a worker does now and then, by the clock, is not what is compared.
    monkeypatch.setattr(Worker, "poll_time", 10 * LIMIT)
    monkeypatch.setattr(ThroughputRecorder, "write_time", 10 * LIMIT)
    registry = registry_of(idle)
    texts = []
    for first in (1, 2):
        send(registry, first, first + 1)
        with (
            caplog.at_level(logging.DEBUG, "django.db.backends"),
            connection.execute_wrapper(
                lambda execute, sql, *rest: (texts.append(sql), execute(sql, *rest))[1]
            ),
        ):
            worker_of(registry).run_once()
        texts.append(None)

    half = texts.index(None)
    assert texts[:half] == texts[half + 1 : -1]


def claims_of(worker):
    """Return what a round of a worker sends to claim messages."""
    said = []
    with connection.execute_wrapper(
        lambda execute, sql, *rest: (said.append(sql), execute(sql, *rest))[1]
    ):
        worker.run_once()
    return [each for each in said if "synchronous_commit" in each]


def test_what_wakes_an_idle_worker_needs_no_new_plan():
    """PostgreSQL keeps that of a claim; one that follows another is planned for it."""
    on_postgresql()
    registry = registry_of(note)
    worker = worker_of(registry)
    worker.run_once()
    worker.run_once()

    send(registry, 1)
    (by_plan,) = claims_of(worker)
    send(registry, 2)
    (planned,) = claims_of(worker)

    assert "EXECUTE" in by_plan
    assert "SKIP LOCKED" in planned
    assert numbers() == [1, 2]


def test_the_plan_that_is_kept_is_good_for_a_table_of_any_size():
    """Made where the table was empty, it asks the indexes, and looks at no more."""
    on_postgresql()
    worker = worker_of(registry_of(note))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE django_cqrs_outbox_outboxmessage")
        worker.run_once()
        worker.run_once()
        (name,) = worker.store._claims._prepared_names.values()
        cursor.execute(
            f"{BY_INDEX}; EXPLAIN EXECUTE {name}('outbox', 100, 2, 'me', 30)"
        )
        to_last_result(cursor)
        plan = "\n".join(line for (line,) in cursor.fetchall())

    assert "Seq Scan" not in plan
    assert re.findall(r"(?:Index|Bitmap|Only) Scan using (\w+)", plan) == [
        "cqrs_outbox_turn",
        "django_cqrs_outbox_outboxmessage_pkey",
    ]
    assert "Index Cond: (id = ANY (" in plan
    assert "Index Cond: (((channel)::text = $1) AND (state = 0))" in plan


@pytest.mark.parametrize("lost", ["by the session", "by the client"])
def test_a_session_that_loses_its_plans_loses_no_message(lost):
    """As behind a pooler, which hands each transaction to another session."""
    on_postgresql()
    registry = registry_of(note)
    worker = worker_of(registry)
    worker.run_once()
    worker.run_once()
    if lost == "by the session":
        with connection.cursor() as cursor:
            cursor.execute("DEALLOCATE ALL")
    else:
        worker.store._claims._prepared_names.clear()

    for number in (1, 2):
        send(registry, number)
        worker.run_once()
        worker.run_once()

    assert numbers() == [1, 2]
    assert not rows()


def test_a_failure_between_others_undoes_its_own_savepoint(caplog):
    """What came before it is kept, and what comes after is set anew."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        Note.objects.create(text="done", number=command.number)
        if command.number == 2:
            raise ValueError

    send(registry, 1, 2, 3)

    words = handled_with(registry, caplog)

    if connection.vendor == "postgresql":
        assert words.startswith(
            "INSERT | INSERT | ROLLBACK 1 | RELEASE 1 | INSERT | DELETE |"
        )
    assert numbers() == [1, 3]
    assert [letter.exception for letter in letters()] == ["builtins.ValueError"]


@pytest.mark.parametrize("culprit", [1, 2, 3])
def test_a_handler_that_ends_the_transaction_fails_alone(culprit):
    """Though it is seen at the next savepoint only, no other message is accused."""
    on_postgresql()
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        Note.objects.create(text="done", number=command.number)
        if command.number == culprit:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")

    send(registry, 1, 2, 3)

    tally = work(registry)

    assert numbers() == [n for n in (1, 2, 3) if n != culprit]
    assert (tally.handled, tally.dead) == (2, 1)
    assert [letter.payload for letter in map(as_sent, letters())] == [culprit]


def as_sent(letter):
    """Return a dead letter whose payload is the number that was sent."""
    letter.payload = int(re.search(rb'"number": ?(\d+)', bytes(letter.payload))[1])
    return letter


# ------------------------------------------------------------------------------- waking


def test_each_database_is_woken_for_itself(monkeypatch):
    """Messages that follow one another closely wake once, in each database."""
    on_postgresql()
    monkeypatch.setattr(OutboxChannel, "quiet_time", 10 * LIMIT)
    registry = registry_of(note)
    channels["outbox"]._last_notifications.clear()

    said = {}
    for alias in ("default", "other"):
        with CaptureQueriesContext(connections[alias]) as queries:
            with transaction.atomic(using=alias):
                send(registry, 1, 2, using=alias)
            send(registry, 3, using=alias)
        said[alias] = sum("NOTIFY" in each["sql"] for each in queries)

    assert said == {"default": 1, "other": 1}


def test_one_that_was_woken_in_vain_looks_again_soon(monkeypatch):
    """What follows closely on a message wakes nobody, and may be all that is left."""
    on_postgresql()
    registry = registry_of(note)
    monkeypatch.setattr(Worker, "listen_time", 10 * LIMIT)
    channel = channels["outbox"]
    workers = []

    def run():
        bounds = Bounds(messages=1)
        workers.append(Worker(registry, ["outbox"], using="default", bounds=bounds))
        try:
            workers[0].run()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: workers, seconds=LIMIT)
    try:
        time.sleep(0.6)  # now it does nothing but listen
        channel._last_notifications.clear()
        channel._notify(connection)  # for what another worker has taken
        monkeypatch.setattr(OutboxChannel, "quiet_time", 10 * LIMIT)
        time.sleep(0.05)
        send(registry, 1)
        wait_until(lambda: not rows(), seconds=LIMIT)
    finally:
        workers[0].stop()
        channel._last_notifications.clear()
        monkeypatch.undo()
        channel._notify(connection)
        thread.join(LIMIT)
    assert numbers() == [1]
