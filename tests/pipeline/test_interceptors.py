"""Interceptors: when they run, where they stand, what they are given and may do."""

import functools
from dataclasses import dataclass, field
from io import StringIO
from types import MappingProxyType
from typing import Annotated, Any, Optional, Protocol, runtime_checkable

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection, transaction

from django_cqrs import (
    Command,
    CommandBus,
    Depends,
    EventBus,
    Header,
    Headers,
    InstantRetry,
    Message,
    QueryBus,
    Registry,
    command_bus,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.channels import channels
from django_cqrs.exceptions import (
    InvalidHandler,
    MessageConversionError,
    MessageStopped,
    MissingHeader,
)
from django_cqrs.interception import (
    RETRY,
    STOP,
    TRANSACTION,
    Marker,
    Pointcut,
    Proceed,
    after,
    around,
    before,
    pointcut,
    pre_send,
)
from tests.apps.guarded import handlers as guarded
from tests.apps.guarded.messages import CloseVault
from tests.support import registry_of
from tests.testapp.messages import OpenTicket as ProjectsOpenTicket
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db

EVERY = pointcut.handler("*")


@message("interceptors.pay")
@dataclass(frozen=True)
class Pay:
    amount: int = 1


@dataclass(frozen=True)
class PayAll(Pay):
    pass


@message("interceptors.paid")
@dataclass(frozen=True)
class Paid:
    amount: int = 1


@dataclass(frozen=True)
class Promised(Command[int]):
    amount: int = 1


@dataclass(frozen=True)
class PromisedNothing(Command[None]):
    amount: int = 1


@dataclass(frozen=True)
class Ask:
    number: int = 1


class Refused(Exception):
    """What a handler or an interceptor here raises on purpose."""


@command_handler
def pay(command: Pay) -> Any:
    return command


def noting(trace, decorator, name, *, precedence=0, where=EVERY):
    """Return an interceptor that writes down when it runs."""
    if decorator is around:

        @around(where, precedence=precedence)
        def note(proceed: Proceed):
            trace.append(f"{name} begins")
            result = proceed()
            trace.append(f"{name} ends")
            return result

    else:

        @decorator(where, precedence=precedence)
        def note():
            trace.append(name)

    return note


@pytest.fixture
def channel(settings):
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            alias: {"BACKEND": "django_cqrs.channels.InMemoryChannel"}
            for alias in ("default", "guard")
        }
    }
    return channels["default"]


# B13.1: order ---------------------------------------------------------------------

GOLDEN = """\
before -2001
around -2001 begins
  before -1001
  around -1001 begins
    before -10 in the transaction
    before 0 in the transaction
    around -10 begins in the transaction
    around 0 begins in the transaction
    handler fails in the transaction
  before -1001
  around -1001 begins
    before -10 in the transaction
    before 0 in the transaction
    around -10 begins in the transaction
    around 0 begins in the transaction
    handler in the transaction
    around 0 ends in the transaction
    around -10 ends in the transaction
    after 0 in the transaction
    after -10 in the transaction
  around -1001 ends
  after -1001
around -2001 ends
after -2001
"""


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_the_order_of_kinds_precedences_retry_and_transaction():
    """
    Before, around, the inside, after: so at each of three places, outside the bus's
    retry, outside the transaction, inside it. In a place the lower precedence stands
    further out, so its before runs first and its after last. [B13.1]
    """

    class Trace(list):
        def append(self, text):
            zone = " in the transaction" if connection.in_atomic_block else ""
            super().append(f"{text}{zone}")

    trace = Trace()
    bare = []

    @command_handler
    def handler(command: Pay):
        bare.append(1)
        if len(bare) == 1:
            trace.append("handler fails")
            raise Refused
        trace.append("handler")

    kinds = {"after": after, "around": around, "before": before}
    interceptors = [
        noting(trace, decorator, f"{name} {precedence}", precedence=precedence)
        for name, decorator in kinds.items()
        for precedence in (0, RETRY - 1, -10, TRANSACTION - 1)
    ]
    registry = registry_of(handler, *interceptors)
    bus = CommandBus(instant_retry=InstantRetry(1, on=Refused), registry=registry)

    bus.dispatch(Pay())

    assert trace == [line.strip() for line in GOLDEN.splitlines()]


@pytest.mark.parametrize("decorator", [before, around])
def test_equal_precedences_keep_the_order_of_registration(decorator):
    """Of two with one precedence, the one registered first stands outside. [B13.1]"""
    trace = []
    one, two = noting(trace, decorator, "one"), noting(trace, decorator, "two")

    registry_of(pay, one, two).command_bus.dispatch(Pay())

    assert [each.partition(" ")[0] for each in trace][:2] == ["one", "two"]


def test_equal_afters_mirror_that_order():
    """The after that stands outside runs last. [B13.1]"""
    trace = []
    one, two = noting(trace, after, "one"), noting(trace, after, "two")

    registry_of(pay, one, two).command_bus.dispatch(Pay())

    assert trace == ["two", "one"]


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("precedence", "is_inside"),
    [(TRANSACTION - 1, False), (TRANSACTION, True), (0, True), (5000, True)],
)
def test_around_stands_outside_or_inside_the_transaction(precedence, is_inside):
    """Below TRANSACTION an around sees the outcome of the commit, else it is part. [B13.1]"""
    seen = []

    @command_handler
    def write(command: Pay):
        Note.objects.create(text="written")
        raise Refused

    @around(EVERY, precedence=precedence)
    def forgive(proceed: Proceed):
        seen.append(connection.in_atomic_block)
        try:
            return proceed()
        except Refused:
            seen.append(connection.in_atomic_block)
            return "forgiven"

    result = registry_of(write, forgive).command_bus.dispatch(Pay())

    assert result == "forgiven"
    assert seen == [is_inside, is_inside]
    assert Note.objects.count() == (1 if is_inside else 0)


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_an_after_outside_the_transaction_runs_after_the_commit():
    """Its precedence is below TRANSACTION; on_commit callbacks have run by then. [B13.1]"""
    trace = []

    @command_handler
    def write(command: Pay):
        transaction.on_commit(lambda: trace.append("committed"))

    @after(EVERY, precedence=TRANSACTION - 1)
    def outside():
        trace.append("outside")

    @after(EVERY)
    def inside():
        trace.append("inside")

    registry_of(write, inside, outside).command_bus.dispatch(Pay())

    assert trace == ["inside", "committed", "outside"]


def test_an_after_does_not_follow_a_failure():
    """Where the handler raised, no after runs, and the exception goes its way. [B13.1]"""
    trace = []
    error = Refused()

    @command_handler
    def fail(command: Pay):
        raise error

    bus = registry_of(fail, noting(trace, after, "after")).command_bus
    with pytest.raises(Refused) as caught:
        bus.dispatch(Pay())

    assert caught.value is error
    assert trace == []


def test_a_query_goes_through_them_as_well():
    """The order is the same where there is no transaction. [B13.1]"""
    trace = []

    @query_handler
    def answer(query: Ask):
        trace.append("handler")
        return 42

    registry = registry_of(
        answer,
        noting(trace, after, "after -1500", precedence=-1500),
        noting(trace, around, "around 0"),
        noting(trace, before, "before 0"),
        noting(trace, before, "before -1500", precedence=-1500),
    )

    assert registry.query_bus.ask(Ask()) == 42
    assert trace == [
        "before -1500",
        "before 0",
        "around 0 begins",
        "handler",
        "around 0 ends",
        "after -1500",
    ]


