"""A handler that fails leaves nothing in its database, by whatever way it wrote."""

import contextlib

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.models import F

from django_cqrs import Registry, command_handler
from django_cqrs.retries import Retry
from tests.outbox.support import letters, numbers, on_databases, rows, send, work
from tests.outbox.work import OtherWork, Work
from tests.testapp.models import Note

pytestmark = on_databases

ONCE = Retry(attempts=1)
TABLE = Note._meta.db_table


class Refused(Exception):
    """What a handler raises on purpose."""


def insertion(number, place="%s"):
    """Return an INSERT of a note, its text as a parameter, or in the statement."""
    return f"INSERT INTO {TABLE} (text, number) VALUES ({place}, {number})"


def by_the_orm(number, alias):
    Note.objects.using(alias).create(text="x", number=number)


def by_execute(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute(insertion(number), ["x"])


def by_executemany(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.executemany(insertion(number), [["x"], ["y"]])


def by_executemany_of_the_drivers_cursor(number, alias):
    mark = "?" if connections[alias].vendor == "sqlite" else "%s"
    with connections[alias].cursor() as cursor:
        cursor.cursor.executemany(insertion(number, mark), [["x"], ["y"]])


def by_the_cursor_behind_djangos(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.cursor.execute(insertion(number, "'x'"))


def by_a_cursor_of_the_driver(number, alias):
    connections[alias].ensure_connection()
    cursor = connections[alias].connection.cursor()
    cursor.execute(insertion(number, "'x'"))
    cursor.close()


def by_the_drivers_connection_kept_before(number, alias):
    KEPT[alias].cursor().execute(insertion(number, "'x'"))


def by_a_cursor_kept_before(number, alias):
    KEPT_CURSORS[alias].execute(insertion(number, "'x'"))


def by_a_block_of_the_driver(number, alias):
    driver = connections[alias].connection
    if connections[alias].vendor == "postgresql":
        with driver.transaction():
            driver.execute(insertion(number, "'x'"))
    else:
        driver.cursor().execute(insertion(number, "'x'"))


def by_a_savepoint_of_its_own(number, alias):
    with transaction.atomic(using=alias):
        by_a_cursor_of_the_driver(number, alias)


def by_an_update(number, alias):
    by_a_cursor_of_the_driver(number, alias)
    Note.objects.using(alias).filter(number=number).update(number=F("number") + 100)


def by_raw(number, alias):
    list(Note.objects.using(alias).raw(f"SELECT * FROM {TABLE} LIMIT 1"))
    by_the_cursor_behind_djangos(number, alias)


def after_an_iterator(number, alias):
    found = Note.objects.using(alias).all().iterator(chunk_size=1)
    next(found, None)
    by_the_cursor_behind_djangos(number, alias)


def by_a_nested_dispatch(number, alias):
    """Its own savepoint is released before the handler fails."""
    NESTED["bus"].dispatch(OtherWork(number), route=f"nested.{alias}")


def by_a_cursor_opened_before_the_first_statement(number, alias):
    with connections[alias].cursor() as first, connections[alias].cursor() as second:
        second.execute(f"SELECT COUNT(*) FROM {TABLE}")
        first.executemany(insertion(number), [["x"], ["y"]])


def by_a_cursor_that_the_last_message_opened(number, alias):
    """It was not used yet, and only the garbage collector knows that it is there."""
    if "last" in OPENED:
        OPENED.pop("last").execute(insertion(number), ["x"])
    else:
        by_execute(number, alias)
    OPENED["last"] = connections[alias].cursor()


def by_a_method_that_was_read_before(number, alias):
    with connections[alias].cursor() as cursor:
        execute = cursor.cursor.execute
        with connections[alias].cursor() as other:
            other.execute(f"SELECT COUNT(*) FROM {TABLE}")
        execute(insertion(number, "'x'"))
        execute(insertion(number, "'y'"))


def after_a_statement_that_the_driver_refused(number, alias):
    """It was never sent, so neither was a savepoint."""
    with connections[alias].cursor() as cursor:
        with contextlib.suppress(Exception):
            cursor.execute(f"SELECT COUNT(*) FROM {TABLE} WHERE text = %s", [])
        cursor.execute(insertion(number), ["x"])


def after_an_error_in_a_block(number, alias):
    with contextlib.suppress(DatabaseError), transaction.atomic(using=alias):
        by_execute(number + 100, alias)
        Note.objects.using(alias).raw("SELEKT 1").columns  # noqa: B018
    by_execute(number, alias)


def by_the_connection_behind_a_cursor(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {TABLE}")
        connection = cursor.cursor.connection
        connection.cursor().execute(insertion(number, "'x'"))


EVERYWHERE = [
    by_the_orm,
    by_execute,
    by_executemany,
    by_executemany_of_the_drivers_cursor,
    by_the_cursor_behind_djangos,
    by_a_cursor_of_the_driver,
    by_the_drivers_connection_kept_before,
    by_a_cursor_kept_before,
    by_a_block_of_the_driver,
    by_a_savepoint_of_its_own,
    by_an_update,
    by_raw,
    after_an_iterator,
    by_a_nested_dispatch,
    by_a_cursor_opened_before_the_first_statement,
    by_a_cursor_that_the_last_message_opened,
    by_a_method_that_was_read_before,
    after_a_statement_that_the_driver_refused,
    after_an_error_in_a_block,
    by_the_connection_behind_a_cursor,
]


def by_copy(number, alias):
    statement = f"COPY {TABLE} (text, number) FROM STDIN"
    with connections[alias].cursor() as cursor, cursor.copy(statement) as copy:
        copy.write_row(("x", number))
        copy.write_row(("y", number))


def by_copy_of_the_drivers_cursor(number, alias):
    statement = f"COPY {TABLE} (text, number) FROM STDIN"
    driver = connections[alias].connection
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(f"x\t{number}\n")


def by_callproc(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.callproc("add_note", [number])


def by_a_server_side_cursor(number, alias):
    with connections[alias].chunked_cursor() as cursor:
        cursor.execute("SELECT add_note(%s)", [number])
        cursor.fetchone()


def by_stream(number, alias):
    with connections[alias].cursor() as cursor:
        statement = f"{insertion(number)} RETURNING id"
        list(cursor.stream(statement, ["x"]))


def by_execute_of_the_drivers_connection(number, alias):
    connections[alias].connection.execute(insertion(number, "'x'"))


def by_the_session_of_the_driver(number, alias):
    connections[alias].connection.pgconn.exec_(insertion(number, "'x'").encode())


def by_a_pipeline(number, alias):
    driver = connections[alias].connection
    with driver.pipeline():
        driver.execute(insertion(number, "'x'"))


def after_a_table_was_made(number, alias):
    by_execute(number, alias)
    with connections[alias].cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE made_{number} (id integer)")


def by_two_statements_at_once(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute(f"{insertion(number)}; {insertion(number)}", ["x", "y"])


def by_a_composed_statement(number, alias):
    from psycopg import sql

    with connections[alias].cursor() as cursor:
        cursor.execute(sql.SQL(insertion(number)), ["x"])


def by_a_prepared_statement(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.cursor.execute(insertion(number), ["x"], prepare=True)


def by_the_session_behind_a_cursor(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.cursor._conn.pgconn.exec_(insertion(number, "'x'").encode())


def by_the_drivers_class_of_cursors(number, alias):
    from psycopg import ClientCursor

    with connections[alias].cursor() as cursor:
        ClientCursor.execute(cursor.cursor, insertion(number, "'x'"))


def by_a_query_with_a_write_in_it(number, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"WITH made AS ({insertion(number)} RETURNING id) SELECT * FROM made",
            ["x"],
        )


def by_query_of_the_drivers_connection(number, alias):
    connections[alias].connection.query(insertion(number, "'x'"))


def by_calling_the_connection(number, alias):
    connections[alias].connection.execute(f"SELECT '{alias}'").fetchone()
    connections[alias].connection.executemany(insertion(number, "?"), [["x"]])


WAYS = {
    "postgresql": [
        by_copy,
        by_copy_of_the_drivers_cursor,
        by_callproc,
        by_a_server_side_cursor,
        by_stream,
        by_execute_of_the_drivers_connection,
        by_the_session_of_the_driver,
        by_a_pipeline,
        by_two_statements_at_once,
        by_a_composed_statement,
        by_a_prepared_statement,
        by_the_session_behind_a_cursor,
        by_the_drivers_class_of_cursors,
        by_a_query_with_a_write_in_it,
        after_a_table_was_made,
    ],
    "mysql": [by_callproc, by_query_of_the_drivers_connection],
    "sqlite": [by_execute_of_the_drivers_connection, by_calling_the_connection],
}
KEEPING = by_a_cursor_kept_before, by_the_drivers_connection_kept_before
KEPT = {}
KEPT_CURSORS = {}
OPENED = {}
NESTED = {}


def ways():
    """Yield every way to write, with the servers that know it."""
    for way in EVERYWHERE:
        yield pytest.param(way, tuple(WAYS), id=way.__name__)
    for way in dict.fromkeys(each for some in WAYS.values() for each in some):
        vendors = tuple(vendor for vendor, some in WAYS.items() if way in some)
        yield pytest.param(way, vendors, id=way.__name__)


@pytest.fixture
def procedure():
    """Make what `callproc` calls, on both aliases."""
    for alias in ("default", "other"):
        with connections[alias].cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute(
                    "CREATE OR REPLACE FUNCTION add_note(n integer) RETURNS void "
                    f"LANGUAGE sql AS 'INSERT INTO {TABLE} (text, number) "
                    "VALUES (''x'', n)'"
                )
            elif connection.vendor == "mysql":
                cursor.execute("DROP PROCEDURE IF EXISTS add_note")
                cursor.execute(
                    "CREATE PROCEDURE add_note(IN n INTEGER) "
                    f"INSERT INTO {TABLE} (text, number) VALUES ('x', n)"
                )


@pytest.mark.parametrize("alias", ["default", "other"])
@pytest.mark.parametrize(("way", "vendors"), list(ways()))
def test_a_handler_that_fails_leaves_nothing_by_any_way_it_wrote(
    way, vendors, alias, procedure
):
    """
    Of five messages of one batch the second and the fourth fail after they wrote.

    What the others wrote is there, whichever way, and once. The handler's transaction
    is that of the alias that it names.
    """
    if connection.vendor not in vendors:
        pytest.skip("No way to this server.")
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=ONCE, using=alias)
    def do(command: Work):
        way(command.number, alias)
        if command.number % 2 == 0:
            raise Refused

    @registry.add
    @command_handler(f"nested.{alias}", using=alias)
    def nested(command: OtherWork):
        by_the_cursor_behind_djangos(command.number, alias)

    NESTED["bus"] = registry.command_bus
    if way in KEEPING:
        for each in connections:
            connections[each].ensure_connection()
            KEPT[each] = connections[each].connection
            KEPT_CURSORS[each] = connections[each].connection.cursor()
    send(registry, 1, 2, 3, 4, 5)

    for each in connections:
        work(registry, using=each)

    KEPT.clear()
    KEPT_CURSORS.clear()
    OPENED.clear()
    found = [number % 100 for number in numbers(alias)]
    assert list(dict.fromkeys(found)) == [1, 3, 5]
    assert [each.exception.rpartition(".")[2] for each in letters(alias)] == [
        "Refused"
    ] * 2
    assert rows(alias) == []


@pytest.mark.parametrize(("way", "vendors"), list(ways()))
def test_a_handler_that_fails_at_every_attempt_leaves_nothing(way, vendors, procedure):
    """Three attempts by each way, and no row is left of any of them."""
    if connection.vendor not in vendors:
        pytest.skip("No way to this server.")
    registry = Registry()
    attempts = []

    @registry.add
    @command_handler(
        name="do", channel="outbox", retry=Retry(attempts=3, delay=0, jitter=False)
    )
    def do(command: Work):
        attempts.append(command.number)
        way(command.number, "default")
        raise Refused

    @registry.add
    @command_handler("nested.default")
    def nested(command: OtherWork):
        by_the_cursor_behind_djangos(command.number, "default")

    NESTED["bus"] = registry.command_bus
    if way in KEEPING:
        KEPT["default"] = connection.connection
        KEPT_CURSORS["default"] = connection.connection.cursor()
    send(registry, 1)

    for _ in range(3):
        work(registry)

    KEPT.clear()
    KEPT_CURSORS.clear()
    OPENED.clear()
    assert numbers() == []
    assert attempts == [1, 1, 1]
    assert [each.attempts for each in letters()] == [3]
