"""The journal in the admin."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import DatabaseFilter
from django_cqrs.admin_lists import BoundedPaginator, ReadOnly, TypedModelAdmin
from django_cqrs.admin_lookups import OfferedLookupsMixin
from django_cqrs.outbox.admin.filters import (
    NewestEndpointFilter,
    NewestOutcomeFilter,
    TenantFilter,
)
from django_cqrs.outbox.admin.graph_page import urls_of
from django_cqrs.outbox.admin.stored_messages import OutboxDatabaseMixin
from django_cqrs.outbox.admin.timeline_pages import BY_ID, CorrelationMixin
from django_cqrs.outbox.models import JournalEntry


@admin.register(JournalEntry)
class JournalEntryAdmin(
    ReadOnly,
    OfferedLookupsMixin,
    OutboxDatabaseMixin,
    CorrelationMixin,
    TypedModelAdmin,
):
    """Outcomes of messages: the way to the timeline of a message without a row."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    ordering = ("-pk",)
    sortable_by = ()
    list_display = ("at", "name", "endpoint", "outcome", "attempts", "error", "story")
    list_filter = (
        *(DatabaseFilter, TenantFilter),
        *(NewestOutcomeFilter, NewestEndpointFilter),
    )
    search_fields = ("correlation_id",)
    search_help_text = _("A correlation id (exact matches only).")
    fields = (
        *("at", "kind", "name", "endpoint", "channel", "outcome", "attempts"),
        *("duration", "exception", "error"),
        *("message_id", "correlation_id", "causation_id"),
    )
    change_list_template = "admin/django_cqrs_outbox/change_list.html"

    class Media:
        """The files that the pages need beside the admin's own."""

        css: ClassVar[dict[str, tuple[str, ...]]] = {
            "all": ("django_cqrs_outbox/desk.css",)
        }

    def get_urls(self) -> list[URLPattern]:
        """Add the page of the message graph."""
        return [*urls_of(self), *super().get_urls()]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for exact ids."""
        if not search_term.strip():
            return queryset, False
        try:
            wanted = UUID(search_term.strip())
        except ValueError:
            return queryset.none(), False
        return queryset.filter(correlation_id=wanted), False

    @admin.display(description=_("timeline"))
    def story(self, obj: JournalEntry) -> str:
        """Return a link to the entry's timeline."""
        # A user who sees the list may see the page.
        address = reverse(
            f"admin:{BY_ID}",
            args=(obj.correlation_id,),
            current_app=self.admin_site.name,
        )
        label = gettext("Timeline of %(name)s") % {"name": obj}
        return format_html(
            '<a href="{}" aria-label="{}">{}</a>', address, label, gettext("Timeline")
        )
