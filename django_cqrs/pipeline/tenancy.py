"""
Tenancy: one header names the tenant of a message, which has a database or a schema.

The settings are read when runs are compiled. Without ``TENANCY`` no run has anything of
this module in it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, Final, NewType, Protocol
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Model, QuerySet
from django.utils.module_loading import import_string

from django_cqrs import conf
from django_cqrs.active_tenant import ActiveTenant, active, active_name
from django_cqrs.annotations import sole_type, union_members
from django_cqrs.channels.channel import Envelope
from django_cqrs.declaration.key_sources import KeyReader, joined, storable_key
from django_cqrs.exceptions import (
    MessageConversionError,
    MissingTenant,
    TenantSwitch,
    UnknownTenant,
)
from django_cqrs.messages import (
    RESERVED_HEADERS,
    RESERVED_PREFIXES,
    HeaderValue,
    Message,
    current,
)
from django_cqrs.parameters.plan import PER_MESSAGE, Resolver
from django_cqrs.parameters.planner import register_filler
from django_cqrs.parameters.services import Services
from django_cqrs.pipeline.envelopes import decode_headers
from django_cqrs.routing.endpoint import Endpoint, Run
from django_cqrs.signals import tenant_activated, tenant_deactivated

KEY: Final = "TENANCY"

LONGEST_NAME: Final = 100
"""The maximum number of characters in a tenant's name: it is stored with messages."""

ROUTER: Final = "django_cqrs.tenancy.TenantRouter"

DJANGO_TENANTS: Final = "django_cqrs.contrib.django_tenants.TenantSchemas"
"""The schemas that ``"SCHEMAS": True`` means."""


