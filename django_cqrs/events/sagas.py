"""The end of an event-sourced saga, as an event."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from django_cqrs.messages import message
from django_cqrs.modelling.sagas import COMPLETED_AT


@message("django_cqrs.saga_completed")
@dataclasses.dataclass(frozen=True)
class SagaCompleted:
    """A saga has ended; it is recorded when the saga calls ``complete()``."""

    completed_at: datetime


def complete_saga(saga: Any, event: SagaCompleted) -> None:
    """Let a saga be over, as it was when it called ``complete()``."""
    object.__setattr__(saga, COMPLETED_AT, event.completed_at)
