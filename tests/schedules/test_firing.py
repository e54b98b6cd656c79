"""Schedules send their commands: when, with which headers, and each once."""

from datetime import datetime, timedelta
from threading import Barrier
from typing import Annotated

import pytest
import time_machine
from django.db import OperationalError, connection

from django_cqrs import (
    CommandBus,
    Header,
    Headers,
    Registry,
    Retry,
    command_handler,
    service,
)
from django_cqrs.channels import channels
from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage
from django_cqrs.schedules import cron, every, scheduled
from django_cqrs.schedules.attendant import OVERDUE
from django_cqrs.schedules.firing import Firer
from django_cqrs.schedules.models import Schedule
from django_cqrs.schedules.operations import pause, resume
from tests.outbox.support import (
    at_once,
    on_databases,
    rows,
    work,
)
from tests.schedules.support import (
    MINUTE,
    SECOND,
    Purge,
    clock_of,
    due_since,
    dues,
    firings,
    look,
    missed,
    next_of,
    now,
    row_of,
    schedule_of,
    scheduled_registry,
)

pytestmark = on_databases


# Firing -----------------------------------------------------------------------------


def test_s01_1_a_cron_and_an_interval_fire_at_their_times():
    """Each at its own, with the due time as an aware datetime; the payload gets it. [S01.1]"""
    seen = []

    @scheduled(cron("0 6 * * *", timezone="Europe/Berlin"))
    @command_handler("daily", name="daily", channel="outbox")
    def daily(due: Annotated[datetime, Header("schedule_due_at")], headers: Headers):
        seen.append((due, headers["schedule_name"], headers["schedule_missed"]))

    @scheduled(every(hours=1), payload=lambda due: Purge(due - timedelta(days=30)))
    @command_handler(name="purge", channel="outbox")
    def purge(command: Purge, due: Annotated[datetime, Header("schedule_due_at")]):
        seen.append((command.before, due))

    registry = registry_of_handlers(daily, purge)
    look(registry)
    assert rows() == []
    first = due_since(timedelta(days=1), registry, "daily")
    second = due_since(timedelta(hours=1), registry, "purge")
    look(registry)
    assert work(registry).handled == 2

    at, plain = sorted(seen, key=len, reverse=True)
    assert at == (first, "daily", 0)
    assert at[0].utcoffset() in (timedelta(hours=1), timedelta(hours=2))
    assert plain == (second - timedelta(days=30), second)
    assert next_of("purge") == second + timedelta(hours=1)
    assert next_of("daily") > now()


def registry_of_handlers(*handlers):
    registry = Registry()
    for each in handlers:
        registry.add(each)
    return registry


def test_schedules_of_methods():
    """A service's method, and a factory of an aggregate, are command handlers as well. [S01.1]"""
    seen = []

    @service
    class Reports:
        @scheduled(every(minutes=1))
        @command_handler("report.send", name="report.send", channel="outbox")
        def send(self) -> None:
            seen.append("service")

    registry = registry_of_handlers(Reports)
    look(registry)
    due_since(MINUTE, registry, "report.send")
    look(registry)
    work(registry)

    assert seen == ["service"]


def test_s01_2_one_handler_has_several_schedules():
    """By their names, each with its own times, payload and headers. [S01.2]"""
    seen = []

    @scheduled(every(minutes=1), name="often", payload="a", headers={"desk": "x"})
    @scheduled(every(hours=1), name="seldom", payload="b")
    @command_handler("tick", channel="outbox")
    def tick(text: str, headers: Headers):
        seen.append((headers["schedule_name"], text, headers.get("desk")))

    registry = registry_of_handlers(tick)
    look(registry)
    due_since(MINUTE, registry, "often")
    due_since(timedelta(hours=1), registry, "seldom")
    look(registry)
    work(registry)

    assert sorted(seen) == [("often", "a", "x"), ("seldom", "b", None)]


