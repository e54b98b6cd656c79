"""Aggregates that are their events: what they return and record is appended."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import (
    CommandBus,
    Header,
    Headers,
    Identifier,
    InstantRetry,
    Version,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.checks import check_registry
from django_cqrs.events import EventStore, Stored, applies, event_stream
from django_cqrs.events.models import NaturalKey, Snapshot, StoredEvent, Stream
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidEvent,
    InvalidHandler,
    InvalidIdentifier,
)
from django_cqrs.modelling import Repository, aggregate
from django_cqrs.models import RecordsEvents
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.testing.flow import Flow
from tests.events.baskets import (
    BASKETS,
    Add,
    AddAll,
    Added,
    Basket,
    Count,
    Describe,
    Fail,
    Mix,
    Open,
    Opened,
)
from tests.support import registry_of

pytestmark = [pytest.mark.django_db, pytest.mark.database]

ONE, TWO = UUID(int=1), UUID(int=2)


@pytest.fixture(params=BASKETS, ids=lambda cls: cls.__name__)
def kind(request):
    return request.param


@pytest.fixture
def registry(kind):
    return registry_of(kind)


@pytest.fixture
def dispatch(registry):
    return registry.command_bus.dispatch


def events_of(registry):
    """Return the version and the content of each event of the only stream."""
    (stream,) = Stream.objects.all()
    store = EventStore(registry=registry)
    return [(each.version, each.event) for each in store.read(str(stream))]


@contextmanager
def queries():
    """Yield the statements, those of transactions left out."""
    found = []
    with CaptureQueriesContext(connection) as captured:
        yield found
    words = [each["sql"].split()[0].upper() for each in captured.captured_queries]
    found += [w for w in words if w in ("SELECT", "INSERT", "UPDATE", "DELETE")]


def test_no_check_complains(registry):
    """Each kind may be kept as it is."""
    assert check_registry(registry) == []


class TestReturnedEvents:
    @pytest.mark.parametrize("also", [(), ("tea", "jam")], ids=str)
    def test_e01_1_a_factory(self, registry, dispatch, also):
        """Its events make the stream; the identifier is the result. [E01.1]"""
        with Flow(registry=registry) as flow:
            assert dispatch(Open(ONE, also)) == ONE

        expected = [Opened(ONE), *(Added(ONE, sku) for sku in also)]
        assert events_of(registry) == list(enumerate(expected, 1))
        assert flow.published == expected

    def test_e01_1_a_tuple(self):
        """A factory may return its events as a tuple. [E01.1]"""

        @aggregate(identifier="basket_id")
        @event_stream("baskets.tuple")
        @dataclass
        class Twin:
            basket_id: UUID | None = None

            @command_handler
            @classmethod
            def open(cls, command: Open) -> tuple[Opened, Opened]:
                return Opened(command.basket_id), Opened(command.basket_id)

            @applies
            def opened(self, event: Opened) -> None:
                self.basket_id = event.basket_id

        registry = registry_of(Twin)
        assert registry.command_bus.dispatch(Open(ONE)) == ONE
        assert events_of(registry) == [(1, Opened(ONE)), (2, Opened(ONE))]

    def test_e01_2_an_action(self, registry, dispatch):
        """What it returns is appended behind, and is the result. [E01.2]"""
        dispatch(Open(ONE))

        with Flow(registry=registry) as flow:
            assert dispatch(Add(ONE, "tea")) == Added(ONE, "tea")
            both = [Added(ONE, "a"), Added(ONE, "b")]
            assert dispatch(AddAll(ONE, ["a", "b"])) == both

        versions = [version for version, _ in events_of(registry)]
        assert versions == [1, 2, 3, 4]
        assert flow.published == [Added(ONE, "tea"), *both]
        assert registry.query_bus.ask(Count(ONE)) == 3

    def test_e01_3_nothing_happened(self, registry, dispatch):
        """An action without events writes nothing. [E01.3]"""
        dispatch(Open(ONE))
        dispatch(Add(ONE, "tea"))

        with Flow(registry=registry) as flow, queries() as made:
            assert dispatch(Add(ONE, "tea")) is None
            assert dispatch(AddAll(ONE, [])) == []

        assert set(made) == {"SELECT"}
        assert flow.published == []
        assert StoredEvent.objects.count() == 2

    @pytest.mark.parametrize("nothing", [None, [], ()], ids=repr)
    def test_e01_3_a_factory_without_events(self, nothing):
        """There is no stream, and the result is None. [E01.3]"""

        @aggregate(identifier="basket_id")
        @event_stream("baskets.nothing")
        @dataclass
        class Nothing:
            basket_id: UUID | None = None

            @command_handler
            @classmethod
            def open(cls, command: Open) -> list[Opened] | None:
                return nothing

            @applies
            def opened(self, event: Opened) -> None: ...

        registry = registry_of(Nothing)
        with Flow(registry=registry) as flow, queries() as made:
            assert registry.command_bus.dispatch(Open(ONE)) is None

        assert made == flow.published == []
        assert not Stream.objects.exists()

    def test_e01_4_events_and_other_values(self, registry, dispatch):
        """A list of both is refused; a list without events is a result. [E01.4]"""
        dispatch(Open(ONE, ("tea",)))

        with pytest.raises(InvalidHandler, match="of type str, which no applier takes"):
            dispatch(Mix(ONE))
        assert dispatch(Describe(ONE)) == ["tea"]

        assert StoredEvent.objects.count() == 2

    def test_e01_5_an_exception(self, registry, dispatch):
        """Nothing is appended, and nothing published. [E01.5]"""
        dispatch(Open(ONE))

        with Flow(registry=registry) as flow, pytest.raises(RuntimeError):
            dispatch(Fail(ONE))

        assert events_of(registry) == [(1, Opened(ONE))]
        assert flow.published == []

    def test_e01_5_an_exception_of_a_handler(self, registry, dispatch):
        """A handler of the event that fails undoes the append. [E01.5]"""
        heard = []

        @event_handler
        def refuse(event: Added) -> None:
            heard.append(event)
            raise RuntimeError("no")

        dispatch(Open(ONE))
        registry.add(refuse)
        with pytest.raises(RuntimeError):
            dispatch(Add(ONE, "tea"))

        assert heard == [Added(ONE, "tea")]
        assert events_of(registry) == [(1, Opened(ONE))]

    def test_e01_6_a_handler_reads_the_stream(self, registry, dispatch):
        """A handler of the event finds it in the stream. [E01.6]"""
        seen = []

        @event_handler
        def read(event: Added) -> None:
            seen.extend(events_of(registry))

        registry.add(read)
        dispatch(Open(ONE))
        dispatch(Add(ONE, "tea"))

        assert seen == [(1, Opened(ONE)), (2, Added(ONE, "tea"))]


# Recorded events -----------------------------------------------------------------------


@message("baskets.counted")
@dataclass(frozen=True)
class Counted:
    basket_id: UUID
    by: int


@dataclass(frozen=True)
class CountTwice:
    basket_id: UUID


@dataclass(frozen=True)
class CountBoth:
    basket_id: UUID


@aggregate(identifier="basket_id", version="version")
@event_stream("baskets.recording")
@dataclass
class Recording(RecordsEvents):
    basket_id: UUID | None = None
    total: int = 0
    version: int = 0

    @command_handler
    @classmethod
    def open(cls, command: Open) -> Recording:
        basket = cls()
        basket.record(Opened(command.basket_id))
        basket.record(Counted(command.basket_id, 3))
        return basket

    @command_handler
    def count_twice(self, command: CountTwice) -> list[int]:
        seen = [self.total]
        for _ in range(2):
            self.record(Counted(self.basket_id, self.total))
            seen.append(self.total)
        return seen

    @command_handler
    def count_both(self, command: CountBoth) -> Counted:
        self.record(Counted(self.basket_id, 1))
        return Counted(self.basket_id, 2)

    @query_handler
    def total_of(self, query: Count) -> int:
        return self.total

    @applies
    def opened(self, event: Opened) -> None:
        self.basket_id = event.basket_id

    @applies
    def counted(self, event: Counted) -> None:
        if event.by < 0:
            raise ValueError("a negative number")
        self.total += event.by


class TestRecordedEvents:
    @pytest.fixture
    def registry(self):
        return registry_of(Recording)

    def test_e02_1_applied_at_once(self, registry, dispatch):
        """The next line of the method sees the new state. [E02.1]"""
        dispatch(Open(ONE))

        assert dispatch(CountTwice(ONE)) == [3, 6, 12]
        assert registry.query_bus.ask(Count(ONE)) == 12

    def test_e02_2_a_factory_that_returns_its_instance(self, registry):
        """Its identifier and version are set, and its events stored once. [E02.2]"""
        kept = []

        @command_handler("recording.make")
        def make(number: int, every: Repository[Recording]) -> None:
            basket = Recording.open(Open(ONE))
            every.save(basket)
            kept.append((basket.basket_id, basket.version))

        registry.add(make)
        registry.command_bus.dispatch(1, route="recording.make")

        assert kept == [(ONE, 2)]
        expected = [(1, Opened(ONE)), (2, Counted(ONE, 3))]
        assert events_of(registry) == expected

        with pytest.raises(AggregateAlreadyExists, match="exists already"):
            registry.command_bus.dispatch(Open(ONE))
        assert events_of(registry) == expected

    def test_e02_3_both_ways_in_one_method(self, registry, dispatch):
        """Recorded events come first. [E02.3]"""
        dispatch(Open(ONE))

        assert dispatch(CountBoth(ONE)) == Counted(ONE, 2)
        assert events_of(registry)[2:] == [(3, Counted(ONE, 1)), (4, Counted(ONE, 2))]

    def test_e02_4_a_second_save_appends_nothing(self, registry, dispatch):
        """What was appended is forgotten. [E02.4]"""

        @command_handler("recording.twice")
        def save_twice(number: int, every: Repository[Recording]) -> None:
            basket = every.get(ONE)
            basket.record(Counted(ONE, number))
            every.save(basket)
            every.save(basket)

        registry.add(save_twice)
        dispatch(Open(ONE))
        dispatch(5, route="recording.twice")

        assert events_of(registry)[2:] == [(3, Counted(ONE, 5))]

    def test_e02_5_an_applier_that_raises(self, registry, dispatch):
        """Nothing is recorded, and nothing appended. [E02.5]"""
        basket = Recording.open(Open(ONE))
        with pytest.raises(ValueError, match="a negative number"):
            basket.record(Counted(ONE, -1))
        assert basket.recorded_events == [Opened(ONE), Counted(ONE, 3)]

        @command_handler("recording.broken")
        def broken(number: int, every: Repository[Recording]) -> None:
            found = every.get(ONE)
            found.record(Counted(ONE, 1))
            found.record(Counted(ONE, -1))

        registry.add(broken)
        dispatch(Open(ONE))
        with pytest.raises(ValueError, match="a negative number"):
            dispatch(1, route="recording.broken")
        assert len(events_of(registry)) == 2

    def test_a_function_is_called_at_once(self):
        """An event-sourced object knows its identifier before it is saved."""
        basket = Recording.open(Open(ONE))
        basket.record(lambda: Counted(basket.basket_id, 4))

        assert basket.total == 7
        assert basket.recorded_events[-1] == Counted(ONE, 4)


def test_e02_4_without_bus_and_database():
    """``recorded_events`` and the state are there in a plain test. [E02.4]"""
    basket = Recording.open(Open(ONE))

    assert basket.recorded_events == [Opened(ONE), Counted(ONE, 3)]
    assert (basket.basket_id, basket.total) == (ONE, 3)


# Identifiers and versions --------------------------------------------------------------


class Sku:
    """A value object without equality."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@message("ids.opened")
