"""
Errors of messages as Django REST framework responses.

::

    REST_FRAMEWORK = {
        "EXCEPTION_HANDLER": "django_cqrs.contrib.rest_framework.exception_handler",
    }
"""

from __future__ import annotations

from typing import Any

from rest_framework import views
from rest_framework.response import Response

from django_cqrs.views.problem_details import PROBLEM_JSON, problem_of

__all__ = ["exception_handler"]


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """
    Answer errors that the request caused with problem details, others as before.

    Payloads that cannot be converted, missing headers, and missing or invalid
    identifiers are 400; messages without a handler and missing objects are 404; an
    object that somebody else has changed is 409, and 412 if the request named its
    version in ``If-Match``. As with every exception that REST
    framework answers, the transaction of ``ATOMIC_REQUESTS`` is rolled back.

    Args:
        error: the exception of a view.
        context: REST framework's context, with the view and the request.

    """
    details = problem_of(error)
    if details is None:
        response: Response | None = views.exception_handler(error, context)
        return response
    views.set_rollback()
    renderer = getattr(context.get("request"), "accepted_renderer", None)
    is_json = getattr(renderer, "format", "json") == "json"
    content_type = PROBLEM_JSON if is_json else None
    return Response(details, status=details["status"], content_type=content_type)
