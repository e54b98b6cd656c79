from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarks.measuring import Comparison
from tests.benchmarks.results import BUSY, HELD, Row, page, verdict
from tests.limits import LIMIT

ROOT = Path(__file__).resolve().parent.parent
PEERS = {
    "python-cqrs": "cqrs",
    "mediatr": "mediatr",
    "lato": "lato",
    "django-queuebie": "queuebie",
}
DESK_PAGES = (
    "channels at a glance",
    "the timeline of a message",
    "the timeline of an object",
    "journal entries, the list",
    "messages, the list",
    "messages, found by message id",
    "messages, found by correlation id",
    "messages, found by name",
    "messages, delete all?",
    "messages, one",
    "dead letters, the list",
    "dead letters, of a reason",
    "dead letters, found by endpoint",
    "dead letters, replay all?",
    "dead letters, one",
)
OUTBOX_BOUNDS = 9
DURATIONS = "How long this took"
INSERT = "A command that inserts one row, SQLite"
SERVER = os.environ.get("DATABASE_URL", "")
IS_SOAK = os.environ.get("CQRS_SOAK") == "1"
NO_SERVER = "postgres://postgres@127.0.0.1:1/postgres"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as `make bench ARGS=--quick` does."""
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )


def rows_of(results):
    """Return the rows of a part alone: each run says how busy the machine is."""
    noise = [row for row in results["rows"] if row["section"].startswith(INSERT)]
    assert len(noise) == 2
    durations = [row for row in results["rows"] if row["section"] == DURATIONS]
    assert len(durations) == 3  # the noise, the part, the whole run
    assert all(row["value"] > 0 and row["unit"] == "s" for row in durations)
    return [row for row in results["rows"] if row not in (*noise, *durations)]


def row(value, **options):
    return Row(section="", what="", value=value, **options)


def test_a_machine_that_is_too_busy_is_not_judged():
    """A function compared with itself has a ratio of one, and how surely is known."""
    quiet, busy = Comparison(["a", "b"]), Comparison(["a", "b"])
    for number in range(100):
        quiet.times["a"].append(1 + number % 10 / 1000)
        busy.times["a"].append(1 + number % 10 / 10)
        quiet.times["b"].append(1)
        busy.times["b"].append(1)

    assert quiet.certain("a", "b") == (1.003, 1.006)
    assert busy.certain("a", "b") == (1.3, 1.6)
    assert verdict([row(2, bound=2)]) == (HELD, True)
    assert verdict([row(2, bound=1)]) == ("1 of the bounds are missed.", False)
    assert verdict([row(2, bound=1), row(1.1, is_noisy=True)]) == (BUSY, True)
    assert verdict([row(2, bound=1)], is_judged=False)[1]


def test_the_results_are_written_into_the_page_between_its_headings():
    """What stands before and after them stays as it is."""
    text = "# Speed\n\n## Results\n\nOld ones.\n\n## How to\n\nType it.\n"
    facts = {"python": "P", "system": "S", "processor": "C", "packages": {"a": "1"}}
    found = [
        Row(section="One", what="a", value=2.0, base="b", base_seconds=1e-6, bound=3)
    ]

    written = page(text, found, facts, ["Said."])

    assert written == (
        "# Speed\n\n## Results\n\n- P; S, C; a 1.\n- Said.\n\n"
        "|  | one call | ratio | min..max | bound | holds |\n"
        "| --- | ---: | ---: | ---: | ---: | --- |\n"
        "| **One** |  |  |  |  |  |\n"
        "| b | 1,000 ns | 1 x |  |  |  |\n"
        "| a |  | 2.000 x |  | 3 x | yes |\n\n"
        "## How to\n\nType it.\n"
    )
    assert page(written, found, facts, ["Said."]) == written


def test_a_server_that_is_far_is_the_same_one_and_each_trip_takes_longer():
    """Everything arrives in order, and 1 ms later."""
    near = socket.create_server(("127.0.0.1", 0))

    def echo():
        connection, _ = near.accept()
        while data := connection.recv(2**16):
            connection.sendall(data)
        connection.close()

    threading.Thread(target=echo, daemon=True).start()
    proxy = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.benchmarks.far",
            "127.0.0.1",
            str(near.getsockname()[1]),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        place = "127.0.0.1", int(proxy.stdout.readline())
        with socket.create_connection(place) as far:
            began = time.monotonic()
            for number in range(20):
                far.sendall(bytes([number]))
                assert far.recv(1) == bytes([number])
            taken = time.monotonic() - began
            sent = os.urandom(100_000)
            far.sendall(sent)
            got = b""
            while len(got) < len(sent):
                got += far.recv(2**16)
        assert got == sent
        assert taken > 20 * 0.001
    finally:
        proxy.kill()
        proxy.communicate()
        near.close()


def test_a_quick_run_prints_the_table_and_enforces_no_bound(tmp_path):
    """`--quick` shows every line of the table; times belong to a quiet machine."""
    file = tmp_path / "results.json"

    done = run("--postgres", "", "--json", str(file))

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    bounds = [row for row in results["rows"] if row["bound"] is not None]
    assert len(bounds) == 23
    assert all(row["what"] in done.stdout for row in results["rows"])
    assert [row["what"] for row in results["rows"] if row["section"] == DURATIONS] == [
        "buses",
        "transactions",
        "the whole run",
    ]
    assert "PostgreSQL was not run: no URL of a server was given." in results["notes"]
    assert all(note in done.stdout for note in results["notes"])
    assert "no bound is enforced" in done.stdout
    for package, module in PEERS.items():
        left_out = f"{package} is not installed, so it was left out."
        assert (left_out in results["notes"]) == (find_spec(module) is None)


@pytest.mark.database
@pytest.mark.skipif(
    not (SERVER.startswith("postgres") and IS_SOAK),
    reason="Relays are measured on PostgreSQL, and tried by `make soak`.",
)
def test_a_quick_run_of_the_engines(tmp_path):
    """`--only engines` runs the relays on the brokers that are given, and no more."""
    file = tmp_path / "results.json"

    done = run(
        *("--only", "engines", "--postgres", SERVER, "--redis", "", "--rabbitmq", ""),
        *("--json", str(file)),
    )

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    assert rows_of(results) == []
    if find_spec("django_celery_outbox") is None:
        assert results["notes"] == [
            "django-celery-outbox is not installed, so it was left out."
        ]
    else:
        assert results["notes"][1:] == [
            f"{broker} was left out: no URL of a server was given."
            for broker in ("Redis", "RabbitMQ")
        ]


@pytest.mark.database
@pytest.mark.skipif(
    not (SERVER.startswith("postgres") and IS_SOAK),
    reason="The desk is measured on PostgreSQL, and tried by `make soak`.",
)
def test_a_quick_run_of_the_desk(tmp_path):
    """`--only desk` opens every page, and each takes as many queries as with fewer."""
    file = tmp_path / "results.json"

    done = run("--only", "desk", "--postgres", SERVER, "--json", str(file))

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    *pages, more = rows_of(results)
    assert {row["bound"] for row in pages} == {200}
    assert {row["unit"] for row in pages} == {"ms"}
    for title in DESK_PAGES:
        assert any(row["what"].startswith(title) for row in pages)
    assert (more["value"], more["bound"], more["unit"]) == (0, 0, "queries")
    assert results["notes"] == [f"The desk: {len(pages)} pages, 1 rounds of each."]


@pytest.mark.database
@pytest.mark.skipif(
    not (SERVER.startswith("postgres") and IS_SOAK),
    reason="Events are measured on PostgreSQL, and tried by `make soak`.",
)
def test_a_quick_run_of_the_events_has_two_databases(tmp_path):
    """`--only events` compares each of its cases on PostgreSQL and on SQLite."""
    file = tmp_path / "results.json"

    done = run("--only", "events", "--postgres", SERVER, "--json", str(file))

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    found = rows_of(results)
    has_library = find_spec("eventsourcing") is not None
    beside = sum("beside eventsourcing" in row["section"] for row in found)
    assert beside == 2 * has_library
    assert sum("PostgreSQL" in row["section"] for row in found) == 7 + beside
    assert sum("SQLite" in row["section"] for row in found) == 7
    assert all(row["bound"] or row["at_least"] for row in found)


def test_a_server_that_is_required_and_not_there_fails_the_run():
    """`--require-postgres` fails where no server can be reached, and says so."""
    done = run("--postgres", NO_SERVER, "--require-postgres")

    assert "PostgreSQL was not run: " in done.stdout
    assert done.returncode == 1


@pytest.mark.database
@pytest.mark.skipif(
    not (SERVER.startswith("postgres") and IS_SOAK),
    reason="Tasks are measured on PostgreSQL, and tried by `make soak`.",
)
def test_a_quick_run_of_the_tasks_has_both_backends(tmp_path):
    """`--only tasks` compares enqueueing, handling and waking up, and no more."""
    file = tmp_path / "results.json"

    done = run("--only", "tasks", "--postgres", SERVER, "--json", str(file))

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    sections = [row["section"] for row in rows_of(results)]
    assert sections == [
        "Enqueueing a task",
        "Handling with one worker, a task that does nothing",
        "Handling with one worker, a task that inserts one row",
        "From commit to task with an idle worker, median",
    ]


@pytest.mark.database
@pytest.mark.skipif(
    not (SERVER.startswith("postgres") and IS_SOAK),
    reason="Schedules are measured on PostgreSQL, and tried by `make soak`.",
)
def test_a_quick_run_of_the_schedules(tmp_path):
    """`--only schedules` looks, settles, and fires beside the peers that are there."""
    file = tmp_path / "results.json"

    done = run(
        *("--only", "schedules", "--postgres", SERVER, "--redis", ""),
        *("--json", str(file)),
    )

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    rows = rows_of(results)
    assert [row["what"] for row in rows[:3]] == [
        "a look of a worker",
        "statements of a worker in a second",
        "flow.settle()",
    ]
    assert len(rows) == 3 + (find_spec("procrastinate") is not None)
    assert all(row["value"] > 0 for row in rows)
    assert (
        "django-celery-beat's ticks, to Redis was left out: no URL of a server was "
        "given." in results["notes"]
    )


@pytest.mark.database
@pytest.mark.skipif(
    not (SERVER.startswith("postgres") and IS_SOAK),
    reason="The outbox is measured on PostgreSQL, and tried by `make soak`.",
)
def test_a_quick_run_of_the_outbox_says_how_little_it_measured(tmp_path):
    """`--only outbox` runs the workers, those of installed peers too, and no more."""
    file = tmp_path / "results.json"

    done = run(
        *("--only", "outbox", "--postgres", SERVER, "--redis", ""),
        *("--json", str(file)),
    )

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    bounds = [
        row
        for row in rows_of(results)
        if row["bound"] is not None or row["at_least"] is not None
    ]
    missing = [note for note in results["notes"] if "left out" in note]
    # Handling and waking up are compared with a peer, where there is one.
    has_reliable_outbox = find_spec("reliable_outbox") is not None
    has_peer = has_reliable_outbox or find_spec("django_tasks_db") is not None
    assert len(bounds) == OUTBOX_BOUNDS + has_peer + has_reliable_outbox
    assert all(row["value"] > 0 for row in results["rows"])
    assert "Celery on Redis was left out: no URL of a server was given." in missing
    assert re.search(
        r"Outbox: 1 rounds of 200 messages of ours and 80 of django-reliable-outbox, "
        r"100 messages in one command, 1 x 2 latencies, 1,000 delayed messages",
        done.stdout,
    )
    assert "Many routes, by class" not in done.stdout
