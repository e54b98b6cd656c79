"""One worker for the outboxes of all tenants: each has its turn."""

from __future__ import annotations

import threading
import time

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created

from django_cqrs import CommandBus, Registry, Retry, command_handler
from django_cqrs.outbox.management.commands import cqrs_worker
from django_cqrs.outbox.models import WorkerRecord
from django_cqrs.outbox.pausing import pause
from django_cqrs.outbox.worker import Bounds, Worker
from django_cqrs.outbox.worker.databases import DatabasesWorker
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.tenancy import CurrentTenant, tenant
from tests.limits import LIMIT
from tests.outbox.support import SOAKS, on_databases, rows
from tests.tenancy.support import (
    DATABASES,
    away_in,
    with_alias,
    with_files,
    with_tenancy,
)

pytestmark = on_databases


@pytest.fixture
def on_sqlite():
    if connection.vendor != "sqlite":
        pytest.skip("Its databases are files of SQLite.")


def recording(seen, act=None):
    """Return a registry with one handler in the background, which notes its calls."""

    @command_handler("note", name="note", channel="outbox", retry=Retry(attempts=1))
    def note(number: int, who: CurrentTenant):
        seen.append((str(who), number))
        if act is not None:
            act(str(who), number)

    registry = Registry()
    registry.add(note)
    return registry


def send(registry, name, *numbers):
    using = tenancy().alias_of(name)
    with tenant(name), transaction.atomic(using):
        for number in numbers:
            registry.command_bus.dispatch(number, route="note")


def worker_of(registry, *, databases=None, connections=20, **bounds):
    """Return the worker of all tenants, as the command makes it."""

    def one(using, progress):
        return Worker(registry, ["outbox"], using=using, progress=progress)

    return DatabasesWorker(
        databases or tenancy().aliases_of_outboxes,
        one,
        bounds=Bounds(**({"until_empty": True} | bounds)),
        connections=connections,
    )


def test_a_worker_handles_the_outboxes_of_all_tenants():
    """And that of the shared part; the tally is that of all."""
    seen = []
    registry = recording(seen)
    with with_tenancy():
        send(registry, "acme", 1, 2)
        send(registry, "globex", 3)
        tally = worker_of(registry).run()
    assert sorted(seen) == [("acme", 1), ("acme", 2), ("globex", 3)]
    assert tally.handled == 3
    for alias in ("default", "other"):
        assert rows(alias) == []
        [row] = WorkerRecord.objects.using(alias)
        assert row.stopped_at is not None


def test_the_shared_database_is_handled_too():
    """Messages for the part that all share wait there, also if no tenant is there."""

    @command_handler("sum", name="sum", channel="outbox", tenant=False)
    def sum_up(): ...

    registry = Registry()
    registry.add(sum_up)
    with with_tenancy({"globex": "other"}):
        registry.command_bus.dispatch(route="sum")
        assert worker_of(registry).run().handled == 1


def test_what_one_database_sends_to_another_is_handled_in_the_same_run():
    """A database that was empty gets another turn before the worker ends."""
    seen = []
    registry = recording(seen)

    @command_handler("pass", name="pass", channel="outbox")
    def pass_on(commands: CommandBus):
        commands.dispatch(7, route="note", using="other")

    registry.add(pass_on)
    with with_tenancy({"acme": "default", "globex": "other"}):
        with tenant("acme"):
            registry.command_bus.dispatch(route="pass")
        assert worker_of(registry).run().handled == 2
    assert seen == [("acme", 7)]


def test_bounds_are_those_of_all_databases_together():
    """The worker stops after so many messages, whosever they are."""
    seen = []
    registry = recording(seen)
    with with_tenancy():
        for name in DATABASES:
            send(registry, name, 1, 2, 3)
        assert worker_of(registry, messages=4).run().handled == 4
        assert len(rows()) + len(rows("other")) == 2


