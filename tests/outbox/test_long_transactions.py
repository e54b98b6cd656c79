"""Transactions that stay open, and slow workers down: who is told which they are."""

import io
import json
import re
import time
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection

from django_cqrs.outbox.health import find_problems
from django_cqrs.outbox.long_transactions import (
    LONG,
    LongTransaction,
    long_transactions,
)
from tests.outbox.support import (
    on_a_server,
    on_databases,
    on_postgresql,
    second_connection,
    wait_until,
)
from tests.testapp.models import Note

pytestmark = on_databases

BEGIN = {
    "postgresql": ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"],
    "mysql": ["START TRANSACTION WITH CONSISTENT SNAPSHOT"],
}
NUMBER = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}


@contextmanager
def opened(*statements):
    """Yield the session of a transaction that somebody has begun and not ended."""
    on_a_server()
    with second_connection() as other, other.cursor() as cursor:
        cursor.execute(NUMBER[connection.vendor])
        (number,) = cursor.fetchone()
        for each in statements or BEGIN[connection.vendor]:
            cursor.execute(each)
        if connection.vendor == "mysql":  # which says so a tenth of a second later
            wait_until(lambda: rested() and found(str(number)))
        yield str(number)
        cursor.execute("ROLLBACK")


def rested():
    """Rest: InnoDB renews its list only if nobody has read it for a tenth of a second."""
    time.sleep(0.2)
    return True


def found(session, **options):
    """Return what is found of a session; others may be on the server."""
    options.setdefault("longer_than", timedelta(0))
    return [each for each in long_transactions(**options) if each.session == session]


def test_the_session_that_holds_an_old_snapshot_is_named():
    """Its number is what the server's own tools end it by."""
    with opened() as session:
        (each,) = found(session)
        assert each.user == connection.settings_dict["USER"]
        assert 0 <= each.seconds < LONG.total_seconds()
        assert found(session, longer_than=LONG) == []

    wait_until(lambda: rested() and found(session) == [])


def test_a_session_that_has_written_and_does_nothing_is_named():
    """It keeps rows although it holds no snapshot between two statements."""
    on_a_server()
    write = f"INSERT INTO {Note._meta.db_table} (text, number) VALUES ('', 1)"
    with opened("BEGIN", write) as session:
        assert len(found(session)) == 1


def test_a_session_that_keeps_nothing_is_not_named():
    """On PostgreSQL one that has only read lets go of its snapshot."""
    on_postgresql()
    with opened("BEGIN", "SELECT 1") as session:
        assert found(session) == []


def test_the_session_that_asks_is_not_named():
    on_a_server()
    with opened(), connection.cursor() as cursor:
        for each in BEGIN[connection.vendor]:
            cursor.execute(each)
        cursor.execute(NUMBER[connection.vendor])
        (number,) = cursor.fetchone()
        assert found(str(number)) == []
        cursor.execute("ROLLBACK")


def test_the_zone_of_a_session_makes_no_transaction_older():
    with opened() as session, connection.cursor() as cursor:
        zone = {
            "postgresql": "SET TIME ZONE 'Asia/Tokyo'",
            "mysql": "SET time_zone='+09:00'",
        }
        cursor.execute(zone[connection.vendor])
        try:
            assert [each.seconds < LONG.total_seconds() for each in found(session)] == [
                True
            ]
        finally:
            connection.close()


def test_without_the_right_to_see_them_none_is_named():
    """That is no error: the outbox can be read."""
    on_a_server()
    if connection.vendor != "mysql":
        pytest.skip("A case for MySQL and MariaDB.")
    user, name = f"u{uuid4().hex[:12]}", connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE USER {user}@'%' IDENTIFIED BY 'word'")
        cursor.execute(f"GRANT SELECT ON `{name}`.* TO {user}@'%'")
    before = {key: connection.settings_dict[key] for key in ("USER", "PASSWORD")}
    try:
        with opened():
            connection.close()
            connection.settings_dict.update(USER=user, PASSWORD="word")
            assert long_transactions(longer_than=timedelta(0)) == []
            assert find_problems(max_transaction=timedelta(0)) == []
    finally:
        connection.close()
        connection.settings_dict.update(before)
        with connection.cursor() as cursor:
            cursor.execute(f"DROP USER {user}@'%'")


def test_sqlite_names_none():
    if connection.vendor != "sqlite":
        pytest.skip("A case for SQLite.")
    assert long_transactions(longer_than=timedelta(0)) == []


def test_a_long_transaction_is_a_problem_that_the_caller_bounds():
    """It says nothing of users and hosts, which a page for monitors may show."""
    with opened() as session:
        said = [
            re.sub(r"\d+:\d\d:\d\d", "AGE", str(each))
            for each in find_problems(max_transaction=timedelta(0))
            if each.kind == "transaction" and each.channel is None
        ]
        assert (
            f"The session {session} has had a transaction open for AGE, so that the "
            f"rows of handled messages stay and slow workers down."
        ) in said
        assert find_problems(max_transaction=None) == []
        assert find_problems() == []


@pytest.mark.parametrize(
    ("each", "said"),
    [
        (
            LongTransaction(
                session="4711",
                seconds=2700.9,
                user="ada",
                application="psql",
                state="idle in transaction",
            ),
            (
                "The session 4711 has had a transaction open for 0:45:00 (ada, psql, idle "
                "in transaction)."
            ),
        ),
        (
            LongTransaction(session="4711", seconds=2700),
            "The session 4711 has had a transaction open for 0:45:00.",
        ),
        (
            LongTransaction(
                session="4711", seconds=1, user="a\nb", application="c\r\nd"
            ),
            "The session 4711 has had a transaction open for 0:00:01 (a b, c d).",
        ),
        (
            LongTransaction(session="'gid'", seconds=90000, state="prepared"),
            (
                "The prepared transaction 'gid' has been open for 1 day, 1:00:00 "
                "(prepared)."
            ),
        ),
    ],
    ids=["with all", "with nothing", "with lines", "prepared"],
)
def test_the_operator_is_told_in_one_line_whose_transaction_it_is(each, said):
    assert each.described() == said


def test_the_figures_name_a_long_transaction(monkeypatch):
    """Under the table, and in JSON where there is one."""
    monkeypatch.setattr(
        "django_cqrs.outbox.management.commands.cqrs_stats.long_transactions",
        lambda using: long_transactions(using, longer_than=timedelta(0)),
    )

    def output_of(*arguments):
        stdout = io.StringIO()
        call_command("cqrs_stats", *arguments, stdout=stdout, no_color=True)
        return stdout.getvalue()

    with opened() as session:
        (each,) = found(session)
        begin = f"The session {session} has had a transaction open for "
        assert sum(line.startswith(begin) for line in output_of().splitlines()) == 1
        document = json.loads(output_of("--format", "json"))
        (shown,) = [
            each for each in document["long_transactions"] if each["session"] == session
        ]
        assert shown["user"] == each.user
        assert sorted(shown) == ["application", "seconds", "session", "state", "user"]
