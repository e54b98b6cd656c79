"""The registry that connects the buses with handlers, and the project's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from django.apps import apps
from django.core.signals import setting_changed

from django_cqrs import conf
from django_cqrs.annotations import sole_type
from django_cqrs.buses.bus import BaseBus
from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.events import EventBus
from django_cqrs.buses.giving_up import Farewell, are_told, gave_up
from django_cqrs.buses.queries import QueryBus
from django_cqrs.channels.channel import Envelope
from django_cqrs.declaration.declarations import (
    Kind,
    declarations_of,
    handlers_of,
    role_of,
    stand_in_of,
)
from django_cqrs.declaration.discovery import Discovery, Found, discover
from django_cqrs.exceptions import CQRSError
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.inbox import find_inbox, no_inbox
from django_cqrs.interception import interception_of
from django_cqrs.logged_errors import described
from django_cqrs.messages import Message, Ran, message_name_of
from django_cqrs.parameters.plan import Constant, Resolver
from django_cqrs.parameters.planner import Unfillable, register_filler
from django_cqrs.parameters.services import Services
from django_cqrs.pipeline.compiler import Pipelines
from django_cqrs.pipeline.envelopes import decode, message_of
from django_cqrs.pipeline.interceptors import Interceptor, interceptors_of
from django_cqrs.pipeline.notices import restored_form
from django_cqrs.pipeline.stages import in_transaction
from django_cqrs.problems import Problem
from django_cqrs.retries import Retry
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Run
from django_cqrs.routing.table import RouteTable
from django_cqrs.signals import on_change
from django_cqrs.sync import refuse_running_loop

HandlerT = TypeVar("HandlerT")

_registries: WeakSet[Registry] = WeakSet()


class Registry:
    """
    Handlers, their route table, and the three buses that use it.

    The app config fills a global one. A test builds its own::

        registry = Registry()
        registry.add(open_ticket)
        registry.command_bus.dispatch(OpenTicket("broken lamp"))
    """

    def __init__(self, source: Callable[[], Discovery] | None = None) -> None:
        """Start without handlers, or with the result of `source` when it is needed."""
        self._source = source
        self._added: list[Found] = []
        self._services = Services(self)
        self._table: RouteTable | None = None
        self._pipelines = Pipelines(())
        self._taps: list[Callable[[Kind, Message], None]] = []
        self._consumptions: dict[Any, tuple[Run, Retry | None]] = {}
        self._lock = threading.RLock()
        _registries.add(self)
        self._is_compiling = False
        # In the order of creation. Those that nobody else holds are forgotten.
        self._buses: WeakKeyDictionary[BaseBus, None] = WeakKeyDictionary()
        self._direct: dict[Kind, CommandBus | QueryBus] = {}
        self.implementations: dict[type, Any] = {}
        """The implementations of business interfaces, by the interface."""
        self.command_bus: CommandBus = CommandBus(registry=self)
        self.command_bus._is_default = True
        self.query_bus: QueryBus = QueryBus(registry=self)
        self.event_bus: EventBus = EventBus(registry=self)

    def add(self, handler_or_class: HandlerT, /) -> HandlerT:
        """
        Add a handler, a class with handlers, a message class or an interceptor.

        Returns:
            The argument, so that you can use this as a decorator.

        Raises:
            TypeError: the argument is not decorated.

        """
        target: Any = stand_in_of(handler_or_class)
        is_class = isinstance(target, type)
        if not (
            (is_class and (message_name_of(target) or any(handlers_of(target))))
            or role_of(target) is not None
            or (not is_class and declarations_of(target))
            or interception_of(target) is not None
        ):
            msg = (
                f"{target!r} is not decorated, so its messages are unknown. Use "
                "@command_handler, @query_handler or @event_handler."
            )
            raise TypeError(msg)
        with self._lock:
            if all(found.target is not target for found in self._added):
                self._added.append(Found(target))
            self.reset()
        return handler_or_class

    def reset(self) -> None:
        """Forget the compiled table, which is compiled again on the next access."""
        with self._lock:
            self._table = None
            self._services.reset()
            self._forget_runs()

    def _forget_runs(self) -> None:
        """Compile the runs again, with the same routes and services."""
        with self._lock:
            self._consumptions = {}
            for bus in list(self._buses):
                bus._forget()

    @property
    def routes(self) -> RouteTable:
        """
        The route table, compiled on first access.

        Raises:
            AppRegistryNotReady: Django has not loaded the apps yet.
            CQRSError: a handlers module uses a bus while it is imported.

        """
        table = self._table
        return table if table is not None else self._compile()

    def _compile(self) -> RouteTable:
        with self._lock:
            if self._table is not None:
                return self._table
            if self._is_compiling:
                msg = (
                    "A bus was used while the handlers were being imported. Use a "
                    "bus inside a function, not at the top of a module."
                )
                raise CQRSError(msg)
            self._is_compiling = True
            try:
                discovery = Discovery()
                if self._source is not None:
                    apps.check_models_ready()
                    discovery = self._source()
                for found in self._added:
                    if interception_of(found.target) is not None:
                        discovery.interceptors.append(found.target)
                    else:
                        discovery.handlers.append(found)
                self._pipelines = Pipelines(
                    interceptors_of(discovery.interceptors, self._services)
                )
                self._table = RouteTable(discovery, self._services)
            finally:
                self._is_compiling = False
            return self._table

    @property
    def problems(self) -> list[Problem]:
        """All mistakes in the declarations, as the system checks report them."""
        table = self.routes
        found = [
            problem
            for kind in Kind
            for problem in self.pipelines.problems_of(
                (each for each in table.endpoints if each.kind is kind),
                self._buses_of(kind),
            )
        ]
        if find_inbox() is None:
            found += [no_inbox(str(bus._key)) for bus in list(self._buses) if bus._key]
        return [*table.problems, *table.late_problems, *dict.fromkeys(found)]

    def interceptors_around(self, endpoint: Endpoint) -> list[Interceptor]:
        """Return the possible interceptors of an endpoint, whichever bus is used."""
        buses = self._buses_of(endpoint.kind)
        return self.pipelines.around(endpoint, buses, self.routes.types)

    def _buses_of(self, kind: Kind) -> list[BaseBus]:
        return [bus for bus in list(self._buses) if bus.kind is kind]

    def bus_of(self, kind: Kind) -> CommandBus | QueryBus | EventBus:
        """Return the bus of a kind of message."""
        buses: dict[Kind, CommandBus | QueryBus | EventBus] = {
            Kind.COMMAND: self.command_bus,
            Kind.QUERY: self.query_bus,
            Kind.EVENT: self.event_bus,
        }
        return buses[kind]

    def direct_bus_of(self, kind: Kind) -> CommandBus | QueryBus:
        """Return a bus that calls handlers directly: no bus's interceptors apply."""
        if kind not in self._direct:
            bus: CommandBus | QueryBus
            bus = (CommandBus if kind is Kind.COMMAND else QueryBus)(registry=self)
            bus._is_direct = True
            self._direct[kind] = bus
        return self._direct[kind]

    @property
    def pipelines(self) -> Pipelines:
        """The compiler that puts interceptors around handlers."""
        self.routes  # noqa: B018 - compiles both
        return self._pipelines

    def deliver(
        self,
        envelope: Envelope,
        *,
        using: str | None = None,
        attempt: int | None = None,
    ) -> None:
        """
        Handle a message from a channel.

        Args:
            envelope: the envelope, as stored.
            using: the database that the message was sent in, for handlers that do not
                name one.
            attempt: the number of this attempt, from 1; None if it is the only one.

        Raises:
            UnknownEndpoint: no handler has the name in its address.
            UnknownMessage: no registered class has its payload's name.
            MessageConversionError: its payload does not fit the handler.
            InvalidHandler: the handler's declaration is broken.
            SynchronousDispatch: an event loop is running here.
            Exception: the exception of the handler, unchanged.

        """
        __traceback_hide__ = True
        refuse_running_loop("deliver", "await sync_to_async(deliver)(envelope)")
        _, handle = self.unpack(envelope, using=using, attempt=attempt)
        handle()

    def give_up(
        self,
        envelope: Envelope,
        error: Exception,
        *,
        channel: str,
        attempts: int,
        using: str,
    ) -> None:
        """
        Tell handlers that a channel without dead letters gives up a message.

        Args:
            envelope: the message.
            error: the exception of its last attempt.
            channel: the alias of the channel.
            attempts: the number of attempts.
            using: the database that the message was sent in.

        Raises:
            Exception: the first exception of the handlers that are told, unchanged;
                the others are told all the same.

        """
        if not are_told(self, envelope):
            return
        facts = Farewell(
            envelope,
            channel,
            f"{type(error).__module__}.{type(error).__qualname__}",
            next(iter(described(error).splitlines()), ""),
            attempts,
            "failed",
        )
        message, notices = gave_up(self, facts, using)
        failures: list[Exception] = []
        for endpoint, run in notices:
            try:
                in_transaction(run, using, endpoint.name)(message.replace())
            except Exception as failure:  # noqa: BLE001 - raised below
                failures.append(failure)
        if failures:
            raise failures[0]

    def unpack(
        self,
        envelope: Envelope,
        *,
        scope: Any = None,
        opens_transaction: bool = True,
        using: str | None = None,
        note: Any = None,
        ran: Ran | None = None,
        attempt: int | None = None,
    ) -> tuple[Endpoint, Callable[[], Any]]:
        """
        Read a message from a channel; return a function that handles it.

        Args:
            envelope: the envelope, as stored.
            scope: the bus scope for messages that its handler sends.
            opens_transaction: False if the caller's savepoint is the handler's
                transaction.
            using: the database that the message was stored in, for handlers that do not
                name one.
            note: the caller's note for the handling, if it keeps one.
            ran: records whether the factory or the action has run.
            attempt: the number of this attempt, from 1; None if it is the only one.

        Returns:
            The endpoint, and a function that handles the message.

        Raises:
            UnknownEndpoint: no handler has the name in its address.
            UnknownMessage: no registered class has its payload's name.
            MessageConversionError: its payload does not fit the handler.
            InvalidHandler: the handler's declaration is broken.

        """
        __traceback_hide__ = True
        consumptions = self._consumptions
        table = self.routes
        endpoint = table.endpoint_named(envelope.endpoint)
        payload = decode(endpoint, table.types, envelope)
        pair = table.with_action(endpoint, payload)
        if pair is not endpoint:
            if not envelope.name and pair.name != endpoint.name:
                # A plain value is the factory's payload, as it was when sent.
                payload = decode(pair, table.types, envelope)
            endpoint = pair
        if isinstance(payload, MessageGaveUp):
            payload = restored_form(table, payload)
        key = endpoint, type(payload), opens_transaction, using
        found = consumptions.get(key)
        if found is None:
            bus = self.bus_of(endpoint.kind)
            point = JoinPoint(endpoint, bus, type(payload), is_consumed=True)
            run = self._pipelines.consumption(
                point, opens_transaction=opens_transaction, using=using
            )
            found = consumptions[key] = run, endpoint.retry
        run, retry = found
        message = message_of(envelope, payload, scope)
        if attempt is not None:
            message._attempt = attempt
            message._retry = retry
        if note is not None:
            message.handling.note = note
        if ran is not None and endpoint.action is not None:
            message.handling.ran = ran
        return endpoint, partial(run, message)

    @contextmanager
    def tapped(self, tap: Callable[[Kind, Message], None]) -> Iterator[None]:
        """
        Call a function with every message that passes the buses, for a test.

        Args:
            tap: called before the handlers, with the kind and the message.

        """
        self._taps.append(tap)
        self._forget_runs()  # not the services: a fake keeps its recordings
        try:
            yield
        finally:
            self._taps.remove(tap)
            self._forget_runs()

    def adopt(self, bus: BaseBus) -> None:
        """Make a bus forget its routes when they change."""
        self._buses[bus] = None

    def with_taps(self, kind: Kind, run: Run) -> Run:
        """Return `run` preceded by the observers of every message, for tests."""
        taps = tuple(self._taps)
        if not taps:
            return run

        def run_tapped(message: Message) -> Any:
            for tap in taps:
                tap(kind, message)
            return run(message)

        return run_tapped

    @contextmanager
    def override(self, wanted: Any, replacement: Callable[[], Any]) -> Iterator[None]:
        """
        Replace a dependency inside a ``with`` block, for a test.

        Args:
            wanted: the factory of a ``Depends``, or the class of a service; Protocols
                and abstract classes are allowed.
            replacement: called without arguments; its result is used instead.

        """
        # A handler with an unbuildable dependency is broken outside the block.
        was_unbuildable = self._services.is_unbuildable(wanted)
        with self._services.override(wanted, replacement):
            if was_unbuildable:
                self._compile_anew()
            try:
                yield
            finally:
                if was_unbuildable:
                    self._compile_anew()

    def _compile_anew(self) -> None:
        """Forget the routes and their runs, and keep the services."""
        with self._lock:
            self._table = None
            self._forget_runs()

    def __repr__(self) -> str:
        """Return the number of endpoints, if it is known."""
        count = len(self._table.endpoints) if self._table else "uncompiled"
        return f"<Registry endpoints={count}>"


