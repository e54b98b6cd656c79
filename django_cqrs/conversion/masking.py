"""Masking for operators: fields marked ``Sensitive``, and texts that quote them."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import html
import json
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from uuid import UUID

from django.utils.dateparse import parse_duration

from django_cqrs.conversion.schemas import (
    LOAD,
    Schema,
    core_schema_of,
    fields_of_named_tuple,
    mistakes,
    schemas_in,
)

MASK: Final = "••••••"
"""The replacement of a sensitive value."""

SENSITIVE: Final = "django_cqrs_sensitive"
"""The key of a schema's metadata that marks it as sensitive."""

Path = tuple[str | int, ...]
"""A place in JSON: keys and numbers from the top."""

Masker = Callable[[Path, Any], Any]
"""A function from a place and its sensitive value to the replacement."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sensitive:
    """
    ``Annotated[str, Sensitive()]``: operators do not see this field's value.

    Handlers get it, and it is stored as usual; the admin and the commands mask it.
    """

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        """Mark the schema of the annotated type, without changing its conversion."""
        schema = handler(source)
        return {**schema, "metadata": {**schema.get("metadata", {}), SENSITIVE: True}}


# --------------------------------------------------------------------------- shapes


@dataclasses.dataclass(slots=True, eq=False)
class _JsonShape:
    """The possible JSON at one place. All members of a union add to it."""

    hides: bool = False
    takes_anything: bool = False
    takes_scalars: bool = False
    takes_null: bool = False
    fields: dict[str, _JsonShape] = dataclasses.field(default_factory=dict)
    others: _JsonShape | None = None
    """The masking of keys that are not fields."""
    items: list[_JsonShape] = dataclasses.field(default_factory=list)
    rest: _JsonShape | None = None
    """The shape of the items after those."""
    links: list[_JsonShape] = dataclasses.field(default_factory=list)
    """Other shapes that are possible here."""


# Schemas that wrap another one and have its JSON.
_AROUND = {
    "chain": "steps",
    "custom-error": "schema",
    "dataclass": "schema",
    "dataclass-field": "schema",
    "default": "schema",
    "function-after": "schema",
    "function-before": "schema",
    "function-wrap": "schema",
    "json-or-python": "json_schema",
    "model": "schema",
    "model-field": "schema",
    "typed-dict-field": "schema",
}
_SCALARS = frozenset(
    {"bool", "bytes", "complex", "date", "datetime", "decimal", "float", "int", "str"}
    | {"multi-host-url", "time", "timedelta", "url", "uuid"}
)
_LISTS = frozenset({"frozenset", "generator", "list", "set"})


class _Compiler:
    """Compiles the schemas of one type into shapes."""

    def __init__(self) -> None:
        self.is_marked = False
        self._named: dict[str, _JsonShape] = {}
        self._definitions: dict[str, Schema] = {}

    def compile(self, schema: Schema) -> _JsonShape:
        for each in schemas_in(schema):
            if "ref" in each:
                self._definitions[each["ref"]] = each
        self.is_marked = self._marks(schema)
        shape = _JsonShape()
        self._fill(shape, schema)
        return shape

    def _marks(self, schema: Schema) -> bool:
        """Return whether any part of a schema is marked."""
        todo, seen = [schema], set()
        while todo:
            for each in schemas_in(todo.pop()):
                if SENSITIVE in each.get("metadata", ()):
                    return True
                ref = each.get("schema_ref")
                if ref in self._definitions and ref not in seen:
                    seen.add(ref)
                    todo.append(self._definitions[ref])
        return False

    def _fill(self, shape: _JsonShape, schema: Schema) -> None:
        kind = schema["type"]
        if SENSITIVE in schema.get("metadata", ()):
            shape.hides = True
        elif kind == "definition-ref":
            shape.links.append(self._shape_of(schema["schema_ref"]))
        elif kind == "definitions":
            self._fill(shape, schema["schema"])
        elif "ref" in schema:
            shape.links.append(self._shape_of(schema["ref"]))
        else:
            self._fill_by_kind(shape, schema)

    def _shape_of(self, ref: str) -> _JsonShape:
        found = self._named.get(ref)
        if found is None:
            found = self._named[ref] = _JsonShape()
            named = {**self._definitions[ref]}
            del named["ref"]
            self._fill(found, named)
        return found

    def _fill_by_kind(self, shape: _JsonShape, schema: Schema) -> None:
        kind = schema["type"]
        serialization = schema.get("serialization") or {}
        is_ours = LOAD in schema.get("metadata", {})
        tuple_fields = fields_of_named_tuple(schema)
        if str(serialization.get("type")).startswith("function") and not is_ours:
            # That function may produce any JSON.
            self._fill_opaque(shape, schema)
        elif tuple_fields is not None:
            self._fill(shape, tuple_fields)
        elif kind in _AROUND:
            inner = schema[_AROUND[kind]]
            for each in inner if isinstance(inner, list) else [inner]:
                self._fill(shape, each)
        elif kind in ("model-fields", "typed-dict", "dataclass-args"):
            self._fill_fields(shape, schema)
        elif kind in ("union", "tagged-union"):
            choices = schema["choices"]
            for each in choices.values() if isinstance(choices, dict) else choices:
                self._fill(shape, each[0] if isinstance(each, tuple) else each)
        elif kind == "lax-or-strict":
            self._fill(shape, schema["lax_schema"])
            self._fill(shape, schema["strict_schema"])
        elif kind == "nullable":
            shape.takes_null = True
            self._fill(shape, schema["schema"])
        elif kind == "none":
            shape.takes_null = True
        elif kind == "dict":
            self._fill_dict(shape, schema)
        elif kind == "tuple":
            self._fill_tuple(shape, schema)
        elif kind in _LISTS:
            shape.rest = shape.rest or _JsonShape()
            self._fill(shape.rest, schema.get("items_schema") or {"type": "any"})
        elif kind in _SCALARS:
            shape.takes_scalars = True
        else:
            self._fill_opaque(shape, schema)

    def _fill_opaque(self, shape: _JsonShape, schema: Schema) -> None:
        """Accept anything, and hide all of it if any part is marked."""
        if self._marks(schema):
            shape.hides = True
        else:
            shape.takes_anything = True

    def _fill_fields(self, shape: _JsonShape, schema: Schema) -> None:
        fields = schema["fields"]
        pairs = (
            fields.items()
            if isinstance(fields, dict)
            else ((field["name"], field) for field in fields)
        )
        for name, field in pairs:
            for each in _names_of(name, field):
                self._fill(shape.fields.setdefault(each, _JsonShape()), field)
        if schema.get("extras_schema"):
            shape.others = shape.others or _JsonShape()
            self._fill(shape.others, schema["extras_schema"])

    def _fill_dict(self, shape: _JsonShape, schema: Schema) -> None:
        if self._marks(schema.get("keys_schema") or {"type": "any"}):
            shape.hides = True
        shape.others = shape.others or _JsonShape()
        self._fill(shape.others, schema.get("values_schema") or {"type": "any"})

    def _fill_tuple(self, shape: _JsonShape, schema: Schema) -> None:
        if schema.get("variadic_item_index") is not None:
            shape.rest = shape.rest or _JsonShape()
            for each in schema["items_schema"]:
                self._fill(shape.rest, each)
            return
        for place, each in enumerate(schema["items_schema"]):
            if place == len(shape.items):
                shape.items.append(_JsonShape())
            self._fill(shape.items[place], each)


def _names_of(name: str, field: Schema) -> set[str]:
    """Return all keys that a field may have."""
    names = {name, field.get("serialization_alias") or name}
    alias = field.get("validation_alias") or name
    if isinstance(alias, str):
        names.add(alias)
    else:  # one path, or several
        paths = alias if alias and isinstance(alias[0], list) else [alias]
        names.update(str(path[0]) for path in paths if path)
    return names


def _with_links(shapes: Iterable[_JsonShape]) -> list[_JsonShape]:
    found = list(dict.fromkeys(shapes))
    for each in found:  # it grows in this loop
        found += [link for link in dict.fromkeys(each.links) if link not in found]
    return found


# -------------------------------------------------------------------------- masking


class Masking:
    """The hidden parts of one type's JSON: compiled once."""

    def __init__(self, target: Any) -> None:
        """
        Find the marks in a type.

        `reason` says why its JSON must not be shown at all: a type that cannot be
        converted cannot be examined either.
        """
        self.reason: str | None = None
        compiler = _Compiler()
        self._shape = _JsonShape(hides=True)
        try:
            self._shape = compiler.compile(core_schema_of(target))
        except mistakes() as error:
            lines = str(error).splitlines() or [type(error).__name__]
            self.reason = lines[0].rstrip(".")
        self.is_marked: bool = compiler.is_marked or self.reason is not None
        """Whether anything in it is sensitive."""

    def mask(self, value: Any, masker: Masker) -> Any:
        """
        Return JSON with its hidden values replaced.

        A value is shown if the type has a value of this kind at its place, and it is
        not marked. So values that an older version, or an invalid payload, had
        elsewhere are masked.

        Args:
            value: the JSON, as dicts, lists and scalars.
            masker: takes the place and the value to be replaced.

        Raises:
            RecursionError: it is nested too deeply.

        """
        return _masked(value, [self._shape], (), masker)


