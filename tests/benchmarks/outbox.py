"""The outbox on PostgreSQL: sending, handling, waking up, and a crowded table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Final

from django.db import connections, transaction

from django_cqrs import EventBus, Registry, command_handler, event_handler
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.store.rows import INSERTED_COLUMNS
from tests.benchmarks import far, queueing
from tests.benchmarks.measuring import Comparison, call_by_call
from tests.benchmarks.queueing import Queue, Yard
from tests.benchmarks.results import Row, compared
from tests.benchmarks.shop.messages import OrderPlaced, PlaceOrder, PlaceOrders
from tests.benchmarks.shop.models import Order


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 3
    share: float = 1.0
    """Of each queue's messages."""
    calls: int = 60
    command_rounds: int = 60
    many: int = 1_000
    many_rounds: int = 30
    latencies: int = 10
    latency_rounds: int = 2
    beside: int = 1_000_000
    ordered: tuple[str, ...] = ("count", "record")

    def messages(self, queue: Queue) -> int:
        return max(20, round(queue.messages * self.share))

    def __str__(self) -> str:
        return (
            f"Outbox: {self.rounds} rounds of {self.messages(queueing.OURS):,} messages "
            f"of ours and {self.messages(queueing.RELIABLE_OUTBOX):,} of "
            f"django-reliable-outbox, {self.many:,} messages in one command, "
            f"{self.latency_rounds} x {self.latencies} latencies, {self.beside:,} "
            "delayed messages and as many dead letters beside."
        )


FULL = Size()
QUICK = Size(
    rounds=1,
    share=0.02,
    calls=3,
    command_rounds=2,
    many=100,
    many_rounds=2,
    latencies=2,
    latency_rounds=1,
    beside=1_000,
    ordered=("count",),
)


def run(
    alias: str, *, quick: bool, python: str, redis: str
) -> tuple[list[Row], list[str]]:
    """Return the rows, and what is to be said about them."""
    size = QUICK if quick else FULL
    notes = [str(size)]
    rows = sending(alias, size)
    rows += sending_many(alias, size)
    with queueing.yard(alias=alias, python=python, redis=redis) as place:
        peers = []
        for peer in queueing.PEERS:
            reason = place.missing(peer)
            if reason is None:
                peers.append(peer)
            else:
                notes.append(reason)
        packages = ("django", "psycopg", *(each.package for each in peers))
        found = place.versions(packages)
        versions = ", ".join(f"{k} {v}" for k, v in found.items() if v)
        notes.append(f"The workers ran with {versions}.")
        rows += handling(place, size, peers)
        rows += handling_insert(place, size)
        rows += crowded(place, size)
        rows += ordered(place, size)
        rows += waking(place, size, peers)
    rows += from_afar(alias, size, python=python)
    return rows, notes


def _version(alias: str) -> str:
    connection = connections[alias]
    version = ".".join(map(str, connection.get_database_version()))
    return f"{connection.display_name} {version}"


# Sending ------------------------------------------------------------------------------


def sending(alias: str, size: Size) -> list[Row]:
    """Compare a command that sends one background message with one that does not."""
    orders = Order.objects.using(alias)

    def shop(*, sends: bool) -> Callable[[], object]:
        @command_handler(using=alias)
        def place_order(command: PlaceOrder, events: EventBus) -> int:
            order = orders.create(number=command.number, customer=command.customer)
            if sends:
                events.publish(OrderPlaced(command.number, command.customer))
            return order.pk

        @event_handler(channel="orders", using=alias)
        def send_confirmation(event: OrderPlaced) -> None:
            pass

        registry = Registry()
        registry.add(place_order)
        registry.add(send_confirmation)
        command = PlaceOrder(7, "Ada Lovelace")
        return lambda: registry.command_bus.dispatch(command)

    base, name = "the same command without it", "it sends one message to the outbox"
    messages = OutboxMessage.objects.using(alias)
    shop(sends=True)()
    values = messages.values_list(*INSERTED_COLUMNS)[0]
    statement = (
        f"INSERT INTO {OutboxMessage._meta.db_table} ({', '.join(INSERTED_COLUMNS)}) "
        f"VALUES ({', '.join(['%s'] * len(INSERTED_COLUMNS))})"
    )

    def by_hand() -> None:
        with transaction.atomic(using=alias):
            orders.create(number=7, customer="Ada Lovelace")
            with connections[alias].cursor() as cursor:
                cursor.execute(statement, values)

    comparison = call_by_call(
        {base: shop(sends=False), name: shop(sends=True), BY_HAND: by_hand},
        rounds=size.command_rounds,
        calls=size.calls,
    )
    messages.all().delete()
    section = f"A command that inserts one row and sends, {_version(alias)}"
    alone = f"The same beside two INSERTs, {_version(alias)}"
    return [
        compared(comparison, section, name, base, bound=1.3),
        compared(comparison, alone, name, BY_HAND, bound=1.45),
    ]


