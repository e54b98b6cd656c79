"""Snapshots: loading reads less, and gives the same."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from pydantic import BaseModel, Field

from django_cqrs import Header, command_bus, command_handler, documents, message, shapes
from django_cqrs.events import EventStore, Recorded, applies, event_stream
from django_cqrs.events.appliers import appliers_of
from django_cqrs.events.event_storage import EventStorage
from django_cqrs.events.models import Snapshot, StoredEvent, Stream
from django_cqrs.events.snapshot_rebuilding import rebuild_snapshots
from django_cqrs.events.snapshots import Snapshots
from django_cqrs.events.streams import StreamOptions
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import MessageName
from django_cqrs.modelling import aggregate
from django_cqrs.modelling.storages import Options
from tests.outbox.support import SOAKS
from tests.support import registry_of

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@dataclass(frozen=True)
class Open:
    log_id: int


@dataclass(frozen=True)
class Write:
    log_id: int
    texts: list[str]


@message("logs.opened")
@dataclass(frozen=True)
class Opened:
    log_id: int


@message("logs.written")
@dataclass(frozen=True)
class Written:
    text: str


class Log:
    @command_handler
    @classmethod
    def open(cls, command: Open) -> Opened:
        return Opened(command.log_id)

    @command_handler
    def write(self: Any, command: Write) -> list[Written]:
        return [Written(text) for text in command.texts]

    @applies
    def opened(self: Any, event: Opened) -> None:
        self.log_id = event.log_id

    @applies
    def written(self: Any, event: Written) -> None:
        self.texts = [*self.texts, event.text]


@aggregate(identifier="log_id")
@event_stream("logs.log", snapshot_every=3)
@dataclass
class DataLog(Log):
    log_id: int = 0
    texts: list[str] = field(default_factory=list)


@aggregate(identifier="log_id")
@event_stream("logs.pydantic", snapshot_every=3)
class PydanticLog(Log, BaseModel):
    log_id: int = 0
    texts: list[str] = Field(default_factory=list)


@aggregate(identifier="log_id")
@event_stream("logs.plain", snapshot_every=3)
class PlainLog(Log):
    log_id: int
    texts: list[str] = []


@pytest.fixture(params=[DataLog, PydanticLog, PlainLog], ids=lambda cls: cls.__name__)
def kind(request):
    return request.param


@pytest.fixture
def registry(kind):
    return registry_of(kind)


@pytest.fixture
def dispatch(registry):
    return registry.command_bus.dispatch


def storage_of(cls, registry):
    """Return the storage of a class's objects."""
    storage = EventStorage(cls, Options(identifier=("log_id",)))
    storage.registry = registry
    return storage


def snapshots():
    """Return the version of each snapshot, by the key of its stream."""
    keys = dict(Stream.objects.values_list("pk", "key"))
    rows = Snapshot.objects.values_list("stream_id", "version")
    return {keys[stream]: version for stream, version in rows}


def loaded(cls, registry, log_id=7):
    """Load an object; return it, and the statements that it took."""
    with CaptureQueriesContext(connection) as captured:
        found = storage_of(cls, registry).find((log_id,), using="default", lock=False)
    return found, captured.captured_queries


