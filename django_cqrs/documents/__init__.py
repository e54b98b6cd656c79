"""Objects of plain classes kept as JSON in one table: a Django app of its own."""

from __future__ import annotations

from django_cqrs.documents.names import document
from django_cqrs.documents.store import DocumentStore

__all__ = ["DocumentStore", "document"]
