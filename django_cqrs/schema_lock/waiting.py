"""Stored payloads that the present code cannot read: counted in the database."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from django.apps import apps
from django.db import router
from django.db.models import Model, QuerySet

from django_cqrs.buses.registries import Registry
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.documents.collections import collections_called
from django_cqrs.exceptions import CQRSError, MessageConversionError
from django_cqrs.tenant_options import ChosenRows

_BATCH: Final = 500


class _PayloadTable(NamedTuple):
    """A table with payloads, and the way to read one of its rows."""

    what: str
    """Its content, for people."""
    app: str
    model: str
    columns: tuple[str, ...]
    """Its columns: the name, the version, the payload, and others."""
    read: Callable[..., object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableKind:
    """The payloads of one table, name and version that cannot be read."""

    what: str
    """The content of the table, such as ``"waiting message"``."""
    name: str
    """The stored name; empty for a plain value."""
    version: int
    count: int
    why: str
    """The reason, without values of a payload."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredPayloads:
    """The stored payloads of one database."""

    total: int
    unreadable: list[UnreadableKind]


def stored_payloads(
    registry: Registry, using: str, *, tenant: str | None = None
) -> StoredPayloads:
    """
    Read every stored payload of a database, and count those that fail.

    Nothing is changed, and no handler runs.

    Args:
        registry: the registry with the handlers.
        using: the alias of the database.
        tenant: the tenant whose rows are read, in tables that say whose they are; None
            means everybody's.

    """
    reader = _Reader(registry)
    chosen = ChosenRows(using, tenant)
    total = 0
    found: Counter[tuple[str, str, int, str]] = Counter()
    for place in _places(reader):
        if not apps.is_installed(place.app):
            continue
        model = apps.get_model(place.app.replace(".", "_"), place.model)
        if not router.allow_migrate_model(using, model):
            continue
        for name, version, *rest in _rows(model, place.columns, chosen):
            total += 1
            why = _why(place.read, name, version, *rest)
            if why:
                found[place.what, name, version, why] += 1
    kinds = [
        UnreadableKind(what=what, name=name, version=version, count=count, why=why)
        for (what, name, version, why), count in sorted(found.items())
    ]
    return StoredPayloads(total, kinds)


def _places(reader: _Reader) -> Iterator[_PayloadTable]:
    message = ("name", "version", "payload", "endpoint")
    outbox = "django_cqrs.outbox"
    event = ("name", "shape", "payload", "headers", "link_to")
    yield _PayloadTable(
        "waiting message", outbox, "OutboxMessage", message, reader.message
    )
    yield _PayloadTable("dead letter", outbox, "DeadLetter", message, reader.message)
    events = "django_cqrs.events"
    yield _PayloadTable("event", events, "StoredEvent", event, reader.event)
    yield _PayloadTable("archived event", events, "ArchivedEvent", event, reader.event)
    document = ("collection", "shape", "content")
    documents = "django_cqrs.documents"
    yield _PayloadTable("document", documents, "Document", document, reader.document)


def _rows(
    model: type[Model], columns: tuple[str, ...], chosen: ChosenRows
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table in pages: no server has to keep a cursor open."""
    rows: QuerySet[Any] = chosen.of(model._default_manager.order_by("pk"))
    last = None
    while True:
        page = rows if last is None else rows.filter(pk__gt=last)
        found = list(page.values_list("pk", *columns)[:_BATCH])
        for pk, *values in found:
            last = pk
            yield tuple(values)
        if len(found) < _BATCH:
            return


def _why(read: Callable[..., object], *values: Any) -> str:
    """Return the reason why a row cannot be read; empty if it can."""
    try:
        read(*values)
    except MessageConversionError as error:
        fault = error.errors[0]
        # Further parts of the path may be keys of a payload, and so may the message.
        field = fault.path.partition(".")[0]
        return f"{field}: {fault.code}" if field else fault.code
    except CQRSError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - an upcaster may raise anything
        return f"an upcaster fails with {type(error).__name__}"
    return ""


class _Reader:
    """Reads stored payloads as workers do."""

    def __init__(self, registry: Registry) -> None:
        self._table = registry.routes

    def message(self, name: str, version: int, payload: Any, endpoint: str) -> object:
        text = bytes(payload)
        if name:
            return self._table.types.decode(name, text, version)
        wanted = self._table.endpoint_named(endpoint).plan.payload
        return (wanted or PayloadType(Any)).from_stored_json(text)

    def event(
        self, name: str, shape: int, payload: Any, headers: Any, link_to: Any
    ) -> object:
        if link_to is not None:
            return None
        from django_cqrs.events.decoding import decoder_of

        texts = json.dumps(payload), json.dumps(headers)
        return decoder_of(self._table.types).event(name, shape, *texts)

    @staticmethod
    def document(name: str, shape: int, content: Any) -> object:
        for each in collections_called(name):
            each.shape.load(content, each.name, name, shape)
        return None
