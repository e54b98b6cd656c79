"""Classes with every type that has a shape, for lock files that must not change."""

from __future__ import annotations

import collections
import enum
import fractions
import ipaddress
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Optional,
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

from django_cqrs import Sensitive
from django_cqrs.conversion import converter
from django_cqrs.messages import MessageName

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Length:
    def __init__(self, metres):
        self.metres = metres


@converter
def write_length(value: Length) -> str:
    return f"{value.metres} m"


@converter
def read_length(text: str) -> Length:
    return Length(int(text.removesuffix(" m")))


@dataclass
class Line:
    sku: str
    count: Annotated[int, Field(ge=1, le=99)]

    def __post_init__(self):
        if self.sku == "":
            raise ValueError("the sku is missing")


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Tree:
    name: str
    below: list[Tree] = field(default_factory=list)
    above: Optional[Tree] = None


class Place(NamedTuple):
    x: int
    y: int = 0


class Bag(TypedDict):
    key: str
    note: NotRequired[str]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid", str_max_length=9)
    kind: Literal["dog"]
    name: str = Field(alias="dogName")

    @pydantic.field_validator("name")
    @classmethod
    def check_name(cls, value):
        return value


class Root(pydantic.RootModel[list[int]]):
    pass


@dataclass
class Numbers:
    whole: int
    small: pydantic.PositiveInt
    even: Annotated[int, Field(multiple_of=2, lt=10)]
    real: float
    ratio: Annotated[float, Field(ge=0, le=1)]
    money: Annotated[Decimal, Field(max_digits=8, decimal_places=2)]
    exact: Annotated[Decimal, Field(gt=Decimal("1.5"))]
    part: fractions.Fraction
    flag: bool


@dataclass
class Texts:
    text: str
    short: Annotated[str, Field(min_length=1, max_length=3)]
    code: Annotated[str, Field(pattern=r"^[A-Z]+$")]
    sku: Annotated[str, Field(pattern=r"^X-\d$", examples=["X-1"])]
    lower: Annotated[str, pydantic.StringConstraints(to_lower=True)]
    secret: Annotated[str, Sensitive()]
    raw: bytes
    key: UUID
    random: pydantic.UUID4
    address: ipaddress.IPv4Address
    path: Path
    zone: ZoneInfo
    url: pydantic.AnyUrl
    link: pydantic.HttpUrl
    length: Length
    hidden: pydantic.SecretStr
    inner: pydantic.Json[list[int]]


@dataclass
class Times:
    day: date
    moment: datetime
    aware: pydantic.AwareDatetime
    naive: pydantic.NaiveDatetime
    past: pydantic.PastDate
    later: pydantic.FutureDatetime
    hour: time
    span: timedelta


@dataclass
class Containers:
    items: list[int]
    several: tuple[int, ...]
    pair: tuple[int, str]
    once: set[str]
    frozen: frozenset[int]
    turn: collections.deque[int]
    counts: collections.Counter[str]
    ordered: collections.OrderedDict[str, int]
    usual: collections.defaultdict[str, int]
    by_key: dict[UUID, list[Line]]
    limited: Annotated[list[int], Field(min_length=2, max_length=3)]
    box: Box[Box[int]]
    tree: Tree
    place: Place
    bag: Bag
    root: Root
    anything: Any


@dataclass
class Choices:
    colour: Colour
    level: Level
    literal: Literal["b", "a", 1] | None
    maybe: Optional[int]
    either: Union[int, str, None]
    pet: Annotated[Union[Cat, Dog], Field(discriminator="kind")]
    first: Annotated[Union[int, str], Field(union_mode="left_to_right")]


@dataclass
class Everything:
    text: str = "never in a sample"
    number: int = 3
    colour: Colour = Colour.BLUE
    amount: Decimal = Decimal("1.50")
    day: date = date(2026, 1, 2)
    tags: frozenset[str] = frozenset({"c", "a", "b"})
    lines: tuple[Line, ...] = (Line("x", 1),)
    length: Length = field(default_factory=lambda: Length(1))
    late: int = field(init=False, default=1)


@dataclass
class Words:
    type: str
    of: int
    fields: int
    tags: Annotated[Union[Cat, Dog], Field(discriminator="kind")]


@dataclass
class Word:
    type: int


NAME = MessageName("everything.everything")


def named():
    """Return the classes, each with its name."""
    found = (Numbers, Texts, Times, Containers, Choices, Everything, Words, Word)
    return [(cls, MessageName(f"everything.{cls.__name__}")) for cls in found]
