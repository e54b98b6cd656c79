"""What the fulfilment app says to itself, and what it can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django_cqrs import Query


@dataclass(frozen=True, slots=True)
class PaymentDue:
    """By now the order should be paid: it is handled when that time is up."""

    order_id: int


@dataclass(frozen=True, slots=True)
class FulfilmentRow:
    """How far an order has come, as its page shows it."""

    state: str
    pay_until: datetime
    is_over: bool


@dataclass(frozen=True, slots=True)
class GetFulfilment(Query[FulfilmentRow]):
    """How far one order has come."""

    order_id: int
