"""Workers and paused channels in the admin."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry

from django_cqrs import clock
from django_cqrs.outbox.attendance import ALIVE
from django_cqrs.outbox.models import OutboxMessage, PausedChannel, WorkerRecord
from django_cqrs.outbox.pausing import pause
from tests.outbox.admin.test_desk import MESSAGES, kept, operator  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db

CHANNELS = f"{MESSAGES}channels/"
PAUSING = f"{CHANNELS}pause/"
WORKERS = "/admin/django_cqrs_outbox/workerrecord/"


@pytest.fixture(autouse=True)
def _urls(settings):
    settings.ROOT_URLCONF = "tests.outbox.desk_urls"


def recorded(name, ago=timedelta(0), **fields):
    at = clock.now() - ago
    return WorkerRecord.objects.create(
        name=name, channels="mail\noutbox", started_at=at, seen_at=at, **fields
    )


def test_the_list_of_workers_says_who_lives(admin_client):
    """Those that have ended stay for a day, and cannot be changed."""
    recorded("host:1:a")
    recorded("host:2:b", ago=ALIVE * 2)
    recorded("host:3:c", stopped_at=clock.now())
    page = admin_client.get(WORKERS).content.decode()

    assert "mail, outbox" in page
    for name, said in (("1:a", "alive"), ("2:b", "dead"), ("3:c", "stopped")):
        row = page[page.index(f"host:{name}") :]
        assert said in row[: row.index("</tr>")]
    assert admin_client.get(f"{WORKERS}add/").status_code == 403


def test_the_page_of_channels_names_the_living_workers(admin_client):
    """Where none runs, it says so."""
    assert "No worker is running" in admin_client.get(CHANNELS).content.decode()
    recorded("host:1:a")
    recorded("host:2:b", ago=ALIVE * 2)
    page = admin_client.get(CHANNELS).content.decode()

    assert "host:1:a" in page
    assert "host:2:b" not in page
    assert "No worker is running" not in page


def test_a_channel_is_paused_and_resumed(admin_client):
    """The page says since when, by whom and why; both are in the history."""
    answer = admin_client.post(
        PAUSING, {"channel": "outbox", "reason": " a <b>move</b> "}, follow=True
    )
    page = answer.content.decode()
    row = PausedChannel.objects.get()
    assert (row.channel, row.paused_by, row.reason) == (
        "outbox",
        "admin",
        "a <b>move</b>",
    )
    assert "Channel outbox is paused since" in page
    assert "by admin: a &lt;b&gt;move" in page
    assert "Resume outbox" in page

    admin_client.post(PAUSING, {"channel": "outbox", "action": "resume"})
    assert not PausedChannel.objects.exists()
    said = [each.get_change_message() for each in LogEntry.objects.order_by("pk")]
    assert said == ["Paused: a <b>move</b>", "Resumed."]
    assert {each.object_repr for each in LogEntry.objects.all()} == {"outbox"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"channel": "nowhere"}, "There is no channel nowhere."),
        ({}, "There is no channel ."),
        ({"channel": "mail", "action": "resume"}, "Channel mail was not paused."),
        ({"channel": "outbox"}, "Channel outbox was paused already."),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(admin_client, data, said):
    """Nothing changes, and nothing is in the history."""
    pause("outbox", by="ada", reason="first")
    page = admin_client.post(PAUSING, data, follow=True).content.decode()

    assert said in page
    assert PausedChannel.objects.get().reason == "first"
    assert not LogEntry.objects.exists()


def test_a_channel_that_the_settings_have_lost_cannot_be_paused(admin_client):
    """The page lists it while messages wait in it, and says why nothing happens."""
    kept(OutboxMessage, channel="lost")
    page = admin_client.post(PAUSING, {"channel": "lost"}, follow=True).content.decode()

    assert "&#x27;lost&#x27; is not in DJANGO_CQRS" in page
    assert not PausedChannel.objects.exists()


def test_pausing_has_a_permission_of_its_own(client, operator):  # noqa: F811 - the fixture
    """Who may only view sees what is paused, and no button."""
    pause("outbox", by="ada")
    operator()
    assert client.post(PAUSING, {"channel": "outbox"}).status_code == 403
    operator("view_outboxmessage")
    page = client.get(CHANNELS).content.decode()
    assert "Channel outbox is paused" in page
    assert "<button" not in page[page.index("content-main") :]
    assert client.post(PAUSING, {"channel": "memory"}).status_code == 403

    operator("view_outboxmessage", "pause_channel")
    page = client.get(CHANNELS).content.decode()
    assert "Resume outbox" in page
    assert "Pause a channel:" in page
    assert client.get(PAUSING).status_code == 405


def test_the_page_does_not_ask_for_a_worker_of_a_paused_channel(admin_client, settings):
    """Its messages wait on purpose."""
    outbox = settings.DJANGO_CQRS["CHANNELS"]["outbox"]
    settings.DJANGO_CQRS = {"CHANNELS": {"outbox": outbox, "mail": outbox}}
    kept(OutboxMessage, channel="mail", sent_at=clock.now() - timedelta(minutes=2))
    command = "python manage.py cqrs_worker mail"
    assert command in admin_client.get(CHANNELS).content.decode()
    pause("mail")

    assert command not in admin_client.get(CHANNELS).content.decode()
