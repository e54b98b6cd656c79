"""
The keywords of the buses' methods, for type checkers and editors.

The methods themselves name each keyword, since a dict for each call would cost time;
their overloads and async twins take what stands here.
"""

from __future__ import annotations

from typing import Any, TypedDict

from django_cqrs.buses.bus import GivenHeaders
from django_cqrs.pipeline.outlet import Seconds


class AddressKeywords(TypedDict, total=False):
    """What leads to a handler where a class does not."""

    route: str | None
    content_type: str | None


class MessageKeywords(TypedDict, total=False):
    """What every method takes."""

    headers: GivenHeaders | None
    using: str | None


class SendingKeywords(MessageKeywords, total=False):
    """What is said of a message that may have to wait in a channel."""

    delay: Seconds | None
    expires: Seconds | None
    priority: int | None


class DispatchKeywords(SendingKeywords, total=False):
    """What is said of a command whose class leads to its handler."""

    aggregate_id: Any


class AnyDispatchKeywords(AddressKeywords, DispatchKeywords, total=False):
    """What is said of any command."""


class AskKeywords(MessageKeywords, total=False):
    """What is said of a query whose class leads to its handler."""

    aggregate_id: Any


class AnyAskKeywords(AddressKeywords, AskKeywords, total=False):
    """What is said of any query."""


class PublishKeywords(AddressKeywords, SendingKeywords, total=False):
    """What is said of an event."""
