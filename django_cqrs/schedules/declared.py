"""The schedules that the handlers of a registry declare, and the faults in them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone

from django_cqrs import conf
from django_cqrs.annotations import place_of
from django_cqrs.buses.bus import converted_payload
from django_cqrs.buses.registries import Registry, registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import as_timedelta
from django_cqrs.declaration.declarations import Kind, declarations_of
from django_cqrs.declaration.key_sources import joined
from django_cqrs.exceptions import (
    CQRSError,
    InvalidChannel,
    InvalidOption,
    UnknownTenant,
)
from django_cqrs.messages import split_headers
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.schedules.declarations import (
    ScheduleOptions,
    scheduled_functions,
    schedules_on,
)
from django_cqrs.schedules.timetables import Timetable

APP: Final = "django_cqrs.schedules"

LONGEST_NAME: Final = 255

_MOMENT: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DeclaredSchedule:
    """A schedule of a command handler."""

    endpoint: Endpoint
    options: ScheduleOptions
    tenant: str = ""
    """The tenant for whom it fires; empty if it does not fire for each tenant."""

    @property
    def key(self) -> tuple[str, str]:
        """Its name and its tenant, which no other row has."""
        return self.name, self.tenant

    @property
    def name(self) -> str:
        """Its name in the table."""
        return self.options.name or self.endpoint.name

    @property
    def channel(self) -> str:
        """The alias of the channel of its command."""
        return self.endpoint.channel or ""

    @property
    def using(self) -> str:
        """The alias of the database that holds its row and its messages."""
        policy = tenancy() if self.tenant else None
        if policy is not None:
            own = self.endpoint.policies.using or policy.alias_of(self.tenant)
            return own or DEFAULT_DB_ALIAS
        return self.endpoint.alias or DEFAULT_DB_ALIAS

    @property
    def timetable(self) -> Timetable:
        """The timetable."""
        found: Timetable = self.options.timetable
        return found

    @property
    def grace(self) -> timedelta:
        """The time by which a firing may be late without being missed."""
        return as_timedelta(self.options.grace, "grace")

    @property
    def shift(self) -> timedelta:
        """The time by which ``spread=`` moves its firings."""
        return self.shift_of(self.name)

    def shift_of(self, name: str) -> timedelta:
        """Return the time by which ``spread=`` moves the firings under a name."""
        spread = as_timedelta(self.options.spread, "spread")
        if not spread:
            return spread
        if self.tenant:
            name = joined((name, self.tenant))
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return timedelta(milliseconds=int(spread / timedelta(milliseconds=1) * share))

    @property
    def fingerprint(self) -> str:
        """A text that differs if the due times do."""
        options = self.options
        parts = [self.timetable.text, *map(str, (options.starts, options.ends))]
        parts.append(str(as_timedelta(options.spread, "spread")))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def times_after(self, moment: datetime) -> Iterator[datetime]:
        """
        Yield the times on its timetable whose firings come after a moment, in UTC.

        A firing comes at its time, or later by the :attr:`shift`.
        """
        starts, ends = self.options.starts, self.options.ends
        since = moment.astimezone(UTC) - self.shift
        if starts is not None and since < starts:
            since = starts.astimezone(UTC) - _TICK
        for due in self.timetable.after(since, starts):
            if ends is not None and due > ends:
                return
            yield due

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first firing after a moment, None if there is none."""
        due = next(self.times_after(moment), None)
        return None if due is None else due + self.shift

    @property
    def place(self) -> str:
        """The dotted path of its handler."""
        return place_of(self.endpoint.function)


def declared_in(subject: Registry) -> dict[str, DeclaredSchedule]:
    """Return the sound schedules of a registry by their names."""
    found = {}
    for name, schedules in _by_name(subject).items():
        [first, *others] = schedules
        if not others and not any(_problems(first)) and _has_channel(first):
            found[name] = first
    return found


