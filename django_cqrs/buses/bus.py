"""The shared code of the three buses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar

from django.db import connections

from django_cqrs.channels.channel import Envelope
from django_cqrs.channels.retry_settings import project_instant_retry
from django_cqrs.conversion.payloads import JSON, PayloadType, check_content_type
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import InvalidOption, MessageConversionError, NoHandlerFound
from django_cqrs.messages import HeaderValue, Message, current
from django_cqrs.pipeline.compiler import Pipelines
from django_cqrs.pipeline.idempotency import BusKey
from django_cqrs.pipeline.outlet import NO_OPTIONS, Outlet, SendOptions
from django_cqrs.pipeline.stages import handler_alone
from django_cqrs.retries import InstantRetry
from django_cqrs.routing.endpoint import BUS_METHODS, Endpoint, JoinPoint, Run
from django_cqrs.routing.table import RouteTable
from django_cqrs.sync import in_thread, refuse_running_loop

R = TypeVar("R")

GivenHeaders = Mapping[str, HeaderValue]

current_message = current.get
set_current_message = current.set
reset_current_message = current.reset

JSON_TEXT: Final = {"content_type": JSON}
"""The keywords of a call with JSON text, beside its route and its headers."""

Known = tuple[Run, Callable[[Any], Any] | None]
"""A run, and its handler if nothing but the call of it with the payload is in it."""


class Host(Protocol):
    """The part of a registry that a bus uses."""

    @property
    def routes(self) -> RouteTable:
        """The route table."""
        ...

    @property
    def pipelines(self) -> Pipelines:
        """The compiler that puts interceptors around handlers."""
        ...

    def deliver(self, envelope: Envelope) -> None:
        """Handle a message from a channel."""
        ...

    def give_up(
        self,
        envelope: Envelope,
        error: Exception,
        *,
        channel: str,
        attempts: int,
        using: str,
    ) -> None:
        """Tell handlers that a channel gives up a message."""
        ...

    def with_taps(self, kind: Kind, run: Run) -> Run:
        """Return `run` preceded by the observers of every message."""
        ...

    def adopt(self, bus: Any) -> None:
        """Make a bus forget its routes when they change."""
        ...


class BaseBus:
    """The base of the three buses: a registry and the compiled routes."""

    kind: Kind
    default_registry: ClassVar[Host]
    """The registry of a bus that is given none: the project's."""
    _key: BusKey | None = None

    def __init__(self, *, registry: Host | None = None) -> None:
        """Use a registry, by default the global one."""
        self.registry: Host = (
            registry if registry is not None else self.default_registry
        )
        self._by_type: dict[type, Known] = {}
        self._by_key: dict[tuple[str | None, type], Known] = {}
        self._by_text: dict[str | None, _TextRoute] = {}
        self._compiled: dict[Any, Any] = {}
        self.registry.adopt(self)
        # One hop for all of it, since the transaction belongs to the thread.
        method = getattr(self, BUS_METHODS[self.kind].partition(".")[2])
        self._in_thread = in_thread(method)

    def _forget(self) -> None:
        self._by_type = {}
        self._by_key = {}
        self._by_text = {}
        self._compiled = {}

    def _refuse_running_loop(self) -> None:
        entrance = BUS_METHODS[self.kind]
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
        message = Message(payload, current_message())
        if headers:
            message._add_headers(headers)
        if using is not None:
            connections[using]  # raises for an unknown alias
            message._using = using
        if options is not NO_OPTIONS:
            message.handling.options = options
        return message

    def _known_run(self, payload: Any, route: str | None) -> Run | None:
        if route is None:
            known = self._by_type.get(type(payload))
        else:
            known = self._by_key.get((route, type(payload)))
        return None if known is None else known[0]

    def _outlet(self, endpoint: Endpoint) -> Outlet:
        key = endpoint, Outlet
        outlet = self._compiled.get(key)
        if outlet is None:
            registry = self.registry
            outlet = Outlet(
                endpoint, registry.routes.types, registry.deliver, registry.give_up
            )
            self._compiled[key] = outlet
        return outlet

    def _check_options(self, endpoint: Endpoint, options: SendOptions) -> None:
        """Refuse options that do not apply to the endpoint."""
        if options is NO_OPTIONS:
            return
        given = options.given()
        if endpoint.channel is not None:
            options.check(self._outlet(endpoint).channel)
            return
        msg = (
            f"{' and '.join(f'{name}=' for name in given)} cannot be given to "
            f"{endpoint.name}, which is called immediately: only a message that is "
            "sent to a channel can have a delay, an expiry or a priority."
        )
        raise InvalidOption(msg)

    def _refuse_aggregate_id(self, endpoint: Endpoint, aggregate_id: Any) -> None:
        if aggregate_id is None:
            return
        if endpoint.subject is None:
            reason = "is not a handler of an aggregate"
        elif endpoint.is_factory and endpoint.action is None:
            reason = "makes a new object, so its identifier cannot be given"
        else:
            return
        msg = f"aggregate_id= was given, but {endpoint.name} {reason}."
        raise InvalidOption(msg)

    def _check_address(
        self,
        payload: Any,
        route: str | None,
        content_type: str | None,
        method: str | None = None,
    ) -> None:
        __traceback_hide__ = True
        method = method or BUS_METHODS[self.kind]
        if route is not None and not isinstance(route, str):
            msg = f"route= must be a routing key (a string), not {route!r}."
            raise InvalidOption(msg)
        if route is None and content_type is not None:
            msg = (
                f"{method}(content_type=...) also needs route=: the text does not "
                "name its handler."
            )
            raise InvalidOption(msg)
        if route is None and payload is None:
            msg = f"{method}() needs a payload, or route= with an optional payload."
            raise InvalidOption(msg)
        if isinstance(payload, type) and route is None:
            name = payload.__qualname__
            msg = f"{method}() takes an instance, {name}(...), not the class {name}."
            raise InvalidOption(msg)

    def __repr__(self) -> str:
        """Return the name and the registry."""
        return f"<{type(self).__name__} of {self.registry!r}>"


