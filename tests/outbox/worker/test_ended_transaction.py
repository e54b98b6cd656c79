"""A handler that ends the transaction it was called in, or leaves its session unfit."""

from collections import Counter

import pytest
from django.db import connection, transaction

from django_cqrs import CommandBus, Registry, command_handler
from django_cqrs.retries import Retry
from tests.outbox.support import (
    letters,
    numbers,
    on_databases,
    rows,
    second_connection,
    send,
    work,
)
from tests.outbox.work import OtherWork, Work
from tests.testapp.models import Note

pytestmark = on_databases

TABLE = Note._meta.db_table
TWICE = Retry(attempts=2, delay=0, jitter=False)


class Refused(Exception):
    """What a handler raises on purpose."""


def statements(*texts):
    """Return what executes statements by the driver, after the ORM was used."""

    def do():
        with connection.cursor() as cursor:
            for text in texts:
                cursor.execute(text)

    do.__name__ = " ".join(texts)
    return do


def commit_of_the_driver():
    connection.connection.commit()


def executescript():
    connection.connection.executescript("SELECT 1;")


COMMITS = {
    "postgresql": [
        statements("COMMIT"),
        statements("COMMIT", "BEGIN"),
        statements("COMMIT", "SELECT 1"),
        commit_of_the_driver,
    ],
    "mysql": [
        statements("COMMIT"),
        statements("START TRANSACTION"),
        statements("SET autocommit = 1"),
        statements("TRUNCATE TABLE testapp_reading"),
        statements(f"LOCK TABLES {TABLE} WRITE"),
        statements(f"LOCK TABLES {TABLE} WRITE", "UNLOCK TABLES"),
        statements("CREATE TABLE IF NOT EXISTS made (id integer)", "DROP TABLE made"),
        commit_of_the_driver,
    ],
    "sqlite": [
        statements("COMMIT"),
        statements("COMMIT", "BEGIN"),
        commit_of_the_driver,
        executescript,
    ],
}

every_commit = pytest.mark.parametrize(
    "commit",
    [
        pytest.param((vendor, commit), id=f"{vendor}: {commit.__name__}")
        for vendor, some in COMMITS.items()
        for commit in some
    ],
)


def of_this_server(case):
    vendor, function = case
    if connection.vendor != vendor:
        pytest.skip("No case for this server.")
    return function


def registry_with(end, *, fails=False, retry=TWICE, calls=None, **policies):
    """
    Return a registry whose handlers write, and one ends the transaction at 3 and 13.

    Both were called before, so that neither is taken for slow.
    """
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=retry, **policies)
    def do(command: Work):
        if calls is not None:
            calls.append(command.number)
        Note.objects.create(text="x", number=command.number)

    @registry.add
    @command_handler(name="end", channel="outbox", retry=retry, **policies)
    def end_it(command: OtherWork):
        if calls is not None:
            calls.append(command.number)
        Note.objects.create(text="x", number=command.number)
        if command.number in (3, 13):
            end()
            if fails:
                raise Refused

    send(registry, 100)
    registry.command_bus.dispatch(OtherWork(100))
    work(registry)
    Note.objects.all().delete()
    if calls is not None:
        calls.clear()
    return registry


def send_around(registry, *before, culprit=3, after=()):
    send(registry, *before)
    registry.command_bus.dispatch(OtherWork(culprit))
    send(registry, *after)


@every_commit
def test_a_handler_that_commits_is_named_and_called_once(commit):
    """
    Its neighbours are handled once, those before it and those after it.

    What it wrote is saved, so that another attempt would write it again: it is now a
    dead letter at once, whose error names it.
    """
    calls = []
    registry = registry_with(of_this_server(commit), calls=calls)
    send_around(registry, 1, 2, after=(4, 5))

    tally = work(registry)

    assert sorted(calls) == [1, 2, 3, 4, 5]
    assert numbers() == [1, 2, 3, 4, 5]
    assert (tally.handled, tally.failed, tally.dead) == (4, 1, 1)
    (letter,) = letters()
    assert (letter.endpoint, letter.attempts) == ("end", 1)
    assert letter.exception == "django_cqrs.exceptions.BrokenTransaction"
    assert letter.error == (
        "end ended the transaction on 'default' in which it was called: with a "
        "COMMIT or ROLLBACK that bypassed Django, with another connection, or with a "
        "statement that commits, such as LOCK TABLES, or on MySQL and MariaDB "
        "TRUNCATE and any statement that changes a schema. Its earlier writes are "
        "saved. Let the channel end the transaction, or give the handler "
        "atomic=False to have it called outside a transaction."
    )
    assert rows() == []


