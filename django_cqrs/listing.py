"""What handles what, as rows to be shown and as an explanation of one message."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS

from django_cqrs.buses import Registry
from django_cqrs.conversion import is_protocol, name_of_type
from django_cqrs.declarations import Kind
from django_cqrs.messages import message_name_of
from django_cqrs.modelling.interfaces import (
    Method,
    implement,
    interfaces_of,
    methods_of,
)
from django_cqrs.problems import Rule
from django_cqrs.roles import Subject
from django_cqrs.routing import Endpoint, RouteTable

SENDERS = "sender's"
NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One route: what leads to one endpoint."""

    kind: str
    message: str
    """The class's name or the routing key, as a reader would write it."""
    message_class: str | None
    """The dotted path of the class; None for a key."""
    by: str
    """``class``, ``key`` or ``pattern``."""
    handler: str
    """The dotted path of the function."""
    module: str
    endpoint: str
    app: str | None
    """The label of the app that the handler belongs to."""
    file: str
    line: int
    channel: str | None
    """The alias of the channel it waits in; None is called at once."""
    transaction: str
    """A database alias, ``none``, or ``sender's`` for a handler of events."""
    priority: int
    interceptors: tuple[str, ...]
    """What stands around the handler, outermost first: ``around billing.audit``."""
    object: str | None
    """The dotted path of the aggregate or saga whose method it is, if it is one's."""
    is_factory: bool
    """Whether it makes such an object, and is not called on one."""
    output: str | None
    """The routing key of the command that its result is sent to; several by commas."""
    problem: str | None
    """The id of the check that fails, None where the route works."""

    @property
    def short_handler(self) -> str:
        """The function's name without its module."""
        return self.handler.removeprefix(f"{self.module}.")

    @property
    def where(self) -> str:
        """The file and the line, as editors and terminals open them."""
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One method of a business interface, and where it leads."""

    method: str
    """The dotted path of the method."""
    kind: str
    """``command``, ``query``, ``event``, ``sql``, or ``?`` where it leads nowhere."""
    message: str
    """The class's name or the routing key; of SQL the database alias."""
    handlers: tuple[str, ...]
    """The dotted paths of the handlers."""
    app: str | None
    """The label of the app that holds the interface."""
    problem: str | None
    """The id of the check that fails, None where the method works."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which rows are wanted; None is all."""

    app: str | None = None
    bus: str | None = None
    message: str | None = None

    def keeps(self, each: Row | Face) -> bool:
        """Tell whether a row, or a method of a business interface, is wanted."""
        return (
            (self.app is None or each.app == self.app)
            and (self.bus is None or each.kind == self.bus)
            and (self.message is None or fnmatchcase(each.message, self.message))
        )


def rows_of(registry: Registry) -> list[Row]:
    """Return every route, commands first, then queries, then events in order."""
    table = registry.routes
    rows = [row for endpoint in table.endpoints for row in _rows(registry, endpoint)]
    kinds = list(Kind)

    def order(row: Row) -> tuple[int, str, int]:
        return kinds.index(Kind(row.kind)), row.message.lower(), -row.priority

    return sorted(rows, key=order)


def faces_of(registry: Registry) -> list[Face]:
    """Return the methods of all business interfaces, each with where it leads."""
    faces = [
        _face(method, registry.routes)
        for cls in interfaces_of(registry)
        for method in methods_of(implement(cls, registry=registry))
    ]
    return sorted(faces, key=lambda face: face.method.rpartition(".")[0])


def _face(method: Method, table: RouteTable) -> Face:
    problem = next(method.problems(table), None)
    kind, message = "?", "?"
    handlers: tuple[str, ...] = ()
    if method.statement is not None:
        kind, message = "sql", method.statement.using or DEFAULT_DB_ALIAS
    elif problem is None or problem.rule is not Rule.UNREADABLE_SIGNATURE:
        route = method.route(table)
        if route is not None:
            kind, message = str(route.kind), route.key or route.said
            handlers = tuple(endpoint.place for endpoint in route.endpoints)
    config = apps.get_containing_app_config(method.owner.__module__)
    return Face(
        method=method.place,
        kind=kind,
        message=message,
        handlers=handlers,
        app=config.label if config else None,
        problem=problem.rule.id if problem else None,
    )


def _rows(registry: Registry, endpoint: Endpoint) -> Iterator[Row]:
    problem = registry.routes.problem_of(endpoint)
    file, line = place(endpoint)
    routes: list[tuple[str, str | None, str]] = [
        (name_of_type(cls), _dotted(cls), "class") for cls in endpoint.classes
    ]
    for key in endpoint.keys:
        is_pattern = endpoint.kind is Kind.EVENT and any(sign in key for sign in "*?[")
        routes.append((key, None, "pattern" if is_pattern else "key"))
    for message, message_class, by in routes or [("?", None, "class")]:
        yield Row(
            kind=str(endpoint.kind),
            message=message,
            message_class=message_class,
            by=by,
            handler=endpoint.place,
            module=endpoint.function.__module__,
            endpoint=endpoint.name,
            app=endpoint.app,
            file=file,
            line=line,
            channel=endpoint.channel,
            transaction=transaction_of(endpoint),
            interceptors=tuple(interceptors_around(registry, endpoint)),
            priority=endpoint.priority,
            object=_dotted(endpoint.subject.owner) if endpoint.subject else None,
            is_factory=endpoint.subject is not None and endpoint.is_factory,
            output=", ".join(endpoint.policies.outputs) or None,
            problem=problem.rule.id if problem else None,
        )


