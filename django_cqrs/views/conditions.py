"""
Conditional requests (RFC 9110, section 13) for objects that have a version.

The entity tag of an object at version 7 is ``"7"``. Where a response shows the object,
a hash of what it shows follows: ``"7-5d41402a"``. So a cache never keeps an old
representation of a version, and ``If-Match`` compares only the version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from django.http import HttpRequest
from django.utils.http import parse_etags

from django_cqrs.buses.bus import GivenHeaders, SingleHandlerBus
from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.queries import QueryBus
from django_cqrs.buses.registries import command_bus, query_bus
from django_cqrs.conversion.adapters import to_json
from django_cqrs.exceptions import (
    ConcurrencyError,
    FieldError,
    MessageConversionError,
    PreconditionError,
)
from django_cqrs.modelling.conditions import ConditionalOrigin, conditional
from django_cqrs.modelling.identifiers import version_field
from django_cqrs.routing.endpoint import Endpoint, payload_types_of
from django_cqrs.routing.table import RouteTable
from django_cqrs.sync import in_thread
from django_cqrs.views.problem_details import STALE
from django_cqrs.views.requests import IN_IF_MATCH


class IfMatch(NamedTuple):
    """The condition in a request's ``If-Match``."""

    versions: frozenset[int] | None
    """The versions that it names; None for ``*``, which any version matches."""

    @property
    def only(self) -> int | None:
        """The version, if it names exactly one."""
        versions = self.versions or ()
        return next(iter(versions)) if len(versions) == 1 else None

    def ensure_comparable(self, endpoint: Endpoint, *, is_in_payload: bool) -> None:
        """
        Refuse a condition that nothing would compare before the handler is called.

        Args:
            endpoint: the handler.
            is_in_payload: whether the payload has the version.

        Raises:
            PreconditionError: 412, since an object without a version matches none.

        """
        if self.versions is None or is_in_payload:
            return
        rest = why_incomparable(endpoint)
        if rest:
            raise PreconditionError(412, f"This message {rest}")


def why_incomparable(endpoint: Endpoint) -> str:
    """Return why only a payload could carry the version; empty if it can be known."""
    if endpoint.channel is not None:
        return "is handled later, and cannot be compared with If-Match."
    if not has_version(endpoint) or (endpoint.is_factory and endpoint.action is None):
        return "is for no object with a version that If-Match could name."
    return ""


NO_VERSION: Final = "If-Match names no version of this object: send its strong ETag."
_ETAG: Final = re.compile(r'"([0-9]{1,18})(?:-[0-9a-f]+)?"', re.ASCII)


def if_match_of(request: HttpRequest, *, is_required: bool = False) -> IfMatch | None:
    """
    Return the condition in a request's ``If-Match``, None without one.

    A weak tag, and a tag that is none of ours, match no version.

    Args:
        request: the request.
        is_required: whether a request without it is refused.

    Raises:
        PreconditionError: it is malformed (400), or missing and required (428).

    """
    text = request.META.get("HTTP_IF_MATCH", "").strip()
    if not text:
        if is_required:
            msg = "Say in If-Match which version of the object is meant: send its ETag."
            raise PreconditionError(428, msg)
        return None
    tags = parse_etags(text)
    if tags == ["*"]:
        return IfMatch(None)
    if not tags:
        msg = 'If-Match takes entity tags in quotation marks, such as "7", or *.'
        raise PreconditionError(400, msg)
    matches = map(_ETAG.fullmatch, tags)
    return IfMatch(frozenset(int(match[1]) for match in matches if match))


def etag_of(version: int, shown: str | None = None) -> str:
    """
    Return the entity tag of an object.

    Args:
        version: its version.
        shown: the body of the response that shows it, if one does.

    """
    if shown is None:
        return f'"{version}"'
    digest = hashlib.sha256(shown.encode()).hexdigest()[:16]
    return f'"{version}-{digest}"'


def is_cached(request: HttpRequest, etag: str) -> bool:
    """Return whether ``If-None-Match`` says that the client has this response."""
    tags = parse_etags(request.META.get("HTTP_IF_NONE_MATCH", ""))
    return tags == ["*"] or etag in (tag.removeprefix("W/") for tag in tags)


def has_version(endpoint: Endpoint) -> bool:
    """Return whether an endpoint's objects have a version."""
    options = getattr(endpoint.subject, "options", None)
    return getattr(options, "version", None) is not None


def version_shown_by(result: Any) -> int | None:
    """Return the version in a result's field that is marked with ``Version()``."""
    field = version_field(type(result))
    version = getattr(result, field, None) if field is not None else None
    return version if isinstance(version, int) else None


# ------------------------------------------------------------------- for other views


class VersionedAnswer(NamedTuple):
    """The result of a message that was sent for a request."""

    result: Any
    """The handler's result."""
    headers: Mapping[str, str]
    """For the response; the ``ETag``, if the object has a version."""