class TestTaking:
    def test_e08_1_at_a_multiple(self, registry, dispatch, kind):
        """It is taken where a multiple is reached, also by several at once. [E08.1]"""
        dispatch(Open(7))
        assert snapshots() == {}
        dispatch(Write(7, ["a"]))
        assert snapshots() == {}
        dispatch(Write(7, ["b"]))
        assert snapshots() == {"7": 3}
        dispatch(Write(7, ["c", "d"]))
        assert snapshots() == {"7": 3}
        dispatch(Write(7, ["e", "f", "g"]))
        assert snapshots() == {"7": 8}

    def test_e08_1_loading(self, registry, dispatch, kind):
        """It reads the snapshot, and only the events after it. [E08.1]"""
        dispatch(Open(7))
        dispatch(Write(7, ["a", "b"]))
        dispatch(Write(7, ["c"]))
        StoredEvent.objects.filter(version__lte=3).update(payload={})

        found, statements = loaded(kind, registry)

        assert (found.log_id, found.texts) == (7, ["a", "b", "c"])
        assert len(statements) == 2
        events = statements[1]["sql"]
        with connection.cursor() as cursor:
            cursor.execute(events)
            assert len(cursor.fetchall()) == 1
        dispatch(Write(7, ["d"]))
        assert loaded(kind, registry)[0].texts == ["a", "b", "c", "d"]

    def test_e08_1_nothing_after_it(self, registry, dispatch, kind):
        """The version is that of the snapshot. [E08.1]"""
        dispatch(Open(7))
        dispatch(Write(7, ["a", "b"]))

        found, _ = loaded(kind, registry)
        assert storage_of(kind, registry).version_of(found) == 3
        dispatch(Write(7, ["c"]))
        assert StoredEvent.objects.count() == 4

    def test_e08_4_rolled_back_with_its_append(self, dispatch):
        """It is written in the transaction of the append. [E08.4]"""
        dispatch(Open(7))
        with transaction.atomic():
            dispatch(Write(7, ["a", "b"]))
            assert snapshots() == {"7": 3}
            transaction.set_rollback(True)

        assert snapshots() == {}

    def test_e08_5_each_has_its_own(self, dispatch):
        """One below the threshold has none. [E08.5]"""
        for number in (7, 8, 9):
            dispatch(Open(number))
        dispatch(Write(8, ["a", "b"]))
        dispatch(Write(9, ["x"]))
        dispatch(Write(7, ["c", "d", "e"]))

        assert snapshots() == {"8": 3, "7": 4}

    def test_e08_6_readers_of_events_never_see_one(self, registry, dispatch, kind):
        """The store of events has events alone. [E08.6]"""
        dispatch(Open(7))
        dispatch(Write(7, ["a", "b"]))

        store = EventStore(registry=registry)
        names = [each.name for each in store.read_all()]
        assert names == ["logs.opened", "logs.written", "logs.written"]

    def test_the_past_is_loaded_without_it(self, registry, dispatch, kind):
        """A snapshot of later does not tell an earlier state."""
        dispatch(Open(7))
        dispatch(Write(7, ["a", "b", "c"]))

        store = EventStore(registry=registry)
        assert store.load(kind, 7, version=2).texts == ["a"]


CONTENTS = [
    {"state": {"log_id": "seven"}},
    {"state": ["no object"]},
    {"state": {"log_id": None}},
    {"fingerprint": "of other code"},
]


