"""Explain one message: its handlers, and why no other handler takes it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase

from django_cqrs.annotations import is_protocol, name_of_type, path_of
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import Kind
from django_cqrs.management.listing import (
    TENANTS,
    RetryRow,
    address_text,
    delay_of,
    interceptors_around,
    place,
    projection_options,
    retry_row,
    runs_of,
    source_text,
    transaction_of,
)
from django_cqrs.messages import message_name_of
from django_cqrs.routing.endpoint import Endpoint, Subject
from django_cqrs.routing.table import RouteTable


def explain(registry: Registry, wanted: str) -> list[str] | None:
    """
    Return the handlers of one message, their order and transactions, and the reasons.

    Args:
        registry: the registry with the routes.
        wanted: a class's name, plain or dotted, a routing key or an event's name.

    Returns:
        Lines of text, or None if no message has this name.

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
            # A pattern matches any word, so a match does not make the word an event's
            # name.
            meant = any(wanted in endpoint.keys for endpoint, _ in found)
            if found and (meant or not lines):
                lines += [*_explain_found(registry, kind, repr(wanted), found), ""]
    if not lines:
        return None
    alike = list(_look_alikes(table, wanted, classes))
    if alike:
        lines += ["Similar, but not matched:", *alike, ""]
    return lines[:-1]


def names_of(table: RouteTable) -> list[str]:
    """Return every name that :func:`explain` accepts."""
    names = {name_of_type(cls) for cls in _known_classes(table)}
    names |= {key for endpoint in table.endpoints for key in endpoint.keys}
    names |= {name for cls in _known_classes(table) if (name := _name(cls))}
    return sorted(names)


def _known_classes(table: RouteTable) -> list[type]:
    classes = [cls for e in table.endpoints for cls in e.classes if cls is not object]
    return list(dict.fromkeys([*classes, *table.types]))


def _is_called(cls: type, wanted: str) -> bool:
    return wanted in (name_of_type(cls), cls.__name__, path_of(cls), _name(cls))


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
    title = f"{name_of_type(cls)} ({path_of(cls)}"
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
        return "it takes any object"
    if is_protocol(routed) and routed not in cls.__mro__:
        try:
            fits = issubclass(cls, routed)
        except TypeError:  # a Protocol with data: only an object can be tested
            return (
                f"it takes instances that satisfy {name_of_type(routed)}, depending "
                "on the object"
            )
        return (
            f"it takes instances that satisfy {name_of_type(routed)}" if fits else None
        )
    if issubclass(cls, routed):
        return f"it takes {name_of_type(routed)}, a base class of this one"
    return None


def _only_the_nearest(
    cls: type, found: list[tuple[Endpoint, str]]
) -> list[tuple[Endpoint, str]]:
    """Keep the handler of a command or query: the first in the MRO."""

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
        yield f"{title} is a {kind} with {len(found)} handlers, which is too many:"
    else:
        yield f"{title} is a {kind}. Its handler is:"
    for number, (endpoint, reason) in enumerate(found, 1):
        file, line = place(endpoint)
        priority = f", priority {endpoint.priority}" if endpoint.priority else ""
        yield f"  {number}. {endpoint.place} ({file}:{line}){priority}"
        yield f"     because {reason};"
        if endpoint.subject is not None:
            yield f"     {_on_object(endpoint, endpoint.subject, found)};"
        if endpoint.is_fed:
            yield f"     {_projection_in_words(endpoint)}."
        else:
            yield f"     {_transaction_in_words(endpoint)}."
        for policy in _policies_in_words(endpoint):
            yield f"     {policy}"
        for interceptor in interceptors_around(registry, endpoint):
            yield f"     through {interceptor}"
        problem = registry.routes.problem_of(endpoint)
        if problem is not None:
            yield f"     BROKEN: {problem}"


def _on_object(
    endpoint: Endpoint, subject: Subject, found: list[tuple[Endpoint, str]]
) -> str:
    """Describe the object that a method of an aggregate is called on."""
    owner = name_of_type(subject.owner)
    others = [e for e, _ in found if e.owner is endpoint.owner and e is not endpoint]
    if not endpoint.is_factory:
        return f"it is called on the {owner} identified by the message"
    if any(not each.is_factory for each in others):
        return (
            f"it makes the {owner} if the one identified by the message does not exist"
        )
    return f"it makes a new object of {owner}"


