"""Buses with an idempotency key: a command is handled once, whoever sends it twice."""

import json
import threading
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from django.db import connections, transaction
from pydantic import BaseModel

from django_cqrs import (
    DEADLOCKS,
    Command,
    CommandBus,
    EventBus,
    Header,
    InstantRetry,
    QueryBus,
    Registry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.channels import channels
from django_cqrs.exceptions import (
    InvalidChannel,
    InvalidKey,
    InvalidOption,
    MissingHeader,
    UnexpectedResult,
)
from django_cqrs.interception import TRANSACTION, before, pointcut, pre_send
from django_cqrs.messages import Message
from django_cqrs.outbox.inbox import inbox
from django_cqrs.outbox.models import InboxEntry, JournalEntry
from tests.limits import LIMIT
from tests.modelling.messages import OpenAccount
from tests.modelling.models import Account
from tests.outbox.support import (
    THREADS,
    age_keys,
    at_once,
    entries,
    note,
    numbers,
    on_a_server,
    on_databases,
    rows,
    work,
)
from tests.outbox.work import OtherWork, Work
from tests.testapp.models import Note

pytestmark = on_databases

KEY = Header("payment_id")
PAID = {"payment_id": "p1"}


@dataclass(frozen=True)
class Pay(Command[UUID]):
    number: int = 1


@message("bus_key.paid")
@dataclass(frozen=True)
class Paid:
    number: int


@message("bus_key.remind")
@dataclass(frozen=True)
class Remind:
    number: int


@dataclass(frozen=True)
class Inner: ...


@pytest.fixture
def calls():
    return []


def paying(calls, **policies):
    """Return a registry with a handler of Pay that notes, and says it was called."""
    registry = Registry()

    @registry.add
    @command_handler(name="pay", **policies)
    def pay(command: Pay) -> UUID:
        calls.append(command.number)
        Note.objects.create(text="paid", number=command.number)
        return UUID(int=command.number)

    return registry


def keyed(registry, key=KEY, **options):
    return CommandBus(idempotency_key=key, registry=registry, **options)


def rolled_back(function):
    """Call a function in a block that is rolled back."""
    with transaction.atomic():
        function()
        transaction.set_rollback(True)


def without_the_outbox(settings):
    apps = [app for app in settings.INSTALLED_APPS if app != "django_cqrs.outbox"]
    settings.INSTALLED_APPS = apps


# ------------------------------------------------------------------------------- once


def test_a_duplicate_gets_the_first_answer(calls):
    """Of the type that the handler returned; another key is another command. [B14.4]"""
    bus = keyed(paying(calls))

    answers = [bus.dispatch(Pay(number), headers=PAID) for number in (1, 2)]
    other = bus.dispatch(Pay(3), headers={"payment_id": "p2"})

    assert answers == [UUID(int=1)] * 2
    assert type(answers[1]) is UUID
    assert other == UUID(int=3)
    assert calls == numbers() == [1, 3]
    assert entries() == [
        ("bus:header:payment_id:pay", "p1"),
        ("bus:header:payment_id:pay", "p2"),
    ]


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        ("number", ("bus:attribute:number:pay", "1")),
        (lambda message: (message.payload.number, "x"), ("bus:pay", "'1','x'")),
    ],
    ids=["attribute", "callable"],
)
def test_a_key_is_an_attribute_or_what_a_callable_returns(calls, key, stored):
    """A key is an attribute or what a callable returns. [B14.4]"""
    bus = keyed(paying(calls), key)

    for number in (1, 1, 2):
        bus.dispatch(Pay(number))

    assert calls == [1, 2]
    assert entries()[0] == stored


def test_without_a_key_every_command_is_handled(calls):
    """None is no key; a header that is not there, or no text, is the sender's error. [B14.4]"""
    registry = paying(calls)
    bus = keyed(registry)

    for number in (1, 2):
        bus.dispatch(Pay(number), headers={"payment_id": None})
    with pytest.raises(MissingHeader, match=r"the bus to pay has .*'payment_id'"):
        bus.dispatch(Pay(3))
    with pytest.raises(InvalidKey, match="the bus to pay"):
        keyed(registry, lambda message: [message]).dispatch(Pay(3))
    with pytest.raises(InvalidKey, match="no such field"):
        keyed(registry, "payment").dispatch(Pay(3))

    assert calls == numbers() == [1, 2]
    assert entries() == []


