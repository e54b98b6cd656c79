"""Read requests as payloads of messages."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.http import QueryDict

from django_cqrs.annotations import is_typed_dict, name_of_type, union_members
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.conversion.schemas import core_schema_of, mistakes, schemas_in
from django_cqrs.exceptions import FieldError, MessageConversionError
from django_cqrs.modelling.identifiers import marked_fields, version_field


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """The payload that a view's messages need."""

    type: PayloadType | None
    """None if the handler does not read the payload."""
    name: str | None = None
    """The handler's parameter, if it is found by a routing key."""
    is_optional: bool = False

    @property
    def fields(self) -> dict[str, Any] | None:
        """The fields by name, empty for a dict; None for one plain value."""
        if self.type is None:
            return None
        found = [_fields_of(member) for member in self.type.members]
        known = [each for each in found if each is not None]
        if not known:
            return None
        return {name: each for fields in known for name, each in fields.items()}

    def has_field(self, name: str) -> bool:
        """Return whether a field, or the plain value, has this name or alias."""
        fields = self.fields
        if fields is None:
            return self.type is not None and name == self.name
        return name in fields or any(_rivals_of(self, name))

    def accepts(self, name: str) -> bool:
        """Return whether a value of this name is for the payload: a dict takes all."""
        is_open = self.type is not None and any(map(_is_open, self.type.members))
        return is_open or self.has_field(name)

    @property
    def version_field(self) -> str | None:
        """The field that is marked with ``Version()``, if any."""
        for member in self.type.members if self.type is not None else ():
            cls = typing.get_origin(member) or member
            field = version_field(cls) if isinstance(cls, type) else None
            if field is not None:
                return field
        return None

    def keys_of(self, name: str) -> set[str]:
        """Return a field's name and aliases, dotted as in errors."""
        paths = [path for each in _rivals_of(self, name) for path in each.paths]
        return {name, *(".".join(map(str, path)) for path in paths)}

    def nothing(self) -> Any:
        """Return the payload of a request without data."""
        assert self.type is not None  # noqa: S101 - else nobody asks
        return None if self.is_optional else self.type.from_python(None)


def _is_open(member: Any) -> bool:
    """Return whether a type takes any fields."""
    origin = typing.get_origin(member) or member
    return origin in (dict, Mapping, object, Any, inspect.Parameter.empty)


@functools.cache
def _fields_of(member: Any) -> dict[str, Any] | None:
    origin = typing.get_origin(member) or member
    if _is_open(member):
        return {}
    if not isinstance(origin, type):
        return None
    models: dict[str, Any] | None = getattr(origin, "model_fields", None)
    if models is not None:
        keys = _keys_of(member)
        return {
            each: field.annotation
            for name, field in models.items()
            for each in (name, *(key for key, *more in keys[name].paths if not more))
        }
    if not (
        dataclasses.is_dataclass(origin)
        or hasattr(origin, "_fields")
        or is_typed_dict(origin)
    ):
        return None
    try:
        return typing.get_type_hints(origin)
    except NameError:  # of a class inside a function
        return dict.fromkeys(origin.__annotations__, Any)


class _Keys(typing.NamedTuple):
    """The keys under which a field may be sent."""

    name: str
    paths: tuple[tuple[Any, ...], ...]
    """Its aliases; one for a nested value has several steps."""
    by_name: bool
    """Whether its own name is accepted as well."""

    def place_of(self, key: str) -> tuple[str, ...]:
        """Return the place of a value that the URL has under a key."""
        if (key == self.name and self.by_name) or (key,) in self.paths:
            return (key,)
        of_text = [path for path in self.paths if all(isinstance(k, str) for k in path)]
        return min(of_text, key=len, default=(key,))


@functools.cache
def _keys_of(member: Any) -> dict[str, _Keys]:
    """Return the keys of each field of a type, by the field's name."""
    try:
        schema = core_schema_of(member)
    except mistakes():  # the conversion reports it
        return {}
    named = {each["ref"]: each for each in schemas_in(schema) if "ref" in each}
    by_name = by_alias = None
    while "fields" not in schema or schema["type"] == "dataclass":
        config = schema.get("config") or {}
        by_name = config.get(
            "validate_by_name", config.get("populate_by_name", by_name)
        )
        by_alias = config.get("validate_by_alias", by_alias)
        inner = schema.get("schema") or named.get(schema.get("schema_ref", ""))
        if not isinstance(inner, dict):
            return {}
        schema = inner
    config = schema.get("config") or {}
    by_name = config.get("validate_by_name", config.get("populate_by_name", by_name))
    fields = schema["fields"]
    pairs = (
        fields.items()
        if isinstance(fields, dict)
        else ((field["name"], field) for field in fields)
    )
    return {
        name: _Keys(name, paths, bool(by_name) or not paths)
        for name, field in pairs
        for paths in [() if by_alias is False else _paths_of(field)]
    }


