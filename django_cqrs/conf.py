"""Read ``settings.DJANGO_CQRS`` in one place: typed, lazily, reset when it changes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

NAME = "DJANGO_CQRS"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The keys of ``DJANGO_CQRS`` with their types and defaults."""

    CHANNELS: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Alias to ``{"BACKEND": path, "OPTIONS": {...}}``, as in CACHES and TASKS."""
    HANDLERS_MODULE: str = "handlers"
    """The module, or package, of each app with its handlers."""
    MESSAGES_MODULE: str = "messages"
    """The module of each app with its message classes."""
    SERVICE_RESOLVER: str | Callable[[type], Any] | None = None
    """A callable, or its path: from a class to an instance of it."""
    REQUEST_HEADERS: str | Callable[..., Mapping[str, Any]] | None = None
    """A callable, or its path: from an HTTP request to headers."""
    IDEMPOTENCY_WINDOW: timedelta | float = timedelta(days=7)
    """How long an ``idempotency_key`` is remembered, as a timedelta or in seconds."""
    RETRY: Any = None
    """The ``Retry`` of handlers whose channel has none, or a dict of its arguments."""
    INSTANT_RETRY: Any = None
    """The ``InstantRetry`` of the command bus, or a dict of its arguments."""
    JOURNAL: timedelta | float | None = None
    """How long the outcome of each message is kept; None disables the journal."""
    TASK_RESULTS: timedelta | float = timedelta(days=14)
    """How long the results of finished tasks are kept, likewise."""
    PROJECTION_BATCH: int = 500
    """The maximum number of events that a projection handles in one transaction."""
    SERVICES: Mapping[str | type, str | type] = dataclasses.field(default_factory=dict)
    """The classes, or their paths, that are used in place of interfaces."""
    GRAPH_CHECKS: bool | Mapping[str, Any] = False
    """Whether checks look for messages without a sender or a handler, and for loops."""
    TENANCY: Mapping[str, Any] | None = None
    """The header that names the tenant of a message, and its database or schema."""


KEYS = tuple(field.name for field in dataclasses.fields(Settings))


def configured() -> dict[str, Any]:
    """
    Return ``settings.DJANGO_CQRS`` unchanged, including unknown keys.

    Raises:
        ImproperlyConfigured: it is not a dictionary.

    """
    value = getattr(django_settings, NAME, {})
    if not isinstance(value, dict):
        msg = f"settings.{NAME} must be a dictionary, not {type(value).__name__}."
        raise ImproperlyConfigured(msg)
    return value


@functools.cache
def current() -> Settings:
    """Return the present settings. A check reports unknown keys."""
    given = configured()
    return Settings(**{key: given[key] for key in KEYS if key in given})


def resolve(key: str) -> Any:
    """
    Return the callable in a setting, given as itself or as a path, or None.

    Raises:
        ImproperlyConfigured: the path cannot be imported, or is not callable.

    """
    value = getattr(current(), key)
    if isinstance(value, str):
        try:
            value = import_string(value)
        except ImportError as error:
            msg = f"{NAME}[{key!r}] = {value!r} cannot be imported: {error}."
            raise ImproperlyConfigured(msg) from error
    if value is not None and not callable(value):
        msg = f"{NAME}[{key!r}] must be a callable or its dotted path."
        raise ImproperlyConfigured(msg)
    return value


@functools.cache
def _services() -> Mapping[type, type]:
    given = current().SERVICES
    if not isinstance(given, Mapping):
        msg = f"{NAME}['SERVICES'] = {given!r} is not a dictionary."
        raise ImproperlyConfigured(msg)
    return {_class_of(one): _class_of(other) for one, other in given.items()}


def _class_of(named: object) -> type:
    found = named
    if isinstance(named, str):
        try:
            found = import_string(named)
        except ImportError as error:
            msg = f"{NAME}['SERVICES']: {named!r} cannot be imported: {error}."
            raise ImproperlyConfigured(msg) from error
    if not isinstance(found, type):
        msg = f"{NAME}['SERVICES']: {named!r} is not a class, nor the path of one."
        raise ImproperlyConfigured(msg)
    return found


def implementation_of(cls: type) -> type:
    """
    Return the class that ``SERVICES`` has for a class; by default the class itself.

    Raises:
        ImproperlyConfigured: the setting does not name a class.

    """
    return _services().get(cls, cls)


def _reset(*, setting: str, **_kwargs: Any) -> None:
    if setting == NAME:
        current.cache_clear()
        _services.cache_clear()


setting_changed.connect(_reset, dispatch_uid="django_cqrs.conf")
