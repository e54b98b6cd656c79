"""The problems of a message graph: messages without a sender or a handler, loops."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from django_cqrs import conf
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.graph import Graph, MessageNode
from django_cqrs.graph.sending import Way
from django_cqrs.problems import Problem, Rule

KEY: Final = "GRAPH_CHECKS"


@dataclasses.dataclass(frozen=True, slots=True)
class GraphChecks:
    """The options of the checks: patterns of names of messages."""

    outside: tuple[str, ...] = ()
    """Messages that come from elsewhere, or go there."""
    intended_loops: tuple[str, ...] = ()
    """Events that may lead back to themselves, since something else ends the loop."""


def graph_checks() -> GraphChecks | None:
    """
    Return the options in the settings, None if the checks are off.

    Raises:
        ImproperlyConfigured: ``GRAPH_CHECKS`` is neither a bool nor its options.

    """
    given: Any = conf.current().GRAPH_CHECKS
    if isinstance(given, bool):
        return GraphChecks() if given else None
    known = {field.name for field in dataclasses.fields(GraphChecks)}
    if not isinstance(given, Mapping) or not known.issuperset(given):
        msg = (
            f"{conf.NAME}[{KEY!r}] = {given!r} is neither a bool nor a dictionary of "
            f"the options {', '.join(sorted(known))}."
        )
        raise ImproperlyConfigured(msg)
    for name, value in given.items():
        if not isinstance(value, (list, tuple, set, frozenset)) or not all(
            isinstance(each, str) for each in value
        ):
            msg = f"{conf.NAME}[{KEY!r}][{name!r}] = {value!r} is not a list of names."
            raise ImproperlyConfigured(msg)
    return GraphChecks(**{name: tuple(value) for name, value in given.items()})


def problems_of(graph: Graph, options: GraphChecks) -> Iterator[Problem]:
    """
    Yield the problems of a graph.

    Args:
        graph: the graph of the code.
        options: the messages that are left out.

    """
    checked = [
        node
        for node in graph.messages
        if not any(node.matches(pattern) for pattern in options.outside)
    ]
    for node in checked:
        if node.kind is Kind.QUERY:
            continue
        if node.handlers and not _is_sent(graph, node):
            yield _unsent(graph, node)
        elif not (node.handlers or node.is_applied) and node.kind is Kind.EVENT:
            yield _unhandled(graph, node)
    left_out = {
        node
        for node in graph.messages
        if any(node.matches(pattern) for pattern in options.intended_loops)
    }
    for loop in _loops(graph, left_out):
        yield _loop(graph, loop)


_ELSEWHERE: Final = (
    f'if it is sent from elsewhere, name it in {conf.NAME}["{KEY}"]["outside"].'
)


def _is_sent(graph: Graph, node: MessageNode) -> bool:
    """Return whether a message has a sender, or one of a subclass has."""
    if graph.senders_of.get(node):
        return True
    cls = node.cls
    return cls is not None and any(
        other.cls is not None and other.kind is node.kind and issubclass(other.cls, cls)
        for other in graph.senders_of
    )


def _unsent(graph: Graph, node: MessageNode) -> Problem:
    handlers = ", ".join(graph.handlers[name].place for name in node.handlers)
    first = graph.handlers[node.handlers[0]]
    if node.kind is Kind.EVENT:
        return Problem(
            Rule.UNPUBLISHED_EVENT,
            f"No code publishes {node.name}, which {handlers} would handle.",
            f"Publish it, or remove its handlers; {_ELSEWHERE}",
            first.function,
        )
    return Problem(
        Rule.UNREACHED_COMMAND,
        f"No code sends {node.name}, which {handlers} would handle.",
        f"Send it, or remove its handler; {_ELSEWHERE}",
        first.function,
    )


def _unhandled(graph: Graph, node: MessageNode) -> Problem:
    senders = ", ".join(edge.sender for edge in graph.senders_of[node])
    return Problem(
        Rule.UNHANDLED_EVENT,
        f"{senders} publishes {node.name}, and nobody handles it.",
        "Write a handler, or stop publishing it; if it is handled elsewhere, name it "
        f'in {conf.NAME}["{KEY}"]["outside"].',
        node.cls,
    )


def _loop(graph: Graph, loop: list[tuple[str, MessageNode]]) -> Problem:
    """Return the problem of a loop: handlers, and the messages that they send."""
    _, event = loop[-1]
    steps = [event.name, *(f"{name} -> {node.name}" for name, node in loop)]
    return Problem(
        Rule.EVENT_LOOP,
        f"{event.name} leads back to itself in one transaction: {' -> '.join(steps)}.",
        "Make sure that something ends it, such as the state of an object, and name "
        f'it in {conf.NAME}["{KEY}"]["intended_loops"]; or give one of the handlers a '
        "channel.",
        graph.handlers[loop[0][0]].function,
    )


def _loops(
    graph: Graph, left_out: set[MessageNode]
) -> Iterator[list[tuple[str, MessageNode]]]:
    """Yield the shortest loop of each event that no earlier loop has."""
    seen: set[MessageNode] = set()
    for node in graph.messages:
        if node.kind is Kind.EVENT and node not in left_out and node not in seen:
            loop = _shortest_loop(graph, node, left_out)
            if loop:
                seen.update(each for _, each in loop)
                yield loop


def _shortest_loop(
    graph: Graph, start: MessageNode, left_out: set[MessageNode]
) -> list[tuple[str, MessageNode]]:
    """Return the steps from an event back to itself; none if there is no loop."""
    came_from: dict[MessageNode, tuple[MessageNode, str]] = {}
    ahead = deque([start])
    while ahead:
        node = ahead.popleft()
        for name, found in _next(graph, node):
            if found in left_out or found in came_from:
                continue
            came_from[found] = node, name
            if found is start:
                return _steps_back(came_from, start)
            ahead.append(found)
    return []


def _steps_back(
    came_from: Mapping[MessageNode, tuple[MessageNode, str]], start: MessageNode
) -> list[tuple[str, MessageNode]]:
    steps: list[tuple[str, MessageNode]] = []
    node = start
    while not steps or node is not start:
        before, name = came_from[node]
        steps.append((name, node))
        node = before
    return steps[::-1]


def _next(graph: Graph, node: MessageNode) -> Iterator[tuple[str, MessageNode]]:
    """Yield the messages sent while a message is handled, at once."""
    for name in node.handlers:
        if graph.handlers[name].channel is None:
            for edge in graph.sent_by.get(name, ()):
                is_sent = edge.ways != (Way.ON_DEAD,)
                if is_sent and edge.message.kind is not Kind.QUERY:
                    yield name, edge.message
