"""Scenarios of aggregates and sagas that are their events, without a database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated
from uuid import UUID

import pytest
from django.test import SimpleTestCase
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from django_cqrs import Header, Send, command_handler, event_handler, message
from django_cqrs.events import Stored, applies, event_stream
from django_cqrs.events.models import StoredEvent
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
    InvalidOption,
    MessageConversionError,
)
from django_cqrs.modelling import Repository, Saga, aggregate, saga
from django_cqrs.models import RecordsEvents
from django_cqrs.testing import scenario
from django_cqrs.testing.machines import AggregateMachine, SagaMachine, invariant
from tests.events import baskets as old
from tests.outbox.support import SOAKS

KEY, OTHER = UUID(int=1), UUID(int=2)


@message("sourced.registered")
@dataclass(frozen=True)
class Registered:
    member_id: int
    name: str


@message("sourced.renamed")
@dataclass(frozen=True)
class Renamed:
    name: str  # whose it is, its stream says


@message("sourced.odd")
@dataclass(frozen=True)
class Odd:
    value: object


@dataclass(frozen=True)
class Register:
    member_id: int
    name: str


@dataclass(frozen=True)
class Rename:
    member_id: int
    name: str


@dataclass(frozen=True)
class Merge:
    member_id: int
    other: int


@aggregate
@event_stream("sourced.member", natural_key="name")
@dataclass
class Member(RecordsEvents):
    """Records its events; a name belongs to one only."""

    member_id: int | None = None
    name: str | None = None
    renamed_by: list[str] = field(default_factory=list)

    @command_handler
    @classmethod
    def register(cls, command: Register) -> Member:
        member = cls()
        member.record(Registered(command.member_id, command.name))
        return member

    @command_handler
    def rename(self, command: Rename) -> list[Send]:
        self.record(Stored(Renamed(command.name), headers={"by": "boss"}))
        return [Send(Merge(self.member_id, 1))] if command.name == "send" else []

    @command_handler("sourced.odd")
    def be_odd(self) -> None:
        self.record(Odd(object()))

    @command_handler("sourced.forget")
    def forget(self, members: Repository[Member]) -> None:
        members.delete(self)

    @applies
    def registered(self, event: Registered) -> None:
        self.member_id, self.name = event.member_id, event.name

    @applies
    def renamed(
        self, event: Renamed, by: Annotated[str, Header("by")] = "nobody"
    ) -> None:
        self.name = event.name
        self.renamed_by = [*self.renamed_by, by]

    @applies
    def odd(self, event: Odd) -> None: ...


@dataclass(frozen=True)
class Ordered:
    order_id: int


@dataclass(frozen=True)
class Paid:
    order_id: int


@dataclass(frozen=True)
class Ship:
    order_id: int


@dataclass(frozen=True)
class GiveUp:
    order_id: int


@message("sourced.process_begun")
@dataclass(frozen=True)
class Begun:
    order_id: int


@saga
@event_stream("sourced.process")
@dataclass
class Process(RecordsEvents, Saga):
    """A saga that is its events; they tell its own timer, too."""

    process_id: int | None = None

    @event_handler
    @classmethod
    def start(cls, event: Ordered) -> Process:
        process = cls()
        process.record(Begun(event.order_id))
        process.send(GiveUp(event.order_id), delay=timedelta(days=1))
        return process

    @event_handler(identifier="order_id")
    def pay(self, event: Paid) -> None:
        self.send(Ship(event.order_id))
        self.complete()

    @command_handler(channel="outbox", identifier="order_id", on_missing="ignore")
    def give_up(self, command: GiveUp) -> None:
        self.complete()

    @applies
    def begun(self, event: Begun) -> None:
        self.process_id = event.order_id


@pytest.mark.parametrize("basket", old.BASKETS)
def test_given_events(basket):
    """The events of its history, a command, the events that it returns. [E35.1]"""
    begun = scenario(basket).given(old.Opened(KEY), old.Added(KEY, "cup"))

    begun.when(old.Add(KEY, "tea")).then(old.Added(KEY, "tea"))
    begun.state(lambda found: list(found.items) == ["cup", "tea"])
    begun.when(old.Add(KEY, "tea")).nothing()
    begun.when(old.AddAll(KEY, ["a", "b"])).then(
        old.Added(KEY, "a"), old.Added(KEY, "b")
    )
    assert begun.when(old.Count(KEY)).result == 4


def test_a_factory():
    """Its events make the object; the result is the identifier. [E35.1]"""
    begun = scenario(old.Basket).when(old.Open(KEY, ("tea",)))

    begun.then(old.Opened(KEY), old.Added(KEY, "tea"))
    assert begun.result == KEY
    begun.when(old.Open(KEY)).raises(AggregateAlreadyExists)
    begun.when(old.Add(OTHER, "tea")).raises(AggregateNotFound)


def test_raises_and_a_wrong_event():
    """Nothing is kept of what failed; a wrong event shows the difference. [E35.1]"""
    begun = scenario(old.Basket).given(old.Opened(KEY))

    begun.when(old.Fail(KEY)).raises(RuntimeError, "no").nothing()
    begun.when(old.Add(KEY, "tea"))
    with pytest.raises(AssertionError) as raised:
        begun.then(old.Added(KEY, "milk"))
    assert "First difference: sku is 'tea', not 'milk'." in str(raised.value)


def test_recorded_events():
    """An object that records applies its events at once, with their headers. [E35.1]"""
    begun = scenario(Member).when(Register(1, "ada")).then(Registered(1, "ada"))

    begun.when(Rename(1, "bob")).then(Renamed("bob"))
    begun.state(lambda member: (member.name, member.renamed_by) == ("bob", ["boss"]))
    begun.when(Rename(1, "send")).then(Renamed("send"), Merge(1, 1))


def test_events_without_the_identifier():
    """They belong to the object that was given before. [E35.1]"""
    begun = scenario(Member).given(Registered(1, "ada"), Renamed("eve"))

    begun.given(Registered(2, "bob"), Renamed("joe")).state(
        lambda member: (member.member_id, member.name) == (2, "joe")
    )
    begun.when(Rename(1, "zoe")).state(lambda member: member.name == "zoe")


def test_events_that_cannot_be_stored():
    """They fail as an append would. [E35.1]"""
    begun = scenario(Member).given(Registered(1, "ada"))

    begun.when(Send(route="sourced.odd", aggregate_id=1)).raises(
        MessageConversionError, "value"
    )
    begun.state(lambda member: member.name == "ada")


def test_a_natural_key():
    """It finds the object, and belongs to one."""
    begun = scenario(Member).given(Registered(1, "ada"), Registered(2, "bob"))

    begun.when(Register(3, "ada")).raises(AggregateAlreadyExists, "name=ada")
    begun.when(Rename(2, "ada")).raises(AggregateAlreadyExists, "name=ada")
    begun.when(Send(route="sourced.forget", aggregate_id=1)).nothing()
    begun.when(Register(3, "ada")).then(Registered(3, "ada"))
    begun.when(Rename(1, "tom")).raises(AggregateNotFound)


def test_a_saga():
    """Its end is no message of it, and cancels nothing that was sent. [E35.1]"""
    paid = scenario(Process).given(Ordered(7)).when(Paid(7)).then(Ship(7))

    paid.state(lambda process: process.completed_at is not None)
    paid.when(Paid(7)).raises(AggregateNotFound, "is completed")
    paid.after(days=2).nothing()
    late = scenario(Process).when(Ordered(8)).then(Begun(8)).after(days=1).nothing()
    late.state(lambda process: process.completed_at is not None)


def test_bad_input():
    """An object instead of its events, and events that make none."""
    with pytest.raises(InvalidOption, match="made of its events: give these"):
        scenario(Member).given(Member(1, "ada"))
    with pytest.raises(AssertionError) as raised:
        scenario(Member).given(Renamed("ada"))
    assert isinstance(raised.value.__cause__, InvalidIdentifier)
    with pytest.raises(InvalidOption, match="no handler for Renamed"):
        scenario(Member).given(Registered(1, "ada")).when(Renamed("bob"))
    assert issubclass(ConcurrencyError, Exception)


class WithoutADatabase(SimpleTestCase):
    def test_no_query(self):
        """Django's SimpleTestCase refuses every query. [E35.1]"""
        scenario(old.Basket).given(old.Opened(KEY)).when(old.Add(KEY, "tea")).then(
            old.Added(KEY, "tea")
        )


