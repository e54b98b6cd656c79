"""Machines for sagas: they find one planted fault each, and nothing in a sound one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import SimpleTestCase, TestCase
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from django_cqrs.documents.models import Document
from django_cqrs.exceptions import InvalidOption
from django_cqrs.testing import override
from django_cqrs.testing.machines import SagaMachine, invariant
from tests.modelling import messages as old
from tests.modelling.models import Fulfilment
from tests.outbox.support import SOAKS
from tests.testing.sagas import (
    Cancel,
    Careless,
    Carrier,
    Delivery,
    Forgetful,
    Hasty,
    Impatient,
    Paid,
    PayTimeout,
    Placed,
    Relentless,
    Ship,
    Unsent,
    carrier,
)

RULES = {"crash", "deliver", "deliver_again", "race", "retry", "timeout"}
MOST_EXAMPLES = 200
MOST_STEPS = 6

SOUND = settings(
    max_examples=500 if SOAKS else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    stateful_step_count=12,
    database=None,
)
"""The settings for what is right."""


def fault_found_by(machine):
    """Return the steps of the smallest run after which a saga is wrong."""
    with pytest.raises(AssertionError) as raised:
        run_state_machine_as_test(
            machine,
            settings=settings(
                SOUND,
                max_examples=MOST_EXAMPLES,
                report_multiple_bugs=False,
                phases=[Phase.generate, Phase.shrink],
            ),
        )
    notes = "\n".join(raised.value.__notes__)
    steps = re.findall(r"^state\.(\w+)\(", notes, re.MULTILINE)
    return [each for each in steps if each in RULES], notes


class Shipped(SagaMachine):
    """What is true of every order, of whatever saga."""

    def at_most_once(self):
        assert self.count(Ship) <= 1

    def shipped_if_paid(self):
        if {Placed, Paid} <= {type(each) for each in self.handled}:
            assert self.count(Ship) + self.count(Cancel) >= 1

    def never_both(self):
        assert not (self.count(Ship) and self.count(Cancel))


def machine_of(cls, *rules, **options):
    """Return a machine for a saga, with some of the rules above."""
    members: dict[str, Any] = {"saga": cls, "messages": [Placed, Paid], **options}
    for each in rules:
        members[each.__name__] = invariant()(lambda self, each=each: each(self))
    return type(f"Machine{cls.__name__}", (Shipped,), members)


ALL = (Shipped.at_most_once, Shipped.shipped_if_paid, Shipped.never_both)


@pytest.mark.long
class TestPlantedFaults:
    def test_the_order(self):
        """A payment that comes before its order is lost. [K03.1]"""
        steps, notes = fault_found_by(machine_of(Impatient, *ALL, faults=()))

        assert len(steps) <= MOST_STEPS, notes
        assert "state.deliver(message=Paid(order_id=1))" in notes
        assert "This is what happened:" in notes

    def test_a_duplicate(self):
        """Each payment ships, whether or not it is the same one. [K03.1]"""
        steps, notes = fault_found_by(
            machine_of(Forgetful, Shipped.at_most_once, faults={"duplicates"})
        )

        assert len(steps) <= MOST_STEPS, notes

    def test_a_late_timeout(self):
        """What was shipped is cancelled when the time is up. [K03.1]"""
        steps, notes = fault_found_by(machine_of(Relentless, Shipped.never_both))

        assert len(steps) <= MOST_STEPS, notes
        assert steps[-1] == "timeout"

    @pytest.mark.django_db
    def test_a_crash_between_save_and_send(self):
        """What is saved by itself is not undone, and what was to be sent is. [K03.1]"""

        class Forgotten(machine_of(Unsent, Shipped.shipped_if_paid, rows=True)):
            faults = {"crashes"}

            def __init__(self):
                super().__init__()
                Careless.kept.clear()

        steps, notes = fault_found_by(Forgotten)

        assert len(steps) <= MOST_STEPS, notes
        assert "crash" in steps

    def test_two_starts_at_once(self):
        """Both look before one of them has committed, and book twice. [K03.1]"""
        booked = Carrier()

        class Booking(machine_of(Hasty, messages=[Placed], faults={"races"})):
            def __init__(self):
                super().__init__()
                booked.booked.clear()

            @invariant()
            def booked_once(self):
                assert len(booked.booked) <= 1

        with override(carrier, lambda: booked):
            steps, notes = fault_found_by(Booking)

        assert steps == ["race"], notes


class TestSoundSagas:
    def test_nothing_is_found(self):
        """A saga that was written for all of it withstands it, to the very end."""

        class Sound(machine_of(Delivery, *ALL)):
            messages = [Placed, Paid, PayTimeout]
            identifiers = [1, 2]

            def at_most_once(self):
                for order_id in self.identifiers:
                    assert self.count(Ship, order_id=order_id) <= 1

            def never_both(self):
                for order_id in self.identifiers:
                    both = (Ship, Cancel)
                    assert sum(self.count(c, order_id=order_id) for c in both) <= 1

            def shipped_if_paid(self):
                assert all(isinstance(each, Delivery) for each in self.objects)

            def settled(self):
                for each in self.objects:
                    assert each.completed_at or not each.is_placed or each.is_paid
                assert not self.world.waiting

        run_state_machine_as_test(Sound, settings=SOUND)

    @pytest.mark.database
    @pytest.mark.django_db
    def test_on_rows(self):
        """On real rows it is the same; nothing is left of them. [K03.7]"""
        rows = machine_of(Delivery, *ALL, rows=True)
        few = settings(SOUND, max_examples=100 if SOAKS else 8)

        run_state_machine_as_test(rows, settings=few)

        assert not Document.objects.exists()

    @pytest.mark.database
    @pytest.mark.django_db
    def test_a_model_on_rows(self):
        """A saga of this suite that is a model: it ships once, or is cancelled."""

        class Orders(SagaMachine):
            saga = Fulfilment
            messages = [old.OrderPlaced, old.OrderPaid, old.OrderPacked]
            rows = True

            @invariant()
            def ended_once(self):
                assert self.count(old.CancelOrder) <= 1
                assert all(each.order_id == 1 for each in self.objects)

        few = settings(SOUND, max_examples=100 if SOAKS else 8)
        run_state_machine_as_test(Orders, settings=few)

        assert not Fulfilment.objects.exists()


class TestCases:
    def test_as_a_test_case(self):
        """`TestCase` runs it; in memory it refuses queries, on rows it may query."""
        alone = machine_of(Delivery)
        rows = machine_of(Delivery, rows=True)

        assert issubclass(alone.TestCase, SimpleTestCase)
        assert not issubclass(alone.TestCase, TestCase)
        assert issubclass(rows.TestCase, TestCase)
        assert alone.TestCase is alone.TestCase
        assert alone.TestCase.__qualname__ == "MachineDelivery.TestCase"

        class Planted(machine_of(Delivery)):
            @invariant()
            def fail(self):
                raise AssertionError("planted")

        with pytest.raises(AssertionError, match="planted"):
            Planted.TestCase().runTest()

    def test_the_messages_by_default(self):
        """All that its handlers take, and strategies are used as they are."""
        drawn = set()

        class Every(SagaMachine):
            saga = Delivery
            faults = ()

            @invariant()
            def remember(self):
                drawn.update(type(each) for each in self.handled)

        run_state_machine_as_test(Every, settings=SOUND)
        assert drawn == {Placed, Paid, PayTimeout}
        drawn.clear()

        class Chosen(Every):
            messages = [st.just(Placed(5))]

            @invariant()
            def remember(self):
                drawn.update(each.order_id for each in self.handled)

        run_state_machine_as_test(Chosen, settings=SOUND)
        assert drawn == {5}

    def test_an_exception_is_a_fault(self):
        """One that the machine does not name as a refusal fails the test."""
        refusing = machine_of(Hasty, messages=[Placed], faults=())
        with pytest.raises(RuntimeError, match="a real carrier"):
            run_state_machine_as_test(refusing, settings=SOUND)

        refusing.refusals = (RuntimeError,)
        run_state_machine_as_test(refusing, settings=SOUND)

    def test_bad_input(self):
        """A fault that is none, and a saga that is none."""
        with pytest.raises(InvalidOption, match="'floods', which is not one of crash"):
            machine_of(Delivery, faults={"floods"})()
        with pytest.raises(InvalidOption, match="Carrier is neither"):
            machine_of(Carrier)()