@dataclass(frozen=True)
class ThingOpened:
    thing_id: Any = None
    second: int = 0


class Things:
    @command_handler("thing.open")
    @classmethod
    def open(cls, thing_id: Any) -> ThingOpened:
        return ThingOpened(str(thing_id) if isinstance(thing_id, UUID) else thing_id)

    @command_handler("thing.touch")
    def touch(self: Any, number: int = 0) -> str:
        return repr(self.thing_id)


class TestIdentifier:
    def test_e04_1_it_must_be_set(self):
        """The first event's applier sets it, or nothing is appended. [E04.1]"""

        @aggregate(identifier="thing_id")
        @event_stream("ids.unset")
        @dataclass
        class Thing(Things):
            thing_id: int | None = None

            @applies
            def opened(self, event: ThingOpened) -> None: ...

        with pytest.raises(InvalidIdentifier) as raised:
            registry_of(Thing).command_bus.dispatch(3, route="thing.open")

        assert str(raised.value) == (
            "The events of a Thing do not set thing_id, which identifies it: an applier "
            "of the first event must set it."
        )
        assert not Stream.objects.exists()
        assert not StoredEvent.objects.exists()

    def test_e04_2_it_must_not_change(self):
        """A later applier that changes it appends nothing. [E04.2]"""

        @aggregate(identifier="basket_id")
        @event_stream("ids.changed")
        @dataclass
        class Changed:
            basket_id: UUID | None = None

            @command_handler
            @classmethod
            def open(cls, command: Open) -> Opened:
                return Opened(command.basket_id)

            @command_handler
            def add(self, command: Add) -> Added:
                return Added(TWO, command.sku)

            @applies
            def set(self, event: Opened | Added) -> None:
                self.basket_id = event.basket_id

        registry = registry_of(Changed)
        registry.command_bus.dispatch(Open(ONE))
        with pytest.raises(InvalidIdentifier, match="was given another identifier"):
            registry.command_bus.dispatch(Add(ONE, "tea"))
        assert events_of(registry) == [(1, Opened(ONE))]

    @pytest.mark.parametrize(
        ("annotation", "value", "key", "shown"),
        [
            (int, 3, "3", "3"),
            (UUID, ONE, str(ONE), repr(ONE)),
            (str, "a b", "a b", "'a b'"),
        ],
        ids=str,
    )
    def test_e04_3_types(self, annotation, value, key, shown):
        """An identifier is found by its value, and by its text. [E04.3]"""

        @aggregate(identifier="thing_id")
        @event_stream("ids.typed")
        class Thing(Things):
            thing_id: annotation

            @applies
            def opened(self, event: ThingOpened) -> None:
                self.thing_id = annotation(str(event.thing_id))

        Thing.__annotations__["thing_id"] = annotation
        dispatch = registry_of(Thing).command_bus.dispatch
        assert dispatch(value, route="thing.open") == value
        assert dispatch(route="thing.touch", aggregate_id=value) == shown
        assert dispatch(route="thing.touch", aggregate_id=str(value)) == shown
        assert Stream.objects.get().key == key

    def test_e04_3_a_value_object(self):
        """A value object is its text. [E04.3]"""

        @aggregate(identifier="thing_id")
        @event_stream("ids.objects")
        @dataclass
        class Thing(Things):
            thing_id: Any = None

            @applies
            def opened(self, event: ThingOpened) -> None:
                self.thing_id = Sku(event.thing_id)

        dispatch = registry_of(Thing).command_bus.dispatch
        assert dispatch("x-1", route="thing.open") == "x-1"
        assert dispatch(route="thing.touch", aggregate_id=Sku("x-1")).startswith("<")
        assert Stream.objects.get().key == "x-1"

    def test_e04_3_two_attributes(self):
        """Several attributes are found as a tuple, a dict, and in the message. [E04.3]"""

        @dataclass(frozen=True)
        class Touch:
            thing_id: int
            number: Annotated[int, Identifier("second")]

        @aggregate(identifier=("thing_id", "second"))
        @event_stream("ids.two")
        @dataclass
        class Thing:
            thing_id: int = 0
            second: int = 0

            @command_handler("thing.open")
            @classmethod
            def open(cls, number: int) -> ThingOpened:
                return ThingOpened(number, number + 1)

            @command_handler
            def touch(self, command: Touch) -> int:
                return self.second

            @command_handler("thing.second", identifier=Header("which"))
            def get_second(self, command: str) -> int:
                return self.second

            @applies
            def opened(self, event: ThingOpened) -> None:
                self.thing_id, self.second = event.thing_id, event.second

        dispatch = registry_of(Thing).command_bus.dispatch
        assert dispatch(3, route="thing.open") == (3, 4)
        assert dispatch(Touch(3, 4)) == 4
        for given in ((3, 4), {"second": "4", "thing_id": 3}):
            assert dispatch(Touch(0, 0), aggregate_id=given) == 4
        assert Stream.objects.get().key == '["3","4"]'

    def test_e04_5_an_unknown_one(self, dispatch, kind):
        """The error has class, method and identifier; nothing is written. [E04.5]"""
        with pytest.raises(AggregateNotFound) as raised:
            dispatch(Add(ONE, "tea"))

        assert str(raised.value) == (
            f"{kind.__name__}.add was not called: there is no {kind.__name__} with "
            f"basket_id={ONE}."
        )
        assert not StoredEvent.objects.exists()

    def test_e04_5_ignored(self):
        """``on_missing="ignore"`` drops the message. [E04.5]"""

        @aggregate(identifier="basket_id")
        @event_stream("ids.ignored")
        @dataclass
        class Ignoring:
            basket_id: UUID | None = None

            @command_handler(on_missing="ignore")
            def add(self, command: Add) -> Added:
                raise AssertionError

            @applies
            def added(self, event: Added) -> None: ...

        assert registry_of(Ignoring).command_bus.dispatch(Add(ONE, "tea")) is None

    @pytest.mark.parametrize(
        "key", ["", "x" * 256, "space "], ids=["", "long", "space"]
    )
    def test_identifiers_that_no_stream_can_have(self, key):
        """They are refused before anything is written."""

        @aggregate(identifier="thing_id")
        @event_stream("ids.odd")
        @dataclass
        class Thing(Things):
            thing_id: str = "?"

            @applies
            def opened(self, event: ThingOpened) -> None:
                self.thing_id = event.thing_id

        with pytest.raises(InvalidIdentifier, match="1 to 255 characters"):
            registry_of(Thing).command_bus.dispatch(key, route="thing.open")
        assert not Stream.objects.exists()


