"""Dead letters: put back into the outbox, or discarded."""

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

# How many dead letters are put back in one transaction.
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
        size: how many are put back in one transaction at most; of large ones it
            is fewer.

    Returns:
        How many were put back. Their attempts are counted from zero again, and they
        no longer expire.

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

    A message whose time is over is dropped by the worker. Whoever puts one back wants
    it handled: it no longer expires.

    Args:
        letters: of the database `using`; not many. Of large ones it takes a statement
            more for each so many bytes.
        using: its alias.

    Returns:
        Those that were there: others, somebody else has replayed or deleted.

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
        moment = now()  # they begin to wait anew
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
    """Return how many bytes of a statement a dead letter takes at most."""
    return written(letter.payload, letter.headers) + 4096


def discard(
    letters: QuerySet[DeadLetter] | QuerySet[OutboxMessage],
    *,
    using: str,
    size: int = SIZE,
) -> int:
    """
    Permanently delete dead letters, or messages; what waited behind them goes on.

    Args:
        letters: of the database `using`.
        using: its alias.
        size: how many are deleted in one transaction.

    Returns:
        How many there were.

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