def test_each_handler_of_an_event_has_its_own():
    """Interceptors stand around handlers, not around the publishing. [B13.1]"""
    trace = []

    @event_handler(priority=1)
    def first(event: Paid):
        trace.append("first")

    @event_handler
    def second(event: Paid):
        trace.append("second")

    everywhere = noting(trace, before, "before")
    at_second = noting(trace, around, "around", where=pointcut.handler("*second"))
    bus = registry_of(first, second, everywhere, at_second).event_bus
    bus.publish(Paid())

    assert trace == [
        "before",
        "first",
        "before",
        "around begins",
        "second",
        "around ends",
    ]


def test_what_an_around_returns_is_the_result():
    """It may change the result, and call the handler twice or not at all. [B13.1]"""
    calls = []

    @command_handler
    def handle(command: Pay):
        calls.append(command.amount)
        return command.amount

    @around(pointcut.message(Pay))
    def as_often_as_paid(proceed: Proceed, command: Pay):
        return [proceed() for _ in range(command.amount)]

    bus = registry_of(handle, as_often_as_paid).command_bus

    assert bus.dispatch(Pay(2)) == [2, 2]
    assert bus.dispatch(Pay(0)) == []
    assert calls == [2, 2]


def test_what_an_after_returns_takes_the_results_place():
    """None leaves the result as it is; the next one out gets the new one. [B13.1]"""

    @command_handler
    def handle(command: Pay):
        return 1

    @after(EVERY)
    def look(result):
        assert result == 11

    @after(EVERY, precedence=1)
    def add(result: int, command: Pay):
        return result + 10 * command.amount

    @after(EVERY, precedence=-1)
    def tell(result: Any):
        return f"result {result}"

    assert registry_of(handle, look, add, tell).command_bus.dispatch(Pay()) == (
        "result 11"
    )


# B13.2: what a before may do --------------------------------------------------------


def test_a_before_replaces_the_payload():
    """What it returns goes on in the payload's place, also to the next interceptor. [B13.2]"""
    seen = []

    @before(EVERY)
    def double(command: Pay):
        return Pay(command.amount * 2)

    @before(EVERY, precedence=1)
    def look(command: Pay):
        seen.append(command)

    @after(EVERY)
    def look_again(result: Any, message: Message):
        seen.append(message.payload)

    bus = registry_of(pay, double, look, look_again).command_bus

    assert bus.dispatch(Pay(4)) == Pay(8)
    assert seen == [Pay(8), Pay(8)]


def test_a_dictionary_is_made_into_what_the_handler_takes():
    """A replaced payload is converted as any other is. [B13.2]"""

    @before(EVERY)
    def replace():
        return {"amount": "7"}

    assert registry_of(pay, replace).command_bus.dispatch(Pay()) == Pay(7)


def test_a_payload_that_the_handler_does_not_take_is_refused():
    """A return value by mistake, such as a truth, never reaches the handler. [B13.2]"""
    called = []

    @command_handler
    def handle(command: Pay):
        called.append(command)

    @before(EVERY)
    def is_allowed():
        return True

    bus = registry_of(handle, is_allowed).command_bus
    with pytest.raises(MessageConversionError) as caught:
        bus.dispatch(Pay())

    assert str(caught.value).startswith("Cannot convert the payload to Pay: ")
    assert caught.value.__notes__ == [
        (
            "The payload was returned by "
            f"{__name__}.test_a_payload_that_the_handler_does_not_take_is_refused.<locals>.is_allowed."
        )
    ]
    assert called == []


@pytest.mark.parametrize("payload", [0, "", False])
def test_an_empty_value_is_a_payload_as_well(payload):
    """Only None means to go on with what there is. [B13.2]"""

    @command_handler("keyed")
    def handle(value: object):
        return value

    @before(EVERY)
    def replace():
        return payload

    bus = registry_of(handle, replace).command_bus

    assert bus.dispatch(5, route="keyed") == payload


def test_a_before_adds_headers():
    """They are seen by the handler, by all that it sends, and by nobody else. [B13.2]"""
    seen = []

    @command_handler
    def handle(
        command: Pay, events: EventBus, tenant: Annotated[int, Header("tenant")]
    ):
        seen.append(tenant)
        events.publish(Paid())

    @event_handler
    def on_paid(event: Paid, headers: Headers):
        seen.append(headers["tenant"])

    @command_handler("look")
    def look(headers: Headers):
        seen.append("tenant" in headers)

    @before(pointcut.message(Pay))
    def with_tenant(message: Message):
        return message.replace(headers={"tenant": "3"})

    bus = registry_of(handle, on_paid, look, with_tenant).command_bus
    bus.dispatch(Pay())
    bus.dispatch(route="look")

    assert seen == [3, "3", False]


def test_a_replaced_message_keeps_its_identity():
    """Its ids and its time are those of the message that was sent. [B13.2]"""
    seen = []

    @command_handler
    def handle(command: Pay, message: Message, events: EventBus):
        seen.append(message)
        events.publish(Paid())

    @event_handler
    def on_paid(event: Paid, message: Message):
        seen.append(message)

    @before(pointcut.message(Pay))
    def replace(message: Message):
        seen.append(message)
        return message.replace(payload=Pay(9), headers={"a": 1})

    @before(EVERY, precedence=1)
    def again(message: Message):
        return message

    registry_of(handle, on_paid, replace, again).command_bus.dispatch(Pay())
    sent, handled, event = seen

    assert handled.payload == Pay(9)
    assert sent.payload == Pay()
    assert handled.message_id == sent.message_id
    assert handled.correlation_id == sent.correlation_id
    assert handled.timestamp == sent.timestamp
    assert event.causation_id == sent.message_id
    assert event.headers["a"] == 1


def test_a_message_made_anew_counts_as_its_payload():
    """Its identity would break the chain: headers are added with replace(). [B13.2]"""
    seen = []

    @command_handler
    def handle(command: Pay, message: Message):
        seen.append(message.message_id)
        return command, message.headers["a"]

    @before(EVERY)
    def anew(message: Message):
        seen.append(message.message_id)
        return Message(Pay(3))

    bus = registry_of(handle, anew).command_bus

    assert bus.dispatch(Pay(), headers={"a": 1}) == (Pay(3), 1)
    assert len(set(seen)) == 1


def test_stop_ends_the_flow():
    """The handler and what stands inside are not run, what stands outside is. [B13.2]"""
    trace = []

    @command_handler
    def handle(command: Pay):
        trace.append("handler")

    @before(EVERY)
    def stop():
        trace.append("stop")
        return STOP

    @after(EVERY, precedence=TRANSACTION - 1)
    def outside(result: Any):
        trace.append(f"outside {result}")

    inside = [
        noting(trace, decorator, "inside", precedence=1)
        for decorator in (before, around, after)
    ]
    bus = registry_of(handle, stop, outside, *inside).command_bus

    assert bus.dispatch(Pay()) is None
    assert trace == ["stop", "outside None"]


