"""Conversion: JSON to payloads and back, what is refused, and names on the wire."""

import json
import math
import re
import subprocess
import sys
from collections import OrderedDict, deque, namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from django.db import models
from django.utils.safestring import mark_safe
from typing_extensions import NotRequired, TypedDict

from django_cqrs import message
from django_cqrs.conversion import converter, to_json, to_jsonable
from django_cqrs.conversion.adapters import Adapter, adapter_of
from django_cqrs.conversion.payloads import (
    PayloadType,
    check_content_type,
    convert_result,
)
from django_cqrs.conversion.stored import MessageTypes, to_stored_json
from django_cqrs.exceptions import (
    CQRSError,
    FieldError,
    MessageConversionError,
    UnknownMessage,
)
from django_cqrs.messages import MessageName
from django_cqrs.problems import Rule
from tests.limits import LIMIT
from tests.support import faults_of
from tests.testapp.messages import FindTickets, OpenTicket
from tests.testapp.models import Note

KEY = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
EAST = timezone(timedelta(hours=5, minutes=30))
BERLIN = ZoneInfo("Europe/Berlin")
NAIVE = datetime.fromisoformat("2026-05-01T12:00:00.123456")
FIRST, LAST = (each.replace(tzinfo=None) for each in (datetime.min, datetime.max))  # noqa: DTZ901


