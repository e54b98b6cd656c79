"""Scenarios of one class: its objects alone, without a database."""

from __future__ import annotations

import gc
from datetime import timedelta
from uuid import UUID

import pytest
from django.test import SimpleTestCase

from django_cqrs import Send
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidOption,
    MessageConversionError,
)
from django_cqrs.testing import ANYTHING, like, override, scenario
from tests.modelling import messages as old
from tests.modelling.models import Fulfilment, PageCount, Seat, Ticket
from tests.testing.baskets import (
    AddItem,
    Basket,
    BasketEmptied,
    CancelOrder,
    Empty,
    ItemAdded,
    Jar,
    Member,
    OpenBasket,
    Ordered,
    Paid,
    Pay,
    PaymentOverdue,
    Register,
    Registered,
    Remind,
    Ship,
    Shipping,
    SoldOut,
    stock,
)

TEA = ItemAdded(7, "tea")
UUID_1, UUID_2 = UUID(int=1), UUID(int=2)


def failure_of(function):
    with pytest.raises(AssertionError) as raised:
        function()
    return str(raised.value)


class TestVerbs:
    def test_given_when_then(self):
        """A message, its events; no database is asked. [K01.1, K01.5]"""
        (
            scenario(Basket)
            .given(OpenBasket(7), AddItem(7, "cup"))
            .when(AddItem(7, "tea"))
            .then(TEA)
            .state(lambda basket: basket.items == ["cup", "tea"])
        )

    def test_what_was_given_does_not_count(self):
        """Events of given messages are not among those of the last one. [K01.4]"""
        scenario(Basket).given(OpenBasket(7), AddItem(7, "cup")).nothing()

    def test_an_object_may_be_given(self):
        """An object stands for its history; what it has recorded does not count."""
        basket = Basket(7, ["cup"])
        basket.record(BasketEmptied(7))
        member = Member(pk=3, name="ada")

        scenario(Basket).given(basket).when(AddItem(7, "tea")).then(TEA)
        (
            scenario(Member)
            .given(member)
            .when(Pay(3, 5))
            .state(lambda found: (found.paid, found.version) == (5, 1))
        )

        assert basket.items == ["cup"]
        assert (member.paid, member.version) == (0, 0)

    def test_raises(self):
        """The exception, a part of its text; nothing was changed or sent. [K01.1]"""
        begun = scenario(Basket).given(Basket(7))

        begun.when(AddItem(7, "gold")).raises(SoldOut, "no gold").nothing()

        begun.state(lambda basket: not basket.items)
        begun.when(AddItem(8, "tea")).raises((SoldOut, AggregateNotFound))

    def test_nothing(self):
        """A message that was sent as well fails. [K01.1]"""
        scenario(Basket).when(OpenBasket(7)).nothing()
        text = failure_of(
            scenario(Basket).given(Basket(7)).when(AddItem(7, "tea")).nothing
        )

        assert text == (
            "event ItemAdded(basket_id=7, sku='tea', price=1.5) was sent as well. "
            "nothing() expects no other message.\n"
            "\n"
            "This is what happened:\n"
            "command AddItem(basket_id=7, sku='tea')\n"
            "└─ tests.testing.baskets.Basket.add\n"
            "   └─ event ItemAdded(basket_id=7, sku='tea', price=1.5)"
            "   <-- not expected"
        )

    def test_after(self):
        """A timer of the object falls due; what it then sends is expected. [K01.1]"""
        process = scenario(Shipping).when(Ordered("a")).then(PaymentOverdue("a"))

        process.after(days=2).nothing()
        process.after(days=1).then(CancelOrder("a")).after(days=9).nothing()

    def test_a_timer_that_the_end_cancels(self):
        """After the end of a saga its timer does not come."""
        (
            scenario(Shipping)
            .given(Ordered("a"))
            .when(Paid("a"))
            .then(Ship("a"))
            .after(days=4)
            .nothing()
            .when(PaymentOverdue("a"))  # by somebody else's hand
            .nothing()
            .when(Paid("a"))
            .raises(AggregateNotFound, "is completed")
        )

    def test_the_result(self):
        """The answer of the handler; the identifier of a new object."""
        assert scenario(Basket).when(OpenBasket(7)).result == 7
        begun = scenario(Basket).given(Basket(7, ["a"])).when(AddItem(7, "b"))
        assert begun.result == 2
        asked = begun.when(Send(route="kit.count", aggregate_id=7))
        assert asked.nothing().result == 2

    def test_headers_and_options(self):
        """They are those of the message."""
        opened = scenario(Ticket).when(
            Send(old.OpenTicket(UUID_1, "lamp"), headers={"source": "mail"})
        )
        opened.then(ANYTHING).state(lambda ticket: ticket.queue == "mail")
        opened = scenario(Ticket).given(
            old.OpenTicket(UUID_1, "lamp"), headers={"source": "phone"}
        )
        opened.state(lambda ticket: ticket.queue == "phone")


class TestExpectations:
    def test_a_wrong_event(self):
        """The first difference is named, and marked in the tree. [K01.1]"""
        text = failure_of(
            lambda: (
                scenario(Basket)
                .given(Basket(7))
                .when(AddItem(7, "tea"))
                .then(ItemAdded(7, "coffee", price=9))
            )
        )

        assert text == (
            "then(ItemAdded(basket_id=7, sku='coffee', price=9)): no such message was "
            "sent.\n"
            "First difference: sku is 'tea', not 'coffee'.\n"
            "\n"
            "This is what happened:\n"
            "command AddItem(basket_id=7, sku='tea')\n"
            "└─ tests.testing.baskets.Basket.add\n"
            "   └─ event ItemAdded(basket_id=7, sku='tea', price=1.5)"
            "   <-- sku is 'tea', not 'coffee'"
        )

    def test_one_more_than_expected(self):
        """`then` names all messages of an object that is alone."""
        text = failure_of(
            lambda: (
                scenario(Basket)
                .given(Basket(7))
                .when(Empty(7))
                .then(BasketEmptied(7), Send([1], route="kit.log"))
            )
        )

        assert text.startswith(
            "command Remind(basket_id=7) was sent as well. then() names all messages "
            "of the class.\n"
        )

    def test_what_was_not_sent(self):
        """A missing message is said to be missing, whatever else was sent."""
        emptied = scenario(Basket).given(Basket(7)).when(Empty(7))

        assert "no such message was sent.\n\nThis is" in failure_of(
            lambda: scenario(Basket).when(OpenBasket(7)).then(TEA)
        )
        assert "it is of type" in failure_of(lambda: emptied.then(TEA))

    def test_the_order_within_one_kind(self):
        """Events and commands each come in the expected order. [K01.2]"""
        process = scenario(Basket).given(Basket(7))
        process.when(Empty(7)).then(
            Remind(7), Send([1], route="kit.log"), BasketEmptied(7)
        )
        text = failure_of(
            lambda: process.when(Empty(7)).then(
                BasketEmptied(7), Send([1], route="kit.log"), Remind(7)
            )
        )

        assert text.startswith(
            "then(Remind(basket_id=7)): it was sent before a message of its kind that "
            "is expected earlier.\n"
        )
        assert "command Remind(basket_id=7)   <-- too early" in text

    def test_anything_and_like(self):
        """Parts of a message may be anything, or alike. [K01.2]"""
        added = scenario(Basket).given(Basket(7)).when(AddItem(7, "tea"))

        for expected in (
            ANYTHING,
            ItemAdded(7, "tea", ANYTHING),
            ItemAdded(ANYTHING, "tea", like(lambda price: price > 1)),
            like(ItemAdded, sku="tea"),
            like(ItemAdded),
            like(lambda event: event.basket_id == 7),
        ):
            added.when(AddItem(7, "tea")).then(expected)
        text = failure_of(
            lambda: added.when(AddItem(7, "tea")).then(like(ItemAdded, sku="milk"))
        )
        assert "First difference: sku is 'tea', not 'milk'." in text

    def test_a_planned_command(self):
        """A delayed command counts when it is due; a Send names its sending."""
        begun = scenario(Basket).given(Basket(7))
        slow = ItemAdded(7, "slow")

        begun.when(AddItem(7, "slow")).then(slow).after(minutes=59).nothing()
        begun.after(minutes=1).then(Remind(7))
        begun.when(AddItem(7, "slow")).then(slow, Send(Remind(7), delay=3600))
        begun.when(AddItem(7, "slow"))
        text = failure_of(
            lambda: begun.then(slow, Send(Remind(7), delay=timedelta(minutes=1)))
        )
        assert "First difference: delay is 3600.0, not 60.0." in text

    def test_events_that_cannot_be_stored(self):
        """A message that JSON cannot restore fails as its handler would. [K01.5]"""
        begun = scenario(Basket).given(Basket(7))

        begun.when(Send(route="kit.strange", aggregate_id=7)).raises(
            MessageConversionError, "sku"
        )

    def test_a_state_that_cannot_be_stored(self):
        """A document is written and read as its rows are."""
        begun = scenario(Basket).given(Basket(7))

        begun.when(Send(route="kit.unannotated", aggregate_id=7)).raises(
            MessageConversionError, "colour"
        )

    def test_a_check_of_the_state(self):
        """One that returns False, or fails, fails; there must be an object."""
        begun = scenario(Basket).given(Basket(7))

        def has_tea(basket):
            return "tea" in basket.items

        assert failure_of(lambda: begun.state(has_tea)).startswith(
            "The check of the state, TestExpectations.test_a_check_of_the_state."
            "<locals>.has_tea, returned False.\n"
        )
        begun.state(lambda basket: basket.items.append("ignored"))
        assert failure_of(lambda: scenario(Basket).state(has_tea)) == (
            "There is no Basket whose state could be seen."
        )

    def test_an_unexpected_exception(self):
        """It fails at the next verb, with its cause and the tree."""
        begun = scenario(Basket).given(Basket(7)).when(AddItem(7, "gold"))
        with pytest.raises(AssertionError) as raised:
            begun.then(TEA)

        assert str(raised.value) == (
            "when(AddItem(basket_id=7, sku='gold')) failed with "
            "SoldOut('no gold is left'), and no raises() expects it.\n"
            "\n"
            "This is what happened:\n"
            "command AddItem(basket_id=7, sku='gold')\n"
            "└─ tests.testing.baskets.Basket.add: failed with "
            "SoldOut('no gold is left')"
        )
        assert isinstance(raised.value.__cause__, SoldOut)
        assert "given(AddItem" in failure_of(
            lambda: scenario(Basket).given(Basket(7), AddItem(7, "gold"))
        )

    def test_an_expected_exception_that_does_not_come(self):
        """Nothing, another class, or another text: each is said."""
        begun = scenario(Basket).given(Basket(7))

        assert failure_of(
            lambda: begun.when(AddItem(7, "tea")).raises(SoldOut)
        ).startswith(
            "when(AddItem(basket_id=7, sku='tea')) raised nothing, but "
            "raises(SoldOut) expects it.\n"
        )
        assert "but raises(KeyError | ValueError) expects" in failure_of(
            lambda: begun.when(AddItem(7, "gold")).raises((KeyError, ValueError))
        )
        assert "but raises(SoldOut, 'silver') expects" in failure_of(
            lambda: begun.when(AddItem(7, "gold")).raises(SoldOut, "silver")
        )

    def test_an_exception_that_nobody_looks_at(self):
        """A scenario that ends with one warns, where no fixture fails the test."""
        begun = scenario(Basket).given(Basket(7)).when(AddItem(7, "gold"))

        assert begun.result is None
        del begun
        with pytest.warns(RuntimeWarning, match="and nobody looked at it"):
            gc.collect()


