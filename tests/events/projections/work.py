"""Projections for workers in processes of their own, which may kill themselves."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from typing import Annotated

from django_cqrs import event_handler, message
from django_cqrs.events import Emitter, Recorded, Row, State, projection
from tests.events.views.models import Entry, OrderRow
from tests.support import registry_of

CHANCE = float(os.environ.get("CQRS_KILL_CHANCE", "0"))
"""How probable it is that a worker kills itself while it handles an event."""


@message("work.done")
@dataclasses.dataclass(frozen=True)
class WorkDone:
    kind: int


@message("work.echoed")
@dataclasses.dataclass(frozen=True)
class WorkEchoed:
    stream: str
    version: int


def perhaps_die() -> None:
    if random.random() < CHANCE:
        os.kill(os.getpid(), signal.SIGKILL)


@projection("whole", channel="outbox", batch=20)
def whole(event: WorkDone, recorded: Recorded) -> None:
    """Note all events in the order in which they are handled."""
    Entry.objects.create(
        text="whole", number=recorded.version or 0, position=recorded.position
    )
    perhaps_die()


@dataclasses.dataclass
class WorkTotal:
    count: int = 0


@projection(
    "parts",
    channel="outbox",
    batch=20,
    partition_by="stream",
    views=[OrderRow],
)
class WorkParts:
    """Count events of all streams in rows that shards share, and echo each."""

    @event_handler
    def done(
        self,
        event: WorkDone,
        recorded: Recorded,
        row: Annotated[OrderRow, Row(number="kind")],
        state: Annotated[WorkTotal, State()],
        emit: Emitter,
    ) -> None:
        row.changes += 1
        state.count += 1
        emit(WorkEchoed(recorded.stream or "", recorded.version or 0))
        perhaps_die()


registry = registry_of(whole, WorkParts, WorkDone, WorkEchoed)
