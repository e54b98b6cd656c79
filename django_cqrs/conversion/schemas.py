"""
The package's own rules of reading and writing, added to pydantic's core schemas.

Without them, pydantic would not catch a ``TypeError`` of a ``__post_init__``, would
read NaN from JSON, write a NamedTuple as a list, and refuse to read one with an unknown
key.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, time, timedelta, timezone, tzinfo
from functools import cached_property
from math import isfinite
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

Schema = Any
"""A core schema: a dict with a ``type``."""

# The exceptions by which user code refuses a value; others are bugs and propagate.
REFUSALS = (ValueError, ArithmeticError, TypeError)

LOAD = "django_cqrs_load"
"""The key of a schema's metadata that holds the function of a ``@converter``."""


Plain = tuple[type, list[tuple[str, frozenset[type]]]]
"""A dataclass, with the types by field that JSON restores unchanged."""

JSONReader = tuple[Callable[..., Any], bool | None]
"""A ``validate_json`` of pydantic, and the value of its `strict`."""


class Compiled:
    """The converters of one type, one for each direction."""

    def __init__(self, schema: Schema, validator: Any, serializer: Any) -> None:
        """
        Build the reader and the writer of a type.

        Args:
            schema: pydantic's schema of the type.
            validator: pydantic's validator of the schema.
            serializer: pydantic's serializer of the schema.

        """
        from pydantic_core import SchemaSerializer, SchemaValidator

        self.schema: Schema = schema
        """The schema of pydantic, without rules of this package."""
        ours = _with(_Bytes(schema).json_rule, schema)
        json_schema, is_strict = _strictly(_with(_json_rule, ours))
        python_schema = _with(_Bytes(schema).python_rule, schema)
        python_schema = _with(_python_rule, python_schema)
        written = _with(_writing_rule, _with(_Bytes(schema).writing_rule, schema))
        self.json_reader: JSONReader = (
            _built(SchemaValidator, json_schema, schema, validator).validate_json,
            is_strict,
        )
        self.python_reader: Any = _built(
            SchemaValidator, python_schema, schema, validator
        )
        self.writer: Any = _built(SchemaSerializer, written, schema, serializer)
        self.plain: Plain | None = _plain_fields(schema)
        """None if it has any part that JSON may not restore."""
        self._read, self._written = ours, written
        self.fault: Fault | None = unreadable_part(schema)
        """The part of it without a JSON form, if any."""
        parts = schemas_in(schema)
        self.has_models: bool = any(each["type"] == "model" for each in parts)
        """Whether a part of it may record which of its fields were given."""
        self.has_marks: bool = any(each["type"] in _MARKED for each in parts)
        """Whether the exact form of a part of it may hold more than the usual one."""

    @cached_property
    def stored_reader(self) -> JSONReader:
        """The reader of a channel's text."""
        schema, is_strict = _strictly(_with(_stored_rule, self._read))
        return _validator(_with(_zone_rule, schema)).validate_json, is_strict

    @cached_property
    def marked_reader(self) -> JSONReader:
        """The same for text with the marks of :func:`_marked`."""
        schema, is_strict = _strictly(_with(_stored_rule, self._read))
        return _validator(_with(_mark_rule, schema)).validate_json, is_strict

    @cached_property
    def exact_writer(self) -> Any:
        """The writer of such marks where they are needed."""
        from pydantic_core import SchemaSerializer

        schema = _with(_exact_rule, self._written)
        return _built(SchemaSerializer, schema, None, None)

    def reader_of_stored(self, text: bytes | bytearray) -> JSONReader:
        """Return the reader of text of :meth:`write_json` or :meth:`write_exact`."""
        # The search for one byte takes almost no time, the search for two does not.
        has_marks = _BRACKET in text and text.find(_MARK_END) >= 0
        return self.marked_reader if has_marks else self.stored_reader

    def write_exact(self, value: Any) -> Any:
        """Write JSON text with details of times and numbers that JSON alone lacks."""
        __traceback_hide__ = True
        return self.exact_writer.to_json(value, **_WRITING)

    def read_python(self, value: Any) -> Any:
        """Read a Python value laxly."""
        __traceback_hide__ = True
        return self.python_reader.validate_python(value)

    def write_json(self, value: Any) -> Any:
        """Write JSON text in UTF-8."""
        __traceback_hide__ = True
        return self.writer.to_json(value, **_WRITING)

    def write_jsonable(self, value: Any) -> Any:
        """Write dicts, lists and scalars."""
        __traceback_hide__ = True
        return self.writer.to_python(value, mode="json", **_WRITING)

    def write_plain(self, value: Any) -> bytes | None:
        """
        Write JSON text that certainly restores the value, without a comparison.

        None if that is not so, or not known.
        """
        if self.plain is None:
            return None
        cls, fields = self.plain
        if type(value) is not cls or len(getattr(value, "__dict__", ())) > len(fields):
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
            text: bytes = self.writer.to_json(value)  # options change nothing here
        except REFUSALS:  # a lone surrogate
            return None
        return text