@pytest.mark.long
def test_t04_1_a_big_outbox_keeps_no_other_waiting(on_sqlite, tmp_path):
    """
    Of a hundred databases one has very many messages: a message of another one is handled
    within a second of the worker's time. [T04.1]
    """
    names = [f"t{number}" for number in range(100)]
    count = 100_000 if SOAKS else 4_000
    clock = time.perf_counter if SOAKS else time.thread_time
    asked, sent, waits, seen = [17, 50, 99], {}, [], []

    def act(name, number):
        if name != "t0":
            waits.append(clock() - sent[name])
            if len(waits) == len(asked):
                worker.stop()
        elif number in moments:
            other = f"t{asked[moments.index(number)]}"
            threading.Thread(target=send_as, args=(other,)).start()
            sent[other] = clock()

    def send_as(name):
        send(registry, name, 1)
        connections.close_all()

    registry = recording(seen, act)
    moments = [count // 40, count // 20, count // 10]
    with with_files(tmp_path, names), with_tenancy({name: name for name in names}):
        send(registry, "t0", *range(count))
        worker = worker_of(registry)
        worker.run()
        assert rows("t0")
    assert len(waits) == len(asked)
    assert max(waits) < 1


def test_t04_2_while_one_database_is_away_the_others_go_on(tmp_path, caplog):
    """It is tried again, without a word at each try, and handled when it is back. [T04.2]"""
    real = connections.settings["other"]
    seen = []

    def act(name, number):
        if (name, number) == ("acme", 9):  # the others have gone on
            for key in away_keys:
                changed[key] = real[key]

    registry = recording(seen, act)
    away_keys = away_in(tmp_path)
    databases = {"acme": "default", "globex": "third"}
    with (
        with_alias("third") as changed,
        with_tenancy(databases),
        caplog.at_level("WARNING", "django_cqrs.worker"),
    ):
        send(registry, "globex", 1)
        connections["third"].close()
        changed.update(away_keys)
        send(registry, "acme", *range(10))
        worker = worker_of(registry)
        worker.longest_pause = 0.01
        assert worker.run().handled == 11
    assert seen[-1] == ("globex", 1)
    first, last = [each.getMessage() for each in caplog.records]
    assert first.startswith("Database 'third' cannot be used (OperationalError: ")
    assert first.endswith("; the others are handled, and it is tried again")
    assert last == "Database 'third' is back after 0 s"


def test_a_database_that_does_not_answer_is_waited_for_in_a_thread(
    on_sqlite, tmp_path, monkeypatch
):
    """An attempt to connect that takes very long delays nobody."""
    may_end, is_asked = threading.Event(), threading.Event()
    seen = []

    def act(name, number):
        if number == 5:
            assert is_asked.wait(LIMIT)
        if number == 9:
            worker.stop()

    registry = recording(seen, act)
    with (
        with_files(tmp_path, ["third"]),
        with_tenancy({"acme": "default", "globex": "third"}),
    ):
        send(registry, "acme", *range(10))
        worker = worker_of(registry, until_empty=False)
        worker.longest_pause = 0
        connections["third"].close()
        opened = type(connections["default"]).get_new_connection

        def refuse(self, parameters):
            if self.alias != "third":
                return opened(self, parameters)
            if threading.current_thread() is not threading.main_thread():
                is_asked.set()
                may_end.wait(LIMIT)
            raise self.Database.OperationalError

        monkeypatch.setattr(type(connections["default"]), "get_new_connection", refuse)
        try:
            worker.run()
        finally:
            may_end.set()
    assert len(seen) == 10


def test_t04_3_connections_stay_within_a_bound(on_sqlite, tmp_path):
    """Those to databases that have been empty for longest are closed. [T04.3]"""
    names = [f"t{number}" for number in range(10)]
    most, threads, seen = [], [], []

    def act(name, number):
        own = [connections[each] for each in names]
        most.append(sum(each.connection is not None for each in own))
        threads.append(threading.active_count())

    registry = recording(seen, act)
    with with_files(tmp_path, names), with_tenancy({name: name for name in names}):
        for name in names:
            send(registry, name, *range(3))
            connections[name].close()
        before = threading.active_count()
        worker_of(registry, connections=3).run()
        assert len(seen) == 30
        assert max(most) == 3
        assert max(threads) - before <= 3
        assert all(connections[name].connection is None for name in names)


def test_a_database_with_messages_keeps_its_connection(on_sqlite, tmp_path):
    """Turns of empty ones take the connections of other empty ones."""
    names = [f"t{number}" for number in range(6)]
    seen, opened = [], []
    registry = recording(seen)

    def note_opening(connection, **_about):
        opened.append(connection.alias)

    with with_files(tmp_path, names), with_tenancy({name: name for name in names}):
        send(registry, "t0", *range(100))
        connections["t0"].close()
        connection_created.connect(note_opening)
        try:
            worker_of(registry, connections=2).run()
        finally:
            connection_created.disconnect(note_opening)
    assert len(seen) == 100
    assert opened.count("t0") == 1
    assert opened.count("t1") > 1


def test_t04_7_a_new_tenant_is_taken_up_without_a_restart():
    """The list is asked for again and again; who has left is given up. [T04.7]"""
    known = {"acme": "default"}
    asked, seen = [], []
    registry = recording(seen, lambda name, _number: name == "globex" and worker.stop())

    def list_tenants():
        asked.append(len(seen))
        if asked[-1] and "globex" not in known:
            known["globex"] = "other"
            send(registry, "globex", 1)
        return list(known)

    with with_tenancy(known.get, TENANTS=list_tenants):
        send(registry, "acme", 1)
        worker = worker_of(registry, until_empty=False)
        worker.refresh_time = 0
        worker.run()
    assert seen == [("acme", 1), ("globex", 1)]
    assert asked[0] == 0


def test_a_tenant_who_has_left_is_given_up():
    """Its worker ends, and that of the others goes on."""
    seen = []
    with with_tenancy():
        registry = recording(seen)
        send(registry, "acme", 1)
        answers = [["default", "other"]]
        worker = worker_of(
            registry, databases=lambda: answers.pop() if answers else ["default"]
        )
        worker.refresh_time = 0
        worker.run()
    assert len(seen) == 1
    assert list(worker._turns) == ["default"]


def test_a_list_that_cannot_be_read_stays_as_it_was(caplog):
    """The function of the project has failed: that is said once, and work goes on."""
    seen = []
    answers = [["default", "other"]]
    registry = recording(seen)
    with with_tenancy():
        send(registry, "globex", 1, 2, 3)
        worker = worker_of(registry, databases=answers.pop, messages=3)
        worker.refresh_time = 0
        worker.round_time = 0
        sleeps = iter(range(3))
        worker.progress.sleep = lambda _seconds: next(sleeps)
        taken, take_up = [], worker._take_up

        def counted():
            taken.append(1)
            worker.refresh_time = 0 if len(taken) < 3 else LIMIT
            take_up()

        worker._take_up = counted
        worker.run()
    assert len(seen) == 3
    assert len(taken) == 3
    [said] = caplog.records
    assert said.getMessage() == (
        "The databases of the tenants could not be listed; those that are known are "
        "handled"
    )


# --------------------------------------------------------------------------- command


@pytest.fixture
def registry(monkeypatch):
    registry = recording([])
    monkeypatch.setattr(cqrs_worker, "registry", registry)
    return registry


def run_command(*arguments, **options):
    call_command("cqrs_worker", "outbox", "--tenants", *arguments, **options)


def test_the_command_handles_all_tenants(registry, capsys):
    """`--tenants` takes the place of `--database`."""
    with with_tenancy():
        send(registry, "acme", 1)
        send(registry, "globex", 2)
        run_command("--until-empty")
    assert capsys.readouterr().out == (
        "Handling outbox of all tenants.\n2 handled, 0 failed, 0 dead, 0 expired.\n"
    )


def test_the_command_needs_to_know_who_the_tenants_are(registry):
    """Without the setting, or without their list, it says what to add."""
    with pytest.raises(CommandError) as caught:
        run_command()
    assert (
        str(caught.value) == "--tenants needs DJANGO_CQRS['TENANCY'] in the settings."
    )
    with with_tenancy(lambda name: "default"), pytest.raises(CommandError) as caught:
        run_command()
    assert str(caught.value) == (
        "DJANGO_CQRS['TENANCY'] does not say which tenants there are, since DATABASES "
        "is a callable. Add 'TENANTS': a callable, or the path of one, that returns "
        "their names."
    )
    with with_tenancy(), pytest.raises(CommandError) as caught:
        run_command("--tenant", "acme")
    assert "not allowed with argument --tenants" in str(caught.value)


def test_a_database_without_tables_fails_the_command_after_the_others(
    registry, on_sqlite, tmp_path
):
    """With --until-empty it does not wait for what would not come."""
    changes = {"NAME": str(tmp_path / "new.sqlite3")}
    databases = {"acme": "new", "globex": "default"}
    with with_alias("new", **changes), with_tenancy(databases):
        send(registry, "globex", 1)
        with pytest.raises(CommandError) as caught:
            run_command("--until-empty", verbosity=0)
    assert rows() == []
    assert str(caught.value) == (
        "The database 'new' does not have the outbox tables that this version needs "
        "(no such table: django_cqrs_outbox_workerrecord). Create them: python "
        "manage.py migrate --database new"
    )


def test_a_paused_channel_of_one_tenant_is_named(registry):
    """The others are empty, and that one keeps its messages."""
    with with_tenancy():
        send(registry, "acme", 1)
        send(registry, "globex", 1)
        pause("outbox", using="other")
        with pytest.raises(CommandError) as caught:
            run_command("--until-empty", verbosity=0)
    assert str(caught.value) == (
        "outbox of 'other': messages remain because the channel is paused: an operator "
        "has paused it."
    )
    assert (len(rows()), len(rows("other"))) == (0, 1)


def test_the_command_stops_at_a_failure_of_any_tenant(monkeypatch):
    """`--stop-on-failure` ends the work of all."""

    def fail(_name, _number):
        raise RuntimeError

    registry = recording([], fail)
    monkeypatch.setattr(cqrs_worker, "registry", registry)
    with with_tenancy():
        send(registry, "globex", 1)
        with pytest.raises(CommandError, match=r"The worker stops\.$"):
            run_command("--stop-on-failure", verbosity=0)
