"""The payload of an operation: the body of a command, the parameters of a query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django_cqrs.conversion.payloads import JSON
from django_cqrs.openapi.operations import Operation

Definitions = Mapping[str, dict[str, Any]]

REFERENCE = "#/components/schemas/"


class DescribedPayload:
    """The JSON schema of a payload, without the fields that are sent elsewhere."""

    def __init__(
        self,
        operation: Operation,
        schema: dict[str, Any] | None,
        definitions: Definitions,
    ) -> None:
        """
        Take an operation.

        Args:
            operation: the operation.
            schema: the schema of its payload, None if it has none.
            definitions: the schemas that others refer to.

        """
        self._operation = operation
        self._definitions = definitions
        wanted = operation.wanted
        self._is_plain = wanted.fields is None
        self._is_open = bool(wanted.type) and wanted.fields == {}
        elsewhere: set[str] = set()
        for name in operation.given:
            elsewhere |= wanted.keys_of(name)
        self._removed = elsewhere
        seen = wanted.version_field if operation.compares_version else None
        self._version = wanted.keys_of(seen) if seen is not None else set()
        self.schema = None if schema is None else self._adapted(schema)

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while schema.keys() <= {"$ref"} and schema:
            schema = self._definitions[schema["$ref"].removeprefix(REFERENCE)]
        return schema

    def _adapted(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the schema without fields that have their place elsewhere."""
        if self._is_plain or not (self._removed or self._version):
            return schema
        whole = self._resolved(schema)
        for key in ("anyOf", "oneOf"):
            if key in whole:
                members = [self._adapted(each) for each in whole[key]]
                return {key: members}  # a discriminator would name the unchanged ones
        return self._without(whole)

    def _without(self, whole: dict[str, Any]) -> dict[str, Any]:
        properties = whole.get("properties", {})
        removed = self._removed & properties.keys()
        if self._operation.view.requires_if_match:
            removed |= self._version & properties.keys()
        kept = {name: each for name, each in properties.items() if name not in removed}
        optional = removed | self._version
        required = [name for name in whole.get("required", ()) if name not in optional]
        adapted = {name: each for name, each in whole.items() if name != "required"}
        if "properties" in whole:
            adapted["properties"] = kept
        return {**adapted, "required": required} if required else adapted

    def body(self) -> dict[str, Any] | None:
        """Return the request body of a command, None if it has none."""
        wanted, schema = self._operation.wanted, self.schema
        if schema is None:
            return None
        is_given = self._is_plain and wanted.name in self._operation.given
        parts = list(self._parts())
        may_be_empty = (
            is_given
            or wanted.is_optional
            or (wanted.type is not None and wanted.type.takes_none)
            or (not self._is_plain and not all(each.get("required") for each in parts))
        )
        has_fields = self._is_open or any(
            each.get("properties") or "properties" not in each for each in parts
        )
        if is_given or not has_fields:
            return None
        return {"required": not may_be_empty, "content": {JSON: {"schema": schema}}}

    def _parts(self) -> Iterator[dict[str, Any]]:
        """Yield the schemas of the objects that the payload may be."""
        waiting = [self.schema] if self.schema is not None else []
        while waiting:
            whole = self._resolved(waiting.pop(0))
            members = whole.get("anyOf") or whole.get("oneOf")
            if members:
                waiting += members
            else:
                yield whole

    def parameters(self) -> Iterator[dict[str, Any]]:
        """Yield the parameters of a query's query string."""
        wanted = self._operation.wanted
        if self.schema is None:
            return
        if self._is_plain:
            if wanted.name is not None and wanted.name not in self._operation.given:
                takes_none = wanted.type is not None and wanted.type.takes_none
                is_required = not wanted.is_optional and not takes_none
                yield _parameter(wanted.name, self.schema, is_required=is_required)
            return
        objects = [each for each in self._parts() if each.get("type") == "object"]
        names: dict[str, dict[str, Any]] = {}
        for each in objects:
            names = {**each.get("properties", {}), **names}
        for name, schema in names.items():
            required = all(name in each.get("required", ()) for each in objects)
            is_optional = wanted.is_optional or self._takes_none()
            yield _parameter(name, schema, is_required=required and not is_optional)
        if self._is_open:
            free = {"type": "object", "additionalProperties": {"type": "string"}}
            yield {**_parameter("fields", free, is_required=False), "explode": True}

    def _takes_none(self) -> bool:
        wanted = self._operation.wanted.type
        return wanted is not None and wanted.takes_none


def _parameter(
    name: str, schema: dict[str, Any], *, is_required: bool
) -> dict[str, Any]:
    parameter = {"name": name, "in": "query", "required": is_required}
    description = schema.get("description")
    if description:
        parameter["description"] = description
    return {**parameter, "schema": schema}
