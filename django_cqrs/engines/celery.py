"""Celery as the engine of a channel: its workers handle the forwarded messages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Final

from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.utils.module_loading import import_string

from django_cqrs.engines.base import EngineChannel, handle

try:
    import celery
except ImportError as error:
    msg = f"{error}; pip install 'django-cqrs-kit[celery]' installs Celery"
    raise ImportError(msg) from error

TASK_NAME: Final = "django_cqrs.handle"


@celery.shared_task(name=TASK_NAME, ignore_result=True)
def handle_messages(keys: list[int], using: str = DEFAULT_DB_ALIAS) -> None:
    """Handle the messages of rows, in Celery's worker."""
    handle(keys, using)


class CeleryChannel(EngineChannel):
    """
    Stores messages as the outbox does, and lets Celery's workers handle them.

    ``manage.py cqrs_worker ALIAS`` forwards them, ``celery worker`` handles them.

    ``OPTIONS``, beside those of :class:`~django_cqrs.engines.base.EngineChannel`:
    ``"queue"``, the name of Celery's queue, by default from the app's routes;
    ``"app"``, the dotted path of the Celery app, by default Celery's current app.
    """

    known_options: ClassVar[tuple[str, ...]] = (
        *EngineChannel.known_options,
        "queue",
        "app",
    )

    # A broker may have closed an idle connection without a notice.
    idle_time: ClassVar[float] = 20.0

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """
        Read the options.

        Raises:
            ImproperlyConfigured: one of them is invalid.

        """
        super().__init__(alias, options)
        self.queue = options.get("queue")
        self._app_path = options.get("app")
        for name in ("queue", "app"):
            value = options.get(name)
            if value is not None and not (isinstance(value, str) and value):
                msg = f"the option {name!r} is {value!r}, which is not text."
                raise ImproperlyConfigured(msg)
        self._producer: Any = None
        self._used = 0.0

    @property
    def app(self) -> Any:
        """
        The Celery app.

        Raises:
            ImproperlyConfigured: the option does not name an app.

        """
        if self._app_path is None:
            return celery.current_app
        try:
            app = import_string(self._app_path)
        except ImportError as error:
            msg = (
                f"The channel {self.alias!r} has the app {self._app_path!r}, which "
                f"cannot be imported: {error}."
            )
            raise ImproperlyConfigured(msg) from error
        if not isinstance(app, celery.Celery):
            msg = (
                f"The channel {self.alias!r} has the app {self._app_path!r}, which is "
                "not a Celery app."
            )
            raise ImproperlyConfigured(msg)
        return app

    def send(self, batches: Sequence[Sequence[int]], using: str) -> None:
        """Send a task for each batch of ids through one connection, kept open."""
        task = self.app.tasks[TASK_NAME]
        options = {} if self.queue is None else {"queue": self.queue}
        try:
            producer = self._connected()
            with _batch_of(producer):
                for batch in batches:
                    arguments = [list(batch), using]
                    task.apply_async(
                        arguments, producer=producer, retry=False, **options
                    )
        except Exception:
            self.close()
            raise
        self._used = time.monotonic()

    def _connected(self) -> Any:
        """
        Return a producer with a connection of its own.

        Raises:
            Exception: the broker is unavailable. Others would wait for it here; the
                relay has other work to do.

        """
        if time.monotonic() - self._used > self.idle_time:
            self.close()
        if self._producer is None:
            connection = self._connection()
            connection.ensure_connection(
                max_retries=1, interval_start=0, interval_step=0, timeout=4
            )
            self._producer = self.app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    def _connection(self) -> Any:
        """Return a connection to the broker that is not yet open."""
        connection = self.app.connection_for_write()
        # RabbitMQ confirms each task; there are few tasks. Transports of other brokers
        # may refuse an unknown option.
        if connection.transport.driver_type == "amqp":
            options = dict(connection.transport_options or {})
            connection.transport_options = {"confirm_publish": True, **options}
        return connection

    def close(self) -> None:
        """Close the connection to the broker, if there is one."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.connection.release()

    def check(self) -> Iterable[CheckMessage]:
        """Report an option that is not an app, and a project without one."""
        yield from super().check()
        try:
            app = self.app
        except ImproperlyConfigured as error:
            yield Error(
                str(error),
                hint='Name the Celery app: "OPTIONS": {"app": "shop.celery.app"}.',
                id="django_cqrs_engines.E001",
            )
            return
        if app.main == "default" and self._app_path is None:
            yield Warning(
                f"The channel {self.alias!r} cannot find the project's Celery app.",
                hint=(
                    "Import it in the project's package, as Celery's documentation "
                    'describes, or name it: "OPTIONS": {"app": "shop.celery.app"}.'
                ),
                id="django_cqrs_engines.W001",
            )


def _batch_of(producer: Any) -> AbstractContextManager[Any]:
    """Send tasks in one write, from kombu 5.7 on, if the transport supports it."""
    batch = getattr(producer, "batch", None)
    return nullcontext() if batch is None else batch()
