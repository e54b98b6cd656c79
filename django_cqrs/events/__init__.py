"""Event streams and projections: a separate Django app."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from django_cqrs.events.appliers import applies, replay
    from django_cqrs.events.feeding import Emitter, PartitionName, Replaying, State
    from django_cqrs.events.feeds import Feed
    from django_cqrs.events.insertion import ANY, EXISTS, NEW, ExpectedVersion
    from django_cqrs.events.operations import Projections, projections
    from django_cqrs.events.projecting import (
        on_delete,
        on_flush,
        on_init,
        on_reset,
        projection,
    )
    from django_cqrs.events.queries import EventQuery, where
    from django_cqrs.events.recorded import Recorded, Stored
    from django_cqrs.events.rows import Row
    from django_cqrs.events.sagas import SagaCompleted
    from django_cqrs.events.store import Appended, EventMarker, EventStore, event_store
    from django_cqrs.events.streams import event_stream
    from django_cqrs.events.tags import Tag

__all__ = [
    "ANY",
    "EXISTS",
    "NEW",
    "Appended",
    "Emitter",
    "EventMarker",
    "EventQuery",
    "EventStore",
    "ExpectedVersion",
    "Feed",
    "PartitionName",
    "Projections",
    "Recorded",
    "Replaying",
    "Row",
    "SagaCompleted",
    "State",
    "Stored",
    "Tag",
    "applies",
    "event_store",
    "event_stream",
    "on_delete",
    "on_flush",
    "on_init",
    "on_reset",
    "projection",
    "projections",
    "replay",
    "where",
]

# Some of them need the models, which Django loads after this package.
_PLACES: Final = {
    "ANY": "insertion",
    "EXISTS": "insertion",
    "NEW": "insertion",
    "Appended": "store",
    "Emitter": "feeding",
    "EventStore": "store",
    "ExpectedVersion": "insertion",
    "Feed": "feeds",
    "EventMarker": "store",
    "EventQuery": "queries",
    "PartitionName": "feeding",
    "Projections": "operations",
    "Recorded": "recorded",
    "Replaying": "feeding",
    "Row": "rows",
    "State": "feeding",
    "Stored": "recorded",
    "Tag": "tags",
    "SagaCompleted": "sagas",
    "applies": "appliers",
    "event_store": "store",
    "on_delete": "projecting",
    "on_flush": "projecting",
    "on_init": "projecting",
    "on_reset": "projecting",
    "projection": "projecting",
    "event_stream": "streams",
    "replay": "appliers",
    "projections": "operations",
    "where": "queries",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    place = _PLACES.get(name)
    if place is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    found = getattr(importlib.import_module(f"{__name__}.{place}"), name)
    globals()[name] = found
    return found
