"""Appliers bring the state of an object forward, one event after the other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

import pytest

from django_cqrs import Header, Headers, Registry, command_handler, message
from django_cqrs.conversion import upcaster
from django_cqrs.events import (
    EventStore,
    Recorded,
    Stored,
    applies,
    event_stream,
    replay,
)
from django_cqrs.events.appliers import appliers_of
from django_cqrs.events.models import StoredEvent
from django_cqrs.exceptions import (
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    MessageConversionError,
    MissingHeader,
    StreamNotFound,
    UnknownMessage,
)
from django_cqrs.messages import inherited_headers
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents
from tests.support import registry_of

pytestmark = [pytest.mark.django_db, pytest.mark.database]


class Happened:
    """A base of events."""


@message("appliers.opened")
@dataclass(frozen=True)
class Opened(Happened):
    thing_id: int


@message("appliers.moved")
@dataclass(frozen=True)
class Moved(Happened):
    place: str


@message("appliers.other")
@dataclass(frozen=True)
class Other:
    number: int = 0


@message("appliers.unread")
@dataclass(frozen=True)
class Unread:
    text: str = ""


class Base:
    @applies
    def any_of(self: Any, event: Moved | Other) -> None:
        self.seen.append(("union", event))

    @applies
    def opened(self: Any, event: Opened) -> None:
        raise AssertionError("it is overridden")


@event_stream("appliers.thing")
@dataclass
class Thing(Base):
    thing_id: int = 0
    seen: list[Any] = field(default_factory=list)

    @applies
    def happened(self, event: Happened) -> None:
        self.seen.append(("base", event))

    @applies
    def opened(self, event: Opened) -> None:
        self.thing_id = event.thing_id
        self.seen.append(("class", event))

    @applies
    def again(self, event: Opened) -> None:
        self.seen.append(("again", event))


def classes_of(cls):
    """Return a registry that knows the events, and a class's store in it."""
    registry = Registry()
    for each in (Opened, Moved, Other, Unread):
        registry.add(each)
    return EventStore(registry=registry)


