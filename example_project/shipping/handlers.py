"""How parcels follow payments."""

from __future__ import annotations

from django_cqrs import EventBus, command_handler, event_handler, query_handler, service
from orders.messages import OrderCancelled
from payments.messages import PaymentAuthorised
from shipping.carrier import Carrier
from shipping.errors import NothingToShip
from shipping.messages import (
    GetShipment,
    ShipmentCalledOff,
    ShipmentPrepared,
    ShipmentRow,
    ShipmentSent,
    ShipOrder,
)
from shipping.models import Shipment


@service
class Warehouse:
    """Handlers may be methods; what they share comes in through the constructor."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier

    @event_handler
    def prepare(self, event: PaymentAuthorised, events: EventBus) -> None:
        """Pack the goods as soon as the customer is good for them."""
        Shipment.objects.create(order_id=event.order_id)
        events.publish(ShipmentPrepared(event.order_id))

    @command_handler
    @command_handler("order.ship")
    def ship(self, command: ShipOrder, events: EventBus) -> str:
        """Hand the parcel over to the carrier."""
        ready = Shipment.objects.select_for_update().filter(
            status=Shipment.Status.READY
        )
        shipment = ready.filter(order_id=command.order_id).first()
        if shipment is None:
            raise NothingToShip(f"no parcel lies ready for order {command.order_id}")
        shipment.status = Shipment.Status.SENT
        shipment.tracking_code = self.carrier.collect(shipment.pk)
        shipment.save(update_fields=["status", "tracking_code"])
        events.publish(ShipmentSent(command.order_id, shipment.tracking_code))
        return shipment.tracking_code

    @event_handler
    def call_off(self, event: OrderCancelled, events: EventBus) -> None:
        """Unpack the parcel of a cancelled order."""
        Shipment.objects.filter(order_id=event.order_id).update(
            status=Shipment.Status.CALLED_OFF
        )
        events.publish(ShipmentCalledOff(event.order_id))


@query_handler
def get_shipment(query: GetShipment) -> ShipmentRow | None:
    """Show the shipment of an order."""
    shipment = Shipment.objects.filter(order_id=query.order_id).first()
    if shipment is None:
        return None
    return ShipmentRow(shipment.status, shipment.tracking_code)
