"""The message graph in a real browser: by keyboard, unseen, without a script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.example.browser import CONTRAST, DESK, PHONE

pytestmark = pytest.mark.browser

JOURNAL = "/admin/django_cqrs_outbox/journalentry/"
GRAPH = f"{JOURNAL}graph/"
TARGET = "return document.querySelector(':target th[scope=row] span').textContent"


def test_g04_1_from_message_to_message_by_keyboard_alone(operator):
    """
    From the journal to the graph, along what follows from a command, to one message,
    and to the Mermaid text, without a mouse. [G04.1]
    """
    operator.go(JOURNAL)
    operator.tab_to(".object-tools a[href*='/graph/']")
    operator.enter()
    assert operator.find("h1").text == "Message graph"

    for name in ("ShipmentSent", "PaymentCaptured", "ShipOrder"):
        operator.tab_to(f"td:last-child a[href='#{anchor_of(operator, name)}']")
        operator.type("\ue007")
        assert operator.run(TARGET) == name

    operator.tab_to(".cqrs-mermaid summary")
    operator.type("\ue007")
    text = operator.find(".cqrs-mermaid pre")
    assert text.is_displayed()
    assert text.text.startswith("flowchart LR")

    operator.go(GRAPH)
    operator.tab_to("#cqrs-message")
    operator.type("order.placed")
    operator.enter()
    names = [each.text for each in operator.all(".cqrs-graph th[scope=row] > span")]
    assert "OrderPlaced" in names
    assert "PlaceOrder" not in names
    assert operator.field("message").get_attribute("value") == "order.placed"


def anchor_of(operator, name):
    rows = "[...document.querySelectorAll('.cqrs-graph tr[id]')]"
    found = "r => r.querySelector('th span').textContent === arguments[0]"
    return operator.run(f"return {rows}.find({found}).id", name)


def test_g04_1_the_graph_can_be_used_without_seeing_it(operator):
    """
    Tables have captions and scopes, a row is named by its message, what scrolls is
    reached by the keyboard, and the field has a label. [G04.1]
    """
    operator.go(GRAPH)

    tables = "[...document.querySelectorAll('table.cqrs-graph')]"
    assert operator.run(f"return {tables}.length") == 3
    assert operator.run(
        f"return {tables}.every(t => t.caption.textContent.trim() &&"
        " [...t.querySelectorAll('th')].every(h => h.scope) &&"
        " [...t.tBodies[0].rows].every(r => r.querySelector('th[scope=row]')))"
    )
    assert operator.run(
        "return [...document.querySelectorAll('.cqrs-scroll')]"
        ".every(e => e.tabIndex === 0 && e.getAttribute('aria-labelledby'))"
    )
    assert operator.field("message").accessible_name == "Begin with the message:"
    lists = "[...document.querySelectorAll('.cqrs-graph ul')]"
    assert operator.run(
        f"return {lists}.every(l => [...l.children].every(c => c.tagName === 'LI'))"
    )
    assert len(operator.all("h1")) == 1
    assert operator.run(
        "const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        "return new Set(ids).size === ids.length"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_g04_1_the_graph_is_legible(operator, scheme):
    """
    Text stands out from what is behind it by 4.5 to 1 or more, light or dark. [G04.1]
    """
    operator.prefer(scheme)
    operator.go(GRAPH)

    texts = ".cqrs-graph :is(caption, th, code, a, li, strong, span), .help, label"
    assert min(operator.run(CONTRAST, texts)) >= 4.5


@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_g04_1_the_graph_fits_the_screen(operator, width):
    """
    It does not scroll sideways, has no script or style of its own in it, and the
    browser complains of nothing. [G04.1]
    """
    operator.screen(width)
    operator.chrome.get_log("browser")
    operator.go(GRAPH)

    assert operator.run("return document.documentElement.scrollWidth") <= width
    assert operator.all("#content script, #content style, #content [style]") == []
    assert operator.chrome.get_log("browser") == []


def test_pictures_of_the_graph(operator, tmp_path):
    """
    It is photographed for the docs, and for whoever reviews it. [G04.1]
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
        operator.go(f"{GRAPH}?message=order.cancel")
        operator.picture(folder / f"graph-{name}.png", width)

    for picture in folder.glob("graph-*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
