"""Headers: how they reach handlers, how they pass on, and whose message is whose."""

import asyncio
import contextvars
import enum
import math
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    Headers,
    Message,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.exceptions import (
    InvalidHeader,
    MessageConversionError,
    MissingHeader,
    NoHandlerFound,
    SynchronousDispatch,
)
from django_cqrs.messages import (
    MOST_NAMES,
    RESERVED_HEADERS,
    _known_names,
    current,
    inherited_headers,
)
from tests.limits import LIMIT
from tests.support import registry_of
from tests.testapp.models import Note

ORIGIN = current.get()


@dataclass(frozen=True)
class Open:
    title: str = "x"


@dataclass(frozen=True)
class Opened:
    title: str = "x"


@dataclass(frozen=True)
class Assign:
    title: str = "x"


@dataclass(frozen=True)
class FindOwner:
    title: str = "x"


class Role(enum.Enum):
    ADMIN = "admin"
    GUEST = "guest"


def handling(function):
    """Return a registry whose one handler has no transaction: nothing here writes."""
    return registry_of(command_handler(atomic=False)(function))


# B08 ------------------------------------------------------------------------------


def taking(wanted):
    def handle(command: Open, value: Annotated[wanted, Header("value")]):
        return value

    return handling(handle).command_bus


KEY = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
NOON = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wanted", "sent", "given"),
    [
        (int, "1", 1),
        (int, 1, 1),
        (int | None, "1", 1),
        (float, "1.5", 1.5),
        (bool, "true", True),
        (UUID, str(KEY), KEY),
        (UUID, KEY, KEY),
        (Decimal, "1.10", Decimal("1.10")),
        (Role, "admin", Role.ADMIN),
        (Role, Role.GUEST, Role.GUEST),
        (datetime, "2026-05-01T12:00:00.123456Z", NOON),
        (datetime, NOON, NOON),
        (date, "2026-05-01", date(2026, 5, 1)),
        (str, "1", "1"),
        (str, 1, "1"),
        (str, KEY, str(KEY)),
        (str, Decimal("1.10"), "1.10"),
        (str, Role.ADMIN, "admin"),
        (str, NOON, "2026-05-01T12:00:00.123456+00:00"),
        (object, KEY, KEY),
    ],
    ids=repr,
)
def test_a_header_is_converted_to_its_parameters_type(wanted, sent, given):
    """A header reaches its parameter as the annotated type, from text or from itself. [B08.1]"""
    received = taking(wanted).dispatch(Open(), headers={"value": sent})

    assert received == given
    assert type(received) is type(given)


def test_the_acceptance_case():
    """headers={"executor_id": "1"} reaches Annotated[int, Header("executor_id")]. [B08.1]"""

    def handle(command: Open, executor: Annotated[int, Header("executor_id")]):
        return executor

    bus = handling(handle).command_bus

    assert bus.dispatch(Open(), headers={"executor_id": "1"}) == 1


@pytest.mark.parametrize(
    ("wanted", "sent", "sentence"),
    [
        (
            float,
            "one",
            "Input should be a valid number, unable to parse string as a number",
        ),
        (int, None, "Input should be a valid integer"),
        (UUID, "secret", "Input should be a valid UUID"),
        (Role, "secret", "Input should be 'admin' or 'guest'"),
    ],
)
def test_a_header_that_does_not_fit_is_one_error(wanted, sent, sentence):
    """A header of a wrong type raises with its path, and the handler is not called. [B08.1]"""
    called = []

    def handle(command: Open, value: Annotated[wanted, Header("value")]):
        called.append(value)

    with pytest.raises(MessageConversionError) as caught:
        handling(handle).command_bus.dispatch(Open(), headers={"value": sent})

    assert [(e.path, e.message) for e in caught.value.errors] == [
        ("headers.value", sentence)
    ]
    assert str(caught.value) == (
        f"Cannot convert the header to {wanted.__name__}: headers.value: {sentence}."
    )
    assert called == []


def test_queries_and_events_take_headers_too():
    """All three buses take headers=. [B08.1]"""
    seen = []

    @query_handler
    def find(query: FindOwner, executor: Annotated[int, Header("executor")]):
        return executor

    @event_handler
    def audit(event: Opened, executor: Annotated[int, Header("executor")]):
        seen.append(executor)

    registry = registry_of(find, audit)
    registry.event_bus.publish(Opened(), headers={"executor": "2"})

    assert registry.query_bus.ask(FindOwner(), headers={"executor": "1"}) == 1
    assert seen == [2]


