"""Replay dead letters for the admin: a worker puts them back, batch by batch."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import Error, connections
from django.db.models import Max, Min, QuerySet, Sum
from django.db.transaction import atomic
from django.utils.translation import gettext

from django_cqrs.clock import now
from django_cqrs.logged_errors import described
from django_cqrs.outbox.models import DeadLetter, ReplayBatch
from django_cqrs.outbox.store.batches import retrying_deadlocks
from django_cqrs.outbox.store.dead_letters import put_back
from django_cqrs.outbox.worker.outages import is_of_database

logger: Final = logging.getLogger("django_cqrs.worker")

LONGEST_PAUSE: Final = 300
"""The maximum delay of another attempt at a failed batch, in seconds."""

LONGEST_ERROR: Final = 500
"""The number of characters of an error that are kept."""

_INSERTED: Final = 200


def hand_over(
    batches: Sequence[Sequence[int]], *, user: Any = None, using: str
) -> uuid.UUID:
    """
    Have a worker of the database put dead letters back, one transaction a batch.

    Args:
        batches: the ids of dead letters, in order of sending.
        user: the user who asks, for the history of each; None for nobody.
        using: the alias of the database.

    Returns:
        The number of the request.

    """
    request, moment = uuid.uuid4(), now()
    total = sum(map(len, batches))
    with atomic(using=using):
        ReplayBatch.objects.using(using).bulk_create(
            (
                ReplayBatch(
                    request=request,
                    total=total,
                    letters=list(batch),
                    count=len(batch),
                    user="" if user is None else str(user.pk),
                    user_name="" if user is None else str(user)[:255],
                    requested_at=moment,
                    available_at=moment,
                )
                for batch in batches
            ),
            batch_size=_INSERTED,
        )
    return request


@dataclasses.dataclass(frozen=True, slots=True)
class ReplayProgress:
    """The progress of one request."""

    request: uuid.UUID
    total: int
    left: int
    """The number of dead letters that are left."""
    user_name: str
    since: datetime
    attempts: int
    """The highest number of failures of one of its batches."""
    error: str
    """The error, empty if no batch failed."""


def replays_in_progress(using: str) -> list[ReplayProgress]:
    """Return a database's unfinished requests, in order."""
    rows = ReplayBatch.objects.using(using).order_by()
    found = rows.values("request", "total", "user_name").annotate(
        left=Sum("count"),
        since=Min("requested_at"),
        failures=Max("attempts"),
        text=Max("error"),
    )
    return [
        ReplayProgress(
            request=each["request"],
            total=each["total"],
            left=each["left"],
            user_name=each["user_name"],
            since=each["since"],
            attempts=each["failures"],
            error=each["text"],
        )
        for each in found.order_by("since", "request")
    ]


class Replays:
    """Works on the requests to replay, one batch at a time."""

    # The interval in which an idle worker looks for requests, in seconds.
    interval = 1.0

    def __init__(self, using: str) -> None:
        """Take the alias of the database."""
        self._using = using
        self._due = 0.0

    def run(self, *, at_once: bool = False) -> int:
        """
        Put one batch back, if it is time to look for one.

        Args:
            at_once: look now, even if the interval has not passed.

        Returns:
            The number of dead letters in the batch; 0 if there was none.

        """
        moment = time.monotonic()
        if not at_once and moment < self._due:
            return 0
        done = replay_next(self._using)
        self._due = 0.0 if done else moment + self.interval
        return done


def replay_next(using: str) -> int:
    """
    Put the next batch of dead letters back, all of it or nothing.

    A batch that fails stays, and is retried after a while.

    Args:
        using: the alias of the database.

    Returns:
        The number of dead letters in the batch; 0 if there was none, or it failed.

    Raises:
        Error: the database is unavailable.

    """
    if not _waiting(using).exists():  # usual, and no transaction is needed
        return 0
    tried: list[ReplayBatch] = []

    def work() -> int:
        tried.clear()
        batch = _next_batch(using)
        if batch is None:
            return 0
        tried.append(batch)
        letters = DeadLetter.objects.using(using).filter(pk__in=batch.letters)
        replayed = put_back(list(letters.order_by("sequence", "pk")), using=using)
        _write_history(batch, replayed)
        batch.delete(using=using)
        return batch.count

    try:
        return retrying_deadlocks(work, using=using)
    except Exception as error:
        if not tried or (isinstance(error, Error) and is_of_database(error)):
            raise
        _postpone(tried[0], error, using)
        return 0


def _waiting(using: str) -> QuerySet[ReplayBatch]:
    return ReplayBatch.objects.using(using).filter(available_at__lte=now())


def _next_batch(using: str) -> ReplayBatch | None:
    rows = _waiting(using)
    features = connections[using].features
    if features.has_select_for_update:
        rows = rows.select_for_update(
            skip_locked=features.has_select_for_update_skip_locked
        )
    return rows.order_by("pk").first()


def _write_history(batch: ReplayBatch, replayed: list[DeadLetter]) -> None:
    """Record the user in the history of each letter, as the admin itself does."""
    if not replayed or not batch.user or not apps.is_installed("django.contrib.admin"):
        return
    from django.contrib.admin.models import CHANGE, LogEntry

    user = get_user_model()._default_manager.filter(pk=batch.user).first()
    if user is None:  # deleted in the meantime
        return
    chosen: Any = replayed
    LogEntry.objects.log_actions(
        user_id=user.pk,
        queryset=chosen,
        action_flag=CHANGE,
        change_message=gettext("Replayed."),
    )


def _postpone(batch: ReplayBatch, error: BaseException, using: str) -> None:
    attempts = batch.attempts + 1
    pause = min(LONGEST_PAUSE, 2**attempts)
    # The first line only: PostgreSQL quotes the row in the next one.
    first = next(iter(described(error).splitlines()), "")[:LONGEST_ERROR]
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    logger.error(
        "A batch of %d dead letters could not be replayed (%s). Nothing of it has "
        "changed; it is retried in %d s",
        batch.count,
        said,
        pause,
    )
    ReplayBatch.objects.using(using).filter(pk=batch.pk).update(
        attempts=attempts, available_at=now() + timedelta(seconds=pause), error=said
    )