@dataclass(frozen=True)
class Visit:
    basket_id: UUID


@dataclass(frozen=True)
class CountIf:
    basket_id: UUID
    seen: Annotated[int, Version()]


@aggregate(identifier="basket_id", version="version")
@event_stream("baskets.visited")
@dataclass
class Visited:
    basket_id: UUID | None = None
    version: int = 0

    @command_handler
    @classmethod
    def first(cls, command: Visit) -> Opened:
        return Opened(command.basket_id)

    @command_handler
    def again(self, command: Visit) -> Counted:
        return Counted(self.basket_id, self.version)

    @command_handler
    def count_if(self, command: CountIf) -> Counted:
        return Counted(self.basket_id, self.version)

    @applies
    def opened(self, event: Opened) -> None:
        self.basket_id = event.basket_id

    @applies
    def counted(self, event: Counted) -> None: ...


class TestVersion:
    @pytest.fixture
    def registry(self):
        return registry_of(Visited)

    def test_e04_6_factory_or_action(self, registry, dispatch):
        """The first dispatch creates, the second acts. [E04.6]"""
        assert dispatch(Visit(ONE)) == ONE
        assert dispatch(Visit(ONE)) == Counted(ONE, 1)
        assert dispatch(Visit(ONE)) == Counted(ONE, 2)

    def test_e04_4_it_is_the_number_of_events(self, registry, dispatch):
        """The attribute has it before and after; a stale Version() is refused. [E04.4]"""
        dispatch(Visit(ONE))
        assert dispatch(CountIf(ONE, 1)) == Counted(ONE, 1)

        with pytest.raises(ConcurrencyError) as raised:
            dispatch(CountIf(ONE, 1))

        assert str(raised.value) == (
            "Visited.count_if was not called: its sender expected version 1 of the "
            "Visited, but it is now at version 2."
        )
        found = EventStore(registry=registry).load(Visited, ONE)
        assert found.version == 2


