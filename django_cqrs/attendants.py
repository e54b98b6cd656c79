"""
Attendants: the apps that do something of their own wherever the outbox is attended to.

A worker runs their duties in threads beside its messages, health checks tell their
problems, and ``cqrs_prune`` deletes their expired rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any, Protocol

from django.apps import apps
from django.db.models import Model


class Duty(Protocol):
    """Something that a worker's process does now and then, in a thread of its own."""

    def look(self) -> float:
        """
        Do whatever is to be done now.

        The thread's connection is closed afterwards.

        Returns:
            The seconds until the next look.

        Raises:
            Error: the database is unavailable; the next look is soon.

        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Expired:
    """Expired rows of a model that an attendant has deleted, or would delete."""

    model: type[Model]
    before: datetime
    """Rows have expired that nothing has needed since before this time."""
    count: int


class Attendant(Protocol):
    """An app's part in workers, health checks and ``cqrs_prune``."""

    def duty(self, registry: Any, channels: Collection[str], using: str) -> Duty | None:
        """
        Return the duty of one worker; None if there is nothing to do for it.

        Args:
            registry: the registry whose handlers the worker calls.
            channels: the aliases of its channels.
            using: the alias of its database.

        """
        ...

    def problems(self, using: str) -> Iterator[tuple[str | None, str]]:
        """
        Yield a channel's alias, or None, and a sentence, for each problem.

        Args:
            using: the alias of the database.

        Raises:
            Error: the database cannot be read.

        """
        ...

    def prune(self, using: str, *, dry_run: bool) -> Iterator[Expired]:
        """
        Delete expired rows.

        Args:
            using: the alias of the database.
            dry_run: only count them.

        """
        ...


_offered: dict[str, Attendant] = {}


def offer_attendant(app: str, attendant: Attendant) -> None:
    """Register an app's attendant by the app's path, for projects that install it."""
    _offered[app] = attendant


def attendants() -> Iterator[Attendant]:
    """Yield the attendants of the installed apps."""
    for app, attendant in _offered.items():
        if apps.is_installed(app):
            yield attendant


def duties_of(registry: Any, channels: Collection[str], using: str) -> list[Duty]:
    """
    Return the duties of one worker, of all installed apps.

    Args:
        registry: the registry whose handlers the worker calls.
        channels: the aliases of its channels.
        using: the alias of its database.

    """
    found = [each.duty(registry, channels, using) for each in attendants()]
    return [duty for duty in found if duty is not None]
