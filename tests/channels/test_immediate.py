"""Channels whose handlers are called inside the sender's transaction."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated
from uuid import UUID

import pytest
from django.core import mail
from django.core.checks import run_checks
from django.core.mail import send_mail
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import TestCase, override_settings
from django.urls import path

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    Headers,
    Message,
    Registry,
    Retry,
    command_bus,
    command_handler,
    event_bus,
    event_handler,
    message,
)
from django_cqrs.channels import ImmediateChannel, InMemoryChannel, channels
from django_cqrs.checks import check_registry
from django_cqrs.interception import before, pointcut
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.outbox.models import InboxEntry, OutboxMessage
from django_cqrs.testing import Flow, eager_channels
from tests.channels.support import Refused
from tests.modelling.messages import OrderPlaced
from tests.modelling.models import Fulfilment
from tests.testapp.models import Note

pytestmark = [pytest.mark.database, pytest.mark.django_db]

CHANNELS = {
    "now": {"BACKEND": "django_cqrs.channels.ImmediateChannel"},
    "too": {"BACKEND": "django_cqrs.channels.ImmediateChannel"},
    "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
}


@pytest.fixture(autouse=True)
def _channels(settings):
    settings.DJANGO_CQRS = {"CHANNELS": CHANNELS}


@message("immediate.write")
@dataclass(frozen=True)
class Write:
    text: str
    price: Decimal = Decimal(1)


@message("immediate.placed")
@dataclass(frozen=True)
class Placed:
    text: str


@dataclass(frozen=True)
class Do:
    """A command that is handled at once: it does what it carries."""

    steps: object


class Desk:
    """Handlers of every kind, and what they have seen."""

    def __init__(self):
        self.seen = []
        self.messages = []
        self.registry = registry = Registry()

        @registry.add
        @command_handler(name="write", channel="now", retry=Retry(attempts=3))
        @command_handler("write")
        def write(command: Write, message: Message, commands: CommandBus) -> None:
            self.messages.append(message)
            self.note(command.text)
            if command.text.startswith("parent"):
                commands.dispatch(Write(f"child of {command.text}"))
                self.note(f"end of {command.text}")
            if command.text.startswith("bad"):
                raise Refused

        @registry.add
        @command_handler("too", name="too", channel="too")
        def too(text: str, commands: CommandBus) -> None:
            self.note(text)

        @registry.add
        @event_handler(name="first_behind", channel="now", priority=5)
        def first_behind(event: Placed) -> None:
            self.note(f"first behind {event.text}")
            if event.text == "bad":
                raise Refused

        @registry.add
        @event_handler(name="second_behind", channel="now")
        async def second_behind(event: Placed) -> None:
            self.seen.append(f"second behind {event.text}")

        @registry.add
        @event_handler(name="at_once")
        def at_once(event: Placed) -> None:
            self.note(f"at once {event.text}")

        @registry.add
        @command_handler(name="do")
        def do(command: Do) -> object:
            return command.steps()

    def note(self, text):
        Note.objects.create(text=text)
        self.seen.append(text)

    def do(self, *steps):
        return self.registry.command_bus.dispatch(Do(lambda: [do() for do in steps]))

    def write(self, text, **options):
        return self.registry.command_bus.dispatch(Write(text), **options)

    def publish(self, text):
        self.registry.event_bus.publish(Placed(text))


@pytest.fixture
def desk():
    return Desk()


def texts():
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


class TestTime:
    def test_a_commands_messages_are_handled_at_its_end(self, desk):
        """After the command's own handler, and before its caller goes on."""
        desk.do(lambda: desk.note("a"), lambda: desk.write("b"), lambda: desk.note("c"))

        assert desk.seen == ["a", "c", "b"]

    def test_outside_a_command_a_message_is_handled_at_once(self, desk):
        """The send returns None, as with any channel, when the handler has run."""
        assert desk.write("a") is None

        assert desk.seen == ["a"]

    def test_background_handlers_come_after_the_synchronous_ones(self, desk):
        """Of one event, in their order, each with a message of its own."""
        desk.publish("it")

        assert desk.seen == ["at once it", "first behind it", "second behind it"]

    def test_what_a_handler_sends_comes_after_it(self, desk):
        """And after what was sent before: as from a queue, however deep."""
        desk.do(lambda: desk.write("parent"), lambda: desk.write("sibling"))

        assert desk.seen == ["parent", "end of parent", "sibling", "child of parent"]

    def test_channels_may_send_to_each_other(self, desk):
        """Each channel handles its own messages, in the same transaction."""

        @desk.registry.add
        @command_handler("relay", channel="too")
        def relay(text: str, commands: CommandBus) -> None:
            commands.dispatch(Write(text))

        desk.registry.command_bus.dispatch("a", route="relay")

        assert desk.seen == ["a"]

    def test_a_message_from_a_block_inside_a_command_waits_for_its_end(self, desk):
        """So that the order of sending is kept, and what is undone is not handled."""

        def block():
            with transaction.atomic():
                desk.write("2")

        def undone():
            with suppress(Refused), transaction.atomic():
                desk.write("never")
                raise Refused

        desk.do(lambda: desk.write("1"), block, undone, lambda: desk.write("3"), block)

        assert desk.seen == ["1", "2", "3", "2"]
        assert texts() == ["1", "2", "3", "2"]

    def test_a_delayed_message_waits(self, desk):
        """It is handled when its time has passed and the channel is run."""
        with Flow(registry=desk.registry) as flow:
            desk.do(lambda: desk.write("late", delay=60), lambda: desk.write("now"))
            at_first = list(desk.seen)
            flow.advance(seconds=60)
            run = flow.run("now")

        assert (at_first, run, desk.seen) == (["now"], 1, ["now", "late"])

    def test_one_that_expires_at_once_is_dropped(self, desk, caplog):
        """The usual line is logged."""
        caplog.set_level(logging.INFO, "django_cqrs.channels")

        desk.write("never", expires=0)

        assert desk.seen == []
        assert "was dropped: it expired" in caplog.text

    def test_priorities_count_inside_a_command(self, desk):
        """The highest is handled first."""
        desk.do(lambda: desk.write("low"), lambda: desk.write("high", priority=1))

        assert desk.seen == ["high", "low"]

    def test_each_thread_handles_its_own_messages(self, desk):
        """A live server's threads do not handle those of each other."""
        threads = {}

        @desk.registry.add
        @command_handler("where", channel="now", atomic=False)
        def where(name: str) -> None:
            threads[name] = threading.current_thread().name

        def send(name):
            desk.registry.command_bus.dispatch(name, route="where")

        other = threading.Thread(target=send, args=["other"], name="other")
        other.start()
        other.join()
        send("here")

        here = threading.current_thread().name
        assert threads == {"other": "other", "here": here}


