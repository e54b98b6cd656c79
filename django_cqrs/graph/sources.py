"""The text of modules, read and never run: functions, classes, and names."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import linecache
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from django_cqrs.annotations import LOCAL, NO_NAMES, Names, names_seen_by
from django_cqrs.declaration.discovery import INSTALLED, modules_of_apps


@dataclasses.dataclass(frozen=True, slots=True)
class Elsewhere:
    """A name of a module that nothing has imported."""

    module: str
    name: str


FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

UNKNOWN: Final = object()
"""The value of an expression that only running it can tell."""

_LIBRARIES: Final = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(inspect.__file__).parent, Path(__file__).parents[1])
)


@dataclasses.dataclass(eq=False, slots=True)
class FunctionSource:
    """A function or a method, as it is written."""

    module: ModuleSource
    node: FunctionNode
    name: str
    """Its name in the module: ``Order.place``."""
    owner: str
    """The class that it is written in; empty for a function."""
    names: Names = dataclasses.field(default_factory=dict)
    """The values of names around a function inside a function."""

    @property
    def place(self) -> str:
        """The dotted path."""
        return f"{self.module.name}.{self.name}"

    @property
    def line(self) -> int:
        """The line where it begins, with its decorators."""
        return min([self.node.lineno, *(d.lineno for d in self.node.decorator_list)])

    @property
    def is_static(self) -> bool:
        """Whether a method takes neither its object nor its class."""
        return not self.owner or any(
            isinstance(each, ast.Name) and each.id == "staticmethod"
            for each in self.node.decorator_list
        )


@dataclasses.dataclass(eq=False, slots=True)
class ClassDefinition:
    """A class, as it is written."""

    module: ModuleSource
    node: ast.ClassDef
    name: str

    def attributes(self) -> dict[str, ast.expr]:
        """Return the annotations of the class's own attributes."""
        return {
            each.target.id: each.annotation
            for each in self.node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }


class ModuleSource:
    """The functions and classes of one file, and the values of its names."""

    def __init__(self, name: str, file: str, tree: ast.Module, names: Names) -> None:
        """
        Index a file.

        Args:
            name: the dotted path of the module.
            file: the path of the file.
            tree: its syntax tree.
            names: the names of the imported module; empty if nothing has imported it.

        """
        self.name = name
        self.file = file
        self._tree = tree
        self._names = names
        self.functions: dict[str, list[FunctionSource]] = {}
        self.classes: dict[str, ClassDefinition] = {}
        self._index(tree, "", "")

    def _index(self, node: ast.AST, prefix: str, owner: str) -> None:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, FunctionNode):
                name = prefix + each.name
                found = FunctionSource(self, each, name, owner)
                self.functions.setdefault(name, []).append(found)
                self._index(each, f"{name}.{LOCAL}.", "")
            elif isinstance(each, ast.ClassDef):
                name = prefix + each.name
                self.classes[name] = ClassDefinition(self, each, name)
                self._index(each, f"{name}.", name)
            elif isinstance(each, _COMPOUND):
                self._index(each, prefix, owner)

    def function(self, name: str, line: int = 0) -> FunctionSource | None:
        """Return the function of a name, the one at a line if there are several."""
        found = self.functions.get(name, ())
        at_line = [each for each in found if each.line == line]
        chosen = at_line or found[-1:]
        return chosen[0] if chosen else None

    def value(self, name: str) -> Any:
        """Return the value of a name in the module, :data:`UNKNOWN` if it has none."""
        for names in (self._names, self._written, vars(builtins)):
            if name in names:
                return names[name]
        return UNKNOWN

    @cached_property
    def _written(self) -> dict[str, Any]:
        """The names that the text imports or gives a constant, without running it."""
        found: dict[str, Any] = {}
        for each in _statements(self._tree):
            found |= imported(each, self.name, self.file)
            if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant):
                found |= {
                    target.id: each.value.value
                    for target in each.targets
                    if isinstance(target, ast.Name)
                }
        return found


_COMPOUND: Final = (
    *(ast.If, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.For, ast.AsyncFor),
    *(ast.While, ast.Match, ast.ExceptHandler, ast.match_case),
)


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a module that are not in a function or a class."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, _COMPOUND):
            yield from _statements(each)
        elif isinstance(each, ast.stmt):
            yield each


def imported(statement: ast.AST, module: str, file: str) -> dict[str, Any]:
    """
    Return the names that a statement imports, and their values.

    A name of a module that nothing has imported is :class:`Elsewhere`.

    Args:
        statement: any statement.
        module: the dotted path of the module that it stands in.
        file: the path of that module's file.

    """
    found: dict[str, Any] = {}
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            path = alias.name if alias.asname else alias.name.partition(".")[0]
            if path in sys.modules:
                found[alias.asname or path] = sys.modules[path]
    elif isinstance(statement, ast.ImportFrom):
        source = _absolute(statement, module, file)
        for alias in statement.names:
            value = member(sys.modules.get(source), alias.name)
            if value is UNKNOWN:
                path = f"{source}.{alias.name}"
                value = sys.modules.get(path, Elsewhere(source, alias.name))
            found[alias.asname or alias.name] = value
    return found


