"""The desk in Django's admin: who sees, replays and deletes what, and what is kept of it."""

from __future__ import annotations

import html
import io
import re
import uuid
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from django_cqrs import (
    Registry,
    Retry,
    Sensitive,
    admin_lists,
    buses,
    command_handler,
    message,
)
from django_cqrs.conversion import upcaster
from django_cqrs.outbox.admin import filters, outbox_messages, stored_messages
from django_cqrs.outbox.editing import PayloadEditor
from django_cqrs.outbox.models import (
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    State,
    Throughput,
)
from django_cqrs.testing.flow import Flow

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.database,
    pytest.mark.urls("tests.outbox.desk_urls"),
]

LETTERS = "/admin/django_cqrs_outbox/deadletter/"
MESSAGES = "/admin/django_cqrs_outbox/outboxmessage/"


@message("desk.Print")
@dataclass(frozen=True)
class Print:
    number: int


@message("desk.Pay", version=3)
@dataclass(frozen=True)
class Pay:
    customer: str
    card: Annotated[str, Sensitive()]


@message("desk.Check")
@dataclass(frozen=True)
class Check:
    pin: Annotated[str, Sensitive()]

    def __post_init__(self):
        if len(self.pin) < 6:
            msg = f"the PIN {self.pin} is too short"
            raise ValueError(msg)


@upcaster("desk.Pay", version=1)
def rename_the_number(payload):
    return {"customer": payload["customer"], "card": payload["number"]}


def set_limits(monkeypatch, **limits):
    for module in (admin_lists, filters, outbox_messages, stored_messages):
        for name in limits.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, limits[name])


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """The handlers of the project, as the desk sees them."""
    registry = Registry()

    @registry.add
    @command_handler(name="desk.print", channel="outbox")
    def print_label(command: Print) -> None:
        """Never called."""

    @registry.add
    @command_handler("desk.scan", name="desk.scan", channel="outbox")
    def scan(number: int) -> None:
        """Never called."""

    @registry.add
    @command_handler("desk.tell", name="desk.tell", channel="outbox")
    def tell(secret: Annotated[str, Sensitive()]) -> None:
        """Never called."""

    @registry.add
    @command_handler("desk.settle", name="desk.settle", channel="outbox")
    def settle(payments: list[Pay]) -> None:
        """Never called."""

    @registry.add
    @command_handler("desk.pair", name="desk.pair", channel="outbox")
    def pair(pair: tuple[str, Annotated[str, Sensitive()]]) -> None:
        """Never called."""

    @registry.add
    @command_handler(name="desk.check", channel="outbox")
    def check(command: Check) -> None:
        """Never called."""

    @registry.add
    @command_handler(name="desk.pay", channel="outbox", retry=Retry(attempts=1))
    def pay(command: Pay) -> None:
        msg = f"{command.card} of {command.customer} is refused"
        raise ValueError(msg)

    monkeypatch.setattr(buses, "registry", registry)
    return registry


@pytest.fixture
def operator(client):
    """Log in somebody of the staff; return a function that permits things."""
    user = User.objects.create_user("operator", password="x", is_staff=True)

    def permit(*codenames):
        found = Permission.objects.filter(
            codename__in=codenames, content_type__app_label="django_cqrs_outbox"
        )
        assert len(found) == len(codenames)
        user.user_permissions.add(*found)
        client.force_login(User.objects.get(pk=user.pk))
        return user

    return permit


def kept(model, number=1, **values):
    """Store rows as they would have been."""
    own = {"failed_at": timezone.now(), "reason": "failed"}
    defaults = {
        "channel": "outbox",
        "endpoint": "desk.print",
        "name": "desk.Print",
        "payload": b'{"number":1}',
        "headers": b"{}",
        "sent_at": timezone.now(),
        "error": "no paper",
        **(own if model is DeadLetter else {}),
        **values,
    }
    if model is OutboxMessage:
        del defaults["error"]
    first = model.objects.count()
    return [
        model.objects.create(
            **{
                "message_id": uuid.uuid4(),
                "correlation_id": uuid.uuid4(),
                "sequence": first + place,
                **defaults,
            }
        )
        for place in range(number)
    ]


def act(client, address, action, *rows, confirmed=True, everything=False):
    """Choose an action for rows, and confirm it."""
    data = {
        "action": action,
        "_selected_action": [row.pk for row in rows],
        "index": 0,
        "select_across": int(everything),
    }
    if confirmed:
        data["post"] = "yes"
    return client.post(address, data, follow=True)


def entries(flag):
    return list(
        LogEntry.objects.filter(action_flag=flag)
        .order_by("pk")
        .values_list("user__username", "object_id")
    )


@pytest.mark.parametrize(
    ("address", "permission"),
    [(LETTERS, "view_deadletter"), (MESSAGES, "view_outboxmessage")],
)
def test_desk_is_seen_with_permission(client, operator, address, permission):
    """A list is for those who may view it; being of the staff is not enough. [C05.2]"""
    operator()
    assert client.get(address).status_code == 403

    operator(permission)
    assert client.get(address).status_code == 200


def test_desk_neither_adds_nor_changes(client, admin_client):
    """Not even a superuser makes a message or edits one. [C05.2]"""
    (letter,) = kept(DeadLetter)

    assert admin_client.get(f"{LETTERS}add/").status_code == 403
    answer = admin_client.post(f"{LETTERS}{letter.pk}/change/", {"channel": "x"})
    assert answer.status_code == 403


def test_desk_replays_the_selected(client, operator):
    """The selected are put back, the others stay, and each has an entry of the audit. [C05.2]"""
    letters = kept(DeadLetter, 3)
    operator("view_deadletter", "replay_deadletter")

    answer = act(client, LETTERS, "replay_selected", *letters[:2])

    assert "Replayed 2." in answer.content.decode()
    assert list(DeadLetter.objects.all()) == letters[2:]
    assert OutboxMessage.objects.filter(state=State.READY, attempts=0).count() == 2
    assert entries(CHANGE) == [("operator", str(each.pk)) for each in letters[:2]]


def test_desk_asks_first(client, operator):
    """What is not confirmed is not done; the page says what it would be. [C05.2]"""
    letters = kept(DeadLetter, 2)
    operator("view_deadletter", "replay_deadletter", "delete_deadletter")

    for action in ("replay_selected", "delete_selected"):
        answer = act(client, LETTERS, action, *letters, confirmed=False)
        assert "2 messages" in answer.content.decode()
        assert "desk.Print for desk.print" in answer.content.decode()

    assert DeadLetter.objects.count() == 2
    assert OutboxMessage.objects.count() == 0
    assert not LogEntry.objects.exists()


def test_desk_replays_all_of_a_reason(client, operator):
    """All of a filter are replayed, whether or not the page shows them. [C05.2]"""
    poison = kept(DeadLetter, 60, reason="poison")
    kept(DeadLetter, 2)
    operator("view_deadletter", "replay_deadletter")
    address = f"{LETTERS}?reason__exact=poison"

    asked = act(
        client, address, "replay_selected", poison[0], confirmed=False, everything=True
    )
    assert "60 messages" in asked.content.decode()
    act(client, address, "replay_selected", poison[0], everything=True)

    assert OutboxMessage.objects.count() == 60
    assert set(DeadLetter.objects.values_list("reason", flat=True)) == {"failed"}
    assert len(entries(CHANGE)) == 60


@pytest.mark.parametrize("missing", ["replay", "delete"])
def test_desk_actions_have_permissions(client, operator, missing):
    """Without its permission an action is neither offered nor obeyed. [C05.2]"""
    (letter,) = kept(DeadLetter)
    other = {"replay": "delete", "delete": "replay"}[missing]
    operator("view_deadletter", f"{other}_deadletter")

    assert f'value="{missing}_selected"' not in client.get(LETTERS).content.decode()
    act(client, LETTERS, f"{missing}_selected", letter)

    assert DeadLetter.objects.count() == 1
    assert OutboxMessage.objects.count() == 0
    assert not LogEntry.objects.exists()


def test_desk_replays_one(client, operator):
    """One is replayed from its page: asked by GET, done by POST alone. [C05.2]"""
    (letter,) = kept(DeadLetter)
    operator("view_deadletter")
    page = reverse("admin:django_cqrs_outbox_deadletter_replay", args=[letter.pk])
    shown = f"{LETTERS}{letter.pk}/change/"
    assert page not in client.get(shown).content.decode()
    assert client.post(page, {"post": "yes"}).status_code == 403

    operator("replay_deadletter")
    assert page in client.get(shown).content.decode()
    assert client.get(page, {"post": "yes"}).status_code == 200
    assert DeadLetter.objects.count() == 1

    assert client.post(page, {"post": "yes"}).status_code == 302
    assert DeadLetter.objects.count() == 0
    assert OutboxMessage.objects.get().message_id == letter.message_id
    assert entries(CHANGE) == [("operator", str(letter.pk))]


def test_desk_replays_what_is_gone(client, operator):
    """What somebody else has replayed already leads back, and writes nothing. [C05.2]"""
    operator("view_deadletter", "replay_deadletter")
    page = reverse("admin:django_cqrs_outbox_deadletter_replay", args=[99])

    assert client.post(page, {"post": "yes"}).status_code == 302
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(
    ("model", "address"), [(DeadLetter, LETTERS), (OutboxMessage, MESSAGES)]
)
def test_desk_deletes(client, operator, model, address):
    """The selected, or one from its page, are deleted, each with an entry. [C05.2]"""
    rows = kept(model, 3)
    name = model._meta.model_name
    operator(f"view_{name}", f"delete_{name}")

    answer = act(client, address, "delete_selected", rows[0])
    assert "Deleted 1." in answer.content.decode()
    client.post(f"{address}{rows[1].pk}/delete/", {"post": "yes"})

    assert list(model.objects.all()) == rows[2:]
    assert entries(DELETION) == [("operator", str(each.pk)) for each in rows[:2]]


@pytest.mark.parametrize("end", ["delete_selected", "one", "replay_selected"])
def test_desk_lets_a_key_go_on(client, operator, end):
    """What waits behind a dead letter goes on in order when that is deleted or replayed. [C05.2]"""
    state = {"broken": True, "seen": []}

    @command_handler(
        "desk.print",
        channel="outbox",
        retry=Retry(attempts=1),
        ordering_key=lambda message: "a key",
    )
    def print_label(number: int) -> None:
        if state["broken"]:
            msg = "no paper"
            raise OSError(msg)
        state["seen"].append(number)

    registry = Registry()
    registry.add(print_label)
    operator("view_deadletter", "replay_deadletter", "delete_deadletter")
    with Flow(registry=registry) as flow:
        for number in (1, 2, 3):
            registry.command_bus.dispatch(number, route="desk.print")
        with pytest.raises(OSError, match="no paper"):
            flow.run("outbox")
        state["broken"] = False
        letter = DeadLetter.objects.get()
        flow.run("outbox")
        assert state["seen"] == []
        if end == "one":
            client.post(f"{LETTERS}{letter.pk}/delete/", {"post": "yes"})
        else:
            act(client, LETTERS, end, letter)
        flow.run("outbox")

    assert state["seen"] == ([1, 2, 3] if end == "replay_selected" else [2, 3])


@pytest.mark.parametrize(
    ("model", "address"), [(DeadLetter, LETTERS), (OutboxMessage, MESSAGES)]
)
def test_desk_lists_by_as_many_queries(admin_client, model, address):
    """A list of many rows takes as many statements as a list of one. [C05.2]"""
    kept(model)
    admin_client.get(address)
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            assert admin_client.get(address).status_code == 200
        counts.append(len(queries))
        kept(model, 40, endpoint="desk.other")

    assert counts[0] == counts[1]
    assert not any('."payload"' in each["sql"] for each in queries)


