"""``manage.py cqrs_events show``: one stream, its events, and its object's state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from django.core.management.base import CommandError, CommandParser, OutputWrapper
from django.db import connections
from django.utils.dateparse import parse_datetime
from django.utils.timezone import is_naive, make_aware

from django_cqrs.annotations import path_of
from django_cqrs.conversion.masking import MASK, redactor_of
from django_cqrs.events.event_storage import EventStorage
from django_cqrs.events.loading import Until
from django_cqrs.events.management.output import add_format, add_limit, write_json
from django_cqrs.events.management.read_command import as_json, write_table
from django_cqrs.events.management.streams_command import status_of, with_last_event
from django_cqrs.events.models import NaturalKey, Snapshot, Stream
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.redaction import redact, without_values
from django_cqrs.events.snapshot_rebuilding import storages_of
from django_cqrs.events.store import EventStore
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.exceptions import CQRSError, StreamNotFound
from django_cqrs.logged_errors import writable
from django_cqrs.shapes import shape_of
from django_cqrs.times import as_sent

HELP: Final = (
    "Shows a stream, its last events, and the state of its object: the present one, "
    "or with --at that of a version or a time. Sensitive values are masked."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument("stream", metavar="STREAM", help="The name of the stream.")
    parser.add_argument(
        "--at",
        metavar="VERSION_OR_TIME",
        help="Show the stream as it was at a version, such as 3, or at a time, such "
        "as 2026-11-30T12:00.",
    )
    add_limit(parser)
    add_format(parser)


def handle(
    stdout: OutputWrapper,
    *,
    using: str,
    stream: str,
    at: str | None,
    limit: int,
    format: str,
) -> None:
    """
    Show a stream.

    Raises:
        StreamNotFound: there is none of this name, or it had no event then.
        CommandError: `at` is neither a version nor a time.
        InvalidOption: the name is not one of a stream.

    """
    name = stream_name(stream)
    store = EventStore(using)
    row = _row_of(name, using)
    events = list(_last_events(store, name, _until(at), limit))
    if at is not None and not events:
        msg = f"The stream {stream!r} has no event at {at}."
        raise StreamNotFound(msg)
    about = _about(row, using)
    state = _state_of(store, using, name, events)
    if format == "json":
        types = store.registry.routes.types
        shown = [as_json(each, redact(each, types)) for each in events]
        write_json(stdout, {**about, **state.as_json(), "events": shown})
        return
    for key, value in about.items():
        if value is not None:
            stdout.write(writable(f"{key.replace('_', ' ')}: {value}"))
    for line in state.lines():
        stdout.write(writable(line))
    if events:
        stdout.write("")
        write_table(stdout, events, store, has_payload=True)


# The stream ---------------------------------------------------------------------------


def _row_of(name: StreamName, using: str) -> Any:
    rows = Stream.objects.using(using).filter(category=name.category, key=name.key)
    found = with_last_event(rows).first()
    if found is None:
        msg = f"There is no stream {str(name)!r}."
        raise StreamNotFound(msg)
    return found


def _about(row: Any, using: str) -> dict[str, Any]:
    snapshot = Snapshot.objects.using(using).filter(pk=row.pk).first()
    has_key = NaturalKey.objects.using(using).filter(stream_id=row.pk).exists()
    return {
        "stream": str(row),
        "status": status_of(row),
        "first_version": row.first_version,
        "last_version": row.last_version or 0,
        "created_at": as_sent(row.created_at),
        "archived_at": row.archived_at and as_sent(row.archived_at),
        "deleted_at": row.deleted_at and as_sent(row.deleted_at),
        "snapshot_version": None if snapshot is None else snapshot.version,
        # Its value may be sensitive.
        "natural_key": MASK if has_key else None,
    }


def _until(at: str | None) -> Until:
    """
    Return the last event to be shown.

    Raises:
        CommandError: it is neither a version nor a time.

    """
    if at is None:
        return Until()
    if at.isdecimal():
        return Until(version=int(at))
    try:
        moment = parse_datetime(at)
    except ValueError:
        moment = None
    if moment is None:
        msg = (
            f"--at takes a version, such as 3, or a time, such as 2026-11-30T12:00, "
            f"not {at!r}."
        )
        raise CommandError(msg)
    return Until(at=make_aware(moment) if is_naive(moment) else moment)


def _last_events(
    store: EventStore, name: StreamName, until: Until, limit: int
) -> Iterator[Recorded]:
    """Yield the last events of a stream up to a version or a time, in order."""
    found: list[Recorded] = []
    try:
        for each in store.read(str(name), last=until.version, backwards=True):
            if until.at is None or each.recorded_at <= until.at:
                found.append(each)
            if len(found) == limit:
                break
    except StreamNotFound:  # its row is there, and its events are not
        return
    yield from reversed(found)


# The state of its object --------------------------------------------------------------


class _State(NamedTuple):
    """The state of the object of a stream, as operators may see it."""

    cls: type | None
    version: int
    content: Any = None
    reason: str = ""
    """The reason why the state is not shown; empty if it is."""

    def as_json(self) -> dict[str, Any]:
        return {
            "class": None if self.cls is None else path_of(self.cls),
            "state_version": None if self.cls is None else self.version,
            "state": self.content,
            "state_not_shown": self.reason or None,
        }

    def lines(self) -> Iterator[str]:
        if self.cls is None:
            return
        yield f"class: {path_of(self.cls)}"
        if self.reason:
            yield f"state at version {self.version}: not shown. {self.reason}"
        else:
            text = json.dumps(self.content, ensure_ascii=False)
            yield f"state at version {self.version}: {text}"


def _state_of(
    store: EventStore, using: str, name: StreamName, events: list[Recorded]
) -> _State:
    version = (events[-1].version or 0) if events else 0
    storage = next(
        (
            each
            for each in storages_of(store.registry)
            if each.streams.category == name.category
        ),
        None,
    )
    if storage is None or not version:
        return _State(None, version)
    try:
        content = _content(store, using, storage, name, version)
    except CQRSError as error:
        reason = f"It cannot be shown ({type(error).__name__})."
        return _State(storage.cls, version, reason=reason)
    except Exception as error:  # noqa: BLE001 - of an applier
        reason = f"An applier fails ({type(error).__name__})."
        return _State(storage.cls, version, reason=reason)
    return _State(storage.cls, version, content)


def _content(
    store: EventStore,
    using: str,
    storage: EventStorage,
    name: StreamName,
    version: int,
) -> Any:
    """Return the state as JSON, without sensitive values of its class and events."""
    connection = connections[using]
    loaded = storage.loader.load(connection, name, until=Until(version=version))
    if loaded is None:
        return None
    shape = shape_of(storage.cls)
    content = shape.masking.mask(shape.dump(loaded.instance), _mask)
    types = store.registry.routes.types
    hidden: list[Any] = []
    for each in store.read(str(name), last=version):
        hidden += redact(each, types).hidden
    return without_values(content, redactor_of(hidden)) if hidden else content


def _mask(_path: object, _value: Any) -> str:
    return MASK
