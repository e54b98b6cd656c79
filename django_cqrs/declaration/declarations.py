"""The declarations that decorators leave on functions and classes."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib.machinery import ModuleSpec
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeVar

from django_cqrs.annotations import LOCAL, NAMESPACE
from django_cqrs.messages import Message
from django_cqrs.retries import Retry

OnMissing = Literal["raise", "ignore"] | type[Exception] | Exception
OnExisting = Literal["raise", "ignore"] | type[Exception] | Exception

Span = timedelta | float
Lifetime = Span | Callable[[Message], Span | datetime | None]
"""A time from the sending on, or a function of the message that returns one."""

MARK = "__cqrs_declarations__"

INTERCEPTOR = "__cqrs_interceptor__"


class Kind(enum.StrEnum):
    """The three kinds of message."""

    COMMAND = "command"
    QUERY = "query"
    EVENT = "event"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The policies of an endpoint. None means "not given here"."""

    name: str | None = None
    aliases: tuple[str, ...] = ()
    using: str | None = None
    atomic: bool | None = None
    priority: int | None = None
    channel: str | bool | None = None
    delay: Lifetime | None = None
    expires: Lifetime | None = None
    retry: Retry | None = None
    identifier: Any = None
    on_missing: OnMissing | None = None
    on_existing: OnExisting | None = None
    output: str | tuple[str, ...] | None = None
    ordering_key: Any = None
    idempotency_key: Any = None
    on_dead: Any = None
    tenant: bool | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The routing keys in ``output=``."""
        output = self.output
        return (output,) if isinstance(output, str) else tuple(output or ())

    def given(self) -> list[str]:
        """Return the names of the policies that were given."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration of one decorator on one function."""

    kind: Kind
    key: str | None
    policies: Policies


class Declared(NamedTuple):
    """A decorated function or class, and the import of its module that it is from."""

    target: Any
    spec: ModuleSpec | None

    @property
    def is_current(self) -> bool:
        """Return whether the module has not been imported again since."""
        return self.spec is not None and self.spec is _spec_of(self.target)


def _spec_of(target: Any) -> ModuleSpec | None:
    return getattr(sys.modules.get(target.__module__), "__spec__", None)


declared: list[Declared] = []
"""Decorated functions, methods and classes of modules, in the order of decoration."""


def declarations_of(handler: object) -> tuple[Declaration, ...]:
    """Return the declarations of decorators on a function or method, outermost last."""
    function = getattr(handler, "__func__", handler)
    return getattr(function, MARK, ())


def handlers_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the decorated methods of a class, its own and inherited, base first."""
    seen: set[str] = set()
    for base in reversed(cls.__mro__):
        for name in vars(base):
            if name not in seen and declarations_of(found := _static(cls, name)):
                seen.add(name)
                yield name, found


def _static(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None


def remember(target: Any, frame: FrameType) -> None:
    """
    Remember a decorated function or class of a module, for discovery.

    For a local one, the names visible where it is decorated are kept instead.
    Annotations are strings under ``from __future__ import annotations``; those of a
    handler inside a function name classes that no module has.
    """
    if LOCAL not in target.__qualname__:
        declared.append(declaration_of(target))
    else:
        setattr(target, NAMESPACE, names_around(frame))


def declaration_of(target: Any) -> Declared:
    """Return a function or class, with the import of its module that it is from."""
    return Declared(target, _spec_of(target))


def names_around(frame: FrameType) -> dict[str, Any]:
    """Return the names that a function or class inside a function may use."""
    names: dict[str, Any] = {}
    around: FrameType | None = frame
    while around is not None:
        names = {**around.f_locals, **names}
        if around.f_code.co_flags & inspect.CO_OPTIMIZED:  # a function: a class is not
            break
        around = around.f_back
    return names


SERVICE = "__cqrs_service__"


def is_service(cls: object) -> bool:
    """Return whether exactly this class is marked with :func:`service`."""
    return isinstance(cls, type) and SERVICE in vars(cls)


C = TypeVar("C", bound=type)

ROLE = "__cqrs_role__"


def take_role(cls: C, role: Any, *, depth: int = 2) -> C:
    """
    Give a class a role, and register it for discovery.

    Args:
        cls: the class.
        role: the role of its objects.
        depth: the number of frames to the one that the decorator was applied in.

    Raises:
        TypeError: it is not a class.

    """
    if not isinstance(cls, type):
        msg = f"{role.decorator} decorates a class, not {cls!r}."
        raise TypeError(msg)
    setattr(cls, ROLE, role)
    remember(cls, sys._getframe(depth))
    return cls


STAND_IN = "__cqrs_stand_in__"


def stand_in_of(target: Any) -> Any:
    """Return the class that a decorator has made for a function; else the target."""
    return getattr(target, STAND_IN, target)


def role_of(cls: object) -> Any:
    """Return the role of exactly this class, None if it has none."""
    return vars(cls).get(ROLE) if isinstance(cls, type) else None
