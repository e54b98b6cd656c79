"""Two at once: nobody's events are lost, and exactly the losers are told so."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction

from django_cqrs import (
    DEADLOCKS,
    CommandBus,
    InstantRetry,
    command_handler,
    message,
)
from django_cqrs.events import EventStore, applies, event_stream
from django_cqrs.events.models import EventTag, StoredEvent, Stream
from django_cqrs.exceptions import AggregateAlreadyExists, ConcurrencyError
from django_cqrs.modelling import Repository, aggregate
from django_cqrs.models import RecordsEvents
from tests.modelling.test_concurrency import at_once
from tests.outbox.support import on_postgresql, traced
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

THREADS = 20


@pytest.fixture
def server():
    """A database that several transactions write to at a time."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time: nothing can be lost there.")


@dataclass(frozen=True)
class Visit:
    page_id: str


@dataclass(frozen=True)
class VisitOften:
    page_id: str


@dataclass(frozen=True)
class Nest:
    page_id: str


@dataclass(frozen=True)
class Open:
    page_id: str


@message("pages.opened", tags=["pages"])
@dataclass(frozen=True)
class Opened:
    page_id: str


@message("pages.visited", tags=["pages"])
@dataclass(frozen=True)
class Visited:
    number: int


class Pages:
    @command_handler
    @classmethod
    def open(cls, command: Open) -> Opened:
        return Opened(command.page_id)

    @command_handler
    @classmethod
    def first(cls, command: Visit) -> Opened:
        return Opened(command.page_id)

    @command_handler
    def visit(self: Any, command: Visit) -> Visited:
        return Visited(self.visits + 1)

    @command_handler
    def visit_often(self: Any, command: VisitOften) -> list[Visited]:
        self.meet()
        return [Visited(self.visits + number) for number in (1, 2, 3)]

    @command_handler
    def nest(self: Any, command: Nest, bus: CommandBus) -> Visited:
        bus.dispatch(Visit(self.page_id))
        return Visited(self.visits + 1)

    @applies
    def opened(self: Any, event: Opened) -> None:
        self.page_id = event.page_id

    @applies
    def visited(self: Any, event: Visited) -> None:
        self.visits += 1


@aggregate(identifier="page_id")
@event_stream("pages.locked")
@dataclass
class Locked(Pages):
    page_id: str = ""
    visits: int = 0

    def meet(self) -> None: ...


@aggregate(identifier="page_id", version="version")
@event_stream("pages.versioned")
@dataclass
class Versioned(Pages):
    page_id: str = ""
    visits: int = 0
    version: int = 0

    def meet(self) -> None:
        Meeting.wait()


@aggregate(identifier="page_id", version="version")
@event_stream("pages.recorded")
@dataclass
class Recorded(Pages, RecordsEvents):
    page_id: str = ""
    visits: int = 0
    version: int = 0


class Meeting:
    """Lets two threads have loaded before either appends."""

    barrier: threading.Barrier | None = None

    @classmethod
    def wait(cls) -> None:
        if cls.barrier is not None:
            cls.barrier.wait(timeout=60)

    @classmethod
    @contextmanager
    def of_two(cls):
        cls.barrier = threading.Barrier(2, action=cls.end)
        try:
            yield
        finally:
            cls.barrier = None

    @classmethod
    def end(cls) -> None:
        cls.barrier = None


def versions():
    return list(StoredEvent.objects.order_by("version").values_list("version", flat=1))


def test_e05_1_the_lock_loses_nothing(server):
    """20 threads and one aggregate: 20 events, without an error. [E05.1]"""
    registry = registry_of(Locked)
    registry.command_bus.dispatch(Open("home"))

    results = at_once(lambda _: registry.command_bus.dispatch(Visit("home")), THREADS)

    numbers = sorted(each.number for each in results)
    assert numbers == list(range(1, THREADS + 1))
    assert versions() == list(range(1, THREADS + 2))


def test_a_command_takes_three_round_trips():
    """BEGIN, the lock and the events; the append; COMMIT."""
    on_postgresql()
    registry = registry_of(Locked)
    registry.command_bus.dispatch(Open("home"))

    with traced() as sent:
        registry.command_bus.dispatch(Visit("home"))

    first, second, third = [each for each in sent if "NOTIFY" not in each]
    assert "BEGIN" in first
    assert "pages.visited" in second
    assert "COMMIT" in third


@pytest.mark.parametrize("cls", [Locked, Versioned])
def test_e04_6_concurrent_firsts(server, cls):
    """One creates, the others act, and no event is lost. [E04.6]"""
    registry = registry_of(cls)
    bus = CommandBus(
        registry=registry,
        instant_retry=InstantRetry(THREADS * 3, on=(ConcurrencyError, DEADLOCKS)),
    )

    results = at_once(lambda _: bus.dispatch(Visit("home")), THREADS)

    assert Counter(map(type, results)) == {str: 1, Visited: THREADS - 1}
    assert versions() == list(range(1, THREADS + 1))
    assert Stream.objects.count() == 1


