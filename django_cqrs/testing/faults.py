"""Faults on purpose: failures, crashes, duplicates and another order of messages."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from contextvars import ContextVar
from random import Random
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import atomic

from django_cqrs.annotations import place_of
from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Channel, Delivery, Envelope, next_sequence
from django_cqrs.exceptions import InvalidChannel, InvalidOption
from django_cqrs.messages import Message, scope_of
from django_cqrs.pipeline.observation import (
    Step,
    add_observer,
    add_transaction_observer,
    remove_observer,
    remove_transaction_observer,
)
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Run

SPREAD: Final = 2**50
"""The range of numbers that shuffled messages are moved in: larger than a day's."""


class SimulatedCrash(BaseException):
    """
    The end of the process, simulated by ``flow.crashes_after()``.

    It is not an ``Exception``, so that a handler cannot catch it by accident.
    """


class FaultPlan:
    """The faults of one registry's handlers, until they are taken back."""

    def __init__(self, registry: Registry) -> None:
        """Start without a fault, and without a change of anything."""
        self._registry = registry
        self._stack = ExitStack()
        self._failures: list[tuple[HandlerTarget, BaseException]] = []
        self._crashes: list[HandlerTarget] = []
        self._repeated: list[MessageTarget] = []
        self._random: Random | None = None
        self._is_inside = self._is_outside = self._is_at_channels = False

    def close(self) -> None:
        """Take back all faults."""
        self._stack.close()

    # Of handlers --------------------------------------------------------------------

    def fail(self, target: Any, error: type[BaseException] | BaseException) -> None:
        """Let a handler fail at its next call, before it does anything."""
        wanted = HandlerTarget(self._registry, target, "flow.fails_once")
        is_error = isinstance(error, BaseException) or (
            isinstance(error, type) and issubclass(error, BaseException)
        )
        if not is_error:
            msg = f"fails_once() takes an exception, not {error!r}."
            raise InvalidOption(msg)
        made = error() if isinstance(error, type) else error
        self._failures.append((wanted, made))
        self._observe_inside()

    def crash(self, target: Any) -> None:
        """Let the process end after the next call of a handler, before the commit."""
        self._crashes.append(
            HandlerTarget(self._registry, target, "flow.crashes_after")
        )
        self._observe_inside()

    def _observe_inside(self) -> None:
        if not self._is_inside:
            self._is_inside = True
            add_transaction_observer(self._inside)
            self._stack.callback(remove_transaction_observer, self._inside)

    def _inside(self, run: Run, point: JoinPoint, _alias: str) -> Run:
        if point.bus.registry is not self._registry:
            return run
        endpoint = point.endpoint

        def run_with_faults(message: Message) -> Any:
            for place, (target, error) in enumerate(self._failures):
                if target.is_met_by(endpoint):
                    del self._failures[place]
                    raise error
            result = run(message)
            for place, target in enumerate(self._crashes):
                if target.is_met_by(endpoint):
                    del self._crashes[place]
                    msg = f"The process ended after {endpoint.name}, before the commit."
                    raise SimulatedCrash(msg)
            return result

        return run_with_faults

    # Of messages --------------------------------------------------------------------

    def repeat(self, target: Any) -> None:
        """Let every message of a class, or for a handler, be handled twice."""
        self._repeated.append(MessageTarget(self._registry, target))
        if not self._is_outside:
            self._is_outside = True
            add_observer(self._outside)
            self._stack.callback(remove_observer, self._outside)
        self._alter_channels()

    def _outside(self, run: Run, point: JoinPoint, step: Step) -> Run:
        if point.bus.registry is not self._registry or step is not Step.HANDLE:
            return run
        endpoint = point.endpoint

        def run_twice(message: Message) -> Any:
            result = run(message)
            if any(each.is_met_by(message, endpoint) for each in self._repeated):
                # Whoever sent the second one learns of its failure: not this sender.
                with suppress(Exception), _savepoint(message, endpoint):
                    run(message.replace())
            return result

        return run_twice

    def shuffle(self, seed: int) -> None:
        """Let channels handle messages in another order, but for ordering keys."""
        self._random = Random(seed)  # noqa: S311 - no secret
        self._alter_channels()

    def _alter_channels(self) -> None:
        if self._is_at_channels:
            return
        self._is_at_channels = True
        for alias in channels:
            with suppress(InvalidChannel):  # a check reports it
                self._alter(channels[alias])

    def _alter(self, channel: Channel) -> None:
        for name in ("write", "write_last"):
            vars(channel)[name] = self._altered(getattr(channel, name))
            self._stack.callback(vars(channel).pop, name, None)

    def _altered(self, write: Callable[..., None]) -> Callable[..., None]:
        def write_altered(connection: Any, entries: Sequence[Any]) -> None:
            if _is_altered.get():  # one calls the other
                write(connection, entries)
                return
            token = _is_altered.set(True)
            try:
                write(connection, list(self._entries(entries)))
            finally:
                _is_altered.reset(token)

        return write_altered

    def _entries(self, entries: Sequence[Any]) -> Iterator[Any]:
        for entry in entries:
            if not isinstance(entry, Delivery):  # a call for those that are there
                yield entry
                continue
            envelope = entry.envelope
            yield entry._replace(envelope=self._moved(envelope))
            if any(each.is_met_in(envelope) for each in self._repeated):
                again = dataclasses.replace(envelope, sequence=next_sequence())
                yield entry._replace(envelope=self._moved(again))

    def _moved(self, envelope: Envelope) -> Envelope:
        if self._random is None or envelope.ordering_key is not None:
            return envelope
        place = envelope.sequence + self._random.randint(-SPREAD, SPREAD)
        return dataclasses.replace(envelope, sequence=place)


