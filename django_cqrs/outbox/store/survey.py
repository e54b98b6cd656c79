"""Look at many channels in one statement: which of them have anything to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from django_cqrs.clock import now
from django_cqrs.leases import lease_end, lease_value
from django_cqrs.outbox.models import State
from django_cqrs.outbox.store.dialects import (
    NO_SCAN,
    forms_transaction,
    to_last_result,
)
from django_cqrs.outbox.store.table import Table
from django_cqrs.times import as_stored

MOST_CHANNELS: Final = 100
"""The maximum number of channels in one statement."""


class Overdue(NamedTuple):
    """The kinds of messages that wait for a worker to look after them."""

    due: bool = False
    """Whether a delayed message is due."""
    expired: bool = False
    """Whether the lease of a claimed message has expired."""
    abandoned: bool = False
    """Whether a message of a dead worker waits to be claimed alone."""


class Survey(Table):
    """Looks at many channels at once, takes no lock, and opens no transaction."""

    def is_cheaper_than_claims(self, count: int) -> bool:
        """Return whether a look at channels saves statements if they are empty."""
        # A claim of nothing is one statement on PostgreSQL. Elsewhere it also begins
        # and ends a transaction, which on SQLite may keep others from writing.
        return count > 1 or (count == 1 and not forms_transaction(self.connection))

    def channels_with(self, channels: Sequence[str], *states: State) -> set[str]:
        """Return the channels that have a message in one of some states."""
        found: set[str] = set()
        for some in _portions(channels):
            source, values = self._channels(some)
            first = ", ".join(self._first(_is(state)) for state in states)
            first = f"COALESCE({first})" if len(states) > 1 else first
            found.update(
                channel
                for (channel,) in self._answers(
                    f"SELECT p.c FROM {source} WHERE {first} IS NOT NULL",  # noqa: S608
                    values,
                )
            )
        return found

    def overdue(self, channels: Sequence[str], *, alone: Sequence[str]) -> Overdue:
        """
        Return the kinds of messages that a worker must look after.

        Args:
            channels: those with delayed and claimed messages.
            alone: those whose abandoned messages it claims.

        """
        found = Overdue()
        for some in _portions(channels):
            seen = self._overdue(some, [each for each in some if each in alone])
            found = Overdue(*map(any, zip(found, seen, strict=True)))
        return found

    def _overdue(self, channels: Sequence[str], alone: Sequence[str]) -> Overdue:
        connection = self.connection
        moment = as_stored(now(), connection)
        lease = lease_value(connection, timedelta())
        expired = f"o.lease_expires_at < {lease_end(connection)}"
        columns: list[str] = []
        values: list[Any] = []
        for some, condition, *rest in (
            (channels, f"{_is(State.DELAYED)} AND o.available_at <= %s", moment),
            (channels, f"{_is(State.CLAIMED)} AND {expired}", lease),
            (alone, _is(State.ABANDONED)),
        ):
            column, names = self._any(some, condition) if some else ("NULL", [])
            columns.append(column)
            values += [*names, *rest]
        (row,) = self._answers(f"SELECT {', '.join(columns)}", values)
        return Overdue(*(each is not None for each in row))

    def _any(self, channels: Sequence[str], condition: str) -> tuple[str, list[Any]]:
        """Return SQL for 1 if a message of some channels meets a condition, or NULL."""
        if self.connection.vendor == "sqlite":
            # With many channels in one condition, it might read the whole table.
            source, values = self._channels(channels)
            first = self._first(condition)
            return f"(SELECT 1 FROM {source} WHERE {first} IS NOT NULL LIMIT 1)", values  # noqa: S608
        one_of, values = self._one_of(channels)
        return (
            f"(SELECT 1 FROM {self._table} o WHERE o.channel {one_of} "  # noqa: S608
            f"AND {condition} LIMIT 1)"
        ), values

    def _first(self, condition: str) -> str:
        """Return SQL for 1 if a message of a channel `p.c` meets it, or NULL."""
        # Not EXISTS: PostgreSQL may answer that for all channels by one long scan.
        return (
            f"(SELECT 1 FROM {self._table} o WHERE o.channel = p.c "  # noqa: S608 - no value in it
            f"AND {condition}{self._turn} LIMIT 1)"
        )

    def _channels(self, channels: Sequence[str]) -> tuple[str, list[Any]]:
        """Return a table `p` with a column `c` of channels, as SQL, and its values."""
        if self.connection.vendor == "postgresql":
            return "unnest(%s::text[]) p (c)", [list(channels)]
        more = " UNION ALL SELECT %s" * (len(channels) - 1)
        return f"(SELECT %s AS c{more}) p", list(channels)

    def _one_of(self, channels: Sequence[str]) -> tuple[str, list[Any]]:
        if self.connection.vendor == "postgresql":
            return "= ANY(%s::text[])", [list(channels)]
        return f"IN ({', '.join(['%s'] * len(channels))})", list(channels)

    @property
    def _turn(self) -> str:
        # PostgreSQL would otherwise read the whole table for a channel with no message,
        # if many others have some. MariaDB before 10.8 would sort all of them.
        is_needed = self.connection.vendor == "postgresql"
        return " ORDER BY o.priority DESC, o.sequence" if is_needed else ""

    def _answers(self, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
        if forms_transaction(self.connection):
            statement = f"{NO_SCAN}; {statement}"
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)
            to_last_result(cursor)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def _portions(channels: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(channels), MOST_CHANNELS):
        yield channels[start : start + MOST_CHANNELS]


def _is(state: State) -> str:
    return f"o.state = {state.value}"
