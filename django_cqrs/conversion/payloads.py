"""Payloads in the types of handlers, and results in the types of callers."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from django_cqrs.annotations import (
    field_names,
    is_plain_class,
    is_typed_dict,
    name_of_type,
    union_members,
)
from django_cqrs.conversion.adapters import (
    Adapter,
    adapter_of,
    known_adapters,
    to_json,
    to_jsonable,
)
from django_cqrs.conversion.stored import Unset, to_stored_json, unset_in
from django_cqrs.exceptions import FieldError, MessageConversionError

JSON = "application/json"


def convert_result(value: Any, target: Any) -> Any:
    """
    Convert the result of a query to a type, or to JSON text.

    Args:
        value: objects, dicts, model instances, or an iterable of these.
        target: a type such as ``TicketRow`` or ``list[TicketRow]``, or
            ``"application/json"``.

    Raises:
        MessageConversionError: it cannot be converted.

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
    """Return objects as dicts of their fields, for conversion to another type."""
    names = field_names(type(value))
    if names is None and hasattr(value, "_meta"):
        fields = getattr(value._meta, "concrete_fields", ())
        names = tuple(field.attname for field in fields)
    if names is not None:
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def check_content_type(content_type: str) -> None:
    """
    Accept JSON, with or without parameters.

    Raises:
        MessageConversionError: it is a different media type.

    """
    essence = content_type.partition(";")[0].strip().lower()
    if essence != JSON:
        fault = f"the content type {content_type!r} is not supported, {JSON} is"
        raise MessageConversionError(JSON, [FieldError("", fault, "content_type")])


class PayloadType:
    """The type of a payload parameter, with the conversion of other values."""

    def __init__(self, annotation: Any) -> None:
        """Analyse an annotation; ``Parameter.empty`` accepts anything."""
        self.annotation = annotation
        self.members: tuple[Any, ...] = union_members(annotation)
        self.takes_anything: bool = any(
            member in (object, Any, inspect.Parameter.empty) for member in self.members
        )
        self.takes_none: bool = self.takes_anything or type(None) in self.members
        self._converted: Any = Any if self.takes_anything else annotation
        self._classes = tuple(m for m in self.members if is_plain_class(m))
        self._wants_mapping = any(
            (typing.get_origin(member) or member) in (dict, Mapping)
            or is_typed_dict(member)
            for member in self.members
        )

    @property
    def fault(self) -> str | None:
        """The part of it without a JSON form, and its place; None if there is none."""
        return None if self.takes_anything else self._adapter.fault

    def takes(self, value: Any) -> bool:
        """Return whether a value is accepted without conversion."""
        if self.takes_anything or isinstance(value, self._classes):
            return True
        return value is None and self.takes_none

    def takes_all_of(self, cls: type) -> bool:
        """Return whether every object of exactly this class is accepted unconverted."""
        return self.takes_anything or cls in self._classes

    def from_python(self, value: Any) -> Any:
        """
        Return a value unchanged if the annotation allows it, otherwise converted.

        Raises:
            MessageConversionError: it does not fit the handler.

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
            MessageConversionError: it is invalid, or does not fit the handler.

        """
        __traceback_hide__ = True
        try:  # adapter_of() again, which would be one call more for each text
            adapter = known_adapters[self._converted]
        except (KeyError, TypeError):
            adapter = self._adapter
        return adapter.from_json(text)

    def from_stored_json(self, text: bytes) -> Any:
        """
        Read text from :meth:`to_json`, restoring the value that was written.

        Raises:
            MessageConversionError: it is invalid, or does not fit the handler.

        """
        return self._adapter.from_stored_json(text)

    def unset_in(self, value: Any) -> Unset:
        """Return the unset fields of the models in a value."""
        __traceback_hide__ = True
        return unset_in(self._adapter, value)

    def to_json(self, value: Any) -> bytes:
        """
        Write a value as JSON text in UTF-8, verified to restore the same value.

        Raises:
            MessageConversionError: it would not be restored.

        """
        __traceback_hide__ = True
        return to_stored_json(self._adapter, value)

    @property
    def _adapter(self) -> Adapter:
        return adapter_of(self._converted)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and, within containers, of equal types."""
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
