"""
Our rules of reading and writing, put into pydantic's core schemas.

Left alone, pydantic would let a ``TypeError`` of a ``__post_init__`` pass, read NaN
from JSON, write a NamedTuple as a list, and refuse to read one with an unknown key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final, NamedTuple
from uuid import UUID

Schema = Any
"""A core schema: a dict with a ``type``."""

# What user code may raise to refuse a value; anything else is a bug and passes.
REFUSALS = (ValueError, ArithmeticError, TypeError)

LOAD = "django_cqrs_load"
"""The key of a schema's metadata that holds the function of a ``@converter``."""


Plain = tuple[type, list[tuple[str, frozenset[type]]]]
"""A dataclass, and by field the types of values that JSON keeps as they are."""


class Compiled(NamedTuple):
    """What converts one type, each direction by the rules that belong to it."""

    json_reader: Any
    python_reader: Any
    writer: Any
    is_strict: bool | None
    plain: Plain | None
    """None where there is anything that JSON may not keep."""

    def read_json(self, text: bytes | bytearray) -> Any:
        """Read JSON text strictly."""
        return self.json_reader.validate_json(text, strict=self.is_strict)

    def read_python(self, value: Any) -> Any:
        """Read a Python value laxly."""
        return self.python_reader.validate_python(value)

    def write_json(self, value: Any) -> Any:
        """Write JSON text in UTF-8."""
        return self.writer.to_json(value, **_WRITING)

    def write_jsonable(self, value: Any) -> Any:
        """Write dicts, lists and scalars."""
        return self.writer.to_python(value, mode="json", **_WRITING)

    def write_plain(self, value: Any) -> bytes | None:
        """
        Write JSON text that is certain, without a look, to come back as it is.

        None where that is not so, or not known.
        """
        if self.plain is None:
            return None
        cls, fields = self.plain
        if type(value) is not cls:
            return None
        for name, types in fields:
            part: Any = getattr(value, name, _MISSING)
            kind = type(part)
            if (
                kind not in types
                or (kind is int and not _LEAST <= part <= _GREATEST)
                or (kind is float and not isfinite(part))
            ):
                return None
        try:
            text: bytes = self.writer.to_json(value)  # nothing that options change
        except REFUSALS:  # half of a surrogate pair
            return None
        return text


_MISSING: Final = object()
# Integers of any length are written, but those that are too long are not read.
_LEAST: Final = -(2**63)
_GREATEST: Final = 2**63 - 1
_WRITING: dict[str, Any] = {"by_alias": True, "round_trip": True, "warnings": "none"}


def compiled(target: Any) -> Compiled:
    """Return what converts a type; raise what pydantic raises where it cannot."""
    from pydantic import TypeAdapter
    from pydantic_core import SchemaSerializer, SchemaValidator

    adapter = TypeAdapter(target)
    schema = adapter.core_schema
    schema["type"]  # raises where a name in an annotation stands for nothing yet
    json_schema, is_strict = _strictly(_with(_json_rule, schema))
    python_schema = _with(_python_rule, schema)
    written = _with(_writing_rule, schema)
    return Compiled(
        _built(SchemaValidator, json_schema, schema, adapter.validator),
        _built(SchemaValidator, python_schema, schema, adapter.validator),
        _built(SchemaSerializer, written, schema, adapter.serializer),
        is_strict,
        _plain_fields(schema),
    )


def _plain_fields(schema: Schema) -> Plain | None:
    """
    Return the class and the fields of a dataclass that has no rules of its own.

    None where there is anything in its schema that is not known to change nothing.
    """
    if (
        schema["type"] != "dataclass"
        or not schema.keys() <= _DATACLASS
        or schema["post_init"]
        or not schema.get("config", {}).keys() <= {"title"}
    ):
        return None
    arguments = schema["schema"]
    if (
        arguments["type"] != "dataclass-args"
        or not arguments.keys() <= _ARGUMENTS
        or arguments.get("computed_fields")
        or arguments.get("collect_init_only")
    ):
        return None
    fields = []
    for field in arguments["fields"]:
        types = _plain_types(field["schema"])
        if types is None or not field.keys() <= _FIELD or not field.get("init", True):
            return None
        fields.append((field["name"], types))
    return schema["cls"], fields


