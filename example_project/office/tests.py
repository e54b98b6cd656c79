"""The rules of the office app."""

from __future__ import annotations

import django
from django.test import TestCase, override_settings

from common.testing import open_shop
from config.settings import POST_OFFICE
from django_cqrs import command_bus
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.schedules.operations import next_times, run_now
from django_cqrs.testing.flow import Flow
from office.models import FullMailbox, Invoice, Letter
from office.postoffice import MailboxFullError
from orders.messages import OrderedItem, PlaceOrder
from payments.errors import CreditLimitExceeded

ONE_TEA = PlaceOrder(
    customer="ada@mail.example", lines=(OrderedItem("TEA", 1),), reference="A-1"
)
TOO_MUCH = PlaceOrder(
    customer="ada@mail.example", lines=(OrderedItem("TEA", 11),), reference="A-2"
)


# The test runner puts a mail server of its own in place of the shop's.
if django.VERSION >= (6, 1):
    real_post = override_settings(MAILERS={"default": {"BACKEND": POST_OFFICE}})
else:
    real_post = override_settings(EMAIL_BACKEND=POST_OFFICE)


@real_post
class OfficeTests(TestCase):
    def setUp(self) -> None:
        open_shop()
        self.flow = self.enterContext(Flow())

    def test_nothing_is_written_while_the_customer_waits(self) -> None:
        """The order is placed; invoice and letter wait for the worker."""
        command_bus.dispatch(ONE_TEA)

        assert OutboxMessage.objects.filter(channel="mail").count() == 2
        assert not Invoice.objects.exists()
        assert not Letter.objects.exists()

    def test_the_worker_writes_both(self) -> None:
        """Afterwards there is an invoice, and a letter that names the order."""
        command_bus.dispatch(ONE_TEA)

        assert self.flow.run("mail") == 2
        assert Invoice.objects.get().total == "9.90 EUR"
        assert Letter.objects.get().subject == "Your order A-1"

    def test_a_report_comes_every_morning(self) -> None:
        """Its schedule sends the command with the day before, in Berlin."""
        [first, second] = next_times("office.report", 2)

        assert first.hour == second.hour == 6
        assert str(first.tzinfo) == "Europe/Berlin"
        run_now("office.report")
        assert self.flow.run("mail") == 1
        assert Letter.objects.get().subject.startswith("The shop until ")

    def test_a_refused_order_sends_nothing(self) -> None:
        """What belongs to a command that failed is not sent."""
        with self.assertRaises(CreditLimitExceeded):
            command_bus.dispatch(TOO_MUCH)

        assert not OutboxMessage.objects.exists()

    def test_a_full_mailbox_keeps_no_invoice_back(self) -> None:
        """Handlers fail alone: the letter is a dead letter, the invoice is there."""
        FullMailbox.objects.create(address="ada@mail.example")
        command_bus.dispatch(ONE_TEA)

        with self.assertRaises(MailboxFullError):
            self.flow.run("mail")
        self.flow.advance(seconds=1)
        with self.assertRaises(MailboxFullError):
            self.flow.run("mail")

        assert Invoice.objects.count() == 1
        assert DeadLetter.objects.get().endpoint == "office.send_confirmation"
