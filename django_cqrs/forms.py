"""Django forms made of message classes: widgets by type, errors by field."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, Final
from uuid import UUID

from django import forms
from django.db.models import Choices

from django_cqrs.annotations import (
    bare_type,
    field_names,
    is_typed_dict,
    name_of_type,
    union_members,
)
from django_cqrs.conversion.adapters import registered_converters
from django_cqrs.conversion.json_schemas import json_schemas
from django_cqrs.conversion.masking import masking_of
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.exceptions import InvalidHandler, MessageConversionError
from django_cqrs.modelling.identifiers import version_field
from django_cqrs.views.requests import RequestValues, Wanted, with_request_values

__all__ = ["MessageForm", "form_of"]

_NO_FIELDS: Mapping[str, forms.Field] = MappingProxyType({})
_NOTHING: Final = inspect.Parameter.empty
_BLANK: Final = ("", "---------")
"""The choice of no value, as Django writes it."""


class MessageForm(forms.Form):
    """
    The base of the forms that :func:`form_of` makes.

    Attributes:
        message_class: the class of the message.
        message: the message, once ``is_valid()`` has returned True; otherwise None.

    """

    message_class: ClassVar[Any]
    message: Any

    def __init__(
        self, *args: Any, given: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """
        Create a form.

        Args:
            *args: as for any Django form.
            given: values of the message that the form does not ask for, such as an
                identifier in the URL.
            **kwargs: as for any Django form.

        """
        super().__init__(*args, **kwargs)
        self.given = dict(given or {})
        self.message = None

    def _post_clean(self) -> None:
        """Build the message, as a ModelForm builds its instance."""
        base: Any = super()
        base._post_clean()
        wanted = Wanted(PayloadType(self.message_class))
        values = {**self._values(), **self.given}
        try:
            placed = with_request_values(wanted, {}, RequestValues(values))
            message = wanted.type.from_python(placed) if wanted.type else None
        except MessageConversionError as error:
            self.add_conversion_errors(error)
        else:
            self.message = None if self.errors else message

    def _values(self) -> dict[str, Any]:
        """Return the cleaned values, without those that leave a default as it is."""
        known = field_names(self.message_class) or typing.get_type_hints(
            self.message_class
        )
        values = {}
        for name, value in self.cleaned_data.items():
            if name not in known:
                continue
            field, key = self.fields[name], self.add_prefix(name)
            is_sent = not field.widget.value_omitted_from_data(
                self.data, self.files, key
            )
            is_empty = value is None or (value in ("", []) and not is_sent)
            if is_empty and name in _defaults_of(self.message_class):
                continue
            values[name] = value
        return values

    def add_conversion_errors(self, error: MessageConversionError) -> None:
        """
        Add the faults of a message to the fields that they name.

        A fault of a nested field, or of the whole message, goes above the form.

        Args:
            error: the error; one that a handler has raised as well.

        """
        wanted = Wanted(PayloadType(self.message_class))
        names = {key: name for name in self.fields for key in wanted.keys_of(name)}
        for each in error.errors:
            name = names.get(each.path)
            if name is None:
                text = f"{each.path}: {each.message}" if each.path else each.message
                self.add_error(None, text)
            elif name not in self.errors:
                self.add_error(name, forms.ValidationError(each.message, each.code))


def form_of(
    message: type,
    *,
    exclude: Iterable[str] = (),
    fields: Mapping[str, forms.Field] = _NO_FIELDS,
) -> type[MessageForm]:
    """
    Return a Django form whose fields are those of a message class.

    ::

        class OpenTicketView(FormView):
            form_class = form_of(OpenTicket)

    Args:
        message: a dataclass, a pydantic model, a NamedTuple or a TypedDict.
        exclude: fields that the form does not ask for. The view gives their values:
            ``Form(request.POST, given={"ticket_id": 7})``.
        fields: form fields of your own, by name.

    Raises:
        TypeError: a field of the message has no form field, the class has no fields,
            or a name is not one of its fields.

    """
    said = name_of_type(message)
    hints = _hints_of(message)
    excluded = set(exclude)
    unknown = [name for name in (*excluded, *fields) if name not in hints]
    if unknown:
        msg = f"form_of({said}): the class has no field {min(unknown)!r}."
        raise TypeError(msg)
    fault = PayloadType(message).fault
    if fault is not None:
        msg = f"form_of({said}): no form can create it: {fault}."
        raise TypeError(msg)
    defaults = _defaults_of(message)
    seen = version_field(message)
    made: dict[str, Any] = {}
    for name, (annotation, described) in hints.items():
        if name in excluded:
            continue
        if name in fields:
            made[name] = fields[name]
            continue
        source = _Source(annotation, described, defaults.get(name, _NOTHING))
        field = source.field()
        if field is None:
            msg = (
                f"form_of({said}): there is no form field for {name}, whose type is "
                f"{name_of_type(bare_type(annotation))}. Give one with "
                f"fields={{{name!r}: ...}}, or leave it out with exclude=[{name!r}]."
            )
            raise TypeError(msg)
        if name == seen:  # the version that the form was filled with
            _put_widget(field, forms.HiddenInput())
        made[name] = field
    form: type[MessageForm] = type(f"{message.__name__}Form", (MessageForm,), made)
    form.message_class = message
    return form


# ----------------------------------------------------------------- of the message class

Described = Mapping[str, Any]
"""Metadata of a field: ``label`` and ``help_text``."""


def _hints_of(message: Any) -> dict[str, tuple[Any, Described]]:
    """
    Return the annotation and the metadata of each field.

    Raises:
        TypeError: the class has no fields, or an annotation cannot be evaluated.

    """
    said = name_of_type(message)
    is_class = isinstance(message, type)
    if not is_class or (field_names(message) is None and not is_typed_dict(message)):
        msg = (
            f"form_of() takes a class with fields (a dataclass, a pydantic model, a "
            f"NamedTuple or a TypedDict), not {said}."
        )
        raise TypeError(msg)
    models: Any = getattr(message, "__pydantic_fields__", None)
    if models is not None:
        return {name: _of_info(each.annotation, each) for name, each in models.items()}
    try:
        hints = typing.get_type_hints(message, include_extras=True)
    except NameError as error:
        msg = f"form_of({said}): an annotation cannot be evaluated: {error}."
        raise TypeError(msg) from error
    if dataclasses.is_dataclass(message):
        own = {each.name: each for each in dataclasses.fields(message) if each.init}
        return {name: _split(hints[name], each.metadata) for name, each in own.items()}
    return {name: _split(hints[name], {}) for name in field_names(message) or hints}


def _of_info(annotation: Any, info: Any) -> tuple[Any, Described]:
    """Return the same for a field of pydantic's."""
    whole = annotation
    for each in info.metadata:
        whole = typing.Annotated[whole, each]
    return whole, {"label": info.title, "help_text": info.description}


