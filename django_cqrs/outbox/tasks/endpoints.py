"""Tasks as endpoints: imported by their paths, and called by a worker."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any, Final, Protocol, runtime_checkable

from django.apps import apps
from django.core.signals import setting_changed
from django.utils import timezone
from django.utils.module_loading import import_string

from django_cqrs.clock import now
from django_cqrs.declaration.declarations import Kind, Policies
from django_cqrs.exceptions import UnknownEndpoint
from django_cqrs.messages import Message, current
from django_cqrs.outbox.tasks.calls import (
    TaskCall,
    as_json,
    errors_of,
    fault_of,
    listed,
    shown,
)
from django_cqrs.outbox.tasks.djangos import (
    Task,
    TaskContext,
    TaskResult,
    TaskResultStatus,
    task_backends,
    task_finished,
    task_started,
)
from django_cqrs.outbox.worker.failures import as_final
from django_cqrs.outbox.worker.tasks import (
    TaskAttempt,
    TaskExited,
    attempt_at,
    parts_of_name,
)
from django_cqrs.parameters.planner import TAKES_PAYLOAD, plan_of
from django_cqrs.parameters.services import Services
from django_cqrs.retries import Retry
from django_cqrs.routing.endpoint import Endpoint


@runtime_checkable
class OutboxBackend(Protocol):
    """A backend that gives its tasks the policies of an outbox: not one of others."""

    retry: Retry | None
    atomic: bool

    def channel_of(self, queue_name: str) -> str:
        """Return the alias of the channel of a queue."""
        ...


def _takes(call: TaskCall) -> None:
    """Show the plan of parameters what every task's endpoint takes."""


