"""
The storages of classes: Django models here, other classes by their apps.

A storage supports one class. It is called inside the transaction that the pipeline has
opened, or outside any if it only reads.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, Generic, TypeVar

from django.db import connections

from django_cqrs.annotations import name_of_type
from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import CQRSError, InvalidOption
from django_cqrs.messages import Message
from django_cqrs.modelling.identifiers import Part, Values
from django_cqrs.modelling.watches import Watch, watch_of
from django_cqrs.problems import Problem
from django_cqrs.routing.endpoint import Endpoint

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A decorator's options for a class whose objects are stored."""

    identifier: tuple[str, ...] = ()
    version: str | None = None
    events: str | None = None
    full_clean: bool = False
    repository: Any = None


AboutObject = Callable[[Values, "int | None"], dict[str, Any]]
"""Returns the headers about an object, of its identifier and its version."""


class Storage(ABC, Generic[T]):
    """Finds and saves the objects of one class."""

    keeps_events: bool = False
    """Whether it appends what its objects record, by :meth:`absorb`."""

    registry: Registry
    """The registry with the handlers of the objects, which their subject tells it."""

    def __init__(self, cls: type[T], options: Options) -> None:
        """
        Take a class and its decorator's options.

        Raises nothing: faults are found by :meth:`problems`, or at the first use.
        """
        self.cls = cls
        self.options = options

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the identifier, in order."""
        return self.make_parts()

    @abstractmethod
    def make_parts(self) -> tuple[Part, ...]:
        """Return the parts of the identifier, in order."""

    @abstractmethod
    def write_alias(self) -> str:
        """Return the alias of the database for saving."""

    def read_alias(self) -> str:
        """Return the alias of the database for reading only."""
        return self.write_alias()

    @abstractmethod
    def find(self, values: Values, *, using: str, lock: bool) -> T | None:
        """
        Return the object of an identifier, or None.

        Args:
            values: the values of the parts, converted.
            using: the database alias.
            lock: whether others must not change it until the transaction ends.

        """

    @abstractmethod
    def is_new(self, instance: T) -> bool:
        """Return whether an object has not been saved yet."""

    def is_made(self, instance: T) -> bool:
        """Return whether an object that a method returned has not been saved yet."""
        return self.is_new(instance)

    @abstractmethod
    def insert(self, instance: T, *, using: str) -> None:
        """
        Save a new object.

        Raises:
            AggregateAlreadyExists: another one has its identifier.

        """

    @abstractmethod
    def update(self, instance: T, *, using: str) -> None:
        """
        Save a changed object; skip one that its handler has deleted.

        Raises:
            ConcurrencyError: somebody else has changed or deleted it in the meantime.

        """

    @abstractmethod
    def delete(self, instance: T, *, using: str) -> None:
        """Delete an object; :meth:`update` then skips it."""

    @property
    def natural_key(self) -> str | None:
        """The attribute that is unique besides the identifier, if there is one."""
        return None

    def messages(self) -> Iterable[type]:
        """Return the classes of the messages that only it knows of."""
        return ()

    def problems_with(self, _endpoint: Endpoint) -> Iterator[Problem]:
        """Yield the faults of a handler that only it knows of."""
        yield from ()

    def makes(self, _annotation: Any) -> bool:
        """Return whether an object of a class, returned by a factory, makes one."""
        return False

    def made_of(self, result: Any) -> tuple[Any, bool]:
        """
        Return the object that the events make which a factory has returned.

        Args:
            result: the value that the factory has returned, which is not an object.

        Returns:
            The object and True; or the result of the dispatch and False.

        """
        return result, False

    def returns_events(self, _result: Any) -> bool:
        """Return whether the value that a method has returned consists of events."""
        return False

    def absorb(
        self,
        instance: T,
        recorded: list[Any],
        result: Any,
        *,
        using: str,
        about: AboutObject,
        watch: Watch | None = None,
    ) -> tuple[T, list[Any]]:
        """
        Append the events of an object that was saved.

        Args:
            instance: the object.
            recorded: the events that it has recorded, and its commands.
            result: the value that its method has returned.
            using: the database alias; a transaction is open.
            about: returns the headers about the object.
            watch: the watch of the object, if there is one.

        Returns:
            The object, a new one if an applier made one, and the messages to be
            published: each as a `Message`, with the commands as they are.

        Raises:
            ConcurrencyError: somebody else has appended in the meantime.

        """
        return instance, recorded

    def values_by_key(self, _message: Message, *, using: str) -> Values | None:
        """
        Return the identifier of a message's object by its natural key.

        Returns:
            None if the message has no natural key; an `UnknownKey` if nobody has it.

        """
        return None

    def find_by_key(self, value: Any, *, using: str, lock: bool) -> T | None:
        """
        Return the object that has a natural key, None if none has it.

        Raises:
            InvalidOption: objects of the class have no natural key.

        """
        msg = (
            f"{name_of_type(self.cls)} has no natural key. Give its class "
            '@event_stream(..., natural_key="...").'
        )
        raise InvalidOption(msg)

    def watch(
        self, instance: T, registry: Registry, holder: str | None = None, *, using: str
    ) -> Watch | None:
        """
        Return a watch for foreign writes to an object while it is held, if any.

        Args:
            instance: an object from :meth:`find`.
            registry: the registry whose handlers errors name.
            holder: the handler that will save it, if known.
            using: the database alias.

        """
        return None

    def hold(self, instance: T, registry: Registry, *, using: str) -> None:
        """Watch an object that is held by hand, for as long as it is in use."""
        with suppress(TypeError):  # it does not support weak references
            self.watch(instance, registry, using=using)

    def watch_of(self, instance: T, *, using: str) -> Watch | None:
        """Return the watch of an object that is held by hand, None without one."""
        return watch_of(instance, connections[using])

    def said(self, instance: T) -> str:
        """Return the name of an object in errors: ``Ticket with ticket_id=7``."""
        said = said_of(self.parts, self.values_of(instance))
        return f"{name_of_type(type(instance))} with {said}"

    def is_deleted(self, _instance: T) -> bool:
        """Return whether an object that was found has been deleted by its handler."""
        return False

    @abstractmethod
    def identifier_of(self, instance: T) -> Any:
        """Return the result of a dispatch for a new object."""

    def values_of(self, instance: T) -> Values:
        """Return the parts of an object's identifier."""
        return tuple(getattr(instance, part.name, None) for part in self.parts)

    def version_of(self, instance: T) -> int | None:
        """Return the version of an object, None if it has none."""
        if self.options.version is None:
            return None
        version: int | None = getattr(instance, self.options.version, None)
        return version

    @property
    def identifier_type(self) -> Any:
        """The type of a dispatch's result for a new object, Any if open."""
        return Any

    @property
    def locks(self) -> bool:
        """Whether objects are locked during changes; if not, versions are compared."""
        return self.options.version is None

    def problems(self) -> Iterator[Problem]:
        """Yield the faults of the class."""
        yield from ()


StorageMaker = Callable[[type, Options], "Storage[Any] | None"]

_makers: list[StorageMaker] = []


def register_storage(maker: StorageMaker, *, first: bool = False) -> None:
    """
    Register the storage of a module's classes.

    Args:
        maker: returns a storage for a class, or None if it does not support it.
        first: whether it comes before the existing ones.

    """
    if maker not in _makers:
        _makers.insert(0 if first else len(_makers), maker)


def storage_of(cls: type, options: Options) -> Storage[Any]:
    """
    Return the storage of a class's objects.

    Raises:
        NoStorage: no storage supports the class.

    """
    for maker in _makers:
        storage = maker(cls, options)
        if storage is not None:
            return storage
    msg = (
        f"{name_of_type(cls)} has no storage: it is not a model, it has no "
        "repository=, and no installed app stores such objects."
    )
    raise NoStorage(msg)


class NoStorage(CQRSError):
    """No storage supports a class."""


def said_of(parts: Iterable[Part], values: Iterable[Any]) -> str:
    """Return the text of an identifier in errors: ``ticket_id=7``."""
    return ", ".join(
        f"{part.name}={value}" for part, value in zip(parts, values, strict=True)
    )
