"""Properties that hold for any payload whatever: generated ones, by the thousand."""

import functools
import json
import math
import types
import typing
from collections import Counter
from dataclasses import InitVar, dataclass, field, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import NotRequired, TypedDict, is_typeddict

from django_cqrs import Registry, command_handler
from django_cqrs.conversion import converter
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.messages import message
from tests.outbox.support import SOAKS

JSON = "application/json"

# The types ------------------------------------------------------------------------


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Money:
    """A value object: refuses by ValueError, TypeError and decimal's own errors."""

    def __init__(self, amount, currency):
        self.amount = amount
        self.currency = currency


@converter
def money_to_text(money: Money) -> str:
    return f"{money.amount} {money.currency}"


@converter
def text_to_money(text: str) -> Money:
    amount, currency = text.split(" ")
    if not amount:
        raise TypeError("an amount is needed")
    return Money(Decimal(amount).quantize(Decimal("0.01")), currency)


@dataclass(frozen=True)
class Share:
    """Refuses by ArithmeticError."""

    part: int
    of: int
    since: date | None = None

    def __post_init__(self):
        object.__setattr__(self, "_ratio", self.part / self.of)


@dataclass(slots=True)
class Window:
    """Refuses by TypeError: naive and aware times do not compare."""

    start: datetime
    end: datetime
    check: InitVar[bool] = False

    def __post_init__(self, check):
        is_reversed = self.start > self.end
        if check and is_reversed:
            raise ValueError("it ends before it begins")


class Point(NamedTuple):
    x: float
    y: float = 0.0
    label: str | None = None


class Address(TypedDict):
    street: str
    zip: NotRequired[int]


class Tag(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=10)]
    weight: float = 1.0
    share: Share | None = None

    @pydantic.field_validator("name")
    @classmethod
    def no_blanks(cls, value):
        if " " in value:
            raise ValueError("no blanks")
        return value


class Stamp(pydantic.BaseModel):
    """Has a validator that runs before its fields."""

    at: datetime
    number: int = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def look(cls, value):
        return value


@message("properties.node")
@dataclass
class Node:
    name: str
    children: list["Node"] = field(default_factory=list)
    by_name: dict[str, "Node"] = field(default_factory=dict)
    parent: "Node | None" = None

    def __post_init__(self):
        if self.name == "":
            raise ValueError("a node has a name")


@message("properties.order")
@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    key: UUID
    number: int
    total: Decimal
    price: Money
    placed_at: datetime
    due: date | None = None
    at: time | None = None
    span: timedelta = timedelta(0)
    ratio: float = 0.0
    is_paid: bool = False
    color: Color = Color.RED
    size: Size = Size.SMALL
    kind: Literal["a", "b", 1] = "a"
    raw: bytes = b""
    prices: list[Money] = field(default_factory=list)
    pair: tuple[int, str] | None = None
    many: tuple[Decimal, ...] = ()
    some: frozenset[int] = frozenset()
    by_day: dict[date, int] = field(default_factory=dict)
    either: int | UUID | list[str] | None = None
    shares: list[Share] = field(default_factory=list)
    window: Window | None = None
    points: list[Point] = field(default_factory=list)
    address: Address | None = None
    tags: dict[str, Tag] = field(default_factory=dict)
    stamp: Stamp | None = None
    node: Node | None = None
    shape: Share | Window | Point | None = None
    anything: Any = None
    mapping: dict = field(default_factory=dict)


ROUTES = {
    "order": Order,
    "node": Node,
    "nodes": list[Node],
    "tag": Tag,
    "stamp": Stamp | None,
    "address": Address,
    "point": Point,
    "share": Share,
    "window": Window,
    "money": Money,
    "orders": dict[UUID, Order],
    "either": Share | Tag | Point | int | list[Money],
    "numbers": tuple[int, float, Decimal],
    "any": Any,
    "dict": dict,
    "number": Annotated[float, pydantic.Field(ge=0)],
}


