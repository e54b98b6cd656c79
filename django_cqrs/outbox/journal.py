"""The journal: the outcomes of messages, kept as long as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any, Final

from django.apps import apps
from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs import conf
from django_cqrs.active_tenant import default_alias
from django_cqrs.buses.registries import Registry
from django_cqrs.channels.channel import Envelope, as_timedelta
from django_cqrs.clock import now
from django_cqrs.declaration.declarations import Kind
from django_cqrs.logged_errors import described
from django_cqrs.messages import Message, current, handling_of, name_run, scope_of
from django_cqrs.outbox.models import (
    MOST_ATTEMPTS,
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    Outcome,
)
from django_cqrs.outbox.redaction import NOT_SHOWN, redact, redactor_for
from django_cqrs.outbox.store.batches import SIZE, delete_in_batches
from django_cqrs.pipeline.observation import (
    Step,
    add_observer,
    add_transaction_observer,
    label_of,
)
from django_cqrs.pipeline.scopes import send
from django_cqrs.pipeline.stages import is_broken, is_inside_transaction
from django_cqrs.pipeline.tenancy import tenant_in, tenant_of
from django_cqrs.routing.endpoint import JoinPoint, Run

logger: Final = logging.getLogger("django_cqrs.journal")

# None of a row's five texts exceeds 255 characters: a statement has 3 MB at most.
_ROWS: Final = 500

MOST_HELD: Final = 1000
"""The maximum number of failures held until their transaction has ended."""

# A cancelled task in an async handler is not a request to end the process.
_FAILURES = (Exception, asyncio.CancelledError)


def is_kept() -> bool:
    """Return whether the settings ask for a journal, and its table exists."""
    return conf.current().JOURNAL is not None and apps.is_installed(
        "django_cqrs.outbox"
    )


def watch() -> None:
    """Observe the handling of messages; calling it again changes nothing."""
    add_observer(_observe)
    add_transaction_observer(_record_inside)


class Note:
    """Notes on the handling of a message at one endpoint."""

    __slots__ = (
        "at",
        "attempts",
        "channel",
        "connection",
        "duration",
        "endpoint",
        "is_workers",
        "kind",
        "name",
        "ran",
        "start",
        "subject",
    )

    def __init__(self, *, is_workers: bool = False) -> None:
        """
        Start an empty note.

        Args:
            is_workers: whether a worker writes it down together with the settlement.

        """
        self.is_workers = is_workers
        self.at: datetime = now()
        self.attempts = 0
        self.channel: str | None = None
        self.connection: BaseDatabaseWrapper | None = None
        self.duration: int | None = None
        self.endpoint = self.kind = self.name = self.ran = self.subject = ""

    def begin(self, kind: str, name: str, endpoint: str, channel: str | None) -> None:
        """Take the names of the message and its endpoint, and start the time."""
        self.kind, self.name, self.endpoint = kind, name, endpoint
        self.channel = channel
        self.at = now()
        self.start: float = perf_counter()

    def end(self) -> None:
        """Stop the time."""
        self.duration = int((perf_counter() - self.start) * 1_000_000)

    def entry_of(
        self, message: Message, outcome: Outcome, **failure: str
    ) -> JournalEntry:
        """Return the entry of a message in memory, with its failure in `failure`."""
        return JournalEntry(
            at=self.at,
            message_id=message.message_id,
            correlation_id=message.correlation_id,
            causation_id=message.causation_id,
            kind=self.kind,
            name=self.name[:255],
            endpoint=(self.ran or self.endpoint)[:255],
            channel=self.channel,
            subject=self.subject,
            outcome=outcome,
            attempts=max(self.attempts, 1),
            duration=self.duration,
            tenant=tenant_in(message._user),
            **failure,
        )

    def entry_of_stored(
        self,
        envelope: Envelope,
        channel: str,
        outcome: Outcome,
        *,
        attempts: int,
        **failure: str,
    ) -> JournalEntry:
        """Return the entry of a message that waited in a channel."""
        return JournalEntry(
            at=self.at,
            message_id=envelope.message_id,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            kind=self.kind,
            name=(self.name or envelope.name)[:255],
            endpoint=(self.ran or envelope.endpoint)[:255],
            channel=channel,
            subject=envelope.subject or self.subject,
            outcome=outcome,
            attempts=min(attempts, MOST_ATTEMPTS),
            duration=self.duration,
            tenant=tenant_of(envelope),
            **failure,
        )


def cancelled(row: OutboxMessage) -> JournalEntry:
    """Return the entry of a timer that is cancelled, since its object has ended."""
    return JournalEntry(
        at=now(),
        message_id=row.message_id,
        correlation_id=row.correlation_id,
        causation_id=row.causation_id,
        name=row.name,
        endpoint=row.endpoint,
        channel=row.channel,
        subject=row.subject,
        outcome=Outcome.CANCELLED,
        attempts=row.attempts,
        tenant=row.tenant,
    )


def skipped(envelope: Envelope, channel: str) -> JournalEntry:
    """Return the entry of a command that a schedule did not send."""
    note = Note()
    note.kind = str(Kind.COMMAND)
    return note.entry_of_stored(envelope, channel, Outcome.SKIPPED, attempts=0)


_MASKED: Final = "_cqrs_masked"


def failure_of(
    error: BaseException, redactor: Callable[[], Callable[[str], str]]
) -> dict[str, str]:
    """
    Return the journal's texts about an exception.

    A text masked here stays masked on its way out, through the messages that caused the
    failed one.

    Args:
        error: the exception.
        redactor: returns a function that masks sensitive data in its text.

    """
    before = getattr(error, _MASKED, None) or described(error)
    try:
        text = redactor()(before)
    except Exception:  # noqa: BLE001 - of somebody's converter; the error goes its way
        text = NOT_SHOWN
    if text != before:
        with contextlib.suppress(AttributeError):  # the class is frozen
            setattr(error, _MASKED, text)
    lines = text.strip().splitlines() or [""]
    return {"exception": path_of_error(error)[:255], "error": lines[0][:255]}


def failure_of_stored(
    error: BaseException, envelope: Envelope, reason: str, registry: Registry
) -> dict[str, str]:
    """
    Return the journal's texts about the failure of a message that waited.

    Args:
        error: the exception.
        envelope: the message's envelope.
        reason: the reason for which it would be a dead letter.
        registry: the registry with its handlers.

    """

    def redactor() -> Callable[[str], str]:
        return redactor_of_stored(envelope, reason, registry) or str

    return failure_of(error, redactor)


def redactor_of_stored(
    envelope: Envelope, reason: str, registry: Registry
) -> Callable[[str], str] | None:
    """
    Return a function that masks a stored message's sensitive data in error texts.

    Args:
        envelope: the message's envelope.
        reason: the reason for which it would be a dead letter.
        registry: the registry with its handlers.

    Returns:
        None if nothing in it is sensitive.

    """
    letter = DeadLetter(
        endpoint=envelope.endpoint,
        name=envelope.name,
        version=envelope.version,
        payload=envelope.payload,
        headers=envelope.headers,
        reason=reason,
    )
    seen = redact(letter, registry)
    if not seen.reason and seen.redact is str:
        return None

    def redacted(text: str) -> str:
        letter.error = text
        return seen.error_of(letter)

    return redacted


def _observe(run: Run, point: JoinPoint, step: Step) -> Run:
    """Note the start and end of the handling, and its failure."""
    endpoint = point.endpoint
    if step is Step.SEND or endpoint.kind is Kind.QUERY or not is_kept():
        return run
    is_consumed = step is Step.CONSUME
    channel = endpoint.channel if is_consumed else None
    what = str(endpoint.kind), label_of(point), endpoint.name, channel

    def run_noted(message: Message) -> Any:
        # A worker's own note for a message exists already.
        note = handling_of(message).note if is_consumed else None
        if note is None:
            note = message.handling.note = Note()
        note.begin(*what)
        try:
            result = run(message)
        except _FAILURES as error:
            note.end()
            note.ran = name_run(message, "")
            if not note.is_workers:
                connection = note.connection or _connection_of(message, point)
                redactor = partial(redactor_for, endpoint, message.payload)
                failure = failure_of(error, redactor)
                _defer(connection, note.entry_of(message, Outcome.FAILED, **failure))
                flush(connection)
            raise
        note.end()
        note.ran = name_run(message, "")
        if not note.is_workers and note.connection is not None:
            flush(note.connection)
        return result

    return run_noted


def _record_inside(run: Run, point: JoinPoint, alias: str) -> Run:
    """Note each attempt, and write a success down in its transaction."""
    endpoint = point.endpoint
    if endpoint.kind is Kind.QUERY or not is_kept():
        return run
    subject, cls = endpoint.subject, point.payload_type
    subject_of = None
    if subject is not None and cls is not None:
        subject_of = subject.address(endpoint, cls)

    def run_attended(message: Message) -> Any:
        note: Note | None = handling_of(message).note
        if note is None:
            return run(message)
        scope = scope_of(message)
        connection = connections[alias] if scope is None else scope.connection
        note.connection = connection
        note.attempts += 1
        if subject_of is not None:
            with contextlib.suppress(Exception):  # the handler reports it
                note.subject = subject_of(message)
        result = run(message)
        if note.is_workers or (connection.in_atomic_block and is_broken(connection)):
            return result
        note.end()
        note.ran = name_run(message, "")
        entry = note.entry_of(message, Outcome.HANDLED)
        if connection.in_atomic_block:
            send(scope, connection, _table, entry)
        else:
            _write_alone(connection, [entry])
        return result

    return run_attended


def _connection_of(message: Message, point: JoinPoint) -> BaseDatabaseWrapper:
    """Return the connection whose transaction would have handled a message."""
    scope = scope_of(message)
    if scope is not None:
        connection: BaseDatabaseWrapper = scope.connection
        return connection
    alias = message.using
    with contextlib.suppress(Exception):  # errors of a router
        alias = alias or point.endpoint.alias
    return connections[alias or default_alias()]


class _EntrySink:
    """The sink of entries that wait in a bus scope beside the messages sent there."""

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[JournalEntry]
    ) -> None:
        """Insert entries in one statement, if their database has the table."""
        using = connection.alias
        if router.allow_migrate_model(using, JournalEntry):
            JournalEntry.objects.using(using).bulk_create(entries, batch_size=_ROWS)

    write_last = write


_table: Final = _EntrySink()


def write(using: str, entries: Sequence[JournalEntry]) -> None:
    """Write entries in the open transaction."""
    if entries:
        _table.write(connections[using], entries)


def _write_alone(
    connection: BaseDatabaseWrapper, entries: Sequence[JournalEntry]
) -> None:
    """Write entries that no transaction depends on; a failure is only logged."""
    try:
        _table.write(connection, entries)
    except Error:
        logger.warning("%d entries were not written", len(entries), exc_info=True)


_HELD: Final = "_cqrs_journal"


class _Held:
    """Failures inside a transaction, held until it has ended one way or the other."""

    __slots__ = ("block", "entries")

    def __init__(self, block: Any, entries: list[JournalEntry]) -> None:
        """Start with the outermost ``atomic()`` of the connection."""
        self.block = block
        self.entries = entries

    @property
    def is_of_test(self) -> bool:
        """Whether the transaction is a test case's, which ends with the test."""
        return bool(getattr(self.block, "_from_testcase", False))


