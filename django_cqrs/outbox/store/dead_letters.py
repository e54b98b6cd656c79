"""Replay dead letters through the outbox, or discard them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from django.db import connections
from django.db.models import QuerySet

from django_cqrs.clock import now
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State, StoredMessage
from django_cqrs.outbox.store.batches import SIZE, retrying_deadlocks
from django_cqrs.outbox.store.store import Store
from django_cqrs.statements import MOST_BYTES, portions, written

# The number of dead letters that are put back in one transaction.
REPLAYED: Final = 500


def replay(
    letters: Iterable[DeadLetter],
    *,
    using: str,
    size: int = REPLAYED,
) -> int:
    """
    Put dead letters back into the outbox, each for its own endpoint alone.

    Args:
        letters: of the database `using`.
        using: its alias.
        size: the maximum number that is put back in one transaction; fewer if they are
            large.

    Returns:
        The number that was put back. Their attempts start again from zero, and they no
        longer expire.

    """
    count, length = 0, 0
    batch: list[DeadLetter] = []
    for letter in letters:
        more = _size_of(letter)
        if batch and (len(batch) == size or length + more > MOST_BYTES):
            count += len(put_back(batch, using=using))
            batch, length = [], 0
        batch.append(letter)
        length += more
    return count + len(put_back(batch, using=using))


def put_back(letters: Iterable[DeadLetter], *, using: str) -> list[DeadLetter]:
    """
    Put dead letters back, all of them in one transaction and by three statements.

    The worker drops a message that has expired. A letter is put back to be handled, so
    it no longer expires.

    Args:
        letters: of the database `using`; only a few. Large ones need additional
            statements, one for each so many bytes.
        using: its alias.

    Returns:
        Those that still existed: somebody else has replayed or deleted the others.

    """
    wanted = {letter.pk: letter for letter in letters}
    kept = DeadLetter.objects.using(using).filter(pk__in=wanted)
    there: QuerySet[Any] = kept.order_by("pk")
    if connections[using].features.has_select_for_update:
        there = there.select_for_update()

    def move() -> list[DeadLetter]:
        keys = set(there.values_list("pk", flat=True))
        if not keys:
            return []
        found = [letter for pk, letter in wanted.items() if pk in keys]
        moment = now()  # their wait starts again
        rows = OutboxMessage.objects.using(using)
        for part in portions(connections[using], found, _size_of, rows=len(found)):
            rows.bulk_create(
                OutboxMessage(
                    **{name: getattr(letter, name) for name in _SHARED},
                    state=State.READY,
                    available_at=moment,
                )
                for letter in part
            )
        kept.filter(pk__in=keys)._raw_delete(using)
        return found

    return retrying_deadlocks(move, using=using)


_SHARED = tuple(
    field.attname
    for field in StoredMessage._meta.fields
    if field.attname not in ("id", "attempts", "expires_at")
)


def _size_of(letter: DeadLetter) -> int:
    """Return the maximum number of bytes that a dead letter takes in a statement."""
    return written(letter.payload, letter.headers) + 4096


def discard(
    letters: QuerySet[DeadLetter] | QuerySet[OutboxMessage],
    *,
    using: str,
    size: int = SIZE,
) -> int:
    """
    Permanently delete dead letters or messages, and let those behind them continue.

    Args:
        letters: of the database `using`.
        using: its alias.
        size: the number that is deleted in one transaction.

    Returns:
        The number of deleted rows.

    """
    store, count = Store(using), 0

    def delete() -> tuple[int, int]:
        some = list(
            letters.order_by("pk").values_list("pk", "endpoint", "ordering_key")[:size]
        )
        keys = [pk for pk, _, _ in some]
        found = letters.model._default_manager.using(using).filter(pk__in=keys)
        deleted = found.delete()[0]
        store.wake({(name, key) for _, name, key in some if key is not None})
        return len(some), deleted

    while True:
        seen, deleted = retrying_deadlocks(delete, using=using)
        count += deleted
        if seen < size:
            return count
