"""
What the stock app stores: events, and a view of them.

A shelf is an event-sourced aggregate. It has no table: what is stored is that goods
were received, taken, returned and counted, and the shelf is made of that whenever it
is needed. The table of levels is for readers; a projection in handlers.py fills it.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models

from django_cqrs import command_handler
from django_cqrs.events import applies, event_stream
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents
from stock.errors import OutOfStock
from stock.messages import (
    CountGoods,
    GoodsCounted,
    GoodsReceived,
    GoodsReturned,
    GoodsTaken,
    ReceiveGoods,
)


@aggregate(identifier="sku")
@event_stream("stock.shelf", snapshot_every=50)
@dataclass
class Shelf(RecordsEvents):
    """The place of one product."""

    sku: str = ""
    quantity: int = 0

    # Handlers decide: they say what has happened, and change nothing.

    @command_handler
    @classmethod
    def open(cls, command: ReceiveGoods) -> GoodsReceived:
        """Begin a shelf with the first goods that arrive."""
        return GoodsReceived(command.sku, command.quantity)

    @command_handler
    def receive(self, command: ReceiveGoods) -> GoodsReceived:
        """Add goods to those that are there."""
        return GoodsReceived(command.sku, command.quantity)

    @command_handler
    def count(self, command: CountGoods) -> GoodsCounted | None:
        """Note a difference; where there is none, nothing has happened."""
        if command.quantity == self.quantity:
            return None
        return GoodsCounted(self.sku, command.quantity)

    def take(self, quantity: int, order: str, *, field: str = "") -> None:
        """Give goods away for an order, if there are enough."""
        if quantity > self.quantity:
            raise OutOfStock(f"only {self.quantity} of {self.sku} left", field=field)
        self.record(GoodsTaken(self.sku, quantity, order))

    def put_back(self, quantity: int, order: str) -> None:
        """Take the goods of an order back."""
        self.record(GoodsReturned(self.sku, quantity, order))

    # Appliers change: what they are told has happened.

    @applies
    def received(self, event: GoodsReceived) -> None:
        self.sku = event.sku
        self.quantity += event.quantity

    @applies
    def taken(self, event: GoodsTaken) -> None:
        self.quantity -= event.quantity

    @applies
    def returned(self, event: GoodsReturned) -> None:
        self.quantity += event.quantity

    @applies
    def counted(self, event: GoodsCounted) -> None:
        self.quantity = event.quantity


class StockLevel(models.Model):
    """The goods on one shelf; written by the projection alone."""

    sku = models.CharField("SKU", max_length=20, primary_key=True)
    quantity = models.IntegerField(default=0)

    class Meta:
        ordering = ("sku",)

    def __str__(self) -> str:
        return f"{self.quantity} of {self.sku}"
