"""
The rules of changed shapes: can the present code read the JSON of former code?

A change that no rule knows is refused: nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Iterable, Iterator
from decimal import Decimal
from math import inf
from typing import Any, Final

from django_cqrs.schema_lock.locked_shapes import (
    ANY,
    NONE,
    OBJECT,
    OF,
    ONE,
    SEVERAL,
    UNION,
    LockedShape,
    shown,
    text_of,
)


class Verdict(enum.StrEnum):
    """The consequence of a change for a class."""

    FINE = "fine"
    SAID = "said"
    VERSION = "version and upcaster"
    NEW_NAME = "new name"
    REFUSED = "refused"

    @property
    def is_allowed(self) -> bool:
        """Whether the change needs nothing else."""
        return self in (Verdict.FINE, Verdict.SAID)


class ShapeRule(enum.Enum):
    """Each kind of change, with its verdicts for stored and for shared classes."""

    ADDED = "a field with a default was added", Verdict.FINE, Verdict.FINE
    ADDED_REQUIRED = (
        "a required field was added",
        Verdict.VERSION,
        Verdict.REFUSED,
    )
    REMOVED = "a field was removed", Verdict.FINE, Verdict.REFUSED
    REMOVED_OPTIONAL = (
        "a field with a default was removed",
        Verdict.FINE,
        Verdict.FINE,
    )
    LOOKS_RENAMED = "this looks like a rename", Verdict.SAID, Verdict.SAID
    WIDER = "a type became wider", Verdict.FINE, Verdict.REFUSED
    NARROWER = "a type became narrower", Verdict.VERSION, Verdict.NEW_NAME
    OTHER_TYPE = "a type became another one", Verdict.VERSION, Verdict.NEW_NAME
    OTHER_FORM = "a converter has another form", Verdict.VERSION, Verdict.NEW_NAME
    DEFAULT_ADDED = "a field got a default", Verdict.FINE, Verdict.FINE
    DEFAULT_CHANGED = "a default changed", Verdict.SAID, Verdict.SAID
    UNKNOWN = "no rule knows this change", Verdict.REFUSED, Verdict.REFUSED

    def __init__(self, title: str, stored: Verdict, shared: Verdict) -> None:
        """Give each member its title and its verdicts."""
        self.title = title
        self.stored = stored
        self.shared = shared


@dataclasses.dataclass(frozen=True, slots=True)
class ShapeChange:
    """One change of a shape: its place, its kind and its consequence."""

    path: str
    """The path of the field, such as ``lines[].sku``; empty for the class itself."""
    rule: ShapeRule
    verdict: Verdict
    details: str
    """The facts, with both shapes where they count."""


def changes_between(
    old: LockedShape, new: LockedShape, *, shared: bool = False, is_event: bool = False
) -> list[ShapeChange]:
    """
    Return the changes from a locked shape to the present one.

    Args:
        old: the locked shape.
        new: the present shape.
        shared: whether other projects read the class as well: they read new JSON with
            former code.
        is_event: whether it is an event, which other projects only read.

    """
    comparison = _Comparison(shared=shared, is_event=is_event)
    comparison.compare(old, new, "")
    return comparison.changes


# A value of the first type can be read as the second one.
_WIDENING: Final = frozenset({("int", "decimal"), ("int", "float"), ("set", "list")})

_FIELD_KEYS: Final = frozenset(
    {"default", "default_factory", "read_from", "removed", "required"}
)
# Keys that have rules of their own; all others are constraints.
_STRUCTURE: Final = (
    _FIELD_KEYS
    | ONE
    | SEVERAL
    | {OF, "by", "checks", "choices", "extra", "mode", "name", "open", "rest"}
    | {"settings", "to", "type", "up"}
)
_LOWER: Final = ("ge", "gt")
_UPPER: Final = ("le", "lt")
_DIGITS: Final = ("max_digits", "decimal_places")
# Constraints that only refuse values: without them, more is read.
_REFUSING: Final = frozenset({"now_op", "pattern", "tz_constraint", "version"})
# Details that only accept values: with them, more is read.
_ACCEPTING: Final = {"allow_inf_nan": True, "strict": False}


class _Comparison:
    """The comparison of two shapes; paths of fields are collected on the way."""

    def __init__(self, *, shared: bool, is_event: bool) -> None:
        self.changes: list[ShapeChange] = []
        self._is_shared = shared
        self._is_event = is_event

    def _note(self, path: str, rule: ShapeRule, details: str) -> None:
        verdict = rule.shared if self._is_shared else rule.stored
        if self._is_shared and self._is_event and rule is ShapeRule.ADDED_REQUIRED:
            verdict = Verdict.FINE
        self.changes.append(ShapeChange(path, rule, verdict, details))

    def _differ(
        self, path: str, rule: ShapeRule, old: LockedShape, new: LockedShape
    ) -> None:
        self._note(path, rule, f"{_shown(old)} became {_shown(new)}")

    def compare(self, old: LockedShape, new: LockedShape, path: str) -> None:
        """Note the changes of one place."""
        old, new = _without(old, _FIELD_KEYS), _without(new, _FIELD_KEYS)
        if old == new:
            return
        kinds = old["type"], new["type"]
        if ANY in kinds and "checks" not in old and "checks" not in new:
            rule = ShapeRule.WIDER if kinds[1] == ANY else ShapeRule.NARROWER
            self._differ(path, rule, old, new)
        elif "converted" in kinds:
            self._differ(path, ShapeRule.OTHER_FORM, old, new)
        elif not _OPAQUE.isdisjoint(kinds):
            self._differ(path, ShapeRule.UNKNOWN, old, new)
        elif UNION in kinds:
            self._compare_unions(old, new, path)
        elif kinds in _WIDENING or kinds[0] == kinds[1]:
            self._compare_alike(old, new, path)
        elif kinds[0] == "one_of" and _is_type_of_choices(old, new):
            self._differ(path, ShapeRule.WIDER, old, new)
        else:
            is_narrower = kinds[::-1] in _WIDENING or kinds[1] == "one_of"
            rule = ShapeRule.NARROWER if is_narrower else ShapeRule.OTHER_TYPE
            self._differ(path, rule, old, new)

    def _compare_alike(self, old: LockedShape, new: LockedShape, path: str) -> None:
        """Compare two shapes of one type, or of two that are related."""
        if old["type"] != new["type"]:
            self._differ(path, ShapeRule.WIDER, old, new)
        self._compare_checks(old, new, path)
        self._compare_constraints(old, new, path)
        kind = old["type"]
        if old.get("settings") != new.get("settings"):
            self._differ(path, ShapeRule.UNKNOWN, old, new)
        elif kind == OBJECT:
            self._compare_objects(old, new, path)
        elif kind in ("list", "set"):
            self.compare(old[OF], new[OF], f"{path}[]")
        elif kind == "dict":
            self.compare(old["keys"], new["keys"], f"{path}{{}}")
            self.compare(old["values"], new["values"], f"{path}{{}}")
        elif kind == "tuple":
            self._compare_tuples(old, new, path)
        elif kind == "one_of":
            self._compare_choices(old, new, path)
        elif kind == "tagged":
            self._compare_tags(old, new, path)
        elif kind == "json":
            self.compare(old[OF], new[OF], path)
        elif kind == "recursion":
            self._differ(path, ShapeRule.UNKNOWN, old, new)

    def _compare_checks(self, old: LockedShape, new: LockedShape, path: str) -> None:
        before, now = set(old.get("checks", ())), set(new.get("checks", ()))
        if now - before:
            details = f"{', '.join(sorted(now - before))} now checks it"
            self._note(path, ShapeRule.NARROWER, details)
        if before - now:
            details = f"{', '.join(sorted(before - now))} no longer checks it"
            self._note(path, ShapeRule.WIDER, details)

    # ------------------------------------------------------------------ constraints

    def _compare_constraints(
        self, old: LockedShape, new: LockedShape, path: str
    ) -> None:
        keys = sorted((old.keys() | new.keys()) - _STRUCTURE)
        changed = {key for key in keys if old.get(key) != new.get(key)}
        for group, is_wider in (
            (_LOWER, _is_lower(old, new)),
            (_UPPER, _is_higher(old, new)),
            (_DIGITS, _has_more_digits(old, new)),
        ):
            if changed.intersection(group):
                self._note_constraint(path, group, old, new, is_wider=is_wider)
        for key in sorted(changed.difference(_LOWER, _UPPER, _DIGITS)):
            before, now = old.get(key), new.get(key)
            if key == "min_length":
                is_wider = (now or 0) <= (before or 0)
            elif key == "max_length":
                is_wider = now is None or (before is not None and now >= before)
            elif key == "multiple_of":
                is_wider = now is None or (
                    before is not None and not _number(before) % _number(now)
                )
            elif key in _REFUSING:
                is_wider = now is None
            elif key in _ACCEPTING:
                is_wider = now == _ACCEPTING[key]
            else:
                details = f"{_said(key, before)} became {_said(key, now)}"
                self._note(path, ShapeRule.UNKNOWN, details)
                continue
            self._note_constraint(path, (key,), old, new, is_wider=is_wider)

    def _note_constraint(
        self,
        path: str,
        keys: Iterable[str],
        old: LockedShape,
        new: LockedShape,
        *,
        is_wider: bool,
    ) -> None:
        rule = ShapeRule.WIDER if is_wider else ShapeRule.NARROWER
        before, now = (
            ", ".join(_said(key, shape[key]) for key in keys if key in shape)
            for shape in (old, new)
        )
        details = f"{before or 'no limit'} became {now or 'no limit'}"
        self._note(path, rule, details)

    # ----------------------------------------------------------------------- fields

    def _compare_objects(self, old: LockedShape, new: LockedShape, path: str) -> None:
        before, now = old["fields"], new["fields"]
        self._compare_extras(old, new, path)
        readers: dict[str, str] = {}
        for name, field in now.items():
            for key in _keys(name, field):
                readers.setdefault(text_of(key), name)
        kept: set[str] = set()
        removed: dict[str, LockedShape] = {}
        for name, field in before.items():
            place = f"{path}.{name}".lstrip(".")
            found = readers.get(text_of(name))
            if found is not None:
                kept.add(found)
                self._compare_fields(name, field, found, now[found], place)
            elif not field.get("removed"):
                removed[name] = field
                is_optional = _is_optional(field)
                rule = ShapeRule.REMOVED_OPTIONAL if is_optional else ShapeRule.REMOVED
                if self._is_shared and not _is_always_written(field):
                    rule = ShapeRule.REMOVED_OPTIONAL
                self._note(place, rule, f"it was {_shown(field)}")
        added = {name: each for name, each in now.items() if name not in kept}
        for name, field in added.items():
            rule = ShapeRule.ADDED if _is_optional(field) else ShapeRule.ADDED_REQUIRED
            place = f"{path}.{name}".lstrip(".")
            self._note(place, rule, f"it is {_shown(field)}")
        for name, other in _renamed(removed, added):
            place = f"{path}.{name}".lstrip(".")
            details = f"{name!r} was removed, and {other!r} was added"
            self._note(place, ShapeRule.LOOKS_RENAMED, details)

    def _compare_extras(self, old: LockedShape, new: LockedShape, path: str) -> None:
        before, now = old.get("extra", "ignore"), new.get("extra", "ignore")
        if old.get("extras") != new.get("extras"):
            self._note(path, ShapeRule.UNKNOWN, "other keys are read as another type")
        if before != now:
            is_wider = _EXTRAS.index(now) > _EXTRAS.index(before)
            rule = ShapeRule.WIDER if is_wider else ShapeRule.NARROWER
            details = f"extra={before!r} became extra={now!r}"
            self._note(path, rule, details)
        elif now == "forbid" or "extras" in new:
            self._compare_closed(old, new, path)

    def _compare_closed(self, old: LockedShape, new: LockedShape, path: str) -> None:
        """Note fields that a class with other keys refused no longer reads."""
        names = {text_of(k) for n, f in new["fields"].items() for k in _keys(n, f)}
        gone = [each for each in old["fields"] if text_of(each) not in names]
        if gone:
            details = f"{', '.join(map(repr, gone))} is now refused as unknown"
            self._note(path, ShapeRule.NARROWER, details)
        if self._is_shared and new["fields"].keys() - old["fields"].keys():
            details = "former code refuses unknown fields"
            self._note(path, ShapeRule.UNKNOWN, details)

    def _compare_fields(
        self, name: str, old: LockedShape, new_name: str, new: LockedShape, path: str
    ) -> None:
        """Compare a field with the present one that reads its key."""
        was_removed = old.get("removed", False)
        before = {text_of(each) for each in _keys(name, old)}
        now = {text_of(each) for each in _keys(new_name, new)}
        if before - now:
            gone = ", ".join(sorted(before - now))
            details = f"it is no longer read from {gone}"
            self._note(path, ShapeRule.NARROWER, details)
        if self._is_shared and name != new_name:
            details = f"it is now written as {new_name!r}"
            self._note(path, ShapeRule.OTHER_TYPE, details)
        self.compare(old, new, path)
        if was_removed:
            rule = ShapeRule.ADDED if _is_optional(new) else ShapeRule.ADDED_REQUIRED
            self._note(path, rule, f"it is {_shown(new)} again")
        elif _is_optional(old) and not _is_optional(new):
            details = "its default was removed, so that it is required"
            self._note(path, ShapeRule.NARROWER, details)
        elif not _is_optional(old) and _is_optional(new):
            rule = ShapeRule.DEFAULT_ADDED
            if not _is_always_written(new):
                rule = ShapeRule.WIDER  # former code requires it
            self._note(path, rule, f"it is {_shown(new)}")
        elif _default(old) != _default(new):
            details = f"{_said_default(old)} became {_said_default(new)}"
            self._note(path, ShapeRule.DEFAULT_CHANGED, details)

    # ------------------------------------------------------------------- other types

    def _compare_tuples(self, old: LockedShape, new: LockedShape, path: str) -> None:
        before, now = old[OF], new[OF]
        if len(before) != len(now) or old.get("rest") != new.get("rest"):
            self._differ(path, ShapeRule.OTHER_TYPE, old, new)
            return
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            self.compare(one, other, f"{path}[{number}]")

    def _compare_choices(self, old: LockedShape, new: LockedShape, path: str) -> None:
        before = {text_of(each) for each in old["choices"]}
        now = {text_of(each) for each in new["choices"]}
        if before - now or (old.get("open") and not new.get("open")):
            gone = ", ".join(sorted(before - now)) or "what _missing_() read"
            self._note(path, ShapeRule.NARROWER, f"{gone} is gone")
        elif old.get("open"):  # its own code may have read the new ones otherwise
            self._differ(path, ShapeRule.UNKNOWN, old, new)
        else:
            new_ones = ", ".join(sorted(now - before)) or "what _missing_() reads"
            self._note(path, ShapeRule.WIDER, f"{new_ones} is new")

    def _compare_tags(self, old: LockedShape, new: LockedShape, path: str) -> None:
        if old["by"] != new["by"]:
            self._differ(path, ShapeRule.OTHER_TYPE, old, new)
            return
        before, now = old["tags"], new["tags"]
        for tag in sorted(before.keys() - now.keys()):
            self._note(path, ShapeRule.NARROWER, f"{tag} is gone")
        for tag in sorted(now.keys() - before.keys()):
            self._note(path, ShapeRule.WIDER, f"{tag} is new")
        for tag in sorted(before.keys() & now.keys()):
            self.compare(before[tag], now[tag], path)

    def _compare_unions(self, old: LockedShape, new: LockedShape, path: str) -> None:
        if _is_union_with_rules(old) or _is_union_with_rules(new):
            self._differ(path, ShapeRule.UNKNOWN, old, new)
            return
        before, now = _members(old), _members(new)
        taken: list[LockedShape] = []
        gone: list[LockedShape] = []
        for each in before:
            if each in now:
                taken.append(each)
                rivals = [m for m in now if m not in before and _overlap(each, m)]
                if rivals:
                    self._differ(path, ShapeRule.UNKNOWN, old, new)
                    return
                continue
            possible = [member for member in now if _overlap(each, member)]
            if not possible:
                gone.append(each)
            elif len(possible) == 1:
                taken.append(possible[0])
                self.compare(each, possible[0], path)
            else:
                self._differ(path, ShapeRule.UNKNOWN, old, new)
                return
        if gone:
            self._differ(path, ShapeRule.NARROWER, old, new)
        elif any(each not in taken for each in now):
            self._differ(path, ShapeRule.WIDER, old, new)


_OPAQUE: Final = frozenset({"code", "other"})
_EXTRAS: Final = ("forbid", "ignore", "allow")


def _without(shape: LockedShape, keys: frozenset[str]) -> LockedShape:
    return {key: each for key, each in shape.items() if key not in keys}


def _shown(shape: LockedShape) -> str:
    return shown(_without(shape, frozenset({"removed"})))


def _said(key: str, value: Any) -> str:
    return f"no {key}" if value is None else f"{key}={value!r}"


def _keys(name: str, field: LockedShape) -> list[Any]:
    keys: list[Any] = field.get("read_from", [name])
    return keys


def _is_optional(field: LockedShape) -> bool:
    has_default = "default" in field or "default_factory" in field
    return has_default or field.get("required") is False


def _is_always_written(field: LockedShape) -> bool:
    return field.get("required") is not False


def _default(field: LockedShape) -> str:
    return text_of([field.get(key) for key in ("default", "default_factory")])


def _said_default(field: LockedShape) -> str:
    if "default_factory" in field:
        return f"{field['default_factory']}()"
    return text_of(field["default"]) if "default" in field else "no default"


def _renamed(
    removed: dict[str, LockedShape], added: dict[str, LockedShape]
) -> Iterator[tuple[str, str]]:
    """Yield each removed field with the added one that may be its new name."""
    left = dict(added)
    for name, field in removed.items():
        bare = _without(field, _FIELD_KEYS)
        same = [n for n, f in left.items() if _without(f, _FIELD_KEYS) == bare]
        near = difflib.get_close_matches(name, same or left, n=1, cutoff=0)
        if near:
            del left[near[0]]
            yield name, near[0]


def _number(value: Any) -> Decimal:
    return Decimal(str(value))


def _limit(shape: LockedShape, keys: tuple[str, str]) -> tuple[Any, bool] | None:
    """Return the limit of an inclusive and an exclusive key, and which one it is."""
    inclusive, exclusive = keys
    if exclusive in shape:
        return (None, True) if inclusive in shape else (shape[exclusive], True)
    return (shape[inclusive], False) if inclusive in shape else None


def _is_lower(old: LockedShape, new: LockedShape) -> bool:
    return _is_looser(_limit(old, _LOWER), _limit(new, _LOWER), sign=1)


def _is_higher(old: LockedShape, new: LockedShape) -> bool:
    return _is_looser(_limit(old, _UPPER), _limit(new, _UPPER), sign=-1)


def _is_looser(
    old: tuple[Any, bool] | None, new: tuple[Any, bool] | None, *, sign: int
) -> bool:
    """Return whether each value within one limit is certainly within another one."""
    if new is None:
        return True
    if old is None:
        return False
    try:
        before, now = sign * _number(old[0]), sign * _number(new[0])
    except ArithmeticError:  # not a number: a date, or both keys at once
        return False
    return now < before or (now == before and (old[1] or not new[1]))


def _has_more_digits(old: LockedShape, new: LockedShape) -> bool:
    """Return whether a decimal has at least as many digits, before the point too."""
    most, places = (new.get(key, inf) for key in _DIGITS)
    former_most, former_places = (old.get(key, inf) for key in _DIGITS)
    whole = most - places if inf not in (most, places) else inf
    former_whole = former_most - former_places if former_places != inf else former_most
    return bool(
        most >= former_most and places >= former_places and whole >= former_whole
    )


def _is_type_of_choices(old: LockedShape, new: LockedShape) -> bool:
    """Return whether a type without limits reads all choices of an enum."""
    types: dict[str, type] = {"str": str, "int": int}
    wanted = types.get(new["type"])
    return (
        wanted is not None
        and new.keys() == {"type"}
        and not old.get("open")
        and all(type(each) is wanted for each in old["choices"])
    )


# ----------------------------------------------------------------------------- unions

_STRING: Final = frozenset({"string"})
_KINDS: Final[dict[str, frozenset[str]]] = {
    NONE: frozenset({"null"}),
    "bool": frozenset({"bool"}),
    "int": frozenset({"number"}),
    "float": frozenset({"number"}),
    "bytes": _STRING,
    "json": _STRING,
    "str": _STRING,
    "url": _STRING,
    "uuid": _STRING,
    "list": frozenset({"array"}),
    "set": frozenset({"array"}),
    "tuple": frozenset({"array"}),
    "dict": frozenset({"object"}),
    OBJECT: frozenset({"object"}),
    "tagged": frozenset({"object"}),
    "date": frozenset({"string", "number"}),
    "datetime": frozenset({"string", "number"}),
    "decimal": frozenset({"string", "number"}),
    "time": frozenset({"string", "number"}),
    "timedelta": frozenset({"string", "number"}),
}
_EVERY_KIND: Final = frozenset().union(*_KINDS.values())


def _kinds(shape: LockedShape) -> frozenset[str]:
    """Return the kinds of JSON that a shape may read."""
    if shape["type"] == "one_of" and not shape.get("open"):
        return frozenset(map(_kind_of, shape["choices"]))
    if shape["type"] == "converted":
        return _kinds(shape[OF])
    if shape["type"] == UNION:
        return frozenset().union(*map(_kinds, shape[OF]))
    return _KINDS.get(shape["type"], _EVERY_KIND)


def _kind_of(value: Any) -> str:
    for cls, kind in _PYTHON_KINDS.items():
        if isinstance(value, cls):
            return kind
    return "null"


_PYTHON_KINDS: Final[dict[type, str]] = {
    bool: "bool",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def _overlap(one: LockedShape, other: LockedShape) -> bool:
    """Return whether one JSON value might be read as either of two members."""
    if _kinds(one).isdisjoint(_kinds(other)):
        return False
    if one["type"] == other["type"] == "one_of":
        mine, others = ({text_of(c) for c in each["choices"]} for each in (one, other))
        is_open = one.get("open") or other.get("open")
        return bool(is_open) or not mine.isdisjoint(others)
    if one["type"] == other["type"] == OBJECT:
        return not any(map(_tells_apart, *_shared_fields(one, other)))
    return True


def _shared_fields(
    one: LockedShape, other: LockedShape
) -> tuple[list[LockedShape], list[LockedShape]]:
    names = sorted(one["fields"].keys() & other["fields"].keys())
    return [one["fields"][n] for n in names], [other["fields"][n] for n in names]


def _tells_apart(one: LockedShape, other: LockedShape) -> bool:
    """Return whether a field of two classes never has the same value."""
    if _is_optional(one) or _is_optional(other):
        return False
    if one.get("read_from") or other.get("read_from"):
        return False
    return one["type"] == other["type"] == "one_of" and not _overlap(one, other)


def _members(shape: LockedShape) -> list[LockedShape]:
    members: list[LockedShape] = shape[OF] if shape["type"] == UNION else [shape]
    return members


def _is_union_with_rules(shape: LockedShape) -> bool:
    return shape["type"] == UNION and not shape.keys() <= {"type", OF}


# ------------------------------------------------------------- fields that are gone


def remembering(old: LockedShape, new: LockedShape) -> LockedShape:
    """
    Return the present shape, with the fields that the same version has lost.

    A waiting payload may still have them, so one that comes back with another type is a
    change.
    """
    if UNION in (old["type"], new["type"]):
        return _remembering_members(old, new)
    if old["type"] != new["type"]:
        return new
    if new["type"] == "tuple" and len(old[OF]) == len(new[OF]):
        pairs = zip(old[OF], new[OF], strict=True)
        return {**new, OF: [remembering(*each) for each in pairs]}
    if new["type"] == "tagged":
        tags = {
            tag: remembering(old["tags"].get(tag, each), each)
            for tag, each in new["tags"].items()
        }
        return {**new, "tags": tags}
    if new["type"] == OBJECT:
        fields = dict(new["fields"])
        for name, field in old["fields"].items():
            if name in fields:
                fields[name] = remembering(field, fields[name])
            else:
                kept = _without(field, _FIELD_KEYS - {"read_from"})
                fields[name] = {**kept, "removed": True}
        return {**new, "fields": dict(sorted(fields.items()))}
    if new["type"] in ("list", "set"):
        return {**new, OF: remembering(old[OF], new[OF])}
    if new["type"] == "dict":
        return {**new, "values": remembering(old["values"], new["values"])}
    return new


def _remembering_members(old: LockedShape, new: LockedShape) -> LockedShape:
    """Return a union, or its only member, with the lost fields of its members."""
    members = list(_members(new))
    for each in _members(old):
        possible = [n for n, member in enumerate(members) if _overlap(each, member)]
        if len(possible) == 1:
            members[possible[0]] = remembering(each, members[possible[0]])
    return {**new, OF: members} if new["type"] == UNION else members[0]
