"""Links between the admin pages of apps, none of which imports another."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

# The outbox is beside the apps that link to it, so its pages are known only by name.
_TIMELINE: Final = "admin:django_cqrs_outbox_timeline"
_TIMELINE_OF_SUBJECT: Final = "admin:django_cqrs_outbox_subject_timeline"
_VIEWS: Final = tuple(
    f"django_cqrs_outbox.view_{name}"
    for name in ("outboxmessage", "deadletter", "journalentry")
)


def timeline_link(
    site: AdminSite,
    request: HttpRequest,
    *,
    correlation_id: UUID | None = None,
    subject: str = "",
) -> str:
    """
    Return the address of a timeline; empty if the user has none.

    Args:
        site: the admin site.
        request: the user's request.
        correlation_id: of the messages, or else
        subject: the name of an aggregate or a saga in the outbox's tables.

    """
    user: Any = request.user
    if not (correlation_id or subject) or not any(map(user.has_perm, _VIEWS)):
        return ""
    try:
        if correlation_id is not None:
            return reverse(_TIMELINE, args=(correlation_id,), current_app=site.name)
        address = reverse(_TIMELINE_OF_SUBJECT, current_app=site.name)
    except NoReverseMatch:  # the outbox is not installed, or not in this site
        return ""
    return f"{address}?{urlencode({'subject': subject})}"


class MessageLink(NamedTuple):
    """A link to another app's page about a message."""

    label: str
    address: str
    message_id: UUID
    causation_id: UUID | None
    """The id of the message that was handled when it was made, if any."""


MessageLinks = Callable[
    [AdminSite, HttpRequest, Collection[UUID], str], list[MessageLink]
]
"""A function from a site, a request, correlation ids and a database to links."""

_offered: dict[str, MessageLinks] = {}


def offer_message_links(app: str, find: MessageLinks) -> None:
    """Register an app's links for the messages on a timeline, by the app's path."""
    _offered[app] = find


def message_links(
    site: AdminSite,
    request: HttpRequest,
    correlation_ids: Collection[UUID],
    ids: Collection[UUID],
    using: str,
) -> dict[UUID, list[MessageLink]]:
    """
    Return the links of all apps for a timeline, each with the message it stands at.

    That is the message that it is about, or else the one that caused that.

    Args:
        site: the admin site.
        request: the user's request.
        correlation_ids: of the timeline.
        ids: of the messages on it.
        using: the alias of the database.

    """
    found: dict[UUID, list[MessageLink]] = {}
    for find in _offered.values():
        for link in find(site, request, correlation_ids, using):
            place = link.message_id if link.message_id in ids else link.causation_id
            if place in ids and place is not None:
                found.setdefault(place, []).append(link)
    return found