def _split(hint: Any, metadata: Described) -> tuple[Any, Described]:
    """Return an annotation without pydantic's ``Field`` and qualifiers of a dict."""
    while typing.get_origin(hint) in _QUALIFIERS:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, metadata
    whole, described = typing.get_args(hint)[0], dict(metadata)
    for mark in hint.__metadata__:
        if hasattr(mark, "validation_alias") and hasattr(mark, "metadata"):
            whole, texts = _of_info(whole, mark)
            described = {**texts, **described}
        else:
            whole = typing.Annotated[whole, mark]
    return whole, described


_QUALIFIERS: Final = (typing.NotRequired, typing.Required)


def _defaults_of(message: Any) -> dict[str, Any]:
    """Return the default of each field that has one; a factory as it is."""
    models: Any = getattr(message, "__pydantic_fields__", None)
    if models is not None:
        return {
            name: each.default_factory or each.default
            for name, each in models.items()
            if not each.is_required()
        }
    if dataclasses.is_dataclass(message):
        found = {}
        for each in dataclasses.fields(message):
            for default in (each.default, each.default_factory):
                if default is not dataclasses.MISSING:
                    found[each.name] = default
        return found
    if is_typed_dict(message):
        return dict.fromkeys(message.__optional_keys__)
    defaults: dict[str, Any] = getattr(message, "_field_defaults", {})
    return defaults


