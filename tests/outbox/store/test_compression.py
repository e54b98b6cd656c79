"""How the server compresses payloads: with lz4, where it can."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from tests.outbox.support import on_postgresql

pytestmark = [pytest.mark.database, pytest.mark.django_db]

migration = importlib.import_module(
    "django_cqrs.outbox.migrations.0007_lz4_payloads"
).Migration


def migrate(*, forwards=True):
    """Run the migration's operation; return the statements that it executed."""
    operation = migration.operations[0]
    run = operation.code if forwards else operation.reverse_code
    with CaptureQueriesContext(connection) as queries:
        run(apps, SimpleNamespace(connection=connection))
    return [query["sql"] for query in queries]


def compression_of(model):
    """Return the letter that PostgreSQL keeps for a payload: l, p, or none."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attcompression FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attname = 'payload'",
            [model._meta.db_table],
        )
        (letter,) = cursor.fetchone()
    return letter


def set_compression(name):
    with connection.cursor() as cursor:
        for model in (OutboxMessage, DeadLetter):
            cursor.execute(
                f"ALTER TABLE {model._meta.db_table} "
                f"ALTER COLUMN payload SET COMPRESSION {name}"
            )


def pretend_settings(enumvals):
    """Put a view of the server's settings before its own, in this transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY VIEW pg_settings AS SELECT "
            f"'default_toast_compression'::text AS name, {enumvals} AS enumvals"
        )
        cursor.execute("SET LOCAL search_path = pg_temp, pg_catalog, public")


def knows_lz4():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'"
        )
        row = cursor.fetchone()
    return row is not None and "lz4" in row[0]


def test_payloads_are_compressed_with_lz4():
    """A migrated database uses lz4 for messages and for dead letters."""
    on_postgresql()
    if not knows_lz4():
        pytest.skip("this server was built without lz4")

    assert [compression_of(each) for each in (OutboxMessage, DeadLetter)] == ["l", "l"]

    set_compression("pglz")
    migrate()

    assert [compression_of(each) for each in (OutboxMessage, DeadLetter)] == ["l", "l"]


@pytest.mark.parametrize("enumvals", ["ARRAY['pglz']", "NULL::text[]"])
def test_a_server_without_lz4_is_left_as_it_is(enumvals):
    """Nothing is tried that would fail, and undo the migration."""
    on_postgresql()
    pretend_settings(enumvals)

    (asked,) = migrate()

    assert "pg_settings" in asked


def test_a_server_that_does_not_have_the_setting_is_left_as_it_is():
    """PostgreSQL 13 has another set of settings, in which this one is missing."""
    on_postgresql()
    pretend_settings("ARRAY['pglz', 'lz4']")
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE OR REPLACE TEMPORARY VIEW pg_settings AS "
            "SELECT 'other'::text AS name, ARRAY['pglz', 'lz4'] AS enumvals"
        )

    (asked,) = migrate()

    assert "pg_settings" in asked


def test_other_databases_are_not_asked():
    """Only PostgreSQL has the setting, and going back changes nothing anywhere."""
    assert migrate(forwards=False) == []
    if connection.vendor != "postgresql":
        assert migrate() == []
