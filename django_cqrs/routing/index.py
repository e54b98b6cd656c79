"""Routes by class, by key and by pattern."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from django_cqrs.annotations import is_plain_class, is_protocol
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.declaration.declarations import Kind, role_of
from django_cqrs.declaration.discovery import Discovery
from django_cqrs.declaration.keywords import OWN
from django_cqrs.exceptions import InvalidHandler
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.messages import message_name_of
from django_cqrs.parameters.services import Services
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.endpoint_checks import are_equal, problems_of
from django_cqrs.routing.endpoints import PATTERN_SIGNS, endpoints_of


def _checked(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint with the problems of its policies and its class."""
    if endpoint.plan.problems:
        return endpoint
    problems = [*endpoint.problems, *problems_of(endpoint)]
    if endpoint.subject is not None:
        problems += endpoint.subject.problems_of(endpoint)
    return dataclasses.replace(endpoint, problems=tuple(problems))


def sharing(endpoints: Sequence[Endpoint], messages: Sequence[type]) -> list[Endpoint]:
    """
    Return endpoints, with factories and actions sharing their keywords.

    A factory and an action of one class are one handler for a shared message: a keyword
    on either of them counts for both.

    Args:
        endpoints: the endpoints of one registry.
        messages: the known message classes, besides those of handlers.

    """
    groups: defaultdict[Any, list[Endpoint]] = defaultdict(list)
    for each in endpoints:
        if each.subject is not None and each.kind is not Kind.QUERY:
            groups[each.owner, each.kind].append(each)
    replaced: dict[Endpoint, Endpoint] = {}
    for rivals in groups.values():
        factories = [each for each in rivals if each.is_factory]
        if factories and len(factories) < len(rivals):
            replaced |= _sharing_of_class(rivals, messages)
    return [replaced.get(each, each) for each in endpoints]


def _sharing_of_class(
    rivals: Sequence[Endpoint], messages: Sequence[type]
) -> dict[Endpoint, Endpoint]:
    known = list(dict.fromkeys([*messages, *(c for e in rivals for c in e.classes)]))
    known += [each for cls in list(known) if cls is not object for each in _heirs(cls)]
    keys = {key for each in rivals for key in each.keys}
    keys |= {name.name for cls in known if (name := message_name_of(cls)) is not None}
    reach = {each: _reach(each, known, keys) for each in rivals}
    found: dict[Endpoint, Endpoint] = {}
    for each in rivals:
        if each in found:
            continue
        group, ahead = [each], [each]
        while ahead:
            one = ahead.pop()
            for other in rivals:
                meets = other.is_factory is not one.is_factory
                if meets and other not in group and reach[one] & reach[other]:
                    group.append(other)
                    ahead.append(other)
        if len(group) > 1:
            made = {route for e in group if e.is_factory for route in reach[e]}
            acted = {route for e in group if not e.is_factory for route in reach[e]}
            found |= _sharing_of_group(group, is_alone=bool(acted - made))
    return found


def _sharing_of_group(
    group: Sequence[Endpoint], *, is_alone: bool
) -> dict[Endpoint, Endpoint]:
    shared: dict[str, Any] = {}
    said_by: dict[str, Endpoint] = {}
    problems: list[Problem] = []
    for endpoint in group:
        for name in endpoint.own.given():
            value = getattr(endpoint.own, name)
            first = said_by.setdefault(name, endpoint)
            if name in OWN or first is endpoint:
                shared.setdefault(name, value)
            elif not are_equal(name, value, shared[name]):
                problems.append(_unequal(name, first, endpoint))
    for name in OWN:
        shared.pop(name, None)
    return {
        each: dataclasses.replace(
            each,
            policies=dataclasses.replace(each.own, **shared),
            partners=tuple(other.name for other in group if other is not each),
            is_alone_somewhere=is_alone,
            problems=(*each.problems, *problems),
        )
        for each in group
    }


def _reach(
    endpoint: Endpoint, known: Iterable[type], keys: Iterable[str]
) -> frozenset[Any]:
    """Return the known classes and keys that are routed to an endpoint."""
    return frozenset(
        [
            *(cls for cls in known if _is_reached_by(endpoint, cls)),
            *(key for key in keys if _listens_to(endpoint, key)),
        ]
    )


def _is_reached_by(endpoint: Endpoint, cls: type) -> bool:
    """Return whether objects of a class would reach an endpoint if it were alone."""
    name = message_name_of(cls)
    if name is not None and _listens_to(endpoint, name.name):
        return True
    if endpoint.kind is not Kind.EVENT:
        return cls in endpoint.classes
    return any(
        routed is object or _is_subclass(cls, routed) for routed in endpoint.classes
    )


def _listens_to(endpoint: Endpoint, key: str) -> bool:
    if endpoint.kind is Kind.EVENT:
        return any(fnmatchcase(key, own) for own in endpoint.keys)
    return key in endpoint.keys


def _is_subclass(cls: type, base: type) -> bool:
    try:
        return issubclass(cls, base)
    except TypeError:  # a Protocol with data: only objects can be tested
        return False


