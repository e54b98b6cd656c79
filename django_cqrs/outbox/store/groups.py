"""The state of ordering keys: the messages of a key that block others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State
from django_cqrs.outbox.store.rows import Group

# The number of rows examined by a claim in order, and of groups in one statement.
LOOK: Final = 100


class Candidate(NamedTuple):
    """A row that is next in its channel."""

    pk: int
    sequence: int
    group: Group | None
    row: tuple[Any, ...]
    """The columns that it is taken with."""


class Pair(NamedTuple):
    """A group under one of its endpoint's names."""

    group: Group
    endpoint: str
    seen: int = 0
    last: int = 0


class Block(NamedTuple):
    """The row that blocks other messages of its key."""

    model: type[OutboxMessage | DeadLetter]
    pk: int


@dataclasses.dataclass(slots=True)
class KeyState:
    """The messages of a key: ids and sequences, None if there are none."""

    held: int | None = None
    failed: tuple[int, int] | None = None
    """The first message that will be retried: its sequence and its id."""
    dead: tuple[int, int] | None = None
    ready: tuple[int, int] | None = None
    parked: tuple[int, int] | None = None
    abandoned: tuple[int, int] | None = None

    def block(self) -> tuple[Block | None, int | None]:
        """
        Return the row that blocks others, and the first sequence that it blocks.

        Messages to be retried, and dead letters, block the messages sent after them.
        """
        if self.held is not None:
            return Block(OutboxMessage, self.held), 0
        blocks = [
            (each[0], Block(model, each[1]))
            for model, each in (
                (OutboxMessage, self.failed),
                (DeadLetter, self.dead),
                (OutboxMessage, self.abandoned),
            )
            if each is not None
        ]
        if not blocks:
            return None, None
        block = min(blocks, key=itemgetter(0))[1]  # blocks cannot be ordered
        ends = [each[0] for each in (self.failed, self.dead) if each is not None]
        return block, min(ends, default=None)

    def head(self) -> int:
        """Return the sequence of the first waiting message; 2**63 if there is none."""
        waiting = (self.ready, self.parked, self.abandoned)
        return min((each[0] for each in waiting if each), default=2**63)

    def first(self) -> int:
        """Return the first sequence that waits, failed or is dead; 2**63 if none."""
        firsts = [each[0] for each in (self.failed, self.dead) if each]
        return min(self.head(), *firsts, 2**63)

    def is_stranded(self) -> bool:
        """Return whether the parked messages have nothing to wait for."""
        if self.parked is None or self.ready or self.abandoned:
            return False
        _, before = self.block()
        return before is None or self.parked[0] < before


