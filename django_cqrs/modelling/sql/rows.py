"""The results of queries, in the shape of the annotation."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from django_cqrs.annotations import (
    EMPTY,
    bare_type,
    field_names,
    is_typed_dict,
    sole_type,
    union_members,
)
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.converters import has_converter
from django_cqrs.exceptions import UnexpectedResult

Values = Mapping[str, Any]
"""The arguments of one call, by parameter name."""

_CHUNK = 1000


class Bindable(Protocol):
    """A statement that can be bound to the values of one call."""

    @property
    def using(self) -> str:
        """The alias of the database of this call."""
        ...

    def bound(
        self, values: Values, connection: BaseDatabaseWrapper
    ) -> tuple[str, list[Any]]:
        """Return the SQL, and the values in the database's form."""
        ...


Reader = Callable[[Bindable], Callable[[Values], Any]]

LAZY = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
)
MANY = (list, set, frozenset, collections.abc.Sequence, collections.abc.Collection)


def reader_of(returns: Any, place: str) -> Reader:
    """Return a reader that runs a query and returns its rows as annotated."""
    if returns in (EMPTY, Any, list):
        returns = list[dict[str, Any]]
    bare = bare_type(returns)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin in LAZY or bare in LAZY:
        return _lazy(arguments[0] if arguments else dict, place)
    if origin in MANY or bare in MANY:
        return _many(bare, arguments[0] if arguments else dict, place)
    if origin is tuple and arguments[1:] == (...,):
        return _many(bare, arguments[0], place)
    return _single(returns, place)


def _many(whole: Any, item: Any, place: str) -> Reader:
    shape = shape_of(item, place)
    origin = typing.get_origin(whole) or whole
    is_list = origin in (list, *MANY[3:])
    convert = None
    if not shape.is_plain or not is_list:
        wanted: Any = list[item] if is_list else whole
        convert = adapter_of(wanted).from_python

    def bind(query: Bindable) -> Callable[[Values], Any]:
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

    def bind(query: Bindable) -> Callable[[Values], Any]:
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

    def bind(query: Bindable) -> Callable[[Values], Any]:
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
                    msg = f"{place} found NULL, but is annotated to return a value."
                    raise UnexpectedResult(msg)
                if convert is None or shape.takes(rows):
                    return row
                return shape.finished(convert(row), connection)
            if rows:
                msg = f"{place} found several rows, but is annotated to return one."
                raise UnexpectedResult(msg)
            if is_optional:
                return None
            msg = (
                f"{place} found no row, but is annotated to return one. If there may "
                "be none, annotate it with `| None`."
            )
            raise UnexpectedResult(msg)

        return read

    return bind


class RowShape:
    """The form of one row."""

    is_plain: bool
    """Whether its values need no conversion."""

    def of(
        self, cursor: Any, rows: Sequence[Any], connection: BaseDatabaseWrapper
    ) -> list[Any]:
        """Return the rows of a cursor in this shape, without conversion."""
        raise NotImplementedError

    def takes(self, _rows: list[Any]) -> bool:
        """Return whether the values have the wanted type already."""
        return False

    def finished(self, value: Any, _connection: BaseDatabaseWrapper) -> Any:
        """Return a converted value, completed beyond the conversion."""
        return value

    def finished_list(self, values: Any, _connection: BaseDatabaseWrapper) -> Any:
        """Do the same for many."""
        return values


class _Tuples(RowShape):
    """``tuple[int, str]``: the row itself."""

    is_plain = False

    def of(
        self, cursor: Any, rows: Sequence[Any], connection: BaseDatabaseWrapper
    ) -> list[Any]:
        return [tuple(_aware(value, connection) for value in row) for row in rows]


@dataclasses.dataclass(frozen=True)
class _Scalars(RowShape):
    """Any type without fields: the first column."""

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
        # A time computed by a function of SQLite comes as text.
        return _aware(value, connection)

    def finished_list(self, values: Any, connection: BaseDatabaseWrapper) -> Any:
        if isinstance(values, list):
            return [_aware(value, connection) for value in values]
        return values


@dataclasses.dataclass(frozen=True)
class _Dicts(RowShape):
    """A dict of the columns, or an object made from one."""

    place: str
    is_plain: bool
    documents: frozenset[str]
    """The columns with JSON, which every database returns as text."""

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


def shape_of(annotation: Any, place: str) -> RowShape:
    """Return the shape of a row by its annotation."""
    bare = sole_type(annotation)
    origin = typing.get_origin(bare) or bare
    if origin is tuple and typing.get_args(bare):
        return _Tuples()
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        inner = typing.get_args(bare)
        return _Dicts(place, not inner or inner == (str, Any), frozenset())
    if origin in (Any, object, EMPTY):
        return _Scalars(annotation, is_plain=True)
    if is_typed_dict(bare) or (
        isinstance(origin, type)
        and field_names(origin) is not None
        and not has_converter(origin)
    ):
        return _Dicts(place, False, _documents_of(origin))
    return _Scalars(annotation, is_plain=False)


def _documents_of(cls: Any) -> frozenset[str]:
    """Return the fields that only JSON can hold: lists, dicts, objects."""
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
    """Return a time with the zone in which databases without zones store it."""
    if (
        type(value) is datetime
        and value.tzinfo is None
        and settings.USE_TZ
        and connection.vendor != "postgresql"  # it has both kinds of columns
    ):
        return timezone.make_aware(value, connection.timezone)
    return value
