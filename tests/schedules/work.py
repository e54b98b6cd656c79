"""A schedule of every second, and what kills its worker at each place of a firing."""

from __future__ import annotations

import os
import random
import signal
from datetime import datetime, timedelta
from typing import Annotated

from django_cqrs import Header, Registry, Retry, command_handler
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.schedules import every, scheduled

CHANCE = float(os.environ.get("CQRS_KILL_CHANCE", "0"))
"""How probable it is that a process kills itself, at each of the two places."""


def perhaps_die() -> None:
    if random.random() < CHANCE:
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyChannel(OutboxChannel):
    """May kill the process when a message was stored, before the commit."""

    def write(self, connection, entries):
        super().write(connection, entries)
        perhaps_die()


def second_of(due: datetime) -> int:
    """Return the payload; it is made after the change of the next time."""
    perhaps_die()
    return int(due.timestamp())


registry = Registry()


# The machine may be slow, and what is late must not be counted as missed.
@registry.add
@scheduled(
    every(seconds=1),
    name="second",
    payload=second_of,
    missed="all",
    grace=timedelta(hours=1),
)
@command_handler(
    "second", name="second", channel="outbox", retry=Retry(attempts=100, delay=0)
)
def on_second(second: int, due: Annotated[datetime, Header("schedule_due_at")]) -> None:
    from tests.testapp.models import Note

    assert second == due.timestamp()
    Note.objects.create(text="second", number=second)
