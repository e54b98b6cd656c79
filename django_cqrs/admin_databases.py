"""Admin lists of a table that several databases may have: one of them is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import Error, OperationalError, ProgrammingError, connections, router
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext_lazy as _

from django_cqrs.exceptions import UnknownTenant
from django_cqrs.pipeline.tenancy import tenancy, tenant_of_request

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object

DATABASE: Final = "database"
"""The parameter of an address that names a database."""


def databases_of(model: type[Model]) -> list[str]:
    """Return the aliases of the databases that may have a table, for this request."""
    own = _database_of_tenant()
    aliases = connections if own is None else (own,)
    return [alias for alias in aliases if router.allow_migrate_model(alias, model)]


def _database_of_tenant() -> str | None:
    """
    Return the database of the tenant that a request is for; None if it is for all.

    Raises:
        PermissionDenied: the tenant is not known.

    """
    policy = tenancy()
    try:
        name = tenant_of_request()
        return None if policy is None or name is None else policy.alias_of(name)
    except UnknownTenant as error:
        raise PermissionDenied(str(error)) from error


def database_of(request: HttpRequest, model: type[Model]) -> str:
    """
    Return the database that an address names, itself or in its list's filter.

    Args:
        request: the request with the address.
        model: the model of the table.

    Returns:
        Its alias; empty if none is named, or one without such a table. A request of a
        tenant with a database of its own gets that one.

    Raises:
        PermissionDenied: the request is of a tenant who is not known.

    """
    own = _database_of_tenant()
    if own is not None:
        return own
    behind = parse_qs(request.GET.get("_changelist_filters", ""))
    asked = request.GET.get(DATABASE) or behind.get(DATABASE, [""])[0]
    return asked if asked in databases_of(model) else ""


def with_database(address: str, database: str) -> str:
    """Return a page's address for a database; empty means the usual one."""
    if not address or not database:
        return address
    sign = "&" if "?" in address else "?"
    return f"{address}{sign}{urlencode({DATABASE: database})}"


class DatabaseFilter(admin.SimpleListFilter):
    """Selects the rows of one database: each has a table of its own."""

    title = _("database")
    parameter_name = DATABASE

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the databases that may have the table, if there are several."""
        self._usual = router.db_for_read(model_admin.model)
        found = databases_of(model_admin.model)
        return [(alias, alias) for alias in found] if len(found) > 1 else []

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Yield the databases, of which one is always chosen."""
        chosen = self.value() or self._usual
        for alias, title in self.lookup_choices:
            yield {
                "selected": alias == chosen,
                "query_string": changelist.get_query_string({DATABASE: alias}),
                "display": title,
            }

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the rows unchanged: the page reads those of the database."""
        return None


class ChosenDatabaseMixin(_ModelAdmin):
    """Reads the rows of the database that the address names."""

    missing_text: Any = _("The database %(alias)s has no table, or is unavailable.")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows of that database."""
        rows = super().get_queryset(request)
        asked = database_of(request, self.model)
        return rows.using(asked) if asked else rows

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list, or a notice if the database does not have one."""
        asked = database_of(request, self.model)
        context = {"cqrs_database": asked, **(extra_context or {})}
        try:
            return super().changelist_view(request, context)
        except Error as error:
            if not asked or not self.is_missing(error):
                raise
        text = self.missing_text % {"alias": asked}
        self.message_user(request, text, messages.WARNING)
        return HttpResponseRedirect(request.path)

    def is_missing(self, error: Error) -> bool:
        """Return whether a database does not have the table, or is unavailable."""
        return isinstance(error, (OperationalError, ProgrammingError))
