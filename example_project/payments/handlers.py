"""
The handlers of payments. Other apps call them through the interface in api.py.

The orders app does not know that these handlers exist. They run in the transaction
of the command that published the event, so an exception here undoes all of it.
"""

from __future__ import annotations

from common.money import Money
from django_cqrs import EventBus, command_handler, event_handler, query_handler
from orders.messages import OrderCancelled, OrderPlaced
from payments.errors import CreditLimitExceeded, NoCreditAccount, NothingToPay
from payments.messages import (
    GetPayment,
    PaymentAuthorised,
    PaymentCaptured,
    PaymentReleased,
    PaymentRow,
    PayOrder,
)
from payments.models import CreditAccount, Payment
from shipping.messages import ShipmentSent


@event_handler
def authorise(event: OrderPlaced, events: EventBus) -> None:
    """Open the payment of a new order, or refuse the order."""
    # Locked: two orders of one customer must not both take the last of the credit.
    accounts = CreditAccount.objects.select_for_update()
    account = accounts.filter(customer__email=event.customer).first()
    if account is None:
        raise NoCreditAccount(f"{event.customer} has no credit account")
    if event.total.amount > account.available:
        raise CreditLimitExceeded(
            f"{event.total} is more than the credit that {event.customer} "
            f"has left, {Money(account.available)}"
        )
    Payment.objects.create(order_id=event.order_id, amount=event.total.amount)
    events.publish(PaymentAuthorised(event.order_id, event.total))


@command_handler
def pay(command: PayOrder, events: EventBus) -> None:
    """Take the money that the customer has sent."""
    payment = open_payment(command.order_id)
    if payment is None:
        raise NothingToPay(f"order {command.order_id} has nothing to pay")
    settle(payment, Payment.Status.CAPTURED)
    events.publish(PaymentCaptured(command.order_id, payment.money))


@event_handler
def charge(event: ShipmentSent, events: EventBus) -> None:
    """Charge the account once the goods have left, unless they are paid."""
    payment = open_payment(event.order_id)
    if payment is not None:
        settle(payment, Payment.Status.CAPTURED)
        events.publish(PaymentCaptured(event.order_id, payment.money))


@event_handler
def release(event: OrderCancelled, events: EventBus) -> None:
    """Give the credit back."""
    payment = open_payment(event.order_id)
    if payment is not None:
        settle(payment, Payment.Status.RELEASED)
        events.publish(PaymentReleased(event.order_id, payment.money))


@query_handler
def get_payment(query: GetPayment) -> PaymentRow | None:
    """Show the payment of an order."""
    payment = Payment.objects.filter(order_id=query.order_id).first()
    if payment is None:
        return None
    return PaymentRow(payment.status, payment.money)


def open_payment(order_id: int) -> Payment | None:
    """Find what an order has still to pay; nobody else settles it meanwhile."""
    payments = Payment.objects.select_for_update()
    return payments.filter(order_id=order_id, status=Payment.Status.AUTHORISED).first()


def settle(payment: Payment, status: Payment.Status) -> None:
    """Bring a payment to its end."""
    payment.status = status
    payment.save(update_fields=["status"])
