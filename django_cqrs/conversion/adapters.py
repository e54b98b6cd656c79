"""
Payloads to JSON and back, by pydantic's ``TypeAdapter``.

pydantic is imported when the first adapter is built, never before.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from django_cqrs.annotations import (
    dotted,
    field_names,
    is_typed_dict,
    name_of_type,
    union_members,
)
from django_cqrs.conversion.masking import masking_of
from django_cqrs.conversion.schemas import (
    REFUSALS,
    Compiled,
    Fault,
    JSONReader,
    Schema,
    compiled,
    mistakes,
)
from django_cqrs.exceptions import FieldError, MessageConversionError

_MARK_END = ']"'  # the end of a time with marks, see write_exact()

CODES_FAULT = "no_converter"
"""The code of errors that no payload could have avoided: a class is at fault."""


@dataclasses.dataclass(slots=True)
class Converters:
    """The registered directions of one class."""

    load: tuple[Any, Callable[[Any], Any]] | None = None
    dump: tuple[Any, Callable[[Any], Any]] | None = None


registered_converters: dict[type, Converters] = {}


class Adapter:
    """
    Converts one type: JSON text strictly, Python values laxly.

    Every method raises :class:`MessageConversionError` with all faults.
    """

    def __init__(self, target: Any) -> None:
        """
        Compile the conversion of `target`.

        A type that cannot be converted still creates an adapter, and every use of it
        raises: `reason` says why, and `path` where in the type.
        """
        self.name: str = name_of_type(target)
        self._target = target
        self.reason: str | None = None
        self.path = ""
        try:
            self._compiled = compiled(target)
            self._json_reader = self._compiled.json_reader
        except mistakes() as error:
            lines = str(error).splitlines() or [type(error).__name__]
            fault = _formless_part(target) or ((), lines[0].rstrip("."))
            self.path, self.reason = dotted(fault[0]), fault[1]

    @property
    def schema(self) -> Schema:
        """
        The schema of pydantic, without rules of this package.

        Raises:
            MessageConversionError: the type cannot be converted.

        """
        if self.reason:
            raise self._error(self.reason, CODES_FAULT, self.path)
        return self._compiled.schema

    @property
    def fault(self) -> str | None:
        """The part of the type without a JSON form, and its place; None if none."""
        path, reason = self.path, self.reason
        if reason is None and self._compiled.fault is not None:
            path, reason = dotted(self._compiled.fault[0]), self._compiled.fault[1]
        return f"{path}: {reason}" if path and reason else reason

    def from_json(
        self, text: str | bytes | bytearray, reader: JSONReader | None = None
    ) -> Any:
        """
        Read JSON text strictly: a string is not accepted as a number.

        Args:
            text: the text; as bytes in UTF-8.
            reader: another reader than that of the type.

        """
        __traceback_hide__ = True
        if type(text) is not bytes:
            text = self._octets_of(text)
        if self.reason:
            raise self._error(self.reason, CODES_FAULT, self.path)
        read, is_strict = self._json_reader if reader is None else reader
        try:
            value = read(text, strict=is_strict)
            # Short text has its first look here: a call would take as long.
            if (
                len(text) >= _MANY
                or (signs := text.translate(_SIGNS)).rfind(_EXPONENT) >= 0
                or _NAME in signs
            ):
                _refuse_unreal(text)
        except (*REFUSALS, RecursionError) as error:
            # A lambda would cost each text the cells of its variables.
            self._refuse(error, functools.partial(read, strict=is_strict), text)
        return value

    def _octets_of(self, text: Any) -> bytes | bytearray:
        if isinstance(text, (bytes, bytearray)):
            return text
        if not isinstance(text, str):
            given = type(text).__qualname__
            fault = f"JSON text is str or bytes, not {given}"
            raise self._error(fault, "json_type")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            fault = "JSON text cannot hold half of a surrogate pair"
            raise self._error(fault, "json_invalid") from error

    def from_stored_json(self, text: bytes | bytearray) -> Any:
        """Read a channel's text strictly, restoring the value that was written."""
        __traceback_hide__ = True
        if self.reason:
            raise self._error(self.reason, CODES_FAULT, self.path)
        return self.from_json(text, self._compiled.reader_of_stored(text))

    @functools.cached_property
    def stored_reader(self) -> Callable[[str], Any]:
        """
        The quickest reader of JSON that this package wrote, and a database has checked.

        It does what :meth:`from_stored_json` does, without a look for NaN, which JSON
        columns refuse. It raises pydantic's own errors: :meth:`explain` translates one.
        """
        if self.reason:
            return self._refuse_all
        read, is_strict = self._compiled.stored_reader
        plain = functools.partial(read, strict=is_strict)
        if not self._compiled.has_marks:
            return plain
        compiled = self._compiled

        def read_marked(text: str) -> Any:
            if text.find(_MARK_END) < 0:
                return plain(text)
            read, is_strict = compiled.marked_reader
            return read(text, strict=is_strict)

        return read_marked

    def _refuse_all(self, _text: str) -> NoReturn:
        __traceback_hide__ = True
        raise self._error(self.reason or "", CODES_FAULT, self.path)

    def explain(self, error: Exception, text: str) -> MessageConversionError:
        """Return the error of :attr:`stored_reader` as one with the faulty fields."""
        if isinstance(error, MessageConversionError):
            return error
        try:
            self._refuse(error, self.stored_reader, text)
        except MessageConversionError as told:
            return told

    def from_python(self, value: Any) -> Any:
        """Read a Python value laxly: a string is accepted as a number."""
        __traceback_hide__ = True
        if self.reason:
            raise self._error(self.reason, CODES_FAULT, self.path)
        read = self._compiled.read_python
        try:
            return read(value)
        except (*REFUSALS, RecursionError) as error:
            self._refuse(error, read, value)

    def to_json(self, value: Any) -> bytes:
        """Write an object as JSON text in UTF-8."""
        __traceback_hide__ = True
        return bytes(self._write(Compiled.write_json, value))

    def to_exact_json(self, value: Any) -> bytes | None:
        """Write JSON text with exact times and numbers; None if none can be written."""
        if self.reason or not self._compiled.has_marks:
            return None
        try:
            return bytes(self._compiled.write_exact(value))
        except (*REFUSALS, RecursionError):
            return None

    @property
    def has_models(self) -> bool:
        """Whether a part of it may record which of its fields were given."""
        return not self.reason and self._compiled.has_models

    def to_plain_json(self, value: Any) -> bytes | None:
        """Write JSON text that certainly restores the value; None if uncertain."""
        return None if self.reason else self._compiled.write_plain(value)

    def to_jsonable(self, value: Any) -> Any:
        """Write an object as the dicts, lists and scalars of its JSON form."""
        __traceback_hide__ = True
        return self._write(Compiled.write_jsonable, value)

    def _refuse(
        self, error: Exception, read: Callable[[Any], Any], value: Any
    ) -> NoReturn:
        """
        Report the errors of a value that pydantic, or code of a class, refused.

        Raises:
            MessageConversionError: always.

        """
        __traceback_hide__ = True
        from pydantic_core import ValidationError

        if not isinstance(error, ValidationError):
            raise self._error(str(error), "refused") from error
        # pydantic quotes refused values, which no report may show.
        count = error.error_count()
        is_long = count > MOST_ERRORS
        cause = None if is_long or masking_of(self._target).is_marked else error
        told = self._beginning(read, value) if count > _TOO_MANY else None
        errors = _field_errors(error if told is None else told, count)
        raise MessageConversionError(self.name, errors) from cause

    def _beginning(self, read: Callable[[Any], Any], value: Any) -> Any:
        """
        Return pydantic's result for the start of each list in a value, or None.

        Listing a million errors takes a gigabyte, and there is no other way to get the
        first of them.
        """
        __traceback_hide__ = True
        from pydantic_core import ValidationError

        try:
            if isinstance(value, (str, bytes)):
                read(json.dumps(_cut(json.loads(value))).encode())
            else:
                read(_cut(value))
        except ValidationError as error:
            if not MOST_ERRORS < error.error_count() <= _TOO_MANY:
                return None
            kinds = {each["type"] for each in error.errors(include_url=False)}
            return None if "too_short" in kinds else error  # the cut may have caused it
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


