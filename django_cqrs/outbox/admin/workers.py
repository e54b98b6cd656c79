"""The workers in the admin: who handles which channels."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from django_cqrs import clock
from django_cqrs.admin_databases import DatabaseFilter
from django_cqrs.admin_lists import BoundedPaginator, ReadOnly, TypedModelAdmin
from django_cqrs.admin_lookups import OfferedLookupsMixin
from django_cqrs.outbox.admin.stored_messages import OutboxDatabaseMixin
from django_cqrs.outbox.attendance import ALIVE, channels_in
from django_cqrs.outbox.models import WorkerRecord
from django_cqrs.times import as_sent


@admin.register(WorkerRecord)
class WorkerRecordAdmin(
    ReadOnly, OfferedLookupsMixin, OutboxDatabaseMixin, TypedModelAdmin
):
    """The workers of the last day: the living ones, and those that have ended."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    ordering = ("-seen_at", "-pk")
    sortable_by = ()
    list_display = ("name", "channel_names", "started_at", "seen_at", "condition")
    list_display_links = None
    list_filter = (DatabaseFilter,)
    fields = ("name", "channel_names", "started_at", "seen_at", "stopped_at")
    change_list_template = "admin/django_cqrs_outbox/change_list.html"

    @admin.display(description=_("channels"))
    def channel_names(self, obj: WorkerRecord) -> str:
        """Return the aliases of its channels."""
        return ", ".join(channels_in(obj.channels))

    @admin.display(description=_("state"))
    def condition(self, obj: Any) -> str | Promise:
        """Return whether it lives, has stopped, or seems to be dead."""
        if obj.stopped_at is not None:
            return _("stopped")
        is_alive = clock.now() - as_sent(obj.seen_at) < ALIVE
        return _("alive") if is_alive else _("dead, or out of reach")
