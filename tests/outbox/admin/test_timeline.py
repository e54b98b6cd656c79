"""The timeline in Django's admin: what one message has caused, and who may see it."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone

from django_cqrs import (
    CommandBus,
    EventBus,
    Registry,
    Retry,
    command_handler,
    event_bus,
    event_handler,
    message,
)
from django_cqrs.documents import DocumentStore
from django_cqrs.documents import admin as documents
from django_cqrs.documents.document_storage import subject_of
from django_cqrs.documents.models import Document
from django_cqrs.outbox import timeline
from django_cqrs.outbox.admin import OutboxMessageAdmin, TimelineMixin
from django_cqrs.outbox.models import (
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    Outcome,
    State,
)
from django_cqrs.outbox.timeline import correlations_of, timeline_of
from django_cqrs.testing.flow import Flow
from tests.documents.kinds import PROCESSES, Started
from tests.modelling.messages import OrderPaid, OrderPlaced
from tests.modelling.models import Fulfilment
from tests.outbox.support import make_due, work

pytestmark = [
    pytest.mark.django_db(databases=["default"]),
    pytest.mark.database,
    pytest.mark.urls("tests.outbox.admin.test_timeline"),
]

site = admin.AdminSite("shop")


@admin.register(Fulfilment, site=site)
class FulfilmentAdmin(TimelineMixin, admin.ModelAdmin):
    pass


whole = admin.AdminSite("whole")
whole.register(Fulfilment, FulfilmentAdmin)
whole.register(OutboxMessage, OutboxMessageAdmin)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("shop/", site.urls),
    path("whole/", whole.urls),
]

PAGE = "/admin/django_cqrs_outbox/outboxmessage/timeline/"


@message("timeline.open")
@dataclass(frozen=True)
class Open:
    title: str = "lamp"


@message("timeline.opened")
@dataclass(frozen=True)
class Opened:
    title: str = "lamp"


@message("timeline.print")
@dataclass(frozen=True)
class Print:
    title: str = "lamp"


@pytest.fixture(autouse=True)
def _kept(settings):
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}


@pytest.fixture
def registry():
    registry = Registry()

    @registry.add
    @command_handler(name="timeline.open")
    def open_it(command: Open, events: EventBus) -> None:
        events.publish(Opened(command.title))

    @registry.add
    @event_handler(name="timeline.ask")
    def ask(event: Opened, commands: CommandBus) -> None:
        commands.dispatch(Print(event.title))

    @registry.add
    @event_handler(name="timeline.mail", channel="outbox")
    def mail(event: Opened) -> None: ...

    @registry.add
    @command_handler(name="timeline.print", channel="outbox", retry=Retry(attempts=1))
    def print_it(command: Print) -> None:
        raise ValueError("no <paper>\nat all")

    return registry


@pytest.fixture
def operator(client):
    """Log in somebody of the staff with some permissions."""
    user = User.objects.create_user("operator", password="x", is_staff=True)

    def permit(*codenames):
        found = Permission.objects.filter(
            codename__in=codenames, content_type__app_label="django_cqrs_outbox"
        )
        assert len(found) == len(codenames)
        user.user_permissions.set(found)
        client.force_login(User.objects.get(pk=user.pk))

    return permit


def correlation():
    (found,) = JournalEntry.objects.values_list("correlation_id", flat=True).distinct()
    return found


class Outline(HTMLParser):
    """Reads the nested list: how deep each message stands, and in what words."""

    def __init__(self, page):
        super().__init__()
        self.depth, self.open, self.lines, self.tags = 0, 0, [], []
        content = page[page.index('<ol class="cqrs-timeline"') :]
        self.feed(content[: content.index("</div>\n", content.rindex("</ol>"))])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.depth += tag == "ol"
        if ("class", "cqrs-message") in attrs:
            self.lines.append([self.depth, ""])

    def handle_endtag(self, tag):
        self.depth -= tag == "ol"

    def handle_data(self, data):
        if self.lines:
            self.lines[-1][1] += data

    def words(self):
        return [(depth, " ".join(text.split())) for depth, text in self.lines]


def outline(client, address):
    page = client.get(address).content.decode()
    for tag in ("ol", "li", "ul", "div"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>")
    return Outline(page).words()


def test_timeline_of_a_command(admin_client, registry):
    """A command, its events, what these sent, what waits of it and what is dead. [C07.5]"""
    registry.command_bus.dispatch(Open())
    OutboxMessage.objects.filter(endpoint="timeline.mail").update(
        state=State.DELAYED, available_at="2030-01-01T00:00:00Z", attempts=2
    )
    work(registry)

    found = outline(admin_client, f"{PAGE}{correlation()}/")

    assert [depth for depth, _ in found] == [1, 2, 3]
    command, event, letter = [text for _, text in found]
    assert re.match(r"timeline.open command \d\d:\d\d:\d\d\.\d{3} handled", command)
    assert "handled timeline.ask" in event
    assert re.search(
        r"delayed timeline.mail due 2030-01-01 00:00:00.000, 2 attempts, "
        r"channel outbox Message \d+",
        event,
    )
    assert re.search(
        r"failed timeline.print .*channel outbox builtins.ValueError: no <paper>",
        letter,
    )
    assert re.search(r"dead letter: the handler failed timeline.print", letter)


def test_timeline_leads_to_what_can_be_looked_at(admin_client, registry):
    """A message that waits and a dead letter are links, and lead back. [C07.5]"""
    registry.command_bus.dispatch(Open())
    work(registry, bounds={"messages": 1})
    address = f"{PAGE}{correlation()}/"
    page = admin_client.get(address).content.decode()

    rows = [*OutboxMessage.objects.all(), *DeadLetter.objects.all()]
    assert len(rows) == 1
    work(registry)
    page += admin_client.get(address).content.decode()
    for row in [*rows, *DeadLetter.objects.all()]:
        change = reverse(
            f"admin:django_cqrs_outbox_{row._meta.model_name}_change", args=[row.pk]
        )
        assert f'href="{change}"' in page
        if type(row).objects.filter(pk=row.pk).exists():
            assert f'href="{address}"' in admin_client.get(change).content.decode()
    entry = JournalEntry.objects.first()
    change = reverse("admin:django_cqrs_outbox_journalentry_change", args=[entry.pk])
    assert f'href="{address}"' in admin_client.get(change).content.decode()
    listed = reverse("admin:django_cqrs_outbox_journalentry_changelist")
    found = admin_client.get(listed, {"q": str(entry.correlation_id)})
    assert f'href="{address}"' in found.content.decode()
    assert "0 journal entries" in admin_client.get(listed, {"q": "x"}).content.decode()


def test_timeline_says_how_much_there_is(admin_client, registry):
    """One line counts what there is, what waits, what failed and what is dead. [C07.5]"""
    registry.command_bus.dispatch(Open())
    work(registry)

    page = admin_client.get(f"{PAGE}{correlation()}/").content.decode()

    assert "3 messages, 0 waiting, 1 failed attempt, 1 dead letter" in page


def test_timeline_of_each_attempt(admin_client):
    """They stand under their message, in order of time. [C07.5]"""
    registry = Registry()
    tries = []

    @registry.add
    @command_handler(
        name="timeline.print",
        channel="outbox",
        retry=Retry(attempts=3, delay=3600),
    )
    def print_it(command: Print) -> None:
        tries.append(command)
        if len(tries) == 1:
            raise ValueError("no paper")

    registry.command_bus.dispatch(Print())
    work(registry)
    make_due()
    work(registry)

    ((depth, text),) = outline(admin_client, f"{PAGE}{correlation()}/")
    assert depth == 1
    assert re.search(
        r"failed timeline.print.* handled timeline.print .*attempt 2", text
    )


def test_timeline_without_a_journal(admin_client, settings, registry):
    """It shows what waits and what is dead, and says what would show the rest. [C07.5]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": None}
    registry.command_bus.dispatch(Open())
    cause = OutboxMessage.objects.get(endpoint="timeline.mail")

    address = f"{PAGE}{cause.correlation_id}/"
    page = admin_client.get(address).content.decode()
    found = outline(admin_client, address)

    assert "the journal is off" in page
    assert "DJANGO_CQRS[&quot;JOURNAL&quot;]" in page
    texts = [text for _, text in found]
    assert f"is no longer kept, or that was a query: {cause.causation_id}" in texts[0]
    assert [depth for depth, _ in found] == [1, 2, 3]
    assert "ready timeline.mail" in texts[1]
    assert "ready timeline.print" in texts[2]


