"""``manage.py cqrs_worker --processes N``: workers that are started and watched."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.worker.supervisor import Supervisor
from tests.limits import LIMIT
from tests.outbox.support import (
    database,
    letters,
    numbers,
    on_databases,
    registry_of,
    rows,
    send,
    wait_until,
)
from tests.outbox.work import Work
from tests.testapp.models import Note


def is_alive(pid):
    """Return whether a process runs: one that nobody has asked after does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] != "Z"
    return False


# ---------------------------------------------------------------------- without messages

CHILD = """
import os, signal, sys, time
import django
django.setup()  # the package of the worker has the models
from django_cqrs.outbox.worker.supervisor import end_with_supervisor, supervised_by

is_over = False

def stop(*_):
    global is_over
    is_over = True

def started():
    return len(open(sys.argv[1]).read().split())

signal.signal(signal.SIGTERM, stop)
pipe = supervised_by()
assert pipe is not None and supervised_by() is None
end_with_supervisor(pipe, stop, float(sys.argv[2]))
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b"%d " % os.getpid())
"""
UNTIL_STOPPED = """
while not is_over:
    time.sleep(0.01)
"""
FOR_EVER = "time.sleep(60)"


@pytest.fixture
def children(tmp_path, monkeypatch):
    """Return what makes a supervisor of scripts, each of which writes down its id."""
    monkeypatch.setattr(Supervisor, "first_pause", 0.02)
    monkeypatch.setattr(Supervisor, "poll_time", 0.01)
    log = tmp_path / "log"
    log.touch()

    def supervise(body, count=2, grace=5):
        command = [sys.executable, "-c", CHILD + body, str(log), str(grace)]
        return Supervisor(command, count)

    supervise.ids = lambda: list(map(int, log.read_text().split()))
    yield supervise
    left = list(filter(is_alive, supervise.ids()))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@contextlib.contextmanager
def running(supervisor):
    """Run a supervisor beside the test; yield what its answer is found in."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(supervisor.run()))
    thread.start()
    try:
        yield answers
    finally:
        thread.join(LIMIT)
    assert not thread.is_alive()


def test_it_ends_with_the_last_of_its_processes(children):
    """Each has done what it should."""
    assert children("", count=3).run() is True
    assert len(set(children.ids())) == 3


def test_one_that_crashed_is_started_again(children, caplog):
    """Another takes its place, until one ends as it should."""
    body = """
if started() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if started() == 2:
    sys.exit(3)
