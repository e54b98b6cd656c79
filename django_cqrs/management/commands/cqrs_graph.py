"""``manage.py cqrs_graph``: show who sends which message to whom."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_cqrs import conf
from django_cqrs.buses.registries import registry
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.building import graph_of
from django_cqrs.graph.graph import Graph, Observation, Observed
from django_cqrs.graph.mermaid import mermaid_of
from django_cqrs.graph.page import page_of
from django_cqrs.graph.rows import as_text
from django_cqrs.management.listing import relative_path
from django_cqrs.tenant_options import ChosenRows, add_database_options, chosen_rows

JSON_VERSION = 1
OUTBOX = "django_cqrs.outbox"


class Command(BaseCommand):
    """Show the message graph. Uses the database only for the journal."""

    help = (
        "Shows which code sends which message, and which handlers it reaches. The code "
        "of the installed apps is read, not run. With --observed, the graph is "
        "compared with the journal."
    )
    # A graph helps to find what a check reports.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the filters, the journal and a format."""
        parser.add_argument(
            "--format",
            choices=["text", "html", "mermaid", "json"],
            default="text",
            help="The output format (default: %(default)s).",
        )
        parser.add_argument(
            "--message",
            metavar="PATTERN",
            help=(
                "Show only messages whose name matches this pattern, such as "
                "'order.*', their senders, and all that follows from them."
            ),
        )
        parser.add_argument(
            "--bus",
            action="append",
            choices=[str(kind) for kind in Kind],
            help="Show only messages of this bus; may be given several times.",
        )
        parser.add_argument(
            "--observed",
            action="store_true",
            help="Compare the code with the journal: counts, times and differences.",
        )
        add_database_options(
            parser, help="The database of the journal (default: %(default)s)."
        )

    def handle(
        self,
        *,
        format: str,
        message: str | None,
        bus: list[str] | None,
        observed: bool,
        database: str,
        tenant: str | None,
        **_options: Any,
    ) -> None:
        """Print the graph."""
        graph = graph_of(registry)
        if observed:
            with chosen_rows(database, tenant) as chosen:
                graph = _observed(graph, chosen)
        if bus:
            graph = graph.of_kinds([Kind(each) for each in bus])
        if message is not None:
            graph = _around(graph, message)
        if format == "json":
            self.stdout.write(json.dumps(_document(graph), indent=2))
        elif format == "mermaid":
            self.stdout.write(mermaid_of(graph))
        elif format == "html":
            self.stdout.write(page_of(graph, "Message graph"))
        else:
            self.stdout.write(as_text(graph) or "No messages.")


def _observed(graph: Graph, chosen: ChosenRows) -> Graph:
    """
    Return the graph with the counts and the times of the journal.

    Raises:
        CommandError: there is no journal, or its database is unavailable.

    """
    if conf.current().JOURNAL is None or not apps.is_installed(OUTBOX):
        msg = (
            "There is no journal to compare with. Add 'django_cqrs.outbox' to "
            'INSTALLED_APPS, migrate, and set DJANGO_CQRS["JOURNAL"].'
        )
        raise CommandError(msg)
    from django_cqrs.outbox.management.refusals import clear_errors
    from django_cqrs.outbox.observed_graph import observed_in

    with clear_errors(chosen.using):
        return observed_in(graph, using=chosen.using, tenant=chosen.tenant)


def _around(graph: Graph, pattern: str) -> Graph:
    """
    Return the part of a graph that begins with some messages.

    Raises:
        CommandError: no message has such a name.

    """
    found = graph.around(pattern)
    if not found.messages:
        names = sorted(
            {n for m in graph.messages for n in (m.name, *m.keys, *m.labels)}
        )
        near = difflib.get_close_matches(pattern, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"There is no message {pattern!r}.{hint}"
        raise CommandError(msg)
    return found


def _document(graph: Graph) -> dict[str, Any]:
    """Return the object of the JSON format."""
    return {
        "version": JSON_VERSION,
        "messages": [
            {
                "id": node.id,
                "kind": node.kind and str(node.kind),
                "name": node.name,
                "class": node.path or None,
                "keys": list(node.keys),
                "handlers": list(node.handlers),
                "is_applied": node.is_applied,
            }
            for node in graph.messages
        ],
        "handlers": [
            {
                "name": each.name,
                "kind": str(each.kind),
                "function": each.place,
                "file": relative_path(each.file),
                "line": each.line,
                "channel": each.channel,
                "is_readable": each.is_readable,
            }
            for _, each in sorted(graph.handlers.items())
        ],
        "senders": [
            {
                "name": each.name,
                "is_handler": each.is_handler,
                "file": relative_path(each.file) if each.file else None,
                "line": each.line or None,
            }
            for _, each in sorted(graph.senders.items())
        ],
        "edges": [
            {
                "sender": edge.sender,
                "message": edge.message.id,
                "kind": edge.message.kind and str(edge.message.kind),
                "ways": [str(way) for way in edge.ways],
                "observed": edge.observed and _seen(edge.observed),
                "is_difference": graph.is_difference(edge),
            }
            for edge in graph.edges
        ],
        "observed": graph.observed and _seen(graph.observed),
    }


def _seen(seen: Observation | Observed) -> dict[str, Any]:
    found = dataclasses.asdict(seen)
    for name in ("first", "last"):
        found[name] = found[name] and found[name].isoformat()
    return found
