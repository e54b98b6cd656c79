"""Receipts, and what became of the messages that they are for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Annotated
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync
from django.utils import timezone

from django_cqrs import (
    Command,
    CommandBus,
    Header,
    Receipt,
    Retry,
    Sensitive,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.exceptions import InvalidOption, NoHandlerFound
from django_cqrs.interception import STOP, pointcut, pre_send
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State
from django_cqrs.outbox.outcomes import MessageStatus, aoutcome_of, outcome_of
from django_cqrs.outbox.store import replay
from tests.outbox.support import make_due, worker_of
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db(transaction=True)


@message("outcomes.print")
@dataclass(frozen=True)
class Print(Command[None]):
    title: str = "lamp"
    secret: Annotated[str, Sensitive()] = "hunter2"


@message("outcomes.printed")
@dataclass(frozen=True)
class Printed:
    title: str = "lamp"


class Jammed(Exception):
    """What a handler here raises on purpose."""


@command_handler(
    name="outcomes.print", channel="outbox", retry=Retry(attempts=2, delay=60)
)
def print_it(command: Print) -> None:
    if command.title == "jam":
        raise Jammed(f"jammed with {command.secret}")
    Note.objects.create(text=command.title)


@command_handler("outcomes.now")
def print_now(title: str) -> str:
    return title


@pytest.fixture
def registry():
    return registry_of(print_it, print_now)


@pytest.fixture
def journal(settings):
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}


def work(registry):
    return worker_of(registry).run()


def test_sending_returns_a_receipt_of_the_stored_message(registry):
    """The receipt names the message, its endpoint, its channel and its database."""
    receipt = registry.command_bus.send(Print())

    row = OutboxMessage.objects.get()
    assert receipt == Receipt(row.message_id, "outcomes.print", "outbox", "default")
    assert str(receipt) == str(row.message_id)
    assert receipt.is_sent
    assert not receipt.is_duplicate


def test_sending_takes_what_dispatching_takes(registry):
    """Headers, delay and priority go with the message, and text is converted."""
    receipt = registry.command_bus.send(
        '{"title": "desk"}',
        route="outcomes.print",
        content_type="application/json",
        headers={"user_id": 7},
        delay=60,
        priority=3,
    )

    row = OutboxMessage.objects.get(message_id=receipt.message_id)
    assert (row.priority, row.state) == (3, State.DELAYED)
    assert b"user_id" in bytes(row.headers)
    assert b"desk" in bytes(row.payload)


def test_the_twin_returns_the_same_receipt(registry):
    """Async code awaits asend, with the same arguments."""
    receipt = async_to_sync(registry.command_bus.asend)(Print(), priority=2)

    assert OutboxMessage.objects.get().message_id == receipt.message_id
    assert OutboxMessage.objects.get().priority == 2


def test_a_running_loop_is_told_of_the_twin(registry):
    """The synchronous method would block the loop, so it names the other."""

    async def view():
        registry.command_bus.send(Print())

    with pytest.raises(Exception, match=r"await command_bus\.asend\(\)"):
        async_to_sync(view)()


def test_a_handler_that_is_called_immediately_gives_no_receipt(registry):
    """There is nothing to wait for: the error names the method with the result."""
    with pytest.raises(InvalidOption, match="not on a channel") as caught:
        registry.command_bus.send("lamp", route="outcomes.now")

    assert "Use command_bus.dispatch()" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((), InvalidOption, r"command_bus\.send\(\) needs a payload"),
        ((Print,), InvalidOption, r"command_bus\.send\(\) takes an instance"),
        ((object(),), NoHandlerFound, "No command handler takes"),
    ],
)
def test_sending_refuses_what_dispatching_refuses(registry, arguments, error, said):
    """The error names the method that was called, and nothing is stored."""
    with pytest.raises(error, match=said):
        registry.command_bus.send(*arguments)

    assert not OutboxMessage.objects.exists()


def test_a_receipt_of_a_message_that_an_interceptor_stopped(registry):
    """It says that nothing was sent, and the outcome is that it was dropped."""

    @pre_send(pointcut.message(Print))
    def stop():
        return STOP

    registry.add(stop)
    receipt = registry.command_bus.send(Print())

    assert not receipt.is_sent
    assert outcome_of(receipt).status is MessageStatus.DROPPED
    assert not OutboxMessage.objects.exists()


def test_a_duplicate_gets_the_receipt_of_the_first(registry):
    """Both callers learn what became of the one message that was sent."""
    bus = CommandBus(idempotency_key=Header("payment_id"), registry=registry)
    first = bus.send(Print(), headers={"payment_id": "p1"})
    second = bus.send(Print(), headers={"payment_id": "p1"})

    assert second.message_id == first.message_id
    assert (first.is_duplicate, second.is_duplicate) == (False, True)
    assert OutboxMessage.objects.count() == 1


def test_a_message_that_waits(registry):
    """Nobody has tried it."""
    receipt = registry.command_bus.send(Print())
    outcome = outcome_of(receipt)

    assert outcome.status is MessageStatus.WAITING
    assert (outcome.endpoint, outcome.channel) == ("outcomes.print", "outbox")
    assert (outcome.attempts, outcome.error, outcome.is_final) == (0, "", False)
    assert outcome.at == OutboxMessage.objects.get().sent_at


def test_a_message_that_is_delayed_and_then_due(registry):
    """It is delayed until its time, and then it waits for a worker."""
    receipt = registry.command_bus.send(Print(), delay=3600)
    early = outcome_of(receipt)
    make_due()

    assert early.status is MessageStatus.DELAYED
    assert early.next_attempt_at > timezone.now() + timedelta(minutes=59)
    assert outcome_of(receipt).status is MessageStatus.WAITING


def test_a_message_that_failed_and_waits_for_its_next_attempt(registry):
    """The attempts, the time of the next one and the masked last error are known."""
    receipt = registry.command_bus.send(Print("jam"))
    work(registry)
    outcome = outcome_of(receipt)

    assert outcome.status is MessageStatus.FAILED
    assert outcome.attempts == 1
    assert outcome.next_attempt_at > timezone.now() + timedelta(seconds=30)
    assert outcome.error.startswith("Jammed: jammed with")
    assert "hunter2" not in outcome.error
    assert not outcome.is_final


def test_a_message_that_is_dead_and_then_replayed(registry, monkeypatch):
    """A dead letter is final, until somebody replays it."""
    monkeypatch.setattr("django_cqrs.buses.registry", registry)
    receipt = registry.command_bus.send(Print("jam"))
    work(registry)
    make_due()
    work(registry)
    dead = outcome_of(receipt)
    replay(list(DeadLetter.objects.all()), using="default")

    assert dead.status is MessageStatus.DEAD
    assert (dead.attempts, dead.is_final) == (2, True)
    assert dead.exception.endswith("Jammed")
    assert dead.error.startswith("Jammed: jammed with")
    assert "hunter2" not in dead.error
    assert outcome_of(receipt).status is MessageStatus.WAITING


def test_a_handled_message_is_known_by_the_journal(registry, journal):
    """The journal keeps that it was handled, even if an attempt failed before."""
    receipt = registry.command_bus.send(Print())
    work(registry)
    outcome = outcome_of(receipt)

    assert outcome.status is MessageStatus.HANDLED
    assert (outcome.attempts, outcome.is_final) == (1, True)
    assert outcome.endpoint == "outcomes.print"


def test_a_message_that_fails_first_is_handled_in_the_end(registry, journal):
    """Of several entries of one endpoint, the success counts."""
    receipt = registry.command_bus.send(Print("jam"))
    work(registry)
    OutboxMessage.objects.update(
        payload=bytes(OutboxMessage.objects.get().payload).replace(b"jam", b"ink")
    )
    make_due()
    work(registry)

    assert outcome_of(receipt).status is MessageStatus.HANDLED
    assert outcome_of(receipt).attempts == 2


def test_without_a_journal_a_handled_message_is_unknown(registry):
    """Its row is gone, and nothing else is kept."""
    receipt = registry.command_bus.send(Print())
    work(registry)
    outcome = outcome_of(receipt)

    assert outcome.status is MessageStatus.UNKNOWN
    assert (outcome.message_id, outcome.endpoint) == (receipt.message_id, "")


@pytest.mark.parametrize("how", ["expires", "deleted"])
def test_a_message_that_nobody_will_handle_was_dropped(registry, journal, how):
    """An expired message is dropped, and so is one whose dead letter was deleted."""
    if how == "expires":
        receipt = registry.command_bus.send(Print(), expires=60)
        OutboxMessage.objects.update(expires_at=timezone.now() - timedelta(1))
        work(registry)
    else:
        receipt = registry.command_bus.send(Print("jam"))
        work(registry)
        make_due()
        work(registry)
        DeadLetter.objects.all().delete()

    assert outcome_of(receipt).status is MessageStatus.DROPPED


def test_the_outcome_of_a_command_that_was_called_immediately(registry, journal):
    """The journal knows it by its id: handled, or failed with its caller's error."""
    ids = []

    @command_handler("outcomes.direct")
    def direct(fails: bool, message_id: Annotated[UUID, Header("message_id")]) -> None:
        ids.append(message_id)
        if fails:
            raise Jammed("now")

    registry.add(direct)
    registry.command_bus.dispatch(False, route="outcomes.direct")
    with pytest.raises(Jammed):
        registry.command_bus.dispatch(True, route="outcomes.direct")

    handled, failed = map(outcome_of, ids)
    assert handled.status is MessageStatus.HANDLED
    assert (failed.status, failed.error) == (MessageStatus.FAILED, "Jammed: now")


