"""Aggregates that are their events: what they return and record is appended."""

from __future__ import annotations

from contextlib import contextmanager
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_cqrs import Registry, event_handler
from django_cqrs.checks import check_registry
from django_cqrs.events import EventStore
from django_cqrs.events.models import StoredEvent, Stream
from django_cqrs.testing.flow import Flow
from tests.events.baskets import (
    BASKETS,
    Add,
    AddAll,
    Added,
    Count,
    Fail,
    Open,
    Opened,
)

pytestmark = [pytest.mark.django_db, pytest.mark.database]

ONE, TWO = UUID(int=1), UUID(int=2)


@pytest.fixture(params=BASKETS, ids=lambda cls: cls.__name__)
def kind(request):
    return request.param


@pytest.fixture
def registry(kind):
    registry = Registry()
    registry.add(kind)
    return registry


@pytest.fixture
def dispatch(registry):
    return registry.command_bus.dispatch


def events_of(registry):
    """Return the version and the content of each event of the only stream."""
    (stream,) = Stream.objects.all()
    store = EventStore(registry=registry)
    return [(each.version, each.event) for each in store.read(str(stream))]


@contextmanager
def queries():
    """Yield the statements, those of transactions left out."""
    found = []
    with CaptureQueriesContext(connection) as captured:
        yield found
    words = [each["sql"].split()[0].upper() for each in captured.captured_queries]
    found += [w for w in words if w in ("SELECT", "INSERT", "UPDATE", "DELETE")]


def test_no_check_complains(registry):
    """Each kind may be kept as it is."""
    assert check_registry(registry) == []


class TestReturnedEvents:
    @pytest.mark.parametrize("also", [(), ("tea", "jam")])
    def test_e01_1_a_factory(self, registry, dispatch, also):
        """Its events make the stream; the identifier is the result. [E01.1]"""
        with Flow(registry=registry) as flow:
            assert dispatch(Open(ONE, also)) == ONE

        expected = [Opened(ONE), *(Added(ONE, sku) for sku in also)]
        assert events_of(registry) == list(enumerate(expected, 1))
        assert flow.published == expected

    def test_e01_2_an_action(self, registry, dispatch):
        """What it returns is appended behind, and is the result. [E01.2]"""
        dispatch(Open(ONE))

        with Flow(registry=registry) as flow:
            assert dispatch(Add(ONE, "tea")) == Added(ONE, "tea")
            both = [Added(ONE, "a"), Added(ONE, "b")]
            assert dispatch(AddAll(ONE, ["a", "b"])) == both

        versions = [version for version, _ in events_of(registry)]
        assert versions == [1, 2, 3, 4]
        assert flow.published == [Added(ONE, "tea"), *both]
        assert registry.query_bus.ask(Count(ONE)) == 3

    def test_e01_5_an_exception(self, registry, dispatch):
        """Nothing is appended, and nothing published. [E01.5]"""
        dispatch(Open(ONE))

        with Flow(registry=registry) as flow, pytest.raises(RuntimeError):
            dispatch(Fail(ONE))

        assert events_of(registry) == [(1, Opened(ONE))]
        assert flow.published == []

    def test_e01_6_a_handler_reads_the_stream(self, registry, dispatch):
        """A handler of the event finds it in the stream. [E01.6]"""
        seen = []

        @event_handler
        def read(event: Added) -> None:
            seen.extend(events_of(registry))

        registry.add(read)
        dispatch(Open(ONE))
        dispatch(Add(ONE, "tea"))

        assert seen == [(1, Opened(ONE)), (2, Added(ONE, "tea"))]

    def test_e01_3_nothing_happened(self, registry, dispatch):
        """An action without events writes nothing. [E01.3]"""
        dispatch(Open(ONE))
        dispatch(Add(ONE, "tea"))

        with Flow(registry=registry) as flow, queries() as made:
            assert dispatch(Add(ONE, "tea")) is None
            assert dispatch(AddAll(ONE, [])) == []

        assert set(made) == {"SELECT"}
        assert flow.published == []
        assert StoredEvent.objects.count() == 2
