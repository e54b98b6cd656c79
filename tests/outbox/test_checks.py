"""What `check --database` says of the outbox's tables."""

from __future__ import annotations

import sys

import pytest
from django.core.checks import run_checks
from django.db import connection, connections, transaction

from django_cqrs import Registry, command_handler
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, ReplayBatch
from tests.outbox.support import on_databases

pytestmark = on_databases

TABLE = OutboxMessage._meta.db_table


class NowhereElse:
    """A router that lets the outbox migrate to no database."""

    def allow_migrate(self, db, app_label, **hints):
        return False if app_label == "django_cqrs_outbox" else None


@pytest.fixture
def without_table():
    """Give the outbox's table another name for a test."""
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {quote(TABLE)} RENAME TO {quote('cqrs_away')}")
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {quote('cqrs_away')} RENAME TO {quote(TABLE)}")


def said(*databases):
    return [
        (each.id, each.hint)
        for each in run_checks(databases=databases)
        if each.id.startswith("django_cqrs_outbox")
    ]


def test_tables_as_they_should_be_are_no_problem():
    assert said("default", "other") == []


@pytest.mark.usefixtures("without_table")
@pytest.mark.parametrize(
    ("routers", "hint"),
    [
        ([], "Run manage.py migrate --database=default."),
        (
            ["tests.outbox.test_checks.NowhereElse"],
            (
                "Let allow_migrate of your router allow 'django_cqrs_outbox' there, "
                "and run manage.py migrate --database=default."
            ),
        ),
    ],
)
def test_E002_no_table_where_messages_are_sent(settings, routers, hint):
    """Handlers run on that database, and a channel would store their messages there."""
    settings.DATABASE_ROUTERS = routers
    assert said("default") == [("django_cqrs_outbox.E002", hint)]
    assert said() == []


@pytest.mark.usefixtures("without_table")
def test_the_first_migrate_is_not_warned_of_what_it_is_about_to_make(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["manage.py", "migrate"])
    assert said("default") == []


@pytest.mark.usefixtures("without_table")
def test_a_message_that_finds_no_table_is_refused_with_the_reason():
    """The error says which database has none, and what to do."""

    @command_handler("later", name="later", channel="outbox")
    def later(text: str) -> None: ...

    registry = Registry()
    registry.add(later)
    with pytest.raises(InvalidChannel) as raised, transaction.atomic():
        registry.command_bus.dispatch("x", route="later")
    assert str(raised.value) == (
        "Channel 'outbox' cannot store a message for later: the database 'default', "
        "which holds its data, has no outbox tables. Run manage.py migrate "
        "--database=default; a router must allow 'django_cqrs_outbox' there."
    )


@pytest.mark.parametrize(
    ("model", "column", "null"),
    [
        (OutboxMessage, "causation_id", "NULL"),
        (DeadLetter, "message_id", "NOT NULL"),
        (ReplayBatch, "request", "NOT NULL"),
    ],
)
def test_E003_ids_that_an_older_MariaDB_has_made_texts_of(model, column, null):
    """The hint is the statement that makes them what Django writes, in every table."""
    other = connections["default"]
    if other.vendor != "mysql" or not other.features.has_native_uuid_field:
        pytest.skip("A case for MariaDB, which has uuid since 10.7.")
    table = model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} MODIFY {column} char(32) {null}")
    ((number, hint),) = said("default")
    statement = f"ALTER TABLE {table} MODIFY {column} uuid {null};"
    assert number == "django_cqrs_outbox.E003"
    assert hint == f"Stop the workers, then run: {statement}"
    with connection.cursor() as cursor:
        cursor.execute(statement)
    assert said("default") == []