def schedules_of(
    declared: Iterable[DeclaredSchedule], using: str
) -> dict[tuple[str, str], DeclaredSchedule]:
    """
    Return those of some schedules whose rows are in a database, by their keys.

    A schedule of each tenant is there once for each tenant of the database.

    Args:
        declared: the schedules.
        using: the alias of the database.

    """
    found: dict[tuple[str, str], DeclaredSchedule] = {}
    each_tenant: list[DeclaredSchedule] = []
    for schedule in declared:
        if schedule.options.each_tenant:
            each_tenant.append(schedule)
        elif schedule.using == using:
            found[schedule.key] = schedule
    policy = tenancy() if each_tenant else None
    for name in () if policy is None else policy.names():
        for schedule in each_tenant:
            own = dataclasses.replace(schedule, tenant=name)
            try:
                if own.using == using:
                    found[own.key] = own
            except UnknownTenant:
                break  # its database is not in the settings yet
    return found


def keys_of(
    declared: Mapping[str, DeclaredSchedule], using: str
) -> set[tuple[str, str]]:
    """
    Return the keys of all rows in a database that have a declaration.

    Those under former names are among them, and those of schedules that have moved to
    another database.

    Args:
        declared: all schedules of the code by name.
        using: the alias of the database.

    """
    found = {
        (name, "")
        for each in declared.values()
        if not each.options.each_tenant
        for name in (each.name, *each.options.aliases)
    }
    for each in schedules_of(declared.values(), using).values():
        found |= {(name, each.tenant) for name in (each.name, *each.options.aliases)}
    return found


def _has_channel(schedule: DeclaredSchedule) -> bool:
    try:
        channels[schedule.channel]
    except InvalidChannel:
        return False
    return True


def _all(subject: Registry) -> Iterator[DeclaredSchedule]:
    for endpoint in subject.routes.endpoints:
        for options in schedules_on(endpoint.function):
            schedule = DeclaredSchedule(endpoint, options)
            has_command = any(
                each.kind is Kind.COMMAND for each in declarations_of(endpoint.function)
            )
            # A function may handle an event as well.
            if endpoint.kind is Kind.COMMAND or not has_command:
                yield schedule


def _by_name(subject: Registry) -> dict[str, list[DeclaredSchedule]]:
    found: defaultdict[str, list[DeclaredSchedule]] = defaultdict(list)
    for schedule in _all(subject):
        found[str(schedule.name)].append(schedule)
    return found


def problems_in(subject: Registry) -> Iterator[Problem]:
    """Yield the faults of all schedules of a registry."""
    by_name = _by_name(subject)
    for schedules in by_name.values():
        for schedule in schedules:
            yield from _problems(schedule)
        if len(schedules) > 1:
            yield _duplicate(schedules)
    for schedules in by_name.values():
        for schedule in schedules:
            for alias in schedule.options.aliases:
                if alias in by_name:
                    yield Problem(
                        Rule.DUPLICATE_SCHEDULE,
                        f"{schedule.place} has a schedule with the former name "
                        f"{alias!r}, which another one has now: "
                        f"{by_name[alias][0].place}.",
                        "Remove the alias.",
                        schedule.endpoint.function,
                    )
    if subject is registry:
        yield from _strays()


def _strays() -> Iterator[Problem]:
    """Yield the scheduled functions of the installed apps that handle nothing."""
    for each in scheduled_functions:
        if not each.is_current or declarations_of(each.target):
            continue
        if apps.get_containing_app_config(each.target.__module__) is None:
            continue
        yield Problem(
            Rule.UNSCHEDULABLE_HANDLER,
            f"{place_of(each.target)} has a schedule, but it is not a handler.",
            "Decorate it with @command_handler(..., channel=...).",
            each.target,
        )


def _duplicate(schedules: list[DeclaredSchedule]) -> Problem:
    first, *others = schedules
    places = " and ".join(each.place for each in schedules)
    text = f"{places} have schedules with the name {first.name!r}."
    if len({each.place for each in schedules}) == 1:
        text = f"{first.place} has {len(schedules)} schedules {first.name!r}."
    return Problem(
        Rule.DUPLICATE_SCHEDULE,
        text,
        "Give each its own name=.",
        others[0].endpoint.function,
    )


