"""The message graph as the journal has seen it: who has sent what, and how often."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.graph import (
    LIBRARY,
    Edge,
    Graph,
    MessageNode,
    Observation,
    Observed,
    Sender,
)
from django_cqrs.outbox.models import JournalEntry
from django_cqrs.outbox.worker.tasks import TASKS
from django_cqrs.times import as_sent

MOST: Final = 100_000
"""The maximum number of entries that are read, the newest."""

OUTSIDE: Final = "outside"
"""The sender of messages without a cause that no known code sends: a shell, say."""

_IDS: Final = 500
_COLUMNS: Final = "message_id", "causation_id", "kind", "name", "endpoint", "at"


@dataclasses.dataclass(slots=True, eq=False)
class _Seen:
    """A message in the journal."""

    node: MessageNode
    at: datetime
    causation_id: UUID | None
    endpoints: set[str]


@dataclasses.dataclass(slots=True)
class _Count:
    """The messages of one kind that handlers of one other have sent."""

    count: int
    first: datetime
    last: datetime

    def add(self, at: datetime) -> None:
        """Count one more."""
        self.count += 1
        self.first = min(self.first, at)
        self.last = max(self.last, at)


def observed_in(
    graph: Graph, *, using: str, most: int = MOST, tenant: str | None = None
) -> Graph:
    """
    Return a graph with the counts and the times of the journal.

    Args:
        graph: the graph of the code.
        using: the alias of the database with the journal.
        most: the maximum number of entries that are read, the newest.
        tenant: the tenant whose entries are read; None means everybody's.

    Returns:
        The graph with the edges of both: those of the code that were seen have counts,
        and those that only the journal knows have no way.

    """
    return _Observer(graph, using, tenant).observe(most)


class _Observer:
    """Reads the journal, and compares it with the graph of the code."""

    def __init__(self, graph: Graph, using: str, tenant: str | None) -> None:
        self._graph = graph
        self._rows = JournalEntry.objects.using(using).values_list(*_COLUMNS)
        if tenant is not None:
            self._rows = self._rows.filter(tenant=tenant)
        self._nodes = {
            (endpoint, label): node
            for node in graph.messages
            for endpoint in node.handlers
            for label in node.labels
        }
        self._others: dict[tuple[str, str], MessageNode] = {
            (str(node.kind), label): node
            for node in graph.messages
            for label in node.labels
        }
        self._present = {
            alias: handler.name
            for handler in graph.handlers.values()
            for alias in handler.aliases
        }
        self._added: list[MessageNode] = []
        self._seen: dict[UUID, _Seen] = {}

    def observe(self, most: int) -> Graph:
        """Return the graph with the edges of both."""
        newest = list(self._rows.order_by("-pk")[: most + 1])
        entries = newest[:most]
        messages = [each for row in entries if (each := self._note(row)) is not None]
        messages = list(dict.fromkeys(messages))
        causes = {each.causation_id for each in messages if each.causation_id}
        for row in self._older(sorted(causes - self._seen.keys())):
            self._note(row)
        counts, unexplained = self._counted(messages)
        times = [each.at for each in messages]
        return dataclasses.replace(
            self._graph,
            messages=(*self._graph.messages, *self._added),
            **self._edges(counts),
            observed=Observed(
                entries=len(entries),
                first=min(times, default=None),
                last=max(times, default=None),
                is_bounded=len(newest) > most,
                unexplained=unexplained,
            ),
        )

    def _older(self, ids: Sequence[UUID]) -> Iterator[Any]:
        """Yield the entries of causes that are older than those read."""
        for start in range(0, len(ids), _IDS):
            yield from self._rows.filter(message_id__in=ids[start : start + _IDS])

    def _note(self, row: Any) -> _Seen | None:
        """Note one entry; None for a task, whose code sends no message."""
        message_id, causation_id, kind, name, said, at = row
        endpoint = str(said)
        if endpoint.startswith(f"{TASKS}:"):
            return None
        at = as_sent(at)
        endpoint = self._present.get(endpoint, endpoint)
        seen = self._seen.get(message_id)
        if seen is None:
            node = self._node(kind, name, endpoint)
            seen = self._seen[message_id] = _Seen(node, at, causation_id, set())
        seen.at = min(seen.at, at)
        seen.endpoints.add(endpoint)
        return seen

    def _node(self, kind: str, name: str, endpoint: str) -> MessageNode:
        found = self._nodes.get((endpoint, name)) or self._others.get((kind, name))
        if found is None:
            found = MessageNode(
                name=name or endpoint,
                kind=Kind(kind) if kind else None,
                cls=None,
                keys=(),
                labels=frozenset({name}),
                handlers=(),
            )
            self._others[kind, name] = found
            self._added.append(found)
        return found

    def _counted(
        self, messages: list[_Seen]
    ) -> tuple[dict[tuple[MessageNode, _Cause], _Count], int]:
        """Return the number of messages of each cause, and of those without one."""
        found: dict[tuple[MessageNode, _Cause], _Count] = {}
        unexplained = 0
        for each in messages:
            cause: _Cause = None
            if each.causation_id is not None:
                source = self._seen.get(each.causation_id)
                if source is None:
                    unexplained += 1
                    continue
                cause = source.node, frozenset(source.endpoints)
            key = each.node, cause
            if key in found:
                found[key].add(each.at)
            else:
                found[key] = _Count(1, each.at, each.at)
        return found, unexplained

    def _edges(
        self, counts: dict[tuple[MessageNode, _Cause], _Count]
    ) -> dict[str, Any]:
        """Return the edges of both, and their senders."""
        senders = dict(self._graph.senders)
        totals: dict[tuple[str, MessageNode], list[tuple[_Count, bool]]] = {}
        for (node, cause), count in counts.items():
            found = list(self._senders_of(node, cause))
            if not found:
                sender = _unknown(cause, senders)
                senders[sender.name] = sender
                found = [sender.name]
            for name in found:
                totals.setdefault((name, node), []).append((count, len(found) > 1))
        edges = []
        for edge in self._graph.edges:
            counted = totals.pop((edge.sender, edge.message), None)
            observed = None if counted is None else _together(counted)
            edges.append(dataclasses.replace(edge, observed=observed))
        edges += [
            Edge(sender=name, message=node, ways=(), observed=_together(counted))
            for (name, node), counted in totals.items()
        ]
        return {"edges": tuple(edges), "senders": senders}

    def _senders_of(self, node: MessageNode, cause: _Cause) -> Iterator[str]:
        """Yield the senders in the code that may have sent a message for a cause."""
        for edge in self._graph.senders_of.get(node, ()):
            sender = self._graph.senders[edge.sender]
            if cause is None:
                if not sender.is_handler and edge.sender != LIBRARY:
                    yield edge.sender
            elif edge.sender in cause[1] or edge.sender == LIBRARY:
                yield edge.sender


_Cause = tuple[MessageNode, frozenset[str]] | None


def _together(counted: list[tuple[_Count, bool]]) -> Observation:
    return Observation(
        sum(each.count for each, _ in counted),
        min(each.first for each, _ in counted),
        max(each.last for each, _ in counted),
        is_shared=any(is_shared for _, is_shared in counted),
    )


def _unknown(cause: _Cause, senders: dict[str, Sender]) -> Sender:
    """Return the sender of messages that no known code sends."""
    if cause is None:
        return Sender(name=OUTSIDE, is_handler=False)
    node, endpoints = cause
    if len(endpoints) == 1:
        (name,) = endpoints
        return senders.get(name) or Sender(name=name, is_handler=True)
    return Sender(name=f"a handler of {node.name}", is_handler=False)