def test_an_event_has_the_outcome_that_needs_most_attention(journal):
    """One handler was called, and the other one failed: the event has failed."""

    @event_handler(name="outcomes.well", channel="outbox")
    def well(event: Printed) -> None: ...

    @event_handler(name="outcomes.badly", channel="outbox", retry=Retry(delay=60))
    def badly(event: Printed) -> None:
        raise Jammed

    registry = registry_of(well, badly)
    registry.event_bus.publish(Printed())
    message_id = OutboxMessage.objects.first().message_id
    work(registry)

    outcome = outcome_of(message_id)
    assert (outcome.status, outcome.endpoint) == (
        MessageStatus.FAILED,
        "outcomes.badly",
    )


def test_an_id_is_enough(registry):
    """It may have been stored as text, or come from a client."""
    receipt = registry.command_bus.send(Print())

    for given in (receipt, receipt.message_id, str(receipt.message_id)):
        assert outcome_of(given).status is MessageStatus.WAITING
    assert outcome_of(uuid4()).status is MessageStatus.UNKNOWN


def test_async_code_asks_in_the_thread_of_the_database(registry):
    """It gets the same outcome, of what its caller has not committed as well."""
    receipt = registry.command_bus.send(Print())
    ask = async_to_sync(aoutcome_of)

    assert ask(receipt) == outcome_of(receipt)
    assert ask(str(receipt), using="default").status is MessageStatus.WAITING
    with pytest.raises(InvalidOption, match="no database 'elsewhere' in DATABASES"):
        ask(receipt, using="elsewhere")
    assert signature(aoutcome_of) == signature(outcome_of)


@pytest.mark.parametrize("given", ["lamp", "", 7, None, b"x"])
def test_what_is_no_id_is_refused(given):
    """One error says what is taken."""
    with pytest.raises(InvalidOption, match=r"outcome_of\(\) takes a receipt"):
        outcome_of(given)


def test_a_receipt_of_another_project_is_refused():
    """Its database is not one of this project."""
    receipt = Receipt(uuid4(), "shop.pay", "mail", "elsewhere")

    with pytest.raises(InvalidOption, match="no database 'elsewhere' in DATABASES"):
        outcome_of(receipt)
