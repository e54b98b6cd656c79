"""A collection of documents as the view of a projection."""

from dataclasses import dataclass

import pytest

from django_cqrs import event_handler
from django_cqrs.checks import check_registry
from django_cqrs.documents.models import Document
from django_cqrs.documents.store import DocumentStore
from django_cqrs.events import Projections, projection
from django_cqrs.exceptions import ReplayForbidden
from tests.events.projections.support import OrderPaid, OrderPlaced, append, project
from tests.events.views.models import Entry

pytestmark = [pytest.mark.database, pytest.mark.django_db]


@dataclass
class OrderSheet:
    sku: str
    is_paid: bool = False


sheets = DocumentStore(OrderSheet, collection="test.order_sheets")
others = DocumentStore(OrderSheet, collection="test.other_sheets")


class Sheets:
    @event_handler
    def placed(self, event: OrderPlaced):
        sheets.upsert(event.number, OrderSheet(event.sku))

    @event_handler
    def paid(self, event: OrderPaid):
        sheet = sheets.get(event.number)
        sheet.is_paid = True
        sheets.update(event.number, sheet)


@projection("sheets", on_demand=True, views=[sheets])
class SheetsOnDemand(Sheets):
    """Run by hand."""


@projection("inline-sheets", views=[sheets])
class SheetsInline(Sheets):
    """Run in the transaction that appends."""


@projection("wrong", on_demand=True, views=[sheets])
class SheetsAndEntries:
    @event_handler
    def placed(self, event: OrderPlaced):
        Entry.objects.create(number=event.number)


def content():
    return [(each.sku, each.is_paid) for each in sheets.list()]


def test_e20_8_documents_are_filled_and_emptied():
    """A run fills the collection; a reset empties it, and no other; a rebuild fills it anew. [E20.8]"""
    registry = project(SheetsOnDemand)
    projections = Projections(registry=registry)
    others.add(1, OrderSheet("salt"))
    append(registry, OrderPlaced(1), OrderPaid(1), OrderPlaced(2, "rice"))

    assert projections.run("sheets") == 3
    filled = content()
    assert filled == [("tea", True), ("rice", False)]

    sheets.add(3, OrderSheet("by hand"))
    assert projections.rebuild("sheets") == 3
    assert content() == filled

    projections.reset("sheets")
    assert content() == []
    assert others.count() == 1
    assert projections.run("sheets") == 3
    assert content() == filled

    projections.delete("sheets")
    assert [each.collection for each in Document.objects.all()] == ["test.other_sheets"]


def test_e20_8_documents_of_an_inline_projection():
    """They are there when the append returns. [E20.8]"""
    registry = project(SheetsInline)

    append(registry, OrderPlaced(1), OrderPaid(1))

    assert content() == [("tea", True)]
    Projections(registry=registry).reset("inline-sheets")
    assert content() == []
    Projections(registry=registry).backfill("inline-sheets")
    assert content() == [("tea", True)]


def test_e20_8_a_replay_writes_documents_and_no_other_table():
    """What is not among the views stays as it is. [E20.8]"""
    registry = project(SheetsAndEntries)
    append(registry, OrderPlaced(1))
    projections = Projections(registry=registry)
    projections.init("wrong")

    with pytest.raises(ReplayForbidden):
        projections.rebuild("wrong")


def test_a_collection_with_two_owners_is_a_check():
    """A rebuild of one would empty the documents of the other; collections are compared by name."""
    same = DocumentStore(OrderSheet, collection="test.order_sheets")

    @projection("second", on_demand=True, views=[same])
    class Second:
        @event_handler
        def placed(self, event: OrderPlaced): ...

    @projection("third", on_demand=True, views=[others])
    class Third:
        @event_handler
        def placed(self, event: OrderPlaced): ...

    found = check_registry(project(SheetsOnDemand, Second, Third))

    [problem] = [each for each in found if each.id == "django_cqrs_events.E007"]
    assert problem.msg == (
        "DocumentStore(OrderSheet) is a view of the projections 'sheets' and 'second': "
        "a rebuild of one would empty the other's rows."
    )
    assert problem.hint == "Give each projection views of its own."
    assert (sheets == same, sheets == others, sheets == "sheets") == (
        True,
        False,
        False,
    )
    assert len({sheets, same, others}) == 2
