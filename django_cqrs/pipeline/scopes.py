"""
Bus scopes: messages sent by a command wait until the command has succeeded.

A scope buffers while its connection is as deep in transactions as at the scope's entry.
Messages sent deeper, inside an ``atomic()`` of the user's own, are written at once, so
that they share the fate of the writes around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.callbacks import OwnCallback
from django_cqrs.messages import Message, Origin, scope_of

Stack = tuple[Any, ...]


class Sink(Protocol):
    """A destination of messages: the sending side of a channel."""

    def write(self, connection: BaseDatabaseWrapper, entries: Sequence[Any]) -> None:
        """Write entries, in order, in the open transaction, if any."""
        ...

    def write_last(
        self, connection: BaseDatabaseWrapper, entries: Sequence[Any]
    ) -> None:
        """Write entries if only the commit follows in the open transaction."""
        ...


_CHECK: Final[Any] = object()
"""The place of a sink in a buffer: its entry is a function to be called."""


def stack_of(connection: BaseDatabaseWrapper) -> Stack:
    """Return the transaction depth of a connection, comparable by equality."""
    return (connection.in_atomic_block, *connection.savepoint_ids)


class BusScope:
    """The messages that one command has sent and its transaction has yet to write."""

    __slots__ = ("_cause", "_stack", "buffer", "connection", "is_open", "recording")

    recording: Recording
    """Records the messages sent in here; usually there is none."""

    def __init__(
        self, connection: BaseDatabaseWrapper, cause: Message | Origin
    ) -> None:
        """
        Open a scope, just inside the command's transaction.

        Args:
            connection: the connection of that transaction.
            cause: the message whose handling sent this command.

        """
        self.connection: BaseDatabaseWrapper = connection
        self._cause = cause
        self._stack = stack_of(connection)
        self.buffer: list[tuple[Sink, Any]] = []
        self.is_open: bool = True

    @property
    def parent(self) -> BusScope | None:
        """The scope of the command that sent this one; seldom needed."""
        scope: BusScope | None = scope_of(self._cause)
        return scope

    def check_at_end(self, check: Callable[[], object]) -> None:
        """Call a function at the end of the command, which fails if that raises."""
        self.buffer.insert(0, (_CHECK, check))

    def _accepts(self) -> bool:
        return self.is_open and stack_of(self.connection) == self._stack

    def write_or_keep(self, *, is_last: bool = False) -> None:
        """
        Write the buffer inside its transaction, or keep it.

        It is kept for the parent if the parent's own transaction is the next one out:
        then everything is written in one statement at the very end.

        Args:
            is_last: whether only the end of its transaction follows.

        """
        while self.buffer and self.buffer[0][0] is _CHECK:
            self.buffer.pop(0)[1]()
        if not self._is_just_inside_parent():
            self._write(is_last=is_last)

    def _is_just_inside_parent(self) -> bool:
        parent = self.parent_on(self.connection)
        # The command's own atomic() is the last of the stack.
        return (
            parent is not None and parent.is_open and parent._stack == self._stack[:-1]
        )

    def hand_over(self) -> None:
        """Pass kept messages to the parent, once the transaction has succeeded."""
        if self.buffer:
            parent = self.parent_on(self.connection)
            assert parent is not None  # noqa: S101 - write_or_keep() has seen to it
            parent.buffer.extend(self.buffer)
            _record(self.parent, parent, self.connection, self.buffer)
            self.buffer = []

    def drop(self) -> None:
        """End the scope of a failed command: none of its messages are sent."""
        self.is_open = False
        self.buffer = []
        self._stack = ()

    @property
    def is_dropped(self) -> bool:
        """Whether its command failed, and all of its writes with it."""
        return not self._stack

    def parent_on(self, connection: BaseDatabaseWrapper) -> BusScope | None:
        """Return the nearest enclosing scope of a connection."""
        scope = self.parent
        while scope is not None and scope.connection is not connection:
            scope = scope.parent
        return scope

    def _write(self, *, is_last: bool) -> None:
        buffer, self.buffer = self.buffer, []
        _write(self.connection, buffer, is_last=is_last)
        _record(self.parent, None, self.connection, buffer)


def send(
    scope: BusScope | None, connection: BaseDatabaseWrapper, sink: Sink, entry: Any
) -> None:
    """
    Send an entry through a scope: buffered in it, or written at once.

    Args:
        scope: the innermost scope, or None outside any.
        connection: the connection of the data that the entry concerns.
        sink: the destination.
        entry: an entry in the sink's form.

    """
    send_all(scope, connection, [(sink, entry)])


def send_all(
    scope: BusScope | None,
    connection: BaseDatabaseWrapper,
    entries: Sequence[tuple[Sink, Any]],
) -> None:
    """Send entries, each with its sink, like :func:`send`."""
    taker = scope
    if scope is not None and scope.connection is not connection:
        taker = scope.parent_on(connection)
    if taker is not None and taker._accepts():
        taker.buffer.extend(entries)
    else:
        taker = None
        _write(connection, entries)
    if taker is not scope:
        _record(scope, taker, connection, entries)


def _write(
    connection: BaseDatabaseWrapper,
    entries: Sequence[tuple[Sink, Any]],
    *,
    is_last: bool = False,
) -> None:
    """Write the entries of each sink together."""
    if is_last and len(entries) == 1:  # the usual case
        [(sink, entry)] = entries
        sink.write_last(connection, [entry])
        return
    by_sink: dict[int, tuple[Sink, list[Any]]] = {}
    for sink, entry in entries:
        by_sink.setdefault(id(sink), (sink, []))[1].append(entry)
    for number, (sink, own) in enumerate(by_sink.values(), 1):
        if is_last and number == len(by_sink):
            sink.write_last(connection, own)
        else:
            sink.write(connection, own)


# -------------------------------------------------------------------------- recordings


class Sent(NamedTuple):
    """One entry that was sent."""

    alias: str
    """The alias of the database that it concerns."""
    sink: Any
    entry: Any


class Recording:
    """
    Records the messages sent by a scope's command, and by the commands inside it.

    Messages in a block of the user's own count, unless the block was rolled back: they
    are recorded by a callback, which Django forgets with the savepoint.
    """

    def __init__(self, scope: BusScope) -> None:
        """Start with the scope's command."""
        self._scope = scope
        self._committed: list[Sent] = []
        scope.recording = self

    def sent(self) -> list[Sent]:
        """Return the messages sent so far that will be committed, or have been."""
        sent = list(self._committed)
        for connection in connections.all(initialized_only=True):
            for _, callback, *_ in connection.run_on_commit:
                if isinstance(callback, _Account) and self in callback.recordings:
                    sent += callback.sent
        alias = self._scope.connection.alias
        return [*sent, *(Sent(alias, *each) for each in self._scope.buffer)]


