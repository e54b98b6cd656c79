"""The stages that may stand around a handler: each takes a ``Run`` and returns one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from time import time_ns
from typing import Any, Final, Protocol
from uuid import UUID

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic

from django_cqrs.exceptions import BrokenTransaction
from django_cqrs.messages import (
    MILLISECOND,
    Message,
    Origin,
    clock,
    current,
    handling_of,
    name_run,
    sending_time,
)
from django_cqrs.pipeline.joined_begin import join_begin
from django_cqrs.pipeline.scopes import BusScope
from django_cqrs.retries import InstantRetry
from django_cqrs.routing.endpoint import Run

logger: Final = logging.getLogger("django_cqrs.pipeline")

_set_current = current.set
_reset_current = current.reset


_HANDLER = "cqrs_handler"
"""The attribute of a run with the handler, if it does nothing but call that."""


def handle_payload(handler: Callable[[Any], Any]) -> Run:
    """Do the same as :func:`while_current` with one frame less, and set no time."""

    def run(message: Message) -> Any:
        token = _set_current(message)
        try:
            return handler(message._payload)
        finally:
            _reset_current(token)

    setattr(run, _HANDLER, handler)
    return run


def handle_payload_and_message(handler: Callable[[Any, Message], Any]) -> Run:
    """Do the same as :func:`while_current` with two frames less."""

    def run(message: Message) -> Any:
        if message._message_id is None:  # its id would have the time in it
            now = time_ns()  # and then as sending_time()
            if now <= clock.last < now + MILLISECOND:
                now = clock.last + 1
            clock.last = message._nanoseconds = now
        token = _set_current(message)
        try:
            return handler(message._payload, message)
        finally:
            _reset_current(token)

    return run


def handler_alone(run: Run) -> Callable[[Any], Any] | None:
    """Return the handler of :func:`handle_payload`, None of any other run."""
    handler: Callable[[Any], Any] | None = getattr(run, _HANDLER, None)
    return handler


def while_current(run: Run, *, takes_time: bool = True) -> Run:
    """
    Let messages sent by `run` inherit from the message that it handles.

    Args:
        run: the inner run.
        takes_time: whether the message was sent just now; one from a channel has its
            time already.

    """

    def run_while_current(message: Message) -> Any:
        if takes_time and message._message_id is None:  # which has a time in it
            message._nanoseconds = sending_time()
        token = _set_current(message)
        try:
            return run(message)
        finally:
            _reset_current(token)

    return run_while_current


def in_transaction(run: Run, alias: str, name: str, *, opens: bool = True) -> Run:
    """
    Make `run` commit as a whole or not at all, in a bus scope of its own.

    Args:
        run: the inner run.
        alias: the database alias.
        name: the endpoint's name, for errors.
        opens: False if somebody else's savepoint is this transaction.

    """
    block: Any = nullcontext()
    if opens:
        block = Atomic(alias, savepoint=True, durable=False)  # its state is elsewhere

    def run_in_transaction(message: Message) -> Any:
        around = None if opens else message._parent._scope
        connection: Any
        if around is not None and around.connection.alias == alias:
            connection = around.connection  # with no need to look for it
        else:
            connection = connections[alias]
        if connection.in_atomic_block and is_broken(connection):
            raise _broken_before(name_run(message, name), connection)
        # Django never clears it: an old error would be blamed for a later rollback.
        connection.rollback_exc = None
        with block:
            if opens and connection.vendor == "postgresql":
                join_begin(connection)
            scope = message._scope = BusScope(connection, message._parent)
            try:
                result = run(message)
                if is_broken(connection):
                    raise _broken_inside(name_run(message, name), connection)
                scope.is_open = False
                if scope.buffer:
                    scope.write_or_keep(is_last=opens)
            except BaseException:
                scope.drop()
                raise
        if scope.buffer:
            scope.hand_over()
        return result

    return run_in_transaction


def inside_transaction(run: Run, alias: str, name: str) -> Run:
    """Run `run` in the open transaction, or in one of its own."""
    in_its_own = in_transaction(run, alias, name)

    def run_inside(message: Message) -> Any:
        if is_inside_transaction(connections[alias]):
            return run(message)
        return in_its_own(message)

    return run_inside


def on_alias(
    compile_for: Callable[[str], Run], alias_of: Callable[[Message], str]
) -> Run:
    """Return a run that handles a message on the database chosen at that time."""
    runs: dict[str, Run] = {}

    def run_there(message: Message) -> Any:
        alias = alias_of(message)
        run = runs.get(alias)
        if run is None:
            run = runs[alias] = compile_for(alias)
        return run(message)

    return run_there


class DriverGuard(Protocol):
    """Learns of the first use of the driver's connection."""

    driver: Any
    """The driver's connection."""
    answers: dict[str, Any]
    """The values of attributes that may be read without one."""

    def touch(self) -> Any:
        """Note the use, and return the driver's connection."""
        ...


