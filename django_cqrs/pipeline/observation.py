"""
Observers of messages: signals, the debug log, tracing.

An observer wraps the runs that handle or send a message. It is asked when they are
compiled, so without observers nothing slows messages down.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from django_cqrs.annotations import is_value_type, name_of_type
from django_cqrs.messages import (
    Message,
    Ran,
    is_last_after,
    message_name_of,
    name_run,
)
from django_cqrs.routing.endpoint import JoinPoint, Run
from django_cqrs.signals import message_failed, message_handled, tell_change

logger: Final = logging.getLogger("django_cqrs.pipeline")


class Step(enum.Enum):
    """An observed step of a message."""

    HANDLE = "handle"
    """A handler is called where the message is sent."""
    SEND = "send"
    """It is given to a channel."""
    CONSUME = "consume"
    """A handler is called with a message that comes out of a channel."""


Observer = Callable[[Run, JoinPoint, Step], Run]
"""Returns the given run, wrapped in itself; unchanged if it does not observe it."""

TransactionObserver = Callable[[Run, JoinPoint, str], Run]
"""Like Observer, but called inside the handler's transaction with its alias."""

_observers: list[Observer] = []
_transaction_observers: list[TransactionObserver] = []


def add_observer(observer: Observer) -> None:
    """Add an observer, to be asked about every run that is compiled from now on."""
    if observer not in _observers:
        _observers.append(observer)
        tell_change()


def remove_observer(observer: Observer) -> None:
    """Remove an observer from all runs."""
    _observers.remove(observer)
    tell_change()


def add_transaction_observer(observer: TransactionObserver) -> None:
    """Add an observer, to be asked about all handlers compiled from now on."""
    if observer not in _transaction_observers:
        _transaction_observers.append(observer)
        tell_change()


def remove_transaction_observer(observer: TransactionObserver) -> None:
    """Remove an observer from all handlers."""
    _transaction_observers.remove(observer)
    tell_change()


def observed(run: Run, point: JoinPoint, step: Step) -> Run:
    """Return `run` wrapped in its observers, those added last outermost."""
    for observer in (_signalled, _logged, *_observers):
        run = observer(run, point, step)
    if point.endpoint.action is not None and step is not Step.SEND:
        return _named(run)
    return run


def _named(run: Run) -> Run:
    """Record whether the factory or the action has run."""

    def run_named(message: Message) -> Any:
        # A worker that needs to know provides a record of its own.
        handling = message.handling
        before = handling.ran
        if before is None:
            handling.ran = Ran()
        try:
            return run(message)
        finally:
            handling.ran = before  # another handler of the event has its own

    return run_named


def observed_in_transaction(run: Run, point: JoinPoint, alias: str) -> Run:
    """Return `run` wrapped in the observers inside the transaction."""
    for observe in _transaction_observers:
        run = observe(run, point, alias)
    return run


def label_of(point: JoinPoint) -> str:
    """Return the name of the messages here for people: name, class or routing key."""
    cls, endpoint = point.payload_type, point.endpoint
    if not endpoint.is_declared:  # its payload is of a class that all such share
        return endpoint.name
    if cls is not None and (name := message_name_of(cls)) is not None:
        return name.name
    if cls is not None and not is_value_type(cls):
        return name_of_type(cls)
    return endpoint.keys[0] if endpoint.keys else endpoint.name


def name_of_error(error: BaseException) -> str:
    """Return the dotted path of an exception's class; its text may be secret."""
    cls = type(error)
    is_builtin = cls.__module__ == "builtins"
    return cls.__qualname__ if is_builtin else f"{cls.__module__}.{cls.__qualname__}"


def _signalled(run: Run, point: JoinPoint, step: Step) -> Run:
    """Send the signals about messages, if they have receivers."""
    has_receivers = message_handled.receivers or message_failed.receivers
    if step is Step.SEND or not has_receivers:
        return run
    sender = type(point.bus)
    endpoint = point.endpoint.name

    def run_signalled(message: Message) -> Any:
        start = perf_counter()
        try:
            result = run(message)
        except BaseException as error:
            message_failed.send_robust(
                sender,
                message=message,
                endpoint=name_run(message, endpoint),
                duration=perf_counter() - start,
                exception=error,
                attempt=message.attempt,
                is_last_attempt=is_last_after(message, error),
            )
            raise
        message_handled.send_robust(
            sender,
            message=message,
            endpoint=name_run(message, endpoint),
            duration=perf_counter() - start,
        )
        return result

    return run_signalled


def _logged(run: Run, point: JoinPoint, step: Step) -> Run:
    """Log a line for each message, if the logger is now at DEBUG."""
    if not logger.isEnabledFor(logging.DEBUG):
        return run
    label, endpoint = label_of(point), point.endpoint.name

    def extra(message: Message) -> dict[str, str]:
        return {
            "cqrs_message_id": str(message.message_id),
            "cqrs_correlation_id": str(message.correlation_id),
            "cqrs_endpoint": name_run(message, endpoint),
        }

    def run_logged(message: Message) -> Any:
        start = perf_counter()
        try:
            result = run(message)
        except BaseException as error:
            milliseconds = (perf_counter() - start) * 1000
            text = "%s failed in %s after %.3f ms with %s"
            name = name_of_error(error)
            ran = name_run(message, endpoint)
            logger.debug(text, label, ran, milliseconds, name, extra=extra(message))
            raise
        milliseconds = (perf_counter() - start) * 1000
        text = "%s was handled by %s in %.3f ms"
        ran = name_run(message, endpoint)
        logger.debug(text, label, ran, milliseconds, extra=extra(message))
        return result

    def run_sending_logged(message: Message) -> Any:
        result = run(message)
        text = "%s was sent to the channel %r for %s"
        channel = point.endpoint.channel
        logger.debug(text, label, channel, endpoint, extra=extra(message))
        return result

    return run_sending_logged if step is Step.SEND else run_logged
