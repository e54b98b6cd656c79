"""Write the beginning of an upcaster into the source code, and raise the version."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from django_cqrs.exceptions import CQRSError
from django_cqrs.schema_lock.files import LockedBlock
from django_cqrs.schema_lock.locked_shapes import text_of
from django_cqrs.schema_lock.sources import DOCUMENT, StoredClass


class NotScaffolded(CQRSError):
    """The source code of a class cannot be changed by a program."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scaffold:
    """The changed source code of a class."""

    path: Path
    text: str
    version: int
    """The version from which the new upcaster converts."""
    raised_to: int | None
    """The new version of the class; None if it was raised already."""


def scaffold(cls: StoredClass, block: LockedBlock) -> Scaffold:
    """
    Return the source code of a class with a raised version and an empty upcaster.

    Args:
        cls: the class.
        block: the class as it is locked.

    Raises:
        NotScaffolded: its source code is not that of a plain class, or there is nothing
            to write.

    """
    version = block.version
    if cls.has_upcaster(version):
        msg = (
            f"{cls.key!r} is locked in version {version}, and has an upcaster from it "
            "already."
        )
        raise NotScaffolded(msg)
    source = _ClassSource(cls)
    raised_to = None
    if cls.name.version <= version:
        raised_to = version + 1
        source.raise_version(raised_to)
    source.add_upcaster(version, block.samples[version])
    return Scaffold(source.path, source.text(), version, raised_to)