# ------------------------------------------------------------------------- form fields


class _Source:
    """A field of a message, as the source of a form field."""

    def __init__(self, annotation: Any, described: Described, default: Any) -> None:
        self._annotation = annotation
        self._default = default
        members = union_members(annotation)
        self._kept = [each for each in members if each is not type(None)]
        self._takes_none = len(self._kept) < len(members)
        self._described = described

    @property
    def _is_required(self) -> bool:
        return self._default is _NOTHING and not self._takes_none

    def field(self) -> Any:
        """Return the form field, None if there is none for the type."""
        if len(self._kept) != 1:
            return None
        wanted = _json_side(self._kept[0])
        maker = self._maker(wanted)
        if maker is None:
            return None
        field = maker(**self._texts())
        is_choice = isinstance(field, (forms.ChoiceField, forms.BooleanField))
        if masking_of(self._annotation).is_marked and not is_choice:
            _put_widget(field, forms.PasswordInput(render_value=False))
            field.strip = False  # of a text: a blank is a part of a password
        return field

    def _maker(self, wanted: Any) -> Callable[..., Any] | None:
        choices = _choices_of(wanted)
        if choices is not None:
            return _Chosen(choices, self._default, has_blank=not self._is_certain).make
        origin = typing.get_origin(wanted) or wanted
        if origin in (list, set, frozenset, tuple, Sequence):
            arguments = [a for a in typing.get_args(wanted) if a is not ...]
            choices = _choices_of(arguments[0]) if len(arguments) == 1 else None
            if choices is None:
                return None
            return _Chosen(choices, self._default, has_blank=False).make_several
        if wanted is bool:
            return forms.NullBooleanField if self._takes_none else _checkbox
        if origin in (dict, Mapping):
            return forms.JSONField
        found = next((make for cls, make in _FIELDS if wanted is cls), None)
        return None if found is None else lambda **texts: found(self._limits(), **texts)

    @property
    def _is_certain(self) -> bool:
        """Whether a choice always has a value."""
        return self._default not in (_NOTHING, None) and not self._takes_none

    def _limits(self) -> dict[str, Any]:
        """Return the keywords of the JSON schema that limit a value."""
        return {**self._schema(), "empty": None if self._takes_none else ""}

    def _schema(self) -> dict[str, Any]:
        try:
            (schema,), _ = json_schemas(
                [(self._annotation, "validation")], ref_template="{model}"
            )
        except InvalidHandler:  # the conversion will say so
            return {}
        members = schema.get("anyOf", ())
        limits = [each for each in members if each.get("type") != "null"]
        return {**schema, **(limits[0] if limits else {})}

    def _texts(self) -> dict[str, Any]:
        initial = None if self._default is _NOTHING else self._default
        described = self._described
        return {
            "required": self._is_required,
            "initial": initial,
            "label": described.get("label"),
            "help_text": described.get("help_text") or "",
        }


def _json_side(annotation: Any) -> Any:
    """Return the type of a form's value: for a class with a converter, its JSON's."""
    bare = bare_type(annotation)
    while hasattr(bare, "__supertype__"):  # a NewType
        bare = bare_type(bare.__supertype__)
    try:
        pair = registered_converters.get(bare)
    except TypeError:  # an unhashable annotation
        return bare
    return bare_type(pair.load[0]) if pair is not None and pair.load else bare