def test_a_missing_header_is_its_default():
    """Without the header its parameter has the default, even where None would do. [B08.2]"""

    def handle(
        command: Open,
        limit: Annotated[int, Header("limit")] = 20,
        tenant: Annotated[str | None, Header("tenant")] = "public",
    ):
        return limit, tenant

    bus = handling(handle).command_bus

    assert bus.dispatch(Open()) == (20, "public")
    assert bus.dispatch(Open(), headers={"limit": 5, "tenant": None}) == (5, None)


def test_a_missing_header_is_none_where_it_is_optional():
    """Without the header and without a default, an optional parameter is None. [B08.2]"""

    def handle(command: Open, tenant: Annotated[str | None, Header("tenant")]):
        return tenant

    assert handling(handle).command_bus.dispatch(Open()) is None


@pytest.mark.django_db
def test_a_required_header_that_is_missing_raises():
    """Without default or None the call raises MissingHeader, and writes nothing. [B08.2]"""

    @command_handler
    def open_ticket(command: Open, executor: Annotated[int, Header("executor_id")]):
        Note.objects.create(text="called")

    with pytest.raises(MissingHeader) as caught:
        registry_of(open_ticket).command_bus.dispatch(Open(), headers={"executor": 1})

    place = f"{__name__}.{open_ticket.__qualname__}"
    assert str(caught.value) == (
        f"{place} requires the header 'executor_id', but the message does not have "
        "it. Give it with headers={'executor_id': ...}, or give the parameter "
        "'executor' a default."
    )
    assert Note.objects.count() == 0


def test_headers_shows_the_users_and_the_messages_own():
    """Headers holds all headers of the message, and cannot be written to. [B08.3]"""
    seen = []

    def handle(command: Open, headers: Headers, message: Message):
        seen.append((headers, message))

    handling(handle).command_bus.dispatch(Open(), headers={"tenant": "t", "n": 1})
    ((headers, message),) = seen

    assert dict(headers) == {
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "causation_id": None,
        "timestamp": message.timestamp,
        "attempt": 1,
        "is_last_attempt": True,
        "tenant": "t",
        "n": 1,
    }
    assert len(headers) == 8
    assert headers.get("nosuch") is None
    assert repr(headers) == (
        "<Headers message_id, correlation_id, causation_id, timestamp, attempt, "
        "is_last_attempt, tenant, n>"
    )
    with pytest.raises(TypeError, match="does not support item assignment"):
        headers["tenant"] = "other"


def test_a_headers_mapping_given_is_copied():
    """What the sender does to its dict afterwards changes no message. [B08.3]"""
    seen = []

    def handle(command: Open, headers: Headers):
        seen.append(headers)

    given = {"tenant": "t"}
    handling(handle).command_bus.dispatch(Open(), headers=given)
    given["tenant"] = "other"
    given["more"] = 1

    assert seen[0]["tenant"] == "t"
    assert "more" not in seen[0]


def test_a_messages_own_headers_are_parameters_too():
    """Header("timestamp") and its like fill a parameter, as the type it asks for. [B08.3]"""

    def handle(
        command: Open,
        message: Message,
        sent_at: Annotated[datetime, Header("timestamp")],
        number: Annotated[str, Header("message_id")],
        cause: Annotated[UUID | None, Header("causation_id")],
    ):
        return message, sent_at, number, cause

    before = datetime.now(UTC)
    message, sent_at, number, cause = handling(handle).command_bus.dispatch(Open())

    assert before - timedelta(microseconds=1) <= sent_at <= datetime.now(UTC)
    assert sent_at == message.timestamp
    assert number == str(message.message_id)
    assert cause is None


RESERVED_TEXT = (
    "The header {name!r} is reserved: every message has its own. Choose another "
    "name; only correlation_id may be given."
)


