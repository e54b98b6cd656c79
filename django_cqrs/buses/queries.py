"""The query bus: one handler, with the answer as its result."""

from __future__ import annotations

from asyncio import _get_running_loop
from typing import Any, Literal, Unpack, overload

from django_cqrs.buses.bus import (
    JSON_TEXT,
    GivenHeaders,
    R,
    SingleHandlerBus,
    current_message,
    reset_current_message,
    set_current_message,
)
from django_cqrs.buses.keywords import AnyAskKeywords, AskKeywords, short_form_of
from django_cqrs.conversion.payloads import convert_result
from django_cqrs.declaration.declarations import Kind
from django_cqrs.messages import Message, Query
from django_cqrs.sync import twin_of


class QueryBus(SingleHandlerBus):
    """Sends a query to its one handler, without a transaction."""

    kind = Kind.QUERY

    def _ask(
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
        __traceback_hide__ = True
        if (
            using is None
            and aggregate_id is None
            and returns is None
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
        self._refuse_aggregate_id(endpoint, aggregate_id)
        message = self._message(payload, headers, using)
        if aggregate_id is not None and endpoint.subject is not None:
            subject = endpoint.subject
            message._aggregate_id = subject.identifier_given(aggregate_id, message)
        result = run(message)
        return result if returns is None else convert_result(result, returns)

    @overload
    def ask(
        self,
        payload: Any = None,
        *,
        returns: Literal["application/json"],
        **keywords: Unpack[AnyAskKeywords],
    ) -> str: ...
    @overload
    def ask(
        self,
        payload: Any = None,
        *,
        returns: type[R],
        **keywords: Unpack[AnyAskKeywords],
    ) -> R: ...
    @overload
    def ask(
        self,
        payload: Query[R],
        *,
        route: None = None,
        content_type: None = None,
        returns: None = None,
        **keywords: Unpack[AskKeywords],
    ) -> R: ...
    @overload
    def ask(
        self,
        payload: Any = None,
        *,
        returns: Any = None,
        **keywords: Unpack[AnyAskKeywords],
    ) -> Any: ...
    @short_form_of(_ask)
    def ask(
        self,
        payload: Any = None,
        *,
        route: str | None = None,
        headers: GivenHeaders | None = None,
        **_others: Any,
    ) -> Any:
        """
        Send a query and return the answer.

        Args:
            payload: the query; with `route`, any value or none.
            route: a routing key, if the payload's class does not decide.
            aggregate_id: the identifier of the aggregate that answers.
            headers: the handler reads them and passes them on to messages that it
                sends.
            content_type: ``"application/json"`` if the payload is such text.
            using: a database alias, which the handler can read from its message.
            returns: a type to convert the answer to, or ``"application/json"``
                for JSON text.

        Raises:
            NoHandlerFound: no handler takes it.
            DuplicateHandler: more than one handler takes it.
            InvalidHandler: its handler's declaration is broken.
            MessageConversionError: the payload does not fit the handler, or the answer
                cannot be converted.
            InvalidHeader: a header is reserved or cannot be stored.
            MissingHeader: a header that the handler requires is missing.
            InvalidOption: the arguments cannot be combined.
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
        return self._ask(payload, route=route, headers=headers, **_others)

    @overload
    async def aask(
        self,
        payload: Any = None,
        *,
        returns: Literal["application/json"],
        **keywords: Unpack[AnyAskKeywords],
    ) -> str: ...
    @overload
    async def aask(
        self,
        payload: Any = None,
        *,
        returns: type[R],
        **keywords: Unpack[AnyAskKeywords],
    ) -> R: ...
    @overload
    async def aask(
        self,
        payload: Query[R],
        *,
        route: None = None,
        content_type: None = None,
        returns: None = None,
        **keywords: Unpack[AskKeywords],
    ) -> R: ...
    # For mypy, which first tries a wrong R from the context and would then use Any.
    @overload
    async def aask(
        self,
        payload: Query[Any],
        *,
        route: None = None,
        content_type: None = None,
        returns: None = None,
        **keywords: Unpack[AskKeywords],
    ) -> object: ...
    @overload
    async def aask(
        self,
        payload: Any = None,
        *,
        returns: Any = None,
        **keywords: Unpack[AnyAskKeywords],
    ) -> Any: ...
    @twin_of(ask)
    async def aask(
        self,
        payload: Any = None,
        *,
        returns: Any = None,
        **keywords: Unpack[AnyAskKeywords],
    ) -> Any:
        """Do the same as :meth:`ask`, in one hop to the database's thread."""
        __traceback_hide__ = True
        return await self._in_thread(payload, returns=returns, **keywords)
