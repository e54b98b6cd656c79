"""A flow until it is quiet, faults on purpose, and leftovers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.test import TestCase

from django_cqrs import (
    CommandBus,
    EventBus,
    InstantRetry,
    Retry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.channels import Channel
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.testing import Flow, SimulatedCrash
from tests.support import registry_of
from tests.testapp.models import Note


@message("settle.placed")
@dataclass(frozen=True)
class Placed:
    number: int


@message("settle.noted")
@dataclass(frozen=True)
class Noted:
    number: int


@message("settle.remind")
@dataclass(frozen=True)
class Remind:
    number: int


@message("settle.ping")
@dataclass(frozen=True)
class Ping:
    number: int = 0


@message("settle.pong")
@dataclass(frozen=True)
class Pong:
    number: int = 0


@dataclass(frozen=True)
class Place:
    number: int


QUICK = Retry(attempts=3, delay=60, jitter=False)


@command_handler
def place(command: Place, events: EventBus) -> None:
    Note.objects.create(text="placed", number=command.number)
    events.publish(Placed(command.number))


@event_handler(channel="outbox", retry=QUICK)
def note_it(event: Placed, commands: CommandBus, events: EventBus) -> None:
    Note.objects.create(text="noted", number=event.number)
    events.publish(Noted(event.number))
    commands.dispatch(Remind(event.number), delay=3600)


@event_handler(channel="memory")
def note_in_memory(event: Noted) -> None:
    Note.objects.create(text="in memory", number=event.number)


@command_handler(channel="outbox")
def remind(command: Remind) -> None:
    Note.objects.create(text="reminded", number=command.number)


@event_handler
def note_at_once(event: Placed) -> None:
    Note.objects.create(text="at once", number=event.number)


HANDLERS = (place, note_it, note_in_memory, remind)


@pytest.fixture
def flow(db):
    with Flow(registry=registry_of(*HANDLERS)) as flow:
        yield flow


def dispatch(flow, command):
    return flow.registry.command_bus.dispatch(command)


def fail_in(registry, disturb, **options):
    """Raise an exception in the block of a flow, after something was done in it."""
    with Flow(registry=registry, **options) as flow:
        disturb(flow)
        raise ZeroDivisionError


def texts():
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


class TestSettle:
    @pytest.mark.database
    def test_every_channel_until_it_is_quiet(self, flow):
        """It handles what waits in each channel, and lets time pass for delays. [K02.1]"""
        dispatch(flow, Place(7))

        tree = flow.settle()

        assert texts() == ["placed", "noted", "in memory", "reminded"]
        assert str(tree) == (
            "command Place(number=7)\n"
            "└─ testing.place\n"
            "   └─ event Placed(number=7)\n"
            "      └─ testing.note_it, from 'outbox'\n"
            "         ├─ event Noted(number=7)\n"
            "         │  └─ testing.note_in_memory, from 'memory'\n"
            "         └─ command Remind(number=7)\n"
            "            └─ testing.remind, from 'outbox'"
        ).replace("testing.", "tests.testing.test_settle.")
        assert tree.sent == [Place(7), Remind(7)]
        assert tree.published == [Placed(7), Noted(7)]
        assert (len(tree), repr(tree)) == (4, "<Tree of 4 messages>")

    def test_no_time_passes_beyond_the_horizon(self, flow):
        """What falls due later waits, and the tree says until when."""
        dispatch(flow, Place(7))

        tree = flow.settle(horizon=3599)

        assert texts() == ["placed", "noted", "in memory"]
        assert "remind: waits in 'outbox', due after 1:00:00" in str(tree)
        flow.horizon = timedelta(hours=1)
        flow.settle()
        assert texts()[3:] == ["reminded"]

    def test_messages_fall_due_in_their_order(self, db):
        """A message that is sent with a delay on the way is due in its turn."""
        order = []

        @command_handler("settle.first", channel="outbox", delay=60)
        def first(commands: CommandBus) -> None:
            order.append("first")
            commands.dispatch(route="settle.second")

        @command_handler("settle.second", channel="memory", delay=60)
        def second() -> None:
            order.append("second")

        @command_handler("settle.third", channel="outbox", delay=150)
        def third() -> None:
            order.append("third")

        with Flow(registry=registry_of(first, second, third)) as flow:
            flow.registry.command_bus.dispatch(route="settle.third")
            flow.registry.command_bus.dispatch(route="settle.first")
            flow.settle()

        assert order == ["first", "second", "third"]

    def test_an_endless_loop(self, db):
        """It ends with an error that shows the loop. [K02.1]"""

        @event_handler(channel="outbox")
        def ping(event: Ping, events: EventBus) -> None:
            events.publish(Pong())

        @event_handler(channel="memory")
        def pong(event: Pong, events: EventBus) -> None:
            events.publish(Ping())

        with Flow(registry=registry_of(ping, pong)) as flow:
            flow.limit = 20
            flow.registry.event_bus.publish(Ping())
            with pytest.raises(AssertionError) as raised:
                flow.settle()

        assert str(raised.value).startswith(
            "The flow is not quiet after 20 messages, which is its limit. It ends "
            "with: Ping -> Pong -> Ping. If it is not endless, raise flow.limit, or "
            "let less time pass with flow.horizon. This is what happened:\nevent Ping"
        )

    def test_a_message_that_sends_itself_after_a_delay(self, db):
        """It comes to an end at the horizon, or at the limit."""

        @command_handler("settle.again", channel="outbox")
        def again(commands: CommandBus) -> None:
            commands.dispatch(route="settle.again", delay=3600)

        with Flow(registry=registry_of(again)) as flow:
            flow.registry.command_bus.dispatch(route="settle.again")
            assert 24 <= len(flow.settle()) <= 26
            flow.horizon, flow.limit = timedelta(days=9), 30
            with pytest.raises(AssertionError, match=r"again -> .*again"):
                flow.settle()

    def test_a_failure_is_tried_again(self, flow):
        """Time passes until the next attempt, as in production."""
        flow.fails_once(note_it, OSError("full"))
        dispatch(flow, Place(7))

        tree = flow.settle()

        assert texts() == ["placed", "noted", "in memory", "reminded"]
        assert [type(error) for error in tree.failures] == [OSError]
        assert (
            "note_it, from 'outbox': failed with OSError('full')\n"
            "      └─ tests.testing.test_settle.note_it, from 'outbox', attempt 2\n"
        ) in str(tree)

    def test_a_message_that_is_given_up(self, flow):
        """Its exception is raised after everything else was handled, with the tree."""

        @flow.registry.add
        @event_handler(channel="outbox", retry=Retry(attempts=2), priority=1)
        def refuse(event: Placed) -> None:
            raise ValueError("never")

        dispatch(flow, Place(7))
        with pytest.raises(ValueError, match=r"^never") as raised:
            flow.settle()

        assert texts() == ["placed", "noted", "in memory", "reminded"]
        assert DeadLetter.objects.get().attempts == 2
        [note] = raised.value.__notes__
        assert "attempt 2: failed with ValueError('never'), and was given up" in note

    def test_failures_may_be_kept(self, flow):
        """Then they are in the tree, and nothing is raised."""
        with pytest.raises(InvalidOption, match='"raise" or "keep", not \'hide\''):
            flow.settle(failures="hide")

        @flow.registry.add
        @event_handler(channel="outbox", retry=Retry(attempts=1))
        def refuse(event: Placed) -> None:
            raise ValueError("never")

        dispatch(flow, Place(7))
        tree = flow.settle(failures="keep")

        assert [str(error) for error in tree.failures] == ["never"]

    @pytest.mark.parametrize("channel", ["memory", "outbox"])
    def test_a_message_that_is_never_given_up(self, db, channel):
        """Its failure is raised after some attempts: it would go on for ever."""
        calls = []
        policy = {"retry": Retry(final_failure="stop", attempts=1)}

        @command_handler(
            "settle.stuck",
            channel=channel,
            **(policy if channel == "outbox" else {}),
        )
        def stuck() -> None:
            calls.append(1)
            raise RuntimeError("stuck")

        with Flow(registry=registry_of(stuck)) as flow:
            flow.registry.command_bus.dispatch(route="settle.stuck")
            with pytest.raises(RuntimeError, match="stuck"):
                flow.settle()

        assert 2 < len(calls) < 10

    def test_a_channel_after_the_commit(self, db, settings):
        """A test never commits; what waits for it is handled all the same."""
        settings.DJANGO_CQRS = {
            "CHANNELS": {
                "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
                "own": {"BACKEND": "tests.testing.test_settle.Nowhere"},
                "broken": {"BACKEND": "nowhere.Nothing"},
            }
        }
        seen = []

        @command_handler("settle.commit", channel="commit")
        def commit(number: int, commands: CommandBus) -> None:
            seen.append(number)
            if number:
                commands.dispatch(number - 1, route="settle.commit")
            else:
                raise RuntimeError("last")

        with Flow(registry=registry_of(commit)) as flow:
            flow.registry.command_bus.dispatch(2, route="settle.commit")
            with pytest.raises(RuntimeError, match="last"):
                flow.settle()

        assert seen == [2, 1, 0]

    def test_an_idle_system(self, flow):
        """Nothing happens, and the tree says so."""
        assert str(flow.settle()) == "(nothing happened)"

    def test_what_waited_before(self, flow):
        """A message that was sent before the flow is a root of the tree."""
        registry = registry_of(*HANDLERS)
        registry.command_bus.dispatch(Place(7))
        dispatch(flow, Place(8))

        tree = flow.settle()

        assert [root.payload for root in tree.roots] == [Place(8), Placed(7)]


class Nowhere(Channel):
    """A channel of somebody's own, which keeps no messages that a test could run."""