def test_stop_is_for_one_handler_of_an_event():
    """The event's other handlers are called. [B13.2]"""
    called = []

    @event_handler(priority=1)
    def first(event: Paid):
        called.append("first")

    @event_handler
    def second(event: Paid):
        called.append("second")

    @before(pointcut.handler("*first"))
    def stop():
        return STOP

    registry_of(first, second, stop).event_bus.publish(Paid())

    assert called == ["second"]


@pytest.mark.parametrize("decorator", [before, around])
def test_stop_raises_where_a_result_was_promised(decorator):
    """A sender that was promised a result gets MessageStopped, and a rollback. [B13.2]"""

    @command_handler
    def handle(command: Promised) -> int:
        return 1

    @before(EVERY, precedence=-1)
    def write():
        Note.objects.create(text="written")

    if decorator is before:

        @before(EVERY)
        def stop():
            return STOP

    else:

        @around(EVERY)
        def stop(proceed: Proceed):
            return STOP

    bus = registry_of(handle, write, stop).command_bus
    with pytest.raises(MessageStopped) as caught:
        bus.dispatch(Promised())

    assert str(caught.value) == (
        f"{__name__}.test_stop_raises_where_a_result_was_promised.<locals>.stop "
        "stopped Promised, whose sender was promised a result. Raise an exception "
        "there, or promise no result: Command[None]."
    )
    assert Note.objects.count() == 0


@pytest.mark.parametrize("payload", [PromisedNothing(), Pay()])
def test_stop_is_silent_where_no_result_was_promised(payload):
    """Command[None] and a plain class promise nothing. [B13.2]"""

    @command_handler
    def handle(command: Pay | PromisedNothing) -> None:
        raise Refused

    @around(EVERY)
    def stop(proceed: Proceed):
        return STOP

    assert registry_of(handle, stop).command_bus.dispatch(payload) is None


@pytest.mark.parametrize("decorator", [before, around, after])
def test_what_an_interceptor_raises_reaches_the_caller(decorator):
    """The very exception, and nothing stays written. [B13.2]"""
    error = Refused()

    @command_handler
    def write(command: Pay):
        Note.objects.create(text="handler")

    @before(EVERY, precedence=-1)
    def write_too():
        Note.objects.create(text="before")

    if decorator is around:

        @around(EVERY)
        def fail(proceed: Proceed):
            raise error

    else:

        @decorator(EVERY)
        def fail():
            raise error

    bus = registry_of(write, write_too, fail).command_bus
    with pytest.raises(Refused) as caught:
        bus.dispatch(Pay())

    assert caught.value is error
    assert Note.objects.count() == 0


def test_what_an_interceptor_sends_is_caused_by_the_message():
    """An audit command of a before belongs to the message that it looks at. [B13.2]"""
    seen = []

    @command_handler("audit")
    def audit(text: str, message: Message):
        seen.append((text, message))

    @before(pointcut.message(Pay))
    def send(message: Message, commands: CommandBus, events: EventBus):
        seen.append(("pay", message))
        commands.dispatch("paid", route="audit")

    registry_of(pay, audit, send).command_bus.dispatch(Pay())
    (_, sent), (text, audited) = seen

    assert text == "paid"
    assert audited.causation_id == sent.message_id


# B13.3: before a channel --------------------------------------------------------------


@command_handler(channel=True)
def pay_later(command: Pay) -> None:
    Note.objects.create(text="handled", number=command.amount)


def test_pre_send_runs_where_a_message_enters_a_channel(channel):
    """Once at the send, not where it is handled, and not without a channel. [B13.3]"""
    trace = []

    @command_handler("now")
    def now(value: int):
        trace.append("now")

    registry = registry_of(pay_later, now, noting(trace, pre_send, "pre_send"))
    registry.command_bus.dispatch(1, route="now")
    assert trace == ["now"]

    registry.command_bus.dispatch(Pay())
    assert trace == ["now", "pre_send"]

    assert channel.run() == 1
    assert trace == ["now", "pre_send"]
    assert Note.objects.count() == 1


def test_pre_send_replaces_payload_and_headers(channel):
    """What it returns is what is stored, as a before's is what is handled. [B13.3]"""
    seen = []

    @command_handler(channel=True)
    def handle(command: Pay, tenant: Annotated[str, Header("tenant")]) -> None:
        seen.append((command, tenant))

    @pre_send(EVERY)
    def replace(message: Message):
        return message.replace(payload=Pay(5), headers={"tenant": "a"})

    @pre_send(EVERY, precedence=1)
    def replace_again(command: Pay):
        return Pay(command.amount + 1)

    registry_of(handle, replace, replace_again).command_bus.dispatch(Pay())
    channel.run()

    assert seen == [(Pay(6), "a")]


@pytest.mark.parametrize("outcome", ["stops", "raises"])
def test_a_refusing_pre_send_sends_nothing(channel, outcome):
    """STOP drops the message alone; an exception fails the sender as well. [B13.3]"""
    error = Refused()

    @command_handler("shop")
    def shop(commands: CommandBus):
        Note.objects.create(text="sender")
        commands.dispatch(Pay())

    @pre_send(EVERY)
    def refuse():
        if outcome == "raises":
            raise error
        return STOP

    bus = registry_of(pay_later, shop, refuse).command_bus
    if outcome == "raises":
        with pytest.raises(Refused) as caught:
            bus.dispatch(route="shop")
        assert caught.value is error
    else:
        assert bus.dispatch(route="shop") is None

    assert channel.waiting() == []
    assert Note.objects.count() == (0 if outcome == "raises" else 1)


def test_pre_send_runs_for_each_handler_of_an_event(channel):
    """One that refuses its message takes nothing from the others. [B13.3]"""
    called = []

    @event_handler(channel=True)
    def one(event: Paid):
        called.append("one")

    @event_handler(channel=True)
    def two(event: Paid):
        called.append("two")

    @event_handler
    def at_once(event: Paid):
        called.append("at once")

    @pre_send(EVERY)
    def look(message: Message):
        called.append(message.message_id)

    @pre_send(pointcut.handler("*one"), precedence=1)
    def refuse():
        return STOP

    registry_of(one, two, at_once, look, refuse).event_bus.publish(Paid())
    first, second, *rest = called
    channel.run()

    assert first == second
    assert rest == ["at once"]
    assert called[3:] == ["two"]


def test_copies_of_an_event_have_one_time(channel):
    """Interceptors at the send do not make them differ. [B13.3]"""

    @event_handler(channel=True)
    def one(event: Paid): ...

    @event_handler(channel=True)
    def two(event: Paid): ...

    @pre_send(EVERY)
    def look(): ...

    registry_of(one, two, look).event_bus.publish(Paid())
    first, second = channel.waiting()

    assert first.timestamp == second.timestamp
    assert first.message_id == second.message_id