"""
    assert children(body, count=1).run() is True

    first, second, _third = children.ids()
    assert [record.getMessage() for record in caplog.records] == [
        f"Worker process {first} was stopped by signal 9; another starts in 0.0 s",
        f"Worker process {second} crashed with exit code 3; another starts in 0.0 s",
    ]


def test_the_pause_grows_while_it_helps_nothing(children, monkeypatch):
    """What crashes at its start does not keep the machine busy; it starts anew at
    once where it had lived long.
    """
    supervisor = children("", count=1)
    (place,) = supervisor._places
    place.process = subprocess.Popen(["true"])
    place.process.wait()
    pauses = []
    for lived in [0] * 14 + [60, 0]:
        place.started = time.monotonic() - lived
        supervisor._plan(place, -9)
        pauses.append(place.starts_at - time.monotonic())
    monkeypatch.undo()

    assert pauses[0] == pytest.approx(0.02, abs=0.01)
    assert pauses[3] == pytest.approx(0.16, abs=0.01)
    assert max(pauses) == pytest.approx(0.02 * 2**10, abs=0.01)
    assert pauses[-2:] == pytest.approx([0, 0.02], abs=0.01)


def test_a_signal_is_passed_on(children):
    """The first asks them to end, and none takes their place."""
    supervisor = children(UNTIL_STOPPED)
    with running(supervisor) as answers:
        wait_until(lambda: len(children.ids()) == 2)
        supervisor.stop()
    assert answers == [True]
    assert len(children.ids()) == 2


def test_a_second_signal_ends_them(children):
    """It is for those that do not end by being asked."""
    supervisor = children(FOR_EVER)
    began = time.monotonic()
    with running(supervisor) as answers:
        wait_until(lambda: len(children.ids()) == 2)
        supervisor.stop()
        time.sleep(0.1)
        assert all(map(is_alive, children.ids()))
        supervisor.stop()
    assert answers == [True]
    assert time.monotonic() - began < LIMIT


def test_one_that_waits_to_be_started_is_not(children, monkeypatch):
    """Where it is asked to stop meanwhile."""
    monkeypatch.setattr(Supervisor, "first_pause", 60)
    supervisor = children("sys.exit(1)", count=1)
    with running(supervisor) as answers:
        wait_until(lambda: supervisor._places[0].starts_at > 0)
        supervisor.stop()
    assert answers == [True]
    assert len(children.ids()) == 1


def test_a_failure_that_stops_one_stops_all(children):
    """Its policy says that somebody is to look at it first."""
    body = "sys.exit(82) if started() == 1 else None" + UNTIL_STOPPED

    assert children(body).run() is False


@pytest.mark.parametrize("how", [UNTIL_STOPPED, FOR_EVER])
def test_no_orphan_is_left(children, how, tmp_path):
    """When the supervisor is killed its processes end, even one that is busy."""
    script = (
        "import sys\n"
        "import django\n"
        "django.setup()\n"
        "from django_cqrs.outbox.worker.supervisor import Supervisor\n"
        "Supervisor(sys.argv[1:], 2).run()\n"
    )
    command = children(how, grace=0.2)._command
    process = subprocess.Popen([sys.executable, "-c", script, *command])
    try:
        wait_until(lambda: len(children.ids()) == 2)
    finally:
        process.kill()
        process.wait()

    wait_until(lambda: not any(map(is_alive, children.ids())))


# ------------------------------------------------------------------------- with messages


def do(command: Work):
    """Stands for the handler of this name in the worker processes."""


@pytest.fixture
def registry():
    return registry_of(do, name="supervised.do")


@pytest.fixture
def start():
    """Return what starts the command in a process of its own; end what it leaves."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "django", "cqrs_worker", "outbox", *arguments],
            env={
                **os.environ,
                **database(),
                "DJANGO_SETTINGS_MODULE": "tests.apps.supervised.settings",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end_of(process, seconds=LIMIT):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def workers():
    """Return the processes whose handlers have written something."""
    return {int(text) for text in Note.objects.values_list("text", flat=True)}


class TestWithMessages:
    pytestmark = [*on_databases, pytest.mark.long]

    def test_the_work_is_shared_and_one_that_dies_is_replaced(self, registry, start):
        """Its message is handled again, counted, and given up if it kills each time."""
        process = start("--processes", "2", "--batch", "1", "--lease", "1")
        send(registry, *range(40))
        wait_until(lambda: len(numbers()) == 40)
        send(registry, 99, how="kill")
        wait_until(letters)
        send(registry, *range(100, 110))
        wait_until(lambda: len(numbers()) == 50)

        process.terminate()
        code, out, err = end_of(process)

        assert code == 0
        assert [letter.reason for letter in letters()] == ["poison"]
        assert err.count("was stopped by signal 9; another starts in") >= 2
        assert out.startswith("Starting 2 workers.\n")
        assert not any(map(is_alive, workers()))

    def test_no_worker_outlives_a_killed_supervisor(self, registry, start):
        """What hangs in a handler ends when its lease would have run out."""
        process = start("--processes", "2", "--lease", "1")
        send(registry, 1, how="hang")
        wait_until(lambda: rows()[0].owner)
        wait_until(lambda: len(children_of(process.pid)) == 2)
        found = children_of(process.pid)

        process.kill()
        wait_until(lambda: not any(map(is_alive, found)))

        assert len(rows()) == 1


class TestWithoutAServer:
    """The supervisor asks no database, so that one will do."""

    pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.long]

    def test_until_nothing_is_ready(self, registry, start):
        """Each worker ends by itself, and so does the supervisor."""
        send(registry, *range(10))

        code, out, err = end_of(start("--processes", "2", "--until-empty"))

        assert code == 0
        assert "another starts" not in err
        assert sorted(numbers()) == list(range(10))
        assert out.count("Handling outbox of 'default'.") == 2

    def test_a_failure_that_is_to_stop(self, registry, start):
        """All stop, and the exit code says why."""
        send(registry, 1, how="fail")

        code, _out, err = end_of(start("--processes", "2", "--stop-on-failure"))

        assert code == 1
        assert "supervised.do failed with ValueError. The worker stops." in err
        assert (
            "A worker stopped after a failure, so the others were stopped too."
        ) in err

    def test_what_is_being_handled_is_finished(self, registry, start):
        """Also where each worker is sent the signal as well, as systemd does."""
        process = start("--processes", "1")
        send(registry, 1, how="slow")
        send(registry, 2)
        wait_until(lambda: rows()[0].owner)
        time.sleep(0.3)

        (worker,) = children_of(process.pid)
        os.kill(worker, signal.SIGTERM)
        process.terminate()
        code, _out, _err = end_of(process)

        assert code == 0
        assert numbers()[:1] == [1]
        assert not OutboxMessage.objects.filter(owner__isnull=False).exists()

    def test_one_that_has_used_its_memory_is_replaced(self, registry, start):
        """The others are not left alone with the work."""
        process = start("--processes", "1", "--max-megabytes", "130", "-v", "2")
        send(registry, 1, how="grow")
        wait_until(lambda: len(numbers()) == 1)
        send(registry, 2)
        wait_until(lambda: len(numbers()) == 2)

        process.terminate()
        code, _out, err = end_of(process)

        assert code == 0
        assert len(workers()) == 2
        assert "has used all the memory it is allowed; another starts in" in err


def children_of(pid):
    """Return the processes that one has started and that still run."""
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may have ended since the folder was read.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += (task / "children").read_text().split()
    return list(filter(is_alive, map(int, found)))


@pytest.mark.parametrize("number", ["0", "x"])
def test_a_number_of_processes_that_is_none(number):
    """It is refused with what is wanted."""
    with pytest.raises(CommandError, match="is not a whole number of at least 1"):
        call_command("cqrs_worker", "outbox", "--processes", number)
