"""Aggregates on Django models: made, found, called, kept, listened to."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection, transaction
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.state import ModelState
from django.test.utils import CaptureQueriesContext

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    Headers,
    InstantRetry,
    Message,
    Registry,
    command_bus,
    command_handler,
    event_bus,
    event_handler,
    query_bus,
)
from django_cqrs.documents import document
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
    InvalidOption,
)
from django_cqrs.interception import Proceed, after, around, before, pointcut
from django_cqrs.modelling import aggregate
from django_cqrs.testing.flow import Flow
from tests.modelling.messages import (
    AccountChanged,
    AccountClosed,
    AccountRenamed,
    AccountReopened,
    AddVehicle,
    AssignTicket,
    BlockCard,
    BookSeat,
    Counted,
    CountVisit,
    DeleteTicket,
    Deposit,
    FailTicket,
    FreeSeat,
    ImportTicket,
    IssueCard,
    LoadTruck,
    MoveTicket,
    NoteTicket,
    OpenAccount,
    OpenTicket,
    PageSeen,
    RenamePost,
    SplitTicket,
    TicketAssigned,
    TicketDeleted,
    TicketOpened,
    TouchTicket,
    WritePost,
)
from tests.modelling.models import (
    Account,
    Card,
    PageCount,
    Post,
    Seat,
    Tally,
    Ticket,
    Truck,
)

pytestmark = [
    pytest.mark.django_db(databases=["default", "other"]),
    pytest.mark.database,
]

ONE = UUID(int=1)
TWO = UUID(int=2)


@pytest.fixture
def ticket():
    return Ticket.objects.create(ticket_id=ONE, title="lamp", assignee="ada")


def statements(captured, word):
    return [q["sql"] for q in captured if q["sql"].lstrip().upper().startswith(word)]


class TestFactories:
    def test_a_uuid_key_is_the_result(self):
        """The instance is inserted once, without an UPDATE; its pk is the result. [M01.1]"""
        with CaptureQueriesContext(connection) as captured:
            result = command_bus.dispatch(OpenTicket(ONE, "lamp"))

        assert result == ONE
        assert Ticket.objects.get().title == "lamp"
        assert len(statements(captured, "INSERT")) == 1
        assert statements(captured, "UPDATE") == []

    def test_also_when_it_saved_itself(self):
        """What it changed after its own save is kept all the same. [M01.1]"""
        with CaptureQueriesContext(connection) as captured:
            result = command_bus.dispatch(ImportTicket(ONE))

        assert result == ONE
        assert Ticket.objects.get().queue == "imported"
        assert len(statements(captured, "INSERT")) == 1

    def test_an_auto_increment_key(self):
        """The database's own number is the result. [M01.1]"""
        result = command_bus.dispatch(OpenAccount("ada"))

        assert result == Account.objects.get().pk

    def test_a_composite_key(self):
        """The result is the tuple that Django calls its pk. [M01.1]"""
        assert command_bus.dispatch(BookSeat(7, "A1", "ada")) == (7, "A1")
        assert Seat.objects.get().guest == "ada"

    def test_of_two_tables(self):
        """A child of a concrete model is inserted in both. [M01.1]"""
        pk = command_bus.dispatch(AddVehicle("B 1"))

        assert Truck.objects.get(pk=pk).plate == "B 1"

    def test_header_and_service_parameters_work(self):
        """A factory's other parameters are filled as any handler's. [M01.2]"""
        command_bus.dispatch(OpenTicket(ONE, "lamp"), headers={"source": "phone"})

        assert Ticket.objects.get().queue == "phone"

    def test_two_factories_for_two_commands(self):
        """Each command has its own. [M01.3]"""
        command_bus.dispatch(OpenTicket(ONE, "lamp"))
        command_bus.dispatch(ImportTicket(TWO))

        titles = dict(Ticket.objects.values_list("pk", "title"))
        assert titles == {ONE: "lamp", TWO: "imported"}

    def test_an_identifier_that_exists(self, ticket):
        """It raises, and the row that is there stays as it is. [M01.5]"""
        with pytest.raises(AggregateAlreadyExists) as raised, transaction.atomic():
            command_bus.dispatch(OpenTicket(ONE, "other"))

        assert str(raised.value) == (f"Ticket with ticket_id={ONE} exists already.")
        assert Ticket.objects.get().title == "lamp"

    def test_a_unique_field_that_exists(self):
        """Likewise where another field is the identifier. [M01.5]"""
        Post.objects.create(slug="news")
        with pytest.raises(AggregateAlreadyExists), transaction.atomic():
            command_bus.dispatch(WritePost("news"))

        assert Post.objects.count() == 1

    def test_a_composite_key_that_exists(self):
        """Likewise where two columns are. [M01.5]"""
        command_bus.dispatch(BookSeat(7, "A1", "ada"))
        with pytest.raises(AggregateAlreadyExists), transaction.atomic():
            command_bus.dispatch(BookSeat(7, "A1", "bob"))

        assert Seat.objects.get().guest == "ada"

    def test_another_unique_violation_is_the_databases_own(self):
        """Only the identifier means that the aggregate exists."""
        from django.db import IntegrityError

        command_bus.dispatch(AddVehicle("B 1"))
        with pytest.raises(IntegrityError), transaction.atomic():
            command_bus.dispatch(AddVehicle("B 1"))


