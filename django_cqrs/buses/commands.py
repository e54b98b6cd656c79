"""The command bus: one handler, in a transaction."""

from __future__ import annotations

from asyncio import _get_running_loop
from typing import Any, overload

from django_cqrs.buses.bus import (
    GivenHeaders,
    Host,
    R,
    SingleHandlerBus,
    current_message,
)
from django_cqrs.declaration.declarations import Kind
from django_cqrs.declaration.key_sources import KeySource
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import Command, Message
from django_cqrs.pipeline.idempotency import BusKey
from django_cqrs.pipeline.outlet import Seconds, send_options
from django_cqrs.retries import InstantRetry


class CommandBus(SingleHandlerBus):
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
        registry: Host | None = None,
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
            msg = "CommandBus(replay_outputs=...) also needs idempotency_key=."
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
                return run(Message(payload, current_message()))
        elif (
            using is None
            and aggregate_id is None
            and content_type is None
            and delay is None
            and expires is None
            and priority is None
            and (route is None or type(route) is str)
            and _get_running_loop() is None
        ):
            if route is None:
                run = self._by_type.get(type(payload))
            else:
                run = self._by_key.get((route, type(payload)))
            if run is not None:
                message = Message(payload, current_message())
                if headers:
                    message._add_headers(headers)
                return run(message)
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
        return await self._in_thread(
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
