"""What a channel stores of a message, and how it is read again."""

import dataclasses
import enum
import json
import logging
import math
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.db import connection

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    Headers,
    Message,
    Registry,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.channels import Delivery, channels
from django_cqrs.exceptions import (
    InvalidHandler,
    InvalidHeader,
    InvalidOption,
    MessageConversionError,
    UnknownEndpoint,
    UnknownMessage,
)
from django_cqrs.testing import run_channel
from tests.channels.support import (
    CHANNELS,
    Act,
    Line,
    Placed,
    Refused,
    Write,
    make_registry,
    payloads,
    waiting,
)
from tests.support import registry_of

pytestmark = pytest.mark.django_db

JSON = "application/json"


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


@pytest.fixture
def act(registry):
    """Do steps inside a command."""
    return lambda steps: registry.command_bus.dispatch(Act(steps))


# B04.5 ----------------------------------------------------------------------------


def test_asking_a_query_handler_with_a_channel_raises_its_check():
    """Who asks would get no answer: the route raises the text of the check. [B04.5]"""

    @query_handler("count", channel="mail")
    def count():
        return 7

    with pytest.raises(InvalidHandler) as refused:
        registry_of(count).query_bus.ask(route="count")

    assert str(refused.value).endswith(
        "count answers a query and has a channel, so the caller would get no answer. "
        "Remove channel=. (django_cqrs.E017)"
    )


# B05.6 ----------------------------------------------------------------------------

PLACED = Placed(
    5,
    (Line(UUID(int=7)), Line(UUID(int=8), Decimal("2.5"))),
    datetime(2026, 7, 1, tzinfo=UTC),
)
PLACED_JSON = {
    "number": 5,
    "lines": [
        {"product": str(UUID(int=7)), "price": "1.50"},
        {"product": str(UUID(int=8)), "price": "2.5"},
    ],
    "at": "2026-07-01T00:00:00Z",
}

PUBLISHED = {
    "object": lambda bus: bus.publish(PLACED),
    "object by name": lambda bus: bus.publish(PLACED, route="channels.placed"),
    "dict by name": lambda bus: bus.publish(PLACED_JSON, route="channels.placed"),
    "JSON by name": lambda bus: bus.publish(
        json.dumps(PLACED_JSON), route="channels.placed", content_type=JSON
    ),
    "dict by key": lambda bus: bus.publish(PLACED_JSON, route="placed.by.key"),
    "object by key": lambda bus: bus.publish(PLACED, route="placed.by.key"),
}


@pytest.mark.parametrize("channel", [None, "default"])
@pytest.mark.parametrize("annotation", [Placed, object, dict])
@pytest.mark.parametrize("published", list(PUBLISHED))
def test_the_matrix_of_payload_and_annotation(seen, published, annotation, channel):
    """However it is published and annotated: one call, with equal arguments on both ways. [B05.6]"""

    @event_handler("channels.placed", channel=channel)
    @event_handler("placed.by.key")
    def on_placed(event: annotation):
        seen.append(event)

    PUBLISHED[published](registry_of(Placed, on_placed).event_bus)
    run_channel()

    by_class = published not in ("dict by key", "object by key")
    expected = {
        Placed: PLACED,
        object: PLACED if by_class or published == "object by key" else PLACED_JSON,
        dict: PLACED_JSON,
    }
    assert seen == [expected[annotation]]
    assert type(seen[0]) is type(expected[annotation])


@pytest.mark.parametrize("published", ["object", "object by name", "dict by name"])
def test_handlers_of_all_kinds_at_once(seen, published):
    """All are called once, by class, base, union, object and key, on both ways. [B05.6]"""
    registry = Registry()

    def listen(annotation, channel, key=None):
        def on_event(event: annotation):
            seen.append((annotation, channel, type(event)))

        name = f"{annotation}.{channel}.{key}"
        registry.add(event_handler(key, name=name, channel=channel)(on_event))

    for channel in (None, "default", "mail"):
        listen(Placed, channel)
        listen(Placed | Write, channel)
        listen(object, channel)
        listen(dict, channel, "channels.placed")

    PUBLISHED[published](registry.event_bus)
    run_channel("default")
    run_channel("mail")

    assert Counter(seen) == Counter(
        (annotation, channel, dict if annotation is dict else Placed)
        for channel in (None, "default", "mail")
        for annotation in (Placed, Placed | Write, object, dict)
    )


