"""A reader of one page, who does what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePath

from sybil import Example

from tests.docs_support.pages import TUTORIAL, Block, NewProject, blocks_of, name_of
from tests.docs_support.terminal import Failure, Terminal, environment, forked

PROJECT = "helpdesk"
RUN = ("python", "pycon", "console")
CHECKED = ("json", "toml", "html")
SHOWN = ("text", "css", "yaml", "mermaid")


def make_project(home: Path) -> None:
    """Make the project of the tutorial as it is once its tables exist."""
    folder = home / PROJECT
    folder.mkdir()
    variables = environment(home) | {"PYTHONWARNINGS": "error"}

    def run(*command: str) -> None:
        done = subprocess.run(
            command,
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failure(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")

    python = str(home / ".bin" / "python")
    run(str(home / ".bin" / "django-admin"), "startproject", PROJECT, ".")
    run(python, "manage.py", "startapp", "tickets")
    for block in blocks_of(TUTORIAL):
        if block.file and block.file["path"] in (
            f"{PROJECT}/settings.py",
            "tickets/models.py",
        ):
            write(folder, block)
    run(python, "manage.py", "makemigrations", "tickets")
    run(python, "manage.py", "migrate", "--verbosity", "0")


def write(folder: Path, block: Block) -> PurePath:
    """Write the file that a block is, or add to it, as it is copied from the page."""
    path = PurePath(block.file["path"] if block.file else block.argument)
    target = folder / path
    before = ""
    if block.file and block.file["end"]:
        if not target.exists():
            raise Failure(f"{path} does not exist, so nothing is added at its end.")
        before = target.read_text() + "\n\n"
    if target.suffix == ".py":
        compile(block.source, str(path), "exec", dont_inherit=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(before + block.source)
    return path


class Reader:
    """Evaluates the blocks of a page, from the first to the last."""

    def __init__(
        self, page: Path, place: Path, base: Path, printed: Mapping[str, str]
    ) -> None:
        """
        Begin a page.

        Args:
            page: its file.
            place: an empty folder for its projects.
            base: the project that each begins with.
            printed: what has been printed by commands that are not run for this page.

        """
        self.page = page
        self._printed = printed
        self._place = place
        self._base = base
        self._projects = 0
        self._stack = contextlib.ExitStack()
        self.done: list[Block] = []
        self.begin()

    def begin(self) -> None:
        """Open a terminal in a project of one's own; for the tutorial, in no project."""
        self._projects += 1
        home = self._place / str(self._projects)
        if self.page == TUTORIAL:
            home.mkdir(parents=True)
            self.folder = home
        else:
            shutil.copytree(self._base, home)
            self.folder = home / PROJECT
        self.terminal = Terminal(home, self.folder, self._printed)
        self._stack.callback(self.terminal.close)
        self._python: subprocess.Popen[str] | None = None
        self._files: dict[PurePath, Block] = {}
        self._is_unread = False

    def finish(self) -> None:
        """Import every file that is left, and check what no block has looked at."""
        for path, block in self._files.items():
            if path.suffix == ".py" and (self.folder / path).exists():
                module = ".".join(path.with_suffix("").parts)
                # Not `import`: the name of a migration begins with a digit.
                source = f"import importlib; importlib.import_module({module!r})"
                self._tell_python(dataclasses.replace(block, source=source))
        self._forget_python()
        if self._is_unread:
            self.terminal.run_block("$ python manage.py check --fail-level WARNING")

    def close(self) -> None:
        self._forget_python()
        self._stack.close()

    def evaluate(self, example: Example) -> None:
        """Do what one block says; raise what the reader would see instead."""
        block = example.parsed
        if isinstance(block, NewProject):
            self.finish()
            self.begin()
            return
        try:
            self._do(block)
        except (Failure, SyntaxError, ValueError) as failure:
            raise AssertionError(f"{block} ({block.language})\n{failure}") from None

    def _do(self, block: Block) -> None:
        if block.is_directive:
            return
        if block.language not in (*RUN, *CHECKED, *SHOWN):
            raise Failure("Nobody knows how to read this language: see docs_support.")
        if block.file or (block.argument and block.language not in RUN):
            self._write(block)
        elif block.language == "console":
            self._is_unread = False
            self._run_console(block)
        elif block.language in RUN:
            self._is_unread = False
            self._tell_python(block)
        elif block.language == "json":
            json.loads(block.source)
        elif block.language == "toml":
            tomllib.loads(block.source)
        self.done.append(block)

    def _run_console(self, block: Block) -> None:
        self.terminal.run_block(block.source)

    def _write(self, block: Block) -> None:
        if self.page == TUTORIAL:
            self.folder = self.terminal.home / PROJECT
        self._files[write(self.folder, block)] = block
        self._is_unread = True
        self._forget_python()

    def _tell_python(self, block: Block) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [
                    *forked(),
                    *("-m", "tests.docs_support.shell", f"{PROJECT}.settings"),
                ],
                cwd=self.folder,
                env=self.terminal.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        order = {
            "kind": block.language,
            "source": block.source,
            "page": name_of(block.page),
            "line": block.line,
        }
        with contextlib.suppress(BrokenPipeError):
            self._python.stdin.write(json.dumps(order) + "\n")
            self._python.stdin.flush()
        answer = self._python.stdout.readline()
        if not answer:
            _, errors = self._python.communicate()
            self._python = None
            raise Failure(f"The shell does not start, or ends:\n{errors}")
        failure = json.loads(answer)["failure"]
        if failure:
            raise Failure(failure.replace(str(self.terminal.home), "/home/you"))

    def _forget_python(self) -> None:
        if self._python is not None:
            self._python.communicate()
            self._python = None
