"""The data that the shop starts with: its catalogue and its customers."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor

from django_cqrs import command_bus
from orders.models import Customer, Product
from payments.models import CreditAccount
from stock.messages import ReceiveGoods
from stock.models import StockLevel

if TYPE_CHECKING:
    from pathlib import Path

DATA: Path = settings.BASE_DIR / "data"


def require_tables() -> None:
    """Stop with advice where `migrate` has not been run."""
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise CommandError(
            "The database lacks tables: run 'python manage.py migrate' first."
        )


@transaction.atomic
def load_catalogue() -> None:
    """Add the products and customers that are missing; leave the others alone."""
    rows = read_rows("products.csv")
    stock = {row["sku"]: int(row.pop("stock")) for row in rows}
    Product.objects.bulk_create((Product(**row) for row in rows), ignore_conflicts=True)
    for sku in sorted(stock.keys() - StockLevel.objects.in_bulk()):
        command_bus.dispatch(ReceiveGoods(sku, stock[sku]))
    limits = {row["email"]: row for row in read_rows("customers.csv")}
    Customer.objects.bulk_create(
        (Customer(email=email, name=row["name"]) for email, row in limits.items()),
        ignore_conflicts=True,
    )
    CreditAccount.objects.bulk_create(
        (
            CreditAccount(
                customer=customer, credit_limit=limits[customer.email]["credit_limit"]
            )
            for customer in Customer.objects.filter(email__in=limits)
        ),
        ignore_conflicts=True,
    )


def read_rows(name: str) -> list[dict[str, str]]:
    """Read a CSV file with a line of headings."""
    with (DATA / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