class Schemas(Protocol):
    """The schemas of the tenants in one database."""

    def activate(self, name: str | None) -> Callable[[], object] | None:
        """
        Activate the schema of a tenant on this thread's connection.

        Args:
            name: the name of the tenant; None for the shared schema.

        Returns:
            A function that restores the schema of before; None if the wanted one was
            active.

        Raises:
            UnknownTenant: no tenant has this name.

        """
        ...

    def names(self) -> Iterable[str]:
        """Return the names of all tenants."""
        ...

    def active_name(self) -> str | None:
        """Return the name of the active tenant, None for the shared schema."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    """The setting ``TENANCY``."""

    header: str
    databases: Callable[[str], Any] | None = None
    """Returns the alias of a tenant's database."""
    schemas: Schemas | None = None
    listed: Callable[[], Iterable[Any]] | None = None
    """Returns the names of all tenants, if the project says how."""
    shared: frozenset[str] = frozenset()
    """The labels of the apps whose models are in the shared database."""

    def name_in(self, headers: Mapping[str, HeaderValue]) -> str | None:
        """
        Return the name of the tenant in the headers of a message, if it is there.

        Raises:
            UnknownTenant: no tenant can have this name.

        """
        value = headers.get(self.header)
        if type(value) is str and 0 < len(value) <= LONGEST_NAME:
            return value
        return None if value is None else checked_name(value)

    def alias_of(self, name: str) -> str | None:
        """
        Return the alias of a tenant's database; None if tenants have schemas.

        Raises:
            UnknownTenant: no tenant has this name, or its alias is not in `DATABASES`.

        """
        if self.databases is None:
            return None
        try:
            alias = self.databases(name)
        except LookupError as error:
            raise _unknown(name) from error
        if alias is None:
            raise _unknown(name)
        if alias not in connections.settings:
            msg = (
                f"Tenant {name!r} has the database {alias!r}, which is not in "
                "DATABASES. Nothing was opened. Add it there."
            )
            raise UnknownTenant(msg)
        return str(alias)

    def names(self) -> list[str]:
        """
        Return the names of all tenants.

        Raises:
            ImproperlyConfigured: the project does not say which tenants there are.

        """
        self.ensure_listed()
        if self.listed is not None:
            return [checked_name(each) for each in self.listed()]
        assert self.schemas is not None  # noqa: S101 - for the type checker
        return list(self.schemas.names())

    def ensure_listed(self) -> None:
        """
        Refuse what needs to know which tenants there are; ask none of them.

        Raises:
            ImproperlyConfigured: the project does not say it.

        """
        if self.listed is None and self.schemas is None:
            msg = (
                f"{conf.NAME}[{KEY!r}] does not say which tenants there are, since "
                "DATABASES is a callable. Add 'TENANTS': a callable, or the path of "
                "one, that returns their names."
            )
            raise ImproperlyConfigured(msg)

    def aliases(self) -> list[str]:
        """
        Return the aliases of the databases of all tenants, each one once.

        A tenant whose database is not known is left out.

        Raises:
            ImproperlyConfigured: the project does not say which tenants there are.

        """
        found: dict[str, None] = {}
        for name in self.names():
            try:
                alias = self.alias_of(name)
            except UnknownTenant:
                continue
            found[alias or DEFAULT_DB_ALIAS] = None
        return list(found)

    def aliases_of_outboxes(self) -> list[str]:
        """
        Return the aliases of the shared database and of those of all tenants.

        Schemas have one outbox, so tenants are not asked for.

        Raises:
            ImproperlyConfigured: the project does not say which tenants there are.

        """
        if self.databases is None:
            return [DEFAULT_DB_ALIAS]
        return list(dict.fromkeys([DEFAULT_DB_ALIAS, *self.aliases()]))

    # Messages -----------------------------------------------------------------------

    def state_for(
        self, endpoint: Endpoint, headers: Mapping[str, HeaderValue]
    ) -> ActiveTenant:
        """
        Return the tenant to be active while an endpoint handles a message.

        Args:
            endpoint: the handler.
            headers: the headers of the message.

        Raises:
            MissingTenant: the message has no tenant, and its handler needs one.
            TenantSwitch: a message of another tenant is being handled.
            UnknownTenant: no tenant has its name.

        """
        __traceback_hide__ = True
        name = self.name_in(headers)
        around = active.get()
        handled = None if around is None else around.handled
        if handled is not None and name is not None and name != handled:
            raise _switched(f"{endpoint.name} was not called", name, handled)
        if endpoint.policies.tenant is False:
            return ActiveTenant(None, None, name or handled)
        if name is None and not endpoint.is_declared:  # a task of Django's
            return ActiveTenant(None, None, handled)
        if name is None:
            raise self._missing(endpoint)
        return ActiveTenant(name, self.alias_of(name), name)

    def alias_for(
        self, endpoint: Endpoint, headers: Mapping[str, HeaderValue]
    ) -> str | None:
        """
        Return the alias of the database in which an endpoint handles a message.

        Args:
            endpoint: the handler.
            headers: the headers of the message.

        Returns:
            None if the headers do not decide on it.

        Raises:
            MissingTenant: as for :meth:`state_for`, and so are the others.
            TenantSwitch: likewise.
            UnknownTenant: likewise.

        """
        __traceback_hide__ = True
        if self.databases is None:
            return None
        if endpoint.policies.using is not None:
            return endpoint.policies.using
        state = self.state_for(endpoint, headers)
        if state.name is None and not endpoint.is_declared:
            return None
        if endpoint.subject is None:
            return state.using or DEFAULT_DB_ALIAS
        before = active.get()
        active.set(state)
        try:
            return endpoint.subject.write_alias()
        finally:
            active.set(before)

    def around(self, run: Run, endpoint: Endpoint) -> Run:
        """Return `run` with the tenant of its message active."""
        header, state_for = self.header, self.state_for
        schemas = self.schemas
        is_shared = endpoint.policies.tenant is False
        # A database that is given by hand needs no tenant.
        is_optional = schemas is None and not is_shared
        has_database = endpoint.policies.using is not None

        def run_for_tenant(message: Message) -> Any:
            __traceback_hide__ = True
            headers, before = message._user, active.get()
            if is_optional:
                name = headers.get(header)
                if name is None:
                    if has_database or message._using is not None:
                        return run(message)
                elif before is not None and name == before.name == before.handled:
                    return run(message)
            state = state_for(endpoint, headers)
            undo = None if schemas is None else schemas.activate(state.name)
            if undo is None and state == before:
                return run(message)
            active.set(state)
            try:
                _tell(before, state)
                result: Any = run(message)
                if _is_unbound(result):  # it may be read when no tenant is active
                    result = result.using(result.db)
                return result
            finally:
                active.set(before)
                if undo is not None:
                    undo()
                _tell(state, before)

        return run_for_tenant

    def _missing(self, endpoint: Endpoint) -> MissingTenant:
        header = self.header
        return MissingTenant(
            f"{endpoint.name} was not called: its message has no header {header!r}, so "
            f"its tenant is not known. Give headers={{{header!r}: ...}}, send the "
            "message in a block `with tenant(...)`, or let REQUEST_HEADERS return the "
            "header. A handler for the part that all tenants share has tenant=False."
        )

    def keyed(self, read: KeyReader) -> KeyReader:
        """Return a reader of keys that no two tenants share."""

        def read_for_tenant(message: Message) -> str | None:
            __traceback_hide__ = True
            return self.key_of(message, read(message))

        return read_for_tenant

    def key_of(self, message: Message, key: str | None) -> str | None:
        """Return a key of a message's tenant; None stays None."""
        name = self.name_in(message._user)
        if key is None or name is None:
            return key
        return storable_key(joined((name, key)))

    def alias_of_call(self, place: str) -> str:
        """
        Return the alias of the database for a call that sends no message.

        Args:
            place: the dotted path of the called method, for errors.

        Raises:
            MissingTenant: nothing has chosen a tenant.
            UnknownTenant: no tenant has this name.

        """
        state = active.get()
        if state is not None or self.databases is None:
            return (state is not None and state.using) or DEFAULT_DB_ALIAS
        name = self.name_in(current.get()._user)
        if name is None:
            msg = (
                f"{place} was not called: no tenant is active, so its database is not "
                "known. Call it in a handler, or in a block `with tenant(...)`; give "
                "it using= for a database that all tenants share."
            )
            raise MissingTenant(msg)
        return self.alias_of(name) or DEFAULT_DB_ALIAS


