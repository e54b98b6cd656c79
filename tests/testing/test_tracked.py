"""Real workers beside a test, and what they did."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.db import connections, transaction

from django_cqrs import EventBus, Retry, event_handler, message
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.worker import Worker
from django_cqrs.testing import Flow
from tests.limits import LIMIT
from tests.outbox.support import wait_until
from tests.support import registry_of
from tests.testapp.models import Note


@message("tracked.placed")
@dataclass(frozen=True)
class Placed:
    number: int


@message("tracked.noted")
@dataclass(frozen=True)
class Noted:
    number: int


@event_handler(channel="outbox", name="tracked.note_it")
def note_it(event: Placed, events: EventBus) -> None:
    events.publish(Noted(event.number))


@event_handler(
    channel="outbox",
    name="tracked.write",
    retry=Retry(attempts=2, delay=0.01, jitter=False),
)
def write(event: Noted) -> None:
    Note.objects.create(text="noted", number=event.number)
    if event.number < 0:
        raise ValueError("negative")


@event_handler(channel="outbox", name="tracked.later", delay=3600)
def later(event: Noted) -> None:
    raise AssertionError


HANDLERS = (note_it, write, later)


@contextmanager
def worker_in_a_thread():
    """Run a worker beside the block, which ends with it: it knows nothing of a flow."""
    workers = []

    def run():
        try:
            worker = Worker(registry_of(*HANDLERS), ["outbox"], using="default")
            workers.append(worker)
            worker.run()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: workers)
    try:
        yield
    finally:
        workers[0].stop()
        thread.join(LIMIT)


@pytest.mark.database
@pytest.mark.long
@pytest.mark.django_db(transaction=True)
class TestTracked:
    def test_what_real_workers_did(self, settings):
        """It waits for them, and returns the tree, by the journal. [K02.3]"""
        settings.DJANGO_CQRS = {
            **settings.DJANGO_CQRS,
            "JOURNAL": timedelta(days=1),
        }
        with (
            worker_in_a_thread(),
            Flow(registry=registry_of(*HANDLERS)) as flow,
            flow.tracked(timeout=LIMIT) as tracked,
        ):
            assert str(tracked.tree) == "(nothing happened)"
            flow.registry.event_bus.publish(Placed(7))

        assert Note.objects.count() == 1
        assert str(tracked.tree) == (
            "event Placed(number=7)\n"
            "└─ tracked.note_it, from 'outbox'\n"
            "   └─ event tracked.noted\n"
            "      ├─ tracked.write, from 'outbox'\n"
            "      └─ tracked.later: waits in 'outbox'"
        )

    def test_a_failure(self):
        """A dead letter is in the tree, also without a journal. [K02.3]"""
        with (
            worker_in_a_thread(),
            Flow(registry=registry_of(*HANDLERS)) as flow,
            flow.tracked(timeout=LIMIT) as tracked,
        ):
            flow.registry.event_bus.publish(Noted(-1))

        assert (
            "├─ tracked.write, from 'outbox', attempt 2, "
            "failed with builtins.ValueError: "
        ) in str(tracked.tree)

    def test_its_time_limit(self):
        """Where no worker runs it fails, and names what waits. [K02.3]"""
        with (
            Flow(registry=registry_of(*HANDLERS)) as flow,
            pytest.raises(AssertionError) as raised,
            flow.tracked(timeout=0.05),
        ):
            flow.registry.event_bus.publish(Placed(7))

        assert str(raised.value).startswith(
            "Messages still wait after 0:00:00.050000: is a worker running?\n"
            "  tracked.placed for tracked.note_it in 'outbox'\n"
            "This is what happened:\nevent Placed(number=7)\n"
        )

    def test_inside_a_transaction(self):
        """Nobody else would see the messages, so it is refused at once."""
        flow = Flow(registry=registry_of(*HANDLERS))
        with (
            transaction.atomic(),
            pytest.raises(InvalidOption, match="a transaction is open on"),
            flow.tracked(),
        ):
            raise AssertionError