def test_an_interceptor_aimed_at_a_bus_runs_at_the_send(channel):
    """Only the sender has a bus; every other interceptor runs at the handling. [B13.3]"""
    trace = []
    registry = registry_of(pay_later)
    at_bus = pointcut.bus(registry.command_bus)
    for target in (
        noting(trace, pre_send, "pre_send"),
        noting(trace, around, "bus around", where=at_bus),
        noting(trace, before, "bus before", where=at_bus),
        noting(trace, after, "bus after", where=at_bus),
        noting(trace, before, "before"),
        noting(trace, around, "around", precedence=TRANSACTION - 1),
        noting(trace, after, "no bus", where=EVERY & ~at_bus),
    ):
        registry.add(target)

    registry.command_bus.dispatch(Pay())
    sent = list(trace)
    channel.run()

    assert sent == [
        "bus before",
        "bus around begins",
        "pre_send",
        "bus around ends",
        "bus after",
    ]
    assert trace[len(sent) :] == ["around begins", "before", "around ends"]


def test_a_before_at_the_bus_may_stop_a_send(channel):
    """As a pre_send does. [B13.3]"""
    registry = registry_of(pay_later)

    @before(pointcut.bus(CommandBus))
    def stop(command: Pay):
        return STOP if command.amount > 1 else None

    registry.add(stop)
    registry.command_bus.dispatch(Pay(2))
    registry.command_bus.dispatch(Pay(1))

    assert [envelope.payload for envelope in channel.waiting()] == [b'{"amount":1}']


# B13.5: pointcuts ----------------------------------------------------------------------


@dataclass(frozen=True)
class RequiresPermission(Marker):
    name: str = ""


class Audited(Marker):
    """A marker that says nothing but itself."""


class Other(Marker):
    """A marker that nothing here carries but what says so."""


@RequiresPermission("a message")
@dataclass(frozen=True, slots=True)
class Secret:
    pass


class MoreSecret(Secret):
    pass


@service
@Audited()
class Billing:
    @command_handler("billing.bill")
    def bill(self) -> str:
        return "bill"

    @command_handler("billing.refund")
    @RequiresPermission("a method")
    def refund(self) -> str:
        return "refund"


@command_handler("tickets.close", name="tickets.handlers.close")
def close() -> str:
    return "close"


@command_handler("tickets.secret", name="tickets.handlers.tell")
def tell(command: Secret) -> str:
    return "tell"


@query_handler("tickets.count", name="tickets.handlers.count")
def count() -> str:
    return "count"


class AuditedBus(CommandBus):
    pass


ROUTES = {
    "bill": "billing.bill",
    "refund": "billing.refund",
    "close": "tickets.close",
    "tell": "tickets.secret",
    "count": "tickets.count",
}


def reached(where, payloads=None):
    """Return which handlers an interceptor at a pointcut stands around."""
    found = []

    @before(where)
    def look(message: Message):
        found.append(message.headers["handler"])

    registry = registry_of(Billing, close, tell, count, look)
    for name, route in ROUTES.items():
        payload = Secret() if name == "tell" else None
        send = (
            registry.query_bus.ask if name == "count" else registry.command_bus.dispatch
        )
        assert send(payload, route=route, headers={"handler": name}) == name
    return found


BILLING = pointcut.handler("*.Billing.*")
MARKED = pointcut.marked(RequiresPermission)


