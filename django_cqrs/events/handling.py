"""
The handling of stored events by a projection, in a transaction that the caller opens.

This is everything but the loop: whoever follows, rebuilds or fills a projection does
the same with a page of events::

    handlers = handlers_of(registry, projection)
    with transaction.atomic(using=using):
        batch = EventBatch(handlers, connection, generation=7)
        handled = batch.handle(page)     # the number of events, from the first one on
        batch.finish()                   # rows, states, on_flush, emitted events
        ...                              # the position, in the same transaction

If :meth:`EventBatch.handle` or :meth:`EventBatch.finish` raises, the transaction is
rolled back, and ``batch.failed_at`` is the index of the event to blame, or None if that
is unknown. A batch is used once. ``is_replay=True`` makes ``Replaying`` true and emits
nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.annotations import (
    EMPTY,
    is_plain_class,
    place_of,
    union_members,
)
from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.adapters import is_subclass
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.events.appending import append, publish
from django_cqrs.events.error_texts import blame
from django_cqrs.events.feeding import (
    FedMessage,
    RowSource,
    SeveralPayloads,
    StateSource,
    partition_name_of,
    reset_source_of,
    source_of,
)
from django_cqrs.events.insertion import Target
from django_cqrs.events.linking import link
from django_cqrs.events.partitions import PartitionOf, partitioner
from django_cqrs.events.projecting import ProjectionOptions, hooks_of, options_of
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.replaying import ReplayOrigin
from django_cqrs.events.rows import Ignored, RowPlan, ViewRows
from django_cqrs.events.rules import ProjectionRule
from django_cqrs.events.states import NO_STATE, States, state_problem
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.events.waking import wake
from django_cqrs.exceptions import BrokenTransaction, InvalidOption, UnknownMessage
from django_cqrs.messages import NOBODY, Message, current
from django_cqrs.parameters.plan import ArgumentPlan, payload_of
from django_cqrs.parameters.planner import (
    method_callable,
    on_service,
    plan_of,
)
from django_cqrs.parameters.services import with_dependencies
from django_cqrs.pipeline.scopes import BusScope
from django_cqrs.pipeline.stages import is_broken
from django_cqrs.problems import Problem
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.table import RouteTable
from django_cqrs.sync import sync_callable

EMITTED: Final = "projection"
"""The category of the streams of emitted events."""


# ---------------------------------------------------------------------------- compiled


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One handler of a projection, compiled."""

    endpoint: Endpoint
    run: Callable[[Any], Any]
    rows: tuple[RowPlan, ...]
    """How it gets its rows."""
    state: bool
    """Whether it takes the state, so that a returned one replaces it."""
    is_for_several: bool
    """Whether it takes consecutive events at once."""

    @property
    def payload(self) -> PayloadType:
        """The type of its payload; anything if it takes none."""
        return self.endpoint.plan.payload or _ANYTHING


_ANYTHING: Final = PayloadType(EMPTY)


class Form(NamedTuple):
    """One handler of the events of a name, and the form in which it takes them."""

    call: Call
    convert: Callable[[Recorded], Any]


class NameRoute(NamedTuple):
    """The handlers of the events of one stored name."""

    forms: tuple[Form, ...]
    shape: int
    """The version of the class with the name; 0 if no registered class has it."""
    has_several: bool
    """Whether one of the handlers takes several events at once."""

    def waits_for(self, shape: int) -> bool:
        """Return whether newer code than this may know an event of a version."""
        if shape <= self.shape:
            return False
        is_json = all(each.convert is _json for each in self.forms)
        return bool(self.shape or not self.forms or not is_json)


