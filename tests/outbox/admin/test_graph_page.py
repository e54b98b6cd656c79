"""The message graph in Django's admin."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_cqrs.outbox.models import JournalEntry, Outcome

pytestmark = [
    pytest.mark.django_db(databases=["default"]),
    pytest.mark.urls("tests.outbox.desk_urls"),
]

GRAPH = "/admin/django_cqrs_outbox/journalentry/graph/"


@pytest.fixture
def journal(settings):
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}
    JournalEntry.objects.create(
        at=timezone.now(),
        message_id=uuid.uuid4(),
        correlation_id=uuid.uuid4(),
        kind="command",
        name="OpenTicket",
        endpoint="testapp.open_ticket",
        outcome=Outcome.HANDLED,
    )


def page_of(client, address=GRAPH):
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize(
    ("permissions", "status"),
    [([], 403), (["view_outboxmessage"], 403), (["view_journalentry"], 200)],
)
def test_g04_1_the_page_has_the_permission_of_the_journal(client, permissions, status):
    """Who may see the journal may see the graph that is compared with it. [G04.1]"""
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)

    assert client.get(GRAPH).status_code == status
    index = client.get("/admin/django_cqrs_outbox/").content.decode()
    assert (f'href="{GRAPH}"' in index) is (status == 200)


def test_g04_1_somebody_unknown_is_asked_to_sign_in(client):
    """As on every page of the admin. [G04.1]"""
    assert client.get(GRAPH).status_code == 302


def test_g04_1_the_journal_leads_to_the_graph(admin_client):
    """Its list has a link. [G04.1]"""
    address = "/admin/django_cqrs_outbox/journalentry/"

    assert f'href="{GRAPH}"' in admin_client.get(address).content.decode()


def test_g04_1_the_page_has_rows_and_the_mermaid_text(admin_client, journal):
    """No script is on it but the admin's own, and every link leads somewhere. [G04.1]"""
    page = page_of(admin_client)
    content = page[page.index('id="content-main"') :]

    assert "testapp.open_ticket" in content
    assert "flowchart LR" in content
    assert "<script" not in content[: content.index("</details>")]
    assert "style=" not in content[: content.index("</details>")]
    ids = re.findall(r'id="(cqrs-m\d+)"', content)
    assert len(set(ids)) == len(ids) > 3
    assert set(re.findall(r'href="#([^"]+)"', content)) <= set(ids)


def test_g04_1_one_message_can_be_asked_for(admin_client, journal):
    """A pattern of its names; an unknown one shows none, and keeps what was typed. [G04.1]"""
    page = page_of(admin_client, f"{GRAPH}?message=*.FindTick*")
    names = re.findall(r'<th scope="row"[^>]*><span>([^<]*)<', page)
    assert [name.rpartition(".")[2] for name in names] == ["FindTickets"]

    page = page_of(admin_client, f"{GRAPH}?message=%3Cb%3E")
    assert "No message." in page
    assert 'value="&lt;b&gt;"' in page


def test_g04_2_the_page_is_compared_with_the_journal(admin_client, journal):
    """Differences say so in words, not by a colour alone. [G04.2]"""
    page = page_of(admin_client)

    assert re.search(
        r"<strong>Differs:</strong> <code>outside</code>: in no code, observed once, ",
        page,
    )
    assert "1 entry of the journal" in page


def test_g04_2_without_a_journal_the_page_shows_the_code(admin_client):
    """And says how to compare it. [G04.2]"""
    page = page_of(admin_client)

    assert "The journal is off" in page
    assert "Differs:" not in page


def test_g04_1_the_page_takes_as_many_queries_for_any_graph(admin_client, journal):
    """One for the entries, whatever is in them, beside those of the admin. [G04.1]"""
    page_of(admin_client)
    with CaptureQueriesContext(connection) as queries:
        page_of(admin_client)

    assert sum("journalentry" in each["sql"] for each in queries) == 1
