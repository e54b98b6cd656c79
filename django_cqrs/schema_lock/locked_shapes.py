"""
Shapes: the JSON that the present code of a class reads, in words of our own.

A shape is made from pydantic's core schema, not from its JSON schema, which loses facts
about reading: to it a Decimal is any text. It is a dict with a ``type``, of plain JSON,
and it is the same with every supported Python and pydantic.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final

from django_cqrs.annotations import field_names, name_of_type
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.schemas import (
    LOAD,
    Schema,
    fields_of_named_tuple,
    own_bytes,
    schemas_in,
)
from django_cqrs.exceptions import MessageConversionError

LockedShape = dict[str, Any]
"""A dict with a ``type``, and with the details of that type."""

ANY: Final = "any"
NONE: Final = "none"
OBJECT: Final = "object"
UNION: Final = "union"

SCALARS: Final = frozenset(
    {ANY, "bool", "bytes", "date", "datetime", "decimal", "float", "fraction", "int"}
    | {NONE, "str", "time", "timedelta", "url", "uuid"}
)
TYPES: Final = SCALARS | frozenset(
    {"code", "converted", "dict", "json", "list", OBJECT, "one_of", "other"}
    | {"recursion", "set", "tagged", "tuple", UNION}
)
"""The possible types of shapes."""

# The keys of a shape that hold shapes: one, a list, or several by name.
ONE: Final = frozenset({"extras", "keys", "values"})
SEVERAL: Final = frozenset({"fields", "tags"})
OF: Final = "of"
"""The key of the inner shape, or of a list of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class DescribedType:
    """The shape of a type, and the examples that its fields give."""

    shape: LockedShape
    examples: Mapping[str, list[Any]]
    """By the path of the field."""


def described(schema: Schema) -> DescribedType:
    """Return the shape of a core schema."""
    describer = _Describer(schema)
    return DescribedType(describer.shape(schema, ""), describer.examples)


# Schemas that have the JSON of another one.
_AROUND: Final = {
    "custom-error": "schema",
    "default": "schema",
    "definitions": "schema",
    "json-or-python": "json_schema",
    "lax-or-strict": "strict_schema",
}
_ARRAYS: Final = {
    "deque": "list",
    "frozenset": "set",
    "generator": "list",
    "list": "list",
    "set": "set",
}
_MAPPINGS: Final = frozenset({"counter", "dict", "ordered-dict"})
# Keys of a schema that change nothing about reading JSON.
_SILENT: Final = frozenset(
    {"cls", "cls_repr", "fail_fast", "items_schema", "keys_schema", "metadata", "ref"}
    | {"serialization", "type", "values_schema", "variadic_item_index"}
)
# Keys of a model's configuration that change nothing about reading JSON, or whose
# effect is another part of the shape.
_SILENT_SETTINGS: Final = frozenset(
    {"allow_inf_nan", "cache_strings", "extra_fields_behavior", "from_attributes"}
    | {"frozen", "hide_input_in_errors", "loc_by_alias", "populate_by_name"}
    | {"revalidate_instances", "ser_json_inf_nan", "serialize_by_alias", "title"}
    | {"validate_assignment", "validate_by_name", "validate_default"}
    | {"validation_error_cause"}
)
_USUAL_SETTINGS: Final = (("strict", True), ("validate_by_alias", True))
# Functions that only make the Python value of a container or a URL.
_MAKERS: Final = frozenset(
    {"Counter", "OrderedDict", "defaultdict_validator", "deque_validator"}
    | {"mapping_like_validator", "sequence_validator", "wrap_val"}
)
_MAKERS_MODULES: Final = ("pydantic", "collections")
_FRACTION: Final = "fraction_validator"
_BUILT: Final = (dict, frozenset, list, set, str, tuple)


