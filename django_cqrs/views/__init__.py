"""Views that send a request's payload as a message."""

from __future__ import annotations

from django_cqrs.views.message_views import (
    AsyncCommandView,
    AsyncQueryView,
    CommandView,
    QueryView,
)

__all__ = [
    "AsyncCommandView",
    "AsyncQueryView",
    "CommandView",
    "QueryView",
]
