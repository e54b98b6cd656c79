"""Implementations of business interfaces: each method sends a message."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, update_wrapper
from typing import Any

from django.apps import apps

from django_cqrs import buses
from django_cqrs.annotations import (
    EMPTY,
    bare_type,
    is_protocol,
    name_of_type,
    place_of,
    sole_type,
)
from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.payloads import PayloadType, convert_result
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import InvalidHandler, UnexpectedResult
from django_cqrs.modelling.interfaces.checks import CheckedMethod
from django_cqrs.modelling.interfaces.decorators import (
    declared_interfaces,
    interface_options,
    is_business_interface,
)
from django_cqrs.modelling.interfaces.methods import NONE, Call, Parts, Route, T
from django_cqrs.modelling.sql.statements import BoundQuery
from django_cqrs.parameters.plan import Resolver
from django_cqrs.parameters.planner import register_filler
from django_cqrs.parameters.services import Services
from django_cqrs.problems import Problem
from django_cqrs.routing.table import RouteTable
from django_cqrs.sync import in_thread, refuse_running_loop


def implement(interface: Callable[..., T], /, *, registry: Registry | None = None) -> T:
    """
    Return an object with the methods of a business interface.

    You can call it while modules are imported: routes are looked up at the first call
    of a method.

    Args:
        interface: a Protocol with :func:`business_interface`.
        registry: the registry with the handlers; by default the project's.

    Raises:
        TypeError: it is not a business interface.

    """
    cls: Any = interface
    if not is_business_interface(cls):
        msg = (
            f"{cls!r} is not a business interface: decorate it with "
            "@business_interface."
        )
        raise TypeError(msg)
    subject = buses.registry if registry is None else registry
    if cls not in subject.implementations:
        subject.implementations[cls] = _implementation(cls, subject)
    implementation: T = subject.implementations[cls]
    return implementation


def _implementation(cls: type, registry: Registry) -> Any:
    methods = [
        Method(cls, name, function, registry) for name, function in _methods_of(cls)
    ]

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = cls.__module__
        namespace["__repr__"] = lambda _self: f"<{place_of(cls)} of {registry!r}>"
        namespace.update({method.name: method.as_function() for method in methods})

    made: Any = types.new_class(cls.__name__, (cls,), {}, fill)()
    made._cqrs_methods = methods
    return made


def methods_of(implementation: Any) -> Sequence[Method]:
    """Return the methods of an object from :func:`implement`."""
    methods: Sequence[Method] = implementation._cqrs_methods
    return methods


def _methods_of(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public methods that a Protocol declares or inherits, base first."""
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(cls.__mro__):
        if is_protocol(base) and base.__module__ != "typing":
            found |= {
                name: held
                for name, held in vars(base).items()
                if isinstance(held, types.FunctionType) and not name.startswith("_")
            }
    yield from found.items()


