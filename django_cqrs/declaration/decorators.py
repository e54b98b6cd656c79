"""The decorators. They mark a function or a class and do nothing else."""

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
    Declare the handler of a command: by the class it takes, or by a routing key.

    Args:
        route: the routing key; without one the first parameter's class routes.
        name: the endpoint's stable name; else ``app_label.qualified_name``.
        aliases: names the endpoint had before.
        using: the database alias of its transaction; else ``"default"``.
        atomic: False runs it outside any transaction of the bus's own.
        channel: the alias of the channel that its messages wait in, or True for
            ``"default"``; without one it is called at once.
        delay: how long they wait at least, in seconds or a timedelta.
        expires: how long after the sending they are dropped, likewise.
        priority: which of them is handled first in the channel; higher first.
        retry: what happens to a message whose handling failed, on a channel that
            tries again.
        identifier: which aggregate or saga the message is for: an attribute of the
            payload by its name, a ``Header``, a callable that gets the message, or
            a dict of these where it takes several to say so.
        on_missing: ``"ignore"`` drops a message whose aggregate or saga is not
            there; ``"raise"``, the default, raises.
        output: the routing key of a command, or several, that what the handler
            returns is sent to, unless it is None.
        ordering_key: where the key is whose messages are handled one at a time, in
            the order of sending, on a channel that keeps it. A string is an
            attribute of the payload, ``Header("x")`` a header, a callable gets the
            message. A message whose key is None has no order.
        idempotency_key: where the key is, likewise, by which a message is told from a
            duplicate of one that was handled. A duplicate is not handled, and gives
            back what the first one's handler returned.

    Returns:
        The function itself: calling it runs it with no bus.

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
    Declare the handler of a query: by the class it takes, or by a routing key.

    Args:
        route: the routing key; without one the first parameter's class routes.
        name: the endpoint's stable name; else ``app_label.qualified_name``.
        aliases: names the endpoint had before.
        channel: none: who asks waits for the answer. A check refuses it.
        identifier: which aggregate or saga is asked, as for a command.

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
    Declare a handler of events: by the classes it takes, by name or by pattern.

    Args:
        route: an event's name, or a pattern in the manner of
            :func:`fnmatch.fnmatchcase` (``"order.*"``, where ``*`` also matches
            dots); without one the first parameter's classes route.
        name: the endpoint's stable name; else ``app_label.qualified_name``.
        aliases: names the endpoint had before.
        using: the database alias of its transaction, on a channel.
        atomic: False, on a channel, runs it outside any transaction of its own.
        channel: the alias of the channel that its events wait in, or True for
            ``"default"``; without one it is called at once.
        delay: how long they wait at least, in seconds or a timedelta.
        expires: how long after the sending they are dropped, likewise.
        priority: higher is called first, or handled first in the channel; 0 where
            it is not given.
        retry: what happens to a message whose handling failed, on a channel that
            tries again.
        identifier: which aggregate or saga the message is for: an attribute of the
            payload by its name, a ``Header``, a callable that gets the message, or
            a dict of these where it takes several to say so.
        on_missing: ``"ignore"`` drops a message whose aggregate or saga is not
            there; ``"raise"``, the default, raises.
        output: the routing key of a command, or several, that what the handler
            returns is sent to, unless it is None.
        ordering_key: where the key is whose events are handled one at a time, in
            the order of sending, on a channel that keeps it. A string is an
            attribute of the event, ``Header("x")`` a header, a callable gets the
            message. An event whose key is None has no order.
        idempotency_key: where the key is, likewise, by which an event on a channel is
            told from a duplicate of one that was handled. A duplicate is not handled.

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
    Register a class: its decorated methods are handlers, others may be given it.

    One instance is built, when first needed, its ``__init__`` filled as a
    handler's parameters are; or ``SERVICE_RESOLVER`` gives one per message.
    """
    if not isinstance(cls, type):
        msg = f"@service decorates a class, not {cls!r}."
        raise TypeError(msg)
    setattr(cls, SERVICE, True)
    remember(cls, sys._getframe(1))
    return cls