class _Describer:
    """Makes the shape of one core schema."""

    def __init__(self, schema: Schema) -> None:
        parts = schemas_in(schema)
        self._named = {each["ref"]: each for each in parts if "ref" in each}
        self._is_own = own_bytes(schema)
        self._around: list[str] = []
        """The references of the schemas around the present one."""
        self._objects: list[Schema] = []
        """The schemas of the classes with fields around the present one."""
        self.examples: dict[str, list[Any]] = {}

    def shape(self, schema: Schema, path: str) -> LockedShape:
        if schema["type"] == "definition-ref":
            return self._referred(schema["schema_ref"], path)
        ref = schema.get("ref")
        if ref is None:
            return self._shape(schema, path)
        self._around.append(ref)
        try:
            return self._shape(schema, path)
        finally:
            self._around.pop()

    def _referred(self, ref: str, path: str) -> LockedShape:
        if ref not in self._around:
            return self.shape(self._named[ref], path)
        for up, each in enumerate(reversed(self._objects)):
            if each.get("ref") == ref:
                return {"type": "recursion", "up": up}
        return {"type": "recursion", "name": _NAME_OF_REF.sub(r"\1", ref)}

    def _shape(self, schema: Schema, path: str) -> LockedShape:
        kind = schema["type"]
        if kind in _AROUND:
            return self.shape(schema[_AROUND[kind]], path)
        inner = fields_of_named_tuple(schema)
        if inner is not None:
            with self._inside(schema):
                return self._fields(inner, path)
        if kind in SCALARS:
            return self._scalar(schema)
        if kind in _ARRAYS:
            items = self.shape(schema.get("items_schema") or _ANYTHING, f"{path}[]")
            return {"type": _ARRAYS[kind], OF: items, **_sizes(schema)}
        if kind in _MAPPINGS:
            return self._mapping(schema, path)
        method = getattr(self, f"_{kind.replace('-', '_')}", None)
        if method is None:
            return {"type": "other", "name": kind, **_attributes(schema)}
        found: LockedShape = method(schema, path)
        return found

    def _scalar(self, schema: Schema) -> LockedShape:
        kind = schema["type"]
        found = {"type": kind, **_attributes(schema)}
        if found.get("microseconds_precision") == "truncate":
            del found["microseconds_precision"]
        if kind == "float":  # JSON has no infinity, whatever the class says
            found.pop("allow_inf_nan", None)
        if kind == "bytes" and not self._is_own(schema):
            found["form"] = "of its class"
        return found

    def _mapping(self, schema: Schema, path: str) -> LockedShape:
        inner = f"{path}{{}}"
        return {
            "type": "dict",
            "keys": self.shape(schema.get("keys_schema") or _ANYTHING, inner),
            "values": self.shape(schema.get("values_schema") or _ANYTHING, inner),
            **_sizes(schema),
        }

    def _tuple(self, schema: Schema, path: str) -> LockedShape:
        items, rest = schema["items_schema"], schema.get("variadic_item_index")
        if rest == 0 and len(items) == 1:
            inner = self.shape(items[0], f"{path}[]")
            return {"type": "list", OF: inner, **_sizes(schema)}
        shapes = [self.shape(each, f"{path}[{n}]") for n, each in enumerate(items)]
        found = {"type": "tuple", OF: shapes, **_sizes(schema)}
        return found if rest is None else {**found, "rest": rest}

    def _literal(self, schema: Schema, _path: str) -> LockedShape:
        return _one_of(schema["expected"])

    def _enum(self, schema: Schema, _path: str) -> LockedShape:
        found = _one_of(each.value for each in schema["members"])
        missing = getattr(schema["cls"], "_missing_", None)
        if missing is not None and missing.__module__ != enum.__name__:
            found["open"] = True  # its own code reads other values as well
        return found

    def _nullable(self, schema: Schema, path: str) -> LockedShape:
        return _union([self.shape(schema["schema"], path), {"type": NONE}])

    def _union(self, schema: Schema, path: str) -> LockedShape:
        choices = [
            each[0] if isinstance(each, tuple) else each for each in schema["choices"]
        ]
        members = [self.shape(each, path) for each in choices]
        mode = schema.get("mode", "smart")
        if mode != "smart":  # the order counts
            return {"type": UNION, OF: members, "mode": mode}
        return _union(members)

    def _tagged_union(self, schema: Schema, path: str) -> LockedShape:
        by = schema["discriminator"]
        tags = {
            text_of(plain(tag)): self.shape(each, path)
            for tag, each in schema["choices"].items()
        }
        named = by if isinstance(by, (str, list)) else _name_of(by)
        return {"type": "tagged", "by": named, "tags": dict(sorted(tags.items()))}

    def _json(self, schema: Schema, path: str) -> LockedShape:
        inner = self.shape(schema.get("schema") or _ANYTHING, path)
        return {"type": "json", OF: inner}

    def _chain(self, schema: Schema, path: str) -> LockedShape:
        steps = [self.shape(each, path) for each in schema["steps"]]
        known = [each for n, each in enumerate(steps) if each not in steps[:n]]
        if len(known) == 1:
            return known[0]
        return {"type": "other", "name": "chain", OF: known}

    # ------------------------------------------------------------ code of the class

    def _function_after(self, schema: Schema, path: str) -> LockedShape:
        inner = self.shape(schema["schema"], path)
        function = schema["function"]["function"]
        return inner if _is_maker(function) else _checked(inner, _name_of(function))

    def _function_before(self, schema: Schema, path: str) -> LockedShape:
        inner = self.shape(schema["schema"], path)
        function = schema["function"]["function"]
        if _is_maker(function):
            return inner
        return {"type": "code", "name": _name_of(function), OF: inner}

    def _function_wrap(self, schema: Schema, path: str) -> LockedShape:
        load = schema.get("metadata", {}).get(LOAD)
        if load is None:
            return self._function_before(schema, path)
        form = self.shape(schema["schema"], path)
        return {"type": "converted", "to": load.__name__, OF: form}

    def _function_plain(self, schema: Schema, _path: str) -> LockedShape:
        name = _name_of(schema["function"]["function"])
        if name == _FRACTION:
            return {"type": "fraction"}
        return {"type": "code", "name": name}

    # ----------------------------------------------------------------------- fields

    @contextmanager
    def _inside(self, schema: Schema) -> Iterator[None]:
        """Describe the fields of a class."""
        self._objects.append(schema)
        try:
            yield
        finally:
            self._objects.pop()

    def _dataclass(self, schema: Schema, path: str) -> LockedShape:
        with self._inside(schema):
            found = _configured(self.shape(schema["schema"], path), schema)
        return _checked(found, "__post_init__") if schema.get("post_init") else found

    def _model(self, schema: Schema, path: str) -> LockedShape:
        if schema.get("root_model"):
            found = self.shape(schema["schema"], path)
        else:
            with self._inside(schema):
                found = _configured(self.shape(schema["schema"], path), schema)
        if schema.get("custom_init"):
            found = _checked(found, "__init__")
        after: Any = getattr(schema["cls"], "model_post_init", None)
        if not str(getattr(after, "__module__", "pydantic")).startswith("pydantic"):
            found = _checked(found, "model_post_init")
        return found

    def _typed_dict(self, schema: Schema, path: str) -> LockedShape:
        with self._inside(schema):
            return _configured(self._fields(schema, path), schema)

    def _dataclass_args(self, schema: Schema, path: str) -> LockedShape:
        return self._fields(schema, path)

    def _model_fields(self, schema: Schema, path: str) -> LockedShape:
        return self._fields(schema, path)

    def _fields(self, schema: Schema, path: str) -> LockedShape:
        config = self._objects[-1].get("config") or {}
        by_name = config.get("validate_by_name") or config.get("populate_by_name")
        fields: dict[str, LockedShape] = {}
        for name, field in _named_fields(schema["fields"]):
            key, read = _keys_of(name, field)
            fields[key] = self._field(field, f"{path}.{key}".lstrip("."))
            keys = [*read, name] if by_name else read
            if keys != [key]:
                once = {text_of(each): each for each in keys}
                fields[key]["read_from"] = [once[each] for each in sorted(once)]
        found: LockedShape = {"type": OBJECT, "fields": dict(sorted(fields.items()))}
        if "extras_schema" in schema:
            found["extras"] = self.shape(schema["extras_schema"], f"{path}{{}}")
        extra = schema.get("extra_behavior", "ignore")
        return found if extra == "ignore" else {**found, "extra": extra}

    def _field(self, field: Schema, path: str) -> LockedShape:
        schema = field["schema"]
        updates = (field.get("metadata") or {}).get("pydantic_js_updates") or {}
        if updates.get("examples"):
            self.examples[path] = [plain(each) for each in updates["examples"]]
        found = dict(self.shape(schema, path))
        while schema["type"] in _BEFORE_DEFAULT:
            schema = schema["schema"]
        if schema["type"] == "default":
            found |= _default_of(schema)
        elif field.get("required") is False or not field.get("init", True):
            found["required"] = False
        return found


