"""Views that send a request's payload as a message."""

from __future__ import annotations

from django_cqrs.views.conditions import (
    VersionedAnswer,
    aask_for,
    adispatch_for,
    ask_for,
    dispatch_for,
)
from django_cqrs.views.message_views import (
    AsyncCommandView,
    AsyncQueryView,
    CommandView,
    QueryView,
)
from django_cqrs.views.outcome_views import OutcomeView

__all__ = [
    "AsyncCommandView",
    "AsyncQueryView",
    "CommandView",
    "OutcomeView",
    "QueryView",
    "VersionedAnswer",
    "aask_for",
    "adispatch_for",
    "ask_for",
    "dispatch_for",
]
