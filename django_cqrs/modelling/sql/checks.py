"""Checks of SQL against the signature of its method."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.conf import settings

from django_cqrs.annotations import (
    EMPTY,
    bare_type,
    field_names,
    is_plain_class,
    is_protocol,
    is_typed_dict,
    is_value_type,
    name_of_type,
    sole_type,
    union_members,
)
from django_cqrs.conversion.converters import has_converter
from django_cqrs.modelling.sql.decorators import Statement
from django_cqrs.modelling.sql.rows import LAZY, MANY
from django_cqrs.modelling.sql.statements import (
    Malformed,
    Placeholder,
    has_own_text,
    is_json,
    is_plain_sequence,
    parsed,
    vendor_of,
)
from django_cqrs.problems import Problem, Rule


class StatementFault(typing.NamedTuple):
    """A fault, and its fix."""

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
    Yield the faults of a statement and its method.

    Args:
        statement: the statement, as written.
        place: the dotted path of the method.
        function: the object of the problems.
        parameters: the annotations by name.
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
        parts = parsed(statement.text, vendor_of(statement.using))
    except Malformed as malformed:
        fault, hint = malformed.args
        text = f"The SQL of {place} {fault}."
        yield Problem(Rule.SQL_PARAMETER, text, hint, function)
        return
    placeholders = [part for part in parts if isinstance(part, Placeholder)]
    for text, hint in _parameter_faults(place, placeholders, parameters):
        yield Problem(Rule.SQL_PARAMETER, text, hint, function)
    wrong = _result_fault(statement, returns, is_async=is_async)
    if wrong is not None:
        text = f"{place} is annotated to return {_describe(returns)}, {wrong.reason}."
        yield Problem(Rule.INTERFACE_TYPE, text, wrong.hint, function)


def _parameter_faults(
    place: str, placeholders: Sequence[Placeholder], parameters: Mapping[str, Any]
) -> Iterator[StatementFault]:
    for name in dict.fromkeys(part.name for part in placeholders):
        if name not in parameters:
            yield StatementFault(
                f"The SQL of {place} has %({name})s, but the method has no parameter "
                f"{name!r}.",
                f"Its parameters are {', '.join(parameters)}."
                if parameters
                else "Add the parameter.",
            )
    used = {part.name for part in placeholders}
    for name in parameters:
        if name not in used:
            yield StatementFault(
                f"The parameter {name!r} of {place} is not in its SQL.",
                f"Use %({name})s in the statement, or remove the parameter.",
            )
    for part in placeholders:
        annotation = parameters.get(part.name, EMPTY)
        if part.path:
            fault = _path_fault(part, annotation)
        else:
            fault = _annotation_fault(part, annotation)
        if fault is not None:
            text = f"{place} cannot bind %({part.written})s: {fault.reason}."
            yield StatementFault(text, fault.hint)


def _path_fault(part: Placeholder, annotation: Any) -> StatementFault | None:
    cls = sole_type(annotation)
    if not isinstance(cls, type) or is_typed_dict(cls):
        return None
    names = field_names(cls)
    name = part.path[0]
    if names is None or name in names or hasattr(cls, name):
        return None
    return StatementFault(
        f"{name_of_type(cls)} has no {name!r}",
        f"It has {', '.join(names)}.",
    )


def _annotation_fault(part: Placeholder, annotation: Any) -> StatementFault | None:
    """Return a certain fault of a parameter's type, with its fix."""
    bare = sole_type(annotation)
    origin = typing.get_origin(bare) or bare
    if part.is_list:
        is_scalar = is_plain_class(origin) and (
            issubclass(origin, (str, bytes, Mapping))
            or (is_value_type(origin) and not issubclass(origin, Iterable))
        )
        if is_scalar:
            return StatementFault(
                f"IN takes a list, but it is annotated with {name_of_type(bare)}",
                f"Annotate it with Sequence[{name_of_type(bare)}].",
            )
        return None
    if is_json(annotation):
        return None
    if origin in _ABSTRACT_LISTS or is_plain_sequence(origin):
        return StatementFault(
            f"{name_of_type(bare)} is a list, which is only allowed with IN",
            "Write IN before it, or annotate it with Annotated[..., Json()] to bind "
            "it as JSON.",
        )
    if (
        isinstance(origin, type)
        and field_names(origin) is not None
        and not has_converter(origin)
        and not has_own_text(origin)
    ):
        return StatementFault(
            f"{name_of_type(origin)} cannot be stored in a database",
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
) -> StatementFault | None:
    """Return a fault of a result's type, with its fix."""
    bare = bare_type(returns)
    if statement.writes:
        if returns in (EMPTY, Any, None, type(None), int):
            return None
        return StatementFault(
            "but a write returns the number of rows or nothing",
            "Annotate it with int or None; for RETURNING use @sql_query.",
        )
    if bare in (None, type(None)):
        return StatementFault(
            "but a query returns rows",
            "Annotate the type of the rows, or use @sql_write.",
        )
    origin = typing.get_origin(bare) or bare
    if origin in LAZY and is_async:
        return StatementFault(
            "whose rows would be read in the event loop",
            "Annotate it with a list, or make it a synchronous method.",
        )
    inner = [
        each
        for each in (bare, *typing.get_args(bare))
        if hasattr(sole_type(each), "_meta")
    ]
    if inner:
        model = name_of_type(sole_type(inner[0]))
        return StatementFault(
            "which is a model",
            f"Use {model}.objects.raw() for models, or name a dataclass.",
        )
    members = [each for each in union_members(returns) if each is not type(None)]
    is_generic = any(typing.get_args(each) for each in members)
    if isinstance(bare, types.UnionType) and len(members) > 1 and is_generic:
        return StatementFault("which allows several types", "Name exactly one type.")
    if is_protocol(bare) and origin not in (*LAZY, *MANY, *_ABSTRACT_LISTS):
        return StatementFault("which cannot be created from a row", "Name a dataclass.")
    return None


def _describe(annotation: Any) -> str:
    if annotation in (None, type(None)):
        return "None"
    return name_of_type(annotation)