def _is_unbound(result: Any) -> bool:
    """Return whether a result is a query whose database is chosen when it is read."""
    return isinstance(result, QuerySet) and vars(result).get("_db") is None


def shares_its_database(policy: Tenancy, name: str, using: str) -> bool:
    """
    Return whether a tenant shares a database with others, or may do so.

    Args:
        policy: the setting.
        name: the name of the tenant.
        using: the alias of its database.

    """
    if policy.databases is None:
        return True
    try:
        others = [each for each in policy.names() if each != name]
    except ImproperlyConfigured:  # nobody says which tenants there are
        return True
    return any(_alias_or_none(policy, each) == using for each in others)


def _alias_or_none(policy: Tenancy, name: str) -> str | None:
    try:
        return policy.alias_of(name)
    except UnknownTenant:
        return None


def tenant_in(headers: Mapping[str, HeaderValue]) -> str | None:
    """Return the name of the tenant in headers; None without one, or ``TENANCY``."""
    policy = tenancy()
    if policy is None:
        return None
    try:
        return policy.name_in(headers)
    except UnknownTenant:  # its handler reports it
        return None


def tenant_of(envelope: Envelope) -> str | None:
    """Return the name of the tenant whose message an envelope holds."""
    if envelope.tenant is not None or tenancy() is None:
        return envelope.tenant
    try:
        return tenant_in(decode_headers(envelope.headers))
    except MessageConversionError:  # its handling reports it
        return None


def tenant_of_request() -> str | None:
    """
    Return the tenant whose rows alone a page may show; None if it may show all.

    That is the tenant in the headers that messages of the request get, or that of the
    active schema.

    Raises:
        UnknownTenant: no tenant can have the name in the headers.

    """
    policy = tenancy()
    if policy is None:
        return None
    name = policy.name_in(current.get()._user)
    if name is None and policy.schemas is not None:
        return policy.schemas.active_name()
    return name


def have_databases() -> bool:
    """
    Return whether the settings give each tenant a database.

    Raises:
        ImproperlyConfigured: the setting cannot be used.

    """
    policy = tenancy()
    return policy is not None and policy.databases is not None


def is_of_tenants(endpoint: Endpoint) -> bool:
    """
    Return whether the tenant of a message decides on an endpoint's database.

    Raises:
        ImproperlyConfigured: the setting cannot be used.

    """
    return (
        have_databases()
        and endpoint.policies.using is None
        and endpoint.policies.tenant is not False
    )


def checked_name(value: object) -> str:
    """
    Return the name of a tenant as text.

    Raises:
        UnknownTenant: no tenant can have it.

    """
    is_name = isinstance(value, (str, int, UUID)) and not isinstance(value, bool)
    name = str(value) if is_name else ""
    if not name or len(name) > LONGEST_NAME or "\x00" in name:
        msg = (
            f"{value!r} cannot be the name of a tenant: that is a str, an int or a "
            f"UUID, of 1 to {LONGEST_NAME} characters."
        )
        raise UnknownTenant(msg)
    return name


def _unknown(name: str) -> UnknownTenant:
    return UnknownTenant(
        f"Tenant {name!r} is not known: {conf.NAME}[{KEY!r}]['DATABASES'] has no "
        "database for it. Nothing was opened."
    )


def _switched(what: str, name: str, handled: str) -> TenantSwitch:
    return TenantSwitch(
        f"{what}: its tenant is {name!r}, but a message of tenant {handled!r} is being "
        "handled. Send it where no message of a tenant is handled, such as in a "
        "handler with tenant=False whose message has no tenant."
    )