def test_timeline_of_nothing(admin_client):
    """An id that nobody knows is no error: what it was may be out of its time. [C07.5]"""
    answer = admin_client.get(f"{PAGE}{uuid.uuid4()}/")

    assert answer.status_code == 200
    assert "Nothing is known about it" in answer.content.decode()
    assert admin_client.get(PAGE).status_code == 404


def entries(number, correlation_id=None, **values):
    correlation_id = correlation_id or uuid.uuid4()
    defaults = {
        "endpoint": "timeline.open",
        "name": "timeline.open",
        "kind": "command",
        "outcome": Outcome.HANDLED,
        **values,
    }
    start = timezone.now()
    JournalEntry.objects.bulk_create(
        JournalEntry(
            at=start + timedelta(milliseconds=place),
            message_id=uuid.uuid4(),
            correlation_id=correlation_id,
            **defaults,
        )
        for place in range(number)
    )
    # Read again: MySQL does not return the keys of what is inserted.
    return list(
        JournalEntry.objects.filter(correlation_id=correlation_id).order_by("at")
    )


def test_timeline_is_bounded(admin_client, monkeypatch):
    """More than a page can show is cut, and the page says so. [C07.5]"""
    monkeypatch.setattr(timeline, "MOST", 5)
    (first, *_) = entries(6)

    page = admin_client.get(f"{PAGE}{first.correlation_id}/").content.decode()

    assert "There is more: only the beginning is shown." in page
    assert page.count("cqrs-message") == 5
    first.delete()
    page = admin_client.get(f"{PAGE}{first.correlation_id}/").content.decode()
    assert "There is more: only the beginning is shown." not in page