def interceptors_around(registry: Registry, endpoint: Endpoint) -> Iterator[str]:
    """Yield the kind and the path of what stands around a handler, outermost first."""
    for each in registry.interceptors_around(endpoint):
        yield f"{each.interception.when} {each.name}"


def transaction_of(endpoint: Endpoint) -> str:
    """Return in which transaction an endpoint runs, in a word."""
    if endpoint.kind is Kind.EVENT and endpoint.channel is None:
        return SENDERS
    if not endpoint.is_atomic:
        return NONE
    return endpoint.alias or DEFAULT_DB_ALIAS


def place(endpoint: Endpoint) -> tuple[str, int]:
    """Return the file, from the current folder where it is inside, and the line."""
    path, line = endpoint.source
    try:
        return str(path.relative_to(Path.cwd())), line
    except ValueError:
        return os.fspath(path), line


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# ---------------------------------------------------------------- one message explained


def explain(registry: Registry, wanted: str) -> list[str] | None:
    """
    Return who handles one message, in which order, in which transaction, and why.

    Args:
        registry: whose routes.
        wanted: a class's name, plain or dotted, a routing key or an event's name.

    Returns:
        Lines of text, or None where nothing has this name.

    """
    table = registry.routes
    classes = [cls for cls in _known_classes(table) if _is_called(cls, wanted)]
    lines: list[str] = []
    for cls in classes:
        lines += [*_explain_class(registry, cls), ""]
    named = [cls for cls in classes if _name(cls) == wanted]
    if not named:
        for kind in Kind:
            found = _by_key(table, kind, wanted)
            # A pattern matches any word: that alone makes none an event's name.
            meant = any(wanted in endpoint.keys for endpoint, _ in found)
            if found and (meant or not lines):
                lines += [*_explain_found(registry, kind, repr(wanted), found), ""]
    if not lines:
        return None
    alike = list(_look_alikes(table, wanted, classes))
    if alike:
        lines += ["Not meant, though it looks alike:", *alike, ""]
    return lines[:-1]


def names_of(table: RouteTable) -> list[str]:
    """Return every name that :func:`explain` knows."""
    names = {name_of_type(cls) for cls in _known_classes(table)}
    names |= {key for endpoint in table.endpoints for key in endpoint.keys}
    names |= {name for cls in _known_classes(table) if (name := _name(cls))}
    return sorted(names)


def _known_classes(table: RouteTable) -> list[type]:
    classes = [cls for e in table.endpoints for cls in e.classes if cls is not object]
    return list(dict.fromkeys([*classes, *table.types]))


def _is_called(cls: type, wanted: str) -> bool:
    return wanted in (name_of_type(cls), cls.__name__, _dotted(cls), _name(cls))


def _name(cls: type) -> str | None:
    name = message_name_of(cls)
    return name.name if name else None


def _by_key(table: RouteTable, kind: Kind, key: str) -> list[tuple[Endpoint, str]]:
    found = []
    for endpoint in table.endpoints:
        for own in endpoint.keys if endpoint.kind is kind else ():
            if own == key:
                found.append((endpoint, f"it listens to the key {key!r}"))
            elif kind is Kind.EVENT and fnmatchcase(key, own):
                found.append((endpoint, f"its pattern {own!r} matches {key!r}"))
    return _ordered(found)


def _ordered(found: list[tuple[Endpoint, str]]) -> list[tuple[Endpoint, str]]:
    once: dict[Endpoint, str] = {}
    for endpoint, reason in found:
        once[endpoint] = (
            f"{once[endpoint]}, and {reason}" if endpoint in once else reason
        )
    return sorted(once.items(), key=lambda pair: (-pair[0].priority, pair[0].order))


def _explain_class(registry: Registry, cls: type) -> Iterator[str]:
    name = _name(cls)
    title = f"{name_of_type(cls)} ({_dotted(cls)}"
    title += f", named {name!r})" if name else ")"
    found_any = False
    for kind in Kind:
        found = _takers(registry.routes, kind, cls)
        if kind is not Kind.EVENT and found:
            found = _only_the_nearest(cls, found)
        if found:
            found_any = True
            yield from _explain_found(registry, kind, title, found)
    if not found_any:
        yield f"{title} has no handler."


def _takers(table: RouteTable, kind: Kind, cls: type) -> list[tuple[Endpoint, str]]:
    found = []
    for endpoint in table.endpoints:
        if endpoint.kind is not kind:
            continue
        for routed in endpoint.classes:
            reason = _why(cls, routed)
            if reason:
                found.append((endpoint, reason))
                break
    name = _name(cls)
    if name is not None:
        found += _by_key(table, kind, name)
    return _ordered(found)