@pytest.mark.parametrize(
    "name",
    [
        "message_id",
        "causation_id",
        "timestamp",
        "attempt",
        "is_last_attempt",
        "content_type",
        "delay",
        "expires",
        "priority",
        "aggregate_id",
        "aggregate_type",
        "aggregate_anything",
        "schedule_name",
        "schedule_due_at",
        "schedule_missed",
    ],
)
@pytest.mark.django_db
def test_a_reserved_header_is_refused(name):
    """A reserved name raises on every bus; no handler runs and nothing is written. [B08.4]"""

    @command_handler
    def command(command: Open):
        Note.objects.create(text="called")

    @query_handler
    def query(query: FindOwner):
        Note.objects.create(text="called")

    @event_handler
    def event(event: Opened):
        Note.objects.create(text="called")

    registry = registry_of(command, query, event)
    texts = []
    for send, payload in (
        (registry.command_bus.dispatch, Open()),
        (registry.query_bus.ask, FindOwner()),
        (registry.event_bus.publish, Opened()),
    ):
        with pytest.raises(InvalidHeader) as caught:
            send(payload, headers={"tenant": "t", name: "1"})
        texts.append(str(caught.value))

    assert texts == [RESERVED_TEXT.format(name=name)] * 3
    assert Note.objects.count() == 0


def test_the_reserved_names_are_these():
    """A name joins the reserved ones on purpose: it takes one from users. [B08.4]"""
    names = {"message_id", "causation_id", "timestamp", "content_type"}
    names |= {"attempt", "is_last_attempt", "delay", "expires", "priority"}

    assert names == RESERVED_HEADERS