def test_the_payload_is_stored_whole_for_a_handler_of_dicts():
    """The class is stored, and made into its JSON form when it is handled. [B05.6]"""

    @event_handler("channels.placed", name="on_placed", channel=True)
    def on_placed(event: dict): ...

    registry_of(Placed, on_placed).event_bus.publish(PLACED)

    [envelope] = waiting()
    assert (envelope.name, envelope.version) == ("channels.placed", 1)
    assert json.loads(envelope.payload) == PLACED_JSON


def test_a_value_is_read_back_by_the_handlers_annotation(seen):
    """What has no name of its own is stored without one. [B05.6]"""
    registry = Registry()

    def listen(annotation, key):
        def take(value: annotation):
            seen.append(value)

        registry.add(command_handler(key, name=key, channel=True)(take))

    values = {
        "uuid": (UUID, UUID(int=7)),
        "decimal": (Decimal, Decimal("1.10")),
        "datetime": (datetime, datetime(2026, 7, 1, 12, tzinfo=UTC)),
        "list": (list[int], [1, 2]),
        "dict": (dict[str, UUID], {"a": UUID(int=1)}),
        "text": (str, "ä\0"),
        "none": (int | None, None),
        "bytes": (bytes, b"abc"),
        "any": (object, {"a": [1, None, 2.5, True]}),
    }
    for key, (annotation, value) in values.items():
        listen(annotation, key)
        registry.command_bus.dispatch(value, route=key)
    assert [(e.name, e.version) for e in waiting()] == [("", 0)] * len(values)
    run_channel()

    assert seen == [value for _, value in values.values()]


def test_a_handler_without_parameters(seen):
    """A key alone may call a handler on a channel. [B05.6]"""

    @command_handler("tidy", channel=True)
    def tidy():
        seen.append("tidied")

    registry_of(tidy).command_bus.dispatch(route="tidy")
    run_channel()

    assert seen == ["tidied"]


# B09 ------------------------------------------------------------------------------


def test_headers_are_seen_behind_a_channel():
    """A command's headers reach its event's handler on a channel, and what that sends. [B09.1]"""
    seen = {}

    @command_handler
    def place(command: Write, events: EventBus):
        events.publish(Placed(1))

    @event_handler(channel=True)
    def on_placed(
        event: Placed,
        headers: Headers,
        executor_id: Annotated[int, Header("executor_id")],
        commands: CommandBus,
    ):
        seen["event"] = dict(headers)
        seen["executor_id"] = executor_id
        commands.dispatch(route="next")

    @command_handler("next")
    def next_command(headers: Headers):
        seen["next"] = dict(headers)

    registry = registry_of(place, on_placed, next_command)
    registry.command_bus.dispatch(
        Write(), headers={"executor_id": "7", "tenant": UUID(int=9)}
    )
    run_channel()

    assert seen["executor_id"] == 7
    assert seen["event"]["executor_id"] == "7"
    assert seen["event"]["tenant"] == str(UUID(int=9))
    assert seen["next"]["executor_id"] == "7"
    assert seen["next"]["tenant"] == str(UUID(int=9))
    assert seen["next"]["causation_id"] == seen["event"]["message_id"]
    assert seen["next"]["correlation_id"] == seen["event"]["correlation_id"]


def test_an_explicit_header_on_a_send_to_a_channel_wins(act, registry):
    """For that send alone. [B09.2]"""

    def steps():
        registry.command_bus.dispatch(Write("a"), headers={"who": "own"})
        registry.command_bus.dispatch(Write("b"))

    registry.command_bus.dispatch(Act(steps), headers={"who": "inherited"})

    assert [json.loads(each.headers) for each in waiting()] == [
        {"who": "own"},
        {"who": "inherited"},
    ]


def test_after_a_channel_has_run_nothing_of_its_messages_is_left(registry):
    """Whether handled or failed, the next message inherits nothing of it. [B09.3]"""
    for text in ("good", "bad"):
        registry.command_bus.dispatch(Write(text), headers={"who": text})
    with pytest.raises(Refused):
        run_channel()
    channels["default"].clear()
    registry.command_bus.dispatch(Write("next"))

    [envelope] = waiting()
    assert envelope.headers == b"{}"
    assert envelope.causation_id is None


