"""
Payloads to JSON and back, by pydantic's ``TypeAdapter``; names to classes and back.

pydantic is imported when the first adapter is built, never before.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import inspect
import json
import math
import re
import sys
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from django.apps import apps

from django_cqrs.exceptions import FieldError, MessageConversionError, UnknownMessage
from django_cqrs.masking import masking_of
from django_cqrs.messages import MessageName, message_name_of
from django_cqrs.problems import Problem, Rule
from django_cqrs.schemas import (
    LOAD,
    REFUSALS,
    Compiled,
    Fault,
    compiled,
    mistakes,
    refusable,
)
from django_cqrs.upcasting import has_upcasters, upcast
from django_cqrs.upcasting import upcaster as upcaster  # noqa: PLC0414 - its place for users

F = TypeVar("F", bound=Callable[[Any], Any])

JSON = "application/json"

CODES_FAULT = "no_converter"
"""The code of what no payload could have helped: a class is at fault."""

# A converter has one of these on its JSON side, plain or parametrised.
JSON_TYPES = (str, int, float, bool, list, dict, type(None))


# --------------------------------------------------------------------- converters


@dataclasses.dataclass(slots=True)
class _Converters:
    """The two directions of one class, as far as they are registered."""

    load: tuple[Any, Callable[[Any], Any]] | None = None
    dump: tuple[Any, Callable[[Any], Any]] | None = None


_converters: dict[type, _Converters] = {}

converter_problems: list[Problem] = []
"""What is wrong with declared converters, for the system check."""


def converter(function: F) -> F:
    """
    Register how a class of yours is written in JSON, or read from it.

    Two functions make a pair, told apart by their annotations: ``(Money) -> str``
    writes, ``(str) -> Money`` reads. One side is str, int, float, bool, list or
    dict. A ValueError, ArithmeticError or TypeError raised while reading is an
    error of the field. Returns the function itself.
    """
    try:
        source, target = _sides_of(function)
    except (TypeError, NameError, AttributeError) as error:
        _report_converter(function, str(error))
        return function
    cls = source if _is_json(target) else target
    side = target if _is_json(target) else source
    pair = _converters.setdefault(cls, _Converters())
    if cls is source:
        pair.dump = side, function
    else:
        pair.load = side, function
    try:
        cls.__get_pydantic_core_schema__ = classmethod(_core_schema)
    except TypeError:
        reason = f"{cls.__qualname__} is a built-in class; wrap it in one of yours"
        _report_converter(function, reason)
    _cached_adapter.cache_clear()
    return function


def has_converter(cls: Any) -> bool:
    """Tell whether a ``@converter`` speaks of exactly this class."""
    return cls in _converters


def _sides_of(function: Callable[..., Any]) -> tuple[Any, Any]:
    hints = typing.get_type_hints(function)
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
    ]
    if len(parameters) != 1 or parameters[0].name not in hints or "return" not in hints:
        msg = "it takes one annotated parameter and its return is annotated"
        raise TypeError(msg)
    source, target = hints[parameters[0].name], hints["return"]
    if _is_json(source) == _is_json(target):
        msg = "exactly one side is a JSON type (str, int, float, bool, list, dict)"
        raise TypeError(msg)
    if not isinstance(source if _is_json(target) else target, type):
        msg = "the other side is a class"
        raise TypeError(msg)
    return source, target


def _is_json(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in JSON_TYPES


def _report_converter(function: Callable[..., Any], reason: str) -> None:
    name = f"{function.__module__}.{function.__qualname__}"
    converter_problems.append(
        Problem(
            Rule.BROKEN_CONVERTER,
            f"The converter {name} is not used: {reason}.",
            "Annotate it as (Money) -> str, or as (str) -> Money.",
            function,
        )
    )


def _core_schema(_cls: type, source: Any, handler: Any) -> Any:
    """Tell pydantic how the classes of ``@converter`` are read and written."""
    from pydantic_core import (
        PydanticCustomError,
        PydanticSerializationUnexpectedValue,
        core_schema,
    )

    pair = _converters.get(source)
    if pair is None:  # a subclass: the pair speaks of its base alone
        return handler(source)
    name = source.__qualname__

    def load(value: Any) -> Any:
        if pair.load is None:
            code: Any = CODES_FAULT
            text: Any = "no converter reads a {name}"
            raise PydanticCustomError(code, text, {"name": name})
        return refusable(pair.load[1])(value)

    def parse(value: Any, read: Callable[[Any], Any]) -> Any:
        return value if isinstance(value, source) else load(read(value))

    def write(value: Any) -> Any:
        if not isinstance(value, source):  # another member of a union
            raise PydanticSerializationUnexpectedValue(source.__name__)
        if pair.dump is None:
            msg = f"no converter writes a {name}"
            raise ValueError(msg)
        return pair.dump[1](value)

    load.__name__ = parse.__name__ = source.__name__
    read_type = pair.load[0] if pair.load else Any
    write_type = pair.dump[0] if pair.dump else Any
    return core_schema.no_info_wrap_validator_function(
        parse,
        handler.generate_schema(read_type),
        metadata={LOAD: load},
        serialization=core_schema.plain_serializer_function_ser_schema(
            write, return_schema=handler.generate_schema(write_type)
        ),
    )


# ----------------------------------------------------------------------- adapters


class Adapter:
    """
    Converts one type: JSON text strictly, Python values laxly.

    Every method raises :class:`MessageConversionError` with all that is wrong.
    """

    def __init__(self, target: Any) -> None:
        """
        Compile the conversion of `target`.

        A type that cannot be converted makes an adapter all the same, whose every
        use raises: `reason` says why, and `path` where in it.
        """
        self.name: str = name_of_type(target)
        self._target = target
        self.reason: str | None = None
        self.path = ""
        try:
            self._compiled = compiled(target)
        except mistakes() as error:
            lines = str(error).splitlines() or [type(error).__name__]
            fault = _formless_part(target) or ((), lines[0].rstrip("."))
            self.path, self.reason = _dotted(fault[0]), fault[1]

    @property
    def fault(self) -> str | None:
        """What of the type no JSON can be made into, and where; None if nothing."""
        path, reason = self.path, self.reason
        if reason is None and self._compiled.fault is not None:
            path, reason = _dotted(self._compiled.fault[0]), self._compiled.fault[1]
        return f"{path}: {reason}" if path and reason else reason

    def from_json(self, text: str | bytes | bytearray) -> Any:
        """Read JSON text strictly: no string stands for a number."""
        __traceback_hide__ = True
        if not isinstance(text, (str, bytes, bytearray)):
            given = type(text).__qualname__
            fault = f"JSON text is str or bytes, not {given}"
            raise self._error(fault, "json_type")
        try:
            octets = text.encode() if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            fault = "JSON text cannot hold half of a surrogate pair"
            raise self._error(fault, "json_invalid") from error
        return self._read_text(Compiled.read_json, octets)

    def from_stored_json(self, text: bytes | bytearray) -> Any:
        """Read strictly what a channel has carried, as it went."""
        return self._read_text(Compiled.read_stored, text)

    def from_python(self, value: Any) -> Any:
        """Read a Python value laxly: a string may stand for a number."""
        __traceback_hide__ = True
        return self._read(Compiled.read_python, value)

    def to_json(self, value: Any) -> bytes:
        """Write an object as JSON text in UTF-8."""
        __traceback_hide__ = True
        return bytes(self._write(Compiled.write_json, value))

    def to_exact_json(self, value: Any) -> bytes | None:
        """Write JSON text that says more of times and numbers; None if none can."""
        if self.reason or not self._compiled.has_marks:
            return None
        try:
            return bytes(self._compiled.write_exact(value))
        except (*REFUSALS, RecursionError):
            return None

    @property
    def has_models(self) -> bool:
        """Whether a part of it may know which of its fields were given."""
        return not self.reason and self._compiled.has_models

    def to_plain_json(self, value: Any) -> bytes | None:
        """Write JSON text that is certain to come back as it is; None if it is not."""
        return None if self.reason else self._compiled.write_plain(value)

    def to_jsonable(self, value: Any) -> Any:
        """Write an object as the dicts, lists and scalars of its JSON form."""
        __traceback_hide__ = True
        return self._write(Compiled.write_jsonable, value)

    def _read_text(
        self, read: Callable[[Compiled, Any], Any], text: bytes | bytearray
    ) -> Any:
        value = self._read(read, text)
        if _UNREAL.search(text):
            self._read(_refuse_unreal, text)
        return value

    def _read(self, read: Callable[[Compiled, Any], Any], value: Any) -> Any:
        __traceback_hide__ = True
        from pydantic_core import ValidationError

        if self.reason:
            raise self._error(self.reason, CODES_FAULT, self.path)
        try:
            return read(self._compiled, value)
        except ValidationError as error:
            # pydantic quotes what it refuses: no report may show that.
            count = error.error_count()
            is_long = count > MOST_ERRORS
            cause = None if is_long or masking_of(self._target).is_marked else error
            told = self._beginning(read, value) if count > _TOO_MANY else None
            errors = _field_errors(error if told is None else told, count)
            raise MessageConversionError(self.name, errors) from cause
        except (*REFUSALS, RecursionError) as error:
            raise self._error(str(error), "refused") from error

    def _beginning(self, read: Callable[[Compiled, Any], Any], value: Any) -> Any:
        """
        Return what pydantic says of the beginning of each list in a value, or None.

        To list a million errors takes it a gigabyte, and there is no other way to know
        the first of them.
        """
        __traceback_hide__ = True
        from pydantic_core import ValidationError

        try:
            if isinstance(value, (str, bytes)):
                read(self._compiled, json.dumps(_cut(json.loads(value))).encode())
            else:
                read(self._compiled, _cut(value))
        except ValidationError as error:
            if not MOST_ERRORS < error.error_count() <= _TOO_MANY:
                return None
            kinds = {each["type"] for each in error.errors(include_url=False)}
            return None if "too_short" in kinds else error  # it may be by the cut
        except (*REFUSALS, RecursionError):
            return None
        return None

    def _write(self, write: Callable[[Compiled, Any], Any], value: Any) -> Any:
        if self.reason:
            raise self._error(self.reason, CODES_FAULT, self.path)
        try:
            return write(self._compiled, value)
        except (*REFUSALS, RecursionError) as error:
            raise self._error(_unwritten(error), "not_json") from error

    def _error(self, message: str, code: str, path: str = "") -> MessageConversionError:
        return MessageConversionError(self.name, [FieldError(path, message, code)])


@functools.cache
def _cached_adapter(target: Any) -> Adapter:
    return Adapter(target)


def adapter_of(target: Any) -> Adapter:
    """Return the adapter of a type, built when it is first asked for."""
    try:
        return _cached_adapter(target)
    except TypeError:  # an annotation that cannot be hashed
        return Adapter(target)


def _formless_part(annotation: Any, around: tuple[Any, ...] = ()) -> Fault | None:
    """
    Return the path of the part of a type that has no JSON form, and what it is.

    None where no single part is to blame.
    """
    members = union_members(annotation)
    if annotation in around or len(around) > _DEEP:
        return None
    around = (*around, annotation)
    if members != (annotation,):
        return _first_fault((("", each) for each in members), around)
    arguments = typing.get_args(annotation)
    if arguments and typing.get_origin(annotation) is not typing.Literal:
        within = [("", each) for each in arguments if each is not ...]
        return _first_fault(within, around)
    if not isinstance(annotation, type):
        return None
    names = _annotated_names(annotation)
    if not names:
        fault = adapter_of(annotation).reason if len(around) > 1 else ""
        text = f"{name_of_type(annotation)} has no JSON form"
        return None if fault is None else ((), text)
    fields = []
    for name, (hint, holder) in names.items():
        try:
            fields.append((name, _evaluated(hint, holder)))
        except Exception as error:  # noqa: BLE001 - an annotation may run any code
            shown = hint.strip("\"'") if isinstance(hint, str) else name_of_type(hint)
            return (name,), f"its annotation {shown!r} cannot be evaluated ({error})"
    return _first_fault(fields, around)


def _annotated_names(cls: type) -> dict[str, tuple[Any, type]]:
    """Return the annotation of each field of a class, and the class that has it."""
    names = field_names(cls)
    if names is None and is_typed_dict(cls):
        names = tuple(cls.__annotations__)
    found: dict[str, tuple[Any, type]] = {}
    for base in reversed(cls.__mro__):
        for name, hint in inspect.get_annotations(base).items():
            found[name] = hint, base
    return {name: found[name] for name in names or () if name in found}


def _evaluated(hint: Any, holder: type) -> Any:
    names = vars(sys.modules.get(holder.__module__, holder))
    one = types.SimpleNamespace(__annotations__={"hint": hint})
    return typing.get_type_hints(one, dict(names), {holder.__name__: holder})["hint"]


def _first_fault(
    parts: Iterable[tuple[str, Any]], around: tuple[Any, ...]
) -> Fault | None:
    for name, annotation in parts:
        if adapter_of(annotation).reason is None:
            continue
        fault = _formless_part(annotation, around)
        if fault is None:
            fault = (), f"{name_of_type(annotation)} has no JSON form"
        return ((name, *fault[0]) if name else fault[0]), fault[1]
    return None


# What may become NaN or infinity where nothing says that it is a number: a literal of
# fewer digits and a shorter exponent is below 1e300.
_UNREAL = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{200}")


def _refuse_unreal(_compiled: Compiled, text: bytes | bytearray) -> None:
    json.loads(text, parse_constant=_real, parse_float=_real)


def _real(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        msg = "JSON has no NaN, no infinity and no number beyond the range of floats"
        raise ValueError(msg)
    return number


MOST_ERRORS: typing.Final = 100
"""So many wrong fields are told of; whoever sends a million wants no answer."""

_LONGEST_TEXT = 500


_TOO_MANY = 5000


def _cut(value: Any) -> Any:
    """Return a value with the beginning of each list in it."""
    if isinstance(value, dict):
        return {key: _cut(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cut(part) for part in value[: MOST_ERRORS + 1]]
    return value


def _field_errors(error: Any, count: int) -> list[FieldError]:
    errors = [
        FieldError(
            ".".join(_tidy(str(part)) for part in fault["loc"]),
            _sentence_of(fault).rstrip("."),
            fault["type"],
        )
        for fault in error.errors(include_url=False, include_input=False)[:MOST_ERRORS]
    ]
    if count > 1:  # a key that was sent may be as long as the body, and in each path
        errors = [
            each._replace(path=_shortened(each.path), message=_shortened(each.message))
            for each in errors
        ]
    if count > MOST_ERRORS:
        rest = f"there are {count - MOST_ERRORS} more errors, which are not listed"
        errors.append(FieldError("", rest, "too_many_errors"))
    return errors


def _shortened(text: str) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


# What pydantic says with a part of the value in it.
_SENTENCES = {
    "union_tag_invalid": "Input's tag is none of those expected",
    "uuid_parsing": "Input should be a valid UUID",
}


def _sentence_of(fault: Mapping[str, Any]) -> str:
    raised = fault.get("ctx", {}).get("error")
    if isinstance(raised, Exception):
        return str(raised) or type(raised).__name__
    return _SENTENCES.get(fault["type"]) or str(fault["msg"])


def _tidy(part: str) -> str:
    """
    Return part of a path with functions left out of it.

    The members of a union are parts of a path, and a type that is read by a function
    is ``list[function-after[Money(), str]]`` there, where ``list[Money]`` will do.
    """
    while len(part) < _LONGEST_TYPE and (begin := _FUNCTION.search(part)):
        end, depth = begin.end(), 1
        while depth and end < len(part):
            depth += {"[": 1, "]": -1}.get(part[end], 0)
            end += 1
        part = part[: begin.start()] + begin["name"] + part[end:]
    return part


_FUNCTION = re.compile(r"function-[a-z]+\[(?P<name>[^()]*)\(\)")

_LONGEST_TYPE = 1000  # more is a key of the payload, and not ours to take apart


# ---------------------------------------------------------------- any value at all


def to_jsonable(value: Any) -> Any:
    """
    Return the JSON form of a value, by what it is.

    Dataclasses, models and NamedTuples become dicts.

    Raises:
        MessageConversionError: part of it has no JSON form.

    """
    __traceback_hide__ = True
    try:
        return _jsonable(value)
    except RecursionError as error:
        raise _not_json(value, error) from error


def to_json(value: Any) -> str:
    """
    Return the JSON text of a value, by what it is.

    Raises:
        MessageConversionError: part of it has no JSON form.

    """
    __traceback_hide__ = True
    form = to_jsonable(value)
    try:
        text = json.dumps(
            form, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        )
        text.encode()  # half of a surrogate pair would come out only here
    except ValueError as error:
        raise _not_json(value, error) from error
    return text


def _jsonable(value: Any) -> Any:
    if type(value) in _converters:
        return adapter_of(type(value)).to_jsonable(value)
    if isinstance(value, enum.Enum):
        return _jsonable(value.value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_key(key): _jsonable(each) for key, each in value.items()}
    if field_names(type(value)) is None and isinstance(
        value, (list, tuple, set, frozenset)
    ):
        return [_jsonable(each) for each in value]
    return adapter_of(type(value)).to_jsonable(value)


def _key(key: Any) -> str:
    form = _jsonable(key)
    return form if isinstance(form, str) else json.dumps(form)


def _unwritten(error: Exception) -> str:
    unknown = _UNKNOWN.fullmatch(str(error))
    why = f"{unknown['name'].rpartition('.')[2]} has no JSON form" if unknown else error
    return f"it cannot be written as JSON ({why})"


_UNKNOWN = re.compile(
    r"(?:Error [\w ]+: \w+: )?Unable to serialize unknown type: <class '(?P<name>.+)'>"
)


def _not_json(value: Any, error: Exception) -> MessageConversionError:
    errors = [FieldError("", _unwritten(error), "not_json")]
    return MessageConversionError(name_of_type(type(value)), errors)


def convert_result(value: Any, target: Any) -> Any:
    """
    Convert what a query returned to a type, or to JSON text.

    Args:
        value: objects, dicts, model instances, or an iterable of these.
        target: a type such as ``TicketRow`` or ``list[TicketRow]``, or
            ``"application/json"``.

    Raises:
        MessageConversionError: it does not convert.

    """
    __traceback_hide__ = True
    if not isinstance(target, str) and PayloadType(target).takes(value):
        return value
    whole = _listed(value)
    try:
        if isinstance(target, str):
            check_content_type(target)
            return to_json(whole)
        return adapter_of(target).from_python(_plain(whole))
    except MessageConversionError as error:
        error.what = "answer"
        raise


def _listed(value: Any) -> Any:
    """Return a lazy iterable (a queryset, a generator) as a list."""
    is_whole = isinstance(value, (str, bytes, list, tuple, set, frozenset, Mapping))
    if is_whole or field_names(type(value)) is not None:
        return value
    return list(value) if hasattr(value, "__iter__") else value


def _plain(value: Any) -> Any:
    """Return objects as dicts of their fields, so that another type can be made."""
    names = field_names(type(value))
    if names is None and hasattr(value, "_meta"):
        fields = getattr(value._meta, "concrete_fields", ())
        names = tuple(field.attname for field in fields)
    if names is not None:
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _read_field_names(cls: Any) -> tuple[str, ...] | None:
    """Return the names of a class's fields; None where it has no such thing."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if issubclass(cls, tuple):
        return getattr(cls, "_fields", None)  # of a NamedTuple
    return tuple(cls.model_fields) if hasattr(cls, "model_fields") else None


