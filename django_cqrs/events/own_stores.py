"""Event-sourced classes whose events a repository of the user's keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django_cqrs.events.absorbing import MADE, applied, events_of, made_of
from django_cqrs.events.appliers import Appliers, appliers_of
from django_cqrs.events.recorded import Stored
from django_cqrs.events.stream_checks import unapplied_events
from django_cqrs.messages import Message, current
from django_cqrs.modelling.repositories import RepositoryStorage
from django_cqrs.modelling.storages import AboutObject, Options
from django_cqrs.modelling.watches import Watch
from django_cqrs.problems import Problem
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.sends import Send


class OwnStoreStorage(RepositoryStorage):
    """Hands events to a repository that a user has written, instead of the store."""

    keeps_events = True

    def __init__(self, cls: type, options: Options) -> None:
        """Take a class with appliers, and the repository of its options."""
        super().__init__(cls, options)
        self.appliers: Appliers = appliers_of(cls)

    def made_of(self, result: Any) -> tuple[Any, bool]:
        """Return the object that the events of a factory make."""
        return made_of(self.appliers, result)

    def returns_events(self, result: Any) -> bool:
        """Return whether the value that a method has returned consists of events."""
        return bool(self.appliers.events_in(result))

    def insert(self, instance: Any, *, using: str) -> None:
        """Refuse an object whose identifier another one has."""
        self.refuse_existing(instance)

    def update(self, instance: Any, *, using: str) -> None:
        """Do nothing: its events are handed over when they are published."""

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
        """Apply the returned events, hand all of them over, return their messages."""
        if self.options.events is not None:
            instance = applied(self.appliers, instance, events_of(recorded))
        returned = self.appliers.events_in(result) or []
        instance = applied(self.appliers, instance, returned)
        events = [*events_of(recorded), *vars(instance).pop(MADE, ()), *returned]
        sends = [each for each in recorded if type(each) is Send]
        if not events:
            return instance, sends
        values = self.values_of(instance)
        version = self.options.version
        if version is not None:
            last = (getattr(instance, version, None) or 0) + len(events)
            object.__setattr__(instance, version, last)
        headers = about(values, self.version_of(instance))
        messages = [_message_of(each, headers) for each in events]
        self.repository.append(instance, messages)
        self.note_saved(instance)
        return instance, [*messages, *sends]

    def problems_with(self, endpoint: Endpoint) -> Iterator[Problem]:
        """Yield the faults of the appliers, and returned events without appliers."""
        yield from self.appliers.problems
        yield from unapplied_events(self.cls, self.appliers, endpoint)

    def messages(self) -> Iterable[type]:
        """Return the classes of the events that its appliers take."""
        return self.appliers.classes

    def makes(self, annotation: Any) -> bool:
        """Return whether a factory's events of a class make an object."""
        return isinstance(annotation, type) and self.appliers.takes(annotation)


def _message_of(event: Any, about: Mapping[str, Any]) -> Message:
    own = None
    if type(event) is Stored:
        event, own, event_id = event.event, event.headers, event.event_id
    else:
        event_id = None
    message = Message(event, current.get())
    if own:
        message._add_headers(own)
    if event_id is not None:
        message._message_id = event_id
    message._aggregate = about
    return message
