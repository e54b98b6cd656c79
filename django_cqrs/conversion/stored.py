"""Stored payloads: a name, and JSON that restores the same value."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from django.apps import apps

from django_cqrs.annotations import dotted, field_names, path_of
from django_cqrs.conversion.adapters import (
    DEEP,
    Adapter,
    adapter_of,
    is_subclass,
    to_json,
    to_jsonable,
)
from django_cqrs.conversion.upcasting import has_upcasters, upcast
from django_cqrs.exceptions import FieldError, MessageConversionError, UnknownMessage
from django_cqrs.messages import MessageName, message_name_of
from django_cqrs.problems import Problem, Rule


class MessageTypes:
    """The registered message classes, by name: nothing else is ever decoded."""

    def __init__(self, classes: Iterable[type], *, of_apps: bool = False) -> None:
        """
        Name every class: its own name, or ``app_label.ClassName``.

        Args:
            classes: the message classes.
            of_apps: whether these are all classes that the installed apps had declared.

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
                f"{path_of(holder)} and {path_of(cls)}.",
                "Give each its own name with @message.",
                cls,
            )

    def _name_by_place(self, classes: list[type]) -> None:
        places: dict[str, list[type]] = {}
        for cls in classes:
            config = apps.get_containing_app_config(cls.__module__)
            if config is None:
                self._why_not[cls] = "it does not belong to an installed app"
            elif cls.__qualname__ != cls.__name__:
                self._why_not[cls] = "it is not defined at the top of its module"
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
        """Return the subclasses of a class, virtual ones too, in the order of names."""
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
        """Return the classes that have a name, each with that name."""
        return self._names.items()

    def name_of(self, cls: type) -> MessageName:
        """
        Return the stored name and version of a class.

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
                f"{path_of(cls)} has no name on the wire: "
                f"{self.why_nameless(cls)}. "
                f'Name it with @message("app.name").'
            )
            raise UnknownMessage(msg) from None

    def _why_late(self, cls: type) -> str | None:
        """Return a sentence about a class that was declared too late."""
        own = message_name_of(cls)
        if own is None or cls in self._why_not:
            return None
        if not self._is_of_apps:
            return (
                f"{path_of(cls)}, named {own.name!r}, is not in this registry: no "
                "handler of this registry takes it. Add it with "
                f"registry.add({cls.__name__})."
            )
        if apps.get_containing_app_config(cls.__module__) is None:
            return (
                f"{path_of(cls)}, named {own.name!r}, is not registered: its module "
                "does not belong to an installed app. Move it to one."
            )
        return (
            f"{path_of(cls)}, named {own.name!r}, was defined after the routes were "
            f"compiled, so a worker that does not import {cls.__module__} would not "
            "know it. Define it in the app's messages module, or import it there."
        )

    def why_nameless(self, cls: type) -> str | None:
        """Return why a class has no stored name, None if it has one."""
        if cls in self._names:
            return None
        return self._why_not.get(cls, "no handler's annotation mentions it")

    def class_of(self, name: str) -> type:
        """
        Return the class of a name, including old names.

        Raises:
            UnknownMessage: no registered class has this name.

        """
        try:
            return self._classes[name]
        except KeyError:
            msg = (
                f"No registered message class is named {name!r}. If it was renamed, "
                "give the old name in @message(aliases=[...])."
            )
            raise UnknownMessage(msg) from None

    def named(self, name: str) -> type | None:
        """Return the class with this ``@message`` name for routing, if any."""
        cls = self._classes.get(name)
        if cls is None:
            return None
        own = message_name_of(cls)
        return cls if own is not None and own.name == name else None

    def encode(self, payload: Any) -> tuple[MessageName, bytes]:
        """
        Return an object's name and JSON text, verified to restore the same object.

        Raises:
            UnknownMessage: its class is not registered.
            MessageConversionError: a field's value does not fit its annotation, is NaN,
                or is an object of a subclass whose own fields would be lost.

        """
        __traceback_hide__ = True
        name = self.name_of(type(payload))
        return name, to_stored_json(adapter_of(type(payload)), payload)

    def decode(self, name: str, text: bytes, version: int | None = None) -> Any:
        """
        Return the object that was stored under a name.

        Args:
            name: the name that it was stored under.
            text: its JSON.
            version: the version that it was stored in; None is the present one.

        Raises:
            UnknownMessage: no registered class has this name, or only an older
                version of one.
            MessageConversionError: the text does not fit its class.

        """
        __traceback_hide__ = True
        cls = self.class_of(name)
        wanted, own = adapter_of(cls), self._names[cls]
        if version is None or version == own.version:  # the usual case
            return wanted.from_stored_json(text)
        return from_stored_json(
            wanted, text, own, name=name, version=version, holder=path_of(cls)
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
    Decode stored JSON, following renames and upcasting old versions.

    Args:
        adapter: the adapter of the present shape.
        text: its JSON.
        own: the present name and version.
        name: the name that it was stored under.
        version: the version that it was stored in; None is the present one.
        holder: the name of the class in errors.

    Raises:
        UnknownMessage: this process does not yet know its version.
        MessageConversionError: the text does not have this shape.

    """
    if version is None or version == own.version:
        return adapter.from_stored_json(text)
    if version > own.version:
        msg = (
            f"{name!r} was stored in version {version}, but {holder} has version "
            f"{own.version} here: this process runs older code."
        )
        raise UnknownMessage(msg)
    names = (name, own.name, *own.aliases)
    if has_upcasters(names, version, own.version):
        stored = adapter_of(Any).from_json(text)
        text = to_json(upcast(stored, names, version, own.version)).encode()
    return adapter.from_stored_json(text)


