"""Follow messages through a test: sent ones, waiting ones, and the effects of time."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS
from django.test.utils import TestContextDecorator

from django_cqrs import clock
from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as project_registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Channel, Seconds, as_timedelta
from django_cqrs.channels.immediate import ImmediateChannel
from django_cqrs.channels.on_commit import OnCommitChannel
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import Message
from django_cqrs.pipeline.observation import add_observer, remove_observer
from django_cqrs.retries import DEFAULT_RETRY
from django_cqrs.testing import streams
from django_cqrs.testing.faults import FaultPlan
from django_cqrs.testing.tracking import TrackedMessages, tracked
from django_cqrs.testing.trees import Tree, TreeRecorder
from django_cqrs.testing.waiting import (
    advance_in,
    can_run,
    run_registered,
    run_waiting,
    usable_channels,
    waiting_in,
)

if TYPE_CHECKING:
    from django_cqrs.testing.flow_schedules import FlowSchedules


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


class Flow:
    """
    Records the messages on the buses, and runs channels in the test's transaction.

    ::

        with Flow() as flow:
            command_bus.dispatch(PlaceOrder(...))
            assert flow.published == [OrderPlaced(1)]
            flow.run("mail")            # call background handlers now
            flow.advance(hours=24)      # delayed messages fall due
            flow.settle()               # all channels, until nothing is left to do

    It works in Django's ``TestCase`` and with pytest-django's ``db``, and needs no
    commit. The pytest fixture ``flow`` provides one for a test.
    """

    horizon: timedelta = timedelta(days=1)
    """The time that :meth:`settle` lets pass at most, for delayed messages."""
    limit: int = 1000
    """The number of messages after which :meth:`settle` calls a flow endless."""

    def __init__(
        self,
        *,
        registry: Registry | None = None,
        using: str = DEFAULT_DB_ALIAS,
        eager: bool = False,
        leftovers: bool = True,
    ) -> None:
        """
        Follow the messages of one registry.

        Args:
            registry: the registry; by default the project's.
            using: the alias of the database that channels store messages in.
            eager: whether all channels handle their messages inside the sender's
                transaction, as with :class:`eager_channels`.
            leftovers: whether messages may still wait at the end of the block. False
                fails the test then. You can set the attribute inside the block, too.

        """
        self.registry: Registry = registry if registry is not None else project_registry
        self.using = using
        self.eager = eager
        self.leftovers = leftovers
        self.messages: list[tuple[Kind, Message]] = []
        self._stack = ExitStack()
        self._recorder = TreeRecorder(self.registry)
        self._faults = FaultPlan(self.registry)
        self._lost: list[Exception] = []
        self._passed = timedelta()
        self._schedules: FlowSchedules | None = None

    def __enter__(self) -> Self:
        """Start recording."""
        if self.eager:
            self._stack.enter_context(channels.replaced(ImmediateChannel))
        self._stack.enter_context(
            self.registry.tapped(lambda kind, m: self.messages.append((kind, m)))
        )
        self._stack.enter_context(self.registry.tapped(self._recorder.tap))
        add_observer(self._recorder.observe)
        self._stack.callback(remove_observer, self._recorder.observe)
        self._stack.callback(self._faults.close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        Stop recording, and take back all faults.

        Raises:
            AssertionError: messages wait, and ``leftovers`` is False.

        """
        try:
            if error is None and not self.leftovers:
                self.assert_empty()
        finally:
            self._stack.close()

    # What happened --------------------------------------------------------------------

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

    @property
    def tree(self) -> Tree:
        """Everything that happened so far, by its causes; ``str()`` shows it."""
        return self._recorder.tree

    def _payloads(self, kind: Kind) -> list[Any]:
        return [message.payload for each, message in self.messages if each is kind]

    # Time and channels ----------------------------------------------------------------

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
                handled += run_waiting(
                    channels[alias], limit, registry=self.registry, using=self.using
                )
            total += handled
            if not handled or limit is not None:
                return total

    def advance(self, **span: float) -> None:
        """
        Let time pass for waiting messages of all channels: they fall due, or expire.

        Nothing is handled meanwhile, and no schedule fires: :meth:`settle` makes up for
        what they have missed, as workers do after an outage.

        Args:
            span: the arguments of a timedelta, such as ``hours=24``.

        The clock itself does not change: use a library such as time-machine for code
        that reads it.

        """
        self._begin_schedules()
        self._advance(timedelta(**span))

    def _advance(self, span: timedelta) -> None:
        self._passed += span
        for alias in channels:
            advance_in(channels[alias], span, using=self.using)

    def settle(
        self,
        *,
        horizon: Seconds | None = None,
        failures: Literal["raise", "keep"] = "raise",
        schedules: Literal["due", "upcoming"] = "due",
    ) -> Tree:
        """
        Handle the messages of every channel, and let time pass, until it is quiet.

        Failed messages are tried again, as in production. Schedules that are due send
        their commands; they are counted from the first call of this method, or of
        :meth:`advance`.

        Args:
            horizon: the time that may pass, in seconds or as a timedelta; by default
                :attr:`horizon`. What falls due later waits.
            failures: ``"raise"`` raises the exception of the first message that was
                given up, after all others were handled; ``"keep"`` leaves it in the
                tree.
            schedules: ``"due"`` lets no time pass for them: they fire if the time that
                passes for messages, or by :meth:`advance`, has made them due.
                ``"upcoming"`` lets the whole horizon pass, and each fires at its times.

        Returns:
            Everything that happened since the beginning of the flow.

        Raises:
            AssertionError: the flow is endless: its text shows the loop.
            Exception: the exception of a handler, unchanged.

        """
        if failures not in ("raise", "keep"):
            msg = f'settle(failures=...) is "raise" or "keep", not {failures!r}.'
            raise InvalidOption(msg)
        if schedules not in ("due", "upcoming"):
            msg = f'settle(schedules=...) is "due" or "upcoming", not {schedules!r}.'
            raise InvalidOption(msg)
        self._begin_schedules()
        span = self.horizon if horizon is None else as_timedelta(horizon, "horizon")
        self._settle(span, self._schedules, whole=schedules == "upcoming")
        lost = self._given_up()
        if lost and failures == "raise":
            error = lost[0]
            error.add_note(f"This is what happened:\n{self.tree}")
            raise error
        return self.tree

    def _settle(
        self,
        left: timedelta,
        schedules: FlowSchedules | None = None,
        *,
        whole: bool = False,
    ) -> list[Exception]:
        """
        Handle what is due now, and what falls due in a span of time.

        Args:
            left: the span.
            schedules: those that fire; None: nothing but messages falls due.
            whole: whether it passes to its end, even if nothing is left to do. Each
                schedule then fires at its times.

        Returns:
            The exceptions of the handlers, in order.

        """
        failures: list[Exception] = []
        start = self._recorder.consumed
        while True:
            if schedules is not None:
                schedules.fire_due(self._now())
            self._run_due(failures, start)
            step = self._time_to_next(schedules if whole else None)
            if step is None or step > left:
                break
            self._advance(step)
            left -= step
        if whole:
            self._advance(left)
        self._lost += failures
        return failures

    def _run_due(self, failures: list[Exception], start: int) -> None:
        """Handle what is due, in every channel, until nothing is."""
        while True:
            before = self._recorder.consumed, len(failures)
            for channel in usable_channels().values():
                self._run_channel(channel, failures, start)
            if (self._recorder.consumed, len(failures)) == before:
                return

    def _run_channel(
        self, channel: Channel, failures: list[Exception], start: int
    ) -> None:
        """Handle what is due in one channel, whatever fails."""
        if not (can_run(channel) or isinstance(channel, OnCommitChannel)):
            return
        failed = 0
        while True:
            left = self.limit - (self._recorder.consumed - start)
            if left < 0:
                raise AssertionError(self._endless())
            try:
                if isinstance(channel, OnCommitChannel):
                    run_registered(channel)
                else:
                    run_waiting(
                        channel, left + 1, registry=self.registry, using=self.using
                    )
            except Exception as error:
                failures.append(error)
                failed += 1
                waiting = len(waiting_in(channel, using=self.using))
                if failed > waiting + DEFAULT_RETRY.attempts:
                    raise  # it is handled again at once, and fails each time
            else:
                if self._recorder.consumed - start <= self.limit:
                    return

    def _begin_schedules(self) -> None:
        """Count the schedules of the registry from now on, unless they are counted."""
        if self._schedules is None and apps.is_installed("django_cqrs.schedules"):
            from django_cqrs.testing.flow_schedules import FlowSchedules

            self._schedules = FlowSchedules(
                self.registry, self.using, self._lost.append
            )

    def _now(self) -> datetime:
        """Return the time of the test."""
        return clock.now() + self._passed

    def _time_to_next(self, schedules: FlowSchedules | None) -> timedelta | None:
        """Return the time until a message or a schedule falls due, None without one."""
        now = clock.now()
        due = [
            envelope.available_at
            for channel in usable_channels().values()
            for envelope in waiting_in(channel, using=self.using)
            if envelope.available_at is not None and not envelope.is_due(now)
        ]
        upcoming = schedules.next_at() if schedules is not None else None
        if upcoming is not None:
            due.append(upcoming - self._passed)
        # The clock of the database may be a little behind.
        return min(due) - now + _TICK if due else None

    def _given_up(self) -> list[Exception]:
        """Note which messages were given up; return their exceptions."""
        waiting = {
            (envelope.message_id, envelope.endpoint)
            for channel in usable_channels().values()
            for envelope in waiting_in(channel, using=self.using)
        }
        kept = self._recorder.note_given_up(waiting)
        return [each for each in self._lost if id(each) not in kept]

    def _endless(self) -> str:
        loop = " -> ".join(self._recorder.loop())
        return (
            f"The flow is not quiet after {self.limit:,} messages, which is its limit. "
            f"It ends with: {loop}. If it is not endless, raise flow.limit, or let "
            f"less time pass with flow.horizon. This is what happened:\n{self.tree}"
        )

    def assert_empty(self) -> None:
        """
        Fail if a message waits in any channel.

        Raises:
            AssertionError: one does; its text names them.

        """
        lines = [
            f"  {envelope.name or 'a value'} for {envelope.endpoint} in {alias!r}"
            for alias, channel in usable_channels().items()
            for envelope in waiting_in(channel, using=self.using)
        ]
        if lines:
            listed = "\n".join(lines)
            msg = (
                "Messages wait at the end of the test, and nothing has handled them:\n"
                f"{listed}\nThis is what happened:\n{self.tree}"
            )
            raise AssertionError(msg)

    # Faults ---------------------------------------------------------------------------

    def fails_once(
        self, handler: Any, error: type[BaseException] | BaseException
    ) -> None:
        """
        Let a handler fail at its next call, before it does anything.

        Args:
            handler: its function or method, or the name of its endpoint.
            error: the exception, or its class.

        Raises:
            InvalidOption: the registry does not have the handler, or it is not an
                exception.

        """
        self._faults.fail(handler, error)

    def crashes_after(self, handler: Any) -> None:
        """
        End the process after the next call of a handler, before its commit.

        Its transaction is rolled back. :meth:`run` and :meth:`settle` go on as another
        worker would; a sender that called the handler directly gets
        :exc:`~django_cqrs.testing.faults.SimulatedCrash`.

        Args:
            handler: its function or method, or the name of its endpoint.

        Raises:
            InvalidOption: the registry does not have the handler.

        """
        self._faults.crash(handler)

    def twice(self, messages: Any) -> None:
        """
        Let every message of a class be handled twice, with the same id.

        In a channel it waits twice. A handler that is called directly is called again
        after its return; a failure of that call does not reach the sender.

        Args:
            messages: their class; or a handler, for its messages alone.

        Raises:
            InvalidOption: it is neither.

        """
        self._faults.repeat(messages)

    def shuffled(self, seed: int) -> None:
        """
        Let channels handle messages in a random order, that of the seed.

        The messages of one ordering key, and higher priorities, keep their order.

        Args:
            seed: the same seed gives the same order.

        """
        self._faults.shuffle(seed)

    # Streams and projections ----------------------------------------------------------

    def given(self, stream: str, *events: Any) -> None:
        """
        Append events that happened before: nobody is told, and they are not recorded.

        Args:
            stream: the name of their stream.
            *events: the events, in order.

        Raises:
            CQRSError: as ``event_store.append()``.

        """
        streams.store_of(self.registry, self.using).append(
            list(events), stream=stream, publish=False
        )

    def events_of(self, stream: str | type, identifier: Any = None) -> list[Any]:
        """
        Return the events of a stream, in order; an empty list if there is none.

        Args:
            stream: the name of the stream, or the class of its aggregate.
            identifier: of the aggregate.

        """
        if isinstance(stream, type):
            stream = streams.stream_of(stream, identifier)
        store = streams.store_of(self.registry, self.using)
        if not store.exists(stream):
            return []
        return [each.event for each in store.read(stream)]

    def project(self, projection: Any) -> int:
        """
        Bring a projection up to the last event, in this transaction.

        Args:
            projection: its class, its function or its name; one that is inline is
                given what it has missed.

        Returns:
            The number of events that it has handled.

        """
        own = streams.projections_of(self.registry, self.using)
        name = streams.name_of(projection)
        if own.handlers(name).options.is_inline:
            return own.backfill(name)
        return own.run(name)

    def rebuild(self, projection: Any) -> int:
        """
        Rebuild a projection in place; return the number of events handled.

        Args:
            projection: its class, its function or its name.

        """
        own = streams.projections_of(self.registry, self.using)
        return own.rebuild(streams.name_of(projection))

    def assert_replays(self, projection: Any) -> None:
        """
        Fail unless a projection makes the same rows from its events again.

        It is rebuilt, and the rows are as before afterwards. Serial numbers, and fields
        with ``auto_now`` or ``auto_now_add``, are not compared.

        Args:
            projection: its class, its function or its name.

        Raises:
            AssertionError: rows differ; the text shows them.

        """
        streams.ensure_replays(projection, self.registry, self.using)

    # Other processes ------------------------------------------------------------------

    def tracked(
        self, *, timeout: Seconds = 30
    ) -> AbstractContextManager[TrackedMessages]:
        """
        Wait, at the end of a ``with`` block, until real workers have handled it all.

        Delayed messages are not waited for, those that wait for an attempt are. The
        journal tells the work of the workers, if the settings keep one.

        Args:
            timeout: fail after this time, in seconds or as a timedelta.

        Returns:
            A context manager; its value has the ``tree`` after the block.

        Raises:
            InvalidOption: a transaction is open, so that no worker sees the messages.
            AssertionError: messages still wait after that time.

        """
        return tracked(
            self._recorder, using=self.using, timeout=as_timedelta(timeout, "timeout")
        )

    def __repr__(self) -> str:
        """Return the counts."""
        return (
            f"<Flow sent={len(self.sent)} asked={len(self.asked)} "
            f"published={len(self.published)}>"
        )


_TICK = timedelta(milliseconds=1)
