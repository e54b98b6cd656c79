"""The message graph as rows: each message, its senders and its handlers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from django.utils import timezone

from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.graph import Edge, Graph, MessageNode, Observed
from django_cqrs.graph.sending import Way

HEADINGS: Final[dict[Kind | None, str]] = {
    Kind.COMMAND: "Commands",
    Kind.EVENT: "Events",
    Kind.QUERY: "Queries",
    None: "Other messages",
}

_PLAIN: Final = (Way.CODE,)


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """A message that a sender handles, or that a handler sends."""

    name: str
    anchor: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SenderRow:
    """One sender of a message."""

    name: str
    ways: str
    """How it sends the message, unless its code makes it; with commas."""
    seen: str
    """The count and the times in the journal; empty if it was not read."""
    is_difference: bool
    """Whether code and journal disagree."""
    handles: tuple[Link, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerRow:
    """One handler of a message."""

    name: str
    channel: str
    """The alias of its channel; empty without one."""
    is_readable: bool
    sends: tuple[Link, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow:
    """One message."""

    anchor: str
    name: str
    keys: tuple[str, ...]
    """Its routing keys, unless its name is one."""
    senders: tuple[SenderRow, ...]
    handlers: tuple[HandlerRow, ...]
    is_applied: bool
    """Whether the object that records it applies it to itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """The messages of one kind."""

    heading: str
    rows: list[MessageRow]


def sections_of(graph: Graph) -> list[Section]:
    """Return the messages of a graph, by kind."""
    anchors = {node: f"cqrs-m{number}" for number, node in enumerate(graph.messages, 1)}

    def links(nodes: Iterator[MessageNode]) -> tuple[Link, ...]:
        once = dict.fromkeys(node for node in nodes if node in anchors)
        return tuple(Link(node.name, anchors[node]) for node in once)

    def sender(edge: Edge) -> SenderRow:
        return SenderRow(
            name=edge.sender,
            ways="" if edge.ways == _PLAIN else ", ".join(edge.ways),
            seen=_seen(graph, edge),
            is_difference=graph.is_difference(edge),
            handles=links(iter(graph.handled_by.get(edge.sender, ()))),
        )

    def handler(name: str) -> HandlerRow:
        found = graph.handlers[name]
        return HandlerRow(
            name=name,
            channel=found.channel or "",
            is_readable=found.is_readable,
            sends=links(each.message for each in graph.sent_by.get(name, ())),
        )

    sections = []
    for kind, heading in HEADINGS.items():
        rows = [
            MessageRow(
                anchor=anchors[node],
                name=node.name,
                keys=tuple(key for key in node.keys if key != node.name),
                senders=tuple(map(sender, graph.senders_of.get(node, ()))),
                handlers=tuple(map(handler, node.handlers)),
                is_applied=node.is_applied,
            )
            for node in graph.messages
            if node.kind is kind
        ]
        if rows:
            sections.append(Section(heading, rows))
    return sections


def _seen(graph: Graph, edge: Edge) -> str:
    if graph.observed is None or edge.message.kind is Kind.QUERY:
        return ""
    seen = edge.observed
    if seen is None:
        return "not observed"
    times = "once" if seen.count == 1 else f"{seen.count:,} times"
    text = f"{times}, {span_text(seen.first, seen.last)}"
    if not edge.ways:
        return f"in no code, observed {text}"
    return f"{text}, by this or another sender" if seen.is_shared else text


def span_text(first: datetime, last: datetime) -> str:
    """Return two times to the minute, in the present time zone; one if they agree."""
    start, end = timezone.localtime(first), timezone.localtime(last)
    begin, finish = f"{start:%Y-%m-%d %H:%M}", f"{end:%Y-%m-%d %H:%M}"
    if begin == finish:
        return begin
    if start.date() == end.date():
        finish = f"{end:%H:%M}"
    return f"{begin} to {finish}"


def observed_text(observed: Observed) -> list[str]:
    """Return sentences about the part of the journal that was read."""
    if observed.first is None or observed.last is None:
        return ["The journal is empty."]
    entries = "entry" if observed.entries == 1 else "entries"
    newest = "newest " if observed.is_bounded else ""
    times = span_text(observed.first, observed.last)
    lines = [f"{observed.entries:,} {newest}{entries} of the journal, {times}."]
    if observed.unexplained:
        noun = "message" if observed.unexplained == 1 else "messages"
        lines.append(
            f"The cause of {observed.unexplained:,} {noun} is no longer kept, or was a "
            "query."
        )
    return lines


def unknown_text(graph: Graph) -> str:
    """Return a sentence about the handlers that cannot be read; empty without any."""
    names = ", ".join(sorted(each.name for each in graph.unknown))
    if not names:
        return ""
    return f"The source of these handlers is not available: {names}."


def as_text(graph: Graph) -> str:
    """Return a graph as text for a terminal."""
    parts = []
    for section in sections_of(graph):
        lines = [f"{section.heading} ({len(section.rows)})"]
        for row in section.rows:
            lines += ["", ", ".join([row.name, *row.keys])]
            lines += _labelled("sent by", [_sender_text(each) for each in row.senders])
            applied = ["  the object that records it"] if row.is_applied else []
            handlers = [_handler_text(each) for each in row.handlers]
            lines += _labelled("handled by", applied + handlers)
        parts.append("\n".join(lines))
    notes = [unknown_text(graph)]
    if graph.observed is not None:
        notes += observed_text(graph.observed)
    if any(map(graph.is_difference, graph.edges)):
        notes.append("Code and journal disagree about the lines that begin with !.")
    return "\n\n".join([*parts, *filter(None, notes)])


def _labelled(label: str, lines: list[str]) -> list[str]:
    """Return lines of one kind: a label, a place for a mark, and the text."""
    labels = [label, *[""] * len(lines)]
    texts = lines or ["  nobody that the code shows"]
    return [f"  {what:<10}{text}" for what, text in zip(labels, texts, strict=False)]


def _sender_text(row: SenderRow) -> str:
    text = f"{'! ' if row.is_difference else '  '}{row.name}"
    if row.ways:
        text += f" ({row.ways})"
    return f"{text}: {row.seen}" if row.seen else text


def _handler_text(row: HandlerRow) -> str:
    text = f"  {row.name}"
    return f"{text}, channel {row.channel}" if row.channel else text