@pytest.mark.parametrize(
    "near", ["aggregate", "schedule", "Message_ID", "delays", "x-priority"]
)
def test_a_name_that_is_only_near_is_free(near):
    """Reserved are whole names, and two prefixes with their underscores. [B08.4]"""

    def handle(command: Open, headers: Headers):
        return headers[near]

    assert handling(handle).command_bus.dispatch(Open(), headers={near: 1}) == 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1], "list"),
        ({"a": 1}, "dict"),
        ((1,), "tuple"),
        (b"x", "bytes"),
        (date(2026, 5, 1), "date"),
        (timedelta(1), "timedelta"),
        (Fraction(1, 3), "Fraction"),
        (object(), "object"),
        (Open(), "Open"),
        (int, "type"),
    ],
)
def test_a_value_that_could_not_travel_is_refused(value, kind):
    """A header holds what a channel could carry, whichever route is taken. [B08.4]"""

    def handle(command: Open): ...

    with pytest.raises(InvalidHeader) as caught:
        handling(handle).command_bus.dispatch(Open(), headers={"value": value})

    assert str(caught.value) == (
        f"The header 'value' has a value of type {kind}. A header's value must be a "
        "str, int, float, bool, None, UUID, Decimal, datetime or Enum."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_say_is_refused(value):
    """A header is no NaN and not infinite. [B08.4]"""

    def handle(command: Open): ...

    with pytest.raises(InvalidHeader) as caught:
        handling(handle).command_bus.dispatch(Open(), headers={"value": value})

    assert str(caught.value) == (
        f"The header 'value' is {value!r}, which JSON cannot represent."
    )


@pytest.mark.parametrize("name", [1, None, b"x"])
def test_a_name_is_a_string(name):
    """A header's name that is no string raises. [B08.4]"""

    def handle(command: Open): ...

    with pytest.raises(InvalidHeader) as caught:
        handling(handle).command_bus.dispatch(Open(), headers={name: 1})

    assert str(caught.value) == f"A header's name must be a string, not {name!r}."


def test_headers_are_a_mapping():
    """headers= that is no mapping raises, and its content is not shown. [B08.4]"""

    def handle(command: Open): ...

    with pytest.raises(InvalidHeader) as caught:
        handling(handle).command_bus.dispatch(Open(), headers=["secret"])

    assert str(caught.value) == (
        "headers= takes a mapping of names to values, not list."
    )


@pytest.mark.parametrize("given", [KEY, str(KEY), KEY.hex])
def test_a_correlation_id_may_be_given(given):
    """correlation_id alone of a message's own headers is the sender's to choose. [B08.4]"""

    def handle(command: Open, message: Message):
        return message

    message = handling(handle).command_bus.dispatch(
        Open(), headers={"correlation_id": given}
    )

    assert message.correlation_id == KEY
    assert message.message_id != KEY


@pytest.mark.parametrize("given", ["secret", 5, None, ""])
def test_a_correlation_id_is_a_uuid(given):
    """A correlation_id that is no UUID raises. [B08.4]"""

    def handle(command: Open): ...

    with pytest.raises(InvalidHeader) as caught:
        handling(handle).command_bus.dispatch(Open(), headers={"correlation_id": given})

    assert str(caught.value) == (
        f"The header 'correlation_id' must be a UUID, not {given!r}."
    )


# B09 ------------------------------------------------------------------------------


def test_from_a_command_to_the_handlers_of_its_events():
    """A command's headers are seen by every handler of the events it publishes. [B09.1]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus):
        events.publish(Opened())

    @event_handler
    def first(event: Opened, tenant: Annotated[str, Header("tenant")]):
        seen.append(("first", tenant))

    @event_handler
    def second(event: Opened, headers: Headers):
        seen.append(("second", headers["tenant"]))

    registry_of(open_ticket, first, second).command_bus.dispatch(
        Open(), headers={"tenant": "t"}
    )

    assert seen == [("first", "t"), ("second", "t")]


def test_from_an_event_handler_to_the_commands_it_sends():
    """An event's headers are seen by the handlers of commands its handlers send. [B09.1]"""
    seen = []

    @event_handler
    def on_opened(event: Opened, commands: CommandBus):
        commands.dispatch(Assign())

    @command_handler(atomic=False)
    def assign(command: Assign, tenant: Annotated[str, Header("tenant")]):
        seen.append(tenant)

    registry_of(on_opened, assign).event_bus.publish(Opened(), headers={"tenant": "t"})

    assert seen == ["t"]


def test_from_a_command_to_the_commands_it_sends():
    """A command's headers are seen by the handlers of commands it sends. [B09.1]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, commands: CommandBus):
        commands.dispatch(Assign())

    @command_handler(atomic=False)
    def assign(command: Assign, tenant: Annotated[str, Header("tenant")]):
        seen.append(tenant)

    registry_of(open_ticket, assign).command_bus.dispatch(
        Open(), headers={"tenant": "t"}
    )

    assert seen == ["t"]


def test_from_a_command_to_the_queries_it_asks():
    """A command's headers are seen by the handlers of queries it asks. [B09.1]"""

    @command_handler(atomic=False)
    def open_ticket(command: Open, queries: QueryBus):
        return queries.ask(FindOwner())

    @query_handler
    def find_owner(query: FindOwner, tenant: Annotated[str, Header("tenant")]):
        return tenant

    bus = registry_of(open_ticket, find_owner).command_bus

    assert bus.dispatch(Open(), headers={"tenant": "t"}) == "t"


def test_from_a_query_to_the_queries_it_asks():
    """A query's headers are seen by the handlers of queries it asks. [B09.1]"""

    @query_handler("outer")
    def outer(queries: QueryBus):
        return queries.ask(FindOwner())

    @query_handler
    def find_owner(query: FindOwner, tenant: Annotated[str, Header("tenant")]):
        return tenant

    bus = registry_of(outer, find_owner).query_bus

    assert bus.ask(route="outer", headers={"tenant": "t"}) == "t"


@pytest.mark.django_db
def test_through_a_chain_of_hops_and_transactions():
    """Headers pass through command, event, command and query, in transactions too. [B09.1]"""
    seen = []

    @command_handler
    def open_ticket(command: Open, events: EventBus):
        events.publish(Opened())

    @event_handler("ticket.*")
    @event_handler
    def on_opened(event: Opened, commands: CommandBus):
        commands.dispatch(Assign())

    @command_handler
    def assign(command: Assign, queries: QueryBus):
        queries.ask(route="owner")

    @query_handler("owner")
    def owner(headers: Headers):
        seen.append({name: headers[name] for name in ("tenant", "number")})

    registry_of(open_ticket, on_opened, assign, owner).command_bus.dispatch(
        Open(), headers={"tenant": "t", "number": 7}
    )

    assert seen == [{"tenant": "t", "number": 7}]


def test_a_header_keeps_its_type_on_the_way():
    """What passes on inside a process is the value itself, not its text. [B09.1]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus):
        events.publish(Opened())

    @event_handler
    def audit(event: Opened, headers: Headers):
        seen.append(headers["role"])

    registry_of(open_ticket, audit).command_bus.dispatch(
        Open(), headers={"role": Role.ADMIN}
    )

    assert seen == [Role.ADMIN]


def test_an_explicit_header_wins_for_that_send_only():
    """A nested send's own headers stand before the inherited ones, and end with it. [B09.2]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus, headers: Headers):
        events.publish(Opened("1"))
        events.publish(Opened("2"), headers={"tenant": "other", "extra": 1})
        events.publish(Opened("3"))
        seen.append(("own", headers["tenant"], headers.get("extra")))

    @event_handler
    def audit(event: Opened, headers: Headers):
        seen.append((event.title, headers["tenant"], headers.get("extra")))

    registry_of(open_ticket, audit).command_bus.dispatch(
        Open(), headers={"tenant": "t"}
    )

    assert seen == [
        ("1", "t", None),
        ("2", "other", 1),
        ("3", "t", None),
        ("own", "t", None),
    ]


def test_an_explicit_header_passes_on_from_there():
    """What a nested send is given is inherited by what it causes in turn. [B09.2]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, commands: CommandBus):
        commands.dispatch(Assign(), headers={"tenant": "other"})

    @command_handler(atomic=False)
    def assign(command: Assign, events: EventBus):
        events.publish(Opened())

    @event_handler
    def audit(event: Opened, tenant: Annotated[str, Header("tenant")]):
        seen.append(tenant)

    registry_of(open_ticket, assign, audit).command_bus.dispatch(
        Open(), headers={"tenant": "t"}
    )

    assert seen == ["other"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.django_db
def test_the_next_message_sees_nothing_of_the_one_before(fails):
    """After a dispatch returns or raises, nothing of its headers is left. [B09.3]"""
    seen = []

    @command_handler
    def open_ticket(command: Open, headers: Headers):
        seen.append(headers)
        if fails and "tenant" in headers:
            raise ZeroDivisionError

    bus = registry_of(open_ticket).command_bus
    try:
        bus.dispatch(Open(), headers={"tenant": "t"})
    except ZeroDivisionError:
        assert fails
    assert current.get() is ORIGIN
    bus.dispatch(Open())

    assert "tenant" in seen[0]
    assert "tenant" not in seen[1]
    assert seen[1]["causation_id"] is None
    assert seen[1]["correlation_id"] != seen[0]["correlation_id"]


@pytest.mark.parametrize("bus", ["query_bus", "event_bus"])
def test_a_failed_query_or_event_leaves_nothing(bus):
    """A query or an event that raises ends as a command does. [B09.3]"""

    @query_handler
    def find(query: Open):
        raise ZeroDivisionError

    @event_handler
    def audit(event: Open):
        raise ZeroDivisionError

    registry = registry_of(find, audit)
    send = registry.query_bus.ask if bus == "query_bus" else registry.event_bus.publish
    with pytest.raises(ZeroDivisionError):
        send(Open(), headers={"tenant": "t"})

    assert current.get() is ORIGIN


def test_a_failed_nested_send_leaves_its_senders_headers():
    """A handler that catches a nested failure still has its own message's headers. [B09.3]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, commands: CommandBus, events: EventBus):
        with pytest.raises(ZeroDivisionError):
            commands.dispatch(Assign(), headers={"tenant": "other"})
        events.publish(Opened())

    @command_handler(atomic=False)
    def assign(command: Assign):
        raise ZeroDivisionError

    @event_handler
    def audit(event: Opened, tenant: Annotated[str, Header("tenant")]):
        seen.append(tenant)

    registry_of(open_ticket, assign, audit).command_bus.dispatch(
        Open(), headers={"tenant": "t"}
    )

    assert seen == ["t"]


def test_reserved_headers_do_not_pass_on():
    """A nested message has an id, a time and a cause of its own. [B09.4]"""
    messages = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus, message: Message):
        messages.append(message)
        events.publish(Opened())

    @event_handler
    def audit(event: Opened, message: Message):
        messages.append(message)

    registry_of(open_ticket, audit).command_bus.dispatch(
        Open(), headers={"tenant": "t"}
    )
    outer, inner = messages

    assert inner.message_id != outer.message_id
    assert inner.timestamp >= outer.timestamp
    assert inner.causation_id == outer.message_id
    assert set(inner.headers) == {
        "message_id",
        "correlation_id",
        "causation_id",
        "timestamp",
        "attempt",
        "is_last_attempt",
        "tenant",
    }


