"""Django's results of tasks, from the rows of the outbox."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django_cqrs.channels.channel import Envelope
from django_cqrs.exceptions import UnknownEndpoint
from django_cqrs.messages import current, scope_of
from django_cqrs.outbox.models import (
    OutboxMessage,
    State,
    StoredTaskResult,
    TaskStatus,
)
from django_cqrs.outbox.tasks.calls import errors_of, listed, shown
from django_cqrs.outbox.tasks.djangos import (
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_finished,
)
from django_cqrs.outbox.tasks.endpoints import task_of
from django_cqrs.outbox.worker.tasks import FinishedTask, is_task


def result_of(key: UUID, using: str) -> Any:
    """
    Return the present result of a task.

    Args:
        key: the id of its message.
        using: the alias of the database that stores it.

    Raises:
        TaskResultDoesNotExist: no task has this id.
        ImportError: the task can no longer be imported.

    """
    return _result_in_buffer(key) or _result_in_tables(key, using)


def _result_in_tables(key: UUID, using: str) -> Any:
    kept = StoredTaskResult.objects.using(using).filter(pk=key)
    waiting = OutboxMessage.objects.using(using).filter(message_id=key)
    # In this order: a message is replaced by a result in one transaction.
    row, message = kept.first(), waiting.first()
    if message is None and (row is None or row.finished_at is None):
        row = kept.first()
    if message is not None and is_task(message.endpoint):
        return _result_of_message(message, row)
    if row is None:
        raise TaskResultDoesNotExist(str(key))
    return _result_of_row(row)


def _result_in_buffer(key: UUID) -> Any:
    """Return the result of a task that the current command has yet to store."""
    scope = scope_of(current.get())
    while scope is not None:
        for _, entry in scope.buffer:
            envelope = entry.envelope
            if envelope.message_id == key and is_task(envelope.endpoint):
                return _result_of_envelope(envelope)
        scope = scope.parent
    return None


def _result(
    name: str, payload: bytes | memoryview[int], priority: int, **values: Any
) -> Any:
    """
    Return a result of a task.

    Raises:
        ImportError: the task cannot be imported.

    """
    try:
        holder = task_of(name)
    except UnknownEndpoint as error:
        raise ImportError(str(error)) from error
    call = _call_in(bytes(payload))
    return TaskResult(
        task=holder.task(
            priority, call.get("queue_name", "default"), call.get("run_after")
        ),
        args=call.get("args", []),
        kwargs=call.get("kwargs", {}),
        backend=holder.alias,
        **values,
    )


def _call_in(payload: bytes) -> dict[str, Any]:
    """Return the call in a payload, or nothing of one that somebody has damaged."""
    try:
        call = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return call if isinstance(call, dict) else {}


def _result_of_envelope(envelope: Envelope) -> Any:
    return _result(
        envelope.endpoint,
        envelope.payload,
        envelope.priority,
        id=str(envelope.message_id),
        status=TaskResultStatus.READY,
        enqueued_at=shown(envelope.timestamp),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        errors=[],
        worker_ids=[],
    )


def _result_of_message(message: OutboxMessage, row: StoredTaskResult | None) -> Any:
    """Return the result of a task whose message waits, or has been claimed."""
    is_running = message.state == State.CLAIMED
    return _result(
        message.endpoint,
        message.payload,
        message.priority,
        id=str(message.message_id),
        status=TaskResultStatus.RUNNING if is_running else TaskResultStatus.READY,
        enqueued_at=shown(message.sent_at),
        finished_at=None,
        **_attempts_of(row),
    )


def _attempts_of(row: StoredTaskResult | None) -> dict[str, Any]:
    """Return the values of a result about earlier attempts."""
    if row is None:
        return {
            "started_at": None,
            "last_attempted_at": None,
            "errors": [],
            "worker_ids": [],
        }
    return {
        "started_at": row.started_at and shown(row.started_at),
        "last_attempted_at": row.started_at and shown(row.last_attempted_at),
        "errors": errors_of(row),
        "worker_ids": listed(row.worker_ids),
    }


def _result_of_row(row: StoredTaskResult) -> Any:
    """Return the result of a task whose message is gone."""
    # One that was to be tried again, and deleted by hand, will never run.
    is_successful = row.status == TaskStatus.SUCCESSFUL
    result = _result(
        row.endpoint,
        row.payload,
        row.priority,
        id=str(row.pk),
        status=TaskResultStatus.SUCCESSFUL
        if is_successful
        else TaskResultStatus.FAILED,
        enqueued_at=shown(row.enqueued_at),
        finished_at=row.finished_at and shown(row.finished_at),
        **_attempts_of(row),
    )
    if row.return_value is not None:
        value = json.loads(bytes(row.return_value))
        object.__setattr__(result, "_return_value", value)
    return result


def send_finished(task: FinishedTask) -> None:
    """Send Django's signal about a task that a worker has finished."""
    try:
        holder = task_of(task.row.endpoint)
        result = _result_of_row(task.row)
    except (UnknownEndpoint, ImportError):
        return  # there is no task to speak of, and the worker's log says so
    sender = type(holder.backend)
    if task.error is None:
        task_finished.send_robust(sender, task_result=result)
        return
    # Receivers, such as Django's log, read the exception that is being handled.
    trace = task.error.__traceback__
    try:
        raise task.error
    except BaseException:  # noqa: BLE001 - that of the task, already settled
        task_finished.send_robust(sender, task_result=result)
    finally:
        task.error.__traceback__ = trace
