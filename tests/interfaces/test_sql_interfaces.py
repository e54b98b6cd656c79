"""Methods of business interfaces that are statements of SQL."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, Protocol
from uuid import UUID, uuid4

import pydantic
import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, connection, connections, transaction
from typing_extensions import TypedDict  # of typing only from Python 3.12 on

from django_cqrs import Registry, command_handler
from django_cqrs.checks import check_registry
from django_cqrs.conversion import converter
from django_cqrs.exceptions import (
    InvalidHandler,
    MessageConversionError,
    ParameterError,
    SynchronousDispatch,
    UnexpectedResult,
)
from django_cqrs.modelling import (
    Json,
    business_interface,
    business_method,
    implement,
    sql_query,
    sql_write,
)
from tests.testapp.models import Note, Reading

database = pytest.mark.database


class Level(enum.Enum):
    LOW = 1
    HIGH = 20


@dataclass(frozen=True)
class Money:
    amount: Decimal


@converter
def money_to_text(money: Money) -> str:
    return str(money.amount)


@converter
def money_of_text(text: str) -> Money:
    return Money(Decimal(text))


@dataclass(frozen=True)
class Tags:
    names: tuple[str, ...]


@converter
def tags_to_list(tags: Tags) -> list[str]:
    return list(tags.names)


@converter
def tags_of_list(names: list[str]) -> Tags:
    return Tags(tuple(names))


@dataclass(frozen=True)
class Sku:
    """A value object that says what it is as text."""

    number: int

    def __str__(self) -> str:
        return f"SKU-{self.number}"


@dataclass(frozen=True)
class Page:
    limit: int
    offset: int = 0


@dataclass(frozen=True)
class NoteRow:
    number: int
    text: str


class NoteModel(pydantic.BaseModel):
    number: int
    text: str


class NoteTuple(NamedTuple):
    number: int
    text: str


class NoteDict(TypedDict):
    number: int
    text: str


@dataclass(frozen=True)
class Details:
    colour: str
    sizes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ReadingRow:
    place: str
    token: UUID | None
    amount: Decimal | None
    taken_at: datetime | None
    day: date | None
    clock: time | None
    is_valid: bool | None
    details: Details | None


@business_interface
class Notes(Protocol):
    """Everything that the tests below ask of the table of notes."""

    @sql_write("INSERT INTO testapp_note (text, number) VALUES (%(text)s, %(number)s)")
    def add(self, text: str, number: int = 0) -> None: ...

    @sql_write(
        "UPDATE testapp_note SET number = number + %(by)s WHERE number > %(over)s"
    )
    def raise_numbers(self, *, over: int, by: int = 1) -> int: ...

    @sql_write("UPDATE testapp_note SET text = text WHERE number >= 0")
    def touch(self) -> int: ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def dicts(self) -> list[dict[str, Any]]: ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def plain(self): ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def typed_dicts(self) -> Sequence[NoteDict]: ...

    @sql_query("SELECT text, number FROM testapp_note ORDER BY number DESC")
    def texts(self) -> list[str]: ...

    @sql_query("SELECT number FROM testapp_note")
    def numbers(self) -> set[int]: ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def pairs(self) -> list[tuple[int, str]]: ...

    @sql_query("SELECT number FROM testapp_note ORDER BY number")
    def as_tuple(self) -> tuple[int, ...]: ...

    @sql_query("SELECT COUNT(*) FROM testapp_note")
    def count(self) -> int: ...

    @sql_query("SELECT EXISTS (SELECT 1 FROM testapp_note WHERE text = %(text)s)")
    def has(self, text: str) -> bool: ...

    @sql_query("SELECT MAX(number) FROM testapp_note")
    def highest(self) -> int | None: ...

    @sql_query("SELECT MAX(number) FROM testapp_note")
    def surely_highest(self) -> int: ...

    @sql_query("SELECT number, text FROM testapp_note WHERE number = %(number)s")
    def get(self, number: int) -> NoteRow: ...

    @sql_query("SELECT number, text FROM testapp_note WHERE number = %(number)s")
    def find(self, number: int) -> NoteRow | None: ...

    @sql_query("SELECT number, text FROM testapp_note WHERE number = %(number)s")
    def find_dict(self, number: int) -> dict[str, Any] | None: ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def rows(self) -> list[NoteRow]: ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def models(self) -> list[NoteModel]: ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def tuples(self) -> list[NoteTuple]: ...

    @sql_query("SELECT number, text FROM testapp_note ORDER BY number")
    def each(self) -> Iterator[NoteRow]: ...

    @sql_query("SELECT number FROM testapp_note ORDER BY number")
    def each_number(self) -> Iterator[int]: ...

    @sql_query("SELECT number FROM testapp_note WHERE number IN %(of)s ORDER BY number")
    def among(self, of: Sequence[int]) -> list[int]: ...

    @sql_query(
        "SELECT number FROM testapp_note "
        "WHERE number not  in (%(of)s) AND number >= 0 ORDER BY number"
    )
    def apart_from(self, of: Sequence[int]) -> list[int]: ...

    @sql_query("SELECT number FROM testapp_note WHERE NOT (slug IN %(slugs)s)")
    def slugged_otherwise(self, slugs: list[str]) -> list[int]: ...

    @sql_query("SELECT number FROM testapp_note WHERE slug NOT IN %(slugs)s")
    def slugged_outside(self, slugs: list[str]) -> list[int]: ...

    @sql_query("SELECT text FROM testapp_note WHERE text IN (%(one)s, %(other)s)")
    def either(self, one: str, other: str) -> list[str]: ...

    @sql_query(
        "SELECT text FROM testapp_note WHERE text LIKE '%%a%%' OR text = '100%%'"
    )
    def with_a(self) -> list[str]: ...

    @sql_query(
        "SELECT text FROM testapp_note WHERE text LIKE %(begin)s OR text LIKE '%%z'"
    )
    def beginning(self, begin: str) -> list[str]: ...

    @sql_query(
        "SELECT number FROM testapp_note ORDER BY number "
        "LIMIT %(page.limit)s OFFSET %(page.offset)s"
    )
    def page(self, page: Page) -> list[int]: ...

    @sql_query("SELECT number FROM testapp_note WHERE number IN %(levels)s")
    def at_levels(self, levels: list[Level]) -> list[Level]: ...

    @sql_query("SELECT number, number FROM testapp_note")
    def twice(self) -> list[dict[str, Any]]: ...

    @sql_query("SELECT number FROM testapp_note WHERE text = %(sku)s OR slug = %(sku)s")
    def by_sku(self, sku: Sku) -> list[int]: ...


@business_interface
class Readings(Protocol):
    """One column of every type."""

    @sql_write(
        "INSERT INTO testapp_reading (place, token, amount, taken_at, day, clock,"
        " lasted, is_valid, details, octets) VALUES (%(place)s, %(token)s, %(amount)s,"
        " %(taken_at)s, %(day)s, %(clock)s, %(lasted)s, %(is_valid)s, %(details)s,"
        " %(octets)s)"
    )
    def add(  # noqa: PLR0917 - as many columns as there are types
        self,
        place: str,
        token: UUID | None = None,
        amount: Decimal | Money | None = None,
        taken_at: datetime | None = None,
        day: date | None = None,
        clock: time | None = None,
        lasted: timedelta | None = None,
        is_valid: bool | None = None,
        details: Annotated[Any, Json()] = None,
        octets: bytes | None = None,
    ) -> None: ...

    @sql_query(
        "SELECT place, token, amount, taken_at, day, clock, is_valid, details"
        " FROM testapp_reading WHERE place = %(place)s"
    )
    def get(self, place: str) -> ReadingRow: ...

    @sql_query("SELECT place FROM testapp_reading WHERE token IN %(tokens)s")
    def by_tokens(self, tokens: list[UUID]) -> list[str]: ...

    @sql_query(
        "SELECT place FROM testapp_reading WHERE taken_at < %(before)s ORDER BY place"
    )
    def before(self, before: datetime) -> list[str]: ...

    @sql_query("SELECT MIN(taken_at) FROM testapp_reading")
    def first(self) -> datetime | None: ...

    @sql_query("SELECT place FROM testapp_reading WHERE amount > %(amount)s")
    def dearer(self, amount: Decimal) -> list[str]: ...

    @sql_query("SELECT place FROM testapp_reading WHERE lasted > %(lasted)s")
    def longer(self, lasted: timedelta) -> list[str]: ...

    @sql_write("UPDATE testapp_reading SET details = %(details)s")
    def describe(self, details: dict[str, Any]) -> int: ...

    @sql_write("UPDATE testapp_reading SET details = %(tags)s")
    def tag(self, tags: Tags) -> int: ...


notes = implement(Notes)
readings = implement(Readings)


def write_some():
    notes.add("apple", 1)
    notes.add("pear", number=2)
    notes.add("fig", 3)


# ----------------------------------------------------------------------------- M13.1


@database
@pytest.mark.django_db
def test_a_write_returns_none_or_the_rows_changed():
    """A write returns None, or how many rows it found, whether they differ now. [M13.1]"""
    assert notes.add("apple", 1) is None
    assert notes.add(text="pear") is None
    assert notes.raise_numbers(over=0, by=5) == 1
    assert notes.raise_numbers(over=100) == 0
    assert notes.touch() == 2
    assert list(Note.objects.order_by("number").values_list("text", "number")) == [
        ("pear", 0),
        ("apple", 6),
    ]


@pytest.mark.django_db
def test_arguments_are_those_of_the_signature():
    """A wrong call raises the TypeError of a function, with the method's name. [M13.1]"""
    with pytest.raises(
        TypeError, match=r"^Notes\.add\(\): missing a required .*'text'"
    ):
        notes.add()
    with pytest.raises(TypeError, match=r"^Notes\.count\(\): too many positional"):
        notes.count(1)
    with pytest.raises(TypeError, match=r"^Notes\.raise_numbers\(\): too many"):
        notes.raise_numbers(1, 2)


