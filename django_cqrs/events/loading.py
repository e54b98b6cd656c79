"""Load an object from its stream: its snapshot if it has one, and the events after."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.appliers import NOT_TAKEN, About, Appliers, ApplyingStep
from django_cqrs.events.columns import (
    EVENT,
    SNAPSHOT,
    STREAM,
    columns_read,
    key_column,
)
from django_cqrs.events.decoding import UNREADABLE, Decoder
from django_cqrs.events.reading import resolved, stream_page
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.snapshots import Snapshots
from django_cqrs.events.stream_names import StreamName
from django_cqrs.exceptions import MessageConversionError, UnknownMessage
from django_cqrs.messages import EPOCH
from django_cqrs.pipeline.envelopes import UNSET
from django_cqrs.statements import PlainStatements
from django_cqrs.times import as_stored


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """An object, and the place in its stream that it was loaded from."""

    instance: Any
    stream_id: int
    version: int
    is_archived: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Located:
    """The row of a stream."""

    stream_id: int
    is_archived: bool
    is_deleted: bool


_STREAM: Final = "s.id, s.archived_at, s.deleted_at"
_STREAM_SIZE: Final = 3
_QUICK: Final = (
    "e.position, e.version, e.name, e.shape, e.payload, e.headers, e.link_to"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Until:
    """The last event to be loaded: by its version, by its time, or by both."""

    version: int | None = None
    at: datetime | None = None

    def condition(self, connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
        """Return the SQL condition of events up to it, and its parameters."""
        sql, parameters = "", []
        if self.version is not None:
            sql += " AND e.version <= %s"
            parameters.append(self.version)
        if self.at is not None:
            sql += " AND e.recorded_at <= %s"
            parameters.append(as_stored(self.at, connection))
        return sql, parameters


NOW: Final = Until()


class Loader:
    """Loads the objects of one class, whose events one registry knows."""

    def __init__(
        self, appliers: Appliers, decoder: Decoder, snapshots: Snapshots | None
    ) -> None:
        """
        Prepare the loading.

        Args:
            appliers: those of the class.
            decoder: reads the events.
            snapshots: the snapshots of the class, if it has some.

        """
        self._appliers = appliers
        self._decoder = decoder
        self._snapshots = snapshots
        self._steps: dict[tuple[str, int], ApplyingStep] = {}

    def load(
        self,
        connection: BaseDatabaseWrapper,
        name: StreamName,
        *,
        lock: bool = False,
        until: Until = NOW,
        uses_snapshot: bool = True,
    ) -> Loaded | None:
        """
        Return the object of a stream, None if the stream has no events.

        Args:
            connection: of the database.
            name: the name of the stream.
            lock: whether others must not append until the transaction ends.
            until: the last event, by default that of the stream.
            uses_snapshot: whether to begin with the snapshot.

        Raises:
            UnknownMessage: an event was stored by newer code.
            MessageConversionError: an event does not have its class's shape.

        """
        snapshots = self._snapshots if uses_snapshot and until is NOW else None
        located, held, rows = self._read(connection, name, snapshots, until, lock=lock)
        if located is None or located.is_deleted:
            return None
        instance, last = (None, 0) if held is None else held
        if held is None:
            if not rows:
                return None
            instance = self._appliers.blank()
        if rows:
            last = rows[-1][4 if self._needs_origin else 1]
            instance = self._replay(connection, instance, rows, name)
        return Loaded(instance, located.stream_id, last, located.is_archived)

    def made_of(self, recorded: Iterable[Recorded]) -> Any:
        """
        Return the object that stored events make.

        Args:
            recorded: the events of a stream, from the first one on.

        Raises:
            UnknownMessage: an event was stored by newer code.
            MessageConversionError: an event does not have its class's shape.

        """
        return self._apply_with_origin(self._appliers.blank(), recorded)

    @property
    def _needs_origin(self) -> bool:
        return self._appliers.needs_origin

    def _read(
        self,
        connection: BaseDatabaseWrapper,
        name: StreamName,
        snapshots: Snapshots | None,
        until: Until,
        *,
        lock: bool,
    ) -> tuple[_Located | None, tuple[Any, int] | None, list[tuple[Any, ...]]]:
        """Return a stream's row, the state in its snapshot, and the events after it."""
        columns = columns_read(connection) if self._needs_origin else _QUICK
        where = f"s.category = %s AND s.{key_column(connection)} = %s"
        limit, limits = until.condition(connection)
        end = f"{limit} ORDER BY e.version"
        locking = _LOCKS.get(connection.vendor, "") if lock else ""
        events = (
            f"SELECT {columns} FROM {EVENT} e JOIN {STREAM} s ON s.id = e.stream_id"
        )
        with connection.cursor() as cursor:
            if snapshots is not None:
                cursor.execute(
                    f"SELECT {_STREAM}, n.version, n.fingerprint, n.state "
                    f"FROM {STREAM} s LEFT JOIN {SNAPSHOT} n ON n.stream_id = s.id "
                    f"WHERE {where}{locking}",
                    name,
                )
            elif not locking:
                cursor.execute(
                    f"SELECT {_STREAM}, {columns} FROM {STREAM} s "
                    f"JOIN {EVENT} e ON e.stream_id = s.id WHERE {where}{end}",
                    [*name, *limits],
                )
                found = cursor.fetchall()
                located = _located(found[0]) if found else None
                return located, None, [row[_STREAM_SIZE:] for row in found]
            else:
                several = _sends_several(connection)
                # The second statement sees what was committed before the lock was free.
                also = f"; {events} WHERE {where}{end}" if several else ""
                parameters = [*name, *name, *limits] if several else [*name]
                cursor.execute(
                    PlainStatements(
                        f"SELECT {_STREAM} FROM {STREAM} s WHERE {where}{locking}{also}"
                    ),
                    parameters,
                )
                if several:
                    row = cursor.fetchone()
                    cursor.nextset()
                    located = None if row is None else _located(row)
                    return located, None, cursor.fetchall()
            row = cursor.fetchone()
            if row is None:
                return None, None, []
            held = None
            if snapshots is not None:
                held = snapshots.read(str(name), *row[_STREAM_SIZE:])
            cursor.execute(
                f"{events} WHERE e.stream_id = %s AND e.version > %s{end}",
                [row[0], 0 if held is None else held[1], *limits],
            )
            return _located(row), held, cursor.fetchall()

    def _replay(
        self,
        connection: BaseDatabaseWrapper,
        instance: Any,
        rows: list[tuple[Any, ...]],
        name: StreamName,
    ) -> Any:
        if self._needs_origin:
            recorded = resolved(rows, connection, self._decoder)
            return self._apply_with_origin(instance, recorded)
        if any(row[-1] is not None for row in rows):  # the links in it
            last = rows[-1][1]
            page = stream_page(
                connection, name, self._decoder, first=rows[0][1], last=last, limit=last
            )
            return self._apply_with_origin(instance, page.recorded)
        return self._apply(instance, rows, name)

    def _apply(
        self, instance: Any, rows: Sequence[tuple[Any, ...]], name: StreamName
    ) -> Any:
        """Apply events whose appliers take nothing else."""
        steps, appliers = self._steps, self._appliers
        for row in rows:
            _, _, event_name, shape, payload, headers, _ = row
            step = steps.get((event_name, shape))
            if step is None:
                step = self._step_of(row, name)
            alone, reading = step.alone, step.reading
            if alone is not None and reading is not None:
                try:
                    event = reading.read(payload)
                except (*UNREADABLE, MessageConversionError) as error:
                    raise _told(row, name, self._decoder, error) from error
                if _UNSET in headers:
                    event = self._decoder.event(event_name, shape, payload, headers)
                made = alone(instance, event)
                if made is not None:
                    instance = appliers.replaced(instance, made)
            elif step.calls:
                recorded = _recorded(row, name, self._decoder)
                instance = self._apply_one(instance, step, recorded)
        return instance

    def _step_of(self, row: tuple[Any, ...], name: StreamName) -> ApplyingStep:
        _, _, event_name, shape, _, _, _ = row
        try:
            step = self._appliers.step(self._decoder, event_name, shape)
        except UnknownMessage as error:
            raise _told(row, name, self._decoder, error) from error
        self._steps[event_name, shape] = step
        return step

    def _apply_with_origin(self, instance: Any, recorded: Iterable[Recorded]) -> Any:
        for each in recorded:
            step = self._steps.get((each.name, each.shape))
            if step is None:
                try:
                    step = self._appliers.step(self._decoder, each.name, each.shape)
                except UnknownMessage:
                    each.event  # noqa: B018 - raises with its place
                    raise
                self._steps[each.name, each.shape] = step
            if step is not NOT_TAKEN:
                instance = self._apply_one(instance, step, each)
        return instance

    def _apply_one(self, instance: Any, step: ApplyingStep, recorded: Recorded) -> Any:
        """Apply one event with all appliers that take it."""
        if step.reading is not None and recorded.is_dropped:
            return instance
        about = About(recorded=recorded)
        for call, takes_json in step.calls:
            is_json = takes_json or step.reading is None
            event = recorded.payload if is_json else recorded.event
            made = call(instance, event, lambda: about)
            if made is not None:
                instance = self._appliers.replaced(instance, made)
        return instance


_UNSET: Final = f'"{UNSET}"'
_LOCKS: Final = {"postgresql": " FOR NO KEY UPDATE OF s", "mysql": " FOR UPDATE"}


def _located(row: Sequence[Any]) -> _Located:
    return _Located(row[0], row[1] is not None, row[2] is not None)


def _sends_several(connection: BaseDatabaseWrapper) -> bool:
    """Return whether one statement may hold several, as psycopg 3 allows it."""
    options = connection.settings_dict.get("OPTIONS", {})
    return (
        connection.vendor == "postgresql"
        and not options.get("server_side_binding")
        and hasattr(connection.connection, "pgconn")
    )


_NO_ID: Final = UUID(int=0)


def _recorded(row: tuple[Any, ...], name: StreamName, decoder: Decoder) -> Recorded:
    """Return an event whose origin nobody asks for."""
    position, version, event_name, shape, payload, headers, _ = row
    return Recorded(
        position,
        None,
        str(name),
        version,
        event_name,
        shape,
        payload,
        headers,
        _NO_ID,
        _NO_ID,
        None,
        EPOCH,
        None,
        decoder,
    )


def _told(
    row: tuple[Any, ...], name: StreamName, decoder: Decoder, error: Exception
) -> Exception:
    """Return the error of an event that cannot be read, with its place."""
    try:
        _recorded(row, name, decoder).event  # noqa: B018
    except (MessageConversionError, UnknownMessage) as told:
        return told
    return error
