"""The classes whose objects are stored, and the apps that hold their lock files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from django.apps import AppConfig, apps

from django_cqrs.annotations import is_protocol, path_of
from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.adapters import Adapter, adapter_of
from django_cqrs.conversion.upcasting import declared_upcasters, upcast
from django_cqrs.declaration.declarations import Kind
from django_cqrs.documents.collections import known_collections
from django_cqrs.exceptions import FieldError, MessageConversionError
from django_cqrs.graph.building import graph_of
from django_cqrs.messages import MessageName, message_name_of
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.endpoints import PATTERN_SIGNS
from django_cqrs.routing.table import RouteTable
from django_cqrs.schema_lock.locked_shapes import DescribedType, described

DOCUMENT: Final = "document:"
"""The beginning of a document's key in a lock file."""

EVENTS: Final = "django_cqrs.events"

# Parts of the paths of packages that a project installs, and does not own.
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


@dataclasses.dataclass(frozen=True, eq=False)
class StoredClass:
    """A class whose objects are stored as JSON, with its present name and shape."""

    cls: type
    name: MessageName
    target: Any
    """The type that its JSON is read as."""
    prefix: str = ""
    reader: Adapter | None = None
    """The adapter of the target, if it has one of its own."""
    may_drop: bool = False
    """Whether its upcasters may drop it: only events of streams are then left out."""

    @property
    def key(self) -> str:
        """The name of its block in the lock file."""
        return f"{self.prefix}{self.name.name}"

    @property
    def keys(self) -> tuple[str, ...]:
        """That name, and the names of blocks before a rename."""
        names = self.name.name, *self.name.aliases
        return tuple(f"{self.prefix}{name}" for name in names)

    @property
    def path(self) -> str:
        """The dotted path of the class."""
        return path_of(self.cls)

    @property
    def app(self) -> AppConfig | None:
        """The app that defines it."""
        return apps.get_containing_app_config(self.cls.__module__)

    @property
    def adapter(self) -> Adapter:
        """The reader of its JSON."""
        return self.reader or adapter_of(self.target)

    @cached_property
    def described(self) -> DescribedType:
        """The shape of its JSON."""
        return described(self.adapter.schema)

    def read(self, payload: Any) -> Any:
        """
        Read JSON of the present version.

        Raises:
            MessageConversionError: it does not have this shape.

        """
        return self.adapter.from_stored_json(json.dumps(payload).encode())

    def read_version(self, payload: Any, key: str, version: int) -> None:
        """
        Read JSON of another version, by the upcasters.

        Args:
            payload: the JSON.
            key: the key of its block: it was stored under that name.
            version: the version of its shape.

        Raises:
            MessageConversionError: an upcaster refuses it, or does not bring it to the
                present shape.

        """
        own = self.name
        stored = key.removeprefix(self.prefix)
        names = (stored, own.name, *own.aliases)
        try:
            present = upcast(payload, names, version, own.version, _SampleHeaders())
        except MessageConversionError:
            raise
        except Exception as error:  # of a function of the project
            reason = f"{type(error).__name__}: {error}" if str(error) else repr(error)
            faults = [FieldError("", f"its upcaster fails ({reason})", "upcaster")]
            raise MessageConversionError(own.name, faults) from error
        if present is not None or not self.may_drop:
            self.read(present)

    def has_upcaster(self, version: int) -> bool:
        """Return whether an upcaster takes a version."""
        names = {self.name.name, *self.name.aliases}
        return any(
            name in names and step == version for name, step, _ in declared_upcasters()
        )


class _SampleHeaders(dict[str, Any]):
    """The headers of a sample: any header is there."""

    def __missing__(self, name: str) -> str:
        return "text"