class TestActions:
    def test_loaded_called_saved_with_one_update(self, ticket):
        """One SELECT, one UPDATE, and the method's value is returned. [M02.1]"""
        with CaptureQueriesContext(connection) as captured:
            result = command_bus.dispatch(AssignTicket(ONE, "bob"))

        assert result == "ada"
        assert Ticket.objects.get().assignee == "bob"
        assert len(statements(captured, "SELECT")) == 1
        assert len(statements(captured, "UPDATE")) == 1

    def test_one_update_per_table(self):
        """Of a child of a concrete model both tables are updated, once. [M02.1]"""
        pk = command_bus.dispatch(AddVehicle("B 1"))
        with CaptureQueriesContext(connection) as captured:
            command_bus.dispatch(LoadTruck(pk, 3))

        truck = Truck.objects.get()
        assert (truck.plate, truck.tons) == ("B 1+", 3)
        assert len(statements(captured, "UPDATE")) == 2

    def test_no_identifier_in_the_message(self, ticket):
        """The error says how to give one. [M02.2]"""
        with pytest.raises(AggregateNotFound) as raised:
            command_bus.dispatch(route="ticket.close")

        assert str(raised.value) == (
            "Ticket.close could not be routed to its Ticket: the message has no "
            "identifier. The message has no value for ticket_id. Give aggregate_id=, "
            "let the message have an attribute with that name, mark one with "
            "Annotated[..., Identifier('ticket_id')], or give the handler "
            "identifier=."
        )

    def test_no_identifier_of_several_parts(self):
        """The error tells how to give each part. [M02.2]"""
        with pytest.raises(AggregateNotFound) as raised:
            command_bus.dispatch(route="seat.remove")

        assert str(raised.value) == (
            "Seat.remove could not be routed to its Seat: the message has no "
            "identifier. The message has no value for show and seat. Give "
            "aggregate_id=, let the message have attributes with those names, mark "
            "them with Annotated[..., Identifier('show')] and Annotated[..., "
            "Identifier('seat')], or give the handler identifier=."
        )

    def test_unknown(self):
        """The error names class, method and identifier; nothing is saved. [M02.2]"""
        with pytest.raises(AggregateNotFound) as raised:
            command_bus.dispatch(AssignTicket(TWO, "bob"))

        assert str(raised.value) == (
            f"Ticket.assign was not called: there is no Ticket with ticket_id={TWO}."
        )
        assert not Ticket.objects.exists()

    def test_the_default_manager_decides(self):
        """What the manager hides is not there. [M02.2]"""
        Ticket(ticket_id=ONE, queue="hidden").save()
        with pytest.raises(AggregateNotFound):
            command_bus.dispatch(AssignTicket(ONE, "bob"))

    def test_an_exception(self, ticket):
        """Nothing is saved, nothing published; it reaches the caller unchanged. [M02.3]"""
        with Flow() as flow, pytest.raises(RuntimeError, match=r"^no$"):
            command_bus.dispatch(FailTicket(ONE))

        assert Ticket.objects.get().assignee == "ada"
        assert flow.published == []

    def test_by_key_with_aggregate_id(self, ticket):
        """The identifier is given by the call, and passes on to nobody. [M02.4]"""
        seen = []

        @event_handler
        def listen(event: TicketAssigned, headers: Headers) -> None:
            seen.append(dict(headers))

        registry = Registry()
        registry.add(Ticket)
        registry.add(listen)
        registry.command_bus.dispatch(
            route="ticket.close", aggregate_id=ONE, headers={"user": "ada"}
        )

        assert Ticket.objects.get().is_closed
        (headers,) = seen
        assert headers["aggregate_id"] == ONE  # the one that recorded it
        assert headers["user"] == "ada"

        @event_handler
        def pass_on(event: TicketAssigned, events: EventBus) -> None:
            events.publish(PageSeen("x"))

        @event_handler
        def listen_again(event: PageSeen, headers: Headers) -> None:
            seen.append(dict(headers))

        for each in (pass_on, listen_again):
            registry.add(each)
        registry.command_bus.dispatch(route="ticket.close", aggregate_id=ONE)
        assert [name for name in seen[-1] if name.startswith("aggregate_")] == []

    def test_deleted_by_its_handler(self, ticket):
        """It is not saved; its events are published. [M02.5]"""
        with Flow() as flow:
            command_bus.dispatch(DeleteTicket(ONE))

        assert not Ticket.objects.exists()
        assert flow.published == [TicketDeleted(ONE)]

    def test_its_events_still_say_whose_they_are(self, ticket):
        """An object that is gone no longer has a key: the one it had is told. [M02.5]"""
        seen = []

        @event_handler
        def listen(event: TicketDeleted, headers: Headers) -> None:
            seen.append(headers["aggregate_id"])

        registry = Registry()
        registry.add(Ticket)
        registry.add(listen)
        registry.command_bus.dispatch(DeleteTicket(ONE))

        assert seen == [ONE]

    def test_with_a_composite_key(self):
        """Of which ``delete()`` takes every part. [M02.5]"""
        command_bus.dispatch(BookSeat(7, "A1", "ada"))
        command_bus.dispatch(route="seat.remove", aggregate_id=(7, "A1"))

        assert not Seat.objects.exists()

    def test_saved_by_its_handler_as_well(self, ticket):
        """That it saves itself does no harm."""
        command_bus.dispatch(NoteTicket(ONE, "dark"))

        assert Ticket.objects.get().title == "dark"

    def test_full_clean_on_request(self):
        """The model's own validation refuses, and nothing is saved."""
        Post.objects.create(slug="news", title="old")
        with pytest.raises(ValidationError) as raised:
            command_bus.dispatch(RenamePost("news", "longer than ten"))

        assert list(raised.value.message_dict) == ["title"]
        assert Post.objects.get().title == "old"

    def test_aggregate_id_for_a_factory_is_refused(self):
        """Nobody can say which object a factory makes."""
        with pytest.raises(InvalidOption, match="makes a new object"):
            command_bus.dispatch(OpenTicket(ONE, "lamp"), aggregate_id=TWO)


