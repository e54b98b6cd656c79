"""Objects of frozen dataclasses that are made faster."""

from __future__ import annotations

import dataclasses

import pytest

from django_cqrs.frozen import maker_of


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    """A frozen class with each kind of field."""

    number: int
    weight: float = dataclasses.field(repr=False)
    tags: list[str] = dataclasses.field(default_factory=list, compare=False)
    city: str = dataclasses.field(default="Ulm", kw_only=True)


make = maker_of(Parcel)


def test_it_makes_an_object_that_is_equal_to_one_of_the_class():
    """It is one of the class, with the same values, text and hash."""
    made, usual = make(7, 1.5, ["fragile"], city="Bonn"), Parcel(7, 1.5, city="Bonn")

    assert type(made) is Parcel
    assert made == usual
    assert hash(made) == hash(usual)
    assert repr(made) == "Parcel(number=7, tags=['fragile'], city='Bonn')"
    assert dataclasses.replace(made, number=8) == Parcel(8, 1.5, city="Bonn")


def test_it_is_frozen():
    """No field can be assigned afterwards, as with every other object of the class."""
    made = make(7, 1.5)

    with pytest.raises(dataclasses.FrozenInstanceError):
        made.number = 8


def test_left_out_values_are_the_defaults():
    """A default is taken over, and a factory is called for each object."""
    first, second = make(1, 2.0), make(1, 2.0)

    assert first.city == "Ulm"
    assert first.tags == []
    assert first.tags is not second.tags


def test_a_value_without_default_cannot_be_left_out():
    """Calls are refused as those of the class are."""
    with pytest.raises(TypeError, match="weight"):
        make(7)
    with pytest.raises(TypeError, match="positional"):
        make(7, 1.5, [], "Bonn")


def test_the_class_itself_stays_as_it_was():
    """The twin has copies of the fields, which know their own class."""
    assert [each.name for each in dataclasses.fields(Parcel)] == [
        "number",
        "weight",
        "tags",
        "city",
    ]
    assert Parcel(7, 1.5) == make(7, 1.5)
