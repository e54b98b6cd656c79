"""The messages that the payments app receives and sends."""

from __future__ import annotations

from dataclasses import dataclass

from common.money import Money
from django_cqrs import Query, message

# Commands: do this.


@dataclass(frozen=True, slots=True)
class PayOrder:
    """Take the customer's money for an order."""

    order_id: int


# Events: this happened.


@message("payment.authorised")
@dataclass(frozen=True, slots=True)
class PaymentAuthorised:
    """The customer is good for the price of the order."""

    order_id: int
    amount: Money


@message("payment.captured")
@dataclass(frozen=True, slots=True)
class PaymentCaptured:
    """The customer has paid."""

    order_id: int
    amount: Money


@message("payment.released")
@dataclass(frozen=True, slots=True)
class PaymentReleased:
    """The order was called off, so the customer owes nothing."""

    order_id: int
    amount: Money


# Queries: tell me, and the answers.


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """The payment of an order as its page shows it."""

    status: str
    amount: Money


@dataclass(frozen=True, slots=True)
class GetPayment(Query[PaymentRow | None]):
    """The payment of one order."""

    order_id: int
