"""Any backend of ``django.tasks`` as the engine of a channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

from django.core.checks import CheckMessage, Error
from django.db import DEFAULT_DB_ALIAS

from django_cqrs.channels.aliases import channels
from django_cqrs.engines.base import EngineChannel, handle
from django_cqrs.outbox.tasks.djangos import make_task

TASK: Final = "handle_messages"


def _handle(keys: list[int], using: str = DEFAULT_DB_ALIAS) -> None:
    """Handle the messages of rows, in the backend's worker."""
    handle(keys, using)


# A worker imports the task by its function's path, so the task must be there.
_handle.__name__ = _handle.__qualname__ = TASK


class TasksChannel(EngineChannel):
    """
    Stores messages as the outbox does, and lets a backend of ``TASKS`` handle them.

    ``manage.py cqrs_worker ALIAS`` forwards them, the backend's worker handles them.

    ``OPTIONS``, beside those of :class:`~django_cqrs.engines.base.EngineChannel`:
    ``"backend"``, the alias in ``TASKS``, and ``"queue"``, one of that backend's
    queues; both are ``"default"`` by default.
    """

    known_options: ClassVar[tuple[str, ...]] = (
        *EngineChannel.known_options,
        "backend",
        "queue",
    )

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """Read the options."""
        super().__init__(alias, options)
        self.backend = options.get("backend", "default")
        self.queue = options.get("queue", "default")
        self._task: Any = None

    @property
    def task(self) -> Any:
        """
        The task, for the channel's backend and queue.

        Raises:
            Exception: the backend or the queue does not exist.

        """
        if self._task is None:
            make = make_task(backend=self.backend, queue_name=self.queue)
            self._task = make(_handle)
        return self._task

    def send(self, batches: Sequence[Sequence[int]], using: str) -> None:
        """Enqueue a task for each batch of ids."""
        for batch in batches:
            self.task.enqueue(list(batch), using)

    def check(self) -> Iterable[CheckMessage]:
        """Report a backend or a queue that does not exist."""
        yield from super().check()
        try:
            _ = self.task
        except Exception as error:  # noqa: BLE001 - whatever a backend raises
            yield Error(
                f"The channel {self.alias!r} has no task in the backend "
                f"{self.backend!r}: {error}",
                hint='Name an alias of TASKS, and one of its QUEUES: "OPTIONS": '
                '{"backend": "default", "queue": "mail"}.',
                id="django_cqrs_engines.E002",
            )


def __getattr__(name: str) -> Any:
    """
    Return the task under the path by which workers import it.

    It is created on access, since a task must name an existing backend and queue, and
    only the settings define them.
    """
    if name == TASK:
        for alias in channels:
            channel = channels[alias]
            if isinstance(channel, TasksChannel):
                return channel.task
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
