"""What the tests of projections share."""

from __future__ import annotations

import dataclasses

from django.db import connections, transaction

from django_cqrs import message
from django_cqrs.events import EventStore
from django_cqrs.events.handling import EventBatch, projections_of
from tests.support import registry_of


@message("order.placed")
@dataclasses.dataclass(frozen=True)
class OrderPlaced:
    number: int
    sku: str = "tea"


@message("order.paid")
@dataclasses.dataclass(frozen=True)
class OrderPaid:
    number: int


@message("order.cancelled")
@dataclasses.dataclass(frozen=True)
class OrderCancelled:
    number: int


@message("order.counted")
@dataclasses.dataclass(frozen=True)
class OrderCounted:
    count: int


class Unlucky(Exception):
    """Raised by handlers of tests."""


EVENTS = (OrderPlaced, OrderPaid, OrderCancelled, OrderCounted)


def project(*targets):
    """Return a registry with projections, other handlers, and the events above."""
    return registry_of(*targets, *EVENTS)


def store_of(registry, using="default"):
    return EventStore(using, registry=registry)


def append(registry, *events, stream="order-1", **options):
    return store_of(registry).append(list(events), stream=stream, **options)


def stored(registry):
    """Return all events of the store."""
    return list(store_of(registry).read_all())


def handlers_of(registry, name="orders"):
    """Return the compiled handlers of a projection without mistakes."""
    handlers = projections_of(registry)[name]
    assert handlers.problems == []
    return handlers


def handle(registry, page=None, *, name="orders", using="default", **options):
    """Handle events in a batch of their own; return it."""
    with transaction.atomic(using=using):
        batch = EventBatch(handlers_of(registry, name), connections[using], **options)
        batch.handle(stored(registry) if page is None else page)
        batch.finish()
    return batch
