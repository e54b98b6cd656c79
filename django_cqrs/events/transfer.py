"""
Write a whole store as lines of JSON, and read such lines into another one.

The first line names the format. Then come the streams, all events in order of position,
and the natural keys. An event keeps its id, its stream and its version; it gets a new
position, in the same order. What is there already is left as it is, so that an import
can be repeated.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db import IntegrityError, connections, transaction

from django_cqrs.buses.registries import Registry
from django_cqrs.events.decoding import TAGS
from django_cqrs.events.floors import hold_floor
from django_cqrs.events.models import (
    ArchivedEvent,
    EventTag,
    NaturalKey,
    StoredEvent,
    Stream,
)
from django_cqrs.events.settling import settled
from django_cqrs.events.stream_names import stream_name
from django_cqrs.events.waking import wake
from django_cqrs.exceptions import InvalidOption
from django_cqrs.times import as_sent

T = TypeVar("T")

FORMAT: Final = "django_cqrs.events"
FORMAT_VERSION: Final = 1

PAGE: Final = 500
"""The number of rows of one query, and of one transaction of an import."""

# Export -------------------------------------------------------------------------------


def exported(using: str) -> Iterator[str]:
    """
    Yield the lines of a store: all events up to the settled position.

    Args:
        using: the alias of its database.

    """
    bound = settled(connections[using])
    yield _line({"format": FORMAT, "version": FORMAT_VERSION})
    for stream in _paged(Stream.objects.using(using)):
        yield _line(_exported_stream(stream))
    live = _exported_events(StoredEvent, using, bound)
    archived = _exported_events(ArchivedEvent, using, bound)
    for _, document in heapq.merge(live, archived, key=_position_of):
        yield _line(document)
    for key in _paged(NaturalKey.objects.using(using)):
        names = _names_of({key.stream_id}, using)
        if key.stream_id in names:
            yield _line(
                {
                    "kind": "key",
                    "category": key.category,
                    "value": key.value,
                    "stream": names[key.stream_id],
                }
            )


def _line(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _paged(rows: Any) -> Iterator[Any]:
    """Yield rows in order of their keys, in pages, without a cursor on the server."""
    for page in _pages(rows):
        yield from page


def _pages(rows: Any) -> Iterator[list[Any]]:
    last = 0
    while page := list(rows.filter(pk__gt=last).order_by("pk")[:PAGE]):
        yield page
        last = page[-1].pk


def _exported_stream(stream: Stream) -> dict[str, Any]:
    return {
        "kind": "stream",
        "stream": str(stream),
        "created_at": _text_of(stream.created_at),
        "archived_at": _text_of(stream.archived_at),
        "deleted_at": _text_of(stream.deleted_at),
        "first_version": stream.first_version,
    }


def _text_of(moment: datetime | None) -> str | None:
    return None if moment is None else as_sent(moment).isoformat()


def _exported_events(
    model: Any, using: str, bound: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    for page in _pages(model.objects.using(using).filter(pk__lte=bound)):
        names = _names_of({each.stream_id for each in page}, using)
        originals = _ids_of({each.link_to for each in page}, using)
        for each in page:
            if each.link_to is not None and each.link_to not in originals:
                continue  # a link to a deleted event, which is not read either
            yield (
                each.pk,
                {
                    "kind": "event",
                    "stream": names.get(each.stream_id),
                    "event_version": each.version,
                    "name": each.name,
                    "shape": each.shape,
                    "payload": each.payload,
                    "headers": each.headers,
                    "event_id": str(each.event_id),
                    "correlation_id": str(each.correlation_id),
                    "causation_id": each.causation_id and str(each.causation_id),
                    "recorded_at": _text_of(each.recorded_at),
                    "link_to": originals.get(each.link_to),
                    "is_archived": model is ArchivedEvent,
                },
            )


def _position_of(event: tuple[int, dict[str, Any]]) -> int:
    return event[0]


def _names_of(keys: set[int | None], using: str) -> dict[int | None, str]:
    wanted = [each for each in keys if each is not None]
    found = Stream.objects.using(using).filter(pk__in=wanted)
    return {each.pk: str(each) for each in found}


def _ids_of(positions: set[int | None], using: str) -> dict[int | None, str]:
    found: dict[int | None, str] = {}
    wanted = [each for each in positions if each is not None]
    for model in (StoredEvent, ArchivedEvent) if wanted else ():
        rows = model._default_manager.using(using).filter(pk__in=wanted)
        found |= {key: str(each) for key, each in rows.values_list("pk", "event_id")}
    return found


# Import -------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Imported:
    """The numbers of rows that an import has added."""

    streams: int = 0
    events: int = 0
    keys: int = 0


def check_lines(lines: Iterable[str]) -> None:
    """
    Look for lines that cannot be imported; nothing is changed.

    Raises:
        InvalidOption: a line is not one of an export.

    """
    for _ in _documents(lines):
        pass


def import_lines(lines: Iterable[str], *, using: str, registry: Registry) -> Imported:
    """
    Add the streams, events and keys of an export that are missing.

    Events are not published. Each page is a transaction of its own, so that followers
    are not held back, and what was interrupted can be repeated.

    Args:
        lines: those of an export.
        using: the alias of the database.
        registry: the registry whose projections follow the events.

    Raises:
        InvalidOption: a line is not one of an export, or the store has another event,
            or another owner of a key, at its place. Earlier pages stay.

    """
    done = Imported()
    connection = connections[using]
    for kind, page in _parts(_documents(lines)):
        with transaction.atomic(using=using):
            if kind == "stream":
                done.streams += _import_streams(page, using)
            elif kind == "event":
                done.events += _import_events(page, using)
            else:
                done.keys += _import_keys(page, using)
        if connection.queries_logged:
            connection.queries_log.clear()
    if done.events:
        wake(connection, registry)
    return done


def _parts(
    documents: Iterable[dict[str, Any]],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield documents in pages of one kind each."""
    page: list[dict[str, Any]] = []
    for each in documents:
        if page and (len(page) == PAGE or page[0]["kind"] != each["kind"]):
            yield page[0]["kind"], page
            page = []
        page.append(each)
    if page:
        yield page[0]["kind"], page


