"""The backend of ``TASKS``. It can be created before the apps are loaded."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.db import DEFAULT_DB_ALIAS

from django_cqrs.outbox.tasks.djangos import (
    BaseTaskBackend,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
)
from django_cqrs.retries import Retry


class OutboxTaskBackend(BaseTaskBackend):
    """
    Stores tasks as messages of the outbox, which ``manage.py cqrs_worker`` handles.

    A task is stored in the transaction in which it is enqueued. A queue is a channel:
    that of the same name, or the one in ``OPTIONS["channel"]``.

    ``OPTIONS``: ``"channel"``, the alias of the channel of all queues; ``"retry"``, the
    :class:`~django_cqrs.Retry` of the tasks; ``"atomic"``, False to call them outside
    the transaction that settles their messages; ``"using"``, the alias of the database
    that stores them.
    """

    supports_async_task = True
    supports_defer = True
    supports_get_result = True
    supports_priority = True

    known_options: ClassVar[tuple[str, ...]] = ("channel", "retry", "atomic", "using")

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        """
        Read the options.

        Args:
            alias: the key in ``TASKS``.
            params: its value.

        Raises:
            InvalidTaskBackend: an option is unknown, or its value is invalid.

        """
        super().__init__(alias, params)
        options = self.options
        unknown = sorted(map(repr, set(options) - set(self.known_options)))
        if unknown:
            known = ", ".join(map(repr, self.known_options))
            raise self._invalid(f"has no option {', '.join(unknown)}: only {known}")
        if ":" in alias:
            raise self._invalid("has a colon in its alias: choose one without")
        self.retry: Retry | None = options.get("retry")
        self.atomic: bool = options.get("atomic", True)
        self.using: str = options.get("using", DEFAULT_DB_ALIAS)
        self._channel: str | None = options.get("channel")
        if self.retry is not None and not isinstance(self.retry, Retry):
            raise self._invalid(
                f"has the option 'retry' {self.retry!r}: give a Retry(...)"
            )
        if not isinstance(self.atomic, bool):
            raise self._invalid(
                f"has the option 'atomic' {self.atomic!r}: give True or False"
            )
        if not isinstance(self.using, str) or self.using not in settings.DATABASES:
            raise self._invalid(
                f"has the option 'using' {self.using!r}: give an alias of DATABASES"
            )
        if self._channel is not None and not isinstance(self._channel, str):
            raise self._invalid(
                f"has the option 'channel' {self._channel!r}: give the alias of a "
                "channel"
            )

    def _invalid(self, fault: str) -> Exception:
        error: Exception = InvalidTaskBackend(
            f"The task backend {self.alias!r} {fault}."
        )
        return error

    def channel_of(self, queue_name: str) -> str:
        """Return the alias of the channel that stores the tasks of a queue."""
        return queue_name if self._channel is None else self._channel

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """
        Store a call of a task, in the open transaction if there is one.

        Args:
            task: the task.
            args: its positional arguments, which have a JSON form.
            kwargs: its keyword arguments, likewise.

        Returns:
            The result, whose ``id`` is the id of the message.

        Raises:
            django.tasks.exceptions.InvalidTask: the backend cannot run the task, or a
                worker cannot import it.
            InvalidChannel: the queue has no channel.
            TypeError: an argument has a type without a JSON form; nothing was stored.
            ValueError: an argument has a value without one.

        """
        # Modules with tasks are imported before the models are.
        from django_cqrs.outbox.tasks.storing import store

        self.validate_task(task)
        return store(self, task, list(args), dict(kwargs))

    def get_result(self, result_id: str) -> Any:
        """
        Return the present result of a task.

        Args:
            result_id: the ``id`` of the result that ``enqueue()`` returned.

        Returns:
            The result. It is ``RUNNING`` while a worker has claimed the task.

        Raises:
            django.tasks.exceptions.TaskResultDoesNotExist: no task has this id,
                or its result is no longer kept.
            ImportError: the task can no longer be imported.

        """
        from django_cqrs.outbox.tasks.results import result_of

        try:
            key = uuid.UUID(str(result_id))
        except ValueError:
            raise TaskResultDoesNotExist(result_id) from None
        return result_of(key, self.using)

    def check(self, **kwargs: Any) -> Iterable[CheckMessage]:
        """Report queues without an outbox, and an outbox that is not installed."""
        yield from super().check(**kwargs)
        if not apps.is_installed("django_cqrs.outbox"):
            yield Error(
                f"The task backend {self.alias!r} needs the outbox's tables.",
                hint="Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate.",
                id="django_cqrs_outbox.E004",
            )
        queues = sorted(self.queues)
        if self._channel is not None:
            queues = queues[:1] or [""]
        for queue in queues:
            alias = self.channel_of(queue)
            fault = _fault_of(alias)
            if fault:
                which = "" if self._channel is not None else f" for the queue {queue!r}"
                yield Error(
                    f"The task backend {self.alias!r} has no channel{which}: {fault}",
                    hint="A queue is a channel of its name, or the one in "
                    f'OPTIONS["channel"]. Add {alias!r} to DJANGO_CQRS["CHANNELS"], '
                    "with the BACKEND django_cqrs.outbox.channel.OutboxChannel.",
                    id="django_cqrs_outbox.E005",
                )


def _fault_of(alias: str) -> str:
    """Return why the channel of an alias cannot take tasks; empty if it can."""
    from django_cqrs.channels.aliases import channels
    from django_cqrs.exceptions import InvalidChannel
    from django_cqrs.outbox.channel import OutboxChannel

    try:
        channel = channels[alias]
    except InvalidChannel as error:
        return str(error)
    if isinstance(channel, OutboxChannel) or channel.is_immediate:  # that is for tests
        return ""
    return f"{channel!r} is not an outbox, so no result is kept."
