"""SQL behind a typed method: values are bound, rows become what the method returns."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist
from django.utils.duration import duration_microseconds

from django_cqrs.conversion import (
    adapter_of,
    bare_type,
    field_names,
    has_converter,
    is_plain_class,
    is_protocol,
    is_typed_dict,
    is_value_type,
    name_of_type,
    to_json,
    to_jsonable,
    union_members,
)
from django_cqrs.exceptions import ParameterError, UnexpectedResult
from django_cqrs.parameters import marks_of, sole_type
from django_cqrs.problems import Problem, Rule

F = TypeVar("F", bound=Callable[..., Any])

STATEMENT = "__cqrs_statement__"

Values = Mapping[str, Any]
"""The arguments of one call, by the parameter's name."""

_EMPTY = inspect.Parameter.empty
_CHUNK = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Json:
    """``Annotated[list[int], Json()]``: this parameter is bound as JSON text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """What a decorator said about one method."""

    text: str
    writes: bool
    using: str | None

    @property
    def decorator(self) -> str:
        """Its name, as it is written."""
        return "@sql_write" if self.writes else "@sql_query"


def sql_query(statement: str, /, *, using: str | None = None) -> Callable[[F], F]:
    """
    Have a method of a business interface answer with the rows of a query.

    The return annotation says what becomes of the rows.

    Args:
        statement: SQL with ``%(name)s`` for the parameter `name`, or
            ``%(name.part)s`` for an attribute of it, and ``%%`` for a percent sign.
        using: the database alias; by default ``"default"``.

    """
    return _decorator(Statement(statement, False, using))


def sql_write(statement: str, /, *, using: str | None = None) -> Callable[[F], F]:
    """
    Have a method of a business interface change rows.

    It returns how many, or nothing where it is annotated with None.

    Args:
        statement: SQL, as for :func:`sql_query`.
        using: the database alias; by default ``"default"``.

    """
    return _decorator(Statement(statement, True, using))


def _decorator(statement: Statement) -> Callable[[F], F]:
    if not isinstance(statement.text, str):
        msg = f"{statement.decorator} takes a statement: {statement.decorator}('...')."
        raise TypeError(msg)

    def decorate(function: F) -> F:
        setattr(function, STATEMENT, statement)
        return function

    return decorate


# ----------------------------------------------------------------------- statements

# NOT and IN belong to a placeholder: a list that is empty takes their place.
_SIGN = re.compile(
    r"""
    (?P<membership>\b (?P<not>NOT\s+)? IN \s* (?P<open>\(\s*)?)?
    %\( (?P<name>[^()]*) \)s
    (?(open)\s*\))
    | (?P<literal>%%)
    | (?P<stray>%)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclasses.dataclass(frozen=True, slots=True)
class Placeholder:
    """Where a value belongs in a statement."""

    name: str
    """The parameter's."""
    path: tuple[str, ...]
    """The attributes that lead from the argument to the value."""
    is_list: bool
    is_negated: bool

    @property
    def written(self) -> str:
        """The name with the attributes."""
        return ".".join((self.name, *self.path))


Part = str | Placeholder


class _Malformed(Exception):
    """A signal between two functions here: what is wrong, and what to do."""


# Where a driver still puts a value in, and the database no longer takes it for one.
_QUOTED = r"""
    '(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z) | `(?:[^`]|``)*(?:`|\Z)
    | --[^\n]* | (?<![\w$])(?P<tag>\$(?:[^\W\d]\w*)?\$)(?s:.*?)(?:(?P=tag)|\Z)
"""
_BLOCK = r"| /\*(?s:.*?)(?:\*/|\Z)"
_REGIONS: Mapping[str, str] = {
    # E'...' takes backslashes; a comment may hold another one, which is done by hand.
    "postgresql": rf"\bE'(?:[^'\\]|\\(?s:.)|'')*(?:'|\Z) | {_QUOTED} | (?P<nested>/\*)",
    # /*! is no comment but a condition on the version.
    "mysql": r"""
        '(?:[^'\\]|\\(?s:.)|'')*(?:'|\Z) | "(?:[^"\\]|\\(?s:.)|"")*(?:"|\Z)
        | `(?:[^`]|``)*(?:`|\Z) | \#[^\n]* | --(?=\s|\Z)[^\n]*
        | (?<![\w$])(?P<tag>\$(?:[^\W\d]\w*)?\$)(?s:.*?)(?:(?P=tag)|\Z)
        | /\*(?!!)(?s:.*?)(?:\*/|\Z)
    """,
    "": rf"{_QUOTED} {_BLOCK} | \#[^\n]*",
}
_SQL_SAID = {
    "'": "quotes",
    '"': "double quotes",
    "`": "backticks",
    "$": "dollar quotes",
}


