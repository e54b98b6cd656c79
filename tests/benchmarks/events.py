"""Event streams: appending, loading, deciding, and following, beside the same by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Annotated, Any
from uuid import uuid4

from django.db import connections, transaction
from django.utils import timezone

from django_cqrs import Registry, command_handler, event_handler, message
from django_cqrs.events import EventStore, Projections, Row, applies, event_stream
from django_cqrs.events import projection as declared
from django_cqrs.events.models import StoredEvent, Stream
from django_cqrs.modelling import aggregate
from tests.benchmarks.event_libraries import application, reason_to_leave_out
from tests.benchmarks.measuring import Comparison, call_by_call
from tests.benchmarks.results import Row as Line
from tests.benchmarks.results import compared
from tests.benchmarks.shop.models import Seller

APPEND_BOUNDS = {"postgresql": 1.15, "sqlite": 1.2}


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 60
    calls: int = 40
    loads: int = 30
    loaded: int = 1_000
    commands: int = 20
    followed: int = 100_000
    sellers: int = 2_000
    one_by_one: int = 2_000


FULL = Size()
QUICK = Size(
    rounds=2,
    calls=3,
    loads=2,
    loaded=50,
    commands=2,
    followed=200,
    sellers=10,
    one_by_one=20,
)


@message("bench.sold")
@dataclasses.dataclass(frozen=True)
class Sold:
    basket_id: int
    sku: str
    count: int
    seller: str = "ada"


@message("bench.sell")
@dataclasses.dataclass(frozen=True)
class Sell:
    basket_id: int
    sku: str


@aggregate
@event_stream("benchbasket")
@dataclasses.dataclass
class Basket:
    """The aggregate, and the methods that are called by hand as well."""

    basket_id: int | None = None
    items: dict[str, int] = dataclasses.field(default_factory=dict)

    @command_handler
    def sell(self, command: Sell) -> Sold:
        return Sold(command.basket_id, command.sku, 1 + len(self.items) % 2)

    @applies
    def sold(self, event: Sold) -> None:
        self.basket_id = event.basket_id
        self.items[event.sku] = self.items.get(event.sku, 0) + event.count


EVENT = StoredEvent._meta.db_table
COLUMNS = (
    "stream_id, version, name, shape, payload, headers, event_id, correlation_id, "
    "recorded_at"
)


class Bench:
    """What the contestants of one database share."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.connection = connections[alias]
        self.registry = Registry()
        for each in (Sold, Sell, Basket):
            self.registry.add(each)
        self.store = EventStore(alias, registry=self.registry)
        version = ".".join(map(str, self.connection.get_database_version()))
        self.said = f"{self.connection.display_name} {version}"
        self._keys = itertools.count(1)

    def as_uuid(self, value: Any) -> Any:
        return value if self.connection.vendor == "postgresql" else value.hex

    def row(self, stream_id: int, version: int, event: Sold) -> tuple[Any, ...]:
        """Return the values of a row, encoded as anybody would."""
        key = self.as_uuid(uuid4())
        text = json.dumps(dataclasses.asdict(event))
        now: Any = timezone.now()
        if self.connection.vendor != "postgresql":
            now = str(now.replace(tzinfo=None))
        return stream_id, version, "bench.sold", 1, text, "{}", key, key, now

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        places = ", ".join([f"({', '.join(['%s'] * len(rows[0]))})"] * len(rows))
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {EVENT} ({COLUMNS}) VALUES {places}",
                [value for row in rows for value in row],
            )

    def stream(self, count: int) -> tuple[str, int]:
        """Return the name and the key of a new stream with so many events."""
        number = next(self._keys)
        made = Stream.objects.using(self.alias).create(
            category="benchbasket", key=str(number), created_at=timezone.now()
        )
        rows = [
            self.row(made.pk, version + 1, Sold(number, f"sku-{version % 7}", 1))
            for version in range(count)
        ]
        for start in range(0, count, 90):  # SQLite's number of parameters
            self.insert(rows[start : start + 90])
        return f"benchbasket-{number}", made.pk

    def clear(self) -> None:
        for model in (StoredEvent, Stream, Seller):
            model.objects.using(self.alias).all()._raw_delete(self.alias)


def run(alias: str, *, quick: bool) -> tuple[list[Line], list[str]]:
    """Return the rows, and what is to be said about them."""
    size, bench = QUICK if quick else FULL, Bench(alias)
    lines = appending(bench, size, 1)
    lines += appending(
        bench, size, 100 if bench.connection.vendor == "postgresql" else 50
    )
    lines += loading(bench, size)
    lines += deciding(bench, size)
    lines += inline(bench, size)
    left_out = reason_to_leave_out(bench.connection)
    if left_out is None:
        lines += beside_eventsourcing(bench, size)
    bench.clear()
    lines += following(bench, size)
    bench.clear()
    said = (
        f"Events: {size.rounds} rounds of {size.calls} appends, streams of "
        f"{size.loaded:,} events loaded, {size.followed:,} events followed."
    )
    return lines, [said, *([left_out] if left_out else [])]