def test_reserved_headers_are_not_among_those_stored(registry):
    """The message's own are stored beside the user's; a delay is no header. [B09.4]"""
    registry.command_bus.dispatch(
        Write(), headers={"correlation_id": UUID(int=9), "who": "ada"}, delay=5
    )

    [envelope] = waiting()
    assert envelope.headers == b'{"who": "ada"}'
    assert envelope.correlation_id == UUID(int=9)


class Colour(enum.Enum):
    RED = "red"
    ODD = math.nan
    SET = frozenset({object()})


def test_header_values_become_text_on_a_channel():
    """UUID, Decimal, datetime and Enum come back as what JSON can say; the type decides. [B08.1]"""
    seen = []

    @command_handler(channel=True)
    def write(
        command: Write,
        headers: Headers,
        *,
        tenant: Annotated[UUID, Header("tenant")],
        price: Annotated[Decimal, Header("price")],
        at: Annotated[datetime, Header("at")],
        colour: Annotated[Colour, Header("colour")],
    ):
        seen.append((tenant, price, at, colour))
        seen.append({name: headers[name] for name in given})

    at = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
    given = {
        "tenant": UUID(int=7),
        "price": Decimal("1.10"),
        "at": at,
        "colour": Colour.RED,
        "number": 7,
        "ratio": 0.5,
        "yes": True,
        "nothing": None,
    }
    registry_of(write).command_bus.dispatch(Write(), headers=given)
    run_channel()

    assert seen == [
        (UUID(int=7), Decimal("1.10"), at, Colour.RED),
        {
            "tenant": str(UUID(int=7)),
            "price": "1.10",
            "at": "2026-07-01T12:30:00Z",
            "colour": "red",
            "number": 7,
            "ratio": 0.5,
            "yes": True,
            "nothing": None,
        },
    ]


@pytest.mark.parametrize(
    ("colour", "text"),
    [
        (Colour.ODD, "The header 'colour' is nan, which JSON cannot represent."),
        (
            Colour.SET,
            (
                "The header 'colour' has a value of type frozenset. A header's value "
                "must be a str, int, float, bool, None, UUID, Decimal, datetime or "
                "Enum."
            ),
        ),
    ],
)
def test_a_header_that_json_cannot_say_raises_at_the_send(act, registry, colour, text):
    """An Enum may hold anything: what has no JSON form is not stored. [B08.4]"""
    with pytest.raises(InvalidHeader, match=f"^{re.escape(text)}$"):
        act(lambda: registry.command_bus.dispatch(Write(), headers={"colour": colour}))

    assert waiting() == []


# B10.3 ----------------------------------------------------------------------------


def test_the_copies_of_an_event_share_its_identity():
    """Several channel handlers of one event: one message id, sent at one time. [B10.3]"""
    seen = []

    @event_handler(channel=True)
    def one(event: Placed): ...

    @event_handler(channel="mail")
    def two(event: Placed): ...

    @event_handler
    def at_once(event: Placed, message: Message):
        seen.append(message)

    registry = registry_of(one, two, at_once)
    registry.event_bus.publish(Placed(1))

    [message] = seen
    copies = [*waiting("default"), *waiting("mail")]
    assert [each.endpoint.rpartition(".")[2] for each in copies] == ["one", "two"]
    assert {each.message_id for each in copies} == {message.message_id}
    assert {each.correlation_id for each in copies} == {message.message_id}
    assert {each.causation_id for each in copies} == {None}
    assert {each.timestamp for each in copies} == {message.timestamp}
    assert copies[0].sequence < copies[1].sequence


def test_a_message_on_a_channel_begins_its_own_chain(registry):
    """Outside any other message: its correlation id is its own id. [B10.1]"""
    registry.command_bus.dispatch(Write())

    [envelope] = waiting()
    assert envelope.correlation_id == envelope.message_id
    assert envelope.causation_id is None
    assert envelope.message_id.version == 7


def test_a_message_on_a_channel_is_caused_by_the_one_being_handled():
    """Of the same correlation, with an id of its own. [B10.2]"""
    seen = []

    @command_handler("go")
    def go(message: Message, commands: CommandBus):
        seen.append(message)
        commands.dispatch(Write())

    @command_handler(channel=True)
    def write(command: Write, message: Message):
        seen.append(message)

    registry_of(go, write).command_bus.dispatch(route="go")
    run_channel()

    outer, inner = seen
    assert inner.causation_id == outer.message_id
    assert inner.correlation_id == outer.message_id
    assert inner.message_id not in (outer.message_id, None)
    assert outer.timestamp <= inner.timestamp


