"""A bound that the platform cannot keep is refused before the worker begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.limits import LIMIT

PROGRAM = """
import sys
sys.modules["resource"] = None  # as on Windows
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django_cqrs", "django_cqrs.outbox"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DJANGO_CQRS={"CHANNELS": {
        "mail": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}
    }},
)
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "cqrs_worker", "mail", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    "more", [(), ("--processes", "2"), ("--reload",), ("--until-empty",)], ids=str
)
def test_a_bound_of_memory_is_refused_where_memory_is_not_measured(more):
    """The command says so in one line and ends with 1, however it is to run."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--max-megabytes", "300", *more],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "CommandError: A worker cannot be limited by memory here: this platform "
        f"({sys.platform}) does not report how much a process has used. Limit it by "
        "messages or by seconds.\n"
    )
