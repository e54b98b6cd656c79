"""The message graph as the text of a Mermaid flow chart."""

from __future__ import annotations

from typing import Final

from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.graph import Edge, Graph, MessageNode

# Without the colon: Mermaid cuts a sign off what looks like `style x fill:#f00;`.
_SAFE: Final = frozenset(" _.,/()*-")
_BLANK: Final = "\N{NO-BREAK SPACE}"


def mermaid_label(text: str) -> str:
    """
    Return a text for a label between quotes.

    Every sign that means something to Mermaid becomes its number: ``#34;``. A label is
    never empty, since Mermaid refuses that.
    """
    return "".join(
        each if each.isalnum() or each in _SAFE else f"#{ord(each)};"
        for each in " ".join(text.split()) or _BLANK
    )


def mermaid_of(graph: Graph) -> str:
    """
    Return a graph as a flow chart: messages are round, handlers and senders are not.

    Arrows of events are dotted. Those from a channel have its alias. If the journal was
    read, those from a sender have the number of its messages.
    """
    lines = ["flowchart LR"]
    messages: dict[MessageNode, str] = {}
    codes: dict[str, str] = {}

    def code(name: str) -> str:
        if name not in codes:
            codes[name] = f"c{len(codes)}"
            lines.append(f'  {codes[name]}["{mermaid_label(name)}"]')
        return codes[name]

    for node in graph.messages:
        messages[node] = f"m{len(messages)}"
        lines.append(f'  {messages[node]}(["{mermaid_label(node.name)}"])')
    for edge in graph.edges:
        arrow = _arrow(edge.message, _seen(graph, edge))
        lines.append(f"  {code(edge.sender)} {arrow} {messages[edge.message]}")
    for node in graph.messages:
        for name in node.handlers:
            arrow = _arrow(node, graph.handlers[name].channel or "")
            lines.append(f"  {messages[node]} {arrow} {code(name)}")
    return "\n".join(lines)


def _arrow(node: MessageNode, label: str) -> str:
    arrow = "-.->" if node.kind is Kind.EVENT else "-->"
    return f'{arrow}|"{mermaid_label(label)}"|' if label else arrow


def _seen(graph: Graph, edge: Edge) -> str:
    """Return the count of an edge in the journal, in a few words."""
    if graph.observed is None or edge.message.kind is Kind.QUERY:
        return ""
    if edge.observed is None:
        return "not observed" if graph.is_difference(edge) else ""
    count = f"{edge.observed.count:,}"
    if not edge.ways:
        return f"{count} in no code"
    return f"{count} shared" if edge.observed.is_shared else count
