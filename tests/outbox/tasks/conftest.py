from __future__ import annotations

import pytest

from django_cqrs.buses.registries import registry
from tests.outbox.support import make_due, worker_of
from tests.outbox.tasks import work

BACKEND = "django_cqrs.outbox.tasks.OutboxTaskBackend"


def backend(**options):
    """Return the setting of a backend whose queues are the channel "outbox"."""
    return {
        "BACKEND": BACKEND,
        "QUEUES": [],
        "OPTIONS": {"channel": "outbox", **options},
    }


@pytest.fixture(autouse=True)
def task_settings(settings):
    settings.TASKS = {"default": backend()}
    work.seen.clear()
    yield settings
    work.seen.clear()


@pytest.fixture
def run_tasks():
    """Handle what is ready, as a worker; with `again`, also what it retries."""

    def run_tasks(*, again=0, **options):
        for _ in range(again):
            worker_of(registry, **options).run()
            make_due()
        return worker_of(registry, **options).run()

    return run_tasks


@pytest.fixture
def signalled():
    """Collect Django's signals about tasks, with the status at that time."""
    from django_cqrs.outbox.tasks.djangos import from_tasks

    found = []
    receivers = []
    for name in ("task_enqueued", "task_started", "task_finished"):
        signal = from_tasks(f"signals.{name}")

        def receive(sender, task_result, name=name, **_):
            found.append((name, sender.__name__, task_result.status, task_result.id))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield found
    for signal, receive in receivers:
        signal.disconnect(receive)
