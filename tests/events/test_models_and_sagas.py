"""Models with a stream beside their row, event-sourced sagas, and repositories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar
from uuid import UUID

import pytest
from django.db import transaction
from django.utils import timezone

from django_cqrs import (
    Fetch,
    Message,
    Send,
    command_bus,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.checks import check_registry
from django_cqrs.events import (
    EventStore,
    SagaCompleted,
    applies,
    event_store,
    event_stream,
    replay,
)
from django_cqrs.events.models import StoredEvent, Stream
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidOption,
    StreamArchived,
)
from django_cqrs.modelling import Repository, Saga, aggregate, saga
from django_cqrs.models import RecordsEvents
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.testing.flow import Flow
from tests.events.baskets import Add, Added, Basket, Open, Opened
from tests.modelling.messages import ParcelMoved, ParcelSent
from tests.modelling.models import Parcel
from tests.support import registry_of

pytestmark = [pytest.mark.django_db, pytest.mark.database]

ONE, TWO = UUID(int=1), UUID(int=2)


# Models --------------------------------------------------------------------------------


class TestModels:
    def test_e07_1_row_and_events(self, flow):
        """Both are written in one transaction; the version counts events. [E07.1]"""
        with transaction.atomic():
            gone = command_bus.dispatch("here", route="parcel.send")
            transaction.set_rollback(True)
        pk = command_bus.dispatch("here", route="parcel.send")
        command_bus.dispatch("there", route="parcel.move", aggregate_id=pk)

        assert Parcel.objects.get().place == "there"
        stored = list(event_store.read(f"modelling.parcel-{pk}"))
        assert [(each.version, each.event) for each in stored] == [
            (1, ParcelSent(pk)),
            (2, ParcelMoved("here", "there")),
        ]
        assert stored[1].headers == {
            "aggregate_id": pk,
            "aggregate_type": "modelling.Parcel",
            "aggregate_version": 2,
        }
        assert flow.published == [
            *([ParcelSent(gone)]),
            *(each.event for each in stored),
        ]

    def test_e07_2_a_save_without_events(self):
        """It appends nothing, and what the method returns is its result. [E07.2]"""
        pk = command_bus.dispatch("here", route="parcel.send")

        result = command_bus.dispatch("x", route="parcel.touch", aggregate_id=pk)

        assert result == ParcelMoved("a result", "not an event")
        assert Parcel.objects.get().place == "x"
        assert StoredEvent.objects.count() == 1

    def test_deleted_by_its_handler(self):
        """Its last events are in its stream, which stays."""
        pk = command_bus.dispatch("here", route="parcel.send")
        command_bus.dispatch("x", route="parcel.lose", aggregate_id=pk)

        assert not Parcel.objects.exists()
        found = list(event_store.read(f"modelling.parcel-{pk}"))
        assert found[1].event == ParcelMoved("here", "nowhere")
        assert found[1].headers["aggregate_id"] == pk

    def test_a_row_that_is_older_than_its_stream(self):
        """A stream begins with the first event of a row that was there before."""
        parcel = Parcel.objects.create(place="here")
        command_bus.dispatch("there", route="parcel.move", aggregate_id=parcel.pk)
        command_bus.dispatch("back", route="parcel.move", aggregate_id=parcel.pk)

        found = event_store.read(f"modelling.parcel-{parcel.pk}")
        assert [each.version for each in found] == [1, 2]

    def test_its_past_is_not_kept(self):
        """The state of a model is its row: events do not make it."""
        with pytest.raises(InvalidOption, match="Parcel has no appliers"):
            event_store.load(Parcel, 1)

    def test_no_check_complains(self):
        """A model with a stream is sound."""
        assert check_registry(registry_of(Parcel)) == []


# Sagas ---------------------------------------------------------------------------------


@message("orders.started")
@dataclass(frozen=True)
class Started:
    process_id: int


@message("orders.settled")
@dataclass(frozen=True)
class Settled:
    process_id: int


@message("orders.packed")
@dataclass(frozen=True)
class Packed:
    process_id: int


@message("orders.due")
@dataclass(frozen=True)
class Due:
    process_id: int


@message("orders.ship")
@dataclass(frozen=True)
class Ship:
    process_id: int


@message("orders.process_begun")
@dataclass(frozen=True)
class Begun:
    process_id: int


@message("orders.process_moved")
@dataclass(frozen=True)
class Advanced:
    step: str


class Process:
    """The handlers of a saga; each notes what has happened to it."""

    @event_handler
    @classmethod
    def start(cls, event: Started) -> tuple[Begun, Send]:
        later = Send(Due(event.process_id), delay=timedelta(hours=24))
        return Begun(event.process_id), later

    @event_handler
    def on_settled(self: Any, event: Settled) -> Advanced:
        return Advanced("settled")

    @event_handler(output="process.ship", on_missing="ignore")
    def on_packed(self: Any, event: Packed) -> tuple[Advanced, Send] | Advanced:
        if "settled" not in self.steps:
            return Advanced("packed")
        return Advanced("packed"), Send(Ship(self.process_id))

    @command_handler(channel="outbox", delay=timedelta(hours=24))
    def on_due(self: Any, command: Due) -> Advanced:
        self.complete()
        return Advanced("due")

    @command_handler("process.finish")
    def finish(self: Any, number: int = 0) -> None:
        self.complete()

    @query_handler("process.steps")
    def get_steps(self: Any) -> list[str]:
        return self.steps

    @applies
    def begun(self: Any, event: Begun) -> None:
        self.process_id = event.process_id

    @applies
    def moved(self: Any, event: Advanced) -> None:
        self.steps = [*self.steps, event.step]


@saga(identifier="process_id")
@event_stream("orders.process")
@dataclass(kw_only=True)
class DataProcess(Process, Saga):
    process_id: int = 0
    steps: tuple[str, ...] = ()


@saga(identifier="process_id")
@event_stream("orders.plain_process")
class BareProcess(Process, Saga):
    process_id: int = 0
    steps: tuple[str, ...] = ()

    def __init__(self, number: int) -> None:
        raise AssertionError


@pytest.fixture(params=[DataProcess, BareProcess], ids=lambda cls: cls.__name__)
def kind(request):
    return request.param


@pytest.fixture
def seen():
    return []


@pytest.fixture
def processes(kind, seen):
    @command_handler("process.ship")
    def ship(command: Ship) -> None:
        found = EventStore(registry=processes).load(kind, command.process_id)
        seen.append(found.steps)

    processes = registry_of(kind, ship)
    return processes


class TestSagas:
    def test_no_check_complains(self, processes):
        """Each kind may be kept as its events."""
        assert check_registry(processes) == []

    def test_e07_3_started_moved_completed(self, processes, kind):
        """Each step is an event, and so is the end. [E07.3]"""
        publish = processes.event_bus.publish
        publish(Started(7))
        publish(Settled(7))
        processes.command_bus.dispatch(route="process.finish", aggregate_id=7)

        store = EventStore(registry=processes)
        stored = [each.event for each in store.read(str(Stream.objects.get()))]
        assert stored[:2] == [Begun(7), Advanced("settled")]
        assert [type(each) for each in stored[2:]] == [SagaCompleted]
        assert store.load(kind, 7).completed_at == stored[2].completed_at

    def test_e07_3_a_tombstone(self, processes):
        """A completed one is not started again, and a late message is refused. [E07.3]"""
        publish = processes.event_bus.publish
        publish(Started(7))
        processes.command_bus.dispatch(route="process.finish", aggregate_id=7)

        with pytest.raises(AggregateAlreadyExists):
            publish(Started(7))
        with pytest.raises(AggregateNotFound, match="is completed"):
            publish(Settled(7))
        publish(Packed(7))  # on_missing="ignore"
        assert StoredEvent.objects.count() == 2

    def test_e07_3_a_timeout(self, processes):
        """It comes when it is due; a late one is dropped. [E07.3]"""
        with Flow(registry=processes) as flow:
            processes.event_bus.publish(Started(7))
            assert flow.run("outbox") == 0
            flow.advance(hours=24)
            assert flow.run("outbox") == 1
            processes.command_bus.dispatch(Due(7))
            flow.advance(hours=24)
            assert flow.run("outbox") == 1

        steps = processes.query_bus.ask(route="process.steps", aggregate_id=7)
        assert list(steps) == ["due"]
        assert StoredEvent.objects.count() == 3

    def test_e07_3_timers_end(self, processes):
        """A saga that is completed takes back what waits for it. [E07.3]"""
        for number in (7, 8):
            processes.event_bus.publish(Started(number))
        processes.command_bus.dispatch(route="process.finish", aggregate_id=7)

        (left,) = OutboxMessage.objects.all()
        assert left.subject.endswith(":8")

    def test_e07_4_output(self, processes, seen):
        """What is sent on comes after the append; an event is not sent on. [E07.4]"""
        publish = processes.event_bus.publish
        publish(Started(7))
        publish(Packed(7))
        assert seen == []
        publish(Settled(7))
        publish(Packed(7))

        assert [list(steps) for steps in seen] == [["packed", "settled", "packed"]]


# Repositories --------------------------------------------------------------------------


class TestRepositories:
    def run(self, function, *more):
        """Call a handler with a repository of baskets."""
        registry = registry_of(Basket, command_handler("baskets.by_hand")(function))
        for each in more:
            registry.add(each)
        registry.command_bus.dispatch(Open(ONE, ("tea",)))
        return registry.command_bus.dispatch(1, route="baskets.by_hand")

    def test_e07_5_get_and_find(self):
        """``get`` raises, ``find`` returns None. [E07.5]"""

        def by_hand(number: int, baskets: Repository[Basket]) -> None:
            assert baskets.get(str(ONE)).items == ["tea"]
            assert baskets.find(TWO) is None
            with pytest.raises(AggregateNotFound):
                baskets.get(TWO)

        self.run(by_hand)

    def test_e07_5_fetch(self):
        """A handler's parameter gets the object that its message names. [E07.5]"""

        @command_handler
        def fetch(
            command: Add,
            basket: Annotated[Basket, Fetch("basket_id")],
            other: Annotated[Basket | None, Fetch("basket_id", lock=False)],
        ) -> list[str]:
            return basket.items

        registry = registry_of(fetch)
        store = EventStore(registry=registry_of(Basket))
        store.append([Opened(ONE), Added(ONE, "tea")], stream=f"baskets.basket-{ONE}")
        registry.add(Opened)
        registry.add(Added)
        assert registry.command_bus.dispatch(Add(ONE, "x")) == ["tea"]

    def test_e07_5_delete(self):
        """Its stream is archived: it can be read, and not be changed. [E07.5]"""

        def by_hand(number: int, baskets: Repository[Basket]) -> None:
            basket = baskets.get(ONE)
            baskets.delete(basket)
            with pytest.raises(StreamArchived, match="is archived"):
                baskets.find(ONE)

        self.run(by_hand)
        registry = registry_of(Basket)
        with pytest.raises(StreamArchived):
            registry.command_bus.dispatch(Add(ONE, "jam"))
        assert EventStore(registry=registry).load(Basket, ONE).items == ["tea"]
        assert Stream.objects.get().archived_at is not None

    def test_e07_5_an_archived_one_without_a_lock(self):
        """It is refused at its append, as one that is locked is when it is loaded. [E07.5]"""

        @aggregate(version="version")
        @event_stream("baskets.unlocked")
        @dataclass
        class Unlocked:
            unlocked_id: UUID | None = None
            version: int = 0

            @command_handler
            @classmethod
            def open(cls, command: Open) -> Opened:
                return Opened(command.basket_id)

            @command_handler(identifier="basket_id")
            def add(self, command: Add) -> Added:
                return Added(self.unlocked_id, command.sku)

            @applies
            def opened(self, event: Opened) -> None:
                self.unlocked_id = event.basket_id

            @applies
            def added(self, event: Added) -> None: ...

        registry = registry_of(Unlocked)
        registry.command_bus.dispatch(Open(ONE))
        registry.command_bus.dispatch(Add(ONE, "tea"))
        Stream.objects.update(archived_at=timezone.now())

        with pytest.raises(StreamArchived, match="is archived"):
            registry.command_bus.dispatch(Add(ONE, "jam"))

        assert StoredEvent.objects.count() == 2

    def test_e07_5_deleted_by_its_own_handler(self):
        """What it has recorded is appended, and nothing is appended later. [E07.5]"""

        @aggregate(identifier="basket_id")
        @event_stream("baskets.removed")
        @dataclass
        class Removed(RecordsEvents):
            basket_id: UUID | None = None

            @command_handler
            @classmethod
            def open(cls, command: Open) -> Opened:
                return Opened(command.basket_id)

            @command_handler
            def remove(self, command: Add, every: Repository[Basket]) -> None:
                self.record(Added(self.basket_id, "last"))
                every.delete(self)

            @applies
            def opened(self, event: Opened) -> None:
                self.basket_id = event.basket_id

        Removed.remove.__annotations__["every"] = Repository[Removed]
        registry = registry_of(Removed)
        registry.add(Added)
        registry.command_bus.dispatch(Open(ONE))
        registry.command_bus.dispatch(Add(ONE, ""))

        assert StoredEvent.objects.count() == 2
        assert Stream.objects.get().archived_at is not None
        with pytest.raises(StreamArchived):
            registry.command_bus.dispatch(Add(ONE, ""))

    def test_an_object_of_the_past_is_not_saved(self):
        """It would overwrite what happened since: the save raises."""

        def by_hand(number: int, baskets: Repository[Basket]) -> None:
            past = EventStore(registry=registry_of(Basket)).load(Basket, ONE, version=1)
            storage = baskets._subject.storage
            with pytest.raises(ConcurrencyError):
                storage.absorb(
                    past, [Added(ONE, "x")], None, using="default", about=about
                )

        def about(values: Any, version: Any) -> dict[str, Any]:
            return {}

        self.run(by_hand)
        assert StoredEvent.objects.count() == 2

    @pytest.mark.django_db(transaction=True)
    def test_saved_outside_a_transaction(self):
        """A save by hand is a transaction of its own, with what follows. [E07.5]"""
        registry = registry_of(Basket)

        @event_handler
        def refuse(event: Opened) -> None:
            raise RuntimeError("no")

        @query_handler("baskets.save")
        def save(number: int, baskets: Repository[Basket]) -> None:
            basket, _ = baskets._subject.storage.made_of(Opened(ONE))
            baskets.save(basket)

        for each in (refuse, save):
            registry.add(each)
        with pytest.raises(RuntimeError):
            registry.query_bus.ask(1, route="baskets.save")
        assert not StoredEvent.objects.exists()


