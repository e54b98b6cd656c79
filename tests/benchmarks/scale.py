"""Many routes, many handlers, many messages."""

from __future__ import annotations

import gc
import json
import linecache
import os
import statistics
import subprocess
import sys
import tempfile
import tracemalloc
import types
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from time import process_time
from unittest.mock import patch

from django.core.management import call_command

from django_cqrs import (
    Registry,
    checks,
    command_bus,
    command_handler,
    event_bus,
    event_handler,
    query_bus,
)
from django_cqrs.exceptions import NoHandlerFound
from django_cqrs.interception import before, pointcut
from django_cqrs.management.commands import cqrs_graph, cqrs_routes
from django_cqrs.schema_lock import examination
from tests.benchmarks.measuring import (
    Comparison,
    Contestant,
    in_blocks,
    no_collection,
    statement,
)
from tests.benchmarks.results import Row, compared
from tests.benchmarks.shop import handlers, messages
from tests.benchmarks.shop.models import Shelf

FEW = 10


# ------------------------------------------------------------------------ many routes


def many_routes(many: int, *, rounds: int) -> list[Row]:
    """Compare the dispatch among so many routes with that among ten."""
    names = {count: f"dispatch() among {count:,} routes" for count in (FEW, many)}
    registries = {count: _registry_of(count) for count in names}
    rows = []
    for way, arguments in (
        ("by class", "command"),
        ("by routing key", "command, route=route"),
    ):
        contestants = [
            statement(
                name,
                f"command_bus.dispatch({arguments})",
                command_bus=registries[count][0].command_bus,
                command=registries[count][1],
                route=f"order.{count - 1}",
            )
            for count, name in names.items()
        ]
        comparison = in_blocks(contestants, rounds=rounds)
        section = f"Many routes, {way}"
        rows.append(compared(comparison, section, names[many], names[FEW], bound=1.1))
    return rows


def _registry_of(count: int) -> tuple[Registry, object]:
    """
    Return a registry, and the last of its commands.

    There are so many of them, each handled by its class and by a key, and all in use.
    """
    registry = Registry()
    commands = []
    for number in range(count):
        command_class = type(f"Order{number}", (), {"__slots__": ()})

        @command_handler(atomic=False, name=f"by class {number}")
        def by_class(command: command_class) -> None:
            pass

        @command_handler(f"order.{number}", atomic=False, name=f"by key {number}")
        def by_key(command: command_class) -> None:
            pass

        registry.add(by_class)
        registry.add(by_key)
        commands.append(command_class())
    for number, command in enumerate(commands):
        registry.command_bus.dispatch(command)
        registry.command_bus.dispatch(command, route=f"order.{number}")
    return registry, commands[-1]


def listing(few: int, many: int, *, rounds: int) -> list[Row]:
    """
    Compare ``manage.py cqrs_routes`` for many handlers with it for a tenth of them.

    Work that is linear takes ten times as long, what the command itself takes once.
    """
    rows = []
    for kind, count in (("plain", 0), ("with three interceptors", 3)):
        contestants = [
            _command_with_routes(handled, interceptors=count) for handled in (few, many)
        ]
        comparison = Comparison([each.name for each in contestants])
        with no_collection():
            for _ in range(rounds):
                for each in contestants:
                    comparison.times[each.name].append(each.seconds(1))
        base, other = (each.name for each in contestants)
        section = f"cqrs_routes, {kind}"
        rows.append(compared(comparison, section, other, base, bound=10))
    return rows