def _paths_of(field: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    alias = field.get("validation_alias")
    if not alias:
        return ()
    if isinstance(alias, str):
        return ((alias,),)
    return tuple(map(tuple, alias if isinstance(alias[0], list) else [alias]))


def _rivals_of(wanted: Wanted, key: str) -> Iterator[_Keys]:
    """Yield the fields that a key of the URL sets, one for each possible type."""
    for member in wanted.type.members if wanted.type is not None else ():
        for each in _keys_of(member).values():
            if key == each.name or (key,) in each.paths:
                yield each


def _has(sent: Any, path: Sequence[str | int]) -> bool:
    """Return whether a value was sent under a path of keys."""
    for step in path:
        try:
            sent = sent[step]
        except (LookupError, TypeError):
            return False
    return True


IN_PATH = "it is in the path of the URL and cannot also be given here"
IN_IF_MATCH = "it is in the header If-Match and cannot also be given here"


@dataclasses.dataclass(frozen=True, slots=True)
class RequestValues:
    """The values of fields that a request has outside its body and query string."""

    path: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The values captured from the path."""
    version: tuple[str, int] | None = None
    """The field marked with ``Version()``, and its value in ``If-Match``."""

    @property
    def values(self) -> dict[str, Any]:
        """All values by name."""
        return dict(self.path) | dict([self.version] if self.version else [])

    def fault_of(self, name: str) -> tuple[str, str]:
        """Return the text and the code for a field that is given twice."""
        if self.version is not None and name == self.version[0]:
            return IN_IF_MATCH, "in_if_match"
        return IN_PATH, "in_path"


def with_request_values(
    wanted: Wanted, own: dict[str, Any], given: RequestValues
) -> dict[str, Any]:
    """
    Return the body's values with the URL's, each under a key that its field accepts.

    Raises:
        MessageConversionError: a field is given twice, under any of its keys.

    """
    __traceback_hide__ = True
    twice: dict[str, tuple[str, str]] = {}
    places: list[tuple[tuple[str, ...], Any]] = []
    for key, value in given.values.items():
        rivals = list(_rivals_of(wanted, key))
        paths = [(key,), *((each.name,) for each in rivals)]
        paths += [path for each in rivals for path in each.paths]
        fault = given.fault_of(key)
        twice |= {".".join(map(str, path)): fault for path in paths if _has(own, path)}
        own_places = [each.place_of(key) for each in rivals] or [(key,)]
        places += [(place, value) for place in dict.fromkeys(own_places)]
    if twice:
        assert wanted.type is not None  # noqa: S101 - it has fields
        errors = [FieldError(name, *twice[name]) for name in sorted(twice)]
        raise MessageConversionError(name_of_type(wanted.type.annotation), errors)
    whole = dict(own)
    for (*steps, last), value in places:
        inner = whole
        for step in steps:
            nested = inner.get(step)
            inner[step] = inner = dict(nested) if isinstance(nested, dict) else {}
        inner[last] = value
    return whole


def _takes_many(annotation: Any) -> bool:
    """Return whether a field has several values, repeated in a query string."""
    for member in union_members(annotation):
        origin = typing.get_origin(member) or member
        is_many = isinstance(origin, type) and issubclass(origin, Collection)
        if is_many and not issubclass(origin, (str, bytes, Mapping)):
            return True
    return False


def split_path(
    wanted: Wanted, endpoint: Any, captured: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """
    Return the identifier in the URL's path, and the values for the payload's fields.

    Args:
        wanted: the wanted payload.
        endpoint: the handler's endpoint, None if it is unknown.
        captured: the values captured from the path.

    Returns:
        The identifier is one value, or a dict for several parts. It is None if fields
        of the payload have it, the handler creates its object or has none, or the path
        lacks a part.

    """
    subject = getattr(endpoint, "subject", None)
    storage = getattr(subject, "storage", None)
    is_factory = endpoint is not None and endpoint.is_factory and not endpoint.action
    if not captured or storage is None or is_factory:
        return None, captured
    captured = _to_marked_fields(wanted, storage.parts, captured)
    for whole in ("aggregate_id", *(("pk",) if _is_found_by_pk(subject) else ())):
        if whole in captured and not wanted.has_field(whole):
            rest = {name: v for name, v in captured.items() if name != whole}
            return captured[whole], rest
    found, used = {}, set()
    for part in storage.parts:
        names = (*part.aliases, part.name)
        name = next((each for each in names if each in captured), None)
        if name is None:
            return None, captured
        found[part.name] = captured[name]
        if not wanted.accepts(name):
            used.add(name)
    if not used:
        return None, captured
    rest = {name: value for name, value in captured.items() if name not in used}
    return found if len(found) > 1 else next(iter(found.values()), None), rest


def _is_found_by_pk(subject: Any) -> bool:
    """Return whether the objects are found by the one primary key of a model."""
    is_pk = hasattr(subject.owner, "_meta") and not subject.options.identifier
    return is_pk and len(subject.storage.parts) == 1


def _to_marked_fields(
    wanted: Wanted, parts: Iterable[Any], captured: Mapping[str, Any]
) -> dict[str, Any]:
    """Return captured values, the identifier's under the fields marked as its parts."""
    renamed: dict[str, str] = {}
    for member in wanted.type.members if wanted.type is not None else ():
        cls = typing.get_origin(member) or member
        for name, field in marked_fields(
            cls if isinstance(cls, type) else None
        ).items():
            for part in parts:
                if name is not None and part.is_called(name):
                    renamed |= dict.fromkeys((part.name, *part.aliases), field)
    return {
        name if wanted.accepts(name) else renamed.get(name, name): value
        for name, value in captured.items()
    }


def read_json(wanted: Wanted, text: bytes, given: RequestValues) -> Any:
    """Return the payload in a body, with the URL's fields added to an object's."""
    __traceback_hide__ = True
    if wanted.type is None:
        PayloadType(Any).from_json(text or b"null")
        return None
    if wanted.fields is not None:
        text = _with_fields(wanted, text, given)
    elif not text and wanted.name is not None and wanted.name in given.path:
        text = json.dumps(given.path[wanted.name]).encode()
    if text:
        return wanted.type.from_json(text)
    if wanted.is_optional or wanted.type.takes_none or wanted.fields is None:
        return wanted.nothing()
    return wanted.type.from_json(b"{}")


def _with_fields(wanted: Wanted, text: bytes, given: RequestValues) -> bytes:
    """Add fields to the text of a JSON object; leave other texts unchanged."""
    __traceback_hide__ = True
    if not given.values:
        return text
    try:
        own = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        return text  # the conversion reports its faults
    if not isinstance(own, dict):
        return text
    return json.dumps(with_request_values(wanted, own, given)).encode()


def read_query(wanted: Wanted, sent: QueryDict, given: Mapping[str, Any]) -> Any:
    """Return the payload in a query string, with the URL's fields added."""
    __traceback_hide__ = True
    if wanted.type is None:
        return None
    fields = wanted.fields
    if fields is None:
        return _read_value(wanted, sent, given)
    values: dict[str, Any] = {}
    for name in sent:
        many = sent.getlist(name)
        is_many = _takes_many(fields[name]) if name in fields else len(many) > 1
        values[name] = many if is_many else many[-1]
    values = with_request_values(wanted, values, RequestValues(given))
    if not values and (wanted.is_optional or wanted.type.takes_none):
        return wanted.nothing()
    return wanted.type.from_python(values)


def _read_value(wanted: Wanted, sent: QueryDict, given: Mapping[str, Any]) -> Any:
    """Return a payload that is not an object, from its parameter's name."""
    __traceback_hide__ = True
    assert wanted.type is not None  # noqa: S101 - None is read elsewhere
    value = None
    if wanted.name is not None and wanted.name in given:
        value = given[wanted.name]
    elif wanted.name is not None and wanted.name in sent:
        many = sent.getlist(wanted.name)
        value = many if _takes_many(wanted.type.annotation) else many[-1]
    try:
        return wanted.nothing() if value is None else wanted.type.from_python(value)
    except MessageConversionError as error:
        errors = [
            each._replace(path=".".join(filter(None, (wanted.name, each.path))))
            for each in error.errors
        ]
        raise MessageConversionError(error.target, errors) from error