def test_a_failed_first_one_does_not_count():
    """Its key is rolled back with what it wrote. [B14.4]"""
    registry = Registry()
    failures = [True]

    @registry.add
    @command_handler(name="pay")
    def pay(command: Work) -> int:
        note(command)
        if failures:
            raise ValueError(failures.pop())
        return command.number

    bus = keyed(registry)

    with pytest.raises(ValueError, match="True"):
        bus.dispatch(Work(1), headers=PAID)
    assert entries() == []

    assert [bus.dispatch(Work(n), headers=PAID) for n in (2, 3)] == [2, 2]
    assert numbers() == [2]


def test_a_failure_that_is_caught_inside_a_transaction_does_not_count(calls):
    """The command's savepoint takes the key along; the outermost rollback as well. [B14.4]"""
    registry = paying(calls)
    bus = keyed(registry)

    rolled_back(lambda: bus.dispatch(Pay(1), headers=PAID))
    bus.dispatch(Pay(2), headers=PAID)

    assert numbers() == [2]


def test_after_the_window_a_command_is_handled_again(calls):
    """And from then on the window counts anew, with the new answer. [B14.4]"""
    bus = keyed(paying(calls))

    answers = []
    for number, age in enumerate([timedelta(0), timedelta(days=6), timedelta(days=2)]):
        age_keys(age)
        answers.append(bus.dispatch(Pay(number), headers=PAID))
    answers.append(bus.dispatch(Pay(9), headers=PAID))

    assert answers == [UUID(int=number) for number in (0, 0, 2, 2)]
    assert calls == [0, 2]
    age_keys(timedelta(days=8))
    assert inbox.purge("default") == 1


async def test_from_async_code(calls):
    """`adispatch` does the same. [B14.4]"""
    bus = keyed(paying(calls))

    answers = [await bus.adispatch(Pay(n), headers=PAID) for n in (1, 2)]

    assert answers == [UUID(int=1)] * 2
    assert calls == [1]


@dataclass(frozen=True)
class Receipt:
    number: UUID
    amount: Decimal
    lines: tuple[date, ...] = ()


class Wallet(BaseModel):
    name: str
    balance: Decimal