def shown(value: object) -> str:
    """Return a name that is the same in every process: without the address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Shade(StrEnum):
    DARK = "dark"


class Rights(IntFlag):
    READ = 1
    WRITE = 2


class Status(models.TextChoices):
    OPEN = "open", "Open"


@dataclass(frozen=True, slots=True)
class Line:
    sku: str
    quantity: int = 1


@dataclass
class Order:
    number: int
    lines: list[Line] = field(default_factory=list)
    by_sku: dict[str, Line] = field(default_factory=dict)
    gift: Line | None = None


@dataclass
class Node:
    name: str
    children: list["Node"] = field(default_factory=list)


class Point(NamedTuple):
    x: int
    y: float = 0.0
    key: UUID | None = None


class Address(TypedDict):
    street: str
    number: NotRequired[int]


class Customer(pydantic.BaseModel):
    name: str
    address: Address | None = None
    since: date | None = None


class Money:
    """A value object that says nothing of equality, as many do not."""

    def __init__(self, amount, currency):
        self.amount = amount
        self.currency = currency


@converter
def money_to_text(money: Money) -> str:
    return f"{money.amount} {money.currency}"


@converter
def text_to_money(text: str) -> Money:
    amount, currency = text.split(" ")
    return Money(Decimal(amount), currency)


class Cash(Money):
    """A subclass, of which the pair for its base does not speak."""


@dataclass(frozen=True)
class Period:
    start: date
    end: date


@converter
def period_to_dict(period: Period) -> dict[str, date]:
    return {"start": period.start, "end": period.end}


@converter
def dict_to_period(value: dict[str, date]) -> Period:
    return Period(value["start"], value["end"])


@dataclass
class Priced:
    price: Money
    others: list[Money] = field(default_factory=list)
    by_name: dict[str, Money] = field(default_factory=dict)
    discount: Money | None = None
    period: Period | None = None


@dataclass
class Picky:
    """Refuses by every exception that counts as a refusal, and by two that do not."""

    how: str
    at: datetime | None = None

    def __post_init__(self):
        if self.how == "value":
            raise ValueError("no such how")
        if self.how == "arithmetic":
            self.at = 1 / 0
        if self.how == "type":
            self.at = self.how + 1
        if self.how == "silent":
            raise ValueError
        if self.how == "key":
            raise KeyError(self.how)


NO_INTEGER = "Input should be a valid integer"


def refusal_of(call, *args):
    """Return path and message of every error of the one exception that is raised."""
    with pytest.raises(MessageConversionError) as caught:
        call(*args)
    return faults_of(caught)


# Reading JSON, strictly -----------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "text", "expected"),
    [
        (int, "1", 1),
        (int, "-123456789012345678901234567890", -123456789012345678901234567890),
        (float, "1", 1.0),
        (float, "1.5e3", 1500.0),
        (float, "-0.0", -0.0),
        (bool, "true", True),
        (str, '"\\u00e9\\ud83d\\ude00"', "é😀"),
        (str, '"NaN"', "NaN"),
        (type(None), "null", None),
        (bytes, '"YWJj"', b"abc"),
        (bytes, '"/w=="', b"\xff"),
        (UUID, f'"{KEY}"', KEY),
        (UUID, f'"{KEY.hex}"', KEY),
        (Decimal, '"1.10"', Decimal("1.10")),
        (Decimal, "1.10", Decimal("1.10")),
        (
            datetime,
            '"2026-05-01T12:00:00.123456"',
            NAIVE,
        ),
        (datetime, '"2026-05-01T12:00:00Z"', datetime(2026, 5, 1, 12, tzinfo=UTC)),
        (
            datetime,
            '"2026-05-01T12:00:00+05:30"',
            datetime(2026, 5, 1, 12, tzinfo=EAST),
        ),
        (date, '"2026-05-01"', date(2026, 5, 1)),
        (time, '"12:00:00.5"', time(12, 0, 0, 500000)),
        (timedelta, '"P1DT2H"', timedelta(days=1, hours=2)),
        (Color, '"red"', Color.RED),
        (Size, "2", Size.LARGE),
        (Rights, "3", Rights.READ | Rights.WRITE),
        (Literal["a", 1], "1", 1),
        (list[int], "[1, 2]", [1, 2]),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (tuple[int, ...], "[1, 2, 3]", (1, 2, 3)),
        (set[int], "[1, 1, 2]", {1, 2}),
        (frozenset[str], '["a"]', frozenset({"a"})),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (dict[int, str], '{"1": "a"}', {1: "a"}),
        (dict[UUID, Color], f'{{"{KEY}": "red"}}', {KEY: Color.RED}),
        (Optional[int], "null", None),
        (Optional[int], "1", 1),
        (Union[int, str], '"1"', "1"),
        (int | str | None, "1", 1),
        (Any, '{"a": [1, null, "x", 1.5, true]}', {"a": [1, None, "x", 1.5, True]}),
        (Annotated[int, pydantic.Field(gt=0)], "1", 1),
        (deque[int], "[1]", deque([1])),
        (Sequence[int], "[1]", [1]),
        (Mapping[str, int], '{"a": 1}', {"a": 1}),
        (Path, '"/tmp"', Path("/tmp")),
    ],
    ids=shown,
)
def test_json_is_read_as_the_annotation_says(wanted, text, expected):
    """Text becomes the type that is wanted, as str, bytes and bytearray alike. [B02.3]"""
    adapter = adapter_of(wanted)

    for given in (text, text.encode(), bytearray(text.encode())):
        read = adapter.from_json(given)

        assert read == expected
        assert type(read) is type(expected)


@pytest.mark.parametrize(
    ("wanted", "text", "faults"),
    [
        (int, '"1"', [("", "Input should be a valid integer")]),
        (int, "1.0", [("", "Input should be a valid integer")]),
        (int, "true", [("", "Input should be a valid integer")]),
        (int, "null", [("", "Input should be a valid integer")]),
        (float, '"1"', [("", "Input should be a valid number")]),
        (float, "true", [("", "Input should be a valid number")]),
        (bool, "1", [("", "Input should be a valid boolean")]),
        (bool, '"yes"', [("", "Input should be a valid boolean")]),
        (str, "1", [("", "Input should be a valid string")]),
        (UUID, '"x"', [("", "Input should be a valid UUID")]),
        (UUID, "1", [("", "UUID input should be a string, bytes or UUID object")]),
        (datetime, "1777636800", [("", "Input should be a valid datetime")]),
        (date, "20574", [("", "Input should be a valid date")]),
        (timedelta, "60", [("", "Input should be a valid duration")]),
        (Color, '"green"', [("", "Input should be 'red' or 'blue'")]),
        (Size, '"1"', [("", "Input should be 1 or 2")]),
        (Literal["a"], '"b"', [("", "Input should be 'a'")]),
        (list[int], '[1, "2", 3, null]', [
            ("1", "Input should be a valid integer"),
            ("3", "Input should be a valid integer"),
        ]),
        (list[int], "{}", [("", "Input should be a valid array")]),
        (dict[str, int], '{"a": "1"}', [("a", "Input should be a valid integer")]),
        (tuple[int, str], "[1]", [("1", "Field required")]),
        (Line, "null", [("", "Input should be an object")]),
        (Line, '"x"', [("", "Input should be an object")]),
        (Point, "[1]", [("", "Input should be an object")]),
        (Point, '{"y": "1"}', [
            ("x", "Field required"),
            ("y", "Input should be a valid number"),
        ]),
        (Address, '{"number": "1"}', [
            ("street", "Field required"),
            ("number", "Input should be a valid integer"),
        ]),
        (Customer, '{"address": {}, "since": 1}', [
            ("name", "Field required"),
            ("address.street", "Field required"),
            ("since", "Input should be a valid date"),
        ]),
        (Annotated[int, pydantic.Field(gt=0)], "0", [
            ("", "Input should be greater than 0"),
        ]),
    ],
    ids=shown,
)  # fmt: skip
def test_json_is_read_strictly(wanted, text, faults):
    """No string stands for a number in JSON, nor a number for a date. [B02.3]"""
    assert refusal_of(adapter_of(wanted).from_json, text) == faults


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        ("{", "Invalid JSON: EOF while parsing an object at line 1 column 1"),
        ("{'a': 1}", "Invalid JSON: key must be a string at line 1 column 2"),
        ("[1,]", "Invalid JSON: trailing comma at line 1 column 4"),
        ("[1] 2", "Invalid JSON: trailing characters at line 1 column 5"),
        ("[" * 1000, "Invalid JSON: recursion limit exceeded at line 1 column 202"),
        ("9" * 5000, "Invalid JSON: number out of range at line 1 column 4302"),
        ("\ufeff1", "Invalid JSON: expected value at line 1 column 1"),
        (b"\xff", "Invalid JSON: expected value at line 1 column 1"),
        ('"\\ud800"', "Invalid JSON: unexpected end of hex escape at line 1 column 8"),
        ('"\ud800"', "JSON text cannot hold half of a surrogate pair"),
    ],
    ids=lambda value: ascii(value)[:12],
)
@pytest.mark.parametrize("wanted", [Any, Order, Customer, Point], ids=shown)
def test_broken_json_is_one_error(wanted, text, sentence):
    """Text that is no JSON is one error of the whole payload. [B02.3]"""
    assert refusal_of(adapter_of(wanted).from_json, text) == [("", sentence)]


@pytest.mark.parametrize("value", [None, 1, {"a": 1}, ["x"], memoryview(b"1")])
def test_json_text_is_str_or_bytes(value):
    """What is no text is no JSON text, whatever it holds. [B02.3]"""
    name = type(value).__name__

    assert refusal_of(adapter_of(Any).from_json, value) == [
        ("", f"JSON text is str or bytes, not {name}")
    ]


def test_every_error_is_told_at_once_with_its_path():
    """One exception has all that is wrong, however deep, each with its dotted path. [B02.3]"""
    text = json.dumps(
        {
            "number": "7",
            "lines": [{"sku": "a"}, {"quantity": "2"}, 5],
            "by_sku": {"b": {"sku": 1}},
            "gift": {},
        }
    )

    with pytest.raises(MessageConversionError) as caught:
        adapter_of(Order).from_json(text)

    assert caught.value.target == "Order"
    assert caught.value.errors == [
        FieldError("number", "Input should be a valid integer", "int_type"),
        FieldError("lines.1.sku", "Field required", "missing"),
        FieldError("lines.1.quantity", "Input should be a valid integer", "int_type"),
        FieldError("lines.2", "Input should be an object", "dataclass_type"),
        FieldError("by_sku.b.sku", "Input should be a valid string", "string_type"),
        FieldError("gift.sku", "Field required", "missing"),
    ]
    assert str(caught.value) == (
        "Cannot convert the payload to Order: number: Input should be a valid integer; "
        "lines.1.sku: Field required; lines.1.quantity: Input should be a valid "
        "integer; lines.2: Input should be an object; by_sku.b.sku: Input should be a "
        "valid string; gift.sku: Field required."
    )
    assert isinstance(caught.value, (CQRSError, ValueError))


@pytest.mark.parametrize(
    "literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1E+400"]
)
def test_json_has_no_nan_and_no_infinity(literal):
    """They are refused wherever they stand, with the path where a number is said. [B02.3]"""

    @dataclass
    class Measured:
        value: float

    class Reading(pydantic.BaseModel):
        model_config = {"extra": "allow"}
        values: list[float] = []

    finite = "Input should be a finite number"
    anywhere = "JSON has no NaN, no infinity and no number beyond the range of floats"

    assert refusal_of(adapter_of(float).from_json, literal) == [("", finite)]
    assert refusal_of(adapter_of(Decimal).from_json, literal) == [("", finite)]
    assert refusal_of(adapter_of(Measured).from_json, f'{{"value": {literal}}}') == [
        ("value", finite)
    ]
    assert refusal_of(
        adapter_of(Reading).from_json, f'{{"values": [1, {literal}]}}'
    ) == [("values.1", finite)]
    assert refusal_of(adapter_of(list[Measured | None]).from_json, f"[{literal}]") == [
        ("0", "Input should be an object")
    ]
    for untyped in (Any, object, list, dict, list[Any], Reading):
        is_list = untyped in (list, list[Any])
        text = f'["Infinity", {literal}]' if is_list else f'{{"a": {literal}}}'
        assert refusal_of(adapter_of(untyped).from_json, text) == [("", anywhere)]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "1E+400"])
@pytest.mark.parametrize("where", ["{}", "[{}]", '{{"b": {}}}', "1.5, {}"])
def test_numbers_beyond_floats_are_refused_where_no_field_reads_them(literal, where):
    """A key that a class does not have hides no NaN and no infinity."""

    @dataclass
    class Place:
        row: int
        label: str = ""

    @dataclass
    class Seat:
        place: Place
        note: str = ""

    hidden = where.format(literal)
    hidden = f'"more": [{hidden}]' if hidden.startswith("1.5") else f'"more": {hidden}'
    anywhere = "JSON has no NaN, no infinity and no number beyond the range of floats"

    for text in (
        f'{{"place": {{"row": 1}}, {hidden}}}',
        f'{{"place": {{"row": 1, {hidden}}}}}',
    ):
        adapter = adapter_of(Seat)
        assert refusal_of(adapter.from_json, text) == [("", anywhere)]
        assert refusal_of(adapter.from_stored_json, text.encode()) == [("", anywhere)]
    assert adapter_of(Seat).from_json('{"place": {"row": 1, "more": [2]}}') == Seat(
        Place(1)
    )


@pytest.mark.parametrize("literal", ["NaN", "-Infinity", "1e999"])
def test_a_repeated_key_hides_no_number_beyond_floats(literal):
    """Only the last value of a key counts, but each of them must be JSON."""

    @dataclass
    class Row:
        number: int

    text = f'{{"number": {literal}, "number": 1}}'
    anywhere = "JSON has no NaN, no infinity and no number beyond the range of floats"

    assert refusal_of(adapter_of(Row).from_json, text) == [("", anywhere)]
    assert refusal_of(adapter_of(Row).from_stored_json, text.encode()) == [
        ("", anywhere)
    ]


def test_the_search_for_numbers_beyond_floats_misses_none():
    """Wherever it stands in a long text, such a number is found."""
    for before in range(0, 300, 7):
        for literal in ("1e999", "1E400", "1e+999", "9" * 309 + ".5", "NaN"):
            text = f'["{"e1" * before}", {literal}]'
            assert refusal_of(adapter_of(list).from_json, text) == [
                (
                    "",
                    "JSON has no NaN, no infinity and no number beyond the range of floats",
                )
            ]


@pytest.mark.parametrize("length", [1, 5_000])
@pytest.mark.parametrize(
    "word",
    ['\\"', "\\\\", '\\\\\\"', "\\n", "\\u0022", "N", "I", "7e100", "+", "\u00e4"],
)
@pytest.mark.parametrize(
    "literal", ["1e999", "1E+400", "9" * 309 + ".5", "-Infinity", "NaN"]
)
def test_no_string_around_a_number_beyond_floats_hides_it(literal, word, length):
    """Whatever is escaped in the strings, and however long they are."""
    string = f'"{word * length}"'
    anywhere = "JSON has no NaN, no infinity and no number beyond the range of floats"

    for text in (f"[{string},{literal}]", f"[{literal},{string}]"):
        assert refusal_of(adapter_of(list).from_json, text) == [("", anywhere)]
        assert refusal_of(adapter_of(list).from_stored_json, text.encode()) == [
            ("", anywhere)
        ]


@pytest.mark.parametrize("strings", [1, 15, 16, 17, 400])
@pytest.mark.parametrize("string", ["x", "x" * 3_000, '\\"', "\\\\" * 100, ""])
@pytest.mark.parametrize("literal", ["1e999", "NaN"])
def test_a_number_beyond_floats_is_found_after_any_strings(literal, string, strings):
    """However many there are, of whatever length, and whatever they end with."""
    many = ",".join([f'"{string}"'] * strings)
    anywhere = "JSON has no NaN, no infinity and no number beyond the range of floats"
    padding = " " * 2_000

    text = f"[{padding}{many},{literal},{many}]"
    assert refusal_of(adapter_of(list).from_json, text) == [("", anywhere)]
    words = f'[{padding}{many},"{literal}",{many}]'
    assert adapter_of(list).from_json(words) == json.loads(words)


@pytest.mark.parametrize("length", [1, 5_000])
@pytest.mark.parametrize(
    "word", ["NaN", "-Infinity", "1e999 ", '\\"1e999\\"', "\\\\1e999", "9" * 400]
)
def test_a_string_is_no_number_beyond_floats(word, length):
    """Whatever is escaped beside it, and however long it is."""
    text = f'{{"a":"{word * length}","b":1e100}}'

    assert adapter_of(dict).from_json(text) == json.loads(text)
    assert adapter_of(dict).from_stored_json(text.encode()) == json.loads(text)


def test_code_of_a_class_runs_once_for_each_text():
    """`__post_init__` and a default's factory are called once, unknown keys or not."""
    calls: list[str] = []

    @dataclass
    class Inner:
        number: int

        def __post_init__(self) -> None:
            calls.append("post_init")

    def make() -> int:
        calls.append("factory")
        return 7

    @dataclass
    class Outer:
        inner: Inner
        made: int = field(default_factory=make)

    read = adapter_of(Outer).from_json('{"inner": {"number": 1}, "unknown": 2}')

    assert (read.inner.number, read.made) == (1, 7)
    assert sorted(calls) == ["factory", "post_init"]


def test_a_number_with_very_many_digits_is_no_infinity():
    """Digits beyond the range of floats are an int where one may stand, never inf. [B02.3]"""
    digits = "9" * 400

    assert adapter_of(int).from_json(digits) == int(digits)
    assert adapter_of(Any).from_json(digits) == int(digits)
    assert refusal_of(adapter_of(float).from_json, digits) == [
        ("", "Input should be a finite number")
    ]
    assert refusal_of(adapter_of(Any).from_json, f"{digits}.5") == [
        ("", "JSON has no NaN, no infinity and no number beyond the range of floats")
    ]