class TestFactoryOrAction:
    def test_first_creates_the_second_acts(self):
        """One command: the factory where there is none, the action where there is. [M03.1]"""
        assert command_bus.dispatch(CountVisit("home")) == "home"
        assert command_bus.dispatch(CountVisit("home", 3)) == 4
        assert PageCount.objects.get().visits == 4

    def test_the_same_for_events(self):
        """Each published event is handled once. [M03.1]"""
        event_bus.publish(PageSeen("home"))
        event_bus.publish(PageSeen("home"))

        assert PageCount.objects.get().seen == 2

    def test_a_missing_identifier_creates_nothing(self):
        """It raises, and does not fall through to the factory. [M03.3]"""
        with pytest.raises(AggregateNotFound):
            command_bus.dispatch(CountVisit(None))

        assert not PageCount.objects.exists()


class TestRecordedEvents:
    def test_published_after_the_save(self, ticket):
        """A handler that reads the row sees what the action changed. [M04.1]"""
        seen = []

        @event_handler
        def read(event: TicketAssigned) -> None:
            seen.append(Ticket.objects.get(pk=event.ticket_id).assignee)

        registry = Registry()
        registry.add(Ticket)
        registry.add(read)
        registry.command_bus.dispatch(AssignTicket(ONE, "bob"))

        assert seen == ["bob"]

    def test_in_order_and_emptied(self, ticket):
        """A second save publishes nothing. [M04.2]"""
        with Flow() as flow:
            command_bus.dispatch(SplitTicket(ONE, TWO))
            command_bus.dispatch(TouchTicket(ONE))

        assert flow.published == [
            TicketAssigned(ONE, "split"),
            TicketOpened(TWO, "lamp (1) (2)"),
        ]

    def test_their_headers(self):
        """Identifier, type, version of the aggregate, and what is passed on. [M04.3]"""
        pk = command_bus.dispatch(OpenAccount("ada"))
        with Flow() as flow:
            command_bus.dispatch(Deposit(pk, 5), headers={"user": "ada"})

        message = flow.messages[-1][1]
        assert message.payload == AccountChanged(pk, 5)
        headers = dict(message.headers)
        assert headers["aggregate_id"] == pk
        assert headers["aggregate_type"] == "modelling.Account"
        assert headers["aggregate_version"] == 1
        assert headers["user"] == "ada"
        assert headers["causation_id"] == flow.messages[0][1].message_id

    def test_recorded_then_raised(self, ticket):
        """Nothing is published. [M04.4]"""
        with Flow() as flow, pytest.raises(RuntimeError):
            command_bus.dispatch(FailTicket(ONE))

        assert flow.published == []

    def test_in_a_plain_unit_test(self):
        """No bus and no database: what was recorded can be looked at. [M04.5]"""
        ticket = Ticket.open(OpenTicket(ONE, "lamp"))

        assert ticket.recorded_events == [TicketOpened(ONE, "lamp")]

    def test_the_path_in_a_migration(self):
        """The mixin is known to migrations by a path that stays. [M04.6]"""
        state = ModelState.from_model(Ticket)
        assert MigrationAutodetector  # the one that writes what the state says
        names = [f"{b.__module__}.{b.__name__}" for b in state.bases]
        assert names == [
            "django_cqrs.models.RecordsEvents",
            "django.db.models.base.Model",
        ]

    def test_events_of_ones_own_method(self):
        """``events=`` names the method of a class without the mixin."""
        with Flow() as flow:
            command_bus.dispatch(WritePost("news"))
            command_bus.dispatch(RenamePost("news", "new"))

        assert flow.published == [PageSeen("post:news"), PageSeen("title:new")]

    def test_survives_copy_pickle_and_refresh(self, ticket):
        """A copy has its own record, a pickle and a refreshed object keep it."""
        ticket.record(TicketDeleted(ONE))
        twin = copy.copy(ticket)
        twin.record(TicketDeleted(TWO))
        ticket.refresh_from_db()

        assert ticket.recorded_events == [TicketDeleted(ONE)]
        assert twin.recorded_events == [TicketDeleted(ONE), TicketDeleted(TWO)]
        again = pickle.loads(pickle.dumps(ticket))
        assert again.recorded_events == [TicketDeleted(ONE)]
        assert copy.deepcopy(ticket).recorded_events == [TicketDeleted(ONE)]


