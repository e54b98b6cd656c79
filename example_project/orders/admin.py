"""The orders app in Django's admin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin, messages

from common.admin import ReadOnly
from common.errors import Refused
from django_cqrs import command_bus
from orders.messages import CancelOrder
from orders.models import Customer, Order, OrderLine, Product

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest


@admin.register(Customer)
class CustomerAdmin(admin.ModelAdmin):
    list_display = ("name", "email")
    search_fields = ("name", "email")


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ("sku", "name", "unit_price")
    search_fields = ("sku", "name")


class OrderLineInline(ReadOnly, admin.TabularInline):
    model = OrderLine
    fields = ("product", "quantity", "unit_price")
    verbose_name_plural = "lines"


@admin.register(Order)
class OrderAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("reference", "customer", "placed_on", "status", "total")
    list_filter = ("status",)
    list_select_related = ("customer",)
    search_fields = ("reference", "customer__name", "customer__email")
    date_hierarchy = "placed_on"
    fields = ("reference", "customer", "placed_on", "status", "total")
    inlines = (OrderLineInline,)
    actions = ("cancel",)

    @admin.action(description="Cancel selected orders", permissions=["view"])
    def cancel(self, request: HttpRequest, orders: QuerySet[Order]) -> None:
        """Go the way of the pages: one command for each order."""
        for order in orders:
            try:
                command_bus.dispatch(CancelOrder(order.pk))
            except Refused as refusal:
                self.message_user(request, str(refusal), messages.ERROR)
            else:
                self.message_user(request, f"Order {order} is cancelled.")
