"""Messages that wait in a channel, whatever kind of channel it is."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Final, Protocol, runtime_checkable

from django.db import connections

from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Channel, Envelope
from django_cqrs.channels.in_memory import InMemoryChannel
from django_cqrs.channels.on_commit import OnCommitChannel, take_registered
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.jobs import Job, jobs_of
from django_cqrs.testing.faults import SimulatedCrash


@runtime_checkable
class Waiting(Protocol):
    """A channel with waiting messages that a test can handle."""

    def run(self, limit: int | None, *, registry: Registry | None, using: str) -> int:
        """Handle due messages."""
        ...

    def advance(self, span: timedelta, *, using: str) -> None:
        """Let time pass for waiting messages."""
        ...

    def waiting(self, *, using: str) -> list[Envelope]:
        """Return the waiting messages."""
        ...


MOST_CRASHES: Final = 1000
"""The number of simulated crashes in one run, after which it ends with the last one."""


def run_waiting(
    channel: Channel, limit: int | None, *, registry: Registry, using: str
) -> int:
    """
    Handle the due messages of a channel, and all that these send there.

    A simulated crash is that of a worker: another one goes on.

    Args:
        channel: the channel.
        limit: stop after this number of messages.
        registry: the registry with the handlers.
        using: the alias of the database that it stores messages in.

    Returns:
        The number of handled messages; those handled before a crash are not counted.

    Raises:
        TypeError: the channel keeps no messages.
        Exception: the exception of a handler, unchanged.

    """
    for crashes in range(MOST_CRASHES + 1):
        try:
            if isinstance(channel, InMemoryChannel):
                return _run_in_memory(channel, limit, registry, using)
            return _keeping(channel).run(limit, registry=registry, using=using)
        except SimulatedCrash:
            if crashes == MOST_CRASHES:
                raise
            expire_leases: Any = getattr(channel, "expire_leases", None)
            if expire_leases is not None:
                expire_leases(using=using)
    raise AssertionError  # never reached


def _run_in_memory(
    channel: InMemoryChannel, limit: int | None, registry: Registry, using: str
) -> int:
    """Handle messages, and do the jobs of other apps, as a worker does."""
    jobs = jobs_of(registry, channel.alias, using)
    handled = 0
    try:
        while True:
            handled += channel.run(None if limit is None else limit - handled)
            if limit is not None and handled >= limit:
                return handled
            if not sum(map(_done_by, jobs)):
                return handled
    finally:
        for job in jobs:
            job.close()


def _done_by(job: Job) -> int:
    """
    Return the number of things that a job has done.

    Raises:
        Exception: the one with which it has failed.

    """
    done = job.run(time.monotonic() + _SLICE)
    if job.failure is not None:
        raise job.failure
    return done


_SLICE: Final = 0.25
"""The time of a job before messages have their turn, in seconds."""


def run_registered(channel: OnCommitChannel) -> int:
    """
    Handle the messages that wait for the commit of a test, which never comes.

    Returns:
        Their number.

    Raises:
        Exception: the exception of a handler, unchanged. Its message is lost.

    """
    handled = 0
    for connection in connections.all(initialized_only=True):
        while (delivery := take_registered(channel, connection)) is not None:
            handled += 1
            delivery.deliver(delivery.envelope)
    return handled


def waiting_in(channel: Channel, *, using: str) -> list[Envelope]:
    """Return the messages that wait in a channel, none if it keeps none."""
    if isinstance(channel, InMemoryChannel):
        return channel.waiting()
    return channel.waiting(using=using) if isinstance(channel, Waiting) else []


def advance_in(channel: Channel, span: timedelta, *, using: str) -> None:
    """Let time pass for the messages that wait in a channel."""
    if isinstance(channel, InMemoryChannel):
        channel.advance(span)
        return
    advance: Any = getattr(channel, "advance", None)
    if advance is not None:
        advance(span, using=using)


def usable_channels() -> dict[str, Channel]:
    """Return the channels of the settings, without those that cannot be created."""
    found: dict[str, Channel] = {}
    for alias in channels:
        try:
            found[alias] = channels[alias]
        except InvalidChannel:  # a check reports it
            continue
    return found


def can_run(channel: Channel) -> bool:
    """Return whether a channel keeps messages that a test can handle."""
    return isinstance(channel, InMemoryChannel) or hasattr(channel, "run")


def _keeping(channel: Any) -> Waiting:
    if not hasattr(channel, "run"):
        msg = f"{channel} does not keep messages, so a test cannot run them."
        raise TypeError(msg)
    return channel  # type: ignore[no-any-return]
