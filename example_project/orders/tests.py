"""The rules of the orders app."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from django.test import SimpleTestCase, TestCase

from common.money import Money
from common.testing import open_shop, stock_of
from django_cqrs import command_bus, query_bus
from django_cqrs.exceptions import AggregateNotFound, MessageConversionError
from orders.errors import (
    AlreadyPlaced,
    OrderIsClosed,
    UnknownCustomer,
    UnknownOrder,
    UnknownProduct,
    WrongTotal,
)
from orders.messages import (
    CancelOrder,
    GetOrder,
    ListOrders,
    OrderedItem,
    OrderPlaced,
    PlaceOrder,
)
from orders.models import Order, Product
from orders.status import OrderStatus
from shipping.messages import ShipOrder
from stock.errors import OutOfStock

ADA = "ada@mail.example"
TWO_TEAS = (OrderedItem("TEA", 2),)


class MoneyTests(SimpleTestCase):
    def test_keeps_its_currency(self) -> None:
        """Adding two currencies is a mistake, never a sum."""
        with self.assertRaisesMessage(ValueError, "cannot add USD to EUR"):
            Money(Decimal(1)) + Money(Decimal(1), "USD")

    def test_knows_whole_cents_of_known_currencies(self) -> None:
        """An amount is finite, has no part of a cent, and a currency we know."""
        for amount, currency in (
            ("1.005", "EUR"),
            ("NaN", "EUR"),
            ("Infinity", "EUR"),
            ("1", "Euros"),
        ):
            with self.subTest(amount, currency=currency), self.assertRaises(ValueError):
                Money(Decimal(amount), currency)


class PlaceOrderTests(TestCase):
    def setUp(self) -> None:
        open_shop()

    def test_writes_the_order_and_takes_the_goods(self) -> None:
        """The answer is the order's number; the goods have left the stock."""
        order_id = command_bus.dispatch(
            PlaceOrder(
                customer=ADA,
                lines=(OrderedItem("TEA", 2), OrderedItem("CUP", 1)),
                placed_on=date(2026, 11, 2),
            )
        )

        order = Order.objects.get(pk=order_id)
        assert order.total == Money(Decimal("39.80"))
        assert order.placed_on == date(2026, 11, 2)
        assert [(line.product.sku, line.quantity) for line in order.lines.all()] == [
            ("TEA", 2),
            ("CUP", 1),
        ]
        assert stock_of("TEA") == 48
        assert stock_of("CUP") == 2

    def test_tells_everybody(self) -> None:
        """A handler is a plain method: called like this, no bus is at work."""
        order = Order.place(
            PlaceOrder(customer="ADA@mail.example", lines=TWO_TEAS, reference="A-1"),
            on=date(2026, 11, 23),
        )

        assert order.recorded_events == [
            OrderPlaced(
                order.pk,
                "A-1",
                ADA,
                Money(Decimal("19.80")),
                date(2026, 11, 23),
                TWO_TEAS,
            )
        ]
        assert order.placed_on == date(2026, 11, 23)

    def test_refusals_leave_nothing_behind(self) -> None:
        """Each rule has its error, which names the field and undoes everything."""
        one_tea = {"sku": "TEA", "quantity": 1}
        for error, field, change in (
            (UnknownCustomer, "customer", {"customer": "bob@mail.example"}),
            (
                UnknownProduct,
                "lines.1.sku",
                {"lines": [one_tea, {"sku": "SOAP", "quantity": 1}]},
            ),
            (
                OutOfStock,
                "lines.1.quantity",
                {"lines": [one_tea, {"sku": "CUP", "quantity": 4}]},
            ),
            (WrongTotal, "total", {"total": "9.80 EUR"}),
            (WrongTotal, "total", {"total": "9.90 USD"}),
        ):
            with self.subTest(error=error):
                with self.assertRaises(error) as caught:
                    command_bus.dispatch(
                        {"customer": ADA, "lines": [one_tea], **change},
                        route="order.place",
                    )

                assert caught.exception.field == field
                assert not Order.objects.exists()
                assert stock_of("TEA") == 50

    def test_reports_every_field_that_cannot_be_read(self) -> None:
        """A dict becomes a PlaceOrder, or one error with all that is wrong with it."""
        with self.assertRaises(MessageConversionError) as caught:
            command_bus.dispatch(
                {
                    "customer": ADA,
                    "lines": [
                        {"sku": "TEA", "quantity": "two"},
                        {"sku": "CUP", "quantity": -1},
                        {"sku": "CUP"},
                    ],
                    "placed_on": "2026-02-30",
                    "total": "10 Euros",
                },
                route="order.place",
            )

        assert [error.path for error in caught.exception.errors] == [
            "lines.0.quantity",
            "lines.1",
            "lines.2.quantity",
            "placed_on",
            "total",
        ]

    def test_needs_a_customer_and_an_item(self) -> None:
        """An empty order cannot even be made."""
        with self.assertRaisesMessage(ValueError, "the customer is missing"):
            PlaceOrder(customer="", lines=TWO_TEAS)
        with self.assertRaisesMessage(ValueError, "an order needs at least one item"):
            PlaceOrder(customer=ADA, lines=())

    def test_has_a_reference_that_can_be_stored(self) -> None:
        """A reference is neither empty nor longer than its column."""
        for reference in ("", "R" * 21):
            with self.assertRaisesMessage(ValueError, "from 1 to 20 characters"):
                PlaceOrder(customer=ADA, lines=TWO_TEAS, reference=reference)

    def test_takes_no_reference_twice(self) -> None:
        """Sending a command again does no harm."""
        command = PlaceOrder(customer=ADA, lines=TWO_TEAS)
        command_bus.dispatch(command)

        with self.assertRaises(AlreadyPlaced):
            command_bus.dispatch(command)

        assert stock_of("TEA") == 48


