"""The desk of a database beside the usual one: seen, replayed and deleted there."""

from __future__ import annotations

import re

import pytest
from django.db import connections

from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage
from tests.outbox.admin.test_desk import (
    CHANNELS,
    LETTERS,
    MESSAGES,
    act,
    registry,  # noqa: F401 - the handlers of all tests here
)
from tests.outbox.admin.test_desk import kept as kept_in_usual
from tests.outbox.support import on_databases

pytestmark = [*on_databases, pytest.mark.urls("tests.outbox.desk_urls")]


def kept(model, **values):
    """Store a row in the database "other" and nowhere else."""
    (row,) = kept_in_usual(model, **values)
    pk = row.pk
    row.save(using="other", force_insert=True)
    model.objects.using("default").filter(pk=pk).delete()
    return model.objects.using("other").get(pk=pk)


def links_of(text, part):
    return [
        address.replace("&amp;", "&")
        for address in re.findall(r'href="([^"]*)"', text)
        if part in address
    ]


@pytest.mark.parametrize(
    ("model", "address"), [(DeadLetter, LETTERS), (OutboxMessage, MESSAGES)]
)
def test_the_list_of_another_database_is_chosen_on_the_page(
    admin_client, model, address
):
    """By a filter; its links lead to pages of that database."""
    row = kept(model, channel="elsewhere")

    usual = admin_client.get(address)
    other = admin_client.get(f"{address}?database=other")

    assert list(usual.context["cl"].result_list) == []
    assert [each.pk for each in other.context["cl"].result_list] == [row.pk]
    assert "?database=other" in usual.content.decode()
    (link,) = links_of(other.content.decode(), f"/{row.pk}/change/")
    page = admin_client.get(link)
    assert page.status_code == 200
    assert "elsewhere" in page.content.decode()
    assert "channel=elsewhere" in other.content.decode()


@pytest.mark.parametrize("everything", [False, True])
def test_what_is_chosen_of_another_database_is_replayed_there(admin_client, everything):
    """And nothing of the usual one, though a row there has the same number."""
    letter = kept(DeadLetter)
    kept_in_usual(DeadLetter)

    act(
        admin_client,
        f"{LETTERS}?database=other",
        "replay_selected",
        letter,
        everything=everything,
    )

    assert DeadLetter.objects.using("other").count() == 0
    assert OutboxMessage.objects.using("other").count() == 1
    assert DeadLetter.objects.using("default").count() == 1
    assert OutboxMessage.objects.using("default").count() == 0


@pytest.mark.parametrize("end", ["replay", "edit", "delete", "delete_selected"])
def test_the_pages_of_one_of_another_database_act_there(admin_client, end):
    """The way there is a link of its page; the way back leads to its list."""
    letter = kept(DeadLetter)
    listed = admin_client.get(f"{LETTERS}?database=other").content.decode()
    (link,) = links_of(listed, f"/{letter.pk}/change/")
    if end == "delete_selected":
        act(admin_client, f"{LETTERS}?database=other", end, letter)
    else:
        page = admin_client.get(link).content.decode()
        (action,) = links_of(page, f"/{letter.pk}/{end}/")
        data = {"post": "yes", "payload": '{"number": 2}'}
        if end == "replay":
            data |= {"action": "replay_selected"}
        answer = admin_client.post(action, data)
        # Django leads to its index who may not change what was deleted.
        back = "" if end == "delete" else "database=other"
        assert answer["Location"].partition("?")[2] == back

    assert DeadLetter.objects.using("other").count() == 0
    assert OutboxMessage.objects.using("other").count() == (
        1 if end in ("replay", "edit") else 0
    )


def test_the_page_of_channels_shows_another_database(admin_client):
    """With links to the lists of it, and between the databases."""
    kept(DeadLetter, channel="elsewhere")

    usual = admin_client.get(CHANNELS).content.decode()
    other = admin_client.get(f"{CHANNELS}?database=other").content.decode()

    assert "elsewhere" not in usual
    assert links_of(usual, "?database=other") == ["?database=other"]
    assert f"{LETTERS}?channel=elsewhere&database=other" in links_of(other, LETTERS)


@pytest.mark.parametrize("alias", ["nowhere", "", "%00", "default"])
def test_an_unknown_database_is_the_usual_one(admin_client, alias):
    """Nothing fails, and nothing of another database is shown."""
    kept(DeadLetter)

    answer = admin_client.get(f"{LETTERS}?database={alias}")

    assert answer.status_code == 200
    assert list(answer.context["cl"].result_list) == []


def test_a_database_without_an_outbox_is_said_to_have_none(admin_client):
    """The list of the usual one is shown."""
    name = DeadLetter._meta.db_table
    with connections["other"].schema_editor() as editor:
        editor.alter_db_table(DeadLetter, name, f"{name}_gone")
    try:
        answer = admin_client.get(f"{LETTERS}?database=other", follow=True)
    finally:
        with connections["other"].schema_editor() as editor:
            editor.alter_db_table(DeadLetter, f"{name}_gone", name)

    assert "The database other has no outbox, or is unavailable." in (
        answer.content.decode()
    )
    assert JournalEntry.objects.using("other").count() == 0
