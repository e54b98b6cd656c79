"""The desk in Django's admin, with a great many rows in its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from django.db import connections

from tests.benchmarks.results import Row

ROOT = Path(__file__).resolve().parent.parent.parent
BOUND = 200.0
FEW = 1_000


class Failed(Exception):
    """The pages could not be opened."""


def run(alias: str, *, quick: bool) -> tuple[list[Row], list[str]]:
    """
    Return the rows, and what is to be said about them.

    Args:
        alias: of a PostgreSQL database; that of the desk is made beside it.
        quick: few rows, opened twice.

    """
    many, rounds = (FEW + 100, 1) if quick else (1_000_000, 15)
    found = _measured(alias, many, rounds)
    section = f"The desk, {many:,} messages, dead letters and entries of the journal"
    rows = [
        Row(
            section=section,
            what=f"{each['page']} ({each['queries'][1]} queries)",
            value=each["median"] * 1000,
            unit="ms",
            low=each["low"] * 1000,
            high=each["high"] * 1000,
            bound=BOUND,
            rounds=rounds,
        )
        for each in found
    ]
    more = {each["page"]: each["queries"][1] - each["queries"][0] for each in found}
    worst = max(more, key=lambda page: more[page])
    rows.append(
        Row(
            section=f"Queries more than with {FEW:,} rows",
            what=f"the most of all pages: {worst}" if more[worst] else "of any page",
            value=more[worst],
            unit="queries",
            bound=0,
        )
    )
    note = f"The desk: {len(found)} pages, {rounds} rounds of each."
    return rows, [note]


def _measured(alias: str, many: int, rounds: int) -> list[dict[str, object]]:
    connection = connections[alias]
    wanted = ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")
    name = f"django_cqrs_benchmarks_{os.getpid()}_desk"
    config = {key: connection.settings_dict[key] for key in wanted} | {"NAME": name}
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.benchmarks.desk_site"),
                *map(str, (FEW, many, rounds)),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.benchmarks.desk_site.settings",
                "BENCHMARKS_DATABASE": json.dumps(config),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    if done.returncode:
        msg = f"{done.stdout}{done.stderr}"
        raise Failed(msg)
    found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found
