"""
The keywords of the buses' methods, for type checkers and editors.

A method itself names the most common keywords only, since a keyword that is named and
not given costs each call some time. It passes the others on to its full form, which
names all. The overloads and the async counterparts take these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

from django_cqrs.buses.bus import GivenHeaders
from django_cqrs.channels.channel import Due

F = TypeVar("F", bound=Callable[..., Any])


def short_form_of(full: Callable[..., Any]) -> Callable[[F], F]:
    """
    Return a decorator for the short form of a method: both show one signature.

    Args:
        full: the method that names each keyword. Its errors have the short one's name.

    """

    def mark(short: F) -> F:
        sign: Any = short
        sign.__signature__ = inspect.signature(full)
        full.__qualname__ = short.__qualname__
        return short

    return mark


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

    delay: Due | None
    expires: Due | None
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


class OtherPublishKeywords(TypedDict, total=False):
    """The keywords of an event that its method does not name."""

    content_type: str | None
    using: str | None
    delay: Due | None
    expires: Due | None
    priority: int | None


class PublishKeywords(OtherPublishKeywords, total=False):
    """The keywords of an event."""

    route: str | None
    headers: GivenHeaders | None
