"""
The state of an object: conversion to JSON and back.

Reading restores an object instead of constructing it: its attributes are set, and
neither ``__init__`` nor ``__post_init__`` is called. Pydantic models are read by
pydantic.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import textwrap
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from django.utils.functional import cached_property as django_cached_property

from django_cqrs.annotations import (
    field_names,
    is_typed_dict,
    is_value_type,
    name_of_type,
)
from django_cqrs.conversion.adapters import Adapter, adapter_of
from django_cqrs.conversion.converters import has_converter
from django_cqrs.conversion.masking import Masking
from django_cqrs.conversion.stored import from_stored_json, to_stored_json
from django_cqrs.exceptions import FieldError, MessageConversionError
from django_cqrs.messages import MessageName
from django_cqrs.recording import RECORDED, RECORDED_COMMANDS

_left_out: set[str] = {RECORDED, RECORDED_COMMANDS}


def leave_out(name: str) -> None:
    """Exclude an attribute, which a module keeps on objects, from their states."""
    _left_out.add(name)


def is_left_out(name: str) -> bool:
    """Return whether an attribute of an object is not a part of its state."""
    return name in _left_out


class ShapeFault(NamedTuple):
    """The reason why objects of a class cannot be stored, and its fix."""

    text: str
    hint: str


class Shape(ABC):
    """Writes and reads the values of one type."""

    def __init__(self, target: Any) -> None:
        """Take the type."""
        self.target = target

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter that converts the value, or its state."""
        return self.make_adapter()

    def make_adapter(self) -> Adapter:
        """Return the adapter that converts the value, or its state."""
        return adapter_of(self.json_type)

    @cached_property
    def masking(self) -> Masking:
        """The parts of its JSON that operators do not see."""
        try:
            return Masking(self.json_type)
        except (NameError, TypeError):  # a check reports it
            return Masking(self.target)

    @cached_property
    def json_type(self) -> Any:
        """The type to convert: the type itself, or the type of its state."""
        return self.make_json_type()

    @abstractmethod
    def make_json_type(self) -> Any:
        """Return the type to convert."""

    def dump(self, value: Any) -> Any:
        """
        Return the JSON form, verified to restore the same value.

        Raises:
            MessageConversionError: a part would not be restored.

        """
        # Aggregates also hold the library's own attributes, beside their fields.
        text = to_stored_json(self.adapter, self.state_of(value), beside=False)
        if _NULL.search(text):  # PostgreSQL's jsonb cannot hold it
            fault = FieldError("", "a text contains the character NUL", "not_json")
            raise MessageConversionError(name_of_type(self.target), [fault])
        return json.loads(text)

    def load(self, content: Any, own: MessageName, name: str, version: int) -> Any:
        """
        Return the object of a JSON form.

        Args:
            content: the stored JSON.
            own: the present name and version.
            name: the name that it was stored under.
            version: the version that it was stored in.

        Raises:
            UnknownMessage: it was stored by newer code.
            MessageConversionError: it does not have this type.

        """
        text = json.dumps(content, ensure_ascii=False).encode()
        holder = name_of_type(self.target)
        state = from_stored_json(
            self.adapter, text, own, name=name, version=version, holder=holder
        )
        return self.restored(state)

    def state_of(self, value: Any) -> Any:
        """Return the state of a value, to be written."""
        return value

    def restored(self, state: Any) -> Any:
        """Return the value of a state."""
        return state

    def blank(self) -> Any:
        """Return an object with the defaults of its attributes, not constructed."""
        return object.__new__(self.target)

    def attributes(self) -> dict[str, Any]:
        """Return the stored attributes of an object, with their annotations."""
        return {}

    def faults(self) -> Iterator[ShapeFault]:
        """Yield the reasons why values of this type cannot be stored."""
        if self.adapter.reason:
            yield ShapeFault(
                f"{name_of_type(self.target)} has no JSON form: {self.adapter.reason}.",
                "Use types in its annotations that have a JSON form, or write a "
                "@converter.",
            )


# Not an escaped one: the number of backslashes before it is even.
_NULL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class ValueShape(Shape):
    """Values that pydantic reads and writes as a whole."""

    def make_json_type(self) -> Any:
        """Return the type itself."""
        return self.target


class ModelShape(ValueShape):
    """A pydantic model: its fields."""

    def blank(self) -> Any:
        """Return a model with the defaults of its fields, not validated."""
        return self.target.model_construct()

    def attributes(self) -> dict[str, Any]:
        """Return the fields."""
        return {
            name: field.annotation for name, field in self.target.model_fields.items()
        }

    def faults(self) -> Iterator[ShapeFault]:
        """Yield private attributes, which pydantic does not write."""
        for name in self.target.__private_attributes__:
            yield ShapeFault(
                f"{name_of_type(self.target)}.{name} is private, so pydantic does not "
                "write it, and its value would be lost.",
                "Make it a field, or make the class a dataclass: private fields of "
                "dataclasses are kept.",
            )
        yield from super().faults()


