"""Stored messages that the present code cannot handle: for use before a deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Count

from django_cqrs import buses
from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import CQRSError, InvalidChannel
from django_cqrs.outbox.channel import outbox_of
from django_cqrs.outbox.models import DeadLetter, OutboxMessage

__all__ = ["StoredKind", "stored_kinds"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredKind:
    """Stored messages of one channel, endpoint, name and version."""

    channel: str
    endpoint: str
    name: str
    """The name of the message; empty for a plain value."""
    version: int
    count: int
    is_dead: bool
    """Whether they are dead letters."""
    faults: tuple[str, ...]
    """The reasons why this code cannot handle them, one sentence each."""


def stored_kinds(
    using: str = DEFAULT_DB_ALIAS,
    *,
    dead_letters: bool = False,
    registry: Registry | None = None,
    tenant: str | None = None,
) -> list[StoredKind]:
    """
    Return the kinds of messages that wait in a database, each with its faults.

    It counts all rows of the tables, by one statement each, and reads no payload.

    Args:
        using: the alias of the database.
        dead_letters: whether dead letters are counted too.
        registry: the registry with the handlers; by default the project's.
        tenant: the tenant whose messages are counted; None means everybody's.

    """
    handlers = registry if registry is not None else buses.registry
    found = []
    for model in (OutboxMessage, DeadLetter) if dead_letters else (OutboxMessage,):
        columns = ("channel", "endpoint", "name", "version")
        rows: Any = model._default_manager.using(using).order_by()
        if tenant is not None:
            rows = rows.filter(tenant=tenant)
        counted = rows.values_list(*columns).annotate(count=Count("pk"))
        for channel, endpoint, name, version, count in counted.order_by(*columns):
            faults = _faults(handlers, channel, endpoint, name, version)
            found.append(
                StoredKind(
                    channel=channel,
                    endpoint=endpoint,
                    name=name,
                    version=version,
                    count=count,
                    is_dead=model is DeadLetter,
                    faults=tuple(faults),
                )
            )
    return found


def _faults(
    registry: Registry, channel: str, endpoint: str, name: str, version: int
) -> Iterator[str]:
    table = registry.routes
    try:
        outbox_of(channel)
    except InvalidChannel as error:
        yield str(error)
    try:
        table.endpoint_named(endpoint)
    except CQRSError as error:
        yield str(error)
    if not name:
        return
    try:
        cls = table.types.class_of(name)
    except CQRSError as error:
        yield str(error)
        return
    own = table.types.name_of(cls)
    if version > own.version:
        yield (
            f"{name!r} was stored in version {version}, but "
            f"{cls.__module__}.{cls.__qualname__} has version {own.version}: this code "
            "is older than the one that sent it."
        )