# ----------------------------------------------------------------------------- M13.2


@database
@pytest.mark.django_db
def test_rows_become_what_the_annotation_says():
    """Rows are dicts, first columns, tuples, or objects of a class with fields. [M13.2]"""
    write_some()
    whole = [
        {"number": 1, "text": "apple"},
        {"number": 2, "text": "pear"},
        {"number": 3, "text": "fig"},
    ]

    assert notes.dicts() == notes.plain() == notes.typed_dicts() == whole
    assert notes.texts() == ["fig", "pear", "apple"]
    assert notes.numbers() == {1, 2, 3}
    assert notes.pairs() == [(1, "apple"), (2, "pear"), (3, "fig")]
    assert notes.as_tuple() == (1, 2, 3)
    assert notes.rows() == [NoteRow(**row) for row in whole]
    assert notes.models() == [NoteModel(**row) for row in whole]
    assert notes.tuples() == [NoteTuple(**row) for row in whole]


@database
@pytest.mark.django_db
def test_scalars_and_single_rows():
    """A scalar is the first column of the one row; a row becomes an object or a dict. [M13.2]"""
    write_some()

    assert notes.count() == 3
    assert notes.has("pear") is True
    assert notes.has("plum") is False
    assert notes.highest() == 3
    assert notes.get(2) == notes.find(2) == NoteRow(2, "pear")
    assert notes.find_dict(2) == {"number": 2, "text": "pear"}


