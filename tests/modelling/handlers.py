from __future__ import annotations

from django_cqrs import command_handler
from tests.modelling.messages import CancelOrder, ShipOrder
from tests.modelling.models import Fulfilment, Sent


@command_handler("order.ship")
def ship(command: ShipOrder) -> None:
    process = Fulfilment.objects.get(pk=command.order_id)
    Sent.objects.create(command="ship", was_saved=process.is_paid and process.is_packed)


@command_handler
def cancel(command: CancelOrder) -> None:
    process = Fulfilment.objects.get(pk=command.order_id)
    Sent.objects.create(command="cancel", was_saved=process.fate == "cancelled")
