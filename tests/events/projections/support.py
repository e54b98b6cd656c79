"""What the tests of projections share."""

from __future__ import annotations

import dataclasses

from django.db import connections, transaction

from django_cqrs import event_handler, message
from django_cqrs.events import EventStore, projection
from django_cqrs.events.handling import EventBatch, projections_of
from django_cqrs.events.models import Generation, Shard
from django_cqrs.outbox.worker import Bounds, Worker
from tests.events.views.models import Entry
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


broken: set[int] = set()
"""The numbers of orders that the projections below fail at."""


def made(name="orders", **options):
    """Return a projection that notes the numbers of orders, and fails at broken ones."""
    options = {"channel": "outbox", **options}

    @projection(name, **options)
    class Orders:
        @event_handler
        def placed(self, event: OrderPlaced):
            if event.number in broken:
                raise Unlucky(event.number)
            Entry.objects.create(text=name, number=event.number)

    return Orders


def numbers(name="orders"):
    """Return the numbers that a projection has noted, in order."""
    rows = Entry.objects.filter(text=name).order_by("pk")
    return list(rows.values_list("number", flat=True))


def place(registry, *numbers, stream="order-1"):
    """Append an order of each number."""
    return append(registry, *map(OrderPlaced, numbers), stream=stream)


def work(registry, *aliases, **bounds):
    """Let a worker do what there is to do."""
    bounds = Bounds(**{"until_empty": True, **bounds})
    Worker(registry, aliases or ["outbox"], using="default", bounds=bounds).run()


def shard(name="orders", number=0):
    """Return a shard of the live generation of a projection."""
    generation = Generation.objects.get(projection=name, is_live=True)
    return Shard.objects.get(generation_id=generation.pk, number=number)
