"""Tasks of ``TASKS`` as messages of the outbox."""

from __future__ import annotations

from django_cqrs.outbox.tasks.backend import OutboxTaskBackend

__all__ = ["OutboxTaskBackend"]
