"""Rows outlive deployments: renamed messages and changed shapes are still read."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import pytest

from django_cqrs import message
from django_cqrs.conversion import upcaster
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.exceptions import MessageConversionError, UnknownMessage


@message("sale.made", version=3, aliases=["sale.done"])
@dataclass(frozen=True)
class SaleMade:
    amount: Decimal
    currency: str
    note: str = ""


@upcaster("sale.made", version=1)
def name_the_amount(payload):
    return {"amount": payload["total"]}


@upcaster("sale.made", version=2)
def add_currency(payload):
    return {**payload, "currency": "EUR"}


@pytest.fixture
def types():
    return MessageTypes([SaleMade])


def test_an_old_payload_is_brought_to_the_present_step_by_step(types):
    """A payload of version 1 passes the upcasters of 1 and of 2."""
    assert types.decode("sale.made", b'{"total": "9.50"}', 1) == SaleMade(
        Decimal("9.50"), "EUR"
    )


def test_only_the_steps_after_its_version_are_taken(types):
    """A payload of version 2 passes the upcaster of 2 alone."""
    assert types.decode("sale.made", b'{"amount": "9.50"}', 2) == SaleMade(
        Decimal("9.50"), "EUR"
    )


def test_a_payload_of_the_present_version_is_not_touched(types):
    """A payload of the class's own version is read as it is."""
    text = b'{"amount": "1", "currency": "USD"}'

    assert types.decode("sale.made", text, 3) == SaleMade(Decimal(1), "USD")


def test_an_alias_is_upcast_as_its_message(types):
    """What was stored under an old name passes the message's upcasters."""
    assert types.decode("sale.done", b'{"total": "1"}', 1).currency == "EUR"


def test_a_step_without_an_upcaster_changes_nothing():
    """Where a version has no upcaster, its shape is that of the next."""

    @message("sale.noted", version=4)
    @dataclass
    class Noted:
        text: str

    types = MessageTypes([Noted])

    assert types.decode("sale.noted", b'{"text": "x"}', 1) == Noted("x")


def test_an_upcaster_that_refuses_is_a_conversion_error(types):
    """A KeyError of an upcaster says which step refused the payload."""
    with pytest.raises(MessageConversionError) as caught:
        types.decode("sale.made", b'{"sum": "1"}', 1)

    assert str(caught.value) == (
        "Cannot convert the payload to sale.made: its upcaster from version 1 "
        "rejects it ('total')."
    )


def test_a_payload_of_a_newer_version_is_not_guessed_at(types):
    """A worker of older code does not read what newer code has stored."""
    with pytest.raises(UnknownMessage) as caught:
        types.decode("sale.made", b"{}", 4)

    assert (
        "was stored in version 4, but tests.conversion.test_upcasting.SaleMade has"
        in str(caught.value)
    )


def test_a_misused_upcaster_is_refused_at_once():
    """@upcaster without its arguments is refused where it stands."""
    with pytest.raises(TypeError, match="@upcaster takes a name and a version"):
        upcaster(lambda payload: payload, version=1)
