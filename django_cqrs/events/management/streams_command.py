"""``manage.py cqrs_events streams``: list streams, by category and key."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any, Final

from django.core.management.base import CommandParser, OutputWrapper
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from tabulate import tabulate

from django_cqrs.events.management.output import add_format, add_limit, write_json
from django_cqrs.events.models import ArchivedEvent, StoredEvent, Stream
from django_cqrs.events.queries import categories_of
from django_cqrs.events.stream_names import stream_name
from django_cqrs.times import as_sent

HELP: Final = "Lists streams with their last versions, by category and key."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamRow:
    """A stream as the list shows it."""

    stream: str
    last_version: int
    """The number of its last event; 0 if it has none."""
    last_event: str
    """The name of its last event."""
    last_at: datetime | None
    created_at: datetime
    status: str
    """``live``, ``archived`` or ``deleted``."""


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument("--category", help="Only streams of this category.")
    parser.add_argument(
        "--after", metavar="STREAM", help="Only streams behind this one in the list."
    )
    add_limit(parser)
    add_format(parser)


def handle(
    stdout: OutputWrapper,
    *,
    using: str,
    category: str | None,
    after: str | None,
    limit: int,
    format: str,
) -> None:
    """
    List streams.

    Raises:
        InvalidOption: a category or a name is not one.

    """
    found = _rows(using, category, after, limit)
    following = found[-1].stream if len(found) == limit else None
    if format == "json":
        rows = [dataclasses.asdict(each) for each in found]
        write_json(stdout, {"streams": rows, "after": following})
        return
    if not found:
        stdout.write("No streams.")
        return
    shows_status = any(each.status != "live" for each in found)
    headers = ["stream", "version", "last event", "at"]
    lines = [
        [each.stream, each.last_version, each.last_event, each.last_at or ""]
        for each in found
    ]
    if shows_status:
        headers.append("status")
        lines = [[*line, each.status] for line, each in zip(lines, found, strict=True)]
    stdout.write(tabulate(lines, headers=headers, disable_numparse=True))
    if following is not None:
        stdout.write(f"There may be more: --after {following}")


def _rows(
    using: str, category: str | None, after: str | None, limit: int
) -> list[StreamRow]:
    # In the order of the unique index, by which a page is found at once.
    rows = Stream.objects.using(using).order_by("category", "key")
    if category is not None:
        rows = rows.filter(category__in=categories_of(category))
    if after is not None:
        last, key = stream_name(after)
        rows = rows.filter(Q(category__gt=last) | Q(category=last, key__gt=key))
    return [_row(each) for each in with_last_event(rows)[:limit]]


def with_last_event(rows: QuerySet[Stream]) -> QuerySet[Any]:
    """Return streams with the version, the name and the time of their last event."""

    def last(column: str) -> Coalesce:
        return Coalesce(
            *(
                Subquery(
                    model._default_manager.filter(stream_id=OuterRef("pk"))
                    .order_by("-version")
                    .values(column)[:1]
                )
                for model in (StoredEvent, ArchivedEvent)
            )
        )

    return rows.annotate(
        last_version=last("version"),
        last_event=last("name"),
        last_at=last("recorded_at"),
    )


def _row(stream: Any) -> StreamRow:
    return StreamRow(
        stream=str(stream),
        last_version=stream.last_version or 0,
        last_event=stream.last_event or "",
        last_at=None if stream.last_at is None else as_sent(stream.last_at),
        created_at=as_sent(stream.created_at),
        status=status_of(stream),
    )


def status_of(stream: Stream) -> str:
    """Return ``live``, ``archived`` or ``deleted``."""
    if stream.deleted_at is not None:
        return "deleted"
    return "live" if stream.archived_at is None else "archived"
