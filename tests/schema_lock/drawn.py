"""Pairs of classes that Hypothesis draws: a former one, and what became of it."""

from __future__ import annotations

import enum
from dataclasses import field, make_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union
from uuid import UUID

import pydantic
from hypothesis import strategies as st
from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

from django_cqrs.conversion import converter


class Euros:
    def __init__(self, amount):
        self.amount = amount

    def __eq__(self, other):
        return isinstance(other, Euros) and other.amount == self.amount

    def __hash__(self):
        return hash(self.amount)


@converter
def write_euros(value: Euros) -> str:
    return f"{value.amount} EUR"


@converter
def read_euros(text: str) -> Euros:
    return Euros(int(text.removesuffix(" EUR")))


class Cents:
    def __init__(self, amount):
        self.amount = amount

    def __eq__(self, other):
        return isinstance(other, Cents) and other.amount == self.amount

    def __hash__(self):
        return hash(self.amount)


@converter
def write_cents(value: Cents) -> int:
    return value.amount


@converter
def read_cents(number: int) -> Cents:
    return Cents(number)


def even(number: int) -> int:
    # pydantic takes a plain Enum's value for an int, whatever that is.
    if not isinstance(number, int) or number % 2:
        raise ValueError("it is odd")
    return number


class Kind(NamedTuple):
    """A type: its annotation, and the strategy of its values."""

    annotation: Any
    values: st.SearchStrategy[Any]
    hashable: bool = True


NUMBERS = st.integers(-(2**62), 2**62)
MOMENTS = st.datetimes(timezones=st.none() | st.timezones())


def bounded(draw):
    low = draw(st.integers(-5, 5))
    high = draw(st.integers(low, 12))
    made = draw(
        st.sampled_from(
            [
                (Field(ge=low, le=high), low, high),
                (Field(gt=low - 1, lt=high + 1), low, high),
                (Field(ge=low), low, 99),
                (Field(le=high), -99, high),
            ]
        )
    )
    return Kind(Annotated[int, made[0]], st.integers(*made[1:]))


def decimals(draw):
    places = draw(st.integers(0, 3))
    digits = draw(st.integers(max(places, 1), 5))
    kind = draw(st.sampled_from(["both", "digits", "places"]))
    most = Decimal(10) ** (digits - places) - Decimal(1).scaleb(-places)
    options = {"max_digits": digits, "decimal_places": places}
    if kind != "both":
        del options["decimal_places" if kind == "digits" else "max_digits"]
    values = st.decimals(-most, most, places=places, allow_nan=False)
    return Kind(Annotated[Decimal, Field(**options)], values)


def texts(draw):
    least = draw(st.integers(0, 3))
    most = draw(st.integers(least, 6))
    values = st.text("ab1", min_size=least, max_size=most)
    return Kind(Annotated[str, Field(min_length=least, max_length=most)], values)


def choices(draw):
    pool = draw(st.sampled_from([["a", "b", "c"], [1, 2, 3], ["a", 1, True]]))
    found = draw(st.lists(st.sampled_from(pool), min_size=1, unique_by=repr))
    if draw(st.booleans()):
        return Kind(Literal[tuple(found)], st.sampled_from(found))
    cls = enum.Enum("Choice", {f"M{n}": value for n, value in enumerate(found)})
    return Kind(cls, st.sampled_from(list(cls)))