field_names: Callable[[type], tuple[str, ...] | None]
field_names = functools.cache(_read_field_names)
"""The names of a class's fields; None where it has no such thing."""


def check_content_type(content_type: str) -> None:
    """
    Accept JSON, with or without parameters.

    Raises:
        MessageConversionError: it is another media type.

    """
    essence = content_type.partition(";")[0].strip().lower()
    if essence != JSON:
        fault = f"the content type {content_type!r} is not supported, {JSON} is"
        raise MessageConversionError(JSON, [FieldError("", fault, "content_type")])


# ------------------------------------------------------------- what a handler takes


class PayloadType:
    """What a payload parameter takes, and how other values are made into it."""

    def __init__(self, annotation: Any) -> None:
        """Take an annotation apart; ``Parameter.empty`` takes anything."""
        self.annotation = annotation
        self.members: tuple[Any, ...] = union_members(annotation)
        self.takes_anything: bool = any(
            member in (object, Any, inspect.Parameter.empty) for member in self.members
        )
        self.takes_none: bool = self.takes_anything or type(None) in self.members
        self._classes = tuple(m for m in self.members if is_plain_class(m))
        self._wants_mapping = any(
            (typing.get_origin(member) or member) in (dict, Mapping)
            or is_typed_dict(member)
            for member in self.members
        )

    @property
    def fault(self) -> str | None:
        """What of it no JSON can be made into, and where; None if nothing."""
        return None if self.takes_anything else self._adapter.fault

    def takes(self, value: Any) -> bool:
        """Tell whether a value is taken as it is."""
        if self.takes_anything or isinstance(value, self._classes):
            return True
        return value is None and self.takes_none

    def from_python(self, value: Any) -> Any:
        """
        Return a value as it is where the annotation allows it, else converted.

        Raises:
            MessageConversionError: it is not what the handler takes.

        """
        __traceback_hide__ = True
        if self.takes(value):
            return value
        if value is None:
            fault = FieldError("", "the payload is missing", "missing")
            raise MessageConversionError(name_of_type(self.annotation), [fault])
        if (
            self._wants_mapping
            and not isinstance(value, Mapping)
            and field_names(type(value)) is not None
        ):
            value = to_jsonable(value)
            if dict in self.members:
                return value
        result = adapter_of(self.annotation).from_python(value)
        return value if _is_same(result, value) else result

    def from_json(self, text: str | bytes) -> Any:
        """
        Read JSON text strictly.

        Raises:
            MessageConversionError: it is broken, or not what the handler takes.

        """
        __traceback_hide__ = True
        return self._adapter.from_json(text)

    def from_stored_json(self, text: bytes) -> Any:
        """
        Read what :meth:`to_json` has written, as it went.

        Raises:
            MessageConversionError: it is broken, or not what the handler takes.

        """
        return self._adapter.from_stored_json(text)

    def unset_in(self, value: Any) -> Unset:
        """Return which fields of the models in a value were not given."""
        __traceback_hide__ = True
        return unset_in(self._adapter, value)

    def to_json(self, value: Any) -> bytes:
        """
        Write a value as JSON text in UTF-8, certain that it comes back as it is.

        Raises:
            MessageConversionError: it would not.

        """
        __traceback_hide__ = True
        return to_stored_json(self._adapter, value)

    @property
    def _adapter(self) -> Adapter:
        return adapter_of(Any if self.takes_anything else self.annotation)


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal and, within containers, of equal types."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, (set, frozenset)):
        return {type(each) for each in one} == {type(each) for each in other}
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
    elif isinstance(one, (list, tuple)):
        pairs = zip(one, other, strict=True)
    else:
        return True
    return all(_is_same(this, that) for this, that in pairs)


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, aliases and ``Annotated`` taken off."""
    annotation = bare_type(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(
            member
            for each in typing.get_args(annotation)
            for member in union_members(each)
        )
    return (annotation,)


def bare_type(annotation: Any) -> Any:
    """Return an annotation without ``Annotated``, alias or type variable around it."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):  # a `type` statement's alias
            annotation = annotation.__value__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or object
        else:
            return annotation


