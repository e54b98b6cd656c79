from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import types
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import connection, connections, transaction

from django_cqrs import Registry, command_handler, event_handler
from django_cqrs.outbox.models import DeadLetter, InboxEntry, OutboxMessage, State
from django_cqrs.outbox.worker import Bounds, Worker
from tests.limits import LIMIT
from tests.outbox.work import Work
from tests.testapp.models import Note

on_databases = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]
"""Every test of a module commits, on whatever server the settings name."""


THREADS = 4

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

SOAKS = os.environ.get("CQRS_SOAK") == "1"
"""Whether the long tests run at their full size."""


def examples(say):
    """Return how many courses of events Hypothesis draws, and print it."""
    count = int(os.environ.get("CQRS_EXAMPLES") or (2_000 if SOAKS else 15))
    say(f"{count:,} courses of events")
    return count


def forget_zone():
    """
    Have the connections ask again which zone they are in.

    They keep it, and `django.db.connection` is only a proxy of one of them.
    """
    for each in connections.all():
        each.close()
        for name in ("timezone", "timezone_name"):
            vars(each).pop(name, None)


def on_a_server():
    if connection.vendor == "sqlite":
        pytest.skip("A case for a server with many connections.")


def on_postgresql():
    if connection.vendor != "postgresql":
        pytest.skip("A case for PostgreSQL.")


@contextmanager
def traced():
    """Yield a list, which afterwards holds a text for each round trip of libpq."""
    on_postgresql()
    if not sys.platform.startswith("linux"):
        pytest.skip("psycopg traces a session on Linux only.")
    sent = []
    with tempfile.TemporaryFile() as file:
        connection.ensure_connection()
        connection.connection.pgconn.trace(file.fileno())
        try:
            yield sent
        finally:
            connection.connection.pgconn.untrace()
            file.seek(0)
            lines = file.read().decode().splitlines()
    assert sum("\tReadyForQuery\t" in each for each in lines) == sum(
        "\tQuery\t" in each for each in lines
    )
    sent += [each.partition("\tQuery\t")[2] for each in lines if "\tQuery\t" in each]


def own_session():
    """Return the server's number of the connection of this thread."""
    function = {"postgresql": "pg_backend_pid", "mysql": "connection_id"}
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {function[connection.vendor]}()")
        return cursor.fetchone()[0]


def end_session(number):
    """Have the server end a connection, and wait until it has."""
    statements = {
        "postgresql": (
            "SELECT pg_terminate_backend(%s)",
            "SELECT count(*) FROM pg_stat_activity WHERE pid = %s",
        ),
        "mysql": (
            "KILL %s",
            "SELECT count(*) FROM information_schema.processlist WHERE id = %s",
        ),
    }
    end, count = statements[connection.vendor]

    def is_gone():
        cursor.execute(count, [number])
        return cursor.fetchone()[0] == 0

    with second_connection() as other, other.cursor() as cursor:
        cursor.execute(end, [number])
        wait_until(is_gone)


def registry_of(*functions, **policies):
    """Return a registry of command handlers of Work, on the channel "outbox"."""
    registry = Registry()
    for function in functions:
        named = {"name": function.__name__, **policies}
        registry.add(command_handler(channel="outbox", **named)(_copy(function)))
    return registry


def subscribers(*functions, **policies):
    """Return a registry of event handlers of Work, on the channel "outbox"."""
    registry = Registry()
    for function in functions:
        named = event_handler(channel="outbox", name=function.__name__, **policies)
        registry.add(named(_copy(function)))
    return registry


def _copy(function):
    """Return a function that can be decorated once more."""
    copied = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__annotations__ = dict(function.__annotations__)
    copied.__module__ = function.__module__
    return copied


def worker_of(registry, *, using="default", channels=("outbox",), **options):
    bounds = {"until_empty": True, **options.pop("bounds", {})}
    return Worker(registry, channels, using=using, bounds=Bounds(**bounds), **options)


def work(registry, **options):
    """Handle what is ready; return the tally."""
    return worker_of(registry, **options).run()


def send(registry, *numbers, how="write", **options):
    for number in numbers:
        registry.command_bus.dispatch(Work(number, how), **options)


def note(command: Work):
    """A handler that writes what it was given."""
    Note.objects.create(text=command.how, number=command.number)


