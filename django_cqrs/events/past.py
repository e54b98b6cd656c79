"""The state of an object at an earlier version, or at an earlier time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from django.db import connections

from django_cqrs.annotations import name_of_type
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import role_of
from django_cqrs.events.event_storage import EventStorage
from django_cqrs.events.loading import NOW, Loaded, Until
from django_cqrs.events.stream_names import StreamName
from django_cqrs.events.streams import stream_named
from django_cqrs.exceptions import InvalidOption, StreamNotFound
from django_cqrs.modelling.aggregates import ModelRole
from django_cqrs.modelling.identifiers import values_given
from django_cqrs.modelling.storages import Options
from django_cqrs.times import as_sent

T = TypeVar("T")

Find = Callable[[EventStorage, StreamName, Until], Loaded | None]
"""Returns the object of a stream as it was after an event; None without any."""


def load(
    cls: type[T],
    identifier: Any,
    *,
    registry: Registry,
    using: str | None = None,
    version: int | None = None,
    at: datetime | None = None,
    find: Find | None = None,
) -> T:
    """
    Return an object as it was after one of its events, by default after the last.

    Args:
        cls: a class with appliers; it need not be an aggregate.
        identifier: its identifier, as for a repository.
        registry: the registry that knows its events.
        using: the database alias, by default the router's.
        version: the number of the last event to apply.
        at: the time after which no event is applied.
        find: returns the object of a stream, by default from the database.

    Raises:
        StreamNotFound: the object has no event, or had none then.
        InvalidOption: the class has no appliers, or the object never had the version.

    """
    role = role_of(cls)
    options = role.options if isinstance(role, ModelRole) else Options()
    storage = EventStorage(cls, options)
    if not storage.appliers.own:
        msg = (
            f"{name_of_type(cls)} has no appliers, so no events make its objects. Mark "
            "its methods for events with @applies."
        )
        raise InvalidOption(msg)
    if version is not None and (type(version) is not int or version < 1):
        msg = f"version= takes the number of an event, from 1, not {version!r}."
        raise InvalidOption(msg)
    storage.registry = registry
    values = values_given(storage.parts, identifier, by="The identifier")
    name = stream_named(cls, values)
    until = NOW
    if version is not None or at is not None:
        until = Until(version, None if at is None else as_sent(at))
    if find is not None:
        loaded = find(storage, name, until)
    else:
        connection = connections[using or storage.write_alias()]
        loaded = storage.loader.load(connection, name, until=until)
    if loaded is None:
        then = "" if at is None else f" at {at}"
        msg = f"The stream {str(name)!r} has no event{then}."
        raise StreamNotFound(msg)
    if version is not None and at is None and loaded.version < version:
        msg = (
            f"The stream {str(name)!r} has version {loaded.version}, so its object was "
            f"never at version {version}."
        )
        raise InvalidOption(msg)
    instance: T = storage.marked(loaded, name.key)
    return instance