def is_subclass(cls: type, base: type) -> bool:
    """Return whether objects of a class are, or may be, of another."""
    try:
        return issubclass(cls, base)
    except TypeError:  # a Protocol with data: only an object can tell
        return True


def is_plain_class(annotation: Any) -> bool:
    """Tell whether ``isinstance`` can be asked about an annotation."""
    return (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and not is_typed_dict(annotation)
        and not is_opaque_protocol(annotation)
    )


def is_typed_dict(annotation: Any) -> bool:
    """Tell whether an annotation is a TypedDict, of whichever typing module."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, dict)
        and hasattr(annotation, "__required_keys__")
    )


def is_protocol(annotation: Any) -> bool:
    """Tell whether an annotation is a Protocol itself, not a class that has one."""
    return bool(getattr(annotation, "_is_protocol", False))


def is_opaque_protocol(annotation: Any) -> bool:
    """Tell whether it is a Protocol that ``isinstance`` cannot decide."""
    return is_protocol(annotation) and not getattr(
        annotation, "_is_runtime_protocol", False
    )


def name_of_type(annotation: Any) -> str:
    """Return a type's name as one would say it: ``OpenTicket``, ``list[int]``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__qualname__.rpartition("<locals>.")[2]
    return str(annotation).replace("typing.", "")


