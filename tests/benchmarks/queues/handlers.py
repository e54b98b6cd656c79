"""Handlers of this library."""

from __future__ import annotations

from django_cqrs import command_handler
from tests.benchmarks.queues.messages import (
    CountLine,
    CountOrder,
    RecordLine,
    RecordOrder,
)
from tests.benchmarks.queues.models import Effect
from tests.benchmarks.queues.recording import handled


@command_handler(channel="orders")
def count(command: CountOrder) -> None:
    handled(command.number)


@command_handler(channel="orders")
def record(command: RecordOrder) -> None:
    Effect.objects.create(number=command.number)
    handled(command.number)


@command_handler(channel="orders", ordering_key="order")
def count_line(command: CountLine) -> None:
    handled(command.number)


@command_handler(channel="orders", ordering_key="order")
def record_line(command: RecordLine) -> None:
    Effect.objects.create(number=command.number)
    handled(command.number)
