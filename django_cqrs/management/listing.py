"""The routes of a registry as rows, for ``cqrs_routes``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS

from django_cqrs.active_tenant import active_name, default_alias
from django_cqrs.annotations import name_of_type, path_of
from django_cqrs.buses.registries import Registry
from django_cqrs.channels.channel import as_timedelta
from django_cqrs.declaration.declarations import Kind, role_of
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import InvalidOption
from django_cqrs.modelling.interfaces.implementing import (
    Method,
    implement,
    interfaces_of,
    methods_of,
)
from django_cqrs.pipeline.tenancy import have_databases
from django_cqrs.problems import Rule
from django_cqrs.retries import DEADLOCKS
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.table import RouteTable

SENDERS = "sender's"
NONE = "none"
TENANTS = "tenant's"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetryRow:
    """A policy for messages whose handling failed."""

    attempts: int
    delay: float
    factor: float
    cap: float
    jitter: bool
    on: tuple[str, ...]
    """The exceptions to retry, or the function that decides."""
    final_failure: str
    source: str
    """Its source: ``handler``, ``channel``, ``project`` or ``default``."""

    def __str__(self) -> str:
        """Return the attempts and the first delay, for a table."""
        if self.attempts == 1:
            return "1 attempt"
        return f"{self.attempts} attempts from {self.delay:g} s"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRow:
    """One route to one endpoint."""

    kind: str
    message: str
    """The class's name or the routing key, as written in code."""
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
    """The alias of the channel that its messages wait in; None means called at once."""
    transaction: str
    """A database alias, ``none``, or ``sender's`` for a handler of events."""
    priority: int
    interceptors: tuple[str, ...]
    """The handler's interceptors, outermost first: ``around billing.audit``."""
    object: str | None
    """The dotted path of the aggregate or saga that has the method, if any."""
    is_factory: bool
    """Whether it creates such an object, instead of being called on one."""
    output: str | None
    """The routing key of the command for its result; several with commas."""
    retry: RetryRow | None
    """The policy for messages whose handling failed, on a channel that has one."""
    delay: float | str | None
    """The minimum time in the channel, in seconds."""
    ordering_key: str | None
    """The source of the key whose messages are handled one at a time."""
    idempotency_key: str | None
    """The source of the key that identifies duplicates."""
    on_dead: str | None
    """The address that is told if a message is given up."""
    problem: str | None
    """The id of the failed check, None if the route works."""

    @property
    def keys(self) -> str:
        """The sources of both keys, for a table."""
        found = (("ordered by", self.ordering_key), ("once per", self.idempotency_key))
        return ", ".join(f"{what} {key}" for what, key in found if key is not None)

    @property
    def short_handler(self) -> str:
        """The function's name without its module."""
        return self.handler.removeprefix(f"{self.module}.")

    @property
    def where(self) -> str:
        """The file and the line, in the form that editors and terminals open."""
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceRow:
    """One method of a business interface, and its route."""

    method: str
    """The dotted path of the method."""
    kind: str
    """``command``, ``query``, ``event``, ``sql``, or ``?`` without a route."""
    message: str
    """The class's name or the routing key; the database alias for SQL."""
    handlers: tuple[str, ...]
    """The dotted paths of the handlers."""
    app: str | None
    """The label of the app that holds the interface."""
    problem: str | None
    """The id of the failed check, None if the method works."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionRow:
    """One route of stored events to a handler of a projection."""

    projection: str
    kind: str
    """``event``."""
    message: str
    """The class's name, or the name or the pattern of stored events."""
    message_class: str | None
    """The dotted path of the class; None for a name."""
    by: str
    """``class``, ``key`` or ``pattern``."""
    handler: str
    """The dotted path of the method, or of the function."""
    module: str
    app: str | None
    """The label of the app that the projection belongs to."""
    file: str
    line: int
    runs: str
    """``inline``, ``following`` or ``on demand``."""
    channel: str | None
    """The alias of the channel whose worker runs it."""
    priority: int
    """That of the projection: inline ones with a higher priority are called earlier."""
    views: tuple[str, ...]
    """The labels of the models that it alone writes."""
    problem: str | None
    """The id of the failed check, None if the route works."""

    @property
    def short_handler(self) -> str:
        """The handler's name without its module."""
        return self.handler.removeprefix(f"{self.module}.")

    @property
    def where(self) -> str:
        """The file and the line, in the form that editors and terminals open."""
        return f"{self.file}:{self.line}"

    @property
    def run_by(self) -> str:
        """The channel whose worker runs it, or ``runs``, for a table."""
        return self.channel or self.runs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The wanted rows; None means all."""

    app: str | None = None
    bus: str | None = None
    message: str | None = None

    def keeps(self, each: EndpointRow | InterfaceRow | ProjectionRow) -> bool:
        """Return whether a row, or a method of a business interface, is wanted."""
        return (
            (self.app is None or each.app == self.app)
            and (self.bus is None or each.kind == self.bus)
            and (self.message is None or fnmatchcase(each.message, self.message))
        )


def rows_of(registry: Registry) -> list[EndpointRow]:
    """
    Return every route, commands first, then queries, then events in order.

    Those of projections are left out: they subscribe to nothing.
    """
    table = registry.routes
    rows = [
        row
        for endpoint in table.endpoints
        if not endpoint.is_fed
        for row in _rows(registry, endpoint)
    ]
    kinds = list(Kind)

    def order(row: EndpointRow) -> tuple[int, str, int]:
        return kinds.index(Kind(row.kind)), row.message.lower(), -row.priority

    return sorted(rows, key=order)


def interface_rows(registry: Registry) -> list[InterfaceRow]:
    """Return the methods of all business interfaces, with their routes."""
    faces = [
        _interface_row(method, registry.routes)
        for cls in interfaces_of(registry)
        for method in methods_of(implement(cls, registry=registry))
    ]
    return sorted(faces, key=lambda face: face.method.rpartition(".")[0])


def _interface_row(method: Method, table: RouteTable) -> InterfaceRow:
    problem = next(method.problems(table), None)
    kind, message = "?", "?"
    handlers: tuple[str, ...] = ()
    if method.statement is not None:
        kind, message = "sql", method.statement.using or _usual_database()
    elif problem is None or problem.rule is not Rule.UNREADABLE_SIGNATURE:
        route = method.route(table)
        if route is not None:
            kind, message = str(route.kind), route.key or route.said
            handlers = tuple(endpoint.place for endpoint in route.endpoints)
    config = apps.get_containing_app_config(method.owner.__module__)
    return InterfaceRow(
        method=method.place,
        kind=kind,
        message=message,
        handlers=handlers,
        app=config.label if config else None,
        problem=problem.rule.id if problem else None,
    )


def projection_rows(registry: Registry) -> list[ProjectionRow]:
    """Return the routes of stored events to projections, in order of registration."""
    table = registry.routes
    return [
        row
        for owner in table.fed_owners
        for endpoint in table.fed(owner)
        for row in _projection_rows(registry, endpoint)
    ]


def _projection_rows(registry: Registry, endpoint: Endpoint) -> Iterator[ProjectionRow]:
    problem = registry.routes.problem_of(endpoint)
    file, line = place(endpoint)
    options = projection_options(endpoint)
    for message, message_class, by in _messages_of(endpoint):
        yield ProjectionRow(
            projection=options.name,
            kind=str(endpoint.kind),
            message=message,
            message_class=message_class,
            by=by,
            handler=endpoint.place,
            module=endpoint.function.__module__,
            app=endpoint.app,
            file=file,
            line=line,
            runs=runs_of(endpoint),
            channel=options.channel,
            priority=options.priority,
            views=tuple(map(_view_text, options.views)),
            problem=problem.rule.id if problem else None,
        )


def projection_options(endpoint: Endpoint) -> Any:
    """Return the declaration of the projection that has a handler."""
    # Its app may not be installed, and then cannot be imported.
    return getattr(role_of(endpoint.owner), "options", None)


def runs_of(endpoint: Endpoint) -> str:
    """Return the mode of a projection: inline, following or on demand."""
    options = projection_options(endpoint)
    if options.on_demand:
        return "on demand"
    return "inline" if options.is_inline else "following"


def _view_text(view: Any) -> str:
    """Return the label of a model, or the text of a collection of documents."""
    label: str = view._meta.label if hasattr(view, "_meta") else repr(view)
    return label


def _messages_of(endpoint: Endpoint) -> list[tuple[str, str | None, str]]:
    """Return the routes of an endpoint: a name, the path of a class, and its kind."""
    routes: list[tuple[str, str | None, str]] = [
        (name_of_type(cls), path_of(cls), "class") for cls in endpoint.classes
    ]
    for key in endpoint.keys:
        is_pattern = endpoint.kind is Kind.EVENT and any(sign in key for sign in "*?[")
        routes.append((key, None, "pattern" if is_pattern else "key"))
    return routes or [("?", None, "class")]


def _rows(registry: Registry, endpoint: Endpoint) -> Iterator[EndpointRow]:
    problem = registry.routes.problem_of(endpoint)
    file, line = place(endpoint)
    for message, message_class, by in _messages_of(endpoint):
        yield EndpointRow(
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
            object=path_of(endpoint.subject.owner) if endpoint.subject else None,
            is_factory=endpoint.subject is not None and endpoint.is_factory,
            output=", ".join(endpoint.policies.outputs) or None,
            retry=retry_row(endpoint),
            delay=delay_of(endpoint),
            ordering_key=source_text(endpoint.policies.ordering_key),
            idempotency_key=source_text(endpoint.policies.idempotency_key),
            on_dead=address_text(endpoint.policies.on_dead),
            problem=problem.rule.id if problem else None,
        )


def retry_row(endpoint: Endpoint) -> RetryRow | None:
    """Return the policy for an endpoint's messages; None at once, or without one."""
    try:
        source, retry = endpoint.sourced_retry
    except ImproperlyConfigured:  # a check reports it
        return None
    if retry is None or endpoint.channel is None:
        return None
    on = retry.on if isinstance(retry.on, tuple) else (retry.on,)
    return RetryRow(
        attempts=retry.attempts,
        delay=retry.delay,
        factor=retry.factor,
        cap=retry.cap,
        jitter=retry.jitter,
        on=tuple(map(_failure_text, on)),
        final_failure=retry.final_failure,
        source=str(source),
    )


