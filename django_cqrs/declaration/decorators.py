"""The decorators. They only mark a function or a class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from django_cqrs.declaration.declarations import (
    MARK,
    SERVICE,
    Declaration,
    Kind,
    OnMissing,
    Policies,
    declarations_of,
    remember,
)
from django_cqrs.retries import Retry

if TYPE_CHECKING:
    from django_cqrs.declaration.key_sources import KeySource

H = TypeVar(
    "H",
    bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]",
)
C = TypeVar("C", bound=type)


def _declare(handler: H, declaration: Declaration, frame: FrameType) -> H:
    function = getattr(handler, "__func__", handler)
    if not isinstance(function, FunctionType):
        msg = (
            f"@{declaration.kind}_handler decorates a function or a method, "
            f"not {handler!r}."
        )
        raise TypeError(msg)
    if not hasattr(function, MARK):
        remember(function, frame)
    setattr(function, MARK, (*declarations_of(function), declaration))
    return handler


def _decorator(kind: Kind, route: Any, **policies: Any) -> Any:
    if route is not None and not isinstance(route, str):
        declaration = Declaration(kind, None, Policies())
        return _declare(route, declaration, sys._getframe(2))
    aliases = policies["aliases"]
    is_one = isinstance(aliases, str) or not isinstance(aliases, Iterable)
    policies["aliases"] = (aliases,) if is_one else tuple(aliases)
    if isinstance(policies.get("output"), list):
        policies["output"] = tuple(policies["output"])
    declaration = Declaration(kind, route, Policies(**policies))

    def decorate(handler: H) -> H:
        return _declare(handler, declaration, sys._getframe(1))

    return decorate


@overload
def command_handler(handler: H, /) -> H: ...
@overload
def command_handler(
    route: str | None = None,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    using: str | None = None,
    atomic: bool | None = None,
    channel: str | bool | None = None,
    delay: timedelta | float | None = None,
    expires: timedelta | float | None = None,
    priority: int | None = None,
    retry: Retry | None = None,
    identifier: Any = None,
    on_missing: OnMissing | None = None,
    output: str | tuple[str, ...] | list[str] | None = None,
    ordering_key: KeySource | None = None,
    idempotency_key: KeySource | None = None,
) -> Callable[[H], H]: ...
def command_handler(
    route: Any = None,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    using: str | None = None,
    atomic: bool | None = None,
    channel: str | bool | None = None,
    delay: timedelta | float | None = None,
    expires: timedelta | float | None = None,
    priority: int | None = None,
    retry: Retry | None = None,
    identifier: Any = None,
    on_missing: OnMissing | None = None,
    output: str | tuple[str, ...] | list[str] | None = None,
    ordering_key: KeySource | None = None,
    idempotency_key: KeySource | None = None,
) -> Any:
    """
    Declare the handler of a command, by its parameter's class or by a routing key.

    Args:
        route: the routing key; without one the first parameter's class routes.
        name: the endpoint's stable name; else ``app_label.qualified_name``.
        aliases: former names of the endpoint.
        using: the database alias of its transaction; else ``"default"``.
        atomic: False runs it outside any transaction of the bus.
        channel: the alias of the channel that its messages wait in, or True for
            ``"default"``; without one it is called at once.
        delay: the minimum time that they wait, in seconds or a timedelta.
        expires: the time after sending at which they are dropped, likewise.
        priority: the order of handling in the channel; higher first.
        retry: the policy for messages whose handling failed, on a channel that retries
            them.
        identifier: the source of the aggregate's or saga's identifier: an attribute of
            the payload by its name, a ``Header``, a callable that takes the message, or
            a dict of these for an identifier of several parts.
        on_missing: ``"ignore"`` drops a message whose aggregate or saga does not exist;
            ``"raise"``, the default, raises.
        output: the routing key of a command, or several, that get the handler's result,
            unless it is None.
        ordering_key: the source of the key whose messages are handled one at a time, in
            order of sending, on a channel that supports it. A string is an attribute of
            the payload, ``Header("x")`` a header; a callable takes the message. A
            message whose key is None has no order.
        idempotency_key: the source, likewise, of the key that identifies duplicates of
            handled messages. A duplicate is not handled, and returns the result of the
            first one's handler.

    Returns:
        The function itself: calling it does not involve a bus.

    """
    return _decorator(
        Kind.COMMAND,
        route,
        name=name,
        aliases=aliases,
        using=using,
        atomic=atomic,
        channel=channel,
        delay=delay,
        expires=expires,
        priority=priority,
        retry=retry,
        identifier=identifier,
        on_missing=on_missing,
        output=output,
        ordering_key=ordering_key,
        idempotency_key=idempotency_key,
    )


@overload
def query_handler(handler: H, /) -> H: ...
@overload
def query_handler(
    route: str | None = None,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    channel: None = None,
    identifier: Any = None,
) -> Callable[[H], H]: ...
def query_handler(
    route: Any = None,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    channel: str | bool | None = None,
    identifier: Any = None,
) -> Any:
    """
    Declare the handler of a query, by its parameter's class or by a routing key.

    Args:
        route: the routing key; without one the first parameter's class routes.
        name: the endpoint's stable name; else ``app_label.qualified_name``.
        aliases: former names of the endpoint.
        channel: not allowed, since the sender waits for the answer. A check refuses it.
        identifier: the source of the identifier of the aggregate or saga, as for a
            command.

    Returns:
        The function itself. No transaction is opened around it.

    """
    return _decorator(
        Kind.QUERY,
        route,
        name=name,
        aliases=aliases,
        channel=channel,
        identifier=identifier,
    )


@overload
def event_handler(handler: H, /) -> H: ...
@overload
def event_handler(
    route: str | None = None,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    using: str | None = None,
    atomic: bool | None = None,
    channel: str | bool | None = None,
    delay: timedelta | float | None = None,
    expires: timedelta | float | None = None,
    priority: int | None = None,
    retry: Retry | None = None,
    identifier: Any = None,
    on_missing: OnMissing | None = None,
    output: str | tuple[str, ...] | list[str] | None = None,
    ordering_key: KeySource | None = None,
    idempotency_key: KeySource | None = None,
) -> Callable[[H], H]: ...
def event_handler(
    route: Any = None,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    using: str | None = None,
    atomic: bool | None = None,
    channel: str | bool | None = None,
    delay: timedelta | float | None = None,
    expires: timedelta | float | None = None,
    priority: int | None = None,
    retry: Retry | None = None,
    identifier: Any = None,
    on_missing: OnMissing | None = None,
    output: str | tuple[str, ...] | list[str] | None = None,
    ordering_key: KeySource | None = None,
    idempotency_key: KeySource | None = None,
) -> Any:
    """
    Declare a handler of events, by its parameter's classes, by name or by pattern.

    Args:
        route: an event's name, or a pattern in the manner of
            :func:`fnmatch.fnmatchcase` (``"order.*"``, where ``*`` also matches
            dots); without one the first parameter's classes route.
        name: the endpoint's stable name; else ``app_label.qualified_name``.
        aliases: former names of the endpoint.
        using: the database alias of its transaction, on a channel.
        atomic: False, on a channel, runs it outside any transaction of its own.
        channel: the alias of the channel that its events wait in, or True for
            ``"default"``; without one it is called at once.
        delay: the minimum time that they wait, in seconds or a timedelta.
        expires: the time after sending at which they are dropped, likewise.
        priority: higher is called first, or handled first in the channel; 0 by default.
        retry: the policy for messages whose handling failed, on a channel that retries
            them.
        identifier: the source of the aggregate's or saga's identifier: an attribute of
            the payload by its name, a ``Header``, a callable that takes the message, or
            a dict of these for an identifier of several parts.
        on_missing: ``"ignore"`` drops a message whose aggregate or saga does not exist;
            ``"raise"``, the default, raises.
        output: the routing key of a command, or several, that get the handler's result,
            unless it is None.
        ordering_key: the source of the key whose events are handled one at a time, in
            order of sending, on a channel that supports it. A string is an attribute of
            the event, ``Header("x")`` a header; a callable takes the message. An event
            whose key is None has no order.
        idempotency_key: the source, likewise, of the key that identifies duplicates of
            handled events on a channel. A duplicate is not handled.

    Returns:
        The function itself.

    """
    return _decorator(
        Kind.EVENT,
        route,
        name=name,
        aliases=aliases,
        using=using,
        atomic=atomic,
        channel=channel,
        delay=delay,
        expires=expires,
        priority=priority,
        retry=retry,
        identifier=identifier,
        on_missing=on_missing,
        output=output,
        ordering_key=ordering_key,
        idempotency_key=idempotency_key,
    )


def service(cls: C) -> C:
    """
    Register a class: its decorated methods are handlers, and others may depend on it.

    One instance is built on first use, with its ``__init__`` filled like a handler's
    parameters; or ``SERVICE_RESOLVER`` provides one per message.
    """
    if not isinstance(cls, type):
        msg = f"@service decorates a class, not {cls!r}."
        raise TypeError(msg)
    setattr(cls, SERVICE, True)
    remember(cls, sys._getframe(1))
    return cls
