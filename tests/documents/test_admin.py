"""Documents in the admin: looked at and deleted, never written."""

from __future__ import annotations

import pytest
from django.test.utils import modify_settings

from django_cqrs.documents import DocumentStore
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
