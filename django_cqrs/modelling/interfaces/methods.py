"""The methods of business interfaces, and the routes that they lead to."""

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
from django_cqrs.messages import OWN_HEADERS, RESERVED_HEADERS, RESERVED_PREFIX, Headers
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
    """The evaluated signature of one method, ``self`` left out."""

    whole: inspect.Signature
    annotations: Mapping[str, Any]
    returns: Any

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.annotations)


Call = Callable[[Sequence[Any]], Any]
"""What is done with the arguments of one call, in the order of the parameters."""


class MethodDescription:
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
    """Return whether some object of a class goes where `routed` leads."""
    if routed is object:
        return False
    try:
        return issubclass(cls, routed) or issubclass(routed, cls)
    except TypeError:  # a Protocol with data: an object decides
        return True
