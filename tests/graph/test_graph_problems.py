"""The checks of the message graph: no sender, no handler, a loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import pytest
from django.core.checks import run_checks

from django_cqrs import (
    CommandBus,
    EventBus,
    MessageGaveUp,
    Send,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.checks import check_graph, check_settings
from django_cqrs.graph.building import graph_of
from django_cqrs.graph.problems import GraphChecks, problems_of
from django_cqrs.problems import Rule
from tests.support import registry_of


@dataclass(frozen=True)
class Order:
    number: int = 0


@dataclass(frozen=True)
class Ship:
    number: int = 0


@message("order.placed")
@dataclass(frozen=True)
class Placed:
    number: int = 0


@dataclass(frozen=True)
class PlacedByPhone(Placed):
    pass


@message("order.shipped")
@dataclass(frozen=True)
class Shipped:
    number: int = 0


@event_handler
def placed(event: Placed) -> None: ...


@command_handler("order.order", on_dead="order.shipped", channel="memory")
def order(command: Order, events: EventBus) -> None:
    events.publish(Placed(command.number))


def found(*handlers, **options):
    graph = graph_of(registry_of(*handlers))
    given = {name: tuple(value) for name, value in options.items()}
    return list(problems_of(graph, GraphChecks(**given)))


def only(problems, rule):
    (problem,) = [each for each in problems if each.rule is rule]
    return problem


def rules(problems):
    return {each.rule for each in problems}


def test_g04_3_W010_an_event_that_nobody_publishes():
    """It has a handler and no sender; with a sender there is no problem. [G04.3]"""
    problem = only(found(placed), Rule.UNPUBLISHED_EVENT)

    assert problem.rule.id == "django_cqrs.W010"
    assert problem.obj is placed
    assert str(problem) == (
        "No code publishes Placed, which tests.graph.test_graph_problems.placed would "
        "handle. Publish it, or remove its handlers; if it is sent from elsewhere, "
        'name it in DJANGO_CQRS["GRAPH_CHECKS"]["outside"]. (django_cqrs.W010)'
    )
    assert Rule.UNPUBLISHED_EVENT not in rules(found(placed, order))


def test_g04_3_W010_is_silent_for_what_is_published_in_another_way():
    """A subclass stands for its base, and this library publishes events as well. [G04.3]"""

    @command_handler
    def by_phone(command: Ship, events: EventBus) -> None:
        events.publish(PlacedByPhone(1))

    @event_handler
    def gave_up(event: MessageGaveUp) -> None: ...

    @event_handler("order.*")
    def audit(event: object) -> None: ...

    assert Rule.UNPUBLISHED_EVENT not in rules(found(placed, by_phone, gave_up, audit))


def test_g04_3_W011_a_command_that_nobody_sends():
    """It has a handler and no sender; with a sender there is no problem. [G04.3]"""

    @command_handler
    def ship(command: Ship) -> None: ...

    @event_handler
    def ship_at_once(event: Placed, commands: CommandBus) -> None:
        commands.dispatch(Ship(event.number))

    problem = only(found(ship), Rule.UNREACHED_COMMAND)

    assert problem.rule.id == "django_cqrs.W011"
    assert problem.obj is ship
    assert problem.message == (
        "No code sends Ship, which tests.graph.test_graph_problems."
        "test_g04_3_W011_a_command_that_nobody_sends.<locals>.ship would handle."
    )
    assert Rule.UNREACHED_COMMAND not in rules(found(ship, ship_at_once))


def test_g04_3_W012_an_event_that_nobody_handles():
    """It is published and has no handler; with a handler there is no problem. [G04.3]"""
    problem = only(found(order), Rule.UNHANDLED_EVENT)

    assert problem.rule.id == "django_cqrs.W012"
    assert problem.obj is Placed
    assert problem.message == (
        "tests.graph.test_graph_problems.order publishes Placed, and nobody handles it."
    )
    assert Rule.UNHANDLED_EVENT not in rules(found(order, placed))


@command_handler
def ship(command: Ship, events: EventBus) -> None:
    events.publish(Shipped(command.number))


def test_g04_3_W013_events_that_lead_back_to_themselves():
    """The check shows the shortest way, by commands as well as by events. [G04.3]"""

    @event_handler
    def ship_again(event: Shipped) -> Send:
        return Send(Ship(event.number))

    problem = only(found(ship_again, ship), Rule.EVENT_LOOP)

    assert problem.rule.id == "django_cqrs.W013"
    assert problem.obj is ship_again
    name = "tests.graph.test_graph_problems"
    assert problem.message == (
        "Shipped leads back to itself in one transaction: Shipped -> "
        f"{name}.ship_again -> Ship -> {name}.ship -> Shipped."
    )


def test_g04_3_W013_is_silent_where_a_channel_or_nobody_leads_back():
    """A channel ends the transaction; a query, and an intended loop, are none. [G04.3]"""

    @event_handler(channel="memory")
    def ship_later(event: Shipped) -> Send:
        return Send(Ship(event.number))

    @event_handler(on_dead="order.shipped")
    def told(event: Shipped) -> None: ...

    @query_handler("ship.count")
    def count(number: int) -> int: ...

    @event_handler
    def ship_again(event: Shipped) -> Send:
        return Send(Ship(event.number))

    assert Rule.EVENT_LOOP not in rules(found(ship_later, ship, told, count))
    intended = found(ship_again, ship, intended_loops=["order.shipped"])
    assert Rule.EVENT_LOOP not in rules(intended)


def test_g04_3_W013_shows_each_loop_once():
    """Two events of one loop are one problem; two loops are two. [G04.3]"""

    @event_handler
    def one(event: Placed, events: EventBus) -> None:
        events.publish(Shipped(1))

    @event_handler
    def other(event: Shipped, events: EventBus) -> None:
        events.publish(Placed(1))

    @event_handler("order.paid")
    def alone(number: int, events: EventBus) -> None:
        events.publish(number, route="order.paid")

    loops = [p for p in found(one, other, alone) if p.rule is Rule.EVENT_LOOP]

    assert [p.message.partition(" ")[0] for p in loops] == ["order.paid", "Placed"]


@pytest.mark.parametrize(
    "pattern", ["order.*", "order.placed", "Placed", "*.test_graph_problems.Placed"]
)
def test_g04_4_messages_from_outside_are_left_out(pattern):
    """Any of a message's names may be given, and a pattern of them. [G04.4]"""
    assert found(placed, outside=[pattern]) == []
    assert Rule.UNHANDLED_EVENT not in rules(found(order, outside=[pattern]))