_MISSING: Final = object()
# Integers of any length are written, but too long ones cannot be read.
_LEAST: Final = -(2**63)
_GREATEST: Final = 2**63 - 1
_WRITING: dict[str, Any] = {"by_alias": True, "round_trip": True, "warnings": "none"}


def compiled(target: Any) -> Compiled:
    """Return the converter of a type; raise pydantic's error if it has none."""
    from pydantic import TypeAdapter

    try:
        adapter = TypeAdapter(target)
    except AttributeError as error:  # an instance of a dataclass instead of the class
        msg = f"it is, or contains, an object in place of a class: {error}"
        raise TypeError(msg) from error
    schema = adapter.core_schema
    schema["type"]  # raises if an annotation has a name that is not yet defined
    return Compiled(schema, adapter.validator, adapter.serializer)


def _plain_fields(schema: Schema) -> Plain | None:
    """
    Return the class and the fields of a dataclass without rules of its own.

    None if its schema has any part that is not known to be harmless.
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
    """Return the types of the values that a schema leaves unchanged."""
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
    """Return the exceptions of types that cannot be converted."""
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
    """Return pydantic's schema of a type; pass on its exceptions."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(target).core_schema
    schema["type"]  # raises if an annotation has a name that is not yet defined
    return schema


def schemas_in(schema: Schema) -> list[Schema]:
    """Return a schema and all schemas inside it."""
    found: list[Schema] = []

    def look(each: Schema) -> Schema:
        found.append(each)
        return each

    _with(look, schema)
    return found


Fault = tuple[tuple[str, ...], str]
"""The path of a part without a JSON form, and its description."""


def unreadable_part(schema: Schema) -> Fault | None:
    """Return the first part of a schema without a JSON form, if any."""
    kind = schema["type"]
    if kind in _UNREADABLE:
        cls = schema.get("cls")
        name = cls.__qualname__ if isinstance(cls, type) else _UNREADABLE[kind]
        return (), f"{name} has no JSON form"
    if kind == "init-only":
        return (), "the object does not keep an InitVar; give it a default"
    if kind == "definitions":
        return _first_of(("", each) for each in (schema["schema"], *schema[kind]))
    if kind == "json-or-python":
        return unreadable_part(schema["json_schema"])
    if kind in _FIELDS:
        return _first_of(_named_fields(schema["fields"]))
    for key in _HOLDERS.get(kind, ()):
        inner = schema.get(key)
        for each in inner if isinstance(inner, list) else [inner]:
            fault = unreadable_part(each) if isinstance(each, dict) else None
            if fault is not None:
                return fault
    return None


_UNREADABLE: Final = {
    "callable": "a callable",
    "is-instance": "its class",
    "is-subclass": "a class",
}
_FIELDS: Final = frozenset({"dataclass-args", "model-fields", "typed-dict"})
_HOLDERS: Final = {
    "dataclass": ("schema",),
    "default": ("schema",),
    "dict": ("keys_schema", "values_schema"),
    "frozenset": ("items_schema",),
    "list": ("items_schema",),
    "model": ("schema",),
    "set": ("items_schema",),
    "tuple": ("items_schema",),
}


