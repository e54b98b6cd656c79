"""Aggregates and sagas that are their events, and models with a stream beside a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import atomic
from django.utils import timezone

from django_cqrs.annotations import (
    name_of_type,
    sole_type,
    usual_name,
)
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import role_of
from django_cqrs.events.absorbing import (
    MADE,
    applied,
    events_of,
    made_of,
    messages_of,
)
from django_cqrs.events.appending import Append, append
from django_cqrs.events.appliers import Appliers, appliers_of
from django_cqrs.events.decoding import Decoder, decoder_of
from django_cqrs.events.insertion import NEW, Target
from django_cqrs.events.loading import Loaded, Loader
from django_cqrs.events.model_streams import StreamedModelStorage
from django_cqrs.events.models import StoredEvent, Stream
from django_cqrs.events.natural_keys import KeyTaken, claim, key_by, release, text_of
from django_cqrs.events.observing import observed_load
from django_cqrs.events.own_stores import OwnStoreStorage
from django_cqrs.events.recorded import Recorded, Stored
from django_cqrs.events.rules import StreamRule
from django_cqrs.events.sagas import SagaCompleted
from django_cqrs.events.snapshots import Snapshots
from django_cqrs.events.stream_checks import unapplied_events, unatomic_problems
from django_cqrs.events.stream_names import StreamName
from django_cqrs.events.streams import (
    StreamOptions,
    category_of,
    declared_stream_of,
    key_of,
    stream_of,
    stream_problems,
    values_in,
)
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    ConcurrencyError,
    InvalidEvent,
    InvalidIdentifier,
    StreamArchived,
)
from django_cqrs.messages import Message
from django_cqrs.modelling.identifiers import (
    Part,
    UnknownKey,
    Values,
    key_type_of,
    plain,
    typed,
)
from django_cqrs.modelling.sagas import COMPLETED_AT, SagaRole
from django_cqrs.modelling.storages import AboutObject, Options, Storage
from django_cqrs.modelling.watches import KeyWatch, Watch, note_kept
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.sends import Send
from django_cqrs.shapes import leave_out, shape_of

MARK: Final = "_event_stream"
"""The attribute of an object with its knowledge of its stream."""

leave_out(MARK)


class StreamMark(NamedTuple):
    """An object's knowledge of the stream that it was loaded from, or appended to."""

    stream_id: int
    key: str
    version: int
    natural_key: str | None = None
    is_over: bool = False
    is_deleted: bool = False
    is_archived: bool = False
    """Whether the stream was archived before the object was loaded."""


def stream_mark_of(instance: Any) -> StreamMark | None:
    """Return an object's mark of its stream, None without one."""
    mark: StreamMark | None = getattr(instance, "__dict__", {}).get(MARK)
    return mark


def _archived(name: StreamName) -> StreamArchived:
    return StreamArchived(
        f"The stream {str(name)!r} is archived, so nothing can be appended."
    )


class StreamWatch(KeyWatch):
    """A watch that is asked when events are appended, since no row is saved."""

    def update(self, update: Callable[[], None]) -> None:
        """Call a function that does nothing."""
        update()

    def append(self, append: Callable[[], None]) -> None:
        """
        Call a function that appends the events of the object.

        Raises:
            ConcurrencyError: others have appended since the object was loaded.

        """
        super().update(append)


