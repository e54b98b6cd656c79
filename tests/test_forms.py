"""Forms made of message classes: their fields, their errors, their messages."""

import enum
import types
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType
from uuid import UUID

import pytest
from django import forms
from django.db import models
from django.test import RequestFactory
from django.views.generic import FormView
from pydantic import BaseModel, Field, model_validator
from typing_extensions import NotRequired, TypedDict

from django_cqrs import Registry, Sensitive, Version, command_handler
from django_cqrs.conversion import converter
from django_cqrs.exceptions import FieldError as Fault
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.forms import MessageForm, form_of


class Money:
    def __init__(self, amount: Decimal) -> None:
        self.amount = amount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.amount == other.amount

    __hash__ = None


@converter
def money_to_json(money: Money) -> str:
    return str(money.amount)


@converter
def money_from_json(text: str) -> Money:
    return Money(Decimal(text))


class Kind(enum.Enum):
    BUG = 1
    FEATURE_WISH = 2


class Color(models.TextChoices):
    RED = "r", "Rosy"
    BLUE = "b", "Sky"


Weight = NewType("Weight", int)


@dataclass(frozen=True)
class Line:
    sku: str


@dataclass(frozen=True)
class OpenTicket:
    title: str
    priority: int = 3

    def __post_init__(self) -> None:
        if self.title == "?":
            raise ValueError("describe the problem")


@dataclass(frozen=True)
class EditTicket:
    ticket_id: int
    title: str
    seen: Annotated[int, Version()]


def bound(cls, data, **options):
    """Return the errors and the message of a form that was sent."""
    form = form_of(cls, **options)(data)
    form.is_valid()
    return dict(form.errors), form.message


def one(annotation: Any, *, default: Any = ...) -> Any:
    """Return a message class with one field."""
    values = {} if default is ... else {"field": default}
    return dataclass(
        type("One", (), {"__annotations__": {"field": annotation}, **values})
    )


# Fields ---------------------------------------------------------------------------

KINDS = {
    str: (forms.CharField, forms.TextInput, "x", "x"),
    int: (forms.IntegerField, forms.NumberInput, "7", 7),
    Weight: (forms.IntegerField, forms.NumberInput, "7", 7),
    float: (forms.FloatField, forms.NumberInput, "1.5", 1.5),
    Decimal: (forms.DecimalField, forms.NumberInput, "1.5", Decimal("1.5")),
    bool: (forms.BooleanField, forms.CheckboxInput, "on", True),
    (bool | None): (forms.NullBooleanField, forms.NullBooleanSelect, "false", False),
    date: (forms.DateField, forms.DateInput, "2026-05-01", date(2026, 5, 1)),
    datetime: (
        forms.DateTimeField,
        forms.DateTimeInput,
        "2026-05-01T10:00",
        datetime(2026, 5, 1, 10, tzinfo=UTC),
    ),
    time: (forms.TimeField, forms.TimeInput, "10:30", time(10, 30)),
    timedelta: (forms.DurationField, forms.TextInput, "01:00", timedelta(minutes=1)),
    UUID: (forms.UUIDField, forms.TextInput, str(UUID(int=7)), UUID(int=7)),
    dict: (forms.JSONField, forms.Textarea, '{"a": 1}', {"a": 1}),
    Money: (forms.CharField, forms.TextInput, "1.5", Money(Decimal("1.5"))),
    Kind: (forms.TypedChoiceField, forms.Select, "2", Kind.FEATURE_WISH),
    Color: (forms.TypedChoiceField, forms.Select, "b", Color.BLUE),
    Literal["a", 1]: (forms.TypedChoiceField, forms.Select, "1", 1),
    list[Kind]: (
        forms.TypedMultipleChoiceField,
        forms.SelectMultiple,
        ["1", "2"],
        [Kind.BUG, Kind.FEATURE_WISH],
    ),
    tuple[Literal["a", "b"], ...]: (
        forms.TypedMultipleChoiceField,
        forms.SelectMultiple,
        ["b"],
        ("b",),
    ),
}


@pytest.mark.parametrize("annotation", KINDS, ids=str)
def test_the_type_decides_about_the_form_field(annotation, settings):
    """What was typed becomes a value of the type."""
    settings.TIME_ZONE = "UTC"
    field_class, widget, typed, value = KINDS[annotation]
    cls = one(annotation)
    made = form_of(cls).base_fields["field"]

    assert (type(made), type(made.widget)) == (field_class, widget)
    assert bound(cls, {"field": typed}) == ({}, cls(value))


