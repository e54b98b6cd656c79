"""The permissions of admin pages that only show."""

from __future__ import annotations

from django.db.models import Model
from django.http import HttpRequest


class ReadOnly:
    """A mixin for rows that the outbox itself writes and deletes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: nobody adds a row by hand."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: a row records what happened."""
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: rows are deleted when they expire."""
        return False