# -------------------------------------------------------------- names on the wire

_VALUES = (
    *(bool, bytes, float, int, str, type(None)),
    *(date, datetime, time, timedelta, Decimal, UUID),
    *(dict, frozenset, list, set, tuple),
)


def is_value_type(cls: type) -> bool:
    """Tell whether a handler's annotation reads such a value back: it needs no name."""
    return issubclass(cls, _VALUES) and not hasattr(cls, "_fields")


class MessageTypes:
    """The registered message classes, by name: nothing else is ever decoded."""

    def __init__(self, classes: Iterable[type], *, of_apps: bool = False) -> None:
        """
        Give every class its name: its own, or ``app_label.ClassName``.

        Args:
            classes: the message classes.
            of_apps: whether these are all that the installed apps had declared.

        """
        self._is_of_apps = of_apps
        self.clashes: dict[str, Problem] = {}
        self._names: dict[type, MessageName] = {}
        self._classes: dict[str, type] = {}
        self._why_not: dict[type, str] = {}
        self._by_rule: dict[type, list[type]] = {}
        unnamed = []
        for cls in dict.fromkeys(classes):
            name = message_name_of(cls)
            if name is None:
                unnamed.append(cls)
            else:
                self._names[cls] = name
                for each in (name.name, *name.aliases):
                    self._claim(each, cls)
        self._name_by_place(unnamed)

    def _claim(self, name: str, cls: type) -> None:
        holder = self._classes.setdefault(name, cls)
        if holder is not cls:
            self.clashes[name] = Problem(
                Rule.DUPLICATE_MESSAGE_NAME,
                f"Two message classes are named {name!r}: "
                f"{_path_of(holder)} and {_path_of(cls)}.",
                "Give each its own name with @message.",
                cls,
            )

    def _name_by_place(self, classes: list[type]) -> None:
        places: dict[str, list[type]] = {}
        for cls in classes:
            config = apps.get_containing_app_config(cls.__module__)
            if config is None:
                self._why_not[cls] = "it belongs to no installed app"
            elif cls.__qualname__ != cls.__name__:
                self._why_not[cls] = "it is not at the top of its module"
            else:
                places.setdefault(f"{config.label}.{cls.__name__}", []).append(cls)
        for name, found in places.items():
            if len(found) == 1 and name not in self._classes:
                self._names[found[0]] = MessageName(name)
                self._classes[name] = found[0]
            else:
                for cls in found:
                    self._why_not[cls] = f"another class is named {name!r} as well"

    def __iter__(self) -> Iterator[type]:
        """Yield the classes that have a name."""
        return iter(self._names)

    def subclasses_of(self, base: type) -> Sequence[type]:
        """Return those whose objects may be of a class, each in the order of names."""
        if type(base).__subclasscheck__ is type.__subclasscheck__:
            return self._by_base.get(base, ())
        # An ABC or a Protocol decides by itself.
        found = self._by_rule.get(base)
        if found is None:
            found = [cls for cls in self._names if is_subclass(cls, base)]
            self._by_rule[base] = found
        return found

    @functools.cached_property
    def _by_base(self) -> dict[type, list[type]]:
        found: dict[type, list[type]] = {}
        for cls in self._names:
            for base in cls.__mro__:
                found.setdefault(base, []).append(cls)
        return found

    def named_classes(self) -> Iterable[tuple[type, MessageName]]:
        """Return the classes that have a name, and that name."""
        return self._names.items()

    def name_of(self, cls: type) -> MessageName:
        """
        Return the name and version that a class is stored under.

        Raises:
            UnknownMessage: it is not registered, or has no name of its own.

        """
        try:
            return self._names[cls]
        except KeyError:
            late = self._why_late(cls)
            if late is not None:
                raise UnknownMessage(late) from None
            msg = (
                f"{_path_of(cls)} has no name on the wire: {self.why_nameless(cls)}. "
                f'Name it with @message("app.name").'
            )
            raise UnknownMessage(msg) from None

    def _why_late(self, cls: type) -> str | None:
        """Return what is to say of a class that nobody has told us of in time."""
        own = message_name_of(cls)
        if own is None or cls in self._why_not:
            return None
        if not self._is_of_apps:
            return (
                f"{_path_of(cls)}, named {own.name!r}, is not in this registry: no "
                f"handler here takes it. Add it with registry.add({cls.__name__})."
            )
        if apps.get_containing_app_config(cls.__module__) is None:
            return (
                f"{_path_of(cls)}, named {own.name!r}, is not registered: its module "
                f"belongs to no installed app. Move it to one."
            )
        return (
            f"{_path_of(cls)}, named {own.name!r}, was defined after the routes were "
            f"compiled: a worker, which may never import {cls.__module__}, would not "
            f"know it. Define it in the app's messages module, or import it there."
        )

    def why_nameless(self, cls: type) -> str | None:
        """Return why a class has no name on the wire, None where it has one."""
        if cls in self._names:
            return None
        return self._why_not.get(cls, "it stands in no handler's annotation")

    def class_of(self, name: str) -> type:
        """
        Return the class of a name, an old one included.

        Raises:
            UnknownMessage: no registered class has it.

        """
        try:
            return self._classes[name]
        except KeyError:
            msg = (
                f"No registered message class is named {name!r}. "
                f"Where it was renamed, give the old name in @message(aliases=[...])."
            )
            raise UnknownMessage(msg) from None

    def named(self, name: str) -> type | None:
        """Return the class that ``@message`` gave this name for routing, if any."""
        cls = self._classes.get(name)
        if cls is None:
            return None
        own = message_name_of(cls)
        return cls if own is not None and own.name == name else None

    def encode(self, payload: Any) -> tuple[MessageName, bytes]:
        """
        Return an object's name and JSON text, certain that it comes back as it is.

        Raises:
            UnknownMessage: its class is not registered.
            MessageConversionError: a field holds what its annotation does not say,
                NaN, or an object of a subclass whose own fields would be lost.

        """
        __traceback_hide__ = True
        name = self.name_of(type(payload))
        return name, to_stored_json(adapter_of(type(payload)), payload)

    def decode(self, name: str, text: bytes, version: int | None = None) -> Any:
        """
        Return the object that was stored under a name.

        Args:
            name: it was stored under.
            text: its JSON.
            version: it was stored in; None is the present one.

        Raises:
            UnknownMessage: no registered class has this name, or only an older
                version of one.
            MessageConversionError: the text is not one of its class.

        """
        __traceback_hide__ = True
        cls = self.class_of(name)
        wanted = adapter_of(cls)
        own, holder = self._names[cls], _path_of(cls)
        return from_stored_json(
            wanted, text, own, name=name, version=version, holder=holder
        )


