"""Documents in Django's admin: to look at, and to delete."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from django_cqrs.documents.models import Document

if TYPE_CHECKING:
    DocumentAdminBase = admin.ModelAdmin[Document]
else:
    DocumentAdminBase = admin.ModelAdmin


@admin.register(Document)
class DocumentAdmin(DocumentAdminBase):
    """Shows what is kept; it is changed by handlers alone, which know its rules."""

    list_display = ("key", "collection", "version", "updated_at")
    list_filter = (("collection", admin.AllValuesFieldListFilter),)
    search_fields = ("key",)
    search_help_text = _("A key, or part of one.")
    ordering = ("-pk",)
    fields = (
        *("collection", "key", "version", "shape"),
        *("pretty", "created_at", "updated_at"),
    )
    readonly_fields = ("pretty",)
    show_full_result_count = False

    @admin.display(description=_("content"))
    def pretty(self, document: Document) -> str:
        """Return the content, one value a line."""
        text = json.dumps(document.content, indent=2, ensure_ascii=False)
        return format_html("<pre>{}</pre>", text)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Tell that nobody may: an object is made by its class."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Document | None = None
    ) -> bool:
        """Tell that nobody may: an object is changed by its methods."""
        return False