def _tell(before: ActiveTenant | None, after: ActiveTenant | None) -> None:
    """Send the signals of a change of the active tenant."""
    old = None if before is None else before.name
    new = None if after is None else after.name
    if old == new:
        return
    if before is not None and old is not None and tenant_deactivated.receivers:
        tenant_deactivated.send(Tenancy, tenant=old, using=before.using)
    if after is not None and new is not None and tenant_activated.receivers:
        tenant_activated.send(Tenancy, tenant=new, using=after.using)


@contextmanager
def tenant(name: str | int | UUID | None) -> Iterator[None]:
    """
    Make a tenant active inside a ``with`` block; messages sent in it are the tenant's.

    Blocks may be nested. It works in threads, tasks and event loops.

    Args:
        name: the name of the tenant; None for the part that all tenants share.

    Raises:
        django.core.exceptions.ImproperlyConfigured: the settings have no ``TENANCY``.
        UnknownTenant: no tenant has this name.
        TenantSwitch: a message of another tenant is being handled.

    """
    policy = tenancy()
    if policy is None:
        msg = f"tenant({name!r}) was called, but settings.{conf.NAME} has no {KEY!r}."
        raise ImproperlyConfigured(msg)
    text = None if name is None else checked_name(name)
    before, origin = active.get(), current.get()
    handled = None if before is None else before.handled
    if handled is not None and text not in (None, handled):
        assert text is not None  # noqa: S101 - for the type checker
        raise _switched(f"tenant({text!r}) was not entered", text, handled)
    state = ActiveTenant(text, text and policy.alias_of(text), handled)
    undo = None if policy.schemas is None else policy.schemas.activate(text)
    headers = {key: each for key, each in origin._user.items() if key != policy.header}
    if text is not None:
        headers[policy.header] = text
    around = origin.replace() if isinstance(origin, Message) else copy(origin)
    around._user = headers
    active.set(state)
    current.set(around)
    try:
        _tell(before, state)
        yield
    finally:
        current.set(origin)
        active.set(before)
        if undo is not None:
            undo()
        _tell(state, before)


# -------------------------------------------------------------------------- parameters


CurrentTenant = NewType("CurrentTenant", str)
"""
The name of the active tenant, as the type of a handler's parameter.

It is a plain text. A handler with ``tenant=False`` takes ``CurrentTenant | None`` and
gets None.
"""


def _tenant_filler(annotation: Any, _services: Services) -> Resolver | None:
    if sole_type(annotation) is not CurrentTenant:
        return None
    is_optional = type(None) in union_members(annotation)

    def get(_message: Message) -> str | None:
        name = active_name()
        if name is not None:
            return name
        if is_optional:
            return None
        msg = (
            "A handler takes CurrentTenant, but no tenant is active. Annotate the "
            "parameter with CurrentTenant | None if that is allowed, as in a handler "
            f"with tenant=False; settings.{conf.NAME} needs {KEY!r}."
        )
        raise MissingTenant(msg)

    setattr(get, PER_MESSAGE, True)
    return get


register_filler(_tenant_filler)


# ----------------------------------------------------------------------------- routing


class TenantRouter:
    """
    A database router that sends queries to the database of the active tenant.

    Put it into ``DATABASE_ROUTERS``. The models of the apps in
    ``TENANCY["SHARED"]`` stay in the database that all tenants share. An object that
    was loaded stays in its own database.
    """

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        """Return the alias of the active tenant's database, None without one."""
        return self._alias_of(model, hints.get("instance"))

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        """Return the alias of the active tenant's database, None without one."""
        return self._alias_of(model, hints.get("instance"))

    def _alias_of(self, model: type[Model], instance: Model | None) -> str | None:
        state = active.get()
        if state is None or state.using is None:
            return None
        if instance is not None and instance._state.db is not None:
            return None  # Django then uses that one
        policy = tenancy()
        if policy is not None and model._meta.app_label in policy.shared:
            return None
        return state.using


# ---------------------------------------------------------------------------- settings


class Fault(Exception):
    """A fault of the setting, and its fix."""

    def __init__(self, text: str, hint: str) -> None:
        """Take both as sentences."""
        super().__init__(text)
        self.hint = hint


_KEYS: Final = ("HEADER", "DATABASES", "SCHEMAS", "TENANTS", "SHARED")


@functools.cache
def tenancy() -> Tenancy | None:
    """
    Return the setting ``TENANCY``; None without it.

    Raises:
        ImproperlyConfigured: it cannot be used.

    """
    try:
        return read_tenancy()
    except Fault as fault:
        raise ImproperlyConfigured(f"{fault} {fault.hint}") from fault


