"""The schedules as senders in the message graph."""

from __future__ import annotations

from collections.abc import Iterator

from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.offers import Offer
from django_cqrs.schedules.declared import DeclaredSchedule, declared_in


def sent_by_schedules(registry: Registry) -> Iterator[Offer]:
    """Yield the command of each schedule of a registry."""
    for schedule in declared_in(registry).values():
        target = _target_of(schedule)
        if target is not None:
            name = f"schedule {schedule.name}"
            yield Offer(name, target, Kind.COMMAND, "schedule")


def _target_of(schedule: DeclaredSchedule) -> type | str | None:
    """Return the class or the routing key of a schedule's command."""
    endpoint, payload = schedule.endpoint, schedule.options.payload
    if type(payload) in endpoint.classes:
        return type(payload)
    if endpoint.classes:
        return endpoint.classes[0]
    return endpoint.keys[0] if endpoint.keys else None
