"""Operate schedules: see their times and states, pause them, and run them now."""

from __future__ import annotations

import dataclasses
import enum
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections

from django_cqrs import clock
from django_cqrs.buses import registries
from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.exceptions import InvalidOption, UnknownSchedule, UnknownTenant
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.schedules.declared import (
    DeclaredSchedule,
    declared_in,
    is_enabled,
    schedules_of,
)
from django_cqrs.schedules.firing import Firer
from django_cqrs.schedules.models import Schedule
from django_cqrs.times import TimeFromNow, as_sent, read_now

__all__ = [
    "ScheduleState",
    "ScheduleStatus",
    "next_times",
    "pause",
    "resume",
    "run_now",
    "statuses",
]

BY: Final = 255
"""The maximum number of characters that are kept of a user's name."""


class ScheduleState(enum.StrEnum):
    """The state of a schedule."""

    ACTIVE = "active"
    NEW = "new"
    """No worker has seen it."""
    PAUSED = "paused"
    DISABLED = "disabled"
    """Its ``enabled=`` says so here."""
    OVER = "over"
    """No time is left."""
    GONE = "gone"
    """No code declares it, so it never fires; its row is deleted after 30 days."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleStatus:
    """A schedule, as its code and its row describe it."""

    name: str
    state: ScheduleState
    tenant: str = ""
    """The tenant for whom it fires; empty if it does not fire for each tenant."""
    endpoint: str = ""
    """The name of the handler's endpoint; empty if no code declares the schedule."""
    channel: str = ""
    timetable: str = ""
    """The expression or the interval."""
    zone: str = ""
    """The time zone of its times."""
    next_times: tuple[datetime, ...] = ()
    """The next times at which it fires, in its zone; none if it is paused or gone."""
    due_at: datetime | None = None
    """The due time of the last command, in its zone."""
    fired_at: datetime | None = None
    """The time at which the last command was sent."""
    message_id: UUID | None = None
    """The id of the last command."""
    outcome: str = ""
    """Its status, such as ``"waiting"`` or ``"handled"``; empty if it is unknown."""
    failures: int = 0
    """The number of firings in a row that failed."""
    failed_at: datetime | None = None
    error: str = ""
    """The error of the last of them."""
    paused_at: datetime | None = None
    paused_by: str = ""
    vanished_at: datetime | None = None
    """The time since when no code declares it."""


def next_times(
    name: str,
    count: int = 3,
    *,
    tenant: str | None = None,
    registry: Registry | None = None,
) -> list[datetime]:
    """
    Return the next times of a schedule, from its code alone: no database is asked.

    Args:
        name: the name of the schedule.
        count: the number of times.
        tenant: the tenant, whose times ``spread=`` moves, if it fires for each tenant.
        registry: the registry with the handlers; by default the project's.

    Returns:
        The times at which it fires, in its zone.

    Raises:
        UnknownSchedule: the code does not declare it.

    """
    schedule = _by_name(name, registry)
    if tenant is not None:
        schedule = _of_tenant(schedule, tenant)
    return list(islice(_firings(schedule, clock.now()), count))


def statuses(
    using: str = DEFAULT_DB_ALIAS,
    *,
    count: int = 3,
    tenant: str | None = None,
    registry: Registry | None = None,
) -> list[ScheduleStatus]:
    """
    Return the schedules of a database: declared ones, and those that are gone.

    Args:
        using: the alias of the database.
        count: the number of next times of each.
        tenant: only the schedules of this tenant; None for all.
        registry: the registry with the handlers; by default the project's.

    """
    known = declared_in(registry or registries.registry)
    declared = schedules_of(known.values(), using)
    rows = {(row.name, row.tenant): row for row in Schedule.objects.using(using)}
    now = read_now(connections[using])
    found = [
        _status(schedule, rows.get(key), now, count)
        for key, schedule in declared.items()
    ]
    aliases = {
        (alias, each.tenant)
        for each in declared.values()
        for alias in each.options.aliases
    }
    found += [
        _of_row(row, None)
        for key, row in rows.items()
        if key not in declared and key not in aliases
    ]
    if tenant is not None:
        found = [each for each in found if each.tenant == tenant]
    outcomes = _outcomes_of(found, using)
    found = [
        dataclasses.replace(each, outcome=outcomes.get(each.message_id, ""))
        for each in found
    ]
    return sorted(found, key=lambda each: (each.name, each.tenant))


