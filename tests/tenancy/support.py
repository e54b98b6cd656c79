"""Two tenants, each with a database of its own; the shared part is in the first one."""

from __future__ import annotations

from django.test import override_settings

from tests.settings import DJANGO_CQRS

DATABASES = {"acme": "default", "globex": "other"}
ROUTER = "django_cqrs.tenancy.TenantRouter"


def with_tenancy(databases=None, *, also=None, routers=(ROUTER,), **keys):
    """Return a block, or a decorator, with the setting TENANCY."""
    tenancy = {"HEADER": "tenant", "DATABASES": databases or DATABASES, **keys}
    return override_settings(
        DJANGO_CQRS={**DJANGO_CQRS, **(also or {}), "TENANCY": tenancy},
        DATABASE_ROUTERS=list(routers),
    )
