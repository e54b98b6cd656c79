"""Schedules that fire for each tenant."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from django_cqrs import Registry, command_handler
from django_cqrs.attendants import ProblemLimits
from django_cqrs.buses import registries
from django_cqrs.exceptions import InvalidOption, UnknownTenant
from django_cqrs.outbox.management.commands import cqrs_worker
from django_cqrs.schedules import attendant, every, scheduled
from django_cqrs.schedules.attendant import SchedulesAttendant
from django_cqrs.schedules.declared import problems_in
from django_cqrs.schedules.models import Schedule
from django_cqrs.schedules.operations import pause, resume, run_now, statuses
from django_cqrs.tenancy import CurrentTenant, current_tenant
from tests.limits import LIMIT
from tests.outbox.support import on_databases, rows
from tests.schedules.support import clock_of, now
from tests.tenancy.support import away_in, with_alias, with_tenancy

pytestmark = [*on_databases, pytest.mark.urls("tests.outbox.desk_urls")]

DATABASES = {"acme": "default", "globex": "other"}
SHARED = {"acme": "default", "globex": "default"}


def registry_of(seen=None, **options):
    @scheduled(every(hours=1), each_tenant=True, **options)
    @command_handler("report", name="report", channel="outbox")
    def report(who: CurrentTenant):
        if seen is not None:
            seen.append(str(who))

    registry = Registry()
    registry.add(report)
    return registry


@pytest.fixture
def project(monkeypatch):
    """A schedule of each tenant in the project's registry."""
    seen = []
    registry = registry_of(seen)
    monkeypatch.setattr(registries, "registry", registry)
    monkeypatch.setattr(cqrs_worker, "registry", registry)
    registry.seen = seen
    return registry


def make_due(*aliases):
    """Let the last time of the hourly schedule be due."""
    for alias in aliases:
        hour_ago = now(alias) - timedelta(hours=1)
        due = next(every(hours=1).after(hour_ago, None))
        Schedule.objects.using(alias).update(next_at=due)


def tenants_in(alias="default"):
    """Return the tenants of the waiting commands."""
    return sorted(json.loads(bytes(row.headers))["tenant"] for row in rows(alias))


@pytest.mark.parametrize("databases", [DATABASES, SHARED], ids=["apart", "shared"])
def test_s07_1_each_tenant_has_a_firing_in_its_own_outbox(databases):
    """A row and a command for each one, in the database of the tenant. [S07.1]"""
    registry = registry_of()
    aliases = set(databases.values())
    with with_tenancy(databases):
        clocks = [clock_of(registry, using=alias) for alias in aliases]
        for clock in clocks:
            clock.look()
        make_due(*aliases)
        for clock in clocks:
            clock.look()
            clock.look()
    for alias in aliases:
        own = sorted(name for name in databases if databases[name] == alias)
        assert tenants_in(alias) == own
        found = Schedule.objects.using(alias).order_by("tenant")
        assert list(found.values_list("name", "tenant")) == [
            ("report", name) for name in own
        ]


def test_s07_1_functions_of_a_schedule_are_called_with_the_tenant_active():
    """So a payload, headers and `enabled=` may read the tenant's data. [S07.1]"""
    seen = []

    def enabled():
        seen.append(current_tenant())
        return current_tenant() == "acme"

    registry = registry_of(enabled=enabled)
    with with_tenancy(SHARED):
        clock = clock_of(registry)
        clock.look()
        make_due("default")
        clock.look()
    assert sorted(seen) == ["acme", "globex"]
    assert tenants_in() == ["acme"]
    assert current_tenant() is None


def test_s07_1_a_new_tenant_is_taken_up_within_a_minute(monkeypatch):
    """The clock asks again for the tenants; one who has left fires no more. [S07.1]"""
    assert timedelta(minutes=1) > attendant.TENANTS_ASKED
    known = dict.fromkeys(["acme", "globex"], "default")
    registry = registry_of()
    with with_tenancy(known.get, TENANTS=lambda: list(known)):
        clock = clock_of(registry)
        clock.look()
        monkeypatch.setattr(attendant, "TENANTS_ASKED", timedelta())
        del known["globex"]
        known["initech"] = "default"
        clock.look()
        make_due("default")
        clock.look()
    assert tenants_in() == ["acme", "initech"]
    left = Schedule.objects.exclude(vanished_at=None)
    assert [row.tenant for row in left] == ["globex"]


