"""Schedules whose functions raise, and times that nobody could make up for."""

import logging
from datetime import datetime, timedelta

import pytest
from django.db import OperationalError, connection

from django_cqrs import Registry, command_handler
from django_cqrs.interception import STOP, pointcut, pre_send
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.schedules import every, planning, scheduled
from django_cqrs.schedules.planning import plan_of
from tests.outbox.support import on_databases, rows
from tests.schedules.support import (
    Purge,
    clock_of,
    due_since,
    dues,
    look,
    next_of,
    now,
    row_of,
    schedule_of,
    scheduled_registry,
)

pytestmark = on_databases


def fail(*arguments):
    raise ArithmeticError("no\nnumber")


def fail_in_sql(due):
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")


def be_away(due):
    raise OperationalError("the other server is gone")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"headers": fail}, "ArithmeticError: no number"),
        ({"enabled": fail}, "ArithmeticError: no number"),
        ({"headers": lambda due: {"delay": 1}}, "InvalidHeader: The header 'delay'"),
        ({"headers": lambda due: 5}, "InvalidHeader: headers= takes a mapping"),
        ({"headers": be_away}, "OperationalError: the other server is gone"),
        ({"headers": fail_in_sql}, "Error: "),
    ],
    ids=["headers", "enabled", "reserved", "no headers", "away", "sql"],
)
def test_s06_4_a_function_that_raises_is_noted_and_the_next_time_tried(
    caplog, options, said
):
    """It is logged, counted and shown; the schedule goes on. [S06.4]"""
    registry = scheduled_registry(every(hours=1), **options)
    clock = clock_of(registry)
    clock.look()
    for count in (1, 2):
        due_since(timedelta(hours=1), registry)
        with caplog.at_level(logging.ERROR, "django_cqrs.schedules"):
            clock.look()
        assert row_of().failures == count
    assert rows() == []
    assert said in row_of().error
    assert "\n" not in row_of().error
    assert row_of().failed_at is not None
    assert next_of() > now()
    assert [record.getMessage() for record in caplog.records] == (
        ["Schedule tick could not send its command"] * 2
    )

    look(scheduled_registry(every(hours=1)))
    due_since(timedelta(hours=1), registry)
    look(scheduled_registry(every(hours=1)))
    assert (row_of().failures, row_of().error) == (0, "")
    assert len(rows()) == 1


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (lambda due: Purge("never"), "MessageConversionError"),
        (lambda due: 5, "MessageConversionError"),
        (lambda due: None, "MessageConversionError"),
        (fail, "ArithmeticError"),
    ],
    ids=["a wrong field", "another type", "nothing", "an error"],
)
def test_s06_4_a_payload_that_does_not_fit_is_a_failure(payload, said):
    """As that of any sender, and the next time is tried. [S06.4]"""

    @scheduled(every(hours=1), payload=payload)
    @command_handler(name="tick", channel="outbox")
    def purge(command: Purge): ...

    registry = Registry()
    registry.add(purge)
    look(registry)
    due_since(timedelta(hours=1), registry)
    look(registry)

    assert rows() == []
    assert said in row_of().error
    assert next_of() > now()


def test_one_that_fails_keeps_no_other_from_firing():
    """Each schedule has transactions of its own. [S06.4]"""
    registry = scheduled_registry(every(hours=1), every(hours=1), headers=None)
    broken = scheduled_registry(every(hours=1), name="broken", key="b", headers=fail)
    for each in broken.routes.endpoints:
        registry.add(each.function)
    clock = clock_of(registry)
    clock.look()
    for name in ("tick", "tick1", "broken"):
        due_since(timedelta(hours=1), registry, name)
    clock.look()

    assert len(rows()) == 2
    assert row_of("broken").failures == 1


def test_a_stopped_command_is_not_a_failure():
    """An interceptor may stop it, as that of any sender; the schedule moves on."""
    registry = scheduled_registry(every(hours=1))
    stopped = []

    @pre_send(pointcut.handler("*"))
    def stop(payload):
        stopped.append(payload)
        return STOP

    registry.add(stop)
    look(registry)
    due_since(timedelta(hours=1), registry)
    look(registry)

    assert stopped == [None]
    assert rows() == []
    assert (row_of().failures, row_of().message_id) == (0, None)
    assert next_of() > now()


# Bounds -----------------------------------------------------------------------------


def test_s03_3_no_more_than_so_many_are_made_up_for(monkeypatch, caplog):
    """ "all" after long: the newest, in order, and the log says so. [S03.3]"""
    monkeypatch.setattr(planning, "MOST", 20)
    registry = scheduled_registry(every(seconds=1), missed="all", grace=0)
    look(registry)
    OutboxMessage.objects.all().delete()  # a second may have begun
    due_since(timedelta(days=365), registry)
    with caplog.at_level(logging.WARNING, "django_cqrs.schedules"):
        look(registry)

    found = dues()
    assert len(found) == 20
    assert found == sorted(found)
    assert found[-1] - found[0] == timedelta(seconds=19)
    assert next_of() > found[-1]
    assert "Schedule tick has missed more than" in caplog.text


@pytest.mark.parametrize("how", ["latest", "all", "skip"])
def test_s03_3_a_year_of_minutes_is_bounded(how):
    """10,000 at most are made up for, or counted; finding them reads no year. [S03.3]"""
    registry = scheduled_registry(every(minutes=1), missed=how, grace=0)
    schedule = schedule_of(registry)
    end = datetime.fromisoformat("2026-07-01T12:00:30+00:00")
    plan = plan_of(schedule, end - timedelta(days=365), end)

    last = end.replace(second=0)
    assert plan.next_at == last + timedelta(minutes=1)
    found = [(each.due, each.missed) for each in plan.firings]
    assert (
        found[-1:]
        == {
            "latest": [(last, 9_999)],
            "all": [(last, 0)],
            "skip": [],
        }[how]
    )
    assert len(found) == {"latest": 1, "all": 10_000, "skip": 0}[how]
    assert plan.is_cut is (how != "skip")
