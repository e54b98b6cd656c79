"""The decorators. They only mark a function or a class."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload

from django_cqrs.declaration.declarations import (
    MARK,
    SERVICE,
    Declaration,
    Kind,
    OnExisting,
    OnMissing,
    Policies,
    Span,
    declarations_of,
    remember,
)
from django_cqrs.messages import Message
from django_cqrs.retries import Retry

if TYPE_CHECKING:
    from django_cqrs.declaration.key_sources import KeySource

H = TypeVar(
    "H",
    bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]",
)
C = TypeVar("C", bound=type)
F = TypeVar("F", bound="Callable[..., Any]")


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


def _decorator(kind: Kind, route: Any, keywords: Mapping[str, Any]) -> Any:
    policies = _policies_of(kind, keywords)
    if route is not None and not isinstance(route, str):
        return _declare(route, Declaration(kind, None, Policies()), sys._getframe(2))
    declaration = Declaration(kind, route, policies)

    def decorate(handler: H) -> H:
        return _declare(handler, declaration, sys._getframe(1))

    return decorate


def _policies_of(kind: Kind, keywords: Mapping[str, Any]) -> Policies:
    """
    Return the policies that the keywords of a decorator describe.

    Raises:
        TypeError: there is no such keyword.

    """
    values = dict(keywords)
    aliases, output = values.get("aliases", ()), values.get("output")
    is_one = isinstance(aliases, str) or not isinstance(aliases, Iterable)
    values["aliases"] = (aliases,) if is_one else tuple(aliases)
    if isinstance(output, list):
        values["output"] = tuple(output)
    try:
        return Policies(**values)
    except TypeError as error:
        msg = str(error).replace("Policies.__init__", f"{kind}_handler")
        raise TypeError(msg) from None


class HandlerKeywords(TypedDict, total=False):
    """Keywords of ``@command_handler`` and ``@event_handler``, for type checkers."""

    name: str | None
    aliases: tuple[str, ...] | list[str]
    using: str | None
    atomic: bool | None
    channel: str | bool | None
    delay: timedelta | float | Callable[[Message], Span | datetime | None] | None
    expires: timedelta | float | Callable[[Message], Span | datetime | None] | None
    priority: int | None
    retry: Retry | None
    identifier: Any
    on_missing: OnMissing | None
    on_existing: OnExisting | None
    output: str | tuple[str, ...] | list[str] | None
    ordering_key: KeySource | Literal[True] | None
    idempotency_key: KeySource | None
    on_dead: str | type | None
    tenant: bool | None


def _takes_policies(decorator: F) -> F:
    """Show each keyword with its type and default where ``help()`` looks."""
    signature = inspect.signature(decorator)
    defaults = {each.name: each.default for each in dataclasses.fields(Policies)}
    keywords = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults[name],
            annotation=annotation.__forward_arg__,
        )
        for name, annotation in HandlerKeywords.__annotations__.items()
    ]
    sign: Any = decorator
    sign.__signature__ = signature.replace(
        parameters=[signature.parameters["route"], *keywords]
    )
    return decorator


@overload
def command_handler(handler: H, /) -> H: ...
@overload
def command_handler(
    route: str | None = None, /, **keywords: Unpack[HandlerKeywords]
) -> Callable[[H], H]: ...
@_takes_policies
def command_handler(route: Any = None, /, **keywords: Unpack[HandlerKeywords]) -> Any:
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
        delay: the minimum time that they wait, in seconds or a timedelta; or a function
            of the message that returns one, a datetime, or None.
        expires: the time after sending at which they are dropped, likewise.
        priority: the order of handling in the channel; higher first.
        retry: the policy for messages whose handling failed, on a channel that retries
            them.
        identifier: the source of the aggregate's or saga's identifier: an attribute of
            the payload by its name, a ``Header``, a callable that takes the message, or
            a dict of these for an identifier of several parts.
        on_missing: ``"ignore"`` drops a message whose aggregate or saga does not exist;
            ``"raise"``, the default, raises; an exception is raised instead, and its
            class is called with the text of the error.
        on_existing: likewise for a factory whose object exists already; ``"ignore"``
            undoes the factory and returns the identifier of that object.
        output: the routing key of a command, or several, that get the handler's result,
            unless it is None.
        ordering_key: the source of the key whose messages are handled one at a time, in
            order of sending, on a channel that supports it. A string is an attribute of
            the payload, ``Header("x")`` a header; a callable takes the message; True
            takes the object that it is for. A message whose key is None has no order.
        idempotency_key: the source, likewise, of the key that identifies duplicates of
            handled messages. A duplicate is not handled, and returns the result of the
            first one's handler.
        on_dead: the address that is told if a message is given up: the routing key of a
            command, the name of an event, or a subclass of
            :class:`~django_cqrs.MessageGaveUp`.
        tenant: False if it works on the part that all tenants share, so that its
            messages need no tenant.

    Returns:
        The function itself: calling it does not involve a bus.

    """
    return _decorator(Kind.COMMAND, route, keywords)


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
    tenant: bool | None = None,
) -> Callable[[H], H]: ...
def query_handler(
    route: Any = None,
    /,
    *,
    name: str | None = None,
    aliases: tuple[str, ...] | list[str] = (),
    channel: str | bool | None = None,
    identifier: Any = None,
    tenant: bool | None = None,
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
        tenant: False if it works on the part that all tenants share, so that its
            messages need no tenant.

    Returns:
        The function itself. No transaction is opened around it.

    """
    keywords = {
        "name": name,
        "aliases": aliases,
        "channel": channel,
        "identifier": identifier,
        "tenant": tenant,
    }
    return _decorator(Kind.QUERY, route, keywords)


@overload
def event_handler(handler: H, /) -> H: ...
@overload
def event_handler(
    route: str | None = None, /, **keywords: Unpack[HandlerKeywords]
) -> Callable[[H], H]: ...
@_takes_policies
def event_handler(route: Any = None, /, **keywords: Unpack[HandlerKeywords]) -> Any:
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
        delay: the minimum time that they wait, in seconds or a timedelta; or a function
            of the message that returns one, a datetime, or None.
        expires: the time after sending at which they are dropped, likewise.
        priority: higher is called first, or handled first in the channel; 0 by default.
        retry: the policy for messages whose handling failed, on a channel that retries
            them.
        identifier: the source of the aggregate's or saga's identifier: an attribute of
            the payload by its name, a ``Header``, a callable that takes the message, or
            a dict of these for an identifier of several parts.
        on_missing: ``"ignore"`` drops a message whose aggregate or saga does not exist;
            ``"raise"``, the default, raises; an exception is raised instead, and its
            class is called with the text of the error.
        on_existing: likewise for a factory whose object exists already; ``"ignore"``
            undoes the factory and returns the identifier of that object.
        output: the routing key of a command, or several, that get the handler's result,
            unless it is None.
        ordering_key: the source of the key whose events are handled one at a time, in
            order of sending, on a channel that supports it. A string is an attribute of
            the event, ``Header("x")`` a header; a callable takes the message; True
            takes the object that it is for. An event whose key is None has no order.
        idempotency_key: the source, likewise, of the key that identifies duplicates of
            handled events on a channel. A duplicate is not handled.
        on_dead: the address that is told if a message is given up: the routing key of a
            command, the name of an event, or a subclass of
            :class:`~django_cqrs.MessageGaveUp`.
        tenant: False if it works on the part that all tenants share, so that its
            messages need no tenant.

    Returns:
        The function itself.

    """
    return _decorator(Kind.EVENT, route, keywords)


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
