"""A savepoint goes along with a handler's first statement, and nobody notices."""

import contextlib
import logging
import re

import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import Registry, command_handler
from django_cqrs.outbox.worker.savepoints import Savepoints
from django_cqrs.retries import Retry
from tests.outbox.support import (
    letters,
    note,
    numbers,
    on_databases,
    on_postgresql,
    registry_of,
    rows,
    send,
    traced,
    work,
    worker_of,
)
from tests.outbox.work import OtherWork, Work
from tests.testapp.models import Note

pytestmark = [*on_databases, pytest.mark.usefixtures("undivided_batches")]

TABLE = Note._meta.db_table
ONCE = Retry(attempts=1)


class Refused(Exception):
    """What a handler raises on purpose."""


def write(number):
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {TABLE} (text, number) VALUES ('', %s)", [number])


def registry_that(act, **policies):
    """Return a registry whose handler of Work is `act`, of the number."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=ONCE, **policies)
    def do(command: Work):
        act(command.number)

    @registry.add
    @command_handler(name="idle", channel="outbox", retry=ONCE)
    def idle(command: OtherWork):
        IDLE.append(command.number)

    IDLE.clear()
    return registry


IDLE = []


# --------------------------------------------------------------------------- round trips


def test_a_hundred_messages_with_one_statement_take_a_round_trip_each():
    """At most ten more are for the claim, and for the ends of two transactions."""
    registry = registry_of(note)
    worker = worker_of(registry)
    send(registry, 0)
    worker.run_once()
    send(registry, *range(1, 101))

    with traced() as sent:
        worker.run_once()

    assert numbers() == list(range(101))
    assert not rows()
    assert len(sent) <= 110


def test_one_message_with_one_statement_takes_five_round_trips():
    """The claim, BEGIN, the statement, the DELETE and COMMIT."""
    registry = registry_of(note)
    worker = worker_of(registry)
    for number in (0, 1):
        send(registry, number)
        worker.run_once()
    send(registry, 2)

    with traced() as sent:
        worker.run_once()

    begin = next(n for n, each in enumerate(sent) if "BEGIN" in each)
    end = next(n for n, each in enumerate(sent) if "COMMIT" in each)
    assert end - begin == 3
    assert numbers() == [0, 1, 2]


def test_a_handler_with_several_statements_costs_no_more_than_these():
    """Also its own blocks, and results that it reads, leave the next savepoint free."""

    def act(number):
        list(Note.objects.filter(number=number))
        with transaction.atomic():
            write(number)
        Note.objects.filter(number=number).update(text="x")

    registry = registry_that(act)
    worker = worker_of(registry)
    send(registry, 0)
    worker.run_once()
    send(registry, 1, 2, 3)

    with traced() as sent:
        worker.run_once()

    begin = next(n for n, each in enumerate(sent) if "BEGIN" in each)
    end = next(n for n, each in enumerate(sent) if "COMMIT" in each)
    assert end - begin - 1 == 3 * 5 + 1  # and the DELETE
    assert numbers() == [0, 1, 2, 3]


def test_a_batch_ends_before_it_has_too_many_savepoints():
    """PostgreSQL remembers 64 of a transaction where others find them quickly."""
    registry = registry_of(note)
    worker = worker_of(registry)
    send(registry, 0)
    worker.run_once()
    send(registry, *range(1, 101))

    with traced() as sent:
        worker.run_once()

    set_between_commits = [0]
    for each in sent:
        set_between_commits[-1] += bool(re.search(r"(?<!RELEASE )SAVEPOINT", each))
        if "COMMIT" in each:
            set_between_commits.append(0)
    assert sum(set_between_commits) == 100
    assert max(set_between_commits) < 64


# ------------------------------------------------------------- what the handler gets back

STATEMENTS = {
    "rows that were written": (
        f"INSERT INTO {TABLE} (text, number) VALUES (%s, 1), ('50%%', 2) RETURNING text",
        ["; DROP"],
    ),
    "no parameters": (f"INSERT INTO {TABLE} (text, number) VALUES ('50%', 2)", None),
    "rows that were changed": (f"UPDATE {TABLE} SET text = %s", ["changed"]),
    "rows that were deleted": (f"DELETE FROM {TABLE} WHERE number = %s", [9]),
    "rows that were read": (f"SELECT number, text FROM {TABLE}", []),
    "a union": (f"(SELECT number FROM {TABLE}) UNION (SELECT 10)", []),
    "no rows": ("SELECT 1 WHERE 1 = %s", [0]),
    "a semicolon at the end": ("SELECT 1, 'a';", None),
    "a semicolon in a literal": ("SELECT 'a;b'", None),
    "several statements": ("SELECT 1; SELECT 2, 3", None),
    "a comment before": ("/* traced */ SELECT 1", None),
    "a comment after": ("SELECT 1 -- traced", None),
    "lower case": ("select 1", None),
    "bytes": (b"SELECT 1", None),
    "another kind": ("SET LOCAL lock_timeout = 100", None),
    "nothing": ("", None),
}


def results_of(query, params):
    """Return all that a cursor says of a statement."""
    with connection.cursor() as cursor:
        returned = cursor.execute(query, params)
        assert returned is cursor.cursor
        found = []
        while True:
            found += [
                cursor.rowcount,
                cursor.statusmessage,
                cursor.description and [each.name for each in cursor.description],
                cursor.fetchall() if cursor.description else None,
                cursor.rownumber,
            ]
            if not cursor.nextset():
                break
        found.append(len(cursor.cursor._results))
        found.append(connection.ops.last_executed_query(cursor.cursor, query, params))
    return found


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
@pytest.mark.parametrize("place", [1, 2])
def test_a_first_statement_says_what_it_says_elsewhere(statement, place):
    """With the savepoint alone before it, and with the release of another one."""
    on_postgresql()
    wanted, found = [], []

    def act(number):
        Note.objects.create(text="there", number=9)

    def read(number):
        found.append(results_of(*statement))

    registry = registry_that(lambda number: (act if number < place else read)(number))
    Note.objects.create(text="there", number=9)
    with transaction.atomic():
        for _ in range(1, place):
            act(0)
        wanted.append(results_of(*statement))
        transaction.set_rollback(True)
    send(registry, *range(1, place + 1))

    tally = work(registry)

    assert (tally.handled, tally.dead) == (place, 0)
    assert found == wanted


def test_wrappers_and_logs_see_the_handlers_own_text(caplog):
    """And an error shows the line of the statement that it is about."""
    on_postgresql()
    seen = []

    def keep(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    registry = registry_of(note, retry=ONCE)
    send(registry, 1, 2)
    with (
        caplog.at_level(logging.DEBUG, "django.db.backends"),
        CaptureQueriesContext(connection),
        connection.execute_wrapper(keep),
    ):
        work(registry)

    logged = [each.sql for each in caplog.records if hasattr(each, "sql")]
    assert not [each for each in (*seen, *logged) if "SAVEPOINT" in each]
    assert sum(each.startswith(f'INSERT INTO "{TABLE}"') for each in seen) == 2
    assert sum(each.startswith(f'INSERT INTO "{TABLE}"') for each in logged) == 2

    registry = registry_that(lambda number: results_of("SELECT nothing", None))
    send(registry, 3)
    work(registry)
    (letter,) = letters()
    assert ": SELECT nothing\n" in letter.error
    assert "SAVEPOINT" not in letter.error


# ------------------------------------------------------------------ what goes wrong there


ERRORS = {
    "a syntax error": "SELECT FROM WHERE",
    "an unfinished literal": "SELECT 'a",
    "a wrong place in a literal": "SELECT E'\\u00'",
    "a missing table": "SELECT * FROM missing",
    "an error of one row": "SELECT 1 / (number - 2) FROM testapp_note",
    "too few parameters": "SELECT %s",
}


@pytest.mark.parametrize("catches", [False, True])
@pytest.mark.parametrize("error", ERRORS)
def test_a_first_statement_that_is_wrong_fails_alone(error, catches, caplog):
    """
    The server reads all of a text before it does the first part of it.

    So with an error of syntax no savepoint was set, and the whole batch is handled
    again, one by one. From then on the handler's savepoint goes by itself.
    """

    def act(number):
        if number % 2 or number == 0:
            write(number)
            return
        with contextlib.suppress(DatabaseError if catches else ()):
            results_of(ERRORS[error], () if "%s" in ERRORS[error] else None)
        raise Refused

    registry = registry_that(act)
    send(registry, 0)
    work(registry)
    found = []
    for numbers_sent in ((1, 2, 3), (5, 7, 8, 9)):
        caplog.clear()
        send(registry, *numbers_sent)
        with caplog.at_level(logging.WARNING, "django_cqrs.worker"):
            tally = work(registry)
        found.append((tally.handled, tally.failed, tally.dead))
        undone = [each for each in caplog.messages if "was rolled back" in each]

    assert found == [(2, 1, 1), (3, 1, 1)]
    assert sorted(numbers()) == [0, 1, 3, 5, 7, 9]
    assert not rows()
    assert undone == []  # it was learnt at the first time


def test_a_statement_that_the_driver_refuses_may_be_followed_by_another():
    """It was not sent, and so neither was a savepoint."""
    on_postgresql()

    def act(number):
        with connection.cursor() as cursor:
            with contextlib.suppress(DatabaseError):
                cursor.execute("SELECT %s", ())
            cursor.execute(f"INSERT INTO {TABLE} (text, number) VALUES ('', {number})")
        if number in (1, 3):
            raise Refused

    registry = registry_that(act)
    send(registry, 0)
    work(registry)
    send(registry, 1, 2, 3)

    tally = work(registry)

    assert (tally.handled, tally.dead) == (1, 2)
    assert numbers() == [0, 2]


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("after", ["nothing", "idle", "one that writes"])
def test_a_handler_that_ends_the_transaction_and_goes_on_is_noticed(statement, after):
    """Before the next handler is called, and before the messages are settled."""
    on_postgresql()
    calls = []

    def act(number):
        calls.append(number)
        write(number)
        if number == 3:
            with connection.cursor() as cursor:
                cursor.execute(statement)
            write(number + 100)

    registry = registry_that(act)
    send(registry, 0)
    registry.command_bus.dispatch(OtherWork(0))
    work(registry)
    calls.clear()
    IDLE.clear()
    send(registry, 1, 2, 3)
    if after == "idle":
        registry.command_bus.dispatch(OtherWork(4))
    elif after == "one that writes":
        send(registry, 4)

    tally = work(registry)

    is_saved = statement == "COMMIT"
    others = 2 + (after != "nothing")
    assert (tally.handled, tally.dead) == (others, 1)
    written = {0, 1, 2} | ({4} if after == "one that writes" else set())
    assert set(numbers()) - {3, 103} == written
    assert len(numbers()) == len(set(numbers()))
    assert ([4] if after == "idle" else []) == IDLE
    assert not rows()
    if is_saved:
        assert len(calls) == len(set(calls))


# --------------------------------------------------------------------- other circumstances


def test_cursors_of_another_class_have_their_savepoints_by_themselves():
    """A tool that traces statements makes a class of its own."""
    on_postgresql()
    from django.db.backends.postgresql.base import Cursor

    texts = []

    class Traced(Cursor):
        def execute(self, query, *args, **options):
            texts.append(query)
            return super().execute(query, *args, **options)

    def act(number):
        write(number)
        if number == 2:
            raise Refused

    registry = registry_that(act)
    send(registry, 0)
    work(registry)
    connection.connection.cursor_factory = Traced
    send(registry, 1, 2, 3)
    try:
        work(registry)
    finally:
        connection.close()

    assert numbers() == [0, 1, 3]
    own = [each for each in texts if f"INSERT INTO {TABLE}" in each]
    assert len(own) == 3
    assert not [each for each in own if "SAVEPOINT" in each]


def test_savepoints_within_a_block_of_others_have_names_of_their_own():
    """A worker may run in a handler: the inner failure is not taken for the outer."""
    on_postgresql()
    with transaction.atomic():
        outer = Savepoints(connection)
        with outer.around("outer"):
            write(1)
            with transaction.atomic():
                inner = Savepoints(connection)
                with contextlib.suppress(Refused), inner.around("inner"):
                    write(2)
                    raise Refused
                with inner.around("inner"):
                    write(3)
            inner = Savepoints(connection)
            with contextlib.suppress(DatabaseError), inner.around("inner"):
                results_of("SELECT FROM WHERE", None)
            write(4)
        outer.release()

    assert numbers() == [1, 3, 4]