_ANYTHING: Final[Schema] = {"type": "any"}
_BEFORE_DEFAULT: Final = frozenset(
    {"function-after", "function-before", "function-wrap"}
)
_NAME_OF_REF: Final = re.compile(r"^(?:.*\.)?([^.:]+):.*$")


def _named_fields(fields: Any) -> Iterator[tuple[str, Schema]]:
    pairs = fields.items() if isinstance(fields, dict) else enumerate(fields)
    for key, field in pairs:
        yield field.get("name", key), field


def _keys_of(name: str, field: Schema) -> tuple[str, list[Any]]:
    """Return the key that a field is written under, and those that it is read from."""
    written: str = field.get("serialization_alias") or name
    alias = field.get("validation_alias")
    if alias is None:
        return written, [name]
    if isinstance(alias, str):
        return written, [alias]
    paths = alias if isinstance(alias[0], list) else [alias]
    return written, [each[0] if len(each) == 1 else each for each in paths]


def _default_of(schema: Schema) -> LockedShape:
    if "default" in schema:
        return {"default": plain(schema["default"])}
    factory = schema.get("default_factory")
    if factory in _BUILT:
        return {"default": plain(factory())}
    return {"default_factory": _name_of(factory)}


def _configured(shape: LockedShape, schema: Schema) -> LockedShape:
    """Return the shape of a class with its settings that change the reading."""
    config = schema.get("config") or {}
    found = dict(shape)
    extra = config.get("extra_fields_behavior", "ignore")
    if extra != "ignore" and found["type"] == OBJECT:
        found.setdefault("extra", extra)
    settings = {
        key: _constraint(value)
        for key, value in sorted(config.items())
        if key not in _SILENT_SETTINGS
        and value is not None
        and (key, value) not in _USUAL_SETTINGS
    }
    return {**found, "settings": settings} if settings else found


