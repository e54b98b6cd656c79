"""django-tenants: one schema for each tenant, one outbox in the public schema."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils import timezone
from django_tenants.utils import schema_context, tenant_context

from django_cqrs import CommandBus, Registry, command_handler, query_handler
from django_cqrs.checks import check_settings
from django_cqrs.contrib.django_tenants import TenantSchemas
from django_cqrs.exceptions import MissingTenant, TenantSwitch, UnknownTenant
from django_cqrs.middleware import MessageHeadersMiddleware
from django_cqrs.outbox.management.commands import cqrs_worker
from django_cqrs.outbox.models import DeadLetter, InboxEntry, OutboxMessage
from django_cqrs.outbox.worker import Bounds, Worker
from django_cqrs.schedules import every, scheduled
from django_cqrs.schedules.attendant import SchedulesAttendant
from django_cqrs.schedules.models import Schedule
from django_cqrs.tenancy import CurrentTenant, all_tenants, current_tenant, tenant
from tests.limits import LIMIT
from tests.tried.ledger.models import Entry
from tests.tried.tenants.models import Tenant, Visit
from tests.tried.tenants.work import HOWS, TENANTS, WRITTEN, Follow, Work, registry

pytestmark = pytest.mark.django_db(transaction=True)

SOAKS = os.environ.get("CQRS_SOAK") == "1"
SEED = int(os.environ.get("CQRS_SEED", "0")) or random.SystemRandom().randrange(
    1, 10**6
)
MESSAGES = 5_000 if SOAKS else 600
KILLS = 60 if SOAKS else 8
WORKERS = 3


@pytest.fixture(scope="module", autouse=True)
def _schemas(django_db_setup, django_db_blocker):
    """Make the schemas once: that takes a second each."""
    with django_db_blocker.unblock():
        for name in TENANTS:
            Tenant.objects.create(schema_name=name, name=name)
    yield
    with django_db_blocker.unblock():
        connection.set_schema_to_public()
        with connection.cursor() as cursor:
            for name in TENANTS:
                cursor.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture(autouse=True)
def _tenants():
    """Have the tenants' rows, which every test that commits loses, and empty schemas."""
    connection.set_schema_to_public()
    Tenant.objects.bulk_create(
        [Tenant(schema_name=name, name=name) for name in TENANTS],
        ignore_conflicts=True,
    )
    for name in TENANTS:
        with schema_context(name):
            Entry.objects.all().delete()
    yield
    connection.set_schema_to_public()


@pytest.fixture(params=[False, True], ids=["set calls", "limited set calls"])
def set_calls(request, settings):
    settings.TENANT_LIMIT_SET_CALLS = request.param
    return request.param


def entries():
    """Return what each schema has."""
    found = {}
    for name in TENANTS:
        with schema_context(name):
            found[name] = sorted(Entry.objects.values_list("text", flat=True))
    return found


def session_path():
    """Return the search path of the session, around django-tenants."""
    with connection.connection.cursor() as cursor:
        return cursor.execute("SHOW search_path").fetchone()[0]


def run(handlers=registry, **bounds):
    return Worker(
        handlers,
        ["outbox"],
        using="default",
        bounds=Bounds(**{"until_empty": True, **bounds}),
    ).run()


def send_interleaved(count, hows=HOWS, chance=random):
    """Send messages of all tenants in turn; return what each is to do."""
    wanted = {}
    with transaction.atomic():
        for number in range(count):
            name, how = TENANTS[number % len(TENANTS)], chance.choice(hows)
            wanted[number] = name, how
            registry.command_bus.dispatch(Work(number, how), headers={"tenant": name})
    return wanted


