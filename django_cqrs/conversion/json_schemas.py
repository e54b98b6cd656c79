"""JSON schemas of types, as the conversion reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from django_cqrs.annotations import name_of_type
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.schemas import (
    Schema,
    core_schema_of,
    describable,
    mistakes,
)
from django_cqrs.exceptions import InvalidHandler

Mode = Literal["validation", "serialization"]
"""Whether a type is read or written."""


def json_schemas(
    wanted: Sequence[tuple[Any, Mode]], *, ref_template: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Return the JSON schemas of types, and the definitions that they refer to.

    Args:
        wanted: the types, each with the direction of its conversion.
        ref_template: the place of a definition, with ``{model}`` for its name.

    Raises:
        InvalidHandler: a type has no JSON schema.

    """
    generator = _generator(ref_template)
    inputs = [
        (number, mode, _checked(annotation, mode))
        for number, (annotation, mode) in enumerate(wanted)
    ]
    found, definitions = generator.generate_definitions(inputs)
    return [found[number, mode] for number, mode, _ in inputs], definitions


def _generator(ref_template: str) -> Any:
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    return Generator(by_alias=True, ref_template=ref_template)


def _checked(annotation: Any, mode: Mode) -> Schema:
    """Return the core schema of a type that certainly has a JSON schema."""
    from pydantic.errors import PydanticInvalidForJsonSchema
    from pydantic_core import PydanticOmit

    name = name_of_type(annotation)
    hint = (
        "Give its fields types that JSON can represent, write a @converter, or "
        "annotate the field with pydantic's WithJsonSchema."
    )
    fault = adapter_of(annotation).fault if mode == "validation" else None
    if fault is not None:
        msg = f"{name} has no JSON schema: {fault}. {hint}"
        raise InvalidHandler(msg)
    undescribable: tuple[type[Exception], ...]
    undescribable = *mistakes(), PydanticInvalidForJsonSchema, PydanticOmit
    try:
        schema = describable(core_schema_of(annotation))
        _generator("{model}").generate(schema, mode=mode)
    except undescribable as error:
        lines = str(error).splitlines() or [type(error).__name__]
        msg = f"{name} has no JSON schema: {lines[0].rstrip('.')}. {hint}"
        raise InvalidHandler(msg) from error
    return schema


def references_in(schema: Any) -> set[str]:
    """Return every ``$ref`` in a JSON schema."""
    if isinstance(schema, Mapping):
        own = schema.get("$ref")
        found = {own} if isinstance(own, str) else set()
        return found.union(*map(references_in, schema.values()))
    if isinstance(schema, list):
        return set().union(*map(references_in, schema))
    return set()
