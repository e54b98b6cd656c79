"""
The timeline: everything known of the messages that one message has caused.

It combines three tables: the journal has the handled and failed messages, the outbox
    the waiting ones, and the dead letters those that were given up.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from django.db.models import Choices, Model, QuerySet

from django_cqrs import buses
from django_cqrs.exceptions import CQRSError
from django_cqrs.outbox.models import (
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    Outcome,
    Reason,
    State,
    StoredMessage,
)
from django_cqrs.outbox.redaction import masked_among, redact_list

MOST: Final = 500
"""The maximum number of rows read of one kind: nobody reads more."""

STARTS: Final = 20
"""The number of correlation ids that are followed for one object, newest first."""

DEEPEST: Final = 12
"""The depth from which on caused messages are listed beside their cause, not below."""

SOURCES: Final = (JournalEntry, OutboxMessage, DeadLetter)
"""The tables with information."""


class Severity(enum.Enum):
    """The meaning of a state for somebody who looks for problems."""

    DONE = "done"
    WAITS = "waits"
    BAD = "bad"


@dataclasses.dataclass(frozen=True, slots=True)
class Happening:
    """The past or planned handling of a message at one endpoint."""

    at: datetime
    endpoint: str
    state: Any
    """In words."""
    standing: Severity
    attempts: int
    channel: str | None
    duration: int | None = None
    """In microseconds, if a handler was called."""
    due: datetime | None = None
    exception: str = ""
    error: str = ""
    subject: str = ""
    row: Model | None = None
    """The row to look at: a message, or a dead letter."""


@dataclasses.dataclass(slots=True, eq=False)
class TimelineMessage:
    """One message, with those that it has caused."""

    message_id: UUID
    name: str = ""
    kind: str = ""
    causation_id: UUID | None = None
    happenings: list[Happening] = dataclasses.field(default_factory=list)
    caused: list[TimelineMessage] = dataclasses.field(default_factory=list)
    at: datetime | None = None
    """The time of its sending, or of its first handling; None if only referenced."""

    @property
    def is_known(self) -> bool:
        """Whether anything but its id is known."""
        return self.at is not None

    def seen_at(self, moment: datetime) -> None:
        """Keep the earliest time."""
        self.at = moment if self.at is None else min(self.at, moment)


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """A message in its place: lists are opened and closed around it."""

    step: TimelineMessage
    cause: TimelineMessage | None
    opens: bool
    """Whether the following ones are in a list of their own, below it."""
    closes: range
    """One for each list that ends after it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """Everything known of the messages of some correlation ids."""

    correlation_ids: tuple[UUID, ...]
    starts: list[TimelineMessage]
    """The messages without a known cause."""
    is_bounded: bool
    """Whether there is more than is shown."""

    @property
    def steps(self) -> Iterator[TimelineMessage]:
        """Yield the messages, each before those that it has caused."""
        todo = list(reversed(self.starts))
        while todo:
            step = todo.pop()
            yield step
            todo += reversed(step.caused)

    @property
    def happenings(self) -> Iterator[Happening]:
        """Yield all past and planned handlings."""
        for step in self.steps:
            yield from step.happenings

    def placed(self) -> list[Placed]:
        """Return the messages in the order of a nested list."""
        found: list[Placed] = []
        todo: list[tuple[TimelineMessage, TimelineMessage | None, int]] = [
            (step, None, 0) for step in reversed(self.starts)
        ]
        while todo:
            step, cause, depth = todo.pop()
            opens = bool(step.caused) and depth < DEEPEST
            inside = depth + 1 if opens else depth
            todo += [(each, step, inside) for each in reversed(step.caused)]
            after = todo[-1][2] if todo else 0
            found.append(Placed(step, cause, opens, range(max(0, inside - after))))
        return found


def timeline_of(
    correlation_ids: Collection[UUID],
    *,
    using: str,
    sources: Collection[type[Model]] = SOURCES,
    tenant: str | None = None,
) -> Timeline:
    """
    Return the timeline of some correlation ids.

    Args:
        correlation_ids: usually one.
        using: the alias of the database.
        sources: the tables that may be looked at.
        tenant: the tenant whose rows may be; None means everybody's.

    """
    steps: dict[UUID, TimelineMessage] = {}
    is_bounded = False

    def rows_of(model: type[Any], *order: str) -> list[Any]:
        nonlocal is_bounded
        if model not in sources:
            return []
        rows: QuerySet[Any] = model.objects.using(using)
        if tenant is not None:
            rows = rows.filter(tenant=tenant)
        wide = [
            field.name
            for field in model._meta.fields
            if field.name in ("payload", "headers", "traceback")
        ]
        rows = rows.filter(correlation_id__in=list(correlation_ids)).defer(*wide)
        found = list(rows.order_by(*order)[: MOST + 1])
        is_bounded |= len(found) > MOST
        return found[:MOST]

    def step_of(row: Any, moment: datetime) -> TimelineMessage:
        step = steps.get(row.message_id)
        if step is None:
            step = steps[row.message_id] = TimelineMessage(row.message_id)
        step.name = step.name or row.name
        step.causation_id = row.causation_id
        step.seen_at(moment)
        return step

    for entry in rows_of(JournalEntry, "at", "pk"):
        step = step_of(entry, entry.at)
        step.kind = step.kind or entry.kind
        step.happenings.append(_journalled(entry))
    for message in rows_of(OutboxMessage, "sequence", "pk"):
        step_of(message, message.sent_at).happenings.append(_waiting(message))
    letters = rows_of(DeadLetter, "failed_at", "pk")
    seen = redact_list(letters, using=using)
    for letter in letters:
        step = step_of(letter, letter.sent_at)
        step.happenings.append(_dead(letter, seen[letter.pk].error_of(letter)))
    for step in steps.values():
        step.kind = step.kind or _kind_at(step.happenings)
        step.happenings.sort(key=lambda each: each.at)
    return Timeline(tuple(correlation_ids), _rooted(steps), is_bounded)