def _problems(schedule: DeclaredSchedule) -> Iterator[Problem]:
    """Yield the faults of one schedule."""
    unfit = list(_handler_problems(schedule))
    yield from unfit
    faults = list(_faults(schedule.options))
    for fault, hint in faults:
        yield Problem(
            Rule.BAD_SCHEDULE,
            f"{schedule.place} has a schedule that cannot be used. {fault}",
            hint,
            schedule.endpoint.function,
        )
    if not settings.USE_TZ:
        yield Problem(
            Rule.BAD_SCHEDULE,
            f"{schedule.place} has a schedule, but USE_TZ is off, so that an hour of "
            "each year has no times of its own.",
            "Set USE_TZ = True.",
            schedule.endpoint.function,
            cause="schedules without time zones",
        )
    if not unfit and not faults:
        yield from _payload_problems(schedule)


def _handler_problems(schedule: DeclaredSchedule) -> Iterator[Problem]:
    endpoint, where = schedule.endpoint, schedule.place
    rule, function = Rule.UNSCHEDULABLE_HANDLER, endpoint.function
    if endpoint.kind is not Kind.COMMAND:
        noun = "queries" if endpoint.kind is Kind.QUERY else "events"
        yield Problem(
            rule,
            f"{where} has a schedule, but it handles {noun}.",
            "Give the schedule to a command handler.",
            function,
        )
        return
    if not apps.is_installed(APP):
        yield Problem(
            rule,
            f"{where} has a schedule, but no installed app keeps schedules.",
            f"Add {APP!r} to INSTALLED_APPS and migrate.",
            function,
            cause=APP,
        )
    if schedule.options.each_tenant and endpoint.policies.tenant is False:
        yield Problem(
            rule,
            f"{where} has a schedule of each tenant, but it is for the part that all "
            "tenants share.",
            "Remove each_tenant=, or tenant=False.",
            function,
        )
    if endpoint.channel is None:
        yield Problem(
            rule,
            f"{where} has a schedule, but it is called immediately, so that no worker "
            "would send its commands.",
            "Give it a channel= whose messages a worker handles.",
            function,
        )
        return
    try:
        channel = channels[endpoint.channel]
    except InvalidChannel:  # E016 reports it
        return
    if not (channel.supports_redelivery or channel.is_immediate):
        kind = type(channel).__name__
        yield Problem(
            rule,
            f"{where} has a schedule, but the channel {channel.alias!r} ({kind}) does "
            "not keep messages.",
            "Choose a channel that is an outbox.",
            function,
        )


def _faults(options: ScheduleOptions) -> Iterator[tuple[str, str]]:
    """Yield the faults of a schedule's arguments, each with its fix."""
    timetable = options.timetable
    if not isinstance(timetable, Timetable):
        yield (
            f"@scheduled takes cron(...) or every(...), not {timetable!r}.",
            "Write @scheduled(cron(...)) or @scheduled(every(...)).",
        )
    elif timetable.fault is not None:
        yield timetable.fault, _HINTS.get(timetable.fault[:5], "Fix the timetable.")
    for name in (options.name, *options.aliases):
        is_text = isinstance(name, str) and 0 < len(name) <= LONGEST_NAME
        if name is not None and not is_text:
            yield (
                f"{name!r} is not a name.",
                f"Give a string of at most {LONGEST_NAME} characters.",
            )
    for key, allowed in _CHOICES.items():
        value = getattr(options, key)
        if value not in allowed:
            *others, last = map(repr, allowed)
            hint = f"Give {', '.join(others)} or {last}."
            yield f"{key}={value!r} is not possible.", hint
    for key in ("grace", "spread"):
        try:
            as_timedelta(getattr(options, key), key)
        except InvalidOption as error:
            yield str(error), f"Give {key}= seconds, or a timedelta, of 0 or more."
    yield from _period_faults(options)
    if not isinstance(options.enabled, bool) and not _takes(options.enabled):
        yield (
            f"enabled={options.enabled!r} is not possible.",
            "Give True, False, or a function without arguments.",
        )
    yield from _tenant_faults(options.each_tenant)
    yield from _header_faults(options.headers)
    if callable(options.payload) and not _takes(options.payload, _MOMENT):
        yield (
            f"payload={options.payload!r} does not take a time.",
            "Give a value, or a function of the due time.",
        )


