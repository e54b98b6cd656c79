"""The event store by hand: append and read."""

import threading
from contextlib import nullcontext
from uuid import UUID, uuid4

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from django_cqrs import Headers, command_handler, event_handler
from django_cqrs.events import ANY, EXISTS, NEW, EventStore, Stored, where
from django_cqrs.events.models import ArchivedEvent, EventTag, StoredEvent, Stream
from django_cqrs.exceptions import (
    ConcurrencyError,
    EventAlreadyStored,
    InvalidOption,
    StreamNotFound,
)
from tests.events.support import (
    Added,
    Removed,
    Subscribed,
    in_a_transaction,
    numbers,
    on_databases,
    store,
    store_of,
)
from tests.limits import LIMIT

pytestmark = on_databases


def test_e10_1_an_append_returns_its_place():
    """The stream's version and the position in the store are those of the last event. [E10.1]"""
    first = store.append([Added(1), Added(2)], stream="shop.basket-1")
    second = store.append(Added(3), stream="shop.basket-1")
    alone = store.append(Added(4))

    assert first[:2] == ("shop.basket-1", 2)
    assert second[:2] == ("shop.basket-1", 3)
    assert alone[:2] == (None, None)
    assert 0 < first.position < second.position < alone.position == store.head()
    assert [each.position for each in store.read_all()][1:] == [
        first.position,
        second.position,
        alone.position,
    ]


def test_e10_1_an_append_is_a_transaction():
    """What a handler of its events refuses is not stored. [E10.1]"""

    def refuse(event: Added) -> None:
        raise RuntimeError(event.number)

    own = store_of(Added, event_handler(refuse))

    with pytest.raises(RuntimeError):
        own.append([Added(1), Added(2)], stream="shop.basket-1")

    assert StoredEvent.objects.count() == Stream.objects.count() == 0


@pytest.mark.parametrize("is_nested", [False, True])
def test_e10_2_an_expected_version_is_compared(is_nested):
    """ANY, NEW, EXISTS and a number each accept some streams and refuse others. [E10.2]"""
    accepted = [(ANY, 0), (ANY, 2), (NEW, 0), (0, 0), (EXISTS, 2), (2, 2)]
    refused = [(NEW, 2), (0, 2), (EXISTS, 0), (1, 2), (3, 2), (3, 0)]
    for number, (expected, count) in enumerate([*accepted, *refused]):
        name = f"shop.basket-{number}"
        is_right = (expected, count) in accepted
        if count:
            store.append([Added(each) for each in range(count)], stream=name)

        with transaction.atomic() if is_nested else nullcontext():
            new = [Added(7), Added(8)] if number % 2 else [Added(7)]
            if is_right:
                done = store.append(new, stream=name, expected_version=expected)
                assert done.version == count + len(new)
            else:
                with pytest.raises(ConcurrencyError, match="Nothing was appended"):
                    store.append(new, stream=name, expected_version=expected)
                store.append(Added(9), stream="shop.others")  # it is usable
        assert store.version(name) == count + len(new) * is_right
    assert store.version("shop.others") == len(refused)