ANSWERS = [
    None,
    7,
    "text",
    Decimal("1.10"),
    UUID(int=7),
    date(2026, 1, 2),
    [UUID(int=1), UUID(int=2)],
    {"a": Decimal("1.5")},
    Receipt(UUID(int=1), Decimal("2.50"), (date(2026, 1, 2),)),
    Wallet(name="ada", balance=Decimal("0.30")),
]
TYPES = {
    list: list[UUID],
    dict: dict[str, Decimal],
    type(None): None,
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_an_answer_comes_back_as_its_type(answer):
    """As the handler is annotated: no text, and no dict, of it. [B14.4]"""
    registry = Registry()

    def handle_it(command: Work):
        return answer

    handle_it.__annotations__["return"] = TYPES.get(type(answer), type(answer))
    registry.add(command_handler(name="handle")(handle_it))
    bus = keyed(registry)

    first, second = (bus.dispatch(Work(1), headers=PAID) for _ in range(2))

    assert first is answer
    assert second == answer
    assert type(second) is type(answer)


def test_an_answer_that_json_cannot_hold_fails_at_the_first():
    """Nobody finds it out from a duplicate months later. [B14.4]"""
    registry = Registry()

    @registry.add
    @command_handler(name="pay")
    def pay(command: Work):
        note(command)
        return object()

    with pytest.raises(UnexpectedResult, match="cannot be stored for duplicates"):
        keyed(registry).dispatch(Work(1), headers=PAID)

    assert (numbers(), entries()) == ([], [])


# --------------------------------------------------------------------- whose keys


def test_another_endpoint_is_its_own():
    """Two commands of one payment. [B14.4]"""
    registry = Registry()
    registry.add(command_handler(name="one")(lambda_of(Work, 1)))
    registry.add(command_handler(name="two")(lambda_of(OtherWork, 2)))
    bus = keyed(registry)

    answers = [bus.dispatch(each, headers=PAID) for each in (Work(1), OtherWork())]

    assert answers == [1, 2]


def lambda_of(cls, answer):
    def handle(command: cls) -> int:
        return answer

    return handle


def test_a_renamed_handler_knows_its_keys(calls):
    """Its `aliases` are what it was called. [B14.4]"""
    keyed(paying(calls)).dispatch(Pay(1), headers=PAID)
    registry = Registry()

    @registry.add
    @command_handler(name="new", aliases=["pay"])
    def pay(command: Pay) -> UUID:
        return UUID(int=command.number)

    assert keyed(registry).dispatch(Pay(2), headers=PAID) == UUID(int=1)


def test_buses_share_keys_only_of_the_same_source(calls):
    """A provider's number 1 is not another's; the project's bus knows no duplicates. [B14.4]"""
    registry = paying(calls)
    here, again = keyed(registry), keyed(registry)
    there = keyed(registry, Header("invoice_id"))

    here.dispatch(Pay(1), headers={"payment_id": 1})
    again.dispatch(Pay(2), headers={"payment_id": 1})
    there.dispatch(Pay(3), headers={"invoice_id": 1})
    registry.command_bus.dispatch(Pay(4), headers={"payment_id": 1})

    assert calls == [1, 3, 4]


def test_a_handler_may_have_a_key_as_well(calls):
    """Each tells its own duplicates; the answer is the first one's either way. [B14.4]"""
    registry = paying(calls, idempotency_key=Header("order"))
    bus = keyed(registry)

    first = bus.dispatch(Pay(1), headers={"order": "a", **PAID})
    by_bus = bus.dispatch(Pay(2), headers={"order": "b", **PAID})
    by_handler = bus.dispatch(Pay(3), headers={"order": "a", "payment_id": "p2"})
    after_that = bus.dispatch(Pay(4), headers={"order": "c", "payment_id": "p2"})

    assert [first, by_bus, by_handler, after_that] == [UUID(int=1)] * 4
    assert calls == [1]


def test_by_routing_key(calls):
    """A payload that is made into what the handler takes, or none. [B14.4]"""
    registry = Registry()

    @registry.add
    @command_handler("pay.it", name="pay")
    def pay(command: Work) -> int:
        calls.append(command.number)
        return command.number

    bus = keyed(registry)
    sent = [{"number": 1}, {"number": 2}, Work(3)]
    answers = [bus.dispatch(each, route="pay.it", headers=PAID) for each in sent]
    as_text = bus.dispatch(
        '{"number": 4}', route="pay.it", content_type="application/json", headers=PAID
    )

    assert [*answers, as_text] == [1] * 4
    assert calls == [1]


def test_an_aggregate():
    """The answer of a factory is the identifier. [B14.4]"""
    registry = Registry()
    registry.add(Account)
    bus = keyed(registry)

    answers = [bus.dispatch(OpenAccount("ada"), headers=PAID) for _ in range(2)]

    assert answers == [Account.objects.get().pk] * 2


def test_inside_another_command(calls):
    """A duplicate there is none of the outer one's. [B14.4]"""
    registry = paying(calls)
    bus = keyed(registry)

    @registry.add
    @command_handler(name="outer")
    def outer(command: Work) -> list[UUID]:
        return [bus.dispatch(Pay(n)) for n in (command.number, 2)]

    answers = registry.command_bus.dispatch(Work(1), headers=PAID)

    assert answers == [UUID(int=1)] * 2
    assert calls == [1]


@pytest.mark.parametrize("said_by", ["handler", "sender"])
def test_on_another_database(said_by):
    """A key is remembered where the command's data is. [B14.4]"""
    registry = Registry()
    policies = {"using": "other"} if said_by == "handler" else {}
    options = {"using": "other"} if said_by == "sender" else {}

    @registry.add
    @command_handler(name="pay", **policies)
    def pay(command: Work) -> int:
        Note.objects.using("other").create(text="paid", number=command.number)
        return command.number

    bus = keyed(registry)
    answers = [bus.dispatch(Work(n), headers=PAID, **options) for n in (1, 2)]

    assert answers == [1, 1]
    assert numbers("other") == [1]
    assert entries("other") == [("bus:header:payment_id:pay", "p1")]
    assert entries() == []


# -------------------------------------------------------------------------- at once


def patient(registry, **options):
    retry = InstantRetry(9, on=DEADLOCKS)
    return keyed(registry, instant_retry=retry, **options)


def test_concurrent_duplicates_have_one_effect(calls):
    """All of them get the answer of the one that was first. [B14.4]"""
    on_a_server()
    registry = paying(calls)
    bus = patient(registry)
    numbered = iter(range(1, THREADS + 1))

    answers = at_once(lambda: bus.dispatch(Pay(next(numbered)), headers=PAID))

    (number,) = numbers()
    assert answers == [UUID(int=number)] * THREADS


def test_concurrent_duplicates_for_a_channel_are_sent_once():
    """Behind a channel nobody gets an answer. [B14.4]"""
    on_a_server()
    registry = Registry()
    registry.add(command_handler(channel="outbox", name="later")(plain_note()))
    bus = patient(registry)

    answers = at_once(lambda: bus.dispatch(Work(1), headers=PAID))
    work(registry)

    assert answers == [None] * THREADS
    assert numbers() == [1]


def test_a_duplicate_waits_for_the_first_and_handles_where_that_fails():
    """Only then it is known whether it is one. [B14.4]"""
    on_a_server()
    registry = Registry()
    entered, go_on = threading.Event(), threading.Event()

    @registry.add
    @command_handler(name="pay")
    def pay(command: Work) -> int:
        note(command)
        if command.number == 1:
            entered.set()
            go_on.wait(LIMIT)
            raise ValueError
        return command.number

    bus = patient(registry)
    results = []

    def run(number):
        try:
            results.append(bus.dispatch(Work(number), headers=PAID))
        except ValueError:
            results.append("failed")
        finally:
            connections.close_all()

    first = threading.Thread(target=run, args=[1])
    second = threading.Thread(target=run, args=[2])
    first.start()
    entered.wait(LIMIT)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join(LIMIT)
    second.join(LIMIT)

    assert sorted(results, key=str) == [2, "failed"]
    assert numbers() == [2]


@pytest.mark.parametrize("fails", [1, 2])
def test_an_attempt_that_failed_has_left_no_key(fails):
    """The next attempt of the same command is no duplicate of it. [B14.4]"""
    registry = Registry()
    attempts = []

    @registry.add
    @command_handler(name="pay")
    def pay(command: Work) -> int:
        attempts.append(command.number)
        note(command)
        if len(attempts) <= fails:
            raise ValueError
        return command.number

    bus = keyed(registry, instant_retry=InstantRetry(3, on=ValueError))

    assert [bus.dispatch(Work(n), headers=PAID) for n in (1, 2)] == [1, 1]
    assert attempts == [1] * (fails + 1)
    assert numbers() == [1]


# --------------------------------------------------------------------- interceptors


def test_what_stands_outside_the_transaction_sees_duplicates(calls):
    """A signature is checked there, or a duplicate would get an answer without one. [B14.4]"""
    registry = paying(calls)
    bus = keyed(registry)
    seen = []

    @registry.add
    @before(pointcut.bus(bus), precedence=TRANSACTION - 1)
    def check(command: Pay):
        seen.append(("outside", command.number))

    @registry.add
    @before(pointcut.bus(bus))
    def look(command: Pay):
        seen.append(("inside", command.number))

    for number in (1, 2):
        bus.dispatch(Pay(number), headers=PAID)

    assert seen == [("outside", 1), ("inside", 1), ("outside", 2)]


def test_interceptors_of_a_command_for_a_channel():
    """Those of the bus see duplicates; `pre_send` what enters the channel. [B14.4]"""
    registry = Registry()
    registry.add(command_handler(channel="outbox", name="later")(plain_note()))
    bus = keyed(registry)
    seen = []

    @registry.add
    @before(pointcut.bus(bus))
    def look(message: Message) -> Message:
        seen.append("bus")
        return message.replace(headers=PAID)

    @registry.add
    @pre_send(pointcut.handler("later"))
    def enter(command: Work):
        seen.append("channel")

    for number in (1, 2):
        bus.dispatch(Work(number))
    work(registry)

    assert seen == ["bus", "channel", "bus"]
    assert numbers() == [1]


# -------------------------------------------------------------------------- channels


def plain_note():
    def later(command: Work):
        note(command)

    return later


@pytest.mark.parametrize("policies", [{}, {"atomic": False}], ids=["atomic", "not"])
def test_a_duplicate_for_a_channel_is_not_sent(policies):
    """What failed later in the channel was sent nonetheless. [B14.4]"""
    registry = Registry()
    later = command_handler(channel="outbox", name="later", **policies)(plain_note())
    registry.add(later)
    bus = keyed(registry)

    answers = [bus.dispatch(Work(n), headers=PAID, delay=0) for n in (1, 2)]

    assert answers == [None, None]
    (row,) = rows()
    assert (row.endpoint, entries()) == (
        "later",
        [("bus:header:payment_id:later", "p1")],
    )
    work(registry)
    assert bus.dispatch(Work(3), headers=PAID) is None
    assert (rows(), numbers()) == ([], [1])


def test_a_sending_that_is_rolled_back_does_not_count():
    """Its key goes with its message. [B14.4]"""
    registry = Registry()
    registry.add(command_handler(channel="outbox", name="later")(plain_note()))
    bus = keyed(registry)

    rolled_back(lambda: bus.dispatch(Work(1), headers=PAID))
    assert (rows(), entries()) == ([], [])
    bus.dispatch(Work(2), headers=PAID)
    work(registry)

    assert numbers() == [2]


def test_a_command_for_a_channel_on_another_database():
    """The key is remembered where the message is stored. [B14.4]"""
    registry = Registry()
    registry.add(command_handler(channel="outbox", name="later")(plain_note()))
    bus = keyed(registry)

    for number in (1, 2):
        bus.dispatch(Work(number), headers=PAID, using="other")

    assert (len(rows()), len(rows("other"))) == (0, 1)
    assert (len(entries()), len(entries("other"))) == (0, 1)


# ------------------------------------------------------------------ what cannot work


def test_a_handler_without_a_transaction_is_refused(calls):
    """Its key might outlive its failure. Another bus may call it. [B14.4]"""
    registry = paying(calls, atomic=False)

    with pytest.raises(InvalidOption, match=r"pay has atomic=False, and the bus"):
        keyed(registry).dispatch(Pay(1), headers=PAID)

    assert calls == []
    assert registry.command_bus.dispatch(Pay(1)) == UUID(int=1)


@pytest.mark.parametrize("channel", [None, "memory"])
def test_it_needs_a_place_to_remember(settings, channel):
    """The check says so, and a dispatch; nothing is handled or sent. [B14.4]"""
    registry = Registry()
    later = command_handler(name="later", channel=channel)(plain_note())
    registry.add(later)
    bus = keyed(registry)
    assert registry.problems == []

    without_the_outbox(settings)

    (problem,) = registry.problems
    assert problem.rule.id == "django_cqrs.E022"
    assert str(problem).startswith(
        "A CommandBus keyed by Header(name='payment_id') has idempotency_key=, but "
        "no installed app stores keys."
    )
    with pytest.raises(InvalidOption, match="no installed app stores keys"):
        bus.dispatch(Work(1), headers=PAID)
    assert numbers() == []
    assert channels["memory"].waiting() == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"idempotency_key": 5}, "an attribute's name, a Header, or a callable"),
        ({"idempotency_key": ""}, "an attribute's name, a Header, or a callable"),
        ({"idempotency_key": Header("timestamp")}, "is not a key"),
        ({"idempotency_key": Header("message_id")}, "has a different one"),
        ({"idempotency_key": KEY, "replay_outputs": "yes"}, "True, False or a Header"),
        ({"replay_outputs": True}, "needs idempotency_key="),
    ],
)
def test_a_bus_that_means_nothing_is_refused(options, text):
    """When it is made, not when it is used. [B14.4]"""
    registry = Registry()
    buses = list(registry._buses)

    with pytest.raises(InvalidOption, match=text):
        CommandBus(registry=registry, **options)

    assert list(registry._buses) == buses


