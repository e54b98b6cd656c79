"""A channel that calls handlers once the transaction is committed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.callbacks import OwnCallback
from django_cqrs.channels.channel import Channel, Delivery, log_extra
from django_cqrs.logged_errors import loggable

logger: Final = logging.getLogger("django_cqrs.channels")


class OnCommitChannel(Channel):
    """
    Handles messages in this process, right after the commit, without storing them.

    Use it for messages that may be lost. A crash between the commit and the handler
    loses the message, and so does a handler that raises, which is logged. Outside a
    transaction the handler is called at once.
    """

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """Handle messages after the commit of the open transaction."""
        for delivery in entries:
            connection.on_commit(_AfterCommit(self, delivery), robust=True)
        callbacks: list[Any] = connection.run_on_commit
        places = [
            place
            for place, (_, callback, *_) in enumerate(callbacks)
            if isinstance(callback, _AfterCommit) and callback.channel is self
        ]
        # A command's messages come at its end, those of an inner block earlier.
        in_order = sorted(
            (callbacks[place] for place in places),
            key=lambda each: each[1].delivery.envelope.sequence,
        )
        for place, callback in zip(places, in_order, strict=True):
            callbacks[place] = callback


class _AfterCommit(OwnCallback):
    """A message to be handled after the commit: an ``on_commit`` callback."""

    def __init__(self, channel: OnCommitChannel, delivery: Delivery) -> None:
        self.channel = channel
        self.delivery = delivery

    def __call__(self) -> None:
        envelope, deliver = self.delivery
        try:
            deliver(envelope)
        except Exception as error:
            logger.error(  # noqa: TRY400 - with a traceback that every log accepts
                "Message %s for %s was lost: its handler failed after the commit",
                envelope.message_id,
                envelope.endpoint,
                extra=log_extra(self.channel, envelope),
                exc_info=loggable(error),
            )


def take_registered(
    channel: OnCommitChannel, connection: BaseDatabaseWrapper
) -> Delivery | None:
    """
    Return the next message that waits for a commit, and forget it: for tests.

    Args:
        channel: the channel.
        connection: the connection of the open transaction.

    """
    callbacks: list[Any] = connection.run_on_commit
    for place, (_, callback, *_) in enumerate(callbacks):
        if isinstance(callback, _AfterCommit) and callback.channel is channel:
            del callbacks[place]
            return callback.delivery
    return None
