"""
Aggregates: objects that are found by identifier, called, saved, and observed.

A class-method is a factory: the object that it returns is saved. Any other method is an
action: its object is found, locked, called and saved. Afterwards the object's recorded
events are published, in the same transaction.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import copy
from functools import cached_property, partial
from typing import Any, TypeVar, overload

from django.apps import apps
from django.db import connections
from django.db.transaction import atomic

from django_cqrs.annotations import is_value_type, name_of_type, union_members
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import Kind, role_of, take_role
from django_cqrs.declaration.key_sources import MAX_LENGTH, joined, storable_key
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
)
from django_cqrs.messages import Message, drop, handling_of
from django_cqrs.modelling.conditions import ConditionalOrigin
from django_cqrs.modelling.identifiers import (
    UnknownKey,
    Values,
    at_entrance,
    declared_sources,
    identification,
    marked_fields,
    plain,
    version_field,
)
from django_cqrs.modelling.storages import NoStorage, Options, Storage, storage_of
from django_cqrs.modelling.watches import Watch, called_by, name_of_method
from django_cqrs.parameters.services import Services
from django_cqrs.pipeline.stages import is_inside_transaction
from django_cqrs.problems import Problem, Rule
from django_cqrs.recording import RECORDED_COMMANDS, ensure_known
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Role, Run, Subject
from django_cqrs.sends import (
    LATE,
    MAY_SEND,
    Send,
    made_by,
    says_send,
    send_on,
    split_sends,
    without_sends,
)
from django_cqrs.sync import sync_callable

C = TypeVar("C", bound=type)

_MADE_AND_SENT = 2
"""The number of values from a factory with ``output=``: the object, and messages."""

PULL = "pull_recorded_events"
"""The method of ``RecordsEvents`` that returns and forgets the recorded events."""

HOOK = "post_insert"
"""The method that is called after the object was inserted, if its class has one."""


@dataclasses.dataclass(frozen=True)
class ModelRole(Role):
    """The declaration of ``@aggregate`` or ``@saga`` on a class."""

    options: Options
    decorator: str = "@aggregate"
    _subjects: dict[Any, AggregateSubject] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def subject_of(self, owner: type, services: Services) -> AggregateSubject:
        """Return the storage of a class's objects for one registry."""
        key = owner, services
        if key not in self._subjects:
            self._subjects[key] = self.make_subject(owner, services)
        return self._subjects[key]

    def make_subject(self, owner: type, services: Services) -> AggregateSubject:
        """Return a new subject."""
        return AggregateSubject(owner, self, services)


@overload
def aggregate(cls: C, /) -> C: ...
@overload
def aggregate(
    *,
    identifier: str | tuple[str, ...] | None = None,
    version: str | None = None,
    events: str | None = None,
    full_clean: bool = False,
    repository: Any = None,
) -> Callable[[C], C]: ...
def aggregate(
    cls: Any = None,
    /,
    *,
    identifier: str | tuple[str, ...] | None = None,
    version: str | None = None,
    events: str | None = None,
    full_clean: bool = False,
    repository: Any = None,
) -> Any:
    """
    Make a class an aggregate: its decorated methods are handlers of its objects.

    Args:
        cls: a Django model, or a class whose objects a storage or a repository keeps.
        identifier: the attributes that identify an object. For a model: one unique
            field or several that are unique together, by default its primary key.
        version: an integer field that every save increments. Objects are then not
            locked: saving one that was changed in the meantime raises ConcurrencyError.
        events: the method that returns the recorded events and forgets them, if the
            class does not derive from ``RecordsEvents``.
        full_clean: whether a model's ``full_clean()`` is called before each save.
        repository: a subclass of ``Repository`` that finds and saves the objects, or
            its dotted path.

    Returns:
        The class itself. A model is otherwise unchanged.

    """
    role = ModelRole(
        options_of(identifier, version, events, repository, full_clean=full_clean)
    )
    if cls is not None:
        return take_role(cls, role)
    return lambda target: take_role(target, role)


