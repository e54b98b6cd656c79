"""The messages that the orders app receives and sends."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated

from common.money import Money
from django_cqrs import Command, Query, Sensitive, message
from orders.status import OrderStatus

LARGEST_PAGE = 100
LONGEST_REFERENCE = 20


def new_reference() -> str:
    """Make a reference for an order that comes without one."""
    return f"WEB-{secrets.token_hex(4).upper()}"


# Commands: do this.


@dataclass(frozen=True, slots=True)
class OrderedItem:
    """A product and its quantity."""

    sku: str
    quantity: int

    def __post_init__(self) -> None:
        if self.quantity < 1:
            raise ValueError(f"the quantity must be at least 1, not {self.quantity}")


@dataclass(frozen=True, slots=True)
class PlaceOrder(Command[int]):
    """
    Place an order; the result is its primary key.

    Each reference is accepted only once, so you can safely send this again.
    `total` is the price that the customer was promised, if it is given.
    """

    customer: str
    lines: tuple[OrderedItem, ...]
    reference: str = field(default_factory=new_reference)
    placed_on: date | None = None
    total: Money | None = None

    def __post_init__(self) -> None:
        if not self.customer:
            raise ValueError("the customer is missing")
        if not self.lines:
            raise ValueError("an order needs at least one item")
        if not 1 <= len(self.reference) <= LONGEST_REFERENCE:
            raise ValueError(
                f"a reference has from 1 to {LONGEST_REFERENCE} characters"
            )


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Cancel an order that has not been shipped."""

    order_id: int


# Events: this happened.


@message("order.placed")
@dataclass(frozen=True, slots=True)
class OrderPlaced:
    """An order was written down."""

    order_id: int
    reference: str
    customer: Annotated[str, Sensitive()]  # an email address is private
    total: Money
    placed_on: date
    lines: tuple[OrderedItem, ...]


@message("order.cancelled")
@dataclass(frozen=True, slots=True)
class OrderCancelled:
    """An order was called off."""

    order_id: int
    reference: str
    total: Money
    placed_on: date
    lines: tuple[OrderedItem, ...]


# Queries: tell me, and the answers.


@dataclass(frozen=True, slots=True)
class OrderRow:
    """An order as a list shows it."""

    order_id: int
    reference: str
    customer: str
    placed_on: date
    items: int
    status: OrderStatus
    total: Money


@dataclass(frozen=True, slots=True)
class OrderPage:
    """One page of a list of orders."""

    rows: tuple[OrderRow, ...]
    number: int
    pages: int
    orders: int


@dataclass(frozen=True, slots=True)
class ListOrders(Query[OrderPage]):
    """The newest orders first, all or those of one status."""

    status: OrderStatus | None = None
    page: int = 1
    size: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_PAGE:
            raise ValueError(f"a page has from 1 to {LARGEST_PAGE} orders")


@dataclass(frozen=True, slots=True)
class LineDetail:
    """A line as the order's page shows it."""

    sku: str
    product: str
    quantity: int
    unit_price: Money
    total: Money


@dataclass(frozen=True, slots=True)
class OrderDetail:
    """Everything that the orders app knows of one order."""

    order_id: int
    reference: str
    customer: str
    email: str
    placed_on: date
    status: OrderStatus
    total: Money
    lines: tuple[LineDetail, ...]


@dataclass(frozen=True, slots=True)
class GetOrder(Query[OrderDetail]):
    """One order, with its lines."""

    order_id: int


@dataclass(frozen=True, slots=True)
class RevenueRow:
    """What one customer ordered altogether."""

    customer: str
    orders: int
    revenue: Money


@dataclass(frozen=True, slots=True)
class ProductRow:
    """A product as a customer chooses it."""

    sku: str
    name: str
    price: Money


@dataclass(frozen=True, slots=True)
class CustomerRow:
    """A customer as a form offers it."""

    email: str
    name: str
