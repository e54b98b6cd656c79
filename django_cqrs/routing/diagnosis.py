"""Mistakes between endpoints, and the reasons why a message has no route."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
import typing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from django.apps import apps

from django_cqrs.annotations import (
    is_plain_class,
    is_protocol,
    is_value_type,
    name_of_type,
    union_members,
)
from django_cqrs.declaration.declarations import Declaration, Kind, declarations_of
from django_cqrs.declaration.discovery import Discovery
from django_cqrs.exceptions import InvalidHandler
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.parameters.services import Services
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import BUS_METHODS, Endpoint, payload_types_of
from django_cqrs.routing.index import RouteIndex, nearest_route, subclasses_of


@dataclasses.dataclass(frozen=True, slots=True)
class Unroutable:
    """A declaration that the table cannot route by, and why."""

    function: Callable[..., Any]
    declaration: Declaration
    problem: Problem

    def wants(self, kind: Kind, cls: type, key: str | None) -> bool:
        """Return whether it concerns a message class, or a key if one is given."""
        if self.declaration.kind is not kind:
            return False
        own = self.declaration.key
        if key is None:
            return own is None and any(
                _mentions(self.function, each) for each in cls.__mro__
            )
        is_pattern = kind is Kind.EVENT and own is not None
        return own == key or (is_pattern and fnmatchcase(key, str(own)))


def _mentions(function: Callable[..., Any], cls: type[Any]) -> bool:
    """Return whether a parameter's annotation names a class, even unevaluated."""
    name = re.compile(rf"\b{re.escape(cls.__name__)}\b")
    for parameter, annotation in _annotations_of(inspect.unwrap(function)).items():
        for member in union_members(annotation):
            text = getattr(member, "__forward_arg__", member)
            if isinstance(text, str):
                found = name.search(text) is not None
            else:
                found = (typing.get_origin(member) or member) is cls
            if found and parameter != "return":
                return True
    return False


def _annotations_of(function: Any) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations

        return get_annotations(function, format=Format.FORWARDREF)
    return inspect.get_annotations(function)