def options_of(
    identifier: str | tuple[str, ...] | None,
    version: str | None,
    events: str | None,
    repository: Any,
    *,
    full_clean: bool = False,
) -> Options:
    """Return the options of a decorator, from its arguments."""
    if isinstance(identifier, str):
        identifier = (identifier,)
    return Options(
        identifier=tuple(identifier or ()),
        version=version,
        events=events,
        full_clean=full_clean,
        repository=repository,
    )


class AggregateSubject(Subject):
    """Finds and saves the objects of one class, and publishes their recorded events."""

    def __init__(self, owner: type, role: ModelRole, services: Services) -> None:
        """Take a class, its role, and the services of the registry it belongs to."""
        self.owner = owner
        self.role = role
        self.options = role.options
        self._services = services
        self._hooks: dict[type, Callable[[Any], object] | None] = {}

    @cached_property
    def storage(self) -> Storage[Any]:
        """
        The storage of the objects.

        Raises:
            NoStorage: no storage supports the class.

        """
        storage = storage_of(self.owner, self.options)
        storage.registry = self.registry
        return storage

    @cached_property
    def type_name(self) -> str:
        """The class in the header ``aggregate_type``: ``tickets.Ticket``."""
        config = apps.get_containing_app_config(self.owner.__module__)
        place = config.label if config else self.owner.__module__
        return f"{place}.{name_of_type(self.owner)}"

    def write_alias(self) -> str:
        """Ask the storage, which asks the database router for a model."""
        return self.storage.write_alias()

    def read_alias(self) -> str:
        """Ask the storage."""
        return self.storage.read_alias()

    def identifier_given(self, given: Any, message: Message) -> Any:
        """
        Return the identifier in ``aggregate_id=``, as plain values for a header.

        Args:
            given: the argument of the call.
            message: the message for the object.

        Raises:
            InvalidIdentifier: it cannot be an identifier.

        """
        try:
            return self._plain_identifier(given)
        except InvalidIdentifier as error:
            at_entrance(error, message)
            raise

    def _plain_identifier(self, given: Any) -> Any:
        if isinstance(given, self.owner):  # the object itself
            values = self.storage.values_of(given)
            given = values[0] if len(values) == 1 else values
        if isinstance(given, Mapping):
            return {name: None if v is None else plain(v) for name, v in given.items()}
        if isinstance(given, (tuple, list)) and len(self.storage.parts) > 1:
            return tuple(None if each is None else plain(each) for each in given)
        return plain(given)

    # Checks -----------------------------------------------------------------------

    def problems_of(self, endpoint: Endpoint) -> Iterator[Problem]:
        """Yield the faults of the class, and of one of its handlers."""
        try:
            storage = self.storage
        except NoStorage as error:
            yield Problem(
                Rule.NO_STORAGE,
                str(error),
                "Make it a Django model, give it a repository=, or add an app to "
                "INSTALLED_APPS: 'django_cqrs.events' if it has @applies methods, else "
                "'django_cqrs.documents'.",
                self.owner,
            )
            return
        found = [*storage.problems(), *self._events_problems()]
        yield from found
        if not found:
            yield from self._endpoint_problems(endpoint)
            yield from storage.problems_with(endpoint)

    def _events_problems(self) -> Iterator[Problem]:
        name = self.options.events
        if name is not None and not callable(getattr(self.owner, name, None)):
            yield Problem(
                Rule.UNKNOWN_EVENTS,
                f"{name_of_type(self.owner)} has events={name!r}, which is not one of "
                "its methods.",
                "Name the method that returns and clears the recorded events, or "
                "derive the class from RecordsEvents.",
                self.owner,
            )

    def _endpoint_problems(self, endpoint: Endpoint) -> Iterator[Problem]:
        payload = endpoint.plan.payload
        classes = [c for c in (payload.members if payload else ()) if _has_fields(c)]
        declared = endpoint.own.identifier
        for name in attributes_named(declared):
            if classes and not any(_may_have(cls, name) for cls in classes):
                said = " | ".join(name_of_type(cls) for cls in classes)
                yield Problem(
                    Rule.BAD_IDENTIFIER,
                    f"{endpoint.place} has identifier={declared!r}, but {said} has no "
                    f"attribute {name!r}.",
                    "Name an attribute of the message, or give a Header or a callable.",
                    endpoint.function,
                )
        for cls in classes:
            field = version_field(cls)
            if field is not None and self.options.version is None:
                yield Problem(
                    Rule.BAD_VERSION,
                    f"{name_of_type(cls)}.{field} is a Version(), but "
                    f"{name_of_type(self.owner)} has no version to compare it with.",
                    f'Give {self.role.decorator}(version="...") an integer field.',
                    endpoint.function,
                )

    def result_of(self, endpoint: Endpoint) -> Any:
        """Return the identifier's type if a factory makes an object of the class."""
        returns = without_sends(endpoint.plan.returns)
        if endpoint.is_factory:
            args = typing.get_args(returns)
            is_tuple = typing.get_origin(returns) is tuple
            if endpoint.policies.outputs and is_tuple and len(args) == _MADE_AND_SENT:
                returns = args[0]
            makes = [m for m in union_members(returns) if m is not type(None)]
            if all(self._is_kept(each) for each in makes):
                with suppress(NoStorage):  # the checks report it
                    return self.storage.identifier_type
            return returns
        others = [m for m in union_members(returns) if _is_model(m)]
        return Any if others else returns

    def _is_kept(self, annotation: Any) -> bool:
        if annotation is inspect.Parameter.empty or not isinstance(annotation, type):
            return True  # Self, or no annotation
        if issubclass(annotation, self.owner) or _is_model(annotation):
            return True
        try:
            return self.storage.makes(annotation)
        except NoStorage:  # the checks report it
            return False

    def messages(self) -> Iterable[type]:
        """Ask the storage."""
        try:
            return self.storage.messages()
        except NoStorage:  # the checks report it
            return ()

    def key_of(self, values: Values) -> str:
        """
        Return the name of an object in envelopes: ``shop.Order:7``.

        It is unique. For several values it is ``shop.Seat:'3','12'``; a hash replaces
        values that are too long, or that a database cannot tell apart.
        """
        text = str(values[0]) if len(values) == 1 else joined(map(str, values))
        begin = self._key_prefix
        return f"{begin}{storable_key(text, room=MAX_LENGTH - len(begin))}"

    @cached_property
    def _key_prefix(self) -> str:
        """The start of the keys of all objects; it leaves room for a hash."""
        return f"{storable_key(self.type_name, room=MAX_LENGTH - 80)}:"

    def address(self, endpoint: Endpoint, cls: type) -> Callable[[Message], str]:
        """Return a function from a message to the key of the object that it is for."""
        find = identification(self.storage.parts, endpoint.policies.identifier, cls)

        def address(message: Message) -> str:
            try:
                values = find(message)
            except InvalidIdentifier:  # its handler reports it
                values = None
            return "" if values is None else self.key_of(values)

        return address

    def parts_missing_in(self, endpoint: Endpoint, cls: type) -> list[str]:
        """Return the parts of the identifier that a message cannot have."""
        declared = endpoint.policies.identifier
        is_made = endpoint.is_factory and endpoint.action is None
        if is_made or callable(declared):
            return []
        try:
            parts = self.storage.parts
        except NoStorage:  # the checks of the class report it
            return []
        names = [name for name, _ in declared_sources(declared)]
        names += marked_fields(cls)
        return [
            part.aliases[0]
            for part in parts
            if not any(map(part.is_called, filter(None, names)))
            and not (None in names and len(parts) == 1)
            and not any(_may_have(cls, alias) for alias in part.aliases)
            and not _may_have(cls, self.storage.natural_key)
        ]

    # Handling ---------------------------------------------------------------------

    def surround(self, run: Run, point: JoinPoint, alias: str) -> Run:
        """Return `run` with loading before it, and saving and publishing after it."""
        endpoint = point.endpoint
        if endpoint.is_factory and endpoint.action is None:
            return self._making_once(run, point, alias)
        identify = self._identify_or_raise(point, alias)
        if endpoint.kind is Kind.QUERY:
            return self._asking(run, point, alias, identify)
        return self._acting(run, point, alias, identify)

    def _identify_or_raise(
        self, point: JoinPoint, alias: str
    ) -> Callable[[Message], Values]:
        endpoint, cls = point.endpoint, point.payload_type
        find = identification(self.storage.parts, endpoint.policies.identifier, cls)
        owner, place = name_of_type(self.owner), called_by(endpoint)
        names = [part.aliases[0] for part in self.storage.parts]
        marks = " and ".join(f"Annotated[..., Identifier({name!r})]" for name in names)
        each = (
            "attributes with those names, mark them"
            if len(names) > 1
            else "an attribute with that name, mark one"
        )
        is_said = cls is not None and not is_value_type(cls)
        said = name_of_type(cls) if is_said else "The message"
        declared = endpoint.policies.identifier
        text = (
            f"{place} could not be routed to its {owner}: the message has no "
            f"identifier. {_vain(declared)}{said} has no value for "
            f"{' and '.join(names)}. Give aggregate_id=, let the message have {each} "
            f"with {marks}, or "
            f"{'give the handler' if declared is None else 'correct'} identifier=."
        )

        def identify(message: Message) -> Values:
            try:
                values = find(message)
            except InvalidIdentifier as error:
                at_entrance(error, message)
                raise
            if values is None:
                values = self.storage.values_by_key(message, using=alias)
            if values is None:
                unnamed = AggregateNotFound(text)
                unnamed.is_named = False
                raise at_entrance(unnamed, message)
            return values

        return identify

    def _asking(
        self,
        run: Run,
        point: JoinPoint,
        alias: str,
        identify: Callable[[Message], Values],
    ) -> Run:
        find, missing = self.storage.find, self._missing(point)
        has_version = self.options.version is not None

        def ask(message: Message) -> Any:
            values = identify(message)
            found = find(values, using=alias, lock=False)
            if found is None:
                raise missing(message, values)
            if has_version:
                self._note_version(found, message)
            message.handling.subject = found
            return run(message)

        return ask

    def _making(self, run: Run, point: JoinPoint, alias: str) -> Run:
        """Return the run that calls a factory and saves its object."""
        storage = self.storage
        keeps_events = storage.keeps_events
        has_output = bool(point.endpoint.policies.outputs)
        mentions_send = says_send(point.endpoint.plan.returns)

        def make(message: Message) -> Any:
            message.handling.subject = None
            result = run(message)
            said: list[Any] = []
            sends: list[Send] = []
            if type(result) in MAY_SEND:
                split = split_sends(result, says_send=mentions_send)
                if split is not None:
                    result, sends = split
                elif keeps_events and storage.returns_events(result):
                    pass
                elif (
                    has_output
                    and type(result) is tuple
                    and len(result) == _MADE_AND_SENT
                ):
                    result, *said = result
            made = self._subject_of(result)
            if made is None and keeps_events:
                result, is_made = storage.made_of(result)
                made = self if is_made else None
            if made is None:
                self._send_returned(message, sends, has_output=has_output)
                return result
            if said or sends:
                made.ensure_known(result, (*said, *sends), is_sent=True)
            try:
                events = made.keep(result, alias, is_result=True)
            except AggregateAlreadyExists as error:
                at_entrance(error, message)
                existing = error.identifier
                if existing is None:
                    existing = made.storage.identifier_of(result)
                message.handling.existing = error, existing
                raise
            note = handling_of(message).note
            if note is not None:  # its maker may not have known its identifier
                note.subject = made.key_of(made.storage.values_of(result))
            made.publish(result, events)
            if made.options.version is not None:
                made._note_version(result, message)
            self._send_returned(message, said or sends, has_output=has_output)
            return made.storage.identifier_of(result)

        return make

    def _making_once(self, run: Run, point: JoinPoint, alias: str) -> Run:
        """Return the run of a factory, with its ``on_existing=``."""
        make, policy = self._making(run, point, alias), point.endpoint.policies
        otherwise = policy.on_existing
        if otherwise in (None, "raise"):
            return make

        def make_once(message: Message) -> Any:
            try:
                # The factory's writes, events and messages are undone with it.
                with _block(alias, point.endpoint):
                    return make(message)
            except AggregateAlreadyExists as error:
                own, identifier = handling_of(message).existing or (None, None)
                if error is not own:  # of another object
                    raise
                if otherwise != "ignore":
                    raise _replaced(error, otherwise) from error
                drop(message)
                output = handling_of(message).output
                if output is not None:
                    output[:] = [None]  # nothing is sent on
                return identifier

        return make_once

    def _acting(
        self,
        run: Run,
        point: JoinPoint,
        alias: str,
        identify: Callable[[Message], Values],
    ) -> Run:
        """Return the run that calls an action, or a factory if no object exists yet."""
        endpoint = point.endpoint
        find, locks = self.storage.find, self.storage.locks
        missing = self._missing(point)
        ignores = endpoint.policies.on_missing == "ignore"
        is_pair = endpoint.is_factory
        make = self._making(run, point, alias)
        holder, method = called_by(endpoint), (endpoint.action or endpoint).method or ""
        expects = self._expectation(point)
        has_output = bool((endpoint.action or endpoint).policies.outputs)
        divided = self._division(endpoint.action or endpoint)
        may_send_events = has_output and self.storage.keeps_events
        late = self.late(point, missing)

        def act(message: Message) -> Any:
            values = identify(message)
            lock = locks and connections[alias].in_atomic_block
            found = find(values, using=alias, lock=lock)
            if found is None and is_pair:
                if expects is not None:
                    expects(message, found)
                try:
                    # The factory's writes, events and messages are undone with it.
                    with _block(alias, endpoint):
                        return make(message)
                except AggregateAlreadyExists:
                    # Another one was faster: act on the object that it made.
                    found = find(values, using=alias, lock=lock)
                    if found is None:
                        raise
            if found is None:
                _drop_or_raise(message, None if ignores else missing(message, values))
                return None
            if self.is_over(found):
                return late(message, values)
            if expects is not None:
                expects(message, found)
            message.handling.subject = found
            cls = type(found)
            name = holder if cls is self.owner else name_of_method(cls, method)
            watch = self.storage.watch(found, self.registry, name, using=alias)
            try:
                result, sends = run(message), None
                if has_output or type(result) in MAY_SEND:
                    result, sends = divided(found, result)
                found, events = self._save(found, watch, result, alias, message)
            finally:
                if watch is not None:
                    watch.close()
            answer = self._finish(found, events, values, result, alias)
            if sends or (may_send_events and self.storage.returns_events(result)):
                self._send_returned(message, sends or [None], has_output=has_output)
            if expects is not None:
                self._note_version(found, message)
            return answer

        return act

    def _note_version(self, instance: Any, message: Message) -> None:
        """Tell the sender the version of an object, if it set a condition."""
        origin = message._parent
        if isinstance(origin, ConditionalOrigin):
            is_gone = self.storage.is_deleted(instance)
            origin.version = None if is_gone else self.storage.version_of(instance)

    def _division(self, action: Endpoint) -> Callable[[Any, Any], Any]:
        """Return a function from an object and a value to the result and the sends."""
        has_output = bool(action.policies.outputs)
        mentions_send = says_send(action.plan.returns)

        def divided(instance: Any, returned: Any) -> tuple[Any, list[Send]]:
            if type(returned) in MAY_SEND:
                split = split_sends(returned, says_send=mentions_send)
                if split is not None:
                    self.ensure_known(instance, split[1], is_sent=True)
                    return split
            if has_output and returned is not None:
                self.ensure_known(instance, (returned,), is_sent=True)
            return returned, []

        return divided

    def _send_returned(
        self, message: Message, sends: list[Any], *, has_output: bool
    ) -> None:
        """
        Send the messages that a method has returned beside its result.

        Args:
            message: the message that the method handled.
            sends: the returned messages; with an output, a payload instead.
            has_output: whether ``output=`` names their receivers.

        """
        output = message.handling.output
        if has_output and output is not None:
            output[:] = sends  # in place: an interceptor may have made a copy
            return
        for each in sends:
            send_on(self.registry.command_bus, each)

    @property
    def registry(self) -> Registry:
        """The registry that its handlers belong to."""
        registry: Registry = self._services.owner
        return registry

    def _update(
        self,
        instance: Any,
        watch: Watch | None,
        alias: str,
        message: Message | None = None,
    ) -> None:
        """
        Save a changed object.

        Raises:
            ConcurrencyError: it would overwrite changes made since it was loaded, by
                somebody else or by its own unit of work.

        """
        if watch is None:
            self._write(instance, alias, message)
        else:
            watch.update(partial(self._write, instance, alias, message))

    def _write(self, instance: Any, alias: str, message: Message | None) -> None:
        try:
            self.storage.update(instance, using=alias)
        except ConcurrencyError as error:
            if message is not None:
                at_entrance(error, message)
            raise

    def _save(
        self,
        instance: Any,
        watch: Watch | None,
        result: Any,
        alias: str,
        message: Message,
    ) -> tuple[Any, list[Any]]:
        """Save an object; return it, or its successor, and its recorded events."""
        events = self.take_events(instance)
        self._update(instance, watch, alias, message)
        if not self.storage.keeps_events:
            return instance, events
        return self._absorb(
            instance, events, result, alias, watch=watch, message=message
        )

    def _absorb(
        self,
        instance: Any,
        events: list[Any],
        result: Any,
        alias: str,
        *,
        watch: Watch | None = None,
        message: Message | None = None,
    ) -> tuple[Any, list[Any]]:
        """Let the storage append the events of an object; return what it returns."""
        made = [self._made(instance, each) for each in events]
        try:
            return self.storage.absorb(
                instance, made, result, using=alias, about=self.about, watch=watch
            )
        except ConcurrencyError as error:
            if message is not None:
                at_entrance(error, message)
            raise

    def _finish(
        self, found: Any, events: list[Any], values: Values, result: Any, alias: str
    ) -> Any:
        """Save an object that another one returned; publish the events of both."""
        made = None
        if result is not None and result is not found:
            made = self._subject_of(result)
        if not self.storage.is_deleted(found):
            values = self.storage.values_of(found)
        self.ended(found, values, alias)
        if made is None:
            self.publish(found, events, values)
            return self.storage.identifier_of(found) if result is found else result
        to = alias if made.owner is self.owner else None
        others = made.keep(result, to, is_result=True)
        self.publish(found, events, values)
        made.publish(result, others)
        return made.storage.identifier_of(result)

    def keep(
        self, instance: Any, alias: str | None, *, is_result: bool = False
    ) -> list[Any]:
        """
        Insert or update an object; return its recorded events, not yet published.

        Args:
            instance: the object.
            alias: the alias of the database; None for that of its storage.
            is_result: whether it was returned by a method, which may have made it.

        Raises:
            AggregateAlreadyExists: another object has its identifier.
            ConcurrencyError: it was changed by somebody else.

        """
        using = alias or self.write_alias()
        events = self.take_events(instance)
        storage = self.storage
        if storage.is_made(instance) if is_result else storage.is_new(instance):
            events += self._insert(instance, using)
        else:
            watch = self.storage.watch_of(instance, using=using)
            self._update(instance, watch, using)
        if storage.keeps_events:
            instance, events = self._absorb(instance, events, None, using)
        self.ended(instance, self.storage.values_of(instance), using)
        return events

    def _insert(self, instance: Any, alias: str) -> list[Any]:
        """Insert an object and what belongs to it; return what that has recorded."""
        cls = type(instance)
        if cls not in self._hooks:
            hook = getattr(cls, HOOK, None)
            self._hooks[cls] = sync_callable(hook) if callable(hook) else None
        post_insert = self._hooks[cls]
        if post_insert is None:
            self.storage.insert(instance, using=alias)
            return []
        with in_open_transaction(alias):
            self.storage.insert(instance, using=alias)
            post_insert(instance)
            return self.take_events(instance)

    def take_events(self, instance: Any) -> list[Any]:
        """
        Return the recorded events and commands of an object, which forgets them.

        Raises:
            InvalidEvent: an event has a value that is only known after the save.

        """
        pull: Any = getattr(instance, self.options.events or PULL, None)
        events: list[Any] = [] if pull is None else list(pull())
        if getattr(instance, RECORDED_COMMANDS, None):
            events += instance.pull_recorded_commands()
        if events:
            self.ensure_known(instance, events)
        return events

    def ensure_known(
        self, instance: Any, events: Iterable[Any], *, is_sent: bool = False
    ) -> None:
        """
        Refuse an object's events or messages with values known only after the save.

        Args:
            instance: the object.
            events: its recorded events and commands, or values to send.
            is_sent: whether all of them are sent as commands.

        Raises:
            InvalidEvent: there is such a value.

        """
        storage = self.storage
        names: list[str] = []
        values = storage.values_of(instance)
        if None in values and storage.is_new(instance):
            for part, value in zip(storage.parts, values, strict=True):
                if value is None:
                    names += (part.name, *part.aliases)
        for event in events:
            ensure_known(instance, event, names, is_command=is_sent)

    def publish(
        self, instance: Any, events: list[Any], values: Values | None = None
    ) -> None:
        """
        Publish the events of an object, each with its origin, and send its commands.

        Args:
            instance: the object.
            events: its recorded events and commands.
            values: its identifier, if the object no longer has it.

        Raises:
            InvalidEvent: a recorded function does not return a message, or one with a
                value that the object still does not know.

        """
        if not events:
            return
        registry = self.registry
        event_bus = registry.event_bus
        if self.storage.keeps_events:  # they are made, and stored with their headers
            for event in events:
                if isinstance(event, Message):
                    event_bus.publish_message(event)
                else:
                    send_on(registry.command_bus, event)
            return
        events = [self._made(instance, each) for each in events]
        if values is None:
            values = self.storage.values_of(instance)
        headers = self.about(values, self.storage.version_of(instance))
        for event in events:
            if type(event) is Send:
                send_on(registry.command_bus, event)
            else:
                event_bus.publish_recorded(event, headers)

    def about(self, values: Values, version: int | None) -> dict[str, Any]:
        """
        Return the headers about an object, for its events.

        Args:
            values: the parts of its identifier.
            version: its version, None without one.

        """
        parts = self.storage.parts
        headers: dict[str, Any] = {
            "aggregate_id": values[0]
            if len(values) == 1
            else {part.name: value for part, value in zip(parts, values, strict=True)},
            "aggregate_type": self.type_name,
        }
        if version is not None:
            headers["aggregate_version"] = version
        return headers

    def _made(self, instance: Any, recorded: Any) -> Any:
        """Return a recorded message; a function is called now, after the save."""
        if type(recorded) in LATE:
            recorded = made_by(recorded)
        elif type(recorded) is Send and type(recorded.command) in LATE:
            recorded = recorded.made()
        else:
            return recorded
        self.ensure_known(instance, (recorded,))
        return recorded

    def ended(self, instance: Any, values: Values, alias: str) -> None:
        """Clean up after an object's life is over: nothing to do here."""

    def _subject_of(self, result: Any) -> AggregateSubject | None:
        """Return the subject of an object that a method returned; otherwise None."""
        if type(result) is self.owner:
            return self
        role = role_of(type(result))
        if not isinstance(role, ModelRole):
            return self if isinstance(result, self.owner) else None
        return role.subject_of(type(result), self._services)

    def _missing(self, point: JoinPoint) -> Callable[..., Exception]:
        owner, place = name_of_type(self.owner), called_by(point.endpoint)
        names = [part.name for part in self.storage.parts]
        otherwise = (point.endpoint.action or point.endpoint).policies.on_missing

        def missing(
            message: Message,
            values: Values,
            fault: str = f"there is no {owner} with {{}}",
        ) -> Exception:
            if type(values) is UnknownKey:
                said = values.said
            else:
                pairs = zip(names, values, strict=True)
                said = ", ".join(f"{name}={value}" for name, value in pairs)
            text = f"{place} was not called: {fault.format(said)}."
            error = at_entrance(AggregateNotFound(text), message)
            return _replaced(error, otherwise)

        return missing

    def _expectation(self, point: JoinPoint) -> Callable[[Message, Any], None] | None:
        """
        Return a check of the version that the sender saw, if objects have one.

        It takes a message and its object, None if a factory is to create it.
        """
        if self.options.version is None:
            return None
        field = version_field(point.payload_type)
        owner, place = name_of_type(self.owner), called_by(point.endpoint)

        def expect(message: Message, found: Any) -> None:
            origin = message._parent
            if isinstance(origin, ConditionalOrigin) and origin.must_exist:
                refuse(message, found, origin.versions)
            if found is None or field is None:
                return
            seen = getattr(message._payload, field, None)
            if seen is not None:
                refuse(message, found, (seen,))

        def refuse(
            message: Message, found: Any, versions: Collection[Any] | None
        ) -> None:
            """Raise ConcurrencyError for an object at none of the versions."""
            if found is None:
                rest = f"an object of {owner}, but there is none"
            else:
                version = self.storage.version_of(found)
                if versions is None or version in versions:
                    return
                said = " or ".join(map(str, sorted(versions))) or "of another object"
                rest = (
                    f"version {said} of the {owner}, but it is now at version {version}"
                )
            msg = f"{place} was not called: its sender expected {rest}."
            raise at_entrance(ConcurrencyError(msg), message)

        return expect

    # Hooks of sagas -----------------------------------------------------------------

    def is_over(self, _instance: Any) -> bool:
        """Return whether an object accepts no more messages: False for aggregates."""
        return False

    def late(
        self, point: JoinPoint, missing: Callable[..., Exception]
    ) -> Callable[[Message, Values], Any]:
        """Return the answering function for objects that accept no more messages."""
        return missing


