"""System checks: every mistake in a declaration, with an id, a hint and its place."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.db.models import Model

from django_cqrs import conf
from django_cqrs.annotations import is_plain_class, name_of_type
from django_cqrs.buses.registries import Registry, registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import as_timedelta
from django_cqrs.channels.retry_settings import project_instant_retry, project_retry
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.converters import converter_problems
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.conversion.upcasting import declared_upcasters
from django_cqrs.declaration.declarations import Kind
from django_cqrs.declaration.discovery import unimported
from django_cqrs.exceptions import InvalidChannel, InvalidOption
from django_cqrs.modelling import interfaces
from django_cqrs.pipeline.tenancy import (
    ROUTER,
    Fault,
    Tenancy,
    TenantRouter,
    read_tenancy,
)
from django_cqrs.problems import Problem, Rule, other_problems
from django_cqrs.retries import InstantRetry, Retry
from django_cqrs.routing.endpoint import Endpoint

TAG = "django_cqrs"
OUTBOX = "django_cqrs.outbox"


def as_check_message(problem: Problem) -> CheckMessage:
    """Return a problem as a message of ``manage.py check``."""
    kind = Error if problem.rule.is_error else Warning
    return kind(problem.message, hint=problem.hint, obj=problem.obj, id=problem.rule.id)


def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """Check that ``DJANGO_CQRS`` has known keys and valid values."""
    return [as_check_message(problem) for problem in _settings_problems()]


def check_routes(**_kwargs: Any) -> list[CheckMessage]:
    """Check every handler, route, parameter, message name and business interface."""
    from django_cqrs.graph.views import views_of_project

    # All are imported: they may have interfaces that no handler needs.
    views = [view for _, view in views_of_project()]
    found = [*_view_problems(views), *unimported(), *_upcaster_problems(registry)]
    return [*check_registry(registry), *map(as_check_message, found)]


def _view_problems(views: Iterable[Any]) -> Iterator[Problem]:
    """Yield the problems of the views of messages."""
    found: dict[str, Problem] = {}
    for view in views:
        cls: Any = getattr(view, "view_class", None)
        if hasattr(cls, "cqrs_problems"):
            for each in cls.cqrs_problems(view.view_initkwargs):
                found.setdefault(each.message, each)
    yield from found.values()


def check_registry(subject: Registry) -> list[CheckMessage]:
    """
    Check one registry, for example in a test.

    Returns:
        The messages that ``manage.py check`` would print for it.

    """
    found = [
        *subject.problems,
        *interfaces.problems_of(subject),
        *converter_problems,
        *_payload_problems(subject),
        *other_problems(subject),
    ]
    return [as_check_message(problem) for problem in _without_repeats(found)]


def _without_repeats(found: list[Problem]) -> Iterator[Problem]:
    """Yield problems, and of those with one cause only the first."""
    seen: set[str] = set()
    for problem in found:
        if problem.cause and problem.cause in seen:
            continue
        seen.add(problem.cause)
        yield problem


def check_channels(**_kwargs: Any) -> list[CheckMessage]:
    """Check that every configured channel can be created, and run its own checks."""
    found: list[CheckMessage] = []
    used = [endpoint.channel for endpoint in registry.routes.endpoints]
    for alias in channels:
        try:
            found += channels[alias].check()
        except InvalidChannel as error:
            if alias not in used:  # otherwise the check of its handlers reports it
                hint = "Fix it, or remove it: no handler uses it."
                problem = Problem(Rule.UNKNOWN_CHANNEL, str(error), hint)
                found.append(as_check_message(problem))
    return found


def check_graph(**_kwargs: Any) -> list[CheckMessage]:
    """Check that every message has a sender and a handler, if the settings ask."""
    if conf.current().GRAPH_CHECKS is False:
        return []
    from django_cqrs.graph.building import graph_of
    from django_cqrs.graph.problems import graph_checks, problems_of

    try:
        options = graph_checks()
    except ImproperlyConfigured:  # the check of the settings reports it
        return []
    if options is None:
        return []
    graph = graph_of(registry)
    return [as_check_message(each) for each in problems_of(graph, options)]


CHECKS = (check_settings, check_routes, check_channels, check_graph)

LOCK_TAG = "cqrs_schema"
"""The tag of :func:`check_schema_lock`."""


def check_schema_lock(**_kwargs: Any) -> list[CheckMessage]:
    """
    Check the lock files of all apps that have one; only if asked for by its tag.

    Every other command runs all checks, and would read each class first.
    """
    if not _is_asked_for(LOCK_TAG):
        return []
    from django_cqrs.schema_lock.examination import examine

    found = examine(registry, only_locked=True)
    return [as_check_message(problem) for problem in found.problems]


def _is_asked_for(tag: str) -> bool:
    """Return whether the present run of checks names a tag: no check is told."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "run_checks" and "tags" in frame.f_locals:
            return tag in (frame.f_locals["tags"] or ())
    return True


