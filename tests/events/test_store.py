"""The event store by hand: append, read, select."""

import dataclasses

import pytest

from django_cqrs import Registry, message
from django_cqrs.events import EXISTS, NEW, EventStore, where
from django_cqrs.exceptions import ConcurrencyError, StreamNotFound

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@message("shop.opened")
@dataclasses.dataclass(frozen=True)
class Opened:
    number: int


registry = Registry()
registry.add(Opened)
store = EventStore(registry=registry)


def test_try():
    done = store.append([Opened(1), Opened(2)], stream="shop.basket-1")
    assert done.version == 2
    done = store.append(Opened(3), stream="shop.basket-1")
    assert done.version == 3
    assert [e.event.number for e in store.read("shop.basket-1")] == [1, 2, 3]
    assert store.settled() == done.position == store.head()
    with pytest.raises(ConcurrencyError):
        store.append(Opened(3), stream="shop.basket-1", expected_version=2)
    with pytest.raises(ConcurrencyError):
        store.append(Opened(3), stream="shop.basket-1", expected_version=NEW)
    with pytest.raises(ConcurrencyError):
        store.append(Opened(3), stream="shop.basket-2", expected_version=EXISTS)
    with pytest.raises(ConcurrencyError):
        store.append(Opened(3), stream="shop.basket-1", expected_version=5)
    store.append(Opened(4), stream="shop.basket-1", expected_version=3, tags=["a:1"])
    store.append(
        [Opened(5), Opened(6)],
        stream="shop.basket-2",
        expected_version=NEW,
        tags=["a:1"],
    )
    store.append([Opened(7)], tags=["a:2"])
    assert [e.event.number for e in store.read_all()] == [1, 2, 3, 4, 5, 6, 7]
    assert [e.event.number for e in store.read_all(where(a=1))] == [4, 5, 6]
    assert [
        e.event.number for e in store.read_all(where("shop.*", stream="shop.basket-2"))
    ] == [5, 6]
    assert [
        e.event.number for e in store.read_all(where(Opened, category="shop.basket"))
    ] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(StreamNotFound):
        list(store.read("shop.basket-3"))
