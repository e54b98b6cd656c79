"""Idempotency keys: a message is handled once, whatever comes twice."""

import threading
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from django.db import connections, transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_cqrs import (
    Command,
    CommandBus,
    Header,
    InstantRetry,
    Registry,
    Retry,
    command_handler,
    event_handler,
)
from django_cqrs.exceptions import (
    InvalidHandler,
    InvalidKey,
    MissingHeader,
    UnexpectedResult,
)
from django_cqrs.outbox.inbox import inbox
from django_cqrs.outbox.models import InboxEntry
from django_cqrs.retries import DEADLOCKS
from tests.limits import LIMIT
from tests.outbox.support import (
    THREADS,
    age_keys,
    at_once,
    entries,
    letters,
    make_due,
    note,
    numbers,
    on_a_server,
    on_databases,
    registry_of,
    rows,
    send,
    subscribers,
    work,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases


def keyed(*handlers, **policies):
    return registry_of(*handlers, idempotency_key="how", **policies)


# ---------------------------------------------------------------- handlers on a channel


def test_only_who_asks_for_it_has_inbox_rows():
    """What is handled and gone is handled once: it needs no other memory. [C06.1]"""
    registry = registry_of(note)
    send(registry, 1, 2)

    work(registry)

    assert numbers() == [1, 2]
    assert rows() == []
    assert entries() == []


def test_a_duplicate_is_not_handled():
    """It is settled like any other message. [C06.2]"""
    registry = keyed(note)
    send(registry, 1, 2, how="a")
    send(registry, 3, how="b")
    work(registry)
    send(registry, 4, how="a")

    tally = work(registry)

    assert numbers() == [1, 3]
    assert tally.handled == 1
    assert rows() == []
    assert letters() == []
    assert entries() == [("note", "a"), ("note", "b")]


def test_another_endpoint_is_its_own():
    """Two handlers of one event, with one key. [C06.2]"""

    def other(command: Work):
        note(Work(command.number + 100, command.how))

    registry = subscribers(note, other, idempotency_key="how")
    for number in (1, 2):
        registry.event_bus.publish(Work(number, "a"))

    work(registry)

    assert sorted(numbers()) == [1, 101]
    assert sorted(entries()) == [("note", "a"), ("other", "a")]


def test_an_endpoint_that_was_renamed_knows_its_keys():
    """Its `aliases` are what it was called. [C06.2]"""
    send(old := keyed(note), 1, how="a")
    work(old)

    new = registry_of(note, name="new", aliases=["note"], idempotency_key="how")
    send(new, 2, how="a")
    send(new, 3, how="b")
    work(new)

    assert numbers() == [1, 3]


@pytest.mark.parametrize("span", [timedelta(hours=1), 3600])
def test_after_the_window_it_is_handled_again(settings, span):
    """And from then on the window counts anew. [C06.2]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "IDEMPOTENCY_WINDOW": span}
    registry = keyed(note)

    def send_and_work(number):
        send(registry, number, how="a")
        work(registry)
        return numbers()

    assert send_and_work(1) == [1]
    age_keys(timedelta(minutes=59))
    assert send_and_work(2) == [1]
    age_keys(timedelta(minutes=2))
    assert send_and_work(3) == [1, 3]
    assert send_and_work(4) == [1, 3]
    assert len(entries()) == 1


def test_the_window_is_seven_days():
    """Unless a setting says otherwise. [C06.2]"""
    registry = keyed(note)
    send(registry, 1, how="a")
    work(registry)

    age_keys(timedelta(days=7) - timedelta(minutes=1))
    send(registry, 2, how="a")
    work(registry)
    assert numbers() == [1]

    age_keys(timedelta(minutes=2))
    send(registry, 3, how="a")
    work(registry)
    assert numbers() == [1, 3]


def test_a_key_is_an_attribute_a_header_or_what_a_callable_returns():
    """None is a message without a key: it is always handled. [C06.2]"""
    by_header = registry_of(note, idempotency_key=Header("request"))
    by_callable = registry_of(
        note, name="called", idempotency_key=lambda message: (message.payload.number, 1)
    )
    for number, request in ((1, "x"), (2, "x"), (3, None), (4, None)):
        send(by_header, number, headers={"request": request})
    work(by_header)
    send(by_callable, 5, 5)
    work(by_callable)

    assert numbers() == [1, 3, 4, 5]
    assert ("note", "x") in entries()


def test_a_message_without_the_key_fails():
    """It cannot be told from a duplicate, so it is not handled. [C06.2]"""
    registry = registry_of(
        note, idempotency_key=Header("request"), retry=Retry(attempts=1)
    )
    send(registry, 1)

    work(registry)

    (letter,) = letters()
    assert letter.exception == "django_cqrs.exceptions.MissingHeader"
    assert "note has idempotency_key=Header('request')" in letter.error
    assert numbers() == []


def test_a_failed_one_does_not_count():
    """Its key is rolled back with what it wrote; the next attempt is the first. [C06.3]"""
    fails = [True]

    def handle(command: Work):
        note(command)
        if fails:
            raise ValueError(fails.pop())

    registry = keyed(handle, retry=Retry(attempts=2, delay=60))
    send(registry, 1, how="a")

    work(registry)
    assert (numbers(), entries()) == ([], [])

    make_due()
    work(registry)
    assert (numbers(), entries()) == ([1], [("handle", "a")])


def test_the_key_is_there_before_the_handler():
    """Whoever comes at the same time waits, and does not begin. [C06.3]"""
    seen = []

    def handle(command: Work):
        seen.append(entries())

    registry = keyed(handle)
    send(registry, 1, how="a")
    work(registry)

    assert seen == [[("handle", "a")]]


def test_a_duplicate_leaves_the_transaction_usable():
    """An error of the unique constraint would have ended it on PostgreSQL. [C06.3]"""
    registry = Registry()

    @registry.add
    @command_handler(name="pay", idempotency_key="how")
    def pay(command: Work) -> None:
        note(command)

    with transaction.atomic():
        send(registry, 1, 2, how="a")
        note(Work(3))

    assert numbers() == [1, 3]


def test_concurrent_duplicates_have_one_effect():
    """Of workers that handle them at the same moment. [C06.3]"""
    on_a_server()
    registry = keyed(note, retry=Retry(attempts=20, delay=0))
    for number in range(THREADS * 5):
        send(registry, number, how="a")

    at_once(lambda: work(registry, batch=1))
    work(registry)

    assert len(numbers()) == 1
    assert rows() == []
    assert letters() == []


def test_the_second_waits_for_the_first():
    """Only then it is known whether it is one: the first may fail. [C06.3]"""
    on_a_server()
    registry = Registry()
    entered, go_on = threading.Event(), threading.Event()

    @registry.add
    @command_handler(name="pay", idempotency_key="how")
    def pay(command: Work) -> int:
        note(command)
        if command.number == 1:
            entered.set()
            go_on.wait(LIMIT)
            raise ValueError
        return command.number

    results = []

    def run(number):
        try:
            results.append(registry.command_bus.dispatch(Work(number, "a")))
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


def test_what_is_renewed_is_renewed_once():
    """Two duplicates of a key whose window is over. [C06.3]"""
    on_a_server()
    registry = Registry()

    @registry.add
    @command_handler(name="pay", idempotency_key="how")
    def pay(command: Work) -> int:
        note(command)
        return command.number

    bus = CommandBus(instant_retry=InstantRetry(9, on=DEADLOCKS), registry=registry)
    bus.dispatch(Work(1, "a"))
    age_keys(timedelta(days=8))

    results = at_once(lambda: bus.dispatch(Work(2, "a")))

    assert results == [2] * THREADS
    assert numbers() == [1, 2]


def test_purge_in_batches(django_assert_num_queries):
    """Only what is out of the window. [C06.4]"""
    old = timezone.now() - timedelta(days=8)
    for number in range(7):
        InboxEntry.objects.create(
            endpoint="note",
            key=str(number),
            message_id=UUID(int=number),
            created_at=old,
        )
    registry = keyed(note)
    send(registry, 1, how="new")
    work(registry)

    with django_assert_num_queries(7):  # three batches, each found and deleted
        assert inbox.purge("default", size=3) == 7

    assert entries() == [("note", "new")]


# ------------------------------------------------------------- handlers called at once


@dataclass(frozen=True)
class Pay(Command[UUID]):
    payment: str
    number: int = 1


@pytest.fixture
def calls():
    return []


def paying(calls):
    registry = Registry()

    @registry.add
    @command_handler(name="pay", idempotency_key="payment")
    def pay(command: Pay) -> UUID:
        calls.append(command)
        Note.objects.create(text=command.payment, number=command.number)
        return UUID(int=7)

    return registry


def test_a_duplicate_command_gets_the_first_answer(calls):
    """As what the handler returned, not as text of it. [C06.2]"""
    bus = paying(calls).command_bus

    first, second = bus.dispatch(Pay("x")), bus.dispatch(Pay("x", 2))

    assert first == second == UUID(int=7)
    assert type(second) is UUID
    assert calls == [Pay("x")]
    assert bus.dispatch(Pay("y")) == UUID(int=7)
    assert numbers() == [1, 1]


async def test_from_async_code(calls):
    """`adispatch` does the same. [C06.2]"""
    bus = paying(calls).command_bus

    answers = [await bus.adispatch(Pay("x")) for _ in range(2)]

    assert answers == [UUID(int=7)] * 2
    assert len(calls) == 1


def test_an_answer_that_json_cannot_hold(calls):
    """It is found at the first dispatch, not at the first duplicate. [C06.2]"""

    @dataclass
    class Local:
        number: float

    registry = Registry()

    @registry.add
    @command_handler("pay", name="pay", idempotency_key=Header("payment"))
    def pay():
        note(Work(1))
        return Local(1)

    with pytest.raises(UnexpectedResult, match="cannot be stored for duplicates"):
        registry.command_bus.dispatch(route="pay", headers={"payment": "x"})

    assert (numbers(), entries()) == ([], [])


def test_a_missing_key_is_an_error_of_the_sender():
    """It reaches who dispatches, and nothing is written. [C06.2]"""
    registry = Registry()

    @registry.add
    @command_handler(name="pay", idempotency_key=Header("payment"))
    def pay(command: Work) -> None:
        note(command)

    with pytest.raises(MissingHeader, match="idempotency_key"):
        send(registry, 1)
    with pytest.raises(InvalidKey):
        send(paying_by_object(), 1)
    assert numbers() == []


def paying_by_object():
    registry = Registry()

    @registry.add
    @command_handler(name="pay", idempotency_key=lambda message: [1])
    def pay(command: Work) -> None:
        note(command)

    return registry


def test_a_nested_failure_takes_its_key_along():
    """A caller that catches it may try again in the same transaction. [C06.3]"""
    registry = Registry()
    fails = [True]

    @registry.add
    @command_handler(name="pay", idempotency_key="how")
    def pay(command: Work) -> int:
        note(command)
        if fails:
            raise ValueError(fails.pop())
        return command.number

    with transaction.atomic():
        with pytest.raises(ValueError, match="True"):
            send(registry, 1, how="a")
        send(registry, 2, how="a")

    assert numbers() == [2]


def test_on_another_database():
    """A key is remembered where its data is. [C06.2]"""
    registry = Registry()

    @registry.add
    @command_handler(name="pay", using="other", idempotency_key="how")
    def pay(command: Work) -> None:
        Note.objects.using("other").create(text=command.how, number=command.number)

    send(registry, 1, 2, how="a")

    assert numbers("other") == [1]
    assert entries("other") == [("pay", "a")]
    assert entries() == []


def test_it_needs_a_place_to_remember(settings):
    """Without the app with the table nothing is handled. [C06.3]"""
    apps = [app for app in settings.INSTALLED_APPS if app != "django_cqrs.outbox"]
    registry = Registry()

    @registry.add
    @command_handler(name="pay", idempotency_key="how")
    def pay(command: Work) -> None:
        note(command)

    settings.INSTALLED_APPS = apps
    with pytest.raises(InvalidHandler, match="no installed app stores keys"):
        send(registry, 1)
    assert numbers() == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.none() | st.integers() | st.uuids() | st.dates(), key=st.text())
def test_the_first_answer_is_the_same_whatever_it_is(answer, key):
    """Any key that text can be, and any type that the handler names. [C06.2]"""
    InboxEntry.objects.all().delete()
    registry = Registry()

    def pay(command: Work):
        return answer

    pay.__annotations__["return"] = type(answer) if answer is not None else None
    registry.add(command_handler(name="pay", idempotency_key="how")(pay))
    try:
        key.encode()
    except UnicodeEncodeError:
        return  # no database takes it

    answers = [registry.command_bus.dispatch(Work(1, key)) for _ in range(2)]

    assert answers == [answer, answer]
    assert type(answers[1]) is type(answer)
    assert InboxEntry.objects.count() == 1


def test_an_event_handler_in_the_background():
    """The event is published twice, as a sender that is not sure does. [C06.2]"""
    registry = Registry()

    @registry.add
    @event_handler(name="mail", channel="outbox", idempotency_key="how")
    def mail(event: Work) -> None:
        note(event)

    for number in (1, 2):
        registry.event_bus.publish(Work(number, "a"))
    work(registry)

    assert numbers() == [1]
