"""The sales app in Django's admin."""

from __future__ import annotations

from django.contrib import admin

from common.admin import ReadOnly
from sales.models import SalesDay


@admin.register(SalesDay)
class SalesDayAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("day", "orders", "revenue")
    date_hierarchy = "day"
