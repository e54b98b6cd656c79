"""Fill an empty shop."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand

from common.errors import Refused
from django_cqrs import command_bus
from django_cqrs.events import projections
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from office.models import FullMailbox
from orders.messages import OrderedItem, PlaceOrder, new_reference
from orders.models import Order
from storefront.data import load_catalogue, require_tables
from storefront.orderbook import import_lines, read_lines

FULL = "yasmin.aydin@mail.example"


class Command(BaseCommand):
    """Fill an empty shop; a shop with orders stays as it is."""

    help = (
        "Fills an empty shop with products, customers and the orders of "
        "data/orders.csv. While DEBUG is on, adds the superuser admin (password: "
        "admin) if a superuser does not exist."
    )

    def handle(self, *, verbosity: int, **options: Any) -> None:
        self.verbosity = verbosity
        require_tables()
        load_catalogue()
        if not Order.objects.exists():
            self.say("Filling the shop with the orders of data/orders.csv ...")
            report = import_lines(read_lines())
            self.say(f"{report.placed} orders placed.")
            # As `cqrs_worker views` would: the page of sales has something to show.
            projections.run("sales")
        if settings.DEBUG:
            self.fill_desk()
            self.add_superuser()

    def fill_desk(self) -> None:
        """Create waiting messages, some of which become dead letters."""
        FullMailbox.objects.get_or_create(address=FULL)
        waiting = OutboxMessage.objects.filter(channel="mail")
        if not waiting.exists() and not DeadLetter.objects.exists():
            order = PlaceOrder(
                reference=new_reference(),
                customer=FULL,
                lines=(OrderedItem("TEA-MINT", 1),),
            )
            with suppress(Refused):  # sold out, or no credit left
                command_bus.dispatch(order)
        count = waiting.count()
        if count:
            self.say(
                f"{count} messages wait in 'mail'; python manage.py cqrs_worker mail "
                "handles them. The admin shows these messages and dead letters."
            )

    def add_superuser(self) -> None:
        """Open the admin to whoever tries the example."""
        users = get_user_model().objects
        if not users.filter(is_superuser=True).exists():
            users.create_superuser("admin", password="admin")  # noqa: S106
            self.say("You can sign in to the admin with user admin, password admin.")

    def say(self, text: str) -> None:
        if self.verbosity:
            self.stdout.write(text)