def from_stored_json(
    adapter: Adapter,
    text: bytes,
    own: MessageName,
    *,
    name: str,
    version: int | None,
    holder: str,
) -> Any:
    """
    Read what was stored under a name, perhaps an old one, in a version, perhaps too.

    Args:
        adapter: of the present shape.
        text: its JSON.
        own: the present name and version.
        name: it was stored under.
        version: it was stored in; None is the present one.
        holder: the class, as errors call it.

    Raises:
        UnknownMessage: it is of a version that this process does not know yet.
        MessageConversionError: the text is not of this shape.

    """
    if version is None or version == own.version:
        return adapter.from_stored_json(text)
    if version > own.version:
        msg = (
            f"{name!r} was stored in version {version}, and {holder} is of "
            f"version {own.version}: this process runs older code."
        )
        raise UnknownMessage(msg)
    names = (name, own.name, *own.aliases)
    if has_upcasters(names, version, own.version):
        stored = adapter_of(Any).from_json(text)
        text = to_json(upcast(stored, names, version, own.version)).encode()
    return adapter.from_stored_json(text)


def to_stored_json(adapter: Adapter, payload: Any, *, beside: bool = True) -> bytes:
    """
    Write a payload as JSON text in UTF-8, certain that it comes back as it is.

    Args:
        adapter: of its type.
        payload: an object or a plain value.
        beside: whether what the object holds beside its fields counts as well.

    Raises:
        MessageConversionError: part of it would not, with its path.

    """
    __traceback_hide__ = True
    plain = adapter.to_plain_json(payload)
    if plain is not None:  # mostly so
        return plain
    try:
        text = adapter.to_json(payload)
    except MessageConversionError as error:
        if adapter.reason is not None:  # and where
            raise
        path = _dotted(_unwritable(payload))
        errors = [fault._replace(path=path) for fault in error.errors]
        raise MessageConversionError(adapter.name, errors) from error
    difference = _loss(adapter, payload, text, beside=beside)
    if difference is None:
        return text
    exact = adapter.to_exact_json(payload)
    if exact is not None and exact != text:
        left = _loss(adapter, payload, exact, beside=beside)
        if left is None:
            return exact
        if left.is_read:
            difference = left
    raise MessageConversionError(adapter.name, difference.errors)


