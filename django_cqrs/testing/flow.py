"""Follow messages through a test: sent ones, waiting ones, and the effects of time."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from django.db import DEFAULT_DB_ALIAS
from django.test.utils import TestContextDecorator

from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as project_registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.immediate import ImmediateChannel
from django_cqrs.channels.in_memory import InMemoryChannel
from django_cqrs.declaration.declarations import Kind
from django_cqrs.messages import Message


class eager_channels(TestContextDecorator):  # noqa: N801 - as Django names its own
    """
    Makes every channel of the project an ``ImmediateChannel``, for a test.

    Use it as a decorator of a ``TestCase``, of a test, or in a ``with`` block::

        @eager_channels()
        class CheckoutTests(TestCase):
            def test_a_receipt_is_mailed(self):
                self.client.post("/checkout/")
                self.assertEqual(len(mail.outbox), 1)

    On a class it includes ``setUp()``, and not ``setUpTestData()``. It takes no
    arguments.
    """

    def __init__(self) -> None:
        """Take no arguments."""
        super().__init__()
        self._stack = ExitStack()

    def enable(self) -> None:
        """Replace the channels."""
        self._stack.enter_context(channels.replaced(ImmediateChannel))

    def disable(self) -> None:
        """Restore the channels, with the messages that wait in them."""
        self._stack.close()


class Waiting(Protocol):
    """A channel with waiting messages that a test can handle."""

    def run(self, limit: int | None, *, registry: Registry | None, using: str) -> int:
        """Handle due messages."""
        ...

    def advance(self, span: timedelta, *, using: str) -> None:
        """Let time pass for waiting messages."""
        ...


class Flow:
    """
    Records the messages on the buses, and runs channels in the test's transaction.

    ::

        with Flow() as flow:
            command_bus.dispatch(PlaceOrder(...))
            assert flow.published == [OrderPlaced(1)]
            flow.run("mail")            # call background handlers now
            flow.advance(hours=24)      # delayed messages fall due
            flow.run("mail")

    It works in Django's ``TestCase`` and with pytest-django's ``db``, and needs no
    commit. The pytest fixture ``flow`` provides one for a test.
    """

    def __init__(
        self,
        *,
        registry: Registry | None = None,
        using: str = DEFAULT_DB_ALIAS,
        eager: bool = False,
    ) -> None:
        """
        Follow the messages of one registry.

        Args:
            registry: the registry; by default the project's.
            using: the alias of the database that channels store messages in.
            eager: whether all channels handle their messages inside the sender's
                transaction, as with :class:`eager_channels`.

        """
        self.registry: Registry = registry if registry is not None else project_registry
        self.using = using
        self.eager = eager
        self.messages: list[tuple[Kind, Message]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start recording."""
        if self.eager:
            self._stack.enter_context(channels.replaced(ImmediateChannel))
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
        """Stop recording."""
        self._stack.close()

    @property
    def sent(self) -> list[Any]:
        """The dispatched commands, in order, including nested ones."""
        return self._payloads(Kind.COMMAND)

    @property
    def asked(self) -> list[Any]:
        """The queries, in order."""
        return self._payloads(Kind.QUERY)

    @property
    def published(self) -> list[Any]:
        """The published events, in order, including those without a handler."""
        return self._payloads(Kind.EVENT)

    def _payloads(self, kind: Kind) -> list[Any]:
        return [message.payload for each, message in self.messages if each is kind]

    def run(self, *aliases: str, limit: int | None = None) -> int:
        """
        Handle the due messages of channels, and all that these send there.

        Args:
            aliases: the aliases of the channels.
            limit: stop after this number of messages of each.

        Returns:
            The number of handled messages.

        Raises:
            Exception: the exception of a handler, unchanged. Its message waits for
                another attempt, as in production.
            TypeError: a channel cannot be run here, since it keeps no messages.

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
        Let time pass for waiting messages of all channels: they fall due, or expire.

        Args:
            span: the arguments of a timedelta, such as ``hours=24``.

        The clock itself does not change: use a library such as time-machine for code
        that reads it.

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