def _replaced(error: Exception, otherwise: Any) -> Exception:
    """Return the exception to raise in place of an error; by default the error."""
    if isinstance(otherwise, type):
        otherwise = otherwise(str(error))
    elif isinstance(otherwise, Exception):
        with suppress(Exception):  # its class may not allow it
            otherwise = copy(otherwise)  # each raising has a traceback of its own
    else:
        return error
    otherwise.__cause__ = error
    replaced: Exception = otherwise
    return replaced


def _drop_or_raise(message: Message, error: Exception | None) -> None:
    """Drop a message for a missing object, or raise the error of its handler."""
    if error is not None:
        raise error
    drop(message)


def _vain(declared: Any) -> str:
    """Return a sentence about an ``identifier=`` that found nothing."""
    if declared is None:
        return ""
    if isinstance(declared, str):
        return f"Its identifier={declared!r} finds no value there. "
    if isinstance(declared, Header):
        return f"The message has no header {declared.name!r}, which identifier= names. "
    if callable(declared):
        return "The callable that identifier= gives returned None. "
    return f"Not all of identifier={declared!r} has a value there. "


def _block(alias: str, endpoint: Endpoint) -> AbstractContextManager[Any]:
    """Return the block that undoes a factory if another one was faster."""
    if endpoint.policies.atomic is False and not is_inside_transaction(
        connections[alias]
    ):
        return nullcontext()
    return atomic(using=alias)


