"""The inbox: the stored keys of messages that must be handled only once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from django.apps import apps

from django_cqrs.problems import Problem, Rule


class FirstResult(NamedTuple):
    """The kept results of a key's first message."""

    result: bytes | None
    """Its handler's result, as JSON text; None if that was None."""
    outputs: bytes | None
    """The messages that it sent, if they were to be kept."""
    message_id: UUID
    """Its id."""


class Inbox(Protocol):
    """Remembers keys in the open transaction, and forgets them if it is rolled back."""

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

        If another transaction has just entered the same key, this waits for its end.
        On PostgreSQL above READ COMMITTED it then fails with a serialization error.

        Args:
            using: the alias of the database.
            owner: the owner of the key; other owners have other keys.
            key: the key.
            message_id: the id of the message with the key.
            former: the former names of the owner.

        Returns:
            None if the key is new; otherwise the kept results of its first message.

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
        """Keep the results of the message whose key was entered."""
        ...

    def forget(self, using: str, owner: str, key: str) -> None:
        """Remove a key that was entered, since its message was dropped."""
        ...


_offered: dict[str, Inbox] = {}


def offer_inbox(app: str, inbox: Inbox) -> None:
    """Register an app's inbox by the app's path, for projects that install it."""
    _offered[app] = inbox


def find_inbox() -> Inbox | None:
    """Return the inbox of an installed app, None if no app provides one."""
    for app, inbox in _offered.items():
        if apps.is_installed(app):
            return inbox
    return None


def no_inbox(whose: str, function: Any = None) -> Problem:
    """Return the problem of a key that no installed app can remember."""
    return Problem(
        Rule.UNREMEMBERED_KEY,
        f"{whose} has idempotency_key=, but no installed app stores keys.",
        "Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate.",
        function,
    )
