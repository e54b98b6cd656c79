"""Tasks of procrastinate: the coroutine is its quickest, and the ORM needs a thread."""

from __future__ import annotations

from procrastinate.contrib.django import app

from tests.benchmarks.queues.models import Effect
from tests.benchmarks.queues.recording import handled


@app.task
async def count(number: int, total: int, currency: str) -> None:
    handled(number)


@app.task
def record(number: int, total: int, currency: str) -> None:
    Effect.objects.create(number=number)
    handled(number)