# Published events ----------------------------------------------------------------------


class TestPublishedEvents:
    @pytest.fixture
    def registry(self):
        return registry_of(Basket)

    def test_e06_1_one_identity(self, registry, dispatch):
        """The message is the stored event, with its ids and headers. [E06.1]"""
        heard = []

        @event_handler
        def keep(event: object, headers: Headers) -> None:
            heard.append(dict(headers))

        registry.add(keep)
        dispatch(Open(ONE, ("tea",)), headers={"executor_id": 7})

        stored = list(EventStore(registry=registry).read(f"baskets.basket-{ONE}"))
        for each, headers in zip(stored, heard, strict=True):
            assert each.event_id == headers["message_id"]
            assert each.correlation_id == headers["correlation_id"]
            assert each.causation_id == headers["causation_id"]
            assert each.recorded_at == headers["timestamp"]
            assert each.headers["executor_id"] == headers["executor_id"] == 7

    def test_e06_2_headers_about_the_aggregate(self, registry, dispatch):
        """They are those of the event, and are not passed on. [E06.2]"""
        heard, nested = [], []

        @event_handler
        def keep(event: Opened | Added, headers: Headers, bus: CommandBus) -> None:
            names = ("aggregate_id", "aggregate_type", "aggregate_version")
            heard.append([headers[name] for name in names])
            bus.dispatch(event.basket_id, route="baskets.note")

        @command_handler("baskets.note")
        def note(basket_id: UUID, headers: Headers) -> None:
            nested.append([name for name in headers if name.startswith("aggregate_")])

        registry.add(keep)
        registry.add(note)
        dispatch(Open(ONE, ("tea",)))
        dispatch(Add(ONE, "jam"))

        assert heard == [[ONE, "tests.events.baskets.Basket", n] for n in (1, 2, 3)]
        assert nested == [[], [], []]

    def test_e06_3_on_channels(self, registry, dispatch):
        """One row for each endpoint, in the same commit. [E06.3]"""

        @event_handler(channel="outbox", name="baskets.first")
        def first(event: Added) -> None: ...

        @event_handler(channel="outbox", name="baskets.second")
        def second(event: Added) -> None: ...

        registry.add(first)
        registry.add(second)
        dispatch(Open(ONE))
        dispatch(Add(ONE, "tea"))
        with transaction.atomic():
            dispatch(Add(ONE, "jam"))
            transaction.set_rollback(True)

        rows = OutboxMessage.objects.order_by("endpoint")
        stored = StoredEvent.objects.get(version=2)
        assert [row.endpoint for row in rows] == ["baskets.first", "baskets.second"]
        assert {row.message_id for row in rows} == {stored.event_id}
        assert StoredEvent.objects.count() == 2

    def test_e06_4_headers_of_one_event(self):
        """``Stored`` gives an event headers, which win over others. [E06.4]"""
        heard = []

        @aggregate(identifier="basket_id")
        @event_stream("baskets.headers")
        @dataclass
        class WithHeaders(RecordsEvents):
            basket_id: UUID | None = None
            by: list[Any] = field(default_factory=list)

            @command_handler
            @classmethod
            def open(cls, command: Open) -> list[Stored | Opened]:
                own = Stored(Opened(command.basket_id), headers={"executor_id": 2})
                return [Opened(command.basket_id), own]

            @command_handler
            def again(self, command: Add) -> list[Any]:
                again = Opened(self.basket_id)
                self.record(Stored(again, headers={"executor_id": 3}))
                return self.by

            @applies
            def opened(
                self, event: Opened, by: Annotated[int, Header("executor_id")] = 0
            ) -> None:
                self.basket_id = event.basket_id
                self.by.append(by)

        @event_handler
        def keep(event: Opened, by: Annotated[int, Header("executor_id")]) -> None:
            heard.append(by)

        registry = registry_of(WithHeaders, keep)
        registry.command_bus.dispatch(Open(ONE), headers={"executor_id": 1})
        seen = registry.command_bus.dispatch(Add(ONE, ""), headers={"executor_id": 9})

        assert seen == heard == [1, 2, 3]
        stored = StoredEvent.objects.order_by("version")
        assert [each.headers["executor_id"] for each in stored] == [1, 2, 3]

    def test_e06_5_retried_instantly(self, registry):
        """Each event is published once, also where its action is retried. [E06.5]"""
        heard, attempts = [], []

        @event_handler
        def fail_once(event: Added) -> None:
            attempts.append(event)
            if len(attempts) == 1:
                raise ConcurrencyError("once")

        @event_handler(channel="memory")
        def listen(event: Added) -> None:
            heard.append(event)

        for each in (fail_once, listen):
            registry.add(each)
        bus = CommandBus(
            registry=registry, instant_retry=InstantRetry(3, on=(ConcurrencyError,))
        )
        bus.dispatch(Open(ONE))
        with Flow(registry=registry) as flow:
            bus.dispatch(Add(ONE, "tea"))
            flow.run("memory")

        assert len(attempts) == 2
        assert heard == [Added(ONE, "tea")]
        assert events_of(registry)[1:] == [(2, Added(ONE, "tea"))]


