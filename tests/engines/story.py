"""
The shop's whole story, told from outside: what is ordered, and what comes of it.

Run in the shop's own settings, with the workers of its engine beside it; prints what
was seen. Only the settings know which engine that is.
"""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.utils import timezone  # noqa: E402

from django_cqrs import command_bus  # noqa: E402
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State  # noqa: E402
from office.models import FullMailbox, Invoice, Letter  # noqa: E402
from orders.messages import OrderedItem, PlaceOrder  # noqa: E402
from orders.models import Order  # noqa: E402
from payments.errors import CreditLimitExceeded  # noqa: E402
from storefront.data import load_catalogue  # noqa: E402
from tests.limits import LIMIT  # noqa: E402

ORDER = PlaceOrder(
    customer="samuel.weiss@mail.example", lines=(OrderedItem("TEA-SENCHA", 1),)
)
TOO_MUCH = replace(ORDER, lines=(OrderedItem("KETTLE-ELECTRIC", 2),))


def wait_for(condition, what):
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            sys.exit(
                f"There was no {what}; left were {list(OutboxMessage.objects.values())}"
            )
        time.sleep(0.02)


def written():
    return {
        "orders": sorted(Order.objects.values_list("reference", flat=True)),
        "invoices": sorted(Invoice.objects.values_list("reference", flat=True)),
        "letters": sorted(Letter.objects.values_list("subject", flat=True)),
        "dead": [
            [each.endpoint, each.attempts, each.reason, each.error]
            for each in DeadLetter.objects.all()
        ],
        "waiting": waiting().count(),
    }


def waiting():
    """Return the letters and invoices to be written; timers wait on another channel."""
    return OutboxMessage.objects.filter(channel="mail")


def is_quiet():
    return not waiting().exists()


def place(reference):
    command_bus.dispatch(replace(ORDER, reference=reference))


def place_many(count):
    for number in range(count):
        place(f"N-{number}")
    wait_for(is_quiet, "end of many orders")
    return written()


def tell():
    seen = []
    place("A-1")
    wait_for(is_quiet, "invoice and letter")
    seen.append(written())

    try:
        command_bus.dispatch(replace(TOO_MUCH, reference="A-2"))
    except CreditLimitExceeded:
        seen.append("refused")

    FullMailbox.objects.create(address=ORDER.customer)
    place("A-3")
    wait_for(lambda: DeadLetter.objects.exists() and is_quiet(), "dead letter")
    seen.append(written())

    FullMailbox.objects.all().delete()
    call_command("cqrs_failed", "replay", "--all", stdout=io.StringIO())
    wait_for(is_quiet, "letter after the replay")
    seen.append(written())
    return seen


def poison(reference):
    """Place an order whose letter kills, with no patience for the leases of the dead."""
    place(reference)

    def is_over():
        time.sleep(0.5)
        OutboxMessage.objects.filter(state=State.CLAIMED).update(
            lease_expires_at=timezone.now()
        )
        return is_quiet()

    wait_for(is_over, "end of it")
    return written()


def clear():
    """Begin anew: the database is shared by the stories."""
    for model in (Invoice, Letter, FullMailbox, DeadLetter, OutboxMessage):
        model.objects.all().delete()
    Order.objects.all().delete()


if __name__ == "__main__":
    steps = {"clear": clear, "tell": tell, "place": place, "many": place_many}
    steps |= {"written": written, "poison": poison}
    load_catalogue()
    for step in sys.argv[1:]:
        name, _, argument = step.partition("=")
        value = int(argument) if argument.isdigit() else argument
        answer = steps[name](value) if argument else steps[name]()
    print(json.dumps(answer))
