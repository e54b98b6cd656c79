"""Many schedules that are due at once, in the project of each queue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from time import perf_counter


def seconds(count: int) -> float:
    """Have so many commands or tasks stored that are due; return the seconds of it."""
    return SCHEDULERS[os.environ["BENCHMARKS_QUEUE"]](count)


def _django_cqrs(count: int) -> float:
    from django.db.models import F

    from django_cqrs import Registry, command_handler
    from django_cqrs.outbox.models import OutboxMessage
    from django_cqrs.schedules import every, scheduled
    from django_cqrs.schedules.attendant import SchedulesAttendant
    from django_cqrs.schedules.models import Schedule

    registry = Registry()
    for number in range(count):

        def tick() -> None: ...

        name = f"due.{number}"
        handler = command_handler(name, name=name, channel="orders")(tick)
        registry.add(scheduled(every(hours=1))(handler))
    OutboxMessage.objects.all().delete()
    clock = SchedulesAttendant().duty(registry, ["orders"], "default")
    assert clock is not None
    clock.look()
    Schedule.objects.update(next_at=F("next_at") - timedelta(hours=1))
    began = perf_counter()
    clock.look()
    taken = perf_counter() - began
    assert OutboxMessage.objects.count() == count
    return taken


def _procrastinate(count: int) -> float:
    """Measure its deferrer, with the connector that its worker has."""
    from procrastinate.contrib.django import app
    from procrastinate.contrib.django.models import ProcrastinateJob
    from procrastinate.periodic import PeriodicDeferrer

    def tick(timestamp: int) -> None: ...

    worker = app.with_connector(app.connector.get_worker_connector())
    deferrer = PeriodicDeferrer(registry=worker.periodic_registry)
    for number in range(count):
        task = worker.task(name=f"due.{number}")(tick)
        worker.periodic_registry.register_task(
            task=task,
            cron="0 * * * *",
            periodic_id="",
            configure_kwargs={},
        )
    # A later hour in each process: one that was deferred is not deferred again.
    hours = ProcrastinateJob.objects.count() // count
    at = 3600.0 * (500_000 + hours)
    before = ProcrastinateJob.objects.count()

    async def measured() -> float:
        async with worker.open_async():
            due = [
                (task, int(at))
                for task in worker.periodic_registry.periodic_tasks.values()
            ]
            await worker.connector.execute_query_one_async("SELECT 1 AS one")
            began = perf_counter()
            await deferrer.defer_jobs(due)
            return perf_counter() - began

    taken = asyncio.run(measured())
    assert ProcrastinateJob.objects.count() - before == count
    return taken


def _celery(count: int) -> float:
    """Measure the ticks of django-celery-beat, and the sync of what they changed."""
    from django.utils import timezone
    from django_celery_beat.models import IntervalSchedule, PeriodicTask
    from django_celery_beat.schedulers import DatabaseScheduler

    from tests.benchmarks.queues import celery_tasks

    interval, _ = IntervalSchedule.objects.get_or_create(every=1, period="hours")
    PeriodicTask.objects.all().delete()
    PeriodicTask.objects.bulk_create(
        PeriodicTask(
            name=f"due.{number}",
            task=celery_tasks.count.name,
            args="[1, 1, 1]",
            interval=interval,
            last_run_at=timezone.now() - timedelta(hours=2),
        )
        for number in range(count)
    )
    scheduler = DatabaseScheduler(app=celery_tasks.app)
    sent = 0
    apply_async = scheduler.apply_async

    def counted(*arguments: object, **options: object) -> object:
        nonlocal sent
        sent += 1
        return apply_async(*arguments, **options)

    scheduler.apply_async = counted
    with celery_tasks.app.connection_for_write() as connection:
        connection.default_channel.client.delete(
            celery_tasks.app.conf.task_default_queue
        )
        began = perf_counter()
        while sent < count:
            scheduler.tick()
        scheduler.sync()
        taken = perf_counter() - began
        connection.default_channel.client.delete(
            celery_tasks.app.conf.task_default_queue
        )
    return taken


SCHEDULERS: dict[str, Callable[[int], float]] = {
    "django_cqrs": _django_cqrs,
    "procrastinate": _procrastinate,
    "celery": _celery,
}
