"""The timeline in a real browser: from a saga to what it caused, by keyboard, unseen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.example.browser import CONTRAST, DESK, PHONE

pytestmark = pytest.mark.browser

SAGA = "/admin/fulfilment/fulfilment/{}/change/"

# One that is paid and shipped, whose confirmation came back; one whose timer waits.
STORY = """
from django.utils import timezone
from django_cqrs import command_bus
from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage
from orders.messages import OrderedItem, PlaceOrder
from payments.api import payments
from payments.messages import PayOrder
GRETA = "greta.vogel@mail.example"
def of(model):
    return {field.attname for field in model._meta.concrete_fields} - {"id", "attempts"}
def copied(row, model, names):
    return {name: getattr(row, name) for name in of(model) & names}
orders = [
    command_bus.dispatch(PlaceOrder(GRETA, (OrderedItem("TEA-MINT", 1),)))
    for _ in range(2)
]
payments.pay(PayOrder(orders[0]))
letters = OutboxMessage.objects.filter(endpoint="office.send_confirmation")
letter = letters.order_by("-pk")[1]
error = {
    "attempts": 2,
    "exception": "office.postoffice.MailboxFullError",
    "error": "the mailbox is full",
}
JournalEntry.objects.create(
    at=timezone.now(), kind="event", outcome="failed", duration=3120,
    **copied(letter, JournalEntry, of(OutboxMessage)), **error,
)
DeadLetter.objects.create(
    failed_at=timezone.now(), reason="failed",
    **copied(letter, DeadLetter, of(OutboxMessage)), **error,
)
letter.delete()
print(*orders)
"""


@pytest.fixture(scope="module")
def orders(served):
    """The ids of two orders with a past."""
    return served.manage("shell", "-c", STORY).split()[-2:]


@pytest.fixture
def operator(visitor, orders):
    """Somebody who has signed in to the admin."""
    visitor.go("/admin/")
    visitor.field("username").send_keys("admin")
    visitor.field("password").send_keys("admin")
    with visitor.leaving():
        visitor.field("password").submit()
    return visitor


def timeline_of_a_saga(operator, order):
    """Go from its page to its timeline."""
    operator.go(SAGA.format(order))
    address = operator.find(".object-tools a[href*='/timeline/']")
    operator.chrome.get(address.get_attribute("href"))


def test_from_a_saga_to_its_timer_by_keyboard_alone(operator, orders):
    """
    From the saga's page to its timeline, and from there to the message that waits, and
    back to the timeline of that. [C07.5]
    """
    operator.go(SAGA.format(orders[1]))

    operator.tab_to(".object-tools a[href*='/timeline/']")
    operator.enter()
    assert operator.find("h1").text == "Timeline"
    assert "(this one)" in operator.find(".cqrs-timeline").text

    operator.tab_to(".cqrs-waits a[href*='/outboxmessage/']")
    operator.enter()
    assert operator.path().startswith("/admin/django_cqrs_outbox/outboxmessage/")

    operator.tab_to(".object-tools a[href*='/timeline/']")
    operator.enter()
    assert operator.find("h1").text == "Timeline"
    assert "(this one)" not in operator.find(".cqrs-timeline").text


def test_timeline_is_a_list_of_lists_to_a_screen_reader(operator, orders):
    """
    Each list has a name and only items in it, no id is there twice, and every time is
    one that a machine reads; what is indented says what has caused it. [C07.5]
    """
    timeline_of_a_saga(operator, orders[0])

    lists = (
        "[...document.querySelectorAll('.cqrs-timeline, .cqrs-timeline :is(ol, ul)')]"
    )
    assert operator.run(f"return {lists}.length") > 5
    assert operator.run(f"return {lists}.every(l => l.getAttribute('aria-label'))")
    assert operator.run(
        f"return {lists}.every(l => [...l.children].every(c => c.tagName === 'LI'))"
    )
    inner = operator.find(".cqrs-timeline ol")
    assert inner.aria_role == "list"
    assert inner.accessible_name.startswith("Caused by ")
    assert operator.run(
        "return [...document.querySelectorAll('.cqrs-timeline time')]"
        ".every(t => !Number.isNaN(Date.parse(t.dateTime)))"
    )
    assert len(operator.all("h1")) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_timeline_is_legible(operator, orders, scheme):
    """
    Text stands out from what is behind it by 4.5 to 1 or more, light or dark. [C07.5]
    """
    operator.prefer(scheme)
    timeline_of_a_saga(operator, orders[0])

    texts = ".cqrs-timeline :is(strong, span, time, a, p), .cqrs-facts :is(dt, dd)"
    assert min(operator.run(CONTRAST, texts)) >= 4.5


@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_timeline_fits_the_screen(operator, orders, width):
    """
    It does not scroll sideways, has no script or style of its own in it, and the
    browser complains of nothing. [C07.5]
    """
    operator.screen(width)
    operator.chrome.get_log("browser")
    timeline_of_a_saga(operator, orders[0])

    assert operator.run("return document.documentElement.scrollWidth") <= width
    assert operator.all("#content script, #content style, #content [style]") == []
    assert operator.chrome.get_log("browser") == []


def test_pictures_of_a_timeline(operator, orders, tmp_path):
    """
    It is photographed for the docs, and for whoever reviews it. [C07.5]
    """
    folder = Path(os.environ.get("CQRS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, scheme, width in (
        ("desk", "light", DESK),
        ("dark", "dark", DESK),
        ("phone", "light", PHONE),
    ):
        operator.prefer(scheme)
        operator.screen(width)
        timeline_of_a_saga(operator, orders[0])
        operator.picture(folder / f"timeline-{name}.png", width)

    for picture in folder.glob("timeline-*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