def test_headers_may_depend_on_the_due_time():
    """They are a mapping, or a function that returns one. [S01.2]"""
    registry = scheduled_registry(
        every(minutes=1), headers=lambda due: {"day": due.date().isoformat()}
    )
    look(registry)
    due = due_since(MINUTE, registry)
    look(registry)

    [found] = firings()
    assert found["day"] == due.date().isoformat()


@pytest.mark.parametrize("is_paused", [False, True])
def test_s01_3_a_renamed_schedule_keeps_its_row(is_paused):
    """aliases= names the former ones: what was due is due, and what was paused is paused. [S01.3]"""
    look(scheduled_registry(every(hours=1), name="old"))
    Schedule.objects.update(is_paused=is_paused)
    key, next_at = row_of("old").pk, next_of("old")
    registry = scheduled_registry(every(hours=1), name="new", aliases=["older", "old"])
    look(registry)

    assert Schedule.objects.count() == 1
    assert (row_of("new").pk, next_of("new")) == (key, next_at)
    assert row_of("new").is_paused is is_paused


def test_s01_3_the_spread_of_a_renamed_schedule_goes_by_its_new_name():
    """The firing that was due still is, by the time of the new name. [S01.3, S01.6]"""
    options = {"spread": timedelta(hours=1)}
    old = scheduled_registry(every(days=1), name="old", **options)
    look(old)
    new = scheduled_registry(every(days=1), name="new", aliases="old", **options)
    look(new)

    moved = schedule_of(new, "new").shift - schedule_of(old, "old").shift
    assert moved
    assert next_of("new") == schedule_of(old, "old").next_after(now()) + moved


def test_s01_4_a_new_schedule_does_not_fire_at_once():
    """It waits for its first time. [S01.4]"""
    registry = scheduled_registry(every(hours=1))
    began = now()
    look(registry)
    look(registry)

    assert rows() == []
    assert began < next_of() <= began + timedelta(hours=1, minutes=1)


def test_s01_5_a_restart_delays_nothing():
    """An interval is counted from the epoch, so the row of before counts. [S01.5]"""
    registry = scheduled_registry(every(minutes=5))
    look(registry)
    before = next_of()
    look(registry)

    assert next_of() == before
    assert before.minute % 5 == 0
    assert before.second == before.microsecond == 0


def test_s01_6_spread_moves_each_firing_by_the_same_time():
    """Within its bound, by the name; the due time that handlers get is that of the timetable. [S01.6]"""
    shifts = set()
    for number in range(20):
        registry = scheduled_registry(every(days=1), name=f"s{number}", spread=600)
        shift = schedule_of(registry, f"s{number}").shift
        again = scheduled_registry(every(days=1), name=f"s{number}", spread=600)
        assert schedule_of(again, f"s{number}").shift == shift
        assert timedelta() <= shift < timedelta(seconds=600)
        shifts.add(shift)
    assert len(shifts) == 20

    registry = scheduled_registry(every(minutes=1), spread=timedelta(hours=1))
    look(registry)
    first = due_since(MINUTE, registry)
    look(registry)

    [due] = dues()
    assert due == first - schedule_of(registry).shift
    assert due.second == due.microsecond == 0
    assert next_of() == first + MINUTE


@pytest.mark.parametrize("enabled", [False, lambda: False])
def test_s01_8_a_schedule_that_is_not_enabled_moves_on(enabled):
    """It sends nothing, and makes up for nothing when it is. [S01.8]"""
    registry = scheduled_registry(every(hours=1), enabled=enabled)
    look(registry)
    due_since(timedelta(hours=3), registry)
    look(registry)

    assert rows() == []
    assert next_of() > now()
    look(scheduled_registry(every(hours=1)))
    assert rows() == []


