"""Event streams in Django's admin: streams, events, projections, failures."""

from __future__ import annotations

from django_cqrs.admin_links import offer_message_links
from django_cqrs.events.admin.events import StoredEventAdmin, links_to_events
from django_cqrs.events.admin.failures import ProjectionFailureAdmin
from django_cqrs.events.admin.projections import ProjectionAdmin
from django_cqrs.events.admin.streams import StreamAdmin

offer_message_links("django_cqrs.events", links_to_events)

__all__ = [
    "ProjectionAdmin",
    "ProjectionFailureAdmin",
    "StoredEventAdmin",
    "StreamAdmin",
]
