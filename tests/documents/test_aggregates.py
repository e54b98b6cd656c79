"""Aggregates that are documents behave as those that are models."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs import (
    CommandBus,
    Fetch,
    Header,
    InstantRetry,
    Registry,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.checks import check_registry
from django_cqrs.documents import DocumentStore
from django_cqrs.documents.models import Document
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
    MessageConversionError,
)
from django_cqrs.modelling import Repository
from django_cqrs.testing.flow import Flow
from tests.documents.kinds import (
    ACCOUNTS,
    ORDERS,
    Changed,
    Deposit,
    Fail,
    Found,
    Import,
    Lost,
    Move,
    Open,
    Paid,
    Place,
    Placed,
    PlainOrder,
    Remove,
    Removed,
    Rename,
    Renamed,
    Split,
    Touch,
    Visit,
)

pytestmark = [pytest.mark.django_db, pytest.mark.database]

ONE, TWO = UUID(int=1), UUID(int=2)


@pytest.fixture(params=ORDERS, ids=lambda cls: cls.__name__)
def kind(request):
    return request.param


@pytest.fixture
def registry(kind):
    registry = Registry()
    registry.add(kind)
    return registry


@pytest.fixture
def dispatch(registry):
    return registry.command_bus.dispatch


@pytest.fixture
def orders(kind):
    return DocumentStore(kind)


@pytest.fixture
def order(dispatch):
    dispatch(Place(ONE, "lamp"))


@contextmanager
def queries():
    """Yield the statements, those of transactions left out."""
    found = []
    with CaptureQueriesContext(connection) as captured:
        yield found
    words = [each["sql"].split()[0].upper() for each in captured.captured_queries]
    found += [w for w in words if w in ("SELECT", "INSERT", "UPDATE", "DELETE")]


def test_no_check_complains(registry):
    """Each kind may be kept as it is."""
    assert check_registry(registry) == []


class TestFactory:
    def test_inserted_once(self, dispatch, orders):
        """What a class-method returns is one new row; its identifier is the result. [M01.1]"""
        with queries() as made:
            assert dispatch(Place(ONE, "lamp")) == ONE

        assert made == ["INSERT"]
        assert orders.get(ONE).title == "lamp web"

    def test_header_parameters(self, dispatch, orders):
        """A factory's other parameters are filled as any handler's. [M01.2]"""
        dispatch(Place(ONE, "lamp"), headers={"source": "mail"})

        assert orders.get(ONE).title == "lamp mail"

    def test_one_that_exists(self, dispatch, orders, order):
        """It raises and changes nothing. [M01.5]"""
        with pytest.raises(AggregateAlreadyExists, match="exists already"):
            dispatch(Import(ONE))

        assert orders.get(ONE).title == "lamp web"
        assert orders.count() == 1


class TestAction:
    def test_loaded_called_saved(self, dispatch, orders, order):
        """One SELECT, one UPDATE; what the method returns is the result. [M02.1]"""
        with queries() as made:
            assert dispatch(Rename(ONE, "desk")) == "lamp web"

        assert made == ["SELECT", "UPDATE"]
        found = orders.get(ONE)
        assert (found.title, list(found.history)) == ("desk", ["desk"])

    def test_no_identifier(self, dispatch, order):
        """The error says how to give one. [M02.2]"""
        with pytest.raises(AggregateNotFound, match="Give aggregate_id="):
            dispatch(Rename(None, "desk"))

    def test_unknown(self, kind, dispatch):
        """It is named with class, method and identifier; nothing is saved. [M02.2]"""
        with pytest.raises(AggregateNotFound) as raised:
            dispatch(Rename(ONE, "desk"))

        assert str(raised.value) == (
            f"{kind.__name__}.rename was not called: there is no {kind.__name__} with "
            f"order_id={ONE}."
        )
        assert not Document.objects.exists()

    def test_an_exception(self, registry, dispatch, orders, order):
        """Nothing is saved and nothing published. [M02.3]"""
        with Flow(registry=registry) as flow, pytest.raises(RuntimeError):
            dispatch(Fail(ONE))

        assert orders.get(ONE).title == "lamp web"
        assert flow.published == []

    def test_by_key(self, registry, dispatch, orders, order):
        """``aggregate_id=`` finds it, as text too, and is not passed on. [M02.4]"""
        with Flow(registry=registry) as flow:
            dispatch(route="order.close", aggregate_id=str(ONE))

        assert orders.get(ONE).is_closed
        assert flow.published == [Renamed(ONE, "closed")]

    def test_deleted_by_its_handler(self, registry, dispatch, orders, order):
        """It is not saved again, and its events are published. [M02.5]"""
        with Flow(registry=registry) as flow:
            dispatch(Remove(ONE))

        assert orders.find(ONE) is None
        assert flow.published == [Removed(ONE)]

    def test_another_identifier_than_it_was_found_by(self, kind, orders, order):
        """It stays as it is: another one would be another object."""

        @command_handler
        def renumber(command: Rename, every: Repository[kind]) -> None:
            found = every.get(command.order_id)
            found.order_id = TWO
            every.save(found)

        renumber.__annotations__["every"] = Repository[kind]
        registry = Registry()
        registry.add(renumber)
        with pytest.raises(InvalidIdentifier, match="was given another identifier"):
            registry.command_bus.dispatch(Rename(ONE, ""))


def test_factory_or_action(dispatch, orders):
    """The first dispatch creates, the second acts. [M03.1]"""
    assert dispatch(Visit(ONE)) == ONE
    assert dispatch(Visit(ONE, 2)) == 3
    assert orders.get(ONE).visits == 3


def test_a_missing_identifier_creates_nothing(dispatch):
    """It raises, and does not fall through to the factory. [M03.3]"""
    with pytest.raises(AggregateNotFound):
        dispatch(Visit(None))

    assert not Document.objects.exists()


class TestRecordedEvents:
    def test_published_after_the_save(self, kind, registry, orders, order):
        """A handler that reads the row sees what the action changed. [M04.1]"""
        seen = []

        @event_handler
        def read(event: Renamed) -> None:
            seen.append(orders.get(event.order_id).title)

        registry = Registry()
        registry.add(kind)
        registry.add(read)
        registry.command_bus.dispatch(Rename(ONE, "desk"))

        assert seen == ["desk"]

    def test_in_order_and_emptied(self, registry, dispatch, order):
        """A second save publishes nothing. [M04.2]"""
        with Flow(registry=registry) as flow:
            dispatch(Split(ONE, TWO))
            dispatch(Touch(ONE))

        assert flow.published == [Renamed(ONE, "lamp web (1)"), Placed(TWO)]

    def test_their_headers(self, registry, dispatch, order):
        """Identifier, and the version that its row has. [M04.3]"""
        with Flow(registry=registry) as flow:
            dispatch(Rename(ONE, "desk"), headers={"user": "ada"})

        headers = dict(flow.messages[-1][1].headers)
        assert headers["aggregate_id"] == ONE
        assert headers["aggregate_version"] == 1
        assert headers["user"] == "ada"

    def test_in_a_plain_unit_test(self, kind):
        """No bus and no database. [M04.5]"""
        placed = kind.place(Place(ONE, "lamp"))

        assert placed.recorded_events == [Placed(ONE)]


class TestEventsAndQueries:
    def test_found_by_the_events_attribute(self, registry, orders, order):
        """``identifier=`` names it. [M05.1]"""
        registry.event_bus.publish(Paid(ONE))

        assert orders.get(ONE).is_closed

    def test_missing(self, registry):
        """It raises, or is dropped where the handler says so. [M05.1]"""
        registry.event_bus.publish(Lost(ONE))
        with pytest.raises(AggregateNotFound):
            registry.event_bus.publish(Paid(ONE))

        assert not Document.objects.exists()

    def test_a_union_of_events(self, registry, orders, order):
        """Each event names the object in its own way. [M05.2]"""
        registry.event_bus.publish(Found(ONE))

        assert orders.get(ONE).title == "Found"

    def test_a_query_writes_nothing(self, registry, order):
        """One SELECT, whose row is not locked. [M05.3]"""
        with CaptureQueriesContext(connection) as captured:
            title = registry.query_bus.ask(route="order.title", aggregate_id=ONE)

        (only,) = captured.captured_queries
        assert title == "lamp web"
        assert "FOR" not in only["sql"]


class TestAggregateMakesAggregate:
    def test_both_are_saved(self, dispatch, orders, order):
        """The one that was called and the one that it made; the new one is the result. [M06.1]"""
        assert dispatch(Split(ONE, TWO)) == TWO

        assert [each.title for each in orders.list()] == ["lamp web (1)", "half web"]

    def test_returning_self(self, dispatch, orders, order):
        """Saves once. [M06.3]"""
        with queries() as made:
            assert dispatch(Touch(ONE)) == ONE

        assert made == ["SELECT", "UPDATE"]


@pytest.mark.parametrize("kind", ACCOUNTS, ids=lambda cls: cls.__name__)
class TestVersions:
    def test_counted_up(self, kind, registry, dispatch):
        """Every save counts by one; the attribute and the row agree. [M07.2]"""
        dispatch(Open(7))
        with Flow(registry=registry) as flow:
            dispatch(Deposit(7, 5))
            dispatch(Deposit(7, 5))

        assert DocumentStore(kind).get(7).version == 2
        assert Document.objects.get().version == 2
        assert flow.published == [Changed(7, 5), Changed(7, 10)]
        assert flow.messages[-1][1].headers["aggregate_version"] == 2

    def test_a_stale_save(self, kind, registry, dispatch):
        """It raises and leaves what the other one has written. [M07.2]"""
        dispatch(Open(7))

        @command_handler
        def late(command: Changed, accounts: Repository[kind]) -> None:
            account = accounts.get(command.account_id)
            dispatch(Deposit(7, 5))
            account.balance = command.balance
            accounts.save(account)

        late.__annotations__["accounts"] = Repository[kind]
        registry.add(late)
        with pytest.raises(ConcurrencyError, match="changed or deleted"):
            registry.command_bus.dispatch(Changed(7, 100))

        assert DocumentStore(kind).get(7).balance == 0  # all of it is undone

    def test_the_version_that_the_sender_saw(self, kind, dispatch):
        """It is compared where the command has it. [M07.3]"""
        dispatch(Open(7))
        assert dispatch(Deposit(7, 5, seen=0)) == 5
        with pytest.raises(ConcurrencyError, match="but it is now at version 1"):
            dispatch(Deposit(7, 5, seen=0))

    def test_no_row_lock(self, kind, dispatch):
        """The version decides, so nobody waits. [M07.2]"""
        dispatch(Open(7))
        with CaptureQueriesContext(connection) as captured:
            dispatch(Deposit(7, 5))

        assert not [q for q in captured.captured_queries if "FOR " in q["sql"]]

    def test_retried(self, kind, registry, dispatch):
        """With instant retry the stale one succeeds. [M07.4]"""
        dispatch(Open(7))
        stale = [True]

        @command_handler
        def late(command: Changed, accounts: Repository[kind]) -> None:
            account = accounts.get(command.account_id)
            if stale:
                Document.objects.update(version=stale.pop() + 4)
            account.balance = command.balance
            accounts.save(account)

        late.__annotations__["accounts"] = Repository[kind]
        registry.add(late)
        bus = CommandBus(
            instant_retry=InstantRetry(2, on=(ConcurrencyError,)), registry=registry
        )
        bus.dispatch(Changed(7, 100))

        assert DocumentStore(kind).get(7).balance == 100


def test_the_row_is_locked(dispatch, order):
    """An action's row is locked, as far as the database locks rows. [M07.1]"""
    if not connection.features.has_select_for_update:
        pytest.skip("SQLite locks the whole database.")
    with CaptureQueriesContext(connection) as captured:
        dispatch(Rename(ONE, "desk"))

    (select,) = (q for q in captured.captured_queries if "SELECT" in q["sql"])
    assert "FOR NO KEY UPDATE" in select["sql"] or "FOR UPDATE" in select["sql"]


