"""
The conformance suite of channels: pytest tests to run against your own channel.

Failures are more readable with rewritten assertions: call
``pytest.register_assert_rewrite("django_cqrs.testing.channels")`` in ``conftest.py``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar
from unittest import mock
from uuid import UUID

import pytest
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.utils import timezone

from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Channel, Delivery, Envelope, next_sequence
from django_cqrs.declaration.decorators import command_handler, event_handler
from django_cqrs.exceptions import (
    InvalidChannel,
    InvalidOption,
    MessageConversionError,
    UnknownMessage,
)
from django_cqrs.messages import Message
from django_cqrs.retries import Retry

__all__ = ["ChannelConformance", "HandlerFailed"]


class HandlerFailed(Exception):
    """The exception that a handler of the suite raises on purpose."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Part of a note."""

    product: UUID
    price: Decimal


@dataclasses.dataclass(frozen=True)
class GiftLine(Line):
    """A line that would lose its wish where a line is expected."""

    wish: str = ""


@dataclasses.dataclass(frozen=True)
class Note:
    """A command for a handler on the channel."""

    text: str = ""
    number: float = 0
    at: datetime | None = None
    day: date | None = None
    lines: tuple[Line, ...] = ()


@dataclasses.dataclass(frozen=True)
class Relay:
    """A command for a handler on the channel that sends notes."""

    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Unregistered:
    """A class that is not in any handler's annotation."""


@dataclasses.dataclass(frozen=True)
class Noted:
    """An event for two handlers on the channel and for one that is called at once."""

    text: str = ""


@dataclasses.dataclass(frozen=True)
class Act:
    """A command that is handled at once: it runs the steps that it carries."""

    steps: Callable[[], object]


class _Registry(Registry):
    """A registry that records the messages from channels."""

    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[Envelope] = []

    def unpack(self, envelope: Envelope, **options: Any) -> Any:
        self.envelopes.append(envelope)
        return super().unpack(envelope, **options)