def judge(wanted):
    """Compare all schemas with what was sent; return how many rows there are."""
    expected = {name: [] for name in TENANTS}
    visits = []
    for number, (name, how) in wanted.items():
        expected[name] += [f"{name}:{number}:{text}" for text in WRITTEN[how]]
        if how in ("shared", "shared later", "send"):
            visits.append((f"{name}:{number}", "public"))
    assert entries() == {name: sorted(texts) for name, texts in expected.items()}
    assert sorted(Visit.objects.values_list("text", "schema")) == sorted(visits)
    dead = Counter(DeadLetter.objects.values_list("endpoint", "exception"))
    failed = Counter(how for _, how in wanted.values() if not WRITTEN[how])
    assert dead == Counter(
        {
            ("work", "builtins.RuntimeError"): failed["python"],
            ("work", "django.db.utils.ProgrammingError"): failed["sql"],
        }
    )
    return sum(map(len, expected.values()))


def test_t02_1_interleaved_messages_write_into_their_own_schemas(set_calls):
    """
    A thousand messages of ten tenants, in batches, a third of them failing by Python and
    by SQL: no row is in a wrong schema. [T02.1]
    """
    wanted = send_interleaved(1_000, chance=random.Random(SEED))

    tally = run()

    assert not OutboxMessage.objects.exists()
    assert tally.failed > 200
    assert judge(wanted) > 1_000


@pytest.mark.parametrize("how", ["write", "python", "sql"])
def test_t02_1_a_shared_message_after_one_that_was_undone_is_at_public(set_calls, how):
    """A rollback undoes the search path too; the next message is not led by it. [T02.1]"""
    with transaction.atomic():
        for number, each in enumerate(("write", how)):
            headers = {"tenant": TENANTS[number]}
            registry.command_bus.dispatch(Work(number, each), headers=headers)
        registry.command_bus.dispatch("x", route="visit.later")

    run(messages=3)

    assert list(Visit.objects.values_list("schema", flat=True)) == ["public"]


