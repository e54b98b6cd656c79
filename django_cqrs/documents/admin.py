"""Documents in Django's admin: view and delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import (
    ChosenDatabaseMixin,
    DatabaseFilter,
    database_of,
    with_database,
)
from django_cqrs.admin_links import timeline_link
from django_cqrs.admin_lookups import OfferedLookupsMixin
from django_cqrs.buses.registries import registry
from django_cqrs.documents.document_storage import subject_of
from django_cqrs.documents.models import Document
from django_cqrs.documents.redaction import key_of, may_hide, text_of

if TYPE_CHECKING:
    DocumentAdminBase = admin.ModelAdmin[Document]
else:
    DocumentAdminBase = admin.ModelAdmin


SEARCHED: Final = 200
"""The number of matches per collection that are examined for masked keys."""


@admin.register(Document)
class DocumentAdmin(OfferedLookupsMixin, ChosenDatabaseMixin, DocumentAdminBase):
    """Shows stored objects; only handlers, which know the rules, change them."""

    list_display = ("key_text", "collection", "version", "updated_at")
    list_filter = (DatabaseFilter, ("collection", admin.AllValuesFieldListFilter))
    search_fields = ("key",)
    search_help_text = _("A key or a part of one.")
    ordering = ("-pk",)
    fields = (
        *("collection", "key_text", "version", "shape"),
        *("pretty", "created_at", "updated_at"),
    )
    readonly_fields = ("key_text", "pretty")
    show_full_result_count = False
    change_form_template = "admin/django_cqrs_documents/document/change_form.html"

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Show a document, with a link to its timeline if there is one."""
        document = kwargs.get("obj")
        if document is not None:
            context["timeline_url"] = self._timeline_of(document, request)
        return super().render_change_form(request, context, *args, **kwargs)

    def _timeline_of(self, document: Document, request: HttpRequest) -> str:
        """Return the timeline's address; empty if the user has none."""
        if key_of(document) != document.key:  # the address would reveal it
            return ""
        subject = subject_of(document, registry)
        address = timeline_link(self.admin_site, request, subject=subject)
        return with_database(address, database_of(request, Document))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Document], search_term: str
    ) -> tuple[QuerySet[Document], bool]:
        """Search for keys; masked keys are not found."""
        found, has_duplicates = super().get_search_results(
            request, queryset, search_term
        )
        if not search_term.strip():
            return found, has_duplicates
        hidden = Q(pk__in=())
        shapes = queryset.order_by().values_list("collection", "shape").distinct()
        for collection, shape in shapes:
            if not may_hide(collection, shape):
                continue
            those = found.filter(collection=collection, shape=shape)
            seen = [
                each.pk
                for each in those.order_by("-pk")[:SEARCHED]
                if key_of(each) == each.key
            ]
            hidden |= Q(collection=collection, shape=shape) & ~Q(pk__in=seen)
        return found.exclude(hidden), has_duplicates

    @admin.display(description=_("key"))
    def key_text(self, document: Document) -> str:
        """Return the key, without sensitive data."""
        return key_of(document)

    @admin.display(description=_("content"))
    def pretty(self, document: Document) -> str:
        """Return the content, one value a line, without sensitive data."""
        return format_html("<pre>{}</pre>", text_of(document))

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: an object is made by its class."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Document | None = None
    ) -> bool:
        """Refuse: an object is changed by its methods."""
        return False
