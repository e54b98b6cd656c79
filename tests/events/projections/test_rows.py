"""ViewRows that handlers get: found by one query, kept by one statement."""

from typing import Annotated, Any

import pytest
from django.db import IntegrityError, connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from django_cqrs import Header, event_handler
from django_cqrs.events import Row, projection
from django_cqrs.events.handling import projections_of
from django_cqrs.events.rows import ViewRows, row_plan
from django_cqrs.exceptions import InvalidKey, MissingHeader
from tests.events.projections.support import (
    OrderCancelled,
    OrderPaid,
    OrderPlaced,
    Unlucky,
    append,
    handle,
    project,
    stored,
)
from tests.events.views.models import Customer, Entry, OrderLine, OrderRow

pytestmark = [pytest.mark.database, pytest.mark.django_db]

seen: list[Any] = []

# PostgreSQL does both at once in a WITH.
WRITES = {"INSERT", "UPDATE", "WITH"}


@pytest.fixture(autouse=True)
def _nothing_seen():
    seen.clear()


@projection("orders", on_demand=True, views=[OrderRow])
class Orders:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1
        row.lines.append(event.sku)

    @event_handler
    def paid(
        self,
        event: OrderPaid,
        row: Annotated[OrderRow, Row("number", missing="ignore")],
    ):
        row.paid = True

    @event_handler
    def cancelled(self, event: OrderCancelled, row: Annotated[OrderRow, Row("number")]):
        row.delete()


def rows():
    return list(OrderRow.objects.order_by("number").values_list("number", "changes"))


def test_e25_1_a_row_is_made_found_kept_and_deleted():
    """A row that does not exist is made; one that does is found, changed and kept, or
    deleted. [E25.1]"""
    registry = project(Orders)
    append(registry, OrderPlaced(1), OrderPlaced(2))
    handle(registry)
    assert rows() == [(1, 1), (2, 1)]

    append(registry, OrderPlaced(2, "rye"), OrderPaid(2), OrderCancelled(1))
    handle(registry, stored(registry)[2:])

    [row] = OrderRow.objects.all()
    assert (row.number, row.changes, row.paid) == (2, 2, True)
    assert row.lines == ["tea", "rye"]


def test_e25_1_several_fields_and_other_attributes_make_a_key():
    """`Row("sku", order="number")` finds a row by two fields, one of another name; a
    source may be a header or a callable. [E25.1]"""

    @projection("orders", on_demand=True)
    class Lines:
        @event_handler
        def placed(
            self,
            event: OrderPlaced,
            line: Annotated[OrderLine, Row("sku", order="number")],
        ):
            line.count += 1

        @event_handler
        def paid(
            self,
            event: OrderPaid,
            line: Annotated[
                OrderLine, Row(sku=Header("sku"), order=lambda m: m.payload.number)
            ],
        ):
            line.count += 10

    registry = project(Lines)
    append(registry, OrderPlaced(1), OrderPlaced(1, "rye"), OrderPlaced(1))
    append(registry, OrderPaid(1), headers={"sku": "rye"})
    handle(registry)
    handle(registry, stored(registry)[:1])

    found = OrderLine.objects.order_by("sku").values_list("order", "sku", "count")
    assert list(found) == [(1, "rye", 11), (1, "tea", 3)]


def test_e25_1_a_missing_row_ignores_the_event_or_raises():
    """`missing="ignore"` does not call the handler, `missing="raise"` raises the
    model's `DoesNotExist`, with the key. [E25.1]"""

    @projection("strict", on_demand=True)
    class Strict:
        @event_handler
        def paid(
            self,
            event: OrderPaid,
            row: Annotated[OrderRow, Row("number", missing="raise")],
        ): ...

    registry = project(Orders, Strict)
    append(registry, OrderPaid(7))
    assert handle(registry).handled == 1
    assert rows() == []

    with pytest.raises(OrderRow.DoesNotExist) as caught:
        handle(registry, name="strict")
    assert str(caught.value) == "There is no OrderRow with number=7."


