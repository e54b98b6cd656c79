"""The machine of event-sourced objects: their events make the same objects again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar
from unittest import mock

from django.utils import timezone
from hypothesis.stateful import rule

from django_cqrs.annotations import name_of_type
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidOption,
)
from django_cqrs.messages import Message
from django_cqrs.shapes import is_left_out
from django_cqrs.testing.comparison import first_difference
from django_cqrs.testing.kept_objects import KeptObject, Key, there_and_back
from django_cqrs.testing.machines.objects import ObjectMachine, drawn_by_machine

LATER = timedelta(days=400)
"""How much later events are applied again."""


class EventMachine(ObjectMachine):
    """
    Looks for messages after which an object's events do not make the same object.

    ::

        class Baskets(EventMachine):
            aggregate = Basket
            messages = [OpenBasket, AddItem]
            refusals = (SoldOut,)

        TestBaskets = Baskets.TestCase

    After each message the events of the object are read from JSON and applied again,
    at a later time; where there are snapshots, also from a snapshot after each event.
    An applier that depends on anything but its object and the event is found, and so is
    a handler that changes the object without an event.
    """

    aggregate: ClassVar[type]
    """The aggregate, or the saga, that is made of its events."""

    def __init__(self) -> None:
        """
        Start without objects.

        Raises:
            InvalidOption: the class is not made of its events, or ``rows`` is True.

        """
        name = name_of_type(type(self))
        if self.rows:
            msg = f"{name}.rows is True, but this machine keeps its objects in memory."
            raise InvalidOption(msg)
        super().__init__()
        self._checked: dict[Key, int] = {}
        storage: Any = self.world.home.subject_of(self.aggregate).storage
        self._storage = storage
        if not hasattr(storage, "appliers"):
            msg = (
                f"{name}.aggregate is {name_of_type(self.aggregate)}, whose objects "
                "are not made of events. Use AggregateMachine."
            )
            raise InvalidOption(msg)

    @classmethod
    def _owner(cls) -> type:
        return cls.aggregate

    @rule(message=drawn_by_machine)
    def deliver(self, message: Any) -> None:
        """Deliver a message, and make all objects anew that it has changed."""
        usual = (AggregateNotFound, AggregateAlreadyExists, ConcurrencyError)
        refusals: tuple[type[Exception], ...] = (*usual, *self.refusals)
        try:
            self.world.send(message)
        except refusals:
            return
        failures: list[Exception] = []
        self.world.settle(failures)
        for each in failures:
            if not isinstance(each, refusals):
                raise each
        for key, kept in self.world.kept.items():
            if self._checked.get(key) != len(kept.events):
                self._check(key, kept)
                self._checked[key] = len(kept.events)

    def _check(self, key: Key, kept: KeptObject) -> None:
        found = self._replayed(kept.events)
        self._compare(key, kept, found, "applied again")
        later = timezone.now() + LATER
        with mock.patch("django.utils.timezone.now", return_value=later):
            self._compare(key, kept, self._replayed(kept.events), "applied later")
        for version, restored in self._snapshots(key, kept):
            rest = self._replayed(kept.events[version:], restored)
            self._compare(
                key, kept, rest, f"applied to a snapshot at version {version}"
            )

    def _replayed(self, events: list[Message], instance: Any = None) -> Any:
        """Return the object that events make, from nothing or from a snapshot."""
        from django_cqrs.events.appliers import About

        appliers = self._storage.appliers
        instance = appliers.blank() if instance is None else instance
        for message in events:
            event = there_and_back(message.payload)
            origin = partial(About, message=message.replace(payload=event))
            instance = appliers.apply(instance, event, origin)
        return instance

    def _snapshots(self, key: Key, kept: KeptObject) -> Iterator[tuple[int, Any]]:
        """
        Yield the object from a snapshot after each event, if the class has snapshots.

        Raises:
            AssertionError: a state does not come back from JSON.

        """
        snapshots = self._storage.snapshots
        if snapshots is None:
            return
        for version in range(1, len(kept.events)):
            state = snapshots.shape.dump(self._replayed(kept.events[:version]))
            found = snapshots.read(
                _said(key), version, snapshots.fingerprint, json.dumps(state)
            )
            if found is None:
                msg = (
                    f"The snapshot of {_said(key)} at version {version} is not usable."
                )
                raise AssertionError(msg)
            yield version, found[0]

    def _compare(self, key: Key, kept: KeptObject, found: Any, how: str) -> None:
        mismatch = first_difference(_comparable(kept.instance), _comparable(found))
        if mismatch is None:
            return
        events = "\n".join(f"  {each.payload!r}" for each in kept.events)
        msg = (
            f"The events of {_said(key)}, {how}, make another object: {mismatch}. They "
            f"are:\n{events}"
        )
        raise AssertionError(msg)


def _said(key: Key) -> str:
    cls, identifier = key
    return f"{name_of_type(cls)} {identifier}"


def _comparable(value: Any) -> Any:
    """Return a value with the attributes of objects that compare by identity."""
    if isinstance(value, Mapping):
        return {key: _comparable(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return [_comparable(each) for each in value]
    attributes = getattr(value, "__dict__", None)
    if attributes is None or isinstance(value, type):
        return value
    return {
        name: _comparable(each)
        for name, each in attributes.items()
        if not is_left_out(name)
    }