@pytest.mark.parametrize(
    ("annotation", "default", "typed", "value"),
    [
        (int, 3, "", 3),
        (int | None, 3, "", 3),
        (int | None, ..., "", None),
        (str, "x", "", ""),
        (str, "x", None, "x"),
        (str | None, None, "", None),
        (bool, True, None, False),
        (Kind, Kind.BUG, "", Kind.BUG),
        (Kind | None, None, "", None),
        (list[Kind], field(default_factory=lambda: [Kind.BUG]), None, []),
    ],
    # On Python 3.14 each union has the name Union, so that two ids were equal.
    ids=lambda value: str(value) if isinstance(value, types.UnionType) else None,
)
def test_an_empty_field_is_its_default(annotation, default, typed, value):
    """An empty text is a value of its own, and so is a box that is not ticked."""
    cls = one(annotation, default=default)

    assert bound(cls, {} if typed is None else {"field": typed}) == ({}, cls(value))
    assert not form_of(cls).base_fields["field"].required


@pytest.mark.parametrize("annotation", [str, int, Money, Kind, list[Kind]])
def test_a_field_without_a_default_is_required(annotation):
    """With Django's own text, in the user's language."""
    errors, message = bound(one(annotation), {"field": ""})

    assert (errors, message) == ({"field": ["This field is required."]}, None)


def test_the_form_begins_with_the_defaults():
    """Those of Enums are their choices; a factory is called for each form."""

    @dataclass
    class Order:
        count: int = 1
        kind: Kind = Kind.FEATURE_WISH
        kinds: list[Kind] = field(default_factory=lambda: [Kind.BUG])
        on: date = field(default_factory=lambda: date(2026, 5, 1))

    html = form_of(Order)().as_p()

    assert 'type="number" name="count" value="1"' in html
    assert '<option value="2" selected>Feature wish</option>' in html
    assert '<option value="1" selected>Bug</option>' in html
    assert 'type="date" name="on" value="2026-05-01"' in html


def test_choices_have_labels_and_a_blank_one_where_nothing_is_chosen_yet():
    """Those of Django's Choices are their own."""
    listed = form_of(one(Color)).base_fields["field"].choices
    chosen = form_of(one(Color, default=Color.RED)).base_fields["field"].choices

    assert listed == [("", "---------"), ("r", "Rosy"), ("b", "Sky")]
    assert chosen == [("r", "Rosy"), ("b", "Sky")]


class Limited(BaseModel):
    name: str = Field(max_length=5, title="Your name", description="As in a letter.")
    age: Annotated[int | None, Field(ge=1, le=120)] = None
    code: str = Field(default="", alias="zipCode")


@dataclass
class Labelled:
    name: Annotated[str, Field(max_length=5, description="As in a letter.")]
    age: int = field(default=1, metadata={"label": "Years", "help_text": "Since."})


def test_limits_and_texts_come_from_the_metadata():
    """Of pydantic's ``Field``, or of ``dataclasses.field(metadata=...)``."""
    of_model, of_dataclass = form_of(Limited).base_fields, form_of(Labelled).base_fields

    assert (of_model["name"].label, of_model["name"].help_text) == (
        "Your name",
        "As in a letter.",
    )
    assert (of_model["name"].max_length, of_dataclass["name"].max_length) == (5, 5)
    assert (of_model["age"].min_value, of_model["age"].max_value) == (1, 120)
    assert (of_dataclass["age"].label, of_dataclass["age"].help_text) == (
        "Years",
        "Since.",
    )


def test_a_sensitive_field_is_never_rendered():
    """It is a password; a blank at its end is a part of it."""

    @dataclass
    class SignUp:
        password: Annotated[str, Sensitive(), Field(max_length=9)]
        pin: Annotated[int, Sensitive]

    form = form_of(SignUp)({"password": " secret ", "pin": "1234"})

    assert form.is_valid()
    assert form.message == SignUp(" secret ", 1234)
    assert "secret" not in form.as_p()
    assert "1234" not in form.as_p()
    assert 'type="password" name="password" maxlength="9"' in form.as_p()


def test_the_version_that_was_seen_is_hidden():
    """It is filled with ``initial=`` and compared by the handler."""
    form = form_of(EditTicket)(initial={"seen": 4})

    assert '<input type="hidden" name="seen" value="4"' in form.as_p()


class Pair(NamedTuple):
    left: int
    right: int = 2


class Settings(TypedDict):
    theme: str
    size: NotRequired[int]


def test_every_kind_of_message_class_has_a_form():
    """With a model's aliases, which users never see."""
    assert bound(Pair, {"left": "1"}) == ({}, Pair(1))
    assert bound(Settings, {"theme": "dark"}) == ({}, {"theme": "dark"})
    assert bound(Limited, {"name": "Ada", "code": "7"}) == (
        {},
        Limited(name="Ada", zipCode="7"),
    )


# Errors ---------------------------------------------------------------------------


class Booking(BaseModel):
    first: int = Field(alias="from")
    last: int = Field(alias="to")
    code: Annotated[str, Field(pattern="^[A-Z]+$")] = "A"

    @model_validator(mode="after")
    def in_order(self):
        if self.first > self.last:
            raise ValueError("the first comes after the last")
        return self


def test_errors_are_beside_their_fields():
    """Those of the form fields and those of the message alike, under one name."""
    assert bound(Booking, {"first": "x", "last": "", "code": "a"}) == (
        {
            "first": ["Enter a whole number."],
            "last": ["This field is required."],
            "code": ["String should match pattern '^[A-Z]+$'"],
        },
        None,
    )


