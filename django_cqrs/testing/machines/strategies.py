"""Strategies of Hypothesis for messages, from the annotations of their fields."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import inspect
import math
import operator
import types
import typing
from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from django_cqrs.annotations import (
    bare_type,
    field_names,
    is_typed_dict,
    name_of_type,
)
from django_cqrs.conversion.adapters import Adapter
from django_cqrs.exceptions import InvalidOption, MessageConversionError

REFUSALS: Final = (ValueError, TypeError, ArithmeticError)
"""The exceptions by which a class refuses values; pydantic's is one of them."""

EVERY_CHECK: Final[Any] = list(HealthCheck)
"""The health checks of Hypothesis: a slow test is not a fault of the project."""

LARGEST: Final = 10**12
"""The largest number in a decimal, so that it fits the columns that store it."""

MOST: Final = 4
"""The usual number of values in a list or a dictionary."""


def messages_of(cls: Any, /, **fields: Any) -> SearchStrategy[Any]:
    """
    Return the strategy for messages of a class, from the annotations of its fields.

    Constraints in ``Annotated`` are kept, and values that the class refuses are not
    drawn. For a type that Hypothesis cannot draw, register a strategy with its
    ``register_type_strategy``.

    Args:
        cls: a dataclass, a pydantic model, a NamedTuple, a TypedDict, or any type.
        **fields: a strategy or a value for some of the fields, in place of theirs.

    Raises:
        InvalidOption: the class does not have one of the fields.

    """
    drawer = Drawer()
    if not fields:
        return drawer.of(cls)
    known = dict(_fields_of(cls))
    unknown = sorted(fields.keys() - known.keys())
    if unknown:
        msg = (
            f"messages_of({name_of_type(cls)}): the class has no field "
            f"{', '.join(map(repr, unknown))}."
        )
        raise InvalidOption(msg)
    given = {
        name: each if isinstance(each, SearchStrategy) else st.just(each)
        for name, each in fields.items()
    }
    return drawer.built(cls, given)


class Field(typing.NamedTuple):
    """A field of a class, as its constructor takes it."""

    annotation: Any
    is_required: bool
    marks: tuple[Any, ...] = ()
    """The constraints of a pydantic model's field, besides its annotation."""
    key: str = ""
    """The name that the constructor knows it by, if it is another one."""


class Drawer:
    """Finds the strategies of types; a class that contains itself has one strategy."""

    def __init__(self) -> None:
        """Start without classes."""
        self._known: dict[Any, SearchStrategy[Any]] = {}
        self._built: dict[Any, SearchStrategy[Any]] = {}

    def of(self, annotation: Any, more: tuple[Any, ...] = ()) -> SearchStrategy[Any]:
        """
        Return the strategy of an annotation.

        Args:
            annotation: the annotation.
            more: marks that stand beside it.

        """
        annotation, marks = _without_marks(annotation)
        limits = limits_in((*marks, *more))
        strategy = self._limited(annotation, limits)
        for each in limits.others:
            strategy = strategy.filter(_accepts(each))
        return strategy

    def _limited(self, annotation: Any, limits: Limits) -> SearchStrategy[Any]:
        """Return the strategy of the values within limits."""
        if limits == Limits(others=limits.others):
            return self._plain(annotation)
        if annotation in _LIMITED:
            return _LIMITED[annotation](limits)
        origin = typing.get_origin(annotation) or annotation
        if origin in _COLLECTIONS:
            return self._collection(origin, typing.get_args(annotation), **limits.sizes)
        return limits.filtered(self._plain(annotation))

    def _plain(self, annotation: Any) -> SearchStrategy[Any]:
        """Return the strategy of an annotation without constraints."""
        if annotation in _LEAVES:
            return _LEAVES[annotation]()
        origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType):
            return st.one_of(*(self.of(each) for each in _simplest_first(inner)))
        if origin is typing.Literal:
            return st.sampled_from(inner)
        if origin is type(None) or annotation is None:
            return st.none()
        if origin in _COLLECTIONS or annotation in _COLLECTIONS:
            return self._collection(origin or annotation, inner)
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            return st.sampled_from(list(annotation))
        if _has_fields(annotation):
            return self._once(annotation)
        return st.from_type(annotation)

    def _collection(
        self,
        origin: Any,
        inner: tuple[Any, ...],
        *,
        min_size: int = 0,
        max_size: int = MOST,
    ) -> SearchStrategy[Any]:
        sizes: Any = {"min_size": min_size, "max_size": max_size}
        if origin in (dict, abc.Mapping, abc.MutableMapping):
            keys, values = inner or (str, Any)
            return st.dictionaries(self.of(keys), self.of(values), **sizes)
        if origin is tuple and inner and inner[-1] is not ...:
            return st.tuples(*(self.of(each) for each in inner if each != ()))
        item = self.of(inner[0] if inner else str)
        if origin in (set, abc.Set, abc.MutableSet):
            return st.sets(item, **sizes)
        if origin is frozenset:
            return st.frozensets(item, **sizes)
        many = st.lists(item, **sizes)
        make: Any = {tuple: tuple, deque: deque}.get(origin)
        return many if make is None else many.map(make)

    def _once(self, cls: Any) -> SearchStrategy[Any]:
        """Return the one strategy of a class, which may contain itself."""
        if cls not in self._known:
            self._known[cls] = st.deferred(lambda: self._built_once(cls))
        return self._known[cls]

    def _built_once(self, cls: Any) -> SearchStrategy[Any]:
        if cls not in self._built:
            self._built[cls] = self.built(cls, {})
        return self._built[cls]

    def built(
        self, cls: Any, given: Mapping[str, SearchStrategy[Any]]
    ) -> SearchStrategy[Any]:
        """Return the strategy of a class with fields, some of which are given."""
        required: dict[str, SearchStrategy[Any]] = {}
        optional: dict[str, SearchStrategy[Any]] = {}
        for name, each in _fields_of(cls):
            strategy = given.get(name)
            if strategy is None:
                strategy = self.of(each.annotation, each.marks)
            is_needed = each.is_required or name in given
            (required if is_needed else optional)[each.key or name] = strategy
        values = st.fixed_dictionaries(required, optional=optional)
        if is_typed_dict(bare_type(cls)):
            return values
        return values.map(lambda found: _made_of(cls, found)).filter(_is_made)


