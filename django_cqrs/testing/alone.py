"""
The objects of one class, alone: their handlers, messages and timers, without others.

Objects are kept in memory, so that no database is needed; or as rows, in the open
transaction. Their messages to others are recorded, and go no further.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary, ref

from django.db import DEFAULT_DB_ALIAS, models
from django.db.transaction import atomic

from django_cqrs.annotations import name_of_type
from django_cqrs.buses.bus import converted_payload
from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.events import EventBus
from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as projects
from django_cqrs.channels.channel import Due
from django_cqrs.declaration.declarations import Kind, role_of
from django_cqrs.declaration.key_sources import key_reader
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    ConcurrencyError,
    InvalidIdentifier,
    InvalidOption,
    NoHandlerFound,
)
from django_cqrs.messages import Message, MessageName, current
from django_cqrs.modelling.aggregates import AggregateSubject, ModelRole
from django_cqrs.modelling.identifiers import Part, Values
from django_cqrs.modelling.storages import Storage
from django_cqrs.pipeline.idempotency import idempotency_key_of
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Run
from django_cqrs.sends import Send
from django_cqrs.testing.delays import delay_of
from django_cqrs.testing.faults import SimulatedCrash
from django_cqrs.testing.kept_objects import KeptObject, Key, text_of, there_and_back
from django_cqrs.testing.trees import Progression, Tree, TreeHandling, TreeMessage


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LaterMessage:
    """A message that waits: for its delay, or for its turn in a channel."""

    node: TreeMessage
    due: timedelta
    endpoint: Endpoint | None
    """The handler of the object; None if somebody else handles it."""
    message: Message
    subject: str = ""
    """The object that it is for, if it is known."""
    is_timer: bool = False
    """Whether the end of its object cancels it."""


class ObjectWorld:
    """The objects of one class, and everything that they send."""

    def __init__(self, cls: type, *, rows: bool = False) -> None:
        """
        Start without objects.

        Args:
            cls: an aggregate or a saga.
            rows: whether objects are kept as the project keeps them, as rows.

        Raises:
            InvalidOption: it is neither.

        """
        self.cls = cls
        self.home = home_of(cls, rows=rows)
        self.time = timedelta()
        """The time that has passed."""
        self.kept: dict[Key, KeptObject] = {}
        self.waiting: list[LaterMessage] = []
        self.cancelled: list[LaterMessage] = []
        """The timers that the end of their object has cancelled."""
        self.messages: list[TreeMessage] = []
        self.facts: list[tuple[TreeMessage, Send | None, bool]] = []
        """The sent messages, their options, and whether each is only planned."""
        self.stale: set[Key] = set()
        """The objects that are not found until one is inserted in their place."""
        self.looked_for: dict[Key, Values] = {}
        """The identifiers of objects on rows that were looked for, or made."""
        self.seen: set[tuple[str, str]] = set()
        """The idempotency keys of handled messages, by their handlers."""
        self.last: Key | None = None
        """The key of the object that the last message was for."""
        self._held: dict[int, tuple[Any, Key, int]] = {}
        self._deleted: set[int] = set()
        self._numbers = 0
        self._is_noted = False
        self._stack: list[TreeHandling] = []

    def tree(self, start: int = 0) -> Tree:
        """Return the tree of the messages from a place in :attr:`messages` on."""
        new = self.messages[start:]
        return Tree([each for each in new if each.parent is None or each.is_given])

    # Messages of a test -----------------------------------------------------------

    def keep(self, instance: Any) -> None:
        """
        Keep an object that a test has made, and forget its recorded events.

        Raises:
            InvalidOption: it is neither an aggregate nor a saga.

        """
        with self.home.in_use_by(self):
            subject = self.home.subject_of(type(instance))
            if subject.storage.keeps_events:
                msg = (
                    f"A {name_of_type(type(instance))} is made of its events: give "
                    "these instead of an object."
                )
                raise InvalidOption(msg)
            subject.take_events(instance)
            subject.storage.insert(instance, using=self.home.alias)
            self._held.clear()
            self._is_noted = False

    def give(self, event: Any) -> bool:
        """
        Append an event to the object that is made of such events.

        Returns:
            Whether objects of the class are made of events of this kind.

        """
        with self.home.in_use_by(self):
            storage: Any = self.home.subject_of(self.cls).storage
            if not (storage.keeps_events and storage.appliers.takes(type(event))):
                return False
            self._is_noted = False
            storage.give(event)
            self._is_noted = False
        return True

    def send(
        self,
        sent: Any,
        headers: Mapping[str, Any] | None = None,
        *,
        crash: bool = False,
        message_id: UUID | None = None,
    ) -> Any:
        """
        Give the objects a message, and call its handlers.

        Args:
            sent: the message, or a `Send` with the options of a command.
            headers: the headers of the message.
            crash: whether the process ends after the handler, before its commit.
            message_id: the id of the message, if it comes again; by default a new one.

        Returns:
            The result of its handler; None for an event.

        Raises:
            InvalidOption: no handler of the class takes it.
            SimulatedCrash: it was asked for.
            Exception: the exception of the handler. Nothing was changed.

        """
        send = sent if isinstance(sent, Send) else Send(sent)
        if headers:
            send = dataclasses.replace(
                send, headers={**(send.headers or {}), **headers}
            )
        kind, endpoints = self.endpoints_of(send)
        node = self._sent(kind, send.command, is_given=True)
        result = None
        with self.home.in_use_by(self):
            for endpoint in endpoints:
                message = _message(endpoint, send.command, send)
                message._message_id = message_id
                result = self.handle(endpoint, message, node, crash=crash)
        return None if kind is Kind.EVENT else result

    def endpoints_of(self, send: Send) -> tuple[Kind, tuple[Endpoint, ...]]:
        """
        Return the handlers of the class that take a message, and its kind.

        Raises:
            InvalidOption: there is none.

        """
        for kind in (Kind.COMMAND, Kind.QUERY):
            found = self._handler_of(kind, send)
            if found is not None:
                return kind, (found,)
        events = self._subscribers_of(send.command, send.route)
        if not events:
            route = send.route
            said = repr(route) if route else name_of_type(type(send.command))
            msg = (
                f"{name_of_type(self.cls)} has no handler for {said}. Give it messages "
                "that it handles, or an object of its own class."
            )
            raise InvalidOption(msg)
        return Kind.EVENT, events

    def _handler_of(self, kind: Kind, send: Send) -> Endpoint | None:
        table = self.home.routes
        try:
            found = None
            if send.route is not None:  # None for the name of a message class
                found = table.handler_of_key(kind, send.route)
            return found or table.handler_of(kind, send.command)
        except NoHandlerFound:
            return None

    def _subscribers_of(self, payload: Any, route: str | None) -> tuple[Endpoint, ...]:
        table = self.home.routes
        if route is None or table.named_class(route) is not None:
            return table.subscribers_of(payload, route)
        return table.subscribers_of_key(route)

    def settle(self, failures: list[Exception]) -> None:
        """
        Handle the messages that are due.

        Args:
            failures: takes the exceptions of the handlers.

        """
        while (later := self._next()) is not None:
            self.waiting.remove(later)
            try:
                self.deliver(later)
            except Exception as error:  # noqa: BLE001 - the caller decides
                failures.append(error)

    def _next(self) -> LaterMessage | None:
        due = [each for each in self.waiting if each.due <= self.time]
        return min(due, key=lambda each: each.due) if due else None

    def deliver(self, later: LaterMessage, *, crash: bool = False) -> None:
        """Handle a message that has waited; one for somebody else counts as sent."""
        if later.endpoint is None:
            self.facts.append((later.node, None, False))
            return
        with self.home.in_use_by(self):
            self.handle(later.endpoint, later.message, later.node, crash=crash)

    def pass_time(self, span: timedelta, failures: list[Exception]) -> None:
        """Let time pass, and handle what falls due in its turn."""
        end = self.time + span
        while True:
            self.settle(failures)
            coming = [each.due for each in self.waiting if each.due <= end]
            if not coming:
                break
            self.time = min(coming)
        self.time = end

    # Handling ---------------------------------------------------------------------

    def handle(
        self,
        endpoint: Endpoint,
        message: Message,
        node: TreeMessage,
        *,
        crash: bool = False,
    ) -> Any:
        """Call a handler; undo everything if it fails."""
        handling = TreeHandling(node, endpoint.name, is_atomic=True)
        handling.is_repeated = any(
            each.endpoint == endpoint.name and each.error is None
            for each in node.handlings
        )
        node.handlings.append(handling)
        before = self.kept, self.waiting, self.cancelled, self.seen
        self.kept, self.seen = dict(self.kept), set(self.seen)
        self.waiting, self.cancelled = list(self.waiting), list(self.cancelled)
        is_outermost = not self._stack
        self._stack.append(handling)
        run = self.home.run_of(endpoint, type(message.payload))
        try:
            self._is_noted = self._is_noted and not is_outermost
            with self.home.block():
                result = run(message) if self._is_new_key(endpoint, message) else None
                if crash:
                    msg = f"The process ended after {endpoint.name}."
                    raise SimulatedCrash(msg)
        except BaseException as error:
            handling.error, handling.state = error, Progression.FAILED
            self.kept, self.waiting, self.cancelled, self.seen = before
            raise
        else:
            handling.state = Progression.DONE
            return result
        finally:
            self._stack.pop()
            if is_outermost:
                self._held.clear()
                self._deleted.clear()
                self.stale.clear()

    def _is_new_key(self, endpoint: Endpoint, message: Message) -> bool:
        """Note the idempotency key of a message; return whether it is a new one."""
        source = idempotency_key_of(endpoint)
        if source is None:
            return True
        key = key_reader(source, "idempotency_key", endpoint.name)(message)
        if key is None:
            return True
        own = endpoint.name, key
        if own in self.seen:
            return False
        self.seen.add(own)
        return True

    def _sent(self, kind: Kind, payload: Any, *, is_given: bool = False) -> TreeMessage:
        parent = self._stack[-1] if self._stack and not is_given else None
        node = TreeMessage(kind, payload, parent=parent, is_given=is_given)
        if parent is not None:
            parent.sent.append(node)
        self.messages.append(node)
        return node

    # What the objects send --------------------------------------------------------

    def published(
        self,
        payload: Any,
        route: str | None,
        headers: Mapping[str, Any] | None,
        about: Mapping[str, Any] | None,
        delay: Due | None,
    ) -> None:
        """
        Take an event that an object has published or recorded.

        Args:
            payload: the event.
            route: the name that it was published under, if any.
            headers: the headers of the call.
            about: the headers about the aggregate that has recorded it.
            delay: the delay of the call.

        Raises:
            MessageConversionError: it could not be restored unchanged.

        """
        back = there_and_back(payload)
        node = self._sent(Kind.EVENT, payload)
        if not self.home.is_hidden(payload):
            self.facts.append((node, None, False))
        send = Send(back, route=route or "", headers=headers)
        for endpoint in self._subscribers_of(back, route):
            message = _message(endpoint, back, send)
            if about is not None:
                message._aggregate = about
            self._reach(endpoint, message, node, delay)

    def dispatched(self, send: Send) -> Any:
        """
        Take a command that an object has sent.

        Returns:
            The result of a handler of the class; None if somebody else handles it.

        Raises:
            MessageConversionError: it could not be restored unchanged.

        """
        back = there_and_back(send.command)
        node = self._sent(Kind.COMMAND, send.command)
        endpoint = self._handler_of(Kind.COMMAND, send)
        message = Message(back, current.get())
        delay: Any = send.delay
        if endpoint is not None:
            message = _message(endpoint, back, send)
            delay = endpoint.policies.delay if delay is None else delay
        span = delay_of(delay, message)
        self.facts.append((node, send, bool(span)))
        if endpoint is not None:
            return self._reach(endpoint, message, node, delay)
        if span:
            self.waiting.append(LaterMessage(node, self.time + span, None, message))
        return None

    def _reach(
        self,
        endpoint: Endpoint,
        message: Message,
        node: TreeMessage,
        delay: Any,
    ) -> Any:
        """Handle a message of an object for the class itself: now, or later."""
        if endpoint.channel is None:
            return self.handle(endpoint, message, node)
        declared = endpoint.policies.delay
        span = delay_of(declared if delay is None else delay, message)
        subject: Any = endpoint.subject
        address = subject.address(endpoint, type(message.payload))(message)
        later = LaterMessage(
            node,
            self.time + span,
            endpoint,
            message,
            subject=address,
            is_timer=declared is not None,
        )
        self.waiting.append(later)
        return None

    def cancel_timers(self, subject: str) -> None:
        """Cancel the timers of an object whose life is over."""
        over = [
            each
            for each in self.waiting
            if each.is_timer and each.subject == subject and each.due > self.time
        ]
        self.cancelled += over
        self.waiting = [each for each in self.waiting if each not in over]

    # The memory -------------------------------------------------------------------

    def look(self, key: Key) -> KeptObject | None:
        """Return an object in memory, None if there is none."""
        if key in self.stale:
            return None
        entry = self.kept.get(key)
        if entry is not None:
            self.note_last(key)
        return entry

    def find(self, storage: LoneStorage, values: Values) -> Any:
        """Return a copy of an object, None if there is none."""
        key = storage.cls, text_of(values)
        entry = self.look(key)
        if entry is None:
            return None
        found = storage.copied(entry.instance)
        self._held[id(found)] = found, key, entry.revision
        return found

    def note_last(self, key: Key) -> None:
        """Note the object of a message: the first one that its handler has found."""
        # A handler may look for others, and send them messages.
        if not self._is_noted:
            self._is_noted = True
            self.last = key

    @property
    def last_object(self) -> Any:
        """The object of the last message as it is now, None without one."""
        entry = None if self.last is None else self.kept.get(self.last)
        return None if entry is None else _copied(entry.instance)

    def is_new(self, instance: Any) -> bool:
        """Return whether an object was neither found nor kept."""
        return id(instance) not in self._held

    def insert(self, storage: LoneStorage, instance: Any) -> None:
        """Keep a new object."""
        if isinstance(instance, models.Model):
            self._give_number(instance)
        values = storage.values_of(instance)
        if None in values:
            msg = f"{storage.said(instance)} has no identifier."
            raise InvalidIdentifier(msg)
        key = storage.cls, text_of(values)
        self.stale.discard(key)
        if key in self.kept:
            msg = f"{storage.said(instance)} exists already."
            raise AggregateAlreadyExists(msg)
        if isinstance(instance, models.Model):
            instance._state.adding = False
            instance._state.db = DEFAULT_DB_ALIAS
        self.kept[key] = KeptObject(storage.copied(instance))
        self._held[id(instance)] = instance, key, 0
        self.note_last(key)

    def _give_number(self, instance: models.Model) -> None:
        """Make the key that a database would make."""
        field = instance._meta.pk
        if instance.pk is None and isinstance(field, models.AutoField):
            self._numbers += 1
            instance.pk = self._numbers

    def update(self, storage: LoneStorage, instance: Any) -> None:
        """Keep a changed object."""
        if self.is_deleted(instance):
            return
        _, key, revision = self._held[id(instance)]
        entry = self.kept.get(key)
        if entry is None or entry.revision != revision:
            msg = (
                f"{storage.said(instance)} was changed or deleted by another message "
                "since it was found. This attempt saved nothing; try again."
            )
            raise ConcurrencyError(msg)
        version = storage.options.version
        if version is not None:
            number = (getattr(entry.instance, version, None) or 0) + 1
            object.__setattr__(instance, version, number)
        self.kept[key] = KeptObject(storage.copied(instance), revision + 1)
        self._held[id(instance)] = instance, key, revision + 1

    def delete(self, instance: Any) -> None:
        """Forget an object."""
        _, key, _ = self._held[id(instance)]
        self.kept.pop(key, None)
        self._deleted.add(id(instance))

    def is_deleted(self, instance: Any) -> bool:
        """Return whether an object was deleted by its handler."""
        return id(instance) in self._deleted

    def objects(self) -> list[Any]:
        """Return the objects of the class as they are now, in the order of making."""
        alias = self.home.alias
        if self.home.rows and issubclass(self.cls, models.Model):
            return list(self.cls._default_manager.using(alias).order_by("pk"))
        if self.home.rows:
            with self.home.in_use_by(self):
                storage = self.home.subject_of(self.cls).storage
                wanted = [v for (c, _), v in self.looked_for.items() if c is self.cls]
                found = [storage.find(v, using=alias, lock=False) for v in wanted]
            return [each for each in found if each is not None]
        return [
            _copied(entry.instance)
            for (cls, _), entry in self.kept.items()
            if cls is self.cls
        ]

    def key_of(self, values: Values) -> Key:
        """Return the key of an object of the class, by its identifier."""
        return self.cls, text_of(values)


def _message(endpoint: Endpoint, payload: Any, send: Send) -> Message:
    """Return a message for one handler."""
    message = Message(converted_payload(endpoint, payload, None), current.get())
    if send.headers:
        message._add_headers(send.headers)
    if send.aggregate_id is not None and endpoint.subject is not None:
        given = endpoint.subject.identifier_given(send.aggregate_id, message)
        message._aggregate_id = given
    return message


# ----------------------------------------------------------------------- the house


class LoneStorage(Storage[Any]):
    """Keeps the objects of a class in memory, those of the present world."""

    def __init__(self, real: Storage[Any], home: ObjectHome) -> None:
        """Take the place of a storage."""
        super().__init__(real.cls, real.options)
        self._real = real
        self._home = home

    @property
    def _world(self) -> ObjectWorld:
        return self._home.world

    def make_parts(self) -> tuple[Part, ...]:
        """Ask the real storage."""
        return self._real.parts

    def write_alias(self) -> str:
        """Return an alias that nothing is written to."""
        return DEFAULT_DB_ALIAS

    def find(self, values: Values, *, using: str, lock: bool) -> Any:
        """Look in memory."""
        return self._world.find(self, values)

    def is_new(self, instance: Any) -> bool:
        """Ask the memory."""
        return self._world.is_new(instance)

    def insert(self, instance: Any, *, using: str) -> None:
        """Keep it in memory."""
        self._world.insert(self, instance)

    def update(self, instance: Any, *, using: str) -> None:
        """Keep it in memory."""
        self._world.update(self, instance)

    def delete(self, instance: Any, *, using: str) -> None:
        """Forget it."""
        self._world.delete(instance)

    def is_deleted(self, instance: Any) -> bool:
        """Ask the memory."""
        return self._world.is_deleted(instance)

    def values_of(self, instance: Any) -> Values:
        """Ask the real storage."""
        return self._real.values_of(instance)

    def identifier_of(self, instance: Any) -> Any:
        """Ask the real storage."""
        return self._real.identifier_of(instance)

    @property
    def identifier_type(self) -> Any:
        """The type that the real storage says."""
        return self._real.identifier_type

    def copied(self, instance: Any) -> Any:
        """Return a copy that shares no state, by the way in which it is stored."""
        shape = getattr(getattr(self._real, "rows", None), "shape", None)
        if shape is None:
            return _copied(instance)
        return shape.load(shape.dump(instance), _OWN, _OWN.name, _OWN.version)


_OWN: Final = MessageName("alone")


def _copied(instance: Any) -> Any:
    try:
        return copy.deepcopy(instance)
    except Exception:  # noqa: BLE001 - a part of it, such as a lock, cannot be copied
        return copy.copy(instance)


class LoneCommandBus(CommandBus):
    """A command bus that gives the commands to the world of an object."""

    def dispatch(self, payload: Any = None, **options: Any) -> Any:
        """Record a command."""
        return self._taken(payload, options)

    def send(self, payload: Any = None, **options: Any) -> Any:
        """Record a command; there is no receipt."""
        return self._taken(payload, options)

    def _taken(self, payload: Any, options: dict[str, Any]) -> Any:
        for name in ("content_type", "using"):
            options.pop(name, None)
        home: Any = self.registry
        return home.world.dispatched(Send(payload, **options))


class LoneEventBus(EventBus):
    """An event bus that gives the events to the world of an object."""

    def publish(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        headers: Any = None,
        **options: Any,
    ) -> None:
        """Record an event."""
        home: Any = self.registry
        delay = options.get("delay")
        home.world.published(payload, route, headers, None, delay)

    def publish_recorded(self, payload: Any, headers: Mapping[str, Any]) -> None:
        """Record an event of an aggregate."""
        home: Any = self.registry
        home.world.published(payload, None, None, headers, None)

    def publish_message(self, message: Message) -> None:
        """Record an event of an aggregate that is made of its events."""
        home: Any = self.registry
        about, own = message._aggregate, message._user
        home.world.published(message.payload, None, own, about, None)


class ObjectHome(Registry):
    """The registry of one class whose objects are alone."""

    def __init__(self, cls: type, *, rows: bool) -> None:
        """Take the class."""
        super().__init__()
        self.cls = cls
        self.rows = rows
        self.alias = DEFAULT_DB_ALIAS
        self.command_bus = LoneCommandBus(registry=self)
        self.event_bus = LoneEventBus(registry=self)
        # A test replaces dependencies in the project's registry.
        self._services.overrides = projects._services.overrides
        self.add(cls)
        self._runs: dict[tuple[Endpoint, type], Run] = {}
        self._world: ObjectWorld | None = None
        self._served: tuple[Any, ...] = ()
        self._tamed: set[int] = set()
        self.is_hidden: Callable[[Any], bool] = _is_never_hidden
        """Returns whether an event is of this library, and not of the class."""

    def reset(self) -> None:
        """Forget the runs, too."""
        super().reset()
        self._runs = {}

    @property
    def world(self) -> ObjectWorld:
        """The world whose objects are handled."""
        assert self._world is not None  # noqa: S101 - handlers run for one
        return self._world

    @contextmanager
    def in_use_by(self, world: ObjectWorld) -> Iterator[None]:
        """Handle the objects of a world inside the block."""
        before, self._world = self._world, world
        served = ref(world), *self._services.overrides.items()
        if served != self._served:  # a service may hold what another world was given
            self._services.reset()
            self._served = served
        try:
            yield
        finally:
            self._world = before

    def block(self) -> AbstractContextManager[Any]:
        """Return a block that undoes a failed handler."""
        return atomic(self.alias) if self.rows else nullcontext()

    def run_of(self, endpoint: Endpoint, cls: type) -> Run:
        """Return the run of a handler for messages of a class."""
        key = endpoint, cls
        run = self._runs.get(key)
        if run is None:
            self.tame(endpoint.subject)
            policies = dataclasses.replace(endpoint.policies, atomic=False)
            lone = dataclasses.replace(endpoint, policies=policies)
            point = JoinPoint(lone, self.bus_of(endpoint.kind), cls)
            run = self._runs[key] = self.pipelines.alone(point)
        return run

    def subject_of(self, cls: type) -> AggregateSubject:
        """
        Return the subject of a class's objects.

        Raises:
            InvalidOption: it is neither an aggregate nor a saga.

        """
        role: Any = role_of(cls)
        if not isinstance(role, ModelRole):
            msg = (
                f"{name_of_type(cls)} is neither an aggregate nor a saga, so a test "
                "cannot give an object of it."
            )
            raise InvalidOption(msg)
        subject = role.subject_of(cls, self._services)
        self.tame(subject)
        return subject

    def tame(self, subject: Any) -> None:
        """Let a subject keep its objects in memory, and its timers in the world."""
        if not isinstance(subject, AggregateSubject) or id(subject) in self._tamed:
            return
        self._tamed.add(id(subject))
        own: dict[str, Any] = vars(subject)
        find_subject: Callable[[Any], AggregateSubject | None] = subject._subject_of

        def subject_of(result: Any) -> AggregateSubject | None:
            found = find_subject(result)
            self.tame(found)
            return found

        def ended(instance: Any, values: Values, _alias: str) -> None:
            if subject.is_over(instance) or subject.storage.is_deleted(instance):
                self.world.cancel_timers(subject.key_of(values))

        own["_subject_of"], own["ended"] = subject_of, ended
        if self.rows:
            self._watch(subject.storage)
        else:
            storage = own["storage"] = self._lone(subject.storage)

            def insert(instance: Any, alias: str) -> list[Any]:
                storage.insert(instance, using=alias)
                return []

            own["_insert"] = insert

    def _lone(self, storage: Storage[Any]) -> Storage[Any]:
        """Return a storage in memory that takes the place of another one."""
        if storage.keeps_events:
            from django_cqrs.testing.lone_streams import (
                LoneEventStorage,
                is_event_sourced,
                is_hidden,
            )

            self.is_hidden = is_hidden
            if is_event_sourced(storage):
                return LoneEventStorage(storage, self, lambda: self.world)
        return LoneStorage(storage, self)

    def _watch(self, storage: Storage[Any]) -> None:
        """Let a real storage not find the stale objects of the present world."""
        own: dict[str, Any] = vars(storage)
        find, insert = storage.find, storage.insert

        def find_fresh(values: Values, *, using: str, lock: bool) -> Any:
            key = storage.cls, text_of(values)
            self.world.looked_for[key] = values
            if key in self.world.stale:
                return None
            return find(values, using=using, lock=lock)

        def insert_and_see(instance: Any, *, using: str) -> None:
            values = storage.values_of(instance)
            self.world.looked_for[storage.cls, text_of(values)] = values
            self.world.stale.clear()
            insert(instance, using=using)

        own["find"], own["insert"] = find_fresh, insert_and_see


def _is_never_hidden(_event: Any) -> bool:
    return False


_homes: WeakKeyDictionary[type, dict[bool, ObjectHome]] = WeakKeyDictionary()


def home_of(cls: type, *, rows: bool) -> ObjectHome:
    """
    Return the registry of a class whose objects are alone.

    Raises:
        InvalidOption: it is neither an aggregate nor a saga.

    """
    if not isinstance(cls, type) or not isinstance(role_of(cls), ModelRole):
        said = name_of_type(cls) if isinstance(cls, type) else repr(cls)
        msg = (
            f"scenario() takes an aggregate or a saga, or nothing for the whole "
            f"project: {said} is neither."
        )
        raise InvalidOption(msg)
    homes = _homes.setdefault(cls, {})
    if rows not in homes:
        homes[rows] = ObjectHome(cls, rows=rows)
    return homes[rows]
