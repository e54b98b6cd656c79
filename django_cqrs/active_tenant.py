"""The tenant whose data the running code works on: a context variable."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, NamedTuple

from django.db import DEFAULT_DB_ALIAS


class ActiveTenant(NamedTuple):
    """A tenant that is active, or the part that all tenants share."""

    name: str | None
    """The name of the tenant; None for the shared part."""
    using: str | None
    """The alias of the tenant's database; None if the project has no such databases."""
    handled: str | None
    """The tenant of the message being handled: no other one may become active."""


active: Final[ContextVar[ActiveTenant | None]] = ContextVar(
    "django_cqrs_tenant", default=None
)
"""The active tenant; None if nothing has chosen a tenant or the shared part."""


def active_name() -> str | None:
    """Return the name of the active tenant; None without one."""
    tenant = active.get()
    return None if tenant is None else tenant.name


def default_alias() -> str:
    """Return the alias of the active tenant's database, else ``"default"``."""
    tenant = active.get()
    return (tenant is not None and tenant.using) or DEFAULT_DB_ALIAS
