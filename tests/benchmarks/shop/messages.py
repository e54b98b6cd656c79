"""Messages as a project writes them; the handlers are as small as can be."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from decimal import Decimal
from uuid import UUID


@dataclasses.dataclass(frozen=True, slots=True)
class AddOne:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class AddInTransaction:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class AddWithHeader:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class AddWithBus:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class AddWithIdentity:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class AddNested:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class PlaceOrder:
    number: int
    customer: str


@dataclasses.dataclass(frozen=True, slots=True)
class GetSum:
    of: int


@dataclasses.dataclass(frozen=True, slots=True)
class Added:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class AddedForTen:
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class BookDelivery:
    """Six fields, for the conversion from JSON."""

    order_id: UUID
    address: str
    weight: Decimal
    at: datetime
    parcels: int = 1
    is_express: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PlaceOrders:
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class OrderPlaced:
    number: int
    customer: str


@dataclasses.dataclass(frozen=True, slots=True)
class RentBook:
    book_id: int
    borrower: str


@dataclasses.dataclass(frozen=True, slots=True)
class ParcelPacked:
    order_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class PlaceOnShelf:
    label: str
