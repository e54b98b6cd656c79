"""
Sales by day, which a worker keeps up to date.

The projection follows the stored events of the orders behind a channel: whoever orders
does not wait for it. `manage.py cqrs_worker views` brings it up to date.
"""

from __future__ import annotations

from typing import Annotated

from django_cqrs import event_handler, query_handler
from django_cqrs.events import Row, projection
from orders.messages import OrderCancelled, OrderPlaced
from orders.models import Order
from sales.messages import SalesRow
from sales.models import SalesDay


@projection("sales", channel="views", views=[SalesDay], sources=[Order])
class SalesByDay:
    """One row for each day with orders."""

    @event_handler
    def add(
        self, event: OrderPlaced, row: Annotated[SalesDay, Row(day="placed_on")]
    ) -> None:
        row.orders += 1
        row.amount += event.total.amount

    @event_handler
    def subtract(
        self, event: OrderCancelled, row: Annotated[SalesDay, Row(day="placed_on")]
    ) -> None:
        row.orders -= 1
        row.amount -= event.total.amount

    @query_handler("sales.by_day")
    def show(self, days: int = 30) -> list[SalesRow]:
        """Show the latest days on which something was sold."""
        return [
            SalesRow(row.day, row.orders, row.revenue)
            for row in SalesDay.objects.filter(orders__gt=0)[:days]
        ]
