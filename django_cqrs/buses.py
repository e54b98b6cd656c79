"""The three buses, and the registry that ties them to handlers."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from asyncio import CancelledError, _get_running_loop
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar, overload
from weakref import WeakKeyDictionary, WeakSet

from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.signals import setting_changed
from django.db import connections

from django_cqrs import conf
from django_cqrs.channels import Envelope
from django_cqrs.conversion import (
    PayloadType,
    check_content_type,
    convert_result,
)
from django_cqrs.declarations import Kind, declarations_of, handlers_of
from django_cqrs.discovery import Discovery, Found, discover
from django_cqrs.exceptions import (
    CQRSError,
    InvalidOption,
    MessageConversionError,
    NoHandlerFound,
    SynchronousDispatch,
)
from django_cqrs.idempotency import BusKey
from django_cqrs.inboxes import find_inbox
from django_cqrs.interception import JoinPoint, interception_of
from django_cqrs.keys import KeySource
from django_cqrs.messages import (
    Command,
    HeaderValue,
    Message,
    Query,
    Ran,
    current,
    message_name_of,
    scope_of,
)
from django_cqrs.parameters import (
    Constant,
    Header,
    Resolver,
    Services,
    Unfillable,
    register_filler,
    sole_type,
    with_dependencies,
)
from django_cqrs.pipeline import Pipelines
from django_cqrs.policies import no_inbox
from django_cqrs.problems import Problem
from django_cqrs.retries import InstantRetry
from django_cqrs.routing import ENTRANCES, Endpoint, RouteTable
from django_cqrs.sending import (
    NO_OPTIONS,
    Outlet,
    SendOptions,
    decode,
    message_of,
    release,
    send_options,
)
from django_cqrs.signals import on_change
from django_cqrs.stages import Run, while_current
from django_cqrs.weaving import Interceptor, interceptors_of

R = TypeVar("R")
HandlerT = TypeVar("HandlerT")

GivenHeaders = Mapping[str, HeaderValue]
Seconds = timedelta | float

_current_message = current.get


_registries: WeakSet[Registry] = WeakSet()


class Registry:
    """
    Handlers, their route table, and the three buses that use it.

    There is a global one, filled by the app config. A test builds its own::

        registry = Registry()
        registry.add(open_ticket)
        registry.command_bus.dispatch(OpenTicket("broken lamp"))
    """

    def __init__(self, source: Callable[[], Discovery] | None = None) -> None:
        """Start with no handlers, or with what `source` finds when it is asked."""
        self._source = source
        self._added: list[Found] = []
        self._services = Services(self)
        self._table: RouteTable | None = None
        self._pipelines = Pipelines(())
        self._taps: list[Callable[[Kind, Message], None]] = []
        self._consumptions: dict[Any, Run] = {}
        self._lock = threading.RLock()
        _registries.add(self)
        self._is_compiling = False
        # In the order of their making. Those that nobody else keeps are forgotten.
        self._buses: WeakKeyDictionary[_Bus, None] = WeakKeyDictionary()
        self._direct: dict[Kind, CommandBus | QueryBus] = {}
        self.implementations: dict[type, Any] = {}
        """What implements a business interface here, by the interface."""
        self.command_bus: CommandBus = CommandBus(registry=self)
        self.query_bus: QueryBus = QueryBus(registry=self)
        self.event_bus: EventBus = EventBus(registry=self)

    def add(self, handler_or_class: HandlerT, /) -> HandlerT:
        """
        Add a handler, a class with handlers, a message class or an interceptor.

        Returns:
            What was given, so that it can be used as a decorator.

        Raises:
            TypeError: nothing is decorated.

        """
        target: Any = handler_or_class
        is_class = isinstance(target, type)
        if not (
            (is_class and (message_name_of(target) or any(handlers_of(target))))
            or (not is_class and declarations_of(target))
            or interception_of(target) is not None
        ):
            msg = (
                f"{target!r} is not decorated: nothing says which messages it takes. "
                f"Use @command_handler, @query_handler or @event_handler."
            )
            raise TypeError(msg)
        with self._lock:
            if all(found.target is not target for found in self._added):
                self._added.append(Found(target))
            self.reset()
        return handler_or_class

    def reset(self) -> None:
        """Forget the compiled table: it is made anew when it is next asked for."""
        with self._lock:
            self._table = None
            self._services.reset()
            self._forget_runs()

    def _forget_runs(self) -> None:
        """Put together anew what handles messages, on the same routes and services."""
        with self._lock:
            self._consumptions = {}
            for bus in list(self._buses):
                bus._forget()

    @property
    def routes(self) -> RouteTable:
        """
        The route table, compiled when it is first asked for.

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
                    "A bus was used while the handlers are being imported. "
                    "Use buses inside functions, not at the top of a module."
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
        """Every mistake in what is declared here: what the system checks report."""
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
        """Return what may stand around an endpoint, whichever bus is used."""
        buses = self._buses_of(endpoint.kind)
        return self.pipelines.around(endpoint, buses, self.routes.types)

    def _buses_of(self, kind: Kind) -> list[_Bus]:
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
        """Return what leads straight to handlers: no bus's interceptors apply."""
        if kind not in self._direct:
            bus: CommandBus | QueryBus
            bus = (CommandBus if kind is Kind.COMMAND else QueryBus)(registry=self)
            bus._is_direct = True
            self._direct[kind] = bus
        return self._direct[kind]

    @property
    def pipelines(self) -> Pipelines:
        """What puts interceptors and handlers together."""
        self.routes  # noqa: B018 - compiles both
        return self._pipelines

    def deliver(self, envelope: Envelope, *, using: str | None = None) -> None:
        """
        Handle a message that comes out of a channel.

        Args:
            envelope: as it was stored.
            using: the database that the message was sent in, which is that of a
                handler that names none.

        Raises:
            UnknownEndpoint: no handler has the name that it is addressed to.
            UnknownMessage: no registered class has its payload's name.
            MessageConversionError: its payload is not what the handler takes.
            InvalidHandler: the handler's declaration is broken.
            SynchronousDispatch: an event loop is running here.
            Exception: whatever the handler raises, unchanged.

        """
        __traceback_hide__ = True
        refuse_running_loop("deliver", "await sync_to_async(deliver)(envelope)")
        _, handle = self.unpack(envelope, using=using)
        handle()

    def unpack(
        self,
        envelope: Envelope,
        *,
        scope: Any = None,
        opens_transaction: bool = True,
        using: str | None = None,
        note: Any = None,
        ran: Ran | None = None,
    ) -> tuple[Endpoint, Callable[[], Any]]:
        """
        Read a message that comes out of a channel; return what is to handle it.

        Args:
            envelope: as it was stored.
            scope: the bus scope that is to take what its handler sends.
            opens_transaction: False where the caller's savepoint is the handler's
                transaction.
            using: the database that the message was stored in, which is that of a
                handler that names none.
            note: what its handling is to be noted in, where the caller keeps that.
            ran: what is to say which of a factory and an action has run.

        Returns:
            The endpoint, and a function that handles the message.

        Raises:
            UnknownEndpoint: no handler has the name that it is addressed to.
            UnknownMessage: no registered class has its payload's name.
            MessageConversionError: its payload is not what the handler takes.
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
                # A plain value is what the factory takes, as it was at the sending.
                payload = decode(pair, table.types, envelope)
            endpoint = pair
        key = endpoint, type(payload), opens_transaction, using
        run = consumptions.get(key)
        if run is None:
            bus = self.bus_of(endpoint.kind)
            point = JoinPoint(endpoint, bus, type(payload))
            run = consumptions[key] = self._pipelines.consumption(
                point, opens_transaction=opens_transaction, using=using
            )
        message = message_of(envelope, payload, scope)
        if note is not None:
            message._note = note
        if ran is not None:
            message._ran = ran
        return endpoint, partial(run, message)

    @contextmanager
    def tapped(self, tap: Callable[[Kind, Message], None]) -> Iterator[None]:
        """
        Have a function told of every message that passes the buses, for a test.

        Args:
            tap: called before the handlers, with the kind and the message.

        """
        self._taps.append(tap)
        self._forget_runs()  # not the services: a fake keeps what it has recorded
        try:
            yield
        finally:
            self._taps.remove(tap)
            self._forget_runs()

    def _with_taps(self, kind: Kind, run: Run) -> Run:
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
            wanted: the factory of a ``Depends``, or the class of a service; a
                Protocol or an abstract class as well.
            replacement: called with nothing; what it returns is given instead.

        """
        # A handler that asks for what nobody can build is broken outside the block.
        mends = self._services.is_unbuildable(wanted)
        with self._services.override(wanted, replacement):
            if mends:
                self._compile_anew()
            try:
                yield
            finally:
                if mends:
                    self._compile_anew()

    def _compile_anew(self) -> None:
        """Forget the routes and what runs on them, and keep the services."""
        with self._lock:
            self._table = None
            self._forget_runs()

    def __repr__(self) -> str:
        """Return the number of endpoints, where they are known."""
        count = len(self._table.endpoints) if self._table else "uncompiled"
        return f"<Registry endpoints={count}>"


