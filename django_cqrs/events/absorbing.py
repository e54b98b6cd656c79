"""The events that a method has recorded or returned, and the objects they make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from django_cqrs.events.appliers import Appliers
from django_cqrs.events.recorded import Recorded
from django_cqrs.messages import Message
from django_cqrs.sends import Send
from django_cqrs.shapes import leave_out

MADE: Final = "_made_by_events"
"""The attribute of a new object with the events that have made it."""

leave_out(MADE)


def made_of(appliers: Appliers, result: Any) -> tuple[Any, bool]:
    """Return the object that the events of a factory make, as ``Storage.made_of``."""
    events = appliers.events_in(result)
    if events is None:
        return result, False
    if not events:
        return None, False
    instance = applied(appliers, appliers.blank(), events)
    object.__setattr__(instance, MADE, events)
    return instance, True


def applied(appliers: Appliers, instance: Any, events: Iterable[Any]) -> Any:
    """Return an object to which events were applied."""
    for event in events:
        instance = appliers.apply(instance, event)
    return instance


def events_of(recorded: Iterable[Any]) -> list[Any]:
    """Return the events among what an object has recorded."""
    return [each for each in recorded if type(each) is not Send]


def messages_of(appended: Iterable[Recorded]) -> list[Message]:
    """Return the messages of events that are to be published."""
    return [each.message for each in appended if each.message is not None]