class TestIdentifiers:
    def test_which_one_decides(self, dispatch, orders, order):
        """``aggregate_id=`` before the marked field, that before the name. [M08.1]"""
        dispatch(Place(TWO, "desk"))
        dispatch(Move(ONE, "marked", order_id=TWO))
        dispatch(Move(ONE, "given", order_id=ONE), aggregate_id=TWO)

        assert [each.title for each in orders.list()] == ["marked", "given"]

    def test_what_cannot_be_one(self, dispatch, order):
        """A list, a dict, or text that is no UUID. [M08.2]"""
        for wrong in ([ONE], {"a": 1}, "x"):
            with pytest.raises(InvalidIdentifier):
                dispatch(route="order.close", aggregate_id=wrong)

    def test_behind_a_channel(self, registry, dispatch, orders, order):
        """The same identifier finds it in the background. [M08.3]"""
        with Flow(registry=registry) as flow:
            dispatch(route="order.escalate", headers={"which": ONE})
            assert flow.run("outbox") == 1

        assert orders.get(ONE).title == "escalated"


def _repository_of(kind):
    @dataclass(frozen=True)
    class Holder:
        repository: object

    @query_handler("repository")
    def give(every: Repository[kind]) -> object:
        return Holder(every)

    give.__annotations__["every"] = Repository[kind]
    registry = Registry()
    registry.add(give)
    registry.add(kind)
    return registry, registry.query_bus.ask(route="repository").repository