def dispatch_for(
    request: HttpRequest,
    payload: Any = None,
    *,
    route: str | None = None,
    aggregate_id: Any = None,
    headers: GivenHeaders | None = None,
    bus: CommandBus = command_bus,
    requires_if_match: bool = False,
) -> VersionedAnswer:
    """
    Dispatch a command for a request, with the request's ``If-Match`` as its condition.

    For views of your own, of REST framework or of django-ninja::

        answer = dispatch_for(request, route="ticket.close", aggregate_id=pk)
        return Response(answer.result, headers=answer.headers)

    Args:
        request: the request.
        payload: as for ``CommandBus.dispatch``.
        route: likewise.
        aggregate_id: likewise.
        headers: likewise.
        bus: the bus.
        requires_if_match: whether a request without ``If-Match`` is refused with 428.

    Returns:
        The result, and the headers for the response.

    Raises:
        PreconditionError: ``If-Match`` is malformed, missing, or cannot be compared.
        ConcurrencyError: the object is at another version; the handler was not called.

    The errors of ``CommandBus.dispatch`` are raised as well.

    """
    __traceback_hide__ = True
    condition = if_match_of(request, is_required=requires_if_match)
    endpoint = _endpoint_of(bus, payload, route)
    if condition is not None and endpoint is not None:
        payload, is_in_payload = _with_version(payload, condition, endpoint)
        condition.ensure_comparable(endpoint, is_in_payload=is_in_payload)

    def send() -> Any:
        return bus.dispatch(
            payload, route=route, aggregate_id=aggregate_id, headers=headers
        )

    result, version = sent_with(condition, send)
    shown = version_shown_by(result)
    version = version if shown is None else shown
    return VersionedAnswer(
        result, {} if version is None else {"ETag": etag_of(version)}
    )


def ask_for(
    request: HttpRequest,
    payload: Any = None,
    *,
    route: str | None = None,
    aggregate_id: Any = None,
    headers: GivenHeaders | None = None,
    bus: QueryBus = query_bus,
) -> VersionedAnswer:
    """
    Ask a query for a request, and return the answer with its entity tag.

    Args:
        request: the request.
        payload: as for ``QueryBus.ask``.
        route: likewise.
        aggregate_id: likewise.
        headers: likewise.
        bus: the bus.

    Returns:
        The result, and the headers for the response.

    Raises:
        PreconditionError: ``If-Match`` is malformed, or names another version.

    The errors of ``QueryBus.ask`` are raised as well.

    """
    __traceback_hide__ = True
    condition = if_match_of(request)

    def send() -> Any:
        return bus.ask(payload, route=route, aggregate_id=aggregate_id, headers=headers)

    result, version = sent_with(None, send)
    shown = version_shown_by(result)
    version = version if shown is None else shown
    ensure_at(version, condition)
    etag = None if version is None else etag_of(version, to_json(result))
    return VersionedAnswer(result, {} if etag is None else {"ETag": etag})


async def adispatch_for(
    request: HttpRequest, payload: Any = None, **keywords: Any
) -> VersionedAnswer:
    """Do the same as :func:`dispatch_for`, in one hop to the database's thread."""
    __traceback_hide__ = True
    answer: VersionedAnswer = await in_thread(dispatch_for)(
        request, payload, **keywords
    )
    return answer


async def aask_for(
    request: HttpRequest, payload: Any = None, **keywords: Any
) -> VersionedAnswer:
    """Do the same as :func:`ask_for`, in one hop to the database's thread."""
    __traceback_hide__ = True
    answer: VersionedAnswer = await in_thread(ask_for)(request, payload, **keywords)
    return answer


def sent_with(condition: IfMatch | None, send: Any) -> tuple[Any, int | None]:
    """
    Call a function that sends a message, under a condition.

    Returns:
        Its result, and the version of the message's object, if it has one.

    Raises:
        ConcurrencyError: the object is at another version.

    """
    __traceback_hide__ = True
    versions = condition.versions if condition is not None else None
    origin: ConditionalOrigin
    try:
        with conditional(versions, must_exist=condition is not None) as origin:
            result = send()
    except ConcurrencyError as error:
        error.is_precondition = error.at_entrance and condition is not None
        raise
    return result, origin.version


def ensure_at(version: int | None, condition: IfMatch | None) -> None:
    """
    Refuse the answer of a query if its object is at another version.

    Raises:
        PreconditionError: it is.

    """
    versions = condition.versions if condition is not None else None
    if versions is not None and version not in versions:
        raise PreconditionError(412, STALE if versions else NO_VERSION)


def _endpoint_of(
    bus: SingleHandlerBus, payload: Any, route: str | None
) -> Endpoint | None:
    """Return the endpoint of a message; None if the bus will raise an error for it."""
    table: RouteTable = bus.registry.routes
    if route is None:
        return None if payload is None else table.handler_of(bus.kind, payload)
    endpoint = table.handler_of_key(bus.kind, route)
    named = table.named_class(route) if endpoint is None else None
    return endpoint if named is None else table.handler_of_class(bus.kind, named)


def _with_version(
    payload: Any, condition: IfMatch, endpoint: Endpoint
) -> tuple[Any, bool]:
    """
    Return a payload with the version of the condition, and whether it has one.

    Raises:
        MessageConversionError: it has one already.

    """
    version = condition.only
    if version is None:
        return payload, False
    if not isinstance(payload, Mapping):
        field = version_field(type(payload))
        return payload, field is not None and getattr(payload, field, None) == version
    for each in payload_types_of(endpoint):
        field = version_field(each) if isinstance(each, type) else None
        if field is None:
            continue
        if field in payload:
            errors = [FieldError(field, IN_IF_MATCH, "in_if_match")]
            refused = MessageConversionError(each.__name__, errors)
            refused.at_entrance = True
            raise refused
        return {**payload, field: version}, True
    return payload, False