class TestMatching:
    def test_e03_1_by_class_base_and_union(self):
        """All that match run, inherited ones first, in order of definition. [E03.1]"""
        thing = replay(Thing, [Opened(3), Moved("a"), Other(1)])

        assert thing.thing_id == 3
        assert thing.seen == [
            ("class", Opened(3)),
            ("base", Opened(3)),
            ("again", Opened(3)),
            ("union", Moved("a")),
            ("base", Moved("a")),
            ("union", Other(1)),
        ]

    def test_e03_1_stored_events_are_applied_alike(self):
        """A load gives what replay() gives. [E03.1]"""
        events = [Opened(3), Moved("a"), Unread("x"), Other(1)]
        store = classes_of(Thing)
        store.append(events, stream="appliers.thing-3")

        assert store.load(Thing, 3) == replay(Thing, events)

    def test_e03_1_without_an_applier_it_is_not_decoded(self):
        """JSON that fits no class does no harm there. [E03.1]"""
        store = classes_of(Thing)
        store.append([Opened(3), Unread("x")], stream="appliers.thing-3")
        StoredEvent.objects.filter(version=2).update(payload={"text": 3})

        assert len(store.load(Thing, 3).seen) == 3

    def test_e13_2_a_class_that_was_deleted(self):
        """Its events are passed over. [E13.2]"""
        store = classes_of(Thing)
        store.append([Opened(3), Unread("x")], stream="appliers.thing-3")
        StoredEvent.objects.filter(version=2).update(name="appliers.gone")

        assert len(store.load(Thing, 3).seen) == 3

    def test_e03_2_a_catch_all(self):
        """It gets every event, and makes no value an event. [E03.2]"""

        @event_stream("appliers.all")
        @dataclass
        class All:
            all_id: int = 0
            seen: list[Any] = field(default_factory=list)

            @applies
            def see(self, event: object) -> None:
                self.seen.append(event)

            @applies
            def see_json(self, event: dict[str, Any]) -> None:
                self.seen.append(event)

        assert replay(All, [Opened(3)]).seen == [Opened(3), {"thing_id": 3}]
        assert appliers_of(All).events_in(Opened(3)) is None
        assert appliers_of(All).events_in([Opened(3)]) is None

        store = classes_of(All)
        store.append([Opened(3), Unread("x"), Other(1)], stream="appliers.all-1")
        StoredEvent.objects.filter(version=2).update(name="appliers.gone")
        assert store.load(All, 1).seen == [
            *(Opened(3), {"thing_id": 3}),
            *({"text": "x"}, {"text": "x"}),
            *(Other(1), {"number": 1}),
        ]

    def test_e03_3_a_new_object(self):
        """An applier of a frozen class returns the next one. [E03.3]"""

        @event_stream("appliers.frozen")
        @dataclass(frozen=True)
        class Frozen:
            frozen_id: int = 0
            places: tuple[str, ...] = ()

            @applies
            def opened(self, event: Opened) -> Self:
                return replace(self, frozen_id=event.thing_id)

            @applies
            def moved(self, event: Moved) -> Self:
                return replace(self, places=(*self.places, event.place))

        events = [Opened(3), Moved("a"), Moved("b")]
        store = classes_of(Frozen)
        store.append(events, stream="appliers.frozen-3")

        assert replay(Frozen, events) == Frozen(3, ("a", "b")) == store.load(Frozen, 3)

    def test_e03_3_another_class_is_refused(self):
        """An applier returns nothing, or an object of its class. [E03.3]"""

        @event_stream("appliers.wrong")
        @dataclass
        class Wrong:
            wrong_id: int = 0

            @applies
            def opened(self, event: Opened) -> Any:
                return event

        with pytest.raises(InvalidHandler, match="returned an object of type Opened"):
            replay(Wrong, [Opened(3)])

    def test_recording_does_not_replace_an_object(self):
        """A frozen class returns its events: record() says so."""

        @event_stream("appliers.recording")
        @dataclass(frozen=True)
        class Recording(RecordsEvents):
            recording_id: int = 0

            @applies
            def opened(self, event: Opened) -> Self:
                return replace(self, recording_id=event.thing_id)

        thing = Recording()
        with pytest.raises(InvalidHandler, match="Return the event from the method"):
            thing.record(Opened(3))
        assert thing.recorded_events == []

    def test_stored_is_for_streams(self):
        """An object without a stream cannot give its event headers."""

        class Plain(RecordsEvents):
            pass

        with pytest.raises(InvalidEvent, match="Plain keeps no events"):
            Plain().record(Stored(Opened(3)))


@event_stream("appliers.told")
@dataclass
class Told:
    told_id: int = 0
    seen: list[Any] = field(default_factory=list)

    @applies
    def opened(
        self,
        event: Opened,
        by: Annotated[int, Header("executor_id")],
        note: Annotated[str | None, Header("note")],
        since: Annotated[int, Header("since")] = 5,
    ) -> None:
        self.told_id = event.thing_id
        self.seen.append((by, note, since))

    @applies
    def moved(self, event: Moved, headers: Headers) -> None:
        self.seen.append((headers["executor_id"], "note" in headers))

    @applies
    def other(self, event: Other, recorded: Recorded) -> None:
        self.seen.append((recorded.name, recorded.headers, recorded.version))


