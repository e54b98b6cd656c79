"""Events, names, versions, tags and rows that are not what they should be."""

import json
import random
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from django_cqrs import message
from django_cqrs.events import EventStore, Stored, Tag, where
from django_cqrs.events.columns import uuid_writer
from django_cqrs.events.models import EventTag, StoredEvent, Stream
from django_cqrs.exceptions import (
    InvalidHeader,
    InvalidOption,
    MessageConversionError,
    UnknownMessage,
)
from tests.events.support import SOAKS, Added, in_a_transaction, store, store_of
from tests.support import faults_of

pytestmark = [pytest.mark.database, in_a_transaction]


@dataclass(frozen=True)
class Line:
    text: str


@dataclass(frozen=True)
class LongLine(Line):
    more: str


@message("shop.priced")
@dataclass(frozen=True)
class Priced:
    price: float
    lines: list[Line]
    rest: Any = None


own = store_of(Added, Priced)


@message("shop.unknown")
@dataclass(frozen=True)
class Unknown:
    number: int


NOT_BACK = "it would not come back from JSON unchanged"


@pytest.mark.parametrize(
    ("event", "fault"),
    [
        (Added("3"), ("number", f"{NOT_BACK} (Input should be a valid integer)")),
        (Priced(float("nan"), []), ("price", NOT_BACK)),
        (Priced(float("inf"), []), ("price", NOT_BACK)),
        (Priced(1.5, [Line("a"), LongLine("b", "c")]), ("lines.1", NOT_BACK)),
        (Priced(1.5, [Line("a\0")]), ("lines.0.text", "a text contains")),
        (Priced(1.5, [], {"a": ["\0"]}), ("rest.a.0", "a text contains")),
        (Priced(1.5, [], {"a\0": 1}), ("rest", "a text contains")),
        (Priced(1.5, [Line("\ud800")]), ("", "surrogate")),
    ],
)
def test_e11_1_what_would_not_come_back_is_refused_with_its_place(event, fault):
    """A value that JSON or a database cannot hold raises at the append, with its path. [E11.1]"""
    with pytest.raises(MessageConversionError) as caught:
        own.append([Added(1), event], stream="shop.basket-1")

    [(path, text)] = faults_of(caught)
    assert path == fault[0] or not fault[0]
    assert fault[1] in text or not fault[0]
    assert StoredEvent.objects.count() == Stream.objects.count() == 0


def test_e11_1_an_escaped_backslash_is_no_nul():
    """A text that only looks like an escaped NUL is kept. [E11.1]"""
    event = Priced(1.5, [Line("\\u0000"), Line("\\\\u0000")])
    own.append(event, stream="shop.basket-1")

    assert [each.event for each in own.read("shop.basket-1")] == [event]


def test_e11_1_an_unregistered_class_is_refused():
    """A class that the registry does not know raises, and says what to do. [E11.1]"""
    with pytest.raises(UnknownMessage, match=r"registry\.add\(Unknown\)"):
        own.append([Added(1), Unknown(2)], stream="shop.basket-1")
    for given in (None, Added, []):
        with pytest.raises(InvalidOption):
            own.append(given, stream="shop.basket-1")
    with pytest.raises(InvalidOption):
        own.append([Added(1), None])
    with pytest.raises(InvalidHeader):
        own.append(Added(1), headers={"message_id": 1})
    with pytest.raises(InvalidOption, match="event_id= takes a UUID"):
        Stored(Added(1), event_id="7")
    assert StoredEvent.objects.count() == Stream.objects.count() == 0


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "it is empty"),
        ("-1", "it has no category before its first hyphen"),
        ("shop.basket-", "nothing follows its hyphen"),
        ("a" * 100 + "-" + "b" * 255, "it has more than 355 characters"),
        ("a" * 101, "its category has more than 100 characters"),
        ("a-" + "b" * 256, "its key has more than 255 characters"),
        ("shop.basket-1 ", "its category or its key ends with a space"),
        ("shop.basket -1", "its category or its key ends with a space"),
        ("shop.basket-\0", "it has a character that databases cannot store"),
        ("shop.basket-\ud800", "it has a character that databases cannot store"),
        (7, "it is not a string"),
    ],
)
def test_e11_2_a_name_that_no_stream_can_have_is_refused(name, why):
    """A name is refused with the reason, by each call that takes one. [E11.2]"""
    for call in (
        lambda: store.append(Added(1), stream=name),
        lambda: list(store.read(name)),
        lambda: store.version(name),
        lambda: store.exists(name),
        lambda: store.link(name, []),
        lambda: where(stream=[name]),
    ):
        with pytest.raises(InvalidOption, match=f"be the name of a stream: {why}"):
            call()
    assert StoredEvent.objects.count() == Stream.objects.count() == 0