class SettleTests(TestCase):
    def test_in_a_test_case(self):
        """Django's TestCase, which is rolled back, needs nothing else. [K02.1]"""
        flow = self.enterContext(Flow(registry=registry_of(*HANDLERS)))
        dispatch(flow, Place(7))

        flow.settle()

        assert texts()[-1] == "reminded"


class TestFailsOnce:
    @pytest.mark.database
    def test_the_next_call_alone(self, flow):
        """A handler fails once, before it does anything, and others do not. [K02.2]"""
        flow.registry.add(note_at_once)
        flow.fails_once(place, ZeroDivisionError)

        with pytest.raises(ZeroDivisionError):
            dispatch(flow, Place(1))
        assert texts() == []
        dispatch(flow, Place(2))
        flow.settle()

        assert texts() == ["placed", "at once", "noted", "in memory", "reminded"]

    def test_by_name_and_several_times(self, flow):
        """The name of an endpoint will do; each call adds a failure, in order."""
        name = "tests.testing.test_settle.place"
        flow.fails_once(name, OSError("first"))
        flow.fails_once(name, KeyError("second"))

        with pytest.raises(OSError, match="first"):
            dispatch(flow, Place(1))
        with pytest.raises(KeyError, match="second"):
            dispatch(flow, Place(1))
        dispatch(flow, Place(1))

        assert texts() == ["placed"]

    def test_inside_the_retries_of_the_bus(self, db):
        """A bus that retries does so: the failure is that of a handler."""
        registry = registry_of(place)
        bus = CommandBus(registry=registry, instant_retry=InstantRetry(1))
        with Flow(registry=registry) as flow:
            flow.fails_once(place, OSError)
            bus.dispatch(Place(3))

        assert texts() == ["placed"]

    def test_what_is_not_a_handler(self, flow):
        """One clear error says what to do instead; nothing is changed."""
        with pytest.raises(InvalidOption) as raised:
            flow.fails_once(texts, OSError)
        with pytest.raises(InvalidOption, match="takes an exception, not 'no'"):
            flow.fails_once(place, "no")
        with pytest.raises(InvalidOption, match="'nobody' is not one"):
            flow.crashes_after("nobody")

        assert str(raised.value) == (
            "flow.fails_once() takes a handler of the registry, its function or its "
            "name: 'tests.testing.test_settle.texts' is not one. Replace any other "
            "function with unittest.mock.patch()."
        )