def test_words_that_look_like_numbers_are_words():
    """NaN and 1e999 in a string are as good as any text. [B02.3]"""
    text = '{"a": "NaN", "b": "Infinity", "c": "1e999", "d": 1e100, "e": 1e-999}'

    assert adapter_of(dict).from_json(text) == {
        "a": "NaN",
        "b": "Infinity",
        "c": "1e999",
        "d": 1e100,
        "e": 0.0,
    }


def test_the_last_of_two_equal_keys_counts():
    """A key given twice is no error: JSON leaves it open, and the last one wins. [B02.3]"""
    assert adapter_of(Line).from_json('{"sku": "a", "sku": "b"}') == Line("b")


# Reading Python values, laxly -------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "value", "expected"),
    [
        (int, "1", 1),
        (int, 1.0, 1),
        (float, "1.5", 1.5),
        (bool, "yes", True),
        (Decimal, 1.5, Decimal("1.5")),
        (UUID, str(KEY), KEY),
        (Color, "red", Color.RED),
        (Size, "1", Size.SMALL),
        (date, "2026-05-01", date(2026, 5, 1)),
        (datetime, 0, datetime(1970, 1, 1, tzinfo=UTC)),
        (timedelta, 60, timedelta(minutes=1)),
        (list[int], ("1", 2), [1, 2]),
        (tuple[int, ...], ["1"], (1,)),
        (set[int], [1, 1], {1}),
        (Point, {"x": "1", "y": 2}, Point(1, 2.0)),
        (Point, (1, "2.5"), Point(1, 2.5)),
        (Address, {"street": "s", "number": "1"}, {"street": "s", "number": 1}),
        (Customer, {"name": "c", "since": "2026-05-01"}, Customer(name="c", since=date(2026, 5, 1))),
        (
            Order,
            {"number": "1", "lines": [{"sku": "a", "quantity": "2"}, Line("b")]},
            Order(1, [Line("a", 2), Line("b")]),
        ),
    ],
    ids=shown,
)  # fmt: skip
def test_python_values_are_read_laxly(wanted, value, expected):
    """In a dict text may stand for a number, as in what a form sends. [B02.4]"""
    read = adapter_of(wanted).from_python(value)

    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(
    ("wanted", "value", "faults"),
    [
        (float, "one", [
            ("", "Input should be a valid number, unable to parse string as a number"),
        ]),
        (int, 1.5, [("", f"{NO_INTEGER}, got a number with a fractional part")]),
        (str, 1, [("", "Input should be a valid string")]),
        (Line, 5, [("", "Input should be a dictionary or an instance of Line")]),
        (Line, {"quantity": None}, [
            ("sku", "Field required"),
            ("quantity", "Input should be a valid integer"),
        ]),
        (Point, {"x": 1, "y": "x"}, [
            ("y", "Input should be a valid number, unable to parse string as a number"),
        ]),
        (Order, {"number": 1, "lines": [{"sku": "a"}, {}]}, [
            ("lines.1.sku", "Field required"),
        ]),
    ],
    ids=shown,
)  # fmt: skip
def test_python_values_that_do_not_fit_are_refused(wanted, value, faults):
    """Lax is not careless: what cannot be read is an error with its path. [B02.4]"""
    assert refusal_of(adapter_of(wanted).from_python, value) == faults


@pytest.mark.parametrize("read", ["json", "dict"])
@pytest.mark.parametrize(
    ("wanted", "value", "expected"),
    [
        (Line, {"sku": "a"}, Line("a")),
        (Point, {"x": 1}, Point(1)),
        (Address, {"street": "s"}, {"street": "s"}),
        (Customer, {"name": "c"}, Customer(name="c")),
        (Picky, {"how": "fine"}, Picky("fine")),
    ],
    ids=shown,
)
def test_unknown_keys_are_ignored(wanted, value, expected, read):
    """A key that a class has no field for changes nothing, at any depth. [B02.4]"""
    value = {**value, "unknown": object() if read == "dict" else {"a": 1}}
    adapter = adapter_of(list[wanted])

    if read == "json":
        assert adapter.from_json(json.dumps([value])) == [expected]
    else:
        assert adapter.from_python([value]) == [expected]


def test_an_instance_is_taken_as_it_is():
    """Inside a dict, an object of the right class is not taken apart or run again. [B02.4]"""
    made = []

    @dataclass
    class Counted:
        value: int

        def __post_init__(self):
            made.append(self.value)

    @dataclass
    class Holder:
        counted: Counted
        point: Point
        price: Money

    counted = Counted("not validated")
    price = Money(Decimal(1), "EUR")
    holder = adapter_of(Holder).from_python(
        {"counted": counted, "point": Point(1), "price": price}
    )

    assert holder.counted is counted
    assert holder.price is price
    assert made == ["not validated"]


def _two(values):
    first, second = values
    return first, second


def text_of(function):
    """Return what this Python says where a function fails: versions word it anew."""
    with pytest.raises((ArithmeticError, ValueError)) as caught:
        function()
    return str(caught.value)


# What a class itself refuses ----------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("value", "no such how"),
        ("arithmetic", "division by zero"),
        ("type", 'can only concatenate str (not "int") to str'),
        ("silent", "ValueError"),
    ],
)
@pytest.mark.parametrize("read", ["json", "dict"])
def test_a_refusal_in_post_init_is_an_error_of_its_field(how, sentence, read):
    """ValueError, ArithmeticError and TypeError of __post_init__ have their path. [B02.4]"""

    class Model(pydantic.BaseModel):
        picky: Picky
        number: int

    @dataclass
    class Outer:
        picky: list[Picky]
        model: Model
        number: int

    picky = {"how": how, "at": "2026-05-01T12:00:00Z"}
    value = {
        "picky": [{"how": "fine"}, picky],
        "model": {"picky": picky, "number": None},
        "number": None,
    }
    adapter = adapter_of(Outer)
    call, given = adapter.from_python, value
    if read == "json":
        call, given = adapter.from_json, json.dumps(value)

    assert refusal_of(call, given) == [
        ("picky.1", sentence),
        ("model.picky", sentence),
        ("model.number", "Input should be a valid integer"),
        ("number", "Input should be a valid integer"),
    ]


@pytest.mark.parametrize("read", ["json", "dict"])
def test_a_bug_in_post_init_passes_unchanged(read):
    """What is no refusal, a KeyError say, is a bug and reaches the caller. [B02.4]"""
    adapter = adapter_of(list[Picky])
    call, given = adapter.from_python, [{"how": "key"}]
    if read == "json":
        call, given = adapter.from_json, '[{"how": "key"}]'

    with pytest.raises(KeyError):
        call(given)


def test_a_class_with_post_init_is_read_from_json_as_any_other():
    """Strictly, whatever its fields are: dates and decimals are text in JSON. [B02.4]"""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Everything:
        key: UUID
        amount: Decimal
        at: datetime
        day: date
        span: timedelta
        raw: bytes
        color: Color
        pair: tuple[int, str]
        numbers: set[int]
        point: Point
        price: Money
        line: Line
        ratio: float
        scale: InitVar[int] = 1
        doubled: float = field(init=False, default=0.0)

        def __post_init__(self, scale):
            object.__setattr__(self, "doubled", self.ratio * 2 * scale)

    value = {
        "key": str(KEY),
        "amount": "1.10",
        "at": "2026-05-01T12:00:00Z",
        "day": "2026-05-01",
        "span": "PT1M",
        "raw": "eA==",
        "color": "red",
        "pair": [1, "a"],
        "numbers": [1, 2],
        "point": {"x": 1, "key": str(KEY)},
        "price": "1.10 EUR",
        "line": {"sku": "a"},
        "ratio": 1.5,
        "scale": 2,
        "doubled": 17.0,
    }
    read = adapter_of(Everything).from_json(json.dumps(value))

    assert (read.key, read.amount) == (KEY, Decimal("1.10"))
    assert (read.at, read.day) == (
        datetime(2026, 5, 1, 12, tzinfo=UTC),
        date(2026, 5, 1),
    )
    assert (read.span, read.raw) == (timedelta(minutes=1), b"x")
    assert (read.color, read.pair, read.numbers) == (Color.RED, (1, "a"), {1, 2})
    assert (read.point, read.line) == (Point(1, key=KEY), Line("a"))
    assert (read.price.amount, read.doubled) == (Decimal("1.10"), 6.0)
    assert refusal_of(
        adapter_of(Everything).from_json, json.dumps({**value, "amount": True, "at": 5})
    ) == [
        (
            "amount",
            "Decimal input should be an integer, float, string or Decimal object",
        ),
        ("at", "Input should be a valid datetime"),
    ]


@pytest.mark.parametrize("read", ["json", "dict"])
def test_a_refusal_of_a_converter_is_an_error_of_its_field(read):
    """What a converter raises, the path of its value says where. [B02.4]"""
    value = {
        "price": "much",
        "others": ["1 EUR", "x EUR", "1 EUR"],
        "by_name": {"a": "1 2 3"},
        "period": {"start": "2026-05-01"},
    }
    adapter = adapter_of(Priced)
    call, given = adapter.from_python, value
    if read == "json":
        call, given = adapter.from_json, json.dumps(value)
    with pytest.raises(KeyError):  # dict_to_period's own bug
        call(given)
    del value["period"]
    given = json.dumps(value) if read == "json" else value

    assert refusal_of(call, given) == [
        ("price", "not enough values to unpack (expected 2, got 1)"),
        ("others.1", "[<class 'decimal.ConversionSyntax'>]"),
        ("by_name.a", text_of(lambda: _two(["1", "2", "3"]))),
    ]