def test_e11_2_the_longest_names_are_kept():
    """Names are compared character by character, up to the longest. [E11.2]"""
    names = [
        "a" * 100 + "-" + "b" * 254,
        "a-" + "\N{PILE OF POO}" * 255,
        "A-b",
        "a-B",
        "a-b",
        "a-\u00e4",
        "a-a\u0308",
        "a- b",
        "a-b-c",
        "a--",
    ]
    for number, name in enumerate(names):
        store.append(Added(number), stream=name, expected_version=0)

    for number, name in enumerate(names):
        [recorded] = store.read(name)
        assert (recorded.stream, recorded.event) == (name, Added(number))


@pytest.mark.parametrize("expected", [-1, "3", True, 1.0, None])
def test_e11_3_what_is_not_a_version_is_refused(expected):
    """An expected version is a number from 0, or one of the names. [E11.3]"""
    with pytest.raises(InvalidOption, match="expected_version= is ANY, NEW, EXISTS"):
        store.append(Added(1), stream="shop.basket-1", expected_version=expected)
    with pytest.raises(InvalidOption, match="give stream= as well"):
        store.append(Added(1), expected_version=0)
    assert StoredEvent.objects.count() == Stream.objects.count() == 0


def test_e11_4_a_tag_that_cannot_be_stored_is_refused():
    """A tag has at most 255 characters, and none that databases cannot store. [E11.4]"""

    @message("shop.tagged")
    @dataclass(frozen=True)
    class Tagged:
        text: str

    for tags in (["a" * 256], ["a\0"], ["\ud800"], [""], [7], "course:1"):
        with pytest.raises(InvalidOption):
            store.append(Added(1), tags=tags)
    with pytest.raises(InvalidOption, match="256 characters, and 255 are allowed"):
        where(course="a" * 249)
    for name in ("", "a:b", 7):
        with pytest.raises(InvalidOption, match="a name without a colon"):
            Tag(name)
    with pytest.raises(InvalidOption, match="takes classes and names"):
        where(7)
    assert StoredEvent.objects.count() == 0

    # A space at the end is not ignored, and letters are not folded.
    tags = ["a" * 255, "a:b", "a:b ", "A:b", "a:\u00e4", "a:a\u0308"]
    store.append(Added(1), tags=tags)
    assert EventTag.objects.count() == 6
    assert [len(list(store.read_all(where(tags=[tag])))) for tag in tags] == [1] * 6
    assert list(store.read_all(where(tags=["A:B"]))) == []


ROWS = 10_000 if SOAKS else 400


