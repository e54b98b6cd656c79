"""Messages, handlers and a process that handles them: what the outbox is tested with."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

from django_cqrs import Registry, command_handler, message
from django_cqrs.retries import Retry


@message("outbox.work")
@dataclass(frozen=True)
class Work:
    number: int
    how: str = "write"


@message("outbox.other_work")
@dataclass(frozen=True)
class OtherWork:
    number: int = 0


registry = Registry()


@registry.add
@command_handler(
    name="outbox.do", channel="outbox", retry=Retry(attempts=2, delay=0, jitter=False)
)
def do(command: Work) -> None:
    from tests.testapp.models import Note

    if command.how == "exit":
        os._exit(3)
    if command.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if command.how == "slow":
        time.sleep(0.3)
    if command.how == "brief":
        time.sleep(0.003)
    Note.objects.create(text="done", number=command.number)


@registry.add
@command_handler(
    name="outbox.endure", channel="outbox", retry=Retry(attempts=100, delay=0)
)
def endure(command: OtherWork) -> None:
    """What is killed at random, and by no fault of its own."""
    from tests.testapp.models import Note

    Note.objects.create(text="begun", number=command.number)
    time.sleep(0.004)
    Note.objects.create(text="ended", number=command.number)


def main() -> None:
    """Run a worker: ``python -m tests.outbox.work LEASE [BATCH]``."""
    import django

    django.setup()
    from django_cqrs.outbox.worker import Worker

    worker = Worker(
        registry,
        ["outbox"],
        using="default",
        lease=timedelta(seconds=float(sys.argv[1])),
        batch=int(sys.argv[2]) if len(sys.argv) > 2 else 100,
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    print("ready", flush=True)
    worker.run()
    print("ended", flush=True)


if __name__ == "__main__":
    # Under its own name: a class has one, whichever way its module is run.
    from tests.outbox.work import main as run

    run()
