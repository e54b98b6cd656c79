"""The fulfilment app in Django's admin."""

from __future__ import annotations

from django.contrib import admin

from common.admin import ReadOnly
from django_cqrs.outbox.admin import TimelineMixin
from fulfilment.models import Fulfilment


@admin.register(Fulfilment)
class FulfilmentAdmin(ReadOnly, TimelineMixin, admin.ModelAdmin):
    list_display = ("order", "state", "pay_until", "completed_at")
    list_filter = ("state",)
    list_select_related = ("order",)
    search_fields = ("order__reference",)