class _TextRoute:
    """The reader of JSON text for one routing key, and the runs of its payloads."""

    __slots__ = ("compiled", "endpoint", "read", "runs")

    def __init__(
        self,
        endpoint: Endpoint,
        read: Callable[[Any], Any],
        compiled: dict[Any, Any],
    ) -> None:
        self.endpoint = endpoint
        self.read = read
        self.compiled = compiled
        self.runs: dict[type, Known] = {}


class SingleHandlerBus(BaseBus):
    """A bus whose messages have exactly one handler."""

    _retry: InstantRetry | None = None
    _is_direct: bool = False
    _is_default: bool = False

    @property
    def _policy(self) -> InstantRetry | None:
        """
        The failures to retry at once.

        Raises:
            ImproperlyConfigured: ``INSTANT_RETRY`` in the settings is not a policy.

        """
        return project_instant_retry() if self._is_default else self._retry

    def _run_for(
        self,
        payload: Any,
        route: str | None,
        content_type: str | None,
        using: str | None,
    ) -> tuple[Endpoint, Any, Run]:
        """Find the endpoint, and convert the payload to its type."""
        __traceback_hide__ = True
        try:
            return self._found_run_for(payload, route, content_type, using)
        except (MessageConversionError, NoHandlerFound) as error:
            error.at_entrance = is_at_entrance()
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
        # Read before the table: after a reset in between, no stale route may be found
        # here.
        by_type, by_key, by_text = self._by_type, self._by_key, self._by_text
        compiled = self._compiled
        given = payload
        table = self.registry.routes
        found = wanted = None
        if route is None:
            endpoint = table.handler_of(self.kind, payload)
        else:
            found = table.handler_of_key(self.kind, route)
            if found is not None:
                payload = converted_payload(found, payload, content_type)
                endpoint = found
                wanted = found.plan.payload or PayloadType(Any)
            else:
                wanted = PayloadType(table.named_class(route))
                payload = read_payload(wanted, payload, content_type)
                endpoint = table.handler_of(self.kind, payload)
        run = self._run_of(endpoint, using, type(payload), compiled)
        if using is None and wanted is None:
            by_type[type(payload)] = run, handler_alone(run)
        # Callers cannot make these grow: only handlers' keys get here.
        elif (
            using is None
            and content_type is None
            and wanted is not None
            and payload is given
            and wanted.takes_all_of(type(payload))
        ):
            by_key[route, type(payload)] = run, handler_alone(run)
        elif content_type == JSON and found is not None and wanted is not None:
            by_text.setdefault(route, _TextRoute(found, wanted.from_json, compiled))
        return endpoint, payload, run

    def _run_of(
        self,
        endpoint: Endpoint,
        using: str | None,
        cls: type,
        compiled: dict[Any, Any],
    ) -> Run:
        __traceback_hide__ = True
        key = endpoint, using, cls
        run: Run | None = compiled.get(key)
        if run is None:
            if using is not None:
                connections[using]  # raises for an unknown alias: no run is kept for it
            run = self._compile(endpoint, using, cls)
            run = compiled[key] = self.registry.with_taps(self.kind, run)
        return run

    def _read_known(self, known: _TextRoute, text: Any) -> tuple[Any, Known]:
        """Convert text for a known routing key; return the payload and its run."""
        __traceback_hide__ = True
        try:
            payload = known.read(text)
        except MessageConversionError as error:
            error.at_entrance = is_at_entrance()
            raise
        cls = type(payload)
        found = known.runs.get(cls)
        if found is None:
            run = self._run_of(known.endpoint, None, cls, known.compiled)
            found = known.runs[cls] = run, handler_alone(run)
        return payload, found

    def _compile(self, endpoint: Endpoint, using: str | None, cls: type) -> Run:
        point = JoinPoint(endpoint, self, cls)
        pipelines = self.registry.pipelines
        if endpoint.channel is not None:
            outlet = self._outlet(endpoint)
            return pipelines.sending(
                point,
                outlet.put,
                alias_of=outlet.alias_for,
                retry=self._policy,
                key=self._key,
            )
        return pipelines.handling(
            point,
            using=using,
            retry=self._policy,
            key=self._key,
            is_direct=self._is_direct,
        )


def read_payload(wanted: PayloadType, payload: Any, content_type: str | None) -> Any:
    """Return a payload of a type, from an object or from text."""
    __traceback_hide__ = True
    if content_type is None:
        return wanted.from_python(payload)
    check_content_type(content_type)
    return wanted.from_json(payload)


def converted_payload(
    endpoint: Endpoint, payload: Any, content_type: str | None
) -> Any:
    """Return a payload in the endpoint's type."""
    __traceback_hide__ = True
    wanted = endpoint.plan.payload
    if wanted is None:  # it is not used, but invalid text is refused all the same
        return read_payload(PayloadType(Any), payload, content_type)
    has_default = endpoint.plan.payload_default is not inspect.Parameter.empty
    if payload is None and content_type is None and has_default:
        return None
    return read_payload(wanted, payload, content_type)


def is_at_entrance() -> bool:
    """Return whether no message is being handled, so that a chain begins here."""
    return not isinstance(current_message(), Message)
