"""``manage.py cqrs_events read``: read the settled events of all streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from django.core.management.base import CommandError, CommandParser, OutputWrapper
from tabulate import tabulate

from django_cqrs.events.management.output import add_format, add_limit, write_json
from django_cqrs.events.queries import EventQuery, where
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.redaction import RedactedEvent, redact
from django_cqrs.events.store import EventStore
from django_cqrs.logged_errors import writable

HELP: Final = (
    "Reads settled events in order of position, 20 of them or --limit. With --follow, "
    "waits for those to come. Sensitive values are masked."
)

_USUAL: Final = 20


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        dest="names",
        help="Only events with this name, or of a pattern such as 'order.*'.",
    )
    parser.add_argument(
        "--category",
        action="append",
        default=[],
        dest="categories",
        help="Only events of streams of this category.",
    )
    parser.add_argument(
        "--stream",
        action="append",
        default=[],
        dest="streams",
        help="Only events of this stream.",
    )
    parser.add_argument(
        "--tag",
        action="append",
        default=[],
        dest="tags",
        help="Only events with this tag, such as course:42; with all of several.",
    )
    parser.add_argument(
        "--after", type=int, metavar="POSITION", help="Only events behind a position."
    )
    parser.add_argument(
        "--archived", action="store_true", help="Also the events of archived streams."
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="Wait for more, until --limit events or --timeout seconds; begin with "
        "the next event, or behind --after.",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="The longest time to follow (default: until it is interrupted).",
    )
    parser.add_argument(
        "--payload", action="store_true", help="Show payloads and headers as well."
    )
    add_limit(parser, default=None)
    add_format(parser)


def handle(
    stdout: OutputWrapper,
    *,
    using: str,
    follow: bool,
    timeout: float | None,
    **options: Any,
) -> None:
    """
    Read events, or follow them.

    Raises:
        CommandError: two options exclude each other.
        InvalidOption: a category, a stream or a tag is not one.

    """
    store = EventStore(using)
    query = where(
        *options["names"],
        category=options["categories"],
        stream=options["streams"],
        tags=options["tags"],
    )
    if not follow:
        if timeout is not None:
            msg = "--timeout is for --follow."
            raise CommandError(msg)
        _read(stdout, store, query, options)
        return
    if options["archived"]:
        msg = "--follow does not take --archived: nothing is appended to those streams."
        raise CommandError(msg)
    found = store.follow(query, after=options["after"], timeout=timeout)
    with suppress(KeyboardInterrupt):
        for each in islice(found, options["limit"]):
            _write_line(stdout, store, each, options)


def _read(
    stdout: OutputWrapper, store: EventStore, query: EventQuery, options: dict[str, Any]
) -> None:
    limit = options["limit"] or _USUAL
    found = list(
        store.read_all(
            query,
            after=options["after"] or 0,
            limit=limit,
            archived=options["archived"],
        )
    )
    following = found[-1].position if len(found) == limit else None
    if options["format"] == "json":
        events = [as_json(each, _redacted(each, store)) for each in found]
        write_json(stdout, {"events": events, "after": following})
        return
    if not found:
        stdout.write("No events.")
        return
    write_table(stdout, found, store, has_payload=options["payload"])
    if following is not None:
        stdout.write(f"There may be more: --after {following}")


def _redacted(recorded: Recorded, store: EventStore) -> RedactedEvent:
    return redact(recorded, store.registry.routes.types)


def write_table(
    stdout: OutputWrapper,
    found: list[Recorded],
    store: EventStore,
    *,
    has_payload: bool,
) -> None:
    """
    Write events as a table.

    Args:
        stdout: of the command.
        found: the events.
        store: the store that they are of.
        has_payload: whether payloads and headers are shown.

    """
    headers = ["position", "stream", "version", "event", "at"]
    if has_payload:
        headers += ["payload", "headers"]
    lines = [list(_cells(each, store, has_payload=has_payload)) for each in found]
    stdout.write(writable(tabulate(lines, headers=headers, disable_numparse=True)))


def _cells(
    recorded: Recorded, store: EventStore, *, has_payload: bool
) -> Iterator[Any]:
    shown = _redacted(recorded, store)
    yield recorded.position
    yield "" if recorded.stream is None else shown.redact(recorded.stream)
    yield "" if recorded.version is None else recorded.version
    yield recorded.name
    yield recorded.recorded_at
    if has_payload:
        yield f"({shown.reason})" if shown.reason else _compact(shown.payload)
        yield _compact(shown.headers)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_line(
    stdout: OutputWrapper,
    store: EventStore,
    recorded: Recorded,
    options: dict[str, Any],
) -> None:
    if options["format"] == "json":
        document = as_json(recorded, _redacted(recorded, store))
        text = json.dumps(document, default=str, ensure_ascii=False)
    else:
        cells = _cells(recorded, store, has_payload=options["payload"])
        text = "  ".join(str(each) for each in cells if each != "")
    stdout.write(writable(text))
    stdout.flush()


def as_json(recorded: Recorded, shown: RedactedEvent) -> dict[str, Any]:
    """Return an event as an object of the JSON output."""
    return {
        "position": recorded.position,
        "stream": recorded.stream and shown.redact(recorded.stream),
        "version": recorded.version,
        "name": recorded.name,
        "shape": recorded.shape,
        "payload": shown.payload,
        "not_shown": shown.reason or None,
        "headers": shown.headers,
        "tags": list(shown.tags),
        "event_id": str(recorded.event_id),
        "correlation_id": str(recorded.correlation_id),
        "causation_id": recorded.causation_id and str(recorded.causation_id),
        "recorded_at": recorded.recorded_at.isoformat(),
        "link_to": recorded.link_to,
    }
