"""The messages of ten tenants, their handlers, and a process that handles them."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

from django.db import DatabaseError, connection, transaction

from django_cqrs import (
    CommandBus,
    EventBus,
    Message,
    Registry,
    Retry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.tenancy import CurrentTenant

TENANTS = [f"tenant{number}" for number in range(10)]

HOWS = (
    *("write", "python", "once", "sql", "caught", "python", "publish", "send"),
    *("shared", "shared later", "sql"),
)
"""What a handler does; a third of it fails: by Python, by SQL, the first time, inside."""


@message("tried.work")
@dataclass(frozen=True)
class Work:
    number: int
    how: str


@message("tried.done")
@dataclass(frozen=True)
class Done:
    number: int


@message("tried.follow")
@dataclass(frozen=True)
class Follow:
    number: int


registry = Registry()
registry.add(Work)
registry.add(Done)
registry.add(Follow)


@registry.add
@command_handler(
    name="work", channel="outbox", retry=Retry(attempts=2, delay=0, jitter=False)
)
def work(
    command: Work,
    who: CurrentTenant,
    message: Message,
    commands: CommandBus,
    events: EventBus,
) -> None:
    from tests.tried.ledger.models import Entry

    def note(text):
        Entry.objects.create(text=f"{who}:{command.number}:{text}")

    note("begun")
    match command.how:
        case "python":
            raise RuntimeError(command.number)
        case "once" if message.attempt == 1:
            raise RuntimeError(command.number)
        case "sql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT nothing")
        case "caught":
            try:
                with transaction.atomic():
                    note("gone")
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT nothing")
            except DatabaseError:
                pass
        case "shared":
            commands.dispatch(f"{who}:{command.number}", route="visit")
        case "shared later":
            commands.dispatch(f"{who}:{command.number}", route="visit.later")
        case "publish":
            events.publish(Done(command.number))
        case "send":
            commands.dispatch(Follow(command.number))
        case "sleep":
            time.sleep(0.05)
    note("ended")


@registry.add
@command_handler("visit", name="visit", tenant=False)
def visit(text: str) -> None:
    from tests.tried.tenants.models import Visit

    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        Visit.objects.create(text=text, schema=cursor.fetchone()[0])


@registry.add
@command_handler("visit.later", name="visit.later", tenant=False, channel="outbox")
def visit_later(text: str) -> None:
    visit(text)


@registry.add
@event_handler(name="on_done", channel="outbox")
def on_done(event: Done, who: CurrentTenant) -> None:
    from tests.tried.ledger.models import Entry

    Entry.objects.create(text=f"{who}:{event.number}:done")


@registry.add
@command_handler(name="follow", channel="outbox")
def follow(command: Follow, who: CurrentTenant, commands: CommandBus) -> None:
    from tests.tried.ledger.models import Entry

    commands.dispatch(f"{who}:{command.number}", route="visit")
    Entry.objects.create(text=f"{who}:{command.number}:followed")


WRITTEN = {
    "write": ("begun", "ended"),
    "sleep": ("begun", "ended"),
    "python": (),
    "once": ("begun", "ended"),
    "sql": (),
    "caught": ("begun", "ended"),
    "shared": ("begun", "ended"),
    "shared later": ("begun", "ended"),
    "publish": ("begun", "ended", "done"),
    "send": ("begun", "ended", "followed"),
}
"""The rows that are in the tenant's schema when everything is handled."""


def main() -> None:
    """Handle what waits, for ever."""
    import django

    django.setup()
    from django_cqrs.outbox.worker import Worker

    lease, batch = float(sys.argv[1]), int(sys.argv[2])
    span = timedelta(seconds=lease)
    worker = Worker(registry, ["outbox"], using="default", batch=batch, lease=span)
    print("ready", flush=True)
    worker.run()


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.tried.tenants_settings")
    main()