def test_desk_counts_no_further_than_its_lists(admin_client, monkeypatch):
    """A list ends somewhere, says so, and nothing counts the rows beyond. [C05.2]"""
    set_limits(monkeypatch, LISTED=5)
    kept(DeadLetter, 5)
    assert "The list ends after" not in admin_client.get(LETTERS).content.decode()
    kept(DeadLetter, 5)

    with CaptureQueriesContext(connection) as queries:
        text = admin_client.get(LETTERS).content.decode()

    assert "The list ends after 5; there are more." in text
    counts = [each["sql"] for each in queries if "COUNT(" in each["sql"]]
    assert counts
    assert all("LIMIT 6" in sql for sql in counts)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("channel=mail", [1]),
        ("endpoint=desk.scan", [2]),
        ("reason__exact=poison", [3]),
        ("q=customer-7", [4]),
        ("q=desk.Shred", [5]),
        ("q=3f0e6f0c-8f9d-4a39-9d6b-0d4a6d2f7a11", [6]),
        ("q=3f0e6f0c-8f9d-4a39-9d6b-0d4a6d2f7a12", [7]),
        ("q=no such thing", []),
        ("q=++", list(range(8))),
    ],
)
def test_desk_is_filtered_and_searched(admin_client, query, found):
    """By channel, endpoint and reason; by ids, key and name. [C05.2]"""
    identity = "3f0e6f0c-8f9d-4a39-9d6b-0d4a6d2f7a1"
    rows = [
        *kept(DeadLetter),
        *kept(DeadLetter, channel="mail"),
        *kept(DeadLetter, endpoint="desk.scan"),
        *kept(DeadLetter, reason="poison"),
        *kept(DeadLetter, ordering_key="customer-7"),
        *kept(DeadLetter, name="desk.Shred"),
        *kept(DeadLetter, message_id=f"{identity}1"),
        *kept(DeadLetter, correlation_id=f"{identity}2"),
    ]

    shown = admin_client.get(f"{LETTERS}?{query}").context["cl"].result_list

    assert {row.pk for row in shown} == {rows[place].pk for place in found}


def test_desk_asks_about_more_than_its_lists_have(admin_client, monkeypatch):
    """The page that asks counts no further than a list, and says so; all are meant. [C05.2]"""
    set_limits(monkeypatch, LISTED=5)
    letters = kept(DeadLetter, 6)

    def asked(action):
        return act(
            admin_client,
            LETTERS,
            action,
            *letters[:1],
            confirmed=False,
            everything=True,
        )

    with CaptureQueriesContext(connection) as queries:
        text = asked("replay_selected").content.decode()
    DeadLetter.objects.filter(pk=letters[0].pk).delete()

    assert "5 messages or more" in text
    counts = [each["sql"] for each in queries if "COUNT(" in each["sql"]]
    assert counts
    assert all("LIMIT 6" in sql for sql in counts)
    assert "5 messages</h2>" in asked("delete_selected").content.decode()
    act(admin_client, LETTERS, "replay_selected", letters[1], everything=True)
    assert OutboxMessage.objects.count() == 5


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state__exact=2", [1]),
        ("state__exact=4", [2]),
        ("state__exact=9", [0, 1, 2, 3, 4, 5, 6]),
        ("channel=mail", [3]),
        ("channel=mail&state__exact=0", [3]),
        ("endpoint=desk.scan", [6]),
        ("endpoint=desk.scan&state__exact=0", [6]),
        ("q=desk.Shred", [6]),
        ("q=desk.scan", [6]),
        ("q=customer-7", [4]),
        ("q=3f0e6f0c-8f9d-4a39-9d6b-0d4a6d2f7a11", [5]),
    ],
)
def test_desk_messages_are_filtered_and_searched(
    admin_client, monkeypatch, query, found
):
    """By state in all channels; by name and endpoint among the newest alone. [C05.2]"""
    set_limits(monkeypatch, SEARCHED=2)
    named = {"endpoint": "desk.scan", "name": "desk.Shred"}
    identity = "3f0e6f0c-8f9d-4a39-9d6b-0d4a6d2f7a11"
    rows = [
        *kept(OutboxMessage, **named),
        *kept(OutboxMessage, state=State.CLAIMED),
        *kept(OutboxMessage, state=State.PARKED),
        *kept(OutboxMessage, channel="mail"),
        *kept(OutboxMessage, ordering_key="customer-7"),
        *kept(OutboxMessage, message_id=identity),
        *kept(OutboxMessage, **named),
    ]

    shown = admin_client.get(f"{MESSAGES}?{query}").context["cl"].result_list

    assert {row.pk for row in shown} == {rows[place].pk for place in found}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("outcome__exact=failed", [3]),
        ("outcome__exact=none", [0, 1, 2, 3]),
        ("endpoint=desk.scan", [2]),
    ],
)
def test_the_journal_is_filtered_among_its_newest(
    admin_client, monkeypatch, query, found
):
    """Every command writes to it, so there is no index for that."""
    set_limits(monkeypatch, SEARCHED=2)
    rows = [
        JournalEntry.objects.create(
            at=timezone.now(),
            message_id=uuid.uuid4(),
            correlation_id=uuid.uuid4(),
            endpoint=endpoint,
            outcome=outcome,
        )
        for endpoint, outcome in (
            ("desk.scan", "failed"),
            ("desk.scan", "failed"),
            ("desk.scan", "handled"),
            ("desk.print", "failed"),
        )
    ]
    address = reverse("admin:django_cqrs_outbox_journalentry_changelist")

    shown = admin_client.get(f"{address}?{query}").context["cl"].result_list

    assert {row.pk for row in shown} == {rows[place].pk for place in found}


def test_desk_says_how_far_it_searches(admin_client):
    """Of messages the newest are searched by name; of dead letters all. [C05.2]"""
    text = admin_client.get(MESSAGES).content.decode()
    assert "Names are searched among the newest 100,000 messages." in text
    assert "endpoint (of the newest 100,000)" in text
    assert "newest" not in admin_client.get(LETTERS).content.decode()


def test_desk_shows_the_traceback_as_text(admin_client):
    """What an exception says is text, not markup. [C05.2]"""
    (letter,) = kept(
        DeadLetter, traceback="  <script>alert(1)</script>", error="<b>no</b>"
    )

    for address in (LETTERS, f"{LETTERS}{letter.pk}/change/"):
        text = admin_client.get(address).content.decode()
        assert "<script>alert" not in text
        assert "<b>no</b>" not in text
    assert "  &lt;script&gt;alert(1)" in text


# ------------------------------------------------------------------------ at a glance

CHANNELS = f"{MESSAGES}channels/"


def cells_of(page):
    """Return the table as a screen reader would: by channel and column."""
    found = {}
    table = page[page.index('<table class="cqrs-channels">') :]
    table = table[: table.index("</table>")]
    head, *body = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    columns = re.findall(r'<th scope="col">(.*?)</th>', head)[1:]
    for row in body:
        (channel,) = re.findall(r'<th scope="row">(.*?)</th>', row)
        cells = re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)
        found[channel] = dict(zip(columns, cells, strict=True))
    return found


def text_of(cell):
    return re.sub(r"<.*?>", "", cell)


