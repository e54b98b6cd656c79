"""
How the objects of a class are found and kept: Django models here, others by their app.

A storage knows one class. It is asked for inside the transaction that the pipeline has
opened, or outside any where that is only to read.
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
from django_cqrs.exceptions import CQRSError
from django_cqrs.modelling.identifiers import Part, Values
from django_cqrs.modelling.watches import Watch, watch_of
from django_cqrs.problems import Problem

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a decorator says of a class whose objects are to be found and kept."""

    identifier: tuple[str, ...] = ()
    version: str | None = None
    events: str | None = None
    full_clean: bool = False
    repository: Any = None


class Storage(ABC, Generic[T]):
    """Finds and keeps the objects of one class."""

    def __init__(self, cls: type[T], options: Options) -> None:
        """
        Take a class and what its decorator says.

        Raises nothing: what is wrong is found by :meth:`problems`, or when it is used.
        """
        self.cls = cls
        self.options = options

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the identifier, in their order."""
        return self.make_parts()

    @abstractmethod
    def make_parts(self) -> tuple[Part, ...]:
        """Return the parts of the identifier, in their order."""

    @abstractmethod
    def write_alias(self) -> str:
        """Return the alias of the database that objects are kept in."""

    def read_alias(self) -> str:
        """Return the alias of the database that objects are only read from."""
        return self.write_alias()

    @abstractmethod
    def find(self, values: Values, *, using: str, lock: bool) -> T | None:
        """
        Return the object of an identifier, or None.

        Args:
            values: of the parts, converted.
            using: the database alias.
            lock: whether nobody else is to change it until the transaction ends.

        """

    @abstractmethod
    def is_new(self, instance: T) -> bool:
        """Return whether an object has not been kept yet."""

    def is_made(self, instance: T) -> bool:
        """Return whether an object that a method returns has not been kept yet."""
        return self.is_new(instance)

    @abstractmethod
    def insert(self, instance: T, *, using: str) -> None:
        """
        Keep a new object.

        Raises:
            AggregateAlreadyExists: another one has its identifier.

        """

    @abstractmethod
    def update(self, instance: T, *, using: str) -> None:
        """
        Keep a changed object; one that its handler has deleted is left alone.

        Raises:
            ConcurrencyError: somebody else has changed or deleted it meanwhile.

        """

    @abstractmethod
    def delete(self, instance: T, *, using: str) -> None:
        """Forget an object; :meth:`update` then leaves it alone."""

    def watch(
        self, instance: T, registry: Registry, holder: str | None = None, *, using: str
    ) -> Watch | None:
        """
        Return what notices that others write an object while it is held, if anything.

        Args:
            instance: what :meth:`find` has returned.
            registry: whose handlers errors name.
            holder: the handler that is going to save it, where that is known.
            using: the database alias.

        """
        return None

    def hold(self, instance: T, registry: Registry, *, using: str) -> None:
        """Watch an object that is held by hand, for as long as somebody has it."""
        with suppress(TypeError):  # there can be no weak reference to it
            self.watch(instance, registry, using=using)

    def watch_of(self, instance: T, *, using: str) -> Watch | None:
        """Return what watches an object that is held by hand, None where nothing."""
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
        """Return what a dispatch gives back for a new object."""

    def values_of(self, instance: T) -> Values:
        """Return the parts of an object's identifier."""
        return tuple(getattr(instance, part.name, None) for part in self.parts)

    def version_of(self, instance: T) -> int | None:
        """Return the version of an object, None where it has none."""
        if self.options.version is None:
            return None
        version: int | None = getattr(instance, self.options.version, None)
        return version

    @property
    def identifier_type(self) -> Any:
        """The type of what a dispatch gives back for a new object, Any if open."""
        return Any

    @property
    def locks(self) -> bool:
        """Whether an object is locked while it is changed; else its version decides."""
        return self.options.version is None

    def problems(self) -> Iterator[Problem]:
        """Yield the faults of the class."""
        yield from ()


StorageMaker = Callable[[type, Options], "Storage[Any] | None"]

_makers: list[StorageMaker] = []


def register_storage(maker: StorageMaker, *, first: bool = False) -> None:
    """
    Let a module keep the classes that it knows how to.

    Args:
        maker: returns a storage for a class, or None where it is not its affair.
        first: whether it is asked before those that are there.

    """
    if maker not in _makers:
        _makers.insert(0 if first else len(_makers), maker)


def storage_of(cls: type, options: Options) -> Storage[Any]:
    """
    Return the storage of a class's objects.

    Raises:
        NoStorage: nothing does.

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
    """No storage knows a class."""


def said_of(parts: Iterable[Part], values: Iterable[Any]) -> str:
    """Return the text of an identifier in errors: ``ticket_id=7``."""
    return ", ".join(
        f"{part.name}={value}" for part, value in zip(parts, values, strict=True)
    )