def _settings_problems() -> Iterator[Problem]:
    try:
        given = conf.configured()
    except ImproperlyConfigured as error:
        yield Problem(Rule.BAD_SETTING, str(error), 'Write DJANGO_CQRS = {"KEY": ...}.')
        return
    for key in given:
        if key not in conf.KEYS:
            near = difflib.get_close_matches(str(key), conf.KEYS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Remove it."
            message = f"{conf.NAME} has no key {key!r}."
            yield Problem(Rule.UNKNOWN_SETTING, message, hint)
    for key in ("HANDLERS_MODULE", "MESSAGES_MODULE"):
        value = getattr(conf.current(), key)
        if not (isinstance(value, str) and value.isidentifier()):
            yield Problem(
                Rule.BAD_SETTING,
                f"{conf.NAME}[{key!r}] = {value!r} is not a valid module name.",
                "Give the name that the module has in each app.",
            )
    if not isinstance(conf.current().CHANNELS, Mapping):
        yield Problem(
            Rule.BAD_SETTING,
            f"{conf.NAME}['CHANNELS'] = {conf.current().CHANNELS!r} is not a "
            "dictionary.",
            "Write it like CACHES: map an alias to a BACKEND and, optionally, OPTIONS.",
        )
    for key in ("IDEMPOTENCY_WINDOW", "JOURNAL", "TASK_RESULTS"):
        value = getattr(conf.current(), key)
        if not (_is_span(value) or (key == "JOURNAL" and value is None)):
            yield Problem(
                Rule.BAD_SETTING,
                f"{conf.NAME}[{key!r}] = {value!r} is not a valid duration.",
                "Give a timedelta or a number of seconds above 0.",
            )
    batch = conf.current().PROJECTION_BATCH
    if type(batch) is not int or batch < 1:
        yield Problem(
            Rule.BAD_SETTING,
            f"{conf.NAME}['PROJECTION_BATCH'] = {batch!r} is not a number of events.",
            "Give a whole number of at least 1.",
        )
    if conf.current().JOURNAL is not None and not apps.is_installed(OUTBOX):
        yield Problem(
            Rule.UNKEPT_JOURNAL,
            f"{conf.NAME}['JOURNAL'] is set, but no installed app keeps a journal.",
            f"Add '{OUTBOX}' to INSTALLED_APPS and migrate, or remove the key.",
        )
    try:
        conf.implementation_of(object)
    except ImproperlyConfigured as error:
        hint = "Give a class, or its dotted path, for each interface."
        yield Problem(Rule.BAD_SETTING, str(error), hint)
    for read, cls in (
        (project_retry, Retry),
        (project_instant_retry, InstantRetry),
    ):
        try:
            read()
        except ImproperlyConfigured as error:
            hint = (
                f"Give a dictionary of the arguments of {cls.__name__}, or remove it."
            )
            yield Problem(Rule.BAD_SETTING, str(error), hint)
    yield from _tenancy_problems(registry)
    yield from _graph_setting_problems()
    for key in ("SERVICE_RESOLVER", "REQUEST_HEADERS"):
        try:
            conf.resolve(key)
        except ImproperlyConfigured as error:
            hint = "Give a callable, or the dotted path of one."
            yield Problem(Rule.BAD_SETTING, str(error), hint)


def _graph_setting_problems() -> Iterator[Problem]:
    if conf.current().GRAPH_CHECKS is False:
        return
    from django_cqrs.graph.problems import graph_checks

    try:
        graph_checks()
    except ImproperlyConfigured as error:
        hint = 'Give True, or {"outside": [...], "intended_loops": [...]}.'
        yield Problem(Rule.BAD_SETTING, str(error), hint)


def _tenancy_problems(subject: Registry) -> Iterator[Problem]:
    """Yield the faults of ``TENANCY``, and what tenants would share without it."""
    try:
        policy = read_tenancy()
    except Fault as fault:
        yield Problem(Rule.BAD_TENANCY, str(fault), fault.hint)
        return
    if policy is None:
        yield from _shared_keys(subject)
    elif policy.databases is not None:
        yield from _competing_routers(subject, policy)


def _shared_keys(subject: Registry) -> Iterator[Problem]:
    """Yield handlers whose keys the tenants of django-tenants would share."""
    shared: Any = getattr(settings, "SHARED_APPS", ())
    if not apps.is_installed("django_tenants") or OUTBOX not in shared:
        return
    for endpoint in subject.routes.endpoints:
        if endpoint.policies.idempotency_key is not None:
            yield Problem(
                Rule.SHARED_KEYS,
                f"{endpoint.place} has idempotency_key=, and all tenants share the "
                "table of keys: a message of one tenant would get the answer of "
                "another's.",
                "Set DJANGO_CQRS['TENANCY'] = {'HEADER': 'tenant', 'SCHEMAS': True}.",
                endpoint.function,
            )


def _competing_routers(subject: Registry, policy: Tenancy) -> Iterator[Problem]:
    """Yield the routers that decide on a tenant's tables before TenantRouter does."""
    models = _models_of_tenants(subject, policy)
    for each in router.routers:
        if isinstance(each, TenantRouter):
            return
        for model in models:
            alias = None
            with suppress(Exception):  # of somebody's router
                alias = each.db_for_write(model)
            if alias is not None:
                path = f"{type(each).__module__}.{type(each).__qualname__}"
                yield Problem(
                    Rule.COMPETING_ROUTER,
                    f"The router {path} answers for {model._meta.label} before "
                    f"TenantRouter, so its rows are in {alias!r} for every tenant.",
                    f"Put {ROUTER!r} first in DATABASE_ROUTERS; name the apps that all "
                    "tenants share in TENANCY['SHARED'].",
                )
                break


def _models_of_tenants(subject: Registry, policy: Tenancy) -> list[type[Model]]:
    """Return the models of the outbox and of aggregates, except shared ones."""
    found = [
        model
        for app in apps.get_app_configs()
        if app.name.startswith(f"{TAG}.")
        for model in app.get_models()
    ]
    for endpoint in subject.routes.endpoints:
        owner: Any = endpoint.subject and endpoint.subject.owner
        is_model = isinstance(owner, type) and issubclass(owner, Model)
        if is_model and endpoint.policies.tenant is not False:
            found.append(owner)
    return [
        model
        for model in dict.fromkeys(found)
        if model._meta.app_label not in policy.shared
    ]


def _is_span(value: object) -> bool:
    """Return whether a value is a time for which rows can be kept."""
    try:
        return bool(as_timedelta(value, ""))
    except InvalidOption:
        return False


def _upcaster_problems(subject: Registry) -> Iterator[Problem]:
    """Yield upcasters for unknown names, and for future versions."""
    from django_cqrs.documents.names import named_documents

    named = {
        each: (own, cls)
        for cls, own in (*subject.routes.types.named_classes(), *named_documents())
        for each in (own.name, *own.aliases)
    }
    for name, version, function in declared_upcasters():
        if apps.get_containing_app_config(function.__module__) is None:
            continue
        place = f"{function.__module__}.{function.__qualname__}"
        if name not in named:
            near = difflib.get_close_matches(name, named, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Give the name of a class."
            yield Problem(
                Rule.USELESS_UPCASTER,
                f"{place} is the upcaster of {name!r}, but no class has that name or "
                "alias.",
                hint,
                function,
            )
            continue
        own, cls = named[name]
        if not 1 <= version < own.version:
            yield Problem(
                Rule.USELESS_UPCASTER,
                f"{place} is the upcaster of {name!r} from version {version}, but "
                f"{cls.__module__}.{cls.__qualname__} has version {own.version}, so "
                "nothing needs it.",
                f"Give the class version={version + 1}, or name the previous version.",
                function,
            )


def _payload_problems(subject: Registry) -> Iterator[Problem]:
    """Build the adapter of every payload that is stored, or may arrive as JSON."""
    table = subject.routes
    for endpoint in table.endpoints:
        wanted = endpoint.plan.payload
        if wanted is None or wanted.takes_anything:
            continue
        formless = list(_formless(endpoint, wanted, table.types))
        yield from formless
        if formless or not endpoint.keys:
            continue
        fault = wanted.fault
        if fault is not None:
            yield Problem(
                Rule.INCONVERTIBLE_PAYLOAD,
                f"{endpoint.place} takes {name_of_type(wanted.annotation)}, which "
                f"cannot be created from JSON or a dict: {fault}.",
                "Make it a dataclass or a pydantic model, or write a @converter; "
                "until then, only an instance can be sent by its key.",
                endpoint.function,
            )


def _formless(
    endpoint: Endpoint, wanted: PayloadType, types: Iterable[type]
) -> Iterator[Problem]:
    """Yield the types taken by a channel's handler that no channel can store."""
    if endpoint.channel is None or endpoint.kind is Kind.QUERY:
        return
    classes = tuple(each for each in wanted.members if is_plain_class(each))
    stored: list[Any] = [each for each in types if issubclass(each, classes)]
    if not stored and endpoint.keys:
        stored = [wanted.annotation]
    for each in stored:
        fault = adapter_of(each).fault
        if fault is not None:
            yield Problem(
                Rule.FORMLESS_MESSAGE,
                f"{endpoint.place} has channel={endpoint.channel!r}, but no channel "
                f"can store {name_of_type(each)}: {fault}.",
                "Put a reference to it into the message, such as an id or a path, or "
                "write a @converter for its class. Import the names used in "
                "annotations at the top of the module.",
                endpoint.function,
            )
