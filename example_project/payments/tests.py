"""The rules of the payments app."""

from __future__ import annotations

from decimal import Decimal

from django.test import TestCase

from audit.models import AuditEntry
from common.money import Money
from common.testing import open_shop, stock_of
from django_cqrs import command_bus, query_bus
from orders.messages import CancelOrder, OrderedItem, PlaceOrder
from orders.models import Order, OrderLine
from payments.api import payments
from payments.errors import CreditLimitExceeded, NoCreditAccount, NothingToPay
from payments.messages import GetPayment, PaymentRow, PayOrder
from payments.models import CreditAccount, Payment
from shipping.messages import ShipOrder


def order_teas(quantity: int) -> int:
    return command_bus.dispatch(
        PlaceOrder(customer="ada@mail.example", lines=(OrderedItem("TEA", quantity),))
    )


class PaymentTests(TestCase):
    def setUp(self) -> None:
        open_shop()

    def test_opens_with_the_order(self) -> None:
        """A placed order has an authorised payment of its total."""
        order_id = order_teas(2)

        assert query_bus.ask(GetPayment(order_id)) == PaymentRow(
            "authorised", Money(Decimal("19.80"))
        )

    def test_above_the_limit_refuses_the_whole_order(self) -> None:
        """An event handler that raises undoes the command it reacts to."""
        with self.assertRaises(CreditLimitExceeded):
            order_teas(11)

        assert not Order.objects.exists()
        assert not OrderLine.objects.exists()
        assert stock_of("TEA") == 50

    def test_what_is_owed_counts(self) -> None:
        """Two orders may be too much where each alone is not."""
        order_teas(6)

        with self.assertRaises(CreditLimitExceeded):
            order_teas(6)

        assert Order.objects.count() == 1

    def test_needs_an_account(self) -> None:
        """Nobody buys on credit that was never given."""
        CreditAccount.objects.all().delete()

        with self.assertRaises(NoCreditAccount):
            order_teas(1)

    def test_cancelling_gives_the_credit_back(self) -> None:
        """A cancelled order owes nothing."""
        order_id = order_teas(6)
        command_bus.dispatch(CancelOrder(order_id))

        assert Payment.objects.get().status == Payment.Status.RELEASED
        assert order_teas(6)

    def test_shipping_takes_the_money(self) -> None:
        """A shipped order is paid, and burdens the credit no more."""
        order_id = order_teas(6)
        command_bus.dispatch(ShipOrder(order_id))

        assert Payment.objects.get().status == Payment.Status.CAPTURED
        assert order_teas(6)

    def test_paying_takes_the_money_once(self) -> None:
        """Other apps call the interface; what is paid is not paid again."""
        order_id = order_teas(6)

        payments.pay(PayOrder(order_id))

        assert payments.find(GetPayment(order_id)).status == "captured"
        for number in (order_id, 0):
            with self.subTest(number), self.assertRaises(NothingToPay):
                payments.pay(PayOrder(number))

    def test_says_who_has_paid(self) -> None:
        """A parameter of the interface may be a header."""
        payments.pay(PayOrder(order_teas(1)), executor="grace")

        assert AuditEntry.objects.get(event="payment captured").executor == "grace"

    def test_unknown(self) -> None:
        """No order, no payment."""
        assert query_bus.ask(GetPayment(0)) is None