def _command_with_routes(count: int, *, interceptors: int) -> Contestant:
    registry, _last = _registry_of(count // 2)
    for number in range(interceptors):

        @before(pointcut.handler("*"), precedence=number)
        def look(command: object) -> None:
            pass

        registry.add(look)

    def seconds(number: int) -> float:
        # The listing and the checks, which the command reports, of one registry.
        with (
            patch.object(cqrs_routes, "registry", registry),
            patch.object(checks, "registry", registry),
        ):
            start = process_time()
            for _ in range(number):
                call_command("cqrs_routes", stdout=StringIO(), stderr=StringIO())
            return process_time() - start

    return Contestant(f"{count:,} handlers", seconds)


SENDING_HANDLERS = """
@dataclass(frozen=True, slots=True)
class Begin{n}:
    number: int

@dataclass(frozen=True, slots=True)
class Begun{n}:
    number: int

@command_handler
def begin_{n}(command: Begin{n}, events: EventBus) -> None:
    check_{n}(command)
    events.publish(Begun{n}(command.number))

def check_{n}(command):
    if command.number > 1:
        command_bus.dispatch(Begin{n}(command.number - 1))

@event_handler
def on_begun_{n}(event: Begun{n}, commands: CommandBus) -> None:
    if event.number:
        commands.dispatch({{"number": 0}}, route="begin.{n}")
"""
SENDING_IMPORTS = """
from dataclasses import dataclass

from django_cqrs import CommandBus, EventBus, command_bus, command_handler, event_handler
"""


def graph(handlers: int, *, rounds: int) -> list[Row]:
    """Compare ``manage.py cqrs_graph`` of so many handlers with their listing."""
    own = f"cqrs_graph of {handlers:,} handlers"
    base = "twice their cqrs_routes, and 1 s"
    comparison = Comparison([base, own])
    module = "sending_handlers"
    registry = Registry()
    source = SENDING_IMPORTS + "".join(
        SENDING_HANDLERS.format(n=n) for n in range(handlers // 2)
    )
    written = _written(source, module)
    for name in list(vars(written)):
        if name.startswith(("begin_", "on_begun_")):
            registry.add(getattr(written, name))
    with (
        patch.object(cqrs_routes, "registry", registry),
        patch.object(checks, "registry", registry),
        patch.object(cqrs_graph, "registry", registry),
    ):
        for _ in range(rounds):
            taken = {}
            for command in ("cqrs_routes", "cqrs_graph"):
                gc.collect()
                printed, start = StringIO(), process_time()
                call_command(command, stdout=printed, stderr=StringIO())
                taken[command] = process_time() - start
                if printed.getvalue().count("on_begun_") < handlers // 2:
                    msg = f"{command} shows too little"
                    raise AssertionError(msg)
            comparison.times[base].append(2 * taken["cqrs_routes"] + 1)
            comparison.times[own].append(taken["cqrs_graph"])
    section = "The message graph (CPU time)"
    return [compared(comparison, section, own, base, bound=1)]


def pairs(many: int, *, rounds: int) -> list[Row]:
    """Compare the search for the action of a factory's message among so many."""
    names = {count: f"among {count:,} handlers" for count in (FEW, many)}
    contestants = []
    for count, name in names.items():
        registry, _last = _registry_of(count // 2)
        registry.add(Shelf)
        factory = next(each for each in registry.routes.endpoints if each.is_factory)
        contestants.append(
            statement(
                name,
                "with_action(factory, command)",
                with_action=registry.routes.with_action,
                factory=factory,
                command=messages.PlaceOnShelf("A"),
            )
        )
    comparison = in_blocks(contestants, rounds=rounds)
    section = "The action of a factory's message"
    return [compared(comparison, section, names[many], names[FEW], bound=1.2)]


# --------------------------------------------------------------------------- start-up

IMPORTED_FIRST = """
import importlib, json, sys
from time import process_time

names = json.loads(sys.argv[1])
start = process_time()
for name in names:
    importlib.import_module(name)
between = process_time()
import django_cqrs
print(json.dumps([between - start, process_time() - between]))
"""
IMPORTED = """
import json, sys

import django_cqrs
print(json.dumps([m for m in sys.modules if m.partition(".")[0] in ("asgiref", "django")]))
"""


def imports(*, rounds: int) -> list[Row]:
    """Compare ``import django_cqrs`` with the import of Django's modules before it."""
    names = _output_of(IMPORTED)
    base = "Django's modules"
    own = "import django_cqrs"
    comparison = Comparison([base, own])
    for _ in range(rounds):
        of_django, of_own = json.loads(_output_of(IMPORTED_FIRST, names))
        comparison.times[base].append(of_django)
        comparison.times[own].append(of_own)
    return [compared(comparison, "Import (CPU time)", own, base)]


def _output_of(program: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout


TYPICAL_HANDLERS = """
@dataclass(frozen=True, slots=True)
class PlaceOrder{n}:
    order_id: UUID
    lines: list[str]
    total: Decimal = Decimal(0)

@dataclass(frozen=True, slots=True)
class GetOrder{n}:
    order_id: UUID

@dataclass(frozen=True, slots=True)
class OrderPlaced{n}:
    order_id: UUID

@command_handler
def place_order_{n}(
    command: PlaceOrder{n},
    events: EventBus,
    executor_id: Annotated[int, Header("executor_id")],
) -> UUID:
    return command.order_id

@query_handler
def get_order_{n}(query: GetOrder{n}) -> list[str]:
    return []

@event_handler
def on_order_placed_{n}(event: OrderPlaced{n}, commands: CommandBus) -> None:
    pass

@command_handler("order.{n}.close")
def close_order_{n}(order_id: UUID, message: Message, note: str | None = None) -> None:
    pass
"""
IMPORTS = """
from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from django_cqrs import (
    CommandBus, EventBus, Header, Message, command_handler, event_handler, query_handler
)
"""
PER_GROUP = 4


def start_up(handlers: int, *, rounds: int) -> list[Row]:
    """Take the time from declared handlers to a route table, as ``ready()`` does."""
    taken = []
    for turn in range(rounds):
        functions = list(_declared(handlers, module=f"typical_handlers_{turn}"))
        registry = Registry()
        gc.collect()
        start = process_time()
        for function in functions:
            registry.add(function)
        table = registry.routes
        taken.append(process_time() - start)
        if len(table.endpoints) != handlers or table.problems:
            msg = f"{len(table.endpoints)} endpoints, {table.problems}"
            raise AssertionError(msg)
    return [
        Row(
            section="Start-up",
            what=f"{handlers:,} handlers added and compiled (CPU time)",
            value=statistics.median(taken),
            unit="s",
            low=min(taken),
            high=max(taken),
            bound=0.3,
            rounds=rounds,
        )
    ]


def _declared(count: int, *, module: str) -> Iterator[object]:
    """Yield the handlers of a module that is written, imported and forgotten here."""
    groups = count // PER_GROUP
    source = IMPORTS + "".join(TYPICAL_HANDLERS.format(n=n) for n in range(groups))
    written = _written(source, module)
    for n in range(groups):
        for name in ("place_order", "get_order", "on_order_placed", "close_order"):
            yield getattr(written, f"{name}_{n}")


def _written(source: str, module: str) -> types.ModuleType:
    """Return a new module with a text that tools can read, as they read a file's."""
    written = types.ModuleType(module)
    sys.modules[module] = written
    file = f"<{module}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), vars(written))
    return written


# ------------------------------------------------------------------------- lock files

LOCKED_CLASSES = """
@message("locked.event_{n}")
@dataclass(frozen=True, slots=True)
class Event{n}(Event):
    event_id: UUID
    number: int
    amount: Decimal
    lines: list[str]
    note: str = ""
"""
LOCKED_IMPORTS = """
from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from django_cqrs import event_handler, message

@dataclass(frozen=True, slots=True)
class Event: pass

@event_handler(channel="orders")
def keep(event: Event) -> None: ...
"""


def lock_check(classes: int, *, rounds: int) -> list[Row]:
    """Compare ``cqrs_schema --check`` of many classes with their import."""
    base = f"the import of {classes:,} message classes, and 1 s"
    own = "cqrs_schema --check of them"
    comparison = Comparison([base, own])
    source = LOCKED_IMPORTS + "".join(
        LOCKED_CLASSES.format(n=n) for n in range(classes)
    )
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / examination.FILE
        with patch.object(examination, "FILE", str(lock)):
            registry, _ = _imported(source, turn=0)
            [text] = examination.examine(registry, [SHOP]).texts.values()
            lock.write_text(text, encoding="utf-8")
            for turn in range(1, rounds + 1):
                registry, seconds = _imported(source, turn=turn)
                gc.collect()
                start = process_time()
                found = examination.examine(registry, [SHOP])
                comparison.times[own].append(process_time() - start)
                comparison.times[base].append(seconds + 1)
                if found.findings or found.texts or len(found.classes) <= classes:
                    msg = f"{len(found.classes)} classes, {found.findings[:3]}"
                    raise AssertionError(msg)
    return [compared(comparison, "Lock files (CPU time)", own, base, bound=1)]


SHOP = "benchmarks_shop"


def _imported(source: str, *, turn: int) -> tuple[Registry, float]:
    """Return a registry with the classes of a new module, and the time it took."""
    module = f"tests.benchmarks.shop.locked_{turn}"
    written = types.ModuleType(module)
    sys.modules[module] = written
    code = compile(source, module, "exec")
    gc.collect()
    start = process_time()
    exec(code, vars(written))
    seconds = process_time() - start
    registry = Registry()
    registry.add(written.keep)
    if registry.routes.problems:
        msg = f"{registry.routes.problems}"
        raise AssertionError(msg)
    return registry, seconds


# ----------------------------------------------------------------------------- memory


def memory(dispatches: int) -> list[Row]:
    """Count what stays allocated after so many messages of every kind."""
    _send_all(20_000)
    gc.collect()
    tracemalloc.start()
    try:
        _send_all(1_000)  # what tracing itself makes at first
        gc.collect()
        before, _peak = tracemalloc.get_traced_memory()
        _send_all(dispatches)
        gc.collect()
        after, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return [
        Row(
            section="Memory",
            what=f"growth over {dispatches:,} messages",
            value=(after - before) / 1024,
            unit="KiB",
            bound=16,
        )
    ]


def names(distinct: int) -> list[Row]:
    """Count what stays allocated after so many names that callers thought of."""
    registry = Registry()
    registry.add(_named_freely)
    registry.add(handlers.add_one)
    _send_under_names(registry, range(20_000))
    gc.collect()
    tracemalloc.start()
    try:
        _send_under_names(registry, range(-20_000, 0))  # traced, all of what is kept
        gc.collect()
        before, _peak = tracemalloc.get_traced_memory()
        _send_under_names(registry, range(20_000, 20_000 + distinct))
        gc.collect()
        after, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return [
        Row(
            section="Memory",
            what=f"growth over {distinct:,} names that are sent once",
            value=(after - before) / 1024,
            unit="KiB",
            bound=16,
        )
    ]


@event_handler("free.*")
def _named_freely(event: object) -> None:
    pass


def _send_under_names(registry: Registry, numbers: range) -> None:
    command = messages.AddOne(1)
    for number in numbers:
        name = f"free.{number:+09}"  # of one length
        registry.command_bus.dispatch(command, headers={name: number})
        if number % 10 == 0:
            registry.event_bus.publish(command, route=name)
        if number % 100 == 0:  # the error takes long
            with suppress(NoHandlerFound):
                registry.command_bus.dispatch(command, route=name)


def _send_all(count: int) -> None:
    """Send commands, queries and events, with headers, nested and failing."""
    add = messages.AddOne(1)
    nested = messages.AddNested(1)
    with_header = messages.AddWithHeader(1)
    with_identity = messages.AddWithIdentity(1)
    query = messages.GetSum(1)
    event = messages.Added(1)
    refused = messages.Refused()
    for number in range(count // 9):
        command_bus.dispatch(add)
        command_bus.dispatch(nested)  # two messages
        command_bus.dispatch(with_header, headers={"executor_id": number})
        command_bus.dispatch(with_identity)
        query_bus.ask(query)
        query_bus.ask(query, returns="application/json")
        event_bus.publish(event)
        with suppress(ValueError):
            command_bus.dispatch(refused)
