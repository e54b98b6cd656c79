"""Objects that are their events, in memory: imported if there is such a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS

from django_cqrs.buses.registries import Registry
from django_cqrs.events.appliers import About, Appliers
from django_cqrs.events.event_storage import MARK, EventStorage, StreamMark
from django_cqrs.events.recorded import Stored
from django_cqrs.events.sagas import SagaCompleted
from django_cqrs.events.streams import key_of
from django_cqrs.exceptions import AggregateAlreadyExists, ConcurrencyError
from django_cqrs.messages import Message, current
from django_cqrs.modelling.identifiers import Values, identification
from django_cqrs.modelling.storages import AboutObject, Storage
from django_cqrs.testing.kept_objects import (
    KeptObject,
    ObjectMemory,
    text_of,
    there_and_back,
)


class MadeMessage(NamedTuple):
    """An event that was appended in memory, as its storage returns it."""

    message: Message


def is_event_sourced(storage: Storage[Any]) -> bool:
    """Return whether a storage keeps objects as their events alone."""
    return storage.keeps_events and isinstance(
        getattr(storage, "appliers", None), Appliers
    )


class LoneEventStorage(EventStorage):
    """Keeps the events of a class's objects in memory, those of the present world."""

    def __init__(
        self, real: Storage[Any], registry: Registry, memory: Callable[[], ObjectMemory]
    ) -> None:
        """
        Take the place of a storage.

        Args:
            real: the storage of the objects.
            registry: the registry with their handlers.
            memory: returns the present memory.

        """
        super().__init__(real.cls, real.options)
        self.registry = registry
        self._memory = memory

    @property
    def _world(self) -> ObjectMemory:
        return self._memory()

    def write_alias(self) -> str:
        """Return an alias that nothing is written to."""
        return DEFAULT_DB_ALIAS

    def find(self, values: Values, *, using: str, lock: bool) -> Any:
        """Make the object of its events."""
        key = self.cls, text_of(values)
        entry = self._world.look(key)
        if entry is None:
            return None
        instance = self._replayed(entry.events)
        self._put_mark(instance, 0, key_of(values), len(entry.events))
        return instance

    def _replayed(self, events: Iterable[Message]) -> Any:
        instance = self.appliers.blank()
        for message in events:
            origin = partial(About, message=message)
            instance = self.appliers.apply(instance, message.payload, origin)
        return instance

    def insert(self, instance: Any, *, using: str) -> None:
        """Do nothing but end a race: the events are appended afterwards."""
        self._world.stale.clear()

    def give(self, event: Any) -> None:
        """
        Append an event that a test gives, to the object that it names or the last one.

        Raises:
            InvalidIdentifier: the first event of an object does not set its identifier.

        """
        find = identification(self.parts, None, type(event))
        values = find(Message(event))
        key = self._world.last
        if values is not None:
            key = self.cls, text_of(values)
        entry = None if key is None else self._world.kept.get(key)
        given = [] if entry is None else list(entry.events)
        given.append(Message(there_and_back(event), current.get()))
        instance = self._replayed(given)
        self._sound_key(instance, None, self.values_of(instance))
        self._keep(self.values_of(instance), instance, given)

    def _keep(self, values: Values, instance: Any, events: list[Message]) -> None:
        key = self.cls, text_of(values)
        self._world.kept[key] = KeptObject(instance, len(events), events)
        self._world.note_last(key)

    def _append(
        self,
        instance: Any,
        mark: StreamMark | None,
        events: list[Any],
        using: str,
        about: AboutObject,
    ) -> list[Any]:
        """Append events in memory, as they would come back from the store."""
        values = self.values_of(instance)
        own = self._sound_key(instance, mark, values)
        key = self.cls, text_of(values)
        entry = self._world.kept.get(key)
        version = 0 if mark is None else mark.version
        before = [] if entry is None else entry.events
        if len(before) != version:
            raise self._conflict(instance, mark)
        self._refuse_taken(instance, key)
        made: list[Message] = []
        for number, event in enumerate(events, version + 1):
            made.append(_message_of(event, about(values, number)))
        restored = [each.replace(payload=there_and_back(each.payload)) for each in made]
        self._keep(values, instance, [*before, *restored])
        self._put_mark(instance, 0, own, version + len(made))
        if mark is not None and mark.is_deleted:
            own_mark = vars(instance)[MARK]._replace(is_deleted=True)
            object.__setattr__(instance, MARK, own_mark)
        return [MadeMessage(each) for each in made]

    def _refuse_taken(self, instance: Any, key: Any) -> None:
        """Refuse a natural key that another object has."""
        name = self.natural_key
        value = None if name is None else self._key_value_of(instance)
        if value is None:
            return
        for other, entry in self._world.kept.items():
            same = other[0] is self.cls and other != key
            if same and self._key_value_of(entry.instance) == value:
                said = type(instance).__qualname__
                msg = f"{said} with {name}={value} exists already."
                raise AggregateAlreadyExists(msg)

    def _values_of_key(self, value: Any, using: str) -> Values | None:
        for (cls, _), entry in self._world.kept.items():
            found = getattr(entry.instance, self.natural_key or "", None)
            if cls is self.cls and found is not None and str(found) == str(value):
                return self.values_of(entry.instance)
        return None

    def delete(self, instance: Any, *, using: str) -> None:
        """Forget the object, as if its stream were archived."""
        mark: StreamMark | None = vars(instance).get(MARK)
        if mark is None:
            msg = f"{self.said(instance)} was never saved, so it cannot be deleted."
            raise ConcurrencyError(msg)
        self._world.kept.pop((self.cls, text_of(self.values_of(instance))), None)
        object.__setattr__(instance, MARK, mark._replace(is_deleted=True))


def _message_of(event: Any, about: Any) -> Message:
    given, own = (
        (event.event, event.headers) if type(event) is Stored else (event, None)
    )
    message = Message(given, current.get())
    if own:
        message._add_headers(own)
    message._aggregate = about
    return message


def is_hidden(event: Any) -> bool:
    """Return whether an event is of this library, and not of the class."""
    return type(event) is SagaCompleted