def test_s07_1_a_list_that_cannot_be_read_stops_no_firing(monkeypatch, caplog):
    """The tenants that are known are served; the log says so. [S07.1]"""
    known = {"acme": "default"}

    def list_tenants():
        if not known:
            raise RuntimeError
        return list(known)

    registry = registry_of()
    with with_tenancy(lambda name: "default", TENANTS=list_tenants):
        clock = clock_of(registry)
        clock.look()
        make_due("default")
        monkeypatch.setattr(attendant, "TENANTS_ASKED", timedelta())
        known.clear()
        clock.look()
    assert tenants_in() == ["acme"]
    [said] = caplog.records
    assert said.getMessage() == (
        "The tenants could not be listed; those that are known are served"
    )


def test_s07_1_a_database_that_is_away_keeps_no_other_tenant_from_firing(
    project, tmp_path
):
    """One worker for all of them: the others' commands are sent and handled. [S07.1]"""
    databases = {"initech": "third", **DATABASES}
    with with_alias("third", **away_in(tmp_path)), with_tenancy(databases):
        for alias in ("default", "other"):
            clock_of(project, using=alias).look()
        make_due("default", "other")
        call_command(
            *("cqrs_worker", "outbox", "--tenants"),
            max_messages=2,
            max_seconds=LIMIT,
            verbosity=0,
        )
    assert sorted(project.seen) == ["acme", "globex"]


def test_a_schedule_that_becomes_one_of_each_tenant_has_new_rows():
    """The former row fires no more, and is marked."""

    def declared(*, each_tenant):
        @scheduled(every(hours=1), each_tenant=each_tenant)
        @command_handler("report", name="report", channel="outbox", using="default")
        def report(): ...

        registry = Registry()
        registry.add(report)
        return registry

    with with_tenancy(SHARED):
        clock_of(declared(each_tenant=False)).look()
        clock_of(declared(each_tenant=True)).look()
    found = Schedule.objects.order_by("tenant")
    assert [(row.tenant, row.vanished_at is None) for row in found] == [
        ("", False),
        ("acme", True),
        ("globex", True),
    ]


def test_spread_is_of_the_tenant():
    """So the tenants' firings do not come together."""
    registry = registry_of(spread=timedelta(minutes=50))
    with with_tenancy(SHARED):
        clock_of(registry).look()
    assert Schedule.objects.values("next_at").distinct().count() == 2


def test_operations_are_on_the_schedule_of_a_tenant(project):
    """To pause, resume, run and list; without the tenant they are refused."""
    with with_tenancy(SHARED):
        clock_of(project).look()
        assert pause("report", tenant="acme")
        assert {each.tenant: str(each.state) for each in statuses()} == {
            "acme": "paused",
            "globex": "active",
        }
        assert [each.tenant for each in statuses(tenant="acme")] == ["acme"]
        assert resume("report", tenant="acme")
        assert run_now("report", tenant="globex") == rows()[0].message_id
        with pytest.raises(InvalidOption) as caught:
            pause("report")
        assert str(caught.value) == (
            "The schedule 'report' fires for each tenant. Name the tenant: tenant=, or "
            "--tenant of the command."
        )
        with pytest.raises(UnknownTenant, match=r"^Tenant 'nobody' is not known\.$"):
            run_now("report", tenant="nobody")
    assert tenants_in() == ["globex"]