class TestEventsAndQueries:
    def test_found_by_the_events_attribute(self, ticket):
        """``identifier=`` names it; the object is loaded, called and saved. [M05.1]"""
        event_bus.publish(AccountClosed("ada", ONE))

        assert Ticket.objects.get().is_closed

    def test_missing_raises(self):
        """An event for an object that is not there fails its publisher. [M05.1]"""
        with pytest.raises(AggregateNotFound, match=r"Ticket\.on_account_closed"):
            event_bus.publish(AccountClosed("ada", ONE))

    def test_on_missing_ignore_drops_silently(self):
        """... unless the handler says that it does not mind. [M05.1]"""
        event_bus.publish(AccountReopened(ONE))

        assert not Ticket.objects.exists()

    def test_a_union_of_events(self, ticket):
        """Each event names the object in its own way. [M05.2]"""
        event_bus.publish(AccountReopened(ONE))
        assert Ticket.objects.get().queue == "AccountReopened"
        event_bus.publish(AccountRenamed(ONE))
        assert Ticket.objects.get().queue == "AccountRenamed"

    def test_a_query_loads_and_writes_nothing(self, ticket):
        """One SELECT without a lock, and the answer. [M05.3]"""
        with CaptureQueriesContext(connection) as captured:
            answer = query_bus.ask(route="ticket.assignee", aggregate_id=ONE)

        assert answer == "ada"
        assert len(captured) == 1
        assert "FOR " not in captured[0]["sql"].upper().replace("FROM", "")

    def test_a_query_of_the_class(self, ticket):
        """A class-method answers for all of them."""
        assert query_bus.ask(route="ticket.count") == 1

    def test_an_event_opens_a_transaction_for_its_object(self, transactional_db):
        """Published outside any, the object is loaded, called and saved in one."""
        Ticket.objects.create(ticket_id=ONE)
        with CaptureQueriesContext(connection) as captured:
            event_bus.publish(AccountClosed("ada", ONE))

        assert statements(captured, "BEGIN") == [captured[0]["sql"]]


