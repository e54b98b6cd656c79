"""Sagas that are documents: started, moved, ended, late."""

from __future__ import annotations

import pytest

from django_cqrs import Registry, command_handler
from django_cqrs.checks import check_registry
from django_cqrs.documents import DocumentStore
from django_cqrs.exceptions import AggregateAlreadyExists, AggregateNotFound
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.testing.flow import Flow
from tests.documents.kinds import (
    PROCESSES,
    Cancel,
    Counted,
    Due,
    Packed,
    Settled,
    Ship,
    Started,
)

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@pytest.fixture(params=PROCESSES, ids=lambda cls: cls.__name__)
def kind(request):
    return request.param


@pytest.fixture
def processes(kind):
    return DocumentStore(kind)


@pytest.fixture
def seen():
    return []


@pytest.fixture
def registry(kind, processes, seen):
    @command_handler("process.ship")
    def ship(command: Ship) -> None:
        process = processes.get(command.process_id)
        seen.append(("ship", process.is_settled and process.is_packed))

    @command_handler
    def cancel(command: Cancel) -> None:
        seen.append(("cancel", processes.get(command.process_id).completed_at))

    registry = Registry()
    for each in (kind, ship, cancel):
        registry.add(each)
    return registry


@pytest.fixture
def publish(registry):
    return registry.event_bus.publish


def test_no_check_complains(registry):
    """Each kind may be kept as it is. [M14.8]"""
    assert check_registry(registry) == []


def test_started_moved_queried(registry, publish, processes):
    """An event starts it, others move it, a query asks it. [M14.8]"""
    publish(Started(7))
    publish(Settled(7))

    assert processes.get(7).is_settled
    assert registry.query_bus.ask(route="process.is_settled", aggregate_id=7) is True


def test_missing(publish, processes):
    """A message for one that never began raises, or is dropped by ``on_missing``. [M14.8]"""
    publish(Packed(7))
    with pytest.raises(AggregateNotFound):
        publish(Settled(7))

    assert processes.count() == 0


def test_a_second_start(publish):
    """One that is there is not started again. [M14.8]"""
    publish(Started(7))
    with pytest.raises(AggregateAlreadyExists):
        publish(Started(7))


def test_a_start_and_a_step_for_one_event(publish, processes):
    """The first starts it, the next ones move it. [M14.8]"""
    publish(Counted(7))
    publish(Counted(7))

    assert processes.get(7).times == 2


@pytest.mark.parametrize("events", [[Settled(7), Packed(7)], [Packed(7), Settled(7)]])
def test_output_after_the_save(publish, seen, events):
    """What it returns is sent on, and its receiver reads what was saved. [M14.8]"""
    publish(Started(7))
    for event in events:
        publish(event)

    assert seen == [("ship", True)]


def test_a_timeout(registry, publish, processes, seen):
    """It comes when it is due, what it finds decides, and it leaves a tombstone. [M14.8]"""
    with Flow(registry=registry) as flow:
        publish(Started(7))
        assert flow.run("outbox") == 0
        flow.advance(hours=24)
        assert flow.run("outbox") == 1

    assert seen == [("cancel", None)]
    assert processes.get(7).completed_at is not None


def test_timers_end_with_it(registry, publish):
    """A saga that is completed takes back what waits for it, and nothing else. [M14.8]"""
    publish(Started(7))
    publish(Started(8))
    registry.command_bus.dispatch(route="process.finish", aggregate_id=7)

    (left,) = OutboxMessage.objects.all()
    assert left.subject.endswith(":8")


def test_a_tombstone(registry, publish, processes):
    """A completed saga is not started again, and a late message finds it over. [M14.8]"""
    publish(Started(7))
    registry.command_bus.dispatch(route="process.finish", aggregate_id=7)

    with pytest.raises(AggregateAlreadyExists):
        publish(Started(7))
    with pytest.raises(AggregateNotFound, match="is completed"):
        publish(Settled(7))
    publish(Packed(7))  # on_missing="ignore"
    with Flow(registry=registry) as flow:
        publish(Due(7))
        flow.advance(hours=24)
        flow.run("outbox")
    found = processes.get(7)
    assert (found.is_settled, found.is_packed) == (False, False)