@pytest.mark.parametrize("cls", [QueryBus, EventBus])
def test_only_commands_have_duplicates(cls):
    """An answer to a query is new each time; an event's handlers have keys. [B14.4]"""
    with pytest.raises(TypeError, match="idempotency_key"):
        cls(idempotency_key=KEY)


def test_it_costs_the_statements_of_a_key(calls, django_assert_num_queries):
    """And a bus without one costs none. [B14.4]"""
    registry = paying(calls)
    bus = keyed(registry)
    # Begin and commit are seen by some servers' wrappers only: savepoints everywhere.
    with transaction.atomic():
        with django_assert_num_queries(3):
            registry.command_bus.dispatch(Pay(1))
        with django_assert_num_queries(5):  # insert the key, keep the answer
            bus.dispatch(Pay(1), headers=PAID)
        with django_assert_num_queries(4):  # insert in vain, read
            bus.dispatch(Pay(1), headers=PAID)


# ------------------------------------------------------------------- replayed outputs


def sending(handle=None, **policies):
    """Return a registry: Pay publishes Paid, and handlers of it note what they get."""
    registry = Registry()
    registry.seen = []

    def publish(command: Pay, events: EventBus) -> UUID:
        registry.seen.append(f"pay {command.number}")
        events.publish(Paid(command.number))
        return UUID(int=command.number)

    registry.add(command_handler(name="pay")(handle or publish))

    @registry.add
    @event_handler(name="tell", channel="outbox")
    def tell(event: Paid, message: Message):
        registry.seen.append(f"tell {event.number}")
        registry.told = [*getattr(registry, "told", []), message]

    @registry.add
    @event_handler(name="count")
    def count(event: Paid):
        registry.seen.append(f"count {event.number}")

    @registry.add
    @command_handler(name="remind", channel="outbox")
    def remind(command: Remind):
        registry.seen.append(f"remind {command.number}")

    return registry


