"""
Samples: one payload for each locked version, made from the shape and never real.

A text that a class checks by its own code may refuse the first guess. Then others are
tried, and the examples of ``Field(examples=[...])`` before all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import ceil
from typing import Any, Final

from django_cqrs.exceptions import MessageConversionError
from django_cqrs.schema_lock.locked_shapes import NONE, OF, DescribedType, LockedShape

Reader = Callable[[Any], Any]
"""Reads JSON, or raises :exc:`MessageConversionError`."""

_ROUNDS: Final = 60
"""The maximum number of payloads that are tried."""

NOTHING: Final = object()
"""The sample of a value that contains itself without end."""

TEXTS: Final = (
    *("text", "1", "A", "a1", "EUR", "1.00 EUR", "1.00", "a@example.com"),
    *("https://example.com/", "2000-01-01", "2000-01-01T00:00:00+00:00", "12:00:00"),
    *("PT1H", "00000000-0000-4000-8000-000000000001", "127.0.0.1", "UTC", "a/b"),
    *("#000000", "+10000000000", "1/2", "1+1j", "os.path", "A-1", "{}", "[]", "AQ=="),
)
"""The texts that are tried in turn where code of a class decides."""


def sample_of(described: DescribedType, read: Reader) -> tuple[Any, str]:
    """
    Return a payload that a class reads, and an empty text.

    Args:
        described: the shape of the class.
        read: the reader of its JSON.

    Returns:
        None if no payload was found, and the reason.

    """
    maker = _Maker(described)
    why = "it contains itself without end"
    for _ in range(_ROUNDS):
        payload = maker.payload()
        if payload is NOTHING:
            break
        try:
            read(payload)
        except MessageConversionError as error:
            fault = error.errors[0]
            why = f"{fault.path}: {fault.message}" if fault.path else fault.message
            paths = [each.path for each in error.errors]
            if not maker.try_others(paths):
                break
        else:
            return payload, ""
    return None, why


class _Maker:
    """Makes the payloads of one shape: another one after each refusal."""

    def __init__(self, described: DescribedType) -> None:
        self._described = described
        self._turns: dict[str, int] = {}
        """The number of the value at each place that is not the first one."""
        self._counts: dict[str, int] = {}
        """The number of values that may be tried at each place."""

    def payload(self) -> Any:
        """Return the present payload."""
        self._counts = {}
        return self._value(self._described.shape, "", "")

    def try_others(self, paths: list[str]) -> bool:
        """
        Choose other values for refused ones; return False if none is left.

        Args:
            paths: the dotted paths of the refused values; empty for the whole.

        """
        changed = False
        for place, count in self._counts.items():
            is_meant = any(_is_at(place, path) for path in paths)
            turn = self._turns.get(place, 0) + 1
            if is_meant and turn < count:
                self._turns[place] = turn
                changed = True
        return changed

    def _choice(self, values: list[Any], place: str) -> Any:
        self._counts[place] = len(values)
        return values[self._turns.get(place, 0) % len(values)]

    def _value(self, shape: LockedShape, path: str, place: str) -> Any:
        """
        Return the sample of one place.

        Args:
            shape: the shape of the value.
            path: its path among the fields, for examples.
            place: its dotted path in the payload, as errors give it.

        """
        method = getattr(self, f"_{shape['type']}", None)
        if method is not None:
            return method(shape, path, place)
        values = list(_values(shape))
        return self._choice(values, place)

    def _object(self, shape: LockedShape, path: str, place: str) -> Any:
        found = {}
        for name, field in shape["fields"].items():
            inner = f"{path}.{name}".lstrip(".")
            key = next((k for k in field.get("read_from", [name]) if k == name), None)
            if key is None:
                key = next(k for k in field["read_from"] if isinstance(k, str))
            here = f"{place}.{key}".lstrip(".")
            examples = self._described.examples.get(inner)
            if examples:
                value = self._choice([*examples, *_values(field)], here)
            else:
                value = self._value(field, inner, here)
            if value is not NOTHING:
                found[key] = value
            elif "default" not in field and "default_factory" not in field:
                return NOTHING
        return found

    def _recursion(self, _shape: LockedShape, _path: str, _place: str) -> Any:
        return NOTHING

    def _list(self, shape: LockedShape, path: str, place: str) -> Any:
        count = max(1, shape.get("min_length") or 0)
        if shape.get("max_length") == 0:
            return []
        found = [
            self._value(shape[OF], f"{path}[]", f"{place}.{n}".lstrip("."))
            for n in range(count)
        ]
        return [] if NOTHING in found else found

    def _set(self, shape: LockedShape, path: str, place: str) -> Any:
        return self._list(shape, path, place)

    def _tuple(self, shape: LockedShape, path: str, place: str) -> Any:
        found = [
            self._value(each, f"{path}[{n}]", f"{place}.{n}".lstrip("."))
            for n, each in enumerate(shape[OF])
        ]
        return NOTHING if NOTHING in found else found

    def _dict(self, shape: LockedShape, path: str, place: str) -> Any:
        key = self._value(shape["keys"], f"{path}{{}}", place)
        text = key if isinstance(key, str) else json.dumps(key)
        inner = f"{place}.{text}".lstrip(".")
        value = self._value(shape["values"], f"{path}{{}}", inner)
        return {} if value is NOTHING else {text: value}

    def _union(self, shape: LockedShape, path: str, place: str) -> Any:
        members = [each for each in shape[OF] if each["type"] != NONE]
        values = [self._value(each, path, place) for each in members]
        known = [each for each in values if each is not NOTHING]
        if len(members) < len(shape[OF]):
            known.append(None)
        if not known:
            return NOTHING
        return self._choice(known, place)

    def _tagged(self, shape: LockedShape, path: str, place: str) -> Any:
        values = [self._value(each, path, place) for each in shape["tags"].values()]
        known = [each for each in values if each is not NOTHING]
        return known[0] if known else NOTHING

    def _json(self, shape: LockedShape, path: str, place: str) -> Any:
        value = self._value(shape[OF], path, place)
        return value if value is NOTHING else json.dumps(value, sort_keys=True)

    def _converted(self, shape: LockedShape, path: str, place: str) -> Any:
        return self._value(shape[OF], path, place)

    def _code(self, shape: LockedShape, path: str, place: str) -> Any:
        inner = shape.get(OF, {"type": "str"})
        return self._value(inner, path, place)

    def _other(self, shape: LockedShape, path: str, place: str) -> Any:
        inner = shape.get(OF)
        first = inner[0] if isinstance(inner, list) else inner or {"type": "str"}
        return self._value(first, path, place)


def _is_at(place: str, path: str) -> bool:
    """Return whether the value at a place may be to blame for an error at a path."""
    return (
        place == path
        or not path
        or place.startswith(f"{path}.")
        or path.startswith(f"{place}.")
    )


def _values(shape: LockedShape) -> Iterator[Any]:
    """Yield the values to be tried for a scalar; the first one is the likeliest."""
    kind = shape["type"]
    if kind == "one_of":
        yield from shape["choices"]
    elif kind in ("int", "float", "decimal"):
        yield from _numbers(shape)
    elif kind in _FIXED:
        bounds = [shape[key] for key in ("ge", "le") if key in shape]
        yield from (*bounds, *_FIXED[kind])
    elif kind == "uuid":
        version = shape.get("version") or 4
        yield f"00000000-0000-{version}000-8000-000000000001"
    elif kind == "url":
        for scheme in shape.get("allowed_schemes") or ("https",):
            yield f"{scheme}://example.com/"
    elif kind == "datetime":
        yield from _moments(shape)
    else:
        yield from _texts(shape)


_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    NONE: (None,),
    "bool": (True, False),
    "bytes": ("AQ==", "01", "a"),
    "date": ("2000-01-01", "9999-12-31"),
    "fraction": ("1/2",),
    "time": ("12:00:00", "12:00:00+00:00"),
    "timedelta": ("PT1H",),
}


def _moments(shape: LockedShape) -> Iterator[str]:
    for key in ("ge", "le"):
        if key in shape:
            yield shape[key]
    offset = "" if shape.get("tz_constraint") == "naive" else "+00:00"
    yield f"2000-01-01T00:00:00{offset}"
    yield f"9999-12-31T00:00:00{offset}"
    yield "2000-01-01T00:00:00"


def _texts(shape: LockedShape) -> Iterator[str]:
    least, most = shape.get("min_length") or 0, shape.get("max_length")
    pattern = shape.get("pattern")
    for text in _long_texts(least, most):
        if pattern is None or _may_match(pattern, text):
            yield text
    if pattern is not None:
        yield TEXTS[0]


def _long_texts(least: int, most: int | None) -> Iterator[str]:
    for each in TEXTS:
        text = each
        while text and len(text) < least:
            text += each
        yield text if most is None else text[:most]


def _may_match(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:  # of another dialect
        return True


def _numbers(shape: LockedShape) -> Iterator[Any]:
    kind = shape["type"]
    for number in _decimals(shape):
        if kind == "int":
            yield ceil(number)
        elif kind == "float":
            yield float(number)
        else:
            yield str(number)


def _decimals(shape: LockedShape) -> Iterator[Decimal]:
    is_whole = shape["type"] == "int"
    step = Decimal(str(shape.get("multiple_of") or 1))
    places = shape.get("decimal_places", 2)
    fine = Decimal(1).scaleb(-min(places, 2)) if not is_whole else Decimal(1)
    first = step
    if shape["type"] == "decimal" and "multiple_of" not in shape:
        first = Decimal(1).quantize(fine)
    elif shape["type"] == "float" and "multiple_of" not in shape:
        first = Decimal("1.5")
    lower, upper = _bound(shape, "ge", "gt", fine), _bound(shape, "le", "lt", -fine)
    for number in (first, lower, upper, Decimal(0), step * 2, -step, step * 10):
        is_inside = number is not None and (
            (lower is None or number >= lower) and (upper is None or number <= upper)
        )
        if number is not None and is_inside:
            yield number
    if lower is not None:
        yield (lower / step).to_integral_value(rounding="ROUND_CEILING") * step
    if upper is not None:
        yield (upper / step).to_integral_value(rounding="ROUND_FLOOR") * step
    yield first


def _bound(shape: LockedShape, inclusive: str, exclusive: str, step: Decimal) -> Any:
    found = []
    if inclusive in shape:
        found.append(Decimal(str(shape[inclusive])))
    if exclusive in shape:
        found.append(Decimal(str(shape[exclusive])) + step)
    if not found:
        return None
    return max(found) if step > 0 else min(found)