FEW = settings(
    max_examples=500 if SOAKS else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    stateful_step_count=12,
    database=None,
)


class Baskets(AggregateMachine):
    aggregate = old.Basket
    messages = [
        st.builds(old.Open, st.sampled_from([KEY, OTHER]), st.just(())),
        st.builds(old.Add, st.sampled_from([KEY, OTHER]), st.sampled_from("abc")),
    ]

    def expect(self, items, message):
        key = message.basket_id
        if isinstance(message, old.Open):
            if items is not None:
                raise AggregateAlreadyExists
            return [], [old.Opened(key)]
        if items is None:
            raise AggregateNotFound
        if message.sku in items:
            return items, []
        return [*items, message.sku], [old.Added(key, message.sku)]

    def agree(self, items, basket):
        assert basket.items == items


class Processes(SagaMachine):
    saga = Process
    messages = [Ordered, Paid]

    @invariant()
    def shipped_once(self):
        assert self.count(Ship) <= 1
        assert len(self.objects) <= 1


def test_machines_of_events():
    """An aggregate and a saga that are their events, in memory. [K03.3]"""
    run_state_machine_as_test(Baskets, settings=FEW)
    run_state_machine_as_test(Processes, settings=FEW)


@pytest.mark.database
@pytest.mark.django_db
def test_machines_of_stored_events():
    """The same with the store of the project. [K03.7]"""

    class OnRows(Baskets):
        rows = True

    class Stored(Processes):
        rows = True

    few = settings(FEW, max_examples=100 if SOAKS else 5)
    run_state_machine_as_test(OnRows, settings=few)
    run_state_machine_as_test(Stored, settings=few)

    assert not StoredEvent.objects.exists()