@functools.cache
def _regions_of(vendor: str) -> re.Pattern[str]:
    regions = _REGIONS.get(vendor, _REGIONS[""])
    return re.compile(regions, re.VERBOSE | re.IGNORECASE)


def _quoted(text: str, vendor: str) -> Iterator[tuple[int, int, str]]:
    """Yield where a statement has quotes and comments, and what they are called."""
    regions = _regions_of(vendor)
    end = 0
    while (found := regions.search(text, end)) is not None:
        start, end = found.span()
        if found.groupdict().get("nested"):
            end = _end_of_comment(text, start)
        sign = text[start].lower()
        sign = "'" if sign == "e" else sign
        yield start, end, _SQL_SAID.get(sign, "a comment")


def _end_of_comment(text: str, start: int) -> int:
    depth = 0
    for sign in re.compile(r"/\*|\*/").finditer(text, start):
        depth += 1 if sign[0] == "/*" else -1
        if not depth:
            return sign.end()
    return len(text)


def parsed(text: str, vendor: str) -> tuple[Part, ...]:
    """
    Return a statement as its SQL and the placeholders in it.

    Args:
        text: the statement.
        vendor: of the database that it is for, as Django calls it.

    Raises:
        _Malformed: a percent sign begins no placeholder, or one stands in quotes or in
            a comment, where its value would become part of the SQL.

    """
    parts: list[Part] = []
    end = 0
    quoted = list(_quoted(text, vendor))
    for sign in _SIGN.finditer(text):
        if sign["literal"]:
            continue
        if sign["stray"]:
            rest = (
                text[sign.start() : sign.start() + 10]
                .split("\n", maxsplit=1)[0]
                .rstrip()
            )
            raise _Malformed(
                f"has a percent sign that begins no placeholder, in {rest!r}",
                "Write %(name)s for a parameter, and %% for a percent sign.",
            )
        if not _NAME.fullmatch(sign["name"]):
            raise _Malformed(
                f"has the placeholder %({sign['name']})s, which names no parameter",
                "Write %(name)s, or %(name.attribute)s.",
            )
        for first, behind, place in quoted:
            if first <= sign.start("name") < behind:
                raise _Malformed(
                    f"has the placeholder %({sign['name']})s in {place}, where its "
                    f"value would become part of the SQL",
                    "A value needs no quotes: write the placeholder outside of them, "
                    "and join it to other text with || or CONCAT().",
                )
        name, *path = sign["name"].split(".")
        parts.append(text[end : sign.start()])
        parts.append(
            Placeholder(name, tuple(path), bool(sign["membership"]), bool(sign["not"]))
        )
        end = sign.end()
    return (*parts, text[end:])


def _vendor_of(using: str | None) -> str:
    """Return what Django calls the database of an alias; empty if there is none."""
    try:
        return connections[using or DEFAULT_DB_ALIAS].vendor
    except (ConnectionDoesNotExist, ImproperlyConfigured):
        return ""


