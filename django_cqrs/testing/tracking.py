"""Wait for real workers, and read what they did."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connections

from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import InvalidOption
from django_cqrs.pipeline.stages import is_inside_transaction
from django_cqrs.testing.trees import (
    Progression,
    Tree,
    TreeHandling,
    TreeMessage,
    TreeRecorder,
)

PAUSE: Final = 0.02
"""The time between two looks at the tables, in seconds."""


class TrackedMessages:
    """The messages of a block that real workers handled; read it after the block."""

    tree: Tree = Tree(())
    """The messages, their handlers, and what those sent."""


@contextmanager
def tracked(
    recorder: TreeRecorder, *, using: str, timeout: timedelta
) -> Iterator[TrackedMessages]:
    """
    Wait, at the end of the block, until workers have handled its messages.

    Args:
        recorder: records the messages of this process.
        using: the alias of the database with the outbox.
        timeout: the longest wait.

    Raises:
        InvalidOption: a transaction is open.
        AssertionError: messages still wait.

    """
    connection = connections[using]
    if connection.in_atomic_block or is_inside_transaction(connection):
        msg = (
            "flow.tracked() waits for real workers, which see committed messages only, "
            f"but a transaction is open on {using!r}. Use a TransactionTestCase, or "
            "django_db(transaction=True); in other tests call flow.settle()."
        )
        raise InvalidOption(msg)
    start = len(recorder.messages)
    found = TrackedMessages()
    yield found
    new = recorder.messages[start:]
    chains = {each.message.correlation_id for each in new if each.message is not None}
    late = _wait(chains, using, timeout)
    _add(recorder, chains, using)
    found.tree = recorder.since(start)
    if late:
        listed = "\n".join(f"  {each}" for each in late)
        msg = (
            f"Messages still wait after {timeout}: is a worker running?\n"
            f"{listed}\nThis is what happened:\n{found.tree}"
        )
        raise AssertionError(msg)


def _wait(chains: Collection[UUID], using: str, timeout: timedelta) -> list[str]:
    """Return the messages that still wait after the time, none if all are handled."""
    from django_cqrs.outbox.models import OutboxMessage, State

    rows = OutboxMessage.objects.using(using).filter(correlation_id__in=chains)
    timers = {"state": State.DELAYED, "attempts": 0, "last_error": None}
    end = time.monotonic() + timeout.total_seconds()
    while True:
        late = [f"{row} in {row.channel!r}" for row in rows.exclude(**timers)]
        if not late or time.monotonic() > end:
            return late
        time.sleep(PAUSE)


def _add(recorder: TreeRecorder, chains: Collection[UUID], using: str) -> None:
    """Add what the tables know to the record of this process."""
    from django_cqrs.outbox.timeline import timeline_of

    waiting: set[tuple[UUID, str]] = set()
    for step in timeline_of(chains, using=using).steps:
        node = recorder.node(step.message_id)
        if node is None:
            cause = step.causation_id and recorder.node(step.causation_id)
            parent = cause.handlings[0] if cause and cause.handlings else None
            kind = Kind(step.kind) if step.kind else Kind.EVENT
            node = TreeMessage(kind, None, None, parent, label=step.name or "?")
            recorder.add(step.message_id, node)
        for each in step.happenings:
            if each.channel is None:
                continue
            if each.standing.value == "waits":
                waiting.add((step.message_id, each.endpoint))
            _note(node, each)
    recorder.end_waiting(chains, waiting)


def _note(node: TreeMessage, happening: Any) -> None:
    """Add a handling that the tables know to a message."""
    state = {
        "done": Progression.DONE,
        "waits": Progression.WAITS,
        "bad": Progression.LEFT,
    }[happening.standing.value]
    handling = next(
        (
            each
            for each in node.handlings
            if each.endpoint == happening.endpoint and each.channel is not None
        ),
        None,
    )
    if handling is None:
        handling = TreeHandling(node, happening.endpoint, happening.channel)
        node.handlings.append(handling)
    handling.state, handling.attempt = state, max(1, happening.attempts)
    if happening.exception:
        handling.note = f"failed with {happening.exception}: {happening.error}"
