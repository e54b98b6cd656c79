"""Partitions: the events of a projection that must stay in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from zlib import crc32

from django_cqrs.declaration.marks import Header
from django_cqrs.events.feeding import FedMessage
from django_cqrs.events.projecting import BY_STREAM, ProjectionOptions
from django_cqrs.events.recorded import Recorded
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
