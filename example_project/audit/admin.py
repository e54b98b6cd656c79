"""The audit app in Django's admin."""

from __future__ import annotations

from django.contrib import admin

from audit.models import AuditEntry
from common.admin import ReadOnly


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("happened_at", "event", "order_id", "executor")
    list_filter = ("event", "executor")
    search_fields = ("=order_id", "=correlation_id")
    date_hierarchy = "happened_at"
    show_full_result_count = False
