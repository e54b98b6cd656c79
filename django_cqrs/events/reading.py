"""Read events in pages, by version in a stream, by position in the whole store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.events.columns import (
    ARCHIVED,
    EVENT,
    LINK,
    STREAM,
    columns_read,
    key_column,
    recorded_from,
)
from django_cqrs.events.decoding import Decoder, decoder_of
from django_cqrs.events.queries import EVERYTHING, EventQuery, condition_of
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.stream_names import StreamName

PAGE: Final = 1000
"""The number of events that a query reads."""

NARROWEST: Final = 2000
"""The number of positions that the first query of a scan looks at."""

WIDEST: Final = 200_000
"""The number of positions that a query looks at, if few events match."""

_WIDER: Final = 10


# A stream -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class StreamPage:
    """Some of the events of a stream, and the version at which the next page begins."""

    recorded: list[Recorded]
    edge: int | None
    """The version of the last one; None if no other page follows."""


def stream_page(
    connection: BaseDatabaseWrapper,
    name: StreamName,
    decoder: Decoder,
    *,
    first: int = 1,
    last: int | None = None,
    backwards: bool = False,
    limit: int = PAGE,
) -> StreamPage:
    """
    Return the events of a stream between two versions, by one query.

    Links are returned as their originals, with the versions of the links.
    """
    where = f"s.category = %s AND s.{key_column(connection)} = %s AND e.version >= %s"
    parameters: list[Any] = [*name, first]
    if last is not None:
        where += " AND e.version <= %s"
        parameters.append(last)
    order = "DESC" if backwards else "ASC"
    rows = _rows(
        connection, where, parameters, f"ORDER BY e.version {order} LIMIT {limit}"
    )
    edge = rows[-1][4] if len(rows) == limit else None
    return StreamPage(resolved(rows, connection, decoder), edge)


def _rows(
    connection: BaseDatabaseWrapper,
    where: str,
    parameters: list[Any],
    end: str,
    *,
    table: str = EVENT,
    join: str = "JOIN",
) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {columns_read(connection)} FROM {table} e "
            f"{join} {STREAM} s ON s.id = e.stream_id WHERE {where} {end}",
            parameters,
        )
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def events_where(
    connection: BaseDatabaseWrapper,
    where: str,
    parameters: list[Any],
    decoder: Decoder,
) -> list[Recorded]:
    """
    Return the events that meet a condition, in order of position, by one query.

    Args:
        connection: of the database with the events.
        where: the condition for an event `e` and its stream `s`.
        parameters: its parameters.
        decoder: of the registered classes.

    """
    rows = _rows(connection, where, parameters, "ORDER BY e.position", join="LEFT JOIN")
    return resolved(rows, connection, decoder)


def resolved(
    rows: list[tuple[Any, ...]], connection: BaseDatabaseWrapper, decoder: Decoder
) -> list[Recorded]:
    """Return rows as events, links with the content of their originals."""
    if any(row[LINK] is not None for row in rows):
        rows = list(_with_originals(rows, connection))
    return recorded_from(rows, connection, decoder)


_CONTENT: Final = slice(5, LINK)
"""The columns that a link takes from its original: from the name to the time."""


def _with_originals(
    rows: list[tuple[Any, ...]], connection: BaseDatabaseWrapper
) -> Iterator[tuple[Any, ...]]:
    """Yield rows with the content of originals in links; without links to nothing."""
    wanted = sorted({row[LINK] for row in rows if row[LINK] is not None})
    marks = ", ".join(["%s"] * len(wanted))
    originals: dict[int, tuple[Any, ...]] = {}
    for table in (EVENT, ARCHIVED):
        if len(originals) < len(wanted):
            found = _rows(
                connection,
                f"e.position IN ({marks})",
                wanted,
                "",
                table=table,
                join="LEFT JOIN",
            )
            originals |= {row[0]: row for row in found}
    for row in rows:
        if row[LINK] is None:
            yield row
        elif row[LINK] in originals:
            content = originals[row[LINK]][_CONTENT]
            yield (*row[: _CONTENT.start], *content, row[LINK])


# The whole store ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some of the events behind a position, and the position that they reach to."""

    recorded: list[Recorded]
    position: int
    """No event that matches is between the last one and this position."""


