"""Find the handlers and messages of the installed apps."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from django_cqrs import conf
from django_cqrs.annotations import LOCAL
from django_cqrs.declaration.declarations import (
    INTERCEPTOR,
    declarations_of,
    declared,
    handlers_of,
    is_service,
    role_of,
)
from django_cqrs.messages import NAME_MARK, declared_messages
from django_cqrs.problems import Problem, Rule


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A decorated function or a registered class, and the app it belongs to."""

    target: Any
    app_label: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Discovery:
    """The declarations of the installed apps, in the order of INSTALLED_APPS."""

    handlers: list[Found] = dataclasses.field(default_factory=list)
    messages: list[type] = dataclasses.field(default_factory=list)
    interceptors: list[Any] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    is_of_apps: bool = False
    """Whether it holds everything that the installed apps declare."""

    def late(self) -> list[Problem]:
        """
        Report later declarations, in modules that discovery does not import.

        The views of a project, for example, are imported at the first request.
        """
        if not self.is_of_apps:
            return []
        known = {_place_of(each.obj) for each in self.problems}
        known |= {_place_of(each) for each in _innermost_of(self)}
        current = [each.target for each in declared if each.is_current]
        return [
            problem
            for problem in _strays(current, self.handlers, self.interceptors)
            if _place_of(problem.obj) not in known
        ]


def _innermost_of(discovery: Discovery) -> Iterator[Any]:
    for found in discovery.handlers:
        if isinstance(found.target, type):
            for _, method in handlers_of(found.target):
                yield _innermost(method)
        else:
            yield _innermost(found.target)


def _place_of(target: Any) -> tuple[Any, Any]:
    return getattr(target, "__module__", None), getattr(target, "__qualname__", target)


def discover() -> Discovery:
    """
    Import ``messages``, then ``handlers``, of every installed app; return all found.

    Aggregates and sagas are found in any module of an app. A missing module is skipped;
    an error inside one is raised unchanged.
    """
    settings = conf.current()
    for name in map(str, (settings.MESSAGES_MODULE, settings.HANDLERS_MODULE)):
        autodiscover_modules(name)
        for config in apps.get_app_configs():
            _import_submodules(sys.modules.get(f"{config.name}.{name}"))
    current = [each.target for each in declared if each.is_current]
    by_module: defaultdict[str, list[Any]] = defaultdict(list)
    for target in current:
        by_module[target.__module__].append(target)
    found: dict[int, Found] = {}
    interceptors: dict[int, Any] = {}
    by_app = _roles_by_app(current)
    for config in apps.get_app_configs():
        for cls in by_app[config.label]:
            found[id(cls)] = Found(cls, config.label)
        for module in _handlers_modules(f"{config.name}.{settings.HANDLERS_MODULE}"):
            own = by_module[module.__name__]
            for target in _targets_of(module, own, settings.HANDLERS_MODULE):
                found.setdefault(id(target), Found(target, config.label))
            interceptors.update(
                (id(each), each)
                for each in _values_of(module)
                if isinstance(each, FunctionType) and hasattr(each, INTERCEPTOR)
            )
    handlers = list(found.values())
    held = list(interceptors.values())
    strays = _strays(current, handlers, held)
    return Discovery(handlers, _messages(), held, strays, is_of_apps=True)


def _roles_by_app(current: list[Any]) -> defaultdict[str, list[type]]:
    """Return the classes with a role, by the labels of their apps."""
    by_app: defaultdict[str, list[type]] = defaultdict(list)
    for target in current:
        config = apps.get_containing_app_config(target.__module__)
        if config is None or not isinstance(target, type):
            continue
        # @dataclass(slots=True) above @aggregate makes a second class.
        held = _at(sys.modules.get(target.__module__), target.__qualname__)
        cls = held if role_of(held) is not None else target
        if role_of(cls) is not None:
            by_app[config.label].append(cls)
    return by_app


def _import_submodules(package: ModuleType | None) -> None:
    """Import the content of a package, as running a single module would."""
    if package is None or not hasattr(package, "__path__"):
        return
    for _finder, name, is_package in pkgutil.iter_modules(package.__path__):
        if not name.startswith("_"):
            module = importlib.import_module(f"{package.__name__}.{name}")
            if is_package:
                _import_submodules(module)