def _defer(connection: BaseDatabaseWrapper, entry: JournalEntry) -> None:
    """Hold an entry until :func:`flush`, or the end of the transaction."""
    blocks: Any = getattr(connection, "atomic_blocks", ())
    block = blocks[0] if blocks else None
    held: _Held | None = getattr(connection, _HELD, None)
    if held is None or held.block is not block:
        before = [] if held is None or held.is_of_test else held.entries
        held = _Held(block, before)
        setattr(connection, _HELD, held)
        if block is not None and not held.is_of_test:
            _flush_after_transaction(connection)
    if len(held.entries) < MOST_HELD:
        held.entries.append(entry)


def flush(connection: BaseDatabaseWrapper) -> None:
    """Write the held entries, unless an open transaction could still undo them."""
    held: _Held | None = getattr(connection, _HELD, None)
    if held is None or is_inside_transaction(connection):
        return
    delattr(connection, _HELD)
    blocks: Any = getattr(connection, "atomic_blocks", ())
    if held.is_of_test and held.block not in blocks:
        return  # their test has ended
    _write_alone(connection, held.entries)


def _flush_after_transaction(connection: Any) -> None:
    """
    Call :func:`flush` when the open transaction has ended.

    ``on_commit`` ignores rollbacks; after both, Django turns autocommit on.
    """
    if "set_autocommit" in vars(connection):  # left by an earlier transaction
        return

    def set_autocommit(autocommit: bool, *args: Any, **kwargs: Any) -> None:
        try:
            type(connection).set_autocommit(connection, autocommit, *args, **kwargs)
        finally:
            if autocommit and vars(connection).get("set_autocommit") is set_autocommit:
                del connection.set_autocommit
                if not _will_let_out(connection):
                    flush(connection)

    connection.set_autocommit = set_autocommit


