"""Aggregates that record what only the database knows, in every way there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from django.db import models
from django.db.models import F
from django.db.models.functions import Now

from django_cqrs import command_handler, event_handler
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents


@dataclass(frozen=True)
class Make:
    way: str


@dataclass(frozen=True)
class Change:
    deal_id: int
    way: str


@dataclass(frozen=True)
class Made:
    deal: int
    buyer: str | None = None


@dataclass(frozen=True)
class Named:
    deal_id: int | None
    buyer: str | None = None


class Tupled(NamedTuple):
    deal: int
    note: str = ""


def modelled(deal_id: Any, note: Any = None) -> Any:
    """Return a pydantic model; start-up, which imports this module, needs no pydantic."""
    from pydantic import create_model

    fields: Any = {"deal_id": (int | None, ...), "note": (Any, None)}
    return create_model("Modelled", **fields)(deal_id=deal_id, note=note)


@dataclass(frozen=True)
class Line:
    deal: int


@dataclass(frozen=True)
class Lined:
    lines: list[Line]
    by_name: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moved:
    deal_id: int
    total: Any


@dataclass(frozen=True)
class Begun:
    buyer: str


def made_in(way: str, deal: Any) -> Any:
    """Return what a factory says of a new object, whose key nobody knows yet."""
    return {
        "dataclass": lambda: Made(deal.pk),
        "optional field of the key's name": lambda: Named(deal.pk),
        "named tuple": lambda: Tupled(deal.id),
        "pydantic model": lambda: modelled(deal.pk),
        "list": lambda: Lined([Line(deal.pk)]),
        "database default": lambda: Begun(deal.buyer),
        "key and default": lambda: Named(7, deal.buyer),
        "nothing of it": lambda: Begun("ada"),
        "an empty field": lambda: Made(7, None),
    }[way]()


def moved_in(way: str, deal: Any) -> Any:
    """Return what an action says of its object."""
    return {
        "F": lambda: Moved(deal.pk, deal.total),
        "function": lambda: Moved(deal.pk, Now()),
        "list": lambda: Moved(deal.pk, [1, deal.total]),
        "dict": lambda: Lined([], {"total": deal.total}),
        "pydantic model": lambda: modelled(deal.pk, deal.total),
        "bare": lambda: deal.total,
        "plain": lambda: Moved(deal.pk, 3),
    }[way]()


@aggregate
class Deal(RecordsEvents, models.Model):
    buyer = models.CharField(max_length=20, db_default="nobody")
    total = models.IntegerField(default=0)

    @command_handler("deal.make")
    @classmethod
    def make(cls, command: Make) -> Deal:
        deal = cls()
        deal.record(made_in(command.way, deal))
        return deal

    @command_handler("deal.save_first")
    @classmethod
    def save_first(cls, command: Make) -> Deal:
        deal = cls()
        deal.save()
        deal.record(made_in(command.way, deal))
        return deal

    @event_handler("deal.begin")
    @classmethod
    def begin(cls, event: Make) -> Deal:
        return cls.make(event)

    @command_handler("deal.change")
    def change(self, command: Change) -> None:
        self.total = F("total") + 1
        self.record(moved_in(command.way, self))


class Trade(models.Model):
    """No aggregate by itself."""

    buyer = models.CharField(max_length=20, db_default="nobody")
    total = models.IntegerField(default=0)


@aggregate(events="news")
class Bargain(models.Model):
    """It has no RecordsEvents: what it has recorded is asked for before the save."""

    buyer = models.CharField(max_length=20, db_default="nobody")
    total = models.IntegerField(default=0)
    way = ""

    @command_handler("bargain.make")
    @classmethod
    def make(cls, command: Make) -> Bargain:
        bargain = cls()
        bargain.way = command.way
        return bargain

    @command_handler("bargain.change")
    def change(self, command: Annotated[Change, "of the deal's own id"]) -> None:
        self.total = F("total") + 1
        self.way = command.way

    def news(self) -> list[Any]:
        if not self.way:
            return []
        is_new = self.pk is None
        return [made_in(self.way, self) if is_new else moved_in(self.way, self)]