def test_t02_2_the_workers_own_statements_run_in_the_public_schema(set_calls):
    """What claims and settles messages never runs in a tenant's schema. [T02.2]"""
    wanted = send_interleaved(100)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE TABLE public.paths (path text);
            CREATE FUNCTION public.note_path() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              INSERT INTO public.paths VALUES (current_setting('search_path'));
              RETURN COALESCE(NEW, OLD);
            END $$;
            CREATE TRIGGER note_path BEFORE UPDATE OR DELETE
              ON public.django_cqrs_outbox_outboxmessage
              FOR EACH ROW EXECUTE FUNCTION public.note_path()
            """
        )
    try:
        run()
        with connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT replace(path, '\"', '') FROM public.paths")
            assert cursor.fetchall() == [("public",)]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE public.paths")
            cursor.execute("DROP FUNCTION public.note_path() CASCADE")
    judge(wanted)


@pytest.mark.parametrize("how", sorted(set(HOWS)))
def test_t02_3_after_a_batch_the_connection_is_at_public(set_calls, how):
    """Whatever the last message did, nothing of its tenant is left. [T02.3]"""
    registry.command_bus.dispatch(Work(1, how), headers={"tenant": "tenant1"})

    run(messages=1)

    assert connection.schema_name == "public"
    assert session_path().replace('"', "") == "public"
    assert current_tenant() is None


def test_t02_4_a_message_of_a_tenant_who_has_left_is_a_dead_letter(set_calls):
    """It is given up at once, and the messages beside it are handled. [T02.4]"""
    for name in ("tenant1", "tenant2", "tenant3"):
        registry.command_bus.dispatch(Work(1, "write"), headers={"tenant": name})
    Tenant.objects.filter(schema_name="tenant2").delete()

    tally = run()

    assert (tally.handled, tally.failed, tally.dead) == (2, 1, 1)
    [letter] = DeadLetter.objects.all()
    assert letter.error == (
        "Tenant 'tenant2' is not known: no tenants.Tenant has this schema_name. "
        "Nothing was opened."
    )
    assert letter.attempts == 1
    assert entries()["tenant2"] == []
    with pytest.raises(UnknownTenant):
        registry.command_bus.dispatch(Work(1, "write"), headers={"tenant": "tenant2"})


def test_schemas_survive_kills(say):
    """
    Interleaved messages of ten tenants with failures, and workers that are killed at
    random: every effect is there once, and none in a wrong schema. [T02.1]
    """
    chance = random.Random(SEED)
    wanted = send_interleaved(MESSAGES, (*HOWS, "sleep"), chance)
    kills = 0
    running = [start_worker() for _ in range(WORKERS)]
    began = time.monotonic()
    try:
        while OutboxMessage.objects.exists() and kills < KILLS:
            place = chance.randrange(WORKERS)
            assert running[place].stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.02, 0.4))
            running[place].kill()
            running[place].communicate()
            kills += 1
            running[place] = start_worker()
        while OutboxMessage.objects.exists():
            assert time.monotonic() - began < LIMIT
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    rows = judge(wanted)
    say(
        f"{MESSAGES:,} messages, {WORKERS} workers, {kills} kills, {rows:,} rows, seed "
        f"{SEED}, {time.monotonic() - began:.0f} s"
    )
    assert kills


def start_worker():
    server = connection.settings_dict
    url = f"postgres://{server['USER']}@{server['HOST']}:{server['PORT'] or 5432}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tried.tenants.work", "1", "40"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.tried.tenants_settings",
            "DATABASE_URL": f"{url}/{server['NAME']}",
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def test_nested_messages_and_refusals_are_those_of_databases():
    """A message needs a tenant, keeps it, and may not change it."""

    @command_handler("outer", name="outer")
    def outer(other: str | None, who: CurrentTenant, commands: CommandBus):
        Entry.objects.create(text=f"outer {who}")
        headers = {} if other is None else {"tenant": other}
        with schema_context("tenant7"):  # whatever a handler does by itself
            commands.dispatch(route="inner", headers=headers)

    @command_handler("inner", name="inner")
    def inner(who: CurrentTenant):
        Entry.objects.create(text=f"inner {who}")

    handlers = Registry()
    handlers.add(outer)
    handlers.add(inner)
    bus = handlers.command_bus

    with pytest.raises(MissingTenant):
        bus.dispatch(None, route="outer")
    with pytest.raises(TenantSwitch):
        bus.dispatch("tenant3", route="outer", headers={"tenant": "tenant1"})
    bus.dispatch(None, route="outer", headers={"tenant": "tenant1"})

    found = entries()
    assert found.pop("tenant1") == ["inner tenant1", "outer tenant1"]
    assert set(map(tuple, found.values())) == {()}
    assert connection.schema_name == "public"


def test_blocks_and_the_list_of_tenants():
    """`tenant(...)` enters a schema, `tenant(None)` the public one; both are left again."""
    assert sorted(all_tenants()) == sorted(TENANTS)
    with tenant("tenant1"):
        assert connection.schema_name == "tenant1"
        assert sorted(all_tenants()) == sorted(TENANTS)
        with tenant(None):
            assert connection.schema_name == "public"
        with pytest.raises(UnknownTenant), tenant("nobody"):
            pass
        assert connection.schema_name == "tenant1"
    assert connection.schema_name == "public"
    found = Tenant.objects.get(schema_name="tenant2")
    with tenant_context(found), tenant("tenant2"):
        assert connection.tenant is found


def test_a_request_has_the_header_of_its_tenant():
    """`headers_of` gives messages the tenant that django-tenants has found."""

    @query_handler("who", name="who")
    def who(tenant: CurrentTenant) -> str:
        return f"{tenant} {connection.schema_name}"

    handlers = Registry()
    handlers.add(who)

    def view(request):
        return HttpResponse(handlers.query_bus.ask(route="who"))

    request = RequestFactory().get("/")
    request.tenant = Tenant.objects.get(schema_name="tenant4")
    respond = MessageHeadersMiddleware(view)
    with tenant_context(request.tenant):
        assert respond(request).content == b"tenant4 tenant4"
    assert respond(request).content == b"tenant4 tenant4"
    assert connection.schema_name == "public"
    with pytest.raises(MissingTenant):
        respond(RequestFactory().get("/"))


def test_threads_have_schemas_of_their_own():
    """Threads at the same time write into the schemas of their own messages."""
    errors = []

    @command_handler("note", name="note")
    def note(number: int, who: CurrentTenant):
        Entry.objects.create(text=f"{who} {number}")
        time.sleep(0.001)
        Entry.objects.create(text=f"{who} {number}")

    handlers = Registry()
    handlers.add(note)
    start = threading.Barrier(20)

    def run(place):
        try:
            start.wait()
            for number in range(10):
                name = TENANTS[(place + number) % len(TENANTS)]
                handlers.command_bus.dispatch(
                    number, route="note", headers={"tenant": name}
                )
        except Exception as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(LIMIT)

    assert errors == []
    found = entries()
    assert {len(texts) for texts in found.values()} == {40}
    assert all(text.startswith(f"{name} ") for name in found for text in found[name])


def test_t03_2_one_key_in_two_schemas_is_two():
    """Two tenants send one idempotency key: each is handled and gets its own answer. [T03.2]"""

    @command_handler("pay", name="pay", idempotency_key=lambda message: "k")
    def pay(amount: int, who: CurrentTenant) -> str:
        Entry.objects.create(text=f"{who} {amount}")
        return f"{who} {amount}"

    handlers = Registry()
    handlers.add(pay)
    bus = handlers.command_bus
    for _ in range(2):
        for name in ("tenant1", "tenant2"):
            answer = bus.dispatch(5, route="pay", headers={"tenant": name})
            assert answer == f"{name} 5"
    assert InboxEntry.objects.count() == 2
    assert [len(entries()[name]) for name in ("tenant1", "tenant2")] == [1, 1]


@pytest.mark.parametrize(
    ("app", "what"),
    [("django_cqrs.outbox", "messages"), ("django_cqrs.schedules", "schedules")],
)
def test_a_tenants_own_outbox_is_refused(settings, app, what):
    """Rows in each schema would be those that no worker looks at: a check says so."""
    settings.TENANT_APPS = [*settings.TENANT_APPS, app]
    text = (
        f"{app!r} is in TENANT_APPS, so {what} would wait where no worker looks. Move it "
        "to SHARED_APPS."
    )
    with pytest.raises(ImproperlyConfigured) as caught:
        TenantSchemas()
    assert str(caught.value) == text
    [found] = [each for each in check_settings() if each.id == "django_cqrs.E080"]
    assert text in found.msg


def test_s07_1_a_schedule_of_each_tenant_fires_into_the_one_outbox():
    """Each tenant has a row and a command, and its handler runs in its schema. [S07.1]"""
    paths = []

    def enabled():
        paths.append(connection.schema_name)
        return True

    @scheduled(every(hours=1), each_tenant=True, enabled=enabled)
    @command_handler("hourly", name="hourly", channel="outbox")
    def hourly(who: CurrentTenant):
        Entry.objects.create(text=f"{who} {connection.schema_name}")

    handlers = Registry()
    handlers.add(hourly)
    clock = SchedulesAttendant().duty(handlers, ["outbox"], "default")
    clock.look()
    first = next(every(hours=1).after(timezone.now() - timedelta(hours=1), None))
    assert Schedule.objects.update(next_at=first) == len(TENANTS)
    clock.look()

    assert sorted(paths) == sorted(TENANTS)
    assert connection.schema_name == "public"
    assert run(handlers).handled == len(TENANTS)
    assert entries() == {name: [f"{name} {name}"] for name in TENANTS}


def test_the_worker_of_all_tenants_handles_the_one_outbox(monkeypatch):
    """`--tenants` has nothing to take turns between: all messages are in one place."""
    monkeypatch.setattr(cqrs_worker, "registry", registry)
    wanted = send_interleaved(40, ("write", "python", "publish", "send"))

    call_command("cqrs_worker", "outbox", "--tenants", "--until-empty", verbosity=0)

    judge(wanted)


def test_a_handler_that_sends_from_a_schema_stores_in_public():
    """A message that is sent inside of a schema waits in the one outbox."""
    with tenant("tenant1"):
        registry.command_bus.dispatch(Follow(1))
    assert OutboxMessage.objects.count() == 1
    assert run().handled == 1
    assert entries()["tenant1"] == ["tenant1:1:followed"]
    assert list(Visit.objects.values_list("schema", flat=True)) == ["public"]
    call_command("check")
