"""The shop in a real browser: what a visitor does, sees, and is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.example.browser import DESK, PHONE, brightness

pytestmark = pytest.mark.browser

# An order of the book that nobody has paid.
WAITING = "/orders/511/"
PAGES = (
    "/",
    "/orders/",
    "/orders/?status=cancelled&page=2",
    "/orders/1/",
    WAITING,
    "/orders/new/",
    "/sales/",
)


def test_place_an_order(visitor):
    """
    An order that was placed is shown with its payment, its parcel and its story, and
    heads the list.
    """
    visitor.fill("Greta Vogel", (0, "Earl Grey", "2"), (1, "Stoneware mug", "1"))
    visitor.press("Place the order")

    reference, _ = visitor.find("h1").text.split()
    text = visitor.text()
    for part in (
        "The order is placed.",
        "Greta Vogel",
        "34.70 EUR",
        "authorised",
        "ready",
        "waiting for payment",
        "Order placed",
        "Shipment prepared",
        "by anonymous",
    ):
        assert part in text
    visitor.go("/orders/")
    assert reference in visitor.find("tbody tr").text


def test_refuse_a_bad_form(visitor):
    """
    Every error stands beside its field and belongs to it for a screen reader; what
    was typed is still there.
    """
    visitor.fill("Greta Vogel", (0, "Earl Grey", "two"), (2, "Bamboo whisk", "-1"))
    visitor.press("Place the order")

    assert visitor.path() == "/orders/new/"
    assert "nothing was written" in visitor.find("[role=alert]").text
    assert "integer" in visitor.error_of("lines.0.quantity")
    assert (
        visitor.error_of("lines.2.quantity")
        == "the quantity must be at least 1, not -1"
    )
    assert visitor.field("lines.0.quantity").get_attribute("value") == "two"
    assert visitor.field("lines.0.quantity").get_attribute("aria-invalid") == "true"
    assert visitor.field("customer").get_attribute("value").startswith("greta.vogel")


def test_refuse_what_the_rules_forbid(visitor):
    """
    A refusal by another app's handler is shown in the form, and the order it had
    followed is not in the list.
    """
    visitor.go("/orders/")
    before = visitor.find("caption").text
    visitor.fill("Samuel Weiss", (0, "Electric kettle", "2"))
    visitor.press("Place the order")

    assert "178.00 EUR is more than the credit" in visitor.find("[role=alert]").text
    visitor.go("/orders/")
    assert visitor.find("caption").text == before


def test_cancel(visitor):
    """
    A cancelled order says so everywhere and no longer has a button.
    """
    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")
    visitor.press("Cancel the order")

    text = visitor.text()
    assert "The order is cancelled." in text
    assert "released" in text
    assert "called off" in text
    assert visitor.chrome.find_elements("css selector", "main button") == []


def test_ship(visitor):
    """
    A shipped order shows its tracking code.
    """
    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")
    visitor.press("Ship it unpaid")

    text = visitor.text()
    assert "The order is on its way." in text
    assert "KL000" in text
    assert "captured" in text


def test_pay(visitor):
    """
    An order that is paid is shipped, by nobody but the saga, which is over then.
    """
    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")
    visitor.press("Pay the order")

    text = visitor.text()
    assert "The order is paid, and on its way." in text
    assert "captured" in text
    assert "KL000" in text
    assert "done" in text
    assert visitor.chrome.find_elements("css selector", "main button") == []


def test_filter_and_turn_pages(visitor):
    """
    The filter holds while pages are turned, and is marked as chosen.
    """
    visitor.go("/orders/")
    visitor.press("Shipped")
    visitor.press("Older")

    assert "Page 2 of" in visitor.text()
    assert visitor.find(".filters [aria-current]").text == "Shipped"
    states = visitor.chrome.find_elements("css selector", "td.wide .status")
    assert {state.text for state in states} == {"shipped"}


def test_sign_in_and_leave_a_name(visitor):
    """
    Who is signed in to the admin is named in the trail of what they do.
    """
    visitor.go("/admin/")
    visitor.field("username").send_keys("admin")
    visitor.field("password").send_keys("admin")
    with visitor.leaving():
        visitor.field("password").submit()

    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")

    assert "by admin" in visitor.text()


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_nothing_is_wider_than_the_screen(visitor, path, width):
    """
    No page scrolls sideways, from the smallest phone on.
    """
    visitor.screen(width)
    visitor.go(path)

    assert visitor.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("path", PAGES)
def test_pages_keep_to_themselves(visitor, path):
    """
    A page loads nothing from elsewhere, has no script and no inline style, and the
    browser complains of nothing.
    """
    visitor.go(path)

    loaded = visitor.run(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert loaded
    assert all(url.startswith(f"{visitor.address}/static/") for url in loaded)
    found = visitor.chrome.find_elements("css selector", "script, style, [style]")
    assert found == []
    assert visitor.chrome.get_log("browser") == []


@pytest.mark.parametrize("path", PAGES)
def test_pages_can_be_used_without_seeing_them(visitor, path):
    """
    One main heading, a caption on every table, a name for every field, and a link
    that skips the menu as the first stop of the Tab key.
    """
    visitor.go(path)

    assert len(visitor.chrome.find_elements("css selector", "h1")) == 1
    assert visitor.run(
        "return [...document.querySelectorAll('table')].every(t => t.caption)"
    )
    assert visitor.run(
        "return [...document.querySelectorAll('main :is(input, select)')]"
        ".every(f => f.type === 'hidden' || f.labels.length === 1)"
    )
    visitor.find("body").send_keys("\ue004")
    focused = visitor.chrome.switch_to.active_element
    assert focused.get_attribute("class") == "skip"


def test_dark_mode(visitor):
    """
    Who prefers dark pages gets them, with light text.
    """
    colours = (
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    visitor.go("/")
    light = visitor.run(colours)
    visitor.prefer("dark")
    dark = visitor.run(colours)

    assert brightness(light[0]) - brightness(light[1]) > 150
    assert brightness(dark[1]) - brightness(dark[0]) > 150


@pytest.mark.parametrize(("device", "width"), [("phone", PHONE), ("desk", DESK)])
def test_pictures(visitor, tmp_path, device, width):
    """
    The list, an order, the sales and a refused form are photographed for whoever reviews them.
    """
    folder = Path(os.environ.get("CQRS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in (
        ("home", "/"),
        ("list", "/orders/?size=12"),
        ("detail", "/orders/1/"),
        ("waiting", WAITING),
        ("sales", "/sales/"),
    ):
        visitor.go(path)
        visitor.picture(folder / f"{name}-{device}.png", width)
    visitor.fill("Samuel Weiss", (0, "Earl Grey", "two"), (1, "Bamboo whisk", "0"))
    visitor.press("Place the order")
    visitor.picture(folder / f"form-{device}.png", width)

    for picture in folder.glob(f"*-{device}.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
