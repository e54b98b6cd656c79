"""Checks of the handlers of objects with streams."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from django_cqrs.annotations import (
    field_names,
    is_plain_class,
    is_value_type,
    name_of_type,
    union_members,
)
from django_cqrs.events.appliers import Appliers
from django_cqrs.events.rules import StreamRule
from django_cqrs.messages import message_name_of
from django_cqrs.problems import Problem
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.sends import without_sends


def unapplied_events(
    cls: type, appliers: Appliers, endpoint: Endpoint
) -> Iterator[Problem]:
    """Yield a handler that returns events, by its annotation, that nothing applies."""
    members = list(_classes_in(without_sends(endpoint.plan.returns)))
    has_events = any(map(appliers.takes, members))
    for member in members:
        if appliers.takes(member) or issubclass(member, cls):
            continue
        may_be = endpoint.is_factory or has_events
        if (may_be and _may_be_event(member)) or message_name_of(member) is not None:
            yield Problem(
                StreamRule.UNAPPLIED_EVENT,
                f"{endpoint.place} returns {name_of_type(member)}, which no applier of "
                f"{name_of_type(cls)} takes.",
                "Write an applier for it, marked with @applies, even if it changes "
                "nothing.",
                endpoint.function,
            )


def unatomic_problems(cls: type, endpoint: Endpoint) -> Iterator[Problem]:
    """Yield a handler that changes objects with streams outside of transactions."""
    if endpoint.policies.atomic is False:
        yield Problem(
            StreamRule.UNATOMIC_STREAM,
            f"{endpoint.place} has atomic=False, but what happens to a "
            f"{name_of_type(cls)} is appended and published in one transaction.",
            "Remove atomic=False.",
            endpoint.function,
        )


def _classes_in(annotation: Any) -> Iterator[type]:
    """Yield the classes that an annotation of returned values mentions."""
    for member in union_members(annotation):
        if typing.get_origin(member) in (list, tuple):
            for each in typing.get_args(member):
                yield from _classes_in(each)
        elif is_plain_class(member) and member is not type(None):
            yield member


def _may_be_event(cls: type) -> bool:
    """Return whether objects of a class have fields, and are not plain values."""
    return field_names(cls) is not None and not is_value_type(cls)
