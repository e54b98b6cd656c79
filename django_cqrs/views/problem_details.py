"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from django.db import connections
from django.http import HttpResponse

from django_cqrs.conversion.adapters import CODES_FAULT
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
    MessageConversionError,
    MissingHeader,
    NoHandlerFound,
    PreconditionError,
)

logger: Final = logging.getLogger("django_cqrs.http")

PROBLEM_JSON: Final = "application/problem+json"
"""The media type of problem details, RFC 9457."""


def problem_of(error: Exception) -> dict[str, Any] | None:
    """
    Return the problem details of an error that the request caused.

    They name the wrong fields and their faults. They contain no value that was sent,
    and nothing about the code: details for developers are logged.

    Returns:
        The members of the JSON object, including ``status``; None if the code is at
        fault, or the error is not one of this package.

    """
    if isinstance(error, NoHandlerFound) and error.at_entrance:
        logger.warning("Answered 404: %s", error)
        return problem(404, "Nothing here handles this message.")
    of_object = _status_of_object(error)
    if of_object is not None:
        status, detail = of_object
        logger.warning("Answered %d: %s", status, type(error).__name__)
        return problem(status, detail)
    if isinstance(error, PreconditionError):
        logger.warning("Answered %d: %s", error.status, error)
        return problem(error.status, str(error))
    if isinstance(error, MissingHeader):
        logger.warning("Answered 400: %s", error)
        return problem(400, "A required header is missing.")
    if isinstance(error, MessageConversionError) and _is_of_request(error):
        errors = [
            {"path": each.path, "detail": each.message, "code": each.code}
            for each in error.errors
        ]
        return problem(400, "The request is not valid; see errors.", errors=errors)
    return None


STALE: Final = "The object is at another version than If-Match says. Load it again."

OF_OBJECTS: Final = (
    *(AggregateNotFound, InvalidIdentifier),
    *(AggregateAlreadyExists, ConcurrencyError),
)
"""The faults of the object that a message is for."""

OF_REQUESTS: Final = (
    *(MessageConversionError, MissingHeader, NoHandlerFound, PreconditionError),
    *OF_OBJECTS,
)
"""All errors that a request may have caused."""


def _status_of_object(error: Exception) -> tuple[int, str] | None:
    """Return the status and text for the object of the request's own message."""
    if not isinstance(error, OF_OBJECTS) or not error.at_entrance:
        return None
    if isinstance(error, ConcurrencyError) and error.is_precondition:
        return (
            412,
            "The object is at another version than If-Match says. Load it again.",
        )
    if isinstance(error, ConcurrencyError):
        return 409, "The object was changed in the meantime. Load it again."
    if isinstance(error, AggregateAlreadyExists):
        return 409, "An object with this identifier already exists."
    if isinstance(error, InvalidIdentifier):
        return 400, "The identifier is not valid."
    if not error.is_named:
        return 400, "The message does not identify its object."
    return 404, "No object with this identifier exists."


def _is_of_request(error: MessageConversionError) -> bool:
    # Headers belong to the request too, and are converted for each handler with them.
    if any(each.code == CODES_FAULT for each in error.errors):
        return False  # no other payload would have worked
    of_headers = all(each.path.startswith("headers.") for each in error.errors)
    return error.at_entrance or of_headers


def problem(status: int, detail: str, **members: Any) -> dict[str, Any]:
    """Return problem details of the type ``about:blank``: the title is the status's."""
    details = {"detail": detail} if detail else {}
    return {"title": HTTPStatus(status).phrase, "status": status, **details, **members}


def with_status(details: Mapping[str, Any], status: int) -> dict[str, Any]:
    """Return problem details with another status, and the title of that status."""
    return {**details, **problem(status, "")}


def response_to(details: Mapping[str, Any]) -> HttpResponse:
    """Return problem details as a response, and undo the request's transaction."""
    roll_back_request()
    return HttpResponse(
        json.dumps(details), status=details["status"], content_type=PROBLEM_JSON
    )


def roll_back_request() -> None:
    """
    Roll back the transactions of ``ATOMIC_REQUESTS`` instead of committing.

    Answering an exception with a response hides it from Django, which would commit the
    earlier writes of the request.
    """
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
            connection.set_rollback(True)