@database
@pytest.mark.django_db
def test_no_row_and_several():
    """An optional row may be missing, a required one not; several are never one. [M13.2]"""
    write_some()
    notes.add("another fig", 3)

    assert notes.find(9) is None
    assert notes.find_dict(9) is None
    with pytest.raises(UnexpectedResult) as none:
        notes.get(9)
    with pytest.raises(UnexpectedResult) as several:
        notes.find(3)

    place = f"{__name__}.Notes"
    assert str(none.value) == (
        f"{place}.get found no row, but is annotated to return one. If there may be "
        "none, annotate it with `| None`."
    )
    assert str(several.value) == (
        f"{place}.find found several rows, but is annotated to return one."
    )


@database
@pytest.mark.django_db
def test_null_is_none_where_that_is_allowed():
    """NULL in a scalar's place is None, or raises where the annotation forbids it. [M13.2]"""
    assert notes.highest() is None
    with pytest.raises(UnexpectedResult) as raised:
        notes.surely_highest()

    assert str(raised.value) == (
        f"{__name__}.Notes.surely_highest found NULL, but is annotated to return a "
        "value."
    )


@database
@pytest.mark.django_db
def test_an_iterator_reads_while_it_is_asked(django_assert_num_queries):
    """An Iterator asks nothing until it is begun, and makes one object at a time. [M13.2]"""
    Note.objects.bulk_create(Note(text=f"note {n}", number=n) for n in range(2500))

    with django_assert_num_queries(0):
        rows = notes.each()
    assert next(rows) == NoteRow(0, "note 0")
    assert next(rows) == NoteRow(1, "note 1")
    assert sum(1 for _ in rows) == 2498
    assert list(notes.each_number())[-1] == 2499
    unfinished = notes.each_number()
    next(unfinished)
    unfinished.close()
    assert notes.count() == 2500


@pytest.mark.django_db
def test_what_does_not_convert_raises_with_its_path():
    """A row that is not what the annotation says raises, naming the row and field. [M13.2]"""

    @business_interface
    class Wrong(Protocol):
        @sql_query("SELECT text AS number, text FROM testapp_note ORDER BY text")
        def rows(self) -> list[NoteRow]: ...

    write_some()

    with pytest.raises(MessageConversionError) as raised:
        implement(Wrong).rows()

    assert [error.path for error in raised.value.errors] == [
        "0.number",
        "1.number",
        "2.number",
    ]


