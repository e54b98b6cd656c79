"""Handlers of django-reliable-outbox, found by their module's name."""

from __future__ import annotations

from reliable_outbox import Envelope, handler

from tests.benchmarks.queues.models import Effect
from tests.benchmarks.queues.recording import handled


@handler("order.count")
def count(envelope: Envelope) -> None:
    handled(envelope.payload["number"])


@handler("order.record")
def record(envelope: Envelope) -> None:
    Effect.objects.create(number=envelope.payload["number"])
    handled(envelope.payload["number"])