def test_timeline_asks_a_constant_number_of_times(admin_client, registry):
    """However many messages there are, of whichever kind. [C07.5]"""

    def count(correlation_id):
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(f"{PAGE}{correlation_id}/")
        return len(queries)

    registry.command_bus.dispatch(Open())
    first = correlation()
    work(registry)
    few = count(first)
    for _ in range(5):
        registry.command_bus.dispatch(Open(), headers={"correlation_id": first})
    work(registry)

    assert DeadLetter.objects.count() == 6
    assert count(first) == few


def test_timeline_of_a_long_chain(admin_client):
    """From some depth on messages stand beside each other; none is lost. [C07.5]"""
    chain = entries(40)
    for before, after in pairwise(chain):
        after.causation_id = before.message_id
    JournalEntry.objects.bulk_update(chain, ["causation_id"])

    found = outline(admin_client, f"{PAGE}{chain[0].correlation_id}/")

    depths = [depth for depth, _ in found]
    deepest = timeline.DEEPEST + 1
    assert depths == [*range(1, deepest), *[deepest] * (41 - deepest)]


def test_timeline_of_rows_that_go_in_a_ring():
    """No message causes what caused it; rows that say so are shown once each. [C07.5]"""
    one, two = entries(2)
    one.causation_id, two.causation_id = two.message_id, one.message_id
    JournalEntry.objects.bulk_update([one, two], ["causation_id"])

    found = timeline_of([one.correlation_id], using="default")

    assert {step.message_id for step in found.steps} == {one.message_id, two.message_id}
    assert len(list(found.steps)) == 2


# ------------------------------------------------------------------------ permissions


def test_timeline_needs_a_permission(client, operator, registry):
    """One of the three; being of the staff is not enough. [C07.5]"""
    registry.command_bus.dispatch(Open())
    address = f"{PAGE}{correlation()}/"
    assert client.get(address).status_code == 302

    operator()
    assert client.get(address).status_code == 403
    assert client.get(PAGE, {"subject": "x"}).status_code == 403

    for codename in ("view_outboxmessage", "view_deadletter", "view_journalentry"):
        operator(codename)
        assert client.get(address).status_code == 200


def test_timeline_shows_what_one_may_view(client, operator, registry):
    """What is in the other tables is left out, and the page says so. [C07.5]"""
    registry.command_bus.dispatch(Open())
    address = f"{PAGE}{correlation()}/"
    work(registry)

    operator("view_journalentry")
    page = client.get(address).content.decode()
    assert (
        "You do not have permission to view messages, dead letters, so they are not shown."
        in page
    )
    assert "dead letter: " not in page
    assert "handled" in page

    operator("view_deadletter")
    page = client.get(address).content.decode()
    assert "dead letter: the handler failed" in page
    assert 'class="cqrs-done"' not in page


def test_links_are_for_those_who_may_follow_them(client, operator, rf):
    """Nobody is led to a page that refuses them. [C07.5]"""
    event_bus.publish(OrderPlaced(7))
    saga = Fulfilment.objects.get()
    operator("view_deadletter")
    user = User.objects.get(username="operator")
    allowed = Permission.objects.get(codename="view_fulfilment")
    user.user_permissions.add(allowed)
    client.force_login(User.objects.get(pk=user.pk))
    address = reverse("shop:modelling_fulfilment_change", args=[saga.pk])
    assert client.get(address).status_code == 200

    user.user_permissions.set([allowed])
    client.force_login(User.objects.get(pk=user.pk))
    assert "Timeline" not in client.get(address).content.decode()


