"""The worker of the outbox, and what runs several of them."""

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
