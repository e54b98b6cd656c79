"""Compatibility of annotations: may a value of one type be used as another?"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from django_cqrs.annotations import (
    EMPTY,
    bare_type,
    field_names,
    is_protocol,
    is_typed_dict,
    is_value_type,
    union_members,
)
from django_cqrs.conversion.converters import has_converter


def fits(returned: Any, promised: Any) -> bool:
    """Return whether a value of one annotation may have the other type."""
    if Any in (returned, promised) or returned is inspect.Parameter.empty:
        return True
    if bare_type(promised) is object:
        return True
    return all(
        any(_fits_one(one, other) for other in union_members(_or_none(promised)))
        for one in union_members(_or_none(returned))
    )


def _or_none(annotation: Any) -> Any:
    return type(None) if annotation is None else annotation


def _fits_one(returned: Any, promised: Any) -> bool:
    if returned == promised or Any in (returned, promised):
        return True
    if isinstance(returned, typing.NewType):
        return fits(returned.__supertype__, promised)
    if isinstance(promised, typing.NewType):
        return False
    ours, theirs = typing.get_args(returned), typing.get_args(promised)
    origin = typing.get_origin(returned) or returned
    wanted = typing.get_origin(promised) or promised
    if origin is typing.Literal:
        if wanted is typing.Literal:
            return set(ours) <= set(theirs)
        return all(fits(type(value), promised) for value in ours)
    if wanted is typing.Literal:
        return False
    if not isinstance(origin, type) or not isinstance(wanted, type):
        return True  # unknown, such as Never
    try:
        if not issubclass(origin, (wanted, *_PROMOTED.get(wanted, ()))):
            return False
    except TypeError:  # a Protocol with data
        return True
    if not ours or not theirs or len(ours) != len(theirs):
        return True
    return all(map(fits, ours, theirs))


# Type checkers accept the one as the other.
_PROMOTED: dict[type, tuple[type, ...]] = {float: (int,), complex: (int, float)}


def may_become(given: Any, wanted: Any, *, of_result: bool = False) -> bool:
    """
    Return whether a value of one annotation may be converted to another.

    Only certain failures are refused: a string may be a number.

    Args:
        given: the annotation of the existing value.
        wanted: the annotation of the converted value.
        of_result: whether it is an answer, whose objects are first split into fields.

    """
    return all(
        any(_may_one_become(one, other, of_result) for other in union_members(wanted))
        for one in union_members(given)
        if one is not type(None)
    )


_NUMBERS = (int, float, Decimal)
_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Iterable)


def _may_one_become(given: Any, wanted: Any, of_result: bool) -> bool:
    if given == wanted or {given, wanted} & {Any, object, EMPTY}:
        return True
    ours = typing.get_origin(given) or given
    theirs = typing.get_origin(wanted) or wanted
    if not isinstance(ours, type) or not isinstance(theirs, type):
        return True  # unknown: a Literal, a NewType, a type variable
    if is_protocol(ours) and ours.__module__ not in _STANDARD:
        return True
    if is_protocol(theirs) and theirs.__module__ not in _STANDARD:
        return True
    if _is_related(ours, theirs) or has_converter(ours) or has_converter(theirs):
        return True
    if hasattr(theirs, "__get_pydantic_core_schema__"):
        return True
    if _is_mapping(ours):
        return _is_mapping(theirs) or not is_value_type(theirs)
    if field_names(ours) is not None or hasattr(ours, "_meta"):
        has_fields = field_names(theirs) is not None
        return _is_mapping(theirs) or (of_result and has_fields)
    if _is_many(ours) or _is_many(theirs):
        return _is_many(ours) and _is_many(theirs)
    if issubclass(ours, (str, bytes)):
        return is_value_type(theirs)
    if is_value_type(ours) and is_value_type(theirs):
        return any(
            issubclass(ours, alike) and issubclass(theirs, alike)
            for alike in (_NUMBERS, (date, datetime))
        )
    return not is_value_type(ours) and not is_value_type(theirs)


_STANDARD = ("typing", "collections.abc", "abc")


def _is_related(one: type, other: type) -> bool:
    try:
        return issubclass(one, other) or issubclass(other, one)
    except TypeError:
        return True


def _is_mapping(cls: type) -> bool:
    return is_typed_dict(cls) or issubclass(cls, Mapping)


def _is_many(cls: type) -> bool:
    return (
        issubclass(cls, _SEQUENCES)
        and not issubclass(cls, (str, bytes, Mapping))
        and field_names(cls) is None
    )