@pytest.mark.django_db(databases=["default", "other"])
def test_e16_4_in_another_database():
    """A command with ``using=`` has its stream there, and its snapshots. [E16.4]"""

    @aggregate(identifier="basket_id")
    @event_stream("baskets.elsewhere", snapshot_every=2, natural_key="basket_id")
    @dataclass
    class Elsewhere:
        basket_id: UUID | None = None
        items: list[str] = field(default_factory=list)

        @command_handler(using="other")
        @classmethod
        def open(cls, command: Open) -> Opened:
            return Opened(command.basket_id)

        @command_handler(using="other")
        def add(self, command: Add) -> Added:
            return Added(self.basket_id, command.sku)

        @applies
        def opened(self, event: Opened) -> None:
            self.basket_id = event.basket_id

        @applies
        def added(self, event: Added) -> None:
            self.items.append(event.sku)

    registry = registry_of(Elsewhere)
    registry.command_bus.dispatch(Open(ONE))
    registry.command_bus.dispatch(Add(ONE, "tea"))

    for model, count in ((StoredEvent, 2), (Stream, 1), (Snapshot, 1), (NaturalKey, 1)):
        assert not model.objects.exists()
        assert model.objects.using("other").count() == count
    there = EventStore(using="other", registry=registry)
    assert there.load(Elsewhere, ONE).items == ["tea"]


# Mistakes ------------------------------------------------------------------------------


def test_an_object_without_events_is_not_saved():
    """It would be stored nowhere: the error says how to make it."""

    @command_handler("recording.empty")
    def empty(number: int, every: Repository[Recording]) -> None:
        every.save(Recording(ONE))

    with pytest.raises(InvalidEvent, match="A new Recording has no events"):
        registry_of(Recording, empty).command_bus.dispatch(1, route="recording.empty")


def test_an_event_that_cannot_be_stored(registry, dispatch):
    """Nothing of its command stays."""
    dispatch(Open(ONE))

    with pytest.raises(Exception, match="sku"):
        dispatch(AddAll(ONE, ["fine", 3]))

    assert events_of(registry) == [(1, Opened(ONE))]


def test_a_factory_whose_identifier_is_in_use(registry, dispatch, kind):
    """It raises, changes nothing, and the transaction can continue."""
    dispatch(Open(ONE))

    with transaction.atomic():
        with pytest.raises(AggregateAlreadyExists) as raised:
            dispatch(Open(ONE, ("tea",)))
        dispatch(Open(TWO))

    assert str(raised.value) == f"{kind.__name__} with basket_id={ONE} exists already."
    assert StoredEvent.objects.count() == 2
