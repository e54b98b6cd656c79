"""Handlers of worker processes that are started as a project starts them."""

import os
import signal
import time

from django_cqrs import Retry, command_handler
from tests.outbox.work import Work
from tests.testapp.models import Note


@command_handler(
    name="supervised.do",
    channel="outbox",
    retry=Retry(attempts=2, delay=0, jitter=False),
)
def do(command: Work) -> None:
    if command.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if command.how == "fail":
        raise ValueError
    if command.how == "grow":
        grown = b"x" * 150_000_000
        del grown
    Note.objects.create(text=str(os.getpid()), number=command.number)
    if command.how == "slow":
        time.sleep(1)
    if command.how == "hang":
        time.sleep(60)
