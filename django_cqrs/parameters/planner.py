"""Plan how a handler's parameters are filled, from its signature."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Protocol
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured

from django_cqrs import conf
from django_cqrs.annotations import (
    EMPTY,
    NO_NAMES,
    Names,
    bare_type,
    field_names,
    is_plain_class,
    is_protocol,
    is_value_type,
    marks_of,
    name_of_type,
    names_seen_by,
    place_of,
    read_signature,
    sole_type,
    union_members,
)
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.declaration.declarations import is_service
from django_cqrs.declaration.marks import Depends, Header, Service
from django_cqrs.exceptions import MissingHeader
from django_cqrs.messages import (
    OWN_HEADERS,
    RESERVED_PREFIXES,
    Headers,
    Message,
    aggregate_headers_of,
    message_name_of,
)
from django_cqrs.parameters.plan import (
    PER_MESSAGE,
    Argument,
    ArgumentPlan,
    Constant,
    Given,
    Resolver,
    Source,
    header_converter,
    message_itself,
    payload_of,
)
from django_cqrs.problems import CheckRule, Problem, Rule
from django_cqrs.sync import sync_callable


class ServiceSource(Protocol):
    """The services that plans use for parameters."""

    overrides: dict[Any, Callable[..., Any]]
    """The replacements of factories and classes."""

    def plan_of_init(self, cls: type, names: Names = NO_NAMES) -> ArgumentPlan:
        """Return the plan that builds a service, once for all messages."""
        ...

    def plan_of_need(
        self, need: Any, *, payload: Any, once: bool, names: Names
    ) -> ArgumentPlan:
        """Return the plan of a factory or a class that is a dependency."""
        ...

    def resolver_of(self, cls: type) -> Resolver:
        """Return the resolver of an instance of `cls`."""
        ...

    def dependency(self, factory: Any, plan: ArgumentPlan) -> Resolver:
        """Return the resolver of a ``Depends`` factory's result."""
        ...


Filler = Callable[[Any, Any], "Constant | Resolver | None"]
"""
A function from a bare annotation and a registry's services to a parameter's source.

It returns None for the annotations of other fillers.
"""

_fillers: list[Filler] = []


def register_filler(filler: Filler) -> None:
    """Let a higher layer fill parameters annotated with its own types."""
    _fillers.append(filler)