@pytest.mark.long
def test_e11_5_rows_put_in_by_hand_are_read_or_refused_with_their_place(say):
    """Reading a row of any content gives an event, or an error with position and stream. [E11.5]"""
    say(f"{ROWS:,} rows")
    chance = random.Random(7)
    stream = Stream.objects.create(category="a", key="b", created_at=timezone.now())
    write = uuid_writer(connection)
    rows = []
    for version in range(1, ROWS + 1):
        headers = chance.choice(HEADERS)
        rows.append(
            [
                stream.pk,
                version,
                chance.choice(["shop.added", "shop.priced", "shop.gone", "", "\u00e4"]),
                chance.choice([1, 1, 1, 2, 0, -1, 32767, -32768]),
                json.dumps({"number": 1} if chance.random() < 0.5 else junk(chance)),
                json.dumps(headers),
                write(uuid4()),
                write(uuid4()),
                None,
                "2026-11-30 10:00:00+00:00"[
                    : 25 if connection.vendor != "mysql" else 19
                ],
            ]
        )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO django_cqrs_events_storedevent (stream_id, version, name, "
            "shape, payload, headers, event_id, correlation_id, causation_id, "
            f"recorded_at) VALUES ({', '.join(['%s'] * 10)})",
            rows,
        )

    outcomes = set()
    for recorded in own.read("a-b"):
        for part in ("event", "payload", "headers", "tags", "is_dropped"):
            try:
                getattr(recorded, part)
                outcomes.add((part, None))
            except (MessageConversionError, UnknownMessage) as error:
                text = str(error)
                outcomes.add((part, type(error)))
                assert f"position {recorded.position} " in text
                assert "'a-b'" in text
    assert recorded.version == ROWS
    assert outcomes == {
        ("event", None),
        ("event", MessageConversionError),
        ("event", UnknownMessage),
        ("payload", None),
        ("headers", None),
        ("headers", MessageConversionError),
        ("tags", None),
        ("tags", MessageConversionError),
        ("is_dropped", None),
    }


HEADERS = [
    {},
    {"a": 1},
    {"a": [1], "timestamp": "x"},
    [],
    None,
    7,
    "text",
    {"django_cqrs.unset": 7},
    {"django_cqrs.unset": [[["lines"], 5]]},
    {"django_cqrs.tags": 7},
    {"django_cqrs.tags": [None]},
    ["django_cqrs.tags"],
]


def junk(chance, depth=0):
    """Return JSON of any shape; often nearly that of an event."""
    kind = chance.randrange(9 if depth < 3 else 5)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice([0, -1, 2**63, 10**30, 1.5, 1e300])
    if kind in (2, 3):
        return chance.choice(["", "a", "\u00e4", "2026-11-30T10:00:00Z[x]", '"]'])
    if kind == 4:
        return {"number": chance.choice([1, "1", None, 1.0, 2**70])}
    if kind == 5:
        return [junk(chance, depth + 1) for _ in range(chance.randrange(3))]
    return {
        name: junk(chance, depth + 1)
        for name in chance.sample(["price", "lines", "rest", "text", "x"], 3)
    }


def test_e11_5_broken_json_cannot_be_stored():
    """The database refuses a payload that is not JSON. [E11.5]"""
    write = uuid_writer(connection)
    for payload in ('{"a"', "NaN", '{"a": Infinity}', ""):
        with (
            pytest.raises(DatabaseError),
            transaction.atomic(),
            connection.cursor() as cursor,
        ):
            cursor.execute(
                "INSERT INTO django_cqrs_events_storedevent (name, shape, payload, "
                "headers, event_id, correlation_id, recorded_at) "
                "VALUES ('a', 1, %s, '{}', %s, %s, '2026-11-30 10:00:00')",
                [payload, write(uuid4()), write(uuid4())],
            )
    assert StoredEvent.objects.count() == 0


def test_e11_6_large_payloads_and_many_tags_go_through():
    """A payload of a megabyte, and a thousand tags, are stored and read. [E11.6]"""
    text = "\u00e4" * 500_000
    tags = [f"a:{number}" for number in range(1000)]
    event = Priced(1.5, [Line(text)])
    own.append([event, Added(2)], stream="shop.basket-1", tags=tags)

    first, second = own.read("shop.basket-1")
    assert first.event == event
    assert list(second.tags) == tags
    assert EventTag.objects.count() == 2000
    assert [each.version for each in own.read_all(where(a=999))] == [1, 2]


def test_the_store_says_what_it_is():
    """A store, an event and an event to be stored show no values."""
    assert repr(EventStore()) == "EventStore()"
    assert repr(EventStore("other")) == "EventStore('other')"
    assert repr(Stored(Added(7))) == "Stored(Added)"
    position = store.append(Added(7), stream="shop.basket-1").position
    [recorded] = store.read("shop.basket-1")
    assert repr(recorded) == (f"<Recorded shop.added at {position} of 'shop.basket-1'>")