@every_commit
def test_a_handler_that_commits_and_fails_is_tried_as_its_policy_says(commit):
    """Each attempt counts, and calls no neighbour again."""
    calls = []
    registry = registry_with(of_this_server(commit), fails=True, calls=calls)
    send_around(registry, 1, 2, after=(4, 5))

    for _ in range(3):
        work(registry)

    assert Counter(calls) == {1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
    (letter,) = letters()
    assert letter.exception.rpartition(".")[2] == "Refused"
    assert letter.attempts == 2
    assert "end ended the transaction on 'default'" in letter.traceback
    assert rows() == []


@every_commit
def test_a_handler_that_has_committed_once_is_called_alone_from_then_on(commit):
    """What was handled before it in the claim is committed when it is called."""
    commit = of_this_server(commit)
    seen = []

    def end():
        with second_connection() as other, other.cursor() as cursor:
            cursor.execute(f"SELECT number FROM {TABLE} ORDER BY id")
            seen.append([number for (number,) in cursor.fetchall()])
        commit()

    registry = registry_with(end)
    send_around(registry, 1, culprit=3)
    work(registry)
    send_around(registry, 11, 12, culprit=13, after=(14,))

    work(registry)

    assert {11, 12} <= set(seen[1])
    assert sorted(numbers()) == [1, 3, 11, 12, 13, 14]
    assert [each.endpoint for each in letters()] == ["end", "end"]


@every_commit
def test_what_was_sent_before_a_commit_is_sent_and_what_its_handler_sent_is_not(commit):
    """Callbacks of `on_commit` likewise: each of a neighbour's runs, once."""
    commit = of_this_server(commit)
    called = []
    registry = Registry()

    @registry.add
    @command_handler(name="tell", channel="outbox")
    def tell(command: Work, commands: CommandBus):
        commands.dispatch(command.number, route="heard")
        transaction.on_commit(lambda: called.append(command.number))
        Note.objects.create(text="told", number=command.number)
        if command.number == 3:
            commit()

    @registry.add
    @command_handler("heard", name="heard", channel="outbox")
    def heard(number: int):
        Note.objects.create(text="heard", number=number)

    send(registry, 1, 2, 3, 4)

    work(registry)
    work(registry)

    told = Note.objects.order_by("number").values_list("text", "number")
    assert [n for text, n in told if text == "told"] == [1, 2, 3, 4]
    assert [n for text, n in told if text == "heard"] == [1, 2, 4]
    assert called == [1, 2, 4]
    assert [each.endpoint for each in letters()] == ["tell"]


def rollback_of_the_driver():
    connection.connection.rollback()


ROLLBACKS = [statements("ROLLBACK"), rollback_of_the_driver]


@pytest.mark.parametrize("rollback", ROLLBACKS, ids=["ROLLBACK", "of the driver"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_handler_that_rolls_back_undoes_no_neighbour(rollback, fails):
    """What the others wrote is written again, and is there once."""
    calls = []
    retry = Retry(attempts=1)
    registry = registry_with(rollback, fails=fails, retry=retry, calls=calls)
    send_around(registry, 1, 2, after=(4, 5))

    tally = work(registry)

    assert sorted(numbers()) == [1, 2, 4, 5]
    assert (tally.handled, tally.dead) == (4, 1)
    assert calls.count(3) in (1, 2)
    (letter,) = letters()
    name = "Refused" if fails else "BrokenTransaction"
    assert letter.exception.rpartition(".")[2] == name
    assert rows() == []


LEFTOVERS = {
    "postgresql": [
        statements("SET search_path TO nowhere"),
        statements("SET SESSION AUTHORIZATION pg_monitor"),
    ],
    "mysql": [
        statements(f"LOCK TABLES {TABLE} WRITE"),
        statements("USE information_schema"),
    ],
    "sqlite": [
        statements("PRAGMA query_only = 1"),
    ],
}


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "leave",
    [
        pytest.param((vendor, leave), id=f"{vendor}: {leave.__name__}")
        for vendor, some in LEFTOVERS.items()
        for leave in some
    ],
)
def test_an_attempt_counts_whatever_a_handler_has_left_in_its_session(
    leave, fails, atomic
):
    """It is not called without end: each attempt is followed by another session."""
    calls = []
    leave = of_this_server(leave)
    retry = Retry(attempts=1)
    registry = registry_with(
        leave, fails=fails, calls=calls, retry=retry, atomic=atomic
    )
    send_around(registry, culprit=3)

    try:
        tally = work(registry)
    finally:
        connection.close()

    assert rows() == []
    assert calls in ([3], [3, 3])
    assert tally.handled + tally.dead == 1
    if fails:
        (letter,) = letters()
        assert (letter.exception.rpartition(".")[2], letter.attempts) == ("Refused", 1)
