"""A handler sees the same object, whether it is called at once or behind a channel."""

import dataclasses
import functools
from collections import defaultdict, deque
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pydantic
import pytest
from django.db import models
from django.utils.safestring import mark_safe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import NotRequired, TypedDict

from django_cqrs import Registry, command_handler, message
from django_cqrs.conversion import converter
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.testing import Flow

pytestmark = pytest.mark.django_db

CHANNELS = {
    "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
    "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
}
BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")


@pytest.fixture(autouse=True)
def _channels(settings):
    settings.DJANGO_CQRS = {"CHANNELS": CHANNELS}


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


class Shade(StrEnum):
    DARK = "dark"


class Status(models.TextChoices):
    OPEN = "open", "Open"


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Money:
    def __init__(self, cents, currency):
        self.cents, self.currency = cents, currency

    def __eq__(self, other):
        return type(other) is Money and vars(self) == vars(other)

    __hash__ = None


@converter
def money_to_text(money: Money) -> str:
    return f"{money.cents} {money.currency}"


@converter
def text_to_money(text: str) -> Money:
    cents, _, currency = text.partition(" ")
    return Money(int(cents), currency)


@dataclass(frozen=True, slots=True)
class Line:
    sku: str
    ratio: float = 1.0


@dataclass
class Numbered:
    """Has fields that its constructor does not take."""

    text: str = ""
    key: UUID = field(init=False, default_factory=uuid4)
    length: int = field(init=False)
    at: datetime | None = field(init=False, default=None)

    def __post_init__(self):
        self.length = len(self.text)
        self.at = datetime.now(BERLIN)


class Point(NamedTuple):
    x: float
    y: Decimal = Decimal(0)


class Address(TypedDict):
    street: str
    number: NotRequired[float]


class Patch(pydantic.BaseModel):
    """What a client wants to change: what it does not name stays as it is."""

    name: str | None = None
    when: datetime | None = None
    lines: list["Patch"] = []
    key: UUID = pydantic.Field(default_factory=uuid4)


def anatomy(value):
    """Return all that there is to tell of a value, types and zones and all."""
    cls = type(value)
    if isinstance(value, (datetime, time)):
        zone = value.tzinfo
        said = getattr(zone, "key", None) or str(zone)
        return cls, value.replace(tzinfo=None), value.fold, type(zone), said
    if isinstance(value, Enum):
        return cls, value.name
    if isinstance(value, pydantic.BaseModel):
        return cls, value.model_fields_set, anatomy(dict(sorted(vars(value).items())))
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        parts = {name: getattr(value, name, "nothing") for name in names}
        parts |= getattr(value, "__dict__", {})
        return cls, anatomy(dict(sorted(parts.items())))
    if isinstance(value, dict):
        return cls, [(anatomy(key), anatomy(each)) for key, each in value.items()]
    if isinstance(value, (set, frozenset)):
        return cls, sorted(map(repr, map(anatomy, value)))
    if isinstance(value, (list, tuple, deque)):
        return cls, [anatomy(each) for each in value]
    if isinstance(value, Money):
        return cls, anatomy(vars(value))
    return cls, repr(value)


def outcomes(payload, annotation=None):
    """
    Return what one handler body sees of a payload, by each way to it.

    An error of the send stands for what was seen.
    """
    seen = []
    registry = Registry()
    for way in ("at_once", *CHANNELS):

        def handle(command):
            seen.append(command)

        handle.__annotations__ = {"command": annotation or type(payload)}
        handle.__qualname__ = handle.__name__ = way
        channel = None if way == "at_once" else way
        registry.add(command_handler(way, name=way, channel=channel)(handle))
    found = {}
    for way in ("at_once", *CHANNELS):
        seen.clear()
        try:
            registry.command_bus.dispatch(payload, route=way)
        except MessageConversionError as error:
            found[way] = error
            continue
        if way != "at_once":
            Flow(registry=registry).run(way)
        found[way] = anatomy(*seen)
    return found


def assert_same(payload, annotation=None):
    """Assert that all ways agree, or that the channels refuse what is at fault."""
    found = outcomes(payload, annotation)
    expected = found.pop("at_once")
    for way, seen in found.items():
        if isinstance(seen, MessageConversionError):
            assert "would not come back" in str(seen) or "be written" in str(seen), way
        else:
            assert seen == expected, way


# All annotations of docs/reference/conversion.md, and what one may find under them ------