@pytest.mark.parametrize(
    ("where", "handlers", "text"),
    [
        (
            pointcut.handler("*"),
            ["bill", "refund", "close", "tell", "count"],
            "handler('*')",
        ),
        (
            pointcut.handler("tickets.handlers.close"),
            ["close"],
            "handler('tickets.handlers.close')",
        ),
        (
            pointcut.handler("tickets.*"),
            ["close", "tell", "count"],
            "handler('tickets.*')",
        ),
        (
            pointcut.handler("tests.pipeline.test_interceptors.c*"),
            ["close", "count"],
            "handler('tests.pipeline.test_interceptors.c*')",
        ),
        (pointcut.handler("TICKETS.*"), [], "handler('TICKETS.*')"),
        (pointcut.message(Secret), ["tell"], "message(Secret)"),
        (pointcut.message(MoreSecret), [], "message(MoreSecret)"),
        (
            pointcut.message(object),
            ["bill", "refund", "close", "tell", "count"],
            "message(object)",
        ),
        (pointcut.marked(Audited), ["bill", "refund"], "marked(Audited)"),
        (MARKED, ["refund", "tell"], "marked(RequiresPermission)"),
        (
            pointcut.marked(Marker),
            ["bill", "refund", "tell"],
            "marked(Marker)",
        ),
        (pointcut.marked(Other), [], "marked(Other)"),
        (pointcut.bus(QueryBus), ["count"], "bus(QueryBus)"),
        (
            pointcut.bus(CommandBus),
            ["bill", "refund", "close", "tell"],
            "bus(CommandBus)",
        ),
        (pointcut.bus(AuditedBus), [], "bus(AuditedBus)"),
        (pointcut.bus(command_bus), [], "bus(<CommandBus>)"),
        (
            BILLING & MARKED,
            ["refund"],
            "(handler('*.Billing.*') & marked(RequiresPermission))",
        ),
        (
            BILLING | MARKED,
            ["bill", "refund", "tell"],
            "(handler('*.Billing.*') | marked(RequiresPermission))",
        ),
        (~BILLING, ["close", "tell", "count"], "~handler('*.Billing.*')"),
        (~~BILLING, ["bill", "refund"], "~~handler('*.Billing.*')"),
        (
            BILLING & ~MARKED,
            ["bill"],
            "(handler('*.Billing.*') & ~marked(RequiresPermission))",
        ),
        (
            ~(BILLING | MARKED),
            ["close", "count"],
            "~(handler('*.Billing.*') | marked(RequiresPermission))",
        ),
        (
            pointcut.handler("tickets.*") & ~pointcut.bus(QueryBus),
            ["close", "tell"],
            "(handler('tickets.*') & ~bus(QueryBus))",
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, Pointcut) else "",
)
def test_a_pointcut_says_which_handlers(where, handlers, text):
    """By handler, message class, marker and bus, joined by & | ~. [B13.5]"""
    assert reached(where) == handlers
    assert repr(where) == text


@command_handler("now")
def now(value: int) -> None: ...


def test_a_channel_is_meant_where_its_messages_enter_and_where_they_come_out(channel):
    """pre_send at the sending, the others at the handling, and never at once. [B13.5]"""
    trace = []
    registry = registry_of(now, pay_later)
    for target in (
        noting(trace, pre_send, "enters", where=pointcut.channel("def*")),
        noting(trace, before, "comes out", where=pointcut.channel("default")),
        noting(trace, before, "any", where=pointcut.channel()),
        noting(trace, before, "other", where=pointcut.channel("mail")),
        noting(trace, before, "at once", where=~pointcut.channel()),
    ):
        registry.add(target)

    registry.command_bus.dispatch(Pay())
    assert trace == ["enters"]
    channel.run()
    assert trace == ["enters", "comes out", "any"]
    registry.command_bus.dispatch(1, route="now")
    assert trace[3:] == ["at once"]


def test_consumed_messages_are_those_that_come_out_of_a_channel(channel):
    """Not where they are sent, and not those of handlers called at once. [B13.5]"""
    trace = []
    registry = registry_of(now, pay_later)
    for target in (
        noting(trace, pre_send, "sent", where=~pointcut.consumed()),
        noting(trace, pre_send, "never", where=pointcut.consumed()),
        noting(trace, around, "consumed", where=pointcut.consumed()),
        noting(trace, before, "at once", where=~pointcut.consumed()),
    ):
        registry.add(target)

    registry.command_bus.dispatch(Pay())
    registry.command_bus.dispatch(1, route="now")
    assert trace == ["sent", "at once"]
    channel.run()
    assert trace[2:] == ["consumed begins", "consumed ends"]


def test_the_interceptors_of_an_endpoint_include_those_of_its_channel(channel):
    """What cqrs_routes lists is what may run. [B13.5]"""
    trace = []
    at_channel = noting(trace, before, "a", where=pointcut.consumed())
    registry = registry_of(now, pay_later, at_channel)
    listed = {
        endpoint.keys: [
            each.function for each in registry.interceptors_around(endpoint)
        ]
        for endpoint in registry.routes.endpoints
    }

    assert listed == {("now",): [], (): [at_channel]}


@pytest.mark.parametrize("given", ["", 7, None])
def test_a_channel_is_meant_by_its_alias(given):
    """Anything else is refused where it is written. [B13.5]"""
    with pytest.raises(TypeError, match=r"pointcut\.channel\(\) takes an alias"):
        pointcut.channel(given)


def test_a_bus_may_be_meant_alone_or_by_its_class():
    """An instance is that one bus, a class every bus of it and of its subclasses. [B13.5]"""
    registry = registry_of(pay)
    audited = AuditedBus(registry=registry)
    trace = []
    for target in (
        noting(trace, before, "this", where=pointcut.bus(audited)),
        noting(trace, before, "class", where=pointcut.bus(AuditedBus)),
        noting(trace, before, "base", where=pointcut.bus(CommandBus)),
    ):
        registry.add(target)

    registry.command_bus.dispatch(Pay())
    assert trace == ["base"]

    AuditedBus(registry=registry).dispatch(Pay())
    assert trace == ["base", "class", "base"]

    audited.dispatch(Pay())
    assert trace == ["base", "class", "base", "this", "class", "base"]


def test_the_message_is_what_is_sent_not_what_the_handler_names():
    """A handler of a base class has the interceptors of the object's own class. [B13.5]"""
    trace = []
    at_all = noting(trace, before, "all", where=pointcut.message(PayAll))
    bus = registry_of(pay, at_all).command_bus

    bus.dispatch(Pay())
    bus.dispatch(PayAll())
    bus.dispatch(Pay())

    assert trace == ["all"]


def test_a_message_may_be_meant_by_a_protocol():
    """What is asked is issubclass(). [B13.5]"""

    @runtime_checkable
    class HasTotal(Protocol):
        def total(self) -> int: ...

    @dataclass
    class Order:
        def total(self) -> int:
            return 1

    @command_handler
    def order(command: Order): ...

    trace = []
    where = pointcut.message(HasTotal)
    bus = registry_of(pay, order, noting(trace, before, "total", where=where))
    bus.command_bus.dispatch(Pay())
    bus.command_bus.dispatch(Order())

    assert trace == ["total"]


class WithData(Protocol):
    number: int


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: pointcut.message("Pay"),
            "pointcut.message() takes a class that issubclass() accepts, not 'Pay'.",
        ),
        (
            lambda: pointcut.message(WithData),
            (
                "pointcut.message() takes a class that issubclass() accepts, not "
                f"{WithData!r}."
            ),
        ),
        (
            lambda: pointcut.marked(Pay),
            f"pointcut.marked() takes a class of markers, not {Pay!r}.",
        ),
        (
            lambda: pointcut.marked(RequiresPermission("x")),
            "pointcut.marked() takes a class of markers, not RequiresPermission(name='x').",
        ),
        (
            lambda: pointcut.handler(pay),
            f"pointcut.handler() takes a name or a pattern, not {pay!r}.",
        ),
        (
            lambda: pointcut.handler(""),
            "pointcut.handler() takes a name or a pattern, not ''.",
        ),
        (
            lambda: pointcut.bus("command_bus"),
            "pointcut.bus() takes a bus or a class of buses, not 'command_bus'.",
        ),
        (
            lambda: pointcut.bus(Registry),
            f"pointcut.bus() takes a bus or a class of buses, not {Registry!r}.",
        ),
        (
            lambda: EVERY & Pay,
            f"handler('*') & {Pay!r}: a pointcut can only be combined with a pointcut.",
        ),
        (
            lambda: EVERY | "billing.*",
            (
                "handler('*') | 'billing.*': a pointcut can only be combined with a "
                "pointcut."
            ),
        ),
        (
            lambda: before(pay),
            "@before takes a pointcut: @before(pointcut.handler('billing.*')).",
        ),
        (
            lambda: around(EVERY)(Pay),
            f"@around decorates a function, not {Pay!r}.",
        ),
        (
            lambda: after(EVERY)(before(EVERY)(lambda: None)),
            "is already an interceptor: it can only have one kind.",
        ),
    ],
    ids=lambda value: "" if callable(value) else value.partition(", not <")[0],
)
def test_a_pointcut_that_could_match_nothing_is_refused_at_once(make, text):
    """Where it is written, since a guard that stands nowhere guards nothing. [B13.5]"""
    with pytest.raises(TypeError) as caught:
        make()

    assert str(caught.value).endswith(text)


# B13.5: markers --------------------------------------------------------------------------


def marks_of(*handlers, payload=None, route="marked", marker=RequiresPermission):
    """Return the marker that an interceptor of a handler is given."""
    found = []

    def look(mark):
        found.append(mark)

    look.__annotations__ = {"mark": Optional[marker]}
    registry = registry_of(*handlers, before(EVERY)(look))
    registry.command_bus.dispatch(payload, route=route)
    return found[0]


def by_kind_of_function():
    mark = RequiresPermission("here")
    declare = command_handler("marked")

    @mark
    @declare
    def above(): ...

    @declare
    @mark
    def below(): ...

    def plain(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args)

        return wrapper

    @plain
    @mark
    @declare
    def wrapped(): ...

    @mark
    @plain
    @declare
    def wrapping(): ...

    @service
    class Methods:
        @mark
        @declare
        def method(self): ...

    @service
    class ClassMethods:
        @mark
        @declare
        @classmethod
        def method(cls): ...

    @service
    class InnerClassMethods:
        @classmethod
        @declare
        @mark
        def method(cls): ...

    @service
    class StaticMethods:
        @declare
        @mark
        @staticmethod
        def method(): ...

    @service
    class Inherited(Methods):
        pass

    @mark
    @service
    class OnClass:
        @declare
        def method(self): ...

    @service
    class FromBase(OnClass):
        @declare
        def method(self): ...

    @Other()
    @service
    class BesideBase(OnClass):
        @declare
        def method(self): ...

    @service
    @dataclass(slots=True)
    @mark
    class Slotted:
        @declare
        def method(self): ...

    return {
        name: handler
        for name, handler in locals().items()
        if name not in {"mark", "declare", "plain"}
    }


@pytest.mark.parametrize("name", by_kind_of_function())
def test_a_marker_is_found_wherever_it_stands(name):
    """Above or below the other decorators, on any kind of method, on its class. [B13.5]"""
    handler = by_kind_of_function()[name]

    assert marks_of(handler) == RequiresPermission("here")


def test_a_marker_that_is_not_there_is_none():
    """Where the annotation allows that. [B13.5]"""

    @command_handler("marked")
    def plain(): ...

    assert marks_of(plain) is None


