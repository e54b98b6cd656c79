"""The documents of a database beside the usual one: listed, shown and deleted there."""

from __future__ import annotations

import re

import pytest
from django.db import connections

from django_cqrs.documents import DocumentStore
from django_cqrs.documents.models import Document
from tests.outbox.support import on_databases

pytestmark = [*on_databases, pytest.mark.urls("tests.outbox.desk_urls")]

DOCUMENTS = "/admin/django_cqrs_documents/document/"


@pytest.fixture
def document():
    """A document of the database "other", and one with its number in the usual one."""
    store = DocumentStore(dict[str, str], collection="papers.elsewhere")
    store.add("usual", {"t": "here"})
    pk = Document.objects.get().pk
    made = Document.objects.get(pk=pk)
    made.key, made.content = "far", {"t": "elsewhere"}
    made.save(using="other", force_insert=True)
    return Document.objects.using("other").get(pk=pk)


def test_the_documents_of_another_database_are_chosen_on_the_page(
    admin_client, document
):
    """By a filter; its links lead to pages of that database."""
    usual = admin_client.get(DOCUMENTS)
    other = admin_client.get(f"{DOCUMENTS}?database=other")

    assert [each.key for each in usual.context["cl"].result_list] == ["usual"]
    assert [each.key for each in other.context["cl"].result_list] == ["far"]
    assert "?database=other" in usual.content.decode()
    text = other.content.decode()
    (link,) = re.findall(rf'href="([^"]*/{document.pk}/change/[^"]*)"', text)
    page = admin_client.get(link.replace("&amp;", "&")).content.decode()
    assert "elsewhere" in page
    assert "here" not in page.replace("elsewhere", "")
    assert [
        each.key
        for each in admin_client.get(
            f"{DOCUMENTS}?database=other&q=far&collection=papers.elsewhere"
        )
        .context["cl"]
        .result_list
    ] == ["far"]


@pytest.mark.parametrize("how", ["page", "list"])
def test_a_document_of_another_database_is_deleted_there(admin_client, document, how):
    """And the one with the same number in the usual database stays."""
    if how == "page":
        address = (
            f"{DOCUMENTS}{document.pk}/delete/?_changelist_filters=database%3Dother"
        )
        answer = admin_client.post(address, {"post": "yes"})
    else:
        answer = admin_client.post(
            f"{DOCUMENTS}?database=other",
            {
                "action": "delete_selected",
                "_selected_action": [document.pk],
                "post": "yes",
            },
        )

    assert answer.status_code == 302
    assert Document.objects.using("other").count() == 0
    assert [each.key for each in Document.objects.all()] == ["usual"]


def test_a_database_without_documents_is_named(admin_client):
    """The list of the usual one is shown, with a notice."""
    from django.contrib.admin import site

    model_admin = site.get_model_admin(Document)
    other = connections["other"]
    told = []
    with other.schema_editor() as editor:
        editor.delete_model(Document)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                model_admin, "message_user", lambda *arguments: told.append(arguments)
            )
            answer = admin_client.get(f"{DOCUMENTS}?database=other")
    finally:
        with other.schema_editor() as editor:
            editor.create_model(Document)

    assert answer["Location"] == DOCUMENTS
    assert told[0][1] == "The database other has no table, or is unavailable."


@pytest.mark.parametrize("address", ["?database=nosuch", "?database="])
def test_a_database_that_does_not_exist_is_the_usual_one(
    admin_client, document, address
):
    """As in the lists of the outbox."""
    found = admin_client.get(f"{DOCUMENTS}{address}").context["cl"].result_list

    assert [each.key for each in found] == ["usual"]