def handling(registry, key, wanted):
    def handle(command):
        return command

    handle.__annotations__ = {"command": wanted}
    handle.__qualname__ = handle.__name__ = key
    registry.add(command_handler(key, atomic=False)(handle))


registry = Registry()
for key, wanted in ROUTES.items():
    handling(registry, key, wanted)


def fits(value, wanted):
    """Return whether a value is of an annotated type, down to its smallest parts."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return is_json(value)
    if wanted is dict:
        return type(value) is dict and is_json(value)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin in (list, frozenset):
        return type(value) is origin and all(fits(each, *arguments) for each in value)
    if origin is dict:
        return type(value) is dict and all(
            fits(key, arguments[0]) and fits(each, arguments[1])
            for key, each in value.items()
        )
    if origin is tuple:
        each_wanted = arguments
        if arguments[-1] is ...:
            each_wanted = arguments[:1] * len(value)
        return type(value) is tuple and all(map(fits, value, each_wanted))
    if wanted is float:
        return type(value) is float and math.isfinite(value)
    if is_typeddict(wanted):
        hints = hints_of(wanted)
        return type(value) is dict and all(
            fits(each, hints[name]) for name, each in value.items()
        )
    return type(value) is wanted and all(
        fits(getattr(value, name), annotation)
        for name, annotation in hints_of(wanted).items()
    )


@functools.cache
def hints_of(cls):
    if is_dataclass(cls):
        names = [each.name for each in fields(cls)]
    elif hasattr(cls, "model_fields"):
        names = list(cls.model_fields)
    else:
        names = getattr(
            cls, "_fields", cls.__annotations__ if is_typeddict(cls) else ()
        )
    hints = typing.get_type_hints(cls, include_extras=not is_typeddict(cls))
    return {name: hints[name] for name in names}


def is_json(value):
    """Return whether a value is what JSON text can say."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(
            map(is_json, value.values())
        )
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (str, int, bool)


# The payloads -----------------------------------------------------------------------

# No lone surrogates here: json.dumps would write them as escapes, and does below.
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [0, -1, 10**400, 1e308, "", " ", "1", "NaN", "red", "0 EUR", "2026-05-01"]
    )
)
any_json = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)

uuids = st.uuids().map(str)
numbers = st.integers(-(10**20), 10**20)
finite = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False).map(str) | numbers
money = st.tuples(st.integers(0, 10**6), st.sampled_from(["EUR", "USD", ""])).map(
    lambda pair: f"{pair[0] / 100} {pair[1]}"
)
days = st.dates().map(str)
moments = st.datetimes().map(lambda value: value.isoformat()) | st.sampled_from(
    [
        "2026-05-01T12:00:00Z",
        "2026-05-01T12:00:00.123456-05:30",
        "9999-12-31T23:59:59.999999+23:59",
        "0001-01-01 00:00:00",
    ]
)
shares = st.fixed_dictionaries(
    {"part": st.integers(-5, 5), "of": st.integers(-1, 5)}, optional={"since": days}
)
windows = st.fixed_dictionaries(
    {"start": moments, "end": moments}, optional={"check": st.booleans()}
)
points = st.fixed_dictionaries(
    {"x": finite}, optional={"y": finite | numbers, "label": words | st.none()}
)
addresses = st.fixed_dictionaries({"street": words}, optional={"zip": numbers})
tags = st.fixed_dictionaries(
    {"name": words}, optional={"weight": finite, "share": st.none() | shares}
)
stamps = st.fixed_dictionaries({"at": moments}, optional={"number": numbers})
nodes = st.recursive(
    st.fixed_dictionaries({"name": words}),
    lambda inner: st.fixed_dictionaries(
        {"name": words},
        optional={
            "children": st.lists(inner, max_size=3),
            "by_name": st.dictionaries(words, inner, max_size=2),
            "parent": st.none() | inner,
        },
    ),
    max_leaves=5,
)
required = st.fixed_dictionaries(
    {
        "key": uuids,
        "number": numbers,
        "total": decimals,
        "price": money,
        "placed_at": moments,
    }
)
OPTIONAL = {
    "due": days,
    "at": st.times().map(str),
    "span": st.sampled_from(["P1D", "PT0.5S", "-P3DT4H", "P999999999D"]),
    "ratio": finite | numbers,
    "is_paid": st.booleans(),
    "color": st.sampled_from(["red", "blue"]),
    "size": st.sampled_from([1, 2]),
    "kind": st.sampled_from(["a", "b", 1]),
    "raw": words,
    "prices": st.lists(money, max_size=3),
    "pair": st.tuples(numbers, words),
    "many": st.lists(decimals, max_size=3),
    "some": st.lists(numbers, max_size=3),
    "by_day": st.dictionaries(days, numbers, max_size=2),
    "either": numbers | uuids | st.lists(words, max_size=2),
    "shares": st.lists(shares, max_size=2),
    "window": windows,
    "points": st.lists(points, max_size=2),
    "address": addresses,
    "tags": st.dictionaries(words, tags, max_size=2),
    "stamp": stamps,
    "node": nodes,
    "shape": shares | windows | points,
    "anything": any_json,
    "mapping": st.dictionaries(words, any_json, max_size=2),
    "unknown": any_json,
}


