"""
Long actions on projections: asked for by one process, carried out by a worker.

The action is noted in the projection's row. A worker of any channel takes it, and does
it in a thread of its own, so that its messages get their share meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from django.db import connections, router
from django.db.models import QuerySet

from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.events import building
from django_cqrs.events.error_texts import error_texts
from django_cqrs.events.followers import followers_of
from django_cqrs.events.generations import RUNNING, live_generation
from django_cqrs.events.handling import Handlers, projections_of
from django_cqrs.events.models import Generation, Status, StoredEvent
from django_cqrs.events.operations import Projections
from django_cqrs.exceptions import (
    InvalidChannel,
    InvalidOption,
    ProjectionBusy,
    ProjectionNotFound,
)
from django_cqrs.jobs import Job
from django_cqrs.logged_errors import loggable

logger: Final = logging.getLogger("django_cqrs.projections")


def actions_of(handlers: Handlers) -> tuple[str, ...]:
    """Return the long actions that a projection can be asked for."""
    options = handlers.options
    filling = ("rebuild", "reset", "delete")
    if options.is_inline:
        return ("backfill", *filling)
    return filling if options.is_following else ("run", *filling)


def has_workers() -> bool:
    """Return whether a worker serves one of the project's channels."""
    for alias in channels:
        try:
            if channels[alias].supports_redelivery:
                return True
        except InvalidChannel:  # a check reports it
            continue
    return False


def want(projections: Projections, name: str, action: str) -> None:
    """
    Leave a long action on a projection to a worker.

    Args:
        projections: those of the database.
        name: of the projection.
        action: one of :func:`actions_of`.

    Raises:
        ProjectionNotFound: there is none of this name, or it is not set up.
        ProjectionBusy: it has another action to wait for, or is being rebuilt.
        InvalidOption: it cannot be asked for this action, or no worker would do it.

    """
    handlers, using = projections.handlers(name), projections.using
    if action not in actions_of(handlers):
        offered = ", ".join(actions_of(handlers))
        msg = f"The projection {name!r} has no action {action!r}, but {offered}."
        raise InvalidOption(msg)
    if not has_workers():
        msg = (
            f"No channel of this project has a worker that could {action} {name!r}. "
            f"Run manage.py cqrs_projections {action} {name}."
        )
        raise InvalidOption(msg)
    generation = live_generation(name, using)
    if generation is None:
        msg = f"The projection {name!r} is not set up in the database {using!r}."
        raise ProjectionNotFound(msg)
    rows = Generation.objects.using(using).filter(pk=generation.pk, wanted="")
    free = rows.exclude(status=Status.BUILDING)
    if not free.update(wanted=action, error=""):
        generation.refresh_from_db()
        busy = generation.wanted.removeprefix(RUNNING) or "rebuild"
        msg = f"The projection {name!r} is busy: wait for its {busy}, or resume it."
        raise ProjectionBusy(msg)


class _Interrupted(Exception):
    """Ends an action whose worker ends; another worker begins it again."""


class WantedActions:
    """Carries out the long actions that are wanted of the projections of a database."""

    look_time = 2.0
    """The interval, in seconds, in which they are looked for."""

    failure: Exception | None = None

    def __init__(self, registry: Registry, using: str) -> None:
        """Take the registry with the projections, and the alias of their database."""
        self._registry = registry
        self._using = using
        self._next_look = 0.0
        self._thread: threading.Thread | None = None
        self._ends = threading.Event()

    def run(self, deadline: float) -> int:
        """Begin a wanted action, or wait for the one in hand; see Job."""
        self.failure = None
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if not self._thread.is_alive():
                self._thread = None
            return 1
        now = time.monotonic()
        if now < self._next_look:
            return 0
        self._next_look = now + self.look_time
        taken = self._take()
        if taken is None:
            return 0
        if connections[self._using].in_atomic_block:  # another one sees nothing of it
            self._carry_out(*taken)
            return 1
        self._thread = threading.Thread(
            target=self._in_thread, args=taken, name=f"{taken[1]} {taken[0].projection}"
        )
        self._thread.start()
        return 1

    def _take(self) -> tuple[Generation, str] | None:
        """Take an action that nobody else carries out."""
        rows = Generation.objects.using(self._using).filter(
            projection__in=list(projections_of(self._registry)), is_live=True
        )
        free = rows.exclude(wanted="").exclude(wanted__startswith=RUNNING)
        for each in free.exclude(status=Status.BUILDING).order_by("pk"):
            action = each.wanted
            if self._change(each, action, f"{RUNNING}{action}"):
                return each, action
        return None

    def _change(self, generation: Generation, before: str, after: str) -> int:
        rows: QuerySet[Generation] = Generation.objects.using(self._using)
        return rows.filter(pk=generation.pk, wanted=before).update(wanted=after)

    def _in_thread(self, generation: Generation, action: str) -> None:
        try:
            self._carry_out(generation, action)
        finally:
            connections.close_all()

    def _carry_out(self, generation: Generation, action: str) -> None:
        name, log = generation.projection, {"cqrs_projection": generation.projection}
        logger.info("Projection %s: %s begins", name, action, extra=log)
        after = ""
        try:
            self._do(name, action)
        except _Interrupted:
            after = action
            logger.info("Projection %s: %s is interrupted", name, action, extra=log)
        except Exception as error:
            self.failure = error
            self._note(generation, action, error)
            logger.error(  # noqa: TRY400 - without the values in its text
                "Projection %s: %s failed",
                name,
                action,
                exc_info=loggable(error),
                extra=log,
            )
        else:
            logger.info("Projection %s: %s is done", name, action, extra=log)
        self._change(generation, f"{RUNNING}{action}", after)

    def _do(self, name: str, action: str) -> None:
        projections = Projections(self._using, registry=self._registry)
        handlers = projections.handlers(name)
        if action == "rebuild":
            building.rebuild(handlers, using=self._using, at_page=self._go_on)
        elif action == "backfill":
            building.backfill(
                handlers, using=self._using, at_batch=lambda _count: self._go_on()
            )
        elif action == "run":
            projections.run(name, at_batch=self._go_on)
        else:
            act: Callable[[str], None] = getattr(projections, action)
            act(name)

    def _go_on(self) -> None:
        if self._ends.is_set():
            raise _Interrupted

    def _note(self, generation: Generation, action: str, error: Exception) -> None:
        """Keep the error with the projection, without values of events."""
        types = self._registry.routes.types
        texts = error_texts(error, None, types)
        text = f"{action}: {texts.summary}"
        rows: QuerySet[Generation] = Generation.objects.using(self._using)
        rows.filter(pk=generation.pk).update(error=text)

    def close(self) -> None:
        """Interrupt the action in hand: another worker begins it again."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()

    def __repr__(self) -> str:
        """Return the database."""
        return f"<WantedActions of {self._using!r}>"


def projection_jobs(registry: Any, channel: str, using: str) -> list[Job]:
    """
    Return the jobs of a worker for the projections of a database.

    It is the maker of this app for :func:`django_cqrs.jobs.offer_jobs`.

    Args:
        registry: the registry with the projections.
        channel: the alias of the channel that the worker serves.
        using: the alias of the database.

    """
    if not projections_of(registry) or not router.allow_migrate_model(
        using, StoredEvent
    ):
        return []
    return [*followers_of(registry, channel, using), WantedActions(registry, using)]