def to_stored_json(adapter: Adapter, payload: Any, *, beside: bool = True) -> bytes:
    """
    Write a payload as JSON text in UTF-8, verified to restore the same value.

    Args:
        adapter: the adapter of its type.
        payload: an object or a plain value.
        beside: whether attributes beside the object's fields count as well.

    Raises:
        MessageConversionError: a part would not be restored; with its path.

    """
    __traceback_hide__ = True
    plain = adapter.to_plain_json(payload)
    if plain is not None:  # the usual case
        return plain
    try:
        text = adapter.to_json(payload)
    except MessageConversionError as error:
        if adapter.reason is not None:  # with its place
            raise
        path = dotted(_unwritable(payload))
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
    """The fault of a restored value."""

    errors: list[FieldError]
    is_read: bool = True


_LOST = "it would not come back from JSON unchanged"
_BESIDE = "it is not a field of its class"


def _loss(adapter: Adapter, payload: Any, text: bytes, *, beside: bool) -> _Loss | None:
    """Return the loss when a payload is restored from text, None if there is none."""
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
    return _Loss([FieldError(dotted(difference.path), why, "not_json")])


class _Difference(NamedTuple):
    """A part that was not restored: its place, and the known facts about the reason."""

    path: tuple[Any, ...] = ()
    why: str = ""


def _difference(sent: Any, back: Any) -> _Difference | None:
    """
    Return the first part that was not restored, None if all were.

    A class's own ``==`` is not used, since it may ignore losses.
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
        return _Difference(why="its JSON does not say which of its fields were set")
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
    return (
        "it would be created anew: JSON keeps an attribute that __init__ does not "
        "take only if it has a default"
    )


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
            return _Difference(why="its JSON does not say which of its fields were set")
    return None


def _difference_of_times(sent: Any, back: Any) -> _Difference | None:
    """Compare the clock time, the fold and the zone."""
    cls = type(sent)
    # Libraries that set the clock in tests replace Python's class with their own.
    if cls is not type(back) and cls is not getattr(dt, type(back).__name__):
        return _Difference(why=_why_of_types(cls, type(back)))
    walls = sent.replace(tzinfo=None), back.replace(tzinfo=None)
    if walls[0] != walls[1] or sent.fold != back.fold:
        return _Difference()
    if _is_same_zone(sent.tzinfo, back.tzinfo) and sent.utcoffset() == back.utcoffset():
        return None
    return _Difference(
        why=(
            "JSON keeps only a zoneinfo.ZoneInfo that has a key, or a "
            "datetime.timezone without a name of its own"
        )
    )


def _is_same_zone(sent: Any, back: Any) -> bool:
    if sent is back:
        return True
    if sent is None or back is None:
        return False
    if isinstance(sent, ZoneInfo) or isinstance(back, ZoneInfo):
        return type(sent) is type(back) and sent.key == back.key
    offset = sent.utcoffset(None)  # None if it depends on the day
    if offset is None or offset != back.utcoffset(None):
        return False
    # pydantic returns a class of its own.
    is_read = type(sent).__module__.startswith("pydantic_core")
    return is_read or bool(sent.tzname(None) == back.tzname(None))


def _more_attributes(value: Any) -> set[str]:
    """Return an object's attributes that are neither fields nor cached."""
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
    """Compare values without parts."""
    cls: Any = type(sent)
    if cls.__eq__ is object.__eq__:  # a value object without equality
        return bool(to_jsonable(sent) == to_jsonable(back))
    return bool(sent == back)


def fields_given(value: Any) -> set[str] | None:
    """Return the names of the fields that were given to a model; None for others."""
    given = getattr(value, "__pydantic_fields_set__", None)
    return given if isinstance(given, set) else None


Unset = list[tuple[list[str], list[str]]]
"""The unset fields of each model in a payload, by its path."""


def unset_in(adapter: Adapter, payload: Any) -> Unset:
    """
    Return the fields of the models in a payload that hold defaults, not given values.

    JSON does not hold this, and ``model_dump(exclude_unset=True)`` needs it.

    Args:
        adapter: the adapter of the payload's type.
        payload: an object, or a container of objects.

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
    Restore the unset fields of the models in a payload.

    Parts that no longer exist, because of an upcaster, are skipped.
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
    """Return the path of the first part without a JSON form."""
    path: list[Any] = []
    while len(path) < DEEP:
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


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return the parts of a value, by name, key or number; None if it has none."""
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