def test_the_alias_asked_for_does_not_pass_on():
    """using= is of one message; what its handler sends is not told of it. [B09.4]"""
    seen = []

    @query_handler
    def find(query: FindOwner, events: EventBus, message: Message):
        seen.append(message.using)
        events.publish(Opened())

    @event_handler
    def audit(event: Opened, message: Message):
        seen.append(message.using)

    registry_of(find, audit).query_bus.ask(FindOwner(), using="other")

    assert seen == ["other", None]


def relay(barrier_wait):
    """
    Return a registry whose command waits, then publishes, and returns what it saw.

    All that run at a time are inside their handlers at once.
    """

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus, headers: Headers):
        seen = [headers["tenant"]]
        barrier_wait()
        collected.set(seen)
        events.publish(Opened())
        barrier_wait()
        seen.append(current.get().headers["tenant"])
        return seen

    @event_handler
    def audit(event: Opened, tenant: Annotated[str, Header("tenant")]):
        collected.get().append(tenant)

    collected = contextvars.ContextVar("collected")
    return registry_of(open_ticket, audit).command_bus


def test_threads_do_not_see_each_others_headers():
    """Commands handled at one time in several threads keep their headers apart. [B09.5]"""
    count = 8
    bus = relay(threading.Barrier(count, timeout=LIMIT).wait)
    results = {}

    def run(tenant):
        results[tenant] = bus.dispatch(Open(), headers={"tenant": tenant})

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == {str(n): [str(n)] * 3 for n in range(count)}
    assert current.get() is ORIGIN