@pytest.mark.django_db
def test_two_columns_of_one_name_raise():
    """A dict cannot hold two columns of one name, and none is dropped in silence. [M13.2]"""
    write_some()

    with pytest.raises(UnexpectedResult) as raised:
        notes.twice()

    assert str(raised.value) == (
        f"{__name__}.Notes.twice found two columns named 'number'. Name one of them "
        f"with AS."
    )


# ----------------------------------------------------------------------------- M13.3


@database
@pytest.mark.django_db
def test_in_takes_any_list_also_an_empty_one():
    """IN expands to one placeholder each; nothing is IN an empty list, all NOT IN it. [M13.3]"""
    write_some()
    Note.objects.filter(number=1).update(slug="a")

    assert notes.among([1, 3, 99]) == [1, 3]
    assert notes.among((2,)) == notes.among({2}) == notes.among(iter([2])) == [2]
    assert notes.among([]) == []
    assert notes.apart_from([1, 3]) == [2]
    assert notes.apart_from([]) == [1, 2, 3]
    assert notes.slugged_otherwise(["b"]) == [1]
    assert sorted(notes.slugged_otherwise([])) == [1, 2, 3]
    assert sorted(notes.slugged_outside([])) == [1, 2, 3]
    assert notes.slugged_outside(["b"]) == [1]
    assert sorted(notes.either("fig", "apple")) == ["apple", "fig"]


@database
@pytest.mark.django_db
def test_percent_signs_are_doubled():
    """``%%`` is a percent sign, with parameters and without. [M13.3]"""
    for text in ("apple", "fig", "100%", "quiz"):
        notes.add(text)

    assert sorted(notes.with_a()) == ["100%", "apple"]
    assert sorted(notes.beginning("fi%")) == ["fig", "quiz"]


@database
@pytest.mark.django_db
def test_values_are_always_bound():
    """No value becomes SQL, whatever it holds. [M13.3]"""
    evil = "x'); DELETE FROM testapp_note; -- %s %(text)s %% \\ \""
    notes.add(evil)

    assert notes.texts() == [evil]
    assert notes.has(evil) is True
    assert notes.either(evil, "' OR '1'='1") == [evil]
    assert notes.beginning("' OR 1=1 --") == []


@database
@pytest.mark.django_db
def test_attributes_of_a_parameter():
    """``%(page.limit)s`` is an attribute of the argument. [M13.3]"""
    write_some()

    assert notes.page(Page(2)) == [1, 2]
    assert notes.page(Page(2, offset=2)) == [3]


@database
@pytest.mark.django_db
def test_every_type_is_stored_as_the_orm_stores_it():
    """Values of every type come back equal by the ORM, and by a query of SQL. [M13.3]"""
    token = uuid4()
    moment = datetime(
        2026, 5, 4, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=2))
    )
    clock = time(23, 59, 58, 1000)
    details = {"colour": "réd", "sizes": [1, 2]}

    readings.add(
        "cellar",
        token=token,
        amount=Decimal("12.34"),
        taken_at=moment,
        day=date(2026, 5, 4),
        clock=clock,
        lasted=timedelta(hours=1, microseconds=5),
        is_valid=True,
        details=details,
        octets=b"\x00\xff'",
    )

    stored = Reading.objects.get(token=token)
    assert bytes(stored.octets) == b"\x00\xff'"
    assert stored.lasted == timedelta(hours=1, microseconds=5)
    assert stored.details == details
    wanted = ReadingRow(
        place="cellar",
        token=token,
        amount=Decimal("12.34"),
        taken_at=moment,
        day=date(2026, 5, 4),
        clock=clock,
        is_valid=True,
        details=Details("réd", [1, 2]),
    )
    assert readings.get("cellar") == wanted
    assert stored.taken_at == moment
    assert (stored.amount, stored.day, stored.clock) == (
        wanted.amount,
        wanted.day,
        wanted.clock,
    )


@database
@pytest.mark.django_db
def test_what_the_orm_stored_is_found():
    """UUIDs, times, decimals and durations compare with what the ORM has stored. [M13.3]"""
    token = uuid4()
    noon = datetime(2026, 5, 4, 12, tzinfo=UTC)
    Reading.objects.create(place="early", taken_at=noon, token=token)
    Reading.objects.create(
        place="late",
        taken_at=noon + timedelta(hours=1),
        amount=Decimal("9.50"),
        lasted=timedelta(minutes=5),
    )

    assert readings.by_tokens([token, uuid4()]) == ["early"]
    assert readings.before(noon + timedelta(minutes=1)) == ["early"]
    west = timezone(timedelta(hours=-1))
    assert readings.before(datetime(2026, 5, 4, 11, 30, tzinfo=west)) == ["early"]
    assert readings.first() == noon
    assert readings.first().tzinfo is not None
    assert readings.dearer(Decimal("9.49")) == ["late"]
    assert readings.dearer(Decimal("9.50")) == []
    assert readings.longer(timedelta(minutes=4)) == ["late"]