BY_HAND: Final = "both rows by hand, in one atomic()"


def sending_many(alias: str, size: Size) -> list[Row]:
    """Compare a command that sends many messages with an INSERT of the same rows."""
    connection = connections[alias]

    @command_handler(using=alias)
    def place_orders(command: PlaceOrders, events: EventBus) -> None:
        for number in range(command.count):
            events.publish(OrderPlaced(number, "Ada Lovelace"))

    @event_handler(channel="orders", using=alias)
    def send_confirmation(event: OrderPlaced) -> None:
        pass

    registry = Registry()
    registry.add(place_orders)
    registry.add(send_confirmation)
    command = PlaceOrders(size.many)

    def dispatched() -> None:
        registry.command_bus.dispatch(command)

    messages = OutboxMessage.objects.using(alias)
    dispatched()
    rows = list(messages.values_list(*INSERTED_COLUMNS))
    places = f"({', '.join(['%s'] * len(INSERTED_COLUMNS))})"
    statement = (
        f"INSERT INTO {OutboxMessage._meta.db_table} ({', '.join(INSERTED_COLUMNS)}) "
        f"VALUES {', '.join([places] * len(rows))}"
    )
    values = [value for row in rows for value in row]

    def raw() -> None:
        with transaction.atomic(using=alias), connection.cursor() as cursor:
            cursor.execute(statement, values)

    base = "one INSERT of the same rows"
    name = f"{size.many:,} messages in one command"
    comparison = call_by_call(
        {base: raw, name: dispatched}, rounds=size.many_rounds, calls=5, warm_up=3
    )
    messages.all().delete()
    section = f"{size.many:,} messages, {_version(alias)}"
    return [compared(comparison, section, name, base, bound=2)]


# From afar ----------------------------------------------------------------------------


def from_afar(alias: str, size: Size, *, python: str) -> list[Row]:
    """Send and handle where each trip to the server takes 1 ms longer."""
    size = dataclasses.replace(
        size, rounds=min(3, size.rounds), command_rounds=min(10, size.command_rounds)
    )
    with far.server(alias) as away:
        rows = sending(away, size)
        with queueing.yard(alias=away, python=python, redis="") as place:
            rows += handling_insert(
                place, dataclasses.replace(size, share=size.share / 5)
            )
    # Those of the near server do not apply: what counts here is the number of trips.
    return [
        dataclasses.replace(
            row,
            section=f"{row.section}, 1 ms away",
            bound=0.9 if row.base == BY_HAND else None,
            at_least=None,
        )
        for row in rows
    ]


# Handling -----------------------------------------------------------------------------


def _paces(
    place: Yard, kind: str, queues: list[Queue], size: Size, databases: list[str]
) -> Comparison:
    """Let queues handle messages in turns; return the seconds for one message."""
    names = [_name(*each) for each in zip(queues, databases, strict=True)]
    comparison = Comparison(names)
    entrants = list(zip(names, queues, databases, strict=True))
    for turn in range(size.rounds):
        first = turn % len(entrants)
        for name, queue, database in (*entrants[first:], *entrants[:first]):
            pace = place.seconds_per_message(
                queue, kind, size.messages(queue), database=database
            )
            comparison.times[name].append(pace)
    return comparison


def _name(queue: Queue, database: str) -> str:
    return f"{queue.name}, {database}" if database else queue.name