@functools.cache
def _cached_masking(target: Any) -> Masking:
    return Masking(target)


def masking_of(target: Any) -> Masking:
    """Return the masking of a type, created on first use."""
    try:
        return _cached_masking(target)
    except TypeError:  # an unhashable annotation
        return Masking(target)


def _masked(
    value: Any, shapes: Iterable[_JsonShape], path: Path, masker: Masker
) -> Any:
    here = _with_links(shapes)
    is_free = any(each.takes_anything for each in here)
    if any(each.hides for each in here):
        return masker(path, value)
    if isinstance(value, dict) and (
        is_free or any(each.fields or each.others for each in here)
    ):
        return {
            key: _masked(
                part, _of_key(here, key, is_free=is_free), (*path, key), masker
            )
            for key, part in value.items()
        }
    if isinstance(value, list) and (
        is_free or any(each.items or each.rest for each in here)
    ):
        return [
            _masked(
                part, _of_item(here, place, is_free=is_free), (*path, place), masker
            )
            for place, part in enumerate(value)
        ]
    if is_free or (
        any(each.takes_null for each in here)
        if value is None
        else any(each.takes_scalars for each in here)
        and not isinstance(value, (dict, list))
    ):
        return value
    return masker(path, value)


_ANYTHING = _JsonShape(takes_anything=True)


