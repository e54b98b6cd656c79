"""The example project, run from outside: its settings are not those of this suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.limits import LIMIT

PROJECT = Path(__file__).resolve().parents[2] / "example_project"
# What the suite or a developer has set must not leak into the example.
FOREIGN = {
    "ALLOWED_HOSTS",
    "COLUMNS",
    "DATABASE_URL",
    "DEBUG",
    "DJANGO_SETTINGS_MODULE",
    "FORCE_COLOR",
    "LINES",
    "PAYMENT_HOURS",
    "SECRET_KEY",
}


def environment(**variables: str) -> dict[str, str]:
    """Return what a child process sees: no variable of ours but these."""
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return own | variables


class Shop:
    """The example project with a database of its own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Given by the environment, so that a developer's own .env decides nothing.
        self.env = environment(
            ALLOWED_HOSTS="127.0.0.1",
            DATABASE_URL=f"sqlite:///{folder / 'shop.sqlite3'}",
            DEBUG="True",
            SECRET_KEY="a key for tests",
        )

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a management command."""
        manage = str(PROJECT / "manage.py")
        return [sys.executable, "-W", "error", manage, *arguments]

    def manage(self, *arguments: str) -> str:
        """Run a management command; return all that it printed."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout
