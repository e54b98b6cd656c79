"""The results of tasks in the admin."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import DatabaseFilter
from django_cqrs.admin_lists import BoundedPaginator, ReadOnly, TypedModelAdmin, as_text
from django_cqrs.admin_lookups import OfferedLookupsMixin
from django_cqrs.outbox.admin.filters import (
    NewestEndpointFilter,
    NewestStatusFilter,
    TenantFilter,
)
from django_cqrs.outbox.admin.stored_messages import OutboxDatabaseMixin
from django_cqrs.outbox.admin.timeline_pages import CorrelationMixin
from django_cqrs.outbox.models import StoredTaskResult


@admin.register(StoredTaskResult)
class StoredTaskResultAdmin(
    ReadOnly,
    OfferedLookupsMixin,
    OutboxDatabaseMixin,
    CorrelationMixin,
    TypedModelAdmin,
):
    """Results of tasks: they are viewed, and deleted when they expire."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    ordering = ("-pk",)
    sortable_by = ()
    list_display = ("endpoint", "status", "enqueued_at", "finished_at", "attempts")
    list_filter = (
        *(DatabaseFilter, TenantFilter),
        *(NewestStatusFilter, NewestEndpointFilter),
    )
    search_fields = ("id",)
    search_help_text = _("The id of a result (exact matches only).")
    fields = (
        *("id", "endpoint", "channel", "priority", "status", "attempts"),
        *("enqueued_at", "started_at", "last_attempted_at", "finished_at"),
        *("call_text", "value_text", "errors_text", "workers_text", "correlation_id"),
    )
    readonly_fields = (
        *("attempts", "call_text", "value_text", "errors_text", "workers_text"),
    )
    change_list_template = "admin/django_cqrs_outbox/change_list.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows without the columns that lists do not show."""
        wide = ("payload", "errors", "return_value")
        return super().get_queryset(request).defer(*wide)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for an exact id."""
        if not search_term.strip():
            return queryset, False
        try:
            wanted = UUID(search_term.strip())
        except ValueError:
            return queryset.none(), False
        return queryset.filter(pk=wanted), False

    @admin.display(description=_("attempts"))
    def attempts(self, obj: StoredTaskResult) -> int:
        """Return the number of attempts that have ended."""
        return len(json.loads(bytes(obj.worker_ids)))

    @admin.display(description=_("call"))
    def call_text(self, obj: StoredTaskResult) -> str:
        """Return the arguments, as JSON."""
        return as_text(_pretty(obj.payload))

    @admin.display(description=_("return value"))
    def value_text(self, obj: StoredTaskResult) -> str:
        """Return the return value as JSON, if there is one."""
        value = obj.return_value
        return "-" if value is None else as_text(_pretty(value))

    @admin.display(description=_("errors"))
    def errors_text(self, obj: StoredTaskResult) -> str:
        """Return the tracebacks of the attempts that failed, oldest first."""
        errors = json.loads(bytes(obj.errors))
        return as_text("\n".join(each["traceback"] for each in errors))

    @admin.display(description=_("workers"))
    def workers_text(self, obj: StoredTaskResult) -> str:
        """Return the names of the workers, one a line."""
        return as_text("\n".join(json.loads(bytes(obj.worker_ids))))


def _pretty(text: bytes | memoryview[int]) -> str:
    """Return JSON text, one value a line; other text as it is."""
    raw = bytes(text)
    try:
        return json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return raw.decode(errors="backslashreplace")