known_adapters: dict[Any, Adapter] = {}
"""The adapters of types, until another converter is registered."""


def adapter_of(target: Any) -> Adapter:
    """Return the adapter of a type, built on first use."""
    try:
        known = known_adapters.get(target)
    except TypeError:  # an unhashable annotation
        return Adapter(target)
    if known is None:
        known = known_adapters[target] = Adapter(target)
    return known


def _formless_part(annotation: Any, around: tuple[Any, ...] = ()) -> Fault | None:
    """
    Return the path of the part of a type without a JSON form, and its description.

    None if no single part is to blame.
    """
    members = union_members(annotation)
    if annotation in around or len(around) > DEEP:
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
    """Return the annotation of each field of a class, and the class that defines it."""
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


# Text that may become NaN or infinity where no type requires a number: a literal with
# fewer digits and a shorter exponent is below 1e300.
_UNREAL = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{200}")


# All digits, and a plus, as one character, starts of exponents as another, and starts
# of names of numbers as a third: a plain search for each takes a twentieth of the time
# of the expression.
_SIGNS = bytes(
    {
        **dict.fromkeys(b"0123456789+", 48),
        **dict.fromkeys(b"eE", 101),
        **dict.fromkeys(b"NI", 78),
    }.get(each, 32)
    for each in range(256)
)
_NAME, _QUOTE, _BACKSLASH = b'N"\\'
_EXPONENT = b"0e000"
_MANY = 200
_MANY_DIGITS = b"0" * _MANY
_LONG = 2000