def numbers(using="default"):
    """What the handlers have written, in order."""
    return list(
        Note.objects.using(using).order_by("pk").values_list("number", flat=True)
    )


def rows(using="default"):
    return list(OutboxMessage.objects.using(using).order_by("sequence"))


def letters(using="default"):
    return list(DeadLetter.objects.using(using).order_by("pk"))


def state_of(*numbers):
    """Return the states of what waits, by the number in the payload."""
    found = {json.loads(bytes(row.payload))["number"]: row.state for row in rows()}
    states = {number: State(state).name for number, state in found.items()}
    return [states.get(number) for number in numbers] if numbers else states


def make_due(**changes):
    """Have what is delayed fall due."""
    OutboxMessage.objects.filter(state=1).update(available_at="2000-01-01T00:00:00Z")


@contextmanager
def second_connection(alias="default"):
    """Yield a connection to the same database that shares nothing with the test's."""
    other = connections[alias].copy()
    try:
        yield other
    finally:
        other.close()


@contextmanager
def processes(count=1, *, lease=1.0, batch=100):
    """Run workers in processes of their own; yield a function that starts another."""
    running = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.outbox.work", str(lease), str(batch)],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                **database(),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    for _ in range(count):
        start()
    try:
        yield start
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.communicate()


def database():
    """Return the environment in which the settings name the test's own database."""
    config = connection.settings_dict
    if connection.vendor == "sqlite":
        return {"DATABASE_URL": f"sqlite:///{config['NAME']}"}
    user = config["USER"] + (f":{config['PASSWORD']}" if config["PASSWORD"] else "")
    scheme, port = "postgres", 5432
    if connection.vendor == "mysql":
        scheme, port = "mysql", 3306
    place = f"{config['HOST'] or '127.0.0.1'}:{config['PORT'] or port}"
    return {"DATABASE_URL": f"{scheme}://{user}@{place}/{config['NAME']}"}


def wait_until(condition, seconds=LIMIT):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not happen in time."
        time.sleep(0.01)


def entries(using="default"):
    """Return whose keys are remembered, and which."""
    found = InboxEntry.objects.using(using).order_by("pk")
    return [(each.endpoint, each.key) for each in found]


def age_keys(span):
    """Let time pass for what is remembered."""
    for each in InboxEntry.objects.all():
        created_at = each.created_at - span
        InboxEntry.objects.filter(pk=each.pk).update(created_at=created_at)


def at_once(function, count=THREADS):
    """Call a function in threads at the same time; return what they returned."""
    start, results = threading.Barrier(count), []

    def run():
        try:
            start.wait()
            results.append(function())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(results) == count
    return results


def store_many(count, **columns):
    """Store messages that have waited since the year 2000, straight into the table."""
    OutboxMessage.objects.bulk_create(
        OutboxMessage(
            **{
                "channel": "outbox",
                "endpoint": "note",
                "payload": b"{}",
                "headers": b"{}",
                "message_id": uuid4(),
                "correlation_id": uuid4(),
                "sent_at": LONG_AGO + timedelta(seconds=number),
                "sequence": number,
                **columns,
            }
        )
        for number in range(count)
    )


def rows_read(function):
    """Return how many rows and entries of indexes the database reads for something."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            steps = []
            connection.connection.set_progress_handler(lambda: steps.append(1), 100)
            function()
            connection.connection.set_progress_handler(None, 0)
            return 100 * len(steps)
        # MySQL and MariaDB keep these figures in tables of different names.
        statement = (
            "SHOW SESSION STATUS LIKE 'Handler_read%'"
            if connection.vendor == "mysql"
            else "SELECT relname, pg_stat_get_xact_tuples_returned(oid) + "
            "pg_stat_get_xact_tuples_fetched(oid) FROM pg_class "
            "WHERE relname LIKE 'cqrs_%' OR relname LIKE 'django_cqrs_%'"
        )

        def count():
            cursor.execute(statement)
            return sum(int(figure) for _, figure in cursor.fetchall())

        with transaction.atomic():
            before = count()
            function()
            return count() - before


def analyze():
    with connection.cursor() as cursor:
        for model in (OutboxMessage, DeadLetter):
            table = connection.ops.quote_name(model._meta.db_table)
            noun = "TABLE " if connection.vendor == "mysql" else ""
            cursor.execute(f"ANALYZE {noun}{table}")
