"""The messages that the shipping app receives and sends."""

from __future__ import annotations

from dataclasses import dataclass

from django_cqrs import Command, Query, message

# Commands: do this.


@dataclass(frozen=True, slots=True)
class ShipOrder(Command[str]):
    """Ship the goods of an order; the result is the tracking code."""

    order_id: int


# Events: this happened.


@message("shipment.prepared")
@dataclass(frozen=True, slots=True)
class ShipmentPrepared:
    """The parcel of an order lies ready."""

    order_id: int


@message("shipment.sent")
@dataclass(frozen=True, slots=True)
class ShipmentSent:
    """The parcel of an order has left the house."""

    order_id: int
    tracking_code: str


@message("shipment.called_off")
@dataclass(frozen=True, slots=True)
class ShipmentCalledOff:
    """The parcel of an order stays in the house."""

    order_id: int


# Queries: tell me, and the answers.


@dataclass(frozen=True, slots=True)
class ShipmentRow:
    """The shipment of an order as its page shows it."""

    status: str
    tracking_code: str


@dataclass(frozen=True, slots=True)
class GetShipment(Query[ShipmentRow | None]):
    """The shipment of one order."""

    order_id: int
