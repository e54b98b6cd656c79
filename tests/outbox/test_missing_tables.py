"""What the commands say where the tables of the outbox, or the database, are not there."""

from __future__ import annotations

import io
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections

from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.models import (
    DeadLetter,
    InboxEntry,
    JournalEntry,
    OutboxMessage,
    Throughput,
)
from django_cqrs.outbox.outcomes import outcome_of
from tests.outbox.support import on_databases

pytestmark = on_databases

MODELS = (OutboxMessage, DeadLetter, InboxEntry, Throughput, JournalEntry)
COMMANDS = [
    ("cqrs_worker", "outbox", "--until-empty"),
    ("cqrs_worker", "outbox", "--max-seconds", "600"),
    ("cqrs_stats",),
    ("cqrs_failed", "list"),
    ("cqrs_failed", "show", "1"),
    ("cqrs_failed", "waiting"),
    ("cqrs_failed", "replay", "--all"),
    ("cqrs_failed", "delete", "--all", "--no-input"),
    ("cqrs_prune",),
]


@pytest.fixture
def renamed():
    """Take the tables away for a test, as if nobody had migrated."""
    names = [model._meta.db_table for model in MODELS]
    with connection.schema_editor() as editor:
        for model, name in zip(MODELS, names, strict=True):
            editor.alter_db_table(model, name, f"{name}_gone")
    yield
    with connection.schema_editor() as editor:
        for model, name in zip(MODELS, names, strict=True):
            editor.alter_db_table(model, f"{name}_gone", name)


def refusal_of(*arguments):
    with pytest.raises(CommandError) as caught:
        call_command(*arguments, stdout=io.StringIO(), stderr=io.StringIO())
    return caught.value.returncode, str(caught.value)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_names_migrate_where_there_are_no_tables(renamed, arguments, caplog):
    """One error and exit code 1, at once: no waiting brings tables."""
    code, text = refusal_of(*arguments)

    assert code == 1
    assert text.startswith(
        "The database 'default' does not have the outbox tables that this version "
        "needs ("
    )
    assert text.endswith("). Create them: python manage.py migrate --database default")
    assert "\n" not in text
    assert caplog.messages == []


def test_a_worker_names_migrate_where_a_column_is_missing():
    """So it does where the tables are those of an older version."""
    field = OutboxMessage._meta.get_field("last_error")
    with connection.schema_editor() as editor:
        editor.remove_field(OutboxMessage, field)
    try:
        with pytest.raises(
            CommandError, match=r"last_error.*migrate --database default$"
        ):
            call_command("cqrs_failed", "waiting", stdout=io.StringIO())
    finally:
        with connection.schema_editor() as editor:
            editor.add_field(OutboxMessage, field)


@pytest.mark.parametrize(
    "arguments", [each for each in COMMANDS if each[0] != "cqrs_worker"], ids=" ".join
)
def test_a_command_says_that_its_database_is_out_of_reach(monkeypatch, arguments):
    """In one line, with what the driver says."""
    other = connections["other"]
    if other.vendor == "sqlite":
        pytest.skip("A case for a server.")
    other.close()
    monkeypatch.setitem(other.settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(other.settings_dict, "PORT", "1")

    code, text = refusal_of(*arguments, "--database", "other")

    assert code == 1
    assert text.startswith("The database 'other' is unavailable: ")
    assert "\n" not in text


def test_what_became_of_a_message_names_migrate_where_there_are_no_tables(renamed):
    """The error names the database and the id, and what to do."""
    message_id = uuid4()

    with pytest.raises(InvalidOption, match="has no outbox tables") as caught:
        outcome_of(message_id)

    assert str(message_id) in str(caught.value)
    assert "manage.py migrate --database=default" in str(caught.value)
