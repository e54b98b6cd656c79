"""Event streams in Django's admin: what is shown, what is masked, who may do what."""

import html
import re
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from django_cqrs import Registry, admin_lists, clock, message
from django_cqrs.buses import registries
from django_cqrs.events import EventStore, Projections, operations
from django_cqrs.events.admin import failures as failure_pages
from django_cqrs.events.admin import projections as projection_pages
from django_cqrs.events.admin import streams as stream_pages
from django_cqrs.events.admin.projections import without_literals
from django_cqrs.events.models import (
    Generation,
    ProjectionFailure,
    StoredEvent,
    Stream,
)
from django_cqrs.events.settling import Blocker
from django_cqrs.events.status import StoreStatus
from django_cqrs.events.wanted import WantedActions
from tests.events.admin_shop import (
    ACCOUNT,
    IBAN,
    NOTE,
    AccountOpened,
    PaidIn,
    PayIn,
    bank,
    fails_at,
    fill,
    follow,
)
from tests.events.views.models import Entry, OrderRow

pytestmark = [
    pytest.mark.django_db(databases=["default", "other"]),
    pytest.mark.urls("tests.outbox.desk_urls"),
]

on_databases = pytest.mark.database
"""The statements that are not the same on each server."""

STREAMS = "/admin/django_cqrs_events/stream/"
EVENTS = "/admin/django_cqrs_events/storedevent/"
PROJECTIONS = "/admin/django_cqrs_events/generation/"
FAILURES = "/admin/django_cqrs_events/projectionfailure/"
ACT = f"{PROJECTIONS}act/"


def be_project(monkeypatch, registry):
    monkeypatch.setattr(operations, "projects", registry)
    monkeypatch.setattr(registries, "registry", registry)
    return registry


@pytest.fixture
def registry(monkeypatch):
    return be_project(monkeypatch, bank())


@pytest.fixture
def own(registry):
    return Projections("default", registry=registry)


@pytest.fixture
def operator(client):
    client.force_login(User.objects.create_superuser("ada", password="ada"))
    return client


