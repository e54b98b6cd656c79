"""The decorators of business interfaces, and their declarations."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

from django_cqrs.annotations import LOCAL, is_protocol
from django_cqrs.declaration.declarations import Declared, declaration_of, names_around

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

METHOD = "__cqrs_business_method__"


@dataclasses.dataclass(frozen=True, slots=True)
class BusinessMethod:
    """What ``@business_method`` said about one method."""

    key: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class InterfaceOptions:
    """What ``@business_interface`` said about one class."""

    is_direct: bool
    names: Mapping[str, Any]
    """What is visible where the class is written, if that is inside a function."""


interface_options: WeakKeyDictionary[type, InterfaceOptions] = WeakKeyDictionary()

declared_interfaces: list[Declared] = []
"""The interfaces of modules, in the order they were decorated."""


@overload
def business_interface(cls: C, /) -> C: ...
@overload
def business_interface(*, direct: bool = False) -> Callable[[C], C]: ...
def business_interface(cls: Any = None, /, *, direct: bool = False) -> Any:
    """
    Make a Protocol a business interface: each of its methods leads somewhere.

    Args:
        cls: the Protocol.
        direct: whether commands and queries go straight to their handlers, past
            the bus: no transaction is opened, and interceptors that look at the
            bus do not run.

    Returns:
        The class itself. :func:`implement` gives an object that has its methods.

    """
    if cls is None:
        return partial(_declare, direct, sys._getframe(1))
    return _declare(direct, sys._getframe(1), cls)


def _declare(direct: bool, frame: types.FrameType, cls: Any) -> Any:
    if not is_protocol(cls):
        msg = f"@business_interface decorates a Protocol, not {cls!r}."
        raise TypeError(msg)
    is_local = LOCAL in cls.__qualname__
    interface_options[cls] = InterfaceOptions(
        direct, names_around(frame) if is_local else {}
    )
    if not is_local:
        declared_interfaces.append(declaration_of(cls))
    return cls


@overload
def business_method(method: F, /) -> F: ...
@overload
def business_method(route: str | None = None, /) -> Callable[[F], F]: ...
def business_method(route: Any = None, /) -> Any:
    """
    Have a method of a business interface send a command, a query or an event.

    Args:
        route: the routing key; without one the class of the payload leads to the
            handler.

    Returns:
        The method itself, which needs no body.

    """
    if callable(route):
        return _mark(None, route)
    return partial(_mark, route)


def _mark(key: str | None, function: Any) -> Any:
    setattr(function, METHOD, BusinessMethod(key))
    return function


def is_business_interface(cls: object) -> bool:
    """Return whether exactly this class is a business interface."""
    return isinstance(cls, type) and cls in interface_options