def test_a_models_validators_may_raise_what_they_like_to_refuse():
    """A refusal out of a pydantic model's own functions is one error as well. [B02.4]"""

    class Model(pydantic.BaseModel):
        value: int

        @pydantic.field_validator("value")
        @classmethod
        def check(cls, value):
            if value == 0:
                raise ValueError("not zero")
            return 1 // (value - 1)

    adapter = adapter_of(Model)

    assert refusal_of(adapter.from_json, '{"value": 0}') == [("value", "not zero")]
    assert refusal_of(adapter.from_json, '{"value": 1}') == [
        ("", text_of(lambda: 1 // 0))
    ]


# Converters --------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["json", "dict"])
def test_value_objects_are_read_by_their_converter(read):
    """In fields, lists, dicts and unions, from the JSON type that its pair says. [B02.4]"""
    value = {
        "price": "1.10 EUR",
        "others": ["2 EUR", "3 EUR"],
        "by_name": {"a": "4 EUR"},
        "discount": "5 EUR",
        "period": {"start": "2026-05-01", "end": "2026-05-02"},
    }
    adapter = adapter_of(Priced)
    priced = (
        adapter.from_json(json.dumps(value))
        if read == "json"
        else adapter.from_python(value)
    )

    assert type(priced.price) is Money
    assert priced.price.amount == Decimal("1.10")
    assert [each.amount for each in priced.others] == [2, 3]
    assert priced.by_name["a"].amount == 4
    assert priced.discount.amount == 5
    assert priced.period == Period(date(2026, 5, 1), date(2026, 5, 2))
    assert adapter.to_jsonable(priced) == value
    assert json.loads(adapter.to_json(priced)) == value


def test_a_converters_json_side_is_read_strictly_too():
    """A converter from text is given text, and no number that could be written so. [B02.4]"""
    assert refusal_of(adapter_of(Priced).from_json, '{"price": 5}') == [
        ("price", "Input should be a valid string")
    ]
    assert refusal_of(
        adapter_of(Priced).from_json, '{"price": "1 EUR", "period": {"start": 5}}'
    ) == [("period.start", "Input should be a valid date")]


def test_a_pair_does_not_speak_of_subclasses():
    """A subclass of a class with converters needs its own, and says so. [B02.4]"""
    ((path, sentence),) = refusal_of(adapter_of(Cash).from_json, '"1 EUR"')

    assert (path, sentence) == ("", "Cash has no JSON form")


def test_half_a_pair_says_which_half_is_missing():
    """A class that can only be written, or only be read, raises for the other way. [B02.4]"""

    class Written:
        pass

    class Read:
        pass

    @converter
    def write(value: Written) -> str:
        return "written"

    @converter
    def read(value: str) -> Read:
        return Read()

    assert to_jsonable(Written()) == "written"
    assert type(adapter_of(Read).from_json('"x"')) is Read
    assert refusal_of(adapter_of(list[Written]).from_json, '["x"]') == [
        ("0", f"no converter reads {Written.__qualname__}")
    ]
    with pytest.raises(MessageConversionError, match=r"no converter writes .*Read"):
        to_jsonable(Read())


def test_a_converter_that_comes_late_is_used():
    """An adapter made before a converter was registered is made anew. [B02.4]"""

    class Late:
        pass

    assert adapter_of(list[Late]).reason is not None

    @converter
    def read(value: int) -> Late:
        return Late()

    assert type(adapter_of(list[Late]).from_json("[1]")[0]) is Late


def test_a_converter_stays_a_plain_function():
    """The decorator returns the very function. [B02.4]"""

    def to_text(money: Money) -> str:
        return money_to_text(money)

    assert converter(to_text) is to_text
    assert text_to_money("1 EUR").amount == 1


@dataclass
class Circle:
    radius: int

    def __post_init__(self):
        if self.radius < 0:
            raise ValueError("a circle is not inside out")


@dataclass
class Square:
    side: int


def test_the_members_of_a_union_are_told_by_their_names():
    """Where no member fits, the path says which member's error it is. [B02.4]"""
    adapter = adapter_of(
        Circle | Square | list[Circle] | Money | dict[str, list[Money]]
    )

    assert adapter.from_json('{"radius": 1}') == Circle(1)
    assert adapter.from_json('{"side": 1}') == Square(1)
    assert refusal_of(adapter.from_json, '{"radius": -1, "a": ["x"]}') == [
        ("Circle", "a circle is not inside out"),
        ("Square.side", "Field required"),
        ("list[Circle]", "Input should be a valid array"),
        ("Money", "Input should be a valid string"),
        ("dict[str,list[Money]].radius", "Input should be a valid array"),
        (
            "dict[str,list[Money]].a.0",
            "not enough values to unpack (expected 2, got 1)",
        ),
    ]


def test_a_key_of_a_payload_is_in_the_path_as_it_is():
    """However much it looks like a type, a key of a dict is a key; long ones too. [B02.4]"""
    key = "function-after[a(), " * 5000

    assert refusal_of(adapter_of(dict[str, int]).from_json, json.dumps({key: ""})) == [
        (key, "Input should be a valid integer")
    ]


def test_a_type_may_be_recursive():
    """A class may hold objects of its own class, to the depth that JSON allows. [B02.4]"""
    tree = {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}]}

    assert adapter_of(Node).from_json(json.dumps(tree)) == Node(
        "a", [Node("b", [Node("c")])]
    )
    tree["children"][0]["children"][0]["name"] = 5
    assert refusal_of(adapter_of(Node).from_json, json.dumps(tree)) == [
        ("children.0.children.0.name", "Input should be a valid string")
    ]


# Models, NamedTuples, TypedDicts -------------------------------------------------------


def test_a_models_aliases_and_rules_hold():
    """Aliases, constraints and forbidden extras are the model's own affair. [B02.5]"""

    class Strict(pydantic.BaseModel):
        model_config = {"extra": "forbid"}
        value: int = pydantic.Field(alias="Value", le=5)

    adapter = adapter_of(Strict)

    assert adapter.from_json('{"Value": 5}').value == 5
    assert adapter.to_jsonable(Strict(Value=5)) == {"Value": 5}
    assert sorted(refusal_of(adapter.from_json, '{"Value": 6, "more": 1}')) == [
        ("Value", "Input should be less than or equal to 5"),
        ("more", "Extra inputs are not permitted"),
    ]


def test_a_field_may_be_called_as_it_likes():
    """Names that mean something to pydantic's own schemas are names like others. [B02.5]"""

    class Model(pydantic.BaseModel):
        type: float
        fields: Circle | None = None
        cls: Point | None = None

    @dataclass
    class Plain:
        type: float
        choices: list[Circle] = field(default_factory=list)

    model = adapter_of(Model)

    assert model.from_json('{"type": 1, "cls": {"x": 1, "z": 2}}').cls == Point(1)
    assert refusal_of(model.from_json, '{"type": NaN, "fields": {"radius": -1}}') == [
        ("type", "Input should be a finite number"),
        ("fields", "a circle is not inside out"),
    ]
    assert refusal_of(
        adapter_of(Plain).from_json, '{"type": NaN, "choices": [{"radius": -1}]}'
    ) == [
        ("type", "Input should be a finite number"),
        ("choices.0", "a circle is not inside out"),
    ]


@pytest.mark.parametrize("where", ["field", "model", "wrap"])
def test_a_model_with_early_validators_reads_dates_from_json(where):
    """Validators that run before the fields spoil neither dates nor strictness. [B02.5]"""

    class Model(pydantic.BaseModel):
        at: datetime
        number: int
        amount: Decimal = Decimal(0)

        if where == "field":

            @pydantic.field_validator("at", "number", mode="before")
            @classmethod
            def strip(cls, value):
                return value.strip() if isinstance(value, str) else value

        elif where == "model":

            @pydantic.model_validator(mode="before")
            @classmethod
            def look(cls, value):
                return value

        else:

            @pydantic.model_validator(mode="wrap")
            @classmethod
            def look(cls, value, inner):
                return inner(value)

    @dataclass
    class Holder:
        model: Model
        number: int = 0
        at: datetime | None = None

    text = '{"model": {"at": "2026-05-01T12:00:00Z", "number": 1, "amount": "1.5"}}'
    holder = adapter_of(Holder).from_json(text)

    assert holder.model.at == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert holder.model.amount == Decimal("1.5")
    assert refusal_of(
        adapter_of(Holder).from_json,
        '{"model": {"at": "x", "number": "1"}, "number": "1"}',
    ) == [
        ("model.at", "Input should be a valid datetime or date, input is too short"),
        ("model.number", "Input should be a valid integer"),
        ("number", "Input should be a valid integer"),
    ]


def test_a_named_tuple_is_an_object_in_json():
    """Its JSON has the names of its fields, nested as well, and is read by them. [B02.5]"""

    @dataclass
    class Route:
        points: list[Point]
        start: Point | None = None
        either: Point | Line | None = None

    route = Route([Point(1), Point(2, 2.5)], Point(3, key=KEY), Line("a"))
    form = {
        "points": [{"x": 1, "y": 0.0, "key": None}, {"x": 2, "y": 2.5, "key": None}],
        "start": {"x": 3, "y": 0.0, "key": str(KEY)},
        "either": {"sku": "a", "quantity": 1},
    }
    adapter = adapter_of(Route)

    assert adapter.to_jsonable(route) == form
    assert adapter.from_json(json.dumps(form)) == route
    assert adapter.from_python(form) == route
    assert adapter_of(Route).from_json(adapter.to_json(Route([], None, Point(1)))) == (
        Route([], None, Point(1))
    )