def test_a_thread_begins_anew():
    """A thread that a handler starts is no part of the handler's message. [B09.5]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open):
        context = contextvars.Context()
        thread = threading.Thread(target=context.run, args=(work,))
        thread.start()
        thread.join()

    @query_handler
    def find(query: FindOwner, headers: Headers):
        return dict(headers)

    registry = registry_of(open_ticket, find)

    def work():
        seen.append(registry.query_bus.ask(FindOwner()))

    registry.command_bus.dispatch(Open(), headers={"tenant": "t"})
    ((headers),) = seen

    assert "tenant" not in headers
    assert headers["causation_id"] is None


async def test_asyncio_tasks_do_not_see_each_others_headers():
    """Commands handled at one time from several tasks keep their headers apart. [B09.5]"""
    count = 4
    bus = relay(threading.Barrier(count, timeout=LIMIT).wait)

    async def run(tenant):
        return await asyncio.to_thread(bus.dispatch, Open(), headers={"tenant": tenant})

    results = await asyncio.gather(*(run(str(n)) for n in range(count)))

    assert results == [[str(n)] * 3 for n in range(count)]
    assert current.get() is ORIGIN


async def test_asyncio_tasks_keep_what_they_inherit_apart():
    """What a request's headers are in one task they are in no other. [B09.5]"""

    def handle(command: Open, tenant: Annotated[str | None, Header("tenant")]):
        return tenant

    bus = handling(handle).command_bus
    inside = asyncio.Barrier(3)

    async def run(tenant):
        if tenant is None:
            await inside.wait()
            return await asyncio.to_thread(bus.dispatch, Open())
        with inherited_headers({"tenant": tenant}):
            await inside.wait()
            return await asyncio.to_thread(bus.dispatch, Open())

    assert await asyncio.gather(run("a"), run(None), run("b")) == ["a", None, "b"]


def test_a_nested_event_loop_has_the_headers_and_leaves_none():
    """An async handler's loop sees its message, and what it sends inherits from it. [B09.5]"""
    seen = []

    @command_handler(atomic=False)
    async def open_ticket(command: Open, commands: CommandBus, message: Message):
        assert current.get() is message
        await sync_to_async(commands.dispatch)(Assign(), headers={"step": 2})
        seen.append(("after", dict(current.get().headers)["tenant"]))

    @command_handler(atomic=False)
    def assign(command: Assign, headers: Headers):
        seen.append((headers["tenant"], headers["step"]))

    registry = registry_of(open_ticket, assign)
    registry.command_bus.dispatch(Open(), headers={"tenant": "t"})

    assert seen == [("t", 2), ("after", "t")]
    assert current.get() is ORIGIN


