"""Links: events of one stream in another one."""

import pytest

from django_cqrs.events import where
from django_cqrs.events.models import ArchivedEvent, StoredEvent
from django_cqrs.exceptions import StreamNotFound
from tests.events.support import Added, Removed, in_a_transaction, numbers, store

pytestmark = [pytest.mark.database, in_a_transaction]


def fill():
    store.append([Added(1), Added(2)], stream="shop.basket-1")
    store.append([Added(3), Removed(4)], stream="shop.basket-2", tags=["course:7"])
    return list(store.read_all())


def test_e12_1_a_linked_stream_gives_originals_in_order_of_linking():
    """Reading a stream of links gives originals, with the versions of the links. [E12.1]"""
    one, two, three, four = fill()
    assert store.link("big", [four, one]) == 2
    store.append(Added(5), stream="big")
    assert store.link("big", three) == 1

    linked = list(store.read("big"))
    assert numbers(linked) == [4, 1, 5, 3]
    assert [each.version for each in linked] == [1, 2, 3, 4]
    assert [each.event_id for each in linked[:2]] == [four.event_id, one.event_id]
    assert [each.name for each in linked[:2]] == ["shop.removed", "shop.added"]
    assert [each.link_to for each in linked] == [
        four.position,
        one.position,
        None,
        three.position,
    ]
    assert {each.stream for each in linked} == {"big"}
    assert [each.version for each in store.read("shop.basket-1")] == [1, 2]
    assert numbers(store.read("big", backwards=True, limit=2)) == [3, 5]
    assert linked[0].tags == ("course:7",)
    assert two.position not in [each.link_to for each in linked]


def test_e12_2_an_event_is_linked_once():
    """The same event twice is one link, also through a link to it. [E12.2]"""
    one, two, *_ = fill()
    assert store.link("big", [one, one]) == 1
    assert store.link("big", [two, one]) == 1
    links = list(store.read("big"))
    assert store.link("big", links) == 0
    assert store.link("other", links) == 2

    assert numbers(store.read("big")) == numbers(store.read("other")) == [1, 2]
    assert next(store.read("other")).link_to == one.position
    assert store.link("big", []) == 0
    assert store.link("empty", []) == 0
    with pytest.raises(StreamNotFound):
        list(store.read("empty"))


def test_e12_3_links_count_for_their_stream_alone():
    """A query of everything finds an event once, one of the linked stream each link. [E12.3]"""
    one, _, three, _ = fill()
    store.link("big-orders", [one, three])

    assert numbers(store.read_all()) == [1, 2, 3, 4]
    assert numbers(store.read_all(where(Added))) == [1, 2, 3]
    assert numbers(store.read_all(where(course=7))) == [3, 4]
    assert numbers(store.read_all(where(stream="big-orders"))) == [1, 3]
    assert numbers(store.read_all(where(category="big"))) == [1, 3]
    assert numbers(store.read_all(where(category="big", course=7))) == [3]
    both = where(stream="big-orders") | where(stream="shop.basket-1")
    assert numbers(store.read_all(both)) == [1, 2, 1, 3]
    assert numbers(store.read_all(where("shop.removed", category="big"))) == []


def test_e12_4_a_link_follows_its_original_into_the_archive():
    """A link to an archived event is read, one to a deleted event is left out. [E12.4]"""
    one, two, three, four = fill()
    store.link("big", [one, two, three, four])
    moved = StoredEvent.objects.get(pk=two.position)
    values = {each.attname: getattr(moved, each.attname) for each in moved._meta.fields}
    ArchivedEvent.objects.create(**values)
    StoredEvent.objects.filter(pk__in=[two.position, three.position]).delete()

    assert numbers(store.read("big")) == [1, 2, 4]
    assert [each.version for each in store.read("big")] == [1, 2, 4]
    assert numbers(store.read("big", limit=2)) == [1, 2]
    assert numbers(store.read("big", limit=3)) == [1, 2, 4]
    assert numbers(store.read_all(where(stream="big"))) == [1, 2, 4]
    assert numbers(store.read("big", first=3, last=3)) == []