def test_a_named_tuple_without_annotations_works_too():
    """collections.namedtuple says no types; its fields take anything. [B02.5]"""
    Pair = namedtuple("Pair", "one two", defaults=[None])  # noqa: PYI024

    assert adapter_of(Pair).from_json('{"one": [1]}') == Pair([1])
    assert adapter_of(Pair).to_jsonable(Pair(1, "x")) == {"one": 1, "two": "x"}


# Adapters ------------------------------------------------------------------------------


def test_an_adapter_is_made_once_for_a_type():
    """The same type has the same adapter, for generics too."""
    assert adapter_of(Line) is adapter_of(Line)
    assert adapter_of(list[Line]) is adapter_of(list[Line])


def test_an_annotation_that_cannot_be_hashed_has_an_adapter():
    """Metadata may be a list or a dict; then the adapter is not remembered."""
    wanted = Annotated[int, ["unhashable"]]

    assert adapter_of(wanted).from_json("1") == 1


@pytest.mark.parametrize(
    "wanted", [object(), 5, "NoSuchName", Note, Ellipsis], ids=shown
)
def test_a_type_that_cannot_be_converted_has_an_adapter_that_raises(wanted):
    """Making it raises nothing: its use does, with the reason."""
    adapter = Adapter(wanted)

    assert adapter.reason
    for use in (adapter.from_python, adapter.to_json, adapter.to_jsonable):
        assert refusal_of(use, 1) == [("", adapter.reason)]
    assert refusal_of(adapter.from_json, "1") == [("", adapter.reason)]


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON ; charset=utf-8", " application/json"],
)
def test_json_is_a_content_type_with_or_without_parameters(content_type):
    """The essence counts, in any case."""
    check_content_type(content_type)


@pytest.mark.parametrize("content_type", ["", "json", "text/json", "application/xml"])
def test_any_other_content_type_is_refused(content_type):
    """JSON is the one wire format."""
    assert refusal_of(check_content_type, content_type) == [
        (
            "",
            f"the content type {content_type!r} is not supported, application/json is",
        )
    ]


SECRET = "53cr3t"


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (int, SECRET),
        (float, SECRET),
        (bool, SECRET),
        (UUID, SECRET),
        (UUID, f"{SECRET}!"),
        (Decimal, SECRET),
        (datetime, SECRET),
        (date, SECRET),
        (date, "2026-05-01T12:34:56"),
        (time, SECRET),
        (timedelta, SECRET),
        (Color, SECRET),
        (Size, 5353),
        (Literal["a"], SECRET),
        (Line, SECRET),
        (Line, {"sku": [SECRET], "quantity": SECRET}),
        (Point, {"x": SECRET}),
        (Address, {"street": {SECRET: SECRET}}),
        (Customer, {"name": [SECRET], "since": SECRET}),
        (int | Line | None, SECRET),
        (Path, [SECRET]),
        (pydantic.AnyUrl, f"http://{SECRET}:{SECRET}"),
        (pydantic.IPvAnyAddress, SECRET),
        (list[int], [SECRET, {"a": SECRET}]),
        (
            Annotated[
                Annotated[Circle, pydantic.Tag("circle")]
                | Annotated[Square, pydantic.Tag("square")],
                pydantic.Discriminator(lambda value: value.get("kind")),
            ],
            {"kind": SECRET},
        ),
    ],
    ids=shown,
)
def test_an_error_does_not_repeat_what_was_given(wanted, value):
    """A payload may hold secrets, and errors end in logs: no text has values in it."""
    for call, given in (
        (adapter_of(wanted).from_python, value),
        (adapter_of(wanted).from_json, json.dumps(value)),
    ):
        with pytest.raises(MessageConversionError) as caught:
            call(given)
        said = f"{caught.value} {caught.value.errors}"

        assert SECRET not in said
        assert "5353" not in said
        assert "12:34:56" not in said


# Sending: what comes back, and what would not -------------------------------------------


def sent(payload, *classes):
    """Encode a payload and return what comes back."""
    types = MessageTypes(classes or [type(payload)])
    name, text = types.encode(payload)
    assert isinstance(text, bytes)
    return types.decode(name.name, text)


@message("tests.holder")
@dataclass
class Holder:
    """Holds one value under each annotation that a test needs."""

    value: Any = None
    number: int = 0
    ratio: float = 0.0
    amount: Decimal = Decimal(0)
    at: datetime | None = None
    day: date | None = None
    span: timedelta = timedelta(0)
    clock: time | None = None
    raw: bytes = b""
    text: str = ""
    key: UUID | None = None
    color: Color | None = None
    size: Size | None = None
    pair: tuple[int, str] | None = None
    numbers: list[int] = field(default_factory=list)
    many: tuple[int, ...] = ()
    some: set[int] = field(default_factory=set)
    by_key: dict[UUID, int] = field(default_factory=dict)
    either: int | str | None = None
    line: Line | None = None
    lines: list[Line] = field(default_factory=list)
    circle: Circle | None = None
    customer: Customer | None = None
    address: Address | None = None
    point: Point | None = None
    price: Money | None = None
    period: Period | None = None
    node: Node | None = None
    flag: bool = False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("value", {"a": [1, 1.5, None, "x", True, {"b": []}]}),
        ("number", 2**80),
        ("ratio", 0.1),
        ("ratio", 1),
        ("ratio", -0.0),
        ("amount", Decimal("1.10")),
        ("amount", Decimal("-1E+30")),
        ("amount", Decimal("1E-30")),
        ("at", NAIVE),
        ("at", datetime(2026, 5, 1, 12, 0, 0, 1, tzinfo=UTC)),
        ("at", datetime(2026, 5, 1, 12, tzinfo=EAST)),
        ("at", datetime(2026, 5, 1, 12, tzinfo=BERLIN)),
        ("at", datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)),
        ("at", datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=0)),
        ("at", datetime(1800, 1, 1, tzinfo=BERLIN)),
        ("at", LAST),
        ("at", FIRST),
        ("at", FIRST.replace(tzinfo=EAST)),
        ("at", LAST.replace(tzinfo=timezone(timedelta(hours=-12)))),
        ("day", date(2026, 5, 1)),
        ("span", timedelta(days=-1, microseconds=1)),
        ("span", timedelta.max),
        ("span", timedelta.min),
        ("clock", time(12, 0, 0, 123456)),
        ("clock", time(12, tzinfo=UTC)),
        ("raw", b"abc"),
        ("raw", b"\xff\x00"),
        ("text", "é😀\x00 <b>\u2028"),
        ("key", KEY),
        ("color", Color.BLUE),
        ("size", Size.LARGE),
        ("pair", (1, "a")),
        ("numbers", [1, 2]),
        ("many", (1, 2)),
        ("some", {1, 2}),
        ("by_key", {KEY: 1}),
        ("either", 1),
        ("either", "1"),
        ("line", Line("a", 2)),
        ("lines", [Line("a"), Line("b")]),
        ("circle", Circle(2)),
        ("customer", Customer(name="c", address={"street": "s"}, since=date(2026, 5, 1))),
        ("address", {"street": "s", "number": 1}),
        ("point", Point(1, 2.5, KEY)),
        ("price", Money(Decimal("1.10"), "EUR")),
        ("period", Period(date(2026, 5, 1), date(2026, 5, 2))),
        ("node", Node("a", [Node("b")])),
    ],
    ids=shown,
)  # fmt: skip
def test_what_is_sent_comes_back(name, value):
    """A rightly typed value of a field is in JSON and back what it was."""
    back = getattr(sent(Holder(**{name: value})), name)

    if isinstance(value, datetime) and value.tzinfo:
        assert back.replace(tzinfo=None) == value.replace(tzinfo=None)
        assert back.utcoffset() == value.utcoffset()
    elif isinstance(value, Money):
        assert (back.amount, back.currency) == (value.amount, value.currency)
    else:
        assert back == value
    assert str(back) == str(value) or not isinstance(value, (Decimal, float))


LOST = "it would not come back from JSON unchanged"
NO_ZONE = (
    "JSON keeps only a zoneinfo.ZoneInfo that has a key, or a datetime.timezone "
    "without a name of its own"
)


def wider(given, annotated):
    """Return what is said of a subclass's object in a field of its base class."""
    return (
        f"{LOST} ({given} comes back as {annotated}: annotate the field as {given}, or "
        f"send a plain {annotated})"
    )


@dataclass(frozen=True, slots=True)
class LongLine(Line):
    note: str = ""


class SameLine(Line):
    """Has no field of its own, and is another class all the same."""


class OldCustomer(Customer):
    until: date | None = None


@dataclass
class Named:
    """Equal to whatever has its name: equality says nothing of the rest."""

    name: str
    rest: list[int] = field(default_factory=list, compare=False)

    def __eq__(self, other):
        return isinstance(other, Named) and self.name == other.name

    __hash__ = None


@dataclass(eq=False)
class NamedMore(Named):
    more: int = 0