def test_g04_3_a_class_of_base_events_is_published_by_any():
    """An abstract base is handled, and only its subclasses are published. [G04.3]"""

    class Event(ABC):
        @abstractmethod
        def text(self): ...

    @dataclass(frozen=True)
    class Real(Event):
        def text(self): ...

    @event_handler
    def hear(event: Event) -> None: ...

    @command_handler
    def say(command: Ship, events: EventBus) -> None:
        events.publish(Real())

    assert rules(found(hear, say)) == {Rule.UNREACHED_COMMAND}


@pytest.mark.django_db(databases="__all__")  # Django asks SQLite whether it has JSON
def test_g04_3_the_checks_are_off_by_default(settings):
    """The settings turn them on. [G04.3]"""
    assert check_graph() == []

    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "GRAPH_CHECKS": True}
    ids = {each.id for each in run_checks(tags=["django_cqrs"])}
    assert "django_cqrs.W010" in ids

    settings.DJANGO_CQRS = {
        **settings.DJANGO_CQRS,
        "GRAPH_CHECKS": {"outside": ["*"], "intended_loops": ("*",)},
    }
    assert run_checks(tags=["django_cqrs"]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("yes", "'yes' is neither a bool nor a dictionary of the options "),
        (None, "None is neither a bool nor a dictionary of the options "),
        ({"outsid": []}, "{'outsid': []} is neither a bool nor a dictionary "),
        ({"outside": "order.*"}, "'order.*' is not a list of names."),
        ({"outside": [1]}, "[1] is not a list of names."),
    ],
)
def test_g04_3_options_that_cannot_be_used_are_a_check(settings, value, text):
    """One error says what the setting takes; the graph is not checked. [G04.3]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "GRAPH_CHECKS": value}

    (problem,) = check_settings()

    assert problem.id == "django_cqrs.E013"
    assert text in problem.msg
    assert check_graph() == []