class CancelOrderTests(TestCase):
    def setUp(self) -> None:
        open_shop()
        self.order_id = command_bus.dispatch(PlaceOrder(customer=ADA, lines=TWO_TEAS))

    def test_returns_the_goods(self) -> None:
        """What was taken from stock is put back, line by line."""
        command_bus.dispatch(CancelOrder(self.order_id))

        assert Order.objects.get().status == OrderStatus.CANCELLED
        assert stock_of("TEA") == 50

    def test_only_once(self) -> None:
        """A closed order stays as it is, however it was closed."""
        command_bus.dispatch(CancelOrder(self.order_id))

        with self.assertRaises(OrderIsClosed):
            command_bus.dispatch(CancelOrder(self.order_id))

        assert stock_of("TEA") == 50

    def test_not_after_it_was_shipped(self) -> None:
        """What has left the house is not cancelled."""
        command_bus.dispatch(ShipOrder(self.order_id))

        with self.assertRaises(OrderIsClosed):
            command_bus.dispatch(CancelOrder(self.order_id))

    def test_unknown(self) -> None:
        """There is nothing to cancel where there is no order."""
        with self.assertRaises(AggregateNotFound):
            command_bus.dispatch(CancelOrder(0))


class QueryTests(TestCase):
    def setUp(self) -> None:
        open_shop()
        self.first, self.second, self.third = (
            command_bus.dispatch(
                PlaceOrder(customer=ADA, lines=TWO_TEAS, placed_on=date(2026, 11, day))
            )
            for day in (1, 2, 3)
        )
        command_bus.dispatch(CancelOrder(self.second))

    def test_list_is_paged_and_newest_first(self) -> None:
        """A page has `size` orders and says how many pages there are."""
        page = query_bus.ask(ListOrders(page=1, size=2), route="order.list")

        assert [row.order_id for row in page.rows] == [self.third, self.second]
        assert (page.number, page.pages, page.orders) == (1, 2, 3)
        assert page.rows[0].items == 2

    def test_list_by_status(self) -> None:
        """A dict is converted, as the address of a page is."""
        page = query_bus.ask({"status": "cancelled"}, route="order.list")

        assert [row.order_id for row in page.rows] == [self.second]

    def test_list_refuses_nonsense(self) -> None:
        """An unknown status, a page that is no number, a page of a million orders."""
        for query in ({"status": "lost"}, {"page": "x"}, {"size": "1000000"}):
            with self.subTest(query), self.assertRaises(MessageConversionError):
                query_bus.ask(query, route="order.list")

    def test_detail(self) -> None:
        """An order is shown with its lines, at the prices of its day."""
        Product.objects.update(unit_price=1)

        order = query_bus.ask(GetOrder(self.first))

        assert order.status == OrderStatus.PLACED
        (line,) = order.lines
        assert (line.product, line.quantity) == ("Tea", 2)
        assert line.total == order.total == Money(Decimal("19.80"))
        with self.assertRaises(UnknownOrder):
            query_bus.ask(GetOrder(0))

    def test_revenue_leaves_out_cancelled_orders(self) -> None:
        """Only what was not called off counts."""
        (row,) = query_bus.ask(5, route="customer.revenue")

        assert (row.customer, row.orders) == ("Ada", 2)
        assert row.revenue == Money(Decimal("39.60"))

    def test_choices(self) -> None:
        """A form finds here what it may offer."""
        products = query_bus.ask(route="product.list")
        customers = query_bus.ask(route="customer.list")

        assert [product.sku for product in products] == ["CUP", "TEA"]
        assert [customer.email for customer in customers] == [ADA]
