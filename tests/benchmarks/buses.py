"""One message through one bus, in this process, with no database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import transaction
from django.dispatch import Signal
from pydantic import TypeAdapter

from django_cqrs import Registry, command_bus, event_bus, event_handler, query_bus
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.interception import before, pointcut
from tests.benchmarks import peers
from tests.benchmarks.measuring import Contestant, awaiting, in_blocks, statement
from tests.benchmarks.results import Row, compared
from tests.benchmarks.shop import handlers, messages

SIGNAL = "django.dispatch: Signal.send(), one receiver"
DISPATCH = "command_bus.dispatch()"
ASK = "query_bus.ask()"
PUBLISH = "event_bus.publish(), one handler"
HEADER = "a header given and taken"
KEY = "by routing key"
IDENTITY = "the message's id, a UUIDv7"
PUBLISH_HEADER = "event_bus.publish(), a header given"
PUBLISH_KEY = "event_bus.publish(), by routing key"
ADAPTER = "TypeAdapter.validate_json()"


def _receive(sender: object, command: messages.AddOne, **kwargs: object) -> int:
    return command.to + 1


def _signal(*, use_caching: bool = False) -> Signal:
    signal = Signal(use_caching=use_caching)
    signal.connect(_receive)
    return signal


def _baselines() -> list[Contestant]:
    command = messages.AddOne(1)
    return [
        statement(
            "direct call", "add_one(command)", add_one=handlers.add_one, command=command
        ),
        statement(
            SIGNAL,
            "signal.send(sender=sender, command=command)",
            signal=_signal(),
            sender=messages.AddOne,
            command=command,
        ),
        statement(
            "django.dispatch: Signal(use_caching=True).send()",
            "signal.send(sender=sender, command=command)",
            signal=_signal(use_caching=True),
            sender=messages.AddOne,
            command=command,
        ),
    ]


def _buses() -> list[Contestant]:
    return [
        statement(
            DISPATCH,
            "command_bus.dispatch(command)",
            command_bus=command_bus,
            command=messages.AddOne(1),
        ),
        statement(
            ASK,
            "query_bus.ask(query)",
            query_bus=query_bus,
            query=messages.GetSum(1),
        ),
        statement(
            PUBLISH,
            "event_bus.publish(event)",
            event_bus=event_bus,
            event=messages.Added(1),
        ),
    ]


def against_signal(*, rounds: int) -> tuple[list[Row], list[str]]:
    """Compare the buses, and those of the peers, with Django's own signal."""
    section = "One message, no transaction"
    loop = asyncio.new_event_loop()
    try:
        others, missing = peers.installed(loop)
        contestants = [*_baselines(), *_buses(), *others]
        comparison = in_blocks(contestants, rounds=rounds)
    finally:
        loop.close()
    bounds = {DISPATCH: 0.4, ASK: 0.5, PUBLISH: 0.7}
    rows = [
        compared(comparison, section, name, SIGNAL, bound=bounds.get(name))
        for name in [*bounds, *(c.name for c in contestants if c.name not in bounds)]
        if name != SIGNAL
    ]
    return rows, [f"{name} is not installed, so it was left out." for name in missing]


def variations(*, rounds: int) -> list[Row]:
    """Compare what a handler may ask for with the plain dispatch."""
    plain, _ask, publish = _buses()
    dispatches = list(_dispatches())
    to_ten = _publish_to_ten()
    publishings = list(_publishings())
    comparison = in_blocks(
        [plain, *dispatches, publish, *publishings, to_ten], rounds=rounds
    )
    section = "What else a command may ask for"
    bounds = {HEADER: 2.5, KEY: 1.3, IDENTITY: 2.5}
    rows = [
        compared(comparison, section, c.name, DISPATCH, bound=bounds.get(c.name))
        for c in dispatches
    ]
    bounds = {PUBLISH_HEADER: 2.5, PUBLISH_KEY: 1.3}
    rows += [
        compared(
            comparison,
            "What else an event may ask for",
            each.name,
            PUBLISH,
            bound=bounds[each.name],
        )
        for each in publishings
    ]
    return [*rows, compared(comparison, "Ten handlers", to_ten.name, PUBLISH)]


def _dispatches() -> Iterator[Contestant]:
    def dispatch(name: str, arguments: str, command: object) -> Contestant:
        return statement(
            name,
            f"command_bus.dispatch({arguments})",
            command_bus=command_bus,
            command=command,
            AddOne=messages.AddOne,
        )

    yield dispatch("a command made for each dispatch", "AddOne(1)", None)
    yield dispatch(
        HEADER,
        "command, headers={'executor_id': 7}",
        messages.AddWithHeader(1),
    )
    yield dispatch("a bus parameter", "command", messages.AddWithBus(1))
    yield dispatch(IDENTITY, "command", messages.AddWithIdentity(1))
    yield dispatch(KEY, "command, route='shop.add'", messages.AddOne(1))
    yield dispatch("a dispatch within a dispatch", "command", messages.AddNested(1))


def _publishings() -> Iterator[Contestant]:
    names = {"event_bus": event_bus, "event": messages.Added(1)}
    yield statement(
        PUBLISH_HEADER, "event_bus.publish(event, headers={'executor_id': 7})", **names
    )
    yield statement(
        PUBLISH_KEY, "event_bus.publish(event, route='shop.noted')", **names
    )


