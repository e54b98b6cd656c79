"""
The conformance suite of event stores: pytest tests to run against your own store.

Failures are more readable with rewritten assertions: call
``pytest.register_assert_rewrite("django_cqrs.testing.event_stores")`` in
``conftest.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import DEFAULT_DB_ALIAS, transaction

from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.decorators import command_handler, event_handler
from django_cqrs.events.appliers import applies
from django_cqrs.events.insertion import ANY, EXISTS, NEW, ExpectedVersion
from django_cqrs.events.queries import EventQuery, where
from django_cqrs.events.recorded import Recorded, Stored
from django_cqrs.events.store import Appended, EventStore
from django_cqrs.events.streams import event_stream
from django_cqrs.events.tags import Tag
from django_cqrs.exceptions import (
    ConcurrencyError,
    EventAlreadyStored,
    InvalidOption,
    MessageConversionError,
    StreamNotFound,
    UnknownMessage,
)
from django_cqrs.messages import Message, message

__all__ = ["EventStoreConformance", "HandlerRefused"]


class HandlerRefused(Exception):
    """The exception that a handler of the suite raises on purpose."""


@dataclasses.dataclass(frozen=True)
class BoxPart:
    """A part of an event."""

    product: UUID
    price: Decimal


@message("conformance.opened")
@dataclasses.dataclass(frozen=True)
class Opened:
    """An event that opens a box."""

    box: Annotated[str, Tag("box")]


@message("conformance.filled")
@dataclasses.dataclass(frozen=True)
class Filled:
    """An event with every kind of value."""

    number: int = 0
    box: Annotated[str | None, Tag("box")] = None
    text: str = ""
    ratio: float = 0.0
    at: datetime | None = None
    day: date | None = None
    parts: tuple[BoxPart, ...] = ()


@message("conformance.lid.closed")
@dataclasses.dataclass(frozen=True)
class Closed:
    """An event without fields."""


@dataclasses.dataclass(frozen=True)
class UnknownEvent:
    """A class that no registry of the suite knows."""


@dataclasses.dataclass(frozen=True)
class Pack:
    """A command whose handler appends."""

    events: tuple[Any, ...] = ()


@event_stream("conformance.box")
@dataclasses.dataclass
class Box:
    """An object that events make."""

    box: str | None = None
    numbers: list[int] = dataclasses.field(default_factory=list)

    @applies
    def opened(self, event: Opened) -> None:
        """Take the name."""
        self.box = event.box

    @applies
    def filled(self, event: Filled) -> None:
        """Add the number."""
        self.numbers.append(event.number)


class EventStoreConformance:
    """
    The tests that an event store must pass. Derive a class named ``Test...`` from it.

    ::

        @pytest.mark.django_db
        class TestArchiveStore(EventStoreConformance):
            def make_store(self, registry):
                return ArchiveStore(registry=registry)

    A store is an object with the methods of :class:`~django_cqrs.events.EventStore`. It
    may have events already: the tests look at their own only.
    """

    using: ClassVar[str] = DEFAULT_DB_ALIAS
    """The alias of the database of the store, if it has one."""

    store: EventStore
    """The tested store."""
    registry: Registry
    """The suite's classes and handlers."""

    def make_store(self, registry: Registry) -> Any:
        """
        Return the store.

        Args:
            registry: the registry with the classes and the handlers of its events.

        """
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _suite(self, request: pytest.FixtureRequest) -> None:
        """Give each test a store and a registry of its own."""
        has_database = request.node.get_closest_marker("django_db") is not None
        if has_database:  # before the store is made
            request.getfixturevalue("_django_db_helper")
        self._has_database = has_database
        self.registry = Registry()
        self._heard: list[Message] = []
        self._refused: set[int] = set()
        for target in (Opened, Filled, Closed, *self._handlers()):
            self.registry.add(target)
        self.store = self.make_store(self.registry)
        self._start = self.store.settled()
        self._key = uuid4().hex

    def _handlers(self) -> Iterator[Any]:
        @event_handler(name="conformance.hear")
        def hear(event: Opened | Filled, message: Message) -> None:
            if isinstance(event, Filled) and event.number in self._refused:
                raise HandlerRefused
            self._heard.append(message)

        @command_handler(name="conformance.pack", atomic=False)
        def pack(command: Pack) -> None:
            self.store.append(list(command.events), stream=self._stream())

        yield from (hear, pack)

    # Helpers --------------------------------------------------------------------------

    def _stream(self, name: str = "box") -> str:
        """Return the name of a stream that only this test has."""
        return f"conformance.{name}-{self._key}"

    def _block(self) -> AbstractContextManager[object]:
        """Return a block that is undone by an exception, as a command is."""
        return transaction.atomic(self.using) if self._has_database else nullcontext()

    def _append(
        self, *numbers: int, stream: str | None = "box", **options: Any
    ) -> Appended:
        name = None if stream is None else self._stream(stream)
        return self.store.append(list(map(Filled, numbers)), stream=name, **options)

    def _read(self, name: str = "box", **options: Any) -> list[int]:
        return _numbers(self.store.read(self._stream(name), **options))

    def _all(self, query: EventQuery | None = None, **options: Any) -> list[Recorded]:
        return list(self.store.read_all(query, after=self._start, **options))

    # Events ---------------------------------------------------------------------------

    def test_an_event_comes_back_as_it_was_appended(self) -> None:
        """It equals the appended one, and is not the same object."""
        at = datetime(2026, 10, 25, 2, 30, 0, 123456, tzinfo=UTC)
        part = BoxPart(UUID(int=7), Decimal("10.50"))
        event = Filled(7, "b", 'äß "\\\n\U0001f600', 0.1, at, at.date(), (part, part))

        self.store.append(event, stream=self._stream())

        [recorded] = self.store.read(self._stream())
        assert recorded.event == event
        assert recorded.event is not event
        assert (recorded.name, recorded.shape) == ("conformance.filled", 1)
        assert recorded.payload["text"] == event.text

    def test_identity_headers_and_tags_are_kept(self) -> None:
        """They are those of the message that is published."""
        event_id = uuid4()
        self.store.append(
            [Stored(Opened("b"), headers={"own": 1}, event_id=event_id)],
            stream=self._stream(),
            headers={"who": "ada"},
            tags=["shop:1"],
        )

        [recorded] = self.store.read(self._stream())
        [heard] = self._heard
        assert recorded.event_id == heard.message_id == event_id
        assert recorded.correlation_id == heard.correlation_id
        assert recorded.causation_id is None
        assert recorded.recorded_at == heard.timestamp
        assert recorded.headers == {"own": 1, "who": "ada"}
        assert sorted(recorded.tags) == ["box:b", "shop:1"]

    def test_an_event_is_caused_by_the_message_that_is_handled(self) -> None:
        """Its correlation and its headers are those of the command."""
        self.registry.command_bus.dispatch(
            Pack((Filled(1),)), headers={"who": "ada", "correlation_id": UUID(int=9)}
        )

        [recorded] = self.store.read(self._stream())
        assert recorded.correlation_id == UUID(int=9)
        assert recorded.causation_id not in {None, recorded.event_id}
        assert recorded.headers == {"who": "ada"}

    def test_versions_have_no_holes_and_positions_grow(self) -> None:
        """Versions count from 1 in each stream; the result is the last one's place."""
        places = [self._append(1, 2), self._append(3, stream="other"), self._append(4)]

        assert [each.version for each in places] == [2, 1, 3]
        assert [each.stream for each in places] == [
            self._stream(),
            self._stream("other"),
            self._stream(),
        ]
        found = self._all()
        assert _numbers(found) == [1, 2, 3, 4]
        assert [each.version for each in found] == [1, 2, 1, 3]
        positions = [each.position for each in found]
        assert positions == sorted(set(positions))
        assert places[-1].position == positions[-1]

    def test_events_may_have_no_stream(self) -> None:
        """They have a position, and no version."""
        place = self._append(1, stream=None)

        [recorded] = self._all()
        assert place == (None, None, recorded.position)
        assert (recorded.stream, recorded.version) == (None, None)

    # Expected versions ----------------------------------------------------------------

    @pytest.mark.parametrize(
        ("before", "expected"),
        [(0, NEW), (0, ANY), (0, 0), (2, ANY), (2, EXISTS), (2, 2)],
    )
    def test_an_append_to_the_expected_version(
        self, before: int, expected: ExpectedVersion | int
    ) -> None:
        """The events follow those that are there."""
        if before:
            self._append(*range(before))

        assert self._append(7, expected_version=expected).version == before + 1

    @pytest.mark.parametrize(
        ("before", "expected"), [(0, EXISTS), (0, 1), (2, NEW), (2, 1), (2, 3)]
    )
    def test_an_append_to_another_version_is_refused(
        self, before: int, expected: ExpectedVersion | int
    ) -> None:
        """None of its events is stored or published, and the store is usable."""
        if before:
            self._append(*range(before))
        self._heard.clear()

        with pytest.raises(ConcurrencyError):
            self._append(7, 8, expected_version=expected)

        assert self._heard == []
        assert self._append(9).version == before + 1
        assert self._read() == [*range(before), 9]

    def test_the_same_append_twice_is_one(self) -> None:
        """The ids say so: nothing is stored or published again."""
        events = [Stored(Filled(number), event_id=uuid4()) for number in (1, 2)]
        first = self.store.append(events, stream=self._stream(), expected_version=NEW)

        again = self.store.append(events, stream=self._stream(), expected_version=NEW)

        assert again == first
        assert self._read() == [1, 2]
        assert len(self._heard) == 2

    def test_an_id_is_stored_once(self) -> None:
        """In another stream it is refused, with all that is appended with it."""
        stored = Stored(Filled(1), event_id=uuid4())
        self.store.append(stored, stream=self._stream())

        with pytest.raises(EventAlreadyStored):
            self.store.append([Filled(2), stored], stream=self._stream("other"))

        assert not self.store.exists(self._stream("other"))

    # Reading --------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("options", "wanted"),
        [
            ({}, [1, 2, 3, 4]),
            ({"first": 3}, [3, 4]),
            ({"last": 2}, [1, 2]),
            ({"first": 2, "last": 3}, [2, 3]),
            ({"limit": 3}, [1, 2, 3]),
            ({"limit": 0}, []),
            ({"backwards": True}, [4, 3, 2, 1]),
            ({"backwards": True, "limit": 2}, [4, 3]),
            ({"backwards": True, "last": 3, "first": 2}, [3, 2]),
            ({"first": 9}, []),
        ],
    )
    def test_a_part_of_a_stream(
        self, options: dict[str, Any], wanted: list[int]
    ) -> None:
        """By versions, forwards and backwards."""
        self._append(1, 2, 3, 4)

        assert self._read(**options) == wanted

    def test_a_stream_without_events_is_not_found(self) -> None:
        """Its version is 0."""
        with pytest.raises(StreamNotFound):
            self._read()
        assert self.store.version(self._stream()) == 0
        assert not self.store.exists(self._stream())

        self._append(1, 2)

        assert self.store.version(self._stream()) == 2
        assert self.store.exists(self._stream())

    def test_all_events_between_two_positions(self) -> None:
        """In order of position, from one exclusive to another inclusive."""
        self._append(1, 2)
        middle = self._append(3, stream="other").position
        last = self._append(4, 5).position

        assert _numbers(self._all()) == [1, 2, 3, 4, 5]
        assert _numbers(self._all(until=middle)) == [1, 2, 3]
        assert _numbers(self.store.read_all(after=middle)) == [4, 5]
        assert _numbers(self._all(limit=2)) == [1, 2]
        assert self.store.head() == self.store.settled() == last

    def test_events_are_found_by_queries(self) -> None:
        """By class, name, pattern, category, stream and tag; and by any of several."""
        self.store.append([Opened("a"), Filled(1, "a")], stream=self._stream())
        self.store.append([Opened("b"), Closed()], stream=self._stream("chest"))
        self.store.append(Filled(2, "b"), tags=["shop:1"])

        def found(query: EventQuery) -> list[str]:
            return [type(each.event).__name__ for each in self._all(query)]

        assert found(where(Opened)) == ["Opened", "Opened"]
        assert found(where(Opened, Closed)) == ["Opened", "Opened", "Closed"]
        assert found(where("conformance.filled")) == ["Filled", "Filled"]
        assert found(where("conformance.l*")) == ["Closed"]
        assert found(where(category="conformance.chest")) == ["Opened", "Closed"]
        assert found(where(stream=self._stream())) == ["Opened", "Filled"]
        assert found(where(box="b")) == ["Opened", "Filled"]
        assert found(where(Filled, box="a")) == ["Filled"]
        assert found(where(box="b", shop=1)) == ["Filled"]
        assert found(where(Closed) | where(shop=1)) == ["Closed", "Filled"]
        assert found(where(Closed, shop=1)) == []

    def test_a_selection_has_a_mark(self) -> None:
        """The number of events, and the position of the last one."""
        query = where(Filled, stream=self._stream())
        assert str(self.store.select(query).marker) == "0:0"

        last = self._append(1, 2).position
        selection = self.store.select(query)

        assert _numbers(selection.events) == [1, 2]
        assert str(selection.marker) == f"2:{last}"

    def test_streams_are_listed(self) -> None:
        """In the order of their first events, all of them or those of a category."""
        names = [self._stream(), self._stream("chest"), self._stream("bag")]
        for name in names:
            self.store.append(Closed(), stream=name)

        own = [each for each in self.store.streams() if each.endswith(self._key)]
        assert own == names
        chests = self.store.streams("conformance.chest")
        assert [each for each in chests if each.endswith(self._key)] == names[1:2]

    def test_a_link_is_the_original_in_another_stream(self) -> None:
        """With a version of its own; reading everything gives it once."""
        self._append(1, 2)
        originals = list(self.store.read(self._stream()))
        self._append(7, stream="linked")

        assert self.store.link(self._stream("linked"), originals) == 2
        assert self.store.link(self._stream("linked"), originals[0]) == 0

        found = list(self.store.read(self._stream("linked")))
        assert _numbers(found) == [7, 1, 2]
        assert [each.version for each in found] == [1, 2, 3]
        assert found[1].event_id == originals[0].event_id
        assert [each.link_to for each in found] == [
            None,
            *(each.position for each in originals),
        ]
        assert _numbers(self._all()) == [1, 2, 7]
        query = where(stream=self._stream("linked"))
        assert _numbers(self._all(query)) == [7, 1, 2]

    def test_an_object_is_made_of_its_events(self) -> None:
        """As it is now, or was at a version or a time."""
        self.store.append([Opened(self._key), Filled(1)], stream=self._stream())
        [*_, second] = self.store.read(self._stream())
        self._append(2)

        assert self.store.load(Box, self._key) == Box(self._key, [1, 2])
        assert self.store.load(Box, self._key, version=2) == Box(self._key, [1])
        assert self.store.load(Box, self._key, version=1) == Box(self._key)
        before = second.recorded_at - timedelta(days=1)
        with pytest.raises(StreamNotFound):
            self.store.load(Box, self._key, at=before)
        with pytest.raises(InvalidOption):
            self.store.load(Box, self._key, version=9)
        with pytest.raises(StreamNotFound):
            self.store.load(Box, "nobody")

    def test_following_begins_behind_a_position(self) -> None:
        """It ends after a time, with all that is settled then."""
        first = self._append(1).position
        self._append(2, 3)

        assert _numbers(self.store.follow(after=first, timeout=0)) == [2, 3]
        assert list(self.store.follow(timeout=0)) == []

    # Publishing -----------------------------------------------------------------------

    def test_events_are_published_once_in_order(self) -> None:
        """After all of them are stored."""
        self._append(1, 2)

        assert [each.payload.number for each in self._heard] == [1, 2]

    def test_events_need_not_be_published(self) -> None:
        """``publish=False`` only stores them."""
        self._append(1, publish=False)

        assert self._heard == []
        assert self._read() == [1]

    def test_a_handler_that_raises_undoes_the_append(self) -> None:
        """With what was appended before it in the same call."""
        self._append(1)
        self._refused.add(3)

        with pytest.raises(HandlerRefused), self._block():
            self._append(2, 3)

        assert self._read() == [1]
        assert self._append(4).version == 2

    # Refusals -------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("events", "options", "error"),
        [
            ([], {}, InvalidOption),
            ([None], {}, InvalidOption),
            ([Closed], {}, InvalidOption),
            ([Closed()], {"stream": ""}, InvalidOption),
            ([Closed()], {"stream": "box-"}, InvalidOption),
            ([Closed()], {"expected_version": 1}, InvalidOption),
            ([Closed()], {"stream": "box-1", "expected_version": -1}, InvalidOption),
            ([UnknownEvent()], {}, UnknownMessage),
            ([Filled(number="one")], {}, MessageConversionError),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ],
    )
    def test_a_wrong_append_is_refused(
        self, events: list[Any], options: dict[str, Any], error: type[Exception]
    ) -> None:
        """Nothing is stored, not even the events before the wrong one."""
        with pytest.raises(error):
            self.store.append([Closed(), *events] if events else [], **options)

        assert self._all() == []

    @pytest.mark.parametrize("name", ["", "-1", "box-", "a" * 101])
    def test_a_wrong_name_of_a_stream_is_refused(self, name: str) -> None:
        """Also where it is read."""
        for call in (self.store.exists, self.store.version):
            with pytest.raises(InvalidOption):
                call(name)
        with pytest.raises(InvalidOption):
            list(self.store.read(name))

    # In an event loop -----------------------------------------------------------------

    def test_everything_has_an_async_twin(self) -> None:
        """It does the same."""

        async def use() -> list[int]:
            place = await self.store.aappend(Filled(1), stream=self._stream())
            assert await self.store.aversion(self._stream()) == place.version == 1
            assert await self.store.aexists(self._stream())
            assert await self.store.ahead() == await self.store.asettled()
            selection = await self.store.aselect(where(stream=self._stream()))
            assert _numbers(selection.events) == [1]
            found = [each async for each in self.store.aread(self._stream())]
            found += [each async for each in self.store.aread_all(after=self._start)]
            follow = self.store.afollow(after=self._start, timeout=0)
            found += [each async for each in follow]
            return _numbers(found)

        assert async_to_sync(use)() == [1, 1, 1]


def _numbers(found: Iterable[Recorded]) -> list[int]:
    return [each.event.number for each in found]
