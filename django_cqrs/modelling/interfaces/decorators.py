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
    """The declaration of ``@business_method`` on one method."""

    key: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class InterfaceOptions:
    """The options of ``@business_interface`` on one class."""

    is_direct: bool
    names: Mapping[str, Any]
    """The names visible to a class that is defined inside a function."""


interface_options: WeakKeyDictionary[type, InterfaceOptions] = WeakKeyDictionary()

declared_interfaces: list[Declared] = []
"""The interfaces of modules, in the order of decoration."""


@overload
def business_interface(cls: C, /) -> C: ...
@overload
def business_interface(*, direct: bool = False) -> Callable[[C], C]: ...
def business_interface(cls: Any = None, /, *, direct: bool = False) -> Any:
    """
    Make a Protocol a business interface: each of its methods sends a message.

    Args:
        cls: the Protocol.
        direct: whether commands and queries go straight to their handlers, without the
            bus: no transaction is opened, and interceptors that observe the bus do not
            run.

    Returns:
        The class itself. :func:`implement` returns an object with its methods.

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
    Make a method of a business interface send a command, a query or an event.

    Args:
        route: the routing key; without one the class of the payload decides.

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