def test_outputs_are_sent_again_without_the_handler():
    """The same messages: ids, headers, payload. What was called at once is not. [B14.4]"""
    registry = sending()
    bus = keyed(registry, replay_outputs=True)

    answers = []
    for number in (1, 2):
        answers.append(bus.dispatch(Pay(number), headers={"who": "ada", **PAID}))
        work(registry)

    assert answers == [UUID(int=1)] * 2
    assert registry.seen == ["pay 1", "count 1", "tell 1", "tell 1"]
    first, again = registry.told
    assert dict(first.headers) == dict(again.headers)
    assert again.headers["who"] == "ada"


def test_outputs_are_not_sent_again_unless_asked_for():
    """A duplicate is quiet. [B14.4]"""
    registry = sending()
    bus = keyed(registry)

    for number in (1, 2):
        bus.dispatch(Pay(number), headers=PAID)
    work(registry)

    assert registry.seen == ["pay 1", "count 1", "tell 1"]
    assert InboxEntry.objects.get().outputs is None


def test_a_header_may_ask_for_outputs():
    """Then they are kept for all, and sent again for those that ask. [B14.4]"""
    registry = sending()
    bus = keyed(registry, replay_outputs=Header("again"))

    for again in ({}, {"again": False}, {"again": None}, {"again": True}):
        bus.dispatch(Pay(1), headers={**PAID, **again})
        work(registry)

    assert registry.seen.count("tell 1") == 2
    assert registry.seen.count("pay 1") == 1


