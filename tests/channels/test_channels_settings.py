"""The channels of the settings, and the channel for tests."""

import threading
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from django_cqrs import (
    Registry,
    command_handler,
)
from django_cqrs.channels import Channel, Envelope, InMemoryChannel, channels
from django_cqrs.exceptions import (
    InvalidChannel,
    InvalidHandler,
)
from django_cqrs.testing import run_channel
from tests.channels.support import (
    CHANNELS,
    IN_MEMORY,
    Refused,
    Write,
    make_registry,
    payloads,
    waiting,
)
from tests.support import registry_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _channels(settings):
    settings.DJANGO_CQRS = {"CHANNELS": CHANNELS}


@pytest.fixture
def seen():
    """What the handlers of `registry` have handled, in order."""
    return []


@pytest.fixture
def registry(seen):
    return make_registry(seen)


# Aliases and backends -------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "alias", "reason"),
    [
        (
            CHANNELS,
            "male",
            "Channel 'male' is not in DJANGO_CQRS['CHANNELS']. Did you mean 'mail'?",
        ),
        ({}, "default", "Channel 'default' is not in DJANGO_CQRS['CHANNELS']."),
        (None, "default", "Channel 'default' is not in DJANGO_CQRS['CHANNELS']."),
        (
            {"a": {"BACKEND": "tests.nowhere.Channel"}},
            "a",
            (
                "The channel 'a' has a BACKEND that cannot be imported: "
                "No module named 'tests.nowhere'."
            ),
        ),
        (
            {"a": {"BACKEND": "Channel"}},
            "a",
            (
                "The channel 'a' has a BACKEND that cannot be imported: "
                "Channel doesn't look like a module path."
            ),
        ),
        (
            {"a": {"BACKEND": "tests.channels.support.Write"}},
            "a",
            (
                "The channel 'a' has the BACKEND tests.channels.support.Write, which is "
                "not a Channel."
            ),
        ),
        (
            {"a": {"BACKEND": "tests.channels.support.fail"}},
            "a",
            (
                "The channel 'a' has the BACKEND tests.channels.support.fail, which is "
                "not a Channel."
            ),
        ),
        (
            {"a": {**IN_MEMORY, "OPTIONS": {"QUEUE": "a", "SIZE": 5}}},
            "a",
            "The channel 'a' (InMemoryChannel) has no option 'QUEUE', 'SIZE'.",
        ),
        (
            {"a": {"BACKEND": "tests.channels.test_channels_settings.UnmadeChannel"}},
            "a",
            "Channel 'a' cannot be created: No queue is named.",
        ),
        *(
            (
                {"a": config},
                "a",
                (
                    "The channel 'a' must be a dictionary with BACKEND (the path of "
                    "a class) and, optionally, OPTIONS (a dictionary)."
                ),
            )
            for config in (
                {},
                "django_cqrs.channels.InMemoryChannel",
                None,
                {"BACKEND": InMemoryChannel},
                {**IN_MEMORY, "OPTIONS": ["a"]},
                {**IN_MEMORY, "OPTION": {}},
            )
        ),
    ],
)
def test_a_channel_that_cannot_be_made(settings, configured, alias, reason):
    """Whatever is wrong with its settings is told; the route raises it, and only there."""
    settings.DJANGO_CQRS = {"CHANNELS": configured}
    registry = Registry()

    @registry.add
    @command_handler("background", channel=alias)
    def background(): ...

    @registry.add
    @command_handler("at.once")
    def at_once():
        return "fine"

    with pytest.raises(InvalidChannel) as refused:
        channels[alias]
    assert str(refused.value) == reason
    assert isinstance(refused.value, ImproperlyConfigured)
    assert registry.command_bus.dispatch(route="at.once") == "fine"
    with pytest.raises(InvalidHandler) as broken:
        registry.command_bus.dispatch(route="background")
    hint = "Name a channel in DJANGO_CQRS['CHANNELS']."
    if isinstance(configured, dict) and alias in configured:
        hint = f"Fix DJANGO_CQRS['CHANNELS'][{alias!r}]."
    assert str(broken.value).endswith(
        f"background has channel={alias!r}. {reason} {hint} (django_cqrs.E016)"
    )


class UnmadeChannel(Channel):
    def __init__(self, alias, options):
        raise ImproperlyConfigured("No queue is named.")


