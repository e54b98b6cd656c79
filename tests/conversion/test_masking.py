"""Fields marked Sensitive: where they are found in JSON, and what quotes them in texts."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import quote, quote_plus

import pydantic
import pytest
from typing_extensions import NotRequired, TypedDict

from django_cqrs import Sensitive
from django_cqrs.conversion import converter
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.masking import MASK, masking_of, redactor_of, without_input

Secret = Annotated[str, Sensitive()]
T = TypeVar("T")


@dataclass(frozen=True)
class Card:
    holder: str
    number: Secret
    code: Annotated[int, Sensitive()] = 0


@dataclass(frozen=True)
class GiftCard(Card):
    """Inherits the marks."""

    value: Decimal = Decimal(0)


@dataclass(frozen=True)
class Voucher:
    code: str


@dataclass(frozen=True)
class Branch:
    name: str
    key: Secret
    below: list[Branch] = field(default_factory=list)


class Login(pydantic.BaseModel):
    name: str
    password: Secret = pydantic.Field(alias="pass")
    hint: Annotated[str | None, Sensitive] = None


class Account(pydantic.BaseModel):
    login: Login
    tags: dict[str, str] = {}


class Point(NamedTuple):
    x: int
    y: Annotated[int, Sensitive()]


class Row(TypedDict):
    id: int
    token: NotRequired[Secret]


class Plain:
    """Nothing converts it."""


class Money:
    """Written by a converter."""

    def __init__(self, text: str) -> None:
        self.text = text


@converter
def money_to_json(money: Money) -> str:
    return money.text


@converter
def money_from_json(text: str) -> Money:
    return Money(text)


@dataclass(frozen=True)
class Box(Generic[T]):
    content: T


@dataclass(frozen=True)
class Upper:
    name: Annotated[
        str,
        Sensitive(),
        pydantic.AfterValidator(str.upper),
        pydantic.Field(min_length=1),
    ]
    pin: Annotated[int, pydantic.BeforeValidator(int), Sensitive()]


def masked(target: Any, value: Any) -> Any:
    return masking_of(target).mask(value, lambda _path, _value: MASK)


VALID: list[tuple[Any, Any, Any]] = [
    (
        Card,
        {"holder": "Greta", "number": "4111", "code": 7},
        {"holder": "Greta", "number": MASK, "code": MASK},
    ),
    (
        GiftCard,
        {"holder": "Greta", "number": "4111", "value": "5.00"},
        {"holder": "Greta", "number": MASK, "value": "5.00"},
    ),
    (list[Card], [{"holder": "G", "number": "1"}], [{"holder": "G", "number": MASK}]),
    (
        dict[str, Card],
        {"a": {"holder": "G", "number": "1"}},
        {"a": {"holder": "G", "number": MASK}},
    ),
    (Card | None, None, None),
    (Card | None, {"holder": "G", "number": "1"}, {"holder": "G", "number": MASK}),
    (Card | Voucher, {"code": "X"}, {"code": MASK}),
    (Voucher | int, {"code": "X"}, {"code": "X"}),
    (tuple[int, Secret], [1, "a"], [1, MASK]),
    (tuple[Secret, ...], ["a", "b"], [MASK, MASK]),
    (dict[Secret, int], {"a": 1}, MASK),
    (dict[str, Secret], {"a": "b"}, {"a": MASK}),
    (Secret, "x", MASK),
    (Secret | None, None, MASK),
    (Annotated[Card, Sensitive()], {"holder": "G"}, MASK),
    (
        Branch,
        {"name": "r", "key": "1", "below": [{"name": "s", "key": "2", "below": []}]},
        {"name": "r", "key": MASK, "below": [{"name": "s", "key": MASK, "below": []}]},
    ),
    (
        Account,
        {"login": {"name": "g", "pass": "1", "hint": "dog"}, "tags": {"a": "b"}},
        {"login": {"name": "g", "pass": MASK, "hint": MASK}, "tags": {"a": "b"}},
    ),
    (Point, {"x": 1, "y": 2}, {"x": 1, "y": MASK}),
    (Row, {"id": 1, "token": "t"}, {"id": 1, "token": MASK}),
    (Box[Secret], {"content": "x"}, {"content": MASK}),
    (Box[Money], {"content": "5 EUR"}, {"content": "5 EUR"}),
    (Annotated[Money, Sensitive()], "5 EUR", MASK),
    (Upper, {"name": "g", "pin": 1}, {"name": MASK, "pin": MASK}),
    (Literal["a", "b"] | int, "a", "a"),
    (dict[str, Any], {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
    (Any, [1, "a"], [1, "a"]),
    (pydantic.Json[Card], '{"number": "1"}', MASK),
    (pydantic.Json[int], "1", "1"),
]


@pytest.mark.parametrize(
    ("target", "value", "expected"), VALID, ids=[str(n) for n in range(len(VALID))]
)
def test_marked_values_are_masked_wherever_they_are(target, value, expected):
    """In dataclasses, models, unions, containers; inherited and under aliases."""
    assert masked(target, value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"holder": "G", "pan": "4111"}, {"holder": "G", "pan": MASK}),
        ({"holder": {"number": "4111"}}, {"holder": MASK}),
        ("4111", MASK),
        (["4111"], MASK),
        ({"holder": None}, {"holder": MASK}),
    ],
)
def test_what_the_class_does_not_know_is_masked(value, expected):
    """A key of an older shape, or a value of another kind, may be what was sensitive."""
    assert masked(Card, value) == expected


@pytest.mark.parametrize(
    ("target", "is_marked"),
    [(Card, True), (Account, True), (Voucher, False), (Branch, True), (Plain, True)],
)
def test_a_type_knows_whether_anything_in_it_is_marked(target, is_marked):
    """What cannot be converted cannot be looked into, and counts as marked."""
    assert masking_of(target).is_marked is is_marked


def test_what_cannot_be_converted_says_why():
    """Nothing of it is shown."""
    assert "Plain" in masking_of(Plain).reason
    assert masked(Plain, {"a": 1}) == MASK


def test_a_mark_changes_no_conversion():
    """A marked field is read, checked and written as any other."""
    card = adapter_of(Card).from_json(b'{"holder":"G","number":"4111","code":7}')

    assert card == Card("G", "4111", 7)
    assert adapter_of(Card).to_jsonable(card)["number"] == "4111"
    with pytest.raises(Exception, match="number"):
        adapter_of(Card).from_json(b'{"holder":"G","number":4111}')


def test_the_masker_learns_the_place():
    """The path and the value go to whoever replaces it."""
    found = {}

    def keep(path, value):
        found[path] = value

    masking_of(list[Card]).mask([{"holder": "G", "number": "4111"}], keep)

    assert found == {(0, "number"): "4111"}


REDACTED: list[tuple[Any, str, str]] = [
    ("4111 1111", "card 4111 1111 is bad", f"card {MASK} is bad"),
    ("Greta", "no GRETA here", f"no {MASK} here"),
    ("a'b", 'KeyError: "a\'b"', f'KeyError: "{MASK}"'),
    ("a\nb", "KeyError: 'a\\nb'", f"KeyError: '{MASK}'"),
    ("é", 'said "\\u00e9"', f'said "{MASK}"'),
    (42, "line 142, not 42", f"line 142, not {MASK}"),
    (1.0, "is 1", f"is {MASK}"),
    ("ab", "ab, cab", f"{MASK}, cab"),
    (True, "got True", f"got {MASK}"),
    (None, "got None", "got None"),
    ("", "nothing", "nothing"),
    ("2026-01-02", "datetime.date(2026, 1, 2)", MASK),
    ("PT1H", "after 1:00:00", f"after {MASK}"),
    (
        "01890a5d-ac96-774b-bcce-b302099a8057",
        "of 01890a5dac96774bbcceb302099a8057",
        f"of {MASK}",
    ),
    ({"a": ["secret"]}, "the secret", f"the {MASK}"),
    ("(.*", "a (.* b", f"a {MASK} b"),
]


@pytest.mark.parametrize(("value", "text", "expected"), REDACTED)
def test_texts_lose_what_they_quote(value, text, expected):
    """As JSON has it, as Python writes it, in any case; a short one as a word."""
    assert redactor_of([value])(text) == expected


SECRETS = (
    "ann.b+x@example.com",
    "4111 1111",
    'O\'Neil & "Söhne" <é€😀>',
    "a\\nb/c\nd?",
)
"""Characters that the ways below write differently."""


def _json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _bytes(text: str) -> str:
    return repr(text.encode())[2:-1]


def _hex(text: str) -> str:
    return text.encode().hex()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


WRITINGS: dict[str, Callable[[str], str]] = {
    "percent-encoded": quote,
    "percent-encoded throughout": lambda text: "".join(
        f"%{each:02x}" for each in text.encode()
    ),
    "as a form has it": quote_plus,
    "percent-encoded twice": lambda text: quote(quote(text)),
    "escaped for HTML": html.escape,
    "escaped for HTML by numbers": lambda text: "".join(
        f"&#{ord(each)};" for each in text
    ),
    "escaped for HTML twice": lambda text: html.escape(html.escape(text)),
    "the repr of bytes": _bytes,
    "ASCII alone": lambda text: ascii(text)[1:-1],
    "JSON in JSON": lambda text: _json(_json(text)),
    "JSON in JSON in JSON": lambda text: _json(_json(_json(text))),
    "JSON in a URL": lambda text: quote(_json(text)),
    "the repr of JSON as bytes": lambda text: _bytes(_json(text)),
    "a URL in HTML": lambda text: html.escape(quote_plus(text)),
    "HTML in JSON": lambda text: _json(html.escape(text)),
    "JSON for scripts": lambda text: (
        _json(text)
        .replace("<", "\\u003C")
        .replace(">", "\\u003E")
        .replace("&", "\\u0026")
    ),
    "hex": _hex,
    "hex in capitals": lambda text: _hex(text).upper(),
    "hex with colons": lambda text: text.encode().hex(":"),
    "hex of JSON": lambda text: _hex(json.dumps({"number": text})),
    "base64": _base64,
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 of what it ends": lambda text: _base64(f"user:{text}"),
    "base64 of what it is in": lambda text: _base64(f"x{text}y"),
    "base64 of JSON": lambda text: _base64(json.dumps({"number": text})),
    "base64 in a URL": lambda text: quote(_base64(text)),
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("writing", WRITINGS)
def test_texts_lose_what_can_be_read_back(writing, secret):
    """Libraries quote a value as they send it: in a URL, a page, a header, a log."""
    written = WRITINGS[writing](secret)

    shown = redactor_of([secret])(f"refused: <{written}>, ask them")

    assert shown.startswith("refused: <")
    assert shown.endswith(">, ask them")
    assert MASK in shown
    for part in re.findall(r"[0-9A-Za-z]{4,}", written):
        assert part not in shown or part in _hex(json.dumps({"number": ""}))
    assert secret not in shown


def test_what_stands_around_an_escape_is_shown():
    """Only the value goes, not the text it stands in."""
    text = "GET https://mail.test/x?to=ann%40example.com&cc=bob%40example.com failed"

    assert redactor_of(["ann@example.com"])(text) == (
        f"GET https://mail.test/x?to={MASK}&cc=bob%40example.com failed"
    )


def test_a_text_without_the_value_is_as_it_was():
    """Escapes of other things stay as they are."""
    text = "50% of &lt;b&gt;, C:\\new, %41, \\u00e9, aGVsbG8gd29ybGQ=, 68656c6c6f"

    assert redactor_of(["secret", 7, "2026-01-02"])(text) == text


def test_bytes_are_found_as_python_writes_them():
    """JSON has bytes in base64; an error quotes their repr."""
    content = b"\x89PNG\r\n"

    assert redactor_of([base64.b64encode(content).decode()])(f"no {content!r}") == (
        f"no b'{MASK}'"
    )


def test_several_values_are_masked_the_longest_first():
    """One value that begins another leaves nothing of it."""
    assert redactor_of(["secret", "secretary"])("secretary") == MASK


def test_pydantic_tells_no_input():
    """What pydantic quotes, shortened in the middle, is masked whole."""
    try:
        pydantic.TypeAdapter(Card).validate_python(
            {"holder": "x" * 80, "number": ["4111 1111 1111 1111" * 3]}
        )
    except pydantic.ValidationError as error:
        text = str(error)

    assert "4111" in text
    assert "4111" not in without_input(text)
    assert "input_type=list" in without_input(text)


def test_dates_are_found_as_python_writes_them():
    """The conversion of the test above is that of the message."""
    value = adapter_of(date).from_json(b'"2026-01-02"')

    assert redactor_of(["2026-01-02"])(f"{value!r} {value}") == f"{MASK} {MASK}"


def test_it_is_annotated_with_or_without_parentheses():
    """Sensitive and Sensitive() mean the same."""
    found: Callable[[Any], Any] = lambda target: masked(target, "x")  # noqa: E731

    assert (
        found(Annotated[str, Sensitive]) == found(Annotated[str, Sensitive()]) == MASK
    )


def test_json_of_any_depth_is_no_crash():
    """What is too deep raises what callers expect of deep JSON."""
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]

    with pytest.raises(RecursionError):
        masked(Any, deep)
    assert json.dumps(masked(Secret, deep)) == json.dumps(MASK)
