"""The ids of messages: they sort as the messages were sent."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from uuid import UUID, SafeUUID

import pytest

from django_cqrs import CommandBus, Registry, command_handler
from django_cqrs.messages import Message, clock, sending_time, setter_of
from django_cqrs.pipeline import stages


def id_of(nanoseconds):
    """Return the id of a message that was sent at this time."""
    message = Message("x")
    message._nanoseconds = nanoseconds
    return message.message_id


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


@pytest.mark.parametrize("start", [0, 10**18 + 1_999_999, 10**18 + 2_000_000])
def test_ids_sort_as_their_nanoseconds_do(start):
    """Within a millisecond and from one to the next."""
    ids = [id_of(start + step) for step in (0, 1, 2, 255, 256, 999_999, 1_000_000)]

    assert ids == sorted(ids)
    assert [each.int >> 80 for each in ids] == [
        (start + step) // 1_000_000 for step in (0, 1, 2, 255, 256, 999_999, 1_000_000)
    ]


def stop_the_clock(monkeypatch, nanoseconds):
    """Make it say one time, and have no memory of the times of other tests."""
    monkeypatch.setattr(clock, "last", 0)
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds)
    monkeypatch.setattr(stages, "time_ns", lambda: nanoseconds)


def test_a_clock_that_stands_still_makes_no_two_times_alike(monkeypatch):
    """A coarse clock says one time again and again; a stopped one is followed."""
    stop_the_clock(monkeypatch, 5_000)
    found = [sending_time() for _ in range(3)]

    assert found == [5_000, 5_001, 5_002]
    assert Message("x").timestamp.year == 1970


@pytest.mark.parametrize("nanoseconds", [0, 5_000])
def test_a_stopped_clock_makes_no_two_handled_messages_alike(monkeypatch, nanoseconds):
    """Whatever a handler takes, the times of its messages are in their order."""
    stop_the_clock(monkeypatch, nanoseconds)
    messages = []

    @command_handler("alone", atomic=False)
    def alone(number: int, message: Message) -> None:
        messages.append(message)

    @command_handler("with.more", atomic=False)
    def with_more(number: int, message: Message, bus: CommandBus) -> None:
        messages.append(message)

    registry = Registry()
    registry.add(alone)
    registry.add(with_more)
    for number in range(5):
        registry.command_bus.dispatch(number, route="alone")
        registry.command_bus.dispatch(number, route="with.more")
    ids = [each.message_id for each in messages]

    assert ids == sorted(set(ids))


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


def test_an_id_is_a_uuid_like_any_other():
    """Though it is made past the constructor: whatever a UUID can do, it can."""
    made = Message("x").message_id
    usual = UUID(int=made.int)

    assert type(made) is UUID
    assert (made, hash(made), repr(made)) == (usual, hash(usual), repr(usual))
    assert made.is_safe is SafeUUID.unknown
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == usual
    with pytest.raises(TypeError, match="UUID objects are immutable"):
        made.int = 1


class _Slotted:
    __slots__ = ("int",)

    def __setattr__(self, name, value):
        raise TypeError


class _Plain:
    def __setattr__(self, name, value):
        raise TypeError


@pytest.mark.parametrize("cls", [_Slotted, _Plain])
def test_an_attribute_is_set_past_a_class_that_forbids_it(cls):
    """A Python whose UUIDs have no slots makes the same ids."""
    made = cls()
    setter_of(cls, "int")(made, 7)

    assert made.int == 7


def test_ids_of_distant_times_in_turns_keep_their_milliseconds():
    """An id does not take over the millisecond of the one made before it."""
    times = [1, 10**18, 2, 10**18 + 5_000_000, 10**18 + 4_999_999, 999_999, 1_000_000]

    assert [id_of(each).int >> 80 for each in times] == [
        each // 1_000_000 for each in times
    ]


def test_a_copy_of_a_message_keeps_its_id_and_time():
    """Also if nobody has asked for them before, and whatever else it carries."""
    message = Message("x")
    message._using = "other"
    copied = message.replace(payload="y", headers={"a": 1})

    assert copied.message_id == message.message_id
    assert copied.correlation_id == message.correlation_id
    assert copied.timestamp == message.timestamp
    assert (copied.payload, copied.using) == ("y", "other")
    assert (dict(message._user), dict(copied._user)) == ({}, {"a": 1})
