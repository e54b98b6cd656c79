"""What an object consists of comes back equal; what would not is a check."""

from __future__ import annotations

import enum
from dataclasses import KW_ONLY, InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Annotated, ClassVar, Final, NamedTuple, Self
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr

from django_cqrs import Command, Registry, command_handler
from django_cqrs.checks import check_registry
from django_cqrs.conversion import converter
from django_cqrs.documents import DocumentStore, document
from django_cqrs.documents.shapes import mark_of, shape_of
from django_cqrs.exceptions import InvalidHandler, MessageConversionError
from django_cqrs.messages import MessageName
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents

pytestmark = [pytest.mark.django_db, pytest.mark.database]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Place(NamedTuple):
    x: int
    y: int


class Money:
    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other):
        return isinstance(other, Money) and other.text == self.text

    __hash__ = None


@converter
def write_money(value: Money) -> str:
    return value.text


@converter
def read_money(text: str) -> Money:
    return Money(text)


@dataclass(frozen=True)
class Line:
    product: UUID
    price: Decimal
    _note: str = ""


class Address(BaseModel):
    street: str
    since: date


@document("papers.everything")
@dataclass
class Everything:
    LIMIT: ClassVar[int] = 3

    number: int
    _: KW_ONLY
    name: str = "x"
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    day: date = date(2026, 1, 2)
    moment: datetime = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    at: time = time(3, 4)
    span: timedelta = timedelta(days=1, seconds=2)
    price: Decimal = Decimal("1.10")
    lines: list[Line] = field(default_factory=list)
    address: Address | None = None
    place: Place = field(default_factory=lambda: Place(1, 2))
    money: Money = field(default_factory=lambda: Money("5 EUR"))
    tags: frozenset[str] = frozenset()
    by_colour: dict[Colour, Decimal] = field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    raw: bytes = b"bytes"
    constant: Final[int] = 7
    start: InitVar[int] = 0
    _secret: str = "s"
    __hidden: int = 0
    _made: int = field(default=0, init=False)

    def __post_init__(self, start):
        self._made = start
        self.__hidden = start

    @cached_property
    def total(self) -> Decimal:
        return sum((line.price for line in self.lines), Decimal(0))


FULL = {
    "number": 5,
    "colour": Colour.BLUE,
    "lines": [Line(UUID(int=1), Decimal("2.50"), "n"), Line(UUID(int=2), Decimal(1))],
    "address": Address(street="High Street", since=date(2020, 1, 1)),
    "tags": frozenset({"a", "b"}),
    "by_colour": {Colour.RED: Decimal("0.1")},
    "_secret": "hush",
    "start": 9,
}


class Model(BaseModel):
    number: int
    colour: Colour = Colour.RED
    day: date = date(2026, 1, 2)
    lines: list[Line] = Field(default_factory=list)
    address: Address | None = None
    limited: Annotated[int, Field(ge=0)] = 0


class Plain:
    number: int
    colour: Colour
    lines: list[Line]
    name: str = "unnamed"
    cache: ClassVar[dict[str, int]]

    def __init__(self, number: int) -> None:
        self.number = number
        self.colour = Colour.BLUE
        self.lines = FULL["lines"]
        self.cache = {}


class TestEqual:
    @pytest.mark.parametrize("values", [{"number": 1}, FULL])
    def test_a_dataclass(self, values):
        """Enums, dates, nested values, private fields and those without ``init``. [M11.3]"""
        store = DocumentStore(Everything)
        thing = Everything(**values)
        assert thing.total >= 0  # what is cached is no part of the state
        store.add("a", thing)
        found = store.get("a")

        assert found == thing
        assert found._secret == values.get("_secret", "s")
        assert found._made == values.get("start", 0)
        assert found.total == thing.total
        assert type(found.lines) is list
        assert type(found.colour) is Colour

    def test_a_pydantic_model(self):
        """All its fields, in the types that it says. [M11.3]"""
        store = DocumentStore(Model, collection="papers.model")
        thing = Model(**{name: FULL[name] for name in ("number", "colour", "lines")})
        store.add("a", thing)

        assert store.get("a") == thing
        assert store.get("a").model_dump() == thing.model_dump()

    def test_a_plain_class(self):
        """Its annotated attributes; one with a default need not be set. [M11.3]"""
        store = DocumentStore(Plain, collection="papers.plain")
        store.add("a", Plain(5))
        found = store.get("a")

        assert (found.number, found.colour, found.name) == (5, Colour.BLUE, "unnamed")
        assert found.lines == FULL["lines"]
        assert not hasattr(found, "cache")

    @given(
        st.builds(
            Everything,
            number=st.integers(-(2**63), 2**63 - 1),
            name=st.text(st.characters(exclude_categories=["Cs"])),
            colour=st.sampled_from(Colour),
            day=st.dates(),
            moment=st.datetimes(timezones=st.just(UTC)),
            price=st.decimals(allow_nan=False, allow_infinity=False),
            raw=st.binary(),
        )
    )
    def test_whatever_it_holds(self, thing):
        """It comes back equal, or is refused before anything is written. [M11.3]"""
        shape, own = shape_of(Everything), MessageName("papers.everything")
        if "\0" in thing.name:
            with pytest.raises(MessageConversionError, match="NUL"):
                shape.dump(thing)
        else:
            assert shape.load(shape.dump(thing), own, own.name, 1) == thing


