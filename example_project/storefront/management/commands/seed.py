"""Fill an empty shop."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand

from office.models import FullMailbox
from orders.models import Order
from storefront.data import load_catalogue, require_tables
from storefront.orderbook import import_lines, read_lines

FULL = "yasmin.aydin@mail.example"


class Command(BaseCommand):
    """Fill an empty shop; a shop with orders stays as it is."""

    help = (
        "Fills an empty shop with products, customers and the orders of "
        "data/orders.csv. While DEBUG is on, adds the superuser admin (password: "
        "admin) where there is none."
    )

    def handle(self, *, verbosity: int, **options: Any) -> None:
        self.verbosity = verbosity
        require_tables()
        load_catalogue()
        if not Order.objects.exists():
            self.say("Filling the shop with the orders of data/orders.csv ...")
            report = import_lines(read_lines())
            self.say(f"{report.placed} orders placed.")
            if settings.DEBUG:
                # So that a worker leaves dead letters to look at in the admin.
                FullMailbox.objects.get_or_create(address=FULL)
        if settings.DEBUG:
            self.add_superuser()

    def add_superuser(self) -> None:
        """Open the admin to whoever tries the example."""
        users = get_user_model().objects
        if not users.filter(is_superuser=True).exists():
            users.create_superuser("admin", password="admin")  # noqa: S106
            self.say("The admin knows the user admin, password admin.")

    def say(self, text: str) -> None:
        if self.verbosity:
            self.stdout.write(text)
