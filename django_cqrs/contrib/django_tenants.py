"""
The schemas of django-tenants as tenants: ``TENANCY = {..., "SCHEMAS": True}``.

The header of a message has the name of the tenant's schema. The outbox is in the public
schema, so that one worker handles the messages of all tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpRequest

from django_cqrs.exceptions import UnknownTenant
from django_cqrs.pipeline.tenancy import tenancy

# By name: it has no types, and type checkers need not install it.
_utils: Any = import_module("django_tenants.utils")

SHARED = ("django_cqrs.outbox", "django_cqrs.schedules")
"""The apps whose rows workers look for in the public schema."""


class TenantSchemas:
    """Activates the schema of a tenant on the connection of the running thread."""

    def __init__(self) -> None:
        """
        Check that the project has one outbox, in the public schema.

        Raises:
            ImproperlyConfigured: django-tenants is not installed, or each tenant would
                have rows of its own, which no worker looks at.

        """
        if not apps.is_installed("django_tenants"):
            msg = "'django_tenants' is not in INSTALLED_APPS."
            raise ImproperlyConfigured(msg)
        of_tenants: Any = getattr(settings, "TENANT_APPS", ())
        for app in SHARED:
            if app in of_tenants:
                what = "messages" if app == SHARED[0] else "schedules"
                msg = (
                    f"{app!r} is in TENANT_APPS, so {what} would wait where no worker "
                    "looks. Move it to SHARED_APPS."
                )
                raise ImproperlyConfigured(msg)

    def activate(self, name: str | None) -> Callable[[], object] | None:
        """
        Activate the schema of a tenant, or the public one.

        Args:
            name: the name of the schema; None for the public one.

        Returns:
            A function that restores the schema of before; None if the wanted one was
            active.

        Raises:
            UnknownTenant: no tenant has a schema of this name.

        """
        connection: Any = connections[_utils.get_tenant_database_alias()]
        public = _utils.get_public_schema_name()
        if connection.schema_name == (name or public):
            return None
        before = connection.tenant
        connection.set_schema_to_public()  # which has the tenants
        if name is not None and name != public:
            try:
                connection.set_tenant(_tenant_of(name))
            except BaseException:
                connection.set_tenant(before)
                raise
        return partial(connection.set_tenant, before)

    def active_name(self) -> str | None:
        """Return the name of the active schema, None for the public one."""
        connection: Any = connections[_utils.get_tenant_database_alias()]
        name: str = connection.schema_name
        return None if name == _utils.get_public_schema_name() else name

    def names(self) -> Iterable[str]:
        """Return the names of all schemas but the public one."""
        undo = self.activate(None)
        try:
            rows = _utils.get_tenant_model()._default_manager.using(
                _utils.get_tenant_database_alias()
            )
            names = rows.exclude(schema_name=_utils.get_public_schema_name())
            return list(names.values_list("schema_name", flat=True))
        finally:
            if undo is not None:
                undo()


def _tenant_of(name: str) -> Any:
    """
    Return the tenant with a schema.

    It is asked for each message: that of a tenant who has left must not be handled.

    Raises:
        UnknownTenant: there is none.

    """
    model = _utils.get_tenant_model()
    rows = model._default_manager.using(_utils.get_tenant_database_alias())
    found = rows.filter(schema_name=name).first()
    if found is None:
        msg = (
            f"Tenant {name!r} is not known: no {model._meta.label} has this "
            "schema_name. Nothing was opened."
        )
        raise UnknownTenant(msg)
    return found


def headers_of(request: HttpRequest) -> dict[str, str]:
    """
    Return the header of a request's tenant: for ``REQUEST_HEADERS``.

    A request to the public schema has none: its messages are for handlers with
    ``tenant=False``.
    """
    policy, found = tenancy(), getattr(request, "tenant", None)
    name = None if found is None else found.schema_name
    if policy is None or name in (None, _utils.get_public_schema_name()):
        return {}
    return {policy.header: name}
