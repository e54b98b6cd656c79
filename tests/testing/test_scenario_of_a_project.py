"""Scenarios of a whole project, on real rows."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.test import TestCase, TransactionTestCase

from django_cqrs import (
    CommandBus,
    EventBus,
    Retry,
    Send,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.exceptions import InvalidOption
from django_cqrs.testing import ANYTHING, like
from django_cqrs.testing import scenario as begin
from tests.limits import LIMIT
from tests.modelling import messages as old
from tests.modelling.models import Fulfilment
from tests.outbox.support import SOAKS
from tests.support import registry_of
from tests.testapp.models import Note


@message("scenario.placed")
@dataclass(frozen=True)
class Placed:
    number: int


@message("scenario.paid")
@dataclass(frozen=True)
class Paid:
    number: int
    amount: float = 0.0


@message("scenario.sent")
@dataclass(frozen=True)
class ShipmentSent:
    number: int
    parcel: str


@message("scenario.ask")
@dataclass(frozen=True)
class AskForReview:
    number: int


@dataclass(frozen=True)
class Ship:
    number: int


@dataclass(frozen=True)
class Count:
    pass


class NotPaid(Exception):
    pass


@event_handler
def note_payment(event: Paid) -> None:
    Note.objects.create(text="paid", number=event.number)


@command_handler
def ship(command: Ship, events: EventBus) -> str:
    events.publish(Placed(command.number))
    if not Note.objects.filter(text="paid", number=command.number).exists():
        raise NotPaid(command.number)
    events.publish(ShipmentSent(command.number, f"parcel {command.number}"))
    return f"parcel {command.number}"


@event_handler(channel="outbox", retry=Retry(attempts=2, delay=60, jitter=False))
def remember(event: ShipmentSent, commands: CommandBus) -> None:
    commands.dispatch(AskForReview(event.number), delay=14 * 24 * 3600)
    commands.dispatch(event.number, route="scenario.log")


@command_handler("scenario.log", channel="memory")
def log(number: int) -> None:
    Note.objects.create(text="logged", number=number)


@command_handler(channel="outbox")
def ask(command: AskForReview) -> None:
    Note.objects.create(text="asked", number=command.number)


@event_handler(channel="outbox", delay=3600)
def later(event: Placed) -> None:
    Note.objects.create(text="later", number=event.number)


@query_handler
def count(query: Count) -> int:
    return Note.objects.count()


def shop():
    return registry_of(note_payment, ship, remember, log, ask, later, count)


def paid():
    return begin(registry=shop()).given(Paid(1), Paid(2))


def failure_of(function):
    with pytest.raises(AssertionError) as raised:
        function()
    return str(raised.value)


@pytest.mark.database
@pytest.mark.django_db
class TestVerbs:
    def test_given_when_then_after_nothing(self):
        """Messages through the buses and the channels, and time that passes. [K01.1]"""
        (
            paid()
            .when(Ship(1))
            .then(Placed(1), ShipmentSent(1, parcel=ANYTHING), 1)
            .nothing()
            .after(days=14)
            .then(AskForReview(1))
            .nothing()
            .state(lambda: Note.objects.filter(text="asked").count() == 1)
        )

    def test_raises(self):
        """What a failed command has published was rolled back. [K01.1]"""
        paid().when(Ship(3)).raises(NotPaid, "3").nothing()

    def test_what_was_given_does_not_count(self):
        """Nor what came of it; it has really happened. [K01.4]"""
        begun = paid().given(Ship(1)).nothing()

        begun.state(lambda: Note.objects.filter(text="logged").exists())

    def test_the_result(self):
        """The answer of a command or a query."""
        begun = paid()

        assert begun.when(Ship(1)).result == "parcel 1"
        assert begun.when(Count()).nothing().result == 3
        assert begun.when(Send(5, route="scenario.log")).nothing().result is None
        assert begun.when(Count()).result == 4


@pytest.mark.django_db
class TestExpectations:
    def test_others_may_come_between(self):
        """`then` names some messages of a project; each kind has an order. [K01.2]"""
        shipped = paid().when(Ship(1))

        shipped.then(1, ShipmentSent(1, "parcel 1"))
        text = failure_of(lambda: shipped.then(Placed(1)))
        assert text.startswith(
            "then(Placed(number=1)): it was sent before a message of its kind that is "
            "expected earlier.\n"
        )

    def test_a_wrong_event(self):
        """The tree of what happened is printed, with the first difference. [K01.1]"""
        shipped = paid().when(Ship(1))

        assert failure_of(lambda: shipped.then(ShipmentSent(1, "x"))) == (
            "then(ShipmentSent(number=1, parcel='x')): no such message was sent.\n"
            "First difference: parcel is 'parcel 1', not 'x'.\n"
            "\n"
            "This is what happened:\n"
            "command Ship(number=1)\n"
            "└─ scenario.ship\n"
            "   ├─ event Placed(number=1)\n"
            "   │  └─ scenario.later: waits in 'outbox', due after 1:00:00\n"
            "   └─ event ShipmentSent(number=1, parcel='parcel 1')"
            "   <-- parcel is 'parcel 1', not 'x'\n"
            "      └─ scenario.remember, from 'outbox'\n"
            "         ├─ command AskForReview(number=1)\n"
            "         │  └─ scenario.ask: waits in 'outbox', due after 14 days, "
            "0:00:00\n"
            "         └─ command 1\n"
            "            └─ scenario.log, from 'memory'"
        ).replace("scenario.", "tests.testing.test_scenario_of_a_project.").replace(
            "tests.testing.test_scenario_of_a_project.log", LOG
        )

    def test_like_and_missing(self):
        """An object that is alike, and a message that was not sent at all. [K01.2]"""
        shipped = paid().when(Ship(1))

        shipped.then(like(ShipmentSent, number=1))
        assert "no such message was sent.\n\n" in failure_of(
            lambda: shipped.then(Paid(1))
        )
        assert "First difference: number is 1, not 2." in failure_of(
            lambda: paid().when(Ship(1)).then(like(Placed, number=2))
        )

    def test_a_planned_command(self):
        """A Send with its delay names the sending; without it the time counts."""
        shipped = paid().when(Ship(1))

        shipped.then(Send(AskForReview(1), delay=14 * 24 * 3600))
        assert "no such message" in failure_of(lambda: shipped.then(AskForReview(1)))
        assert "delay is 1209600.0, not 60.\n" in failure_of(
            lambda: paid().when(Ship(2)).then(Send(AskForReview(2), delay=60))
        )

    def test_a_delayed_handler_of_an_event(self):
        """The event has happened when it is published, and does not happen again."""
        begun = paid().when(Placed(7)).nothing()

        begun.after(hours=1).nothing()
        begun.state(lambda: Note.objects.filter(text="later").exists())

    def test_a_failure_in_the_background(self):
        """It is one of the scenario, until raises() names it; then it is retried."""
        registry = shop()

        @registry.add
        @event_handler(channel="outbox", retry=Retry(attempts=2, delay=60))
        def fail_at_first(event: Paid) -> None:
            Note.objects.create(text="tried", number=event.number)
            if not hits.append(1) and len(hits) == 1:
                raise OSError("first")

        hits = []
        begun = begin(registry=registry).when(Paid(1))
        assert "failed with OSError('first'), and no raises()" in failure_of(
            begun.nothing
        )
        hits.clear()
        begun.when(Paid(2)).raises(OSError, "first").after(minutes=2).nothing()
        tried = Note.objects.filter(text="tried").values_list("number", flat=True)
        assert sorted(tried) == [1, 2]


LOG = "tests.testing.test_scenario_of_a_project.log"


@pytest.mark.django_db
class TestBadInput:
    def test_what_is_no_message(self):
        """Values need a key, and objects are saved before."""
        with pytest.raises(InvalidOption, match=r'Send\(value, route="\.\.\."\)'):
            paid().when(7)
        with pytest.raises(InvalidOption, match="save the Fulfilment before"):
            paid().given(Fulfilment(order_id=1))

    def test_an_event_without_a_handler(self):
        """It is a message as any."""
        paid().when(old.Watched(1)).nothing()


def test_the_fixture(scenario):
    """It opens the database, and takes the project's handlers. [K01.3]"""
    (
        scenario()
        .given(old.OrderPlaced(7), old.OrderPaid(7))
        .when(old.OrderPacked(7))
        .then(old.ShipOrder(7))
        .state(lambda: Fulfilment.objects.get().is_paid)
    )


