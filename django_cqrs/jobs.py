"""Jobs: the work that a worker of the outbox does for other apps, beside messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from django.apps import apps


class Job(Protocol):
    """The work of another app for one channel, in one database."""

    failure: Exception | None
    """
    The exception of its last run, None if all went well.

    The job has dealt with it. A worker that is to stop at failures stops with it.
    """

    def run(self, deadline: float) -> int:
        """
        Work until nothing is left to do, or until a time.

        Args:
            deadline: a time of :func:`time.monotonic`; the work begun then is ended.

        Returns:
            The number of things done; 0 means that it is time to rest.

        """
        ...

    def close(self) -> None:
        """Give back what it has reserved, since the worker ends."""
        ...


JobMaker = Callable[[Any, str, str], Sequence[Job]]
"""
A function from a registry, the alias of a channel and the alias of a database to jobs.

It returns none for a channel without any, which then costs a worker nothing.
"""

_offered: dict[str, JobMaker] = {}


def offer_jobs(app: str, maker: JobMaker) -> None:
    """Register an app's jobs by the app's path, for projects that install it."""
    _offered[app] = maker


def jobs_of(registry: Any, channel: str, using: str) -> list[Job]:
    """
    Return new jobs for one worker, of all installed apps.

    Args:
        registry: the registry whose handlers are called.
        channel: the alias of a channel.
        using: the alias of the database.

    """
    return [
        job
        for app, make in _offered.items()
        if apps.is_installed(app)
        for job in make(registry, channel, using)
    ]
