"""Aggregates built on the model classes of other packages."""

from __future__ import annotations

from dataclasses import dataclass

import pghistory
from django.db import models
from django_fsm import FSMField, transition
from django_lifecycle import AFTER_UPDATE, LifecycleModelMixin, hook
from model_utils import FieldTracker
from polymorphic.models import PolymorphicModel
from simple_history.models import HistoricalRecords

from django_cqrs import command_handler
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents


@dataclass(frozen=True)
class PlaceOrder:
    order_id: int


@dataclass(frozen=True)
class PayOrder:
    order_id: int


@dataclass(frozen=True)
class OrderPaid:
    order_id: int


@aggregate
class Order(RecordsEvents, models.Model):
    """A state machine of django-fsm-2, whose transition is the handler."""

    order_id = models.IntegerField(primary_key=True)
    state = FSMField(default="new", protected=True)
    tracker = FieldTracker(fields=["state"])

    @command_handler
    @classmethod
    def place(cls, command: PlaceOrder) -> Order:
        return cls(order_id=command.order_id)

    @command_handler
    @transition(field=state, source="new", target="paid")
    def pay(self, command: PayOrder) -> None:
        self.record(OrderPaid(self.order_id))


@dataclass(frozen=True)
class Settle:
    payment_id: int


@aggregate
class Payment(PolymorphicModel):
    payment_id = models.IntegerField(primary_key=True)
    settled_by = models.CharField(max_length=20, default="")

    @command_handler
    def settle(self, command: Settle) -> str:
        self.settled_by = "payment"
        return self.settled_by


class CardPayment(Payment):
    card = models.CharField(max_length=20, default="")

    def settle(self, command: Settle) -> str:
        self.settled_by = "card"
        return self.settled_by


@dataclass(frozen=True)
class Rename:
    room_id: int
    name: str


@pghistory.track()
@aggregate
class Room(models.Model):
    """Each change leaves an event of django-pghistory, written by a trigger."""

    room_id = models.IntegerField(primary_key=True)
    name = models.CharField(max_length=20)

    @command_handler
    def rename(self, command: Rename) -> None:
        self.name = command.name
        if command.name == "bad":
            raise ValueError(command.name)


@dataclass(frozen=True)
class Retitle:
    book_id: int
    title: str


@aggregate
class Book(LifecycleModelMixin, models.Model):
    """Hooks of django-lifecycle and rows of django-simple-history at each save."""

    book_id = models.IntegerField(primary_key=True)
    title = models.CharField(max_length=20)
    hooked = models.IntegerField(default=0)
    history = HistoricalRecords()

    @command_handler
    def retitle(self, command: Retitle) -> None:
        self.title = command.title
        if command.title == "bad":
            raise ValueError(command.title)

    @hook(AFTER_UPDATE, when="title", has_changed=True)
    def count(self) -> None:
        type(self).objects.filter(pk=self.pk).update(hooked=models.F("hooked") + 1)


class Row(models.Model):
    """What a bulk load writes."""

    number = models.IntegerField()