@pytest.mark.parametrize(
    ("given", "path", "sentence"),
    [
        ({"number": "5"}, "number", f"{LOST} (Input should be a valid integer)"),
        ({"number": 1.0}, "number", f"{LOST} (Input should be a valid integer)"),
        ({"number": None}, "number", f"{LOST} (Input should be a valid integer)"),
        ({"number": Decimal(1)}, "number", f"{LOST} (Input should be a valid integer)"),
        ({"flag": 1}, "flag", f"{LOST} (Input should be a valid boolean)"),
        ({"text": 5}, "text", f"{LOST} (Input should be a valid string)"),
        ({"text": b"x"}, "text", LOST),
        ({"text": KEY}, "text", LOST),
        ({"text": Color.RED}, "text", LOST),
        ({"ratio": "1.5"}, "ratio", f"{LOST} (Input should be a valid number)"),
        ({"ratio": math.nan}, "ratio", f"{LOST} (Input should be a valid number)"),
        ({"ratio": math.inf}, "ratio", f"{LOST} (Input should be a valid number)"),
        ({"amount": 1}, "amount", LOST),
        ({"amount": 1.5}, "amount", LOST),
        ({"amount": "1.5"}, "amount", LOST),
        ({"amount": Decimal("NaN")}, "amount",
         f"{LOST} (Input should be a finite number)"),
        ({"key": str(KEY)}, "key", LOST),
        ({"color": "red"}, "color", LOST),
        ({"size": 1}, "size", LOST),
        ({"day": NAIVE}, "day", None),
        ({"at": date(2026, 5, 1)}, "at", None),
        ({"at": "2026-05-01T12:00:00"}, "at", LOST),
        ({"span": 60}, "span", f"{LOST} (Input should be a valid duration)"),
        ({"raw": "x"}, "raw", f"{LOST} (Input should be bytes as base64 text)"),
        ({"raw": "YWJj"}, "raw", LOST),
        ({"pair": [1, "a"]}, "pair", LOST),
        ({"pair": (1,)}, "pair.1", f"{LOST} (Field required)"),
        ({"numbers": (1,)}, "numbers", LOST),
        ({"numbers": [1, "2"]}, "numbers.1",
         f"{LOST} (Input should be a valid integer)"),
        ({"many": [1]}, "many", LOST),
        ({"some": [1]}, "some", LOST),
        ({"some": frozenset({1})}, "some", LOST),
        ({"by_key": {str(KEY): 1}}, "by_key", LOST),
        ({"either": KEY}, "either", LOST),
        ({"line": {"sku": "a", "quantity": 1}}, "line", LOST),
        ({"line": SameLine("a")}, "line", wider("SameLine", "Line")),
        ({"line": LongLine("a")}, "line", wider("LongLine", "Line")),
        ({"line": LongLine("a", note="lost")}, "line", wider("LongLine", "Line")),
        ({"lines": [Line("a"), LongLine("b")]}, "lines.1", wider("LongLine", "Line")),
        ({"text": Status.OPEN}, "text", wider("Status", "str")),
        ({"text": Shade.DARK}, "text", wider("Shade", "str")),
        ({"text": mark_safe("<b>")}, "text", wider("SafeString", "str")),
        ({"number": Size.LARGE}, "number", wider("Size", "int")),
        ({"number": True}, "number", wider("bool", "int")),
        ({"ratio": 2**60 + 1}, "ratio", wider("int", "float")),
        ({"ratio": True}, "ratio", wider("bool", "float")),
        ({"ratio": Size.LARGE}, "ratio", wider("Size", "int")),
        ({"some": {True}}, "some", wider("bool", "int")),
        ({"address": OrderedDict(street="s")}, "address", wider("OrderedDict", "dict")),
        ({"value": {Shade.DARK: 1}}, "value", LOST),
        ({"at": datetime(2026, 5, 1, tzinfo=timezone(timedelta(0), "Mine"))}, "at",
         f"{LOST} ({NO_ZONE})"),
        ({"lines": [Line("a"), Line(5)]}, "lines.1.sku",
         f"{LOST} (Input should be a valid string)"),
        ({"customer": OldCustomer(name="c")}, "customer",
         wider("OldCustomer", "Customer")),
        ({"customer": Customer.model_construct(name="c", since="2026-05-01")},
         "customer.since", LOST),
        ({"address": {"street": "s", "unknown": 1}}, "address", LOST),
        ({"point": (1, 2.5, None)}, "point", None),
        ({"point": Point("1")}, "point.x", f"{LOST} (Input should be a valid integer)"),
        ({"price": "1 EUR"}, "price", LOST),
        ({"value": KEY}, "value", LOST),
        ({"value": [1, {"a": KEY}]}, "value.1.a", LOST),
        ({"value": Decimal(1)}, "value", LOST),
        ({"value": NAIVE}, "value", LOST),
        ({"value": math.nan}, "value", LOST),
        ({"value": [1, -math.inf]}, "value.1", LOST),
        ({"value": (1,)}, "value", LOST),
        ({"value": {1: 1}}, "value", LOST),
        ({"value": {"a": {1}}}, "value.a", LOST),
        ({"value": Line("a")}, "value", LOST),
        ({"value": Customer(name="c")}, "value", LOST),
    ],
    ids=shown,
)  # fmt: skip
def test_what_would_not_come_back_raises_with_its_path(given, path, sentence):
    """A send certifies that nothing is lost: otherwise it raises, and says where."""
    with pytest.raises(MessageConversionError) as caught:
        sent(Holder(**given))
    (error,) = caught.value.errors

    assert error.path == path
    assert error.code == "not_json"
    assert caught.value.target == "Holder"
    if sentence is not None:
        assert error.message == sentence
    else:
        assert error.message.startswith(LOST)


@message("tests.flat")
@dataclass
class Flat:
    """Has only fields of which JSON keeps all, where they hold what they should."""

    number: int = 0
    ratio: float | None = 0.0
    flag: bool = False
    text: str = field(default="", kw_only=True)
    key: UUID | None = None


@message("tests.flat_more")
@dataclass
class FlatMore(Flat):
    """A class of its own, which a Flat's adapter does not speak of."""


class Text(str):
    """Is text, and more than text."""

    __slots__ = ()


class Id(UUID):
    """Is a UUID of a class that JSON does not say."""


def outcome(write):
    """Return what is written, or what is wrong."""
    try:
        return write()
    except MessageConversionError as error:
        return error.errors