def stored_classes(registry: Registry, locked: Iterable[str]) -> list[StoredClass]:
    """
    Return the classes whose objects may be stored, each once.

    Args:
        registry: the registry with the handlers.
        locked: the keys of classes that are locked already: rows may remain of them.

    """
    types, known = registry.routes.types, set(locked)
    waiting = _StoringRoutes(registry, is_fed=False)
    recorded = _StoringRoutes(registry, is_fed=True)
    recorded.add_bases(_classes_in_streams(registry))
    found = []
    for cls, name in types.named_classes():
        waits = waiting.take(cls)
        is_known = not known.isdisjoint((name.name, *name.aliases))
        if not _is_ours(cls) and (waits or is_known or recorded.take(cls)):
            found.append(StoredClass(cls, name, cls, may_drop=not waits))
    return [*found, *_documents()]


class _StoringRoutes:
    """The routes of all handlers on channels, or of those that read stored events."""

    def __init__(self, registry: Registry, *, is_fed: bool) -> None:
        self._table: RouteTable = registry.routes
        self._keys: set[str] = set()
        self._patterns: set[str] = set()
        self._bases: set[Any] = set()
        self._protocols: set[Any] = set()
        self._takes_every_event = False
        for endpoint in self._table.endpoints:
            is_stored = endpoint.is_fed if is_fed else endpoint.channel is not None
            if is_stored and endpoint.kind is not Kind.QUERY:
                self._add(endpoint)

    def add_bases(self, bases: Iterable[type]) -> None:
        """Add classes whose objects are stored."""
        self._bases.update(bases)

    def _add(self, endpoint: Endpoint) -> None:
        for key in endpoint.keys:
            is_pattern = not PATTERN_SIGNS.isdisjoint(key)
            (self._patterns if is_pattern else self._keys).add(key)
        wanted = endpoint.plan.payload
        members = wanted.members if wanted is not None and endpoint.keys else ()
        for base in {*endpoint.classes, *members} - {object, Any}:
            (self._protocols if is_protocol(base) else self._bases).add(base)
        is_open = object in endpoint.classes and endpoint.kind is Kind.EVENT
        self._takes_every_event = self._takes_every_event or is_open

    def take(self, cls: type) -> bool:
        """Return whether objects of a class may be stored."""
        name = message_name_of(cls)
        if name is not None and (
            name.name in self._keys
            or any(fnmatchcase(name.name, each) for each in self._patterns)
        ):
            return True
        if not self._bases.isdisjoint(cls.__mro__):
            return True
        types = self._table.types
        if any(cls in types.subclasses_of(each) for each in self._protocols):
            return True
        return self._takes_every_event and not any(
            self._table.handler_of_class(kind, cls)
            for kind in (Kind.COMMAND, Kind.QUERY)
        )


def _classes_in_streams(registry: Registry) -> Iterator[type]:
    """Yield the classes of the events that objects keep in their streams."""
    if not apps.is_installed(EVENTS):
        return
    from django_cqrs.events.appliers import appliers_of
    from django_cqrs.events.streams import stream_of

    streamed: dict[str, type] = {}
    for endpoint in registry.routes.endpoints:
        owner = endpoint.owner
        if owner is None or endpoint.subject is None or stream_of(owner) is None:
            continue
        streamed[endpoint.name] = owner
        yield from appliers_of(owner).classes
    models = [name for name, cls in streamed.items() if hasattr(cls, "_meta")]
    if not models:
        return
    # A model has no appliers: what it records is in its code.
    graph = graph_of(registry)
    for name in models:
        for edge in graph.sent_by.get(name, ()):
            if edge.message.kind is Kind.EVENT and edge.message.cls is not None:
                yield edge.message.cls


def _documents() -> Iterator[StoredClass]:
    for each in known_collections():
        if not isinstance(each.target, type) or _is_ours(each.target):
            continue
        if apps.get_containing_app_config(each.target.__module__) is not None:
            shape = each.shape
            yield StoredClass(
                each.target, each.name, shape.json_type, DOCUMENT, shape.adapter
            )


def _is_ours(cls: type) -> bool:
    """Return whether a class is part of this package, which keeps it readable."""
    return cls.__module__.partition(".")[0] == "django_cqrs"


def is_of_project(config: AppConfig) -> bool:
    """Return whether an app belongs to the project, not to an installed package."""
    if config.name.partition(".")[0] in ("django", "django_cqrs"):
        return False
    return _INSTALLED.isdisjoint(Path(config.path).parts)
