"""The messages that the stock app receives and stores."""

from __future__ import annotations

from dataclasses import dataclass

from django_cqrs import Command, message

# Commands: do this.


@dataclass(frozen=True, slots=True)
class ReceiveGoods(Command[object]):
    """Put goods that have arrived on their shelf."""

    sku: str
    quantity: int

    def __post_init__(self) -> None:
        if self.quantity < 1:
            raise ValueError(f"the quantity must be at least 1, not {self.quantity}")


@dataclass(frozen=True, slots=True)
class CountGoods:
    """Correct the stock: somebody has counted what lies on the shelf."""

    sku: str
    quantity: int

    def __post_init__(self) -> None:
        if self.quantity < 0:
            raise ValueError(f"nobody counts {self.quantity}")


# Events: this happened. They are stored for good, each under its name.


@message("stock.received")
@dataclass(frozen=True, slots=True)
class GoodsReceived:
    """Goods were put on the shelf."""

    sku: str
    quantity: int


@message("stock.taken")
@dataclass(frozen=True, slots=True)
class GoodsTaken:
    """Goods left the shelf for an order."""

    sku: str
    quantity: int
    order: str


@message("stock.returned")
@dataclass(frozen=True, slots=True)
class GoodsReturned:
    """Goods of a cancelled order are back on the shelf."""

    sku: str
    quantity: int
    order: str


@message("stock.counted")
@dataclass(frozen=True, slots=True)
class GoodsCounted:
    """As many goods as this were found on the shelf."""

    sku: str
    quantity: int


# The answer of the query "stock.levels".


@dataclass(frozen=True, slots=True)
class StockRow:
    """The goods on one shelf."""

    sku: str
    quantity: int
