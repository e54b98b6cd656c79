"""
What is done in one queue's project, in a process of its own.

``python -m tests.benchmarks.queues ACTION ...``, with the environment that
``tests/benchmarks/outbox.py`` gives it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from time import perf_counter, sleep, time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.db.models import Model

IN_ONE_TRANSACTION = 500

Send = Callable[[str, int], object]


def _payload(number: int) -> dict[str, object]:
    return {"number": number, "total": 1250, "currency": "EUR"}


def _django_cqrs() -> Send:
    from django_cqrs import command_bus
    from tests.benchmarks.queues.messages import (
        CountLine,
        CountOrder,
        RecordLine,
        RecordOrder,
    )

    classes = {
        "count": CountOrder,
        "record": RecordOrder,
        "count_line": CountLine,
        "record_line": RecordLine,
    }
    return lambda kind, number: command_bus.dispatch(classes[kind](number))


def _reliable_outbox() -> Send:
    from reliable_outbox import publish

    return lambda kind, number: publish(f"order.{kind}", _payload(number))


def _tasks_db() -> Send:
    """Enqueue tasks of Django's interface, whichever backend the settings name."""
    from tests.benchmarks.queues import django_tasks

    return lambda kind, number: getattr(django_tasks, kind).enqueue(**_payload(number))


def _procrastinate() -> Send:
    from tests.benchmarks.queues import procrastinate_tasks

    return lambda kind, number: getattr(procrastinate_tasks, kind).defer(
        **_payload(number)
    )


def _celery() -> Send:
    from django.db import transaction

    from tests.benchmarks.queues import celery_tasks

    def send(kind: str, number: int) -> None:
        task = getattr(celery_tasks, kind)
        transaction.on_commit(lambda: task.delay(**_payload(number)))

    return send


SENDERS: dict[str, Callable[[], Send]] = {
    "django_cqrs": _django_cqrs,
    "reliable_outbox": _reliable_outbox,
    "tasks_db": _tasks_db,
    "outbox_tasks": _tasks_db,
    "procrastinate": _procrastinate,
    "celery": _celery,
}


def fill(kind: str, count: int) -> None:
    """Store messages through the queue's own interface, as its users do."""
    from django.db import transaction

    from tests.benchmarks.queues import bare

    queue = os.environ["BENCHMARKS_QUEUE"]
    send = None if queue == "bare" else SENDERS[queue]()
    for start in range(0, count, IN_ONE_TRANSACTION):
        numbers = range(start, min(count, start + IN_ONE_TRANSACTION))
        with transaction.atomic():
            if send is None:
                bare.fill(numbers)
            else:
                for number in numbers:
                    send(kind, number)
    _tidy()


def pace(kind: str, count: int) -> None:
    """Send messages as fill() does; print the seconds for one of them."""
    from django.db import transaction

    send = SENDERS[os.environ["BENCHMARKS_QUEUE"]]()
    with transaction.atomic():
        send(kind, -1)  # imports, and a connection
    start = perf_counter()
    for first in range(0, count, IN_ONE_TRANSACTION):
        with transaction.atomic():
            for number in range(first, min(count, first + IN_ONE_TRANSACTION)):
                send(kind, number)
    print((perf_counter() - start) / count)


def _tidy() -> None:
    """Clean up as autovacuum would, so that it does not during the measuring."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")
        cursor.execute("CHECKPOINT")


def surround(count: int) -> None:
    """Put delayed messages beside those to come, and as many dead letters."""
    from django.utils import timezone

    from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State

    now = timezone.now()
    stored = {
        "channel": "orders",
        "endpoint": "benchmarks_queues.count",
        "name": "benchmarks_queues.CountOrder",
        "payload": json.dumps(_payload(1)).encode(),
        "headers": b"{}",
        "message_id": uuid.uuid4(),
        "correlation_id": uuid.uuid4(),
        "sent_at": now,
        "sequence": 1,
    }
    later = now + timedelta(days=1)
    OutboxMessage(**stored, state=State.DELAYED, available_at=later).save()
    _multiply(
        OutboxMessage, count, available_at="available_at + n * interval '1 second'"
    )
    DeadLetter(
        **stored,
        reason="failed",
        exception="builtins.ValueError",
        error="no",
        traceback="no",
        failed_at=now,
    ).save()
    _multiply(DeadLetter, count, failed_at="failed_at + n * interval '1 microsecond'")
    _tidy()


def _multiply(model: type[Model], count: int, **changes: str) -> None:
    """Make one row into so many, which differ as rows do that were sent."""
    from django.db import connection

    columns = [
        field.column for field in model._meta.concrete_fields if not field.primary_key
    ]
    changes |= {
        "message_id": "gen_random_uuid()",
        "correlation_id": "gen_random_uuid()",
        "sequence": "sequence + n",
    }
    values = [changes.get(each, each) for each in columns]
    table = model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) "
            f"SELECT {', '.join(values)} FROM {table}, generate_series(2, %s) AS n",
            [count],
        )


def send_slowly(count: int) -> None:
    """Send messages to a worker that is idle; print when each was committed."""
    from django.db import transaction

    send = SENDERS[os.environ["BENCHMARKS_QUEUE"]]()
    chance = random.Random(5)
    committed: dict[int, float] = {}

    def note(number: int) -> None:
        committed[number] = time()

    for number in range(count):
        sleep(chance.uniform(0.25, 0.85))
        with transaction.atomic():
            # The first callback: what wakes a worker comes after it.
            transaction.on_commit(lambda number=number: note(number))
            send("count", number)
    print(json.dumps(committed))


def work_bare(kind: str, savepoints: str) -> None:
    from tests.benchmarks.queues import bare

    bare.run(getattr(bare, kind), savepoints=savepoints == "savepoints")


def main(action: str, *arguments: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.queues.settings"
    import django

    django.setup()

    match action, arguments:
        case "migrate", ():
            from django.core.management import call_command

            call_command("migrate", run_syncdb=True, verbosity=0)
        case "fill", (kind, count):
            fill(kind, int(count))
        case "pace", (kind, count):
            pace(kind, int(count))
        case "surround", (count,):
            surround(int(count))
        case "send", (count,):
            send_slowly(int(count))
        case "schedules", (count,):
            from tests.benchmarks.queues import scheduling

            print(scheduling.seconds(int(count)))
        case "work", (kind, savepoints):
            work_bare(kind, savepoints)


if __name__ == "__main__":
    main(*sys.argv[1:])