def _refuse_unreal(text: bytes | bytearray) -> None:
    """
    Refuse JSON text with a number that is not finite.

    Raises:
        ValueError: it has one.

    """
    seen = text
    if len(text) > _LONG:
        front, rest = _without_long_strings(text)  # the search in them would take long
        seen = front + (rest if _BACKSLASH in rest else _outside_strings(rest))
    signs = seen.translate(_SIGNS)
    # The search for one byte takes almost no time. `in` is slower than find(), because
    # it tries to convert the bytes to a number first.
    if not (
        signs.rfind(_EXPONENT) >= 0
        or signs.find(_MANY_DIGITS) >= 0
        or (_NAME in signs and seen.find(b"NaN") >= 0)
        or (_NAME in signs and seen.find(b"Infinity") >= 0)
    ):
        return
    if _UNREAL.search(_outside_strings(text)) is not None:
        json.loads(text, parse_constant=_real, parse_float=_real)


def _without_long_strings(text: bytes | bytearray) -> tuple[bytes, bytes | bytearray]:
    """
    Return the start of JSON text without the content of strings, and the rest as it is.

    The rest begins where quotes are close to each other. Where they are not, find()
    takes a hundredth of the time of split().
    """
    parts = []
    start = at = quotes = 0
    is_inside = False
    while quotes < _FEW or at > quotes * _FAR_APART:
        quote = text.find(_QUOTE, at)
        if quote < 0:
            break
        quotes += 1
        at = quote + 1
        if not is_inside:
            parts.append(text[start:quote])
            start, is_inside = quote, True
        elif not _is_escaped(text, quote):
            start, is_inside = at, False
    return b"".join(parts), text[start:]


_FEW = 32
_FAR_APART = 128


def _is_escaped(text: bytes | bytearray, place: int) -> bool:
    """Return whether an odd number of backslashes stands before a place in a string."""
    first = place
    while text[first - 1] == _BACKSLASH:
        first -= 1
    return (place - first) % 2 == 1


def _outside_strings(text: bytes | bytearray) -> bytes | bytearray:
    """Return JSON text without the content of its strings."""
    if _BACKSLASH in text:
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    return b"".join(text.split(b'"')[::2])


def _real(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        msg = "JSON has no NaN, no infinity and no number beyond the range of floats"
        raise ValueError(msg)
    return number


MOST_ERRORS: typing.Final = 100
"""The maximum number of faulty fields in an error; a million would help nobody."""

_LONGEST_TEXT = 500


_TOO_MANY = 5000


def _cut(value: Any) -> Any:
    """Return a value with each of its lists shortened to its start."""
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
    if count > 1:  # a key may be as long as the body, and is in each path
        errors = [
            each._replace(path=_shortened(each.path), message=_shortened(each.message))
            for each in errors
        ]
    if count > MOST_ERRORS:
        rest = f"{count - MOST_ERRORS} more errors are not listed"
        errors.append(FieldError("", rest, "too_many_errors"))
    return errors


def _shortened(text: str) -> str:
    """Return the start of a long text."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


# pydantic's errors that quote a part of the value.
_SENTENCES = {
    "union_tag_invalid": "Input's tag is not one of those expected",
    "uuid_parsing": "Input should be a valid UUID",
}


def _sentence_of(fault: Mapping[str, Any]) -> str:
    raised = fault.get("ctx", {}).get("error")
    if isinstance(raised, Exception):
        return str(raised) or type(raised).__name__
    return _SENTENCES.get(fault["type"]) or str(fault["msg"])


def _tidy(part: str) -> str:
    """
    Return a part of a path without the functions in it.

    The members of a union are parts of a path, and a type that a function reads is
    ``list[function-after[Money(), str]]`` there, although ``list[Money]`` is enough.
    """
    while len(part) < _LONGEST_TYPE and (begin := _FUNCTION.search(part)):
        end, depth = begin.end(), 1
        while depth and end < len(part):
            depth += {"[": 1, "]": -1}.get(part[end], 0)
            end += 1
        part = part[: begin.start()] + begin["name"] + part[end:]
    return part


_FUNCTION = re.compile(r"function-[a-z]+\[(?P<name>[^()]*)\(\)")

_LONGEST_TYPE = 1000  # anything longer is a key of the payload, and must not be changed


def to_jsonable(value: Any) -> Any:
    """
    Return the JSON form of a value, by its class.

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
    Return the JSON text of a value, by its class.

    Raises:
        MessageConversionError: part of it has no JSON form.

    """
    __traceback_hide__ = True
    form = to_jsonable(value)
    try:
        text = json.dumps(
            form, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        )
        text.encode()  # a lone surrogate would only fail here
    except ValueError as error:
        raise _not_json(value, error) from error
    return text


def _jsonable(value: Any) -> Any:
    if type(value) in registered_converters:
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


def is_subclass(cls: type, base: type) -> bool:
    """Return whether objects of a class are, or may be, instances of another."""
    try:
        return issubclass(cls, base)
    except TypeError:  # a Protocol with data: only an object can be tested
        return True


DEEP = 20  # a value that contains itself has no end
