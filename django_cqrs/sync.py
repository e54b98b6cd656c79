"""The crossings between synchronous code and event loops."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import threading
from asyncio import CancelledError, _get_running_loop
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from asgiref.sync import async_to_sync, sync_to_async

from django_cqrs.active_tenant import active
from django_cqrs.exceptions import SynchronousDispatch
from django_cqrs.messages import current

F = TypeVar("F", bound=Callable[..., Any])

_UNSET: Any = object()
_LONGEST_PASS = 1.0
"""Seconds; a loop that is ending may never run the function passed to it."""


def sync_callable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that can be called in the synchronous code of a bus."""
    call_of = type(function).__call__
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call_of):

        def call(*args: Any, **kwargs: Any) -> Any:
            return _wait_for(function, *args, **kwargs)

        return call
    if inspect.iscoroutinefunction(inspect.unwrap(function)):

        def call_wrapped(*args: Any, **kwargs: Any) -> Any:
            # A plain decorator around a coroutine function may return its coroutine.
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                return _wait_for(_finish, result)
            return result

        return call_wrapped
    return function


def _wait_for(
    function: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
) -> Any:
    # In a context of its own: a request that is cancelled in the meantime copies its
    # thread's context variables, and would send its last signals to the executor of
    # this wait. Variables that the function sets are copied when the wait has ended.
    context = copy_context()
    loops: list[asyncio.AbstractEventLoop] = []

    async def noting_its_loop() -> Any:
        loops.append(asyncio.get_running_loop())
        return await function(*args, **kwargs)

    try:
        # Created for each call: it remembers the event loop around it.
        return context.run(async_to_sync(noting_its_loop))
    except asyncio.CancelledError:
        if loops:
            _let_pass(loops[0])
        raise
    finally:
        for variable, value in context.items():
            if variable.get(_UNSET) is not value:
                variable.set(value)


def _let_pass(loop: asyncio.AbstractEventLoop) -> None:
    # The loop notifies the canceller, which checks whether this thread is done: only if
    # it is not does it take the error, which asyncio would log otherwise.
    passed = threading.Event()
    with suppress(RuntimeError):  # closed: a loop for this wait only
        loop.call_soon_threadsafe(passed.set)
        passed.wait(_LONGEST_PASS)


async def _finish(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@dataclasses.dataclass(frozen=True, slots=True)
class _CancelledInThread:
    """Carries a CancelledError out of the thread."""

    error: CancelledError


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a function's async counterpart, which runs in the database's thread."""

    def run(*args: Any, **kwargs: Any) -> Any:
        __traceback_hide__ = True
        try:
            return function(*args, **kwargs)
        except CancelledError as error:
            # Not as an exception of the future, which the bridge may never read after
            # its caller is cancelled: asyncio would log that.
            return _CancelledInThread(error)

    in_database_thread = sync_to_async(run, thread_sensitive=True)

    async def hop(*args: Any, **kwargs: Any) -> Any:
        __traceback_hide__ = True
        token = current.set(current.get())
        before = copy_context()
        try:
            result = await in_database_thread(*args, **kwargs)
            if isinstance(result, _CancelledInThread):
                raise result.error
        except CancelledError:
            # It has restored the context of a thread that is still running.
            for variable, value in before.items():
                if variable.get(None) is not value:
                    variable.set(value)
            if active not in before:
                active.set(None)
            raise
        finally:
            current.reset(token)
        return result

    return hop


def twin_of(function: Callable[..., Any]) -> Callable[[F], F]:
    """
    Return a decorator for a function's async counterpart: both show one signature.

    Args:
        function: the one that names each keyword; its counterpart passes them on.

    """

    def mark(twin: F) -> F:
        sign: Any = twin
        sign.__signature__ = inspect.signature(function)
        return twin

    return mark


def refuse_running_loop(entrance: str, instead: str) -> None:
    """
    Refuse to block an event loop.

    Raises:
        SynchronousDispatch: a loop is running in this thread.

    """
    if _get_running_loop() is not None:
        msg = (
            f"{entrance}() was called in a running event loop and would block it. Use "
            f"`{instead}`."
        )
        raise SynchronousDispatch(msg)
