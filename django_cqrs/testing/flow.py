"""Follow messages through a test: what was sent, what waits, and what time brings."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from django.db import DEFAULT_DB_ALIAS

from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as project_registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.in_memory import InMemoryChannel
from django_cqrs.declaration.declarations import Kind
from django_cqrs.messages import Message


class Waiting(Protocol):
    """A channel whose messages wait where a test can reach them."""

    def run(self, limit: int | None, *, registry: Registry | None, using: str) -> int:
        """Handle what is due."""
        ...

    def advance(self, span: timedelta, *, using: str) -> None:
        """Let time pass for what waits."""
        ...


class Flow:
    """
    Records what passes the buses, and runs channels inside the test's transaction.

    ::

        with Flow() as flow:
            command_bus.dispatch(PlaceOrder(...))
            assert flow.published == [OrderPlaced(1)]
            flow.run("mail")            # handlers in the background, here and now
            flow.advance(hours=24)      # what was delayed falls due
            flow.run("mail")

    It works in Django's ``TestCase`` and under pytest-django's ``db``: nothing needs a
    commit. The pytest fixture ``flow`` gives one for the length of a test.
    """

    def __init__(
        self, *, registry: Registry | None = None, using: str = DEFAULT_DB_ALIAS
    ) -> None:
        """
        Follow the messages of one registry.

        Args:
            registry: by default that of the project.
            using: the alias of the database that channels store messages in.

        """
        self.registry: Registry = registry if registry is not None else project_registry
        self.using = using
        self.messages: list[tuple[Kind, Message]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin to record."""
        self._stack.enter_context(
            self.registry.tapped(lambda kind, m: self.messages.append((kind, m)))
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the recording."""
        self._stack.close()

    @property
    def sent(self) -> list[Any]:
        """The commands that were dispatched, in order, nested ones included."""
        return self._payloads(Kind.COMMAND)

    @property
    def asked(self) -> list[Any]:
        """The queries that were asked, in order."""
        return self._payloads(Kind.QUERY)

    @property
    def published(self) -> list[Any]:
        """The events that were published, in order, also those nobody listens to."""
        return self._payloads(Kind.EVENT)

    def _payloads(self, kind: Kind) -> list[Any]:
        return [message.payload for each, message in self.messages if each is kind]

    def run(self, *aliases: str, limit: int | None = None) -> int:
        """
        Handle what is due in channels, and what that sends to them, until nothing is.

        Args:
            aliases: of the channels.
            limit: stop after so many messages of each.

        Returns:
            How many messages were handled.

        Raises:
            Exception: whatever a handler raises, unchanged. Its message waits for
                another attempt, as in production.
            TypeError: a channel keeps nothing that could be run.

        """
        total = 0
        while True:
            handled = 0
            for alias in aliases:
                channel = channels[alias]
                if isinstance(channel, InMemoryChannel):
                    handled += channel.run(limit)
                else:
                    handled += _waiting(channel).run(
                        limit, registry=self.registry, using=self.using
                    )
            total += handled
            if not handled or limit is not None:
                return total

    def advance(self, **span: float) -> None:
        """
        Let time pass for what waits in any channel: it falls due, or expires.

        Args:
            span: as for a timedelta, ``hours=24``.

        The clock itself is not moved: what reads it is a matter for a library such
        as time-machine.

        """
        passed = timedelta(**span)
        for alias in channels:
            channel = channels[alias]
            if isinstance(channel, InMemoryChannel):
                channel.advance(passed)
            elif hasattr(channel, "advance"):
                _waiting(channel).advance(passed, using=self.using)

    def __repr__(self) -> str:
        """Return the counts."""
        return (
            f"<Flow sent={len(self.sent)} asked={len(self.asked)} "
            f"published={len(self.published)}>"
        )


def _waiting(channel: Any) -> Waiting:
    if not hasattr(channel, "run"):
        msg = f"{channel} does not keep messages, so a test cannot run them."
        raise TypeError(msg)
    return channel  # type: ignore[no-any-return]
