"""Events inside transactions: what is undone, and what stays."""

import pytest
from django.db import transaction
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import path

from django_cqrs import Registry, command_handler, event_handler, message
from django_cqrs.events import EventStore
from django_cqrs.events.models import EventTag, StoredEvent, Stream
from django_cqrs.outbox.models import OutboxMessage
from tests.events.support import Added, Removed, numbers, on_databases, store_of

pytestmark = on_databases


class Unwell(Exception):
    """A failure after an append."""


registry = Registry()
own = EventStore(registry=registry)
registry.add(Added)


@registry.add
@event_handler(channel="outbox", name="store_tests.mail")
def mail(event: Added) -> None:
    """Be told later."""


@registry.add
@command_handler
def remove(command: Removed) -> None:
    own.append(Added(command.number), stream="shop.basket-1", tags=["a:1"])
    if command.number < 0:
        raise Unwell


def append_and_fail():
    own.append([Added(2), Added(3)], stream="shop.basket-1", tags=["a:1"])
    own.append(Added(4), stream="shop.basket-2")
    raise Unwell


def counts():
    models = (StoredEvent, EventTag, Stream, OutboxMessage)
    return [model.objects.count() for model in models]


def test_e16_1_a_caught_failure_takes_all_of_its_events():
    """A block that fails leaves no event, tag, stream or message; the rest stays. [E16.1]"""
    with transaction.atomic():
        own.append(Added(1), stream="shop.basket-1", tags=["a:1"])
        before = counts()
        with pytest.raises(Unwell), transaction.atomic():
            append_and_fail()
        assert counts() == before == [1, 1, 1, 1]
        own.append(Added(5), stream="shop.basket-1")

    recorded = list(own.read("shop.basket-1"))
    assert [(each.version, each.event.number) for each in recorded] == [(1, 1), (2, 5)]
    assert counts() == [2, 1, 1, 2]


def test_e16_2_so_does_a_nested_command():
    """A command inside a command that fails and is caught leaves nothing. [E16.2]"""

    @message("store_tests.outer")
    class Outer:
        """A command that sends another one."""

    @registry.add
    @command_handler
    def handle(command: Outer) -> None:
        own.append(Added(1), stream="shop.basket-1")
        with pytest.raises(Unwell):
            registry.command_bus.dispatch(Removed(-2))
        registry.command_bus.dispatch(Removed(3))

    registry.command_bus.dispatch(Outer())

    recorded = list(own.read("shop.basket-1"))
    assert [(each.version, each.event.number) for each in recorded] == [(1, 1), (2, 3)]
    assert counts() == [2, 1, 1, 2]

    with pytest.raises(Unwell):
        registry.command_bus.dispatch(Removed(-4))
    assert counts() == [2, 1, 1, 2]


def view(request):
    own.append(Added(1), stream="shop.basket-1")
    try:
        with transaction.atomic():
            append_and_fail()
    except Unwell:
        own.append(Added(5), stream="shop.basket-1")
    if "fail" in request.GET:
        raise Unwell
    return HttpResponse("done")


urlpatterns = [path("append/", view)]


def test_e16_2_so_does_a_request():
    """With ATOMIC_REQUESTS a request that fails leaves nothing. [E16.2]"""
    from django.db import connections

    client = Client(raise_request_exception=False)
    settings = connections["default"].settings_dict
    with (
        override_settings(ROOT_URLCONF=__name__),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setitem(settings, "ATOMIC_REQUESTS", True)
        assert client.get("/append/?fail").status_code == 500
        assert counts() == [0, 0, 0, 0]
        assert client.get("/append/").status_code == 200

    assert numbers(own.read("shop.basket-1")) == [1, 5]
    assert counts() == [2, 0, 1, 2]


def test_e16_4_each_database_has_a_store_of_its_own():
    """A store of another alias has its own streams and positions. [E16.4]"""
    other = store_of(Added, using="other")
    done = [other.append(Added(n), stream="shop.basket-1").version for n in (1, 2)]
    own.append(Added(7), stream="shop.basket-1")

    assert done == [1, 2]
    assert numbers(other.read("shop.basket-1")) == numbers(other.read_all()) == [1, 2]
    assert numbers(own.read_all()) == [7]
    with transaction.atomic(using="other"):
        other.append(Added(3), stream="shop.basket-1")
        own.append(Added(8), stream="shop.basket-1")
        transaction.set_rollback(True, using="other")
    assert numbers(other.read_all()) == [1, 2]
    assert numbers(own.read_all()) == [7, 8]


def test_e16_5_a_callback_of_the_commit_sees_the_event():
    """What a handler registers with on_commit reads the event after the commit. [E16.5]"""
    seen = []
    mine = Registry()
    events = EventStore(registry=mine)

    @mine.add
    @event_handler
    def note(event: Added) -> None:
        transaction.on_commit(lambda: seen.append(numbers(events.read_all())))
        seen.append(numbers(events.read("shop.basket-1")))

    with transaction.atomic():
        events.append(Added(1), stream="shop.basket-1")
        assert seen == [[1]]
    events.append(Added(2), stream="shop.basket-1")

    assert seen == [[1], [1], [1, 2], [1, 2]]


def test_a_handler_that_fails_cannot_be_ignored_inside_a_transaction():
    """Its event would be stored though a handler refused it: only a rollback is left."""
    mine = Registry()
    events = EventStore(registry=mine)

    @mine.add
    @event_handler
    def refuse(event: Added) -> None:
        raise Unwell

    with transaction.atomic():
        with pytest.raises(Unwell):
            events.append(Added(1))
        with pytest.raises(transaction.TransactionManagementError):
            events.head()
        transaction.set_rollback(True)

    assert counts() == [0, 0, 0, 0]
