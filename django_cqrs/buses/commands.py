"""The command bus: one handler, in a transaction."""

from __future__ import annotations

from asyncio import _get_running_loop
from typing import Any, Unpack, overload

from django_cqrs.buses.bus import (
    JSON_TEXT,
    GivenHeaders,
    Host,
    R,
    SingleHandlerBus,
    current_message,
    reset_current_message,
    set_current_message,
)
from django_cqrs.buses.keywords import (
    AnyDispatchKeywords,
    DispatchKeywords,
    short_form_of,
)
from django_cqrs.buses.receipts import Receipt
from django_cqrs.channels.channel import Due
from django_cqrs.declaration.declarations import Kind
from django_cqrs.declaration.key_sources import KeySource
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import Command, Message, SentMessage
from django_cqrs.pipeline.idempotency import BusKey
from django_cqrs.pipeline.outlet import send_options
from django_cqrs.retries import InstantRetry
from django_cqrs.routing.endpoint import Endpoint, Run
from django_cqrs.sync import in_thread, refuse_running_loop, twin_of


class CommandBus(SingleHandlerBus):
    """
    Sends a command to its one handler, in a transaction.

    An instance of your own has its own policies::

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
        Create a bus of your own.

        Args:
            instant_retry: the failures to retry at once.
            idempotency_key: the key by which duplicates are recognised, which are not
                handled and get the first one's answer: an attribute of the payload, a
                header, or a callable that takes the message.
            replay_outputs: whether a duplicate sends again the messages that the first
                one sent to channels; a header: if it is present and true.
            registry: the registry with the handlers; by default the project's.

        Raises:
            InvalidOption: the arguments cannot be combined.

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
        self._send_in_thread = in_thread(self.send)

    def _dispatch(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Due | None = None,
        expires: Due | None = None,
        priority: int | None = None,
    ) -> Any:
        __traceback_hide__ = True
        if (
            using is None
            and aggregate_id is None
            and delay is None
            and expires is None
            and priority is None
            and content_type is None
            and (route is None or type(route) is str)
            and _get_running_loop() is None
        ):
            run = self._known_run(payload, route)
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
        _address(message, endpoint, aggregate_id)
        return run(message)

    @overload
    def dispatch(
        self,
        payload: Command[R],
        *,
        route: None = None,
        content_type: None = None,
        **keywords: Unpack[DispatchKeywords],
    ) -> R: ...
    @overload
    def dispatch(
        self, payload: Any = None, **keywords: Unpack[AnyDispatchKeywords]
    ) -> Any: ...
    @short_form_of(_dispatch)
    def dispatch(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        headers: GivenHeaders | None = None,
        **_others: Any,
    ) -> Any:
        """
        Send a command and return its handler's result.

        Args:
            payload: the command; with `route`, any value or none.
            route: a routing key, if the payload's class does not decide.
            aggregate_id: the identifier of the aggregate that handles it.
            headers: handlers read them and pass them on to messages that they send.
            content_type: ``"application/json"`` if the payload is such text.
            using: the database alias of the transaction; it overrides the handler's
                own.
            delay: for a handler on a channel, in seconds, a timedelta, or a datetime.
            expires: likewise.
            priority: likewise; higher first.

        Raises:
            NoHandlerFound: no handler takes it.
            DuplicateHandler: more than one handler takes it.
            InvalidHandler: its handler's declaration is broken.
            MessageConversionError: the payload does not fit the handler.
            InvalidHeader: a header is reserved or cannot be stored.
            MissingHeader: a header that the handler requires is missing.
            InvalidOption: the arguments cannot be combined.
            BrokenTransaction: the enclosing transaction can only be rolled back.
            SynchronousDispatch: an event loop is running here.

        """
        __traceback_hide__ = True
        known = None
        if not _others and _get_running_loop() is None:
            try:
                if route is None:
                    known = self._by_type[type(payload)]
                else:
                    known = self._by_key[route, type(payload)]
            except (KeyError, TypeError):  # not known yet, or a key of a wrong type
                pass
        elif _others == JSON_TEXT and type(route) is str:
            text_route = self._by_text.get(route)
            if text_route is not None and _get_running_loop() is None:
                payload, known = self._read_known(text_route, payload)
        if known is not None:
            run, handler = known
            message = Message(payload, current_message())
            if headers:
                message._add_headers(headers)
            if handler is None:
                return run(message)
            token = set_current_message(message)
            try:
                return handler(payload)
            finally:
                reset_current_message(token)
        return self._dispatch(payload, route=route, headers=headers, **_others)

    def run_for(self, endpoint: Endpoint, command: Any, using: str | None) -> Run:
        """Return the run that sends a command to an endpoint, wherever it routes."""
        return self._run_of(endpoint, using, type(command), self._compiled)

    @overload
    async def adispatch(
        self,
        payload: Command[R],
        *,
        route: None = None,
        content_type: None = None,
        **keywords: Unpack[DispatchKeywords],
    ) -> R: ...
    # For mypy, which first tries a wrong R from the context and would then use Any.
    @overload
    async def adispatch(
        self,
        payload: Command[Any],
        *,
        route: None = None,
        content_type: None = None,
        **keywords: Unpack[DispatchKeywords],
    ) -> object: ...
    @overload
    async def adispatch(
        self, payload: Any = None, **keywords: Unpack[AnyDispatchKeywords]
    ) -> Any: ...
    @twin_of(dispatch)
    async def adispatch(
        self, payload: Any = None, **keywords: Unpack[AnyDispatchKeywords]
    ) -> Any:
        """Do the same as :meth:`dispatch`, in one hop to the database's thread."""
        __traceback_hide__ = True
        return await self._in_thread(payload, **keywords)

    def send(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: GivenHeaders | None = None,
        content_type: str | None = None,
        using: str | None = None,
        delay: Due | None = None,
        expires: Due | None = None,
        priority: int | None = None,
    ) -> Receipt:
        """
        Send a command to its handler on a channel, and return a receipt.

        It sends what :meth:`dispatch` sends, which returns None for such a handler.

        Args:
            payload: as for :meth:`dispatch`, and so are the others.
            route: likewise.
            aggregate_id: likewise.
            headers: likewise.
            content_type: likewise.
            using: likewise.
            delay: likewise.
            expires: likewise.
            priority: likewise.

        Returns:
            The receipt, with the id of the message.

        Raises:
            InvalidOption: the handler is not on a channel, so that `dispatch` returns
                its result; or the arguments cannot be combined.
            CQRSError: as :meth:`dispatch`.

        """
        __traceback_hide__ = True
        refuse_running_loop("command_bus.send", "await command_bus.asend()")
        self._check_address(payload, route, content_type, "command_bus.send")
        endpoint, payload, run = self._run_for(payload, route, content_type, using)
        channel = endpoint.channel
        if channel is None:
            msg = (
                f"command_bus.send() was called for {endpoint.name}, which is not on a "
                "channel: it is called immediately, so there is nothing to wait for. "
                "Use command_bus.dispatch(), which returns its result, or give the "
                "handler a channel=."
            )
            raise InvalidOption(msg)
        options = send_options(delay, expires, priority)
        self._check_options(endpoint, options)
        self._refuse_aggregate_id(endpoint, aggregate_id)
        message = self._message(payload, headers, using, options)
        _address(message, endpoint, aggregate_id)
        stored: list[SentMessage] = []
        message.handling.stored = stored
        run(message)
        if stored:
            message_id, alias, is_duplicate = stored[-1]
            return Receipt(
                message_id,
                endpoint.name,
                channel,
                alias,
                is_duplicate=is_duplicate,
            )
        alias = self._outlet(endpoint).alias_for(message)
        return Receipt(message.message_id, endpoint.name, channel, alias, is_sent=False)

    @twin_of(send)
    async def asend(
        self, payload: Any = None, **keywords: Unpack[AnyDispatchKeywords]
    ) -> Receipt:
        """Do the same as :meth:`send`, in one hop to the database's thread."""
        __traceback_hide__ = True
        receipt: Receipt = await self._send_in_thread(payload, **keywords)
        return receipt


def _address(message: Message, endpoint: Endpoint, aggregate_id: Any) -> None:
    """Give a message the identifier of the object that it is for, if one is given."""
    if aggregate_id is not None and endpoint.subject is not None:
        given = endpoint.subject.identifier_given(aggregate_id, message)
        message._aggregate_id = given