def _named_fields(fields: Any) -> Iterator[tuple[str, Schema]]:
    pairs = fields.items() if isinstance(fields, dict) else enumerate(fields)
    for key, field in pairs:
        name = field.get("name", key)
        is_lost = field.get("init_only") and field["schema"]["type"] != "default"
        yield name, {"type": "init-only"} if is_lost else field["schema"]


def _first_of(named: Iterable[tuple[str, Schema]]) -> Fault | None:
    for name, schema in named:
        fault = unreadable_part(schema)
        if fault is not None:
            return ((name, *fault[0]) if name else fault[0]), fault[1]
    return None


def refusable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with every refusal turned into an error of the field."""
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


# The places of schemas inside a core schema; places of values are not listed.
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
    Return a schema with a rule applied to all schemas in it, innermost first.

    Parts that the rule does not change stay the same objects.
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


def _validator(schema: Schema) -> Any:
    from pydantic_core import SchemaValidator

    return _built(SchemaValidator, schema, None, None)


def _built(build: Any, ours: Schema, theirs: Schema, built: Any) -> Any:
    """Return the validator of a schema; pydantic's if the schema is unchanged."""
    if ours is theirs:
        return built
    try:
        # A model has its own validator, which does not have our rules.
        return build(ours, _use_prebuilt=False)
    except TypeError:  # this pydantic lacks the switch
        return build(ours)


# --------------------------------------------------------------------------- rules


def _json_rule(schema: Schema) -> Schema:
    """
    Add the package's rules of reading JSON.

    Functions come after their schema here, never around it: they get a Python value,
    and in strict mode a string would then not be a date.
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
    """Add the package's rules of reading Python values."""
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
    """Write a NamedTuple as an object, as for any other class with fields."""
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


# ------------------------------------------------------------------------- bytes


class _Bytes:
    """
    Rules for bytes as base64 in JSON.

    They do not apply to a class whose configuration, or a serializer, defines the form
    of its bytes.
    """

    def __init__(self, schema: Schema) -> None:
        self._theirs = set(_bytes_of_users(schema, is_users=False))

    def json_rule(self, schema: Schema) -> Schema:
        """Read base64 and nothing else."""
        if schema["type"] == "union":
            return _text_first(schema)
        if not self._is_ours(schema):
            return schema
        read = _after(_named(bytes, _from_base64), {"type": "str"})
        whole = schema.keys() <= {"type", "metadata"}
        # The length limits of the bytes apply as well.
        ours = read if whole else {"type": "chain", "steps": [read, schema]}
        return {**ours, "metadata": {_BYTES: True}}

    def python_rule(self, schema: Schema) -> Schema:
        """Read base64 from text."""
        if schema["type"] == "union":
            return _text_first(schema)
        if not self._is_ours(schema):
            return schema

        def read(value: Any) -> Any:
            return _from_base64(value) if isinstance(value, str) else value

        ours = _function("before", _named(bytes, read), schema)
        return {**ours, "metadata": {_BYTES: True}}

    def writing_rule(self, schema: Schema) -> Schema:
        """Write base64."""
        if not self._is_ours(schema):
            return schema
        return {**schema, "serialization": _written_by(_to_base64)}

    def _is_ours(self, schema: Schema) -> bool:
        return schema["type"] == "bytes" and id(schema) not in self._theirs


def own_bytes(schema: Schema) -> Callable[[Schema], bool]:
    """Return a function that tells the parts of a schema that are base64 in JSON."""
    return _Bytes(schema)._is_ours