zones = st.sampled_from(
    [
        None,
        UTC,
        BERLIN,
        LORD_HOWE,
        ZoneInfo("UTC"),
        ZoneInfo.no_cache("Europe/Berlin"),
        timezone(timedelta(hours=5, minutes=30)),
        timezone(timedelta(hours=1), "MEZ"),
        timezone(timedelta(seconds=3661)),
    ]
)
folds = st.sampled_from([0, 1])
odd_hours = st.sampled_from(
    [
        datetime.fromisoformat(each)
        for each in (
            "2026-10-25T02:30:00",  # twice in Berlin
            "2026-03-29T02:30:00",  # never in Berlin
            "2026-04-05T01:45:00",  # twice on Lord Howe Island
            "1890-01-01T00:00:00",  # before there were zones
            "0001-01-01T00:00:00",
            "9999-12-31T23:59:59.999999",
        )
    ]
)
moments = st.builds(
    lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold),
    st.datetimes() | odd_hours,
    zones,
    folds,
)
clocks = st.builds(
    lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold), st.times(), zones, folds
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
texts = words | st.sampled_from(
    [Shade.DARK, Status.OPEN, Text("x"), mark_safe("<b>"), "2026-05-01", "eA==", "1"]
)
whole = st.integers() | st.sampled_from([True, Size.SMALL, Number(3), 2**70])
real = st.floats(allow_nan=False, allow_infinity=False) | whole
decimals = st.decimals(allow_nan=False, allow_infinity=False)
lines = st.builds(Line, words, real)
patches = st.deferred(
    lambda: st.builds(
        lambda values: Patch(**values),
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.none() | words,
                "when": st.none() | moments,
                "lines": st.lists(patches, max_size=2),
                "key": st.uuids(),
            },
        ),
    )
)

LEAVES = [
    (str, texts),
    (int, whole),
    (float, real),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=8)),
    (Decimal, decimals),
    (UUID, st.uuids()),
    (date, st.dates()),
    (datetime, moments),
    (time, clocks),
    (timedelta, st.timedeltas()),
    (Color, st.sampled_from(Color)),
    (Size, st.sampled_from(Size)),
    (Shade, st.sampled_from(Shade)),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (PurePosixPath, words.filter(bool).map(PurePosixPath)),
    (Money, st.builds(Money, st.integers(), words.filter(lambda each: " " not in each))),
    (Line, lines),
    (Numbered, st.builds(Numbered, words)),
    (Point, st.builds(Point, real, decimals)),
    # The keys of a TypedDict come back in the order of its declaration.
    (
        Address,
        st.fixed_dictionaries({"street": texts}, optional={"number": real}).map(
            lambda value: dict(sorted(value.items(), reverse=True))
        ),
    ),
    (Patch, patches),
    (int | str, st.integers() | texts),
    (float | int, real),
    (str | bytes, texts | st.binary(max_size=4)),
    (bytes | str, texts | st.binary(max_size=4)),
    (datetime | date, moments | st.dates()),
    (Line | Patch, lines | patches),
    (Any, st.none() | texts | real | st.lists(texts, max_size=2) | st.dates()),
    (Annotated[float, pydantic.Field(ge=0)], st.floats(0, 100) | st.integers(0, 100)),
    (Annotated[bytes, pydantic.Field(max_length=3)], st.binary(max_size=3)),
]  # fmt: skip

hashable = (str, int, float, UUID, date, Color, bytes, Decimal, datetime)


def in_containers(annotation, values):
    """Return an annotation and its values, alone and in containers, to choose from."""
    yield annotation, values
    yield annotation | None, st.none() | values
    yield list[annotation], st.lists(values, max_size=3)
    yield tuple[annotation, ...], st.lists(values, max_size=3).map(tuple)
    yield dict[str, annotation], st.dictionaries(words, values, max_size=2)
    yield deque[annotation], st.lists(values, max_size=2).map(deque)
    if annotation in hashable:
        yield set[annotation], st.sets(values, max_size=3)
        yield frozenset[annotation], st.frozensets(values, max_size=3)
        yield dict[annotation, int], st.dictionaries(values, st.integers(), max_size=2)


FIELDS = [
    each
    for annotation, values in LEAVES
    for each in in_containers(annotation, values)
    if each[0] is not Any | None
]


@functools.cache
def class_of(kind, annotations):
    """Return a message class of a kind, its fields named by the letters."""
    named = dict(zip("abcdefgh", annotations, strict=False))
    name = f"Generated{kind.title()}"
    if kind == "model":
        made = pydantic.create_model(name, **{k: (v, ...) for k, v in named.items()})
    elif kind == "frozen":
        made = make_dataclass(name, named.items(), frozen=True, slots=True)
    elif kind == "late":
        late = ("key", UUID, field(init=False, default_factory=uuid4))
        made = make_dataclass(name, [*named.items(), late], kw_only=True)
    else:
        nothing = {"__post_init__": lambda self: None}
        made = make_dataclass(name, named.items(), namespace=nothing)
    return message(f"generated.{kind}.{len(annotations)}.{id(made)}")(made)


