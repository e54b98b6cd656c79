"""Child rows: a hook after the insert, in its transaction, and only for the winner."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from django.db import IntegrityError, connection
from django.test.utils import isolate_apps

from django_cqrs import (
    DEADLOCKS,
    CommandBus,
    InstantRetry,
    command_handler,
    event_handler,
)
from django_cqrs.exceptions import AggregateAlreadyExists
from django_cqrs.modelling import Repository, aggregate
from django_cqrs.modelling.model_storage import ModelStorage
from tests.modelling.carts import Book, CartLine, Put, Shelf
from tests.modelling.test_concurrency import at_once, server
from tests.sends.kinds import KINDS, Bag, Cart, Delivery, Make, Opened
from tests.support import registry_of

__all__ = ["server"]  # a fixture

pytestmark = [pytest.mark.django_db, pytest.mark.database]


def texts():
    return list(CartLine.objects.order_by("pk").values_list("text", flat=True))


def with_lines(*lines):
    """Return the steps of a factory whose object has lines."""

    def steps(cls):
        cart = cls.new()
        cart.lines = lines
        return cart

    return Make(steps)


@pytest.fixture
def heard():
    return []


@pytest.fixture
def registry_for(heard):
    def registry_for(kind):
        @event_handler
        def hear(event: Opened) -> None:
            heard.append((event, texts()))

        return registry_of(kind, hear)

    return registry_for


class TestHook:
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_called_after_the_insert_and_before_events(self, kind, registry_for, heard):
        """It knows the key, and what it records is published with the rest."""
        registry = registry_for(kind)

        number = registry.command_bus.dispatch(with_lines("a", "b"), route="cart.make")

        assert list(CartLine.objects.values_list("cart", "text").order_by("pk")) == [
            (number, "a"),
            (number, "b"),
        ]
        assert heard == [(Opened(number, 2), ["a", "b"])]

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_its_failure_undoes_the_insert(self, kind, registry_for, heard):
        """Neither the object nor a child is left, and nobody hears of it."""
        registry = registry_for(kind)
        too_long = "x" * 21 if connection.vendor != "sqlite" else None

        with pytest.raises(Exception) as raised:  # noqa: PT011 - each server's own
            registry.command_bus.dispatch(with_lines("a", too_long), route="cart.make")

        assert not isinstance(raised.value, AggregateAlreadyExists)
        assert texts() == []
        if kind in (Cart, Delivery):
            assert not kind.objects.exists()
        assert heard == []

    def test_a_constraint_of_a_child_is_no_second_object(self, registry_for):
        """The error of a child row is passed on as it is."""
        registry = registry_for(Delivery)

        with pytest.raises(IntegrityError):
            registry.command_bus.dispatch(with_lines(None), route="cart.make")

    @pytest.mark.parametrize("kind", [Delivery, Bag], ids=lambda kind: kind.__name__)
    def test_not_called_if_the_identifier_is_taken(self, kind, registry_for):
        """The factory that comes second leaves no children."""
        registry = registry_for(kind)
        registry.command_bus.dispatch(with_lines("first"), route="cart.make")

        with pytest.raises(AggregateAlreadyExists):
            registry.command_bus.dispatch(with_lines("second"), route="cart.make")

        assert texts() == ["first"]

    def test_not_called_at_an_update(self, registry_for):
        """An action writes child rows itself: its object has a row."""
        registry = registry_of(Shelf)
        registry.command_bus.dispatch(Put("a", "one"))
        registry.command_bus.dispatch(Put("a", "two"))

        assert Shelf.objects.get().count == 2
        assert sorted(Book.objects.values_list("title", flat=True)) == ["one", "two"]

    def test_not_called_for_an_object_that_its_factory_has_saved(self, registry_for):
        """Who saves by hand takes care of the rest by hand."""
        registry = registry_for(Cart)

        def steps(cls):
            cart = cls.objects.create()
            cart.lines = ("never",)
            return cart

        registry.command_bus.dispatch(Make(steps), route="cart.make")

        assert texts() == []

    def test_a_repository_calls_it(self, registry_for, heard):
        """`save` inserts as a factory does."""
        registry = registry_for(Cart)

        @registry.add
        @command_handler("by.hand")
        def by_hand(text: str, carts: Repository[Cart]) -> None:
            cart = Cart()
            cart.lines = (text,)
            carts.save(cart)
            carts.save(cart)

        registry.command_bus.dispatch("a", route="by.hand")

        assert texts() == ["a"]
        assert len(heard) == 1

    @pytest.mark.django_db(transaction=True)
    @isolate_apps("tests.modelling")
    def test_without_a_transaction_the_two_are_one(self):
        """A handler with atomic=False still inserts all rows or none."""

        @aggregate
        class Loose(Cart):
            class Meta:
                app_label = "modelling"
                proxy = True

            @command_handler("loose.make", atomic=False)
            @classmethod
            def open_it(cls, text: str) -> Loose:
                cart = cls()
                cart.lines = ("a", None)
                return cart

        with pytest.raises(IntegrityError):
            registry_of(Loose).command_bus.dispatch("a", route="loose.make")

        assert (Cart.objects.count(), texts()) == (0, [])

    @isolate_apps("tests.modelling")
    def test_it_may_be_a_coroutine_function(self):
        """It is awaited, like a handler."""

        @aggregate
        class Later(Cart):
            class Meta:
                app_label = "modelling"
                proxy = True

            @command_handler("later.make")
            @classmethod
            def open_it(cls, text: str) -> Later:
                return cls()

            async def post_insert(self) -> None:
                await CartLine.objects.acreate(cart=self.pk, text="awaited")

        registry_of(Later).command_bus.dispatch("a", route="later.make")

        assert texts() == ["awaited"]

    def test_a_field_of_its_name_is_a_field(self):
        """Only a method is called."""

        @dataclass
        class Kept:
            kept_id: int
            post_insert: str = ""

            @command_handler("kept.make")
            @classmethod
            def make(cls, number: int) -> Kept:
                return cls(number, "a field")

        rows = {}

        class InMemory(Repository):
            def find(self, identifier):
                return rows.get(identifier)

            def save(self, instance):
                rows[instance.kept_id] = instance

        aggregate(repository=InMemory())(Kept)

        assert registry_of(Kept).command_bus.dispatch(7, route="kept.make") == 7


class TestRace:
    def test_the_loser_of_two_first_commands_leaves_no_children(self, monkeypatch):
        """It acts on the winner's object: each book is there once. On every database."""
        registry_of(Shelf).command_bus.dispatch(Put("a", "winner"))
        find, calls = ModelStorage.find, []

        def find_late(self, *args, **options):
            calls.append(args)
            # The winner had not committed when the loser looked for its shelf.
            return None if len(calls) == 1 else find(self, *args, **options)

        monkeypatch.setattr(ModelStorage, "find", find_late)
        registry_of(Shelf).command_bus.dispatch(Put("a", "loser"))

        assert len(calls) == 2
        assert Shelf.objects.get().count == 2
        assert sorted(Book.objects.values_list("title", flat=True)) == [
            "loser",
            "winner",
        ]

    @pytest.mark.django_db(transaction=True)
    def test_many_first_commands_at_once(self, server):
        """One inserts the shelf, and each puts its own book on it, once."""
        registry = registry_of(Shelf)
        bus = CommandBus(registry=registry, instant_retry=InstantRetry(8, on=DEADLOCKS))

        at_once(lambda each: bus.dispatch(Put("a", str(each))), number=8)

        assert Shelf.objects.get().count == 8
        assert sorted(Book.objects.values_list("title", flat=True)) == list("01234567")