class TestCrashesAfter:
    @pytest.mark.database
    @pytest.mark.parametrize("channel", ["memory", "outbox"])
    def test_a_worker_that_ends(self, db, channel):
        """Its writes are undone; another one handles the message again. [K02.2]"""
        charged = []

        @event_handler(channel=channel, name="settle.charge")
        def charge(event: Placed, events: EventBus) -> None:
            charged.append(event.number)
            Note.objects.create(text="charged", number=event.number)
            events.publish(Noted(event.number))

        with Flow(registry=registry_of(place, charge)) as flow:
            flow.crashes_after(charge)
            dispatch(flow, Place(7))
            tree = flow.settle()

        assert charged == [7, 7]  # what no transaction undoes
        assert texts() == ["placed", "charged"]
        assert tree.published == [Placed(7), Noted(7)]
        assert "event Noted(number=7) (rolled back)" in str(tree)

    def test_a_sender_that_ends(self, flow):
        """Whoever has called the handler gets the crash, which is no Exception."""
        flow.crashes_after(place)

        with pytest.raises(SimulatedCrash, match="place, before the commit"):
            dispatch(flow, Place(7))
        assert texts() == []
        dispatch(flow, Place(8))

        assert not issubclass(SimulatedCrash, Exception)
        assert texts() == ["placed"]


