"""Delete expired rows in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Model, QuerySet

from django_cqrs.attendants import attendants
from django_cqrs.channels.channel import as_timedelta
from django_cqrs.clock import now
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox import journal
from django_cqrs.outbox.inbox import window
from django_cqrs.outbox.models import (
    DeadLetter,
    InboxEntry,
    JournalEntry,
    StoredTaskResult,
    Throughput,
)
from django_cqrs.outbox.store.batches import SIZE, delete_in_batches
from django_cqrs.outbox.store.dead_letters import discard
from django_cqrs.outbox.worker import tasks, throughput
from django_cqrs.tenant_options import COLUMN, has_tenants


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """Rows of a model that are kept for a limited time."""

    model: type[Model]
    column: str
    """The column with the time at which a row was made."""
    span: Callable[[], timedelta]
    """The time for which it is kept from then on."""


KEPT: Final = (
    Kept(InboxEntry, "created_at", window),
    Kept(Throughput, "minute", lambda: throughput.KEPT),
    Kept(JournalEntry, "at", journal.kept_time),
    Kept(StoredTaskResult, "last_attempted_at", tasks.kept_time),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Pruned:
    """The expired rows of one model."""

    model: type[Model]
    before: datetime
    """Rows made before this time have expired."""
    count: int
    """The number of those rows."""


def prune(
    using: str = DEFAULT_DB_ALIAS,
    *,
    dead_letters: timedelta | float | None = None,
    size: int = SIZE,
    dry_run: bool = False,
    tenant: str | None = None,
) -> Iterator[Pruned]:
    """
    Delete expired rows and yield the counts, model by model.

    Args:
        using: the alias of the database.
        dead_letters: the age from which on dead letters are deleted; None keeps them.
            Messages that wait behind one in the order of its key continue.
        size: the number of rows deleted in one statement.
        dry_run: only count them.
        tenant: the tenant whose rows are deleted, in tables that say whose they are;
            None means everybody's, in all tables.

    Raises:
        InvalidOption: an age is invalid; nothing was deleted.

    """
    moment = now()
    work: list[tuple[Kept, datetime, Callable[[QuerySet[Any]], int]]] = [
        (
            kept,
            _before(moment, kept.span(), kept.model),
            partial(delete_in_batches, by=kept.column, size=size),
        )
        for kept in KEPT
    ]
    if dead_letters is not None:
        age = as_timedelta(dead_letters, "dead_letters")
        letters = Kept(DeadLetter, "failed_at", lambda: age)
        work.append(
            (
                letters,
                _before(moment, age, DeadLetter),
                partial(discard, using=using, size=size),
            )
        )
    for kept, before, delete in work:
        rows = kept.model._default_manager.using(using)
        if tenant is not None:
            if not has_tenants(kept.model):
                continue
            rows = rows.filter(**{COLUMN: tenant})
        old = rows.filter(**{f"{kept.column}__lt": before})
        yield Pruned(kept.model, before, old.count() if dry_run else delete(old))
    for attendant in attendants():
        for each in attendant.prune(using, dry_run=dry_run):
            yield Pruned(each.model, each.before, each.count)


def _before(now: datetime, age: timedelta, model: type[Model]) -> datetime:
    try:
        return now - age
    except OverflowError:
        msg = f"No {model._meta.verbose_name} can be as old as {age}."
        raise InvalidOption(msg) from None
