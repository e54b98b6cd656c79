"""Stored events in the message graph: projections, and objects that are their events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from django_cqrs import Identifier, command_handler, event_handler, message
from django_cqrs.events import Emitter, applies, event_stream, projection
from django_cqrs.graph.building import graph_of
from django_cqrs.graph.problems import GraphChecks, problems_of
from django_cqrs.graph.rows import as_text
from django_cqrs.modelling import aggregate
from django_cqrs.problems import Rule
from tests.support import registry_of


@dataclass(frozen=True)
class Sell:
    basket_id: str


@message("graph.sold")
@dataclass(frozen=True)
class Sold:
    basket_id: str


@message("graph.closed")
@dataclass(frozen=True)
class Closed:
    basket_id: str


@message("graph.counted")
@dataclass(frozen=True)
class Counted:
    number: int = 0


@aggregate
@event_stream("graph.basket")
class Basket:
    basket_id: Annotated[str, Identifier()]

    @command_handler
    @classmethod
    def sell(cls, command: Sell) -> list[Sold | Closed]:
        return [Sold(command.basket_id), Closed(command.basket_id)]

    @applies
    def sold(self, event: Sold) -> None:
        self.basket_id = event.basket_id

    @applies
    def closed(self, event: Closed) -> None: ...


@projection("graph.sellers", channel="outbox")
class Sellers:
    @event_handler
    def count(self, event: Sold, emit: Emitter) -> None:
        emit(Counted(1))


@projection("graph.counts")
class Counts:
    @event_handler("graph.count*")
    def count(self, event: Counted) -> None: ...


TEXT = """\
Commands (1)

Sell
  sent by     nobody that the code shows
  handled by  tests.graph.test_stored_events.Basket.sell

Events (3)

Closed
  sent by     tests.graph.test_stored_events.Basket.sell
  handled by  the object that records it

Counted
  sent by     tests.graph.test_stored_events.Sellers.count
  handled by  tests.graph.test_stored_events.Counts.count

Sold
  sent by     tests.graph.test_stored_events.Basket.sell
  handled by  the object that records it
              tests.graph.test_stored_events.Sellers.count, channel outbox"""


def test_g03_2_projections_and_appliers_take_stored_events():
    """Those that return events send them, and those that are fed with them handle them. [G03.2]"""
    graph = graph_of(registry_of(Basket, Sellers, Counts))

    assert as_text(graph) == TEXT


def test_g04_3_an_event_that_its_object_applies_is_handled():
    """No handler of its own is missing; what only one emits, and nobody takes, is one. [G04.3]"""
    found = problems_of(graph_of(registry_of(Basket)), GraphChecks())
    assert {each.rule for each in found} == {Rule.UNREACHED_COMMAND}

    found = problems_of(graph_of(registry_of(Basket, Sellers)), GraphChecks())
    assert {each.rule for each in found} == {
        Rule.UNREACHED_COMMAND,
        Rule.UNHANDLED_EVENT,
    }
