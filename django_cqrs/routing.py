"""From declarations to an immutable table: which endpoints take a message."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
import typing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from django.apps import apps

from django_cqrs.channels import DEFAULT_CHANNEL_ALIAS
from django_cqrs.conversion import (
    MessageTypes,
    is_opaque_protocol,
    is_plain_class,
    is_protocol,
    is_value_type,
    name_of_type,
    union_members,
)
from django_cqrs.declarations import (
    LOCAL,
    Declaration,
    Kind,
    Policies,
    declarations_of,
    handlers_of,
)
from django_cqrs.discovery import Discovery, Found
from django_cqrs.exceptions import (
    DuplicateHandler,
    InvalidHandler,
    NoHandlerFound,
    UnknownEndpoint,
)
from django_cqrs.keywords import OWN, Role
from django_cqrs.messages import message_name_of
from django_cqrs.parameters import (
    TAKES_PAYLOAD,
    ArgumentPlan,
    Services,
    on_object,
    on_service,
    place_of,
    plan_of,
)
from django_cqrs.policies import are_equal, problems_of, with_sound_values
from django_cqrs.problems import Problem, Rule
from django_cqrs.roles import Subject, role_of, subject_of

PATTERN_SIGNS: Final = frozenset("*?[")

ENTRANCES = {
    Kind.COMMAND: "command_bus.dispatch",
    Kind.QUERY: "query_bus.ask",
    Kind.EVENT: "event_bus.publish",
}


_NOTHING_SAID: Final = Policies()


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Endpoint:
    """A handler with its policies, under a stable name."""

    kind: Kind
    name: str
    app: str | None
    """The label of the app that it belongs to, None outside all apps."""
    function: Callable[..., Any]
    """What is called: plain, or bound to its class."""
    owner: type | None
    """The class whose method it is."""
    attribute: str | None
    """The name of that method in the class."""
    plan: ArgumentPlan
    keys: tuple[str, ...]
    """The routing keys, and for events the patterns, that lead here."""
    classes: tuple[type, ...]
    """The classes that lead here."""
    policies: Policies
    order: int
    """Its place in the order of registration."""
    problems: tuple[Problem, ...]
    subject: Subject | None = None
    """What finds and keeps the object that its method is called on."""
    is_factory: bool = False
    """Whether it makes such an object, and is not called on one."""
    action: Endpoint | None = None
    """What is called instead of this factory where the object is there already."""
    own: Policies = _NOTHING_SAID
    """What its own decorators say; `policies` has what its partner says as well."""
    partners: tuple[str, ...] = ()
    """The names of the factories and actions that share its messages."""
    is_alone_somewhere: bool = True
    """Whether a message leads here that leads to no factory."""

    @property
    def role(self) -> Role:
        """What it is to the objects of its class."""
        if self.subject is None:
            return Role.PLAIN
        if self.partners:
            is_saga = self.subject.has_an_end
            return Role.SAGA_PAIR if is_saga else Role.PAIR
        return Role.FACTORY if self.is_factory else Role.ACTION

    @property
    def method(self) -> str | None:
        """The name of a method that is called on an object; None for another one."""
        return None if self.is_factory or self.owner is None else self.attribute

    @property
    def priority(self) -> int:
        """The higher the earlier, among the handlers of one event."""
        return self.policies.priority or 0

    @property
    def channel(self) -> str | None:
        """The alias of the channel its messages wait in; None is called at once."""
        channel = self.policies.channel
        if channel is True:
            return DEFAULT_CHANNEL_ALIAS
        return None if channel is False else channel

    @property
    def alias(self) -> str | None:
        """The database that its declaration, or its objects, ask for now."""
        if self.policies.using is not None or self.subject is None:
            return self.policies.using
        return self.subject.write_alias()

    @property
    def is_atomic(self) -> bool:
        """Whether it runs in a transaction of its own."""
        may_be = self.kind is Kind.COMMAND or self.channel is not None
        return may_be and self.policies.atomic is not False

    @property
    def plans(self) -> tuple[ArgumentPlan, ...]:
        """Its own plan, and that of the action that may be called instead."""
        return (self.plan,) if self.action is None else (self.plan, self.action.plan)

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, those that it had, and those of the action beside it."""
        beside = () if self.action is None else self.action.names
        return (self.name, *self.policies.aliases, *beside)

    @property
    def place(self) -> str:
        """The dotted path of the handler."""
        return place_of(self.function)

    @property
    def source(self) -> tuple[Path, int]:
        """The file and the line where the handler begins."""
        code = inspect.unwrap(self.function).__code__
        return Path(code.co_filename), code.co_firstlineno

    def __repr__(self) -> str:
        """Return the kind and the name."""
        return f"<Endpoint {self.kind} {self.name}>"