class EventStorage(Storage[Any]):
    """Keeps objects as their events."""

    keeps_events = True

    def __init__(self, cls: type[Any], options: Options) -> None:
        """Take a class with appliers, and its decorator's options."""
        super().__init__(cls, options)
        self.appliers: Appliers = appliers_of(cls)

    @cached_property
    def streams(self) -> StreamOptions:
        """
        The declaration of the streams.

        Raises:
            InvalidOption: the class has no category.

        """
        return stream_of(self.cls) or StreamOptions(category_of(self.cls))

    @property
    def natural_key(self) -> str | None:
        """The attribute that is unique besides the identifier, if there is one."""
        options = stream_of(self.cls)
        return None if options is None else options.natural_key

    @cached_property
    def snapshots(self) -> Snapshots | None:
        """The snapshots of the class, if it has some."""
        if self.streams.snapshot_every is None:
            return None
        return Snapshots(self.appliers, self.streams)

    @property
    def loader(self) -> Loader:
        """The loader of the objects, for the present routes."""
        decoder = decoder_of(self.registry.routes.types)
        if self._loader is None or self._loader[0] is not decoder:
            loader = Loader(self.appliers, decoder, self.snapshots)
            self._loader = decoder, loader
        return self._loader[1]

    _loader: tuple[Decoder, Loader] | None = None

    def write_alias(self) -> str:
        """Ask the database router, with the category as a hint."""
        return router.db_for_write(StoredEvent, category=self.streams.category)

    # Identifiers ------------------------------------------------------------------

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        try:
            return shape_of(self.cls).attributes()
        except Exception:  # noqa: BLE001 - an annotation may run any code; a check says so
            return {}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The attributes that identify an object."""
        usual = usual_name(self.cls)
        is_plain_id = "id" in self._annotations and usual not in self._annotations
        return self.options.identifier or ("id" if is_plain_id else usual,)

    def make_parts(self) -> tuple[Part, ...]:
        """Return the named attributes, by default the usual name of the class's id."""
        return tuple(self._part_of(name) for name in self._names)

    def _part_of(self, name: str) -> Part:
        is_plain_id = name == "id" and not self.options.identifier
        aliases = (usual_name(self.cls),) if is_plain_id else (name,)
        return Part(name, aliases, partial(typed, self._type_of(name), name))

    def _type_of(self, name: str) -> Any:
        """Return the type of an identifier's part; Any: texts are compared."""
        return key_type_of(sole_type(self._annotations.get(name, Any)))

    def values_of(self, instance: Any) -> Values:
        """Return the parts of an identifier in a form for headers."""
        values = super().values_of(instance)
        return tuple(None if value is None else plain(value) for value in values)

    def identifier_of(self, instance: Any) -> Any:
        """Return the one attribute, or a tuple of several."""
        values = self.values_of(instance)
        return values[0] if len(values) == 1 else values

    @property
    def identifier_type(self) -> Any:
        """The annotated type of the one attribute."""
        return self._type_of(self._names[0]) if len(self._names) == 1 else tuple

    def values_by_key(self, message: Message, *, using: str) -> Values | None:
        """Return the identifier of a message's object by its natural key."""
        name = self.natural_key
        if name is None:
            return None
        payload = message.payload
        if isinstance(payload, Mapping):
            value = payload.get(name)
        else:
            value = getattr(payload, name, None)
        if value is None:
            return None
        values = self._values_of_key(value, using)
        return UnknownKey(f"{name}={value}") if values is None else values

    def _values_of_key(self, value: Any, using: str) -> Values | None:
        text = text_of(value)
        if text is None:
            return None
        key = key_by(connections[using], self.streams.category, text)
        return None if key is None else values_in(key, self.parts)

    def find_by_key(self, value: Any, *, using: str, lock: bool) -> Any:
        """Return the object that has a natural key, None if none has it."""
        if self.natural_key is None:
            return super().find_by_key(value, using=using, lock=lock)
        values = self._values_of_key(value, using)
        return None if values is None else self.find(values, using=using, lock=lock)

    # Loading ----------------------------------------------------------------------

    def find(self, values: Values, *, using: str, lock: bool) -> Any:
        """
        Load the object, its stream locked if asked to.

        Raises:
            StreamArchived: it is to be changed, and its stream is archived.

        """
        if type(values) is UnknownKey:
            return None
        name = StreamName(self.streams.category, key_of(values))
        with observed_load(name.category):
            loaded = self.loader.load(connections[using], name, lock=lock)
        if loaded is None:
            return None
        if lock and loaded.is_archived:
            raise _archived(name)
        return self.marked(loaded, name.key)

    def marked(self, loaded: Loaded, key: str) -> Any:
        """Return a loaded object, which now knows its stream and its version."""
        instance = loaded.instance
        self._put_mark(
            instance,
            loaded.stream_id,
            key,
            loaded.version,
            is_archived=loaded.is_archived,
        )
        return instance

    def _put_mark(
        self,
        instance: Any,
        stream_id: int,
        key: str,
        version: int,
        *,
        is_archived: bool = False,
    ) -> None:
        mark = StreamMark(
            stream_id,
            key,
            version,
            None if self.natural_key is None else self._key_value_of(instance),
            is_over=self._is_over(instance),
            is_archived=is_archived,
        )
        object.__setattr__(instance, MARK, mark)
        if self.options.version is not None:
            object.__setattr__(instance, self.options.version, version)

    def _key_value_of(self, instance: Any) -> str | None:
        return text_of(getattr(instance, self.natural_key or "", None))

    @cached_property
    def _is_saga(self) -> bool:
        return isinstance(role_of(self.cls), SagaRole)

    def _is_over(self, instance: Any) -> bool:
        return self._is_saga and getattr(instance, COMPLETED_AT, None) is not None

    def is_new(self, instance: Any) -> bool:
        """Return whether it was neither loaded nor appended to."""
        return stream_mark_of(instance) is None

    def version_of(self, instance: Any) -> int | None:
        """Return the number of its events."""
        mark = stream_mark_of(instance)
        return None if mark is None else mark.version

    def is_deleted(self, instance: Any) -> bool:
        """Return whether its stream was archived through the object."""
        mark = stream_mark_of(instance)
        return mark is not None and mark.is_deleted

    def watch(
        self,
        instance: Any,
        registry: Registry,
        holder: str | None = None,
        *,
        using: str,
    ) -> Watch | None:
        """Return a watch for another object that is appended to under the same key."""
        return StreamWatch(
            self.said,
            registry,
            holder,
            instance=instance,
            key=self._watch_key_of(instance, using),
        )

    def hold(self, instance: Any, registry: Registry, *, using: str) -> None:
        """Do nothing: the version of its stream is compared when it is saved."""

    def watch_of(self, instance: Any, *, using: str) -> Watch | None:
        """Return none, for the same reason."""
        return None

    def _watch_key_of(self, instance: Any, using: str) -> Any:
        mark = stream_mark_of(instance)
        return self.streams.category, using, None if mark is None else mark.key

    # Appending --------------------------------------------------------------------

    def insert(self, instance: Any, *, using: str) -> None:
        """Do nothing: its events are appended when they are published."""

    def update(self, instance: Any, *, using: str) -> None:
        """Do nothing, as for a new object."""

    def made_of(self, result: Any) -> tuple[Any, bool]:
        """Return the object that the events of a factory make."""
        return made_of(self.appliers, result)

    def returns_events(self, result: Any) -> bool:
        """Return whether the value that a method has returned consists of events."""
        return bool(self.appliers.events_in(result))

    def absorb(
        self,
        instance: Any,
        recorded: list[Any],
        result: Any,
        *,
        using: str,
        about: AboutObject,
        watch: Watch | None = None,
    ) -> tuple[Any, list[Any]]:
        """Apply the returned events, append all events, and return their messages."""
        mark = stream_mark_of(instance)
        events = events_of(recorded)
        sends = [each for each in recorded if type(each) is Send]
        if self.options.events is not None:  # record() has not applied them
            instance = applied(self.appliers, instance, events)
        events += vars(instance).pop(MADE, ())
        returned = self.appliers.events_in(result) or []
        instance = applied(self.appliers, instance, returned)
        events += returned
        if self._is_over(instance) and not (mark is not None and mark.is_over):
            events += self._completion(instance, events)
        if not events:
            if mark is None:
                raise InvalidEvent(self._eventless(instance))
            object.__setattr__(instance, MARK, mark)
            return instance, sends
        appended: list[Recorded] = []

        def append() -> None:
            appended.extend(self._append(instance, mark, events, using, about))
            note_kept(self._watch_key_of(instance, using), instance)

        if isinstance(watch, StreamWatch):
            watch.append(append)
        else:
            append()
        return instance, [*messages_of(appended), *sends]

    def _completion(self, instance: Any, events: list[Any]) -> list[SagaCompleted]:
        """Return the event of a saga's end, unless it was recorded by hand."""
        plain_events = [e.event if type(e) is Stored else e for e in events]
        if any(type(each) is SagaCompleted for each in plain_events):
            return []
        return [SagaCompleted(getattr(instance, COMPLETED_AT))]

    def _eventless(self, instance: Any) -> str:
        said = name_of_type(type(instance))
        return (
            f"A new {said} has no events, so nothing of it would be stored. Return the "
            "events that make it from the factory, or record() them."
        )

    def _append(
        self,
        instance: Any,
        mark: StreamMark | None,
        events: list[Any],
        using: str,
        about: AboutObject,
    ) -> list[Recorded]:
        """
        Append events, and keep the natural key and the snapshot.

        Raises:
            AggregateAlreadyExists: another object has the identifier or natural key.
            ConcurrencyError: somebody else has appended since it was loaded.
            InvalidIdentifier: the events do not set the identifier, or change it.
            StreamArchived: the stream was archived before the object was loaded.

        """
        values = self.values_of(instance)
        key = self._sound_key(instance, mark, values)
        if mark is not None and mark.is_archived:
            raise _archived(StreamName(self.streams.category, key))
        before = None if mark is None else mark.natural_key
        after = None if self.natural_key is None else self._key_value_of(instance)
        connection = connections[using]
        name = StreamName(self.streams.category, key)
        first = 1 if mark is None else mark.version + 1
        target = Target(name, NEW)
        if mark is not None:
            target = Target(name, mark.version, mark.stream_id)
        last = first + len(events) - 1

        def keep(done: Append) -> None:
            stream_id = done.stream_id
            assert stream_id is not None  # noqa: S101 - the stream has a name
            if before != after:
                self._change_key(connection, instance, stream_id, before, after)
            self._put_mark(instance, stream_id, key, last)
            self._take_snapshot(connection, instance, name, first)

        with _undone_alone(connection, is_needed=before != after):
            try:
                appended = append(
                    events,
                    target,
                    registry=self.registry,
                    using=using,
                    about=partial(about, values),
                    first=keep,
                )
            except ConcurrencyError as error:
                raise self._conflict(instance, mark) from error
        if mark is not None and mark.is_deleted:
            mark = vars(instance)[MARK]._replace(is_deleted=True)
            object.__setattr__(instance, MARK, mark)
        return appended

    def _sound_key(self, instance: Any, mark: StreamMark | None, values: Values) -> str:
        """
        Return the key of an object's stream.

        Raises:
            InvalidIdentifier: it is missing, or it has changed.

        """
        said = name_of_type(self.cls)
        names = " and ".join(self._names)
        if None in values:
            msg = (
                f"The events of a {said} do not set {names}, which identifies it: an "
                "applier of the first event must set it."
            )
            raise InvalidIdentifier(msg)
        key = key_of(values)
        if mark is not None and key != mark.key:
            msg = (
                f"{said} with {names}={mark.key} was given another identifier: {names} "
                "identifies it and must not change."
            )
            raise InvalidIdentifier(msg)
        return key

    def _conflict(
        self, instance: Any, mark: StreamMark | None
    ) -> AggregateAlreadyExists | ConcurrencyError:
        if mark is None:
            return AggregateAlreadyExists(f"{self.said(instance)} exists already.")
        msg = (
            f"{self.said(instance)} was changed by somebody else since it was loaded. "
            "This attempt saved nothing; try again."
        )
        return ConcurrencyError(msg)

    def _change_key(
        self,
        connection: BaseDatabaseWrapper,
        instance: Any,
        stream_id: int,
        before: str | None,
        after: str | None,
    ) -> None:
        if before is not None:
            release(connection, stream_id)
        if after is None:
            return
        try:
            claim(connection, self.streams.category, stream_id, after)
        except KeyTaken as error:
            said = name_of_type(type(instance))
            msg = f"{said} with {self.natural_key}={after} exists already."
            taken = AggregateAlreadyExists(msg)
            key = key_by(connection, self.streams.category, after)
            if key is not None:
                values = values_in(key, self.parts)
                taken.identifier = values[0] if len(values) == 1 else values
            raise taken from error

    def _take_snapshot(
        self,
        connection: BaseDatabaseWrapper,
        instance: Any,
        name: StreamName,
        first: int,
    ) -> None:
        snapshots = self.snapshots
        stream_id, version = (
            vars(instance)[MARK].stream_id,
            vars(instance)[MARK].version,
        )
        if snapshots is None or not snapshots.is_due(first, version):
            return
        if self.appliers.needs_origin:  # it was applied before its place was known
            loaded = self.loader.load(connection, name, uses_snapshot=False)
            assert loaded is not None  # noqa: S101 - it was appended to just now
            instance = self.marked(loaded, name.key)
        snapshots.write(connection, stream_id, str(name), version, instance)

    def delete(self, instance: Any, *, using: str) -> None:
        """Archive its stream, and free its natural key; its events stay."""
        mark = stream_mark_of(instance)
        if mark is None:
            msg = f"{self.said(instance)} was never saved, so it cannot be deleted."
            raise ConcurrencyError(msg)
        connection = connections[using]
        with nullcontext() if connection.in_atomic_block else atomic(using=using):
            streams = Stream.objects.using(using).filter(pk=mark.stream_id)
            streams.update(archived_at=timezone.now())
            release(connection, mark.stream_id)
        object.__setattr__(instance, MARK, mark._replace(is_deleted=True))

    # Checks -----------------------------------------------------------------------

    def messages(self) -> Iterable[type]:
        """Return the classes of the events that its appliers take."""
        return self.appliers.classes

    def makes(self, annotation: Any) -> bool:
        """Return whether a factory's events of a class make an object."""
        return isinstance(annotation, type) and self.appliers.takes(annotation)

    def problems(self) -> Iterator[Problem]:
        """Yield faults: of the category, the appliers, the state, the options."""
        yield from stream_problems(self.cls)
        if not self.appliers.own:
            yield Problem(
                StreamRule.STREAM_WITHOUT_USE,
                f"{name_of_type(self.cls)} has @event_stream, but it is not a model, "
                "and no method is marked with @applies: it would be stored nowhere.",
                "Write an applier for each event, or remove @event_stream.",
                self.cls,
            )
        yield from self.appliers.problems
        yield from self._state_problems()
        yield from self._option_problems()

    def _state_problems(self) -> Iterator[Problem]:
        if self.cls.__dictoffset__ == 0:
            yield Problem(
                Rule.UNSTORABLE_STATE,
                f"{name_of_type(self.cls)} has only __slots__, so its objects cannot "
                "remember which version was read.",
                "Remove slots=True, or derive the class from RecordsEvents.",
                self.cls,
            )
        options = stream_of(self.cls)
        if options is not None and options.snapshot_every is not None:
            for fault in Snapshots(self.appliers, options).faults:
                yield Problem(Rule.UNSTORABLE_STATE, fault.text, fault.hint, self.cls)

    def _option_problems(self) -> Iterator[Problem]:
        said = name_of_type(self.cls)
        names = dict.fromkeys(self._names, "identifier=")
        for name in names:
            if not self._has(name):
                yield Problem(
                    Rule.NO_IDENTIFIER,
                    f"{said} has no attribute {name!r} to identify it.",
                    "Annotate it, or name another attribute with identifier=.",
                    self.cls,
                )
        natural = self.natural_key
        if natural is not None and not self._has(natural):
            yield Problem(
                StreamRule.BAD_STREAM,
                f"{said} has natural_key={natural!r}, which is not one of its "
                "attributes.",
                "Annotate it in the class.",
                self.cls,
            )
        version = self.options.version
        if version is not None and self._annotations.get(version) is not int:
            yield Problem(
                Rule.BAD_VERSION,
                f"{said} has version={version!r}, which is not an attribute annotated "
                "as int.",
                f"Write {version}: int = 0.",
                self.cls,
            )

    def _has(self, name: str) -> bool:
        return name in self._annotations or hasattr(self.cls, name)

    def problems_with(self, endpoint: Endpoint) -> Iterator[Problem]:
        """Yield handlers without a transaction, or whose events have no appliers."""
        yield from unatomic_problems(self.cls, endpoint)
        yield from unapplied_events(self.cls, self.appliers, endpoint)


def _undone_alone(
    connection: BaseDatabaseWrapper, *, is_needed: bool
) -> AbstractContextManager[Any]:
    """Return a savepoint, if something that is done may have to be undone."""
    return atomic(using=connection.alias) if is_needed else nullcontext()


def event_storage(cls: type, options: Options) -> Storage[Any] | None:
    """Return the storage of a class with appliers, or of a model with a stream."""
    if not isinstance(cls, type):
        return None
    has_appliers = bool(appliers_of(cls).own)
    if not has_appliers and declared_stream_of(cls) is None:
        return None
    if options.repository is not None:
        return OwnStoreStorage(cls, options) if has_appliers else None
    if issubclass(cls, models.Model):
        return StreamedModelStorage(cls, options)
    return EventStorage(cls, options)
