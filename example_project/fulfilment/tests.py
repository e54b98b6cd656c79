"""The rules of the fulfilment app."""

from __future__ import annotations

from functools import partial
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING
from unittest import mock, skipUnless

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection, connections
from django.test import TestCase, TransactionTestCase
from django.urls import reverse
from django.utils import timezone

from common.errors import Refused
from common.testing import PATIENCE, open_shop, stock_of
from django_cqrs import command_bus, query_bus
from django_cqrs.channels import channels
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.testing.flow import Flow
from fulfilment.messages import FulfilmentRow, GetFulfilment
from fulfilment.models import Fulfilment
from orders.errors import OrderIsClosed
from orders.messages import CancelOrder, OrderedItem, PlaceOrder
from orders.models import Order
from orders.status import OrderStatus
from payments import handlers as payment_handlers
from payments.api import payments
from payments.errors import CreditLimitExceeded
from payments.messages import GetPayment, PayOrder
from shipping.messages import GetShipment, ShipOrder

if TYPE_CHECKING:
    from collections.abc import Callable

TIME = settings.PAYMENT_TIME.total_seconds()


def order_teas(quantity: int) -> int:
    return command_bus.dispatch(
        PlaceOrder(customer="ada@mail.example", lines=(OrderedItem("TEA", quantity),))
    )


class FulfilmentTests(TestCase):
    def setUp(self) -> None:
        open_shop()
        self.flow = self.enterContext(Flow())

    def timers(self) -> int:
        return OutboxMessage.objects.filter(channel="timers").count()

    def how_far(self, order_id: int) -> FulfilmentRow:
        return query_bus.ask(GetFulfilment(order_id))

    def test_begins_with_the_order(self) -> None:
        """An order that was placed waits for its money, and a timer for it."""
        order_id = order_teas(1)

        process = self.how_far(order_id)
        assert (process.state, process.is_over) == ("waiting for payment", False)
        assert self.timers() == 1

    def test_a_refused_order_has_none(self) -> None:
        """Saga and timer stand in the order's transaction, and go with it."""
        with self.assertRaises(CreditLimitExceeded):
            order_teas(11)

        assert not Fulfilment.objects.exists()
        assert self.timers() == 0

    def test_ships_what_is_paid(self) -> None:
        """The money sends the parcel off; the saga is over, and its timer gone."""
        order_id = order_teas(1)

        payments.pay(PayOrder(order_id))

        assert Order.objects.get().status == OrderStatus.SHIPPED
        assert query_bus.ask(GetShipment(order_id)).status == "sent"
        assert self.how_far(order_id).state == "done"
        assert self.how_far(order_id).is_over
        assert self.timers() == 0

    def test_cancels_what_is_not_paid_in_time(self) -> None:
        """Not before the time is up; then goods and credit come back."""
        order_id = order_teas(6)

        self.flow.advance(seconds=TIME - 1)
        assert self.flow.run("timers") == 0
        self.flow.advance(seconds=1)
        assert self.flow.run("timers") == 1

        assert Order.objects.get().status == OrderStatus.CANCELLED
        assert payments.find(GetPayment(order_id)).status == "released"
        assert stock_of("TEA") == 50
        assert self.how_far(order_id).state == "not paid in time"
        assert self.how_far(order_id).is_over

    def test_others_go_on_waiting(self) -> None:
        """Each order has a saga and a timer of its own."""
        paid, unpaid = order_teas(1), order_teas(1)

        payments.pay(PayOrder(paid))

        assert self.how_far(unpaid).state == "waiting for payment"
        assert self.timers() == 1

    def test_ends_with_a_cancelled_order(self) -> None:
        """Who calls an order off has nothing to wait for."""
        order_id = order_teas(1)

        command_bus.dispatch(CancelOrder(order_id))

        assert self.how_far(order_id).state == "called off"
        assert self.timers() == 0

    def test_an_order_shipped_unpaid_is_not_shipped_again(self) -> None:
        """Its account is charged afterwards, which the saga ignores: it is over."""
        order_id = order_teas(1)

        command_bus.dispatch(ShipOrder(order_id))

        assert payments.find(GetPayment(order_id)).status == "captured"
        assert self.how_far(order_id).state == "done"
        assert self.flow.sent.count(ShipOrder(order_id)) == 1
        assert self.timers() == 0

    def test_its_timeline(self) -> None:
        """The admin leads from the process to the messages that it took part in."""
        order_id = order_teas(6)
        self.flow.advance(seconds=TIME)
        self.flow.run("timers")
        self.client.force_login(get_user_model().objects.create_superuser("admin"))

        page = self.client.get(
            reverse("admin:fulfilment_fulfilment_change", args=[order_id])
        )
        timeline = self.client.get(page.context["timeline_url"])

        for said in ("order.placed", "PaymentDue", "order.cancelled", "(this one)"):
            self.assertContains(timeline, said)

    def test_a_timer_that_comes_too_late(self) -> None:
        """What a worker had taken just before the end no longer does anything."""
        order_id = order_teas(1)
        timer = OutboxMessage.objects.get(channel="timers")
        payments.pay(PayOrder(order_id))
        timer.save(force_insert=True)

        self.flow.advance(seconds=TIME)
        assert self.flow.run("timers") == 1

        assert Order.objects.get().status == OrderStatus.SHIPPED
        with self.assertRaises(OrderIsClosed):
            command_bus.dispatch(CancelOrder(order_id))