class RouteDiagnosis(RouteIndex):
    """The mistakes between endpoints, and the texts for messages without a route."""

    def __init__(self, discovery: Discovery, services: Services) -> None:
        """Compile the declarations. Mistakes become `problems`, not errors."""
        super().__init__(discovery, services)
        self._broken = self._find_broken()
        self._unroutable: Final = tuple(self._find_unroutable(discovery))
        self.problems: Final = tuple(
            dict.fromkeys(
                [
                    *discovery.problems,
                    *(problem for e in self.endpoints for problem in e.problems),
                    *self._broken.values(),
                    *self.types.clashes.values(),
                    *self._find_duplicates(),
                    *self._find_ambiguities(),
                    *self._find_nameless(),
                    *self._find_unknown_outputs(),
                    *self._find_unknown_on_dead(),
                    *self._find_dead_cycles(),
                ]
            )
        )

    @property
    def late_problems(self) -> list[Problem]:
        """The declarations that were decorated after the routes were compiled."""
        return self._discovery.late()

    def _find_broken(self) -> dict[Endpoint, Problem]:
        broken = {e: e.problems[0] for e in self.endpoints if e.problems}
        names: defaultdict[str, list[Endpoint]] = defaultdict(list)
        for endpoint in self.endpoints:
            for name in {endpoint.name, *endpoint.policies.aliases}:
                names[name].append(endpoint)
        for name, holders in names.items():
            if len(holders) > 1:
                places = " and ".join(location_of(each) for each in holders)
                problem = Problem(
                    Rule.DUPLICATE_NAME,
                    f"Two handlers have the endpoint name {name!r}: {places}.",
                    "Give one of them another name with name=.",
                    holders[-1].function,
                )
                for holder in holders:
                    broken.setdefault(holder, problem)
        for problem, rivals in self._find_ambiguous_pairs():
            for rival in rivals:
                broken.setdefault(rival, problem)
        return broken

    def _find_unroutable(self, discovery: Discovery) -> Iterator[Unroutable]:
        """Yield declarations that no look-up finds, so that none is lost silently."""
        for endpoint, problem in self._broken.items():
            for declaration in declarations_of(endpoint.function):
                by_class = declaration.kind is endpoint.kind and declaration.key is None
                if by_class and not endpoint.classes:
                    yield Unroutable(endpoint.function, declaration, problem)
        for problem in discovery.problems:
            if problem.rule is Rule.UNREGISTERED_CLASS:
                for declaration in declarations_of(problem.obj):
                    yield Unroutable(problem.obj, declaration, problem)

    def _find_ambiguous_pairs(self) -> Iterator[tuple[Problem, list[Endpoint]]]:
        """Yield methods of one class that share a message without being a pair."""
        for kind in (Kind.COMMAND, Kind.EVENT):
            routes: dict[Any, list[Endpoint]]
            routes = {**self._by_class[kind], **self._by_key[kind]}
            for route, found in routes.items():
                by_owner: defaultdict[type | None, list[Endpoint]] = defaultdict(list)
                for endpoint in dict.fromkeys(found):
                    if endpoint.subject is not None:
                        by_owner[endpoint.owner].append(endpoint)
                for rivals in by_owner.values():
                    if len(rivals) > _PAIR and any(each.is_factory for each in rivals):
                        yield too_many_actions(kind, route, rivals), rivals

    def _find_duplicates(self) -> Iterator[Problem]:
        for kind in (Kind.COMMAND, Kind.QUERY):
            for cls, found in self._by_class[kind].items():
                endpoints = self.paired(self._with_own_name(kind, cls, found))
                if len(endpoints) > 1:
                    yield duplicate_handlers(kind, name_of_type(cls), endpoints)
            for key, found in self._by_key[kind].items():
                endpoints = self.paired(found)
                if len(endpoints) > 1:
                    yield duplicate_handlers(kind, repr(key), endpoints)

    def _find_ambiguities(self) -> Iterator[Problem]:
        for kind in (Kind.COMMAND, Kind.QUERY):
            routes = self._by_class[kind]
            seen = set()
            for cls in list(routes):
                for each in subclasses_of(cls) if cls is not object else ():
                    if each not in seen:
                        seen.add(each)
                        rivals = nearest_route(each, routes)[1]
                        if rivals:
                            nearest = nearest_route(each, routes)[0]
                            yield ambiguous_handlers(
                                kind, each, (nearest, *rivals), routes
                            )

    def _find_nameless(self) -> Iterator[Problem]:
        """Yield the classes taken by handlers on channels that no channel can store."""
        named = set(self.types)
        for endpoint in self.endpoints:
            if endpoint.channel is None or endpoint.kind is Kind.QUERY:
                continue
            for cls in payload_types_of(endpoint):
                if not _is_stored_by_name(cls) or named.intersection(
                    subclasses_of(cls)
                ):
                    continue
                reason = self.types.why_nameless(cls)
                if reason is not None:
                    path = f"{cls.__module__}.{cls.__qualname__}"
                    yield Problem(
                        Rule.NAMELESS_MESSAGE,
                        f"{endpoint.place} has channel={endpoint.channel!r}, but "
                        f"{path} has no name on the wire: {reason}.",
                        f'Name {name_of_type(cls)} with @message("app.name").',
                        endpoint.function,
                    )

    def _find_unknown_outputs(self) -> Iterator[Problem]:
        """Yield the handlers whose ``output=`` has no handler."""
        for endpoint in self.endpoints:
            for output in endpoint.own.outputs:
                keys = self._by_key[Kind.COMMAND]
                if keys.get(output) or self.types.named(output) is not None:
                    continue
                near = difflib.get_close_matches(output, keys, n=1)
                meant = (
                    f"Did you mean {near[0]!r}?"
                    if near
                    else "Write one, or fix the key."
                )
                yield Problem(
                    Rule.UNKNOWN_OUTPUT,
                    f"{endpoint.place} has output={output!r}, and no command handler "
                    f"has this routing key.",
                    meant,
                    endpoint.function,
                )

    def _find_unknown_on_dead(self) -> Iterator[Problem]:
        """Yield the handlers whose ``on_dead=`` has no handler, or an unfit one."""
        for endpoint in self.endpoints:
            on_dead = endpoint.own.on_dead
            if on_dead is None or endpoint.channel is None:
                continue
            said = on_dead.__name__ if isinstance(on_dead, type) else repr(on_dead)
            fault, hint = self._fault_of_on_dead(on_dead)
            if fault:
                yield Problem(
                    Rule.UNKNOWN_ON_DEAD,
                    f"{endpoint.place} has on_dead={said}, {fault}.",
                    hint,
                    endpoint.function,
                )

    def _fault_of_on_dead(self, on_dead: str | type) -> tuple[str, str]:
        """Return the fault of an ``on_dead=`` and its fix; empty without one."""
        cls = on_dead if isinstance(on_dead, type) else MessageGaveUp
        if not issubclass(cls, MessageGaveUp):
            hint = f"Derive it: class {cls.__name__}(MessageGaveUp), or give a key."
            return "which is not a subclass of MessageGaveUp", hint
        if cls is MessageGaveUp and on_dead is cls:
            return (
                "which is sent for every message that is given up",
                "Remove on_dead=, or derive a class of your own.",
            )
        try:
            event = cls(endpoint="")
        except TypeError as error:
            return f"which cannot be created: {error}", "Give its fields defaults."
        nameless = self.types.why_nameless(cls)
        if nameless is not None:
            return f"which has no stored name: {nameless}", "Name it with @message."
        if not self._are_told(on_dead):
            keys = [*self._by_key[Kind.COMMAND], *self._by_key[Kind.EVENT]]
            near = difflib.get_close_matches(str(on_dead), keys, n=1)
            meant = f"Did you mean {near[0]!r}?" if near else "Write one, or fix it."
            return "and no handler of a command or an event takes it", meant
        for told in self._told_of(on_dead):
            taken = told.plan.payload
            if taken is not None and not taken.takes(event):
                return (
                    f"but {told.place} does not take {cls.__name__}",
                    f"Annotate its first parameter with {cls.__name__}.",
                )
            if told.subject is None:
                continue
            missing = told.subject.parts_missing_in(told, cls)
            if missing:
                names = " and no ".join(missing)
                fault = f"cannot find its object: {cls.__name__} has no {names}"
                hint = "Give that handler an identifier=, such as a Header."
                return f"but {told.place} {fault}", hint
        return "", ""

    def _are_told(self, on_dead: str | type) -> bool:
        return next(iter(self._told_of(on_dead)), None) is not None

    def _told_of(self, on_dead: str | type) -> list[Endpoint]:
        """Return the endpoints that ``on_dead=`` names."""
        if isinstance(on_dead, str):
            commands = self._by_key[Kind.COMMAND].get(on_dead)
            if commands:
                return list(commands)
            events = self._by_key[Kind.EVENT].get(on_dead, [])
            matched = [e for key, e in self._by_pattern if fnmatchcase(on_dead, key)]
            return [*events, *matched]
        return [
            endpoint
            for routed, endpoints in self._by_class[Kind.EVENT].items()
            if not is_protocol(routed) and issubclass(on_dead, routed)
            for endpoint in endpoints
        ]

    def _find_dead_cycles(self) -> Iterator[Problem]:
        """Yield the handlers whose ``on_dead=`` leads back to themselves."""
        told = {
            each: self._told_of(each.policies.on_dead)
            for each in self.endpoints
            if each.policies.on_dead is not None and each.channel is not None
        }
        for endpoint in told:
            path = _way_back(endpoint, told)
            if path and endpoint.own.on_dead is not None:
                places = " to ".join(each.place for each in path)
                yield Problem(
                    Rule.DEAD_CYCLE,
                    f"The on_dead= of {endpoint.place} leads back to it: {places}.",
                    "Let one of them name a handler without on_dead=.",
                    endpoint.function,
                )

    def _refuse_unroutable(
        self, kind: Kind, *, cls: type = object, key: str | None = None
    ) -> None:
        """Raise if an unroutable declaration seems to be meant for the message."""
        for lost in self._unroutable:
            if lost.wants(kind, cls, key):
                raise InvalidHandler(str(lost.problem))

    def _no_handler(self, kind: Kind, *, cls: type | None = None, key: str = "") -> str:
        wanted = name_of_type(cls) if cls else repr(key)
        text = f"No {kind} handler takes {wanted}."
        for other in (Kind.COMMAND, Kind.QUERY, Kind.EVENT):
            has = (
                self._by_class[other].get(cls) if cls else self._by_key[other].get(key)
            )
            if has and other is not kind:
                article = "an" if other is Kind.EVENT else "a"
                return f"{text} It is {article} {other}: use {BUS_METHODS[other]}()."
        if cls is None:
            for other in Kind:
                if any(name_of_type(each) == key for each in self._by_class[other]):
                    return (
                        f"{text} {key} is the name of a class, not a routing key: an "
                        "instance finds its handler without a key. Send one with "
                        f"{BUS_METHODS[other]}({key}(...)), without route=."
                    )
        keys = [
            key
            for key, endpoints in self._by_key[kind].items()
            for endpoint in endpoints
            if cls in payload_types_of(endpoint)
        ]
        if keys:
            hint = " or ".join(f"route={each!r}" for each in keys)
            return f"{text} Its handler is reached only by key: give {hint}."
        for problem in (*self._strays, *self.late_problems):
            for declaration in declarations_of(problem.obj):
                lost = Unroutable(problem.obj, declaration, problem)
                if lost.wants(kind, cls or object, None if cls else key):
                    return f"{text} {problem}"
        if cls is not None and cls.__module__ == "builtins":
            return f"{text} Name its handler with route=."
        near = self._near(kind, cls, key)
        if near:
            return f"{text} Did you mean {near}?"
        if not apps.is_installed("django_cqrs"):
            return f"{text} 'django_cqrs' is not in INSTALLED_APPS."
        return (
            f"{text} Check that it is decorated and in the handlers module of an "
            "installed app."
        )

    def _near(self, kind: Kind, cls: type | None, key: str) -> str:
        names = {name_of_type(each): each for each in self._by_class[kind]}
        keys = {repr(each)[1:-1]: each for each in self._by_key[kind]}
        wanted = name_of_type(cls) if cls else key
        near = difflib.get_close_matches(wanted, [*names, *keys], n=1, cutoff=0.7)
        if not near:
            return ""
        same = cls is not None and names.get(near[0]) is not None
        if same and near[0] == wanted:
            other = names[near[0]]
            return f"{other.__module__}.{other.__qualname__}"
        return near[0] if near[0] in names else repr(near[0])