def test_nested_event_loops_do_not_see_each_others_headers():
    """Loops in several threads, each in a handler of its own, are strangers. [B09.5]"""
    count = 4
    barrier = threading.Barrier(count, timeout=LIMIT)
    results = {}

    @command_handler(atomic=False)
    async def open_ticket(command: Open, headers: Headers):
        barrier.wait()
        await asyncio.sleep(0)
        return headers["tenant"], current.get().headers["tenant"]

    bus = registry_of(open_ticket).command_bus

    def run(tenant):
        results[tenant] = bus.dispatch(Open(), headers={"tenant": tenant})

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == {str(n): (str(n), str(n)) for n in range(count)}


def test_a_task_of_a_handler_changes_nothing_for_the_handler():
    """What a task inside a handler's loop inherits anew ends with that task. [B09.5]"""
    seen = []

    @command_handler(atomic=False)
    async def open_ticket(command: Open, commands: CommandBus):
        async def task():
            with inherited_headers({"tenant": "task"}):
                await sync_to_async(commands.dispatch)(Assign("task"))

        await asyncio.create_task(task())
        await sync_to_async(commands.dispatch)(Assign("handler"))

    @command_handler(atomic=False)
    def assign(command: Assign, tenant: Annotated[str, Header("tenant")]):
        seen.append((command.title, tenant))

    registry_of(open_ticket, assign).command_bus.dispatch(
        Open(), headers={"tenant": "t"}
    )

    assert seen == [("task", "task"), ("handler", "t")]


@pytest.mark.parametrize(
    ("bus", "method"),
    [("command_bus", "dispatch"), ("query_bus", "ask"), ("event_bus", "publish")],
)
@pytest.mark.parametrize("headers", [None, {"tenant": "t"}])
def test_a_synchronous_call_in_a_running_loop_raises(bus, method, headers):
    """A bus does not block an event loop: it says which method is to be awaited. [B09.5]"""
    registry = Registry()

    async def call():
        getattr(getattr(registry, bus), method)(Open(), headers=headers)

    with pytest.raises(SynchronousDispatch) as caught:
        async_to_sync(call)()

    assert str(caught.value) == (
        f"{bus}.{method}() was called in a running event loop and would block it. Use "
        f"`await {bus}.a{method}()`."
    )


def test_headers_of_a_block():
    """inherited_headers() gives all messages sent inside its block these headers. [B09]"""

    def handle(command: Open, headers: Headers, message: Message):
        return dict(headers), message

    bus = handling(handle).command_bus
    with inherited_headers({"tenant": "t", "correlation_id": KEY}):
        first, message = bus.dispatch(Open())
        second, _ = bus.dispatch(Open(), headers={"tenant": "other"})
    third, _ = bus.dispatch(Open())

    assert (first["tenant"], second["tenant"]) == ("t", "other")
    assert first["correlation_id"] == second["correlation_id"] == KEY
    assert first["causation_id"] is None
    assert message.message_id != KEY
    assert "tenant" not in third
    assert third["correlation_id"] != KEY


# B10 ------------------------------------------------------------------------------


def test_a_first_message_is_the_beginning_of_its_chain():
    """At top level correlation_id == message_id, and there is no cause. [B10.1]"""

    def handle(command: Open, message: Message):
        return message

    bus = handling(handle).command_bus
    message = bus.dispatch(Open())

    assert message.correlation_id == message.message_id
    assert message.causation_id is None
    assert message.message_id.version == 7
    assert bus.dispatch(Open()).message_id != message.message_id


def test_a_given_correlation_id_is_kept():
    """A correlation id that the sender gives is the chain's. [B10.1]"""
    seen = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus, message: Message):
        events.publish(Opened())
        return message

    @event_handler
    def audit(event: Opened, message: Message):
        seen.append(message.correlation_id)

    given = uuid4()
    message = registry_of(open_ticket, audit).command_bus.dispatch(
        Open(), headers={"correlation_id": given}
    )

    assert message.correlation_id == given
    assert message.message_id != given
    assert message.causation_id is None
    assert seen == [given]