def test_the_fixture_without_a_database(scenario):
    """For one class it opens none: every query would be refused. [K01.5]"""
    scenario(Fulfilment).given(old.OrderPlaced(7)).after(hours=24).then(
        old.CancelOrder(7)
    )


class InATestCase(TestCase):
    def test_rolled_back(self):
        """Django's TestCase. [K01.3]"""
        begin().when(old.OrderPlaced(7)).then(old.PaymentDue(7)).after(days=1).then(
            old.CancelOrder(7)
        )


@pytest.mark.database
class InATransactionTestCase(TransactionTestCase):
    def test_committed(self):
        """Django's TransactionTestCase. [K01.3]"""
        begin().when(old.OrderPlaced(7)).then(old.PaymentDue(7)).after(days=1).then(
            old.CancelOrder(7)
        )


INNER = """
import pytest
from django.test import TestCase
from django_cqrs.testing import scenario as begin
from tests.modelling import messages as old

@pytest.mark.parametrize("number", range(8))
def test_good(scenario, number):
    scenario().given(old.OrderPlaced(number)).when(old.OrderPaid(number)).nothing()

def test_bad(scenario):
    scenario().when(old.OrderPaid(7))

class Cases(TestCase):
    def test_bad_case(self):
        begin().when(old.OrderPaid(7))

    def test_good_case(self):
        begin().when(old.OrderPaid(7)).raises(LookupError)
"""


@pytest.mark.long
def test_with_xdist_and_exceptions_that_nobody_named(tmp_path):
    """An exception without raises() fails its test, also in processes. [K01.3]"""
    file = tmp_path / "test_inner.py"
    file.write_text(INNER)
    # Processes take long to start, and these tests run in some as well.
    count = "2" if SOAKS else "0"
    command = [sys.executable, "-m", "pytest", "-q", "-n", count, "--no-migrations"]
    more = ["-p", "no:randomly", "-p", "no:cacheprovider", "--ds", "tests.settings"]
    done = subprocess.run(
        [*command, *more, str(file)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "DATABASE_URL": "sqlite://:memory:"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    text = done.stdout
    assert "2 failed, 9 passed" in text or "1 failed, 9 passed, 1 error" in text, text
    assert (
        "AssertionError: when(OrderPaid(order_id=7)) failed with "
        "AggregateNotFound('Fulfilment.on_paid was not called: there is no Fulfilment "
        "with order_id=7.'), and no raises() expects it."
    ) in text
    assert "test_bad" in text
    assert "test_bad_case" in text
