from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
OUTBOX_BOUNDS = 7
SERVER = os.environ.get("DATABASE_URL", "")
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
        timeout=300,
        check=False,
    )


def test_a_quick_run_prints_the_table_and_enforces_no_bound(tmp_path):
    """`--quick` shows every line of the table; times belong to a quiet machine."""
    file = tmp_path / "results.json"

    done = run("--postgres", "", "--json", str(file))

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    bounds = [row for row in results["rows"] if row["bound"] is not None]
    assert len(bounds) == 20
    assert all(row["what"] in done.stdout for row in results["rows"])
    assert "PostgreSQL was not run: no URL of a server was given." in results["notes"]
    assert all(note in done.stdout for note in results["notes"])
    assert "no bound is enforced" in done.stdout
    for package, module in PEERS.items():
        left_out = f"{package} is not installed, so it was left out."
        assert (left_out in results["notes"]) == (find_spec(module) is None)


@pytest.mark.database
@pytest.mark.skipif(
    not SERVER.startswith("postgres"), reason="Relays are measured on PostgreSQL."
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
    assert results["rows"] == []
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
    not SERVER.startswith("postgres"), reason="The desk is measured on PostgreSQL."
)
def test_a_quick_run_of_the_desk(tmp_path):
    """`--only desk` opens every page, and each takes as many queries as with fewer."""
    file = tmp_path / "results.json"

    done = run("--only", "desk", "--postgres", SERVER, "--json", str(file))

    assert done.stderr == ""
    assert done.returncode == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    *pages, more = results["rows"]
    assert {row["bound"] for row in pages} == {200}
    assert {row["unit"] for row in pages} == {"ms"}
    for page in DESK_PAGES:
        assert any(row["what"].startswith(page) for row in pages)
    assert (more["value"], more["bound"], more["unit"]) == (0, 0, "queries")
    assert results["notes"] == [f"The desk: {len(pages)} pages, 1 rounds of each."]


def test_a_server_that_is_required_and_not_there_fails_the_run():
    """`--require-postgres` fails where no server can be reached, and says so."""
    done = run("--postgres", NO_SERVER, "--require-postgres")

    assert "PostgreSQL was not run: " in done.stdout
    assert done.returncode == 1


@pytest.mark.database
@pytest.mark.skipif(
    not SERVER.startswith("postgres"), reason="The outbox is measured on PostgreSQL."
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
        for row in results["rows"]
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
