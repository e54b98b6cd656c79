"""``manage.py cqrs_routes``: list the messages and their handlers."""

from __future__ import annotations

import difflib
import json
import re
import shutil
from typing import Any

from django.core.checks import ERROR
from django.core.management.base import BaseCommand, CommandError, CommandParser
from tabulate import tabulate

from django_cqrs.buses.registries import registry
from django_cqrs.checks import CHECKS
from django_cqrs.declaration.declarations import Kind
from django_cqrs.graph.mermaid import mermaid_label
from django_cqrs.management.explanation import explain, names_of
from django_cqrs.management.listing import (
    EndpointRow,
    Filter,
    InterfaceRow,
    ProjectionRow,
    as_dict,
    interface_rows,
    labels,
    projection_rows,
    rows_of,
)
from django_cqrs.tenant_options import active_by_option, add_tenant_option

JSON_VERSION = 1
BROKEN = "!"
HEADER_PADDING = 2  # tabulate's own

HEADINGS = {Kind.COMMAND: "Commands", Kind.QUERY: "Queries", Kind.EVENT: "Events"}
COLUMNS = {
    "message": "Message",
    "handler": "Handler",
    "where": "Where",
    "channel": "Channel",
    "transaction": "Transaction",
    "priority": "Priority",
    "delay": "Delay",
    "retry": "Retry",
    "keys": "Keys",
    "interceptors": "Interceptors",
}
PROJECTION_COLUMNS = {
    "projection": "Projection",
    "message": "Message",
    "handler": "Handler",
    "where": "Where",
    "run_by": "Runs",
    "views": "Views",
}
# Places to break a line: after a folder, a module or a word of a name, before a number.
WORD_END = re.compile(r"(?<=[/_ ])|(?<=\.)(?!py:)|(?=:\d)|(?<=[a-z])(?=[A-Z])")
# Shown only if a route has one.
OPTIONAL = ("channel", "priority", "delay", "retry", "keys", "interceptors")


