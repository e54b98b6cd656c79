"""The decorator that gives a command handler a schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import FunctionType
from typing import Any, Final, Literal, TypeVar

from django.utils.module_loading import import_string

from django_cqrs.declaration.declarations import Declared, declaration_of
from django_cqrs.messages import HeaderValue
from django_cqrs.problems import Finder, Problem, add_problem_finder
from django_cqrs.schedules.timetables import Timetable

H = TypeVar(
    "H",
    bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]",
)

Missed = Literal["latest", "all", "skip"]
Overlap = Literal["allow", "skip"]

SCHEDULES: Final = "__cqrs_schedules__"

GRACE: Final = 60
"""The seconds by which a firing may be late without being missed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """The arguments of one :func:`scheduled`, as they were given."""

    timetable: Any
    name: str | None = None
    aliases: tuple[str, ...] = ()
    payload: Any = None
    headers: Any = None
    missed: Any = "latest"
    grace: Any = GRACE
    overlap: Any = "allow"
    spread: Any = 0
    starts: Any = None
    ends: Any = None
    enabled: Any = True
    each_tenant: Any = False


scheduled_functions: list[Declared] = []
"""The functions with a schedule, in the order of decoration."""


@add_problem_finder
def _problems_in(registry: Any) -> Iterable[Problem]:
    """Return the faults of schedules, if there are schedules at all."""
    if not scheduled_functions:
        return ()
    find: Finder = import_string("django_cqrs.schedules.declared.problems_in")
    return find(registry)


def schedules_on(handler: object) -> tuple[ScheduleOptions, ...]:
    """Return the schedules of a function or method, in the order of writing."""
    function = getattr(handler, "__func__", handler)
    return getattr(function, SCHEDULES, ())


def scheduled(
    timetable: Timetable,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    payload: Any = None,
    headers: Mapping[str, HeaderValue]
    | Callable[[datetime], Mapping[str, HeaderValue]]
    | None = None,
    missed: Missed = "latest",
    grace: timedelta | float = GRACE,
    overlap: Overlap = "allow",
    spread: timedelta | float = 0,
    starts: datetime | None = None,
    ends: datetime | None = None,
    enabled: bool | Callable[[], bool] = True,
    each_tenant: bool = False,
) -> Callable[[H], H]:
    """
    Send a command to its handler at the times of a timetable.

    The handler is on a channel that keeps messages. ``manage.py cqrs_worker`` of that
    channel sends the commands, each once, however many workers there are::

        @scheduled(cron("30 6 * * MON-FRI", timezone="Europe/Berlin"))
        @command_handler("report.daily", channel="reports")
        def daily_report() -> None: ...

    Args:
        timetable: :func:`cron` or :func:`every`.
        name: the name of the schedule; by default that of the endpoint. It is needed if
            a handler has several.
        aliases: former names of the schedule.
        payload: the payload of the command, or a function of the due time that returns
            it.
        headers: the headers of the command, or a function of the due time.
        missed: if times were missed, ``"latest"`` sends one command for all of them,
            ``"all"`` one for each, and ``"skip"`` none.
        grace: a time is missed if it is late by more, in seconds or a timedelta.
        overlap: ``"skip"`` sends no command while an earlier one waits or is being
            handled.
        spread: sends each command up to so much later, always by the same time, so that
            the schedules of midnight do not begin together.
        starts: no time before this datetime.
        ends: no time after this datetime.
        enabled: whether the schedule sends commands: a bool, or a function without
            arguments that is called at each due time.
        each_tenant: sends a command for each tenant, in the tenant's own outbox. The
            functions above are called with the tenant active.

    Returns:
        The function itself.

    """
    given: Any = aliases
    is_one = isinstance(given, str) or not isinstance(given, Iterable)
    names: Any = (given,) if is_one else tuple(given)
    options = ScheduleOptions(
        timetable=timetable,
        name=name,
        aliases=names,
        payload=payload,
        headers=headers,
        missed=missed,
        grace=grace,
        overlap=overlap,
        spread=spread,
        starts=starts,
        ends=ends,
        enabled=enabled,
        each_tenant=each_tenant,
    )

    def decorate(handler: H) -> H:
        function = getattr(handler, "__func__", handler)
        if not isinstance(function, FunctionType):
            msg = f"@scheduled decorates a function or a method, not {handler!r}."
            raise TypeError(msg)
        before = schedules_on(function)
        setattr(function, SCHEDULES, (options, *before))
        if not before:
            scheduled_functions.append(declaration_of(function))
        return handler

    return decorate
