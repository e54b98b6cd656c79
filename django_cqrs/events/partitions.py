"""Partitions: the events of a projection that must stay in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from zlib import crc32

from django_cqrs.declaration.marks import Header
from django_cqrs.events.columns import TAG
from django_cqrs.events.feeding import FedMessage
from django_cqrs.events.models import Stream
from django_cqrs.events.projecting import BY_STREAM, ProjectionOptions
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.stream_names import stream_name
from django_cqrs.events.tags import Tag
from django_cqrs.exceptions import InvalidKey, MessageConversionError, UnknownMessage
from django_cqrs.plain import as_plain

Place = tuple[int, str]
"""A partition: the key of a stream's row, or 0 and a text."""

PartitionOf = Callable[[Recorded], Place]

LONGEST_KEY: Final = 255


class _NoBatch:
    """In the place of a batch, for a message that is only looked at."""

    is_replay = False
    scope: Any = None
    tables: Any = None
    states: Any = None

    def emit(self, message: Any, event: Any) -> None:
        """Do nothing."""

    def link(self, message: Any, stream: str) -> None:
        """Do nothing."""


_NOTHING: Final = _NoBatch()


def partitioner(options: ProjectionOptions) -> PartitionOf:
    """Return a function from a stored event to its partition in a projection."""
    by = options.partitioning
    if by == BY_STREAM:
        return _stream_of
    read = _reader(by)

    def partition_of(recorded: Recorded) -> Place:
        try:
            value = read(recorded)
        except (MessageConversionError, UnknownMessage):
            return 0, ""  # it fails again where it is handled
        if value is None:
            return 0, ""
        key = str(as_plain(value))
        if len(key) > LONGEST_KEY:
            msg = (
                f"The projection {options.name!r} has partition_by=, whose value for "
                f"{recorded!r} has more than {LONGEST_KEY} characters."
            )
            raise InvalidKey(msg)
        return 0, key

    return partition_of


def _stream_of(recorded: Recorded) -> Place:
    return recorded.stream_id or 0, ""


def _reader(by: Any) -> Callable[[Recorded], Any]:
    if isinstance(by, Tag):
        prefix = f"{by.name}:"
        return lambda recorded: next(
            (tag for tag in recorded.tags if tag.startswith(prefix)), None
        )
    if isinstance(by, Header):
        return lambda recorded: recorded.headers.get(by.name)
    if isinstance(by, str):
        return lambda recorded: _attribute(recorded, by)
    function: Callable[[Any], Any] = by
    return lambda recorded: function(FedMessage(_content(recorded), recorded, _NOTHING))


def _content(recorded: Recorded) -> Any:
    """Return an event; its JSON if no class has its name."""
    try:
        return recorded.event
    except UnknownMessage:
        return recorded.payload


def _attribute(recorded: Recorded, name: str) -> Any:
    content = _content(recorded)
    if isinstance(content, dict):
        return content.get(name)
    return getattr(content, name, None)


def place_named(options: ProjectionOptions, name: str, using: str) -> Place | None:
    """
    Return the partition of a name; None if there is no such stream.

    Args:
        options: of the projection.
        name: of a stream, or the key, as ``partition_by=`` says.
        using: the alias of the database with the events.

    Raises:
        InvalidOption: the name is not that of a stream.

    """
    if options.partitioning != BY_STREAM:
        return 0, name
    category, key = stream_name(name)
    rows = Stream.objects.using(using).filter(category=category, key=key)
    found: int | None = rows.values_list("pk", flat=True).first()
    return None if found is None else (found, "")


def partition_sql(
    options: ProjectionOptions, place: Place, parameters: list[Any]
) -> str:
    """
    Return the condition for the events that may be of a partition.

    It finds others as well, unless events are divided by their streams.
    """
    stream_id, key = place
    if options.partitioning == BY_STREAM:
        if not stream_id:
            return "e.stream_id IS NULL"
        parameters.append(stream_id)
        return "e.stream_id = %s"
    if key and isinstance(options.partitioning, Tag):
        parameters.append(key)
        position = "COALESCE(e.link_to, e.position)"
        return (
            f"EXISTS (SELECT 1 FROM {TAG} t WHERE t.tag = %s "
            f"AND t.position = {position})"
        )
    return "1 = 1"


def shard_of(place: Place, count: int) -> int:
    """Return the number of the shard that handles a partition, of so many."""
    stream_id, key = place
    if not key:
        return stream_id % count
    return crc32(key.encode()) % count


def name_of_place(place: Place, stream: str | None = None) -> str:
    """Return a partition as text for people."""
    stream_id, key = place
    return key or stream or (f"stream {stream_id}" if stream_id else "")
