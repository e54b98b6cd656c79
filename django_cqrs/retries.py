"""Retries: the exceptions worth another attempt, and the number of attempts."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import math
import random
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal, get_args

from django.db import DatabaseError, OperationalError

logger: Final = logging.getLogger("django_cqrs.worker")

FinalFailure = Literal["dead_letter", "drop", "stop"]
"""The fate of a message whose attempts have failed."""

Decision = Literal["retry", "dead", "drop"]
"""The answers of a function in ``Retry(on=...)`` about a message that failed."""

__all__ = ["DEADLOCKS", "Decision", "InstantRetry", "Retry", "Transient"]


class Transient:
    """Database errors recognised by the server's own code, not by their class."""

    def __init__(
        self,
        *,
        sqlstates: frozenset[str],
        mysql_codes: frozenset[int],
        sqlite_codes: frozenset[int] = frozenset(),
    ) -> None:
        """
        Take the codes.

        Args:
            sqlstates: five-character codes of the SQL standard and PostgreSQL.
            mysql_codes: error numbers of MySQL and MariaDB.
            sqlite_codes: extended result codes of SQLite.

        """
        self.sqlstates = sqlstates
        self.mysql_codes = mysql_codes
        self.sqlite_codes = sqlite_codes

    def includes(self, error: BaseException) -> bool:
        """Return whether an exception, or its cause in the driver, has such a code."""
        if not isinstance(error, DatabaseError):
            return False
        # Some MySQL drivers add a state, which says less than the number.
        code = error.args[0] if error.args else None
        if isinstance(error, OperationalError) and code in self.mysql_codes:
            return True
        driver = error.__cause__
        if getattr(driver, "sqlite_errorcode", None) in self.sqlite_codes:
            return True
        state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
        return state in self.sqlstates

    def __repr__(self) -> str:
        """Return the codes."""
        numbers = *sorted(self.mysql_codes), *sorted(self.sqlite_codes)
        codes = [*sorted(self.sqlstates), *map(str, numbers)]
        return f"<Transient {' '.join(codes)}>"


DEADLOCKS: Final = Transient(
    sqlstates=frozenset({"40001", "40P01"}),
    mysql_codes=frozenset({1020, 1205, 1213}),
    sqlite_codes=frozenset({sqlite3.SQLITE_BUSY_SNAPSHOT}),
)
"""
Deadlocks, serialization failures and lock-wait timeouts: another attempt may succeed.

SQLSTATE 40001 and 40P01 of PostgreSQL; 1213, 1205 and 1020 of MySQL and MariaDB, the
last of which means a row changed since the transaction's snapshot; and
SQLITE_BUSY_SNAPSHOT, which is the same on SQLite.
"""

Failures = type[Exception] | Transient | tuple[type[Exception] | Transient, ...]


def _are_failures(on: object) -> bool:
    return isinstance(on, Transient) or (
        isinstance(on, type) and issubclass(on, Exception)
    )


def _check_failures(policy: object, on: Failures) -> None:
    """
    Refuse failures that no exception can match.

    Raises:
        TypeError: there is such a value, or none at all.

    """
    named = on if isinstance(on, tuple) else (on,)
    if not named or not all(map(_are_failures, named)):
        msg = (
            f"{type(policy).__name__}(on=...) takes exception classes and DEADLOCKS, "
            f"one or a tuple of them{_OR_FUNCTION * isinstance(policy, Retry)}, "
            f"not {on!r}."
        )
        raise TypeError(msg)


_OR_FUNCTION: Final = ", or a function of the exception"


def _is_function(on: object) -> bool:
    return callable(on) and not isinstance(on, (type, Transient))


def _check_arguments(function: Callable[..., Any]) -> None:
    """
    Refuse a function that does not take an exception.

    Raises:
        TypeError: it takes another number of arguments, or is asynchronous.

    """
    try:
        inspect.signature(function).bind(Exception())
    except TypeError as error:
        msg = f"Retry(on={_name(function)}): it is called with the exception: {error}."
        raise TypeError(msg) from None
    except ValueError:  # of a builtin, whose signature is unknown
        pass
    if inspect.iscoroutinefunction(function):
        msg = f"Retry(on={_name(function)}): it must not be async."
        raise TypeError(msg)


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", None)
    return repr(function) if name is None else f"{function.__module__}.{name}"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not math.isnan(value)


def _is_one_of(error: BaseException, on: Failures) -> bool:
    return any(
        each.includes(error) if isinstance(each, Transient) else isinstance(error, each)
        for each in (on if isinstance(on, tuple) else (on,))
    )


@dataclasses.dataclass(frozen=True, slots=True)
class InstantRetry:
    """
    Retry a command at once, each time in a fresh transaction.

    Args:
        retries: the maximum number of attempts after the first.
        on: the failures to retry: an exception class, a set of codes such as
            :data:`~django_cqrs.DEADLOCKS`, or a tuple of these.

    Inside a surrounding transaction, and inside another attempt, nothing is retried:
    only the outermost command is.
    """

    retries: int = 3
    on: Failures = Exception

    def __post_init__(self) -> None:
        """
        Refuse an invalid policy.

        Raises:
            TypeError: `on` contains something that is not an exception.
            ValueError: `retries` is not a number of retries.

        """
        if type(self.retries) is not int or self.retries < 0:
            msg = f"InstantRetry takes the number of retries, not {self.retries!r}."
            raise ValueError(msg)
        _check_failures(self, self.on)

    def is_worth(self, error: BaseException) -> bool:
        """Return whether an exception is one of the given ones."""
        return _is_one_of(error, self.on)

    def is_last(self, attempt: int, error: BaseException | None = None) -> bool:
        """Return whether no attempt follows one that fails, counted from 1."""
        return attempt > self.retries or not (error is None or self.is_worth(error))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """
    Retry a message in a channel later, and finally give it up.

    Args:
        attempts: the maximum number of attempts, including the first.
        delay: seconds before the second attempt.
        factor: the factor by which the delay grows from attempt to attempt.
        cap: the maximum delay in seconds.
        jitter: whether each delay is random, between half and all of that, so that
            messages that failed together are not retried together.
        on: the failures to retry: an exception class, a set of codes such as
            :data:`~django_cqrs.DEADLOCKS`, or a tuple of these; after any other the
            message is given up at once. Or a function of the exception that decides:
            ``"retry"``, ``"dead"`` (a dead letter at once) or ``"drop"`` (the message
            is logged and forgotten).
        final_failure: ``"dead_letter"`` keeps a message that is given up, ``"drop"``
            logs and forgets it, ``"stop"`` leaves it waiting and stops the worker.

    """

    attempts: int = 5
    delay: float = 1
    factor: float = 2
    cap: float = 600
    jitter: bool = True
    on: Failures | Callable[[Exception], Decision] = Exception
    final_failure: FinalFailure = "dead_letter"

    def __post_init__(self) -> None:
        """
        Refuse an invalid policy.

        Raises:
            TypeError: `on` contains something that is not an exception, and is not a
                function of one.
            ValueError: a number is out of range, or a word is not one of those.

        """
        if type(self.attempts) is not int or self.attempts < 1:
            msg = (
                f"Retry(attempts={self.attempts!r}): must be at least 1, which is the "
                "first attempt."
            )
            raise ValueError(msg)
        numbers = (self.delay, self.cap, self.factor)
        if not all(map(_is_number, numbers)) or min(numbers) < 0 or self.factor < 1:
            msg = (
                f"Retry(delay={self.delay!r}, cap={self.cap!r}, "
                f"factor={self.factor!r}): delay and cap must be at least 0 seconds, "
                "factor at least 1."
            )
            raise ValueError(msg)
        if self.final_failure not in get_args(FinalFailure):
            words = ", ".join(get_args(FinalFailure))
            msg = f"Retry(final_failure={self.final_failure!r}): one of {words}."
            raise ValueError(msg)
        on: Any = self.on
        if _is_function(on):
            _check_arguments(on)
        else:
            _check_failures(self, on)

    def judge(self, error: BaseException) -> Decision | Literal["final"]:
        """
        Return the fate of a message by its exception.

        Returns:
            ``"retry"`` while attempts are left, ``"dead"`` or ``"drop"`` at once;
            ``"final"`` for what `final_failure` says. If the function in `on` raises,
            or answers something else, that is logged, and the message is retried.

        """
        if isinstance(error, asyncio.CancelledError):
            return "retry"
        on: Any = self.on
        if not _is_function(on):
            return "retry" if _is_one_of(error, on) else "final"
        if not isinstance(error, Exception):  # it ends the process
            return "final"
        try:
            answer: Any = on(error)
        except Exception:
            logger.exception("%s, in on=, failed: the message is retried", _name(on))
            return "retry"
        if answer not in get_args(Decision):
            logger.error(
                "%s, in on=, answered %r, which is none of %s: the message is retried",
                _name(on),
                answer,
                ", ".join(get_args(Decision)),
            )
            return "retry"
        decision: Decision = answer
        return decision

    def is_worth(self, error: BaseException) -> bool:
        """Return whether a message that failed with an exception is to be retried."""
        return self.judge(error) == "retry"

    def is_last(self, attempt: int, error: BaseException | None = None) -> bool:
        """
        Return whether no attempt follows one that fails, counted from 1.

        With ``final_failure="stop"`` one follows when a worker is started, unless a
        function in `on` decides otherwise.
        """
        verdict = "retry" if error is None else self.judge(error)
        if verdict in ("dead", "drop"):
            return True
        if self.final_failure == "stop":
            return False
        return verdict == "final" or attempt >= self.attempts

    def delay_after(self, attempt: int) -> timedelta:
        """Return the delay after an attempt, counted from 1."""
        try:
            seconds = min(self.cap, self.delay * float(self.factor) ** (attempt - 1))
        except OverflowError:
            seconds = self.cap
        if self.jitter:
            seconds *= random.uniform(0.5, 1)  # noqa: S311 - no secret
        return timedelta(seconds=seconds)


DEFAULT_RETRY: Final = Retry()
"""The policy of the outbox for messages of handlers that have none."""
