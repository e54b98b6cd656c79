"""An event store in memory, for tests that need no database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn, TypeVar

from django.db import DEFAULT_DB_ALIAS

from django_cqrs.buses.registries import Registry
from django_cqrs.channels.channel import Seconds, as_timedelta
from django_cqrs.events.appending import Entry, is_heard, prepare
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.event_storage import EventStorage
from django_cqrs.events.following import SOON
from django_cqrs.events.insertion import (
    ANY,
    EXISTS,
    NEW,
    ExpectedVersion,
    Target,
    conflict_of,
)
from django_cqrs.events.loading import Loaded, Until
from django_cqrs.events.past import load
from django_cqrs.events.queries import EVERYTHING, EventQuery, categories_of, is_found
from django_cqrs.events.reading import without_dropped
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.store import (
    Appended,
    EventMarker,
    EventStore,
    Selection,
    append_of,
)
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.exceptions import EventAlreadyStored, InvalidOption, StreamNotFound
from django_cqrs.messages import HeaderValue

T = TypeVar("T")


class _MemoryRow(NamedTuple):
    """An event in memory, or a link to one."""

    position: int
    stream: StreamName | None
    version: int | None
    entry: Entry
    link_to: int | None = None


class InMemoryEventStore(EventStore):
    """
    Keeps events in memory, converted to text and back as by a database.

    Give it to code that takes an :class:`~django_cqrs.events.EventStore`. It has no
    transactions: what is appended stays, unless a handler that it is published to
    raises. Projections do not follow it.
    """

    def __init__(self, *, registry: Registry | None = None) -> None:
        """
        Start empty.

        Args:
            registry: the registry with the classes and the handlers of the events, by
                default the project's.

        """
        super().__init__(registry=registry)
        self._rows: list[_MemoryRow] = []
        self._last = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    # Appending ------------------------------------------------------------------------

    def append(
        self,
        events: Sequence[Any] | Any,
        *,
        stream: str | None = None,
        expected_version: ExpectedVersion | int = ANY,
        tags: Sequence[str] = (),
        headers: Mapping[str, HeaderValue] | None = None,
        publish: bool = True,
    ) -> Appended:
        """Do the same as :meth:`~django_cqrs.events.EventStore.append`, in memory."""
        __traceback_hide__ = True
        given, target = append_of(events, stream, expected_version)
        registry = self.registry
        entries = prepare(
            given, registry=registry, using=DEFAULT_DB_ALIAS, headers=headers, tags=tags
        )
        with self._lock:
            rows = self._repeated(target, entries)
            if rows is None:
                rows = self._insert(target, entries)
                if publish and is_heard(entries, registry):
                    self._publish(rows)
        return Appended(stream, rows[-1].version, rows[-1].position)

    def _insert(self, target: Target, entries: Sequence[Entry]) -> list[_MemoryRow]:
        """
        Insert events.

        Raises:
            ConcurrencyError: the stream has another version.

        """
        version: int | None = None
        if target.stream is not None:
            version = self._last_of(target.stream)
            wanted = 0 if target.expected is NEW else target.expected
            is_met = version > 0 if wanted is EXISTS else wanted in (ANY, version)
            if not is_met:
                raise conflict_of(target, version)
        made = []
        for number, entry in enumerate(entries, 1):
            own = None if version is None else version + number
            made.append(_MemoryRow(self._next_position(), target.stream, own, entry))
        self._rows += made
        self._changed.notify_all()
        return made

    def _next_position(self) -> int:
        self._last += 1
        return self._last

    def _repeated(
        self, target: Target, entries: Sequence[Entry]
    ) -> list[_MemoryRow] | None:
        """
        Return the rows of events that were all stored before, as this append would.

        Raises:
            EventAlreadyStored: only some of them were, or elsewhere.

        """
        by_id = {row.entry.event_id: row for row in self._rows if row.link_to is None}
        found = [by_id.get(each.event_id) for each in entries]
        rows = [each for each in found if each is not None]
        if not rows:
            return None
        begins = rows[0].version or 0
        expected = 0 if target.expected is NEW else target.expected
        places = [(target.stream, begins + number) for number in range(len(entries))]
        is_same = (
            target.stream is not None
            and [(each.stream, each.version) for each in rows] == places
            and (expected in (ANY, EXISTS) or expected == begins - 1)
        )
        if is_same:
            return rows
        msg = (
            f"The event {rows[0].entry.event_id} is stored already, at position "
            f"{rows[0].position}. Nothing was appended."
        )
        raise EventAlreadyStored(msg)

    def _publish(self, rows: Sequence[_MemoryRow]) -> None:
        """Publish events; if a handler raises, take back all that came with them."""
        event_bus = self.registry.event_bus
        try:
            for row in rows:
                event_bus.publish_message(row.entry.message)
        except BaseException:
            first = rows[0].position
            self._rows = [row for row in self._rows if row.position < first]
            raise

    def link(self, stream: str, recorded: Recorded | Sequence[Recorded]) -> int:
        """Do the same as :meth:`~django_cqrs.events.EventStore.link`, in memory."""
        name = stream_name(stream)
        given = [recorded] if isinstance(recorded, Recorded) else list(recorded)
        wanted = dict.fromkeys(each.link_to or each.position for each in given)
        with self._lock:
            present = {row.link_to for row in self._rows if row.stream == name}
            originals = {row.position: row for row in self._rows}
            made = 0
            for position in wanted:
                if position in present:
                    continue
                version = self._last_of(name) + 1
                entry = originals[position].entry
                row = _MemoryRow(self._next_position(), name, version, entry, position)
                self._rows.append(row)
                made += 1
            self._changed.notify_all()
        return made

    # Reading --------------------------------------------------------------------------

    def _recorded(self, rows: Iterable[_MemoryRow]) -> list[Recorded]:
        """Return rows as events that were read."""
        decoder = decoder_of(self.registry.routes.types)
        numbers = self._numbers_of_streams()
        return [
            Recorded(
                row.position,
                None if row.stream is None else numbers[row.stream],
                None if row.stream is None else str(row.stream),
                row.version,
                row.entry.name,
                row.entry.shape,
                row.entry.payload,
                row.entry.headers,
                row.entry.event_id,
                row.entry.correlation_id,
                row.entry.causation_id,
                row.entry.recorded_at,
                row.link_to,
                decoder,
            )
            for row in rows
        ]

    def _numbers_of_streams(self) -> dict[StreamName, int]:
        streams = (row.stream for row in self._rows if row.stream is not None)
        return {name: number for number, name in enumerate(dict.fromkeys(streams), 1)}

    def _last_of(self, name: StreamName) -> int:
        versions = (row.version or 0 for row in self._rows if row.stream == name)
        return max(versions, default=0)

    def _pages_of(
        self,
        stream: str,
        first: int,
        last: int | None,
        limit: int | None,
        *,
        backwards: bool,
    ) -> Iterator[list[Recorded]]:
        name = stream_name(stream)
        if limit is not None and limit <= 0:
            return
        with self._lock:
            end = self._last_of(name)
            if not end:
                msg = f"There is no stream {str(name)!r}."
                raise StreamNotFound(msg)
            versions = range(first, (end if last is None else last) + 1)
            wanted = [
                row
                for row in self._rows
                if row.stream == name and row.version in versions
            ]
            found = without_dropped(self._recorded(wanted))
        if backwards:
            found.reverse()
        yield found[:limit]

    def _found(
        self, query: EventQuery | None, after: int = 0, until: int | None = None
    ) -> list[Recorded]:
        """Return the events that a query finds between two positions."""
        types = self.registry.routes.types
        with self._lock:
            found = self._recorded(
                row
                for row in self._rows
                if row.position > after and (until is None or row.position <= until)
            )
        wanted = EVERYTHING if query is None else query
        return without_dropped(
            [each for each in found if is_found(wanted, types, each)]
        )

    def _pages(
        self,
        query: EventQuery | None,
        after: int,
        until: int | None,
        limit: int | None,
        *,
        archived: bool,
    ) -> Iterator[list[Recorded]]:
        found = self._found(query, after, until)
        yield found if limit is None else found[: max(limit, 0)]

    def select(self, query: EventQuery) -> Selection:
        """Do the same as :meth:`~django_cqrs.events.EventStore.select`, in memory."""
        found = self._found(query)
        last = found[-1].position if found else 0
        return Selection(found, EventMarker(len(found), last))

    def load(
        self,
        cls: type[T],
        identifier: Any,
        *,
        version: int | None = None,
        at: datetime | None = None,
    ) -> T:
        """Do the same as :meth:`~django_cqrs.events.EventStore.load`, in memory."""
        return load(
            cls,
            identifier,
            registry=self.registry,
            using=DEFAULT_DB_ALIAS,
            version=version,
            at=at,
            find=self._loaded,
        )

    def _loaded(
        self, storage: EventStorage, name: StreamName, until: Until
    ) -> Loaded | None:
        with self._lock:
            rows = [
                row
                for row in self._rows
                if row.stream == name
                and (until.version is None or (row.version or 0) <= until.version)
                and (until.at is None or row.entry.recorded_at <= until.at)
            ]
            found = self._recorded(rows)
        if not found:
            return None
        number, version = found[-1].stream_id or 0, found[-1].version or 0
        return Loaded(storage.loader.made_of(found), number, version)

    def version(self, stream: str) -> int:
        """Return the number of a stream's last event, 0 if it has none."""
        with self._lock:
            return self._last_of(stream_name(stream))

    def head(self) -> int:
        """Return the position of the last event, 0 if there is none."""
        with self._lock:
            return self._rows[-1].position if self._rows else 0

    def settled(self) -> int:
        """Return the position of the last event: nothing is in flight in memory."""
        return self.head()

    def _pages_of_names(self, category: str | None) -> Iterator[list[str]]:
        wanted = None if category is None else categories_of(category)
        with self._lock:
            names = list(self._numbers_of_streams())
        yield [str(each) for each in names if wanted is None or each.category in wanted]

    def follow(
        self,
        query: EventQuery | None = None,
        *,
        after: int | None = None,
        timeout: Seconds | None = None,
    ) -> Iterator[Recorded]:
        """Do the same as :meth:`~django_cqrs.events.EventStore.follow`, in memory."""
        position, end = self._begin(after), _end_of(timeout)
        while True:
            left = None if end is None else end - time.monotonic()
            found = self._found(query, position)
            yield from found
            position = found[-1].position if found else position
            if left is not None and left <= 0:
                return
            with self._changed:
                if self.head() <= position:
                    self._changed.wait(left)
                elif not found:  # nothing but events that are not asked for
                    position = self.head()

    def afollow(
        self,
        query: EventQuery | None = None,
        *,
        after: int | None = None,
        timeout: Seconds | None = None,
    ) -> AsyncGenerator[Recorded, None]:
        """Yield the same as :meth:`follow`; no thread waits."""
        return self._followed(query, self._begin(after), _end_of(timeout))

    async def _followed(
        self, query: EventQuery | None, position: int, end: float | None
    ) -> AsyncGenerator[Recorded, None]:
        while True:
            is_last = end is not None and time.monotonic() >= end
            for each in self._found(query, position):
                position = each.position
                yield each
            if is_last:
                return
            await asyncio.sleep(SOON)

    def _begin(self, after: int | None) -> int:
        return self.head() if after is None else after

    def _write_alias(self, name: StreamName | None) -> NoReturn:
        """
        Refuse what this store does not do: it has no alias.

        Raises:
            InvalidOption: always.

        """
        msg = (
            "An InMemoryEventStore has no database, and does not support this. Use the "
            "event store of a flow in a test with a database."
        )
        raise InvalidOption(msg)


def _end_of(timeout: Seconds | None) -> float | None:
    if timeout is None:
        return None
    return time.monotonic() + as_timedelta(timeout, "timeout=").total_seconds()
