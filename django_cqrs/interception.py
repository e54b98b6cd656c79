"""
Interceptors: code around handlers, declared once and selected by a pointcut.

Lower precedence is further out. Two of the package's stages have a precedence, so that
yours can be outside or inside them. Between two stages ``before`` runs first, then
``around``, then the handler or the next stage, then ``after``.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from types import FunctionType
from typing import Any, Final, Protocol, TypeVar

from django_cqrs.declaration.declarations import INTERCEPTOR, Kind, remember
from django_cqrs.routing.endpoint import JoinPoint

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

__all__ = [
    "RETRY",
    "STOP",
    "TRANSACTION",
    "Marker",
    "Pointcut",
    "Proceed",
    "after",
    "around",
    "before",
    "pointcut",
    "pre_send",
]

RETRY: Final = -2000
"""The precedence of a bus's instant retry; lower ones run once for all attempts."""

TRANSACTION: Final = -1000
"""The precedence of a command's transaction; lower is outside, the rest inside."""


class Stop(enum.Enum):
    """The type of :data:`STOP`."""

    STOP = "STOP"

    def __repr__(self) -> str:
        """Return its name in code."""
        return "STOP"


STOP: Final = Stop.STOP
"""The result by which ``before`` and ``pre_send`` stop the message here."""


class Proceed(Protocol):
    """The function that ``around`` calls to continue, for the handler's result."""

    def __call__(self) -> Any:
        """Run the next interceptor inside, or the handler."""


