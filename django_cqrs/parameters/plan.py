"""Plans: the arguments of one function, filled from a message."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from django_cqrs.annotations import EMPTY, bare_type
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.exceptions import FieldError, MessageConversionError
from django_cqrs.messages import Message
from django_cqrs.problems import Problem

Resolver = Callable[[Message], Any]

READING = "reading"
"""The attribute of a locking resolver with its counterpart for queries."""
UNLOCKED = "unlocked"
"""The attribute with its counterpart for handlers that write without locking reads."""
PER_MESSAGE = "per_message"
"""The attribute of a resolver whose value no service may keep: True."""


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same for every message."""

    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A value that the caller provides, such as an interceptor's ``proceed``."""

    name: str


Source = Constant | Given | Resolver
"""The source of a parameter's value."""

Bound = Callable[[Message], Any]
"""A function of a message, with all of its parameters filled."""


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """One parameter and its source."""

    name: str
    positional: bool
    source: Source


@dataclasses.dataclass(frozen=True, slots=True)
class ArgumentPlan:
    """
    The plan for calling one function with a message: compiled once, at start-up.

    `payload` is the type of the payload parameter and `payload_name` its name, None
    without such a parameter; `problems` are the reasons why it cannot be called.
    """

    arguments: tuple[Argument, ...] = ()
    payload: PayloadType | None = None
    payload_name: str | None = None
    payload_default: Any = EMPTY
    uses_dependencies: bool = False
    problems: tuple[Problem, ...] = ()
    returns: Any = EMPTY

    @property
    def is_payload_only(self) -> bool:
        """Return whether the call is simply ``function(payload)``."""
        return self._calls_with(payload_of)

    @property
    def is_payload_and_message(self) -> bool:
        """Return whether the call is simply ``function(payload, message)``."""
        return self._calls_with(payload_of, message_itself)

    def _calls_with(self, *sources: Source) -> bool:
        found = tuple(each.source for each in self.arguments if each.positional)
        return found == sources and len(found) == len(self.arguments)

    @property
    def reading(self) -> ArgumentPlan:
        """The plan for a reader: without locks."""
        return self._with_twins(READING)

    @property
    def unlocked(self) -> ArgumentPlan:
        """The plan for a writer without locks."""
        return self._with_twins(UNLOCKED)

    def _with_twins(self, name: str) -> ArgumentPlan:
        arguments = tuple(
            dataclasses.replace(each, source=getattr(each.source, name, each.source))
            for each in self.arguments
        )
        return dataclasses.replace(self, arguments=arguments)

    def bind(self, function: Callable[..., Any]) -> Bound:
        """Return the function as a function of the message alone."""
        positional = [each.source for each in self.arguments if each.positional]
        named = [each for each in self.arguments if not each.positional]
        if named:
            return _bound_by_name(function, positional, named)
        match positional:
            case [source]:
                return _bound_to_one(function, source)
            case [source, Constant(value)] if source is payload_of:
                return lambda message: function(message._payload, value)
            case [source, other] if source is payload_of and other is message_itself:
                return lambda message: function(message._payload, message)
            case [source, other]:
                return _bound_to_two(function, source, other)
        resolvers = [_resolver(source) for source in positional]
        return lambda message: function(*[resolve(message) for resolve in resolvers])

    @property
    def given(self) -> frozenset[str]:
        """The names of the values that the caller provides beside the message."""
        sources = (argument.source for argument in self.arguments)
        return frozenset(each.name for each in sources if isinstance(each, Given))

    def bind_given(
        self, function: Callable[..., Any]
    ) -> Callable[[Message, Mapping[str, Any]], Any]:
        """Return the function as a function of the message and the caller's values."""
        positional = [
            _given_resolver(each.source) for each in self.arguments if each.positional
        ]
        named = [
            (each.name, _given_resolver(each.source))
            for each in self.arguments
            if not each.positional
        ]

        def call(message: Message, given: Mapping[str, Any]) -> Any:
            return function(
                *[resolve(message, given) for resolve in positional],
                **{name: resolve(message, given) for name, resolve in named},
            )

        return call


def payload_of(message: Message) -> Any:
    """Return the payload of a message."""
    return message._payload


def message_itself(message: Message) -> Message:
    """Return the message being handled."""
    return message


def _bound_to_one(function: Callable[..., Any], source: Source) -> Bound:
    resolve = _resolver(source)
    return lambda message: function(resolve(message))


def _bound_to_two(function: Callable[..., Any], first: Source, second: Source) -> Bound:
    resolve, resolve_other = _resolver(first), _resolver(second)
    if first is payload_of:
        return lambda message: function(message._payload, resolve_other(message))
    return lambda message: function(resolve(message), resolve_other(message))


def _bound_by_name(
    function: Callable[..., Any], positional: list[Source], named: list[Argument]
) -> Bound:
    resolvers = [_resolver(source) for source in positional]
    constants = {
        each.name: each.source.value
        for each in named
        if isinstance(each.source, Constant)
    }
    others = [
        (each.name, _resolver(each.source))
        for each in named
        if each.name not in constants
    ]

    def call(message: Message) -> Any:
        given = {name: resolve(message) for name, resolve in others}
        args = [resolve(message) for resolve in resolvers]
        return function(*args, **constants, **given)

    return call


def _resolver(source: Source) -> Resolver:
    if isinstance(source, Constant):
        value = source.value
        return lambda _message: value
    assert not isinstance(source, Given)  # noqa: S101 - bind_given() takes those
    return source


def _given_resolver(
    source: Source,
) -> Callable[[Message, Mapping[str, Any]], Any]:
    if isinstance(source, Given):
        name = source.name
        return lambda _message, given: given[name]
    resolve = _resolver(source)
    return lambda message, _given: resolve(message)


def header_converter(name: str, wanted: Any) -> Callable[[Any], Any]:
    """Return a function that converts a header's value to the wanted type."""
    wanted = bare_type(wanted)
    if wanted in (EMPTY, Any, object):
        return lambda value: value
    exact = wanted if isinstance(wanted, type) else None

    def convert(value: Any) -> Any:
        if type(value) is exact:
            return value
        if exact is str and isinstance(value, _TEXTUAL):
            return text_of_header(value)
        try:
            return adapter_of(wanted).from_python(value)
        except MessageConversionError as error:
            path = f"headers.{name}"
            errors = [
                FieldError(f"{path}.{e.path}" if e.path else path, e.message, e.code)
                for e in error.errors
            ]
            fault = MessageConversionError(error.target, errors)
            fault.what = "header"
            raise fault from error

    return convert


_TEXTUAL = (int, float, UUID, Decimal, datetime, Enum)


def text_of_header(value: Any) -> str:
    """Return a header's value as text, as a channel would carry it."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
