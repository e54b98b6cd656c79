"""Migrations, dumps, and commands that set sequences: the store stays as it was."""

import io
import os
import shutil
import subprocess
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection, connections

from django_cqrs import event_handler
from django_cqrs.events import EventStore, Projections, projection
from django_cqrs.events.models import StoredEvent, Stream
from django_cqrs.events.positions import FUNCTIONS
from django_cqrs.events.store_faults import faults_of_setup
from tests.events.projections.support import OrderPlaced, project
from tests.events.support import Added, numbers, on_databases, only_on, store

pytestmark = on_databases

APP = "django_cqrs_events"


seen: list[int] = []


@projection("upgraded", on_demand=True)
class UpgradedOrders:
    @event_handler
    def placed(self, event: OrderPlaced):
        seen.append(event.number)


def is_sound():
    return list(faults_of_setup(connection)) == []


def functions():
    """Return the names of our functions that PostgreSQL has."""
    if connection.vendor != "postgresql":
        return set()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT proname FROM pg_proc WHERE proname = ANY (%s)", [list(FUNCTIONS)]
        )
        return {name for (name,) in cursor.fetchall()}


def test_e39_1_the_models_are_those_of_the_migration():
    """With the Django that is installed: nothing is left to write. [E39.1]"""
    call_command("makemigrations", APP, check=True, dry_run=True, verbosity=0)


def test_e39_2_the_migration_goes_backwards_and_forwards():
    """Tables and functions are gone, and come back as they were. [E39.2]"""
    store.append(Added(1), stream="counter-1")
    present = functions()
    try:
        call_command("migrate", APP, "zero", verbosity=0)
        tables = connection.introspection.table_names()
        assert [each for each in tables if each.startswith(APP)] == []
        assert functions() == set()
    finally:
        call_command("migrate", APP, verbosity=0)

    assert functions() == present
    assert is_sound()
    assert store.append(Added(2), stream="counter-1").version == 1
    assert store.settled() == store.head()


@pytest.fixture
def restored():
    """Return a function that restores a dump into a new database, by its alias."""
    only_on("postgresql")
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed.")
    given, other = connection.settings_dict, connections["other"]
    usual = other.settings_dict["NAME"]
    name = f"restored_{uuid4().hex[:12]}"
    environment = {
        **os.environ,
        "PGHOST": given["HOST"] or "",
        "PGPORT": str(given["PORT"] or ""),
        "PGUSER": given["USER"] or "",
        "PGPASSWORD": given["PASSWORD"] or "",
    }

    def run(*command, **options):
        done = subprocess.run(
            command, env=environment, check=True, capture_output=True, **options
        )
        return done.stdout

    def restore():
        whole = run("pg_dump", "--no-owner", given["NAME"])
        run("createdb", name)
        run("psql", "--quiet", "--set=ON_ERROR_STOP=1", name, input=whole)
        other.close()
        other.settings_dict["NAME"] = name
        return other.alias

    yield restore
    other.close()
    other.settings_dict["NAME"] = usual
    run("dropdb", "--if-exists", name)


def test_e39_3_a_dump_in_a_new_database_goes_on(restored):
    """Positions go on; a follower sees what it has not seen, and that once. [E39.3]"""
    seen.clear()
    registry = project(UpgradedOrders)
    before = EventStore("default", registry=registry)
    before.append([OrderPlaced(1), OrderPlaced(2)], stream="order-1")
    Projections("default", registry=registry).run("upgraded")
    last = before.append(OrderPlaced(3), stream="order-1").position

    alias = restored()
    after = EventStore(alias, registry=registry)
    assert after.settled() == after.head() == last
    assert list(faults_of_setup(connections[alias])) == []
    place = after.append(OrderPlaced(4), stream="order-1")
    assert (place.position, place.version) == (last + 1, 4)
    assert after.settled() == last + 1

    assert seen == [1, 2]
    Projections(alias, registry=registry).run("upgraded")
    assert seen == [1, 2, 3, 4]


def flush():
    """Empty all tables as ``manage.py sqlflush`` says."""
    written = io.StringIO()
    call_command("sqlflush", stdout=written, no_color=True)
    with connection.cursor() as cursor:
        for statement in written.getvalue().split(";\n"):
            if statement.strip():
                cursor.execute(statement)


def truncate():
    """Empty the tables, with the sequence of positions."""
    tables = f"{StoredEvent._meta.db_table}, {Stream._meta.db_table}"
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {tables} RESTART IDENTITY")


@pytest.mark.parametrize("empty", [flush, truncate])
def test_e39_4_an_emptied_store_begins_anew(empty):
    """The sequence belongs to the column, so that it is set back with it. [E39.4]"""
    only_on("postgresql")
    store.append([Added(1), Added(2)], stream="counter-1")

    empty()

    assert store.head() == store.settled() == 0
    assert store.append(Added(3), stream="counter-1") == ("counter-1", 1, 1)
    assert store.settled() == 1
    assert is_sound()


def test_e39_4_loaded_fixtures_are_followed_by_new_events(tmp_path):
    """`loaddata` sets the sequence to the last event that it has loaded. [E39.4]"""
    only_on("postgresql")
    last = store.append([Added(1), Added(2)], stream="counter-1").position
    file = tmp_path / "events.json"
    models = [f"{APP}.stream", f"{APP}.storedevent"]
    call_command("dumpdata", *models, output=str(file), verbosity=0)
    flush()

    call_command("loaddata", str(file), verbosity=0)

    assert store.head() == store.settled() == last
    place = store.append(Added(3), stream="counter-1")
    assert (place.position, place.version) == (last + 1, 3)
    assert numbers(store.read("counter-1")) == [1, 2, 3]
    assert is_sound()