_DATACLASS: Final = frozenset(
    {"cls", "config", "fields", "frozen", "post_init", "ref", "schema", "slots", "type"}
)
_ARGUMENTS: Final = frozenset(
    {"collect_init_only", "computed_fields", "dataclass_name", "fields", "type"}
)
_FIELD: Final = frozenset({"init", "kw_only", "metadata", "name", "schema", "type"})
_DEFAULT: Final = frozenset(
    {"default", "default_factory", "default_factory_takes_data", "schema", "type"}
)
_PLAIN: Final = {"bool": bool, "float": float, "int": int, "str": str, "uuid": UUID}


def _plain_types(schema: Schema) -> frozenset[type] | None:
    """Return the types of the values that a schema keeps as they are."""
    kind, keys = schema["type"], schema.keys()
    if kind in _PLAIN and keys <= {"type", "metadata"}:
        return frozenset({_PLAIN[kind]})
    if kind == "default" and keys <= _DEFAULT:
        return _plain_types(schema["schema"])
    if kind == "nullable" and keys <= {"type", "schema"}:
        types = _plain_types(schema["schema"])
        return None if types is None else types | {type(None)}
    return None


def mistakes() -> tuple[type[Exception], ...]:
    """Return what is raised where a type cannot be converted."""
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
    from pydantic_core import SchemaError

    return (
        PydanticUserError,
        PydanticUndefinedAnnotation,
        SchemaError,
        NameError,
        TypeError,
    )


def core_schema_of(target: Any) -> Schema:
    """Return the schema that pydantic makes of a type; raise what it raises."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(target).core_schema
    schema["type"]  # raises where a name in an annotation stands for nothing yet
    return schema


def schemas_in(schema: Schema) -> list[Schema]:
    """Return a schema and all that it holds."""
    found: list[Schema] = []

    def look(each: Schema) -> Schema:
        found.append(each)
        return each

    _with(look, schema)
    return found


def refusable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with every refusal made an error of the field."""
    from pydantic_core import PydanticCustomError, ValidationError

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except (ValidationError, PydanticCustomError):
            raise
        except REFUSALS as error:
            code, text = "refused", "{reason}"
            reason = str(error) or type(error).__name__
            raise PydanticCustomError(code, text, {"reason": reason}) from error

    return call


# Where a core schema holds other schemas. Not listed: what holds values.
_INNER = frozenset(
    {
        "arguments_schema",
        "choices",
        "definitions",
        "extras_schema",
        "fields",
        "items_schema",
        "json_schema",
        "keys_schema",
        "lax_schema",
        "python_schema",
        "return_schema",
        "schema",
        "steps",
        "strict_schema",
        "values_schema",
    }
)


def _with(rule: Callable[[Schema], Schema], schema: Schema) -> Schema:
    """
    Return a schema with a rule applied to all that it holds, innermost first.

    What the rule leaves alone is the very object that was given.
    """
    if isinstance(schema, (list, tuple)):
        items = [_with(rule, each) for each in schema]
        same = all(new is old for new, old in zip(items, schema, strict=True))
        return schema if same else type(schema)(items)
    if not isinstance(schema, dict):
        return schema
    is_schema = isinstance(schema.get("type"), str)
    inner = {
        key: new
        for key, old in schema.items()
        if (key in _INNER or not is_schema) and (new := _with(rule, old)) is not old
    }
    ours = {**schema, **inner} if inner else schema
    return rule(ours) if is_schema else ours  # else: the fields of a model, by name


def _built(build: Any, ours: Schema, theirs: Schema, built: Any) -> Any:
    """Return what is built of a schema, or what pydantic built where it is its own."""
    if ours is theirs:
        return built
    try:
        # A model brings its own reader along, which knows none of our rules.
        return build(ours, _use_prebuilt=False)
    except TypeError:  # a pydantic without this switch
        return build(ours)


# --------------------------------------------------------------------------- rules


def _json_rule(schema: Schema) -> Schema:
    """
    Add our rules of reading JSON.

    Functions come after their schema here, never around it: what they are handed is
    a Python value, and a string would then be no date, strictly read.
    """
    kind = schema["type"]
    if kind == "json-or-python":
        return _instead_of(schema, schema["json_schema"])
    if kind == "float":
        return {**schema, "allow_inf_nan": False}
    if kind == "dataclass" and schema.get("post_init"):
        return _instead_of(schema, _after(_filled(schema["cls"]), schema["schema"]))
    if kind == "function-wrap" and LOAD in schema.get("metadata", {}):
        load = schema["metadata"][LOAD]
        return _instead_of(schema, _after(load, schema["schema"]))
    cls = _named_tuple(schema)
    if cls is not None:
        make = _named(cls, lambda fields: cls(**fields))
        return _instead_of(schema, _after(make, _fields_of(schema)))
    return schema