@database
@pytest.mark.django_db
def test_missing_values_are_null():
    """None is NULL. [M13.3]"""
    readings.add("cellar")

    assert readings.get("cellar") == ReadingRow("cellar", *[None] * 7)


@database
@pytest.mark.django_db
def test_value_objects_enums_and_json():
    """A value object is bound by its converter, else by its text; a dict is JSON. [M13.3]"""
    notes.add("SKU-7", Level.HIGH.value)
    notes.add("other", 2)
    readings.add("cellar", amount=Money(Decimal("1.50")), details=[1, "two", None])

    assert notes.by_sku(Sku(7)) == [20]
    assert notes.at_levels([Level.HIGH, Level.LOW]) == [Level.HIGH]
    stored = Reading.objects.get()
    assert (stored.amount, stored.details) == (Decimal("1.50"), [1, "two", None])
    assert readings.describe({"a": {"b": Decimal("1.5")}}) == 1
    stored.refresh_from_db()
    assert stored.details == {"a": {"b": "1.5"}}
    assert readings.tag(Tags(("x", "y"))) == 1
    stored.refresh_from_db()
    assert stored.details == ["x", "y"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            Page(1),
            (
                "Page cannot be stored in a database. Write a @converter for it, "
                "give it a __str__, or annotate the parameter with Annotated[..., "
                "Json()]."
            ),
        ),
        (
            NoteModel(number=1, text=""),
            (
                "NoteModel cannot be stored in a database. Write a @converter for "
                "it, give it a __str__, or annotate the parameter with "
                "Annotated[..., Json()]."
            ),
        ),
        (
            [1, 2],
            (
                "list belongs in `IN %(name)s`; to store it as JSON, annotate the "
                "parameter with Annotated[..., Json()]."
            ),
        ),
    ],
)
def test_what_is_no_value_raises(value, reason):
    """What no database takes raises before the database is asked. [M13.3]"""

    @business_interface
    class Loose(Protocol):
        @sql_query("SELECT text FROM testapp_note WHERE text = %(text)s")
        def find(self, text: Any) -> list[str]: ...

    with pytest.raises(ParameterError) as raised:
        implement(Loose).find(value)

    place = f"{__name__}.{Loose.__qualname__}.find"
    assert str(raised.value) == f"{place} cannot bind %(text)s: {reason}"


@pytest.mark.django_db
@pytest.mark.parametrize("value", ["ab", b"abc", {"a": 1}, 7, None])
def test_in_takes_a_list_only(value):
    """A string is no list of letters for IN, nor a dict one of its keys. [M13.3]"""
    with pytest.raises(ParameterError) as raised:
        notes.among(value)

    assert str(raised.value) == (
        f"{__name__}.Notes.among cannot bind %(of)s: IN takes a list, not "
        f"{type(value).__name__}."
    )


@pytest.mark.django_db
def test_an_attribute_that_is_not_there_raises():
    """``%(page.limit)s`` of an object without it names both. [M13.3]"""
    with pytest.raises(ParameterError) as raised:
        notes.page(NoteRow(1, "x"))

    assert str(raised.value) == (
        f"{__name__}.Notes.page cannot bind %(page.limit)s: NoteRow has no 'limit'."
    )


# ----------------------------------------------------------------------------- M13.4


@business_interface
class Elsewhere(Protocol):
    @sql_write(
        "INSERT INTO testapp_note (text, number) VALUES (%(text)s, 0)", using="other"
    )
    def add(self, text: str) -> None: ...

    @sql_query("SELECT text FROM testapp_note", using="other")
    def texts(self) -> list[str]: ...


@database
@pytest.mark.django_db(databases=["default", "other"])
def test_another_alias():
    """``using=`` names the database. [M13.4]"""
    elsewhere = implement(Elsewhere)

    elsewhere.add("there")

    assert elsewhere.texts() == ["there"]
    assert notes.texts() == []
    assert list(Note.objects.using("other").values_list("text", flat=True)) == ["there"]


@dataclass(frozen=True)
class Write:
    text: str
    fail: bool = False


