"""The conformance suite of event stores, and the store in memory."""

import threading

import pytest

from django_cqrs import Registry, command_handler
from django_cqrs.events import EventStore, where
from django_cqrs.exceptions import InvalidOption
from django_cqrs.testing import InMemoryEventStore
from django_cqrs.testing.event_stores import EventStoreConformance, Filled, Pack
from tests.limits import LIMIT


@pytest.mark.database
@pytest.mark.django_db(databases=["default", "other"])
class TestEventStoreOfADatabase(EventStoreConformance):
    """The store of a database passes the suite. [E35.4]"""

    def make_store(self, registry):
        return EventStore(registry=registry)


class TestInMemoryEventStore(EventStoreConformance):
    """The store in memory passes the same suite, without any database. [E35.4]"""

    def make_store(self, registry):
        return InMemoryEventStore(registry=registry)


def store_of(*targets):
    registry = Registry()
    for each in (Filled, *targets):
        registry.add(each)
    return InMemoryEventStore(registry=registry)


def test_what_needs_a_database_is_refused():
    """The error says what to use instead. [E35.4]"""
    with pytest.raises(InvalidOption, match="has no database"):
        store_of()._read_alias(None)


def test_a_follower_wakes_up_when_events_come():
    """Of those that it asks for. [E35.4]"""
    store = store_of()
    found = []

    def follow():
        for each in store.follow(where(Filled, box="a"), after=0):
            found.append(each.event.number)
            if len(found) == 2:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    for number, box in enumerate(["a", "b", "b", "a"]):
        store.append(Filled(number, box))
    thread.join(LIMIT)

    assert found == [0, 3]


def test_it_takes_the_place_of_a_handlers_store():
    """A registry's override gives it to whoever asks for an EventStore. [E35.4]"""

    @command_handler(atomic=False)
    def pack(command: Pack, store: EventStore):
        store.append(Filled(7), stream="box-1")

    memory = store_of(pack)
    with memory.registry.override(EventStore, lambda: memory):
        memory.registry.command_bus.dispatch(Pack())

    assert [each.event.number for each in memory.read("box-1")] == [7]
