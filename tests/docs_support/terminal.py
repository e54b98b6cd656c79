"""The terminal of a page: one shell, which remembers where it is."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.docs_support.comparison import difference, fits
from tests.docs_support.pages import ROOT
from tests.limits import LIMIT

# Where the page says the project is.
HOME = "/home/you"
TIMEOUT = LIMIT

# Targets of the Makefile that are run here. One that ran all tests would run itself, so
# it runs a few. The other targets are only read: CI runs them anyway.
MAKE = {
    "make demo": ["make", "demo"],
    "make test": [
        "make",
        "test",
        "WORKERS=0",
        "ARGS=tests/test_docs.py -k reference_of -p no:cacheprovider",
    ],
}
# The stamps of the Makefile: what is installed is taken for what it needs.
GROUPS = ("example", "test", "check", "bench", "services", "docs")


class Command(NamedTuple):
    """What is typed, and what the page says is printed."""

    line: str
    output: str

    def is_answered_by(self, printed: str) -> bool:
        """Return whether the page says this, or nothing."""
        return not self.output.strip() or fits(self.output, printed)


class Failure(Exception):
    """What a reader would have seen instead."""


def commands_of(source: str) -> list[Command]:
    """Take a console block apart; ``>`` continues a command."""
    commands: list[Command] = []
    for line in source.splitlines(keepends=True):
        if line.startswith("$ "):
            commands.append(Command(line[2:], ""))
        elif not commands:
            raise Failure(f"A console block begins with '$ ', not with {line!r}.")
        elif line.startswith("> ") and not commands[-1].output:
            commands[-1] = Command(commands[-1].line + line[2:], "")
        else:
            last = commands[-1]
            commands[-1] = last._replace(output=last.output + line)
    return [Command(each.line.strip(), each.output) for each in commands]


VARIABLES = {
    "LC_ALL": "C.UTF-8",
    "PATH": os.environ["PATH"],
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INDEX": "1",  # what is installed is found, what is not is not fetched
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}

FORKS = Path(__file__).with_name("forks.py")
# Typed in a terminal, by its first argument; `Terminal` asks for its warnings.
PYTHON = """#!/bin/sh
case "$PYTHONWARNINGS $1" in "error "*manage.py) exec {forked} "$@" ;; esac
exec {python} "$@"
"""


@functools.cache
def forked() -> tuple[str, ...]:
    """Return the command that runs ``python -W error``, but for the time of imports."""
    folder = tempfile.TemporaryDirectory(prefix="docs-")
    address = f"{folder.name}/forks"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        handle = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, "-W", "error", str(FORKS), "serve", str(handle)],
            env=VARIABLES,
            stdin=subprocess.PIPE,
            pass_fds=[handle],
        )

    def end() -> None:
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    return (sys.executable, "-I", "-S", str(FORKS), "run", address)


def environment(place: Path) -> dict[str, str]:
    """Return what a new terminal has, with nothing of this test run in it."""
    bin_ = place / ".bin"
    bin_.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    scripts = {
        "python": PYTHON.format(forked=shlex.join(forked()), python=python),
        "django-admin": f'#!/bin/sh\nexec {python} -m django "$@"\n',
    }
    for name, text in scripts.items():
        script = bin_ / name
        script.write_text(text)
        script.chmod(0o755)
    return {
        **VARIABLES,
        "HOME": str(place),
        "PATH": f"{bin_}{os.pathsep}{VARIABLES['PATH']}",
    }


class Terminal:
    """Types commands into one ``bash`` and reads what comes."""

    def __init__(self, home: Path, folder: Path, printed: Mapping[str, str]) -> None:
        """
        Open it.

        Args:
            home: the folder of whoever types.
            folder: the folder that they are in.
            printed: what has been printed by commands that are not run for this page.

        """
        self.home = home
        self.environment = environment(home)
        self._printed = printed
        self._last_status = 0
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGTERM)
        self._bash.communicate()

    def run_block(self, source: str) -> None:
        """Type every command of a block and compare what is printed."""
        commands = commands_of(source)
        for command, following in zip(commands, [*commands[1:], None], strict=True):
            status, printed = self.type(command.line)
            shows_failure = re.search(r"^\w*Error: ", command.output, re.MULTILINE)
            asks_for_status = following is not None and following.line == "echo $?"
            if status and not (shows_failure or asks_for_status):
                raise Failure(f"$ {command.line}\nexits with {status}:\n{printed}")
            if not command.is_answered_by(printed):
                raise Failure(
                    f"$ {command.line}\n{difference(command.output, printed)}"
                )

    def type(self, line: str) -> tuple[int, str]:
        """Type one command; return its exit code and what it prints."""
        if line == "echo $?":
            return 0, f"{self._last_status}\n"
        if line in self._printed:
            return 0, self._printed[line]
        if line.startswith("make "):
            status, printed = self._make(line)
        elif line.endswith("manage.py runserver"):
            status, printed = self._runserver()
        else:
            status, printed = self._type(line)
            self._stand_in_for_downloads()
        self._last_status = status
        return status, printed.replace(str(self.home), HOME)

    def _type(self, line: str) -> tuple[int, str]:
        assert self._bash.stdin is not None
        end = "@@@ end of command"
        if re.match(r"python (?:\S+/)?manage\.py ", line):
            line = f"PYTHONWARNINGS=error {line}"
        typed = f"{{ {line}\n}} </dev/null\nprintf '{end} %s\\n' $?\n"
        self._bash.stdin.write(typed.encode())
        self._bash.stdin.flush()
        printed = self._read_until(end)
        text, _, status = printed.rpartition(end)
        return int(status), text

    def _read_until(self, end: str) -> str:
        assert self._bash.stdout is not None
        printed = b""
        deadline = time.monotonic() + TIMEOUT
        handle = self._bash.stdout.fileno()
        while not re.search(rf"{end} \d+\n\Z", printed.decode(errors="replace")):
            remaining = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([handle], [], [], remaining)
            data = os.read(handle, 1 << 16) if ready else b""
            if not data:
                text = printed.decode(errors="replace")
                raise Failure(f"The terminal is gone, or takes too long:\n{text}")
            printed += data
        return printed.decode(errors="replace")

    def _stand_in_for_downloads(self) -> None:
        """
        Give a new environment the packages of the one that runs the tests.

        A reader's ``pip install`` fetches them; here it finds them.
        """
        for site in self.home.glob("*/.venv/lib/python*/site-packages"):
            ours = [path for path in sys.path if path.endswith("site-packages")]
            lines = [f"import site; site.addsitedir({path!r})\n" for path in ours]
            (site / "downloads.pth").write_text("".join(lines))

    def _make(self, line: str) -> tuple[int, str]:
        """
        Run a target of the repository's Makefile, which installs nothing.
        """
        targets = MAKE.get(line) or [*line.split(), "--dry-run"]
        stamps = [f"--old-file={sys.prefix}/.installed-{name}" for name in GROUPS]
        done = subprocess.run(
            [*targets, f"VENV={sys.prefix}", "--no-print-directory", *stamps],
            cwd=ROOT,
            env={
                **self.environment,
                "DATABASE_URL": f"sqlite:///{self.home / 'db.sqlite3'}",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        return done.returncode, done.stdout

    def _runserver(self) -> tuple[int, str]:
        """Start the server on a free port, ask it for its first page and stop it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        _, folder = self._type("pwd")
        server = subprocess.Popen(
            [sys.executable, "manage.py", "runserver", str(port), "--noreload"],
            cwd=folder.strip(),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self._await_page(f"http://127.0.0.1:{port}/", server)
        finally:
            server.terminate()  # a shell may have it ignore an interrupt
            printed, _ = server.communicate(timeout=TIMEOUT)
        return 0, printed.replace(f":{port}/", ":8000/")

    def _await_page(self, url: str, server: subprocess.Popen[str]) -> None:
        for _ in range(100):
            if server.poll() is not None:
                return
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                urllib.request.urlopen(url).read()
                return
            time.sleep(0.1)
