"""Statements with named parameters, prepared for a database."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionDoesNotExist
from django.utils.duration import duration_microseconds

from django_cqrs.annotations import field_names, marks_of, name_of_type
from django_cqrs.conversion.adapters import to_json, to_jsonable
from django_cqrs.conversion.converters import has_converter
from django_cqrs.exceptions import ParameterError
from django_cqrs.modelling.sql.decorators import Json, Statement
from django_cqrs.modelling.sql.rows import Values, reader_of
from django_cqrs.pipeline.tenancy import tenancy

# NOT and IN belong to a placeholder: both are replaced for an empty list.
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
    """The place of a value in a statement."""

    name: str
    """The parameter's name."""
    path: tuple[str, ...]
    """The attributes from the argument to the value."""
    is_list: bool
    is_negated: bool

    @property
    def written(self) -> str:
        """The name with the attributes."""
        return ".".join((self.name, *self.path))


Part = str | Placeholder


class Malformed(Exception):
    """A signal between two functions here: the fault, and its fix."""


# Text in which drivers replace placeholders, but databases expect no parameter.
_QUOTED = r"""
    '(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z) | `(?:[^`]|``)*(?:`|\Z)
    | --[^\n]* | (?<![\w$])(?P<tag>\$(?:[^\W\d]\w*)?\$)(?s:.*?)(?:(?P=tag)|\Z)
"""
_BLOCK = r"| /\*(?s:.*?)(?:\*/|\Z)"
_REGIONS: Mapping[str, str] = {
    # E'...' has backslash escapes; nested comments are parsed by hand.
    "postgresql": rf"\bE'(?:[^'\\]|\\(?s:.)|'')*(?:'|\Z) | {_QUOTED} | (?P<nested>/\*)",
    # /*! is not a comment but a condition on the version.
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
    """Yield the ranges of quotes and comments in a statement, with their kinds."""
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
    Return a statement as its SQL and placeholders.

    Args:
        text: the statement.
        vendor: the database's vendor, in Django's word.

    Raises:
        Malformed: a percent sign does not begin a placeholder, or a placeholder is in
            quotes or in a comment, where its value would become part of the SQL.

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
            raise Malformed(
                f"has a percent sign that does not begin a placeholder, in {rest!r}",
                "Write %(name)s for a parameter, and %% for a percent sign.",
            )
        if not _NAME.fullmatch(sign["name"]):
            raise Malformed(
                f"has the placeholder %({sign['name']})s, which does not name a "
                "parameter",
                "Write %(name)s, or %(name.attribute)s.",
            )
        for first, behind, place in quoted:
            if first <= sign.start("name") < behind:
                raise Malformed(
                    f"has the placeholder %({sign['name']})s in {place}, where its "
                    f"value would become part of the SQL",
                    "A value does not need quotes: write the placeholder outside "
                    "them, and join it to other text with || or CONCAT().",
                )
        name, *path = sign["name"].split(".")
        parts.append(text[end : sign.start()])
        parts.append(
            Placeholder(name, tuple(path), bool(sign["membership"]), bool(sign["not"]))
        )
        end = sign.end()
    return (*parts, text[end:])


def vendor_of(using: str | None) -> str:
    """Return the vendor of an alias's database; empty if there is none."""
    try:
        return connections[using or DEFAULT_DB_ALIAS].vendor
    except (ConnectionDoesNotExist, ImproperlyConfigured):
        return ""


class BoundQuery:
    """A statement with its method, prepared once."""

    def __init__(
        self,
        statement: Statement,
        place: str,
        parameters: Mapping[str, Any],
        returns: Any,
    ) -> None:
        """
        Prepare a valid statement.

        Args:
            statement: the statement, as written.
            place: the dotted path of the method, for errors.
            parameters: the annotations by name.
            returns: the annotation of the result.

        """
        self.place = place
        policy = tenancy() if statement.using is None else None
        self._tenancy = policy
        self._using: str = statement.using or DEFAULT_DB_ALIAS
        self.parts = parsed(statement.text, vendor_of(self._using))
        self.json: frozenset[str] = frozenset(
            name for name, each in parameters.items() if is_json(each)
        )
        self.run: Callable[[Values], Any]
        if statement.writes:
            self.run = self._counting(returns)
        else:
            self.run = reader_of(returns, place)(self)

    @property
    def using(self) -> str:
        """
        The alias of the database of this call.

        Raises:
            MissingTenant: each tenant has a database, and nothing has chosen a tenant.

        """
        policy = self._tenancy
        return self._using if policy is None else policy.alias_of_call(self.place)

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
        Return the SQL for these values, and the values in the database's form.

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
                # No database accepts IN (). The operand is NULL or it is not, so one of
                # these tests is always true, like `NOT IN` nothing, and the other
                # always false.
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
        except Malformed as reason:
            msg = f"{self.place} cannot bind %({part.written})s: {reason.args[0]}."
            raise ParameterError(msg) from None


_NEVER = "IS NULL IS NULL"

_AS_THEY_ARE = frozenset({bool, bytes, int, float, str, type(None)})


def bindable(value: Any, connection: BaseDatabaseWrapper) -> Any:
    """Return a value in the form that a database's cursor accepts."""
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
            # As text, if the driver of a database with such a type cannot convert it.
            native = features.has_native_uuid_field
            return str(value) if native else value.hex
        case bytearray() | memoryview():
            return value
        case dict():
            return to_json(value)
    cls = type(value)
    if is_plain_sequence(cls):
        msg = (
            f"{name_of_type(cls)} belongs in `IN %(name)s`; to store it as JSON, "
            "annotate the parameter with Annotated[..., Json()]"
        )
        raise Malformed(msg)
    if has_own_text(cls):
        return str(value)
    msg = (
        f"{name_of_type(cls)} cannot be stored in a database. Write a @converter for "
        "it, give it a __str__, or annotate the parameter with Annotated[..., Json()]"
    )
    raise Malformed(msg)


def is_plain_sequence(cls: Any) -> bool:
    """Return whether a class is a plain list type, not one with fields."""
    return (
        isinstance(cls, type)
        and issubclass(cls, (list, tuple, set, frozenset))
        and field_names(cls) is None
    )


def has_own_text(cls: type) -> bool:
    """Return whether a class defines its objects' text itself."""
    for base in cls.__mro__:
        if "__str__" in vars(base):
            return base is not object and not base.__module__.startswith("pydantic")
    return False


def is_json(annotation: Any) -> bool:
    """Return whether an annotation is marked as JSON."""
    return any(each is Json or isinstance(each, Json) for each in marks_of(annotation))