class TestOrigin:
    def test_e03_4_stored_headers(self):
        """They are converted; a missing one is its default or None. [E03.4]"""
        store = classes_of(Told)
        store.append(
            [Opened(3), Moved("a"), Other(1)],
            stream="appliers.told-3",
            headers={"executor_id": 7},
        )
        StoredEvent.objects.filter(version=1).update(headers={"executor_id": "7"})

        with inherited_headers({"executor_id": 9, "note": "not that"}):
            assert store.load(Told, 3).seen == [
                (7, None, 5),
                (7, False),
                ("appliers.other", {"executor_id": 7}, 3),
            ]

    def test_e03_4_headers_of_a_new_event(self):
        """They are those that it will be stored with. [E03.4]"""
        with inherited_headers({"executor_id": 9, "note": "passed on"}):
            told = replay(Told, [Stored(Opened(3), headers={"note": "own"}), Other(1)])

        assert told.seen[0] == (9, "own", 5)
        assert told.seen[1][:2] == (
            "appliers.other",
            {"executor_id": 9, "note": "passed on"},
        )

    def test_e03_4_a_missing_header(self):
        """One that is required raises MissingHeader. [E03.4]"""
        with pytest.raises(MissingHeader, match="executor_id"):
            replay(Told, [Opened(3)])

    def test_a_new_event_has_no_place(self):
        """Its position is 0, and it knows its event."""
        places = []

        @dataclass
        class Placed:
            @applies
            def opened(self, event: Opened, recorded: Recorded) -> None:
                places.append((recorded.position, recorded.event, recorded.payload))

        replay(Placed, [Opened(3)])
        assert places == [(0, Opened(3), {"thing_id": 3})]


class TestMaking:
    def test_e03_7_required_arguments(self):
        """Without a call of __init__ an object has its class's defaults. [E03.7]"""

        @event_stream("appliers.made")
        @dataclass
        class Made:
            made_id: int
            names: list[str] = field(default_factory=list)
            size: int = 3

            def __post_init__(self) -> None:
                raise AssertionError

            @applies
            def opened(self, event: Opened) -> None:
                self.made_id = event.thing_id

        one, two = (replay(Made, [Opened(number)]) for number in (1, 2))
        one.names.append("x")
        assert (one.made_id, two.made_id, two.names, two.size) == (1, 2, [], 3)

    def test_e03_7_a_class_without_arguments_is_called(self):
        """Its __init__ runs, since it needs nothing. [E03.7]"""

        class Made:
            def __init__(self) -> None:
                self.names = ["made"]

            @applies
            def opened(self, event: Opened) -> None:
                self.made_id = event.thing_id

        assert vars(replay(Made, [Opened(1)])) == {"names": ["made"], "made_id": 1}


# Reading ------------------------------------------------------------------------------


@message("appliers.changed", version=3, aliases=["appliers.former"])
@dataclass(frozen=True)
class Changed:
    text: str


@event_stream("appliers.old")
@dataclass
class Old:
    old_id: int = 0
    texts: list[str] = field(default_factory=list)

    @applies
    def opened(self, event: Opened) -> None:
        self.old_id = event.thing_id

    @applies
    def changed(self, event: Changed) -> None:
        self.texts.append(event.text)


@pytest.fixture
def old():
    registry = registry_of(Opened, Changed)
    store = EventStore(registry=registry)
    store.append([Opened(3), Changed("new")], stream="appliers.old-3")
    return store


class TestStoredShapes:
    def test_e13_1_an_alias(self, old):
        """Events under a former name are applied. [E13.1]"""
        StoredEvent.objects.filter(version=2).update(name="appliers.former")

        assert old.load(Old, 3).texts == ["new"]

    def test_e13_3_upcasters(self, old, monkeypatch):
        """They bring old shapes to the present one, or drop the event. [E13.3]"""
        from django_cqrs.conversion import upcasting

        monkeypatch.setattr(upcasting, "_upcasters", {})

        @upcaster("appliers.changed", version=1)
        def name_it(payload: dict[str, Any]) -> dict[str, Any] | None:
            return {"name": payload["n"]} if payload["n"] else None

        @upcaster("appliers.changed", version=2)
        def rename(payload: dict[str, Any], headers: Any) -> dict[str, Any]:
            return {"text": f"{payload['name']} {headers['by']}"}

        events = StoredEvent.objects.filter(version=2)
        events.update(shape=1, payload={"n": "a"}, headers={"by": "me"})
        assert old.load(Old, 3).texts == ["a me"]

        decoder_free = EventStore(registry=registry_of(Opened, Changed))
        events.update(payload={"n": ""})
        assert decoder_free.load(Old, 3).texts == []

    def test_e13_4_a_newer_shape(self, old):
        """It is not applied by older code. [E13.4]"""
        StoredEvent.objects.filter(version=2).update(shape=4)

        with pytest.raises(UnknownMessage) as raised:
            old.load(Old, 3)
        assert "'appliers.old-3', version 2" in str(raised.value)
        assert "this process runs older code" in str(raised.value)

    def test_a_wrong_shape(self, old):
        """The error has the place of the event, and the field. [E11.5]"""
        StoredEvent.objects.filter(version=2).update(payload={"text": 3})

        with pytest.raises(MessageConversionError) as raised:
            old.load(Old, 3)
        assert "('appliers.old-3', version 2)" in str(raised.value)
        assert raised.value.errors[0].path == "text"

    def test_an_error_of_an_applier_is_its_own(self, old):
        """What an applier raises is not taken for an unreadable event."""

        @event_stream("appliers.old")
        @dataclass
        class Raising:
            old_id: int = 0

            @applies
            def opened(self, event: Opened) -> None:
                raise ValueError("mine")

        with pytest.raises(ValueError, match=r"^mine$"):
            old.load(Raising, 3)

    def test_links_are_applied_as_their_originals(self, old):
        """A stream of links makes an object too. [E12.1]"""
        old.link("appliers.old-9", list(old.read("appliers.old-3")))

        assert old.load(Old, 9) == Old(3, ["new"])


