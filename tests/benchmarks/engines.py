"""Forwarding stored messages through Celery: our relay beside django-celery-outbox's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import connections

from tests.benchmarks.measuring import Comparison
from tests.benchmarks.results import Row, compared

ROOT = Path(__file__).resolve().parent.parent.parent
OURS, PEER = "django_cqrs", "django_celery_outbox"
NAMES = {OURS: "cqrs_worker", PEER: "django-celery-outbox's relay"}
AT_LEAST = 3.0


class Failed(Exception):
    """A relay did not do its work."""


def run(
    alias: str, *, quick: bool, python: str, brokers: dict[str, str]
) -> tuple[list[Row], list[str]]:
    """
    Return the rows, and what is to be said about them.

    Args:
        alias: of a PostgreSQL database; those of the relays are made beside it.
        quick: few messages, once.
        python: the interpreter that the relays run with.
        brokers: the name of each, and its URL; an empty one is left out.

    """
    if _missing(python):
        return [], ["django-celery-outbox is not installed, so it was left out."]
    count, rounds = (100, 1) if quick else (10_000, 3)
    rows: list[Row] = []
    notes = [
        (
            f"Forwarding: {rounds} rounds of {count:,} messages. A task of ours carries the "
            "ids of up to 50 messages, one of django-celery-outbox a message."
        )
    ]
    with databases(alias) as configs:
        for project in NAMES:
            _run(python, project, configs[project], "memory://", "migrate")
        for broker, url in brokers.items():
            if not url:
                notes.append(f"{broker} was left out: no URL of a server was given.")
                continue
            comparison = Comparison(list(NAMES.values()))
            for turn in range(rounds):
                for project in (OURS, PEER) if turn % 2 else (PEER, OURS):
                    said = _run(python, project, configs[project], url, str(count))
                    seconds = float(said.splitlines()[-1]) / count
                    comparison.times[NAMES[project]].append(seconds)
            rows.append(
                compared(
                    comparison,
                    f"Forwarding stored messages through Celery to {broker}, each",
                    NAMES[OURS],
                    NAMES[PEER],
                    at_least=AT_LEAST,
                    inverse=True,
                )
            )
    return rows, notes


@contextmanager
def databases(alias: str) -> Iterator[dict[str, dict[str, object]]]:
    """Make an empty database for each project; yield what their settings say."""
    connection = connections[alias]
    wanted = ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")
    shared = {key: connection.settings_dict[key] for key in wanted}
    names = {key: f"django_cqrs_benchmarks_{os.getpid()}_{key}" for key in NAMES}
    with connection.cursor() as cursor:
        for name in names.values():
            cursor.execute(f'CREATE DATABASE "{name}"')
    try:
        yield {key: {**shared, "NAME": name} for key, name in names.items()}
    finally:
        with connection.cursor() as cursor:
            for name in names.values():
                cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _missing(python: str) -> bool:
    code = (
        "import sys; from importlib.util import find_spec; "
        f"sys.exit(not all(map(find_spec, ('celery', {PEER!r}))))"
    )
    return bool(subprocess.run([python, "-c", code], check=False).returncode)


def _run(
    python: str, project: str, config: dict[str, object], broker: str, action: str
) -> str:
    done = subprocess.run(
        [python, "-m", "tests.benchmarks.forwarding", action],
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if k != "CELERY_BROKER_URL"},
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks.forwarding.settings",
            "BENCHMARKS_PROJECT": project,
            "BENCHMARKS_DATABASE": json.dumps(config),
            "BENCHMARKS_BROKER": broker,
            "BENCHMARKS_TASK_QUEUE": f"django_cqrs_benchmarks_{os.getpid()}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        msg = f"{NAMES[project]}, {action}, {broker}:\n{done.stdout}{done.stderr}"
        raise Failed(msg)
    return done.stdout
