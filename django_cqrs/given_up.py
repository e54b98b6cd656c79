"""The event about a message that is given up."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any
from uuid import UUID

from django_cqrs.conversion.masking import Sensitive
from django_cqrs.messages import message


@message("django_cqrs.message_gave_up")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MessageGaveUp:
    """
    A message will not be tried again, and is now a dead letter.

    The event is sent in the transaction in which the dead letter is written. A subclass
    may be named in ``on_dead=``; its own fields, if any, need defaults.
    """

    endpoint: str
    """The name of the endpoint whose message it was."""
    payload: Annotated[Any, Sensitive()] = None
    """The message: its object if it can be read, otherwise its JSON or its text."""
    name: str = ""
    """The stored name of its class; empty for a plain value."""
    version: int = 1
    """The version of its class."""
    headers: Annotated[dict[str, Any], Sensitive()] = dataclasses.field(
        default_factory=dict
    )
    """The user's headers, and those about its aggregate, as a channel stores them."""
    exception: str = ""
    """The dotted path of the exception's class."""
    error: str = ""
    """The first line of its text, with sensitive values masked."""
    attempts: int = 1
    """The number of attempts."""
    reason: str = "failed"
    """The reason of the dead letter, such as ``"failed"`` or ``"poison"``."""
    dead_letter_id: int | None = None
    """The primary key of the dead letter; None on a channel that keeps none."""
    message_id: UUID | None = None
    """The id of the message, which is the `causation_id` of this event."""
    channel: str = ""
    """The alias of its channel."""