def test_outputs_of_all_that_was_sent_inside():
    """Nested commands, blocks of one's own, another channel; none of it rolled back. [B14.4]"""
    registry = Registry()

    @registry.add
    @command_handler(name="inner")
    def inner(command: OtherWork, commands: CommandBus):
        commands.dispatch(Remind(command.number))
        if command.number > 100:
            raise ValueError(command.number)

    @registry.add
    @command_handler(name="outer")
    def outer(command: Work, commands: CommandBus):
        commands.dispatch(Remind(1))
        with transaction.atomic():
            commands.dispatch(Remind(2))
            commands.dispatch(OtherWork(3))
        commands.dispatch(OtherWork(4))
        with pytest.raises(ValueError, match="101"):
            commands.dispatch(OtherWork(101))
        rolled_back(lambda: commands.dispatch(Remind(90)))
        rolled_back(lambda: commands.dispatch(OtherWork(91)))
        commands.dispatch(Remind(5), using="other")
        with transaction.atomic(using="other"):
            commands.dispatch(Remind(6), using="other")

    @registry.add
    @command_handler(name="remind", channel="outbox")
    def remind(command: Remind): ...

    bus = keyed(registry, replay_outputs=True)
    bus.dispatch(Work(1), headers=PAID)
    first = told()
    assert first["default"] == [1, 2, 3, 4]
    assert first["other"] == [5, 6]
    for alias in ("default", "other"):
        work(registry, using=alias)

    bus.dispatch(Work(2), headers=PAID)

    assert told() == first