def correlations_of(
    subject: str,
    *,
    using: str,
    sources: Collection[type[Model]] = SOURCES,
    tenant: str | None = None,
) -> list[UUID]:
    """
    Return the correlation ids of the messages of an aggregate or a saga.

    Messages whose subject is masked, since a sensitive field identifies the object, are
    not found by it: that would confirm a guess.

    Args:
        subject: its name in the tables, such as ``shop.Order:7``.
        using: the alias of the database.
        sources: the tables that may be looked at.
        tenant: the tenant whose rows may be; None means everybody's.

    Returns:
        The newest :data:`STARTS`, the oldest of them first.

    """
    newest: dict[UUID, datetime] = {}
    for model, column in (
        (JournalEntry, "at"),
        (OutboxMessage, "sent_at"),
        (DeadLetter, "sent_at"),
    ):
        if model not in sources:
            continue
        rows: QuerySet[Any] = model._default_manager.using(using)
        if tenant is not None:
            rows = rows.filter(tenant=tenant)
        if issubclass(model, StoredMessage):
            rows = rows.exclude(masked_among(rows, "subject", subject))
        found = (
            rows.filter(subject=subject)
            .exclude(subject="")  # the condition of the indexes
            .order_by(f"-{column}")
            .values_list("correlation_id", column)[:MOST]
        )
        for correlation_id, moment in found:
            known = newest.get(correlation_id, moment)
            newest[correlation_id] = max(known, moment)
    ordered = sorted(newest, key=newest.__getitem__)
    return ordered[-STARTS:]


# ----------------------------------------------------------------------- from rows


def _journalled(entry: JournalEntry) -> Happening:
    is_bad = entry.outcome in (Outcome.FAILED, Outcome.DROPPED)
    return Happening(
        at=entry.at,
        endpoint=entry.endpoint,
        state=_label_of(Outcome, entry.outcome),
        standing=Severity.BAD if is_bad else Severity.DONE,
        attempts=entry.attempts,
        channel=entry.channel,
        duration=entry.duration,
        exception=entry.exception,
        error=entry.error,
        subject=entry.subject,
    )


def _waiting(message: OutboxMessage) -> Happening:
    return Happening(
        at=message.available_at or message.sent_at,
        endpoint=message.endpoint,
        state=_label_of(State, message.state),
        standing=Severity.WAITS,
        attempts=message.attempts,
        channel=message.channel,
        due=message.available_at,
        error=message.last_error or "",
        subject=message.subject,
        row=message,
    )


def _dead(letter: DeadLetter, error: str) -> Happening:
    lines = error.strip().splitlines() or [""]
    return Happening(
        at=letter.failed_at,
        endpoint=letter.endpoint,
        state=_label_of(Reason, letter.reason),
        standing=Severity.BAD,
        attempts=letter.attempts,
        channel=letter.channel,
        exception=letter.exception,
        error=lines[0],
        subject=letter.subject,
        row=letter,
    )


def _label_of(choices: type[Choices], value: Any) -> str:
    """Return a choice's label; the value itself if it is not a choice."""
    return str(dict(choices.choices).get(value, value))


def _kind_at(happenings: Iterable[Happening]) -> str:
    """Return the kind of a message by its handlers, as far as they exist."""
    for each in happenings:
        try:
            return str(buses.registry.routes.endpoint_named(each.endpoint).kind)
        except CQRSError:
            continue
    return ""


def _rooted(steps: dict[UUID, TimelineMessage]) -> list[TimelineMessage]:
    """Attach messages to their causes; return those without a known cause."""
    starts: dict[UUID, TimelineMessage] = {}
    for step in _in_time(steps.values()):
        cause = step.causation_id
        if cause is None or cause == step.message_id:
            starts[step.message_id] = step
            continue
        holder = steps.get(cause) or starts.get(cause)
        if holder is None:  # only its id is known
            holder = starts[cause] = TimelineMessage(cause)
        holder.caused.append(step)
    reached = {
        each.message_id for each in Timeline((), list(starts.values()), False).steps
    }
    for step in steps.values():  # a cycle: no message makes one, but rows may hold it
        if step.message_id not in reached:
            step.caused = []
            starts[step.message_id] = step
    return list(starts.values())


def _in_time(steps: Iterable[TimelineMessage]) -> list[TimelineMessage]:
    timed = [(step.at, step) for step in steps if step.at is not None]
    return [step for _, step in sorted(timed, key=itemgetter(0))]
