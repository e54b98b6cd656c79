"""JSON over HTTP: views that turn a request into a command or a query."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.views import View

from django_cqrs.annotations import name_of_type
from django_cqrs.buses.bus import GivenHeaders
from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.queries import QueryBus
from django_cqrs.buses.registries import command_bus, query_bus
from django_cqrs.conversion.adapters import to_jsonable
from django_cqrs.conversion.payloads import JSON, PayloadType, convert_result
from django_cqrs.exceptions import (
    CQRSError,
    InvalidHandler,
    MessageConversionError,
    MissingHeader,
    NoHandlerFound,
)
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.table import RouteTable
from django_cqrs.sync import in_thread
from django_cqrs.views.problem_details import (
    OF_OBJECTS,
    problem,
    problem_of,
    response_to,
)
from django_cqrs.views.requests import Wanted, aggregate_id_in, read_json, read_query


class _Unsupported(Exception):
    """The body has an unsupported media type."""


class _MessageView(View):
    """The base of the four views: from a request to a message, and to a response."""

    bus: Any
    route: str | None = None
    message: Any = None
    status: int | None = None
    errors: Mapping[type[Exception], int] = {}

    def __init__(self, **initkwargs: Any) -> None:
        """
        Take the arguments of ``as_view()``.

        Raises:
            TypeError: neither a route nor a message class is given, or both are.

        """
        super().__init__(**initkwargs)
        if (self.route is None) == (self.message is None):
            name = type(self).__name__
            msg = f"{name}.as_view() takes either route= or message=."
            raise TypeError(msg)

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view function, after checking its arguments."""
        view = super().as_view(**initkwargs)
        cls(**initkwargs)
        return view

    # From the request to the payload -------------------------------------------------

    def _sound(self) -> Wanted:
        """Return the wanted payload, if requests can express it."""
        wanted = self._wanted()
        fault = None if wanted.type is None else wanted.type.fault
        if fault is not None:
            raise InvalidHandler(str(self._inconvertible(wanted, fault)))
        return wanted

    def _inconvertible(self, wanted: Wanted, fault: str) -> Problem:
        assert wanted.type is not None  # noqa: S101 - it has a fault
        given = f"route={self.route!r}" if self.route is not None else "message="
        return Problem(
            Rule.INCONVERTIBLE_VIEW,
            f"{type(self).__name__} with {given} takes "
            f"{name_of_type(wanted.type.annotation)}, which cannot be created from a "
            f"request: {fault}.",
            "Give every field of the class a type that JSON can represent, or write "
            "a @converter. Import the names used in annotations at the top of the "
            "module.",
            self.message or type(self),
        )

    @classmethod
    def cqrs_problems(cls, initkwargs: Mapping[str, Any]) -> Iterator[Problem]:
        """
        Yield the problems of a view, for the system check.

        Args:
            initkwargs: the arguments of ``as_view()``.

        """
        view = cls(**initkwargs)
        try:
            wanted = view._wanted()
        except (CQRSError, ImproperlyConfigured):
            return  # its handler has a check of its own
        fault = None if wanted.type is None else wanted.type.fault
        if fault is not None:
            yield view._inconvertible(wanted, fault)

    def _wanted(self) -> Wanted:
        if self.message is not None:
            return Wanted(PayloadType(self.message))
        table = self.bus.registry.routes
        endpoint = table.handler_of_key(self.bus.kind, self.route)
        if endpoint is None:
            return Wanted(PayloadType(table.named_class(self.route)))
        plan = endpoint.plan
        has_default = plan.payload_default is not inspect.Parameter.empty
        return Wanted(plan.payload, plan.payload_name, has_default)

    def _read(self, request: HttpRequest, wanted: Wanted) -> Any:
        raise NotImplementedError

    def _endpoint(self, payload: Any) -> Endpoint:
        __traceback_hide__ = True
        table: RouteTable = self.bus.registry.routes
        endpoint = None
        if self.route is not None:
            endpoint = table.handler_of_key(self.bus.kind, self.route)
        return endpoint or table.handler_of(self.bus.kind, payload)

    # To the bus and back -------------------------------------------------------------

    def _send(
        self, payload: Any, headers: GivenHeaders | None, aggregate_id: Any
    ) -> Any:
        raise NotImplementedError

    def _answer(self, request: HttpRequest, headers: GivenHeaders) -> HttpResponse:
        __traceback_hide__ = True
        try:
            wanted = self._sound()
            payload = self._read(request, wanted)
            endpoint = self._endpoint(payload)
        except _Unsupported:
            response = self.refusal(problem(415, f"Send {JSON}."))
            response["Accept"] = JSON
            return response
        except (NoHandlerFound, MessageConversionError) as error:
            error.at_entrance = True
            return self._refusal_of(error)
        answered: tuple[type[Exception], ...]
        answered = (MissingHeader, MessageConversionError, *OF_OBJECTS, *self.errors)
        aggregate_id = aggregate_id_in(wanted, endpoint, self.kwargs)
        try:
            result = self._send(payload, headers or None, aggregate_id)
        except answered as error:
            return self._refusal_of(error)
        return self._response(endpoint, result)

    def _response(self, endpoint: Endpoint, result: Any) -> HttpResponse:
        __traceback_hide__ = True
        text = convert_result(result, JSON)
        return HttpResponse(text, status=self.status or 200, content_type=JSON)

    # Errors --------------------------------------------------------------------------

    def _refusal_of(self, error: Exception) -> HttpResponse:
        """Answer an error that is listed or is the request's; raise any other."""
        for cls in type(error).__mro__:
            if cls in self.errors:
                return self.refusal(problem(self.errors[cls], str(error)))
        details = problem_of(error)
        if details is None:
            raise error
        return self.refusal(details)

    def refusal(self, details: dict[str, Any]) -> HttpResponse:
        """
        Return the response with problem details; override it to add to them.

        Args:
            details: ``title``, ``status``, ``detail`` and perhaps ``errors``.

        """
        return response_to(details)


