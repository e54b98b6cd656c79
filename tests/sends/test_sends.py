"""Commands that an object sends after its save, and functions that are called then."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import pytest
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import isolate_apps
from django.utils import timezone

from django_cqrs import (
    Command,
    Headers,
    Registry,
    Send,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.checks import check_registry
from django_cqrs.documents import DocumentStore
from django_cqrs.exceptions import (
    InvalidEvent,
    InvalidHeader,
    InvalidOption,
    UnsentCommand,
)
from django_cqrs.modelling import Repository, aggregate
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.outbox.worker.bounds import Bounds
from django_cqrs.outbox.worker.worker import Worker
from tests.sends.kinds import (
    KINDS,
    NUMBER,
    Bag,
    Cart,
    Delivery,
    Do,
    Make,
    Opened,
    Pack,
)
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = [pytest.mark.django_db, pytest.mark.database]


class Desk:
    """The handlers of one kind of cart, and what those behind it have received."""

    def __init__(self, kind):
        self.kind = kind
        self.seen = []
        self.registry = registry = registry_of(kind)
        self.bus = registry.command_bus

        @registry.add
        @event_handler
        def opened(event: Opened) -> None:
            self.see(event, event.cart)

        @registry.add
        @command_handler
        @command_handler("cart.pack")
        def pack(command: Pack, headers: Headers) -> None:
            self.see(command, command.cart)
            self.headers = headers

        @registry.add
        @command_handler("cart.log")
        def log(what: object) -> None:
            self.seen.append(("log", what))

        @registry.add
        @command_handler("cart.later", name="later", channel="outbox")
        def later(command: Pack) -> None: ...

    def see(self, message, number):
        assert self.is_saved(number), "it is handled after the save"
        self.seen.append(message)

    def is_saved(self, number):
        if hasattr(self.kind, "objects"):
            return self.kind.objects.filter(pk=number).exists()
        return DocumentStore(self.kind).find(number) is not None

    def make(self, steps, route="cart.make"):
        return self.bus.dispatch(Make(steps), route=route)

    def do(self, steps, route="cart.do"):
        number = self.make(lambda cls: cls.new())
        return self.bus.dispatch(Do(number, steps), route=route, aggregate_id=number)

    def by(self, way, steps, on=""):
        """Do steps with an object, in a factory that returns it or in an action."""
        if way == "action":
            return self.do(steps, f"cart.do{on}")

        def make(cls):
            cart = cls.new()
            said = steps(cart)
            return cart if said is None else (cart, said)

        return self.make(make, f"cart.make{on}")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def desk(request):
    return Desk(request.param)


@pytest.fixture
def carts():
    return Desk(Cart)


ways = pytest.mark.parametrize("way", ["factory", "action"])


class TestSend:
    @ways
    def test_commands_go_out_after_the_save_and_the_events(self, desk, way):
        """Several of each, in their order: of a factory, a start and an action alike."""

        def steps(cart):
            cart.send(Pack(NUMBER, "first"))
            cart.record(Opened(NUMBER, 1))
            cart.send(Pack(NUMBER, "second"))
            cart.record(Opened(NUMBER, 2))
            assert desk.seen == []

        if desk.kind is Cart:
            Cart.objects.create(pk=NUMBER)

        desk.by(way, steps)

        assert desk.seen == [
            Opened(NUMBER, 1),
            Opened(NUMBER, 2),
            Pack(NUMBER, "first"),
            Pack(NUMBER, "second"),
        ]

    @ways
    def test_what_is_returned_goes_out_last(self, desk, way):
        """One, or several in a list; an action that returns no more has no result."""

        def steps(cart):
            cart.send(lambda: Pack(cart.number, "recorded"))
            return [
                Send(lambda: Pack(cart.number, "one")),
                Send(lambda: Pack(cart.number, "two")),
            ]

        result = desk.by(way, steps)

        assert [each.text for each in desk.seen] == ["recorded", "one", "two"]
        assert (result is None) == (way == "action")

    def test_a_factory_returns_them_beside_its_object(self, desk):
        """In one tuple, and the result is the identifier of the object."""

        def steps(cls):
            cart = cls.new()
            one, two = (
                Send(lambda text=text: Pack(cart.number, text)) for text in "ab"
            )
            return cart, one, two

        number = desk.make(steps)

        assert desk.seen == [Pack(number, "a"), Pack(number, "b")]

    def test_a_factory_that_makes_nothing_may_send(self, desk):
        """Without an object there is no save to wait for."""
        assert desk.make(lambda cls: Send("no", route="cart.log")) is None
        assert desk.seen == [("log", "no")]

    def test_an_action_returns_them_beside_its_result(self, carts):
        """The other value of the tuple is the result."""
        result = carts.do(lambda cart: (5, Send(Pack(cart.pk))))

        assert result == 5
        assert carts.seen == [Pack(Cart.objects.get().pk)]

    def test_two_results_beside_them_are_an_error(self, carts):
        """Nothing is saved nor sent."""
        with pytest.raises(InvalidEvent, match="together with 2 other values"):
            carts.do(lambda cart: (5, 6, Send(Pack(cart.pk))))

        assert carts.seen == []

    def test_an_empty_list_sends_nothing(self, desk):
        """Where the annotation says what the list is of; otherwise it is a result."""
        assert desk.do(lambda cart: [], "cart.list") is None
        assert desk.seen == []

    def test_a_list_of_other_values_is_a_result(self, carts):
        """It is returned, or sent on as the payload that it is."""
        assert carts.do(lambda cart: ["a"]) == ["a"]

    @ways
    def test_with_output_its_keys_are_the_receivers(self, desk, way):
        """Each key gets each command, unless a command has a route of its own."""

        def steps(cart):
            return [
                Send(lambda: Pack(cart.number, "a")),
                Send("b", route="cart.log"),
            ]

        desk.by(way, steps, on="_on")

        [pack, (_, logged), last] = desk.seen
        assert pack.text == "a"
        assert logged == pack
        assert last == ("log", "b")

    def test_a_function_gives_the_output_of_a_factory(self, carts):
        """The second value may be a function: the key is known when it is called."""

        def steps(cls):
            cart = cls.new()
            return cart, lambda: Pack(cart.pk)

        number = carts.make(steps, "cart.make_on")

        assert carts.seen == [Pack(number), ("log", Pack(number))]

    def test_any_handler_with_output_may_return_one(self):
        """A plain function gives the options of what it sends on."""

        @command_handler("begin", output="cart.later")
        def begin(text: str) -> Send:
            return Send(Pack(7, text), delay=60)

        desk = Desk(Cart)
        desk.registry.add(begin)

        assert desk.bus.dispatch("a", route="begin") is None
        assert OutboxMessage.objects.get().available_at is not None

    @ways
    def test_the_options_are_those_of_a_dispatch(self, desk, way):
        """Delay, headers, priority and expiry reach the channel."""

        def steps(cart):
            cart.send(
                Pack(NUMBER),
                route="cart.later",
                delay=timedelta(hours=1),
                expires=7200,
                priority=3,
                headers={"tenant": UUID(int=7)},
            )

        desk.by(way, steps)

        row = OutboxMessage.objects.get()
        assert row.available_at - timezone.now() > timedelta(minutes=55)
        assert row.expires_at - row.available_at >= timedelta(minutes=59)
        assert row.priority == 3
        assert b'"tenant"' in bytes(row.headers)

    def test_a_route_and_an_identifier_are_enough(self, desk):
        """A command to the object itself finds the row that was just written."""

        @desk.registry.add
        @command_handler("cart.outer")
        def outer(text: str) -> None:
            desk.seen.append(text)

        def steps(cart):
            cart.text = "saved"
            cart.send("a", route="cart.outer")
            cart.send(
                Do(NUMBER, lambda again: desk.seen.append(again.text)),
                route="cart.do",
                aggregate_id=cart.number,
            )

        desk.do(steps)

        assert desk.seen == ["a", "saved"]

    def test_headers_of_the_cause_are_passed_on(self, desk):
        """A command is caused by the message whose handler has sent it."""
        desk.bus.dispatch(
            Make(lambda cls: _sending(cls.new(), lambda cart: Pack(cart.number))),
            route="cart.make",
            headers={"who": "ada"},
        )

        assert desk.headers["who"] == "ada"
        assert desk.headers["causation_id"] is not None

    def test_a_failure_sends_nothing(self, desk):
        """The object forgets what it wanted to send, with its changes."""

        def steps(cls):
            cls.new().send("never", route="cart.log")
            raise RuntimeError

        with pytest.raises(RuntimeError):
            desk.make(steps)

        assert desk.seen == []

    def test_an_option_that_the_receiver_does_not_take_undoes_the_save(self, desk):
        """The receiver decides: one that is called at once takes no delay."""

        def steps(cls):
            cart = cls.new()
            cart.send("now", route="cart.log", delay=60)
            return cart

        with pytest.raises(InvalidOption, match="called immediately"):
            desk.make(steps)

        assert not desk.is_saved(NUMBER)

    def test_a_saga_that_completes_may_send_to_itself(self):
        """The timers that end with it are those from before."""

        @command_handler("cart.late", name="late", channel="outbox", delay=3600)
        def late(command: Pack) -> None: ...

        desk = Desk(Delivery)
        desk.registry.add(late)

        def steps(delivery):
            delivery.complete()
            delivery.send(Pack(NUMBER), route="cart.late")

        desk.do(steps)

        assert OutboxMessage.objects.count() == 1

    def test_a_repository_sends_them_too(self, desk):
        """`save` publishes, then sends, like a handler of the object."""

        @desk.registry.add
        @command_handler("by.hand")
        def by_hand(text: str, carts: Repository[desk.kind]) -> None:
            cart = desk.kind.new()
            cart.send(lambda: Pack(cart.number, text))
            carts.save(cart)

        desk.bus.dispatch("a", route="by.hand")

        assert [each.text for each in desk.seen] == ["a"]

    @isolate_apps("tests.modelling")
    def test_a_class_with_events_of_its_own_may_list_them(self):
        """The method that `events=` names returns events, functions and commands."""

        @aggregate(events="news")
        class Newsy(Cart):
            class Meta:
                app_label = "modelling"
                proxy = True

            @command_handler("newsy.make")
            @classmethod
            def open_it(cls, text: str) -> Newsy:
                return cls()

            def news(self):
                return [lambda: Opened(self.pk), Send(lambda: Pack(self.pk))]

        # The hook of a cart asks for them once more.
        Newsy.post_insert = None
        desk = Desk(Cart)
        desk.registry.add(Newsy)

        number = desk.bus.dispatch("a", route="newsy.make")

        assert desk.seen == [Opened(number), Pack(number)]


def _sending(cart, make):
    cart.send(lambda: make(cart))
    return cart


class TestFunction:
    def test_an_event_may_speak_of_the_key_that_the_database_makes(self, carts):
        """The function is called after the insert, in the place of its event."""

        def steps(cls):
            cart = cls()
            cart.record(lambda: Opened(cart.pk, 1))
            cart.record(Opened(other, 2))
            cart.record(partial(_opened, cart))
            return cart

        other = Cart.objects.create().pk
        number = carts.make(steps)

        assert carts.seen == [Opened(number, 1), Opened(other, 2), Opened(number, 3)]

    def test_it_is_called_before_any_event_is_published(self, carts):
        """What the handlers of the first event do, it does not see."""
        calls = []

        @carts.registry.add
        @event_handler("cart.seen")
        def seen(text: str) -> None:
            calls.append("published")

        def record(cart):
            cart.record(lambda: calls.append("called") or Opened(cart.pk))
            cart.record(lambda: calls.append("called") or Opened(cart.pk))

        @carts.registry.add
        @event_handler(priority=5)
        def first(event: Opened) -> None:
            calls.append("published")

        carts.do(record)

        assert calls == ["called", "called", "published", "published"]

    @pytest.mark.parametrize(
        ("made", "said"),
        [(None, "None"), (Opened, "Opened"), (Send(Opened(1)), "Send")],
        ids=["none", "class", "send"],
    )
    @pytest.mark.parametrize("method", ["record", "send"])
    def test_it_must_return_a_message(self, carts, method, made, said):
        """Nothing is saved otherwise."""

        def steps(cls):
            cart = cls()
            getattr(cart, method)(lambda: made)
            return cart

        with pytest.raises(InvalidEvent, match=f"must return a message, not {said}"):
            carts.make(steps)

        assert Cart.objects.count() == 0

    def test_an_expression_is_still_refused(self, carts):
        """Where the database computes a value, the object may not have it then."""

        def steps(cart):
            cart.record(lambda: Opened(cart.pk, F("lines") + 1))

        with pytest.raises(InvalidEvent, match="is an expression"):
            carts.do(steps)

    def test_what_needs_the_key_at_once_is_refused(self, carts):
        """The error names the function as the way out."""

        def steps(cls):
            cart = cls()
            with pytest.raises(InvalidEvent) as raised:
                cart.send(Send(Opened(cart.pk)).command)
            assert str(raised.value) == (
                "Opened cannot be sent: cart is None, because the database makes the "
                "key of the Cart when it saves it. Give a function that is called "
                "after the save, lambda: Opened(...). Or leave the key out of the "
                "command. Or give the key a default in Python, such as uuid.uuid4."
            )

        carts.make(steps)


def _opened(cart):
    return Opened(cart.pk, 3)


class TestWithoutDatabase:
    pytestmark = pytest.mark.django_db(databases=[])

    def test_they_are_plain_lists(self, desk):
        """A test calls the method and compares what the object has recorded."""
        cart = desk.kind.new()

        cart.record(Opened(7))
        cart.send(Pack(7), delay=60, headers={"who": "ada"})
        cart.send(route="cart.log", aggregate_id=7)

        assert cart.recorded_events == [Opened(7)]
        assert cart.recorded_commands == [
            Send(Pack(7), delay=60, headers={"who": "ada"}),
            Send(route="cart.log", aggregate_id=7),
        ]

    def test_a_function_is_called_when_the_list_is_read(self):
        """A test may give the object the key that a database would."""
        cart = Cart()
        cart.record(lambda: Opened(cart.pk))
        cart.send(lambda: Pack(cart.pk))
        cart.pk = 7

        assert cart.recorded_events == [Opened(7)]
        assert cart.recorded_commands == [Send(Pack(7))]

    def test_pulled_once(self):
        """Who pulls them has them, and the object forgets them."""
        cart = Cart()
        cart.send(Pack(7))

        assert cart.pull_recorded_commands() == [Send(Pack(7))]
        assert cart.pull_recorded_commands() == cart.recorded_commands == []

    def test_copied_and_pickled(self):
        """A copy has its own list; an object that was pickled still has its commands."""
        cart = Bag.new()
        cart.send(Pack(7))
        other = copy.copy(cart)
        other.send(Pack(8))

        assert cart.recorded_commands == [Send(Pack(7))]
        assert pickle.loads(pickle.dumps(other)).recorded_commands == [
            Send(Pack(7)),
            Send(Pack(8)),
        ]

    def test_the_headers_are_a_copy(self):
        """A dictionary that changes later changes nothing."""
        headers = {"who": "ada"}
        sent = Send(Pack(7), headers=headers)
        headers["who"] = "bob"

        assert sent.headers == {"who": "ada"}


class TestUnsent:
    def test_a_handler_whose_object_nothing_saves(self, desk):
        """It fails at its end and is undone: a command is never lost silently."""

        @desk.registry.add
        @command_handler("forgetful")
        def forgetful(text: str) -> None:
            Note.objects.create(text=text)
            desk.kind.new().send(Pack(7))

        with pytest.raises(UnsentCommand) as raised:
            desk.bus.dispatch("a", route="forgetful")

        name = desk.kind.__name__
        assert str(raised.value) == (
            f"The {name} has commands that nothing sends: Pack. They are sent if a "
            f"handler of the {name} calls send(), if a factory returns the object, or "
            f"if Repository[{name}] saves it. Use one of these, or "
            "command_bus.dispatch(). pull_recorded_commands() discards them."
        )
        assert not Note.objects.exists()

    def test_another_aggregates_object(self, carts):
        """The same in a handler of one object that forgets another."""

        def steps(cart):
            carts.other = Cart()
            carts.other.send("x", route="cart.log")
            cart.text = "changed"

        with pytest.raises(UnsentCommand, match="sends: 'cart"):
            carts.do(steps)

        assert Cart.objects.get().text == ""

    def test_pulled_commands_are_nobodys(self, carts):
        """Who pulls them decides: then there is no error."""

        def steps(cart):
            other = Cart()
            other.send(Pack(7))
            other.pull_recorded_commands()

        carts.do(steps)

        assert carts.seen == []

    def test_a_nested_command_fails_by_itself(self, carts):
        """Its caller may catch the error and go on."""

        @carts.registry.add
        @command_handler("forgetful")
        def forgetful(text: str) -> None:
            Cart().send(Pack(7))

        @carts.registry.add
        @command_handler("careful")
        def careful(text: str) -> None:
            carts.bus.dispatch("log", route="cart.log")
            with pytest.raises(UnsentCommand):
                carts.bus.dispatch("a", route="forgetful")

        carts.bus.dispatch("a", route="careful")

        assert carts.seen == [("log", "log")]

    def test_behind_a_channel_the_message_fails(self, carts):
        """A worker retries it and goes on with the others of its batch."""

        @carts.registry.add
        @command_handler("forgetful", name="forgetful", channel="outbox")
        def forgetful(text: str) -> None:
            Note.objects.create(text=text)
            if text == "bad":
                Cart().send(Pack(7))

        for text in ("a", "bad", "b"):
            carts.bus.dispatch(text, route="forgetful")
        worker = Worker(
            carts.registry, ["outbox"], using="default", bounds=Bounds(until_empty=True)
        )
        tally = worker.run()

        assert (tally.handled, tally.failed) == (2, 1)
        assert sorted(Note.objects.values_list("text", flat=True)) == ["a", "b"]
        assert DeadLetter.objects.count() == 0

    def test_outside_handlers_a_save_by_hand_is_an_error(self):
        """Nothing would send the commands, so the row is not written either."""
        cart = Cart()
        cart.send(Pack(7))
        with pytest.raises(UnsentCommand):
            cart.save()
        assert Cart.objects.count() == 0

        cart.pull_recorded_commands()
        cart.save()

        assert Cart.objects.count() == 1

    def test_outside_handlers_a_repository_sends(self, carts):
        """As it publishes what was recorded."""

        @carts.registry.add
        @query_handler("carts")
        def get(carts: Repository[Cart]) -> object:
            return carts

        repository = carts.registry.query_bus.ask(route="carts")
        cart = Cart()
        cart.send(lambda: Pack(cart.pk))
        repository.save(cart)

        assert carts.seen == [Pack(cart.pk)]

    def test_a_handler_may_save_its_own_object_in_between(self, carts):
        """What it has sent by then goes out at its end."""

        def steps(cart):
            cart.send(Pack(cart.pk))
            cart.save()

        carts.do(steps)

        assert len(carts.seen) == 1


class TestBadValues:
    @pytest.mark.parametrize(
        ("arguments", "options", "error", "said"),
        [
            ((), {}, InvalidOption, "takes a command, not None"),
            ((Pack,), {}, InvalidOption, r"takes an instance, Pack\(...\)"),
            ((Send(Pack(7)),), {}, InvalidOption, "A Send is already complete"),
            ((Pack(7),), {"route": 7}, InvalidOption, "must be a routing key"),
            ((Pack(7),), {"delay": "1h"}, InvalidOption, "delay= takes seconds"),
            ((Pack(7),), {"delay": -1}, InvalidOption, "is negative"),
            (
                (Pack(7),),
                {"delay": datetime(2026, 7, 1)},  # noqa: DTZ001 - it is refused
                InvalidOption,
                "no time zone",
            ),
            ((Pack(7),), {"expires": True}, InvalidOption, "expires= takes seconds"),
            ((Pack(7),), {"priority": 1.5}, InvalidOption, "takes a whole number"),
            ((Pack(7),), {"headers": {"delay": 1}}, InvalidHeader, "reserved"),
            ((Pack(7),), {"headers": {"x": object()}}, InvalidHeader, "'x'"),
            ((Pack(7),), {"headers": "x"}, InvalidHeader, "takes a mapping"),
        ],
    )
    def test_each_is_an_error_where_it_is_written(
        self, arguments, options, error, said
    ):
        """`Send` and `send` check the same; nothing is recorded."""
        cart = Cart()
        with pytest.raises(error, match=said):
            Send(*arguments, **options)
        with pytest.raises(error, match=said):
            cart.send(*arguments, **options)

        assert cart.recorded_commands == []

    @pytest.mark.parametrize(
        ("event", "said"),
        [
            (None, r"record\(\) takes an event, not None"),
            (Opened, r"record\(\) takes an instance, Opened\(...\), not the class"),
            (Send(Pack(7)), r"Send a command with send\(...\)"),
        ],
        ids=["none", "class", "send"],
    )
    def test_what_is_no_event_is_not_recorded(self, event, said):
        """None, a class and a command each have an error of their own."""
        cart = Cart()
        with pytest.raises(InvalidEvent, match=said):
            cart.record(event)

        assert cart.recorded_events == []


class Answer(Command[int]):
    """A command that promises a number."""


class TestChecks:
    @pytest.mark.parametrize(
        ("returns", "is_sound"),
        [
            (tuple[int, Send], True),
            (tuple[int, Send, Send], True),
            (tuple[str, Send], False),
            (Send, False),
            (int | Send, False),
            (list[Send], False),
        ],
        ids=str,
    )
    def test_the_result_is_what_is_left(self, returns, is_sound):
        """A promised result is compared with the annotation without its Sends."""

        def answer(command: Answer) -> None: ...

        answer.__annotations__["return"] = returns
        registry = Registry()

        @registry.add
        @command_handler("receive")
        def receive(payload: object) -> None: ...

        registry.add(command_handler(output="receive")(answer))

        ids = [each.id for each in check_registry(registry)]
        assert ids == ([] if is_sound else ["django_cqrs.E014"])


def test_documents_do_not_store_what_is_recorded():
    """What waits to be sent is not part of an object's state."""
    desk = Desk(Bag)
    desk.make(lambda cls: _sending(cls.new(), lambda bag: Pack(bag.number)))

    assert DocumentStore(Bag).get(NUMBER).recorded_commands == []


def test_now_is_an_expression():
    """A command with an expression is refused where it is sent."""
    with pytest.raises(
        InvalidEvent, match="Pack cannot be sent: text is an expression"
    ):
        Cart(pk=7).send(Pack(7, Now()))
