"""What the tests of the shop have in common."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from django_cqrs import command_bus
from orders.models import Customer, Product
from payments.models import CreditAccount
from stock.messages import ReceiveGoods
from stock.models import StockLevel

PATIENCE: Final = 600.0
"""Seconds after which what has not happened never will, on a busy machine too."""


def open_shop() -> None:
    """Put one customer, with credit for 100 EUR, before two products."""
    ada = Customer.objects.create(email="ada@mail.example", name="Ada")
    CreditAccount.objects.create(customer=ada, credit_limit=Decimal(100))
    Product.objects.create(sku="TEA", name="Tea", unit_price=Decimal("9.90"))
    Product.objects.create(sku="CUP", name="Cup", unit_price=Decimal("20.00"))
    command_bus.dispatch(ReceiveGoods("TEA", 50))
    command_bus.dispatch(ReceiveGoods("CUP", 3))


def stock_of(sku: str) -> int:
    """Look at the view of the stock."""
    return StockLevel.objects.get(sku=sku).quantity
