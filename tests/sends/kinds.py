"""Aggregates and sagas of each kind, which do what a test tells them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.test.utils import isolate_apps

from django_cqrs import Send, command_handler, message
from django_cqrs.documents import document
from django_cqrs.modelling import Saga, aggregate, saga
from django_cqrs.models import RecordsEvents
from tests.modelling.carts import CartLine, CartRow, DeliveryRow

NUMBER = 700_000  # no sequence comes that far
"""The key of the objects whose key the database does not make."""


@dataclass(frozen=True)
class Make:
    """A command for a factory, which does and returns what `steps` say of the class."""

    steps: Callable[[Any], Any]


@dataclass(frozen=True)
class Do:
    """A command for an action, which does and returns what `steps` say of the object."""

    cart_id: int
    steps: Callable[[Any], Any]


@message("carts.opened")
@dataclass(frozen=True)
class Opened:
    cart: int
    lines: int = 0


@message("carts.pack")
@dataclass(frozen=True)
class Pack:
    cart: int | None
    text: str = ""


class Methods(RecordsEvents):
    """The handlers of each kind."""

    @command_handler("cart.make")
    @classmethod
    def make(cls, command: Make) -> Any:
        return command.steps(cls)

    @command_handler("cart.make_on", output=("cart.pack", "cart.log"))
    @classmethod
    def make_on(cls, command: Make) -> Any:
        return command.steps(cls)

    @command_handler("cart.do")
    def do(self, command: Do) -> Any:
        return command.steps(self)

    @command_handler("cart.list", output="cart.log")
    def list_all(self, command: Do) -> list[Send]:
        return list(command.steps(self))

    @command_handler("cart.do_on", output=("cart.pack", "cart.log"))
    def do_on(self, command: Do) -> Any:
        return command.steps(self)


def save_lines(cart: Any) -> None:
    for text in cart.lines:
        CartLine.objects.create(cart=cart.number, text=text)
    if cart.lines:
        cart.record(Opened(cart.number, CartLine.objects.count()))


# No check of another test finds these two.
with isolate_apps("tests.modelling"):

    @aggregate
    class Cart(Methods, CartRow):
        """The database makes its key."""

        lines: tuple[str, ...] = ()

        class Meta:
            app_label = "modelling"
            proxy = True

        @classmethod
        def new(cls):
            return cls()

        @property
        def number(self):
            return self.pk

        def post_insert(self) -> None:
            save_lines(self)

    @saga
    class Delivery(Methods, DeliveryRow):
        lines: tuple[str, ...] = ()

        class Meta:
            app_label = "modelling"
            proxy = True

        @classmethod
        def new(cls):
            return cls(cart_id=NUMBER)

        @property
        def number(self):
            return self.pk

        def post_insert(self) -> None:
            save_lines(self)


@aggregate(identifier="cart_id")
@document("carts.bag")
@dataclass
class Bag(Methods):
    cart_id: int
    text: str = ""
    lines: tuple[str, ...] = ()

    @classmethod
    def new(cls):
        return cls(NUMBER)

    @property
    def number(self):
        return self.cart_id

    def post_insert(self) -> None:
        save_lines(self)


@saga(identifier="cart_id")
@document("carts.parcel")
@dataclass
class Parcel(Methods, Saga):
    cart_id: int = field(kw_only=True)
    text: str = ""
    lines: tuple[str, ...] = ()

    @classmethod
    def new(cls):
        return cls(cart_id=NUMBER)

    @property
    def number(self):
        return self.cart_id

    def post_insert(self) -> None:
        save_lines(self)


KINDS = (Cart, Delivery, Bag, Parcel)