class TestRepository:
    def test_get_find_save(self, kind, orders):
        """``get`` raises, ``find`` gives None, ``save`` publishes what was recorded. [M09.2]"""
        registry, repository = _repository_of(kind)
        with pytest.raises(AggregateNotFound):
            repository.get(ONE)
        assert repository.find(ONE) is None
        with Flow(registry=registry) as flow:
            repository.save(kind.place(Place(ONE, "lamp")))

        assert flow.published == [Placed(ONE)]
        assert repository.get(str(ONE)) == orders.get(ONE)

    def test_a_stale_save(self, kind, dispatch, orders):
        """What was read before somebody else's save raises, without ``version=`` too. [M09.2]"""
        _, repository = _repository_of(kind)
        repository.save(kind.place(Place(ONE, "lamp")))
        mine, theirs = repository.get(ONE), repository.get(ONE)
        theirs.title = "theirs"
        repository.save(theirs)
        mine.title = "mine"
        with pytest.raises(ConcurrencyError, match="changed or deleted"):
            repository.save(mine)

        assert orders.get(ONE).title == "theirs"

    def test_delete(self, kind, orders):
        """``delete`` forgets it; saving it again does nothing. [M09.2]"""
        _, repository = _repository_of(kind)
        repository.save(kind.place(Place(ONE, "lamp")))
        found = repository.get(ONE)
        repository.delete(found)
        repository.save(found)

        assert orders.count() == 0