def _absolute(statement: ast.ImportFrom, module: str, file: str) -> str:
    parts = module.split(".")
    is_package = Path(file).stem == "__init__"
    above = statement.level - is_package
    base = parts[: len(parts) - above] if statement.level else []
    return ".".join([*base, *filter(None, [statement.module])])


def member(holder: Any, name: str) -> Any:
    """Return an attribute of a module or a class, :data:`UNKNOWN` if it has none."""
    found: Any = UNKNOWN
    if isinstance(holder, ModuleType):
        with suppress(Exception):  # a module may have a __getattr__
            found = getattr(holder, name, UNKNOWN)
    elif isinstance(holder, type):
        found = inspect.getattr_static(holder, name, UNKNOWN)
    return found


class Sources:
    """The modules whose text is read, each once."""

    def __init__(self) -> None:
        """Begin without any."""
        self._by_file: dict[str, ModuleSource | None] = {}
        self._own: dict[str, bool] = {}
        self._real: dict[str, str] = {}
        self._local: dict[FunctionType, FunctionSource] = {}
        self._inside: dict[tuple[FunctionSource, int], FunctionSource] = {}

    def function_of(
        self, function: Any, owner: type | None = None
    ) -> FunctionSource | None:
        """
        Return the source of a function, None if it cannot be read.

        Args:
            function: the function; one that a decorator wraps is unwrapped.
            owner: the class that has it as a method.

        """
        inner = inspect.unwrap(getattr(function, "__func__", function))
        if not isinstance(inner, FunctionType):
            return None
        code = inner.__code__
        names = inner.__globals__
        module = self._module(inner.__module__ or "", code.co_filename, names)
        if module is None:
            return None
        found = module.function(inner.__qualname__, code.co_firstlineno)
        if found is None or LOCAL not in inner.__qualname__:
            return found
        if inner not in self._local:
            names = _names_around(inner, owner)
            self._local[inner] = dataclasses.replace(found, names=names)
        return self._local[inner]

    def beside(self, name: str, function: FunctionSource) -> FunctionSource | None:
        """
        Return the function of a name that is written beside another, in a function.

        Args:
            name: a plain name.
            function: a function that uses it, and whose names it may use.

        """
        around = function.name
        while LOCAL in around:
            around = around.rpartition(f".{LOCAL}")[0]
            found = function.module.function(f"{around}.{LOCAL}.{name}")
            if found is not None:
                key = found, id(function.names)
                if key not in self._inside:
                    inside = dataclasses.replace(found, names=function.names)
                    self._inside[key] = inside
                return self._inside[key]
        return None

    def class_of(self, cls: type) -> ClassDefinition | None:
        """Return the source of a class of the project, None if it cannot be read."""
        module = self.module_of(cls)
        return None if module is None else module.classes.get(cls.__qualname__)

    def module_of(self, target: Any) -> ModuleSource | None:
        """Return the module of a class or a function of the project, or None."""
        return self.module_named(getattr(target, "__module__", None) or "")

    def all_of_project(self) -> Iterator[ModuleSource]:
        """Yield the modules of the installed apps that the project has written."""
        for name in self._files:
            module = self.module_named(name)
            if module is not None:
                yield module

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The files of the project's modules, imported or not."""
        return {n: file for n, file in modules_of_apps() if self.is_own(str(file))}

    def module_named(self, name: str) -> ModuleSource | None:
        """Return a module of the project, imported or not."""
        live = sys.modules.get(name)
        file = getattr(live, "__file__", None) or self._files.get(name)
        if file is None or not self.is_own(str(file)):
            return None
        return self._module(name, str(file), vars(live) if live else NO_NAMES)

    def is_own(self, file: str) -> bool:
        """Return whether a file is the project's, and not a library's."""
        known = self._own.get(file)
        if known is None:
            known = self._own[file] = not (
                file.startswith(_LIBRARIES)
                or not INSTALLED.isdisjoint(Path(file).parts)
            )
        return known

    def _module(self, name: str, file: str, names: Names) -> ModuleSource | None:
        if not file.startswith("<"):  # typed into a shell
            file = self._real_path(file)
        if file not in self._by_file:
            tree = _tree_of(file, names)
            self._by_file[file] = (
                None if tree is None else ModuleSource(name, file, tree, names)
            )
        return self._by_file[file]

    def _real_path(self, file: str) -> str:
        if file not in self._real:
            self._real[file] = os.path.realpath(file)
        return self._real[file]


def _tree_of(file: str, names: Mapping[str, Any]) -> ast.Module | None:
    """Return the syntax tree of a file, None if there is no text."""
    text: bytes | str
    try:
        text = Path(file).read_bytes()
    except (OSError, ValueError):  # in an archive, or typed into a shell
        text = "".join(linecache.getlines(file, dict(names)))
    try:
        return ast.parse(text) if text else None
    except (SyntaxError, ValueError, RecursionError):
        return None


def _names_around(function: FunctionType, owner: type | None) -> dict[str, Any]:
    """Return the values of the names that a function inside a function may use."""
    names = dict(names_seen_by(function, owner, NO_NAMES))
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        with suppress(ValueError):  # the cell is empty
            names[name] = cell.cell_contents
    return names