class TestAggregateMakesAggregate:
    def test_both_saved_the_called_one_first(self, ticket):
        """Both in one transaction; the events of the called one come first. [M06.1]"""
        with Flow() as flow, CaptureQueriesContext(connection) as captured:
            command_bus.dispatch(SplitTicket(ONE, TWO))

        writes = [
            q["sql"].split()[0].upper()
            for q in captured
            if q["sql"].split()[0].upper() in ("UPDATE", "INSERT")
        ]
        assert writes == ["UPDATE", "INSERT"]
        assert [type(e).__name__ for e in flow.published] == [
            "TicketAssigned",
            "TicketOpened",
        ]
        assert Ticket.objects.count() == 2

    def test_the_result_is_the_new_ones_identifier(self, ticket):
        """The caller learns what was made. [M06.2]"""
        assert command_bus.dispatch(SplitTicket(ONE, TWO)) == TWO

    def test_returning_self_saves_once(self, ticket):
        """One UPDATE; the result is its own identifier. [M06.3]"""
        with CaptureQueriesContext(connection) as captured:
            result = command_bus.dispatch(TouchTicket(ONE))

        assert result == ONE
        assert len(statements(captured, "UPDATE")) == 1


class TestVersions:
    def test_bumped_by_one(self):
        """Each save counts it up, in the one UPDATE. [M07.2]"""
        pk = command_bus.dispatch(OpenAccount("ada"))
        with CaptureQueriesContext(connection) as captured:
            command_bus.dispatch(Deposit(pk, 5))

        account = Account.objects.get()
        assert (account.balance, account.version) == (5, 1)
        assert len(statements(captured, "UPDATE")) == 1
        assert "FOR " not in "".join(statements(captured, "SELECT")).upper()

    def test_a_stale_save_raises_and_rolls_back(self):
        """Somebody else has changed the row since it was loaded. [M07.2]"""
        pk = command_bus.dispatch(OpenAccount("ada"))
        registry = Registry()
        registry.add(Account)

        def meddle(kind, message):
            Account.objects.filter(pk=pk).update(version=7, balance=100)

        @around(pointcut.message(Deposit))
        def somebody_else(proceed: Proceed):
            meddle(None, None)
            return proceed()

        registry.add(somebody_else)
        with pytest.raises(ConcurrencyError) as raised:
            registry.command_bus.dispatch(Deposit(pk, 5))

        assert str(raised.value) == (
            f"Account with id={pk} was changed or deleted by somebody else since it "
            "was loaded. This attempt saved nothing; try again."
        )
        account = Account.objects.get()
        assert (account.balance, account.version) == (0, 0)  # all was rolled back

    def test_the_version_that_its_sender_saw(self):
        """A ``Version()`` field of the command is compared before the handler. [M07.3]"""
        pk = command_bus.dispatch(OpenAccount("ada"))
        assert command_bus.dispatch(Deposit(pk, 5, seen=0)) == 5
        with pytest.raises(ConcurrencyError) as raised:
            command_bus.dispatch(Deposit(pk, 5, seen=0))

        assert str(raised.value) == (
            "Account.deposit was not called: its sender expected version 0 of the "
            "Account, but it is now at version 1."
        )

    def test_with_instant_retry_the_stale_one_succeeds(self):
        """Another attempt loads it anew. [M07.4]"""
        pk = command_bus.dispatch(OpenAccount("ada"))
        registry = Registry()
        registry.add(Account)
        attempts = []

        @around(pointcut.message(Deposit))
        def somebody_else(proceed: Proceed, target: object | None):
            attempts.append(target)
            if len(attempts) == 1:
                # What another process did before, as this attempt cannot see it.
                target.version -= 1
            return proceed()

        registry.add(somebody_else)
        bus = CommandBus(
            instant_retry=InstantRetry(3, on=(ConcurrencyError,)), registry=registry
        )

        assert bus.dispatch(Deposit(pk, 5)) == 5
        assert len(attempts) == 2
        assert Account.objects.get().version == 1


