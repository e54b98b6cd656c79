"""The views of messages as operations of an OpenAPI document."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from django_cqrs.annotations import (
    field_names,
    is_plain_class,
    name_of_type,
    union_members,
)
from django_cqrs.conversion.json_schemas import Mode
from django_cqrs.conversion.payloads import JSON
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
from django_cqrs.messages import result_type_of
from django_cqrs.modelling import Fetch
from django_cqrs.modelling.identifiers import version_field
from django_cqrs.openapi.paths import PathTemplate
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.views import AsyncCommandView, CommandView
from django_cqrs.views.conditions import has_version
from django_cqrs.views.problem_details import PROBLEM_JSON
from django_cqrs.views.requests import Wanted, split_path

Wish = tuple[Any, Mode]
"""A type, and whether it is read or written."""

EMPTY: Final = inspect.Parameter.empty
UNKNOWN: Final = (EMPTY, Any, object)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The results that a message's handler may return."""

    annotation: Any
    """The type without None; ``EMPTY`` if it is unknown, None if it is only None."""
    is_optional: bool

    @property
    def may_have_value(self) -> bool:
        """Return whether there may be a result."""
        return self.annotation is not None


class Operation:
    """One view of a message under one path."""

    def __init__(self, template: PathTemplate, view: Any) -> None:
        """
        Find the handlers and the types of a view.

        Args:
            template: the path.
            view: an instance of the view.

        Raises:
            NoHandlerFound: no handler takes the message.
            InvalidHandler: its declaration is broken.

        """
        self.template = template
        self.view = view
        self.is_command = isinstance(view, (CommandView, AsyncCommandView))
        self.method = "post" if self.is_command else "get"
        self.wanted: Wanted = view._sound()
        self.endpoints = self._endpoints()
        captured = dict.fromkeys(template.captured)
        self.given: set[str] = set()
        for endpoint in self.endpoints:
            _, fields = split_path(self.wanted, endpoint, captured)
            self.given |= {name for name in fields if self.wanted.accepts(name)}

    def _endpoints(self) -> list[Endpoint]:
        known = self.view._known_endpoint()
        if known is not None:
            return [known]
        bus, wanted = self.view.bus, self.wanted.type
        members = wanted.members if wanted is not None else ()
        classes = [each for each in members if isinstance(each, type)]
        found = [bus.registry.routes.handler_of_class(bus.kind, cls) for cls in classes]
        endpoints = [each for each in found if each is not None]
        if not endpoints:
            said = " | ".join(map(name_of_type, members))
            msg = f"No handler takes {said}."
            raise NoHandlerFound(msg)
        return endpoints

    @property
    def place(self) -> str:
        """The view and its path, for errors."""
        return f"{self.method.upper()} {self.template.path}"

    @property
    def name(self) -> str:
        """The name of the URL, otherwise that of the message."""
        if self.template.name:
            return self.template.name
        if self.view.route is not None:
            return str(self.view.route)
        return name_of_type(self.view.message)

    # Types ----------------------------------------------------------------------------

    def wishes(self) -> Iterator[Wish]:
        """Yield the types whose JSON schemas it needs: payload, then result."""
        if self.wanted.type is not None:
            yield self._payload, "validation"
        result = self.result
        if result.may_have_value and result.annotation is not EMPTY:
            yield result.annotation, "serialization"

    @property
    def _payload(self) -> Any:
        assert self.wanted.type is not None  # noqa: S101 - it has a payload
        annotation = self.wanted.type.annotation
        return Any if annotation in UNKNOWN else annotation

    @property
    def result(self) -> Result:
        """The results of all its handlers."""
        members: dict[Any, None] = {}
        for endpoint in self.endpoints:
            for each in (endpoint, endpoint.action):
                if each is not None:
                    returns = _result_of(each)
                    members |= dict.fromkeys(union_members(returns))
        if not members or any(each in UNKNOWN for each in members):
            return Result(EMPTY, is_optional=True)
        kept = [each for each in members if each not in (None, type(None))]
        is_optional = len(kept) < len(members)
        if not kept:
            return Result(None, is_optional)
        whole = kept[0] if len(kept) == 1 else typing.Union[tuple(kept)]  # noqa: UP007
        return Result(_listed(whole), is_optional)

    # Facts ----------------------------------------------------------------------------

    @property
    def is_later(self) -> bool:
        """Whether its messages wait in a channel."""
        return all(each.channel is not None for each in self.endpoints)

    @property
    def shows_version(self) -> bool:
        """Whether its answers have an ``ETag``."""
        return any(map(has_version, self.endpoints)) or any(
            is_plain_class(each) and version_field(each) is not None
            for each in union_members(self.result.annotation)
        )

    @property
    def compares_version(self) -> bool:
        """Whether it takes ``If-Match``."""
        if not self.is_command:
            return self.shows_version
        return self.wanted.version_field is not None or any(
            has_version(each) and not _is_factory(each) and each.channel is None
            for each in self.endpoints
        )

    @property
    def has_object(self) -> bool:
        """Whether its handler needs an object that may be missing."""
        return any(
            (each.subject is not None and not _is_factory(each)) or _fetches(each)
            for each in self.endpoints
        )

    # Responses ------------------------------------------------------------------------

    def successes(self, shown: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """
        Yield the statuses of handled messages, with their responses.

        Args:
            shown: the JSON schema of the result.

        """
        if self.is_later:
            yield 202, self._accepted()
            return
        view, result = self.view, self.result
        empty_status = getattr(view, "empty_status", None)
        if result.is_optional or not result.may_have_value:
            if self.is_command:
                yield view.status or 204, self._response("Handled; no result.")
            elif empty_status is not None and empty_status < HTTPStatus.BAD_REQUEST:
                yield empty_status, {"description": "There is no answer."}
        if not self.is_command and empty_status is None and result.is_optional:
            is_open = result.annotation is EMPTY or not result.may_have_value
            null = {"type": "null"}
            shown = shown if is_open else {"anyOf": [shown, null]}
        if result.may_have_value or (not self.is_command and empty_status is None):
            response = self._response("The result.")
            if not result.may_have_value:
                shown = {"type": "null"}
            yield view.status or 200, {**response, "content": {JSON: {"schema": shown}}}
        if not self.is_command and self.shows_version:
            yield 304, self._response("The client has this answer.")

    def _accepted(self) -> dict[str, Any]:
        response: dict[str, Any] = {"description": "The command waits in a channel."}
        if self.view.outcome_view is None:
            return response
        text = "The address that tells what became of the command."
        schema = {"type": "string", "format": "uri-reference"}
        response["headers"] = {"Location": {"description": text, "schema": schema}}
        body = {
            "type": "object",
            "required": ["message_id"],
            "properties": {"message_id": {"type": "string", "format": "uuid"}},
        }
        return {**response, "content": {JSON: {"schema": body}}}

    def _response(self, description: str) -> dict[str, Any]:
        response: dict[str, Any] = {"description": description}
        if self.shows_version:
            text = "The version of the object, to be sent in If-Match."
            etag = {"description": text, "schema": {"type": "string"}}
            response["headers"] = {"ETag": etag}
        return response

    def problems(self) -> dict[int, list[str]]:
        """Return the statuses of errors, with the reasons for each."""
        found: dict[int, list[str]] = {}
        for cls, status, reason in self._refusals():
            listed = next((c for c in cls.__mro__ if c in self.view.errors), None)
            answered = status if listed is None else self.view.errors[listed]
            found.setdefault(answered, []).append(reason)
        for cls, status in self.view.errors.items():
            if not cls.__module__.startswith("django_cqrs."):
                found.setdefault(status, []).append(_first_line(cls) or cls.__name__)
        return {status: list(dict.fromkeys(found[status])) for status in sorted(found)}

    def _refusals(self) -> Iterator[tuple[type[Exception], int, str]]:
        yield MessageConversionError, 400, "The request is not valid; see errors."
        yield MissingHeader, 400, "A required header is missing."
        if self.has_object:
            yield InvalidIdentifier, 400, "The identifier is not valid."
            yield AggregateNotFound, 404, "No object with this identifier exists."
        empty_status = getattr(self.view, "empty_status", None) or 0
        if empty_status >= HTTPStatus.BAD_REQUEST:
            yield _Nothing, empty_status, "Nothing was found."
        if self.is_command and not self.is_later:
            if self.has_object:
                reason = "The object was changed in the meantime."
                yield ConcurrencyError, 409, reason
            if any(each.subject and each.is_factory for each in self.endpoints):
                reason = "An object with this identifier already exists."
                yield AggregateAlreadyExists, 409, reason
        if self.compares_version:
            yield PreconditionError, 400, "If-Match is malformed."
            refused = ConcurrencyError if self.is_command else PreconditionError
            yield refused, 412, "The object is at another version than If-Match says."
        if self.is_command:
            yield _Nothing, 415, f"The body is not {JSON}."
        if self.view.requires_if_match:
            yield PreconditionError, 428, "If-Match is missing."

    # The operation --------------------------------------------------------------------

    def described(
        self, operation_id: str, schemas: list[dict[str, Any]], problem: dict[str, Any]
    ) -> dict[str, Any]:
        """
        Return the operation object, without its payload.

        Args:
            operation_id: its unique id.
            schemas: the schemas of :meth:`wishes`.
            problem: the schema of problem details.

        """
        responses: dict[str, Any] = {}
        shown = schemas[-1] if self.result.annotation not in (None, EMPTY) else {}
        for status, response in self.successes(shown):
            responses[str(status)] = _merged(responses.get(str(status)), response)
        for status, reasons in self.problems().items():
            content = {PROBLEM_JSON: {"schema": problem}}
            text = " ".join(map(_sentence, reasons))
            refused = {"description": text, "content": content}
            responses[str(status)] = _merged(responses.get(str(status)), refused)
        summary, description = self._documentation()
        operation: dict[str, Any] = {"operationId": operation_id}
        apps = dict.fromkeys(each.app for each in self.endpoints if each.app)
        if apps:
            operation["tags"] = list(apps)
        if summary:
            operation["summary"] = summary
        if description:
            operation["description"] = description
        return {**operation, "responses": dict(sorted(responses.items()))}

    def _documentation(self) -> tuple[str, str]:
        """Return the first line and the rest of a docstring: the message's, if any."""
        wanted = self.wanted.type
        members = wanted.members if wanted is not None else ()
        sources = [m for m in members if is_plain_class(m) and field_names(m)]
        for source in (*sources, *(each.function for each in self.endpoints)):
            text = _own_docstring(source)
            if text:
                summary, _, rest = text.partition("\n")
                return summary.strip(), rest.strip()
        return "", ""

    def header_parameters(self) -> Iterator[dict[str, Any]]:
        """Yield the headers that it reads."""
        if self.compares_version:
            yield {
                "name": "If-Match",
                "in": "header",
                "required": self.view.requires_if_match,
                "description": "The ETag of the object, as it was read.",
                "schema": {"type": "string"},
            }
        if not self.is_command and self.shows_version:
            yield {
                "name": "If-None-Match",
                "in": "header",
                "required": False,
                "description": "The ETag of the answer that the client has.",
                "schema": {"type": "string"},
            }


class _Nothing(Exception):
    """Stands for a refusal without an exception, which `errors` cannot change."""


def _merged(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Return a response that may be either of two."""
    if one is None:
        return other
    parts = dict.fromkeys((one["description"], other["description"]))
    merged = {**one, **other, "description": " ".join(parts)}
    content = {**one.get("content", {}), **other.get("content", {})}
    return {**merged, "content": content} if content else merged


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _is_factory(endpoint: Endpoint) -> bool:
    return endpoint.is_factory and endpoint.action is None


def _fetches(endpoint: Endpoint) -> bool:
    """Return whether a handler has a parameter with ``Fetch``."""
    try:
        hints = typing.get_type_hints(endpoint.function, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation may run any code; a check says so
        return False
    return any(
        isinstance(mark, Fetch)
        for each in hints.values()
        for mark in getattr(each, "__metadata__", ())
    )


def _result_of(endpoint: Endpoint) -> Any:
    """Return the type of a handler's result, or that which its message promises."""
    returns = endpoint.plan.returns
    if endpoint.subject is not None:
        returns = endpoint.subject.result_of(endpoint)
    payload = endpoint.plan.payload
    if returns in UNKNOWN and payload is not None:
        for cls in payload.members:
            promised = result_type_of(cls) if is_plain_class(cls) else Any
            if promised is not Any:
                return promised
    return returns


def _listed(annotation: Any) -> Any:
    """Return the list that a lazy iterable (a queryset, a generator) is sent as."""
    origin = typing.get_origin(annotation) or annotation
    if not isinstance(origin, type) or not issubclass(origin, Iterable):
        return annotation
    is_whole = issubclass(origin, (str, bytes, list, tuple, set, frozenset, Mapping))
    if is_whole or field_names(origin) is not None:
        return annotation
    arguments = typing.get_args(annotation)
    item = arguments[0] if arguments else Any
    return list[item]  # type: ignore[valid-type]


def _own_docstring(source: Any) -> str:
    """Return the docstring that somebody has written for a class or a function."""
    text = vars(source).get("__doc__") if isinstance(source, type) else source.__doc__
    if not isinstance(text, str):
        return ""
    is_generated = isinstance(source, type) and text.startswith(f"{source.__name__}(")
    return "" if is_generated else inspect.cleandoc(text)


def _first_line(cls: type) -> str:
    return _own_docstring(cls).partition("\n")[0]