def test_s01_8_a_callable_decides_at_each_due_time():
    """As a flag does that is switched while workers run. [S01.8]"""
    is_on = []
    registry = scheduled_registry(every(hours=1), enabled=lambda: bool(is_on))
    clock = clock_of(registry)
    clock.look()
    for expected in (0, 1):
        due_since(timedelta(hours=1), registry)
        clock.look()
        assert len(rows()) == expected
        is_on.append(True)


def test_s01_8_starts_and_ends_bound_the_times():
    """An interval is counted from its start; after the end nothing is due. [S01.8]"""
    start = now().replace(microsecond=0) - timedelta(minutes=150)
    registry = scheduled_registry(
        every(hours=1), starts=start, ends=start + timedelta(hours=3), missed="all"
    )
    look(registry)
    assert next_of() == start + timedelta(hours=3)
    Schedule.objects.update(next_at=start)
    look(registry)

    assert dues() == [start + timedelta(hours=number) for number in range(3)]
    assert next_of() == start + timedelta(hours=3)
    later = scheduled_registry(every(hours=1), ends=start, name="over")
    look(later)
    assert next_of("over") is None
    coming = scheduled_registry(
        cron("0 * * * *"), starts=start + timedelta(days=9), name="coming"
    )
    look(coming)
    assert next_of("coming") >= start + timedelta(days=9)


def test_s01_9_the_headers_are_not_passed_on():
    """They are about this command, and not about those that it causes. [S01.9]"""
    seen = {}

    @scheduled(every(minutes=1), headers={"desk": "x"})
    @command_handler("tick", name="tick", channel="outbox")
    def tick(headers: Headers, bus: CommandBus):
        seen["tick"] = dict(headers)
        bus.dispatch(route="next")

    @command_handler("next", channel="outbox")
    def later(headers: Headers):
        seen["next"] = dict(headers)

    registry = registry_of_handlers(tick, later)
    look(registry)
    due_since(MINUTE, registry)
    look(registry)
    work(registry)

    assert {name for name in seen["tick"] if name.startswith("schedule_")} == {
        "schedule_name",
        "schedule_due_at",
        "schedule_missed",
    }
    assert not [name for name in seen["next"] if name.startswith("schedule_")]
    assert seen["next"]["desk"] == "x"


# Once -------------------------------------------------------------------------------


def test_s02_2_of_two_that_see_a_due_row_one_fires():
    """Both have read the row before either changes it. [S02.2, S02.8]"""
    registry = scheduled_registry(every(hours=1))
    look(registry)
    due_since(timedelta(hours=1), registry)
    schedule = schedule_of(registry)
    seen = Barrier(2)

    def fire():
        row, moment = row_of(), now()
        connection.close()
        seen.wait()
        return Firer(registry).fire_due(schedule, row, moment) is not None

    for _ in range(5):
        OutboxMessage.objects.all().delete()
        due_since(timedelta(hours=1), registry)
        assert sorted(at_once(fire, 2)) == [False, True]
        assert len(rows()) == 1


def test_s02_3_the_clock_of_the_database_counts():
    """A worker whose own clock is five minutes fast or slow fires nothing early, and nothing twice. [S02.3]"""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no clock of its own.")
    registry = scheduled_registry(every(hours=1))
    look(registry)
    next_at = next_of()
    for minutes in (-5, 5):
        with time_machine.travel(next_at + timedelta(minutes=minutes), tick=True):
            look(registry)
        assert rows() == []
        assert next_of() == next_at
    due_since(timedelta(hours=1), registry)
    for minutes in (-5, 5):
        with time_machine.travel(now() + timedelta(minutes=minutes), tick=True):
            look(registry)
    assert len(rows()) == 1


def test_s02_4_a_clock_that_goes_back_fires_nothing_twice(monkeypatch):
    """The next time was stored, whatever the clock of the database says then. [S02.4]"""
    registry = scheduled_registry(every(hours=1))
    look(registry)
    due_since(timedelta(hours=1), registry)
    look(registry)
    # As an hour earlier: what is stored lies an hour further ahead.
    later = next_of() + timedelta(hours=1)
    Schedule.objects.update(next_at=later)
    look(registry)

    assert len(rows()) == 1
    assert next_of() == later


