"""Aggregates against a plain-Python model of them, whatever is done in whatever order."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from django_cqrs import CommandBus, Registry, command_handler, event_handler
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
)
from tests.modelling.messages import (
    AccountChanged,
    AssignTicket,
    CountVisit,
    DeleteTicket,
    Deposit,
    FailTicket,
    ImportTicket,
    MoveTicket,
    NoteTicket,
    OpenAccount,
    OpenTicket,
    SplitTicket,
    TicketAssigned,
    TicketDeleted,
    TicketOpened,
    TouchTicket,
)
from tests.modelling.models import Account, PageCount, Ticket
from tests.outbox.support import examples
from tests.testapp.models import Note

pytestmark = [
    pytest.mark.database,
    pytest.mark.long,
    pytest.mark.django_db(transaction=True),
]

# Without the search for a smaller example, which takes minutes where rows are real.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
if os.environ.get("CQRS_SHRINK") == "1":
    PHASES = list(Phase)

LONGEST = 80  # of a title


class Boom(Exception):
    pass


@dataclass(frozen=True)
class Close:
    """Sent by its key, with ``aggregate_id=``."""

    ticket_id: UUID


@dataclass(frozen=True)
class Batch:
    """Commands within a command: the failure of some is caught, others end it all."""

    steps: tuple[tuple[Any, bool], ...]
    is_failing: bool


def send(bus, command):
    if isinstance(command, Close):
        return bus.dispatch(route="ticket.close", aggregate_id=command.ticket_id)
    return bus.dispatch(command)


@command_handler
def run_batch(command: Batch, commands: CommandBus) -> list:
    results = []
    for step, is_caught in command.steps:
        try:
            results.append(send(commands, step))
        except Exception as error:
            if not is_caught:
                raise
            results.append(type(error))
    if command.is_failing:
        raise Boom
    return results


@event_handler(priority=1)
def remember(event: object) -> None:
    Note.objects.create(text=repr(event))


@event_handler
def explode(event: TicketAssigned) -> None:
    if event.assignee == "bomb":
        raise Boom


# ------------------------------------------------------------- what should come of it


@dataclass(frozen=True)
class Row:
    title: str
    queue: str
    assignee: str = ""
    is_closed: bool = False


@dataclass
class World:
    """What there is, in dictionaries: for each command a method of its name."""

    tickets: dict[UUID, Row] = field(default_factory=dict)
    pages: dict[str, int] = field(default_factory=dict)
    accounts: dict[int, tuple[int, int]] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)

    def handle(self, command):
        """Return the result; a failure leaves everything as it was."""
        before = copy.deepcopy(self.__dict__)
        try:
            return getattr(self, type(command).__name__)(command)
        except Exception:
            self.__dict__.update(before)
            raise

    def ticket(self, key):
        row = self.tickets.get(key)
        if row is None or row.queue == "hidden":  # by the model's default manager
            raise AggregateNotFound
        return row

    def change(self, key, **fields):
        row = self.ticket(key)
        self.tickets[key] = replace(row, **fields)
        return row

    def assigned(self, key, assignee):
        self.events.append(TicketAssigned(key, assignee))
        if assignee == "bomb":
            raise Boom

    def insert(self, key, row):
        if key in self.tickets:
            raise AggregateAlreadyExists
        self.tickets[key] = row
        return key

    def OpenTicket(self, command):
        self.insert(command.ticket_id, Row(command.title, "web"))
        self.events.append(TicketOpened(command.ticket_id, command.title))
        return command.ticket_id

    def ImportTicket(self, command):
        # Its factory saves by itself, which is an UPDATE where the row is there.
        self.tickets[command.ticket_id] = Row("imported", "imported")
        return command.ticket_id

    def AssignTicket(self, command):
        before = self.change(command.ticket_id, assignee=command.assignee)
        self.assigned(command.ticket_id, command.assignee)
        return before.assignee

    def FailTicket(self, command):
        self.ticket(command.ticket_id)
        raise RuntimeError

    def DeleteTicket(self, command):
        self.ticket(command.ticket_id)
        del self.tickets[command.ticket_id]
        self.events.append(TicketDeleted(command.ticket_id))

    def SplitTicket(self, command):
        title = f"{self.ticket(command.ticket_id).title} (1)"
        self.change(command.ticket_id, title=title)
        self.insert(command.new_id, Row(f"{title} (2)", "web"))
        self.assigned(command.ticket_id, "split")
        self.events.append(TicketOpened(command.new_id, f"{title} (2)"))
        return command.new_id

    def TouchTicket(self, command):
        title = f"{self.ticket(command.ticket_id).title}!"
        self.change(command.ticket_id, title=title)
        return command.ticket_id

    def NoteTicket(self, command):
        self.change(command.ticket_id, title=command.note)
        self.assigned(command.ticket_id, "noted")

    def MoveTicket(self, command):
        self.change(command.ticket, queue=command.queue)

    def Close(self, command):
        self.change(command.ticket_id, is_closed=True)
        self.assigned(command.ticket_id, "closed")

    def CountVisit(self, command):
        if command.page is None:
            raise AggregateNotFound
        if command.page not in self.pages:
            self.pages[command.page] = command.by
            return command.page
        self.pages[command.page] += command.by
        return self.pages[command.page]

    def Deposit(self, command):
        if command.account_id not in self.accounts:
            raise AggregateNotFound
        balance, version = self.accounts[command.account_id]
        if command.seen not in (None, version):
            raise ConcurrencyError
        balance += command.amount
        self.accounts[command.account_id] = balance, version + 1
        self.events.append(AccountChanged(command.account_id, balance))
        return balance

    def Batch(self, command):
        results = []
        for step, is_caught in command.steps:
            try:
                results.append(self.handle(step))
            except Exception as error:
                if not is_caught:
                    raise
                results.append(type(error))
        if command.is_failing:
            raise Boom
        return results

    def is_too_long(self):
        return any(len(row.title) > LONGEST - 10 for row in self.tickets.values())


# ------------------------------------------------------------------- what is done

keys = st.sampled_from([UUID(int=number) for number in range(1, 4)])
names = st.sampled_from(["ada", "bob", "bomb"])
commands = st.one_of(
    st.builds(OpenTicket, keys, st.sampled_from(["lamp", "desk"])),
    st.builds(ImportTicket, keys),
    st.builds(AssignTicket, keys, names),
    st.builds(FailTicket, keys),
    st.builds(DeleteTicket, keys),
    st.builds(SplitTicket, keys, keys),
    st.builds(TouchTicket, keys),
    st.builds(NoteTicket, keys, st.sampled_from(["", "noted"])),
    st.builds(MoveTicket, keys, st.sampled_from(["web", "web", "hidden"])),
    st.builds(Close, keys),
    st.builds(CountVisit, st.sampled_from(["home", "news", None]), st.integers(-2, 3)),
    # Whose numbers are, or are not, those of accounts.
    st.builds(
        Deposit,
        st.integers(1, 4),
        st.integers(-5, 5),
        st.sampled_from([None, None, 0, 1]),
    ),
)


def batches(steps):
    step = st.tuples(steps, st.sampled_from([True, True, False]))
    several = st.lists(step, min_size=1, max_size=4).map(tuple)
    return st.builds(Batch, several, st.sampled_from([False, False, True]))


nested = st.recursive(commands, batches, max_leaves=8)


class Aggregates(RuleBasedStateMachine):
    """The same is done with rows and with dictionaries; both agree on everything."""

    def __init__(self):
        super().__init__()
        self.registry = Registry()
        for each in (Ticket, PageCount, Account, run_batch, remember, explode):
            self.registry.add(each)
        self.bus = self.registry.command_bus
        self.world = World()
        self.numbers = {}  # of accounts, by what commands call them

    def translated(self, command):
        """Return a command with the account's real number in it."""
        if isinstance(command, Deposit):
            number = self.numbers.get(command.account_id, -command.account_id)
            return replace(command, account_id=number)
        if isinstance(command, Batch):
            steps = tuple((self.translated(each), how) for each, how in command.steps)
            return replace(command, steps=steps)
        return command

    def do(self, command):
        """Do it in both worlds; their results, or failures, are the same."""
        command = self.translated(command)
        expected = found = None
        try:
            expected = self.world.handle(command)
        except Exception as error:  # noqa: BLE001 - it is what is compared
            expected = type(error)
        try:
            found = send(self.bus, command)
        except Exception as error:  # noqa: BLE001 - it is what is compared
            found = type(error)
        assert found == expected, command

    def can_do(self, given):
        """Return whether no title would become longer than its column."""
        world = copy.deepcopy(self.world)
        for each in given:
            try:
                world.handle(self.translated(each))
            except Exception:  # noqa: BLE001 - it is left as it was
                continue
            if world.is_too_long():
                return False
        return not world.is_too_long()

    @rule(command=nested)
    def dispatch(self, command):
        if self.can_do([command]):
            self.do(command)

    @rule()
    def open_account(self):
        if len(self.numbers) < 3:
            number = self.bus.dispatch(OpenAccount("ada"))
            self.numbers[len(self.numbers) + 1] = number
            self.world.accounts[number] = 0, 0

    @rule(given=st.lists(nested, min_size=1, max_size=3), is_committed=st.booleans())
    def in_a_transaction(self, given, is_committed):
        """Failures inside a transaction of the caller's own leave it usable."""
        if not self.can_do(given):
            return
        before = copy.deepcopy(self.world)
        try:
            with transaction.atomic():
                for each in given:
                    self.do(each)
                self.rows_and_events_agree()
                if not is_committed:
                    raise Boom
        except Boom:
            self.world = before

    @invariant()
    def rows_and_events_agree(self):
        rows = {
            ticket.pk: Row(
                ticket.title, ticket.queue, ticket.assignee, ticket.is_closed
            )
            for ticket in Ticket._base_manager.all()
        }
        assert rows == self.world.tickets
        assert dict(PageCount.objects.values_list("page", "visits")) == self.world.pages
        assert {
            each.pk: (each.balance, each.version) for each in Account.objects.all()
        } == self.world.accounts
        notes = Note.objects.order_by("pk").values_list("text", flat=True)
        assert list(notes) == [repr(event) for event in self.world.events]

    def teardown(self):
        for manager in (
            *(Ticket._base_manager, PageCount.objects),
            *(Account.objects, Note.objects),
        ):
            manager.all().delete()


def test_rows_events_and_results_agree_with_a_model(say):
    """Hypothesis looks for commands, failures and rollbacks after which they do not."""
    run_state_machine_as_test(
        Aggregates,
        settings=settings(
            max_examples=examples(say),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )
