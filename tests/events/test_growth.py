"""The work is counted, in statements and in rows: it does not grow with the store."""

from dataclasses import dataclass, field
from typing import Annotated
from uuid import uuid4

from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs import CommandBus, command_handler, event_handler
from django_cqrs.events import Row, applies, event_stream, projection
from django_cqrs.events.models import StoredEvent
from django_cqrs.events.operations import Projections
from django_cqrs.events.shards import candidates
from django_cqrs.outbox.worker import Bounds, Worker
from tests.events.projections.support import OrderPlaced, append, project
from tests.events.support import Added, on_databases, store
from tests.events.views.models import OrderRow
from tests.outbox.support import rows_read
from tests.support import registry_of

pytestmark = on_databases  # on MariaDB, ANALYZE commits

MANY = 2000


@event_stream("counter")
@dataclass
class CountedCounter:
    counter_id: str | None = None
    numbers: list[int] = field(default_factory=list)

    @applies
    def added(self, event: Added) -> None:
        self.numbers.append(event.number)


@projection("counted", channel="outbox", views=[OrderRow])
class CountedOrders:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1


@projection("counted-inline", views=[OrderRow])
class CountedInline(CountedOrders):
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1


def statements(function):
    """Return the statements of something, without those of transactions."""
    with CaptureQueriesContext(connection) as captured:
        function()
    usual = ("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT")
    return [each["sql"] for each in captured if not each["sql"].startswith(usual)]


def counter(count, key="1"):
    store.append([Added(number) for number in range(count)], stream=f"counter-{key}")


def grow(streams=MANY):
    """Add events of many streams, as they would be after years."""
    last = StoredEvent.objects.order_by("position").last()
    assert last is not None
    rows = []
    for number in range(streams):
        if number % 20 == 0:
            store.append(Added(number), stream=f"other-{number}")
            continue
        rows.append(
            StoredEvent(
                name=last.name,
                payload=last.payload,
                headers={},
                event_id=uuid4(),
                correlation_id=uuid4(),
                recorded_at=last.recorded_at,
            )
        )
    StoredEvent.objects.bulk_create(rows, batch_size=500)
    with connection.cursor() as cursor:
        table = connection.ops.quote_name(StoredEvent._meta.db_table)
        noun = "TABLE " if connection.vendor == "mysql" else ""
        cursor.execute(f"ANALYZE {noun}{table}")


def grows_by(act):
    """Return how many more rows something reads in a store that has grown."""
    act()
    small = rows_read(act)
    grow()
    return rows_read(act) - small


NOISE = 500
"""Steps of SQLite's machine are counted by the hundred, and trees have more levels."""


# E40: statements ----------------------------------------------------------------------


def test_e40_1_more_events_in_one_append_are_not_more_statements():
    """Two or fifty. [E40.1]"""
    counter(1)

    few = statements(lambda: counter(2))
    many = statements(lambda: counter(50))

    assert len(many) == len(few)


def test_e40_1_a_thousand_events_are_loaded_by_one_statement():
    """Without a lock and without a snapshot. [E40.1]"""
    counter(1000)

    assert len(statements(lambda: store.load(CountedCounter, "1"))) == 1
    assert len(store.load(CountedCounter, "1").numbers) == 1000


def test_e40_1_a_batch_takes_the_same_statements_however_many_events_it_has():
    """Their rows are read by one query, and written by one. [E40.1]"""
    registry = project(CountedOrders)
    operate = Projections(registry=registry)
    operate.init("counted")

    def batch(count):
        append(registry, *map(OrderPlaced, range(count)))
        return statements(lambda: operate.run("counted"))

    batch(2)
    assert len(batch(100)) == len(batch(10))


def test_e40_1_an_inline_projection_costs_a_fixed_number_of_statements():
    """One event or twenty in an append. [E40.1]"""
    registry = project(CountedInline)
    append(registry, OrderPlaced(0))

    few = statements(lambda: append(registry, OrderPlaced(0), OrderPlaced(1)))
    many = statements(lambda: append(registry, *map(OrderPlaced, range(20))))

    assert len(many) == len(few)


# E40: rows ----------------------------------------------------------------------------


def test_e40_2_an_append_reads_no_more_in_a_store_that_has_grown():
    """Its stream, and the end of it. [E40.2]"""
    counter(20)

    assert grows_by(lambda: counter(1)) < NOISE


def test_e40_2_loading_reads_no_more_in_a_store_that_has_grown():
    """The events of the object alone. [E40.2]"""
    counter(20)

    assert grows_by(lambda: store.load(CountedCounter, "1")) < NOISE


def test_e40_2_a_page_at_the_end_reads_no_more_in_a_store_that_has_grown():
    """It begins at its position, and the settled one is that of the sequence. [E40.2]"""
    counter(20)

    def page():
        assert len(list(store.read_all(after=store.settled() - 20))) >= 1

    assert grows_by(page) < NOISE


def test_e40_3_streams_are_listed_and_claimed_alike_among_many():
    """A page of names reads those of its category; an inline claim one row. [E40.3]"""
    registry = project(CountedInline)
    counter(1)
    append(registry, OrderPlaced(1))

    def claim_and_list():
        append(registry, OrderPlaced(1))
        assert list(store.streams("counter")) == ["counter-1"]

    assert grows_by(claim_and_list) < NOISE


def test_e40_3_shards_are_found_alike_among_many_streams():
    """Their rows do not depend on streams. [E40.3]"""
    registry = project(CountedOrders)
    append(registry, OrderPlaced(1))
    Projections(registry=registry).run("counted")

    def look():
        assert len(candidates(connection, ["counted"], "me", 0)) == 1

    assert grows_by(look) < NOISE


def test_e40_4_buses_and_the_outbox_never_ask_the_event_store():
    """Without projections, no statement of theirs has anything of it. [E40.4]"""
    done = []

    @command_handler(name="counted.first")
    def first(command: OrderPlaced, commands: CommandBus):
        commands.dispatch(7, route="counted.second")

    @command_handler("counted.second", channel="outbox", name="counted.second")
    def second(number: int):
        done.append(number)

    registry = registry_of(first, second)
    bounds = Bounds(until_empty=True)

    def use():
        registry.command_bus.dispatch(OrderPlaced(1))
        Worker(registry, ["outbox"], using="default", bounds=bounds).run()

    found = statements(use)

    assert done == [7]
    assert found
    assert [each for each in found if "django_cqrs_events" in each] == []