def _python_rule(schema: Schema) -> Schema:
    """Add our rules of reading Python values."""
    wrapped = {key: value for key, value in schema.items() if key != "ref"}
    if schema["type"] == "dataclass" and schema.get("post_init"):

        def validate(value: Any, inner: Callable[[Any], Any]) -> Any:
            return refusable(inner)(value)

        function = _named(schema["cls"], validate)
        return _instead_of(schema, _function("wrap", function, wrapped))
    cls = _named_tuple(schema)
    if cls is not None:

        def known(value: Any) -> Any:
            if not isinstance(value, Mapping):
                return value
            return {name: value[name] for name in cls._fields if name in value}

        return _instead_of(schema, _function("before", _named(cls, known), wrapped))
    return schema


def _writing_rule(schema: Schema) -> Schema:
    """Write a NamedTuple as an object, like any other class with fields."""
    from pydantic_core import PydanticSerializationUnexpectedValue

    cls = _named_tuple(schema)
    if cls is None:
        return schema

    def as_dict(value: Any) -> Any:
        if not isinstance(value, cls):  # another member of a union
            raise PydanticSerializationUnexpectedValue(cls.__name__)
        return value._asdict()

    function = {
        "type": "function-plain",
        "function": as_dict,
        "return_schema": _fields_of(schema),
    }
    return _instead_of(schema, {"type": "any", "serialization": function})


def _strictly(schema: Schema) -> tuple[Schema, bool | None]:
    """
    Return a schema and whether JSON is read strictly by it.

    Where a model's own functions come before its fields, strings may stand for dates
    and the like, for the reason told in :func:`_json_rule`; never for numbers.
    """
    early: list[Schema] = []

    def look(each: Schema) -> Schema:
        if each["type"] in ("function-before", "function-wrap"):
            early.append(each)
        return each

    def tighten(each: Schema) -> Schema:
        is_plain = each["type"] in ("bool", "float", "int", "str")
        return {"strict": True, **each} if is_plain else each

    _with(look, schema)
    return (_with(tighten, schema), None) if early else (schema, True)


# --------------------------------------------------------------------- their parts


def _filled(cls: Any) -> Callable[[Any], Any]:
    """Return what makes an object of a dataclass of its fields' values."""

    def make(values: tuple[dict[str, Any], tuple[Any, ...] | None]) -> Any:
        fields, init_only = values
        made = cls.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(made, name, value)  # it may be frozen
        made.__post_init__(*(init_only or ()))
        return made

    return _named(cls, refusable(make))


def fields_of_named_tuple(schema: Schema) -> Schema | None:
    """Return the schema of a dict of its fields where a schema is a NamedTuple's."""
    return None if _named_tuple(schema) is None else _fields_of(schema)


def _named_tuple(schema: Schema) -> Any:
    """Return the class of a NamedTuple's schema; None for any other."""
    if schema["type"] not in ("named-tuple", "call"):  # the latter before 2.14
        return None
    cls = schema.get("cls") or schema.get("function")
    return cls if isinstance(cls, type) and hasattr(cls, "_fields") else None


def _fields_of(schema: Schema) -> Schema:
    """Return the schema of a dict of a NamedTuple's fields."""
    fields = schema.get("fields") or schema["arguments_schema"]["arguments_schema"]
    return {
        "type": "typed-dict",
        "extra_behavior": "ignore",
        "fields": {
            field["name"]: {
                "type": "typed-dict-field",
                "schema": field["schema"],
                "required": field["schema"]["type"] != "default",
            }
            for field in fields
        },
    }


def _after(function: Callable[[Any], Any], schema: Schema) -> Schema:
    return _function("after", function, schema)


def _function(when: str, function: Callable[..., Any], schema: Schema) -> Schema:
    described = {"type": "no-info", "function": function}
    return {"type": f"function-{when}", "function": described, "schema": schema}


def _named(cls: type, function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function the name of the class it makes, for the paths of errors."""
    function.__name__ = cls.__name__
    return function


def _instead_of(replaced: Schema, schema: Schema) -> Schema:
    return {**schema, "ref": replaced["ref"]} if "ref" in replaced else schema
