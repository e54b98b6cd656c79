"""Run every benchmark and print one table: ``python -m tests.benchmarks``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.results import Row

DEFAULT_POSTGRES_URL = "postgres://postgres@127.0.0.1:5432/postgres"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
DEFAULT_RABBITMQ_URL = "amqp://guest:guest@127.0.0.1:5672//"
PARTS = (
    "buses",
    "transactions",
    "model",
    "events",
    "outbox",
    "schedules",
    "tasks",
    "desk",
    "engines",
)


def parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, and no bound is enforced"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="run this part alone; may be given more than once",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results there as well"
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="write those of a complete run into this page, if every bound holds",
    )
    parser.add_argument(
        "--postgres",
        metavar="URL",
        default=DEFAULT_POSTGRES_URL,
        help="a server to make a database on; empty for none (default: %(default)s)",
    )
    parser.add_argument(
        "--require-postgres",
        action="store_true",
        help="fail where no server can be reached",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        default=DEFAULT_REDIS_URL,
        help="a server for Celery's queue; empty for none (default: %(default)s)",
    )
    parser.add_argument(
        "--rabbitmq",
        metavar="URL",
        default=DEFAULT_RABBITMQ_URL,
        help="another one (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        metavar="PYTHON",
        default=sys.executable,
        help="the interpreter that all workers run with (default: this one)",
    )
    return parser.parse_args()


class Watch:
    """Tells how long the parts of a run take, by the clock on the wall."""

    def __init__(self) -> None:
        """Start with no parts."""
        self._began = perf_counter()
        self._taken: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time of the block to that of a part."""
        began = perf_counter()
        try:
            yield
        finally:
            taken = perf_counter() - began
            self._taken[part] = self._taken.get(part, 0.0) + taken

    def rows(self) -> list[Row]:
        """Return a row for each part, and one for the whole run."""
        from tests.benchmarks.results import Row

        every = {**self._taken, "the whole run": perf_counter() - self._began}
        return [
            Row(section="How long this took", what=part, value=seconds, unit="s")
            for part, seconds in every.items()
        ]


def run(options: argparse.Namespace) -> tuple[list[Row], list[str], str | None]:
    """Return the rows, what is to be said about them, and why no PostgreSQL."""
    from tests.benchmarks import transactions

    parts = options.only or PARTS
    rows: list[Row] = []
    notes: list[str] = []
    watch = Watch()
    missing = None
    if "buses" in parts:
        with watch.timing("buses"):
            in_process(rows, notes, quick=options.quick)
    # Always: its twin says how busy the machine is.
    with watch.timing("transactions"):
        transactions.make_sqlite_tables()
        rows += transactions.insert_of_one_row(
            "default",
            rounds=5 if options.quick else 300,
            calls=10 if options.quick else 60,
        )
        if "transactions" in parts:
            rows += transactions.alias_by_header(
                "default",
                rounds=5 if options.quick else 300,
                calls=10 if options.quick else 60,
            )
    if set(parts) != {"buses"}:
        with transactions.postgres_database() as missing:
            if missing is None:
                on_postgres(rows, notes, options, parts, watch)
            else:
                notes.append(f"PostgreSQL was not run: {missing}.")
    return [*rows, *watch.rows()], notes, missing


def in_process(rows: list[Row], notes: list[str], *, quick: bool) -> None:
    """Measure what needs no database."""
    from tests.benchmarks import buses, scale

    many = 5 if quick else 300
    against_signal, missing = buses.against_signal(rounds=many)
    rows += against_signal
    notes += missing
    rows += scale.many_routes(100 if quick else 10_000, rounds=many)
    handlers = (20, 200) if quick else (1_000, 10_000)
    rows += scale.listing(*handlers, rounds=2 if quick else 5)
    rows += scale.graph(handlers[0], rounds=2 if quick else 7)
    rows += scale.pairs(handlers[-1], rounds=many)
    rows += scale.start_up(100 if quick else 1_000, rounds=2 if quick else 7)
    rows += scale.lock_check(100 if quick else 1_000, rounds=2 if quick else 7)
    rows += scale.imports(rounds=2 if quick else 15)
    rows += scale.memory(8_000 if quick else 1_000_000)
    rows += scale.names(10_000 if quick else 1_000_000)
    rows += buses.variations(rounds=many)
    rows += buses.interceptors(rounds=many)
    rows += buses.asynchronous(rounds=many)
    rows += buses.conversion(rounds=many)
    rows += buses.empty_transaction(rounds=many)