def test_an_error_of_the_whole_message_is_above_the_form():
    """Of a validator, or of ``__post_init__``."""
    assert bound(Booking, {"first": "2", "last": "1"})[0] == {
        "__all__": ["the first comes after the last"]
    }
    assert bound(OpenTicket, {"title": "?"})[0] == {"__all__": ["describe the problem"]}


@dataclass(frozen=True)
class PlaceOrder:
    lines: list[Line]
    note: str = ""


def test_an_error_inside_a_field_is_above_the_form_with_its_path():
    """There is no field on the page that it belongs to."""
    fields = {"lines": forms.JSONField()}

    errors, _ = bound(PlaceOrder, {"lines": '[{"sku": 5}]'}, fields=fields)
    assert errors == {"__all__": ["lines.0.sku: Input should be a valid string"]}
    assert bound(PlaceOrder, {"lines": '[{"sku": "a"}]'}, fields=fields) == (
        {},
        PlaceOrder([Line("a")]),
    )


def test_an_error_of_a_handler_is_added_likewise():
    """For a message that the handler itself could not send on."""
    form = form_of(OpenTicket)({"title": "lamp"})
    assert form.is_valid()

    form.add_conversion_errors(
        MessageConversionError(
            "OpenTicket",
            [Fault("title", "is taken", "taken"), Fault("", "is bad", "b")],
        )
    )

    assert dict(form.errors) == {"title": ["is taken"], "__all__": ["is bad"]}


# What the form does not ask for ---------------------------------------------------


def test_excluded_fields_are_given_by_the_view():
    """Nobody can send them; without them the message is not valid."""
    cls = form_of(EditTicket, exclude=["ticket_id", "seen"])
    sent = {"title": "x", "ticket_id": "9"}

    form = cls(sent, given={"ticket_id": 7, "seen": 1})
    assert form.is_valid()
    assert form.message == EditTicket(7, "x", 1)
    form = cls(sent, given={"ticket_id": 7})
    assert dict(form.errors) == {"__all__": ["seen: Field required"]}


def test_a_form_may_be_derived_from():
    """With fields that are not the message's, and rules of its own."""

    class Form(form_of(OpenTicket)):
        agreed = forms.BooleanField()

        def clean_title(self):
            return self.cleaned_data["title"].upper()

    form = Form({"title": "lamp", "agreed": "on"})

    assert form.is_valid()
    assert form.message == OpenTicket("LAMP")
    assert "agreed" in Form({"title": "lamp"}).errors


NO_FIELD = (
    "form_of({0}): there is no form field for {1}, whose type is {2}. Give one with "
    "fields={{'{1}': ...}}, or leave it out with exclude=['{1}']."
)


@dataclass
class Mixed:
    both: int | str


@dataclass
class Blob:
    data: bytes


class Opaque:
    pass


@dataclass
class OfOpaque:
    thing: Opaque


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (
            PlaceOrder,
            {},
            NO_FIELD.format("PlaceOrder", "lines", "list[tests.test_forms.Line]"),
        ),
        (
            Mixed,
            {},
            NO_FIELD.format("Mixed", "both", "int | str"),
        ),
        (Blob, {}, NO_FIELD.format("Blob", "data", "bytes")),
        (
            OfOpaque,
            {},
            "form_of(OfOpaque): no form can create it: thing: Opaque has no JSON form.",
        ),
        (
            OpenTicket,
            {"exclude": ["titel"]},
            "form_of(OpenTicket): the class has no field 'titel'.",
        ),
        (
            OpenTicket,
            {"fields": {"x": forms.CharField()}},
            "form_of(OpenTicket): the class has no field 'x'.",
        ),
        (int, {}, "form_of() takes a class with fields (a dataclass, a pydantic "),
        (OpenTicket("x"), {}, "form_of() takes a class with fields"),
    ],
)
def test_what_has_no_form_is_refused_at_once(cls, options, text):
    """By name, when the module with the form is imported."""
    with pytest.raises(TypeError) as caught:
        form_of(cls, **options)

    assert str(caught.value).startswith(text)


# In a view ------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_form_view_dispatches_the_message():
    """``form.message`` is sent as it is."""
    registry, opened = Registry(), []

    @registry.add
    @command_handler
    def open_ticket(command: OpenTicket) -> None:
        opened.append(command)

    class OpenTicketView(FormView):
        form_class = form_of(OpenTicket)
        success_url = "/opened/"

        def form_valid(self, form):
            registry.command_bus.dispatch(form.message)
            return super().form_valid(form)

    view = OpenTicketView.as_view()
    response = view(RequestFactory().post("/", {"title": "lamp", "priority": "1"}))

    assert (response.status_code, opened) == (302, [OpenTicket("lamp", 1)])
    assert issubclass(OpenTicketView.form_class, MessageForm)