class TestPassingOver:
    @pytest.mark.parametrize("content", CONTENTS, ids=["type", "list", "none", "code"])
    def test_e08_2_one_that_is_not_usable(self, content, caplog):
        """It is logged and passed over, and the next one replaces it. [E08.2]"""
        registry = registry_of(DataLog)
        dispatch = registry.command_bus.dispatch
        dispatch(Open(7))
        dispatch(Write(7, ["a", "b"]))
        Snapshot.objects.update(**content)

        with caplog.at_level(logging.WARNING, "django_cqrs.events"):
            found, _ = loaded(DataLog, registry)

        assert found == DataLog(7, ["a", "b"])
        (line,) = caplog.messages
        assert line.startswith("The snapshot of logs.log-7 at version 3 ")
        dispatch(Write(7, ["c", "d", "e"]))
        caplog.clear()
        assert loaded(DataLog, registry)[0].texts == ["a", "b", "c", "d", "e"]
        assert caplog.messages == []

    def test_e08_2_of_another_class(self, caplog):
        """A class with the same category has another fingerprint. [E08.2]"""

        @event_stream("logs.log", snapshot_every=3)
        @dataclass
        class Other:
            log_id: int = 0
            count: int = 0

            @applies
            def written(self, event: Written) -> None:
                self.count += 1

        registry = registry_of(DataLog)
        registry.command_bus.dispatch(Open(7))
        registry.command_bus.dispatch(Write(7, ["a", "b"]))

        with caplog.at_level(logging.WARNING, "django_cqrs.events"):
            assert loaded(Other, registry)[0].count == 2
        assert len(caplog.messages) == 1

    def test_a_state_that_has_no_json_form(self, caplog):
        """The command succeeds, there is no snapshot, and the log says so."""

        @aggregate(identifier="log_id")
        @event_stream("logs.unwritable", snapshot_every=2)
        @dataclass
        class Unwritable(Log):
            log_id: int = 0
            texts: list[str] = field(default_factory=list)

            @applies
            def odd(self, event: Written) -> None:
                vars(self)["more"] = event.text

        registry = registry_of(Unwritable)
        registry.command_bus.dispatch(Open(7))
        with caplog.at_level(logging.WARNING, "django_cqrs.events"):
            registry.command_bus.dispatch(Write(7, ["a"]))

        assert snapshots() == {}
        assert caplog.messages == [
            (
                "No snapshot of logs.unwritable-7 at version 2 was taken: Cannot convert "
                "the payload to Unwritable: more: it is not annotated, so its value would "
                "be lost."
            )
        ]


def fingerprint_of(cls, version=1):
    """Return the fingerprint of a class's snapshots."""
    options = StreamOptions("logs.log", 3, version)
    return Snapshots(appliers_of(cls), options).fingerprint


def variants():
    @dataclass
    class First:
        log_id: int = 0

        @applies
        def opened(self, event: Opened) -> None:
            self.log_id = event.log_id

    first = First

    @dataclass
    class First:  # the same, written in another way
        log_id: int = 0

        @applies
        def opened(
            self,
            event: Opened,
        ) -> None:
            """A comment changes nothing."""
            # Nor does this one.
            self.log_id = event.log_id

    same = First

    @dataclass
    class First:  # another state
        log_id: int = 0
        more: int = 0

        @applies
        def opened(self, event: Opened) -> None:
            self.log_id = event.log_id

    state = First

    @dataclass
    class First:  # other code
        log_id: int = 0

        @applies
        def opened(self, event: Opened) -> None:
            self.log_id = event.log_id + 1

    return first, same, state, First


def test_e08_3_the_fingerprint():
    """It is that of the state and the appliers' code, not of comments. [E08.3]"""
    first, same, state, code = variants()

    assert fingerprint_of(first) == fingerprint_of(same)
    others = {
        fingerprint_of(first),
        fingerprint_of(state),
        fingerprint_of(code),
        fingerprint_of(first, version=2),
    }
    assert len(others) == 4
    assert {len(each) for each in others} == {64}


def test_e39_5_documents_and_snapshots_write_one_state():
    """One module converts the state of objects, for both apps. [E39.5]"""
    assert documents.shapes.shape_of is shapes.shape_of
    log = DataLog(7, ["a"])
    shape = shapes.shape_of(DataLog)

    assert shape.dump(log) == {"log_id": 7, "texts": ["a"]}
    name = MessageName("logs.log")
    assert shape.load(shape.dump(log), name, "logs.log", 1) == log


