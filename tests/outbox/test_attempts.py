"""The attempt at a message, and whether it is the last, as its handler sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import pytest

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    InstantRetry,
    Message,
    Retry,
    command_handler,
    event_handler,
)
from django_cqrs.channels import channels
from django_cqrs.messages import Origin
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.worker.bounds import StopWorker
from django_cqrs.pipeline.envelopes import message_of
from django_cqrs.signals import message_failed
from tests.outbox.support import letters, make_due, work
from tests.support import registry_of

pytestmark = pytest.mark.django_db(transaction=True)

THREE = Retry(attempts=3, delay=0, jitter=False)


@pytest.fixture(autouse=True)
def _channels(settings):
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
            "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
            "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
        }
    }


class Refused(Exception):
    """What a handler here raises on purpose."""


@dataclass(frozen=True)
class Noticed:
    """An event with a handler that is called at once."""


class Seen(list):
    """Handlers that write down the attempt that they see, and then fail."""

    def handler(self, channel, retry, error=Refused):
        @command_handler("do", name="do", channel=channel, retry=retry)
        def do(
            text: str,
            attempt: Annotated[int, Header("attempt")],
            is_last: Annotated[bool, Header("is_last_attempt")],
        ) -> None:
            self.append((attempt, is_last))
            raise error

        return do


def run(registry, alias, times):
    for _ in range(times):
        if alias == "outbox":
            make_due()
            work(registry)
        elif channels[alias].waiting():
            with pytest.raises(Refused):
                channels[alias].run()


@pytest.mark.parametrize("alias", ["outbox", "memory"])
def test_the_attempt_and_whether_it_is_the_last(alias):
    """Behind a channel that tries again they count from 1 to the policy's number."""
    seen = Seen()
    registry = registry_of(seen.handler(alias, THREE))

    registry.command_bus.dispatch("x", route="do")
    run(registry, alias, 4)

    assert seen == [(1, False), (2, False), (3, True)]


@pytest.mark.parametrize("alias", ["outbox", "memory"])
def test_no_attempt_is_the_last_where_the_worker_stops(alias):
    """With final_failure="stop" the message waits until somebody starts it again."""
    seen = Seen()
    registry = registry_of(
        seen.handler(alias, Retry(attempts=1, final_failure="stop", delay=0))
    )
    registry.command_bus.dispatch("x", route="do")
    for _ in range(2):
        with pytest.raises((StopWorker, Refused)):
            work(registry) if alias == "outbox" else channels[alias].run()

    assert {is_last for _, is_last in seen} == {False}
    assert len(seen) == 2


def test_the_channel_in_memory_keeps_a_message_without_a_policy():
    """There is no last attempt then, and each has its number."""
    seen = Seen()
    registry = registry_of(seen.handler("memory", None))
    registry.command_bus.dispatch("x", route="do")
    run(registry, "memory", 3)

    assert seen == [(1, False), (2, False), (3, False)]


def test_the_only_attempt_is_the_last():
    """At once, and on a channel that never tries again, there is one."""
    seen = Seen()
    registry = registry_of(seen.handler(None, None))
    with pytest.raises(Refused):
        registry.command_bus.dispatch("x", route="do")
    registry_of(seen.handler("commit", None)).command_bus.dispatch("x", route="do")

    assert seen == [(1, True), (1, True)]


def test_the_attempts_of_an_instant_retry():
    """The number of the attempt at the outermost command, which alone is retried."""
    seen = []

    @command_handler("outer", name="outer")
    def outer(text: str, message: Message, commands: CommandBus) -> None:
        commands.dispatch(text, route="inner")

    @command_handler("inner", name="inner")
    def inner(text: str, message: Message, events: EventBus) -> None:
        seen.append((message.attempt, message.is_last_attempt))
        events.publish(Noticed())

    @event_handler
    def notice(event: Noticed, message: Message) -> None:
        seen.append((message.attempt, message.is_last_attempt))
        raise Refused

    registry = registry_of(outer, inner, notice)
    bus = CommandBus(instant_retry=InstantRetry(2), registry=registry)
    with pytest.raises(Refused):
        bus.dispatch("x", route="outer")

    assert seen == [(1, False)] * 2 + [(2, False)] * 2 + [(3, True)] * 2


def test_what_is_handled_inside_a_message_has_its_attempt():
    """A command at once is tried with the message around it; what it sends is not."""
    seen = Seen()

    @command_handler("outer", name="outer", channel="outbox", retry=THREE)
    def outer(text: str, message: Message, commands: CommandBus) -> None:
        commands.dispatch(text, route="inner")
        if not message.is_last_attempt:
            raise Refused

    @command_handler("inner", name="inner")
    def inner(text: str, message: Message, commands: CommandBus) -> None:
        seen.append((message.attempt, message.is_last_attempt))
        commands.dispatch(text, route="do")

    registry = registry_of(outer, inner, seen.handler("outbox", Retry(attempts=9)))
    registry.command_bus.dispatch("x", route="outer")
    work(registry)

    assert seen == [(1, False), (2, False), (3, True), (1, False)]


@pytest.mark.parametrize(
    ("retry", "error", "told"),
    [
        (THREE, Refused, [(1, False), (2, False), (3, True)]),
        (Retry(attempts=3, on=KeyError), Refused, [(1, True)]),
        (None, Refused, [(1, False)]),
    ],
    ids=["all attempts", "not worth another", "default"],
)
def test_message_failed_has_the_attempt(retry, error, told):
    """With the exception known, it says whether the policy ends the attempts."""
    seen = []

    def failed(sender, attempt, is_last_attempt, **arguments):
        seen.append((attempt, is_last_attempt))

    registry = registry_of(Seen().handler("outbox", retry, error))
    message_failed.connect(failed)
    try:
        registry.command_bus.dispatch("x", route="do")
        for _ in told:
            make_due()
            work(registry)
    finally:
        message_failed.disconnect(failed)

    assert seen == told
    assert len(letters()) == told[-1][1]


def test_message_failed_of_an_instant_retry_is_of_its_last_attempt():
    """It is sent once, when no attempt is left."""
    seen = []

    def failed(sender, attempt, is_last_attempt, **arguments):
        seen.append((attempt, is_last_attempt))

    registry = registry_of(Seen().handler(None, None))
    message_failed.connect(failed)
    try:
        for on in (Exception, KeyError):
            bus = CommandBus(instant_retry=InstantRetry(1, on=on), registry=registry)
            with pytest.raises(Refused):
                bus.dispatch("x", route="do")
    finally:
        message_failed.disconnect(failed)

    assert seen == [(2, True), (1, True)]


def test_a_header_of_that_name_that_was_stored_earlier_is_not_taken_for_it():
    """The message's own is read, and the old one is not passed on."""
    seen = Seen()
    registry = registry_of(seen.handler("outbox", THREE))
    registry.command_bus.dispatch("x", route="do", headers={"user": "ada"})
    OutboxMessage.objects.update(headers=b'{"attempt": 7, "user": "ada"}')
    work(registry)

    assert seen[0] == (1, False)


def test_a_stored_header_of_that_name_is_gone_from_the_message():
    """All headers together hold each name once."""
    registry = registry_of(Seen().handler("memory", THREE))
    registry.command_bus.dispatch("x", route="do", headers={"user": "ada"})
    [envelope] = channels["memory"].waiting()
    old = replace(envelope, headers=b'{"attempt": 7, "is_last_attempt": 1}')
    message = message_of(old, "x")

    assert list(message.headers).count("attempt") == 1
    assert isinstance(message._parent, Origin)
    assert message.headers["attempt"] == 1
