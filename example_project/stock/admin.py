"""The stock app in Django's admin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin

from common.admin import ReadOnly
from django_cqrs import command_bus
from stock.messages import CountGoods, ReceiveGoods
from stock.models import StockLevel

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest

DELIVERY = 50


@admin.register(StockLevel)
class StockLevelAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("sku", "quantity")
    search_fields = ("sku",)
    actions = ("receive", "find_nothing")

    @admin.action(description=f"Receive {DELIVERY} of each", permissions=["view"])
    def receive(self, request: HttpRequest, levels: QuerySet[StockLevel]) -> None:
        """Send a command for each: the rows only show what the events say."""
        for level in levels:
            command_bus.dispatch(ReceiveGoods(level.sku, DELIVERY))
        self.message_user(request, f"Received {DELIVERY} of each.")

    @admin.action(description="Correct to 0: nothing is left", permissions=["view"])
    def find_nothing(self, request: HttpRequest, levels: QuerySet[StockLevel]) -> None:
        """Note what somebody has counted."""
        for level in levels:
            command_bus.dispatch(CountGoods(level.sku, 0))
        self.message_user(request, "Corrected.")
