"""The rules of the audit app."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from django.test import TestCase

from audit.models import AuditEntry
from common.testing import open_shop
from django_cqrs import command_bus, query_bus
from orders.messages import CancelOrder, OrderedItem, PlaceOrder
from payments.errors import CreditLimitExceeded

ONE_TEA = PlaceOrder(
    customer="ada@mail.example", lines=(OrderedItem("TEA", 1),), reference="A-1"
)


class AuditTests(TestCase):
    def setUp(self) -> None:
        open_shop()

    def test_tells_what_happened_in_order(self) -> None:
        """Every event of every app is written down, before what it leads to."""
        order_id = command_bus.dispatch(ONE_TEA)
        command_bus.dispatch(CancelOrder(order_id))

        trail = query_bus.ask(order_id, route="audit.trail")
        assert [entry.event for entry in trail] == [
            "order placed",
            "payment authorised",
            "shipment prepared",
            "order cancelled",
            "payment released",
            "shipment called off",
        ]

    def test_knows_what_belongs_together(self) -> None:
        """All that one command causes shares its correlation id."""
        order_id = command_bus.dispatch(ONE_TEA)
        command_bus.dispatch(CancelOrder(order_id))

        trail = query_bus.ask(order_id, route="audit.trail")
        assert len({entry.correlation_id for entry in trail[:3]}) == 1
        assert len({entry.correlation_id for entry in trail}) == 2

    def test_keeps_the_event(self) -> None:
        """The details are the event's JSON form, without lines; money is text."""
        order_id = command_bus.dispatch(replace(ONE_TEA, placed_on=date(2026, 11, 2)))

        entry = AuditEntry.objects.first()
        assert entry.order_id == order_id
        assert entry.details == {
            "reference": "A-1",
            "customer": "ada@mail.example",
            "total": "9.90 EUR",
            "placed_on": "2026-11-02",
        }

    def test_names_who_wanted_it(self) -> None:
        """The header of the command reaches all events that follow from it."""
        command_bus.dispatch(ONE_TEA, headers={"executor_id": "ada"})

        executors = AuditEntry.objects.values_list("executor", flat=True)
        assert set(executors) == {"ada"}

    def test_without_a_header_it_was_the_system(self) -> None:
        """A header with a default is optional."""
        command_bus.dispatch(ONE_TEA)

        assert AuditEntry.objects.first().executor == "system"

    def test_a_refused_command_leaves_no_trace(self) -> None:
        """The entries stand in the command's transaction, and go with it."""
        too_much = PlaceOrder(
            customer="ada@mail.example", lines=(OrderedItem("TEA", 11),)
        )
        with self.assertRaises(CreditLimitExceeded):
            command_bus.dispatch(too_much)

        assert not AuditEntry.objects.exists()