def _of_key(here: list[_JsonShape], key: str, *, is_free: bool) -> list[_JsonShape]:
    found = [each.fields[key] for each in here if key in each.fields]
    found += [each.others for each in here if each.others and key not in each.fields]
    return found or ([_ANYTHING] if is_free else [])


def _of_item(here: list[_JsonShape], place: int, *, is_free: bool) -> list[_JsonShape]:
    found = [each.items[place] for each in here if place < len(each.items)]
    found += [each.rest for each in here if each.rest]
    return found or ([_ANYTHING] if is_free else [])


# ---------------------------------------------------------------------------- texts


def redactor_of(values: Iterable[Any]) -> Callable[[str], str]:
    """
    Return a function that masks quotations of some values in a text.

    It finds values as written in JSON and in Python, in any case; also if they are
    percent-encoded, escaped for HTML or JSON, or the repr of bytes, and combinations of
    these; in hex and base64 from four characters on. It does not find parts of values,
    or values that a handler has computed from them.

    Args:
        values: JSON values; the parts of containers.

    """
    forms = {form for leaf in _leaves(values) for form in _forms_of(leaf) if form}
    if not forms:
        return lambda text: text
    parts = (_pattern_of(form) for form in sorted(forms, key=len, reverse=True))
    pattern = re.compile("|".join(parts), re.IGNORECASE)
    codes = {code for form in forms if len(form) >= _TELLING for code in _codes(form)}

    def redact(text: str) -> str:
        spans = set()
        for layer in _layers(text):
            quoted = (match.span() for match in pattern.finditer(layer.text))
            for start, end in (*quoted, *_coded(codes, layer.text)):
                spans.add(layer.origin_of(start, end))
        return _without(spans, text)

    return redact


