"""The collections that this process knows: their types, names and shapes."""

from __future__ import annotations

from functools import cached_property
from types import GenericAlias
from typing import Any
from weakref import WeakKeyDictionary

from django_cqrs.documents.names import stored_name_of
from django_cqrs.documents.shapes import Shape, shape_of
from django_cqrs.messages import MessageName


class Collection:
    """The values of one type that are stored under one name."""

    def __init__(self, target: Any, name: MessageName) -> None:
        """Take the type of the values, and the collection's names, old ones too."""
        self.target = target
        self.name = name
        self.names = (name.name, *name.aliases)

    @cached_property
    def shape(self) -> Shape:
        """The shape that writes and reads the values."""
        return shape_of(self.target)


_classes: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()
_others: list[tuple[Any, str]] = []


def remember(target: Any, collection: str = "") -> None:
    """
    Note the type of a collection, for displaying its documents.

    Args:
        target: the type.
        collection: its name, by default that of the class. The class's name is read
            later, because the apps may not be loaded yet.

    """
    if isinstance(target, type) and not isinstance(target, GenericAlias):
        _classes.setdefault(target, set()).add(collection)
    elif (target, collection) not in _others:
        _others.append((target, collection))


def known_collections() -> list[Collection]:
    """Return all collections that have a name."""
    pairs = [(cls, each) for cls, names in list(_classes.items()) for each in names]
    named = (
        (target, name_of_collection(target, given))
        for target, given in (*pairs, *_others)
    )
    return [Collection(target, name) for target, name in named if name is not None]


def collections_called(called: str) -> list[Collection]:
    """Return the collections known by a name: none, one, or one for each type."""
    return [each for each in known_collections() if called in each.names]


def name_of_collection(target: Any, collection: str) -> MessageName | None:
    """Return a collection's name: the given one, or that of the class, if any."""
    own = stored_name_of(target)
    if collection:
        return MessageName(collection, own.version if own else 1)
    return own
