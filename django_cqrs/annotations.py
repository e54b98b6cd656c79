"""Read annotations: the members, names and marks of types, and signatures."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

NAMESPACE = "__cqrs_namespace__"

LOCAL = "<locals>"


def _read_field_names(cls: Any) -> tuple[str, ...] | None:
    """Return the names of a class's fields; None if it has no fields."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if issubclass(cls, tuple):
        return getattr(cls, "_fields", None)  # of a NamedTuple
    return tuple(cls.model_fields) if hasattr(cls, "model_fields") else None


field_names: Callable[[type], tuple[str, ...] | None]
field_names = functools.cache(_read_field_names)
"""The names of a class's fields; None if it has no fields."""


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, without aliases and ``Annotated``."""
    annotation = bare_type(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(
            member
            for each in typing.get_args(annotation)
            for member in union_members(each)
        )
    return (annotation,)


def bare_type(annotation: Any) -> Any:
    """Return an annotation without ``Annotated``, alias or type variable around it."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):  # the alias of a `type` statement
            annotation = annotation.__value__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or object
        else:
            return annotation


def is_plain_class(annotation: Any) -> bool:
    """Return whether an annotation can be used with ``isinstance``."""
    return (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and not is_typed_dict(annotation)
        and not is_opaque_protocol(annotation)
    )


def is_typed_dict(annotation: Any) -> bool:
    """Return whether an annotation is a TypedDict, from either typing module."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, dict)
        and hasattr(annotation, "__required_keys__")
    )


def is_protocol(annotation: Any) -> bool:
    """Return whether an annotation is a Protocol itself, not an implementation."""
    return bool(getattr(annotation, "_is_protocol", False))


def is_opaque_protocol(annotation: Any) -> bool:
    """Return whether it is a Protocol that ``isinstance`` cannot test."""
    return is_protocol(annotation) and not getattr(
        annotation, "_is_runtime_protocol", False
    )


def name_of_type(annotation: Any) -> str:
    """Return a type's name for people: ``OpenTicket``, ``list[int]``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__qualname__.rpartition("<locals>.")[2]
    return str(annotation).replace("typing.", "")


def usual_name(cls: type) -> str:
    """Return the usual name of a class's id in messages: ``order_line_id``."""
    words = re.sub(
        r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__
    )
    return f"{words.lower()}_id"


_VALUES = (
    *(bool, bytes, float, int, str, type(None)),
    *(date, datetime, time, timedelta, Decimal, UUID),
    *(dict, frozenset, list, set, tuple),
)


def is_value_type(cls: type) -> bool:
    """Return whether the annotation alone restores a stored value, without a name."""
    return issubclass(cls, _VALUES) and not hasattr(cls, "_fields")


def dotted(path: Iterable[Any]) -> str:
    """Return the steps of a path, joined with dots."""
    return ".".join(map(str, path))


def path_of(cls: type) -> str:
    """Return the dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


EMPTY = inspect.Parameter.empty

Names = Mapping[str, Any]
NO_NAMES: Names = {}


def names_seen_by(
    function: Callable[..., Any], owner: type | None, around: Names
) -> Names:
    """Return the names that a function's annotations may use, besides its module's."""
    is_local = LOCAL in getattr(owner or function, "__qualname__", "")
    names = {
        **(around if is_local else NO_NAMES),
        **getattr(owner, NAMESPACE, NO_NAMES),
        **getattr(function, NAMESPACE, NO_NAMES),
    }
    if owner is not None:
        names.setdefault(owner.__name__, owner)
    return names


def signature_of(
    function: Callable[..., Any], owner: type, names: Names = NO_NAMES
) -> tuple[list[inspect.Parameter], Any]:
    """
    Return the evaluated parameters of a class's function, and its return annotation.

    Args:
        function: the function as defined in the class.
        owner: the class.
        names: the names visible to the class, if it is local.

    Raises:
        Exception: an annotation cannot be evaluated.

    """
    return read_signature(function, names_seen_by(function, owner, names))


def read_signature(
    function: Callable[..., Any], names: Names
) -> tuple[list[inspect.Parameter], Any]:
    """Return the evaluated parameters of a callable, and its return annotation."""
    hinted: Any = function
    while isinstance(hinted, functools.partial):
        hinted = hinted.func
    if isinstance(hinted, type):
        hinted = hinted.__init__  # type: ignore[misc]
    elif not hasattr(hinted, "__code__") and not hasattr(hinted, "__wrapped__"):
        call = vars(type(hinted)).get("__call__")
        hinted = call if isinstance(call, types.FunctionType) else hinted
    hints = typing.get_type_hints(
        hinted, localns=dict(names) or None, include_extras=True
    )
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=hints.get(parameter.name, EMPTY))
        for parameter in signature.parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return parameters, hints.get("return", EMPTY)


def marks_of(annotation: Any) -> tuple[Any, ...]:
    """Return the marks of an annotation, including those inside an alias or a union."""
    if hasattr(annotation, "__value__"):
        return marks_of(annotation.__value__)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return (*annotation.__metadata__, *marks_of(inner[0]))
    if origin in (typing.Union, types.UnionType):
        return tuple(mark for member in inner for mark in marks_of(member))
    return ()


def sole_type(annotation: Any) -> Any:
    """Return an annotation without its wrappers, including ``| None``."""
    members = [each for each in union_members(annotation) if each is not type(None)]
    return members[0] if len(members) == 1 else bare_type(annotation)


def place_of(function: Any) -> str:
    """Return the dotted path of a function or class, or of an object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or "builtins"
    return f"{module}.{named.__qualname__}"
