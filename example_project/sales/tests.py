"""The sales by day."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from django.test import TestCase

from common.money import Money
from common.testing import open_shop
from django_cqrs import command_bus, query_bus
from django_cqrs.testing.flow import Flow
from orders.messages import CancelOrder, OrderedItem, PlaceOrder
from sales.handlers import SalesByDay
from sales.messages import SalesRow


def place(day: int, quantity: int = 1) -> int:
    return command_bus.dispatch(
        PlaceOrder(
            customer="ada@mail.example",
            lines=(OrderedItem("TEA", quantity),),
            placed_on=date(2026, 11, day),
        )
    )


class SalesTests(TestCase):
    def setUp(self) -> None:
        open_shop()
        self.flow = self.enterContext(Flow())

    def test_adds_up_each_day(self) -> None:
        """The worker of the channel fills the view; the latest day comes first."""
        place(1)
        place(2)
        place(2, quantity=2)
        assert query_bus.ask(route="sales.by_day") == []

        self.flow.run("views")

        assert query_bus.ask(route="sales.by_day") == [
            SalesRow(date(2026, 11, 2), 2, Money(Decimal("29.70"))),
            SalesRow(date(2026, 11, 1), 1, Money(Decimal("9.90"))),
        ]
        assert len(query_bus.ask(1, route="sales.by_day")) == 1

    def test_a_cancelled_order_does_not_count(self) -> None:
        """A day on which nothing else was sold is gone."""
        command_bus.dispatch(CancelOrder(place(1)))
        place(2)

        self.flow.run("views")

        (row,) = query_bus.ask(route="sales.by_day")
        assert (row.day.day, row.orders) == (2, 1)

    def test_the_view_can_be_made_again(self) -> None:
        """A rebuild comes to the same rows."""
        command_bus.dispatch(CancelOrder(place(1)))
        place(2)

        self.flow.project(SalesByDay)

        self.flow.assert_replays(SalesByDay)
