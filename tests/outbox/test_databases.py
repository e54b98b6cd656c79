"""What holds on every database, and that it is judged there."""

import ast
import json
import os
import re
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from django.db import connection, connections, transaction

from django_cqrs import (
    CommandBus,
    Registry,
    Retry,
    command_handler,
    event_handler,
)
from django_cqrs.channels import channels
from tests.channels.support import Placed
from tests.channels.test_channels_messages import PLACED, PLACED_JSON, PUBLISHED
from tests.limits import LIMIT
from tests.outbox.support import (
    letters,
    numbers,
    on_databases,
    rows,
    send,
    worker_of,
)
from tests.outbox.work import OtherWork, Work
from tests.support import registry_of as knowing
from tests.testapp.models import Note

ROOT = Path(__file__).resolve().parents[2]
on_this_server = [pytest.mark.database, pytest.mark.django_db]

# ---------------------------------------------------------------------- the matrix, stored


def marked(marks):
    """Return a decorator of several marks."""

    def decorate(function):
        for mark in marks:
            function = mark(function)
        return function

    return decorate


@marked(on_this_server)
@pytest.mark.parametrize("annotation", [Placed, object, dict])
@pytest.mark.parametrize("published", list(PUBLISHED))
def test_the_matrix_over_a_row(published, annotation):
    """What a handler gets out of the outbox is what one that is called at once gets. [B05.6]"""
    stored, at_once = [], []
    registry = knowing(
        Placed,
        listener(annotation, "outbox", stored),
        listener(annotation, None, at_once),
    )

    PUBLISHED[published](registry.event_bus)
    assert channels["outbox"].run(registry=registry) == 1

    assert stored == at_once
    assert [type(each) for each in stored] == [type(each) for each in at_once]
    assert stored[0] in (PLACED, PLACED_JSON)


def listener(annotation, channel, seen):
    """Return an event handler that keeps what it gets."""

    @event_handler("channels.placed", name=f"on_placed.{channel}", channel=channel)
    @event_handler("placed.by.key")
    def on_placed(event: annotation):
        seen.append(event)

    return on_placed


@marked(on_this_server)
@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (UUID, UUID(int=7)),
        (Decimal, Decimal("1.10")),
        (datetime, datetime(2026, 7, 1, 12, 30, 15, 123456, tzinfo=UTC)),
        (list[int], [1, 2]),
        (dict[str, UUID], {"a": UUID(int=1)}),
        (str, "ä\0\N{PILE OF POO}"),
        (int | None, None),
        (bytes, b"abc"),
        (object, {"a": [1, None, 2.5, True]}),
    ],
    ids=str,
)
def test_a_value_over_a_row(annotation, value):
    """No database changes a byte of what is stored. [B05.6]"""
    seen = []
    registry = Registry()

    @registry.add
    @command_handler("take", name="take", channel="outbox")
    def take(value: annotation):
        seen.append(value)

    registry.command_bus.dispatch(value, route="take")
    channels["outbox"].run(registry=registry)

    assert seen == [value]


# --------------------------------------------------------------------- judged everywhere


@marked(on_this_server)
def test_the_server_is_the_one_that_is_named():
    """A column of the tests is what its heading says. [C10.1]"""
    scheme = os.environ.get("DATABASE_URL", "sqlite:").partition(":")[0]
    names = {
        "postgres": {"PostgreSQL"},
        "postgresql": {"PostgreSQL"},
        "mariadb": {"MariaDB"},
        "mysql": {"MariaDB", "MySQL"},  # which speak the same protocol
        "sqlite": {"SQLite"},
    }

    assert connection.display_name in names[scheme]


def test_continuous_integration_judges_on_both_servers():
    """What carries the marker runs on PostgreSQL and on MariaDB, and nothing is left out. [C10.1]"""
    script = (ROOT / ".ci" / "run").read_text()
    runs = dict(
        re.findall(r"\bDATABASE_URL=\$(\w+)_URL (?:beside )?(on_server)\b", script)
    )
    (chosen,) = re.findall(
        r"^on_server\(\) \{ pytest_\w+ (.*); \}$", script, re.MULTILINE
    )

    assert runs == {"POSTGRES": "on_server", "MARIADB": "on_server"}
    assert re.fullmatch(r"(-n \w+ )?-m database( --durations=\d+)?", chosen)
    assert "skip" not in script.partition("await_server()")[2].partition("}")[0]
    # What runs beside another is waited for, and its failure is one of the script.
    begun = re.findall(r"^(?:\S+=\S+ )*beside \w", script, re.MULTILINE)
    assert len(begun) == script.count('join "$status"\n')


