"""Integers beyond 64 bits come back as they are, or are refused at the save."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection

from django_cqrs import Registry, command_handler
from django_cqrs.conversion.limits import wide_integers
from django_cqrs.documents import DocumentStore, document
from django_cqrs.documents.models import Document
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.modelling import aggregate

pytestmark = [pytest.mark.django_db, pytest.mark.database]

KEPT_BY_ALL = [-(2**63), -1, 0, 2**53 + 1, 2**63, 2**64 - 1]
WIDE = [-(2**63) - 1, 2**64, 10**30]

REFUSAL = (
    "the integer has more than 64 bits, and MySQL would store it as a float; store it "
    "as text"
)


def turns_wide_integers_into_floats():
    return connection.vendor == "mysql" and not connection.mysql_is_mariadb


@document("figures.sheet")
@dataclass
class Sheet:
    sheet_id: int
    numbers: list[int] = field(default_factory=list)
    notes: Any = None


@document("figures.ledger")
@aggregate
@dataclass
class Ledger:
    ledger_id: int
    total: int = 0

    @command_handler("ledger.open")
    @classmethod
    def open(cls, ledger_id: int) -> Ledger:
        return cls(ledger_id)

    @command_handler("ledger.book")
    def book(self, total: int) -> None:
        self.total = total


@pytest.mark.parametrize("number", KEPT_BY_ALL)
def test_an_integer_of_64_bits_comes_back_as_it_is(number):
    """Every database keeps the integers from -2**63 to 2**64-1, also as Any."""
    sheets = DocumentStore(Sheet)

    sheets.add(1, Sheet(1, [number], {"n": number}))

    found = sheets.get(1)
    assert (found.numbers, found.notes) == ([number], {"n": number})
    assert type(found.notes["n"]) is int


@pytest.mark.parametrize("number", WIDE)
@pytest.mark.parametrize("way", ["add", "upsert", "update"])
def test_a_wider_integer_is_kept_or_refused_at_the_save(way, number):
    """
    It comes back as it is; MySQL, which would keep a float, refuses it at the save.

    The error has the path of each such integer, and nothing is written.
    """
    sheets = DocumentStore(Sheet)
    if way == "update":
        sheets.add(1, Sheet(1, [7]))
    before = list(Document.objects.values())
    sheet = Sheet(1, [7, number], {"deep": [{"n": number}]})

    if not turns_wide_integers_into_floats():
        getattr(sheets, way)(1, sheet)

        found = sheets.get(1)
        assert (found.numbers, found.notes) == (sheet.numbers, sheet.notes)
        assert type(found.notes["deep"][0]["n"]) is int
        return
    with pytest.raises(MessageConversionError) as raised:
        getattr(sheets, way)(1, sheet)
    assert str(raised.value) == (
        f"Cannot convert the payload to Sheet: numbers.1: {REFUSAL}; "
        f"notes.deep.0.n: {REFUSAL}."
    )
    assert list(Document.objects.values()) == before


def test_an_aggregate_with_a_wider_integer_is_kept_or_refused():
    """What an action has set is refused where it would come back as something else."""
    registry = Registry()
    registry.add(Ledger)
    bus = registry.command_bus
    bus.dispatch(1, route="ledger.open")

    if not turns_wide_integers_into_floats():
        bus.dispatch(10**30, route="ledger.book", aggregate_id=1)
        assert DocumentStore(Ledger).get(1).total == 10**30
        return
    with pytest.raises(MessageConversionError) as raised:
        bus.dispatch(10**30, route="ledger.book", aggregate_id=1)
    assert str(raised.value) == (
        f"Cannot convert the payload to Ledger: total: {REFUSAL}."
    )
    assert DocumentStore(Ledger).get(1).total == 0


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (2**64, [""]),
        (2**64 - 1, []),
        (-(2**63), []),
        (-(2**63) - 1, [""]),
        (1e30, []),
        (True, []),
        (None, []),
        ({"a": 1, "b": [{"c": 2**70}, 2**80, "x"]}, ["b.0.c", "b.1"]),
        ([[2**64], 2.5, "18446744073709551616"], ["0.0"]),
    ],
)
def test_the_integers_that_mysql_would_keep_as_floats_are_found(content, paths):
    """They are found in the JSON form, wherever they stand, and no float is one."""
    assert list(wide_integers(content)) == paths