class _Bus:
    """What the three buses share: a registry, and what they learned of its routes."""

    kind: Kind
    _key: BusKey | None = None

    def __init__(self, *, registry: Registry | None = None) -> None:
        """Use a registry, by default the global one."""
        self._registry = registry if registry is not None else globals()["registry"]
        self._by_type: dict[type, Any] = {}
        self._compiled: dict[Any, Any] = {}
        self._registry._buses[self] = None
        # One hop for the whole of it: the transaction is the thread's.
        method = getattr(self, ENTRANCES[self.kind].partition(".")[2])
        self._hop = hopping(method)

    def _forget(self) -> None:
        self._by_type = {}
        self._compiled = {}

    def _refuse_running_loop(self) -> None:
        entrance = ENTRANCES[self.kind]
        bus, _, method = entrance.partition(".")
        refuse_running_loop(entrance, f"await {bus}.a{method}()")

    def _message(
        self,
        payload: Any,
        headers: GivenHeaders | None,
        using: str | None,
        options: SendOptions = NO_OPTIONS,
    ) -> Message:
        __traceback_hide__ = True
        message = Message(payload, _current_message())
        if headers:
            message._add_headers(headers)
        if using is not None:
            connections[using]  # raises where there is no such alias
            message._using = using
        if options is not NO_OPTIONS:
            message._options = options
        return message

    def _outlet(self, endpoint: Endpoint) -> Outlet:
        key = endpoint, Outlet
        outlet = self._compiled.get(key)
        if outlet is None:
            registry = self._registry
            outlet = Outlet(endpoint, registry.routes.types, registry.deliver)
            self._compiled[key] = outlet
        return outlet

    def _check_options(self, endpoint: Endpoint, options: SendOptions) -> None:
        """Refuse options that an endpoint's way does not have."""
        if options is NO_OPTIONS:
            return
        given = options.given()
        if endpoint.channel is not None:
            options.check(self._outlet(endpoint).channel)
            return
        msg = (
            f"{' and '.join(f'{name}=' for name in given)} cannot be given to "
            f"{endpoint.name}, which is called at once: only a message that waits in a "
            f"channel can be delayed, expire, or be preferred."
        )
        raise InvalidOption(msg)

    def _refuse_aggregate_id(self, endpoint: Endpoint, aggregate_id: Any) -> None:
        if aggregate_id is None:
            return
        if endpoint.subject is None:
            reason = "is not a handler of an aggregate"
        elif endpoint.is_factory and endpoint.action is None:
            reason = "makes a new object, whose identifier nobody can give"
        else:
            return
        msg = f"aggregate_id= was given, but {endpoint.name} {reason}."
        raise InvalidOption(msg)

    def _check_address(
        self, payload: Any, route: str | None, content_type: str | None
    ) -> None:
        __traceback_hide__ = True
        method = ENTRANCES[self.kind]
        if route is not None and not isinstance(route, str):
            msg = f"route= is a routing key, a string, not {route!r}."
            raise InvalidOption(msg)
        if route is None and content_type is not None:
            msg = (
                f"{method}(content_type=...) needs route= as well: text does not say "
                f"which handler it is for."
            )
            raise InvalidOption(msg)
        if route is None and payload is None:
            msg = f"{method}() needs a payload, or route= and perhaps a payload."
            raise InvalidOption(msg)
        if isinstance(payload, type) and route is None:
            name = payload.__qualname__
            msg = f"{method}() takes an object: {name}(...), not the class {name}."
            raise InvalidOption(msg)

    def __repr__(self) -> str:
        """Return the name and the registry."""
        return f"<{type(self).__name__} of {self._registry!r}>"


