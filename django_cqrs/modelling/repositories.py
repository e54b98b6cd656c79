"""
Repositories: aggregates outside of their own handlers.

A parameter of type ``Repository[Order]`` gets a repository that finds and saves orders
as the handlers of ``Order`` do. A subclass, named with ``@aggregate(repository=...)``,
stores the objects of a class that has no other storage.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Generic, TypeVar
from weakref import ref

from django.db import connections, models
from django.utils.module_loading import import_string

from django_cqrs.active_tenant import default_alias
from django_cqrs.annotations import (
    bare_type,
    name_of_type,
    sole_type,
    union_members,
    usual_name,
)
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import role_of
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    InvalidHandler,
    InvalidIdentifier,
)
from django_cqrs.messages import Message, scope_of
from django_cqrs.modelling.aggregates import (
    AggregateSubject,
    ModelRole,
    in_open_transaction,
    options_of,
)
from django_cqrs.modelling.identifiers import (
    Part,
    Source,
    Values,
    at_entrance,
    declared_sources,
    typed,
    values_given,
)
from django_cqrs.modelling.storages import Options, Storage, register_storage
from django_cqrs.modelling.watches import KeyWatch, Watch, note_kept
from django_cqrs.parameters.plan import READING, UNLOCKED, Constant, Resolver
from django_cqrs.parameters.planner import Unfillable, register_filler
from django_cqrs.parameters.services import Services
from django_cqrs.problems import Rule

T = TypeVar("T")


class Repository(Generic[T]):
    """
    Finds and saves the objects of one class.

    In a subclass of your own, implement :meth:`find` and :meth:`save`.
    """

    def get(self, identifier: Any, /) -> T:
        """
        Return an object.

        Args:
            identifier: one value; a dict by name, or a tuple, if it has several parts.

        Raises:
            AggregateNotFound: no object has this identifier.

        """
        found = self.find(identifier)
        if found is None:
            msg = f"{self!r} has no object with the identifier {identifier!r}."
            raise AggregateNotFound(msg)
        return found

    def find(self, identifier: Any, /) -> T | None:
        """Return an object, or None if none has this identifier."""
        raise NotImplementedError

    def find_by_key(self, value: Any, /) -> T | None:
        """
        Return the object that has a natural key, None if none has it.

        Only classes with ``@event_stream(..., natural_key=...)`` have natural keys.
        """
        raise NotImplementedError

    def save(self, instance: T, /) -> None:
        """Save an object, new or changed."""
        raise NotImplementedError

    def append(self, instance: T, events: Sequence[Message], /) -> None:
        """
        Save the new events of an object whose class has appliers.

        Implement it for such a class instead of :meth:`save`.

        Args:
            instance: the object, with the events applied.
            events: the events in order: ``payload`` is the event, ``headers`` has its
                ids, the headers about the object, and those of the user.

        """
        raise NotImplementedError

    def delete(self, instance: T, /) -> None:
        """Delete an object; need not be implemented if nothing is ever deleted."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the class's name."""
        return type(self).__name__


class StorageRepository(Repository[T]):
    """Stores objects as their handlers do, and publishes their recorded events."""

    def __init__(self, subject: AggregateSubject) -> None:
        """Use the subject of the objects."""
        self._subject = subject

    def find(self, identifier: Any, /) -> T | None:
        """
        Return an object, or None; locked like in handlers if inside a transaction.

        Raises:
            InvalidIdentifier: the argument cannot be an identifier.

        """
        storage = self._subject.storage
        values = values_given(storage.parts, identifier, by=repr(self))
        alias = storage.write_alias()
        lock = storage.locks and connections[alias].in_atomic_block
        found: T | None = storage.find(values, using=alias, lock=lock)
        _hold(self._subject, found, alias)
        return found

    def find_by_key(self, value: Any, /) -> T | None:
        """
        Return the object that has a natural key, None if none has it.

        Raises:
            InvalidOption: objects of the class have no natural key.
            InvalidIdentifier: the argument cannot be a natural key.

        """
        storage = self._subject.storage
        alias = storage.write_alias()
        lock = storage.locks and connections[alias].in_atomic_block
        found: T | None = storage.find_by_key(value, using=alias, lock=lock)
        return found

    def save(self, instance: T, /) -> None:
        """
        Insert or update an object, then publish its recorded events.

        Raises:
            AggregateAlreadyExists: another object has its identifier.
            ConcurrencyError: it was changed by somebody else.

        """
        subject = self._subject
        if not subject.storage.keeps_events:
            subject.publish(instance, subject.keep(instance, None))
            return
        alias = subject.write_alias()
        with in_open_transaction(alias):
            subject.publish(instance, subject.keep(instance, alias))

    def delete(self, instance: T, /) -> None:
        """Delete an object; a handler that was called on it does not save it."""
        storage = self._subject.storage
        storage.delete(instance, using=storage.write_alias())

    def __repr__(self) -> str:
        """Return the repository as written in an annotation."""
        return f"Repository[{name_of_type(self._subject.owner)}]"


