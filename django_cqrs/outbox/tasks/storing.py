"""Store calls of tasks as messages of the outbox."""

from __future__ import annotations

import dataclasses
import functools
from datetime import datetime
from typing import Any, Final

from django.db import connections

from django_cqrs.buses.registries import registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Channel, Delivery, Envelope, next_sequence
from django_cqrs.clock import now
from django_cqrs.exceptions import InvalidChannel, UnknownEndpoint
from django_cqrs.messages import Message, current, handling_of, scope_of
from django_cqrs.outbox.tasks.calls import TaskCall, payload_of, shown
from django_cqrs.outbox.tasks.djangos import (
    InvalidTask,
    TaskResult,
    TaskResultStatus,
    task_enqueued,
)
from django_cqrs.outbox.tasks.endpoints import endpoint_of
from django_cqrs.outbox.worker.tasks import endpoint_name
from django_cqrs.pipeline.envelopes import encode_headers, headers_of
from django_cqrs.pipeline.scopes import send
from django_cqrs.pipeline.tenancy import tenant_in
from django_cqrs.routing.endpoint import JoinPoint, Run
from django_cqrs.times import as_sent

_LONGEST_NAME: Final = 255


@dataclasses.dataclass(frozen=True, slots=True)
class _CallOptions:
    """The values that the message of a call is stored with."""

    name: str
    channel: Channel
    payload: bytes
    priority: int
    available_at: datetime | None
    using: str


def store(backend: Any, task: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """
    Store a call of a task, in the open transaction if there is one.

    Args:
        backend: the backend that the task was enqueued in.
        task: a valid task.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        The result, which is ready.

    Raises:
        InvalidTask: a worker cannot import it.
        InvalidChannel: its queue has no channel.
        TypeError: an argument has a type without a JSON form.
        ValueError: an argument has a value without one.

    """
    path = task.module_path
    name = endpoint_name(backend.alias, path)
    if len(name) > _LONGEST_NAME:
        msg = (
            f"The path of the task {path} is too long: with its backend it has "
            f"{len(name)} characters, and the outbox stores {_LONGEST_NAME}."
        )
        raise InvalidTask(msg)
    try:
        run = _run_for(backend, name)
    except UnknownEndpoint as error:
        raise InvalidTask(str(error)) from error
    channel = _channel_for(backend, task)
    run_after = task.run_after and as_sent(task.run_after)
    payload = payload_of(path, args, kwargs, task.queue_name, run_after)
    message = Message(None, current.get())
    message.handling.options = _CallOptions(
        name=name,
        channel=channel,
        payload=payload,
        priority=task.priority,
        available_at=run_after if run_after and run_after > now() else None,
        using=backend.using,
    )
    result = TaskResult(
        task=task,
        id=str(message.message_id),
        status=TaskResultStatus.READY,
        enqueued_at=shown(message.timestamp),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=backend.alias,
        errors=[],
        worker_ids=[],
    )
    run(message)
    task_enqueued.send(type(backend), task_result=result)
    return result


def _run_for(backend: Any, name: str) -> Run:
    """
    Return the run that stores the messages of a task, with its observers.

    Raises:
        UnknownEndpoint: a worker could not import the task.

    """
    bus: Any = registry.command_bus
    run: Run | None = bus._compiled.get((backend, name))
    if run is None:
        point = JoinPoint(endpoint_of(name), bus, TaskCall)
        run = registry.pipelines.sending(point, _put, alias_of=lambda _: backend.using)
        bus._compiled[backend, name] = run
    return run


def _put(message: Message) -> None:
    """Store a message, or hold it back until the end of the current command."""
    options: _CallOptions = handling_of(message).options
    envelope = Envelope(
        endpoint=options.name,
        name="",
        version=1,
        payload=options.payload,
        headers=encode_headers(headers_of(message)),
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        causation_id=message.causation_id,
        timestamp=message.timestamp,
        sequence=next_sequence(),
        available_at=options.available_at,
        priority=options.priority,
        tenant=tenant_in(message._user),
    )
    deliver = functools.partial(registry.deliver, using=options.using)
    delivery = Delivery(envelope, deliver)
    send(scope_of(message), connections[options.using], options.channel, delivery)


def _channel_for(backend: Any, task: Any) -> Channel:
    """
    Return the channel that stores a task.

    Raises:
        InvalidChannel: there is none.

    """
    alias = backend.channel_of(task.queue_name)
    try:
        return channels[alias]
    except InvalidChannel as error:
        msg = (
            f"The task {task.module_path} cannot be stored: the task backend "
            f"{backend.alias!r} has no channel for the queue {task.queue_name!r}. "
            f"{error}"
        )
        raise InvalidChannel(msg) from error