_REFUSED: Final = object()


def _made_of(cls: Any, values: dict[str, Any]) -> Any:
    """Return an object, or a mark that the class refuses the values."""
    try:
        return cls(**values)
    except REFUSALS:
        return _REFUSED


def _is_made(made: Any) -> bool:
    return made is not _REFUSED


def _simplest_first(members: tuple[Any, ...]) -> list[Any]:
    return sorted(members, key=lambda each: each is not type(None))


# -------------------------------------------------------------------------- fields


def _has_fields(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    if not isinstance(origin, type):
        return False
    return is_typed_dict(origin) or field_names(origin) is not None


def _fields_of(cls: Any) -> Iterator[tuple[str, Field]]:
    """Yield the fields of a class, in the order of its constructor."""
    alias = bare_type(cls)
    bare = typing.get_origin(alias) or alias
    free = getattr(bare, "__parameters__", ())
    named = dict(zip(free, typing.get_args(alias), strict=False))  # without arguments
    known = getattr(bare, "model_fields", None)
    if known is not None:
        for name, info in known.items():
            marks = tuple(info.metadata)
            alias = info.validation_alias or info.alias
            key = alias if isinstance(alias, str) else ""
            yield name, Field(info.annotation, info.is_required(), marks, key)
        return
    hints = typing.get_type_hints(bare, include_extras=True)
    if is_typed_dict(bare):
        for name, hint in hints.items():
            mark = _mark_of_key(hint)  # where annotations are text, keys lack it
            is_needed = name in bare.__required_keys__ and mark != "NotRequired"
            bare_hint = typing.get_args(hint)[0] if mark else hint
            yield name, Field(_filled(bare_hint, named), is_needed)
        return
    for name, parameter in inspect.signature(bare).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = hints.get(name, Any)
        if isinstance(hint, dataclasses.InitVar):
            hint = hint.type
        yield name, Field(_filled(hint, named), parameter.default is parameter.empty)


def _filled(hint: Any, named: Mapping[Any, Any]) -> Any:
    """Return an annotation with the arguments of a generic class in it."""
    if isinstance(hint, typing.TypeVar):
        return named.get(hint, hint)
    free = getattr(hint, "__parameters__", ()) if named else ()
    return hint[tuple(named.get(each, each) for each in free)] if free else hint


def _mark_of_key(hint: Any) -> str:
    """Return the name of the mark around a key's annotation, empty without one."""
    name = str(getattr(typing.get_origin(hint), "_name", ""))
    return name if name in ("Required", "NotRequired", "ReadOnly") else ""


# --------------------------------------------------------------------- constraints


def _without_marks(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation without ``Annotated`` around it, and the marks of that."""
    marks: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            marks += annotation.__metadata__
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif bare_type(annotation) is not annotation:
            annotation = bare_type(annotation)
        else:
            return annotation, marks


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a value, as ``annotated_types`` and pydantic name them."""

    ge: Any = None
    gt: Any = None
    le: Any = None
    lt: Any = None
    multiple_of: Any = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: Any = None
    max_digits: int | None = None
    decimal_places: int | None = None
    others: tuple[Any, ...] = ()
    """Marks that only pydantic understands, such as a validator."""

    @property
    def sizes(self) -> dict[str, int]:
        """The least and the largest number of parts."""
        least = self.min_length or 0
        most = least + MOST if self.max_length is None else self.max_length
        return {"min_size": least, "max_size": most}

    def filtered(self, strategy: SearchStrategy[Any]) -> SearchStrategy[Any]:
        """Return a strategy without the values beyond the limits."""
        # Hypothesis knows these functions, and draws within their limits.
        for limit, function in (
            (self.ge, operator.le),
            (self.gt, operator.lt),
            (self.le, operator.ge),
            (self.lt, operator.gt),
        ):
            if limit is not None:
                strategy = strategy.filter(partial(function, limit))
        return strategy


_NAMES: Final = [each.name for each in dataclasses.fields(Limits)][:-1]


def limits_in(marks: tuple[Any, ...]) -> Limits:
    """Return the limits in the marks of an annotation."""
    found: dict[str, Any] = {}
    others: list[Any] = []
    for mark in _flat(marks):
        known = {
            name: value
            for name in _NAMES
            if (value := getattr(mark, name, None)) is not None
        }
        found.update(known)
        if not known and hasattr(mark, "func"):
            others.append(mark)
    return Limits(**found, others=tuple(others))


def _flat(marks: Iterable[Any]) -> Iterator[Any]:
    """Yield marks, and those inside a ``Field(...)`` or a group."""
    for mark in marks:
        inner = getattr(mark, "metadata", None)
        if isinstance(inner, list):
            yield from _flat(inner)
        elif hasattr(mark, "__is_annotated_types_grouped_metadata__"):
            yield from _flat(mark)
        else:
            yield mark


def _accepts(mark: Any) -> Callable[[Any], bool]:
    """Return a function that says whether pydantic accepts a value under a mark."""
    adapter = Adapter(typing.Annotated[Any, mark])

    def accepts(value: Any) -> bool:
        try:
            return bool(adapter.from_python(value) == value)
        except MessageConversionError:
            return False

    return accepts


# -------------------------------------------------------------------------- leaves


def _texts(limits: Limits | None = None) -> SearchStrategy[str]:
    # PostgreSQL does not store NUL in a text, and no database half a character.
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    if limits is None:
        return st.text(characters, max_size=20)
    if limits.pattern is None:
        return st.text(characters, **limits.sizes)
    least, most = limits.min_length or 0, limits.max_length
    return st.from_regex(limits.pattern, alphabet=characters).filter(
        lambda text: least <= len(text) and (most is None or len(text) <= most)
    )


def _integers(limits: Limits) -> SearchStrategy[int]:
    step = limits.multiple_of
    if step is None:
        return limits.filtered(st.integers())
    low, high = limits.ge, limits.le
    numbers = st.integers(
        None if low is None else math.ceil(low / step),
        None if high is None else math.floor(high / step),
    )
    found: SearchStrategy[int] = numbers.map(lambda number: number * step)
    return limits.filtered(found)


def _limited_floats(limits: Limits) -> SearchStrategy[float]:
    return limits.filtered(_floats())


def _limited_decimals(limits: Limits) -> SearchStrategy[Decimal]:
    places = 2 if limits.decimal_places is None else limits.decimal_places
    largest: Any = LARGEST
    if limits.max_digits is not None:
        largest = Decimal(10**limits.max_digits - 1).scaleb(-places)
    low = limits.ge if limits.ge is not None else limits.gt
    high = limits.le if limits.le is not None else limits.lt
    numbers = st.decimals(
        -largest if low is None else low,
        largest if high is None else high,
        places=places,
    )
    return limits.filtered(numbers)


def _json() -> SearchStrategy[Any]:
    scalars = (
        st.none() | st.booleans() | st.integers(-(2**31), 2**31) | _floats() | _texts()
    )
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=MOST)
            | st.dictionaries(_texts(), inner, max_size=MOST)
        ),
        max_leaves=5,
    )