def test_e25_2_a_batch_makes_one_query_and_one_statement():
    """500 events on 100 rows: one SELECT and one upsert, whether the rows are new,
    exist, or both. [E25.2]"""
    registry = project(Orders)
    append(registry, *[OrderPlaced(number % 100) for number in range(500)])
    append(registry, *[OrderPlaced(number % 120) for number in range(240)])
    page = stored(registry)

    counts = []
    for some in (page[:500], page[:500], page[500:]):
        with CaptureQueriesContext(connection) as queries:
            handle(registry, some)
        statements = [each["sql"].partition(" ")[0] for each in queries]
        counts.append(
            [each for each in statements if each in WRITES or each == "SELECT"]
        )

    assert [len(each) for each in counts] == [2, 2, 2]
    assert [each[0] for each in counts] == ["SELECT"] * 3
    assert {each[1] for each in counts} <= WRITES
    assert rows()[:2] == [(0, 12), (1, 12)]
    assert rows()[-1] == (119, 2)


def test_a_row_that_is_only_read_is_not_written():
    """What no handler has changed needs no statement; a change within a value counts."""

    @projection("orders", on_demand=True)
    class Reader:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            seen.append(row.changes)

        @event_handler
        def paid(self, event: OrderPaid, row: Annotated[OrderRow, Row("number")]):
            row.lines.append("inside")

    registry = project(Reader)
    OrderRow.objects.create(number=1, changes=5)
    append(registry, OrderPlaced(1))
    with CaptureQueriesContext(connection) as queries:
        handle(registry)
    assert WRITES.isdisjoint(each["sql"].partition(" ")[0] for each in queries)

    append(registry, OrderPaid(1))
    handle(registry, stored(registry)[1:])
    assert OrderRow.objects.get().lines == ["inside"]


def test_e25_3_events_of_one_row_see_each_others_changes():
    """One object stands for a row in a batch; deleted and made again, it is new. [E25.3]"""
    registry = project(Orders)
    OrderRow.objects.create(number=1, changes=5, lines=["old"])
    append(registry, OrderPlaced(1), OrderPlaced(1), OrderCancelled(1))
    append(registry, OrderPlaced(1, "new"), OrderPlaced(2), OrderCancelled(2))
    handle(registry)

    [row] = OrderRow.objects.all()
    assert (row.number, row.changes, row.lines) == (1, 1, ["new"])


def test_e25_3_a_handler_without_row_sees_the_rows_written():
    """What is pending is written before a handler without `Row` queries, and what that
    handler changes is seen afterwards. [E25.3]"""

    @projection("orders", on_demand=True)
    class Mixed:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            row.changes += 1

        @event_handler
        def paid(self, event: OrderPaid):
            seen.append(OrderRow.objects.get(number=event.number).changes)
            OrderRow.objects.filter(number=event.number).update(
                changes=F("changes") * 10
            )

        @event_handler
        def cancelled(self, event: OrderCancelled):
            seen.append("no query")

    registry = project(Mixed)
    append(registry, OrderPlaced(1), OrderCancelled(1), OrderPlaced(1), OrderPaid(1))
    append(registry, OrderPlaced(1), OrderPaid(1), OrderPlaced(1))
    with CaptureQueriesContext(connection) as queries:
        handle(registry, stored(registry))

    assert seen == ["no query", 2, 21]
    assert rows() == [(1, 211)]
    written = [each for each in queries if each["sql"].partition(" ")[0] in WRITES]
    assert len(written) == 5  # three by `Row`, two by hand


def test_e25_4_a_failed_batch_leaves_no_row_and_its_objects_are_not_used_again():
    """After a failure the next batch reads the rows again. [E25.4]"""
    objects = []

    @projection("orders", on_demand=True)
    class Failing:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            objects.append(row)
            row.changes += 1
            if event.sku == "bad" and len(objects) == 2:
                raise Unlucky

    registry = project(Failing)
    append(registry, OrderPlaced(1), OrderPlaced(1, "bad"))
    kept = ViewRows(connection)
    with pytest.raises(Unlucky):
        handle(registry, rows=kept)
    assert rows() == []

    handle(registry, rows=kept)
    assert rows() == [(1, 2)]
    assert objects[2] is not objects[0]


