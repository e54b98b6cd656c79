"""A message that nobody handled is not remembered by its key."""

from __future__ import annotations

from functools import cache

import pytest

from django_cqrs import CommandBus, Header, Registry, command_handler
from django_cqrs.channels import channels
from django_cqrs.interception import STOP, Proceed, around, before, pointcut
from django_cqrs.modelling import aggregate, saga
from django_cqrs.outbox.models import InboxEntry
from tests.modelling.boxes import MODELS, Inner, put

pytestmark = [pytest.mark.django_db, pytest.mark.database]

KEY = {"headers": {"payment": "p"}}


@cache
def drop_if_missing(channel):
    """Return a class of bills whose payment is dropped while there is no bill."""

    @command_handler(
        "bill.pay",
        on_missing="ignore",
        idempotency_key=Header("payment"),
        channel=channel,
    )
    def pay(self) -> None:
        self.a += 1

    meta = type("Meta", (), {"proxy": True, "app_label": "modelling"})
    # Local, so that the project's registry does not find it.
    name = f"Bill{channel}"
    members = {
        "Meta": meta,
        "__module__": __name__,
        "__qualname__": f"drop_if_missing.<locals>.{name}",
        "pay": pay,
    }
    return aggregate(type(name, (MODELS["Box"],), members))


@pytest.mark.parametrize("channel", [None, "outbox"])
def test_a_message_for_what_is_missing_is_handled_once_it_is_there(channel):
    """At once and out of a channel: dropped, then handled, then a duplicate."""
    bill = drop_if_missing(channel)
    registry = Registry()
    registry.add(bill)

    def pay():
        registry.command_bus.dispatch(route="bill.pay", aggregate_id=7, **KEY)
        if channel:
            channels[channel].run(registry=registry)

    pay()
    assert InboxEntry.objects.count() == 0
    put("Box", 7)
    pay()
    pay()

    assert bill.objects.get().a == 1
    assert InboxEntry.objects.count() == 1


def test_a_key_of_the_bus_is_not_remembered_either():
    """What tells duplicates by a key is a bus here."""
    bill = drop_if_missing(None)
    registry = Registry()
    registry.add(bill)
    bus = CommandBus(registry=registry, idempotency_key=Header("payment"))

    bus.dispatch(route="bill.pay", aggregate_id=7, **KEY)
    put("Box", 7)
    bus.dispatch(route="bill.pay", aggregate_id=7, **KEY)
    bus.dispatch(route="bill.pay", aggregate_id=7, **KEY)

    assert bill.objects.get().a == 1


@pytest.mark.parametrize("when", ["before", "around", "too late"])
def test_a_message_that_an_interceptor_stops_is_not_remembered(when):
    """Unless the handler has run by then."""
    is_closed = [True]
    handled = []

    @command_handler("shop.sell", idempotency_key=Header("payment"))
    def sell(command: Inner) -> None:
        handled.append(command)

    if when == "before":

        @before(pointcut.message(Inner))
        def closed(command: Inner) -> object:
            return STOP if is_closed[0] else None

    else:

        @around(pointcut.message(Inner))
        def closed(proceed: Proceed) -> object:
            if when == "too late" or not is_closed[0]:
                proceed()
            return STOP if is_closed[0] else None

    registry = Registry()
    registry.add(sell)
    registry.add(closed)
    registry.command_bus.dispatch(Inner(1), route="shop.sell", **KEY)
    is_closed[0] = False
    registry.command_bus.dispatch(Inner(2), route="shop.sell", **KEY)

    assert handled == [Inner(1) if when == "too late" else Inner(2)]


def test_a_message_for_a_saga_that_is_over_is_not_remembered():
    """It is dropped as one for a saga that is not there."""
    process = MODELS["Process"]

    class Ended(process):
        class Meta:
            proxy = True
            app_label = "modelling"

        @command_handler(
            "ended.pay", on_missing="ignore", idempotency_key=Header("payment")
        )
        def pay(self) -> None:
            self.a += 1

    registry = Registry()
    registry.add(saga(Ended))
    put("Process", 7)
    found = process.objects.get()
    found.complete()
    found.save()
    registry.command_bus.dispatch(route="ended.pay", aggregate_id=7, **KEY)

    assert InboxEntry.objects.count() == 0