class TestRebuilding:
    def test_e08_7_those_that_are_missing(self, registry, dispatch, kind):
        """They are taken ahead of traffic; those that are there stay. [E08.7]"""
        category = kind.__cqrs_event_stream__.category
        for number in (7, 8, 9):
            dispatch(Open(number))
        dispatch(Write(7, ["a", "b"]))
        dispatch(Write(8, ["a", "b", "c"]))
        Snapshot.objects.filter(version=3).update(fingerprint="of other code")
        dispatch(Write(7, ["c"]))

        assert sorted(rebuild_snapshots(category, registry, "default")) == [False, True]
        assert snapshots() == {"7": 4, "8": 4}
        assert loaded(kind, registry)[0].texts == ["a", "b", "c"]

    def test_e08_7_by_command(self, settings, capsys):
        """``cqrs_events snapshots`` lists them and takes them. [E08.7]"""
        command_bus.dispatch(3, route="counter.start")
        for _ in range(4):
            command_bus.dispatch(1, route="counter.add", aggregate_id=3)
        Snapshot.objects.update(fingerprint="of other code")

        def run(*arguments):
            call_command("cqrs_events", "snapshots", *arguments)
            return capsys.readouterr().out

        listed = run().splitlines()
        assert "modelling.counter" in listed[-1]
        assert listed[-1].split()[1:] == ["2", "1", "0", "4"]
        taken = "Took 1 snapshots; 0 were up to date.\n"
        assert run("--rebuild", "modelling.counter") == taken
        assert Snapshot.objects.get().version == 5
        assert run().splitlines()[-1].split()[1:] == ["2", "1", "1", "5"]
        with pytest.raises(CommandError, match="No event-sourced class"):
            run("--rebuild", "modelling.gone")

    def test_classes_without_snapshots(self):
        """An unknown category, and a class without snapshots, are refused."""

        @aggregate(identifier="log_id")
        @event_stream("logs.none")
        @dataclass
        class Without(Log):
            log_id: int = 0
            texts: list[str] = field(default_factory=list)

        registry = registry_of(Without)
        with pytest.raises(InvalidOption, match="has no snapshot_every="):
            list(rebuild_snapshots("logs.none", registry, "default"))
        with pytest.raises(InvalidOption, match="No event-sourced class"):
            list(rebuild_snapshots("logs.gone", registry, "default"))


@message("logs.signed")
@dataclass(frozen=True)
class Signed:
    number: int


@aggregate(identifier="log_id")
@event_stream("logs.told", snapshot_every=4)
@dataclass
class Told:
    """A state that depends on the headers and the places of its events."""

    log_id: int = 0
    by: list[int | None] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    total: int = 0

    @command_handler
    @classmethod
    def open(cls, command: Open) -> Opened:
        return Opened(command.log_id)

    @command_handler
    def write(self, command: Write) -> list[Signed]:
        return [Signed(len(text)) for text in command.texts]

    @applies
    def opened(self, event: Opened) -> None:
        self.log_id = event.log_id

    @applies
    def signed(
        self,
        event: Signed,
        recorded: Recorded,
        by: Annotated[int | None, Header("executor_id")],
    ) -> None:
        self.by.append(by)
        self.ids.append(f"{recorded.event_id} {recorded.position} {recorded.version}")
        self.total += event.number


EXAMPLES = 200 if SOAKS else 20


class TestHistories(TestCase):
    """Any history gives one state, with a snapshot and without."""

    @pytest.mark.long
    @pytest.mark.database
    @settings(max_examples=EXAMPLES, derandomize=not SOAKS)
    @given(
        st.lists(
            st.tuples(
                st.lists(st.text("ab", max_size=3), max_size=5),
                st.none() | st.integers(1, 3),
            ),
            max_size=6,
        ),
        st.sampled_from([DataLog, Told]),
    )
    def test_e08_8_state_with_a_snapshot_equals_state_without(self, history, cls):
        """Random histories load alike from a snapshot and from the start. [E08.8]"""
        registry = registry_of(cls)
        registry.command_bus.dispatch(Open(7))
        for texts, by in history:
            headers = {} if by is None else {"executor_id": by}
            registry.command_bus.dispatch(Write(7, texts), headers=headers)

        storage = storage_of(cls, registry)
        name = f"{storage.streams.category}-7"
        without = EventStore(registry=registry).load(cls, 7)
        found = storage.find((7,), using="default", lock=False)

        assert found == without
        version = EventStore(registry=registry).version(name)
        assert storage.version_of(found) == version
        assert Snapshot.objects.exists() == (version >= storage.streams.snapshot_every)