def link_of(cell):
    return html.unescape(re.search(r'href="(.*?)"', cell)[1])


@pytest.fixture
def traffic():
    """What waits and what has failed in two channels."""
    later = timezone.now() + timedelta(hours=1)
    earlier = timezone.now() - timedelta(minutes=5)
    kept(OutboxMessage, 3, sent_at=earlier)
    kept(OutboxMessage, 1, state=State.DELAYED, available_at=earlier)
    kept(OutboxMessage, 2, state=State.DELAYED, available_at=later)
    kept(OutboxMessage, 4, state=State.PARKED)
    kept(OutboxMessage, 1, channel="mail")
    kept(DeadLetter, 5)
    Throughput.objects.create(
        minute=timezone.now(), channel="outbox", handled=1234, failed=7
    )


def test_desk_shows_channels_at_a_glance(admin_client, traffic):
    """A row for each channel says what waits, for how long, what is dead and done. [C05.2]"""
    found = cells_of(admin_client.get(CHANNELS).content.decode())

    assert {key: text_of(cell) for key, cell in found["outbox"].items()} == {
        "Pending": "4",
        "Oldest": "5\xa0minutes",
        "Delayed": "2",
        "Parked": "4",
        "Dead": "5",
        "Handled, last hour": "1234",
        "Failed, last hour": "7",
    }
    assert text_of(found["mail"]["Pending"]) == "1"
    assert text_of(found["mail"]["Dead"]) == "0"


@pytest.mark.parametrize(
    ("age", "handled", "is_said"),
    [(120, 0, True), (120, 3, False), (5, 0, False)],
    ids=["no worker", "a busy one", "soon"],
)
def test_the_page_of_channels_says_that_a_worker_must_run(
    admin_client, age, handled, is_said
):
    """Where a message has waited for a minute, and none was handled for five."""
    now = timezone.now()
    kept(OutboxMessage, channel="mail", sent_at=now - timedelta(seconds=age))
    Throughput.objects.create(minute=now, channel="mail", handled=handled)

    text = admin_client.get(CHANNELS).content.decode()

    assert ("<code>python manage.py cqrs_worker mail</code>" in text) is is_said


@pytest.mark.parametrize("column", ["Pending", "Delayed", "Parked", "Dead"])
def test_desk_figures_lead_to_what_they_count(admin_client, traffic, column):
    """The list behind a figure has as many rows as it says; nothing leads nowhere. [C05.2]"""
    found = cells_of(admin_client.get(CHANNELS).content.decode())
    cell = found["outbox"][column]

    listed = admin_client.get(link_of(cell)).context["cl"].result_list

    assert len(listed) == int(text_of(cell)) > 0
    assert {row.channel for row in listed} == {"outbox"}
    assert "href" not in found["mail"]["Dead"]


@pytest.mark.parametrize(
    ("permissions", "columns"),
    [
        (
            ["view_outboxmessage"],
            [
                *("Pending", "Oldest", "Delayed", "Parked"),
                *("Handled, last hour", "Failed, last hour"),
            ],
        ),
        (["view_deadletter"], ["Dead"]),
    ],
)
def test_desk_figures_have_permissions(client, operator, traffic, permissions, columns):
    """Who may see one table only sees its figures, who may see none sees no page. [C05.2]"""
    operator()
    assert client.get(CHANNELS).status_code == 403

    operator(*permissions)
    found = cells_of(client.get(CHANNELS).content.decode())

    assert list(found["outbox"]) == columns


def test_desk_counts_channels_by_as_many_queries(admin_client, traffic):
    """Many channels take as many statements as two. [C05.2]"""
    admin_client.get(CHANNELS)
    with CaptureQueriesContext(connection) as before:
        admin_client.get(CHANNELS)
    for number in range(10):
        kept(OutboxMessage, channel=f"channel {number}")
        kept(DeadLetter, channel=f"channel {number}")
    with CaptureQueriesContext(connection) as after:
        page = admin_client.get(CHANNELS).content.decode()

    assert "channel 9" in page
    assert len(after) == len(before)


def test_desk_counts_channels_as_far_as_its_lists(admin_client, traffic, monkeypatch):
    """A figure ends where the list behind it does, and says so. [C05.2]"""
    set_limits(monkeypatch, LISTED=4)

    found = cells_of(admin_client.get(CHANNELS).content.decode())

    assert text_of(found["outbox"]["Dead"]) == "4+"
    assert text_of(found["outbox"]["Delayed"]) == "2"


def test_desk_has_a_page_of_channels_without_messages(admin_client):
    """The channels of the settings are there before anything is sent. [C05.2]"""
    found = cells_of(admin_client.get(CHANNELS).content.decode())

    assert text_of(found["outbox"]["Oldest"]) == "-"


def test_desk_leads_to_the_channels(client, operator):
    """The index of the app and both lists have a link to them. [C05.2]"""
    operator("view_outboxmessage", "view_deadletter")

    for address in ("/admin/django_cqrs_outbox/", MESSAGES, LETTERS):
        assert f'href="{CHANNELS}"' in client.get(address).content.decode()


# ------------------------------------------------------------------------- the look


