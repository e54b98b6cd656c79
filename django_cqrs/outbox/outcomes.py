"""The outcome of a message, read from the tables and the journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, models
from django.utils.translation import gettext_lazy as _

from django_cqrs import clock
from django_cqrs.buses.receipts import Receipt
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.models import (
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    Outcome,
    State,
)
from django_cqrs.outbox.redaction import redact_list
from django_cqrs.outbox.store.dialects import lacks_table
from django_cqrs.sync import in_thread, twin_of
from django_cqrs.times import as_sent


class MessageStatus(models.TextChoices):
    """The possible outcomes of a message."""

    WAITING = "waiting", _("waiting")
    DELAYED = "delayed", _("delayed")
    FAILED = "failed", _("failed")
    HANDLED = "handled", _("handled")
    DEAD = "dead", _("dead")
    DROPPED = "dropped", _("dropped")
    UNKNOWN = "unknown", _("unknown")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MessageOutcome:
    """The outcome of a message, as far as it is known."""

    message_id: UUID
    status: MessageStatus
    endpoint: str = ""
    """The name of the endpoint; empty if the message is unknown."""
    channel: str | None = None
    """The alias of its channel; None if it was called directly, or is unknown."""
    attempts: int = 0
    """The number of attempts so far."""
    at: datetime | None = None
    """The time at which it was sent, if it waits; otherwise of its last attempt."""
    next_attempt_at: datetime | None = None
    """The time before which it is not tried, if it waits for one."""
    exception: str = ""
    """The dotted path of the last exception, if it is known."""
    error: str = ""
    """The last error in one line, without sensitive data."""

    @property
    def is_final(self) -> bool:
        """Whether it stays so, unless an operator replays a dead letter."""
        return self.status in _FINAL


_FINAL: Final = (MessageStatus.HANDLED, MessageStatus.DEAD, MessageStatus.DROPPED)

# Of an event with several handlers: the status of the one that needs most attention.
_URGENCY: Final = (
    MessageStatus.DEAD,
    MessageStatus.FAILED,
    MessageStatus.WAITING,
    MessageStatus.DELAYED,
    MessageStatus.DROPPED,
    MessageStatus.HANDLED,
)

_LOOKED: Final = 1_000
"""The maximum number of rows read of a table: an event has as many handlers."""


def outcome_of(
    receipt: Receipt | UUID | str, *, using: str | None = None
) -> MessageOutcome:
    """
    Return the outcome of a message, by a few look-ups in indexes.

    Handled messages have no row: only the journal knows of them, for as long as
    ``JOURNAL`` says. Without it, a message that was handled or dropped is unknown.

    Args:
        receipt: the receipt of a command, or the id of any message. An event with
            several handlers has the status of the one that needs most attention.
        using: the alias of the database that stores it; by default the receipt's, or
            for an id ``"default"``.

    Raises:
        InvalidOption: it is neither a receipt nor an id, or the database is unknown or
            has no outbox tables.

    """
    if isinstance(receipt, Receipt) and not receipt.is_sent:
        return MessageOutcome(
            message_id=receipt.message_id,
            status=MessageStatus.DROPPED,
            endpoint=receipt.endpoint,
            channel=receipt.channel,
        )
    message_id = _id_of(receipt)
    alias = using
    if alias is None:
        alias = receipt.using if isinstance(receipt, Receipt) else DEFAULT_DB_ALIAS
    if alias not in connections:
        msg = (
            f"There is no database {alias!r} in DATABASES, so nothing is known of the "
            f"message {message_id}. Is it a receipt of another project?"
        )
        raise InvalidOption(msg)
    try:
        return _outcome(message_id, alias)
    except DatabaseError as error:
        if not lacks_table(error):
            raise
        msg = (
            f"The database {alias!r} has no outbox tables, so nothing is known of the "
            f"message {message_id}. Run manage.py migrate --database={alias}, or give "
            "using= the database that stores it."
        )
        raise InvalidOption(msg) from error


@twin_of(outcome_of)
async def aoutcome_of(
    receipt: Receipt | UUID | str, *, using: str | None = None
) -> MessageOutcome:
    """Do the same as :func:`outcome_of`, in one hop to the database's thread."""
    __traceback_hide__ = True
    found: MessageOutcome = await in_thread(outcome_of)(receipt, using=using)
    return found


def statuses_of(
    message_ids: Collection[UUID], *, using: str
) -> dict[UUID, MessageStatus]:
    """
    Return the statuses of many messages, by three statements for each thousand.

    Args:
        message_ids: their ids.
        using: the alias of the database that stores them.

    Returns:
        The statuses, without those of unknown messages.

    """
    found: dict[UUID, list[MessageStatus]] = {}
    ids = list(message_ids)
    for start in range(0, len(ids), _LOOKED):
        some = ids[start : start + _LOOKED]
        _add_statuses(found, some, using)
    return {
        message_id: min(statuses, key=_URGENCY.index)
        for message_id, statuses in found.items()
    }