@st.composite
def payloads(draw):
    """Draw a message class and one of its objects."""
    indices = draw(st.lists(st.integers(0, len(FIELDS) - 1), min_size=1, max_size=3))
    kind = draw(st.sampled_from(["frozen", "post_init", "late", "model"]))
    cls = class_of(kind, tuple(FIELDS[each][0] for each in indices))
    values = {
        name: draw(FIELDS[each][1]) for name, each in zip("abc", indices, strict=False)
    }
    if kind == "model":
        try:
            return cls(**values)
        except pydantic.ValidationError:  # it makes another value of it, or refuses it
            return cls.model_construct(**values)
    return cls(**values)


@pytest.mark.long
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(payload=payloads())
def test_any_message_is_the_same_on_all_ways_or_refused_at_the_send(payload):
    """All annotations of the conversion's page, whatever Python lets stand there."""
    assert_same(payload)


@dataclass
class Holder:
    at: datetime | None = None
    clock: time | None = None
    by_moment: dict[datetime, int] = field(default_factory=dict)
    ratio: float = 0.0
    ratios: list[float] = field(default_factory=list)
    raw: bytes = b""
    raw_or_text: bytes | str = ""
    text: str = ""
    numbered: Numbered | None = None
    patch: Patch | None = None
    mapping: dict[str, int] = field(default_factory=dict)


message("both_ways.holder")(Holder)
TWICE = datetime.fromisoformat("2026-10-25T02:30:00")


# What is kept -------------------------------------------------------------------------

KEPT = {
    "a naive time that is twice": {"at": TWICE.replace(fold=1)},
    "a zone": {"at": TWICE.replace(tzinfo=BERLIN)},
    "a time that is twice": {"at": TWICE.replace(tzinfo=BERLIN, fold=1)},
    "a time that is not": {"at": datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)},
    "another such": {"at": datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN, fold=1)},
    "a fold without a meaning": {"at": datetime(2026, 5, 1, tzinfo=BERLIN, fold=1)},
    "an offset with seconds": {"at": datetime(1890, 1, 1, tzinfo=BERLIN)},
    "a fixed offset": {
        "at": datetime(2026, 5, 1, tzinfo=timezone(timedelta(seconds=3661)))
    },
    "UTC": {"at": datetime(2026, 5, 1, tzinfo=UTC)},
    "the zone of UTC": {"at": datetime(2026, 5, 1, tzinfo=ZoneInfo("UTC"))},
    "a key with a zone": {"by_moment": {TWICE.replace(tzinfo=BERLIN): 1}},
    "a time of day with a zone": {"clock": time(2, 30, tzinfo=BERLIN)},
    "a time of day with a fold": {"clock": time(2, 30, fold=1)},
    "a time of day with an offset": {
        "clock": time(2, 30, tzinfo=timezone(timedelta(hours=2)))
    },
    "a whole number": {"ratio": 3},
    "a negative zero": {"ratio": -0.0},
    "a large whole number": {"ratio": 2**53},
    "numbers of both kinds": {"ratios": [1, 1.0, 2]},
    "bytes of text": {"raw": b"abc"},
    "bytes of a picture": {"raw": b"\x89PNG\r\n\x00\xff"},
    "text that may be bytes": {"raw_or_text": "eA=="},
    "text that cannot be": {"raw_or_text": "no base64"},
    "text like a zone": {"text": "[Europe/Berlin]"},
    "text like the end of one": {"text": '"]"'},
    "a plain time beside such text": {"at": TWICE, "text": "]"},
    "a plain time beside one with a zone": {
        "at": TWICE.replace(tzinfo=UTC),
        "clock": time(2, 30, tzinfo=BERLIN),
    },
    "a time of day beside a zone": {
        "at": TWICE.replace(tzinfo=BERLIN),
        "clock": time(2, 30),
    },
    "fields that init does not take": {"numbered": Numbered("abc")},
    "a model of which nothing is given": {"patch": Patch()},
    "a model with its default given": {"patch": Patch(name=None)},
    "models within a model": {
        "patch": Patch(lines=[Patch(), Patch(name="x"), Patch(when=TWICE)])
    },
}