def _choices_of(annotation: Any) -> dict[str, tuple[Any, Any]] | None:
    """Return the values and labels of an Enum or a Literal, by their text in a form."""
    bare = bare_type(annotation)
    if typing.get_origin(bare) is typing.Literal:
        return {str(value): (value, str(value)) for value in typing.get_args(bare)}
    if not (isinstance(bare, type) and issubclass(bare, enum.Enum)):
        return None
    is_djangos = issubclass(bare, Choices)
    return {
        str(each.value): (
            each,
            getattr(each, "label", "") if is_djangos else _words(each.name),
        )
        for each in bare
    }


def _words(name: str) -> str:
    return name.replace("_", " ").lower().capitalize()


class _Chosen:
    """A field whose values are to be chosen."""

    def __init__(
        self, choices: Mapping[str, tuple[Any, Any]], default: Any, *, has_blank: bool
    ) -> None:
        self._choices = choices
        self._default = default
        self._blank = [_BLANK] if has_blank else []

    def _listed(self) -> list[tuple[str, Any]]:
        shown = [(key, label) for key, (_, label) in self._choices.items()]
        return [*self._blank, *shown]

    def _value(self, key: str) -> Any:
        return self._choices[key][0]

    def _key(self, value: Any) -> str:
        pairs = self._choices.items()
        return next((key for key, (each, _) in pairs if each == value), "")

    def _initial(self) -> Any:
        """Return the keys of the default."""
        default = self._default() if callable(self._default) else self._default
        if default in (None, _NOTHING):
            return None
        if isinstance(default, (list, tuple, set, frozenset)):
            return [self._key(each) for each in default]
        return self._key(default)

    def make(self, **texts: Any) -> Any:
        """Return a select of one."""
        texts["initial"] = None if self._default is _NOTHING else self._initial()
        return forms.TypedChoiceField(
            choices=self._listed(), coerce=self._value, empty_value=None, **texts
        )

    def make_several(self, **texts: Any) -> Any:
        """Return a select of several."""
        texts["initial"] = None if self._default is _NOTHING else self._initial()
        return forms.TypedMultipleChoiceField(
            choices=self._listed(), coerce=self._value, **texts
        )


def _checkbox(**texts: Any) -> Any:
    return forms.BooleanField(**{**texts, "required": False})


def _text(limits: Mapping[str, Any], **texts: Any) -> Any:
    return forms.CharField(
        max_length=limits.get("maxLength"),
        min_length=limits.get("minLength"),
        empty_value=limits["empty"],
        **texts,
    )


def _put_widget(field: Any, widget: forms.Widget) -> None:
    """Give a form field another widget, with the attributes of its limits."""
    widget.is_required = field.required
    widget.attrs.update(field.widget_attrs(widget))
    field.widget = widget


def _number(cls: Any) -> Callable[..., Any]:
    def make(limits: Mapping[str, Any], **texts: Any) -> Any:
        least, most = limits.get("minimum"), limits.get("maximum")
        return cls(min_value=least, max_value=most, **texts)

    return make


def _input(cls: type[forms.Field], widget: Any, kind: str, form: str) -> Any:
    """Return the maker of a field with an input of HTML's own."""

    def make(_limits: Mapping[str, Any], **texts: Any) -> Any:
        return cls(widget=widget(attrs={"type": kind}, format=form), **texts)

    return make


def _plain(cls: type[forms.Field]) -> Callable[..., Any]:
    return lambda _limits, **texts: cls(**texts)


_MINUTES: Final = "%Y-%m-%dT%H:%M"

_FIELDS: Final[tuple[tuple[type, Callable[..., Any]], ...]] = (
    (str, _text),
    (int, _number(forms.IntegerField)),
    (float, _number(forms.FloatField)),
    (Decimal, _number(forms.DecimalField)),
    (date, _input(forms.DateField, forms.DateInput, "date", "%Y-%m-%d")),
    (
        datetime,
        _input(forms.DateTimeField, forms.DateTimeInput, "datetime-local", _MINUTES),
    ),
    (time, _input(forms.TimeField, forms.TimeInput, "time", "%H:%M")),
    (timedelta, _plain(forms.DurationField)),
    (UUID, _plain(forms.UUIDField)),
)