@database
@pytest.mark.django_db(transaction=True)
def test_it_joins_the_commands_transaction():
    """What SQL writes in a command commits with it, and is undone with it. [M13.4]"""
    registry = Registry()

    @registry.add
    @command_handler
    def write(command: Write, notes: Notes) -> int:
        notes.add(command.text)
        assert connection.in_atomic_block
        if command.fail:
            raise RuntimeError(notes.count())
        return notes.count()

    assert registry.command_bus.dispatch(Write("kept")) == 1
    with pytest.raises(RuntimeError, match=r"^2$"):
        registry.command_bus.dispatch(Write("undone", fail=True))

    assert notes.texts() == ["kept"]


@database
@pytest.mark.django_db(transaction=True)
def test_database_errors_pass_unchanged():
    """A database's own error reaches the caller, in a transaction and outside. [M13.4]"""
    with pytest.raises(IntegrityError), transaction.atomic():
        notes.add(None)
    with pytest.raises(IntegrityError):
        notes.add(None)

    assert notes.count() == 0


@database
@pytest.mark.django_db(transaction=True)
async def test_async_methods_run_in_the_thread_of_the_database():
    """An ``async def`` method is awaited; a plain one in a loop raises. [M13.4]"""

    @business_interface
    class AsyncNotes(Protocol):
        @sql_write("INSERT INTO testapp_note (text, number) VALUES (%(text)s, 1)")
        async def add(self, text: str) -> None: ...

        @sql_query("SELECT text FROM testapp_note")
        async def texts(self) -> list[str]: ...

    async_notes = implement(AsyncNotes)

    await async_notes.add("apple")

    assert await async_notes.texts() == ["apple"]
    assert await sync_to_async(notes.texts)() == ["apple"]
    with pytest.raises(SynchronousDispatch) as raised:
        notes.texts()
    assert str(raised.value) == (
        "Notes.texts() was called in a running event loop and would block it. Use "
        "`async def texts`."
    )


@pytest.mark.django_db
def test_statements_pass_the_wrappers_of_the_connection():
    """Queries are seen by what watches Django's cursor. [M13]"""
    seen = []

    def wrapper(execute, sql, params, many, context):
        seen.append((sql, list(params)))
        return execute(sql, params, many, context)

    with connections["default"].execute_wrapper(wrapper):
        notes.among([1, 2])
        notes.among([])
        notes.apart_from([])

    assert seen == [
        (
            "SELECT number FROM testapp_note WHERE number IN (%s, %s) ORDER BY number",
            [1, 2],
        ),
        (
            (
                "SELECT number FROM testapp_note WHERE number IS NULL IS NULL "
                "ORDER BY number"
            ),
            [],
        ),
        (
            (
                "SELECT number FROM testapp_note WHERE number IS NULL IS NOT NULL "
                "AND number >= 0 ORDER BY number"
            ),
            [],
        ),
    ]


# ---------------------------------------------------------------------------- checks


def problems_of(interface):
    registry = Registry()
    implement(interface, registry=registry)
    return [(each.id, each.msg, each.hint) for each in check_registry(registry)]


def test_sound_statements_have_no_problem():
    """The interfaces of this module pass the checks."""
    assert problems_of(Notes) == problems_of(Readings) == problems_of(Elsewhere) == []


QUOTED = [
    ("SELECT '%(name)s'", "quotes"),
    ("SELECT 'it''s %(name)s'", "quotes"),
    ("SELECT 1 WHERE 'x' LIKE '%%%(name)s%%'", "quotes"),
    ("SELECT 1 WHERE 'x' IN ('%(name)s')", "quotes"),
    ("SELECT 'a' || '\n%(name)s\n'", "quotes"),
    ("SELECT '%(name)s", "quotes"),
    ('SELECT "%(name)s"', "double quotes"),
    ("SELECT `%(name)s`", "backticks"),
    ("SELECT $$%(name)s$$", "dollar quotes"),
    ("SELECT $tag$ $$ %(name)s $tag$", "dollar quotes"),
    ("SELECT 1 -- %(name)s", "a comment"),
    ("SELECT 1 /* %(name)s */", "a comment"),
    ("SELECT 1 /* \n'\n%(name)s */", "a comment"),
]
QUOTED_THERE = {
    "postgresql": [
        (r"SELECT E'\' %(name)s'", "quotes"),
        ("SELECT 1 /* a /* b */ %(name)s */", "a comment"),
    ],
    "mysql": [
        (r"SELECT '\' %(name)s'", "quotes"),
        (r'SELECT "\" %(name)s"', "double quotes"),
        ("SELECT 1 # %(name)s", "a comment"),
    ],
}
OUTSIDE = [
    "SELECT '', %(name)s",
    "SELECT 'it''s', %(name)s, 'that'",
    'SELECT 1 AS "a\'b", %(name)s',
    "SELECT 1 -- it's\n, %(name)s",
    "SELECT 1 /* it's */, %(name)s /* \" */",
    "SELECT '--', %(name)s",
    "SELECT '/*', %(name)s",
    "SELECT 'it' /* */ || %(name)s || '%%'",
]
OUTSIDE_THERE = {
    "postgresql": [
        r"SELECT 'C:\', %(name)s",
        "SELECT '{}'::jsonb #>> %(name)s::text[]",
        "SELECT 1 /* a /* b */ */, %(name)s",
    ],
    "mysql": [r"SELECT 'it\'s', %(name)s", "SELECT 3--2, %(name)s"],
}


