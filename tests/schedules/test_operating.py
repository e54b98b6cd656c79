"""Operate schedules: by command, by admin, by health checks and by cqrs_prune."""

import json
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
import time_machine
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs import Registry, command_handler
from django_cqrs.buses import registries
from django_cqrs.exceptions import UnknownSchedule
from django_cqrs.outbox.health import find_problems
from django_cqrs.schedules import cron, every, scheduled
from django_cqrs.schedules.models import Schedule
from django_cqrs.schedules.operations import (
    ScheduleState,
    next_times,
    pause,
    resume,
    run_now,
    statuses,
)
from tests.outbox.support import on_databases, rows, work
from tests.schedules.support import (
    due_since,
    dues,
    firings,
    look,
    next_of,
    now,
    row_of,
    schedule_of,
    scheduled_registry,
)

pytestmark = [*on_databases, pytest.mark.urls("tests.outbox.desk_urls")]

PAGE = "/admin/django_cqrs_schedules/schedule/"


@pytest.fixture
def project(monkeypatch):
    """Let a registry be that of the project."""

    def be(registry):
        monkeypatch.setattr(registries, "registry", registry)
        return registry

    return be


@pytest.fixture
def hourly(project):
    """A project with one schedule, of every hour, that a worker has seen."""
    registry = project(scheduled_registry(every(hours=1)))
    look(registry)
    return registry


def run(*arguments):
    """Run the command; return what it prints."""
    stdout = StringIO()
    call_command("cqrs_schedules", *arguments, stdout=stdout)
    return stdout.getvalue()


# The command ------------------------------------------------------------------------


def test_s06_1_the_list_has_each_schedule_with_its_state(project):
    """Its next time in its zone, and what became of its last command. [S06.1]"""
    zone = "America/New_York"
    registry = scheduled_registry(
        cron("30 6 * * *", timezone=zone), every(hours=1), name="report"
    )
    project(registry)
    assert [each.state for each in statuses()] == ["new", "new"]
    gone = scheduled_registry(every(hours=1), name="gone")
    look(gone)
    look(registry)
    due_since(timedelta(hours=1), registry, "report1")
    look(registry)
    pause("report", by="ada")

    lines = run("list").splitlines()

    assert lines[0].split() == [
        *("Schedule", "State", "Next", "Last", "Outcome", "Timetable"),
    ]
    assert lines[2].split()[:2] == ["gone", "gone"]
    assert "paused by ada" in lines[3]
    assert lines[3].endswith(f"30 6 * * * {zone}")
    assert "active" in lines[4]
    assert "waiting" in lines[4]
    assert lines[4].endswith("every 1 hour UTC")
    work(registry)
    assert statuses()[2].state is ScheduleState.ACTIVE


def test_s06_1_the_list_as_json(hourly):
    """For a program: times with their offsets. [S06.1]"""
    due = due_since(timedelta(hours=1), hourly)
    look(hourly)
    document = json.loads(run("list", "--format", "json"))

    [found] = document["schedules"]
    assert document["version"] == 1
    assert found["name"] == "tick"
    assert found["state"] == "active"
    assert found["endpoint"] == "tick"
    assert found["channel"] == "outbox"
    assert found["timetable"] == "every 1 hour"
    assert found["zone"] == "UTC"
    assert datetime.fromisoformat(found["due_at"]) == due
    assert found["outcome"] == "waiting"
    assert len(found["next"]) == 3
    assert datetime.fromisoformat(found["next"][0]) == due + timedelta(hours=1)
    assert found["failures"] == 0
    assert found["message_id"] == str(rows()[0].message_id)