class TestMessage:
    def test_the_payload_goes_through_json(self, desk):
        """The handler gets an equal object, not the same one, and a value converted."""
        sent = Write("a", Decimal("1.50"))
        desk.registry.command_bus.dispatch(sent)
        desk.registry.command_bus.dispatch({"text": "b", "price": "2"}, route="write")

        assert [each.payload for each in desk.messages] == [
            sent,
            Write("b", Decimal(2)),
        ]
        assert desk.messages[0].payload is not sent

    def test_headers_go_through_json_and_the_identity_is_kept(self, desk):
        """A UUID becomes text; ids and causes are those of the sending."""
        seen = []

        @desk.registry.add
        @command_handler("outer")
        def outer(message: Message) -> None:
            seen.append(message)
            desk.write("parent")

        desk.registry.command_bus.dispatch(
            route="outer", headers={"tenant": UUID(int=7)}
        )

        [outer_message], [parent, child] = seen, desk.messages
        assert parent.headers["tenant"] == str(UUID(int=7))
        assert child.headers["tenant"] == str(UUID(int=7))
        assert parent.causation_id == outer_message.message_id
        assert child.causation_id == parent.message_id
        assert child.correlation_id == outer_message.correlation_id

    def test_interceptors_run_where_a_worker_would_run_them(self, desk):
        """Once around each handling, with the message that came out of the channel."""
        calls = []

        @desk.registry.add
        @before(pointcut.handler("write"))
        def check(headers: Headers, who: Annotated[str, Header("who")]) -> None:
            calls.append(who)

        desk.write("parent", headers={"who": "ada"})

        assert calls == ["ada", "ada"]

    def test_a_duplicate_is_not_handled(self, desk):
        """Keys are remembered inside the same transaction."""

        @desk.registry.add
        @command_handler("once", channel="now", idempotency_key=Header("key"))
        def once(text: str) -> None:
            desk.note(text)

        for _ in range(2):
            desk.registry.command_bus.dispatch("a", route="once", headers={"key": "k"})

        assert desk.seen == ["a"]
        assert InboxEntry.objects.count() == 1