@pytest.mark.parametrize("given", KEPT.values(), ids=KEPT.keys())
def test_a_channel_keeps_what_json_does_not_say(given):
    """Zones, folds, whole numbers, bytes, and which fields of a model were given."""
    found = outcomes(Holder(**given))

    assert found["memory"] == found["outbox"] == found["at_once"]


def test_a_patch_changes_only_what_was_sent():
    """``exclude_unset`` says the same in a worker as in the request."""
    message("both_ways.patch")(Patch)
    seen = []

    registry = Registry()
    for way in CHANNELS:

        def change(command: Patch) -> None:
            seen.append(command.model_dump(exclude_unset=True))

        registry.add(command_handler(way, name=way, channel=way)(change))
        registry.command_bus.dispatch(Patch(name="Ann"), route=way)
        Flow(registry=registry).run(way)

    assert seen == [{"name": "Ann"}, {"name": "Ann"}]


def test_a_duplicate_gets_the_answer_with_the_fields_that_were_given():
    """What is kept for duplicates is the first answer, its unset fields included."""
    registry = Registry()

    @command_handler("patch", idempotency_key=lambda message: "once")
    def patch(name: str) -> list[Patch]:
        return [Patch(name=name), Patch(lines=[Patch()]), Patch(key=UUID(int=7))]

    registry.add(patch)
    first = registry.command_bus.dispatch("Ann", route="patch")
    again = registry.command_bus.dispatch("Bob", route="patch")

    assert anatomy(again) == anatomy(first)


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (float, 1),
        (bytes, b"\xff"),
        (datetime, TWICE.replace(tzinfo=BERLIN, fold=1)),
        (list[datetime], [TWICE.replace(fold=1)]),
        (list[Patch], [Patch(name="x"), Patch()]),
        (dict[UUID, Patch], {UUID(int=7): Patch(name="x")}),
    ],
    ids=["float", "bytes", "datetime", "list", "models", "models by key"],
)
def test_a_plain_value_is_the_same_on_all_ways(annotation, payload):
    """A payload without a class of its own is read by the handler's annotation."""
    found = outcomes(payload, annotation)

    assert found["memory"] == found["outbox"] == found["at_once"]


NO_ZONE = (
    "JSON keeps only a zoneinfo.ZoneInfo that has a key, or a datetime.timezone "
    "without a name of its own"
)


def plainly(given, annotated):
    """Return what is said of an object of a narrower class than its field's."""
    return (
        f"{given} comes back as {annotated}: annotate the field as {given}, or send a "
        f"plain {annotated}"
    )


# What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "path", "reason"),
    [
        ({"text": Shade.DARK}, "text", plainly("Shade", "str")),
        ({"text": mark_safe("<b>")}, "text", plainly("SafeString", "str")),
        ({"ratio": True}, "ratio", plainly("bool", "float")),
        ({"mapping": {Shade.DARK: 1}}, "mapping", None),
        ({"mapping": {"a": Size.SMALL}}, "mapping.a", plainly("Size", "int")),
        ({"mapping": defaultdict(int)}, "mapping", plainly("defaultdict", "dict")),
        ({"at": datetime(2026, 5, 1, tzinfo=timezone(timedelta(hours=1), "MEZ"))}, "at",
         NO_ZONE),
    ],
    ids=["enum", "safe text", "bool", "key", "value", "mapping", "zone"],
)  # fmt: skip
def test_what_would_come_back_as_another_is_refused_at_the_send(given, path, reason):
    """The error names the field, what it holds, and what to do; nothing is sent."""
    found = outcomes(Holder(**given))

    why = f" ({reason})" if reason else ""
    for way in CHANNELS:
        assert str(found[way]) == (
            f"Cannot convert the payload to Holder: {path}: it would not come back "
            f"from JSON unchanged{why}."
        )


def test_what_an_object_holds_beside_its_fields_is_refused():
    """A note on the object would be lost; a value that is cached is made anew."""

    @message("both_ways.noted")
    @dataclass
    class Noted:
        number: int = 0

        @functools.cached_property
        def double(self):
            return self.number * 2

    cached, noted = Noted(1), Noted(1)
    assert cached.double == 2
    noted.note = "x"

    assert not isinstance(outcomes(cached)["memory"], MessageConversionError)
    assert str(outcomes(noted)["memory"]) == (
        "Cannot convert the payload to Noted: note: it would not come back from JSON "
        "unchanged (it is not a field of its class)."
    )