def _failure_text(on: Any) -> str:
    if on is DEADLOCKS:
        return "DEADLOCKS"
    name = getattr(on, "__qualname__", None)
    if name is None:
        return repr(on)
    return name if on.__module__ == "builtins" else f"{on.__module__}.{name}"


def delay_of(endpoint: Endpoint) -> float | str | None:
    """Return the delay of an endpoint in seconds, or the path of its function."""
    delay = endpoint.policies.delay
    return source_text(delay) if callable(delay) else seconds(delay)


def seconds(span: timedelta | float | None) -> float | None:
    """Return a time span in seconds; None without one, or for an invalid value."""
    try:
        return None if span is None else as_timedelta(span, "").total_seconds()
    except InvalidOption:  # a check reports it
        return None


def address_text(on_dead: str | type | None) -> str | None:
    """Return the value of ``on_dead=``: a route, or the dotted path of a class."""
    return path_of(on_dead) if isinstance(on_dead, type) else on_dead


def source_text(source: Any) -> str | None:
    """Return the source of a key as it is written in code."""
    if source is None or isinstance(source, str):
        return source
    if isinstance(source, Header):
        return f"Header({source.name!r})"
    return getattr(source, "__qualname__", repr(source))


def interceptors_around(registry: Registry, endpoint: Endpoint) -> Iterator[str]:
    """Yield the kinds and paths of a handler's interceptors, outermost first."""
    for each in registry.interceptors_around(endpoint):
        yield f"{each.interception.when} {each.name}"