class Inline(HTMLParser):
    """Finds what a strict Content-Security-Policy refuses."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        is_data = (names.get("type") or "").startswith("application/json")
        if tag == "style" or (tag == "script" and not names.get("src") and not is_data):
            self.found.append(tag)
        self.found += [
            name for name in names if name == "style" or name.startswith("on")
        ]
        self.found += [
            value
            for value in names.values()
            if (value or "").lower().startswith("javascript:")
        ]


def test_desk_has_nothing_inline(admin_client, traffic):
    """No page has a script, a style or an event handler in it. [C05.2]"""
    (letter,) = kept(DeadLetter, traceback="  File", payload=b'{"number":"x"}')
    answers = {
        address: admin_client.get(address)
        for address in (
            *(CHANNELS, LETTERS, MESSAGES, "/admin/django_cqrs_outbox/"),
            f"{LETTERS}{letter.pk}/change/",
            f"{MESSAGES}{OutboxMessage.objects.first().pk}/change/",
            f"{LETTERS}{letter.pk}/replay/",
            edit_page(letter),
        )
    }
    answers["errors"] = edit(admin_client, letter, "{")
    answers["asked"] = act(
        admin_client, LETTERS, "replay_selected", letter, confirmed=False
    )

    for address, answer in answers.items():
        assert answer.status_code == 200, address
        parser = Inline()
        parser.feed(answer.content.decode())
        assert parser.found == [], address
        assert "django_cqrs_outbox/desk.css" in answer.content.decode() or address in (
            *("/admin/django_cqrs_outbox/", "asked", f"{LETTERS}{letter.pk}/replay/"),
        )


def test_desk_style_has_the_admins_colours():
    """A colour of its own would not change with the dark mode. [C05.2]"""
    path = finders.find("django_cqrs_outbox/desk.css")
    text = re.sub(r"/\*.*?\*/", "", Path(path).read_text(), flags=re.DOTALL)

    assert "var(--" in text
    assert re.findall(r"#[0-9a-f]{3,8}\b(?=[^{]*;)|rgba?\(|hsla?\(", text) == []


# ------------------------------------------------------------------ what is sensitive

CARD = "4111 1111 1111 1111"
MASK = "••••••"


def payments(model=DeadLetter, number=1, **values):
    """Store payments, whose card nobody is to see."""
    failure = {
        "error": f"{CARD} of Greta is refused",
        "traceback": f"Traceback:\n  pay()\nValueError: {CARD} of Greta is refused",
    }
    defaults = {
        "endpoint": "desk.pay",
        "name": "desk.Pay",
        "version": 3,
        "payload": f'{{"customer":"Greta","card":"{CARD}"}}'.encode(),
        "headers": f'{{"executor":"ann","about":"{CARD}"}}'.encode(),
        "ordering_key": f"card {CARD}",
        "subject": f"shop.Card {CARD}",
        **(failure if model is DeadLetter else {}),
        **values,
    }
    return kept(model, number, **defaults)


def pages_of(client, row):
    """Return the list, and the page, of a row."""
    address = LETTERS if isinstance(row, DeadLetter) else MESSAGES
    found = client.get(address), client.get(f"{address}{row.pk}/change/")
    return [each.content.decode() for each in found]


def printed(*arguments):
    stdout = io.StringIO()
    call_command("cqrs_failed", *arguments, stdout=stdout, no_color=True)
    return stdout.getvalue()


@pytest.mark.parametrize("model", [DeadLetter, OutboxMessage])
def test_desk_masks_what_is_sensitive(admin_client, model):
    """Lists and pages show the payload and the headers, and nowhere the card. [C05.2]"""
    (row,) = payments(model)

    listed, page = pages_of(admin_client, row)

    assert CARD not in listed
    assert CARD not in page
    assert f"card {MASK}" in listed
    for part in (
        "&quot;customer&quot;: &quot;Greta&quot;",
        f"&quot;card&quot;: &quot;{MASK}&quot;",
        "&quot;executor&quot;: &quot;ann&quot;",
        f"shop.Card {MASK}",
    ):
        assert part in page


def test_desk_masks_what_errors_quote(admin_client):
    """An error and a traceback are shown without the card that they speak of. [C05.2]"""
    (letter,) = payments()

    listed, page = pages_of(admin_client, letter)

    assert f"{MASK} of Greta is refused" in listed
    assert f"ValueError: {MASK} of Greta is refused" in page


def test_command_masks_what_is_sensitive():
    """So do the list, its JSON, and the page of one in a terminal. [C05.2]"""
    (letter,) = payments()

    texts = [
        printed("list"),
        printed("list", "--format", "json"),
        printed("show", str(letter.pk)),
    ]

    assert not any(CARD in text for text in texts)
    assert f"{MASK} of Greta" in texts[0]
    assert f'payload:        {{"customer":"Greta","card":"{MASK}"}}' in texts[2]
    assert f'"about":"{MASK}"' in texts[2]
    assert f"ValueError: {MASK} of Greta is refused" in texts[2]


def test_a_real_failure_is_masked(admin_client, registry):
    """What a worker writes down of a failed payment has the card in it; it is unseen. [C05.2]"""
    with Flow(registry=registry) as flow:
        registry.command_bus.dispatch(Pay("Greta", CARD))
        with pytest.raises(ValueError, match=CARD):
            flow.run("outbox")
    letter = DeadLetter.objects.get()
    assert CARD in letter.traceback

    for text in (*pages_of(admin_client, letter), printed("show", str(letter.pk))):
        assert CARD not in text
        assert f"{MASK} of Greta is refused" in text


UNSEEN = [
    ({"name": "desk.Gone"}, "No registered message class is named"),
    ({"name": "", "endpoint": "desk.gone"}, "No handler has the endpoint name"),
    ({"payload": f'{{"card":"{CARD}"'.encode()}, "It is not JSON"),
]


@pytest.mark.parametrize(("values", "why"), UNSEEN)
def test_what_cannot_be_read_is_not_shown(admin_client, values, why):
    """Where nobody can tell what is sensitive, nothing is shown, and why. [C05.2]"""
    (letter,) = payments(headers=b"{}", **values)

    listed, page = pages_of(admin_client, letter)
    command = printed("show", str(letter.pk))

    assert "(not shown)" in listed
    assert why in page
    assert why in command
    assert not any(CARD in text for text in (listed, page, command))


@pytest.mark.parametrize(
    ("reason", "is_shown"),
    [
        ("unknown_message", True),
        ("unknown_endpoint", True),
        ("poison", True),
        ("failed", False),
        ("undecodable", False),
    ],
)
def test_errors_of_ours_are_shown(admin_client, reason, is_shown):
    """Of an unknown payload an error is shown that no handler has worded. [C05.2]"""
    (letter,) = payments(name="desk.Gone", reason=reason, error="this is why")

    assert ("this is why" in pages_of(admin_client, letter)[0]) is is_shown


OLD = [
    # Renamed since: the present class knows nothing of it.
    (1, f'{{"customer":"Greta","number":"{CARD}"}}', True),
    # As now: no upcaster stands between.
    (2, f'{{"customer":"Greta","card":"{CARD}"}}', True),
    # Of newer code.
    (4, f'{{"customer":"Greta","cards":["{CARD}"]}}', True),
    (4, f'{{"customer":["{CARD}"]}}', False),
]


@pytest.mark.parametrize(("version", "payload", "shows"), OLD)
def test_other_versions_are_masked(admin_client, version, payload, shows):
    """Of another version is shown what the class of today has there, and no more. [C05.2]"""
    (letter,) = payments(version=version, payload=payload.encode())

    for text in (*pages_of(admin_client, letter), printed("show", str(letter.pk))):
        assert CARD not in text
    assert (
        "&quot;customer&quot;: &quot;Greta&quot;" in pages_of(admin_client, letter)[1]
    ) is shows


def test_other_versions_of_harmless_classes_are_masked(admin_client):
    """A class without marks may have had a sensitive field before. [C05.2]"""
    (letter,) = kept(DeadLetter, version=0, payload=b'{"number":7,"old":"a secret"}')

    _, page = pages_of(admin_client, letter)

    assert "&quot;number&quot;: 7" in page
    assert "a secret" not in page


def test_values_are_shown_by_their_handler(admin_client):
    """A payload without a class is what its handler says, sensitive or not. [C05.2]"""
    (number,) = kept(DeadLetter, endpoint="desk.scan", name="", payload=b"4711")
    (secret,) = kept(
        DeadLetter, endpoint="desk.tell", name="", payload=b'"psst"', error="psst!"
    )

    assert "4711" in pages_of(admin_client, number)[1]
    assert not any("psst" in text for text in pages_of(admin_client, secret))


def test_bytes_of_any_kind_are_a_page(admin_client):
    """What is no text, or half of a character, is shown as far as it can be. [C05.2]"""
    broken = kept(DeadLetter, payload=b"\xff{", headers=b"\xff")
    broken += kept(DeadLetter, payload=b'"\\ud800"', headers=b'{"a":"\\ud800"}')
    broken += kept(DeadLetter, payload=b"[" * 100_000, headers=b"[" * 100_000)

    for row in broken:
        assert admin_client.get(f"{LETTERS}{row.pk}/change/").status_code == 200
        assert printed("show", str(row.pk))


def test_lists_read_sensitive_payloads_at_once(admin_client):
    """A list of many payments takes one statement more than a list of labels. [C05.2]"""
    kept(DeadLetter, 2)
    admin_client.get(LETTERS)
    with CaptureQueriesContext(connection) as plain:
        admin_client.get(LETTERS)
    payments(number=20)
    with CaptureQueriesContext(connection) as marked:
        admin_client.get(LETTERS)

    assert len(marked) == len(plain) + 1


# -------------------------------------------------------------------- edit and replay


def edit_page(letter):
    return reverse("admin:django_cqrs_outbox_deadletter_edit", args=[letter.pk])


def edit(client, letter, payload):
    return client.post(edit_page(letter), {"payload": payload}, follow=True)


def payload_now():
    """Return what waits, as it is stored."""
    return bytes(OutboxMessage.objects.get().payload).decode()


@pytest.fixture
def editor(operator):
    return operator("view_deadletter", "edit_deadletter")


def test_edit_has_a_permission_of_its_own(client, operator):
    """Whoever may replay may not edit; without it neither link nor page is there. [C05.2]"""
    (letter,) = kept(DeadLetter)
    operator("view_deadletter", "replay_deadletter", "delete_deadletter")
    shown = f"{LETTERS}{letter.pk}/change/"

    assert edit_page(letter) not in client.get(shown).content.decode()
    assert client.get(edit_page(letter)).status_code == 403
    assert edit(client, letter, '{"number":2}').status_code == 403
    assert DeadLetter.objects.count() == 1

    operator("edit_deadletter")
    assert edit_page(letter) in client.get(shown).content.decode()
    assert client.get(edit_page(letter)).status_code == 200


def test_edit_needs_to_see_it(client, operator):
    """Whoever must not see a letter does not edit it either. [C05.2]"""
    (letter,) = kept(DeadLetter)
    operator("edit_deadletter")

    assert edit(client, letter, '{"number":2}').status_code == 403


def test_edit_replays_another_payload(client, editor):
    """The letter is gone, and its message waits with the payload that was typed. [C05.2]"""
    (letter,) = kept(DeadLetter, ordering_key="a", headers=b'{"executor":"ann"}')

    answer = edit(client, letter, '{"number": 2}')

    assert "Edited and replayed 1." in answer.content.decode()
    assert DeadLetter.objects.count() == 0
    message = OutboxMessage.objects.get()
    assert payload_now() == '{"number":2}'
    assert (message.message_id, message.ordering_key) == (letter.message_id, "a")
    assert bytes(message.headers) == b'{"executor":"ann"}'
    assert (message.attempts, message.state) == (0, State.READY)


def test_edit_is_audited_without_values(client, editor):
    """The history says who has changed which fields, and no value of them. [C05.2]"""
    (letter,) = payments()

    edit(client, letter, f'{{"customer":"Hans","card":"4222 {MASK}"}}')
    edit(client, letter, '{"customer":"Hans","card":"4222"}')

    (entry,) = LogEntry.objects.all()
    assert (entry.user, entry.object_id) == (editor, str(letter.pk))
    assert entry.change_message == "Edited and replayed: customer, card."


def test_edit_keeps_what_is_masked(client, editor):
    """The form has no sensitive value; a mask that is left there keeps it. [C05.2]"""
    (letter,) = payments()

    page = client.get(edit_page(letter)).content.decode()
    text = html.unescape(
        re.search(r"<textarea.*?>\n(.*?)</textarea>", page, re.DOTALL)[1]
    )
    edit(client, letter, text.replace("Greta", "Hans"))

    assert CARD not in page
    assert f'"card": "{MASK} 1"' in text
    assert payload_now() == f'{{"customer":"Hans","card":"{CARD}"}}'


@pytest.mark.parametrize(
    "payload",
    [
        # It would be seen there.
        f'{{"customer":"{MASK} 1","card":"4222"}}',
        f'{{"customer":"Greta","card":"4222","note":["{MASK} 1"]}}',
        # None of those that were shown, or part of one.
        f'{{"customer":"Greta","card":"{MASK} 2"}}',
        f'{{"customer":"Greta","card":"{MASK}"}}',
        f'{{"customer":"Greta","card":"4{MASK} 1"}}',
        f'{{"customer":"Greta","card":"4222","{MASK} 1":0}}',
    ],
)
def test_edit_puts_no_mask_elsewhere(client, editor, payload):
    """A mask cannot be moved to where its value would be seen, nor be a value. [C05.2]"""
    (letter,) = payments()

    answer = edit(client, letter, payload).content.decode()

    assert "a mask only stands for the value at its own place" in answer
    assert CARD not in answer
    assert DeadLetter.objects.count() == 1
    assert not LogEntry.objects.exists()


def test_edit_keeps_masks_with_their_items(client, editor):
    """Of a list, one taken away or moved: every other keeps its own value. [C05.2]"""
    stored = '[{"customer":"A","card":"4111"},{"customer":"B","card":"4222"}]'
    (letter,) = kept(
        DeadLetter, endpoint="desk.settle", name="", payload=stored.encode()
    )

    edit(client, letter, f'[{{"customer":"B","card":"{MASK} 2"}}]')

    assert payload_now() == '[{"customer":"B","card":"4222"}]'
    assert "the whole payload" in LogEntry.objects.get().change_message


def test_edit_puts_no_mask_into_a_place_that_is_shown(client, editor):
    """Not every place of a tuple is sensitive. [C05.2]"""
    (letter,) = kept(
        DeadLetter, endpoint="desk.pair", name="", payload=b'["ann","secret"]'
    )

    answer = edit(client, letter, f'["{MASK} 1","other"]').content.decode()

    assert "a mask only stands" in answer
    assert "secret" not in answer


INVALID = [
    ('{"number":', ["it is not valid JSON"]),
    ("[" * 100_000, ["it is not readable JSON"]),
    ("{}", ["<code>number</code>: Field required"]),
    ('{"number":"x"}', ["<code>number</code>: Input should be a valid integer"]),
    ('{"number":NaN}', ["<code>number</code>"]),
    ('{"number": 1}', ["nothing was changed"]),
    ("", ["it is not valid JSON"]),
]


@pytest.mark.parametrize(
    ("payload", "faults"), INVALID, ids=[str(n) for n in range(len(INVALID))]
)
def test_edit_refuses_what_the_handler_would(client, editor, payload, faults):
    """Nothing is done; what is wrong is said at its path, and what was typed stays. [C05.2]"""
    (letter,) = kept(DeadLetter)

    answer = edit(client, letter, payload).content.decode()

    assert all(fault in html.unescape(answer) for fault in faults)
    assert html.escape(payload) in answer
    assert 'aria-invalid="true"' in answer
    assert DeadLetter.objects.get().payload == b'{"number":1}'
    assert OutboxMessage.objects.count() == 0
    assert not LogEntry.objects.exists()


def test_edit_shows_every_error(client, editor):
    """All wrong fields are shown at once. [C05.2]"""
    (letter,) = payments()

    answer = edit(client, letter, '{"customer":1,"card":2}').content.decode()

    assert "<code>customer</code>" in answer
    assert "<code>card</code>" in answer


def test_edit_errors_quote_nothing_sensitive(client, editor):
    """A converter that quotes what it refuses tells nobody of the old value. [C05.2]"""
    (letter,) = kept(
        DeadLetter, name="desk.Check", endpoint="desk.check", payload=b'{"pin":"4711"}'
    )

    answer = edit(client, letter, f'{{"pin":"{MASK} 1","more":1}}').content.decode()

    assert f"the PIN {MASK} is too short" in answer
    assert "4711" not in answer


def test_edit_mends_what_is_no_json(client, editor):
    """Broken text of a harmless class is shown to be fixed. [C05.2]"""
    (letter,) = kept(DeadLetter, payload=b'{"number":1', reason="undecodable")

    page = client.get(edit_page(letter)).content.decode()
    edit(client, letter, '{"number":1}')

    assert "{&quot;number&quot;:1</textarea>" in page
    assert payload_now() == '{"number":1}'
    assert "the whole payload" in LogEntry.objects.get().change_message


def test_edit_hides_what_is_no_json(client, editor):
    """Broken text of a class with sensitive fields is written anew. [C05.2]"""
    (letter,) = payments(payload=f'{{"customer":"Greta","card":"{CARD}'.encode())

    page = client.get(edit_page(letter)).content.decode()
    edit(client, letter, '{"customer":"Greta","card":"4222"}')

    assert CARD not in page
    assert "Enter the whole payload again." in page
    assert payload_now() == '{"customer":"Greta","card":"4222"}'


def test_edit_mends_values(client, editor):
    """A payload without a class is what its handler says. [C05.2]"""
    (letter,) = kept(DeadLetter, endpoint="desk.scan", name="", payload=b'"12"')

    assert "valid integer" in edit(client, letter, '"13"').content.decode()
    edit(client, letter, "13")

    assert payload_now() == "13"


def test_edit_of_an_older_version_stays_one(client, editor):
    """What is edited is what was stored; upcasters come after it, as ever. [C05.2]"""
    (letter,) = payments(
        version=1, payload=f'{{"customer":"Greta","number":"{CARD}"}}'.encode()
    )

    assert "rejects it" in edit(client, letter, '{"customer":"Hans"}').content.decode()
    edit(client, letter, f'{{"customer":"Hans","number":"{MASK} 1"}}')

    assert OutboxMessage.objects.get().version == 1
    assert payload_now() == f'{{"customer":"Hans","number":"{CARD}"}}'


REFUSED = [
    ({"name": "desk.Gone"}, "aliases=[...]"),
    ({"endpoint": "desk.gone"}, "aliases=[...]"),
    ({"name": "", "endpoint": "desk.gone"}, "aliases=[...]"),
    ({"version": 9}, "deploy the newer code first"),
    ({"payload": b'"' + b"x" * 1_000_000 + b'"'}, "the form takes at most 1000000"),
]


@pytest.mark.parametrize(
    ("values", "why"), REFUSED, ids=[str(n) for n in range(len(REFUSED))]
)
def test_edit_refuses_what_it_cannot_check(client, editor, values, why):
    """Where nobody can say what the payload should be, it says what to do instead. [C05.2]"""
    (letter,) = kept(DeadLetter, **values)

    for answer in (client.get(edit_page(letter)), edit(client, letter, "{}")):
        text = answer.content.decode()
        assert why in text
        assert "<textarea" not in text
    assert DeadLetter.objects.count() == 1


def test_edit_of_what_is_gone(client, editor, monkeypatch):
    """Replayed or deleted meanwhile, by anybody: nothing is done, and it is said. [C05.2]"""
    (letter, other) = kept(DeadLetter, 2)
    letter.delete()
    letter.pk = other.pk + 1
    assert ("This dead letter no longer exists") in edit(
        client, letter, "{}"
    ).content.decode()

    edited = PayloadEditor.edited

    def edit_slowly(editor, text):
        DeadLetter.objects.all().delete()
        return edited(editor, text)

    monkeypatch.setattr(PayloadEditor, "edited", edit_slowly)
    answer = edit(client, other, '{"number":2}')

    assert "This dead letter no longer exists" in answer.content.decode()
    assert OutboxMessage.objects.count() == 0
    assert not LogEntry.objects.exists()


def test_an_edited_message_is_handled(client, editor, registry):
    """What was edited by hand is handled by its own handler, with its new payload.
    [C05.2]"""
    seen = []

    @registry.add
    @command_handler("desk.read", channel="outbox", retry=Retry(attempts=1))
    def read(number: int) -> None:
        seen.append(10 // number)

    with Flow(registry=registry) as flow:
        registry.command_bus.dispatch(0, route="desk.read")
        with pytest.raises(ZeroDivisionError):
            flow.run("outbox")
        edit(client, DeadLetter.objects.get(), "5")
        flow.run("outbox")

    assert seen == [2]


JOURNAL = "/admin/django_cqrs_outbox/journalentry/"


@pytest.mark.parametrize(
    ("address", "query", "status"),
    [
        *((LETTERS, f"{name}=x", 200) for name in ("channel", "endpoint")),
        (LETTERS, "reason__exact=failed", 200),
        (LETTERS, "reason__exact=no-such-reason", 200),
        *(
            (LETTERS, f"{field}{lookup}=4", 400)
            for field in (
                *("error", "traceback", "exception", "ordering_key", "subject"),
                *("payload", "headers", "reason", "name", "attempts", "message_id"),
            )
            for lookup in ("", "__startswith", "__regex", "__isnull", "__gt")
        ),
        (LETTERS, "channel__startswith=o", 400),
        (LETTERS, "channel=%00", 200),
        (LETTERS, "endpoint=%00", 200),
        (LETTERS, "q=%00", 200),
        (MESSAGES, "state__exact=zero", 200),
        (MESSAGES, "standing=%00", 200),
        (MESSAGES, "channel=%00", 200),
        *((MESSAGES, f"{field}__contains=4", 400) for field in ("owner", "payload")),
        (MESSAGES, "ordering_key=4", 400),
        (MESSAGES, "state=4", 400),
        (JOURNAL, "outcome__exact=nothing", 200),
        (JOURNAL, "endpoint=%00", 200),
        (JOURNAL, "error__contains=4", 400),
        (JOURNAL, "subject=4", 400),
    ],
)
def test_a_list_takes_the_parameters_of_its_filters_alone(
    admin_client, address, query, status
):
    """Any other lookup is refused; a value that no row can have finds none."""
    payments()

    assert admin_client.get(f"{address}?{query}").status_code == status


@pytest.mark.parametrize("key", ["abc", "", "1.5", "9" * 30, "\u0663", "1\0"])
def test_an_action_on_an_id_that_no_row_can_have_does_nothing(admin_client, key):
    """It is said, and is no error of the server."""
    (letter,) = kept(DeadLetter)
    data = {"action": "replay_selected", "_selected_action": [key], "post": "yes"}

    answer = admin_client.post(LETTERS, data, follow=True)

    assert answer.status_code == 200
    assert "What was selected has no such id. Nothing was done." in (
        answer.content.decode()
    )
    assert DeadLetter.objects.get() == letter


@pytest.mark.parametrize("model", [DeadLetter, OutboxMessage])
def test_a_search_does_not_confirm_a_masked_key(admin_client, model):
    """A key that the list masks is not found by it; one that it shows is."""
    address = LETTERS if model is DeadLetter else MESSAGES
    payload = f'{{"customer":"Greta","card":"{CARD}"}}'.encode()
    pay = {"endpoint": "desk.pay", "name": "desk.Pay", "version": 3, "payload": payload}
    kept(model, ordering_key=CARD, **pay)
    kept(model, ordering_key="Greta", **pay)
    (plain,) = kept(model, ordering_key=CARD)

    def found(term):
        rows = admin_client.get(address, {"q": term}).context["cl"].result_list
        return [(row.endpoint, row.ordering_key) for row in rows]

    assert found(CARD) == [(plain.endpoint, CARD)]
    assert found("Greta") == [("desk.pay", "Greta")]


@pytest.mark.parametrize("model", [DeadLetter, OutboxMessage])
def test_a_timeline_does_not_confirm_a_masked_subject(admin_client, model):
    """An object is not found by an identifier that its messages' pages mask."""
    card, customer = f"shop.Card:{CARD}", "shop.Customer:Greta"
    payments(model, subject=card)
    (shown,) = payments(model, subject=customer)
    (plain,) = kept(model, subject=card)

    def found(subject):
        page = admin_client.get(f"{MESSAGES}timeline/", {"subject": subject})
        return list(page.context["correlation_ids"])

    assert found(card) == [plain.correlation_id]
    assert found(customer) == [shown.correlation_id]
    plain.delete()
    assert found(card) == []