class Method(CheckedMethod):
    """A method that sends its arguments as a message."""

    def as_function(self) -> Callable[..., Any]:
        """Return the function that the implementing class has under this name."""
        called = f"{self.owner.__name__}.{self.name}"
        run = self._run

        if self.is_async:
            hop = in_thread(run)

            async def call_async(_self: Any, *args: Any, **kwargs: Any) -> Any:
                __traceback_hide__ = True
                return await hop(args, kwargs)

            return update_wrapper(call_async, self.function)

        def call(_self: Any, *args: Any, **kwargs: Any) -> Any:
            __traceback_hide__ = True
            refuse_running_loop(called, f"async def {self.name}")
            return run(args, kwargs)

        return update_wrapper(call, self.function)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        __traceback_hide__ = True
        table = self.registry.routes
        compiled = self._compiled
        if compiled is None or compiled[0] is not table:
            compiled = self._compiled = table, self._compile(table)
        return compiled[1](self._bound(args, kwargs))

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Return the arguments in the order of the parameters, with defaults."""
        __traceback_hide__ = True
        if not kwargs and len(args) == self._positional:
            return args
        try:
            bound = self.signature.whole.bind(*args, **kwargs)
        except TypeError as error:
            msg = f"{self.owner.__qualname__}.{self.name}(): {error}"
            raise TypeError(msg) from None
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    @cached_property
    def _positional(self) -> int:
        """The number of arguments if all may be positional; otherwise -1."""
        parameters = self.signature.whole.parameters.values()
        if any(each.kind is each.KEYWORD_ONLY for each in parameters):
            return -1
        return len(parameters)

    def _compile(self, table: RouteTable) -> Call:
        for problem in self.problems(table):
            raise InvalidHandler(str(problem))
        signature = self.signature
        if self.statement is not None:
            query = BoundQuery(
                self.statement, self.place, signature.annotations, signature.returns
            )
            names = signature.names
            return lambda values: query.run(dict(zip(names, values, strict=True)))
        route = self.route(table)
        assert route is not None  # noqa: S101 - else there was a problem
        return self._sending(route)

    def _sending(self, route: Route) -> Call:
        parts = Parts.of(self.signature)
        send = self._sender(route.kind)
        key = route.key
        finish = _finisher(self.signature.returns, self.place)
        payload, headers, identifiers = parts.payload, parts.headers, parts.identifiers
        takes_headers = bool(headers or parts.all_headers is not None)

        def call(values: Sequence[Any]) -> Any:
            __traceback_hide__ = True
            options: dict[str, Any] = {}
            if takes_headers:
                options["headers"] = parts.headers_in(values)
            if len(identifiers) == 1:
                options["aggregate_id"] = values[identifiers[0][1]]
            elif identifiers:
                options["aggregate_id"] = {
                    name: values[index] for name, index in identifiers
                }
            given = None if payload is None else values[payload]
            return finish(send(given, route=key, **options))

        return call

    def _sender(self, kind: Kind) -> Callable[..., Any]:
        registry = self.registry
        if kind is Kind.EVENT:
            return registry.event_bus.publish
        bus: Any = registry.bus_of(kind)
        if interface_options[self.owner].is_direct:
            bus = registry.direct_bus_of(kind)
        send: Callable[..., Any]
        send = bus.dispatch if kind is Kind.COMMAND else bus.ask
        return send


def _finisher(returns: Any, place: str) -> Callable[[Any], Any]:
    """Return the conversion of an answer to its annotation."""
    if returns in NONE:
        return lambda _result: None
    if returns in (EMPTY, Any, object):
        return lambda result: result
    wanted = PayloadType(returns)
    origin = typing.get_origin(bare_type(returns))
    lazy = origin in (collections.abc.Iterator, collections.abc.Iterable)
    item = typing.get_args(bare_type(returns))[0] if lazy else None

    def finish(result: Any) -> Any:
        if wanted.takes(result):
            return result
        if result is None:
            msg = (
                f"{place} received None as its answer, but is annotated to return "
                f"{name_of_type(returns)}."
            )
            raise UnexpectedResult(msg)
        if lazy:
            return (convert_result(each, item) for each in result)
        return convert_result(result, returns)

    return finish


def interfaces_of(registry: Registry) -> list[type]:
    """Return the installed apps' interfaces, or those of a registry with its own."""
    if registry is not buses.registry:
        return list(registry.implementations)
    current = [each.target for each in declared_interfaces if each.is_current]
    return [
        cls
        for cls in current
        if apps.get_containing_app_config(cls.__module__) is not None
    ]


def problems_of(registry: Registry) -> Iterator[Problem]:
    """Yield the faults of the business interfaces of a registry."""
    table = registry.routes
    for cls in interfaces_of(registry):
        for method in methods_of(implement(cls, registry=registry)):
            yield from method.problems(table)


def _interface_filler(annotation: Any, services: Services) -> Resolver | None:
    """Fill a parameter with an implementation of the interface in its annotation."""
    cls = sole_type(annotation)
    if services.owner is None or not is_business_interface(cls):
        return None
    implementation = implement(cls, registry=services.owner)
    overrides = services.overrides

    def get(_message: Any) -> Any:
        return overrides[cls]() if cls in overrides else implementation

    return get


register_filler(_interface_filler)