def told():
    """Return the numbers that wait in each database, in the order of sending."""
    return {
        alias: [json.loads(bytes(row.payload))["number"] for row in rows(alias)]
        for alias in ("default", "other")
    }


def test_outputs_inside_an_outer_transaction_and_an_outer_command():
    """What the outer one sends is none of the inner one's. [B14.4]"""
    registry = sending()
    bus = keyed(registry, replay_outputs=True)

    @registry.add
    @command_handler(name="outer", using="default")
    def outer(command: Work, commands: CommandBus):
        commands.dispatch(Remind(1))
        with transaction.atomic():
            commands.dispatch(Remind(2))
        bus.dispatch(Pay(command.number))
        commands.dispatch(Remind(3))

    registry.command_bus.dispatch(Work(7), headers=PAID)
    work(registry)
    assert told()["default"] == []

    with transaction.atomic():
        bus.dispatch(Pay(8), headers=PAID)
        assert told()["default"] == [7]
    assert told()["default"] == [7]


def test_outputs_on_the_database_of_an_outer_command():
    """What goes past the command, into the buffer of one around it, is its own too. [B14.4]"""
    registry = sending()
    bus = keyed(registry, replay_outputs=True)

    @registry.add
    @command_handler(name="inner", using="other")
    def inner(command: Inner, commands: CommandBus):
        commands.dispatch(Remind(3))

    @registry.add
    @command_handler(name="between")
    def between(command: Work, commands: CommandBus):
        commands.dispatch(Remind(command.number), using="other")
        commands.dispatch(Inner())

    @registry.add
    @command_handler(name="outer", using="other")
    def outer(command: OtherWork, commands: CommandBus):
        commands.dispatch(Remind(1))
        bus.dispatch(Work(2))

    registry.command_bus.dispatch(OtherWork(), headers=PAID)
    assert told() == {"default": [], "other": [1, 2, 3]}
    work(registry, using="other")

    bus.dispatch(Work(4), headers=PAID)

    assert told() == {"default": [], "other": [2, 3]}