def _repository_filler(annotation: Any, services: Services) -> Constant | None:
    bare = sole_type(annotation)
    if typing.get_origin(bare) is not Repository or services.owner is None:
        return None
    (cls,) = typing.get_args(bare)
    return Constant(StorageRepository(_subject_of(cls, services)))


def _subject_of(cls: Any, services: Services) -> AggregateSubject:
    role = role_of(cls)
    if isinstance(role, ModelRole):
        return role.subject_of(cls, services)
    if isinstance(cls, type) and issubclass(cls, models.Model):
        # A plain model has no handlers; it is found and saved all the same.
        return AggregateSubject(cls, _PLAIN_ROLE, services)
    msg = f"{name_of_type(cls)} is neither an aggregate nor a model"
    raise Unfillable(msg, rule=Rule.BAD_FETCH)


_PLAIN_ROLE = ModelRole(options_of(None, None, None, None))


# ----------------------------------------------------------------------------- Fetch


@dataclasses.dataclass(frozen=True, slots=True)
class Fetch:
    """
    ``Annotated[Ticket, Fetch("ticket_id")]``: the object that a message names.

    Args:
        source: an attribute of the payload, a ``Header``, or a callable that takes the
            message; for an identifier of several parts a dict of these by name.

        lock: False reads the row without a lock, even inside a command.

    ``Ticket | None`` allows a missing object. Inside a command the row is locked like
    an action's; elsewhere, also in an event handler on a channel, it is only read. It
    is not saved automatically.

    """

    source: str | Header | Callable[[Message], Any] | dict[str, Any]
    lock: bool = True


def _fetch_filler(annotation: Any, services: Services) -> Resolver | None:
    mark = _fetch_in(annotation)
    if mark is None:
        return None
    bare = bare_type(annotation)
    members = union_members(bare)
    kept = [each for each in members if each is not type(None)]
    if len(kept) != 1:
        msg = f"{name_of_type(bare)} is not one class of objects"
        raise Unfillable(msg, rule=Rule.BAD_FETCH)
    subject = _subject_of(kept[0], services)
    make = partial(_fetcher, subject, mark, optional=len(members) > 1)
    resolver = make(writes=True, locks=mark.lock)
    setattr(resolver, READING, make(writes=False, locks=False))
    setattr(resolver, UNLOCKED, make(writes=True, locks=False))
    return resolver


def _fetch_in(annotation: Any) -> Fetch | None:
    if typing.get_origin(annotation) is not typing.Annotated:
        return None
    return next((m for m in annotation.__metadata__ if isinstance(m, Fetch)), None)


def _fetcher(
    subject: AggregateSubject, mark: Fetch, *, optional: bool, writes: bool, locks: bool
) -> Resolver:
    name = name_of_type(subject.owner)
    sources = list(declared_sources(mark.source))

    def fetch(message: Message) -> Any:
        storage = subject.storage
        try:
            values = _values_from(storage.parts, sources, message)
        except InvalidIdentifier as error:
            at_entrance(error, message)
            raise
        if values is None:
            if optional:
                return None
            msg = (
                f"The message does not identify the {name}: {mark} finds no value in "
                f"it. Annotate {name} | None if that is allowed."
            )
            unnamed = AggregateNotFound(msg)
            unnamed.is_named = False
            raise at_entrance(unnamed, message)
        scope = scope_of(message) if writes else None
        alias = message.using or (
            storage.read_alias() if scope is None else storage.write_alias()
        )
        is_open = scope is not None and connections[alias].in_atomic_block
        lock = locks and is_open and storage.locks
        found = storage.find(values, using=alias, lock=lock)
        if writes:
            _hold(subject, found, alias)
        if found is None and not optional:
            pairs = zip(storage.parts, values, strict=True)
            said = ", ".join(f"{part.name}={value}" for part, value in pairs)
            msg = (
                f"There is no {name} with {said}. Annotate {name} | None if that is "
                "allowed."
            )
            raise at_entrance(AggregateNotFound(msg), message)
        return found

    return fetch


def _hold(subject: AggregateSubject, found: Any, alias: str) -> None:
    """Watch an object that a handler may save by hand, in this transaction."""
    if found is not None and connections[alias].in_atomic_block:
        subject.storage.hold(found, subject.registry, using=alias)


def _values_from(
    parts: tuple[Part, ...], sources: list[tuple[str | None, Source]], message: Message
) -> Values | None:
    if len(sources) == 1 and sources[0][0] is None:
        given = sources[0][1](message)
    else:
        given = {name: source(message) for name, source in sources}
        if None in given.values():
            given = None
    return None if given is None else values_given(parts, given, by="Fetch")


register_filler(_repository_filler)
register_filler(_fetch_filler)


# ------------------------------------------------------- custom repositories