def test_e25_5_defaults_and_auto_now_are_those_of_a_save():
    """Serial numbers, defaults and `auto_now` come as `Model.save()` writes them. [E25.5]"""
    registry = project(Orders)
    append(registry, OrderPlaced(1))
    handle(registry)
    first = OrderRow.objects.get()
    assert first.pk is not None
    assert (first.paid, first.placed_at, first.lines) == (False, None, ["tea"])

    handle(registry)
    second = OrderRow.objects.get()
    assert second.pk == first.pk
    assert second.touched_at > first.touched_at

    made = OrderRow.objects.create(number=99)
    assert made.pk > first.pk


@pytest.mark.parametrize("is_new", [False, True])
def test_e25_5_a_violation_of_another_field_raises(is_new):
    """A value that is taken in another unique column, or is missing, is an error: no
    other row is overwritten on any database. [E25.5]"""

    @projection("orders", on_demand=True)
    class Customers:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[Customer, Row(name="sku")]):
            row.age = event.number
            row.email = "taken@example.org"

        @event_handler
        def paid(
            self, event: OrderPaid, row: Annotated[Customer, Row(name=lambda m: "ann")]
        ): ...

    registry = project(Customers)
    Customer.objects.create(name="bob", email="taken@example.org", age=50)
    if not is_new:
        Customer.objects.create(name="tea", age=1)
    append(registry, OrderPlaced(7))
    append(registry, OrderPaid(7))
    placed, paid = stored(registry)

    for each in (placed, paid):
        with pytest.raises(IntegrityError):
            handle(registry, [each])
    assert Customer.objects.get(name="bob").age == 50


def test_e25_5_expressions_are_written_by_django():
    """A row with `F()` or a function of the database is saved as Django saves it. [E25.5]"""

    @projection("orders", on_demand=True)
    class Counting:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
            row.changes = F("changes") + 1

        @event_handler
        def paid(self, event: OrderPaid):
            seen.append(OrderRow.objects.get().changes)

    registry = project(Counting)
    OrderRow.objects.create(number=1, changes=5)
    append(registry, OrderPlaced(1), OrderPaid(1), OrderPlaced(1))
    handle(registry)

    assert seen == [6]
    assert rows() == [(1, 7)]


def test_e25_6_two_rows_of_two_models():
    """A handler may get several rows, of one model or of several. [E25.6]"""

    @projection("orders", on_demand=True)
    class Both:
        @event_handler
        def placed(
            self,
            event: OrderPlaced,
            row: Annotated[OrderRow, Row("number")],
            line: Annotated[OrderLine, Row("sku", order="number")],
            first: Annotated[OrderRow, Row(number=lambda m: 0)],
        ):
            row.changes += 1
            line.count += 1
            first.changes += 1

    registry = project(Both)
    append(registry, OrderPlaced(1), OrderPlaced(2))
    handle(registry)

    assert rows() == [(0, 2), (1, 1), (2, 1)]
    assert OrderLine.objects.count() == 2


def test_a_row_is_found_by_its_primary_key_and_by_a_text():
    """A key that is no serial number is kept as given."""

    @projection("orders", on_demand=True)
    class Customers:
        @event_handler
        def placed(self, event: OrderPlaced, row: Annotated[Customer, Row(name="sku")]):
            row.age = event.number

    registry = project(Customers)
    append(
        registry, OrderPlaced(1, "ann"), OrderPlaced(2, "bob"), OrderPlaced(3, "ann")
    )
    handle(registry, stored(registry)[:2])
    handle(registry, stored(registry)[1:])

    found = Customer.objects.order_by("name").values_list("name", "age")
    assert list(found) == [("ann", 3), ("bob", 2)]