def _unequal(name: str, one: Endpoint, other: Endpoint) -> Problem:
    return Problem(
        Rule.UNEQUAL_PAIR,
        f"{one.place} has {name}={getattr(one.own, name)!r} and {other.place} has "
        f"{name}={getattr(other.own, name)!r}: they are the factory and the action "
        "for one message, so their keywords must be equal.",
        f"Give {name}= on only one of them, or the same value on both.",
        other.function,
    )


def _named_classes(discovery: Discovery) -> Iterator[type]:
    """Yield the message classes that modules or a registry name themselves."""
    yield from discovery.messages
    for found in discovery.handlers:
        if isinstance(found.target, type) and message_name_of(found.target):
            yield found.target


class RouteIndex:
    """The endpoints of one registry, by class, key and pattern."""

    def __init__(self, discovery: Discovery, services: Services) -> None:
        """Compile the discovered declarations, and index them by their routes."""
        endpoints: list[Endpoint] = []
        for found in discovery.handlers:
            endpoints.extend(endpoints_of(found, services))
        shared = sharing(endpoints, list(_named_classes(discovery)))
        self.endpoints: Final = tuple(
            _checked(dataclasses.replace(endpoint, order=order))
            for order, endpoint in enumerate(shared)
        )
        self._discovery: Final = discovery
        self.is_of_apps: Final = discovery.is_of_apps
        """Whether it has everything that the installed apps declare."""
        self._strays: Final = [
            problem
            for problem in discovery.problems
            if problem.rule in (Rule.UNROUTED_HANDLER, Rule.HIDDEN_HANDLER)
        ]
        self._by_class: dict[Kind, defaultdict[type, list[Endpoint]]]
        self._by_class = {kind: defaultdict(list) for kind in Kind}
        self._by_key: dict[Kind, defaultdict[str, list[Endpoint]]]
        self._by_key = {kind: defaultdict(list) for kind in Kind}
        self._by_pattern: list[tuple[str, Endpoint]] = []
        self._methods: defaultdict[tuple[type | None, Kind], list[Endpoint]]
        self._methods = defaultdict(list)
        self._fed: dict[type | None, list[Endpoint]] = {
            found.target: []
            for found in discovery.handlers
            if getattr(role_of(found.target), "is_fed", False)
        }
        for endpoint in self.endpoints:
            if endpoint.is_fed:
                self._fed[endpoint.owner].append(endpoint)
                continue
            if endpoint.subject is not None:
                self._methods[endpoint.owner, endpoint.kind].append(endpoint)
            for cls in endpoint.classes:
                self._by_class[endpoint.kind][cls].append(endpoint)
            for key in endpoint.keys:
                if endpoint.kind is Kind.EVENT and PATTERN_SIGNS & set(key):
                    self._by_pattern.append((key, endpoint))
                else:
                    self._by_key[endpoint.kind][key].append(endpoint)
        self.types: Final = MessageTypes(
            self._message_classes(discovery), of_apps=discovery.is_of_apps
        )
        self._by_name = {
            name: endpoint
            for endpoint in self.endpoints
            for name in (*endpoint.policies.aliases, endpoint.name)
        }
        self._pairs: dict[tuple[Endpoint, Endpoint], Endpoint] = {}
        self._parts: dict[Endpoint, tuple[Endpoint, ...]] = {}
        self._has_subscribers: dict[type, bool] = {}

    def _message_classes(self, discovery: Discovery) -> list[type]:
        subjects = dict.fromkeys(endpoint.subject for endpoint in self.endpoints)
        payloads = [
            member
            for endpoint in self.endpoints
            if endpoint.plan.payload is not None
            for member in endpoint.plan.payload.members
        ]
        payloads += [
            cls for each in subjects if each is not None for cls in each.messages()
        ]
        members = [
            member
            for member in payloads
            if is_plain_class(member)
            and member.__module__ != "builtins"
            and not is_protocol(member)
        ]
        named = [
            each
            for endpoint in self.endpoints
            if isinstance(each := endpoint.policies.on_dead, type)
        ]
        said = [*_named_classes(discovery), MessageGaveUp, *named, *members]
        # Classes that @dataclass(slots=True) copied, and those of earlier imports of a
        # module, remain as subclasses: the last one counts.
        derived: dict[Any, type] = {
            load_of(each): each for member in members for each in subclasses_of(member)
        }
        return [*said, *derived.values()]

    @property
    def fed_owners(self) -> tuple[type, ...]:
        """The classes that are fed with stored events, in order of registration."""
        return tuple(owner for owner in self._fed if owner is not None)

    def fed(self, owner: type) -> tuple[Endpoint, ...]:
        """Return the event handlers of a class that is fed, in order of definition."""
        return tuple(self._fed.get(owner, ()))

    def paired(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """Return endpoints, with the factory and the action of one class made one."""
        found = list(dict.fromkeys(endpoints))
        for factory in [each for each in found if each.subject and each.is_factory]:
            rivals = [
                each
                for each in found
                if each.owner is factory.owner and each is not factory
            ]
            if len(rivals) == 1 and rivals[0].subject and not rivals[0].is_factory:
                found[found.index(factory)] = self._pair(factory, rivals[0])
                found.remove(rivals[0])
        return found

    def _pair(self, factory: Endpoint, action: Endpoint) -> Endpoint:
        pair = self._pairs.get((factory, action))
        if pair is None:
            one, other = factory, action
            if action.name not in factory.partners:
                one, other = self._meeting(factory, action)
            pair = dataclasses.replace(one, action=other)
            self._pairs[factory, action] = pair
            self._parts[pair] = factory, action
        return pair

    def _meeting(
        self, factory: Endpoint, action: Endpoint
    ) -> tuple[Endpoint, Endpoint]:
        """
        Return two endpoints that share a message, as could not be known before.

        Raises:
            InvalidHandler: their keywords differ.

        """
        both = [
            dataclasses.replace(each, own=each.policies, problems=())
            for each in (factory, action)
        ]
        one, other = _sharing_of_group(both, is_alone=True).values()
        for problem in one.problems:
            raise InvalidHandler(str(problem))
        return one, other

    def with_action(self, endpoint: Endpoint, payload: Any) -> Endpoint:
        """
        Return the endpoint that a message was stored for, or its pair.

        Args:
            endpoint: the endpoint of the message's name, the factory or the action.
            payload: the message's payload.

        """
        __traceback_hide__ = True
        if endpoint.subject is None or endpoint.kind is Kind.QUERY:
            return endpoint
        also = [
            each
            for each in self._methods.get((endpoint.owner, endpoint.kind), ())
            if each.is_factory is not endpoint.is_factory
            and (set(each.keys) & set(endpoint.keys) or _meet(payload, each, endpoint))
        ]
        return self.paired([endpoint, *also])[0]

    def _with_own_name(
        self, kind: Kind, cls: type, endpoints: list[Endpoint]
    ) -> list[Endpoint]:
        """Return these and the endpoints of the class's own ``@message`` name."""
        name = message_name_of(cls)
        if name is None:
            return endpoints
        return list(dict.fromkeys([*endpoints, *self._by_key[kind].get(name.name, ())]))

    def _by_nature(self, kind: Kind, payload: Any) -> list[Endpoint]:
        """Return the endpoints of an object's types that it does not derive from."""
        routes = self._by_class[kind]
        found = [
            endpoint
            for cls, endpoints in routes.items()
            if cls is not object and isinstance(payload, cls)
            for endpoint in endpoints
        ]
        return list(dict.fromkeys(found)) or routes.get(object, [])


def turn_of(endpoint: Endpoint) -> tuple[int, bool, int]:
    """Return the sort key for the handlers of one event."""
    return -endpoint.priority, endpoint.subject is None, endpoint.order


def _meet(payload: Any, one: Endpoint, other: Endpoint) -> bool:
    """Return whether one object can reach both endpoints."""
    cls = type(payload)
    if _is_reached_by(one, cls) and _is_reached_by(other, cls):
        return True
    routed, also = set(one.classes), set(other.classes)
    if one.kind is not Kind.EVENT:
        # The nearest class decides, or else the types that it does not derive from.
        natures = {each for each in routed | also if is_protocol(each)}
        routed, also = routed & (also | natures), also & (routed | natures)
    return all(
        any(isinstance(payload, each) for each in some) for some in (routed, also)
    )


def nearest_route(
    cls: type, routes: dict[type, list[Endpoint]]
) -> tuple[type | None, tuple[type, ...]]:
    """
    Return the first class of the MRO that has a route, and its rivals.

    A rival is not an ancestor of it and not further from `cls`, counted in steps of
    inheritance: two bases of one class, for example. ``object`` and Protocols come last
    and are not considered here.
    """
    found = [
        base
        for base in cls.__mro__
        if base in routes and base is not object and not is_protocol(base)
    ]
    if not found:
        return None, ()
    nearest = found[0]
    distance = _steps(cls, nearest)
    rivals = tuple(
        other
        for other in found[1:]
        if other not in nearest.__mro__
        and _steps(cls, other) <= distance
        and routes[other] != routes[nearest]
    )
    return nearest, rivals


def _steps(cls: type, base: type) -> int:
    if cls is base:
        return 0
    return 1 + min(
        (_steps(each, base) for each in cls.__bases__ if base in each.__mro__),
        default=len(cls.__mro__),
    )


def load_of(cls: type) -> tuple[Any, ...]:
    """Return the identity of a class that repeated imports have in common."""
    return cls.__module__, cls.__qualname__, message_name_of(cls)


def _heirs(cls: type) -> Iterator[type]:
    """Yield the subclasses of a message class; those of a Protocol are unknown."""
    return iter(()) if is_protocol(cls) else subclasses_of(cls)


def subclasses_of(cls: type) -> Iterator[type]:
    """Yield all subclasses of a class, each before its own."""
    subclasses: list[type] = type.__subclasses__(cls)  # a metaclass may not accept cls
    for each in subclasses:
        yield each
        yield from subclasses_of(each)
