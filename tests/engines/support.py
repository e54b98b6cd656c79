"""Engines as the tests see them: what was sent to one is taken out, lost, or handled."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from urllib.parse import urlsplit, urlunsplit

import celery

from django_cqrs.channels import channels
from django_cqrs.engines.base import EngineChannel, handle
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.worker import Bounds, Worker

# Taken out, since Celery has it stand before what an app says of its own broker.
BROKER_URL = os.environ.pop("CELERY_BROKER_URL", "memory://")
"""A real broker where the environment names one; else Celery's own, in memory."""

QUEUE = f"cqrs-test-{os.getpid()}"

app = celery.Celery("tests", broker=BROKER_URL, set_as_current=False, fixups=[])
app.conf.broker_connection_retry_on_startup = False


class CeleryEngine:
    """The broker's queue."""

    channel = {
        "BACKEND": "django_cqrs.engines.celery.CeleryChannel",
        "OPTIONS": {"queue": QUEUE, "app": "tests.engines.support.app"},
    }

    def taken(self):
        """Take all tasks out; return the arguments of each."""
        found = []
        with app.connection_for_read() as connection:
            queue = connection.SimpleQueue(QUEUE)
            with contextlib.suppress(queue.Empty):
                while True:
                    message = queue.get(block=False)
                    message.ack()
                    assert message.headers["task"] == "django_cqrs.handle"
                    arguments, keywords, _ = message.payload
                    assert keywords == {}
                    found.append(arguments)
            queue.close()
        return found

    def bytes(self):
        """Take all tasks out; return what they were as bytes."""
        with app.connection_for_read() as connection:
            queue = connection.SimpleQueue(QUEUE)
            found = []
            with contextlib.suppress(queue.Empty):
                while True:
                    message = queue.get(block=False)
                    message.ack()
                    found.append(repr((message.headers, message.body)).encode())
            queue.close()
        return found

    def flush(self):
        """Lose everything, as a broker does that is flushed or has lost its disk."""
        with app.connection_for_write() as connection:
            if BROKER_URL.startswith("redis"):
                connection.default_channel.client.flushdb()
            else:
                with contextlib.suppress(Exception):
                    connection.default_channel.queue_delete(QUEUE)


class TasksEngine:
    """The table of django-tasks-db."""

    channel = {
        "BACKEND": "django_cqrs.engines.tasks.TasksChannel",
        "OPTIONS": {"queue": "mail"},
    }

    def taken(self):
        from django_tasks_db.models import DBTaskResult

        found = []
        for result in DBTaskResult.objects.order_by("enqueued_at"):
            assert result.task_path == "django_cqrs.engines.tasks.handle_messages"
            assert result.queue_name == "mail"
            assert result.args_kwargs["kwargs"] == {}
            found.append(result.args_kwargs["args"])
        DBTaskResult.objects.all().delete()
        return found

    def bytes(self):
        from django_tasks_db.models import DBTaskResult

        found = [repr(row).encode() for row in DBTaskResult.objects.values()]
        DBTaskResult.objects.all().delete()
        return found

    def flush(self):
        from django_tasks_db.models import DBTaskResult

        DBTaskResult.objects.all().delete()


def channel():
    found = channels["outbox"]
    assert isinstance(found, EngineChannel)
    return found


def relay_of(registry, **bounds):
    """Return what `cqrs_worker outbox --until-empty` runs."""
    relays = {"outbox": channel().relay("default")}
    bounds = Bounds(**{"until_empty": True, **bounds})
    return Worker(registry, ["outbox"], using="default", relays=relays, bounds=bounds)


def forward(registry, **bounds):
    """Forward what is ready; return how many messages."""
    return relay_of(registry, **bounds).run().forwarded


def consume(engine, registry):
    """Handle what the engine has, as its workers do; return the tallies."""
    return [handle(*arguments, registry=registry) for arguments in engine.taken()]


def states():
    return [
        State(state)
        for state in OutboxMessage.objects.order_by("sequence").values_list(
            "state", flat=True
        )
    ]


def expire_leases():
    """Let the time pass in which an engine is to begin."""
    OutboxMessage.objects.filter(lease_expires_at__isnull=False).update(
        lease_expires_at="2000-01-01T00:00:00Z"
    )


class Proxy:
    """A port in front of a broker: the broker can be taken away and given back."""

    def __init__(self, url):
        self._target = urlsplit(url)
        self._listener = None
        self._open = set()
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]

    @property
    def url(self):
        parts = self._target
        user = f"{parts.username}:{parts.password or ''}@" if parts.username else ""
        return urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{self.port}"))

    def start(self):
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self):
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        default = {"redis": 6379, "amqp": 5672}[self._target.scheme]
        while True:
            try:
                ours, _ = listener.accept()
            except OSError:
                return
            address = (self._target.hostname, self._target.port or default)
            theirs = socket.create_connection(address)
            self._open |= {ours, theirs}
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(
                    target=self._pump, args=(one, other), daemon=True
                ).start()

    def _pump(self, one, other):
        with contextlib.suppress(OSError):
            while chunk := one.recv(65536):
                other.sendall(chunk)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        one.close()
        self._open.discard(one)