def transaction_of(endpoint: Endpoint) -> str:
    """Return an endpoint's transaction in one word."""
    if endpoint.kind is Kind.EVENT and endpoint.channel is None:
        return SENDERS
    if not endpoint.is_atomic:
        return NONE
    if endpoint.policies.using is None and endpoint.policies.tenant is not False:
        usual = _usual_database()
        return usual if usual == TENANTS else endpoint.alias or usual
    return endpoint.alias or DEFAULT_DB_ALIAS


def _usual_database() -> str:
    """Return the database of the active tenant; of others, the word for them."""
    has_tenants = False
    with suppress(ImproperlyConfigured):  # a check reports it
        has_tenants = have_databases()
    return TENANTS if has_tenants and active_name() is None else default_alias()


def place(endpoint: Endpoint) -> tuple[str, int]:
    """Return the file, relative to the current folder if it is inside, and the line."""
    path, line = endpoint.source
    return relative_path(path), line


def relative_path(path: str) -> str:
    """Return a path relative to the current folder if it is inside."""
    return _relative(path, str(Path.cwd()))


@lru_cache(maxsize=1000)
def _relative(path: str, folder: str) -> str:
    """Return a path relative to a folder, unchanged if it is not inside."""
    try:
        return str(Path(path).relative_to(folder))
    except ValueError:
        return path


def labels() -> list[str]:
    """Return the labels of the installed apps."""
    return sorted(config.label for config in apps.get_app_configs())


def as_dict(row: EndpointRow | InterfaceRow | ProjectionRow) -> dict[str, Any]:
    """Return a row as the object of the JSON listing."""
    return dataclasses.asdict(row)