class TestOlderContent:
    def test_a_new_field_with_a_default(self):
        """It has its default where older content lacks it; one without is missing."""
        shape, own = shape_of(Everything), MessageName("x")
        found = shape.load({"number": 3, "unknown": 1}, own, "x", 1)

        assert found == Everything(3)
        assert found.lines is not shape.load({"number": 3}, own, "x", 1).lines
        with pytest.raises(MessageConversionError, match="number"):
            shape.load({}, own, "x", 1)

    def test_json_is_read_strictly(self):
        """No text stands for a number."""
        with pytest.raises(MessageConversionError, match="number"):
            shape_of(Everything).load({"number": "3"}, MessageName("x"), "x", 1)


class TestRefused:
    def test_an_attribute_without_a_value(self):
        """It is named."""
        thing = Plain(1)
        del thing.number
        with pytest.raises(MessageConversionError, match="number: it has no value"):
            shape_of(Plain).dump(thing)

    def test_an_attribute_without_an_annotation(self):
        """What was set from outside is found when it is saved."""
        thing = Plain(1)
        thing.more = 1
        with pytest.raises(MessageConversionError, match="more: it is not annotated"):
            shape_of(Plain).dump(thing)

    def test_slots(self):
        """An object with slots is kept, and remembers nothing."""

        @dataclass(slots=True)
        class Slotted:
            number: int = 1

        store = DocumentStore(Slotted, collection="papers.slotted")
        store.add("a", Slotted(2))

        assert store.get("a") == Slotted(2)
        assert mark_of(store.get("a")) is None


@dataclass(frozen=True)
class Do(Command[int]):
    thing_id: int


class Base(RecordsEvents):
    @command_handler
    @classmethod
    def make(cls, command: Do) -> Self:
        return cls(thing_id=command.thing_id)


def problems_of(cls):
    registry = Registry()
    registry.add(cls)
    return registry, [
        (each.id.removeprefix("django_cqrs."), each.msg, each.hint)
        for each in check_registry(registry)
    ]


class TestChecks:
    def test_E043_an_attribute_without_an_annotation(self):
        """A plain class says what it consists of; its route raises otherwise. [M11.3]"""

        @aggregate(identifier="thing_id")
        @document("papers.one")
        class One(Base):
            thing_id: int

            def __init__(self, thing_id):
                self.thing_id = thing_id
                self.name, self.size = "x", 1

            @property
            def shown(self):
                return self.name

            @shown.setter
            def shown(self, value):
                self.name = value
                self.shown_at = 1

        registry, found = problems_of(One)
        hint = (
            "Write {0}: <its type> in the body of the class, or {0}: ClassVar[...] "
            "if it is not to be stored."
        )
        assert found == [
            (
                "E043",
                f"One.{name} is set but not annotated, so its value would be lost.",
                hint.format(name),
            )
            for name in ("name", "shown_at", "size")
        ]
        with pytest.raises(InvalidHandler, match=r"One\.name is set"):
            registry.command_bus.dispatch(Do(1))

    def test_E043_a_private_attribute_of_a_pydantic_model(self):
        """pydantic does not write it. [M11.3]"""

        @aggregate(identifier="thing_id")
        @document("papers.two")
        class Two(Base, BaseModel):
            thing_id: int
            _secret: int = PrivateAttr(default=0)

        _, found = problems_of(Two)
        assert found == [
            (
                "E043",
                (
                    "Two._secret is private, so pydantic does not write it, and its "
                    "value would be lost."
                ),
                (
                    "Make it a field, or make the class a dataclass: private fields "
                    "of dataclasses are kept."
                ),
            )
        ]

    def test_E043_what_has_no_json_form(self):
        """An annotation that nothing can be read by."""

        @aggregate(identifier="thing_id")
        @document("papers.three")
        @dataclass
        class Three(Base):
            thing_id: int
            shape: type(shape_of(int)) = None

        _, found = problems_of(Three)
        assert [each[0] for each in found] == ["E043"]
        assert found[0][1].startswith("Three has no JSON form: ")

    def test_E043_an_annotation_of_nothing(self):
        """A name that is not there at run time."""

        @aggregate(identifier="thing_id")
        @document("papers.four")
        class Four(Base):
            thing_id: Nothing  # noqa: F821

        _, found = problems_of(Four)
        assert found[0][:2] == (
            "E043",
            "An annotation of Four cannot be evaluated: name 'Nothing' is not defined.",
        )

    def test_E043_slots_alone(self):
        """An aggregate has to know which version of it was read."""

        @aggregate(identifier="thing_id")
        @document("papers.five")
        @dataclass(slots=True)
        class Five:
            thing_id: int

            @command_handler("five")
            def act(self) -> None: ...

        _, found = problems_of(Five)
        assert [each[0] for each in found] == ["E043"]
        assert "only __slots__" in found[0][1]

    def test_E044_no_name(self):
        """No app, no ``@document``: its code's place is no name."""

        @aggregate(identifier="thing_id")
        @dataclass
        class Six(Base):
            thing_id: int

        registry, found = problems_of(Six)
        assert found == [
            (
                "E044",
                "Six has no name for storage: it does not belong to an installed app.",
                'Name it with @document("app.name").',
            )
        ]
        with pytest.raises(InvalidHandler, match="has no name for storage"):
            registry.command_bus.dispatch(Do(1))

    def test_E044_a_name_of_two(self):
        """One collection is of one class."""

        @document("papers.seven")
        @dataclass
        class Seven:
            thing_id: int

        assert DocumentStore(Seven).count() == 0

        @aggregate(identifier="thing_id")
        @document("papers.eight", aliases=["papers.seven"])
        @dataclass
        class Eight(Base):
            thing_id: int

        _, found = problems_of(Eight)
        assert found[0][0] == "E044"
        assert "Seven is named 'papers.seven' as well" in found[0][1]

    def test_E030_no_identifier(self):
        """By default it is looked for by the name of the class."""

        @aggregate
        @document("papers.nine")
        @dataclass
        class Nine(Base):
            thing_id: int

        _, found = problems_of(Nine)
        assert found == [
            (
                "E030",
                "Nine has no attribute 'nine_id' to identify it.",
                "Annotate it, or name another attribute with identifier=.",
            )
        ]

    def test_E036_no_version(self):
        """``version=`` names an attribute that is an int."""

        @aggregate(identifier="thing_id", version="version")
        @document("papers.ten")
        @dataclass
        class Ten(Base):
            thing_id: int

        _, found = problems_of(Ten)
        assert found == [
            (
                "E036",
                (
                    "Ten has version='version', which is not an attribute annotated "
                    "as int."
                ),
                "Write version: int = 0.",
            )
        ]


@dataclass(frozen=True)
class Number:
    text: str

    def __str__(self) -> str:
        return self.text


class TestIdentifiers:
    def test_a_plain_id(self):
        """``id`` is what messages call by the name of the class."""

        @dataclass(frozen=True)
        class Paint:
            wall_id: int

        @aggregate
        @document("papers.wall")
        @dataclass
        class Wall:
            id: int
            coats: int = 0

            @command_handler
            @classmethod
            def first(cls, command: Paint) -> Self:
                return cls(command.wall_id, 1)

            @command_handler
            def again(self, command: Paint) -> int:
                self.coats += 1
                return self.coats

        registry, found = problems_of(Wall)
        assert found == []
        dispatch = registry.command_bus.dispatch
        assert (dispatch(Paint(7)), dispatch(Paint(7))) == (7, 2)

    def test_a_composite_one(self):
        """Several attributes make one key; a tuple of them is the result. [M01.1]"""

        @dataclass(frozen=True)
        class Book:
            show: int
            seat: str
            guest: str

        @aggregate(identifier=("show", "seat"))
        @document("papers.seat")
        @dataclass
        class Seat:
            show: int
            seat: str
            guest: str = ""

            @command_handler
            @classmethod
            def book(cls, command: Book) -> Self:
                return cls(command.show, command.seat, command.guest)

            @command_handler("seat.free")
            def free(self) -> None:
                self.guest = ""

        registry, found = problems_of(Seat)
        assert found == []
        dispatch = registry.command_bus.dispatch
        assert dispatch(Book(1, "A1", "ada")) == (1, "A1")
        assert dispatch(Book(1, "A2", "bob")) == (1, "A2")
        dispatch(route="seat.free", aggregate_id={"show": 1, "seat": "A2"})

        assert [each.guest for each in DocumentStore(Seat).list()] == ["ada", ""]

    def test_a_value_object(self):
        """It is known by its text. [M08.2]"""

        @dataclass(frozen=True)
        class Draw:
            ticket_id: Number

        @aggregate(identifier="ticket_id")
        @document("papers.ticket")
        @dataclass
        class Ticket:
            ticket_id: Number
            draws: int = 1

            @command_handler
            @classmethod
            def first(cls, command: Draw) -> Self:
                return cls(command.ticket_id)

            @command_handler
            def again(self, command: Draw) -> int:
                self.draws += 1
                return self.draws

        registry, _ = problems_of(Ticket)
        dispatch = registry.command_bus.dispatch
        assert dispatch(Draw(Number("7"))) == "7"
        assert dispatch(Draw(Number("7"))) == 2
        assert DocumentStore(Ticket).get("7") == Ticket(Number("7"), 2)