def somebody(client, *codenames):
    """Sign somebody in who has some permissions."""
    user = User.objects.create_user("bob", password="bob", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


def text_of(response):
    """Return the text of a page, without its tags."""
    assert response.status_code == 200, response.status_code
    body = re.sub(r"(?s)<(script|style).*?</\1>", " ", response.content.decode())
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", body)).split())


def account_stream():
    return Stream.objects.get(category="bank.account")


def version_page(stream, version):
    return f"{STREAMS}{stream.pk}/versions/{version}/"


def act(client, action, name, **more):
    return client.post(ACT, {"action": action, "projection": name, **more}, follow=True)


def entries():
    rows = LogEntry.objects.order_by("pk")
    return [(each.object_repr, each.get_change_message()) for each in rows]


# Streams and events -----------------------------------------------------------------


@on_databases
def test_e33_1_streams_are_listed_filtered_and_found(registry, operator):
    """By category, by name and by key, with the version and the time of the last. [E33.1]"""
    fill(registry)

    listed = text_of(operator.get(STREAMS))
    assert f"bank.account-{ACCOUNT} 4" in listed
    assert "2 streams" in listed

    assert "1 stream" in text_of(operator.get(STREAMS, {"category": "bank.account"}))
    for term in (str(ACCOUNT), f"bank.account-{ACCOUNT}", f" {ACCOUNT} "):
        found = text_of(operator.get(STREAMS, {"q": term}))
        assert f"bank.account-{ACCOUNT}" in found
        assert "1 result" in found
    for term in ("nothing", "-", "bank.account-", "x" * 400):
        assert "0 results" in text_of(operator.get(STREAMS, {"q": term}))


@on_databases
def test_e33_1_events_are_found_by_each_of_their_marks(registry, operator):
    """Position, event id, correlation id, tag, stream, name, and time. [E33.1]"""
    fill(registry)
    first, second = StoredEvent.objects.order_by("position")[:2]

    def found(term):
        page = text_of(operator.get(EVENTS, {"q": term}))
        return int(re.search(r"(\d+) results?", page)[1])

    assert found(first.position) == 1
    assert found(first.event_id) == 1
    assert found(second.correlation_id) == 1
    assert found(f"account:{ACCOUNT}") == 4
    assert found("owner:Ada") == 1
    assert found(f"bank.account-{ACCOUNT}") == 4
    assert found("bank.paid_in") == 3
    assert found("bank") == 0
    assert found("9" * 30) == 0
    assert found(f"{clock.now() + timedelta(days=1):%Y-%m-%d}") == 5
    assert found(f"{clock.now() - timedelta(days=1):%Y-%m-%d %H:%M}") == 0
    assert found("2026-13-45") == 0
    named = text_of(operator.get(EVENTS, {"name": "bank.card_issued"}))
    assert "1 event" in named
    assert "_facets" not in operator.get(EVENTS).content.decode()


@on_databases
def test_e33_1_lists_stay_bounded(registry, operator, monkeypatch):
    """Nothing is counted beyond the end of a list, which says so. [E33.1]"""
    fill(registry)
    monkeypatch.setattr(admin_lists, "LISTED", 3)

    with CaptureQueriesContext(
        connection,
    ) as queries:
        listed = text_of(operator.get(EVENTS))

    assert "The list ends after 3; there are more." in listed
    counts = [each["sql"] for each in queries if "COUNT(" in each["sql"]]
    assert counts
    assert all("LIMIT 4" in each for each in counts)
    assert len(queries) < 14


@on_databases
def test_e33_1_a_stream_is_paged_by_version(registry, operator, monkeypatch):
    """The newest first, by keys and not by numbers of pages, both ways. [E33.1]"""
    monkeypatch.setattr(stream_pages, "PAGE", 2)
    fill(registry, payments=4)
    page = f"{STREAMS}{account_stream().pk}/change/"

    def versions(response):
        return re.findall(r"version (\d), position", text_of(response))

    first = operator.get(page)
    assert versions(first) == ["5", "4"]
    assert "Newer events" not in text_of(first)
    second = operator.get(page, {"before": 4})
    assert versions(second) == ["3", "2"]
    assert f"{page}?before=2" in second.content.decode()
    assert f"{page}?after=3" in second.content.decode()
    last = operator.get(page, {"before": 2})
    assert versions(last) == ["1"]
    assert "Older events" not in text_of(last)
    assert versions(operator.get(page, {"after": 3})) == ["5", "4"]
    assert versions(operator.get(page, {"after": 1})) == ["3", "2"]
    assert versions(operator.get(page, {"before": "x", "after": "9" * 30})) == [
        "5",
        "4",
    ]


def test_e33_2_the_state_after_each_version_and_its_changes(registry, operator):
    """With what the event has changed, before and after. [E33.2]"""
    fill(registry)
    stream = account_stream()

    first = text_of(operator.get(version_page(stream, 1)))
    assert "Version 1 of bank.account-" in first
    assert '"owner": "Ada"' in first
    assert 'owner absent "Ada"' in first

    third = text_of(operator.get(version_page(stream, 2)))
    assert "balance 0 100" in third
    assert '"balance": 100' in third
    assert "owner absent" not in third

    assert operator.get(version_page(stream, 5)).status_code == 404
    assert operator.get(f"{STREAMS}9999/versions/1/").status_code == 404


@on_databases
def test_e33_2_nothing_sensitive_is_on_any_page(registry, operator):
    """
    Neither in payloads, tags, names of streams and states, nor as what has changed; also
    where the class of the state does not mark what an event has marked. [E33.2]
    """
    fill(registry)
    stream, card = account_stream(), Stream.objects.get(category="bank.card")
    events = StoredEvent.objects.values_list("position", flat=True)
    pages = [
        *(STREAMS, EVENTS),
        *(f"{STREAMS}{each.pk}/change/" for each in (stream, card)),
        *(version_page(stream, version) for version in (1, 2, 3, 4)),
        version_page(card, 1),
        *(f"{EVENTS}{each}/change/" for each in events),
    ]

    for page in pages:
        body = operator.get(page).content.decode()
        for secret in (IBAN, NOTE, "4111-1111"):
            assert secret not in body, page

    assert 'iban absent "••••••"' in text_of(operator.get(version_page(stream, 1)))
    with_note = text_of(operator.get(version_page(stream, 3)))
    assert 'notes[0] absent "••••••"' in with_note
    assert '"balance": 300' in with_note
    assert "bank.card-••••••" in text_of(operator.get(STREAMS))
    assert "card:••••••" in text_of(operator.get(f"{STREAMS}{card.pk}/change/"))


def test_e33_2_a_search_does_not_confirm_what_is_masked(registry, operator):
    """Neither by a name or key of a stream, nor by a tag. [E33.2]"""
    fill(registry)

    for term in ("4111-1111", "bank.card-4111-1111"):
        assert "0 results" in text_of(operator.get(STREAMS, {"q": term}))
        assert "0 results" in text_of(operator.get(EVENTS, {"q": term}))
    assert "0 results" in text_of(operator.get(EVENTS, {"q": "card:4111-1111"}))
    for lookup in ("payload__number", "key__startswith", "stream_id__gt"):
        assert operator.get(EVENTS, {lookup: "4"}).status_code == 400


def test_e33_2_a_state_that_cannot_be_made_says_why(registry, operator, monkeypatch):
    """An applier that raises, a long stream, and a class that is not here. [E33.2]"""
    fill(registry)
    stream, card = account_stream(), Stream.objects.get(category="bank.card")
    assert "No event-sourced class here has the category 'bank.card'." in text_of(
        operator.get(version_page(card, 1))
    )
    monkeypatch.setattr("django_cqrs.events.state_history.LONGEST", 2)
    assert "It takes 3 events to make this state" in text_of(
        operator.get(version_page(stream, 3))
    )
    monkeypatch.undo()
    be_project(monkeypatch, registry)
    StoredEvent.objects.filter(name="bank.paid_in", version=3).update(
        payload={"account_id": str(ACCOUNT), "cents": [NOTE]}
    )
    page = text_of(operator.get(version_page(stream, 3)))
    assert "The state cannot be made: MessageConversionError." in page
    assert NOTE not in page


@message("bank.forgotten")
@dataclass(frozen=True)
class BankForgotten:
    secret: str


def test_e33_6_an_event_of_an_unknown_class_is_masked_as_a_whole(registry, operator):
    """The page says why, and shows nothing of its payload. [E33.6]"""
    other = Registry()
    other.add(BankForgotten)
    EventStore(registry=other).append(
        BankForgotten("hunter2"), stream="bank.lost-hunter2"
    )
    event, stream = StoredEvent.objects.get(), Stream.objects.get()

    for page in (f"{EVENTS}{event.pk}/change/", f"{STREAMS}{stream.pk}/change/"):
        body = text_of(operator.get(page))
        assert "hunter2" not in body
        assert "(not shown)" in body
        assert "bank.forgotten" in body
    listed = text_of(operator.get(STREAMS))
    assert "bank.lost-(not shown)" in listed


def test_e33_6_an_event_that_does_not_fit_its_class_shows_what_is_not_secret(
    registry, operator
):
    """Its values are masked where the class has no such place. [E33.6]"""
    fill(registry)
    StoredEvent.objects.filter(name="bank.account_opened").update(
        payload={"account_id": str(ACCOUNT), "owner": ["hunter2"], "was": "hunter2"}
    )
    event = StoredEvent.objects.get(name="bank.account_opened")

    body = text_of(operator.get(f"{EVENTS}{event.pk}/change/"))

    assert "hunter2" not in body
    assert str(ACCOUNT) in body
    assert "stands for a sensitive value" in body


@on_databases
def test_e33_7_links_lead_to_the_timeline_and_back(registry, operator, settings):
    """From an event and a stream to the timeline; from a message there to its event. [E33.7]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}
    fill(registry)
    event = StoredEvent.objects.filter(name="bank.paid_in").first()
    timeline = reverse(
        "admin:django_cqrs_outbox_timeline", args=(event.correlation_id,)
    )
    page = operator.get(f"{EVENTS}{event.pk}/change/").content.decode()
    assert timeline in page
    stream_page = operator.get(f"{STREAMS}{event.stream_id}/change/").content.decode()
    assert timeline in stream_page
    assert "/timeline/?subject=" in stream_page
    assert version_page(account_stream(), event.version) in page

    back = operator.get(timeline).content.decode()

    assert f'href="{EVENTS}{event.pk}/change/"' in back
    assert f"bank.paid_in at position {event.pk}" in back


def test_e33_7_no_link_is_shown_that_may_not_be_followed(registry, client):
    """Neither to the timeline, nor to the stream, nor to the event. [E33.7]"""
    fill(registry)
    event = StoredEvent.objects.filter(name="bank.paid_in").first()
    somebody(client, "view_storedevent")

    page = client.get(f"{EVENTS}{event.pk}/change/").content.decode()

    assert "/timeline/" not in page
    assert STREAMS not in page
    assert client.get(f"{STREAMS}{event.stream_id}/change/").status_code == 403


def test_e33_3_streams_and_events_are_never_edited(registry, operator):
    """They are viewed alone, and events only by who may see events. [E33.3]"""
    fill(registry)
    event = StoredEvent.objects.first()
    for page in (f"{STREAMS}add/", f"{EVENTS}add/"):
        assert operator.get(page).status_code == 403
    for page in (
        f"{EVENTS}{event.pk}/delete/",
        f"{STREAMS}{event.stream_id}/delete/",
    ):
        assert operator.post(page, {"post": "yes"}).status_code == 403
    operator.logout()
    somebody(operator, "view_stream")
    page = f"{STREAMS}{event.stream_id}/change/"
    assert "You do not have permission to view events" in text_of(operator.get(page))
    assert operator.get(version_page(account_stream(), 1)).status_code == 403
    assert operator.get(EVENTS).status_code == 403


# Projections ------------------------------------------------------------------------


@on_databases
def test_e33_1_projections_are_shown_with_their_progress(registry, own, operator):
    """Status, position, lag, error and failures; a new one can be set up. [E33.1]"""
    fails_at.add(200)
    fill(registry)
    page = text_of(operator.get(PROJECTIONS))
    assert "bank.balances channel outbox new Set up" in page
    act(operator, "init", "bank.balances")
    follow(registry)

    page = text_of(operator.get(PROJECTIONS))

    assert re.search(r"Settled position \d+ of \d+\.", page)
    assert (
        "bank.balances channel outbox failed UnluckyAmount: 200 cents with the note"
        in page
    )
    assert "bank.totals inline live" in page
    assert re.search(r"bank\.statements channel outbox live \d+ 0 0 s 1 ", page)
    pk = own._generation("bank.balances").pk
    page = text_of(operator.get(f"{PROJECTIONS}{pk}/change/"))
    assert "Shard 0 waits" in page
    assert "1 attempt, the next at" in page
    assert "Traceback (most recent call last)" in page
    assert NOTE not in page
    failed = StoredEvent.objects.get(name="bank.paid_in", version=3).pk
    assert f"Event at position {failed}" in page
    gone = operator.get(f"{PROJECTIONS}9999/change/", follow=True)
    assert "There is no projection 9999." in text_of(gone)


def test_e33_3_pause_and_resume_need_a_permission_a_post_and_leave_entries(
    registry, own, operator
):
    """Nothing is done by GET, without the permission, or twice. [E33.3]"""
    own.init("bank.statements")
    name = "bank.statements"
    assert operator.get(ACT).status_code == 405

    assert "Pause of bank.statements: done." in text_of(act(operator, "pause", name))
    assert own.status(name).status == "paused"
    again = text_of(act(operator, "pause", name))
    assert "Pause of bank.statements: there was nothing to do." in again
    act(operator, "resume", name)

    assert own.status(name).status == "live"
    assert entries() == [
        ("bank.statements 1", "Paused."),
        ("bank.statements 1", "Resumed."),
    ]
    assert "There is no projection" in text_of(act(operator, "pause", "bank.nothing"))
    assert act(operator, "fly", name).status_code == 403
    pk = own._generation(name).pk
    history = text_of(operator.get(f"{PROJECTIONS}{pk}/history/"))
    assert "Paused." in history


PERMISSIONS = {
    "operate_generation": {"init", "pause", "resume", "run"},
    "skip_failure": {"retry", "skip"},
    "rebuild_generation": {"backfill", "rebuild", "reset", "delete"},
}


@pytest.mark.parametrize("granted", [*PERMISSIONS, "view_generation"])
def test_e33_3_each_action_has_its_permission(registry, own, client, granted):
    """Of the buttons, only those are shown, and accepted, that the user may press. [E33.3]"""
    fails_at.add(200)
    fill(registry)
    own.init("bank.balances")
    follow(registry)
    somebody(client, "view_generation", granted)
    allowed = PERMISSIONS.get(granted, set())

    pk = own._generation("bank.balances").pk
    page = client.get(f"{PROJECTIONS}{pk}/change/").content.decode()
    shown = set(re.findall(r'name="action" value="(\w+)"', page))
    assert shown == allowed & {"pause", "retry", "skip", "rebuild", "reset", "delete"}
    for action in set().union(*PERMISSIONS.values()):
        status = act(client, action, "bank.balances").status_code
        assert (status == 200) is (action in allowed), action
    client.logout()
    assert act(client, "pause", "bank.balances").redirect_chain[0][1] == 302
    User.objects.get(username="bob").delete()
    somebody(client, granted if granted != "view_generation" else "view_stream")
    assert act(client, "pause", "bank.balances").status_code == 403
    assert client.get(PROJECTIONS).status_code == 403


def test_e33_3_a_stopped_projection_is_retried_and_skipped(registry, own, operator):
    """The event that it has stopped at becomes a failure, after a question. [E33.3]"""
    fails_at.add(200)
    fill(registry)
    own.init("bank.balances")
    follow(registry)
    name = "bank.balances"

    act(operator, "retry", name)
    assert own.status(name).shards[0].retry_at is None
    asked = act(operator, "skip", name)
    assert "Go on without the event that fails?" in text_of(asked)
    assert own.status(name).failures == 0
    act(operator, "skip", name, post="yes")

    assert own.status(name).failures == 1
    assert own.run(name) == 1
    assert [text for _, text in entries()] == [
        "The event that it has stopped at is tried again.",
        "The event that it has stopped at was skipped.",
    ]


@on_databases
def test_e33_4_a_long_action_is_started_and_seen_to_progress(registry, own, operator):
    """It waits for a worker, is seen to run, and to be done or to have failed. [E33.4]"""
    fill(registry)
    follow(registry)
    name = "bank.statements"
    pk = own._generation(name).pk
    page = f"{PROJECTIONS}{pk}/change/"
    Entry.objects.all().delete()

    assert "Are you sure?" in text_of(act(operator, "rebuild", name))
    assert own.status(name).wanted == ""
    asked = text_of(act(operator, "rebuild", name, post="yes"))
    assert "Rebuild of bank.statements: a worker begins with it." in asked
    assert "rebuild: waits for a worker" in asked
    assert "is busy" in text_of(act(operator, "reset", name, post="yes"))
    Generation.objects.filter(pk=pk).update(wanted="running:rebuild")
    assert "rebuild: a worker is doing it" in text_of(operator.get(page))
    Generation.objects.filter(pk=pk).update(wanted="rebuild")

    WantedActions(registry, "default").run(0)

    assert "Status live" in text_of(operator.get(page))
    assert Entry.objects.count() == 3
    assert entries() == [("bank.statements 1", "Rebuild was asked for.")]

    act(operator, "reset", name, post="yes")
    WantedActions(registry, "default").run(0)
    behind = operator.get(page)
    assert "Events behind 3 for" in text_of(behind)
    refresh = re.search(rf'href="({page}\?handled=[^"]*)"', behind.content.decode())
    own.run(name)
    seen = text_of(operator.get(html.unescape(refresh[1])))
    assert re.search(r"Since the page before 3 in .*: [\d,.]+ a second", seen)
    assert "Since" not in text_of(operator.get(page, {"handled": "x", "at": "nan"}))

    fails_at.add(200)
    act(operator, "rebuild", name, post="yes")
    WantedActions(registry, "default").run(0)
    failed = text_of(operator.get(page))
    assert "The last long action failed. rebuild: UnluckyAmount: 200 cents" in failed
    act(operator, "delete", name, post="yes")
    WantedActions(registry, "default").run(0)
    assert "There is no projection" in text_of(operator.get(page, follow=True))


def test_e33_4_without_a_worker_the_command_is_named(registry, own, operator, settings):
    """Long actions have no buttons where nobody would carry them out. [E33.4]"""
    own.init("bank.totals")
    settings.DJANGO_CQRS = {"CHANNELS": {}}
    pk = own._generation("bank.totals").pk

    page = text_of(operator.get(f"{PROJECTIONS}{pk}/change/"))

    assert "manage.py cqrs_projections rebuild bank.totals" in page
    assert "Backfill" not in page
    refused = text_of(act(operator, "backfill", "bank.totals"))
    assert "Run manage.py cqrs_projections backfill bank.totals." in refused


def test_e33_5_what_blocks_settling_is_named(registry, operator, monkeypatch):
    """Who, for how long, and with which statement, without the values in it. [E33.5]"""
    query = "INSERT INTO card (number) VALUES ('4111-1111')"
    blockers = [
        Blocker(3, 4711, timedelta(minutes=7), query),
        Blocker(4, None, None, ""),
    ]
    monkeypatch.setattr(
        projection_pages,
        "store_status",
        lambda _using: StoreStatus(head=9, settled=3, blockers=blockers),
    )

    page = text_of(operator.get(PROJECTIONS))

    assert "Settled position 3 of 9." in page
    assert (
        "Followers are held back at position 3 by session 4711 of the server, "
        "for 7 minutes."
    ) in page
    assert "INSERT INTO card (number) VALUES (•)" in page
    assert "at position 4 by a prepared transaction" in page
    assert "4111" not in page


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("SELECT 1.5, 'it''s', t2 FROM t2", "SELECT •, •, t2 FROM t2"),
        ("UPDATE a SET b = 'cut o", "UPDATE a SET b = •"),
        ("UPDATE a SET b = $x$4111$x$", "UPDATE"),
        (r"UPDATE a SET b = E'\'4111'", "UPDATE"),
        ("", ""),
    ],
)
def test_e33_5_statements_have_no_values(query, shown):
    """Not in any form of quoting. [E33.5]"""
    assert without_literals(query) == shown


# Failures ---------------------------------------------------------------------------


@pytest.fixture
def failed(registry, own):
    """The failures of a projection that skips what it does not like."""
    fails_at.update({200, 300})
    fill(registry)
    follow(registry)
    fails_at.clear()
    return list(ProjectionFailure.objects.order_by("pk"))


def choose(client, action, *chosen, **more):
    data = {"action": action, "_selected_action": [each.pk for each in chosen], **more}
    return client.post(FAILURES, data, follow=True)


def test_e33_1_failures_are_listed_with_what_failed(failed, operator, own):
    """With their projection, event and error; filtered by projection. [E33.1]"""
    listed = operator.get(FAILURES, {"projection": "bank.statements"})
    assert "2 failures" in text_of(listed)
    assert "bank.statements bank.paid_in" in text_of(listed)
    assert f'href="{EVENTS}{failed[0].position}/change/"' in listed.content.decode()
    assert NOTE not in text_of(listed)
    empty = text_of(operator.get(FAILURES, {"projection": "bank.nothing"}))
    assert "0 failures" in empty
    shown = text_of(operator.get(f"{FAILURES}{failed[0].pk}/change/"))
    assert "Traceback (most recent call last)" in shown
    assert f"Partition: bank.account-{ACCOUNT}" in shown
    assert NOTE not in shown
    card = StoredEvent.objects.get(name="bank.card_issued").pk
    ProjectionFailure.objects.update(position=card, partition="bank.card-4111-1111")
    masked = text_of(operator.get(f"{FAILURES}{failed[0].pk}/change/"))
    assert "Partition: bank.card-••••••" in masked
    ProjectionFailure.objects.update(position=10**9)
    gone = text_of(operator.get(f"{FAILURES}{failed[0].pk}/change/"))
    assert "Partition: (not shown)" in gone


@on_databases
def test_e33_3_failures_are_retried_and_given_up(failed, operator, own):
    """Each after a question, with an entry in the projection's history. [E33.3]"""
    first, second = failed
    assert "Handle these events again?" in text_of(
        choose(operator, "retry_selected", first)
    )
    assert ProjectionFailure.objects.count() == 2

    done = text_of(choose(operator, "retry_selected", first, post="yes"))
    assert "1 event is done." in done
    assert Entry.objects.filter(number=200).exists()
    fails_at.add(300)
    again = text_of(choose(operator, "retry_selected", second, post="yes"))
    assert "Failed again, as the failures say: bank.paid_in at" in again
    choose(operator, "skip_selected", second, post="yes")

    assert not ProjectionFailure.objects.exists()
    assert not Entry.objects.filter(number=300).exists()
    assert entries() == [
        ("bank.statements 1", f"Retried the failure of {first}."),
        ("bank.statements 1", f"Gave up the failure of {second}."),
    ]


def test_e33_3_failures_need_their_permission(failed, client, monkeypatch):
    """Who may only view them sees no action; too many at once are refused. [E33.3]"""
    somebody(client, "view_projectionfailure")
    assert "retry_selected" not in client.get(FAILURES).content.decode()
    choose(client, "retry_selected", failed[0], post="yes")
    assert ProjectionFailure.objects.count() == 2

    client.force_login(User.objects.create_superuser("ada"))
    monkeypatch.setattr(failure_pages, "AT_ONCE", 1)
    refused = text_of(choose(client, "retry_selected", *failed, post="yes"))
    assert "Choose at most 1 failures. Nothing was done." in refused
    assert ProjectionFailure.objects.count() == 2


# Databases --------------------------------------------------------------------------


@on_databases
def test_e33_1_each_database_has_its_own_pages(registry, operator):
    """The address names one, and the links of a page keep it. [E33.1]"""
    store = EventStore("other", registry=registry)
    store.append(AccountOpened(ACCOUNT, "Eve", IBAN), stream=f"bank.account-{ACCOUNT}")
    store.append(PaidIn(ACCOUNT, 700), stream=f"bank.account-{ACCOUNT}")
    Projections("other", registry=registry).init("bank.statements")
    stream = Stream.objects.using("other").get()

    assert "0 streams" in text_of(operator.get(STREAMS))
    assert "1 stream" in text_of(operator.get(STREAMS, {"database": "other"}))
    page = operator.get(f"{STREAMS}{stream.pk}/change/", {"database": "other"})
    assert "versions/2/?database=other" in page.content.decode()
    state = operator.get(version_page(stream, 2), {"database": "other"})
    assert '"balance": 700' in text_of(state)
    listed = operator.get(PROJECTIONS, {"database": "other"}).content.decode()
    assert "change/?database=other" in listed
    response = operator.post(
        f"{ACT}?database=other", {"action": "pause", "projection": "bank.statements"}
    )
    assert response.url.endswith("?database=other")
    assert Generation.objects.using("other").get(
        projection="bank.statements"
    ).status == ("paused")


def test_e33_3_a_deleted_stream_says_so(registry, operator):
    """An archived or deleted stream is still listed, with its state. [E33.1]"""
    fill(registry)
    Stream.objects.filter(category="bank.card").update(deleted_at=clock.now())
    Stream.objects.filter(category="bank.account").update(archived_at=clock.now())

    listed = text_of(operator.get(STREAMS))

    assert "deleted" in listed
    assert "archived" in listed


def test_the_inline_projection_is_filled_again(registry, own, operator):
    """A backfill is asked for without a question, for it takes nothing away. [E33.4]"""
    fill(registry)
    OrderRow.objects.all().delete()
    Generation.objects.filter(projection="bank.totals").update(status="paused")
    registry.command_bus.dispatch(PayIn(ACCOUNT, 900))
    own.resume("bank.totals")

    act(operator, "backfill", "bank.totals")
    WantedActions(registry, "default").run(0)

    assert OrderRow.objects.get().number == 900