def test_the_command_takes_a_tenant(project, capsys):
    """`--tenant` on every subcommand; the list has a column for it."""

    def run(*arguments):
        call_command("cqrs_schedules", *arguments)
        return capsys.readouterr().out

    with with_tenancy(SHARED):
        clock_of(project).look()
        assert run("pause", "report", "--tenant", "acme") == "Paused report.\n"
        text = run("list")
        assert text.splitlines()[0].split()[:3] == ["Schedule", "Tenant", "State"]
        assert "acme" in text
        assert "globex" in text
        assert "globex" not in run("list", "--tenant", "acme")
        listed = json.loads(run("list", "--format", "json", "--tenant", "globex"))
        assert [each["tenant"] for each in listed["schedules"]] == ["globex"]
        assert run("resume", "report", "--tenant", "acme") == "Resumed report.\n"
        assert "Sent" in run("run", "report", "--tenant", "globex")
        assert len(run("next", "report", "--tenant", "acme").splitlines()) == 7
        with pytest.raises(CommandError, match="fires for each tenant"):
            run("pause", "report")
    with with_tenancy(DATABASES):
        assert "report" in run("list", "--tenant", "globex")


def of_request(request):
    name = request.headers.get("X-Tenant")
    return {} if name is None else {"tenant": name}


def test_the_page_shows_the_schedules_of_the_requests_tenant(
    project, admin_client, settings
):
    """And acts on them alone; a request of nobody sees all. [T03.4]"""
    middleware = "django_cqrs.middleware.MessageHeadersMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, middleware]
    page = reverse("admin:django_cqrs_schedules_schedule_changelist")
    act = reverse("admin:django_cqrs_schedules_schedule_act")
    headers = {"X-Tenant": "acme"}

    def shown(**options):
        found = admin_client.get(page, **options).context["schedules"]
        return [each["status"].tenant for each in found]

    with with_tenancy(SHARED, also={"REQUEST_HEADERS": f"{__name__}.of_request"}):
        clock_of(project).look()
        assert shown() == ["acme", "globex"]
        assert shown(headers=headers) == ["acme"]
        posted = {"name": "report", "action": "pause", "tenant": "globex"}
        assert admin_client.post(act, posted, headers=headers).status_code == 403
        admin_client.post(act, posted)
        admin_client.post(act, {**posted, "action": "run", "tenant": "acme"})
        paused = Schedule.objects.filter(is_paused=True)
        assert [row.tenant for row in paused] == ["globex"]
    assert tenants_in() == ["acme"]


def test_health_and_pruning_are_of_each_tenant(project):
    """A late schedule is named with its tenant; the rows of who has left go."""
    with with_tenancy(SHARED):
        clock_of(project).look()
        Schedule.objects.update(next_at=now() - timedelta(minutes=6))
        Schedule.objects.filter(tenant="acme").update(is_paused=True)
        [problem] = SchedulesAttendant().problems("default", ProblemLimits())
        assert problem.text.startswith(
            "The schedule 'report' of tenant 'globex' has been due for 0:06:"
        )
    with with_tenancy({"acme": "default"}):
        old = now() - timedelta(days=31)
        Schedule.objects.filter(tenant="globex").update(vanished_at=old)
        [expired] = SchedulesAttendant().prune("default", dry_run=True)
        assert expired.count == 1
        list(SchedulesAttendant().prune("default", dry_run=False))
    assert [row.tenant for row in Schedule.objects.all()] == ["acme"]


def faults(registry):
    return [each.message for each in problems_in(registry)]


def test_a_schedule_of_each_tenant_needs_tenants():
    """The check says what is missing; nothing fires."""
    registry = registry_of()
    place = "tests.schedules.test_tenants.registry_of.<locals>.report"
    start = f"{place} has a schedule that cannot be used. "
    assert faults(registry) == [
        f"{start}It is one of each tenant, but DJANGO_CQRS['TENANCY'] is not set."
    ]
    assert clock_of(registry) is None
    with with_tenancy(lambda name: "default"):
        [text] = faults(registry)
        assert text.startswith(f"{start}DJANGO_CQRS['TENANCY'] does not say which")

    @scheduled(every(hours=1), each_tenant=True)
    @command_handler("all", name="all", channel="outbox", tenant=False)
    def for_all(): ...

    registry = Registry()
    registry.add(for_all)
    with with_tenancy(SHARED):
        [text] = faults(registry)
    assert text.endswith(
        "for_all has a schedule of each tenant, but it is for the part that all "
        "tenants share."
    )