# ---------------------------------------------------------- declarations to endpoints


def endpoints_of(found: Found, services: Services) -> Iterator[Endpoint]:
    """
    Yield the endpoints of a decorated function, or of a class's decorated methods.

    Raises:
        TypeError: nothing is decorated.

    """
    target = found.target
    if isinstance(target, type):
        methods = list(handlers_of(target))
        role = role_of(target)
        subject = None if role is None else role.subject_of(target, services)
        for name, method in methods:
            yield from _endpoints(
                found, name, method, target, services, subject=subject
            )
        if methods or subject is not None or message_name_of(target) is not None:
            return
    elif declarations_of(target):
        yield from _endpoints(found, None, target, None, services)
        return
    msg = (
        f"{target!r} is not decorated: nothing says which messages it handles. "
        f"Use @command_handler, @query_handler or @event_handler."
    )
    raise TypeError(msg)


def _endpoints(
    found: Found,
    attribute: str | None,
    handler: Any,
    owner: type | None,
    services: Services,
    *,
    subject: Subject | None = None,
) -> Iterator[Endpoint]:
    by_kind: defaultdict[Kind, list[Declaration]] = defaultdict(list)
    for declaration in declarations_of(handler):
        by_kind[declaration.kind].append(declaration)
    function, plan = _callable_and_plan(attribute, handler, owner, services, subject)
    is_static = isinstance(handler, (classmethod, staticmethod))
    for kind, declarations in by_kind.items():
        problems = list(plan.problems)
        policies = _only_policies(declarations, function, problems)
        _refuse_generators(kind, function, problems)
        keys = tuple(d.key for d in declarations if d.key is not None)
        classes: tuple[type, ...] = ()
        is_readable = plan.payload is not None or not plan.problems
        if len(keys) < len(declarations) and is_readable:
            classes = _routing_classes(plan, function, problems)
        if kind is not Kind.EVENT:
            _refuse_patterns(keys, kind, function, problems)
        endpoint = Endpoint(
            kind=kind,
            name=policies.name or _name_of(found, attribute, owner or handler),
            app=_label_of(found, owner or handler),
            function=function,
            owner=owner,
            attribute=attribute,
            plan=plan,
            keys=keys,
            classes=classes,
            policies=policies,
            own=policies,
            order=0,
            problems=tuple(problems),
            # A query of the class itself is about no object of it.
            subject=None if is_static and kind is Kind.QUERY else subject,
            is_factory=is_static,
        )
        yield endpoint


