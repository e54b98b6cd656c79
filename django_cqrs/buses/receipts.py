"""Receipts of commands that were sent to a channel."""

from __future__ import annotations

import dataclasses
from uuid import UUID


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """
    The receipt of a command for a handler on a channel.

    ``django_cqrs.outbox.outcomes.outcome_of`` tells what became of the command. It also
    takes the id alone, so you can store it, or hand it to a client.
    """

    message_id: UUID
    """The id of the message; of a duplicate, that of the first with its bus's key."""
    endpoint: str
    """The name of the endpoint that it is for."""
    channel: str
    """The alias of the channel that it waits in."""
    using: str
    """The alias of the database that stores it, if the channel has one."""
    is_sent: bool = True
    """False if an interceptor has stopped it."""
    is_duplicate: bool = False
    """Whether it was not sent again, since an earlier one has its bus's key."""

    def __str__(self) -> str:
        """Return the id of the message."""
        return str(self.message_id)