def fault_in(statement):
    """Return what the check says of a statement with one parameter."""

    @business_interface
    class Quoting(Protocol):
        @sql_query(statement)
        def find(self, name: str) -> list[dict]: ...

    return problems_of(Quoting), Quoting


@pytest.mark.parametrize(
    ("statement", "place"), [*QUOTED, *QUOTED_THERE.get(connection.vendor, ())]
)
def test_E042_a_placeholder_in_quotes_is_refused(statement, place):
    """A driver would put the value there, and the database would read it as SQL."""
    problems, interface = fault_in(statement)

    method = f"{__name__}.{interface.__qualname__}.find"
    text = (
        f"The SQL of {method} has the placeholder %(name)s in {place}, where its value "
        f"would become part of the SQL."
    )
    hint = (
        "A value does not need quotes: write the placeholder outside them, and join "
        "it to other text with || or CONCAT()."
    )
    assert problems == [("django_cqrs.E042", text, hint)]
    with pytest.raises(InvalidHandler):
        implement(interface).find("x' OR 1=1 -- ")


@pytest.mark.parametrize(
    "statement", [*OUTSIDE, *OUTSIDE_THERE.get(connection.vendor, ())]
)
def test_a_placeholder_beside_quotes_is_bound(statement):
    """Quotes and comments end where the database says so."""
    problems, _ = fault_in(statement)

    assert problems == []


@pytest.mark.parametrize(
    ("statement", "fault", "hint"),
    [
        (
            "SELECT %(nothing)s",
            (
                "The SQL of {place} has %(nothing)s, but the method has no parameter "
                "'nothing'."
            ),
            "Its parameters are name.",
        ),
        (
            "SELECT 1 WHERE 'a' LIKE '%a' AND 1 = %(name)s",
            (
                "The SQL of {place} has a percent sign that does not begin a "
                'placeholder, in "%a\' AND 1".'
            ),
            "Write %(name)s for a parameter, and %% for a percent sign.",
        ),
        (
            "SELECT %s",
            (
                "The SQL of {place} has a percent sign that does not begin a "
                "placeholder, in '%s'."
            ),
            "Write %(name)s for a parameter, and %% for a percent sign.",
        ),
        (
            "SELECT %(a-b)s",
            (
                "The SQL of {place} has the placeholder %(a-b)s, which does not name a "
                "parameter."
            ),
            "Write %(name)s, or %(name.attribute)s.",
        ),
        (
            "SELECT 1 WHERE 'a' IN %(name)s",
            (
                "{place} cannot bind %(name)s: IN takes a list, but it is annotated "
                "with str."
            ),
            "Annotate it with Sequence[str].",
        ),
    ],
)
def test_E042_sql_parameters(statement, fault, hint):
    """A statement that does not agree with the parameters is a check, and raises."""

    @business_interface
    class Wrong(Protocol):
        @sql_query(statement)
        def find(self, name: str) -> list[str]: ...

    place = f"{__name__}.{Wrong.__qualname__}.find"
    text = fault.replace("{place}", place)
    problems = problems_of(Wrong)
    if "nothing" in statement:
        assert problems.pop() == (
            "django_cqrs.E042",
            f"The parameter 'name' of {place} is not in its SQL.",
            "Use %(name)s in the statement, or remove the parameter.",
        )

    assert problems == [("django_cqrs.E042", text, hint)]
    with pytest.raises(InvalidHandler) as raised:
        implement(Wrong).find("x")
    assert str(raised.value) == f"{text} {hint} (django_cqrs.E042)"