def read_tenancy() -> Tenancy | None:
    """
    Read the setting ``TENANCY``.

    Raises:
        Fault: it cannot be used.

    """
    given = conf.current().TENANCY
    if given is None:
        return None
    setting = f"{conf.NAME}[{KEY!r}]"
    if not isinstance(given, Mapping):
        msg = f"{setting} = {given!r} is not a dictionary."
        raise Fault(msg, "Write {'HEADER': ..., 'DATABASES': ...}.")
    for key in given:
        if key not in _KEYS:
            msg = f"{setting} has no key {key!r}."
            raise Fault(msg, f"Its keys are {', '.join(_KEYS)}.")
    header = given.get("HEADER")
    if not _may_be_header(header):
        msg = f"{setting}['HEADER'] = {header!r} cannot be the name of a header."
        raise Fault(msg, "Name the header that says whose message it is: 'tenant'.")
    databases, schemas = given.get("DATABASES"), given.get("SCHEMAS")
    if (databases is None) == (not schemas):
        msg = f"{setting} needs either 'DATABASES' or 'SCHEMAS'."
        raise Fault(
            msg,
            "Give 'DATABASES': a dict from tenants to aliases or a callable, or "
            "'SCHEMAS': True for django-tenants.",
        )
    alias_of, listed = None, _callable(f"{setting}['TENANTS']", given.get("TENANTS"))
    if isinstance(databases, Mapping):
        known = _checked_databases(f"{setting}['DATABASES']", databases)
        alias_of = known.__getitem__
        listed = listed or known.keys
    elif databases is not None:
        alias_of = _callable(f"{setting}['DATABASES']", databases)
    if databases is not None and not any(
        isinstance(each, TenantRouter) for each in router.routers
    ):
        msg = (
            f"{setting} gives each tenant a database, but no router sends queries "
            "there: DATABASE_ROUTERS has no TenantRouter."
        )
        raise Fault(msg, f"Add {ROUTER!r} to DATABASE_ROUTERS.")
    return Tenancy(
        header=str(header),
        databases=alias_of,
        schemas=_schemas(setting, schemas) if schemas else None,
        listed=listed,
        shared=_labels(f"{setting}['SHARED']", given.get("SHARED", ())),
    )


def _may_be_header(name: object) -> bool:
    return (
        isinstance(name, str)
        and bool(name)
        and name not in RESERVED_HEADERS
        and name != "correlation_id"
        and not name.startswith(RESERVED_PREFIXES)
    )


def _checked_databases(setting: str, databases: Mapping[Any, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, alias in databases.items():
        try:
            text = checked_name(name)
        except UnknownTenant as error:
            raise Fault(f"{setting}: {error}", "Name each tenant by a text.") from error
        if alias not in connections.settings:
            msg = (
                f"{setting} gives tenant {name!r} the database {alias!r}, which is not "
                "in DATABASES."
            )
            raise Fault(
                msg, f"The aliases are {', '.join(sorted(connections.settings))}."
            )
        found[text] = alias
    return found


def _callable(setting: str, given: object) -> Callable[..., Any] | None:
    found = given
    if isinstance(found, str):
        try:
            found = import_string(found)
        except ImportError as error:
            msg = f"{setting} = {given!r} cannot be imported: {error}."
            raise Fault(msg, "Give a callable, or its dotted path.") from error
    if found is not None and not callable(found):
        msg = f"{setting} = {given!r} is not a callable."
        raise Fault(msg, "Give a callable, or its dotted path.")
    return found


def _schemas(setting: str, given: Any) -> Schemas:
    path = DJANGO_TENANTS if given is True else given
    try:
        made: Schemas = import_string(path)() if isinstance(path, str) else path()
    except (ImportError, ImproperlyConfigured, TypeError) as error:
        msg = f"{setting}['SCHEMAS'] = {given!r} cannot be used: {error}"
        raise Fault(msg, "Install django-tenants, and give True.") from error
    return made


def _labels(setting: str, given: Any) -> frozenset[str]:
    if isinstance(given, str) or not all(isinstance(each, str) for each in given):
        msg = f"{setting} = {given!r} is not a list of app labels."
        raise Fault(msg, "Write ['auth', 'billing'].")
    return frozenset(given)


def _reset(*, setting: str, **_kwargs: Any) -> None:
    if setting in (conf.NAME, "DATABASES", "DATABASE_ROUTERS"):
        tenancy.cache_clear()


setting_changed.connect(_reset, dispatch_uid="django_cqrs.tenancy")
