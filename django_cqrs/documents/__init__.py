"""Objects of plain classes, stored as JSON in one table: a separate Django app."""

from __future__ import annotations

from django_cqrs.documents.names import document
from django_cqrs.documents.store import DocumentStore

__all__ = ["DocumentStore", "document"]