def both(registry, **options):
    """Let two threads load one aggregate before either appends; return what they got."""
    bus = CommandBus(registry=registry, **options)
    inside = {}

    def visit(number):
        try:
            with transaction.atomic():
                Note.objects.create(text=f"kept {number}")
                try:
                    with transaction.atomic():
                        Note.objects.create(text=f"undone {number}")
                        bus.dispatch(VisitOften("home"))
                finally:
                    inside[number] = Note.objects.filter(text=f"kept {number}").count()
        except ConcurrencyError as error:
            return error
        return number

    with Meeting.of_two():
        results = at_once(visit, 2)
    assert inside == {0: 1, 1: 1}, "the transaction of the loser can still be used"
    return results


def test_e05_2_one_of_two_raises(server):
    """With version= the second raises, and what it wrote is gone. [E05.2, E05.4]"""
    registry = registry_of(Versioned)
    registry.command_bus.dispatch(Open("home"))

    results = both(registry)

    (error,) = [each for each in results if isinstance(each, ConcurrencyError)]
    assert str(error) == (
        "Versioned with page_id=home was changed by somebody else since it was loaded. "
        "This attempt saved nothing; try again."
    )
    assert versions() == [1, 2, 3, 4]
    assert EventTag.objects.count() == 4
    (winner,) = [each for each in results if each is not error]
    assert list(Note.objects.order_by("text").values_list("text", flat=True)) == [
        f"kept {winner}",
        f"undone {winner}",
    ]


def test_e05_3_retried_both_succeed(server):
    """With an instant retry the second acts on fresh state. [E05.3]"""
    registry = registry_of(Versioned)
    registry.command_bus.dispatch(Open("home"))
    retry = InstantRetry(3, on=(ConcurrencyError, DEADLOCKS))
    bus = CommandBus(registry=registry, instant_retry=retry)

    with Meeting.of_two():
        results = at_once(lambda _: bus.dispatch(VisitOften("home")), 2)

    numbers = sorted(event.number for events in results for event in events)
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert versions() == list(range(1, 8))


def test_e05_4_a_partial_conflict(server):
    """Others appended one, we append three: none of ours stays, nor a tag. [E05.4]"""
    registry = registry_of(Recorded)
    registry.command_bus.dispatch(Open("home"))
    store = EventStore(registry=registry)

    def append() -> None:
        store.append(Visited(0), stream="pages.recorded-home")
        connections.close_all()

    @command_handler("pages.conflict")
    def conflict(page_id: str, every: Repository[Recorded]) -> list[int]:
        page = every.get(page_id)
        other = threading.Thread(target=append)
        other.start()
        other.join()
        for number in (1, 2, 3):
            page.record(Visited(number))
        with pytest.raises(ConcurrencyError, match="was changed by somebody else"):
            every.save(page)
        return versions()

    registry.add(conflict)
    assert registry.command_bus.dispatch("home", route="pages.conflict") == [1, 2]
    assert EventTag.objects.count() == 2


def test_e05_5_two_factories(server):
    """One identifier, one stream; the loser can go on in its transaction. [E05.5]"""
    registry = registry_of(Locked)
    after = []

    def open_it(number):
        with transaction.atomic():
            try:
                registry.command_bus.dispatch(Open("home"))
            except AggregateAlreadyExists as error:
                after.append(Stream.objects.count())
                return str(error)
        return None

    results = at_once(open_it, 5)

    assert Counter(results) == {None: 1, "Locked with page_id=home exists already.": 4}
    assert after == [1] * 4
    assert versions() == [1]


@pytest.mark.parametrize("cls", [Locked, Versioned])
def test_e05_6_a_nested_command_for_the_same_one(cls):
    """The error names both handlers, and nothing of either is kept. [E05.6]"""
    registry = registry_of(cls)
    registry.command_bus.dispatch(Open("home"))

    with pytest.raises(ConcurrencyError) as raised:
        registry.command_bus.dispatch(Nest("home"))

    name = cls.__name__
    assert str(raised.value) == (
        f"{name} with page_id=home was changed or deleted by {name}.visit since "
        f"{name}.nest loaded it, in the same unit of work: a save would overwrite that. "
        "This attempt saved nothing. Send after the save: record an event, give the "
        "handler output=, or use a channel."
    )
    assert versions() == [1]


def test_e05_7_a_stale_snapshot_of_the_database(server):
    """Under REPEATABLE READ the stale one raises, and loses nothing. [E05.7]"""
    registry = registry_of(Locked)
    registry.command_bus.dispatch(Open("home"))
    begin = {
        "postgresql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "mysql": "SELECT 1",
    }[connection.vendor]
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        with pytest.raises((ConcurrencyError, OperationalError)):
            stale(registry, begin)
    finally:
        connection.close()

    assert versions() == [1, 2]


@transaction.atomic
def stale(registry, begin):
    """Append after another thread has, in a transaction that does not see it."""
    with connection.cursor() as cursor:
        cursor.execute(begin)
    assert StoredEvent.objects.count() == 1

    def visit():
        registry.command_bus.dispatch(Visit("home"))
        connections.close_all()

    other = threading.Thread(target=visit)
    other.start()
    other.join()
    registry.command_bus.dispatch(Visit("home"))
