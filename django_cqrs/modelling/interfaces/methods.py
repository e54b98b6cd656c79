"""The methods of business interfaces, and their routes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeVar

from django_cqrs.annotations import (
    is_plain_class,
    marks_of,
    name_of_type,
    place_of,
    signature_of,
    sole_type,
    union_members,
)
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import Kind
from django_cqrs.declaration.marks import Header
from django_cqrs.messages import (
    OWN_HEADERS,
    RESERVED_HEADERS,
    RESERVED_PREFIXES,
    Headers,
)
from django_cqrs.modelling.identifiers import Identifier
from django_cqrs.modelling.interfaces.decorators import (
    METHOD,
    BusinessMethod,
    interface_options,
)
from django_cqrs.modelling.sql.decorators import STATEMENT, Statement
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.endpoints import PATTERN_SIGNS
from django_cqrs.routing.table import RouteTable

T = TypeVar("T")

NONE = (None, type(None))


@dataclasses.dataclass(frozen=True, slots=True)
class _Signature:
    """The evaluated signature of one method, without ``self``."""

    whole: inspect.Signature
    annotations: Mapping[str, Any]
    returns: Any

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.annotations)


Call = Callable[[Sequence[Any]], Any]
"""The action on one call's arguments, in the order of the parameters."""


class MethodDescription:
    """One method of a business interface, for one registry."""

    def __init__(
        self, owner: type, name: str, function: Callable[..., Any], registry: Registry
    ) -> None:
        """Evaluate nothing yet: classes in annotations may not exist so far."""
        self.owner = owner
        self.name = name
        self.function = function
        self.registry = registry
        self.place: str = f"{place_of(owner)}.{name}"
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self._compiled: tuple[RouteTable, Call] | None = None

    @property
    def statement(self) -> Statement | None:
        """Its SQL, if it is an SQL method."""
        return getattr(self.function, STATEMENT, None)

    @property
    def declaration(self) -> BusinessMethod | None:
        """The declaration of ``@business_method``, if it has a route."""
        return getattr(self.function, METHOD, None)

    @cached_property
    def signature(self) -> _Signature:
        """
        The evaluated signature.

        Raises:
            Exception: an annotation cannot be evaluated.

        """
        parameters, returns = signature_of(
            self.function, self.owner, interface_options[self.owner].names
        )
        own = parameters[1:]
        return _Signature(
            inspect.Signature(own),
            {each.name: each.annotation for each in own},
            returns,
        )

    def route(self, table: RouteTable) -> Route | None:
        """Return its route, None if there is not exactly one."""
        routes = self.routes(table)
        return routes[0] if len(routes) == 1 else None

    def routes(self, table: RouteTable) -> list[Route]:
        """Return its possible routes: one for each kind of message."""
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


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """The roles of the parameters, each by its place in the signature."""

    payload: int | None
    headers: tuple[tuple[str, int, Any], ...]
    all_headers: int | None
    identifiers: tuple[tuple[str, int], ...]
    excess: tuple[str, ...]
    """The names of all payloads, if there are several."""

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
        """Return the headers among the arguments; a default None is not sent."""
        found: dict[str, Any] = {}
        if self.all_headers is not None:
            found = {
                name: value
                for name, value in (values[self.all_headers] or {}).items()
                if name not in OWN_HEADERS
                and name not in RESERVED_HEADERS
                and not name.startswith(RESERVED_PREFIXES)
            }
        for name, index, default in self.headers:
            if values[index] is not None or default is not None:
                found[name] = values[index]
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """The route of a method."""

    kind: Kind
    key: str | None
    said: str
    """The key or the class, for error texts."""
    endpoints: tuple[Endpoint, ...]


def routes_of_key(table: RouteTable, key: str) -> list[Route]:
    """Return the routes of a key, one for each kind of message."""
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
    """Return the routes for objects of a type, one for each kind of message."""
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
    """Return whether an object of a class may be routed to `routed`."""
    if routed is object:
        return False
    try:
        return issubclass(cls, routed) or issubclass(routed, cls)
    except TypeError:  # a Protocol with data: only objects can be tested
        return True