def on_postgres(
    rows: list[Row],
    notes: list[str],
    options: argparse.Namespace,
    parts: Sequence[str],
    watch: Watch,
) -> None:
    """Measure what waits for the disk of a server."""
    from tests.benchmarks import (
        desk,
        engines,
        events,
        modelling,
        outbox,
        schedules,
        tasks,
        transactions,
    )

    if "transactions" in parts:
        with watch.timing("transactions"):
            rows += transactions.insert_of_one_row(
                "postgres",
                rounds=3 if options.quick else 200,
                calls=10 if options.quick else 60,
            )
            rows += transactions.alias_by_header(
                "postgres",
                rounds=3 if options.quick else 200,
                calls=10 if options.quick else 60,
            )
    if "model" in parts:
        with watch.timing("model"):
            rows += modelling.run(
                rounds=3 if options.quick else 200, calls=10 if options.quick else 60
            )
    if "events" in parts:
        for alias in ("postgres", "default"):
            with watch.timing("events"):
                more, said = events.run(alias, quick=options.quick)
            rows += more
            notes += said
    if "outbox" in parts:
        with watch.timing("outbox"):
            more, said = outbox.run(
                "postgres",
                quick=options.quick,
                python=options.workers,
                redis=options.redis,
            )
        rows += more
        notes += said
    if "schedules" in parts:
        with watch.timing("schedules"):
            more, said = schedules.run(
                "postgres",
                quick=options.quick,
                python=options.workers,
                redis=options.redis,
            )
        rows += more
        notes += said
    if "tasks" in parts:
        with watch.timing("tasks"):
            more, said = tasks.run(
                "postgres", quick=options.quick, python=options.workers
            )
        rows += more
        notes += said
    if "desk" in parts:
        with watch.timing("desk"):
            more, said = desk.run("postgres", quick=options.quick)
        rows += more
        notes += said
    if "engines" in parts:
        with watch.timing("engines"):
            more, said = engines.run(
                "postgres",
                quick=options.quick,
                python=options.workers,
                brokers={"Redis": options.redis, "RabbitMQ": options.rabbitmq},
            )
        rows += more
        notes += said


def main() -> int:
    """Return 1 if a bound is missed on a quiet machine, or no required server is."""
    options = parsed()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.settings"
    os.environ["BENCHMARKS_POSTGRES_URL"] = options.postgres

    import django

    django.setup()

    from tests.benchmarks.results import (
        HELD,
        as_json,
        facts,
        page,
        table,
        verdict,
    )

    rows, notes, no_postgres = run(options)
    known = facts()

    print(table(rows))
    print()
    print(known["python"])
    print(f"{known['system']}, {known['processor']}")
    print(", ".join(f"{k} {v}" for k, v in known["packages"].items() if v))
    for note in notes:
        print(note)
    said, is_passed = verdict(rows, is_judged=not options.quick)
    print(said)
    if options.page is not None and not options.only and said == HELD:
        text = options.page.read_text(encoding="utf-8")
        options.page.write_text(page(text, rows, known, notes), encoding="utf-8")
    if options.json is not None:
        results = json.dumps(as_json(rows, known, notes), indent=2, ensure_ascii=False)
        options.json.write_text(f"{results}\n", encoding="utf-8")
    if no_postgres is not None and options.require_postgres:
        return 1
    return 0 if is_passed else 1


if __name__ == "__main__":
    sys.exit(main())
