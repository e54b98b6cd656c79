"""The tasks of ``TASKS`` among the messages: their attempts, and their results."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs import conf
from django_cqrs.channels.channel import Envelope, as_timedelta
from django_cqrs.clock import now
from django_cqrs.logged_errors import writable
from django_cqrs.outbox.journal import LONGEST, path_of_error, shortened
from django_cqrs.outbox.models import StoredTaskResult, TaskStatus
from django_cqrs.outbox.store.batches import delete_in_batches
from django_cqrs.outbox.store.rows import Claimed, adapters_of
from django_cqrs.outbox.worker.failures import Failure, FailureOutcome
from django_cqrs.pipeline.tenancy import tenant_of
from django_cqrs.statements import portions, written

TASKS: Final = "django.tasks"
"""The first part of the names of the endpoints that are tasks."""

_PREFIX: Final = f"{TASKS}:"

KEPT_ERRORS: Final = 20
"""The number of errors that the result of a task keeps, of the newest."""


def is_task(endpoint: str) -> bool:
    """Return whether the endpoint of a name is a task."""
    return endpoint.startswith(_PREFIX)


def endpoint_name(alias: str, path: str) -> str:
    """Return the name of the endpoint of a task, by its backend and its path."""
    return f"{_PREFIX}{alias}:{path}"


def parts_of_name(name: str) -> tuple[str, str]:
    """Return the alias of the backend and the path of the task in a name."""
    _, alias, path = name.split(":", 2)
    return alias, path


class TaskExited(Exception):
    """A task called ``sys.exit()``, which fails it and does not end the worker."""


def exited(error: BaseException) -> BaseException:
    """Return the exception of a task, also where it would have ended the worker."""
    if isinstance(error, TaskExited) and error.__cause__ is not None:
        return error.__cause__
    return error


@dataclasses.dataclass(slots=True)
class TaskAttempt:
    """One attempt of a worker at a task."""

    claimed: Claimed
    worker_id: str
    using: str
    """The alias of the database that holds its message."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    return_value: bytes | None = None
    """JSON text, once the task has returned."""

    @property
    def envelope(self) -> Envelope:
        """The envelope of its message."""
        return self.claimed.envelope

    def earlier(self) -> StoredTaskResult | None:
        """Return the row of earlier attempts, if there were any."""
        if not self.claimed.attempts:
            return None
        rows = StoredTaskResult.objects.using(self.using)
        return rows.filter(pk=self.envelope.message_id).first()


_current: ContextVar[TaskAttempt | None] = ContextVar("cqrs_task_attempt", default=None)


def attempt_at(message_id: UUID) -> TaskAttempt | None:
    """Return the worker's attempt at a task; None if no worker has called it."""
    attempt = _current.get()
    is_other = attempt is None or attempt.envelope.message_id != message_id
    return None if is_other else attempt


@dataclasses.dataclass(frozen=True, slots=True)
class FinishedTask:
    """A task that will not be tried again, and its exception if it failed."""

    row: StoredTaskResult
    error: BaseException | None


_watchers: list[Callable[[FinishedTask], None]] = []


def watch_tasks(watcher: Callable[[FinishedTask], None]) -> None:
    """Have a function called with each finished task, after its result's commit."""
    if watcher not in _watchers:
        _watchers.append(watcher)