# Delay, expiry, priority ----------------------------------------------------------

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def clock():
    """Stop the clock at noon, to be moved by hand."""
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)])
def test_a_delayed_message_is_never_early(registry, seen, clock, delay):
    """It is handled once its time has come, not a microsecond before. [C07.3]"""
    registry.command_bus.dispatch(Write("late"), delay=delay)
    registry.command_bus.dispatch(Write("now"))

    assert run_channel() == 1
    clock.shift(timedelta(seconds=90) - timedelta(microseconds=1))
    assert run_channel() == 0
    assert [each.available_at for each in waiting()] == [NOW + timedelta(seconds=90)]
    clock.shift(timedelta(microseconds=1))
    assert run_channel() == 1
    assert seen == ["now", "late"]


def test_a_delay_may_be_declared_and_overruled(seen, clock):
    """The call's delay stands before the handler's; 0 is none at all. [C07.3]"""

    @command_handler(channel=True, delay=timedelta(hours=1))
    def write(command: Write):
        seen.append(command.text)

    bus = registry_of(write).command_bus
    bus.dispatch(Write("declared"))
    bus.dispatch(Write("given"), delay=60)
    bus.dispatch(Write("none"), delay=0)

    run_channel()
    assert seen == ["none"]
    clock.shift(60)
    run_channel()
    assert seen == ["none", "given"]
    clock.shift(3540)
    run_channel()
    assert seen == ["none", "given", "declared"]


def test_a_delay_may_be_a_point_in_time(registry, seen, clock):
    """In any zone; one that is over delays nothing. The call's stands before the handler's. [C07.3]"""
    berlin = ZoneInfo("Europe/Berlin")
    until = datetime(2026, 7, 1, 15, 0, tzinfo=berlin)  # an hour from now
    registry.command_bus.dispatch(Write("late"), delay=until)
    registry.command_bus.dispatch(Write("over"), delay=until - timedelta(days=1))

    assert [each.available_at for each in waiting()] == [None, until]
    assert run_channel() == 1
    clock.shift(3600)
    assert run_channel() == 1
    assert seen == ["over", "late"]


def test_a_life_time_may_end_at_a_point_in_time(registry, seen, clock):
    """From then on the message is dropped. [C07.3]"""
    registry.command_bus.dispatch(Write("dropped"), expires=NOW + timedelta(hours=1))
    clock.shift(3600)

    assert run_channel() == 0
    assert waiting() == []


def test_points_in_time_may_be_local_without_time_zones(registry, settings, clock):
    """Under USE_TZ=False a datetime is local time, as in Django. [C07.3]"""
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"

    registry.command_bus.dispatch(Write(), delay=datetime(2026, 7, 1, 15))  # noqa: DTZ001

    [envelope] = waiting()
    assert envelope.available_at == NOW + timedelta(hours=1)


def test_a_point_in_time_before_the_message_is_due_is_refused(registry, clock):
    """As with spans, it could never be handled. [C07.3]"""
    end = NOW + timedelta(minutes=1)
    with pytest.raises(InvalidOption) as refused:
        registry.command_bus.dispatch(Write(), delay=60, expires=end)

    assert str(refused.value) == (
        f"A message for write would expire before it is due: delay=60, expires={end!r}."
    )
    assert waiting() == []


@pytest.mark.parametrize(
    ("made", "due"),
    [
        (90, NOW + timedelta(seconds=90)),
        (timedelta(hours=1), NOW + timedelta(hours=1)),
        (NOW + timedelta(days=1), NOW + timedelta(days=1)),
        (0, None),
        (None, None),
    ],
)
def test_a_handlers_delay_may_depend_on_the_message(clock, made, due):
    """A function of the message returns seconds, a timedelta, a datetime, or None. [C07.3]"""
    given = []

    def soon(message):
        given.append((message.payload, message.headers["tenant"]))
        return made

    @command_handler(channel=True, delay=soon, expires=lambda message: 10**8)
    def write(command: Write): ...

    registry_of(write).command_bus.dispatch(Write("x"), headers={"tenant": "acme"})

    [envelope] = waiting()
    assert envelope.available_at == due
    assert envelope.expires_at == NOW + timedelta(seconds=10**8)
    assert given == [(Write("x"), "acme")]