# The past -----------------------------------------------------------------------------


class TestPast:
    def test_e10_8_a_version(self, old):
        """The state after a version; one that never was raises. [E10.8]"""
        assert old.load(Old, 3, version=1) == Old(3, [])
        assert old.load(Old, 3, version=2) == Old(3, ["new"])

        with pytest.raises(InvalidOption, match="was never at version 3"):
            old.load(Old, 3, version=3)
        with pytest.raises(InvalidOption, match="version= takes the number"):
            old.load(Old, 3, version=0)

    def test_e10_8_a_time(self, old):
        """The state at a time; before the first event there is none. [E10.8]"""
        first = datetime(2030, 3, 1, 12, tzinfo=UTC)
        second = first + timedelta(microseconds=2)
        StoredEvent.objects.filter(version=1).update(recorded_at=first)
        StoredEvent.objects.filter(version=2).update(recorded_at=second)

        assert old.load(Old, 3, at=second) == Old(3, ["new"])
        assert old.load(Old, 3, at=second - timedelta(microseconds=1)) == Old(3, [])
        assert old.load(Old, 3, at=first) == Old(3, [])
        with pytest.raises(StreamNotFound, match="has no event at"):
            old.load(Old, 3, at=first - timedelta(microseconds=1))

    def test_what_cannot_be_loaded(self, old):
        """An unknown stream, and a class without appliers, are refused."""
        with pytest.raises(StreamNotFound, match=r"'appliers.old-4' has no event\."):
            old.load(Old, 4)
        with pytest.raises(InvalidOption, match="Opened has no appliers"):
            old.load(Opened, 4)

    async def test_e38_1_asynchronously(self, old):
        """``aload`` does the same. [E38.1]"""
        assert await old.aload(Old, 3, version=1) == Old(3, [])


def test_subclasses_of_a_base_are_known():
    """An applier of a base registers the classes below it."""

    @aggregate(identifier="thing_id")
    @event_stream("appliers.apart")
    @dataclass
    class Apart:
        thing_id: int = 0
        seen: int = 0

        @command_handler("apart.open")
        @classmethod
        def open(cls, number: int) -> Opened:
            return Opened(number)

        @command_handler("apart.count")
        def count(self) -> int:
            return self.seen

        @applies
        def happened(self, event: Happened) -> None:
            self.seen += 1
            self.thing_id = getattr(event, "thing_id", self.thing_id)

        @applies
        def named(self, event: Opened) -> None: ...

    registry = registry_of(Apart)
    registry.command_bus.dispatch(3, route="apart.open")
    EventStore(registry=registry).append(Moved("a"), stream="appliers.apart-3")

    assert registry.command_bus.dispatch(route="apart.count", aggregate_id=3) == 2
