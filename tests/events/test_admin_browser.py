"""The pages of events in a real browser: by keyboard, in the dark, on a phone."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.db import connections
from django.test import Client
from django.test.testcases import LiveServerThread

from django_cqrs.buses import registries
from django_cqrs.events import Projections, operations
from django_cqrs.events.models import Generation, ProjectionFailure, StoredEvent, Stream
from django_cqrs.events.wanted import WantedActions
from tests.events.admin_shop import bank, fails_at, fill, follow
from tests.example.browser import CONTRAST, DESK, PHONE, Visitor
from tests.limits import LIMIT

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.urls("tests.outbox.desk_urls"),
]

STREAMS = "/admin/django_cqrs_events/stream/"
EVENTS = "/admin/django_cqrs_events/storedevent/"
PROJECTIONS = "/admin/django_cqrs_events/generation/"
FAILURES = "/admin/django_cqrs_events/projectionfailure/"
RETURN = "\ue007"


@pytest.fixture
def registry(monkeypatch):
    """A bank with events, a projection that has stopped, and one with failures."""
    made = bank()
    monkeypatch.setattr(operations, "projects", made)
    monkeypatch.setattr(registries, "registry", made)
    fails_at.add(200)
    fill(made, payments=30)
    Projections(registry=made).init("bank.balances")
    follow(made)
    return made


@pytest.fixture
def operator(chrome, registry, settings):
    """Somebody who has signed in to the admin of this process."""
    settings.ALLOWED_HOSTS = ["*"]
    settings.MEDIA_URL = "/media/"
    server = LiveServerThread("127.0.0.1", static_handler=StaticFilesHandler)
    server.daemon = True
    server.start()
    server.is_ready.wait(LIMIT)
    assert server.error is None
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="ada"))
    visitor = Visitor(chrome, f"http://127.0.0.1:{server.port}")
    visitor.go("/static/admin/css/base.css")
    chrome.delete_all_cookies()
    for cookie in client.cookies.values():
        chrome.add_cookie({"name": cookie.key, "value": cookie.value})
    visitor.screen(DESK)
    visitor.prefer("light")
    chrome.get_log("browser")
    yield visitor
    chrome.get("about:blank")
    server.terminate()
    server.join(LIMIT)
    with contextlib.suppress(KeyError):
        connections.close_all()


def pages():
    """Return the address of each page of this app."""
    stream = Stream.objects.get(category="bank.account")
    event = StoredEvent.objects.get(stream_id=stream.pk, version=3)
    balances = Generation.objects.get(projection="bank.balances")
    failure = ProjectionFailure.objects.get()
    return {
        "streams": STREAMS,
        "stream": f"{STREAMS}{stream.pk}/change/",
        "version": f"{STREAMS}{stream.pk}/versions/3/",
        "events": EVENTS,
        "event": f"{EVENTS}{event.pk}/change/",
        "projections": PROJECTIONS,
        "projection": f"{PROJECTIONS}{balances.pk}/change/",
        "failures": FAILURES,
        "failure": f"{FAILURES}{failure.pk}/change/",
    }


def test_e33_2_from_a_stream_to_a_state_by_keyboard_alone(operator):
    """
    From the list to a stream, to an older page, to the state after a version, to the
    next one, and back to the stream, without a mouse. [E33.2]
    """
    operator.go(STREAMS)
    stream = Stream.objects.get(category="bank.account").pk
    operator.tab_to(f"#result_list th a[href*='stream/{stream}/']")
    operator.enter()
    assert operator.find("h1").text.startswith("bank.account-")
    assert len(operator.all(".cqrs-event")) == 25

    operator.tab_to(".cqrs-pager a[rel=next]")
    operator.enter()
    assert len(operator.all(".cqrs-event")) == 6
    operator.tab_to(".cqrs-links a[href*='/versions/3/']")
    operator.enter()
    assert operator.find("h1").text.startswith("Version 3 of bank.account-")
    changes = operator.find(".cqrs-changes tbody").text
    assert "balance 100 300" in re.sub(r"\s+", " ", changes)
    assert "••••••" in changes

    operator.tab_to(".cqrs-pager a[rel=next]")
    operator.enter()
    assert operator.find("h1").text.startswith("Version 4 of bank.account-")
    operator.tab_to(".object-tools a[href*='/change/']")
    operator.enter()
    assert "/change/?before=" in operator.path()


def test_e33_4_a_projection_is_operated_by_keyboard_alone(operator, registry):
    """
    A stopped projection is skipped on and rebuilt: asked, confirmed, seen to wait and to
    be done. [E33.4]
    """
    operator.go(PROJECTIONS)
    operator.tab_to(".cqrs-projections th a")
    operator.enter()
    operator.tab_to("button[value=skip]")
    operator.enter()
    assert "Go on without the event that fails?" in operator.find("#content").text
    operator.tab_to("#content input[type=submit]")
    operator.enter()
    assert (
        "Skip the event of bank.balances: done." in operator.find(".messagelist").text
    )

    fails_at.clear()
    operator.tab_to("button[value=rebuild]")
    operator.enter()
    operator.tab_to("#content input[type=submit]")
    operator.enter()
    status = "dd.cqrs-state"
    assert operator.find(status).text == "rebuild: waits for a worker"
    worker = WantedActions(registry, "default")
    while worker.run(LIMIT):
        pass
    operator.tab_to(".object-tools a[href*='handled=']")
    operator.enter()
    assert operator.find(status).text == "live"
    operator.tab_to(".object-tools .historylink")
    operator.enter()
    assert "Rebuild was asked for." in operator.find("#content").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_e33_the_pages_are_legible_and_fit_the_screen(operator, scheme):
    """
    Text stands out by 4.5 to 1 or more, nothing scrolls sideways, no page has a script or
    a style of its own in it, and the browser complains of nothing. [E33.1]
    """
    texts = (
        "#content :is(caption, dt, dd, code, pre, h2, .help, .cqrs-table td, "
        ".cqrs-table th, .cqrs-name *, .cqrs-links *, .cqrs-note, .cqrs-error, .cqrs-tag)"
    )
    operator.prefer(scheme)
    operator.chrome.get_log("browser")
    own = ("stream", "version", "projections", "projection")
    for name, page in pages().items():
        operator.screen(DESK)
        operator.go(page)
        found = operator.run(CONTRAST, texts)
        assert min(found, default=21) >= 4.5, name
        ids = "[...document.querySelectorAll('#content [id]')].map(e => e.id)"
        assert operator.run(f"return new Set({ids}).size === {ids}.length"), name
        if name in own:
            inside = "#content script, #content style, #content [style]"
            assert operator.all(inside) == [], name
            assert len(operator.all("h1")) == 1
            for width in (320, PHONE, DESK):
                operator.screen(width)
                wide = operator.run("return document.documentElement.scrollWidth")
                assert wide <= width, (name, width)
    said = [each["message"] for each in operator.chrome.get_log("browser")]
    assert [each for each in said if "/favicon.ico" not in each] == []


def test_e33_the_pages_can_be_used_without_seeing_them(operator):
    """
    Tables have captions and scopes, what scrolls is reached by the keyboard, and buttons
    and links have names. [E33.1]
    """
    for name in ("version", "projections", "projection"):
        operator.go(pages()[name])
        tables = "[...document.querySelectorAll('#content table')]"
        assert operator.run(
            f"return {tables}.length > 0 && {tables}.every(t =>"
            " t.caption.textContent.trim() &&"
            " [...t.querySelectorAll('th')].every(h => h.scope) &&"
            " [...t.tBodies[0].rows].every(r => r.querySelector('th[scope=row]')))"
        ), name
        assert operator.run(
            "return [...document.querySelectorAll('.cqrs-scroll, .cqrs-text')]"
            ".every(e => e.tabIndex === 0)"
        ), name
        assert operator.run(
            "return [...document.querySelectorAll('#content a, #content button')]"
            ".every(e => (e.getAttribute('aria-label') || e.textContent).trim())"
        ), name


def test_pictures_of_events(operator, tmp_path):
    """They are photographed for the docs, and for whoever reviews them. [E33.1]"""
    folder = Path(os.environ.get("CQRS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        for scheme, width in (("light", DESK), ("dark", DESK), ("light", PHONE)):
            operator.prefer(scheme)
            operator.screen(width)
            operator.go(page)
            device = "phone" if width == PHONE else scheme
            operator.picture(folder / f"events-{name}-{device}.png", width)

    operator.prefer("light")
    for name, height in (("stream", 800), ("version", 900), ("projection", 600)):
        operator.screen(DESK, height)
        operator.go(pages()[name])
        operator.chrome.save_screenshot(str(folder / f"events-{name}.png"))
    for picture in folder.glob("events-*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