@pytest.mark.parametrize("name", ["delay", "expires"])
def test_a_function_is_not_asked_where_the_call_decides(clock, name):
    """The call's option stands before the handler's. [C07.3]"""

    def fail(message):
        raise AssertionError

    @command_handler(channel=True, **{name: fail})
    def write(command: Write): ...

    bus = registry_of(write).command_bus
    bus.dispatch(Write(), **{name: 5})

    [envelope] = waiting()
    assert {envelope.available_at, envelope.expires_at} == {
        NOW + timedelta(seconds=5),
        None,
    }
    with pytest.raises(AssertionError):
        bus.dispatch(Write())  # what it raises reaches the sender
    assert len(waiting()) == 1


@pytest.mark.parametrize("name", ["delay", "expires"])
@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ("1h", "{name}= takes seconds, a timedelta or a datetime, not '1h'."),
        (-1, "{name}=-1 is negative."),
    ],
)
def test_what_a_function_returns_is_checked(name, made, fault):
    """The sender learns whose function it is; nothing is stored. [C07.3]"""

    @command_handler(name="write", channel=True, **{name: lambda message: made})
    def write(command: Write): ...

    with pytest.raises(InvalidOption) as refused:
        registry_of(write).command_bus.dispatch(Write())

    assert str(refused.value) == (
        f"write has {name}=, a function that returned {made!r}. "
        f"{fault.format(name=name)}"
    )
    assert waiting() == []


def test_an_expired_message_is_dropped_and_logged(registry, seen, clock, caplog):
    """From its time on it is not handled; ids are logged, no payload. [C07.3]"""
    registry.command_bus.dispatch(Write("secret"), expires=60)
    registry.command_bus.dispatch(Write("kept"), expires=timedelta(seconds=61))
    [dropped, _] = waiting()
    clock.shift(60)

    with caplog.at_level(logging.INFO, "django_cqrs"):
        assert run_channel() == 1

    assert seen == ["kept"]
    assert waiting() == []
    [record] = caplog.records
    assert record.name == "django_cqrs.channels"
    assert record.getMessage() == (
        f"Message {dropped.message_id} for write was dropped: it expired at "
        "2026-07-01 12:01:00+00:00"
    )
    assert record.cqrs_message_id == str(dropped.message_id)
    assert record.cqrs_correlation_id == str(dropped.correlation_id)
    assert record.cqrs_endpoint == "write"
    assert record.cqrs_channel == "default"


def test_a_life_time_may_be_declared(seen, clock):
    """expires= of the decorator counts from the sending; the call's stands before it. [C07.3]"""

    @command_handler(channel=True, expires=60)
    def write(command: Write):
        seen.append(command.text)

    bus = registry_of(write).command_bus
    bus.dispatch(Write("declared"))
    bus.dispatch(Write("given"), expires=3600)
    clock.shift(60)
    run_channel()

    assert seen == ["given"]


def test_a_message_that_would_expire_before_it_is_due_is_refused(registry):
    """It could never be handled: the send raises. [C07.3]"""
    with pytest.raises(InvalidOption) as refused:
        registry.command_bus.dispatch(Write(), delay=60, expires=timedelta(seconds=60))

    assert str(refused.value) == (
        "A message for write would expire before it is due: delay=60, "
        "expires=datetime.timedelta(seconds=60), both counted from the sending."
    )
    assert waiting() == []


def test_the_highest_priority_is_handled_first(registry, seen):
    """Of equal ones the first sent; without one it is 0; negative comes last. [C07.3]"""
    for text, priority in (("low", -5), ("a", None), ("high", 10), ("b", 0)):
        registry.command_bus.dispatch(Write(text), priority=priority)
    assert [each["text"] for each in payloads()] == ["high", "a", "b", "low"]
    run_channel()

    assert seen == ["high", "a", "b", "low"]


def test_a_priority_may_be_declared(seen):
    """It orders a channel's messages; the call's stands before it. [C07.3]"""

    @command_handler("important", channel=True, priority=5)
    def important(text: str):
        seen.append(text)

    @command_handler("usual", channel=True)
    def usual(text: str):
        seen.append(text)

    bus = registry_of(important, usual).command_bus
    bus.dispatch("3", route="usual")
    bus.dispatch("2", route="important")
    bus.dispatch("4", route="important", priority=-1)
    bus.dispatch("1", route="usual", priority=6)
    run_channel()

    assert seen == ["1", "2", "3", "4"]