def _bytes_of_users(schema: Schema, *, is_users: bool) -> Iterator[int]:
    """Yield the identities of bytes schemas with rules of their own."""
    if isinstance(schema, (list, tuple)):
        for each in schema:
            yield from _bytes_of_users(each, is_users=is_users)
        return
    if not isinstance(schema, dict):
        return
    is_schema = isinstance(schema.get("type"), str)
    if is_schema:
        if "config" in schema:
            is_users = not _BYTES_SETTINGS.isdisjoint(schema["config"] or ())
        is_users = is_users or "serialization" in schema
        if is_users and schema["type"] == "bytes":
            yield id(schema)
    for key, inner in schema.items():
        if key in _INNER or not is_schema:
            yield from _bytes_of_users(inner, is_users=is_users)


_BYTES_SETTINGS: Final = frozenset({"ser_json_bytes", "val_json_bytes"})


def _text_first(schema: Schema) -> Schema:
    """
    Return a union that never reads text as bytes.

    Otherwise the content of a text would decide.
    """
    choices = schema["choices"]
    if not any(_BYTES in _choice_of(each).get("metadata", {}) for each in choices):
        return schema
    texts = [each for each in choices if _choice_of(each)["type"] == "str"]
    rest = [each for each in choices if each not in texts]
    return {**schema, "choices": [*texts, *rest]}


_BYTES: Final = "django_cqrs_bytes"
"""The key of a schema's metadata that marks the package's own bytes schemas."""


def _choice_of(choice: Any) -> Schema:
    return choice[0] if isinstance(choice, tuple) else choice  # with a label


def _from_base64(text: str) -> bytes:
    from pydantic_core import PydanticCustomError

    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        code, fault = "bytes_base64", "Input should be bytes as base64 text"
        raise PydanticCustomError(code, fault) from None


def _to_base64(value: Any) -> str:
    from pydantic_core import PydanticSerializationUnexpectedValue

    if not isinstance(value, (bytes, bytearray)):  # another member of a union
        raise PydanticSerializationUnexpectedValue(bytes.__name__)
    return base64.b64encode(value).decode()


def _written_by(function: Callable[[Any], Any], kind: str = "str") -> Schema:
    return {
        "type": "function-plain",
        "function": function,
        "return_schema": {"type": kind},
        "when_used": "json",
    }


# ------------------------------------------------------------------- the exact form


def _stored_rule(schema: Schema) -> Schema:
    """
    Add the package's rules of reading a channel's text: values are restored unchanged.

    The text was written by this package. So fields that ``__init__`` does not accept
    are read as well, and a whole number stays one where a float is expected.
    """
    kind = schema["type"]
    if kind == "float":
        return _float_or_int({**schema, "allow_inf_nan": False})
    if kind == "dataclass" and (late := _late_fields(schema)):
        return _instead_of(schema, _with_late_fields(schema, late))
    return _json_rule(schema)


def _float_or_int(schema: Schema) -> Schema:
    whole = {key: value for key, value in schema.items() if key in _BOUNDS}
    error: dict[str, Any] = {"custom_error_type": "float_type"}
    if whole:
        error = {
            "custom_error_type": "number_in_bounds",
            "custom_error_message": "Input should be a valid number within its bounds",
        }
    # A database may return a large float as a whole number: 1e16 in PostgreSQL.
    small = {"le": _EXACT, "ge": -_EXACT, **whole}
    choices = [schema, {"type": "int", **small}]
    return {"type": "union", "choices": choices, **error}


_EXACT: Final = 2**53
_BOUNDS: Final = frozenset({"ge", "gt", "le", "lt", "multiple_of"})


def _late_fields(schema: Schema) -> frozenset[str]:
    """Return the names of a dataclass's fields that ``__init__`` does not accept."""
    arguments = schema["schema"]
    if arguments["type"] != "dataclass-args":
        return frozenset()
    return frozenset(
        field["name"] for field in arguments["fields"] if not field.get("init", True)
    )