def _publish_to_ten() -> Contestant:
    registry = Registry()

    def listener(number: int) -> Callable[[messages.AddedForTen], None]:
        @event_handler(name=f"listener {number}")
        def listen(event: messages.AddedForTen) -> None:
            pass

        return listen

    for number in range(10):
        registry.add(listener(number))
    return statement(
        "event_bus.publish(), ten handlers",
        "event_bus.publish(event)",
        event_bus=registry.event_bus,
        event=messages.AddedForTen(1),
    )


def interceptors(*, rounds: int) -> list[Row]:
    """Compare a handler with interceptors with the same one without any."""
    section = "Interceptors around one handler"

    def dispatch(name: str, count: int, pattern: str = "*") -> Contestant:
        registry = Registry()
        registry.add(handlers.add_one)
        for number in range(count):
            registry.add(_looker(number, pattern))
        return statement(
            name,
            "command_bus.dispatch(command)",
            command_bus=registry.command_bus,
            command=messages.AddOne(1),
        )

    none = dispatch("none", 0)
    others = [
        dispatch("one, aimed at another handler", 1, "elsewhere.*"),
        dispatch("one before", 1),
        dispatch("three before", 3),
        dispatch("ten before", 10),
    ]
    comparison = in_blocks([none, *others], rounds=rounds)
    return [compared(comparison, section, each.name, none.name) for each in others]


def _looker(number: int, pattern: str) -> Callable[[messages.AddOne], None]:
    @before(pointcut.handler(pattern), precedence=number)
    def look(command: messages.AddOne) -> None:
        pass

    return look


def asynchronous(*, rounds: int) -> list[Row]:
    """Compare ``adispatch`` with ``sync_to_async`` around the bare call."""
    loop = asyncio.new_event_loop()
    command = messages.AddOne(1)
    bare = awaiting(
        "sync_to_async(add_one)(command)",
        loop,
        sync_to_async(handlers.add_one, thread_sensitive=True),
        command,
    )
    bus = awaiting("command_bus.adispatch()", loop, command_bus.adispatch, command)
    try:
        comparison = in_blocks([bare, bus], rounds=rounds)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    section = "From a coroutine"
    return [compared(comparison, section, bus.name, bare.name, bound=1.1)]


def conversion(*, rounds: int) -> list[Row]:
    """Compare the reading of JSON with what pydantic takes for it alone."""
    bounds = 1.5, 2.0
    section = "A command of six fields from JSON text"
    text = TypeAdapter(messages.BookDelivery).dump_json(
        messages.BookDelivery(
            order_id=UUID(int=7),
            address="Lindenallee 12, 04277 Leipzig",
            weight=Decimal("12.50"),
            at="2026-03-01T09:30:00Z",
        ),
        warnings=False,
    )
    contestants = [
        statement(
            ADAPTER,
            "adapter.validate_json(text)",
            adapter=TypeAdapter(messages.BookDelivery),
            text=text,
        ),
        statement(
            "this library",
            "payload_type.from_json(text)",
            payload_type=PayloadType(messages.BookDelivery),
            text=text,
        ),
        statement(
            "dispatch(text, route=..., content_type=...)",
            "dispatch(text, route='shop.book', content_type='application/json')",
            dispatch=command_bus.dispatch,
            text=text,
        ),
    ]
    comparison = in_blocks(contestants, rounds=rounds)
    rows = [
        compared(comparison, section, c.name, ADAPTER, bound=bound)
        for c, bound in zip(contestants[1:], bounds, strict=True)
    ]
    return [*rows, *long_text(rounds=rounds)]


def long_text(*, rounds: int) -> list[Row]:
    """Compare the reading of 100 kB of JSON text with what pydantic takes for it."""
    section = "100 kB of JSON text"
    address = "Lindenallee 12, 04277 Leipzig; " * 3_200
    order = messages.PlaceOrder(7, address)
    text = TypeAdapter(messages.PlaceOrder).dump_json(order)
    contestants = [
        statement(
            ADAPTER,
            "adapter.validate_json(text)",
            adapter=TypeAdapter(messages.PlaceOrder),
            text=text,
        ),
        statement("json.loads()", "json.loads(text)", json=json, text=text),
        statement(
            "this library",
            "payload_type.from_json(text)",
            payload_type=PayloadType(messages.PlaceOrder),
            text=text,
        ),
    ]
    comparison = in_blocks(contestants, rounds=rounds)
    return [
        compared(comparison, section, "json.loads()", ADAPTER),
        compared(comparison, section, "this library", ADAPTER),
    ]


def empty_transaction(*, rounds: int) -> list[Row]:
    """Compare a command that does nothing in its transaction with the transaction."""
    section = "A command that does nothing, in its transaction"
    base = "atomic() around a call"
    command = messages.AddInTransaction(1)
    contestants = [
        statement(
            base,
            "with atomic():\n    add(command)",
            atomic=transaction.atomic,
            add=handlers.add_in_transaction,
            command=command,
        ),
        statement(
            DISPATCH,
            "command_bus.dispatch(command)",
            command_bus=command_bus,
            command=command,
        ),
    ]
    comparison = in_blocks(contestants, rounds=rounds)
    return [compared(comparison, section, DISPATCH, base)]
