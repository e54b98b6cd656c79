"""
Tenants: whose data a message is about, and where that data is.

``DJANGO_CQRS["TENANCY"]`` names the header of messages that holds the tenant, and says
which database, or that each tenant has a schema of django-tenants.
"""

from __future__ import annotations

from django_cqrs.active_tenant import active_name
from django_cqrs.pipeline.tenancy import CurrentTenant, TenantRouter, tenancy, tenant
from django_cqrs.signals import tenant_activated, tenant_deactivated

__all__ = [
    "CurrentTenant",
    "TenantRouter",
    "all_tenants",
    "current_tenant",
    "tenant",
    "tenant_activated",
    "tenant_deactivated",
]


def current_tenant() -> str | None:
    """Return the name of the active tenant; None for the shared part, or outside."""
    return active_name()


def all_tenants() -> list[str]:
    """
    Return the names of all tenants, for work that is done for each of them.

    It asks each time, so a new tenant is among them.

    Raises:
        django.core.exceptions.ImproperlyConfigured: the settings do not say which
            tenants there are.

    """
    policy = tenancy()
    return [] if policy is None else policy.names()