def test_options_reach_every_copy_of_an_event(clock):
    """publish() takes them for its handlers on channels. [C07.3]"""

    @event_handler(channel=True)
    def one(event: Placed): ...

    @event_handler(channel="mail", delay=5)
    def two(event: Placed): ...

    bus = registry_of(one, two).event_bus
    bus.publish(Placed(), delay=60, expires=120, priority=3)

    for envelope in (*waiting("default"), *waiting("mail")):
        assert envelope.available_at == NOW + timedelta(seconds=60)
        assert envelope.expires_at == NOW + timedelta(seconds=120)
        assert envelope.priority == 3


BAD_OPTIONS = [
    ({"delay": -1}, "delay=-1 is negative."),
    (
        {"expires": timedelta(seconds=-1)},
        "expires=datetime.timedelta(days=-1, seconds=86399) is negative.",
    ),
    ({"delay": math.nan}, "delay=nan is not a valid number of seconds."),
    ({"expires": math.inf}, "expires=inf is not a valid number of seconds."),
    ({"delay": True}, "delay= takes seconds, a timedelta or a datetime, not True."),
    (
        {"expires": "5"},
        "expires= takes seconds, a timedelta or a datetime, not '5'.",
    ),
    (
        {"delay": datetime(2026, 7, 1, 13)},  # noqa: DTZ001 - it is refused
        (
            "delay=datetime.datetime(2026, 7, 1, 13, 0) has no time zone. Give an "
            "aware datetime, such as timezone.now() + timedelta(hours=1)."
        ),
    ),
    (
        {"expires": 10**12},
        "expires=1000000000000 ends after the last date that can be represented.",
    ),
    (
        {"delay": 10**12},
        "delay=1000000000000 ends after the last date that can be represented.",
    ),
    (
        {"delay": timedelta.max},
        f"delay={timedelta.max!r} ends after the last date that can be represented.",
    ),
    ({"delay": 10**30}, f"delay={10**30} is not a valid number of seconds."),
    ({"priority": 1.5}, "priority= takes a whole number, not 1.5."),
    ({"priority": True}, "priority= takes a whole number, not True."),
    ({"priority": "high"}, "priority= takes a whole number, not 'high'."),
]


@pytest.mark.parametrize(("options", "reason"), BAD_OPTIONS)
def test_what_is_no_time_or_number_raises_at_the_send(registry, options, reason):
    """For a command and for an event; nothing is sent, no handler is called. [C07.3]"""
    called = []
    with pytest.raises(InvalidOption) as refused:
        registry.command_bus.dispatch(Write(), **options)
    assert str(refused.value) == reason
    with pytest.raises(InvalidOption) as refused:
        registry.event_bus.publish(Placed(), **options)
    assert str(refused.value) == reason

    assert waiting() == []
    assert called == []


def test_options_for_a_synchronous_handler_raise(registry):
    """An event is refused where one of its handlers is called at once: it could not wait. [C07.3]"""
    called = []

    @registry.add
    @event_handler(name="at_once")
    def at_once(event: Placed):
        called.append(event)

    with pytest.raises(InvalidOption) as refused:
        registry.event_bus.publish(Placed(), delay=5)
    assert str(refused.value) == (
        "delay= cannot be given to at_once, which is called immediately: only a "
        "message that is sent to a channel can have a delay, an expiry or a priority."
    )
    with pytest.raises(
        InvalidOption, match=r"^delay= and expires= and priority= cannot"
    ):
        registry.command_bus.dispatch(Act(None), delay=0, expires=5, priority=0)

    assert called == []
    assert waiting() == []


@pytest.mark.parametrize("name", ["delay", "expires", "priority"])
def test_options_that_a_channel_does_not_know_raise(registry, seen, name):
    """What could not be kept is not promised. [C07.3]"""
    with pytest.raises(InvalidOption) as refused:
        registry.command_bus.dispatch(Write(), route="write.commit", **{name: 1})

    assert str(refused.value) == (
        f"Channel 'commit' (OnCommitChannel) does not support {name}=."
    )
    assert seen == []


# Endpoints and names --------------------------------------------------------------


