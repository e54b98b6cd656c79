"""
Shards: the parts of projections that workers take, work on, and give back.

A worker takes a shard in the transaction of a batch, by the lock of its row. Between
two batches it keeps the shard by a lease, for at most a few seconds, so that the work
moves. The token grows whenever another worker takes the shard: what was remembered
before is void then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs import clock
from django_cqrs.events.models import Generation, Shard
from django_cqrs.leases import lease_end, lease_value
from django_cqrs.times import as_stored

LEASE: Final = timedelta(seconds=5)
"""How long a shard is kept without a sign of life of its worker."""

HOLD: Final = 3.0
"""How long a worker keeps a shard that is behind, in seconds."""

SHARD: Final = Shard._meta.db_table
GENERATION: Final = Generation._meta.db_table


@dataclasses.dataclass(frozen=True, slots=True)
class ShardPlace:
    """A shard that a worker may take now."""

    pk: int
    projection: str
    number: int
    position: int
    shards: int
    """The number of shards of its projection."""
    is_held: bool
    """Whether this worker has its lease."""


def candidates(
    connection: BaseDatabaseWrapper, names: Sequence[str], owner: str, bound: int
) -> list[ShardPlace]:
    """
    Return the shards behind a position that a worker may take, the hindmost first.

    Those beyond it are included: the store may have been set back.

    Args:
        connection: of the database with the events.
        names: the projections.
        owner: the name of the worker.
        bound: the position.

    """
    if not names:
        return []
    now, nows = _now(connection)
    marks = ", ".join(["%s"] * len(names))
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.id, g.projection, s.number, s.position, "
            f"(SELECT COUNT(*) FROM {SHARD} o WHERE o.generation_id = g.id), s.owner "
            f"FROM {SHARD} s JOIN {GENERATION} g ON g.id = s.generation_id "
            f"WHERE g.projection IN ({marks}) AND g.is_live = %s AND g.status = %s "
            "AND s.position <> %s "
            "AND (s.owner = '' OR s.owner = %s OR s.lease_expires_at IS NULL "
            f"OR s.lease_expires_at <= {now}) "
            f"AND (s.retry_at IS NULL OR s.retry_at <= {now}) "
            "ORDER BY s.position, s.number",
            [*names, True, "live", bound, owner, *nows, *nows],
        )
        return [
            ShardPlace(pk, projection, number, position, shards, holder == owner)
            for pk, projection, number, position, shards, holder in cursor.fetchall()
        ]


def _now(connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
    """Return the time of the database's clock in SQL, with its parameters."""
    if connection.vendor == "postgresql":
        return "CLOCK_TIMESTAMP()", []
    if connection.vendor == "mysql":
        return "UTC_TIMESTAMP(6)", []
    return "%s", [as_stored(clock.now(), connection)]


@dataclasses.dataclass(slots=True)
class HeldShard:
    """A shard whose row this transaction has locked."""

    pk: int
    generation: int
    number: int
    position: int
    owner: str
    token: int
    attempts: int
    failed_position: int | None
    has_error: bool
    state: str | None
    """The state as JSON text, if it was asked for."""
    status: str | None
    """The status of its generation; None if that is not live."""


def take(
    connection: BaseDatabaseWrapper, pk: int, owner: str, *, with_state: bool
) -> HeldShard | None:
    """
    Lock a shard in the open transaction, unless it is another worker's.

    Args:
        connection: with the transaction.
        pk: the key of its row.
        owner: the name of the worker.
        with_state: whether its state is read.

    Returns:
        The shard; None if another worker has it, or it is gone.

    """
    now, nows = _now(connection)
    # InnoDB locks a row for a moment before it compares the columns.
    is_free = (
        "s.id = %s AND (s.owner = '' OR s.owner = %s OR s.lease_expires_at IS NULL "
        f"OR s.lease_expires_at <= {now})"
    )
    lock = ""
    features = connection.features
    if features.has_select_for_update_skip_locked:
        lock = " FOR UPDATE SKIP LOCKED"
    elif features.has_select_for_update:
        lock = " FOR UPDATE"
    state = "s.state" if with_state else "NULL"
    with connection.cursor() as cursor:
        if not lock:  # SQLite: a write lock, before anything is read
            cursor.execute(f"UPDATE {SHARD} SET token = token WHERE id = %s", [pk])
        cursor.execute(
            "SELECT s.id, s.generation_id, s.number, s.position, s.owner, s.token, "
            "s.attempts, s.failed_position, CASE WHEN s.error = '' THEN 0 ELSE 1 END, "
            f"{state}, (SELECT g.status FROM {GENERATION} g "
            "WHERE g.id = s.generation_id AND g.is_live = %s) "
            f"FROM {SHARD} s WHERE {is_free}{lock}",
            [True, pk, owner, *nows],
        )
        row = cursor.fetchone()
    if row is None:
        return None
    held = HeldShard(*row)
    held.token += held.owner != owner
    held.has_error = bool(held.has_error)
    if isinstance(held.state, bytes):
        held.state = held.state.decode()
    return held


def is_kept(connection: BaseDatabaseWrapper, pk: int, owner: str) -> bool:
    """
    Return whether a worker has the lease of a shard, without waiting for its row.

    Whoever has locked the row then looks at it only, or changes the projection.

    Args:
        connection: of the database with the events.
        pk: the key of the shard's row.
        owner: the name of the worker.

    """
    now, nows = _now(connection)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT 1 FROM {SHARD} s WHERE s.id = %s AND s.owner = %s "
            f"AND s.lease_expires_at > {now}",
            [pk, owner, *nows],
        )
        return cursor.fetchone() is not None


def keep(
    connection: BaseDatabaseWrapper,
    held: HeldShard,
    *,
    position: int,
    handled: int,
    owner: str,
    state: str | None = None,
    error: str = "",
    attempts: int = 0,
    failed_position: int | None = None,
    retry_at: datetime | None = None,
) -> None:
    """
    Write how far a locked shard has come, at the end of its transaction.

    Args:
        connection: with the transaction.
        held: the shard; its position and token are changed as well.
        position: no event up to it is left.
        handled: the number of events that were handled.
        owner: who keeps its lease; empty gives it back.
        state: the state as JSON text; None leaves it as it is.
        error: the text of the failure that it waits with, if any.
        attempts: the number of attempts at the event that fails.
        failed_position: the position of that event.
        retry_at: the time of the next attempt.

    """
    values: list[Any] = [position, handled, owner]
    lease = "NULL"
    if owner:
        lease = lease_end(connection)
        values.append(lease_value(connection, LEASE))
    values += [held.token, attempts, error, failed_position]
    values.append(None if retry_at is None else as_stored(retry_at, connection))
    values.append(as_stored(clock.now(), connection))
    assignment = ""
    if state is not None:
        cast = "::jsonb" if connection.vendor == "postgresql" else ""
        assignment = f", state = %s{cast}"
        values.append(state)
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {SHARD} SET position = %s, handled = handled + %s, owner = %s, "
            f"lease_expires_at = {lease}, token = %s, attempts = %s, error = %s, "
            f"failed_position = %s, retry_at = %s, updated_at = %s{assignment} "
            "WHERE id = %s",
            [*values, held.pk],
        )
    held.position, held.owner = position, owner


def give_back(connection: BaseDatabaseWrapper, owner: str) -> None:
    """End all leases of a worker."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {SHARD} SET owner = '', lease_expires_at = NULL WHERE owner = %s",
            [owner],
        )
