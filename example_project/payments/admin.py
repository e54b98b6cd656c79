"""The payments app in Django's admin."""

from __future__ import annotations

from django.contrib import admin

from common.admin import ReadOnly
from payments.models import CreditAccount, Payment


@admin.register(CreditAccount)
class CreditAccountAdmin(admin.ModelAdmin):
    list_display = ("customer", "credit_limit", "available")
    list_select_related = ("customer",)
    search_fields = ("customer__name", "customer__email")


@admin.register(Payment)
class PaymentAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("order", "amount", "status")
    list_filter = ("status",)
    list_select_related = ("order",)
    search_fields = ("order__reference",)