def _checked(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint with what is wrong with its policies and its class."""
    if endpoint.plan.problems:
        return endpoint
    problems = [*endpoint.problems, *problems_of(endpoint)]
    if endpoint.subject is not None:
        problems += endpoint.subject.problems_of(endpoint)
    return dataclasses.replace(endpoint, problems=tuple(problems))


def _callable_and_plan(
    attribute: str | None,
    handler: Any,
    owner: type | None,
    services: Services,
    subject: Subject | None,
) -> tuple[Callable[..., Any], ArgumentPlan]:
    if owner is None or attribute is None:
        return handler, plan_of(handler, services, payload=TAKES_PAYLOAD)
    inner = getattr(handler, "__func__", handler)
    plan = plan_of(
        inner,
        services,
        owner=owner,
        has_receiver=not isinstance(handler, staticmethod),
        payload=TAKES_PAYLOAD,
    )
    if inner is handler:  # an instance's method, whose first argument it is
        if subject is None:
            plan = on_service(plan, owner, services)
        else:
            plan = on_object(plan, subject_of)
    return getattr(owner, attribute), plan


def _only_policies(
    declarations: list[Declaration], function: Any, problems: list[Problem]
) -> Policies:
    given = [d.policies for d in declarations if d.policies.said()]
    if len(given) > 1:
        words = ", ".join(sorted({word for each in given for word in each.said()}))
        problems.append(
            Problem(
                Rule.SCATTERED_POLICIES,
                f"Several of the decorators on {place_of(function)} give policies "
                f"({words}).",
                "They make one endpoint: put all of its policies on one of them.",
                function,
            )
        )
    policies, faults = with_sound_values(given[0] if given else Policies(), function)
    problems += faults
    return policies


def _routing_classes(
    plan: ArgumentPlan, function: Any, problems: list[Problem]
) -> tuple[type, ...]:
    classes = []
    reason = None
    if plan.payload is None:
        reason = "it has no parameter for the payload"
    else:
        for member in plan.payload.members:
            if member is type(None):
                continue
            if member is inspect.Parameter.empty:
                reason = "its first parameter has no annotation"
            elif member is Any:
                classes.append(object)
            elif is_opaque_protocol(member):
                reason = f"{name_of_type(member)} is not @runtime_checkable"
            elif is_plain_class(member):
                classes.append(member)
            else:
                reason = f"{name_of_type(member)} is no class that an object can be of"
    if reason is not None:
        problems.append(
            Problem(
                Rule.NO_ROUTE,
                f"No message leads to {place_of(function)}: {reason}.",
                "Annotate the first parameter with a message class, "
                'or give a routing key: ("ticket.close").',
                function,
            )
        )
    return tuple(dict.fromkeys(classes))


def _refuse_generators(kind: Kind, function: Any, problems: list[Problem]) -> None:
    is_async = inspect.isasyncgenfunction(function)
    # An answer may be lazy: who asks reads it.
    is_lost = kind is not Kind.QUERY and inspect.isgeneratorfunction(function)
    if is_async or is_lost:
        problems.append(
            Problem(
                Rule.GENERATOR_HANDLER,
                f"{place_of(function)} is {'an async' if is_async else 'a'} generator, "
                f"so calling it runs nothing of it.",
                "Return a list, or take the yield away.",
                function,
            )
        )


def _refuse_patterns(
    keys: tuple[str, ...], kind: Kind, function: Any, problems: list[Problem]
) -> None:
    problems.extend(
        Problem(
            Rule.GLOB_KEY,
            f"{place_of(function)} takes a {kind} by the pattern {key!r}.",
            "Only events have patterns: give the whole key.",
            function,
        )
        for key in keys
        if PATTERN_SIGNS & set(key)
    )


def _label_of(found: Found, place: Any) -> str | None:
    if found.app_label is not None or not apps.ready:
        return found.app_label
    config = apps.get_containing_app_config(place.__module__)
    return config.label if config else None


def _name_of(found: Found, attribute: str | None, place: Any) -> str:
    qualified = place.__qualname__.rpartition(f"{LOCAL}.")[2]
    if attribute is not None:
        qualified = f"{qualified}.{attribute}"
    return f"{_label_of(found, place) or place.__module__}.{qualified}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Lost:
    """A declaration that the table cannot route by, and why."""

    function: Callable[..., Any]
    declaration: Declaration
    problem: Problem

    def wants(self, kind: Kind, cls: type, key: str | None) -> bool:
        """Tell whether it speaks of a message class, or of a key where one is given."""
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
    """Tell whether a parameter's annotation names a class, even one unevaluated."""
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


# --------------------------------------------------------------------------- pairs


def sharing(endpoints: Sequence[Endpoint], messages: Sequence[type]) -> list[Endpoint]:
    """
    Return endpoints, factories and actions with the keywords that they share.

    A factory and an action of one class that a message leads to are one handler for
    it: whichever of them has a keyword, it counts for both.

    Args:
        endpoints: of one registry.
        messages: the message classes that are known beside those of handlers.

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
        for name in endpoint.own.said():
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
    """Return what leads to an endpoint, of the classes and the keys that are known."""
    return frozenset(
        [
            *(cls for cls in known if _is_reached_by(endpoint, cls)),
            *(key for key in keys if _listens_to(endpoint, key)),
        ]
    )


def _is_reached_by(endpoint: Endpoint, cls: type) -> bool:
    """Tell whether objects of a class lead to an endpoint, others aside."""
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
    except TypeError:  # a Protocol with data: only an object can tell
        return False


def _unequal(name: str, one: Endpoint, other: Endpoint) -> Problem:
    return Problem(
        Rule.UNEQUAL_PAIR,
        f"{one.place} has {name}={getattr(one.own, name)!r} and {other.place} has "
        f"{name}={getattr(other.own, name)!r}: they are the factory and the action for "
        f"one message, and share their keywords.",
        f"Give {name}= on one of them, or the same on both.",
        other.function,
    )


# --------------------------------------------------------------------------- table


def _named_classes(discovery: Discovery) -> Iterator[type]:
    """Yield the message classes that modules or a registry name by themselves."""
    yield from discovery.messages
    for found in discovery.handlers:
        if isinstance(found.target, type) and message_name_of(found.target):
            yield found.target


class RouteTable:
    """All routes of one registry: built once, never changed."""

    def __init__(self, discovery: Discovery, services: Services) -> None:
        """Compile what was discovered. Mistakes become `problems`, not errors."""
        endpoints: list[Endpoint] = []
        for found in discovery.handlers:
            endpoints.extend(endpoints_of(found, services))
        shared = sharing(endpoints, list(_named_classes(discovery)))
        self.endpoints: Final = tuple(
            _checked(dataclasses.replace(endpoint, order=order))
            for order, endpoint in enumerate(shared)
        )
        self._discovery: Final = discovery
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
        for endpoint in self.endpoints:
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
        self._broken = self._find_broken()
        self._lost: Final = tuple(self._find_lost(discovery))
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
                    *self._find_dead_ends(),
                ]
            )
        )

    @property
    def late_problems(self) -> list[Problem]:
        """What was decorated after the routes were compiled."""
        return self._discovery.late()

    def _message_classes(self, discovery: Discovery) -> list[type]:
        members = [
            member
            for endpoint in self.endpoints
            if endpoint.plan.payload is not None
            for member in endpoint.plan.payload.members
            if is_plain_class(member)
            and member.__module__ != "builtins"
            and not is_protocol(member)
        ]
        said = [*_named_classes(discovery), *members]
        # What @dataclass(slots=True) copied, and earlier loads of a module, live on
        # as subclasses: the last one is meant.
        derived: dict[Any, type] = {
            _load_of(each): each for member in members for each in _subclasses(member)
        }
        return [*said, *derived.values()]

    # Mistakes between endpoints ---------------------------------------------------

    def _find_broken(self) -> dict[Endpoint, Problem]:
        broken = {e: e.problems[0] for e in self.endpoints if e.problems}
        names: defaultdict[str, list[Endpoint]] = defaultdict(list)
        for endpoint in self.endpoints:
            for name in {endpoint.name, *endpoint.policies.aliases}:
                names[name].append(endpoint)
        for name, holders in names.items():
            if len(holders) > 1:
                places = " and ".join(_where(each) for each in holders)
                problem = Problem(
                    Rule.DUPLICATE_NAME,
                    f"Two handlers have the endpoint name {name!r}: {places}.",
                    "Give one of them another with name=.",
                    holders[-1].function,
                )
                for holder in holders:
                    broken.setdefault(holder, problem)
        for problem, rivals in self._find_crowds():
            for rival in rivals:
                broken.setdefault(rival, problem)
        return broken

    def _find_lost(self, discovery: Discovery) -> Iterator[_Lost]:
        """Yield what no look-up can lead to, so that nobody misses it in silence."""
        for endpoint, problem in self._broken.items():
            for declaration in declarations_of(endpoint.function):
                by_class = declaration.kind is endpoint.kind and declaration.key is None
                if by_class and not endpoint.classes:
                    yield _Lost(endpoint.function, declaration, problem)
        for problem in discovery.problems:
            if problem.rule is Rule.UNREGISTERED_CLASS:
                for declaration in declarations_of(problem.obj):
                    yield _Lost(problem.obj, declaration, problem)

    def _find_crowds(self) -> Iterator[tuple[Problem, list[Endpoint]]]:
        """Yield the methods of one class of which a message means more than a pair."""
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
                        yield _crowd(kind, route, rivals), rivals

    def _find_duplicates(self) -> Iterator[Problem]:
        for kind in (Kind.COMMAND, Kind.QUERY):
            for cls, found in self._by_class[kind].items():
                endpoints = self.paired(self._with_own_name(kind, cls, found))
                if len(endpoints) > 1:
                    yield _duplicate(kind, name_of_type(cls), endpoints)
            for key, found in self._by_key[kind].items():
                endpoints = self.paired(found)
                if len(endpoints) > 1:
                    yield _duplicate(kind, repr(key), endpoints)

    def _find_ambiguities(self) -> Iterator[Problem]:
        for kind in (Kind.COMMAND, Kind.QUERY):
            routes = self._by_class[kind]
            seen = set()
            for cls in list(routes):
                for each in _subclasses(cls) if cls is not object else ():
                    if each not in seen:
                        seen.add(each)
                        rivals = _nearest(each, routes)[1]
                        if rivals:
                            nearest = _nearest(each, routes)[0]
                            yield _ambiguous(kind, each, (nearest, *rivals), routes)

    def _find_nameless(self) -> Iterator[Problem]:
        """Yield the classes that handlers on channels take and no channel can store."""
        named = set(self.types)
        for endpoint in self.endpoints:
            if endpoint.channel is None or endpoint.kind is Kind.QUERY:
                continue
            for cls in _takes(endpoint):
                if not _is_stored_by_name(cls) or named.intersection(_subclasses(cls)):
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

    def _find_dead_ends(self) -> Iterator[Problem]:
        """Yield the handlers whose results are to go where nobody takes them."""
        for endpoint in self.endpoints:
            for output in endpoint.own.outputs:
                keys = self._by_key[Kind.COMMAND]
                if keys.get(output) or self.types.named(output) is not None:
                    continue
                near = difflib.get_close_matches(output, keys, n=1)
                meant = (
                    f"Did you mean {near[0]!r}?" if near else "Write one, or mend it."
                )
                yield Problem(
                    Rule.UNKNOWN_OUTPUT,
                    f"{endpoint.place} has output={output!r}, and no command handler "
                    f"has this routing key.",
                    meant,
                    endpoint.function,
                )

    # Look-ups ----------------------------------------------------------------------

    def ensure_sound(self, endpoint: Endpoint) -> Endpoint:
        """
        Return the endpoint.

        Raises:
            InvalidHandler: it is broken, with the text of its check.

        """
        for each in self._parts.get(endpoint, (endpoint,)):
            if each in self._broken:
                raise InvalidHandler(str(self._broken[each]))
        return endpoint

    def endpoint_named(self, name: str) -> Endpoint:
        """
        Return the endpoint of a name, an old one included.

        Raises:
            UnknownEndpoint: no handler has it.
            InvalidHandler: its declaration is broken.

        """
        endpoint = self._by_name.get(name)
        if endpoint is None:
            msg = (
                f"No handler has the endpoint name {name!r}. Where it was renamed, "
                f"give the old name in aliases=[...] of its decorator."
            )
            raise UnknownEndpoint(msg)
        return self.ensure_sound(endpoint)

    def problem_of(self, endpoint: Endpoint) -> Problem | None:
        """Return what its route raises, None where it works."""
        if endpoint in self._broken:
            return self._broken[endpoint]
        for problem in self.problems:
            if problem.rule.is_error and problem.obj is endpoint.function:
                return problem
        return None

    def handler_of(self, kind: Kind, payload: Any) -> Endpoint:
        """
        Return the one endpoint that takes an object.

        Raises:
            NoHandlerFound: there is none.
            DuplicateHandler: there are several, none nearer than the others.
            InvalidHandler: its declaration is broken.

        """
        __traceback_hide__ = True
        cls = type(payload)
        routes = self._by_class[kind]
        nearest, rivals = _nearest(cls, routes)
        exact = routes[cls] if nearest is cls else []
        found = self._with_own_name(kind, cls, exact)
        if not found and rivals:
            bases = (nearest, *rivals)
            raise DuplicateHandler(str(_ambiguous(kind, cls, bases, routes)))
        if not found and nearest is not None:
            found = routes[nearest]
        if not found:
            found = self._by_nature(kind, payload)
        if not found:
            self._refuse_lost(kind, cls=cls)
            raise NoHandlerFound(self._no_handler(kind, cls=cls))
        found = self.paired(found)
        if len(found) > 1:
            raise DuplicateHandler(str(_duplicate(kind, name_of_type(cls), found)))
        return self.ensure_sound(found[0])

    def handler_of_key(self, kind: Kind, key: str) -> Endpoint | None:
        """
        Return the one endpoint of a routing key, or None where a message class has it.

        Raises:
            NoHandlerFound: nothing has this key.
            DuplicateHandler: several endpoints have it.
            InvalidHandler: its declaration is broken.

        """
        found = self.paired(self._by_key[kind].get(key, ()))
        if len(found) > 1:
            raise DuplicateHandler(str(_duplicate(kind, repr(key), found)))
        if found:
            return self.ensure_sound(found[0])
        if self.named_class(key) is None:
            self._refuse_lost(kind, key=key)
            raise NoHandlerFound(self._no_handler(kind, key=key))
        return None

    def named_class(self, key: str) -> type | None:
        """
        Return the message class that ``@message`` gave this name.

        Raises:
            InvalidHandler: two classes have it.

        """
        if key in self.types.clashes:
            raise InvalidHandler(str(self.types.clashes[key]))
        return self.types.named(key)

    def subscribers_of(
        self, payload: Any, sent_by: str | None = None
    ) -> tuple[Endpoint, ...]:
        """
        Return the endpoints that an event reaches, in the order they are called.

        Args:
            payload: the event.
            sent_by: a name it was published by, beside its class's own.

        Raises:
            InvalidHandler: the declaration of one of them is broken.

        """
        __traceback_hide__ = True
        cls = type(payload)
        self._refuse_lost(Kind.EVENT, cls=cls)
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

    def subscribers_of_key(self, key: str) -> tuple[Endpoint, ...]:
        """
        Return the endpoints that listen to a name itself, in order.

        Raises:
            InvalidHandler: the declaration of one of them is broken.

        """
        return self._in_order(self._listening_to(key))

    def _listening_to(self, key: str) -> list[Endpoint]:
        self.named_class(key)  # raises where two classes have it
        self._refuse_lost(Kind.EVENT, key=key)
        return [
            *self._by_key[Kind.EVENT].get(key, ()),
            *(e for pattern, e in self._by_pattern if fnmatchcase(key, pattern)),
        ]

    def _in_order(self, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        once = self.paired(self.ensure_sound(endpoint) for endpoint in endpoints)
        return tuple(sorted(once, key=turn_of))

    def paired(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """Return endpoints, the factory and the action of one class made one."""
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
        Return two that share a message of which nobody could know before.

        Raises:
            InvalidHandler: their keywords are not equal.

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
        Return what a message was stored for: the pair, where it was for one of a pair.

        Args:
            endpoint: whose name the message has, the factory or the action.
            payload: of the message.

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
        """Return these and those that its own ``@message`` name leads to."""
        name = message_name_of(cls)
        if name is None:
            return endpoints
        return list(dict.fromkeys([*endpoints, *self._by_key[kind].get(name.name, ())]))

    def _by_nature(self, kind: Kind, payload: Any) -> list[Endpoint]:
        """Return the endpoints by what an object is without deriving from it."""
        routes = self._by_class[kind]
        found = [
            endpoint
            for cls, endpoints in routes.items()
            if cls is not object and isinstance(payload, cls)
            for endpoint in endpoints
        ]
        return list(dict.fromkeys(found)) or routes.get(object, [])

    # What to say where nothing was found -------------------------------------------

    def _refuse_lost(
        self, kind: Kind, *, cls: type = object, key: str | None = None
    ) -> None:
        """Raise where a declaration that leads nowhere seems to want the message."""
        for lost in self._lost:
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
                return f"{text} It is {article} {other}: use {ENTRANCES[other]}()."
        if cls is None:
            for other in Kind:
                if any(name_of_type(each) == key for each in self._by_class[other]):
                    return (
                        f"{text} {key} is the name of a class, not a routing key: an "
                        f"object of it leads to its handler by itself. Send one with "
                        f"{ENTRANCES[other]}({key}(...)), without route=."
                    )
        keys = [
            key
            for key, endpoints in self._by_key[kind].items()
            for endpoint in endpoints
            if cls in _takes(endpoint)
        ]
        if keys:
            hint = " or ".join(f"route={each!r}" for each in keys)
            return f"{text} Its handler is reached by key only: give {hint}."
        for problem in (*self._strays, *self.late_problems):
            for declaration in declarations_of(problem.obj):
                lost = _Lost(problem.obj, declaration, problem)
                if lost.wants(kind, cls or object, None if cls else key):
                    return f"{text} {problem}"
        if cls is not None and cls.__module__ == "builtins":
            return f"{text} Say with route= which handler it is for."
        near = self._near(kind, cls, key)
        if near:
            return f"{text} Did you mean {near}?"
        if not apps.is_installed("django_cqrs"):
            return f"{text} 'django_cqrs' is not in INSTALLED_APPS."
        return (
            f"{text} Is it decorated, and in the handlers module of an installed app?"
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


def turn_of(endpoint: Endpoint) -> tuple[int, bool, int]:
    """Return what the handlers of one event are sorted by."""
    return -endpoint.priority, endpoint.subject is None, endpoint.order


def _meet(payload: Any, one: Endpoint, other: Endpoint) -> bool:
    """Tell whether an object that leads to the one endpoint leads to the other."""
    cls = type(payload)
    if _is_reached_by(one, cls) and _is_reached_by(other, cls):
        return True
    routed, also = set(one.classes), set(other.classes)
    if one.kind is not Kind.EVENT:
        # The nearest class decides, or else what the object is by nature.
        natures = {each for each in routed | also if is_protocol(each)}
        routed, also = routed & (also | natures), also & (routed | natures)
    return all(
        any(isinstance(payload, each) for each in some) for some in (routed, also)
    )


# ------------------------------------------------------------------ nearest of classes


def _nearest(
    cls: type, routes: dict[type, list[Endpoint]]
) -> tuple[type | None, tuple[type, ...]]:
    """
    Return the first class of the MRO that has a route, and its rivals.

    A rival is no ancestor of it and stands no further from `cls`, counted in steps
    of inheritance: two bases of one class, say. ``object`` and Protocols come last
    and are not looked at here.
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


def _load_of(cls: type) -> tuple[Any, ...]:
    """Return what two classes have in common that are one class of the source."""
    return cls.__module__, cls.__qualname__, message_name_of(cls)


def _heirs(cls: type) -> Iterator[type]:
    """Yield the subclasses of a message class; of a Protocol, nobody knows them."""
    return iter(()) if is_protocol(cls) else _subclasses(cls)


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(cls)  # a metaclass may take no cls
    for each in subclasses:
        yield each
        yield from _subclasses(each)


# --------------------------------------------------------------------------- words


def _where(endpoint: Endpoint) -> str:
    path, line = endpoint.source
    owner, heir = endpoint.owner, ""
    if owner is not None and _definer_of(endpoint) is not owner:
        heir = f" of {name_of_type(owner)}"
    return f"{endpoint.place}{heir} ({path}:{line})"


def _definer_of(endpoint: Endpoint) -> type | None:
    """Return the class that holds the function of a method, which its heirs have."""
    name = endpoint.function.__name__
    bases = endpoint.owner.__mro__ if endpoint.owner is not None else ()
    return next((base for base in bases if name in vars(base)), endpoint.owner)


def _duplicate(kind: Kind, wanted: str, endpoints: Iterable[Endpoint]) -> Problem:
    endpoints = list(endpoints)
    places = " and ".join(_where(endpoint) for endpoint in endpoints)
    hint = f"Keep one: a {kind} has exactly one handler, an event any number."
    if len({endpoint.source for endpoint in endpoints}) < len(endpoints):
        hint += (
            " A class has the handlers of its bases: mark one of these classes alone, "
            "or write the method again, undecorated, in the others."
        )
    return Problem(
        Rule.DUPLICATE_HANDLER,
        f"{wanted} has more than one {kind} handler: {places}.",
        hint,
        endpoints[-1].function,
    )


_PAIR = 2


def _crowd(kind: Kind, route: Any, rivals: list[Endpoint]) -> Problem:
    wanted = repr(route) if isinstance(route, str) else name_of_type(route)
    places = " and ".join(_where(endpoint) for endpoint in rivals)
    return Problem(
        Rule.CROWDED_FACTORY,
        f"{wanted} leads to more than one factory and one action of "
        f"{name_of_type(rivals[0].owner)}: {places}.",
        f"Keep one of each: the factory runs where the object of the {kind} is not "
        f"there, the action where it is.",
        rivals[-1].function,
    )


def _ambiguous(
    kind: Kind,
    cls: type,
    bases: tuple[type | None, ...],
    routes: dict[type, list[Endpoint]],
) -> Problem:
    endpoints = [routes[base][0] for base in bases if base is not None]
    places = " and ".join(_where(endpoint) for endpoint in endpoints)
    return Problem(
        Rule.AMBIGUOUS_HANDLER,
        f"Two {kind} handlers are equally near to {name_of_type(cls)}: {places}.",
        f"Write a handler for {name_of_type(cls)} itself.",
        endpoints[-1].function,
    )


def _takes(endpoint: Endpoint) -> tuple[Any, ...]:
    return endpoint.plan.payload.members if endpoint.plan.payload else ()


def _is_stored_by_name(cls: Any) -> bool:
    """Tell whether a payload's type is a class of objects, not a value or a base."""
    return (
        is_plain_class(cls)
        and cls not in (object, Any, inspect.Parameter.empty)
        and not is_value_type(cls)
        and not is_protocol(cls)
        and not inspect.isabstract(cls)
    )