def test_the_nearest_marker_is_given():
    """The handler's before its class's before the message's. [B13.5]"""

    @command_handler("message")
    def on_message(command: Secret): ...

    @RequiresPermission("class")
    @service
    class Service:
        @RequiresPermission("handler")
        @command_handler("handler")
        def handler(self, command: Secret): ...

        @command_handler("class")
        def class_(self, command: Secret): ...

    targets = (on_message, Service)

    def named(route, payload=None):
        return marks_of(*targets, payload=payload or Secret(), route=route).name

    assert named("handler") == "handler"
    assert named("class") == "class"
    assert named("message") == "a message"
    assert named("message", MoreSecret()) == "a message"


def test_a_marker_parameter_gets_the_marker_itself():
    """In every kind of interceptor, beside anything else they take. [B13.5]"""
    seen = []

    @RequiresPermission("tickets.close")
    @command_handler
    def handle(command: Pay):
        return 1

    @before(MARKED)
    def first(required: RequiresPermission, command: Pay):
        seen.append((required.name, command))

    @around(MARKED)
    def second(proceed: Proceed, required: RequiresPermission | None, /):
        seen.append(required.name)
        return proceed()

    @after(MARKED)
    def third(*, result, required: Annotated[RequiresPermission, "doc"]):
        seen.append((required.name, result))

    registry_of(handle, first, second, third).command_bus.dispatch(Pay())

    assert seen == [
        ("tickets.close", Pay()),
        "tickets.close",
        ("tickets.close", 1),
    ]


def test_a_marker_may_have_a_default():
    """It stands in where nothing is marked. [B13.5]"""
    seen = []

    @before(EVERY)
    def look(required: RequiresPermission = RequiresPermission("basic")):
        seen.append(required.name)

    registry_of(pay, look).command_bus.dispatch(Pay())

    assert seen == ["basic"]


def test_a_marker_decorates_and_changes_nothing():
    """What is marked stays what it was. [B13.5]"""

    def function(): ...

    assert Audited()(function) is function
    assert Audited()(Pay) is Pay
    del Pay.__cqrs_markers__


# B13.6: how often ---------------------------------------------------------------------


def test_each_runs_once_per_attempt():
    """Those outside the retry once for all attempts. [B13.6]"""
    trace = []

    @command_handler
    def fail(command: Pay):
        raise Refused

    registry = registry_of(
        fail,
        noting(trace, before, "outside", precedence=RETRY - 1),
        noting(trace, before, "attempt", precedence=RETRY),
        noting(trace, before, "transaction"),
    )
    bus = CommandBus(instant_retry=InstantRetry(2, on=Refused), registry=registry)
    with pytest.raises(Refused):
        bus.dispatch(Pay())

    assert trace == ["outside", *["attempt", "transaction"] * 3]


def test_one_that_matches_in_several_ways_runs_once():
    """So does one that was registered twice, and a handler with two routes. [B13.6]"""
    trace = []
    where = EVERY | pointcut.message(Pay) | pointcut.bus(CommandBus)
    note = noting(trace, before, "once", where=where)

    @command_handler("again")
    @command_handler
    def handle(command: Pay): ...

    registry = registry_of(handle, note, note)
    registry.command_bus.dispatch(Pay())
    assert trace == ["once"]

    registry.command_bus.dispatch(Pay(), route="again")
    assert trace == ["once", "once"]


def test_a_nested_command_has_its_own():
    """An interceptor of both runs for both, one inside the other. [B13.6]"""
    trace = []

    @command_handler("outer")
    def outer(commands: CommandBus):
        commands.dispatch(Pay())

    note = noting(trace, around, "note")
    registry_of(pay, outer, note).command_bus.dispatch(route="outer")

    assert trace == ["note begins", "note begins", "note ends", "note ends"]


# What they are given ------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.hour = 12


def test_parameters_are_filled_as_a_handlers_are():
    """Payload, headers, message, buses, services, wherever they stand."""
    seen = {}

    @around(EVERY)
    def look(
        message: Message,
        headers: Headers,
        proceed: Proceed,
        command: Pay,
        clock: Clock,
        *,
        commands: CommandBus,
        user: Annotated[int, Header("user_id")],
        target: object | None,
        host: Annotated[str, Header("host")] = "local",
    ):
        seen.update(locals())
        return proceed()

    registry = registry_of(pay, look)
    registry.command_bus.dispatch(Pay(), headers={"user_id": "7"})

    assert seen["message"].payload is seen["command"] == Pay()
    assert seen["headers"]["user_id"] == "7"
    assert seen["clock"].hour == 12
    assert seen["commands"] is registry.command_bus
    assert seen["user"] == 7
    assert seen["host"] == "local"
    assert seen["target"] is None


def test_a_service_that_stands_first_would_be_the_payload():
    """As in a handler; here the mistake is a check, and the route raises."""

    @before(EVERY)
    def look(clock: Clock): ...

    registry = registry_of(pay, look)
    with pytest.raises(InvalidHandler) as caught:
        registry.command_bus.dispatch(Pay())

    (problem,) = registry.problems
    assert str(caught.value) == str(problem)
    assert problem.message == (
        "The interceptor "
        f"{__name__}.test_a_service_that_stands_first_would_be_the_payload.<locals>.look "
        f"cannot stand at {__name__}.pay: it takes Clock, but the message there is "
        "Pay."
    )
    assert problem.hint == (
        "Narrow its pointcut with pointcut.message(), or annotate its payload with "
        "object."
    )


def test_a_header_that_is_missing_names_the_interceptor():
    """As it would name a handler."""

    @before(EVERY)
    def look(user_id: Annotated[int, Header("user_id")]): ...

    with pytest.raises(MissingHeader) as caught:
        registry_of(pay, look).command_bus.dispatch(Pay())

    assert str(caught.value) == (
        f"{__name__}.test_a_header_that_is_missing_names_the_interceptor.<locals>.look "
        "requires the header 'user_id', but the message does not have it. Give it "
        "with headers={'user_id': ...}, or give the parameter 'user_id' a default."
    )


def test_a_dict_parameter_gets_the_json_form():
    """So an audit can write down any message."""
    seen = []

    @before(EVERY)
    def audit(payload: dict[str, Any], message: Message):
        seen.append((payload, message.payload))

    @after(EVERY)
    def audit_after(result: Any, payload: dict):
        seen.append((payload, result))

    @after(EVERY)
    def audit_default(payload: dict = MappingProxyType({"amount": 0})):
        seen.append(payload)

    registry = registry_of(pay, audit, audit_after, audit_default)
    registry.command_bus.dispatch(Pay())

    assert seen == [({"amount": 1}, Pay()), {"amount": 1}, ({"amount": 1}, Pay())]


def test_a_payload_of_a_base_class_is_taken():
    """An interceptor may be annotated with a base, a union, Any, or nothing."""
    seen = []

    @before(EVERY)
    def base(command: Pay):
        seen.append(command)

    @before(EVERY)
    def union(command: Paid | Pay | None):
        seen.append(command)

    @before(EVERY)
    def anything(command):
        seen.append(command)

    payload = PayAll()
    registry_of(pay, base, union, anything).command_bus.dispatch(payload)

    assert [each is payload for each in seen] == [True, True, True]