class TestFailure:
    def test_the_sender_gets_it_and_its_command_is_undone(self, desk):
        """Nothing of the command is left; its other messages are not handled."""
        with pytest.raises(Refused):
            desk.do(
                lambda: desk.note("a"),
                lambda: desk.write("bad"),
                lambda: desk.write("b"),
            )

        assert desk.seen == ["a", "bad"]
        assert texts() == []

    def test_outside_a_command_the_sender_gets_it_too(self, desk):
        """`retry=` has no effect; what is sent later is handled as if nothing was."""
        with pytest.raises(Refused):
            desk.write("bad")
        with pytest.raises(Refused):
            desk.publish("bad")
        desk.write("b")

        assert desk.seen == ["bad", "at once bad", "first behind bad", "b"]
        assert texts() == ["at once bad", "b"]

    def test_what_its_handler_has_sent_is_not_handled(self, desk):
        """A failure sends nothing, also where the sender catches it."""

        def caught():
            with suppress(Refused), transaction.atomic():
                desk.do(lambda: desk.write("parent"), lambda: desk.write("bad"))

        caught()

        assert desk.seen == ["parent", "end of parent", "bad"]
        assert texts() == []

    def test_a_nested_command_that_failed_has_sent_nothing(self, desk):
        """Its messages are not handled at the end of the one around it."""

        def caught():
            with suppress(Refused):
                desk.do(lambda: desk.write("never"), _refuse)

        desk.do(lambda: desk.write("a"), caught)

        assert desk.seen == ["a"]

    def test_a_block_that_fails_later_comes_too_late(self, desk):
        """What no command encloses has been handled; only its writes are undone."""
        with suppress(Refused), transaction.atomic():
            desk.write("a")
            raise Refused

        assert desk.seen == ["a"]
        assert texts() == []


def _refuse():
    raise Refused


class TestSettings:
    def test_policies_of_other_channels_are_accepted(self, settings):
        """A handler with each policy keeps its declaration: there is no check."""
        registry = Registry()

        @registry.add
        @command_handler(
            "all",
            channel="now",
            retry=Retry(attempts=3),
            delay=0,
            expires=60,
            priority=1,
            ordering_key=lambda message: message.payload,
        )
        def take_all(text: str) -> None: ...

        assert check_registry(registry) == []
        assert registry.command_bus.dispatch("a", route="all") is None

    def test_all_channels_of_a_project_can_be_immediate(self, settings):
        """The settings of a suite may name it for each alias of the project."""
        settings.DJANGO_CQRS = {
            "CHANNELS": dict.fromkeys(("outbox", "memory"), CHANNELS["now"])
        }

        assert run_checks(tags=["django_cqrs"]) == []


# Eager --------------------------------------------------------------------------------


