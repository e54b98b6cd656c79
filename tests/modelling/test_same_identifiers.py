"""What names an object does so on every way: at once, and through a channel."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
import uuid_utils

from django_cqrs import Headers, Registry, command_handler
from django_cqrs.channels import channels
from django_cqrs.declaration.key_sources import as_key
from django_cqrs.exceptions import InvalidHeader, InvalidIdentifier
from tests.modelling.boxes import KINDS, Inner, put, values_of

pytestmark = [pytest.mark.django_db, pytest.mark.database]


class Number(enum.Enum):
    SEVEN = 7


class Text(enum.StrEnum):
    SEVEN = "7"


class Key:
    """A value object, whose text is the identifier."""

    def __str__(self):
        return "7"


class OwnUUID(UUID):
    pass


class OwnDecimal(Decimal):
    pass


class OwnTime(datetime):
    pass


class OwnInt(int):
    pass


GIVEN = {
    "int": 7,
    "text": "7",
    "value object": Key(),
    "Enum": Number.SEVEN,
    "StrEnum": Text.SEVEN,
    "subclass": OwnInt(7),
    "Decimal": OwnDecimal(7),
    "dict": {"box_id": Number.SEVEN},
}
WAYS = [None, "outbox", "memory"]


@pytest.fixture
def send(name, way):
    """Return what sends to a box by an aggregate_id, and handles it."""

    @command_handler("box.counted", channel=way)
    def counted(self) -> None:
        self.b += 1

    kind = KINDS[name]
    kind.counted = counted
    registry = Registry()
    registry.add(kind)
    del kind.counted

    registry.routes  # noqa: B018 - compiled while the method is there

    def call(given):
        kind.counted = counted
        try:
            registry.command_bus.dispatch(route="box.counted", aggregate_id=given)
            if way == "outbox":
                channels[way].run(registry=registry)
            elif way == "memory":
                channels[way].run()
        finally:
            del kind.counted

    kind.counted = counted
    registry.reset()
    registry.routes  # noqa: B018
    put(name, 7)
    yield call
    KINDS["KeptBox"](0).kept.clear()


NAMES = ["Box", "Process", "DocumentBox", "KeptBox"]


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_an_identifier_is_the_same_on_every_way(name, way, given, send):
    """Value objects, Enums, and what derives from a plain type."""
    send(given)

    assert values_of(name, 7) == (0, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_the_object_itself_names_itself(name, way, send):
    """Of whatever storage."""
    send(KINDS[name](box_id=7))

    assert values_of(name, 7) == (0, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "fault"),
    [("a\x00b", "the character NUL"), ("a\udc00", "an incomplete character")],
)
def test_a_text_that_no_key_may_hold_is_refused_on_every_way(
    name, way, text, fault, send
):
    """One clear error, and nothing is sent."""
    with pytest.raises(InvalidIdentifier) as raised:
        send(text)

    assert str(raised.value) == (
        f"{text!r} is not a valid identifier: it contains {fault}, which a key must "
        "not contain."
    )


ID = uuid_utils.uuid7()
HEADERS = {
    "uuid_utils": (ID, UUID(int=ID.int), str(ID)),
    "UUID": (OwnUUID(int=1), UUID(int=1), str(UUID(int=1))),
    "Decimal": (OwnDecimal("1.50"), Decimal("1.50"), "1.50"),
    "time": (
        OwnTime(2026, 1, 2, tzinfo=UTC),
        datetime(2026, 1, 2, tzinfo=UTC),
        "2026-01-02T00:00:00Z",
    ),
    "int": (OwnInt(3), 3, 3),
}


@pytest.mark.parametrize(("given", "plain", "stored"), HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("way", [None, "outbox"])
def test_a_header_of_a_class_derived_from_a_plain_one_is_taken(
    way, given, plain, stored
):
    """A handler gets the plain value at once, and what JSON has out of a channel."""
    got = []

    @command_handler("look", channel=way)
    def look(command: Inner, headers: Headers) -> None:
        got.append(headers["x"])

    registry = Registry()
    registry.add(look)
    registry.command_bus.dispatch(Inner(1), route="look", headers={"x": given})
    if way:
        channels[way].run(registry=registry)

    expected = stored if way else plain
    assert got == [expected]
    assert type(got[0]) is type(expected)


class Odd(enum.Enum):
    OBJECT = object()


@pytest.mark.parametrize("way", [None, "outbox"])
@pytest.mark.parametrize("value", ["a\udc00", Odd.OBJECT, b"x", object()])
def test_a_header_that_cannot_travel_is_refused_on_every_way(way, value):
    """Whether its handler has a channel or not."""

    @command_handler("look", channel=way)
    def look(command: Inner) -> None: ...

    registry = Registry()
    registry.add(look)
    with pytest.raises(InvalidHeader, match=r"^The header 'x' "):
        registry.command_bus.dispatch(Inner(1), route="look", headers={"x": value})


def test_a_key_may_be_of_a_class_derived_from_a_plain_one():
    """Keys are told apart by their plain values."""
    assert as_key(ID) == str(ID)
    assert as_key(OwnUUID(int=1)) == str(UUID(int=1))