def _will_let_out(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the current handling will flush, with its own failure."""
    note: Note | None = handling_of(current.get()).note
    return note is not None and note.connection is connection and not note.is_workers


def kept_time() -> timedelta:
    """Return the time for which entries are kept: zero if the journal is off."""
    span = conf.current().JOURNAL
    return timedelta(0) if span is None else as_timedelta(span, "JOURNAL")


def purge(
    using: str,
    *,
    before: datetime | None = None,
    size: int = SIZE,
    batches: int | None = None,
) -> int:
    """
    Delete expired entries, each batch in a statement of its own.

    Args:
        using: the alias of the database.
        before: delete entries of messages handled before that time; by default those
            older than ``JOURNAL`` says, and all if it is off.
        size: the number of entries in a batch.
        batches: the maximum number of batches; None means no limit.

    Returns:
        The number of deleted entries.

    """
    if before is None:
        try:
            before = now() - kept_time()
        except OverflowError:  # no entry is that old
            return 0
    old = JournalEntry.objects.using(using).filter(at__lt=before)
    return delete_in_batches(old, by="at", size=size, batches=batches)


LONGEST: Final = {"error": 2**14, "traceback": 2**16}
"""The maximum number of characters kept of an exception's texts."""


def shortened(text: str, longest: int) -> str:
    """Return a text; of a long one its beginning, its end and its length."""
    if len(text) <= longest:
        return text
    end = longest // 4
    mark = f"\n[... {len(text):,} characters, of which {longest:,} are kept ...]\n"
    return f"{text[: longest - end]}{mark}{text[-end:]}"


def path_of_error(error: BaseException) -> str:
    """Return the dotted path of an exception's class."""
    return f"{type(error).__module__}.{type(error).__qualname__}"