def _way_back(
    start: Endpoint, told: Mapping[Endpoint, Sequence[Endpoint]]
) -> list[Endpoint]:
    """Return a way from an endpoint to itself; empty if there is none."""
    ways, seen = [[start]], set[Endpoint]()
    for way in ways:
        for each in told.get(way[-1], ()):
            if each is start:
                return [*way, start]
            if each not in seen:
                seen.add(each)
                ways.append([*way, each])
    return []


def location_of(endpoint: Endpoint) -> str:
    """Return a handler's dotted path, its file and its line."""
    path, line = endpoint.source
    owner, heir = endpoint.owner, ""
    if owner is not None and _definer_of(endpoint) is not owner:
        heir = f" of {name_of_type(owner)}"
    return f"{endpoint.place}{heir} ({path}:{line})"


def _definer_of(endpoint: Endpoint) -> type | None:
    """Return the class that defines a method's function, which subclasses share."""
    name = endpoint.function.__name__
    bases = endpoint.owner.__mro__ if endpoint.owner is not None else ()
    return next((base for base in bases if name in vars(base)), endpoint.owner)


def duplicate_handlers(
    kind: Kind, wanted: str, endpoints: Iterable[Endpoint]
) -> Problem:
    """Return the problem of a command or a query with more than one handler."""
    endpoints = list(endpoints)
    places = " and ".join(location_of(endpoint) for endpoint in endpoints)
    hint = (
        f"Keep one: a {kind} has exactly one handler; only an event may have several."
    )
    if len({endpoint.source for endpoint in endpoints}) < len(endpoints):
        hint += (
            " A class inherits the handlers of its bases: mark only one of these "
            "classes, or override the method without a decorator in the others."
        )
    return Problem(
        Rule.DUPLICATE_HANDLER,
        f"{wanted} has more than one {kind} handler: {places}.",
        hint,
        endpoints[-1].function,
    )


