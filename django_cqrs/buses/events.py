"""The event bus: all handlers, one after another."""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Mapping
from typing import Any, Final, Unpack

from django_cqrs.buses.bus import (
    BaseBus,
    GivenHeaders,
    converted_payload,
    current_message,
    is_at_entrance,
    read_payload,
    reset_current_message,
    set_current_message,
)
from django_cqrs.buses.keywords import (
    OtherPublishKeywords,
    PublishKeywords,
    short_form_of,
)
from django_cqrs.channels.channel import Due
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.messages import Message, scope_of
from django_cqrs.parameters.services import with_dependencies
from django_cqrs.pipeline.outlet import release, send_options
from django_cqrs.pipeline.stages import handler_alone, while_current
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Run
from django_cqrs.sync import twin_of


class EventBus(BaseBus):
    """Publishes an event to all of its handlers, one after another."""

    kind = Kind.EVENT

    def _publish(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Due | None = None,
        expires: Due | None = None,
        priority: int | None = None,
    ) -> None:
        __traceback_hide__ = True
        if (
            using is None
            and content_type is None
            and delay is None
            and expires is None
            and priority is None
            and (route is None or type(route) is str)
            and _get_running_loop() is None
        ):
            run = self._known_run(payload, route)
            if run is not None:
                message = Message(payload, current_message())
                if headers:
                    message._add_headers(headers)
                run(message)
                return
        self._refuse_running_loop()
        endpoints, payload, run = self._run_for(payload, route, content_type)
        options = send_options(delay, expires, priority)
        for endpoint in endpoints:
            self._check_options(endpoint, options)
        run(self._message(payload, headers, using, options))

    @short_form_of(_publish)
    def publish(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        headers: GivenHeaders | None = None,
        **_others: Unpack[OtherPublishKeywords],
    ) -> None:
        """
        Call every handler of an event, by priority and then by registration.

        The first exception ends the call: it is passed to the caller, and later
        handlers are not called.

        Args:
            payload: the event; with `route`, any value or none.
            route: an event's name, if its class does not decide.
            headers: handlers read them and pass them on to messages that they send.
            content_type: ``"application/json"`` if the payload is such text.
            using: a database alias, which handlers can read from their message.
            delay: for handlers on a channel, in seconds, a timedelta, or a datetime.
            expires: likewise.
            priority: likewise; higher first.

        Raises:
            InvalidHandler: the declaration of one of its handlers is broken.
            MessageConversionError: the payload does not fit its name or a handler. No
                handler was called.
            InvalidHeader: a header is reserved or cannot be stored.
            MissingHeader: a header that a handler requires is missing.
            InvalidOption: the arguments cannot be combined.
            SynchronousDispatch: an event loop is running here.

        """
        __traceback_hide__ = True
        if not _others and _get_running_loop() is None:
            try:
                if route is None:
                    run, handler = self._by_type[type(payload)]
                else:
                    run, handler = self._by_key[route, type(payload)]
            except (KeyError, TypeError):  # not known yet, or a key of a wrong type
                pass
            else:
                message = Message(payload, current_message())
                if headers:
                    message._add_headers(headers)
                if handler is None:
                    run(message)
                    return
                token = set_current_message(message)
                try:
                    handler(payload)
                finally:
                    reset_current_message(token)
                return
        self._publish(payload, route=route, headers=headers, **_others)

    def _run_for(
        self, payload: Any, route: str | None, content_type: str | None
    ) -> tuple[tuple[Endpoint, ...], Any, Run]:
        """Find the endpoints; convert the payload to the class of its name, if any."""
        __traceback_hide__ = True
        self._check_address(payload, route, content_type)
        # Read before the table: as on the other buses.
        by_type, by_key, compiled = self._by_type, self._by_key, self._compiled
        given = payload
        is_kept = False
        table = self.registry.routes
        try:
            named = None if route is None else table.named_class(route)
            if route is not None and named is None:
                endpoints = table.subscribers_of_key(route)
                # Every payload is converted before any handler is called.
                payloads = [
                    converted_payload(each, payload, content_type) for each in endpoints
                ]
                is_kept = content_type is None and _all_take(endpoints, type(payload))
                if is_kept:
                    run = self._run_of(endpoints, payload, compiled)
                else:
                    types = [type(each) for each in payloads]
                    run = self._compile(endpoints, types, payloads)
                    run = self.registry.with_taps(self.kind, run)
            else:
                if named is not None:
                    payload = read_payload(PayloadType(named), payload, content_type)
                # An object of a subclass does not have the name, but may be sent by it.
                sent_by = None if type(payload) is named else route
                endpoints = table.subscribers_of(payload, sent_by)
                cached = by_type.get(type(payload)) if sent_by is None else None
                if cached is not None:
                    run, _handler = cached
                else:
                    run = self._compile_for(endpoints, payload)
                    run = self.registry.with_taps(self.kind, run)
                if sent_by is None:
                    by_type[type(payload)] = run, handler_alone(run)
                    is_kept = payload is given
        except MessageConversionError as error:
            error.at_entrance = is_at_entrance()
            raise
        if is_kept and route is not None:
            if len(by_key) >= MOST_KEYS:  # those in use come back at once
                by_key.clear()
            by_key[route, type(payload)] = run, handler_alone(run)
        return endpoints, payload, run

    def publish_recorded(self, payload: Any, headers: Mapping[str, Any]) -> None:
        """
        Publish an event that an aggregate has recorded, while handling a message.

        Args:
            payload: the event.
            headers: the headers about the aggregate; they are not passed on.

        """
        __traceback_hide__ = True
        message = Message(payload, current_message())
        message._aggregate = headers
        self.publish_message(message)

    def publish_message(self, message: Message) -> None:
        """
        Publish an event whose message exists, with its id, time and headers.

        Args:
            message: the message of a plain object.

        """
        __traceback_hide__ = True
        self._run_by_class(message._payload)(message)

    def has_handlers(self, event: Any) -> bool:
        """Return whether anybody is told of an event, a test that watches too."""
        return self._run_by_class(event) is not _do_nothing

    def _run_by_class(self, payload: Any) -> Run:
        """Return the run for an object, which its class decides."""
        __traceback_hide__ = True
        run = self._known_run(payload, None)
        if run is None:
            by_type = self._by_type
            endpoints = self.registry.routes.subscribers_of(payload)
            run = self._compile_for(endpoints, payload)
            run = self.registry.with_taps(self.kind, run)
            by_type[type(payload)] = run, handler_alone(run)
        return run

    def run_for(self, endpoint: Endpoint, event: Any) -> Run:
        """Return the run that reaches one handler of an event, and no other."""
        return self._compile_for((endpoint,), event)

    @twin_of(publish)
    async def apublish(
        self, payload: Any = None, **keywords: Unpack[PublishKeywords]
    ) -> None:
        """Do the same as :meth:`publish`, in one hop to the database's thread."""
        __traceback_hide__ = True
        await self._in_thread(payload, **keywords)

    def _run_of(
        self,
        endpoints: tuple[Endpoint, ...],
        payload: Any,
        compiled: dict[Any, Any],
    ) -> Run:
        """Return the run for the events of one class that all endpoints take as is."""
        key = endpoints, type(payload)
        run: Run | None = compiled.get(key)
        if run is None:
            run = self._compile_for(endpoints, payload)
            run = compiled[key] = self.registry.with_taps(self.kind, run)
        return run

    def _compile_for(self, endpoints: tuple[Endpoint, ...], payload: Any) -> Run:
        """Return the run for events of one class."""
        __traceback_hide__ = True
        if not endpoints:
            return _do_nothing
        cls = type(payload)
        if len(endpoints) == 1 and _is_taken_at_once(endpoints[0], payload):
            point = JoinPoint(endpoints[0], self, cls)
            return self.registry.pipelines.handling(point)
        if len(endpoints) == 1 and endpoints[0].channel is not None:
            return self._compile_alone(endpoints, cls)
        if all(_is_taken_at_once(each, payload) for each in endpoints):
            return self._compile_in_turn(endpoints, cls)
        return self._compile(endpoints, [cls] * len(endpoints), None)

    def _compile_alone(self, endpoints: tuple[Endpoint, ...], cls: type) -> Run:
        """Return the run that sends to the only handler, which is on a channel."""
        _, [(_, send_at_once)], _ = self._parts_of(endpoints, [cls])
        send_by_itself = self._compile(endpoints, [cls], None)

        def run_alone(message: Message) -> None:
            scope = scope_of(message)
            if scope is not None and scope.is_open and message.using is None:
                # In the command's transaction, with no handler to wait for.
                send_at_once(message)
            else:
                send_by_itself(message)

        return run_alone

    def _compile_in_turn(self, endpoints: tuple[Endpoint, ...], cls: type) -> Run:
        """Return the run that calls handlers in turn, with the event unconverted."""
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
        Return the run that calls handlers in turn, then sends to channels.

        Args:
            endpoints: the endpoints, in order.
            types: the type of each one's payload.
            payloads: each one's payload; None for the message's own, converted if a
                handler takes its JSON form.

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
                message.handling.held = held
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
        """Return direct calls, sends, and whether Depends is used."""
        pipelines = self.registry.pipelines
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


MOST_KEYS: Final = 1000
"""So many keys are remembered: callers may choose those that a pattern matches."""


def _all_take(endpoints: tuple[Endpoint, ...], cls: type) -> bool:
    """Return whether there are endpoints, and all take each object of a class as is."""
    return bool(endpoints) and all(
        each.channel is None
        and (each.plan.payload is None or each.plan.payload.takes_all_of(cls))
        for each in endpoints
    )


def _given(endpoint: Endpoint, payload: Any) -> Any:
    """Return an endpoint's payload for an object: a channel stores it unconverted."""
    __traceback_hide__ = True
    if endpoint.channel is not None:
        return payload
    return converted_payload(endpoint, payload, None)


def _with(message: Message, payload: Any) -> Message:
    return message if payload is message._payload else message.replace(payload=payload)


def _is_taken_at_once(endpoint: Endpoint, payload: Any) -> bool:
    """Return whether an endpoint is called at once, with the unconverted object."""
    wanted = endpoint.plan.payload
    return endpoint.channel is None and (wanted is None or wanted.takes(payload))


def _do_nothing(_message: Message) -> None:
    """Handle an event that has no handler."""
