"""The state of an object after any of its events, and what the event changed in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from django.db import connections

from django_cqrs.annotations import name_of_type
from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.masking import MASK, Path, redactor_of
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.error_texts import sensitive_values
from django_cqrs.events.event_storage import EventStorage
from django_cqrs.events.loading import Until
from django_cqrs.events.reading import stream_page
from django_cqrs.events.redaction import pretty
from django_cqrs.events.snapshot_rebuilding import storages_of
from django_cqrs.events.stream_names import StreamName
from django_cqrs.events.streams import values_in
from django_cqrs.exceptions import CQRSError, MessageConversionError
from django_cqrs.modelling.aggregates import AggregateSubject
from django_cqrs.shapes import shape_of

LONGEST: Final = 5_000
"""The number of events that a page makes a state of."""

MOST_CHANGES: Final = 200
"""The number of changes that are listed."""


@dataclasses.dataclass(frozen=True, slots=True)
class StateChange:
    """One value that an event changed."""

    path: str
    before: str
    """The value as JSON; empty if it was not there."""
    after: str
    """The value as JSON; empty if it no longer is there."""


@dataclasses.dataclass(frozen=True, slots=True)
class StateAfter:
    """The state of an object after an event, without sensitive data."""

    state: str
    """The JSON as text, one value a line; empty if there is none to show."""
    changes: tuple[StateChange, ...] = ()
    more_changes: int = 0
    """The number of changes that are left out."""
    reason: str = ""
    """The reason why no state is shown; empty if it is."""


def storage_of(category: str, registry: Registry) -> EventStorage | None:
    """Return the storage of the event-sourced class of a category, if there is one."""
    for storage in storages_of(registry):
        if storage.streams.category == category:
            return storage
    return None


def subject_in(name: StreamName, registry: Registry) -> str:
    """Return the subject of a stream's object in the outbox; empty if it has none."""
    subjects = dict.fromkeys(each.subject for each in registry.routes.endpoints)
    for subject in subjects:
        if not isinstance(subject, AggregateSubject):
            continue
        storage = subject.storage
        streams = getattr(storage, "streams", None)
        if streams is None or streams.category != name.category:
            continue
        try:
            return subject.key_of(values_in(name.key, storage.parts))
        except (ValueError, TypeError, CQRSError):  # no identifier of its class
            return ""
    return ""


def state_after(
    name: StreamName, version: int, *, registry: Registry, using: str
) -> StateAfter:
    """
    Return the state of a stream's object after an event, and what that changed.

    Values are masked that the state's class marks, and those that an event up to this
    one has in a marked field.

    Args:
        name: the name of the stream.
        version: the number of the event.
        registry: the registry with the class.
        using: the alias of the database.

    """
    storage = storage_of(name.category, registry)
    if storage is None:
        return StateAfter(
            "",
            reason=f"No event-sourced class here has the category {name.category!r}.",
        )
    if version > LONGEST:
        return StateAfter(
            "",
            reason=(
                f"It takes {version:,} events to make this state, and a page reads at "
                f"most {LONGEST:,}. Run event_store.load(..., version={version})."
            ),
        )
    storage.registry = registry
    masks = _MaskedBy(storage, name, version, using)
    try:
        before = masks.state_at(version - 1) if version > 1 else None
        after = masks.state_at(version)
    except Exception as error:  # noqa: BLE001 - of the class's own appliers
        return StateAfter("", reason=masks.fault(error))
    if after is None:
        return StateAfter("", reason="The stream has no such event.")
    changes = [
        StateChange(_path_text(path), _shown(old), _shown(new))
        for path, old, new in _differences(before, after)
    ]
    return StateAfter(
        pretty(_document(after)),
        tuple(changes[:MOST_CHANGES]),
        max(0, len(changes) - MOST_CHANGES),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Hidden:
    """A sensitive value of a state."""

    value: Any


class _MaskedBy:
    """The states of one object, masked by its class and by its events."""

    def __init__(
        self, storage: EventStorage, name: StreamName, version: int, using: str
    ) -> None:
        self._storage = storage
        self._name = name
        self._connection = connections[using]
        self._shape = shape_of(storage.cls)
        self._is_readable = True
        hidden: list[Any] = []
        types = storage.registry.routes.types
        page = stream_page(
            self._connection, name, decoder_of(types), last=version, limit=version
        )
        for each in page.recorded:
            values = sensitive_values(each, types)
            self._is_readable &= values is not None
            hidden += [value for value in values or () if not isinstance(value, bool)]
        self._redact: Callable[[str], str] = redactor_of(hidden) if hidden else str

    def state_at(self, version: int) -> Any:
        """Return the JSON of a state, with objects that hide values; None without."""
        until = Until(version)
        loaded = self._storage.loader.load(self._connection, self._name, until=until)
        if loaded is None:
            return None
        document = self._shape.dump(loaded.instance)
        masked = self._shape.masking.mask(document, lambda _path, value: _Hidden(value))
        return self._masked(masked)

    def _masked(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                self._redact(key): self._masked(part) for key, part in value.items()
            }
        if isinstance(value, list):
            return [self._masked(part) for part in value]
        if isinstance(value, (_Hidden, bool)) or value is None:
            return value
        text = json.dumps(value, ensure_ascii=False)
        return value if self._redact(text) == text else _Hidden(value)

    def fault(self, error: Exception) -> str:
        """Return the reason why a state cannot be made, without values."""
        text = f"The state cannot be made: {name_of_type(type(error))}"
        if not isinstance(error, CQRSError) or isinstance(
            error, MessageConversionError
        ):
            return f"{text}."
        if not self._is_readable:
            return f"{text}."
        return f"{text}: {self._redact(str(error))}"


def _document(value: Any) -> Any:
    """Return JSON with masks in place of hidden values."""
    if isinstance(value, _Hidden):
        return MASK
    if isinstance(value, dict):
        return {key: _document(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_document(part) for part in value]
    return value


_ABSENT: Final = object()


def _differences(before: Any, after: Any) -> Iterator[tuple[Path, Any, Any]]:
    """Yield the places at which two states differ, with both values."""
    old = dict(_leaves(before, ())) if before is not None else {}
    new = dict(_leaves(after, ()))
    above = {path[:end] for path in (*old, *new) for end in range(len(path))}
    for path in dict.fromkeys((*old, *new)):
        was, has = old.get(path, _ABSENT), new.get(path, _ABSENT)
        # An empty list that gets its first value is told by the value.
        is_told = path in above and _ABSENT in (was, has)
        if not is_told and (was != has or type(was) is not type(has)):
            yield path, was, has


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, list) and value:
        for place, part in enumerate(value):
            yield from _leaves(part, (*path, place))
    else:
        yield path, value


def _path_text(path: Path) -> str:
    text = "".join(
        f"[{each}]" if isinstance(each, int) else f".{each}" for each in path
    )
    return text.removeprefix(".")


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return ""
    return json.dumps(_document(value), ensure_ascii=False)