def _handlers_modules(name: str) -> list[ModuleType]:
    """Return the imported modules of this name, and those inside."""
    inside = sorted(each for each in sys.modules if each.startswith(f"{name}."))
    return [module for each in (name, *inside) if (module := sys.modules.get(each))]


def _targets_of(
    module: ModuleType, declared_in_it: list[Any], handlers_module: str
) -> list[Any]:
    """Return a module's imported or dynamic declarations, then its own."""
    held = [
        value
        for value in _values_of(module)
        if _is_handler(value)
        and (
            LOCAL in value.__qualname__
            if value.__module__ == module.__name__
            else not _is_in_handlers_module(value.__module__, handlers_module)
        )
    ]
    own = [
        _as_held(module, target)
        for target in declared_in_it
        if _is_handler(target)
        and (isinstance(target, type) or "." not in target.__qualname__)
    ]
    return [*held, *own]


def _values_of(module: ModuleType) -> list[Any]:
    """
    Return the values of a module's names.

    From Python 3.15 on a name may be imported lazily: the namespace then has a
    stand-in, and only the attribute is the real value.
    """
    return [getattr(module, name) for name in list(vars(module))]


def _is_handler(value: object) -> bool:
    if isinstance(value, type):
        return is_service(value) and any(handlers_of(value))
    return isinstance(value, FunctionType) and bool(declarations_of(value))


def _is_in_handlers_module(module: str, handlers_module: str) -> bool:
    config = apps.get_containing_app_config(module)
    if config is None:
        return False
    name = f"{config.name}.{handlers_module}"
    return module == name or module.startswith(f"{name}.")


def _as_held(module: ModuleType, target: Any) -> Any:
    """
    Return the value that a module has for a target, if it wraps the target.

    A decorator of the user's above ours then runs too, and a class is the one that
    ``@dataclass(slots=True)`` created.
    """
    held = getattr(module, target.__name__, target)
    if isinstance(target, type):
        same = is_service(held) and dict(handlers_of(held)) == dict(handlers_of(target))
    else:
        same = callable(held) and _wraps(held, target)
    return held if same else target


def _wraps(outer: Any, inner: FunctionType) -> bool:
    return inspect.unwrap(outer, stop=lambda each: each is inner) is inner


def _messages() -> list[type]:
    """Return the classes named with ``@message`` in the installed apps."""
    named: dict[type, None] = {}
    for cls in declared_messages:
        if apps.get_containing_app_config(cls.__module__) is not None:
            # @dataclass(slots=True) above @message makes a second class.
            held = _at(sys.modules.get(cls.__module__), cls.__qualname__)
            if isinstance(held, type) and NAME_MARK in vars(held):
                named[held] = None
    return list(named)


def _at(module: ModuleType | None, qualified_name: str) -> Any:
    """Return the value of a name in a module, or None."""
    held: Any = module
    for name in qualified_name.split("."):
        held = getattr(held, name, None)
    return held


def _strays(
    current: list[Any], handlers: list[Found], interceptors: list[Any]
) -> list[Problem]:
    """Report declarations in the installed apps that have no route."""
    routed = {_innermost(each) for each in interceptors}
    for found in handlers:
        if isinstance(found.target, type):
            routed |= {_innermost(method) for _, method in handlers_of(found.target)}
        else:
            routed.add(_innermost(found.target))
    services = {
        (target.__module__, target.__qualname__)
        for target in current
        if isinstance(target, type)
    }
    problems = _hidden(current)
    for target in current:
        if (
            isinstance(target, type)
            or _innermost(target) in routed
            or apps.get_containing_app_config(target.__module__) is None
        ):
            continue
        place = f"{target.__module__}.{target.__qualname__}"
        owner = target.__qualname__.rpartition(".")[0]
        is_method = bool(owner) and not hasattr(target, INTERCEPTOR)
        if is_method and (target.__module__, owner) not in services:
            problem = Problem(
                Rule.UNREGISTERED_CLASS,
                f"{place} is decorated, but its class {owner} is not registered.",
                "Decorate the class with @service, or with @aggregate or @saga, "
                "outermost.",
                target,
            )
        else:
            problem = Problem(
                Rule.UNROUTED_HANDLER,
                f"{place} is decorated, but it is not in a handlers module.",
                f"Move it to the app's {conf.current().HANDLERS_MODULE} module, "
                f"or import it there.",
                target,
            )
        problems.append(problem)
    return problems