def handling(place: Yard, size: Size, peers: list[Queue]) -> list[Row]:
    """Compare how many messages one worker handles, where nothing is to be done."""
    bare = [queueing.BARE_WITH_SAVEPOINTS, queueing.BARE]
    queues = [queueing.OURS, *peers, *bare]
    comparison = _paces(place, "count", queues, size, [""] * len(queues))
    best = min(peers or bare[:1], key=lambda each: comparison.seconds(each.name))
    section = "Handling with one worker, a handler that does nothing"
    return [
        compared(
            comparison,
            section,
            each.name,
            best.name,
            at_least=5 if peers and each is queueing.OURS else None,
            inverse=True,
        )
        for each in queues
        if each is not best
    ]


def handling_insert(place: Yard, size: Size) -> list[Row]:
    """Compare one worker whose handler inserts a row with a loop of the same shape."""
    base = queueing.BARE_WITH_SAVEPOINTS
    size = dataclasses.replace(size, share=size.share / 2)
    comparison = _paces(place, "record", [queueing.OURS, base], size, ["", ""])
    section = "Handling with one worker, a handler that inserts one row"
    return [
        compared(
            comparison,
            section,
            queueing.OURS.name,
            base.name,
            at_least=0.9,
            inverse=True,
        )
    ]


def crowded(place: Yard, size: Size) -> list[Row]:
    """Compare an empty table with one full of what is not to be handled now."""
    place.database(queueing.OURS, "crowd")
    place.do(queueing.OURS, "surround", str(size.beside), database="crowd")
    queues, databases = [queueing.OURS] * 2, ["", "crowd"]
    comparison = _paces(place, "count", queues, size, databases)
    base, name = (_name(queueing.OURS, each) for each in databases)
    section = "Handling beside what waits"
    row = compared(comparison, section, name, base, at_least=0.9, inverse=True)
    what = f"{size.beside:,} delayed messages and as many dead letters"
    return [dataclasses.replace(row, what=what, base="nothing else in the tables")]


def ordered(place: Yard, size: Size) -> list[Row]:
    """Compare a thousand ordering keys with none, and two processes with one."""
    handlers = {
        "count": "a handler that does nothing",
        "record": "a handler that inserts one row",
    }
    return [
        row
        for kind in size.ordered
        for row in _ordered(place, size, f"Ordered by key, {handlers[kind]}", kind)
    ]


def _ordered(place: Yard, size: Size, section: str, kind: str) -> list[Row]:
    base, keyed = "one process, no keys", "one process"
    twice = "two processes"
    entrants = [
        (base, queueing.OURS, kind),
        (keyed, queueing.OURS, f"{kind}_line"),
        (twice, queueing.OURS_TWICE, f"{kind}_line"),
    ]
    comparison = Comparison([name for name, *_ in entrants])
    for turn in range(size.rounds):
        first = turn % len(entrants)
        for name, queue, what in (*entrants[first:], *entrants[:first]):
            pace = place.seconds_by_stamps(queue, what, size.messages(queue))
            comparison.times[name].append(pace)
    return [
        compared(comparison, section, keyed, base, at_least=0.7, inverse=True),
        dataclasses.replace(
            compared(comparison, section, twice, keyed, at_least=1, inverse=True),
            what="two processes, of the speed of one",
        ),
    ]


# Waking up ----------------------------------------------------------------------------


def waking(place: Yard, size: Size, peers: list[Queue]) -> list[Row]:
    """Compare the time from commit to handler, with a worker that is idle."""
    queues = [queueing.OURS, queueing.OURS_POLLING, *peers]
    comparison = Comparison([each.name for each in queues])
    for _ in range(size.latency_rounds):
        for each in queues:
            taken = statistics.median(place.latencies(each, size.latencies))
            comparison.times[each.name].append(taken)
    section = "From commit to handler with an idle worker, median"
    rows = []
    base = queueing.RELIABLE_OUTBOX
    if base in peers:
        rows = [
            compared(
                comparison,
                section,
                each.name,
                base.name,
                bound=1.2 if each is queueing.OURS else None,
            )
            for each in queues
            if each is not base and each is not queueing.OURS_POLLING
        ]
    polling = queueing.OURS_POLLING.name
    times = comparison.times[polling]
    rows.append(
        Row(
            section="From commit to handler with no notification, median",
            what=polling,
            value=comparison.seconds(polling) * 1000,
            unit="ms",
            low=min(times) * 1000,
            high=max(times) * 1000,
            bound=60,
            rounds=comparison.rounds,
        )
    )
    return rows