_is_altered: ContextVar[bool] = ContextVar("django_cqrs.testing.faults", default=False)


def _savepoint(message: Message, endpoint: Endpoint) -> Any:
    """Return a block that undoes a repeated handling if it fails."""
    scope = scope_of(message)
    alias = scope.connection.alias if scope else endpoint.alias or DEFAULT_DB_ALIAS
    return atomic(alias) if connections[alias].in_atomic_block else nullcontext()


class HandlerTarget:
    """One handler of a registry: its function, or its name."""

    def __init__(self, registry: Registry, target: Any, verb: str) -> None:
        """
        Find the handler.

        Raises:
            InvalidOption: the registry does not have it.

        """
        self._names = _names_of(registry, target)
        if not self._names:
            said = target if isinstance(target, str) else place_of(target)
            msg = (
                f"{verb}() takes a handler of the registry, its function or its "
                f"name: {said!r} is not one. Replace any other function with "
                "unittest.mock.patch()."
            )
            raise InvalidOption(msg)

    def is_met_by(self, endpoint: Endpoint) -> bool:
        """Return whether an endpoint is this handler."""
        return not self._names.isdisjoint(endpoint.names)


class MessageTarget:
    """The messages of one class, or those for one handler."""

    def __init__(self, registry: Registry, target: Any) -> None:
        """
        Find the messages.

        Raises:
            InvalidOption: it is neither a class nor a handler of the registry.

        """
        self._registry = registry
        self._cls = target if isinstance(target, type) else None
        self._names = frozenset[str]()
        if self._cls is None:
            self._names = _names_of(registry, target)
            if not self._names:
                msg = (
                    "flow.twice() takes a class of messages, or a handler of the "
                    f"registry, not {target!r}."
                )
                raise InvalidOption(msg)

    def is_met_by(self, message: Message, endpoint: Endpoint) -> bool:
        """Return whether a message at an endpoint is one of them."""
        if self._cls is not None:
            return isinstance(message.payload, self._cls)
        return not self._names.isdisjoint(endpoint.names)

    def is_met_in(self, envelope: Envelope) -> bool:
        """Return whether a message in transit is one of them."""
        if self._cls is None:
            return envelope.endpoint in self._names
        return any(
            name.name == envelope.name and issubclass(cls, self._cls)
            for cls, name in self._registry.routes.types.named_classes()
        )


def _names_of(registry: Registry, target: Any) -> frozenset[str]:
    """Return the names of the endpoints of a handler; none if it is not one."""
    wanted = _bare(target)
    return frozenset(
        endpoint.name
        for endpoint in registry.routes.endpoints
        if target in endpoint.names or _bare(endpoint.function) is wanted
    )


def _bare(function: Any) -> Any:
    """Return the function of a method, or of a decorated function."""
    return inspect.unwrap(getattr(function, "__func__", function))