class Command(BaseCommand):
    """Show messages and their handlers. Does not use the database."""

    help = (
        "Shows the handler of each command and query, and the handlers of each "
        "event. With a message's name, explains that message. Exits with 1 if a "
        "system check of the routes fails."
    )
    # The routes are even more useful when a check fails.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add a message to explain, the filters and a format."""
        parser.add_argument(
            "name",
            nargs="?",
            metavar="MESSAGE",
            help="Explain one message, given by its class, routing key or event name.",
        )
        parser.add_argument(
            "--format",
            choices=["table", "json", "mermaid", "markdown"],
            default="table",
            help="The output format (default: %(default)s).",
        )
        parser.add_argument(
            "--app", help="Show only handlers of the app with this label."
        )
        parser.add_argument(
            "--bus",
            choices=[str(kind) for kind in Kind],
            help="Show only messages of this bus.",
        )
        parser.add_argument(
            "--message",
            metavar="PATTERN",
            help=(
                "Show only messages whose name matches this pattern, such as 'order.*'."
            ),
        )
        add_tenant_option(parser, "Show the databases of this tenant's messages.")

    def handle(
        self,
        *,
        name: str | None,
        format: str,
        app: str | None,
        bus: str | None,
        message: str | None,
        tenant: str | None,
        **_options: Any,
    ) -> None:
        """Print the listing, then the failed checks."""
        if tenant is not None:
            with active_by_option(tenant):
                self.handle(
                    name=name,
                    format=format,
                    app=app,
                    bus=bus,
                    message=message,
                    tenant=None,
                )
            return
        if app is not None and app not in labels():
            self._refuse("app", app, labels())
        if name is not None:
            self._explain(name)
        else:
            wanted = Filter(app=app, bus=bus, message=message)
            rows = [row for row in rows_of(registry) if wanted.keeps(row)]
            faces = [each for each in interface_rows(registry) if wanted.keeps(each)]
            fed = [each for each in projection_rows(registry) if wanted.keeps(each)]
            self._show(rows, faces, fed, format)
        self._report_checks()

    def _explain(self, name: str) -> None:
        lines = explain(registry, name)
        if lines is None:
            self._refuse("message", name, names_of(registry.routes))
        else:
            self.stdout.write("\n".join(lines))

    def _refuse(self, what: str, given: str, known: list[str]) -> None:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"There is no {what} {given!r}.{hint}"
        raise CommandError(msg)

    def _show(
        self,
        rows: list[EndpointRow],
        faces: list[InterfaceRow],
        fed: list[ProjectionRow],
        form: str,
    ) -> None:
        if form == "json":
            document = {
                "version": JSON_VERSION,
                "routes": [as_dict(row) for row in rows],
                "interfaces": [as_dict(face) for face in faces],
                "projections": [as_dict(row) for row in fed],
            }
            self.stdout.write(json.dumps(document, indent=2))
        elif form == "mermaid":
            self.stdout.write("\n".join(_mermaid(rows, fed)))
        elif not rows and not faces and not fed:
            self.stdout.write("No routes.")
        else:
            self.stdout.write(self._tables(rows, faces, fed, form))

    def _tables(
        self,
        rows: list[EndpointRow],
        faces: list[InterfaceRow],
        fed: list[ProjectionRow],
        form: str,
    ) -> str:
        parts = []
        for kind, heading in HEADINGS.items():
            of_kind = [row for row in rows if row.kind == kind]
            if not of_kind:
                continue
            if form == "markdown":
                parts += [f"## {heading}", _table(of_kind, "github", None)]
            else:
                title = f"{heading} ({len(of_kind)})"
                width = self._width()
                table = _table(of_kind, "simple", width)
                parts += [self.style.MIGRATE_HEADING(title), table]
        if fed and form == "markdown":
            parts += ["## Projections", _projection_table(fed, "github", None)]
        elif fed:
            title = f"Projections ({len({each.projection for each in fed})})"
            table = _projection_table(fed, "simple", self._width())
            parts += [self.style.MIGRATE_HEADING(title), table]
        if faces and form == "markdown":
            parts += ["## Business interfaces", _face_table(faces, "github", None)]
        elif faces:
            title = f"Business interfaces ({len(faces)})"
            table = _face_table(faces, "simple", self._width())
            parts += [self.style.MIGRATE_HEADING(title), table]
        return "\n\n".join(parts)

    def _width(self) -> int | None:
        """Return the terminal's width; None if the output is not a terminal."""
        return shutil.get_terminal_size().columns if self.stdout.isatty() else None

    def _report_checks(self) -> None:
        found = [each for check in CHECKS for each in check()]
        visible = [each for each in found if not each.is_silenced()]
        errors = [each for each in visible if each.is_serious(ERROR)]
        for each in visible:
            if each not in errors:
                self.stderr.write(self.style.WARNING(str(each)))
        if errors:
            text = "\n".join(str(each) for each in errors)
            noun = "check fails" if len(errors) == 1 else "checks fail"
            msg = f"{len(errors)} {noun}:\n{text}"
            raise CommandError(msg, returncode=1)


def _table(rows: list[EndpointRow], form: str, width: int | None) -> str:
    """Return rows of one kind as a table, no wider than the terminal."""
    columns = {
        column: heading
        for column, heading in COLUMNS.items()
        if column not in OPTIONAL or any(getattr(row, column) for row in rows)
    }
    headers = list(columns.values())
    cells = [[_cell(row, column) for column in columns] for row in rows]
    if width is not None and _width_of(headers, cells) > width:
        # The file implies the module, so the function's own name is enough.
        columns = {
            "short_handler" if c == "handler" else c: columns[c] for c in columns
        }
        cells = [[_cell(row, column) for column in columns] for row in rows]
    return tabulate(
        _fitting(headers, cells, width),
        headers=headers,
        tablefmt=form,
        disable_numparse=True,
        colalign=["right" if column == "priority" else "left" for column in columns],
    )


def _projection_table(fed: list[ProjectionRow], form: str, width: int | None) -> str:
    """Return the routes of projections as a table that fits a width."""
    columns = dict(PROJECTION_COLUMNS)
    if not any(row.views for row in fed):
        del columns["views"]
    headers = list(columns.values())
    cells = [[_projection_cell(row, column) for column in columns] for row in fed]
    if width is not None and _width_of(headers, cells) > width:
        names = ["short_handler" if c == "handler" else c for c in columns]
        cells = [[_projection_cell(row, name) for name in names] for row in fed]
    return tabulate(
        _fitting(headers, cells, width),
        headers=headers,
        tablefmt=form,
        disable_numparse=True,
    )


def _projection_cell(row: ProjectionRow, column: str) -> str:
    value = getattr(row, column)
    if column == "views":
        return ", ".join(value)
    if column == "message" and row.problem:
        return f"{BROKEN} {value} ({row.problem})"
    return str(value)