def _with_late_fields(schema: Schema, late: frozenset[str]) -> Schema:
    """Read a dataclass with all of its fields: late ones are not computed again."""
    cls, arguments = schema["cls"], schema["schema"]
    fields = []
    for each in arguments["fields"]:
        if each["name"] in late:
            inner = each["schema"]
            inner = inner["schema"] if inner["type"] == "default" else inner
            read = {"type": "default", "schema": inner, "default": _MISSING}
            fields.append({**each, "init": True, "kw_only": True, "schema": read})
        else:
            fields.append(each)
    makes = {
        field.name: _default_of(field)
        for field in dataclasses.fields(cls)
        if field.name in late
    }

    def make(values: tuple[dict[str, Any], tuple[Any, ...] | None]) -> Any:
        given, init_only = values
        made = cls.__new__(cls)
        for name, value in given.items():
            kept = makes[name]() if value is _MISSING else value
            if kept is not _MISSING:
                object.__setattr__(made, name, kept)  # it may be frozen
        if hasattr(cls, "__post_init__"):
            made.__post_init__(*(init_only or ()))
            for name in late:
                if (value := given[name]) is not _MISSING:
                    object.__setattr__(made, name, value)
        return made

    return _after(_named(cls, refusable(make)), {**arguments, "fields": fields})


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], Any]:
    factory: Any = field.default_factory
    if factory is not dataclasses.MISSING:
        return cast("Callable[[], Any]", factory)
    default = field.default
    return lambda: _MISSING if default is dataclasses.MISSING else default


_MARKED: Final = frozenset({"datetime", "float", "time"})
"""The schemas whose exact form differs from the usual one."""

_MARK_END: Final = b']"'
_BRACKET: Final = _MARK_END[0]
_MINUTE: Final = timedelta(minutes=1)
_OFFSET: Final = "offset"
_MARK: Final = re.compile(
    r"(?P<time>[^\[\]]+)(?:\[(?P<zone>[\w+/.-]+)\])?(?P<fold>\[fold=1\])?"
)


def _exact_rule(schema: Schema) -> Schema:
    """Write the zone and the fold of a time, and whole numbers as such."""
    if "serialization" in schema:
        return schema
    if schema["type"] in ("datetime", "time"):
        cls = _CLOCKS[schema["type"]]

        def write(value: Any) -> str:
            from pydantic_core import PydanticSerializationUnexpectedValue

            if not isinstance(value, cls):  # another member of a union
                raise PydanticSerializationUnexpectedValue(cls.__name__)
            return _marked(value)

        return {**schema, "serialization": _written_by(write)}
    if schema["type"] == "float":
        return {**schema, "serialization": _written_by(_number, "any")}
    return schema


_CLOCKS: Final[dict[str, type[datetime | time]]] = {
    "datetime": datetime,
    "time": time,
}


def _number(value: Any) -> Any:
    from pydantic_core import PydanticSerializationUnexpectedValue

    if type(value) not in (int, float):
        raise PydanticSerializationUnexpectedValue(float.__name__)
    return value


def _marked(value: datetime | time) -> str:
    """
    Return a time with its zone and its fold, in the style of RFC 9557.

    ``2026-10-25T02:30:00+01:00[Europe/Berlin][fold=1]``
    """
    zone, offset = value.tzinfo, value.utcoffset()
    named = ""
    if isinstance(zone, ZoneInfo) and zone.key:
        named = f"[{zone.key}]"
    elif offset is not None and offset % _MINUTE:  # pydantic reads that without seconds
        named = f"[{_OFFSET}]"
    return f"{value.isoformat()}{named}{'[fold=1]' if value.fold else ''}"


def _unmarked(cls: Any, text: str) -> Any:
    """Return the time in a text of :func:`_marked`."""
    from pydantic_core import PydanticCustomError

    found = _MARK.fullmatch(text)
    if found is None:
        return text
    value = cls.fromisoformat(found["time"])
    fold = 1 if found["fold"] else 0
    if found["zone"] in (None, _OFFSET):
        return value.replace(fold=fold)
    try:
        zone = ZoneInfo(found["zone"])
    except (LookupError, ValueError, OSError):
        code, fault = "time_zone", "Input's time zone is not known here"
        raise PydanticCustomError(code, fault) from None
    here = value.replace(tzinfo=zone, fold=fold)
    if cls is datetime and here.utcoffset() != value.utcoffset():
        return value.astimezone(zone)  # the zone's rules have changed since
    return here