def _floats() -> SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False)


def _decimals() -> SearchStrategy[Decimal]:
    return st.decimals(-LARGEST, LARGEST, allow_nan=False, places=2)


def _datetimes() -> SearchStrategy[dt.datetime]:
    zones = st.just(dt.UTC) if settings.USE_TZ else st.none()
    return st.datetimes(timezones=zones)


def _spans() -> SearchStrategy[dt.timedelta]:
    longest = dt.timedelta(days=10_000)
    return st.timedeltas(-longest, longest)


_LEAVES: Final[dict[Any, Callable[[], SearchStrategy[Any]]]] = {
    Any: _json,
    object: _json,
    bool: st.booleans,
    int: lambda: st.integers(-(2**31), 2**31 - 1),
    float: _floats,
    str: _texts,
    bytes: lambda: st.binary(max_size=20),
    Decimal: _decimals,
    UUID: st.uuids,
    dt.date: st.dates,
    dt.datetime: _datetimes,
    dt.time: st.times,
    dt.timedelta: _spans,
    type(None): st.none,
}

_LIMITED: Final[dict[Any, Callable[[Limits], SearchStrategy[Any]]]] = {
    int: _integers,
    float: _limited_floats,
    Decimal: _limited_decimals,
    str: _texts,
    bytes: lambda limits: st.binary(**limits.sizes),
}

_COLLECTIONS: Final = {
    *(dict, list, set, frozenset, tuple, deque),
    *(abc.Mapping, abc.MutableMapping, abc.Sequence, abc.MutableSequence),
    *(abc.Set, abc.MutableSet, abc.Iterable, abc.Collection),
}
