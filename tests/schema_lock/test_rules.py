"""The rules of changed shapes, for stored and for shared classes."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections import OrderedDict, deque
from dataclasses import dataclass, field, make_dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union
from uuid import UUID

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

from django_cqrs.conversion import converter
from django_cqrs.conversion.schemas import core_schema_of
from django_cqrs.schema_lock.locked_shapes import described, short
from django_cqrs.schema_lock.rules import (
    ShapeRule,
    Verdict,
    changes_between,
    remembering,
)

FINE, SAID, VERSION, NEW_NAME, REFUSED = Verdict
REQUIRED = dataclasses.MISSING


def shape_of(target):
    return described(core_schema_of(target)).shape


def a_class(**fields):
    """Return a dataclass; a field with a default is a pair."""
    return make_dataclass(
        "Placed",
        [
            (name, *(each if isinstance(each, tuple) else (each,)))
            for name, each in fields.items()
        ],
        kw_only=True,
    )


def changes(old, new, **options):
    """Return the path, the rule and the verdict of each change."""
    found = changes_between(shape_of(old), shape_of(new), **options)
    return [(each.path, each.rule, each.verdict) for each in found]


class Money:
    pass


@converter
def money_to_text(money: Money) -> str:
    return "1"


@converter
def text_to_money(text: str) -> Money:
    return Money()


class Price:
    pass


@converter
def price_to_number(price: Price) -> int:
    return 1


@converter
def number_to_price(number: int) -> Price:
    return Price()


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Colors(enum.Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Open(enum.Enum):
    RED = "red"
    BLUE = "blue"

    @classmethod
    def _missing_(cls, value):
        return cls.RED


@dataclass
class Line:
    sku: str


@dataclass
class LongLine:
    sku: str
    note: str = ""


@dataclass
class CountedLine:
    sku: str
    count: int


@dataclass
class Recounted:
    sku: str
    count: str = ""


@dataclass
class CheckedLine:
    sku: str

    def __post_init__(self):
        pass


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sku: str


class Loose(BaseModel):
    sku: str


class Keeping(BaseModel):
    model_config = ConfigDict(extra="allow")
    sku: str


class Shouting(BaseModel):
    model_config = ConfigDict(str_to_upper=True)
    sku: str


class KeepingNumbers(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]
    sku: str


class OpenWide(enum.Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"

    @classmethod
    def _missing_(cls, value):
        return cls.RED


class Cow(BaseModel):
    name: Literal["cow"]


class Pig(BaseModel):
    name: Literal["pig"]


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class BigDog(BaseModel):
    kind: Literal["dog"]
    size: int


class Pair(NamedTuple):
    sku: str
    count: int = 1


class Bag(TypedDict):
    sku: str
    note: NotRequired[str]


class FullBag(TypedDict):
    sku: str
    note: str


class OtherDog(BaseModel):
    kind: Literal["dog"]
    size: str = ""


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
Whole = Annotated[Cat, Field(discriminator="kind")]


@pydantic.AfterValidator
def even(number):
    return number


W, N, O = ShapeRule.WIDER, ShapeRule.NARROWER, ShapeRule.OTHER_TYPE  # noqa: E741
UNKNOWN = ShapeRule.UNKNOWN

# The type of a field, its type later, the path below the field, the rule, and the rule
# of the way back. No rule: nothing has changed.
TYPES = {
    "int to float": (int, float, "", W, N),
    "int to Decimal": (int, Decimal, "", W, N),
    "float to Decimal": (float, Decimal, "", O, O),
    "int to str": (int, str, "", O, O),
    "str to UUID": (str, UUID, "", O, O),
    "str to Decimal": (str, Decimal, "", O, O),
    "date to datetime": (date, datetime, "", O, O),
    "bool to int": (bool, int, "", O, O),
    "T to T or None": (int, int | None, "", W, N),
    "T to T or another": (int, int | str, "", W, N),
    "int to float or None": (int, float | None, "", W, N),
    "text to text or date": (str, str | date, "", UNKNOWN, O),
    "union of the same": (int | str, str | int, "", None, None),
    "a member less": (int | str | None, int | str, "", N, W),
    "anything": (int, Any, "", W, N),
    "a new choice": (Literal["a"], Literal["a", "b"], "", W, N),
    "another choice": (Literal["a", "b"], Literal["a", "c"], "", N, N),
    "the same choices": (Literal["a", "b"], Literal["b", "a"], "", None, None),
    "an enum's new member": (Color, Colors, "", W, N),
    "an enum of its values": (Color, Literal["red", "blue"], "", None, None),
    "an enum to text": (Color, str, "", W, N),
    "an enum to a number": (Color, int, "", O, N),
    "an enum that opens": (Color, Open, "", W, N),
    "choices of numbers to int": (Literal[1, 2], int, "", W, N),
    "a converter to its form": (
        Money,
        str,
        "",
        ShapeRule.OTHER_FORM,
        ShapeRule.OTHER_FORM,
    ),
    "another converter": (Money, Price, "", ShapeRule.OTHER_FORM, ShapeRule.OTHER_FORM),
    "list to tuple": (list[int], tuple[int, ...], "", None, None),
    "list to deque": (list[int], deque[int], "", None, None),
    "set to frozenset": (set[int], frozenset[int], "", None, None),
    "set to list": (set[int], list[int], "", W, N),
    "list to dict": (list[int], dict[str, int], "", O, O),
    "dict to its kind": (dict[str, int], OrderedDict[str, int], "", None, None),
    "items": (list[int], list[float], "[]", W, N),
    "items of items": (list[list[int]], list[list[str]], "[][]", O, O),
    "values": (dict[str, int], dict[str, float], "{}", W, N),
    "keys": (dict[int, int], dict[str, int], "{}", O, O),
    "a longer tuple": (tuple[int, int], tuple[int, int, int], "", O, O),
    "an item of a tuple": (tuple[int, str], tuple[float, str], "[0]", W, N),
    "a pair to a list": (tuple[int, int], list[int], "", O, O),
    "a lower limit": (
        Annotated[int, Field(ge=2)],
        Annotated[int, Field(gt=0)],
        "",
        W,
        N,
    ),
    "a limit less": (Annotated[int, Field(ge=2)], int, "", W, N),
    "a higher limit": (
        Annotated[int, Field(lt=2)],
        Annotated[int, Field(le=2)],
        "",
        W,
        N,
    ),
    "limits crossed": (
        Annotated[int, Field(ge=1, le=5)],
        Annotated[int, Field(ge=2, le=5)],
        "",
        N,
        W,
    ),
    "multiples": (
        Annotated[int, Field(multiple_of=10)],
        Annotated[int, Field(multiple_of=5)],
        "",
        W,
        N,
    ),
    "a longer text": (
        Annotated[str, Field(max_length=5)],
        Annotated[str, Field(max_length=6)],
        "",
        W,
        N,
    ),
    "an emptier list": (
        Annotated[list[int], Field(min_length=2)],
        Annotated[list[int], Field(min_length=1)],
        "",
        W,
        N,
    ),
    "a pattern": (Annotated[str, Field(pattern="a")], str, "", W, N),
    "another pattern": (
        Annotated[str, Field(pattern="a")],
        Annotated[str, Field(pattern="b")],
        "",
        N,
        N,
    ),
    "more digits": (
        Annotated[Decimal, Field(max_digits=5, decimal_places=2)],
        Annotated[Decimal, Field(max_digits=6, decimal_places=2)],
        "",
        W,
        N,
    ),
    "more places": (
        Annotated[Decimal, Field(max_digits=5, decimal_places=2)],
        Annotated[Decimal, Field(max_digits=5, decimal_places=3)],
        "",
        N,
        N,
    ),
    "a zone": (pydantic.AwareDatetime, datetime, "", W, N),
    "a check": (Annotated[int, even], int, "", W, N),
    "a version of UUID": (pydantic.UUID4, UUID, "", W, N),
    "code around it": (
        int,
        Annotated[int, pydantic.BeforeValidator(abs)],
        "",
        UNKNOWN,
        UNKNOWN,
    ),
    "lower case": (
        str,
        Annotated[str, pydantic.StringConstraints(to_lower=True)],
        "",
        UNKNOWN,
        UNKNOWN,
    ),
    "left to right": (
        int | str,
        Annotated[int | str, Field(union_mode="left_to_right")],
        "",
        UNKNOWN,
        UNKNOWN,
    ),
    "JSON in text": (pydantic.Json[int], pydantic.Json[float], "", W, N),
    "a class for another": (Line, Loose, "", None, None),
    "a class of its fields": (Pair, a_class(sku=str, count=(int, 1)), "", None, None),
    "a check of a class": (CheckedLine, Line, "", W, N),
    "unknown keys refused": (Strict, Loose, "", W, N),
    "unknown keys kept": (Loose, Keeping, "", W, N),
    "a tag more": (
        Annotated[Cat | Dog, Field(discriminator="kind")],
        Annotated[
            Cat | Dog | a_class(kind=Literal["cow"]), Field(discriminator="kind")
        ],
        "",
        W,
        N,
    ),
    "classes told apart": (list[Cat | Dog], list[Cat | Dog | None], "[]", W, N),
    "a class to a dict": (Line, dict[str, str], "", O, O),
    "settings of a class": (Loose, Shouting, "", UNKNOWN, UNKNOWN),
    "another tag": (
        Annotated[Cat | Dog, Field(discriminator="kind")],
        Annotated[Cow | Pig, Field(discriminator="name")],
        "",
        O,
        O,
    ),
    "infinity": (
        Decimal,
        Annotated[Decimal, Field(allow_inf_nan=True)],
        "",
        W,
        N,
    ),
    "an earlier day": (
        Annotated[date, Field(ge=date(2020, 1, 1))],
        Annotated[date, Field(ge=date(2019, 1, 1))],
        "",
        N,  # dates are not compared
        N,
    ),
    "both kinds of a limit": (
        Annotated[int, Field(ge=1)],
        Annotated[int, Field(ge=1, gt=0)],
        "",
        N,
        N,
    ),
    "more classes without tags": (Cat | Dog, Cat | Dog | Cow, "", UNKNOWN, UNKNOWN),
    "classes that tags tell apart": (Cat, Cat | Dog, "", W, N),
    "one of two numbers": (int | str, float | Decimal | str, "", UNKNOWN, UNKNOWN),
    "other choices beside it": (
        Literal["a"] | int,
        Literal["a", "b", "c"] | int,
        "",
        W,
        N,
    ),
    "other keys kept in a type": (Keeping, KeepingNumbers, "", UNKNOWN, UNKNOWN),
    "an open enum opens no more": (Open, OpenWide, "", UNKNOWN, N),
}
CHANGED = {name: each for name, each in TYPES.items() if each[3] is not None}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shared", [False, True], ids=["stored", "shared"])
def test_g01_3_each_change_of_a_type_has_its_rule_each_way(name, shared):
    """A wider type is fine where it is stored, and refused where it is shared."""
    old, new, below, there, back = TYPES[name]
    for one, other, rule in ((old, new, there), (new, old, back)):
        found = changes(a_class(x=one), a_class(x=other), shared=shared)

        if rule is None:
            assert found == []
        else:
            verdict = rule.shared if shared else rule.stored
            assert set(found) == {(f"x{below}", rule, verdict)}


def test_g01_3_the_verdicts_are_those_of_the_table():
    """Each rule has a verdict for stored classes, and one for shared ones."""
    assert {rule.name: (rule.stored, rule.shared) for rule in ShapeRule} == {
        "ADDED": (FINE, FINE),
        "ADDED_REQUIRED": (VERSION, REFUSED),
        "REMOVED": (FINE, REFUSED),
        "REMOVED_OPTIONAL": (FINE, FINE),
        "LOOKS_RENAMED": (SAID, SAID),
        "WIDER": (FINE, REFUSED),
        "NARROWER": (VERSION, NEW_NAME),
        "OTHER_TYPE": (VERSION, NEW_NAME),
        "OTHER_FORM": (VERSION, NEW_NAME),
        "DEFAULT_ADDED": (FINE, FINE),
        "DEFAULT_CHANGED": (SAID, SAID),
        "UNKNOWN": (REFUSED, REFUSED),
    }


TWO = {"x": int, "y": int}
FIELDS = {
    "a default added": (a_class(x=int), a_class(x=int, y=(int, 1)), "y", "ADDED"),
    "a required one added": (a_class(x=int), a_class(**TWO), "y", "ADDED_REQUIRED"),
    "a required one removed": (a_class(**TWO), a_class(x=int), "y", "REMOVED"),
    "an optional one removed": (
        a_class(x=int, y=(int, 1)),
        a_class(x=int),
        "y",
        "REMOVED_OPTIONAL",
    ),
    "a default given": (a_class(x=int), a_class(x=(int, 1)), "x", "DEFAULT_ADDED"),
    "a default taken": (a_class(x=(int, 1)), a_class(x=int), "x", "NARROWER"),
    "a default changed": (
        a_class(x=(int, 1)),
        a_class(x=(int, 2)),
        "x",
        "DEFAULT_CHANGED",
    ),
    "a factory changed": (
        a_class(x=(UUID, field(default_factory=UUID))),
        a_class(x=(UUID, field(default_factory=lambda: UUID(int=1)))),
        "x",
        "DEFAULT_CHANGED",
    ),
    "inside a list": (
        a_class(lines=list[Line]),
        a_class(lines=list[LongLine]),
        "lines[].note",
        "ADDED",
    ),
    "required inside a list": (
        a_class(lines=list[Line]),
        a_class(lines=list[CountedLine]),
        "lines[].count",
        "ADDED_REQUIRED",
    ),
    "removed inside": (
        a_class(line=CountedLine),
        a_class(line=Line),
        "line.count",
        "REMOVED",
    ),
    "a key that may be missing": (Bag, FullBag, "note", "NARROWER"),
    "a key that need not be there": (FullBag, Bag, "note", "WIDER"),
    "tagged, a field more": (
        a_class(pet=Annotated[Cat | Dog, Field(discriminator="kind")]),
        a_class(pet=Annotated[Cat | BigDog, Field(discriminator="kind")]),
        "pet.size",
        "ADDED_REQUIRED",
    ),
}


def expected(rule, *, shared, is_event=False):
    if shared and is_event and rule is ShapeRule.ADDED_REQUIRED:
        return FINE
    if shared and rule is ShapeRule.DEFAULT_ADDED:
        return FINE
    return rule.shared if shared else rule.stored


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("shared", [False, True], ids=["stored", "shared"])
@pytest.mark.parametrize("is_event", [False, True], ids=["command", "event"])
def test_g01_3_each_change_of_a_field_has_its_rule(name, shared, is_event):
    """A required field needs a version; in a shared event it may be added."""
    old, new, path, rule = FIELDS[name]

    found = changes(old, new, shared=shared, is_event=is_event)

    rule = ShapeRule[rule]
    assert found == [(path, rule, expected(rule, shared=shared, is_event=is_event))]


def test_g01_3_a_closed_class_does_not_read_a_removed_field():
    """Where unknown keys are refused, a field that was removed is one."""

    class Before(BaseModel):
        model_config = ConfigDict(extra="forbid")
        x: int
        y: int = 1

    class After(BaseModel):
        model_config = ConfigDict(extra="forbid")
        x: int

    assert ("", ShapeRule.NARROWER, VERSION) in changes(Before, After)
    assert ("", ShapeRule.UNKNOWN, REFUSED) in changes(After, Before, shared=True)


def test_g01_3_a_field_that_was_removed_comes_back_in_its_type_only():
    """Payloads with the former field may still wait: the lock remembers it."""
    before = shape_of(a_class(x=int, lines=list[CountedLine]))
    without = remembering(before, shape_of(a_class(x=int, lines=list[Line])))
    again = shape_of(a_class(x=int, lines=list[a_class(sku=str, count=(str, ""))]))

    found = [(c.path, c.rule) for c in changes_between(without, again)]

    assert found == [
        ("lines[].count", ShapeRule.OTHER_TYPE),
        ("lines[].count", ShapeRule.ADDED),
    ]
    assert changes_between(without, shape_of(a_class(x=int, lines=list[Line]))) == []


def test_g01_3_a_field_may_be_read_under_its_former_key():
    """An alias of pydantic for reading is fine; a written key is another one."""

    class Before(BaseModel):
        total: int

    class After(BaseModel):
        model_config = ConfigDict(validate_by_name=True)
        amount: int = Field(validation_alias=pydantic.AliasChoices("amount", "total"))

    assert changes(Before, After) == []
    assert changes(Before, After, shared=True) == [
        ("total", ShapeRule.OTHER_TYPE, NEW_NAME)
    ]
    assert [rule for _, rule, _ in changes(After, Before)] == [
        ShapeRule.REMOVED,
        ShapeRule.ADDED_REQUIRED,
        ShapeRule.LOOKS_RENAMED,
    ]


def test_g01_3_a_key_that_may_be_missing_may_be_removed_where_it_is_shared():
    """Former code reads a payload without it."""

    class After(TypedDict):
        sku: str

    assert changes(Bag, After, shared=True) == [
        ("note", ShapeRule.REMOVED_OPTIONAL, FINE)
    ]


def test_g01_3_a_key_that_was_read_has_to_be_read():
    """Payloads may be stored under each key that a field was read from."""

    class Before(BaseModel):
        total: int = Field(validation_alias=pydantic.AliasChoices("total", "sum"))

    class After(BaseModel):
        total: int

    [change] = changes_between(shape_of(Before), shape_of(After))

    assert (change.path, change.rule) == ("total", N)
    assert change.details == 'it is no longer read from "sum"'


def test_g01_3_what_is_gone_is_remembered_inside_dictionaries():
    """The fields of a version's former shapes are kept wherever they are."""
    before = shape_of(dict[str, CountedLine])

    kept = remembering(before, shape_of(dict[str, Line]))

    assert kept["values"]["fields"]["count"] == {"type": "int", "removed": True}
    assert remembering(kept, shape_of(list[int])) == shape_of(list[int])