class _SingleBus(_Bus):
    """A bus whose messages have exactly one handler."""

    _retry: InstantRetry | None = None
    _is_direct: bool = False

    def _run_for(
        self,
        payload: Any,
        route: str | None,
        content_type: str | None,
        using: str | None,
    ) -> tuple[Endpoint, Any, Run]:
        """Find the endpoint; convert the payload to what it takes."""
        __traceback_hide__ = True
        try:
            return self._found_run_for(payload, route, content_type, using)
        except (MessageConversionError, NoHandlerFound) as error:
            error.at_entrance = _is_entrance()
            raise

    def _found_run_for(
        self,
        payload: Any,
        route: str | None,
        content_type: str | None,
        using: str | None,
    ) -> tuple[Endpoint, Any, Run]:
        __traceback_hide__ = True
        self._check_address(payload, route, content_type)
        # Taken before the table: a reset in between must not find stale routes here.
        by_type, compiled = self._by_type, self._compiled
        table = self._registry.routes
        if route is None:
            endpoint = table.handler_of(self.kind, payload)
        else:
            found = table.handler_of_key(self.kind, route)
            if found is not None:
                payload = _converted(found, payload, content_type)
                endpoint = found
            else:
                named = PayloadType(table.named_class(route))
                payload = _read(named, payload, content_type)
                endpoint = table.handler_of(self.kind, payload)
        key = endpoint, using, type(payload)
        run = compiled.get(key)
        if run is None:
            run = self._compile(endpoint, using, type(payload))
            run = compiled[key] = self._registry._with_taps(self.kind, run)
        if route is None and using is None:
            by_type[type(payload)] = run
        return endpoint, payload, run

    def _compile(self, endpoint: Endpoint, using: str | None, cls: type) -> Run:
        point = JoinPoint(endpoint, self, cls)
        pipelines = self._registry.pipelines
        if endpoint.channel is not None:
            outlet = self._outlet(endpoint)
            return pipelines.sending(
                point,
                outlet.put,
                alias_of=outlet.alias_for,
                retry=self._retry,
                key=self._key,
            )
        return pipelines.handling(
            point,
            using=using,
            retry=self._retry,
            key=self._key,
            is_direct=self._is_direct,
        )


