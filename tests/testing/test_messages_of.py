"""Messages that Hypothesis draws from annotations, and what comes of them."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    TypeVar,
)
from uuid import UUID

import annotated_types as limits
import pydantic
import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import NotRequired, TypedDict  # of typing only from 3.12 on

import django_cqrs
from django_cqrs import (
    Command,
    Sensitive,
    command_handler,
    event_handler,
    message,
    service,
)
from django_cqrs.exceptions import InvalidOption
from django_cqrs.modelling import Identifier
from django_cqrs.testing.machines import assert_once, check_payloads, messages_of
from tests import test_properties as properties
from tests.outbox.support import SOAKS
from tests.support import registry_of
from tests.testapp.models import Note

EXAMPLES = settings(
    max_examples=200 if SOAKS else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


def drawn(strategy, accept, tuned=EXAMPLES):
    """Draw some values, and have each accepted."""

    @tuned
    @given(strategy)
    def draw(value):
        accept(value)

    draw()


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


T = TypeVar("T")
Number = NewType("Number", int)


@dataclass(frozen=True)
class Box(Generic[T]):
    item: T


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Address(TypedDict):
    street: str
    zip: NotRequired[int]


@dataclass
class Node:
    name: str
    children: list[Node] = field(default_factory=list)
    parent: Node | None = None


@message("drawn.everything")
@dataclass(frozen=True, kw_only=True)
class Everything(Command[int]):
    """A field of every type that the page about conversion names."""

    flag: bool
    number: int
    ratio: float
    price: Decimal
    text: str
    raw: bytes
    key: UUID
    day: date
    moment: datetime
    clock: time
    span: timedelta
    color: Color
    size: Size
    kind: Literal["a", "b", 1]
    nothing: None
    numbers: list[int]
    pair: tuple[int, str]
    many: tuple[Decimal, ...]
    some: frozenset[int]
    others: set[str]
    queue: deque[int]
    by_day: dict[date, int]
    either: int | UUID | list[str] | None
    point: Point
    address: Address
    box: Box[int]
    node: Node
    named: Number
    address_of_host: IPv4Address
    anything: Any
    mapping: dict
    sequence: Sequence[int]
    read_only: Mapping[str, int]
    bare: list
    secret: Annotated[str, Sensitive()]
    order: Annotated[int, Identifier("order_id")]
    default: int = 7


class TestTypes:
    def test_every_type(self):
        """Each value is of its type, and comes back from JSON as it was. [K03.4]"""
        registry = registry_of(handling(Everything))
        types, parts = registry.routes.types, set()

        def accept(drawn_one):
            name, text = types.encode(drawn_one)
            assert types.decode(name.name, text) == drawn_one
            assert isinstance(drawn_one.point, Point)
            assert type(drawn_one.size) is Size
            assert drawn_one.moment.tzinfo is UTC
            assert math.isfinite(drawn_one.ratio)
            assert "\0" not in drawn_one.text
            assert drawn_one.nothing is None
            parts.add(drawn_one.kind)

        drawn(messages_of(Everything), accept)

        assert {"a", "b", 1} & parts

    @pytest.mark.parametrize("cls", [properties.Node, properties.Tag, properties.Stamp])
    def test_classes_of_other_tests(self, cls):
        """Recursive ones, and pydantic models that refuse some values. [K03.4]"""
        drawn(messages_of(cls), lambda value: isinstance(value, cls) or 1 / 0)

    def test_without_time_zones(self, settings):
        """Under USE_TZ=False times have none, as those of the project."""
        settings.USE_TZ = False

        drawn(messages_of(datetime), lambda value: timezone.is_naive(value) or 1 / 0)


class TestConstraints:
    def check(self, annotation, accept):
        def ensure(value):
            assert accept(value), value

        drawn(messages_of(annotation), ensure)

    def test_numbers(self):
        """Limits are kept, from annotated_types as from pydantic. [K03.4]"""
        field = pydantic.Field
        self.check(Annotated[int, limits.Ge(3), limits.Lt(5)], lambda n: n in (3, 4))
        self.check(Annotated[int, field(gt=10**12)], lambda n: n > 10**12)
        self.check(
            Annotated[int, limits.Interval(ge=5, le=2000), limits.MultipleOf(500)],
            lambda n: n in (500, 1000, 1500, 2000),
        )
        self.check(Annotated[float, field(ge=0, lt=1)], lambda n: 0 <= n < 1)
        self.check(
            Annotated[Decimal, field(gt=0, max_digits=4, decimal_places=3)],
            lambda n: 0 < n < 10 and n.as_tuple().exponent >= -3,
        )
        self.check(pydantic.PositiveInt, lambda n: n > 0)
        self.check(
            Annotated[date, limits.Gt(date(2026, 1, 1))], lambda d: d > date(2026, 1, 1)
        )

    def test_sizes_and_patterns(self):
        """Lengths, patterns and validators are obeyed. [K03.4]"""
        field = pydantic.Field
        self.check(Annotated[str, limits.Len(2, 3)], lambda s: 2 <= len(s) <= 3)
        self.check(
            Annotated[str, field(pattern=r"^[A-Z]{2}\d+$", max_length=5)],
            lambda s: s[:2].isupper() and len(s) <= 5,
        )
        self.check(
            Annotated[str, pydantic.StringConstraints(min_length=1)], lambda s: s
        )
        self.check(
            Annotated[list[int], field(min_length=5)], lambda each: len(each) >= 5
        )
        self.check(
            Annotated[dict[str, int], limits.MinLen(1)], lambda each: len(each) >= 1
        )
        self.check(Annotated[bytes, limits.MaxLen(1)], lambda each: len(each) <= 1)
        self.check(
            Annotated[int, limits.Predicate(lambda n: n % 2 == 0)], lambda n: n % 2 == 0
        )

    def test_what_the_class_refuses(self):
        """A `__post_init__` and a validator say what is drawn. [K03.4]"""

        @dataclass(frozen=True)
        class Range:
            low: int
            high: int
            check: InitVar[bool] = True

            def __post_init__(self, check):
                if self.low > self.high:
                    raise ValueError("reversed")

        class Model(pydantic.BaseModel):
            model_config = pydantic.ConfigDict(validate_by_alias=True)
            name: Annotated[str, pydantic.Field(max_length=3, alias="the_name")]
            age: int = pydantic.Field(ge=0, le=9)

        self.check(Range, lambda each: each.low <= each.high)
        self.check(Model, lambda each: len(each.name) <= 3 and 0 <= each.age <= 9)

    def test_given_fields(self):
        """Values and strategies stand in for those of the annotations."""
        few = messages_of(Point, x=st.sampled_from([1.0, 2.0]), y=3.0)
        drawn(few, lambda point: point in ((1.0, 3.0), (2.0, 3.0)) or 1 / 0)

        with pytest.raises(InvalidOption, match=r"messages_of\(Point\).* 'z'"):
            messages_of(Point, z=1)


def handling(cls):
    def handle(command):
        return None

    handle.__annotations__ = {"command": cls}
    handle.__qualname__ = handle.__name__ = f"handle_{cls.__name__}"
    return command_handler(name=f"drawn.{cls.__name__}")(handle)


@message("drawn.known")
@dataclass(frozen=True)
class Known:
    number: int


class TestCheckPayloads:
    def test_all_classes_of_a_registry(self):
        """Each class is drawn a hundred times, or as often as is said. [K03.5]"""
        registry = registry_of(handling(Everything), handling(Known))

        check_payloads(registry=registry, examples=100 if SOAKS else 5)
        check_payloads(Known, registry=registry)

    def test_a_class_that_does_not_come_back(self):
        """It is named, with the smallest message that was found. [K03.5]"""

        @message("drawn.forgetful")
        @dataclass(frozen=True)
        class Forgetful:
            text: str

            def __post_init__(self):
                if self.text:
                    object.__setattr__(self, "text", f"{self.text}!")

        registry = registry_of(handling(Known), handling(Forgetful))
        with pytest.raises(AssertionError) as raised:
            check_payloads(registry=registry)

        text = str(raised.value)
        assert text.startswith(
            "Messages of these classes do not come back from a channel:\n"
        )
        assert "Forgetful: " in text
        assert "Forgetful(text='0!'): " in text
        assert "Known" not in text
        check_payloads(registry=registry, examples=5, skip=[Forgetful])

    def test_a_class_that_cannot_be_drawn(self):
        """It is an error, too, that says how to have it drawn. [K03.5]"""

        class Unknown:
            def __init__(self, secret):
                self.secret = secret

        @message("drawn.unknown")
        @dataclass(frozen=True)
        class Holder:
            unknown: Unknown

        Holder.__annotations__["unknown"] = Unknown
        registry = registry_of(handling(Everything))
        with pytest.raises(AssertionError, match="register a strategy for its types"):
            check_payloads(Holder, registry=registry, examples=3)

        st.register_type_strategy(Unknown, st.builds(Unknown, st.just(1)))
        drawn(messages_of(Holder), lambda each: each.unknown.secret == 1 or 1 / 0)


@dataclass(frozen=True)
class Noted:
    number: int


@event_handler(name="once.add")
def add(event: Noted) -> None:
    Note.objects.create(text="added", number=event.number)


@event_handler(name="once.put", channel="outbox")
def put(event: Noted) -> None:
    Note.objects.get_or_create(text="put", number=event.number)


@command_handler(name="once.count")
def count(command: Noted) -> None:
    note, _ = Note.objects.get_or_create(text="counted")
    note.number += 1
    note.save()


@event_handler(name="once.keyed", channel="outbox", idempotency_key="number")
def keyed(event: Noted) -> None:
    Note.objects.create(text="keyed", number=event.number)


@event_handler(name="once.strict")
def strict(event: Noted) -> None:
    if Note.objects.exists():
        raise ValueError("there is one")
    Note.objects.create(text="strict")


@event_handler(name="once.clear")
def clear(event: Noted) -> None:
    Note.objects.first().delete()


class Shared:
    @event_handler
    def shared(self, event: Noted) -> None:
        Note.objects.get_or_create(number=event.number)


@service
class One(Shared):
    pass


@service
class Other(Shared):
    pass


@pytest.mark.django_db
class TestAssertOnce:
    def once(self, handler, message=None, **options):
        registry = registry_of(add, put, count, keyed, strict, clear, One, Other)
        assert_once(handler, message or Noted(7), registry=registry, **options)

    @pytest.mark.database
    def test_a_handler_that_adds_twice(self):
        """The rows that the second handling has added are shown. [K03.6]"""
        with pytest.raises(AssertionError) as raised:
            self.once(add)

        text = str(raised.value)
        assert text.startswith(
            "tests.testing.test_messages_of.add has handled Noted(number=7) twice, "
            "and the second time changed these rows.\n  testapp.Note: added id="
        )
        assert "text='added', number=7" in text
        assert not Note.objects.exists()

    @pytest.mark.database
    def test_one_that_does_not(self):
        """What is found is not made again, by whatever means. [K03.6]"""
        self.once(put)
        self.once("once.put")
        self.once(keyed)
        self.once(strict)

        assert not Note.objects.exists()

    def test_changed_and_deleted_rows(self):
        """Each is named with what was changed. [K03.6]"""
        Note.objects.bulk_create(Note(text="old", number=n) for n in range(9))
        with pytest.raises(
            AssertionError, match=r"testapp\.Note: changed number from 1"
        ):
            self.once(count)
        with pytest.raises(AssertionError, match=r"testapp\.Note: deleted id="):
            self.once(clear)

        assert Note.objects.count() == 9

    def test_the_first_failure(self):
        """It is raised: nothing could be compared."""
        Note.objects.create(text="old")

        with pytest.raises(ValueError, match="there is one"):
            self.once(strict)

    def test_bad_input(self):
        """Something that is no handler, and a handler of two endpoints."""
        with pytest.raises(InvalidOption, match=r"assert_once\(\) takes a handler"):
            self.once(len)
        with pytest.raises(InvalidOption, match=r"several endpoints: .*Other\.shared"):
            self.once(Shared.shared)
        self.once("tests.testing.test_messages_of.One.shared")


def test_hypothesis_is_imported_by_the_machines_alone():
    """Whoever does not use them need not install it. [K03.8]"""
    package = Path(django_cqrs.__file__).parent
    importing = {
        path.relative_to(package).parts[:2]
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) hypothesis", path.read_text(), re.MULTILINE)
    }

    assert importing == {("testing", "machines")}
