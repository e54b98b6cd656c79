"""
Channels of engines: messages are stored as in the outbox, then forwarded.

The outbox's row stays authoritative. A relay, ``manage.py cqrs_worker``, marks ready
messages as forwarded, for the time of a lease, and sends the engine tasks with the ids
of rows. A task claims its rows, handles them and deletes them in the transaction of the
handlers' writes. Tasks that the engine loses are forwarded again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS

from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as projects
from django_cqrs.logged_errors import loggable
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.outbox.store.rows import Group
from django_cqrs.outbox.store.store import Store
from django_cqrs.outbox.worker.bounds import Bounds, Tally
from django_cqrs.outbox.worker.outages import Outages
from django_cqrs.outbox.worker.worker import Worker

logger: Final = logging.getLogger("django_cqrs.worker")


class EngineChannel(OutboxChannel):
    """
    The base of channels that forward: a subclass sends the tasks.

    ``OPTIONS``, beside those of the outbox's channel: ``"lease"``, the seconds that the
    engine has to start on a message before it is forwarded once more (60), and
    ``"in_flight"``, the maximum number of messages at the engine (10,000).
    """

    known_options: ClassVar[tuple[str, ...]] = (
        *OutboxChannel.known_options,
        "lease",
        "in_flight",
    )

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """
        Read the options.

        Raises:
            ImproperlyConfigured: one of them is not a number above 0.

        """
        super().__init__(alias, options)
        self.lease = timedelta(seconds=self._number("lease", 60))
        self.in_flight = int(self._number("in_flight", 10_000))

    def _number(self, name: str, default: float) -> float:
        value: Any = self.options.get(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not value > 0:
            msg = f"the option {name!r} is {value!r}, which is not a number above 0."
            raise ImproperlyConfigured(msg)
        return float(value)

    def send(self, batches: Sequence[Sequence[int]], using: str) -> None:
        """
        Send a task for each batch of ids, several in one write if possible.

        Args:
            batches: the ids of rows, each batch for one task.
            using: the alias of the database that holds them.

        Raises:
            Exception: any. Some of the tasks may have been sent: their rows are
                forwarded again, and a task without rows does nothing.

        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection that tasks are sent through, if there is one."""

    def relay(self, using: str) -> EngineRelay:
        """Return the relay that forwards the channel's messages."""
        return EngineRelay(self, using)


