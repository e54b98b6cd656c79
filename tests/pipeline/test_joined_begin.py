"""BEGIN goes along with the first statement of a command, and nobody notices."""

from dataclasses import dataclass

import pytest
from django.db import DatabaseError, connection, transaction

from django_cqrs import EventBus, Registry, command_handler, event_handler, message
from django_cqrs.pipeline import joined_begin
from tests.outbox.support import on_databases, on_postgresql, traced
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases

TABLE = Note._meta.db_table
INSERT = f"INSERT INTO {TABLE} (text, number) VALUES ('', %s)"


class Refused(Exception):
    """What a handler raises on purpose."""


@pytest.fixture(autouse=True)
def _on_postgresql():
    on_postgresql()


def dispatch(act, **policies):
    """Dispatch a command whose handler is `act`."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", **policies)
    def do(command: Work):
        return act()

    return registry.command_bus.dispatch(Work(1, ""))


def write(number=1):
    with connection.cursor() as cursor:
        cursor.execute(INSERT, [number])


def numbers():
    return sorted(Note.objects.values_list("number", flat=True))


def test_a_command_with_one_statement_takes_two_round_trips():
    """The statement with the BEGIN before it, and the COMMIT."""
    connection.ensure_connection()

    with traced() as sent:
        dispatch(write)

    assert len(sent) == 2
    assert "BEGIN" in sent[0]
    assert "COMMIT" in sent[1]
    assert numbers() == [1]


@message("joined_begin.said")
@dataclass(frozen=True)
class Said:
    """What the command says."""

    number: int


def test_a_command_with_a_statement_and_a_message_takes_two_round_trips():
    """The message goes along with the COMMIT, while a worker is awake."""
    registry = Registry()

    @registry.add
    @command_handler(name="do")
    def do(command: Work, events: EventBus):
        write(command.number)
        events.publish(Said(command.number))

    @registry.add
    @event_handler(channel="outbox", name="hear")
    def hear(event: Said):
        pass

    registry.command_bus.dispatch(Work(1, ""))  # which wakes one
    with traced() as sent:
        registry.command_bus.dispatch(Work(2, ""))

    assert [each for each in sent if "NOTIFY" not in each] == sent[:2]
    assert "BEGIN" in sent[0]
    assert "COMMIT" in sent[1]
    assert numbers() == [1, 2]


def driver():
    return connection.connection


def by_raw_cursor():
    with driver().cursor() as cursor:
        cursor.execute(INSERT, [1])


def by_raw_connection():
    driver().execute(INSERT, [1])


def by_copy():
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {TABLE} (text, number) FROM STDIN") as copy,
    ):
        copy.write_row(("", 1))


def by_many():
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, [[1]])


def by_server_cursor():
    list(Note.objects.iterator())
    write()


def by_stream():
    with connection.cursor() as cursor:
        list(cursor.stream("SELECT 1"))
    write()


def by_several():
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1; {INSERT}", [1])
        assert cursor.fetchall() == [(1,)]
        assert cursor.nextset()
        assert cursor.rowcount == 1


def by_pipeline():
    with driver().pipeline(), driver().cursor() as cursor:
        cursor.execute(INSERT, [1])


def by_savepoint():
    with transaction.atomic():
        write()


def by_result():
    with connection.cursor() as cursor:
        cursor.execute(f"{INSERT} RETURNING number", [1])
        assert cursor.rowcount == 1
        assert cursor.fetchall() == [(1,)]
        assert cursor.nextset() is None


def by_function():
    with connection.cursor() as cursor:
        cursor.callproc("now")
        assert cursor.fetchone()[0]
    write()


def by_orm():
    Note.objects.create(text="", number=1)


WAYS = [
    by_copy,
    by_function,
    by_many,
    by_orm,
    by_pipeline,
    by_raw_connection,
    by_raw_cursor,
    by_result,
    by_savepoint,
    by_server_cursor,
    by_several,
    by_stream,
    write,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_any_first_use_of_the_connection_is_in_the_transaction(way):
    """What it has written is there if the command succeeds, and gone if it fails."""

    def fail():
        way()
        raise Refused

    with pytest.raises(Refused):
        dispatch(fail)
    assert numbers() == []
    assert connection.get_autocommit()

    dispatch(way)
    assert numbers() == [1]
    assert driver().cursor_factory.__module__ == "django.db.backends.postgresql.base"


FAILING = {
    "syntax": "SELECT FROM WHERE",
    "name": "SELECT nothing_of_this_name",
    "table": "INSERT INTO no_such_table VALUES (1)",
    "value": "SELECT 1 / 0",
    "constraint": f"INSERT INTO {TABLE} (text) VALUES (NULL)",
}


@pytest.mark.parametrize("text", FAILING.values(), ids=FAILING)
def test_a_first_statement_that_fails_ends_the_transaction(text):
    """The error is that of the statement alone, and the server refuses what follows."""
    seen = []

    def act():
        for statement, values in ((text, None), (INSERT, [1])):
            try:
                with connection.cursor() as cursor:
                    cursor.execute(statement, values)
            except DatabaseError as error:
                seen.append(error.__cause__)
        raise Refused

    with pytest.raises(Refused):
        dispatch(act)

    with pytest.raises(DatabaseError) as alone, connection.cursor() as cursor:
        cursor.execute(text)
    told = alone.value.__cause__
    assert (type(seen[0]), seen[0].diag.message_primary) == (
        type(told),
        told.diag.message_primary,
    )
    assert seen[1].sqlstate == "25P02"  # in_failed_sql_transaction
    assert numbers() == []


def test_parameters_that_do_not_fit_are_refused_as_ever():
    """Nothing was sent, and the transaction goes on."""

    def act():
        with pytest.raises(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT %s, %s", [1])
        write()

    dispatch(act)

    assert numbers() == [1]


def test_the_isolation_level_is_that_of_the_connection():
    """BEGIN says it, also where it goes along."""
    from psycopg import IsolationLevel

    connection.ensure_connection()
    driver().isolation_level = IsolationLevel.SERIALIZABLE
    seen = []

    def act():
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('transaction_isolation')")
            seen.append(cursor.fetchone()[0])

    try:
        dispatch(act)
    finally:
        driver().isolation_level = None
    assert seen == ["serializable"]


def test_a_first_statement_may_set_the_isolation_level():
    """It is the first one of the transaction."""

    def act():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT current_setting('transaction_isolation')")
            return cursor.fetchone()[0]

    assert dispatch(act) == "repeatable read"


def test_a_command_without_a_statement_leaves_nothing():
    """Whatever comes next is sent as ever."""
    dispatch(lambda: None)

    with traced() as sent:
        write()

    assert len(sent) == 1
    assert "BEGIN" not in sent[0]


def test_a_driver_without_the_parts_that_it_needs_sends_its_own_begin(monkeypatch):
    """Their names are psycopg's own affair."""
    monkeypatch.setattr(joined_begin, "_joining", {})
    monkeypatch.setattr(joined_begin, "_OF_CURSOR", ("no_such_name",))

    with traced() as sent:
        dispatch(write)

    assert len(sent) == 3
    assert numbers() == [1]
