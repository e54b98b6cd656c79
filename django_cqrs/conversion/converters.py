"""Converters: functions with which a project reads and writes its own types."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from django_cqrs.conversion.adapters import (
    CODES_FAULT,
    Converters,
    known_adapters,
    registered_converters,
)
from django_cqrs.conversion.schemas import LOAD, refusable
from django_cqrs.problems import Problem, Rule

F = TypeVar("F", bound=Callable[[Any], Any])

# The JSON side of a converter is one of these, plain or parametrised.
JSON_TYPES = (str, int, float, bool, list, dict, type(None))

converter_problems: list[Problem] = []
"""The problems of declared converters, for the system check."""


def converter(function: F) -> F:
    """
    Register a function that writes a class of yours as JSON, or reads it.

    Two functions form a pair, distinguished by their annotations: ``(Money) -> str``
    writes, ``(str) -> Money`` reads. One side is str, int, float, bool, list or dict. A
    ValueError, ArithmeticError or TypeError raised while reading is an error of the
    field. Returns the function itself.
    """
    try:
        source, target = _sides_of(function)
    except (TypeError, NameError, AttributeError) as error:
        _report_converter(function, str(error))
        return function
    cls = source if _is_json(target) else target
    side = target if _is_json(target) else source
    pair = registered_converters.setdefault(cls, Converters())
    if cls is source:
        pair.dump = side, function
    else:
        pair.load = side, function
    try:
        cls.__get_pydantic_core_schema__ = classmethod(_core_schema)
    except TypeError:
        reason = f"{cls.__qualname__} is a built-in class; wrap it in one of yours"
        _report_converter(function, reason)
    known_adapters.clear()
    return function


def has_converter(cls: Any) -> bool:
    """Return whether a ``@converter`` is registered for exactly this class."""
    return cls in registered_converters


def _sides_of(function: Callable[..., Any]) -> tuple[Any, Any]:
    hints = typing.get_type_hints(function)
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
    ]
    if len(parameters) != 1 or parameters[0].name not in hints or "return" not in hints:
        msg = "it must have one annotated parameter and an annotated return"
        raise TypeError(msg)
    source, target = hints[parameters[0].name], hints["return"]
    if _is_json(source) == _is_json(target):
        msg = "exactly one side must be a JSON type (str, int, float, bool, list, dict)"
        raise TypeError(msg)
    if not isinstance(source if _is_json(target) else target, type):
        msg = "the other side must be a class"
        raise TypeError(msg)
    return source, target


def _is_json(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in JSON_TYPES


def _report_converter(function: Callable[..., Any], reason: str) -> None:
    name = f"{function.__module__}.{function.__qualname__}"
    converter_problems.append(
        Problem(
            Rule.BROKEN_CONVERTER,
            f"The converter {name} is not used: {reason}.",
            "Annotate it as (Money) -> str, or as (str) -> Money.",
            function,
        )
    )


def _core_schema(_cls: type, source: Any, handler: Any) -> Any:
    """Return pydantic's schema for the classes of ``@converter``."""
    from pydantic_core import (
        PydanticCustomError,
        PydanticSerializationUnexpectedValue,
        core_schema,
    )

    pair = registered_converters.get(source)
    if pair is None:  # a subclass: the pair is only for its base
        return handler(source)
    name = source.__qualname__

    def load(value: Any) -> Any:
        if pair.load is None:
            code: Any = CODES_FAULT
            text: Any = "no converter reads {name}"
            raise PydanticCustomError(code, text, {"name": name})
        return refusable(pair.load[1])(value)

    def parse(value: Any, read: Callable[[Any], Any]) -> Any:
        return value if isinstance(value, source) else load(read(value))

    def write(value: Any) -> Any:
        if not isinstance(value, source):  # another member of a union
            raise PydanticSerializationUnexpectedValue(source.__name__)
        if pair.dump is None:
            msg = f"no converter writes {name}"
            raise ValueError(msg)
        return pair.dump[1](value)

    load.__name__ = parse.__name__ = source.__name__
    read_type = pair.load[0] if pair.load else Any
    write_type = pair.dump[0] if pair.dump else Any
    return core_schema.no_info_wrap_validator_function(
        parse,
        handler.generate_schema(read_type),
        metadata={LOAD: load},
        serialization=core_schema.plain_serializer_function_ser_schema(
            write, return_schema=handler.generate_schema(write_type)
        ),
    )