class TestObjects:
    def test_a_model_whose_key_the_database_makes(self):
        """Keys are made from 1 on; functions are called when they are known."""
        begun = scenario(Member)

        begun.when(Register("ada")).then(Registered(1))
        begun.when(Register("bob")).then(Registered(2))
        begun.state(lambda member: member.name == "bob!")  # its own event

    def test_the_same_object_twice(self):
        """What the bus refuses to overwrite is refused here, too."""
        begun = scenario(Member).given(Member(pk=1))

        begun.when(Pay(1, 11)).raises(ConcurrencyError).nothing()
        begun.state(lambda member: member.paid == 0)

    def test_factory_or_action(self):
        """A message for both makes an object once, and then changes it."""
        visited = scenario(PageCount).when(old.CountVisit("home", 2))

        assert visited.result == "home"
        assert visited.when(old.CountVisit("home", 3)).result == 5
        visited.when(old.PageSeen("home")).state(lambda page: page.seen == 1)

    def test_identifiers(self):
        """Of several parts, and given beside the message."""
        seat = scenario(Seat).given(old.BookSeat(1, "a1", "ada"))

        seat.when(old.BookSeat(1, "a1", "bob")).raises(AggregateAlreadyExists)
        seat.when(old.FreeSeat(1, "a1")).state(lambda found: found.guest == "")
        seat.when(old.FreeSeat(1, "b2")).raises(AggregateNotFound)

    def test_an_object_that_makes_another(self):
        """Both are kept."""
        begun = scenario(Ticket).given(Ticket(ticket_id=UUID_1, title="old"))

        begun.when(old.SplitTicket(UUID_1, UUID_2)).then(
            old.TicketAssigned(UUID_1, "split"), old.TicketOpened(UUID_2, "old (1) (2)")
        )
        begun.when(old.TouchTicket(UUID_2))
        begun.state(lambda ticket: ticket.title == "old (1) (2)!")

    def test_repositories_and_fetch(self):
        """A handler finds and deletes other objects of its class."""
        begun = scenario(Basket).given(Basket(7, ["a"]), Basket(8, ["b"]))

        begun.when(Send(8, route="kit.merge", aggregate_id=7))
        begun.state(lambda basket: basket is not None)
        begun.when(AddItem(8, "tea")).raises(AggregateNotFound)
        begun.when(AddItem(7, "tea")).then(TEA)
        begun.state(lambda basket: basket.items == ["a", "b", "tea"])

    def test_a_repository_of_ones_own(self):
        """It is not asked: objects are in memory; async methods are called, too."""
        begun = scenario(Jar).when(Send(1, route="jar.take", aggregate_id=1))

        assert begun.result == 1
        assert begun.when(Send(1, route="jar.take", aggregate_id=1)).result == 1
        begun.when(Send(route="jar.break", aggregate_id=1)).then("crash")

    def test_messages_to_itself(self):
        """Those on a channel come to it, after their delay; those of others count."""
        begun = scenario(Jar).given(Jar(1))

        begun.when(Send(route="jar.inform", aggregate_id=1)).nothing()
        begun.after(seconds=60).then("later").after(seconds=60).then("later")

    def test_dependencies_are_replaced(self):
        """`override` is that of the project."""
        begun = scenario(Basket).given(Basket(7))
        asked = Send(route="kit.by_stock", aggregate_id=7)

        for count in (2, 3):
            with override(stock, lambda count=count: {"tea": count}):
                assert begun.when(asked).result == count
        begun.when(asked).raises(RuntimeError, "a real stock")

    def test_two_scenarios_at_once(self):
        """Each has objects of its own."""
        one, other = scenario(Basket), scenario(Basket)

        one.given(OpenBasket(7))
        other.when(AddItem(7, "tea")).raises(AggregateNotFound)
        one.when(AddItem(7, "tea")).then(TEA)

    def test_an_older_saga(self):
        """A model with a timer and an output, as the project has it."""
        begun = scenario(Fulfilment).given(old.OrderPlaced(7), old.OrderPaid(7))

        begun.when(old.OrderPacked(7)).then(old.ShipOrder(7)).after(hours=25).nothing()
        unpaid = scenario(Fulfilment).given(old.OrderPlaced(8)).after(hours=24)
        unpaid.then(old.CancelOrder(8)).state(lambda saga: saga.fate == "cancelled")