@pytest.mark.parametrize("read", ["outer first", "inner first"])
def test_a_nested_message_knows_its_cause(read):
    """Nested: a new id, the same correlation id, caused by the message being handled. [B10.2]"""
    messages = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus, message: Message):
        messages.append(message)
        if read == "outer first":
            assert message.message_id
        events.publish(Opened())

    @event_handler
    def on_opened(event: Opened, commands: CommandBus, message: Message):
        messages.append(message)
        commands.dispatch(Assign())

    @command_handler(atomic=False)
    def assign(command: Assign, message: Message):
        messages.append(message)
        if read == "inner first":
            assert message.message_id

    registry_of(open_ticket, on_opened, assign).command_bus.dispatch(Open())
    first, second, third = messages

    assert len({message.message_id for message in messages}) == 3
    assert {message.correlation_id for message in messages} == {first.message_id}
    assert first.causation_id is None
    assert second.causation_id == first.message_id
    assert third.causation_id == second.message_id
    assert first.timestamp <= second.timestamp <= third.timestamp


def test_siblings_have_one_cause():
    """Two events of one command are caused by it, not by one another. [B10.2]"""
    messages = []

    @command_handler(atomic=False)
    def open_ticket(command: Open, events: EventBus, message: Message):
        messages.append(message)
        events.publish(Opened("1"))
        events.publish(Opened("2"))

    @event_handler
    def audit(event: Opened, message: Message):
        messages.append(message)

    registry_of(open_ticket, audit).command_bus.dispatch(Open())
    command, one, two = messages

    assert one.causation_id == two.causation_id == command.message_id
    assert one.message_id != two.message_id


def test_the_handlers_of_one_event_share_its_identity():
    """Each handler of an event is given the same message, not a copy with its own id. [B10.2]"""
    ids = []

    @event_handler
    def first(event: Opened, message: Message):
        ids.append(message.message_id)

    @event_handler("*")
    @event_handler
    def second(event: object, message: Message):
        ids.append(message.message_id)

    registry_of(first, second).event_bus.publish(Opened())

    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_the_timestamp_is_aware_and_near():
    """A message's time is its sending's, in UTC, and that of its id. [B10]"""

    def handle(command: Open, message: Message):
        return message

    before = datetime.now(UTC)
    message = handling(handle).command_bus.dispatch(Open())
    milliseconds = message.message_id.int >> 80

    assert message.timestamp.utcoffset() == timedelta(0)
    assert abs(message.timestamp - before) < timedelta(seconds=5)
    assert milliseconds == int(message.timestamp.timestamp() * 1000)


def test_a_message_shows_no_payload():
    """A message's repr has its type and id alone: a payload may be secret. [B10]"""
    message = Message(Open("secret"))

    assert repr(message) == f"<Message Open {message.message_id}>"


def test_names_that_callers_choose_are_not_kept_without_end():
    """However many names of headers and routes are tried, what is remembered is bounded."""
    registry = Registry()

    @registry.add
    @command_handler("bounded.count", atomic=False)
    def count(number: int, message: Message) -> int:
        return message.headers[f"name {number}"]

    bus = registry.command_bus
    for number in range(3 * MOST_NAMES):
        headers = {f"name {number}": number}
        assert bus.dispatch(number, route="bounded.count", headers=headers) == number
        with pytest.raises(NoHandlerFound):
            bus.dispatch(number, route=f"unknown.{number}")

    assert len(_known_names) <= MOST_NAMES
    assert len(bus._by_key) <= 1
    assert len(bus._compiled) <= 1


def test_a_known_name_is_checked_with_each_value():
    """A name that was right once excuses no value, and no name like it."""
    registry = Registry()

    @registry.add
    @command_handler("known.name", atomic=False)
    def show(text: str, given: Annotated[Any, Header("given")]) -> Any:
        return given

    bus = registry.command_bus
    for value in (1, "x", None, True):
        for _ in range(2):
            assert (
                bus.dispatch("", route="known.name", headers={"given": value}) is value
            )
    for wrong in (math.nan, "\ud800", object(), [1]):
        with pytest.raises(InvalidHeader):
            bus.dispatch("", route="known.name", headers={"given": wrong})


def test_names_that_callers_choose_do_not_displace_those_in_use():
    """After a flood of names, a name in use is remembered as before."""
    for number in range(3 * MOST_NAMES):
        Message("x")._add_headers({f"flood {number}": 1})
    Message("x")._add_headers({"in use": 1})

    assert "in use" in _known_names