def test_s06_1_the_outcome_of_the_last_command(settings, project):
    """It waits, is handled, or is dead. [S06.1]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": 60}
    fails = []

    @scheduled(every(hours=1))
    @command_handler("tick", name="tick", channel="outbox")
    def tick():
        if fails:
            raise ArithmeticError

    registry = Registry()
    registry.add(tick)
    project(registry)
    look(registry)
    seen = []
    for _ in range(2):
        due_since(timedelta(hours=1), registry)
        look(registry)
        seen.append(statuses()[0].outcome)
        work(registry)
        seen.append(statuses()[0].outcome)
        fails.append(True)

    assert seen == ["waiting", "handled", "waiting", "failed"]


@time_machine.travel(datetime(2026, 10, 24, 12, tzinfo=UTC), tick=False)
def test_s06_1_the_next_times_are_in_the_zone_and_in_utc(project):
    """Also where the clock on the wall changes. [S06.1]"""
    project(
        scheduled_registry(cron("30 2 * * *", timezone="Europe/Berlin"), name="night")
    )

    assert run("next", "night", "-n", "3").splitlines() == [
        "Europe/Berlin             UTC",
        "------------------------  ------------------------",
        "2026-10-25 02:30:00+0200  2026-10-25 00:30:00+0000",
        "2026-10-26 02:30:00+0100  2026-10-26 01:30:00+0000",
        "2026-10-27 02:30:00+0100  2026-10-27 01:30:00+0000",
    ]
    assert json.loads(run("next", "night", "-n", "1", "--format", "json")) == {
        "version": 1,
        "schedule": "night",
        "next": ["2026-10-25T02:30:00+02:00"],
    }
    assert len(run("next", "night").splitlines()) == 7


def test_s06_1_pause_resume_and_run(hourly):
    """Each says what it did; an unknown name changes nothing. [S06.1]"""
    assert run("pause", "tick") == "Paused tick.\n"
    assert row_of().is_paused
    assert row_of().paused_by
    assert run("pause", "tick") == "Already paused: tick.\n"
    assert run("resume", "tick") == "Resumed tick.\n"
    assert run("resume", "tick") == "Not paused: tick.\n"
    assert run("run", "tick") == f"Sent {rows()[0].message_id} for tick.\n"

    for action in ("pause", "resume"):
        with pytest.raises(CommandError) as refused:
            run(action, "tick", "tock")
        assert str(refused.value) == (
            "There is no schedule 'tock'. The schedules are tick."
        )
    assert not row_of().is_paused
    with pytest.raises(CommandError, match="There is no schedule 'tock'"):
        run("run", "tock")
    with pytest.raises(CommandError, match="'0' is not a whole number from 1 to 1000"):
        run("next", "tick", "-n", "0")


def test_s06_1_what_cannot_be_run_says_why(project):
    """The exception of a function, or an interceptor that stops the command. [S06.1]"""

    def fail(due):
        raise ArithmeticError("no number")

    project(scheduled_registry(every(hours=1), headers=fail))

    with pytest.raises(CommandError) as refused:
        run("run", "tick")

    assert str(refused.value) == "tick could not be run. ArithmeticError: no number"
    assert rows() == []


def test_without_schedules_the_list_is_empty(project):
    """It says so."""
    project(Registry())

    assert run("list") == "No schedules.\n"
    assert json.loads(run("list", "--format", "json"))["schedules"] == []
    with pytest.raises(CommandError, match=r"^There is no schedule 'x'\.$"):
        run("next", "x")


def test_s06_2_run_now_moves_nothing(hourly):
    """Two presses are two messages, each due now; the next time stays. [S06.2]"""
    before = next_of()
    began = now()
    sent = [run_now("tick") for _ in range(2)]

    assert next_of() == before
    assert [each.message_id for each in rows()] == sent
    assert all(began <= due <= now() for due in dues())
    assert [each["missed"] for each in firings()] == [0, 0]
    assert row_of().message_id == sent[1]


def test_s06_2_a_schedule_that_no_worker_has_seen_runs_now(project):
    """Its row is made, and counted by the first worker. [S06.2]"""
    registry = project(scheduled_registry(every(hours=1)))
    sent = run_now("tick")

    assert [each.message_id for each in rows()] == [sent]
    assert statuses()[0].state is ScheduleState.NEW
    look(registry)
    assert statuses()[0].state is ScheduleState.ACTIVE
    assert next_of() > now()


def test_a_schedule_may_be_paused_before_a_worker_has_seen_it(project):
    """It does not fire when one starts, and is counted when it is resumed."""
    registry = project(scheduled_registry(every(hours=1)))
    assert pause("tick") is True
    look(registry)
    assert statuses()[0].state is ScheduleState.PAUSED
    assert statuses()[0].next_times == ()
    resume("tick")
    look(registry)
    assert statuses()[0].state is ScheduleState.ACTIVE
    assert next_of() > now()


def test_s06_6_describing_commands_touch_no_database(hourly):
    """`next` and --help answer where the database is away. [S06.6]"""
    with CaptureQueriesContext(connection) as asked:
        run("next", "tick")
        next_times("tick", 5)

    assert len(asked) == 0


def test_states(project):
    """Each schedule has one, and says what it needs."""
    registry = scheduled_registry(every(hours=1), name="disabled", enabled=False)
    past = datetime(2020, 1, 1, tzinfo=UTC)
    for name, options in (
        ("over", {"ends": past}),
        ("broken", {"enabled": lambda: 1 / 0}),
    ):
        more = scheduled_registry(every(hours=1), name=name, key=name, **options)
        registry.add(more.routes.endpoints[0].function)
    project(registry)
    look(registry)

    assert {each.name: str(each.state) for each in statuses()} == {
        "disabled": "disabled",
        "over": "over",
        "broken": "active",
    }
    with pytest.raises(UnknownSchedule):
        pause("nobody")


# The admin --------------------------------------------------------------------------


def user_with(client, *permissions):
    user = User.objects.create_user("ada", is_staff=True)
    for each in permissions:
        user.user_permissions.add(Permission.objects.get(codename=f"{each}_schedule"))
    client.force_login(user)
    return user


def test_s06_1_the_admin_has_a_permission_for_each_action(hourly, client):
    """And an entry in the history for each that was done. [S06.1]"""
    user = user_with(client, "view")
    assert client.get(PAGE).status_code == 200
    for action in ("pause", "resume", "run"):
        answer = client.post(f"{PAGE}act/", {"name": "tick", "action": action})
        assert answer.status_code == 403
    page = client.get(PAGE).content.decode()
    assert "Pause" not in page
    assert "Run now" not in page

    for each in ("pause", "run"):
        permission = Permission.objects.get(codename=f"{each}_schedule")
        user.user_permissions.add(permission)
    for action in ("pause", "resume", "run"):
        answer = client.post(
            f"{PAGE}act/", {"name": "tick", "action": action}, follow=True
        )
        assert answer.status_code == 200
    sent = rows()[0].message_id
    assert [
        (each.user_id, each.object_repr, each.change_message)
        for each in LogEntry.objects.order_by("pk")
    ] == [
        (user.pk, "tick", "Paused."),
        (user.pk, "tick", "Resumed."),
        (user.pk, "tick", f"Run now: {sent}."),
    ]


def test_s06_1_without_a_permission_the_page_is_closed(hourly, client):
    """So is its address for buttons, and nothing is added or edited there. [S06.1]"""
    user_with(client, "pause", "run")
    assert client.get(PAGE).status_code == 403
    assert client.post(f"{PAGE}act/", {"name": "tick"}).status_code == 403
    client.force_login(User.objects.create_superuser("root"))
    assert client.get(f"{PAGE}act/").status_code == 405
    assert client.get(f"{PAGE}add/").status_code == 403


@pytest.mark.parametrize(
    ("action", "name", "text"),
    [
        ("pause", "tick", "Schedule tick was paused already."),
        ("resume", "other", "Schedule other was not paused."),
        ("pause", "nobody", "There is no schedule &#x27;nobody&#x27;."),
        ("run", "nobody", "There is no schedule &#x27;nobody&#x27;."),
        ("run", "broken", "Schedule broken could not be run. ArithmeticError: no"),
    ],
)
def test_s06_1_what_cannot_be_done_is_said(project, client, action, name, text):
    """Nothing is done, and the history says nothing of it. [S06.1]"""

    def fail(due):
        raise ArithmeticError("no\nnumber")

    registry = scheduled_registry(every(hours=1))
    for other, options in (("other", {}), ("broken", {"headers": fail})):
        more = scheduled_registry(every(hours=1), name=other, key=other, **options)
        registry.add(more.routes.endpoints[0].function)
    look(project(registry))
    pause("tick")
    client.force_login(User.objects.create_superuser("root"))

    answer = client.post(f"{PAGE}act/", {"name": name, "action": action}, follow=True)

    assert text in answer.content.decode()
    assert LogEntry.objects.count() == 0
    assert rows() == []


def test_s06_3_the_next_three_times_are_those_that_come(hourly, client):
    """The page shows what then happens. [S06.3]"""
    client.force_login(User.objects.create_superuser("root"))
    page = client.get(PAGE)
    [shown] = page.context["schedules"]
    times = shown["status"].next_times
    assert all(text in page.content.decode() for text in shown["next_times"])

    happened = []
    for _ in times:
        happened.append(next_of())
        # A row is moved on from what it has, when that is due.
        following = schedule_of(hourly).next_after(next_of())
        Schedule.objects.update(next_at=following)
    assert list(times) == happened


def test_the_page_shows_failures_and_what_is_gone(project, client):
    """In words, with the error."""

    def fail(due):
        raise ArithmeticError("no number")

    look(scheduled_registry(every(hours=1), name="gone"))
    registry = project(scheduled_registry(every(hours=1), headers=fail))
    look(registry)
    due_since(timedelta(hours=1), registry)
    look(registry)
    client.force_login(User.objects.create_superuser("root"))
    text = client.get(PAGE).content.decode()

    assert "Failed once: ArithmeticError: no number" in text
    assert "No code declares it since" in text


def test_the_page_of_another_database(project, client):
    """Each database has schedules of its own."""

    @scheduled(every(hours=1), name="elsewhere")
    @command_handler("tick", channel="outbox", using="other")
    def tick(): ...

    registry = Registry()
    registry.add(tick)
    project(registry)
    client.force_login(User.objects.create_superuser("root"))

    assert "elsewhere" not in client.get(PAGE).content.decode()
    assert "elsewhere" in client.get(f"{PAGE}?database=other").content.decode()
    client.post(f"{PAGE}act/?database=other", {"name": "elsewhere", "action": "pause"})
    assert Schedule.objects.using("other").get().is_paused


# Health and pruning -----------------------------------------------------------------


def texts():
    return [str(each) for each in find_problems() if each.kind == "schedule"]


def test_s06_5_a_schedule_that_is_overdue_is_a_problem(hourly):
    """From five minutes on; a paused one is not. [S06.5]"""
    Schedule.objects.update(next_at=now() - timedelta(minutes=4))
    assert texts() == []
    Schedule.objects.update(next_at=now() - timedelta(minutes=7))
    [problem] = find_problems(channels=["outbox"])
    assert problem.kind == "schedule"
    assert problem.channel == "outbox"
    assert str(problem) == (
        "The schedule 'tick' has been due for 0:07:00, and no worker of the channel "
        "'outbox' has sent its command."
    )
    assert find_problems(channels=["mail"]) == []
    pause("tick")
    assert texts() == []


def test_s06_4_a_schedule_that_fails_is_a_problem(project):
    """Without its error, which may have data in it. [S06.4]"""

    def fail(due):
        raise ArithmeticError("secret")

    registry = project(scheduled_registry(every(hours=1), headers=fail))
    look(registry)
    wanted = [
        "The schedule 'tick' has failed once.",
        "The schedule 'tick' has failed 2 times in a row.",
    ]
    for text in wanted:
        due_since(timedelta(hours=1), registry)
        look(registry)
        assert texts() == [text]


def test_s03_6_a_row_without_a_declaration_is_deleted_after_30_days(project):
    """By cqrs_prune; the rows of declared ones stay. [S03.6]"""
    registry = project(scheduled_registry(every(hours=1)))
    look(scheduled_registry(every(hours=1), name="gone"))
    look(scheduled_registry(every(hours=1), name="unmarked"))
    look(registry)
    Schedule.objects.filter(name="unmarked").update(vanished_at=None)

    def prune(*arguments):
        stdout = StringIO()
        call_command("cqrs_prune", *arguments, stdout=stdout)
        return stdout.getvalue().splitlines()[-1]

    assert "schedule" not in prune()
    assert row_of("unmarked").vanished_at is not None
    Schedule.objects.exclude(name="unmarked").update(
        vanished_at=now() - timedelta(days=31)
    )
    assert prune("--dry-run") == "Would delete 1 schedule."
    assert prune() == "Deleted 1 schedule."
    assert set(Schedule.objects.values_list("name", flat=True)) == {"tick", "unmarked"}