@pytest.mark.long
def test_e10_2_any_has_no_holes():
    """Eight writers who expect any version get versions 1 to n. [E10.2]"""
    failures = []

    def write(writer):
        try:
            for number in range(12):
                store.append(Added(writer * 100 + number), stream="shop.basket-1")
        except Exception as error:  # noqa: BLE001 - compared below
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=write, args=(each,)) for each in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(LIMIT)

    recorded = list(store.read("shop.basket-1"))
    assert failures == []
    assert [each.version for each in recorded] == list(range(1, 97))
    positions = [each.position for each in recorded]
    assert positions == sorted(positions)
    for writer in range(8):
        own = [n for n in numbers(recorded) if n // 100 == writer]
        assert own == [writer * 100 + number for number in range(12)]


@in_a_transaction
def test_e10_3_a_stream_is_read_in_parts():
    """First, last, backwards and limit choose events; an empty range has none. [E10.3]"""
    name = "shop.basket-1"
    store.append([Added(number) for number in range(1, 8)], stream=name)

    assert numbers(store.read(name)) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(store.read(name, first=6)) == [6, 7]
    assert numbers(store.read(name, last=2)) == [1, 2]
    assert numbers(store.read(name, first=3, last=4)) == [3, 4]
    assert numbers(store.read(name, limit=2)) == [1, 2]
    assert numbers(store.read(name, backwards=True)) == [7, 6, 5, 4, 3, 2, 1]
    assert numbers(store.read(name, backwards=True, limit=2)) == [7, 6]
    assert numbers(store.read(name, backwards=True, last=3, first=2)) == [3, 2]
    assert numbers(store.read(name, first=8)) == []
    assert numbers(store.read(name, first=5, last=4)) == []
    assert numbers(store.read(name, limit=0)) == []


@in_a_transaction
def test_e10_3_a_missing_stream_is_named():
    """A stream without events is not found. [E10.3]"""
    store.append(Added(1), stream="shop.basket-1")

    for name in ("shop.basket-2", "shop.basket"):
        with pytest.raises(StreamNotFound, match=f"There is no stream '{name}'."):
            list(store.read(name))
    assert store.exists("shop.basket-1")
    assert not store.exists("shop.basket-2")
    assert store.version("shop.basket-2") == 0


@in_a_transaction
@pytest.mark.long
def test_e10_4_pages_are_queries():
    """Each page of 1,000 events is one query, and there is no cursor on the server. [E10.4]"""
    store.append([Added(number) for number in range(2_500)], stream="shop.basket-1")

    with CaptureQueriesContext(connection) as queries:
        assert numbers(store.read("shop.basket-1")) == list(range(2_500))
    assert len(queries) == 3

    with CaptureQueriesContext(connection) as queries:
        found = numbers(store.read("shop.basket-1", backwards=True, limit=1_500))
    assert found == list(range(2_499, 999, -1))
    assert len(queries) == 2

    bound = store.settled()
    with CaptureQueriesContext(connection) as queries:
        found = numbers(store.read_all(after=bound - 2_500, until=bound))
        assert found == list(range(2_500))
    sent = [
        each["sql"]
        for each in queries
        if "FROM django_cqrs_events_stored" in each["sql"]
    ]
    pages = [each for each in sent if "ORDER BY" in each]
    assert len(pages) == 3
    assert not any("DECLARE" in each["sql"] for each in queries)


@pytest.mark.parametrize("stream", ["shop.basket-1", None])
@pytest.mark.parametrize("expected", [ANY, 1])
def test_e10_5_the_same_append_again_is_success(stream, expected):
    """Events with the same ids at the same versions are stored once, and called once. [E10.5]"""
    called = []

    def note(event: Added) -> None:
        called.append(event.number)

    own = store_of(Added, event_handler(note))
    given = [Stored(Added(n), event_id=uuid4()) for n in (1, 2)]
    options = {"stream": stream} if stream else {}
    if stream:
        own.append(Added(0), stream=stream)
        options["expected_version"] = expected
    first = own.append(given, **options)

    if stream:
        assert own.append(given, **options) == first
        with transaction.atomic():
            assert own.append(given, **options) == first
            own.append(Added(9))
        assert numbers(own.read(stream)) == [0, 1, 2]
        assert called == [0, 1, 2, 9]
    else:  # it has no version to be at
        with pytest.raises(EventAlreadyStored):
            own.append(given)
        assert called == [1, 2]


def test_e10_5_other_ids_conflict():
    """Other events at these versions are a conflict, and an id elsewhere is one. [E10.5]"""
    given = [Stored(Added(n), event_id=uuid4()) for n in (1, 2)]
    store.append(given, stream="shop.basket-1")
    before = StoredEvent.objects.count()

    with transaction.atomic():
        with pytest.raises(ConcurrencyError):
            store.append([Added(1)], stream="shop.basket-1", expected_version=0)
        with pytest.raises(EventAlreadyStored, match=str(given[0].event_id)):
            store.append(given, stream="shop.basket-2")
        with pytest.raises(EventAlreadyStored):
            store.append([*given, Added(3)], stream="shop.basket-1")
        with pytest.raises(EventAlreadyStored):
            store.append(given, stream="shop.basket-1", expected_version=2)
        with pytest.raises(EventAlreadyStored):
            store.append(given[::-1], stream="shop.basket-1", expected_version=0)
        assert StoredEvent.objects.count() == before  # and it is usable


@in_a_transaction
def test_e10_6_all_streams_are_read_by_query():
    """Class, name, pattern, category, stream and tag choose events of the whole store. [E10.6]"""
    ada, bob = UUID(int=1), UUID(int=2)
    store.append([Added(1), Removed(2)], stream="shop.basket-1")
    store.append([Added(3)], stream="shop.order-1", tags=["course:7"])
    store.append([Added(4), Removed(5)])
    store.append([Subscribed(7, [ada, bob])], stream="shop.basket-2")

    def found(query, **options):
        return [each.name.split(".")[1] for each in store.read_all(query, **options)]

    everything = ["added", "removed", "added", "added", "removed", "subscribed"]
    assert found(None) == found(where()) == found(where(object)) == everything
    assert found(where(Added)) == found(where("shop.added")) == ["added"] * 3
    assert found(where(Added, Removed)) == found(where("shop.*")) == everything[:-1]
    assert found(where("*.[ar]?[dm]*")) == everything[:-1]
    assert found(where("*.[!a]*")) == ["removed", "removed", "subscribed"]
    assert found(where("shop.Added", "SHOP.*", "shop_added")) == []
    assert found(where(category="shop.basket")) == ["added", "removed", "subscribed"]
    assert found(where(Added, category="shop.basket")) == ["added"]
    assert found(where(stream="shop.basket-1")) == ["added", "removed"]
    assert found(where(stream=["shop.basket-2", "shop.order-1"])) == [
        "added",
        "subscribed",
    ]
    assert found(where(course=7)) == ["added", "subscribed"]
    assert found(where(course=7, student=bob)) == ["subscribed"]
    assert found(where(tags=["courses"])) == ["subscribed"]
    assert found(where(course=8)) == []
    assert found(where(Removed) | where(course=7)) == [
        "removed",
        "added",
        "removed",
        "subscribed",
    ]
    positions = [each.position for each in store.read_all()]
    assert found(None, after=positions[1], limit=2) == ["added", "added"]
    assert found(None, until=positions[1]) == everything[:2]
    assert found(None, after=positions[-1]) == []


@in_a_transaction
def test_e10_6_archived_events_are_read_on_demand():
    """Events of archived streams are only read with archived=True. [E10.6]"""
    store.append([Added(1), Added(2)], stream="shop.basket-1")
    store.append(Added(3), stream="shop.basket-2")
    moved = StoredEvent.objects.order_by("pk").first()
    values = {each.attname: getattr(moved, each.attname) for each in moved._meta.fields}
    moved.delete()
    ArchivedEvent.objects.create(**values)

    assert numbers(store.read_all()) == [2, 3]
    assert numbers(store.read_all(archived=True)) == [1, 2, 3]
    assert numbers(store.read_all(archived=True, limit=2)) == [1, 2]
    assert numbers(store.select(where(Added)).events) == [1, 2, 3]


@in_a_transaction
def test_e10_7_without_publishing_nobody_is_called():
    """publish=False stores the events and calls no handler. [E10.7]"""
    called = []

    def note(event: Added) -> None:
        called.append(event.number)

    own = store_of(Added, event_handler(note))
    own.append(Added(1), stream="shop.basket-1", publish=False)
    own.append(Added(2), stream="shop.basket-1")

    assert numbers(own.read("shop.basket-1")) == [1, 2]
    assert called == [2]


@in_a_transaction
def test_a_selection_has_a_mark():
    """A selection holds all events of a query, their number, and the last position."""
    store.append([Added(1), Removed(2), Added(3)])
    seen = store.select(where(Added))

    assert numbers(seen.events) == [1, 3]
    assert (seen.marker.count, seen.marker.last) == (2, store.head())
    assert store.select(where("nothing")).marker == type(seen.marker)(0, 0)


@in_a_transaction
def test_published_events_have_the_stored_id_and_headers():
    """A handler sees the id, the time, the chain and the headers that are stored."""
    seen = []

    def note(event: Added, headers: Headers) -> None:
        seen.append(dict(headers))

    own = store_of(Added, event_handler(note))

    @command_handler
    def append(command: Removed, headers: Headers) -> None:
        own.append(
            [Added(1), Stored(Added(2), headers={"by": "bob", "own": 2})],
            stream="shop.basket-1",
            headers={"by": "ada"},
        )
        seen.append(dict(headers))

    own.registry.add(append)
    own.registry.command_bus.dispatch(Removed(1), headers={"tenant": "a", "by": "eve"})

    *published, command = seen
    stored = list(own.read("shop.basket-1"))
    assert [each.event_id for each in stored] == [
        each["message_id"] for each in published
    ]
    assert [each.recorded_at for each in stored] == [
        each["timestamp"] for each in published
    ]
    assert {each.correlation_id for each in stored} == {command["correlation_id"]}
    assert {each.causation_id for each in stored} == {command["message_id"]}
    assert {each["causation_id"] for each in published} == {command["message_id"]}
    assert stored[0].headers == {"tenant": "a", "by": "ada"}
    assert stored[1].headers == {"tenant": "a", "by": "bob", "own": 2}
    assert published[1]["own"] == 2


@in_a_transaction
def test_streams_are_listed_by_category():
    """Names of streams come in the order of their beginning, one query a page."""
    for name in ("shop.basket-2", "shop.order-1", "shop.basket-1", "shop.basket"):
        store.append(Added(1), stream=name)

    assert list(store.streams("shop.basket")) == [
        "shop.basket-2",
        "shop.basket-1",
        "shop.basket",
    ]
    assert len(list(store.streams())) == 4
    assert list(store.streams("nothing")) == []
    with pytest.raises(InvalidOption, match="has no hyphen"):
        list(store.streams("shop.basket-1"))


@in_a_transaction
def test_a_handler_gets_the_store_of_its_registry():
    """A parameter of this type is a store that knows the registry's events."""
    own = store_of(Added)

    @event_handler
    def note(event: Removed, events: EventStore) -> None:
        events.append(Added(event.number), stream="shop.basket-1")

    own.registry.add(note)
    own.registry.event_bus.publish(Removed(5))

    assert numbers(own.read("shop.basket-1")) == [5]


@in_a_transaction
def test_tags_are_stored_beside_their_events():
    """A field, a class and a call each give tags; a repeated one is stored once."""
    ada = UUID(int=1)
    event = Subscribed(7, [ada, ada])
    position = store.append(event, tags=["course:7", "own"]).position
    store.append(Subscribed(None, []))

    wanted = ("courses", "course:7", "own", f"student:{ada}")
    tagged = EventTag.objects.filter(position=position).values_list("tag", "name")
    assert sorted(tagged) == sorted((tag, "course.subscribed") for tag in wanted)
    first, second = store.read_all()
    assert first.tags == wanted
    assert second.tags == ("courses",)
    assert first.headers == {}


@in_a_transaction
async def test_e38_1_every_call_has_a_twin():
    """In an event loop, each call is awaited, in one hop. [E38.1]"""
    done = await store.aappend([Added(1), Added(2)], stream="shop.basket-1")

    assert done.version == await store.aversion("shop.basket-1") == 2
    assert await store.aexists("shop.basket-1")
    assert [each.event.number async for each in store.aread("shop.basket-1")] == [1, 2]
    read = [each async for each in store.aread_all(where(Added), limit=1)]
    assert numbers(read) == [1]
    assert [each async for each in store.astreams("shop.basket")] == ["shop.basket-1"]
    assert (await store.aselect(where(Added))).marker.count == 2
    assert await store.ahead() == await store.asettled() == done.position
    assert await store.alink("copies", read) == 1
    with pytest.raises(StreamNotFound):
        [each async for each in store.aread("shop.basket-2")]