class _Loss(NamedTuple):
    """What is wrong with what came back."""

    errors: list[FieldError]
    is_read: bool = True


_LOST = "it would not come back from JSON as it is"
_BESIDE = "it is no field of its class"


def _loss(adapter: Adapter, payload: Any, text: bytes, *, beside: bool) -> _Loss | None:
    """Return what text would lose of a payload, None if nothing."""
    __traceback_hide__ = True
    try:
        back = adapter.from_stored_json(text)
    except MessageConversionError as error:
        errors = [
            FieldError(fault.path, f"{_LOST} ({fault.message})", "not_json")
            for fault in error.errors
        ]
        return _Loss(errors, is_read=False)
    difference = _difference(payload, back)
    is_beside = difference is not None and difference.why is _BESIDE
    if difference is None or (is_beside and not beside and len(difference.path) == 1):
        return None
    why = f"{_LOST} ({difference.why})" if difference.why else _LOST
    return _Loss([FieldError(_dotted(difference.path), why, "not_json")])


class _Difference(NamedTuple):
    """A part that did not come back: where it is, and what is known of the reason."""

    path: tuple[Any, ...] = ()
    why: str = ""


def _difference(sent: Any, back: Any) -> _Difference | None:
    """
    Return the first part that did not come back, None if all did.

    A class's own ``==`` is not asked: it may overlook what is lost.
    """
    cls = type(sent)
    if cls in _SIMPLE and cls is type(back):
        return None if sent == back else _Difference()
    if cls in _DOTTED and cls is type(back):  # -0.0 and 0.0, 1.0 and 1.00 are equal
        return None if repr(sent) == repr(back) else _Difference()
    if isinstance(sent, (datetime, time)) and isinstance(back, (datetime, time)):
        return _difference_of_times(sent, back)
    if cls is not type(back):
        return _Difference(why=_why_of_types(cls, type(back)))
    if isinstance(sent, (set, frozenset)):
        return _difference_of_sets(sent, back)
    parts = _parts(sent)
    if parts is None:
        return None if _came_back(sent, back) else _Difference()
    others = _parts(back)
    if others is None or not _are_same_keys(parts, others):
        return _Difference()
    for key, part in parts.items():
        rest = _difference(part, others[key])
        if rest is not None:
            why = rest.why or _why_of_field(cls, key)
            return _Difference((key, *rest.path), why)
    given, others_given = fields_given(sent), fields_given(back)
    if given is not None and not given <= (others_given or set()):
        return _Difference(why="which of its fields were given is not in its JSON")
    lost = _more_attributes(sent) - _more_attributes(back)
    if lost:
        return _Difference((min(lost),), _BESIDE)
    return None