def _projection_in_words(endpoint: Endpoint) -> str:
    """Describe when a projection handles an event that was appended to the store."""
    options = projection_options(endpoint)
    when = {
        "inline": "in the transaction that appends it",
        "following": f"later, by the worker of the channel {options.channel!r}",
        "on demand": "when the projection is run",
    }[runs_of(endpoint)]
    return f"for the projection {options.name!r}, {when}"


def _transaction_in_words(endpoint: Endpoint) -> str:
    if endpoint.channel is not None:
        when = f"later, from the channel {endpoint.channel!r}"
    elif endpoint.kind is Kind.EVENT:
        return "immediately, in the publisher's transaction if there is one"
    else:
        when = "immediately"
    if not endpoint.is_atomic:
        return f"{when}, without a transaction of its own"
    alias = transaction_of(endpoint)
    if alias == TENANTS:
        return f"{when}, in a transaction on the database of the tenant"
    return f"{when}, in a transaction on the database {alias!r}"


def _policies_in_words(endpoint: Endpoint) -> Iterator[str]:
    """Yield the delay, the keys and the policy for failures."""
    delay = delay_of(endpoint)
    if isinstance(delay, str):
        yield f"after the delay that {delay} returns"
    elif delay:
        yield f"after a delay of {delay:g} s"
    ordering_key = source_text(endpoint.policies.ordering_key)
    if ordering_key is not None:
        yield f"one at a time in the order of {ordering_key}"
    idempotency_key = source_text(endpoint.policies.idempotency_key)
    if idempotency_key is not None:
        yield f"once per {idempotency_key}"
    retry = retry_row(endpoint)
    if retry is not None:
        yield _retry_in_words(retry)
    on_dead = address_text(endpoint.policies.on_dead)
    if on_dead is not None:
        yield f"if it is given up, {on_dead} is told"


_SOURCES = {
    "handler": "its own retry=",
    "channel": "the channel's OPTIONS",
    "project": "DJANGO_CQRS['RETRY']",
    "default": "the default",
}


def _retry_in_words(retry: RetryRow) -> str:
    times = f"at most {retry.attempts} attempts"
    if retry.attempts == 1:
        times = "one attempt"
    elif retry.factor == 1 or retry.attempts == 2:  # noqa: PLR2004 - one delay
        times += f", {retry.delay:g} s between them"
    else:
        times += (
            f", the first two {retry.delay:g} s apart, each next delay "
            f"{retry.factor:g} times as long, up to {retry.cap:g} s"
        )
    return (
        f"if it fails: {times}, on {', '.join(retry.on)}; then {retry.final_failure} "
        f"(by {_SOURCES[retry.source]})"
    )


def _look_alikes(table: RouteTable, wanted: str, meant: list[type]) -> Iterator[str]:
    """Yield the handlers that a reader may have expected, and why they do not fit."""
    short = wanted.rpartition(".")[2]
    names = {name_of_type(cls) for cls in meant} | {wanted, short}
    for endpoint in table.endpoints:
        for cls in endpoint.classes:
            name = name_of_type(cls)
            if cls in meant or cls is object or any(_why(m, cls) for m in meant):
                continue
            if name in names or difflib.get_close_matches(name, names, 1, 0.8):
                yield f"  {endpoint.place} takes {path_of(cls)}, another class."
        if endpoint.plan.payload is None or endpoint.classes:
            continue
        for cls in meant:
            if cls in endpoint.plan.payload.members and not (
                _name(cls) and _by_key_matches(endpoint, _name(cls))
            ):
                keys = ", ".join(repr(key) for key in endpoint.keys)
                yield (
                    f"  {endpoint.place} also takes {name_of_type(cls)}, but is "
                    f"reached only by {keys}."
                )


def _by_key_matches(endpoint: Endpoint, name: str | None) -> bool:
    return name is not None and any(fnmatchcase(name, key) for key in endpoint.keys)
