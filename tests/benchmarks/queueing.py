"""The queues that are compared: how each is set up, and how its worker is run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

from django.db import connections

ROOT = Path(__file__).resolve().parent.parent.parent
STAMP = struct.Struct("d")
FIRST = 100
"""The call at which the clock starts: by then a worker has begun in earnest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Queue:
    """A queue whose worker is a process."""

    key: str
    name: str
    package: str
    module: str
    """What to import to see that it is installed."""
    command: tuple[str, ...]
    """Of its worker, after ``python -m``."""
    messages: int
    """How many it handles in a few seconds."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    project: str = ""
    """Whose project it runs in, where that is not one of its own."""

    @property
    def database(self) -> str:
        return self.project or self.key


def _manage(*arguments: str) -> tuple[str, ...]:
    return ("django", *arguments)


OURS = Queue(
    "django_cqrs",
    "cqrs_worker",
    "django-cqrs-kit",
    "django_cqrs",
    _manage("cqrs_worker", "orders", "-v0"),
    10_000,
)
OURS_POLLING = dataclasses.replace(
    OURS,
    name='cqrs_worker, "NOTIFY": False',
    environment={"BENCHMARKS_NOTIFY": "0"},
)
OURS_TWICE = dataclasses.replace(
    OURS,
    name="cqrs_worker --processes 2",
    command=(*OURS.command, "--processes", "2"),
)
OURS_TASKS = Queue(
    "outbox_tasks",
    "cqrs_worker, OutboxTaskBackend",
    "django-cqrs-kit",
    "django_cqrs",
    _manage("cqrs_worker", "default", "-v0"),
    10_000,
)
RELIABLE_OUTBOX = Queue(
    "reliable_outbox",
    "django-reliable-outbox",
    "django-reliable-outbox",
    "reliable_outbox",
    _manage("outbox_worker"),
    4_000,
)
TASKS_DB = Queue(
    "tasks_db",
    "django-tasks-db",
    "django-tasks-db",
    "django_tasks_db",
    _manage("db_worker", "-v0", "--no-startup-delay", "--no-reload"),
    1_500,
)
PROCRASTINATE = Queue(
    "procrastinate",
    "procrastinate, ten coroutines",
    "procrastinate",
    "procrastinate",
    _manage("procrastinate", "worker", "--concurrency=10"),
    2_000,
)
CELERY = Queue(
    "celery",
    "Celery on Redis",
    "celery",
    "celery",
    (
        *("celery", "-A", "tests.benchmarks.queues.celery_tasks", "worker"),
        *("-P", "solo", "-l", "WARNING", "--without-gossip", "--without-mingle"),
    ),
    4_000,
)
BARE_WITH_SAVEPOINTS = Queue(
    "bare",
    "a bare loop, a savepoint for each",
    "",
    "django",
    ("tests.benchmarks.queues", "work", "{kind}", "savepoints"),
    10_000,
)
BARE = Queue(
    "bare",
    "a bare loop, no savepoints",
    "",
    "django",
    ("tests.benchmarks.queues", "work", "{kind}", "none"),
    20_000,
)
PEERS = (RELIABLE_OUTBOX, TASKS_DB, PROCRASTINATE, CELERY)


class Failed(Exception):
    """A process of a queue did not do its work."""


class Yard:
    """A database for each project, and the processes that use them."""

    def __init__(self, folder: Path, *, alias: str, python: str, redis: str) -> None:
        """Prepare to make databases beside that of an alias, with an interpreter."""
        self._folder = folder
        self._alias = alias
        self._python = python
        self._redis = redis
        self._prefix = f"django_cqrs_benchmarks_{os.getpid()}"
        self._databases: set[str] = set()

    def missing(self, queue: Queue) -> str | None:
        """Return why a queue cannot be measured, or None."""
        if queue.key == CELERY.key and (reason := self._no_redis()):
            return f"{queue.name} was left out: {reason}."
        done = self._python_code(f"import {queue.module}")
        if done.returncode:
            return f"{queue.package} is not installed, so it was left out."
        return None

    def versions(self, packages: tuple[str, ...]) -> dict[str, str | None]:
        """Return what is installed where the workers run."""
        code = (
            "import json, sys\n"
            "from importlib import metadata as m\n"
            "def v(name):\n"
            "    try:\n"
            "        return m.version(name)\n"
            "    except m.PackageNotFoundError:\n"
            "        return None\n"
            f"print(json.dumps({{name: v(name) for name in {packages!r}}}))"
        )
        found: dict[str, str | None] = json.loads(self._python_code(code).stdout)
        return found

    def _no_redis(self) -> str | None:
        if not self._redis:
            return "no URL of a server was given"
        code = f"import redis; redis.Redis.from_url({self._redis!r}).ping()"
        done = self._python_code(code)
        if not done.returncode:
            return None
        return done.stderr.strip().splitlines()[-1]

    def _python_code(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._python, "-c", code], capture_output=True, text=True, check=False
        )

    def _environment(self, queue: Queue, database: str) -> dict[str, str]:
        name = f"{self._prefix}_{database}"
        settings = connections[self._alias].settings_dict
        wanted = ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")
        return {
            **os.environ,
            **queue.environment,
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks.queues.settings",
            "PYTHONPATH": str(ROOT),
            "BENCHMARKS_QUEUE": queue.key,
            "BENCHMARKS_NAME": name,
            "BENCHMARKS_DATABASE": json.dumps(
                {**{key: settings[key] for key in wanted}, "NAME": name}
            ),
            "BENCHMARKS_REDIS": self._redis,
        }

    def database(self, queue: Queue, name: str = "") -> str:
        """Return the name of a queue's database, made at first use."""
        name = name or queue.database
        if name not in self._databases:
            with connections[self._alias].cursor() as cursor:
                cursor.execute(f'CREATE DATABASE "{self._prefix}_{name}"')
            self._databases.add(name)
            self.do(queue, "migrate", database=name)
        return name

    def drop_databases(self) -> None:
        with connections[self._alias].cursor() as cursor:
            for name in self._databases:
                cursor.execute(
                    f'DROP DATABASE IF EXISTS "{self._prefix}_{name}" WITH (FORCE)'
                )

    def do(self, queue: Queue, *action: str, database: str = "") -> str:
        """
        Have something done in a queue's project; return what it printed.

        Raises:
            Failed: it ended with an error.

        """
        done = subprocess.run(
            [self._python, "-m", "tests.benchmarks.queues", *action],
            cwd=ROOT,
            env=self._environment(queue, database or queue.database),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failed(f"{queue.name}: {' '.join(action)}\n{done.stderr}")
        return done.stdout

    @contextmanager
    def worker(
        self, queue: Queue, kind: str, *, database: str = "", **variables: object
    ) -> Iterator[Path]:
        """Run a queue's worker; yield the file that its handlers write to."""
        file = self._folder / f"{queue.key}.jsonl"
        log = self._folder / f"{queue.key}.log"
        file.write_text("")
        with log.open("w") as said:
            process = subprocess.Popen(
                [
                    *(self._python, "-m"),
                    *(part.format(kind=kind) for part in queue.command),
                ],
                cwd=ROOT,
                env={
                    **self._environment(queue, database or queue.database),
                    "BENCHMARKS_RECORD": str(file),
                    **{
                        f"BENCHMARKS_{key}": str(each)
                        for key, each in variables.items()
                    },
                },
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        try:
            yield file
        except Failed as error:
            raise Failed(f"{error}\n{log.read_text()[-2000:]}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def seconds_per_message(
        self, queue: Queue, kind: str, count: int, *, database: str = ""
    ) -> float:
        """Have messages stored, then handled by one worker; return its pace."""
        name = self.database(queue, database)
        self.do(queue, "fill", kind, str(count), database=name)
        with self.worker(
            queue, kind, database=name, FIRST=min(FIRST, count // 2), LAST=count
        ) as file:
            (line,) = _lines(file, 1, queue, seconds=60 + count / 20)
        return line["seconds"] / line["calls"]

    def seconds_by_stamps(self, queue: Queue, kind: str, count: int) -> float:
        """Have messages stored, then handled by all processes of a worker."""
        name = self.database(queue)
        self.do(queue, "fill", kind, str(count), database=name)
        with self.worker(queue, kind, database=name, CALLS="stamps") as file:
            stamps = _stamps(file, count, queue, seconds=60 + count / 20)
        first = min(FIRST, count // 2)
        return (stamps[-1] - stamps[first]) / (len(stamps) - first)

    def seconds_per_call(self, queue: Queue, kind: str, count: int) -> float:
        """Have messages sent in transactions of many; return the pace of the sender."""
        name = self.database(queue)
        return float(self.do(queue, "pace", kind, str(count), database=name))

    def latencies(self, queue: Queue, count: int, *, database: str = "") -> list[float]:
        """Send messages to a worker that is idle; return the seconds each took."""
        name = self.database(queue, database)
        with self.worker(queue, "count", database=name, CALLS="each") as file:
            self.do(queue, "fill", "count", "1", database=name)
            _lines(file, 1, queue, seconds=60)
            sleep(1)  # what it does after a message is done
            sent = json.loads(self.do(queue, "send", str(count), database=name))
            lines = _lines(file, count + 1, queue, seconds=60)
        return [line["at"] - sent[str(line["number"])] for line in lines[1:]]


def _lines(
    file: Path, count: int, queue: Queue, *, seconds: float
) -> list[dict[str, Any]]:
    """Wait for so many lines of what handlers write."""
    end = monotonic() + seconds
    while monotonic() < end:
        lines = file.read_text().splitlines()
        if len(lines) >= count:
            return [json.loads(line) for line in lines]
        sleep(0.05)
    raise Failed(f"{queue.name} did not handle its messages in {seconds:.0f} s.")


def _stamps(file: Path, count: int, queue: Queue, *, seconds: float) -> list[float]:
    """Wait for so many moments that handlers were called at; return them in order."""
    end = monotonic() + seconds
    while monotonic() < end:
        if file.stat().st_size >= count * STAMP.size:
            return sorted(moment for (moment,) in STAMP.iter_unpack(file.read_bytes()))
        sleep(0.05)
    raise Failed(f"{queue.name} did not handle its messages in {seconds:.0f} s.")


@contextmanager
def yard(*, alias: str, python: str, redis: str) -> Iterator[Yard]:
    """Make a yard, and tidy it up at the end."""
    with TemporaryDirectory() as folder:
        place = Yard(Path(folder), alias=alias, python=python, redis=redis)
        try:
            yield place
        finally:
            place.drop_databases()
