"""The inbox: keys of messages, inserted before the handler in its transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
from django.db.models.constants import OnConflict

from django_cqrs import conf
from django_cqrs.channels.channel import as_timedelta
from django_cqrs.clock import now
from django_cqrs.exceptions import BrokenTransaction
from django_cqrs.inbox import FirstResult
from django_cqrs.outbox.models import InboxEntry
from django_cqrs.outbox.store.batches import SIZE, delete_in_batches
from django_cqrs.statements import fitting, written
from django_cqrs.times import as_sent

COLUMNS = "endpoint", "key", "message_id", "created_at"

# Another transaction may remove or renew a key between two reads of it.
_ROUNDS: Final = 5


def window() -> timedelta:
    """Return the time for which a key is remembered."""
    return as_timedelta(conf.current().IDEMPOTENCY_WINDOW, "IDEMPOTENCY_WINDOW")


class DatabaseInbox:
    """Remembers keys in a table with a unique constraint."""

    def enter(
        self,
        using: str,
        owner: str,
        key: str,
        message_id: UUID,
        *,
        former: Sequence[str] = (),
    ) -> FirstResult | None:
        """Remember a key; return the entry of its first message, None if it is new."""
        connection = connections[using]
        for _ in range(_ROUNDS):
            moment = now()
            if _insert(connection, owner, key, message_id, moment):
                return self._seen_by(using, former, key, moment)
            entries = _entries(using, owner, key)
            found = _first(entries) or _first(entries.select_for_update())
            if found is None:
                continue
            pk, created_at, seen = found
            if as_sent(created_at) > moment - window():
                return seen
            renewed = entries.filter(pk=pk, created_at=created_at).update(
                created_at=moment, message_id=message_id, result=None, outputs=None
            )
            if renewed:
                return None
        msg = f"Key {key!r} of {owner} could not be stored: others changed it."
        raise BrokenTransaction(msg)

    def _seen_by(
        self, using: str, owners: Sequence[str], key: str, now: datetime
    ) -> FirstResult | None:
        """Return the entry under the owner's former names."""
        for owner in owners:
            found = _first(_entries(using, owner, key))
            if found is not None and as_sent(found[1]) > now - window():
                return found[2]
        return None

    def keep(
        self,
        using: str,
        owner: str,
        key: str,
        *,
        result: bytes | None,
        outputs: bytes | None,
    ) -> None:
        """
        Keep the results of the message whose key was entered.

        Raises:
            StatementTooLarge: they are larger than the server accepts.

        """
        with fitting(
            connections[using],
            lambda: written(result or b"", outputs or b""),
            lambda: f"The stored answer for duplicates of a message for {owner}",
        ):
            _entries(using, owner, key).update(result=result, outputs=outputs)

    def forget(self, using: str, owner: str, key: str) -> None:
        """Remove a key that was entered, since its message was dropped."""
        _entries(using, owner, key).delete()

    def purge(
        self, using: str, *, before: datetime | None = None, size: int = SIZE
    ) -> int:
        """
        Delete expired entries, each batch in a statement of its own.

        Args:
            using: the alias of the database.
            before: delete entries made before that time; by default the window's start.
            size: the number of entries in a batch.

        Returns:
            The number of deleted entries.

        """
        if before is None:
            before = now() - window()
        old = InboxEntry.objects.using(using).filter(created_at__lt=before)
        return delete_in_batches(old, by="created_at", size=size)


def _entries(using: str, owner: str, key: str) -> QuerySet[InboxEntry]:
    return InboxEntry.objects.using(using).filter(endpoint=owner, key=key)


def _first(entries: QuerySet[InboxEntry]) -> tuple[int, datetime, FirstResult] | None:
    row = entries.values_list(
        "pk", "created_at", "result", "outputs", "message_id"
    ).first()
    if row is None:
        return None
    pk, created_at, result, outputs, message_id = row
    first = FirstResult(_bytes(result), _bytes(outputs), message_id)
    return pk, created_at, first


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _insert(
    connection: BaseDatabaseWrapper,
    owner: str,
    key: str,
    message_id: UUID,
    now: datetime,
) -> bool:
    """Insert an entry; return whether it is new. A conflict is not an error."""
    operations = connection.ops
    fields: list[Any] = [InboxEntry._meta.get_field(name) for name in COLUMNS]
    ignoring = OnConflict.IGNORE
    start = operations.insert_statement(on_conflict=ignoring)
    end = operations.on_conflict_suffix_sql(fields, ignoring, (), ())
    table = operations.quote_name(InboxEntry._meta.db_table)
    names = ", ".join(operations.quote_name(name) for name in COLUMNS)
    statement = f"{start} {table} ({names}) VALUES (%s, %s, %s, %s) {end}"
    values = [
        field.get_db_prep_save(value, connection)
        for field, value in zip(fields, (owner, key, message_id, now), strict=True)
    ]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return bool(cursor.rowcount == 1)


inbox: Final = DatabaseInbox()