class _Account(OwnCallback):
    """A record of messages that bypassed the scopes: an ``on_commit`` callback."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        connection: BaseDatabaseWrapper,
        sent: Sequence[Sent],
    ) -> None:
        self.recordings = recordings
        self.sent = sent
        self._connection = connection

    def __call__(self) -> None:
        # captureOnCommitCallbacks() calls callbacks and leaves them registered.
        if not self._connection.in_atomic_block:
            for each in self.recordings:
                each._committed += self.sent


def _record(
    scope: BusScope | None,
    taker: BusScope | None,
    connection: BaseDatabaseWrapper,
    entries: Sequence[tuple[Sink, Any]],
) -> None:
    """
    Add messages that bypassed the buffers to a scope's and its parents' recordings.

    Args:
        scope: the innermost scope that the entries bypassed.
        taker: the scope that buffered them: it and those around it are not informed.
            None if they went to the database.
        connection: the connection of the entries.
        entries: the entries.

    """
    recordings = []
    while scope is not None and scope is not taker:
        recording = getattr(scope, "recording", None)
        if recording is not None:
            recordings.append(recording)
        scope = scope.parent
    if recordings:
        sent = [Sent(connection.alias, *each) for each in entries]
        connection.on_commit(_Account(recordings, connection, sent))