class UntouchedDriver:
    """
    A stand-in for the driver's connection until its first use.

    Its guard is told of every use, and returns the driver's connection.
    """

    __slots__ = ("_guard",)

    def __init__(self, guard: DriverGuard) -> None:
        """Stand in for the connection of a guard."""
        object.__setattr__(self, "_guard", guard)

    def __getattribute__(self, name: str) -> Any:
        """Read from the driver's connection; `isinstance()` may read its class too."""
        guard = object.__getattribute__(self, "_guard")
        if name in guard.answers:
            return guard.answers[name]
        return getattr(guard.touch(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the attribute on the driver's connection."""
        setattr(_touched(self), name, value)

    def __delattr__(self, name: str) -> None:
        """Delete the attribute from the driver's connection."""
        delattr(_touched(self), name)

    def __enter__(self) -> Any:
        """Enter the driver's connection."""
        return _touched(self).__enter__()

    def __exit__(self, *failure: object) -> Any:
        """Leave the driver's connection."""
        return _touched(self).__exit__(*failure)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the driver's connection: SQLite's returns a statement."""
        return _touched(self)(*args, **options)


def _touched(stand_in: UntouchedDriver) -> Any:
    return object.__getattribute__(stand_in, "_guard").touch()


def touch(connection: BaseDatabaseWrapper) -> None:
    """Put the driver's connection in the place of a stand-in, as by a use of it."""
    if type(connection.connection) is UntouchedDriver:
        _touched(connection.connection)


def is_broken(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the open transaction can only be rolled back."""
    if connection.needs_rollback:
        return True
    if connection.vendor != "postgresql":
        return False
    # Any error breaks a transaction here, even in a statement that Django does not see
    # (a query, plain SQL), and COMMIT then rolls back and reports success.
    # psycopg creates an object for its `info`, the only source in psycopg2.
    raw: Any = connection.connection
    if type(raw) is UntouchedDriver:
        raw = object.__getattribute__(raw, "_guard").driver
    session = getattr(raw, "pgconn", None) or getattr(raw, "info", None)
    return getattr(session, "transaction_status", None) == _IN_ERROR


_IN_ERROR = 3  # TransactionStatus.INERROR in psycopg and in psycopg2


def _broken_before(name: str, connection: BaseDatabaseWrapper) -> BrokenTransaction:
    error = BrokenTransaction(
        f"{name} was not called: the transaction open on {connection.alias!r} can "
        "only be rolled back, since an earlier database error in it was caught "
        "without a savepoint. Wrap the code that may fail in transaction.atomic()."
    )
    error.__cause__ = getattr(connection, "rollback_exc", None)
    return error


def _broken_inside(name: str, connection: BaseDatabaseWrapper) -> BrokenTransaction:
    error = BrokenTransaction(
        f"{name} returned, but its transaction on {connection.alias!r} can only be "
        "rolled back, so nothing was saved: a database error in it was caught "
        "without a savepoint, or set_rollback(True) was called. Wrap the code that "
        "may fail in transaction.atomic(); to roll back on purpose, raise an "
        "exception."
    )
    error.__cause__ = getattr(connection, "rollback_exc", None)
    return error


def retried(run: Run, retry: InstantRetry, alias: str, name: str) -> Run:
    """Retry `run`, if this is the outermost transaction and attempt."""

    def run_retried(message: Message) -> Any:
        __traceback_hide__ = True
        if is_inside_transaction(connections[alias]) or _is_retried(message._parent):
            return run(message)
        message.handling.is_retried = True
        message._retry = retry
        sent = _copied(message._payload)
        for retries in range(retry.retries):
            message._attempt = retries + 1
            try:
                return run(message)
            except Exception as error:
                if not retry.is_worth(error):
                    raise
                message._payload = _copied(sent)  # the sent payload, for each attempt
                logger.warning(
                    "%s failed with %s and is retried (%d of %d)",
                    name_run(message, name),
                    type(error).__name__,
                    retries + 1,
                    retry.retries,
                    extra={
                        "cqrs_message_id": str(message.message_id),
                        "cqrs_correlation_id": str(message.correlation_id),
                        "cqrs_endpoint": name_run(message, name),
                    },
                )
        message._attempt = retry.retries + 1
        return run(message)

    return run_retried


# Types that no handler can change.
_FIXED: Final = (
    *(bool, int, float, complex, str, bytes, type(None), range, Enum),
    *(date, time, timedelta, tzinfo, Decimal, UUID),
)


def _copied(payload: Any) -> Any:
    """Return a copy that shares no mutable state, if one can be made."""
    if _is_fixed(payload):
        return payload
    try:
        return deepcopy(payload)
    except Exception:  # noqa: BLE001 - whatever the parts of a payload raise
        return payload


def _is_fixed(value: object) -> bool:
    """Return whether a common value is immutable: a quick check."""
    if isinstance(value, _FIXED):
        return True
    kind: Any = type(value)
    if isinstance(value, (tuple, frozenset)) and kind in (tuple, frozenset):
        return all(map(_is_fixed, value))
    params = getattr(kind, "__dataclass_params__", None)
    return (
        params is not None
        and params.frozen
        and not hasattr(value, "__dict__")
        and all(_is_fixed(getattr(value, name)) for name in kind.__dataclass_fields__)
    )


def is_inside_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction is open, except a test case's own."""
    blocks = getattr(connection, "atomic_blocks", ())
    return any(not getattr(block, "_from_testcase", False) for block in blocks)


def _is_retried(message: Message | Origin) -> bool:
    while isinstance(message, Message):
        if handling_of(message).is_retried:
            return True
        message = message._parent
    return False