@pytest.mark.parametrize(
    ("given", "is_plain"),
    [
        ({}, True),
        ({"number": -(2**63), "ratio": -0.0, "flag": True}, True),
        ({"number": 2**63 - 1, "ratio": 5e-324, "text": "\u20ac\0\u2028'"}, True),
        ({"ratio": 1e22, "key": KEY}, True),
        ({"ratio": None, "key": None}, True),
        ({"number": 2**63}, False),
        ({"number": -(10**4000)}, False),
        ({"number": True}, False),
        ({"number": 1.0}, False),
        ({"number": Size.SMALL}, False),
        ({"number": None}, False),
        ({"ratio": 1}, False),
        ({"ratio": math.nan}, False),
        ({"ratio": -math.inf}, False),
        ({"ratio": Decimal(1)}, False),
        ({"flag": 1}, False),
        ({"text": "\ud800"}, False),
        ({"text": Text("x")}, False),
        ({"text": mark_safe("<b>")}, False),
        ({"text": b"x"}, False),
        ({"text": Color.RED}, False),
        ({"key": str(KEY)}, False),
        ({"key": Id(int=1)}, False),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_is_certain_to_come_back_is_not_read_back(monkeypatch, given, is_plain):
    """And where nothing is certain, the outcome is what a look at it says."""
    adapter, value = adapter_of(Flat), Flat(**given)
    at_once = adapter.to_plain_json(value)
    first = outcome(lambda: to_stored_json(adapter, value))
    monkeypatch.setattr(Adapter, "to_plain_json", lambda *_: None)
    looked_at = outcome(lambda: to_stored_json(adapter, value))

    assert (at_once is not None) is is_plain
    assert first == looked_at


def test_only_of_exactly_its_class_is_anything_certain():
    value = Flat()
    del value.key  # which leaves the default that the class has
    gone = Flat()
    del gone.__dict__["number"]

    assert adapter_of(Flat).to_plain_json(FlatMore()) is None
    assert adapter_of(FlatMore).to_plain_json(FlatMore()) is not None
    assert sent(value) == value == sent(gone) == gone


def with_field(annotation, **options):
    """Return a dataclass with one more field than an int."""
    more = options.pop("more", None)
    return make_dataclass(
        "Special",
        [("one", int, 1), ("two", annotation, field(**options))],
        namespace=more or {},
    )


@pytest.mark.parametrize(
    "cls",
    [
        with_field(Decimal, default=Decimal(1)),
        with_field(date, default=date(2026, 5, 1)),
        with_field(list[int], default_factory=list),
        with_field(int | str, default=1),
        with_field(Any, default=1),
        with_field(Color, default=Color.RED),
        with_field(Literal["a"], default="a"),
        with_field(Flat, default_factory=Flat),
        with_field(Annotated[int, pydantic.Field(gt=0)], default=1),
        with_field(Annotated[int, pydantic.AfterValidator(abs)], default=1),
        with_field(Annotated[int, pydantic.PlainSerializer(str)], default=1),
        with_field(int, default=pydantic.Field(1, gt=0)),
        with_field(int, default=pydantic.Field(1, alias="deux")),
        with_field(int, default=pydantic.Field(1, exclude=True)),
        with_field(int, default=1, init=False),
        with_field(InitVar[int], default=1),
        with_field(int, default=1, more={"__post_init__": lambda self: None}),
        with_field(
            int,
            default=1,
            more={"__pydantic_config__": {"str_strip_whitespace": True}},
        ),
        with_field(
            int,
            default=1,
            more={
                "three": pydantic.computed_field(property(lambda self: 3)),
            },
        ),
        Money,
        Customer,
        Point,
        int,
    ],
    ids=[
        "decimal",
        "date",
        "list",
        "union",
        "any",
        "enum",
        "literal",
        "nested",
        "constraint",
        "validator",
        "serializer",
        "default with a constraint",
        "alias",
        "excluded",
        "not init",
        "init only",
        "post init",
        "config",
        "computed",
        "converter",
        "model",
        "named tuple",
        "int",
    ],
)
def test_nothing_is_certain_of_a_class_with_rules_of_its_own(cls):
    """Whatever pydantic's schema says beyond plain types makes it look."""
    value = {
        Money: lambda: Money(1, "EUR"),
        Customer: lambda: Customer(name="c"),
        Point: lambda: Point(1),
    }.get(cls, cls)()

    assert adapter_of(cls).to_plain_json(value) is None


def test_the_text_of_what_would_not_come_back():
    """The sentence names the class and the field."""
    with pytest.raises(MessageConversionError) as caught:
        sent(Holder(lines=[LongLine("a")]))

    assert str(caught.value) == (
        "Cannot convert the payload to Holder: lines.0: it would not come back from "
        "JSON unchanged (LongLine comes back as Line: annotate the field as "
        "LongLine, or send a plain Line)."
    )


@pytest.mark.parametrize(
    ("given", "path", "reason"),
    [
        ({"value": object()}, "value", "(object has no JSON form)"),
        (
            {"value": [1, {"a": Note()}]},
            "value.1.a",
            "(Note has no JSON form)",
        ),
        ({"text": "\ud800"}, "text", "surrogates not allowed"),
        ({"value": ["\ud800"]}, "value.0", "surrogates not allowed"),
        ({"value": Money(1, "EUR")}, "", "(Money has no JSON form)"),
        ({"price": Money}, "price", "(type has no JSON form)"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_cannot_be_written_raises_with_its_path(given, path, reason):
    """An object that JSON has no form for is named by the field that holds it."""
    with pytest.raises(MessageConversionError) as caught:
        sent(Holder(**given))
    (error,) = caught.value.errors

    assert error.path == path
    assert error.message.startswith("it cannot be written as JSON (")
    assert reason in error.message


def test_a_payload_that_holds_itself_cannot_be_sent():
    """A circle is refused, however it is closed."""
    circle = []
    circle.append(circle)
    node = Node("a")
    node.children.append(node)

    for payload in (Holder(value=circle), Holder(node=node)):
        with pytest.raises(MessageConversionError, match="cannot be written as JSON"):
            sent(payload)


def test_a_payload_that_is_nested_too_deeply_cannot_be_sent():
    """What could not be read again, or not even be written, raises at the send."""
    for depth in (190, 300, 5000):
        value = []
        for _ in range(depth):
            value = [value]

        if depth == 190:
            assert sent(Holder(value=value)).value == value
        else:
            with pytest.raises(MessageConversionError):
                sent(Holder(value=value))


def test_a_half_built_object_cannot_be_sent():
    """An object without all of its attributes raises as any other that has no form."""
    with pytest.raises(MessageConversionError, match="has no attribute"):
        sent(object.__new__(Holder))


def test_equality_is_not_trusted():
    """A class's own == may overlook what would be lost; a send does not."""

    @message("tests.named")
    @dataclass
    class Holds:
        named: Named

    back = sent(Holds(Named("a", [1, 2])))
    assert back.named.rest == [1, 2]

    for named, path in (
        (Named("a", (1, 2)), "named.rest"),
        (Named("a", ["1"]), "named.rest.0"),
        (NamedMore("a"), "named"),
    ):
        with pytest.raises(MessageConversionError) as caught:
            sent(Holds(named))
        assert caught.value.errors[0].path == path


def test_a_class_that_compares_by_identity_is_sent_all_the_same():
    """eq=False says nothing about loss: the fields are compared."""

    @message("tests.identity")
    @dataclass(eq=False)
    class Plain:
        number: int
        inner: Line | None = None

    back = sent(Plain(1, Line("a")))

    assert (type(back), back.number, back.inner) == (Plain, 1, Line("a"))
    with pytest.raises(MessageConversionError) as caught:
        sent(Plain("1"))
    assert caught.value.errors[0].path == "number"


def test_what_post_init_changes_twice_is_refused():
    """A class whose __post_init__ is not idempotent would come back as another."""

    @message("tests.doubling")
    @dataclass
    class Doubling:
        number: int

        def __post_init__(self):
            self.number *= 2

    with pytest.raises(MessageConversionError) as caught:
        sent(Doubling(1))

    assert faults_of(caught) == [("number", LOST)]


def test_what_a_model_keeps_beside_its_fields_counts_too():
    """Extras come back or are refused; a private attribute may only be its default."""

    class Open(pydantic.BaseModel):
        model_config = {"extra": "allow"}
        number: int
        _cache: list[int] = pydantic.PrivateAttr(default_factory=list)

    message("tests.open")(Open)
    with_cache = Open(number=1)
    with_cache._cache.append(1)

    assert sent(Open(number=1, more={"a": 1})) == Open(number=1, more={"a": 1})
    for payload, path in ((Open(number=1, more=KEY), "more"), (with_cache, "_cache.0")):
        with pytest.raises(MessageConversionError) as caught:
            sent(payload)
        assert path.startswith(caught.value.errors[0].path)
        assert caught.value.errors[0].path != ""


# Names on the wire ----------------------------------------------------------------------


@message("orders.placed", version=3, aliases=["orders.order_placed", "placed"])
@dataclass
class Placed:
    number: int


def test_a_named_class_is_stored_under_its_name_and_version():
    """@message gives name and version; aliases are read and never written."""
    types = MessageTypes([Placed])

    assert types.name_of(Placed) == MessageName(
        "orders.placed", 3, ("orders.order_placed", "placed")
    )
    name, text = types.encode(Placed(1))
    assert (name.name, name.version, text) == ("orders.placed", 3, b'{"number":1}')
    for each in ("orders.placed", "orders.order_placed", "placed"):
        assert types.class_of(each) is Placed
        assert types.decode(each, text) == Placed(1)
    assert list(types) == [Placed]


def test_a_class_without_a_name_is_stored_under_its_app_and_its_own():
    """app_label.ClassName is the name of a class at the top of an app's module."""
    types = MessageTypes([OpenTicket, FindTickets])

    assert types.name_of(OpenTicket) == MessageName("testapp.OpenTicket", 1, ())
    assert types.class_of("testapp.FindTickets") is FindTickets
    assert types.decode("testapp.OpenTicket", b'{"title": "x"}') == OpenTicket("x")


def test_only_a_name_of_ones_own_routes():
    """app_label.ClassName is for the wire alone, and so is an alias."""
    types = MessageTypes([Placed, OpenTicket])

    assert types.named("orders.placed") is Placed
    assert types.named("placed") is None
    assert types.named("testapp.OpenTicket") is None
    assert types.named("nosuch") is None


def test_a_name_that_nobody_has_is_not_decoded():
    """Only registered classes are ever made from stored text."""
    with pytest.raises(UnknownMessage) as caught:
        MessageTypes([OpenTicket]).decode("orders.placed", b"{}")

    assert str(caught.value) == (
        "No registered message class is named 'orders.placed'. If it was renamed, "
        "give the old name in @message(aliases=[...])."
    )


def needs_a_name(cls, types, reason):
    with pytest.raises(UnknownMessage) as caught:
        types.encode(object.__new__(cls))

    assert str(caught.value) == (
        f"{cls.__module__}.{cls.__qualname__} has no name on the wire: {reason}. "
        f'Name it with @message("app.name").'
    )


def test_an_unregistered_class_raises_at_the_send():
    """What stands in no handler's annotation and has no @message cannot be stored."""
    needs_a_name(
        OpenTicket, MessageTypes([Placed]), "no handler's annotation mentions it"
    )


def test_a_subclass_is_not_registered_by_its_base():
    """Registration and names are of exactly one class."""
    Later = type("Later", (Placed,), {})

    needs_a_name(Later, MessageTypes([Placed]), "no handler's annotation mentions it")


def test_a_class_of_no_app_needs_a_name():
    """Without an app there is no label to begin the name with."""

    needs_a_name(Node, MessageTypes([Node]), "it does not belong to an installed app")


def test_a_nested_class_needs_a_name():
    """A class that is not at the top of its module has no name of its own."""
    Inner = type("Inner", (), {"__module__": OpenTicket.__module__})
    Inner.__qualname__ = "Outer.Inner"

    needs_a_name(
        Inner, MessageTypes([Inner]), "it is not defined at the top of its module"
    )


def test_two_classes_of_one_name_in_an_app_need_names():
    """Neither has the name: what is stored must not depend on an order of imports."""
    Twin = type("OpenTicket", (), {"__module__": Note.__module__})
    types = MessageTypes([OpenTicket, Twin, FindTickets])

    for cls in (OpenTicket, Twin):
        needs_a_name(cls, types, "another class is named 'testapp.OpenTicket' as well")
    with pytest.raises(UnknownMessage):
        types.class_of("testapp.OpenTicket")
    assert list(types) == [FindTickets]


def test_a_given_name_stands_before_one_by_place():
    """A class that @message gave the name keeps it; the other needs its own."""
    Taker = message("testapp.OpenTicket")(type("Taker", (), {}))
    types = MessageTypes([OpenTicket, Taker])

    assert types.class_of("testapp.OpenTicket") is Taker
    assert types.clashes == {}
    needs_a_name(
        OpenTicket, types, "another class is named 'testapp.OpenTicket' as well"
    )


@pytest.mark.parametrize("alias", [False, True])
def test_one_name_for_two_classes_is_a_clash(alias):
    """A name or an old name given twice is a mistake that a check reports."""
    aliases = ["orders.placed"] if alias else []
    Twin = message("tests.twin" if alias else "orders.placed", aliases=aliases)(
        type("Twin", (), {})
    )
    (problem,) = MessageTypes([Placed, Twin]).clashes.values()

    assert problem.rule is Rule.DUPLICATE_MESSAGE_NAME
    assert problem.message == (
        f"Two message classes are named 'orders.placed': {__name__}.Placed and "
        f"{__name__}.Twin."
    )
    assert problem.hint == "Give each its own name with @message."


def test_text_that_does_not_fit_its_class_raises_when_it_is_decoded():
    """Stored text is read as strictly as any other."""
    types = MessageTypes([Placed])

    assert refusal_of(types.decode, "orders.placed", b'{"number": "1"}') == [
        ("number", "Input should be a valid integer")
    ]
    assert types.decode("orders.placed", b'{"number": 1, "new": 2}') == Placed(1)


# What a handler takes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 1),
        (str, Status.OPEN),
        (Line, Line("a")),
        (Line, LongLine("a")),
        (Line | int, 5),
        (Optional[Line], None),
        (Any, object()),
        (object, None),
        (Address, {"street": "s"}),
        (list[int], [1, 2]),
        (dict, {"a": object()}),
        (dict[str, int], {"a": 1}),
        (Sequence[int], [1]),
        (Literal["a"], "a"),
        (Annotated[int, "note"], 5),
        (tuple[int, ...], (1, 2)),
    ],
    ids=shown,
)
def test_a_payload_that_fits_is_the_very_object(annotation, value):
    """What the annotation allows is not converted and not copied. [B02.2]"""
    assert PayloadType(annotation).from_python(value) is value


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Line, {"sku": "a"}, Line("a")),
        (Line | Point, {"x": 1}, Point(1)),
        (list[int], ["1"], [1]),
        (list[Line], [{"sku": "a"}], [Line("a")]),
        (float, 1, 1.0),
        (Color, "red", Color.RED),
        (Money | None, "1 EUR", None),
        (dict, Line("a"), {"sku": "a", "quantity": 1}),
        (dict[str, Any], Customer(name="c"), {"name": "c", "address": None, "since": None}),
        (dict, Point(1, key=KEY), {"x": 1, "y": 0.0, "key": str(KEY)}),
        (Address, Line("a"), None),
    ],
    ids=shown,
)  # fmt: skip
def test_a_payload_that_does_not_fit_is_converted(annotation, value, expected):
    """A dict becomes the class, an object its JSON form where a dict is taken. [B02.4]"""
    payload_type = PayloadType(annotation)
    if annotation is Address:
        assert refusal_of(payload_type.from_python, value) == [
            ("street", "Field required")
        ]
        return
    read = payload_type.from_python(value)

    if expected is None:
        assert (type(read), read.amount) == (Money, 1)
    else:
        assert read == expected
        assert type(read) is type(expected)