class Query:
    """A statement with the method that it stands behind, made once."""

    def __init__(
        self,
        statement: Statement,
        place: str,
        parameters: Mapping[str, Any],
        returns: Any,
    ) -> None:
        """
        Take a sound statement.

        Args:
            statement: as it was written.
            place: the dotted path of the method, for errors.
            parameters: their annotations by name.
            returns: the annotation of the result.

        """
        self.place = place
        self.using: str = statement.using or DEFAULT_DB_ALIAS
        self.parts = parsed(statement.text, _vendor_of(self.using))
        self.json: frozenset[str] = frozenset(
            name for name, each in parameters.items() if _is_json(each)
        )
        self.run: Callable[[Values], Any]
        if statement.writes:
            self.run = self._counting(returns)
        else:
            self.run = reader_of(returns, place)(self)

    def _counting(self, returns: Any) -> Callable[[Values], Any]:
        def write(values: Values) -> int | None:
            connection = connections[self.using]
            text, bound = self.bound(values, connection)
            with connection.cursor() as cursor:
                cursor.execute(text, bound)
                count: int = cursor.rowcount
            return None if returns in (None, type(None)) else count

        return write

    def bound(
        self, values: Values, connection: BaseDatabaseWrapper
    ) -> tuple[str, list[Any]]:
        """
        Return the SQL for these values, and the values as the database takes them.

        Raises:
            ParameterError: a value cannot be bound.

        """
        text: list[str] = []
        bound: list[Any] = []
        for part in self.parts:
            if isinstance(part, str):
                text.append(part)
                continue
            value = self._value(part, values)
            if not part.is_list:
                text.append("%s")
                bound.append(self._bindable(part, value, connection))
                continue
            members = self._members(part, value)
            if members:
                text.append("NOT IN (" if part.is_negated else "IN (")
                text.append(", ".join(["%s"] * len(members)) + ")")
                bound += [self._bindable(part, each, connection) for each in members]
            else:
                # No database takes IN (). What precedes is NULL or not: one of both
                # is true, whatever it is, as `NOT IN` nothing is and `IN` nothing not.
                text.append("IS NULL IS NOT NULL" if part.is_negated else _NEVER)
        return "".join(text), bound

    def _value(self, part: Placeholder, values: Values) -> Any:
        value = values[part.name]
        for name in part.path:
            try:
                value = (
                    value[name] if isinstance(value, Mapping) else getattr(value, name)
                )
            except (AttributeError, KeyError):
                msg = (
                    f"{self.place} cannot bind %({part.written})s: "
                    f"{name_of_type(type(value))} has no {name!r}."
                )
                raise ParameterError(msg) from None
        return value

    def _members(self, part: Placeholder, value: Any) -> list[Any]:
        is_many = isinstance(value, Iterable)
        if not is_many or isinstance(value, (str, bytes, bytearray, Mapping)):
            msg = (
                f"{self.place} cannot bind %({part.written})s: IN takes a list, not "
                f"{name_of_type(type(value))}."
            )
            raise ParameterError(msg)
        return list(value)

    def _bindable(
        self, part: Placeholder, value: Any, connection: BaseDatabaseWrapper
    ) -> Any:
        if type(value) in _AS_THEY_ARE and part.name not in self.json:
            return value
        if part.name in self.json and not part.path:
            return to_json(value)
        try:
            return bindable(value, connection)
        except _Malformed as reason:
            msg = f"{self.place} cannot bind %({part.written})s: {reason.args[0]}."
            raise ParameterError(msg) from None


_NEVER = "IS NULL IS NULL"

_AS_THEY_ARE = frozenset({bool, bytes, int, float, str, type(None)})