class Handlers:
    """The handlers of one projection in one registry, compiled once."""

    def __init__(
        self, registry: Registry, owner: type, options: ProjectionOptions
    ) -> None:
        """Compile them. Mistakes become `problems`, not errors."""
        self.registry = registry
        self.owner = owner
        self.options = options
        table = registry.routes
        self.types = table.types
        self.endpoints = table.fed(owner)
        self.problems: list[Problem] = [
            problem for each in self.endpoints for problem in each.problems
        ]
        sound = [each for each in self.endpoints if not each.problems]
        self.calls: tuple[Call, ...] = tuple(map(_call_of, sound))
        self.resets_partitions = False
        """Whether a method empties one partition."""
        self._hooks = {
            name: [self._hook(name, *each) for each in found]
            for name in ("on_init", "on_flush", "on_reset", "on_delete")
            if (found := hooks_of(owner, name))
        }
        self.state_types: tuple[Any, ...] = tuple(
            dict.fromkeys(
                source.annotation
                for each in sound
                for argument in each.plan.arguments
                if isinstance(source := argument.source, StateSource)
            )
        )
        self.partition_of: PartitionOf = partitioner(options)
        problem = state_problem(options, self.state_types, owner)
        if problem is not None:
            self.problems.append(problem)
        if options.partition_by is not None:
            self.problems += [
                Problem(
                    ProjectionRule.BAD_STATE,
                    f"{each.endpoint.place} takes several events, and the State of one "
                    "partition.",
                    "Let it take one event, or remove partition_by=.",
                    each.endpoint.function,
                )
                for each in self.calls
                if each.is_for_several and each.state
            ]
        self._routes: dict[str, NameRoute] = {}

    def _hook(self, name: str, attribute: str, function: Any) -> Callable[[Any], Any]:
        services = self.registry._services
        given = reset_source_of if name == "on_reset" else source_of
        plan = plan_of(function, services, owner=self.owner, payload=None, given=given)
        plan = on_service(plan, self.owner, services)
        self.problems += plan.problems
        sources = [each.source for each in plan.arguments]
        self.resets_partitions |= partition_name_of in sources
        is_stateful = any(isinstance(each, StateSource) for each in sources)
        if is_stateful and self.options.partition_by is not None:
            problem = Problem(
                ProjectionRule.BAD_STATE,
                f"{place_of(function)} takes the State of the projection "
                f"{self.options.name!r}, which has one for each partition.",
                "Remove the parameter, or partition_by=.",
                function,
            )
            self.problems.append(problem)
        run = plan.bind(method_callable(function, attribute))
        return with_dependencies(run) if plan.uses_dependencies else run

    @cached_property
    def has_several(self) -> bool:
        """Whether a handler takes several events at once."""
        return any(each.is_for_several for each in self.calls)

    @property
    def has_state(self) -> bool:
        """Whether a handler takes a state."""
        return bool(self.state_types)

    @property
    def has_partition_state(self) -> bool:
        """Whether each partition has a state of its own."""
        return self.has_state and self.options.partition_by is not None

    @property
    def flushes(self) -> bool:
        """Whether methods are called at the end of a batch."""
        return "on_flush" in self._hooks

    def run_hooks(self, name: str, message: Message) -> None:
        """Call the methods that are marked with a decorator such as ``on_init``."""
        for run in self._hooks.get(name, ()):
            run(message)

    def route_of(self, name: str) -> NameRoute:
        """Return the handlers of a stored name, in order of definition."""
        found = self._routes.get(name)
        if found is None:
            found = self._routes[name] = self._route_of(name)
            if len(self._routes) > MOST_NAMES:
                self._routes.clear()  # those in use come back at once
        return found

    def _route_of(self, name: str) -> NameRoute:
        try:
            cls: type | None = self.types.class_of(name)
        except UnknownMessage:
            cls = None
        names, shape = {name}, 0
        if cls is not None:
            own = self.types.name_of(cls)
            names.add(own.name)
            shape = own.version
        forms = tuple(
            Form(call, _converter(call, cls))
            for call in self.calls
            if _takes(call.endpoint, names, cls)
        )
        several = any(each.call.is_for_several for each in forms)
        return NameRoute(forms, shape, several)

    @property
    def takes_any_name(self) -> bool:
        """Whether a handler takes events of every name, also of unknown ones."""
        return any(
            "*" in each.endpoint.keys or {object, dict} & set(each.endpoint.classes)
            for each in self.calls
        )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The names and patterns that handlers take whether or not they are known."""
        found = (key for each in self.calls for key in each.endpoint.keys)
        return tuple(dict.fromkeys(found))

    @property
    def known_names(self) -> tuple[str, ...]:
        """The names of registered classes, former ones too, that a handler takes."""
        return tuple(name for name in self.all_names if self.route_of(name).forms)

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of all registered classes, former ones too."""
        return tuple(
            name
            for _, own in self.types.named_classes()
            for name in (own.name, *own.aliases)
        )

    @property
    def handled_names(self) -> tuple[str, ...]:
        """The names by which a status says what is handled: present ones, patterns."""
        if self.takes_any_name:
            return ("*",)
        own = [
            each.name
            for _, each in self.types.named_classes()
            if self.route_of(each.name).forms
        ]
        return tuple(dict.fromkeys((*own, *self.patterns)))