def _hidden(current: list[Any]) -> list[Problem]:
    """Report handlers hidden by a wrapper without ``__wrapped__``."""
    problems = []
    for target in current:
        held = getattr(sys.modules.get(target.__module__), target.__name__, None)
        if (
            not isinstance(target, type)
            and isinstance(held, FunctionType)
            and held is not target
            and not _wraps(held, target)
            and any(_holds(cell, target) for cell in held.__closure__ or ())
        ):
            problem = Problem(
                Rule.HIDDEN_HANDLER,
                f"{target.__module__}.{target.__qualname__} is decorated, but a "
                f"decorator above that replaced it with {held.__qualname__}, which "
                "does not say what it wraps, so the handler would never be called.",
                "Use functools.wraps in that decorator.",
                target,
            )
            problems.append(problem)
    return problems


def _holds(cell: Any, target: FunctionType) -> bool:
    try:
        return cell.cell_contents is target
    except ValueError:  # the file is empty
        return False


def unimported() -> list[Problem]:
    """
    Report handlers in modules of the installed apps that were never imported.

    Their text is read, not run. Tests, migrations and third-party packages are skipped.
    """
    problems = []
    for name, file in modules_of_apps():
        for function in _decorated_in(file) if name not in sys.modules else ():
            problem = Problem(
                Rule.UNROUTED_HANDLER,
                f"{name}.{function} is decorated, but nothing imports its module.",
                f"Move it to the app's {conf.current().HANDLERS_MODULE} module, "
                f"or import it there.",
            )
            problems.append(problem)
    return problems


def modules_of_apps() -> Iterator[tuple[str, Path]]:
    """
    Yield the modules of the installed apps, imported or not, and their files.

    Tests, migrations and third-party packages are skipped.
    """
    for config in apps.get_app_configs():
        root = Path(config.path)
        if not INSTALLED.isdisjoint(root.parts):
            continue
        for file in sorted(root.rglob("*.py")):
            inside = file.relative_to(root).with_suffix("").parts
            if INSTALLED.isdisjoint(inside) and not any(map(_is_passed_over, inside)):
                name = ".".join((config.name, *inside)).removesuffix(".__init__")
                yield name, file


INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
"""The folders of packages that somebody else has written."""

_PASSED_OVER: Final = frozenset({"tests", "migrations", "conftest"})
_DECORATORS: Final = frozenset({"command_handler", "query_handler", "event_handler"})


def _is_passed_over(name: str) -> bool:
    return name in _PASSED_OVER or name.startswith("test_") or name.endswith("_test")


def _decorated_in(file: Path) -> Iterator[str]:
    """Yield the names of decorated objects at the top of a file or a class."""
    try:
        text = file.read_bytes()
        if not any(each.encode() in text for each in _DECORATORS):
            return  # the usual case
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return
    ours = {
        alias.asname or alias.name
        for each in tree.body
        if isinstance(each, ast.ImportFrom)
        and (each.module or "").partition(".")[0] == "django_cqrs"
        for alias in each.names
        if alias.name in _DECORATORS
    }
    for each in tree.body:
        if isinstance(each, ast.ClassDef):
            within = [(f"{each.name}.", inner) for inner in each.body]
        else:
            within = [("", each)]
        for owner, inner in within:
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(
                _is_ours(decorator, ours) for decorator in inner.decorator_list
            ):
                yield f"{owner}{inner.name}"


def _is_ours(decorator: ast.expr, ours: set[str]) -> bool:
    name = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(name, ast.Attribute):
        return isinstance(name.value, ast.Name) and (
            name.value.id == "django_cqrs" and name.attr in _DECORATORS
        )
    return isinstance(name, ast.Name) and name.id in ours


def _innermost(handler: Any) -> Any:
    return inspect.unwrap(getattr(handler, "__func__", handler))
