"""Business interfaces: a Protocol whose methods are routes, or statements of SQL."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property, partial, update_wrapper
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

from django.apps import apps

from django_cqrs import buses
from django_cqrs.buses import Registry, hopping, refuse_running_loop
from django_cqrs.conversion import (
    PayloadType,
    bare_type,
    convert_result,
    field_names,
    has_converter,
    is_plain_class,
    is_protocol,
    is_typed_dict,
    is_value_type,
    name_of_type,
    union_members,
)
from django_cqrs.declarations import (
    LOCAL,
    Declared,
    Kind,
    declaration_of,
    names_around,
)
from django_cqrs.exceptions import InvalidHandler, UnexpectedResult
from django_cqrs.messages import (
    OWN_HEADERS,
    RESERVED_HEADERS,
    RESERVED_PREFIX,
    Headers,
)
from django_cqrs.modelling.identifiers import Identifier
from django_cqrs.modelling.sql import STATEMENT, Fault, Query, Statement
from django_cqrs.modelling.sql import problems_of as sql_problems_of
from django_cqrs.parameters import (
    Header,
    Resolver,
    Services,
    marks_of,
    place_of,
    register_filler,
    signature_of,
    sole_type,
)
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing import PATTERN_SIGNS, Endpoint, RouteTable

T = TypeVar("T")
C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

METHOD = "__cqrs_business_method__"

_EMPTY = inspect.Parameter.empty
_NONE = (None, type(None))


# ----------------------------------------------------------------------- decorators


@dataclasses.dataclass(frozen=True, slots=True)
class BusinessMethod:
    """What ``@business_method`` said about one method."""

    key: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    """What ``@business_interface`` said about one class."""

    is_direct: bool
    names: Mapping[str, Any]
    """What is visible where the class is written, if that is inside a function."""


_options: WeakKeyDictionary[type, _Options] = WeakKeyDictionary()

_declared: list[Declared] = []
"""The interfaces of modules, in the order they were decorated."""


@overload
def business_interface(cls: C, /) -> C: ...
@overload
def business_interface(*, direct: bool = False) -> Callable[[C], C]: ...
def business_interface(cls: Any = None, /, *, direct: bool = False) -> Any:
    """
    Make a Protocol a business interface: each of its methods leads somewhere.

    Args:
        cls: the Protocol.
        direct: whether commands and queries go straight to their handlers, past
            the bus: no transaction is opened, and interceptors that look at the
            bus do not run.

    Returns:
        The class itself. :func:`implement` gives an object that has its methods.

    """
    if cls is None:
        return partial(_declare, direct, sys._getframe(1))
    return _declare(direct, sys._getframe(1), cls)


def _declare(direct: bool, frame: types.FrameType, cls: Any) -> Any:
    if not is_protocol(cls):
        msg = f"@business_interface decorates a Protocol, not {cls!r}."
        raise TypeError(msg)
    is_local = LOCAL in cls.__qualname__
    _options[cls] = _Options(direct, names_around(frame) if is_local else {})
    if not is_local:
        _declared.append(declaration_of(cls))
    return cls


@overload
def business_method(method: F, /) -> F: ...
@overload
def business_method(route: str | None = None, /) -> Callable[[F], F]: ...
def business_method(route: Any = None, /) -> Any:
    """
    Have a method of a business interface send a command, a query or an event.

    Args:
        route: the routing key; without one the class of the payload leads to the
            handler.

    Returns:
        The method itself, which needs no body.

    """
    if callable(route):
        return _mark(None, route)
    return partial(_mark, route)


def _mark(key: str | None, function: Any) -> Any:
    setattr(function, METHOD, BusinessMethod(key))
    return function


def is_business_interface(cls: object) -> bool:
    """Tell whether exactly this class is a business interface."""
    return isinstance(cls, type) and cls in _options


# ------------------------------------------------------------------------ implement


def implement(interface: Callable[..., T], /, *, registry: Registry | None = None) -> T:
    """
    Return an object that has the methods of a business interface.

    It may be made while modules are imported: routes are looked up when a method
    is called first.

    Args:
        interface: a Protocol with :func:`business_interface`.
        registry: whose handlers it reaches; by default those of the project.

    Raises:
        TypeError: it is no business interface.

    """
    cls: Any = interface
    if not is_business_interface(cls):
        msg = f"{cls!r} is no business interface: decorate it with @business_interface."
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
    """Return the methods of what :func:`implement` gave."""
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


# -------------------------------------------------------------------------- methods


@dataclasses.dataclass(frozen=True, slots=True)
class _Signature:
    """The evaluated signature of one method, ``self`` left out."""

    whole: inspect.Signature
    annotations: Mapping[str, Any]
    returns: Any

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.annotations)


Call = Callable[[Sequence[Any]], Any]
"""What is done with the arguments of one call, in the order of the parameters."""


class Method:
    """One method of a business interface, for one registry."""

    def __init__(
        self, owner: type, name: str, function: Callable[..., Any], registry: Registry
    ) -> None:
        """Look at nothing yet: classes in annotations may not exist so far."""
        self.owner = owner
        self.name = name
        self.function = function
        self.registry = registry
        self.place: str = f"{place_of(owner)}.{name}"
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self._compiled: tuple[RouteTable, Call] | None = None

    @property
    def statement(self) -> Statement | None:
        """Its SQL, if that is what it is about."""
        return getattr(self.function, STATEMENT, None)

    @property
    def declaration(self) -> BusinessMethod | None:
        """What ``@business_method`` said, if it leads to a route."""
        return getattr(self.function, METHOD, None)

    def as_function(self) -> Callable[..., Any]:
        """Return the function that the implementing class has under its name."""
        called = f"{self.owner.__name__}.{self.name}"
        run = self._run

        if self.is_async:
            hop = hopping(run)

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
        """Return the arguments in the order of the parameters, defaults filled in."""
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
        """How many arguments are all of them, given by position; -1 for never."""
        parameters = self.signature.whole.parameters.values()
        if any(each.kind is each.KEYWORD_ONLY for each in parameters):
            return -1
        return len(parameters)

    @cached_property
    def signature(self) -> _Signature:
        """
        The evaluated signature.

        Raises:
            Exception: an annotation cannot be evaluated.

        """
        parameters, returns = signature_of(
            self.function, self.owner, _options[self.owner].names
        )
        own = parameters[1:]
        return _Signature(
            inspect.Signature(own),
            {each.name: each.annotation for each in own},
            returns,
        )

    # Compilation ------------------------------------------------------------------

    def _compile(self, table: RouteTable) -> Call:
        for problem in self.problems(table):
            raise InvalidHandler(str(problem))
        signature = self.signature
        if self.statement is not None:
            query = Query(
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
        if _options[self.owner].is_direct:
            bus = registry.direct_bus_of(kind)
        send: Callable[..., Any]
        send = bus.dispatch if kind is Kind.COMMAND else bus.ask
        return send

    def route(self, table: RouteTable) -> Route | None:
        """Return where it leads, None where that is not one thing."""
        routes = self.routes(table)
        return routes[0] if len(routes) == 1 else None

    def routes(self, table: RouteTable) -> list[Route]:
        """Return where it may lead: one for each kind of message."""
        declaration = self.declaration
        if declaration is None:
            return []
        if declaration.key is not None:
            return routes_of_key(table, declaration.key)
        payload = Parts.of(self.signature).payload
        if payload is None:
            return []
        annotation = self.signature.annotations[self.signature.names[payload]]
        return routes_of_class(table, annotation)

    # Checks -----------------------------------------------------------------------

    def problems(self, table: RouteTable) -> Iterator[Problem]:
        """Yield what is wrong with it."""
        try:
            signature = self.signature
        except Exception as error:  # noqa: BLE001 - an annotation may run any code
            yield Problem(
                Rule.UNREADABLE_SIGNATURE,
                f"The annotations of {self.place} cannot be evaluated: {error}.",
                "Import the names they use at the top of the module, "
                "not under TYPE_CHECKING.",
                self.function,
            )
            return
        if self.statement is not None:
            yield from sql_problems_of(
                self.statement,
                self.place,
                self.function,
                signature.annotations,
                signature.returns,
                is_async=self.is_async,
            )
        elif self.declaration is None:
            yield self._problem(
                Rule.INTERFACE_ROUTE,
                f"{self.place} leads nowhere: nothing decorates it.",
                "Decorate it with @business_method, @sql_query or @sql_write.",
            )
        else:
            yield from self._route_problems(table, self.declaration.key)

    def _problem(self, rule: Rule, message: str, hint: str) -> Problem:
        return Problem(rule, message, hint, self.function)

    def _route_problems(self, table: RouteTable, key: str | None) -> Iterator[Problem]:
        parts = Parts.of(self.signature)
        if parts.excess:
            names = " and ".join(repr(name) for name in parts.excess)
            yield self._problem(
                Rule.INTERFACE_TYPE,
                f"{self.place} has more than one payload: {names}.",
                "Let one parameter be the payload; the others are "
                'Annotated[..., Header("name")] or Annotated[..., Identifier()].',
            )
            return
        for name, _index, _default in parts.headers:
            if name in RESERVED_HEADERS or name.startswith(RESERVED_PREFIX):
                yield self._problem(
                    Rule.INTERFACE_TYPE,
                    f"{self.place} sends the header {name!r}, which is reserved: every "
                    f"message has its own.",
                    "Give the header another name.",
                )
        routes = self.routes(table)
        if not routes:
            yield self._nowhere(table, key, parts)
        elif len(routes) > 1:
            kinds = " and ".join(f"a {each.kind}" for each in routes)
            yield self._problem(
                Rule.INTERFACE_ROUTE,
                f"{self.place} leads to {kinds} alike: {routes[0].said} is both.",
                "Give one of them another key.",
            )
        else:
            yield from self._misfits(routes[0], parts)

    def _nowhere(self, table: RouteTable, key: str | None, parts: Parts) -> Problem:
        if key is not None:
            known = sorted({each for e in table.endpoints for each in e.keys})
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
            reason = f"no handler has the key {key!r}"
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else "Is its handler decorated, and in the handlers module of an "
                "installed app?"
            )
        elif parts.payload is None:
            reason = "it has neither a key nor a payload"
            hint = 'Give it a key, @business_method("ticket.close"), or a payload.'
        else:
            name = self.signature.names[parts.payload]
            annotation = self.signature.annotations[name]
            said = "anything" if annotation is _EMPTY else name_of_type(annotation)
            reason = f"no handler takes {said}"
            hint = (
                "Write the handler, or give the method a key: "
                '@business_method("ticket.close").'
            )
        return self._problem(
            Rule.INTERFACE_ROUTE, f"{self.place} leads nowhere: {reason}.", hint
        )

    def _misfits(self, route: Route, parts: Parts) -> Iterator[Problem]:
        sound = [each for each in route.endpoints if not each.problems]
        faults = [
            list(self._faults(endpoint, parts, route.key is not None))
            for endpoint in sound
        ]
        # An event has several handlers, and an aggregate may have a factory and an
        # action for one command.
        if faults and all(faults):
            reason, hint = faults[0][0]
            yield self._problem(
                Rule.INTERFACE_TYPE, f"{self.place} does not fit: {reason}.", hint
            )

    def _faults(
        self, endpoint: Endpoint, parts: Parts, by_key: bool
    ) -> Iterator[Fault]:
        signature = self.signature
        plan = endpoint.plan
        given = None
        if parts.payload is not None:
            given = signature.annotations[signature.names[parts.payload]]
        if given is not None and plan.payload is None:
            name = signature.names[parts.payload or 0]
            yield Fault(
                f"it has the payload {name!r}, and {endpoint.place} takes none",
                "Take the parameter away, or mark it with Header or Identifier.",
            )
        elif given is None and plan.payload is not None:
            if plan.payload_default is _EMPTY and not plan.payload.takes_none:
                wanted = name_of_type(plan.payload.annotation)
                yield Fault(
                    f"it has no payload, and {endpoint.place} takes {wanted}",
                    f"Give it a parameter of the type {wanted}.",
                )
        elif by_key and given is not None and plan.payload is not None:
            wanted = plan.payload.annotation
            if not may_become(given, wanted):
                yield Fault(
                    f"its payload is {name_of_type(given)}, and {endpoint.place} takes "
                    f"{name_of_type(wanted)}",
                    "Make the two agree.",
                )
        yield from self._identifier_faults(endpoint, parts)
        yield from self._result_faults(endpoint)

    def _identifier_faults(self, endpoint: Endpoint, parts: Parts) -> Iterator[Fault]:
        if parts.identifiers and getattr(endpoint, "subject", None) is None:
            name = parts.identifiers[0][0]
            yield Fault(
                f"{name!r} is an Identifier, and {endpoint.place} is not a handler of "
                f"an aggregate",
                "Send it as a header or in the payload.",
            )

    def _result_faults(self, endpoint: Endpoint) -> Iterator[Fault]:
        if endpoint.channel is not None and _options[self.owner].is_direct:
            yield Fault(
                f"it is direct, and {endpoint.place} has the channel "
                f"{endpoint.channel!r}",
                "Take direct=True away.",
            )
        wanted = self.signature.returns
        if wanted in (_EMPTY, Any, object, *_NONE):
            return
        takes_none = PayloadType(wanted).takes_none
        said = name_of_type(wanted)
        if endpoint.kind is Kind.EVENT:
            yield Fault(
                f"it returns {said}, and what is published has no answer",
                "Annotate it with None.",
            )
            return
        if endpoint.channel is not None:
            if not takes_none:
                yield Fault(
                    f"it returns {said}, and {endpoint.place} has the channel "
                    f"{endpoint.channel!r}: it is handled later and has no answer",
                    "Annotate it with None.",
                )
            return
        returned = _returned_by(endpoint)
        if returned in _NONE:
            if not takes_none:
                yield Fault(
                    f"it returns {said}, and {endpoint.place} returns None",
                    "Annotate it with None.",
                )
        elif not may_become(returned, wanted, of_result=True):
            yield Fault(
                f"it returns {said}, and {endpoint.place} returns "
                f"{name_of_type(returned)}",
                "Make the two agree.",
            )


def _returned_by(endpoint: Endpoint) -> Any:
    """Return the type of what an endpoint gives back, Any where that is not said."""
    subject: Any = getattr(endpoint, "subject", None)
    returned = endpoint.plan.returns
    if subject is not None:
        returned = subject.result_of(endpoint)
    return Any if returned is _EMPTY else returned


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Which parameter is what, each by its place in the signature."""

    payload: int | None
    headers: tuple[tuple[str, int, Any], ...]
    all_headers: int | None
    identifiers: tuple[tuple[str, int], ...]
    excess: tuple[str, ...]
    """The names of all payloads, where there are several."""

    @classmethod
    def of(cls, signature: _Signature) -> Parts:
        """Read a signature."""
        payloads: list[tuple[str, int]] = []
        headers: list[tuple[str, int, Any]] = []
        identifiers: list[tuple[str, int]] = []
        all_headers = None
        for index, (name, annotation) in enumerate(signature.annotations.items()):
            marks = marks_of(annotation)
            header = next((m for m in marks if isinstance(m, Header)), None)
            identifier = next(
                (m for m in marks if isinstance(m, Identifier) or m is Identifier), None
            )
            if header is not None:
                default = signature.whole.parameters[name].default
                headers.append((header.name, index, default))
            elif identifier is not None:
                said = identifier.name if isinstance(identifier, Identifier) else None
                identifiers.append((said or name, index))
            elif sole_type(annotation) is Headers:
                all_headers = index
            else:
                payloads.append((name, index))
        return cls(
            payloads[0][1] if payloads else None,
            tuple(headers),
            all_headers,
            tuple(identifiers),
            tuple(name for name, _ in payloads) if len(payloads) > 1 else (),
        )

    def headers_in(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the headers among the arguments; a None by default is not sent."""
        found: dict[str, Any] = {}
        if self.all_headers is not None:
            found = {
                name: value
                for name, value in (values[self.all_headers] or {}).items()
                if name not in OWN_HEADERS
                and name not in RESERVED_HEADERS
                and not name.startswith(RESERVED_PREFIX)
            }
        for name, index, default in self.headers:
            if values[index] is not None or default is not None:
                found[name] = values[index]
        return found


def _finisher(returns: Any, place: str) -> Callable[[Any], Any]:
    """Return what makes of an answer what the annotation says."""
    if returns in _NONE:
        return lambda _result: None
    if returns in (_EMPTY, Any, object):
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
                f"{place} was answered with None, and is annotated to return "
                f"{name_of_type(returns)}."
            )
            raise UnexpectedResult(msg)
        if lazy:
            return (convert_result(each, item) for each in result)
        return convert_result(result, returns)

    return finish


# --------------------------------------------------------------------------- routes


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """Where a method leads."""

    kind: Kind
    key: str | None
    said: str
    """The key or the class, as a reader would write it."""
    endpoints: tuple[Endpoint, ...]


def routes_of_key(table: RouteTable, key: str) -> list[Route]:
    """Return the routes that have a key, one for each kind of message."""
    found = {
        kind: tuple(e for e in table.endpoints if e.kind is kind and key in e.keys)
        for kind in Kind
    }
    named = table.types.named(key)
    if named is not None:
        for route in routes_of_class(table, named):
            found[route.kind] = (*found[route.kind], *route.endpoints)
    if not any(found.values()):
        found[Kind.EVENT] = tuple(
            endpoint
            for endpoint in table.endpoints
            if endpoint.kind is Kind.EVENT
            and any(
                PATTERN_SIGNS & set(each) and fnmatchcase(key, each)
                for each in endpoint.keys
            )
        )
    return [
        Route(kind, key, repr(key), endpoints)
        for kind, endpoints in found.items()
        if endpoints
    ]


def routes_of_class(table: RouteTable, annotation: Any) -> list[Route]:
    """Return the routes that objects of a type take, one for each kind of message."""
    members = [each for each in union_members(annotation) if is_plain_class(each)]
    found = {
        kind: tuple(
            endpoint
            for endpoint in table.endpoints
            if endpoint.kind is kind
            and any(
                _leads(member, routed)
                for member in members
                for routed in endpoint.classes
            )
        )
        for kind in Kind
    }
    return [
        Route(kind, None, name_of_type(annotation), endpoints)
        for kind, endpoints in found.items()
        if endpoints
    ]


def _leads(cls: type, routed: type) -> bool:
    """Tell whether some object of a class goes where `routed` leads."""
    if routed is object:
        return False
    try:
        return issubclass(cls, routed) or issubclass(routed, cls)
    except TypeError:  # a Protocol with data: an object decides
        return True


# ------------------------------------------------------------------------ what fits


def may_become(given: Any, wanted: Any, *, of_result: bool = False) -> bool:
    """
    Tell whether a value of one annotation may be converted to another.

    Only what is certain to fail is refused: a string may be a number.

    Args:
        given: the annotation of what is there.
        wanted: the annotation of what it should be.
        of_result: whether it is an answer, whose objects are taken apart first.

    """
    return all(
        any(_may_one_become(one, other, of_result) for other in union_members(wanted))
        for one in union_members(given)
        if one is not type(None)
    )


_NUMBERS = (int, float, Decimal)
_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Iterable)


def _may_one_become(given: Any, wanted: Any, of_result: bool) -> bool:
    if given == wanted or {given, wanted} & {Any, object, _EMPTY}:
        return True
    ours = typing.get_origin(given) or given
    theirs = typing.get_origin(wanted) or wanted
    if not isinstance(ours, type) or not isinstance(theirs, type):
        return True  # a Literal, a NewType, a type variable: who can tell?
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


# --------------------------------------------------------------------------- faces


def interfaces_of(registry: Registry) -> list[type]:
    """Return those of the installed apps, or those that a registry of one's own has."""
    if registry is not buses.registry:
        return list(registry.implementations)
    current = [each.target for each in _declared if each.is_current]
    return [
        cls
        for cls in current
        if apps.get_containing_app_config(cls.__module__) is not None
    ]


def problems_of(registry: Registry) -> Iterator[Problem]:
    """Yield what is wrong with the business interfaces of a registry."""
    table = registry.routes
    for cls in interfaces_of(registry):
        for method in methods_of(implement(cls, registry=registry)):
            yield from method.problems(table)


def _interface_filler(annotation: Any, services: Services) -> Resolver | None:
    """Fill a parameter with what implements the interface that annotates it."""
    cls = sole_type(annotation)
    if services.owner is None or not is_business_interface(cls):
        return None
    implementation = implement(cls, registry=services.owner)
    overrides = services.overrides

    def get(_message: Any) -> Any:
        return overrides[cls]() if cls in overrides else implementation

    return get


register_filler(_interface_filler)