@dataclass(frozen=True)
class Look:
    order_id: UUID | None
    other: UUID | None = None


class TestFetch:
    def test_found_or_absent(self, kind, order):
        """It is given; absent it raises, or is None by the annotation. [M10.1]"""

        @query_handler
        def look(query: Look, order: object, other: object) -> list[object]:
            return [order and order.title, other and other.title]

        look.__annotations__.update(
            order=Annotated[kind, Fetch("order_id")],
            other=Annotated[kind | None, Fetch(Header("other"))],
        )
        registry = Registry()
        registry.add(look)
        ask = registry.query_bus.ask
        assert ask(Look(ONE), headers={"other": TWO}) == ["lamp web", None]
        assert ask(Look(ONE), headers={"other": ONE}) == ["lamp web", "lamp web"]
        with pytest.raises(AggregateNotFound, match="Annotate"):
            ask(Look(TWO), headers={"other": TWO})

    def test_not_saved_by_itself(self, kind, orders, order):
        """A handler that changes what it fetched has to save it. [M10.3]"""

        @command_handler
        def change(command: Look, order: object) -> None:
            order.title = "changed"

        change.__annotations__["order"] = Annotated[kind, Fetch("order_id")]
        registry = Registry()
        registry.add(change)
        registry.command_bus.dispatch(Look(ONE))

        assert orders.get(ONE).title == "lamp web"


def test_what_would_be_lost_is_refused(dispatch, order):
    """A value that its annotation does not say, or NUL: nothing is saved."""
    with pytest.raises(MessageConversionError, match="title"):
        dispatch(Rename(ONE, 7))
    with pytest.raises(MessageConversionError, match="NUL"):
        dispatch(Rename(ONE, "a\0b"))


def test_no_constructor_runs_for_what_is_found():
    """An object that is found is restored, not made."""
    registry = Registry()
    registry.add(PlainOrder)
    registry.command_bus.dispatch(Place(ONE, "lamp"))
    before = PlainOrder.made
    registry.command_bus.dispatch(Rename(ONE, "desk"))

    assert PlainOrder.made == before