def bindable(value: Any, connection: BaseDatabaseWrapper) -> Any:
    """Return a value as the cursor of a database takes it."""
    if has_converter(type(value)):
        value = to_jsonable(value)
        return to_json(value) if isinstance(value, (dict, list)) else value
    if isinstance(value, enum.Enum):
        return bindable(value.value, connection)
    ops: Any = connection.ops
    features: Any = connection.features
    match value:
        case None | bool() | bytes() | int() | float() | Decimal():
            return value
        case str():
            return str(value)
        case datetime():
            return ops.adapt_datetimefield_value(value)
        case date():
            return ops.adapt_datefield_value(value)
        case time():
            return ops.adapt_timefield_value(value)
        case timedelta():
            native = features.has_native_duration_field
            return value if native else duration_microseconds(value)
        case UUID():
            # Text, where the driver of a database with such a type has none.
            native = features.has_native_uuid_field
            return str(value) if native else value.hex
        case bytearray() | memoryview():
            return value
        case dict():
            return to_json(value)
    cls = type(value)
    if is_plain_sequence(cls):
        msg = (
            f"{name_of_type(cls)} belongs into `IN %(name)s`; to store it as JSON, "
            f"annotate the parameter with Annotated[..., Json()]"
        )
        raise _Malformed(msg)
    if _has_own_text(cls):
        return str(value)
    msg = (
        f"{name_of_type(cls)} is no value of a database. Write a @converter for it, "
        f"give it a __str__, or annotate the parameter with Annotated[..., Json()]"
    )
    raise _Malformed(msg)


def is_plain_sequence(cls: Any) -> bool:
    """Tell whether a class is one of lists, not of objects with fields."""
    return (
        isinstance(cls, type)
        and issubclass(cls, (list, tuple, set, frozenset))
        and field_names(cls) is None
    )


def _has_own_text(cls: type) -> bool:
    """Tell whether a class says itself what its objects are as text."""
    for base in cls.__mro__:
        if "__str__" in vars(base):
            return base is not object and not base.__module__.startswith("pydantic")
    return False


def _is_json(annotation: Any) -> bool:
    return any(each is Json or isinstance(each, Json) for each in marks_of(annotation))


# ----------------------------------------------------------------------------- rows

Reader = Callable[[Query], Callable[[Values], Any]]

_LAZY = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
)
_MANY = (list, set, frozenset, collections.abc.Sequence, collections.abc.Collection)


def reader_of(returns: Any, place: str) -> Reader:
    """Return what runs a query and makes of its rows what an annotation says."""
    if returns in (_EMPTY, Any, list):
        returns = list[dict[str, Any]]
    bare = bare_type(returns)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin in _LAZY or bare in _LAZY:
        return _lazy(arguments[0] if arguments else dict, place)
    if origin in _MANY or bare in _MANY:
        return _many(bare, arguments[0] if arguments else dict, place)
    if origin is tuple and arguments[1:] == (...,):
        return _many(bare, arguments[0], place)
    return _single(returns, place)


def _many(whole: Any, item: Any, place: str) -> Reader:
    shape = shape_of(item, place)
    origin = typing.get_origin(whole) or whole
    is_list = origin in (list, *_MANY[3:])
    convert = None
    if not shape.is_plain or not is_list:
        wanted: Any = list[item] if is_list else whole
        convert = adapter_of(wanted).from_python

    def bind(query: Query) -> Callable[[Values], Any]:
        def read(values: Values) -> Any:
            connection = connections[query.using]
            text, bound = query.bound(values, connection)
            with connection.cursor() as cursor:
                cursor.execute(text, bound)
                rows = shape.of(cursor, cursor.fetchall(), connection)
            if convert is None or (is_list and shape.takes(rows)):
                return rows
            return shape.finished_list(convert(rows), connection)

        return read

    return bind


def _lazy(item: Any, place: str) -> Reader:
    shape = shape_of(item, place)
    convert = None if shape.is_plain else adapter_of(item).from_python

    def bind(query: Query) -> Callable[[Values], Any]:
        def read(values: Values) -> Iterator[Any]:
            connection: Any = connections[query.using]
            text, bound = query.bound(values, connection)
            return rows_of(connection, text, bound)

        def rows_of(connection: Any, text: str, bound: list[Any]) -> Iterator[Any]:
            whole = connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
            open_cursor = connection.cursor if whole else connection.chunked_cursor
            with open_cursor() as cursor:
                cursor.execute(text, bound)
                while rows := cursor.fetchmany(_CHUNK):
                    for row in shape.of(cursor, rows, connection):
                        yield (
                            row
                            if convert is None
                            else shape.finished(convert(row), connection)
                        )

        return read

    return bind


