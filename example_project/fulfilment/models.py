"""
From an order to its end: it waits for its money, is shipped, or is cancelled.

The saga is a row for each order. Events start and move it; what a handler returns is
sent on, after the save, to the command that ``output=`` names.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils import timezone

from django_cqrs import event_handler, query_handler
from django_cqrs.modelling import saga
from django_cqrs.models import SagaModel
from fulfilment.messages import FulfilmentRow, GetFulfilment, PaymentDue
from orders.messages import CancelOrder, OrderCancelled, OrderPlaced
from payments.messages import PaymentCaptured
from shipping.messages import ShipmentSent, ShipOrder


@saga
class Fulfilment(SagaModel):
    """The way of one order."""

    class State(models.TextChoices):
        WAITING = "waiting for payment"
        PAID = "paid"
        DONE = "done"
        TOO_LATE = "not paid in time"
        CALLED_OFF = "called off"

    order = models.OneToOneField("orders.Order", models.CASCADE, primary_key=True)
    state = models.CharField(max_length=20, choices=State, default=State.WAITING)
    pay_until = models.DateTimeField()

    class Meta:
        ordering = ("-order",)

    def __str__(self) -> str:
        return f"Fulfilment of {self.order}"

    @event_handler
    @classmethod
    def start(cls, event: OrderPlaced) -> Fulfilment:
        """Wait for the money, and set the timer."""
        pay_until = timezone.now() + settings.PAYMENT_TIME
        process = cls(order_id=event.order_id, pay_until=pay_until)
        process.record(PaymentDue(event.order_id))
        return process

    # An order that was shipped unpaid is over when its money comes.
    @event_handler(output="order.ship", on_missing="ignore")
    def ship(self, event: PaymentCaptured) -> ShipOrder | None:
        """Have the goods shipped that are paid, once, and unless time is up."""
        if self.state != self.State.WAITING:
            return None
        self.state = self.State.PAID
        return ShipOrder(self.order_id)

    # Stored with the order, and left alone by the worker until it is due.
    @event_handler(channel="timers", delay=settings.PAYMENT_TIME, output="order.cancel")
    def give_up(self, event: PaymentDue) -> CancelOrder | None:
        """Have the order cancelled that nobody has paid."""
        if self.state != self.State.WAITING:
            return None
        self.state = self.State.TOO_LATE
        return CancelOrder(self.order_id)

    # With the end of the saga its timer is taken out of the channel. Before payments
    # charges the account for a parcel that left unpaid: it is not to be shipped again.
    @event_handler(priority=10)
    def finish(self, event: ShipmentSent) -> None:
        """The goods are on their way: nothing is left to do."""
        self.state = self.State.DONE
        self.complete()

    @event_handler
    def call_off(self, event: OrderCancelled) -> None:
        """The order is cancelled, by somebody or by the timer."""
        if self.state == self.State.WAITING:
            self.state = self.State.CALLED_OFF
        self.complete()

    @query_handler
    def show(self, query: GetFulfilment) -> FulfilmentRow:
        """Tell how far it has come."""
        return FulfilmentRow(
            self.state, self.pay_until, is_over=self.completed_at is not None
        )