class EngineRelay:
    """Forwards the messages of one channel in one database."""

    batch = 1000
    """The maximum number of messages that are marked, and sent, at once."""
    tasks = 20
    """The number of tasks for those, so that several consumers get some."""
    longest_pause = 5.0
    """The longest time until an unavailable engine is tried again, in seconds."""
    longest_lease = 64
    """The maximum factor by which a slow engine's lease is lengthened."""

    def __init__(self, channel: EngineChannel, using: str) -> None:
        """Forward from the database of an alias."""
        self.channel = channel
        self.store = Store(using)
        limit = self.store.connection.features.max_query_params
        if limit is not None:
            self.batch = min(self.batch, limit - 10)
        # At most this many are at the engine; counted only when necessary.
        self._in_flight = channel.in_flight
        self._failures = 0
        self._pause_ends = 0.0
        self._looked_after = 0.0
        # Grows while the engine does not start within it, up to this factor.
        self._lease = channel.lease
        self._backed_off = 0.0

    def forward(self, owner: str, *, limit: int | None) -> int:
        """Forward ready messages; see :class:`django_cqrs.outbox.worker.Relay`."""
        if time.monotonic() < self._pause_ends:
            return 0
        alias, lease = self.channel.alias, self._lease
        room = min(self._room(), self.batch if limit is None else limit)
        if room <= 0:
            return 0
        found = self.store.forward(alias, limit=room, owner=owner, lease=lease)
        keys = [pk for pk, _ in found]
        self._in_flight += len(keys)
        alone: list[int] = []
        if not keys:  # messages that killed a worker come last
            alone = self.store.forward_abandoned(
                alias, limit=min(room, 100), owner=owner, lease=lease
            )
        batches = [*self._parted(found), *((key,) for key in alone)]
        if not batches:
            return 0
        try:
            self.channel.send(batches, self.store.using)
        except Exception as error:  # noqa: BLE001 - whatever says that it is away
            self._pause(owner, [*keys, *alone], error)
            return 0
        self._failures = 0
        return len(keys) + len(alone)

    def _room(self) -> int:
        limit = self.channel.in_flight
        if limit - self._in_flight < self.batch:
            self._in_flight = self.store.count_forwarded(
                self.channel.alias, limit=limit
            )
        return min(self.batch, limit - self._in_flight)

    def _parted(
        self, found: Sequence[tuple[int, Group | None]]
    ) -> Iterator[Sequence[int]]:
        """Divide ids into batches, each in the order of the messages."""
        size = -(-len(found) // self.tasks)
        batch: list[int] = []
        before = None
        for pk, group in found:
            # The messages of one key go to one consumer.
            if len(batch) >= size and (group is None or group != before):
                yield batch
                batch = []
            batch.append(pk)
            before = group
        if batch:
            yield batch

    def _pause(self, owner: str, keys: Sequence[int], error: Exception) -> None:
        """Take back messages that could not be sent, and pause sending."""
        seconds = min(self.longest_pause, 0.1 * 2 ** min(self._failures, 6))
        logger.error(
            "%s: %d messages could not be forwarded; nothing is lost; retrying in "
            "%.1f s",
            self.channel,
            len(keys),
            seconds,
            exc_info=loggable(error),
        )
        self._failures += 1
        self._pause_ends = time.monotonic() + seconds
        self.store.take_back(owner, keys)

    def look_after(self) -> int:
        """Make messages ready again that the engine did not start in time."""
        now = time.monotonic()
        # There may be many forwarded rows, and this reads each.
        if now - self._looked_after < min(1.0, self.channel.lease.total_seconds() / 10):
            return 0
        self._looked_after = now
        found = self.store.take_back_expired(self.channel.alias)
        self._adapt(now, late=bool(found))
        return found

    def _adapt(self, now: float, *, late: bool) -> None:
        """
        Double a lease that was too short for the engine, and halve it later.

        Messages that it has not started on are mostly still in its queue. The lease
        grows only once within its own time, so that an engine far behind gets few
        additional tasks, and not one after each lease.
        """
        seconds = self._lease.total_seconds()
        if now - self._backed_off < seconds and self._backed_off:
            return
        if late:
            self._lease = min(self._lease * 2, self.channel.lease * self.longest_lease)
            self._backed_off = now
        elif self._lease > self.channel.lease:
            self._lease = max(self._lease / 2, self.channel.lease)
            self._backed_off = now

    def close(self) -> None:
        """Close the connection to the engine."""
        self.channel.close()


# A task handles messages for this long, and one handler more; the rest is for others.
TASK_SECONDS = 5.0
# The outages known to the tasks of this process, by the alias of the database.
_outages: dict[str, Outages] = {}


def handle(
    keys: Sequence[int], using: str = DEFAULT_DB_ALIAS, registry: Registry | None = None
) -> Tally:
    """
    Handle forwarded messages, for the task of any engine.

    Args:
        keys: the ids of their rows.
        using: the alias of the database that holds them.
        registry: the registry with the handlers; by default the project's.

    Returns:
        The work done. A handler's failure raises nothing: its message is retried
        according to its policy, or becomes a dead letter.

    Raises:
        Exception: Django's exception for an unavailable database. Nothing is lost.

    """
    worker = Worker(
        registry if registry is not None else projects,
        (),
        using=using,
        bounds=Bounds(seconds=TASK_SECONDS),
        outages=_outages.setdefault(using, Outages()),
    )
    return worker.handle_forwarded(keys)