class ChannelConformance:
    """
    The tests that a channel must pass. Derive a class named ``Test...`` from it.

    ::

        class TestMailChannel(ChannelConformance):
            alias = "mail"

            def run_waiting(self):
                Worker(self.registry, ["mail"]).run_until_empty()

    The suite reads the channel's `supports_...` flags: it tests the supported features,
    and that others are refused. With `is_immediate` it tests that handlers run, and
    fail, inside the sender's transaction. It needs pytest-django, and really commits.
    A mark ``django_db`` on the derived class may add databases.
    """

    alias: ClassVar[str] = "default"
    """The channel's alias in ``DJANGO_CQRS["CHANNELS"]``."""
    using: ClassVar[str] = DEFAULT_DB_ALIAS
    """The alias of the database that the messages are stored with."""

    registry: Registry
    """The suite's handlers. Pass their messages to ``registry.deliver``."""
    handled: list[Message]
    """The messages that the handlers on the channel have handled, without failures."""

    def run_waiting(self) -> None:
        """
        Handle the due messages, and those that this sends, until none is due.

        Do nothing if handlers are called without it. It may raise a handler's
        exception, such as :class:`HandlerFailed`, or not.
        """
        raise NotImplementedError

    def later(self, span: timedelta) -> AbstractContextManager[object]:
        """Set the channel's clock to a later time inside a ``with`` block."""
        now = timezone.now
        return mock.patch("django.utils.timezone.now", side_effect=lambda: now() + span)

    # Helpers ------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _suite(self, transactional_db: None) -> Iterator[None]:
        """Give each test a channel and a registry of its own."""
        channels.reset()
        self.registry = registry = _Registry()
        self.handled = []
        self._envelopes = registry.envelopes
        self._called: list[str] = []
        self._refused: set[str] = set()
        self._fail_once: set[str] = set()
        for handler in self._handlers():
            self.registry.add(handler)
        yield
        channels.reset()

    def _handlers(self) -> Iterator[Any]:
        def fail_once(text: str) -> None:
            if text in self._fail_once:
                self._fail_once.remove(text)
                raise HandlerFailed(text)

        def handle(message: Message) -> None:
            fail_once(message.payload.text)
            self.handled.append(message)

        @command_handler(
            "conformance.note", name="conformance.note", channel=self.alias
        )
        @command_handler
        def note(command: Note, message: Message) -> None:
            handle(message)

        # Longer than a busy machine takes to run what is waiting.
        slow = Retry(delay=600) if self.channel.supports_redelivery else None

        @command_handler(name="conformance.relay", channel=self.alias, retry=slow)
        def relay(command: Relay) -> None:
            for text in command.texts:
                self._send(text)
            fail_once("relay")

        @command_handler("conformance.any", name="conformance.any", channel=self.alias)
        def take_any(payload: object, message: Message) -> None:
            self.handled.append(message)

        @event_handler(name="conformance.first", channel=self.alias)
        def first(event: Noted, message: Message) -> None:
            handle(message)

        @event_handler(name="conformance.second", channel=self.alias)
        async def second(event: Noted, message: Message) -> None:
            handle(message)

        @event_handler(name="conformance.at_once")
        def at_once(event: Noted) -> None:
            self._called.append(event.text)
            if event.text in self._refused:
                raise HandlerFailed

        @command_handler(name="conformance.act", using=self.using)
        def act(command: Act) -> object:
            return command.steps()

        yield from (note, relay, take_any, first, second, at_once, act)

    @property
    def channel(self) -> Channel:
        """The tested channel."""
        return channels[self.alias]

    def _send(self, text: str, **options: Any) -> Any:
        return self.registry.command_bus.dispatch(Note(text), **options)

    def _publish(self, text: str, **options: Any) -> None:
        self.registry.event_bus.publish(Noted(text), **options)

    def _act(self, *steps: Callable[[], object]) -> Any:
        """Run steps inside a command."""
        return self.registry.command_bus.dispatch(Act(lambda: [do() for do in steps]))

    def _sending_what_fails(self) -> AbstractContextManager[object]:
        """Expect the handler's exception where the channel passes it to the sender."""
        if self.channel.is_immediate:
            return pytest.raises(HandlerFailed)
        return nullcontext()

    def _atomic(self) -> AbstractContextManager[None]:
        return transaction.atomic(using=self.using)

    def _texts(self) -> list[str]:
        """Run waiting messages; return the texts of all that were handled until now."""
        with suppress(HandlerFailed):
            self.run_waiting()
        return [message.payload.text for message in self.handled]

    # In transit ---------------------------------------------------------------------

    def test_a_message_comes_back_as_it_was_sent(self) -> None:
        """The handler gets an object that equals the sent one, but is not the same."""
        at = datetime(2026, 10, 25, 2, 30, 0, 123456, tzinfo=UTC)
        line = Line(UUID(int=7), Decimal("10.50"))
        sent = Note('äß "\\\n\0 \U0001f600', 0.1, at, at.date(), (line, line))

        self.registry.command_bus.dispatch(sent, using=self.using)

        assert self._texts() == [sent.text]
        assert self.handled[0].payload == sent
        assert self.handled[0].payload is not sent

    def test_a_value_comes_back_as_it_was_sent(self) -> None:
        """A payload sent by its key is converted before it is stored."""
        self.registry.command_bus.dispatch(
            {"text": "by key", "lines": [{"product": str(UUID(int=7)), "price": "1"}]},
            route="conformance.note",
            using=self.using,
        )

        assert self._texts() == ["by key"]
        assert self.handled[0].payload.lines == (Line(UUID(int=7), Decimal(1)),)

    def test_an_envelope_is_kept_byte_for_byte(self) -> None:
        """Any bytes are kept, and times to the microsecond: nothing is regenerated."""
        now = datetime(2026, 10, 25, 2, 30, 0, 999999, tzinfo=UTC)
        envelope = Envelope(
            endpoint="conformance.note",
            name="django_cqrs.Note",
            version=1,
            payload='{ "text" :\t"ä\\u00e4" , "unknown": 1}'.encode(),
            headers='{"who" : "ä", "many": 12345678901234567890}'.encode(),
            message_id=UUID(int=2**128 - 1),
            correlation_id=UUID(int=2**64),
            causation_id=UUID(int=0),
            timestamp=now,
            sequence=next_sequence(),
        )
        without_cause = dataclasses.replace(
            envelope,
            message_id=UUID(int=1),
            causation_id=None,
            sequence=next_sequence(),
        )
        sent = [envelope, without_cause]

        with self._atomic():
            self.channel.write(
                connections[self.using],
                [Delivery(each, self.registry.deliver) for each in sent],
            )

        assert self._texts() == ["ää", "ää"]
        read = [
            dataclasses.replace(each, available_at=None) for each in self._envelopes
        ]
        assert read == sent

    def test_identity_and_headers_are_kept(self) -> None:
        """Behind the channel a message has the identity and headers of its sending."""
        seen: list[Message] = []

        @self.registry.add
        @command_handler("conformance.outer", using=self.using)
        def outer(message: Message) -> None:
            seen.append(message)
            self._send("inner")

        self.registry.command_bus.dispatch(
            route="conformance.outer",
            headers={
                "executor_id": 7,
                "tenant": UUID(int=7),
                "correlation_id": UUID(int=9),
            },
        )

        assert self._texts() == ["inner"]
        [inner] = self.handled
        assert inner.causation_id == seen[0].message_id
        assert inner.correlation_id == UUID(int=9)
        assert inner.message_id != seen[0].message_id
        assert seen[0].timestamp <= inner.timestamp <= timezone.now()
        assert inner.headers["executor_id"] == 7
        assert inner.headers["tenant"] == str(UUID(int=7))

    def test_headers_are_passed_on_by_what_handles_behind_the_channel(self) -> None:
        """Messages sent by a handler on the channel are caused by its message."""
        command = Relay(("child",))
        self.registry.command_bus.dispatch(
            command, headers={"executor_id": 7}, using=self.using
        )

        assert self._texts() == ["child"]
        [child] = self.handled
        assert child.headers["executor_id"] == 7
        assert child.causation_id == child.correlation_id  # the relay started the chain

    def test_the_copies_of_one_event_share_its_identity(self) -> None:
        """Each handler on the channel has its own message to handle, of one event."""
        self._act(lambda: self._publish("event"))

        assert self._texts() == ["event", "event"]
        one, other = self.handled
        assert one.message_id == other.message_id
        assert one.timestamp == other.timestamp
        assert self._called == ["event"]

    # With the data ------------------------------------------------------------------

    def test_a_commands_messages_exist_when_it_has_committed(self) -> None:
        """They are handled after the commit, never before; the sender gets None."""
        answers: list[Any] = []

        def steps() -> None:
            answers.append(self._send("1"))
            self._publish("2")
            assert self.handled == []

        self._act(steps)

        assert answers == [None]
        assert self._texts() == ["1", "2", "2"]

    def test_a_failed_command_has_sent_nothing(self) -> None:
        """A command's messages are undone together with its writes when it raises."""
        with pytest.raises(HandlerFailed):
            self._act(lambda: self._send("1"), lambda: self._publish("2"), _fail)

        assert self._texts() == []

    def test_a_nested_command_that_failed_and_was_caught_has_sent_nothing(self) -> None:
        """All messages of the command around it are sent, before and after."""

        def caught() -> None:
            with pytest.raises(HandlerFailed):
                self._act(lambda: self._send("2"), lambda: self._publish("3"), _fail)

        self._act(lambda: self._send("1"), caught, lambda: self._send("4"))

        assert self._texts() == ["1", "4"]

    def test_a_nested_command_is_undone_with_the_one_around_it(self) -> None:
        """A success inside a failure sends nothing."""
        with pytest.raises(HandlerFailed):
            self._act(lambda: self._act(lambda: self._send("1")), _fail)

        assert self._texts() == []

    def test_an_inner_block_that_failed_and_was_caught_has_sent_nothing(self) -> None:
        """Messages sent in an ``atomic()`` inside a command share its fate."""

        def block() -> None:
            with self._atomic():
                self._send("2")
                self._publish("3")
                self._act(lambda: self._send("4"))
                _fail()

        def caught() -> None:
            with pytest.raises(HandlerFailed):
                block()

        self._act(lambda: self._send("1"), caught, lambda: self._send("5"))

        assert self._texts() == ["1", "5"]

    @pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails"])
    def test_a_plain_block_decides_over_what_is_sent_in_it(
        self, *, fails: bool
    ) -> None:
        """Without a command, the caller's transaction decides, or comes too late."""
        sent, is_immediate = ["1", "2", "2"], self.channel.is_immediate
        with suppress(HandlerFailed), self._atomic():
            self._send("1", using=self.using)
            self._publish("2", using=self.using)
            assert len(self.handled) == (len(sent) if is_immediate else 0)
            if fails:
                _fail()

        assert self._texts() == ([] if fails and not is_immediate else sent)

    @pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails"])
    def test_a_block_around_a_command_decides_over_it(self, *, fails: bool) -> None:
        """A command's messages are undone with the block around it, or handled."""
        is_immediate = self.channel.is_immediate
        with suppress(HandlerFailed), self._atomic():
            self._act(lambda: self._send("1"))
            assert len(self.handled) == (1 if is_immediate else 0)
            if fails:
                _fail()

        assert self._texts() == ([] if fails and not is_immediate else ["1"])

    def test_outside_any_transaction_a_message_is_stored_at_once(self) -> None:
        """Nothing has to be committed first."""
        self._send("1", using=self.using)
        self._publish("2", using=self.using)

        assert self._texts() == ["1", "2", "2"]

    def test_an_event_is_sent_when_those_called_at_once_have_succeeded(self) -> None:
        """If one of those raises, no handler on a channel gets the event."""
        self._refused.add("no")
        with pytest.raises(HandlerFailed):
            self._publish("no", using=self.using)
        self._publish("yes", using=self.using)

        assert self._called == ["no", "yes"]
        assert self._texts() == ["yes", "yes"]

    def test_what_an_on_commit_callback_sends_is_sent(self) -> None:
        """After the commit, its messages do not wait for a command."""

        def steps() -> None:
            transaction.on_commit(
                lambda: self._send("1", using=self.using), using=self.using
            )

        self._act(steps)

        assert self._texts() == ["1"]

    # All or none --------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("payload", "error"),
        [
            (Note(number=math.nan), MessageConversionError),
            (Note(text=b"x"), MessageConversionError),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            (Note(lines=(GiftLine(UUID(int=1), Decimal(1)),)), MessageConversionError),
            (Unregistered(), UnknownMessage),
        ],
        ids=["nan", "wrong type", "nested subclass", "unregistered"],
    )
    def test_what_would_not_come_back_raises_at_the_send(
        self, payload: Any, error: type[Exception]
    ) -> None:
        """Neither it nor any earlier message of the command is stored."""

        def send() -> None:
            self.registry.command_bus.dispatch(payload, route="conformance.any")

        with pytest.raises(error):
            self._act(lambda: self._send("1"), send)
        self._act(lambda: self._send("2"))

        assert self._texts() == ["2"]

    def test_a_thousand_messages_of_one_command(self) -> None:
        """All of them are sent, in their order."""
        texts = [str(number) for number in range(1000)]
        self._act(lambda: [self._send(text) for text in texts])

        assert self._texts() == texts

    # Order --------------------------------------------------------------------------

    def test_messages_are_handled_in_the_order_of_sending(self) -> None:
        """It does not matter how each was written, or how deeply nested."""

        def block() -> None:
            with self._atomic():
                self._send("2")
                self._act(lambda: self._send("3"), lambda: self._send("4"))

        self._act(
            lambda: self._send("1"),
            block,
            lambda: self._act(lambda: self._send("5")),
            lambda: self._send("6"),
        )
        self._act(lambda: self._send("7"))

        assert self._texts() == list("1234567")

    def test_what_is_sent_behind_the_channel_is_handled_too(self) -> None:
        """A handler may send to its own channel."""
        self.registry.command_bus.dispatch(Relay(("1", "2")), using=self.using)

        assert self._texts() == ["1", "2"]

    # Failure ------------------------------------------------------------------------

    def test_a_message_whose_handler_failed(self) -> None:
        """
        It is handled again, or lost, as the channel declares; others go on.

        An immediate channel passes the failure to the sender, and handles no others.
        """
        self._fail_once.add("1")
        with self._sending_what_fails():
            self._act(lambda: self._send("1"), lambda: self._send("2"))

        self._texts()
        with self.later(timedelta(hours=1)):
            texts = self._texts()

        kept = ["1"] if self.channel.supports_redelivery else []
        others = [] if self.channel.is_immediate else ["2"]
        assert sorted(texts) == [*kept, *others]

    def test_the_handlers_of_one_event_fail_alone(self) -> None:
        """
        The failure of one does not call the other again.

        In an immediate channel, the failure of the first is that of the sender.
        """
        self._fail_once.add("event")
        with self._sending_what_fails():
            self._act(lambda: self._publish("event"))

        self._texts()
        with self.later(timedelta(hours=1)):
            texts = self._texts()

        kept = 1 if self.channel.supports_redelivery else 0
        others = 0 if self.channel.is_immediate else 1
        assert texts == ["event"] * (kept + others)

    def test_a_failed_handler_has_sent_nothing(self) -> None:
        """Its messages are sent by the attempt that succeeds, if there is one."""
        self._fail_once.add("relay")
        with self._sending_what_fails():
            self.registry.command_bus.dispatch(Relay(("1",)), using=self.using)

        assert self._texts() == []
        with self.later(timedelta(hours=1)):
            texts = self._texts()

        assert texts == (["1"] if self.channel.supports_redelivery else [])

    # Delay, expiry, priority --------------------------------------------------------

    def test_a_delayed_message_is_never_early(self) -> None:
        """It is handled when its time has come; others do not wait for it."""
        if not self.channel.supports_delay:
            self._refuses(delay=1)
            return
        self._act(lambda: self._send("late", delay=3600), lambda: self._send("now"))

        assert self._texts() == ["now"]
        with self.later(timedelta(minutes=59)):
            assert self._texts() == ["now"]
        with self.later(timedelta(minutes=61)):
            assert self._texts() == ["now", "late"]

    def test_an_expired_message_is_dropped(self) -> None:
        """It is never handled, unless it was at once; one that has not expired is."""
        if not self.channel.supports_expiry:
            self._refuses(expires=1)
            return
        self._act(
            lambda: self._send("short", expires=60),
            lambda: self._send("long", expires=timedelta(hours=1)),
        )

        handled = ["short", "long"] if self.channel.is_immediate else ["long"]
        with self.later(timedelta(minutes=30)):
            assert self._texts() == handled
        assert self._texts() == handled

    def test_an_expired_message_is_dropped_when_it_falls_due(self) -> None:
        """Both times count from the sending."""
        if not (self.channel.supports_expiry and self.channel.supports_delay):
            return
        self._act(lambda: self._send("1", delay=60, expires=120))
        self._act(lambda: self._send("2", delay=60, expires=7200))

        with self.later(timedelta(hours=1)):
            assert self._texts() == ["2"]

    def test_the_highest_priority_is_handled_first(self) -> None:
        """The default is 0; among equal ones the first sent is the first handled."""
        if not self.channel.supports_priority:
            self._refuses(priority=1)
            return
        self._act(
            lambda: self._send("low", priority=-1),
            lambda: self._send("first"),
            lambda: self._send("high", priority=5),
            lambda: self._send("second", priority=0),
        )

        assert self._texts() == ["high", "first", "second", "low"]

    def test_the_messages_of_one_key_are_handled_as_they_were_sent(self) -> None:
        """Among them priorities are ignored."""
        if not self.channel.supports_ordering:
            with pytest.raises(InvalidOption):
                self.channel.check_option("ordering_key", "text")
            return

        @self.registry.add
        @command_handler(
            "conformance.ordered",
            channel=self.alias,
            name="conformance.ordered",
            ordering_key=lambda message: message.payload[0],
        )
        def ordered(command: str) -> None:
            self.handled.append(Message(Note(command)))

        def send(text: str, **options: Any) -> None:
            self.registry.command_bus.dispatch(
                text, route="conformance.ordered", **options
            )

        urgent: dict[str, Any] = {}
        if self.channel.supports_priority:
            urgent = {"priority": 5}
        self._act(
            lambda: send("a1"),
            lambda: send("b1"),
            lambda: send("a2", **urgent),
            lambda: send("b2"),
        )
        texts = self._texts()

        assert [each for each in texts if each[0] == "a"] == ["a1", "a2"]
        assert [each for each in texts if each[0] == "b"] == ["b1", "b2"]

    @pytest.mark.parametrize("name", ["delay", "expires", "priority"])
    @pytest.mark.parametrize("value", [True, math.nan, "1", 10**20])
    def test_what_is_no_time_or_number_raises_at_the_send(
        self, name: str, value: Any
    ) -> None:
        """Then nothing is sent."""
        if name == "priority" and value == 10**20:
            return
        self._refuses(**{name: value})

    def _refuses(self, **options: Any) -> None:
        with pytest.raises(InvalidOption):
            self._send("1", using=self.using, **options)
        with pytest.raises(InvalidOption):
            self._act(lambda: self._send("1", **options))

        with self.later(timedelta(hours=1)):
            assert self._texts() == []

    # Settings -----------------------------------------------------------------------

    def test_an_option_that_means_nothing_is_refused(self) -> None:
        """A typing error in OPTIONS must not be ignored silently."""
        with pytest.raises(InvalidChannel, match="has no option 'NO_SUCH_OPTION'"):
            type(self.channel)(self.alias, {"NO_SUCH_OPTION": 1})


def _fail() -> None:
    raise HandlerFailed