class Scan:
    """
    Reads the events that match a query, in order of position, page by page.

    A query looks at a limited number of positions, which grows where few events match:
    a rare event needs no index, and no query is long.
    """

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        types: MessageTypes,
        query: EventQuery = EVERYTHING,
        *,
        archived: bool = False,
    ) -> None:
        """
        Prepare the statement.

        Args:
            connection: of the database with the events.
            types: the registered classes.
            query: which events.
            archived: whether those of archived streams as well.

        """
        self._connection = connection
        self._decoder = decoder_of(types)
        self.condition = condition_of(query, types, connection)
        self._tables = (EVENT, ARCHIVED) if archived else (EVENT,)
        self._window = NARROWEST

    def page(self, after: int, until: int, limit: int = PAGE) -> Page:
        """
        Return the next events, by one query.

        Args:
            after: the position behind which to begin.
            until: the last position to look at: at most the settled one.
            limit: the maximum number of events.

        """
        rows, reached = self._next(after, until, limit)
        return Page(self._events_of(rows), reached)

    def snapshot_page(
        self, after: int, until: int, limit: int, other: BaseDatabaseWrapper
    ) -> tuple[Page, bool]:
        """
        Return the next events as an older snapshot has them, and no position beyond it.

        What was committed since the snapshot is settled now, and invisible in it. So
        the page ends before the first event that only another connection sees.

        Args:
            after: as for :meth:`page`.
            until: likewise.
            limit: likewise.
            other: a connection to the same database without an open transaction.

        Returns:
            The page, and whether it ends for that reason.

        """
        rows, reached = self._next(after, until, limit)
        sql, parameters = self.condition
        with other.cursor() as cursor:
            cursor.execute(
                f"SELECT e.position FROM {EVENT} e "
                f"LEFT JOIN {STREAM} s ON s.id = e.stream_id "
                f"WHERE e.position > %s AND e.position <= %s AND ({sql})",
                [after, reached, *parameters],
            )
            visible = {position for (position,) in cursor.fetchall()}
        missing = visible.difference(row[0] for row in rows)
        if missing:
            reached = min(missing) - 1
            rows = [row for row in rows if row[0] <= reached]
        return Page(self._events_of(rows), reached), bool(missing)

    def _next(
        self, after: int, until: int, limit: int
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Return the next rows, and the position that they reach to."""
        end = min(until, after + max(self._window, limit))
        if end <= after:
            return [], after
        sql, parameters = self.condition
        rows: list[tuple[Any, ...]] = []
        for table in self._tables:
            rows += _rows(
                self._connection,
                f"e.position > %s AND e.position <= %s AND ({sql})",
                [after, end, *parameters],
                f"ORDER BY e.position LIMIT {limit}",
                table=table,
                join="LEFT JOIN",
            )
        if len(self._tables) > 1:
            rows = sorted(rows, key=_position)[:limit]
        if len(rows) >= limit:
            self._window = NARROWEST
            return rows, rows[-1][0]
        if len(rows) * 2 < limit:
            self._window = min(self._window * _WIDER, WIDEST)
        return rows, end

    def _events_of(self, rows: list[tuple[Any, ...]]) -> list[Recorded]:
        """Return rows as events, without those that an upcaster drops."""
        return without_dropped(resolved(rows, self._connection, self._decoder))

    def everything(self) -> list[Recorded]:
        """Return all events that match and are visible, in one statement."""
        sql, parameters = self.condition
        columns = columns_read(self._connection)
        parts = [
            f"SELECT {columns} FROM {table} e "
            f"LEFT JOIN {STREAM} s ON s.id = e.stream_id WHERE {sql}"
            for table in self._tables
        ]
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"{' UNION ALL '.join(parts)} ORDER BY position",
                parameters * len(self._tables),
            )
            rows = cursor.fetchall()
        return self._events_of(rows)


def _position(row: tuple[Any, ...]) -> int:
    position: int = row[0]
    return position


def without_dropped(recorded: list[Recorded]) -> list[Recorded]:
    """Return events without those that an upcaster drops."""
    return [each for each in recorded if not each.is_dropped]