def _why(cls: type, routed: type) -> str | None:
    if routed is cls:
        return f"it takes {name_of_type(cls)}"
    if routed is object:
        return "it takes every object"
    if is_protocol(routed) and routed not in cls.__mro__:
        try:
            fits = issubclass(cls, routed)
        except TypeError:  # a Protocol with data: only an object can tell
            return f"it takes what satisfies {name_of_type(routed)}, if an object does"
        return f"it takes what satisfies {name_of_type(routed)}" if fits else None
    if issubclass(cls, routed):
        return f"it takes {name_of_type(routed)}, of which this is a subclass"
    return None


def _only_the_nearest(
    cls: type, found: list[tuple[Endpoint, str]]
) -> list[tuple[Endpoint, str]]:
    """Keep the handler that a command or query goes to: the first in the MRO."""

    def distance(pair: tuple[Endpoint, str]) -> int:
        mro = cls.__mro__
        name = _name(cls)
        if name is not None and name in pair[0].keys:
            return 0
        places = [
            mro.index(routed)
            if routed in mro and routed is not object and not is_protocol(routed)
            else len(mro) + (routed is object)
            for routed in pair[0].classes
        ]
        return min(places, default=len(mro))

    nearest = min(distance(pair) for pair in found)
    return [pair for pair in found if distance(pair) == nearest]


def _explain_found(
    registry: Registry, kind: Kind, title: str, found: list[tuple[Endpoint, str]]
) -> Iterator[str]:
    if kind is Kind.EVENT:
        yield f"{title} is an event. Its handlers, in order:"
    elif len(found) > 1 and len(registry.routes.paired(e for e, _ in found)) == 1:
        yield f"{title} is a {kind}. Its handlers are a factory and an action:"
    elif len(found) > 1:
        yield f"{title} is a {kind} with {len(found)} handlers, one too many:"
    else:
        yield f"{title} is a {kind}. Its handler is:"
    for number, (endpoint, reason) in enumerate(found, 1):
        file, line = place(endpoint)
        priority = f", priority {endpoint.priority}" if endpoint.priority else ""
        yield f"  {number}. {endpoint.place} ({file}:{line}){priority}"
        yield f"     because {reason};"
        if endpoint.subject is not None:
            yield f"     {_on_object(endpoint, endpoint.subject, found)};"
        yield f"     {_transaction_in_words(endpoint)}."
        for interceptor in interceptors_around(registry, endpoint):
            yield f"     through {interceptor}"
        problem = registry.routes.problem_of(endpoint)
        if problem is not None:
            yield f"     BROKEN: {problem}"


def _on_object(
    endpoint: Endpoint, subject: Subject, found: list[tuple[Endpoint, str]]
) -> str:
    """Say what a method of an aggregate is called on."""
    owner = name_of_type(subject.owner)
    others = [e for e, _ in found if e.owner is endpoint.owner and e is not endpoint]
    if not endpoint.is_factory:
        return f"it is called on the {owner} that the message names"
    if any(not each.is_factory for each in others):
        return f"it makes a {owner}, where the message names none that is there"
    return f"it makes a {owner}"


def _transaction_in_words(endpoint: Endpoint) -> str:
    if endpoint.channel is not None:
        when = f"later, out of the channel {endpoint.channel!r}"
    elif endpoint.kind is Kind.EVENT:
        return "at once, in the transaction of whoever publishes, if there is one"
    else:
        when = "at once"
    if not endpoint.is_atomic:
        return f"{when}, in no transaction of its own"
    return f"{when}, in a transaction on the database {transaction_of(endpoint)!r}"


def _look_alikes(table: RouteTable, wanted: str, meant: list[type]) -> Iterator[str]:
    """Yield the handlers that a reader may have expected, and why they are not it."""
    short = wanted.rpartition(".")[2]
    names = {name_of_type(cls) for cls in meant} | {wanted, short}
    for endpoint in table.endpoints:
        for cls in endpoint.classes:
            name = name_of_type(cls)
            if cls in meant or cls is object or any(_why(m, cls) for m in meant):
                continue
            if name in names or difflib.get_close_matches(name, names, 1, 0.8):
                yield f"  {endpoint.place} takes {_dotted(cls)}, another class."
        if endpoint.plan.payload is None or endpoint.classes:
            continue
        for cls in meant:
            if cls in endpoint.plan.payload.members and not (
                _name(cls) and _by_key_matches(endpoint, _name(cls))
            ):
                keys = ", ".join(repr(key) for key in endpoint.keys)
                yield (
                    f"  {endpoint.place} takes {name_of_type(cls)} as well, "
                    f"but is reached by {keys} only."
                )


def _by_key_matches(endpoint: Endpoint, name: str | None) -> bool:
    return name is not None and any(fnmatchcase(name, key) for key in endpoint.keys)


def labels() -> list[str]:
    """Return the labels of the installed apps."""
    return sorted(config.label for config in apps.get_app_configs())


def as_dict(row: Row | Face) -> dict[str, Any]:
    """Return a row as the object of the JSON listing."""
    return dataclasses.asdict(row)