class TaskHolder:
    """A task under the alias of a backend: called by a worker, shown in results."""

    def __init__(self, name: str) -> None:
        """
        Import the task of an endpoint.

        Raises:
            UnknownEndpoint: the name is not that of a task.

        """
        try:
            self.alias, self.path = parts_of_name(name)
            self.backend = task_backends[self.alias]
            self._task = import_string(self.path)
        except Exception as error:
            # A module that raises while it is imported is a fault of this deployment.
            msg = (
                f"The task {name!r} cannot be imported: {type(error).__name__}: "
                f"{error}. If it was moved, leave a task under its old path while "
                "messages wait."
            )
            raise UnknownEndpoint(msg) from error
        if not isinstance(self._task, Task):
            msg = (
                f"The task {name!r} cannot be called: {self.path} is not a task. "
                "Decorate it with @task."
            )
            raise UnknownEndpoint(msg)
        self._copies: dict[tuple[int, str], Any] = {}

    def task(self, priority: int, queue_name: str, run_after: str | None) -> Any:
        """Return the task with the options of one call, as it was enqueued."""
        if run_after is not None:
            moment = datetime.fromisoformat(run_after)
            return self._copy(priority, queue_name, shown(moment))
        key = priority, queue_name
        found = self._copies.get(key)
        if found is None:
            found = self._copies[key] = self._copy(*key, None)
        return found

    def _copy(self, priority: int, queue_name: str, run_after: Any) -> Any:
        # Not replace(), which validates: a queue may be gone while its tasks wait.
        values = {
            field.name: getattr(self._task, field.name)
            for field in dataclasses.fields(self._task)
        }
        values |= {
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": self.alias,
        }
        made = object.__new__(type(self._task))
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint that calls it."""
        backend = self.backend
        is_ours = isinstance(backend, OutboxBackend)
        function = self._task.func

        def run(call: TaskCall) -> None:
            self.run(call)

        # For errors and logs it has the place of the task.
        run.__module__, run.__qualname__ = function.__module__, function.__qualname__
        config = apps.get_containing_app_config(function.__module__)
        policies = Policies(
            name=name,
            channel=backend.channel_of(self._task.queue_name) if is_ours else True,
            retry=backend.retry if is_ours else None,
            atomic=None if not is_ours or backend.atomic else False,
        )
        return Endpoint(
            kind=Kind.COMMAND,
            name=name,
            app=config.label if config else None,
            function=run,
            owner=None,
            attribute=None,
            plan=_PLAN,
            keys=(),
            classes=(),
            policies=policies,
            own=policies,
            order=0,
            problems=(),
            is_declared=False,
        )

    def run(self, call: TaskCall) -> None:
        """
        Call the task, for a worker or for a channel that calls handlers itself.

        Raises:
            Exception: that of the task, unchanged.
            TypeError: its return value has no JSON form.
            ValueError: likewise.
            TaskExited: it called ``sys.exit()``.

        """
        message = current.get()
        assert isinstance(message, Message)  # noqa: S101 - it is being handled
        attempt = attempt_at(message.message_id)
        result = self._running(call, message, attempt)
        sender = type(self.backend)
        task_started.send_robust(sender, task_result=result)
        task = result.task
        context = (TaskContext(task_result=result),) if task.takes_context else ()
        try:
            value = task.call(*context, *result.args, **result.kwargs)
        except (SystemExit, GeneratorExit) as error:
            msg = f"The task {self.path} called for an exit."
            raise TaskExited(msg) from error
        text = self._returned(value)
        if attempt is not None:
            attempt.return_value, attempt.finished_at = text, now()
            return
        finished = {
            "status": TaskResultStatus.SUCCESSFUL,
            "finished_at": timezone.now(),
        }
        for name, each in {**finished, "_return_value": json.loads(text)}.items():
            object.__setattr__(result, name, each)
        task_finished.send_robust(sender, task_result=result)

    def _running(
        self, call: TaskCall, message: Message, attempt: TaskAttempt | None
    ) -> Any:
        """Return the result of a task that is about to be called."""
        moment = now()
        priority, earlier = self._task.priority, None
        worker_ids = [""]
        if attempt is not None:
            attempt.started_at = moment
            earlier = attempt.earlier()
            priority, worker_ids = attempt.envelope.priority, [attempt.worker_id]
        started_at = moment
        if earlier is not None:
            started_at = earlier.started_at or moment
            worker_ids = [*listed(earlier.worker_ids), *worker_ids]
        return TaskResult(
            task=self.task(priority, call.queue_name, call.run_after),
            id=str(message.message_id),
            status=TaskResultStatus.RUNNING,
            enqueued_at=shown(message.timestamp),
            started_at=shown(started_at),
            finished_at=None,
            last_attempted_at=shown(moment),
            args=call.args,
            kwargs=call.kwargs,
            backend=self.alias,
            errors=[] if earlier is None else errors_of(earlier),
            worker_ids=worker_ids,
        )

    def _returned(self, value: Any) -> bytes:
        """
        Return the JSON text of a return value.

        Raises:
            TypeError: it has no JSON form. No other attempt would change that, so the
                task fails.
            ValueError: likewise.

        """
        if value is None:
            return b"null"
        try:
            return as_json(value)
        except (TypeError, ValueError, RecursionError) as error:
            msg = (
                f"The return value of the task {self.path} has no JSON form: "
                f"{fault_of(error)}. Return text, numbers, True, False, None, or lists "
                "and dicts of these."
            )
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise as_final(kind(msg)) from error


_PLAN: Final = plan_of(_takes, Services(), payload=TAKES_PAYLOAD)

_tasks: dict[str, TaskHolder] = {}
_endpoints: dict[str, Endpoint] = {}


def task_of(name: str) -> TaskHolder:
    """
    Return the task of an endpoint's name.

    Raises:
        UnknownEndpoint: it cannot be imported.

    """
    found = _tasks.get(name)
    if found is None:
        found = _tasks[name] = TaskHolder(name)
    return found


def endpoint_of(name: str) -> Endpoint:
    """
    Return the endpoint of a task, by its name.

    Raises:
        UnknownEndpoint: the task cannot be imported.

    """
    found = _endpoints.get(name)
    if found is None:
        found = _endpoints[name] = task_of(name).endpoint(name)
    return found


def _forget(*, setting: str, **_kwargs: Any) -> None:
    if setting == "TASKS":
        _tasks.clear()
        _endpoints.clear()


setting_changed.connect(_forget, dispatch_uid="django_cqrs.tasks")


# Results ------------------------------------------------------------------------------
