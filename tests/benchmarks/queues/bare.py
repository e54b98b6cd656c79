"""
The loops that a project would write by hand: what any queue in a table must cost.

They claim a hundred messages with an owner and a lease and commit that, as this
library's worker does, without waiting for the disk. The handlers of the hundred share
one transaction, and one DELETE settles them. Nothing is retried, and no key, delay,
priority or fencing is looked at.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

from django.db import connection, transaction

from tests.benchmarks.queues.models import Effect, Waiting
from tests.benchmarks.queues.recording import handled

BATCH = 100
CLAIM = """
UPDATE benchmarks_queues_waiting
SET is_claimed = true, owner = %s, lease_expires_at = now() + interval '30 seconds'
WHERE id IN (
    SELECT id FROM benchmarks_queues_waiting WHERE NOT is_claimed
    ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
)
RETURNING id, payload
"""
SETTLE = "DELETE FROM benchmarks_queues_waiting WHERE id = ANY(%s) AND owner = %s"


def count(payload: dict[str, int]) -> None:
    handled(payload["number"])


def record(payload: dict[str, int]) -> None:
    Effect.objects.create(number=payload["number"])
    handled(payload["number"])


def fill(numbers: range) -> None:
    Waiting.objects.bulk_create(
        Waiting(payload={"number": number, "total": 1250, "currency": "EUR"})
        for number in numbers
    )


def run(handle: Callable[[dict[str, int]], None], *, savepoints: bool) -> None:
    """Handle all that waits."""
    block: Callable[[], AbstractContextManager[object]] = (
        transaction.atomic if savepoints else contextlib.nullcontext
    )
    owner = uuid.uuid4().hex
    while True:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL synchronous_commit = off")
            cursor.execute(CLAIM, [owner, BATCH])
            claimed = cursor.fetchall()
        if not claimed:
            return
        with transaction.atomic():
            for _pk, payload in claimed:
                with block():
                    handle(json.loads(payload))
            with connection.cursor() as cursor:
                cursor.execute(SETTLE, [[pk for pk, _payload in claimed], owner])