_SIMPLE = frozenset({bool, bytes, date, int, str, type(None), UUID})
_DOTTED = frozenset({Decimal, float})


def _why_of_types(sent: type, back: type) -> str:
    is_number = issubclass(sent, int) and back is float
    if not (is_number or issubclass(sent, back)):
        return ""
    return (
        f"{sent.__qualname__} comes back as {back.__qualname__}: annotate the field as "
        f"{sent.__qualname__}, or send a plain {back.__qualname__}"
    )


def _why_of_field(cls: type, name: Any) -> str:
    fields = getattr(cls, "__dataclass_fields__", _NOTHING)
    field: dataclasses.Field[Any] | None = fields.get(name)
    if field is None or field.init:
        return ""
    if (
        field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    ):
        return ""
    return "it is made anew: JSON keeps what __init__ does not take if it has a default"


def _are_same_keys(sent: Mapping[Any, Any], back: Mapping[Any, Any]) -> bool:
    if sent.keys() != back.keys():
        return False
    theirs = {key: key for key in back}
    return all(
        type(key) is type(theirs[key]) and _difference(key, theirs[key]) is None
        for key in sent
    )


def _difference_of_sets(sent: Any, back: Any) -> _Difference | None:
    if sent != back:
        return _Difference()
    others = {each: each for each in back}
    for each in sent:
        other = others[each]
        rest = _difference(each, other)
        if rest is not None:
            return rest._replace(path=())
        if _unset_in(each) != _unset_in(other):  # a set has no path to restore it by
            return _Difference(why="which of its fields were given is not in its JSON")
    return None


