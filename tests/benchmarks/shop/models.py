from __future__ import annotations

from typing import Self

from django.db import models

from django_cqrs import command_handler, event_handler
from django_cqrs.modelling import aggregate, saga
from django_cqrs.models import RecordsEvents, SagaModel
from tests.benchmarks.shop.messages import (
    ParcelPacked,
    PlaceOnShelf,
    RentBook,
)


class Order(models.Model):
    number = models.IntegerField()
    customer = models.CharField(max_length=80)
    is_paid = models.BooleanField(default=False)


@aggregate
class Book(RecordsEvents, models.Model):
    """An aggregate; the same method is called by hand beside the bus."""

    title = models.CharField(max_length=80)
    borrower = models.CharField(max_length=80, blank=True)
    loans = models.IntegerField(default=0)

    @command_handler
    def rent(self, command: RentBook) -> None:
        self.borrower = command.borrower
        self.loans += 1


@aggregate
class Shelf(models.Model):
    """An aggregate whose message makes it, or changes the one that is there."""

    label = models.CharField(max_length=80, primary_key=True)
    books = models.IntegerField(default=0)

    @classmethod
    @command_handler
    def first(cls, command: PlaceOnShelf) -> Self:
        return cls(label=command.label, books=1)

    @command_handler
    def another(self, command: PlaceOnShelf) -> None:
        self.books += 1


@saga
class Dispatch(SagaModel):
    """A saga that counts the parcels of an order."""

    order_id = models.IntegerField(primary_key=True)
    customer = models.CharField(max_length=80)
    packed = models.IntegerField(default=0)

    @event_handler
    def on_packed(self, event: ParcelPacked) -> None:
        self.packed += 1


class Seller(models.Model):
    """A row of a projection."""

    name = models.CharField(max_length=80, primary_key=True)
    sold = models.IntegerField(default=0)