def stored(registry, payload=None, **changes):
    """Send a message and return its envelope, changed."""
    registry.command_bus.dispatch(Write() if payload is None else payload)
    channel = channels["default"]
    [envelope] = channel.waiting()
    channel.clear()
    return dataclasses.replace(envelope, **changes)


def test_a_stored_message_is_for_the_endpoints_old_name_as_well(registry, seen):
    """aliases= of a handler that was renamed keeps what was stored for it deliverable."""
    envelope = stored(registry)

    @command_handler(name="renamed", aliases=["old", "write"], channel=True)
    def renamed(command: Write):
        seen.append("renamed")

    registry = registry_of(renamed)
    registry.deliver(envelope)
    registry.deliver(dataclasses.replace(envelope, endpoint="old"))
    registry.deliver(dataclasses.replace(envelope, endpoint="renamed"))

    assert seen == ["renamed"] * 3


def test_a_stored_message_whose_endpoint_is_gone(registry):
    """It says what to do where the handler was renamed."""
    envelope = stored(registry, endpoint="tests.gone")

    with pytest.raises(UnknownEndpoint) as refused:
        registry.deliver(envelope)

    assert str(refused.value) == (
        "No handler has the endpoint name 'tests.gone'. If it was renamed, give the "
        "old name in aliases=[...] of its decorator."
    )
    assert isinstance(refused.value, LookupError)


def test_an_old_name_that_two_handlers_claim_is_refused(registry):
    """It would be a matter of luck who handles what was stored."""
    envelope = stored(registry, endpoint="old")

    @command_handler("one", name="one", aliases=["old"])
    def one(command: Write): ...

    @command_handler("two", name="two", aliases="old")
    def two(command: Write): ...

    with pytest.raises(
        InvalidHandler, match=r"^Two handlers have the endpoint name 'old'"
    ):
        registry_of(one, two).deliver(envelope)


def test_a_stored_message_of_a_renamed_class(registry, seen):
    """@message(aliases=[...]) keeps what was stored under an old name readable."""
    envelope = stored(registry)
    assert (envelope.name, envelope.version) == ("channels.write", 2)

    registry.deliver(dataclasses.replace(envelope, name="channels.scribble"))

    assert seen == ["written"]


def test_a_stored_message_of_an_unknown_class(registry, seen):
    """Only registered classes are decoded, whatever a row says."""
    envelope = stored(registry, name="os.system")

    with pytest.raises(
        UnknownMessage, match=r"^No registered message class is named 'os.system'"
    ):
        registry.deliver(envelope)

    assert seen == []


def test_a_stored_message_that_its_handler_takes_no_more(registry, seen):
    """A handler of another class does not get it."""
    envelope = stored(registry, endpoint="on_placed")

    with pytest.raises(MessageConversionError) as refused:
        registry.deliver(envelope)

    assert refused.value.target == "Placed"
    assert seen == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b'{"text": 5}',
        b'{"text": "x", "number": "5"}',
        b'{"text": "x", "number": NaN}',
        b"[" * 100_000,
    ],
    ids=lambda payload: repr(payload[:40]),
)
def test_broken_payload_bytes_raise_one_error_and_call_nobody(registry, seen, payload):
    """Whatever stands in a row: MessageConversionError, never anything else."""
    envelope = dataclasses.replace(stored(registry), payload=payload)

    with pytest.raises(MessageConversionError) as refused:
        registry.deliver(envelope)

    assert refused.value.errors
    assert seen == []


@pytest.mark.parametrize(
    "headers",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000],
    ids=lambda headers: repr(headers[:40]),
)
def test_broken_header_bytes_raise_the_same_error(registry, seen, headers):
    """Headers that are no JSON object cannot be passed on."""
    envelope = dataclasses.replace(stored(registry), headers=headers)

    with pytest.raises(MessageConversionError) as refused:
        registry.deliver(envelope)

    assert str(refused.value) == (
        "Cannot convert the headers to a dict: the stored value is not a JSON object."
    )
    assert seen == []


def test_a_broken_message_waits_in_memory_until_somebody_takes_it_away(registry, seen):
    """A failure to read is a failure: the message is not lost."""
    broken = dataclasses.replace(stored(registry), payload=b"{")
    channels["default"].write(connection, [Delivery(broken, registry.deliver)])

    with pytest.raises(MessageConversionError):
        run_channel()

    assert waiting() == [broken]
