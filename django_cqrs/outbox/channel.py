"""The outbox channel: messages stored with the data, by the data's connection."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.db import DEFAULT_DB_ALIAS, DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.active_tenant import active_name
from django_cqrs.callbacks import OwnCallback
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Channel, Delivery, Envelope
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.leases import LeaseEnd
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store.dialects import (
    COMMIT,
    NOTIFICATION,
    can_commit,
    commit_and_notify,
    lacks_table,
    literal,
    speaks_psycopg,
)
from django_cqrs.outbox.store.insertion import insert
from django_cqrs.outbox.store.rows import envelope_of
from django_cqrs.outbox.worker.worker import Relay
from django_cqrs.retries import DEFAULT_RETRY
from django_cqrs.times import as_sent

if TYPE_CHECKING:
    from django_cqrs.buses.registries import Registry


class OutboxChannel(Channel):
    """
    Stores messages in the database of the data, in the transaction of the data.

    ``manage.py cqrs_worker ALIAS`` handles them. With ``"NOTIFY": False`` in
    ``OPTIONS``, PostgreSQL sends no notification to wake the worker, which then polls.
    """

    supports_delay = True
    supports_expiry = True
    supports_priority = True
    supports_ordering = True
    supports_redelivery = True
    default_retry = DEFAULT_RETRY
    known_options: ClassVar[tuple[str, ...]] = ("NOTIFY",)

    # A woken worker polls for so many seconds, so no other notification is needed in
    # that time: see the quick rounds of the worker.
    quiet_time: ClassVar[float] = 0.02

    def __init__(self, alias: str, options: dict[str, Any]) -> None:
        """Keep the time at which the workers of each database were last woken."""
        super().__init__(alias, options)
        self.notifies = options.get("NOTIFY", True)
        self._last_notifications: dict[str, float] = {}

    def write(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """Store messages in one statement, or as few as the parameters allow."""
        self._store(connection, entries, end="")

    def write_last(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery]
    ) -> None:
        """Store them likewise, and on PostgreSQL commit in the same round trip."""
        if type(self).write is not OutboxChannel.write:  # it may do more afterwards
            self.write(connection, entries)
        else:
            end = ""
            if can_commit(connection):
                end = COMMIT
                if self.notifies and not self._is_quiet(connection):
                    end = commit_and_notify(connection, self.alias) or COMMIT
            self._store(connection, entries, end=end)

    def _store(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Delivery], *, end: str
    ) -> None:
        envelopes = [entry.envelope for entry in entries]
        try:
            is_ended = insert(connection, self.alias, envelopes, end) and bool(end)
        except DatabaseError as error:
            if not lacks_table(error):
                raise
            using = connection.alias
            msg = (
                f"Channel {self.alias!r} cannot store a message for "
                f"{envelopes[0].endpoint}: the database {using!r}, which holds its "
                "data, has no outbox tables. Run manage.py migrate "
                f"--database={using}; a router must allow 'django_cqrs_outbox' there."
            )
            raise InvalidChannel(msg) from error
        if not self.notifies or connection.vendor != "postgresql":
            return
        if is_ended and end != COMMIT:  # with the notification
            self._last_notifications[connection.alias] = time.monotonic()
            _forget_notifications(connection)
            return
        if is_ended and self._is_quiet(connection):  # it is committed
            return
        # Last, since without a transaction it is done immediately.
        connection.on_commit(partial(self._notify, connection), robust=True)

    def wake(self, connection: BaseDatabaseWrapper) -> None:
        """Wake the worker after the commit, on PostgreSQL, unless it is polling."""
        if not self.notifies or connection.vendor != "postgresql":
            return
        waiting = connection.run_on_commit
        if waiting and isinstance(waiting[-1][1], _Wake) and waiting[-1][1].is_of(self):
            return  # the last of many appends in a transaction
        connection.on_commit(_Wake(self, connection), robust=True)

    def _is_quiet(self, connection: BaseDatabaseWrapper) -> bool:
        """Return whether a worker that was woken is still polling."""
        last = self._last_notifications.get(connection.alias)
        return last is not None and time.monotonic() - last < self.quiet_time

    def _notify(self, connection: BaseDatabaseWrapper) -> None:
        """Wake a worker after the commit: inside it would serialise commits."""
        if self._is_quiet(connection):
            return
        self._last_notifications[connection.alias] = time.monotonic()
        with connection.cursor() as cursor:
            if speaks_psycopg(connection):
                cursor.execute(f"NOTIFY {NOTIFICATION}, {literal(self.alias)}")
            else:
                cursor.execute("SELECT pg_notify(%s, %s)", [NOTIFICATION, self.alias])
        _forget_notifications(connection)

    def relay(self, using: str) -> Relay | None:
        """
        Return the relay of the channel; None if a worker handles its messages.

        Args:
            using: the alias of the database that holds the messages.

        """
        return None

    def run(
        self,
        limit: int | None = None,
        *,
        registry: Registry | None = None,
        using: str = DEFAULT_DB_ALIAS,
    ) -> int:
        """
        Handle due messages immediately: for tests, inside their transaction.

        Args:
            limit: stop after this number of messages.
            registry: the registry with the handlers; by default the project's.
            using: the alias of the database.

        Returns:
            The number of handled messages.

        Raises:
            Exception: the exception of a handler, unchanged. Its message is retried
                according to its policy.

        """
        from django_cqrs.buses.registries import registry as projects
        from django_cqrs.outbox.worker.bounds import Bounds, StopWorker
        from django_cqrs.outbox.worker.worker import Worker

        bounds = Bounds(messages=limit, until_empty=True, on_failure=True)
        handlers = registry if registry is not None else projects
        worker = Worker(handlers, [self.alias], using=using, bounds=bounds)
        try:
            return worker.run().handled
        except StopWorker as error:
            raise (error.__cause__ or error) from None

    def waiting(self, *, using: str = DEFAULT_DB_ALIAS) -> list[Envelope]:
        """
        Return the waiting messages in the order of their handling: for tests.

        Delayed ones come last. The claimed ones of living workers are among them.

        Args:
            using: the alias of the database.

        """
        rows = OutboxMessage.objects.using(using).filter(channel=self.alias)
        in_turn = rows.order_by("-priority", "sequence", "pk").values()
        delayed = [row["state"] == State.DELAYED for row in in_turn]
        found = [
            dataclasses.replace(
                envelope_of(row),
                available_at=row["available_at"] and as_sent(row["available_at"]),
            )
            for row in in_turn
        ]
        pairs = zip(delayed, found, strict=True)
        return [each for _, each in sorted(pairs, key=lambda pair: pair[0])]

    def expire_leases(self, *, using: str = DEFAULT_DB_ALIAS) -> None:
        """
        Let another worker have the claimed messages at once: for tests.

        Args:
            using: the alias of the database.

        """
        claimed = OutboxMessage.objects.using(using).filter(
            channel=self.alias, state=State.CLAIMED
        )
        claimed.update(lease_expires_at=LeaseEnd(timedelta(seconds=-1)))

    def advance(self, span: timedelta, *, using: str = DEFAULT_DB_ALIAS) -> None:
        """Let time pass for waiting messages: delayed ones fall due, or expire."""
        waiting = OutboxMessage.objects.using(using).filter(channel=self.alias)
        for field in ("available_at", "expires_at"):
            timed = waiting.filter(**{f"{field}__isnull": False})
            for row in timed.only("pk", field):
                moment = getattr(row, field) - span
                waiting.filter(pk=row.pk).update(**{field: moment})

    def cancel(
        self,
        connection: BaseDatabaseWrapper,
        subject: str,
        *,
        endpoints: Collection[str],
    ) -> None:
        """Delete the timers of an object in the open transaction, and note it."""
        from django_cqrs.outbox import journal

        using = connection.alias
        waiting = OutboxMessage.objects.using(using).filter(
            channel=self.alias,
            subject=subject,
            endpoint__in=endpoints,
            state=State.DELAYED,
            attempts=0,
            last_error=None,  # an attempt during an outage is not counted
        )
        name = active_name()
        if name is not None:  # an object of another tenant may have the same identifier
            waiting = waiting.filter(tenant=name)
        # Excluding the empty text lets the partial index be used.
        waiting = waiting.exclude(subject="")
        if journal.is_kept():
            rows = waiting.defer("payload", "headers")
            if connection.in_atomic_block:
                rows = rows.select_for_update()
            found = list(rows)
            journal.write(using, [journal.cancelled(row) for row in found])
            waiting = waiting.filter(pk__in=[row.pk for row in found])
        waiting._raw_delete(using)

    def waiting_among(self, using: str, message_ids: Collection[UUID]) -> set[UUID]:
        """Return the messages that have a row: handled and dead ones have none."""
        rows = OutboxMessage.objects.using(using).filter(message_id__in=message_ids)
        return set(rows.values_list("message_id", flat=True))

    def statuses_of(self, using: str, message_ids: Collection[UUID]) -> dict[UUID, str]:
        """Return the statuses of the outcomes that are known."""
        from django_cqrs.outbox.outcomes import statuses_of

        found = statuses_of(message_ids, using=using)
        return {message_id: str(status) for message_id, status in found.items()}

    def note_skipped(self, connection: BaseDatabaseWrapper, envelope: Envelope) -> None:
        """Write an entry, if the settings ask for a journal."""
        from django_cqrs.outbox import journal

        if journal.is_kept():
            entry = journal.skipped(envelope, self.alias)
            journal.write(connection.alias, [entry])

    def check(self) -> Iterable[CheckMessage]:
        """Report that the app with the tables is not installed."""
        if not apps.is_installed("django_cqrs.outbox"):
            yield Error(
                f"The channel {self.alias!r} needs the outbox's tables.",
                hint="Add 'django_cqrs.outbox' to INSTALLED_APPS and migrate.",
                id="django_cqrs_outbox.E001",
            )


class _Wake(OwnCallback):
    """Wakes the worker of a channel: an ``on_commit`` callback."""

    def __init__(self, channel: OutboxChannel, connection: BaseDatabaseWrapper) -> None:
        self._channel = channel
        self._connection = connection

    def is_of(self, channel: OutboxChannel) -> bool:
        return self._channel is channel

    def __call__(self) -> None:
        self._channel._notify(self._connection)


def _forget_notifications(connection: BaseDatabaseWrapper) -> None:
    """
    Discard the notifications of a connection that does not wait for any.

    A pooler may give it the session in which a worker listens, and psycopg keeps the
    notifications of that session.
    """
    driver: Any = connection.connection
    if getattr(driver, "_notifies_backlog", None):
        for _ in driver.notifies(timeout=0):
            pass


def outbox_of(alias: str) -> OutboxChannel:
    """
    Return the channel of an alias, if its rows wait in the outbox.

    Raises:
        InvalidChannel: the settings do not describe it, or it is of another kind.

    """
    channel = channels[alias]
    if not isinstance(channel, OutboxChannel):
        msg = f"{channel} is not an outbox: it stores no messages for a worker."
        raise InvalidChannel(msg)
    return channel
