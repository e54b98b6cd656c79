"""
The typed interface of the payments app, for the other apps.

Each method is a route: a call goes through the bus, and a command runs in a
transaction. A handler may ask for a PaymentsApi by an annotation.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from django_cqrs import Header
from django_cqrs.modelling import business_interface, business_method, implement
from payments.messages import GetPayment, PaymentRow, PayOrder


@business_interface
class PaymentsApi(Protocol):
    @business_method
    def pay(
        self,
        command: PayOrder,
        executor: Annotated[str | None, Header("executor_id")] = None,
    ) -> None:
        """Take the customer's money, for which the order waits."""

    @business_method
    def find(self, query: GetPayment) -> PaymentRow | None:
        """Show the payment of an order."""


payments = implement(PaymentsApi)