class Known:
    """A set of objects that are still in use, compared by identity, not by equality."""

    def __init__(self) -> None:
        """Start empty."""
        self._objects: dict[int, Any] = {}

    def add(self, instance: Any) -> None:
        """
        Add an object, for as long as it is in use.

        One without weak references counts as known if its class is.
        """
        key = id(instance)
        try:
            self._objects[key] = ref(instance, lambda _: self._objects.pop(key, None))
        except TypeError:
            self._objects[id(type(instance))] = type(instance)

    def has(self, instance: Any) -> bool:
        """Return whether an object was certainly added."""
        held = self._objects.get(id(instance))
        return held is not None and held() is instance

    def may_have(self, instance: Any) -> bool:
        """Return whether an object was added, or may have been."""
        return self.has(instance) or id(type(instance)) in self._objects


class RepositoryStorage(Storage[Any]):
    """Stores objects with a repository that a user has written."""

    def __init__(self, cls: type, options: Options) -> None:
        """Take a class and the repository of its options."""
        super().__init__(cls, options)

    @cached_property
    def repository(self) -> Repository[Any]:
        """
        The repository, created once.

        Raises:
            InvalidHandler: it is not a repository.

        """
        given = self.options.repository
        made = import_string(given) if isinstance(given, str) else given
        if isinstance(made, type):
            made = made()
        if not isinstance(made, Repository):
            msg = (
                f"repository={given!r} of {name_of_type(self.cls)} is not a "
                "Repository: derive it from django_cqrs.modelling.Repository."
            )
            raise InvalidHandler(msg)
        return made

    def make_parts(self) -> tuple[Part, ...]:
        """Return the named attributes, by default the usual name of the class's id."""
        names = self.options.identifier or (usual_name(self.cls),)
        return tuple(
            Part(name, (name,), partial(typed, self._annotations.get(name, Any), name))
            for name in names
        )

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.cls)
        except Exception:  # noqa: BLE001 - an annotation may run any code
            return {}

    def write_alias(self) -> str:
        """Return the default, or the tenant's: the repository decides for itself."""
        return default_alias()

    def watch(
        self,
        instance: Any,
        registry: Registry,
        holder: str | None = None,
        *,
        using: str,
    ) -> Watch | None:
        """Return a watch for another object that is saved under the same key."""
        return KeyWatch(
            self.said,
            registry,
            holder,
            instance=instance,
            key=self._key_of(instance),
        )

    def hold(self, instance: Any, registry: Registry, *, using: str) -> None:
        """Do nothing: the repository is responsible for objects saved by hand."""

    def _key_of(self, instance: Any) -> Any:
        return self.options.repository, self.values_of(instance)

    def find(self, values: Values, *, using: str, lock: bool) -> Any:
        """Ask the repository."""
        found = self._find(values)
        if found is not None:
            self._known.add(found)
        return found

    def _find(self, values: Values) -> Any:
        names = [part.name for part in self.parts]
        one = values[0] if len(values) == 1 else dict(zip(names, values, strict=True))
        return self.repository.find(one)

    @cached_property
    def _known(self) -> Known:
        return Known()

    def is_new(self, instance: Any) -> bool:
        """Return whether this storage has neither found nor saved it."""
        return not self._known.may_have(instance)

    def is_made(self, instance: Any) -> bool:
        """Return the same for a factory's result, which is seldom an old object."""
        return not self._known.has(instance)

    def insert(self, instance: Any, *, using: str) -> None:
        """Save it, if nothing else has its identifier."""
        self.refuse_existing(instance)
        self.repository.save(instance)
        self.note_saved(instance)

    def refuse_existing(self, instance: Any) -> None:
        """
        Refuse an object if another one has its identifier.

        Raises:
            AggregateAlreadyExists: another one has it.

        """
        values = self.values_of(instance)
        found = None if None in values else self._find(values)
        if found is not None and found is not instance:
            msg = f"{self.said(instance)} exists already."
            raise AggregateAlreadyExists(msg)

    def note_saved(self, instance: Any) -> None:
        """Note that the repository has an object, for the holders of others."""
        self._known.add(instance)
        note_kept(self._key_of(instance), instance)

    def update(self, instance: Any, *, using: str) -> None:
        """Save it."""
        version = self.options.version
        if version is not None:
            setattr(instance, version, getattr(instance, version) + 1)
        self.repository.save(instance)
        note_kept(self._key_of(instance), instance)

    def delete(self, instance: Any, *, using: str) -> None:
        """Delete it, which the repository must support."""
        note_kept(self._key_of(instance), instance)
        self.repository.delete(instance)

    def identifier_of(self, instance: Any) -> Any:
        """Return the one attribute, or a dict of several."""
        values = self.values_of(instance)
        names = [part.name for part in self.parts]
        one = len(values) == 1
        return values[0] if one else dict(zip(names, values, strict=True))


def _repository_storage(cls: type, options: Options) -> RepositoryStorage | None:
    return None if options.repository is None else RepositoryStorage(cls, options)


register_storage(_repository_storage, first=True)
