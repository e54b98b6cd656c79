"""Projections on the channel of an engine."""

from django_cqrs import event_handler
from django_cqrs.checks import check_registry
from django_cqrs.events import projection
from tests.engines.support import consume, forward
from tests.events.projections.support import OrderPlaced, append
from tests.events.views.models import Entry
from tests.outbox.support import note, numbers, on_databases, registry_of, send

pytestmark = on_databases


@projection("forwarded", channel="outbox", views=[Entry])
class Forwarded:
    @event_handler
    def placed(self, event: OrderPlaced):
        Entry.objects.create(number=event.number)


def test_e36_2_projections_run_in_the_worker_that_forwards(engine):
    """Its messages go to the engine, and its events are handled at once. [E36.2]"""
    registry = registry_of(note)
    for each in (Forwarded, OrderPlaced):
        registry.add(each)
    # Something else points to the model; the channel is as good as any.
    assert [each.id for each in check_registry(registry)] == ["django_cqrs_events.E007"]
    append(registry, OrderPlaced(1), OrderPlaced(2))
    send(registry, 3)

    assert forward(registry) == 1

    entries = Entry.objects.order_by("pk").values_list("number", flat=True)
    assert list(entries) == [1, 2]
    assert numbers() == []
    [task] = consume(engine, registry)
    assert task.handled == 1
    assert numbers() == [3]
    assert list(entries) == [1, 2]
