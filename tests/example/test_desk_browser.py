"""The desk of the admin in a real browser: by keyboard, in the dark, unseen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.example.browser import CONTRAST, DESK, PHONE

pytestmark = pytest.mark.browser

LETTERS = "/admin/django_cqrs_outbox/deadletter/"
CHANNELS = "/admin/django_cqrs_outbox/outboxmessage/channels/"

# As the worker would leave them behind, without waiting for its second try.
DEAD = """
from django.utils import timezone
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
DeadLetter.objects.all().delete()
names = {field.attname for field in OutboxMessage._meta.concrete_fields}
names &= {field.attname for field in DeadLetter._meta.concrete_fields}
rows = OutboxMessage.objects.filter(endpoint="office.send_confirmation")
for number, row in enumerate(rows.order_by("pk")[:6]):
    values = {name: getattr(row, name) for name in names - {"id", "attempts"}}
    address = __import__("json").loads(bytes(row.payload))["customer"]
    DeadLetter.objects.create(
        **values,
        attempts=2,
        reason="poison" if number == 5 else "failed",
        exception="office.postoffice.MailboxFullError",
        error=f"the mailbox of {address} is full",
        traceback=f"Traceback (most recent call last):\\n  ...\\n"
        f"office.postoffice.MailboxFullError: the mailbox of {address} is full",
        failed_at=timezone.now(),
    )
    row.delete()
"""


@pytest.fixture(scope="module")
def letters(served):
    """Five letters that a handler has failed with, and one that is poison."""
    served.manage("shell", "-c", DEAD)


@pytest.fixture
def operator(letters, operator):
    """Somebody who has signed in to the admin, where there are dead letters."""
    return operator


def letter_of(operator):
    """Open the newest dead letter that a handler has failed with; return its address."""
    operator.go(f"{LETTERS}?reason__exact=failed")
    return operator.find("#result_list tbody th a").get_attribute("href")


def test_replay_by_keyboard_alone(operator):
    """
    From the glance to the dead letters, filtered, one chosen, replayed and confirmed,
    without a mouse. [C05.2]
    """
    operator.go(CHANNELS)
    operator.tab_to("a[aria-label^='mail, Dead: ']")
    operator.enter()
    assert operator.path().startswith(f"{LETTERS}?channel=mail")

    operator.tab_to("#changelist-filter a[href*='reason__exact=poison']")
    operator.enter()
    assert len(operator.all("#result_list tbody tr")) == 1

    operator.tab_to("#changelist-form select[name=action]")
    operator.type("Replay")
    operator.tab_to("#result_list tbody input.action-select")
    operator.type(" ")
    operator.tab_to("#changelist-form button[name=index]", backwards=True)
    operator.enter()
    assert (
        "Put these messages back into their channels?" in operator.find("#content").text
    )

    operator.tab_to("#content input[type=submit]")
    operator.enter()
    assert "Replayed 1." in operator.find(".messagelist").text


def test_edit_and_replay_in_a_browser(operator):
    """
    What is wrong is said beside the form, which keeps what was typed; then it is put
    back. The address of the customer is never on a page. [C05.2]
    """
    address = letter_of(operator)
    operator.chrome.get(address)
    assert "@mail.example" not in operator.chrome.page_source
    assert "the mailbox of •••••• is full" in operator.find("#content").text

    operator.tab_to("a[href*='/edit/']")
    operator.enter()
    form = operator.find("#id_payload")
    assert "•••••• 1" in form.get_attribute("value")
    assert "@mail.example" not in operator.chrome.page_source

    operator.rewrite('"reference": "', '"reference": 7, "was": "')
    operator.tab_to("input[type=submit].default")
    operator.enter()
    alert = operator.find("[role=alert]")
    form = operator.find("#id_payload")
    assert "reference: Input should be a valid string" in alert.text
    assert alert.get_attribute("id") in form.get_attribute("aria-describedby")
    assert form.get_attribute("aria-invalid") == "true"
    assert operator.chrome.title.startswith("Error:")

    operator.rewrite('"reference": 7, "was": "', '"reference": "B')
    operator.tab_to("input[type=submit].default")
    operator.enter()
    assert "Edited and replayed 1." in operator.find(".messagelist").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_desk_is_legible(operator, scheme):
    """
    Text stands out from what is behind it by 4.5 to 1 or more, light or dark. [C05.2]
    """
    address = letter_of(operator)
    operator.prefer(scheme)
    texts = "caption, .cqrs-channels :is(td, th, a), .cqrs-text, .help, .errornote"

    for page in (CHANNELS, f"{LETTERS}?reason__exact=failed"):
        operator.go(page)
        assert min(operator.run(CONTRAST, f"{texts}, #result_list :is(td, a)")) >= 4.5
    operator.chrome.get(address)
    assert min(operator.run(CONTRAST, texts)) >= 4.5
    operator.chrome.get(address.replace("/change/", "/edit/"))
    operator.rewrite("order_id", "order")
    with operator.leaving():
        operator.find("input[type=submit].default").click()
    found = operator.run(CONTRAST, f"{texts}, .errornote code, textarea, label")
    assert min(found) >= 4.5
    background = operator.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_desk_fits_the_screen(operator, width):
    """
    No page of the desk's own scrolls sideways, and the browser complains of nothing. [C05.2]
    """
    address = letter_of(operator)
    operator.screen(width)
    operator.chrome.get_log("browser")

    for page in (
        operator.address + CHANNELS,
        address,
        address.replace("/change/", "/edit/"),
    ):
        operator.chrome.get(page)
        assert operator.run("return document.documentElement.scrollWidth") <= width
    assert operator.chrome.get_log("browser") == []


def test_desk_can_be_used_without_seeing_it(operator):
    """
    Tables have a caption and scopes, figures a name of their own, fields a label; what
    scrolls is reached by the keyboard. [C05.2]
    """
    operator.go(CHANNELS)
    table = "document.querySelector('table.cqrs-channels')"
    assert operator.run(f"return {table}.caption.textContent.trim().length > 0")
    assert operator.run(
        f"return [...{table}.querySelectorAll('th')].every(t => t.scope)"
    )
    figure = operator.find(".cqrs-channels .cqrs-bad a")
    assert figure.accessible_name == f"mail, Dead: {figure.text}"
    assert operator.run(
        "return [...document.querySelectorAll('.cqrs-scroll')]"
        ".every(e => e.tabIndex === 0 && e.getAttribute('aria-labelledby'))"
    )
    operator.chrome.get(letter_of(operator).replace("/change/", "/edit/"))
    assert operator.find("#id_payload").accessible_name == "Payload, as JSON"
    assert "stands for a sensitive value" in operator.run(
        "return document.getElementById("
        "document.getElementById('id_payload').getAttribute('aria-describedby')"
        ").textContent"
    )


def test_pictures_of_the_desk(operator, tmp_path):
    """
    The desk is photographed for the docs, and for whoever reviews it. [C05.2]
    """
    folder = Path(os.environ.get("CQRS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    address = letter_of(operator)
    for name, url, scheme, height in (
        ("channels", operator.address + CHANNELS, "light", 400),
        ("letters", operator.address + LETTERS, "dark", 660),
        ("letter", address, "light", 1500),
        ("edit", address.replace("/change/", "/edit/"), "light", 760),
    ):
        operator.prefer(scheme)
        operator.screen(DESK, height)
        operator.chrome.get(url)
        operator.chrome.save_screenshot(str(folder / f"desk-{name}.png"))

    for picture in folder.glob("desk-*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