_HINTS: Final = {"Cron ": "Run pip install 'django-cqrs-kit[schedules]'."}

_CHOICES: Final = {"missed": ("latest", "all", "skip"), "overlap": ("allow", "skip")}


def _period_faults(options: ScheduleOptions) -> Iterator[tuple[str, str]]:
    bounds = {"starts": options.starts, "ends": options.ends}
    is_sound = True
    for key, value in bounds.items():
        if value is None:
            continue
        if not isinstance(value, datetime) or timezone.is_naive(value):
            is_sound = False
            yield (
                f"{key}={value!r} is not a datetime with a time zone.",
                f"Give {key}= an aware datetime.",
            )
    if is_sound and None not in bounds.values() and options.ends < options.starts:
        yield (
            f"It ends before it starts: starts={options.starts}, ends={options.ends}.",
            "Make ends= the later one.",
        )


def _tenant_faults(each_tenant: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(each_tenant, bool):
        yield f"each_tenant={each_tenant!r} is not possible.", "Give True or False."
    if each_tenant is not True:
        return
    try:
        policy = tenancy()
        if policy is not None:
            policy.ensure_listed()
            return
    except ImproperlyConfigured as error:
        yield str(error), "Fix the settings, or remove each_tenant=."
        return
    yield (
        f"It is one of each tenant, but {conf.NAME}['TENANCY'] is not set.",
        "Set it, or remove each_tenant=.",
    )


def _header_faults(headers: Any) -> Iterator[tuple[str, str]]:
    hint = "Give a dictionary of headers, or a function of the due time."
    if callable(headers):
        if not _takes(headers, _MOMENT):
            yield f"headers={headers!r} does not take a time.", hint
        return
    if headers is None:
        return
    if not isinstance(headers, Mapping):
        yield f"headers={headers!r} is not a dictionary.", hint
        return
    try:
        split_headers(headers)
    except CQRSError as error:
        yield str(error), hint


def _takes(function: object, *arguments: object) -> bool:
    """Return whether a function can be called with some arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # written in C
        return True
    return True


def _payload_problems(schedule: DeclaredSchedule) -> Iterator[Problem]:
    endpoint, payload = schedule.endpoint, schedule.options.payload
    plan, where = endpoint.plan, schedule.place
    rule, function = Rule.SCHEDULE_PAYLOAD, endpoint.function
    if plan.payload is None:
        if payload is not None:
            yield Problem(
                rule,
                f"{where} has a schedule with payload=, but it takes no payload.",
                "Remove payload=, or give the handler a parameter for it.",
                function,
            )
        return
    if payload is None:
        if plan.payload_default is inspect.Parameter.empty:
            name = plan.payload.annotation
            yield Problem(
                rule,
                f"{where} has a schedule without payload=, but it needs a payload: "
                f"{getattr(name, '__qualname__', name)}.",
                "Give payload= the payload, or a function of the due time that returns "
                "it.",
                function,
            )
        return
    if callable(payload):
        return
    try:
        converted_payload(endpoint, payload, None)
    except CQRSError as error:
        yield Problem(
            rule,
            f"{where} has a schedule whose payload= does not fit it. {error}",
            "Give payload= a value that the handler takes.",
            function,
        )


def call(function: Any, *arguments: Any) -> Any:
    """Return a value, or the result of a function of some arguments."""
    return function(*arguments) if callable(function) else function


def is_enabled(schedule: DeclaredSchedule) -> bool:
    """Return whether a schedule sends commands now."""
    enabled: bool | Callable[[], bool] = schedule.options.enabled
    return bool(call(enabled))