def test_entries_of_the_journal_are_no_outputs(settings):
    """They wait beside the messages, and are written once for each handling. [B14.4]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}
    registry = sending()
    bus = keyed(registry, replay_outputs=True)

    for number in (1, 2):
        bus.dispatch(Pay(number), headers=PAID)

    assert [row.endpoint for row in rows()] == ["tell", "tell"]
    assert (
        list(
            JournalEntry.objects.order_by("pk").values_list("endpoint", flat=True)
        ).count("count")
        == 1
    )


def test_outputs_of_two_buses_one_in_the_other():
    """Each keeps what was sent inside it. [B14.4]"""
    registry = sending()
    outer_bus = keyed(registry, replay_outputs=True)
    inner_bus = keyed(registry, Header("inner_id"), replay_outputs=True)

    @registry.add
    @command_handler(name="outer")
    def outer(command: Work, commands: CommandBus):
        commands.dispatch(Remind(1))
        with transaction.atomic():
            inner_bus.dispatch(Pay(2), headers={"inner_id": 1})

    outer_bus.dispatch(Work(1), headers=PAID)
    work(registry)

    inner_bus.dispatch(Pay(2), headers={"inner_id": 1})
    assert told()["default"] == [2]
    work(registry)
    outer_bus.dispatch(Work(1), headers=PAID)
    assert told()["default"] == [1, 2]


def test_an_output_keeps_its_times():
    """What was to be late is late still, and what has expired since then has. [B14.4]"""
    registry = Registry()

    @registry.add
    @command_handler(name="remind", channel="outbox")
    def remind(command: Remind):
        note(Work(command.number))

    @registry.add
    @command_handler(name="pay")
    def pay(command: Work, commands: CommandBus):
        commands.dispatch(Remind(1), delay=3600, priority=3)
        commands.dispatch(Remind(2), expires=0.001)

    bus = keyed(registry, replay_outputs=True)
    bus.dispatch(Work(1), headers=PAID)
    late = [row.available_at for row in rows()]

    bus.dispatch(Work(1), headers=PAID)

    assert sorted(row.message_id for row in rows()[:2]) == sorted(
        row.message_id for row in rows()[2:]
    )
    assert [row.available_at for row in rows()[2:]] == late
    assert [row.priority for row in rows()] == [3, 0] * 2
    tally = work(registry)
    assert (tally.expired, numbers()) == (2, [])


def test_a_command_for_a_channel_is_an_output_itself():
    """On request it is sent again, as the same message. [B14.4]"""
    registry = Registry()
    registry.add(command_handler(channel="outbox", name="later")(plain_note()))
    bus = keyed(registry, replay_outputs=True)

    for number in (1, 2):
        bus.dispatch(Work(number), headers=PAID)

    first, again = rows()
    assert first.message_id == again.message_id
    assert first.sequence < again.sequence
    work(registry)
    assert numbers() == [1, 1]


def test_who_is_keyed_by_the_message_id_knows_a_replayed_output():
    """So sending again heals what was lost, and does nothing where nothing was. [B14.4]"""
    registry = Registry()

    @registry.add
    @command_handler(
        channel="outbox", name="later", idempotency_key=Header("message_id")
    )
    def later(command: Work):
        note(command)

    bus = keyed(registry, replay_outputs=True)
    for number in (1, 2, 3):
        bus.dispatch(Work(number), headers=PAID)
    work(registry)

    assert numbers() == [1]


def test_nothing_was_sent_where_nothing_is_kept():
    """Of a first one that was dispatched before outputs were asked for. [B14.4]"""
    registry = sending()
    keyed(registry).dispatch(Pay(1), headers=PAID)
    work(registry)

    keyed(registry, replay_outputs=True).dispatch(Pay(2), headers=PAID)

    assert rows() == []


def test_outputs_for_a_channel_that_is_gone(settings):
    """One clear error; the duplicate may come again when it is back. [B14.4]"""
    registry = sending()
    bus = keyed(registry, replay_outputs=True)
    bus.dispatch(Pay(1), headers=PAID)
    work(registry)
    kept = InboxEntry.objects.get()
    text = bytes(kept.outputs).replace(b'"outbox"', b'"gone"')
    InboxEntry.objects.update(outputs=text)

    with pytest.raises(InvalidChannel, match="gone"):
        bus.dispatch(Pay(2), headers=PAID)

    assert rows() == []


def test_outputs_are_those_of_the_attempt_that_succeeded():
    """A failed attempt has sent nothing. [B14.4]"""
    failures = [True]
    registry = None

    def pay(command: Pay, events: EventBus):
        with transaction.atomic():
            events.publish(Paid(len(failures)))
        if failures:
            raise ValueError(failures.pop())

    registry = sending(pay)
    retry = InstantRetry(1, on=ValueError)
    bus = keyed(registry, replay_outputs=True, instant_retry=retry)
    for _ in range(2):
        bus.dispatch(Pay(1), headers=PAID)

    assert told()["default"] == [0, 0]
