"""Objects whose class is more than the one that was decorated, as polymorphic rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db import models

from django_cqrs import command_handler, event_handler, query_handler
from django_cqrs.modelling import aggregate, saga
from django_cqrs.models import SagaModel


@dataclass(frozen=True)
class Pay:
    payment_id: int


@dataclass(frozen=True)
class Refunded:
    payment_id: int


def make_payment(base: Any, decorate: Any, name: str) -> Any:
    """Return a class whose rows come back as objects of a proxy of it."""

    class Payment(base):
        payment_id = models.IntegerField(primary_key=True)
        kind = models.CharField(max_length=10)
        paid_by = models.CharField(max_length=20, default="")

        class Meta:
            app_label = "modelling"
            abstract = True

        @classmethod
        def from_db(cls, *args: Any, **kwargs: Any) -> Any:
            found = super().from_db(*args, **kwargs)
            if found.kind == "card":
                found.__class__ = cls.card
            return found

        @command_handler
        def pay(self, command: Pay) -> str:
            self.paid_by = "anything"
            return self.paid_by

        @command_handler("payment.wait")
        async def wait(self, command: Pay) -> str:
            return "anything"

        @event_handler
        def refunded(self, event: Refunded) -> None:
            self.paid_by = "nobody"

        @query_handler("payment.by")
        def by(self) -> str:
            return self.paid_by

    class Card:
        def pay(self, command: Pay) -> str:
            super().pay(command)  # type: ignore[misc]
            self.paid_by = "card"
            return self.paid_by

        def wait(self, command: Pay) -> str:
            return "card"

        def refunded(self, event: Refunded) -> None:
            self.paid_by = "bank"

        def by(self) -> str:
            return f"a {self.paid_by}"  # type: ignore[has-type]

    meta = type("Meta", (), {"app_label": "modelling"})
    common = {"__module__": __name__, "Meta": meta}
    made: Any = decorate(
        type(name, (Payment,), {**common, "__qualname__": f"<locals>.{name}"})
    )
    proxy = type("Meta", (), {"app_label": "modelling", "proxy": True})
    made.card = type(f"Card{name}", (Card, made), {**common, "Meta": proxy})
    return made


PAYMENTS = {
    "aggregate": make_payment(models.Model, aggregate, "Payment"),
    "saga": make_payment(SagaModel, saga, "Collection"),
}
