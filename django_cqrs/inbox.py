"""The inbox: the stored keys of messages that are to be handled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from django.apps import apps

from django_cqrs.problems import Problem, Rule


class FirstResult(NamedTuple):
    """What was kept of the first message of a key."""

    result: bytes | None
    """What its handler returned, as JSON text; None where that was None."""
    outputs: bytes | None
    """What it sent, where that was to be kept."""


class Inbox(Protocol):
    """Remembers keys in the transaction that is open, and so forgets with it."""

    def enter(
        self,
        using: str,
        owner: str,
        key: str,
        message_id: UUID,
        *,
        former: Sequence[str] = (),
    ) -> FirstResult | None:
        """
        Remember a key, before its message is handled.

        Where another transaction has just entered the same, this waits for its end.
        On PostgreSQL above READ COMMITTED it then fails with a serialization error.

        Args:
            using: the alias of the database.
            owner: whose key it is; another's is another key.
            key: the key.
            message_id: that of the message that has it.
            former: the names that the owner had before.

        Returns:
            None where the key is new; else what is kept of its first message.

        """
        ...

    def keep(
        self,
        using: str,
        owner: str,
        key: str,
        *,
        result: bytes | None,
        outputs: bytes | None,
    ) -> None:
        """Keep what came of the message whose key was entered."""
        ...

    def forget(self, using: str, owner: str, key: str) -> None:
        """Take out a key that was entered, since its message was dropped."""
        ...


_offered: dict[str, Inbox] = {}


def offer_inbox(app: str, inbox: Inbox) -> None:
    """Let an app, named by its path, remember keys wherever it is installed."""
    _offered[app] = inbox


def find_inbox() -> Inbox | None:
    """Return the inbox of an installed app, None where no app offers one."""
    for app, inbox in _offered.items():
        if apps.is_installed(app):
            return inbox
    return None


def no_inbox(whose: str, function: Any = None) -> Problem:
    """Return what is wrong where keys are to be remembered and no app can."""
    return Problem(
        Rule.UNREMEMBERED_KEY,
        f"{whose} has idempotency_key=, but no installed app stores keys.",
        "Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate.",
        function,
    )
