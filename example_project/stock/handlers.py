"""
How the stock follows the orders, and how its view follows the stock.

The orders app does not know that these handlers exist. They run in the transaction of
the order, so an exception here undoes the order.
"""

from __future__ import annotations

from typing import Annotated

from django_cqrs import event_handler, query_handler
from django_cqrs.events import Row, projection
from django_cqrs.modelling import Repository
from orders.messages import OrderCancelled, OrderPlaced
from stock.errors import OutOfStock
from stock.messages import (
    GoodsCounted,
    GoodsReceived,
    GoodsReturned,
    GoodsTaken,
    StockRow,
)
from stock.models import Shelf, StockLevel


@event_handler
def take_goods(event: OrderPlaced, shelves: Repository[Shelf]) -> None:
    """Take what was ordered, or refuse the order."""
    # In one order, so that two customers never wait for each other.
    for position, line in sorted(enumerate(event.lines), key=lambda line: line[1].sku):
        field = f"lines.{position}.quantity"
        shelf = shelves.find(line.sku)
        if shelf is None:
            raise OutOfStock(f"only 0 of {line.sku} left", field=field)
        shelf.take(line.quantity, event.reference, field=field)
        shelves.save(shelf)


@event_handler
def return_goods(event: OrderCancelled, shelves: Repository[Shelf]) -> None:
    """Put the goods of a cancelled order back."""
    for line in sorted(event.lines, key=lambda line: line.sku):
        shelf = shelves.get(line.sku)
        shelf.put_back(line.quantity, event.reference)
        shelves.save(shelf)


@projection("stock", views=[StockLevel], sources=[Shelf])
class StockLevels:
    """
    One row for each shelf, for whoever reads.

    It is inline: the row changes in the transaction that appends the event. It can be
    fed with the same events again, which is called a rebuild.
    """

    @event_handler
    def add(
        self,
        event: GoodsReceived | GoodsReturned,
        level: Annotated[StockLevel, Row("sku")],
    ) -> None:
        level.quantity += event.quantity

    @event_handler
    def subtract(
        self, event: GoodsTaken, level: Annotated[StockLevel, Row("sku")]
    ) -> None:
        level.quantity -= event.quantity

    @event_handler
    def correct(
        self, event: GoodsCounted, level: Annotated[StockLevel, Row("sku")]
    ) -> None:
        level.quantity = event.quantity

    @query_handler("stock.levels")
    def show(self) -> list[StockRow]:
        """Show what lies on every shelf."""
        return [StockRow(row.sku, row.quantity) for row in StockLevel.objects.all()]
