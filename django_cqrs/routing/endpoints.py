"""Make endpoints from declarations."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

from django.apps import apps

from django_cqrs.annotations import (
    LOCAL,
    is_opaque_protocol,
    is_plain_class,
    name_of_type,
    place_of,
)
from django_cqrs.declaration.declarations import (
    Declaration,
    Kind,
    Policies,
    declarations_of,
    handlers_of,
    role_of,
)
from django_cqrs.declaration.discovery import Found
from django_cqrs.messages import message_name_of
from django_cqrs.parameters.plan import ArgumentPlan
from django_cqrs.parameters.planner import TAKES_PAYLOAD, on_object, on_service, plan_of
from django_cqrs.parameters.services import Services
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import Endpoint, Role, Subject, subject_of
from django_cqrs.routing.endpoint_checks import with_sound_values

PATTERN_SIGNS: Final = frozenset("*?[")


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
        subject = None
        if role is not None and not role.is_fed:
            subject = role.subject_of(target, services)
        for name, method in methods:
            yield from _endpoints(
                found, name, method, target, services, subject=subject, role=role
            )
        if methods or role is not None or message_name_of(target) is not None:
            return
    elif declarations_of(target):
        yield from _endpoints(found, None, target, None, services)
        return
    msg = (
        f"{target!r} is not decorated, so its messages are unknown. Use "
        "@command_handler, @query_handler or @event_handler."
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
    role: Role | None = None,
) -> Iterator[Endpoint]:
    by_kind: defaultdict[Kind, list[Declaration]] = defaultdict(list)
    for declaration in declarations_of(handler):
        by_kind[declaration.kind].append(declaration)
    is_fed = role is not None and role.is_fed and Kind.EVENT in by_kind
    function, plan = _callable_and_plan(
        attribute, handler, owner, services, subject, fed_by=role if is_fed else None
    )
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
            # A query of the class itself does not concern an object.
            subject=None if is_static and kind is Kind.QUERY else subject,
            is_factory=is_static and not is_fed,
            is_fed=is_fed and kind is Kind.EVENT,
        )
        yield endpoint


def _callable_and_plan(
    attribute: str | None,
    handler: Any,
    owner: type | None,
    services: Services,
    subject: Subject | None,
    *,
    fed_by: Role | None,
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
        given=None if fed_by is None else fed_by.source_of,
    )
    if fed_by is not None:
        plan = fed_by.planned(plan, inner, owner)
    if inner is handler:  # an instance's method, with the instance as first argument
        if subject is None:
            plan = on_service(plan, owner, services)
        else:
            plan = on_object(plan, subject_of)
    return getattr(owner, attribute), plan


def _only_policies(
    declarations: list[Declaration], function: Any, problems: list[Problem]
) -> Policies:
    given = [d.policies for d in declarations if d.policies.given()]
    if len(given) > 1:
        words = ", ".join(sorted({word for each in given for word in each.given()}))
        problems.append(
            Problem(
                Rule.SCATTERED_POLICIES,
                f"Several of the decorators on {place_of(function)} give policies "
                f"({words}).",
                "They declare one endpoint: put all policies on one of them.",
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
                reason = (
                    f"{name_of_type(member)} is not a class that can be matched with "
                    "isinstance()"
                )
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
    # An answer may be lazy, and is read by the caller.
    is_lost = kind is not Kind.QUERY and inspect.isgeneratorfunction(function)
    if is_async or is_lost:
        problems.append(
            Problem(
                Rule.GENERATOR_HANDLER,
                f"{place_of(function)} is {'an async' if is_async else 'a'} "
                "generator, so calling it would not execute its body.",
                "Return a list, or remove the yield.",
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
            "Only events have patterns: give the full key.",
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