@st.composite
def order_forms(draw):
    """Draw an order with a few of its many optional fields: all take too long."""
    names = st.sampled_from(sorted(OPTIONAL))
    chosen = draw(st.lists(names, max_size=4, unique=True))
    return draw(required) | {name: draw(OPTIONAL[name]) for name in chosen}


orders = order_forms()
VALID = {
    "order": orders,
    "node": nodes,
    "nodes": st.lists(nodes, max_size=3),
    "tag": tags,
    "stamp": st.none() | stamps,
    "address": addresses,
    "point": points,
    "share": shares,
    "window": windows,
    "money": money,
    "orders": st.dictionaries(uuids, orders, max_size=2),
    "either": shares | tags | points | numbers | st.lists(money, max_size=3),
    "numbers": st.tuples(numbers, finite, decimals),
    "any": any_json,
    "dict": st.dictionaries(words, any_json, max_size=3),
    "number": finite,
}


def places_in(value):
    """Yield every container in a JSON value and every key or index in it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inside:
        yield value, key
        if isinstance(each, (dict, list)):
            yield from places_in(each)


@st.composite
def mutated(draw, valid):
    """Draw a valid JSON value and spoil up to three places of it."""
    root = [json.loads(json.dumps(draw(valid)))]
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(list(places_in(root))))
        how = draw(st.sampled_from(["replace", "wrap", "text", "delete", "add"]))
        if how == "replace":
            container[key] = draw(any_json)
        elif how == "wrap":
            container[key] = [container[key]]
        elif how == "text":
            container[key] = str(container[key])
        elif how == "delete" and container is not root:
            del container[key]
        elif isinstance(container, dict):
            container[draw(words)] = draw(scalars)
    return root[0]


@st.composite
def spoiled(draw, texts):
    """Draw JSON text and cut, repeat or change a piece of it."""
    text = draw(texts).encode("utf-8", "surrogatepass")
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 5)))
    how = draw(st.sampled_from(["cut", "twice", "bytes", "sign"]))
    piece = {
        "cut": b"",
        "twice": text[start:end] * 2,
        "bytes": draw(st.binary(max_size=4)),
        "sign": draw(
            st.sampled_from(b'{}[],:"\\-+.eE0n\x00 \xff').map(lambda n: bytes([n]))
        ),
    }[how]
    return text[:start] + piece + text[end:]


def as_json(values):
    # With escapes or without: without, half a surrogate pair stands in the text.
    return st.builds(json.dumps, values, ensure_ascii=st.booleans())


deep = st.builds(
    lambda opening, closing, inner, depth, closes: (
        opening * depth + inner + closing * (depth if closes else 0)
    ),
    st.just("["),
    st.just("]"),
    st.sampled_from(["", "1", "{}"]),
    st.sampled_from([1, 50, 150, 190, 199, 200, 201, 1000, 100_000]),
    st.booleans(),
) | st.builds(
    lambda opening, closing, inner, depth: opening * depth + inner + closing * depth,
    st.sampled_from(
        [
            '{"name":"n","children":[',
            '{"name":"n","parent":',
            '{"children":[{"name":"a"},',
            '{"parent":{"name":"a","by_name":{"b":',
            '{"anything":',
        ]
    ),
    st.sampled_from(["]}", "}", "}}}", ",{}]}"]),
    st.sampled_from(["null", "{}", '{"name":"x"}', ""]),
    st.integers(1, 220),
)
huge = st.builds(
    lambda sign, digits, rest: f"{sign}{digits}{rest}",
    st.sampled_from(["", "-"]),
    st.sampled_from(
        ["1", "9" * 20, "9" * 308, "9" * 309, "1" + "0" * 4299, "9" * 5000]
    ),
    st.sampled_from(["", ".5", "e5", "e400", "E+999999999", "e-999999999", "e"]),
)
unreal = st.sampled_from(["NaN", "Infinity", "-Infinity", "-NaN", "nan", "1e999"])
numbers_in_places = st.builds(
    lambda number, where: where % number,
    huge | unreal,
    st.sampled_from(
        [
            "%s",
            "[%s]",
            "[1,%s,1]",
            '"%s"',
            '"%s EUR"',
            '{"x":%s}',
            '{"name":"a","weight":%s}',
            '{"a":{"b":[%s]}}',
            '{"part":%s,"of":1}',
        ]
    ),
)


@functools.cache
def payloads(key):
    valid = VALID[key]
    return (
        as_json(valid)
        | as_json(mutated(valid))
        | as_json(mutated(valid))
        | spoiled(as_json(valid))
        | as_json(any_json)
        | numbers_in_places
        | deep
        | st.text(max_size=40)
        | st.binary(max_size=40)
    )


cases = st.sampled_from(sorted(ROUTES)).flatmap(
    lambda key: st.tuples(st.just(key), payloads(key))
)

# As many by `make soak`; fewer on every change.
EXAMPLES = 10_000 if SOAKS else 1_000

# Each generated case is one dispatch; nothing is filtered, but a nested order takes
# the generator a while, and a few payloads of it are large.
thoroughly = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)


def dispatch(key, payload):
    return registry.command_bus.dispatch(payload, route=key, content_type=JSON)


def test_any_payload_is_converted_or_refused_by_one_error(say):
    """JSON or what passes for it becomes an object of its type, or one error."""
    outcomes = Counter()

    @thoroughly
    @given(cases)
    def check(case):
        key, payload = case
        try:
            result = dispatch(key, payload)
        except MessageConversionError as error:
            refusal = error
        else:
            outcomes["converted"] += 1
            assert fits(result, ROUTES[key])
            return
        outcomes["refused"] += 1
        assert refusal.errors
        assert all(each.message and each.code for each in refusal.errors)
        assert str(refusal).startswith("Cannot convert the payload to ")

    check()

    # Both ways out are taken often, so neither half of the property is empty.
    say(f"{outcomes.total():,} payloads: {dict(outcomes)}")
    assert outcomes.total() >= EXAMPLES
    assert outcomes["converted"] > EXAMPLES / 10
    assert outcomes["refused"] > EXAMPLES / 10


def form_of(text):
    """Return what JSON text says, the elements of a set in one order."""
    form = json.loads(text)
    return {**form, "some": sorted(form.get("some", []))}


@pytest.mark.parametrize("key", ["order", "node"])
def test_what_was_read_from_json_can_be_sent_again(key):
    """An object made of JSON is one that a channel can store: it comes back equal."""
    types = MessageTypes([Order, Node])
    sent = Counter()

    @settings(thoroughly, max_examples=300)
    @given(as_json(VALID[key]))
    def check(payload):
        try:
            made = dispatch(key, payload)
        except MessageConversionError:
            return
        name, text = types.encode(made)
        again = types.encode(types.decode(name.name, text))
        assert (again[0], form_of(again[1])) == (name, form_of(text))
        sent["again"] += 1

    check()

    assert sent["again"] > 50