_PAIR = 2


def too_many_actions(kind: Kind, route: Any, rivals: list[Endpoint]) -> Problem:
    """Return the problem of a message for more than a factory and an action."""
    wanted = repr(route) if isinstance(route, str) else name_of_type(route)
    places = " and ".join(location_of(endpoint) for endpoint in rivals)
    return Problem(
        Rule.CROWDED_FACTORY,
        f"{wanted} leads to more than one factory and one action of "
        f"{name_of_type(rivals[0].owner)}: {places}.",
        f"Keep one of each: the factory runs if the object of the {kind} does not "
        "exist, the action if it does.",
        rivals[-1].function,
    )


def ambiguous_handlers(
    kind: Kind,
    cls: type,
    bases: tuple[type | None, ...],
    routes: dict[type, list[Endpoint]],
) -> Problem:
    """Return the problem of two handlers that are equally near to a message class."""
    endpoints = [routes[base][0] for base in bases if base is not None]
    places = " and ".join(location_of(endpoint) for endpoint in endpoints)
    return Problem(
        Rule.AMBIGUOUS_HANDLER,
        f"Two {kind} handlers are equally near to {name_of_type(cls)}: {places}.",
        f"Write a handler for {name_of_type(cls)} itself.",
        endpoints[-1].function,
    )


def _is_stored_by_name(cls: Any) -> bool:
    """Return whether a payload's type is a concrete class, not a value or a base."""
    return (
        is_plain_class(cls)
        and cls not in (object, Any, inspect.Parameter.empty)
        and not is_value_type(cls)
        and not is_protocol(cls)
        and not inspect.isabstract(cls)
    )