def _single(returns: Any, place: str) -> Reader:
    members = union_members(returns)
    is_optional = type(None) in members
    item = sole_type(returns) if is_optional else returns
    shape = shape_of(item, place)
    convert = None if shape.is_plain else adapter_of(item).from_python

    def bind(query: Query) -> Callable[[Values], Any]:
        def read(values: Values) -> Any:
            connection = connections[query.using]
            text, bound = query.bound(values, connection)
            with connection.cursor() as cursor:
                cursor.execute(text, bound)
                rows = shape.of(cursor, cursor.fetchmany(2), connection)
            if len(rows) == 1:
                (row,) = rows
                if row is None and is_optional:
                    return None
                if row is None:
                    msg = f"{place} found NULL, and is annotated to return a value."
                    raise UnexpectedResult(msg)
                if convert is None or shape.takes(rows):
                    return row
                return shape.finished(convert(row), connection)
            if rows:
                msg = f"{place} found several rows, and is annotated to return one."
                raise UnexpectedResult(msg)
            if is_optional:
                return None
            msg = (
                f"{place} found no row, and is annotated to return one. "
                f"Where there may be none, annotate it with `| None`."
            )
            raise UnexpectedResult(msg)

        return read

    return bind


class Shape:
    """What one row is made into."""

    is_plain: bool
    """Whether nothing is left to convert."""

    def of(
        self, cursor: Any, rows: Sequence[Any], connection: BaseDatabaseWrapper
    ) -> list[Any]:
        """Return the rows of a cursor in this shape, their values as they came."""
        raise NotImplementedError

    def takes(self, _rows: list[Any]) -> bool:
        """Tell whether values are of the type that is wanted already."""
        return False

    def finished(self, value: Any, _connection: BaseDatabaseWrapper) -> Any:
        """Return a converted value with what the conversion cannot know."""
        return value

    def finished_list(self, values: Any, _connection: BaseDatabaseWrapper) -> Any:
        """Do the same for many."""
        return values


class _Tuples(Shape):
    """``tuple[int, str]``: the row itself."""

    is_plain = False

    def of(
        self, cursor: Any, rows: Sequence[Any], connection: BaseDatabaseWrapper
    ) -> list[Any]:
        return [tuple(_aware(value, connection) for value in row) for row in rows]


@dataclasses.dataclass(frozen=True)
class _Scalars(Shape):
    """Anything without fields: the first column."""

    annotation: Any
    is_plain: bool

    def of(
        self, cursor: Any, rows: Sequence[Any], connection: BaseDatabaseWrapper
    ) -> list[Any]:
        return [_aware(row[0], connection) for row in rows]

    def takes(self, rows: list[Any]) -> bool:
        wanted = self.annotation
        return all(type(value) is wanted for value in rows)

    def finished(self, value: Any, connection: BaseDatabaseWrapper) -> Any:
        # A time that a function of SQLite has made comes as text.
        return _aware(value, connection)

    def finished_list(self, values: Any, connection: BaseDatabaseWrapper) -> Any:
        if isinstance(values, list):
            return [_aware(value, connection) for value in values]
        return values


@dataclasses.dataclass(frozen=True)
class _Dicts(Shape):
    """A dict of the columns, or what is made of one."""

    place: str
    is_plain: bool
    documents: frozenset[str]
    """The columns that hold JSON, which every database gives as text."""

    def of(
        self, cursor: Any, rows: Sequence[Any], connection: BaseDatabaseWrapper
    ) -> list[Any]:
        names = [column[0] for column in cursor.description]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            msg = (
                f"{self.place} found two columns named {twice!r}. Name one of them "
                f"with AS."
            )
            raise UnexpectedResult(msg)
        found = [
            {
                name: _aware(value, connection)
                for name, value in zip(names, row, strict=True)
            }
            for row in rows
        ]
        for name in self.documents.intersection(names):
            for row in found:
                if isinstance(row[name], str):
                    row[name] = adapter_of(Any).from_json(row[name])
        return found