def in_open_transaction(alias: str) -> AbstractContextManager[Any]:
    """Return a block in the transaction that is open, or else in a new one."""
    if connections[alias].in_atomic_block:
        return nullcontext()
    return atomic(using=alias)


def key_of_object(instance: Any, services: Services) -> str:
    """Return an object's key in envelopes; empty if it has no role."""
    for cls in type(instance).__mro__:
        role = role_of(cls)
        if isinstance(role, ModelRole):
            subject = role.subject_of(cls, services)
            return subject.key_of(subject.storage.values_of(instance))
    return ""


def _is_model(annotation: Any) -> bool:
    return isinstance(role_of(annotation), ModelRole)


def attributes_named(declared: Any) -> Iterator[str]:
    """Yield the attributes of messages that an ``identifier=`` names."""
    if isinstance(declared, str):
        yield declared
    elif isinstance(declared, dict):
        for one in declared.values():
            yield from attributes_named(one)


def _has_fields(annotation: Any) -> bool:
    return hasattr(annotation, "__dataclass_fields__") or hasattr(
        annotation, "model_fields"
    )


def _may_have(cls: type, name: str | None) -> bool:
    if name is None:
        return False
    fields: Any = getattr(cls, "__dataclass_fields__", None) or getattr(
        cls, "model_fields", {}
    )
    return name in fields or hasattr(cls, name)