class Bus(Protocol):
    """A bus as a pointcut sees it: a command bus, a query bus or an event bus."""

    @property
    def kind(self) -> Kind:
        """The kind of its messages."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Pointcut:
    """The handlers of an interceptor. Combine pointcuts with ``&``, ``|`` and ``~``."""

    matches: Callable[[JoinPoint], bool]
    text: str
    looks_at_bus: bool = False
    """Whether it is evaluated where the bus is used, not where the handler runs."""

    def __and__(self, other: Pointcut) -> Pointcut:
        """Match if both match."""
        return self._joined(other, "&", lambda p: self.matches(p) and other.matches(p))

    def __or__(self, other: Pointcut) -> Pointcut:
        """Match if either matches."""
        return self._joined(other, "|", lambda p: self.matches(p) or other.matches(p))

    def __invert__(self) -> Pointcut:
        """Match if this one does not."""
        return Pointcut(
            lambda p: not self.matches(p), f"~{self.text}", self.looks_at_bus
        )

    def _joined(
        self, other: Pointcut, sign: str, matches: Callable[[JoinPoint], bool]
    ) -> Pointcut:
        if not isinstance(other, Pointcut):
            msg = (
                f"{self} {sign} {other!r}: a pointcut can only be combined with a "
                "pointcut."
            )
            raise TypeError(msg)
        text = f"({self.text} {sign} {other.text})"
        return Pointcut(matches, text, self.looks_at_bus or other.looks_at_bus)

    def __repr__(self) -> str:
        """Return it as written in code."""
        return self.text


class _Pointcuts:
    """The available pointcuts: use the one object, :data:`pointcut`."""

    def handler(self, pattern: str) -> Pointcut:
        """
        Match handlers by endpoint name or dotted path, in the style of ``fnmatch``.

        Args:
            pattern: such as ``"billing.*"``, where ``*`` also matches dots.

        """
        if not isinstance(pattern, str) or not pattern:
            msg = f"pointcut.handler() takes a name or a pattern, not {pattern!r}."
            raise TypeError(msg)
        return Pointcut(
            lambda p: (
                fnmatchcase(p.endpoint.name, pattern)
                or fnmatchcase(p.endpoint.place, pattern)
            ),
            f"handler({pattern!r})",
        )

    def message(self, cls: type) -> Pointcut:
        """Match messages of a class, including its subclasses."""
        try:
            issubclass(object, cls)
        except TypeError:
            msg = (
                "pointcut.message() takes a class that issubclass() accepts, not "
                f"{cls!r}."
            )
            raise TypeError(msg) from None
        return Pointcut(
            lambda p: p.payload_type is not None and issubclass(p.payload_type, cls),
            f"message({_name_of(cls)})",
        )

    def marked(self, marker: type[Marker]) -> Pointcut:
        """Match handlers with a marker on them, on their class or on their message."""
        if not (isinstance(marker, type) and issubclass(marker, Marker)):
            msg = f"pointcut.marked() takes a class of markers, not {marker!r}."
            raise TypeError(msg)
        return Pointcut(
            lambda p: marker_at(p, marker) is not None, f"marked({_name_of(marker)})"
        )

    def channel(self, pattern: str = "*") -> Pointcut:
        """
        Match handlers on a channel, by its alias, in the style of ``fnmatch``.

        With ``pre_send`` that is where messages enter the channel, and with the other
        interceptors where they come out of it and are handled.

        Args:
            pattern: such as ``"mail"``; by default every channel.

        """
        if not isinstance(pattern, str) or not pattern:
            msg = f"pointcut.channel() takes an alias or a pattern, not {pattern!r}."
            raise TypeError(msg)
        return Pointcut(
            lambda p: (
                p.endpoint.channel is not None
                and fnmatchcase(p.endpoint.channel, pattern)
            ),
            f"channel({pattern!r})",
        )

    def consumed(self) -> Pointcut:
        """
        Match messages that come out of a channel: in a worker, for example.

        Handlers without a channel are included, if messages still waited for them when
        they lost it. Nothing is consumed where a message is sent.
        """
        return Pointcut(lambda p: p.is_consumed, "consumed()")

    def bus(self, bus: Bus | type[Bus]) -> Pointcut:
        """
        Match messages sent through one bus, or through any bus of a class.

        For a handler on a channel, such an interceptor runs where the message is sent;
        all others run where it is handled.
        """
        if not isinstance(getattr(bus, "kind", None), Kind):
            msg = f"pointcut.bus() takes a bus or a class of buses, not {bus!r}."
            raise TypeError(msg)
        if isinstance(bus, type):
            return Pointcut(
                lambda p: isinstance(p.bus, bus),
                f"bus({_name_of(bus)})",
                looks_at_bus=True,
            )
        return Pointcut(
            lambda p: p.bus is bus, f"bus(<{_name_of(type(bus))}>)", looks_at_bus=True
        )


def _name_of(cls: type) -> str:
    return cls.__qualname__.rpartition("<locals>.")[2]


pointcut: _Pointcuts = _Pointcuts()

MARKERS = "__cqrs_markers__"


class Marker:
    """
    The base of markers: decorate a handler, a handlers' class or a message with one.

    ::

        @dataclass(frozen=True)
        class RequiresPermission(Marker):
            name: str

        @RequiresPermission("tickets.close")
        @command_handler
        def close(command: CloseTicket) -> None: ...

    ``pointcut.marked(RequiresPermission)`` finds it, and an interceptor's parameter of
    that type gets the marker itself: the handler's before its class's before the
    message's.
    """

    def __call__(self, target: T) -> T:
        """Mark a function or a class, and return it."""
        marked = getattr(target, "__func__", target)
        setattr(marked, MARKERS, (*_own_markers(marked), self))
        return target


def _own_markers(holder: Any) -> tuple[Marker, ...]:
    """Return the markers of one function or class, innermost first."""
    held = vars(holder) if isinstance(holder, type) else getattr(holder, "__dict__", {})
    own: tuple[Marker, ...] = held.get(MARKERS, ())
    return own


def marker_at(point: JoinPoint, marker: type[T]) -> T | None:
    """Return the nearest marker of a type around a handler, if any."""
    function = getattr(point.endpoint.function, "__func__", point.endpoint.function)
    for holder in (
        function,
        inspect.unwrap(function),
        *getattr(point.endpoint.owner, "__mro__", ()),
        *getattr(point.payload_type, "__mro__", ()),
    ):
        for each in _own_markers(holder):
            if isinstance(each, marker):
                return each
    return None


class When(enum.StrEnum):
    """The four kinds of interceptor."""

    PRE_SEND = "pre_send"
    BEFORE = "before"
    AROUND = "around"
    AFTER = "after"


@dataclasses.dataclass(frozen=True, slots=True)
class Interception:
    """The declaration of an interceptor."""

    when: When
    pointcut: Pointcut
    precedence: int


def _decorator(when: When, where: Pointcut, precedence: int) -> Callable[[F], F]:
    if not isinstance(where, Pointcut):
        msg = f"@{when} takes a pointcut: @{when}(pointcut.handler('billing.*'))."
        raise TypeError(msg)

    def decorate(function: F) -> F:
        target: object = function
        if not isinstance(target, FunctionType):
            msg = f"@{when} decorates a function, not {function!r}."
            raise TypeError(msg)
        if hasattr(function, INTERCEPTOR):
            msg = f"{function!r} is already an interceptor: it can only have one kind."
            raise TypeError(msg)
        remember(function, sys._getframe(1))
        setattr(function, INTERCEPTOR, Interception(when, where, precedence))
        return function

    return decorate


def before(where: Pointcut, /, *, precedence: int = 0) -> Callable[[F], F]:
    """
    Run a function before handlers.

    It returns None to go on, another payload, a ``Message`` (see
    ``Message.replace``), or :data:`STOP`.

    Args:
        where: the handlers.
        precedence: lower is further out, see :data:`TRANSACTION`.

    """
    return _decorator(When.BEFORE, where, precedence)


def around(where: Pointcut, /, *, precedence: int = 0) -> Callable[[F], F]:
    """
    Run a function around handlers: it calls its ``Proceed`` parameter to continue.

    Its return value is the result. A parameter ``target`` gets the object whose method
    the handler is, None for a plain function.

    Args:
        where: the handlers.
        precedence: lower is further out, see :data:`TRANSACTION`.

    """
    return _decorator(When.AROUND, where, precedence)


def after(where: Pointcut, /, *, precedence: int = 0) -> Callable[[F], F]:
    """
    Run a function after handlers that returned; a parameter ``result`` gets it.

    Its return value replaces the result, unless it is None.

    Args:
        where: the handlers.
        precedence: lower is further out and so runs later, see :data:`TRANSACTION`.

    """
    return _decorator(When.AFTER, where, precedence)


def pre_send(where: Pointcut, /, *, precedence: int = 0) -> Callable[[F], F]:
    """
    Run a function before a message enters a channel.

    It returns the same as ``before``; if it raises, or stops, nothing is sent.

    Args:
        where: the handlers.
        precedence: lower runs earlier.

    """
    return _decorator(When.PRE_SEND, where, precedence)


def interception_of(function: object) -> Interception | None:
    """Return the declaration of an interceptor, or None for another function."""
    return getattr(function, INTERCEPTOR, None)
