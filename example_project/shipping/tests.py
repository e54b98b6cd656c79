"""The rules of the shipping app."""

from __future__ import annotations

from unittest.mock import Mock

from django.test import TestCase

from common.testing import open_shop
from django_cqrs import EventBus, command_bus, query_bus
from orders.messages import CancelOrder, OrderedItem, PlaceOrder
from orders.models import Order
from orders.status import OrderStatus
from shipping.carrier import Carrier
from shipping.errors import NothingToShip
from shipping.handlers import Warehouse
from shipping.messages import GetShipment, ShipmentRow, ShipmentSent, ShipOrder


class ShippingTests(TestCase):
    def setUp(self) -> None:
        open_shop()
        self.order_id = command_bus.dispatch(
            PlaceOrder(customer="ada@mail.example", lines=(OrderedItem("TEA", 1),))
        )

    def test_a_parcel_lies_ready(self) -> None:
        """A paid order is packed in the same transaction."""
        assert query_bus.ask(GetShipment(self.order_id)) == ShipmentRow("ready", "")

    def test_shipping_closes_the_order(self) -> None:
        """The answer is the tracking code, and the order knows that it is shipped."""
        code = command_bus.dispatch(ShipOrder(self.order_id))

        assert query_bus.ask(GetShipment(self.order_id)) == ShipmentRow("sent", code)
        assert Order.objects.get().status == OrderStatus.SHIPPED

    def test_only_once(self) -> None:
        """A parcel leaves the house once."""
        command_bus.dispatch(ShipOrder(self.order_id))

        with self.assertRaises(NothingToShip):
            command_bus.dispatch(ShipOrder(self.order_id))

    def test_cancelled_orders_stay(self) -> None:
        """What was called off is not sent."""
        command_bus.dispatch(CancelOrder(self.order_id))

        with self.assertRaises(NothingToShip):
            command_bus.dispatch(ShipOrder(self.order_id))

        assert query_bus.ask(GetShipment(self.order_id)) == ShipmentRow(
            "called off", ""
        )

    def test_another_carrier(self) -> None:
        """A service gets its parts by its constructor, so a test gives it others."""
        events = Mock(spec=EventBus)
        carrier = Mock(spec=Carrier)
        carrier.collect.return_value = "PIGEON-7"

        code = Warehouse(carrier).ship(ShipOrder(self.order_id), events)

        assert code == "PIGEON-7"
        events.publish.assert_called_once_with(ShipmentSent(self.order_id, "PIGEON-7"))

    def test_unknown(self) -> None:
        """No order, no shipment."""
        assert query_bus.ask(GetShipment(0)) is None
