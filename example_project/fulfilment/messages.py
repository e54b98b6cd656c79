"""The messages of the fulfilment app: its timer and its query."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django_cqrs import Query


@dataclass(frozen=True, slots=True)
class PaymentDue:
    """The order should now be paid. This is handled when the time is up."""

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