# ------------------------------------------------------------------------------ sagas


def test_timeline_of_a_saga_and_its_timer(admin_client):
    """All the requests that it took part in, each with what else that caused. [C07.5]"""
    with Flow() as flow:
        event_bus.publish(OrderPlaced(7))
        event_bus.publish(OrderPlaced(8))
        event_bus.publish(OrderPaid(7))
        flow.advance(days=365)
        flow.run("outbox")

    subject = "modelling.Fulfilment:7"
    ids = correlations_of(subject, using="default")
    page = admin_client.get(PAGE, {"subject": subject})
    found = outline(admin_client, f"{PAGE}?subject={subject}")

    assert len(ids) == 2
    roots = [text for depth, text in found if depth == 1]
    assert ["OrderPlaced" in roots[0], "OrderPaid" in roots[1]] == [True, True]
    own = [text for _, text in found if "(this one)" in text]
    assert any("channel outbox" in text for text in own)
    assert not any("Fulfilment:8" in text for _, text in found)
    assert page.status_code == 200


def test_saga_leads_to_its_timeline(admin_client):
    """By a mixin of its admin, where the outbox is in the same site. [C07.5]"""
    event_bus.publish(OrderPlaced(7))
    saga = Fulfilment.objects.get()

    address = "/whole/django_cqrs_outbox/outboxmessage/timeline/"
    address += "?subject=modelling.Fulfilment%3A7"
    page = reverse("whole:modelling_fulfilment_change", args=[saga.pk])
    assert f'href="{address}"' in admin_client.get(page).content.decode()
    assert "OrderPlaced" in admin_client.get(address).content.decode()
    # The outbox is not in this one.
    page = reverse("shop:modelling_fulfilment_change", args=[saga.pk])
    assert "Timeline" not in admin_client.get(page).content.decode()


@pytest.mark.parametrize("kind", PROCESSES, ids=lambda cls: cls.__name__)
def test_saga_that_is_a_document(admin_client, client, monkeypatch, kind):
    """Its document leads to the timeline, by the key that its messages have. [C07.5]"""
    registry = Registry()
    registry.add(kind)
    monkeypatch.setattr(documents, "registry", registry)
    registry.event_bus.publish(Started(7))
    timer = OutboxMessage.objects.get()
    document = Document.objects.get()
    change = reverse("admin:django_cqrs_documents_document_change", args=[document.pk])

    assert subject_of(document, registry) == timer.subject != ""
    page = admin_client.get(change).content.decode()
    (address,) = re.findall(r'href="([^"]*/timeline/\?subject=[^"]*)"', page)
    found = outline(admin_client, address)
    assert any("(this one)" in text and "delayed" in text for _, text in found)

    other = DocumentStore(dict[str, str], collection="papers.other")
    other.add("a", {})
    page = reverse(
        "admin:django_cqrs_documents_document_change",
        args=[Document.objects.get(key="a").pk],
    )
    assert "Timeline" not in admin_client.get(page).content.decode()
    user = User.objects.create_user("reader", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_document"))
    client.force_login(user)
    assert "Timeline" not in client.get(change).content.decode()


def test_newest_starts_of_a_saga(monkeypatch):
    """Of very many requests the newest are followed. [C07.5]"""
    monkeypatch.setattr(timeline, "STARTS", 2)
    ids = [
        each.correlation_id
        for _ in range(3)
        for each in entries(1, subject="shop.Cart:1")
    ]

    assert correlations_of("shop.Cart:1", using="default") == ids[1:]


# ----------------------------------------------------------------- how it is written


def test_timeline_has_no_inline_script_or_style(admin_client, registry):
    """Of its own; and what a screen reader hears is a list of lists with labels. [C07.5]"""
    registry.command_bus.dispatch(Open())
    page = admin_client.get(f"{PAGE}{correlation()}/").content.decode()
    content = page[page.index('id="content"') :]

    assert "<script" not in content
    assert "style=" not in content
    assert "<style" not in page
    assert 'href="/static/django_cqrs_outbox/desk.css"' in page
    assert 'aria-label="History of timeline.open"' in content
    assert 'aria-label="Caused by timeline.open"' in content
    assert "<time " in content