def test_the_admin_and_the_command_name_a_reason_alike(admin_client):
    """By the word that the command's filter takes, and by what it means."""
    (letter,) = kept(DeadLetter, reason="poison")

    listed, page = pages_of(admin_client, letter)
    (said,) = [
        line.partition(":")[2].strip()
        for line in printed("show", str(letter.pk)).splitlines()
        if line.startswith("reason:")
    ]

    assert said == "poison: it kills its worker"
    assert said in listed
    assert said in page


def test_a_masked_payload_says_what_masks_stand_for(admin_client):
    """Also for a field that the class has lost, which may have been sensitive."""
    payload = b'{"customer":"Greta","note":"x","card":"y"}'
    (masked,) = payments(payload=payload)
    (plain,) = kept(DeadLetter)
    why = "stands for a sensitive value, or for a field that the class does not"

    pages = [pages_of(admin_client, row)[1] for row in (masked, plain)]
    texts = [printed("show", str(row.pk)) for row in (masked, plain)]

    assert [why in page for page in pages] == [True, False]
    assert [why in text for text in texts] == [True, False]


@pytest.mark.parametrize("model", [DeadLetter, OutboxMessage, JournalEntry])
def test_no_list_offers_to_count_by_its_filters(admin_client, model):
    """Such counts look at every row of the table for each choice. [C05.2]"""
    page = admin_client.get(f"/admin/{model._meta.label_lower.replace('.', '/')}/")

    assert page.status_code == 200
    assert "_facets" not in page.content.decode()