class _ClassSource:
    """The source code of the module of a class, and the changes to it."""

    def __init__(self, cls: StoredClass) -> None:
        self._cls = cls
        module = sys.modules.get(cls.cls.__module__)
        try:
            self.path = Path(inspect.getsourcefile(cls.cls) or "")
            self._text = self.path.read_text(encoding="utf-8")
            self._tree = ast.parse(self._text)
        except (OSError, SyntaxError, TypeError, ValueError) as error:
            raise self._refusal("its source code cannot be read") from error
        self._names = vars(module) if module is not None else {}
        self._lines = self._text.splitlines(keepends=True)
        if self._lines and not self._lines[-1].endswith("\n"):
            self._lines[-1] += "\n"
        self._node = self._definition()
        self._after: dict[int, list[str]] = {}
        """Lines to insert after the line of a number."""
        self._imports: list[tuple[int, tuple[int, str], str]] = []
        """Imports to insert: the number of the line before, the turn and the text."""

    def _refusal(self, why: str) -> NotScaffolded:
        own = self._cls
        version = own.name.version
        msg = (
            f"{own.path} is left unchanged: {why}. Give it a higher version by hand, "
            f"and write an @upcaster({own.name.name!r}, version={version})."
        )
        return NotScaffolded(msg)

    def _definition(self) -> ast.ClassDef:
        """Return the class statement."""
        nodes: Any = self._tree.body
        found = None
        for name in self._cls.cls.__qualname__.split("."):
            named = [n for n in nodes if isinstance(n, ast.ClassDef) and n.name == name]
            if len(named) != 1:
                raise self._refusal("its class statement is not found in the module")
            found = named[0]
            nodes = found.body
        assert found is not None  # noqa: S101 - a qualified name has a part
        return found

    # ---------------------------------------------------------------------- version

    def raise_version(self, version: int) -> None:
        """Change ``version=`` of the decorator, or add the decorator."""
        decorator = "document" if self._cls.prefix == DOCUMENT else "message"
        call = next(self._calls(decorator), None)
        if call is None:
            self._decorate(decorator, version)
            return
        given = next((each for each in call.keywords if each.arg == "version"), None)
        if given is None:
            if any(each.arg is None for each in call.keywords):
                raise self._refusal(f"@{decorator} takes its arguments by **")
            self._insert(_end((*call.args, *call.keywords)), f", version={version}")
        elif isinstance(given.value, ast.Constant):
            self._replace(given.value, str(version))
        else:
            raise self._refusal("its version= is not a number")

    def _calls(self, decorator: str) -> Iterator[ast.Call]:
        for each in self._node.decorator_list:
            if isinstance(each, ast.Call) and self._is_ours(each.func, decorator):
                yield each

    def _is_ours(self, name: ast.expr, decorator: str) -> bool:
        if isinstance(name, ast.Attribute):
            return name.attr == decorator
        if not isinstance(name, ast.Name):
            return False
        value = self._names.get(name.id)
        module = getattr(value, "__module__", "") or ""
        return (
            getattr(value, "__name__", name.id) == decorator
            and module.partition(".")[0] == "django_cqrs"
        )

    def _decorate(self, decorator: str, version: int) -> None:
        above = [each.lineno for each in self._node.decorator_list]
        first = min([self._node.lineno, *above])
        indent = " " * self._node.col_offset
        name = self._cls.name.name
        text = f'{indent}@{decorator}("{name}", version={version})\n'
        self._after.setdefault(first - 1, []).append(text)
        module = "django_cqrs.documents" if decorator == "document" else "django_cqrs"
        self._import(module, decorator)

    def _replace(self, node: ast.expr, text: str) -> None:
        assert node.end_col_offset is not None  # noqa: S101 - as of each parsed node
        line = self._lines[node.lineno - 1].encode()
        changed = line[: node.col_offset] + text.encode() + line[node.end_col_offset :]
        self._lines[node.lineno - 1] = changed.decode()

    def _insert(self, place: tuple[int, int], text: str) -> None:
        number, column = place
        line = self._lines[number - 1].encode()
        self._lines[number - 1] = (
            line[:column] + text.encode() + line[column:]
        ).decode()

    # --------------------------------------------------------------------- upcaster

    def add_upcaster(self, version: int, sample: Any) -> None:
        """Add an upcaster that raises until it is written."""
        name = self._cls.name.name
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\W+", "_", name).strip("_").lower()
        comments = "".join(f"    # {line}\n" for line in _about(version, sample))
        text = (
            f'\n\n@upcaster("{name}", version={version})\n'
            f"def {words or 'payload'}_from_version_{version}(\n"
            "    payload: dict[str, Any],\n"
            ") -> dict[str, Any]:\n"
            f"{comments}"
            f'    raise NotImplementedError("Return that of version {version + 1}.")\n'
        )
        after = self._last_upcaster() or self._outermost()
        self._after.setdefault(after.end_lineno or 0, []).append(text)
        self._import("django_cqrs.conversion", "upcaster")
        self._import("typing", "Any")

    def _outermost(self) -> ast.stmt:
        """Return the statement at the top of the module that holds the class."""
        return next(
            each
            for each in self._tree.body
            if each.lineno <= self._node.lineno <= (each.end_lineno or 0)
        )

    def _last_upcaster(self) -> ast.stmt | None:
        """Return the last upcaster of the class in its module, if any."""
        names = {self._cls.name.name, *self._cls.name.aliases}
        found = None
        for each in self._tree.body:
            if isinstance(each, ast.FunctionDef) and any(
                isinstance(call, ast.Call)
                and self._is_ours(call.func, "upcaster")
                and call.args
                and isinstance(call.args[0], ast.Constant)
                and call.args[0].value in names
                for call in each.decorator_list
            ):
                found = each
        return found

    # ---------------------------------------------------------------------- imports

    def _import(self, module: str, name: str) -> None:
        """Import a name, unless the module has it."""
        if name in self._names:
            if self._names[name] is not getattr(import_module(module), name):
                raise self._refusal(f"another thing is called {name!r} in its module")
            return
        imports = [
            each
            for each in self._tree.body
            if isinstance(each, (ast.Import, ast.ImportFrom))
        ]
        before = [each for each in imports if _turn(each) <= _turn_of(module)]
        text = f"from {module} import {name}\n"
        if before:
            line = before[-1].end_lineno or 0
        elif imports:
            line = imports[0].lineno - 1
        else:
            line = self._first_line()
            text = f"\n{text}"
        self._imports.append((line, _turn_of(module), text))

    def _first_line(self) -> int:
        """Return the number of the line after which imports may stand."""
        first = self._tree.body[0]
        is_docstring = isinstance(first, ast.Expr) and isinstance(
            first.value, ast.Constant
        )
        return (first.end_lineno or 0) if is_docstring else 0

    def text(self) -> str:
        """
        Return the changed source code.

        Raises:
            NotScaffolded: it would not be valid.

        """
        for number, _, line in sorted(self._imports):
            self._after.setdefault(number, []).append(line)
        found = list(self._after.get(0, ()))
        for number, line in enumerate(self._lines, 1):
            found += [line, *self._after.get(number, ())]
        text = "".join(found)
        try:
            ast.parse(text)
        except SyntaxError as error:
            raise self._refusal("its source code has an unusual form") from error
        return text


def _about(version: int, sample: Any) -> list[str]:
    """Return lines about the payload that an upcaster takes."""
    if sample is None:
        return [f"It takes a payload of version {version}."]
    line = f"It takes a payload of version {version}, such as {text_of(sample)}"
    if len(line) <= _WIDTH:
        return [line]
    shown = json.dumps(sample, indent=2, sort_keys=True, ensure_ascii=False)
    return [f"It takes a payload of version {version}, such as:", *shown.splitlines()]


_WIDTH: Final = 80
_STANDARD: Final = sys.stdlib_module_names


def _turn(node: ast.Import | ast.ImportFrom) -> tuple[int, str]:
    if isinstance(node, ast.Import):
        return _turn_of(node.names[0].name)
    return _turn_of("." * node.level + (node.module or ""))


def _turn_of(module: str) -> tuple[int, str]:
    """Return the sort key of an import: the standard library comes first."""
    top = module.partition(".")[0]
    if module == "__future__":
        return 0, module
    return (1 if top in _STANDARD else 2), module


def _end(nodes: tuple[ast.expr | ast.keyword, ...]) -> tuple[int, int]:
    """Return the line and the column after the last of some nodes."""
    last = max(nodes, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0))
    return last.end_lineno or 0, last.end_col_offset or 0