def _add_statuses(
    found: dict[UUID, list[MessageStatus]], ids: Collection[UUID], using: str
) -> None:
    def rows_of(model: type[Any]) -> Any:
        return model.objects.using(using).filter(message_id__in=ids)

    for row in rows_of(OutboxMessage).defer("payload", "headers"):
        found.setdefault(row.message_id, []).append(_of_waiting(row).status)
    for message_id in rows_of(DeadLetter).values_list("message_id", flat=True):
        found.setdefault(message_id, []).append(MessageStatus.DEAD)
    known = set(found)
    last: dict[tuple[UUID, str], MessageStatus] = {}
    for entry in rows_of(JournalEntry).order_by("at", "pk"):
        if entry.message_id not in known:
            last[entry.message_id, entry.endpoint] = _of_entry(entry).status
    for (message_id, _endpoint), status in last.items():
        found.setdefault(message_id, []).append(status)


def _id_of(receipt: Receipt | UUID | str) -> UUID:
    if isinstance(receipt, Receipt):
        return receipt.message_id
    if isinstance(receipt, UUID):
        return receipt
    try:
        return UUID(receipt)
    except (ValueError, AttributeError, TypeError):
        msg = (
            "outcome_of() takes a receipt of command_bus.send(), or the id of a "
            f"message, not {receipt!r:.100}."
        )
        raise InvalidOption(msg) from None


def _outcome(message_id: UUID, using: str) -> MessageOutcome:
    """Return the most urgent outcome among a message's rows."""
    # Its last row goes from the outbox to the dead letters, and perhaps back.
    found = (
        _waiting(message_id, using)
        or _dead(message_id, using)
        or _journalled(message_id, using)
    )
    if all(each.status is MessageStatus.DROPPED for each in found):
        found = _waiting(message_id, using) or _dead(message_id, using) or found
    if not found:
        return MessageOutcome(message_id=message_id, status=MessageStatus.UNKNOWN)
    return min(found, key=lambda each: _URGENCY.index(each.status))


def _rows_of(model: type[Any], message_id: UUID, using: str) -> Any:
    return model.objects.using(using).filter(message_id=message_id)


def _waiting(message_id: UUID, using: str) -> list[MessageOutcome]:
    rows = _rows_of(OutboxMessage, message_id, using).defer("payload", "headers")
    return [_of_waiting(row) for row in rows[:_LOOKED]]


def _of_waiting(row: OutboxMessage) -> MessageOutcome:
    due = row.available_at if row.state == State.DELAYED else None
    status = MessageStatus.WAITING
    if row.last_error is not None:
        status = MessageStatus.FAILED
    elif due is not None and as_sent(due) > clock.now():
        status = MessageStatus.DELAYED
    return MessageOutcome(
        message_id=row.message_id,
        status=status,
        endpoint=row.endpoint,
        channel=row.channel,
        attempts=row.attempts,
        at=row.sent_at,
        next_attempt_at=due,
        error=row.last_error or "",
    )


def _dead(message_id: UUID, using: str) -> list[MessageOutcome]:
    rows = _rows_of(DeadLetter, message_id, using)
    rows = rows.defer("payload", "headers", "traceback")
    letters = list(rows[:_LOOKED])
    seen = redact_list(letters, using=using) if letters else {}
    return [_of_dead(letter, seen[letter.pk].error_of(letter)) for letter in letters]


def _of_dead(letter: DeadLetter, error: str) -> MessageOutcome:
    return MessageOutcome(
        message_id=letter.message_id,
        status=MessageStatus.DEAD,
        endpoint=letter.endpoint,
        channel=letter.channel,
        attempts=letter.attempts,
        at=letter.failed_at,
        exception=letter.exception,
        error=_line(letter.exception, error),
    )


def _journalled(message_id: UUID, using: str) -> list[MessageOutcome]:
    """Return the last outcome at each endpoint that the journal knows."""
    rows = _rows_of(JournalEntry, message_id, using).order_by("-at", "-pk")
    last: dict[str, JournalEntry] = {}
    for entry in rows[:_LOOKED]:
        known = last.setdefault(entry.endpoint, entry)
        if entry.outcome == Outcome.HANDLED and known.outcome != Outcome.HANDLED:
            last[entry.endpoint] = entry
    return [_of_entry(entry) for entry in last.values()]


def _of_entry(entry: JournalEntry) -> MessageOutcome:
    status = MessageStatus.DROPPED
    if entry.outcome == Outcome.HANDLED:
        status = MessageStatus.HANDLED
    elif entry.outcome == Outcome.FAILED and entry.channel is None:
        status = MessageStatus.FAILED  # its caller got the exception
    return MessageOutcome(
        message_id=entry.message_id,
        status=status,
        endpoint=entry.endpoint,
        channel=entry.channel,
        attempts=entry.attempts,
        at=entry.at,
        exception=entry.exception,
        error=_line(entry.exception, entry.error),
    )


def _line(exception: str, error: str) -> str:
    """Return an error as a waiting message has it: with the name of its class."""
    lines = error.strip().splitlines()[:1]
    return ": ".join([exception.rpartition(".")[2], *lines]) if exception else ""
