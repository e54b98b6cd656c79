"""The message graph: senders, messages and handlers."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final, TypeVar

from django_cqrs.annotations import path_of
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.sending import Way


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MessageNode:
    """A message: the objects of a class, or a routing key."""

    name: str
    """The name of the class for people, or the key."""
    kind: Kind | None
    """Its kind; None if nobody handles it and its sender does not tell."""
    cls: type | None
    """The class; None for a key."""
    keys: tuple[str, ...]
    """The routing keys that lead to the same handlers."""
    labels: frozenset[str]
    """The names that it has in the journal."""
    handlers: tuple[str, ...]
    """The names of the endpoints that handle it, in the order of their calls."""
    is_applied: bool = False
    """Whether the object that records it applies it to itself."""

    @property
    def path(self) -> str:
        """The dotted path of the class; empty for a key."""
        return "" if self.cls is None else path_of(self.cls)

    @property
    def id(self) -> str:
        """The path or the key, which no other message of its kind has."""
        return self.path or self.name

    @property
    def names(self) -> set[str]:
        """All names that it has."""
        return {self.name, self.path, *self.keys, *self.labels} - {""}

    def matches(self, pattern: str) -> bool:
        """Return whether one of its names matches a pattern."""
        return any(fnmatchcase(each, pattern) for each in self.names)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerNode:
    """An endpoint."""

    name: str
    """The name of the endpoint."""
    place: str
    """The dotted path of the function."""
    file: str
    line: int
    kind: Kind
    channel: str | None
    """The alias of the channel that its messages wait in, None if it is called."""
    aliases: tuple[str, ...]
    """The former names of the endpoint."""
    is_readable: bool
    """Whether its text could be read."""
    function: Callable[..., Any] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """A handler, another function, a view of messages or a business interface."""

    name: str
    """The name of the endpoint, the dotted path, or the path in the URLconf."""
    is_handler: bool
    file: str = ""
    line: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """The messages that the journal has seen: their number and their times."""

    count: int
    """The number of messages."""
    first: datetime
    last: datetime
    is_shared: bool = False
    """Whether other senders may have sent them: the journal does not tell which."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One sender of one message."""

    sender: str
    message: MessageNode
    ways: tuple[Way, ...]
    """How the code sends it; empty if only the journal has seen it."""
    observed: Observation | None = None
    """The messages in the journal; None without any, or if it was not read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The part of the journal that was read."""

    entries: int
    first: datetime | None
    last: datetime | None
    is_bounded: bool
    """Whether there are older entries."""
    unexplained: int
    """The number of messages whose cause is no longer kept, or was a query."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """The messages, their senders and their handlers."""

    messages: tuple[MessageNode, ...]
    handlers: dict[str, HandlerNode]
    senders: dict[str, Sender]
    edges: tuple[Edge, ...]
    observed: Observed | None = None
    """The part of the journal that was read; None if it was not."""

    @property
    def unknown(self) -> list[HandlerNode]:
        """The handlers whose text could not be read."""
        return [each for each in self.handlers.values() if not each.is_readable]

    @cached_property
    def sent_by(self) -> dict[str, list[Edge]]:
        """The edges of each sender."""
        return _grouped((edge.sender, edge) for edge in self.edges)

    @cached_property
    def senders_of(self) -> dict[MessageNode, list[Edge]]:
        """The edges to each message."""
        return _grouped((edge.message, edge) for edge in self.edges)

    @cached_property
    def handled_by(self) -> dict[str, list[MessageNode]]:
        """The messages of each handler."""
        return _grouped(
            (name, each) for each in self.messages for name in each.handlers
        )

    def is_difference(self, edge: Edge) -> bool:
        """
        Return whether code and journal disagree about an edge.

        The journal has no queries, and what is only sent after a failure may never be.
        """
        if self.observed is None or edge.message.kind is Kind.QUERY:
            return False
        if edge.ways == (Way.ON_DEAD,):
            return False
        return (edge.observed is None) is bool(edge.ways)

    def around(self, pattern: str) -> Graph:
        """
        Return the messages that match, all that follows from them, and their senders.

        Args:
            pattern: a name of a message, or a pattern such as ``order.*``.

        """
        meant = [each for each in self.messages if each.matches(pattern)]
        found = dict.fromkeys(meant)
        ahead = list(meant)
        while ahead:
            for handler in ahead.pop().handlers:
                for edge in self.sent_by.get(handler, ()):
                    if edge.message not in found:
                        found[edge.message] = None
                        ahead.append(edge.message)
        handlers = {name for each in found for name in each.handlers}
        edges = [
            edge
            for edge in self.edges
            if edge.message in meant
            or (edge.message in found and edge.sender in handlers)
        ]
        return self._with(found, edges)

    def of_kinds(self, kinds: Collection[Kind]) -> Graph:
        """Return the messages of some kinds, with their senders and handlers."""
        found = [each for each in self.messages if each.kind in kinds]
        return self._with(found, [e for e in self.edges if e.message.kind in kinds])

    def _with(self, messages: Iterable[MessageNode], edges: list[Edge]) -> Graph:
        wanted = set(messages)
        kept = [each for each in self.messages if each in wanted]
        senders = {edge.sender for edge in edges}
        handlers = {name for each in kept for name in each.handlers}
        return Graph(
            tuple(kept),
            {
                name: each
                for name, each in self.handlers.items()
                if name in handlers or name in senders
            },
            {name: each for name, each in self.senders.items() if name in senders},
            tuple(edges),
            self.observed,
        )


LIBRARY: Final = "django_cqrs"
"""The sender of the messages that this library sends by itself."""

K = TypeVar("K")
V = TypeVar("V")


def _grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    found: defaultdict[K, list[V]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return dict(found)
