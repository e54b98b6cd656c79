"""Documents in the admin: looked at and deleted, never written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated

import pydantic
import pytest
from django.test.utils import modify_settings

from django_cqrs import Sensitive
from django_cqrs.conversion.masking import MASK
from django_cqrs.documents import DocumentStore, document
from django_cqrs.documents.models import Document

pytestmark = pytest.mark.django_db


@modify_settings(INSTALLED_APPS={"append": "django.contrib.admin"})
def test_the_content_is_shown_and_nothing_is_changed(rf):
    """JSON with one value a line, escaped; nobody adds or changes by hand."""
    from django.contrib.admin import site

    DocumentStore(dict[str, str], collection="papers.pages").add("a", {"t": "<b>é"})
    admin = site.get_model_admin(Document)

    shown = admin.pretty(Document.objects.get())

    assert shown == "<pre>{\n  &quot;t&quot;: &quot;&lt;b&gt;é&quot;\n}</pre>"
    assert not admin.has_add_permission(rf.get("/"))
    assert not admin.has_change_permission(rf.get("/"))
    assert admin.check() == []


Secret = Annotated[str, Sensitive()]


@document("desk.patient", version=2)
@dataclass
class Patient:
    name: str
    diagnosis: Secret
    _notes: list[Secret] = field(default_factory=list)


class Settings(pydantic.BaseModel):
    theme: str
    token: Secret


def shown(document):
    from django_cqrs.documents.redaction import text_of

    return json.loads(text_of(document))


@pytest.mark.parametrize(
    ("kind", "collection", "value", "expected"),
    [
        (
            Patient,
            "",
            Patient("Greta", "flu", ["cough"]),
            {"name": "Greta", "diagnosis": MASK, "_notes": [MASK]},
        ),
        (
            Settings,
            "desk.settings",
            Settings(theme="dark", token="t"),
            {"theme": "dark", "token": MASK},
        ),
        (
            dict[str, Settings],
            "desk.all_settings",
            {"a": Settings(theme="dark", token="t")},
            {"a": {"theme": "dark", "token": MASK}},
        ),
    ],
    ids=["object", "model", "annotation"],
)
def test_sensitive_fields_of_documents_are_masked(kind, collection, value, expected):
    """Of objects, models and other values; what is stored has them. [C05.2]"""
    DocumentStore(kind, collection=collection).add("a", value)
    document = Document.objects.get()

    assert shown(document) == expected
    assert MASK not in json.dumps(document.content)


def test_documents_of_another_version_are_masked():
    """What the class does not have in this place today may have been sensitive. [C05.2]"""
    DocumentStore(Patient)
    older = Document(
        collection="desk.patient",
        shape=1,
        content={"name": "Greta", "illness": "flu"},
    )

    assert shown(older) == {"name": "Greta", "illness": MASK}


def test_documents_that_nothing_knows_are_not_shown():
    """Where nothing says what a collection holds, the page says so instead. [C05.2]"""
    from django_cqrs.documents.redaction import text_of

    text = text_of(Document(collection="desk.unheard", content={"a": "secret"}))

    assert "secret" not in text
    assert text.startswith("(not shown)")


@document("desk.holder")
@dataclass
class Holder:
    card: Secret
    name: str


CARD = "4111-1111-1111-1111"
DOCUMENTS = "/admin/django_cqrs_documents/document/"


@modify_settings(INSTALLED_APPS={"append": "django.contrib.admin"})
@pytest.mark.urls("tests.outbox.desk_urls")
def test_a_sensitive_identifier_is_masked_wherever_the_admin_names_a_document(
    admin_client,
):
    """In the list, the title and the fields of its page, and the page that deletes it."""
    DocumentStore(Holder).add(CARD, Holder(CARD, "Greta"))
    row = Document.objects.get()

    pages = [
        admin_client.get(f"{DOCUMENTS}{part}").content.decode()
        for part in ("", f"{row.pk}/change/", f"{row.pk}/delete/")
    ]

    assert [page.count(CARD) for page in pages] == [0, 0, 0]
    assert all(MASK in page for page in pages)
    assert str(row) == f"{MASK} in desk.holder"


@modify_settings(INSTALLED_APPS={"append": "django.contrib.admin"})
@pytest.mark.urls("tests.outbox.desk_urls")
@pytest.mark.parametrize(
    ("term", "found"),
    [(CARD, []), ("4111", []), ("plain", ["plain-1"]), ("", ["plain-1", CARD])],
)
def test_a_search_does_not_confirm_a_masked_key_of_a_document(
    admin_client, term, found
):
    """What the list masks is not found by it, in whole or in part."""
    DocumentStore(Holder).add(CARD, Holder(CARD, "Greta"))
    DocumentStore(Holder).add("plain-1", Holder("4222", "Greta"))

    shown = admin_client.get(DOCUMENTS, {"q": term}).context["cl"].result_list

    assert [row.key for row in shown] == found


@modify_settings(INSTALLED_APPS={"append": "django.contrib.admin"})
@pytest.mark.urls("tests.outbox.desk_urls")
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("collection=desk.holder", 200),
        ("content__card=4111", 400),
        ("content__icontains=4111", 400),
        ("key__startswith=4", 400),
        ("key=4", 400),
        ("shape=1", 400),
        ("collection__startswith=d", 400),
        ("collection=%00", 200),
    ],
)
def test_the_list_of_documents_takes_the_parameters_of_its_filters_alone(
    admin_client, query, status
):
    """Any other lookup is refused, so that no value is found out by asking for it."""
    DocumentStore(Holder).add(CARD, Holder(CARD, "Greta"))

    assert admin_client.get(f"{DOCUMENTS}?{query}").status_code == status
