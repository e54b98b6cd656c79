"""
Errors of messages as django-ninja responses.

::

    api = NinjaAPI()
    install_exception_handlers(api, {TicketClosed: 409})
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI

from django_cqrs.views.problem_details import (
    OF_REQUESTS,
    problem,
    problem_of,
    response_to,
)

__all__ = ["install_exception_handlers"]

_NONE: Mapping[type[Exception], int] = MappingProxyType({})


def install_exception_handlers(
    api: NinjaAPI, errors: Mapping[type[Exception], int] = _NONE
) -> None:
    """
    Answer errors that the request caused with problem details.

    Payloads that cannot be converted, missing headers, and missing or invalid
    identifiers are 400; messages without a handler and missing objects are 404; an
    object that somebody else has changed is 409, and 412 if the request named its
    version in ``If-Match``. Unlike ninja's own handlers, these
    roll back the transaction of ``ATOMIC_REQUESTS``, as an unhandled exception would.

    Args:
        api: the API that they are installed in.
        errors: exceptions of your own that are answered likewise, each with its status:
            ``{TicketClosed: 409}``. Their text is shown.

    """
    for cls in OF_REQUESTS:
        api.add_exception_handler(cls, _answer)
    for named, status in errors.items():
        api.add_exception_handler(named, partial(_answer_named, status))  # pyright: ignore[reportArgumentType] - its stub wants an instance


def _answer(_request: HttpRequest, error: Any) -> HttpResponse:
    details = problem_of(error)
    if details is None:  # the code is at fault
        raise error
    return response_to(details)


def _answer_named(status: int, _request: HttpRequest, error: Exception) -> HttpResponse:
    return response_to(problem(status, str(error)))