class TestIdentifiers:
    def test_each_alone_and_together(self, ticket):
        """aggregate_id= over identifier= over the field's mark over the name. [M08.1]"""
        Ticket.objects.create(ticket_id=TWO)
        command_bus.dispatch(MoveTicket(ONE, "marked", ticket_id=TWO))
        assert Ticket.objects.get(pk=ONE).queue == "marked"
        command_bus.dispatch(MoveTicket(ONE, "given"), aggregate_id=TWO)
        assert Ticket.objects.get(pk=TWO).queue == "given"
        command_bus.dispatch(
            {"ticket_id": TWO}, route="ticket.reopen", headers={"reopened": str(ONE)}
        )
        command_bus.dispatch(
            {"ticket_id": str(ONE)}, route="ticket.reopen"
        )  # no header: by its name

    def test_from_a_header_that_an_interceptor_adds(self, ticket):
        """The identifier is looked for after ``before`` has run. [M08.2]"""
        registry = Registry()
        registry.add(Ticket)

        @before(pointcut.handler("*Ticket.reopen"))
        def add(message: Message) -> Message:
            return message.replace(headers={"reopened": str(ONE)})

        registry.add(add)
        Ticket.objects.update(is_closed=True)
        registry.command_bus.dispatch(route="ticket.reopen")

        assert not Ticket.objects.get().is_closed

    def test_value_objects_through_str(self, ticket):
        """What is no plain value is asked for its text. [M08.2]"""

        class Number:
            def __str__(self):
                return str(ONE)

        command_bus.dispatch(route="ticket.close", aggregate_id=Number())
        assert Ticket.objects.get().is_closed

    def test_a_key_that_is_another_objects(self):
        """A relation as primary key is called after the relation. [M08.1]"""
        account = Account.objects.create(owner="Ada")

        assert command_bus.dispatch(IssueCard(account.pk)) == account.pk
        command_bus.dispatch(BlockCard(account.pk))

        assert Card.objects.get().is_blocked

    @pytest.mark.parametrize("wrong", [[ONE], {"a": 1, "b": 2}, {ONE}])
    def test_a_list_or_dict_as_one_identifier_raises(self, ticket, wrong):
        """Several values identify nothing where one is wanted. [M08.2]"""
        with pytest.raises(InvalidIdentifier):
            command_bus.dispatch(route="ticket.close", aggregate_id=wrong)

    def test_what_cannot_be_one(self, ticket):
        """A text that is no UUID is refused before the database is asked. [M08.2]"""
        with pytest.raises(InvalidIdentifier) as raised:
            command_bus.dispatch(route="ticket.close", aggregate_id="lamp")

        assert str(raised.value) == (
            "'lamp' is not a valid identifier: ticket_id has the type UUIDField."
        )

    def test_several_parts(self):
        """A composite identifier is a dict by name, or a tuple in order."""
        command_bus.dispatch(BookSeat(7, "A1", "ada"))

        ask = query_bus.ask
        assert ask(route="seat.guest", aggregate_id={"show": 7, "seat": "A1"}) == "ada"
        assert ask(route="seat.guest", aggregate_id=(7, "A1")) == "ada"
        command_bus.dispatch(FreeSeat(7, "A1"))
        assert ask(route="seat.guest", aggregate_id=(7, "A1")) == ""
        with pytest.raises(InvalidIdentifier):
            ask(route="seat.guest", aggregate_id=7)