MOST_NAMES: Final = 10_000
"""The number of names that are remembered; a store may have unknown ones."""


def _call_of(endpoint: Endpoint) -> Call:
    plan = endpoint.plan
    if endpoint.owner is not None and plan.arguments[:1]:
        is_static = isinstance(
            inspect.getattr_static(endpoint.owner, endpoint.attribute or "", None),
            (staticmethod, classmethod),
        )
    else:
        is_static = True
    function = endpoint.function
    is_async = sync_callable(function) is not function
    if is_static:
        function = sync_callable(function)
    elif is_async:
        function = method_callable(function, endpoint.attribute or "")
    run = _bound(plan.unlocked, function)
    if plan.uses_dependencies:
        run = with_dependencies(run)
    sources = [each.source for each in plan.arguments]
    return Call(
        endpoint,
        run,
        tuple(each.plan for each in sources if isinstance(each, RowSource)),
        any(isinstance(each, StateSource) for each in sources),
        isinstance(plan.payload, SeveralPayloads),
    )


def _bound(plan: ArgumentPlan, function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a function as one of the message alone; the usual form is the quickest."""
    sources = [each.source for each in plan.arguments if each.positional]
    match sources:
        case [receiver, payload, RowSource() as source] if (
            len(sources) == len(plan.arguments)
            and payload is payload_of
            and callable(receiver)
        ):
            get_receiver: Callable[[Any], Any] = receiver
            rows, missing = source.plan, source.plan.missing

            def run(message: Any) -> Any:
                row = message.batch.tables[rows].get(message.key, missing)
                return function(get_receiver(message), message._payload, row)

            return run
    return plan.bind(function)


def _takes(endpoint: Endpoint, names: set[str], cls: type | None) -> bool:
    """Return whether a handler takes the events of some names and a class."""
    if any(fnmatchcase(name, key) for key in endpoint.keys for name in names):
        return True
    if {object, dict} & set(endpoint.classes):
        return True
    return cls is not None and any(is_subclass(cls, each) for each in endpoint.classes)


def _event(recorded: Recorded) -> Any:
    return recorded.event


def _json(recorded: Recorded) -> Any:
    return recorded.payload


def _unknown(recorded: Recorded) -> Any:
    """Return the JSON of an event whose class is gone, for a handler of any object."""
    return recorded.payload


def _converter(call: Call, cls: type | None) -> Callable[[Recorded], Any]:
    """Return a function from a stored event to the payload of a handler."""
    payload = call.payload
    if cls is None:
        return _json if dict in payload.members else _unknown
    if payload.takes_all_of(cls):
        return _event
    classes = [each for each in payload.members if is_plain_class(each)]
    if any(issubclass(cls, each) for each in classes):
        return _event
    if dict in union_members(payload.annotation):
        return _json

    def converted(recorded: Recorded) -> Any:
        event = recorded.event
        return None if event is None else payload.from_python(event)

    return converted


class _ProjectionSet(NamedTuple):
    """The projections of one registry."""

    by_name: dict[str, Handlers]
    channels: tuple[str, ...]
    """The channels whose workers follow events."""


_compiled: WeakKeyDictionary[RouteTable, _ProjectionSet] = WeakKeyDictionary()


def _compiled_of(registry: Registry) -> _ProjectionSet:
    table = registry.routes
    found = _compiled.get(table)
    if found is None:
        by_name: dict[str, Handlers] = {}
        for owner in table.fed_owners:
            options = options_of(owner)
            if options is not None and options.name not in by_name:
                by_name[options.name] = Handlers(registry, owner, options)
        channels = dict.fromkeys(
            str(each.options.channel)
            for each in by_name.values()
            if each.options.is_following
        )
        found = _compiled[table] = _ProjectionSet(by_name, tuple(channels))
    return found


def projections_of(registry: Registry) -> dict[str, Handlers]:
    """
    Return the projections of a registry, by name, in order of registration.

    Of two with one name, which a check reports, it is the first.
    """
    return _compiled_of(registry).by_name


def channels_followed(registry: Registry) -> tuple[str, ...]:
    """Return the aliases of the channels with projections that follow events."""
    return _compiled_of(registry).channels


# ----------------------------------------------------------------------------- a batch


class EventBatch:
    """Some events, handled by a projection in one transaction."""

    def __init__(
        self,
        handlers: Handlers,
        connection: BaseDatabaseWrapper,
        *,
        states: States = NO_STATE,
        rows: ViewRows | None = None,
        scope: BusScope | None = None,
        is_replay: bool = False,
    ) -> None:
        """
        Begin, inside the transaction.

        Args:
            handlers: of the projection.
            connection: of the database with the events, with an open transaction.
            states: the states of the projection.
            rows: the rows of an earlier batch, of which only what was compiled is used.
            scope: the bus scope that messages of handlers are sent in; by default one
                of this batch, which is written by :meth:`finish`.
            is_replay: whether the events are handled again.

        """
        self.handlers = handlers
        self.connection = connection
        self.is_replay = is_replay
        self.states = states
        self.rows = ViewRows(connection) if rows is None else rows
        self.rows.forget()
        self.tables = {
            plan: self.rows.table_of(plan)
            for call in handlers.calls
            for plan in call.rows
        }
        self._own_scope = None if scope is not None else BusScope(connection, NOBODY)
        self.scope: Any = scope if scope is not None else self._own_scope
        self.handled = 0
        """The number of events that a handler was called with."""
        self.failed_at: int | None = None
        """The index of the event to blame for an exception; None if it is unknown."""
        self._emitted: list[tuple[int, Any, Any, StreamName | None]] = []
        self._cause = ReplayOrigin(handlers.options.name) if is_replay else None
        self._at = -1
        self._page: Sequence[Recorded] = ()

    # Handling -------------------------------------------------------------------------

    def handle(self, page: Sequence[Recorded], *, until: float | None = None) -> int:
        """
        Call the handlers of events, in order.

        Args:
            page: the events.
            until: a time of :func:`time.monotonic`, after which no other event is
                begun, except for the first.

        Returns:
            The number of events that are done, from the first one on.

        Raises:
            Exception: the exception of a handler, or of a decoder, unchanged.

        """
        self._page = page
        items = self._prepared(page)
        token = current.set(NOBODY)
        try:
            done = self._handle(items, len(page), until)
            self._flush_rows()
        except BaseException as error:
            if self._at >= 0:
                self.failed_at = self._at
            self._blame(error)
            if self._own_scope is not None:
                self._own_scope.drop()
            raise
        finally:
            current.reset(token)
        return done

    def _prepared(self, page: Sequence[Recorded]) -> list[FedMessage]:
        """
        Return a message for each handler that an event reaches, in order.

        Events are decoded, and the rows and states that their handlers need are noted.
        """
        handlers = self.handlers
        partition_of = handlers.partition_of if handlers.has_partition_state else None
        items = []
        index = 0
        try:
            for index, recorded in enumerate(page):
                route = handlers.route_of(recorded.name)
                for call, convert in route.forms:
                    payload = convert(recorded)
                    if payload is None:  # an upcaster drops it
                        continue
                    message = FedMessage(payload, recorded, self)
                    message.call = call
                    message.place = index
                    if call.rows:
                        self._note_keys(call, message)
                    if partition_of is not None:
                        message.partition = partition_of(recorded)
                        self.states.expect(message.partition)
                    items.append(message)
        except BaseException as error:
            self.failed_at = index
            self._blame(error)
            raise
        return items

    def _blame(self, error: BaseException) -> None:
        at, page = self.failed_at, self._page
        blame(error, page if at is None or at >= len(page) else [page[at]])

    def _note_keys(self, call: Call, message: FedMessage) -> None:
        if len(call.rows) == 1:
            [plan] = call.rows
            key = message.key = plan.key_of(message)
            self.tables[plan].expect(key, creates=plan.missing == "create")
            return
        keys = message.keys = {}
        for plan in call.rows:
            key = keys[plan] = plan.key_of(message)
            self.tables[plan].expect(key, creates=plan.missing == "create")

    def _expect(self, items: Sequence[FedMessage], start: int) -> None:
        """
        Note again which rows will be needed, after a handler has queried by itself.

        Only those up to the next handler that may do so are noted.
        """
        for message in items[start:]:
            if not message.call.rows:
                return
            for plan in message.call.rows:
                key = message.key if message.keys is None else message.keys[plan]
                self.tables[plan].expect(key, creates=plan.missing == "create")

    def _handle(
        self, items: Sequence[FedMessage], count: int, until: float | None
    ) -> int:
        at = 0
        while at < len(items):
            message = items[at]
            if message.place != self._at:  # another event
                if until is not None and at and time.monotonic() > until:
                    return message.place
                self._at = message.place
                self.handled += 1
            call = message.call
            if self.handlers.has_several and self._is_of_several(message):
                at = self._handle_several(items, at)
                continue
            at += 1
            if call.rows:
                self._call(call, message)
            else:
                self._call_alone(call, message, items, at)
        self._at = -1
        return count

    def _is_of_several(self, message: FedMessage) -> bool:
        return self.handlers.route_of(message.recorded.name).has_several

    def _call(self, call: Call, message: FedMessage) -> None:
        current.set(self._cause or message)
        try:
            result = call.run(message)
        except Ignored:
            return
        if call.state and result is not None:
            self.states.put(message, result)

    def _call_alone(
        self,
        call: Call,
        message: FedMessage,
        items: Sequence[FedMessage],
        following: int,
    ) -> None:
        """Call a handler that may query the database by itself."""
        with self._watched() as queried:
            self._call(call, message)
        if queried():
            self.rows.forget()
            self._expect(items, following)

    def _handle_several(self, items: Sequence[FedMessage], start: int) -> int:
        """Call the handlers of consecutive events; return where the others begin."""
        events, end = _run_of(items, start)
        self.handled += len(events) - 1
        for number, first in enumerate(events[0]):
            call = first.call
            if call.is_for_several:
                payloads = [each[number]._payload for each in events]
                last = events[-1][number]
                together = FedMessage(payloads, last.recorded, self)
                if hasattr(last, "partition"):
                    together.partition = last.partition
                # Nobody knows which of them is to blame.
                self._at = first.place if len(events) == 1 else -1
                self._call_alone(call, together, items, end)
                continue
            for each in events:
                message = each[number]
                self._at = message.place
                if call.rows:
                    self._call(call, message)
                else:
                    self._call_alone(call, message, items, end)
        self._at = events[-1][0].place
        return end

    @contextmanager
    def _watched(self) -> Iterator[Callable[[], bool]]:
        """Write pending rows before the first query inside the block."""
        seen: list[bool] = []

        def watch(
            execute: Callable[..., Any], sql: Any, params: Any, many: Any, context: Any
        ) -> Any:
            if not seen:
                seen.append(True)
                if self.rows.is_pending:
                    self.rows.flush()
            return execute(sql, params, many, context)

        with self.connection.execute_wrapper(watch):
            yield lambda: bool(seen)

    def _flush_rows(self) -> None:
        if self.rows.is_pending:
            self.rows.flush()

    # The end --------------------------------------------------------------------------

    def finish(self) -> None:
        """
        Write what is left: states, the projection's own flush, emitted events.

        Raises:
            BrokenTransaction: a handler has caught an error of the database without a
                savepoint, so that the transaction can only be rolled back.
            Exception: the exception of ``on_flush``, or of a handler of an emitted
                event.

        """
        token = current.set(NOBODY)
        try:
            if self.handled:
                self._finish()
            if self._own_scope is not None:
                self._own_scope.is_open = False
                self._own_scope.write_or_keep()
            if is_broken(self.connection):
                msg = (
                    f"The projection {self.handlers.options.name!r} has caught a "
                    "database error without a savepoint, so its batch can only be "
                    "rolled back. Wrap the code that may fail in transaction.atomic()."
                )
                raise BrokenTransaction(msg)
        except BaseException as error:
            self._blame(error)
            if self._own_scope is not None:
                self._own_scope.drop()
            raise
        finally:
            current.reset(token)

    def _finish(self) -> None:
        if self.handlers.flushes:
            message = FlushMessage(self)
            current.set(self._cause or message)
            self.handlers.run_hooks("on_flush", message)
            current.set(NOBODY)
        self.states.save()
        for index, message, event, stream in self._emitted:
            self._at = index
            current.set(message)
            try:
                if stream is None:
                    self._append(event)
                else:
                    self._link(message, stream)
            except BaseException:
                self.failed_at = index if index >= 0 else None
                raise
        self._at = -1

    def _append(self, event: Any) -> None:
        handlers = self.handlers
        target = Target(StreamName(EMITTED, handlers.options.name))
        using = self.connection.alias
        recorded = append([event], target, registry=handlers.registry, using=using)
        publish(recorded, handlers.registry, using)

    def _link(self, message: FedMessage, stream: StreamName) -> None:
        link(self.connection, stream, [message.recorded])
        wake(self.connection, self.handlers.registry)

    # What an Emitter calls ------------------------------------------------------------

    @property
    def _is_silent(self) -> bool:
        return self.is_replay or not self.handlers.options.emits

    def emit(self, message: Any, event: Any) -> None:
        """Append an event at the end of the batch, unless this is a replay."""
        if not self._is_silent:
            self._emitted.append((self._at, message, event, None))

    def link(self, message: Any, stream: str) -> None:
        """
        Link a message's event at the end of the batch, unless this is a replay.

        Raises:
            InvalidOption: the message is not that of an event.

        """
        name = stream_name(stream)
        if not isinstance(message, FedMessage):
            msg = "Emitter.link() is for handlers of events: on_flush has none to link."
            raise InvalidOption(msg)
        if not self._is_silent:
            self._emitted.append((self._at, message, None, name))


def _run_of(
    items: Sequence[FedMessage], start: int
) -> tuple[list[Sequence[FedMessage]], int]:
    """Return the messages of consecutive events that go to the same handlers."""
    events: list[Sequence[FedMessage]] = []
    wanted: list[Call] | None = None
    while start < len(items):
        end = start
        while end < len(items) and items[end].place == items[start].place:
            end += 1
        calls = [each.call for each in items[start:end]]
        if wanted is not None and calls != wanted:
            break
        wanted = calls
        events.append(items[start:end])
        start = end
    return events, start


class FlushMessage(Message):
    """The message that is current while ``on_flush`` runs: it belongs to no event."""

    def __init__(self, batch: EventBatch) -> None:
        """Take the batch."""
        super().__init__()
        self.batch = batch
        self._scope = batch.scope
