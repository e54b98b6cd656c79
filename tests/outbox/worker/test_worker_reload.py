"""``manage.py cqrs_worker`` under ``DEBUG``: it starts again when code changes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.limits import LIMIT

ROOT = Path(__file__).resolve().parents[3]
RELOADED = """
import sys

import django
from django.conf import settings

settings.configure(
    DEBUG=True,
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {name!r}}}}},
    INSTALLED_APPS=["django_cqrs", "django_cqrs.outbox", "desk"],
    DJANGO_CQRS={{
        "CHANNELS": {{"mail": {{"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}}}}
    }},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
django.setup()
from django.core.management import call_command

call_command("migrate", verbosity=0)
call_command("cqrs_worker", "mail", *sys.argv[1:])
"""
HANDLERS = """
import os
from dataclasses import dataclass

from django_cqrs import command_handler

@dataclass(frozen=True)
class Mail:
    number: int

@command_handler(channel="mail")
def send(mail: Mail) -> None:
    print({word!r}, flush=True)

os.write(1, b"loaded {word}\\n")  # at once: several processes say so
"""


@pytest.fixture
def under_debug(tmp_path):
    """Start a worker of a project in a folder, under DEBUG; yield the starter."""
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "__init__.py").touch()
    handlers = tmp_path / "desk" / "handlers.py"
    handlers.write_text(HANDLERS.format(word="old"))
    script = tmp_path / "run.py"
    script.write_text(RELOADED.format(name=str(tmp_path / "db.sqlite3")))
    running = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "run.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process, handlers

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT)
        process.stdout.close()


def lines_until(process, wanted):
    """Return the lines that a process prints until one is as wanted."""
    found = []
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            found.append(line.rstrip("\n"))
            if found[-1] == wanted:
                return found
    finally:
        watchdog.cancel()
    raise AssertionError(found)


def test_under_debug_it_starts_again_when_code_changes(under_debug):
    """As runserver does: the handlers of the new code are then in use."""
    process, handlers = under_debug()
    lines_until(process, "Handling mail of 'default'.")
    time.sleep(1.5)  # the reloader looks once a second

    handlers.write_text(HANDLERS.format(word="new"))

    assert "loaded new" in lines_until(process, "Handling mail of 'default'.")


def test_several_workers_start_again_when_code_changes(under_debug):
    """The supervisor does, and the workers of the old one end with it."""
    process, handlers = under_debug("--processes", "2")
    for _ in range(2):
        lines_until(process, "Handling mail of 'default'.")
    time.sleep(1.5)

    handlers.write_text(HANDLERS.format(word="new"))

    lines = lines_until(process, "Starting 2 workers.")
    for _ in range(2):
        lines += lines_until(process, "Handling mail of 'default'.")
    while lines.count("0 handled, 0 failed, 0 dead, 0 expired.") < 2:
        lines += lines_until(process, "0 handled, 0 failed, 0 dead, 0 expired.")
    assert lines.count("loaded new") == 3


@pytest.mark.parametrize("option", ["--no-reload", "--until-empty"])
def test_without_the_reloader_its_code_is_loaded_once(under_debug, option):
    """When told so, or where a bound ends it: the reloader's first process is none."""
    process, _handlers = under_debug(option, "--max-seconds", "0.5")

    output, _ = process.communicate(timeout=LIMIT)

    assert output.splitlines() == [
        "loaded old",
        "Handling mail of 'default'.",
        "0 handled, 0 failed, 0 dead, 0 expired.",
    ]
    assert process.returncode == 0
