"""The event store: streams of events, appended to and read by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.annotations import sole_type
from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as projects
from django_cqrs.channels.channel import Seconds, as_timedelta
from django_cqrs.events import following, settling
from django_cqrs.events.appending import followers_of, is_heard, prepare, publish, store
from django_cqrs.events.columns import EVENT, STREAM, key_column
from django_cqrs.events.decoding import Decoder, decoder_of
from django_cqrs.events.insertion import (
    ANY,
    ExpectedVersion,
    Target,
    insert,
    is_transaction,
)
from django_cqrs.events.linking import link
from django_cqrs.events.models import StoredEvent
from django_cqrs.events.observing import observed_append
from django_cqrs.events.past import load
from django_cqrs.events.queries import EVERYTHING, EventQuery, categories_of
from django_cqrs.events.reading import PAGE, Scan, stream_page, without_dropped
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.events.waking import wake
from django_cqrs.exceptions import InvalidOption, StreamNotFound
from django_cqrs.messages import HeaderValue, Message
from django_cqrs.parameters.plan import Resolver
from django_cqrs.parameters.planner import register_filler
from django_cqrs.parameters.services import Services
from django_cqrs.pipeline.joined_begin import join_begin
from django_cqrs.sync import in_thread

T = TypeVar("T")


class Appended(NamedTuple):
    """The result of an append: the place of its last event."""

    stream: str | None
    version: int | None
    """Its number in the stream; None without a stream."""
    position: int
    """Its number in the whole store."""


@dataclasses.dataclass(frozen=True, slots=True)
class EventMarker:
    """The number of events that a query has found, and the position of the last."""

    count: int
    last: int

    def __str__(self) -> str:
        """Return it as text, for a form."""
        return f"{self.count}:{self.last}"


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The events that a query has found, and the mark of that state."""

    events: list[Recorded]
    marker: EventMarker