class ObjectShape(Shape):
    """A dataclass or a plain class: its annotated attributes."""

    def attributes(self) -> dict[str, Any]:
        """
        Return the annotated attributes, those of the bases first.

        Raises:
            NameError: an annotation has an unknown name.

        """
        return self._annotations[0]

    @cached_property
    def _annotations(self) -> tuple[dict[str, Any], set[str]]:
        """The stored attributes, and the names declared not to be stored."""
        kept, others = {}, set()
        for name, hint in typing.get_type_hints(
            self.target, include_extras=True
        ).items():
            origin = typing.get_origin(hint) or hint
            if origin is typing.ClassVar:
                others.add(name)
            elif origin is typing.Final:
                kept[name] = (typing.get_args(hint) or (Any,))[0]
            elif hint is not dataclasses.KW_ONLY and not isinstance(
                hint, dataclasses.InitVar
            ):
                kept[name] = hint
        return kept, others

    @cached_property
    def _defaults(self) -> dict[str, Callable[[], Any] | None]:
        """The defaults for names that older content lacks; None: the class's own."""
        fields = getattr(self.target, "__dataclass_fields__", {})
        found: dict[str, Callable[[], Any] | None] = {}
        for name in self.attributes():
            field = fields.get(name)
            if field is not None and field.default_factory is not dataclasses.MISSING:
                found[name] = field.default_factory
            elif field is not None and field.default is not dataclasses.MISSING:
                found[name] = functools.partial(_same, field.default)
            elif not inspect.ismemberdescriptor(
                inspect.getattr_static(self.target, name, _NO_DEFAULT)
            ) and hasattr(self.target, name):
                found[name] = None
        return found

    def make_json_type(self) -> Any:
        """Return a dict type with the attributes' names."""
        import typing_extensions

        make: Any = typing_extensions.TypedDict  # one without a class statement
        fields = {
            name: typing_extensions.NotRequired[hint]
            if name in self._defaults
            else hint
            for name, hint in self.attributes().items()
        }
        return make(self.target.__name__, fields)

    def make_adapter(self) -> Adapter:
        """Return the adapter of that dict type, which is cached here only."""
        return Adapter(self.json_type)

    def state_of(self, value: Any) -> Any:
        """
        Return the attributes that have a value.

        Raises:
            MessageConversionError: one has no value, or one is not annotated.

        """
        said = name_of_type(self.target)
        if type(value) is not self.target:
            text = f"it is of type {name_of_type(type(value))}, not exactly {said}"
            raise MessageConversionError(said, [FieldError("", text, "type")])
        names = self.attributes()
        state = {name: getattr(value, name) for name in names if hasattr(value, name)}
        errors = [
            FieldError(name, "it has no value", "missing")
            for name in names
            if name not in state and name not in self._defaults
        ]
        errors += [
            FieldError(
                name, "it is not annotated, so its value would be lost", "unannotated"
            )
            for name in getattr(value, "__dict__", {})
            if name not in names and not self._is_left_out(name)
        ]
        if errors:
            raise MessageConversionError(said, errors)
        return state

    def _is_left_out(self, name: str) -> bool:
        """Return whether an attribute is excluded from an object's state."""
        if name in _left_out or name in self._annotations[1]:
            return True
        held = inspect.getattr_static(self.target, name, None)
        return isinstance(held, (cached_property, django_cached_property))

    def blank(self) -> Any:
        """Return an object with the defaults of its attributes, not constructed."""
        made = object.__new__(self.target)
        for name, default in self._defaults.items():
            if default is not None:
                object.__setattr__(made, name, default())
        return made

    def restored(self, state: Any) -> Any:
        """Return an object with these attributes."""
        made = object.__new__(self.target)
        for name in self.attributes():
            if name in state:
                object.__setattr__(made, name, state[name])
            elif (default := self._defaults[name]) is not None:
                object.__setattr__(made, name, default())
        return made

    def faults(self) -> Iterator[ShapeFault]:
        """Yield attributes without an annotation, and annotations without a meaning."""
        said = name_of_type(self.target)
        try:
            self.attributes()
        except Exception as error:  # noqa: BLE001 - an annotation may run any code
            yield ShapeFault(
                f"An annotation of {said} cannot be evaluated: {error}.",
                "Import the names in it at run time.",
            )
            return
        for name in sorted(self._unannotated()):
            yield ShapeFault(
                f"{said}.{name} is set but not annotated, so its value would be lost.",
                f"Write {name}: <its type> in the body of the class, or {name}: "
                "ClassVar[...] if it is not to be stored.",
            )
        yield from super().faults()

    def _unannotated(self) -> set[str]:
        """Return the names that the methods' source sets on their object."""
        found: set[str] = set()
        for cls in self.target.__mro__:
            if cls is object or cls.__module__.split(".")[0] == "django_cqrs":
                continue
            for held in vars(cls).values():
                function = inspect.unwrap(held) if inspect.isfunction(held) else held
                if isinstance(function, property):
                    function = function.fset
                if inspect.isfunction(function):
                    found.update(_names_set_in(function))
        return {
            name
            for name in found - self.attributes().keys()
            if not self._is_left_out(name)
            and not hasattr(inspect.getattr_static(self.target, name, None), "__set__")
        }


_NO_DEFAULT = object()


def _same(value: Any) -> Any:
    return value


def _names_set_in(function: Any) -> Iterator[str]:
    """Yield the attributes that a method sets on its first parameter."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return  # without source, the fault is found at the first save
    defined = tree.body[0]
    if not isinstance(defined, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    places = (*defined.args.posonlyargs, *defined.args.args)
    for node in ast.walk(defined) if places else ():
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == places[0].arg
        ):
            yield node.attr


def shape_of(target: Any) -> Shape:
    """Return the shape that writes and reads values of a type."""
    is_class = isinstance(target, type) and typing.get_origin(target) is None
    if not is_class or has_converter(target) or is_typed_dict(target):
        return ValueShape(target)
    if hasattr(target, "__pydantic_core_schema__") and hasattr(target, "model_fields"):
        return ModelShape(target)
    is_named_tuple = field_names(target) is not None and issubclass(target, tuple)
    if is_named_tuple or is_value_type(target) or target is object:
        return ValueShape(target)
    return ObjectShape(target)