def _documents(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """
    Yield the lines of an export as objects.

    Raises:
        InvalidOption: a line is not one of an export.

    """
    numbered = enumerate(lines, 1)
    first = next(numbered, (1, ""))[1]
    try:
        header = json.loads(first)
    except ValueError:
        header = None
    wanted = {"format": FORMAT, "version": FORMAT_VERSION}
    if header != wanted:
        msg = (
            "Line 1 is not the beginning of an export of version "
            f"{FORMAT_VERSION}: {json.dumps(wanted)}."
        )
        raise InvalidOption(msg)
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            _READERS[document["kind"]](document)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            fault = str(error) if isinstance(error, InvalidOption) else repr(error)
            msg = f"Line {number} is not one of an export: {fault}"
            raise InvalidOption(msg) from error
        yield document


def _read_stream(document: dict[str, Any]) -> None:
    document["stream"] = stream_name(document["stream"])
    for name in ("created_at", "archived_at", "deleted_at"):
        document[name] = _moment_in(document[name])
    document["first_version"] = _number_in(document["first_version"])


def _read_event(document: dict[str, Any]) -> None:
    stream, version = document["stream"], document["event_version"]
    document["stream"] = None if stream is None else stream_name(stream)
    document["event_version"] = None if version is None else _number_in(version)
    document["shape"] = _number_in(document["shape"], least=-32768)
    for name in ("event_id", "correlation_id"):
        document[name] = UUID(document[name])
    for name in ("causation_id", "link_to"):
        document[name] = document[name] and UUID(document[name])
    document["recorded_at"] = _moment_in(document["recorded_at"])
    if (stream is None) is not (version is None):
        msg = "An event of a stream has a version, and others have none."
        raise ValueError(msg)
    if not isinstance(document["name"], str) or document["recorded_at"] is None:
        msg = "An event has a name and a time."
        raise ValueError(msg)
    for name in ("payload", "headers", "is_archived"):
        document[name]


def _read_key(document: dict[str, Any]) -> None:
    document["stream"] = stream_name(document["stream"])
    if not isinstance(document["value"], str):
        msg = "The value of a natural key is text."
        raise TypeError(msg)


_READERS: Final = {"stream": _read_stream, "event": _read_event, "key": _read_key}


def _moment_in(text: str | None) -> datetime | None:
    return None if text is None else as_sent(datetime.fromisoformat(text))


def _number_in(value: Any, *, least: int = 1) -> int:
    if type(value) is not int or value < least:
        msg = f"{value!r} is not a number from {least}."
        raise ValueError(msg)
    return value


def _import_streams(page: list[dict[str, Any]], using: str) -> int:
    """Insert the rows of streams that are missing; return their number."""
    present = _streams_of((each["stream"] for each in page), using)
    missing = [
        Stream(
            category=each["stream"].category,
            key=each["stream"].key,
            created_at=each["created_at"],
            archived_at=each["archived_at"],
            deleted_at=each["deleted_at"],
            first_version=each["first_version"],
        )
        for each in page
        if each["stream"] not in present
    ]
    Stream.objects.using(using).bulk_create(missing)
    return len(missing)


def _streams_of(names: Iterable[Any], using: str) -> dict[tuple[str, str], int]:
    """Return the keys of the rows of streams, by their names."""
    wanted = set(names)
    categories = {category for category, _ in wanted}
    rows = Stream.objects.using(using).filter(
        category__in=categories, key__in={key for _, key in wanted}
    )
    return {
        (category, key): pk
        for pk, category, key in rows.values_list("pk", "category", "key")
    }


def _import_events(page: list[dict[str, Any]], using: str) -> int:
    """
    Insert the events that are missing; return their number.

    Raises:
        InvalidOption: another event is at the place of one of them.

    """
    present = _places_of((each["event_id"] for each in page), using)
    new = [each for each in page if each["event_id"] not in present]
    for each in page:
        stored = present.get(each["event_id"])
        name = each["stream"] and tuple(each["stream"])
        if stored is not None and stored != (name, each["event_version"]):
            msg = f"The event {each['event_id']} is stored already, at another place."
            raise InvalidOption(msg)
    if not new:
        return 0
    streams = _streams_of((each["stream"] for each in new if each["stream"]), using)
    originals = _positions_of({each["link_to"] for each in new}, using)
    connection = connections[using]
    if connection.vendor == "mysql":
        hold_floor(connection)
    try:
        # One by one where a link may be to another one of them.
        for some in _without_links_inside(new):
            originals |= _insert(some, streams, originals, using)
    except IntegrityError as error:
        versions = {str(each["stream"]) for each in new if each["stream"]}
        msg = (
            "The store has other events at the versions of those of "
            f"{', '.join(sorted(versions)[:3])}."
        )
        raise InvalidOption(msg) from error
    return len(new)


def _without_links_inside(
    events: list[dict[str, Any]],
) -> Iterator[list[dict[str, Any]]]:
    """Yield runs of events none of which is a link to another one of its run."""
    some: list[dict[str, Any]] = []
    ids: set[UUID] = set()
    for each in events:
        if each["link_to"] in ids:
            yield some
            some, ids = [], set()
        some.append(each)
        ids.add(each["event_id"])
    yield some


def _insert(
    events: list[dict[str, Any]],
    streams: dict[tuple[str, str], int],
    originals: dict[UUID | None, int],
    using: str,
) -> dict[UUID | None, int]:
    """
    Insert events with their tags; return their positions.

    Raises:
        InvalidOption: the stream, or the original of a link, is not there.

    """
    rows = [
        StoredEvent(
            stream_id=each["stream"] and _of(streams, each["stream"], "stream"),
            version=each["event_version"],
            name=each["name"],
            shape=each["shape"],
            payload=each["payload"],
            headers=each["headers"],
            event_id=each["event_id"],
            correlation_id=each["correlation_id"],
            causation_id=each["causation_id"],
            recorded_at=each["recorded_at"],
            link_to=each["link_to"] and _of(originals, each["link_to"], "event"),
        )
        for each in events
    ]
    StoredEvent.objects.using(using).bulk_create(rows)
    positions = _positions_of({each.event_id for each in rows}, using)
    EventTag.objects.using(using).bulk_create(
        EventTag(tag=tag, position=positions[row.event_id], name=row.name)
        for row in rows
        for tag in _tags_in(row.headers)
    )
    archived = [
        row
        for row, each in zip(rows, events, strict=True)
        if each["is_archived"] is True
    ]
    for row in archived:
        row.position = positions[row.event_id]
    ArchivedEvent.objects.using(using).bulk_create(
        ArchivedEvent(
            **{
                field.attname: getattr(row, field.attname)
                for field in ArchivedEvent._meta.fields
            }
        )
        for row in archived
    )
    gone = [row.position for row in archived]
    StoredEvent.objects.using(using).filter(pk__in=gone).delete()
    return positions


def _of(found: dict[Any, int], key: Any, what: str) -> int:
    """
    Return the key of a stream, or the position of an event.

    Raises:
        InvalidOption: it is not there.

    """
    if key not in found:
        msg = f"There is no {what} {str(key)!r}, neither in the store nor in the file."
        raise InvalidOption(msg)
    return found[key]


def _tags_in(headers: Any) -> list[str]:
    tags = headers.get(TAGS) if isinstance(headers, dict) else None
    return [each for each in tags if isinstance(each, str)] if tags else []


def _places_of(
    ids: Iterable[UUID], using: str
) -> dict[UUID, tuple[tuple[str, str] | None, int | None]]:
    """Return the stream and the version of events that are stored, by their ids."""
    wanted = set(ids)
    rows: list[tuple[UUID, int | None, int | None]] = []
    for model in (StoredEvent, ArchivedEvent):
        found = model._default_manager.using(using).filter(event_id__in=wanted)
        rows += found.values_list("event_id", "stream_id", "version")
    keys = {stream_id for _, stream_id, _ in rows if stream_id is not None}
    streams = Stream.objects.using(using).filter(pk__in=keys)
    names = {
        pk: (category, key)
        for pk, category, key in streams.values_list("pk", "category", "key")
    }
    return {
        event_id: (None if stream_id is None else names.get(stream_id), version)
        for event_id, stream_id, version in rows
    }


def _positions_of(ids: set[UUID | None], using: str) -> dict[UUID | None, int]:
    found: dict[UUID | None, int] = {}
    wanted = [each for each in ids if each is not None]
    for model in (StoredEvent, ArchivedEvent) if wanted else ():
        rows = model._default_manager.using(using).filter(event_id__in=wanted)
        found |= dict(rows.values_list("event_id", "pk"))
    return found


def _import_keys(page: list[dict[str, Any]], using: str) -> int:
    """
    Insert the natural keys that are missing; return their number.

    Raises:
        InvalidOption: another stream has one of them.

    """
    streams = _streams_of((each["stream"] for each in page), using)
    rows = NaturalKey.objects.using(using).filter(
        category__in={each["category"] for each in page},
        value__in={each["value"] for each in page},
    )
    held = {
        (category, value): stream_id
        for category, value, stream_id in rows.values_list(
            "category", "value", "stream_id"
        )
    }
    missing = []
    for each in page:
        stream_id = _of(streams, each["stream"], "stream")
        holder = held.get((each["category"], each["value"]))
        if holder is None:
            missing.append(
                NaturalKey(
                    category=each["category"],
                    value=each["value"],
                    stream_id=stream_id,
                )
            )
        elif holder != stream_id:
            msg = f"Another stream has the natural key of {str(each['stream'])!r}."
            raise InvalidOption(msg)
    NaturalKey.objects.using(using).bulk_create(missing)
    return len(missing)