def test_s02_6_a_dead_message_does_not_end_its_schedule():
    """The next one is sent all the same. [S02.6]"""

    @scheduled(every(minutes=1))
    @command_handler("tick", name="tick", channel="outbox", retry=Retry(attempts=1))
    def tick():
        raise ArithmeticError

    registry = registry_of_handlers(tick)
    for _ in range(2):
        look(registry)
        due_since(MINUTE, registry)
        look(registry)
        work(registry)

    assert DeadLetter.objects.count() == 2
    assert row_of().failures == 0


def test_s02_7_a_firing_that_is_not_committed_is_still_due(monkeypatch):
    """The transaction fails at its end; the next look fires. [S02.7]"""
    registry = scheduled_registry(every(hours=1))
    clock = clock_of(registry)
    clock.look()
    first = due_since(timedelta(hours=1), registry)
    write = type(channels["outbox"]).write

    def fail(self, *arguments):
        write(self, *arguments)
        raise OperationalError("the server is gone")

    monkeypatch.setattr(type(channels["outbox"]), "write", fail)
    with pytest.raises(OperationalError):
        clock.look()
    assert rows() == []
    assert next_of() == first
    assert row_of().failures == 0
    monkeypatch.undo()
    clock.look()
    assert dues() == [first]


# Missed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "wanted"), [("latest", [9]), ("all", [0] * 10), ("skip", [])]
)
def test_s03_1_what_was_missed(how, wanted):
    """No worker for ten periods: one command for all, ten in order, or none. [S03.1]"""
    registry = scheduled_registry(every(hours=1), missed=how)
    look(registry)
    first = due_since(timedelta(hours=10), registry)
    Schedule.objects.update(next_at=first)
    # Whatever the time is now: the last one is missed as well.
    registry = scheduled_registry(every(hours=1), missed=how, grace=0)
    look(registry)

    assert missed() == wanted
    periods = [first + timedelta(hours=number) for number in range(10)]
    assert dues() == {"latest": periods[-1:], "all": periods, "skip": []}[how]
    assert next_of() == periods[-1] + timedelta(hours=1)


def test_s03_1_the_present_time_stands_for_the_missed_ones():
    """Of ten times the last is not late: it says that it stands for nine more. [S03.1]"""
    wanted = {"latest": [9], "all": [0] * 10, "skip": [0]}
    for how, counts in wanted.items():
        OutboxMessage.objects.all().delete()
        registry = scheduled_registry(
            every(hours=1), missed=how, grace=timedelta(hours=1), name=how
        )
        look(registry)
        due_since(timedelta(hours=10), registry, how)
        look(registry)
        assert missed() == counts


def test_s03_2_a_little_late_is_not_missed():
    """Within grace= every time is fired, also several. [S03.2]"""
    registry = scheduled_registry(every(seconds=1), missed="skip")
    look(registry)
    OutboxMessage.objects.all().delete()  # a second may have begun
    first = due_since(5 * SECOND, registry)
    look(registry)

    assert len(dues()) >= 5
    assert dues()[:5] == [first + number * SECOND for number in range(5)]
    assert set(missed()) == {0}


def test_s03_4_a_paused_schedule_makes_up_for_nothing():
    """Resumed, it waits for its next time. [S03.4]"""
    registry = scheduled_registry(every(hours=1), missed="all")
    clock = clock_of(registry)
    clock.look()
    pause("tick", registry=registry)
    due_since(timedelta(hours=10), registry)
    clock.look()
    assert rows() == []
    resume("tick", registry=registry)
    clock.look()
    clock.look()

    assert rows() == []
    assert next_of() > now()