def _bus_filler(annotation: Any, services: Services) -> Constant | Resolver | None:
    owner = services.owner
    if owner is None:
        return None
    bare = sole_type(annotation)
    if bare is CommandBus:
        return Constant(owner.command_bus)
    if bare is QueryBus:
        return Constant(owner.query_bus)
    if bare is EventBus:
        return Constant(owner.event_bus)
    if isinstance(bare, type) and issubclass(bare, BaseBus):
        return _own_bus(bare, services)
    return None


def _own_bus(cls: type[BaseBus], services: Services) -> Resolver | None:
    """
    Return the resolver of a registry's only bus of a custom class.

    Raises:
        Unfillable: it has none, and no other source, or it has several.

    """
    found = [bus for bus in list(services.owner._buses) if type(bus) is cls]
    name = cls.__qualname__
    if len(found) > 1:
        msg = (
            f"{len(found)} buses of the class {name} use this registry, so the choice "
            "is ambiguous; give each its own class, or use Depends(...)"
        )
        raise Unfillable(msg)
    if not found and conf.resolve("SERVICE_RESOLVER") is not None:
        return None
    if not found and cls not in services.overrides:
        msg = (
            f"no {name} exists for this registry; create one, as in `{name.lower()} = "
            f"{name}()`, in a module that is imported before the handlers"
        )
        raise Unfillable(msg)

    def get(_message: Message) -> Any:
        if cls in services.overrides:
            return services.overrides[cls]()
        return found[0]

    return get


register_filler(_bus_filler)

registry: Registry = Registry(discover)
"""The registry of the installed apps."""

BaseBus.default_registry = registry

command_bus: CommandBus = registry.command_bus
query_bus: QueryBus = registry.query_bus
event_bus: EventBus = registry.event_bus


def _reset_all() -> None:
    for each in _registries:
        each.reset()


def _forget_all_runs() -> None:
    for each in _registries:
        each._forget_runs()


on_change.append(_forget_all_runs)


def _reset(*, setting: str, **_kwargs: Any) -> None:
    if setting in (conf.NAME, "INSTALLED_APPS", "DATABASES"):
        _reset_all()


setting_changed.connect(_reset, dispatch_uid="django_cqrs.buses")