@pytest.mark.parametrize("is_versioned", [False, True])
def test_e07_5_a_repository_of_ones_own(is_versioned):
    """It is given the events, applied and with their headers. [E07.5]"""
    kept: dict[Any, list[Message]] = {}

    class Kept(Repository[Any]):
        cls: ClassVar[Any] = None

        def find(self, identifier):
            events = [each.payload for each in kept.get(identifier, [])]
            if not events:
                return None
            found = replay(self.cls, events)
            if is_versioned:
                found.version = len(events)
            return found

        def append(self, instance: Any, events: Sequence[Message]) -> None:
            kept.setdefault(instance.basket_id, []).extend(events)

    store = Kept()

    @aggregate(
        identifier="basket_id",
        repository=store,
        version="version" if is_versioned else None,
    )
    @dataclass
    class Own(RecordsEvents):
        basket_id: UUID | None = None
        items: tuple[str, ...] = ()
        version: int = 0

        @command_handler
        @classmethod
        def open(cls, command: Open) -> list[Opened | Added]:
            return [Opened(command.basket_id), Added(command.basket_id, "first")]

        @command_handler
        def add(self, command: Add) -> Added:
            self.record(Added(self.basket_id, "recorded"))
            return Added(self.basket_id, command.sku)

        @applies
        def opened(self, event: Opened) -> None:
            self.basket_id = event.basket_id

        @applies
        def added(self, event: Added) -> None:
            self.items = (*self.items, event.sku)

    Kept.cls = Own
    registry = registry_of(Own)
    assert check_registry(registry) == []
    with Flow(registry=registry) as flow:
        dispatch = registry.command_bus.dispatch
        assert dispatch(Open(ONE), headers={"executor_id": 7}) == ONE
        assert dispatch(Add(ONE, "tea")) == Added(ONE, "tea")
        with pytest.raises(AggregateAlreadyExists):
            dispatch(Open(ONE))

    messages = kept[ONE]
    assert [each.payload for each in messages] == flow.published
    assert flow.published == [
        Opened(ONE),
        Added(ONE, "first"),
        Added(ONE, "recorded"),
        Added(ONE, "tea"),
    ]
    assert messages[0].headers["executor_id"] == 7
    versions = [each.headers.get("aggregate_version") for each in messages]
    assert versions == ([2, 2, 4, 4] if is_versioned else [None] * 4)
    assert store.find(ONE).items == ("first", "recorded", "tea")
    assert not StoredEvent.objects.exists()