class EventStore:
    """
    The streams of one database.

    You can create it while a module is imported: the database is only used when a
    method is called, in the transaction that is open then. A handler's parameter with
    this type gets the store of its registry.
    """

    def __init__(
        self, using: str | None = None, *, registry: Registry | None = None
    ) -> None:
        """
        Define a store.

        Args:
            using: the database alias, by default the router's.
            registry: the registry with the classes and the handlers of the events, by
                default the project's.

        """
        self._using = using
        self._registry = registry

    @property
    def registry(self) -> Registry:
        """The registry with the classes and the handlers of the events."""
        return projects if self._registry is None else self._registry

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
        """
        Append events, in the open transaction or in one of their own, and publish them.

        Args:
            events: an event or a list of them, each as it is or as a ``Stored``.
            stream: the name of their stream: a category, a hyphen, and a key.
            expected_version: ``ANY``; ``NEW`` if it may have no event; ``EXISTS``; or
                the number of its last event.
            tags: tags for all of them, beside those of their fields and classes.
            headers: headers for all of them.
            publish: whether their handlers are called.

        Returns:
            The place of the last event. Events that were stored before, with the same
            ids at the same versions, are not stored or published again.

        Raises:
            ConcurrencyError: the stream has another version; nothing was appended, and
                the transaction can continue.
            EventAlreadyStored: likewise, since an event's id is in use.
            MessageConversionError: an event would not come back from JSON unchanged.
            UnknownMessage: the class of an event is not registered.
            InvalidOption: an argument is not what it should be.

        """
        __traceback_hide__ = True
        given, target = append_of(events, stream, expected_version)
        name = target.stream
        using = self._write_alias(name)
        connection = connections[using]
        registry = self.registry
        category = None if name is None else name.category
        with observed_append(category, len(given)) as trace:
            entries = prepare(
                given,
                registry=registry,
                using=using,
                headers=headers,
                tags=tags,
                trace=trace,
            )
            is_published = publish and is_heard(entries, registry)
            if (
                not is_published
                and is_transaction(connection, entries)
                and not followers_of(entries, registry)
            ):
                position, version = insert(connection, target, entries).places[-1]
                wake(connection, registry, position)
                return Appended(stream, version, position)
            with _transaction(connection):
                recorded = store(entries, target, registry=registry, using=using)
                if is_published:
                    _publish(recorded, registry, using)
            return Appended(stream, recorded[-1].version, recorded[-1].position)

    def read(
        self,
        stream: str,
        *,
        first: int = 1,
        last: int | None = None,
        backwards: bool = False,
        limit: int | None = None,
    ) -> Iterator[Recorded]:
        """
        Yield the events of a stream, in pages of one query each.

        Args:
            stream: its name.
            first: the lowest version.
            last: the highest version, by default that of the last event.
            backwards: whether the last event comes first.
            limit: the maximum number of events.

        Raises:
            StreamNotFound: the stream has no event.

        """
        for page in self._pages_of(stream, first, last, limit, backwards=backwards):
            yield from page

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
        connection = connections[self._read_alias(name)]
        decoder = self._decoder
        left = limit
        is_first_page = True
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = stream_page(
                connection,
                name,
                decoder,
                first=first,
                last=last,
                backwards=backwards,
                limit=size,
            )
            if not page.recorded and is_first_page:
                self._ensure_exists(connection, name)
            found = without_dropped(page.recorded)
            if found:
                yield found
            if page.edge is None:
                return
            is_first_page = False
            if left is not None:
                left -= len(found)
            if backwards:
                last = page.edge - 1
            else:
                first = page.edge + 1

    def _ensure_exists(self, connection: BaseDatabaseWrapper, name: StreamName) -> None:
        if not self._version(connection, name):
            msg = f"There is no stream {str(name)!r}."
            raise StreamNotFound(msg)

    def read_all(
        self,
        query: EventQuery | None = None,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int | None = None,
        archived: bool = False,
    ) -> Iterator[Recorded]:
        """
        Yield the settled events of all streams, in order of position.

        Args:
            query: which events, by default all.
            after: the position behind which to begin.
            until: the last position, by default the settled one.
            limit: the maximum number of events.
            archived: whether those of archived streams as well.

        """
        for page in self._pages(query, after, until, limit, archived=archived):
            yield from page

    def _pages(
        self,
        query: EventQuery | None,
        after: int,
        until: int | None,
        limit: int | None,
        *,
        archived: bool,
    ) -> Iterator[list[Recorded]]:
        connection = connections[self._read_alias(None)]
        bound = settling.settled(connection)
        end = bound if until is None else min(until, bound)
        scan = self._scan(connection, query, archived=archived)
        left = limit
        with settling.beside_snapshot(connection) as other:
            while after < end and (left is None or left > 0):
                size = PAGE if left is None else min(left, PAGE)
                if other is None:
                    page = scan.page(after, end, size)
                else:
                    page, is_last = scan.snapshot_page(after, end, size, other)
                    end = page.position if is_last else end
                if page.recorded:
                    yield page.recorded
                after = page.position
                if left is not None:
                    left -= len(page.recorded)

    def _scan(
        self,
        connection: BaseDatabaseWrapper,
        query: EventQuery | None,
        *,
        archived: bool = False,
    ) -> Scan:
        types = self.registry.routes.types
        return Scan(
            connection,
            types,
            EVERYTHING if query is None else query,
            archived=archived,
        )

    def select(self, query: EventQuery) -> Selection:
        """
        Return all events that a query finds now, those that are not settled too.

        Args:
            query: which events.

        """
        connection = connections[self._read_alias(None)]
        scan = Scan(connection, self.registry.routes.types, query, archived=True)
        found = scan.everything()
        return Selection(
            found, EventMarker(len(found), found[-1].position if found else 0)
        )

    def load(
        self,
        cls: type[T],
        identifier: Any,
        *,
        version: int | None = None,
        at: datetime | None = None,
    ) -> T:
        """
        Return an object as it was after one of its events, by default after the last.

        It is made anew of its events. It need not be an aggregate: any class with
        appliers and ``@event_stream`` can show a stream's events.

        Args:
            cls: a class with appliers.
            identifier: its identifier, as for a repository.
            version: the number of the last event to apply.
            at: the time after which no event is applied.

        Raises:
            StreamNotFound: the object has no event, or had none then.
            InvalidOption: the class has no appliers, or the object never had the
                version.

        """
        return load(
            cls,
            identifier,
            registry=self.registry,
            using=self._using,
            version=version,
            at=at,
        )

    def exists(self, stream: str) -> bool:
        """Return whether a stream has an event."""
        return self.version(stream) > 0

    def version(self, stream: str) -> int:
        """Return the number of a stream's last event, 0 if it has none."""
        name = stream_name(stream)
        return self._version(connections[self._read_alias(name)], name)

    @staticmethod
    def _version(connection: BaseDatabaseWrapper, name: StreamName) -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT MAX(e.version) FROM {EVENT} e JOIN {STREAM} s "
                "ON s.id = e.stream_id WHERE s.category = %s "
                f"AND s.{key_column(connection)} = %s",
                name,
            )
            (version,) = cursor.fetchone()
        return version or 0

    def head(self) -> int:
        """Return the position of the last visible event, 0 if there is none."""
        return settling.head(connections[self._read_alias(None)])

    def settled(self) -> int:
        """Return the position below which nothing appears that is not there already."""
        return settling.settled(connections[self._read_alias(None)])

    def streams(self, category: str | None = None) -> Iterator[str]:
        """
        Yield the names of streams, in pages of one query each.

        Args:
            category: their category, by default any.

        Raises:
            InvalidOption: it has a hyphen.

        """
        for page in self._pages_of_names(category):
            yield from page

    def _pages_of_names(self, category: str | None) -> Iterator[list[str]]:
        connection = connections[self._read_alias(None)]
        key = key_column(connection)
        where, parameters, after = "id > %s", [], 0
        if category is not None:
            where = f"category = %s AND {where}"
            parameters = [*categories_of(category)]
        while True:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT id, category, {key} FROM {STREAM} "
                    f"WHERE {where} ORDER BY id LIMIT {PAGE}",
                    [*parameters, after],
                )
                found = cursor.fetchall()
            if not found:
                return
            yield [str(StreamName(name, own)) for _, name, own in found]
            after = found[-1][0]

    def link(self, stream: str, recorded: Recorded | Sequence[Recorded]) -> int:
        """
        Put events into another stream by reference.

        Reading that stream gives the originals, with versions of their own. An event
        that it has already is left out.

        Args:
            stream: the name of the stream.
            recorded: an event of this store, or a list of them.

        Returns:
            The number of links that were made.

        Raises:
            ConcurrencyError: somebody else has appended to the stream without locking
                it.

        """
        name = stream_name(stream)
        given = [recorded] if isinstance(recorded, Recorded) else list(recorded)
        connection = connections[self._write_alias(name)]
        with _transaction(connection):
            made = link(connection, name, given)
            if made:
                wake(connection, self.registry)
        return made

    def follow(
        self,
        query: EventQuery | None = None,
        *,
        after: int | None = None,
        timeout: Seconds | None = None,
    ) -> Iterator[Recorded]:
        """
        Yield events as they settle, in order of position, and wait for more.

        Args:
            query: which events, by default all.
            after: the position behind which to begin, by default the settled one.
            timeout: the time after which it ends, in seconds or a timedelta; by
                default never.

        """
        return following.follow(
            self._lookout(query, after, timeout), self._read_alias(None)
        )

    def _lookout(
        self, query: EventQuery | None, after: int | None, timeout: Seconds | None
    ) -> Callable[[], following.Lookout]:
        span = as_timedelta(timeout, "timeout=") if timeout is not None else None
        seconds = None if span is None else span.total_seconds()

        def make() -> following.Lookout:
            connection = connections[self._read_alias(None)]
            begin = settling.settled(connection) if after is None else after
            scan = self._scan(connection, query)
            return following.Lookout(connection, scan, begin, seconds)

        return make

    # In an event loop --------------------------------------------------------------

    async def aappend(
        self,
        events: Sequence[Any] | Any,
        *,
        stream: str | None = None,
        expected_version: ExpectedVersion | int = ANY,
        tags: Sequence[str] = (),
        headers: Mapping[str, HeaderValue] | None = None,
        publish: bool = True,
    ) -> Appended:
        """Do the same as :meth:`append`, in one hop to the database's thread."""
        appended: Appended = await in_thread(self.append)(
            events,
            stream=stream,
            expected_version=expected_version,
            tags=tags,
            headers=headers,
            publish=publish,
        )
        return appended

    async def aread(
        self,
        stream: str,
        *,
        first: int = 1,
        last: int | None = None,
        backwards: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[Recorded]:
        """Yield the same as :meth:`read`, with one hop for each page."""
        make = partial(self._pages_of, stream, first, last, limit, backwards=backwards)
        async for each in _in_pages(make):
            yield each

    async def aread_all(
        self,
        query: EventQuery | None = None,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int | None = None,
        archived: bool = False,
    ) -> AsyncIterator[Recorded]:
        """Yield the same as :meth:`read_all`, with one hop for each page."""
        make = partial(self._pages, query, after, until, limit, archived=archived)
        async for each in _in_pages(make):
            yield each

    async def aselect(self, query: EventQuery) -> Selection:
        """Do the same as :meth:`select`, in one hop to the database's thread."""
        selection: Selection = await in_thread(self.select)(query)
        return selection

    async def aload(
        self,
        cls: type[T],
        identifier: Any,
        *,
        version: int | None = None,
        at: datetime | None = None,
    ) -> T:
        """Do the same as :meth:`load`, in one hop to the database's thread."""
        loaded: T = await in_thread(self.load)(cls, identifier, version=version, at=at)
        return loaded

    async def aexists(self, stream: str) -> bool:
        """Do the same as :meth:`exists`, in one hop to the database's thread."""
        return bool(await in_thread(self.exists)(stream))

    async def aversion(self, stream: str) -> int:
        """Do the same as :meth:`version`, in one hop to the database's thread."""
        return int(await in_thread(self.version)(stream))

    async def astreams(self, category: str | None = None) -> AsyncIterator[str]:
        """Yield the same as :meth:`streams`, with one hop for each page."""
        async for each in _in_pages(partial(self._pages_of_names, category)):
            yield each

    async def ahead(self) -> int:
        """Do the same as :meth:`head`, in one hop to the database's thread."""
        return int(await in_thread(self.head)())

    async def asettled(self) -> int:
        """Do the same as :meth:`settled`, in one hop to the database's thread."""
        return int(await in_thread(self.settled)())

    async def alink(self, stream: str, recorded: Recorded | Sequence[Recorded]) -> int:
        """Do the same as :meth:`link`, in one hop to the database's thread."""
        return int(await in_thread(self.link)(stream, recorded))

    def afollow(
        self,
        query: EventQuery | None = None,
        *,
        after: int | None = None,
        timeout: Seconds | None = None,
    ) -> AsyncGenerator[Recorded, None]:
        """Yield the same as :meth:`follow`; no thread waits."""
        make = self._lookout(query, after, timeout)
        return following.afollow(make, self._read_alias(None))

    @property
    def _decoder(self) -> Decoder:
        return decoder_of(self.registry.routes.types)

    def _write_alias(self, name: StreamName | None) -> str:
        if self._using is not None:
            return self._using
        hints = {} if name is None else {"category": name.category}
        return router.db_for_write(StoredEvent, **hints)

    def _read_alias(self, name: StreamName | None) -> str:
        """Return the alias of the writes: a replica may lack what was read before."""
        return self._write_alias(name)

    def __repr__(self) -> str:
        """Return the constructor call."""
        using = "" if self._using is None else repr(self._using)
        return f"EventStore({using})"


def append_of(
    events: Sequence[Any] | Any,
    stream: str | None,
    expected_version: ExpectedVersion | int,
) -> tuple[list[Any], Target]:
    """
    Return the events of an append, and their stream.

    Raises:
        InvalidOption: an argument is not what it should be.

    """
    given = list(events) if isinstance(events, (list, tuple)) else [events]
    if not given:
        msg = "append() takes at least one event."
        raise InvalidOption(msg)
    name = None if stream is None else stream_name(stream)
    if name is None and expected_version is not ANY:
        msg = "expected_version= is about a stream: give stream= as well."
        raise InvalidOption(msg)
    return given, Target(name, expected_version)


_publish = publish


async def _in_pages(make: Callable[[], Iterator[list[T]]]) -> AsyncIterator[T]:
    """Yield the items of pages, each of which is made in the database's thread."""
    pages = await in_thread(make)()
    following_page = in_thread(partial(next, pages, None))
    while (page := await following_page()) is not None:
        for each in page:
            yield each


@contextmanager
def _transaction(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Open a transaction, unless one is open."""
    if connection.in_atomic_block:
        yield
    else:
        with transaction.atomic(using=connection.alias):
            join_begin(connection)
            yield


event_store: Final = EventStore()
"""The store of the project's registry, in the database that the router names."""


def _store_filler(annotation: Any, services: Services) -> Resolver | None:
    if sole_type(annotation) is not EventStore:
        return None
    owner = services.owner
    store = EventStore(registry=owner) if isinstance(owner, Registry) else owner
    overrides = services.overrides

    def resolve(_message: Message) -> Any:
        return overrides[EventStore]() if EventStore in overrides else store

    return resolve


register_filler(_store_filler)
