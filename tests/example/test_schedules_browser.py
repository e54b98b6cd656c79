"""The page of schedules in a real browser: by keyboard, in the dark, on a phone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.example.browser import CONTRAST, DESK, PHONE

pytestmark = pytest.mark.browser

SCHEDULES = "/admin/django_cqrs_schedules/schedule/"


def state_of(operator):
    return operator.find(".cqrs-schedules td .cqrs-state").text


def test_s06_1_a_schedule_is_paused_run_and_resumed_by_keyboard_alone(operator):
    """Each button says what was done, without a mouse. [S06.1]"""
    operator.go(SCHEDULES)
    said = ".messagelist"

    operator.tab_to("button[value=pause]")
    operator.enter()
    assert "Schedule office.report is paused." in operator.find(said).text
    assert state_of(operator) == "paused"
    operator.tab_to("button[value=run]")
    operator.enter()
    assert "Schedule office.report has sent" in operator.find(said).text
    operator.tab_to("button[value=resume]")
    operator.enter()
    assert "Schedule office.report is resumed." in operator.find(said).text
    assert state_of(operator) != "paused"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_s06_1_the_page_is_legible_and_fits_the_screen(operator, scheme):
    """
    Text stands out by 4.5 to 1 or more, nothing scrolls sideways, and the browser
    complains of nothing. [S06.1]
    """
    operator.prefer(scheme)
    operator.chrome.get_log("browser")
    operator.go(SCHEDULES)
    texts = ".cqrs-schedules :is(caption, th, td, span), .help"
    assert min(operator.run(CONTRAST, texts)) >= 4.5
    for width in (320, PHONE, DESK):
        operator.screen(width)
        assert operator.run("return document.documentElement.scrollWidth") <= width
    assert operator.all("#content script, #content style, #content [style]") == []
    assert operator.chrome.get_log("browser") == []


def test_s06_1_the_page_can_be_used_without_seeing_it(operator):
    """The table has a caption and scopes, and each button names its schedule. [S06.1]"""
    operator.go(SCHEDULES)
    table = "document.querySelector('table.cqrs-schedules')"
    assert operator.run(f"return {table}.caption.textContent.trim().length > 0")
    assert operator.run(
        f"return [...{table}.querySelectorAll('th')].every(t => t.scope)"
    )
    names = [each.accessible_name for each in operator.all(".cqrs-schedules button")]
    assert names == ["Pause office.report", "Run office.report now"]


def test_pictures_of_the_schedules(operator, tmp_path):
    """It is photographed for whoever reviews it. [S06.1]"""
    folder = Path(os.environ.get("CQRS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, scheme, width in (
        ("desk", "light", DESK),
        ("dark", "dark", DESK),
        ("phone", "light", PHONE),
    ):
        operator.prefer(scheme)
        operator.screen(width)
        operator.go(SCHEDULES)
        operator.picture(folder / f"schedules-{name}.png", width)

    for picture in folder.glob("schedules-*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
