"""Machines for aggregates: each is compared with a plain model of it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from django_cqrs import Send, command_handler
from django_cqrs.documents import document
from django_cqrs.documents.models import Document
from django_cqrs.exceptions import AggregateAlreadyExists, AggregateNotFound
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents
from django_cqrs.testing.machines import AggregateMachine
from tests.modelling import messages as old
from tests.modelling.models import Account, PageCount, Ticket
from tests.outbox.support import SOAKS

FEW = settings(
    max_examples=500 if SOAKS else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    stateful_step_count=12,
    database=None,
)


@dataclass(frozen=True)
class OpenPurse:
    purse_id: UUID


@dataclass(frozen=True)
class PutIn:
    purse_id: UUID
    amount: int


@dataclass(frozen=True)
class TakeOut:
    purse_id: UUID
    amount: int


@dataclass(frozen=True)
class TakenOut:
    purse_id: UUID
    left: int


@dataclass(frozen=True)
class Alarm:
    purse_id: UUID


class Empty(Exception):
    pass


@aggregate
@document("kit.purse")
@dataclass
class Purse(RecordsEvents):
    purse_id: UUID
    amount: int = 0

    @command_handler
    @classmethod
    def open(cls, command: OpenPurse) -> Purse:
        return cls(command.purse_id)

    @command_handler
    def put(self, command: PutIn) -> None:
        self.amount += abs(command.amount)

    @command_handler
    def take(self, command: TakeOut) -> list[Send]:
        if abs(command.amount) > self.amount:
            raise Empty
        self.amount -= abs(command.amount)
        self.record(TakenOut(self.purse_id, self.amount))
        return [Send(Alarm(self.purse_id))] if not self.amount else []


class Purses(AggregateMachine):
    aggregate = Purse
    messages = [OpenPurse, PutIn, TakeOut]
    identifiers = [UUID(int=1), UUID(int=2)]

    def expect(self, amount, message):
        key = message.purse_id
        match message:
            case OpenPurse():
                if amount is not None:
                    raise AggregateAlreadyExists
                return 0, []
            case _ if amount is None:
                raise AggregateNotFound
            case PutIn():
                return amount + abs(message.amount), []
            case TakeOut() if abs(message.amount) > amount:
                raise Empty
            case TakeOut():
                left = amount - abs(message.amount)
                alarms = [] if left else [Alarm(key)]
                return left, [TakenOut(key, left), *alarms]

    def agree(self, amount, purse):
        assert purse.amount == amount


def run(machine, tuned=FEW):
    run_state_machine_as_test(machine, settings=tuned)


def fault_of(machine, error=AssertionError):
    few = settings(FEW, max_examples=200, phases=[Phase.generate, Phase.shrink])
    with pytest.raises(error) as raised:
        run(machine, few)
    return str(raised.value), "\n".join(raised.value.__notes__)


def test_an_aggregate_and_its_model():
    """They agree on refusals, messages and states, whatever comes. [K03.3]"""
    run(Purses)


@pytest.mark.database
@pytest.mark.django_db
def test_on_rows():
    """Real rows agree with the model as well. [K03.3, K03.7]"""

    class OnRows(Purses):
        rows = True

    run(OnRows, settings(FEW, max_examples=100 if SOAKS else 8))

    assert not Document.objects.exists()


@pytest.mark.long
class TestPlantedFaults:
    def test_a_wrong_state(self):
        """An aggregate that forgets something differs from its model. [K03.3]"""

        class Wrong(Purses):
            def agree(self, amount, purse):
                assert purse.amount == min(amount, 5)

        text, notes = fault_of(Wrong)

        assert "assert 6 == " in text
        assert "state.deliver(message=PutIn(" in notes
        assert "UUID('00000000-0000-0000-0000-000000000002')" not in notes

    def test_wrong_messages(self):
        """A message that is missing, or another one, is shown. [K03.3]"""

        class Silent(Purses):
            def expect(self, amount, message):
                return super().expect(amount, message)[0], []

        text, notes = fault_of(Silent)

        assert "the model expects [], the aggregate has sent [TakenOut(" in text
        assert "This is what happened:" in notes

    def test_another_refusal(self):
        """An exception that the model does not raise, or the other way about. [K03.3]"""

        class Generous(Purses):
            def expect(self, amount, message):
                try:
                    return super().expect(amount, message)
                except Empty:
                    return amount, []

        class Strict(Purses):
            def expect(self, amount, message):
                if amount is not None and isinstance(message, PutIn):
                    raise Empty
                return super().expect(amount, message)

        assert "the model says None, the aggregate Empty()." in fault_of(Generous)[0]
        assert "says Empty(), the aggregate None." in fault_of(Strict)[0]

    def test_a_model_of_nothing(self):
        """A model that says that there is no object where there is one. [K03.3]"""

        class Blind(Purses):
            messages = [OpenPurse]

            def expect(self, amount, message):
                return None, []

        assert "the model is None, the object Purse(" in fault_of(Blind)[0]

    def test_methods_that_are_missing(self):
        """A machine says what it compares with what."""

        class Unsaid(AggregateMachine):
            aggregate = Purse

        fault_of(Unsaid, NotImplementedError)


def test_an_account_of_this_suite():
    """A model with a version, whose key is made when it is inserted. [K03.3]"""

    class Accounts(AggregateMachine):
        aggregate = Account
        messages = [
            st.builds(old.OpenAccount, st.just("ada")),
            st.builds(old.Deposit, st.just(1), st.integers(-5, 5)),
        ]

        def expect(self, balance, message):
            if isinstance(message, old.OpenAccount):
                return 0, []
            if balance is None:
                raise AggregateNotFound
            balance += message.amount
            return balance, [old.AccountChanged(message.account_id, balance)]

        def agree(self, balance, account):
            assert account.balance == balance

    run(Accounts)


def test_a_counter_of_this_suite():
    """Factory or action by the same message. [K03.3]"""

    class Pages(AggregateMachine):
        aggregate = PageCount
        messages = [old.CountVisit, old.PageSeen]
        identifiers = ["home", "news"]

        def expect(self, counts, message):
            visits, seen = counts or (0, 0)
            if isinstance(message, old.CountVisit):
                return (visits + message.by, seen), []
            return (visits, seen + 1), []

        def agree(self, counts, page):
            assert (page.visits, page.seen) == counts

    run(Pages)


def test_a_ticket_of_this_suite():
    """Events that are recorded, and an action that makes another object. [K03.3]"""
    one, other = UUID(int=1), UUID(int=2)

    class Tickets(AggregateMachine):
        aggregate = Ticket
        messages = [old.OpenTicket, old.AssignTicket, old.TouchTicket]
        identifiers = [one, other]

        def expect(self, ticket, message):
            key = message.ticket_id
            if isinstance(message, old.OpenTicket):
                if ticket is not None:
                    raise AggregateAlreadyExists
                return (message.title, ""), [old.TicketOpened(key, message.title)]
            if ticket is None:
                raise AggregateNotFound
            title, assignee = ticket
            if isinstance(message, old.TouchTicket):
                return (f"{title}!", assignee), []
            assigned = old.TicketAssigned(key, message.assignee)
            return (title, message.assignee), [assigned]

        def agree(self, ticket, instance):
            assert (instance.title, instance.assignee) == ticket

    run(Tickets)


TestPurses = Purses.TestCase
TestPurses.settings = FEW
