"""The outbox's worker, and the supervisor of several workers."""

from __future__ import annotations

from django_cqrs.outbox.worker.bounds import Bounds, StopWorker, Tally
from django_cqrs.outbox.worker.worker import Relay, Worker, names_of

__all__ = [
    "Bounds",
    "Relay",
    "StopWorker",
    "Tally",
    "Worker",
    "names_of",
]
