"""The shipping app in Django's admin."""

from __future__ import annotations

from django.contrib import admin

from common.admin import ReadOnly
from shipping.models import Shipment


@admin.register(Shipment)
class ShipmentAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("order", "status", "tracking_code")
    list_filter = ("status",)
    list_select_related = ("order",)
    search_fields = ("order__reference", "tracking_code")
