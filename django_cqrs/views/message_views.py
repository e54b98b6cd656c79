"""JSON over HTTP: views that turn a request into a command or a query."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from types import NoneType
from typing import Any, Final
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch, reverse
from django.views import View

from django_cqrs.annotations import name_of_type
from django_cqrs.buses.bus import GivenHeaders
from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.queries import QueryBus
from django_cqrs.buses.receipts import Receipt
from django_cqrs.buses.registries import command_bus, query_bus
from django_cqrs.conversion.adapters import to_jsonable
from django_cqrs.conversion.payloads import JSON, PayloadType, convert_result
from django_cqrs.exceptions import (
    CQRSError,
    InvalidHandler,
    MessageConversionError,
    NoHandlerFound,
    PreconditionError,
)
from django_cqrs.problems import Problem, Rule
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.table import RouteTable
from django_cqrs.sync import in_thread
from django_cqrs.views.conditions import (
    NO_VERSION,
    IfMatch,
    ensure_at,
    etag_of,
    if_match_of,
    is_cached,
    sent_with,
    version_shown_by,
    why_incomparable,
)
from django_cqrs.views.problem_details import (
    OF_REQUESTS,
    problem,
    problem_of,
    response_to,
    with_status,
)
from django_cqrs.views.requests import (
    RequestValues,
    Wanted,
    read_json,
    read_query,
    split_path,
)

_STATUSES: Final = frozenset(map(int, HTTPStatus))

_NOBODYS: Final = UUID(int=0)


class _Unsupported(Exception):
    """The body has an unsupported media type."""


class _MessageView(View):
    """The base of the four views: from a request to a message, and to a response."""

    bus: Any
    route: str | None = None
    message: Any = None
    status: int | None = None
    errors: Mapping[type[Exception], int] = {}
    requires_if_match: bool = False

    def __init__(self, **initkwargs: Any) -> None:
        """
        Take the arguments of ``as_view()``.

        Raises:
            TypeError: neither a route nor a message class is given, or both are; or a
                status is not one of HTTP's.

        """
        super().__init__(**initkwargs)
        if (self.route is None) == (self.message is None):
            name = type(self).__name__
            msg = f"{name}.as_view() takes either route= or message=."
            raise TypeError(msg)
        self._check_statuses()

    def _check_statuses(self) -> None:
        names = "status", "empty_status"
        given: dict[str, Any] = {name: getattr(self, name, None) for name in names}
        for cls, status in self.errors.items():
            if not (isinstance(cls, type) and issubclass(cls, Exception)):
                msg = f"{type(self).__name__} has errors={{{cls!r}: {status!r}}}, but "
                raise TypeError(f"{msg}{cls!r} is not an exception class.")
            given[f"errors[{cls.__name__}]"] = status
        for name, status in given.items():
            if status is not None and status not in _STATUSES:
                msg = f"{type(self).__name__} has {name}={status!r}, which is not one "
                raise TypeError(f"{msg}of HTTP's statuses.")

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
        return Problem(
            Rule.INCONVERTIBLE_VIEW,
            f"{type(self).__name__} with {self._given_name} takes "
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
        yield from view._other_problems()
        try:
            wanted = view._wanted()
        except (CQRSError, ImproperlyConfigured):
            return  # its handler has a check of its own
        yield from view._incomparable(wanted)
        fault = None if wanted.type is None else wanted.type.fault
        if fault is not None:
            yield view._inconvertible(wanted, fault)

    def _other_problems(self) -> Iterator[Problem]:
        yield from ()

    def _incomparable(self, wanted: Wanted) -> Iterator[Problem]:
        """Yield the problem of a version that is demanded and never compared."""
        yield from ()

    @property
    def _given_name(self) -> str:
        return f"route={self.route!r}" if self.route is not None else "message="

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

    def _read(self, request: HttpRequest, wanted: Wanted, given: RequestValues) -> Any:
        raise NotImplementedError

    def _known_endpoint(self) -> Endpoint | None:
        """Return the endpoint, None if only a message can tell it."""
        __traceback_hide__ = True
        table: RouteTable = self.bus.registry.routes
        cls = self.message
        if self.route is not None:
            endpoint = table.handler_of_key(self.bus.kind, self.route)
            cls = table.named_class(self.route) if endpoint is None else None
            if endpoint is not None:
                return endpoint
        is_class = isinstance(cls, type)
        return table.handler_of_class(self.bus.kind, cls) if is_class else None

    def _endpoint(self, payload: Any) -> Endpoint:
        __traceback_hide__ = True
        table: RouteTable = self.bus.registry.routes
        endpoint = None
        if self.route is not None:
            endpoint = table.handler_of_key(self.bus.kind, self.route)
        return endpoint or table.handler_of(self.bus.kind, payload)

    # To the bus and back -------------------------------------------------------------

    def _send(
        self,
        endpoint: Endpoint,
        payload: Any,
        headers: GivenHeaders | None,
        aggregate_id: Any,
    ) -> Any:
        raise NotImplementedError

    def _answer(self, request: HttpRequest, headers: GivenHeaders) -> HttpResponse:
        __traceback_hide__ = True
        try:
            wanted = self._sound()
            known = self._known_endpoint()
            aggregate_id, path = split_path(wanted, known, self.kwargs)
            condition = if_match_of(request, is_required=self.requires_if_match)
            given = self._given(path, wanted, condition)
            payload = self._read(request, wanted, given)
            endpoint = self._endpoint(payload)
            self._ensure_comparable(endpoint, condition, given)
        except _Unsupported:
            response = self.refusal(problem(415, f"Send {JSON}."))
            response["Accept"] = JSON
            return response
        except PreconditionError as error:
            return self._refusal_of(error)
        except (NoHandlerFound, MessageConversionError) as error:
            error.at_entrance = True
            return self._refusal_of(error)

        def send() -> Any:
            __traceback_hide__ = True
            return self._send(endpoint, payload, headers or None, aggregate_id)

        answered: tuple[type[Exception], ...] = (*OF_REQUESTS, *self.errors)
        try:
            result, version = sent_with(condition, send)
        except answered as error:
            return self._refusal_of(error)
        shown = version_shown_by(result)
        version = version if shown is None else shown
        return self._response(request, endpoint, result, version)

    def _given(
        self, path: Mapping[str, Any], wanted: Wanted, condition: IfMatch | None
    ) -> RequestValues:
        """Return the values of fields outside the body and the query string."""
        return RequestValues(path)

    def _ensure_comparable(
        self, endpoint: Endpoint, condition: IfMatch | None, given: RequestValues
    ) -> None:
        """Refuse a condition that nothing compares."""

    def _response(
        self, request: HttpRequest, endpoint: Endpoint, result: Any, version: int | None
    ) -> HttpResponse:
        raise NotImplementedError

    def _shown(self, result: Any) -> tuple[str, HttpResponse]:
        """Return the text of a result, and the response with it."""
        __traceback_hide__ = True
        text = convert_result(result, JSON)
        response = HttpResponse(text, status=self.status or 200, content_type=JSON)
        return text, response

    # Errors --------------------------------------------------------------------------

    def _refusal_of(self, error: Exception) -> HttpResponse:
        """Answer an error that is listed or is the request's; raise any other."""
        details = problem_of(error)
        listed = next((c for c in type(error).__mro__ if c in self.errors), None)
        if listed is not None:
            status = self.errors[listed]
            if details is None:
                details = problem(status, str(error))
            else:
                details = with_status(details, status)
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
    outcome_view: str | None = None

    def __init__(self, **initkwargs: Any) -> None:
        """
        Take the arguments of ``as_view()``.

        Raises:
            TypeError: as for every view, or `outcome_view` is not a string.

        """
        super().__init__(**initkwargs)
        if not isinstance(self.outcome_view, (str, NoneType)):
            msg = (
                f"{type(self).__name__} has outcome_view={self.outcome_view!r:.100}. "
                "Give the name of a URL, which is a string."
            )
            raise TypeError(msg)

    def _given(
        self, path: Mapping[str, Any], wanted: Wanted, condition: IfMatch | None
    ) -> RequestValues:
        field = wanted.version_field if condition is not None else None
        version = condition.only if condition is not None else None
        pair = None if field is None or version is None else (field, version)
        return RequestValues(to_jsonable(path), pair)

    def _ensure_comparable(
        self, endpoint: Endpoint, condition: IfMatch | None, given: RequestValues
    ) -> None:
        if condition is not None:
            is_in_payload = given.version is not None
            condition.ensure_comparable(endpoint, is_in_payload=is_in_payload)

    def _read(self, request: HttpRequest, wanted: Wanted, given: RequestValues) -> Any:
        __traceback_hide__ = True
        text = request.body
        if text and request.content_type != JSON:
            raise _Unsupported
        try:
            return read_json(wanted, text, given)
        except MessageConversionError as error:
            if given.version is None:
                self._explain(request, wanted, error)
            raise

    def _explain(
        self, request: HttpRequest, wanted: Wanted, error: MessageConversionError
    ) -> None:
        """Refuse an ``If-Match`` that says no version, if the payload requires one."""
        condition = if_match_of(request)
        field = wanted.version_field
        if condition is None or field is None:
            return
        missing = {each.path for each in error.errors if each.code == "missing"}
        if not missing & wanted.keys_of(field):
            return
        if condition.versions is not None and not condition.versions:
            raise PreconditionError(412, NO_VERSION) from error
        msg = "If-Match has to name exactly one version: send the ETag of the object."
        raise PreconditionError(400, msg) from error

    def _send(
        self,
        endpoint: Endpoint,
        payload: Any,
        headers: GivenHeaders | None,
        aggregate_id: Any,
    ) -> Any:
        __traceback_hide__ = True
        if endpoint.channel is None or self.outcome_view is None:
            return self.bus.dispatch(
                payload, route=self.route, headers=headers, aggregate_id=aggregate_id
            )
        self.outcome_url(_NOBODYS)  # a wrong name fails before anything is sent
        return self.bus.send(
            payload, route=self.route, headers=headers, aggregate_id=aggregate_id
        )

    def _other_problems(self) -> Iterator[Problem]:
        """Yield the problem of an `outcome_view` that is not a URL's name."""
        if self.outcome_view is None or type(self).outcome_url is not (
            _Commands.outcome_url
        ):
            return
        try:
            self.outcome_url(_NOBODYS)
        except NoReverseMatch as error:
            yield Problem(
                Rule.UNKNOWN_OUTCOME_VIEW,
                f"{type(self).__name__} has outcome_view={self.outcome_view!r}, which "
                f"is not the name of a URL for a message's id: {error}",
                'Add path("outcomes/<uuid:message_id>/", OutcomeView.as_view(), '
                f"name={self.outcome_view!r}).",
                self.message or type(self),
            )

    def _incomparable(self, wanted: Wanted) -> Iterator[Problem]:
        """Yield the problem of a version that is demanded and never compared."""
        if not self.requires_if_match or wanted.version_field is not None:
            return
        try:
            endpoint = self._known_endpoint()
        except (CQRSError, ImproperlyConfigured):
            return  # its handler has a check of its own
        rest = "" if endpoint is None else why_incomparable(endpoint)
        if rest:
            yield Problem(
                Rule.INCOMPARABLE_VIEW,
                f"{type(self).__name__} with {self._given_name} has "
                f"requires_if_match=True, but its message {rest}",
                "Remove requires_if_match=, or give the message's class a field that "
                "is marked with Version().",
                self.message or type(self),
            )

    def outcome_url(self, message_id: UUID) -> str:
        """
        Return the address at which a client learns what became of its command.

        Override it if the URL takes more than the id.

        Args:
            message_id: the id of the command, for the view named by `outcome_view`.

        """
        return reverse(self.outcome_view, kwargs={"message_id": message_id})

    def _response(
        self, request: HttpRequest, endpoint: Endpoint, result: Any, version: int | None
    ) -> HttpResponse:
        __traceback_hide__ = True
        if isinstance(result, Receipt) and result.is_sent:
            return JsonResponse(
                {"message_id": result.message_id},
                status=202,
                headers={"Location": self.outcome_url(result.message_id)},
            )
        if endpoint.channel is not None:
            return HttpResponse(status=202)
        if result is None:
            response = HttpResponse(status=self.status or 204)
        else:
            _, response = self._shown(result)
        if version is not None:
            response["ETag"] = etag_of(version)
        return response


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
        errors: exceptions that are answered with problem details, each with its status:
            ``{TicketClosed: 409, MessageConversionError: 422}``. The text of your own
            exceptions is shown.
        outcome_view: the name of the URL of an :class:`OutcomeView`: the answer for a
            handler on a channel has its address as ``Location``, and the message's id
            in its body.
        requires_if_match: whether a request without ``If-Match`` is answered with 428.

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

    empty_status: int | None = None

    def _read(self, request: HttpRequest, wanted: Wanted, given: RequestValues) -> Any:
        __traceback_hide__ = True
        return read_query(wanted, request.GET, given.path)

    def _response(
        self, request: HttpRequest, endpoint: Endpoint, result: Any, version: int | None
    ) -> HttpResponse:
        __traceback_hide__ = True
        if result is None and self.empty_status is not None:
            return self._empty(self.empty_status)
        try:
            ensure_at(version, if_match_of(request))
        except PreconditionError as error:
            return self._refusal_of(error)
        text, response = self._shown(result)
        if version is not None:
            etag = etag_of(version, text)
            if is_cached(request, etag):
                response = HttpResponseNotModified()
            response["ETag"] = etag
        return response

    def _empty(self, status: int) -> HttpResponse:
        if status < HTTPStatus.BAD_REQUEST:
            return HttpResponse(status=status)
        return self.refusal(problem(status, "Nothing was found."))

    def _send(
        self,
        endpoint: Endpoint,
        payload: Any,
        headers: GivenHeaders | None,
        aggregate_id: Any,
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
        empty_status: the status if the answer is None, such as 404 (with problem
            details) or 204; by default it is ``null`` with `status`.
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
