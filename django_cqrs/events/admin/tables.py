"""Shared parts of the pages for events: bounded lists of a chosen database."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.db import router
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import (
    ChosenDatabaseMixin,
    database_of,
    with_database,
)
from django_cqrs.admin_lists import BoundedPaginator, ReadOnly, TypedModelAdmin
from django_cqrs.admin_lookups import OfferedLookupsMixin
from django_cqrs.buses.registries import Registry
from django_cqrs.events.operations import Projections
from django_cqrs.pipeline.tenancy import (
    shares_its_database,
    tenancy,
    tenant_of_request,
)


class EventsAdmin(ReadOnly, OfferedLookupsMixin, ChosenDatabaseMixin, TypedModelAdmin):
    """Shared by the tables of events: their rows are viewed, not edited."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    sortable_by = ()
    missing_text = _("The database %(alias)s has no events, or is unavailable.")
    change_list_template = "admin/django_cqrs_events/change_list.html"

    class Media:
        """The files that the pages need beside the admin's own."""

        css: ClassVar[dict[str, tuple[str, ...]]] = {
            "all": ("django_cqrs_events/events.css",)
        }

    def has_view_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Return whether the user may see the rows, which name no tenant."""
        return super().has_view_permission(request, obj) and not self._is_shared(
            request
        )

    def _is_shared(self, request: HttpRequest) -> bool:
        """Return whether the rows belong to other tenants than that of the request."""
        policy, tenant = tenancy(), tenant_of_request()
        if policy is None or tenant is None:
            return False
        if policy.schemas is not None and self.opts.app_label not in policy.shared:
            return False
        return shares_its_database(policy, tenant, self.using(request))

    def using(self, request: HttpRequest) -> str:
        """Return the database that the request is for."""
        asked: str = database_of(request, self.model)
        alias: str = asked or router.db_for_write(self.model)
        return alias

    def registry_of(self, request: HttpRequest) -> Registry:
        """Return the registry with the classes of the events."""
        return Projections(self.using(request)).registry

    def may_view(self, request: HttpRequest, model: type[Model]) -> bool:
        """Return whether the user may see the rows of a table of this app."""
        if not self.admin_site.is_registered(model):
            return False
        return self.admin_site.get_model_admin(model).has_view_permission(request)

    def address(
        self,
        request: HttpRequest,
        page: str,
        *arguments: Any,
        model: type[Model] | None = None,
        **query: Any,
    ) -> str:
        """
        Return the address of a page, for the database of the request.

        Args:
            request: the user's request.
            page: the end of its name, such as ``"change"``.
            arguments: those of the address.
            model: whose page it is, by default this one's.
            query: the parameters of the address; empty ones are left out.

        """
        opts = (model or self.model)._meta
        name = f"admin:{opts.app_label}_{opts.model_name}_{page}"
        found = reverse(name, args=arguments, current_app=self.admin_site.name)
        given = {key: value for key, value in query.items() if value not in ("", None)}
        if given:
            found = f"{found}?{urlencode(given)}"
        return with_database(found, database_of(request, self.model))

    def gone(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Return to the list, and say that a row does not exist."""
        text = gettext("There is no %(name)s %(id)s.")
        values = {"name": self.opts.verbose_name, "id": object_id}
        self.message_user(request, text % values, messages.WARNING)
        return HttpResponseRedirect(self.address(request, "changelist"))

    def page(
        self, request: HttpRequest, template: str, context: dict[str, Any]
    ) -> HttpResponse:
        """Return a page of this app."""
        site: Any = request
        site.current_app = self.admin_site.name
        whole = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "database": database_of(request, self.model),
            **context,
        }
        return TemplateResponse(request, f"admin/django_cqrs_events/{template}", whole)


def link_to(address: str, text: Any) -> str:
    """Return a link as HTML; the text alone if there is no address."""
    return format_html('<a href="{}">{}</a>', address, text) if address else str(text)