class Target:
    """A service, made anew for each message."""

    @command_handler
    def method(self, command: Pay):
        return self

    @command_handler("class")
    @classmethod
    def class_method(cls):
        return None


service(Target)


@around(EVERY, precedence=TRANSACTION - 1)
def with_target(proceed: Proceed, target: object | None):
    return target, proceed()


@pytest.mark.parametrize("resolver", [None, lambda cls: cls()])
def test_an_around_gets_the_object_whose_method_the_handler_is(settings, resolver):
    """It is the one that the handler is called on; None for a function or class."""
    settings.DJANGO_CQRS = {"SERVICE_RESOLVER": resolver}

    @command_handler("function")
    def function():
        return None

    bus = registry_of(Target, function, with_target).command_bus
    target, handled_by = bus.dispatch(Pay())

    assert isinstance(target, Target)
    assert target is handled_by
    assert bus.dispatch(route="class") == (None, None)
    assert bus.dispatch(route="function") == (None, None)


def test_no_target_stands_outside_the_attempts_or_at_a_send(channel):
    """There is no object there yet."""
    seen = []

    @service
    class Later:
        @event_handler(channel=True)
        def handle(self, event: Paid): ...

    @around(EVERY, precedence=RETRY - 1)
    def outside(proceed: Proceed, target: object | None):
        seen.append(target)
        return proceed()

    @around(pointcut.bus(EventBus))
    def at_send(proceed: Proceed, target: object | None):
        seen.append(target)
        return proceed()

    registry = registry_of(Target, Later, outside, at_send)
    registry.command_bus.dispatch(Pay())
    registry.event_bus.publish(Paid())

    assert seen == [None, None]


# Depends ------------------------------------------------------------------------------


@dataclass
class Gateways:
    made: list = field(default_factory=list)
    log: list = field(default_factory=list)


@pytest.fixture
def gateways():
    return Gateways()


@pytest.fixture
def opened(gateways):
    """A dependency that is opened and closed, annotated for a parameter."""

    def open_gateway():
        gateway = len(gateways.made)
        gateways.made.append(gateway)
        gateways.log.append(f"open {gateway}")
        yield gateway
        gateways.log.append(f"close {gateway}")

    return Annotated[int, Depends(open_gateway)]


def test_depends_is_shared_with_the_handler(gateways, opened):
    """It is made once per message, for all interceptors and the handler."""

    def interceptor(decorator, precedence):
        def look(gateway):
            gateways.log.append(f"{decorator.__name__} {gateway}")

        look.__annotations__ = {"gateway": opened}
        return decorator(EVERY, precedence=precedence)(look)

    def handle(command, gateway):
        gateways.log.append(f"handle {gateway}")

    handle.__annotations__ = {"command": Pay, "gateway": opened}
    registry = registry_of(
        command_handler(handle),
        interceptor(before, RETRY - 1),
        interceptor(before, TRANSACTION - 1),
        interceptor(before, 0),
        interceptor(after, RETRY - 1),
    )

    registry.command_bus.dispatch(Pay())

    assert gateways.log == [
        "open 0",
        *["before 0"] * 3,
        "handle 0",
        "after 0",
        "close 0",
    ]


def test_depends_is_made_anew_for_each_attempt(gateways, opened):
    """What stands outside the retry has one of its own, open to the very end."""
    fails = iter([True, False])

    def outside(gateway):
        gateways.log.append(f"outside {gateway}")

    outside.__annotations__ = {"gateway": opened}

    def outside_after(result, gateway):
        gateways.log.append(f"outside after {gateway}")

    outside_after.__annotations__ = {"gateway": opened}

    def handle(command, gateway):
        gateways.log.append(f"handle {gateway}")
        if next(fails):
            raise Refused

    handle.__annotations__ = {"command": Pay, "gateway": opened}
    registry = registry_of(
        command_handler(handle),
        before(EVERY, precedence=RETRY - 1)(outside),
        after(EVERY, precedence=RETRY - 1)(outside_after),
    )
    bus = CommandBus(instant_retry=InstantRetry(1, on=Refused), registry=registry)

    bus.dispatch(Pay())

    assert gateways.log == [
        "open 0",
        "outside 0",
        "open 1",
        "handle 1",
        "open 2",
        "handle 2",
        "close 2",
        "outside after 0",
        "close 0",
    ]


@pytest.mark.parametrize("handlers", [1, 2])
def test_depends_is_shared_by_the_handlers_of_an_event(gateways, opened, handlers):
    """One handler or several, with interceptors or without: made once."""

    def look(gateway):
        gateways.log.append("before")

    look.__annotations__ = {"gateway": opened}

    def handler_of(number):
        def handle(event, gateway):
            gateways.log.append("handle")

        handle.__annotations__ = {"event": Paid, "gateway": opened}
        return event_handler(name=f"handler{number}")(handle)

    registry = registry_of(
        *[handler_of(number) for number in range(handlers)],
        before(EVERY, precedence=RETRY - 1)(look),
    )
    registry.event_bus.publish(Paid())

    assert gateways.log == ["open 0", *["before", "handle"] * handlers, "close 0"]


def test_depends_works_at_a_send(gateways, opened, channel):
    """It is closed once the message is on its way."""

    def look(gateway):
        gateways.log.append("pre_send")

    look.__annotations__ = {"gateway": opened}
    registry = registry_of(pay_later, pre_send(EVERY)(look))

    registry.command_bus.dispatch(Pay())
    gateways.log.append("sent")
    channel.run()

    assert gateways.log == ["open 0", "pre_send", "close 0", "sent"]


# async --------------------------------------------------------------------------------


def test_before_and_after_may_be_async():
    """They run in the synchronous frame of the bus, their ORM calls in its block."""
    trace = []

    @command_handler
    async def handle(command: Pay):
        trace.append("handler")
        await Note.objects.acreate(text="handler")
        raise Refused

    @before(EVERY)
    async def first(command: Pay):
        await Note.objects.acreate(text="before")
        trace.append("before")

    @query_handler
    async def answer(query: Ask):
        return 1

    @after(pointcut.message(Ask))
    async def last(result: int):
        return result + 1

    registry = registry_of(handle, answer, first, last)
    with pytest.raises(Refused):
        registry.command_bus.dispatch(Pay())

    assert trace == ["before", "handler"]
    assert Note.objects.count() == 0


def test_an_async_after_gives_its_result():
    """What it returns is awaited."""

    @query_handler
    async def answer(query: Ask):
        return 1

    @after(EVERY)
    async def last(result: int):
        return result + 1

    registry = registry_of(answer, last)

    assert registry.query_bus.ask(Ask()) == 2
    assert async_to_sync(registry.query_bus.aask)(Ask()) == 2


# Broken ones --------------------------------------------------------------------------


def test_a_broken_interceptor_breaks_its_routes_alone():
    """A route that it stands at raises the text of its check, others work."""

    @command_handler("other")
    def other():
        return "works"

    @around(pointcut.message(Pay))
    def no_proceed(command: Pay): ...

    registry = registry_of(pay, other, no_proceed)
    (problem,) = registry.problems

    assert registry.command_bus.dispatch(route="other") == "works"
    with pytest.raises(InvalidHandler) as caught:
        registry.command_bus.dispatch(Pay())
    assert str(caught.value) == str(problem)
    assert problem.rule.id == "django_cqrs.E020"