def without_input(text: str) -> str:
    """Mask the refused value that pydantic quotes, in full or in part."""
    return _INPUT.sub(rf"\1{MASK}", text)


_INPUT = re.compile(r"(input_value=)[^\n]*?(?=, input_type=|\]$|$)", re.MULTILINE)


def _without(spans: Iterable[tuple[int, int]], text: str) -> str:
    """Return a text with parts of it replaced by masks."""
    parts, end = [], 0
    for start, stop in sorted(spans):
        if start >= end:
            parts += [text[end:start], MASK]
        end = max(end, stop)
    return "".join((*parts, text[end:]))


class _Layer:
    """A text, or the text below the escapes of another one."""

    def __init__(self, text: str, above: _Layer | None = None) -> None:
        self.text = text
        self._above = above
        # For each run of escapes: the start and the length of its decoded text, and the
        # start and the end of the run in the text above.
        self._places: list[int] = []
        self._runs: list[tuple[int, int, int]] = []

    def below(self, escapes: re.Pattern[str], read: Callable[[str], str]) -> _Layer:
        """Return the text with escapes decoded, each run of them as one."""
        layer = _Layer("", self)
        parts: list[str] = []
        here = length = 0
        for match in escapes.finditer(self.text):
            first, behind = match.span()
            own = read(match[0])
            parts += [self.text[here:first], own]
            length += first - here
            layer._places.append(length)
            layer._runs.append((len(own), first, behind))
            length += len(own)
            here = behind
        layer.text = "".join((*parts, self.text[here:]))
        return layer

    def origin_of(self, start: int, end: int) -> tuple[int, int]:
        """Return the origin of a part of the text, in the topmost text."""
        if self._above is None:
            return start, end
        first, _ = self._origin_of_one(start)
        _, last = self._origin_of_one(end - 1)
        return self._above.origin_of(first, last)

    def _origin_of_one(self, place: int) -> tuple[int, int]:
        number = bisect_right(self._places, place) - 1
        if number < 0:
            return place, place + 1
        length, first, behind = self._runs[number]
        further = place - self._places[number] - length
        if further < 0:
            return first, behind
        return behind + further, behind + further + 1


# Escapes may be nested: a URL in JSON in HTML.
_DEPTH = 3


def _layers(text: str) -> Iterator[_Layer]:
    """Yield a text and all texts below its escapes, none twice."""
    layers = [_Layer(text)]
    seen = {text}
    yield layers[0]
    for _ in range(_DEPTH):
        found = [
            layer.below(escapes, read) for layer in layers for escapes, read in _ESCAPES
        ]
        layers = []
        for layer in found:
            if layer.text not in seen:
                seen.add(layer.text)
                layers.append(layer)
                yield layer