class TestTwice:
    @pytest.mark.database
    def test_each_handler_gets_it_twice(self, flow):
        """In a channel and at once; others are handled once, as ever. [K02.2]"""
        flow.registry.add(note_at_once)
        flow.twice(Placed)
        dispatch(flow, Place(7))

        tree = flow.settle()

        counts = {text: texts().count(text) for text in texts()}
        assert counts == {
            "placed": 1,
            "at once": 2,
            "noted": 2,
            "in memory": 2,  # what is handled twice sends twice
            "reminded": 2,
        }
        assert "note_it, from 'outbox', repeated by the test" in str(tree)
        assert "note_at_once, repeated by the test" in str(tree)

    def test_one_handler_alone(self, flow):
        """A handler in place of a class: its messages alone come twice."""
        flow.registry.add(note_at_once)
        flow.twice(note_it)
        dispatch(flow, Place(7))

        flow.settle()

        assert (texts().count("at once"), texts().count("noted")) == (1, 2)

    def test_a_second_failure_is_not_the_senders(self, db):
        """The sender of the first one gets its result; the tree shows the failure."""

        @command_handler
        def only_once(command: Place) -> str:
            if Note.objects.exists():
                Note.objects.create(text="half")
                raise ValueError("again")
            Note.objects.create(text="once")
            return "done"

        with Flow(registry=registry_of(only_once)) as flow:
            flow.twice(Place)
            assert dispatch(flow, Place(1)) == "done"

        assert texts() == ["once"]
        assert [str(error) for error in flow.tree.failures] == ["again"]

    def test_what_is_neither_class_nor_handler(self, flow):
        """It is refused."""
        with pytest.raises(InvalidOption, match="a class of messages, or a handler"):
            flow.twice("nothing")

    def test_a_large_message_is_doubled_once(self, flow):
        """A channel's two ways of writing, of which one calls the other, are one."""
        flow.twice(Noted)
        flow.registry.event_bus.publish(Noted(1))

        assert flow.run("memory") == 2


class TestShuffled:
    def order_of(self, seed, channel="outbox", **policies):
        seen = []

        @event_handler(channel=channel, name="settle.see", **policies)
        def see(event: Placed) -> None:
            seen.append(event.number)

        with Flow(registry=registry_of(see)) as flow:
            if seed is not None:
                flow.shuffled(seed)
            for number in range(8):
                flow.registry.event_bus.publish(Placed(number))
            flow.settle()
        return seen

    @pytest.mark.database
    @pytest.mark.parametrize("channel", ["outbox", "memory"])
    def test_another_order_by_the_seed(self, db, channel):
        """The same seed gives the same order; nothing is lost. [K02.2]"""
        orders = [self.order_of(seed, channel) for seed in (1, 1, 2, None)]

        assert [sorted(order) for order in orders] == [list(range(8))] * 4
        assert orders[0] == orders[1] != orders[2]
        assert orders[0] != orders[3] == list(range(8))

    def test_an_ordering_key_holds(self, db):
        """The messages of one key come in the order of sending."""
        key = {"ordering_key": lambda message: "one"}

        assert self.order_of(1, **key) == list(range(8))


class TestEnd:
    def test_all_is_undone(self, db):
        """After the block nothing fails, repeats or is moved any longer. [K02.2]"""
        registry = registry_of(*HANDLERS)

        def disturb(flow):
            flow.fails_once(place, OSError)
            flow.crashes_after(note_it)
            flow.twice(Placed)
            flow.shuffled(3)

        with Flow(registry=registry) as flow:
            disturb(flow)
        with pytest.raises(ZeroDivisionError):
            fail_in(registry, disturb)

        with Flow(registry=registry) as flow:
            dispatch(flow, Place(7))
            tree = flow.settle()
        assert texts() == ["placed", "noted", "in memory", "reminded"]
        assert tree.failures == []

    @pytest.mark.database
    def test_a_leftover_message(self, db):
        """It fails the test where asked, by a text that names it. [K02.4]"""
        registry = registry_of(*HANDLERS)

        with Flow(registry=registry) as flow:
            dispatch(flow, Place(7))  # nobody asks
            flow.settle(horizon=0)
            OutboxMessage.objects.all().delete()
        with (
            pytest.raises(AssertionError) as raised,
            Flow(registry=registry, leftovers=False) as flow,
        ):
            dispatch(flow, Place(7))

        assert str(raised.value).startswith(
            "Messages wait at the end of the test, and nothing has handled them:\n"
            "  settle.placed for tests.testing.test_settle.note_it in 'outbox'\n"
            "This is what happened:\ncommand Place(number=7)\n"
        )

    def test_a_leftover_does_not_hide_a_failure(self, db):
        """A test that failed by itself fails with its own exception."""
        with pytest.raises(ZeroDivisionError):
            fail_in(
                registry_of(*HANDLERS),
                lambda flow: dispatch(flow, Place(7)),
                leftovers=False,
            )

    def test_the_attribute(self, db):
        """It is set inside the block as well: for the fixture."""
        flow = Flow(registry=registry_of(note_in_memory)).__enter__()
        flow.leftovers = False
        flow.assert_empty()
        flow.registry.event_bus.publish(Noted(1))

        with pytest.raises(AssertionError, match="note_in_memory in 'memory'"):
            flow.__exit__(None, None, None)