def _face_table(faces: list[InterfaceRow], form: str, width: int | None) -> str:
    """Return the methods of business interfaces as a table that fits a width."""
    cells = [
        [
            f"{BROKEN} {face.method} ({face.problem})" if face.problem else face.method,
            f"{face.kind} {face.message}",
            ", ".join(face.handlers),
        ]
        for face in faces
    ]
    headers = ["Method", "Leads to", "Handler"]
    return tabulate(
        _fitting(headers, cells, width),
        headers=headers,
        tablefmt=form,
        disable_numparse=True,
    )


def _cell(row: EndpointRow, column: str) -> str:
    value = getattr(row, column)
    if column in OPTIONAL and not value:
        return ""
    if column == "interceptors":
        return ", ".join(value)
    if column == "delay":
        return value if isinstance(value, str) else f"{value:g} s"
    if column == "message" and row.problem:
        return f"{BROKEN} {value} ({row.problem})"
    return str(value)


def _widest(headers: list[str], cells: list[list[str]]) -> list[int]:
    return [
        max(len(header) + HEADER_PADDING, *(len(line[index]) for line in cells))
        for index, header in enumerate(headers)
    ]


def _width_of(headers: list[str], cells: list[list[str]]) -> int:
    return sum(_widest(headers, cells)) + 2 * (len(headers) - 1)


def _fitting(
    headers: list[str], cells: list[list[str]], width: int | None
) -> list[list[str]]:
    """Return cells with lines that fit: the widest column shrinks step by step."""
    if width is None or _width_of(headers, cells) <= width:
        return cells
    widths = _widest(headers, cells)
    least = [len(header) + HEADER_PADDING for header in headers]
    excess = sum(widths) + 2 * (len(headers) - 1) - width
    for _ in range(excess):
        spare = [each - minimum for each, minimum in zip(widths, least, strict=True)]
        widest = max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i]))
        widths[widest] -= spare[widest] > 0
    return [list(map(_wrapped, line, widths)) for line in cells]


def _wrapped(text: str, width: int) -> str:
    """Return text in lines of a width, broken after words of code."""
    lines = [""]
    for word in WORD_END.split(text):
        if len(lines[-1]) + len(word.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += word
        while len(lines[-1]) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines)


def _mermaid(rows: list[EndpointRow], fed: list[ProjectionRow]) -> list[str]:
    lines = ["flowchart LR"]
    messages: dict[tuple[str, str], str] = {}
    handlers: dict[str, str] = {}
    for row in rows:
        identity = row.kind, row.message_class or row.message
        if identity not in messages:
            messages[identity] = f"m{len(messages)}"
            lines.append(f'  {messages[identity]}(["{mermaid_label(row.message)}"])')
        if row.endpoint not in handlers:
            handlers[row.endpoint] = f"h{len(handlers)}"
            lines.append(f'  {handlers[row.endpoint]}["{mermaid_label(row.handler)}"]')
        arrow = "-.->" if row.kind == Kind.EVENT else "-->"
        if row.channel:
            arrow = f'{arrow}|"{mermaid_label(row.channel)}"|'
        lines.append(f"  {messages[identity]} {arrow} {handlers[row.endpoint]}")
    for each in fed:
        identity = each.kind, each.message_class or each.message
        if identity not in messages:
            messages[identity] = f"m{len(messages)}"
            lines.append(f'  {messages[identity]}(["{mermaid_label(each.message)}"])')
        if each.handler not in handlers:
            handlers[each.handler] = f"h{len(handlers)}"
            lines.append(f'  {handlers[each.handler]}["{mermaid_label(each.handler)}"]')
        label = mermaid_label(f"projection {each.projection}, {each.run_by}")
        lines.append(f'  {messages[identity]} -.->|"{label}"| {handlers[each.handler]}')
    for endpoint, output in dict.fromkeys(
        (row.endpoint, output)
        for row in rows
        for output in (row.output or "").split(", ")
        if output
    ):
        identity = str(Kind.COMMAND), output
        if identity not in messages:
            messages[identity] = f"m{len(messages)}"
            lines.append(f'  {messages[identity]}(["{mermaid_label(output)}"])')
        lines.append(f"  {handlers[endpoint]} ==> {messages[identity]}")
    return lines
