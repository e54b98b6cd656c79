"""Schedules in a flow: they fire by the time that the test lets pass."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs import CommandBus, Header, command_handler
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.schedules import cron, every, scheduled
from django_cqrs.schedules.models import Schedule
from django_cqrs.schedules.operations import pause, resume
from django_cqrs.testing import Flow, scenario
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)
DUE = Annotated[datetime, Header("schedule_due_at")]
MISSED = Annotated[int, Header("schedule_missed")]


@pytest.fixture
def at_noon():
    with time_machine.travel(NOON, tick=False):
        yield


def note(text, number=0):
    Note.objects.create(text=text, number=number)


@scheduled(cron("30 2 * * *", timezone="Europe/Berlin"))
@command_handler("flow.nightly", name="flow.nightly", channel="outbox")
def nightly(due: DUE, missed: MISSED) -> None:
    note(f"night {due:%d %H:%M}", missed)


@scheduled(every(hours=6), missed="all")
@command_handler("flow.quarterly", name="flow.quarterly", channel="outbox")
def quarterly(due: DUE) -> None:
    note(f"quarter {due:%d %H}")


@scheduled(every(minutes=5), missed="skip")
@command_handler("flow.poll", name="flow.poll", channel="outbox")
def poll(due: DUE) -> None:
    note(f"poll {due:%H:%M}")


@command_handler("flow.later", name="flow.later", channel="outbox")
def later() -> None:
    note("later")


def flow_of(*handlers, **options):
    return Flow(registry=registry_of(*handlers), **options)


def notes():
    return list(Note.objects.order_by("pk").values_list("text", "number"))


def texts():
    return [text for text, _ in notes()]


@pytest.mark.database
@pytest.mark.usefixtures("at_noon")
def test_schedules_that_the_time_has_passed_fire_when_the_flow_settles():
    """After advance() they do what workers do after an outage; at once they do nothing. [K02.1]"""
    with flow_of(nightly, quarterly, poll) as flow:
        flow.settle()
        assert notes() == []
        flow.advance(days=3)
        assert notes() == []
        tree = flow.settle()
        flow.settle()

    quarters = [text for text in texts() if text.startswith("quarter")]
    assert quarters[0] == "quarter 28 18"
    assert len(quarters) == 3 * 4
    assert ("night 31 02:30", 2) in notes()
    assert texts().count("poll 12:00") == 1  # in time: the one of this very moment
    assert len(notes()) == 3 * 4 + 1 + 1
    assert len(tree) == len(notes())


@pytest.mark.database
def test_schedules_fire_when_time_passes_for_messages_and_keep_no_flow_awake():
    """A delay lets them fall due; without one, settle() lets no time pass. [K02.1]"""

    @command_handler
    def begin(command: int, commands: CommandBus) -> None:
        commands.send(None, route="flow.later", delay=timedelta(hours=20))

    with flow_of(begin, later, nightly) as flow:
        flow.settle()
        flow.registry.command_bus.dispatch(1)
        flow.settle(horizon=timedelta(hours=19))
        assert notes() == []
        flow.settle()
        flow.advance(hours=4)
        flow.settle()

    assert sorted(text[:5] for text in texts()) == ["later", "night"]


@pytest.mark.database
@pytest.mark.usefixtures("at_noon")
def test_a_day_can_pass_with_each_schedule_at_its_times():
    """schedules="upcoming" lets the horizon pass, as with workers that run all day. [K02.1]"""
    with flow_of(nightly, quarterly) as flow:
        flow.settle(schedules="upcoming", horizon=timedelta(hours=20))

    assert notes() == [
        ("quarter 28 18", 0),
        ("quarter 29 00", 0),
        ("night 29 03:00", 0),  # the clocks go forward at two
        ("quarter 29 06", 0),
    ]


@pytest.mark.usefixtures("at_noon")
def test_upcoming_schedules_end_with_the_horizon_and_with_the_limit():
    """A shorter horizon has fewer times; too many are an error that says what to do."""
    with flow_of(poll) as flow:
        flow.settle(schedules="upcoming", horizon=timedelta(minutes=11))
        assert texts() == ["poll 12:05", "poll 12:10"]
        flow.limit = 20
        with pytest.raises(AssertionError, match=r"raise flow\.limit"):
            flow.settle(schedules="upcoming")
        flow.limit = 1000
        flow.settle()
        with pytest.raises(InvalidOption, match=r"settle\(schedules=\.\.\.\) is"):
            flow.settle(schedules="all")


@pytest.mark.usefixtures("at_noon")
def test_a_clock_that_the_test_moves_makes_schedules_due():
    """time-machine does what advance() does, from the first settle() on."""
    with flow_of(nightly) as flow:
        flow.settle()
        with time_machine.travel(NOON + timedelta(days=1), tick=False):
            flow.settle()

    assert notes() == [("night 29 03:00", 0)]


@pytest.mark.usefixtures("at_noon")
def test_a_paused_schedule_sends_nothing_and_a_resumed_one_makes_up_for_nothing():
    """As in production: it waits for its next time."""
    with flow_of(quarterly) as flow:
        flow.settle()
        pause("flow.quarterly", registry=flow.registry)
        flow.settle(schedules="upcoming")
        assert notes() == []
        with time_machine.travel(NOON + timedelta(days=1), tick=False):
            resume("flow.quarterly", registry=flow.registry)
        flow.settle()
        flow.settle(schedules="upcoming", horizon=timedelta(hours=7))

    assert texts() == ["quarter 29 18"]


@pytest.mark.usefixtures("at_noon")
def test_the_exception_of_a_schedule_reaches_the_test():
    """Its function's, unchanged; the other schedules fire nevertheless. [K02.1]"""

    def no_payload(due):
        raise ZeroDivisionError

    @scheduled(cron("0 13 * * *", timezone="UTC"), payload=no_payload)
    @command_handler("flow.broken", name="flow.broken", channel="outbox")
    def broken(command: int) -> None: ...

    with flow_of(broken, quarterly) as flow:
        flow.advance(hours=7)
        with pytest.raises(ZeroDivisionError):
            flow.settle()

    assert texts() == ["quarter 28 18"]
    assert Schedule.objects.get(name="flow.broken").failures == 1


def test_a_flow_of_handlers_without_a_schedule_asks_for_none():
    """Its registry alone counts, and not what other code has scheduled."""
    with flow_of(later) as flow:
        flow.settle()
        flow.advance(hours=1)
        with CaptureQueriesContext(connection) as queries:
            flow.settle()

    assert not any("schedules_schedule" in each["sql"] for each in queries)
    assert not Schedule.objects.exists()


@pytest.mark.usefixtures("at_noon")
def test_eager_channels_handle_scheduled_commands_at_once():
    """What is due is handled inside settle(), without a row in the outbox."""
    with flow_of(quarterly, eager=True) as flow:
        flow.advance(hours=7)
        flow.settle()

    assert texts() == ["quarter 28 18"]
    assert not OutboxMessage.objects.exists()


@pytest.mark.usefixtures("at_noon")
def test_scenarios_fire_no_schedule():
    """What a project does each night is not part of what a message leads to."""
    with Flow(registry=registry_of(quarterly)) as flow:
        scenario(registry=flow.registry).after(days=2).nothing()

    assert notes() == []