class TestBehindAChannel:
    def test_aggregate_id_travels(self, ticket):
        """The identifier that the call gave is there when the message is handled. [M08.3]"""
        with Flow() as flow:
            command_bus.dispatch(route="ticket.escalate", aggregate_id=ONE)
            assert Ticket.objects.get().queue == ""
            assert flow.run("outbox") == 1

        assert Ticket.objects.get().queue == "second line"
        assert flow.published == [TicketAssigned(ONE, "second line")]

    def test_and_so_does_a_header(self, ticket):
        """Likewise where a header names it. [M08.3]"""
        with Flow() as flow:
            command_bus.dispatch(route="ticket.escalate", headers={"which": str(ONE)})
            flow.run("outbox")

        assert Ticket.objects.get().queue == "second line"

    def test_a_pair_on_a_channel(self):
        """The factory's channel is the pair's: the first makes it, the second acts. [M03.1]"""
        with Flow() as flow:
            event_bus.publish(Counted("a"))
            event_bus.publish(Counted("a"))
            assert not Tally.objects.exists()
            assert flow.run("outbox") == 2

        assert Tally.objects.get().count == 2


class TestInterceptors:
    def test_around_receives_the_aggregate(self, ticket):
        """An owner check refuses, and changes nothing. [B13.4]"""

        @around(pointcut.handler("*Ticket.assign"))
        def owners_only(
            proceed: Proceed,
            target: Ticket,
            user: Annotated[str, Header("user")],
        ):
            if target.assignee != user:
                raise PermissionDenied(f"{user} is not the assignee")
            return proceed()

        registry = Registry()
        for each in (Ticket, owners_only):
            registry.add(each)
        bus = registry.command_bus
        with pytest.raises(PermissionDenied):
            bus.dispatch(AssignTicket(ONE, "eve"), headers={"user": "eve"})
        assert Ticket.objects.get().assignee == "ada"
        bus.dispatch(AssignTicket(ONE, "bob"), headers={"user": "ada"})
        assert Ticket.objects.get().assignee == "bob"

    def test_once_for_a_factory_or_action_pair(self):
        """Each kind runs once, whichever of the two is called. [B13.6]"""
        order = []

        @before(pointcut.handler("*PageCount.again"))
        def first(command: CountVisit) -> None:
            order.append("before")

        @around(pointcut.handler("*PageCount.*"))
        def about(proceed: Proceed, target: object | None):
            order.append(f"around {type(target).__name__}")
            return proceed()

        @after(pointcut.message(CountVisit))
        def last(result: object) -> None:
            order.append(f"after {result}")

        registry = Registry()
        for each in (PageCount, first, about, last):
            registry.add(each)
        registry.command_bus.dispatch(CountVisit("home"))
        registry.command_bus.dispatch(CountVisit("home"))

        assert order == [
            *("before", "around NoneType", "after home"),
            *("before", "around PageCount", "after 2"),
        ]