CASES = {
    "b05": [6],
    "b14": [4],
    "c01": range(1, 5),
    "c02": range(1, 5),
    "c03": range(1, 7),
    "c04": range(1, 4),
    "c05": range(1, 6),
    "c06": range(1, 5),
    "c07": range(1, 4),
    "c08": range(1, 5),
    "c09": range(1, 6),
    "c10": range(1, 3),
}
"""What is promised on every database, by section of the acceptance cases."""


def is_marked(node):
    """Return whether an expression names the marker, or the list that holds it."""
    return any(
        (isinstance(each, ast.Attribute) and each.attr == "database")
        or (
            isinstance(each, ast.Name) and each.id in ("on_databases", "on_this_server")
        )
        for each in ast.walk(node)
    )


def functions_of(body, marked):
    """Yield the docstrings of tests, and whether each test carries the marker."""
    for node in body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "pytestmark"
        ):
            marked = marked or is_marked(node.value)
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions_of(node.body, marked)
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = ast.get_docstring(node) or ""
            yield text, marked or any(map(is_marked, node.decorator_list))


def test_every_case_has_tests_that_run_on_every_database():
    """A case that is promised there and only tested on SQLite would be a mere claim. [C10.1]"""
    named, judged = set(), set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for text, is_there in functions_of(
            ast.parse(path.read_text()).body, marked=False
        ):
            cases = set(re.findall(r"\b[A-Z]\d\d\.\d+\b", text.rpartition("[")[2]))
            named |= cases
            if is_there:
                judged |= cases
    wanted = {
        f"{section}.{n}".upper() for section, cases in CASES.items() for n in cases
    }
    wanted |= {each for each in named if re.fullmatch(r"C\d\d\.\d+|B14\.4", each)}

    assert wanted - judged == set()


# ------------------------------------------------------------------------ two databases


@marked(on_databases)
def test_workers_of_two_databases_do_not_meet():
    """Each handles its own outbox, in the transactions of its own database. [C10.2]"""
    registries = {alias: registry_on(alias) for alias in ("default", "other")}
    for number in range(20):
        alias = ("default", "other")[number % 2]
        send(registries[alias], number, using=alias)
    # The handlers of both know of both: what is not theirs they are not given.
    both = Registry()
    for alias in registries:
        both.add(handler_on(alias))
    tallies = {}

    def handle(alias):
        try:
            tallies[alias] = worker_of(both, using=alias, batch=3).run().handled
        finally:
            connections.close_all()

    threads = [threading.Thread(target=handle, args=[each]) for each in registries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)

    assert tallies == {"default": 10, "other": 10}
    assert numbers() == list(range(0, 20, 2))
    assert numbers("other") == list(range(1, 20, 2))
    assert rows() == rows("other") == []


def handler_on(alias):
    """Return a handler of messages that are sent on a database, and writes there."""

    @command_handler(f"{alias}.do", name=f"{alias}.do", channel="outbox", using=alias)
    def do(number: int):
        assert connections[alias].in_atomic_block
        Note.objects.using(alias).create(text=alias, number=number)

    return do


def registry_on(alias):
    """Return a registry with that handler, and a command of Work that sends to it."""
    registry = Registry()
    registry.add(handler_on(alias))

    @registry.add
    @command_handler(name="send", using=alias)
    def pass_on(command: Work, commands: CommandBus):
        commands.dispatch(command.number, route=f"{alias}.do")

    return registry


@marked(on_databases)
def test_each_outbox_commits_with_its_own_data():
    """One database rolls back, and takes no message of the other with it. [C10.2]"""
    registry = Registry()

    @registry.add
    @command_handler(name="here", channel="outbox")
    def here(command: Work): ...

    @registry.add
    @command_handler(name="there", channel="outbox", using="other")
    def there(command: OtherWork): ...

    def send_both():
        with transaction.atomic():
            registry.command_bus.dispatch(Work(1))
            registry.command_bus.dispatch(OtherWork(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        send_both()

    assert rows() == []
    assert [json.loads(bytes(row.payload)) for row in rows("other")] == [{"number": 2}]


@marked(on_databases)
def test_dead_letters_stay_in_their_database():
    """What failed there is fixed there. [C10.2]"""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        raise ValueError(command.number)

    send(registry, 1, using="other")
    worker_of(registry, using="default").run()
    worker_of(registry, using="other").run()

    assert (len(letters()), len(letters("other"))) == (0, 1)
