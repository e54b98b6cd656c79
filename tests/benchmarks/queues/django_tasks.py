"""Tasks of Django's interface: its own from 6.0 on, before that of its backport."""

from __future__ import annotations

import django

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task

from tests.benchmarks.queues.models import Effect
from tests.benchmarks.queues.recording import handled


@task
def count(number: int, total: int, currency: str) -> None:
    handled(number)


@task
def record(number: int, total: int, currency: str) -> None:
    Effect.objects.create(number=number)
    handled(number)
