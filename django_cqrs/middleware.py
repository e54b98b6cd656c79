"""Give all messages of an HTTP request the same headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asgiref.sync import (
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_cqrs import conf
from django_cqrs.messages import inherited_headers
from django_cqrs.sync import sync_callable

GetResponse = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


class MessageHeadersMiddleware:
    """
    Give messages the headers that ``DJANGO_CQRS["REQUEST_HEADERS"]`` returns.

    Every message sent while the request is handled gets them, and passes them on. Place
    the middleware below those that the callable depends on, such as
    ``AuthenticationMiddleware``. The callable may be ``async def``. Messages that a
    streaming response sends later do not get them.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        """
        Wrap the next middleware or view.

        Raises:
            MiddlewareNotUsed: the setting is missing.
            ImproperlyConfigured: it cannot be imported.

        """
        headers_of = conf.resolve("REQUEST_HEADERS")
        if headers_of is None:
            msg = 'DJANGO_CQRS["REQUEST_HEADERS"] is not set.'
            raise MiddlewareNotUsed(msg)
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        if _is_async(headers_of) and not self._is_async:
            headers_of = sync_callable(headers_of)
        elif self._is_async and not _is_async(headers_of):
            headers_of = sync_to_async(headers_of)  # it may read from the database
        self._headers_of: Callable[[HttpRequest], Any] = headers_of

    def __call__(
        self, request: HttpRequest
    ) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """
        Handle a request.

        Raises:
            InvalidHeader: the callable returned a reserved name, or a value of a type
                that cannot be stored.

        """
        if self._is_async:
            return self._acall(request)
        with inherited_headers(self._headers_of(request)):
            return self._get_response(request)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        headers: Mapping[str, Any] = await self._headers_of(request)
        with inherited_headers(headers):
            response = self._get_response(request)
            assert isinstance(response, Awaitable)  # noqa: S101 - as it is async
            return await response


def _is_async(function: Callable[..., Any]) -> bool:
    """Return whether a callable is asynchronous, even if it is an object."""
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)
