"""
What the orders app stores, and what an order does.

An order is an aggregate: whoever wants to change one sends it a command. It is found,
its row is locked, the method is called, the order is saved, and what it has recorded
is published, all in one transaction. Its row is its state. What has happened to it is
kept beside the row as well, in the event stream of the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import Annotated

from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from common.money import Money
from django_cqrs import Depends, command_handler, event_handler
from django_cqrs.events import event_stream
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents
from orders.errors import (
    AlreadyPlaced,
    OrderIsClosed,
    UnknownCustomer,
    UnknownProduct,
    WrongTotal,
)
from orders.messages import (
    LONGEST_REFERENCE,
    CancelOrder,
    OrderCancelled,
    OrderedItem,
    OrderPlaced,
    PlaceOrder,
)
from orders.status import OrderStatus
from shipping.messages import ShipmentSent


def today() -> date:
    """Tell the date in the shop's time zone."""
    return timezone.localdate()


class Customer(models.Model):
    """Somebody who may order."""

    email = models.EmailField(unique=True)
    name = models.CharField(max_length=80)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    """An article of the catalogue, priced in euros."""

    sku = models.CharField("SKU", max_length=20, unique=True)
    name = models.CharField(max_length=80)
    unit_price = models.DecimalField(max_digits=8, decimal_places=2)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    @property
    def price(self) -> Money:
        """The price of one."""
        return Money(self.unit_price)


@aggregate
@event_stream("orders.order")
class Order(RecordsEvents, models.Model):
    """What one customer ordered at one time."""

    reference = models.CharField(max_length=LONGEST_REFERENCE, unique=True)
    customer = models.ForeignKey(Customer, models.PROTECT, related_name="orders")
    placed_on = models.DateField()
    status = models.CharField(
        max_length=10, choices=OrderStatus, default=OrderStatus.PLACED, db_index=True
    )
    total_amount = models.DecimalField(max_digits=10, decimal_places=2, default=0)

    class Meta:
        ordering = ("-placed_on", "-pk")

    def __str__(self) -> str:
        return self.reference

    def get_absolute_url(self) -> str:
        """The page of this order."""
        return reverse("storefront:order", args=[self.pk])

    @property
    def total(self) -> Money:
        """The sum of all lines."""
        return Money(self.total_amount)

    # Reached by its class, and by a key for those who have but a dict of its fields.
    @command_handler
    @command_handler("order.place")
    @classmethod
    def place(cls, command: PlaceOrder, on: Annotated[date, Depends(today)]) -> Order:
        """Write the order down, take its goods from stock, and tell everybody."""
        if cls.objects.filter(reference=command.reference).exists():
            raise AlreadyPlaced(
                f"order {command.reference} was placed before", field="reference"
            )
        customer = find_customer(command.customer)
        order = cls(
            reference=command.reference,
            customer=customer,
            placed_on=command.placed_on or on,
        )
        # The lines and the event need its number, which the database gives.
        order.save()
        total = order.add_lines(command.lines)
        if command.total not in {None, total}:
            raise WrongTotal(
                f"the catalogue asks {total}, not {command.total}", field="total"
            )
        order.total_amount = total.amount
        order.record(
            OrderPlaced(
                order.pk,
                order.reference,
                customer.email,
                total,
                order.placed_on,
                command.lines,
            )
        )
        return order

    @command_handler
    @command_handler("order.cancel")
    def cancel(self, command: CancelOrder) -> None:
        """Call the order off."""
        if self.status != OrderStatus.PLACED:
            raise OrderIsClosed(f"order {self.reference} is {self.status} already")
        self.status = OrderStatus.CANCELLED
        lines = self.lines.select_related("product")
        self.record(
            OrderCancelled(
                self.pk,
                self.reference,
                self.total,
                self.placed_on,
                tuple(OrderedItem(line.product.sku, line.quantity) for line in lines),
            )
        )

    @event_handler
    def close(self, event: ShipmentSent) -> None:
        """Close the order whose parcel has left."""
        self.status = OrderStatus.SHIPPED

    def add_lines(self, items: Iterable[OrderedItem]) -> Money:
        """Write the order's lines at the prices of today, and add these up."""
        total = Money(Decimal(0))
        skus = {item.sku for item in items}
        products = Product.objects.filter(sku__in=skus).in_bulk(field_name="sku")
        for position, item in enumerate(items):
            product = products.get(item.sku)
            if product is None:
                raise UnknownProduct(
                    f"product {item.sku!r} does not exist",
                    field=f"lines.{position}.sku",
                )
            self.lines.create(
                product=product, quantity=item.quantity, unit_price=product.unit_price
            )
            total += product.price * item.quantity
        return total


class OrderLine(models.Model):
    """One product of an order, at the price of that day."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.PROTECT, related_name="+")
    quantity = models.PositiveIntegerField()
    unit_price = models.DecimalField(max_digits=8, decimal_places=2)

    class Meta:
        ordering = ("pk",)
        constraints = [
            models.CheckConstraint(
                condition=Q(quantity__gt=0), name="order_line_has_a_quantity"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product}"  # noqa: RUF001


def find_customer(email: str) -> Customer:
    """Find a customer, however the address is capitalised."""
    customer = Customer.objects.filter(email__iexact=email).first()
    if customer is None:
        raise UnknownCustomer(
            f"no customer has the address {email!r}", field="customer"
        )
    return customer