def _checked(shape: LockedShape, name: str) -> LockedShape:
    """Return a shape whose values are then checked by code."""
    return {**shape, "checks": sorted({*shape.get("checks", ()), name})}


def _union(members: list[LockedShape]) -> LockedShape:
    """
    Return a union, its members in an order of their own.

    ``typing`` may give the members of an equal union that was written elsewhere.
    """
    flat: list[LockedShape] = []
    for each in members:
        is_inner = each["type"] == UNION and each.keys() <= {"type", OF}
        flat += each[OF] if is_inner else [each]
    once = {text_of(each): each for each in flat}
    if len(once) == 1:
        return flat[0]
    in_order = sorted(once, key=lambda text: (once[text]["type"] == NONE, text))
    return {"type": UNION, OF: [once[text] for text in in_order]}


def _one_of(values: Iterable[Any]) -> LockedShape:
    texts = {text_of(value): value for value in map(plain, values)}
    return {"type": "one_of", "choices": [texts[each] for each in sorted(texts)]}


def _attributes(schema: Schema) -> LockedShape:
    """Return the constraints and the other details of a schema."""
    return {
        key: _constraint(value)
        for key, value in sorted(schema.items())
        if key not in _SILENT and value is not None and (key, value) != _STRICT
    }


def _sizes(schema: Schema) -> LockedShape:
    """Return the constraints of a container, whose JSON is the same laxly."""
    return {k: value for k, value in _attributes(schema).items() if k != "strict"}


_STRICT: Final = ("strict", True)  # as everything is read from a channel


def _constraint(value: Any) -> Any:
    return value.pattern if isinstance(value, re.Pattern) else plain(value)


def _is_maker(function: Any) -> bool:
    bare = getattr(function, "func", function)  # of a partial
    module = str(getattr(bare, "__module__", "")).partition(".")[0]
    return module in _MAKERS_MODULES and getattr(bare, "__name__", "") in _MAKERS


def _name_of(function: Any) -> str:
    """Return the name of a function, with the object that it is bound to."""
    if isinstance(function, functools.partial):
        given = ", ".join(
            f"{key}={text_of(plain(value))}"
            for key, value in sorted(function.keywords.items())
        )
        return f"{_name_of(function.func)}({given})"
    name = str(getattr(function, "__name__", type(function).__name__))
    holder = getattr(function, "__self__", None)
    if inspect.isclass(holder) and holder.__module__.startswith("pydantic"):
        return f"{holder.__name__}.{name}"
    if holder is None or inspect.isclass(holder) or inspect.ismodule(holder):
        return name
    shown = repr(holder)
    return f"{type(holder).__name__ if ' at 0x' in shown else shown}.{name}"


def text_of(value: Any) -> str:
    """Return JSON as text, equal for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return the JSON of a value in code: of a default, or of a member of an enum."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=text_of)
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    names = field_names(type(value))
    if names is not None:
        return {name: plain(getattr(value, name, None)) for name in names}
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    if isinstance(value, Decimal):
        return str(value)
    try:
        return adapter_of(type(value)).to_jsonable(value)
    except MessageConversionError:
        return {"python": name_of_type(type(value))}


def shown(shape: LockedShape) -> str:
    """Return a shape as text, for people."""
    return text_of(short(shape))


def short(shape: LockedShape) -> Any:
    """Return a shape in its short form: a type without details is its name."""
    if shape.keys() == {"type"}:
        return shape["type"]
    return mapped(short, shape)


def mapped(function: Callable[[Any], Any], shape: LockedShape) -> LockedShape:
    """Return a shape with a function applied to the shapes directly inside it."""
    found = dict(shape)
    for key, value in shape.items():
        if key in ONE:
            found[key] = function(value)
        elif key in SEVERAL:
            found[key] = {name: function(each) for name, each in value.items()}
        elif key == OF:
            is_list = isinstance(value, list)
            found[key] = list(map(function, value)) if is_list else function(value)
    return found
