"""The route table: finds the endpoints of a message."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from django_cqrs.annotations import is_protocol, name_of_type
from django_cqrs.conversion.adapters import is_subclass
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import (
    DuplicateHandler,
    InvalidHandler,
    NoHandlerFound,
    UnknownEndpoint,
)
from django_cqrs.messages import message_name_of
from django_cqrs.problems import Problem
from django_cqrs.routing.diagnosis import (
    RouteDiagnosis,
    ambiguous_handlers,
    duplicate_handlers,
)
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.index import nearest_route, turn_of

_makers: dict[str, Callable[[str], Endpoint]] = {}


def add_endpoint_maker(prefix: str, make: Callable[[str], Endpoint]) -> None:
    """
    Let a higher layer make the endpoints that no decorator declares, when needed.

    Args:
        prefix: the part of their names before the first colon.
        make: returns the endpoint of a name, or raises :exc:`UnknownEndpoint`.

    """
    _makers[prefix] = make


class RouteTable(RouteDiagnosis):
    """All routes of one registry: built once, never changed."""

    def ensure_sound(self, endpoint: Endpoint) -> Endpoint:
        """
        Return the endpoint.

        Raises:
            InvalidHandler: its declaration is broken, with the text of the check.

        """
        if self._broken:
            for each in self._parts.get(endpoint, (endpoint,)):
                if each in self._broken:
                    raise InvalidHandler(str(self._broken[each]))
        return endpoint

    def endpoint_named(self, name: str) -> Endpoint:
        """
        Return the endpoint of a name, including old names.

        Raises:
            UnknownEndpoint: no handler has this name.
            InvalidHandler: its declaration is broken.

        """
        endpoint = self._by_name.get(name)
        if endpoint is None:
            make = _makers.get(name.partition(":")[0])
            if make is not None:
                return make(name)
            msg = (
                f"No handler has the endpoint name {name!r}. If it was renamed, give "
                "the old name in aliases=[...] of its decorator."
            )
            raise UnknownEndpoint(msg)
        return self.ensure_sound(endpoint)

    def problem_of(self, endpoint: Endpoint) -> Problem | None:
        """Return the problem of its route, None if it works."""
        if endpoint in self._broken:
            return self._broken[endpoint]
        for problem in self.problems:
            if problem.rule.is_error and problem.obj is endpoint.function:
                return problem
        return None

    def handler_of(self, kind: Kind, payload: Any) -> Endpoint:
        """
        Return the one endpoint of an object.

        Raises:
            NoHandlerFound: no handler takes it.
            DuplicateHandler: there are several, and none is nearer than the others.
            InvalidHandler: its declaration is broken.

        """
        __traceback_hide__ = True
        cls = type(payload)
        routes = self._by_class[kind]
        nearest, rivals = nearest_route(cls, routes)
        exact = routes[cls] if nearest is cls else []
        found = self._with_own_name(kind, cls, exact)
        if not found and rivals:
            bases = (nearest, *rivals)
            raise DuplicateHandler(str(ambiguous_handlers(kind, cls, bases, routes)))
        if not found and nearest is not None:
            found = routes[nearest]
        if not found:
            found = self._by_nature(kind, payload)
        if not found:
            self._refuse_unroutable(kind, cls=cls)
            raise NoHandlerFound(self._no_handler(kind, cls=cls))
        found = self.paired(found)
        if len(found) > 1:
            raise DuplicateHandler(
                str(duplicate_handlers(kind, name_of_type(cls), found))
            )
        return self.ensure_sound(found[0])

    def handler_of_class(self, kind: Kind, cls: type) -> Endpoint | None:
        """
        Return the endpoint of the objects of a class.

        None if only an object can tell it, or if :meth:`handler_of` will raise an
        error.
        """
        routes = self._by_class[kind]
        nearest, rivals = nearest_route(cls, routes)
        exact = routes[cls] if nearest is cls else []
        found = self._with_own_name(kind, cls, exact)
        if not found and nearest is not None and not rivals:
            found = routes[nearest]
        found = self.paired(found)
        return found[0] if len(found) == 1 and found[0] not in self._broken else None

    def handler_of_key(self, kind: Kind, key: str) -> Endpoint | None:
        """
        Return the one endpoint of a routing key, or None for a message class's name.

        Raises:
            NoHandlerFound: no handler has this key.
            DuplicateHandler: several endpoints have it.
            InvalidHandler: its declaration is broken.

        """
        found = self.paired(self._by_key[kind].get(key, ()))
        if len(found) > 1:
            raise DuplicateHandler(str(duplicate_handlers(kind, repr(key), found)))
        if found:
            return self.ensure_sound(found[0])
        if self.named_class(key) is None:
            self._refuse_unroutable(kind, key=key)
            raise NoHandlerFound(self._no_handler(kind, key=key))
        return None

    def named_class(self, key: str) -> type | None:
        """
        Return the message class with this ``@message`` name.

        Raises:
            InvalidHandler: two classes have this name.

        """
        if key in self.types.clashes:
            raise InvalidHandler(str(self.types.clashes[key]))
        return self.types.named(key)

    def subscribers_of(
        self, payload: Any, sent_by: str | None = None
    ) -> tuple[Endpoint, ...]:
        """
        Return the endpoints that an event reaches, in the order of their calls.

        Args:
            payload: the event.
            sent_by: the name it was published under, besides its class's own.

        Raises:
            InvalidHandler: the declaration of one of them is broken.

        """
        __traceback_hide__ = True
        cls = type(payload)
        self._refuse_unroutable(Kind.EVENT, cls=cls)
        found = [
            endpoint
            for routed, endpoints in self._by_class[Kind.EVENT].items()
            if routed is object or isinstance(payload, routed)
            for endpoint in endpoints
        ]
        name = message_name_of(cls)
        if name is not None:
            found.extend(self._listening_to(name.name))
        if sent_by is not None:
            found.extend(self._listening_to(sent_by))
        return self._in_order(found)

    def has_subscribers(self, cls: type) -> bool:
        """Return whether an event of a class may have a handler."""
        found = self._has_subscribers.get(cls)
        if found is None:
            name = message_name_of(cls)
            keys: list[str] = [] if name is None else [name.name]
            found = self._has_subscribers[cls] = any(
                routed is object or is_protocol(routed) or issubclass(cls, routed)
                for routed in self._by_class[Kind.EVENT]
            ) or any(self._by_key[Kind.EVENT].get(key) for key in keys)
            found = found or any(
                fnmatchcase(key, pattern)
                for key in keys
                for pattern, _ in self._by_pattern
            )
            self._has_subscribers[cls] = found
        return found

    def commands_of(self, key: str) -> list[Endpoint]:
        """Return the handlers of a command by its routing key, sound or not."""
        return self.paired(self._by_key[Kind.COMMAND].get(key, ()))

    def told_of(self, event: Any, key: str | None) -> list[Endpoint]:
        """
        Return the endpoints of an event, sound or not, in the order of their calls.

        Args:
            event: the event; None for no event of a class.
            key: a name that it is published under besides, or None.

        """
        found: list[Endpoint] = []
        keys = [] if key is None else [key]
        if event is not None:
            name = message_name_of(type(event))
            keys += [] if name is None else [name.name]
            found += [
                endpoint
                for routed, endpoints in self._by_class[Kind.EVENT].items()
                if routed is object or isinstance(event, routed)
                for endpoint in endpoints
            ]
        for each in keys:
            found += self._by_key[Kind.EVENT].get(each, ())
            found += [
                e for pattern, e in self._by_pattern if fnmatchcase(each, pattern)
            ]
        return sorted(self.paired(found), key=turn_of)

    def takers_of_class(self, kind: Kind, cls: type) -> list[Endpoint]:
        """
        Return the endpoints that objects of a class may reach, sound or not.

        Args:
            kind: the kind of message that they are sent as.
            cls: the class.

        Returns:
            A factory and its action apart; the handlers of an event in their order,
            those that are fed with stored events included.

        """
        routes = self._by_class[kind]
        name = message_name_of(cls)
        if kind is Kind.EVENT:
            found = [
                endpoint
                for base in cls.__mro__
                for some in (routes, self._fed_by_class)
                for endpoint in some.get(base, ())
            ]
            for base in self._bases_by_rule:
                if base not in cls.__mro__ and is_subclass(cls, base):
                    found += [*routes.get(base, ()), *self._fed_by_class.get(base, ())]
            found += self.takers_of_key(kind, name.name) if name is not None else []
            return sorted(dict.fromkeys(found), key=turn_of)
        nearest, _ = nearest_route(cls, routes)
        exact = routes[cls] if nearest is cls else []
        found = self._with_own_name(kind, cls, exact)
        if not found and nearest is not None:
            found = routes[nearest]
        if not found:
            found = [e for b in routes if is_subclass(cls, b) for e in routes[b]]
        return list(dict.fromkeys(found))

    @functools.cached_property
    def _bases_by_rule(self) -> list[type]:
        """The classes of events that decide themselves which classes belong to them."""
        usual = type.__subclasscheck__
        routes = dict.fromkeys((*self._by_class[Kind.EVENT], *self._fed_by_class))
        return [cls for cls in routes if type(cls).__subclasscheck__ is not usual]

    @functools.cached_property
    def _fed_by_class(self) -> dict[type, list[Endpoint]]:
        """The handlers that are fed with stored events, by the classes of these."""
        found: dict[type, list[Endpoint]] = {}
        for endpoint in self.endpoints:
            for cls in endpoint.classes if endpoint.is_fed else ():
                found.setdefault(cls, []).append(endpoint)
        return found

    def takers_of_key(self, kind: Kind, key: str) -> list[Endpoint]:
        """
        Return the endpoints that a routing key may reach, sound or not.

        Args:
            kind: the kind of message that it is the key of.
            key: the key; of a class of messages its name.

        Returns:
            A factory and its action apart; the handlers of an event in their order.

        """
        found = list(self._by_key[kind].get(key, ()))
        if kind is not Kind.EVENT:
            return found
        found += [e for pattern, e in self._by_pattern if fnmatchcase(key, pattern)]
        found += [
            endpoint
            for endpoint in self.endpoints
            if endpoint.is_fed and any(fnmatchcase(key, own) for own in endpoint.keys)
        ]
        return sorted(dict.fromkeys(found), key=turn_of)

    def subscribers_of_key(self, key: str) -> tuple[Endpoint, ...]:
        """
        Return the endpoints that listen to a name, in order.

        Raises:
            InvalidHandler: the declaration of one of them is broken.

        """
        return self._in_order(self._listening_to(key))

    def _listening_to(self, key: str) -> list[Endpoint]:
        self.named_class(key)  # raises if two classes have it
        self._refuse_unroutable(Kind.EVENT, key=key)
        return [
            *self._by_key[Kind.EVENT].get(key, ()),
            *(e for pattern, e in self._by_pattern if fnmatchcase(key, pattern)),
        ]

    def _in_order(self, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        once = self.paired(self.ensure_sound(endpoint) for endpoint in endpoints)
        return tuple(sorted(once, key=turn_of))