@pytest.mark.parametrize(
    ("annotation", "statement", "fault", "hint"),
    [
        (
            list[int],
            "SELECT %(value)s",
            "%(value)s: list[int] is a list, which is only allowed with IN.",
            (
                "Write IN before it, or annotate it with Annotated[..., Json()] to bind it "
                "as JSON."
            ),
        ),
        (
            Sequence[int],
            "SELECT %(value)s",
            (
                "%(value)s: collections.abc.Sequence[int] is a list, which is only "
                "allowed with IN."
            ),
            (
                "Write IN before it, or annotate it with Annotated[..., Json()] to bind it "
                "as JSON."
            ),
        ),
        (
            Page | None,
            "SELECT %(value)s",
            "%(value)s: Page cannot be stored in a database.",
            (
                "Name an attribute of it as in %(name.attribute)s, write a @converter, or "
                "annotate it with Annotated[..., Json()]."
            ),
        ),
        (
            Page,
            "SELECT %(value.size)s",
            "%(value.size)s: Page has no 'size'.",
            "It has limit, offset.",
        ),
        (Money, "SELECT %(value)s", None, None),
        (Sku, "SELECT %(value)s", None, None),
        (Annotated[list[int], Json()], "SELECT %(value)s", None, None),
        (Annotated[Page, Json], "SELECT  %(value)s", None, None),
        (dict[str, int], "SELECT %(value)s", None, None),
        (Mapping[str, int], "SELECT %(value.a)s", None, None),
        (Level, "SELECT %(value)s", None, None),
        (Any, "SELECT 1 WHERE 1 IN %(value)s", None, None),
        (frozenset[UUID], "SELECT 1 WHERE 1 IN %(value)s", None, None),
    ],
)
def test_E042_parameters_of_the_wrong_type(annotation, statement, fault, hint):
    """A parameter whose type no value of the database can have is a check."""

    @business_interface
    class Wrong(Protocol):
        @sql_query(statement)
        def find(self, value) -> list[str]: ...

    Wrong.find.__annotations__["value"] = annotation
    place = f"{__name__}.{Wrong.__qualname__}.find"

    expected = []
    if fault is not None:
        expected = [("django_cqrs.E042", f"{place} cannot bind {fault}", hint)]
    assert problems_of(Wrong) == expected


@pytest.mark.parametrize(
    ("decorator", "annotation", "fault", "hint"),
    [
        (
            sql_write,
            list[int],
            "list[int], but a write returns the number of rows or nothing.",
            "Annotate it with int or None; for RETURNING use @sql_query.",
        ),
        (
            sql_query,
            None,
            "None, but a query returns rows.",
            "Annotate the type of the rows, or use @sql_write.",
        ),
        (
            sql_query,
            list[Note],
            f"list[{Note.__module__}.Note], which is a model.",
            "Use Note.objects.raw() for models, or name a dataclass.",
        ),
    ],
)
def test_E041_results_that_no_rows_become(decorator, annotation, fault, hint):
    """A return annotation that no rows can become is a check."""

    @business_interface
    class Wrong(Protocol):
        @decorator("SELECT 1")
        def find(self): ...

    Wrong.find.__annotations__["return"] = annotation
    place = f"{__name__}.{Wrong.__qualname__}.find"

    assert problems_of(Wrong) == [
        ("django_cqrs.E041", f"{place} is annotated to return {fault}", hint)
    ]


def test_E041_an_async_iterator_of_rows():
    """Rows are not read lazily in an event loop."""

    @business_interface
    class Wrong(Protocol):
        @sql_query("SELECT 1")
        async def find(self) -> Iterator[int]: ...

    assert problems_of(Wrong) == [
        (
            "django_cqrs.E041",
            (
                f"{__name__}.{Wrong.__qualname__}.find is annotated to return "
                f"collections.abc.Iterator[int], whose rows would be read in the event "
                f"loop."
            ),
            "Annotate it with a list, or make it a synchronous method.",
        )
    ]


def test_E011_an_unknown_database():
    """An alias that is not in DATABASES is the check of it."""

    @business_interface
    class Wrong(Protocol):
        @sql_query("SELECT 1", using="nowhere")
        def find(self) -> int: ...

    assert problems_of(Wrong) == [
        (
            "django_cqrs.E011",
            (
                f"{__name__}.{Wrong.__qualname__}.find uses the database 'nowhere', which "
                f"is not in DATABASES."
            ),
            "The aliases are default, other.",
        )
    ]


def test_a_statement_is_text():
    """The decorators take a statement, with brackets."""
    with pytest.raises(TypeError) as raised:
        sql_query(len)

    assert str(raised.value) == "@sql_query takes a statement: @sql_query('...')."


def test_statements_and_routes_stand_in_one_interface():
    """An interface may have methods of both sorts."""

    @business_interface
    class Both(Protocol):
        @sql_query("SELECT 1")
        def one(self) -> int: ...

        @business_method("no.such")
        def other(self) -> None: ...

    assert [each[0] for each in problems_of(Both)] == ["django_cqrs.E040"]