class TestBadInput:
    def test_a_class_that_is_none(self):
        """An error names it, and what is taken."""
        with pytest.raises(InvalidOption) as raised:
            scenario(OpenBasket)
        with pytest.raises(InvalidOption, match="whole project: 7 is neither"):
            scenario(7)

        assert str(raised.value) == (
            "scenario() takes an aggregate or a saga, or nothing for the whole "
            "project: OpenBasket is neither."
        )

    def test_a_message_for_nobody(self):
        """A message that the class does not handle is a mistake of the test."""
        begun = scenario(Basket)

        with pytest.raises(InvalidOption) as raised:
            begun.when(Remind(7))
        with pytest.raises(InvalidOption, match=r"no handler for 'kit\.unknown'"):
            begun.given(Send(7, route="kit.unknown"))
        with pytest.raises(InvalidOption, match="an instance"):
            begun.when(OpenBasket)

        assert str(raised.value) == (
            "Basket has no handler for Remind. Give it messages that it handles, or "
            "an object of its own class."
        )

    def test_like(self):
        """It takes a class or a function; values with a class alone."""
        with pytest.raises(InvalidOption, match="a class or a function, not 7"):
            like(7)
        with pytest.raises(InvalidOption, match="not with a function"):
            like(lambda each: each, name=1)

        assert repr(like(ItemAdded, sku="tea")) == "like(ItemAdded, sku='tea')"
        assert repr(ANYTHING) == "ANYTHING"
        assert {ItemAdded(1, ANYTHING, like(int)): 1}  # it can be hashed


class WithoutADatabase(SimpleTestCase):
    def test_django_s_simple_test_case(self):
        """Which refuses every query. [K01.5]"""
        scenario(Basket).given(OpenBasket(7)).when(AddItem(7, "tea")).then(TEA)
        scenario(Member).when(Register("ada")).then(Registered(1))