def shape_of(annotation: Any, place: str) -> Shape:
    """Return what a row becomes by the annotation of one."""
    bare = sole_type(annotation)
    origin = typing.get_origin(bare) or bare
    if origin is tuple and typing.get_args(bare):
        return _Tuples()
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        inner = typing.get_args(bare)
        return _Dicts(place, not inner or inner == (str, Any), frozenset())
    if origin in (Any, object, _EMPTY):
        return _Scalars(annotation, is_plain=True)
    if is_typed_dict(bare) or (
        isinstance(origin, type)
        and field_names(origin) is not None
        and not has_converter(origin)
    ):
        return _Dicts(place, False, _documents_of(origin))
    return _Scalars(annotation, is_plain=False)


def _documents_of(cls: Any) -> frozenset[str]:
    """Return the fields that hold what JSON alone can say: lists, dicts, objects."""
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # noqa: BLE001 - an annotation may run any code
        return frozenset()
    return frozenset(name for name, each in hints.items() if _is_structured(each))


def _is_structured(annotation: Any) -> bool:
    members = [m for m in union_members(annotation) if m is not type(None)]
    for member in members:
        origin = typing.get_origin(member) or member
        if not isinstance(origin, type) or has_converter(origin):
            return False
        if not (
            issubclass(origin, (list, tuple, set, frozenset, Mapping))
            or is_typed_dict(member)
            or field_names(origin) is not None
        ):
            return False
    return bool(members)


def _aware(value: Any, connection: BaseDatabaseWrapper) -> Any:
    """Return a time with the zone that databases without zones store it in."""
    if (
        type(value) is datetime
        and value.tzinfo is None
        and settings.USE_TZ
        and connection.vendor != "postgresql"  # it has columns with and without
    ):
        return timezone.make_aware(value, connection.timezone)
    return value


# --------------------------------------------------------------------------- checks


class Fault(typing.NamedTuple):
    """What is wrong, and what to do about it."""

    reason: str
    hint: str


def problems_of(
    statement: Statement,
    place: str,
    function: Any,
    parameters: Mapping[str, Any],
    returns: Any,
    *,
    is_async: bool,
) -> Iterator[Problem]:
    """
    Yield what is wrong with a statement and the method that it stands behind.

    Args:
        statement: as it was written.
        place: the dotted path of the method.
        function: what the problems speak of.
        parameters: their annotations by name.
        returns: the annotation of the result.
        is_async: whether the method is awaited.

    """
    if statement.using is not None and statement.using not in settings.DATABASES:
        yield Problem(
            Rule.UNKNOWN_DATABASE,
            f"{place} uses the database {statement.using!r}, "
            f"which is not in DATABASES.",
            f"The aliases are {', '.join(sorted(settings.DATABASES))}.",
            function,
        )
    try:
        parts = parsed(statement.text, _vendor_of(statement.using))
    except _Malformed as malformed:
        fault, hint = malformed.args
        text = f"The SQL of {place} {fault}."
        yield Problem(Rule.SQL_PARAMETER, text, hint, function)
        return
    placeholders = [part for part in parts if isinstance(part, Placeholder)]
    for text, hint in _parameter_faults(place, placeholders, parameters):
        yield Problem(Rule.SQL_PARAMETER, text, hint, function)
    wrong = _result_fault(statement, returns, is_async=is_async)
    if wrong is not None:
        text = f"{place} is annotated to return {_said(returns)}, {wrong.reason}."
        yield Problem(Rule.INTERFACE_TYPE, text, wrong.hint, function)


