"""Objects that a repository of one's own keeps: what holds of others holds of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest

from django_cqrs import Registry, command_handler
from django_cqrs.exceptions import AggregateAlreadyExists
from django_cqrs.modelling import Repository, aggregate

pytestmark = pytest.mark.django_db


@dataclass
class Open:
    basket_id: int


@dataclass(slots=True)
class Slotted:
    basket_id: int
    apples: int = 0


@dataclass
class Plain:
    basket_id: int
    apples: int = 0


@pytest.fixture(params=[Plain, Slotted])
def basket(request):
    """A class of baskets, one that has room for a weak reference and one without."""
    kept = {}

    class InMemory(Repository):
        def find(self, identifier):
            return copy.copy(kept.get(identifier))

        def save(self, instance):
            kept[instance.basket_id] = copy.copy(instance)

    @aggregate(identifier="basket_id", repository=InMemory())
    class Basket(request.param):
        if request.param is Slotted:
            __slots__ = ()
        contents = kept

        @command_handler
        @classmethod
        def open(cls, command: Open) -> "Basket":  # noqa: UP037
            return cls(command.basket_id)

        @command_handler("basket.add")
        def add(self, apples: int) -> None:
            self.apples += apples

        @command_handler("basket.copy")
        def duplicate(self, basket_id: int) -> "Basket":  # noqa: UP037
            return type(self)(basket_id, self.apples)

    return Basket


@pytest.fixture
def registry(basket):
    registry = Registry()
    registry.add(basket)
    return registry


def test_a_factory_whose_identifier_is_taken_is_refused(basket, registry):
    """What is there stays as it is."""
    registry.command_bus.dispatch(Open(7))
    registry.command_bus.dispatch(3, route="basket.add", aggregate_id=7)

    with pytest.raises(AggregateAlreadyExists) as raised:
        registry.command_bus.dispatch(Open(7))

    assert str(raised.value) == "Basket with basket_id=7 exists already."
    assert basket.contents[7].apples == 3


def test_an_action_that_makes_another_one_is_refused_as_well(basket, registry):
    """The identifier of what a method returns may be taken, too."""
    registry.command_bus.dispatch(Open(7))
    registry.command_bus.dispatch(Open(8))

    with pytest.raises(AggregateAlreadyExists):
        registry.command_bus.dispatch(8, route="basket.copy", aggregate_id=7)


def test_an_object_that_was_found_is_saved_by_hand(basket, registry):
    """It is no other object with its identifier."""
    registry.command_bus.dispatch(Open(7))

    @command_handler("basket.by_hand")
    def by_hand(apples: int, baskets: None) -> None:
        found = baskets.get(7)
        found.apples += apples
        baskets.save(found)
        baskets.save(found)

    by_hand.__annotations__ |= {"apples": int, "baskets": Repository[basket]}
    registry.add(by_hand)
    registry.command_bus.dispatch(2, route="basket.by_hand")

    assert basket.contents[7].apples == 2