class CommandBus(_SingleBus):
    """
    Sends a command to its one handler, in a transaction.

    An instance of your own has policies of its own::

        webhook_bus = CommandBus(
            instant_retry=InstantRetry(3, on=DEADLOCKS),
            idempotency_key=Header("payment_id"),
        )
    """

    kind = Kind.COMMAND

    def __init__(
        self,
        *,
        instant_retry: InstantRetry | None = None,
        idempotency_key: KeySource | None = None,
        replay_outputs: bool | Header = False,
        registry: Registry | None = None,
    ) -> None:
        """
        Make a bus of your own.

        Args:
            instant_retry: which failures are worth another attempt at once.
            idempotency_key: what tells a duplicate, which is not handled and gets the
                first one's answer: an attribute of the payload, a header, or a
                callable that gets the message.
            replay_outputs: whether a duplicate has the messages sent again that the
                first one sent to channels; a header: where it is there and true.
            registry: whose handlers it reaches; by default those of the project.

        Raises:
            InvalidOption: the arguments do not fit together.

        """
        key = None
        if idempotency_key is not None:
            key = BusKey(idempotency_key, replay_outputs)
        elif replay_outputs is not False:
            msg = "CommandBus(replay_outputs=...) needs idempotency_key= as well."
            raise InvalidOption(msg)
        super().__init__(registry=registry)
        self._retry = instant_retry
        self._key = key

    @overload
    def dispatch(
        self,
        payload: Command[R],
        *,
        route: None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> R: ...
    @overload
    def dispatch(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> Any: ...
    def dispatch(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> Any:
        """
        Send a command and return what its handler returns.

        Args:
            payload: the command; with `route`, any value or none.
            route: a routing key, where a class does not lead to the handler.
            aggregate_id: the identifier of the aggregate that is to act.
            headers: read by handlers and passed on to what they send.
            content_type: ``"application/json"`` where the payload is such text.
            using: the database alias of the transaction, before the handler's own.
            delay: for a handler on a channel, in seconds or a timedelta.
            expires: likewise.
            priority: likewise; higher first.

        Raises:
            NoHandlerFound: nothing takes it.
            DuplicateHandler: more than one handler takes it.
            InvalidHandler: its handler's declaration is broken.
            MessageConversionError: the payload is not what the handler takes.
            InvalidHeader: a header is reserved or cannot travel.
            MissingHeader: the handler requires a header that is not there.
            InvalidOption: the arguments do not fit together.
            BrokenTransaction: the transaction around it can only be rolled back.
            SynchronousDispatch: an event loop is running here.

        """
        __traceback_hide__ = True
        if (
            route is None
            and headers is None
            and using is None
            and aggregate_id is None
            and content_type is None
            and delay is None
            and expires is None
            and priority is None
            and _get_running_loop() is None
        ):
            run = self._by_type.get(type(payload))
            if run is not None:
                return run(Message(payload, _current_message()))
        self._refuse_running_loop()
        endpoint, payload, run = self._run_for(payload, route, content_type, using)
        options = send_options(delay, expires, priority)
        self._check_options(endpoint, options)
        self._refuse_aggregate_id(endpoint, aggregate_id)
        message = self._message(payload, headers, using, options)
        if aggregate_id is not None and endpoint.subject is not None:
            subject = endpoint.subject
            message._aggregate_id = subject.identifier_given(aggregate_id, message)
        return run(message)

    @overload
    async def adispatch(
        self,
        payload: Command[R],
        *,
        route: None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> R: ...
    # For mypy, which tries a wrong R of the context first: it would go on to Any.
    @overload
    async def adispatch(
        self,
        payload: Command[Any],
        *,
        route: None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> object: ...
    @overload
    async def adispatch(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> Any: ...
    async def adispatch(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> Any:
        """Do what :meth:`dispatch` does, in one hop to the thread of the database."""
        __traceback_hide__ = True
        return await self._hop(
            payload,
            route=route,
            aggregate_id=aggregate_id,
            headers=headers,
            content_type=content_type,
            using=using,
            delay=delay,
            expires=expires,
            priority=priority,
        )


class QueryBus(_SingleBus):
    """Asks a query's one handler, in no transaction."""

    kind = Kind.QUERY

    @overload
    def ask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: Literal["application/json"],
    ) -> str: ...
    @overload
    def ask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: type[R],
    ) -> R: ...
    @overload
    def ask(
        self,
        payload: Query[R],
        *,
        route: None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: None = None,
        using: str | None = None,
        returns: None = None,
    ) -> R: ...
    @overload
    def ask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: Any = None,
    ) -> Any: ...
    def ask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: Any = None,
    ) -> Any:
        """
        Ask a query and return the answer.

        Args:
            payload: the query; with `route`, any value or none.
            route: a routing key, where a class does not lead to the handler.
            aggregate_id: the identifier of the aggregate that is asked.
            headers: read by the handler and passed on to what it sends.
            content_type: ``"application/json"`` where the payload is such text.
            using: a database alias, for the handler to read from its message.
            returns: a type to convert the answer to, or ``"application/json"``
                for JSON text.

        Raises:
            NoHandlerFound: nothing takes it.
            DuplicateHandler: more than one handler takes it.
            InvalidHandler: its handler's declaration is broken.
            MessageConversionError: the payload is not what the handler takes, or
                the answer does not convert.
            InvalidHeader: a header is reserved or cannot travel.
            MissingHeader: the handler requires a header that is not there.
            InvalidOption: the arguments do not fit together.
            SynchronousDispatch: an event loop is running here.

        """
        __traceback_hide__ = True
        if (
            route is None
            and headers is None
            and returns is None
            and using is None
            and aggregate_id is None
            and content_type is None
            and _get_running_loop() is None
        ):
            run = self._by_type.get(type(payload))
            if run is not None:
                return run(Message(payload, _current_message()))
        self._refuse_running_loop()
        endpoint, payload, run = self._run_for(payload, route, content_type, using)
        self._refuse_aggregate_id(endpoint, aggregate_id)
        message = self._message(payload, headers, using)
        if aggregate_id is not None and endpoint.subject is not None:
            subject = endpoint.subject
            message._aggregate_id = subject.identifier_given(aggregate_id, message)
        result = run(message)
        return result if returns is None else convert_result(result, returns)

    @overload
    async def aask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: Literal["application/json"],
    ) -> str: ...
    @overload
    async def aask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: type[R],
    ) -> R: ...
    @overload
    async def aask(
        self,
        payload: Query[R],
        *,
        route: None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: None = None,
        using: str | None = None,
        returns: None = None,
    ) -> R: ...
    # For mypy, which tries a wrong R of the context first: it would go on to Any.
    @overload
    async def aask(
        self,
        payload: Query[Any],
        *,
        route: None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: None = None,
        using: str | None = None,
        returns: None = None,
    ) -> object: ...
    @overload
    async def aask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: Any = None,
    ) -> Any: ...
    async def aask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        returns: Any = None,
    ) -> Any:
        """Do what :meth:`ask` does, in one hop to the thread of the database."""
        __traceback_hide__ = True
        return await self._hop(
            payload,
            route=route,
            aggregate_id=aggregate_id,
            headers=headers,
            content_type=content_type,
            using=using,
            returns=returns,
        )