def test_s03_5_a_changed_timetable_is_counted_from_now():
    """It makes up for nothing of the former one. [S03.5]"""
    look(scheduled_registry(every(hours=1), missed="all"))
    due_since(timedelta(hours=10), scheduled_registry(every(hours=1)))
    look(scheduled_registry(every(hours=2), missed="all"))

    assert rows() == []
    assert next_of() > now()
    assert next_of().hour % 2 == 0


def test_s03_6_a_schedule_that_left_the_code_never_fires():
    """Its row is marked, and says since when. [S03.6]"""
    gone = scheduled_registry(every(hours=1), name="gone")
    look(gone)
    due_since(timedelta(hours=1), gone, "gone")
    look(scheduled_registry(every(hours=1)))

    assert rows() == []
    assert row_of("gone").vanished_at is not None
    assert row_of("tick").vanished_at is None
    look(gone)  # it is back
    assert row_of("gone").vanished_at is None


def test_s03_7_the_code_of_the_last_start_counts():
    """Older code leaves a row alone, unless nobody has fired it for a minute. [S03.7]"""
    old = scheduled_registry(every(minutes=1))
    new = scheduled_registry(every(hours=1))
    clocks = clock_of(old), clock_of(new)
    for clock in clocks:
        clock.look()
    assert next_of().minute == 0

    due = due_since(timedelta(hours=1), new)
    Schedule.objects.update(next_at=now() - OVERDUE + 5 * SECOND)
    clocks[0].look()
    assert rows() == []

    Schedule.objects.update(next_at=now() - OVERDUE - 30 * SECOND)
    clocks[0].look()
    assert len(rows()) >= 1
    assert row_of().fingerprint == schedule_of(old).fingerprint
    look(new)  # the next start of the newer code
    assert row_of().fingerprint == schedule_of(new).fingerprint
    assert next_of().minute == 0
    assert due


# Overlap ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting", "retried later", "being handled"])
def test_s04_1_no_command_while_one_is_not_handled(settings, state):
    """The journal says that the firing was skipped. [S04.1]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": 60}
    fails, clocks = [True], []

    @scheduled(every(minutes=1), overlap="skip")
    @command_handler(
        "tick", name="tick", channel="outbox", retry=Retry(attempts=3, delay=600)
    )
    def tick():
        if state == "being handled" and len(clocks) == 1:
            clocks.append(None)
            fire_beside()
        if state == "retried later" and fails:
            raise ArithmeticError

    registry = registry_of_handlers(tick)

    def fire():
        due_since(MINUTE, registry)
        look(registry)

    def fire_beside():
        at_once(fire, 1)

    look(registry)
    fire()
    assert len(rows()) == 1
    if state == "being handled":
        if connection.vendor == "sqlite":
            pytest.skip("A handler holds the only lock of SQLite.")
        clocks.append(None)
        work(registry)
        assert len(rows()) == 0
    else:
        if state == "retried later":
            work(registry)
        fire()
        assert len(rows()) == 1
    found = JournalEntry.objects.filter(outcome="skipped")
    assert [(each.endpoint, each.channel, each.attempts) for each in found] == [
        ("tick", "outbox", 0)
    ]
    assert next_of() > now()


def test_s04_2_a_dead_letter_does_not_count():
    """The schedule fires again. [S04.2]"""

    @scheduled(every(minutes=1), overlap="skip")
    @command_handler("tick", name="tick", channel="outbox", retry=Retry(attempts=1))
    def tick():
        raise ArithmeticError

    registry = registry_of_handlers(tick)
    look(registry)
    for count in (1, 2):
        due_since(MINUTE, registry)
        look(registry)
        work(registry)
        assert DeadLetter.objects.count() == count
    assert row_of().open_messages != []


def test_s04_3_commands_may_overlap():
    """That is so unless overlap="skip" is given. [S04.3]"""
    registry = scheduled_registry(every(minutes=1))
    look(registry)
    for count in (1, 2):
        due_since(MINUTE, registry)
        look(registry)
        assert len(rows()) == count