def _parameter_faults(
    place: str, placeholders: Sequence[Placeholder], parameters: Mapping[str, Any]
) -> Iterator[Fault]:
    for name in dict.fromkeys(part.name for part in placeholders):
        if name not in parameters:
            yield Fault(
                f"The SQL of {place} has %({name})s, and the method has no parameter "
                f"{name!r}.",
                f"Its parameters are {', '.join(parameters)}."
                if parameters
                else "Give it one.",
            )
    used = {part.name for part in placeholders}
    for name in parameters:
        if name not in used:
            yield Fault(
                f"The parameter {name!r} of {place} is not in its SQL.",
                f"Write %({name})s where it belongs, or take it away.",
            )
    for part in placeholders:
        annotation = parameters.get(part.name, _EMPTY)
        if part.path:
            fault = _path_fault(part, annotation)
        else:
            fault = _annotation_fault(part, annotation)
        if fault is not None:
            text = f"{place} cannot bind %({part.written})s: {fault.reason}."
            yield Fault(text, fault.hint)


def _path_fault(part: Placeholder, annotation: Any) -> Fault | None:
    cls = sole_type(annotation)
    if not isinstance(cls, type) or is_typed_dict(cls):
        return None
    names = field_names(cls)
    name = part.path[0]
    if names is None or name in names or hasattr(cls, name):
        return None
    return Fault(
        f"{name_of_type(cls)} has no {name!r}",
        f"It has {', '.join(names)}.",
    )


def _annotation_fault(part: Placeholder, annotation: Any) -> Fault | None:
    """Return what is certainly wrong with a parameter's type, and what to do."""
    bare = sole_type(annotation)
    origin = typing.get_origin(bare) or bare
    if part.is_list:
        is_scalar = is_plain_class(origin) and (
            issubclass(origin, (str, bytes, Mapping))
            or (is_value_type(origin) and not issubclass(origin, Iterable))
        )
        if is_scalar:
            return Fault(
                f"IN takes a list, and it is annotated with {name_of_type(bare)}",
                f"Annotate it with Sequence[{name_of_type(bare)}].",
            )
        return None
    if _is_json(annotation):
        return None
    if origin in _ABSTRACT_LISTS or is_plain_sequence(origin):
        return Fault(
            f"{name_of_type(bare)} is a list, which only IN takes",
            "Write IN before it, or annotate it with Annotated[..., Json()] to bind "
            "it as JSON.",
        )
    if (
        isinstance(origin, type)
        and field_names(origin) is not None
        and not has_converter(origin)
        and not _has_own_text(origin)
    ):
        return Fault(
            f"{name_of_type(origin)} is no value of a database",
            "Name an attribute of it as in %(name.attribute)s, write a @converter, "
            "or annotate it with Annotated[..., Json()].",
        )
    return None


_ABSTRACT_LISTS = (
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Set,
)


def _result_fault(
    statement: Statement, returns: Any, *, is_async: bool
) -> Fault | None:
    """Return what is wrong with the type of a result, and what to do."""
    bare = bare_type(returns)
    if statement.writes:
        if returns in (_EMPTY, Any, None, type(None), int):
            return None
        return Fault(
            "and a write gives the number of rows or nothing",
            "Annotate it with int or None; for RETURNING use @sql_query.",
        )
    if bare in (None, type(None)):
        return Fault("and a query has rows", "Say what they are, or use @sql_write.")
    origin = typing.get_origin(bare) or bare
    if origin in _LAZY and is_async:
        return Fault(
            "whose rows would be read in the event loop",
            "Annotate it with a list, or make it a plain method.",
        )
    inner = [
        each
        for each in (bare, *typing.get_args(bare))
        if hasattr(sole_type(each), "_meta")
    ]
    if inner:
        model = name_of_type(sole_type(inner[0]))
        return Fault(
            "which is a model",
            f"Use {model}.objects.raw() for models, or name a dataclass.",
        )
    members = [each for each in union_members(returns) if each is not type(None)]
    is_generic = any(typing.get_args(each) for each in members)
    if isinstance(bare, types.UnionType) and len(members) > 1 and is_generic:
        return Fault("which may be several things", "Say which one it is.")
    if is_protocol(bare) and origin not in (*_LAZY, *_MANY, *_ABSTRACT_LISTS):
        return Fault("which no row can be made into", "Name a dataclass.")
    return None


def _said(annotation: Any) -> str:
    if annotation in (None, type(None)):
        return "None"
    return name_of_type(annotation)
