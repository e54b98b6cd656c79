"""``python -m tests.benchmarks.desk_site FEW MANY ROUNDS``: print what was measured."""

from __future__ import annotations

import json
import statistics
import sys
from time import perf_counter
from typing import Any

import django

django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.test import Client  # noqa: E402

from tests.benchmarks.desk_site import pages, rows  # noqa: E402


def queries_of(client: Client, page: pages.Page) -> int:
    """Open a page; return how many statements that took."""
    said: list[str] = []

    def listen(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        said.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(listen):
        page.open(client)
    return len(said)


def times_of(client: Client, page: pages.Page, rounds: int) -> list[float]:
    """Open a page so often; return how long each took."""
    taken = []
    for _ in range(rounds):
        start = perf_counter()
        page.open(client)
        taken.append(perf_counter() - start)
    return taken


def main(few: int, many: int, rounds: int) -> None:
    """Open all pages with few rows, then with many."""
    call_command("migrate", verbosity=0)
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    counts: dict[str, list[int]] = {}
    last = 0
    for total in (few, many):
        for model in rows.MODELS:
            rows.fill(model, last + 1, total)
        rows.tidy()
        last = total
        for page in pages.every_page():
            if total == few:
                page.open(client)  # what is made at first use is made now
            counts.setdefault(page.name, []).append(queries_of(client, page))
    found = []
    for page in pages.every_page():
        times = times_of(client, page, rounds)
        found.append(
            {
                "page": page.name,
                "queries": counts[page.name],
                "median": statistics.median(times),
                "low": min(times),
                "high": max(times),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
