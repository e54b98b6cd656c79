"""Celery on Redis; no results are kept, since nobody asks for them."""

from __future__ import annotations

import os

import django
from celery import Celery

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.queues.settings"
django.setup()

from tests.benchmarks.queues.models import Effect  # noqa: E402
from tests.benchmarks.queues.recording import handled  # noqa: E402
from tests.benchmarks.queues.settings import REDIS_URL  # noqa: E402

app = Celery("benchmarks", broker=REDIS_URL)
app.conf.update(
    task_ignore_result=True,
    task_default_queue=os.environ["BENCHMARKS_NAME"],
    broker_connection_retry_on_startup=True,
)


@app.task
def count(number: int, total: int, currency: str) -> None:
    handled(number)


@app.task
def record(number: int, total: int, currency: str) -> None:
    Effect.objects.create(number=number)
    handled(number)
