"""
Attendants: the apps that do something of their own wherever the outbox is attended to.

A worker runs their duties in threads beside its messages, ``cqrs_stats`` shows their
figures, health checks tell their problems, and ``cqrs_prune`` deletes their expired
rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProblemLimits:
    """The limits beyond which a health check tells a problem; None means no limit."""

    max_lag: timedelta | None = None
    """How long an event may wait for a projection."""
    max_parked: int | None = None
    """The number of partitions that a projection may have parked."""
    max_transaction: timedelta | None = None
    """How long a transaction may be open."""


class AttendantProblem(NamedTuple):
    """A problem that an attendant has found."""

    kind: Literal["schedule", "projection", "transaction"]
    channel: str | None
    """The alias of the channel that it concerns, if it concerns one."""
    text: str
    """One sentence, without any data of messages."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of an attendant, for ``cqrs_stats``."""

    headings: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    """The rows of a table; none if it is left out."""
    notes: Sequence[str] = ()
    """Lines below the table."""
    documents: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The same for JSON, by key."""


class Attendant(Protocol):
    """An app's part in workers, ``cqrs_stats``, health checks and ``cqrs_prune``."""

    def duty(self, registry: Any, channels: Collection[str], using: str) -> Duty | None:
        """
        Return the duty of one worker; None if there is nothing to do for it.

        Args:
            registry: the registry whose handlers the worker calls.
            channels: the aliases of its channels.
            using: the alias of its database.

        """
        ...

    def figures(self, using: str, channels: Collection[str] | None) -> Figures | None:
        """
        Return its figures; None without any.

        Args:
            using: the alias of the database.
            channels: the aliases of the channels to show, None for all.

        Raises:
            Error: the database cannot be read.

        """
        ...

    def problems(self, using: str, limits: ProblemLimits) -> Iterator[AttendantProblem]:
        """
        Yield the problems.

        Args:
            using: the alias of the database.
            limits: the limits beyond which something is a problem.

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