class EventBus(_Bus):
    """Publishes an event to all of its handlers, one after the other."""

    kind = Kind.EVENT

    def publish(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> None:
        """
        Call every handler of an event, by priority and then by registration.

        The first that raises ends it: its exception reaches the caller, and the
        handlers after it are not called.

        Args:
            payload: the event; with `route`, any value or none.
            route: an event's name, where its class does not say it.
            headers: read by handlers and passed on to what they send.
            content_type: ``"application/json"`` where the payload is such text.
            using: a database alias, for handlers to read from their message.
            delay: for handlers on a channel, in seconds or a timedelta.
            expires: likewise.
            priority: likewise; higher first.

        Raises:
            InvalidHandler: the declaration of one of its handlers is broken.
            MessageConversionError: the payload is not what its name or a handler
                says. No handler was called.
            InvalidHeader: a header is reserved or cannot travel.
            MissingHeader: a handler requires a header that is not there.
            InvalidOption: the arguments do not fit together.
            SynchronousDispatch: an event loop is running here.

        """
        __traceback_hide__ = True
        if (
            route is None
            and headers is None
            and using is None
            and content_type is None
            and delay is None
            and expires is None
            and priority is None
            and _get_running_loop() is None
        ):
            run = self._by_type.get(type(payload))
            if run is not None:
                run(Message(payload, _current_message()))
                return
        self._refuse_running_loop()
        self._check_address(payload, route, content_type)
        by_type = self._by_type  # taken before the table: as in _run_for()
        table = self._registry.routes
        try:
            named = None if route is None else table.named_class(route)
            if route is not None and named is None:
                endpoints = table.subscribers_of_key(route)
                # Every payload is converted before any handler is called.
                payloads = [
                    _converted(each, payload, content_type) for each in endpoints
                ]
                run = self._compile(
                    endpoints, [type(each) for each in payloads], payloads
                )
                run = self._registry._with_taps(self.kind, run)
            else:
                if named is not None:
                    payload = _read(PayloadType(named), payload, content_type)
                # An object of a subclass has not the name, but may be sent by it.
                sent_by = None if type(payload) is named else route
                endpoints = table.subscribers_of(payload, sent_by)
                cached = by_type.get(type(payload)) if sent_by is None else None
                run = cached or self._registry._with_taps(
                    self.kind, self._compile_for(endpoints, payload)
                )
                if sent_by is None:
                    by_type[type(payload)] = run
        except MessageConversionError as error:
            error.at_entrance = _is_entrance()
            raise
        options = send_options(delay, expires, priority)
        for endpoint in endpoints:
            self._check_options(endpoint, options)
        run(self._message(payload, headers, using, options))

    def publish_recorded(self, payload: Any, headers: Mapping[str, Any]) -> None:
        """
        Publish an event that an aggregate has recorded, from inside its handling.

        Args:
            payload: the event.
            headers: what the message says of the aggregate; they are not passed on.

        """
        __traceback_hide__ = True
        run = self._by_type.get(type(payload))
        if run is None:
            by_type = self._by_type
            endpoints = self._registry.routes.subscribers_of(payload)
            run = self._compile_for(endpoints, payload)
            run = by_type[type(payload)] = self._registry._with_taps(self.kind, run)
        message = Message(payload, _current_message())
        message._aggregate = headers
        run(message)

    async def apublish(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Seconds | None = None,
        expires: Seconds | None = None,
        priority: int | None = None,
    ) -> None:
        """Do what :meth:`publish` does, in one hop to the thread of the database."""
        __traceback_hide__ = True
        await self._hop(
            payload,
            route=route,
            headers=headers,
            content_type=content_type,
            using=using,
            delay=delay,
            expires=expires,
            priority=priority,
        )

    def _compile_for(self, endpoints: tuple[Endpoint, ...], payload: Any) -> Run:
        """Return what handles the events of one class."""
        __traceback_hide__ = True
        if not endpoints:
            return _do_nothing
        cls = type(payload)
        if len(endpoints) == 1 and _is_taken_at_once(endpoints[0], payload):
            point = JoinPoint(endpoints[0], self, cls)
            return self._registry.pipelines.handling(point)
        if len(endpoints) == 1 and endpoints[0].channel is not None:
            return self._compile_alone(endpoints, cls)
        if all(_is_taken_at_once(each, payload) for each in endpoints):
            return self._compile_in_turn(endpoints, cls)
        return self._compile(endpoints, [cls] * len(endpoints), None)

    def _compile_alone(self, endpoints: tuple[Endpoint, ...], cls: type) -> Run:
        """Return what sends to the one handler there is, which is on a channel."""
        _, [(_, send_at_once)], _ = self._parts_of(endpoints, [cls])
        send_by_itself = self._compile(endpoints, [cls], None)

        def run_alone(message: Message) -> None:
            scope = scope_of(message)
            if scope is not None and scope.is_open and message.using is None:
                # In the command's transaction, and with nothing to hold it back for.
                send_at_once(message)
            else:
                send_by_itself(message)

        return run_alone

    def _compile_in_turn(self, endpoints: tuple[Endpoint, ...], cls: type) -> Run:
        """Return what calls handlers in turn, which all take the event as it is."""
        at_once, _sendings, uses_dependencies = self._parts_of(
            endpoints, [cls] * len(endpoints)
        )
        runs = [run for _index, run in at_once]

        def run_in_turn(message: Message) -> None:
            __traceback_hide__ = True
            for run in runs:
                run(message)

        whole: Run = run_in_turn
        if uses_dependencies:
            whole = with_dependencies(whole)
        return while_current(whole)

    def _compile(
        self,
        endpoints: tuple[Endpoint, ...],
        types: list[type],
        payloads: list[Any] | None,
    ) -> Run:
        """
        Return what calls handlers in turn, then sends to channels.

        Args:
            endpoints: in their order.
            types: of the payload that each is given.
            payloads: what each is given; None for the message's own, converted
                where a handler takes its JSON form.

        """
        compiled, key = self._compiled, (endpoints, tuple(types))
        parts = compiled.get(key)
        if parts is None:
            parts = compiled[key] = self._parts_of(endpoints, types)
        at_once, sendings, uses_dependencies = parts

        def run_all(message: Message) -> None:
            __traceback_hide__ = True
            given = payloads
            if given is None:
                given = [_given(each, message._payload) for each in endpoints]
            held: list[Any] = []
            if sendings:
                message._held = held
                for index, run in sendings:
                    run(_with(message, given[index]))
            for index, run in at_once:
                run(_with(message, given[index]))
            if held:
                release(message, held)

        whole: Run = run_all
        if uses_dependencies:
            whole = with_dependencies(whole)
        return while_current(whole)

    def _parts_of(
        self, endpoints: tuple[Endpoint, ...], types: list[type]
    ) -> tuple[list[tuple[int, Run]], list[tuple[int, Run]], bool]:
        """Return what is called at once, what sends, and whether Depends is used."""
        pipelines = self._registry.pipelines
        at_once: list[tuple[int, Run]] = []
        sendings: list[tuple[int, Run]] = []
        for index, (endpoint, cls) in enumerate(zip(endpoints, types, strict=True)):
            point = JoinPoint(endpoint, self, cls)
            if endpoint.channel is None:
                at_once.append((index, pipelines.subscription(point)))
            else:
                outlet = self._outlet(endpoint)
                run = pipelines.sending(point, outlet.put, alias_of=outlet.alias_for)
                sendings.append((index, run))
        plans = pipelines.plans_at(endpoints, self, types)
        return at_once, sendings, any(plan.uses_dependencies for plan in plans)


def _read(wanted: PayloadType, payload: Any, content_type: str | None) -> Any:
    __traceback_hide__ = True
    if content_type is None:
        return wanted.from_python(payload)
    check_content_type(content_type)
    return wanted.from_json(payload)


def _converted(endpoint: Endpoint, payload: Any, content_type: str | None) -> Any:
    """Return a payload as an endpoint takes it."""
    __traceback_hide__ = True
    wanted = endpoint.plan.payload
    if wanted is None:  # nobody looks at it, but broken text is refused all the same
        return _read(PayloadType(Any), payload, content_type)
    has_default = endpoint.plan.payload_default is not inspect.Parameter.empty
    if payload is None and content_type is None and has_default:
        return None
    return _read(wanted, payload, content_type)


def _given(endpoint: Endpoint, payload: Any) -> Any:
    """Return what an endpoint is given of an object: a channel stores it whole."""
    __traceback_hide__ = True
    if endpoint.channel is not None:
        return payload
    return _converted(endpoint, payload, None)


def _with(message: Message, payload: Any) -> Message:
    return message if payload is message._payload else message.replace(payload=payload)


def _is_taken_at_once(endpoint: Endpoint, payload: Any) -> bool:
    """Tell whether an endpoint is called here and now, with the object as it is."""
    wanted = endpoint.plan.payload
    return endpoint.channel is None and (wanted is None or wanted.takes(payload))


def _do_nothing(_message: Message) -> None:
    """Handle an event that nobody listens to."""


def _is_entrance() -> bool:
    """Tell whether no message is being handled here: a chain of them begins."""
    return not isinstance(_current_message(), Message)


@dataclasses.dataclass(frozen=True, slots=True)
class _Cancelled:
    """That the thread ended with a cancellation, on its way to the caller."""

    error: CancelledError


def hopping(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a function's async twin: it runs in the thread of the database."""

    def run(*args: Any, **kwargs: Any) -> Any:
        __traceback_hide__ = True
        try:
            return function(*args, **kwargs)
        except CancelledError as error:
            # Not as an exception of the future, which the bridge may never look at
            # once its caller is cancelled: asyncio would log that.
            return _Cancelled(error)

    in_thread = sync_to_async(run, thread_sensitive=True)

    async def hop(*args: Any, **kwargs: Any) -> Any:
        __traceback_hide__ = True
        # Each name travels through several calls, and what is None is as not given.
        kwargs = {name: each for name, each in kwargs.items() if each is not None}
        token = current.set(current.get())
        before = copy_context()
        try:
            result = await in_thread(*args, **kwargs)
            if isinstance(result, _Cancelled):
                raise result.error
        except CancelledError:
            # It has brought back the context of a thread that is still at it.
            for variable, value in before.items():
                if variable.get(None) is not value:
                    variable.set(value)
            raise
        finally:
            current.reset(token)
        return result

    return hop


def refuse_running_loop(entrance: str, instead: str) -> None:
    """
    Refuse to block an event loop.

    Raises:
        SynchronousDispatch: one is running in this thread.

    """
    if _get_running_loop() is not None:
        msg = (
            f"{entrance}() was called where an event loop is running, and would "
            f"block it. Use `{instead}`."
        )
        raise SynchronousDispatch(msg)


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
    if isinstance(bare, type) and issubclass(bare, _Bus):
        return _own_bus(bare, services)
    return None


def _own_bus(cls: type[_Bus], services: Services) -> Resolver | None:
    """
    Return what gives the one bus of a class of one's own that a registry has.

    Raises:
        Unfillable: it has none, and nothing else gives one, or it has several.

    """
    found = [bus for bus in list(services.owner._buses) if type(bus) is cls]
    name = cls.__qualname__
    if len(found) > 1:
        msg = (
            f"{len(found)} buses of the class {name} use this registry, and which is "
            f"meant is not said; give each a class, or use Depends(...)"
        )
        raise Unfillable(msg)
    if not found and conf.resolve("SERVICE_RESOLVER") is not None:
        return None
    if not found and cls not in services.overrides:
        msg = (
            f"no {name} has been made for this registry; write one, as in "
            f"`{name.lower()} = {name}()`, in a module that is imported before the "
            f"handlers"
        )
        raise Unfillable(msg)

    def get(_message: Message) -> Any:
        if cls in services.overrides:
            return services.overrides[cls]()
        return found[0]

    return get


register_filler(_bus_filler)

registry: Registry = Registry(discover)
"""The handlers of the installed apps."""

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