def simple(draw):
    return draw(
        st.sampled_from(
            [
                Kind(int, NUMBERS),
                Kind(float, st.floats(allow_nan=False, allow_infinity=False)),
                Kind(bool, st.booleans()),
                Kind(str, st.text(max_size=5)),
                Kind(str, st.sampled_from(["2020-01-01", "1", "1.5", "a", "PT1H"])),
                Kind(Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
                Kind(date, st.dates()),
                Kind(datetime, MOMENTS),
                Kind(time, st.times()),
                Kind(timedelta, st.timedeltas()),
                Kind(UUID, st.uuids()),
                Kind(bytes, st.binary(max_size=4)),
                Kind(type(None), st.none()),
                Kind(Any, st.sampled_from([1, "a", None, [1], {"a": 1}]), False),
                Kind(Euros, NUMBERS.map(Euros)),
                Kind(Cents, NUMBERS.map(Cents)),
                Kind(
                    Annotated[int, AfterValidator(even)], NUMBERS.map(lambda n: 2 * n)
                ),
                Kind(pydantic.PositiveInt, st.integers(1, 99)),
                Kind(pydantic.AwareDatetime, st.datetimes(timezones=st.timezones())),
                Kind(pydantic.NaiveDatetime, st.datetimes()),
            ]
        )
    )


def scalar(draw):
    return draw(st.sampled_from([simple, simple, bounded, decimals, texts, choices]))(
        draw
    )


def kind(draw, depth=0):
    """Draw a type."""
    if depth > 1 or draw(st.integers(0, 2)) == 0:
        return scalar(draw)
    return container(draw, kind(draw, depth + 1), depth)


def container(draw, inner, depth):
    """Draw a type around another one."""
    several = st.lists(inner.values, max_size=2)
    form = draw(
        st.sampled_from(["list", "set", "tuple", "pair", "dict", "none", "or", "class"])
    )
    if form == "list":
        return Kind(list[inner.annotation], several, False)
    if form == "set" and inner.hashable:
        return Kind(set[inner.annotation], st.sets(inner.values, max_size=2), False)
    if form == "tuple":
        return Kind(tuple[inner.annotation, ...], several.map(tuple), inner.hashable)
    if form == "pair":
        other = kind(draw, depth + 1)
        return Kind(
            tuple[inner.annotation, other.annotation],
            st.tuples(inner.values, other.values),
            inner.hashable and other.hashable,
        )
    if form == "dict":
        keys = draw(
            st.sampled_from([Kind(str, st.text(max_size=3)), Kind(int, NUMBERS)])
        )
        values = st.dictionaries(keys.values, inner.values, max_size=2)
        return Kind(dict[keys.annotation, inner.annotation], values, False)
    if form == "none":
        return Kind(
            Optional[inner.annotation], st.none() | inner.values, inner.hashable
        )
    if form == "or":
        other = kind(draw, depth + 1)
        return Kind(
            Union[inner.annotation, other.annotation],
            inner.values | other.values,
            inner.hashable and other.hashable,
        )
    return made(draw, {"x": (inner, draw(default_of(inner)))}, depth)


NO_DEFAULT = object()


def default_of(of):
    return st.just(NO_DEFAULT) | st.just(NO_DEFAULT) | of.values


Fields = dict[str, tuple[Kind, Any]]


def made(draw, members: Fields, depth=0):
    """Draw a class with these fields: a dataclass, a model, a NamedTuple, a TypedDict."""
    form = draw(st.sampled_from(["dataclass", "dataclass", "model", "dict"]))
    return built(form, members, forbids=draw(st.integers(0, 5)) == 0)


def built(form, members: Fields, *, forbids=False):
    strategies = {name: each.values for name, (each, _) in members.items()}
    if form == "dataclass":
        cls = make_dataclass(
            "Drawn",
            [
                (name, each.annotation)
                if default is NO_DEFAULT
                else (
                    name,
                    each.annotation,
                    field(default_factory=lambda value=default: value),
                )
                for name, (each, default) in members.items()
            ],
            kw_only=True,
        )
    elif form == "model":
        config = ConfigDict(extra="forbid") if forbids else ConfigDict()
        cls = pydantic.create_model(
            "Drawn",
            __config__=config,
            **{
                name: (
                    each.annotation,
                    ... if default is NO_DEFAULT else Field(default=default),
                )
                for name, (each, default) in members.items()
            },
        )
    else:
        cls = TypedDict(
            "Drawn",
            {
                name: each.annotation
                if default is NO_DEFAULT
                else NotRequired[each.annotation]
                for name, (each, default) in members.items()
            },
        )
    values = st.fixed_dictionaries(strategies).map(lambda found: cls(**found))
    return Kind(cls, values, False)


def mutated(draw, old, depth=0):
    """Draw what may have become of a type."""
    if draw(st.integers(0, 3)) == 0:
        return kind(draw, depth)
    form = draw(st.sampled_from(["none", "or", "float", "any", "same", "list"]))
    if form == "none":
        return Kind(Optional[old.annotation], st.none() | old.values, old.hashable)
    if form == "or":
        other = scalar(draw)
        return Kind(
            Union[old.annotation, other.annotation], old.values | other.values, False
        )
    if form == "float" and old.annotation is int:
        return draw(
            st.sampled_from([Kind(float, st.floats()), Kind(Decimal, st.decimals())])
        )
    if form == "any":
        return Kind(Any, st.none(), False)
    if form == "list":
        return Kind(list[old.annotation], st.lists(old.values), False)
    return old


NAMES = ("a", "b", "c", "d")


@st.composite
def pairs(draw):
    """Draw the fields of a class, and those that it has later."""
    form = draw(st.sampled_from(["dataclass", "model"]))
    old: Fields = {}
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
        each = kind(draw)
        old[name] = each, draw(default_of(each))
    new = dict(old)
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
        if name not in new:
            each = kind(draw)
            new[name] = each, draw(default_of(each))
        elif draw(st.integers(0, 3)) == 0:
            del new[name]
        else:
            each = similar(draw, old[name][0])
            new[name] = each, draw(default_of(each))
    later = draw(st.sampled_from([form, form, "dataclass", "model"]))
    former = built(form, old, forbids=draw(st.integers(0, 5)) == 0)
    present = built(later, new, forbids=draw(st.integers(0, 5)) == 0)
    values = draw(st.lists(former.values, min_size=4, max_size=4))
    return former.annotation, present.annotation, values


def similar(draw, old):
    """Draw another type of the same family, or any other."""
    again = {bounded, decimals, texts, choices}
    if draw(st.booleans()):
        for family in again:
            if _is_of(family, old):
                return family(draw)
    return mutated(draw, old)


def _is_of(family, old) -> bool:
    said = str(old.annotation)
    words = {
        bounded: "int, Field",
        decimals: "Decimal",
        texts: "str, Field",
        choices: "Literal",
    }
    return words.get(family, "") in said.replace("FieldInfo", "Field")