def method_callable(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """
    Return a function that calls a method as Python does, overridden or not.

    A replacement of a service that lacks the method is passed to the class's own.

    Args:
        function: the method, as defined by its class.
        name: the name of the attribute.

    """
    run = sync_callable(function)

    def call_method(receiver: Any, *args: Any, **kwargs: Any) -> Any:
        __traceback_hide__ = True
        method = getattr(receiver, name, function)
        if getattr(method, "__func__", method) is function:
            return run(receiver, *args, **kwargs)
        return sync_callable(method)(*args, **kwargs)

    return call_method


_METHOD_CALL = method_callable(print, "").__code__


def method_called_in(frame: types.FrameType) -> tuple[type, str] | None:
    """Return the class and the method that a frame calls, None for other frames."""
    if frame.f_code is not _METHOD_CALL:
        return None
    return type(frame.f_locals["receiver"]), frame.f_locals["name"]


class Unfillable(Exception):
    """Raised by a filler whose own annotation cannot be filled."""

    def __init__(
        self, reason: str, rule: CheckRule = Rule.UNFILLABLE_PARAMETER
    ) -> None:
        """Give the reason, and the kind of mistake."""
        super().__init__(reason)
        self.rule = rule


def plan_of(
    function: Callable[..., Any],
    services: ServiceSource,
    *,
    owner: type | None = None,
    has_receiver: bool = True,
    payload: Any = None,
    once: bool = False,
    given: Callable[[inspect.Parameter], Source | None] | None = None,
    names: Names = NO_NAMES,
) -> ArgumentPlan:
    """
    Compile the plan of a function.

    Args:
        function: a plain function, or one of a class's.
        services: the source of services.
        owner: the class that holds it.
        has_receiver: whether the first parameter of an owned function is its
            instance or class, which the caller binds.
        payload: the possible payload: ``TAKES_PAYLOAD`` for a handler, whose own
            parameter decides; an annotation, for dependencies of a handler with that
            payload; None for functions without a payload, such as an ``__init__``.
        once: whether it is called once for all messages, so that no message's data may
            be passed to it.
        given: returns the source of the parameters that the caller provides.
        names: the names visible to the dependent, for the annotations of a function or
            class that is local as well.

    Returns:
        A plan. Faults are in its `problems`; nothing is raised.

    """
    where = place_of(function)
    names = names_seen_by(function, owner, names)
    try:
        parameters, returns = read_signature(function, names)
    except Exception as error:  # noqa: BLE001 - an annotation may run any code
        problem = Problem(
            Rule.UNREADABLE_SIGNATURE,
            f"The annotations of {where} cannot be evaluated: {error}.",
            "Import the names they use at the top of the module, "
            "not under TYPE_CHECKING.",
            function,
        )
        return ArgumentPlan(problems=(problem,))
    if owner is not None and has_receiver:
        parameters = parameters[1:]
    if payload is TAKES_PAYLOAD and not parameters and _hides_its_signature(function):
        problem = Problem(
            Rule.HIDDEN_HANDLER,
            f"{where} takes *args, so its parameters are unknown: it seems to be a "
            "wrapper.",
            "Use functools.wraps in the decorator that made it, or decorate the "
            "handler first.",
            function,
        )
        return ArgumentPlan(problems=(problem,), returns=returns)
    for parameter in parameters:
        if not _is_type(parameter.annotation):
            problem = Problem(
                Rule.UNREADABLE_SIGNATURE,
                f"The parameter {parameter.name!r} of {where} is annotated with "
                f"{parameter.annotation!r}, which is an object, not a type.",
                "Annotate it with a class or a type from typing.",
                function,
            )
            return ArgumentPlan(problems=(problem,))
    planner = _Planner(
        function, services, where, payload, once=once, given=given, names=names
    )
    return planner.plan(parameters, returns)


def _is_type(annotation: Any) -> bool:
    """Return whether an object is a class or one of the forms of ``typing``."""
    return isinstance(annotation, type) or type(annotation).__module__ in _TYPING


_TYPING = frozenset({"types", "typing", "typing_extensions"})


def _hides_its_signature(function: Callable[..., Any]) -> bool:
    kinds = [each.kind for each in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def on_service(
    plan: ArgumentPlan, owner: type, services: ServiceSource
) -> ArgumentPlan:
    """Return the plan of a method, called on the service that `owner` is."""
    annotation: Any = typing.Annotated[owner, Service()]
    kind = inspect.Parameter.POSITIONAL_ONLY
    parameter = inspect.Parameter("self", kind, annotation=annotation)
    where = place_of(owner)
    planner = _Planner(
        owner, services, where, None, once=False, given=None, names=NO_NAMES
    )
    receiver = planner.plan([parameter], EMPTY)
    return dataclasses.replace(
        plan,
        arguments=(*receiver.arguments, *plan.arguments),
        uses_dependencies=receiver.uses_dependencies or plan.uses_dependencies,
        problems=(*receiver.problems, *plan.problems),
    )


def on_object(plan: ArgumentPlan, find: Resolver) -> ArgumentPlan:
    """Return the plan of a method, called on the object found for the message."""
    receiver = Argument("self", positional=True, source=find)
    return dataclasses.replace(plan, arguments=(receiver, *plan.arguments))


TAKES_PAYLOAD = EMPTY
"""The payload of a handler: given by its first parameter without another source."""


class _Planner:
    """Reads one signature."""

    def __init__(
        self,
        function: Callable[..., Any],
        services: ServiceSource,
        where: str,
        payload: Any,
        *,
        once: bool,
        given: Callable[[inspect.Parameter], Source | None] | None,
        names: Names,
    ) -> None:
        self.function = function
        self.services = services
        self.where = where
        self.payload = payload
        self.once = once
        self.given = given
        self.names = names
        self.problems: list[Problem] = []
        self.uses_dependencies = False
        self.taker: str | None = None

    def plan(self, parameters: list[inspect.Parameter], returns: Any) -> ArgumentPlan:
        taker = next((p for p in parameters if self._takes_payload(p)), None)
        if taker is not None and self.payload is TAKES_PAYLOAD:
            self.payload = taker.annotation
        self.taker = None if taker is None else taker.name
        arguments: list[Argument] = []
        in_a_row = True
        for parameter in parameters:
            if parameter is taker:
                source: Constant | Given | Resolver | None = _payload_or(
                    parameter.default
                )
            else:
                source = self._source_or_problem(parameter)
            if source is None and parameter.kind is parameter.POSITIONAL_ONLY:
                source = Constant(parameter.default)
            if source is None:  # its default does
                in_a_row = False
                continue
            positional = parameter.kind is parameter.POSITIONAL_ONLY or (
                in_a_row and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            )
            in_a_row = in_a_row and positional
            arguments.append(Argument(parameter.name, positional, source))
        return ArgumentPlan(
            tuple(arguments),
            None if taker is None else PayloadType(taker.annotation),
            None if taker is None else taker.name,
            EMPTY if taker is None else taker.default,
            self.uses_dependencies,
            tuple(self.problems),
            returns,
        )

    def _takes_payload(self, parameter: inspect.Parameter) -> bool:
        """Return whether a parameter may be the payload: no mark or filler takes it."""
        annotation = parameter.annotation
        bare = sole_type(annotation)
        if (
            self.payload is None
            or (self.given is not None and self.given(parameter) is not None)
            or any(map(_is_mark, marks_of(annotation)))
            or bare in (Headers, Message)
            or is_service(bare)
            or self._is_filled(annotation)
        ):
            return False
        return self.payload is TAKES_PAYLOAD or _may_be(self.payload, annotation)

    def _is_filled(self, annotation: Any) -> bool:
        try:
            return any(filler(annotation, self.services) for filler in _fillers)
        except Unfillable:  # it raises again when it is really filled
            return True

    def _source_or_problem(
        self, parameter: inspect.Parameter
    ) -> Constant | Given | Resolver | None:
        try:
            return self._source_of(parameter)
        except (Unfillable, ImproperlyConfigured) as reason:
            self.problems.append(
                Problem(
                    getattr(reason, "rule", Rule.UNFILLABLE_PARAMETER),
                    f"Nothing can fill the parameter {parameter.name!r} of "
                    f"{self.where}: {str(reason).rstrip('.')}.",
                    "Annotate it as described in the reference of parameters, or "
                    "give it a default.",
                    self.function,
                )
            )
            return None

    def _source_of(
        self, parameter: inspect.Parameter
    ) -> Constant | Given | Resolver | None:
        given = self.given(parameter) if self.given is not None else None
        if given is not None:
            return given
        annotation = parameter.annotation
        bare = bare_type(annotation)
        marks = list(filter(_is_mark, marks_of(annotation)))
        if any(mark != marks[0] for mark in marks):
            named = " and ".join(map(_shown, marks))
            msg = f"each of {named} would fill it; keep one"
            raise Unfillable(msg)
        for mark in marks:
            if isinstance(mark, Header):
                self._refuse_once(bare)
                return self._header(mark.name, bare, parameter)
            if isinstance(mark, Depends):
                return self._dependency(mark.factory)
            if isinstance(mark, Service) or mark is Service:
                filled = self._filled(bare)
                return self._service(sole_type(bare)) if filled is None else filled
            if mark in (Header, Depends):
                msg = f"{mark.__name__} needs an argument: {mark.__name__}(...)"
                raise Unfillable(msg)
        bare = sole_type(annotation)
        if bare in (Headers, Message):
            self._refuse_once(bare)
            if bare is Message:
                return message_itself
            return lambda message: message.headers
        source = self._filled(annotation)
        if source is not None:
            return source
        if is_service(bare):
            return self._service(bare)
        if parameter.default is not EMPTY:
            return None
        bare = bare_type(annotation)
        if self._is_message(bare):
            msg = (
                "another parameter already receives the message as "
                f"{name_of_type(bare)}, which is not a service to build; keep one of "
                "the two, or use Depends(...) for this one"
            )
            raise Unfillable(msg)
        if _may_be_a_service(bare):
            return self._implied_service(bare)
        if annotation is EMPTY:
            reason = "it has no annotation"
        elif hasattr(bare, "_meta"):
            reason = f"{name_of_type(bare)} is a model: its objects are read, not built"
        else:
            reason = f"{name_of_type(bare)} is neither a mark nor a class to build"
        raise Unfillable(reason)

    def _filled(self, annotation: Any) -> Constant | Resolver | None:
        """Return a higher layer's source for an annotation, None without one."""
        for filler in _fillers:
            source = filler(annotation, self.services)
            if source is not None:
                if getattr(source, PER_MESSAGE, False):
                    self._refuse_once(annotation)
                return source
        return None

    def _header(self, name: str, wanted: Any, parameter: inspect.Parameter) -> Resolver:
        fallback = parameter.default
        if fallback is EMPTY and type(None) in union_members(wanted):
            fallback = None
        convert = header_converter(name, wanted)
        where = self.where
        if name in OWN_HEADERS:
            return lambda message: convert(getattr(message, name))
        is_own = name.startswith(RESERVED_PREFIXES)
        exact = bare_type(wanted)

        def get(message: Message) -> Any:
            held = aggregate_headers_of(message) if is_own else message._user
            value = held.get(name, EMPTY)
            if type(value) is exact:  # the same as convert(), without a call
                return value
            if value is not EMPTY:
                return convert(value)
            if fallback is not EMPTY:
                return fallback
            msg = (
                f"{where} requires the header {name!r}, but the message does not have "
                f"it. Give it with headers={{{name!r}: ...}}, or give the parameter "
                f"{parameter.name!r} a default."
            )
            raise MissingHeader(msg)

        return get

    def _is_message(self, annotation: Any) -> bool:
        """Return whether a class is one of the payload's classes."""
        if self.payload is None or self.payload is EMPTY:
            return False
        return is_plain_class(annotation) and annotation in union_members(self.payload)

    def _refuse_once(self, annotation: Any) -> None:
        if self.once:
            msg = (
                f"{name_of_type(annotation)} belongs to one message, but a service is "
                "built once for all messages"
            )
            raise Unfillable(msg)

    def _dependency(self, factory: Any) -> Constant | Resolver:
        if not callable(factory):
            msg = f"Depends({factory!r}) needs a callable"
            raise Unfillable(msg)
        if isinstance(factory, type):
            # Called, a class of buses would make another one, without its policies.
            filled = self._filled(factory)
            if filled is not None:
                return filled
        if inspect.isasyncgenfunction(factory):
            msg = f"{place_of(factory)} is an async generator; make it synchronous"
            raise Unfillable(msg)
        if inspect.isgeneratorfunction(factory):
            self._refuse_once(factory)
        self.uses_dependencies = True
        plan = self.services.plan_of_need(
            factory, payload=self.payload, once=self.once, names=self.names
        )
        self.problems.extend(plan.problems)
        return self.services.dependency(factory, plan)

    def _service(self, cls: Any) -> Resolver:
        if not isinstance(cls, type):
            msg = f"{name_of_type(cls)} is not a class"
            raise Unfillable(msg)
        made = conf.implementation_of(cls)
        if made is not cls and conf.implementation_of(made) is not made:
            msg = (
                f"SERVICES gives {name_of_type(made)} for {name_of_type(cls)}, and "
                f"another class for {name_of_type(made)}"
            )
            raise Unfillable(msg)
        if conf.resolve("SERVICE_RESOLVER") is not None:
            self.uses_dependencies = True  # it is called once per message
        elif not self.services.overrides.keys() & {cls, made}:
            if is_protocol(made) or inspect.isabstract(made):
                msg = (
                    f"{made.__qualname__} is abstract, SERVICES names no class for "
                    "it, and SERVICE_RESOLVER is not set"
                )
                raise Unfillable(msg)
            self.problems.extend(self.services.plan_of_init(made, self.names).problems)
        return self.services.resolver_of(cls)

    def _implied_service(self, cls: type) -> Resolver:
        """Return the resolver of a service whose class is not marked as one."""
        if conf.resolve("SERVICE_RESOLVER") is not None:
            return self._service(cls)
        if cls in self.services.overrides:
            return self._service(cls)
        what = _value_or_foreign(cls)
        if what is not None:
            msg = (
                f"{cls.__qualname__} is {what}. To have it built without arguments, "
                f"write Annotated[{cls.__name__}, Service()]"
            )
            raise Unfillable(msg)
        known = len(self.problems)
        resolver = self._service(cls)
        if field_names(cls):
            self._refuse_second_message(cls, self.problems[known:])
        return resolver

    def _refuse_second_message(self, cls: type, inner: list[Problem]) -> None:
        """Refuse a class of values in the place of a service."""
        if not inner:
            return
        del self.problems[-len(inner) :]
        reason = str(inner[0].message).rstrip(".")
        taker = "" if self.taker is None else f": the payload is already {self.taker!r}"
        msg = (
            f"{cls.__qualname__} is not taken as a message here{taker}. It is not a "
            f"service either ({reason}). A handler takes one message; @service marks "
            "a class as a service"
        )
        raise Unfillable(msg)


_MARKS = (Header, Depends, Service)


def _is_mark(mark: Any) -> bool:
    return isinstance(mark, _MARKS) or mark in _MARKS


def _shown(mark: Any) -> str:
    """Return a mark as written in code."""
    if isinstance(mark, Header):
        return f"Header({mark.name!r})"
    if isinstance(mark, Depends):
        return f"Depends({place_of(mark.factory)})"
    return "Service()" if isinstance(mark, Service) else mark.__name__


def _may_be_a_service(annotation: Any) -> bool:
    return (
        (is_plain_class(annotation) or is_protocol(annotation))
        and annotation not in _NO_SERVICES
        and not issubclass(annotation, Enum)
        and not hasattr(annotation, "_meta")  # a model
    )


def _value_or_foreign(cls: type) -> str | None:
    """Return why a class cannot be meant as a service, None if it can."""
    if message_name_of(cls) is not None:
        return "a message, and a handler takes only one"
    if issubclass(cls, BaseException):
        return "an exception, not a service"
    if is_value_type(cls) or hasattr(cls, "_fields"):
        return "a value, not a service"
    root = (cls.__module__ or "").partition(".")[0]
    if root == "django":
        return "a class of Django's, not a service"
    if root in sys.stdlib_module_names:
        return "a class of Python's, not a service"
    return None


# Classes of values, which are never meant as services.
_NO_SERVICES = frozenset(
    {bool, bytes, date, datetime, Decimal, dict, float, frozenset, int, list, object}
    | {set, str, time, timedelta, tuple, type(None), UUID, Any, EMPTY}
)


def _may_be(payload: Any, annotation: Any) -> bool:
    """Return whether a payload of one annotation fits the other."""
    if payload is EMPTY or annotation is EMPTY:
        return True
    theirs = [m for m in union_members(payload) if isinstance(m, type)]
    ours = [m for m in union_members(annotation) if isinstance(m, type)]
    return any(
        issubclass(one, other) or issubclass(other, one)
        for one in theirs
        for other in ours
        if is_plain_class(one) and is_plain_class(other)
    )


def _payload_or(default: Any) -> Resolver:
    if default is EMPTY or default is None:
        return payload_of
    return lambda message: default if message._payload is None else message._payload