def test_a_field_that_is_made_anew_without_a_default_is_refused():
    """pydantic does not write a field that neither ``__init__`` nor a default fills."""

    @message("both_ways.drawn")
    @dataclass
    class Drawn:
        key: UUID = field(init=False)

        def __post_init__(self):
            self.key = uuid4()

    assert str(outcomes(Drawn())["outbox"]) == (
        "Cannot convert the payload to Drawn: key: it would not come back from JSON "
        "unchanged (it would be created anew: JSON keeps an attribute that __init__ "
        "does not take only if it has a default)."
    )


def test_fields_that_init_does_not_take_are_closed_to_others():
    """A channel restores them; nobody sets them by a body or a dict."""
    registry = Registry()

    @command_handler("number")
    def number(command: Numbered) -> Numbered:
        return command

    registry.add(number)
    text = '{"text": "abc", "key": "00000000-0000-0000-0000-000000000001", "length": 9}'
    made = registry.command_bus.dispatch(
        text, route="number", content_type="application/json"
    )

    assert (made.text, made.length) == ("abc", 3)
    assert made.key != UUID(int=1)


def test_a_zone_that_is_not_known_here_is_an_error_of_its_field():
    """A worker may have fewer zones than the sender."""
    from django_cqrs.conversion.adapters import adapter_of

    text = b'{"at": "2026-05-01T12:00:00+02:00[Mars/Olympus]"}'
    with pytest.raises(MessageConversionError) as caught:
        adapter_of(Holder).from_stored_json(text)

    (fault,) = caught.value.errors
    assert (fault.path, fault.message) == ("at", "Input's time zone is not known here")


def test_a_zone_whose_rules_have_changed_keeps_the_moment():
    """The sender's tables may be older: the moment counts, not the clock on the wall."""
    from django_cqrs.conversion.adapters import adapter_of

    text = b'{"at": "2026-05-01T12:00:00+05:00[Europe/Berlin]"}'
    read = adapter_of(Holder).from_stored_json(text).at

    assert read == datetime(2026, 5, 1, 7, tzinfo=UTC)
    assert read.tzinfo is BERLIN


def test_bytes_are_base64_in_every_form():
    """JSON text, a dict, and the JSON form of an object say the same."""
    registry = Registry()

    @dataclass
    class Scan:
        raw: bytes

    @command_handler("scan")
    def scan(command: Scan) -> bytes:
        return command.raw

    @command_handler("scan.form")
    def form(command: dict) -> dict:
        return command

    for each in (scan, form):
        registry.add(each)
    dispatch = registry.command_bus.dispatch
    as_dict = dispatch(Scan(b"\x89PNG"), route="scan.form")

    assert as_dict == {"raw": "iVBORw=="}
    assert dispatch(as_dict, route="scan") == b"\x89PNG"
    assert dispatch({"raw": b"\x89PNG"}, route="scan") == b"\x89PNG"
    text = '{"raw": "iVBORw=="}'
    assert dispatch(text, route="scan", content_type="application/json") == b"\x89PNG"
    with pytest.raises(MessageConversionError) as caught:
        dispatch({"raw": "no base64"}, route="scan")
    assert caught.value.errors[0].message == "Input should be bytes as base64 text"


def test_a_class_that_says_how_it_writes_bytes_is_left_alone():
    """pydantic's own settings and types hold."""

    class Hexed(pydantic.BaseModel):
        model_config = {"ser_json_bytes": "hex", "val_json_bytes": "hex"}
        raw: bytes

    class Encoded(pydantic.BaseModel):
        raw: pydantic.Base64Bytes

    from django_cqrs.conversion.adapters import adapter_of

    assert adapter_of(Hexed).from_json('{"raw": "ff"}').raw == b"\xff"
    assert adapter_of(Hexed).to_json(Hexed(raw=b"\xff")) == b'{"raw":"ff"}'
    assert adapter_of(Encoded).from_json('{"raw": "eA=="}').raw == b"x"
    for payload in (Hexed(raw=b"\xff"), Encoded(raw=b"eA==")):
        message(f"both_ways.{type(payload).__name__}")(type(payload))
        found = outcomes(payload)
        assert found["memory"] == found["outbox"] == found["at_once"]


def test_a_message_with_what_is_for_init_alone_is_refused():
    """An InitVar is not kept by the object, so no text can hold it."""

    @message("both_ways.scaled")
    @dataclass
    class Scaled:
        number: int
        scale: InitVar[int] = 1

        def __post_init__(self, scale):
            self.number *= scale

    assert not isinstance(outcomes(Scaled(2))["memory"], MessageConversionError)
    assert not isinstance(outcomes(Scaled(2, 3))["memory"], MessageConversionError)
