"""The clock of schedules in a worker: a thread beside its messages."""

import logging
import threading
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext

from django_cqrs import Registry, command_handler
from django_cqrs.attendants import duties_of
from django_cqrs.outbox.management.commands import cqrs_worker
from django_cqrs.outbox.worker.attending import Attending, Looks
from django_cqrs.schedules import every, scheduled
from django_cqrs.schedules.models import Schedule
from tests.limits import LIMIT
from tests.outbox.support import on_databases, rows, wait_until, worker_of
from tests.schedules.support import (
    clock_of,
    due_since,
    look,
    next_of,
    now,
    scheduled_registry,
)

pytestmark = on_databases


@pytest.fixture
def registry(monkeypatch):
    """The project's handlers: one with a schedule of every hour, which is due."""
    registry = scheduled_registry(every(hours=1))
    monkeypatch.setattr(cqrs_worker, "registry", registry)
    look(registry)
    due_since(timedelta(hours=1), registry)
    return registry


def run_worker(*arguments):
    call_command("cqrs_worker", "outbox", *arguments, verbosity=0)


def test_a_worker_that_stops_when_nothing_is_ready_looks_first(registry):
    """What is due is sent, and handled in the same run."""
    run_worker("--until-empty")

    assert rows() == []
    assert next_of() > now()


def test_s01_10_a_worker_without_schedules_fires_none(registry):
    """--no-schedules leaves the clock out. [S01.10]"""
    due = next_of()
    run_worker("--until-empty", "--no-schedules")

    assert rows() == []
    assert next_of() == due


def test_a_worker_fires_the_schedules_of_its_channels_and_its_database(registry):
    """Nothing runs for others, nor where no handler has a schedule."""
    assert clock_of(registry, channels=["mail"]) is None
    assert clock_of(registry, using="other") is None
    assert duties_of(Registry(), ["outbox"], "default") == []
    assert len(duties_of(registry, ["mail", "outbox"], "default")) == 1


def test_a_schedule_is_kept_in_the_database_of_its_handler():
    """Its row and its messages are there, since both are one transaction."""

    @scheduled(every(hours=1), name="elsewhere")
    @command_handler("tick", channel="outbox", using="other")
    def tick(): ...

    registry = Registry()
    registry.add(tick)
    clock = clock_of(registry, using="other")
    clock.look()
    due_since(timedelta(hours=1), registry, "elsewhere", using="other")
    clock.look()

    assert Schedule.objects.count() == 0
    assert rows() == []
    assert len(rows("other")) == 1


def test_s02_5_a_long_handler_delays_no_firing():
    """Every worker is busy, and firings are stored meanwhile. [S02.5]"""
    if connection.vendor == "sqlite":
        pytest.skip("A handler holds the only lock of SQLite.")
    is_handling, may_end = threading.Event(), threading.Event()

    @scheduled(every(seconds=1), grace=LIMIT)
    @command_handler("tick", name="tick", channel="outbox")
    def tick():
        is_handling.set()
        may_end.wait(LIMIT)

    registry = Registry()
    registry.add(tick)
    duties = duties_of(registry, ["outbox"], "default")
    workers = []

    def run():
        options = {"bounds": {"until_empty": False}, "batch": 1, "duties": duties}
        workers.append(worker_of(registry, **options))
        try:
            workers[0].run()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_handling.wait(LIMIT)
        before = len(rows())
        wait_until(lambda: len(rows()) >= before + 2)
    finally:
        workers[0].stop()
        may_end.set()
        thread.join(LIMIT)


def test_a_look_at_many_schedules_is_one_statement():
    """Of which none is due; the next look is as late as it may be."""
    registry = Registry()
    for number in range(1000):

        def tick(): ...

        handler = command_handler(f"t{number}", name=f"t{number}", channel="outbox")
        registry.add(scheduled(every(weeks=1000, hours=number))(handler(tick)))
    clock = clock_of(registry)
    clock.look()
    assert Schedule.objects.count() == 1000

    with CaptureQueriesContext(connection) as asked:
        seconds = clock.look()

    assert len(asked) == 1
    assert seconds > 1


def test_the_next_look_is_when_something_is_due():
    """Or a few seconds later, to notice what was resumed."""
    registry = scheduled_registry(every(hours=1))
    clock = clock_of(registry)
    clock.look()
    Schedule.objects.update(next_at=now() + timedelta(seconds=2))
    assert 0 < clock.look() < 2
    Schedule.objects.update(next_at=now() + timedelta(seconds=300))
    assert 2 < clock.look() <= 5


# The thread -------------------------------------------------------------------------


class Fake:
    """A duty that counts its looks, and fails at some of them."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.looks = 0
        self.used = []

    def look(self):
        self.looks += 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        self.used.append(connections["default"])
        if self.errors:
            raise self.errors.pop(0)
        return 0.001


@pytest.fixture
def attend(monkeypatch):
    """Run a duty until it has looked some times."""
    monkeypatch.setattr(Looks, "first_pause", 0.001)

    def attend(duty, looks):
        attending = Attending(duty)
        attending.start()
        try:
            attending.await_look()
            wait_until(lambda: duty.looks >= looks)
        finally:
            attending.stop()

    return attend


def test_each_look_has_a_connection_of_its_own(attend):
    """It is closed afterwards, so that an idle worker holds one."""
    duty = Fake()
    attend(duty, 3)

    assert all(each is not connections["default"] for each in duty.used)
    assert all(each.connection is None for each in duty.used)


def test_an_unavailable_database_is_logged_once(attend, caplog):
    """In one line, until it is back; then the duty goes on."""
    gone = OperationalError("gone\nfor now")
    with caplog.at_level(logging.WARNING, "django_cqrs.worker"):
        attend(Fake(gone, gone, gone), 5)

    [record] = caplog.records
    assert record.getMessage() == (
        "Fake could not look at the database (OperationalError: gone for now); it "
        "tries again"
    )


def test_any_other_failure_is_logged_and_the_duty_goes_on(attend, caplog):
    """Nothing that an app does wrong ends the worker."""
    with caplog.at_level(logging.ERROR, "django_cqrs.worker"):
        attend(Fake(ArithmeticError("wrong")), 3)

    [record] = caplog.records
    assert record.getMessage() == "Fake failed"
    assert "ArithmeticError: wrong" in caplog.text
