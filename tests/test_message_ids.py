"""The ids of messages: they sort as the messages were sent."""

from __future__ import annotations

import threading
import time

import pytest

from django_cqrs import Registry, command_handler
from django_cqrs.messages import Message, id_of, sending_time


def test_ids_of_one_process_grow_with_the_time_of_sending():
    """Each is higher than the one before it, in one millisecond as well."""
    ids = [Message("x").message_id for _ in range(20_000)]

    assert ids == sorted(set(ids))
    assert {(each.version, each.variant) for each in ids} == {
        (7, "specified in RFC 4122")
    }


@pytest.mark.django_db
def test_the_ids_of_handled_commands_grow():
    """Also where the id of a command is asked for when others were sent since."""
    messages = []

    @command_handler("outer")
    def outer(depth: int, message: Message) -> None:
        messages.append(message)
        if depth:
            registry.command_bus.dispatch(depth - 1, route="outer")

    registry = Registry()
    registry.add(outer)
    for _ in range(100):
        registry.command_bus.dispatch(3, route="outer")
    ids = [each.message_id for each in reversed(messages)][::-1]

    assert ids == sorted(set(ids))


def test_the_time_of_an_id_is_that_of_its_message():
    """To the millisecond, as a UUIDv7 says it."""
    message = Message("x")
    assert message.message_id.int >> 80 == int(message.timestamp.timestamp() * 1000)


@pytest.mark.parametrize("clock", [0, 10**18 + 1_999_999, 10**18 + 2_000_000])
def test_ids_sort_as_their_nanoseconds_do(clock):
    """Within a millisecond and from one to the next."""
    ids = [id_of(clock + step) for step in (0, 1, 2, 255, 256, 999_999, 1_000_000)]

    assert ids == sorted(ids)
    assert [each.int >> 80 for each in ids] == [
        (clock + step) // 1_000_000 for step in (0, 1, 2, 255, 256, 999_999, 1_000_000)
    ]


def test_a_clock_that_stands_still_makes_no_two_times_alike(monkeypatch):
    """A coarse clock says one time again and again; a stopped one is followed."""
    monkeypatch.setattr(time, "time_ns", lambda: 5_000)
    found = [sending_time() for _ in range(3)]

    assert found == [5_000, 5_001, 5_002]
    assert Message("x").timestamp.year == 1970


def test_ids_of_threads_are_distinct():
    """Also those that are made at the same moment."""
    found = []

    def make():
        found.extend(Message("x").message_id for _ in range(2_000))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(found)) == 8_000