@pytest.mark.parametrize("annotation", [Line, int, list[int], Address, Line | Point])
def test_a_payload_that_is_missing_is_one_error(annotation):
    """None where the annotation does not allow it is said so. [B02.2]"""
    assert refusal_of(PayloadType(annotation).from_python, None) == [
        ("", "the payload is missing")
    ]


def test_a_payload_type_that_takes_anything_reads_json_as_it_is():
    """Without a type JSON becomes dicts, lists and scalars. [B02.3]"""
    for annotation in (Any, object, Any | Line):
        assert PayloadType(annotation).from_json('{"sku": "a"}') == {"sku": "a"}


# Any value to JSON ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        (1.5, 1.5),
        ("é", "é"),
        (mark_safe("<b>"), "<b>"),
        (KEY, str(KEY)),
        (Decimal("1.10"), "1.10"),
        (datetime(2026, 5, 1, 12, 0, 0, 1, tzinfo=UTC), "2026-05-01T12:00:00.000001Z"),
        (date(2026, 5, 1), "2026-05-01"),
        (timedelta(minutes=1), "PT1M"),
        (Color.RED, "red"),
        (Size.LARGE, 2),
        (Status.OPEN, "open"),
        (b"abc", "YWJj"),
        (b"\xff\x00", "/wA="),
        ((1, KEY), [1, str(KEY)]),
        ({1}, [1]),
        (frozenset({Color.RED}), ["red"]),
        (deque([1]), [1]),
        ({KEY: {1: Color.RED}}, {str(KEY): {"1": "red"}}),
        ({Color.RED: 1, date(2026, 5, 1): 2}, {"red": 1, "2026-05-01": 2}),
        ({None: 1, True: 2}, {"null": 1, "true": 2}),
        (Line("a"), {"sku": "a", "quantity": 1}),
        ([Point(1)], [{"x": 1, "y": 0.0, "key": None}]),
        (Customer(name="c"), {"name": "c", "address": None, "since": None}),
        (Money(1, "EUR"), "1 EUR"),
        ({"a": [Money(1, "EUR")]}, {"a": ["1 EUR"]}),
    ],
    ids=shown,
)
def test_any_value_has_a_json_form(value, form):
    """By what it is: no annotation is needed, and the text is that of the form."""
    made = to_jsonable(value)

    assert made == form
    assert json.loads(json.dumps(made)) == made
    assert to_json(value) == json.dumps(form, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    "value",
    [object(), Note(), [object()], {"a": Cash(1, "EUR")}, Path],
    ids=shown,
)
def test_a_value_without_a_json_form_raises(value):
    """What nobody can write is one error, for the form and for the text."""
    for call in (to_jsonable, to_json):
        with pytest.raises(MessageConversionError):
            call(value)


@pytest.mark.parametrize(
    "value", [math.nan, [math.inf], {"a": -math.inf}, "\ud800"], ids=ascii
)
def test_a_value_that_json_cannot_say_has_no_text(value):
    """NaN, infinities and half of a surrogate pair are in no JSON text of ours."""
    with pytest.raises(MessageConversionError, match="it cannot be written as JSON"):
        to_json(value)


def test_a_circle_has_no_json_form():
    """A value that holds itself raises one error."""
    circle = {}
    circle["a"] = [circle]

    for call in (to_jsonable, to_json):
        with pytest.raises(MessageConversionError, match="cannot be written as JSON"):
            call(circle)


# The answer of a query ----------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    sku: str


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (Line("a"), Row, Row("a")),
        ({"sku": "a"}, Row, Row("a")),
        ([Line("a"), {"sku": "b"}], list[Row], [Row("a"), Row("b")]),
        ((each for each in [Line("a")]), list[Row], [Row("a")]),
        ((Line("a"),), tuple[Row, ...], (Row("a"),)),
        (Customer(name="c"), Customer, Customer(name="c")),
        (Note(pk=1, text="t"), dict[str, Any], {"id": 1, "text": "t", "number": 0, "slug": None}),
        ("5", int, 5),
        (None, Row | None, None),
        (Line("a", 2), "application/json", '{"sku":"a","quantity":2}'),
        ([Line("é")], "application/json", '[{"sku":"é","quantity":1}]'),
        ((each for each in [1, 2]), "application/json", "[1,2]"),
        (None, "application/json", "null"),
    ],
    ids=shown,
)  # fmt: skip
def test_a_result_is_converted_to_what_is_asked_for(value, target, expected):
    """returns= gives the class, a list of it, or JSON text. [B04.3]"""
    assert convert_result(value, target) == expected


def test_a_result_that_fits_is_the_very_object():
    """An answer that is of the class already is not copied. [B04.3]"""
    row = Row("a")

    assert convert_result(row, Row) is row


def test_a_result_that_does_not_fit_is_one_error():
    """What does not convert raises with every path. [B04.3]"""
    assert refusal_of(convert_result, [{"sku": "a"}, {}, {"sku": 5}], list[Row]) == [
        ("1.sku", "Field required"),
        ("2.sku", "Input should be a valid string"),
    ]
    assert refusal_of(convert_result, 1, "text/xml") == [
        ("", "the content type 'text/xml' is not supported, application/json is")
    ]


# Imports -------------------------------------------------------------------------------------


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT,
    )


def test_pydantic_is_not_imported_with_the_package():
    """`import django_cqrs` costs no pydantic."""
    result = run_python("import sys, django_cqrs; print('pydantic' in sys.modules)")

    assert (result.stdout, result.stderr) == ("False\n", "")


def test_what_no_handler_needs_is_not_imported_at_start_up():
    """Documents are imported with a class of them, and the graph to check or show it."""
    result = run_python(
        """
import sys
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django_cqrs"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3"}},
)
django.setup()
import django_cqrs
own = {each for each in sys.modules if each.startswith("django_cqrs.")}
print({each.split(".")[1] for each in own} & {"documents", "graph", "shapes", "testing"})
print("pydantic" in sys.modules)
"""
    )

    assert (result.stdout, result.stderr) == ("set()\nFalse\n", "")


def test_adapters_are_made_on_first_use():
    """
    Start-up and commands sent by class need no pydantic; a dict that converts does.

    Objects that are stored as JSON need it: their state is checked when routes are made.
    """
    result = run_python(
        """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
from django.conf import settings
settings.INSTALLED_APPS.remove("tests.modelling")  # it has snapshots
django.setup()
from django_cqrs import query_bus
from tests.testapp.messages import FindTickets
assert query_bus.ask(FindTickets("x")) == ["x"]
print("pydantic" in sys.modules)
from django_cqrs.conversion.payloads import PayloadType
payload_type = PayloadType(FindTickets)
assert payload_type.from_python(FindTickets("x")) == FindTickets("x")
print("pydantic" in sys.modules)
assert payload_type.from_python({"title": "x"}) == FindTickets("x")
print("pydantic" in sys.modules)
"""
    )

    assert (result.stdout, result.stderr) == ("False\nFalse\nTrue\n", "")
