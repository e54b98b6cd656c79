"""
The keywords of the buses' methods, for type checkers and editors.

The methods themselves name each keyword, since a dict for each call would cost time;
their overloads and async counterparts take these.
"""

from __future__ import annotations

from typing import Any, TypedDict

from django_cqrs.buses.bus import GivenHeaders
from django_cqrs.pipeline.outlet import Seconds


class AddressKeywords(TypedDict, total=False):
    """The keywords that find a handler if a class does not."""

    route: str | None
    content_type: str | None


class MessageKeywords(TypedDict, total=False):
    """The keywords of every method."""

    headers: GivenHeaders | None
    using: str | None


class SendingKeywords(MessageKeywords, total=False):
    """The keywords of a message that may wait in a channel."""

    delay: Seconds | None
    expires: Seconds | None
    priority: int | None


class DispatchKeywords(SendingKeywords, total=False):
    """The keywords of a command whose class finds its handler."""

    aggregate_id: Any


class AnyDispatchKeywords(AddressKeywords, DispatchKeywords, total=False):
    """The keywords of any command."""


class AskKeywords(MessageKeywords, total=False):
    """The keywords of a query whose class finds its handler."""

    aggregate_id: Any


class AnyAskKeywords(AddressKeywords, AskKeywords, total=False):
    """The keywords of any query."""


class PublishKeywords(AddressKeywords, SendingKeywords, total=False):
    """The keywords of an event."""