class _Commands(_MessageView):
    """
    The shared part of the views of commands.

    A JSON body is the payload: an object's fields for a class, or the value itself for
        a handler of one plain value. Values captured from the URL's path are added to
        the fields.
    """

    bus: CommandBus = command_bus

    def _read(self, request: HttpRequest, wanted: Wanted) -> Any:
        __traceback_hide__ = True
        text = request.body
        if text and request.content_type != JSON:
            raise _Unsupported
        return read_json(wanted, text, to_jsonable(self.kwargs))

    def _send(
        self, payload: Any, headers: GivenHeaders | None, aggregate_id: Any
    ) -> Any:
        __traceback_hide__ = True
        return self.bus.dispatch(
            payload, route=self.route, headers=headers, aggregate_id=aggregate_id
        )

    def _response(self, endpoint: Endpoint, result: Any) -> HttpResponse:
        __traceback_hide__ = True
        if endpoint.channel is not None:
            return HttpResponse(status=202)
        if result is None:
            return HttpResponse(status=self.status or 204)
        return super()._response(endpoint, result)


class CommandView(_Commands):
    """
    Turns a POST request into a command, and its result into JSON.

    ::

        path("api/tickets/", CommandView.as_view(message=OpenTicket, status=201))

    It works under WSGI and under ASGI, with CSRF protection and with Django's mixins
    for permissions, and you can derive from it as from any Django view.

    Attributes:
        route: the routing key of the command; give this or `message`.
        message: the class of the command.
        bus: the bus that dispatches it.
        status: the status of an answer; by default 200, and 204 without a result.
            A command for a handler on a channel is always answered with 202.
        errors: exceptions of handlers that are answered with problem details, each with
            its status: ``{TicketClosed: 409}``. Their text is shown.

    """

    def headers_from(self, request: HttpRequest) -> GivenHeaders:
        """Return the headers of the message; by default only the request's own."""
        return {}

    def post(self, request: HttpRequest, *_args: Any, **_kwargs: Any) -> HttpResponse:
        """Dispatch the command in the body."""
        __traceback_hide__ = True
        return self._answer(request, self.headers_from(request))


class AsyncCommandView(_Commands):
    """
    The counterpart of :class:`CommandView` for async decorators and overrides.

    The command still runs in the database's thread, in one hop.
    """

    async def headers_from(self, request: HttpRequest) -> GivenHeaders:
        """Return the headers of the message; by default only the request's own."""
        return {}

    async def post(
        self, request: HttpRequest, *_args: Any, **_kwargs: Any
    ) -> HttpResponse:
        """Dispatch the command in the body."""
        __traceback_hide__ = True
        headers = await self.headers_from(request)
        response: HttpResponse = await in_thread(self._answer)(request, headers)
        return response


class _Queries(_MessageView):
    """
    The shared part of the views of queries.

    The query string's parameters are the payload's fields, or the plain value of a
    handler, by its parameter's name. Values captured from the path are added.
    """

    bus: QueryBus = query_bus

    def _read(self, request: HttpRequest, wanted: Wanted) -> Any:
        __traceback_hide__ = True
        return read_query(wanted, request.GET, self.kwargs)

    def _send(
        self, payload: Any, headers: GivenHeaders | None, aggregate_id: Any
    ) -> Any:
        __traceback_hide__ = True
        return self.bus.ask(
            payload, route=self.route, headers=headers, aggregate_id=aggregate_id
        )


class QueryView(_Queries):
    """
    Turns a GET request into a query, and the answer into JSON.

    ::

        path("api/tickets/list/", QueryView.as_view(route="ticket.list"))

    Attributes:
        route: the routing key of the query; give this or `message`.
        message: the class of the query.
        bus: the bus that answers it.
        status: the status of the answer, by default 200.
        errors: as for :class:`CommandView`.

    """

    def headers_from(self, request: HttpRequest) -> GivenHeaders:
        """Return the headers of the message; by default only the request's own."""
        return {}

    def get(self, request: HttpRequest, *_args: Any, **_kwargs: Any) -> HttpResponse:
        """Ask the query in the URL."""
        __traceback_hide__ = True
        return self._answer(request, self.headers_from(request))


class AsyncQueryView(_Queries):
    """The counterpart of :class:`QueryView` for async decorators and overrides."""

    async def headers_from(self, request: HttpRequest) -> GivenHeaders:
        """Return the headers of the message; by default only the request's own."""
        return {}

    async def get(
        self, request: HttpRequest, *_args: Any, **_kwargs: Any
    ) -> HttpResponse:
        """Ask the query in the URL."""
        __traceback_hide__ = True
        headers = await self.headers_from(request)
        response: HttpResponse = await in_thread(self._answer)(request, headers)
        return response