class TestEager:
    def test_a_flow_makes_every_channel_immediate(self, settings):
        """What passed the buses is recorded, and nothing is stored for a worker."""
        with Flow(eager=True) as flow:
            event_bus.publish(OrderPlaced(7))
            stored, waiting = (
                OutboxMessage.objects.count(),
                channels["outbox"].waiting(),
            )
            flow.advance(hours=24)
            handled = flow.run("outbox")

        assert stored == 0
        assert [each.endpoint for each in waiting] == [
            "modelling.Fulfilment.on_payment_due"
        ]
        assert handled == 1
        assert Fulfilment.objects.get().fate == "cancelled"
        assert [type(each).__name__ for each in flow.sent] == ["CancelOrder"]

    def test_the_timers_of_a_saga_end_with_it(self):
        """They wait, and completing the saga takes them back."""
        with Flow(eager=True) as flow:
            event_bus.publish(OrderPlaced(7))
            command_bus.dispatch(route="fulfilment.finish", aggregate_id=7)
            flow.advance(hours=24)

            assert channels["outbox"].waiting() == []
            assert flow.run("outbox") == 0

    def test_the_channels_come_back_with_their_messages(self, settings):
        """After the block, the channels and what waits in them are the former ones."""
        settings.DJANGO_CQRS = {
            "CHANNELS": {
                "now": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
                "too": CHANNELS["too"],
            }
        }
        desk = Desk()
        desk.write("waits")
        former = channels["now"]

        with eager_channels(), eager_channels():
            desk.write("a")
            assert type(channels["now"]) is ImmediateChannel
        desk.write("waits too")

        assert desk.seen == ["a"]
        assert channels["now"] is former
        assert len(former.waiting()) == 2

    def test_settings_that_change_inside_are_used_afterwards(self, settings):
        """No channel of the former settings comes back."""
        former = channels["outbox"]
        with eager_channels():
            settings.DJANGO_CQRS = {
                "CHANNELS": {
                    "outbox": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}
                }
            }
            assert type(channels["outbox"]) is ImmediateChannel

        assert isinstance(former, OutboxChannel)
        assert type(channels["outbox"]) is InMemoryChannel

    @pytest.mark.cqrs_eager
    def test_the_marker_does_it_for_one_test(self):
        """Its fixtures are included; the next test has the project's own channels."""
        assert type(channels["outbox"]) is ImmediateChannel

    def test_without_the_marker_nothing_changes(self):
        """A test has the channels of the settings."""
        assert type(channels["outbox"]) is OutboxChannel


# An existing suite --------------------------------------------------------------------

registry = Registry()


@message("immediate.open_ticket")
@dataclass(frozen=True)
class OpenTicket:
    title: str


@message("immediate.ticket_opened")
@dataclass(frozen=True)
class TicketOpened:
    title: str


@registry.add
@command_handler
def open_ticket(command: OpenTicket, events: EventBus) -> None:
    Note.objects.create(text=command.title)
    events.publish(TicketOpened(command.title))


@registry.add
@event_handler(channel="outbox")
def confirm(event: TicketOpened) -> None:
    if event.title == "unmailable":
        raise Refused
    send_mail(event.title, "We look into it.", None, ["ada@example.com"])


def view(request):
    registry.command_bus.dispatch(OpenTicket(request.POST["title"]))
    return HttpResponse(status=201)


urlpatterns = [path("tickets/", view)]

# Django 6.1 and later ask for it.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}


@override_settings(ROOT_URLCONF=__name__, MAILERS=MAILERS)
@eager_channels()
class TicketTests(TestCase):
    """Tests as a project has them: a request, and a look at the mails."""

    def setUp(self):
        self.client.post("/tickets/", {"title": "of setUp"})

    def test_a_mail_is_sent_by_the_request(self):
        """The handler on the outbox has run when the response is there."""
        response = self.client.post("/tickets/", {"title": "Broken lamp"})

        assert response.status_code == 201
        assert [each.subject for each in mail.outbox] == ["of setUp", "Broken lamp"]
        assert connection.in_atomic_block

    def test_a_failure_fails_the_request(self):
        """Its exception reaches the test, and the request has stored nothing."""
        with pytest.raises(Refused):
            self.client.post("/tickets/", {"title": "unmailable"})

        assert texts() == ["of setUp"]


@override_settings(ROOT_URLCONF=__name__, MAILERS=MAILERS)
class OneTicketTest(TestCase):
    @eager_channels()
    def test_one_test_may_be_eager(self):
        """The decorator takes a method as well."""
        self.client.post("/tickets/", {"title": "Broken lamp"})

        assert len(mail.outbox) == 1

    def test_the_others_are_not(self):
        """A neighbour's message waits for a worker."""
        self.client.post("/tickets/", {"title": "Broken lamp"})

        assert len(mail.outbox) == 0
        assert OutboxMessage.objects.count() == 1

    def test_a_flow_in_the_test(self):
        """A block is enough."""
        with Flow(registry=registry, eager=True) as flow:
            self.client.post("/tickets/", {"title": "Broken lamp"})

        assert len(mail.outbox) == 1
        assert flow.published == [TicketOpened("Broken lamp")]