class TaskOutcomes:
    """The attempts of one claim at tasks, and their results in the database."""

    def __init__(self, using: str) -> None:
        """Keep results in the database of an alias."""
        self._using = using
        self._worker_id = ""
        self._attempts: dict[int, TaskAttempt] = {}
        self.is_used = False
        """Whether there was any task."""

    def begin(self, owner: str) -> None:
        """Begin a claim, which has the worker's name and a number as its name."""
        self._worker_id = owner.rpartition(":")[0] or owner
        self._attempts.clear()

    def around(
        self, claimed: Claimed, handle: Callable[[], object]
    ) -> Callable[[], object]:
        """Return the call of a task that knows of its attempt."""
        attempt = TaskAttempt(claimed, self._worker_id, self._using)
        self._attempts[claimed.pk] = attempt

        def handle_task() -> object:
            _current.set(attempt)  # in the call's own context
            return handle()

        return handle_task

    def write(
        self, done: Iterable[Claimed], failures: Iterable[Failure]
    ) -> list[FinishedTask]:
        """
        Write the outcomes of tasks, in the transaction that settles their messages.

        Returns:
            The tasks that are now finished.

        """
        tried: list[tuple[Claimed, Failure | None]] = [
            (each, None) for each in done if is_task(each.envelope.endpoint)
        ]
        tried += [
            (each.claimed, each)
            for each in failures
            if each.outcome in _STATUSES and is_task(each.claimed.envelope.endpoint)
        ]
        if not tried:
            return []
        self.is_used = True
        earlier = StoredTaskResult.objects.using(self._using).in_bulk(
            [claimed.envelope.message_id for claimed, _ in tried]
        )
        new: list[StoredTaskResult] = []
        finished = []
        for claimed, failure in tried:
            before = earlier.get(claimed.envelope.message_id)
            row = self._row_of(claimed, failure, before)
            if before is None:
                new.append(row)
            else:
                row.save(using=self._using, force_update=True)
            if row.finished_at is not None:
                error = None if failure is None else exited(failure.error)
                finished.append(FinishedTask(row, error))
        if new:
            connection = connections[self._using]
            for part in portions(connection, new, _size_of, rows=_MOST_ROWS):
                _insert(connection, part)
        return finished

    def _row_of(
        self,
        claimed: Claimed,
        failure: Failure | None,
        before: StoredTaskResult | None,
    ) -> StoredTaskResult:
        """Return the row of a task after this attempt."""
        envelope, moment = claimed.envelope, now()
        attempt = self._attempts.get(claimed.pk)
        started_at = None if attempt is None else attempt.started_at
        row = before or StoredTaskResult(
            id=envelope.message_id,
            correlation_id=envelope.correlation_id,
            enqueued_at=envelope.timestamp,
            started_at=started_at,
            tenant=tenant_of(envelope),
        )
        row.channel, row.endpoint = claimed.channel, envelope.endpoint
        row.priority, row.payload = envelope.priority, envelope.payload
        row.last_attempted_at = started_at or moment
        row.started_at = row.started_at or started_at
        if started_at is not None:
            row.worker_ids = _with(row.worker_ids, self._worker_id)
        row.status = TaskStatus.SUCCESSFUL
        if failure is not None:
            row.status = _STATUSES[failure.outcome]
            row.errors = _with(row.errors, _described(failure), most=KEPT_ERRORS)
        elif attempt is not None:
            row.return_value = attempt.return_value
        row.finished_at = None
        if row.status != TaskStatus.READY:
            ended = None if attempt is None else attempt.finished_at
            row.finished_at = ended or moment
        return row

    def report(self, finished: Sequence[FinishedTask]) -> None:
        """Report finished tasks, once their results are committed."""
        for task in finished:
            for watch in _watchers:
                watch(task)

    def purge(self, *, batches: int) -> None:
        """Delete some of the results that have been kept long enough."""
        if self.is_used:
            old = expired(self._using)
            delete_in_batches(old, by="last_attempted_at", batches=batches)


_STATUSES: Final[Mapping[FailureOutcome, TaskStatus]] = {
    FailureOutcome.RETRY: TaskStatus.READY,
    FailureOutcome.DEAD: TaskStatus.FAILED,
    FailureOutcome.DROP: TaskStatus.FAILED,
}

_MOST_ROWS: Final = 200


# PostgreSQL takes a column as one array: many rows are fifteen parameters.
_ARRAYS: Final = {
    "id": "uuid",
    "correlation_id": "uuid",
    "channel": "text",
    "endpoint": "text",
    "priority": "integer",
    "payload": "bytea",
    "enqueued_at": "timestamptz",
    "status": "text",
    "started_at": "timestamptz",
    "last_attempted_at": "timestamptz",
    "finished_at": "timestamptz",
    "worker_ids": "bytea",
    "errors": "bytea",
    "return_value": "bytea",
    "tenant": "text",
}


def _insert(connection: BaseDatabaseWrapper, rows: Sequence[StoredTaskResult]) -> None:
    """Insert new rows by one statement."""
    if connection.vendor != "postgresql":
        StoredTaskResult.objects.using(connection.alias).bulk_create(rows)
        return
    _, as_bytes, as_time = adapters_of(connection)
    adapters = {
        "bytea": lambda value: None if value is None else as_bytes(value),
        "timestamptz": as_time,
    }
    values = []
    for name, kind in _ARRAYS.items():
        column = [getattr(row, name) for row in rows]
        adapt = adapters.get(kind)
        values.append(column if adapt is None else [adapt(each) for each in column])
    quote = connection.ops.quote_name
    arrays = ", ".join(f"%s::{kind}[]" for kind in _ARRAYS.values())
    statement = (
        f"INSERT INTO {quote(StoredTaskResult._meta.db_table)} "  # noqa: S608 - no value in it
        f"({', '.join(map(quote, _ARRAYS))}) SELECT * FROM unnest({arrays})"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def _size_of(row: StoredTaskResult) -> int:
    """Return the maximum number of bytes that a row takes in a statement."""
    return written(row.payload, row.errors, row.return_value or b"") + 4096


def _with(
    text: bytes | memoryview[int], value: Any, *, most: int | None = None
) -> bytes:
    """Return the JSON text of a list with another value, and only its newest ones."""
    values = [*json.loads(bytes(text)), value]
    return json.dumps(values if most is None else values[-most:]).encode()


def _described(failure: Failure) -> dict[str, str]:
    """Return the exception of a task as its result keeps it."""
    error = exited(failure.error)
    text = writable("".join(traceback.format_exception(error)))
    return {
        "exception_class_path": path_of_error(error),
        "traceback": shortened(text, LONGEST["traceback"]),
    }


def kept_time() -> timedelta:
    """Return the time for which the results of finished tasks are kept."""
    return as_timedelta(conf.current().TASK_RESULTS, "TASK_RESULTS")


def expired(using: str) -> Any:
    """Return the results that have been kept long enough; none has no time left."""
    rows = StoredTaskResult.objects.using(using)
    try:
        return rows.filter(last_attempted_at__lt=now() - kept_time())
    except OverflowError:  # no result is that old
        return rows.none()