def _zone_rule(schema: Schema) -> Schema:
    """Read a time with Python's own class for the offset, not pydantic's."""
    if schema["type"] not in _CLOCKS:
        return schema
    return _after(_named(_CLOCKS[schema["type"]], _with_own_zone), schema)


def _with_own_zone(value: Any) -> Any:
    zone: tzinfo | None = value.tzinfo
    if zone is None or type(zone) is timezone or isinstance(zone, ZoneInfo):
        return value
    offset = zone.utcoffset(None)
    return value if offset is None else value.replace(tzinfo=timezone(offset))


def _mark_rule(schema: Schema) -> Schema:
    """Read a time with its marks."""
    kind = schema["type"]
    if kind not in _CLOCKS:
        return schema
    cls = _CLOCKS[kind]
    plain = _validator(schema)

    def read(value: Any, inner: Callable[[Any], Any]) -> Any:
        from pydantic_core import PydanticKnownError

        if not isinstance(value, str):
            fault: Any = f"{kind}_type"
            raise PydanticKnownError(fault)
        if not value.endswith("]"):  # as everywhere else: text is a time only in JSON
            return _with_own_zone(plain.validate_json(json.dumps(value), strict=True))
        return _with_own_zone(inner(refusable(_unmarked)(cls, value)))

    lax = {
        **schema,
        "strict": False,
    }  # it gets text, which is not a time in strict mode
    return _function("wrap", _named(cls, read), lax)


def _strictly(schema: Schema) -> tuple[Schema, bool | None]:
    """
    Return a schema, and whether it reads JSON strictly.

    Where a model's own functions come before its fields, strings are accepted as dates
    and the like, for the reason given in :func:`_json_rule`; never as numbers.
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
    """Return a function that restores a dataclass's object from its fields' values."""

    def make(values: tuple[dict[str, Any], tuple[Any, ...] | None]) -> Any:
        fields, init_only = values
        made = cls.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(made, name, value)  # it may be frozen
        made.__post_init__(*(init_only or ()))
        return made

    return _named(cls, refusable(make))


def fields_of_named_tuple(schema: Schema) -> Schema | None:
    """Return the schema of a dict of a NamedTuple's fields; None for other schemas."""
    return None if _named_tuple(schema) is None else _fields_of(schema)


def describable(schema: Schema) -> Schema:
    """Return a core schema whose JSON schema describes what is read and written."""
    is_ours = _Bytes(schema)._is_ours

    def describe(each: Schema) -> Schema:
        if is_ours(each):
            return _with_keywords({"type": "str"}, {"contentEncoding": "base64"})
        load = each.get("metadata", {}).get(LOAD)
        if each["type"] == "function-wrap" and load is not None:
            return _with_keywords(each, {"title": load.__name__})
        cls = _named_tuple(each)
        if cls is None:
            return each
        return _instead_of(each, {**_fields_of(each), "cls_name": cls.__name__})

    return _with(describe, schema)


def _with_keywords(schema: Schema, keywords: dict[str, Any]) -> Schema:
    """Return a core schema with more keywords in its JSON schema."""
    metadata = {**schema.get("metadata", {}), "pydantic_js_updates": keywords}
    return {**schema, "metadata": metadata}


def _named_tuple(schema: Schema) -> Any:
    """Return the class of a NamedTuple's schema; None for other schemas."""
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
    """Give a function the name of the class it returns, for the paths of errors."""
    function.__name__ = cls.__name__
    return function


def _instead_of(replaced: Schema, schema: Schema) -> Schema:
    return {**schema, "ref": replaced["ref"]} if "ref" in replaced else schema
