"""How each project stores messages, and how its relay is run."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter, sleep
from typing import Any

from celery import Celery
from django.conf import settings
from django.db import transaction

celery_app = Celery("benchmarks", broker=settings.BROKER_URL, fixups=[])
outbox_app: Any = None
if "django_celery_outbox" in settings.INSTALLED_APPS:
    from django_celery_outbox import OutboxCelery

    outbox_app = OutboxCelery("benchmarks", broker=settings.BROKER_URL, fixups=[])

    # As lean as it can be had: no line for each batch, and none for each message.
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
    )

BATCH = 500


def order(number: int) -> dict[str, object]:
    return {"number": number, "total": 1250, "currency": "EUR"}


def in_transactions(send: Callable[[int], object], count: int) -> None:
    for start in range(0, count, BATCH):
        with transaction.atomic():
            for number in range(start, min(start + BATCH, count)):
                send(number)


@contextmanager
def queue() -> Iterator[Callable[[], int]]:
    """Yield a function that asks the broker how many tasks the queue has."""
    with celery_app.connection_for_read() as connection:
        channel = connection.default_channel

        def length() -> int:
            if settings.BROKER_URL.startswith("redis"):
                return channel.client.llen(settings.QUEUE)
            # As Celery declares it: RabbitMQ refuses a second one that differs.
            declared = channel.queue_declare(
                settings.QUEUE, durable=True, auto_delete=False
            )
            return declared.message_count

        yield length


def forget() -> None:
    """Delete the queue."""
    with celery_app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.queue_delete(settings.QUEUE)
        if settings.BROKER_URL.startswith("redis"):
            channel.client.delete(settings.QUEUE)


def ours(count: int) -> float:
    """Store and forward; return the seconds that the forwarding took."""
    from django_cqrs import Registry, command_handler
    from django_cqrs.channels import channels
    from django_cqrs.outbox.models import OutboxMessage, State
    from django_cqrs.outbox.worker import Bounds, Worker

    registry = Registry()

    @registry.add
    @command_handler("order.confirm", name="order.confirm", channel="orders")
    def confirm(order: dict[str, object]) -> None:
        pass

    def send(number: int) -> None:
        registry.command_bus.dispatch(order(number), route="order.confirm")

    in_transactions(send, count)
    relay = channels["orders"].relay("default")
    worker = Worker(
        registry,
        ["orders"],
        using="default",
        relays={"orders": relay},
        bounds=Bounds(until_empty=True),
    )
    start = perf_counter()
    worker.run()
    seconds = perf_counter() - start
    forwarded = OutboxMessage.objects.filter(state=State.FORWARDED).count()
    with queue() as length:
        tasks = length()
    if (forwarded, worker.tally.forwarded) != (count, count) or not tasks:
        raise SystemExit(f"{forwarded} of {count} messages are in {tasks} tasks.")
    OutboxMessage.objects.all().delete()
    return seconds


def django_celery_outbox(count: int) -> float:
    """The same for the peer: one row and one task for each message."""
    from django_celery_outbox.models import CeleryOutbox
    from django_celery_outbox.relay import Relay, RelayConfig

    def send(number: int) -> None:
        outbox_app.send_task(
            "order.confirm", kwargs=order(number), queue=settings.QUEUE
        )

    in_transactions(send, count)
    size = int(os.environ.get("BENCHMARKS_BATCH", "100"))
    relay = Relay(app=outbox_app, config=RelayConfig.init(batch_size=size))
    ended: list[float] = []

    def watch() -> None:
        with queue() as length:
            while length() < count:
                sleep(0.05)
        ended.append(perf_counter())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    start = perf_counter()
    relay.start()
    CeleryOutbox.objects.all().delete()
    return ended[0] - start