@skipUnless(connection.vendor == "postgresql", "Only there it is seen who waits.")
class RivalTests(TransactionTestCase):
    """Two of those who work on one order come at the same moment."""

    def setUp(self) -> None:
        open_shop()
        self.order_id = order_teas(1)

    def pay_beside(self, rival: Callable[[], object]) -> None:
        """Pay, and have a rival begin when the payment is held; wait for both."""
        settle = payment_handlers.settle
        thread = Thread(target=partial(self.run_rival, rival))
        self.failure: Exception | None = None

        def settle_slowly(*args: object) -> None:
            if thread.ident is None:
                thread.start()
                self.wait_for_rival()
            settle(*args)

        with mock.patch.object(payment_handlers, "settle", settle_slowly):
            payments.pay(PayOrder(self.order_id))
            thread.join(PATIENCE)

        assert Order.objects.get().status == OrderStatus.SHIPPED
        assert payments.find(GetPayment(self.order_id)).status == "captured"
        assert query_bus.ask(GetFulfilment(self.order_id)).state == "done"

    def run_rival(self, rival: Callable[[], object]) -> None:
        try:
            rival()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failure = error
        finally:
            connections.close_all()

    def wait_for_rival(self) -> None:
        """Return when somebody waits for a lock of this transaction."""
        end = monotonic() + PATIENCE
        while monotonic() < end:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted "
                    "AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
                )
                if cursor.fetchone()[0]:
                    return
            sleep(0.01)
        raise AssertionError("nobody waits")

    def test_the_timer(self) -> None:
        """Whose time is just up finds that the order is paid."""
        OutboxMessage.objects.filter(channel="timers").update(
            available_at=timezone.now()
        )

        self.pay_beside(channels["timers"].run)

        assert self.failure is None
        assert not OutboxMessage.objects.filter(channel="timers").exists()

    def test_a_customer_who_cancels(self) -> None:
        """Is told that it is too late."""
        self.pay_beside(partial(command_bus.dispatch, CancelOrder(self.order_id)))

        assert isinstance(self.failure, OrderIsClosed)

    def test_a_clerk_who_ships(self) -> None:
        """Finds the parcel gone."""
        self.pay_beside(partial(command_bus.dispatch, ShipOrder(self.order_id)))

        assert isinstance(self.failure, Refused)
