"""Many at once, on a real server: no lost update, one row, exactly the losers raise."""

from __future__ import annotations

import threading
from collections import Counter
from uuid import UUID

import pytest
from django.db import connection, connections

from django_cqrs import (
    DEADLOCKS,
    CommandBus,
    InstantRetry,
    Registry,
    command_bus,
    event_bus,
    event_handler,
)
from django_cqrs.exceptions import AggregateAlreadyExists, ConcurrencyError
from django_cqrs.interception import Proceed, around, pointcut
from tests.modelling.messages import (
    AssignTicket,
    BookSeat,
    CountVisit,
    Deposit,
    OpenAccount,
    OpenTicket,
    OrderPlaced,
)
from tests.modelling.models import Account, Fulfilment, PageCount, Seat, Ticket
from tests.testapp.models import Note

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

THREADS = 20


@pytest.fixture
def server():
    """A database that several transactions write to at a time."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time: nothing can be lost there.")


def at_once(call, number=THREADS):
    """Call a function in many threads at the same moment; return what each gave."""
    start = threading.Barrier(number)
    results = []

    def run(each):
        try:
            start.wait()
            results.append(call(each))
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            results.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(each,)) for each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_no_lost_update(server):
    """20 threads count on one row, each five times: the lock loses none of it. [M07.1]"""
    command_bus.dispatch(CountVisit("home", 0))

    def visit(_each):
        for _ in range(5):
            command_bus.dispatch(CountVisit("home"))

    assert at_once(visit) == [None] * THREADS
    assert PageCount.objects.get().visits == 5 * THREADS


def test_exactly_the_losers_raise(server):
    """With a version field who comes second raises; the winners' work is there. [M07.2]"""
    pk = command_bus.dispatch(OpenAccount("ada"))

    results = at_once(lambda _each: command_bus.dispatch(Deposit(pk, 1)))

    losers = [each for each in results if isinstance(each, ConcurrencyError)]
    winners = [each for each in results if isinstance(each, int)]
    assert len(losers) + len(winners) == THREADS
    account = Account.objects.get()
    assert account.balance == account.version == len(winners) >= 1


def test_retried_they_all_succeed(server):
    """With instant retry each loser loads anew and tries again. [M07.4]"""
    pk = command_bus.dispatch(OpenAccount("ada"))
    bus = CommandBus(instant_retry=InstantRetry(THREADS * 5, on=(ConcurrencyError,)))

    at_once(lambda _each: bus.dispatch(Deposit(pk, 1)))

    assert Account.objects.get().balance == THREADS


def test_concurrent_firsts(server):
    """One creates, all the others act, and nothing is lost. [M03.4]"""
    bus = CommandBus(instant_retry=InstantRetry(THREADS, on=DEADLOCKS))

    results = at_once(lambda _each: bus.dispatch(CountVisit("home")))

    assert Counter(map(type, results)) == {str: 1, int: THREADS - 1}
    assert PageCount.objects.get().visits == THREADS


def test_the_factory_runs_inside_a_savepoint(server):
    """What it writes, publishes and sends goes with its row where somebody was first. [M03.4]"""
    heard = []

    @event_handler
    def listen(event: object) -> None:
        heard.append(event)

    @around(pointcut.message(CountVisit))
    def somebody_is_first(proceed: Proceed, target: object | None):
        if target is None:
            Note.objects.create(text="written by the factory")
            at_once(lambda _each: PageCount.objects.create(page="home", visits=10), 1)
        return proceed()

    registry = Registry()
    for each in (PageCount, listen, somebody_is_first):
        registry.add(each)

    assert registry.command_bus.dispatch(CountVisit("home")) == 11
    assert PageCount.objects.get().visits == 11
    assert not Note.objects.exists()


def test_concurrent_factories(server):
    """Where only a factory takes the message, one row is made and the others raise."""
    results = at_once(lambda each: command_bus.dispatch(BookSeat(1, "A1", str(each))))

    refused = [each for each in results if isinstance(each, AggregateAlreadyExists)]
    assert len(refused) == THREADS - 1, results
    assert Seat.objects.count() == 1


def test_two_concurrent_starts(server):
    """Two events that start one saga at a time leave one row. [M14.6]"""
    results = at_once(lambda _each: event_bus.publish(OrderPlaced(7)), 2)

    assert Fulfilment.objects.count() == 1
    assert sorted(type(each).__name__ for each in results) == [
        "AggregateAlreadyExists",
        "NoneType",
    ]


def test_other_rows_are_not_waited_for(server):
    """A lock is of one row: who acts on another goes on."""
    for number in range(THREADS):
        command_bus.dispatch(OpenTicket(UUID(int=number), "lamp"))

    def assign(number):
        command_bus.dispatch(AssignTicket(UUID(int=number), f"n{number}"))

    assert at_once(assign) == [None] * THREADS
    assert {t.assignee for t in Ticket.objects.all()} == {
        f"n{number}" for number in range(THREADS)
    }
