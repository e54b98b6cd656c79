"""The OpenAPI 3.1 document of all views of messages in a URLconf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import get_resolver

from django_cqrs.conversion.json_schemas import json_schemas, references_in
from django_cqrs.exceptions import CQRSError, InvalidHandler
from django_cqrs.openapi.operations import Operation
from django_cqrs.openapi.outcomes import outcome_operation
from django_cqrs.openapi.paths import PathTemplate, path_templates
from django_cqrs.openapi.payloads import REFERENCE, DescribedPayload
from django_cqrs.views import (
    AsyncCommandView,
    AsyncQueryView,
    CommandView,
    OutcomeView,
    QueryView,
)

OPENAPI: Final = "3.1.0"

_VIEWS: Final = (AsyncCommandView, AsyncQueryView, CommandView, QueryView)


def openapi_document(
    *, title: str | None = None, version: str = "1.0.0", urlconf: str | None = None
) -> dict[str, Any]:
    """
    Return the OpenAPI 3.1 document of the views of messages.

    Every ``CommandView``, ``QueryView`` and ``OutcomeView`` in the URLconf is an
    operation, and so are the async twins.

    Args:
        title: the name of the API; by default that of the URLconf's package.
        version: the version of the API.
        urlconf: the dotted path of the URLconf; by default ``ROOT_URLCONF``.

    Returns:
        The document: dicts, lists and scalars, ready for JSON.

    Raises:
        InvalidHandler: a view cannot be described; the text names all of them.

    """
    module = urlconf or settings.ROOT_URLCONF
    operations = list(_operations(module))
    schemas, definitions = _schemas_of(operations)
    problem_name = _free_name("ProblemDetails", definitions)
    problem = {"$ref": f"{REFERENCE}{problem_name}"}
    paths: dict[str, dict[str, Any]] = {}
    ids: dict[str, int] = {}
    for template in _of_outcomes(module):
        name = _unique(template.name or "outcome", ids)
        paths[template.path] = {"get": outcome_operation(template, name, problem)}
    for operation, own in zip(operations, schemas, strict=True):
        methods = paths.setdefault(operation.template.path, {})
        if operation.method in methods:
            continue  # Django calls the first view
        schema = own[0] if operation.wanted.type is not None else None
        payload = DescribedPayload(operation, schema, definitions)
        described = operation.described(_unique(operation.name, ids), own, problem)
        methods[operation.method] = _with_request(operation, payload, described)
    components = _used({**definitions, problem_name: PROBLEM}, paths)
    return {
        "openapi": OPENAPI,
        "info": {"title": title or module.partition(".")[0], "version": version},
        "paths": paths,
        **({"components": {"schemas": components}} if components else {}),
    }


PROBLEM: Final[dict[str, Any]] = {
    "title": "ProblemDetails",
    "description": "An error, as RFC 9457 describes it.",
    "type": "object",
    "required": ["title", "status"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "description": "The fields that are not valid.",
            "type": "array",
            "items": {
                "type": "object",
                "required": ["path", "detail", "code"],
                "properties": {
                    "path": {"type": "string"},
                    "detail": {"type": "string"},
                    "code": {"type": "string"},
                },
            },
        },
    },
}


def _of_outcomes(urlconf: str) -> Iterator[PathTemplate]:
    """Yield the paths of the views that tell what became of a command."""
    for template in path_templates(get_resolver(urlconf).url_patterns):
        cls = getattr(template.view, "view_class", None)
        if isinstance(cls, type) and issubclass(cls, OutcomeView):
            yield template


def _operations(urlconf: str) -> Iterator[Operation]:
    """
    Yield the operations of a URLconf.

    Raises:
        InvalidHandler: the messages of some views cannot be described.

    """
    faults: dict[str, None] = {}
    for template in path_templates(get_resolver(urlconf).url_patterns):
        function: Any = template.view
        cls = getattr(function, "view_class", None)
        if not (isinstance(cls, type) and issubclass(cls, _VIEWS)):
            continue
        view = cls(**function.view_initkwargs)
        try:
            operation = Operation(template, view)
            json_schemas(list(operation.wishes()), ref_template="{model}")
        except (CQRSError, ImproperlyConfigured) as error:
            faults[f"{template.path} ({cls.__name__}): {error}"] = None
            continue
        if operation.method in view.http_method_names:
            yield operation
    if faults:
        raise InvalidHandler("\n".join(faults))


def _schemas_of(
    operations: list[Operation],
) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """Return the schemas of each operation's types, and all definitions."""
    wishes = [list(each.wishes()) for each in operations]
    flat = [wish for own in wishes for wish in own]
    found, definitions = json_schemas(flat, ref_template=f"{REFERENCE}{{model}}")
    rest = iter(found)
    return [[next(rest) for _ in own] for own in wishes], definitions


def _with_request(
    operation: Operation, payload: DescribedPayload, described: dict[str, Any]
) -> dict[str, Any]:
    """Return an operation with its parameters and its body."""
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in operation.template.parameters.items()
    ]
    if not operation.is_command:
        parameters += payload.parameters()
    parameters += operation.header_parameters()
    request: dict[str, Any] = {"parameters": parameters} if parameters else {}
    body = payload.body() if operation.is_command else None
    if body is not None:
        request["requestBody"] = body
    responses = described.pop("responses")
    return {**described, **request, "responses": responses}


def _unique(name: str, used: dict[str, int]) -> str:
    """Return an operation's id, with a number if another operation has the name."""
    used[name] = used.get(name, 0) + 1
    return name if used[name] == 1 else _unique(f"{name}_{used[name]}", used)


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _used(schemas: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas that the paths refer to, also through others."""
    used: dict[str, Any] = {}
    waiting = references_in(paths)
    while waiting:
        name = waiting.pop().removeprefix(REFERENCE)
        if name not in used:
            used[name] = schemas[name]
            waiting |= references_in(schemas[name])
    return dict(sorted(used.items()))