class Groups:
    """Queries many keys in one statement, with a few index look-ups for each."""

    def __init__(self, connection: Any) -> None:
        """Prepare the statements for a database."""
        self._connection = connection
        quote = connection.ops.quote_name
        table = quote(OutboxMessage._meta.db_table)
        of_key = "o.ordering_key = p.k AND o.endpoint = p.e"
        dead = f"FROM {quote(DeadLetter._meta.db_table)} o WHERE {of_key}"
        # A message that an outage hit has failed too, although no attempt was counted.
        failed = (
            f"o.state = {State.DELAYED.value} "
            f"AND (o.attempts > 0 OR o.last_error IS NOT NULL)"
        )

        def first(column: str, condition: str) -> str:
            return (
                f"(SELECT o.{column} FROM {table} o WHERE {of_key} AND {condition} "  # noqa: S608
                f"ORDER BY o.sequence LIMIT 1)"
            )

        def first_two(condition: str) -> str:
            return f"{first('sequence', condition)}, {first('id', condition)}"

        def any_of(condition: str) -> str:
            # Not EXISTS: PostgreSQL may answer that for all keys by one long scan.
            return f"(SELECT 1 FROM {table} o WHERE {of_key} AND {condition} LIMIT 1)"  # noqa: S608

        counted = (
            f"(SELECT COUNT(*) FROM {table} o WHERE {of_key} "  # noqa: S608
            f"AND o.state = {State.READY.value} AND o.sequence <= p.s)"
        )
        others = any_of(_elsewhere), any_of(failed), f"(SELECT 1 {dead} LIMIT 1)"
        self._prefixes = ", ".join((counted, *others))
        self.is_mixed = " OR ".join(
            (f"{counted} <> p.c", *(f"{each} IS NOT NULL" for each in others))
        )
        """Whether a key has other messages than its first `c` ready ones."""
        self._standings = ", ".join(
            (
                first("id", f"o.state IN ({_holding})"),
                first_two(failed),
                f"(SELECT o.sequence {dead} ORDER BY o.sequence LIMIT 1)",
                f"(SELECT o.id {dead} ORDER BY o.sequence LIMIT 1)",
                *(
                    first_two(f"o.state = {state.value}")
                    for state in (State.READY, State.PARKED, State.ABANDONED)
                ),
            )
        )
        self._heads = first("id", f"o.state = {State.PARKED.value}")

    def prefixes(self, pairs: Sequence[Pair]) -> dict[Group, bool]:
        """Return by group whether all its messages, up to the last seen, were seen."""
        unseen = {pair.group: -pair.seen for pair in pairs}
        mixed: set[Group] = set()
        for pair, (count, *others) in self._ask(self._prefixes, pairs):
            unseen[pair.group] += count
            if any(others):
                mixed.add(pair.group)
        return {
            group: not count and group not in mixed for group, count in unseen.items()
        }

    def standings(self, pairs: Sequence[Pair]) -> dict[Group, KeyState]:
        """Return the state of each group."""
        found: dict[Group, KeyState] = {}
        for pair, (held, *firsts) in self._ask(self._standings, pairs):
            standing = found.setdefault(pair.group, KeyState())
            standing.held = standing.held or held
            names = ("failed", "dead", "ready", "parked", "abandoned")
            for place, name in enumerate(names):
                sequence, pk = firsts[2 * place : 2 * place + 2]
                before = getattr(standing, name)
                if pk is not None and (before is None or (sequence, pk) < before):
                    setattr(standing, name, (sequence, pk))
        return found

    def parked_heads(self, pairs: Sequence[Pair]) -> list[int]:
        """Return the ids of the first parked message of each pair."""
        return [pk for _, (pk,) in self._ask(self._heads, pairs) if pk is not None]

    def _ask(
        self, columns: str, pairs: Sequence[Pair]
    ) -> Iterator[tuple[Pair, tuple[Any, ...]]]:
        for start in range(0, len(pairs), LOOK):
            some = pairs[start : start + LOOK]
            statement, values = self._statement(columns, some)
            with self._connection.cursor() as cursor:
                cursor.execute(statement, values)
                found = cursor.fetchall()
            for number, *answers in found:
                yield some[number], tuple(answers)

    def _statement(
        self, columns: str, pairs: Sequence[Pair]
    ) -> tuple[str, Sequence[Any]]:
        """Return the query for columns of each pair, and its parameters."""
        rows = [
            (number, pair.group[1], pair.endpoint, pair.last)
            for number, pair in enumerate(pairs)
        ]
        values: list[Any]
        if self._connection.vendor == "postgresql":
            # One plan and one parameter for any number of pairs.
            table = "json_to_recordset(%s) p (n integer, k text, e text, s bigint)"
            values = [json.dumps([dict(zip("nkes", row, strict=True)) for row in rows])]
        else:
            first = "SELECT %s AS n, %s AS k, %s AS e, %s AS s"
            more = " UNION ALL SELECT %s, %s, %s, %s" * (len(rows) - 1)
            table = f"({first}{more}) p"
            values = [value for row in rows for value in row]
        return f"SELECT p.n, {columns} FROM {table}", values  # noqa: S608 - no value in it


_holding = f"{State.CLAIMED.value}, {State.FORWARDED.value}"
# Claimed messages, and parked ones: one range of an index.
_elsewhere = f"o.state BETWEEN {State.CLAIMED.value} AND {State.FORWARDED.value}"