def appending(bench: Bench, size: Size, count: int) -> list[Line]:
    """Compare an append in its own transaction with an INSERT of the same rows."""
    name, _ = bench.stream(1)
    _, by_hand = bench.stream(1)
    versions = itertools.count(2)
    event = Sold(1, "tea", 2)

    def ours() -> None:
        bench.store.append([event] * count, stream=name)

    def bare() -> None:
        with transaction.atomic(using=bench.alias):
            bench.insert(
                [bench.row(by_hand, next(versions), event) for _ in range(count)]
            )

    base = "atomic() around one INSERT"
    what = "event_store.append()"
    comparison = call_by_call(
        {base: bare, what: ours},
        rounds=size.rounds,
        calls=size.calls if count == 1 else max(2, size.calls // 10),
    )
    noun = "One event" if count == 1 else f"{count} events"
    bound = APPEND_BOUNDS[bench.connection.vendor] if count == 1 else 1.3
    section = f"{noun} appended to a stream, {bench.said}"
    return [compared(comparison, section, what, base, bound=bound)]


def loading(bench: Bench, size: Size) -> list[Line]:
    """Compare loading an aggregate with SELECT, ``json.loads`` and the same methods."""
    name, key = bench.stream(size.loaded)
    identifier = int(name.rpartition("-")[2])

    def ours() -> None:
        bench.store.load(Basket, identifier)

    def bare() -> None:
        with bench.connection.cursor() as cursor:
            cursor.execute(
                f"SELECT payload FROM {EVENT} WHERE stream_id = %s ORDER BY version",
                [key],
            )
            basket = Basket()
            for (payload,) in cursor.fetchall():
                basket.sold(Sold(**json.loads(payload)))

    base, what = "SELECT, json.loads and the same methods", "event_store.load()"
    comparison = call_by_call(
        {base: bare, what: ours}, rounds=size.loads, calls=5, warm_up=2
    )
    section = f"An aggregate of {size.loaded:,} events loaded, {bench.said}"
    return [compared(comparison, section, what, base, bound=1.1)]


def deciding(bench: Bench, size: Size) -> list[Line]:
    """Compare a command on a stream of 20 events with the same by hand."""
    ours, theirs = (
        iter([bench.stream(20) for _ in range(size.loads * size.commands + 50)])
        for _ in range(2)
    )
    dispatch = bench.registry.command_bus.dispatch

    def dispatched() -> None:
        name, _ = next(ours)
        dispatch(Sell(int(name.rpartition("-")[2]), "tea"), using=bench.alias)

    lock = " FOR UPDATE" if bench.connection.vendor == "postgresql" else ""

    def bare() -> None:
        name, _ = next(theirs)
        number = name.rpartition("-")[2]
        with (
            transaction.atomic(using=bench.alias),
            bench.connection.cursor() as cursor,
        ):
            cursor.execute(
                f"SELECT id FROM {Stream._meta.db_table} "
                f"WHERE category = 'benchbasket' AND key = %s{lock}",
                [number],
            )
            (key,) = cursor.fetchone()
            cursor.execute(
                f"SELECT payload, version FROM {EVENT} WHERE stream_id = %s "
                "ORDER BY version",
                [key],
            )
            basket, version = Basket(), 0
            for payload, version in cursor.fetchall():  # noqa: B007
                basket.sold(Sold(**json.loads(payload)))
            event = basket.sell(Sell(int(number), "tea"))
            basket.sold(event)
            bench.insert([bench.row(key, version + 1, event)])

    base, what = "the same by hand", "command_bus.dispatch()"
    comparison = call_by_call(
        {base: bare, what: dispatched},
        rounds=size.loads,
        calls=size.commands,
        warm_up=10,
    )
    section = f"A command on a stream of 20 events, {bench.said}"
    return [compared(comparison, section, what, base, bound=1.1)]


def beside_eventsourcing(bench: Bench, size: Size) -> list[Line]:
    """Compare an append and a load with those of the library eventsourcing."""
    name, _ = bench.stream(1)
    full, _ = bench.stream(size.loaded)
    identifier = int(full.rpartition("-")[2])
    event = Sold(1, "tea", 2)
    theirs = "eventsourcing"
    with application(bench.connection) as (library, basket_class):
        grown, loaded = basket_class(), basket_class()
        for number in range(size.loaded - 1):
            loaded.sell(f"sku-{number % 7}", 1)
        library.save(grown, loaded)

        def append() -> None:
            grown.sell("tea", 2)
            library.save(grown)

        appends, loads = (
            call_by_call(contestants, rounds=rounds, calls=calls, warm_up=2)
            for contestants, rounds, calls in (
                (
                    {
                        theirs: append,
                        "event_store.append()": lambda: bench.store.append(
                            [event], stream=name
                        ),
                    },
                    size.rounds,
                    size.calls,
                ),
                (
                    {
                        theirs: lambda: library.repository.get(loaded.id),
                        "event_store.load()": lambda: bench.store.load(
                            Basket, identifier
                        ),
                    },
                    size.loads,
                    5,
                ),
            )
        )
    return [
        compared(
            comparison,
            f"{what}, beside eventsourcing, {bench.said}",
            ours,
            theirs,
            at_least=bound,
            inverse=True,
        )
        for comparison, what, ours, bound in (
            (appends, "One event appended", "event_store.append()", 2),
            (
                loads,
                f"An aggregate of {size.loaded:,} events loaded",
                "event_store.load()",
                10,
            ),
        )
    ]


def _inline() -> type:
    @declared("bench-inline", views=[Seller])
    class Inline:
        @event_handler
        def sold(self, event: Sold, row: Annotated[Seller, Row(name="seller")]) -> None:
            row.sold += event.count

    return Inline


def inline(bench: Bench, size: Size) -> list[Line]:
    """Compare an inline projection with an append and an upsert by hand."""
    registry = Registry()
    registry.add(Sold)
    registry.add(_inline())
    store = EventStore(bench.alias, registry=registry)
    (mine, _), (other, _) = bench.stream(0), bench.stream(0)
    event = Sold(1, "tea", 2)
    table = Seller._meta.db_table

    def ours() -> None:
        store.append([event], stream=mine)

    def bare() -> None:
        with transaction.atomic(using=bench.alias):
            bench.store.append([event], stream=other)
            with bench.connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO {table} (name, sold) VALUES (%s, %s) ON CONFLICT (name) "
                    f"DO UPDATE SET sold = {table}.sold + EXCLUDED.sold",
                    ["jo", event.count],
                )

    base, what = "append() and an upsert by hand", "append() and a Row"
    comparison = call_by_call(
        {base: bare, what: ours}, rounds=size.rounds, calls=max(2, size.calls // 2)
    )
    section = f"An inline projection that writes one row, {bench.said}"
    return [compared(comparison, section, what, base, bound=1.25)]


# Following ----------------------------------------------------------------------------


def _followed() -> type:
    @declared("bench-followed", on_demand=True, views=[Seller])
    class Followed:
        @event_handler
        def sold(self, event: Sold, row: Annotated[Seller, Row(name="seller")]) -> None:
            row.sold += event.count

    return Followed


def following(bench: Bench, size: Size) -> list[Line]:
    """Compare a projection with a loop by hand, in bulk and one row at a time."""
    _, key = bench.stream(0)
    for start in range(0, size.followed, 90):
        bench.insert(
            [
                bench.row(
                    key, n + 1, Sold(1, "tea", 1, f"seller-{n * 7 % size.sellers}")
                )
                for n in range(start, min(size.followed, start + 90))
            ]
        )
    registry = Registry()
    registry.add(Sold)
    registry.add(_followed())
    own = Projections(bench.alias, registry=registry)
    sellers = Seller.objects.using(bench.alias)

    def ours() -> int:
        own.run("bench-followed")
        return size.followed

    def in_bulk() -> int:
        position = 0
        while page := _page(bench, position, 500):
            position = page[-1][0]
            _upsert(bench, page)
        return size.followed

    def one_by_one() -> int:
        for _, payload in _page(bench, 0, size.one_by_one):
            event = Sold(**json.loads(payload))
            with transaction.atomic(using=bench.alias):
                row, _ = sellers.get_or_create(name=event.seller)
                row.sold += event.count
                row.save(using=bench.alias)
        return size.one_by_one

    hand, each, what = "a bulk loop by hand", "one call of the ORM each", "Row"
    comparison = Comparison([hand, each, what])
    runs: dict[str, Callable[[], int]] = {hand: in_bulk, each: one_by_one, what: ours}
    for _ in range(3):
        for name, act in runs.items():
            sellers.all()._raw_delete(bench.alias)
            with _timed(comparison, name) as done:
                done.append(act())
            if name == what:
                assert sellers.count() == min(size.sellers, size.followed)
                own.delete("bench-followed")
    section = f"{size.followed:,} events followed, {bench.said}"
    return [
        compared(comparison, section, what, hand, at_least=0.5, inverse=True),
        compared(
            comparison, f"The same, {section}", what, each, at_least=30, inverse=True
        ),
    ]


@contextmanager
def _timed(comparison: Comparison, name: str) -> Iterator[list[int]]:
    done: list[int] = []
    began = perf_counter()
    yield done
    comparison.times[name].append((perf_counter() - began) / done[0])


def _page(bench: Bench, position: int, limit: int) -> list[tuple[int, str]]:
    with bench.connection.cursor() as cursor:
        cursor.execute(
            f"SELECT position, payload FROM {EVENT} WHERE position > %s "
            f"ORDER BY position LIMIT {limit}",
            [position],
        )
        return cursor.fetchall()


def _upsert(bench: Bench, page: list[tuple[int, str]]) -> None:
    sums: dict[str, int] = {}
    for _, payload in page:
        event = Sold(**json.loads(payload))
        sums[event.seller] = sums.get(event.seller, 0) + event.count
    table = Seller._meta.db_table
    rows = sorted(sums.items())
    places = ", ".join(["(%s, %s)"] * len(rows))
    with transaction.atomic(using=bench.alias), bench.connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (name, sold) VALUES {places} ON CONFLICT (name) "
            f"DO UPDATE SET sold = {table}.sold + EXCLUDED.sold",
            [value for row in rows for value in row],
        )