def test_a_broken_interceptor_of_an_event_calls_no_handler():
    """The publishing fails before anything happens."""
    called = []

    @event_handler(priority=1)
    def first(event: Paid):
        called.append(event)

    @event_handler
    def second(event: Paid): ...

    @before(pointcut.handler("*second"))
    def unfillable(proceed: Proceed): ...

    registry = registry_of(first, second, unfillable)
    with pytest.raises(InvalidHandler, match="a Proceed is for @around"):
        registry.event_bus.publish(Paid())

    assert called == []


def test_a_broken_pre_send_sends_nothing(channel):
    """As any broken interceptor, it breaks the route."""

    @pre_send(EVERY)
    def unfillable(command: Pay, number: int): ...

    registry = registry_of(pay_later, unfillable)
    with pytest.raises(InvalidHandler, match=r"'number' of .*unfillable: int"):
        registry.command_bus.dispatch(Pay())

    assert channel.waiting() == []


# Discovery ----------------------------------------------------------------------------


@pytest.fixture
def guarded_app(settings, channel):
    # Without the app whose handlers want a channel that is not configured here.
    others = [each for each in settings.INSTALLED_APPS if each != "tests.modelling"]
    settings.INSTALLED_APPS = [*others, "tests.apps.guarded"]
    guarded.log.clear()
    yield guarded.log
    guarded.log.clear()


def test_interceptors_are_found_in_the_handlers_modules(guarded_app):
    """Those an app's handlers module holds, its own and imported ones."""
    command_bus.dispatch(CloseVault())

    assert guarded_app == ["watch", "key vault", "close", "stamp"]
    channels["guard"].run()
    assert guarded_app == ["watch", "key vault", "close", "stamp", "report"]

    guarded_app.clear()
    command_bus.dispatch(CloseVault(), route="vault.reopen")
    assert guarded_app == ["reopen"]


def test_a_second_ready_leaves_nothing_stale(guarded_app):
    """Each interceptor goes on standing there once."""
    apps.get_app_config("django_cqrs").ready()
    apps.get_app_config("django_cqrs").ready()

    command_bus.dispatch(CloseVault())

    assert guarded_app == ["watch", "key vault", "close", "stamp"]


def test_interceptors_leave_with_their_app(guarded_app, settings):
    """INSTALLED_APPS decides, also where it is overridden and set back."""
    installed = settings.INSTALLED_APPS
    command_bus.dispatch(CloseVault())
    guarded_app.clear()

    settings.INSTALLED_APPS = installed[:-1]
    command_bus.dispatch(ProjectsOpenTicket())
    assert guarded_app == []

    settings.INSTALLED_APPS = installed
    command_bus.dispatch(CloseVault())
    assert guarded_app == ["watch", "key vault", "close", "stamp"]


def test_an_interceptor_outside_the_handlers_modules_is_a_check(guarded_app):
    """It stands nowhere, and somebody may rely on it."""
    (found,) = run_checks(tags=["django_cqrs"])

    assert found.id == "django_cqrs.W002"
    assert found.obj is guarded.marks.forgotten
    assert found.msg == (
        "tests.apps.guarded.marks.forgotten is decorated, but it is not in a "
        "handlers module."
    )
    assert found.hint == "Move it to the app's handlers module, or import it there."


def test_cqrs_routes_shows_them(guarded_app):
    """Each route with what stands around it, the outermost first."""
    stdout = StringIO()
    call_command("cqrs_routes", "CloseVault", stdout=stdout)

    assert stdout.getvalue().splitlines()[:7] == [
        "CloseVault (tests.apps.guarded.messages.CloseVault, named 'guarded.close') is a command. Its handler is:",
        "  1. tests.apps.guarded.handlers.close (tests/apps/guarded/handlers.py:23)",
        "     because it takes CloseVault;",
        "     immediately, in a transaction on the database 'default'.",
        "     through around tests.apps.guarded.handlers.watch",
        "     through before tests.apps.guarded.marks.check_key",
        "",
    ]


def shown(registry, name=None):
    return {
        endpoint.name.rpartition(".")[2]: [
            str(each.interception.pointcut)
            for each in registry.interceptors_around(endpoint)
        ]
        for endpoint in registry.routes.endpoints
    }


def test_cqrs_routes_shows_what_may_stand_there(channel):
    """By any bus of one's own, and for any class that the handler takes."""

    @event_handler
    def of_all(event: object): ...

    @event_handler
    def of_paid(event: Paid): ...

    @command_handler("keyed")
    def keyed(): ...

    registry = registry_of(pay, of_all, of_paid, keyed, PayAllNamed)
    own = CommandBus(registry=registry)

    for where in (
        pointcut.bus(own),
        pointcut.message(Paid),
        pointcut.message(PayAllNamed),
        ~pointcut.message(Pay),
    ):

        @before(where)
        def look(): ...

        registry.add(look)

    @pre_send(EVERY)
    def never_sent(): ...

    registry.add(never_sent)

    assert shown(registry) == {
        "pay": ["bus(<CommandBus>)", "message(PayAllNamed)"],
        "of_all": ["message(Paid)", "message(PayAllNamed)", "~message(Pay)"],
        "of_paid": ["message(Paid)", "~message(Pay)"],
        "keyed": ["bus(<CommandBus>)", "~message(Pay)"],
    }


@message("interceptors.pay_all")
@dataclass(frozen=True)
class PayAllNamed(Pay):
    pass


# What is not there costs nothing ----------------------------------------------------------


def shape_of(run):
    """Return a compiled run as the code of its functions, the outermost first."""
    cells = [cell.cell_contents for cell in run.__closure__ or ()]
    inner = [shape_of(each) for each in cells if hasattr(each, "__code__")]
    return run.__code__, inner


@pytest.mark.parametrize("kind", ["command", "query", "event", "channel"])
def test_a_handler_without_interceptors_pays_nothing(channel, kind):
    """Its compiled run is the same, whatever interceptors stand elsewhere."""

    @query_handler
    def answer(query: Ask): ...

    @event_handler
    def on_paid(event: Paid): ...

    handler, payload, bus = {
        "command": (pay, Pay(), "command_bus"),
        "query": (answer, Ask(), "query_bus"),
        "event": (on_paid, Paid(), "event_bus"),
        "channel": (pay_later, Pay(), "command_bus"),
    }[kind]

    @command_handler("elsewhere")
    def elsewhere(): ...

    nowhere = pointcut.handler("*elsewhere")
    interceptors = [
        noting([], decorator, "elsewhere", where=nowhere)
        for decorator in (before, around, after, pre_send)
    ]

    def shape(*targets):
        registry = registry_of(handler, elsewhere, *targets)
        entrance = getattr(registry, bus)
        entrance.publish(payload) if kind == "event" else (
            entrance.ask(payload) if kind == "query" else entrance.dispatch(payload)
        )
        run, _handler = entrance._by_type[type(payload)]
        if kind == "channel":
            assert run.__func__ is type(run.__self__).put
            return run.__func__
        return shape_of(run)

    assert shape(*interceptors) == shape()
    if kind != "channel":
        here = noting([], before, "here", where=EVERY)
        assert shape(here) != shape()