def _difference_of_times(sent: Any, back: Any) -> _Difference | None:
    """Compare what the clock shows, the fold and the zone."""
    cls = type(sent)
    # Who sets the clock in a test puts a class of their own in the place of Python's.
    if cls is not type(back) and cls is not getattr(dt, type(back).__name__):
        return _Difference(why=_why_of_types(cls, type(back)))
    walls = sent.replace(tzinfo=None), back.replace(tzinfo=None)
    # At a fixed offset no hour comes twice: the fold says nothing.
    says_fold = sent.tzinfo is None or sent.tzinfo.utcoffset(None) is None
    if walls[0] != walls[1] or (says_fold and sent.fold != back.fold):
        return _Difference()
    if _is_same_zone(sent.tzinfo, back.tzinfo) and sent.utcoffset() == back.utcoffset():
        return None
    return _Difference(
        why="JSON keeps no zone but a zoneinfo.ZoneInfo that has a key, and a "
        "datetime.timezone that has no name of its own"
    )


def _is_same_zone(sent: Any, back: Any) -> bool:
    if sent is back:
        return True
    if sent is None or back is None:
        return False
    if isinstance(sent, ZoneInfo) or isinstance(back, ZoneInfo):
        return type(sent) is type(back) and sent.key == back.key
    offset = sent.utcoffset(None)  # None where it depends on the day
    if offset is None or offset != back.utcoffset(None):
        return False
    # pydantic has a class of its own for what it has read.
    is_read = type(sent).__module__.startswith("pydantic_core")
    return is_read or bool(sent.tzname(None) == back.tzname(None))


def _more_attributes(value: Any) -> set[str]:
    """Return the names of an object's attributes that are neither fields nor cached."""
    names = field_names(type(value))
    if names is None:
        return set()
    return {
        name
        for name in getattr(value, "__dict__", _NOTHING).keys() - set(names)
        if not hasattr(type(value), name)  # a cached property
    }


_NOTHING: Mapping[str, Any] = {}


def _came_back(sent: Any, back: Any) -> bool:
    """Compare what has no parts."""
    cls: Any = type(sent)
    if cls.__eq__ is object.__eq__:  # a value object that does not say
        return bool(to_jsonable(sent) == to_jsonable(back))
    return bool(sent == back)


def fields_given(value: Any) -> set[str] | None:
    """Return the names of the fields that a model was given; None for others."""
    given = getattr(value, "__pydantic_fields_set__", None)
    return given if isinstance(given, set) else None


Unset = list[tuple[list[str], list[str]]]
"""By the path of each model in a payload, the fields that it was not given."""


def unset_in(adapter: Adapter, payload: Any) -> Unset:
    """
    Return which fields of the models in a payload hold their defaults, not given.

    JSON does not say so, and ``model_dump(exclude_unset=True)`` wants to know it.

    Args:
        adapter: of the payload's type.
        payload: an object, or a container of such.

    """
    __traceback_hide__ = True
    return _unset_in(payload) if adapter.has_models else []


def _unset_in(value: Any, path: tuple[str, ...] = ()) -> Unset:
    if type(value) in _SIMPLE or type(value) in _DOTTED:
        return []
    found: Unset = []
    given = fields_given(value)
    if given is not None:
        unset = sorted(type(value).model_fields.keys() - given)
        if unset:
            found.append((list(path), unset))
    for key, part in (_parts(value) or _NOTHING).items():
        found += _unset_in(part, (*path, str(key)))
    return found


def restore_unset(payload: Any, unset: Unset) -> None:
    """
    Have the models in a payload know again which fields they were not given.

    What is not there any more, since an upcaster has changed it, is passed over.
    """
    __traceback_hide__ = True
    for path, names in unset:
        value = payload
        for step in path:
            parts = _parts(value) or _NOTHING
            value = next((parts[key] for key in parts if str(key) == step), None)
        given = fields_given(value)
        if given is not None:
            object.__setattr__(value, "__pydantic_fields_set__", given - set(names))


def _unwritable(value: Any) -> tuple[Any, ...]:
    """Return the path of the first part that has no JSON form."""
    path: list[Any] = []
    while len(path) < _DEEP:
        for key, part in (_parts(value) or {}).items():
            try:
                adapter_of(Any).to_json(to_jsonable(part))
            except MessageConversionError:
                path.append(key)
                value = part
                break
        else:
            break
    return tuple(path)


_DEEP = 20  # a value that holds itself has no end


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return what a value consists of, by name, key or number; None for one piece."""
    names = field_names(type(value))
    if names is not None:
        parts = {name: getattr(value, name) for name in names if hasattr(value, name)}
        for more in ("__pydantic_extra__", "__pydantic_private__"):
            parts.update(getattr(value, more, None) or {})
        return parts
    if isinstance(value, (dict, Mapping)):
        return value
    if isinstance(value, (list, tuple, deque)):
        return dict(enumerate(value))
    return None


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def _path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