def test_a_channel_is_made_once_and_anew_when_the_settings_change(settings):
    """Under override_settings handlers that were compiled before use the new one."""

    @command_handler(channel="mail")
    def write(command: Write): ...

    bus = registry_of(write).command_bus
    bus.dispatch(Write("a"))
    first = channels["mail"]
    assert channels["mail"] is first
    assert repr(first) == "<InMemoryChannel 'mail'>"

    with override_settings(DJANGO_CQRS={"CHANNELS": {"mail": IN_MEMORY}}):
        assert channels["mail"] is not first
        bus.dispatch(Write("b"))
        assert [each["text"] for each in payloads("mail")] == ["b"]

    assert list(channels) == list(CHANNELS)


def test_channels_are_made_once_by_many_threads():
    """Two threads that ask at once get the same channel."""
    found = []
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        found.append(channels["mail"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id(channel) for channel in found}) == 1


def test_channel_true_is_the_default_one_and_false_is_none(seen):
    """channel=False is said where a base says otherwise: called at once."""

    @command_handler("a", channel=True)
    def a():
        seen.append("a")

    @command_handler("b", channel=False)
    def b():
        seen.append("b")

    registry = registry_of(a, b)
    registry.command_bus.dispatch(route="a")
    registry.command_bus.dispatch(route="b")

    assert seen == ["b"]
    assert len(waiting()) == 1


# InMemoryChannel ------------------------------------------------------------------


def test_in_memory_it_is_truly_text(registry):
    """What waits is what a database would hold."""
    registry.command_bus.dispatch(Write("ä", 1), headers={"who": "ö"})

    [envelope] = waiting()
    assert envelope == Envelope(
        endpoint="write",
        name="channels.write",
        version=2,
        payload='{"text":"ä","number":1}'.encode(),
        headers=b'{"who": "\\u00f6"}',
        message_id=envelope.message_id,
        correlation_id=envelope.message_id,
        causation_id=None,
        timestamp=envelope.timestamp,
        sequence=envelope.sequence,
    )
    assert abs(timezone.now() - envelope.timestamp) < timedelta(minutes=1)


def test_in_memory_a_failed_message_stays_where_it_was(registry, seen):
    """Its handler's exception reaches the test; the next run takes it again."""
    for text in ("a", "bad", "c"):
        registry.command_bus.dispatch(Write(text))
    with pytest.raises(Refused):
        run_channel()

    assert seen == ["a", "bad"]
    assert [each["text"] for each in payloads()] == ["bad", "c"]


def test_in_memory_a_limit(registry, seen):
    """run(limit) stops after so many."""
    for text in "abc":
        registry.command_bus.dispatch(Write(text))

    assert run_channel(limit=2) == 2
    assert seen == ["a", "b"]
    assert run_channel(limit=2) == 1


def test_in_memory_waiting_shows_delayed_ones_last(registry):
    """In the order they will be handled."""
    registry.command_bus.dispatch(Write("late"), delay=60, priority=9)
    registry.command_bus.dispatch(Write("now"))

    assert [each["text"] for each in payloads()] == ["now", "late"]


def test_in_memory_clear_forgets_all(registry):
    """Also what an open transaction holds."""
    registry.command_bus.dispatch(Write("a"))
    with transaction.atomic():
        registry.command_bus.dispatch(Write("b"))
        assert len(waiting()) == 2
        channels["default"].clear()
        assert waiting() == []

    assert waiting() == []


def test_in_memory_two_channels_do_not_mix(seen):
    """Each alias is a channel of its own."""

    @command_handler("a", channel="default")
    def a():
        seen.append("a")

    @command_handler("b", channel="mail")
    def b():
        seen.append("b")

    registry = registry_of(a, b)
    with transaction.atomic():
        registry.command_bus.dispatch(route="a")
        registry.command_bus.dispatch(route="b")
        run_channel("mail")
        assert seen == ["b"]
    run_channel("default")

    assert seen == ["b", "a"]


def test_a_channel_without_a_write_of_its_own():
    """The base of channels stores nothing."""
    channel = Channel("x", {})

    with pytest.raises(NotImplementedError):
        channel.write(connection, [])
    assert list(channel.check()) == []


def test_a_channel_that_keeps_nothing_cannot_be_run():
    """run_channel() is for what waits."""
    with pytest.raises(
        TypeError, match=r"^<OnCommitChannel 'commit'> does not keep messages"
    ):
        run_channel("commit")
    with pytest.raises(InvalidChannel, match=r"^Channel 'male' is not in "):
        run_channel("male")