class TestAliases:
    def test_the_routers_alias_for_an_aggregate(self, settings):
        """The transaction, the load and the save are on the router's database. [B12.3]"""
        settings.DATABASE_ROUTERS = ["tests.modelling.routers.TicketsElsewhere"]
        with CaptureQueriesContext(connection) as captured:
            command_bus.dispatch(OpenTicket(ONE, "lamp"))
            command_bus.dispatch(AssignTicket(ONE, "bob"))

        assert len(captured) == 0
        assert Ticket.objects.using("other").get().assignee == "bob"

    def test_the_calls_using_before_both(self, settings):
        """``using=`` of the call wins over the router. [B12.3]"""
        settings.DATABASE_ROUTERS = ["tests.modelling.routers.TicketsElsewhere"]
        command_bus.dispatch(OpenTicket(ONE, "lamp"), using="default")

        assert Ticket.objects.using("default").count() == 1
        assert not Ticket.objects.using("other").exists()


class TestOrder:
    def test_aggregates_before_plain_handlers(self):
        """At equal priority, whatever was registered first. [B06.2]"""
        order = []

        @event_handler
        def plain(event: PageSeen) -> None:
            order.append(("plain", PageCount.objects.count()))

        @event_handler(priority=1)
        def urgent(event: PageSeen) -> None:
            order.append(("urgent", PageCount.objects.count()))

        registry = Registry()
        for each in (plain, urgent, PageCount):
            registry.add(each)
        registry.event_bus.publish(PageSeen("home"))

        assert order == [("urgent", 0), ("plain", 1)]


@dataclass(frozen=True)
class NameThing:
    ref: str | None = None


@pytest.mark.parametrize(
    ("identifier", "reason"),
    [
        (lambda _message: None, "The callable that identifier= gives returned None."),
        ("ref", "Its identifier='ref' finds no value there."),
        (Header("ref"), "The message has no header 'ref', which identifier= names."),
        (
            {"thing_id": "ref"},
            "Not all of identifier={'thing_id': 'ref'} has a value there.",
        ),
    ],
    ids=["callable", "attribute", "header", "dict"],
)
def test_an_identifier_that_finds_nothing_is_named_in_the_error(identifier, reason):
    """It says what identifier= has found, and not to give one."""

    @aggregate(identifier="thing_id")
    @document("errors.thing")
    @dataclass
    class Thing:
        thing_id: int

        @command_handler(identifier=identifier)
        def name_it(self, command: NameThing) -> None: ...

    registry = Registry()
    registry.add(Thing)
    with pytest.raises(AggregateNotFound) as raised:
        registry.command_bus.dispatch(NameThing())

    assert str(raised.value) == (
        "Thing.name_it could not be routed to its Thing: the message has no "
        f"identifier. {reason} NameThing has no value for thing_id. Give "
        "aggregate_id=, let the message have an attribute with that name, mark one "
        "with Annotated[..., Identifier('thing_id')], or correct identifier=."
    )