@pytest.mark.parametrize(
    ("before", "now", "later"),
    [
        (CountedLine | None, Line | None, Recounted | None),
        (CountedLine, Line | None, Recounted | None),
        (tuple[int, CountedLine], tuple[int, Line], tuple[int, Recounted]),
        (
            set[tuple[CountedLine, int]],
            set[tuple[Line, int]],
            set[tuple[Recounted, int]],
        ),
        (
            Annotated[Cat | BigDog, Field(discriminator="kind")],
            Annotated[Cat | Dog, Field(discriminator="kind")],
            Annotated[Cat | OtherDog, Field(discriminator="kind")],
        ),
    ],
    ids=str,
)
def test_g01_3_what_is_gone_is_remembered_everywhere(before, now, later):
    """A field that comes back in another type is not read from former payloads."""
    kept = remembering(shape_of(before), shape_of(now))

    assert all(each.verdict.is_allowed for each in changes_between(kept, shape_of(now)))
    assert remembering(kept, shape_of(now)) == kept
    found = changes_between(kept, shape_of(later))
    assert ShapeRule.OTHER_TYPE in {each.rule for each in found}


@pytest.mark.parametrize("shared", [False, True], ids=["stored", "shared"])
def test_g01_5_a_rename_is_said_to_look_like_one(shared):
    """A field that was removed beside one that was added is told apart by its type."""
    old = a_class(number=int, total=Decimal)
    new = a_class(number=int, note=(str, ""), amount=(Decimal, Decimal(0)))

    found = changes_between(shape_of(old), shape_of(new), shared=shared)

    [said] = [each for each in found if each.rule is ShapeRule.LOOKS_RENAMED]
    assert (said.path, said.verdict) == ("total", SAID)
    assert said.details == "'total' was removed, and 'amount' was added"


def test_g01_8_unknown_changes_are_refused_with_both_shapes():
    """Nothing is guessed: the finding shows what was, and what is."""
    old = a_class(x=str)
    new = a_class(x=Annotated[str, pydantic.BeforeValidator(abs)])

    [change] = changes_between(shape_of(old), shape_of(new))

    assert (change.rule, change.verdict) == (UNKNOWN, REFUSED)
    assert change.details == '"str" became {"name": "abs", "of": "str", "type": "code"}'


# ------------------------------------------------------------------------------ shapes

T = TypeVar("T")


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Node:
    value: int
    below: list[Node] = field(default_factory=list)


@dataclass
class OtherNode:
    value: int
    below: list[OtherNode] = field(default_factory=list)


@dataclass
class WideNode:
    value: float
    below: list[WideNode] = field(default_factory=list)


Tree = typing.Union[int, list["Tree"]]


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (int | None, {"type": "union", "of": ["int", "none"]}),
        (Union[str, int, None], {"type": "union", "of": ["int", "str", "none"]}),
        (Decimal, "decimal"),
        (Annotated[Decimal, Field(gt=1)], {"type": "decimal", "gt": 1}),
        (Color, {"type": "one_of", "choices": ["blue", "red"]}),
        (Literal[2, "a", True], {"type": "one_of", "choices": ["a", 2, True]}),
        (Money, {"type": "converted", "to": "Money", "of": "str"}),
        (
            Box[Box[int]],
            {
                "type": "object",
                "fields": {"content": {"type": "object", "fields": {"content": "int"}}},
            },
        ),
        (
            Pair,
            {
                "type": "object",
                "fields": {"sku": "str", "count": {"type": "int", "default": 1}},
            },
        ),
        (
            Bag,
            {
                "type": "object",
                "fields": {"sku": "str", "note": {"type": "str", "required": False}},
            },
        ),
        (bytes, "bytes"),
        (
            Node,
            {
                "type": "object",
                "fields": {
                    "value": "int",
                    "below": {
                        "type": "list",
                        "of": {"type": "recursion", "up": 0},
                        "default": [],
                    },
                },
            },
        ),
        (
            CheckedLine,
            {"type": "object", "fields": {"sku": "str"}, "checks": ["__post_init__"]},
        ),
        (Strict, {"type": "object", "fields": {"sku": "str"}, "extra": "forbid"}),
    ],
    ids=str,
)
def test_g01_6_every_kind_of_type_has_a_shape(target, shape):
    """Unions, generics, nested classes, enums, converters, Literal, constraints."""
    assert short(shape_of(target)) == shape


def test_g01_6_a_class_that_contains_itself_is_compared_with_itself():
    """A change inside is found once, and names do not matter."""
    assert changes(Node, OtherNode) == []
    assert changes(Node, WideNode) == [("value", W, FINE)]
    assert changes(WideNode, Node) == [("value", N, VERSION)]


def test_g01_6_another_way_of_containing_itself_is_not_guessed():
    """The same class, two levels up instead of one."""

    def a_node(up):
        inner = {"type": "recursion", "up": up}
        node = {"type": "object", "fields": {"below": {"type": "list", "of": inner}}}
        return {"type": "object", "fields": {"node": node}}

    [change] = changes_between(a_node(0), a_node(1))

    assert (change.path, change.rule) == ("node.below[]", UNKNOWN)


def test_g01_6_a_decimal_is_not_any_text():
    """JSON Schema takes a Decimal for a text or a number; the shape does not."""
    assert changes(a_class(x=str), a_class(x=Decimal)) == [("x", O, VERSION)]
    assert changes(a_class(x=Decimal), a_class(x=str)) == [("x", O, VERSION)]
