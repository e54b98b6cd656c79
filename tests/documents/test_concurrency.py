"""Many at once, on a real server: no lost update, one row, exactly the losers raise."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest

from django_cqrs import DEADLOCKS, CommandBus, InstantRetry
from django_cqrs.documents import DocumentStore
from django_cqrs.documents.models import Document
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    ConcurrencyError,
    DocumentAlreadyExists,
)
from tests.documents.kinds import (
    DataclassAccount,
    DataclassOrder,
    DataclassProcess,
    Deposit,
    Import,
    Open,
    Started,
    Visit,
)
from tests.modelling.test_concurrency import THREADS, at_once, server
from tests.support import registry_of

__all__ = ["server"]  # a fixture

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

ONE = UUID(int=1)


def test_no_lost_update(server):
    """20 threads count on one document, each five times: the lock loses none of it. [M11.2]"""
    dispatch = registry_of(DataclassOrder).command_bus.dispatch
    dispatch(Visit(ONE, 0))

    def visit(_each):
        for _ in range(5):
            dispatch(Visit(ONE))

    assert at_once(visit) == [None] * THREADS
    assert DocumentStore(DataclassOrder).get(ONE).visits == 5 * THREADS


def test_exactly_the_losers_raise(server):
    """With ``version=`` who comes second raises; the winners' work is there. [M11.2]"""
    dispatch = registry_of(DataclassAccount).command_bus.dispatch
    dispatch(Open(7))

    results = at_once(lambda _each: dispatch(Deposit(7, 1)))

    losers = [each for each in results if isinstance(each, ConcurrencyError)]
    winners = [each for each in results if isinstance(each, int)]
    assert len(losers) + len(winners) == THREADS, results
    account = DocumentStore(DataclassAccount).get(7)
    assert account.balance == account.version == len(winners) >= 1


def test_retried_they_all_succeed(server):
    """With instant retry each loser loads anew and tries again. [M11.2]"""
    registry = registry_of(DataclassAccount)
    registry.command_bus.dispatch(Open(7))
    retry = InstantRetry(THREADS * 5, on=(ConcurrencyError,))
    bus = CommandBus(instant_retry=retry, registry=registry)

    at_once(lambda _each: bus.dispatch(Deposit(7, 1)))

    assert DocumentStore(DataclassAccount).get(7).balance == THREADS


def test_concurrent_firsts(server):
    """One creates, all the others act, and nothing is lost. [M03.4]"""
    registry = registry_of(DataclassOrder)
    retry = InstantRetry(THREADS, on=DEADLOCKS)
    bus = CommandBus(instant_retry=retry, registry=registry)

    results = at_once(lambda _each: bus.dispatch(Visit(ONE)))

    assert Counter(map(type, results)) == {UUID: 1, int: THREADS - 1}
    assert DocumentStore(DataclassOrder).get(ONE).visits == THREADS


def test_concurrent_factories(server):
    """Where only a factory takes the message, one row is made and the others raise."""
    dispatch = registry_of(DataclassOrder).command_bus.dispatch

    results = at_once(lambda _each: dispatch(Import(ONE)))

    refused = [each for each in results if isinstance(each, AggregateAlreadyExists)]
    assert len(refused) == THREADS - 1, results
    assert Document.objects.count() == 1


def test_two_concurrent_starts(server):
    """Two events that start one saga at a time leave one document. [M14.8]"""
    publish = registry_of(DataclassProcess).event_bus.publish

    results = at_once(lambda _each: publish(Started(7)), 2)

    assert Document.objects.count() == 1
    assert sorted(type(each).__name__ for each in results) == [
        "AggregateAlreadyExists",
        "NoneType",
    ]


def test_concurrent_adds_and_upserts(server):
    """One ``add`` wins; an ``upsert`` never fails for another one's. [M11.1]"""
    numbers = DocumentStore(int, collection="papers.numbers")

    added = at_once(lambda each: numbers.add("a", each))
    assert Counter(map(type, added)) == {
        type(None): 1,
        DocumentAlreadyExists: THREADS - 1,
    }
    assert at_once(lambda each: numbers.upsert("b", each)) == [None] * THREADS
    assert numbers.count() == 2