def _of_bytes(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _of_percents(run: str) -> str:
    return _of_bytes(unquote_to_bytes(run))


def _of_a_form(run: str) -> str:
    return _of_bytes(unquote_to_bytes(run.replace("+", " ")))


def _of_pairs(run: str) -> str:
    return _of_bytes(bytes.fromhex(re.sub("[ :-]", "", run)))


def _of_backslashes(run: str) -> str:
    kind = run[1]
    if kind == "x":
        return _of_bytes(bytes.fromhex(run.replace(r"\x", "")))
    if kind == "u" and len(run) > len(r"\u"):
        content = bytes.fromhex(run.replace(r"\u", ""))
        return content.decode("utf-16-be", "replace")
    if kind == "U" and len(run) > len(r"\U"):
        return chr(min(int(f"0x{run[2:]}", 0), sys.maxunicode))
    return _ESCAPED.get(kind, kind)


_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_ESCAPES: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(r"(?:%[0-9a-f]{2})+", re.IGNORECASE), _of_percents),
    (re.compile(r"(?:%[0-9a-f]{2}|\+)+", re.IGNORECASE), _of_a_form),
    (re.compile(r"(?:[0-9a-f]{2}[ :-]){3,}[0-9a-f]{2}", re.IGNORECASE), _of_pairs),
    (re.compile(r"&(?:#\d+|#x[0-9a-f]+|\w+);", re.IGNORECASE), html.unescape),
    (
        re.compile(
            r"(?:\\x[0-9a-fA-F]{2})+|(?:\\u[0-9a-fA-F]{4})+|\\U[0-9a-fA-F]{8}|\\[^\n]"
        ),
        _of_backslashes,
    ),
)

# Data encoded together with a value is masked with it, so the start is enough.
_BEGINNING = 64
_CODE = re.compile(r"[0-9A-Za-z+/_-]*={0,2}")
_FROM_URLS = str.maketrans("-_", "+/")
# The first characters of base64 also depend on the data before a value.
_SHARED = (0, 2, 3)


def _codes(form: str) -> Iterator[str]:
    """Yield a form in hex, and in base64 at each possible alignment."""
    content = form.encode(errors="replace")[:_BEGINNING]
    yield content.hex()
    for before, shared in enumerate(_SHARED):
        text = base64.b64encode(bytes(before) + content).decode()
        yield text[shared : (before + len(content)) * 8 // 6]


def _coded(codes: Iterable[str], text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of some codes in a text, each with its continuation."""
    for place in {text.translate(_FROM_URLS), text.lower()}:
        if len(place) != len(text):  # a letter that is two in lower case
            continue
        for code in codes:
            end = 0
            while (start := place.find(code, end)) >= 0:
                match = _CODE.match(text, start + len(code))
                end = start + len(code) if match is None else match.end()
                yield start - (start > 0 and text[start - 1].isalnum()), end


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, list):
            todo += value
        else:
            yield value


def _forms_of(value: Any) -> Iterator[str]:
    """Yield the forms in which the text of an error may quote a value."""
    if value is None:
        return
    yield str(value)
    if not isinstance(value, str):
        yield json.dumps(value)
        if isinstance(value, float) and value.is_integer():
            yield str(int(value))
        return
    yield value.strip()
    yield repr(value)[1:-1]
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    if len(value) <= _BYTES_READ:
        with contextlib.suppress(ValueError):  # bytes in their JSON form
            yield repr(base64.b64decode(value, validate=True))[2:-1]
    for read in _READERS:
        with contextlib.suppress(ValueError, OverflowError):
            found = read(value)
            if found is not None:
                yield str(found)
                yield repr(found)
                if isinstance(found, UUID):
                    yield found.hex


_READERS: tuple[Callable[[str], Any], ...] = (
    UUID,
    date.fromisoformat,
    time.fromisoformat,
    datetime.fromisoformat,
    parse_duration,
)

_BYTES_READ = 1024

# Shorter values are masked only if they stand alone.
_TELLING = 4


def _pattern_of(form: str) -> str:
    pattern = re.escape(form)
    if len(form) >= _TELLING and not form.isdecimal():
        return pattern
    return rf"(?<!\w){pattern}(?!\w)"
