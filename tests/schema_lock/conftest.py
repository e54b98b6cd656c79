"""A project with one app, whose code changes as a developer changes it."""

from __future__ import annotations

import importlib
import io
import json
import sys
import textwrap
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from django.core.management import CommandError, call_command

from django_cqrs.buses import registry
from django_cqrs.conversion import upcasting
from django_cqrs.documents import collections
from django_cqrs.schema_lock.files import FILE

HEADER = """\
from __future__ import annotations

from dataclasses import dataclass

from django_cqrs import message
"""

HANDLERS = """\
from __future__ import annotations

from django_cqrs import event_handler

from {app} import messages


@event_handler("*", channel="memory")
def keep(event: object) -> None: ...
"""


class Project:
    """An app, its code, and what the command says of it."""

    def __init__(self, folder: Path, name: str, settings) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()
        (self.folder / "handlers.py").write_text(HANDLERS.format(app=name))
        self._settings = settings
        self._installed = settings.INSTALLED_APPS

    @property
    def lock(self) -> Path:
        return self.folder / FILE

    @property
    def blocks(self) -> dict:
        return json.loads(self.lock.read_text())

    @property
    def code(self) -> str:
        return (self.folder / "messages.py").read_text()

    def write(self, source: str, *, header: str = HEADER) -> None:
        """Replace the messages, and import them anew."""
        text = textwrap.dedent(source)
        (self.folder / "messages.py").write_text(f"{header}\n\n{text.lstrip()}")
        self.reload()

    def reload(self) -> None:
        for each in [n for n in sys.modules if n.partition(".")[0] == self.name]:
            del sys.modules[each]
        importlib.invalidate_caches()
        upcasting._upcasters.clear()
        collections._classes.clear()
        self._settings.INSTALLED_APPS = [*self._installed, self.name]
        registry.routes  # noqa: B018 - imports it

    def run(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code of the command for this app, and what it has said."""
        label = [] if arguments and arguments[0] in LABELLESS else [self.name]
        out = io.StringIO()
        try:
            call_command("cqrs_schema", *arguments, *label, stdout=out)
        except CommandError as error:
            return error.returncode, f"{out.getvalue()}{error}\n"
        return 0, out.getvalue()


LABELLESS = ("--scaffold", "--stored")


@pytest.fixture
def project(tmp_path, settings, monkeypatch):
    """Return a project with an app of its own."""
    name = f"shop_{abs(hash(tmp_path)) % 10**8}"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(upcasting, "_upcasters", {})
    monkeypatch.setattr(collections, "_classes", WeakKeyDictionary())
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, name, settings)
    yield made
    for each in [n for n in sys.modules if n.partition(".")[0] == name]:
        del sys.modules[each]