def _outcomes_of(found: list[ScheduleStatus], using: str) -> dict[Any, str]:
    """Return the statuses of the last messages of schedules."""
    ids: defaultdict[str, list[UUID]] = defaultdict(list)
    for each in found:
        if each.message_id is not None and each.channel:
            ids[each.channel].append(each.message_id)
    outcomes: dict[Any, str] = {}
    for alias, some in ids.items():
        outcomes.update(channels[alias].statuses_of(using, some))
    return outcomes


def pause(
    name: str,
    *,
    using: str | None = None,
    by: str = "",
    tenant: str | None = None,
    registry: Registry | None = None,
) -> bool:
    """
    Pause a schedule: it sends nothing until it is resumed.

    Args:
        name: the name of the schedule.
        using: the alias of the database; by default that of its handler.
        by: the name of the user, for others to see.
        tenant: the tenant, if it fires for each tenant.
        registry: the registry with the handlers; by default the project's.

    Returns:
        Whether it was not paused before.

    Raises:
        UnknownSchedule: the code does not declare it.
        InvalidOption: it fires for each tenant, and none was given; or the other way.
        UnknownTenant: no tenant has this name.

    """
    schedule = _declared(name, registry, tenant)
    rows = Schedule.objects.using(using or schedule.using)
    # A worker that has not started yet finds it, and counts it from its own code.
    new = Schedule(name=name, tenant=schedule.tenant)
    rows.bulk_create([new], ignore_conflicts=True)
    own = rows.filter(name=name, tenant=schedule.tenant)
    changed = own.filter(is_paused=False).update(
        is_paused=True, paused_at=TimeFromNow(), paused_by=by[:BY]
    )
    return bool(changed)


def resume(
    name: str,
    *,
    using: str | None = None,
    tenant: str | None = None,
    registry: Registry | None = None,
) -> bool:
    """
    Resume a schedule: it fires at its next time, and makes up for nothing.

    Args:
        name: the name of the schedule.
        using: the alias of the database; by default that of its handler.
        tenant: the tenant, if it fires for each tenant.
        registry: the registry with the handlers; by default the project's.

    Returns:
        Whether it was paused before.

    Raises:
        UnknownSchedule: the code does not declare it.
        InvalidOption: it fires for each tenant, and none was given; or the other way.
        UnknownTenant: no tenant has this name.

    """
    schedule = _declared(name, registry, tenant)
    rows = Schedule.objects.using(using or schedule.using)
    # A worker finds the next time, by its own code; see `counted_from`.
    changed = rows.filter(name=name, tenant=schedule.tenant, is_paused=True).update(
        is_paused=False,
        paused_at=None,
        paused_by="",
        next_at=TimeFromNow(),
        counted_from=TimeFromNow(),
    )
    return bool(changed)


def run_now(
    name: str, *, tenant: str | None = None, registry: Registry | None = None
) -> UUID | None:
    """
    Send one command of a schedule now; its next time stays as it is.

    Args:
        name: the name of the schedule.
        tenant: the tenant, if it fires for each tenant.
        registry: the registry with the handlers; by default the project's.

    Returns:
        The id of the message; None if an interceptor has stopped it.

    Raises:
        UnknownSchedule: the code does not declare it.
        InvalidOption: it fires for each tenant, and none was given; or the other way.
        UnknownTenant: no tenant has this name.
        Exception: the exception of a function of the schedule, or of the sending.
            Nothing was sent.

    """
    subject = registry or registries.registry
    schedule = _declared(name, subject, tenant)
    using = schedule.using
    return Firer(subject, using).run_now(schedule, read_now(connections[using]))


def _declared(
    name: str, registry: Registry | None, tenant: str | None
) -> DeclaredSchedule:
    schedule = _by_name(name, registry)
    if tenant is not None:
        return _of_tenant(schedule, tenant)
    if schedule.options.each_tenant:
        msg = (
            f"The schedule {name!r} fires for each tenant. Name the tenant: tenant=, "
            "or --tenant of the command."
        )
        raise InvalidOption(msg)
    return schedule


def _of_tenant(schedule: DeclaredSchedule, tenant: str) -> DeclaredSchedule:
    if not schedule.options.each_tenant:
        msg = (
            f"The schedule {schedule.name!r} does not fire for each tenant, so nothing "
            f"was done for tenant {tenant!r}. Leave the tenant out."
        )
        raise InvalidOption(msg)
    policy = tenancy()
    if policy is None or tenant not in policy.names():
        msg = f"Tenant {tenant!r} is not known."
        raise UnknownTenant(msg)
    return dataclasses.replace(schedule, tenant=tenant)


def _by_name(name: str, registry: Registry | None) -> DeclaredSchedule:
    declared = declared_in(registry or registries.registry)
    if name not in declared:
        msg = f"There is no schedule {name!r}."
        if declared:
            names = ", ".join(sorted(declared))
            msg += f" The schedules are {names}."
        raise UnknownSchedule(msg)
    return declared[name]


def _firings(schedule: DeclaredSchedule, moment: datetime) -> Iterator[datetime]:
    zone = schedule.timetable.zone
    for due in schedule.times_after(moment):
        yield (due + schedule.shift).astimezone(zone)


def _status(
    schedule: DeclaredSchedule,
    row: Schedule | None,
    now: datetime,
    count: int,
) -> ScheduleStatus:
    zone = schedule.timetable.zone
    if row is None:
        state, times = ScheduleState.NEW, _firings(schedule, now)
        return dataclasses.replace(
            _described(schedule), state=state, next_times=tuple(islice(times, count))
        )
    status = _of_row(row, schedule)
    if row.is_paused:
        return status
    upcoming = list(islice(_firings(schedule, now), count))
    is_counted = row.counted_from is None and row.fingerprint == schedule.fingerprint
    if is_counted and row.next_at is not None and as_sent(row.next_at) <= now:
        upcoming = [as_sent(row.next_at).astimezone(zone), *upcoming][:count]
    state = status.state if row.fingerprint else ScheduleState.NEW
    if not upcoming:
        state = ScheduleState.OVER
    elif not _is_enabled(schedule):
        state = ScheduleState.DISABLED
    return dataclasses.replace(status, state=state, next_times=tuple(upcoming))


def _is_enabled(schedule: DeclaredSchedule) -> bool:
    try:
        return is_enabled(schedule)
    except Exception:  # noqa: BLE001 - its firings report it
        return True


def _described(schedule: DeclaredSchedule) -> ScheduleStatus:
    """Return the facts in the code of a schedule."""
    return ScheduleStatus(
        name=schedule.name,
        state=ScheduleState.ACTIVE,
        tenant=schedule.tenant,
        endpoint=schedule.endpoint.name,
        channel=schedule.channel,
        timetable=str(schedule.timetable),
        zone=str(schedule.timetable.zone),
    )


def _of_row(row: Schedule, schedule: DeclaredSchedule | None) -> ScheduleStatus:
    """Return the facts in the row of a schedule, and in its code if there is any."""
    known = ScheduleStatus(name=row.name, state=ScheduleState.GONE, tenant=row.tenant)
    if schedule is not None:
        known = _described(schedule)
        if row.is_paused:
            known = dataclasses.replace(known, state=ScheduleState.PAUSED)
    due_at = None if row.due_at is None else as_sent(row.due_at)
    if due_at is not None and schedule is not None:
        due_at = due_at.astimezone(schedule.timetable.zone)
    return dataclasses.replace(
        known,
        due_at=due_at,
        fired_at=row.fired_at,
        message_id=row.message_id,
        failures=row.failures,
        failed_at=row.failed_at if row.failures else None,
        error=row.error,
        paused_at=row.paused_at,
        paused_by=row.paused_by,
        vanished_at=row.vanished_at,
    )
