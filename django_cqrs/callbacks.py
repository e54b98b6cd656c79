"""Connect callbacks of ``on_commit`` with the message that registered them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_cqrs.messages import NOBODY, Message, Origin, current


class OwnCallback:
    """A callback of this package: it needs no message, and is found by its class."""


class _Bound:
    """A callback and the message that was being handled at its registration."""

    __slots__ = ("__wrapped__", "_message")

    def __init__(self, message: Message | Origin, callback: Callable[[], Any]) -> None:
        self.__wrapped__ = callback
        self._message = message

    def __call__(self) -> Any:
        token = current.set(self._message)
        try:
            return self.__wrapped__()
        finally:
            current.reset(token)

    def __getattr__(self, name: str) -> Any:
        """Forward the callback's attributes: Django logs its name."""
        return getattr(self.__wrapped__, name)


def bind_callbacks() -> None:
    """
    Let messages sent by an ``on_commit`` callback inherit from the enclosing message.

    The time of the commit does not depend on the handler: a worker commits many
    messages at once, and a request with ``ATOMIC_REQUESTS`` after its last one. So the
    message is kept when the callback is registered, on every connection.
    """
    connection_created.connect(_bind, dispatch_uid="django_cqrs.callbacks")
    for connection in connections.all(initialized_only=True):
        _bind(connection)


def _bind(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Wrap the ``on_commit`` of one connection, which others may have wrapped."""
    if "on_commit" in vars(connection):  # it was opened before
        return
    register = connection.on_commit

    def on_commit(func: Any, robust: bool = False) -> None:
        message = current.get()
        callback: Any = func
        is_bound = message is not NOBODY and connection.in_atomic_block
        if is_bound and callable(func) and not isinstance(func, OwnCallback):
            callback = _Bound(message, func)
        register(callback, robust=robust)

    vars(connection)["on_commit"] = on_commit
