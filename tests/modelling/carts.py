"""The tables of carts, and an aggregate with child rows."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models

from django_cqrs import command_handler
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents, SagaModel


class CartRow(models.Model):
    text = models.CharField(max_length=20, default="")


class DeliveryRow(SagaModel):
    cart_id = models.IntegerField(primary_key=True)
    text = models.CharField(max_length=20, default="")


class CartLine(models.Model):
    """A child row of any kind of cart, by the key of its parent."""

    cart = models.IntegerField()
    text = models.CharField(max_length=20)


@dataclass(frozen=True)
class Put:
    shelf: str
    book: str


@aggregate
class Shelf(RecordsEvents, models.Model):
    """A factory or an action, by name; its books are child rows."""

    shelf = models.CharField(max_length=20, primary_key=True)
    count = models.IntegerField(default=0)
    first: tuple[str, ...] = ()

    @command_handler
    @classmethod
    def begin(cls, command: Put) -> Shelf:
        shelf = cls(shelf=command.shelf, count=1)
        shelf.first = (command.book,)
        return shelf

    @command_handler
    def put(self, command: Put) -> None:
        self.count += 1
        self.books.create(title=command.book)

    def post_insert(self) -> None:
        for title in self.first:
            self.books.create(title=title)


class Book(models.Model):
    shelf = models.ForeignKey(Shelf, models.CASCADE, related_name="books")
    title = models.CharField(max_length=20)