def test_a_key_that_an_event_lacks_is_an_error():
    """None, a missing attribute, a missing header and an unfit value each raise, with
    the mark."""

    def made(**sources):
        @projection("orders", on_demand=True)
        class Keyed:
            @event_handler
            def placed(
                self, event: OrderPlaced, row: Annotated[OrderRow, Row(**sources)]
            ): ...

        return Keyed

    cases = [
        ({"number": lambda m: None}, InvalidKey, "the event has None for 'number'"),
        ({"number": "no"}, InvalidKey, "OrderPlaced has no 'no'"),
        ({"number": Header("no")}, MissingHeader, "the event has no header 'no'"),
        ({"number": "sku"}, InvalidKey, "“tea” value must be an integer."),
    ]
    for sources, error, text in cases:
        registry = project(made(**sources))
        append(registry, OrderPlaced(1))
        with pytest.raises(error, match=text):
            handle(registry)


def test_e20_4_a_row_needs_a_unique_key():
    """`Row` on a field that is not unique, not there, or of no model: a check, and the
    handler is not called. [E20.4]"""

    def fault_of(mark, model=OrderRow):
        @projection("orders", on_demand=True)
        class Wrong:
            @event_handler
            def placed(self, event: OrderPlaced, row: Annotated[model, mark]): ...

        [problem] = projections_of(project(Wrong))["orders"].problems
        assert problem.rule.id == "django_cqrs_events.E008"
        return problem.message.partition(": ")[2]

    assert (
        fault_of(Row("paid"))
        == "Row('paid') finds no row: paid of OrderRow is not unique."
    )
    assert fault_of(Row("nummer")) == (
        "Row('nummer') finds no row: OrderRow has no field 'nummer'."
    )
    assert fault_of(Row("order", model=lambda m: 1), OrderLine).endswith(
        "OrderLine has no field 'model'."
    )
    assert fault_of(Row("order"), OrderLine).endswith(
        "order of OrderLine is not unique."
    )
    assert fault_of(Row("text", "number"), Entry).endswith(
        "number, text of Entry are not unique together."
    )
    assert (
        fault_of(Row("number"), dict)
        == "Row('number') is for a model, and dict is none."
    )
    assert fault_of(Row) == 'Row needs the names of fields: Row("number").'


def test_a_mark_refuses_what_it_cannot_use():
    """`Row()` without a field, with another word or source, raises at once."""
    with pytest.raises(TypeError, match="takes the names of fields"):
        Row()
    with pytest.raises(ValueError, match="one of 'create', 'ignore', 'raise'"):
        Row("number", missing="drop")
    with pytest.raises(
        TypeError, match="the name of an attribute, a Header or a callable"
    ):
        Row(number=5)
    assert repr(Row("a", b="c", missing="raise")) == "Row('a', b='c', missing='raise')"


def test_many_keys_are_read_and_written_in_portions(monkeypatch):
    """More rows than a statement takes go into several."""
    monkeypatch.setattr("django_cqrs.events.rows.MOST_KEYS", 10)
    monkeypatch.setattr("django_cqrs.events.upserts.MOST_ROWS", 10)
    registry = project(Orders)
    append(registry, *[OrderPlaced(number) for number in range(25)])
    handle(registry)
    append(registry, *[OrderCancelled(number) for number in range(3, 25)])
    handle(registry, stored(registry)[25:])

    assert rows() == [(0, 1), (1, 1), (2, 1)]


def test_locked_rows_are_made_first():
    """Where others may write the same rows, missing ones are made and all are locked,
    in order of key."""
    kept = ViewRows(connection, locks=True)
    plan = row_plan(OrderRow, Row("number"))
    OrderRow.objects.create(number=2, changes=7)
    for number in (3, 1, 2):
        kept.expect(plan, (number,))
    with CaptureQueriesContext(connection) as queries:
        row = kept.get(plan, (2,))
    assert row.changes == 7
    if connection.features.has_select_for_update:
        assert OrderRow.objects.count() == 3
        assert "FOR UPDATE" in queries[-1]["sql"]
        assert "ORDER BY" in queries[-1]["sql"]

    for number in (1, 2, 3):
        kept.get(plan, (number,)).changes += 1
    kept.flush()
    assert rows() == [(1, 1), (2, 8), (3, 1)]
