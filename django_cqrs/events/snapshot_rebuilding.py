"""Take the snapshots of a category that are missing, or that other code has taken."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connections, transaction

from django_cqrs.buses.registries import Registry
from django_cqrs.events.event_storage import EventStorage
from django_cqrs.events.models import Snapshot, Stream
from django_cqrs.events.stream_names import StreamName
from django_cqrs.exceptions import InvalidOption
from django_cqrs.modelling.aggregates import AggregateSubject

PAGE = 500


def storages_of(registry: Registry) -> Iterator[EventStorage]:
    """Yield the storages of the event-sourced classes of a registry."""
    subjects = dict.fromkeys(each.subject for each in registry.routes.endpoints)
    for subject in subjects:
        if isinstance(subject, AggregateSubject) and isinstance(
            subject.storage, EventStorage
        ):
            yield subject.storage


def rebuild_snapshots(category: str, registry: Registry, using: str) -> Iterator[bool]:
    """
    Take the snapshots of a category that no object of the present code could use.

    Yields for each stream with enough events whether its snapshot was taken.

    Args:
        category: the category of an event-sourced class with ``snapshot_every=``.
        registry: the registry with the class.
        using: the alias of the database.

    Raises:
        InvalidOption: no class has the category, or it has no snapshots.

    """
    storage = _storage_of(category, registry)
    connection = connections[using]
    streams = Stream.objects.using(using).filter(
        category=category, archived_at=None, deleted_at=None
    )
    last = 0
    while page := list(streams.filter(pk__gt=last).order_by("pk")[:PAGE]):
        for stream in page:
            # A page that is read later must not be held by a transaction of hours.
            with transaction.atomic(using=using):
                name = StreamName(stream.category, stream.key)
                taken = _take(storage, name, stream.pk, using)
            if taken is not None:
                yield taken
        last = page[-1].pk
        if connection.queries_logged:
            connection.queries_log.clear()


def _storage_of(category: str, registry: Registry) -> EventStorage:
    for storage in storages_of(registry):
        if storage.streams.category == category:
            if storage.snapshots is None:
                msg = (
                    f"The class of {category!r} has no snapshots: it has no "
                    "snapshot_every=."
                )
                raise InvalidOption(msg)
            return storage
    msg = f"No event-sourced class has the category {category!r}."
    raise InvalidOption(msg)


def _take(
    storage: EventStorage, name: StreamName, stream_id: int, using: str
) -> bool | None:
    """Take a snapshot; return whether it was missing, None without enough events."""
    snapshots = storage.snapshots
    assert snapshots is not None  # noqa: S101 - the caller has looked
    held = Snapshot.objects.using(using).filter(pk=stream_id)
    connection = connections[using]
    if held.filter(fingerprint=snapshots.fingerprint).exists():
        return False
    loaded = storage.loader.load(connection, name, uses_snapshot=False)
    if loaded is None or loaded.version < (snapshots.every or 0):
        return None
    return snapshots.write(
        connection, stream_id, str(name), loaded.version, loaded.instance
    )
